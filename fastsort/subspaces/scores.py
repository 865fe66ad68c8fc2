"""What a learned union of subspaces says of images: sorting factor, likelihood, score, denoised copies."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort.subspaces.mixture import (
    Parameters,
    Posterior,
    Stack,
    Strength,
    SubspaceModel,
    orthogonal,
    posterior,
    stack,
)
from fastsort.subspaces.rows import Rows, check_rows

# Images drawn from a model that does not say how strong its images are.
N_DRAWN = 1000
# Energies within this many deviations are nothing unusual.
USUAL_ENERGY = 3.0


class SubspaceScores(NamedTuple):
    """Scores of n images.

    Attributes
    ----------
    log_likelihood : ndarray of float64, shape (n,)
        Logarithm of the mixture's density; -infinity for images with a NaN or an infinity.
    factor : ndarray of float64, shape (n,)
        As `sorting_factor`.
    ratio : ndarray of float64, shape (n,)
        Log-likelihood ratio of the subspaces to noise, from the direction of the image alone.
    energy : ndarray of float64, shape (n,)
        Squared length.
    score : ndarray of float64, shape (n,)
        Larger for junk: minus the ratio, plus what an unusual energy costs, in nats. Infinite for
        images with a NaN or an infinity.
    """

    log_likelihood: npt.NDArray[np.float64]
    factor: npt.NDArray[np.float64]
    ratio: npt.NDArray[np.float64]
    energy: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]


def sorting_factor(
    coefficients: npt.ArrayLike, model: SubspaceModel, *, n_jobs: int | None = None
) -> npt.NDArray[np.float64]:
    """Residual of images over their projected energy, summed over the subspaces.

    Parameters
    ----------
    coefficients : ndarray, shape (n, L)
        In memory or a memory map. Not centred on the means.
    model : SubspaceModel
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    factor : ndarray of float64, shape (n,)
        Small for images in the subspaces. Infinite where no energy is projected, and for images
        with a NaN or an infinity.

    Raises
    ------
    InputError
        If the coefficients are not real (n, L) of the model's L.

    Notes
    -----
    Equation 3.9 of [1]_, with an orthonormal basis of each C_m.

    References
    ----------
    .. [1] Weiss-Dicker, Eldar, Shkolnisky, Bendory, "Unsupervised particle sorting for cryo-EM using
       probabilistic PCA" (2023).
    """
    return subspace_scores(coefficients, model, n_jobs=n_jobs).factor


def subspace_scores(
    coefficients: npt.ArrayLike, model: SubspaceModel, *, n_jobs: int | None = None
) -> SubspaceScores:
    """Everything that a model says of images.

    Parameters
    ----------
    coefficients : ndarray, shape (n, L)
        In memory or a memory map.
    model : SubspaceModel
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    scores : SubspaceScores

    Raises
    ------
    InputError
        If the coefficients are not real (n, L) of the model's L.

    Notes
    -----
    The factor sees contamination and the likelihood does not: a smooth image lies closer to any
    subspace than noise does, and a strong one has a low likelihood wherever it lies. The ratio is a
    soft form of the factor, in which an axis counts by how far it stands out of the noise: with the
    Mahalanobis distance d2 from the subspaces and the gains g_k = |C_k|^2,

        L / 2 log(|y|^2 / (s2 d2)) - 1 / 2 sum_k log(1 + g_k / s2),

    the ratio of two angular central Gaussian densities (Tyler, Biometrika 74, 1987). It depends on
    the direction of an image and not on its strength, so that the score can judge strength apart:
    (z^2 - 9) / 2 where the logarithm of the energy lies |z| > 3 robust deviations off.
    """
    rows = Rows(check_rows(coefficients, model.means.shape[1]))
    if len(rows) == 0:
        return SubspaceScores(*(np.empty(0) for _ in SubspaceScores._fields))
    plain = prepare(model)
    parts = rows.map(_score_batch, plain, n_jobs=n_jobs)
    density, factor, ratio, energy = (np.concatenate(column) for column in zip(*parts, strict=True))
    strength = model.strength or usual_strength(np.square(_drawn(model)).sum(axis=1))
    z = (np.log(energy + 1e-300) - strength.middle) / strength.spread
    score = 0.5 * np.maximum(np.square(z) - USUAL_ENERGY**2, 0) - ratio
    return SubspaceScores(density, factor, ratio, energy, np.where(np.isfinite(energy), score, np.inf))


def denoise(
    coefficients: npt.ArrayLike, model: SubspaceModel, *, n_jobs: int | None = None
) -> npt.NDArray[np.float32]:
    """Images without what the model takes for noise: their posterior mean.

    Parameters
    ----------
    coefficients : ndarray, shape (n, L)
        In memory or a memory map.
    model : SubspaceModel
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    coefficients : ndarray of float32, shape (n, L)
        The sum over subspaces of responsibility times (C_m E[x] + mu_m); NaN for images with a NaN
        or an infinity.

    Raises
    ------
    InputError
        If the coefficients are not real (n, L) of the model's L.
    """
    rows = Rows(check_rows(coefficients, model.means.shape[1]))
    if len(rows) == 0:
        return np.empty(rows.shape, dtype=np.float32)
    return np.concatenate(rows.map(_denoise_batch, prepare(model), n_jobs=n_jobs))


class Prepared(NamedTuple):
    """A model with the data's mean and scale taken out, and a basis of each subspace.

    Attributes
    ----------
    origin : ndarray of float64, shape (L,)
    scale : float
    model : Stack
    bases : ndarray of float64, shape (L, M * K)
        Orthonormal within each subspace; zero for axes without length.
    inner : ndarray of float64, shape (M * K,)
        Products of the bases with the origin, in units of the scale.
    """

    origin: npt.NDArray[np.float64]
    scale: float
    model: Stack
    bases: npt.NDArray[np.float64]
    inner: npt.NDArray[np.float64]


def prepare(model: SubspaceModel) -> Prepared:
    """Bring a model into the form that scoring needs."""
    origin = model.weights @ model.means
    spread = np.square(model.means - origin).mean() + np.square(model.loadings).sum(axis=2).mean()
    scale = math.sqrt(model.noise_variance + float(spread))
    scale = scale if scale > 0 else 1.0
    parameters = Parameters(
        model.weights,
        (model.means - origin) / scale,
        model.loadings / scale,
        max(model.noise_variance / scale**2, 1e-12),
    )
    parameters = orthogonal(parameters)
    bases = np.concatenate([_basis(loading) for loading in parameters.loadings], axis=1)
    return Prepared(origin, scale, stack(parameters, np.float64), bases, bases.T @ origin / scale)


def _basis(loading: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    vectors, sizes, _ = np.linalg.svd(loading, full_matrices=False)
    return vectors * (sizes > 1e-10 * max(float(sizes.max()), 1e-150))


def usual_strength(energy: npt.NDArray[np.float64]) -> Strength:
    """Find how strong images are that are taken for good."""
    logarithm = np.log(energy + 1e-300)
    middle = float(np.median(logarithm))
    spread = 1.4826 * float(np.median(np.abs(logarithm - middle)))
    return Strength(middle, max(spread, 1e-3))


def _score_batch(block: npt.NDArray[Any], start: int, model: Prepared) -> tuple[npt.NDArray[np.float64], ...]:
    finite = np.isfinite(block).all(axis=1)
    images = _filled(block, finite)
    density, factor, ratio, energy = measure(images, model)
    density[~finite] = -np.inf
    for values in (factor, energy):
        values[~finite] = np.inf
    return density, factor, ratio, energy


def measure(images: npt.NDArray[np.floating], model: Prepared) -> tuple[npt.NDArray[np.float64], ...]:
    """Log density, factor, ratio and energy of finite images (b, L)."""
    width = images.shape[1]
    moved, found = _located(images, model)
    energy = np.square(images, dtype=np.float64).sum(axis=1)
    total = energy / model.scale**2
    n_subspaces = len(model.model.constants)
    projected = np.square(moved @ model.bases + model.inner).reshape(len(images), n_subspaces, -1).sum(axis=2)
    projected = np.minimum(projected, total[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(projected > 0, (total[:, None] - projected) / projected, np.inf).sum(axis=1)
    left = np.maximum(found.distance * model.model.noise_variance, 1e-12 * total + 1e-300)
    responsibility = found.weighted.reshape(len(images), n_subspaces, -1)[:, :, -1]
    volume = 0.5 * np.log1p(model.model.gains / model.model.noise_variance).sum(axis=1)
    ratio = 0.5 * width * np.log((total + 1e-300) / left) - responsibility @ volume
    return found.log_density - width * math.log(model.scale), factor, ratio, energy


def _denoise_batch(block: npt.NDArray[Any], start: int, model: Prepared) -> npt.NDArray[np.float32]:
    finite = np.isfinite(block).all(axis=1)
    images = _filled(block, finite)
    _, found = _located(images, model)
    clean = (found.weighted @ model.model.columns.T) * model.scale + model.origin
    clean[~finite] = np.nan
    return clean.astype(np.float32)


def _filled(block: npt.NDArray[Any], finite: npt.NDArray[np.bool_]) -> npt.NDArray[np.floating]:
    """Return rows of zeros where they are not finite; the layout must not change the order of sums."""
    return np.ascontiguousarray(np.where(finite[:, None], block, 0), dtype=np.result_type(block, np.float32))


def _located(images: npt.NDArray[np.floating], model: Prepared) -> tuple[npt.NDArray[np.float64], Posterior]:
    moved = (images - model.origin) / model.scale
    return moved, posterior(moved, model.model)


def _drawn(model: SubspaceModel) -> npt.NDArray[np.float64]:
    """Images of the model itself."""
    rng = np.random.default_rng(0)
    subspace = rng.choice(len(model.weights), N_DRAWN, p=model.weights / model.weights.sum())
    images = model.means[subspace]
    for m, loading in enumerate(model.loadings):
        members = subspace == m
        images[members] += rng.standard_normal((members.sum(), loading.shape[1])) @ loading.T
    return images + math.sqrt(model.noise_variance) * rng.standard_normal(images.shape)
