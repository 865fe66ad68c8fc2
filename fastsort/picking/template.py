"""The template: what a particle looks like in micrographs, learned from their highest places."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from fastsort._types import Bools, Floats, Singles
from fastsort.images.maxima import QUARTILE, Maxima, maxima_of
from fastsort.images.picks import NARROW, WIDE
from fastsort.picking.planes import (
    Plane,
    Surface,
    as_plane,
    filtered,
    gaussian,
    radial_curve,
    ring_power,
    smoothed,
)
from fastsort.picking.rings import rings_about

N_ROUNDS = 4
# Each round averages this share of the maxima, the highest, and so many of a micrograph at most.
SHARE, MOST_AVERAGED = 0.4, 400
# Two particles lie no closer than this, in widths of the blobs with which learning starts.
APART = 0.9
# The profile fades out from this part of its radius on.
FADE = 0.8
# Learning leaves out what lies so far from the bulk, in robust deviations, with a margin around it in widths;
# but not more than this part of the area.
STRANGE, AROUND, MOST_STRANGE = 3.5, 0.75, 0.4
# Margin of the transforms, in widths.
MARGIN = 2.0
# Heights are compared in so many steps.
N_STEPS = 24


class Template(NamedTuple):
    """A radial profile that tells particles from noise, and how.

    Attributes
    ----------
    binning : int
        Pixels of the micrographs in a pixel of the profile.
    width : float
        Of the blobs with which learning started, in pixels of the profile.
    profile : ndarray of float64, shape (n_radii,)
        In whitened micrographs, at radii of 0, 1, ... pixels.
    power : ndarray of float64, shape (n_frequencies,)
        Of the levelled micrographs: what whitening divides by.
    evidence : float
        How much heights of maxima differ from those of the micrographs' negative: a logarithm of a ratio of
        likelihoods.
    excess : float
        How many maxima more are higher than the negative's highest fiftieth than noise would have.
    deviation : float
        Of that number, if all were noise.
    """

    binning: int
    width: float
    profile: Floats
    power: Floats
    evidence: float
    excess: float
    deviation: float

    @property
    def curve(self) -> Floats:
        """The filter, for levelled micrographs."""
        return radial_curve(self.profile) / np.sqrt(self.power)


class _Learning(NamedTuple):
    """A micrograph while a template is learned: whitened, and where it is usual."""

    plane: Plane
    pixels: Singles
    usual: Bools


def usual_areas(surfaces: list[Surface], width: float) -> list[Bools]:
    """Tell where micrographs look as they do in most places.

    Parameters
    ----------
    surfaces : list of Surface
    width : float
        About that of a particle, in pixels.

    Returns
    -------
    usual : list of ndarray of bool, shape (height, width)

    Notes
    -----
    Mean and variance within a Gaussian of the width are compared with those of the bulk, in robust
    deviations. Where this would leave out a large part, less strange places are taken along, too.
    """
    means, spreads = [], []
    for surface in surfaces:
        plane = as_plane(surface.pixels, math.ceil(MARGIN * width))
        means.append(smoothed(plane, width))
        fine = filtered(plane, 1 - gaussian(width / 4))
        square = as_plane(np.square(fine), math.ceil(MARGIN * width))
        spreads.append(np.log(np.maximum(smoothed(square, width), 1e-6)))
    strange = [np.zeros(surface.pixels.shape, np.float32) for surface in surfaces]
    for maps, both_ways in ((means, True), (spreads, False)):
        middles = [np.median(values[s.usable]) for values, s in zip(maps, surfaces, strict=True)]
        apart = [values - middle for values, middle in zip(maps, middles, strict=True)]
        unit = _unit(np.concatenate([a[s.usable] for a, s in zip(apart, surfaces, strict=True)]))
        for most, values in zip(strange, apart, strict=True):
            np.maximum(most, (np.abs(values) if both_ways else values) / unit, out=most)
    everything = np.concatenate([values[s.usable] for values, s in zip(strange, surfaces, strict=True)])
    limit = STRANGE
    while True:
        areas = [
            without(surface.usable, (values > limit) & surface.usable, AROUND * width)
            for values, surface in zip(strange, surfaces, strict=True)
        ]
        left = sum(int(area.sum()) for area in areas) / max(1, everything.size)
        if left >= 1 - MOST_STRANGE or limit > everything.max():
            return areas
        limit *= 1.3


def _unit(values: Singles) -> float:
    """Return the robust deviation of values about their median."""
    return max(float(np.median(np.abs(values - np.median(values)))) / QUARTILE, 1e-9)


def without(usable: Bools, bad: Bools, margin: float) -> Bools:
    """Return what is usable and further than a margin, in pixels, from bad places."""
    if not bad.any():
        return usable
    far: Bools = usable & (scipy.ndimage.distance_transform_edt(~bad) > margin)
    return far


def learn_template(
    surfaces: list[Surface],
    usual: list[Bools],
    binning: int,
    width: float,
    start: Template | None = None,
) -> Template | None:
    """Learn the radial profile that stands out from noise most.

    Parameters
    ----------
    surfaces : list of Surface
    usual : list of ndarray of bool
        Where to learn, as from `usual_areas`.
    binning : int
        As for `Template`.
    width : float
        Of the blobs with which learning starts, in pixels.
    start : Template, optional
        Learning starts with its profile instead of blobs; it has the same binning and width.

    Returns
    -------
    template : Template or None
        None where nothing can be learned.

    Notes
    -----
    Noise has no sign: its maxima look like minima turned upside down. So the minima of a micrograph show
    what maxima of noise look like, whatever its spectrum, and what the mean over the highest maxima has that
    the mean over the lowest minima has not is the particle. That difference is the next filter. In whitened
    micrographs it is Fisher's discriminant. After four rounds the one is kept whose heights differ most from
    the negative's.
    """
    planes = _whitened(surfaces, usual, width)
    if planes is None:
        return None
    learning, power = planes
    n_radii = math.ceil(width)
    profile = None if start is None else start.profile
    curve = _blob(width) if profile is None else radial_curve(profile)
    best: Template | None = None
    for step in range(N_ROUNDS + 1):
        highest, lowest = [], []
        for one in learning:
            response = filtered(one.plane, curve)
            highest.append(maxima_of(response, APART * width, one.usual))
            lowest.append(maxima_of(-response, APART * width, one.usual))
        up, down = (np.concatenate([maxima.height for maxima in some]) for some in (highest, lowest))
        if not (len(up) and len(down)):
            return best
        if profile is not None:
            found = Template(binning, width, profile, power, evidence(up, down), *_excess(up, down))
            if best is None or found.evidence > best.evidence:
                best = found
        if step < N_ROUNDS:
            means = (
                _mean_profile(learning, highest, up, n_radii),
                _mean_profile(learning, lowest, down, n_radii),
            )
            profile = _faded(means[0] + means[1])
            curve = radial_curve(profile)
    return best


def _whitened(
    surfaces: list[Surface], usual: list[Bools], width: float
) -> tuple[list[_Learning], Floats] | None:
    margin = math.ceil(MARGIN * width)
    planes = []
    for surface, area in zip(surfaces, usual, strict=True):
        planes.append(as_plane(np.where(area, surface.pixels, np.float32(0)), margin))
    areas = [int(area.sum()) for area in usual]
    if not sum(areas):
        return None
    power = ring_power(planes, areas)
    learning = []
    for plane, area in zip(planes, usual, strict=True):
        pixels = filtered(plane, 1 / np.sqrt(power)) * area
        learning.append(_Learning(as_plane(pixels, margin), pixels, area))
    return learning, power


def _blob(width: float) -> Floats:
    """Return the curve of a blob: a difference of Gaussians. The sign does not matter."""
    return gaussian(NARROW * width / 2) - gaussian(WIDE * width / 2)


def _mean_profile(learning: list[_Learning], maxima: list[Maxima], height: Floats, n_radii: int) -> Floats:
    """Average the rings about the highest places."""
    limit = np.quantile(height, 1 - SHARE)
    total, number = np.zeros(n_radii), 0
    for one, some in zip(learning, maxima, strict=True):
        # The highest come first.
        n = min(MOST_AVERAGED, int((some.height >= limit).sum()))
        if n:
            total += rings_about(one.pixels, some.row[:n], some.column[:n], n_radii)[0].sum(axis=0)
            number += n
    return total / max(number, 1)


def _faded(profile: Floats) -> Floats:
    """Let a profile end in zero, and have no mean."""
    radius, n = np.arange(len(profile)), len(profile)
    weight = np.maximum(radius, 0.25)
    profile = profile - profile[int(FADE * n) :].mean()
    profile = profile * np.clip((n - radius) / ((1 - FADE) * n), 0, 1)
    faded: Floats = profile - (profile @ weight) / weight.sum()
    return faded


def evidence(up: Floats, down: Floats) -> float:
    """Return how surely maxima and those of the negative differ in height.

    Parameters
    ----------
    up, down : ndarray of float64, shapes (n,) and (m,)
        Heights.

    Returns
    -------
    evidence : float
        Logarithm of the likelihood ratio of two histograms against a common one, summed over the heights
        that are more frequent among the maxima.
    """
    edges = np.unique(np.quantile(np.concatenate([up, down]), np.linspace(0, 1, N_STEPS + 1)))
    edges[0], edges[-1] = -np.inf, np.inf
    above, below = (np.histogram(heights, edges)[0] / len(heights) for heights in (up, down))
    # As if both had as many: a filter may make more maxima than minima of noise.
    number = 2 * len(up) * len(down) / (len(up) + len(down))
    above, below = above * number + 0.5, below * number + 0.5
    common = (above + below) / 2
    ratio = above * np.log(above / common) + below * np.log(below / common)
    return float(ratio[above > below].sum())


def _excess(up: Floats, down: Floats) -> tuple[float, float]:
    limit = np.quantile(down, 0.98)
    expected = 0.02 * len(down)
    # Both counts scatter.
    return float((up > limit).sum() - expected), math.sqrt(2 * expected)
