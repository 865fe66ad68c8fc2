"""What is measured of an image: its coefficients, its power in bands, and particles beside its centre."""

from __future__ import annotations

import itertools
import math

import numpy as np

from fastsort._types import Floats, Images, Indices
from fastsort.subspaces.pswf import Blocks, PswfBasis
from fastsort.subspaces.shapes import Shape, log_ratio

# How far from the centre other particles are looked for, in parts of the box, and in which directions.
NEARBY = 0.27
DIRECTIONS = tuple((math.sin(0.25 * math.pi * k), math.cos(0.25 * math.pi * k)) for k in range(8))


def coefficients_of(images: Images, basis: PswfBasis) -> Floats:
    """Return the coefficients (n, L) of images of the box of the basis."""
    flat = basis.functions.reshape(len(basis.functions), -1)
    coefficients: Floats = (images.reshape(len(images), -1) @ flat.T).astype(np.float64)
    return coefficients


def frequency_bands(basis: PswfBasis) -> tuple[Indices, ...]:
    """Split functions into about six octaves by how fast they oscillate."""
    order = np.abs(basis.angular) + 2 * basis.radial
    edges = np.unique(np.rint(np.geomspace(1, order.max() + 2, 7)).astype(int)) - 1
    bands = [np.flatnonzero((order >= low) & (order < high)) for low, high in itertools.pairwise(edges)]
    return tuple(band for band in bands if len(band))


def log_powers(coefficients: Floats, bands: tuple[Indices, ...]) -> Floats:
    """Return the logarithm of the power of images in each band, shape (n, b)."""
    powers = [np.square(coefficients[:, band]).mean(axis=1) for band in bands]
    return np.log(np.stack(powers, axis=1) + 1e-12)


def spectral_slope(powers: Floats) -> Floats:
    """Return by how much logarithms of power (n, b) fall from the lower to the upper half of the bands."""
    half = powers.shape[1] // 2
    slope: Floats = powers[:, :half].mean(axis=1) - powers[:, half:].mean(axis=1)
    return slope


def ratios_beside(
    images: Images,
    basis: PswfBasis,
    particle: Shape,
    background: Shape,
    blocks: Blocks,
    distance: float = NEARBY,
    step: int = 1,
) -> Floats:
    """Return log-likelihood ratios (n, k) of a particle beside the centre, one for each direction.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        Cropped and normalised.
    basis : PswfBasis
    particle, background : Shape
    blocks : tuple of ndarray
        As `angular_blocks` returns them.
    distance : float
        From the centre, in parts of the box.
    step : int
        Every how many of the eight directions are used.
    """
    box = images.shape[1]
    ratios = []
    for y, x in DIRECTIONS[::step]:
        shift = (round(-y * distance * box), round(-x * distance * box))
        coefficients = coefficients_of(np.roll(images, shift, (1, 2)), basis)
        ratios.append(log_ratio(coefficients, particle, [background], blocks))
    return np.stack(ratios, axis=1)


def highest_beside(ratios: Floats) -> tuple[Floats, Floats]:
    """Return the highest ratio in any direction, and the highest that two opposite directions both reach."""
    opposite = np.minimum(ratios, np.roll(ratios, ratios.shape[1] // 2, axis=1))
    return ratios.max(axis=1), opposite.max(axis=1)
