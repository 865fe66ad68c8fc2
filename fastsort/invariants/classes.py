"""Divide images into classes: a map of their features, and the likeliest class averages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count, check_radius
from fastsort._progress import Progress, part_of
from fastsort._types import Array, Indices, Singles
from fastsort.invariants.averages import ClassAverages, averages_around
from fastsort.invariants.expectation import Assignments, ClassModel
from fastsort.invariants.features import invariant_features
from fastsort.invariants.fit_classes import LEAST_RADIUS, FittedClasses, averages_of, fit_classes
from fastsort.invariants.groups import group_classes
from fastsort.invariants.map import EMBEDDINGS, ParticleMap, map_features
from fastsort.invariants.ranking import RADIUS, ClassRanking, rank_classes, wide_radius
from fastsort.invariants.ring_statistics import ring_statistics
from fastsort.particles.source import Particles, as_particles, choose_particles

# If the number of classes is not given, there are at least so many, as long as each has enough members:
# images in a class must be alike to be aligned.
FEWEST_CLASSES, IMAGES_A_CLASS = 12, 50
# Steps that the progress counts, and where in the whole work its parts begin and end.
N_STEPS = 1000
PARTS = {"features": (0.0, 0.1), "classes": (0.2, 1.0)}
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
    probability : ndarray of float32, shape (n,)
        That the image belongs to its class; 0 without a class.
    map : ParticleMap
        Where each image lies among the others.
    averages : ClassAverages
        Corrected for the contrast transfer function as far as the images show something, and zero outside
        the particle's disk. Angles and shifts are those of the likeliest pose; the scores compare each image
        with the average of the half that it does not belong to, seen through its contrast transfer function.
    ranking : ClassRanking
    group : ndarray of intp, shape (C,)
        Kind of particle that each class shows, from 0 for the most frequent; -1 for junk.
    """

    label: Indices
    probability: Singles
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
        Phase-flipped, if there is a contrast transfer function. The amplitudes are corrected where the
        particles give one.
    n_classes : int, optional
        Number of classes. There are fewer if some turn out empty; 1 does not divide the images. By default
        the number with the best Bayesian information criterion on the features, but at least one class for
        every 50 images, up to 12 classes.
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
        Random seed of the map, and of the images that the classes start from.
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
    Features that neither a turn nor a shift changes [1]_ make the map, and say how many classes there are.

    The classes themselves are found by expectation maximization, as in RELION [2]_: every image is one of
    the averages, turned and moved, seen through its contrast transfer function, under noise whose power is
    measured on each ring of the Fourier plane. All classes, angles and shifts are weighted by how likely
    they are. On rings expanded in the angle, a turn is a factor, so that all angles come from one matrix
    product and a short transform [3]_. First a coarse search on the inner rings drops the classes and
    shifts that are hardly possible [4]_.

    The averages are functions on the particle's disk. They start from a few images of each class as they
    lie, at low resolution, and improve in rounds of more and more images and rings; only the last rounds
    use all images. In the end the even and the odd images part, while their averages show no detail, and
    each half follows its own averages. The correlation of the two is what they show beyond noise.

    References
    ----------
    .. [1] Da, Yeo, Yang, Loh, "CryoEM 2D classification with translational and rotational invariant
       features".
    .. [2] Scheres, "RELION: Implementation of a Bayesian approach to cryo-EM structure determination",
       J. Struct. Biol. 180 (2012).
    .. [3] Rangan, Spivak, Anden, Barnett, "Factorization of the translation kernel for fast rigid image
       alignment", Inverse Problems 36 (2020).
    .. [4] Gu, "Machine Learning Problems in Cryo-EM" (2018).

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
    if radius < LEAST_RADIUS:
        raise InputError(
            f"the particle's radius is {radius:.3g} px in images of {particles.box} px, and classes need at "
            f"least {LEAST_RADIUS:g} px: give a larger diameter, or larger images."
        )
    if progress:
        progress(0, N_STEPS)

    def measure() -> Singles:
        noise = ring_statistics(particles, n_jobs=n_jobs).noise
        counted = _part_of(progress, "features")
        return invariant_features(particles, max_order, noise_floor=noise, n_jobs=n_jobs, progress=counted)

    def divide() -> ParticleMap:
        fewest = min(max(len(particles) // IMAGES_A_CLASS, 1), FEWEST_CLASSES)
        return map_features(features, n_classes, fewest=fewest, embedding=embedding, seed=seed)

    features = stage("features", measure)
    places = stage("map", divide)

    def fit() -> tuple[Any, ...]:
        counted = _part_of(progress, "classes")
        # Kept as plain tuples: files know no types of a single module.
        found = fit_classes(particles, places.n_classes, radius, n_jobs=n_jobs, seed=seed, progress=counted)
        return (*found[:2], tuple(found.assignments), tuple(found.model))

    pictures, correlation, assignments, model = stage("classes", fit)
    fitted = FittedClasses(pictures, correlation, Assignments(*assignments), ClassModel(*model))
    if not (fitted.assignments.label >= 0).any():
        raise InputError(f"no classes: all {len(particles)} images are flat, or have NaN or infinity.")
    if progress:
        progress(N_STEPS, N_STEPS)
    averages = averages_of(fitted, particles.pixel_size)
    label, averages, ranking = best_first(
        particles, averages, fitted.assignments.label, places.coordinates, radius, n_jobs=n_jobs
    )
    group = group_classes(features, label, n_groups, ~ranking.junk)
    return Classification(label, fitted.assignments.probability, places, averages, ranking, group)


def averages_of_given(
    particles: Particles,
    label: Indices,
    radius: float,
    *,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ClassAverages:
    """Learn the averages of given classes as those that are found are learned, each from its members alone.

    Parameters
    ----------
    particles : Particles
        As for `find_classes`.
    label : ndarray of intp, shape (n,)
        Class of each image, of which none is empty; -1 for none.
    radius : float
        Of the particle, in pixels.
    n_jobs, seed, progress
        As for `classify_images`.

    Returns
    -------
    averages : ClassAverages
    """
    n, done = len(particles), 0
    found = []
    angle, shift = np.full(n, np.nan, np.float32), np.full((n, 2), np.nan, np.float32)
    score = np.full(n, -np.inf, np.float32)
    for k in range(int(label.max()) + 1):
        members = np.flatnonzero(label == k)
        counted = part_of(progress, done / n, (done + len(members)) / n, n)
        own = choose_particles(particles, members)
        averages = averages_of(
            fit_classes(own, 1, radius, n_jobs=n_jobs, seed=seed, progress=counted), particles.pixel_size
        )
        angle[members], shift[members], score[members] = averages.angle, averages.shift, averages.score
        found.append(averages)
        done += len(members)
    columns = {name: np.concatenate([getattr(one, name) for one in found]) for name in OF_CLASSES}
    return ClassAverages(**columns, angle=angle, shift=shift, score=score)


def best_first(
    particles: Particles,
    averages: ClassAverages,
    label: Indices,
    coordinates: Array,
    radius: float,
    *,
    n_jobs: int | None = None,
) -> tuple[Indices, ClassAverages, ClassRanking]:
    """Rank classes, and number them by their rank; there is no class left without a member.

    Parameters
    ----------
    particles : Particles
        What the averages are made of. What they show around a narrow disk counts too.
    averages, label, coordinates, radius
        As for `rank_classes`.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    label : ndarray of intp, shape (n,)
    averages : ClassAverages
    ranking : ClassRanking
    """
    wide = wide_radius(radius, particles.box)
    around = None
    # Less than a pixel more shows nothing more.
    if wide >= radius + 1:
        around = averages_around(particles, label, averages, wide, n_jobs=n_jobs)
    ranking = rank_classes(averages, label, coordinates, radius=radius, around=around)
    order = np.argsort(ranking.score, kind="stable")[: int((averages.size > 0).sum())]
    label = _renumbered(label, order, len(averages.size))
    return label, _chosen(averages, order, OF_CLASSES), _chosen(ranking, order, ranking._fields)


def _part_of(progress: Progress | None, name: str) -> Progress | None:
    return part_of(progress, *PARTS[name], N_STEPS)


def _renumbered(label: Indices, kept: Indices, count: int) -> Indices:
    """Number classes by their place in `kept`; members of other classes get -1."""
    # One more entry at the end, for the label -1.
    number = np.full(count + 1, -1, dtype=np.intp)
    number[kept] = np.arange(len(kept))
    return number[label]


def _chosen(table: Any, order: Indices, names: Sequence[str]) -> Any:
    return table._replace(**{name: getattr(table, name)[order] for name in names})
