"""The montage ``classes.png``: how the class averages look, side by side."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastsort._types import FilePath, Floats, Images
from fastsort.invariants.classes import Classification
from fastsort.report.canvas import HEADING, MARGIN, add_panel, new_figure, save_figure, write_heading
from fastsort.report.class_looks import GREY, class_tiles, readable_on, style_of, totals
from fastsort.report.layout import WIDTH

# Tiles of the montage, and how many fit into a row.
MAX_TILES = 200
MIN_COLUMNS, MAX_COLUMNS = 5, 9
# In pixels: between tiles, and for the words below each.
_GAP, _LABEL = 14, 50
_JUNK_FRAME = "#D55E00"

Extent: TypeAlias = tuple[float, float, float, float]
"""Left, right, bottom and top of a tile, as matplotlib wants them."""


def draw_classes(path: FilePath, classes: Classification, pixel_size: float, note: str | None = None) -> None:
    """Draw the class averages side by side, the best first, as one PNG.

    Parameters
    ----------
    path : path
        The PNG to write, 1600 px wide.
    classes : Classification
    pixel_size : float
        In angstroms; NaN where unknown.
    note : str, optional
        What else the heading says of all classes.

    Raises
    ------
    ImportError
        When matplotlib is not installed.
    OSError
        When the disk refuses.

    Notes
    -----
    At most 200 classes are drawn.
    """
    count, box = classes.averages.averages.shape[:2]
    drawn = min(count, MAX_TILES)
    columns = montage_columns(drawn)
    side = (WIDTH - 2 * MARGIN + _GAP) // columns - _GAP
    rows = max(1, -(-drawn // columns))
    height = HEADING + rows * (side + _LABEL + _GAP) + _GAP
    figure = new_figure(height)
    axes = add_panel(figure, (0, 0, WIDTH, height))
    axes.axis("off")
    colors = style_of(classes, None).of_class
    for k, tile in enumerate(class_tiles(classes, np.arange(drawn))):
        left = MARGIN + k % columns * (side + _GAP)
        top = HEADING + k // columns * (side + _LABEL + _GAP)
        _draw_tile(axes, (left, left + side, top + side, top), tile, bool(classes.ranking.junk[k]))
        _write_tile(axes, (left, left + side, top + side, top), classes, k, colors[k])
        axes.text(
            left + side / 2,
            top + side + 6,
            _description(classes, k, pixel_size),
            fontsize=11 if columns < MAX_COLUMNS - 1 else 9,
            ha="center",
            va="top",
            linespacing=1.3,
        )
    details = f"{note}; " if note else ""
    details += "best first; below each: number of images, resolution, score (larger for junk)"
    if drawn < count:
        details = f"the first {drawn} of {count} classes, {details}"
    write_heading(figure, totals(classes), details if count else "nothing to show")
    if count and np.isfinite(pixel_size):
        _draw_scale(axes, box * pixel_size, side)
    # Each picture has changed the limits.
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    save_figure(figure, path)


def montage_columns(count: int) -> int:
    """Return the number of tiles in a row: twice the number of rows, if that leaves each wide enough."""
    return int(np.clip(np.ceil(np.sqrt(2 * count)), MIN_COLUMNS, MAX_COLUMNS))


def _draw_tile(axes: Any, extent: Extent, tile: Images, junk: bool) -> None:
    from matplotlib.patches import Rectangle

    left, right, bottom, top = extent
    axes.imshow(tile, extent=extent, **GREY)
    look = {"edgecolor": _JUNK_FRAME, "linewidth": 3, "linestyle": "--"} if junk else {"edgecolor": "0.2"}
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **look))


def _write_tile(axes: Any, extent: Extent, classes: Classification, number: int, color: Floats) -> None:
    left, right, _, top = extent
    options = {"fontsize": 10, "fontweight": "bold", "va": "top"}
    axes.text(
        left + 8,
        top + 9,
        f"{number + 1}",
        color=readable_on(color),
        bbox={"facecolor": color, "edgecolor": "none", "pad": 3},
        **options,
    )
    if classes.ranking.junk[number]:
        box = {"facecolor": _JUNK_FRAME, "edgecolor": "none", "pad": 3}
        axes.text(right - 8, top + 9, "junk", color="white", bbox=box, ha="right", **options)


def _description(classes: Classification, number: int, pixel_size: float) -> str:
    size = int((classes.label == number).sum())
    period, score = float(classes.averages.resolution[number]), float(classes.ranking.score[number])
    unit = "Å" if np.isfinite(pixel_size) else "px"
    resolution = f"{period:.1f} {unit}" if np.isfinite(period) else "-"
    rank = f"{score:.2f}" if np.isfinite(score) else "-"
    return f"{size:,} ({100 * size / max(len(classes.label), 1):.1f} %)\n{resolution}, score {rank}"


def _draw_scale(axes: Any, length: float, side: int) -> None:
    """Draw a bar of a round number of angstroms, where a tile is `length` angstroms wide."""
    decade = 10.0 ** np.floor(np.log10(length / 2))
    nice = max(step * decade for step in (1, 2, 5) if step * decade <= length / 2)
    right, y = WIDTH - MARGIN, HEADING - 18
    axes.plot(
        (right - side * nice / length, right), (y, y), color="black", linewidth=4, solid_capstyle="butt"
    )
    axes.text(right, y - 8, f"{nice:g} Å", fontsize=12, ha="right", va="bottom")
