"""Some of the images, in the format in which the user named them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsort.particles.coordinates import PickedFiles, write_picks
from fastsort.particles.cs import CsDataset, passthrough_rows, write_cs
from fastsort.particles.source import Table
from fastsort.particles.star import StarFile, subset_bytes
from fastsort.report.folder import coordinate_folder

_ROWS_AT_ONCE = 50_000


def subsets(keep: npt.NDArray[np.bool_], rescued: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[np.intp]]:
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


def write_subset(
    folder: Path,
    name: str,
    table: Table | None,
    rows: npt.NDArray[np.intp],
    *,
    columns: Mapping[str, Sequence[str]] | None = None,
    fields: Mapping[str, npt.NDArray[Any]] | None = None,
    n_images: int | None = None,
) -> None:
    """Write some images as the table that named them has them.

    Parameters
    ----------
    folder : Path
        Gets ``name.star`` or ``name.cs`` (with ``name_passthrough.cs``, where fields came from a second
        file), the folder ``name`` with a file for each file of coordinates, or, for a bare stack,
        ``name.txt``, a list of section numbers counted from 0.
    name : str
        One of `PARTS`.
    table : StarFile, CsDataset, PickedFiles or None
    rows : ndarray of intp, shape (k,)
    columns : mapping of str to sequence of str, optional
        More columns for STAR files, one word for every image of the set.
    fields : mapping of str to ndarray, optional
        More fields for .cs files, one entry for every image of the set.
    n_images : int, optional
        How many there are in all, for the list.
    """
    if isinstance(table, StarFile):
        with open(folder / f"{name}.star", "wb") as file:
            file.writelines(subset_bytes(table, rows, columns))
    elif isinstance(table, CsDataset):
        write_cs(folder / f"{name}.cs", table, rows, fields or {})
        if table.passthrough is not None:
            write_cs(folder / f"{name}_passthrough.cs", table.passthrough, passthrough_rows(table, rows), {})
    elif isinstance(table, PickedFiles):
        names = [Path(path).name for path in table.files]
        write_picks(coordinate_folder(folder / name, names), table, rows, columns, fields)
    else:
        _write_list(folder / f"{name}.txt", name, rows, n_images)


def subset_name(name: str, table: Table | None) -> str:
    """Return what a part is called in the results, such as ``rescued.star`` or ``rescued/``."""
    if isinstance(table, StarFile):
        return f"{name}.star"
    if isinstance(table, CsDataset):
        return f"{name}.cs"
    return f"{name}/" if isinstance(table, PickedFiles) else f"{name}.txt"


def _write_list(path: Path, name: str, indices: npt.NDArray[np.intp], n_images: int | None) -> None:
    of_all = "" if n_images is None else f", {len(indices)} of {n_images}"
    with open(path, "w", encoding="ascii") as file:
        file.write(f"# {name} images{of_all}: section numbers of the input stack, counted from 0\n")
        for start in range(0, len(indices), _ROWS_AT_ONCE):
            file.writelines(f"{index}\n" for index in indices[start : start + _ROWS_AT_ONCE].tolist())
