"""Where most of a set of measurements lies, whatever the others are."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastsort._types import Floats


class Bulk(NamedTuple):
    """Where most particles lie among some measurements.

    Attributes
    ----------
    mean : ndarray of float64, shape (p,)
    precision : ndarray of float64, shape (p, p)
        Inverse covariance, scaled so that the median squared distance of the particles is that of a Gaussian.
    """

    mean: Floats
    precision: Floats


def fit_bulk(values: Floats, floor: float = 1e-9) -> Bulk:
    """Find where most of some measurements lie.

    Parameters
    ----------
    values : ndarray of float64, shape (n, p)
    floor : float
        Added to each variance, so that none vanishes.

    Returns
    -------
    bulk : Bulk

    Notes
    -----
    Three concentration steps on the nearest three quarters, as in the minimum covariance determinant
    (Rousseeuw & Van Driessen, Technometrics 41, 1999).
    """
    size = values.shape[1]
    part = values
    for step in range(4):
        mean = part.mean(axis=0)
        covariance = np.atleast_2d(np.cov(part.T)) if len(part) > 1 else np.eye(size)
        covariance = covariance + np.diag(1e-6 * np.diag(covariance) + floor)
        bulk = Bulk(mean, np.linalg.inv(covariance))
        distances = distance(values, bulk)
        if step < 3:
            part = values[np.argsort(distances, kind="stable")[: max(size + 2, round(0.75 * len(values)))]]
    typical = float(np.median(distances)) ** 2
    return bulk._replace(precision=bulk.precision * ((size - 0.7) / typical if typical > 0 else 1.0))


def distance(values: Floats, bulk: Bulk) -> Floats:
    """Mahalanobis distance of each row from the bulk."""
    centred = values - bulk.mean
    distances: Floats = np.sqrt(np.maximum(np.einsum("ij,ij->i", centred @ bulk.precision, centred), 0))
    return distances


def excess_distance(values: Floats, bulk: Bulk) -> Floats:
    """Mahalanobis distance of each row from the bulk, less its expectation sqrt(p), but never below 0."""
    return np.maximum(distance(values, bulk) - math.sqrt(len(bulk.mean)), 0)


def likely_shares(densities: Floats, rounds: int = 30) -> Floats:
    """Return the shares of several kinds that make what was measured most likely.

    Parameters
    ----------
    densities : ndarray of float64, shape (k, n)
        Logarithms of the density of each kind, for each image.
    rounds : int
        Of expectation maximisation, from equal shares.

    Returns
    -------
    shares : ndarray of float64, shape (k,)
    """
    relative = np.exp(np.clip(densities - densities.max(axis=0), -700, 0))
    shares = np.full(len(densities), 1 / len(densities))
    for _ in range(rounds):
        members = shares[:, None] * relative
        shares = (members / members.sum(axis=0)).mean(axis=1)
    return np.maximum(shares, 1e-6)
