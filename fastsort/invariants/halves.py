"""The two halves of every class: sums of their aligned images, and the references made of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._jit import kernel
from fastsort._types import Array, Floats, Images, Indices, Singles
from fastsort.invariants.references import (
    References,
    inner_ring_weights,
    prepare_references,
    soft_disk,
)
from fastsort.invariants.ring_correlation import filter_averages, fourier_ring_correlation, usable_rings
from fastsort.invariants.rings import polar_spectra
from fastsort.invariants.search import search_poses
from fastsort.invariants.transform import move_images, shift_images


class Sums(NamedTuple):
    """Sums of the aligned images of a batch.

    Attributes
    ----------
    slots : ndarray of intp, shape (k,)
        Halves of classes that have images here: 2 k and 2 k + 1 are those of class k.
    totals : ndarray of float64, shape (k, d, d)
    counts : ndarray of intp, shape (k,)
    """

    slots: Indices
    totals: Floats
    counts: Indices


def sum_aligned(images: Images, slots: Indices, angle: Singles, shift: Singles) -> Sums:
    """Align images (n, d, d) and add up those of each slot; an angle of NaN leaves an image out."""
    known = np.isfinite(angle)
    if not known.all():
        images, slots, angle, shift = images[known], slots[known], angle[known], shift[known]
    aligned = move_images(images, angle, shift, np.zeros(len(images), dtype=np.bool_))
    present, place = np.unique(slots, return_inverse=True)
    totals = np.zeros((len(present), *images.shape[1:]))
    _add_images(aligned, place, totals)
    return Sums(present, totals, np.bincount(place, minlength=len(present)))


@kernel
def _add_images(images, place, totals):
    for i in range(images.shape[0]):
        into = totals[place[i]]
        for y in range(into.shape[0]):
            for x in range(into.shape[1]):
                into[y, x] += images[i, y, x]


class Halves:
    """The two halves of every class: the sums of this round, and the averages of the last one.

    Parameters
    ----------
    count : int
        Classes.
    box : int
        Side of the images in pixels.
    radius : float
        Radius in pixels of the disk that is used of references and averages.

    Attributes
    ----------
    frc : ndarray of float64, shape (count, box // 2 + 1)
        Fourier ring correlation of the halves after the last round.
    """

    def __init__(self, count: int, box: int, radius: float) -> None:
        self.disk = soft_disk(box, radius)
        self.frc: Floats = np.zeros((count, box // 2 + 1))
        self._totals = np.zeros((2 * count, box, box))
        self._counts = np.zeros(2 * count, dtype=np.intp)
        self._current = np.zeros((2 * count, box, box), dtype=np.float32)

    def clear(self) -> None:
        """Begin a round."""
        self._totals[:] = 0
        self._counts[:] = 0

    def add(self, sums: Sums) -> None:
        """Take in a batch."""
        self._totals[sums.slots] += sums.totals
        self._counts[sums.slots] += sums.counts

    def first_references(self, seeds: Images) -> References:
        """Make references of images (2 count, d, d), with their innermost rings alone."""
        weights = inner_ring_weights(len(seeds), seeds.shape[1])
        return prepare_references(seeds * self.disk, weights)

    def own_references(self) -> References:
        """Make a reference for either half of each class."""
        return prepare_references(self._current * self.disk, np.repeat(usable_rings(self.frc), 2, axis=0))

    def common_references(self) -> References:
        """Make one common reference for both halves of each class."""
        trusted = usable_rings(self.frc)
        whole = self._of_both(self._current).astype(np.float32)
        return prepare_references(whole * self.disk, 2 * trusted / (1 + trusted))

    def settle(self, max_shift: float) -> None:
        """End a round: align the averages of the halves to each other, correlate them and centre both."""
        halves = self._second_onto_first(self._means(), max_shift)
        self._correlate(halves)
        filtered = filter_averages(self._of_both(halves), usable_rings(self.frc))
        centres = [_centre_of_mass(image, self.disk, max_shift) for image in filtered]
        self._current = shift_images(halves, np.repeat(centres, 2, axis=0))

    def leave(self) -> None:
        """End a round: correlate the averages of the halves as they lie, and move neither."""
        self._current = self._means()
        self._correlate(self._current)

    def sizes(self) -> Indices:
        """Return the number of images of each class in this round."""
        size: Indices = self._counts.reshape(-1, 2).sum(axis=1)
        return size

    def averages(self) -> Images:
        """Return the averages (count, d, d) of all images of each class in this round."""
        totals = self._totals.reshape(-1, 2, *self.disk.shape).sum(axis=1)
        return (totals / np.maximum(self.sizes(), 1)[:, None, None]).astype(np.float32)

    def _means(self) -> Images:
        """Return the average of either half of each class in this round."""
        means: Images = (self._totals / np.maximum(self._counts, 1)[:, None, None]).astype(np.float32)
        return means

    def _correlate(self, halves: Images) -> None:
        self.frc = fourier_ring_correlation(halves[0::2] * self.disk, halves[1::2] * self.disk)

    def _of_both(self, halves: Images) -> Array:
        """Mean of the halves of each class, weighted by their images."""
        weight = self._counts.reshape(-1, 2, 1, 1)
        whole = halves.reshape(-1, 2, *self.disk.shape) * weight
        return whole.sum(axis=1) / np.maximum(weight.sum(axis=1), 1)

    def _second_onto_first(self, halves: Images, max_shift: float) -> Images:
        first, second = halves[0::2], halves[1::2]
        bank = prepare_references(first * self.disk)
        both = np.flatnonzero((bank.norm > 0) & (self._counts[1::2] > 0))
        if not len(both):
            return halves
        poses = search_poses(polar_spectra(second[both] * self.disk), bank, both[:, None], max_shift)
        known = np.isfinite(poses.angle)
        angle, shift = np.zeros(len(halves)), np.zeros((len(halves), 2))
        angle[2 * both[known] + 1] = poses.angle[known]
        shift[2 * both[known] + 1] = poses.shift[known]
        return move_images(halves, angle, shift, np.zeros(len(halves), dtype=np.bool_))


def _centre_of_mass(image: Images, disk: Singles, max_shift: float) -> Floats:
    """Centre of mass of a bright or dark particle, in pixels from pixel d // 2; noise does not count."""
    box = len(image)
    offset = np.arange(box) - box // 2
    background = image[disk < 0.5].astype(np.float64)
    height = (image - background.mean()) * disk
    if height.sum() < 0:
        height = -height
    mass = np.where(height > 2 * background.std(), height, 0)
    total = mass.sum()
    if not total > 0:
        return np.zeros(2)
    centre = np.array([mass.sum(axis=1) @ offset, mass.sum(axis=0) @ offset]) / total
    # Members cannot follow a reference that moves farther than they may.
    return centre * min(1.0, max_shift / max(float(np.hypot(*centre)), 1e-9))
