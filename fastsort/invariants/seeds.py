"""First references of classes: averages of a few members of either half, found without any reference."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from fastsort._types import Floats, Images, Indices, Singles
from fastsort.images.batches import map_batches
from fastsort.invariants.members import level_images
from fastsort.invariants.references import inner_ring_weights, prepare_references
from fastsort.invariants.rings import Polar, polar_spectra
from fastsort.invariants.search import Poses, search_poses
from fastsort.invariants.transform import move_images, shift_images
from fastsort.particles.source import Particles, choose_particles

# Members that each half of a class starts from, and how many of them are tried as the first reference.
SEED_MEMBERS = 40
SEED_STARTS = 3
# Parts of the members, the most similar first, that are averaged in each round of the start.
GROWTH = (0.25, 0.5, 1.0, 1.0)


def find_seeds(
    particles: Particles,
    classes: Indices,
    count: int,
    max_shift: float,
    disk: Singles,
    n_jobs: int | None = None,
) -> Images:
    """Make a first reference for either half of each class.

    Parameters
    ----------
    particles : Particles
    classes : ndarray of intp, shape (n,)
        Class of each image; -1 for none. Every second member of a class belongs to its other half.
    count : int
        Classes.
    max_shift : float
        In pixels.
    disk : ndarray of float32, shape (d, d)
        What references are multiplied with.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    seeds : ndarray of float32, shape (2 count, d, d)
        The halves of a class one after the other; zero where no member is usable.
    """
    order = np.argsort(classes, kind="stable")
    ends = np.searchsorted(classes[order], np.arange(count + 1))
    chosen = []
    for first, last in itertools.pairwise(ends):
        for half in (order[first:last:2], order[first + 1 : last : 2]):
            evenly = np.linspace(0, max(0, len(half) - 1), min(len(half), SEED_MEMBERS))
            chosen.append(half[np.unique(evenly.astype(np.intp))])
    samples = _Samples(particles, chosen)
    return np.concatenate(list(map_batches(_seed, samples, max_shift, disk, batch_size=1, n_jobs=n_jobs)))


class _Samples:
    """A few members of each half of each class; the halves of a class are read together."""

    def __init__(self, particles: Particles, chosen: list[Indices]) -> None:
        self._particles = particles
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen) // 2

    def read(self, start: int, stop: int) -> Any:
        """Return the members of one class, half by half."""
        first, second = self._chosen[2 * start], self._chosen[2 * start + 1]
        images = self._particles.read(np.concatenate([first, second]))
        return images[: len(first)], images[len(first) :]

    def part(self, start: int, stop: int) -> _Samples:
        """Return those of some of the classes."""
        chosen = self._chosen[2 * start : 2 * stop]
        ends = np.cumsum([0, *map(len, chosen)])
        some = choose_particles(self._particles, np.concatenate(chosen))
        return _Samples(some, [np.arange(a, b) for a, b in itertools.pairwise(ends)])


def _seed(halves: tuple[Images, Images], start: int, max_shift: float, disk: Singles) -> Images:
    """Average a few images of either half (2, d, d); zero where no image is usable."""
    one = _Sample(halves[0], max_shift, disk)
    first = one.start(np.argsort(-one.likeness(), kind="stable"))
    other = _Sample(halves[1], max_shift, disk)
    if not first.any():
        return np.stack([first, other.start(np.arange(len(other.images)))])
    # Only which images it starts from comes from the other half.
    like = _poses_by_inner_rings(other.polar, first * disk, max_shift).score
    return np.stack([first, other.start(np.argsort(-like, kind="stable"))])


class _Sample:
    """Usable images of half a class, levelled and centred."""

    def __init__(self, images: Images, max_shift: float, disk: Singles) -> None:
        images = images[polar_spectra(images).usable]
        level_images(images, np.ones(len(images), dtype=np.bool_))
        if len(images) > 1:
            images = shift_images(images, _shift_onto_round_mean(images, max_shift, disk))
        self.images, self.polar = images, polar_spectra(images)
        self._max_shift, self._disk = max_shift, disk

    def likeness(self) -> Floats:
        """Return how much each image is like the others."""
        alike = np.array([self._poses(image).score for image in self.images])
        if len(alike) < 2:
            return np.zeros(len(alike))
        np.fill_diagonal(alike, np.nan)
        # The median: some members may not belong to the class.
        return np.nanmedian(alike, axis=1)

    def start(self, order: Indices) -> Images:
        """Grow an average from each of the first images in `order`; return the best."""
        best = np.zeros(self._disk.shape, dtype=np.float32)
        if len(order) == 0:
            return best
        best, best_score = self.images[order[0]], -np.inf
        for first in order[:SEED_STARTS]:
            average, score = self._grow(self.images[first])
            if score > best_score:
                best, best_score = average, score
        return best

    def _grow(self, average: Images) -> tuple[Images, float]:
        """Grow an average that takes in the members most like it first; return it and how well all fit it."""
        n, median_score = len(self.images), -np.inf
        upright = np.zeros(n, dtype=np.bool_)
        for part in GROWTH:
            if n < 2 or not average.any():
                break
            poses = self._poses(average)
            median_score = float(np.median(poses.score))
            near = np.argsort(-poses.score, kind="stable")[: max(2, math.ceil(part * n))]
            aligned = move_images(self.images[near], poses.angle[near], poses.shift[near], upright[near])
            average = aligned.mean(axis=0)
        return average, median_score

    def _poses(self, reference: Images) -> Poses:
        return _poses_by_inner_rings(self.polar, reference * self._disk, self._max_shift)


def _shift_onto_round_mean(images: Images, max_shift: float, disk: Singles) -> Singles:
    """Shifts (n, 2) of images onto the rotational average of all of them."""
    n, box = images.shape[:2]
    polar = polar_spectra(images)
    offset = np.arange(box) - box // 2
    ring = np.rint(np.hypot(offset[:, None], offset)).astype(np.intp)
    area = np.bincount(ring.ravel())
    shift = np.zeros((n, 2), dtype=np.float32)
    for _ in range(2):
        mean = shift_images(images, shift).mean(axis=0)
        profile = np.bincount(ring.ravel(), mean.ravel()) / area
        poses = _poses_by_inner_rings(polar, (profile[ring] * disk).astype(np.float32), max_shift)
        shift = np.nan_to_num(poses.shift)
    return shift


def _poses_by_inner_rings(polar: Polar, reference: Images, max_shift: float) -> Poses:
    """Align images to one reference (d, d) by its innermost rings alone."""
    bank = prepare_references(reference[None], inner_ring_weights(1, len(reference)))
    only = np.zeros((len(polar.spectra), 1), dtype=np.intp)
    return search_poses(polar, bank, only, max_shift, inner_only=True)
