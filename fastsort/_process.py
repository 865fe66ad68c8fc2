"""What the whole process shares, changed for a while and put back: BLAS threads and warning filters.

Callers in several threads overlap. One that puts back what it found must not have found what another one
had set.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_counting = threading.Lock()
_inside: set[object] = set()
_silent: set[object] = set()
# By file: the library, and how many threads it had before the first caller came.
_found: dict[str, tuple[Any, int]] = {}
# What has the warning filters of before the first caller.
_filters = warnings.catch_warnings()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread until the last caller in this process has left.

    Notes
    -----
    More threads would multiply with the workers and, since their number changes the order of sums, the
    bits of the result. Of two overlapping limits of `threadpoolctl`, the second may be without effect; the
    end of the first gives BLAS its threads back too early, and the end of the second takes them for ever.
    """
    from threadpoolctl import ThreadpoolController

    # Each time, for libraries may have been loaded since.
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    caller, own = object(), []
    with _counting:
        _inside.add(caller)
        for library in libraries:
            number = library.get_num_threads()
            if number == 1:
                continue
            # With OpenMP each thread has a number of its own.
            if getattr(library, "threading_layer", "") == "openmp":
                own.append((library, number))
            else:
                _found.setdefault(library.filepath, (library, number))
            _set_threads(library, 1)
    try:
        yield
    finally:
        for library, number in own:
            _set_threads(library, number)
        with _counting:
            _inside.discard(caller)
            if not _inside:
                _put_back()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore all warnings until the last caller in this process has left."""
    global _filters

    caller = object()
    with _counting:
        if not _silent:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.simplefilter("ignore")
        _silent.add(caller)
    try:
        yield
    finally:
        with _counting:
            if caller in _silent:
                _silent.remove(caller)
                if not _silent:
                    _filters.__exit__(None, None, None)


def _set_threads(library: Any, number: int) -> None:
    """Set the number even where threadpoolctl lets another thread alone do so."""
    release = getattr(library, "clear_controlling_thread", lambda force: None)
    release(force=True)
    library.set_num_threads(number)
    release(force=True)


def _put_back() -> None:
    for library, number in _found.values():
        _set_threads(library, number)
    _found.clear()


def _begin_again() -> None:
    """In a forked child, whose callers in other threads will never leave."""
    global _counting
    _counting = threading.Lock()
    _inside.clear()
    _put_back()
    if _silent:
        _silent.clear()
        _filters.__exit__(None, None, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)
