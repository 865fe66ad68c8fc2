"""The radial template of a data set: what its particles have in common, learned from the images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastsort._jit import kernel
from fastsort._types import Bools, Floats, Images, Indices, Singles

N_ITERATIONS = 6
# Denoised micrographs have frequencies that carry nothing: whitening must not lift them.
NOISE_FLOOR = 0.02
# Widths of the first template, in parts of a known radius, and radii to try where none is known, in
# parts of the box. A hollow particle can trap a start of the wrong width.
STARTS = (0.7, 1.0, 1.3)
RADII = (0.14, 0.19, 0.25, 0.32, 0.4)
# The most images that a template is learned from.
N_IMAGES = 1024
# Images whose responses stay in the processor's cache, and whose transforms do.
CHUNK, BATCH = 64, 256


class RadialTemplate(NamedTuple):
    """A radially symmetric particle and the noise around it, by frequency.

    Attributes
    ----------
    signal : ndarray of float64, shape (d // 2 + 1,)
        Mean Fourier amplitude of the centred particle at 0, 1, ... cycles a box.
    noise : ndarray of float64, shape (d // 2 + 1,)
        Noise power of a pixel at the same frequencies.
    spectrum : ndarray of float64, shape (d // 2 + 1,)
        Median power of a pixel over the images, particles included.
    sign : int
        1 where particles are bright in the images, -1 where they are dark.
    """

    signal: Floats
    noise: Floats
    spectrum: Floats
    sign: int


@lru_cache(maxsize=2)
def waves(box: int) -> Singles:
    """Return orthonormal waves as rows: one that is constant, then cosine and sine of 1, 2, ... cycles."""
    cycles = _cycles(box)
    sine = (np.arange(box) % 2 == 0) & (cycles > 0)
    angle = 2 * np.pi * np.outer(cycles, np.arange(box)) / box - np.pi / 2 * sine[:, None]
    basis = np.cos(angle)
    return (basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32)


def _cycles(number: int) -> Indices:
    """How often each of the first waves repeats in the box."""
    return (np.arange(number) + 1) // 2


@lru_cache(maxsize=2)
def ring_index(box: int) -> Indices:
    """Return the frequency of each product of a wave down and one across, in whole cycles a box."""
    cycles = _cycles(box)
    return np.rint(np.hypot.outer(cycles, cycles)).astype(np.intp)


@lru_cache(maxsize=2)
def ring_count(box: int) -> Indices:
    """Return how many products of waves have each frequency: (d // 2 + 1,)."""
    return np.bincount(ring_index(box).ravel())[: box // 2 + 1]


def ring_sum(plane: Floats) -> Floats:
    """Add up a plane (d, d), product of waves by product, over rings of equal frequency: (d // 2 + 1,)."""
    box = len(plane)
    sums = np.bincount(ring_index(box).ravel(), plane.ravel())
    return sums[: box // 2 + 1].astype(np.float64)


def gains(curve: Floats, box: int) -> Singles:
    """Return what a radial curve (d // 2 + 1,) multiplies each product of waves with: (d, d).

    Nothing is left of frequency 0, nor of the corners, which lie beyond the curve.
    """
    padded = np.zeros(2 * box)
    padded[1 : len(curve)] = curve[1:]
    return padded[ring_index(box)].astype(np.float32)


def n_used(plane: Singles) -> int:
    """Return how many waves, down or across, carry all that gains (d, d) let through."""
    return 1 + int(max(np.flatnonzero(plane.any(axis=0)), default=0))


def forward(images: Images) -> Singles:
    """Return how much images (n, d, d) have of each product of waves: (d, n, d), down, image, across.

    For images this small, matrix products take less time than fast transforms; and as products of a wave
    down and one across they need no complex numbers, since radial curves treat cosines and sines alike.
    """
    n, box = images.shape[:2]
    basis = waves(box)
    down = basis @ np.ascontiguousarray(images.transpose(1, 0, 2)).reshape(box, n * box)
    return (down.reshape(box * n, box) @ basis.T).reshape(box, n, box)


def backward(amounts: Singles, plane: Singles) -> Singles:
    """Multiply what `forward` returns with gains (m, m), m <= d; the images come as (d, n, d), row first."""
    box, n = amounts.shape[:2]
    used = len(plane)
    basis = waves(box)[:used]
    some = amounts[:used, :, :used] * plane[:, None]
    across = some.reshape(used * n, used) @ basis
    return (basis.T @ across.reshape(used, n * box)).reshape(box, n, box)


def ring_power(images: Images) -> Floats:
    """Power spectrum of a pixel, averaged over rings: images (n, d, d) to (n, d // 2 + 1)."""
    n, box = images.shape[:2]
    on_ring = (ring_index(box)[:, :, None] == np.arange(box // 2 + 1)).astype(np.float32)
    power = np.empty((n, box // 2 + 1))
    for start in range(0, n, BATCH):
        part = slice(start, start + BATCH)
        np.matmul(np.square(forward(images[part])), on_ring).sum(axis=0, dtype=np.float64, out=power[part])
    return power / ring_count(box)


def matched_filter(template: RadialTemplate, box: int) -> Floats:
    """Return the radial curve that responds to a particle, and to noise with standard deviation 1."""
    noise = np.maximum(template.noise, NOISE_FLOOR * template.noise[1:].max())
    curve = template.signal / noise
    curve[0] = 0
    deviation = math.sqrt(float((curve**2 * template.noise * ring_count(box)).sum())) / box
    return curve / deviation if deviation > 0 else curve


def learn_template(
    images: Images, radius: float | None, contrast: str = "auto"
) -> tuple[RadialTemplate, float]:
    """Learn the template from a sample of images.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        Background mean 0 and deviation 1.
    radius : float or None
        Particle radius in pixels; None finds it.
    contrast : {"auto", "bright", "dark"}
        Of the particles.

    Returns
    -------
    template : RadialTemplate
    radius : float
        In pixels.

    Notes
    -----
    Gaussians of about the particle's size, whitened by the median spectrum, are the first templates.
    Each is improved six times: the images are correlated with it, and the half of them that responds
    best near the centre is aligned. The radial mean of their transforms is the new signal; the median
    spectrum of the quarter that responds least is the new noise. The function returns the template whose
    response at the centres stands out most from that at the corners. It uses at most 1024 images, evenly
    spread, and none that lies far outside the bulk in any band of frequencies.
    """
    box = images.shape[1]
    images = images[:: -(-len(images) // N_IMAGES)]
    power = ring_power(images)
    usable = ordinary(power)
    amounts, power = forward(images[usable]), power[usable]
    sign = {"bright": 1, "dark": -1}.get(contrast) or _contrast_sign(amounts, power, radius or 0.25 * box)
    starts = [part * radius for part in STARTS] if radius else [part * box for part in RADII]
    templates = [_iterate(amounts, power, start, sign) for start in starts]
    best = max(templates, key=lambda template: _prominence(amounts, template))
    return best, radius or _template_radius(best, box)


def ordinary(power: Floats, limit: float = 4.5) -> Bools:
    """Return which power spectra (n, d // 2 + 1) lie in the bulk in every octave of frequency."""
    edges = np.unique(np.geomspace(1, power.shape[1], 7).astype(int))
    bands = [power[:, a:b].mean(axis=1) for a, b in itertools.pairwise(edges)]
    logs = np.log(np.stack(bands, axis=1) + 1e-12)
    middle = np.median(logs, axis=0)
    spread = 1.4826 * np.median(np.abs(logs - middle), axis=0) + 1e-6
    usable = np.all(np.abs(logs - middle) < limit * spread, axis=1)
    return usable if usable.sum() >= 2 else np.ones(len(power), dtype=bool)


def _contrast_sign(amounts: Singles, power: Floats, radius: float) -> int:
    box = len(amounts)
    start = _start(power, radius, 1, box)
    return 1 if np.median(_responses_at(amounts, start, ((box // 2, box // 2),))) >= 0 else -1


def _responses_at(amounts: Singles, template: RadialTemplate, places: Sequence[tuple[int, int]]) -> Singles:
    """Response of each image at some pixels: (n, len(places))."""
    box = len(amounts)
    plane, basis = gains(matched_filter(template, box), box), waves(box)
    products = np.stack([plane * np.outer(basis[:, y], basis[:, x]) for y, x in places], axis=-1)
    return np.matmul(amounts, products).sum(axis=0)


def _start(power: Floats, radius: float, sign: int, box: int) -> RadialTemplate:
    frequency = np.arange(box // 2 + 1) / box
    noise = np.median(power, axis=0) + 1e-12
    return RadialTemplate(sign * np.exp(-0.5 * (np.pi * frequency * radius) ** 2), noise, noise, sign)


def _iterate(amounts: Singles, power: Floats, radius: float, sign: int) -> RadialTemplate:
    box, n = amounts.shape[:2]
    template = _start(power, radius, sign, box)
    basis, count, by_ring = waves(box), ring_count(box), power.T.copy()
    offset = np.arange(box) - box // 2
    beyond = np.hypot.outer(offset, offset) > max(box / 2 - 0.8 * radius, 1.5)
    beyond = np.where(beyond, -np.inf, 0).astype(np.float32)
    best, least = max(n // 2, 1), max(n // 4, 1)
    for _ in range(N_ITERATIONS):
        plane = gains(matched_filter(template, box), box)
        used = n_used(plane)
        plane = plane[:used, :used]
        near, far, places = np.empty(n), np.empty(n), np.empty((n, 2), dtype=np.intp)
        for start in range(0, n, CHUNK):
            part = slice(start, start + CHUNK)
            _peaks_near_and_far(
                backward(amounts[:, part], plane), beyond, near[part], far[part], places[part]
            )
        chosen = np.argsort(far - 2 * near, kind="stable")[:best]
        empty = np.argsort(far, kind="stable")[:least]
        total = np.zeros((box, box))
        _sum_centred(amounts, chosen, places, basis.T.copy(), total)
        signal = ring_sum(total) / count * (box**2 / best)
        noise = np.median(by_ring[:, empty], axis=1) + 1e-12
        # Aligned noise alone would give this much signal: it is subtracted.
        chance = 4 * noise * box**2 / count / best
        signal *= np.clip(1 - chance / np.maximum(signal**2, 1e-30), 0, 1)
        signal[0] = 0
        if not signal.any():
            break
        template = template._replace(signal=signal, noise=noise)
    return template


def _prominence(amounts: Singles, template: RadialTemplate) -> float:
    # Picks are centred: the right template responds at the centre more than at the corners.
    half = len(amounts) // 2
    responses = _responses_at(amounts, template, ((half, half), (0, 0), (0, half), (half, 0)))
    centre, elsewhere = responses[:, 0], responses[:, 1:]
    return float((centre.mean() - elsewhere.mean()) / (elsewhere.std() + 1e-9))


def _template_radius(template: RadialTemplate, box: int) -> float:
    # The radius that holds 98 % of the squared profile (a disk's: 0.99 of its own). The mean of an
    # image is unknown, so the profile is measured from its value at the rim of the box.
    basis = waves(box)
    middle = basis[:, box // 2]
    profile = basis.T @ (gains(template.signal, box) * np.outer(middle, middle)) @ basis
    offset = np.arange(box) - box // 2
    distance = np.hypot.outer(offset, offset).ravel()
    order = np.argsort(distance, kind="stable")
    distance, height = distance[order], profile.ravel()[order]
    inside, rim = distance <= 0.5 * box, (distance > 0.42 * box) & (distance <= 0.5 * box)
    energy = np.cumsum((height[inside] - height[rim].mean()) ** 2)
    radius = distance[np.searchsorted(energy, 0.98 * energy[-1])] / 0.99
    return float(np.clip(radius, 0.1 * box, 0.45 * box))


@kernel
def _peaks_near_and_far(maps, beyond, near, far, places):
    # maps (d, n, d), beyond (d, d): 0 near the middle, -infinity elsewhere. Writes near and far (n,), the
    # highest values near the middle and anywhere, and places (n, 2), row and column of the first.
    d = maps.shape[0]
    about = np.empty(d, dtype=np.float32)
    anywhere = np.empty(d, dtype=np.float32)
    for i in range(maps.shape[1]):
        for x in range(d):
            about[x] = -np.inf
            anywhere[x] = -np.inf
        # All columns at the same time: this is vectorised.
        for y in range(d):
            for x in range(d):
                value = maps[y, i, x]
                anywhere[x] = value if value > anywhere[x] else anywhere[x]
                value += beyond[y, x]
                about[x] = value if value > about[x] else about[x]
        highest = anywhere[0]
        column = 0
        for x in range(1, d):
            highest = max(highest, anywhere[x])
            column = x if about[x] > about[column] else column
        row = d // 2
        for y in range(d):
            row = y if maps[y, i, column] + beyond[y, column] == about[column] else row
        near[i] = about[column]
        far[i] = highest
        places[i, 0] = row
        places[i, 1] = column


@kernel
def _sum_centred(amounts, chosen, places, columns, total):
    # amounts (d, n, d), places (n, 2), columns (d, d): the waves as columns. Adds to total (d, d) what the
    # chosen images have of each product of waves at their places.
    d = amounts.shape[0]
    for i in chosen:
        y = places[i, 0]
        x = places[i, 1]
        for v in range(d):
            for u in range(d):
                total[v, u] += amounts[v, i, u] * columns[y, v] * columns[x, u]
