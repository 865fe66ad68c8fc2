"""The one decorator through which every compiled kernel of the project passes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numba

# nnan and ninf are left out on purpose: kernels must be able to see a NaN or an infinity. They ask whether
# abs(x) < infinity. isfinite(x) does not work: numba compiles it as x - x, and reassoc turns that into 0.
_FLAGS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` as a serial kernel that runs without the interpreter lock.

    The compiled code is cached on disk, unless the environment says
    ``FASTSORT_NUMBA_CACHE=0`` or no folder for the cache can be written.
    """
    if os.environ.get("FASTSORT_NUMBA_CACHE", "1") != "0":
        try:
            return numba.njit(cache=True, **_FLAGS)(function)
        except RuntimeError:
            pass  # a read-only installation: numba found nowhere to keep the cache
    return numba.njit(**_FLAGS)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel's helper into the kernel itself.

    A helper that is too large for the compiler to inline by itself exists twice: optimised alone, and
    within the kernel. Which of them runs depends on whether the kernel comes from the cache, and their
    last bits may differ.
    """
    return numba.njit(inline="always", **_FLAGS)(function)
