"""What stands at the centre of an image, and how that differs from what stands elsewhere."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._jit import kernel
from fastsort.radial.template import NOISE_FLOOR, RadialTemplate, backward, matched_filter

# Bands in cycles a particle diameter; rings in particle radii.
BANDS = ((0.5, 2.7), (2.7, 6.0), (6.0, 10.7))
PROFILE_RINGS = (0.25, 0.5, 0.75, 1.0, 1.25)
POWER_RINGS = (0.6, 1.0, 1.3)
N_POWERS = len(BANDS) * len(POWER_RINGS)
N_FEATURES = 1 + len(PROFILE_RINGS) + N_POWERS
# How far from the centre of the box a centred particle's peak may lie, in parts of the box.
CENTRING = 0.06

Features = npt.NDArray[np.float64]


class Peaks(NamedTuple):
    """Peaks of the template's response.

    Attributes
    ----------
    near : ndarray of float32, shape (n,)
        Highest response near the centre, in standard deviations of the noise.
    near_shift : ndarray of float32, shape (n, 2)
        Its row and column from pixel d // 2, in pixels, to a fraction of a pixel.
    other : ndarray of float32, shape (n,)
        Highest response once a particle of height `near` is subtracted.
    other_shift : ndarray of float32, shape (n, 2)
    """

    near: npt.NDArray[np.float32]
    near_shift: npt.NDArray[np.float32]
    other: npt.NDArray[np.float32]
    other_shift: npt.NDArray[np.float32]


def radial_features(
    spectra: npt.NDArray[np.complex64],
    template: RadialTemplate,
    radius: float,
    displacements: tuple[tuple[int, int], ...] = ((0, 0),),
) -> tuple[Features, Peaks, npt.NDArray[np.float32]]:
    """Measure images about their centre, and about displaced centres.

    Parameters
    ----------
    spectra : ndarray of complex64, shape (n, d, d // 2 + 1)
    template : RadialTemplate
    radius : float
        Of the particle, in pixels.
    displacements : sequence of (row, column)
        Where else the measurement is made, in pixels from d // 2; images continue periodically.

    Returns
    -------
    features : ndarray of float64, shape (len(displacements), n, 15)
        Height of the template's peak near the centre; whitened grey value in five rings about that
        peak; logarithm of the whitened power in three bands in three rings.
    peaks : Peaks
        About the last of the displacements.
    response : ndarray of float32, shape (n, d, d)
        The template's response.
    """
    n, box = spectra.shape[:2]
    response = backward(spectra, matched_filter(template, box), box)
    bands = [backward(spectra, curve, box) for curve in _band_filters(template, radius, box)]
    overlap = _self_response(template, box)
    features = np.empty((len(displacements), n, N_FEATURES))
    peaks = Peaks(*(np.empty((n, 2) if shift else n, dtype=np.float32) for shift in (0, 1, 0, 1)))
    rings = np.array(PROFILE_RINGS) * radius, np.array(POWER_RINGS) * radius
    reach = max(1, round(CENTRING * box))
    for displacement, out in zip(displacements, features, strict=True):
        centre = np.array(displacement) + box // 2
        _measure(response, *bands, overlap, *rings, centre, reach, out, *peaks)
    return features, peaks, response


def _band_filters(template: RadialTemplate, radius: float, box: int) -> list[npt.NDArray[np.float64]]:
    noise = np.maximum(template.spectrum, NOISE_FLOOR * template.spectrum[1:].max())
    cycles = np.arange(box // 2 + 1) * 2 * radius / box
    # The lowest frequency belongs to the lowest band, however small the particle.
    cycles[1] = max(cycles[1], BANDS[0][0])
    return [((cycles >= low) & (cycles < high)) / np.sqrt(noise) for low, high in BANDS]


def _self_response(template: RadialTemplate, box: int) -> npt.NDArray[np.float32]:
    # What the template sees of a particle at the origin, 1 at the peak.
    particle = np.ones((1, box, box // 2 + 1), dtype=np.complex64)
    overlap = backward(particle, template.signal * matched_filter(template, box), box)[0]
    return overlap / overlap[0, 0] if overlap[0, 0] > 0 else overlap


@kernel
def _measure(
    response,
    low,
    middle,
    high,
    overlap,
    profile_rings,
    power_rings,
    centre,
    reach,
    features,
    near,
    near_shift,
    other,
    other_shift,
):
    d = response.shape[1]
    n_profile = len(profile_rings)
    n_power = len(power_rings)
    sums = np.empty(n_profile + 3 * n_power)
    profile_count = np.empty(n_profile)
    power_count = np.empty(n_power)
    outer = int(math.ceil(max(profile_rings[-1], power_rings[-1])))
    profile_ring = np.empty((2 * outer + 1, 2 * outer + 1), dtype=np.int64)
    power_ring = np.empty((2 * outer + 1, 2 * outer + 1), dtype=np.int64)
    profile_count[:] = 0
    power_count[:] = 0
    for v in range(-outer, outer + 1):
        for u in range(-outer, outer + 1):
            distance = math.sqrt(v * v + u * u)
            ring = np.searchsorted(profile_rings, distance, side="right")
            profile_ring[v + outer, u + outer] = ring
            if ring < n_profile:
                profile_count[ring] += 1
            ring = np.searchsorted(power_rings, distance, side="right")
            power_ring[v + outer, u + outer] = ring
            if ring < n_power:
                power_count[ring] += 1

    for i in range(response.shape[0]):
        image = response[i]
        best_y = centre[0]
        best_x = centre[1]
        best = -np.inf
        for v in range(-reach, reach + 1):
            for u in range(-reach, reach + 1):
                if v * v + u * u <= reach * reach:
                    value = image[(centre[0] + v) % d, (centre[1] + u) % d]
                    if value > best:
                        best = value
                        best_y = centre[0] + v
                        best_x = centre[1] + u
        near[i] = best
        near_shift[i, 0] = best_y - centre[0] + _vertex(image, best_y, best_x, 1, 0)
        near_shift[i, 1] = best_x - centre[1] + _vertex(image, best_y, best_x, 0, 1)

        explained = max(best, np.float32(0))
        other[i] = -np.inf
        for y in range(d):
            for x in range(d):
                value = image[y, x] - explained * overlap[(y - best_y) % d, (x - best_x) % d]
                if value > other[i]:
                    other[i] = value
                    other_shift[i, 0] = y - d // 2
                    other_shift[i, 1] = x - d // 2

        sums[:] = 0
        for v in range(-outer, outer + 1):
            y = (best_y + v) % d
            for u in range(-outer, outer + 1):
                ring = profile_ring[v + outer, u + outer]
                power = power_ring[v + outer, u + outer]
                if ring == n_profile and power == n_power:
                    continue
                x = (best_x + u) % d
                if ring < n_profile:
                    sums[ring] += low[i, y, x] + middle[i, y, x]
                if power < n_power:
                    sums[n_profile + power] += low[i, y, x] ** 2
                    sums[n_profile + n_power + power] += middle[i, y, x] ** 2
                    sums[n_profile + 2 * n_power + power] += high[i, y, x] ** 2
        features[i, 0] = best
        for ring in range(n_profile):
            features[i, 1 + ring] = sums[ring] / max(profile_count[ring], 1)
        for band in range(3):
            for ring in range(n_power):
                mean = sums[n_profile + band * n_power + ring] / max(power_count[ring], 1)
                features[i, 1 + n_profile + band * n_power + ring] = math.log(mean + 0.01)


@kernel
def _vertex(image, y, x, step_y, step_x):
    # Vertex of the parabola through three values, within half a pixel.
    d = image.shape[0]
    before = image[(y - step_y) % d, (x - step_x) % d]
    here = image[y % d, x % d]
    after = image[(y + step_y) % d, (x + step_x) % d]
    curvature = before - 2 * here + after
    if curvature >= 0:
        return 0.0
    return min(max(0.5 * (before - after) / curvature, -0.5), 0.5)
