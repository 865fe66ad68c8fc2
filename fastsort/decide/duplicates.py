"""Duplicates: particles that were picked more than once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from fastsort._checks import InputError, check_positive
from fastsort._types import Bools, Floats, Indices
from fastsort.particles.places import Places, micrograph_places
from fastsort.particles.source import Particles


def find_duplicates(
    places: Places, distance_px: float, score: npt.ArrayLike, *, offset_px: npt.ArrayLike | None = None
) -> Bools:
    """Find particles that were picked more than once in the same micrograph.

    The images of a micrograph are visited from the lowest score to the highest,
    of equal scores the earlier first: an image is a duplicate if one that was
    visited before, and is no duplicate itself, lies closer than the distance.

    Parameters
    ----------
    places : Places
        As from `micrograph_places`.
    distance_px : float
        In pixels of the micrograph.
    score : array of float, shape (n,)
        Larger for junk; NaN counts as the largest.
    offset_px : array of float, shape (n, 2), optional
        Where the particle lies from the centre of its image: row and column, in
        pixels of the micrograph. Added to the coordinates, so that two picks of
        one particle are told by where the particle is. NaN counts as 0.

    Returns
    -------
    duplicate : ndarray of bool, shape (n,)
        All False where there are no coordinates; False for an image whose own
        are not finite.

    Raises
    ------
    InputError
        If the distance is not positive, or scores or offsets are not one for each image.
    """
    distance = check_positive("distance_px", distance_px, "px")
    n = len(places.micrograph)
    scores = np.asarray(score, np.float64)
    if scores.shape != (n,):
        raise InputError(f"score must have shape ({n},), one for each image; got {scores.shape}.")
    duplicate = np.zeros(n, bool)
    if places.x is None or places.y is None:
        return duplicate
    points = np.stack([places.x, places.y], axis=1)
    if offset_px is not None:
        offset = np.asarray(offset_px, np.float64)
        if offset.shape != (n, 2):
            raise InputError(f"offset_px must have shape ({n}, 2), row and column; got {offset.shape}.")
        points += np.where(np.isfinite(offset), offset, 0)[:, ::-1]
    order = np.argsort(scores, kind="stable")
    order = order[np.isfinite(points[order]).all(axis=1)]
    order = order[np.argsort(places.micrograph[order], kind="stable")]
    stops = np.flatnonzero(np.diff(places.micrograph[order], append=-1)) + 1
    start = 0
    for stop in stops.tolist():
        if stop - start > 1:
            images = order[start:stop]
            duplicate[images] = _near_an_earlier(points[images], distance)
        start = stop
    return duplicate


def _near_an_earlier(points: Floats, distance: float) -> Bools:
    """Tell which points lie closer than the distance to an earlier one that does not itself."""
    # Points in one place would be as many pairs as their number squared; the first stands for all.
    places, first = np.unique(points, axis=0, return_index=True)
    near = np.ones(len(points), bool)
    near[first] = False
    pairs = cKDTree(places).query_pairs(distance, output_type="ndarray")
    if len(pairs) == 0:
        return near
    apart = places[pairs[:, 0]] - places[pairs[:, 1]]
    pairs = pairs[np.hypot(apart[:, 0], apart[:, 1]) < distance]
    pairs = np.sort(first[pairs], axis=1)
    pairs = pairs[np.argsort(pairs[:, 1])]
    # When an image comes first in a pair, all pairs in which it comes second have been looked at.
    for earlier, later in pairs.tolist():
        if not near[earlier]:
            near[later] = True
    return near


def find_all_duplicates(particles: Particles, distance: float, score: Floats, rows: Indices) -> Bools:
    """Find images of particles that a better image shows too.

    Parameters
    ----------
    particles : Particles
        As from `open_particles`. Segments of filaments, where neighbours lie close to each other, are no
        duplicates of each other.
    distance : float
        Between picks of one micrograph, in angstroms; 0 finds none.
    score : ndarray of float64, shape (m,)
        Larger for junk.
    rows : ndarray of intp, shape (m,)
        The particles that have these scores. All others are copies of them, and no duplicates.

    Returns
    -------
    duplicate : ndarray of bool, shape (m,)
        Of images that were picked closer together than the distance, all but the best.
    """
    none = np.zeros(len(rows), dtype=bool)
    if not distance:
        return none
    if particles.outside is not None:
        # These images are rejected anyway, so no other image may be a duplicate of them.
        score = np.where(particles.outside[rows], np.inf, score)
    places = micrograph_places(particles)
    if places is None or places.x is None or places.y is None or particles.table.has_segments:
        return none
    pixel_size = np.where(
        np.isfinite(places.coordinate_pixel_size), places.coordinate_pixel_size, particles.own_pixel_size
    )
    x, y = (places.x * pixel_size)[rows], (places.y * pixel_size)[rows]
    places = places._replace(micrograph=places.micrograph[rows], x=x, y=y)
    return find_duplicates(places, distance, score)
