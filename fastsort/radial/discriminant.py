"""Learning to tell particles from junk without labels."""

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
    return -along(features, discriminant) + PENALTY * outlyingness(features, discriminant)


def along(features: Features, discriminant: Discriminant) -> npt.NDArray[np.float64]:
    """How much more than the typical particle an image has of what particles have."""
    return features @ discriminant.direction - discriminant.origin


def outlyingness(features: Features, discriminant: Discriminant) -> npt.NDArray[np.float64]:
    """Mahalanobis distance from the bulk of the particles, as far as it exceeds its expectation."""
    distance = _squared_distance(features, discriminant.mean, discriminant.precision)
    return np.maximum(np.sqrt(distance) - math.sqrt(len(discriminant.mean)), 0)


def _covariance(rows: Features) -> npt.NDArray[np.float64]:
    centred = rows - rows.mean(axis=0)
    return centred.T @ centred / max(len(rows) - 1, 1)


def _squared_distance(
    features: Features, mean: npt.NDArray[np.float64], precision: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    centred = features - mean
    return np.maximum(np.einsum("ij,ij->i", centred @ precision, centred), 0)
