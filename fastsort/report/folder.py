"""The output folder: it appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastsort._checks import InputError, check_output_folder

RESULT_NAMES = (
    "kept.star",
    "rejected.star",
    "kept.txt",
    "rejected.txt",
    "kept.mrcs",
    "scores.csv",
    "summary.json",
    "report.png",
    "particles.star",
    "images.csv",
    "classes.mrcs",
    "classes.star",
    "classes.png",
    "map.png",
)
_MARK = "summary.json"


@contextmanager
def results_folder(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> Iterator[Path]:
    """Give a hidden folder beside `path`, which takes its place when all went well.

    Parameters
    ----------
    path : path
        The folder that is to hold the results.
    overwrite : bool
        Whether earlier results may be replaced. A folder that holds anything
        which fastsort did not write is never touched.
    inputs : iterable of path
        Files that must not lie in the folder which is replaced.

    Yields
    ------
    folder : Path
        Empty; to be filled with files named in `RESULT_NAMES`. Any exception
        removes it, and leaves at `path` what was there.

    Raises
    ------
    InputError
        If results cannot be written there, or would endanger other files.
    OSError
        If the disk refuses.
    """
    target = check_output_folder(path, overwrite).resolve()
    _check_replaceable(target, inputs)
    new_parents = [parent for parent in target.parents if not parent.exists()]
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")
    try:
        partial.mkdir(parents=True)
        yield partial
        _check_replaceable(target, inputs)
        _take_place(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            for parent in new_parents:
                parent.rmdir()
        raise


def _check_replaceable(target: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    if not target.is_dir():
        return
    here = Path.cwd()
    if target == here or target in here.parents:
        raise InputError(f"the output folder {target} is in use as the working folder: give another one.")
    if os.path.ismount(target):
        raise InputError(f"the output folder {target} is a mount point: give a folder inside it.")
    for name in inputs:
        if target in Path(name).resolve().parents:
            raise InputError(f"input {name} lies in the output folder {target}: give another output folder.")
    found = sorted(target.iterdir())
    foreign = [item.name for item in found if item.name not in RESULT_NAMES or not item.is_file()]
    if foreign or (found and not (target / _MARK).is_file()):
        held = f"holds {foreign[0]}, which" if foreign else f"has no {_MARK}: its files"
        raise InputError(f"output folder {target} {held} fastsort did not write: give another output folder.")


def _take_place(partial: Path, target: Path) -> None:
    if not target.is_dir() or not any(target.iterdir()):
        partial.rename(target)
        return
    old = partial.with_name(partial.name + ".old")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    # Name by name, not as a tree: only what was written by us may go.
    with suppress(OSError):
        for name in RESULT_NAMES:
            (old / name).unlink(missing_ok=True)
        old.rmdir()
