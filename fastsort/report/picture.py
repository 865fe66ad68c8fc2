"""The picture ``report.png``, drawn from what `fastsort.report.plots` has gathered.

Nothing that takes long to import is needed here, so that a process that only draws is ready soon.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastsort._reasons import REASONS, VALID
from fastsort._types import Bools, Floats, Indices
from fastsort.report.canvas import figure_png, new_figure
from fastsort.report.layout import COLUMNS, GAP, LABEL, N_TILES, TILE, WIDTH
from fastsort.report.png import Greys

_HEIGHT = 1520
_KEPT, _REJECTED = "#0072B2", "#D55E00"


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
    for row, bottom in zip(picture.rows, (0.452, 0.23, 0.008), strict=True):
        _draw_montage(upper(0.02, bottom, 0.96, 0.195), row)
    if picture.learned is not None:
        draw_learned(lower, *picture.learned)
    return figure_png(figure)


def _draw_scores(axes: Any, bars: Bars | None, framed: bool) -> None:
    axes.set_title("Scores", loc="left", fontsize=13, fontweight="bold")
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
    axes.set_title("Reasons", loc="left", fontsize=13, fontweight="bold")
    axes.set_xlabel("images", fontsize=11)
    axes.tick_params(axis="y", labelsize=11)
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_montage(axes: Any, row: Row) -> None:
    width, height = TILE + GAP, TILE + LABEL
    axes.axis("off")
    count = f" ({len(row.tiles)})" if len(row.tiles) < N_TILES else ""
    axes.set_title(row.title + count, loc="left", fontsize=13, fontweight="bold", pad=4)
    for place, (tile, label, keep) in enumerate(zip(row.tiles, row.labels, row.keep, strict=True)):
        left, top = place % COLUMNS * width, place // COLUMNS * height
        extent = (left, left + TILE, top + TILE, top)
        axes.imshow(tile, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="bilinear")
        color = _KEPT if keep else _REJECTED
        axes.text(left + TILE / 2, top + TILE + 2, label, color=color, fontsize=8.5, ha="center", va="top")
    if row.circle is not None:
        _draw_circle(axes, *row.circle)
    elif not len(row.tiles):
        axes.text(0, TILE / 2, "none", fontsize=12, color="0.4")
    axes.set_aspect("equal", anchor="NW")
    axes.set_xlim(0, COLUMNS * width)
    axes.set_ylim(-(-N_TILES // COLUMNS) * height, 0)


def _draw_circle(axes: Any, x: float, y: float, radius: float) -> None:
    from matplotlib.patches import Circle, Rectangle

    circle = Circle((TILE * x, TILE * y), TILE * radius, fill=False, color="yellow", alpha=0.6)
    axes.add_patch(circle)
    circle.set_clip_path(Rectangle((0, 0), TILE, TILE, transform=axes.transData))
