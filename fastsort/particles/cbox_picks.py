"""Picks in .cbox files of crYOLO: a STAR table with the lower corner and the sides of each box."""

from __future__ import annotations

from fastsort._checks import InputError
from fastsort.particles.picks import check_finite
from fastsort.particles.star import read_star
from fastsort.particles.star_picks import StarPicks

_LABELS = ("_CoordinateX", "_CoordinateY", "_Width", "_Height")


def read_cbox_picks(path: str) -> StarPicks:
    """Read a .cbox file; the particle lies in the middle of its box.

    Raises
    ------
    InputError
        When the file cannot be read, is no .cbox file, or its coordinates are no finite numbers.

    Notes
    -----
    crYOLO writes all of its boxes into these files, also those below the confidence that it was asked for.
    """
    star = read_star(path)
    block = star.table_with(*_LABELS)
    if block is None:
        raise InputError(f"{path} has no table with {', '.join(_LABELS)}: give a .cbox file of crYOLO.")
    left, lower, width, height = (block.floats(label) for label in _LABELS)
    x, y = left + width / 2, lower + height / 2
    check_finite(x, y, lambda row: f"line {block.line_number(row)} of {path}")
    return StarPicks(path, None, x, y, None, star, block)
