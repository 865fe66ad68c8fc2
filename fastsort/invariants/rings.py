"""Images on rings of the Fourier plane, where a turn of the image is a step along the rings."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft

from fastsort._crop import apply_crop, crop_operator
from fastsort._jit import kernel
from fastsort._types import Bools, Floats, Images, Indices, Numbers, Singles

# Larger images are cropped to this many pixels before they are compared.
WORKING_BOX = 96
# The search over all angles sees so many of them in half a turn.
SEARCH_ANGLES = 32
# A reference is sampled this many times as finely in angle as an image.
FINER = 4
# Images at once, so that what is between two steps stays in the processor's cache.
CHUNK = 16
# Each sample is interpolated from so many rows and columns of the transform.
_TAPS = 4


class Taps(NamedTuple):
    """Pixels of the transform that make each sample, and their weights; rings x angles samples.

    Attributes
    ----------
    first_row, first_column : ndarray of int32, shape (samples,)
    row_weight, column_weight : ndarray of float32, shape (samples, 4)
    """

    first_row: Numbers
    first_column: Numbers
    row_weight: Singles
    column_weight: Singles


class Rings(NamedTuple):
    """Where images of one box are sampled in the Fourier plane, and how.

    Attributes
    ----------
    box : int
        Side of the images in pixels.
    n_rings : int
        At 1, 2, ... cycles a box, all below Nyquist.
    n_angles : int
        In half a turn, from -90 degrees up; the other half is the complex conjugate.
    fall_off : ndarray of float32, shape (box,)
        What an axis of the image is multiplied with, to undo in advance what the interpolation does to it.
    padded : int
        Side of the transform that is interpolated.
    phase : ndarray of complex64, shape (padded,)
        Moves the origin of the transform to pixel box // 2.
    image_taps, reference_taps : Taps
        The reference's are `FINER` times as dense in angle.
    cosine, sine : ndarray of float32, shape (n_angles,)
        Of the image's angles.
    """

    box: int
    n_rings: int
    n_angles: int
    fall_off: Singles
    padded: int
    phase: npt.NDArray[np.complex64]
    image_taps: Taps
    reference_taps: Taps
    cosine: Singles
    sine: Singles


class Polar(NamedTuple):
    """Images on rings of the Fourier plane.

    Attributes
    ----------
    spectra : ndarray of float32, shape (n, 2, K, A)
        Real and imaginary parts, with sum of squares 1: times the root of the ring's radius, so that sums
        are integrals over the plane. Zero for images that cannot be aligned.
    usable : ndarray of bool, shape (n,)
        Whether the image is finite and not flat.
    box : int
        Of the images that were given.
    """

    spectra: Singles
    usable: Bools
    box: int


def working_box(box: int) -> int:
    """Return the side to which images of `box` pixels are cropped before they are compared."""
    return min(box, WORKING_BOX)


@lru_cache(maxsize=32)
def rings_of(box: int, n_angles: int | None = None) -> Rings:
    """Return the sampling for images of `box` pixels.

    By default the angles are enough for a particle that fills four fifths of the box, and a multiple of the
    search's.
    """
    n_rings = (box - 1) // 2
    if n_angles is None:
        n_angles = SEARCH_ANGLES * max(1, math.ceil(0.4 * math.pi * n_rings / SEARCH_ANGLES))
    padded = scipy.fft.next_fast_len(2 * box, real=True)
    padded += padded % 2
    offset = np.arange(box) - box // 2
    # The Kaiser-Bessel window's shape for twofold oversampling, after Beatty, Nishimura, Pauly,
    # IEEE Trans. Med. Imaging 24 (2005), equation 5.
    shape = math.pi * math.sqrt((_TAPS / 2 * 1.5) ** 2 - 0.8)
    root = np.sqrt(shape**2 - (math.pi * _TAPS * offset / padded) ** 2)
    fall_off = root / (_TAPS * np.sinh(root))
    # Transforms keep their first pixel in place; the phase moves the middle there.
    frequency = scipy.fft.fftfreq(padded)
    phase = np.exp(2j * np.pi * frequency * (box // 2))
    radius = np.arange(1, n_rings + 1)[:, None] * padded / box
    angle = -math.pi / 2 + math.pi * np.arange(n_angles) / n_angles
    fine_angle = -math.pi / 2 + math.pi * np.arange(n_angles * FINER) / (n_angles * FINER)
    return Rings(
        box,
        n_rings,
        n_angles,
        fall_off.astype(np.float32),
        padded,
        phase.astype(np.complex64),
        _taps(radius, angle, shape),
        _taps(radius, fine_angle, shape),
        np.cos(angle).astype(np.float32),
        np.sin(angle).astype(np.float32),
    )


@lru_cache(maxsize=32)
def _outside(box: int) -> Indices:
    """Return the pixels outside the inscribed circle."""
    offset = np.arange(box) - box // 2
    return np.flatnonzero(np.add.outer(offset**2, offset**2) > (box // 2) ** 2)


def _taps(radius: Floats, angle: Floats, shape: float) -> Taps:
    """Interpolation at all radii (K, 1) in pixels of the transform and all angles (A,)."""
    first_row, row_weight = _taps_along(radius * np.sin(angle), shape)
    first_column, column_weight = _taps_along(radius * np.cos(angle), shape)
    return Taps(first_row, first_column, row_weight, column_weight)


def _taps_along(position: Floats, shape: float) -> tuple[Numbers, Singles]:
    """First tap on one axis for each position, and the weights of all taps."""
    flat = position.ravel()
    first = np.floor(flat).astype(np.int32) - _TAPS // 2 + 1
    distance = (flat[:, None] - first[:, None] - np.arange(_TAPS)) * (2 / _TAPS)
    weight = np.i0(shape * np.sqrt(np.maximum(1 - distance**2, 0)))
    return first, weight.astype(np.float32)


def polar_spectra(images: Images) -> Polar:
    """Sample the transforms of images on rings.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)

    Returns
    -------
    polar : Polar
        Of the images cropped to at most 96 pixels.
    """
    box = images.shape[1]
    usable = usable_images(images)
    if not usable.all():
        images = np.where(usable[:, None, None], images, np.float32(0))
    rings = rings_of(working_box(box))
    spectra = sample_rings(images, rings, rings.image_taps)
    normalize_spectra(spectra)
    return Polar(spectra, usable, box)


def sample_rings(images: Images, rings: Rings, taps: Taps, mask: Singles | None = None) -> Singles:
    """Transform images, level their background and sample them.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        Of the rings' box, or larger, and cropped to it then.
    rings : Rings
    taps : Taps
        One of the two sets that belong to the rings.
    mask : ndarray of float32, shape (d, d), optional
        What the levelled images are multiplied with.

    Returns
    -------
    spectra : ndarray of float32, shape (n, 2, K, angles)
        Real and imaginary parts, times the root of the ring's radius.
    """
    box = images.shape[1]
    spectra = np.empty((len(images), 2, rings.n_rings, len(taps.first_row) // rings.n_rings), np.float32)
    crop = _crop(box, rings.box) if box > rings.box else None
    fall_off = rings.fall_off if crop is None else np.ones(box, dtype=np.float32)
    for start in range(0, len(images), CHUNK):
        canvas = levelled(images[start : start + CHUNK], fall_off)
        if mask is not None:
            canvas *= mask
        if crop is not None:
            canvas = apply_crop(canvas, crop)
            canvas *= rings.fall_off[:, None] * rings.fall_off
        half = scipy.fft.rfft(canvas, rings.padded, axis=2, workers=1)
        plane = scipy.fft.fft(half, rings.padded, axis=1, workers=1, overwrite_x=True)
        _resample(plane, rings.phase, *taps, spectra[start : start + CHUNK])
    return spectra


def levelled(images: Images, factor: Singles) -> Images:
    """Give images deviation 1, and their background mean 0; multiply both axes with a factor, shape (d,)."""
    canvas = np.empty(images.shape, dtype=np.float32)
    _level(images, _outside(images.shape[1]), factor, canvas)
    return canvas


@lru_cache(maxsize=32)
def _crop(box: int, size: int) -> Singles:
    return crop_operator(box, size)


@kernel
def _level(images, outside, factor, canvas):
    # canvas (n, d, d): deviation 1, the background, outside the circle, at 0, and both axes times a factor;
    # 0 where an image is flat.
    d = images.shape[1]
    for i in range(images.shape[0]):
        flat = images[i].ravel()
        total = 0.0
        for j in range(flat.size):
            total += flat[j]
        mean = total / flat.size
        square = 0.0
        for j in range(flat.size):
            difference = flat[j] - mean
            square += difference * difference
        scale = 1 / np.sqrt(square / flat.size) if square > 0 else 0.0
        total = 0.0
        for j in outside:
            total += flat[j] - mean
        base = np.float32(total / len(outside) * scale)
        for y in range(d):
            along = factor[y]
            for x in range(d):
                value = np.float32((images[i, y, x] - mean) * scale) - base
                canvas[i, y, x] = value * along * factor[x]


@kernel
def _resample(plane, phase, first_row, first_column, row_weight, column_weight, spectra):
    # The half plane is laid out with frequency 0 in the middle of the rows and a margin of negative
    # columns, so that taps need no wrapping.
    padded = plane.shape[1]
    half = plane.shape[2]
    margin = 2
    real = np.zeros((padded + 4, half + margin + 2), dtype=np.float32)
    imaginary = np.zeros((padded + 4, half + margin + 2), dtype=np.float32)
    middle = padded // 2 + 2
    n_rings = spectra.shape[2]
    n_angles = spectra.shape[3]
    for i in range(spectra.shape[0]):
        for v in range(-(padded // 2), padded - padded // 2):
            turn = phase[v % padded]
            row = plane[i, v % padded]
            for u in range(half):
                value = row[u] * (turn * phase[u])
                real[middle + v, margin + u] = value.real
                imaginary[middle + v, margin + u] = value.imag
        for v in range(-(padded // 2) + 1, padded // 2):
            for u in range(1, margin + 1):
                real[middle + v, margin - u] = real[middle - v, margin + u]
                imaginary[middle + v, margin - u] = -imaginary[middle - v, margin + u]
        point = 0
        for ring in range(n_rings):
            weight = np.float32(np.sqrt(ring + 1.0))
            for angle in range(n_angles):
                y = middle + first_row[point]
                x = margin + first_column[point]
                total = np.float32(0)
                other = np.float32(0)
                # Columns outside: the compiler takes all four of a row at once.
                for k in range(_TAPS):
                    a = np.float32(0)
                    b = np.float32(0)
                    for tap in range(_TAPS):
                        a += row_weight[point, tap] * real[y + tap, x + k]
                        b += row_weight[point, tap] * imaginary[y + tap, x + k]
                    total += column_weight[point, k] * a
                    other += column_weight[point, k] * b
                spectra[i, 0, ring, angle] = weight * total
                spectra[i, 1, ring, angle] = weight * other
                point += 1


def usable_images(images: Images) -> Bools:
    """Return which images (n, d, d) are finite and not flat."""
    usable = np.empty(len(images), dtype=np.bool_)
    _find_usable(images.reshape(len(images), images.shape[1] ** 2), usable)
    return usable


@kernel
def _find_usable(images, usable):
    # images (n, d * d).
    for i in range(images.shape[0]):
        flat = images[i]
        # A sum of magnitudes is not finite as soon as one of them is not.
        total = 0.0
        unlike_first = 0
        for j in range(flat.size):
            unlike_first += flat[j] != flat[0]
            total += abs(flat[j])
        usable[i] = total < np.inf and unlike_first > 0


def normalize_spectra(spectra: Singles) -> None:
    """Give spectra (n, ...) sum of squares 1, in place; zeros stay zero."""
    _normalize(spectra.reshape(len(spectra), math.prod(spectra.shape[1:])))


@kernel
def _normalize(spectra):
    # spectra (n, numbers of each).
    for i in range(spectra.shape[0]):
        flat = spectra[i]
        total = 0.0
        for j in range(flat.size):
            total += flat[j] * flat[j]
        scale = np.float32(1 / np.sqrt(total)) if total > 0 else np.float32(0)
        for j in range(flat.size):
            flat[j] *= scale
