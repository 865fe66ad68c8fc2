"""Classes ranked without labels: which of them are junk."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._brief import brief
from fastsort._checks import InputError, check_radius
from fastsort._types import Array, Bools, Floats, Indices
from fastsort.invariants.averages import ClassAverages
from fastsort.invariants.displaced import displaced_averages
from fastsort.invariants.ring_correlation import resolved_rings

# The particle's radius if it is not given, in parts of the box.
RADIUS = 0.4
# Where the averages are compared, in parts of that radius, but no farther than the radius above.
WIDE = 1.5
# The background begins here, in parts of the particle's radius.
BACKGROUND_FROM = 1.15
# What costs nothing in each measurement, in octaves or in parts of the radius, and what more of it costs.
FREE = {
    "displaced": 0.15,
    "offset": 0.12,
    "strength": 0.6,
    "sharpness": 0.25,
    "likeness": 0.15,
    "compactness": 0.3,
}
PRICE = {
    "displaced": 6.0,
    "offset": 8.0,
    "strength": 1.5,
    "sharpness": 1.0,
    "likeness": 2.5,
    "compactness": 0.5,
}


@brief
class ClassRanking(NamedTuple):
    """How likely each class is junk, and the measurements that say so; one entry a class.

    Attributes
    ----------
    score : ndarray of float64, shape (C,)
        Larger for junk; infinite for an empty class.
    junk : ndarray of bool, shape (C,)
        Whether the score is above 1.
    displaced : ndarray of float64, shape (C,)
        How much better the average fits another one if it is moved out of the middle; 0 where nobody looked.
    offset : ndarray of float64, shape (C,)
        How far from the middle of the average its mass lies, in parts of the particle's radius.
    strength : ndarray of float64, shape (C,)
        Deviation of the average inside the particle's disk, over the usual one.
    contrast : ndarray of float64, shape (C,)
        Power of the average inside the particle's disk minus that of the background, over the larger of
        the two, from -1 to 1. The power that noise leaves in an average of so many members is subtracted
        from both.
    sharpness : ndarray of float64, shape (C,)
        Resolution that the usual class would reach with so many members, over the resolution of this one:
        1 for a class that is as sharp as others of its size, 0 for one that has no resolution.
    likeness : ndarray of float64, shape (C,)
        Mean correlation of the members with the average of the other half of the class. If averages on a
        wider disk are given, it is no more, in parts of what is usual, than on that.
    compactness : ndarray of float64, shape (C,)
        Median distance of all images from their median place on the map, over the same of the members.
    """

    score: Floats
    junk: Bools
    displaced: Floats
    offset: Floats
    strength: Floats
    contrast: Floats
    sharpness: Floats
    likeness: Floats
    compactness: Floats


def rank_classes(
    averages: ClassAverages,
    labels: Array,
    coordinates: Array | None,
    *,
    radius: float | None = None,
    look_for_displaced: bool = True,
    around: ClassAverages | None = None,
) -> ClassRanking:
    """Find which classes are junk, without labels.

    Parameters
    ----------
    averages : ClassAverages
        Of C classes.
    labels : ndarray of int, shape (n,)
        Class of each image; -1 for none.
    coordinates : ndarray of float, shape (n, k), or None
        Place of each image on the map, or its features. Rows with NaN do not count. Without any, all classes
        count as equally compact.
    radius : float, optional
        Radius of the particle in pixels; by default 0.4 of the box.
    look_for_displaced : bool
        Whether to compare the averages with each other (`displaced_averages`).
    around : ClassAverages, optional
        Averages of the same classes on a wider disk, half as large again as the particle but at most 0.4 of
        the box in radius (`averages_around`). `displaced` and `likeness` are measured there too.

    Returns
    -------
    ranking : ClassRanking

    Raises
    ------
    InputError
        If the arrays do not fit each other.

    Notes
    -----
    The score is the sum of seven terms. One is 2 times (1 - `contrast`). Two are 6 times what `displaced`
    has beyond 0.15, and 8 times what `offset` has beyond 0.12. The others come from `strength`, if it is
    above its usual value, and from `sharpness`, `likeness` and `compactness`, if they are below: 1.5, 1, 2.5
    and 0.5 times the number of octaves, where the first 0.6, 0.25, 0.15 and 0.3 octaves are free. Usual is
    the median over the images, each of which counts as much as its class is clear: by `likeness` times the
    number of rings on which the halves agree.

    The score does not depend on the size of the class: its resolution is compared with that of a usual
    class of its size, and the other measurements do not grow with the size. So a rare view, which makes a
    small class that is compact and has a good average, does not count as junk.

    A disk as small as the particle hides what lies beside it: a particle that is cut there looks like a whole
    one, whose own edge changes along the rim, and images of anything can be aligned until they agree.
    Averages around the disk tell. What counts as displaced in the disk alone must have its mass beside the
    middle there, and members must be alike there too.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(60, 0, box=32, snr=2, seed=1)
    >>> classes = fs.invariants.classify_images(images, 2, embedding="pca")
    >>> ranking = fs.invariants.rank_classes(classes.averages, classes.label, classes.map.coordinates)
    >>> len(ranking.score) == len(classes.averages.size)
    True
    >>> bool((ranking.junk == (ranking.score > 1)).all())
    True
    """
    count, box = averages.averages.shape[:2]
    labels = np.asarray(labels)
    places: Floats = np.asarray(np.zeros((len(labels), 1)) if coordinates is None else coordinates, float)
    if places.ndim != 2 or len(labels) != len(places):
        raise InputError(
            f"labels and coordinates must have one entry an image; got {labels.shape} and {places.shape}."
        )
    if len(labels) and not -1 <= labels.min() <= labels.max() < count:
        raise InputError(
            f"labels must be -1 (no class) to {count - 1}; got {labels.min()} to {labels.max()}."
        )
    radius = RADIUS * box if radius is None else check_radius(radius, box)
    if around is not None and around.averages.shape != averages.averages.shape:
        raise InputError(
            f"around must have averages of the same classes, {averages.averages.shape}; "
            f"got {around.averages.shape}."
        )
    members = [np.flatnonzero(labels == k) for k in range(count)]
    size = np.array([len(chosen) for chosen in members])
    likeness = np.nan_to_num(1 - averages.spread.astype(np.float64))
    agreement = np.clip(averages.frc.astype(np.float64), 0, 1).sum(axis=1)
    weight = size * np.maximum(likeness * agreement, 1e-9)
    if around is not None:
        # Members that agree in the disk alone may have been aligned until they did.
        beyond = np.nan_to_num(1 - around.spread.astype(np.float64))
        usual = _weighted_median(likeness, weight) / max(_weighted_median(beyond, weight), 1e-12)
        likeness = np.minimum(likeness, beyond * usual)
    contrast = _contrast(averages, radius)
    offset, deviation = _mass(averages, radius)
    strength = deviation / max(_weighted_median(deviation, weight), 1e-12)
    sharpness = _sharpness(averages, weight)
    compactness = _compactness(places, members)
    score = 2 * (1 - contrast) + _cost("offset", offset) + _cost("strength", _octaves(1.0, strength))
    for name, term in (("sharpness", sharpness), ("likeness", likeness), ("compactness", compactness)):
        score += _cost(name, _octaves(term, _weighted_median(term, weight)))
    displaced = np.zeros(count)
    if look_for_displaced:
        # A piece of ice fits any bright part of a particle: what is junk anyway is no measure for others.
        clarity = np.where(score > 1, 0, weight)
        displaced = displaced_averages(averages.averages, clarity, radius)
        if around is not None:
            # A whole particle's own edge may lie in the rim of the disk, but its mass lies in the middle.
            wide = wide_radius(radius, box)
            beside = _mass(around, wide)[0] * wide > FREE["offset"] * radius
            displaced = np.where(beside, displaced, 0)
            displaced = np.maximum(displaced, displaced_averages(around.averages, clarity, wide))
        score += _cost("displaced", displaced)
    score[size == 0] = np.inf
    return ClassRanking(
        score, score > 1, displaced, offset, strength, contrast, sharpness, likeness, compactness
    )


def wide_radius(radius: float, box: int) -> float:
    """Return the radius in pixels of the disk where averages are compared, of a particle of this radius."""
    return max(radius, min(WIDE * radius, RADIUS * box))


def _octaves(low: Array | float, high: Array | float) -> Floats:
    """By how many octaves the second lies above the first; 0 where nothing is known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves: Floats = np.log2(np.asarray(high) / np.maximum(low, 1e-3))
    return np.nan_to_num(octaves, nan=0.0, neginf=0.0)


def _cost(name: str, value: Floats) -> Floats:
    return PRICE[name] * np.maximum(value - FREE[name], 0)


def _mass(averages: ClassAverages, radius: float) -> tuple[Floats, Floats]:
    """How far from the middle the mass of each average lies, in radii, and its deviation in the disk."""
    box = averages.averages.shape[1]
    offset = np.arange(box) - box // 2
    y, x = np.meshgrid(offset, offset, indexing="ij")
    inside = np.hypot(y, x) <= radius
    values = averages.averages[:, inside].astype(np.float64)
    mass = np.abs(values)
    total = np.maximum(mass.sum(axis=1), 1e-12)
    away = np.hypot(mass @ y[inside], mass @ x[inside]) / total
    return away / radius, values.std(axis=1)


def _contrast(averages: ClassAverages, radius: float) -> Floats:
    box = averages.averages.shape[1]
    offset = np.arange(box) - box // 2
    distance = np.hypot(offset[:, None], offset)
    inside = distance <= radius
    outside = (distance > min(BACKGROUND_FROM * radius, box / 2 - 2)) & (distance < box / 2)
    images = averages.averages.astype(np.float64)
    # Members have deviation 1, nearly all of it noise.
    noise = 1 / np.maximum(averages.size, 1)
    within = np.maximum((images[:, inside] ** 2).mean(axis=1) - noise, 0)
    without = np.maximum((images[:, outside] ** 2).mean(axis=1) - noise, 0)
    return (within - without) / np.maximum(np.maximum(within, without), 1e-12)


def _sharpness(averages: ClassAverages, weight: Array) -> Floats:
    """Resolution of a usual class of the same size, over that of each class."""
    frc = np.clip(averages.frc.astype(np.float64), 0, 0.999)
    size = averages.size.astype(np.float64)
    # Signal over noise in one member, by ring; that of the usual class.
    single = 2 * frc / (1 - frc) / np.maximum(size, 1)[:, None]
    usual = np.array([_weighted_median(ring, weight) for ring in single.T])
    half = usual * size[:, None] / 2
    usual_rings = resolved_rings(half / (1 + half))
    own_rings = resolved_rings(frc)
    return np.where(size > 1, own_rings / np.maximum(usual_rings, 1), 0.0)


def _compactness(coordinates: Floats, members: list[Indices]) -> Floats:
    known = np.asarray(np.isfinite(coordinates).all(axis=1))
    whole = _spread(coordinates[known])
    own = np.array([_spread(coordinates[chosen[known[chosen]]]) for chosen in members])
    return np.divide(whole, own, out=np.ones(len(members)), where=own > 0)


def _spread(rows: Floats) -> float:
    """Median distance from the median place."""
    if len(rows) == 0:
        return 0.0
    return float(np.median(np.linalg.norm(rows - np.median(rows, axis=0), axis=1)))


def _weighted_median(values: Floats, weight: Array) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weight[order])
    if not len(values) or total[-1] == 0:
        return 0.0
    return float(values[order[np.searchsorted(total, total[-1] / 2)]])
