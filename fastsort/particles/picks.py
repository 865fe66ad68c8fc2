"""Picks: where particles were found in micrographs, and the same files with some of the picks."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from fastsort._checks import InputError, check_readable
from fastsort._types import Array, Bools, FilePath, Floats, Indices, Numbers
from fastsort.particles.files import shown
from fastsort.particles.table import Added, Coordinates, CtfParameters, Table


@dataclass(frozen=True, eq=False)
class PickFile(ABC):
    """One file of picks, in the format of some program.

    A format implements `write`, and comes with a function that reads it, which `particles/open.py` lists.

    Attributes
    ----------
    path : str
    micrographs : list of str or None
        Of each pick; None where the file names none and belongs to one micrograph.
    x, y : ndarray of float64, shape (n,)
        Centre of the particle in pixels of the micrograph.
    ctf : CtfParameters or None
        Of each pick, where the file gives it.
    """

    path: str
    micrographs: list[str] | None = field(repr=False)
    x: Floats = field(repr=False)
    y: Floats = field(repr=False)
    ctf: CtfParameters | None = field(repr=False)

    @property
    def has_segments(self) -> bool:
        """Whether the picks follow filaments, so that neighbours overlap on purpose."""
        return False

    def in_pixels(self, width: Floats, height: Floats, micrographs: list[str]) -> tuple[Floats, Floats]:
        """Return x and y in pixels of micrographs that have these sides and names, one entry a pick."""
        return self.x, self.y

    def recentred(self, offset: Floats, new: Bools, pixel_size: float) -> dict[str, Array] | None:
        """Return fields with places moved by so many pixels of this size, row first.

        None where the format has no fields.
        """
        return None

    @abstractmethod
    def write(self, path: str, kept: Bools, added: Added) -> None:
        """Write the file with some of its picks; all other bytes stay as they are."""


@dataclass(frozen=True, eq=False)
class LineFile(PickFile):
    """A text file with one pick a line.

    Attributes
    ----------
    lines : list of bytes
        All lines, line endings included.
    line_of : ndarray of intp, shape (n,)
        The line of each pick.
    """

    lines: list[bytes] = field(repr=False)
    line_of: Indices = field(repr=False)

    def write(self, path: str, kept: Bools, added: Added) -> None:
        """Write all lines but those of the picks that go."""
        dropped = set(self.line_of[~kept].tolist())
        with open(path, "wb") as file:
            file.writelines(line for number, line in enumerate(self.lines) if number not in dropped)


def read_lines(path: str) -> list[bytes]:
    """Read the lines of a text file, line endings included.

    Raises
    ------
    InputError
        When the file cannot be read.
    """
    with check_readable(path) as file:
        return file.read().splitlines(keepends=True)


def check_finite(x: Floats, y: Floats, place_of: Callable[[int], str]) -> None:
    """Refuse coordinates that are no finite numbers; `place_of` says where a pick stands, for the message."""
    wrong = np.flatnonzero(~np.isfinite(x + y))
    if len(wrong):
        place = place_of(int(wrong[0]))
        raise InputError(f"coordinates must be finite numbers; those on {place} are not: remove the pick.")


@dataclass(frozen=True, eq=False)
class PickTable(Table):
    """Files of picks, and where in its micrograph each pick lies.

    Attributes
    ----------
    path : str
        What was asked for, for messages.
    contents : list of PickFile
        In the order in which their picks count.
    file_of : ndarray of int32, shape (n,)
        Which file each pick stands in; ascending.
    row_of : ndarray of int32, shape (n,)
        Which pick of that file, counted from 0.
    names_of_micrographs : list of str
        All that were given, as they were named.
    micrograph_of : ndarray of int32, shape (n,)
    x, y : ndarray of float64, shape (n,)
        Centre of the particle in pixels of the micrograph.
    pixel_size : float
        Of the micrographs, in angstroms; NaN when unknown.
    defocus : ndarray of float64, shape (n,), or None
        Mean of the two principal defoci, in angstroms.
    """

    path: str
    contents: list[PickFile] = field(repr=False)
    file_of: Numbers = field(repr=False)
    row_of: Numbers = field(repr=False)
    names_of_micrographs: list[str] = field(repr=False)
    micrograph_of: Numbers = field(repr=False)
    x: Floats = field(repr=False)
    y: Floats = field(repr=False)
    pixel_size: float
    defocus: Floats | None = field(default=None, repr=False)
    kind = "picks in micrographs"
    takes = "labels"
    has_picks = True

    def __len__(self) -> int:
        return len(self.file_of)

    @property
    def files(self) -> list[str]:
        """The files of picks."""
        return [file.path for file in self.contents]

    def micrographs(self) -> list[str]:
        """Return the micrograph of each pick."""
        return [self.names_of_micrographs[number] for number in self.micrograph_of.tolist()]

    def coordinates(self) -> Coordinates:
        """Return where the picks lie in their micrographs."""
        return Coordinates(self.x, self.y, np.full(len(self), self.pixel_size), self.defocus)

    @property
    def has_segments(self) -> bool:
        """Whether the picks of any file follow filaments."""
        return any(file.has_segments for file in self.contents)

    def recentred(self, offset: Floats, new: Bools, pixel_size: float) -> dict[str, Array]:
        """Return the places of the picks, moved to where the particles are."""
        parts = [file.recentred(offset[some], new[some], pixel_size) for file, some in self._of_each_file()]
        if not parts or None in parts or len({tuple(part or ()) for part in parts}) != 1:
            return super().recentred(offset, new, pixel_size)
        return {name: np.concatenate([part[name] for part in parts if part]) for name in parts[0] or ()}

    def part_name(self, name: str) -> str:
        """Return the name of the folder."""
        return f"{name}/"

    @property
    def files_of_part(self) -> list[str]:
        """The names of the files, which are those that were read."""
        return [os.path.basename(file.path) for file in self.contents]

    def write_part(self, folder: Path, name: str, rows: Indices, added: Added) -> None:
        """Write files of the same names and formats; one of whose picks none is kept has no picks."""
        self.write_files(folder / name, rows, added)

    def write_files(self, folder: FilePath, rows: Indices, added: Added) -> None:
        """Write some of the picks into a folder that exists."""
        kept = np.zeros(len(self), bool)
        kept[rows] = True
        for file, some in self._of_each_file():
            file.write(os.path.join(folder, os.path.basename(file.path)), kept[some], added.of(some))

    def _of_each_file(self) -> Iterator[tuple[PickFile, slice]]:
        bounds = np.searchsorted(self.file_of, np.arange(len(self.contents) + 1)).tolist()
        for file, (start, stop) in zip(self.contents, pairwise(bounds), strict=True):
            yield file, slice(start, stop)


def numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield number and words of each line that says something; # begins a comment."""
    for number, line in enumerate(lines):
        words = line.split()
        if words and not words[0].startswith(b"#"):
            yield number, words


def as_text(words: Iterable[bytes]) -> str:
    """Return words of a file for a message."""
    return shown(b" ".join(words).decode("utf-8", "surrogateescape"))
