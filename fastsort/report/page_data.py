"""The data of the page: what its script counts and draws with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastsort._reasons import NOISE, OUTSIDE, RARE_VIEW, REASONS, VALID
from fastsort._types import Bools, Floats, Indices
from fastsort.decide.rescue import Views
from fastsort.decide.result import SortResult
from fastsort.particles.source import Particles
from fastsort.report.page_tiles import COLUMNS, Choice, fixed_images
from fastsort.report.tiles import SIDE, Greys, average_tiles
from fastsort.report.words import KINDS, LABELS, one_line

ImageCodes: TypeAlias = npt.NDArray[np.uint16]
"""What `image_codes` packs."""

MAX_POINTS, MAX_CLASSES = 12_000, 96
# The threshold moves in steps of a thousandth. An image is one number of 16 bits: ten for its level, the
# first thousandth that is not below its junk probability; four for its reason or suspicion; then whether it
# is kept, and whether it stays rejected at any threshold.
LEVELS, UNKNOWN = 1000, 1023
REASON_BIT, KEEP_BIT, FIXED_BIT = 10, 14, 15
_FRAME = 4095


def image_codes(result: SortResult) -> ImageCodes:
    """Pack what the page's threshold needs to know of each image into 16 bits.

    Parameters
    ----------
    result : SortResult

    Returns
    -------
    codes : ndarray of uint16, shape (n,)
        From the lowest bit: junk probability in thousandths, rounded up, 1023 where it is unknown (10
        bits); the reason why the image is rejected, or would be, as an index into `REASONS` (4 bits);
        whether it is kept (1 bit); whether it stays rejected at any threshold (1 bit).
    """
    # Looked up among the same numbers that the page compares with, so that 0.3 is 300 thousandths.
    level = np.searchsorted(np.arange(LEVELS) / LEVELS, result.junk_probability)
    level = np.where(np.isfinite(result.junk_probability), level, UNKNOWN).astype(np.uint16)
    names = np.where(result.keep, result.suspicion, result.reason)
    reason = np.full(len(level), NOISE, dtype=np.uint16)
    for number, name in enumerate(REASONS):
        if number != VALID:
            reason[names == name] = number
    reason[result.rescued & ~result.keep] = RARE_VIEW
    flags = result.keep.astype(np.uint16) << KEEP_BIT | fixed_images(result).astype(np.uint16) << FIXED_BIT
    return (level | reason << REASON_BIT | flags).astype(np.uint16)


def count_data(codes: ImageCodes, result: SortResult) -> dict[str, Any]:
    """Return how many images have each code, and which threshold comes nearest to the run's verdict."""
    probability = np.where(np.isfinite(result.junk_probability), result.junk_probability, 0)
    # Images over an edge are rejected at any threshold: they are no particles that one could keep.
    probability = np.where(result.reason == REASONS[OUTSIDE], 1, probability)
    count = np.bincount(codes, minlength=1 << 16)
    expected = np.bincount(codes, probability, minlength=1 << 16)
    present = np.flatnonzero(count)
    level, keep = present & UNKNOWN, present >> KEEP_BIT & 1
    movable = (level <= LEVELS) & ~(present >> FIXED_BIT).astype(bool)
    kept = np.bincount(level[movable], (count[present] * keep)[movable], minlength=LEVELS + 1)
    every = np.bincount(level[movable], count[present][movable], minlength=LEVELS + 1)
    # Images that a plain threshold would judge otherwise: rejected ones below it, kept ones above it.
    wrong = np.cumsum(every - kept) + kept.sum() - np.cumsum(kept)
    errors = result.errors
    return {
        "n": len(codes),
        "reasons": REASONS,
        "labels": LABELS,
        "kinds": KINDS,
        "valid": VALID,
        "rare_view": RARE_VIEW,
        "counts": [[int(c), int(count[c]), round(float(expected[c]), 4)] for c in present],
        "level": int(np.argmin(wrong)),
        "differ": int(wrong.min()),
        "movable": int(every.sum()),
        "doubt": "" if errors is None or errors.known else one_line(errors.remark) or "no reason is given",
    }


def tile_data(
    particles: Particles,
    result: SortResult,
    codes: ImageCodes,
    choice: Choice,
    size: int,
) -> dict[str, Any]:
    """Return columns of what is known of each tile; places are shares of its side."""
    every, box = choice.every, particles.box
    middle = (result.offset[every].astype(np.float64) + box // 2 + 0.5) / box
    return {
        "size": size,
        "columns": min(COLUMNS, max(1, len(every))),
        "radius": _number(result.diameter_px / (2 * box), 4),
        "index": every.tolist(),
        "code": codes[every].tolist(),
        "p": _numbers(result.junk_probability[every], 4),
        "score": _numbers(result.score[every], 4),
        "x": _numbers(middle[:, 1], 4),
        "y": _numbers(middle[:, 0], 4),
        "name": [one_line(particles.names[index]) for index in every.tolist()],
    }


def group_data(choice: Choice) -> list[dict[str, Any]]:
    """Return the groups of tiles, each with a title."""
    place = {index: number for number, index in enumerate(choice.every.tolist())}
    titles = {REASONS[VALID]: "Kept by the run", REASONS[RARE_VIEW]: "Rescued by the run as a rare view"}
    groups = [
        ("best", "Best: lowest junk probability", choice.best),
        ("border", "Borderline: nearest to the threshold", choice.border),
        ("worst", "Worst: highest junk probability", choice.worst),
    ]
    for name, indices in choice.by_reason.items():
        title = titles.get(name, f"Rejected by the run as {name}")
        groups.append((name, f"{title}: random sample", indices))
    return [
        {"kind": kind, "title": title, "tiles": [place[index] for index in indices.tolist()]}
        for kind, title, indices in groups
    ]


def class_data(views: Views | None, codes: ImageCodes) -> tuple[Greys, list[int]]:
    """Return tiles of class averages, and the numbers of these classes: of kept images, of rejected, rare.

    Where there are too many, all rare ones and the largest of the others are chosen.
    """
    if views is None:
        return np.empty((0, 1, 1), dtype=np.uint8), []
    order = np.lexsort((-views.size, ~views.rare))[:MAX_CLASSES]
    order = order[np.lexsort((-views.size[order], views.rare[order], ~mostly_kept(views, codes)[order]))]
    return average_tiles(views.averages[order]), order.tolist()


def mostly_kept(views: Views, codes: ImageCodes) -> Bools:
    """Tell which classes have more kept than rejected members."""
    known = views.label >= 0
    kept = np.bincount(views.label[known], codes[known] >> KEEP_BIT & 1, len(views.size))
    return kept > 0.5 * views.size


def map_data(views: Views | None, codes: ImageCodes, classes: list[int]) -> dict[str, Any] | None:
    """Return the points of the map, and what is known of the classes that are shown beside it."""
    if views is None:
        return None
    known = np.flatnonzero(np.isfinite(views.coordinates).all(axis=1))
    shown = known[:: max(1, -(-len(known) // MAX_POINTS))]
    places, far = _in_frame(views.coordinates[shown].astype(np.float64))
    unit = views.pixel_size if math.isfinite(views.pixel_size) else 1.0
    return {
        "known": len(known),
        "far": far,
        "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(),
        "label": views.label[shown].tolist(),
        "code": codes[shown].tolist(),
        "n_classes": len(views.size),
        "classes": classes,
        "tile": min(views.averages.shape[1], SIDE) if classes else 1,
        "columns": min(COLUMNS, max(1, len(classes))),
        "size": views.size[classes].tolist(),
        "kept": mostly_kept(views, codes)[classes].tolist(),
        "resolution": _numbers(views.resolution[classes] * unit, 3),
        "unit": "Å" if math.isfinite(views.pixel_size) else "px",
        "rare": views.rare[classes].tolist(),
    }


def _in_frame(places: Floats) -> tuple[Indices, int]:
    """Return places in whole steps of a square frame, and how many far ones were moved to its edge."""
    if len(places) == 0:
        return np.empty((0, 2), dtype=np.intp), 0
    low, high = np.percentile(places, (1, 99), axis=0)
    margin = 0.3 * (high - low)
    low, high = np.maximum(places.min(axis=0), low - margin), np.minimum(places.max(axis=0), high + margin)
    side = float((high - low).max()) or 1.0
    shares = (places - (low + high) / 2) / side + 0.5
    far = int(((shares < 0) | (shares > 1)).any(axis=1).sum())
    return np.rint(np.clip(shares, 0, 1) * _FRAME).astype(np.intp), far


def _number(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def _numbers(values: Iterable[float], digits: int) -> list[float | None]:
    return [_number(value, digits) for value in values]
