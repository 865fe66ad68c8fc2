"""Learning to tell particles from junk without labels."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastsort._bulk import likely_shares
from fastsort._types import Bools, Floats

# The share of the images that count as particles while the direction is learned: small enough for sets
# that are mostly junk; and the share among which their bulk is found.
PROMISING = 0.3
BULK = 0.4
N_ROUNDS = 5
PENALTY = 0.4
# Results of version 0.1.0 have only one direction, and this penalty.
FORMER_PENALTY = 0.7


class Discriminant(NamedTuple):
    """A score for features: it falls along two directions, and grows away from the bulk of the particles.

    Attributes
    ----------
    direction : ndarray of float64, shape (2, p)
        What a centre has, and displaced places, or picked noise, have not: log-likelihood ratios of a
        particle to these grow along it.
    origin : ndarray of float64, shape (2,)
        Where both are zero.
    mean : ndarray of float64, shape (p,)
    precision : ndarray of float64, shape (p, p)
        Of the bulk of the particles, scaled so that its median squared distance is that of a Gaussian.
    unit : float
        Log-likelihood ratio that counts 1 in the score.
    penalty : float
        What a unit of distance from the bulk counts.
    """

    direction: Floats
    origin: Floats
    mean: Floats
    precision: Floats
    unit: float = 1.0
    penalty: float = FORMER_PENALTY


def fit_discriminant(centred: Floats, displaced: Floats, picked: Floats, usable: Bools) -> Discriminant:
    """Learn what the centre of a good pick has, and displaced places and picked noise have not.

    Parameters
    ----------
    centred : ndarray of float64, shape (n, p)
        Features at the centre of each image; the first is the height of the template's peak.
    displaced : ndarray of float64, shape (k, n, p)
        The same, measured at k displaced places of the same images.
    picked : ndarray of float64, shape (m, p)
        The same of `picked_noise`.
    usable : ndarray of bool, shape (n,)
        Images to learn from.

    Returns
    -------
    discriminant : Discriminant

    Notes
    -----
    Fisher's linear discriminants between the centres of the most promising images and either the
    displaced places or picked noise. Displaced places have the same noise, defocus and normalisation but
    hold no centred particle, so nobody has to label anything. Picked noise has a blob in its middle, as
    pickers find it, and is no particle either. The likelihood of both together counts. The first choice
    goes by the height of the peak; then the 30 % of the images that look most like particles are chosen
    again, five times. Junk that is stronger than any particle (ice, carbon) also scores well along one
    direction. Therefore the score also grows with the Mahalanobis distance from the bulk of the
    particles, which concentration steps find as in the minimum covariance determinant (Rousseeuw & Van
    Driessen, Technometrics 41, 1999).
    """
    images = centred[usable]
    places = displaced[:, usable].reshape(-1, centred.shape[1])
    direction, origin = _separating_directions(images, places, picked)
    likeness = _likeness(images, direction, origin)
    best = np.argsort(-likeness, kind="stable")[: max(2, round(BULK * len(images)))]
    mean, precision = _bulk_of(images[best])
    # The typical particle scores 0, and the score has the deviation of displaced places for its unit: a
    # log-likelihood ratio between two Gaussians has their squared distance for its variance.
    typical = float(np.median(likeness[best]))
    unit = math.sqrt(max(float((direction[0] @ _covariance(places)) @ direction[0]), 0.0)) + 1e-12
    return Discriminant(direction, origin + typical, mean, precision, unit, PENALTY)


def discriminant_score(features: Floats, discriminant: Discriminant) -> Floats:
    """Score features (n, p): 0 for the typical particle, larger for junk.

    Returns
    -------
    score : ndarray of float64, shape (n,)
        In standard deviations of displaced places, plus 0.4 of the Mahalanobis distance by which an
        image lies outside the bulk of the particles.
    """
    likeness = _likeness(features, discriminant.direction, discriminant.origin) / discriminant.unit
    return -likeness + discriminant.penalty * outlyingness(features, discriminant)


def _likeness(features: Floats, direction: Floats, origin: Floats) -> Floats:
    """Log-likelihood ratio of a particle to everything else together, up to a constant."""
    ratios = features @ np.atleast_2d(direction).T - origin
    return -np.logaddexp.reduce(-ratios, axis=1)


def outlyingness(features: Floats, discriminant: Discriminant) -> Floats:
    """Mahalanobis distance from the bulk of the particles, as far as it exceeds its expectation."""
    distance = _squared_distance(features, discriminant.mean, discriminant.precision)
    return np.maximum(np.sqrt(distance) - math.sqrt(len(discriminant.mean)), 0)


def _separating_directions(images: Floats, places: Floats, picked: Floats) -> tuple[Floats, Floats]:
    """Directions from displaced places and picked noise to the most promising images, and their origins.

    The promising are chosen by the first alone: faint particles are weaker than the highest noise, and the
    choice would drift to what is weaker still.
    """
    promise = images[:, 0]
    for _ in range(N_ROUNDS):
        promising = images[promise >= np.quantile(promise, 1 - PROMISING)]
        direction, origin = _direction_between(places, promising)
        promise = images @ direction
    against_picked, origin_picked = _direction_between(picked, promising)
    directions, origins = np.stack([direction, against_picked]), np.array([origin, origin_picked])
    ratios = images @ directions.T - origins
    # A set in which no noise was picked must not be judged as if it were.
    shares = likely_shares(np.vstack([np.zeros(len(images)), -ratios.T]))[1:]
    return directions, origins + np.log(shares / shares.sum())


def _direction_between(others: Floats, particles: Floats) -> tuple[Floats, float]:
    """Along which the log-likelihood ratio of particles to others grows, and where it is zero."""
    mean, other = particles.mean(axis=0), others.mean(axis=0)
    pooled = 0.5 * (_covariance(others) + _covariance(particles))
    pooled += np.diag(0.02 * np.diag(pooled) + 1e-9)
    direction = np.linalg.solve(pooled, mean - other)
    return direction, 0.5 * float((mean + other) @ direction)


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
