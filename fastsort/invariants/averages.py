"""Class averages: align the members of each class to each other, average them, and say how sharp that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._checks import InputError, check_count, check_radius
from fastsort._progress import Progress, part_of
from fastsort._types import Array, Images, Indices, Singles
from fastsort.images.batches import map_batches
from fastsort.invariants.align import check_max_shift
from fastsort.invariants.halves import Halves, Sums, sum_aligned
from fastsort.invariants.members import Members, members_a_batch
from fastsort.invariants.references import References
from fastsort.invariants.refine import pose_scores
from fastsort.invariants.ring_correlation import filter_averages, resolution_of, usable_rings
from fastsort.invariants.rings import Polar
from fastsort.invariants.search import search_poses
from fastsort.invariants.seeds import find_seeds
from fastsort.particles.source import Particles, as_particles


@brief
class ClassAverages(NamedTuple):
    """Averages of classes, how sharp they are, and how each member was aligned.

    Attributes
    ----------
    averages : ndarray of float32, shape (C, d, d)
        Means of the aligned members, which are scaled to mean 0 outside the circle inscribed in the box
        and deviation 1 overall. Centred on the mass of the particle; not filtered. Zero for an empty class.
    size : ndarray of intp, shape (C,)
        Number of members that were averaged. Images that are flat or hold a NaN or an infinity do not
        count.
    spread : ndarray of float32, shape (C,)
        1 minus the mean score of the members. NaN for fewer than two members.
    resolution : ndarray of float32, shape (C,)
        Period at which the correlation of the two halves falls below 0.5, in angstroms, or in pixels if
        the pixel size is unknown. Two pixels (the last ring) if the correlation never falls below 0.5;
        infinity if it never exceeds 0.5, as in a class of fewer than two members.
    frc : ndarray of float32, shape (C, d // 2 + 1)
        Fourier ring correlation of the averages of the two halves at 0, 1, ... cycles a box, inside the
        particle's disk. Zero for fewer than two members.
    angle : ndarray of float32, shape (n,)
    shift : ndarray of float32, shape (n, 2)
        How each image was brought onto its average, as in `Alignment`. NaN for images in no average.
    score : ndarray of float32, shape (n,)
        Normalised correlation with the filtered average of the other half of the class, which does not
        contain the image: so scores compare across classes of any size. NaN if there is no other half;
        -inf for images in no average.
    """

    averages: Images
    size: Indices
    spread: Singles
    resolution: Singles
    frc: Singles
    angle: Singles
    shift: Singles
    score: Singles


def class_averages(
    images: Array | Particles,
    labels: npt.ArrayLike,
    *,
    n_classes: int | None = None,
    references: npt.ArrayLike | None = None,
    n_iterations: int = 5,
    max_shift: float | None = None,
    radius: float | None = None,
    pixel_size: float | None = None,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> ClassAverages:
    """Align the members of each class to each other and average them.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
    labels : array of int, shape (n,)
        Class of each image, from 0; -1 for none. Classes may be empty.
    n_classes : int, optional
        By default one more than the highest label.
    references : ndarray, shape (n_classes, d, d), optional
        What to align the members of each class to first. By default it is found among the members.
    n_iterations : int
        Rounds of alignment and averaging after the start.
    max_shift : float, optional
        How far from pixel d // 2 a particle may lie, in pixels; by default an eighth of the box.
    radius : float, optional
        Radius of the particle in pixels. Only this disk, with a soft edge, of the references and of the
        halves is compared. By default the circle inscribed in the box.
    pixel_size : float, optional
        In angstroms; by default that of the particles, and 1 for an array.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    progress : callable, optional
        Called as ``progress(images_aligned, images_to_align)``; every image counts once a round.

    Returns
    -------
    classes : ClassAverages

    Raises
    ------
    InputError
        If the images are no stack of squares, or labels or references do not fit them.

    Notes
    -----
    Each class is divided into two halves, of every second member. To find a first reference, up to 40
    members of the first half, evenly spread, are centred on their rotational average and compared with
    each other. The three that are most like the others each start an average, which takes in the most
    similar members first; the average that its members fit best is used. The second half starts in the
    same way from the three of its members that are most like that average. So both halves start from the
    same view, but from images of their own. The start uses only the lowest 10 rings, also of references
    that are given.

    In each round, every half is aligned to its own average alone, with each ring weighted by the
    correlation of the halves, up to the ring where that falls below 0.143. Between rounds the average of
    the second half is aligned to that of the first, and both are centred on their mass. So the halves
    share no noise, except in the low rings of references that are given, and their correlation measures
    the resolution without bias. After the last round all members are aligned once more, to the common
    average of both halves, and make the averages that are returned.

    Every round reads the images once, in ascending order, all classes together. Up to 384 MiB of images
    and their transforms stay in memory between rounds; besides these and the averages, memory holds a few
    batches.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(40, 0, box=32, snr=2, seed=1)
    >>> labels = np.arange(40) % 2
    >>> classes = fs.invariants.class_averages(images, labels, n_iterations=2)
    >>> classes.averages.shape, classes.size.tolist()
    ((2, 32, 32), [20, 20])
    >>> bool(classes.score.min() > 0)
    True
    """
    particles = as_particles(images, pixel_size=pixel_size)
    box = particles.box
    classes, count = _check_labels(labels, len(particles), n_classes)
    n_iterations = check_count("n_iterations", n_iterations)
    limit = check_max_shift(max_shift, box)
    radius = float(box // 2) if radius is None else check_radius(radius, box)
    given = None if references is None else _check_references(references, count, box)
    halves = Halves(count, box, radius)
    poses = _no_poses(len(particles))
    members = np.flatnonzero(classes >= 0)
    if len(members):
        if given is None:
            seeds = find_seeds(particles, classes, count, limit, halves.disk, n_jobs)
        else:
            seeds = np.repeat(given, 2, axis=0)
        passes = _passes(particles, members, classes, count, limit, n_iterations, n_jobs, progress)
        passes.align(halves.first_references(seeds), halves, poses)
    return _summary(halves, classes, poses, particles.pixel_size)


def averages_from_poses(
    particles: Particles,
    labels: Indices,
    angle: Singles,
    shift: Singles,
    count: int,
    *,
    n_iterations: int,
    max_shift: float,
    radius: float,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> ClassAverages:
    """Average classes whose members are aligned already, and align the members to that.

    Parameters
    ----------
    particles : Particles
    labels : ndarray of intp, shape (n,)
        Class of each image; -1 for none.
    angle : ndarray of float32, shape (n,)
    shift : ndarray of float32, shape (n, 2)
        As of an `Alignment`; NaN for images that cannot be aligned.
    count : int
        Classes.
    n_iterations, max_shift, radius, n_jobs, progress
        As for `class_averages`, whose rounds begin with these averages.

    Returns
    -------
    classes : ClassAverages
    """
    halves, poses = Halves(count, particles.box, radius), _no_poses(len(labels))
    members = np.flatnonzero((labels >= 0) & np.isfinite(angle))
    if len(members):
        passes = _passes(particles, members, labels, count, max_shift, n_iterations, n_jobs, progress)
        each = passes.slots, angle[members], shift[members]
        for sums in map_batches(
            _sum_in_place, passes.source, each=each, batch_size=passes.batch_size, n_jobs=n_jobs
        ):
            halves.add(sums)
        halves.settle(max_shift)
        passes.align(halves.own_references(), halves, poses)
    return _summary(halves, labels, poses, particles.pixel_size)


class _Poses(NamedTuple):
    """Pose of each image, and its score with the average of the other half of its class."""

    angle: Singles
    shift: Singles
    score: Singles


def _no_poses(n: int) -> _Poses:
    angle, shift = np.full(n, np.nan, dtype=np.float32), np.full((n, 2), np.nan, dtype=np.float32)
    return _Poses(angle, shift, np.full(n, -np.inf, dtype=np.float32))


class _Passes(NamedTuple):
    """How to pass over all members, and the passes.

    Attributes
    ----------
    source : Members
    members : ndarray of intp, shape (m,)
        Which images they are.
    slots : ndarray of intp, shape (m,)
        Half of a class that each belongs to.
    batch_size : int
    max_shift : float
    number : int
        Passes in all.
    n_jobs : int or None
    progress : callable or None
    """

    source: Members
    members: Indices
    slots: Indices
    batch_size: int
    max_shift: float
    number: int
    n_jobs: int | None
    progress: Progress | None

    def run(
        self, function: Callable[..., tuple[_Poses, Sums]], bank: References, done: int
    ) -> Iterator[tuple[Indices, _Poses, Sums]]:
        """Yield batch by batch which images it holds, their poses and their sums.

        Parameters
        ----------
        function : callable
            `_align_batch` or `_place_batch`.
        bank : References
        done : int
            How many passes came before.
        """
        whole = len(self.members) * self.number
        results = map_batches(
            function,
            self.source,
            bank,
            self.max_shift,
            each=(self.slots,),
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
            progress=part_of(self.progress, done / self.number, (done + 1) / self.number, whole),
        )
        start = 0
        for poses, sums in results:
            stop = start + len(poses.angle)
            yield self.members[start:stop], poses, sums
            start = stop

    def align(self, bank: References, halves: Halves, poses: _Poses) -> None:
        """Align the members in all rounds, in the first one to these references, and write their poses."""
        for done in range(self.number - 1):
            _align_halves(self, halves.own_references() if done else bank, done, halves, poses)
        _place_all(self, halves, poses)


def _passes(
    particles: Particles,
    members: Indices,
    classes: Indices,
    count: int,
    max_shift: float,
    n_iterations: int,
    n_jobs: int | None,
    progress: Progress | None,
) -> _Passes:
    # Two slots a class, one after the other: the half of each member.
    slots = 2 * classes[members] + _rank(classes[members], count) % 2
    source, batch_size = Members(particles, members), members_a_batch(particles.box)
    return _Passes(source, members, slots, batch_size, max_shift, n_iterations + 1, n_jobs, progress)


def _align_halves(passes: _Passes, bank: References, done: int, halves: Halves, poses: _Poses) -> None:
    """Align every half of every class to its own reference, and write the poses of the members."""
    halves.clear()
    for members, of_members, sums in passes.run(_align_batch, bank, done):
        for column, values in zip(poses, of_members, strict=True):
            column[members] = values
        halves.add(sums)
    halves.settle(passes.max_shift)


def _place_all(passes: _Passes, halves: Halves, poses: _Poses) -> None:
    """Align all members to the common average of both halves, and write their poses; their scores stay."""
    bank = halves.common_references()
    halves.clear()
    for members, of_members, sums in passes.run(_place_batch, bank, passes.number - 1):
        poses.angle[members], poses.shift[members] = of_members.angle, of_members.shift
        halves.add(sums)


def _align_batch(
    levelled: tuple[Images, Polar], start: int, slots: Indices, bank: References, max_shift: float
) -> tuple[_Poses, Sums]:
    images, polar = levelled
    pose = search_poses(polar, bank, slots[:, None], max_shift)
    # A slot without a reference of its own has no other images either.
    score = pose_scores(polar, bank, slots ^ 1, pose.angle, pose.shift)
    score[~polar.usable] = -np.inf
    return _Poses(pose.angle, pose.shift, score), sum_aligned(images, slots, pose.angle, pose.shift)


def _place_batch(
    levelled: tuple[Images, Polar], start: int, slots: Indices, bank: References, max_shift: float
) -> tuple[_Poses, Sums]:
    images, polar = levelled
    pose = search_poses(polar, bank, slots[:, None] // 2, max_shift)
    return _Poses(pose.angle, pose.shift, pose.score), sum_aligned(images, slots, pose.angle, pose.shift)


def _summary(halves: Halves, classes: Indices, poses: _Poses, pixel_size: float) -> ClassAverages:
    averages, frc, size = halves.averages(), halves.frc.astype(np.float32), halves.sizes()
    averaged = np.flatnonzero((classes >= 0) & np.isfinite(poses.score))
    total = np.bincount(classes[averaged], poses.score[averaged].astype(np.float64), len(size))
    spread = np.full(len(size), np.nan, dtype=np.float32)
    paired = size > 1
    spread[paired] = 1 - total[paired] / size[paired]
    resolution = resolution_of(frc, len(halves.disk), pixel_size)
    return ClassAverages(averages, size, spread, resolution, frc, *poses)


def averages_around(
    particles: Particles,
    labels: Indices,
    aligned: ClassAverages,
    radius: float,
    *,
    n_jobs: int | None = None,
) -> ClassAverages:
    """Average the members of each class as they lie, on a disk that is wider than that of their averages.

    Parameters
    ----------
    particles : Particles
    labels : ndarray of intp, shape (n,)
        Class of each image; -1 for none.
    aligned : ClassAverages
        Of C classes, with the alignment of each image.
    radius : float
        Of the wide disk, in pixels.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    around : ClassAverages
        Filtered, and zero outside the disk, about which they are not centred again.

    Notes
    -----
    Images are aligned to what a narrow disk shows. There they may agree on noise, or on the part of a
    particle that the disk cuts. What lies beyond the disk drew no image, and tells.
    """
    count, box = aligned.averages.shape[:2]
    halves, poses = Halves(count, box, radius), _no_poses(len(labels))
    members = np.flatnonzero((labels >= 0) & np.isfinite(aligned.angle))
    if len(members):
        slots = 2 * labels[members] + _rank(labels[members], count) % 2
        source, batch_size = Members(particles, members), members_a_batch(box)
        each = slots, aligned.angle[members], aligned.shift[members]
        for sums in map_batches(_sum_in_place, source, each=each, batch_size=batch_size, n_jobs=n_jobs):
            halves.add(sums)
        halves.leave()
        bank = halves.own_references()
        parts = map_batches(_score_in_place, source, bank, each=each, batch_size=batch_size, n_jobs=n_jobs)
        poses.score[members] = np.concatenate(list(parts))
    around = _summary(halves, labels, poses, particles.pixel_size)
    return around._replace(averages=averages_to_match(around) * halves.disk)


def _sum_in_place(
    levelled: tuple[Images, Polar], start: int, slots: Indices, angle: Singles, shift: Singles
) -> Sums:
    return sum_aligned(levelled[0], slots, angle, shift)


def _score_in_place(
    levelled: tuple[Images, Polar],
    start: int,
    slots: Indices,
    angle: Singles,
    shift: Singles,
    bank: References,
) -> Singles:
    polar = levelled[1]
    score = pose_scores(polar, bank, slots ^ 1, angle, shift)
    score[~polar.usable] = -np.inf
    return score


def averages_to_match(averages: ClassAverages) -> Images:
    """Return the averages (C, d, d) filtered, but with some of the low rings, however noisy they are."""
    return filter_averages(averages.averages, usable_rings(averages.frc.astype(np.float64)))


def _check_labels(labels: npt.ArrayLike, n: int, n_classes: int | None) -> tuple[Indices, int]:
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


def _rank(classes: Indices, count: int) -> Indices:
    """Position of each entry among the entries of its class."""
    order = np.argsort(classes, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(classes, minlength=count))])
    rank = np.empty(len(classes), dtype=np.intp)
    rank[order] = np.arange(len(classes)) - first[classes[order]]
    return rank
