"""Tiles: small copies of images and of class averages, as the picture and the page both show them."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fastsort._types import Bools, Floats, Images, Indices
from fastsort.decide.result import SortResult
from fastsort.images.crop import fourier_crop
from fastsort.images.ctf import phase_flip
from fastsort.images.prepare import ctf_to_flip
from fastsort.particles.source import Particles

Greys: TypeAlias = npt.NDArray[np.uint8]
"""Grey values from 0, black, to 255, white."""

# Side of a tile in pixels, where the box is not smaller.
SIDE = 64
# Noise compresses badly, and nobody sees the lowest bits of a grey value.
_GREY_STEP = 4
_BYTES_AT_ONCE = 1 << 25
# Percentiles of the pixels that become black and white.
_DARKEST, _BRIGHTEST = 1, 99.7


def read_tiles(particles: Particles, result: SortResult, indices: Indices) -> Greys:
    """Read images and make smooth small copies of them.

    Pixels that are not finite become 0; phases are flipped where the run flipped them.

    Parameters
    ----------
    particles : Particles
    result : SortResult
        Says whether phases are flipped, and how large the particle is.
    indices : ndarray of intp, shape (k,)
        They are read in this order.

    Returns
    -------
    tiles : ndarray of uint8, shape (k, s, s)
        `s` is 64, or the box where that is smaller. An image without contrast is grey.

    Raises
    ------
    InputError
        If a file can no longer be read.
    """
    size = min(particles.box, SIDE)
    tiles = np.empty((len(indices), size, size), dtype=np.uint8)
    step = max(1, _BYTES_AT_ONCE // (4 * particles.box**2))
    diameter_px = result.diameter_px if math.isfinite(result.diameter_px) else particles.box / 2
    sigma = diameter_px * size / particles.box / 12
    for start in range(0, len(indices), step):
        block = indices[start : start + step]
        images = flip_as_sorted(_finite(particles.read(block)), particles, result, block)
        tiles[start : start + step] = _tiles(images, size, sigma)
    return tiles


def flip_as_sorted(images: Images, particles: Particles, result: SortResult, indices: Indices) -> Images:
    """Flip the phases of images that were read, where the run flipped them.

    Parameters
    ----------
    images : ndarray of float32, shape (k, d, d)
    particles : Particles
        What was sorted.
    result : SortResult
    indices : ndarray of intp, shape (k,)
        Which of the particles these images are.

    Returns
    -------
    images : ndarray of float32, shape (k, d, d)
    """
    if not result.phase_flipped or particles.ctf is None or len(images) == 0:
        return images
    ctf = ctf_to_flip(particles, result.parameters.get("phase_flip", "yes"))
    return images if ctf is None else phase_flip(images, ctf.of(indices), particles.pixel_size)


def average_tiles(averages: Images) -> Greys:
    """Make tiles of class averages, which are not smoothed any further.

    Parameters
    ----------
    averages : ndarray of float32, shape (k, d, d)

    Returns
    -------
    tiles : ndarray of uint8, shape (k, s, s)
        `s` is 64, or `d` where that is smaller.
    """
    size = min(averages.shape[1], SIDE)
    if len(averages) == 0:
        return np.empty((0, size, size), dtype=np.uint8)
    return _tiles(_finite(averages), size, 0.0)


def stretch_contrast(images: Images, darkest: float, brightest: float, inside: Bools | None = None) -> Floats:
    """Scale each image to grey values from 0 to 1.

    Parameters
    ----------
    images : ndarray of float32, shape (k, d, d)
    darkest, brightest : float
        Percentiles of the pixels of an image that become 0 and 1.
    inside : ndarray of bool, shape (d, d), optional
        The pixels that count; by default all.

    Returns
    -------
    shares : ndarray of float64, shape (k, d, d)
        0.5 throughout an image that has no contrast, whatever rounding has left in it.
    """
    pixels = images[:, np.ones(images.shape[1:], dtype=bool) if inside is None else inside]
    low, high = np.percentile(pixels, (darkest, brightest), axis=1)[:, :, None, None]
    flat = high - low <= 1e-6 * np.maximum(np.abs(high), np.abs(low))
    shares: Floats = np.clip((images - low) / np.where(flat, 1, high - low), 0, 1)
    return np.where(flat, 0.5, shares)


def _finite(images: Images) -> Images:
    """Return images without infinite pixels, each divided by its largest value: none overflows later."""
    images = np.where(np.isfinite(images), images, np.float32(0))
    largest = np.abs(images).max(axis=(1, 2), keepdims=True)
    return images / np.where(largest > 0, largest, np.float32(1))


def _tiles(images: Images, size: int, sigma: float) -> Greys:
    from scipy.ndimage import gaussian_filter

    images = gaussian_filter(fourier_crop(images, size), (0, sigma, sigma), mode="nearest")
    shares = stretch_contrast(images, _DARKEST, _BRIGHTEST)
    return (np.rint(shares * (255 // _GREY_STEP)) * _GREY_STEP).astype(np.uint8)
