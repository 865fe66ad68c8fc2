"""The data of the page: a column for everything that is known of each image."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsort._reasons import NOISE, RARE_VIEW, REASONS, VALID
from fastsort._types import Array, Bools, Floats, Indices
from fastsort.decide.by_hand import WITHOUT_PIXELS, best_first, stays_rejected
from fastsort.decide.copies import CONTENT, STAMP
from fastsort.decide.rescue import Views
from fastsort.decide.result import SortResult
from fastsort.particles.source import Particles
from fastsort.report.png import Greys
from fastsort.report.tiles import SIDE, average_tiles
from fastsort.report.words import Words, one_line

MAX_CLASSES = 96
# Of more images only the verdict is told, so that a browser can hold it.
MAX_DESCRIBED = 1_000_000
# Bits of the state of an image.
KEPT, RESCUED, FIXED, UNUSABLE = 1, 2, 4, 8
_USELESS = (CONTENT, STAMP, "duplicate", "rare_view")
_TITLES = {"against": "methods against it"}


def shown_order(result: SortResult) -> Indices:
    """Return all images, best first; those that stay rejected at any threshold stand last.

    Parameters
    ----------
    result : SortResult

    Returns
    -------
    order : ndarray of intp, shape (n,)
    """
    return np.concatenate([best_first(result), np.flatnonzero(stays_rejected(result))])


def column_data(particles: Particles, result: SortResult, order: Indices) -> dict[str, Any]:
    """Return a column for everything that is known of each image, as base64 of little-endian numbers.

    Parameters
    ----------
    particles : Particles
    result : SortResult
    order : ndarray of intp, shape (n,)
        As from `shown_order`.

    Returns
    -------
    columns : dict
        "state", "why": bytes. The bits of the state say whether the run kept the image, whether it rescued
        it, whether it stays rejected at any threshold, and whether it cannot be kept at all; "why" is the
        reason why it is rejected, or would be, as an index into `REASONS`. "p", "score": float64. "place":
        where the tile is on the sheets. "x", "y": centre of the particle in parts of the box. "numbers":
        columns of float32 to sort by, with their titles. "label", "map_x", "map_y": class and place on the
        map. "micrograph", "name": indices into lists, and the lists.
    """
    n, fixed = len(result.keep), stays_rejected(result)
    why = np.where(result.keep, result.suspicion_code, result.reason_code)
    why[why == VALID] = NOISE
    # Rare views are set aside at whatever threshold rejects them.
    why[(result.measurements.get("rare_view", result.rescued) | result.rescued) & ~fixed] = RARE_VIEW
    unusable = np.isin(result.reason_code, WITHOUT_PIXELS)
    state = (
        KEPT * result.keep
        + RESCUED * (result.rescued & ~result.keep)
        + FIXED * (fixed | ~np.isfinite(result.junk_probability))
        + UNUSABLE * unusable
    )
    place = np.empty(n, np.intp)
    place[order] = np.arange(n)
    columns: dict[str, Any] = {
        "state": packed(state, "u1"),
        "why": packed(why, "u1"),
        "p": packed(result.junk_probability, "<f8"),
        "score": packed(result.score, "<f8"),
        "place": packed(place, "<i4"),
    }
    if n > MAX_DESCRIBED:
        return columns
    middle = (result.offset.astype(np.float64) + particles.box // 2 + 0.5) / particles.box
    columns |= {"x": packed(middle[:, 1], "<f4"), "y": packed(middle[:, 0], "<f4")}
    columns["numbers"] = [
        {"title": title, "values": packed(values, "<f4")} for title, values in _numbers_of(result)
    ]
    views = result.views
    if views is not None:
        columns |= {
            "label": packed(views.label, "<i4"),
            "map_x": packed(views.coordinates[:, 0], "<f4"),
            "map_y": packed(views.coordinates[:, 1], "<f4"),
        }
    if particles.micrographs is not None:
        listed, index = _listed(particles.micrographs)
        columns |= {"micrographs": listed, "micrograph": packed(index, "<i4")}
    return columns | _name_data(particles.names)


def _numbers_of(result: SortResult) -> list[tuple[str, Array]]:
    """Return what was measured of each image, with titles."""
    votes = [(f"vote {name}", values) for name, values in result.votes.items() if len(result.votes) > 1]
    measured = [
        (_TITLES.get(name, name.replace("_", " ")), values)
        for name, values in result.measurements.items()
        if name not in _USELESS and np.asarray(values).dtype.kind in "iuf"
    ]
    return votes + measured


def _name_data(names: Sequence[str]) -> dict[str, Any]:
    """Return names as numbers in stacks, such as 17 of 000017@a.mrcs, where all of them are of this kind."""
    numbers, stacks, width = np.empty(len(names), np.int64), [], 0
    for row, name in enumerate(names):
        number, at, stack = name.partition("@")
        if not (at and number.isascii() and number.isdigit() and len(number) < 9):
            return {"names": [one_line(name) for name in names]}
        numbers[row], width = int(number), max(width, len(number))
        stacks.append(stack)
    listed, index = _listed(stacks)
    return {
        "stacks": listed,
        "stack": packed(index, "<i4"),
        "number": packed(numbers, "<i4"),
        "width": width,
    }


def _listed(words: Sequence[str]) -> tuple[list[str], Indices]:
    """Return distinct words in the order in which they come, on one line each, and which one each is."""
    place: dict[str, int] = {}
    index = np.array([place.setdefault(word, len(place)) for word in words], np.intp)
    return [one_line(word) for word in place], index


def packed(values: npt.ArrayLike, dtype: str) -> str:
    """Return numbers as base64 of their bytes."""
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()


def page_data(
    particles: Particles,
    result: SortResult,
    classes: list[int],
    *,
    name: str,
    size: int,
    rows: int,
    words: Words,
    mark: str,
) -> dict[str, Any]:
    """Return what the page knows besides the columns.

    Parameters
    ----------
    particles : Particles
    result : SortResult
    classes : list of int
        As from `class_data`.
    name : str
        Of the input.
    size : int
        Side of a tile in pixels; 0 where no tiles are shown.
    rows : int
        Rows and columns of tiles on a sheet.
    words : Words
    mark : str
        Of the result: choices are taken back only where it is the same.
    """
    errors, known = result.errors, math.isfinite(particles.pixel_size)
    return {
        "name": name,
        "n": len(result.keep),
        "mark": mark,
        "reasons": REASONS,
        "labels": words.labels,
        "kinds": words.kinds,
        "valid": VALID,
        "rare_view": RARE_VIEW,
        "tile": size,
        "rows": rows,
        "radius": _number(result.diameter_px / (2 * particles.box), 4),
        "width": _number(particles.box * particles.pixel_size, 4) if known else None,
        "doubt": "" if errors is None or errors.known else one_line(errors.remark) or "no reason is given",
        "views": view_data(result.views, classes),
    }


def class_data(views: Views | None, keep: Bools) -> tuple[Greys, list[int]]:
    """Return tiles of class averages, and the numbers of these classes, those most kept first.

    Where there are too many, all rare ones and the largest of the others are chosen.
    """
    if views is None:
        return np.empty((0, 1, 1), dtype=np.uint8), []
    order = np.lexsort((-views.size, ~views.rare))[:MAX_CLASSES]
    order = order[np.lexsort((-views.size[order], -kept_share(views, keep)[order]))]
    return average_tiles(views.averages[order]), order.tolist()


def kept_share(views: Views, keep: Bools) -> Floats:
    """Return which share of the members of each class is kept."""
    known = views.label >= 0
    members = np.bincount(views.label[known], minlength=len(views.size))
    kept = np.bincount(views.label[known], keep[known], len(views.size))
    return kept / np.maximum(members, 1)


def view_data(views: Views | None, classes: list[int]) -> dict[str, Any] | None:
    """Return the frame of the map, and what is known of the classes that are shown beside it."""
    if views is None:
        return None
    known = np.isfinite(views.coordinates).all(axis=1)
    low, side, far = _frame(views.coordinates[known].astype(np.float64))
    unit = views.pixel_size if math.isfinite(views.pixel_size) else 1.0
    return {
        "known": int(known.sum()),
        "far": far,
        "low": low,
        "side": side,
        "n_classes": len(views.size),
        "classes": classes,
        "tile": min(views.averages.shape[1], SIDE) if classes else 1,
        "size": views.size[classes].tolist(),
        "resolution": _numbers(views.resolution[classes] * unit, 3),
        "unit": "Å" if math.isfinite(views.pixel_size) else "px",
        "rare": views.rare[classes].tolist(),
    }


def _frame(places: Floats) -> tuple[list[float], float, int]:
    """Return corner and side of a square that holds nearly all places, and how many far ones it does not."""
    if len(places) == 0:
        return [0.0, 0.0], 1.0, 0
    low, high = np.percentile(places, (1, 99), axis=0)
    margin = 0.3 * (high - low)
    low, high = np.maximum(places.min(axis=0), low - margin), np.minimum(places.max(axis=0), high + margin)
    side = float((high - low).max()) or 1.0
    corner = (low + high) / 2 - side / 2
    shares = (places - corner) / side
    far = int(((shares < 0) | (shares > 1)).any(axis=1).sum())
    return corner.tolist(), side, far


def _number(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def _numbers(values: Iterable[float], digits: int) -> list[float | None]:
    return [_number(value, digits) for value in values]
