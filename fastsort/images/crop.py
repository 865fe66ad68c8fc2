"""Fourier crop of whole stacks to a smaller box."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsort._checks import check_images
from fastsort._crop import apply_crop, crop_operator


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
