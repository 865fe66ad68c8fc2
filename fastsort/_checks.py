"""Every check of what a user gave, and the sentence that answers it.

A message says what was wrong, what was seen and what to do. All of them are
`InputError`, so that the command line can tell a user's mistake from a defect.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
        raise InputError(f"{name} must be positive; got {number:g}{' ' + unit if unit else ''}.")
    return number


def check_every(
    name: str, values: npt.NDArray[np.float64], place: Callable[[int], str], positive: bool = False
) -> None:
    """Refuse numbers of which one is not finite or, if asked, not positive; `place` says where it stands."""
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


def check_images(images: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return a stack as owned, C-ordered, native float32 (n, d, d)."""
    array = np.asarray(images)
    if array.dtype.kind == "c":
        raise InputError(
            f"images must be real; got {array.dtype.name}: these look like Fourier transforms, not images."
        )
    if array.dtype.kind not in "fiub":
        raise InputError(f"images must be numbers; got an array of {array.dtype}.")
    if array.ndim != 3:
        raise InputError(f"images must have shape (n, d, d); got {array.shape}: add the missing axis.")
    check_box(array.shape[1], array.shape[2])
    return np.array(array, dtype=np.float32, order="C")


def check_box(ny: int, nx: int, where: str = "images") -> int:
    """Return the box size of square images of a size that can be sorted."""
    if ny != nx:
        raise InputError(
            f"{where} must be square; got {nx} x {ny} px: extract the particles in a square box."
        )
    if not MIN_BOX <= nx <= MAX_BOX:
        raise InputError(f"{where} must be {MIN_BOX} to {MAX_BOX} px wide; got {nx} px.")
    return nx


def check_not_empty(n: int, where: str = "the set") -> None:
    """Refuse a set without images."""
    if n == 0:
        raise InputError(f"{where} holds no images: nothing to sort.")


def check_radius(radius: float, box: int) -> float:
    """Return the particle's radius in pixels if the box can hold the particle."""
    radius = check_positive("radius", radius, "px")
    if 2 * radius > box:
        raise InputError(
            f"the particle's diameter is {2 * radius:.1f} px, but the box has only {box} px: "
            "give a smaller diameter, or extract the particles in a larger box."
        )
    return radius


def check_output_folder(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """Return `path` if results may be written there."""
    folder = Path(path)
    if not os.fspath(path) or "\0" in os.fspath(path):
        raise InputError(f"{os.fspath(path)!r} cannot name a folder: give another output folder.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder: give another output folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise InputError(f"output folder {folder} exists and is not empty: give another, or add --overwrite.")
    # Results are written beside the folder and renamed, so the folder above it must be open too.
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{parent} is a file, not a folder: give another output folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"no permission to write in {parent}: give another output folder.")
    return folder


def check_work_folder(path: str | os.PathLike[str] | None) -> None:
    """Refuse a folder for intermediate files that does not exist."""
    if path is not None and not Path(path).is_dir():
        raise InputError(f"work folder {path} does not exist: make it, or leave it out.")


def check_readable(path: str | os.PathLike[str]) -> BufferedReader:
    """Return a regular file opened for reading."""
    try:
        # Asked before opening, because opening a pipe would wait for its writer.
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist (looked from {os.getcwd()}): check the name.") from None
    except PermissionError:
        raise InputError(f"no permission to read {path}: ask its owner to let you read it.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}.") from None
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
    raise InputError(f"{path} is {kind}, not a file: give a file.")


def check_stack(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return `images` itself, not copied, if it is a stack of real square images."""
    if images.dtype.kind not in "fiub":
        raise InputError(f"images must be real numbers; got an array of {images.dtype}.")
    if images.ndim != 3:
        raise InputError(f"images must have shape (n, d, d); got {images.shape}: add the missing axis.")
    check_not_empty(len(images), "the array")
    check_box(images.shape[1], images.shape[2])
    return images
