"""Fourier crop of whole stacks to a smaller box."""

from __future__ import annotations

import numpy.typing as npt

from fastsort._checks import check_images
from fastsort._crop import apply_crop, crop_operator
from fastsort._types import Images


def fourier_crop(images: npt.ArrayLike, size: int) -> Images:
    """Crop images in Fourier space to a smaller box with larger pixels.

    Parameters
    ----------
    images : ndarray, shape (n, d, d)
        Never modified.
    size : int
        Side of the cropped images in pixels, at most `d`. Their pixels are ``d / size`` times as wide.

    Returns
    -------
    cropped : ndarray of float32, shape (n, size, size)
        The same field of view on a coarser grid, without the frequencies that this cannot hold. Grey
        values keep their scale, and pixel ``d // 2`` of the input lies on pixel ``size // 2`` of the result.

    Raises
    ------
    InputError
        If `images` are not square real images of 16 to 1024 px, or `size` is below 1 or above `d`.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(3, 0, box=32)
    >>> cropped = fs.fourier_crop(images, 16)
    >>> cropped.shape
    (3, 16, 16)
    >>> bool(abs(cropped.mean() - images.mean()) < 1e-4)
    True
    """
    images = check_images(images)
    return apply_crop(images, crop_operator(images.shape[1], size))
