"""What batches return, as one array of each kind for all images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from fastsort._types import Array


def join_batches(batches: Iterator[Sequence[Array]], n: int) -> list[Array]:
    """Put the arrays that batches return behind each other, while they come.

    Parameters
    ----------
    batches : iterator of sequences of arrays
        One or more; with one entry an image in each array.
    n : int
        Number of images in all batches.

    Returns
    -------
    arrays : list of ndarray
        With one entry for each of the n images. No two copies of all are ever in memory.
    """
    first = next(batches)
    arrays = [np.empty((n, *part.shape[1:]), part.dtype) for part in first]
    stop = 0
    for batch in chain([first], batches):
        start, stop = stop, stop + len(batch[0])
        for array, part in zip(arrays, batch, strict=True):
            array[start:stop] = part
    return arrays
