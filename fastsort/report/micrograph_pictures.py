"""Micrographs as pictures for a page: reduced, levelled, and with what is contaminated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastsort._types import Bools, Floats, Singles
from fastsort.images.batches import map_batches
from fastsort.particles.mrc import MrcHeader
from fastsort.particles.reduced import ReducedMicrographs, Unread
from fastsort.picking.learn import REACH, LearnedPicks
from fastsort.picking.look import levelled
from fastsort.picking.planes import level
from fastsort.report.page_data import packed
from fastsort.report.png import Greys, png_of

# So many micrographs are shown, no larger than this in pixels of the picture.
N_SHOWN, LARGEST = 100, 900
# Percentiles of the pixels that become black and white.
_DARKEST, _BRIGHTEST = 0.5, 99.5
# Smoothed by a Gaussian of this part of a diameter, as one looks at micrographs.
_SMOOTH = 0.08


class Picture(NamedTuple):
    """A micrograph as a page shows it.

    Attributes
    ----------
    png : bytes
    area : str
        An SVG path over what is contaminated; empty where that is not known.
    height, width : int
    scale : float
        Pixels of the picture in one of the micrograph.
    """

    png: bytes
    area: str
    height: int
    width: int
    scale: float


def draw_micrographs(
    headers: Sequence[MrcHeader],
    across: float,
    learned: LearnedPicks | None = None,
    *,
    n_jobs: int | None = None,
) -> Iterator[Picture | None]:
    """Read micrographs and make pictures of them.

    Parameters
    ----------
    headers : sequence of MrcHeader
    across : float
        Diameter of the particle, in pixels of the micrographs.
    learned : LearnedPicks, optional
        What a picker learned, which tells what is contaminated.
    n_jobs : int, optional
        Workers, as joblib counts them. The pictures do not depend on it.

    Yields
    ------
    picture : Picture or None
        None in place of a micrograph that cannot be read or shows nothing.
    """
    side = max((max(header.ny, header.nx) for header in headers), default=1)
    binning = max(1, math.ceil(side / LARGEST)) if learned is None else learned.template.binning
    reduced = ReducedMicrographs(list(headers), binning)
    yield from map_batches(_draw, reduced, binning, across, learned, batch_size=1, n_jobs=n_jobs)


def _draw(
    images: list[Singles | Unread], start: int, binning: int, across: float, learned: LearnedPicks | None
) -> Picture | None:
    import scipy.ndimage

    image = images[0]
    if isinstance(image, Unread):
        return None
    if learned is not None:
        seen = levelled(image, learned)
        surface, bad = (None, None) if seen is None else seen
    else:
        surface, bad = level(image, REACH * across / binning), None
    if surface is None:
        return None
    smooth = scipy.ndimage.gaussian_filter(surface.pixels, _SMOOTH * across / binning)
    step = max(1, math.ceil(max(smooth.shape) / LARGEST))
    small = smooth[::step, ::step]
    area = "" if bad is None else _outline(bad[::step, ::step])
    height, width = small.shape
    return Picture(png_of(_greys(small)), area, height, width, 1 / (binning * step))


def picture_data(picture: Picture, src: str, x: Floats, y: Floats, across: float) -> dict[str, Any]:
    """Return what a page knows of a picture and of the places in it.

    Parameters
    ----------
    picture : Picture
    src : str
        Address of the picture.
    x, y : ndarray of float, shape (n,)
        Places, in pixels of the micrograph.
    across : float
        Diameter of the particle, in these pixels.
    """
    places = {name: np.round((side + 0.5) * picture.scale, 1) for name, side in (("x", x), ("y", y))}
    return {
        "src": src,
        "width": picture.width,
        "height": picture.height,
        "radius": round(across / 2 * picture.scale, 1),
        "area": picture.area,
        **{name: packed(side, "<f4") for name, side in places.items()},
    }


def _greys(pixels: Singles) -> Greys:
    low, high = np.percentile(pixels, (_DARKEST, _BRIGHTEST))
    span = max(float(high - low), 1e-9)
    greys: Greys = (np.clip((pixels - low) / span, 0, 1) * 63).astype(np.uint8) * np.uint8(4)
    return greys


def _outline(area: Bools) -> str:
    """Return an SVG path that covers an area: one strip for each run of pixels of a row."""
    strips = []
    padded = np.pad(area, ((0, 0), (1, 1))).astype(np.int8)
    change = np.diff(padded, axis=1)
    for row in np.flatnonzero(area.any(axis=1)).tolist():
        starts, stops = np.flatnonzero(change[row] == 1), np.flatnonzero(change[row] == -1)
        strips += [
            f"M{a} {row}h{b - a}v1h{a - b}z" for a, b in zip(starts.tolist(), stops.tolist(), strict=True)
        ]
    return "".join(strips)
