"""What a picker learns from a few micrographs, before it looks at all of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastsort._process import one_blas_thread
from fastsort._types import Bools, Floats, Indices, Singles
from fastsort.images.maxima import maxima_of
from fastsort.particles.mrc import MrcHeader
from fastsort.particles.reduced import ReducedMicrographs, Unread, block_averages
from fastsort.picking.averages import (
    LEAST_COMPARED,
    Averages,
    learn_averages,
    recentred,
    whitened,
    with_distributions,
)
from fastsort.picking.contamination import Limits, contaminated, contamination_maps, learn_limits
from fastsort.picking.mixture import Mixture, best_cut, fit_mixture, probabilities
from fastsort.picking.places import VIEWS, Places, find_places, response_of
from fastsort.picking.planes import Surface, level
from fastsort.picking.rings import rings_about
from fastsort.picking.template import Template, learn_template, usual_areas, without

# Learning starts with blobs of these widths, in angstroms; each is wider than the one before by this ratio.
# Without a pixel size the least width is a part of the micrograph's shorter side.
NARROWEST, WIDEST, STEP = 50.0, 450.0, 1.3
NARROWEST_PART, WIDEST_PART = 1 / 60, 1 / 5
# No particle is told from noise by fewer pixels.
LEAST_PIXELS = 8.0
# While widths are compared, a width takes about so many pixels; afterwards the diameter takes so many. More
# than that tell no more, and take longer.
COARSE, FINE = 10, 12
# Blobs that have most evidence are this much narrower than the particle; learning starts with some such
# widths, since from one it may end in a side maximum.
OF_DIAMETER, STARTS = 0.8, (0.6, 0.8, 1.0)
# Heights of noise differ from those of its negative by less than this, at the most striking of all widths and
# at a given one (24 sets of noise: at most 10.3).
LEAST_EVIDENCE, LEAST_AT_ONE = 20.0, 15.0
# The background is averaged over a Gaussian of so many widths.
REACH = 3.0
N_ROUNDS = 2
# If a round leaves less than this part of the evidence, particles were taken for contamination.
LOST = 0.5
# Contamination spoils what lies so near, in diameters.
NEAR = 0.25
# Two particles are no closer than this, in diameters.
APART = 0.65
# Maxima above this quantile of the negative's are particles often enough to tell whether these are dark.
UNEXPLAINED = 0.98
# While widths are compared, so many squares of a width are looked at in each micrograph: with fewer, ice in
# the middle of a few passes for particles.
MOST_SQUARES = 4000
# Evidence below this is noise's.
NO_EVIDENCE = 8.0
# A view never says more surely no.
LEAST_PART = 1e-4
# Widths with a third of the most evidence and less count as past; after so many, narrower ones are left out.
PAST, N_PAST = 1 / 3, 4


class LearnedPicks(NamedTuple):
    """What tells particles from everything else in micrographs of one kind.

    Attributes
    ----------
    template : Template
    limits : Limits
        Of contamination.
    views : tuple of ndarray of intp
        Columns of the features, one array a mixture.
    mixtures : tuple of Mixture
    diameter : float
        In pixels of the micrographs.
    sign : int
        -1 where particles are darker than the background, 1 where they are brighter.
    cut : float
        Least probability of a particle that is kept.
    averages : Averages or None
        None where there were too few particles to average.
    """

    template: Template
    limits: Limits
    views: tuple[Indices, ...]
    mixtures: tuple[Mixture, ...]
    diameter: float
    sign: int
    cut: float
    averages: Averages | None = None

    @property
    def width(self) -> float:
        """The diameter in pixels of the reduced micrographs."""
        return self.diameter / self.template.binning

    def probabilities(self, places: Places) -> Floats:
        """Return how likely each place is a particle, and how likely it is foreign, shape (m, 2).

        Both are geometric means over the views: one view that knows better is enough to say no.
        """
        total = np.zeros((len(places.height), 2))
        for view, mixture in zip(self.views, self.mixtures, strict=True):
            parts = probabilities(places.features[:, view], places.height, mixture)[:, 1:]
            total += np.log(np.maximum(parts, LEAST_PART))
        mean: Floats = np.exp(total / len(self.mixtures))
        return mean


def search_binning(pixel_size: float, side: int) -> int:
    """Return with which binning micrographs are read to find the diameter.

    Parameters
    ----------
    pixel_size : float
        In angstroms; NaN when unknown.
    side : int
        The shorter side of a micrograph, in pixels.
    """
    return max(1, int(start_widths(pixel_size, side)[0] / COARSE))


def picking_binning(diameter: float) -> int:
    """Return with which binning micrographs are read to pick particles of a diameter in pixels."""
    return max(1, round(diameter / FINE))


def start_widths(pixel_size: float, side: int) -> list[float]:
    """Return widths of blobs with which learning may start, in pixels, ascending."""
    if math.isfinite(pixel_size):
        least, most = NARROWEST / pixel_size, WIDEST / pixel_size
    else:
        least, most = NARROWEST_PART * side, WIDEST_PART * side
    least = max(least, LEAST_PIXELS)
    most = max(min(most, WIDEST_PART * side), least)
    return [least * STEP**k for k in range(int(math.log(most / least) / math.log(STEP)) + 1)]


def learn_from(
    headers: list[MrcHeader], pixel_size: float, diameter: float | None = None
) -> LearnedPicks | None:
    """Read a few micrographs and learn from them.

    Parameters
    ----------
    headers : list of MrcHeader
        Those that cannot be read are left out.
    pixel_size : float
        In angstroms; NaN when unknown.
    diameter : float, optional
        In pixels of the micrographs; by default it is found.

    Returns
    -------
    learned : LearnedPicks or None
        None where nothing stands out from noise, or nothing can be read.
    """
    with one_blas_thread():
        if diameter is None:
            side = min(min(header.ny, header.nx) for header in headers)
            binning = search_binning(pixel_size, side)
            images = _readable(headers, binning)
            diameter = find_diameter(images, binning, pixel_size) if images else None
        if diameter is None:
            return None
        binning = picking_binning(diameter)
        return learn_picks(_readable(headers, binning), binning, diameter)


def _readable(headers: list[MrcHeader], binning: int) -> list[Singles]:
    images = ReducedMicrographs(headers, binning).read(0, len(headers))
    return [image for image in images if not isinstance(image, Unread)]


def find_diameter(images: list[Singles], binning: int, pixel_size: float) -> float | None:
    """Find the size of the particles in a few micrographs.

    Parameters
    ----------
    images : list of ndarray of float32, shape (height, width)
        Reduced by `search_binning`.
    binning : int
    pixel_size : float
        Of the micrographs as they were, in angstroms; NaN when unknown.

    Returns
    -------
    diameter : float or None
        In pixels of the micrographs as they were; None where nothing stands out from noise.

    Notes
    -----
    Blobs of many widths each teach a template. The evidence of each says how much heights of its maxima
    differ from those of the micrographs' negative; the width with most evidence
    is four fifths of the diameter.
    """
    widths = start_widths(pixel_size, min(min(image.shape) for image in images) * binning)
    found: list[tuple[float, float]] = []
    best = 0.0
    past = 0
    # The wider a blob is, the less work it makes.
    for width in reversed(widths):
        more = max(1, int(width / binning / COARSE))
        across = width / (binning * more)
        pieces = [_middle(block_averages(image, more), across) for image in images]
        surfaces = [s for s in (level(piece, REACH * across) for piece, _ in pieces) if s is not None]
        if not surfaces:
            return None
        template = learn_template(surfaces, usual_areas(surfaces, across), binning * more, across)
        if template is None:
            continue
        # Evidence grows with the area.
        part = sum(piece.size for piece, _ in pieces) / sum(size for _, size in pieces)
        evidence = max(template.evidence - NO_EVIDENCE, 0.0) / part
        if template.evidence > LEAST_EVIDENCE:
            best = max(best, evidence)
        found.append((width, evidence))
        past = past + 1 if evidence < PAST * best else 0
        if past == N_PAST:
            break
    if not best > 0:
        return None
    return _width_with_most(found) / OF_DIAMETER


def _width_with_most(found: list[tuple[float, float]]) -> float:
    """Return the width with most evidence, between those tried: a parabola through the best three."""
    widths, evidence = np.array(found).T
    best = int(evidence.argmax())
    if not 0 < best < len(found) - 1:
        return float(widths[best])
    before, here, after = evidence[best - 1 : best + 2]
    bend = before - 2 * here + after
    shift = 0.5 * (before - after) / bend if bend < 0 else 0.0
    # Neighbours differ by one ratio.
    return float(widths[best] * (widths[best + 1] / widths[best]) ** shift)


def _middle(image: Singles, width: float) -> tuple[Singles, int]:
    """Return the middle of an image, no more than `MOST_SQUARES` wide squares, and the size of the whole."""
    most = math.ceil(math.sqrt(MOST_SQUARES) * width)
    top, left = (max(0, (side - most) // 2) for side in image.shape)
    return image[top : top + most, left : left + most], image.size


def learn_picks(images: list[Singles], binning: int, across: float) -> LearnedPicks | None:
    """Learn from a few micrographs what particles look like in them.

    Parameters
    ----------
    images : list of ndarray of float32, shape (height, width)
        Reduced by `picking_binning`.
    binning : int
    across : float
        The diameter, in pixels of the micrographs as they were.

    Returns
    -------
    learned : LearnedPicks or None
        None where nothing stands out from noise.

    Notes
    -----
    A template is learned where micrographs look usual. With it contamination is told from particles, and the
    template learned once more without it, twice over. Last come the mixtures that tell particles, noise and
    the rest apart.
    """
    diameter = across / binning
    levelled = [level(image, REACH * diameter) for image in images]
    surfaces = [surface for surface in levelled if surface is not None]
    if not surfaces:
        return None
    usable = [surface.usable for surface in surfaces]
    usual = usual_areas(surfaces, diameter)
    starts = [learn_template(surfaces, usual, binning, part * diameter) for part in STARTS]
    template = max((t for t in starts if t is not None), key=lambda t: t.evidence, default=None)
    if template is None or template.evidence < LEAST_AT_ONE:
        return None
    sign = _sign_of(surfaces, usual, template, diameter)
    maps = [contamination_maps(surface, diameter, sign) for surface in surfaces]
    limits: Limits | None = None
    for _ in range(N_ROUNDS):
        responses = [response_of(s, template, area) for s, area in zip(surfaces, usual, strict=True)]
        limits = learn_limits(maps, responses, usual, APART * diameter)
        if limits is None:
            return None
        bad = [contaminated(m, limits, area) for m, area in zip(maps, usable, strict=True)]
        clean = [without(a, b, NEAR * diameter) for a, b in zip(usable, bad, strict=True)]
        again = learn_template(surfaces, clean, binning, template.width, template)
        if again is None or again.evidence < LOST * template.evidence:
            # What looked like contamination were the particles.
            limits = limits._replace(deviation=np.full_like(limits.deviation, np.inf))
            break
        template, usual = again, clean
    if limits is None or template.evidence < LEAST_AT_ONE:
        return None
    return _with_mixtures(surfaces, usual, template, limits, across, sign)


def _with_mixtures(
    surfaces: list[Surface], usual: list[Bools], template: Template, limits: Limits, across: float, sign: int
) -> LearnedPicks | None:
    width = across / template.binning
    both: list[list[Places]] = [[], []]
    for surface, area in zip(surfaces, usual, strict=True):
        response = response_of(surface, template, area)
        for negative in (False, True):
            both[negative].append(
                find_places(surface, response, template, area, width, APART * width, sign, negative)
            )
    (features, height), (negative_features, negative_height) = (
        (np.concatenate([p.features for p in places]), np.concatenate([p.height for p in places]))
        for places in both
    )
    fitted: list[tuple[Indices, Mixture]] = []
    # Few particles teach little: where they are too few for any view, their heights have to do.
    for view in (*VIEWS, np.zeros(1, np.intp)):
        mixture = fit_mixture(features[:, view], negative_features[:, view], height, negative_height)
        if mixture is not None and (len(view) > 1 or not fitted):
            fitted.append((view, mixture))
    if not fitted:
        return None
    views, mixtures = zip(*fitted, strict=True)
    learned = LearnedPicks(template, limits, views, mixtures, across, sign, 1.0)
    everything = Places(height, height, height, features)
    learned = learned._replace(cut=best_cut(learned.probabilities(everything)[:, 0]))
    return _with_averages(learned, surfaces, usual, *both)


def _with_averages(
    learned: LearnedPicks,
    surfaces: list[Surface],
    usual: list[Bools],
    places: list[Places],
    negative: list[Places],
) -> LearnedPicks:
    whites = [whitened(s, learned.template, area) for s, area in zip(surfaces, usual, strict=True)]
    likely = [learned.probabilities(some) for some in places]
    sure = []
    for some, parts in zip(places, likely, strict=True):
        order = np.argsort(-parts[:, 0], kind="stable")
        order = order[parts[order, 0] >= learned.cut]
        row, column = some.pixel
        sure.append((row[order], column[order]))
    averages = learn_averages(whites, sure, learned.width)
    if averages is None:
        return learned
    distance = APART * learned.width
    found = [
        recentred(white, some, parts[:, 0] >= LEAST_COMPARED, averages, distance)
        for white, some, parts in zip(whites, places, likely, strict=True)
    ]
    noise = [
        recentred(-white, some, np.ones(len(some.height), bool), averages, distance)[1]
        for white, some in zip(whites, negative, strict=True)
    ]
    measured = np.concatenate([part for _, part, _ in found])
    before = np.concatenate([parts[stays] for parts, (_, _, stays) in zip(likely, found, strict=True)])
    averages = with_distributions(averages, measured, before, np.concatenate(noise))
    cut = best_cut(averages.likely(measured, before)[:, 0])
    return learned._replace(averages=averages, cut=cut)


def _sign_of(surfaces: list[Surface], usual: list[Bools], template: Template, diameter: float) -> int:
    """Tell whether particles are darker (-1) or brighter (1) than what is around them."""
    n_rings = math.ceil(2 * diameter)
    responses = [response_of(s, template, area) for s, area in zip(surfaces, usual, strict=True)]
    lowest = [maxima_of(-r, APART * diameter, area).height for r, area in zip(responses, usual, strict=True)]
    least = float(np.quantile(np.concatenate(lowest), UNEXPLAINED)) if any(map(len, lowest)) else 0.0
    profile = np.zeros(n_rings)
    for surface, response, area in zip(surfaces, responses, usual, strict=True):
        maxima = maxima_of(response, APART * diameter, area, least)
        profile += rings_about(surface.pixels, maxima.row, maxima.column, n_rings)[0].sum(axis=0)
    weight = np.maximum(np.arange(n_rings), 0.25)
    inside = max(1, round(diameter / 2))
    within = (profile[:inside] @ weight[:inside]) / weight[:inside].sum()
    return 1 if within > (profile @ weight) / weight.sum() else -1
