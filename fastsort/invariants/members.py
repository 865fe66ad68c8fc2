"""Members of classes and their transforms: levelled, read in ranges, and some kept between passes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastsort._jit import kernel
from fastsort._types import Bools, Images, Indices
from fastsort.invariants.references import soft_disk
from fastsort.invariants.rings import Polar, polar_spectra
from fastsort.particles.source import Particles, choose_particles

# Images and their transforms that are kept between the passes; the others are read again.
CACHE_BYTES = 384 << 20
BATCH_BYTES = 8 << 20


def members_a_batch(box: int) -> int:
    """Return how many members make a batch; transforms take about twice the place of the images."""
    return min(512, max(8, BATCH_BYTES // (4 * box * box)))


class Members:
    """Some of a set of particles, with their transforms, read in ranges; the first ones are kept.

    Parameters
    ----------
    particles : Particles
    indices : ndarray of intp
        Which are members, in ascending order.
    first : int
        Place of the first of them among all members.
    kept : dict, optional
        What is kept of all members, by the place of the first in a range.
    """

    def __init__(
        self,
        particles: Particles,
        indices: Indices,
        first: int = 0,
        kept: dict[int, tuple[Images, Polar]] | None = None,
    ) -> None:
        self._particles = particles
        self._indices = indices
        self._first = first
        self._kept = {} if kept is None else kept

    def __len__(self) -> int:
        return len(self._indices)

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is kept behind: tasks carry no pixels."""
        return {**self.__dict__, "_kept": {}}

    def read(self, start: int, stop: int) -> Any:
        """Return levelled images and their transforms."""
        place = self._first + start
        if place in self._kept:
            return self._kept[place]
        images = self._particles.read(self._indices[start:stop])
        polar = polar_spectra(images)
        level_images(images, polar.usable)
        # Decided by the place in the set, not by who comes first.
        per_image = (images.nbytes + polar.spectra.nbytes) // len(images)
        if (self._first + stop) * per_image <= CACHE_BYTES:
            self._kept[place] = images, polar
        return images, polar

    def part(self, start: int, stop: int) -> Members:
        """Return some of them, with what is kept of all."""
        some = choose_particles(self._particles, self._indices[start:stop])
        return Members(some, np.arange(stop - start), self._first + start, self._kept)


def level_images(images: Images, usable: Bools) -> None:
    """Bring the background to mean 0 and all pixels to deviation 1, in place; unusable images to 0.

    Background is what lies outside the circle inscribed in the box.
    """
    outside = np.flatnonzero(soft_disk(images.shape[1]) == 0)
    _level_images(images.reshape(len(images), images.shape[1] ** 2), usable, outside)


@kernel
def _level_images(flat, usable, outside):
    for i in range(flat.shape[0]):
        if not usable[i]:
            flat[i] = 0
            continue
        total = 0.0
        for j in range(flat.shape[1]):
            total += flat[i, j]
        mean = total / flat.shape[1]
        square = 0.0
        for j in range(flat.shape[1]):
            difference = flat[i, j] - mean
            square += difference * difference
        background = 0.0
        for j in outside:
            background += flat[i, j]
        background /= len(outside)
        scale = 1 / np.sqrt(square / flat.shape[1]) if square > 0 else 0.0
        for j in range(flat.shape[1]):
            flat[i, j] = (flat[i, j] - background) * scale
