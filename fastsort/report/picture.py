"""The picture ``report.png``, drawn from what `fastsort.report.plots` has gathered.

Nothing that takes long to import is needed here, so that a process that only draws is ready soon.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fastsort._reasons import REASONS, VALID
from fastsort._types import Bools, Floats, Indices
from fastsort.report.canvas import MARGIN, drawn_pixels, new_figure, write
from fastsort.report.layout import COLUMNS, GAP, LABEL, N_TILES, PIXELS_PER_UNIT, TILE, WIDTH
from fastsort.report.png import Greys, png_of

_HEIGHT = 1520
# Where the tiles of the three rows begin, in pixels below the upper edge.
_TOPS = (537, 874, 1211)
_KEPT, _REJECTED = "#0072B2", "#D55E00"
_HEADING = {"fontsize": 13, "fontweight": "bold"}
# In pixels: side of a tile, and how far tiles and their rows are apart.
_SIDE, _ACROSS, _DOWN = (round(PIXELS_PER_UNIT * part) for part in (TILE, TILE + GAP, TILE + LABEL))


class Bars(NamedTuple):
    """The histogram of the scores.

    Attributes
    ----------
    edges : ndarray of float64, shape (b + 1,)
    kept, rejected : ndarray of intp, shape (b,)
        Images in each bar.
    threshold : float
    notes : list of str
    """

    edges: Floats
    kept: Indices
    rejected: Indices
    threshold: float
    notes: list[str]


class Row(NamedTuple):
    """Some of the images.

    Attributes
    ----------
    title : str
    tiles : ndarray of uint8, shape (k, s, s)
    labels : list of str
    keep : ndarray of bool, shape (k,)
    circle : (float, float, float) or None
        Column, row and radius of the particle on the first tile, in parts of its side.
    """

    title: str
    tiles: Greys
    labels: list[str]
    keep: Bools
    circle: tuple[float, float, float] | None


class Picture(NamedTuple):
    """All that the picture shows.

    Attributes
    ----------
    title, details : str
    bars : Bars or None
        None where no image has a score.
    reasons : dict of str to int
        How many images there are of each.
    rows : list of Row
        Three.
    learned : tuple or None
        Of the subspaces method: what `draw_learned` draws.
    """

    title: str
    details: str
    bars: Bars | None
    reasons: dict[str, int]
    rows: list[Row]
    learned: tuple[Any, ...] | None = None


def picture_png(picture: Picture) -> bytes:
    """Draw a picture, 1600 px wide.

    Parameters
    ----------
    picture : Picture
        As from `picture_of`.

    Returns
    -------
    png : bytes

    Raises
    ------
    ImportError
        When matplotlib is not installed.
    """
    height = _HEIGHT
    if picture.learned is not None:
        from fastsort.report.learned import draw_learned, learned_height

        height += learned_height(picture.learned[0])
    figure = new_figure(height)
    # The upper part has the same size with and without a lower part.
    scale = _HEIGHT / height

    def upper(left: float, bottom: float, width: float, part: float) -> Any:
        return figure.add_axes((left, 1 - scale + scale * bottom, width, scale * part))

    def lower(left: float, top: float, width: float, part: float) -> Any:
        bottom = height - _HEIGHT - top - part
        return figure.add_axes((left / WIDTH, bottom / height, width / WIDTH, part / height))

    for y, text, look in (
        (0.968, picture.title, {"fontsize": 19, "fontweight": "bold"}),
        (0.945, picture.details, {"fontsize": 12, "color": "0.3"}),
    ):
        figure.text(0.025, 1 - scale + scale * y, text, parse_math=False, **look)
    # Where all scores are near the threshold, the legend cannot avoid its line.
    _draw_scores(upper(0.055, 0.725, 0.53, 0.19), picture.bars, framed=picture.learned is not None)
    _draw_reasons(upper(0.70, 0.725, 0.27, 0.19), picture.reasons)
    for row, top in zip(picture.rows, _TOPS, strict=True):
        _write_labels(figure, top, row)
    if picture.learned is not None:
        draw_learned(lower, *picture.learned)
    figure.canvas.draw()
    for row, top in zip(picture.rows, _TOPS, strict=True):
        _draw_tiles(figure, top, row)
    return png_of(drawn_pixels(figure))


def _draw_scores(axes: Any, bars: Bars | None, framed: bool) -> None:
    # Where the title's height is given, nobody measures all ticks to find one.
    axes.set_title("Scores", loc="left", y=1.0, **_HEADING)
    axes.set_xlabel("score (larger for junk)", fontsize=11)
    axes.set_ylabel("images", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    if bars is None:
        axes.text(0.5, 0.5, "no image has a score", transform=axes.transAxes, ha="center", va="center")
        return
    kept, all_images = bars.kept, bars.kept + bars.rejected
    label = f"kept ({kept.sum():,})"
    axes.stairs(kept, bars.edges, fill=True, color=_KEPT, label=label)
    label = f"rejected ({bars.rejected.sum():,})"
    axes.stairs(all_images, bars.edges, baseline=kept, fill=True, color=_REJECTED, label=label)
    axes.set_xlim(bars.edges[0], bars.edges[-1])
    axes.locator_params(axis="y", integer=True)
    if np.isfinite(bars.threshold):
        label = f"threshold {bars.threshold:.3g}"
        axes.axvline(bars.threshold, color="black", linestyle="--", linewidth=1.5, label=label)
    style = {"loc": "upper right", "title_fontsize": 9, "fontsize": 10, "frameon": framed}
    legend = axes.legend(title="\n".join(bars.notes) or None, **style)
    legend.get_frame().set(edgecolor="none", alpha=0.85)


def _draw_reasons(axes: Any, counts: dict[str, int]) -> None:
    names = sorted(counts, key=lambda name: (name == REASONS[VALID], counts[name]))
    colors = [_KEPT if name == REASONS[VALID] else _REJECTED for name in names]
    bars = axes.barh(names, [counts[name] for name in names], color=colors)
    n = sum(counts.values())
    labels = [f"{counts[name]:,} ({100 * counts[name] / n:.1f} %)" for name in names]
    axes.bar_label(bars, labels, padding=4, fontsize=10)
    axes.set_xlim(0, 1.4 * max(counts.values(), default=1))
    axes.set_ylim(-0.6, max(4, len(names)) - 0.4)
    axes.set_title("Reasons", loc="left", y=1.0, **_HEADING)
    axes.set_xlabel("images", fontsize=11)
    axes.tick_params(axis="y", labelsize=11)
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def _places(row: Row, top: int) -> Iterator[tuple[int, int]]:
    """Return the left and the upper edge of each tile, in pixels."""
    for place in range(len(row.tiles)):
        yield MARGIN + place % COLUMNS * _ACROSS, top + place // COLUMNS * _DOWN


def _write_labels(figure: Any, top: int, row: Row) -> None:
    count = f" ({len(row.tiles)})" if len(row.tiles) < N_TILES else ""
    write(figure, MARGIN, top - 6, row.title + count, **_HEADING)
    if not len(row.tiles):
        write(figure, MARGIN, top + _SIDE / 2, "none", fontsize=12, color="0.4")
    for (left, upper), label, keep in zip(_places(row, top), row.labels, row.keep, strict=True):
        look = {"color": _KEPT if keep else _REJECTED, "fontsize": 8.5, "ha": "center", "va": "top"}
        write(figure, left + _SIDE / 2, upper + _SIDE + 2, label, **look)


def _draw_tiles(figure: Any, top: int, row: Row) -> None:
    """Put tiles on a figure that is drawn: as parts of it they would take as long as all others."""
    pixels = drawn_pixels(figure)
    for (left, upper), tile in zip(_places(row, top), _enlarged(row.tiles), strict=True):
        pixels[upper : upper + _SIDE, left : left + _SIDE] = tile[..., None]
    if row.circle is not None:
        _draw_circle(figure, len(pixels) - top, *row.circle)


def _enlarged(tiles: Greys) -> Greys:
    """Return tiles of the side that is drawn, bilinear between the pixels."""
    side = tiles.shape[1]
    places = np.clip((np.arange(_SIDE, dtype=np.float32) + 0.5) * side / _SIDE - 0.5, 0, side - 1)
    low = np.minimum(places.astype(np.intp), side - 2)
    after = places - low
    rows = tiles[:, low] * (1 - after)[:, None] + tiles[:, low + 1] * after[:, None]
    return np.rint(rows[:, :, low] * (1 - after) + rows[:, :, low + 1] * after).astype(np.uint8)


def _draw_circle(figure: Any, top: int, x: float, y: float, radius: float) -> None:
    """Draw a circle on the first tile, whose upper edge is so many pixels above the lower one."""
    from matplotlib.patches import Circle, Rectangle
    from matplotlib.transforms import IdentityTransform

    pixels: dict[str, Any] = {"transform": IdentityTransform()}
    middle = (MARGIN + _SIDE * x, top - _SIDE * y)
    circle = Circle(middle, _SIDE * radius, fill=False, color="yellow", alpha=0.6, **pixels)
    figure.add_artist(circle)
    circle.set_clip_path(Rectangle((MARGIN, top - _SIDE), _SIDE, _SIDE, **pixels))
    figure.draw_artist(circle)
