"""The map ``map.png``: images as points, similar ones near each other, with the class averages."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastsort._types import Array, FilePath, Floats, Images, Indices
from fastsort.invariants.classes import Classification
from fastsort.report.canvas import HEADING, MARGIN, add_panel, new_figure, save_figure, write, write_heading
from fastsort.report.class_looks import (
    GREY,
    JUNK_SHAPE,
    SHAPES,
    Shades,
    Style,
    class_tiles,
    counted,
    readable_on,
    shades_of,
    style_of,
    totals,
)
from fastsort.report.layout import WIDTH
from fastsort.report.placement import place_tiles

# Points that are drawn, and class averages that find a place among them.
MAX_POINTS, MAX_PICTURES = 20_000, 40
# All lengths are pixels.
_MAP_HEIGHT = 1200
_AXES_LEFT, _AXES_BOTTOM = 96, 90
_BAR = 110
# Averages are moved on a grid of this step; all their sizes are multiples of it.
_STEP = 10
_SIDES = (130, 120, 110, 100, 90, 80, 70)
_STRIP = 20
# Share of the map that the averages may cover, and share of its width and height that the points fill.
_COVERED, _FILLED = 0.24, 0.84
# Covering points, or the middle of a class, is as bad as being so many tiles away.
_COVER, _HIDE = 3.0, 2.0
# Points so many steps apart belong to one crowd.
_REACH = 3
# Points that lie further out than so many times the width of the others are drawn on the frame.
_FAR = 0.5


class _View(NamedTuple):
    """Places of the images on a panel, in pixels from its lower left corner.

    `places` (n, 2) are NaN for images without a place; `known` are the images with one. `n_far` of these
    lie beyond the panel and are drawn on its edge. A place on the map is ``origin + pixels / scale``.
    """

    places: Floats
    known: Indices
    n_far: int
    origin: Floats
    scale: float
    size: Floats


def draw_map(
    path: FilePath,
    classes: Classification,
    pixel_size: float,
    color: str = "class",
    *,
    values: Array | None = None,
    label: str | None = None,
) -> None:
    """Draw all images as points on their map, with the class averages among them, as one PNG.

    Parameters
    ----------
    path : path
        The PNG to write, 1600 x 1200 px.
    classes : Classification
        Of n images.
    pixel_size : float
        In angstroms; NaN where unknown.
    color : str
        What the colour of a point shows: "class"; "score", the score of its class; or the name of
        `values`.
    values : ndarray of float, shape (n,), optional
        A number for each image; those that are not finite are drawn in grey.
    label : str, optional
        Text beside the colour bar; by default `color`.

    Raises
    ------
    InputError
        If there is not one value for each image.
    ImportError
        When matplotlib is not installed.
    OSError
        When the disk refuses.

    Notes
    -----
    A line leads from each average to one member of its class: the member nearest to the median place of
    all members. At most 20,000 points, evenly spread over the images, and the averages of the 40 largest
    classes are drawn.
    """
    shades = None if color == "class" else shades_of(classes, color, values)
    width = WIDTH - _AXES_LEFT - MARGIN - (0 if shades is None else _BAR)
    height = _MAP_HEIGHT - HEADING - _AXES_BOTTOM
    figure = new_figure(_MAP_HEIGHT)
    axes, canvas = (add_panel(figure, (_AXES_LEFT, HEADING, width, height)) for _ in range(2))
    view = _view(classes.map.coordinates, width, height)
    shown = view.known[_evenly(len(view.known), MAX_POINTS)]
    style = style_of(classes, shades)
    _draw_axes(axes, view, classes.map.embedding)
    canvas.axis("off")
    canvas.set(xlim=(0, width), ylim=(0, height))
    _draw_points(canvas, view.places, shown, classes.label, style)
    n_pictures = _draw_averages(canvas, view, classes, style)
    if shades is not None:
        bar = add_panel(figure, (_AXES_LEFT + width + 20, HEADING, 22, height))
        _draw_bar(figure, bar, shades, label or color)
    write_heading(figure, totals(classes), _origin(classes, pixel_size))
    notes = _notes(classes, view, len(shown), n_pictures)
    write(figure, WIDTH - MARGIN, _MAP_HEIGHT - 16, notes, ha="right", fontsize=10, color="0.3")
    save_figure(figure, path)


def _view(coordinates: Array, width: int, height: int) -> _View:
    """Fit places on the map to a panel; both axes have one scale, because a map shows distances."""
    known = np.flatnonzero(np.isfinite(coordinates).all(axis=1))
    rows: Floats = coordinates[known].astype(np.float64)
    size = np.array([width, height], dtype=np.float64)
    low, high = _limits(rows)
    span = high - low
    # If all images lie in one place, the panel shows one unit around it.
    scale = float(min(_FILLED * size[span > 0] / span[span > 0], default=size.min()))
    origin = (low + high) / 2 - size / scale / 2
    pixels = (rows - origin) * scale
    n_far = int(((pixels < 0) | (pixels > size)).any(axis=1).sum())
    places = np.full((len(coordinates), 2), np.nan)
    places[known] = np.clip(pixels, 0, size)
    return _View(places, known, n_far, origin, scale, size)


def _limits(rows: Floats) -> tuple[Floats, Floats]:
    """Return the lowest and the highest place to show."""
    if len(rows) == 0:
        return np.zeros(2), np.zeros(2)
    lowest, highest = rows.min(axis=0), rows.max(axis=0)
    low, high = np.percentile(rows, (0.5, 99.5), axis=0)
    reach = _FAR * (high - low).max()
    if reach == 0:
        return lowest, highest
    return np.maximum(lowest, low - reach), np.minimum(highest, high + reach)


def _evenly(count: int, most: int) -> Indices:
    """Return at most so many indices, evenly spread."""
    return np.linspace(0, max(count - 1, 0), min(count, most)).astype(np.intp)


def _draw_axes(axes: Any, view: _View, embedding: str) -> None:
    low, high = view.origin, view.origin + view.size / view.scale
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    name = "UMAP" if embedding == "umap" else "principal component"
    axes.set_xlabel(f"{name} 1", fontsize=12)
    axes.set_ylabel(f"{name} 2", fontsize=12)
    axes.spines[:].set_color("0.6")
    if embedding == "umap":
        # Its units mean nothing.
        axes.set(xticks=(), yticks=())
    else:
        axes.locator_params(nbins=6)


def _draw_points(canvas: Any, places: Floats, shown: Indices, label: Indices, style: Style) -> None:
    crowd = len(shown) / MAX_POINTS
    alpha, area = float(np.interp(crowd, (0.1, 1), (0.85, 0.4))), float(np.interp(crowd, (0.02, 1), (22, 5)))
    shape = np.append(style.shape, "o")[label[shown]]
    # Classes of one shape are drawn together, in the order of the images, so that none hides another.
    for marker in (JUNK_SHAPE, *SHAPES):
        chosen = shown[shape == marker]
        canvas.scatter(
            places[chosen, 0],
            places[chosen, 1],
            # Other shapes must be larger, or they look like the dots.
            s=area if marker == SHAPES[0] else 1.8 * area,
            c=style.of_image[chosen],
            marker=marker,
            alpha=alpha,
            linewidths=0.8 if marker == JUNK_SHAPE else 0,
            clip_on=False,
        )


def _draw_averages(canvas: Any, view: _View, classes: Classification, style: Style) -> int:
    """Draw the averages of the largest classes that have a place on the map; return how many."""
    members = np.bincount(classes.label[view.known] + 1, minlength=len(style.of_class) + 1)[1:]
    largest = np.argsort(-members, kind="stable")[:MAX_PICTURES]
    chosen = np.sort(largest[members[largest] > 0])
    if len(chosen) == 0:
        return 0
    anchors = np.array([_middle(view.places[view.known[classes.label[view.known] == k]]) for k in chosen])
    steps = tuple((view.size // _STEP).astype(int))
    side = _side(len(chosen), steps)
    ink = _ink(view.places[view.known], anchors, steps, side)
    corners = place_tiles(anchors / _STEP, _steps(side), ink) * _STEP + _STEP / 2
    for (x, y), (left, low) in zip(anchors, corners, strict=True):
        for ink_color, width in (("white", 3.0), ("0.15", 1.1)):
            canvas.plot((x, left + side / 2), (y, low + side / 2), color=ink_color, linewidth=width, zorder=3)
    canvas.scatter(*anchors.T, s=46, c=style.of_class[chosen], edgecolors="black", linewidths=1, zorder=4)
    for k, tile, (left, low) in zip(chosen.tolist(), class_tiles(classes, chosen), corners, strict=True):
        _draw_picture(canvas, (left, low, side), tile, k, style.of_class[k], bool(classes.ranking.junk[k]))
    canvas.set(xlim=(0, view.size[0]), ylim=(0, view.size[1]))
    return len(chosen)


def _middle(places: Floats) -> Floats:
    """Return the place that is nearest to the median place."""
    away = np.linalg.norm(places - np.median(places, axis=0), axis=1)
    middle: Floats = places[np.argmin(away)]
    return middle


def _steps(side: int) -> tuple[int, int]:
    """Return width and height of a picture with its strip and a gap, in steps of the grid."""
    return side // _STEP + 1, (side + _STRIP) // _STEP + 1


def _side(count: int, steps: tuple[int, int]) -> int:
    """Return the largest side of so many pictures that leaves enough of the map to be seen."""
    fitting = (side for side in _SIDES if count * np.prod(_steps(side)) <= _COVERED * np.prod(steps))
    return next(fitting, _SIDES[-1])


def _ink(places: Floats, anchors: Floats, steps: tuple[int, int], side: int) -> Floats:
    """Return how bad it is to cover each step of the grid."""
    from scipy import ndimage

    points, middles = (_counts(pixels, steps) > 0 for pixels in (places, anchors))
    # The gaps between near points count as covered. Middles weigh more: a picture can cover a whole one.
    crowded = ndimage.binary_closing(np.pad(points, _REACH), iterations=_REACH)
    crowded = crowded[_REACH:-_REACH, _REACH:-_REACH]
    return _COVER * crowded + _HIDE * np.prod(_steps(side)) * middles


def _counts(pixels: Floats, steps: tuple[int, int]) -> Floats:
    """Return how many places lie in each step of the grid."""
    cells = np.minimum(pixels // _STEP, np.array(steps) - 1).astype(np.intp)
    flat = cells[:, 0] * steps[1] + cells[:, 1]
    counts: Floats = np.bincount(flat, minlength=steps[0] * steps[1]).reshape(steps).astype(np.float64)
    return counts


def _draw_picture(
    canvas: Any, place: tuple[float, float, int], tile: Images, number: int, color: Floats, junk: bool
) -> None:
    from matplotlib.patches import Rectangle

    left, low, side = place
    canvas.imshow(tile, extent=(left, left + side, low, low + side), **GREY, zorder=5)
    strip = Rectangle((left, low + side), side, _STRIP, facecolor=color, zorder=5)
    style = "--" if junk else "-"
    frame = Rectangle(
        (left, low), side, side + _STRIP, fill=False, edgecolor=color, linewidth=2, linestyle=style, zorder=6
    )
    canvas.add_patch(strip)
    canvas.add_patch(frame)
    text = f"{number + 1} junk" if junk else f"{number + 1}"
    canvas.text(
        left + side / 2,
        low + side + _STRIP / 2,
        text,
        color=readable_on(color),
        fontsize=10 if side > 80 else 8.5,
        fontweight="bold",
        ha="center",
        va="center_baseline",
        zorder=7,
    )


def _draw_bar(figure: Any, axes: Any, shades: Shades, label: str) -> None:
    low, high = shades.mappable.get_clim()
    finite = shades.values[np.isfinite(shades.values)]
    below, above = bool((finite < low).any()), bool((finite > high).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(
        (below, above), "both"
    )
    bar = figure.colorbar(shades.mappable, cax=axes, extend=extend, extendfrac=0.02)
    bar.set_label(label, fontsize=12, parse_math=False)


def _notes(classes: Classification, view: _View, n_points: int, n_pictures: int) -> str:
    notes = [] if len(view.known) else ["no image has a place on the map"]
    if n_points < len(view.known):
        notes.append(f"{n_points:,} points drawn")
    if view.n_far:
        notes.append(f"{counted(view.n_far, 'image')} beyond the frame, drawn on it")
    if n_pictures < len(classes.averages.size):
        notes.append(
            f"averages of the {n_pictures} largest classes on the map" if n_pictures else "no averages"
        )
    if classes.ranking.junk.any():
        notes.append("crosses and dashed frames: junk classes")
    if (classes.label[view.known] < 0).any():
        notes.append("pale dots: no class")
    return "; ".join(notes)


def _origin(classes: Classification, pixel_size: float) -> str:
    """Say how the map was made, and how large the pictures on it are."""
    components = counted(classes.map.n_components, "principal component")
    made = f"UMAP of {components}" if classes.map.embedding == "umap" else f"the first two of {components}"
    box = classes.averages.averages.shape[-1]
    size = f"{box} px ({box * pixel_size:.0f} Å)" if np.isfinite(pixel_size) else f"{box} px"
    made += " of features that do not change with rotation or shift"
    return f"map: {made}; pictures: class averages, {size} wide"
