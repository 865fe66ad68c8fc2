"""The radial template of a data set: what its particles have in common, learned from the images."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import joblib
import numpy as np
import numpy.typing as npt
import scipy.fft

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

Spectra = npt.NDArray[np.complex64]


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


def ring_index(box: int) -> Indices:
    """Return the frequency of each half-plane coefficient in whole cycles a box; `box` for the corners."""
    rows = scipy.fft.fftfreq(box, 1 / box)[:, None]
    rings = np.rint(np.hypot(rows, np.arange(box // 2 + 1))).astype(np.intp)
    return np.where(rings <= box // 2, rings, box)


def ring_weights(box: int) -> Floats:
    """Return how often each half-plane coefficient occurs in the full plane."""
    weights = np.full((box, box // 2 + 1), 2.0)
    weights[:, 0] = 1
    if box % 2 == 0:
        weights[:, -1] = 1
    return weights


def ring_mean(values: npt.NDArray[np.floating], box: int) -> Floats:
    """Average half-planes (..., d, d // 2 + 1) over rings of equal frequency: (..., d // 2 + 1)."""
    rings, weights = ring_index(box).ravel(), ring_weights(box).ravel()
    flat = values.reshape(-1, rings.size)
    sums = np.array([np.bincount(rings, weights * row, box + 1) for row in flat])
    means = sums[:, : box // 2 + 1] / np.bincount(rings, weights, box + 1)[: box // 2 + 1]
    return means.reshape(*values.shape[:-2], -1)


def ring_power(images: Images) -> Floats:
    """Power spectrum of a pixel, averaged over rings: images (n, d, d) to (n, d // 2 + 1)."""
    n, box = images.shape[:2]
    rings = ring_index(box)
    count = np.bincount(rings.ravel(), ring_weights(box).ravel(), box + 1)
    power = np.empty((n, box + 1))
    for start in range(0, n, 256):
        _sum_power(forward(images[start : start + 256]), rings, ring_weights(box), power[start : start + 256])
    return (power / (np.maximum(count, 1) * box**2))[:, : box // 2 + 1]


def half_plane(curve: npt.NDArray[np.floating], box: int) -> Singles:
    """Spread a radial curve (d // 2 + 1,) over the half plane; zero in the corners and at frequency 0."""
    padded = np.zeros(box + 1)
    padded[1 : len(curve)] = curve[1:]
    return padded[ring_index(box)].astype(np.float32)


def forward(images: Images) -> Spectra:
    """Return Fourier transforms about the first pixel: a peak then lies where its particle does."""
    return scipy.fft.rfft2(images, workers=1)


def backward(spectra: Spectra, curve: npt.NDArray[np.floating], box: int) -> Images:
    """Multiply transforms with a radial curve, and return the images."""
    return scipy.fft.irfft2(spectra * half_plane(curve, box), s=(box, box), workers=1, overwrite_x=True)


def matched_filter(template: RadialTemplate, box: int) -> Floats:
    """Return the radial curve that responds to a particle, and to noise with standard deviation 1."""
    noise = np.maximum(template.noise, NOISE_FLOOR * template.noise[1:].max())
    curve = template.signal / noise
    curve[0] = 0
    count = np.bincount(ring_index(box).ravel(), ring_weights(box).ravel(), box + 1)[: len(curve)]
    deviation = math.sqrt(float((curve**2 * template.noise * count).sum())) / box
    return curve / deviation if deviation > 0 else curve


def learn_template(
    images: Images,
    radius: float | None,
    contrast: str = "auto",
    n_jobs: int | None = None,
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
    n_jobs : int, optional
        Workers, as joblib counts them.

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
    spectra = forward(images)
    power = ring_power(images)
    usable = ordinary(power)
    spectra, power = spectra[usable], power[usable]
    sign = {"bright": 1, "dark": -1}.get(contrast) or _contrast_sign(spectra, power, radius or 0.25 * box)
    starts = [part * radius for part in STARTS] if radius else [part * box for part in RADII]
    tasks = [joblib.delayed(_iterate)(spectra, power, start, sign) for start in starts]
    templates = joblib.Parallel(n_jobs=n_jobs, require="sharedmem")(tasks)
    best = max(templates, key=lambda template: _prominence(spectra, template))
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


def _contrast_sign(spectra: Spectra, power: Floats, radius: float) -> int:
    box = spectra.shape[1]
    start = _start(power, radius, 1, box)
    maps = backward(spectra, matched_filter(start, box), box)
    return 1 if np.median(maps[:, box // 2, box // 2]) >= 0 else -1


def _start(power: Floats, radius: float, sign: int, box: int) -> RadialTemplate:
    frequency = np.arange(box // 2 + 1) / box
    noise = np.median(power, axis=0) + 1e-12
    return RadialTemplate(sign * np.exp(-0.5 * (np.pi * frequency * radius) ** 2), noise, noise, sign)


def _iterate(spectra: Spectra, power: Floats, radius: float, sign: int) -> RadialTemplate:
    n, box = spectra.shape[:2]
    template = _start(power, radius, sign, box)
    count = np.bincount(ring_index(box).ravel(), ring_weights(box).ravel(), box + 1)[: box // 2 + 1]
    reach = max(box / 2 - 0.8 * radius, 1.5)
    best, least = max(n // 2, 1), max(n // 4, 1)
    for _ in range(N_ITERATIONS):
        curve = matched_filter(template, box)
        near, far, shifts = np.empty(n), np.empty(n), np.empty((n, 2))
        for start in range(0, n, 256):
            part = slice(start, start + 256)
            _peaks_near_and_far(
                backward(spectra[part], curve, box), reach, near[part], far[part], shifts[part]
            )
        chosen = np.argsort(far - 2 * near, kind="stable")[:best]
        empty = np.argsort(far, kind="stable")[:least]
        total = np.zeros((box, box // 2 + 1))
        _sum_centred(spectra, chosen, shifts, total)
        signal = ring_mean(total, box) / best
        noise = np.median(power[empty], axis=0) + 1e-12
        # Aligned noise alone would give this much signal: it is subtracted.
        chance = 4 * noise * box**2 / count / best
        signal *= np.clip(1 - chance / np.maximum(signal**2, 1e-30), 0, 1)
        signal[0] = 0
        if not signal.any():
            break
        template = RadialTemplate(signal, noise, np.median(power, axis=0) + 1e-12, sign)
    return template


def _prominence(spectra: Spectra, template: RadialTemplate) -> float:
    # Picks are centred: the right template responds at the centre more than at the corners.
    box = spectra.shape[1]
    maps = backward(spectra, matched_filter(template, box), box)
    centre = maps[:, box // 2, box // 2]
    elsewhere = np.concatenate([maps[:, 0, 0], maps[:, 0, box // 2], maps[:, box // 2, 0]])
    return float((centre.mean() - elsewhere.mean()) / (elsewhere.std() + 1e-9))


def _template_radius(template: RadialTemplate, box: int) -> float:
    # The radius that holds 98 % of the squared profile (a disk's: 0.99 of its own). The mean of an
    # image is unknown, so the profile is measured from its value at the rim of the box.
    profile = scipy.fft.fftshift(scipy.fft.irfft2(half_plane(template.signal, box), s=(box, box), workers=1))
    offset = np.arange(box) - box // 2
    distance = np.hypot.outer(offset, offset).ravel()
    order = np.argsort(distance, kind="stable")
    distance, height = distance[order], profile.ravel()[order]
    inside, rim = distance <= 0.5 * box, (distance > 0.42 * box) & (distance <= 0.5 * box)
    energy = np.cumsum((height[inside] - height[rim].mean()) ** 2)
    radius = distance[np.searchsorted(energy, 0.98 * energy[-1])] / 0.99
    return float(np.clip(radius, 0.1 * box, 0.45 * box))


@kernel
def _sum_power(spectra, rings, weights, power):
    for i in range(spectra.shape[0]):
        power[i] = 0
        for row in range(spectra.shape[1]):
            for column in range(spectra.shape[2]):
                value = spectra[i, row, column]
                square = value.real * value.real + value.imag * value.imag
                power[i, rings[row, column]] += weights[row, column] * square


@kernel
def _peaks_near_and_far(maps, reach, near, far, shifts):
    d = maps.shape[1]
    middle = d // 2
    for i in range(maps.shape[0]):
        near[i] = -np.inf
        far[i] = -np.inf
        for y in range(d):
            for x in range(d):
                value = maps[i, y, x]
                if value > far[i]:
                    far[i] = value
                if value > near[i] and (y - middle) ** 2 + (x - middle) ** 2 <= reach * reach:
                    near[i] = value
                    shifts[i, 0] = y
                    shifts[i, 1] = x


@kernel
def _sum_centred(spectra, chosen, positions, total):
    # The real part of a transform with the origin moved to the particle: all that the radial mean needs.
    d = spectra.shape[1]
    half = spectra.shape[2]
    cos_x = np.empty(half)
    sin_x = np.empty(half)
    for i in chosen:
        for column in range(half):
            angle = 2 * np.pi * column * positions[i, 1] / d
            cos_x[column] = np.cos(angle)
            sin_x[column] = np.sin(angle)
        for row in range(d):
            angle = 2 * np.pi * row * positions[i, 0] / d
            cos_y = np.cos(angle)
            sin_y = np.sin(angle)
            for column in range(half):
                value = spectra[i, row, column]
                cosine = cos_y * cos_x[column] - sin_y * sin_x[column]
                sine = sin_y * cos_x[column] + cos_y * sin_x[column]
                total[row, column] += value.real * cosine - value.imag * sine
