"""How long it will take: every function that reports progress calls ``progress(done, total)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]


def part_of(progress: Progress | None, begin: float, end: float, total: int) -> Progress | None:
    """Return what a part of a job reports to, so that the caller of the whole job sees one count.

    Parameters
    ----------
    progress : callable or None
        What the whole job reports to.
    begin, end : float
        Where in the whole job the part begins and ends, 0 to 1.
    total : int
        What the whole job counts to.

    Returns
    -------
    progress : callable or None
        None where nobody wants to know.

    Examples
    --------
    >>> part_of(lambda done, total: print(done, "of", total), 0.5, 1.0, 200)(30, 60)
    150 of 200
    """
    if progress is None:
        return None
    return lambda done, of: progress(round(total * (begin + (end - begin) * done / of)), total)
