"""The RELION dialects: what a particle table says of its images, and where their stacks are.

In 3.0 every row carries its pixel size and microscope settings; from 3.1 on
they stand in a table of optics groups, to which each row points.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_every, check_not_empty
from fastsort.particles.grid import bring_to_one_grid
from fastsort.particles.mrc import read_header
from fastsort.particles.source import CtfParameters, Indices, Particles, StackImages
from fastsort.particles.star import StarBlock, StarFile, read_star, shown

_NO_NUMBER = -2
_BEYOND_ANY_STACK = 1 << 40

Floats = npt.NDArray[np.float64]


def open_star(
    path: str, pixel_size: float | None = None, data_dir: str | os.PathLike[str] | None = None
) -> Particles:
    """Open the particles of a RELION STAR file.

    Parameters
    ----------
    path : str
        A particle table of RELION 3.0, 3.1, 4 or 5.
    pixel_size : float, optional
        In angstroms, instead of what the file says.
    data_dir : path, optional
        Folder in which to look first for the stacks.

    Returns
    -------
    particles : Particles
        In the order of the table. Images of several boxes or pixel sizes are brought to one when they are
        read: the largest pixels and the smallest field of view of all.

    Raises
    ------
    InputError
        When the table cannot be understood, a stack is missing or damaged, or
        the images have no box in common.
    """
    star = read_star(path)
    table = join_optics(star)
    check_not_empty(table.rows.n_rows, path)
    names = table.rows.column("_rlnImageName")
    images = _locate_images(names, table.rows, data_dir)
    pixel_sizes = listed_pixel_sizes(table) if pixel_size is None else None
    if pixel_sizes is not None:
        _check_every("the pixel size", pixel_sizes, table.rows, positive=True)
    if pixel_size is not None:
        pixel_sizes = np.full(len(images), pixel_size)
    grid = bring_to_one_grid(images, pixel_sizes, path, _group_names(table))
    micrographs = "_rlnMicrographName"
    return Particles(
        grid.store,
        grid.box,
        grid.pixel_size,
        path,
        ctf=listed_ctf(table),
        names=names,
        micrographs=table.rows.column(micrographs) if micrographs in table.rows.labels else None,
        table=star,
        rescaled=grid.rescaled,
    )


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
    row_of = {number: row for row, number in enumerate(optics.floats("_rlnOpticsGroup").tolist())}
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


def listed_pixel_sizes(table: JoinedTable) -> Floats | None:
    """Return the pixel size of each image in angstroms, from whichever columns give it."""
    for label in ("_rlnImagePixelSize", "_rlnPixelSize"):
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
    detector, magnification = table.floats("_rlnDetectorPixelSize"), table.floats("_rlnMagnification")
    if detector is None or magnification is None:
        return None
    with np.errstate(all="ignore"):
        return 10000 * detector / magnification  # detector pixels are in micrometres


def _group_names(table: JoinedTable) -> Callable[[int], str] | None:
    """Return what gives the name of an image's optics group; nothing where there is no table of them."""
    if table.optics is None:
        return None
    label = "_rlnOpticsGroupName"
    names = table.optics.column(label if label in table.optics.labels else "_rlnOpticsGroup")
    return lambda row: names[table.group_of[row]]


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


def _locate_images(names: list[str], rows: StarBlock, data_dir: str | os.PathLike[str] | None) -> StackImages:
    """Find the stack and the section of each image name."""
    number_of: dict[str, int] = {}
    stack_of = np.empty(len(names), np.int32)
    section_of = np.empty(len(names), np.int64)
    for row, name in enumerate(names):
        number, at, stack = name.partition("@")
        try:
            section_of[row] = min(max(int(number), 0), _BEYOND_ANY_STACK) - 1 if at else _NO_NUMBER
        except ValueError:
            raise InputError(
                f"image name '{shown(name)}' on line {rows.line_number(row)} of {rows.path} is not of the "
                "form number@stack, such as 000017@Extract/job012/a.mrcs: correct it."
            ) from None
        stack_of[row] = number_of.setdefault(stack if at else name, len(number_of))
    stacks = [read_header(path) for path in find_stacks(list(number_of), rows.path, data_dir)]
    counts = np.array([stack.n_images for stack in stacks])[stack_of]
    section_of[(section_of == _NO_NUMBER) & (counts == 1)] = 0
    wrong = np.flatnonzero((section_of < 0) | (section_of >= counts))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"image {shown(names[row])} on line {rows.line_number(row)} of {rows.path} does not exist: "
            f"{stacks[stack_of[row]].path} holds images 1@ to {counts[row]}@. "
            "Correct the line, or extract the particles again."
        )
    return StackImages(stacks, stack_of, section_of.astype(np.int32))


def find_stacks(
    stacks: Sequence[str], table_path: str, data_dir: str | os.PathLike[str] | None, what: str = "stacks"
) -> list[str]:
    """Find every stack, or other file, that a table names, or say which are missing; see `locate_stacks`."""
    if data_dir is not None and not os.path.isdir(data_dir):
        raise InputError(f"data_dir {data_dir} is not a folder: give the folder that holds the {what}.")
    found = locate_stacks(stacks, table_path, data_dir)
    missing = [stack for stack, path in zip(stacks, found, strict=True) if path is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(stacks)} {what} named by {table_path} were not found: "
            f"{', '.join(map(shown, missing[:3]))}{', ...' if len(missing) > 3 else ''}. "
            f"Looked in {', '.join(_folders(table_path, data_dir))}. "
            "Give the folder to which these names are relative with --data-dir."
        )
    return [path for path in found if path is not None]


def locate_stacks(
    stacks: Iterable[str], table_path: str, data_dir: str | os.PathLike[str] | None
) -> list[str | None]:
    """Look for stacks under data_dir, the working folder, the table's folder and each above it.

    Parameters
    ----------
    stacks : iterable of str
        As a table names them.
    table_path : str
    data_dir : path, optional

    Returns
    -------
    paths : list of str or None
        None for a stack that is nowhere.
    """
    folders = _folders(table_path, data_dir)
    given = folders[: data_dir is not None]
    folders = folders[len(given) :]
    paths: list[str | None] = []
    for stack in stacks:
        places = ((folder, os.path.join(folder, stack)) for folder in [*given, *folders])
        folder, path = next(((f, p) for f, p in places if os.path.isfile(p)), (None, None))
        paths.append(path)
        if folder in folders:  # where one stack is, the next will be: look there first
            folders.remove(folder)
            folders.insert(0, folder)
    return paths


def _folders(table_path: str, data_dir: str | os.PathLike[str] | None) -> list[str]:
    given = [] if data_dir is None else [os.path.abspath(data_dir)]
    table = Path(table_path).absolute()
    # A table given through a link belongs to the folder of the link or to that of the file.
    return [*given, *dict.fromkeys(map(str, [Path.cwd(), *table.parents, *table.resolve().parents]))]
