"""Images chosen from a finished map, by class or by hand: read from its folder, written as subsets."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastsort._checks import InputError, check_readable
from fastsort._types import Array, Bools, FilePath, Indices
from fastsort.decide.result import BY_HAND
from fastsort.particles.open import TABLES, open_table
from fastsort.particles.table import NOTHING_ADDED, Added, NumberedImages, Table
from fastsort.report.choices import check_same, holds_choices, mark_of_map, read_choices
from fastsort.report.folder import IMAGES, SUMMARY
from fastsort.report.lists import read_list
from fastsort.report.subsets import write_subset
from fastsort.report.tables import formatted, software_versions, write_json


class Selection(NamedTuple):
    """Images chosen from a finished map.

    Attributes
    ----------
    keep : ndarray of bool, shape (n,)
    classes : list of int
        Numbers of the classes that are kept, from 1; of choices by hand, those with an image that is kept.
    table : Table
        The map's ``particles.star`` or ``particles.cs``.
    source : str
        Folder of the map.
    by_hand : ndarray of int8, shape (n,), or None
        1 for images kept by hand, -1 for rejected ones, 0 for all others.
    """

    keep: Bools
    classes: list[int]
    table: Table
    source: str
    by_hand: Array | None = None


def holds_map(folder: FilePath) -> bool:
    """Tell whether a folder is that of a finished map."""
    return all((Path(folder) / name).is_file() for name in (IMAGES, SUMMARY))


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
    label, _ = _read_images(folder)
    with check_readable(folder / SUMMARY) as file:
        n_classes = int(json.load(file)["classes"])
    numbers = sorted({*(discard or ()), *(keep or ())})
    for number in numbers:
        if not 1 <= number <= n_classes:
            raise InputError(f"class {number} is not in {folder}: it has classes 1 to {n_classes}.")
    kept = [k for k in range(1, n_classes + 1) if (k in numbers) == (keep is not None)]
    return Selection(np.isin(label, kept), kept, _read_table(folder, len(label)), str(folder))


def select_by_hand(folder: FilePath, path: FilePath) -> Selection:
    """Choose images of a finished map as a person did, without reading any image.

    Parameters
    ----------
    folder : path
        As `write_map` left it.
    path : path
        Choices made on the page of the map, or a list of indices to keep, counted from 0.

    Returns
    -------
    selection : Selection

    Raises
    ------
    InputError
        If the folder holds no map, or the choices were made on another one.
    """
    folder = Path(folder)
    label, keep = _read_images(folder)
    by_hand = np.zeros(len(keep), np.int8)
    if holds_choices(path):
        choices = read_choices(path)
        check_same(path, choices, len(keep), mark_of_map(label, keep))
        by_hand[choices.keep], by_hand[choices.reject] = 1, -1
    else:
        wanted = read_list(path, len(keep))
        by_hand[wanted != keep] = np.where(wanted, 1, -1)[wanted != keep]
    keep = np.where(by_hand == 0, keep, by_hand > 0)
    classes = np.unique(label[keep & (label > 0)]).tolist()
    return Selection(keep, classes, _read_table(folder, len(label)), str(folder), by_hand)


def _read_images(folder: Path) -> tuple[Indices, Bools]:
    """Return the class of each image, from 1, and whether the map keeps it."""
    if not holds_map(folder):
        raise InputError(f"{folder} holds no map: give the folder of a finished 'fastsort map'.")
    with open(folder / IMAGES, newline="", encoding="utf-8", errors="surrogateescape") as text:
        try:
            rows = [(int(row["class"]), row["keep"] == "1") for row in csv.DictReader(text)]
        except (KeyError, ValueError, TypeError, csv.Error):
            raise InputError(f"{folder / IMAGES} is damaged: make the map again.") from None
    columns = np.array(rows, dtype=np.intp).reshape(-1, 2)
    return columns[:, 0], columns[:, 1] > 0


def _read_table(folder: Path, n_images: int) -> Table:
    """Open what the map wrote of its images: a table in the format of the input, or nothing for a stack."""
    tables = (folder / f"particles{suffix}" for suffix in TABLES)
    table = next((path for path in tables if path.is_file()), None)
    return NumberedImages(None, n_images) if table is None else open_table(table)


def write_selection(folder: FilePath, selection: Selection) -> None:
    """Write ``kept`` and ``rejected`` as `write_map` does, and ``summary.json``.

    Choices by hand also get the map's ``images.csv`` with another `keep`, and with a column `by_hand`.

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
    table, by_hand = selection.table, selection.by_hand
    added = NOTHING_ADDED
    if by_hand is not None:
        labels = {"_fastsortByHand": formatted(by_hand, "%d")} if table.takes == "labels" else {}
        added = Added(labels, {"fastsort/by_hand": by_hand} if table.takes == "fields" else {})
        _write_images(folder / IMAGES, selection)
    for name, chosen in (("kept", selection.keep), ("rejected", ~selection.keep)):
        write_subset(folder, name, table, np.flatnonzero(chosen), added)
    kept = int(selection.keep.sum())
    summary = {
        "input": os.path.abspath(selection.source),
        "images": len(selection.keep),
        "kept": kept,
        "rejected": len(selection.keep) - kept,
        "kept_classes": selection.classes,
        "by_hand": 0 if by_hand is None else int(np.count_nonzero(by_hand)),
        "versions": software_versions(),
    }
    write_json(folder / SUMMARY, summary)


def _write_images(path: Path, selection: Selection) -> None:
    """Copy the map's table of images with what was chosen by hand."""
    assert selection.by_hand is not None
    earlier = Path(selection.source) / IMAGES
    with (
        open(earlier, newline="", encoding="utf-8", errors="surrogateescape") as old,
        open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as new,
    ):
        rows = csv.DictReader(old)
        writer = csv.DictWriter(new, [*(rows.fieldnames or ()), BY_HAND], lineterminator="\n")
        writer.writeheader()
        for row, keep, hand in zip(rows, selection.keep.tolist(), selection.by_hand.tolist(), strict=True):
            writer.writerow({**row, "keep": int(keep), BY_HAND: hand})
