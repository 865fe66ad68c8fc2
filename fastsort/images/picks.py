"""Noise that a picker takes for particles, made from the noise of a set."""

from __future__ import annotations

import math

import numpy as np
import scipy.fft

from fastsort._types import Bools, Floats, Images, Singles
from fastsort.images.normalize import normalize_background

# The noise is measured outside this radius, in parts of the box, on at most so many images.
OUTSIDE, MOST_MEASURED = 0.4, 1024
# Fields in which noise is picked are so many boxes wide, and the best few places of each are taken. The
# picker looks for blobs of these radii, in parts of the box.
FIELD, PICKS_A_FIELD = 4, 6
LEAST_RADIUS, LARGEST_RADIUS = 0.22, 0.36
# Two picks of a field are at least so many radii apart.
APART = 1.5
# The Gaussians of a blob picker, in radii: their difference responds most to disks of that radius.
NARROW, WIDE = 1 / (1.1 * math.sqrt(2)), 1.1 / math.sqrt(2)
N_ROUNDS = 4
# Methods learn from so many.
N_LEARNED_FROM = 600


def picked_noise(images: Images, number: int, background: float, seed: int = 0) -> Images:
    """Make images of noise as a picker finds them: with a blob in the middle.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        Of the set, whatever they show; normalised outside `background`.
    number : int
        How many images to make.
    background : float
        Radius in pixels of the disk outside of which the background is normalised.
    seed : int
        Random seed.

    Returns
    -------
    picks : ndarray of float32, shape (number, d, d)
        Normalised like the images.

    Notes
    -----
    A picker does not cut boxes at random: it takes maxima. Large fields of Gaussian noise are made with the
    spectrum that the images have outside a disk of 0.4 of the box. In each field, a difference of Gaussians
    looks for blobs of the images' contrast, and the boxes about the six highest places are cut out. Its
    size is drawn anew for each field, since nobody says which size the picker looked for.

    The spectrum is found by trial: boxes are cut from fields and normalised, and the power of the fields is
    changed until the boxes have, outside the disk, the power of the images there.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsort.images import picked_noise
    >>> images = np.random.default_rng(0).normal(size=(200, 32, 32)).astype(np.float32)
    >>> picks = picked_noise(images, 50, background=16)
    >>> bool(picks[:, 12:20, 12:20].mean() > 0.1)
    True
    """
    box = images.shape[1]
    size = FIELD * box
    rng = np.random.default_rng(seed)
    step = -(-len(images) // MOST_MEASURED)
    amplitude = _noise_amplitude(images[::step], size, background, rng)
    middle = 0.5 * (LEAST_RADIUS + LARGEST_RADIUS) * box
    # In a set of particles, the middle of most images stands out.
    bright = float(np.median(blob_response(images[::step], middle)[:, box // 2, box // 2])) >= 0
    picks = np.empty((number, box, box), dtype=np.float32)
    for start in range(0, number, PICKS_A_FIELD):
        radius = rng.uniform(LEAST_RADIUS, LARGEST_RADIUS) * box
        field = _fields(amplitude, 1, size, rng)
        response = blob_response(field if bright else -field, radius)[0]
        _cut_best(field[0], response, APART * radius, picks[start : start + PICKS_A_FIELD])
    normalize_background(picks, background)
    return picks


def plain_noise(images: Images, number: int, background: float, seed: int = 0) -> Images:
    """Make images of noise that nobody picked: boxes cut from the fields of `picked_noise` side by side.

    Parameters
    ----------
    images, number, background, seed
        As for `picked_noise`.

    Returns
    -------
    places : ndarray of float32, shape (number, d, d)
        Normalised like the images.
    """
    box = images.shape[1]
    rng = np.random.default_rng(seed)
    step = -(-len(images) // MOST_MEASURED)
    amplitude = _noise_amplitude(images[::step], FIELD * box, background, rng)
    places = _boxes(_fields(amplitude, -(-number // FIELD**2), FIELD * box, rng), box)[:number]
    normalize_background(places, background)
    return places


def blob_response(images: Images, radius: float) -> Images:
    """Return the response of images (n, d, d) to bright disks of a radius in pixels; they are periodic."""
    size = images.shape[1]
    square = scipy.fft.fftfreq(size)[:, None] ** 2 + scipy.fft.rfftfreq(size) ** 2
    narrow, wide = (np.exp(-2 * (math.pi * part * radius) ** 2 * square) for part in (NARROW, WIDE))
    spectra = scipy.fft.rfft2(images, workers=1)
    spectra *= (narrow - wide).astype(np.float32)
    response: Images = scipy.fft.irfft2(spectra, s=(size, size), workers=1, overwrite_x=True)
    return response


def _fields(amplitude: Singles, number: int, size: int, rng: np.random.Generator) -> Images:
    spectra = scipy.fft.rfft2(rng.standard_normal((number, size, size), dtype=np.float32), workers=1)
    spectra *= amplitude
    fields: Images = scipy.fft.irfft2(spectra, s=(size, size), workers=1, overwrite_x=True)
    return fields


def _cut_best(field: Images, response: Images, apart: float, picks: Images) -> None:
    """Cut boxes about the highest places of a periodic response, each away from those before."""
    size, box = len(field), picks.shape[1]
    line = (np.arange(size) + size // 2) % size - size // 2
    near = np.hypot(line[:, None], line) < apart
    for pick in picks:
        row, column = np.unravel_index(np.argmax(response), response.shape)
        rows, columns = ((place - box // 2 + np.arange(box)) % size for place in (row, column))
        pick[:] = field[np.ix_(rows, columns)]
        response[np.roll(near, (row, column), (0, 1))] = -np.inf


def _noise_amplitude(images: Images, size: int, background: float, rng: np.random.Generator) -> Singles:
    """Find the amplitude of fields from which boxes have the power of the images outside the disk."""
    box = images.shape[1]
    line = np.arange(box) - box // 2
    outside = np.hypot(line[:, None], line) > OUTSIDE * box
    wanted = _ring_power(images, outside)
    frequency = np.hypot(scipy.fft.fftfreq(size)[:, None], scipy.fft.rfftfreq(size)) * box
    power = wanted.copy()
    white = rng.standard_normal((-(-len(images) // FIELD**2), size, size), dtype=np.float32)
    spectra = scipy.fft.rfft2(white, workers=1)
    for step in range(N_ROUNDS + 1):
        # The mean of the background is taken away, so the lowest ring tells nothing.
        power[0] = power[1]
        amplitude = np.sqrt(np.interp(frequency, np.arange(len(power)), power)).astype(np.float32)
        if step < N_ROUNDS:
            fields = scipy.fft.irfft2(spectra * amplitude, s=(size, size), workers=1)
            boxes = _boxes(fields, box)
            normalize_background(boxes, background)
            power *= wanted / np.maximum(_ring_power(boxes, outside), 1e-9)
    return amplitude


def _boxes(fields: Images, box: int) -> Images:
    """Cut fields into boxes without overlap."""
    return fields.reshape(-1, FIELD, box, FIELD, box).swapaxes(2, 3).reshape(-1, box, box)


def _ring_power(images: Images, outside: Bools) -> Floats:
    """Return the mean power of the background of images in rings of the transform, with mean zero."""
    box = images.shape[1]
    mean = images[:, outside].mean(axis=1)[:, None, None]
    power = np.square(np.abs(scipy.fft.rfft2((images - mean) * outside, workers=1))).mean(axis=0)
    ring = np.rint(np.hypot(scipy.fft.fftfreq(box)[:, None], scipy.fft.rfftfreq(box)) * box).astype(np.intp)
    return np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
