"""A quarter of the pixels of a disk; the others are mirror images of these."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._types import Array, Floats, Images, Indices


class Quarter(NamedTuple):
    """The pixels of a disk with y >= 0 and x >= 0.

    Attributes
    ----------
    y, x : ndarray of intp, shape (p,)
        Counted from the centre of the disk.
    weights : ndarray of float64, shape (p,)
        Number of mirror images of each pixel, itself included: 1, 2 or 4.
    """

    y: Indices
    x: Indices
    weights: Floats

    def unfolded(self, samples: Floats, angular: Indices, sine: Array, box: int) -> Images:
        """Draw functions that vary with the angle as a cosine or a sine, from their values on the quarter.

        Parameters
        ----------
        samples : ndarray of float64, shape (L, p)
            Values of each function at these pixels.
        angular : ndarray of intp, shape (L,)
            How many times a function repeats in a full turn.
        sine : ndarray of bool or int, shape (L,)
            Whether it varies as a sine; otherwise as a cosine.
        box : int
            Side of the images in pixels.

        Returns
        -------
        images : ndarray of float32, shape (L, box, box)
            Zero outside the disk.
        """
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
    """Return the pixels of a quarter that are nearer to the centre than a radius in pixels."""
    y, x = np.mgrid[:radius, :radius].reshape(2, -1)
    # An even box has a row at -radius and none at radius; the disk leaves it out, to be symmetric.
    y, x = np.compress(y * y + x * x < radius * radius, [y, x], axis=1)
    return Quarter(y, x, np.float64(1 + (y > 0)) * (1 + (x > 0)))
