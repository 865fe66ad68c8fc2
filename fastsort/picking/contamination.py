"""Which parts of a micrograph no particle can be seen in: carbon, ice, clumps."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from fastsort._types import Array, Bools, Floats, Singles
from fastsort.images.maxima import QUARTILE, maxima_of
from fastsort.picking.planes import Surface, as_plane, filtered, gaussian, smoothed

# What is measured, in this order: mean over about half a particle, a particle, two; steps; fine structure.
MEANS = 3
N_MAPS = 5
# A place is contaminated where one of them lies so far above what particles have, in deviations.
LIMIT = 4.0
# Particles are those maxima that noise does not explain: higher than the negative's highest fiftieth. Of
# these, the strongest may be contamination.
UNEXPLAINED, WEAKEST = 0.02, 0.7
# Gaussians reach no further than this many widths.
MARGIN = 2.0
# Areas this large, in disks of a particle, that touch the edge are carbon.
CARBON = 15.0
WORDS = ("contamination", "carbon", "ice", "aggregate")
CONTAMINATION, CARBON_FILM, ICE, AGGREGATE = range(len(WORDS))


class Limits(NamedTuple):
    """What particles look like in the maps of contamination.

    Attributes
    ----------
    middle, deviation : ndarray of float64, shape (5,)
    """

    middle: Floats
    deviation: Floats


def contamination_maps(surface: Surface, width: float, sign: int) -> Singles:
    """Measure what contamination is told by.

    Parameters
    ----------
    surface : Surface
    width : float
        Of a particle, in pixels.
    sign : {-1, 1}
        Whether particles are dark or bright.

    Returns
    -------
    maps : ndarray of float32, shape (5, height, width)
        Mean over a Gaussian of a quarter of the width, half of it and all of it; logarithms of the mean
        squared slope and of the variance of fine structure.
    """
    margin = math.ceil(MARGIN * width)
    plane = as_plane(surface.pixels, margin)
    maps = np.empty((N_MAPS, *surface.pixels.shape), np.float32)
    for number, part in enumerate((0.25, 0.5, 1.0)):
        maps[number] = sign * smoothed(plane, part * width)
    slope = np.gradient(smoothed(plane, width / 6))
    maps[3] = _local(np.square(slope[0]) + np.square(slope[1]), width / 4, margin)
    fine = filtered(plane, gaussian(width / 8) - gaussian(width / 4))
    maps[4] = _local(np.square(fine), width / 2, margin)
    return maps


def _local(values: Singles, deviation: float, margin: int) -> Singles:
    mean: Singles = smoothed(as_plane(values.astype(np.float32), margin), deviation)
    return np.log(np.maximum(mean, 1e-9))


def learn_limits(
    maps: list[Singles], responses: list[Singles], usual: list[Bools], distance: float
) -> Limits | None:
    """Learn what particles look like in the maps of contamination.

    Parameters
    ----------
    maps : list of ndarray of float32, shape (5, height, width)
        As from `contamination_maps`.
    responses : list of ndarray of float32, shape (height, width)
        Of the template.
    usual : list of ndarray of bool, shape (height, width)
        Where there are few strange things.
    distance : float
        No two particles are closer, in pixels.

    Returns
    -------
    limits : Limits or None
        None where nothing stands out from noise.

    Notes
    -----
    Particles are alike, and contamination is of all kinds. So the densest value among the maxima that noise
    does not explain is the particles' (the half-sample mode), and values below it show how much they
    scatter.
    """
    up = [maxima_of(response, distance, area) for response, area in zip(responses, usual, strict=True)]
    down = [maxima_of(-response, distance, area) for response, area in zip(responses, usual, strict=True)]
    noise = np.concatenate([maxima.height for maxima in down])
    heights = np.concatenate([maxima.height for maxima in up])
    if not (len(noise) and len(heights)):
        return None
    least = np.quantile(noise, 1 - UNEXPLAINED)
    unexplained = heights[heights > least]
    if not len(unexplained):
        return None
    most = np.quantile(unexplained, WEAKEST)
    values = np.concatenate(
        [
            some[:, maxima.row, maxima.column][:, (maxima.height > least) & (maxima.height <= most)]
            for some, maxima in zip(maps, up, strict=True)
        ],
        axis=1,
    )
    middle, deviation = np.empty(N_MAPS), np.empty(N_MAPS)
    for number, some in enumerate(values.astype(np.float64)):
        middle[number] = _half_sample_mode(some)
        below = middle[number] - some[some < middle[number]]
        everywhere = np.concatenate([m[number][area] for m, area in zip(maps, usual, strict=True)])
        scatter = float(np.median(np.abs(everywhere - np.median(everywhere))))
        deviation[number] = max(float(np.median(below)) if len(below) else 0.0, scatter, 1e-9) / QUARTILE
    return Limits(middle, deviation)


def _half_sample_mode(values: Floats) -> float:
    """Return the middle of the densest values (Robertson & Cryer, J. Am. Stat. Assoc. 69, 1974)."""
    values = np.sort(values)
    while len(values) > 3:
        half = (len(values) + 1) // 2
        start = int((values[half - 1 :] - values[: len(values) - half + 1]).argmin())
        values = values[start : start + half]
    return float(values.mean())


def contaminated(maps: Singles, limits: Limits, usable: Bools) -> Bools:
    """Return where one of the maps is above what particles have, shape (height, width)."""
    bad = np.zeros(usable.shape, bool)
    for some, middle, deviation in zip(maps, limits.middle, limits.deviation, strict=True):
        bad |= some > middle + LIMIT * deviation
    return bad & usable


def kinds_of(bad: Bools, maps: Singles, limits: Limits, disk: float) -> Array:
    """Name the kind of each contaminated place.

    Parameters
    ----------
    bad : ndarray of bool, shape (height, width)
    maps, limits
        As above.
    disk : float
        Area of a particle's disk, in pixels.

    Returns
    -------
    kinds : ndarray of int8, shape (height, width)
        Of `WORDS`; 0 where no kind is likelier than the others, and -1 where nothing is contaminated.

    Notes
    -----
    A large area at the edge is carbon film. Else, what mainly is dark as a whole is ice, and what mainly has
    more fine structure than a particle is a clump of particles.
    """
    area, n = scipy.ndimage.label(bad)
    kinds = np.full(bad.shape, -1, np.int8)
    if not n:
        return kinds
    numbers = np.arange(1, n + 1)
    size = np.bincount(area.ravel(), minlength=n + 1)[1:]
    above = (maps - limits.middle[:, None, None]) / limits.deviation[:, None, None]
    mean = np.asarray(scipy.ndimage.mean(above[:MEANS].max(axis=0), area, numbers))
    fine = np.asarray(scipy.ndimage.mean(above[N_MAPS - 1], area, numbers))
    edges = np.concatenate([area[0], area[-1], area[:, 0], area[:, -1]])
    at_edge = np.isin(numbers, edges)
    kind = np.full(n, CONTAMINATION, np.int8)
    kind[(mean > LIMIT) & (mean > 2 * fine)] = ICE
    kind[(fine > LIMIT) & (fine > 2 * mean)] = AGGREGATE
    kind[at_edge & (size > CARBON * disk)] = CARBON_FILM
    kinds[bad] = kind[area[bad] - 1]
    return kinds
