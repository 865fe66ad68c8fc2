"""Rare views: rejected images that form a class whose average is as sharp as those of kept images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from fastsort._brief import brief
from fastsort._progress import Progress
from fastsort._threshold import MIN_JUDGED
from fastsort._types import Bools, Floats, Images, Indices, Singles
from fastsort.decide.calibrate import GOOD
from fastsort.decide.decoys import make_decoys
from fastsort.decide.side_by_side import side_by_side
from fastsort.images.batches import map_batches
from fastsort.images.crop import fourier_crop
from fastsort.invariants.align import match_to_references
from fastsort.invariants.averages import ClassAverages, averages_from_poses, averages_to_match
from fastsort.invariants.features import invariant_features
from fastsort.invariants.fit_classes import LEAST_RADIUS, FittedClasses, averages_of, fit_classes
from fastsort.invariants.ranking import RADIUS, ClassRanking, rank_classes
from fastsort.invariants.ring_correlation import filter_averages, resolved_rings
from fastsort.invariants.ring_statistics import ring_statistics
from fastsort.particles.source import Particles, as_particles, choose_particles, evenly_spaced

# Images on the map, kept and rejected: as many as a person can look at, and as are aligned in a second.
N_KEPT, N_REJECTED = 300, 600
# Members that a class should have, and the most classes of either kind.
MEMBERS, MOST = 40, 12
# Rounds that classes of kept and of rejected images take, in parts of the usual number, and how small
# rejected images are meanwhile; and steps of the shift in a period of the finest detail.
EFFORT, EFFORT_REJECTED, GRID = 0.5, 0.2, 24
STEPS, STEPS_REJECTED = 3.0, 2.5
# Principal components among which classes are looked for.
N_COMPONENTS = 10
MAX_ORDER = 20
# A rare view has at least so many members. Compared with the usual class of kept images, its sharpness for
# its size and its likeness to its members are at least these parts, and the contrast of its disk to the
# background is lower by no more than this.
FEWEST, SHARP, LIKE, BELOW = 8, 0.6, 0.6, 0.05
# Decoys of each kind; the part of all of them that images of a rare view have to surpass (the best few may
# come from kept images that are junk); and the part of the images most like its average that does at least.
N_DECOYS, SURPASSED, SURPASS = 60, 0.99, 0.5
# Decoys that show no particle: copies of particles are more like a rare view of the same particle.
NO_PARTICLE = ("scrambled", "noise", "picked noise", "background")
# More images than this, in parts of those that are kept, are no rare view.
RARE = 0.2
# Where the usual class of kept images resolves fewer rings than this, junk is as sharp.
RESOLVED = 5
# Rounds in which the halves of the classes, which have been aligned together, are aligned apart.
N_ROUNDS = 2
# How far members may be moved to align them, in parts of the box: a particle is near the middle.
REACH = 0.06


@brief
class Views(NamedTuple):
    """Classes of a sample of the images, and where these lie on the map of invariant features.

    Attributes
    ----------
    coordinates : ndarray of float32, shape (n, 2)
        NaN for images that were not in the sample.
    label : ndarray of intp, shape (n,)
        Class of each image; -1 for none.
    averages : ndarray of float32, shape (C, s, s)
        Class averages: of kept images the likeliest (`fit_classes`), of rejected ones filtered.
    size : ndarray of intp, shape (C,)
        Members.
    resolution : ndarray of float64, shape (C,)
        Of the averages in pixels of theirs; infinite where nothing is resolved.
    rare : ndarray of bool, shape (C,)
        Whether the class showed a rare view. Those of its members that look like its average are rescued.
    pixel_size : float
        Of the averages, in angstroms; NaN where it is unknown.
    """

    coordinates: Singles
    label: Indices
    averages: Images
    size: Indices
    resolution: Floats
    rare: Bools
    pixel_size: float


class _Space(NamedTuple):
    """The space in which classes are looked for: the first principal components of the features.

    Attributes
    ----------
    noise : ndarray of float64
        Noise floor of the features.
    axes : ndarray of float64, shape (k, number of features)
    middle : ndarray of float64, shape (k,)
        Where the mean of the sample lies.
    """

    noise: Floats
    axes: Floats
    middle: Floats


class _Classes(NamedTuple):
    """Classes of the sample; those of rejected images have the numbers from `first` on.

    Attributes
    ----------
    label : ndarray of intp, shape (m,)
    means : ndarray of float64, shape (C, k)
    first : int
    """

    label: Indices
    means: Floats
    first: int


def find_views(
    working: Particles,
    score: Floats,
    keep: Bools,
    radius: float | None,
    *,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Views, Bools]:
    """Map a sample of the images, average its classes, and find rare views among the rejected.

    Parameters
    ----------
    working : Particles
        With flipped phases, if there is a contrast transfer function.
    score : ndarray of float64, shape (n,)
        Larger for junk; infinite for images that cannot be judged.
    keep : ndarray of bool, shape (n,)
    radius : float or None
        Of the particle, in working pixels.
    n_jobs : int, optional
    seed : int
    progress : callable, optional
        Called as ``progress(steps_done, steps_in_all)``.

    Returns
    -------
    views : Views
    rare : ndarray of bool, shape (n,)
        Rejected images that belong to a rare view.

    Notes
    -----
    At most 300 kept and 600 rejected images, evenly spread over the scores, get `invariant_features`.
    Classes are found by likelihood (`fit_classes`), separately for kept and for rejected images. From the
    poses that this finds, each is aligned and averaged in two halves. A class of rejected images is a rare
    view if it is as good as the usual class of kept images: as sharp for its size, as like its members, and
    as empty outside the particle's disk (`rank_classes`, where the size of a class does not count). Where the
    classes of kept images are not resolved, there is nothing to compare with.

    Junk makes such classes too: two particles, or one beside the middle, or ice, average to something
    sharp. So decoys (`make_decoys`, from the better half of the kept images) are aligned to the average as
    well. Copies of particles must be more like it than decoys without a particle are, which rules out ice
    and carbon. A rejected image belongs to the view if it is more like this average than like that of any
    other rejected class, and correlates with it better than 99 % of the decoys of junk. At least 8 images
    of the sample, and half of those that are most like this average, must do so, or the class shows no rare
    view. Rejected images outside the sample are asked if no other rejected class has nearer features.
    So a rare view is not found where junk outnumbers it among the images most like its average.

    The averages that are shown of kept images are those of the likelihood, as `classify_images` makes them:
    they show far more, but are zero outside the disk, where those of ice and doubles are told from particles.

    If more images than a fifth of the number of kept ones are most like such averages, these are not rare,
    or junk averages as well as particles do: none is rescued.
    """
    n = len(working)
    order = np.argsort(score, kind="stable")
    kept, rejected = order[keep[order]], order[np.isfinite(score)[order] & ~keep[order]]
    if len(kept) < MIN_JUDGED:
        return no_views(n, working), np.zeros(n, dtype=bool)
    sampled = [_evenly(kept, N_KEPT), _evenly(rejected, N_REJECTED)]
    sample = np.concatenate(sampled)
    images = working.read(sample)
    # These pixels are in memory: the many rounds need neither the file nor other machines.
    of_kept, of_rejected = np.split(images, [len(sampled[0])])
    kept_images = replace(
        as_particles(of_kept), pixel_size=working.pixel_size, ctf=working.ctf and working.ctf.of(sampled[0])
    )
    tasks = [partial(_learn, kept_images, working.box, EFFORT, STEPS, radius, seed)]
    if len(of_rejected):
        tasks.append(
            partial(_learn, as_particles(of_rejected), GRID, EFFORT_REJECTED, STEPS_REJECTED, radius, seed)
        )
    *found, (space, places) = side_by_side([*tasks, partial(_feature_space, images)], n_jobs, progress)
    fitted, averaged = zip(*found, strict=True)
    classes = _classes(places, fitted)
    averages = ClassAverages(*(np.concatenate(column) for column in zip(*averaged, strict=True)))
    ranking = rank_classes(averages, classes.label, places, radius=radius, look_for_displaced=False)
    rare = _as_good(averages, ranking, classes.first)
    rescued = np.zeros(n, dtype=bool)
    if rare.any():
        references = averages_to_match(averages)[classes.first :]
        clearest = np.argsort(score[sampled[0]], kind="stable")[: (len(sampled[0]) + 1) // 2]
        decoys = make_decoys(images[clearest], images, np.random.default_rng(seed), N_DECOYS, good=True)
        least = _scores_to_surpass(decoys, references, rare[classes.first :], n_jobs)
        nearest, belongs = _match_views(images[len(sampled[0]) :], references, least, n_jobs)
        share = np.isfinite(least[nearest]).mean()
        rare[classes.first :] &= _hold_together(nearest, belongs, len(references))
        rare &= share * len(rejected) <= RARE * len(kept)
        rescued[sampled[1][belongs & rare[classes.first + nearest]]] = True
        others = np.setdiff1d(rejected, sampled[1])
        if rare.any() and len(others):
            others = others[_near_rare(choose_particles(working, others), space, classes, rare, n_jobs)]
        if rare.any() and len(others):
            nearest, belongs = _match_views(choose_particles(working, others), references, least, n_jobs)
            rescued[others[belongs & rare[classes.first + nearest]]] = True
    return _views(working, sample, places, *_shown(averages, classes, fitted[0]), rare), rescued


def no_views(n: int, working: Particles) -> Views:
    """Views of a set of which too little is kept to make a map."""
    box = working.box
    return Views(
        np.full((n, 2), np.nan, dtype=np.float32),
        np.full(n, -1, dtype=np.intp),
        np.empty((0, box, box), dtype=np.float32),
        np.empty(0, dtype=np.intp),
        np.empty(0),
        np.empty(0, dtype=bool),
        working.pixel_size,
    )


def _evenly(indices: Indices, number: int) -> Indices:
    """Return some of the indices, evenly spaced, in ascending order."""
    return np.sort(indices[evenly_spaced(len(indices), number)])


def _feature_space(images: Images) -> tuple[_Space, Floats]:
    """Find the principal components of the images' features, and where the images lie among them."""
    noise = ring_statistics(images, n_jobs=1).noise
    features = invariant_features(images, MAX_ORDER, noise_floor=noise, n_jobs=1).astype(np.float64)
    mean = features.mean(axis=0)
    axes = np.linalg.svd(features - mean, full_matrices=False)[2][:N_COMPONENTS]
    return _Space(noise, axes, mean @ axes.T), (features - mean) @ axes.T


def _learn(
    images: Particles, size: int, effort: float, steps: float, radius: float | None, seed: int
) -> tuple[FittedClasses, ClassAverages]:
    """Find classes among images reduced to `size`, and average their members at full resolution."""
    box = images.box
    size = min(size, box)
    scale = size / box
    small = images if size == box else as_particles(fourier_crop(images.read(0, len(images)), size))
    number = max(1, min(len(images) // MEMBERS, MOST))
    within = min(max(scale * (RADIUS * box if radius is None else radius), LEAST_RADIUS), size / 2)
    fitted = fit_classes(small, number, within, effort=effort, steps=steps, n_jobs=1, seed=seed)
    averages = averages_from_poses(
        images,
        fitted.assignments.label,
        fitted.assignments.angle,
        fitted.assignments.shift / np.float32(scale),
        number,
        n_iterations=N_ROUNDS,
        max_shift=REACH * box,
        radius=box // 2 if radius is None else radius,
        n_jobs=1,
    )
    return fitted, averages


def _classes(places: Floats, fitted: Sequence[FittedClasses]) -> _Classes:
    """Number the classes of kept and of rejected images as one, and find where their members lie."""
    first = len(fitted[0].averages)
    label = np.concatenate(
        [part.assignments.label + start for part, start in zip(fitted, (0, first), strict=False)]
    )
    count = sum(len(part.averages) for part in fitted)
    sums = np.zeros((count, places.shape[1]))
    np.add.at(sums, label, places)
    # A class without members lies nowhere.
    with np.errstate(invalid="ignore"):
        means = sums / np.bincount(label, minlength=count)[:, None]
    return _Classes(label, means, first)


def _as_good(averages: ClassAverages, ranking: ClassRanking, first: int) -> Bools:
    """Tell which classes from `first` on are as good as the usual class before it."""
    usual_rings, sharp, like, contrast = (
        np.median(np.repeat(values[:first], averages.size[:first]))
        for values in (resolved_rings(averages.frc), ranking.sharpness, ranking.likeness, ranking.contrast)
    )
    good = np.arange(len(averages.size)) >= first
    good &= (averages.size >= FEWEST) & (usual_rings >= RESOLVED)
    good &= (ranking.sharpness >= SHARP * sharp) & (ranking.likeness >= LIKE * like)
    return good & (ranking.contrast >= contrast - BELOW)


def _scores_to_surpass(
    decoys: dict[str, Images], references: Images, rare: Bools, n_jobs: int | None
) -> Floats:
    """Correlation with each reference that few decoys of junk surpass; infinite if it is no rare view."""
    least = np.full(len(references), np.inf)
    together = np.concatenate(list(decoys.values()))
    reach = REACH * references.shape[1]
    for k in np.flatnonzero(rare):
        # One by one: the decoy most like this reference may be still more like another.
        score = match_to_references(together, references[k : k + 1], max_shift=reach, n_jobs=n_jobs).score
        scores = dict(zip(decoys, np.split(score, len(decoys)), strict=True))
        particles = np.median(scores.pop(GOOD))
        if all(particles > np.median(scores[kind]) for kind in NO_PARTICLE):
            least[k] = np.quantile(np.concatenate(list(scores.values())), SURPASSED)
    return least


def _match_views(
    images: Images | Particles, references: Images, least: Floats, n_jobs: int | None
) -> tuple[Indices, Bools]:
    """Find the reference that each image is most like, and whether it is more like it than asked."""
    # At low resolution many members of a rare view have gone into other classes.
    match = match_to_references(images, references, max_shift=REACH * references.shape[1], n_jobs=n_jobs)
    return match.reference, match.score > least[match.reference]


def _hold_together(nearest: Indices, belongs: Bools, count: int) -> Bools:
    """Tell to which references enough of the images belong that are most like them."""
    # Images that cannot be aligned have the number -1.
    like, members = (
        np.bincount(chosen + 1, minlength=count + 1)[1:] for chosen in (nearest, nearest[belongs])
    )
    return (members >= FEWEST) & (members >= SURPASS * like)


def _near_rare(others: Particles, space: _Space, classes: _Classes, rare: Bools, n_jobs: int | None) -> Bools:
    """Tell which images outside the sample have features nearest to those of a rare view."""
    means = classes.means[classes.first :]
    batches = map_batches(_nearest_class, others, space, means, batch_size=512, n_jobs=n_jobs)
    return np.concatenate([rare[classes.first + nearest] for nearest in batches])


def _nearest_class(images: Images, start: int, space: _Space, means: Floats) -> Indices:
    places = _features(images, start, space.noise) @ space.axes.T - space.middle
    return np.nanargmin(np.square(means).sum(axis=1) - 2 * places @ means.T, axis=1)


def _features(images: Images, start: int, noise: Floats) -> Floats:
    return invariant_features(images, MAX_ORDER, noise_floor=noise, n_jobs=1).astype(np.float64)


def _shown(
    averages: ClassAverages, classes: _Classes, kept: FittedClasses
) -> tuple[Indices, Images, Indices, Floats]:
    """Return labels, averages, sizes and resolutions; averages of kept images are the likeliest."""
    first = classes.first
    likeliest = averages_of(kept, math.nan)
    others = filter_averages(averages.averages[first:], averages.frc[first:])
    return (
        classes.label,
        np.concatenate([likeliest.averages, others]),
        np.concatenate([likeliest.size, averages.size[first:]]),
        np.concatenate([likeliest.resolution, averages.resolution[first:]]).astype(np.float64),
    )


def _views(
    working: Particles,
    sample: Indices,
    places: Floats,
    label: Indices,
    averages: Images,
    size: Indices,
    resolution: Floats,
    rare: Bools,
) -> Views:
    """Number the classes anew: those of kept images first, and of either sort the largest first."""
    filled = np.flatnonzero(size > 0)
    order = filled[np.lexsort((-size[filled], rare[filled]))]
    # One more entry at the end, for the label -1.
    number = np.full(len(size) + 1, -1, dtype=np.intp)
    number[order] = np.arange(len(order))
    coordinates = np.full((len(working), 2), np.nan, dtype=np.float32)
    coordinates[sample] = places[:, :2]
    label_of_all = np.full(len(working), -1, dtype=np.intp)
    label_of_all[sample] = number[label]
    return Views(
        coordinates,
        label_of_all,
        averages[order],
        size[order],
        resolution[order],
        rare[order],
        working.pixel_size,
    )
