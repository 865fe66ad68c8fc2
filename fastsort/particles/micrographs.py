"""Particles that were picked in micrographs: which picks belong to which micrograph."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastsort._checks import InputError, check_box, check_count, check_positive
from fastsort._types import FilePath, Floats, Numbers
from fastsort.particles.doubts import ctf_doubts, pixel_size_doubts, stack_doubts
from fastsort.particles.extract import MicrographImages
from fastsort.particles.files import find_files, first_few, shown
from fastsort.particles.mrc import MrcHeader, read_header
from fastsort.particles.picks import PickFile, PickTable
from fastsort.particles.relion import (
    JoinedTable,
    join_optics,
    listed_ctf,
    listed_pixel_sizes,
    micrograph_pixel_sizes,
)
from fastsort.particles.source import Particles
from fastsort.particles.star import read_star
from fastsort.particles.table import CtfParameters

_SAME_PIXEL_SIZE = 1e-3
_FAR_AWAY = 1 << 30
_CRYOSPARC_NUMBER = re.compile(r"(?<!\d)\d{15,}_")


def open_micrographs(
    micrographs: FilePath | Sequence[FilePath],
    coordinates: FilePath | Sequence[FilePath],
    box: int,
    read_picks: Callable[[str], PickFile],
    *,
    pixel_size: float | None = None,
    data_dir: FilePath | None = None,
    invert: bool = True,
) -> Particles:
    """Open particles that were picked in micrographs and not yet extracted.

    Parameters
    ----------
    micrographs : path, pattern, or list of them
        MRC files of one image each, or a RELION STAR file that lists them; this may give their pixel
        size and their CTF, too.
    coordinates : path, pattern, or list of them
        RELION STAR files with ``_rlnCoordinateX`` and ``_rlnCoordinateY``, one a micrograph, or for many
        with ``_rlnMicrographName``; a STAR file that lists such files (``data_coordinate_files``); EMAN's
        .box and EMAN2's .json files; crYOLO's .cbox files; Topaz's .txt files; cryoSPARC's .cs files with
        ``location/*``.
    box : int
        Side in pixels of the images to extract.
    read_picks : callable
        Reads a file of picks of any format.
    pixel_size : float, optional
        In angstroms, instead of what the files say.
    data_dir : path, optional
        Folder in which to look first for files that a STAR file names.
    invert : bool
        Whether particles are dark in the micrographs, and are made bright.

    Returns
    -------
    particles : Particles
        In the order of the coordinate files and of their rows. Their `table` is a `PickTable`; images
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
    picks = _read_all(_coordinate_files(coordinates, data_dir), given, read_picks)
    table = _pick_table(picks, given, _asked_for(coordinates), pixel_size)
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
        micrographs=table.micrographs(),
        table=table,
        outside=outside if outside.any() else None,
        doubts=(
            *stack_doubts(given.headers),
            *_pixel_size_doubts(given, table, pixel_size),
            *ctf_doubts(ctf),
        ),
    )


def _pixels(coordinates: Floats) -> Numbers:
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
    """The picks of one file, in pixels of the micrographs that are given."""

    file: PickFile
    micrograph_of: Numbers
    x: Floats
    y: Floats


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


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


class MicrographList(NamedTuple):
    """Micrographs on their own, before anything is known of particles in them.

    Attributes
    ----------
    path : str
        What was asked for, for messages.
    names : list of str
        Of those that can be read, as they were given.
    headers : list of MrcHeader
        One image each.
    ctf : CtfParameters or None
        Of each, where a STAR file gives it.
    pixel_size : float
        In angstroms; NaN when unknown.
    failed : dict of str to str
        What is wrong with micrographs that cannot be read, by name.
    """

    path: str
    names: list[str]
    headers: list[MrcHeader]
    ctf: CtfParameters | None
    pixel_size: float
    failed: dict[str, str]


def list_micrographs(
    micrographs: FilePath | Sequence[FilePath],
    *,
    pixel_size: float | None = None,
    data_dir: FilePath | None = None,
) -> MicrographList:
    """Find micrographs and read their headers.

    Parameters
    ----------
    micrographs, pixel_size, data_dir
        As for `open_micrographs`.

    Returns
    -------
    micrographs : MicrographList
        A file that is damaged does not stop the others: it stands in `failed`.

    Raises
    ------
    InputError
        If no micrograph can be read, one is a movie or given twice, or they differ in pixel size.
    """
    names, paths, table = _named(micrographs, data_dir)
    headers: list[MrcHeader] = []
    rows: list[int] = []
    failed: dict[str, str] = {}
    for row, (name, path) in enumerate(zip(names, paths, strict=True)):
        try:
            header = read_header(path)
        except InputError as error:
            failed[name] = str(error)
            continue
        _check_single(header)
        headers.append(header)
        rows.append(row)
    if not headers:
        raise InputError(next(iter(failed.values())))
    readable = [names[row] for row in rows]
    if pixel_size is not None:
        size = check_positive("pixel_size", pixel_size, "A")
    else:
        listed = None if table is None else _listed_sizes(table)
        size = _common_pixel_size(readable, headers, None if listed is None else listed[rows])
    ctf = None if table is None else listed_ctf(table)
    return MicrographList(
        _asked_for(micrographs), readable, headers, None if ctf is None else ctf.of(rows), size, failed
    )


def _check_single(header: MrcHeader) -> None:
    if header.n_images > 1:
        raise InputError(
            f"{header.path} has {header.n_images} images: it is a movie or a stack. "
            "Give the micrographs, which hold one image each."
        )


def _named(
    micrographs: FilePath | Sequence[FilePath], data_dir: FilePath | None
) -> tuple[list[str], list[str], JoinedTable | None]:
    """Return names and paths of micrographs, and the table that lists them."""
    names, table = _expand(micrographs, "micrographs"), None
    paths = names
    if len(names) == 1 and Path(names[0]).suffix.lower() == ".star":
        star = read_star(names[0])
        rows = star.table_with("_rlnMicrographName")
        if rows is None:
            raise InputError(
                f"{star.path} has no table with _rlnMicrographName: give a STAR file that lists micrographs, "
                "such as micrographs_ctf.star, or the micrographs themselves."
            )
        table, names = join_optics(star, rows), rows.column("_rlnMicrographName")
        if not names:
            raise InputError(f"{star.path} lists no micrographs: nothing to extract particles from.")
        paths = find_files(names, star.path, data_dir, "micrographs")
    seen: dict[str, str] = {}
    for number, (name, path) in enumerate(zip(names, paths, strict=True)):
        same = seen.setdefault(os.path.realpath(path), name)
        if len(seen) <= number:
            raise InputError(f"micrograph {shown(name)} is given twice (as {shown(same)}): give each once.")
    return names, paths, table


def _open_given(micrographs: FilePath | Sequence[FilePath], data_dir: FilePath | None) -> _Given:
    """Read the header of each micrograph."""
    names, paths, table = _named(micrographs, data_dir)
    by_stem: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        by_stem.setdefault(_stem(name), []).append(number)
    headers = [read_header(path) for path in paths]
    for header in headers:
        _check_single(header)
    return _Given(names, headers, table, by_stem)


def _coordinate_files(
    coordinates: FilePath | Sequence[FilePath], data_dir: FilePath | None
) -> list[_CoordinateFile]:
    files = [_CoordinateFile(path, None) for path in _expand(coordinates, "coordinates")]
    if len(files) == 1 and Path(files[0].path).suffix.lower() == ".star":
        star = read_star(files[0].path)
        listed = star.table_with("_rlnMicrographName", "_rlnMicrographCoordinates")
        if listed is not None:
            names = listed.column("_rlnMicrographCoordinates")
            if not names:
                raise InputError(f"{star.path} lists no coordinate files: nothing to sort.")
            paths = find_files(names, star.path, data_dir, "coordinate files")
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


def _read_all(
    files: list[_CoordinateFile], given: _Given, read_picks: Callable[[str], PickFile]
) -> list[_Picks]:
    """Read the picks of each file and find their micrographs."""
    picks = [read_picks(file.path) for file in files]
    micrographs = _micrographs_of(files, picks, given)
    if not sum(len(some.x) for some in picks):
        paths = first_few([file.path for file in files])
        raise InputError(f"the coordinate files ({paths}) hold no picks: nothing to sort.")
    sides = np.array([(header.nx, header.ny) for header in given.headers], np.float64)
    read = []
    for some, numbers in zip(picks, micrographs, strict=True):
        names = [given.names[number] for number in numbers.tolist()]
        read.append(_Picks(some, numbers, *some.in_pixels(sides[numbers, 0], sides[numbers, 1], names)))
    return read


def _micrographs_of(files: list[_CoordinateFile], picks: list[PickFile], given: _Given) -> list[Numbers]:
    """Return the number of the micrograph of each pick of each file."""
    lost: dict[str, int] = {}
    strangers: list[str] = []
    file_of: dict[int, str] = {}
    micrographs = []
    for file, some in zip(files, picks, strict=True):
        if some.micrographs is not None:
            numbers = {
                name: _find_micrograph(name, given, file.path) for name in dict.fromkeys(some.micrographs)
            }
            for name in some.micrographs:
                if numbers[name] is None:
                    lost[name] = lost.get(name, 0) + 1
            micrographs.append(np.array([numbers[name] or 0 for name in some.micrographs], np.int32))
            continue
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
        micrographs.append(np.full(len(some.x), number or 0, np.int32))
    if strangers:
        raise InputError(
            f"{len(strangers)} of {len(files)} coordinate files belong to no micrograph that is given: "
            f"{first_few(strangers)}. A file's name must start with that of its micrograph; give the "
            "micrographs that are missing, or leave these files out."
        )
    if lost:
        raise InputError(
            f"{sum(lost.values())} picks are of {len(lost)} micrographs that are not given: "
            f"{first_few(list(lost))}. Give these micrographs, too, or leave their picks out of "
            f"{first_few([file.path for file in files])}."
        )
    return micrographs


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
    # Topaz leaves the suffix out; cryoSPARC puts a number before the names of files that it imports.
    stem = _stem(name)
    names = os.path.basename(name), stem, _CRYOSPARC_NUMBER.sub("", stem, count=1)
    numbers = next((given.by_stem[known] for known in names if known in given.by_stem), None)
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
            f"{first_few([given.names[number] for number in best])}: give only the one that is meant."
        )
    return best[0]


def _pick_table(picks: list[_Picks], given: _Given, path: str, pixel_size: float | None) -> PickTable:
    counts = [len(some.x) for some in picks]
    table = PickTable(
        path,
        [some.file for some in picks],
        np.repeat(np.arange(len(picks), dtype=np.int32), counts),
        np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        given.names,
        np.concatenate([some.micrograph_of for some in picks]),
        np.concatenate([some.x for some in picks]),
        np.concatenate([some.y for some in picks]),
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
    listed = None if given.table is None else _listed_sizes(given.table)
    return _common_pixel_size(given.names, given.headers, listed)


def _listed_sizes(table: JoinedTable) -> Floats | None:
    """Return the pixel size of each micrograph, where their table gives it."""
    sizes = micrograph_pixel_sizes(table)
    return listed_pixel_sizes(table) if sizes is None else sizes


def _common_pixel_size(names: list[str], headers: list[MrcHeader], listed: Floats | None) -> float:
    """Return the pixel size that all micrographs have, in angstroms; NaN when unknown."""
    sizes = np.array([header.pixel_size for header in headers]) if listed is None else listed
    sizes = np.where((sizes > 0) & np.isfinite(sizes), sizes, np.nan)
    if np.isnan(sizes).all():
        return float("nan")
    smallest, largest = int(np.nanargmin(sizes)), int(np.nanargmax(sizes))
    other = int(np.isnan(sizes).argmax()) if np.isnan(sizes).any() else largest
    if not sizes[other] <= sizes[smallest] * (1 + _SAME_PIXEL_SIZE):
        what = "no known pixel size" if np.isnan(sizes[other]) else f"{sizes[other]:.5g} A"
        raise InputError(
            f"the micrographs differ in pixel size: {names[smallest]} has {sizes[smallest]:.5g} A, "
            f"{names[other]} {what}. Sort each kind by itself, or give the pixel size of "
            "all if it is one."
        )
    return float(sizes[0])


def _pixel_size_doubts(given: _Given, table: PickTable, pixel_size: float | None) -> list[str]:
    if given.table is None or pixel_size is not None:
        return []
    sizes = np.full(len(given.headers), table.pixel_size)
    return pixel_size_doubts(sizes, given.headers, np.arange(len(sizes)))


def _ctf(picks: list[_Picks], given: _Given, table: PickTable) -> CtfParameters | None:
    """Return the CTF of each pick: its own where the coordinate files have it, or that of its micrograph."""
    own = [some.file.ctf for some in picks if some.file.ctf is not None]
    if len(own) == len(picks):
        return CtfParameters(*(np.concatenate(columns) for columns in zip(*own, strict=True)))
    listed = None if given.table is None else listed_ctf(given.table)
    return None if listed is None else listed.of(table.micrograph_of)
