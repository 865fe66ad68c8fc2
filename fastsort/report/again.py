"""The folder of a run: written, read back, and written again with other verdicts."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_readable
from fastsort._saved import load, save
from fastsort.decide.micrographs import MicrographTable, summarize_micrographs
from fastsort.particles.places import micrograph_places
from fastsort.particles.source import Particles, Table, open_particles
from fastsort.particles.star import shown
from fastsort.report.micrographs import write_micrographs
from fastsort.report.recentre import origin_columns
from fastsort.report.subsets import subsets, write_subset
from fastsort.report.tables import software_versions, summarize, write_json, write_tables

if TYPE_CHECKING:
    from fastsort.sort import SortResult

RESULTS = "results.npz"
PICTURE, PAGE = "report.png", "report.html"
_SUMMARY = "summary.json"
_SCORES = "scores.csv"
_SOME_OF_ALL = re.compile(r"\b(\d[\d,]*) of (\d[\d,]*)\b")


def write_results(
    folder: str | os.PathLike[str],
    particles: Particles,
    result: SortResult,
    *,
    write_stack: bool = False,
    recentre: bool = False,
    learned: dict[str, Any] | None = None,
    score_field: bool = False,
) -> dict[str, Any]:
    """Write everything but the pictures.

    Parameters
    ----------
    folder : path
        An existing folder. Gets what `write_tables` writes; ``results.npz``, the whole result without
        the model of the subspaces; and ``micrographs.csv`` where the micrographs are known.
    particles : Particles
        What was sorted.
    result : SortResult
        As from `sort_particles`.
    write_stack : bool
        As for `write_tables`.
    recentre : bool
        Whether the STAR files say where each particle lies, as its origin.
    learned : dict, optional
        As for `write_tables`.
    score_field : bool
        As for `write_tables`.

    Returns
    -------
    summary : dict
        As from `summarize`.

    Raises
    ------
    InputError
        If origins cannot be written, or the table's coordinates are no numbers.
    OSError
        When the disk refuses.
    """
    folder = Path(folder)
    micrographs = find_micrographs(particles, result)
    origins = origin_columns(particles, result.offset, result.keep) if recentre else None
    write_tables(
        folder,
        particles,
        result,
        write_stack=write_stack,
        micrographs=micrographs,
        origins=origins,
        learned=learned,
        score_field=score_field,
    )
    save(folder / RESULTS, result._replace(subspaces=None))
    if micrographs is not None:
        write_micrographs(folder / "micrographs.csv", micrographs)
    return summarize(particles, result, micrographs)


def draw_results(folder: str | os.PathLike[str], particles: Particles, result: SortResult) -> None:
    """Draw ``report.png`` and write the page ``report.html``.

    Parameters
    ----------
    folder : path
        An existing folder.
    particles : Particles
        What was sorted; some of the images are read.
    result : SortResult

    Raises
    ------
    ImportError
        When matplotlib is not installed; the page is written first.
    OSError
        When the disk refuses.
    """
    for name in (PAGE, PICTURE):
        _draw(Path(folder) / name, particles, result)


def _draw(path: Path, particles: Particles, result: SortResult) -> None:
    if path.suffix == Path(PAGE).suffix:
        from fastsort.report.page import write_page

        write_page(path, particles, result, find_micrographs(particles, result))
    else:
        from fastsort.report.plots import draw_report

        draw_report(path, particles, result)


def find_micrographs(particles: Particles, result: SortResult) -> MicrographTable | None:
    """Summarise a verdict micrograph by micrograph; None where these are not known."""
    places = micrograph_places(particles)
    if places is None:
        return None
    return summarize_micrographs(places, result.keep, result.score, result.junk_probability)


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
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
) -> Finished:
    """Read back a folder that was written after sorting, and open its particles.

    Parameters
    ----------
    folder : path
        As ``fastsort sort`` left it.
    source : path, optional
        Where the sorted file lies now; by default where it was.
    data_dir : path, optional
        Folder in which to look first for the stacks that a STAR file names.

    Returns
    -------
    finished : Finished

    Raises
    ------
    InputError
        If the folder holds no finished run, or the input is no longer the one that was sorted.
    """
    folder = Path(folder)
    for name in (RESULTS, _SUMMARY):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} holds no {name}: give a folder that this version of 'fastsort sort' has written."
            )
    result = _load_result(folder / RESULTS)
    summary = _read_summary(folder / _SUMMARY)
    particles = _open_again(folder, summary, source, data_dir)
    _check_unchanged(folder, particles, result, summary)
    return Finished(folder, particles, result, summary)


def _open_again(
    folder: Path,
    summary: dict[str, Any],
    source: str | os.PathLike[str] | None,
    data_dir: str | os.PathLike[str] | None,
) -> Particles:
    """Open what was sorted, as it was opened then."""
    how = summary.get("opened_with") or {}
    options = {
        name: how[name] for name in ("pixel_size", "data_dir", "passthrough", "box", "invert") if name in how
    }
    if data_dir is not None:
        options["data_dir"] = data_dir
    if "micrographs" in how:
        # What has moved can be the picks; the micrographs are where they were.
        return open_particles((how["micrographs"], source or how["coordinates"]), **options)
    path = source if source is not None else summary.get("input")
    if path is None:
        raise InputError(f"{folder} does not say what was sorted: name the input.")
    if source is None and not os.path.exists(path):
        raise InputError(f"{path}, which was sorted into {folder}, is gone: name where it lies now.")
    return open_particles(path, **options)


def read_earlier(folder: str | os.PathLike[str]) -> tuple[SortResult, list[str]]:
    """Read back a result, whatever has become of what was sorted.

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
    with check_readable(folder / _SCORES):
        pass
    with open(folder / _SCORES, newline="", encoding="utf-8", errors="surrogateescape") as file:
        try:
            names = [row["name"] for row in csv.DictReader(file)]
        except (KeyError, csv.Error):
            names = []
    if len(names) != len(result.keep):
        raise InputError(f"{folder} is damaged: {_SCORES} and {RESULTS} are not of the same images.")
    return result, names


# What each column of a result is made of.
_COLUMNS = {
    "keep": "b",
    "score": "f",
    "reason": "U",
    "suspicion": "U",
    "rescued": "b",
    "junk_probability": "f",
}


def _load_result(path: Path) -> SortResult:
    """Read a result, and refuse one whose parts are not of the same images."""
    from fastsort.sort import SortResult

    result = load(path)
    if not isinstance(result, SortResult):
        raise InputError(f"{path} holds no result of sorting: sort again.")
    if not _is_whole(result):
        raise InputError(f"{path} is damaged: its parts do not belong together: sort again.")
    return result


def _is_whole(result: SortResult) -> bool:
    named = (result.votes, result.measurements, result.seconds, result.parameters)
    if not all(isinstance(values, dict) for values in named):
        return False
    columns = [(getattr(result, name), kind) for name, kind in _COLUMNS.items()]
    columns += [(values, "f") for values in result.votes.values()]
    columns += [(values, "biuf") for values in result.measurements.values()]
    n = np.size(result.keep)
    numbers = (result.cut, result.diameter, result.diameter_px, *result.seconds.values())
    parts = (result.subspaces, result.errors, result.views, result.judge)
    return (
        all(isinstance(values, np.ndarray) and values.dtype.kind in kind for values, kind in columns)
        and all(values.shape == (n,) for values, _ in columns)
        and np.shape(result.offset) == (n, 2)
        and result.offset.dtype.kind == "f"
        and all(isinstance(number, (int, float, np.number)) for number in numbers)
        and all(part is None or hasattr(part, "_fields") for part in parts)
    )


def _read_summary(path: Path) -> dict[str, Any]:
    with check_readable(path) as file:
        try:
            summary = json.load(file)
        except (ValueError, RecursionError):
            summary = None
    known = isinstance(summary, dict) and isinstance(summary.get("input"), (str, type(None)))
    if not (known and _says_how(summary.get("opened_with") or {})):
        raise InputError(f"{path} is damaged: sort again.")
    return summary


_OPENED_WITH: dict[str, Any] = {
    "pixel_size": (int, float),
    "data_dir": str,
    "passthrough": str,
    "box": int,
    "invert": bool,
    "micrographs": (str, list),
    "coordinates": (str, list),
}


def _says_how(how: Any) -> bool:
    """Whether a summary says how its input was opened, in words that can be used."""
    return (
        isinstance(how, dict)
        and all(how.get(name) is None or isinstance(how[name], kind) for name, kind in _OPENED_WITH.items())
        and (how.get("pixel_size") is None or 0 < how["pixel_size"] < math.inf)
        and all(
            isinstance(path, str) for name in ("micrographs", "coordinates") for path in how.get(name) or []
        )
    )


def _check_unchanged(folder: Path, particles: Particles, result: SortResult, summary: dict[str, Any]) -> None:
    n, box = len(result.keep), summary.get("box", particles.box)
    what = None
    if len(particles) != n:
        what = f"it has {len(particles):,} images, and {n:,} were sorted"
    elif particles.box != box:
        what = f"its box is {particles.box} px, and was {box} px"
    elif particles.table.names is not None or particles.table.has_picks:
        what = _first_other_name(folder / _SCORES, particles.names)
    if what:
        raise InputError(
            f"{particles.path} is not what was sorted into {folder}: {what}. Name the file that was sorted, "
            "or sort again."
        )


def _first_other_name(path: Path, names: Sequence[str]) -> str | None:
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


def redraw(finished: Finished, path: str | os.PathLike[str] | None = None) -> list[Path]:
    """Draw the picture and write the page of a finished run again.

    Parameters
    ----------
    finished : Finished
    path : path, optional
        A new .html or .png file for the one or the other; by default both are replaced in the run's
        folder.

    Returns
    -------
    written : list of Path

    Raises
    ------
    InputError
        If `path` exists, or names another kind of file.
    ImportError
        When matplotlib is not installed.
    OSError
        When the disk refuses; what was there before stays.
    """
    if path is None:
        folder = finished.folder.resolve()
        targets, beside = [folder / PAGE, folder / PICTURE], folder.parent
    else:
        target = Path(path).absolute()
        if target.suffix.lower() not in (".html", ".png"):
            raise InputError(f"{path} must end in .html or .png: the report is a page and a picture.")
        if os.path.lexists(target):
            raise InputError(f"{path} exists: give another name.")
        if not target.parent.is_dir():
            raise InputError(f"{target.parent} is no folder: make it, or give another name.")
        targets, beside = [target], target.parent
    with tempfile.TemporaryDirectory(prefix=".fastsort-", dir=beside) as partial:
        for target in targets:
            drawn = Path(partial) / f"report{target.suffix.lower()}"
            _draw(drawn, finished.particles, finished.result)
            os.replace(drawn, target)
    return targets


def read_list(path: str | os.PathLike[str], n_images: int) -> npt.NDArray[np.bool_]:
    """Read which images a list keeps.

    Parameters
    ----------
    path : path
        A text file with one index a line, counted from 0, in any order; what follows a # is a
        comment. Where the first comment says ``N of M``, both numbers are checked.
    n_images : int
        How many images there are.

    Returns
    -------
    keep : ndarray of bool, shape (n_images,)

    Raises
    ------
    InputError
        If a line is no index, names no image or one that an earlier line has, the list is empty, or
        it belongs to another set of images.
    """
    with check_readable(path) as file:
        text = file.read()
    if b"\0" in text:
        raise InputError(f"{path} is no list: it is binary. Give a text file with one index a line.")
    lines = text.decode("utf-8-sig", "replace").splitlines()
    comment = next((line for line in lines if line.lstrip().startswith("#")), "")
    counts = _SOME_OF_ALL.search(comment)
    said, of_all = (int(word.replace(",", "")) for word in counts.groups()) if counts else (None, n_images)
    if of_all != n_images:
        raise InputError(
            f"{path} is a list of another set: it was made from {of_all:,} images, and the input has "
            f"{n_images:,}. Give the input that the list was made from."
        )
    line_of: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", word):
            shown = word if len(word) <= 40 else f"{word[:37]}..."
            raise InputError(
                f"line {number} of {path} is {shown!r}: it must be an index, a whole number counted from 0."
            )
        index = int(word)
        if not 0 <= index < n_images:
            raise InputError(
                f"line {number} of {path} is {index}, but the input has {n_images} images, 0 to "
                f"{n_images - 1}: count from 0, or give the input that the list was made from."
            )
        if index in line_of:
            raise InputError(
                f"line {number} of {path} repeats {index}, which line {line_of[index]} has: remove one."
            )
        line_of[index] = number
    if not line_of and not said == 0:
        raise InputError(f"{path} names no images: write one index a line, counted from 0.")
    if said not in (None, len(line_of)):
        raise InputError(
            f"{path} says that it has {said:,} images, but names {len(line_of):,}: save it again, or "
            "correct its first line."
        )
    keep = np.zeros(n_images, dtype=bool)
    keep[list(line_of)] = True
    return keep


def write_choice(
    folder: str | os.PathLike[str],
    table: Table,
    keep: npt.NDArray[np.bool_],
    chosen: str | os.PathLike[str],
    source: str | os.PathLike[str],
) -> dict[str, Any]:
    """Write some images as kept and the others as rejected.

    Parameters
    ----------
    folder : path
        An existing folder. Gets ``kept`` and ``rejected`` as `write_subset` writes them, the lines of a
        STAR file byte for byte, and ``summary.json``.
    table : StarFile, CsDataset, PickedFiles or None
        What names the images; None for a stack.
    keep : ndarray of bool, shape (n,)
    chosen, source : path
        Of the list that says so, and of what it is a list of; for the summary.

    Returns
    -------
    summary : dict

    Raises
    ------
    OSError
        When the disk refuses.
    """
    folder = Path(folder)
    parts = subsets(keep, np.zeros_like(keep))
    for name, indices in parts.items():
        write_subset(folder, name, table, indices)
    summary = {
        "input": os.path.abspath(source),
        "list": os.path.abspath(chosen),
        "images": len(keep),
        "kept": len(parts["kept"]),
        "rejected": len(parts["rejected"]),
        "versions": software_versions(),
    }
    write_json(folder / _SUMMARY, summary)
    return summary
