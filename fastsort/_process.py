"""Settings of the whole process, changed for a while: number of BLAS threads, warning filters; its memory.

Callers in several threads overlap, so the first caller saves the settings and the last one restores them.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

_counting = threading.Lock()
# Callers that hold BLAS to one thread, and callers that ignore warnings.
_blas_callers: set[object] = set()
_silent_callers: set[object] = set()
# For each file of a BLAS: the library, and its number of threads before the first caller.
_threads_before: dict[str, tuple[Any, int]] = {}
# Holds the warning filters from before the first caller.
_filters = warnings.catch_warnings()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread until the last caller in this process has left.

    Notes
    -----
    More threads would multiply with the workers and, since their number changes the order of sums, the
    bits of the result. The limits of `threadpoolctl` cannot overlap: the end of the first would give BLAS its
    threads back too early, and the end of the second would leave it with one for ever.
    """
    # Looked for again when modules were imported since, which may have loaded libraries.
    libraries = _blas_libraries(len(sys.modules))
    caller, own = object(), []
    with _counting:
        _blas_callers.add(caller)
        for library in libraries:
            number = library.get_num_threads()
            if number == 1:
                continue
            # OpenMP keeps a number for each thread.
            if getattr(library, "threading_layer", "") == "openmp":
                own.append((library, number))
            else:
                _threads_before.setdefault(library.filepath, (library, number))
            _set_threads(library, 1)
    try:
        yield
    finally:
        for library, number in own:
            _set_threads(library, number)
        with _counting:
            _blas_callers.discard(caller)
            if not _blas_callers:
                _restore_threads()


@lru_cache(maxsize=1)
def _blas_libraries(n_modules: int) -> list[Any]:
    from threadpoolctl import ThreadpoolController

    libraries: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return libraries


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore all warnings until the last caller in this process has left."""
    global _filters

    caller = object()
    with _counting:
        if not _silent_callers:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.simplefilter("ignore")
        _silent_callers.add(caller)
    try:
        yield
    finally:
        with _counting:
            if caller in _silent_callers:
                _silent_callers.remove(caller)
                if not _silent_callers:
                    _filters.__exit__(None, None, None)


def return_memory() -> None:
    """Give memory that was freed back to the system: glibc keeps it, for each thread."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _set_threads(library: Any, number: int) -> None:
    """Set the number of threads, even if threadpoolctl would let only another thread do so."""
    release = getattr(library, "clear_controlling_thread", lambda force: None)
    release(force=True)
    library.set_num_threads(number)
    release(force=True)


def _restore_threads() -> None:
    for library, number in _threads_before.values():
        _set_threads(library, number)
    _threads_before.clear()


def _forget_callers() -> None:
    """Restore the settings in a forked child, where the callers in other threads do not exist."""
    global _counting
    _counting = threading.Lock()
    _blas_callers.clear()
    _restore_threads()
    if _silent_callers:
        _silent_callers.clear()
        _filters.__exit__(None, None, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_callers)
