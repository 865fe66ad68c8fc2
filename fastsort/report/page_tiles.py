"""Small pictures for the page: which images are shown, and all of them in one PNG."""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._reasons import REASONS
from fastsort.images.crop import fourier_crop
from fastsort.images.ctf import phase_flip
from fastsort.particles.source import Particles

if TYPE_CHECKING:
    from fastsort.sort import SortResult

# Side of a tile in pixels, tiles in a row of a sprite, and tiles in a group.
TILE, COLUMNS, N_TILES = 64, 20, 24
# The range of junk probabilities is cut into so many parts; so many images of each are stored.
N_STRATA, N_PER_STRATUM = 20, 12
# Reasons that no cut on the junk probability takes back.
FIXED = ("bad_pixels", "flat", "duplicate", "outside")
# Noise compresses badly; nobody sees the lowest bits of it.
_GREY_STEP = 4
_BYTES_AT_ONCE = 1 << 25

Indices = npt.NDArray[np.intp]
Tiles = npt.NDArray[np.uint8]


class Choice(NamedTuple):
    """Images to be shown: indices, ascending in `every`, in the order of showing elsewhere.

    Attributes
    ----------
    every : ndarray of intp
        All images that are shown anywhere.
    best, border, worst : ndarray of intp
        With the lowest scores, on both sides of the verdict, and with the highest scores.
    by_reason : dict of str to ndarray of intp
        A random sample of the images with each reason.
    """

    every: Indices
    best: Indices
    border: Indices
    worst: Indices
    by_reason: dict[str, Indices]


def fixed_images(result: SortResult) -> npt.NDArray[np.bool_]:
    """Tell which images stay rejected wherever the cut lies.

    Parameters
    ----------
    result : SortResult

    Returns
    -------
    fixed : ndarray of bool, shape (n,)
        Images that cannot be judged, duplicates, and those over the edge of their micrograph.
    """
    return ~result.keep & (np.isin(result.reason, FIXED) | ~np.isfinite(result.score))


def choose_images(result: SortResult) -> Choice:
    """Choose the images that the page shows, at most 552.

    Parameters
    ----------
    result : SortResult

    Returns
    -------
    choice : Choice
        `every` also holds up to 12 images of each of 20 parts of the range of junk probabilities, so
        that there are some near any cut.
    """
    judged = np.flatnonzero(~fixed_images(result))
    order = judged[np.lexsort((result.score[judged], result.junk_probability[judged]))]
    kept = order[result.keep[order]]
    rejected = order[~result.keep[order] & ~result.rescued[order]]
    border = np.isin(order, np.concatenate([kept[-N_TILES // 2 :], rejected[: N_TILES // 2]]))
    rng = np.random.default_rng(0)
    by_reason = {}
    for name in REASONS:
        members = np.flatnonzero(result.reason == name)
        if len(members):
            chosen = rng.choice(members, min(N_TILES, len(members)), replace=False)
            by_reason[name] = np.sort(chosen)
    best, worst = order[:N_TILES], order[::-1][:N_TILES]
    strata = _strata(order, result.junk_probability[order])
    every = np.unique(np.concatenate([best, order[border], worst, *strata, *by_reason.values()]))
    return Choice(every, best, order[border], worst, by_reason)


def _strata(order: Indices, probability: npt.NDArray[np.float64]) -> list[Indices]:
    """Images spread over each part of the range of probabilities; `order` is in ascending order of these."""
    part = np.where(np.isfinite(probability), N_STRATA * np.clip(probability, 0, 1), -1)
    part = np.minimum(part.astype(np.intp), N_STRATA - 1)
    chosen = []
    for number in range(N_STRATA):
        members = order[part == number]
        places = np.linspace(0, len(members) - 1, min(N_PER_STRATUM, len(members)))
        chosen.append(members[np.rint(places).astype(np.intp)])
    return chosen


def read_tiles(particles: Particles, result: SortResult, indices: Indices) -> Tiles:
    """Read images, and make small smooth copies of them.

    Parameters
    ----------
    particles : Particles
    result : SortResult
        Says whether phases are flipped, and how large the particle is.
    indices : ndarray of intp, shape (k,)
        Ascending.

    Returns
    -------
    tiles : ndarray of uint8, shape (k, s, s)
        `s` is 64, or the box where that is smaller.

    Raises
    ------
    InputError
        If a file can no longer be read.
    """
    size = min(particles.box, TILE)
    tiles = np.empty((len(indices), size, size), dtype=np.uint8)
    step = max(1, _BYTES_AT_ONCE // (4 * particles.box**2))
    diameter_px = result.diameter_px if math.isfinite(result.diameter_px) else particles.box / 2
    sigma = diameter_px * size / particles.box / 12
    for start in range(0, len(indices), step):
        block = indices[start : start + step]
        images = _finite(particles.read(block))
        if result.phase_flipped and particles.ctf is not None:
            images = phase_flip(images, particles.ctf.of(block), particles.pixel_size)
        tiles[start : start + step] = _grey(fourier_crop(images, size), sigma)
    return tiles


def _finite(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return images without infinite pixels, each divided by its largest value: none overflows later."""
    images = np.where(np.isfinite(images), images, np.float32(0))
    largest = np.abs(images).max(axis=(1, 2), keepdims=True)
    return images / np.where(largest > 0, largest, np.float32(1))


def _grey(images: npt.NDArray[np.float32], sigma: float) -> Tiles:
    from scipy.ndimage import gaussian_filter

    images = gaussian_filter(images, (0, sigma, sigma), mode="nearest")
    low, high = np.percentile(images, (1, 99.7), axis=(1, 2), keepdims=True)
    # An image without contrast is grey, whatever rounding has left in it.
    flat = high - low <= 1e-6 * np.maximum(np.abs(high), np.abs(low))
    shares = np.clip((images - low) / np.where(flat, 1, high - low), 0, 1)
    grey = np.rint(np.where(flat, 0.5, shares) * (255 // _GREY_STEP)) * _GREY_STEP
    return grey.astype(np.uint8)


def picture_tiles(pictures: npt.NDArray[np.float32]) -> Tiles:
    """Make tiles of pictures without noise, such as class averages.

    Parameters
    ----------
    pictures : ndarray of float32, shape (k, d, d)

    Returns
    -------
    tiles : ndarray of uint8, shape (k, s, s)
        `s` is 64, or `d` where that is smaller.
    """
    size = min(pictures.shape[1], TILE)
    if len(pictures) == 0:
        return np.empty((0, size, size), dtype=np.uint8)
    return _grey(fourier_crop(_finite(pictures), size), 0.0)


def sprite_png(tiles: Tiles) -> bytes:
    """Put tiles side by side into one picture.

    Parameters
    ----------
    tiles : ndarray of uint8, shape (k, s, s)

    Returns
    -------
    png : bytes
        With 20 tiles in each row, or all where there are fewer; a single black pixel where there is none.
    """
    if len(tiles) == 0:
        return grey_png(np.zeros((1, 1), dtype=np.uint8))
    size, columns = tiles.shape[1], min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * columns, size, size), dtype=np.uint8)
    sheet[: len(tiles)] = tiles
    return grey_png(sheet.reshape(rows, columns, size, size).swapaxes(1, 2).reshape(rows * size, -1))


def grey_png(pixels: Tiles) -> bytes:
    """Encode a grey picture.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width)

    Returns
    -------
    png : bytes
    """
    height, width = pixels.shape
    # Filter 1 of the format: each pixel minus the one to its left, which compresses better.
    lines = np.empty((height, 1 + width), dtype=np.uint8)
    lines[:, 0] = 1
    lines[:, 1:] = np.diff(pixels, axis=1, prepend=np.uint8(0))
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(lines.tobytes(), 9), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
