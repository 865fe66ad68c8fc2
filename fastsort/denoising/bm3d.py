"""Denoising by BM3D: similar blocks of an image are filtered together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsort._checks import check_count, check_images, check_positive
from fastsort._jit import inlined, kernel
from fastsort._types import Floats, Images
from fastsort.denoising.patches import check_deviation, cosine_waves

BLOCK = 8
AREA = BLOCK * BLOCK
# Blocks are sought so many pixels up, down, left and right of a reference block.
REACH = 19
# Blocks of a group; a power of two, and no image has fewer blocks.
GROUP = 16
# Distance of the reference blocks, in pixels, in the first and in the second stage.
STEPS = (3, 2)
# Coefficients of a group below this are noise, in deviations of the noise.
THRESHOLD = 2.8
# An image's mean is a true offset above this, in standard deviations of the mean of noise.
LEAST_MEAN = 3.0
# Shape of the Kaiser window that weights the pixels of a block.
BETA = 2.0
# Analysis filters of the biorthogonal spline wavelet 1.5 (Cohen, Daubechies, Feauveau 1992), times sqrt(2).
SMOOTH = np.array([3, -3, -22, 22, 128, 128, 22, -22, -3, 3]) / 128


def bm3d(
    images: npt.ArrayLike, deviation: float = 1.0, *, strength: float = 1.0, n_passes: int = 1
) -> Images:
    """Denoise images by block matching and 3D filtering.

    Parameters
    ----------
    images : array_like, shape (n, d, d)
        Intensities in any unit; never modified.
    deviation : float
        Standard deviation of the noise, in the unit of the images. 0 returns the images.
    strength : float
        Factor on the deviation that both stages assume: above 1 they smooth more.
    n_passes : int
        How often the second stage runs, each time guided by the result before. [1]_ has one pass. A second
        one makes the error of projections a few percent smaller at signal-to-noise ratios from 0.05 up,
        and that of photographs larger.

    Returns
    -------
    denoised : ndarray of float32, shape (n, d, d)

    Raises
    ------
    InputError
        If the images are not square, or a parameter is out of range.

    Notes
    -----
    Both stages [1]_ group each reference block of 8 x 8 pixels with the 15 blocks nearest to it within 19
    pixels, transform the group in three dimensions, and put the filtered blocks back, averaged where they
    overlap. The first stage compares blocks of the noisy image and sets coefficients below 2.8 deviations
    to 0 (wavelet bior1.5). The second compares blocks of the first result, whose coefficients (discrete
    cosine transform) make the Wiener filter. Along a group both use the Walsh-Hadamard transform.

    Sizes of blocks and windows are those of [1]_; 2.8 is its threshold for strong noise. Groups of 16 and
    steps of 2 pixels in the second stage differ from it: on projections in white noise they were better than
    groups of 32 and steps of 3. No block is too far to join a group, as the signal may have any level. An
    image's mean is set aside first, if it is more than 3 of its own deviations; else it counts as noise like
    all else.

    References
    ----------
    .. [1] Dabov, Foi, Katkovnik, Egiazarian. Image denoising by sparse 3-D transform-domain collaborative
       filtering. IEEE Trans. Image Process. 16 (2007), 2080-2095.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsort.denoising.bm3d import bm3d
    >>> clean = np.zeros((1, 32, 32), np.float32)
    >>> clean[:, 8:24, 8:24] = 3
    >>> noisy = clean + np.random.default_rng(0).normal(size=clean.shape)
    >>> bool(((bm3d(noisy) - clean) ** 2).mean() < 0.15)
    True
    """
    images = check_images(images)
    deviation = check_deviation(deviation) * check_positive("strength", strength)
    n_passes = check_count("n_passes", n_passes)
    if deviation == 0 or not len(images):
        return images
    mean = images.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    mean[np.abs(mean) * images.shape[1] < LEAST_MEAN * deviation] = 0
    scaled = ((images - mean) / deviation).astype(np.float32)
    denoised = _filtered(scaled, scaled, False, _wavelets())
    for _ in range(n_passes):
        denoised = _filtered(scaled, denoised, True, cosine_waves(BLOCK, BLOCK))
    return (denoised * deviation + mean).astype(np.float32)


def _filtered(images: Images, guides: Images, wiener: bool, transform: Floats) -> Images:
    """Filter images, whose noise has deviation 1, by groups of blocks that are similar in their guides."""
    forward, backward = transform.astype(np.float32), np.linalg.inv(transform).astype(np.float32)
    window = np.multiply.outer(np.kaiser(BLOCK, BETA), np.kaiser(BLOCK, BETA)).astype(np.float32)
    blocks = np.empty((2 * REACH + 1, images.shape[1] - BLOCK + 1, AREA), np.float32)
    distances = np.empty(2 * REACH + 1, np.float32)
    near, place = np.empty(GROUP, np.float32), np.empty((GROUP, 2), np.intp)
    group, guide = np.empty((GROUP, AREA), np.float32), np.empty((GROUP, AREA), np.float32)
    half = np.empty(AREA, np.float32)
    weights = np.empty(images.shape[1:], np.float32)
    filtered = np.empty_like(images)
    _filter_groups(
        images,
        guides,
        wiener,
        STEPS[wiener],
        np.float32(THRESHOLD),
        forward,
        backward,
        window.ravel(),
        blocks,
        distances,
        near,
        place,
        group,
        guide,
        half,
        weights,
        filtered,
    )
    return filtered


def _wavelets() -> Floats:
    """Return the full decomposition of BLOCK samples by the wavelet bior1.5, periodic, rows of unit norm."""
    whole = np.eye(BLOCK)
    n = BLOCK
    while n > 1:
        level = np.zeros((n, n))
        for k in range(n // 2):
            np.add.at(level[k], (2 * k - 4 + np.arange(10)) % n, SMOOTH)
            np.add.at(level[n // 2 + k], (2 * k + np.arange(2)) % n, (1.0, -1.0))
        whole[:n] = level @ whole[:n]
        n //= 2
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    return whole


@kernel
def _filter_groups(
    images,
    guides,
    wiener,
    step,
    threshold,
    forward,
    backward,
    window,
    blocks,
    distances,
    near,
    place,
    group,
    guide,
    half,
    weights,
    filtered,
):
    # images, guides: (n, d, d); forward, backward: (b, b); window: (b * b,). Overwritten: blocks:
    # (2 * reach + 1, d - b + 1, b * b), where a row of blocks lies at its number modulo the length;
    # distances: (2 * reach + 1,); near: (g,) and place: (g, 2); group, guide: (g, b * b); half: (b * b,);
    # weights: (d, d). Writes filtered: (n, d, d).
    n, d, _ = images.shape
    side = d - BLOCK + 1
    zero, one = np.float32(0), np.float32(1)
    for i in range(n):
        image, seen, total = images[i], guides[i], filtered[i]
        weights[:] = 0
        total[:] = 0
        ready = 0
        # The last reference blocks lie at the edge, whatever the step.
        for down in range(0, side - 1 + step, step):
            y = min(down, side - 1)
            while ready < min(y + REACH + 1, side):
                for x in range(side):
                    _cut(seen, ready, x, blocks[ready % len(blocks), x])
                ready += 1
            for right in range(0, side - 1 + step, step):
                _match(blocks, y, min(right, side - 1), distances, near, place)
                for k in range(GROUP):
                    _cut(image, place[k, 0], place[k, 1], group[k])
                    _transform(group[k], forward, half)
                _hadamard(group)
                kept = zero
                if wiener:
                    for k in range(GROUP):
                        _cut(seen, place[k, 0], place[k, 1], guide[k])
                        _transform(guide[k], forward, half)
                    _hadamard(guide)
                    for k in range(GROUP):
                        coefficients, expected = group[k], guide[k]
                        for j in range(AREA):
                            power = expected[j] * expected[j]
                            share = power / (power + one)
                            coefficients[j] *= share
                            kept += share * share
                else:
                    for k in range(GROUP):
                        coefficients = group[k]
                        for j in range(AREA):
                            large = abs(coefficients[j]) > threshold
                            coefficients[j] = coefficients[j] if large else zero
                            kept += one if large else zero
                # The less noise is left in a group, the more it counts.
                weight = one / max(kept, one)
                _hadamard(group)
                for k in range(GROUP):
                    block = group[k]
                    _transform(block, backward, half)
                    left = place[k, 1]
                    for v in range(BLOCK):
                        sums, weighed = total[place[k, 0] + v], weights[place[k, 0] + v]
                        for u in range(BLOCK):
                            share = weight * window[v * BLOCK + u]
                            sums[left + u] += share * block[v * BLOCK + u]
                            weighed[left + u] += share
        for y in range(d):
            for x in range(d):
                total[y, x] /= weights[y, x]


@inlined
def _cut(image, y, x, block):
    # image: (d, d). Writes block: (b * b,).
    for v in range(BLOCK):
        for u in range(BLOCK):
            block[v * BLOCK + u] = image[y + v, x + u]


@inlined
def _match(blocks, y, x, distances, near, place):
    # blocks: (2 * reach + 1, side, b * b); distances: (2 * reach + 1,) is overwritten. Writes near: (g,), the
    # smallest distances from block (y, x), ascending, and place: (g, 2).
    side = blocks.shape[1]
    reference = blocks[y % len(blocks), x]
    left, right = max(x - REACH, 0), min(x + REACH + 1, side)
    # The reference itself comes first, whatever equals it.
    near[:] = np.inf
    near[0], place[0, 0], place[0, 1] = np.float32(0), y, x
    for v in range(max(y - REACH, 0), min(y + REACH + 1, side)):
        row = blocks[v % len(blocks)]
        for u in range(left, right):
            other = row[u]
            total = np.float32(0)
            for j in range(AREA):
                change = other[j] - reference[j]
                total += change * change
            distances[u - left] = total
        for u in range(left, right):
            distance = distances[u - left]
            if not distance < near[GROUP - 1] or (v == y and u == x):
                continue
            k = GROUP - 1
            while k > 1 and near[k - 1] > distance:
                near[k], place[k, 0], place[k, 1] = near[k - 1], place[k - 1, 0], place[k - 1, 1]
                k -= 1
            near[k], place[k, 0], place[k, 1] = distance, v, u


@inlined
def _transform(block, matrix, half):
    # block: (b * b,) becomes matrix @ block @ matrix.T; matrix: (b, b); half: (b * b,) is overwritten.
    for v in range(BLOCK):
        for u in range(BLOCK):
            half[v * BLOCK + u] = np.float32(0)
        for w in range(BLOCK):
            for u in range(BLOCK):
                half[v * BLOCK + u] += matrix[v, w] * block[w * BLOCK + u]
    for v in range(BLOCK):
        for u in range(BLOCK):
            value = np.float32(0)
            for w in range(BLOCK):
                value += half[v * BLOCK + w] * matrix[u, w]
            block[v * BLOCK + u] = value


@inlined
def _hadamard(group):
    # group: (g, b * b) becomes its orthonormal Walsh-Hadamard transform along the first axis.
    apart = 1
    while apart < GROUP:
        for start in range(0, GROUP, 2 * apart):
            for k in range(start, start + apart):
                one, other = group[k], group[k + apart]
                for j in range(AREA):
                    a, c = one[j], other[j]
                    one[j] = a + c
                    other[j] = a - c
        apart *= 2
    scale = np.float32(1.0 / np.sqrt(GROUP))
    for k in range(GROUP):
        row = group[k]
        for j in range(AREA):
            row[j] *= scale
