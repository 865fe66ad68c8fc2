"""Crop in Fourier space, as two matrix products: it brings images to another box and pixel size."""

from __future__ import annotations

import math

import numpy as np

from fastsort._checks import InputError, check_count
from fastsort._types import Images, Singles


def crop_operator(box: int, size: int, step: float | None = None) -> Singles:
    """Return the matrix that crops one axis of an image in Fourier space.

    Parameters
    ----------
    box, size : int
        Length of the axis before and after, in pixels.
    step : float, optional
        Width of a pixel after the crop, in pixels before it, at least 1. By default ``box / size``: the
        field of view stays the same. A smaller step shows only the middle of the image.

    Returns
    -------
    operator : ndarray of float32, shape (size, box)
        ``operator @ image @ operator.T`` is the cropped image.

    Raises
    ------
    InputError
        If `size` is below 1 or above `box`.

    Notes
    -----
    The operator is real: it sums the frequencies below half the new sampling rate. At exactly half
    the rate (even sizes only) the two frequencies of opposite sign fall together, and their mean is
    taken, so that a real image stays real.
    """
    size = check_count("working size", size)
    if size > box:
        raise InputError(
            f"working size must not exceed the box of {box} px; got {size} px: give a smaller one."
        )
    if size == box and step is None:
        return np.eye(box, dtype=np.float32)
    # Side of the old box in new pixels.
    width = size if step is None else box / step
    new = (np.arange(size) - size // 2)[:, None] / width
    old = (np.arange(box) - box // 2)[None, :] / box
    frequencies = np.arange(1, math.ceil(width / 2))
    phase = 2 * np.pi * (new - old)
    operator = np.ones((size, box))
    for frequency in frequencies:
        operator += 2 * np.cos(frequency * phase)
    if width % 2 == 0:
        half = width / 2
        operator += np.cos(2 * np.pi * half * new) * np.cos(2 * np.pi * half * old)
    return (operator / box).astype(np.float32)


def apply_crop(images: Images, operator: Singles) -> Images:
    """Crop a batch with a matrix from `crop_operator`.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
    operator : ndarray of float32, shape (size, d)

    Returns
    -------
    cropped : ndarray of float32, shape (n, size, size)
    """
    n, box = images.shape[:2]
    size = len(operator)
    if size == box:
        return images.copy()
    # One large product for the long axis: BLAS computes it several times faster than n small ones.
    rows = (images.reshape(n * box, box) @ operator.T).reshape(n, box, size)
    return np.matmul(operator, rows)
