"""The pixels of a disk, by a quarter of them: the others are mirror images."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


class Quarter(NamedTuple):
    """Pixels of a disk with y >= 0 and x >= 0, counted from its centre, and how many mirror images each has.

    Attributes
    ----------
    y, x : ndarray of intp, shape (p,)
    weights : ndarray of float64, shape (p,)
    """

    y: Indices
    x: Indices
    weights: Array

    def unfolded(
        self, samples: Array, angular: Indices, sine: npt.NDArray[Any], box: int
    ) -> npt.NDArray[np.float32]:
        """Images (L, box, box) of functions that go as cosines or sines, from their samples (L, p)."""
        functions = np.zeros((len(samples), box, box), dtype=np.float32)
        down = np.where(sine, -1, 1).astype(np.float32)[:, np.newaxis]
        across = down * np.where(angular % 2, -1, 1).astype(np.float32)[:, np.newaxis]
        values, c = samples.astype(np.float32), box // 2
        functions[:, c - self.y, c - self.x] = down * across * values
        functions[:, c - self.y, c + self.x] = down * values
        functions[:, c + self.y, c - self.x] = across * values
        functions[:, c + self.y, c + self.x] = values
        return functions


def quarter_disk(radius: int) -> Quarter:
    """Pixels nearer to the centre than a radius."""
    y, x = np.mgrid[:radius, :radius].reshape(2, -1)
    # Even boxes have a row at -radius and none at radius: without it the disk is symmetric.
    y, x = np.compress(y * y + x * x < radius * radius, [y, x], axis=1)
    return Quarter(y, x, np.float64(1 + (y > 0)) * (1 + (x > 0)))
