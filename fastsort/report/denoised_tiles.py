"""Denoised tiles: small copies of images without most of their noise, for the page and the picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._types import Images, Indices
from fastsort.decide.result import SortResult
from fastsort.denoising.covariance import (
    CovarianceModel,
    covariance_batches,
    learn_covariance,
    without_mean,
)
from fastsort.images.crop import fourier_crop
from fastsort.particles.source import Particles, as_particles, evenly_spaced
from fastsort.report.png import Greys
from fastsort.report.tiles import BYTES_AT_ONCE, SIDE, common_tiles, flip_as_sorted, scale_of_greys

# Images from which the covariance is learned, at most: they are held in memory at the size of a tile.
N_LEARNED = 4096
# Denoised images that tell which values become black and white.
N_SCALED = 500


class TileDenoiser(NamedTuple):
    """What denoises tiles of a set that was sorted.

    Attributes
    ----------
    particles : Particles
    result : SortResult
        Says whether phases are flipped.
    model : CovarianceModel
        Learned from images of at most 64 px.
    scale : float, float
        Values that become black and white.
    """

    particles: Particles
    result: SortResult
    model: CovarianceModel
    scale: tuple[float, float]


def learn_tiles(particles: Particles, result: SortResult) -> TileDenoiser:
    """Learn how to denoise tiles of a set.

    Parameters
    ----------
    particles : Particles
        At most 4096 of them are read, evenly spaced: kept and rejected images alike.
    result : SortResult

    Returns
    -------
    denoiser : TileDenoiser

    Notes
    -----
    `denoise_images` has smaller errors, and would mislead here: where an image says little, it shows what
    the other images say, even if the image holds no particle. A tile shows only what its own image says.
    The covariance filter is therefore used without its mean, so that an image without a particle stays
    empty; and the phases of the contrast transfer function are flipped as in the run, while what it
    took away is not put back.
    """
    images = _reduced(particles, result, evenly_spaced(len(particles), N_LEARNED))
    model = without_mean(learn_covariance(images))
    some = images[evenly_spaced(len(images), N_SCALED)]
    return TileDenoiser(particles, result, model, scale_of_greys(_denoised(some, model)))


def denoised_tiles(denoiser: TileDenoiser, indices: Indices, size: int = SIDE) -> Greys:
    """Read images and make denoised small copies of them.

    Parameters
    ----------
    denoiser : TileDenoiser
        From `learn_tiles`.
    indices : ndarray of intp, shape (k,)
    size : int
        Largest side of a tile in pixels, at most 64.

    Returns
    -------
    tiles : ndarray of uint8, shape (k, s, s)
        With one scale of greys for all, so that a tile in which nothing was found is flat. `s` is `size`, or
        the box where that is smaller.
    """
    images = _reduced(denoiser.particles, denoiser.result, indices)
    if len(images):
        images = fourier_crop(_denoised(images, denoiser.model), min(size, images.shape[1]))
    return common_tiles(images, denoiser.scale)


def _denoised(images: Images, model: CovarianceModel) -> Images:
    return np.concatenate([*covariance_batches(as_particles(images), model)])


def _reduced(particles: Particles, result: SortResult, indices: Indices) -> Images:
    """Read some images at the size of a tile."""
    box, size = particles.box, min(particles.box, SIDE)
    images = np.empty((len(indices), size, size), np.float32)
    step = max(1, BYTES_AT_ONCE // (4 * box**2))
    for start in range(0, len(indices), step):
        block = indices[start : start + step]
        read = flip_as_sorted(particles.read(block), particles, result, block)
        images[start : start + step] = fourier_crop(read, size)
    return images
