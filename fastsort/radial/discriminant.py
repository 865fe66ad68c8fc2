"""Learning to tell particles from junk without labels, and where to cut."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort.radial.evidence import Features

# The share of the images that stand for particles while learning: small enough for sets that are
# mostly junk.
PROMISING = 0.3
BULK = 0.4
N_ROUNDS = 5
PENALTY = 0.7
# Weight of the displaced measurements against the images' own when the score of junk is fitted.
PRIOR = 0.1
MAX_FITTED = 5000


class Discriminant(NamedTuple):
    """A score for features: against a direction, and away from the bulk of the particles.

    Attributes
    ----------
    direction : ndarray of float64, shape (p,)
        Score falls by 1 a unit along it: what a centre has and other places have not.
    origin : float
        Position of the typical particle along it.
    mean : ndarray of float64, shape (p,)
    precision : ndarray of float64, shape (p, p)
        Of the bulk of the particles, scaled so that its median squared distance is that of a Gaussian.
    """

    direction: npt.NDArray[np.float64]
    origin: float
    mean: npt.NDArray[np.float64]
    precision: npt.NDArray[np.float64]


class ScoreModel(NamedTuple):
    """Distribution of the score: particles (a split normal), junk (a normal), and what is far beyond.

    Attributes
    ----------
    weights : ndarray of float64, shape (3,)
        Shares of particles, junk and the rest.
    mode, lower, upper : float
        Of the particles, with the widths to either side.
    junk_mean, junk_std : float
    far : float
        Where the constant density of the rest ends; it begins at `junk_mean`.
    cut : float
        Score at which junk becomes likelier than a particle.
    """

    weights: npt.NDArray[np.float64]
    mode: float
    lower: float
    upper: float
    junk_mean: float
    junk_std: float
    far: float
    cut: float


def fit_discriminant(centred: Features, displaced: Features, usable: npt.NDArray[np.bool_]) -> Discriminant:
    """Learn what the centre of a good pick has and other places of the same images have not.

    Parameters
    ----------
    centred : ndarray of float64, shape (n, p)
        Features at the centre of each image; the first is the height of the template's peak.
    displaced : ndarray of float64, shape (k, n, p)
        The same measured about k other places of the same images.
    usable : ndarray of bool, shape (n,)
        Images that may teach.

    Returns
    -------
    discriminant : Discriminant

    Notes
    -----
    Fisher's linear discriminant between the most promising images' centres and the displaced
    places, which see the same noise, defocus and normalisation but hold no centred particle: nobody
    has to label anything. Starting from the height of the peak, the 30 % that look most like
    particles are found five times anew. What is stronger than any particle (ice, carbon) also scores
    well on one direction, so the score also grows with the Mahalanobis distance from the bulk of the
    particles, found by concentration steps as in the minimum covariance determinant (Rousseeuw &
    Van Driessen, Technometrics 41, 1999).
    """
    teachers = centred[usable]
    others = displaced[:, usable].reshape(-1, centred.shape[1])
    other_mean, other_covariance = others.mean(axis=0), _covariance(others)
    promise = teachers[:, 0]
    for _ in range(N_ROUNDS):
        chosen = promise >= np.quantile(promise, 1 - PROMISING)
        pooled = 0.5 * (other_covariance + _covariance(teachers[chosen]))
        pooled += np.diag(0.02 * np.diag(pooled) + 1e-9)
        direction = np.linalg.solve(pooled, teachers[chosen].mean(axis=0) - other_mean)
        promise = teachers @ direction
    direction /= math.sqrt(float(direction @ pooled @ direction)) + 1e-12

    candidates = teachers[np.argsort(-promise, kind="stable")[: max(2, round(BULK * len(teachers)))]]
    bulk = candidates
    for step in range(4):
        mean, covariance = bulk.mean(axis=0), _covariance(bulk)
        ridge = np.diag(1e-3 * np.diag(covariance) + 1e-9)
        precision: npt.NDArray[np.float64] = np.linalg.inv(covariance + ridge).astype(np.float64)
        distance = _squared_distance(candidates, mean, precision)
        if step < 3:
            nearest = np.argsort(distance, kind="stable")[: max(2, round(0.75 * len(candidates)))]
            bulk = candidates[nearest]
    typical = float(np.median(distance))
    precision *= (len(mean) - 0.7) / typical if typical > 0 else 1.0
    return Discriminant(direction, float(np.median(candidates @ direction)), mean, precision)


def discriminant_score(features: Features, discriminant: Discriminant) -> npt.NDArray[np.float64]:
    """Score features (n, p): 0 for the typical particle, larger for junk.

    Returns
    -------
    score : ndarray of float64, shape (n,)
        In standard deviations along the direction, plus 0.7 of the Mahalanobis distance by which an
        image lies outside the bulk of the particles.
    """
    return -along(features, discriminant) + PENALTY * beyond(features, discriminant)


def along(features: Features, discriminant: Discriminant) -> npt.NDArray[np.float64]:
    """How much more than the typical particle an image has of what particles have."""
    return features @ discriminant.direction - discriminant.origin


def beyond(features: Features, discriminant: Discriminant) -> npt.NDArray[np.float64]:
    """Mahalanobis distance from the bulk of the particles, as far as it exceeds its expectation."""
    distance = _squared_distance(features, discriminant.mean, discriminant.precision)
    return np.maximum(np.sqrt(distance) - math.sqrt(len(discriminant.mean)), 0)


def fit_scores(scores: npt.NDArray[np.float64], displaced: npt.NDArray[np.float64]) -> ScoreModel:
    """Find where the compact bulk of the valid images ends.

    Parameters
    ----------
    scores : ndarray of float64, shape (n,)
    displaced : ndarray of float64, shape (m,)
        Scores of the displaced measurements: what junk looks like where nothing else is known.

    Returns
    -------
    model : ScoreModel

    Notes
    -----
    A mixture by expectation maximisation. Particles have a split normal distribution, since contrast
    and view leave a longer tail towards junk; junk has a normal one that starts at the displaced
    scores and is held there by them as by a tenth as many images, so that a clean set is not cut in
    two. Where they lie beyond all that the images show, they do not hold it, as long as what it finds
    is separate from the particles by Ashman's criterion, D > 2 (Ashman, Bird & Zepf, Astron. J. 108,
    1994). What is far out has a constant density. The cut is where junk becomes likelier than a
    particle.
    """
    values = np.sort(scores)[:: max(1, len(scores) // MAX_FITTED)]
    far = float(np.quantile(np.concatenate([values, displaced]), 0.995)) + 5
    near = float(values[0]) - 1
    values, displaced = np.clip(values, near, far), np.clip(displaced, near, far)
    held = PRIOR * len(values)
    if np.median(displaced) < np.quantile(values, 0.99):
        return _fit_mixture(values, displaced, far, held)
    free = _fit_mixture(values, displaced, far, 0.0)
    separation = math.sqrt(2) * (free.junk_mean - free.mode) / math.hypot(free.upper, free.junk_std)
    return free if separation > 2 else _fit_mixture(values, displaced, far, held)


def _fit_mixture(
    values: npt.NDArray[np.float64], displaced: npt.NDArray[np.float64], far: float, held: float
) -> ScoreModel:
    mode = float(np.quantile(values, 0.15))
    lower = upper = max(mode - float(np.quantile(values, 0.02)), 0.3)
    prior_mean = junk_mean = float(np.median(displaced))
    prior_std = junk_std = 1.4826 * float(np.median(np.abs(displaced - junk_mean))) + 0.1
    weights = np.array([0.5, 0.45, 0.05])
    for _ in range(300):
        density = _densities(values, mode, lower, upper, junk_mean, junk_std, far) * weights[:, None]
        share = density / (density.sum(axis=0) + 1e-300)
        weights = share.mean(axis=1)
        particle, junk, _rest = share
        below = values < mode
        left = float((particle * below * (mode - values) ** 2).sum()) ** (1 / 3)
        right = float((particle * ~below * (values - mode) ** 2).sum()) ** (1 / 3)
        total = particle.sum() + 1e-9
        lower = max(left * math.sqrt((left + right) / total), 0.15)
        upper = max(right * math.sqrt((left + right) / total), 0.15)
        pull = particle / np.where(below, lower**2, upper**2)
        mode = float((pull * values).sum() / (pull.sum() + 1e-12))
        amount = junk.sum() + held + 1e-9
        junk_mean = float(((junk * values).sum() + held * prior_mean) / amount)
        prior_spread = prior_std**2 + (prior_mean - junk_mean) ** 2
        spread = (junk * (values - junk_mean) ** 2).sum() + held * prior_spread
        junk_std = max(math.sqrt(float(spread / amount)), 0.15)
    model = ScoreModel(weights, mode, lower, upper, junk_mean, junk_std, far, far)
    grid = np.linspace(mode, max(junk_mean, mode) + 1e-6, 2000)
    likely = np.flatnonzero(junk_probability(grid, model) > 0.5)
    return model._replace(cut=float(grid[likely[0]] if len(likely) else grid[-1]))


def junk_probability(scores: npt.NDArray[np.float64], model: ScoreModel) -> npt.NDArray[np.float64]:
    """Probability under the fitted mixture that an image of a score is junk; never falls with the score."""
    low, high = model.mode, max(model.junk_mean, model.mode)
    values = np.clip(scores, low, high)
    density = _densities(values, *model[1:7]) * model.weights[:, None]
    return (density[1] + density[2]) / (density.sum(axis=0) + 1e-300)


def _densities(
    values: npt.NDArray[np.float64],
    mode: float,
    lower: float,
    upper: float,
    junk_mean: float,
    junk_std: float,
    far: float,
) -> npt.NDArray[np.float64]:
    particle = np.exp(-0.5 * ((values - mode) / np.where(values < mode, lower, upper)) ** 2)
    particle *= 2 / (lower + upper) / math.sqrt(2 * math.pi)
    junk = np.exp(-0.5 * ((values - junk_mean) / junk_std) ** 2) / junk_std / math.sqrt(2 * math.pi)
    start = max(junk_mean, mode)
    return np.stack([particle, junk, np.where(values > start, 1 / (far - start), 0)])


def _covariance(rows: Features) -> npt.NDArray[np.float64]:
    centred = rows - rows.mean(axis=0)
    return centred.T @ centred / max(len(rows) - 1, 1)


def _squared_distance(
    features: Features, mean: npt.NDArray[np.float64], precision: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    centred = features - mean
    return np.maximum(np.einsum("ij,ij->i", centred @ precision, centred), 0)
