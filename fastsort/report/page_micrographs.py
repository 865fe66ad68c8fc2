"""The micrographs of the page: those at hand, with the images that were picked in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from fastsort._checks import InputError
from fastsort._types import Indices
from fastsort.decide.result import SortResult
from fastsort.particles.extract import MicrographImages
from fastsort.particles.files import locate_files
from fastsort.particles.mrc import MrcHeader, read_header
from fastsort.particles.places import Places, micrograph_places
from fastsort.particles.source import Particles, evenly_spaced
from fastsort.report.micrograph_pictures import N_SHOWN, draw_micrographs, picture_data
from fastsort.report.page_data import packed

# Of micrographs that the run itself does not need, so many are read: each may have 64 MB.
N_UNASKED = 24


class AtHand(NamedTuple):
    """Micrographs whose files are at hand, and where the images lie in them.

    Attributes
    ----------
    places : Places
    numbers : list of int
        Of the micrographs that are shown.
    headers : list of MrcHeader
        Of these.
    """

    places: Places
    numbers: list[int]
    headers: list[MrcHeader]

    @property
    def files(self) -> list[str]:
        """Names of the pictures."""
        return [f"micrograph_{number:05d}.png" for number in self.numbers]


def micrographs_at_hand(particles: Particles, result: SortResult) -> AtHand | None:
    """Find the files of micrographs, if there are any, and choose which to show.

    Parameters
    ----------
    particles : Particles
    result : SortResult

    Returns
    -------
    at_hand : AtHand or None
        Up to a hundred micrographs, or 24 where particles were not extracted from them: those of which most
        is kept, those of which least is, and evenly between. None where the input does not say where images
        were picked, or none of these files is found.
    """
    try:
        places = micrograph_places(particles)
    except InputError:
        return None
    if places is None or places.x is None:
        return None
    share = np.bincount(places.micrograph, result.keep) / np.bincount(places.micrograph)
    order = np.argsort(-share, kind="stable")
    most = N_SHOWN if isinstance(particles.store, MicrographImages) else N_UNASKED
    chosen = np.sort(order[evenly_spaced(len(order), most)]).tolist()
    found = [(number, header) for number, header in _headers(particles, places, chosen) if header is not None]
    return AtHand(places, [number for number, _ in found], [header for _, header in found]) if found else None


def _headers(particles: Particles, places: Places, chosen: list[int]) -> list[tuple[int, MrcHeader | None]]:
    store = particles.store
    if isinstance(store, MicrographImages):
        first = np.unique(places.micrograph, return_index=True)[1]
        return [(number, store.micrographs[store.micrograph_of[first[number]]]) for number in chosen]
    folder = particles.opened_with.get("data_dir")
    try:
        paths = locate_files([places.names[number] for number in chosen], str(particles.path), folder)
    except OSError:
        paths = [None] * len(chosen)
    return [(number, _header(path)) for number, path in zip(chosen, paths, strict=True)]


def _header(path: str | None) -> MrcHeader | None:
    """Return the header of a file; None if there is none, or it is no micrograph."""
    if path is None:
        return None
    try:
        header = read_header(path)
    except InputError:
        return None
    return header if header.n_images == 1 else None


def picture_columns(
    at_hand: AtHand,
    particles: Particles,
    result: SortResult,
    folder: Path,
    address: str,
    n_jobs: int | None,
) -> list[dict[str, Any]]:
    """Write pictures of micrographs, and return what the page knows of them.

    Parameters
    ----------
    at_hand : AtHand
    particles : Particles
    result : SortResult
    folder : Path
        Gets the pictures, under the names of `AtHand.files`.
    address : str
        Of that folder, seen from the page.
    n_jobs : int or None

    Returns
    -------
    pictures : list of dict
        One for each micrograph that can be read: as from `picture_data`, with "micrograph", its number, and
        "images", the indices of the images picked in it.
    """
    places, told = at_hand.places, []
    diameter = result.diameter_px if math.isfinite(result.diameter_px) else particles.box / 2
    across = diameter * _ratio(particles.pixel_size, at_hand.headers[0].pixel_size)
    drawn = draw_micrographs(at_hand.headers, across, result.learned.picks, n_jobs=n_jobs)
    for number, header, name, picture in zip(
        at_hand.numbers, at_hand.headers, at_hand.files, drawn, strict=True
    ):
        if picture is None:
            continue
        (folder / name).write_bytes(picture.png)
        rows = np.flatnonzero(places.micrograph == number)
        x, y = _in_pixels(places, rows, header)
        data = picture_data(picture, f"{quote(address)}/{name}", x, y, across)
        told.append({**data, "micrograph": number, "images": packed(rows, "<i4")})
    return told


def _in_pixels(places: Places, rows: Indices, header: MrcHeader) -> Any:
    """Return where images were picked, in pixels of the micrograph as it is now."""
    assert places.x is not None and places.y is not None
    sizes = places.coordinate_pixel_size[rows]
    known = np.isfinite(sizes) & (sizes > 0) & math.isfinite(header.pixel_size)
    ratio = np.where(known, sizes / header.pixel_size, 1.0)
    return places.x[rows] * ratio, places.y[rows] * ratio


def _ratio(one: float, other: float) -> float:
    """Return how many pixels of the other size make one of the first; 1 where a size is unknown."""
    return one / other if math.isfinite(one) and math.isfinite(other) else 1.0
