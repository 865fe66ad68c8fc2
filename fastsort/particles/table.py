"""What names images or picks: one contract for the tables of all formats."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastsort._brief import brief
from fastsort._checks import InputError
from fastsort._types import Array, Bools, Floats, Indices, Numbers
from fastsort.particles.store import StackImages

_ROWS_AT_ONCE = 50_000


@brief
class CtfParameters(NamedTuple):
    """Contrast transfer parameters: arrays of float64, one entry an image."""

    defocus_u: Floats
    """Angstrom."""
    defocus_v: Floats
    """Angstrom."""
    defocus_angle: Floats
    """Degree, from the x axis to the direction of `defocus_u`."""
    phase_shift: Floats
    """Degree."""
    voltage: Floats
    """Kilovolt."""
    spherical_aberration: Floats
    """Millimetre."""
    amplitude_contrast: Floats
    """Fraction."""

    def of(self, chosen: Any) -> CtfParameters:
        """Return those of some of the images: a range, or an index of any kind that NumPy knows."""
        return CtfParameters(*(column[chosen] for column in self))


def common_value(values: Floats) -> float:
    """Return the value that all have, NaN if they differ."""
    with np.errstate(all="ignore"):
        same = len(values) > 0 and values.max() <= values.min() + 1e-4 * abs(values.min())
    return float(values[0]) if same else math.nan


class Coordinates(NamedTuple):
    """Where the images of a table were picked in their micrographs.

    Attributes
    ----------
    x, y : ndarray of float64, shape (n,), or None
        Centre of the particle in pixels of the micrograph as it was when the particle was picked. None where
        the table has no coordinates.
    pixel_size : ndarray of float64, shape (n,)
        Of that micrograph, in angstroms; NaN where the table does not say.
    defocus : ndarray of float64, shape (n,), or None
        Mean of the two principal defoci, in angstroms.
    """

    x: Floats | None
    y: Floats | None
    pixel_size: Floats
    defocus: Floats | None


class OpticsGroup(NamedTuple):
    """One row of an optics table, or what a table without one says of all of its images.

    Attributes
    ----------
    name : str
        Empty where the file has no optics table.
    n_images : int
    pixel_size : float
        In angstroms; this and all that follows is NaN where it is not said, or differs among the images.
    box : float
        Side of an image in pixels.
    voltage : float
        In kilovolts.
    spherical_aberration : float
        In millimetres.
    amplitude_contrast : float
        Fraction.
    """

    name: str
    n_images: int
    pixel_size: float
    box: float
    voltage: float
    spherical_aberration: float
    amplitude_contrast: float


class Acquisition(NamedTuple):
    """What a table says of how its images were taken; nothing in it is checked.

    Attributes
    ----------
    optics : list of OpticsGroup
    defocus : tuple of float
        Lowest and highest, in angstroms; NaN where no image has one.
    has_ctf : bool
        Whether the table says all that phases are flipped with.
    """

    optics: list[OpticsGroup]
    defocus: tuple[float, float]
    has_ctf: bool


class Origins(NamedTuple):
    """The columns in which a table says how far each image is shifted to its centre.

    Attributes
    ----------
    labels : tuple of str
        Of x and of y.
    old : tuple of list of str
        What stands there now, for each of them.
    pixel_size : ndarray of float64, shape (n,), or None
        In angstroms, where the columns are in angstroms; None where they are in pixels. NaN where the table
        does not say.
    """

    labels: tuple[str, str]
    old: tuple[list[str], list[str]]
    pixel_size: Floats | None


class Added(NamedTuple):
    """What is written beside what a table says: one entry for every image of the table, kept or not.

    Attributes
    ----------
    labels : mapping of str to sequence of str
        Columns for STAR files; words without blanks.
    fields : mapping of str to ndarray
        Fields for .cs files.
    """

    labels: Mapping[str, Sequence[str]] = {}
    fields: Mapping[str, Array] = {}

    def of(self, rows: slice) -> Added:
        """Return what belongs to a range of the images."""
        return Added(
            {label: words[rows] for label, words in self.labels.items()},
            {name: values[rows] for name, values in self.fields.items()},
        )


NOTHING_ADDED = Added()


class Table(ABC):
    """Names images or picks, and writes some of its rows back in its own format.

    A format implements what is abstract, and of the rest whatever its files say.

    Attributes
    ----------
    path : str or None
        What was opened; None for an array.
    kind : str
        What people call the format.
    takes : str
        What it can be written with: "labels", "fields" or nothing; see `Added`.
    has_picks : bool
        Whether it names picks in micrographs and no images.
    """

    path: str | None
    kind: str = ""
    takes: str = ""
    has_picks: bool = False

    @property
    @abstractmethod
    def files(self) -> list[str]:
        """The paths of the files that it was read from."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images or picks."""

    @abstractmethod
    def part_name(self, name: str) -> str:
        """Return what a part called `name` is written as: ``kept.star``, or the folder ``kept/``."""

    @abstractmethod
    def write_part(self, folder: Path, name: str, rows: Indices, added: Added) -> None:
        """Write some rows, in the order of the table; all that is not added stays byte for byte."""

    @property
    def files_of_part(self) -> list[str]:
        """The names of the files in the folder that a part is written as; none where it is a file."""
        return []

    @property
    def names(self) -> Sequence[str] | None:
        """The name of each image; None where images have numbers alone."""
        return None

    def micrographs(self) -> list[str] | None:
        """Return the micrograph of each image; None where the table does not say."""
        return None

    def ctf(self) -> CtfParameters | None:
        """Return the CTF of each image; None where the table does not give all that a CTF needs."""
        return None

    def coordinates(self) -> Coordinates | None:
        """Return where the images lie in their micrographs; None where the table cannot say."""
        return None

    def acquisition(self) -> Acquisition:
        """Return what the table says of how its images were taken."""
        return Acquisition([], (math.nan, math.nan), False)

    def corrections(self) -> dict[str, Bools]:
        """Return which images are "phase-flipped" or "CTF-premultiplied" already; nothing where none is."""
        return {}

    @property
    def has_segments(self) -> bool:
        """Whether the images follow filaments, so that neighbours overlap on purpose."""
        return False

    def identifiers(self) -> dict[str, Array]:
        """Return more columns that tell the images apart, besides their names."""
        return {}

    def naming(self, stack: str) -> Added | None:
        """Return what makes all rows name the images of one stack, in their order; None for no such table."""
        return None

    def origins(self) -> Origins:
        """Return the columns that say how far each image is shifted.

        Raises
        ------
        InputError
            When the format has no such columns, or one of them is not a number.
        """
        raise InputError("only the particles of a STAR file can be centred for RELION: open the .star file.")

    def recentred(self, offset: Floats, new: Bools, pixel_size: float) -> dict[str, Array]:
        """Return the fields of .cs files that say where particles lie, with new values.

        Parameters
        ----------
        offset : ndarray of float64, shape (n, 2)
            Row and column of the particle from pixel box // 2, in pixels of its own stack or micrograph.
        new : ndarray of bool, shape (n,)
            Which particles get a new value; the old one of the others stays.
        pixel_size : float
            Of the images, in angstroms, where the table does not say; NaN if unknown.

        Raises
        ------
        InputError
            When the format has no such fields, or what they need is unknown.
        """
        raise InputError(
            "only the particles of a STAR file or a .cs file, and picks of a .cs file, can be recentred: "
            "give one, or leave --recentre out."
        )


class NamedImages(NamedTuple):
    """Where a table says that its images are.

    Attributes
    ----------
    stacks : list of str
        Names of the stacks, each once.
    stack_of : ndarray of int32, shape (n,)
        Which stack each image is in.
    section_of : ndarray of int64, shape (n,)
        Where in the stack, counted from 0; negative where the table makes no sense.
    sign_of : ndarray of int8, shape (n,), or None
        What pixels are multiplied with; None for 1.
    """

    stacks: list[str]
    stack_of: Numbers
    section_of: Array
    sign_of: Array | None


class ImageTable(Table):
    """A table that names images in stacks."""

    path: str

    @abstractmethod
    def named_images(self) -> NamedImages:
        """Return where the table says that its images are; no stack is looked for."""

    @abstractmethod
    def images(self, data_dir: str | os.PathLike[str] | None) -> StackImages:
        """Find the stacks, and check that each holds the images that it should."""

    @abstractmethod
    def pixel_sizes(self) -> Floats | None:
        """Return the pixel size of each image in its stack, in angstroms; None where it is not said."""

    @property
    def group_of(self) -> Callable[[int], str] | None:
        """What gives the name of an image's optics group; None where there are no groups."""
        return None


@dataclass(frozen=True, eq=False)
class NumberedImages(Table):
    """The images of a bare stack or of an array, which have numbers alone."""

    path: str | None
    n_images: int
    kind = "MRC stack"

    def __len__(self) -> int:
        return self.n_images

    @property
    def files(self) -> list[str]:
        """The stack, if there is one."""
        return [] if self.path is None else [self.path]

    def part_name(self, name: str) -> str:
        """Return the name of the list."""
        return f"{name}.txt"

    def write_part(self, folder: Path, name: str, rows: Indices, added: Added) -> None:
        """Write a list of section numbers, counted from 0."""
        of_all = f"{len(rows)} of {self.n_images}"
        with open(folder / f"{name}.txt", "w", encoding="ascii") as file:
            file.write(f"# {name} images, {of_all}: section numbers of the input stack, counted from 0\n")
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                file.writelines(f"{row}\n" for row in np.sort(rows)[start : start + _ROWS_AT_ONCE].tolist())
