"""A map as files: classes and their averages for RELION, one table of images, and selections of classes."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_readable
from fastsort.invariants.averages import filter_averages
from fastsort.particles.mrc import write_stack
from fastsort.particles.open import TABLES, open_table
from fastsort.particles.source import Particles
from fastsort.particles.table import Added, NumberedImages, Table
from fastsort.report.subsets import write_subset
from fastsort.report.tables import formatted, software_versions, write_json, write_rows

if TYPE_CHECKING:
    from fastsort.classify import MapResult

STACK = "classes.mrcs"
TABLE = "images.csv"
# In a STAR file, of images that stand in no class.
NO_SCORE = 999999.0


def write_map(folder: str | os.PathLike[str], particles: Particles, result: MapResult) -> None:
    """Write all results but the pictures.

    Parameters
    ----------
    folder : path
        An existing folder. Gets ``classes.mrcs``, the averages, each ring weighted by how far it can be
        trusted; ``classes.star``, which names them and says what is known of each; ``images.csv``, a
        line an image; ``summary.json``; and ``kept`` and ``rejected`` as `write_subset` writes them. Where a
        STAR or .cs file was opened, also ``particles.star`` or ``particles.cs``: all of it, with the classes.
        Classes are counted from 1, as in RELION; 0 is no class.
    particles : Particles
        What was classified.
    result : MapResult
        As from `classify_particles`.

    Raises
    ------
    OSError
        When the disk refuses.
    """
    folder = Path(folder)
    classes = result.classes
    averages = classes.averages
    _write_images(folder / TABLE, particles, result)
    table = particles.table
    added = Added(_star_columns(result), {"fastsort/class": (classes.label + 1).astype(np.uint32)})
    if table.names is not None:
        write_subset(folder, "particles", table, np.arange(len(particles)), added)
    for name, keep in (("kept", result.keep), ("rejected", ~result.keep)):
        write_subset(folder, name, table, np.flatnonzero(keep), added)
    if len(averages.size):
        stack = filter_averages(averages.averages, averages.frc)
        box = stack.shape[1]
        write_stack(folder / STACK, [stack], result.pixel_size, len(stack), box)
        _write_classes(folder / "classes.star", result)
    write_json(folder / "summary.json", summarize_map(particles, result))


def summarize_map(particles: Particles, result: MapResult) -> dict[str, Any]:
    """Return what ``summary.json`` holds; an unknown number is NaN."""
    classes = result.classes
    n, kept = len(particles), int(result.keep.sum())
    seconds = result.seconds["total"]
    groups = classes.group
    size = classes.averages.size
    return {
        "input": particles.path and os.path.abspath(particles.path),
        "images": n,
        "kept": kept,
        "rejected": n - kept,
        "without_class": int((classes.label < 0).sum()),
        "classes": len(size),
        "junk_classes": (np.flatnonzero(classes.ranking.junk) + 1).tolist(),
        "groups": [int(size[groups == k].sum()) for k in range(int(groups.max(initial=-1)) + 1)],
        "embedding": classes.map.embedding,
        "components": classes.map.n_components,
        "box": particles.box,
        "pixel_size": particles.pixel_size,
        "class_box": classes.averages.averages.shape[1],
        "class_pixel_size": result.pixel_size,
        "phase_flipped": result.phase_flipped,
        "parameters": result.parameters,
        "seconds": result.seconds,
        "images_per_second": n / seconds if seconds > 0 else math.nan,
        "versions": software_versions(),
    }


def _star_columns(result: MapResult) -> dict[str, Sequence[str]]:
    classes = result.classes
    return {
        "_rlnClassNumber": formatted(classes.label + 1, "%d"),
        "_fastsortClassScore": formatted(np.minimum(result.score, NO_SCORE), "%.6g"),
        "_fastsortMapX": formatted(classes.map.coordinates[:, 0], "%.5g"),
        "_fastsortMapY": formatted(classes.map.coordinates[:, 1], "%.5g"),
    }


def _write_images(path: Path, particles: Particles, result: MapResult) -> None:
    classes = result.classes
    averages = classes.averages
    # From working pixels to those of the input.
    scale = particles.box / averages.averages.shape[1]
    numbers: dict[str, npt.NDArray[Any]] = {
        "class": classes.label + 1,
        "keep": result.keep,
        "score": result.score,
        "group": np.append(classes.group, -1)[classes.label] + 1,
        "displaced": classes.displaced,
        "likeness": averages.score,
        "angle": averages.angle,
        "offset_x": averages.shift[:, 1] * scale,
        "offset_y": averages.shift[:, 0] * scale,
        "map_x": classes.map.coordinates[:, 0],
        "map_y": classes.map.coordinates[:, 1],
    }
    write_rows(path, particles, numbers)


def _write_classes(path: Path, result: MapResult) -> None:
    """Write one line a class, with RELION's labels where it has one."""
    classes = result.classes
    averages, ranking = classes.averages, classes.ranking
    known = math.isfinite(result.pixel_size)
    columns: dict[str, npt.NDArray[Any]] = {
        "rlnClassNumber": np.arange(1, len(averages.size) + 1),
        "rlnClassDistribution": averages.size / max(1, len(classes.label)),
        "rlnEstimatedResolution": np.minimum(averages.resolution, NO_SCORE),
        "fastsortClassSize": averages.size,
        "fastsortClassScore": np.minimum(ranking.score, NO_SCORE),
        "fastsortClassJunk": ranking.junk,
        "fastsortClassGroup": classes.group + 1,
        "fastsortClassSpread": averages.spread,
        **{
            f"fastsortClass{name.capitalize()}": getattr(ranking, name)
            for name in ("displaced", "contrast", "sharpness", "compactness")
        },
    }
    if not known:
        del columns["rlnEstimatedResolution"]
    labels = ["rlnReferenceImage", *columns]
    names = [f"{k:06d}@{STACK}" for k in range(1, len(averages.size) + 1)]
    rows = zip(names, *(formatted(values, "%.6g") for values in columns.values()), strict=True)
    header = ["", "# version 30001", "", "data_model_classes", "", "loop_"]
    header += [f"_{label} #{i}" for i, label in enumerate(labels, 1)]
    text = "\n".join(chain(header, map(" ".join, rows), ["", ""]))
    path.write_text(text, encoding="ascii")


# A finished map, cut again.


class Selection(NamedTuple):
    """Images of a finished map that stand in chosen classes.

    Attributes
    ----------
    keep : ndarray of bool, shape (n,)
    classes : list of int
        Numbers of the classes that are kept, from 1.
    table : Table
        The map's ``particles.star`` or ``particles.cs``.
    source : str
        Folder of the map.
    """

    keep: npt.NDArray[np.bool_]
    classes: list[int]
    table: Table
    source: str


def select_classes(
    folder: str | os.PathLike[str],
    *,
    discard: Iterable[int] | None = None,
    keep: Iterable[int] | None = None,
) -> Selection:
    """Choose images of a finished map by their class, without reading any image.

    Parameters
    ----------
    folder : path
        As `write_map` left it.
    discard, keep : iterable of int
        Numbers of classes, from 1; one of the two. Images without a class are never kept.

    Returns
    -------
    selection : Selection

    Raises
    ------
    InputError
        If the folder holds no map, a class is not in it, or not one of the two is given.
    """
    if (discard is None) == (keep is None):
        raise InputError("give either the classes to discard or the classes to keep, not both.")
    folder = Path(folder)
    if not (folder / TABLE).is_file() or not (folder / "summary.json").is_file():
        raise InputError(f"{folder} holds no map: give the folder that 'fastsort map' has written.")
    with check_readable(folder / "summary.json") as file:
        n_classes = int(json.load(file)["classes"])
    numbers = sorted({*(discard or ()), *(keep or ())})
    for number in numbers:
        if not 1 <= number <= n_classes:
            raise InputError(f"class {number} is not in {folder}: it has classes 1 to {n_classes}.")
    with open(folder / TABLE, newline="", encoding="utf-8", errors="surrogateescape") as text:
        label = np.array([int(row["class"]) for row in csv.DictReader(text)], dtype=np.intp)
    kept = [k for k in range(1, n_classes + 1) if (k in numbers) == (keep is not None)]
    return Selection(np.isin(label, kept), kept, _read_table(folder, len(label)), str(folder))


def _read_table(folder: Path, n_images: int) -> Table:
    tables = (folder / f"particles{suffix}" for suffix in TABLES)
    table = next((path for path in tables if path.is_file()), None)
    return NumberedImages(None, n_images) if table is None else open_table(table)


def write_selection(folder: str | os.PathLike[str], selection: Selection) -> None:
    """Write ``kept`` and ``rejected`` as `write_map` does, and ``summary.json``.

    Parameters
    ----------
    folder : path
        An existing folder.
    selection : Selection

    Raises
    ------
    OSError
        When the disk refuses.
    """
    folder = Path(folder)
    for name, chosen in (("kept", selection.keep), ("rejected", ~selection.keep)):
        write_subset(folder, name, selection.table, np.flatnonzero(chosen))
    kept = int(selection.keep.sum())
    summary = {
        "input": os.path.abspath(selection.source),
        "images": len(selection.keep),
        "kept": kept,
        "rejected": len(selection.keep) - kept,
        "kept_classes": selection.classes,
        "versions": software_versions(),
    }
    write_json(folder / "summary.json", summary)
