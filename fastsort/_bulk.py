"""Where most of a set of measurements lies, whatever the rest of them are."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Bulk(NamedTuple):
    """Where most particles lie among some measurements.

    Attributes
    ----------
    mean : ndarray of float64, shape (p,)
    precision : ndarray of float64, shape (p, p)
        Inverse covariance, scaled so that the median squared distance of the particles is that of a Gaussian.
    """

    mean: Array
    precision: Array


def fit_bulk(values: Array, floor: float = 1e-9) -> Bulk:
    """Find where most of some measurements (n, p) lie; no variance is below the floor.

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


def distance(values: Array, bulk: Bulk) -> Array:
    """Mahalanobis distance of each row."""
    centred = values - bulk.mean
    square: Array = np.sqrt(np.maximum(np.einsum("ij,ij->i", centred @ bulk.precision, centred), 0))
    return square


def beyond(values: Array, bulk: Bulk) -> Array:
    """Distance from the bulk as far as it exceeds its expectation."""
    return np.maximum(distance(values, bulk) - math.sqrt(len(bulk.mean)), 0)
