"""Some of the images, in the format in which the user named them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastsort._types import Bools, Indices
from fastsort.particles.table import NOTHING_ADDED, Added, Table
from fastsort.report.folder import listed_folder


def subsets(keep: Bools, rescued: Bools) -> dict[str, Indices]:
    """Return the indices of each part that is written: together all images, none twice.

    Parameters
    ----------
    keep, rescued : ndarray of bool, shape (n,)

    Returns
    -------
    parts : dict of str to ndarray of intp
        "kept", "rejected" and, where any is, "rescued".
    """
    set_aside = rescued & ~keep
    parts = {"kept": keep, "rejected": ~keep & ~set_aside}
    if set_aside.any():
        parts["rescued"] = set_aside
    return {name: np.flatnonzero(chosen) for name, chosen in parts.items()}


def write_subset(folder: Path, name: str, table: Table, rows: Indices, added: Added = NOTHING_ADDED) -> None:
    """Write some images as the table that named them has them.

    Parameters
    ----------
    folder : Path
        Gets ``name.star`` or ``name.cs`` (with ``name_passthrough.cs``, where fields came from a second
        file), the folder ``name`` with a file for each file of picks, or, for a bare stack, ``name.txt``, a
        list of section numbers counted from 0.
    name : str
        One of `PARTS`.
    table : Table
    rows : ndarray of intp, shape (k,)
    added : Added, optional
        What is written beside what the table says.

    Raises
    ------
    OSError
        When the disk refuses.
    """
    if table.files_of_part:
        listed_folder(folder / name, table.files_of_part)
    table.write_part(folder, name, rows, added)
