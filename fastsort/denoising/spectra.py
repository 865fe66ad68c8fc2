"""Power spectra of the noise and of the clean images of a set, ring by ring, from the set alone."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.fft
from scipy.special import j0

from fastsort._brief import brief
from fastsort._checks import InputError
from fastsort._types import Array, Bools, Floats, Images, Indices, Singles
from fastsort.images.batches import map_batches
from fastsort.images.ctf import contrast_transfer
from fastsort.invariants.ring_statistics import multiplicity, plane_radius
from fastsort.particles.source import Particles, as_particles, choose_particles, evenly_spaced
from fastsort.particles.table import CtfParameters

# Pixels that are read to learn the spectra: 2048 images of 64 px.
SAMPLE_PIXELS = 2048 * 64 * 64
FEWEST_IMAGES = 64
# Noise is taken to be uncorrelated over more pixels than these.
LONGEST_LAG = 12
# Images whose background varies this many times more or less than is typical do not count.
TYPICAL = 4.0
# Times the standard error by which the noise of pixels may differ between lags before it counts as coloured.
COLOURED = 5.0
# Variances of the background below this part of an image's power, and below this, are rounding.
FLAT, TINY = 1e-9, 1e-30
# The least noise on a ring, in parts of the largest.
LEAST = 1e-6
# Noise weaker than this part of the strongest cannot be told.
TOLD = 0.02
# Times its standard error from which on a signal is seen.
SEEN = 4.0
# From this part of the highest frequency on, images may hold nothing but noise.
HIGH = 0.75
# Rings up to this are measured by distance: on them signal and contrast transfer change together.
N_FINE = 4
# Rings from which the fall of a spectrum is learned.
FALL = 6
# Times the typical mean square of an image above which it is no particle.
LARGEST = 3.0


@brief
class Spectra(NamedTuple):
    """Mean power at 0, 1, ... d // 2 cycles a box, and one more for what lies beyond; white noise is flat.

    Attributes
    ----------
    noise : ndarray of float64, shape (d // 2 + 2,)
        Power of the noise; that of white noise is the variance of a pixel.
    signal : ndarray of float64, shape (d // 2 + 2,)
        Power of the clean images before the contrast transfer function, in the same unit.
    background : float
        Mean grey value outside the particle's disk.
    largest : float
        Mean square about the background of an image above which it is no particle.
    doubt : float
        Standard error of the power of the clean images in all pixels.
    """

    noise: Floats
    signal: Floats
    background: float
    largest: float
    doubt: float


def learn_spectra(
    images: Array | Particles,
    *,
    ctf: CtfParameters | None = None,
    radius: float | None = None,
    n_jobs: int | None = None,
) -> Spectra:
    """Estimate the spectra of noise and signal from images that hold both.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        If there are many, a sample of them is read, evenly spaced.
    ctf : CtfParameters, optional
        One entry an image. By default that of the set, none for an array.
    radius : float, optional
        Of the disk outside of which there is only noise, in pixels; d / 2 by default.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    spectra : Spectra

    Raises
    ------
    InputError
        If the images are not a stack of squares, there are none, or the disk leaves no pixel free.

    Notes
    -----
    The noise's autocorrelation is that of the images with the disk masked over that of the mask, up to 12
    pixels, with a taper; its transform is the spectrum. If it is that of white noise within its error, the
    spectrum is flat, and high frequencies that agree with it make it more exact. Images whose background is
    far from typical are left out. The noise is nowhere taken to be stronger than the images themselves.

    The signal is what the images have more than the noise. With a contrast transfer function h_i of image i
    it is the least-squares estimate: the sum of h_i^2 (|F y_i|^2 - noise) over that of h_i^4.
    On the first rings this is done by distance, since both change along a ring. Rings beyond the last where
    the signal stands out of its error are filtered: the expected signal falls on as before, or is 0 where too
    few rings tell how.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> noise = np.random.default_rng(0).normal(0, 2, (300, 32, 32)).astype(np.float32)
    >>> spectra = fs.denoising.learn_spectra(noise)
    >>> bool(np.allclose(spectra.noise, 4, rtol=0.05))
    True
    """
    particles, ctf = with_ctf(images, ctf)
    box = particles.box
    radius = box / 2 if radius is None else radius
    outside = _outside(box, radius)
    if not outside.any():
        raise InputError(f"a disk of radius {radius:g} px leaves no pixel of a box of {box} px free.")
    chosen = evenly_spaced(len(particles), max(FEWEST_IMAGES, SAMPLE_PIXELS // box**2))
    some = choose_particles(particles, chosen)
    levels = np.concatenate([*map_batches(_level_batch, some, radius, n_jobs=n_jobs)])
    levels = levels[np.isfinite(levels)]
    background = float(np.median(levels)) if len(levels) else 0.0
    parts = list(
        map_batches(
            _measure_batch,
            some,
            radius,
            background,
            particles.pixel_size,
            each=(None if ctf is None else ctf.of(chosen),),
            n_jobs=n_jobs,
        )
    )
    lags, plain, power, square, fourth = (np.concatenate(part) for part in zip(*parts, strict=True))
    usable = np.isfinite(lags).all(axis=1) & np.isfinite(power).all(axis=1)
    if not usable.any():
        none = np.zeros(box // 2 + 2)
        return Spectra(none + 1, none, 0.0, np.inf, np.inf)
    lags, plain, power, square, fourth = (part[usable] for part in (lags, plain, power, square, fourth))
    variance = lags[:, 0]
    middle = np.median(variance)
    if middle <= FLAT * max(background**2, float(np.median(plain))) or middle < TINY:
        # Nothing is known of images without noise.
        none = np.zeros(box // 2 + 2)
        return Spectra(none + 1, none, background, np.inf, np.inf)
    kept = (variance >= middle / TYPICAL) & (variance <= middle * TYPICAL)
    correlation = lags[kept].mean(axis=0)
    total = plain[kept].mean(axis=0)
    noise = _noise_spectrum(correlation, int(kept.sum()), box, radius)
    if noise.min() == noise.max():
        noise = noise * _finer(total / noise[0], int(kept.sum()), box, int(outside.sum()))
    # The correlation of a few pixels does not tell weaker noise; but no noise exceeds all power.
    told, least = TOLD * noise.max(), LEAST * noise.max()
    noise = np.minimum(np.maximum(noise, told), np.maximum(total, least))
    shells = _shells(box)
    seen = (power[kept] - noise[shells.ring] * square[kept]).sum(axis=0)
    weight = np.maximum(fourth[kept].sum(axis=0), 1e-12)
    measured = shells.part @ (seen / weight)
    scatter = noise * np.sqrt(np.square(shells.part) @ (2 / (weight * shells.number)))
    # How much noise of another level would change the signal.
    level = noise * (shells.part @ (square[kept].sum(axis=0) / weight)) / np.sqrt(kept.sum() * outside.sum())
    error = np.hypot(scatter, level)
    signal = _continued(np.where(measured > SEEN * error, measured, 0), measured, error)
    count = ring_counts(box)
    doubt = np.hypot(np.linalg.norm(count * scatter), 2**0.5 * (count @ np.where(signal > 0, level, 0)))
    largest = LARGEST * float(np.median(plain @ count)) / box**2
    return Spectra(noise, signal, background, largest, float(doubt))


def with_ctf(images: Array | Particles, ctf: CtfParameters | None) -> tuple[Particles, CtfParameters | None]:
    """Return images as particles, and their contrast transfer function: that given, else that of the set."""
    particles = as_particles(images)
    ctf = particles.ctf if ctf is None else ctf
    if ctf is not None and len(ctf.defocus_u) != len(particles):
        raise InputError(
            f"ctf must hold one entry an image; got {len(ctf.defocus_u)} for {len(particles)} images."
        )
    return particles, ctf


def ring_power(transforms: Array) -> Floats:
    """Mean of |F|^2, or of numbers, over rings of half planes (n, d, d // 2 + 1): shape (n, d // 2 + 2)."""
    by_ring: Floats = _shell_power(transforms) @ _shells(transforms.shape[1]).part.T
    return by_ring


def _shell_power(transforms: Array, weights: Floats | Singles | None = None) -> Floats:
    """The same over shells, shape (n, s); times weights before."""
    power = transforms.real**2 + transforms.imag**2 if np.iscomplexobj(transforms) else transforms
    if weights is not None:
        power = power * weights
    by_shell: Floats = power.reshape(len(power), -1).astype(np.float64) @ _shells(transforms.shape[1]).mean
    return by_shell


def on_plane(spectrum: Floats, box: int) -> Floats:
    """Value of a spectrum at each coefficient of a real FFT of images of `box` pixels."""
    rings = plane_radius(box)
    inner = np.interp(rings, np.arange(len(spectrum) - 1), spectrum[:-1])
    return np.where(rings > box // 2, spectrum[-1], inner)


def _finer(total: Floats, n_images: int, box: int, n_outside: int) -> float:
    """Factor for the level of white noise, from high frequencies if they hold nothing else."""
    count = ring_counts(box)
    count[: int(HIGH * box / 2)] = 0
    measured, number = float(total @ count / count.sum()), float(count.sum())
    if abs(measured - 1) > SEEN * np.sqrt(2 / n_images * (1 / number + 1 / n_outside)):
        return 1.0
    return (number * measured + n_outside) / (number + n_outside)


def _continued(signal: Floats, measured: Floats, error: Floats) -> Floats:
    """Give rings beyond the last one seen the part of what was measured that is likely to be signal."""
    seen = np.flatnonzero(signal > 0)
    if len(seen) == 0:
        return signal
    # A ring between those that are seen holds what was measured, however weak its contrast transfer is.
    signal[: seen[-1]] = np.maximum(measured[: seen[-1]], 0)
    if len(seen) < FALL:
        return signal
    last = seen[-FALL:]
    slope, level = np.polyfit(last, np.log(signal[last]), 1)
    rest = np.arange(last[-1] + 1, len(signal))
    expected = np.exp(level + min(slope, 0.0) * rest)
    signal[rest] = np.maximum(measured[rest], 0) * expected**2 / (expected**2 + error[rest] ** 2)
    return signal


def noise_like(images: Images, noise: Floats, seed: int, start: int) -> Images:
    """Draw noise of a spectrum for a batch of images, the same for the same seed and start."""
    box = images.shape[1]
    white = np.random.default_rng([seed, start]).standard_normal(images.shape, dtype=np.float32)
    if noise.min() == noise.max():
        return white * np.float32(noise[0] ** 0.5)
    transforms = scipy.fft.rfft2(white, workers=1)
    transforms *= np.sqrt(on_plane(noise, box)).astype(np.float32)
    drawn: Images = scipy.fft.irfft2(transforms, s=(box, box), workers=1)
    return drawn


def ring_counts(box: int) -> Floats:
    """How many coefficients of the whole plane lie on each ring."""
    rings = np.minimum(np.rint(plane_radius(box)).astype(np.intp), box // 2 + 1).ravel()
    counts: Floats = np.bincount(rings, multiplicity(box).ravel(), minlength=box // 2 + 2).astype(np.float64)
    return counts


class _Shells(NamedTuple):
    """Rings, the first few of which are divided by distance.

    Attributes
    ----------
    ring : ndarray of intp, shape (s,)
        Of which ring each shell is a part.
    number : ndarray of float64, shape (s,)
        Coefficients of the whole plane on it.
    mean : ndarray of float64, shape (d * (d // 2 + 1), s)
        Takes values on the half plane to their means over shells.
    part : ndarray of float64, shape (d // 2 + 2, s)
        Takes means over shells to means over rings.
    """

    ring: Indices
    number: Floats
    mean: Floats
    part: Floats


@lru_cache(maxsize=4)
def _shells(box: int) -> _Shells:
    radius, weights = plane_radius(box).ravel(), multiplicity(box).ravel()
    rings = np.minimum(np.rint(radius).astype(np.intp), box // 2 + 1)
    fine = np.where(rings <= N_FINE, np.rint(radius**2), N_FINE**2 + N_FINE + rings)
    _, first, shell = np.unique(fine, return_index=True, return_inverse=True)
    number: Floats = np.bincount(shell, weights).astype(np.float64)
    mean = np.zeros((len(shell), len(number)))
    mean[np.arange(len(shell)), shell] = weights / number[shell]
    ring = rings[first]
    part = (ring == np.arange(box // 2 + 2)[:, np.newaxis]) * number
    return _Shells(ring, number, mean, part / np.maximum(part.sum(axis=1, keepdims=True), 1))


def _level_batch(images: Images, start: int, radius: float) -> Floats:
    """Mean of the pixels outside the disk."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean: Floats = images[:, _outside(images.shape[1], radius)].mean(axis=1, dtype=np.float64)
    return mean


def _measure_batch(
    images: Images,
    start: int,
    ctf: CtfParameters | None,
    radius: float,
    background: float,
    pixel_size: float,
) -> tuple[Floats, ...]:
    """Of each image: correlation at each lag; power by ring; and by shell: power times h^2, h^2, h^4."""
    box = images.shape[1]
    outside = _outside(box, radius)
    place, count = _lags(box, radius)
    size = _padded(box)
    with np.errstate(invalid="ignore", over="ignore"):
        images -= np.float32(background)
        masked = scipy.fft.rfft2(images * outside, (size, size), workers=1)
        correlation = scipy.fft.irfft2(masked.real**2 + masked.imag**2, (size, size), workers=1)
        flat = correlation.reshape(len(images), -1)
        lags = np.stack([flat[:, one].sum(axis=1, dtype=np.float64) for one in place], axis=1) / count
        transforms = scipy.fft.rfft2(images, norm="ortho", workers=1)
        power = _shell_power(transforms)
        plain = power @ _shells(box).part.T
        if ctf is None:
            ones = np.ones_like(power)
            return lags, plain, power, ones, ones
        square = contrast_transfer(ctf, box, pixel_size) ** 2
        return (
            lags,
            plain,
            _shell_power(transforms, square),
            _shell_power(square),
            _shell_power(square**2),
        )


def _noise_spectrum(correlation: Floats, n_images: int, box: int, radius: float) -> Floats:
    """Spectrum of noise from its mean correlation at each lag."""
    _, count = _lags(box, radius)
    squares, times = _distances(box)
    # Products of independent pixels scatter with the variance of a pixel over the root of their number.
    error = correlation[0] / np.sqrt(n_images * count[1:] / 2)
    frequency = np.append(np.arange(box // 2 + 1), 0.6 * box) / box
    white = np.full(len(frequency), correlation[0])
    if np.mean((correlation[1:] / np.maximum(error, 1e-300)) ** 2) < 1 + COLOURED * np.sqrt(2 / len(error)):
        return white
    distance = np.sqrt(squares)
    taper = np.cos(0.5 * np.pi * distance / (_longest(box) + 1)) ** 2
    waves = j0(2 * np.pi * frequency[:, np.newaxis] * distance)
    spectrum: Floats = waves @ (taper * times * correlation)
    return spectrum


def _outside(box: int, radius: float) -> Bools:
    offset = np.arange(box) - box // 2
    return np.hypot(offset[:, np.newaxis], offset) >= radius


def _padded(box: int) -> int:
    return int(scipy.fft.next_fast_len(box + LONGEST_LAG, real=True))


def _longest(box: int) -> int:
    return min(LONGEST_LAG, box // 4)


@lru_cache(maxsize=4)
def _distances(box: int) -> tuple[Indices, Indices]:
    """Squared distances of lags that the square grid knows, and how many lags have each."""
    longest = _longest(box)
    offset = np.arange(-longest, longest + 1)
    squares = np.add.outer(offset**2, offset**2)
    values, times = np.unique(squares[squares <= longest**2], return_counts=True)
    return values, times


@lru_cache(maxsize=4)
def _lags(box: int, radius: float) -> tuple[list[Indices], Floats]:
    """Where in a padded correlation the lags of each distance lie, and how many pairs of pixels they have."""
    size = _padded(box)
    offset = np.rint(size * scipy.fft.fftfreq(size)).astype(np.intp)
    squares = np.add.outer(offset**2, offset**2).ravel()
    place = [np.flatnonzero(squares == one) for one in _distances(box)[0]]
    mask = scipy.fft.rfft2(_outside(box, radius).astype(np.float64), (size, size))
    pairs = scipy.fft.irfft2(np.abs(mask) ** 2, (size, size)).ravel()
    return place, np.array([max(np.rint(pairs[one].sum()), 1.0) for one in place])
