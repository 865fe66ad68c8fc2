"""A finished run, read back from its folder."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastsort._checks import InputError, check_readable
from fastsort._reasons import REASONS
from fastsort._saved import load
from fastsort._types import FilePath
from fastsort.decide.copies import CONTENT, STAMP
from fastsort.decide.result import SortResult
from fastsort.images.content import read_content, stamps_of
from fastsort.particles.files import shown
from fastsort.particles.open import open_particles
from fastsort.particles.source import Particles, choose_particles
from fastsort.report.folder import RESULTS, SCORES, SUMMARY

_OPTIONS: dict[str, Any] = {
    "pixel_size": (int, float),
    "data_dir": str,
    "passthrough": str,
    "box": int,
    "invert": bool,
}
# How many images of files that were written anew are compared with those that were sorted.
N_COMPARED = 1000
_PICKED = ("micrographs", "coordinates")
# The kind of number or text in each column of a result.
_COLUMNS = {
    "keep": "b",
    "score": "f",
    "reason_code": "i",
    "suspicion_code": "i",
    "rescued": "b",
    "junk_probability": "f",
}


class Finished(NamedTuple):
    """A finished run.

    Attributes
    ----------
    folder : Path
    particles : Particles
        What was sorted.
    result : SortResult
        Without the model of the subspaces.
    summary : dict
        What ``summary.json`` holds.
    """

    folder: Path
    particles: Particles
    result: SortResult
    summary: dict[str, Any]


def open_finished(
    folder: FilePath,
    source: FilePath | None = None,
    *,
    data_dir: FilePath | None = None,
) -> Finished:
    """Read back the folder of a run, and open its particles.

    Parameters
    ----------
    folder : path
        As ``fastsort sort`` left it.
    source : path, optional
        The sorted file, if it has moved.
    data_dir : path, optional
        Folder to search first for the stacks that a STAR file names.

    Returns
    -------
    finished : Finished

    Raises
    ------
    InputError
        If the folder holds no finished run, or the input is no longer the one that was sorted.
    """
    folder = Path(folder)
    result = load_result(folder)
    summary = _load_summary(folder / SUMMARY)
    particles = _open_again(folder, summary, source, data_dir)
    _check_unchanged(folder, particles, result, summary)
    # A run of an earlier version has none, and the files may have others now.
    result = result._replace(doubts=tuple(dict.fromkeys([*result.doubts, *particles.doubts])))
    return Finished(folder, particles, result, summary)


def load_result(folder: FilePath) -> SortResult:
    """Read back the result of a finished run from its folder; no image is read, and none need be there.

    Parameters
    ----------
    folder : path
        As ``fastsort sort``, ``watch`` or ``apply`` left it.

    Returns
    -------
    result : SortResult
        As it was written, bit for bit. Only the model of the subspaces is not kept, so that `subspaces` is
        None.

    Raises
    ------
    InputError
        If the folder is missing, or holds no finished run of ``fastsort sort``, or a damaged one.

    Examples
    --------
    After ``fastsort sort particles.star -o sorted/``, the best half of the images, best first:

    >>> import numpy as np
    >>> import fastsort as fs
    >>> result = fs.load_result("sorted/")  # doctest: +SKIP
    >>> best = np.argsort(result.score)[: len(result.score) // 2]  # doctest: +SKIP

    A folder without a finished run is refused:

    >>> fs.load_result("nowhere/")
    Traceback (most recent call last):
    ...
    fastsort._checks.InputError: there is no folder nowhere: give that of a finished run of 'fastsort sort'.
    """
    folder = Path(folder)
    for name in (RESULTS, SUMMARY):
        if not (folder / name).is_file():
            raise InputError(_not_finished(folder, name))
    return _load_result(folder / RESULTS)


def _not_finished(folder: Path, name: str) -> str:
    """Say why a folder is not that of a finished run."""
    where = folder.resolve()
    if where.with_name(f".{where.name}.work").is_dir():
        return f"the run into {folder} has not ended: start the same command again, and it goes on."
    if not folder.exists():
        return f"there is no folder {folder}: give that of a finished run of 'fastsort sort'."
    return f"{folder} holds no {name}: give the folder of a finished run of 'fastsort sort'."


def read_earlier(folder: FilePath) -> tuple[SortResult, list[str]]:
    """Read back a result without opening its particles, which may have moved or changed.

    Parameters
    ----------
    folder : path
        As ``fastsort sort`` left it.

    Returns
    -------
    result : SortResult
    names : list of str
        Of the images.

    Raises
    ------
    InputError
        If the folder holds no finished run.
    """
    folder = Path(folder)
    result = _load_result(folder / RESULTS)
    with check_readable(folder / SCORES):
        pass
    with open(folder / SCORES, newline="", encoding="utf-8", errors="surrogateescape") as file:
        try:
            names = [row["name"] for row in csv.DictReader(file)]
        except (KeyError, csv.Error):
            names = []
    if len(names) != len(result.keep):
        raise InputError(
            f"{folder} is damaged: {SCORES} and {RESULTS} are not of the same images: sort again."
        )
    return result, names


def _open_again(
    folder: Path,
    summary: dict[str, Any],
    source: FilePath | None,
    data_dir: FilePath | None,
) -> Particles:
    """Open what was sorted, with the options of that run."""
    how = summary.get("opened_with") or {}
    options = {name: how[name] for name in _OPTIONS if name in how}
    if data_dir is not None:
        options["data_dir"] = data_dir
    if "micrographs" in how:
        # `source` can only be the picks: the micrographs are where they were.
        return open_particles((how["micrographs"], source or how["coordinates"]), **options)
    path = source if source is not None else summary.get("input")
    if path is None:
        raise InputError(f"{folder} does not say what was sorted: name the input.")
    if source is None and not os.path.exists(path):
        raise InputError(f"{path}, which was sorted into {folder}, is gone: give its new place.")
    return open_particles(path, **options)


def _load_result(path: Path) -> SortResult:
    """Read a result, and refuse one whose parts are not of the same images."""
    result = load(path)
    if not isinstance(result, SortResult):
        raise InputError(
            f"{path} holds a {type(result).__name__}, no result of sorting: give the folder of a finished "
            "run of 'fastsort sort'."
        )
    if not _is_whole(result):
        raise InputError(f"{path} is damaged: its parts do not belong together: sort again.")
    return result


def _is_whole(result: SortResult) -> bool:
    """Whether all parts have the right type, and the same number of images."""
    named = (result.votes, result.measurements, result.seconds, result.parameters)
    if not all(isinstance(values, dict) for values in named):
        return False
    columns = [(getattr(result, name), kind) for name, kind in _COLUMNS.items()]
    columns += [(values, "f") for values in result.votes.values()]
    columns += [(values, "biuf") for values in result.measurements.values()]
    n = np.size(result.keep)
    numbers = (result.threshold, result.diameter, result.diameter_px, *result.seconds.values())
    parts = (result.subspaces, result.errors, result.views, result.learned)
    return (
        all(isinstance(values, np.ndarray) and values.dtype.kind in kind for values, kind in columns)
        and all(values.shape == (n,) for values, _ in columns)
        and not np.setdiff1d([result.reason_code, result.suspicion_code], range(len(REASONS))).size
        and np.shape(result.offset) == (n, 2)
        and result.offset.dtype.kind == "f"
        and all(isinstance(number, (int, float, np.number)) for number in numbers)
        and all(part is None or hasattr(part, "_fields") for part in parts)
        and isinstance(result.doubts, tuple)
        and all(isinstance(doubt, str) for doubt in result.doubts)
    )


def _load_summary(path: Path) -> dict[str, Any]:
    with check_readable(path) as file:
        try:
            summary = json.load(file)
        except (ValueError, RecursionError):
            summary = None
    known = isinstance(summary, dict) and isinstance(summary.get("input"), (str, type(None)))
    if not (known and _is_usable(summary.get("opened_with") or {})):
        raise InputError(f"{path} is damaged: sort again.")
    return summary


def _is_usable(how: Any) -> bool:
    """Whether an input can be opened again as a summary says that it was opened."""
    return (
        isinstance(how, dict)
        and all(how.get(name) is None or isinstance(how[name], kind) for name, kind in _OPTIONS.items())
        and (how.get("pixel_size") is None or 0 < how["pixel_size"] < math.inf)
        and ("micrographs" not in how or all(_names_files(how.get(name)) for name in _PICKED))
    )


def _names_files(value: Any) -> bool:
    """Whether a value is a path or a list of paths."""
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(path, str) for path in value)
    )


def _check_unchanged(folder: Path, particles: Particles, result: SortResult, summary: dict[str, Any]) -> None:
    """Refuse particles that are not those that were sorted."""
    n, box = len(result.keep), summary.get("box", particles.box)
    difference = None
    if len(particles) != n:
        difference = f"it has {len(particles):,} images, and {n:,} were sorted"
    elif particles.box != box:
        difference = f"its box is {particles.box} px, and was {box} px"
    elif particles.table.names is not None or particles.table.has_picks:
        difference = _first_difference(folder / SCORES, particles.names)
    difference = difference or _other_pixels(particles, result)
    if difference:
        raise InputError(
            f"{particles.path} is not what was sorted into {folder}: {difference}. "
            "Name the file that was sorted, or sort again."
        )


def _other_pixels(particles: Particles, result: SortResult) -> str | None:
    """Say which image has other pixels than the one that was sorted; only files written anew are read."""
    content, stamps = (result.measurements.get(name) for name in (CONTENT, STAMP))
    # Images that are cropped as they are read may differ in their last bits from machine to machine.
    if content is None or stamps is None or particles.rescaled is not None:
        return None
    doubtful = np.flatnonzero(stamps_of(particles) != stamps)
    if len(doubtful) > N_COMPARED:
        doubtful = doubtful[np.linspace(0, len(doubtful) - 1, N_COMPARED).astype(np.intp)]
    if len(doubtful) == 0:
        return None
    changed = doubtful[read_content(choose_particles(particles, doubtful), 1) != content[doubtful]]
    if len(changed) == 0:
        return None
    return f"image {shown(particles.names[int(changed[0])])} has other pixels now"


def _first_difference(path: Path, names: Sequence[str]) -> str | None:
    """Say where names differ from those in a table of scores, which may be missing."""
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        index = 0
        try:
            for index, (row, name) in enumerate(zip(csv.DictReader(file), names, strict=False)):
                if row.get("name") != name:
                    other = shown(str(row.get("name")))
                    return f"its image {index}, counted from 0, is {shown(name)}, and was {other}"
        except csv.Error:
            return f"{path} is damaged after image {index}"
    return None
