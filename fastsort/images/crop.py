"""Fourier crop of whole stacks to a smaller box, as two matrix products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_count, check_images


def fourier_crop(images: npt.ArrayLike, size: int) -> npt.NDArray[np.float32]:
    """Crop images in Fourier space to a smaller box with larger pixels.

    Parameters
    ----------
    images : ndarray, shape (n, d, d)
    size : int
        Box of the result in pixels, at most `d`. The pixel size grows by ``d / size``.

    Returns
    -------
    cropped : ndarray of float32, shape (n, size, size)
        The band-limited images on the coarser grid. Grey values keep their scale, and pixel
        ``d // 2`` of the input lies on pixel ``size // 2`` of the result.

    Raises
    ------
    InputError
        If `size` is below 1 or above `d`.
    """
    images = check_images(images)
    return apply_crop(images, crop_operator(images.shape[1], size))


def crop_operator(box: int, size: int) -> npt.NDArray[np.float32]:
    """Return the matrix that crops one axis of an image in Fourier space.

    Parameters
    ----------
    box, size : int
        Length of the axis before and after, in pixels.

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
    if size == box:
        return np.eye(box, dtype=np.float32)
    new = (np.arange(size) - size // 2)[:, None] / size
    old = (np.arange(box) - box // 2)[None, :] / box
    frequencies = np.arange(1, (size + 1) // 2)
    phase = 2 * np.pi * (new - old)
    operator = np.ones((size, box))
    for frequency in frequencies:
        operator += 2 * np.cos(frequency * phase)
    if size % 2 == 0:
        half = size // 2
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
