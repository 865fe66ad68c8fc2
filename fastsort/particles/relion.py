"""The RELION dialects: what a particle table says of its images, and where their stacks are.

In 3.0 every row carries its pixel size and microscope settings; from 3.1 on
they stand in a table of optics groups, to which each row points.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastsort._checks import InputError, check_every
from fastsort._types import Bools, Floats, Indices
from fastsort.particles.files import find_files, shown
from fastsort.particles.mrc import read_header
from fastsort.particles.star import StarBlock, StarFile, read_star, subset_bytes
from fastsort.particles.store import StackImages
from fastsort.particles.table import (
    Acquisition,
    Added,
    Coordinates,
    CtfParameters,
    ImageTable,
    NamedImages,
    OpticsGroup,
    Origins,
    common_value,
)

# Sections that a name does not give: it has no number at all, or what should be one is none.
_NO_NUMBER, _NO_SENSE = -2, -3
_BEYOND_ANY_STACK = 1 << 40
_CORRECTIONS = {
    "_rlnCtfDataArePhaseFlipped": "phase-flipped",
    "_rlnCtfDataAreCtfPremultiplied": "CTF-premultiplied",
}
_MICROGRAPH = "_rlnMicrographName"
_PIXEL_SIZES = ("_rlnImagePixelSize", "_rlnPixelSize")
_SIDE, _DIMENSIONS, _TILTS = "_rlnImageSize", "_rlnImageDimensionality", "_rlnTomoSubTomosAre2DStacks"
_DETECTOR, _MAGNIFICATION = "_rlnDetectorPixelSize", "_rlnMagnification"


@dataclass(frozen=True, eq=False)
class StarTable(ImageTable):
    """The particle table of a STAR file of RELION 3.0, 3.1, 4 or 5.

    Attributes
    ----------
    path : str
    star : StarFile
    """

    path: str
    star: StarFile = field(repr=False)
    takes = "labels"

    def __len__(self) -> int:
        return self.rows.n_rows

    @property
    def rows(self) -> StarBlock:
        """The table with one row an image."""
        return self.star.particles_block

    @cached_property
    def joined(self) -> JoinedTable:
        """The rows, each with its optics group."""
        return join_optics(self.star)

    @property
    def kind(self) -> str:  # type: ignore[override]
        """Which RELION writes such tables."""
        return "RELION 3.1 or later" if _optics_block(self.star) else "RELION 3.0 or earlier"

    @property
    def files(self) -> list[str]:
        """The STAR file."""
        return [self.path]

    @property
    def names(self) -> Sequence[str]:
        """The names of the images, such as ``000017@Extract/job012/a.mrcs``."""
        return self.rows.column("_rlnImageName")

    def micrographs(self) -> list[str] | None:
        """Return the micrograph of each image."""
        return self.rows.column(_MICROGRAPH) if _MICROGRAPH in self.rows.labels else None

    def ctf(self) -> CtfParameters | None:
        """Return the CTF of each image; None if the table lacks one of its parts."""
        return listed_ctf(self.joined)

    def pixel_sizes(self) -> Floats | None:
        """Return the pixel size of each image in angstroms, from whichever columns give it."""
        sizes = listed_pixel_sizes(self.joined)
        if sizes is not None:
            _check_every("the pixel size", sizes, self.rows, positive=True)
        return sizes

    @property
    def group_of(self) -> Callable[[int], str] | None:
        """What gives the name of an image's optics group; None where there is no table of them."""
        optics = self.joined.optics
        if optics is None:
            return None
        names, group_of = _group_names(optics), self.joined.group_of
        return lambda row: names[group_of[row]]

    def named_images(self) -> NamedImages:
        """Take the image names apart."""
        number_of: dict[str, int] = {}
        names = self.names
        stack_of = np.empty(len(names), np.int32)
        section_of = np.empty(len(names), np.int64)
        for row, name in enumerate(names):
            number, at, stack = name.partition("@")
            try:
                section_of[row] = min(max(int(number), 0), _BEYOND_ANY_STACK) - 1 if at else _NO_NUMBER
            except ValueError:
                section_of[row] = _NO_SENSE
            stack_of[row] = number_of.setdefault(stack if at else name, len(number_of))
        return NamedImages(list(number_of), stack_of, section_of, None)

    def images(self, data_dir: str | os.PathLike[str] | None) -> StackImages:
        """Find the stack and the section of each image name."""
        # A table whose rows contradict each other is refused before any stack is looked for.
        _check_no_subtomograms(self.joined, self.star)
        rows, (names, stack_of, section_of, _) = self.joined.rows, self.named_images()

        def named(row: int) -> str:
            return shown(rows.column("_rlnImageName")[row])

        odd = np.flatnonzero(section_of == _NO_SENSE)
        if len(odd):
            raise InputError(
                f"image name '{named(odd[0])}' on line {rows.line_number(int(odd[0]))} of {rows.path} is not "
                "of the form number@stack, such as 000017@Extract/job012/a.mrcs: correct it."
            )
        stacks = [read_header(path) for path in find_files(names, rows.path, data_dir)]
        counts = np.array([stack.n_images for stack in stacks])[stack_of]
        section_of[(section_of == _NO_NUMBER) & (counts == 1)] = 0
        wrong = np.flatnonzero((section_of < 0) | (section_of >= counts))
        if len(wrong) and section_of[wrong[0]] == _NO_NUMBER:
            row = int(wrong[0])
            raise InputError(
                f"image {named(row)} on line {rows.line_number(row)} of {rows.path} has no number, and the "
                f"file holds {counts[row]} sections: if these are a volume, a movie or the tilts of a "
                "subtomogram, fastsort cannot sort it; else name each image, such as 000017@stack.mrcs."
            )
        if len(wrong):
            row = int(wrong[0])
            raise InputError(
                f"image {named(row)} on line {rows.line_number(row)} of {rows.path} does not exist: "
                f"{stacks[stack_of[row]].path} holds images 1@ to {counts[row]}@. "
                "Correct the line, or extract the particles again."
            )
        images = StackImages(stacks, stack_of, section_of.astype(np.int32))
        _check_sides(self.joined, images)
        return images

    def coordinates(self) -> Coordinates:
        """Return where the images lie in their micrographs.

        Notes
        -----
        Since RELION 3.1 ``_rlnMicrographPixelSize`` is that of the coordinates. RELION does not always keep
        it with the particles; ``_rlnMicrographOriginalPixelSize`` then stands in for it, which is the same
        unless motion correction binned the movies. RELION 3.0 knows only the pixel size of the images, which
        is the same unless these were rescaled on extraction.
        """
        table = self.joined
        x, y = table.floats("_rlnCoordinateX"), table.floats("_rlnCoordinateY")
        if x is None or y is None:
            x = y = None
        pixel_size, by_detector = micrograph_pixel_sizes(table), detector_pixel_sizes(table)
        if pixel_size is None:
            pixel_size = by_detector
        if pixel_size is None:
            pixel_size = np.full(len(self), np.nan)
        pixel_size = np.where(np.isfinite(pixel_size) & (pixel_size > 0), pixel_size, np.nan)
        defocus, defocus_v = table.floats("_rlnDefocusU"), table.floats("_rlnDefocusV")
        if defocus is not None and defocus_v is not None:
            defocus = defocus / 2 + defocus_v / 2
        return Coordinates(x, y, pixel_size, defocus)

    def acquisition(self) -> Acquisition:
        """Return what the table says of how its images were taken."""
        defocus = _numbers(self.rows, "_rlnDefocusU")
        defocus = defocus[np.isfinite(defocus)]
        return Acquisition(
            _optics_groups(self.star),
            (float(defocus.min()), float(defocus.max())) if len(defocus) else (math.nan, math.nan),
            0 < len(self) == len(defocus) and _knows_microscope(self.star),
        )

    def corrections(self) -> dict[str, Bools]:
        """Return which images something was done to already; flags of an optics group are for its own."""
        done: dict[str, Bools] = {}
        rows, optics, group_of = self.joined
        for label, word in _CORRECTIONS.items():
            if optics is not None and label in optics.labels:
                done[word] = (_numbers(optics, label) == 1)[group_of]
            elif label in rows.labels:
                done[word] = _numbers(rows, label) == 1
            else:
                blocks = [block for block in self.star.blocks if label in block.labels and block.n_rows]
                done[word] = np.full(len(self), any((_numbers(block, label) == 1).all() for block in blocks))
        return {word: images for word, images in done.items() if images.any()}

    @property
    def has_segments(self) -> bool:
        """Whether the images follow filaments."""
        return any("_rlnHelicalTubeID" in block.labels for block in self.star.blocks)

    def origins(self) -> Origins:
        """Return the columns that say how far each image is shifted.

        They are in angstroms in a table with optics groups (RELION 3.1 and later), else in pixels. RELION
        divides those in angstroms by the pixel size of the optics group.
        """
        table = self.joined
        unit, sizes = "", None
        if table.optics is not None:
            unit, sizes = "Angst", table.floats("_rlnImagePixelSize")
            sizes = np.full(len(self), np.nan) if sizes is None else sizes
        labels = f"_rlnOriginX{unit}", f"_rlnOriginY{unit}"
        return Origins(labels, (self._old_words(labels[0]), self._old_words(labels[1])), sizes)

    def _old_words(self, label: str) -> list[str]:
        if label not in self.rows.labels:
            return ["0.000000"] * len(self)
        # Refuses what is no number, which might be no single word either.
        self.rows.floats(label)
        return self.rows.column(label)

    def naming(self, stack: str) -> Added:
        """Return the column of names that all rows have in one stack."""
        return Added({"_rlnImageName": [f"{number:06d}@{stack}" for number in range(1, len(self) + 1)]})

    def part_name(self, name: str) -> str:
        """Return the name of the STAR file."""
        return f"{name}.star"

    def write_part(self, folder: Path, name: str, rows: Indices, added: Added) -> None:
        """Write a STAR file with some of the lines, and more columns."""
        with open(folder / f"{name}.star", "wb") as file:
            file.writelines(subset_bytes(self.star, rows, added.labels))


def read_star_table(path: str) -> StarTable:
    """Read the particle table of a RELION STAR file.

    Parameters
    ----------
    path : str
        Of RELION 3.0, 3.1, 4 or 5.

    Returns
    -------
    table : StarTable
        In the order of the file.

    Raises
    ------
    InputError
        When the file cannot be read, or has no table of particles.
    """
    table = StarTable(path, read_star(path))
    len(table)
    return table


class JoinedTable(NamedTuple):
    """A particle table, and the row of the optics table for each of its rows."""

    rows: StarBlock
    optics: StarBlock | None
    group_of: Indices

    def floats(self, label: str) -> Floats | None:
        """Return a column with one entry an image, whichever table it stands in."""
        if self.optics is not None and label in self.optics.labels:
            return self.optics.floats(label)[self.group_of]
        return self.rows.floats(label) if label in self.rows.labels else None


def join_optics(star: StarFile, rows: StarBlock | None = None) -> JoinedTable:
    """Find the row of the optics table for each row of a table, by default for each particle."""
    rows, optics = rows or star.particles_block, star.block("optics")
    first_group = np.zeros(rows.n_rows, np.intp)
    if optics is None or optics.n_rows == 0:
        return JoinedTable(rows, None, first_group)
    if "_rlnOpticsGroup" not in rows.labels:
        if optics.n_rows == 1:
            return JoinedTable(rows, optics, first_group)
        raise InputError(
            f"{star.path} has {optics.n_rows} optics groups, but its particles have no column "
            "_rlnOpticsGroup that says which is theirs: add it."
        )
    row_of: dict[float, int] = {}
    for row, number in enumerate(optics.floats("_rlnOpticsGroup").tolist()):
        other = row_of.setdefault(number, row)
        if other != row:
            raise InputError(
                f"data_optics of {star.path} lists group {number:g} on lines {optics.line_number(other)} and "
                f"{optics.line_number(row)}: give each group a number of its own, or remove one."
            )
    groups = rows.floats("_rlnOpticsGroup")
    used, first, which = np.unique(groups, return_index=True, return_inverse=True)
    for number, row in zip(used.tolist(), first.tolist(), strict=True):
        if number not in row_of:
            known = ", ".join(f"{number:g}" for number in row_of)
            raise InputError(
                f"line {rows.line_number(row)} of {star.path} names optics group {number:g}, "
                f"but data_optics has only {known}: add the group."
            )
    return JoinedTable(rows, optics, np.array([row_of[number] for number in used.tolist()], np.intp)[which])


def _check_no_subtomograms(table: JoinedTable, star: StarFile) -> None:
    """Refuse particles that are volumes, or stacks of tilt images."""
    what, found = "", None
    for block in star.blocks:
        if _TILTS in block.labels and (_numbers(block, _TILTS) == 1).any():
            what, found = "one stack of tilt images", (_TILTS, block.line_number(0))
    block = table.rows if table.optics is None or _DIMENSIONS not in table.optics.labels else table.optics
    dimensions = _numbers(block, _DIMENSIONS)
    used = dimensions[table.group_of] if block is table.optics else dimensions
    if (used == 3).any():
        row = int(np.flatnonzero(dimensions == 3)[0])
        what, found = "one volume", (_DIMENSIONS, block.line_number(row))
    if found:
        raise InputError(
            f"{star.path} lists subtomograms ({found[0]} on line {found[1]}), {what} a "
            "particle, which fastsort cannot sort: give 2D images of single particles."
        )


def _check_sides(table: JoinedTable, images: StackImages) -> None:
    """Refuse stacks whose images have not the box that the table says; RELION does."""
    sizes = table.floats(_SIDE)
    if sizes is None:
        return
    sides = np.array([stack.nx for stack in images.stacks])[images.stack_of]
    wrong = np.flatnonzero((sizes > 0) & (sizes != sides))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{table.rows.path} says that its images have {sizes[row]:g} px ({_SIDE}), but those of "
            f"{images.stacks[images.stack_of[row]].path} have {sides[row]} px (first on line "
            f"{table.rows.line_number(row)}): give the right stack, or correct the table, its pixel size too."
        )


def listed_pixel_sizes(table: JoinedTable) -> Floats | None:
    """Return the pixel size of each image in angstroms, from whichever columns give it."""
    for label in _PIXEL_SIZES:
        sizes = table.floats(label)
        if sizes is not None:
            return sizes
    return detector_pixel_sizes(table)


def micrograph_pixel_sizes(table: JoinedTable) -> Floats | None:
    """Return the pixel size in angstroms of the micrograph of each row, where the table has one."""
    for label in ("_rlnMicrographPixelSize", "_rlnMicrographOriginalPixelSize"):
        sizes = table.floats(label)
        if sizes is not None:
            return sizes
    return None


def detector_pixel_sizes(table: JoinedTable) -> Floats | None:
    """Return the pixel size of each row in angstroms, as RELION 3.0 has it."""
    detector, magnification = table.floats(_DETECTOR), table.floats(_MAGNIFICATION)
    return None if detector is None or magnification is None else _by_detector(detector, magnification)


def _by_detector(detector: Floats, magnification: Floats) -> Floats:
    with np.errstate(all="ignore"):
        return 10000 * detector / magnification  # detector pixels are in micrometres


def listed_ctf(table: JoinedTable) -> CtfParameters | None:
    """Return the CTF of each image; None if the table lacks one of its parts."""
    nothing = np.zeros(table.rows.n_rows)
    defocus = table.floats("_rlnDefocusU")
    parts = {
        "_rlnDefocusU": defocus,
        "_rlnDefocusV": _first_given(table.floats("_rlnDefocusV"), defocus),
        "_rlnDefocusAngle": _first_given(table.floats("_rlnDefocusAngle"), nothing),
        "_rlnPhaseShift": _first_given(table.floats("_rlnPhaseShift"), nothing),
        "_rlnVoltage": table.floats("_rlnVoltage"),
        "_rlnSphericalAberration": table.floats("_rlnSphericalAberration"),
        "_rlnAmplitudeContrast": table.floats("_rlnAmplitudeContrast"),
    }
    given = {label: values for label, values in parts.items() if values is not None}
    if len(given) < len(parts):
        return None
    for label, values in given.items():
        _check_every(label, values, table.rows, positive=label == "_rlnVoltage")
    return CtfParameters(*given.values())


def _first_given(values: Floats | None, otherwise: Floats | None) -> Floats | None:
    return otherwise if values is None else values


def _check_every(name: str, values: Floats, rows: StarBlock, positive: bool = False) -> None:
    def place(row: int) -> str:
        return (
            f"for the image on line {rows.line_number(row)} of {rows.path}: correct it or remove the image."
        )

    check_every(name, values, place, positive)


# What a table says, as far as it can be read: nothing here raises.


def _optics_block(star: StarFile) -> StarBlock | None:
    block = star.block("optics")
    return block if block is not None and block.n_rows else None


def _group_names(optics: StarBlock) -> list[str]:
    label = "_rlnOpticsGroupName"
    return optics.column(label if label in optics.labels else "_rlnOpticsGroup")


def _optics_groups(star: StarFile) -> list[OpticsGroup]:
    rows, block = star.particles_block, _optics_block(star)
    if block is None:
        return [_optics_group("", rows.n_rows, rows, slice(None))]
    numbers, group_of = _numbers(block, "_rlnOpticsGroup"), _numbers(rows, "_rlnOpticsGroup")
    if "_rlnOpticsGroup" not in rows.labels and block.n_rows == 1:
        group_of = np.broadcast_to(numbers, rows.n_rows)
    label = "_rlnOpticsGroupName"
    names = block.column(label) if label in block.labels else [f"{number:g}" for number in numbers]
    return [
        _optics_group(name, int((group_of == number).sum()), block, slice(row, row + 1))
        for row, (name, number) in enumerate(zip(names, numbers.tolist(), strict=True))
    ]


def _optics_group(name: str, n_images: int, block: StarBlock, rows: slice) -> OpticsGroup:
    sizes = next(
        (_numbers(block, label) for label in _PIXEL_SIZES if label in block.labels),
        _by_detector(_numbers(block, _DETECTOR), _numbers(block, _MAGNIFICATION)),
    )
    labels = ("ImageSize", "Voltage", "SphericalAberration", "AmplitudeContrast")
    return OpticsGroup(
        name,
        n_images,
        common_value(sizes[rows]),
        *(common_value(_numbers(block, f"_rln{label}")[rows]) for label in labels),
    )


def _numbers(block: StarBlock, label: str) -> Floats:
    """Return a column with NaN for whatever is no number; all NaN where there is no such column."""
    if label not in block.labels:
        return np.full(block.n_rows, np.nan)
    try:
        return block.floats(label)
    except InputError:
        return np.array([_number(word) for word in block.column(label)])


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _knows_microscope(star: StarFile) -> bool:
    blocks = [block for block in (_optics_block(star), star.particles_block) if block]
    return all(
        any(np.isfinite(_numbers(block, f"_rln{label}")).all() for block in blocks)
        for label in ("Voltage", "SphericalAberration", "AmplitudeContrast")
    )
