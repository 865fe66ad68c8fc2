"""The output folder: it appears complete or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastsort._checks import InputError, check_output_folder
from fastsort._disk import on_disk
from fastsort._types import FilePath
from fastsort.images.work import hold_lock

# The parts of a sorted set: each is a file, or a folder of coordinate files.
PARTS = ("kept", "rejected", "rescued")
# Folders of coordinate files: the parts of picks, and picks as RELION 3.1 looks for them.
COORDS = "coords"
# The files beside the page.
PAGE_IMAGES = "report_images"
FOLDERS = (*PARTS, COORDS, PAGE_IMAGES)
RESULTS, SUMMARY, SCORES = "results.npz", "summary.json", "scores.csv"
PICTURE, PAGE, MICROGRAPHS = "report.png", "report.html", "micrographs.csv"
IMAGES, CLASS_STACK = "images.csv", "classes.mrcs"
DENOISED, DENOISED_STACK, DENOISED_PICTURE = "denoised", "denoised.mrcs", "denoised.png"
DENOISED_CLASSES = "classes_denoised.png"
RESULT_NAMES = (
    *(f"{part}{ending}" for part in PARTS for ending in (".star", ".txt", ".cs", "_passthrough.cs")),
    "kept.mrcs",
    RESULTS,
    SUMMARY,
    SCORES,
    PICTURE,
    PAGE,
    MICROGRAPHS,
    "autopick.star",
    "particles.mrcs",
    "particles.star",
    "particles.cs",
    "particles_passthrough.cs",
    IMAGES,
    CLASS_STACK,
    DENOISED_STACK,
    DENOISED_PICTURE,
    "denoised.star",
    "denoised.cs",
    "denoised_passthrough.cs",
    "classes.star",
    "classes.png",
    DENOISED_CLASSES,
    "map.png",
)
# Lists, in a folder of many files, the names of these: some are those of the user's own files.
_LIST = ".fastsort"
# Files that are being written have another name until they are whole.
_UNFINISHED = re.compile(rf"({'|'.join(map(re.escape, RESULT_NAMES))})(\.\d+)?\.partial", re.ASCII)


@contextmanager
def results_folder(
    path: FilePath,
    *,
    overwrite: bool = False,
    inputs: Iterable[FilePath] = (),
) -> Iterator[Path]:
    """Give a hidden folder beside `path`, which takes its place if everything succeeds.

    The leftovers of a killed run beside `path` are removed first. If that run was killed while it
    replaced earlier results, the earlier results are put back.

    Parameters
    ----------
    path : path
        The folder for the results.
    overwrite : bool
        Whether earlier results may be replaced. A folder with any file that
        fastsort did not write is never touched.
    inputs : iterable of path
        Files that must not lie in the folder that is replaced.

    Yields
    ------
    folder : Path
        Empty; fill it with files named in `RESULT_NAMES`. Any exception
        removes it, and leaves `path` as it was.

    Raises
    ------
    InputError
        If results cannot be written there without danger to other files, or
        another run is writing there.
    OSError
        If the disk refuses.
    """
    # Whether it may be replaced is known only after the leftovers of a killed run are removed.
    target = check_output_folder(path, overwrite=True).resolve()
    inputs = list(inputs)
    _check_replaceable(target, inputs)
    new_parents = [parent for parent in target.parents if not parent.exists()]
    partial, old, lock = (target.with_name(f".{target.name}.{end}") for end in ("partial", "old", "lock"))
    try:
        with hold_lock(lock, f"another run is writing to {target}: wait, or give another output folder."):
            try:
                _heal(target, partial, old)
                check_output_folder(target, overwrite)
                _check_replaceable(target, inputs)
                partial.mkdir()
                try:
                    with on_disk(target):
                        yield partial
                    _check_replaceable(target, inputs)
                    _take_place(partial, target, old)
                except BaseException:
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
            finally:
                lock.unlink(missing_ok=True)
    except BaseException:
        with suppress(OSError):
            for parent in new_parents:
                parent.rmdir()
        raise


def listed_folder(folder: Path, names: Iterable[str]) -> Path:
    """Make a folder for files of these names, and record that they are ours, even if the run is killed.

    Parameters
    ----------
    folder : Path
        One of `PARTS`, `COORDS` or `PAGE_IMAGES`, in a folder from `results_folder`.
    names : iterable of str
        Names without line breaks; those in a folder inside have / between.
    """
    names = list(names)
    folder.mkdir()
    (folder / _LIST).write_text("".join(f"{name}\n" for name in names), "utf-8", "surrogateescape")
    for inside in {(folder / name).parent for name in names}:
        inside.mkdir(parents=True, exist_ok=True)
    return folder


def _heal(target: Path, partial: Path, old: Path) -> None:
    """Put back earlier results that a killed run had moved aside, and remove its other leftovers."""
    for folder in (partial, old):
        _check_leftovers(folder)
    # The summary goes first when earlier results are removed: without it they are no longer whole.
    if (old / SUMMARY).is_file() and not (target.is_dir() and any(target.iterdir())):
        old.rename(target)
    for folder in (partial, old):
        _clear(folder)


def _check_leftovers(folder: Path) -> None:
    """Refuse a folder of a killed run if it holds anything else."""
    if not os.path.lexists(folder):
        return
    held = sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else [folder]
    for item in held:
        if not _is_own(item):
            raise InputError(
                f"{folder} is for unfinished results, but {item.name} is none of them: "
                "move it, or give another output folder."
            )


def _is_own(item: Path) -> bool:
    return _is_result(item) or (
        item.is_file() and not item.is_symlink() and _UNFINISHED.fullmatch(item.name) is not None
    )


def _is_result(item: Path) -> bool:
    if item.is_symlink():
        return False
    if item.name in FOLDERS and item.is_dir():
        inside = [file for file in item.rglob("*") if file.is_symlink() or not file.is_dir()]
        return all(file.is_file() and not file.is_symlink() for file in inside) and {
            file.relative_to(item).as_posix() for file in inside
        } <= _listed(item)
    return item.name in RESULT_NAMES and item.is_file()


def _listed(folder: Path) -> set[str]:
    """Return the names that may stand in a folder of many files."""
    try:
        text = (folder / _LIST).read_text("utf-8", "surrogateescape")
    except OSError:
        return set()
    return {_LIST, *text.split("\n")}


def _clear(folder: Path) -> None:
    """Remove a folder, name by name and not as a tree: only files that we wrote may go."""
    if not folder.is_dir():
        return
    (folder / SUMMARY).unlink(missing_ok=True)
    for item in list(folder.iterdir()):
        if item.is_dir() and _is_own(item):
            # The list goes last: without it the others are no longer known to be ours.
            inside = sorted(item.rglob("*"), key=lambda file: (file.name == _LIST, -len(file.parts)))
            for file in inside:
                if file.is_dir():
                    file.rmdir()
                else:
                    file.unlink(missing_ok=True)
            item.rmdir()
        elif _is_own(item):
            item.unlink(missing_ok=True)
    folder.rmdir()


def _check_replaceable(target: Path, inputs: Iterable[FilePath]) -> None:
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
    items = sorted(target.iterdir())
    foreign = [item.name for item in items if not _is_result(item)]
    if foreign or (items and not (target / SUMMARY).is_file()):
        held = f"holds {foreign[0]}, which" if foreign else f"has no {SUMMARY}: its files"
        raise InputError(f"output folder {target} {held} fastsort did not write: give another output folder.")


def _take_place(partial: Path, target: Path, old: Path) -> None:
    if not target.is_dir() or not any(target.iterdir()):
        partial.rename(target)
        return
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    with suppress(OSError):
        _clear(old)
