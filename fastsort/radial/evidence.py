"""What lies at the centre of an image, and how that differs from other places."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._jit import kernel
from fastsort._types import Floats, Images, Singles
from fastsort.radial.template import NOISE_FLOOR, RadialTemplate, gains, matched_filter, n_used, waves

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
    images: Images,
    template: RadialTemplate,
    radius: float,
    displacements: tuple[tuple[int, int], ...] = ((0, 0),),
) -> tuple[Floats, Peaks, Singles]:
    """Measure images about their centre, and about displaced places.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
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
    n, box = images.shape[:2]
    basis, curve = waves(box), matched_filter(template, box)
    planes = np.stack([gains(one, box) for one in (curve, *_band_filters(template, radius, box))])
    used = np.array([n_used(one) for one in planes])
    # Of the template to a particle at the origin, scaled to 1 at the peak.
    overlap = (basis.T @ (gains(template.signal * curve, box) * np.outer(basis[:, 0], basis[:, 0]))) @ basis
    overlap = overlap / overlap[0, 0] if overlap[0, 0] > 0 else overlap
    reach, wide = (max(1, round(part * box)) for part in (CENTRING, OFFSETS))
    response = np.empty_like(images)
    features = np.empty((len(displacements), n, N_FEATURES))
    offsets, ends, rings = _annuli(radius)
    sums = np.empty((len(displacements), n, len(rings)))
    filtered = np.empty((4, box, box), dtype=np.float32)
    tops = np.empty((3, n), dtype=np.float32)
    shifts = np.empty((2, n, 2), dtype=np.float32)
    _measure(
        images,
        basis,
        basis.T.copy(),
        planes,
        used,
        np.tile(overlap, (1, 2)),
        (np.array(displacements) + box // 2) % box,
        reach,
        wide,
        offsets,
        ends,
        filtered.reshape(4, -1),
        filtered,
        response,
        features[:, :, 0],
        sums,
        tops,
        shifts,
    )
    np.matmul(sums, rings, out=features[:, :, 1:])
    powers = features[:, :, -N_POWERS:]
    np.log(powers + 0.01, out=powers)
    return features, Peaks(tops[0], shifts[0], tops[1], shifts[1], tops[2]), response


@lru_cache(maxsize=8)
def _annuli(radius: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Return the pixels of all rings.

    Returns
    -------
    offsets : ndarray of int64, shape (k, 2)
        Rows and columns of the pixels, annulus by annulus.
    ends : ndarray of int64, shape (a,)
        Where each annulus ends.
    rings : ndarray of float64, shape (4 a, 14)
        What four sums over each annulus count in the means over rings: of the grey values, and of the power
        in each band.
    """
    edges = np.unique(PROFILE_RINGS + POWER_RINGS)
    reach = math.ceil(edges[-1] * radius)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    annulus = np.searchsorted(edges * radius, np.hypot(rows, columns).ravel(), side="right")
    order = np.argsort(annulus, kind="stable")[: np.count_nonzero(annulus < len(edges))]
    offsets = np.stack([rows.ravel(), columns.ravel()], axis=1)[order]
    ends = np.searchsorted(annulus[order], np.arange(len(edges)), side="right")
    count = np.diff(ends, prepend=0)
    rings = np.zeros((len(edges), 1 + len(BANDS), N_FEATURES - 1))
    feature = 0
    for column, radii in enumerate((PROFILE_RINGS, *(POWER_RINGS for _ in BANDS))):
        for low, high in itertools.pairwise((0.0, *radii)):
            members = (edges > low) & (edges <= high)
            rings[members, column, feature] = 1 / max(count[members].sum(), 1)
            feature += 1
    return offsets, ends, rings.reshape(-1, N_FEATURES - 1)


def _band_filters(template: RadialTemplate, radius: float, box: int) -> list[Floats]:
    noise = np.maximum(template.spectrum, NOISE_FLOOR * template.spectrum[1:].max())
    cycles = np.arange(box // 2 + 1) * 2 * radius / box
    # The lowest frequency belongs to the lowest band, however small the particle.
    cycles[1] = max(cycles[1], BANDS[0][0])
    return [((cycles >= low) & (cycles < high)) / np.sqrt(noise) for low, high in BANDS]


@kernel
def _measure(
    images,
    basis,
    columns,
    gains,
    used,
    overlap,
    centres,
    reach,
    wide,
    offsets,
    ends,
    flat,
    planes,
    response,
    heights,
    sums,
    tops,
    shifts,
):
    # images (n, d, d), basis (d, d) and its transpose, gains (4, d, d) and used (4,) of template and bands,
    # overlap (d, 2 d), centres (k, 2), offsets and ends of annuli. Writes all that follows: planes (4, d, d),
    # flat (4, d * d) in the same place, for an image's response and bands, and later for what its peaks leave
    # of the response; response (n, d, d), heights (k, n) and sums (k, n, 4 a) about each centre, and what is
    # in `Peaks`: tops (3, n) and shifts (2, n, 2). One image after the other, so that all there is of it
    # stays in the processor's cache.
    d = images.shape[1]
    rows = np.empty((d, d), dtype=np.float32)
    waves = np.empty((d, d), dtype=np.float32)
    here = planes[0]
    pixels = np.empty(len(offsets), dtype=np.uint32)
    before_y = -1
    before_x = -1
    for i in range(images.shape[0]):
        # Waves across as rows and down as columns: products of transposes put that right again.
        _product(images[i], columns, rows)
        _product(columns, rows, waves)
        for band in range(4):
            _filter(waves, gains[band], used[band], basis, rows, planes[band])
        y = centres[0, 0]
        x = centres[0, 1]
        for place in range(len(centres)):
            y, x = _find_near(here, centres[place, 0], centres[place, 1], reach)
            if y != before_y or x != before_x:
                _find_pixels(offsets, y, x, d, pixels)
                before_y = y
                before_x = x
            _sum_annuli(flat, pixels, ends, sums[place, i])
            tops[0, i] = here[y, x]
            heights[place, i] = here[y, x]
        for v in range(d):
            for u in range(d):
                response[i, v, u] = here[v, u]
        centre_y = centres[len(centres) - 1, 0]
        centre_x = centres[len(centres) - 1, 1]
        wide_y, wide_x = _find_near(here, centre_y, centre_x, wide)
        step_y, step_x = _vertex(here, wide_y, wide_x)
        shifts[0, i, 0] = (wide_y - centre_y + d // 2) % d - d // 2 + step_y
        shifts[0, i, 1] = (wide_x - centre_x + d // 2) % d - d // 2 + step_x
        for peak in range(1, 3):
            y, x = _subtract_particle(planes[peak - 1], overlap, y, x, tops[peak - 1, i], planes[peak])
            tops[peak, i] = planes[peak, y, x]
            if peak == 1:
                shifts[1, i, 0] = y - d // 2
                shifts[1, i, 1] = x - d // 2


@kernel
def _product(left, right, out):
    np.dot(left.T, right, out)


@kernel
def _filter(waves, gains, used, basis, rows, out):
    # The image that is left of waves (d, d); writes rows (d, d), too.
    some = np.empty((used, used), dtype=np.float32)
    for v in range(used):
        for u in range(used):
            some[v, u] = waves[v, u] * gains[v, u]
    kept = basis[:used]
    down = rows[:used]
    _product(some, kept, down)
    _product(kept, down, out)


@kernel
def _find_near(response, centre_y, centre_x, reach):
    d = response.shape[0]
    best = -np.inf
    best_y = centre_y
    best_x = centre_x
    for v in range(-reach, reach + 1):
        y = _wrapped(centre_y + v, d)
        for u in range(-reach, reach + 1):
            x = _wrapped(centre_x + u, d)
            if v * v + u * u <= reach * reach and response[y, x] > best:
                best = response[y, x]
                best_y = y
                best_x = x
    return best_y, best_x


@kernel
def _wrapped(place, d):
    return place + (d if place < 0 else (-d if place >= d else 0))


@kernel
def _find_pixels(offsets, y, x, d, pixels):
    # Without a sign: an index that may be negative takes longer.
    for j in range(len(offsets)):
        pixels[j] = _wrapped(y + offsets[j, 0], d) * d + _wrapped(x + offsets[j, 1], d)


@kernel
def _sum_annuli(planes, pixels, ends, sums):
    # Response and three bands (4, d * d), pixels annulus by annulus, so that sums stay in registers; writes
    # sums (4 a,) of the bands.
    start = 0
    for annulus in range(len(ends)):
        total = np.float32(0)
        low_power = np.float32(0)
        middle_power = np.float32(0)
        high_power = np.float32(0)
        for j in range(start, ends[annulus]):
            k = pixels[j]
            low = planes[1, k]
            middle = planes[2, k]
            high = planes[3, k]
            total += low + middle
            low_power += low * low
            middle_power += middle * middle
            high_power += high * high
        sums[4 * annulus] = total
        sums[4 * annulus + 1] = low_power
        sums[4 * annulus + 2] = middle_power
        sums[4 * annulus + 3] = high_power
        start = ends[annulus]


@kernel
def _subtract_particle(response, overlap, y, x, height, rest):
    # Writes rest (d, d), and returns where it is highest.
    # The overlap is there twice, side by side: a row that is shifted round is one stretch of it.
    d = response.shape[0]
    height = max(height, np.float32(0))
    begin = (d - x) % d
    best = np.int32(-0x80000000)
    best_y = 0
    for v in range(d):
        row = overlap[(v - y) % d, begin : begin + d]
        highest = np.int32(-0x80000000)
        for u in range(d):
            value = np.float32(response[v, u] - height * row[u])
            rest[v, u] = value
            # Integers in the order of the numbers: a maximum of integers is vectorised.
            bits = np.float32(value).view(np.int32)
            highest = max(highest, np.int32(bits ^ np.int32(np.int32(bits >> 31) & np.int32(0x7FFFFFFF))))
        if highest > best:
            best = highest
            best_y = v
    best_x = 0
    for u in range(1, d):
        if rest[best_y, u] > rest[best_y, best_x]:
            best_x = u
    return best_y, best_x


@kernel
def _vertex(image, y, x):
    # Of the parabolas through three values down and across: row and column from (y, x), within half a pixel.
    d = image.shape[0]
    here = image[y, x]
    return (
        _extreme(image[_wrapped(y - 1, d), x], here, image[_wrapped(y + 1, d), x]),
        _extreme(image[y, _wrapped(x - 1, d)], here, image[y, _wrapped(x + 1, d)]),
    )


@kernel
def _extreme(before, here, after):
    curvature = before - 2 * here + after
    if curvature >= 0:
        return 0.0
    step = 0.5 * (before - after) / curvature
    if step < -0.5:
        return -0.5
    return 0.5 if step > 0.5 else step
