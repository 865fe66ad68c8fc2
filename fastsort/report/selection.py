"""Chosen classes of a finished map: read from its folder, and written as subsets."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastsort._checks import InputError, check_readable
from fastsort._types import Bools, FilePath
from fastsort.particles.open import TABLES, open_table
from fastsort.particles.table import NumberedImages, Table
from fastsort.report.folder import IMAGES, SUMMARY
from fastsort.report.subsets import write_subset
from fastsort.report.tables import software_versions, write_json


class Selection(NamedTuple):
    """The images in chosen classes of a finished map.

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

    keep: Bools
    classes: list[int]
    table: Table
    source: str


def select_classes(
    folder: FilePath,
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
        If the folder holds no map or has no such class, or unless exactly one of the two is given.
    """
    if (discard is None) == (keep is None):
        given = "neither" if keep is None else "both"
        raise InputError(f"give either the classes to discard or the classes to keep; got {given}.")
    folder = Path(folder)
    if not (folder / IMAGES).is_file() or not (folder / SUMMARY).is_file():
        raise InputError(f"{folder} holds no map: give the folder of a finished 'fastsort map'.")
    with check_readable(folder / SUMMARY) as file:
        n_classes = int(json.load(file)["classes"])
    numbers = sorted({*(discard or ()), *(keep or ())})
    for number in numbers:
        if not 1 <= number <= n_classes:
            raise InputError(f"class {number} is not in {folder}: it has classes 1 to {n_classes}.")
    with open(folder / IMAGES, newline="", encoding="utf-8", errors="surrogateescape") as text:
        label = np.array([int(row["class"]) for row in csv.DictReader(text)], dtype=np.intp)
    kept = [k for k in range(1, n_classes + 1) if (k in numbers) == (keep is not None)]
    return Selection(np.isin(label, kept), kept, _read_table(folder, len(label)), str(folder))


def _read_table(folder: Path, n_images: int) -> Table:
    """Open what the map wrote of its images: a table in the format of the input, or nothing for a stack."""
    tables = (folder / f"particles{suffix}" for suffix in TABLES)
    table = next((path for path in tables if path.is_file()), None)
    return NumberedImages(None, n_images) if table is None else open_table(table)


def write_selection(folder: FilePath, selection: Selection) -> None:
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
    write_json(folder / SUMMARY, summary)
