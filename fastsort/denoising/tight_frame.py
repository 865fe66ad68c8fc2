"""Denoising with a tight frame that is learned from the images themselves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_count, check_images, check_not_empty, check_positive
from fastsort._types import Images, Singles
from fastsort.denoising.patches import (
    add_patches,
    check_deviation,
    check_patch,
    cosine_waves,
    overlap,
    patches_by_rows,
    sample_patches,
)

# Threshold of coefficients while a frame is learned and when images are denoised, in deviations of the noise.
THRESHOLD = 2.9


class Frame(NamedTuple):
    """A tight frame of all shifts of some filters.

    Attributes
    ----------
    filters : ndarray of float32, shape (p * p, p * p)
        Filters of p x p pixels, one a row; orthonormal. The first is constant.
    """

    filters: Singles


def learn_frame(
    images: npt.ArrayLike,
    deviation: float = 1.0,
    *,
    patch: int = 8,
    threshold: float = THRESHOLD,
    n_rounds: int = 20,
    n_patches: int = 20_000,
    seed: int = 0,
) -> Frame:
    """Learn the tight frame in which patches of images are sparsest.

    Parameters
    ----------
    images : array_like, shape (n, d, d)
        All images, or enough of them. Never modified.
    deviation : float
        Standard deviation of the noise, in the unit of the images.
    patch : int
        Side p of a filter, in pixels.
    threshold : float
        Coefficients below it count as 0, in standard deviations of the noise.
    n_rounds : int
        Rounds of alternation; 0 leaves the discrete cosine transform.
    n_patches : int
        Patches to learn from, at random places.
    seed : int

    Returns
    -------
    frame : Frame

    Raises
    ------
    InputError
        If there are no images, they are not square, or a parameter is out of range.

    Notes
    -----
    The data-driven tight frame [1]_ minimises sum |W g - c|^2 + t^2 |c|_0 over orthogonal matrices W and
    sparse c, where g are patches and t = `threshold` * `deviation`. Each round hard-thresholds W g; then W is
    the orthogonal matrix nearest to c g^T, which an SVD gives. It starts from the discrete cosine transform.
    The constant filter stays as it is, so only what patches have besides their means is learned.

    References
    ----------
    .. [1] Cai, Ji, Shen, Ye. Data-driven tight frame construction and image denoising. Appl. Comput. Harmon.
       Anal. 37 (2014), 89-105.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsort.denoising.tight_frame import learn_frame, tight_frame
    >>> clean = np.zeros((4, 32, 32), np.float32)
    >>> clean[:, 8:24, 8:24] = 3
    >>> noisy = clean + np.random.default_rng(0).normal(size=clean.shape)
    >>> frame = learn_frame(noisy)
    >>> bool(((tight_frame(noisy, frame) - clean) ** 2).mean() < 0.25)
    True
    """
    images = check_images(images)
    check_not_empty(len(images))
    least = check_deviation(deviation) * check_positive("threshold", threshold)
    patch = check_patch(patch, images.shape[1])
    n_rounds = check_count("n_rounds", n_rounds, 0)
    patches = sample_patches(images, patch, check_count("n_patches", n_patches), seed)
    patches -= patches.mean(axis=1, keepdims=True)
    waves = cosine_waves(patch, patch)
    filters = np.kron(waves, waves)
    for _ in range(n_rounds):
        coefficients = patches @ filters[1:].T.astype(np.float32)
        coefficients[np.abs(coefficients) < least] = 0
        # The nearest orthogonal matrix among those that leave the constant alone.
        product = (coefficients.T @ patches).astype(np.float64) @ filters[1:].T
        left, _, right = np.linalg.svd(product)
        filters[1:] = left @ right @ filters[1:]
    return Frame(filters.astype(np.float32))


def tight_frame(
    images: npt.ArrayLike, frame: Frame, deviation: float = 1.0, *, threshold: float = THRESHOLD
) -> Images:
    """Denoise images by thresholding their coefficients in a tight frame.

    Parameters
    ----------
    images : array_like, shape (n, d, d)
        Intensities in any unit; never modified.
    frame : Frame
        From `learn_frame`.
    deviation : float
        Standard deviation of the noise, in the unit of the images. 0 returns the images.
    threshold : float
        Strength: coefficients below it become 0, in standard deviations of the noise.

    Returns
    -------
    denoised : ndarray of float32, shape (n, d, d)

    Raises
    ------
    InputError
        If the images are not square or smaller than the filters, or a parameter is out of range.

    Notes
    -----
    The coefficients of all overlapping patches are hard-thresholded, except those of the constant filter.
    Then the patches are put back, averaged where they overlap.
    """
    images = check_images(images)
    deviation = check_deviation(deviation)
    least = check_positive("threshold", threshold) * deviation
    filters = np.asarray(frame.filters, np.float32)
    patch = round(len(filters) ** 0.5)
    if filters.ndim != 2 or filters.shape != (patch * patch, patch * patch):
        raise InputError(f"filters must have shape (p * p, p * p); got {filters.shape}: use learn_frame.")
    check_patch(patch, images.shape[1])
    if deviation == 0 or not len(images):
        return images
    count = overlap(images.shape[1], patch)
    denoised = np.zeros_like(images)
    for image, total in zip(images, denoised, strict=True):
        mean = np.float32(image.mean(dtype=np.float64))
        for first, patches in patches_by_rows(image - mean, patch):
            coefficients = patches @ filters.T
            noise = np.abs(coefficients) < least
            noise[:, 0] = False
            coefficients[noise] = 0
            add_patches(coefficients @ filters, first, total)
        total /= count
        total += mean
    return denoised
