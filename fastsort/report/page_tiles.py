"""The tiles of the page: which images are shown, and all of their tiles in one PNG."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np

from fastsort._reasons import BAD_PIXELS, DUPLICATE, FLAT, OUTSIDE, REASONS
from fastsort._types import Bools, Floats, Indices
from fastsort.decide.result import SortResult
from fastsort.report.tiles import Greys

COLUMNS, N_TILES = 20, 24
# The range of junk probabilities has so many parts; so many images of each are stored.
N_STRATA, N_PER_STRATUM = 20, 12
# Reasons for which an image stays rejected, whatever the threshold on the junk probability.
FIXED = tuple(REASONS[code] for code in (BAD_PIXELS, FLAT, DUPLICATE, OUTSIDE))


class Choice(NamedTuple):
    """Indices of the images to show: ascending in `every`, elsewhere in the order in which they are shown.

    Attributes
    ----------
    every : ndarray of intp
        All images that are shown anywhere.
    best, border, worst : ndarray of intp
        The images with the lowest scores, those next to the threshold, and those with the highest scores.
    by_reason : dict of str to ndarray of intp
        A random sample of the images with each reason.
    """

    every: Indices
    best: Indices
    border: Indices
    worst: Indices
    by_reason: dict[str, Indices]


def fixed_images(result: SortResult) -> Bools:
    """Tell which images stay rejected at any threshold.

    Parameters
    ----------
    result : SortResult

    Returns
    -------
    fixed : ndarray of bool, shape (n,)
        Images that cannot be judged, duplicates, and images that reach over the edge of their micrograph.
    """
    return ~result.keep & (np.isin(result.reason, FIXED) | ~np.isfinite(result.score))


def choose_images(result: SortResult) -> Choice:
    """Choose the images that the page shows, at most 552.

    Parameters
    ----------
    result : SortResult

    Returns
    -------
    choice : Choice
        `every` also holds up to 12 images of each of 20 parts of the range of junk probabilities, so
        that the page has images near any threshold.
    """
    judged = np.flatnonzero(~fixed_images(result))
    order = judged[np.lexsort((result.score[judged], result.junk_probability[judged]))]
    kept = order[result.keep[order]]
    rejected = order[~result.keep[order] & ~result.rescued[order]]
    border = np.isin(order, np.concatenate([kept[-N_TILES // 2 :], rejected[: N_TILES // 2]]))
    rng = np.random.default_rng(0)
    by_reason = {}
    for name in REASONS:
        members = np.flatnonzero(result.reason == name)
        if len(members):
            chosen = rng.choice(members, min(N_TILES, len(members)), replace=False)
            by_reason[name] = np.sort(chosen)
    best, worst = order[:N_TILES], order[::-1][:N_TILES]
    strata = _strata(order, result.junk_probability[order])
    every = np.unique(np.concatenate([best, order[border], worst, *strata, *by_reason.values()]))
    return Choice(every, best, order[border], worst, by_reason)


def _strata(order: Indices, probability: Floats) -> list[Indices]:
    """Choose images spread over each part of the range of probabilities, which ascend in `order`."""
    part = np.where(np.isfinite(probability), N_STRATA * np.clip(probability, 0, 1), -1)
    part = np.minimum(part.astype(np.intp), N_STRATA - 1)
    chosen = []
    for number in range(N_STRATA):
        members = order[part == number]
        places = np.linspace(0, len(members) - 1, min(N_PER_STRATUM, len(members)))
        chosen.append(members[np.rint(places).astype(np.intp)])
    return chosen


def sprite_png(tiles: Greys) -> bytes:
    """Put tiles side by side into one picture.

    Parameters
    ----------
    tiles : ndarray of uint8, shape (k, s, s)

    Returns
    -------
    png : bytes
        With 20 tiles in each row, or all where there are fewer; a single black pixel where there is none.
    """
    if len(tiles) == 0:
        return grey_png(np.zeros((1, 1), dtype=np.uint8))
    size, columns = tiles.shape[1], min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * columns, size, size), dtype=np.uint8)
    sheet[: len(tiles)] = tiles
    return grey_png(sheet.reshape(rows, columns, size, size).swapaxes(1, 2).reshape(rows * size, -1))


def grey_png(pixels: Greys) -> bytes:
    """Encode a grey picture.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width)

    Returns
    -------
    png : bytes
    """
    height, width = pixels.shape
    # Filter 1 of the format: each pixel minus the one to its left, which compresses better.
    lines = np.empty((height, 1 + width), dtype=np.uint8)
    lines[:, 0] = 1
    lines[:, 1:] = np.diff(pixels, axis=1, prepend=np.uint8(0))
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(lines.tobytes(), 9), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
