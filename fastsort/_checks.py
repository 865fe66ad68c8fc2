"""Checks of the user's input, each with its message.

A message says what was wrong, what was seen and what to do. Every error is an
`InputError`, so that the command line can tell a mistake of the user from a defect.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Sequence
from io import BufferedReader
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastsort._types import Array, FilePath, Floats, Images

# NumPy is imported where an array is checked: the command looks at its arguments before it needs arrays.

MIN_BOX = 16
MAX_BOX = 1024


class InputError(ValueError):
    """The user's input cannot be used; the message is one line for the user."""


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")
    return value


def check_positive(name: str, value: float, unit: str = "") -> float:
    """Return `value` as a float if it is finite and above zero."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number; got {value!r}.") from None
    if not (math.isfinite(number) and number > 0):
        kind = "positive and finite" if number == math.inf else "positive"
        raise InputError(f"{name} must be {kind}; got {number:g}{' ' + unit if unit else ''}.")
    return number


def check_every(name: str, values: Floats, place: Callable[[int], str], positive: bool = False) -> None:
    """Refuse numbers of which one is not finite or, with `positive`, not positive.

    Parameters
    ----------
    name : str
        What the numbers are.
    values : ndarray of float64, shape (n,)
    place : callable
        Called as ``place(index)`` with the first wrong number: returns the end of the message, which says
        where the number is and what to do.
    positive : bool
    """
    import numpy as np

    wrong = np.flatnonzero(~np.isfinite(values) | (positive & (values <= 0)))
    if len(wrong):
        row = int(wrong[0])
        kind = "positive" if positive else "finite"
        raise InputError(f"{name} must be {kind}; it is {values[row]:g} {place(row)}")


def check_count(name: str, value: int, minimum: int = 1) -> int:
    """Return `value` as an int if it is whole and at least `minimum`."""
    try:
        whole = int(value)
        exact = whole == value
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact or whole < minimum:
        raise InputError(f"{name} must be a whole number, {minimum} or more; got {value!r}.")
    return whole


def check_workers(n_jobs: object) -> None:
    """Refuse what is no number of workers; None leaves it to joblib."""
    if n_jobs is None:
        return
    try:
        whole = index(n_jobs)  # type: ignore[arg-type]
    except TypeError:
        whole = 0
    if whole == 0:
        raise InputError(f"n_jobs must be a whole number, or -1 for all cores; got {n_jobs!r}.")


def check_is(value: object, kind: type, name: str, maker: str) -> None:
    """Refuse what is no result of a function, which `maker` names."""
    if not isinstance(value, kind):
        raise InputError(
            f"{name} must be a result of {maker}, a {kind.__name__}; got {value!r:.60}: pass what {maker} "
            "returned, or what was loaded from its file."
        )


def check_images(images: npt.ArrayLike) -> Images:
    """Return images as an owned, C-ordered, native float32 array (n, d, d); there may be none."""
    import numpy as np

    array = np.asarray(images)
    _check_pixels(array)
    return np.array(array, dtype=np.float32, order="C")


def check_stack(images: Array) -> Array:
    """Return `images` itself, not a copy, if it holds at least one image and all are real and square."""
    _check_pixels(images)
    check_not_empty(len(images), "the array")
    return images


def _check_pixels(images: Array) -> None:
    if images.dtype.kind == "c":
        raise InputError(
            f"images must be real numbers; got an array of {images.dtype}: give the images, not their "
            "Fourier transforms."
        )
    if images.dtype.kind not in "fiub":
        raise InputError(
            f"images must be real numbers; got an array of {images.dtype}: convert it to float32."
        )
    if images.ndim != 3:
        advice = "images[np.newaxis] makes a stack of one image" if images.ndim == 2 else "give one stack"
        raise InputError(f"images must have shape (n, d, d); got {images.shape}: {advice}.")
    check_box(images.shape[1], images.shape[2])


def check_box(ny: int, nx: int, where: str = "images") -> int:
    """Return the box in pixels if images of this height and width can be sorted."""
    if ny != nx:
        raise InputError(
            f"{where} must be square; got {nx} x {ny} px: extract the particles in a square box."
        )
    if not MIN_BOX <= nx <= MAX_BOX:
        change = "larger" if nx < MIN_BOX else "smaller"
        raise InputError(f"{where} must be {MIN_BOX} to {MAX_BOX} px wide; got {nx} px: use a {change} box.")
    return nx


def check_not_empty(n: int, where: str = "the set") -> None:
    """Refuse a set without images."""
    if n == 0:
        raise InputError(f"{where} holds no images: give at least one.")


def check_radius(radius: float, box: int) -> float:
    """Return the radius of the particle in pixels if the particle fits into the box."""
    radius = check_positive("radius", radius, "px")
    if 2 * radius > box:
        raise InputError(
            f"the particle's diameter is {2 * radius:.1f} px, but the box has only {box} px: "
            "give a smaller diameter, or extract the particles in a larger box."
        )
    return radius


def check_output_folder(path: FilePath, overwrite: bool) -> Path:
    """Return the path of the output folder if results may be written there."""
    folder = Path(path)
    if not os.fspath(path) or "\0" in os.fspath(path):
        raise InputError(f"{os.fspath(path)!r} cannot be the name of a folder: give another output folder.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder: give another output folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise InputError(
            f"output folder {folder} exists and is not empty: give another one, or overwrite it "
            "(--overwrite, or overwrite=True in Python)."
        )
    # Results are written beside the folder and then renamed, so the folder above it must be writable.
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{parent} is a file, not a folder: give another output folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"no permission to write in {parent}: give another output folder.")
    return folder


def check_readable(path: FilePath) -> BufferedReader:
    """Return a regular file opened for reading."""
    try:
        # The kind is asked first, because opening a pipe would wait for its writer.
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist (looked from {os.getcwd()}): check the name.") from None
    except PermissionError:
        raise InputError(f"no permission to read {path}: ask its owner to let you read it.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}): give a file that can be read.") from None
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
    raise InputError(f"{path} is {kind}, not a file: give a file.")
