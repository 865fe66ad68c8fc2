"""The mixture of probabilistic PCA: its model, one pass over the images, and one step of EM.

Images are rows of coefficients. No matrix of L x L is formed, and a batch returns nothing but sums.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg

from fastsort._brief import brief
from fastsort._jit import kernel
from fastsort._types import Array, Bools, Floats, Indices
from fastsort.subspaces.rows import Rows, squares

# The noise variance stays above this part of the data's variance. A subspace with less weight than this
# many images is no longer changed.
FLOOR = 1e-9
FEWEST = 2.0


class FitTrace(NamedTuple):
    """What happened in each iteration of the learning.

    Attributes
    ----------
    log_likelihood : ndarray of float64, shape (t,)
        Of the model that the iteration began with: mean over the images that it learned from.
    noise_variance : ndarray of float64, shape (t,)
        Of the same model.
    n_images : ndarray of intp, shape (t,)
        How many the iteration learned from.
    """

    log_likelihood: Floats
    noise_variance: Floats
    n_images: Indices


class Strength(NamedTuple):
    """How strong images usually are: medians of logarithms, and robust standard deviations from them.

    Attributes
    ----------
    energy, energy_spread : float
        Of `SubspaceScores.energy`.
    residual, residual_spread : float
        Of `SubspaceScores.residual`.
    """

    energy: float
    energy_spread: float
    residual: float
    residual_spread: float


@brief
class SubspaceModel(NamedTuple):
    """A union of M subspaces of K dimensions in L: y = C_m x + mu_m + noise.

    Attributes
    ----------
    weights : ndarray of float64, shape (M,)
        Share of the images in each subspace.
    means : ndarray of float64, shape (M, L)
    loadings : ndarray of float64, shape (M, L, K)
        C_m; columns orthogonal, the longest first. In a steerable model cosines and sines stay
        together, and the longest comes first among those of one angular index.
    noise_variance : float
        Of one coefficient.
    keep : ndarray of bool, shape (n,)
        False for images that were discarded while learning.
    trace : FitTrace
    strength : Strength or None
        Of the images that were learned from; None in a model made by hand.
    """

    weights: Floats
    means: Floats
    loadings: Floats
    noise_variance: float
    keep: Bools
    trace: FitTrace
    strength: Strength | None = None


class Parameters(NamedTuple):
    """What a step of EM changes; shapes and meaning as in `SubspaceModel`."""

    weights: Floats
    means: Floats
    loadings: Floats
    noise_variance: float


class Sums(NamedTuple):
    """What a batch contributes to the next step of EM, and all that it returns.

    Attributes
    ----------
    cross : ndarray, shape (L, M * (K + 1))
        Images times responsibility times (latent position, 1), subspace by subspace.
    latent : ndarray, shape (M, K + 1, K + 1)
        Responsibility times (position, 1) times (position, 1), without the posterior covariance.
    energy : float
        Squared length of the images, summed.
    log_likelihood : float
    """

    cross: npt.NDArray[np.floating]
    latent: npt.NDArray[np.floating]
    energy: float
    log_likelihood: float


class Symmetry(NamedTuple):
    """How coefficients and latent axes turn with the image.

    Attributes
    ----------
    angular : ndarray of intp, shape (L,)
        Angular index of each coefficient: m >= 0 for cosines, -m for sines.
    partner : ndarray of intp, shape (L,)
        Index of the sine that belongs to a cosine, and the other way round; itself for angular index 0.
    latent_angular, latent_partner : ndarray of intp, shape (K,)
        The same of the latent axes.
    """

    angular: Indices
    partner: Indices
    latent_angular: Indices
    latent_partner: Indices


def maximize(
    rows: Rows,
    use: Bools,
    model: Parameters,
    n_jobs: int | None = None,
    symmetry: Symmetry | None = None,
) -> tuple[Parameters, float]:
    """Take one step of EM over the images in use.

    Parameters
    ----------
    rows : Rows
    use : ndarray of bool, shape (n,)
        Images to learn from.
    model : Parameters
        Of standardized rows; columns of the loadings orthogonal.
    n_jobs : int, optional
    symmetry : Symmetry, optional
        If given, every image counts in all orientations, and the model gets this symmetry.

    Returns
    -------
    model : Parameters
        The next one.
    log_likelihood : float
        Of the given model, in the data's units: mean over the images in use.
    """
    arrays = model_arrays(model, rows.dtype)
    sums = rows.map(_expect, rows.part(0, 0), arrays, each=(use,), n_jobs=n_jobs)
    cross, latent = np.zeros(sums[0].cross.shape), np.zeros(sums[0].latent.shape)
    for batch in sums:
        cross += batch.cross
        latent += batch.latent
    count = int(use.sum())
    energy = math.fsum(batch.energy for batch in sums)
    mean = math.fsum(batch.log_likelihood for batch in sums) / count
    if symmetry is not None:
        cross, latent = _turned(cross, latent, symmetry)
    return _step(model, cross, latent, energy, symmetry), mean - rows.shape[1] * math.log(rows.scale)


def _turned(cross: Floats, latent: Floats, symmetry: Symmetry) -> tuple[Floats, Floats]:
    """Average sums over all turns and reflections of the images.

    Products of different angular indices, and of a cosine with a sine, average to zero; that of two
    cosines becomes that of the two sines.
    """
    # The mean is one more latent axis, which does not turn.
    angular = np.append(symmetry.latent_angular, 0)
    partner = np.append(symmetry.latent_partner, len(symmetry.latent_partner))
    n_subspaces = len(latent)
    split = cross.reshape(len(cross), n_subspaces, -1)
    split = 0.5 * (split + split[symmetry.partner][:, :, partner])
    split *= (symmetry.angular[:, None] == angular)[:, None]
    latent = 0.5 * (latent + latent[:, partner][:, :, partner])
    return split.reshape(cross.shape), latent * (angular[:, None] == angular)


def _step(
    model: Parameters,
    cross: Floats,
    latent: Floats,
    energy: float,
    symmetry: Symmetry | None,
) -> Parameters:
    n_subspaces, width, n_components = model.loadings.shape
    means, loadings = model.means.copy(), model.loadings.copy()
    members = latent[:, -1, -1]
    total = members.sum()
    explained = 0.0
    for m in range(n_subspaces):
        part = cross[:, m * (n_components + 1) : (m + 1) * (n_components + 1)]
        moments = latent[m].copy()
        gains = np.einsum("lk,lk->k", loadings[m], loadings[m])
        spread = model.noise_variance / (gains + model.noise_variance)
        moments[np.arange(n_components), np.arange(n_components)] += members[m] * spread
        if members[m] >= FEWEST:
            # [C mu] in one system: the mean is one more column, whose position is always 1.
            both = scipy.linalg.solve(moments, part.T, assume_a="pos").T
            loadings[m], means[m] = both[:, :-1], both[:, -1]
        both = np.column_stack([loadings[m], means[m]])
        explained += float(2 * (both * part).sum() - ((both @ moments) * both).sum())
    variance = max((energy - explained) / (width * total), FLOOR)
    return orthogonal(Parameters(members / total, means, loadings, variance), symmetry)


def orthogonal(model: Parameters, symmetry: Symmetry | None = None) -> Parameters:
    """Turn the latent axes so that the columns of each C_m are orthogonal.

    The density stays the same; W = C^T C + s2 I becomes diagonal, and an image costs K operations
    instead of K^2. Without a symmetry the longest column comes first.
    """
    loadings = model.loadings.copy()
    for loading in loadings:
        if symmetry is None:
            _, axes = np.linalg.eigh(loading.T @ loading)
            loading[:] = loading @ axes[:, ::-1]
            continue
        for m in range(int(symmetry.latent_angular.max()) + 1):
            cosines = np.flatnonzero(symmetry.latent_angular == m)
            if len(cosines):
                _, axes = np.linalg.eigh(loading[:, cosines].T @ loading[:, cosines])
                # The sines turn with their cosines; index 0 is its own partner.
                for columns in (cosines, symmetry.latent_partner[cosines])[: 1 + (m > 0)]:
                    loading[:, columns] = loading[:, columns] @ axes[:, ::-1]
    return model._replace(loadings=loadings)


class ModelArrays(NamedTuple):
    """A model as the kernel of `posterior` needs it.

    Attributes
    ----------
    columns : ndarray, shape (L, M * (K + 1))
        [C_1 mu_1 C_2 mu_2 ...].
    inner : ndarray of float64, shape (M, K)
        Products of the columns of C_m with mu_m.
    gains : ndarray of float64, shape (M, K)
        Squared lengths of the columns of C_m.
    mean_energy : ndarray of float64, shape (M,)
        Squared length of mu_m.
    constants : ndarray of float64, shape (M,)
        Log-density of an image at distance 0, plus the logarithm of the weight.
    noise_variance : float
    """

    columns: npt.NDArray[np.floating]
    inner: Floats
    gains: Floats
    mean_energy: Floats
    constants: Floats
    noise_variance: float


def model_arrays(model: Parameters, dtype: npt.DTypeLike) -> ModelArrays:
    """Return what `posterior` needs of a model with orthogonal columns."""
    width, n_components = model.loadings.shape[1:]
    variance = model.noise_variance
    columns = np.concatenate(
        [np.column_stack([c, mu]) for c, mu in zip(model.loadings, model.means, strict=True)], axis=1
    )
    gains = np.einsum("mlk,mlk->mk", model.loadings, model.loadings)
    log_det = np.log(gains + variance).sum(axis=1) + (width - n_components) * math.log(variance)
    constants = np.log(np.maximum(model.weights, 1e-300)) - 0.5 * (width * math.log(2 * math.pi) + log_det)
    return ModelArrays(
        np.ascontiguousarray(columns, dtype=dtype),
        np.einsum("mlk,ml->mk", model.loadings, model.means),
        gains,
        np.einsum("ml,ml->m", model.means, model.means),
        constants,
        variance,
    )


class Posterior(NamedTuple):
    """Where a batch of b images lies in a model.

    Attributes
    ----------
    positions : ndarray, shape (b, M * (K + 1))
        (E[x], 1), subspace by subspace.
    weighted : ndarray, shape (b, M * (K + 1))
        The same times the responsibility.
    energy : ndarray of float64, shape (b,)
        Squared length of the standardized image.
    log_density : ndarray of float64, shape (b,)
    distance : ndarray of float64, shape (b,)
        Squared Mahalanobis distance from the subspace, averaged over the subspaces by
        responsibility.
    """

    positions: npt.NDArray[np.floating]
    weighted: npt.NDArray[np.floating]
    energy: Floats
    log_density: Floats
    distance: Floats


def posterior(images: npt.NDArray[np.floating], arrays: ModelArrays) -> Posterior:
    """Responsibilities and latent positions of standardized images (b, L)."""
    n = len(images)
    energy, density, distance = squares(images), np.empty(n), np.empty(n)
    positions = images @ arrays.columns
    weighted = np.empty_like(positions)
    _posterior(
        energy,
        arrays.inner,
        arrays.gains,
        arrays.mean_energy,
        arrays.constants,
        arrays.noise_variance,
        positions,
        weighted,
        density,
        distance,
    )
    return Posterior(positions, weighted, energy, density, distance)


def _expect(block: Array, start: int, use: Bools, rows: Rows, arrays: ModelArrays) -> Sums:
    images = rows.standardized(block if use.all() else block[use])
    expected = posterior(images, arrays)
    n_subspaces, n_components = arrays.gains.shape
    shape = (len(images), n_subspaces, n_components + 1)
    left, right = expected.weighted.reshape(shape), expected.positions.reshape(shape)
    latent = np.stack([left[:, m].T @ right[:, m] for m in range(n_subspaces)])
    cross = images.T @ expected.weighted
    return Sums(cross, latent, float(expected.energy.sum()), float(expected.log_density.sum()))


@kernel
def _posterior(
    energy, inner, gains, mean_energy, constants, variance, positions, weighted, log_density, distance
):
    # energy (b,), inner and gains (M, K), mean_energy and constants (M,), positions (b, M * (K + 1)) with the
    # products of images and columns; writes positions, weighted of the same shape, log_density and distance.
    n_subspaces, n_components = gains.shape
    log_joint = np.empty(n_subspaces)
    square = np.empty(n_subspaces)
    shrink = 1 / (gains + variance)
    for i in range(positions.shape[0]):
        highest = -np.inf
        for m in range(n_subspaces):
            first = m * (n_components + 1)
            last = first + n_components
            explained = 0.0
            for k in range(n_components):
                product = positions[i, first + k] - inner[m, k]
                position = product * shrink[m, k]
                positions[i, first + k] = position
                explained += product * position
            residual = energy[i] - 2 * positions[i, last] + mean_energy[m] - explained
            positions[i, last] = 1
            square[m] = max(residual, 0.0) / variance
            log_joint[m] = constants[m] - 0.5 * square[m]
            highest = max(highest, log_joint[m])
        total = 0.0
        for m in range(n_subspaces):
            log_joint[m] = np.exp(log_joint[m] - highest)
            total += log_joint[m]
        log_density[i] = highest + np.log(total)
        distance[i] = 0
        for m in range(n_subspaces):
            share = log_joint[m] / total
            distance[i] += share * square[m]
            first = m * (n_components + 1)
            for k in range(n_components + 1):
                weighted[i, first + k] = share * positions[i, first + k]
