"""Divide images into classes: on the map of their features first, then by alignment to class averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count, check_radius
from fastsort._progress import Progress, part_of
from fastsort._types import Array, Bools, Floats, Images, Indices, Singles
from fastsort.invariants.align import NEAREST, match_to_references
from fastsort.invariants.averages import ClassAverages, averages_to_match, class_averages
from fastsort.invariants.features import invariant_features
from fastsort.invariants.groups import group_classes
from fastsort.invariants.map import EMBEDDINGS, ParticleMap, map_features
from fastsort.invariants.ranking import RADIUS, ClassRanking, rank_classes
from fastsort.invariants.ring_correlation import weigh_rings
from fastsort.invariants.ring_statistics import ring_statistics
from fastsort.particles.source import Particles, as_particles

# How far from the middle of the box the alignment looks for a particle, in parts of the box: farther out,
# half of a particle that fills two thirds of the box would be outside.
REACH = 0.375
# If the number of classes is not given, there are at least so many, as long as each has enough members:
# images in a class must be alike to be aligned.
FEWEST_CLASSES, IMAGES_A_CLASS = 10, 100
# Rounds of alignment for averages that start from nothing or are returned, and for those in between.
N_ROUNDS, N_BETWEEN = 2, 1
# Above this expected share of mistakes, displaced images cannot be told from the others.
CONFUSED = 0.12
# Features of one image are noisy: they must leave at least so many classes to choose from.
FEWEST_CANDIDATES = 10
# Frequencies with less noise than this, in parts of the largest, count as having this much.
LEAST_NOISE = 1e-3
# Particles scatter about the middle by at least so much, in pixels.
NARROWEST = 0.25
# Steps that the progress counts, and where in the whole work its longest parts begin and end.
N_STEPS = 1000
PARTS = {
    "features": (0.0, 0.1),
    "first averages": (0.2, 0.35),
    "match 1": (0.35, 0.55),
    "averages 1": (0.55, 0.65),
    "match 2": (0.65, 0.85),
    "averages 2": (0.85, 0.95),
    "displaced": (0.95, 1.0),
}
# Columns of `ClassAverages` that have one entry a class; the others have one an image.
OF_CLASSES = ("averages", "size", "spread", "resolution", "frc")

Stage = Callable[[str, Callable[[], Any]], Any]


@brief
class Classification(NamedTuple):
    """Classes of images, the best first.

    Attributes
    ----------
    label : ndarray of intp, shape (n,)
        Class of each image; -1 for images that are flat or hold a NaN or an infinity.
    displaced : ndarray of float64, shape (n,)
        Probability that no particle lies in the middle of the image; 1 for images without a class.
    map : ParticleMap
        Where each image lies among the others. Its labels are the classes that the search started from.
    averages : ClassAverages
    ranking : ClassRanking
    group : ndarray of intp, shape (C,)
        Kind of particle that each class shows, from 0 for the most frequent; -1 for junk.
    """

    label: Indices
    displaced: Floats
    map: ParticleMap
    averages: ClassAverages
    ranking: ClassRanking
    group: Indices


def classify_images(
    images: Array | Particles,
    n_classes: int | None = None,
    *,
    radius: float | None = None,
    n_groups: int = 1,
    max_order: int = 20,
    embedding: str = "auto",
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Classification:
    """Divide images into classes, average, rank and group them.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        Phase-flipped, if there is a contrast transfer function.
    n_classes : int, optional
        Number of classes. There may be one more, and fewer if some turn out empty; 1 does not divide the
        images. By default the number with the best Bayesian information criterion on the features, but at
        least one class for every 100 images, up to 10 classes.
    radius : float, optional
        Radius of the particle in pixels; by default 0.4 of the box.
    n_groups : int
        Number of kinds of particle into which to sort the classes that are no junk.
    max_order : int
        Highest order of the Zernike features.
    embedding : {"auto", "umap", "pca"}
        As for `map_features`.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
        Random seed of the map.
    progress : callable, optional
        Called as ``progress(steps_done, steps_in_all)``.

    Returns
    -------
    classes : Classification

    Raises
    ------
    InputError
        If the images cannot be used, there are fewer images than classes, or a parameter is out of range.

    Notes
    -----
    A mixture of Gaussians on features that neither a turn nor a shift changes [1]_ gives the first
    classes, and `class_averages` their averages. Then, twice, every image is aligned to the ten averages
    whose members have the nearest features, or to a fifth of all averages if that is more [2]_. The
    alignment looks for the particle nearly anywhere in the box and weights frequencies against the noise,
    as a matched filter does. Each image joins the class whose average it fits best, and the averages are
    made again.

    Particles lie about the middle of the box, normally distributed on each axis; what alignment finds in
    noise, in ice or along the edge of a carbon film lies anywhere. Expectation maximisation fits the width
    of the first and the shares of the two. Images that are more likely of the second kind are displaced.
    As long as the two kinds can be told apart, displaced images leave their classes and are divided by
    their features into classes of their own: as many as their share of the images, but at most half of the
    classes, and at least one.

    References
    ----------
    .. [1] Da, Yeo, Yang, Loh, "CryoEM 2D classification with translational and rotational invariant
       features".
    .. [2] Gu, "Machine Learning Problems in Cryo-EM" (2018).

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(60, 0, box=32, snr=2, seed=1)
    >>> classes = fs.invariants.classify_images(images, 2, embedding="pca")
    >>> classes.label.shape, len(classes.averages.size) in (1, 2, 3)
    ((60,), True)
    >>> bool((~classes.ranking.junk[classes.label]).mean() > 0.9)
    True
    """
    return find_classes(
        as_particles(images),
        n_classes,
        radius=radius,
        n_groups=n_groups,
        max_order=max_order,
        embedding=embedding,
        n_jobs=n_jobs,
        seed=seed,
        progress=progress,
    )


def _at_once(name: str, compute: Callable[[], Any]) -> Any:
    """Run a stage without keeping what it computes."""
    return compute()


def find_classes(
    particles: Particles,
    n_classes: int | None,
    *,
    stage: Stage = _at_once,
    radius: float | None = None,
    n_groups: int = 1,
    max_order: int = 20,
    embedding: str = "auto",
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Classification:
    """Do what `classify_images` does, in stages that may be kept and resumed.

    Parameters
    ----------
    particles : Particles
    n_classes, radius, n_groups, max_order, embedding, n_jobs, seed, progress
        As for `classify_images`.
    stage : callable
        Called as ``stage(name, compute)``. It returns what ``compute()`` returns, now or in an earlier run
        with the same images and options (see `WorkFolder.stage`).

    Returns
    -------
    classes : Classification
    """
    if n_classes is not None:
        check_count("n_classes", n_classes)
    check_count("n_groups", n_groups)
    check_choice("embedding", embedding, EMBEDDINGS)
    seed = check_count("seed", seed, 0)
    radius = RADIUS * particles.box if radius is None else check_radius(radius, particles.box)
    if progress:
        progress(0, N_STEPS)

    def measure() -> tuple[Floats, Singles]:
        noise = ring_statistics(particles, n_jobs=n_jobs).noise
        counted = _part_of(progress, "features")
        return noise, invariant_features(
            particles, max_order, noise_floor=noise, n_jobs=n_jobs, progress=counted
        )

    def divide() -> ParticleMap:
        fewest = min(max(len(particles) // IMAGES_A_CLASS, 1), FEWEST_CLASSES)
        return map_features(features, n_classes, fewest=fewest, embedding=embedding, seed=seed)

    noise, features = stage("features", measure)
    places = stage("map", divide)
    search = _Search(particles, features, noise, radius, n_classes != 1, n_jobs, seed, progress)
    averages = stage("first_averages", lambda: search.first_averages(places.label))
    if not averages.size.any():
        raise InputError(f"no classes: all {len(particles)} images are flat, or have NaN or infinity.")
    # Kept as plain tuples: files know no types of a single module.
    first = _Classes(*stage("round_1", lambda: tuple(search.first_round(places.label, averages))))
    second = _Classes(*stage("round_2", lambda: tuple(search.second_round(first))))
    last = _Classes(*stage("displaced", lambda: tuple(search.displaced_apart(second))))
    label, displaced, averages = last.label, last.displaced, last.averages
    if progress:
        progress(N_STEPS, N_STEPS)
    ranking = rank_classes(averages, label, places.coordinates, displaced, radius=radius)
    # The best first, and none that is empty.
    order = np.argsort(ranking.score, kind="stable")[: int((averages.size > 0).sum())]
    label = _renumbered(label, order, len(averages.size))
    ranking = _chosen(ranking, order, ranking._fields)
    averages = _chosen(averages, order, OF_CLASSES)
    group = group_classes(features, label, n_groups, ~ranking.junk)
    return Classification(label, displaced, places, averages, ranking, group)


def _part_of(progress: Progress | None, name: str) -> Progress | None:
    return part_of(progress, *PARTS[name], N_STEPS)


class _Classes(NamedTuple):
    """Classes of all images after a round of alignment.

    Attributes
    ----------
    label : ndarray of intp, shape (n,)
        Class of each image; -1 for none.
    displaced : ndarray of float64, shape (n,)
        Probability that no particle lies in the middle.
    away : ndarray of bool, shape (n,)
        Images that left their classes because they are displaced.
    averages : ClassAverages
    n_displaced : int
        How many classes those images shall be divided into.
    """

    label: Indices
    displaced: Floats
    away: Bools
    averages: ClassAverages
    n_displaced: int


class _Search(NamedTuple):
    """The rounds of alignment, and what they need to know."""

    particles: Particles
    features: Singles
    noise: Floats
    radius: float
    divides: bool
    n_jobs: int | None
    seed: int
    progress: Progress | None

    def first_averages(self, label: Indices) -> ClassAverages:
        """Average the classes of the map."""
        return self._averages(label, "first averages", n_iterations=N_ROUNDS)

    def first_round(self, label: Indices, averages: ClassAverages) -> _Classes:
        """Move images to the classes that they fit best, and drop small classes for the displaced images."""
        references = averages_to_match(averages)
        label, displaced, away = self._matched(label, references, "match 1")
        # No class of particles makes room for a handful of others.
        n_displaced = round(min(float(away.mean()), 0.5) * len(references))
        kept = _largest(label, len(references), len(references) - n_displaced)
        label, references = _renumbered(label, kept, len(references)), references[kept]
        averages = self._averages_from(label, references, "averages 1", N_BETWEEN)
        return _Classes(label, displaced, away, averages, n_displaced)

    def second_round(self, classes: _Classes) -> _Classes:
        """Move images to the classes that they fit best once more."""
        references = averages_to_match(classes.averages)
        label, displaced, away = self._matched(classes.label, references, "match 2")
        averages = self._averages_from(label, references, "averages 2", N_ROUNDS)
        return _Classes(label, displaced, away, averages, classes.n_displaced)

    def displaced_apart(self, classes: _Classes) -> _Classes:
        """Divide the displaced images into further classes by their features."""
        away = classes.away
        if not away.any():
            return classes
        number = min(max(classes.n_displaced, 1), int(away.sum()))
        apart = np.full(len(away), -1, dtype=np.intp)
        apart[away] = map_features(self.features[away], number, embedding="pca", seed=self.seed).label
        reach = REACH * self.particles.box
        others = self._averages(apart, "displaced", max_shift=reach, n_iterations=N_ROUNDS)
        label = np.where(away, len(classes.averages.size) + apart, classes.label)
        return classes._replace(label=label, averages=_joined(classes.averages, others))

    def _matched(self, label: Indices, references: Images, part: str) -> tuple[Indices, Floats, Bools]:
        """Best class of each image, probability that it is displaced, and whether it leaves for that."""
        nearest = max(FEWEST_CANDIDATES, math.ceil(NEAREST * len(references)))
        reach = REACH * self.particles.box
        match = match_to_references(
            self.particles,
            _against_noise(references, self.noise),
            features=self.features,
            reference_features=_class_means(self.features, label, len(references)),
            n_candidates=min(nearest, len(references)),
            max_shift=reach,
            n_jobs=self.n_jobs,
            progress=_part_of(self.progress, part),
        )
        displaced, away = _displaced(match.shift, reach)
        away &= self.divides
        return np.where(away, -1, match.reference), displaced, away

    def _averages_from(
        self, label: Indices, references: Images, part: str, n_iterations: int
    ) -> ClassAverages:
        return self._averages(
            label, part, n_classes=len(references), references=references, n_iterations=n_iterations
        )

    def _averages(self, label: Indices, part: str, **options: Any) -> ClassAverages:
        return class_averages(
            self.particles,
            label,
            radius=self.radius,
            n_jobs=self.n_jobs,
            progress=_part_of(self.progress, part),
            **options,
        )


def _class_means(features: Singles, label: Indices, count: int) -> Floats:
    """Mean features of the members of each class; NaN for an empty one."""
    means = np.full((count, features.shape[1]), np.nan)
    for k in range(count):
        if (label == k).any():
            means[k] = features[label == k].mean(axis=0, dtype=np.float64)
    return means


def _against_noise(references: Images, noise: Floats) -> Images:
    """Weight the rings of references so that noise disturbs their correlation with images least."""
    floor = max(LEAST_NOISE * float(noise[1:].max()), 1e-30)
    weight = floor / np.maximum(noise, floor)
    return weigh_rings(references, np.broadcast_to(weight, (len(references), len(weight))))


def _displaced(shift: Singles, reach: float) -> tuple[Floats, Bools]:
    """Probability that the alignment found no particle, and which images shall leave their classes."""
    square = (shift.astype(np.float64) ** 2).sum(axis=1)
    known = np.isfinite(square)
    displaced, away = np.ones(len(shift)), np.zeros(len(shift), dtype=bool)
    if not known.any():
        return displaced, away
    square = square[known]
    variance, share = max(float(np.median(square)) / 4, NARROWEST**2), 0.5
    for _ in range(200):
        near = (1 - share) * np.exp(-square / (2 * variance)) / (2 * np.pi * variance)
        chance = share / (np.pi * reach**2) / (near + share / (np.pi * reach**2))
        share = float(np.clip(chance.mean(), 1e-3, 1 - 1e-3))
        weight = 1 - chance
        variance = max(float(weight @ square) / (2 * float(weight.sum()) + 1e-9), NARROWEST**2)
    displaced[known] = chance
    far = chance > 0.5
    if far.any() and not far.all() and np.minimum(chance, 1 - chance).mean() < CONFUSED:
        away[known] = far
    return displaced, away


def _largest(label: Indices, count: int, n_kept: int) -> Indices:
    """Return the classes with the most members, in ascending order."""
    size = np.bincount(label[label >= 0], minlength=count)
    return np.sort(np.argsort(-size, kind="stable")[:n_kept])


def _renumbered(label: Indices, kept: Indices, count: int) -> Indices:
    """Number classes by their place in `kept`; members of other classes get -1."""
    # One more entry at the end, for the label -1.
    number = np.full(count + 1, -1, dtype=np.intp)
    number[kept] = np.arange(len(kept))
    return number[label]


def _chosen(table: Any, order: Indices, names: Sequence[str]) -> Any:
    return table._replace(**{name: getattr(table, name)[order] for name in names})


def _joined(averages: ClassAverages, others: ClassAverages) -> ClassAverages:
    """Averages of the classes of some images and, after them, those of other images."""
    known = np.isfinite(others.angle)
    columns = {}
    for name, one in averages._asdict().items():
        other = getattr(others, name)
        if name in OF_CLASSES:
            columns[name] = np.concatenate([one, other])
        else:
            columns[name] = np.where(known.reshape(-1, *[1] * (one.ndim - 1)), other, one)
    return ClassAverages(**columns)
