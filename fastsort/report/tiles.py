"""Tiles: small copies of images and of class averages, as the picture and the page both show them."""

from __future__ import annotations

import math

import numpy as np

from fastsort._types import Bools, Floats, Images, Indices
from fastsort.decide.result import SortResult
from fastsort.images.crop import fourier_crop
from fastsort.images.ctf import phase_flip
from fastsort.images.prepare import ctf_to_flip
from fastsort.particles.source import Particles
from fastsort.particles.table import CtfParameters
from fastsort.report.png import Greys

# Side of a tile in pixels, where the box is not smaller.
SIDE = 64
# Noise compresses badly, and nobody sees the lowest bits of a grey value.
_GREY_STEP = 4
BYTES_AT_ONCE = 1 << 25
# Sums of pixels below this do not overflow.
_LARGE = 1e20
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
    step = max(1, BYTES_AT_ONCE // (4 * particles.box**2))
    blur, ctf = blur_of(result, particles.box, size), ctf_as_sorted(particles, result)
    for start in range(0, len(indices), step):
        block = indices[start : start + step]
        images, own = particles.read(block), ctf and ctf.of(block)
        tiles[start : start + step] = flipped_tiles(images, own, particles.pixel_size, size, blur)
    return tiles


def blur_of(result: SortResult, box: int, size: int) -> float:
    """Return by how many pixels tiles of so many pixels are smoothed: a twelfth of the particle."""
    diameter_px = result.diameter_px if math.isfinite(result.diameter_px) else box / 2
    return diameter_px * size / box / 12


def flipped_tiles(
    images: Images, ctf: CtfParameters | None, pixel_size: float, size: int, blur: float
) -> Greys:
    """Make tiles of images, after their phases are flipped where a contrast transfer function is given.

    Parameters
    ----------
    images : ndarray of float32, shape (k, d, d)
    ctf : CtfParameters or None
        One entry an image.
    pixel_size : float
    size : int
        Side of the tiles in pixels.
    blur : float
        As from `blur_of`.

    Returns
    -------
    tiles : ndarray of uint8, shape (k, size, size)
    """
    box = images.shape[1]
    small = fourier_crop(_finite(images), size)
    # As the working images were made: after the crop, a flip takes little time.
    return _tiles(small if ctf is None else phase_flip(small, ctf, pixel_size * box / size), blur)


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
    ctf = ctf_as_sorted(particles, result)
    if ctf is None or len(images) == 0:
        return images
    return phase_flip(images, ctf.of(indices), particles.pixel_size)


def ctf_as_sorted(particles: Particles, result: SortResult) -> CtfParameters | None:
    """Return the contrast transfer function by which the run flipped phases; None where it did not."""
    if not result.phase_flipped or particles.ctf is None:
        return None
    return ctf_to_flip(particles, result.parameters.get("phase_flip", "yes"))


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
    return _tiles(fourier_crop(_finite(averages), size), 0.0)


def scale_of_greys(images: Images) -> tuple[float, float]:
    """Return which values become black and white, if all images share one scale.

    Parameters
    ----------
    images : ndarray of float32, shape (k, s, s)
        Those with a NaN or an infinity do not count.

    Returns
    -------
    scale : float, float
        The same twice where there is no contrast.
    """
    usable = np.isfinite(images).all(axis=(1, 2))
    if not usable.any():
        return 0.0, 0.0
    low, high = np.percentile(images[usable], (_DARKEST, _BRIGHTEST))
    return float(low), float(high)


def common_tiles(images: Images, scale: tuple[float, float]) -> Greys:
    """Make tiles of images with one scale of greys for all, so that a weak image looks weak.

    Parameters
    ----------
    images : ndarray of float32, shape (k, s, s)
    scale : float, float
        As from `scale_of_greys`.

    Returns
    -------
    tiles : ndarray of uint8, shape (k, s, s)
        An image with a NaN or an infinity is grey.
    """
    low, high = scale
    usable = np.isfinite(images).all(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        shares = np.clip((images - low) / (high - low if high > low else 1), 0, 1)
    shares[~usable if high > low else slice(None)] = 0.5
    return (np.rint(shares * (255 // _GREY_STEP)) * _GREY_STEP).astype(np.uint8)


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
    pixels = images.reshape(len(images), -1) if inside is None else images[:, inside]
    low, high = np.percentile(pixels, (darkest, brightest), axis=1)[:, :, None, None]
    flat = high - low <= 1e-6 * np.maximum(np.abs(high), np.abs(low))
    shares: Floats = images - low
    shares /= np.where(flat, 1, high - low)
    np.clip(shares, 0, 1, out=shares)
    shares[flat[:, 0, 0]] = 0.5
    return shares


def _finite(images: Images) -> Images:
    """Return images without infinite pixels, and with such values that none overflows later."""
    largest = np.maximum(images.max(axis=(1, 2)), -images.min(axis=(1, 2)))
    if ((largest > 1 / _LARGE) & (largest < _LARGE)).all():
        return images
    images = np.where(np.isfinite(images), images, np.float32(0))
    largest = np.abs(images).max(axis=(1, 2), keepdims=True)
    return images / np.where(largest > 0, largest, np.float32(1))


def _tiles(images: Images, sigma: float) -> Greys:
    if sigma > 0:
        from scipy.ndimage import gaussian_filter1d

        # A filter along the long axis of a batch takes longer than products with its matrix.
        side = images.shape[1]
        blur = gaussian_filter1d(np.eye(side, dtype=np.float32), sigma, axis=0, mode="nearest")
        images = blur @ (images.reshape(-1, side) @ blur.T).reshape(images.shape)
    shares = stretch_contrast(images, _DARKEST, _BRIGHTEST)
    shares *= 255 // _GREY_STEP
    return np.rint(shares, out=shares).astype(np.uint8) * np.uint8(_GREY_STEP)
