"""What is measured of an image: its coefficients, its power in bands, and particles beside its centre."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastsort._jit import kernel
from fastsort._types import Floats, Images, Indices, Singles
from fastsort.images.disk import quarter_disk
from fastsort.subspaces.pswf import Blocks, PswfBasis
from fastsort.subspaces.shapes import Shape

# How far from the centre other particles are looked for, in parts of the box, and in which directions.
NEARBY = 0.27
DIRECTIONS = tuple((math.sin(0.25 * math.pi * k), math.cos(0.25 * math.pi * k)) for k in range(8))
# So many places are folded together: few enough to stay in the processor's cache.
FOLDED = 256


class Comparison(NamedTuple):
    """Two shapes, as they are compared at many places: along axes on which both are uncorrelated.

    Attributes
    ----------
    functions : list of ndarray of float32, shape (k, p)
        The axes on a quarter of the disk, as `_on_quarter` returns them; the background has variance 1 on
        each.
    variances : ndarray of float64, shape (L,)
        Of particles, on the same axes in the same order.
    particle, background : ndarray of float64, shape (L,)
        Where the means of the shapes lie on these axes.
    log_volume : float
        Of the background, less that of particles.
    """

    functions: list[Singles]
    variances: Floats
    particle: Floats
    background: Floats
    log_volume: float


def coefficients_of(
    images: Images, basis: PswfBasis, places: Sequence[tuple[int, int]] = ((0, 0),)
) -> Floats:
    """Return the coefficients (n * k, L) of images about k places, image by image.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        Of the box of the basis; they continue periodically.
    basis : PswfBasis
    places : sequence of (row, column)
        From the middle, in pixels.
    """
    members = _members(basis.angular)
    functions = _on_quarter(basis, members)
    order, k = np.concatenate(members), len(places)
    coefficients = np.empty((len(order), len(images) * k))
    count = FOLDED // k
    for start in range(0, len(images), count):
        stop = start + count
        products = _products(images[start:stop], np.array(places, dtype=np.intp), functions)
        coefficients[order, k * start : k * stop] = products
    # Function by function in memory: all that follows asks for some functions of all images.
    return coefficients.T


def _members(angular: Indices) -> list[Indices]:
    """Split functions into those even down and across, even and odd, odd and even, and odd in both."""
    down, across = angular < 0, (angular < 0) ^ (angular % 2 == 1)
    return [np.flatnonzero((down == y) & (across == x)) for y in (False, True) for x in (False, True)]


def _on_quarter(basis: PswfBasis, members: list[Indices]) -> list[Singles]:
    """Functions of each symmetry on a quarter of the disk, for sums over images that were folded."""
    quarter, middle = quarter_disk(basis.box // 2), basis.box // 2
    # Pixels on an axis are their own mirror images: when the image is folded, they count twice.
    weights = quarter.weights / 4
    rows = basis.functions[:, middle + quarter.y, middle + quarter.x] * weights
    return [rows[places].astype(np.float32) for places in members]


def _products(images: Images, places: Indices, functions: list[Singles]) -> Singles:
    """Products of functions with images about some places, shape (L, n * places).

    Each function is even or odd in both directions. So each image is folded twice, about every place, and
    the products need a quarter of the pixels with a quarter of the functions.
    """
    rows = _rows(images.shape[1])
    folded = np.empty((4, len(images) * len(places), rows.sum()), dtype=np.float32)
    _fold(images, places, rows, folded)
    products = np.empty((sum(len(part) for part in functions), folded.shape[1]), dtype=np.float32)
    ends = np.cumsum([len(part) for part in functions])
    for part, pixels, end in zip(functions, folded, ends, strict=True):
        np.matmul(part, pixels.T, out=products[end - len(part) : end])
    return products


@lru_cache(maxsize=2)
def _rows(box: int) -> Indices:
    """How many pixels each row of a quarter of the disk has."""
    return np.bincount(quarter_disk(box // 2).y)


def frequency_bands(basis: PswfBasis) -> tuple[Indices, ...]:
    """Split functions into about six octaves by how fast they oscillate."""
    order = np.abs(basis.angular) + 2 * basis.radial
    edges = np.unique(np.rint(np.geomspace(1, order.max() + 2, 7)).astype(int)) - 1
    bands = [np.flatnonzero((order >= low) & (order < high)) for low, high in itertools.pairwise(edges)]
    return tuple(band for band in bands if len(band))


def log_powers(coefficients: Floats, bands: tuple[Indices, ...]) -> Floats:
    """Return the logarithm of the power of images in each band, shape (n, b)."""
    shares = np.zeros((coefficients.shape[1], len(bands)))
    for number, band in enumerate(bands):
        shares[band, number] = 1 / len(band)
    powers: Floats = np.log(np.square(coefficients) @ shares + 1e-12)
    return powers


def spectral_slope(powers: Floats) -> Floats:
    """Return by how much logarithms of power (n, b) fall from the lower to the upper half of the bands."""
    half = powers.shape[1] // 2
    slope: Floats = powers[:, :half].mean(axis=1) - powers[:, half:].mean(axis=1)
    return slope


def compare(particle: Shape, background: Shape, basis: PswfBasis, blocks: Blocks) -> Comparison:
    """Make two shapes ready to be compared at many places.

    Parameters
    ----------
    particle, background : Shape
    basis : PswfBasis
    blocks : tuple of ndarray
        As `angular_blocks` returns them.

    Returns
    -------
    comparison : Comparison
    """
    length = len(basis.functions)
    axes, variances = np.zeros((length, length)), np.empty(length)
    centre, other = np.zeros((2, length))
    for m, members in enumerate(blocks):
        whitener = background.whiteners[m]
        values, vectors = np.linalg.eigh(whitener.T @ particle.covariances[m] @ whitener)
        along = (whitener @ vectors).T
        for places in members:
            axes[np.ix_(places, places)] = along
            variances[places] = values
        if m == 0:
            centre[members[0]], other[members[0]] = along @ particle.mean, along @ background.mean
    kinds = _members(basis.angular)
    functions = [
        (axes[np.ix_(places, places)] @ samples).astype(np.float32)
        for places, samples in zip(kinds, _on_quarter(basis, kinds), strict=True)
    ]
    order, volume = np.concatenate(kinds), background.log_volume - particle.log_volume
    return Comparison(functions, variances[order], centre[order], other[order], volume)


def ratios_beside(images: Images, comparison: Comparison, distance: float = NEARBY, step: int = 1) -> Floats:
    """Return log-likelihood ratios (n, k) of a particle beside the centre, one for each direction.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        Cropped and normalised; they continue periodically.
    comparison : Comparison
        Of the particle with the background.
    distance : float
        From the centre, in parts of the box.
    step : int
        Every how many of the eight directions are used.

    Notes
    -----
    The same as `log_ratio` of the coefficients about each place.
    """
    away = distance * images.shape[1]
    places = np.array([(round(y * away), round(x * away)) for y, x in DIRECTIONS[::step]], dtype=np.intp)
    precisions, count = 1 / comparison.variances, FOLDED // len(places)
    ratios = np.empty((len(images), len(places)))
    for start in range(0, len(images), count):
        part = slice(start, start + count)
        products = _products(images[part], places, comparison.functions)
        squares = np.zeros((2, products.shape[1]))
        _sum_squares(products, comparison.particle, comparison.background, precisions, squares)
        near, far = np.maximum(squares, 1e-30)
        ratios[part] = (0.5 * len(precisions) * np.log(far / near)).reshape(-1, len(places))
    return ratios + comparison.log_volume


def highest_beside(ratios: Floats) -> tuple[Floats, Floats]:
    """Return the highest ratio in any direction, and the highest that two opposite directions both reach."""
    opposite = np.minimum(ratios, np.roll(ratios, ratios.shape[1] // 2, axis=1))
    return ratios.max(axis=1), opposite.max(axis=1)


@kernel
def _fold(images, places, rows, folded):
    # images (n, d, d), places (k, 2) from pixel d // 2, rows: how long each row of the quarter of a disk is.
    # Writes folded (4, n * k, pixels of the quarter).
    d = images.shape[1]
    reach = 0
    for place in range(len(places)):
        reach = max(reach, abs(places[place, 0]), abs(places[place, 1]))
    size = d + 2 * reach
    # With what comes after an edge beside it: no pixel of a disk asks where it is.
    wide = np.empty((size, size), dtype=np.float32)
    for i in range(images.shape[0]):
        for y in range(size):
            row = (y - reach) % d
            for x in range(d):
                wide[y, reach + x] = images[i, row, x]
            for x in range(reach):
                wide[y, x] = images[i, row, d - reach + x]
                wide[y, reach + d + x] = images[i, row, x]
        for place in range(len(places)):
            out = i * len(places) + place
            middle_y = reach + d // 2 + places[place, 0]
            middle_x = reach + d // 2 + places[place, 1]
            pixel = 0
            for y in range(len(rows)):
                below = wide[middle_y + y]
                above = wide[middle_y - y]
                for x in range(rows[y]):
                    even_below = below[middle_x + x] + below[middle_x - x]
                    odd_below = below[middle_x + x] - below[middle_x - x]
                    even_above = above[middle_x + x] + above[middle_x - x]
                    odd_above = above[middle_x + x] - above[middle_x - x]
                    folded[0, out, pixel + x] = even_below + even_above
                    folded[1, out, pixel + x] = odd_below + odd_above
                    folded[2, out, pixel + x] = even_below - even_above
                    folded[3, out, pixel + x] = odd_below - odd_above
                pixel += rows[y]


@kernel
def _sum_squares(products, particle, background, precisions, squares):
    # products (L, n), the others (L,). Adds to squares (2, n): distances from particles and from background.
    for axis in range(products.shape[0]):
        for i in range(products.shape[1]):
            near = products[axis, i] - particle[axis]
            far = products[axis, i] - background[axis]
            squares[0, i] += precisions[axis] * near * near
            squares[1, i] += far * far
