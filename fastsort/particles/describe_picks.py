"""What files of picks hold, said without the micrographs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastsort._checks import InputError
from fastsort._types import FilePath, Floats
from fastsort.particles.files import locate_files
from fastsort.particles.open import PICKS, read_picks
from fastsort.particles.picks import PickFile
from fastsort.particles.star import read_star

# What is said of files, by the end of their names.
KINDS = {
    ".star": "picks in a STAR file",
    ".cs": "picks of cryoSPARC",
    ".box": "picks of EMAN",
    ".cbox": "picks of crYOLO",
    ".json": "picks of EMAN2",
    ".txt": "picks of Topaz",
}


class PicksDescription(NamedTuple):
    """What files of picks hold.

    Attributes
    ----------
    path : str
        What was asked for: a file, a list of files or a folder.
    kinds : dict of str to int
        How many files there are of each kind, such as "picks of EMAN".
    n_picks : int
    n_repeated : int
        Picks at the very place of an earlier one in the same micrograph.
    n_micrographs : int
        Those that are named; a file that names none is one of them.
    n_empty : int
        Files without picks.
    reach : tuple of float
        Lowest and highest x, lowest and highest y, in pixels of the micrographs, and in .cs files in parts of
        their sides; NaN where there are no picks.
    has_segments : bool
        Whether some follow filaments.
    has_ctf : bool
        Whether defocus stands with some of them.
    missing : list of str
        Files that a list names and that are not there.
    problems : list of str
        Why some files cannot be read; a sentence each.
    """

    path: str
    kinds: dict[str, int]
    n_picks: int
    n_repeated: int
    n_micrographs: int
    n_empty: int
    reach: tuple[float, float, float, float]
    has_segments: bool
    has_ctf: bool
    missing: list[str]
    problems: list[str]

    @property
    def usable(self) -> bool:
        """Whether all files are there and can be read."""
        return not (self.missing or self.problems)


def describe_picks(path: FilePath, *, data_dir: FilePath | None = None) -> PicksDescription:
    """Say what a file of picks holds, a STAR file that lists such files, or a folder of them.

    Parameters
    ----------
    path : path
        Of a format that `read_picks` knows, or a folder.
    data_dir : path, optional
        Folder in which to look first for the files that a list names.

    Returns
    -------
    description : PicksDescription

    Raises
    ------
    InputError
        If the file cannot be read or holds no picks, or the folder has no files of picks.
    """
    path = os.fspath(path)
    missing: list[str] = []
    if os.path.isdir(path):
        files = sorted(str(file) for file in Path(path).iterdir() if _may_hold_picks(file))
        if not files:
            raise InputError(f"{path} holds neither a finished run of fastsort nor files of picks.")
    else:
        files, missing = _listed(path, data_dir)
    picks: list[PickFile] = []
    problems: list[str] = []
    for file in files:
        try:
            picks.append(read_picks(file))
        except InputError as error:
            if files == [path]:
                raise
            problems.append(str(error))
    if files and not picks:
        raise InputError(problems[0])
    endings = [Path(some.path).suffix.lower() for some in picks]
    kinds = [KINDS.get(ending, f"picks ({ending})") for ending in endings]
    x = np.concatenate([np.empty(0), *(some.x for some in picks)])
    y = np.concatenate([np.empty(0), *(some.y for some in picks)])
    named = [name for some in picks for name in _micrographs_of(some)]
    places = set(zip(named, x.tolist(), y.tolist(), strict=True))
    return PicksDescription(
        path=path,
        kinds={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        n_picks=len(x),
        n_repeated=len(x) - len(places),
        n_micrographs=len(set(named)),
        n_empty=sum(not len(some.x) for some in picks),
        reach=(*_ends(x), *_ends(y)),
        has_segments=any(some.has_segments for some in picks),
        has_ctf=any(some.ctf is not None for some in picks),
        missing=missing,
        problems=problems,
    )


def _may_hold_picks(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in PICKS and not file.name.startswith(".")


def _listed(path: str, data_dir: FilePath | None) -> tuple[list[str], list[str]]:
    """Return the files that a list names, and those of them that are not there; or the one file."""
    if Path(path).suffix.lower() == ".star":
        block = read_star(path).table_with("_rlnMicrographName", "_rlnMicrographCoordinates")
        if block is not None:
            names = block.column("_rlnMicrographCoordinates")
            paths = locate_files(names, path, data_dir)
            return (
                [place for place in paths if place is not None],
                [name for name, place in zip(names, paths, strict=True) if place is None],
            )
    return [path], []


def _ends(values: Floats) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if len(values) else (np.nan, np.nan)


def _micrographs_of(picks: PickFile) -> list[str]:
    """Return the micrograph of each pick; a file that names none stands for its own."""
    return [picks.path] * len(picks.x) if picks.micrographs is None else picks.micrographs
