"""One micrograph, looked at with what was learned."""

from __future__ import annotations

from typing import NamedTuple

from fastsort._types import Bools, Floats, Singles
from fastsort.picking.averages import LEAST_COMPARED, recentred, whitened
from fastsort.picking.contamination import contaminated, contamination_maps
from fastsort.picking.learn import APART, NEAR, REACH, LearnedPicks
from fastsort.picking.places import Places, find_places, response_of
from fastsort.picking.planes import Surface, level
from fastsort.picking.template import without


class Seen(NamedTuple):
    """What a micrograph shows.

    Attributes
    ----------
    surface : Surface
    maps : ndarray of float32, shape (5, height, width)
        Of contamination.
    bad, clean : ndarray of bool, shape (height, width)
        Where it is contaminated, and where it is usable and far enough from that.
    places : Places
        In pixels of the reduced micrograph; also in what is not clean.
    likely : ndarray of float64, shape (m, 2)
        How likely each place is a particle, and how likely it is foreign.
    """

    surface: Surface
    maps: Singles
    bad: Bools
    clean: Bools
    places: Places
    likely: Floats


def look_at(image: Singles, learned: LearnedPicks, margin: float | None = None) -> Seen | None:
    """Find the places of a micrograph.

    Parameters
    ----------
    image : ndarray of float32, shape (height, width)
        Reduced by the template's binning.
    learned : LearnedPicks
    margin : float, optional
        How far contamination reaches, in pixels of the reduced micrograph; by default a quarter of the
        diameter.

    Returns
    -------
    seen : Seen or None
        None where the micrograph shows nothing at all.
    """
    width = learned.width
    surface = level(image, REACH * width)
    if surface is None:
        return None
    maps, bad, clean = _contamination(surface, learned, margin)
    response = response_of(surface, learned.template, clean)
    places = find_places(
        surface, response, learned.template, surface.usable, width, APART * width, learned.sign
    )
    likely = learned.probabilities(places)
    averages = learned.averages
    if averages is not None:
        white = whitened(surface, learned.template, clean)
        which = likely[:, 0] >= LEAST_COMPARED
        places, measured, stays = recentred(white, places, which, averages, APART * width)
        likely = averages.likely(measured, likely[stays])
    return Seen(surface, maps, bad, clean, places, likely)


def levelled(image: Singles, learned: LearnedPicks) -> tuple[Surface, Bools] | None:
    """Return the surface of a micrograph, and where it is contaminated, as in `Seen`, without looking for
    places; None where it shows nothing.
    """
    surface = level(image, REACH * learned.width)
    return None if surface is None else (surface, _contamination(surface, learned, None)[1])


def clean_area(image: Singles, learned: LearnedPicks) -> Bools | None:
    """Return where a micrograph is usable and not contaminated, as in `Seen`; None where it shows nothing."""
    surface = level(image, REACH * learned.width)
    return None if surface is None else _contamination(surface, learned, None)[2]


def _contamination(
    surface: Surface, learned: LearnedPicks, margin: float | None
) -> tuple[Singles, Bools, Bools]:
    maps = contamination_maps(surface, learned.width, learned.sign)
    bad = contaminated(maps, learned.limits, surface.usable)
    return maps, bad, without(surface.usable, bad, NEAR * learned.width if margin is None else margin)
