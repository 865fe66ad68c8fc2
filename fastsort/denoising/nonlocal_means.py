"""Denoising by non-local means: each pixel becomes a mean of pixels with similar surroundings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_count, check_images, check_positive
from fastsort._jit import inlined, kernel
from fastsort._types import Images
from fastsort.denoising.patches import check_deviation


def nonlocal_means(
    images: npt.ArrayLike,
    strength: float = 0.8,
    deviation: float = 1.0,
    *,
    patch: int = 5,
    distance: int = 6,
) -> Images:
    """Denoise images by non-local means.

    Parameters
    ----------
    images : array_like, shape (n, d, d)
        Intensities in any unit; never modified.
    strength : float
        Difference of two patches at which a weight has fallen to 1/e, in standard deviations of the noise.
    deviation : float
        Standard deviation of the noise, in the unit of the images. 0 returns the images.
    patch : int
        Side of the patches that are compared, in pixels; odd.
    distance : int
        How far similar patches are sought, down and right, in pixels.

    Returns
    -------
    denoised : ndarray of float32, shape (n, d, d)

    Raises
    ------
    InputError
        If the images are not square, or a parameter is out of range.

    Notes
    -----
    Pixel i becomes the mean of the pixels j of the search window with weights
    exp(-max(D_ij - 2 s^2, 0) / h^2) [1]_, where s is `deviation`, h = `strength` * `deviation`, and D_ij is
    the mean squared difference of the patches about i and j; all pixels of a patch count the same. Patches
    that reach beyond the edges see the image mirrored about its outermost pixels. Differences of all
    patches at one shift are running sums [2]_, and each difference serves two pixels.

    References
    ----------
    .. [1] Buades, Coll, Morel. A review of image denoising algorithms, with a new one. Multiscale Model.
       Simul. 4 (2005), 490-530.
    .. [2] Darbon, Cunha, Chan, Osher, Jensen. Fast nonlocal filtering applied to electron cryomicroscopy.
       ISBI 2008, 1331-1334.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsort.denoising.nonlocal_means import nonlocal_means
    >>> clean = np.zeros((1, 32, 32), np.float32)
    >>> clean[:, 8:24, 8:24] = 3
    >>> noisy = clean + np.random.default_rng(0).normal(size=clean.shape)
    >>> bool(((nonlocal_means(noisy) - clean) ** 2).mean() < 0.25)
    True
    """
    images = check_images(images)
    strength = check_positive("strength", strength)
    deviation = check_deviation(deviation)
    patch = check_count("patch", patch)
    distance = check_count("distance", distance)
    d = images.shape[1]
    if patch % 2 == 0:
        raise InputError(f"patch must be odd; got {patch} px: make it one pixel smaller or larger.")
    if max(patch // 2, distance) >= d:
        raise InputError(f"patch and distance must fit into images of {d} px; got {patch} and {distance} px.")
    if deviation == 0 or not len(images):
        return images
    denoised = np.empty_like(images)
    margin = patch // 2
    padded = np.empty((d + 2 * margin, d + 2 * margin), np.float32)
    weights = np.empty((d, d), np.float32)
    above, squares, weight = (np.empty(d + 2 * margin, np.float32) for _ in range(3))
    _nonlocal_means(
        images, strength, deviation, margin, distance, padded, weights, above, squares, weight, denoised
    )
    return denoised


@inlined
def _decay(x):
    """Return exp(-x) for x >= 0 with a relative error below 1e-6, in operations that the compiler vectorises.

    exp(-x) is the 64th power of exp(-x / 64) up to x = 24; beyond that it stays at the value there.
    """
    t = min(x, np.float32(24)) * np.float32(-1 / 64)
    value = np.float32(1) + t * (
        np.float32(1)
        + t
        * (np.float32(1 / 2) + t * (np.float32(1 / 6) + t * (np.float32(1 / 24) + t * np.float32(1 / 120))))
    )
    value *= value
    value *= value
    value *= value
    value *= value
    value *= value
    return value * value


@inlined
def _add_weighted(weight, pixels, weights, sums):
    # All (m,). Adds to weights and sums.
    for x in range(len(weight)):
        weights[x] += weight[x]
        sums[x] += weight[x] * pixels[x]


@kernel
def _nonlocal_means(
    images, strength, deviation, margin, distance, padded, weights, above, squares, weight, denoised
):
    # images: (n, d, d); padded: (d + 2 * margin, same), weights: (d, d) and lines: (3, d + 2 * margin) are
    # overwritten. Writes denoised: (n, d, d).
    n, d, _ = images.shape
    whole = d + 2 * margin
    patch = 2 * margin + 1
    # Differences in units of the strength: sums of squares become exponents at once.
    unit = np.float32(1.0 / (strength * deviation * patch))
    free = np.float32(2.0 / (strength * strength))
    zero = np.float32(0)
    for i in range(n):
        image, sums = images[i], denoised[i]
        for y in range(whole):
            v = abs(y - margin)
            v = v if v < d else 2 * (d - 1) - v
            for x in range(whole):
                u = abs(x - margin)
                u = u if u < d else 2 * (d - 1) - u
                padded[y, x] = image[v, u] * unit
        for y in range(d):
            for x in range(d):
                weights[y, x] = np.float32(1)
                sums[y, x] = image[y, x]
        for down in range(distance + 1):
            for right in range(-distance if down > 0 else 1, distance + 1):
                # Pairs: pixel (y, x) with pixel (y + down, x + right), both in the image.
                start, stop = max(-right, 0), d - max(right, 0)
                length = stop - start
                # Slices that begin where a loop begins: the compiler vectorises loops over them.
                for x in range(whole):
                    above[x] = zero
                for y in range(-2 * margin, d - down):
                    new = padded[y + 2 * margin][start : stop + 2 * margin]
                    other = padded[y + 2 * margin + down][start + right : stop + right + 2 * margin]
                    for x in range(len(new)):
                        change = new[x] - other[x]
                        above[x] += change * change
                    if y < 0:
                        continue
                    for x in range(length):
                        squares[x] = above[x]
                    for k in range(1, patch):
                        shifted = above[k : k + length]
                        for x in range(length):
                            squares[x] += shifted[x]
                    for x in range(length):
                        weight[x] = _decay(max(squares[x] - free, zero))
                    _add_weighted(
                        weight[:length],
                        image[y + down][start + right : stop + right],
                        weights[y][start:stop],
                        sums[y][start:stop],
                    )
                    _add_weighted(
                        weight[:length],
                        image[y][start:stop],
                        weights[y + down][start + right : stop + right],
                        sums[y + down][start + right : stop + right],
                    )
                    old = padded[y][start : stop + 2 * margin]
                    other = padded[y + down][start + right : stop + right + 2 * margin]
                    for x in range(len(old)):
                        change = old[x] - other[x]
                        above[x] -= change * change
        for y in range(d):
            for x in range(d):
                sums[y, x] /= weights[y, x]
