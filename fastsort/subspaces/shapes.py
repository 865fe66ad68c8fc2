"""What particles look like and what the background looks like, both in all orientations.

Only the direction of an image counts, not its strength: a shape is a covariance up to a factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._types import Bools, Floats, Indices
from fastsort.subspaces.pswf import Blocks

N_ROUNDS = 4
# White noise that is added to every covariance, in parts of its mean variance: denoised images have next
# to nothing at high frequencies, and this must not decide.
FLOOR = 0.05
# Part of the background in the shape of the particles, which makes the estimate better if images are few.
SHARED = 0.1


class Shape(NamedTuple):
    """A covariance of coefficients under all turns and reflections, block by angular index.

    Attributes
    ----------
    mean : ndarray of float64, shape (p,)
        Of the cosines of index 0.
    covariances : tuple of ndarray of float64, shape (p, p)
    whiteners : tuple of ndarray of float64, shape (p, p)
        Rows times these have the identity for covariance.
    log_volume : float
        Half the logarithm of the determinant.
    """

    mean: Floats
    covariances: tuple[Floats, ...]
    whiteners: tuple[Floats, ...]
    log_volume: float


def fit_shape(coefficients: Floats, use: Bools, blocks: Blocks) -> Shape:
    """Estimate a shape from the directions of some images.

    Parameters
    ----------
    coefficients : ndarray of float64, shape (n, L)
    use : ndarray of bool, shape (n,)
    blocks : tuple of ndarray
        As `angular_blocks` returns them.

    Returns
    -------
    shape : Shape

    Notes
    -----
    Four rounds towards Tyler's estimate (Ann. Statist. 15, 1987): each image is weighted by the
    inverse of its Mahalanobis distance, so that a strong image counts no more than a weak one.
    """
    # Function by function in memory, as they are used.
    rows = np.compress(use, coefficients.T, axis=1).T
    shape = _weighted_shape(rows, np.ones(len(rows)), blocks)
    for _ in range(N_ROUNDS - 1):
        weights = rows.shape[1] / np.maximum(distances(rows, shape, blocks), 1e-9)
        shape = _weighted_shape(rows, weights, blocks)
    return shape


def distances(coefficients: Floats, shape: Shape, blocks: Blocks) -> Floats:
    """Squared Mahalanobis distances of images (n, L)."""
    n = len(coefficients)
    # Of the cosines, then of the sines.
    total = np.zeros(2 * n)
    for m, (members, whitener) in enumerate(zip(blocks, shape.whiteners, strict=True)):
        part = _block(coefficients, members)
        white = whitener.T @ (part - shape.mean[:, None] if m == 0 else part)
        total[: len(members) * n] += np.einsum("pn,pn->n", white, white)
    return total[:n] + total[n:]


def log_ratio(
    coefficients: Floats,
    particle: Shape,
    others: Sequence[Shape],
    blocks: Blocks,
    shares: Floats | None = None,
) -> Floats:
    """Log-likelihood ratio of a shape to all others together, for the directions of images (n, L).

    The others have these shares, or are as frequent as each other.

    Notes
    -----
    The angular central Gaussian density is |S|^(-1/2) (y' S^-1 y)^(-L/2) (Tyler, Biometrika 74,
    1987).
    """
    near, *far = (log_likelihood(coefficients, shape, blocks) for shape in (particle, *others))
    known = np.full(len(far), 1 / len(far)) if shares is None else shares
    return ratio_to_all(near - np.array(far), known)


def log_likelihood(coefficients: Floats, shape: Shape, blocks: Blocks) -> Floats:
    """Logarithm of the density of the directions of images (n, L) under a shape, up to a constant."""
    square = np.maximum(distances(coefficients, shape, blocks), 1e-30)
    likelihood: Floats = -0.5 * coefficients.shape[1] * np.log(square) - shape.log_volume
    return likelihood


def ratio_to_all(ratios: Floats, shares: Floats) -> Floats:
    """Log-likelihood ratio to all others together, from those to each (k, n) and the shares of these (k,)."""
    joint: Floats = -np.logaddexp.reduce(np.log(shares)[:, None] - ratios, axis=0)
    return joint


def regularize(particle: Shape, background: Shape, n_images: int, blocks: Blocks) -> Shape:
    """Remove those differences of a shape from another that may be chance.

    Parameters
    ----------
    particle, background : Shape
    n_images : int
        From which the first was estimated.
    blocks : tuple of ndarray

    Returns
    -------
    shape : Shape
        As the first; but relative to the second, principal variances between the two edges of the
        Marchenko-Pastur law become equal, since chance gives variances in this range. A tenth of the
        second is mixed in.

    Notes
    -----
    Probabilistic PCA keeps the axes with more variance than noise. Along some axes, particles also have
    less variance than the background, so both ends are kept, as in extreme components analysis (Welling,
    Agakov & Williams, NIPS 16, 2003).
    """
    relative = [np.linalg.eigh(covariance) for covariance in _relative(particle, background)]
    counts = [len(members) for members in blocks]
    edges = [
        math.sqrt(len(values) / (n_images * count))
        for (values, _), count in zip(relative, counts, strict=True)
    ]
    every = np.concatenate([values for values, _ in relative])
    weights = np.repeat(counts, [len(values) for values, _ in relative])
    edge = np.repeat(edges, [len(values) for values, _ in relative])
    level = _typical([values for values, _ in relative], blocks)
    for _ in range(N_ROUNDS):
        chance = _is_chance(every / level, edge)
        if chance.any():
            level = float(np.average(every[chance], weights=weights[chance]))
    covariances = []
    pairs = zip(background.covariances, background.whiteners, strict=True)
    for (values, vectors), (other, whitener), limit in zip(relative, pairs, edges, strict=True):
        values = np.where(_is_chance(values / level, limit), level, values)
        back = other @ whitener @ vectors
        covariances.append((back * ((1 - SHARED) * values + SHARED * level)) @ back.T)
    return _shape(particle.mean, covariances, blocks)


def relative_level(particle: Shape, background: Shape, blocks: Blocks) -> float:
    """Return the typical variance of one shape in units of another, since shapes have no common scale."""
    return _typical([np.linalg.eigvalsh(one) for one in _relative(particle, background)], blocks)


def _relative(particle: Shape, background: Shape) -> list[Floats]:
    """Covariances of one shape in coordinates in which the other is white."""
    pairs = zip(background.whiteners, particle.covariances, strict=True)
    return [whitener.T @ covariance @ whitener for whitener, covariance in pairs]


def _typical(variances: list[npt.NDArray[np.floating]], blocks: Blocks) -> float:
    """Median of principal variances; a cosine and its sine count as two."""
    each = [np.repeat(values, len(members)) for values, members in zip(variances, blocks, strict=True)]
    return float(np.median(np.concatenate(each)))


def _is_chance(values: Floats, edge: Floats | float) -> Bools:
    chance: Bools = (values <= (1 + edge) ** 2) & (values >= (1 - np.minimum(edge, 1)) ** 2)
    return chance


def _block(coefficients: Floats, members: Indices) -> Floats:
    """Coefficients (p, n) of one angular index; where there are sines, (p, 2 n), on the right of the cosines.

    In a basis each sine stands behind its cosine, so this is a view of coefficients that lie function by
    function in memory.
    """
    first = members[0, 0]
    return coefficients.T[first : first + members.size].reshape(members.shape[1], -1)


def _weighted_shape(rows: Floats, weights: Floats, blocks: Blocks) -> Shape:
    total = weights.sum()
    mean = rows.T[blocks[0][0]] @ weights / total
    weights = np.tile(weights, 2)
    covariances = []
    for m, members in enumerate(blocks):
        part = _block(rows, members)
        part = part - mean[:, None] if m == 0 else part
        covariances.append((part * weights[: part.shape[1]]) @ part.T / (total * len(members)))
    width = rows.shape[1]
    power = sum(len(m) * float(c.trace()) for m, c in zip(blocks, covariances, strict=True)) / width
    for covariance in covariances:
        covariance.flat[:: len(covariance) + 1] += max(FLOOR * power, 1e-12)
    return _shape(mean, covariances, blocks)


def _shape(mean: Floats, covariances: list[Floats], blocks: Blocks) -> Shape:
    # With ones for what a smaller matrix lacks, all are of one size, and one call does for all.
    sizes = [len(covariance) for covariance in covariances]
    padded = np.tile(np.eye(max(sizes)), (len(sizes), 1, 1))
    for matrix, covariance, size in zip(padded, covariances, sizes, strict=True):
        matrix[:size, :size] = covariance
    roots = np.linalg.cholesky(padded)
    whiteners = [root[:size, :size].T.copy() for root, size in zip(np.linalg.inv(roots), sizes, strict=True)]
    counts = np.array([len(members) for members in blocks])
    log_volume = float(counts @ np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1))
    return Shape(mean, tuple(covariances), tuple(whiteners), log_volume)
