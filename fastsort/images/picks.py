"""Noise that a picker takes for particles, made from the noise of a set."""

from __future__ import annotations

import math

import numpy as np
import scipy.fft

from fastsort._types import Array, Bools, Floats, Images, Singles
from fastsort.images.normalize import normalize_background

# The noise is measured outside this radius, in parts of the box, on at most so many images.
OUTSIDE, MOST_MEASURED = 0.4, 512
# In each field of so many boxes in width, the picker takes the best place. It looks for blobs between these
# radii, in parts of the box, of so many sizes.
FIELD = 2
LEAST_RADIUS, LARGEST_RADIUS, N_SIZES = 0.22, 0.36, 8
# The Gaussians of a blob picker, in radii: their difference responds most to disks of that radius.
NARROW, WIDE = 1 / (1.1 * math.sqrt(2)), 1.1 / math.sqrt(2)
N_ROUNDS = 3
# Methods learn from so many.
N_LEARNED_FROM = 480


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
    A picker does not cut boxes at random: it takes maxima. Fields of Gaussian noise, two boxes wide, are
    made with the spectrum that the images have outside a disk of 0.4 of the box. In each field, a difference
    of Gaussians looks for blobs of the images' contrast, and the box about the highest place is cut out. It
    looks for eight sizes in turn, since nobody says which size the picker looked for.

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
    # In a set of particles, the middle of most images stands out. What a point responds is what the middle
    # responds to every pixel.
    point = np.zeros((1, box, box), dtype=np.float32)
    point[0, box // 2, box // 2] = 1
    weights = blob_response(point, middle).reshape(-1)
    bright = float(np.median(images[::step].reshape(-1, box * box) @ weights)) >= 0
    parts = []
    for k, radius in enumerate(np.linspace(LEAST_RADIUS, LARGEST_RADIUS, N_SIZES) * box):
        spectra = _spectra(amplitude, len(range(k, number, N_SIZES)), size, rng)
        responses = _back(spectra * _blob_gains(size, size, radius), size)
        parts.append(_cut_best(_back(spectra, size), responses, box))
    # Noise has no sign: dark blobs are bright ones of other noise.
    picks = np.concatenate(parts) * np.float32(1 if bright else -1)
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
    fields = _back(_spectra(amplitude, -(-number // FIELD**2), FIELD * box, rng), FIELD * box)
    places = _boxes(fields, box)[:number]
    normalize_background(places, background)
    return places


def blob_response(images: Images, radius: float) -> Images:
    """Return the response of images (n, h, w) to bright disks of a radius in pixels; they are periodic."""
    height, width = images.shape[1:]
    spectra = scipy.fft.rfft2(images, workers=1)
    spectra *= _blob_gains(height, width, radius)
    response: Images = scipy.fft.irfft2(spectra, s=(height, width), workers=1, overwrite_x=True)
    return response


def _blob_gains(height: int, width: int, radius: float) -> Singles:
    """Return what the response to bright disks multiplies each frequency with."""
    square = scipy.fft.fftfreq(height)[:, None] ** 2 + scipy.fft.rfftfreq(width) ** 2
    narrow, wide = (np.exp(-2 * (math.pi * part * radius) ** 2 * square) for part in (NARROW, WIDE))
    gains: Singles = (narrow - wide).astype(np.float32)
    return gains


def _spectra(amplitude: Singles, number: int, size: int, rng: np.random.Generator) -> Array:
    """Draw transforms of fields of Gaussian noise."""
    spectra: Array = scipy.fft.rfft2(rng.standard_normal((number, size, size), dtype=np.float32), workers=1)
    spectra *= amplitude
    return spectra


def _back(spectra: Array, size: int) -> Images:
    """Transform fields back; their transforms are lost."""
    fields: Images = scipy.fft.irfft2(spectra, s=(size, size), workers=1, overwrite_x=True)
    return fields


def _cut_best(fields: Images, responses: Images, box: int) -> Images:
    """Cut a box out of every field, about the highest place of its response; both are periodic."""
    number, size = fields.shape[:2]
    row, column = np.divmod(responses.reshape(number, size * size).argmax(axis=1), size)
    around = np.arange(box) - box // 2
    rows, columns = ((place[:, None] + around) % size for place in (row, column))
    return np.ascontiguousarray(fields[np.arange(number)[:, None, None], rows[:, :, None], columns[:, None]])


def _noise_amplitude(images: Images, size: int, background: float, rng: np.random.Generator) -> Singles:
    """Find the amplitude of fields from which boxes have the power of the images outside the disk."""
    box = images.shape[1]
    line = np.arange(box) - box // 2
    outside = np.hypot(line[:, None], line) > OUTSIDE * box
    wanted = _ring_power(images, outside)
    frequency = np.hypot(scipy.fft.fftfreq(size)[:, None], scipy.fft.rfftfreq(size)) * box
    power = wanted.copy()
    white = _spectra(np.float32(1), -(-len(images) // FIELD**2), size, rng)
    for step in range(N_ROUNDS + 1):
        # The mean of the background is taken away, so the lowest ring tells nothing.
        power[0] = power[1]
        amplitude = np.sqrt(np.interp(frequency, np.arange(len(power)), power)).astype(np.float32)
        if step < N_ROUNDS:
            boxes = _boxes(_back(white * amplitude, size), box)
            normalize_background(boxes, background)
            power *= wanted / np.maximum(_ring_power(boxes, outside), 1e-9)
    return amplitude


def _boxes(fields: Images, box: int) -> Images:
    """Cut fields into boxes without overlap."""
    return fields.reshape(-1, FIELD, box, FIELD, box).swapaxes(2, 3).reshape(-1, box, box)


def _ring_power(images: Images, outside: Bools) -> Floats:
    """Return the mean power of the background of images in rings of the transform, with mean zero."""
    box = images.shape[1]
    flat = images.reshape(len(images), -1)
    mean = flat @ (outside / np.count_nonzero(outside)).astype(np.float32).reshape(-1)
    spectra = scipy.fft.rfft2((images - mean[:, None, None]) * outside, workers=1)
    power = (spectra.real**2 + spectra.imag**2).mean(axis=0)
    ring = np.rint(np.hypot(scipy.fft.fftfreq(box)[:, None], scipy.fft.rfftfreq(box)) * box).astype(np.intp)
    return np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
