"""Picks of Topaz: a text table with the columns image_name, x_coord, y_coord and score."""

from __future__ import annotations

import numpy as np

from fastsort._checks import InputError
from fastsort.particles.picks import LineFile, as_text, check_finite, numbered, read_lines

_COLUMNS = (b"image_name", b"x_coord", b"y_coord")


def read_topaz_picks(path: str) -> LineFile:
    """Read a .txt file of Topaz, which may hold the picks of many micrographs.

    Raises
    ------
    InputError
        When the file cannot be read, has other columns, or its coordinates are no finite numbers.
    """
    lines = read_lines(path)
    table = list(numbered(lines))
    header = [] if not table else table.pop(0)[1]
    if not set(_COLUMNS) <= set(header):
        raise InputError(
            f"{path} is no list of Topaz: its first line must name the columns image_name, x_coord and "
            f"y_coord; it has '{as_text(header[:4])}'. Give the .txt file of 'topaz extract'."
        )
    places = [header.index(name) for name in _COLUMNS]
    names: list[str] = []
    points = np.empty((len(table), 2))
    for row, (number, words) in enumerate(table):
        try:
            name, x, y = (words[place] for place in places)
            points[row] = float(x), float(y)
        except (IndexError, ValueError):
            raise InputError(
                f"line {number + 1} of {path} must have a name and two numbers in the columns image_name, "
                f"x_coord and y_coord; it has '{as_text(words)}': correct the line."
            ) from None
        names.append(name.decode("utf-8", "surrogateescape"))
    line_of = np.array([number for number, _ in table], np.intp)
    x_coord, y_coord = points.T
    check_finite(x_coord, y_coord, lambda row: f"line {line_of[row] + 1} of {path}")
    return LineFile(path, names, x_coord, y_coord, None, lines, line_of)
