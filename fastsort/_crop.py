"""Crop in Fourier space as two matrix products: what brings images to another box and pixel size."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_count


def crop_operator(box: int, size: int, step: float | None = None) -> npt.NDArray[np.float32]:
    """Return the matrix that crops one axis of an image in Fourier space.

    Parameters
    ----------
    box, size : int
        Length of the axis before and after, in pixels.
    step : float, optional
        Width of a pixel after, in pixels before, at least 1; by default ``box / size``, by which the field
        of view stays the same. A smaller one shows only the middle.

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
        raise InputError(f"working size must not exceed the box of {box} px; got {size} px.")
    if size == box and step is None:
        return np.eye(box, dtype=np.float32)
    # How many of the new pixels the old box would hold.
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


def apply_crop(images: npt.NDArray[np.float32], operator: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
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
    # One large product for the long axis: BLAS runs it several times faster than n small ones.
    rows = (images.reshape(n * box, box) @ operator.T).reshape(n, box, size)
    return np.matmul(operator, rows)
