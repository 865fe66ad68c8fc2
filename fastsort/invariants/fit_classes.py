"""Learn class averages: from a few images at low resolution to all images at full resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fastsort._process import one_blas_thread
from fastsort._progress import Progress, part_of
from fastsort._types import Bools, Floats, Images, Indices, Singles
from fastsort.images.batches import map_batches
from fastsort.images.ctf import phase_terms
from fastsort.images.joined import join_batches
from fastsort.invariants.averages import ClassAverages
from fastsort.invariants.bessel import Coefficients, DiskBasis, disk_basis, draw_averages
from fastsort.invariants.expansion import KeptRings, keep_rings
from fastsort.invariants.expectation import (
    Assignments,
    ClassModel,
    ClassSums,
    add_sums,
    as_they_lie,
    expect,
    mixed_sums,
    no_assignments,
    no_sums,
    sum_up,
    write_assignments,
)
from fastsort.invariants.maximization import Averages, maximize, on_rings
from fastsort.invariants.references import soft_disk
from fastsort.invariants.ring_correlation import resolution_of
from fastsort.invariants.rings import rings_of
from fastsort.particles.source import Particles, choose_particles

# The averages are drawn on a disk larger than the particle, and the images are used beyond that as far as
# a particle may be moved, and farther by this part of the box, since the transfer function spreads it.
DISK, SPREAD = 1.05, 0.05
# Smaller disks, in pixels, hold too few functions to show anything.
LEAST_RADIUS = 3.0
# How far from the middle a particle may lie, in parts of the box, and where it is expected at first.
REACH, EXPECTED = 0.08, 0.03
# Particles scatter about the middle by at least so much, in pixels.
NARROWEST = 0.5
# Each stage: finest detail in periods a diameter; images a class in each round; rounds.
STAGES = ((4.0, 20, 12), (5.4, 25, 10), (6.7, 40, 8), (9.4, 60, 5), (13.4, 100, 2))
# Detail of the coarse search, and of what two halves have in common when they part.
COARSE = 6.7
# Images that make the first averages of each class, as they lie.
FIRST = 15
# What a round of some of the images adds to the sums is at least this share of them.
NEW = 0.3
# Up to this stage all classes have the same share: else the first to show a particle would take all images.
EQUAL = 3
# Members that every class is given in addition, in parts of an equal share.
SPARE = 0.02
# A class with fewer members than this, in parts of an equal share, starts again beside the largest one.
LOST = 0.1
# How fast the noise follows what the averages leave.
FOLLOWS = 0.3
# A ring shows something if the images decide this part of the averages there; so many times as many rings
# are used as do.
SHOWN, MORE = 0.1, 1.2
# Rounds of all images with two halves apart.
N_HALVES = 2
# Images on rings stay in memory if they take no more than this.
KEPT_BYTES = 256 << 20
# Images a task, of some images and of all.
BATCH, ALL_BATCH = 64, 256
# Expected power of an average before anything is known of it. The power of noise is at least this part of
# that of the images, or this number: else images without noise would be infinitely likely.
BROAD, LEAST_NOISE, SMALLEST = 1e3, 1e-3, 1e-12


def n_compared(n: int, n_classes: int, stages: tuple[tuple[float, int, int], ...] = STAGES) -> int:
    """Return how many images all rounds of a fit take: some of n in each round of the stages, then all."""
    some = sum(rounds * min(images * n_classes, n) for _, images, rounds in stages)
    return some + (1 + N_HALVES) * n


class FittedClasses(NamedTuple):
    """Classes that were learned, and where each image belongs.

    Attributes
    ----------
    averages : ndarray of float32, shape (K, d, d)
        Corrected for the contrast transfer function, and as far as the images show something; zero outside
        the disk.
    correlation : ndarray of float64, shape (K, d // 2 + 1)
        Of the averages of two halves of the images, which have been apart since they showed no detail.
    assignments : Assignments
    model : ClassModel
        Of both halves, to compare further images with.
    """

    averages: Images
    correlation: Floats
    assignments: Assignments
    model: ClassModel


class _State(NamedTuple):
    """What the rounds hand on."""

    model: ClassModel
    basis: DiskBasis
    averages: Averages
    sums: ClassSums


def fit_classes(
    particles: Particles,
    n_classes: int,
    radius: float,
    *,
    half: Indices | None = None,
    effort: float = 1.0,
    steps: float = 3.0,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> FittedClasses:
    """Learn the averages of `n_classes` classes, and assign every image to one.

    Parameters
    ----------
    particles : Particles
        With flipped phases, if there is a contrast transfer function.
    n_classes : int
    radius : float
        Of the particle, in pixels: at least 3.
    half : ndarray of intp, shape (n,), optional
        Which half each image belongs to, 0 or 1; by default they are drawn at random.
    effort : float
        Rounds of each stage, in parts of the usual number.
    steps : float
        Of the shift in the coarse search, as of a `ClassModel`.
    n_jobs, seed, progress
        As for `classify_images`.

    Returns
    -------
    classes : FittedClasses
    """
    ctf = particles.ctf
    terms = None if ctf is None else phase_terms(ctf, particles.pixel_size)
    stages = tuple((detail, images, max(1, round(effort * rounds))) for detail, images, rounds in STAGES)
    fit = _Fit(particles, terms, n_classes, radius, stages, steps, n_jobs, np.random.default_rng(seed))
    with one_blas_thread():
        return fit.run(half, progress)


def averages_of(fitted: FittedClasses, pixel_size: float) -> ClassAverages:
    """Return averages with their sizes and resolutions, and how each image lies on its own.

    Parameters
    ----------
    fitted : FittedClasses
    pixel_size : float
        Of the averages, in angstroms; it gives the resolutions their unit.

    Returns
    -------
    averages : ClassAverages
    """
    label, _, angle, shift, _, score = fitted.assignments
    count, box = fitted.averages.shape[:2]
    size = np.bincount(label[label >= 0], minlength=count)
    known = np.isfinite(score)
    total = np.bincount(label[known], score[known].astype(np.float64), count)
    spread = np.full(count, np.nan, dtype=np.float32)
    paired = size > 1
    spread[paired] = 1 - total[paired] / np.maximum(np.bincount(label[known], minlength=count)[paired], 1)
    correlation = np.where(paired[:, None], fitted.correlation, 0).astype(np.float32)
    resolution = resolution_of(correlation, box, pixel_size)
    return ClassAverages(fitted.averages, size, spread, resolution, correlation, angle, shift, score)


class _Fit:
    """The rounds, and what they have in common."""

    def __init__(
        self,
        particles: Particles,
        terms: Floats | None,
        n_classes: int,
        radius: float,
        stages: tuple[tuple[float, int, int], ...],
        steps: float,
        n_jobs: int | None,
        rng: np.random.Generator,
    ) -> None:
        self.source: Particles | KeptRings = particles
        # Of the contrast transfer function, as from `phase_terms`.
        self.terms = terms
        self.n_classes = n_classes
        # As in `STAGES`.
        self.stages = stages
        self.steps = steps
        self.n_jobs = n_jobs
        box = particles.box
        self.box = box
        self.n_rings = rings_of(box).n_rings
        self.periods = box / (2 * radius)
        self.disk = min(DISK * radius, box / 2 - 1)
        self.window = min(self.disk + (REACH + SPREAD) * box, box / 2)
        # Every image is used once before any is used again; of these, so many were used so far.
        self.order = rng.permutation(len(particles))
        self.used = 0
        self.first_noise: Floats = np.full(self.n_rings, SMALLEST)

    def rings_for(self, detail: float) -> int:
        """Return how many rings show so many periods a diameter."""
        return min(max(4, round(detail * self.periods)), self.n_rings)

    def next_images(self, count: int) -> Indices:
        """Return the images of the next round, in ascending order."""
        n = len(self.order)
        chosen = self.order[(self.used + np.arange(min(count, n))) % n]
        self.used += count
        return np.sort(chosen)

    def pass_over(
        self,
        function: Callable[..., Any],
        rows: Indices | None,
        model: ClassModel,
        batch_size: int,
        half: Indices | None = None,
    ) -> Iterator[Any]:
        """Yield what a function finds in some images, or in all, batch by batch; `half` is that of each."""
        source = self.source if rows is None else self.chosen(rows)
        terms = self.terms if rows is None or self.terms is None else self.terms[rows]
        return map_batches(
            function, source, model, each=(half, terms), batch_size=batch_size, n_jobs=self.n_jobs
        )

    def chosen(self, rows: Indices) -> Particles | KeptRings:
        """Return some of the images."""
        source = self.source
        return source.chosen(rows) if isinstance(source, KeptRings) else choose_particles(source, rows)

    def keep(self) -> None:
        """Keep the images on rings, if they take little memory: each is needed in several rounds."""
        n, n_angles = len(self.source), rings_of(self.box).n_angles
        if 8 * n * n_angles * self.n_rings <= KEPT_BYTES:
            shape = self.box, self.window, self.n_rings
            each = (self.terms,)
            parts = map_batches(
                _keep, self.source, *shape, each=each, batch_size=ALL_BATCH, n_jobs=self.n_jobs
            )
            self.source, self.terms = KeptRings(*join_batches(parts, n)), None

    def run(self, half: Indices | None, progress: Progress | None) -> FittedClasses:
        """Go through all stages; `half` is as for `fit_classes`."""
        n, done = len(self.order), 0
        in_all = n_compared(n, self.n_classes, self.stages)
        self.keep()
        state = self.start()
        for number, (detail, images, rounds) in enumerate(self.stages):
            for _ in range(rounds):
                rows = self.next_images(images * self.n_classes)
                state = self.round(state, self.rings_for(detail), rows, equal=number < EQUAL)
                done += len(rows)
                if progress:
                    progress(done, in_all)
        # All images, on as many rings as show something.
        n_rings = 0
        while n_rings < self.useful_rings(state):
            n_rings = self.useful_rings(state)
            state = self.round(state, n_rings, None, equal=False)
        if progress:
            progress(done + n, in_all)
        if half is None:
            # In random order, so that the halves have nothing to do with how the images were taken.
            half = np.empty(n, dtype=np.intp)
            half[self.order] = np.arange(n) % 2
        return self.apart(state, half, part_of(progress, (done + n) / in_all, 1, in_all))

    def useful_rings(self, state: _State) -> int:
        """Return how many rings to use: some more than show anything, and no fewer than now."""
        known = np.flatnonzero(state.averages.known > SHOWN)
        last = int(known[-1]) + 1 if len(known) else 0
        return min(max(math.ceil(MORE * last) + 2, state.basis.n_rings), self.n_rings)

    def start(self) -> _State:
        """Average a few images for each class as they lie."""
        everywhere = self.basis(self.n_rings)
        shape = (1, len(everywhere.root), self.n_rings, self.n_classes)
        model = ClassModel(
            self.box,
            np.zeros(shape, dtype=np.complex64),
            np.full(self.n_classes, 1 / self.n_classes),
            np.ones(self.n_rings),
            EXPECTED * self.box,
            REACH * self.box,
            self.window,
            self.rings_for(COARSE),
            self.steps,
        )
        sums = no_sums(shape)
        for label in range(self.n_classes):
            rows = self.next_images(FIRST)
            terms = None if self.terms is None else self.terms[rows]
            images = self.chosen(rows).read(0, len(rows))
            sums = add_sums(sums, as_they_lie(images, terms, model, label))
        self.first_noise = self.noise_of(sums)
        basis = self.basis(self.rings_for(self.stages[0][0]))
        n_indices, n_rings = len(basis.root), basis.n_rings
        sums = sums._replace(
            products=sums.products[:, :n_indices, :n_rings],
            weights=sums.weights[:, :n_rings],
            residue=sums.residue[:n_rings],
        )
        model = model._replace(
            references=model.references[:, :n_indices, :n_rings], noise=self.first_noise[:n_rings]
        )
        return self.improved(
            _State(model, basis, Averages((), np.full(n_rings, BROAD), np.zeros(n_rings)), sums)
        )

    def basis(self, n_rings: int) -> DiskBasis:
        """Return the functions that averages on so many rings are made of."""
        # The samples on half a ring tell no higher index.
        return disk_basis(self.box, self.disk, n_rings, rings_of(self.box).n_angles)

    def noise_of(self, sums: ClassSums) -> Floats:
        """Power on each ring that the averages leave, as of images without the window."""
        inside = float((soft_disk(self.box, self.window) ** 2).mean())
        found = sums.residue / max(sums.n_images, 1) / inside
        return np.maximum(found, LEAST_NOISE * self.first_noise[: len(found)])

    def round(self, state: _State, n_rings: int, rows: Indices | None, *, equal: bool) -> _State:
        """Assign some images, or all, and make the averages again."""
        state = self.with_rings(state, n_rings)
        new = self.sums_of(rows, state.model)
        count = len(self.order) if rows is None else len(rows)
        share = 1.0 if rows is None else max(count / len(self.order), NEW)
        scale = len(self.order) / count
        sums = mixed_sums(state.sums, new, share, scale)
        if rows is not None:
            revive(sums, new, scale, LOST * len(self.order) / self.n_classes)
        noise = (1 - FOLLOWS) * state.model.noise + FOLLOWS * self.noise_of(new)
        spare = sums.counts[0] + SPARE * len(self.order) / self.n_classes
        shares = np.full(self.n_classes, 1 / self.n_classes) if equal else spare / spare.sum()
        deviation = max(math.sqrt(new.square_shift / max(2 * new.n_images, 1)), NARROWEST)
        model = state.model._replace(noise=noise, shares=shares, deviation=deviation)
        return self.improved(state._replace(model=model, sums=sums))

    def with_rings(self, state: _State, n_rings: int) -> _State:
        """Take in further rings, of which nothing is known yet."""
        before = len(state.model.noise)
        if n_rings == before:
            return state
        basis = self.basis(n_rings)
        more = n_rings - before
        n_indices = len(basis.root)
        references = np.zeros((1, n_indices, n_rings, self.n_classes), dtype=np.complex64)
        references[:, : state.model.references.shape[1], :before] = state.model.references
        noise = np.concatenate([state.model.noise, self.first_noise[before:n_rings]])
        model = state.model._replace(references=references, noise=noise)
        power = np.pad(state.averages.power, (0, more), mode="edge")
        return state._replace(model=model, basis=basis, averages=Averages((), power, np.zeros(n_rings)))

    def sums_of(self, rows: Indices | None, model: ClassModel) -> ClassSums:
        """Return the sums of some images, or of all."""
        sums = no_sums(model.references.shape)
        for part in self.pass_over(_sum_up, rows, model, ALL_BATCH if rows is None else BATCH):
            sums = add_sums(sums, part)
        return sums

    def improved(self, state: _State) -> _State:
        """Make the averages of the sums, and what the next round compares images with."""
        noise, power = state.model.noise, state.averages.power
        averages = maximize(state.sums, None, noise, power, state.basis)
        references = on_rings(averages.coefficients, state.basis)[None]
        return state._replace(model=state.model._replace(references=references), averages=averages)

    def apart(self, state: _State, half_of: Indices, progress: Progress | None) -> FittedClasses:
        """Let two halves of the images part while they show no detail, and follow each alone."""
        one = state.model.references[0].copy()
        one[:, state.model.coarse :] = 0
        model = state.model._replace(references=np.stack([one, one]))
        powers = [state.averages.power] * 2
        found = no_assignments(len(self.order))
        for number in range(N_HALVES):
            sums, start = no_sums(model.references.shape), 0
            # Where the images belong is asked in the last round alone.
            last = number == N_HALVES - 1
            function = _expect if last else _sum_up
            for result in self.pass_over(function, self.order, model, ALL_BATCH, half_of[self.order]):
                stop = min(start + ALL_BATCH, len(self.order))
                part, assigned = result if last else (result, None)
                if assigned is not None:
                    write_assignments(found, self.order[start:stop], assigned)
                sums = add_sums(sums, part)
                start = stop
                if progress:
                    progress(number * len(self.order) + stop, N_HALVES * len(self.order))
            noise = (1 - FOLLOWS) * model.noise + FOLLOWS * self.noise_of(sums)
            halves = [maximize(sums, half, noise, powers[half], state.basis) for half in (0, 1)]
            powers = [half.power for half in halves]
            references = np.stack([on_rings(half.coefficients, state.basis) for half in halves])
            spare = sums.counts.sum(axis=0) + SPARE * len(self.order) / self.n_classes
            model = model._replace(references=references, noise=noise, shares=spare / spare.sum())
        both = maximize(sums, None, model.noise, state.averages.power, state.basis)
        correlation = np.zeros((self.n_classes, self.box // 2 + 1))
        correlation[:, 0] = 1
        # Where the images decide nothing, what is left of the averages agrees by chance.
        known = np.minimum(halves[0].known, halves[1].known) > SHOWN
        agreement = shell_correlation(halves[0].coefficients, halves[1].coefficients, state.basis)
        correlation[:, 1 : state.basis.n_rings + 1] = np.where(known, agreement, 0)
        averages = draw_averages(both.coefficients, state.basis)
        return FittedClasses(averages, correlation, found, model)


def revive(sums: ClassSums, new: ClassSums, scale: float, fewest: float) -> None:
    """Divide the largest class where one has fewer members than `fewest`, in place.

    One of the two keeps the sums, and the other gets those of the last round alone, times `scale`: they
    differ by noise, and what differs among the members decides which of them they join.
    """
    counts = sums.counts[0]
    for lost in np.flatnonzero(counts < fewest):
        largest = int(counts.argmax())
        for field, other in zip(sums[:3], new[:3], strict=True):
            field[0, ..., largest] *= 0.5
            field[0, ..., lost] = 0.5 * scale * other[0, ..., largest]


def shell_correlation(one: Coefficients, other: Coefficients, basis: DiskBasis) -> Floats:
    """Correlate averages by the frequency of their functions: (K, R); 0 where one shows nothing.

    Functions on a disk reach over all rings, so that on rings the strong low frequencies would hide the
    weak high ones.
    """
    sums = np.zeros((3, len(one[0]), basis.n_rings))
    for m, shell in enumerate(basis.shell):
        a, b = one[m], other[m]
        weight = 1 if m == 0 else 2
        for total, values in zip(sums, ((a.conj() * b).real, np.abs(a) ** 2, np.abs(b) ** 2), strict=True):
            np.add.at(total.T, shell, weight * values.T)
    # The lowest frequencies have only a few functions each, so that neighbours are taken together.
    wide = np.pad(sums, ((0, 0), (0, 0), (1, 1)), mode="edge")
    product, one_square, other_square = wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]
    norm = np.sqrt(one_square * other_square)
    return np.divide(product, norm, out=np.zeros_like(norm), where=norm > 0)


def _keep(
    images: Images, start: int, terms: Floats | None, box: int, window: float, n_rings: int
) -> tuple[Singles, Singles, Floats, Bools]:
    return keep_rings(images, terms, box, window, n_rings)


def _expect(
    images: Images | KeptRings, start: int, half: Indices | None, terms: Floats | None, model: ClassModel
) -> tuple[ClassSums, Assignments]:
    return expect(images, half, terms, model)


def _sum_up(
    images: Images | KeptRings, start: int, half: Indices | None, terms: Floats | None, model: ClassModel
) -> ClassSums:
    return sum_up(images, half, terms, model)
