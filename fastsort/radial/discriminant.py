"""Learning to tell particles from junk without labels."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastsort._types import Bools, Floats

# The share of the images that count as particles while the direction is learned: small enough for sets
# that are mostly junk; and the share among which their bulk is found.
PROMISING = 0.3
BULK = 0.4
N_ROUNDS = 5
PENALTY = 0.7


class Discriminant(NamedTuple):
    """A score for features: it falls along a direction, and grows away from the bulk of the particles.

    Attributes
    ----------
    direction : ndarray of float64, shape (p,)
        Score falls by 1 a unit along it: what a centre has and displaced places have not.
    origin : float
        Position of the typical particle along it.
    mean : ndarray of float64, shape (p,)
    precision : ndarray of float64, shape (p, p)
        Of the bulk of the particles, scaled so that its median squared distance is that of a Gaussian.
    """

    direction: Floats
    origin: float
    mean: Floats
    precision: Floats


def fit_discriminant(centred: Floats, displaced: Floats, usable: Bools) -> Discriminant:
    """Learn what the centre of a good pick has and displaced places of the same images have not.

    Parameters
    ----------
    centred : ndarray of float64, shape (n, p)
        Features at the centre of each image; the first is the height of the template's peak.
    displaced : ndarray of float64, shape (k, n, p)
        The same, measured at k displaced places of the same images.
    usable : ndarray of bool, shape (n,)
        Images to learn from.

    Returns
    -------
    discriminant : Discriminant

    Notes
    -----
    Fisher's linear discriminant between the centres of the most promising images and the displaced
    places. These have the same noise, defocus and normalisation but hold no centred particle, so nobody
    has to label anything. The first choice goes by the height of the peak; then the 30 % of the images
    that look most like particles are chosen again, five times. Junk that is stronger than any particle
    (ice, carbon) also scores well along one direction. Therefore the score also grows with the
    Mahalanobis distance from the bulk of the particles, which concentration steps find as in the minimum
    covariance determinant (Rousseeuw & Van Driessen, Technometrics 41, 1999).
    """
    images = centred[usable]
    direction, pooled = _separating_direction(images, displaced[:, usable].reshape(-1, centred.shape[1]))
    likeness = images @ direction
    candidates = images[np.argsort(-likeness, kind="stable")[: max(2, round(BULK * len(images)))]]
    mean, precision = _bulk_of(candidates)
    direction /= math.sqrt(float(direction @ pooled @ direction)) + 1e-12
    return Discriminant(direction, float(np.median(candidates @ direction)), mean, precision)


def discriminant_score(features: Floats, discriminant: Discriminant) -> Floats:
    """Score features (n, p): 0 for the typical particle, larger for junk.

    Returns
    -------
    score : ndarray of float64, shape (n,)
        In standard deviations along the direction, plus 0.7 of the Mahalanobis distance by which an
        image lies outside the bulk of the particles.
    """
    likeness = features @ discriminant.direction - discriminant.origin
    return -likeness + PENALTY * outlyingness(features, discriminant)


def outlyingness(features: Floats, discriminant: Discriminant) -> Floats:
    """Mahalanobis distance from the bulk of the particles, as far as it exceeds its expectation."""
    distance = _squared_distance(features, discriminant.mean, discriminant.precision)
    return np.maximum(np.sqrt(distance) - math.sqrt(len(discriminant.mean)), 0)


def _separating_direction(images: Floats, places: Floats) -> tuple[Floats, Floats]:
    """Direction from displaced places to the most promising images, and the covariance within both."""
    place_mean, place_covariance = places.mean(axis=0), _covariance(places)
    promise = images[:, 0]
    for _ in range(N_ROUNDS):
        promising = images[promise >= np.quantile(promise, 1 - PROMISING)]
        pooled = 0.5 * (place_covariance + _covariance(promising))
        pooled += np.diag(0.02 * np.diag(pooled) + 1e-9)
        direction = np.linalg.solve(pooled, promising.mean(axis=0) - place_mean)
        promise = images @ direction
    return direction, pooled


def _bulk_of(candidates: Floats) -> tuple[Floats, Floats]:
    """Mean and precision of most of the candidates."""
    bulk = candidates
    for step in range(4):
        mean, covariance = bulk.mean(axis=0), _covariance(bulk)
        ridge = np.diag(1e-3 * np.diag(covariance) + 1e-9)
        precision: Floats = np.linalg.inv(covariance + ridge).astype(np.float64)
        distance = _squared_distance(candidates, mean, precision)
        if step < 3:
            nearest = np.argsort(distance, kind="stable")[: max(2, round(0.75 * len(candidates)))]
            bulk = candidates[nearest]
    typical = float(np.median(distance))
    precision *= (len(mean) - 0.7) / typical if typical > 0 else 1.0
    return mean, precision


def _covariance(rows: Floats) -> Floats:
    centred = rows - rows.mean(axis=0)
    return centred.T @ centred / max(len(rows) - 1, 1)


def _squared_distance(features: Floats, mean: Floats, precision: Floats) -> Floats:
    centred = features - mean
    return np.maximum(np.einsum("ij,ij->i", centred @ precision, centred), 0)
