"""Class averages: members aligned to each other, averaged, and how far the average can be trusted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft

from fastsort._brief import brief
from fastsort._checks import InputError, check_count, check_radius
from fastsort._jit import kernel
from fastsort.images.batches import map_batches
from fastsort.invariants.align import (
    SEARCH_RINGS,
    Alignment,
    Images,
    Indices,
    Polar,
    References,
    check_max_shift,
    correlate,
    moved,
    polar_spectra,
    prepare_references,
    search,
    soft_disk,
)
from fastsort.particles.source import choose_particles, open_particles

if TYPE_CHECKING:
    from fastsort.particles.source import Particles

# Where the correlation of two halves falls below this, the average counts as resolved.
RESOLVED = 0.5
# Beyond the frequency where it falls below this, nothing of a reference is used.
TRUSTED = 0.143
# Members from which each half of a class starts, and how many of them may be the first reference.
SEED_MEMBERS = 40
SEED_STARTS = 3
# Parts of the members, the most similar first, that make the reference in each round of the start.
GROWTH = (0.25, 0.5, 1.0, 1.0)
# Images and their transforms that are kept between the passes; the others are read again.
CACHE_BYTES = 384 << 20

Floats = npt.NDArray[np.float32]


@brief
class ClassAverages(NamedTuple):
    """Averages of classes, and what is known of them and of their members.

    Attributes
    ----------
    averages : ndarray of float32, shape (C, d, d)
        Of aligned members, each with mean 0 outside the circle inscribed in the box and deviation 1
        overall. Centred on its mass; not filtered. Zero for an empty class.
    size : ndarray of intp, shape (C,)
        Members that were averaged: those without a label, flat, or with NaN or infinity do not count.
    spread : ndarray of float32, shape (C,)
        1 minus the mean score of the members. NaN for fewer than two.
    resolution : ndarray of float32, shape (C,)
        Period at which the correlation of the two halves falls below 0.5, in angstroms, or in pixels
        where the pixel size is unknown; two pixels (the last ring) where it never does, and infinity
        where it nowhere exceeds 0.5, as in a class of fewer than two.
    frc : ndarray of float32, shape (C, d // 2 + 1)
        Fourier ring correlation of the averages of the two halves at 0, 1, ... cycles a box, inside the
        particle's disk. Zero for fewer than two members.
    angle : ndarray of float32, shape (n,)
    shift : ndarray of float32, shape (n, 2)
        How each image was brought onto its average, as in `Alignment`. NaN for images in no average.
    score : ndarray of float32, shape (n,)
        Normalised correlation with the filtered average of the other half of the class, in which the
        image has no part: how well it fits, whatever the size of its class. NaN if there is no other
        half; -inf for images in no average.
    """

    averages: Images
    size: Indices
    spread: Floats
    resolution: Floats
    frc: Floats
    angle: Floats
    shift: Floats
    score: Floats


def class_averages(
    images: npt.NDArray[Any] | Particles,
    labels: npt.ArrayLike,
    *,
    n_classes: int | None = None,
    references: npt.ArrayLike | None = None,
    n_iterations: int = 5,
    max_shift: float | None = None,
    radius: float | None = None,
    pixel_size: float | None = None,
    n_jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ClassAverages:
    """Align the members of each class to each other and average them.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
    labels : array of int, shape (n,)
        Class of each image from 0; -1 for none. Classes may be empty.
    n_classes : int, optional
        One more than the highest label by default.
    references : ndarray, shape (n_classes, d, d), optional
        What the members of each class are first aligned to. By default it is found among them.
    n_iterations : int
        Rounds of alignment and averaging after the start.
    max_shift : float, optional
        How far from pixel d // 2 a particle may lie, in pixels; an eighth of the box by default.
    radius : float, optional
        Of the particle, in pixels: references and correlations of halves are limited to this disk, with
        a soft edge. By default the circle inscribed in the box.
    pixel_size : float, optional
        In angstroms; by default that of the particles, and 1 for an array.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    progress : callable, optional
        Called as ``progress(images_aligned, images_to_align)``, where each counts once a round.

    Returns
    -------
    classes : ClassAverages

    Raises
    ------
    InputError
        If the images are no stack of squares, or labels or references do not fit them.

    Notes
    -----
    Nothing but the images is needed. Every second member of a class belongs to its other half. Up to 40
    members of a half, evenly spread, are centred on their rotational average and compared with each
    other. Each of the three that are most like the others is the first reference of an average that
    takes in the most similar members first; the one that its members fit best wins. In the other half
    the three that are most like this average are the first references: so the halves start from the
    same view, but from images of their own. Of references that are given, and of all averages at the
    start, only the lowest 10 rings are used.

    Then each half is aligned to its own average
    alone, weighted on every ring by the correlation of the halves and cut off where that falls below
    0.143; between rounds one half's average is brought onto the other's as a whole, and both are centred
    on their mass. So the halves share no noise, but for the low rings of references that are given, and
    their correlation is an honest measure. Only when it has been taken, all members are aligned once more
    to the common average of both halves and make the averages that are returned.

    Images are read from disk in ascending order, once a round and once more, all classes in one pass.
    Up to 384 MiB of them and of their transforms are kept between rounds; apart from that and from the
    averages, memory holds a few batches.
    """
    particles = open_particles(images, pixel_size=pixel_size)
    box = particles.box
    classes, count = _check_labels(labels, len(particles), n_classes)
    n_iterations = check_count("n_iterations", n_iterations)
    limit = check_max_shift(max_shift, box)
    radius = float(box // 2) if radius is None else check_radius(radius, box)
    members = np.flatnonzero(classes >= 0)
    # The half of a member: two slots a class, one after the other.
    slots = 2 * classes[members] + _rank(classes[members], count) % 2
    state = _Halves(count, box, soft_disk(box, radius))
    n = len(particles)
    angle, score = np.full(n, np.nan, dtype=np.float32), np.full(n, -np.inf, dtype=np.float32)
    shift = np.full((n, 2), np.nan, dtype=np.float32)
    if references is not None:
        state.seeds = np.repeat(_check_references(references, count, box), 2, axis=0)
    if len(members):
        if state.seeds is None:
            state.seeds = _seeds(particles, classes, count, limit, state.disk, n_jobs)
        source = _Members(particles, members)
        batch_size = _batch_size(box)

        def passed(function: Callable[..., Any], bank: References, finished: int) -> Iterator[Any]:
            """Run a round: yield members, what was found of them and their sums, batch by batch."""
            rounds = n_iterations + 1
            report = progress and (lambda done, n: progress(finished * n + done, rounds * n))
            results = map_batches(
                function,
                source,
                bank,
                limit,
                each=(slots,),
                batch_size=batch_size,
                n_jobs=n_jobs,
                progress=report,
            )
            done = 0
            for found, sums in results:
                yield members[done : done + len(found.angle)], found, sums
                done += len(found.angle)

        for iteration in range(n_iterations):
            bank = state.references()
            state.clear()
            for part, found, sums in passed(_align_batch, bank, iteration):
                angle[part], shift[part], score[part] = found
                state.add(sums)
            state.settle(limit)
        bank = state.common_references()
        state.clear()
        for part, found, sums in passed(_place_batch, bank, n_iterations):
            angle[part], shift[part] = found.angle, found.shift
            state.add(sums)
    return _summary(state, classes, angle, shift, score, particles.pixel_size)


def fourier_ring_correlation(one: npt.ArrayLike, other: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Correlate two images, or stacks of images, on rings of the Fourier plane.

    Parameters
    ----------
    one, other : array of float, shape (d, d) or (n, d, d)

    Returns
    -------
    correlation : ndarray of float64, shape (d // 2 + 1,) or (n, d // 2 + 1)
        At 0, 1, ... cycles a box, each ring one cycle wide; 0 where an image has no power.

    Raises
    ------
    InputError
        If the images are not square or not of one shape.
    """
    first, second = (np.asarray(image, dtype=np.float64) for image in (one, other))
    if first.ndim not in (2, 3) or first.shape[-1] != first.shape[-2] or first.shape != second.shape:
        raise InputError(
            "images to correlate must be square and of one shape, (d, d) or (n, d, d); "
            f"got {first.shape} and {second.shape}."
        )
    box = first.shape[-1]
    rows = scipy.fft.fftfreq(box, 1 / box)[:, None]
    columns = np.arange(box // 2 + 1)
    ring = np.rint(np.hypot(rows, columns)).astype(np.intp)
    # The half plane stands for all of it: only columns 0 and Nyquist are their own partners.
    weight = np.where((columns == 0) | (2 * columns == box), 1.0, 2.0) * (ring <= box // 2)
    sums = np.empty((3, first.size // box**2, box // 2 + 1))
    for i, (a, b) in enumerate(zip(first.reshape(-1, box, box), second.reshape(-1, box, box), strict=True)):
        left, right = scipy.fft.rfft2(a, workers=1), scipy.fft.rfft2(b, workers=1)
        products = (left * right.conj()).real, np.abs(left) ** 2, np.abs(right) ** 2
        for j, product in enumerate(products):
            flat = np.bincount(ring.ravel(), (weight * product).ravel(), minlength=box + 1)
            sums[j, i] = flat[: box // 2 + 1]
    power = np.sqrt(sums[1]) * np.sqrt(sums[2])
    correlation = np.divide(sums[0], power, out=np.zeros_like(power), where=power > 0)
    return np.clip(correlation, -1, 1).reshape(*first.shape[:-2], -1)


def filter_averages(averages: npt.ArrayLike, frc: npt.ArrayLike) -> Images:
    """Weight averages on every ring by how far it can be trusted.

    Parameters
    ----------
    averages : ndarray, shape (C, d, d)
    frc : ndarray, shape (C, d // 2 + 1)
        Fourier ring correlation of the halves of each.

    Returns
    -------
    filtered : ndarray of float32, shape (C, d, d)

    Notes
    -----
    If halves correlate by r, signal makes up 2 r / (1 + r) of the power of the whole: the Wiener filter
    [1]_. Rings from the first one below 0.143 on are left out; frequency 0 is kept.

    References
    ----------
    .. [1] Rosenthal, Henderson, "Optimal determination of particle orientation, absolute hand, and
       contrast loss in single-particle electron cryomicroscopy", J. Mol. Biol. 333 (2003).
    """
    trusted = np.maximum(_trusted(np.asarray(frc, dtype=np.float64)), 0)
    weight = 2 * trusted / (1 + trusted)
    weight[:, 0] = 1
    return weigh_rings(np.asarray(averages, dtype=np.float32), weight)


def averages_to_match(averages: ClassAverages) -> Images:
    """Return the averages filtered, but none without its low rings: each must find its like."""
    return filter_averages(averages.averages, _usable(averages.frc.astype(np.float64)))


def weigh_rings(images: Images, weight: npt.NDArray[np.float64]) -> Images:
    """Multiply images (C, d, d) by curves (C, d // 2 + 1) in the Fourier plane; its corners become zero."""
    box = images.shape[-1]
    radius = np.hypot(scipy.fft.fftfreq(box, 1 / box)[:, None], np.arange(box // 2 + 1))
    rings = np.arange(box // 2 + 1)
    filtered = np.empty_like(images)
    for image, curve, out in zip(images, weight, filtered, strict=True):
        plane = np.interp(radius, rings, curve, right=0)
        out[:] = scipy.fft.irfft2(scipy.fft.rfft2(image, workers=1) * plane, s=(box, box), workers=1)
    return filtered


def _trusted(frc: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Correlations (C, rings), 0 from the first ring on that cannot be trusted; ring 0 is not looked at."""
    below = frc < TRUSTED
    below[:, 0] = False
    return np.where(np.cumsum(below, axis=1) > 0, 0.0, frc)


def _usable(frc: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Correlations as `_trusted`, but whatever the halves say there is something left to align to."""
    trusted = _trusted(frc)
    low = trusted[:, : SEARCH_RINGS // 2 + 1]
    np.maximum(low, TRUSTED, out=low)
    return trusted


def _check_labels(labels: npt.ArrayLike, n: int, n_classes: int | None) -> tuple[npt.NDArray[np.intp], int]:
    classes = np.asarray(labels)
    if classes.shape != (n,) or classes.dtype.kind not in "iu":
        raise InputError(
            f"labels must be whole numbers, one for each of the {n} images; "
            f"got {classes.dtype} {classes.shape}."
        )
    classes = classes.astype(np.intp)
    lowest, highest = int(classes.min()), int(classes.max())
    if lowest < -1:
        raise InputError(f"labels must be -1 (no class) or more; got {lowest}.")
    if n_classes is None:
        return classes, highest + 1
    count = check_count("n_classes", n_classes, 0)
    if highest >= count:
        raise InputError(f"labels must be below n_classes = {count}; got {highest}.")
    return classes, count


def _check_references(references: npt.ArrayLike, count: int, box: int) -> Images:
    stack = np.asarray(references, dtype=np.float32)
    if stack.shape != (count, box, box):
        raise InputError(f"references must have shape {(count, box, box)}, one a class; got {stack.shape}.")
    return stack


def _rank(classes: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.intp]:
    """Position of each entry among those of its class."""
    order = np.argsort(classes, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(classes, minlength=count))])
    rank = np.empty(len(classes), dtype=np.intp)
    rank[order] = np.arange(len(classes)) - first[classes[order]]
    return rank


def _batch_size(box: int) -> int:
    # Transforms take about twice the place of the images.
    return min(512, max(8, (8 << 20) // (4 * box * box)))


class _Members:
    """Some of a set of particles, with their transforms, read in ranges; the first ones are kept."""

    def __init__(
        self,
        particles: Particles,
        indices: npt.NDArray[np.intp],
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
        return {**self.__dict__, "_kept": {}}

    def read(self, start: int, stop: int) -> Any:
        """Return levelled images and their transforms."""
        place = self._first + start
        if place in self._kept:
            return self._kept[place]
        images = self._particles.read(self._indices[start:stop])
        polar = polar_spectra(images)
        _level(images, polar.usable, soft_disk(images.shape[1]) == 0)
        # Decided by the place in the set, not by who comes first.
        per_image = (images.nbytes + polar.spectra.nbytes) // len(images)
        if (self._first + stop) * per_image <= CACHE_BYTES:
            self._kept[place] = images, polar
        return images, polar

    def part(self, start: int, stop: int) -> _Members:
        """Return some of them, with what is kept of all."""
        some = choose_particles(self._particles, self._indices[start:stop])
        return _Members(some, np.arange(stop - start), self._first + start, self._kept)


def _level(images: Images, usable: npt.NDArray[np.bool_], outside: npt.NDArray[np.bool_]) -> None:
    """Bring the background to mean 0 and all pixels to deviation 1, in place; unusable images to 0."""
    pixels = images.shape[1] * images.shape[2]
    _level_images(images.reshape(len(images), pixels), usable, np.flatnonzero(outside))


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


class _Sums(NamedTuple):
    """Sums of aligned images of a batch: which slots, the sums, and how many in each."""

    slots: npt.NDArray[np.intp]
    totals: npt.NDArray[np.float64]
    counts: npt.NDArray[np.intp]


class _Poses(NamedTuple):
    angle: Floats
    shift: Floats
    score: Floats


def _align_batch(
    read: tuple[Images, Polar], start: int, mine: npt.NDArray[np.intp], bank: References, max_shift: float
) -> tuple[_Poses, _Sums]:
    images, polar = read
    found = search(polar, bank, mine[:, None], max_shift)
    pose = found.alignment
    # A slot without a reference of its own has no other images either.
    other = mine ^ 1
    score = correlate(polar, bank, other, pose.angle, pose.shift)
    score[~polar.usable] = -np.inf
    return _Poses(pose.angle, pose.shift, score), _summed(images, mine, pose.angle, pose.shift)


def _place_batch(
    read: tuple[Images, Polar], start: int, mine: npt.NDArray[np.intp], bank: References, max_shift: float
) -> tuple[Alignment, _Sums]:
    images, polar = read
    pose = search(polar, bank, mine[:, None] // 2, max_shift).alignment
    return pose, _summed(images, mine, pose.angle, pose.shift)


def _summed(images: Images, slots: npt.NDArray[np.intp], angle: Floats, shift: Floats) -> _Sums:
    known = np.isfinite(angle)
    if not known.all():
        images, slots, angle, shift = images[known], slots[known], angle[known], shift[known]
    aligned = moved(images, angle, shift, np.zeros(len(images), dtype=np.bool_))
    present, place = np.unique(slots, return_inverse=True)
    totals = np.zeros((len(present), *images.shape[1:]))
    _add_images(aligned, place, totals)
    return _Sums(present, totals, np.bincount(place, minlength=len(present)))


@kernel
def _add_images(images, place, totals):
    for i in range(images.shape[0]):
        totals[place[i]] += images[i]


class _Halves:
    """Sums of the two halves of every class, and the references that come from them."""

    def __init__(self, count: int, box: int, disk: Floats) -> None:
        self.disk = disk
        self.box = box
        self.seeds: Images | None = None
        self.totals = np.zeros((2 * count, box, box))
        self.counts = np.zeros(2 * count, dtype=np.intp)
        self.current = np.zeros((2 * count, box, box), dtype=np.float32)
        self.frc = np.zeros((count, box // 2 + 1))

    def clear(self) -> None:
        self.totals[:] = 0
        self.counts[:] = 0

    def add(self, sums: _Sums) -> None:
        self.totals[sums.slots] += sums.totals
        self.counts[sums.slots] += sums.counts

    def references(self) -> References:
        """Make the references of both halves of each class."""
        if self.seeds is not None:
            bank = prepare_references(self.seeds * self.disk, _low_rings(len(self.seeds), self.box))
            self.seeds = None
            return bank
        trusted = _usable(self.frc)
        return prepare_references(self.current * self.disk, np.repeat(trusted, 2, axis=0))

    def means(self) -> Images:
        return (self.totals / np.maximum(self.counts, 1)[:, None, None]).astype(np.float32)

    def common_references(self) -> References:
        """Make one reference for each class of both its halves."""
        weight = self.counts.reshape(-1, 2, 1, 1)
        whole = self.current.reshape(-1, 2, self.box, self.box) * weight
        whole = whole.sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
        trusted = _usable(self.frc)
        return prepare_references(whole.astype(np.float32) * self.disk, 2 * trusted / (1 + trusted))

    def settle(self, max_shift: float) -> None:
        """Bring the second halves onto the first, correlate them and centre both."""
        halves = self.means()
        first, second = halves[0::2], halves[1::2]
        turn, move = np.zeros(len(halves)), np.zeros((len(halves), 2))
        upright = np.zeros(len(halves), dtype=np.bool_)
        bank = prepare_references(first * self.disk)
        both = np.flatnonzero((bank.norm > 0) & (self.counts[1::2] > 0))
        if len(both):
            pose = search(polar_spectra(second[both] * self.disk), bank, both[:, None], max_shift).alignment
            known = np.isfinite(pose.angle)
            turn[2 * both[known] + 1] = pose.angle[known]
            move[2 * both[known] + 1] = pose.shift[known]
            halves = moved(halves, turn, move, upright)
        self.frc = fourier_ring_correlation(halves[0::2] * self.disk, halves[1::2] * self.disk)
        weight = self.counts.reshape(-1, 2, 1, 1)
        whole = halves.reshape(-1, 2, self.box, self.box) * weight
        whole = whole.sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
        filtered = filter_averages(whole, _usable(self.frc))
        centres = [_centre_of_mass(image, self.disk, max_shift) for image in filtered]
        self.current = moved(halves, np.zeros(len(halves)), np.repeat(centres, 2, axis=0), upright)

    def finish(self) -> Images:
        """Return the averages of all members."""
        weight = self.counts.reshape(-1, 2, 1, 1).sum(axis=1)
        totals = self.totals.reshape(-1, 2, self.box, self.box).sum(axis=1)
        return (totals / np.maximum(weight, 1)).astype(np.float32)


def _centre_of_mass(image: Images, disk: Floats, max_shift: float) -> npt.NDArray[np.float64]:
    """Where the mass of a particle lies, bright or dark, in pixels from d // 2; noise does not count."""
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


def _summary(
    state: _Halves,
    classes: npt.NDArray[np.intp],
    angle: Floats,
    shift: Floats,
    score: Floats,
    pixel_size: float,
) -> ClassAverages:
    averages, frc = state.finish(), state.frc.astype(np.float32)
    size = state.counts.reshape(-1, 2).sum(axis=1)
    averaged = np.flatnonzero((classes >= 0) & np.isfinite(score))
    total = np.bincount(classes[averaged], score[averaged].astype(np.float64), len(size))
    spread = np.full(len(size), np.nan, dtype=np.float32)
    paired = size > 1
    spread[paired] = 1 - total[paired] / size[paired]
    scale = pixel_size if math.isfinite(pixel_size) else 1.0
    with np.errstate(divide="ignore"):
        resolution = (scale * state.box / resolved_rings(frc)).astype(np.float32)
    return ClassAverages(averages, size, spread, resolution, frc, angle, shift, score)


def resolved_rings(frc: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return where curves (C, rings) fall below `RESOLVED`, in cycles a box; 0 where they never exceed it.

    A curve that never falls below is resolved up to its last ring.
    """
    rings = np.empty(len(frc))
    for i, curve in enumerate(frc):
        below = np.flatnonzero(curve[1:] < RESOLVED) + 1
        last = int(below[0]) if len(below) else len(curve)
        if last == len(curve):
            rings[i] = last - 1
        elif last == 1:
            rings[i] = 0
        else:
            high, low = float(curve[last - 1]), float(curve[last])
            rings[i] = last - 1 + (high - RESOLVED) / (high - low)
    return rings


# Where a class starts.


class _Samples:
    """For each half of each class a few members, the halves of a class read together."""

    def __init__(self, particles: Particles, chosen: list[npt.NDArray[np.intp]]) -> None:
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


def _seeds(
    particles: Particles,
    classes: npt.NDArray[np.intp],
    count: int,
    max_shift: float,
    disk: Floats,
    n_jobs: int | None,
) -> Images:
    order = np.argsort(classes, kind="stable")
    ends = np.searchsorted(classes[order], np.arange(count + 1))
    chosen = []
    for first, last in itertools.pairwise(ends):
        for half in (order[first:last:2], order[first + 1 : last : 2]):
            evenly = np.linspace(0, max(0, len(half) - 1), min(len(half), SEED_MEMBERS))
            chosen.append(half[np.unique(evenly.astype(np.intp))])
    seeds = map_batches(_seed, _Samples(particles, chosen), max_shift, disk, batch_size=1, n_jobs=n_jobs)
    return np.concatenate(list(seeds))


def _seed(halves: tuple[Images, Images], start: int, max_shift: float, disk: Floats) -> Images:
    """Averages of a few images of either half, of which nothing is known: zero where none is usable."""
    one = _Sample(halves[0], max_shift, disk)
    first = one.start(np.argsort(-one.likeness(), kind="stable"))
    other = _Sample(halves[1], max_shift, disk)
    if not first.any():
        return np.stack([first, other.start(np.arange(len(other.images)))])
    # Only which images it starts from comes from the other half.
    like = _fit(other.polar, first * disk, max_shift).score
    return np.stack([first, other.start(np.argsort(-like, kind="stable"))])


class _Sample:
    """Usable images of half a class, levelled and centred."""

    def __init__(self, images: Images, max_shift: float, disk: Floats) -> None:
        polar = polar_spectra(images)
        images = images[polar.usable]
        _level(images, np.ones(len(images), dtype=np.bool_), soft_disk(len(disk)) == 0)
        if len(images) > 1:
            centre = _centred(polar_spectra(images), images, max_shift, disk)
            images = moved(images, np.zeros(len(images)), centre, np.zeros(len(images), dtype=np.bool_))
        self.images, self.polar = images, polar_spectra(images)
        self._max_shift, self._disk = max_shift, disk

    def likeness(self) -> npt.NDArray[np.float64]:
        """Return how much each image is like the others."""
        alike = np.array(
            [_fit(self.polar, image * self._disk, self._max_shift).score for image in self.images]
        )
        if len(alike) < 2:
            return np.zeros(len(alike))
        np.fill_diagonal(alike, np.nan)
        # The median: some members may not belong to the class.
        return np.nanmedian(alike, axis=1)

    def start(self, order: npt.NDArray[np.intp]) -> Images:
        """Return the average that its members fit best, grown from one of the first images in `order`."""
        best = np.zeros(self._disk.shape, dtype=np.float32)
        if len(order) == 0:
            return best
        best, best_score = self.images[order[0]], -np.inf
        for first in order[:SEED_STARTS]:
            average, worth = self._grow(self.images[first])
            if worth > best_score:
                best, best_score = average, worth
        return best

    def _grow(self, average: Images) -> tuple[Images, float]:
        """Average that takes in the members most like it first, and how well all of them fit it."""
        n, worth = len(self.images), -np.inf
        upright = np.zeros(n, dtype=np.bool_)
        for part in GROWTH:
            if n < 2 or not average.any():
                break
            pose = _fit(self.polar, average * self._disk, self._max_shift)
            worth = float(np.median(pose.score))
            near = np.argsort(-pose.score, kind="stable")[: max(2, math.ceil(part * n))]
            average = moved(self.images[near], pose.angle[near], pose.shift[near], upright[near]).mean(axis=0)
        return average, worth


def _low_rings(count: int, box: int) -> npt.NDArray[np.float64]:
    """Weights that leave what the search looks at."""
    weight = np.zeros((count, box // 2 + 1))
    weight[:, : SEARCH_RINGS + 1] = 1
    return weight


def _fit(polar: Polar, reference: Images, max_shift: float) -> Alignment:
    """Align images to a reference by its low rings alone."""
    bank = prepare_references(reference[None], _low_rings(1, len(reference)))
    only = np.zeros((len(polar.spectra), 1), dtype=np.intp)
    return search(polar, bank, only, max_shift, coarse=True).alignment


def _centred(polar: Polar, images: Images, max_shift: float, disk: Floats) -> npt.NDArray[np.float32]:
    """Shifts onto the rotational average of all images."""
    n, box = images.shape[:2]
    upright = np.zeros(n, dtype=np.bool_)
    offset = np.arange(box) - box // 2
    ring = np.rint(np.hypot(offset[:, None], offset)).astype(np.intp)
    area = np.bincount(ring.ravel())
    shift = np.zeros((n, 2), dtype=np.float32)
    for _ in range(2):
        mean = moved(images, np.zeros(n), shift, upright).mean(axis=0)
        profile = np.bincount(ring.ravel(), mean.ravel()) / area
        found = _fit(polar, (profile[ring] * disk).astype(np.float32), max_shift)
        shift = np.nan_to_num(found.shift)
    return shift
