"""Picks in .json files of EMAN2: a list of boxes, each with x and y of its middle and how it was found."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np

from fastsort._checks import InputError, check_readable
from fastsort._types import Bools
from fastsort.particles.picks import PickFile, check_finite
from fastsort.particles.table import Added

_KEY = "boxes"
_BLANKS = " \t\r\n"


@dataclass(frozen=True, eq=False)
class EmanPicks(PickFile):
    """Picks of EMAN2.

    Attributes
    ----------
    text : str
        The whole file.
    spans : list of tuple of int
        Where in the text each box starts and stops.
    """

    text: str = field(repr=False)
    spans: list[tuple[int, int]] = field(repr=False)

    def write(self, path: str, kept: Bools, added: Added) -> None:
        """Write the text without the boxes of the picks that go, and without the commas before them."""
        pieces, place = [], 0
        if self.spans:
            place = self.spans[0][0]
            pieces.append(self.text[:place])
            for number, box in enumerate(np.flatnonzero(kept).tolist()):
                start, stop = self.spans[box]
                # With the comma before it, unless it is the first that stays.
                pieces.append(self.text[self.spans[box - 1][1] if number else start : stop])
            place = self.spans[-1][1]
        pieces.append(self.text[place:])
        with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.writelines(pieces)


def read_eman_picks(path: str) -> EmanPicks:
    """Read an info file of EMAN2, such as ``info/m1_info.json``.

    Raises
    ------
    InputError
        When the file cannot be read, holds no list of boxes, or its coordinates are no finite numbers.
    """
    with check_readable(path) as file:
        text = file.read().decode("utf-8", "surrogateescape")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{path} is no JSON file: give an info file of EMAN2.") from None
    boxes = content.get(_KEY) if isinstance(content, dict) else None
    if not isinstance(boxes, list):
        raise InputError(f'{path} has no list "{_KEY}": give an info file of EMAN2 with picked boxes.')
    points = np.empty((len(boxes), 2))
    for row, box in enumerate(boxes):
        try:
            points[row] = float(box[0]), float(box[1])
        except (TypeError, ValueError, IndexError, KeyError, OverflowError):
            raise InputError(
                f"box {row} of {path}, counted from 0, must begin with x and y: correct or remove it."
            ) from None
    x, y = points.T
    check_finite(x, y, lambda row: f"box {row} of {path}, counted from 0,")
    return EmanPicks(path, None, x, y, None, text, _spans(text, len(boxes)))


def _spans(text: str, n_boxes: int) -> list[tuple[int, int]]:
    """Find where each item of the list of boxes starts and stops; the text is known to be JSON."""
    decoder = json.JSONDecoder()
    place = _past_blanks(text, 0) + 1
    # The last list of this name counts, as for every reader of JSON.
    start = -1
    while text[place := _past_blanks(text, place)] != "}":
        if text[place] == ",":
            place = _past_blanks(text, place + 1)
        key, place = decoder.raw_decode(text, place)
        place = _past_blanks(text, _past_blanks(text, place) + 1)  # past the colon
        start = place if key == _KEY else start
        place = decoder.raw_decode(text, place)[1]
    spans = []
    place = start + 1
    for _ in range(n_boxes):
        place = _past_blanks(text, place)
        if text[place] == ",":
            place = _past_blanks(text, place + 1)
        stop = decoder.raw_decode(text, place)[1]
        spans.append((place, stop))
        place = stop
    return spans


def _past_blanks(text: str, place: int) -> int:
    while text[place] in _BLANKS:
        place += 1
    return place
