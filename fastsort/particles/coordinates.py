"""Files of coordinates: where particles were picked, and the same files with some of the picks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_readable
from fastsort.particles.cs import (
    CsDataset,
    dataset_ctf,
    dataset_numbers,
    dataset_texts,
    read_cs,
    write_cs,
)
from fastsort.particles.relion import join_optics, listed_ctf
from fastsort.particles.source import CtfParameters, Indices
from fastsort.particles.star import StarBlock, StarFile, read_star, shown, subset_bytes

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
FilePath = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class BoxFile:
    """An EMAN .box file: its lines, endings included, and which of them are picks."""

    path: str
    lines: list[bytes] = field(repr=False)
    line_of: Indices = field(repr=False)


@dataclass(frozen=True, eq=False)
class PickedFiles:
    """Coordinate files, and where in its micrograph each of their picks lies.

    Attributes
    ----------
    path : str
        What was asked for, for messages.
    files : list of str
        Their paths, in the order in which their picks count.
    contents : list of StarFile, BoxFile or CsDataset
    file_of : ndarray of int32, shape (n,)
        Which file each pick stands in; ascending.
    row_of : ndarray of int32, shape (n,)
        Which row of that file, counted from 0.
    micrographs : list of str
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
    files: list[str] = field(repr=False)
    contents: list[StarFile | BoxFile | CsDataset] = field(repr=False)
    file_of: npt.NDArray[np.int32] = field(repr=False)
    row_of: npt.NDArray[np.int32] = field(repr=False)
    micrographs: list[str] = field(repr=False)
    micrograph_of: npt.NDArray[np.int32] = field(repr=False)
    x: Floats = field(repr=False)
    y: Floats = field(repr=False)
    pixel_size: float
    defocus: Floats | None = field(default=None, repr=False)


class Coordinates(NamedTuple):
    """The picks of one file.

    Attributes
    ----------
    content : StarFile, BoxFile or CsDataset
    micrographs : list of str or None
        Of each pick; None where the file does not name any.
    x, y : ndarray of float64, shape (n,)
        Centre of the particle in pixels of the micrograph; of a CsDataset as a fraction of its sides.
    ctf : CtfParameters or None
    """

    content: StarFile | BoxFile | CsDataset
    micrographs: list[str] | None
    x: Floats
    y: Floats
    ctf: CtfParameters | None


def read_coordinates(path: str) -> Coordinates:
    """Read a file of picks of any format.

    Raises
    ------
    InputError
        When it cannot be read, or its coordinates are no finite numbers.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".star":
        return _read_star_picks(read_star(path))
    if suffix == ".box":
        return _read_box(path)
    if suffix == ".cs":
        return _read_cs_picks(path)
    raise InputError(f"{path} must be a .star, .box or .cs file with coordinates: give one of these.")


def _coordinate_block(star: StarFile) -> StarBlock:
    block = loop_with(star, "_rlnCoordinateX", "_rlnCoordinateY")
    # Of no picks, RELION writes a table without columns.
    block = block or next((block for block in star.blocks if not block.labels), None)
    if block is None:
        raise InputError(
            f"{star.path} has no loop with _rlnCoordinateX and _rlnCoordinateY: "
            "give the picks of a RELION job."
        )
    return block


def loop_with(star: StarFile, *labels: str) -> StarBlock | None:
    """Return the first loop that has all of these columns, or None."""
    return next((block for block in star.blocks if block.is_loop and {*labels} <= {*block.labels}), None)


def _read_star_picks(star: StarFile) -> Coordinates:
    block = _coordinate_block(star)
    if not block.labels:
        return Coordinates(star, None, np.zeros(0), np.zeros(0), None)
    x, y = block.floats("_rlnCoordinateX"), block.floats("_rlnCoordinateY")
    wrong = np.flatnonzero(~np.isfinite(x + y))
    if len(wrong):
        raise _not_finite(f"line {block.line_number(int(wrong[0]))} of {star.path}")
    if "_rlnMicrographName" not in block.labels:
        return Coordinates(star, None, x, y, None)
    ctf = listed_ctf(join_optics(star, block)) if "_rlnDefocusU" in block.labels else None
    return Coordinates(star, block.column("_rlnMicrographName"), x, y, ctf)


def _not_finite(where: str) -> InputError:
    return InputError(f"coordinates must be finite numbers; those on {where} are not: remove the pick.")


def _read_box(path: str) -> Coordinates:
    """Read the lower corner and the sides of each box, and return its middle."""
    with check_readable(path) as file:
        lines = file.read().splitlines(keepends=True)
    line_of = [number for number, line in enumerate(lines) if line.strip() and line.strip()[:1] != b"#"]
    corners = np.empty((len(line_of), 4))
    for row, number in enumerate(line_of):
        words = lines[number].split()[:4]
        try:
            corners[row] = [float(word) for word in words]
        except ValueError:
            found = shown(b" ".join(words).decode("utf-8", "surrogateescape"))
            raise InputError(
                f"line {number + 1} of {path} must start with four numbers, x and y of a corner, width and "
                f"height; it has '{found}': correct the line."
            ) from None
    wrong = np.flatnonzero(~np.isfinite(corners).all(axis=1))
    if len(wrong):
        raise _not_finite(f"line {line_of[wrong[0]] + 1} of {path}")
    x, y = (corners[:, :2] + corners[:, 2:] / 2).T
    return Coordinates(BoxFile(path, lines, np.array(line_of, np.intp)), None, x, y, None)


def _read_cs_picks(path: str) -> Coordinates:
    dataset = CsDataset(path, read_cs(path))
    for name in ("location/micrograph_path", "location/center_x_frac", "location/center_y_frac"):
        if dataset.field(name) is None:
            raise InputError(f"{path} has no field {name}: give picks, or the passthrough file that has it.")
    x, y = (dataset_numbers(dataset, f"location/center_{axis}_frac") for axis in "xy")
    assert x is not None and y is not None
    if not len(dataset):
        return Coordinates(dataset, [], x, y, None)
    wrong = np.flatnonzero(~np.isfinite(x + y))
    if len(wrong):
        raise _not_finite(f"row {wrong[0]} of {path}")
    paths, path_of = dataset_texts(dataset, "location/micrograph_path")
    names = [paths[number] for number in path_of.tolist()]
    return Coordinates(dataset, names, x, y, dataset_ctf(dataset))


def write_picks(
    folder: FilePath,
    picks: PickedFiles,
    rows: npt.ArrayLike,
    columns: Mapping[str, Sequence[str]] | None = None,
    fields: Mapping[str, npt.NDArray[Any]] | None = None,
) -> list[str]:
    """Write some of the picks as coordinate files of the names and formats that were read.

    Parameters
    ----------
    folder : path
        Where to write; exists.
    picks : PickedFiles
        As in the `table` of particles from `open_micrographs`.
    rows : array of bool or of int
        Which picks to keep. A file of which none is kept is written without picks.
    columns : mapping of str to sequence of str, optional
        For STAR files: label, and one word for every pick, kept or not.
    fields : mapping of str to ndarray, optional
        For .cs files: name of the field, and one value for every pick, kept or not.

    Returns
    -------
    names : list of str
        Of the files, within the folder.

    Notes
    -----
    All other bytes of STAR and .box files stay as they are.
    """
    kept = np.zeros(len(picks.file_of), bool)
    kept[np.asarray(rows) if np.size(rows) else []] = True
    bounds = np.searchsorted(picks.file_of, np.arange(len(picks.files) + 1)).tolist()
    names = []
    for file, (start, stop) in zip(picks.contents, pairwise(bounds), strict=True):
        names.append(os.path.basename(file.path))
        path = os.path.join(folder, names[-1])
        if isinstance(file, StarFile):
            pieces = _star_pieces(file, kept[start:stop], columns or {}, slice(start, stop))
        elif isinstance(file, BoxFile):
            pieces = _box_pieces(file, kept[start:stop])
        else:
            own = {name: values[start:stop] for name, values in (fields or {}).items()}
            write_cs(path, file, np.flatnonzero(kept[start:stop]), own)
            continue
        with open(path, "wb") as out:
            out.writelines(pieces)
    return names


def _star_pieces(
    star: StarFile, kept: Bools, columns: Mapping[str, Sequence[str]], own: slice
) -> Iterator[bytes]:
    block = _coordinate_block(star)
    if not block.labels:
        return iter([star.text])
    return subset_bytes(star, kept, {label: values[own] for label, values in columns.items()}, block)


def _box_pieces(file: BoxFile, kept: Bools) -> Iterator[bytes]:
    dropped = set(file.line_of[~kept].tolist())
    return (line for number, line in enumerate(file.lines) if number not in dropped)
