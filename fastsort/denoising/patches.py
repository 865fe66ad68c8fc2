"""Patches of images: what the methods that denoise patch by patch share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastsort._checks import InputError, check_count, check_positive
from fastsort._jit import kernel
from fastsort._types import Floats, Images, Singles

# Patches are denoised in groups of about this many, so that an image of any size needs little memory.
GROUP = 4096


def check_deviation(deviation: float) -> float:
    """Return the standard deviation of the noise as a float if it is finite and not below zero."""
    return 0.0 if deviation == 0 else check_positive("deviation", deviation)


def check_patch(patch: int, box: int) -> int:
    """Return the side of a patch, in pixels, if patches fit into the box."""
    patch = check_count("patch", patch, 2)
    if patch > box:
        raise InputError(
            f"patch must be at most the {box} px of the images; got {patch} px: make it smaller."
        )
    return patch


def sample_patches(images: Images, patch: int, n_patches: int, seed: int = 0) -> Singles:
    """Take patches at random places of random images.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
    patch : int
        Side of a patch, in pixels.
    n_patches : int
        How many to take; places may repeat.
    seed : int

    Returns
    -------
    patches : ndarray of float32, shape (n_patches, patch * patch)
    """
    rng = np.random.default_rng(seed)
    n, d, _ = images.shape
    # Ascending images: a memory map is read in order.
    image = np.sort(rng.integers(n, size=n_patches))
    row, column = rng.integers(d - patch + 1, size=(2, n_patches))
    line = np.arange(patch)
    taken = images[
        image[:, None, None], row[:, None, None] + line[:, None], column[:, None, None] + line[None, :]
    ]
    return np.ascontiguousarray(taken.reshape(n_patches, patch * patch), np.float32)


def patches_by_rows(image: Singles, patch: int) -> Iterator[tuple[int, Singles]]:
    """Yield all overlapping patches of an image, some rows of them at a time.

    Parameters
    ----------
    image : ndarray of float32, shape (d, d)
    patch : int
        Side of a patch, in pixels.

    Yields
    ------
    first : int
        Row of the first patches.
    patches : ndarray of float32, shape (m * (d - patch + 1), patch * patch)
        All patches that begin in m rows from `first` on, in the order of the rows. The caller owns them.
    """
    side = image.shape[0] - patch + 1
    windows = np.lib.stride_tricks.sliding_window_view(image, (patch, patch))
    rows = max(GROUP // side, 1)
    for first in range(0, side, rows):
        block = windows[first : first + rows]
        yield first, np.array(block, np.float32, order="C").reshape(-1, patch * patch)


def overlap(box: int, patch: int) -> Singles:
    """Count how many overlapping patches contain each pixel of an image.

    Parameters
    ----------
    box, patch : int
        Sides of the image and of a patch, in pixels.

    Returns
    -------
    count : ndarray of float32, shape (box, box)
    """
    place = np.arange(box)
    line = np.minimum(place, box - patch) - np.maximum(place - patch + 1, 0) + 1
    return np.multiply.outer(line, line).astype(np.float32)


@kernel
def add_patches(patches, first, total):
    """Add overlapping patches, as `patches_by_rows` yields them, to the sum that lies at their places."""
    # patches: (m * (d - p + 1), p * p). Adds to total: (d, d).
    d = total.shape[0]
    p = round(np.sqrt(patches.shape[1]))
    side = d - p + 1
    for k in range(patches.shape[0]):
        y, x = first + k // side, k % side
        for v in range(p):
            for u in range(p):
                total[y + v, x + u] += patches[k, v * p + u]


def cosine_waves(side: int, n_waves: int) -> Floats:
    """Return cosine waves on a line, of which there may be more than samples.

    Parameters
    ----------
    side, n_waves : int
        Samples of a wave; how many waves.

    Returns
    -------
    waves : ndarray of float64, shape (n_waves, side)
        Of unit norm, in the order of their frequency. The first is constant, the others have mean 0. As many
        waves as samples are the orthonormal discrete cosine transform (type II).
    """
    waves = np.cos(np.pi / n_waves * np.multiply.outer(np.arange(n_waves), np.arange(side) + 0.5))
    waves[1:] -= waves[1:].mean(axis=1, keepdims=True)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    return waves
