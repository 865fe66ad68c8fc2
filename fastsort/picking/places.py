"""Places where particles may be, and what is measured there."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastsort._types import Bools, Floats, Indices, Singles
from fastsort.images.maxima import deviation_from_zero, maxima_of
from fastsort.picking.planes import Surface, as_plane, filtered, gaussian, smoothed
from fastsort.picking.rings import rings_about
from fastsort.picking.template import Template

# Maxima below this height are noise and not even looked at.
LEAST_HEIGHT = 1.5
# Rings reach so far, in radii of the particle, in so many steps.
REACH, N_STEPS = 1.5, 8
# Structures of so many pixels are told apart.
FINE = (1.0, 2.0, 4.0)
MARGIN = 2.0
# The columns of the features, by what they measure.
_MEANS = slice(1, 1 + N_STEPS)
_SPREADS = slice(_MEANS.stop, _MEANS.stop + N_STEPS)
_SURFACE = slice(_SPREADS.stop, _SPREADS.stop + N_STEPS)
_BANDS = slice(_SURFACE.stop, _SURFACE.stop + len(FINE))
N_FEATURES = _BANDS.stop
# Three views of them: no distribution is normal in all of them, and their mean is surer than each.
VIEWS: tuple[Indices, ...] = tuple(
    np.concatenate([[0], *(np.arange(part.start, part.stop) for part in parts)])
    for parts in ((_MEANS, _BANDS), (_MEANS, _SPREADS, _BANDS), (_SURFACE, _SPREADS, _BANDS))
)


class Places(NamedTuple):
    """Places of one micrograph, the highest first.

    Attributes
    ----------
    row, column : ndarray of float64, shape (m,)
        In pixels of the reduced micrograph, between pixels.
    height : ndarray of float64, shape (m,)
    features : ndarray of float64, shape (m, 28)
    """

    row: Floats
    column: Floats
    height: Floats
    features: Floats

    @property
    def pixel(self) -> tuple[Indices, Indices]:
        """Rows and columns of the nearest pixels."""
        return np.rint(self.row).astype(np.intp), np.rint(self.column).astype(np.intp)

    def some(self, which: Bools | Indices) -> Places:
        """Return some of the places."""
        return Places(*(values[which] for values in self))


def response_of(surface: Surface, template: Template, unit_area: Bools) -> Singles:
    """Filter a micrograph with the template; the result has deviation 1 where nothing is strange."""
    response = filtered(as_plane(surface.pixels, math.ceil(MARGIN * template.width)), template.curve)
    unit = deviation_from_zero(response[unit_area])
    scaled: Singles = response / np.float32(unit) if unit > 0 else np.zeros_like(response)
    return scaled


def find_places(
    surface: Surface,
    response: Singles,
    template: Template,
    area: Bools,
    diameter: float,
    distance: float,
    sign: int,
    negative: bool = False,
) -> Places:
    """Find maxima of the response, and measure what is there.

    Parameters
    ----------
    surface : Surface
    response : ndarray of float32, shape (height, width)
        As from `response_of`.
    template : Template
    area : ndarray of bool, shape (height, width)
        Where places may lie.
    diameter, distance : float
        Of the particle, and the least between two; in pixels.
    sign : {-1, 1}
        Whether particles are dark or bright.
    negative : bool
        Whether to look at the micrograph's negative.

    Returns
    -------
    places : Places
    """
    if negative:
        response = -response
        sign = -sign
    maxima = maxima_of(response, distance, area)
    high = maxima.height > LEAST_HEIGHT
    row, column, height = maxima.row[high], maxima.column[high], maxima.height[high]
    features = np.empty((len(row), N_FEATURES))
    features[:, 0] = np.log(height)
    plane = as_plane(surface.pixels, math.ceil(MARGIN * template.width))
    white = filtered(plane, 1 / np.sqrt(template.power))
    n_rings = int(REACH * diameter / 2) + 1
    steps = _steps(n_rings, REACH * diameter / 2)
    mean, variance = rings_about(white, row, column, n_rings)
    # The whitened template has the particle's sign in it: what matters is whether this is the negative.
    turn = -1.0 if negative else 1.0
    features[:, _MEANS] = turn * mean @ steps
    features[:, _SPREADS] = np.log(np.maximum(variance @ steps, 1e-9))
    features[:, _SURFACE] = sign * rings_about(surface.pixels, row, column, n_rings)[0] @ steps
    for number, size in enumerate(FINE):
        band = np.square(filtered(plane, gaussian(size / 2) - gaussian(size)))
        power = smoothed(as_plane(band, plane.margin), diameter / 3)
        features[:, _BANDS.start + number] = np.log(np.maximum(power[row, column], 1e-9))
    down, right = _between(response, row, column)
    return Places(row + down, column + right, height, features)


def _steps(n_rings: int, reach: float) -> Floats:
    """Return what averages rings into steps, shape (n_rings, 8)."""
    radius = np.arange(n_rings)
    step = np.minimum((radius / reach * N_STEPS).astype(np.intp), N_STEPS - 1)
    weight = np.zeros((n_rings, N_STEPS))
    weight[radius, step] = np.maximum(radius, 0.25)
    averaging: Floats = weight / np.maximum(weight.sum(axis=0), 1e-9)
    return averaging


def _between(response: Singles, row: Indices, column: Indices) -> tuple[Floats, Floats]:
    """Return how far from its pixel each maximum lies: the vertex of a parabola through three pixels."""
    return (
        _vertex(*(_at(response, row + step, column) for step in (-1, 0, 1))),
        _vertex(*(_at(response, row, column + step) for step in (-1, 0, 1))),
    )


def _at(response: Singles, row: Indices, column: Indices) -> Floats:
    height, width = response.shape
    values: Floats = response[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)].astype(np.float64)
    return values


def _vertex(before: Floats, here: Floats, after: Floats) -> Floats:
    bend = before - 2 * here + after
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = np.where(bend < 0, 0.5 * (before - after) / bend, 0.0)
    return np.clip(shift, -0.5, 0.5)
