"""Pictures of the classes: where they lie among all images, and how they look."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError
from fastsort.invariants.averages import filter_averages
from fastsort.invariants.classes import Classification
from fastsort.report.layout import WIDTH

# Points that are drawn, and class averages that find a place among them.
MAX_POINTS, MAX_PICTURES = 20_000, 40
# Tiles of the montage, and how many fit into a row.
MAX_TILES = 200
MIN_COLUMNS, MAX_COLUMNS = 5, 9
# All lengths are pixels.
_MARGIN, _HEADING = 32, 92
_MAP_HEIGHT = 1200
_AXES_LEFT, _AXES_BOTTOM = 96, 90
_BAR = 110
_GAP, _LABEL = 14, 50
# The grid on which averages are moved about the map; all of their sizes are multiples.
_STEP = 10
_SIDES = (130, 120, 110, 100, 90, 80, 70)
_STRIP = 20
# Part of the map that the averages may cover, and part of its width and height that the points fill.
_COVERED, _FILLED = 0.24, 0.84
# Covering points, or the middle of a class, is as bad as lying so many tiles away.
_COVER, _HIDE = 3.0, 2.0
# Steps between points that belong to one crowd.
_REACH = 3
_ROUNDS = 20
# Points further out than so many times the width of the others lie on the frame.
_FAR = 0.5
# No two of them look alike to any eye, nor like the grey of junk. Further classes have other shapes.
_COLORS = ("#0072B2", "#E69F00", "#882255", "#56B4E9", "#D55E00", "#CC79A7", "#332288")
_SHAPES = ("o", "^", "s")
_JUNK_COLORS, _JUNK_SHAPE = ("#444444", "#6E6E6E", "#949494"), "x"
_NO_CLASS = "#C8C8C8"
_JUNK_FRAME = "#D55E00"
_SHADES = "viridis"
_GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "bilinear"}
# A filtered average with less contrast than this part of the average's holds nothing.
_NOTHING = 1e-3

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]
Extent = tuple[float, float, float, float]


class _View(NamedTuple):
    """Where images lie on a panel, in pixels from its lower left corner.

    `places` (n, 2) are on the panel, NaN where unknown; `known` are the others, and `n_far` of them would
    lie beyond it. A place on the map is ``origin + pixels / scale``.
    """

    places: Array
    known: Indices
    n_far: int
    origin: Array
    scale: float
    size: Array


class _Shades(NamedTuple):
    """A number for each image, and the colours of numbers."""

    values: Array
    mappable: Any


class _Style(NamedTuple):
    """Colours of images (n, 4) and of classes (C, 4), and shape of the points of each class."""

    of_image: Array
    of_class: Array
    shape: npt.NDArray[np.str_]


def draw_map(
    path: str | os.PathLike[str],
    found: Classification,
    pixel_size: float,
    color: str = "class",
    *,
    values: npt.NDArray[np.floating[Any]] | None = None,
    label: str | None = None,
) -> None:
    """Draw all images as points on their map, with the class averages among them, as one PNG.

    Parameters
    ----------
    path : path
        The PNG to write, 1600 x 1200 px.
    found : Classification
        Of n images.
    pixel_size : float
        In angstroms; NaN where unknown.
    color : str
        What the colour of a point shows: "class"; "score", that of its class; or the name of `values`.
    values : ndarray of float, shape (n,), optional
        A number for each image; those that are not finite are drawn in grey.
    label : str, optional
        Beside the colour bar; by default `color`.

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
    An average lies near that member which is nearest to the median place of all members, and a line
    leads to it. Up to 20,000 points, evenly spread over the images, and the averages of the 40 largest
    classes are drawn.
    """
    shades = None if color == "class" else _shades(found, color, values)
    width = WIDTH - _AXES_LEFT - _MARGIN - (0 if shades is None else _BAR)
    height = _MAP_HEIGHT - _HEADING - _AXES_BOTTOM
    figure = _figure(_MAP_HEIGHT)
    axes, canvas = (_panel(figure, (_AXES_LEFT, _HEADING, width, height)) for _ in range(2))
    view = _view(found.map.coordinates, width, height)
    shown = view.known[_evenly(len(view.known), MAX_POINTS)]
    style = _style(found, shades)
    _draw_axes(axes, view, found.map.embedding)
    canvas.axis("off")
    canvas.set(xlim=(0, width), ylim=(0, height))
    _draw_points(canvas, view.places, shown, found.label, style)
    n_pictures = _draw_averages(canvas, view, found, style)
    if shades is not None:
        bar = _panel(figure, (_AXES_LEFT + width + 20, _HEADING, 22, height))
        _draw_bar(figure, bar, shades, label or color)
    _write_heading(figure, _totals(found), _origin(found, pixel_size))
    notes = _notes(found, view, len(shown), n_pictures)
    _write(figure, WIDTH - _MARGIN, _MAP_HEIGHT - 16, notes, ha="right", fontsize=10, color="0.3")
    figure.savefig(path, format="png")


def draw_classes(path: str | os.PathLike[str], found: Classification, pixel_size: float) -> None:
    """Draw the class averages side by side, the best first, as one PNG.

    Parameters
    ----------
    path : path
        The PNG to write, 1600 px wide.
    found : Classification
    pixel_size : float
        In angstroms; NaN where unknown.

    Raises
    ------
    ImportError
        When matplotlib is not installed.
    OSError
        When the disk refuses.

    Notes
    -----
    The first 200 are drawn. Averages are filtered as far as their halves agree; one whose halves agree
    nowhere is drawn as it is.
    """
    count, box = found.averages.averages.shape[:2]
    drawn = min(count, MAX_TILES)
    columns = montage_columns(drawn)
    side = (WIDTH - 2 * _MARGIN + _GAP) // columns - _GAP
    rows = max(1, -(-drawn // columns))
    height = _HEADING + rows * (side + _LABEL + _GAP) + _GAP
    figure = _figure(height)
    axes = _panel(figure, (0, 0, WIDTH, height))
    axes.axis("off")
    colors = _style(found, None).of_class
    for k, tile in enumerate(_tiles(found, np.arange(drawn))):
        left = _MARGIN + k % columns * (side + _GAP)
        top = _HEADING + k // columns * (side + _LABEL + _GAP)
        _draw_tile(axes, (left, left + side, top + side, top), tile, bool(found.ranking.junk[k]))
        _write_tile(axes, (left, left + side, top + side, top), found, k, colors[k])
        axes.text(
            left + side / 2,
            top + side + 6,
            _description(found, k, pixel_size),
            fontsize=11 if columns < MAX_COLUMNS - 1 else 9,
            ha="center",
            va="top",
            linespacing=1.3,
        )
    details = "best first; share of the images, resolution, score (larger for junk)"
    if drawn < count:
        details = f"the first {drawn} of {count} classes, {details}"
    _write_heading(figure, _totals(found), details if count else "nothing to show")
    if count and np.isfinite(pixel_size):
        _draw_scale(axes, box * pixel_size, side)
    # Pictures bring limits of their own.
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    figure.savefig(path, format="png")


def montage_columns(count: int) -> int:
    """Return how many tiles stand in a row: twice as many as rows, if that leaves each wide enough."""
    return int(np.clip(np.ceil(np.sqrt(2 * count)), MIN_COLUMNS, MAX_COLUMNS))


def place_tiles(anchors: Array, tile: tuple[int, int], ink: Array) -> Indices:
    """Find places near some points for rectangles that shall neither overlap nor hide much.

    Parameters
    ----------
    anchors : ndarray of float64, shape (C, 2)
        Column and row of the points, in steps of the grid.
    tile : (int, int)
        Width and height of a rectangle, in steps.
    ink : ndarray of float64, shape (columns, rows)
        How bad it is to cover each step of the grid, in widths that a tile would rather go away. The grid
        must hold C rectangles in rows and columns.

    Returns
    -------
    corners : ndarray of intp, shape (C, 2)
        First column and row that each rectangle covers.

    Notes
    -----
    They start from places in rows and columns, each from that which the cheapest assignment of all gives
    it. Then each in turn goes to the best place that is free, and places are assigned anew, so that
    leaders do not cross, until nothing moves. The sum of costs never grows.
    """
    from scipy.optimize import linear_sum_assignment

    (width, height), (columns, rows) = tile, ink.shape
    x = np.arange(columns - width + 1) + width / 2
    y = np.arange(rows - height + 1) + height / 2
    away = np.hypot(x[:, None] - anchors[:, 0, None, None], y - anchors[:, 1, None, None])
    cost = away / max(tile) + _window_means(ink, tile)

    def assigned(spots: Indices) -> Indices:
        return spots[linear_sum_assignment(cost[:, spots[:, 0], spots[:, 1]])[1]]

    grid = np.meshgrid(np.arange(0, len(x), width), np.arange(0, len(y), height), indexing="ij")
    corners = assigned(np.stack(grid, axis=-1).reshape(-1, 2))
    for _ in range(_ROUNDS):
        before = corners.copy()
        for k in range(len(corners)):
            others = np.delete(corners, k, axis=0)
            corners[k] = _best_free(cost[k], others, tile)
        corners = assigned(corners)
        if np.array_equal(before, corners):
            break
    return corners


def _best_free(cost: Array, others: Indices, tile: tuple[int, int]) -> tuple[int, int]:
    cost = cost.copy()
    for column, row in others.tolist():
        left, low = max(column - tile[0] + 1, 0), max(row - tile[1] + 1, 0)
        cost[left : column + tile[0], low : row + tile[1]] = np.inf
    column, row = np.unravel_index(np.argmin(cost), cost.shape)
    return int(column), int(row)


def _window_means(values: Array, window: tuple[int, int]) -> Array:
    """Mean over the window that begins at each place where it fits."""
    width, height = window
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    sums: Array = total[width:, height:] - total[:-width, height:] - total[width:, :-height]
    return (sums + total[:-width, :-height]) / (width * height)


def _view(coordinates: npt.NDArray[np.floating[Any]], width: int, height: int) -> _View:
    """Fit places on the map to a panel; both axes have one scale, as distances are all that a map shows."""
    known = np.flatnonzero(np.isfinite(coordinates).all(axis=1))
    rows: Array = coordinates[known].astype(np.float64)
    size = np.array([width, height], dtype=np.float64)
    low, high = _limits(rows)
    span = high - low
    # Images that all lie in one place lie in the middle of a part that is one unit high.
    scale = float(min(_FILLED * size[span > 0] / span[span > 0], default=size.min()))
    origin = (low + high) / 2 - size / scale / 2
    pixels = (rows - origin) * scale
    n_far = int(((pixels < 0) | (pixels > size)).any(axis=1).sum())
    places = np.full((len(coordinates), 2), np.nan)
    places[known] = np.clip(pixels, 0, size)
    return _View(places, known, n_far, origin, scale, size)


def _limits(rows: Array) -> tuple[Array, Array]:
    """Return the least and the greatest place to be seen."""
    if len(rows) == 0:
        return np.zeros(2), np.zeros(2)
    lowest, highest = rows.min(axis=0), rows.max(axis=0)
    low, high = np.percentile(rows, (0.5, 99.5), axis=0)
    reach = _FAR * (high - low).max()
    if reach == 0:
        return lowest, highest
    return np.maximum(lowest, low - reach), np.minimum(highest, high + reach)


def _shades(found: Classification, color: str, values: npt.NDArray[np.floating[Any]] | None) -> _Shades:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    n = len(found.label)
    if values is None and color == "score":
        numbers = np.append(found.ranking.score, np.nan)[found.label]
    elif values is None:
        raise InputError(f"color must be 'class' or 'score' where no values are given; got {color!r}.")
    else:
        numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (n,):
        raise InputError(f"values must be one number for each of the {n} images; got {numbers.shape}.")
    finite = numbers[np.isfinite(numbers)]
    low, high = np.percentile(finite, (1, 99)) if len(finite) else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    # The lightest shades are lost on white.
    shades = ListedColormap(colormaps[_SHADES](np.linspace(0, 0.92, 256)))
    return _Shades(numbers, ScalarMappable(Normalize(low, high), shades))


def _style(found: Classification, shades: _Shades | None) -> _Style:
    """Number the classes that are junk and those that are not on their own, and give them colours."""
    from matplotlib.colors import to_rgba_array

    junk = found.ranking.junk
    number = np.where(junk, np.cumsum(junk), np.cumsum(~junk)) - 1
    table, greys = to_rgba_array(_COLORS), to_rgba_array(_JUNK_COLORS)
    of_class = np.where(junk[:, None], greys[number % len(greys)], table[number % len(table)])
    kept_shape = np.array(_SHAPES)[number // len(_COLORS) % len(_SHAPES)]
    shape = np.where(junk, _JUNK_SHAPE, kept_shape)
    pale = to_rgba_array(_NO_CLASS)
    if shades is None:
        return _Style(np.concatenate([of_class, pale])[found.label], of_class, shape)
    known = np.isfinite(shades.values)
    of_image = np.where(known[:, None], shades.mappable.to_rgba(np.where(known, shades.values, 0)), pale)
    for k in range(len(of_class)):
        members = shades.values[(found.label == k) & known]
        of_class[k] = shades.mappable.to_rgba(np.median(members)) if len(members) else pale[0]
    return _Style(of_image, of_class, shape)


def _evenly(count: int, most: int) -> Indices:
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


def _draw_points(canvas: Any, places: Array, shown: Indices, label: Indices, style: _Style) -> None:
    crowd = len(shown) / MAX_POINTS
    alpha, area = float(np.interp(crowd, (0.1, 1), (0.85, 0.4))), float(np.interp(crowd, (0.02, 1), (22, 5)))
    shape = np.append(style.shape, "o")[label[shown]]
    # Classes of one shape are drawn together, in the order of the images, so that none hides another.
    for marker in (_JUNK_SHAPE, *_SHAPES):
        chosen = shown[shape == marker]
        canvas.scatter(
            places[chosen, 0],
            places[chosen, 1],
            # Other shapes as small as the dots would look like them.
            s=area if marker == _SHAPES[0] else 1.8 * area,
            c=style.of_image[chosen],
            marker=marker,
            alpha=alpha,
            linewidths=0.8 if marker == _JUNK_SHAPE else 0,
            clip_on=False,
        )


def _draw_averages(canvas: Any, view: _View, found: Classification, style: _Style) -> int:
    """Draw the averages of the largest classes that have a place on the map; return how many."""
    members = np.bincount(found.label[view.known] + 1, minlength=len(style.of_class) + 1)[1:]
    largest = np.argsort(-members, kind="stable")[:MAX_PICTURES]
    chosen = np.sort(largest[members[largest] > 0])
    if len(chosen) == 0:
        return 0
    anchors = np.array([_middle(view.places[view.known[found.label[view.known] == k]]) for k in chosen])
    steps = tuple((view.size // _STEP).astype(int))
    side = _side(len(chosen), steps)
    ink = _ink(view.places[view.known], anchors, steps, side)
    corners = place_tiles(anchors / _STEP, _steps(side), ink) * _STEP + _STEP / 2
    for (x, y), (left, low) in zip(anchors, corners, strict=True):
        for ink_color, width in (("white", 3.0), ("0.15", 1.1)):
            canvas.plot((x, left + side / 2), (y, low + side / 2), color=ink_color, linewidth=width, zorder=3)
    canvas.scatter(*anchors.T, s=46, c=style.of_class[chosen], edgecolors="black", linewidths=1, zorder=4)
    for k, tile, (left, low) in zip(chosen.tolist(), _tiles(found, chosen), corners, strict=True):
        _draw_picture(canvas, (left, low, side), tile, k, style.of_class[k], bool(found.ranking.junk[k]))
    canvas.set(xlim=(0, view.size[0]), ylim=(0, view.size[1]))
    return len(chosen)


def _middle(places: Array) -> Array:
    """Return the place that is nearest to the median place."""
    away = np.linalg.norm(places - np.median(places, axis=0), axis=1)
    middle: Array = places[np.argmin(away)]
    return middle


def _steps(side: int) -> tuple[int, int]:
    """Width and height of a picture with its strip and a gap, in steps of the grid."""
    return side // _STEP + 1, (side + _STRIP) // _STEP + 1


def _side(count: int, steps: tuple[int, int]) -> int:
    """Return the largest side of so many pictures that leaves enough of the map to be seen."""
    fitting = (side for side in _SIDES if count * np.prod(_steps(side)) <= _COVERED * np.prod(steps))
    return next(fitting, _SIDES[-1])


def _ink(places: Array, anchors: Array, steps: tuple[int, int], side: int) -> Array:
    """How bad it is to cover each step of the grid."""
    from scipy import ndimage

    points, middles = (_counts(pixels, steps) > 0 for pixels in (places, anchors))
    # Between points there is no free place, and any picture covers a whole middle, but only its part of them.
    crowded = ndimage.binary_closing(np.pad(points, _REACH), iterations=_REACH)
    crowded = crowded[_REACH:-_REACH, _REACH:-_REACH]
    return _COVER * crowded + _HIDE * np.prod(_steps(side)) * middles


def _counts(pixels: Array, steps: tuple[int, int]) -> Array:
    """How many pixels lie in each step of the grid."""
    cells = np.minimum(pixels // _STEP, np.array(steps) - 1).astype(np.intp)
    flat = cells[:, 0] * steps[1] + cells[:, 1]
    counts: Array = np.bincount(flat, minlength=steps[0] * steps[1]).reshape(steps).astype(np.float64)
    return counts


def _draw_picture(
    canvas: Any, place: tuple[float, float, int], tile: Floats, number: int, color: Array, junk: bool
) -> None:
    from matplotlib.patches import Rectangle

    left, low, side = place
    canvas.imshow(tile, extent=(left, left + side, low, low + side), **_GREY, zorder=5)
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
        color=_readable(color),
        fontsize=10 if side > 80 else 8.5,
        fontweight="bold",
        ha="center",
        va="center_baseline",
        zorder=7,
    )


def _readable(color: Array) -> str:
    """Black or white, whichever can be read on a colour."""
    return "black" if float(color[:3] @ (0.299, 0.587, 0.114)) > 0.55 else "white"


def _draw_bar(figure: Any, axes: Any, shades: _Shades, label: str) -> None:
    low, high = shades.mappable.get_clim()
    finite = shades.values[np.isfinite(shades.values)]
    below, above = bool((finite < low).any()), bool((finite > high).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(
        (below, above), "both"
    )
    bar = figure.colorbar(shades.mappable, cax=axes, extend=extend, extendfrac=0.02)
    bar.set_label(label, fontsize=12, parse_math=False)


def _notes(found: Classification, view: _View, n_points: int, n_pictures: int) -> str:
    notes = [] if len(view.known) else ["no image has a place"]
    if n_points < len(view.known):
        notes.append(f"{n_points:,} points drawn")
    if view.n_far:
        notes.append(f"{_counted(view.n_far, 'image')} beyond the frame, drawn on it")
    if n_pictures < len(found.averages.size):
        notes.append(
            f"averages of the {n_pictures} largest classes on the map" if n_pictures else "no averages"
        )
    if found.ranking.junk.any():
        notes.append("crosses and dashed frames: junk classes")
    if (found.label[view.known] < 0).any():
        notes.append("pale dots: no class")
    return "; ".join(notes)


def _draw_tile(axes: Any, extent: Extent, tile: Floats, junk: bool) -> None:
    from matplotlib.patches import Rectangle

    left, right, bottom, top = extent
    axes.imshow(tile, extent=extent, **_GREY)
    look = {"edgecolor": _JUNK_FRAME, "linewidth": 3, "linestyle": "--"} if junk else {"edgecolor": "0.2"}
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **look))


def _write_tile(axes: Any, extent: Extent, found: Classification, number: int, color: Array) -> None:
    left, right, _, top = extent
    options = {"fontsize": 10, "fontweight": "bold", "va": "top"}
    axes.text(
        left + 8,
        top + 9,
        f"{number + 1}",
        color=_readable(color),
        bbox={"facecolor": color, "edgecolor": "none", "pad": 3},
        **options,
    )
    if found.ranking.junk[number]:
        box = {"facecolor": _JUNK_FRAME, "edgecolor": "none", "pad": 3}
        axes.text(right - 8, top + 9, "junk", color="white", bbox=box, ha="right", **options)


def _description(found: Classification, number: int, pixel_size: float) -> str:
    size = int((found.label == number).sum())
    period, score = float(found.averages.resolution[number]), float(found.ranking.score[number])
    unit = "Å" if np.isfinite(pixel_size) else "px"
    resolution = f"{period:.1f} {unit}" if np.isfinite(period) else "-"
    rank = f"{score:.2f}" if np.isfinite(score) else "-"
    return f"{size:,} ({100 * size / max(len(found.label), 1):.1f} %)\n{resolution}, score {rank}"


def _draw_scale(axes: Any, length: float, side: int) -> None:
    """Draw a bar of a round number of angstroms, where a tile is `length` angstroms wide."""
    decade = 10.0 ** np.floor(np.log10(length / 2))
    nice = max(step * decade for step in (1, 2, 5) if step * decade <= length / 2)
    right, y = WIDTH - _MARGIN, _HEADING - 18
    axes.plot(
        (right - side * nice / length, right), (y, y), color="black", linewidth=4, solid_capstyle="butt"
    )
    axes.text(right, y - 8, f"{nice:g} Å", fontsize=12, ha="right", va="bottom")


def _tiles(found: Classification, chosen: Indices) -> Floats:
    """Return averages with grey values from 0 to 1, as far as they can be trusted."""
    averages = found.averages.averages[chosen]
    tiles = filter_averages(averages, found.averages.frc[chosen])
    box = averages.shape[-1]
    offset = np.arange(box) - (box - 1) / 2
    inside = np.hypot(offset[:, None], offset) <= box / 2
    # Of an average whose halves agree nowhere the filter leaves the rounding errors of zero.
    empty = np.ptp(tiles[:, inside], axis=1) <= _NOTHING * np.ptp(averages[:, inside], axis=1)
    tiles[empty] = averages[empty]
    for tile in tiles:
        low, high = np.percentile(tile[inside], (0.5, 99.5))
        tile[:] = np.clip((tile - low) / (high - low), 0, 1) if high > low else 0.5
    return tiles


def _figure(height: int) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _panel(figure: Any, place: tuple[int, int, int, int]) -> Any:
    """Add axes at left, top, width and height in pixels from the upper left corner."""
    left, top, width, height = place
    whole = figure.get_figheight() * 100
    return figure.add_axes(
        (left / WIDTH, 1 - (top + height) / whole, width / WIDTH, height / whole), facecolor="none"
    )


def _write(figure: Any, x: float, y: float, text: str, **look: Any) -> None:
    """Write at so many pixels from the upper left corner."""
    figure.text(x / WIDTH, 1 - y / (figure.get_figheight() * 100), text, parse_math=False, **look)


def _write_heading(figure: Any, title: str, details: str) -> None:
    _write(figure, _MARGIN, 44, title, fontsize=19, fontweight="bold")
    _write(figure, _MARGIN, 74, details, fontsize=12, color="0.3")


def _totals(found: Classification) -> str:
    n, count, n_junk = len(found.label), len(found.averages.size), int(found.ranking.junk.sum())
    n_left = int((found.label < 0).sum())
    parts = [f"{_counted(n, 'image')} in {_counted(count, 'class')}"]
    if n_junk:
        in_junk = int(np.append(found.ranking.junk, False)[found.label].sum())
        parts.append(f"{n_junk} of them junk ({_counted(in_junk, 'image')})")
    if n_left:
        parts.append(f"{_counted(n_left, 'image')} without a class")
    return ", ".join(parts)


def _counted(number: int, noun: str) -> str:
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"


def _origin(found: Classification, pixel_size: float) -> str:
    """Say how the map was made, and how large the pictures on it are."""
    components = _counted(found.map.n_components, "principal component")
    made = f"UMAP of {components}" if found.map.embedding == "umap" else f"the first two of {components}"
    box = found.averages.averages.shape[-1]
    size = f"{box} px ({box * pixel_size:.0f} Å)" if np.isfinite(pixel_size) else f"{box} px"
    made += " of features that neither a turn nor a shift changes"
    return f"map: {made}; pictures: class averages, {size} wide"
