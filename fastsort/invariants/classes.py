"""Classes of images: found on the map, sharpened by alignment, ranked without labels, and grouped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count, check_radius
from fastsort.invariants.align import NEAREST, Images, Indices, match_to_references
from fastsort.invariants.averages import (
    ClassAverages,
    Floats,
    averages_to_match,
    class_averages,
    resolved_rings,
    weigh_rings,
)
from fastsort.invariants.features import invariant_features, ring_statistics
from fastsort.invariants.map import EMBEDDINGS, ParticleMap, map_features
from fastsort.particles.source import open_particles

if TYPE_CHECKING:
    from fastsort.particles.source import Particles

Array = npt.NDArray[np.float64]

# The particle's radius where nothing is said of it, in parts of the box.
RADIUS = 0.4
# How far from the middle a particle is looked for, in parts of the box: where it fills two thirds of the
# box, half of it is outside from there on.
REACH = 0.375
# Where the number of classes is not given there are so many at least, as long as they have members
# enough: images in a class must be alike to be aligned.
FEWEST_CLASSES, IMAGES_A_CLASS = 10, 100
# Rounds of alignment for averages that are looked at or start from nothing, and for those in between.
N_ROUNDS, N_BETWEEN = 2, 1
# Above this expected share of mistakes, displaced images cannot be told from the others.
CONFUSED = 0.12
# Features of one image are noisy: among so many classes they leave out none.
FEWEST_CANDIDATES = 10
# Frequencies with less noise than this, in parts of the largest, count as having so much.
LEAST_NOISE = 1e-3
# The narrowest that particles are taken to lie about the middle, in pixels.
NARROWEST = 0.25
# How much worse than usual a class may be in any one respect, in octaves.
USUAL = 0.5
# Steps into which the progress of the stages is divided.
N_STEPS = 1000
# Columns of `ClassAverages` that have one entry a class; the others have one an image.
OF_CLASSES = ("averages", "size", "spread", "resolution", "frc")
# Outside the particle begins here, in parts of its radius.
OUTSIDE = 1.15


@brief
class ClassRanking(NamedTuple):
    """What speaks for and against each class; one entry a class.

    Attributes
    ----------
    score : ndarray of float64, shape (C,)
        Larger for junk; above 1 a class counts as junk. Infinite for an empty class.
    junk : ndarray of bool, shape (C,)
    displaced : ndarray of float64, shape (C,)
        Mean probability of the members that they have no particle in the middle.
    contrast : ndarray of float64, shape (C,)
        Power of the average inside the particle's disk minus that outside, over the larger of the two,
        what noise leaves in an average of so many members taken off: from -1 to 1.
    sharpness : ndarray of float64, shape (C,)
        Resolution that so many members of the typical class would reach, over the resolution: 1 for a
        class that is as sharp as others of its size, 0 for one that has no resolution.
    likeness : ndarray of float64, shape (C,)
        Mean correlation of the members with the average of the other half of the class.
    compactness : ndarray of float64, shape (C,)
        Median distance on the map of all images from their median place, over that of the members from
        theirs.
    """

    score: Array
    junk: npt.NDArray[np.bool_]
    displaced: Array
    contrast: Array
    sharpness: Array
    likeness: Array
    compactness: Array


@brief
class Classification(NamedTuple):
    """Classes of images, the best first.

    Attributes
    ----------
    label : ndarray of intp, shape (n,)
        Class of each image; -1 for images that are flat, or have a NaN or an infinity.
    displaced : ndarray of float64, shape (n,)
        Probability that no particle lies in the middle; 1 for images without a class.
    map : ParticleMap
        Places by features. Its classes are those with which the search began.
    averages : ClassAverages
    ranking : ClassRanking
    group : ndarray of intp, shape (C,)
        Kind of particle that each class shows, the most frequent first; -1 for junk.
    """

    label: Indices
    displaced: Array
    map: ParticleMap
    averages: ClassAverages
    ranking: ClassRanking
    group: Indices


def classify_images(
    images: npt.NDArray[Any] | Particles,
    n_classes: int | None = None,
    *,
    radius: float | None = None,
    n_groups: int = 1,
    max_order: int = 20,
    embedding: str = "auto",
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Classification:
    """Divide images into classes, average, rank and group them.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        Phase-flipped, if there is a contrast transfer function.
    n_classes : int, optional
        In all, give or take one; some may turn out empty and are left out. 1 does not divide the images.
        By default what the Bayesian information criterion says of the features, but at least one for
        100 images, up to 10.
    radius : float, optional
        Of the particle, in pixels; by default 0.4 of the box.
    n_groups : int
        Into how many kinds of particle the classes that are no junk are sorted.
    max_order : int
        Of the Zernike features.
    embedding : {"auto", "umap", "pca"}
        As for `map_features`.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
    progress : callable, optional
        Called as ``progress(steps_done, steps_in_all)``.

    Returns
    -------
    classes : Classification

    Raises
    ------
    InputError
        If the images cannot be used, there are fewer than classes, or a parameter is out of range.

    Notes
    -----
    A mixture among features that neither a turn nor a shift changes [1]_ makes the first classes, and
    `class_averages` their averages. Then, twice, every image is aligned to the ten averages whose members
    have the nearest features, or to a fifth of all where that is more [2]_, wherever in the image the
    particle is. It goes to the one that it looks most like, and the averages are made again. Frequencies
    are weighted against the noise, as in a matched filter.

    Particles lie about the middle, normally distributed on each axis; what is found in noise, in ice or
    along the edge of a carbon film lies anywhere. Width and share of the two are fitted by expectation
    maximisation. Images that are more likely of the second kind are displaced: as long as the two can
    be told apart, they leave their classes and make others by their features: in proportion to the
    images, but no more than half of the classes, and one more where they are few.

    References
    ----------
    .. [1] Da, Yeo, Yang, Loh, "CryoEM 2D classification with translational and rotational invariant
       features".
    .. [2] Gu, "Machine Learning Problems in Cryo-EM" (2018).
    """
    particles = open_particles(images)
    if n_classes is not None:
        check_count("n_classes", n_classes)
    check_count("n_groups", n_groups)
    check_choice("embedding", embedding, EMBEDDINGS)
    seed = check_count("seed", seed, 0)
    radius = RADIUS * particles.box if radius is None else check_radius(radius, particles.box)
    stages = _Stages(progress)
    noise = ring_statistics(particles, n_jobs=n_jobs).noise
    features = invariant_features(
        particles, max_order, noise_floor=noise, n_jobs=n_jobs, progress=stages.next(0.1)
    )
    fewest = min(max(len(particles) // IMAGES_A_CLASS, 1), FEWEST_CLASSES)
    places = map_features(features, n_classes, fewest=fewest, embedding=embedding, seed=seed)
    stages.next(0.1)
    averages = class_averages(
        particles,
        places.label,
        n_iterations=N_ROUNDS,
        radius=radius,
        n_jobs=n_jobs,
        progress=stages.next(0.15),
    )
    if not averages.size.any():
        raise InputError(f"no classes: all {len(particles)} images are flat, or have NaN or infinity.")
    search = _Search(particles, features, noise, radius, n_classes != 1, n_jobs, seed)
    label, displaced, averages = search.sharpened(places.label, averages, stages)
    ranking = rank_classes(averages, label, places.coordinates, displaced, radius=radius)
    # The best first, and none that is empty.
    order = np.argsort(ranking.score, kind="stable")[: int((averages.size > 0).sum())]
    label = _renumbered(label, order, len(averages.size))
    ranking = _chosen(ranking, order, ranking._fields)
    averages = _chosen(averages, order, OF_CLASSES)
    group = group_classes(features, label, n_groups, ~ranking.junk)
    return Classification(label, displaced, places, averages, ranking, group)


class _Stages:
    """Progress of stages of which each is a given share of the work."""

    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self._progress = progress
        self._part = 0.0

    def next(self, share: float) -> Callable[[int, int], None]:
        """End one stage and begin another: return what is to be called with its steps."""
        part, self._part = self._part, self._part + share

        def advance(done: int, total: int) -> None:
            if self._progress:
                self._progress(round(N_STEPS * (part + share * done / total)), N_STEPS)

        advance(0, 1)
        return advance


class _Search(NamedTuple):
    """What the rounds of alignment need to know."""

    particles: Particles
    features: Floats
    noise: Array
    radius: float
    divides: bool
    n_jobs: int | None
    seed: int

    def sharpened(
        self, label: Indices, averages: ClassAverages, stages: _Stages
    ) -> tuple[Indices, Array, ClassAverages]:
        """Let images go where they fit best, twice: labels, probability to be displaced, averages."""
        n_displaced = 0
        for first in (True, False):
            references = averages_to_match(averages)
            shift, label = self.matched(label, references, stages.next(0.2))
            displaced, away = _displaced(shift, REACH * self.particles.box)
            away &= self.divides
            label[away] = -1
            if first:
                # No class of particles makes room for a handful of others.
                n_displaced = round(min(float(away.mean()), 0.5) * len(references))
                kept = _largest(label, len(references), len(references) - n_displaced)
                label, references = _renumbered(label, kept, len(references)), references[kept]
            averages = class_averages(
                self.particles,
                label,
                n_classes=len(references),
                references=references,
                n_iterations=N_BETWEEN if first else N_ROUNDS,
                radius=self.radius,
                n_jobs=self.n_jobs,
                progress=stages.next(0.1),
            )
        others = stages.next(0.05)
        if away.any():
            apart = self.divided(away, max(n_displaced, 1))
            label[away] = len(averages.size) + apart[away]
            averages = _joined(averages, self.averaged_apart(apart, others))
        others(1, 1)
        return label, displaced, averages

    def matched(
        self, label: Indices, references: Images, progress: Callable[[int, int], None]
    ) -> tuple[Floats, Indices]:
        """Shift of each image onto the reference that it is most like, and which one that is."""
        nearest = max(FEWEST_CANDIDATES, math.ceil(NEAREST * len(references)))
        match = match_to_references(
            self.particles,
            _against_noise(references, self.noise),
            features=self.features,
            reference_features=_class_means(self.features, label, len(references)),
            n_candidates=min(nearest, len(references)),
            max_shift=REACH * self.particles.box,
            n_jobs=self.n_jobs,
            progress=progress,
        )
        return match.shift, match.reference

    def divided(self, away: npt.NDArray[np.bool_], number: int) -> Indices:
        """Divide displaced images by their features; -1 for the others."""
        apart = np.full(len(away), -1, dtype=np.intp)
        number = min(number, int(away.sum()))
        apart[away] = map_features(self.features[away], number, embedding="pca", seed=self.seed).label
        return apart

    def averaged_apart(self, apart: Indices, progress: Callable[[int, int], None]) -> ClassAverages:
        return class_averages(
            self.particles,
            apart,
            max_shift=REACH * self.particles.box,
            n_iterations=N_ROUNDS,
            radius=self.radius,
            n_jobs=self.n_jobs,
            progress=progress,
        )


def _class_means(features: Floats, label: Indices, count: int) -> Array:
    """Mean features of the members of each class; NaN for an empty one."""
    means = np.full((count, features.shape[1]), np.nan)
    for k in range(count):
        if (label == k).any():
            means[k] = features[label == k].mean(axis=0, dtype=np.float64)
    return means


def _against_noise(references: Images, noise: Array) -> Images:
    """Weigh references so that their correlation with images is the one that noise disturbs least."""
    floor = max(LEAST_NOISE * float(noise[1:].max()), 1e-30)
    weight = floor / np.maximum(noise, floor)
    return weigh_rings(references, np.broadcast_to(weight, (len(references), len(weight))))


def _displaced(shift: Floats, reach: float) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Probability that a particle was found by chance, and which images shall leave their classes."""
    square = (shift.astype(np.float64) ** 2).sum(axis=1)
    known = np.isfinite(square)
    result, away = np.ones(len(shift)), np.zeros(len(shift), dtype=bool)
    if not known.any():
        return result, away
    square = square[known]
    variance, share = max(float(np.median(square)) / 4, NARROWEST**2), 0.5
    for _ in range(200):
        near = (1 - share) * np.exp(-square / (2 * variance)) / (2 * np.pi * variance)
        chance = share / (np.pi * reach**2) / (near + share / (np.pi * reach**2))
        share = float(np.clip(chance.mean(), 1e-3, 1 - 1e-3))
        weight = 1 - chance
        variance = max(float(weight @ square) / (2 * float(weight.sum()) + 1e-9), NARROWEST**2)
    result[known] = chance
    far = chance > 0.5
    if far.any() and not far.all() and np.minimum(chance, 1 - chance).mean() < CONFUSED:
        away[known] = far
    return result, away


def _largest(label: Indices, count: int, n_kept: int) -> Indices:
    """Return the classes with the most members, in ascending order."""
    size = np.bincount(label[label >= 0], minlength=count)
    return np.sort(np.argsort(-size, kind="stable")[:n_kept])


def _renumbered(label: Indices, kept: Indices, count: int) -> Indices:
    """Number the classes in `kept` by their place there; members of the others have none."""
    # One more entry at the end, for the label -1.
    number = np.full(count + 1, -1, dtype=np.intp)
    number[kept] = np.arange(len(kept))
    return number[label]


def _chosen(table: Any, order: Indices, names: Sequence[str]) -> Any:
    return table._replace(**{name: getattr(table, name)[order] for name in names})


def _joined(averages: ClassAverages, others: ClassAverages) -> ClassAverages:
    """Classes of some images and, behind them, those of others."""
    known = np.isfinite(others.angle)
    columns = {}
    for name, one in averages._asdict().items():
        other = getattr(others, name)
        if name in OF_CLASSES:
            columns[name] = np.concatenate([one, other])
        else:
            columns[name] = np.where(known.reshape(-1, *[1] * (one.ndim - 1)), other, one)
    return ClassAverages(**columns)


def rank_classes(
    averages: ClassAverages,
    labels: npt.NDArray[np.integer[Any]],
    coordinates: npt.NDArray[np.floating[Any]],
    displaced: npt.NDArray[np.floating[Any]] | None = None,
    *,
    radius: float | None = None,
) -> ClassRanking:
    """Say without labels which classes are junk.

    Parameters
    ----------
    averages : ClassAverages
        Of C classes.
    labels : ndarray of int, shape (n,)
        Class of each image; -1 for none.
    coordinates : ndarray of float, shape (n, k)
        Of each image on the map, or its features. Rows with NaN do not count.
    displaced : ndarray of float, shape (n,), optional
        Probability of each image that no particle lies in the middle; 0 by default.
    radius : float, optional
        Of the particle, in pixels; by default 0.4 of the box.

    Returns
    -------
    ranking : ClassRanking

    Raises
    ------
    InputError
        If the arrays do not fit each other.

    Notes
    -----
    The score is the sum of five terms: two and a half times the excess of the displaced share over the
    usual one, or over one half; twice what contrast lacks to 1; and, each for what goes beyond half an
    octave, half the octaves by which the class is less sharp, less like its members, or less compact
    than usual. Usual is the median over the images whose classes are mostly in the middle.

    The size of a class is no term: resolution is compared with what so few members of a usual class
    would reach, and the other numbers do not grow with the class. So a rare view, which makes a small
    and tight class with a fair average, is not taken for junk.
    """
    count, box = averages.averages.shape[:2]
    labels = np.asarray(labels)
    places: Array = np.asarray(coordinates, dtype=np.float64)
    away = np.zeros(len(labels)) if displaced is None else np.asarray(displaced, dtype=np.float64)
    if places.ndim != 2 or not len(labels) == len(places) == len(away):
        raise InputError(
            "labels, coordinates and displaced must have one entry an image; "
            f"got {labels.shape}, {places.shape} and {away.shape}."
        )
    if len(labels) and not -1 <= labels.min() <= labels.max() < count:
        raise InputError(
            f"labels must be -1 (no class) to {count - 1}; got {labels.min()} to {labels.max()}."
        )
    radius = RADIUS * box if radius is None else check_radius(radius, box)
    members = [np.flatnonzero(labels == k) for k in range(count)]
    size = np.array([len(chosen) for chosen in members])
    share = np.array([away[chosen].mean() if len(chosen) else 1.0 for chosen in members])
    central = np.where(share < 0.5, size, 0) if (share < 0.5).any() else size
    contrast = _contrast(averages, radius)
    sharpness = _sharpness(averages, central)
    likeness = np.nan_to_num(1 - averages.spread.astype(np.float64))
    compactness = _compactness(places, members)
    usual_share = min(_weighted_median(share, central), 0.5)
    score = 2.5 * np.maximum(share - usual_share, 0) + 2 * (1 - contrast)
    for term in (sharpness, likeness, compactness):
        usual = _weighted_median(term, central)
        with np.errstate(divide="ignore", invalid="ignore"):
            octaves = np.nan_to_num(np.log2(usual / np.maximum(term, 1e-3)), nan=0.0)
        score += 0.5 * np.maximum(octaves - USUAL, 0)
    score[size == 0] = np.inf
    return ClassRanking(score, score > 1, share, contrast, sharpness, likeness, compactness)


def _contrast(averages: ClassAverages, radius: float) -> Array:
    box = averages.averages.shape[1]
    offset = np.arange(box) - box // 2
    distance = np.hypot(offset[:, None], offset)
    inside = distance <= radius
    outside = (distance > min(OUTSIDE * radius, box / 2 - 2)) & (distance < box / 2)
    images = averages.averages.astype(np.float64)
    # Members have deviation 1, nearly all of it noise.
    noise = 1 / np.maximum(averages.size, 1)
    within = np.maximum((images[:, inside] ** 2).mean(axis=1) - noise, 0)
    without = np.maximum((images[:, outside] ** 2).mean(axis=1) - noise, 0)
    return (within - without) / np.maximum(np.maximum(within, without), 1e-12)


def _sharpness(averages: ClassAverages, weight: npt.NDArray[np.integer[Any]]) -> Array:
    """Resolution expected of a usual class of the same size, over the one found."""
    frc = np.clip(averages.frc.astype(np.float64), 0, 0.999)
    size = averages.size.astype(np.float64)
    # Signal over noise in one member, by ring; that of the usual class.
    single = 2 * frc / (1 - frc) / np.maximum(size, 1)[:, None]
    usual = np.array([_weighted_median(ring, weight) for ring in single.T])
    half = usual * size[:, None] / 2
    rings = resolved_rings(half / (1 + half))
    found = resolved_rings(frc)
    return np.where(size > 1, found / np.maximum(rings, 1), 0.0)


def _compactness(coordinates: Array, members: list[Indices]) -> Array:
    known = np.asarray(np.isfinite(coordinates).all(axis=1))
    whole = _spread(coordinates[known])
    own = np.array([_spread(coordinates[chosen[known[chosen]]]) for chosen in members])
    return np.divide(whole, own, out=np.ones(len(members)), where=own > 0)


def _spread(rows: Array) -> float:
    """Median distance from the median place."""
    if len(rows) == 0:
        return 0.0
    return float(np.median(np.linalg.norm(rows - np.median(rows, axis=0), axis=1)))


def _weighted_median(values: Array, weight: npt.NDArray[np.integer[Any]]) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weight[order])
    if not len(values) or total[-1] == 0:
        return 0.0
    return float(values[order[np.searchsorted(total, total[-1] / 2)]])


def group_classes(
    features: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    n_groups: int,
    chosen: npt.NDArray[np.bool_] | None = None,
) -> Indices:
    """Sort classes into kinds of particle by the mean features of their members.

    Parameters
    ----------
    features : ndarray of float, shape (n, p)
    labels : ndarray of int, shape (n,)
        Class of each image; -1 for none.
    n_groups : int
    chosen : ndarray of bool, shape (C,), optional
        Classes that take part; by default all.

    Returns
    -------
    group : ndarray of intp, shape (C,)
        The one with the most images is 0; -1 for classes that take no part or are empty.

    Notes
    -----
    Ward's method: from classes alone, those two groups are joined whose union adds least to the sum
    of squares within groups. The features of one image are mostly noise, the mean of a class is not.
    """
    n_groups = check_count("n_groups", n_groups)
    count = int(labels.max(initial=-1)) + 1 if chosen is None else len(chosen)
    size = np.bincount(labels[labels >= 0], minlength=count)
    parts = [k for k in range(count) if size[k] > 0 and (chosen is None or chosen[k])]
    groups = [[k] for k in parts]
    centres = [features[labels == k].mean(axis=0, dtype=np.float64) for k in parts]
    weights = [float(size[k]) for k in parts]
    while len(groups) > n_groups:
        costs = {
            (i, j): weights[i]
            * weights[j]
            / (weights[i] + weights[j])
            * ((centres[i] - centres[j]) ** 2).sum()
            for i, j in itertools.combinations(range(len(groups)), 2)
        }
        i, j = min(costs, key=costs.__getitem__)
        total = weights[i] + weights[j]
        centres[i] = (weights[i] * centres[i] + weights[j] * centres[j]) / total
        weights[i] = total
        groups[i] += groups[j]
        for column in (groups, centres, weights):
            del column[j]
    group = np.full(count, -1, dtype=np.intp)
    for number, i in enumerate(sorted(range(len(groups)), key=lambda i: -weights[i])):
        group[groups[i]] = number
    return group
