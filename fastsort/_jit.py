"""The one decorator through which every compiled kernel of the project passes."""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numba
from numba.core import event

# nnan and ninf are left out on purpose: kernels must be able to see a NaN or an infinity. They ask whether
# abs(x) < infinity. isfinite(x) does not work: numba compiles it as x - x, and reassoc turns that into 0.
_FLAGS: dict[str, Any] = {
    "nogil": True,
    # Nobody calls kernels from C: a wrapper for that would only take time to compile.
    "no_cfunc_wrapper": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` as a serial kernel that runs without the interpreter lock.

    The compiled code is cached on disk, unless the environment says ``FASTSORT_NUMBA_CACHE=0`` or no folder
    for the cache can be written. numba looks in ``NUMBA_CACHE_DIR``, beside the source, and in
    ``XDG_CACHE_HOME`` or ``~/.cache``; we look in the temporary folder too.

    Kernels copy arrays number by number. To assign an array to a part of another compiles the text of an
    error, too, which takes three seconds.
    """
    if os.environ.get("FASTSORT_NUMBA_CACHE", "1") != "0":
        # It raises this where it finds no folder.
        with suppress(RuntimeError):
            return numba.njit(cache=True, **_FLAGS)(function)
        folder = own_temporary_folder(tempfile.gettempdir())
        if folder is not None:
            with suppress(RuntimeError), _cache_in(folder):
                return numba.njit(cache=True, **_FLAGS)(function)
    return numba.njit(**_FLAGS)(function)


@functools.cache
def own_temporary_folder(temporary: str) -> str | None:
    """Return a folder for the cache that nobody else can have written to; None where there is none.

    What is read from a cache is run. So the folder is ours, nobody else may use it, and nobody else may put
    another one in its place.
    """
    if not hasattr(os, "getuid"):
        return None
    folder = os.path.join(temporary, f"fastsort-cache-{os.getuid()}")
    with suppress(OSError):
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        state, above = os.lstat(folder), os.stat(temporary).st_mode
        is_ours = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077
        if is_ours and (above & stat.S_ISVTX or not above & (stat.S_IWGRP | stat.S_IWOTH)):
            return folder
    return None


@contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    """Let numba keep the cache of what is compiled inside the context in a folder."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = folder
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


@contextmanager
def told_of_compiling(say: Callable[[str], None]) -> Iterator[None]:
    """Say once that kernels are being compiled, as soon as one is that is not in the cache."""

    def tell(kept: bool) -> None:
        if kept:
            say("compiling (the first time after an installation), for up to half a minute")
        else:
            say("compiling; no folder can be written to keep this for the next time: set NUMBA_CACHE_DIR")

    with at_first_compiling(tell):
        yield


@contextmanager
def at_first_compiling(act: Callable[[bool], None]) -> Iterator[None]:
    """Call a function once, as soon as a kernel is compiled, with whether that is kept in the cache."""
    with event.install_listener("numba:compile", _First(act)):
        yield


class _First(event.Listener):
    def __init__(self, act: Callable[[bool], None]) -> None:
        self.act: Callable[[bool], None] | None = act

    def on_start(self, event: Any) -> None:
        kernel = event.data["dispatcher"]
        # Other libraries compile their own, some of them every time.
        if self.act is None or not kernel.py_func.__module__.startswith("fastsort."):
            return
        act, self.act = self.act, None
        act(kernel._cache.cache_path is not None)

    def on_end(self, event: Any) -> None:
        pass


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel's helper into the kernel itself.

    A helper that is too large for the compiler to inline by itself exists twice: optimised alone, and
    within the kernel. Which of them runs depends on whether the kernel comes from the cache, and their
    last bits may differ.
    """
    return numba.njit(inline="always", **_FLAGS)(function)
