"""What is computed of many images some at a time, so that the memory it takes does not grow with the set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fastsort._types import Floats

AT_ONCE = 1 << 15


def parts(n: int) -> Iterator[slice]:
    """Yield slices that divide n images into parts."""
    for start in range(0, n, AT_ONCE):
        yield slice(start, min(start + AT_ONCE, n))


def in_parts(function: Callable[[Floats], Floats], values: Floats) -> Floats:
    """Return what a function, which looks at every value by itself, makes of many values, shape (n,)."""
    found = np.empty(len(values))
    for part in parts(len(values)):
        found[part] = function(values[part])
    return found
