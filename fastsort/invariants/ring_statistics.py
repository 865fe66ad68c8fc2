"""What is typical of a set of images, ring by ring: the power of their noise and their amplitude."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.fft

from fastsort._jit import kernel
from fastsort._types import Array, Bools, Floats, Images, Indices, Singles
from fastsort.images.batches import default_batch_size, map_batches
from fastsort.particles.source import Particles, as_particles, choose_particles, evenly_spaced

# Medians over this many images are known to a few percent of their spread.
SAMPLE = 2048
# Below this ring the corners of the box, where noise is measured, are too small to tell.
FIRST_RING = 3


class RingStatistics(NamedTuple):
    """What is typical of a set of images at 0, 1, ... d // 2 cycles a box.

    Attributes
    ----------
    noise : ndarray of float64, shape (d // 2 + 1,)
        Power of a pixel outside the disk of radius d // 2: median over the images.
    amplitude : ndarray of float64, shape (d // 2 + 1,)
        Mean over a ring of |F image| / d: median over the images.
    """

    noise: Floats
    amplitude: Floats


def ring_statistics(images: Array | Particles, *, n_jobs: int | None = None) -> RingStatistics:
    """Measure the noise and the amplitude that are typical of images, ring by ring.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        If there are more than 2048, so many are read, evenly spaced.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    statistics : RingStatistics
        Medians over the images without a NaN or an infinity; if there are none, the noise is 0 and the
        amplitude is 1.

    Raises
    ------
    InputError
        If the images are not a stack of squares, or there are none.

    Notes
    -----
    Noise is measured where no particle is, in the corners of the box. Rings below the third get the noise
    of the third.
    """
    particles = as_particles(images)
    chosen = evenly_spaced(len(particles), SAMPLE)
    batches = map_batches(
        _rings_batch,
        choose_particles(particles, chosen),
        batch_size=default_batch_size(particles.box),
        n_jobs=n_jobs,
    )
    curves = np.concatenate(list(batches))
    curves = curves[np.isfinite(curves).all(axis=(1, 2))]
    if len(curves) == 0:
        none = np.zeros(particles.box // 2 + 1)
        return RingStatistics(none, none + 1)
    return RingStatistics(*np.median(curves, axis=0))


def _rings_batch(images: Images, start: int) -> Floats:
    """Noise power and mean amplitude of each ring: (n, 2, d // 2 + 1)."""
    box = images.shape[1]
    corners = _corners(box).astype(np.float32)
    rings, weights = rings_of_plane(box, box)
    spoilt = ~np.isfinite(images).all(axis=(1, 2))
    subtract_background(images)
    curves = np.empty((len(images), 2, box // 2 + 1))
    with np.errstate(invalid="ignore", over="ignore"):
        for curve, seen in ((0, images * corners), (1, images)):
            amplitudes = np.abs(scipy.fft.rfft2(seen, workers=1)).reshape(len(images), -1)
            # Squares in the unit of the result: those of a spectrum overflow sooner.
            amplitudes /= np.sqrt(corners.sum()) if curve == 0 else box
            _ring_means(rings, weights, amplitudes**2 if curve == 0 else amplitudes, curves[:, curve])
    curves[:, 0, :FIRST_RING] = curves[:, 0, FIRST_RING : FIRST_RING + 1]
    # The mean of each image is the background's, which is not the particle's amplitude.
    curves[:, 1, 0] = curves[:, 1, 1]
    curves[spoilt] = np.nan
    return curves


@kernel
def _ring_means(rings, weights, values, means):
    # means (n, rings) of values (n, coefficients).
    for i in range(values.shape[0]):
        means[i] = 0
        for k in range(values.shape[1]):
            means[i, rings[k]] += weights[k] * values[i, k]


def subtract_background(images: Images) -> None:
    """Subtract the mean outside the disk from images (n, d, d), in place, so that padding makes no edge."""
    _subtract_mean(_outside(images.shape[1]), images.reshape(len(images), -1))


@lru_cache(maxsize=2)
def _outside(box: int) -> Indices:
    return np.flatnonzero(_corners(box))


@kernel
def _subtract_mean(chosen, images):
    for i in range(images.shape[0]):
        total = 0.0
        for k in chosen:
            total += images[i, k]
        # The sum of equal pixels is exact: flat images become zero and not rounding errors.
        level = total / chosen.shape[0]
        for k in range(images.shape[1]):
            images[i, k] -= level


def _corners(box: int) -> Bools:
    offset = np.arange(box) - box // 2
    return np.add.outer(offset**2, offset**2) >= (box // 2) ** 2


@lru_cache(maxsize=2)
def rings_of_plane(box: int, size: int) -> tuple[Indices, Singles]:
    """Ring of each coefficient of a real FFT, the last one for those beyond it, and weight in its mean."""
    rings = np.minimum(np.rint(plane_radius(size) * box / size), box // 2).astype(np.intp).ravel()
    weights = multiplicity(size).ravel()
    return rings, (weights / np.bincount(rings, weights)[rings]).astype(np.float32)


def multiplicity(size: int) -> Floats:
    """How often each coefficient of a real FFT occurs in the whole plane."""
    weights = np.full((size, size // 2 + 1), 2.0)
    weights[:, 0] = 1
    if size % 2 == 0:
        weights[:, -1] = 1
    return weights


def plane_radius(size: int) -> Floats:
    """Frequency of each coefficient of a real FFT in cycles per `size` pixels."""
    return np.hypot(size * scipy.fft.fftfreq(size)[:, np.newaxis], np.arange(size // 2 + 1))
