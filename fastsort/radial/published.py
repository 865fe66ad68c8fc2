"""The published radial filter: sum of Gaussians, highest values, density clusters, verdict."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import check_images
from fastsort._jit import kernel
from fastsort._reasons import BAD_PIXELS, FLAT, NOISE, PARTIAL, VALID
from fastsort._types import Codes, Images, Singles

# Standard deviations of the five Gaussians, in parts of the filter's width.
WIDTHS = (0.05, 0.15, 0.25, 0.35, 0.45)
# Products of a column and a row that their sum is made of.
RANK = 4
# What the kernel sees in an image, and the reasons for it. The kernel is given the reasons: numba keeps
# compiled code in a file and does not notice when a number of another module changes.
SOUND, NOT_FINITE, CONSTANT, SCATTERED, AT_THE_RIM = range(5)
REASON_CODES = (VALID, BAD_PIXELS, FLAT, NOISE, PARTIAL)


class PublishedMeasurements(NamedTuple):
    """What the published rules measure in n images.

    Attributes
    ----------
    codes : ndarray of int8, shape (n,)
        Reason codes.
    counts : ndarray of int64, shape (n, 2)
        Clusters, and points in no cluster.
    peaks : ndarray of float32, shape (n,)
        The highest correlation value.
    heights : ndarray of float32, shape (n,)
        The same above the image's mean, in standard deviations of its correlation map; minus
        infinity for images that cannot be judged.
    centres : ndarray of float32, shape (n, 2)
        Row and column of the largest cluster's centre (of the highest value, if there is no
        cluster) from pixel d // 2, in whole pixels.
    """

    codes: Codes
    counts: npt.NDArray[np.int64]
    peaks: Singles
    heights: Singles
    centres: Singles


def gaussian_sum_correlation(images: npt.ArrayLike) -> Images:
    """Correlate images with a sum of five Gaussians.

    Parameters
    ----------
    images : ndarray, shape (n, d, d)

    Returns
    -------
    maps : ndarray of float32, shape (n, d, d)

    Notes
    -----
    Algorithm 1 of [1]_ with the boundary and the centring of its authors' program: the filter is
    k = round(0.3 d) pixels wide, the image continues periodically, and output pixel i sees the input
    pixels i - (k - 1) + k // 2 to i + k // 2.

    References
    ----------
    .. [1] Kapnulin, Heimowitz, Sharon, "Outlier removal in cryo-EM via radial profiles" (2024).
    """
    images = check_images(images)
    maps: Images = np.empty_like(images)
    _correlate_stack(images, *_factors(images.shape[1]), maps)
    return maps


def gaussian_taps(box: int) -> Singles:
    """Return the five one-dimensional Gaussians, shape (5, k); each sums to 1."""
    width = round(0.3 * box)
    position = np.arange(width) - (width - 1) / 2
    taps = np.exp(-0.5 * (position / (np.array(WIDTHS)[:, None] * width)) ** 2)
    return (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)


def _factors(box: int) -> tuple[Singles, int]:
    """Return the sum of the Gaussians as a sum of four products of a column and a row, and its width k.

    A factor is symmetric, so that half of it is enough, shape (4, (k + 1) // 2). A pixel in its middle, which
    both halves share, has half of its weight. A fifth product would be 1e-6 of the whole, as little as
    rounding.
    """
    taps = gaussian_taps(box).astype(np.float64)
    width = taps.shape[1]
    values, vectors = np.linalg.eigh(taps.T @ taps)
    factors = (vectors * np.sqrt(np.maximum(values, 0)))[: (width + 1) // 2, -RANK:].T
    if width % 2:
        factors[:, -1] /= 2
    padded = np.zeros((RANK, (width + 1) // 2), dtype=np.float32)
    padded[-len(factors) :] = factors
    return padded, width


def published_measurements(images: Images, radius: float, n_peaks: int) -> PublishedMeasurements:
    """Apply the published rules to a batch.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
    radius : float
        Particle radius in pixels: the neighbourhood of the clustering and the width of the rim.
    n_peaks : int
        How many of the highest correlation values are clustered, at most d * d.

    Returns
    -------
    measurements : PublishedMeasurements
    """
    n = len(images)
    codes = np.empty(n, dtype=np.int8)
    counts = np.empty((n, 2), dtype=np.int64)
    peaks = np.empty(n, dtype=np.float32)
    heights = np.empty(n, dtype=np.float32)
    centres = np.empty((n, 2), dtype=np.float32)
    factors = _factors(images.shape[1])
    reasons = np.array(REASON_CODES, dtype=np.int8)
    _judge_stack(images, *factors, radius, n_peaks, reasons, codes, counts, peaks, heights, centres)
    return PublishedMeasurements(codes, counts, peaks, heights, centres)


def cluster_peaks(maps: Singles, radius: float, n_peaks: int) -> npt.NDArray[np.int64]:
    """Cluster the highest values of correlation maps.

    Parameters
    ----------
    maps : ndarray of float32, shape (n, d, d)
    radius : float
        Neighbourhood in pixels.
    n_peaks : int

    Returns
    -------
    counts : ndarray of int64, shape (n, 2)
        Clusters, and values in no cluster.
    """
    counts = np.empty((len(maps), 2), dtype=np.int64)
    _cluster_stack(maps, radius, n_peaks, counts)
    return counts


@kernel
def _correlate_stack(images, factors, width, maps):
    d = images.shape[1]
    padded, rows, total = _scratch(d, width)
    for i in range(images.shape[0]):
        mean = _mean(images[i])
        _correlate(images[i], mean, factors, width, padded, rows, total, maps[i])
        maps[i] += np.float32(len(WIDTHS) * mean)


@kernel
def _judge_stack(images, factors, width, radius, n_peaks, reasons, codes, counts, peaks, heights, centres):
    # images (n, d, d), factors (4, (k + 1) // 2), reasons (5,); writes the outputs, one entry an image.
    d = images.shape[1]
    padded, rows, total = _scratch(d, width)
    correlation = np.empty((d, d), dtype=np.float32)
    values = np.empty(n_peaks, dtype=np.float32)
    points = np.empty((n_peaks, 2), dtype=np.int64)
    labels = np.empty(n_peaks, dtype=np.int64)
    queue = np.empty(n_peaks, dtype=np.int64)
    minimum = round(n_peaks / 3)
    for i in range(images.shape[0]):
        heights[i] = -np.inf
        counts[i, 0] = 0
        counts[i, 1] = 0
        peaks[i] = 0
        centres[i] = 0
        fault = _pixel_fault(images[i])
        codes[i] = reasons[fault]
        if fault != SOUND:
            continue
        mean = _mean(images[i])
        _correlate(images[i], mean, factors, width, padded, rows, total, correlation)
        _highest(correlation, values, points)
        n_clusters = _cluster(points, radius, minimum, labels, queue)
        peaks[i] = values[0] + len(WIDTHS) * mean
        heights[i] = _height(correlation, values[0])
        codes[i] = reasons[_verdict(points, labels, n_clusters, radius, minimum, d, counts[i], centres[i])]


@kernel
def _cluster_stack(maps, radius, n_peaks, counts):
    values = np.empty(n_peaks, dtype=np.float32)
    points = np.empty((n_peaks, 2), dtype=np.int64)
    labels = np.empty(n_peaks, dtype=np.int64)
    queue = np.empty(n_peaks, dtype=np.int64)
    for i in range(maps.shape[0]):
        _highest(maps[i], values, points)
        counts[i, 0] = _cluster(points, radius, round(n_peaks / 3), labels, queue)
        counts[i, 1] = 0
        for label in labels:
            if label < 0:
                counts[i, 1] += 1


@kernel
def _mean(image):
    # Column by column: such sums are vectorised.
    sums = np.zeros(image.shape[1], dtype=np.float32)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            sums[x] += image[y, x]
    total = 0.0
    for x in range(image.shape[1]):
        total += sums[x]
    return np.float32(total / image.size)


@kernel
def _height(correlation, highest):
    mean = _mean(correlation)
    scale = abs(highest - mean)
    if scale == 0:
        return np.float32(0)
    squares = np.zeros(correlation.shape[1], dtype=np.float32)
    for y in range(correlation.shape[0]):
        for x in range(correlation.shape[1]):
            # Divided before it is squared: images may have any scale.
            value = (correlation[y, x] - mean) / scale
            squares[x] += value * value
    square = 0.0
    for x in range(correlation.shape[1]):
        square += squares[x]
    return np.float32(1 / np.sqrt(square / correlation.size))


@kernel
def _pixel_fault(image):
    # Zero, or a NaN where a pixel is a NaN or infinite.
    spoilt = np.zeros(image.shape[1], dtype=np.float32)
    differing = np.zeros(image.shape[1], dtype=np.int32)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            spoilt[x] += np.float32(0) * image[y, x]
            differing[x] |= image[y, x] != image[0, 0]
    any_differs = False
    for x in range(image.shape[1]):
        if spoilt[x] != 0:
            return NOT_FINITE
        any_differs = any_differs or differing[x] != 0
    return SOUND if any_differs else CONSTANT


@kernel
def _scratch(d, k):
    # Padding beyond the last pixel is read, but not used.
    padded = np.zeros((d + 1) * (d + k - 1), dtype=np.float32)
    total = np.empty(d * (d + k - 1), dtype=np.float32)
    return padded, np.empty((d + k - 1) ** 2, dtype=np.float32), total


@kernel
def _correlate(image, mean, factors, k, padded, rows, total, out):
    # For each factor, one pass along the rows and one along the columns. Pixels at equal distance from the
    # middle of a factor are added first. The padded image is one long row: what is computed across the ends
    # of its rows is never used, and long loops over few arrays are vectorised.
    d = image.shape[0]
    before = k - 1 - k // 2
    width = d + k - 1
    size = d * width
    for y in range(d):
        row = padded[y * width : (y + 1) * width]
        for x in range(d):
            row[before + x] = image[y, x] - mean
        for x in range(before):
            row[x] = row[x + d]
        for x in range(before + d, width):
            row[x] = row[x - d]
    for j in range(size):
        total[j] = 0
    for factor in factors:
        passed = rows[before * width : before * width + size]
        for j in range(size):
            passed[j] = 0
        for t in range(len(factor)):
            left, right = padded[t:], padded[k - 1 - t :]
            for j in range(size):
                passed[j] += factor[t] * (left[j] + right[j])
        for j in range(before * width):
            rows[j] = rows[j + size]
        for j in range(before * width + size, rows.size):
            rows[j] = rows[j - size]
        for t in range(len(factor)):
            above, below = rows[t * width :], rows[(k - 1 - t) * width :]
            for j in range(size):
                total[j] += factor[t] * (above[j] + below[j])
    for y in range(d):
        for x in range(d):
            out[y, x] = total[y * width + x]


@kernel
def _highest(correlation, values, points):
    # Insertion into a short sorted list; of equal values, the one that comes first stays first. The maxima of
    # the rows come first: what is below as many of them as values are asked for is not among the highest.
    d = correlation.shape[0]
    n_peaks = len(values)
    maxima = np.empty(d, dtype=np.float32)
    for y in range(d):
        best = np.int32(-0x80000000)
        for x in range(d):
            # Integers in the order of the numbers: a maximum of integers is vectorised.
            bits = np.float32(correlation[y, x]).view(np.int32)
            best = max(best, np.int32(bits ^ np.int32(np.int32(bits >> 31) & np.int32(0x7FFFFFFF))))
        maxima[y] = np.int32(best ^ np.int32(np.int32(best >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)
    for y in range(min(d, n_peaks)):
        _insert(maxima[y], y, y, y, values, points)
    for y in range(n_peaks, d):
        if maxima[y] > values[n_peaks - 1]:
            _insert(maxima[y], y, y, n_peaks - 1, values, points)
    least = values[n_peaks - 1] if n_peaks <= d else np.float32(-np.inf)
    filled = 0
    for y in range(d):
        if maxima[y] < least:
            continue
        for x in range(d):
            value = correlation[y, x]
            if value < least or (filled == n_peaks and value <= values[n_peaks - 1]):
                continue
            filled = min(filled + 1, n_peaks)
            _insert(value, y, x, filled - 1, values, points)


@kernel
def _insert(value, y, x, place, values, points):
    # Into a sorted list, whose entry at this place is lost.
    while place > 0 and values[place - 1] < value:
        values[place] = values[place - 1]
        points[place, 0] = points[place - 1, 0]
        points[place, 1] = points[place - 1, 1]
        place -= 1
    values[place] = value
    points[place, 0] = y
    points[place, 1] = x


@kernel
def _cluster(points, radius, minimum, labels, queue):
    # DBSCAN: a point counts itself, border points join the first cluster that reaches them.
    n = len(points)
    limit = radius * radius
    n_clusters = 0
    labels[:] = -1
    for seed in range(n):
        if labels[seed] >= 0 or _n_neighbours(points, seed, limit) < minimum:
            continue
        labels[seed] = n_clusters
        queue[0] = seed
        waiting = 1
        while waiting > 0:
            waiting -= 1
            core = queue[waiting]
            for j in range(n):
                if labels[j] < 0 and _squared_distance(points, core, j) <= limit:
                    labels[j] = n_clusters
                    if _n_neighbours(points, j, limit) >= minimum:
                        queue[waiting] = j
                        waiting += 1
        n_clusters += 1
    return n_clusters


@kernel
def _n_neighbours(points, i, limit):
    count = 0
    for j in range(len(points)):
        if _squared_distance(points, i, j) <= limit:
            count += 1
    return count


@kernel
def _squared_distance(points, i, j):
    dy = points[i, 0] - points[j, 0]
    dx = points[i, 1] - points[j, 1]
    return dy * dy + dx * dx


@kernel
def _verdict(points, labels, n_clusters, radius, minimum, d, count, centre):
    n = len(points)
    n_scattered = 0
    top = True
    bottom = True
    left = True
    right = True
    for j in range(n):
        if labels[j] < 0:
            n_scattered += 1
            top = top and points[j, 0] <= radius
            bottom = bottom and points[j, 0] >= d - radius
            left = left and points[j, 1] <= radius
            right = right and points[j, 1] >= d - radius
    count[0] = n_clusters
    count[1] = n_scattered

    centre[0] = points[0, 0] - d // 2
    centre[1] = points[0, 1] - d // 2
    largest = 0
    near_edge = False
    for c in range(n_clusters):
        size = 0
        sum_y = 0
        sum_x = 0
        for j in range(n):
            if labels[j] == c:
                size += 1
                sum_y += points[j, 0]
                sum_x += points[j, 1]
        y = np.rint(sum_y / size)
        x = np.rint(sum_x / size)
        if y <= radius or y >= d - radius or x <= radius or x >= d - radius:
            near_edge = True
        if size > largest:
            largest = size
            centre[0] = y - d // 2
            centre[1] = x - d // 2

    if n_scattered > minimum:
        return SCATTERED
    if n_scattered > 0 and (top or bottom or left or right):
        return AT_THE_RIM
    if near_edge:
        return AT_THE_RIM
    return SOUND
