"""Rare views: images about to be rejected that form a class of their own and average to a sharp image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2

from fastsort._brief import brief
from fastsort._process import one_blas_thread
from fastsort._threshold import MIN_JUDGED
from fastsort.images.batches import map_batches
from fastsort.invariants.align import match_to_references
from fastsort.invariants.averages import (
    ClassAverages,
    averages_to_match,
    class_averages,
    filter_averages,
    resolved_rings,
)
from fastsort.invariants.classes import ClassRanking, rank_classes
from fastsort.invariants.features import invariant_features, ring_statistics
from fastsort.particles.source import Particles, choose_particles

# Images on the map, kept and rejected: as many as a person can look at, and as are aligned in a second.
N_KEPT, N_REJECTED = 300, 600
# Members that a class should have, and the most classes of either kind.
MEMBERS, MOST = 40, 12
# Principal components among which classes are looked for.
N_COMPONENTS = 10
MAX_ORDER = 20
# A rare view has so many members. Beside the usual class of kept images, it is so sharp for its size and
# so like its members, in parts, and has so little outside the particle's disk, in differences.
FEWEST, SHARP, LIKE, OUTSIDE = 8, 0.6, 0.6, 0.05
# What is more frequent than this, in parts of the images that are kept, is not rare.
RARE = 0.2
# Where the usual class of kept images resolves fewer rings than this, junk is as sharp.
RESOLVED = 5
# How far members may be moved to align them, in parts of the box: a particle is near the middle.
REACH = 0.06

Indices = npt.NDArray[np.intp]
Array = npt.NDArray[np.float64]


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
        Class averages, filtered.
    size : ndarray of intp, shape (C,)
        Members.
    resolution : ndarray of float64, shape (C,)
        Of the averages in pixels of theirs; infinite where nothing is resolved.
    rare : ndarray of bool, shape (C,)
        Whether the class was rescued as a rare view.
    pixel_size : float
        Of the averages, in angstroms; NaN where it is unknown.
    """

    coordinates: npt.NDArray[np.float32]
    label: npt.NDArray[np.intp]
    averages: npt.NDArray[np.float32]
    size: npt.NDArray[Any]
    resolution: npt.NDArray[np.float64]
    rare: npt.NDArray[np.bool_]
    pixel_size: float


def find_views(
    working: Particles,
    score: Array,
    keep: npt.NDArray[np.bool_],
    radius: float | None,
    *,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Views, npt.NDArray[np.bool_]]:
    """Map a sample of the images, average its classes, and find rare views among the rejected.

    Parameters
    ----------
    working : Particles
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
    At most 300 kept and 600 rejected images, evenly spread over the scores, get `invariant_features`;
    k-means among their leading principal components makes classes, of kept and of rejected images
    apart, which are aligned and averaged in two halves. A class of rejected images is a rare view if it
    is as good as the usual class of kept images: as sharp for its size, as like its members, and as
    empty outside the particle's disk (`rank_classes`, in which the size of a class is no term). Where the
    classes of kept images are not resolved, nothing can be said. Images outside the sample go to the
    class with the nearest features. What amounts to more than a fifth of the kept images is not rare.
    """
    n = len(working)
    judged = np.isfinite(score)
    order = np.argsort(score, kind="stable")
    kept, rejected = order[keep[order]], order[judged[order] & ~keep[order]]
    if len(kept) < MIN_JUDGED:
        return nowhere(n, working), np.zeros(n, dtype=bool)
    chosen = [_evenly(kept, N_KEPT), _evenly(rejected, N_REJECTED)]
    sample = np.concatenate(chosen)
    images = working.read(sample)
    noise = ring_statistics(images, n_jobs=1).noise
    with one_blas_thread():
        features = invariant_features(images, MAX_ORDER, noise_floor=noise, n_jobs=n_jobs).astype(np.float64)
        origin = features.mean(axis=0)
        axes = np.linalg.svd(features - origin, full_matrices=False)[2][:N_COMPONENTS]
        places = (features - origin) @ axes.T
        label, means, first = _classes(places, [len(part) for part in chosen], seed)
    averages = class_averages(
        images,
        label,
        n_classes=len(means),
        max_shift=REACH * working.box,
        radius=radius,
        n_jobs=n_jobs,
        progress=progress,
    )
    ranking = rank_classes(averages, label, places, radius=radius)
    rare = _as_good(averages, ranking, first)
    where = np.zeros(n, dtype=bool)
    if rare.any():
        # Features of single images are noisy: many members have gone to other classes.
        match = match_to_references(
            images[label >= first],
            averages_to_match(averages)[first:],
            max_shift=REACH * working.box,
            n_jobs=n_jobs,
        )
        where[chosen[1][rare[first + match.reference]]] = True
    where[sample[rare[label]]] = True
    if rare.any() and len(rejected) > len(chosen[1]):
        others = np.setdiff1d(rejected, chosen[1])
        found = [
            places_of @ axes.T
            for places_of in map_batches(
                _features, choose_particles(working, others), noise, batch_size=512, n_jobs=n_jobs
            )
        ]
        nearest = _nearest(np.concatenate(found) - origin @ axes.T, means, first)
        where[others[rare[nearest]]] = True
    if where.sum() > RARE * len(kept):
        rare[:], where[:] = False, False
    return _views(working, sample, places, label, averages, rare), where


def _as_good(averages: ClassAverages, ranking: ClassRanking, first: int) -> npt.NDArray[np.bool_]:
    """Which classes from `first` on are as good as the usual one before it."""
    usual_rings, sharp, like, contrast = (
        np.median(np.repeat(values[:first], averages.size[:first]))
        for values in (resolved_rings(averages.frc), ranking.sharpness, ranking.likeness, ranking.contrast)
    )
    rare = np.arange(len(averages.size)) >= first
    rare &= (averages.size >= FEWEST) & (usual_rings >= RESOLVED)
    rare &= (ranking.sharpness >= SHARP * sharp) & (ranking.likeness >= LIKE * like)
    return rare & (ranking.contrast >= contrast - OUTSIDE)


def nowhere(n: int, working: Particles) -> Views:
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


def _features(images: npt.NDArray[np.float32], start: int, noise: Array) -> Array:
    return invariant_features(images, MAX_ORDER, noise_floor=noise, n_jobs=1).astype(np.float64)


def _evenly(indices: Indices, number: int) -> Indices:
    """Return some of the indices, evenly spaced, in ascending order."""
    if len(indices) > number:
        indices = indices[np.linspace(0, len(indices) - 1, number).round().astype(np.intp)]
    return np.sort(indices)


def _classes(places: Array, sizes: list[int], seed: int) -> tuple[Indices, Array, int]:
    """Divide kept and rejected images into classes: labels, means, and the first class of the rejected."""
    labels, means, count, first, start = [], [], 0, 0, 0
    rng = np.random.default_rng(seed)
    for size in sizes:
        part, start = places[start : start + size], start + size
        first = count
        if size:
            number = max(1, min(size // MEMBERS, MOST))
            centres, label = kmeans2(part, number, minit="++", seed=rng, missing="warn")
            labels.append(label.astype(np.intp) + count)
            means.append(centres)
            count += number
    return np.concatenate(labels), np.concatenate(means), first if sizes[1] else count


def _nearest(places: Array, means: Array, first: int) -> Indices:
    square = np.square(means[first:]).sum(axis=1) - 2 * places @ means[first:].T
    return first + square.argmin(axis=1)


def _views(
    working: Particles,
    sample: Indices,
    places: Array,
    label: Indices,
    averages: ClassAverages,
    rare: npt.NDArray[np.bool_],
) -> Views:
    """Put it together; the classes of kept images first, the largest of them in front."""
    filled = np.flatnonzero(averages.size > 0)
    order = filled[np.lexsort((-averages.size[filled], rare[filled]))]
    number = np.full(len(averages.size), -1, dtype=np.intp)
    number[order] = np.arange(len(order))
    views = nowhere(len(working), working)
    views.coordinates[sample] = places[:, :2]
    views.label[sample] = number[label]
    return views._replace(
        averages=filter_averages(averages.averages[order], averages.frc[order]),
        size=averages.size[order],
        resolution=averages.resolution[order].astype(np.float64),
        rare=rare[order],
    )
