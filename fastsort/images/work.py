"""The work folder of a run: a run that was killed continues from what it has saved there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsort._checks import InputError
from fastsort._disk import on_disk
from fastsort._saved import load, save
from fastsort._types import Array, FilePath
from fastsort._version import __version__
from fastsort.particles.source import Particles, evenly_spaced
from fastsort.particles.store import ArrayImages

try:
    import fcntl
except ImportError:  # Windows has no such locks.
    fcntl = None  # type: ignore[assignment]

# How many images tell one array from another.
N_HASHED = 256
# How often to try for a lock whose folder another run removes at the same moment.
_TRIES = 100
_LOCK = "lock"
_FINGERPRINT = "fingerprint"
_PREFIX = "fastsort-"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*", re.ASCII)
_OWN_FILE = re.compile(
    rf"{_LOCK}|{_FINGERPRINT}(\.partial)?|{_NAME.pattern}\.(work(\.done)?|stage(\.partial)?)", re.ASCII
)


@dataclass(frozen=True)
class WorkFolder:
    """The folder in which a run saves what it has computed so far.

    Attributes
    ----------
    folder : Path
    temporary : bool
        Whether no later run will find it.
    """

    folder: Path
    temporary: bool = False

    def path(self, name: str) -> Path:
        """Return the path of a file of this run, ``NAME.work``; its journal is ``NAME.work.done``."""
        return self._place(name, "work")

    def stage(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the value of a stage: the saved one, or a new one, which is saved first if that is of use.

        Parameters
        ----------
        name : str
            Lower-case letters, digits, - and _.
        compute : callable
            Called without arguments if no whole value is saved.

        Returns
        -------
        value
            The saved value, read from its file. Its arrays have the same layout in memory whether the run
            was interrupted or not, so that later sums have the same bits. In a temporary folder nothing is
            saved, since nobody could go on from there.

        Raises
        ------
        ValueError
            If `name` has other characters.
        TypeError
            If the value cannot be saved; see `fastsort._saved.save`.
        """
        place = self._place(name, "stage")
        if self.temporary:
            return compute()
        if place.exists():
            with suppress(InputError):
                return load(place)
        save(place, compute())
        return load(place)

    def _place(self, name: str, kind: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a file of a work folder: use a-z, 0-9, - and _.")
        return self.folder / f"{name}.{kind}"


@contextmanager
def work_folder(path: FilePath | None, *, fingerprint: str, keep: bool = False) -> Iterator[WorkFolder]:
    """Open the work folder of a run.

    Parameters
    ----------
    path : path or None
        Made if it is missing. It may hold files of an earlier run and nothing else. None makes a
        temporary folder.
    fingerprint : str
        One line that says what is computed, from the function `fingerprint`. Files of a run with another
        fingerprint are removed first.
    keep : bool
        Whether the folder stays after success. After an error it stays in any case if it has a
        `path` and holds any results.

    Yields
    ------
    work : WorkFolder

    Raises
    ------
    InputError
        If another run is using the folder, it holds other files, or it cannot be made.
    """
    if path is None:
        if keep:
            raise InputError("a temporary work folder cannot be kept: name one to keep.")
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
            yield WorkFolder(Path(name), temporary=True)
        return
    folder = Path(os.path.abspath(path))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"work folder {folder} is a file: give a folder.")
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    _refuse_foreign(folder)
    with hold_lock(folder / _LOCK, f"another run is using work folder {folder}: wait, or give another one."):
        # Checked again: another run may have used it before this one had the lock.
        _refuse_foreign(folder)
        _remove_leftovers(folder, fingerprint)
        done = False
        try:
            with on_disk(folder):
                yield WorkFolder(folder)
            done = True
        finally:
            empty = all(item.name in (_LOCK, _FINGERPRINT) for item in folder.iterdir())
            if (done and not keep) or (empty and not done):
                _remove(folder, new_parents)


@contextmanager
def stays_until_done(path: FilePath, keep: bool = False) -> Iterator[None]:
    """Remove the work folder of a run only when what is made of its results is whole, too.

    Parameters
    ----------
    path : path
        As for `work_folder`, which is told to keep it.
    keep : bool
        Whether it stays then.
    """
    folder = Path(os.path.abspath(path))
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    yield
    if folder.is_dir() and not keep:
        with hold_lock(folder / _LOCK, f"another run is using work folder {folder}."):
            _remove(folder, new_parents)


@contextmanager
def hold_lock(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock, which the system lifts when the process ends in whatever way.

    Parameters
    ----------
    path : Path
        A file; it and its folder are made if they are missing. The file stays; remove it only while
        holding the lock. If the file system has no locks, the context runs without one.
    refusal : str
        Message of the error if another process holds the lock.

    Raises
    ------
    InputError
        If another process holds the lock, or the file cannot be made.
    """
    for trial in range(_TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab")
        except OSError as error:
            if isinstance(error, FileNotFoundError) and trial < _TRIES - 1:
                # The run that held the lock has just removed the folder.
                continue
            raise InputError(f"cannot write {path} ({error.strerror}): give another folder.") from None
        with file:
            _lock(file.fileno(), refusal)
            # If the file was removed before this run had the lock, another run may lock a new one.
            if _is_at(path, file.fileno()):
                yield
                return
    raise InputError(refusal)


def fingerprint(*parts: Any) -> str:
    """Return digits that differ from those of any other computation.

    Parameters
    ----------
    *parts
        All that the results depend on: anything that JSON can hold, paths, arrays, and Particles, of which
        the `source_identity` counts.

    Returns
    -------
    fingerprint : str
        64 hexadecimal digits. The version of the package counts too.

    Raises
    ------
    TypeError
        If a part is anything else.
    """
    text = json.dumps([__version__, *parts], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def source_identity(particles: Particles) -> str:
    """Return digits that differ from those of any other set of images, without reading all images.

    Parameters
    ----------
    particles : Particles

    Returns
    -------
    identity : str
        64 hexadecimal digits. For stacks the path, size and time of each file count, and where each image
        is; for an array or any other source its type and at most 256 evenly spaced images. Pixel size, CTF
        and micrographs count too.

    Raises
    ------
    InputError
        If a stack cannot be found.
    """
    store = particles.store
    parts: list[Any] = [len(particles), particles.box, particles.pixel_size]
    parts += [particles.ctf, particles.micrographs, type(store).__name__]
    parts += [_file_identity(path) for path in store.files()]
    parts += store.layout()
    if not store.files():
        n = len(particles)
        some = evenly_spaced(n, N_HASHED)
        if isinstance(store, ArrayImages):
            parts += [store.array.dtype.str, store.array.shape]
        parts += [particles.read(some)]
    return fingerprint(parts)


def _file_identity(path: str) -> list[Any]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check that the file is there.") from None
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def _plain(part: Any) -> Any:
    """Return something that JSON can hold."""
    if isinstance(part, Particles):
        return source_identity(part)
    if isinstance(part, np.ndarray):
        return [part.dtype.str, part.shape, _digest(part)]
    if isinstance(part, np.generic):
        return part.item()
    if isinstance(part, os.PathLike):
        return os.fspath(part)
    raise TypeError(f"a fingerprint cannot count a {type(part).__name__}.")


def _digest(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _lock(descriptor: int, refusal: str) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(refusal) from None
    except OSError:
        # Some network file systems have no locks; the run goes on without one.
        return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _is_own(item: Path) -> bool:
    if item.is_dir() and not item.is_symlink():
        return item.name.startswith(_PREFIX)
    return _OWN_FILE.fullmatch(item.name) is not None


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds anything that fastsort did not write."""
    if not folder.is_dir():
        return
    held = {item.name: _is_own(item) for item in folder.iterdir()}
    if held and not held.keys() & {_LOCK, _FINGERPRINT}:
        held = dict.fromkeys(held, False)
    for name in sorted(held):
        if not held[name]:
            raise InputError(
                f"work folder {folder} holds {name}, which fastsort did not write: give another work folder."
            )


def _remove_leftovers(folder: Path, fingerprint: str) -> None:
    """Remove what this run cannot use: unfinished files, and all files of a run with another fingerprint."""
    mark = folder / _FINGERPRINT
    try:
        same = mark.read_text() == fingerprint
    except (OSError, UnicodeDecodeError):
        same = False
    for item in folder.iterdir():
        # A run cannot continue from half a file, nor from the temporary folder of a stage.
        if item.is_dir() or item.name.endswith(".partial"):
            _discard(item)
        elif not same and item.name not in (_LOCK, _FINGERPRINT):
            _discard(item)
    if not same:
        # Written last, so that the files of a killed run always stand beside their own fingerprint.
        partial = mark.with_name(f"{_FINGERPRINT}.partial")
        partial.write_text(fingerprint)
        partial.replace(mark)


def _discard(item: Path) -> None:
    if item.is_dir():
        shutil.rmtree(item)
    else:
        item.unlink(missing_ok=True)


def _remove(folder: Path, new_parents: list[Path]) -> None:
    """Remove the files of the run, the lock last, and then the folders that were made for it, if empty."""
    with suppress(OSError):
        for item in sorted(folder.iterdir(), key=lambda item: (item.name == _LOCK, item.name)):
            if _is_own(item):
                _discard(item)
        folder.rmdir()
        for parent in new_parents:
            parent.rmdir()
