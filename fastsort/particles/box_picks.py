"""Picks in .box files of EMAN: a line a box, with its lower corner and its sides."""

from __future__ import annotations

import numpy as np

from fastsort._checks import InputError
from fastsort.particles.picks import LineFile, as_text, check_finite, numbered, read_lines

# What the fifth column says of the start and the end of a helix.
_ENDS = (b"-1", b"-2")


def read_box_picks(path: str) -> LineFile:
    """Read a .box file; the particle lies in the middle of its box.

    Raises
    ------
    InputError
        When the file cannot be read, a line does not start with four finite numbers, or lines are the ends
        of helices.
    """
    lines = read_lines(path)
    boxes = list(numbered(lines))
    corners = np.empty((len(boxes), 4))
    for row, (number, words) in enumerate(boxes):
        try:
            corners[row] = [float(word) for word in words[:4]]
        except ValueError:
            raise InputError(
                f"line {number + 1} of {path} must start with four numbers, x and y of a corner, width and "
                f"height; it has '{as_text(words[:4])}': correct the line."
            ) from None
    x, y = (corners[:, :2] + corners[:, 2:] / 2).T
    for number, words in boxes:
        if len(words) > 4 and words[4] in _ENDS:
            raise InputError(
                f"line {number + 1} of {path} is an end of a helix (fifth column {as_text(words[4:5])}), and "
                "no particle: give the segments, as e2helixboxer or RELION's extraction cuts them."
            )
    line_of = np.array([number for number, _ in boxes], np.intp)
    check_finite(x, y, lambda row: f"line {line_of[row] + 1} of {path}")
    return LineFile(path, None, x, y, None, lines, line_of)
