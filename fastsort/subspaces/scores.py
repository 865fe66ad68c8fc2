"""What a learned union of subspaces says about images: sorting factor, likelihood, score, denoised copies."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._types import Array, Bools, Floats, Singles
from fastsort.subspaces.mixture import (
    ModelArrays,
    Parameters,
    Posterior,
    Strength,
    SubspaceModel,
    model_arrays,
    orthogonal,
    posterior,
)
from fastsort.subspaces.rows import Rows, check_rows, standardized

# How many images are drawn from a model that does not say how strong its images are.
N_DRAWN = 1000
# Energies and residuals within this many deviations are usual.
USUAL = 3.0


@brief
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
    residual : ndarray of float64, shape (n,)
        Squared Mahalanobis distance from the subspaces times the noise variance.
    score : ndarray of float64, shape (n,)
        Larger for junk: minus the ratio, plus what an unusual energy and a large residual cost, in
        nats. Infinite for images with a NaN or an infinity.
    """

    log_likelihood: Floats
    factor: Floats
    ratio: Floats
    energy: Floats
    residual: Floats
    score: Floats


def sorting_factor(coefficients: npt.ArrayLike, model: SubspaceModel, *, n_jobs: int | None = None) -> Floats:
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

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(200, 0, snr=0.3, box=24)
    >>> coefficients = fs.pswf_coefficients(images, 0.3)
    >>> model = fs.fit_subspaces(coefficients, 1, 10)
    >>> noise, _ = fs.simulate_particles(0, 200, junk="noise", box=24)
    >>> others = fs.sorting_factor(fs.pswf_coefficients(noise, 0.3), model)
    >>> bool(others.mean() > fs.sorting_factor(coefficients, model).mean())
    True
    """
    return evaluate(Rows(check_rows(coefficients, model.means.shape[1])), model, n_jobs).factor


def subspace_scores(
    coefficients: npt.ArrayLike, model: SubspaceModel, *, n_jobs: int | None = None
) -> SubspaceScores:
    """Everything that a model says about images.

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
    Contamination can have a small factor, for a smooth image lies closer to any subspace than noise does;
    but if it is strong, it has a low likelihood wherever it lies. The ratio is a soft form of the factor, in
    which an axis counts by how far it stands out of the noise: with the Mahalanobis distance d2 from the
    subspaces and the gains g_k = |C_k|^2,

        L / 2 log(|y|^2 / (s2 d2)) - 1 / 2 sum_k log(1 + g_k / s2),

    the ratio of two angular central Gaussian densities (Tyler, Biometrika 74, 1987). It depends on
    the direction of an image and not on its strength, so the score adds a cost for unusual strength:
    (z^2 - 9) / 2 where the logarithm of the energy lies |z| > 3 robust deviations from the median, and the
    same where that of the residual lies z > 3 above its median. In many dimensions noise hides how strong
    the rest of an image is; what lies off the subspaces still shows in the residual.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(200, 0, snr=0.3, box=24)
    >>> coefficients = fs.pswf_coefficients(images, 0.3)
    >>> model = fs.fit_subspaces(coefficients, 1, 10)
    >>> scores = fs.subspace_scores(coefficients, model)
    >>> noise, _ = fs.simulate_particles(0, 200, junk="noise", box=24)
    >>> others = fs.subspace_scores(fs.pswf_coefficients(noise, 0.3), model)
    >>> bool(np.median(others.score) > np.median(scores.score))
    True
    """
    scores = evaluate(Rows(check_rows(coefficients, model.means.shape[1])), model, n_jobs)
    strength = model.strength or usual_strength(evaluate(Rows(_draw_images(model)), model, 1))
    return with_strength(scores, strength)


def evaluate(rows: Rows, model: SubspaceModel, n_jobs: int | None) -> SubspaceScores:
    """Return all scores; `score` itself without the cost of unusual strength."""
    if len(rows) == 0:
        return SubspaceScores(*(np.empty(0) for _ in SubspaceScores._fields))
    parts = rows.map(_score_batch, standardized_model(model, rows.dtype), n_jobs=n_jobs)
    density, factor, ratio, energy, residual = (np.concatenate(part) for part in zip(*parts, strict=True))
    return SubspaceScores(density, factor, ratio, energy, residual, -ratio)


def usual_strength(scores: SubspaceScores, use: Bools | None = None) -> Strength:
    """Return how strong images are that count as good: all, or those in use."""
    kinds = [values if use is None else values[use] for values in (scores.energy, scores.residual)]
    return Strength(*log_median_and_spread(kinds[0]), *log_median_and_spread(kinds[1]))


def log_median_and_spread(values: Floats) -> tuple[float, float]:
    """Median of logarithms, and their standard deviation, estimated from the median absolute deviation."""
    logarithm = np.log(values + 1e-300)
    middle = float(np.median(logarithm))
    return middle, max(1.4826 * float(np.median(np.abs(logarithm - middle))), 1e-3)


def with_strength(scores: SubspaceScores, strength: Strength) -> SubspaceScores:
    """Add the cost of unusual strength to the score."""
    energy = (np.log(scores.energy + 1e-300) - strength.energy) / strength.energy_spread
    residual = (np.log(scores.residual + 1e-300) - strength.residual) / strength.residual_spread
    cost = sum(0.5 * np.maximum(np.square(z) - USUAL**2, 0) for z in (energy, np.maximum(residual, 0)))
    score = np.where(np.isfinite(scores.energy), cost - scores.ratio, np.inf)
    return scores._replace(score=score)


def denoise(coefficients: npt.ArrayLike, model: SubspaceModel, *, n_jobs: int | None = None) -> Singles:
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

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> clean, _ = fs.simulate_particles(200, 0, snr=1e6, box=24, normalize=False)
    >>> clean = clean / clean.std()
    >>> noisy = clean + np.random.default_rng(0).normal(size=clean.shape)
    >>> coefficients = fs.pswf_coefficients(noisy, 0.3)
    >>> model = fs.fit_subspaces(coefficients, 1, 10)
    >>> denoised = fs.pswf_images(fs.subspaces.denoise(coefficients, model), 24, 0.3)
    >>> bool(np.square(denoised - clean).mean() < 0.5 * np.square(noisy - clean).mean())
    True
    """
    rows = Rows(check_rows(coefficients, model.means.shape[1]))
    if len(rows) == 0:
        return np.empty(rows.shape, dtype=np.float32)
    return np.concatenate(rows.map(_denoise_batch, standardized_model(model, rows.dtype), n_jobs=n_jobs))


class StandardizedModel(NamedTuple):
    """A model without the data's mean and scale, as scoring needs it.

    Attributes
    ----------
    origin : ndarray, shape (L,)
    scale : float
    arrays : ModelArrays
        Of the model of standardized rows; columns orthogonal within each subspace.
    inner : ndarray of float64, shape (M, K)
        Products of the columns with the origin, in units of the scale.
    """

    origin: npt.NDArray[np.floating]
    scale: float
    arrays: ModelArrays
    inner: Floats


def standardized_model(model: SubspaceModel, dtype: npt.DTypeLike) -> StandardizedModel:
    """Return a model as scoring in some precision needs it."""
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
    inner = np.einsum("mlk,l->mk", parameters.loadings, origin / scale)
    return StandardizedModel(origin.astype(dtype), scale, model_arrays(parameters, dtype), inner)


def _score_batch(block: Array, start: int, model: StandardizedModel) -> tuple[Floats, ...]:
    return measure(block, model)


def measure(images: Array, model: StandardizedModel) -> tuple[Floats, ...]:
    """Log density, factor, ratio, energy and residual of images (b, L)."""
    n, width = images.shape
    gains, variance = model.arrays.gains, model.arrays.noise_variance
    n_subspaces = len(gains)
    # A row that is not finite stays so in all that follows, and changes no other row.
    with np.errstate(all="ignore"):
        rows, latent = _positions(images, model)
        from_origin = rows @ (model.origin / rows.dtype.type(model.scale))
        away = float(np.square(model.origin / model.scale, dtype=np.float64).sum())
        total = np.maximum(latent.energy + 2 * from_origin + away, 0)
        finite = np.isfinite(total)
        positions = latent.positions.reshape(n, n_subspaces, -1)[:, :, :-1]
        # Along a column c: c y = (g + s2) x + c mu, about the origin; the basis is c / |c|.
        along = positions * (gains + variance) + (model.arrays.inner + model.inner)
        counts = gains > 1e-20 * max(float(gains.max()), 1e-300)
        projected = (np.square(along) / np.where(counts, gains, np.inf)).sum(axis=2)
        projected = np.minimum(projected, total[:, None])
        factor = np.where(projected > 0, (total[:, None] - projected) / projected, np.inf).sum(axis=1)
        residual = np.maximum(latent.distance * variance, 1e-12 * total + 1e-300)
        responsibility = latent.weighted.reshape(n, n_subspaces, -1)[:, :, -1]
        volume = 0.5 * np.log1p(gains / variance).sum(axis=1)
        ratio = 0.5 * width * np.log((total + 1e-300) / residual) - responsibility @ volume
        density = latent.log_density - width * math.log(model.scale)
    unfit = -np.inf, np.inf, -np.inf, np.inf, np.inf
    for values, value in zip((density, factor, ratio, total, residual), unfit, strict=True):
        values[~finite] = value
    return density, factor, ratio, total * model.scale**2, residual * model.scale**2


def _denoise_batch(block: Array, start: int, model: StandardizedModel) -> Singles:
    with np.errstate(all="ignore"):
        _, latent = _positions(block, model)
        clean = (latent.weighted @ model.arrays.columns.T) * model.scale + model.origin
    clean[~np.isfinite(latent.energy)] = np.nan
    return clean.astype(np.float32)


def _positions(images: Array, model: StandardizedModel) -> tuple[npt.NDArray[np.floating], Posterior]:
    """Standardized images, and where they lie in the subspaces."""
    rows = standardized(images, model.origin, model.scale, model.origin.dtype)
    return rows, posterior(rows, model.arrays)


def _draw_images(model: SubspaceModel) -> Floats:
    """Draw images from the model itself."""
    rng = np.random.default_rng(0)
    subspace = rng.choice(len(model.weights), N_DRAWN, p=model.weights / model.weights.sum())
    images = model.means[subspace]
    for m, loading in enumerate(model.loadings):
        members = subspace == m
        images[members] += rng.standard_normal((members.sum(), loading.shape[1])) @ loading.T
    return images + math.sqrt(model.noise_variance) * rng.standard_normal(images.shape)
