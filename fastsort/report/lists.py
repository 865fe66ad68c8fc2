"""Lists of images, chosen by hand or on the page: read, and written as subsets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from fastsort._checks import InputError, check_readable
from fastsort._types import Bools, FilePath
from fastsort.particles.table import Table
from fastsort.report.folder import SUMMARY
from fastsort.report.subsets import subsets, write_subset
from fastsort.report.tables import software_versions, write_json

_SOME_OF_ALL = re.compile(r"\b(\d[\d,]*) of (\d[\d,]*)\b")


def read_list(path: FilePath, n_images: int) -> Bools:
    """Read which images a list keeps.

    Parameters
    ----------
    path : path
        A text file with one index a line, counted from 0, in any order. Text after a # is a comment. If
        the first comment says ``N of M``, both numbers are checked.
    n_images : int
        How many images there are.

    Returns
    -------
    keep : ndarray of bool, shape (n_images,)

    Raises
    ------
    InputError
        If a line is not an index, names no image, or repeats an earlier line; if the list is empty, or
        belongs to another set of images.
    """
    with check_readable(path) as file:
        text = file.read()
    if b"\0" in text:
        raise InputError(f"{path} is no list: it is binary. Give a text file with one index a line.")
    lines = text.decode("utf-8-sig", "replace").splitlines()
    n_listed = _check_comment(path, lines, n_images)
    indices = _indices(path, lines, n_images)
    if not indices and n_listed != 0:
        raise InputError(f"{path} names no images: write one index a line, counted from 0.")
    if n_listed not in (None, len(indices)):
        raise InputError(
            f"{path} says that it has {n_listed:,} images, but names {len(indices):,}: save it again, or "
            "correct its first line."
        )
    keep = np.zeros(n_images, dtype=bool)
    keep[indices] = True
    return keep


def _check_comment(path: FilePath, lines: list[str], n_images: int) -> int | None:
    """Return how many images the first comment says that a list has, and refuse a list of another set."""
    comment = next((line for line in lines if line.lstrip().startswith("#")), "")
    counts = _SOME_OF_ALL.search(comment)
    if counts is None:
        return None
    n_listed, of_all = (int(word.replace(",", "")) for word in counts.groups())
    if of_all != n_images:
        raise InputError(
            f"{path} is a list of another set: it was made from {of_all:,} images, and the input has "
            f"{n_images:,}. Give the input that the list was made from."
        )
    return n_listed


def _indices(path: FilePath, lines: list[str], n_images: int) -> list[int]:
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
    return list(line_of)


def write_choice(
    folder: FilePath,
    table: Table,
    keep: Bools,
    chosen: FilePath,
    source: FilePath,
) -> dict[str, Any]:
    """Write some images as kept and the others as rejected.

    Parameters
    ----------
    folder : path
        An existing folder. Gets ``kept`` and ``rejected`` as `write_subset` writes them, with the lines
        of a STAR file unchanged, and ``summary.json``.
    table : Table
        What names the images.
    keep : ndarray of bool, shape (n,)
    chosen, source : path
        The list, and the file whose images it lists; for the summary.

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
    write_json(folder / SUMMARY, summary)
    return summary
