"""Particles that are cut from micrographs at picked coordinates."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_box, check_count, check_positive, check_readable
from fastsort._jit import kernel
from fastsort.particles.coordinates import BoxFile, CsDataset, PickedFiles, loop_with, read_coordinates
from fastsort.particles.mrc import MrcHeader, read_header, widen
from fastsort.particles.relion import (
    JoinedTable,
    find_stacks,
    join_optics,
    listed_ctf,
    listed_pixel_sizes,
    micrograph_pixel_sizes,
)
from fastsort.particles.source import CtfParameters, Images, ImageStore, Indices, Particles
from fastsort.particles.star import StarFile, read_star, shown

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
FilePath = str | os.PathLike[str]

_SAME_PIXEL_SIZE = 1e-3
# Rows of a micrograph that are read at one go, unless one image takes more: about what a cache holds.
_BAND_BYTES = 8 << 20
# A deviation this small, relative to the values themselves, is what rounding to single precision leaves.
_ROUNDING = 1e-7
# What is left of whole pixels after they were fractions of a micrograph in single precision.
_FRACTION_ERROR = 2e-3
_FAR_AWAY = 1 << 30
_CRYOSPARC_NUMBER = re.compile(r"(?<!\d)\d{15,}_")


@dataclass(frozen=True, eq=False)
class MicrographImages(ImageStore):
    """Images that are cut from micrographs when they are read.

    Attributes
    ----------
    micrographs : list of MrcHeader
        One image each; sides may differ.
    micrograph_of : ndarray of int32, shape (n,)
        Which micrograph each image is cut from.
    x, y : ndarray of int32, shape (n,)
        The pixel of the micrograph that becomes pixel ``box // 2`` of the image.
    number_of : ndarray of int32, shape (n,)
        Of the pick in its file, counted from 0.
    box : int
        Side of an image in pixels.
    invert : bool
        Whether pixels are multiplied by -1.

    Notes
    -----
    Of each image the plane is subtracted that fits the pixels outside the disk of radius ``box / 2`` best,
    and what is left is scaled so that these pixels have mean 0 and standard deviation 1. An image without
    variance there is zero. Beyond the edge of its micrograph an image shows what lies before it, mirrored;
    one whose middle lies beyond is zero.
    """

    micrographs: list[MrcHeader]
    micrograph_of: npt.NDArray[np.int32]
    x: npt.NDArray[np.int32]
    y: npt.NDArray[np.int32]
    number_of: npt.NDArray[np.int32]
    box: int
    invert: bool = True

    def __len__(self) -> int:
        return len(self.micrograph_of)

    def name(self, index: int) -> str:
        """Return a name for messages and tables."""
        micrograph = os.path.basename(self.micrographs[self.micrograph_of[index]].path)
        return f"{self.number_of[index] + 1:06d}@{micrograph}"

    def _sides(self, indices: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return height and width of the micrographs of images."""
        sides = np.array([(header.ny, header.nx) for header in self.micrographs])[self.micrograph_of[indices]]
        return sides[:, 0], sides[:, 1]

    def outside(self, indices: Any = slice(None)) -> Bools:
        """Return which images reach over an edge of their micrograph, shape (n,)."""
        height, width = self._sides(indices)
        left, top = self.x[indices] - self.box // 2, self.y[indices] - self.box // 2
        return (left < 0) | (top < 0) | (left + self.box > width) | (top + self.box > height)

    def read(self, indices: Indices) -> Images:
        """Cut from micrograph after micrograph, each from top to bottom."""
        images = np.zeros((len(indices), self.box, self.box), np.float32)
        micrograph, x, y = self.micrograph_of[indices], self.x[indices], self.y[indices]
        height, width = self._sides(indices)
        there = (np.minimum(height, width) >= self.box) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
        wanted = y - self.box // 2, x - self.box // 2
        top, left = (
            np.clip(start, 0, np.maximum(side - self.box, 0))
            for start, side in zip(wanted, (height, width), strict=True)
        )
        order = np.lexsort((top, micrograph))
        order = order[there[order]]
        ends = (np.flatnonzero(np.diff(micrograph[order])) + 1).tolist()
        for start, end in pairwise([0, *ends, len(order)] if len(order) else []):
            chosen = order[start:end]
            header = self.micrographs[micrograph[chosen[0]]]
            for image, pixels in zip(chosen.tolist(), self._windows(header, top, left, chosen), strict=True):
                if header.dtype.kind == "f" and header.dtype.itemsize == 2:
                    widen(pixels, images[image])
                else:
                    images[image] = pixels
        for image in np.flatnonzero(there & ((top != wanted[0]) | (left != wanted[1]))).tolist():
            rows = _mirrored(wanted[0][image], self.box, height[image]) - top[image]
            columns = _mirrored(wanted[1][image], self.box, width[image]) - left[image]
            images[image] = images[image][np.ix_(rows, columns)]
        starts, stops, inverse = _background(self.box)
        _level(images, starts, stops, inverse, -1.0 if self.invert else 1.0, _ROUNDING)
        return images

    def _windows(
        self,
        header: MrcHeader,
        top: npt.NDArray[np.int32],
        left: npt.NDArray[np.int32],
        chosen: Indices,
    ) -> Iterator[npt.NDArray[Any]]:
        """Yield the pixels of images of one micrograph, which are sorted by their first row.

        They are read and not mapped: it takes the same time, mapped pages count as memory, and a file
        that is cut off while it is mapped ends the program.
        """
        row_bytes = header.nx * header.dtype.itemsize
        most = max(self.box, _BAND_BYTES // row_bytes)
        tops = top[chosen].tolist()
        buffer = np.empty((min(most, tops[-1] + self.box - tops[0]), header.nx), header.dtype)
        first = stop = -1
        with check_readable(header.path) as file:
            for number, row in enumerate(tops):
                if row + self.box > stop:
                    first, stop = row, row + self.box
                    for later in tops[number + 1 :]:
                        if later > stop or later + self.box > first + most:
                            break
                        stop = later + self.box
                    band = buffer[: stop - first]
                    file.seek(header.offset + first * row_bytes)
                    if file.readinto(band.data) != band.nbytes:
                        raise InputError(
                            f"{header.path} has become shorter while it was read: copy or write it again."
                        )
                column = left[chosen[number]]
                yield buffer[row - first : row - first + self.box, column : column + self.box]

    def part(self, chosen: Indices) -> ImageStore:
        """Return a store of some of the images, which knows their micrographs alone."""
        used, micrograph_of = np.unique(self.micrograph_of[chosen], return_inverse=True)
        return replace(
            self,
            micrographs=[self.micrographs[number] for number in used.tolist()],
            micrograph_of=micrograph_of.astype(np.int32),
            x=self.x[chosen],
            y=self.y[chosen],
            number_of=self.number_of[chosen],
        )

    def files(self) -> list[str]:
        """Return the paths of the micrographs."""
        return [header.path for header in self.micrographs]

    def layout(self) -> list[npt.NDArray[Any]]:
        """Return which image is where, and how it is cut."""
        return [self.micrograph_of, self.x, self.y, np.array([self.box, self.invert])]

    def repeated(self) -> Bools:
        """Return which images have the same centre in the same micrograph as an earlier one."""
        places = self.micrograph_of, self.y, self.x
        # The sort is stable, so that of equal places the earliest comes first.
        order = np.lexsort(places)
        same = np.logical_and.reduce([place[order[1:]] == place[order[:-1]] for place in places])
        repeated = np.zeros(len(self), bool)
        repeated[order[1:][same]] = True
        return repeated


def _mirrored(start: int, box: int, side: int) -> Indices:
    """Return places start, start + 1, ... of a line of pixels, and beyond its ends those before them."""
    places: Indices = np.arange(start, start + box, dtype=np.intp)
    return np.where(places < 0, -1 - places, np.where(places >= side, 2 * side - 1 - places, places))


def _background(box: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]:
    """Return where in each row the disk starts and stops, and what solves for the plane outside of it.

    The inverse, shape (3, 3), of the matrix of the normal equations turns the sums of the values, and of
    these times their offsets in x and y from pixel ``box // 2``, into the height there and the two slopes.
    """
    middle = box // 2
    offset = np.arange(box) - middle
    half = np.sqrt(box * box / 4 - offset**2).astype(np.intp)
    starts, stops = np.maximum(middle - half, 0), np.minimum(middle + half + 1, box)
    powers = np.stack([offset**0, offset, offset**2])
    upto = np.concatenate([np.zeros((3, 1), np.intp), np.cumsum(powers, axis=1)], axis=1)
    count, x, xx = (upto[:, -1:] - (upto[:, stops] - upto[:, starts])).astype(np.float64)
    normal = [
        [count.sum(), x.sum(), count @ offset],
        [x.sum(), xx.sum(), x @ offset],
        [count @ offset, x @ offset, count @ offset**2],
    ]
    return starts, stops, np.linalg.inv(np.array(normal))


@kernel
def _level(images, starts, stops, inverse, sign, rounding):
    n, box = images.shape[:2]
    middle = box // 2
    n_outside = n_inside = 0
    for v in range(box):
        n_inside += stops[v] - starts[v]
    n_outside = box * box - n_inside
    for i in range(n):
        image = images[i]
        total = 0.0
        total_x = 0.0
        total_y = 0.0
        square = 0.0
        for v in range(box):
            row = 0.0
            for u in range(starts[v]):
                value = np.float64(image[v, u])
                row += value
                total_x += value * (u - middle)
                square += value * value
            for u in range(stops[v], box):
                value = np.float64(image[v, u])
                row += value
                total_x += value * (u - middle)
                square += value * value
            total += row
            total_y += row * (v - middle)
        size = np.sqrt(square / n_outside)
        height = inverse[0, 0] * total + inverse[0, 1] * total_x + inverse[0, 2] * total_y
        slope_x = inverse[1, 0] * total + inverse[1, 1] * total_x + inverse[1, 2] * total_y
        slope_y = inverse[2, 0] * total + inverse[2, 1] * total_x + inverse[2, 2] * total_y
        square = 0.0
        for v in range(box):
            level = height + slope_y * (v - middle) - slope_x * middle
            for u in range(box):
                image[v, u] = image[v, u] - (level + slope_x * u)
            for u in range(starts[v]):
                square += np.float64(image[v, u]) * image[v, u]
            for u in range(stops[v], box):
                square += np.float64(image[v, u]) * image[v, u]
        std = np.sqrt(square / n_outside)
        scale = 0.0 if std <= rounding * size else sign / std
        for v in range(box):
            for u in range(box):
                image[v, u] = image[v, u] * scale


def open_micrographs(
    micrographs: FilePath | Sequence[FilePath],
    coordinates: FilePath | Sequence[FilePath],
    box: int,
    *,
    pixel_size: float | None = None,
    data_dir: FilePath | None = None,
    invert: bool = True,
) -> Particles:
    """Open particles that were picked in micrographs and not yet cut out.

    Parameters
    ----------
    micrographs : path, pattern, or list of them
        MRC files of one image each, or a RELION STAR file that lists them; this may give their pixel
        size and their CTF, too.
    coordinates : path, pattern, or list of them
        RELION STAR files with ``_rlnCoordinateX`` and ``_rlnCoordinateY``, one a micrograph, or for many
        with ``_rlnMicrographName``; a STAR file that lists such files (``data_coordinate_files``); EMAN
        .box files; cryoSPARC .cs files with ``location/*``.
    box : int
        Side in pixels of the images to cut.
    pixel_size : float, optional
        In angstroms, instead of what the files say.
    data_dir : path, optional
        Folder in which to look first for files that a STAR file names.
    invert : bool
        Whether particles are dark in the micrographs, and are made bright.

    Returns
    -------
    particles : Particles
        In the order of the coordinate files and of their rows. Their `table` is a `PickedFiles`; images
        that reach over the edge of their micrograph are marked `outside`.

    Raises
    ------
    InputError
        When a file cannot be used, is given twice or shares its name with another; when it is not clear
        to which micrograph picks belong; when the micrographs differ in pixel size; when more than half
        of the picks lie outside of their micrographs.

    Notes
    -----
    A file without micrograph names belongs to the micrograph with whose stem its name starts: picks of
    ``a_01.mrc`` are in ``a_01.box`` or ``a_01_topaz.star``. A micrograph that a file names is looked for
    by its path, then by its stem.

    As in RELION, the fraction of a coordinate is cut off, and that pixel of the micrograph becomes pixel
    ``box // 2`` of the image.
    """
    check_box(check_count("box", box), box, "the box")
    given = _open_given(micrographs, data_dir)
    picks = _read_all(_coordinate_files(coordinates, data_dir), given)
    table = _picked_files(picks, given, _asked_for(coordinates), pixel_size)
    store = MicrographImages(
        given.headers,
        table.micrograph_of,
        _pixels(table.x),
        _pixels(table.y),
        table.row_of,
        box,
        invert,
    )
    outside = store.outside()
    if outside.all():
        raise InputError(
            f"all {len(outside)} picks of {table.path} lie so close to the edge of their micrographs that a "
            f"box of {box} px reaches over it: give a smaller box."
        )
    ctf = _ctf(picks, given, table)
    if ctf is not None:
        table = replace(table, defocus=(ctf.defocus_u + ctf.defocus_v) / 2)
    return Particles(
        store,
        box,
        table.pixel_size,
        table.path,
        ctf=ctf,
        micrographs=[given.names[number] for number in table.micrograph_of.tolist()],
        table=table,
        outside=outside if outside.any() else None,
    )


def _pixels(coordinates: Floats) -> npt.NDArray[np.int32]:
    return np.clip(np.floor(coordinates), -_FAR_AWAY, _FAR_AWAY).astype(np.int32)


def _asked_for(paths: FilePath | Sequence[FilePath]) -> str:
    if isinstance(paths, (str, os.PathLike)):
        return os.fspath(paths)
    return os.fspath(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


class _Given(NamedTuple):
    """The micrographs: headers, names as they were given, and the table that listed them."""

    names: list[str]
    headers: list[MrcHeader]
    table: JoinedTable | None
    by_stem: dict[str, list[int]]


class _Picks(NamedTuple):
    """The picks of one coordinate file."""

    content: StarFile | BoxFile | CsDataset
    micrograph_of: npt.NDArray[np.int32]
    x: Floats
    y: Floats
    ctf: CtfParameters | None


class _CoordinateFile(NamedTuple):
    path: str
    micrograph: str | None
    """As a list of coordinate files names it."""


def _expand(paths: FilePath | Sequence[FilePath], what: str) -> list[str]:
    """Return the files that paths and patterns name; those of a pattern in the order of their names."""
    files: list[str] = []
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        if not isinstance(path, (str, os.PathLike)):
            raise InputError(
                f"{what} must be a path, a pattern or a list of paths; got {type(path).__name__}."
            )
        name = os.fspath(path)
        if os.path.exists(name) or not glob.has_magic(name):
            files.append(name)
            continue
        found = sorted(glob.glob(name, recursive=True))
        if not found:
            raise InputError(
                f"no file matches the {what} {name!r} (looked from {os.getcwd()}): check the pattern."
            )
        files += found
    if not files:
        raise InputError(f"no {what} are given: give a path, a pattern or a list of paths.")
    return files


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _open_given(micrographs: FilePath | Sequence[FilePath], data_dir: FilePath | None) -> _Given:
    """Read the header of each micrograph."""
    names, table = _expand(micrographs, "micrographs"), None
    paths = names
    if len(names) == 1 and Path(names[0]).suffix.lower() == ".star":
        star = read_star(names[0])
        rows = loop_with(star, "_rlnMicrographName")
        if rows is None:
            raise InputError(
                f"{star.path} has no loop with _rlnMicrographName: give a STAR file that lists micrographs, "
                "such as micrographs_ctf.star, or the micrographs themselves."
            )
        table, names = join_optics(star, rows), rows.column("_rlnMicrographName")
        if not names:
            raise InputError(f"{star.path} lists no micrographs: nothing to cut particles from.")
        paths = find_stacks(names, star.path, data_dir, "micrographs")
    seen: dict[str, str] = {}
    by_stem: dict[str, list[int]] = {}
    for number, (name, path) in enumerate(zip(names, paths, strict=True)):
        same = seen.setdefault(os.path.realpath(path), name)
        if len(seen) <= number:
            raise InputError(f"micrograph {shown(name)} is given twice (as {shown(same)}): give each once.")
        by_stem.setdefault(_stem(name), []).append(number)
    headers = [read_header(path) for path in paths]
    for header in headers:
        if header.n_images > 1:
            raise InputError(
                f"{header.path} has {header.n_images} images: it is a movie or a stack. "
                "Give the micrographs, which hold one image each."
            )
    return _Given(names, headers, table, by_stem)


def _coordinate_files(
    coordinates: FilePath | Sequence[FilePath], data_dir: FilePath | None
) -> list[_CoordinateFile]:
    files = [_CoordinateFile(path, None) for path in _expand(coordinates, "coordinates")]
    if len(files) == 1 and Path(files[0].path).suffix.lower() == ".star":
        star = read_star(files[0].path)
        listed = loop_with(star, "_rlnMicrographName", "_rlnMicrographCoordinates")
        if listed is not None:
            names = listed.column("_rlnMicrographCoordinates")
            if not names:
                raise InputError(f"{star.path} lists no coordinate files: nothing to sort.")
            paths = find_stacks(names, star.path, data_dir, "coordinate files")
            micrographs = listed.column("_rlnMicrographName")
            files = [_CoordinateFile(*pair) for pair in zip(paths, micrographs, strict=True)]
    by_name: dict[str, str] = {}
    for number, file in enumerate(files):
        other = by_name.setdefault(os.path.basename(file.path), file.path)
        if len(by_name) <= number:
            raise InputError(
                f"coordinate files {other} and {file.path} have one name, and so would what is written: "
                "give each file once, or rename one."
            )
    return files


def _read_all(files: list[_CoordinateFile], given: _Given) -> list[_Picks]:
    """Read the picks of each file and find their micrographs."""
    lost: dict[str, int] = {}
    strangers: list[str] = []
    file_of: dict[int, str] = {}
    picks = []
    for file in files:
        content, names, x, y, ctf = read_coordinates(file.path)
        if names is not None:
            numbers = {name: _find_micrograph(name, given, file.path) for name in dict.fromkeys(names)}
            for name in names:
                if numbers[name] is None:
                    lost[name] = lost.get(name, 0) + 1
            which = np.array([numbers[name] or 0 for name in names], np.int32)
        else:
            number = _belonging_to(file, given)
            if number is None:
                of = "" if file.micrograph is None else f" (of {file.micrograph})"
                strangers.append(f"{file.path}{of}")
            elif number in file_of:
                raise InputError(
                    f"coordinate files {file_of[number]} and {file.path} both belong to micrograph "
                    f"{given.names[number]}: give one file for each micrograph."
                )
            else:
                file_of[number] = file.path
            which = np.full(len(x), number or 0, np.int32)
        if not isinstance(content, (StarFile, BoxFile)):
            x, y = _from_fractions(content, which, x, y, given)
        picks.append(_Picks(content, which, x, y, ctf))
    if strangers:
        raise InputError(
            f"{len(strangers)} of {len(files)} coordinate files belong to no micrograph that is given: "
            f"{_first(strangers)}. A file's name must start with that of its micrograph; give the "
            "micrographs that are missing, or leave these files out."
        )
    if lost:
        raise InputError(
            f"{sum(lost.values())} picks are of {len(lost)} micrographs that are not given: "
            f"{_first(list(lost))}. Give these micrographs, too, or leave their picks out of "
            f"{_first([file.path for file in files])}."
        )
    if not sum(len(file.x) for file in picks):
        paths = _first([file.path for file in files])
        raise InputError(f"the coordinate files ({paths}) hold no picks: nothing to sort.")
    return picks


def _belonging_to(file: _CoordinateFile, given: _Given) -> int | None:
    """Return the number of the micrograph whose stem the name of a coordinate file starts with."""
    if file.micrograph is not None:
        return _find_micrograph(file.micrograph, given, file.path)
    stem = _stem(file.path)
    for stop in range(len(stem), 0, -1):
        # What is picked in mic_10 is not for mic_1.
        if stem[:stop] in given.by_stem and not stem[stop : stop + 1].isalnum():
            return _only_one(given.by_stem[stem[:stop]], given, file.path, file.path)
    return None


def _find_micrograph(name: str, given: _Given, path: str) -> int | None:
    """Return the number of the micrograph that a file names; None where there is none."""
    stem = _stem(name)
    # cryoSPARC puts a number before the names of files that it imports.
    numbers = given.by_stem.get(stem) or given.by_stem.get(_CRYOSPARC_NUMBER.sub("", stem, count=1))
    return None if numbers is None else _only_one(numbers, given, name, path)


def _only_one(numbers: list[int], given: _Given, name: str, path: str) -> int:
    """Return the micrograph with whose path the one that is named has most in common, from the end on."""
    parts = Path(name).parts[-2::-1]
    common = []
    for number in numbers:
        own = Path(given.names[number]).parts[-2::-1]
        pairs = zip(parts, own, strict=False)
        common.append(next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(parts), len(own))))
    best = [number for number, n in zip(numbers, common, strict=True) if n == max(common)]
    if len(best) > 1:
        raise InputError(
            f"picks of {path} are of micrograph {shown(name)}, which may be "
            f"{_first([given.names[number] for number in best])}: give only the one that is meant."
        )
    return best[0]


def _from_fractions(
    dataset: CsDataset, which: npt.NDArray[np.int32], x: Floats, y: Floats, given: _Given
) -> tuple[Floats, Floats]:
    """Return coordinates in pixels of the micrographs as they are, whatever their binning."""
    sides = np.array([(header.nx, header.ny) for header in given.headers], np.float64)[which]
    shapes = dataset.field("location/micrograph_shape")
    if shapes is not None and shapes.shape[1:] == (2,) and shapes.dtype.kind in "iuf":
        height, width = shapes.astype(np.float64).T
        wrong = np.flatnonzero(
            np.abs(width * sides[:, 1] - height * sides[:, 0]) > 0.01 * height * sides[:, 0]
        )
        if len(wrong):
            row = wrong[0]
            raise InputError(
                f"row {row} of {dataset.path} was picked in a micrograph of {width[row]:g} x {height[row]:g} "
                f"px, but {given.names[which[row]]} has {sides[row, 0]:g} x {sides[row, 1]:g} px: give the "
                "micrographs in which the particles were picked."
            )
    pixels = np.stack([x, y], axis=1) * sides
    whole = np.round(pixels)
    pixels = np.where(np.abs(pixels - whole) < _FRACTION_ERROR, whole, pixels)
    return pixels[:, 0], pixels[:, 1]


def _picked_files(picks: list[_Picks], given: _Given, path: str, pixel_size: float | None) -> PickedFiles:
    counts = [len(file.x) for file in picks]
    table = PickedFiles(
        path,
        [file.content.path for file in picks],
        [file.content for file in picks],
        np.repeat(np.arange(len(picks), dtype=np.int32), counts),
        np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        given.names,
        np.concatenate([file.micrograph_of for file in picks]),
        np.concatenate([file.x for file in picks]),
        np.concatenate([file.y for file in picks]),
        check_positive("pixel_size", pixel_size, "A") if pixel_size is not None else _pixel_size(given),
    )
    width, height = np.array([(header.nx, header.ny) for header in given.headers])[table.micrograph_of].T
    astray = (table.x < 0) | (table.y < 0) | (table.x >= width) | (table.y >= height)
    if 2 * astray.sum() > len(astray):
        raise InputError(
            f"{astray.sum()} of {len(astray)} picks of {path} lie outside of their micrographs: they "
            "belong to other micrographs or to another binning. "
            "Give the micrographs in which they were picked."
        )
    return table


def _pixel_size(given: _Given) -> float:
    """Return the pixel size that all micrographs have, in angstroms; NaN when unknown."""
    sizes = None
    if given.table is not None:
        sizes = micrograph_pixel_sizes(given.table)
        sizes = listed_pixel_sizes(given.table) if sizes is None else sizes
    if sizes is None:
        sizes = np.array([header.pixel_size for header in given.headers])
    sizes = np.where((sizes > 0) & np.isfinite(sizes), sizes, np.nan)
    if np.isnan(sizes).all():
        return float("nan")
    smallest, largest = int(np.nanargmin(sizes)), int(np.nanargmax(sizes))
    other = int(np.isnan(sizes).argmax()) if np.isnan(sizes).any() else largest
    if not sizes[other] <= sizes[smallest] * (1 + _SAME_PIXEL_SIZE):
        what = "no known pixel size" if np.isnan(sizes[other]) else f"{sizes[other]:.5g} A"
        raise InputError(
            f"the micrographs differ in pixel size: {given.names[smallest]} has {sizes[smallest]:.5g} A, "
            f"{given.names[other]} {what}. Sort each kind by itself, or give the pixel size of "
            "all if it is one."
        )
    return float(sizes[0])


def _ctf(picks: list[_Picks], given: _Given, table: PickedFiles) -> CtfParameters | None:
    """Return the CTF of each pick: its own where the coordinate files have it, or that of its micrograph."""
    own = [file.ctf for file in picks if file.ctf is not None]
    if len(own) == len(picks):
        return CtfParameters(*(np.concatenate(columns) for columns in zip(*own, strict=True)))
    listed = None if given.table is None else listed_ctf(given.table)
    return None if listed is None else listed.of(table.micrograph_of)
