"""The work folder of a run: what is done stays done, should the run be killed."""

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
import numpy.typing as npt

from fastsort._checks import InputError
from fastsort._saved import load, save
from fastsort._version import __version__
from fastsort.particles.source import ArrayImages, Particles

try:
    import fcntl
except ImportError:  # Windows has no such locks.
    fcntl = None  # type: ignore[assignment]

N_HASHED = 256
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
    """Where a run keeps what it has done.

    Attributes
    ----------
    folder : Path
    """

    folder: Path

    def path(self, name: str) -> Path:
        """Return where a file called `name` is to stand: ``NAME.work``, beside it ``NAME.work.done``."""
        return self._place(name, "work")

    def stage(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what a stage of the run has computed, now or before the run was killed.

        Parameters
        ----------
        name : str
            Of lower-case letters, digits, - and _.
        compute : callable
            Called without arguments where the stage is not whole yet.

        Returns
        -------
        value
            What was saved, read again: never the value that `compute` returned. Its arrays lie the
            same way in memory whether the run was interrupted or not, and so later sums have the same bits.

        Raises
        ------
        TypeError
            If the value cannot be saved; see `fastsort._saved.save`.
        """
        place = self._place(name, "stage")
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
def work_folder(
    path: str | os.PathLike[str] | None, *, fingerprint: str, keep: bool = False
) -> Iterator[WorkFolder]:
    """Open a folder in which a run can be killed and go on later.

    Parameters
    ----------
    path : path or None
        Made if it is missing. It may hold what an earlier run left and nothing else. None takes a
        temporary folder of the system.
    fingerprint : str
        One line that says what is computed, from `fingerprint`. What a run with another one has left is
        removed first.
    keep : bool
        Whether the folder stays when all went well. After an error it stays in any case if it was
        named and anything has been done.

    Yields
    ------
    work : WorkFolder

    Raises
    ------
    InputError
        If another run is using the folder, it holds files of anyone else, or it cannot be made.
    """
    if path is None:
        if keep:
            raise InputError("a temporary work folder cannot be kept: name one.")
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
            yield WorkFolder(Path(name))
        return
    folder = Path(os.path.abspath(path))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"work folder {folder} is a file: give another one.")
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    _refuse_foreign(folder)
    with hold_lock(folder / _LOCK, f"another run is using work folder {folder}: wait, or give another one."):
        # Once more: it may have changed hands before the lock was ours.
        _refuse_foreign(folder)
        _begin(folder, fingerprint)
        done = False
        try:
            yield WorkFolder(folder)
            done = True
        finally:
            idle = all(item.name in (_LOCK, _FINGERPRINT) for item in folder.iterdir())
            if (done and not keep) or (idle and not done):
                _remove(folder, new_parents)


@contextmanager
def hold_lock(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock that ends with the process, whatever ends it.

    Parameters
    ----------
    path : Path
        A file; made if it is missing, as is its folder. It stays: whoever removes it should do so
        while holding the lock. Where the file system knows no locks, nothing is held.
    refusal : str
        What to tell a user while somebody else holds it.

    Raises
    ------
    InputError
        If somebody else holds it, or the file cannot be made.
    """
    for trial in range(_TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab")
        except OSError as error:
            if isinstance(error, FileNotFoundError) and trial < _TRIES - 1:
                # The one who held the lock has just removed the folder.
                continue
            raise InputError(f"cannot write {path}: {error.strerror}: give another folder.") from None
        with file:
            _lock(file.fileno(), refusal)
            # A file that was removed before it was ours keeps nobody out.
            if _is_at(path, file.fileno()):
                yield
                return
    raise InputError(refusal)


def fingerprint(*parts: Any) -> str:
    """Return what tells one computation from another.

    Parameters
    ----------
    *parts
        What the results depend on: anything that JSON can hold, paths, arrays, and Particles, which
        count as `source_identity` has it.

    Returns
    -------
    fingerprint : str
        64 hexadecimal digits. Another version of the package gives another one.
    """
    text = json.dumps([__version__, *parts], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def source_identity(particles: Particles) -> str:
    """Return what tells one set of images from another, without reading them all.

    Parameters
    ----------
    particles : Particles

    Returns
    -------
    identity : str
        64 hexadecimal digits: of the path, size and time of every stack, and which image stands where;
        of an array or any other source, of its kind and at most 256 evenly spaced images. The pixel
        size, the CTF and the micrographs count too.
    """
    store = particles.store
    parts: list[Any] = [len(particles), particles.box, particles.pixel_size]
    parts += [particles.ctf, particles.micrographs, type(store).__name__]
    parts += [_file_identity(path) for path in store.files()]
    parts += store.layout()
    if not store.files():
        n = len(particles)
        some = np.unique(np.linspace(0, n - 1, min(n, N_HASHED)).round().astype(np.intp))
        if isinstance(store, ArrayImages):
            parts += [store.array.dtype.str, store.array.shape]
        parts += [particles.read(some)]
    return fingerprint(parts)


def _file_identity(path: str) -> list[Any]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
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


def _digest(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _lock(descriptor: int, refusal: str) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(refusal) from None
    except OSError:
        # Some network file systems know no locks: better unguarded than not at all.
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
    """Refuse a folder that holds anything which no run has written."""
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


def _begin(folder: Path, fingerprint: str) -> None:
    """Go on where a run with the same fingerprint was killed, or remove what another one left."""
    mark = folder / _FINGERPRINT
    try:
        same = mark.read_text() == fingerprint
    except (OSError, UnicodeDecodeError):
        same = False
    for item in folder.iterdir():
        # A folder of one stage is of no use to another run.
        if item.is_dir() or item.name.endswith(".partial"):
            _discard(item)
        elif not same and item.name not in (_LOCK, _FINGERPRINT):
            _discard(item)
    if not same:
        # The last, so that whatever a killed run leaves is known by its fingerprint.
        partial = mark.with_name(f"{_FINGERPRINT}.partial")
        partial.write_text(fingerprint)
        partial.replace(mark)


def _discard(item: Path) -> None:
    if item.is_dir():
        shutil.rmtree(item)
    else:
        item.unlink(missing_ok=True)


def _remove(folder: Path, new_parents: list[Path]) -> None:
    """Remove what is ours, the lock at the end, and every folder that is empty then and was made for it."""
    with suppress(OSError):
        for item in sorted(folder.iterdir(), key=lambda item: (item.name == _LOCK, item.name)):
            if _is_own(item):
                _discard(item)
        folder.rmdir()
        for parent in new_parents:
            parent.rmdir()
