"""What lies at the centre of an image, and how that differs from other places."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._jit import kernel
from fastsort._types import Floats, Singles
from fastsort.radial.template import NOISE_FLOOR, RadialTemplate, Spectra, backward, matched_filter

# Bands in cycles a particle diameter; rings in particle radii.
BANDS = ((0.5, 2.7), (2.7, 6.0), (6.0, 10.7))
PROFILE_RINGS = (0.25, 0.5, 0.75, 1.0, 1.25)
POWER_RINGS = (0.6, 1.0, 1.3)
N_POWERS = len(BANDS) * len(POWER_RINGS)
N_FEATURES = 1 + len(PROFILE_RINGS) + N_POWERS
# How far from the centre of the box the peak of a centred particle may lie, in parts of the box: when it
# is scored, and when its place is measured.
CENTRING = 0.08
OFFSETS = 0.14


class Peaks(NamedTuple):
    """Peaks of the template's response.

    Attributes
    ----------
    near : ndarray of float32, shape (n,)
        Highest response near the centre, in standard deviations of the noise.
    near_shift : ndarray of float32, shape (n, 2)
        Row and column of the highest response in a wider range about the centre, from pixel d // 2,
        in pixels, to a fraction of a pixel.
    other : ndarray of float32, shape (n,)
        Highest response once a particle of height `near` is subtracted.
    other_shift : ndarray of float32, shape (n, 2)
    third : ndarray of float32, shape (n,)
        Highest response once a particle of height `other` is subtracted, too.
    """

    near: Singles
    near_shift: Singles
    other: Singles
    other_shift: Singles
    third: Singles


def radial_features(
    spectra: Spectra,
    template: RadialTemplate,
    radius: float,
    displacements: tuple[tuple[int, int], ...] = ((0, 0),),
) -> tuple[Floats, Peaks, Singles]:
    """Measure images about their centre, and about displaced places.

    Parameters
    ----------
    spectra : ndarray of complex64, shape (n, d, d // 2 + 1)
    template : RadialTemplate
    radius : float
        Of the particle, in pixels.
    displacements : sequence of (row, column)
        Centres of the measurements, in pixels from d // 2; images continue periodically.

    Returns
    -------
    features : ndarray of float64, shape (len(displacements), n, 15)
        Height of the template's peak near the centre; whitened grey value in five rings about that
        peak; logarithm of the whitened power in three bands in three rings.
    peaks : Peaks
        About the last of the displacements.
    response : ndarray of float32, shape (n, d, d)
        Of the template.
    """
    n, box = spectra.shape[:2]
    response = backward(spectra, matched_filter(template, box), box)
    bands = [backward(spectra, curve, box) for curve in _band_filters(template, radius, box)]
    overlap = _self_response(template, box)
    features = np.empty((len(displacements), n, N_FEATURES))
    near = np.empty(n, dtype=np.float32)
    corner = np.empty((n, 2), dtype=np.int64)
    near_shift, other_shift = np.empty((2, n, 2), dtype=np.float32)
    offsets, ends = _annuli(radius)
    reach = max(1, round(CENTRING * box))
    for displacement, out in zip(displacements, features, strict=True):
        centre = np.array(displacement) + box // 2
        _find_near(response, centre, reach, near, corner, near_shift)
        sums = np.empty((n, len(ends), 4))
        _sum_annuli(*bands, corner, offsets, ends, sums)
        out[:, 0] = near
        out[:, 1:] = _ring_features(sums, ends)
    centre = np.array(displacements[-1]) + box // 2
    wide = max(1, round(OFFSETS * box))
    _find_near(response, centre, wide, np.empty_like(near), np.empty_like(corner), near_shift)
    other, third = np.empty((2, n), dtype=np.float32)
    _find_others(response, np.tile(overlap, (1, 2)), near, corner, other, other_shift, third)
    return features, Peaks(near, near_shift, other, other_shift, third), response


def _annuli(radius: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Offsets (row, column) of the pixels in all rings, annulus by annulus, and where each annulus ends."""
    edges = np.unique(PROFILE_RINGS + POWER_RINGS) * radius
    reach = math.ceil(edges[-1])
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    annulus = np.searchsorted(edges, np.hypot(rows, columns).ravel(), side="right")
    order = np.argsort(annulus, kind="stable")[: np.count_nonzero(annulus < len(edges))]
    offsets = np.stack([rows.ravel(), columns.ravel()], axis=1)[order]
    return offsets, np.searchsorted(annulus[order], np.arange(len(edges)), side="right")


def _ring_features(sums: Floats, ends: npt.NDArray[np.int64]) -> Floats:
    edges = np.unique(PROFILE_RINGS + POWER_RINGS)
    count = np.diff(ends, prepend=0)

    def rings(radii: tuple[float, ...], column: int) -> Floats:
        inner = (0.0, *radii[:-1])
        members = [(edges > low) & (edges <= high) for low, high in zip(inner, radii, strict=True)]
        totals = [sums[:, member, column].sum(axis=1) / max(count[member].sum(), 1) for member in members]
        return np.stack(totals, axis=1)

    powers = [np.log(rings(POWER_RINGS, 1 + band) + 0.01) for band in range(len(BANDS))]
    return np.concatenate([rings(PROFILE_RINGS, 0), *powers], axis=1)


def _band_filters(template: RadialTemplate, radius: float, box: int) -> list[Floats]:
    noise = np.maximum(template.spectrum, NOISE_FLOOR * template.spectrum[1:].max())
    cycles = np.arange(box // 2 + 1) * 2 * radius / box
    # The lowest frequency belongs to the lowest band, however small the particle.
    cycles[1] = max(cycles[1], BANDS[0][0])
    return [((cycles >= low) & (cycles < high)) / np.sqrt(noise) for low, high in BANDS]


def _self_response(template: RadialTemplate, box: int) -> Singles:
    # Response of the template to a particle at the origin, scaled to 1 at the peak.
    particle = np.ones((1, box, box // 2 + 1), dtype=np.complex64)
    overlap = backward(particle, template.signal * matched_filter(template, box), box)[0]
    return overlap / overlap[0, 0] if overlap[0, 0] > 0 else overlap


@kernel
def _find_near(response, centre, reach, near, corner, shift):
    # response (n, d, d), centre (2,); writes near (n,), corner (n, 2) and shift (n, 2).
    d = response.shape[1]
    for i in range(response.shape[0]):
        image = response[i]
        near[i] = -np.inf
        for v in range(-reach, reach + 1):
            for u in range(-reach, reach + 1):
                if v * v + u * u <= reach * reach:
                    value = image[(centre[0] + v) % d, (centre[1] + u) % d]
                    if value > near[i]:
                        near[i] = value
                        corner[i, 0] = (centre[0] + v) % d
                        corner[i, 1] = (centre[1] + u) % d
                        shift[i, 0] = v
                        shift[i, 1] = u
        shift[i, 0] += _vertex(image, corner[i, 0], corner[i, 1], 1, 0)
        shift[i, 1] += _vertex(image, corner[i, 0], corner[i, 1], 0, 1)


@kernel
def _sum_annuli(low, middle, high, corner, offsets, ends, sums):
    # Three bands (n, d, d), corner (n, 2), offsets (k, 2), ends (a,); writes sums (n, a, 4).
    # Pixels come annulus by annulus, so that sums stay in registers.
    d = low.shape[1]
    flat = np.empty(len(offsets), dtype=np.int64)
    for i in range(low.shape[0]):
        for j in range(len(offsets)):
            y = corner[i, 0] + offsets[j, 0]
            x = corner[i, 1] + offsets[j, 1]
            y += d if y < 0 else (-d if y >= d else 0)
            x += d if x < 0 else (-d if x >= d else 0)
            flat[j] = y * d + x
        low_pixels = low[i].ravel()
        middle_pixels = middle[i].ravel()
        high_pixels = high[i].ravel()
        start = 0
        for annulus in range(len(ends)):
            total = np.float32(0)
            low_power = np.float32(0)
            middle_power = np.float32(0)
            high_power = np.float32(0)
            for j in range(start, ends[annulus]):
                k = flat[j]
                total += low_pixels[k] + middle_pixels[k]
                low_power += low_pixels[k] * low_pixels[k]
                middle_power += middle_pixels[k] * middle_pixels[k]
                high_power += high_pixels[k] * high_pixels[k]
            sums[i, annulus, 0] = total
            sums[i, annulus, 1] = low_power
            sums[i, annulus, 2] = middle_power
            sums[i, annulus, 3] = high_power
            start = ends[annulus]


@kernel
def _find_others(response, overlap, near, corner, other, shift, third):
    # response (n, d, d), overlap (d, 2 d), near (n,), corner (n, 2); writes other, shift and third.
    d = response.shape[1]
    rest = np.empty((d, d), dtype=np.float32)
    for i in range(response.shape[0]):
        for v in range(d):
            for u in range(d):
                rest[v, u] = response[i, v, u]
        _subtract_particle(rest, overlap, corner[i, 0], corner[i, 1], near[i])
        y, x = _highest(rest)
        other[i] = rest[y, x]
        shift[i, 0] = y - d // 2
        shift[i, 1] = x - d // 2
        _subtract_particle(rest, overlap, y, x, other[i])
        y, x = _highest(rest)
        third[i] = rest[y, x]


@kernel
def _subtract_particle(response, overlap, y, x, height):
    # The overlap is there twice, side by side: a row that is shifted round is one stretch of it.
    d = response.shape[0]
    if height <= 0:
        return
    begin = (d - x) % d
    for v in range(d):
        row = overlap[(v - y) % d, begin : begin + d]
        for u in range(d):
            response[v, u] -= height * row[u]


@kernel
def _highest(response):
    best_y = 0
    best_x = 0
    best = response[0, 0]
    for y in range(response.shape[0]):
        for x in range(response.shape[1]):
            if response[y, x] > best:
                best = response[y, x]
                best_y = y
                best_x = x
    return best_y, best_x


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
