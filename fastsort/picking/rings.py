"""What lies on rings about places of a micrograph."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fastsort._jit import kernel
from fastsort._types import Floats, Indices, Numbers, Singles


def rings_about(pixels: Singles, row: Indices, column: Indices, n_rings: int) -> tuple[Floats, Floats]:
    """Measure mean and variance on rings about places.

    Parameters
    ----------
    pixels : ndarray of float32, shape (height, width)
        What lies beyond the edges counts as 0.
    row, column : ndarray of intp, shape (m,)
    n_rings : int
        Rings at radii of 0, 1, ... pixels.

    Returns
    -------
    mean, variance : ndarray of float64, shape (m, n_rings)
    """
    mean = np.empty((len(row), n_rings))
    variance = np.empty((len(row), n_rings))
    down, right, ring, count = _offsets(n_rings)
    _rings(pixels, row.astype(np.int32), column.astype(np.int32), down, right, ring, count, mean, variance)
    return mean, variance


@lru_cache(maxsize=8)
def _offsets(n_rings: int) -> tuple[Numbers, Numbers, Numbers, Floats]:
    """Return the places within the outermost ring, the ring of each, and how many each ring has."""
    line = np.arange(-n_rings, n_rings + 1)
    ring = np.rint(np.hypot(line[:, None], line)).astype(np.int32)
    inside = ring < n_rings
    down, right = np.nonzero(inside)
    number = ring[inside]
    count = np.bincount(number, minlength=n_rings).astype(np.float64)
    return (down - n_rings).astype(np.int32), (right - n_rings).astype(np.int32), number, count


@kernel
def _rings(pixels, row, column, down, right, ring, count, mean, variance):
    # row, column: (m,); down, right, ring: (k,); count: (r,). Writes mean and variance: (m, r).
    height, width = pixels.shape
    for i in range(len(row)):
        for r in range(len(count)):
            mean[i, r] = 0.0
            variance[i, r] = 0.0
        for k in range(len(ring)):
            y = row[i] + down[k]
            x = column[i] + right[k]
            if 0 <= y < height and 0 <= x < width:
                value = np.float64(pixels[y, x])
                mean[i, ring[k]] += value
                variance[i, ring[k]] += value * value
        for r in range(len(count)):
            mean[i, r] = mean[i, r] / count[r]
            variance[i, r] = max(variance[i, r] / count[r] - mean[i, r] * mean[i, r], 0.0)
