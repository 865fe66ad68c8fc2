"""Where a whole micrograph looks most like it showed a particle."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.fft

from fastsort._checks import InputError, check_positive
from fastsort._jit import kernel
from fastsort._types import Bools, Floats, Indices, Singles
from fastsort.images.picks import blob_response

# Beyond its edges a micrograph is continued by so many radii, mirrored: the Gaussians reach no further.
MARGIN = 3.0
# Structures stronger than this, in robust deviations of the pixels, count no more than this.
STRONGEST = 6.0
# The quartiles of a Gaussian lie this far from its middle, in deviations.
QUARTILE = 0.6745
# So many values say how strongly a response varies: the median of more differs by less than a hundredth.
N_VALUES = 1 << 16


class Maxima(NamedTuple):
    """Places where a micrograph looks most like a blob, the highest first.

    Attributes
    ----------
    row, column : ndarray of intp, shape (m,)
        In pixels of the image.
    height : ndarray of float64, shape (m,)
        Response there, in robust standard deviations of the response.
    """

    row: Indices
    column: Indices
    height: Floats


def blob_maxima(image: Singles, radius: float, distance: float, *, bright: bool = True) -> Maxima:
    """Find the places of an image that look most like blobs.

    Parameters
    ----------
    image : ndarray of float32, shape (height, width)
        A micrograph, best reduced until a particle is some 12 to 30 pixels wide. Intensities in any unit;
        never modified. NaN and infinity count as background.
    radius : float
        Of the blobs, in pixels.
    distance : float
        No two places are closer than this, in pixels.
    bright : bool
        Whether blobs are brighter than the background, or darker.

    Returns
    -------
    maxima : Maxima
        Local maxima above zero of the response to a difference of Gaussians (`blob_response`). Of two that
        are closer than `distance` the higher one is taken. None where the image is constant or empty.

    Raises
    ------
    InputError
        If the image has not two dimensions, or a length is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsort.images import blob_maxima
    >>> micrograph = np.random.default_rng(0).normal(size=(90, 120)).astype(np.float32)
    >>> row, column = np.ogrid[:90, :120]
    >>> for y, x in ((30, 40), (60, 95)):
    ...     micrograph[np.hypot(row - y, column - x) < 8] -= 3
    >>> found = blob_maxima(micrograph, radius=8, distance=16, bright=False)
    >>> (10 * np.sort(np.rint(found.row[:2] / 10))).tolist()
    [30.0, 60.0]
    >>> bool(found.height[1] > 2 * found.height[2])
    True
    """
    radius = check_positive("radius", radius, "px")
    distance = check_positive("distance", distance, "px")
    if image.ndim != 2:
        raise InputError(f"an image has two dimensions; got {image.ndim}: give one micrograph.")
    pixels = in_deviations(image, np.isfinite(image))
    if pixels is None:
        return Maxima(np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0))
    return maxima_of(_response(pixels if bright else -pixels, radius), distance)


def maxima_of(response: Singles, distance: float, usable: Bools | None = None, least: float = 0.0) -> Maxima:
    """Find the local maxima of a response above zero.

    Parameters
    ----------
    response : ndarray of float32, shape (height, width)
    distance : float
        No two places are closer than this, in pixels: of two that are, the higher one is taken.
    usable : ndarray of bool, shape (height, width), optional
        Where maxima may lie; only this area tells how strongly the response varies.
    least : float
        Least height.

    Returns
    -------
    maxima : Maxima
    """
    spread = deviation_from_zero(response.ravel() if usable is None else response[usable])
    if not spread > 0:
        return Maxima(np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0))
    row, column, height = _local_maxima(response, np.float32(max(least, 0.0) * spread), usable)
    order = np.argsort(-height, kind="stable")
    row, column, height = row[order], column[order], height[order]
    apart = np.zeros(len(row), bool)
    # Squares of a grid, at least as wide as the distance, remember which places in them are taken.
    square = max(distance, 1.0)
    rows, columns = (int(side / square) + 1 for side in response.shape)
    last, before = np.full((rows, columns), -1, np.int32), np.full(len(row), -1, np.int32)
    _take_apart(row, column, distance, square, last, before, apart)
    return Maxima(row[apart], column[apart], height[apart].astype(np.float64) / spread)


def deviation_from_zero(values: Singles) -> float:
    """Return the robust deviation of values about zero, from an even sample of them; 0 if there are none."""
    sample = values[:: max(1, len(values) // N_VALUES)]
    return float(np.median(np.abs(sample))) / QUARTILE if len(sample) else 0.0


def _local_maxima(
    response: Singles, least: np.float32, usable: Bools | None
) -> tuple[Indices, Indices, Singles]:
    """Return the places that are higher than a height and no lower than their eight neighbours."""
    found = np.zeros(response.shape, bool)
    _mark_maxima(response, least, np.ones((1, 1), bool) if usable is None else usable, usable is None, found)
    row, column = np.nonzero(found)
    return row, column, response[row, column]


@kernel
def _mark_maxima(response, least, usable, everywhere, found):
    # response: (h, w); usable: (h, w), or (1, 1) where everything counts. Writes found: (h, w).
    height, width = response.shape
    for y in range(height):
        for x in range(width):
            value = response[y, x]
            if not value > least or not (everywhere or usable[y, x]):
                continue
            highest = True
            for v in range(max(y - 1, 0), min(y + 2, height)):
                # Most places are lower than a neighbour in the row above.
                if not highest:
                    break
                for u in range(max(x - 1, 0), min(x + 2, width)):
                    if response[v, u] > value:
                        highest = False
            found[y, x] = highest


@kernel
def _take_apart(row, column, distance, square, last, before, taken):
    # row, column: (n,), the highest first; last: (rows, columns), before: (n,), both -1.
    # Writes these two, and taken: (n,).
    rows, columns = last.shape
    for i in range(len(row)):
        p, q = int(row[i] / square), int(column[i] / square)
        free = True
        for v in range(max(p - 1, 0), min(p + 2, rows)):
            for u in range(max(q - 1, 0), min(q + 2, columns)):
                other = last[v, u]
                while other >= 0 and free:
                    down, right = row[i] - row[other], column[i] - column[other]
                    if down * down + right * right < distance * distance:
                        free = False
                    other = before[other]
        if free:
            taken[i] = True
            before[i] = last[p, q]
            last[p, q] = i


def in_deviations(image: Singles, usable: Bools) -> Singles | None:
    """Return pixels in robust deviations from their median, the strongest clipped.

    Parameters
    ----------
    image : ndarray of float32, shape (height, width)
    usable : ndarray of bool, shape (height, width)
        The others become 0.

    Returns
    -------
    pixels : ndarray of float32, shape (height, width), or None
        None where nothing is usable, or all has one value.
    """
    if not usable.any():
        return None
    low, middle, high = np.quantile(image[usable].astype(np.float64), (0.25, 0.5, 0.75))
    spread = (high - low) / (2 * QUARTILE)
    if not (math.isfinite(spread) and spread > 0):
        return None
    pixels = (np.where(usable, image, middle) - middle) / spread
    return np.clip(pixels, -STRONGEST, STRONGEST).astype(np.float32)


def _response(pixels: Singles, radius: float) -> Singles:
    margin = math.ceil(MARGIN * radius)
    widths = []
    for side in pixels.shape:
        whole = scipy.fft.next_fast_len(side + 2 * margin, real=True)
        widths.append((margin, whole - side - margin))
    response = blob_response(np.pad(pixels, widths, mode="symmetric")[None], radius)[0]
    found: Singles = response[margin : margin + pixels.shape[0], margin : margin + pixels.shape[1]]
    return found
