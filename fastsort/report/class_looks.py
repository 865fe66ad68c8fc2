"""What the map and the montage of classes share: colours, grey values, and the counts in their titles."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastsort._checks import InputError
from fastsort._types import Array, Floats, Images, Indices, Words
from fastsort.invariants.classes import Classification
from fastsort.report.tiles import stretch_contrast

# Nobody confuses two of these, or one of them with the grey of junk. Further classes have other shapes.
COLORS = ("#0072B2", "#E69F00", "#882255", "#56B4E9", "#D55E00", "#CC79A7", "#332288")
SHAPES = ("o", "^", "s")
JUNK_COLORS, JUNK_SHAPE = ("#444444", "#6E6E6E", "#949494"), "x"
_NO_CLASS = "#C8C8C8"
_SHADES = "viridis"
GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "bilinear"}
# A filtered average with less contrast than this share of the contrast before holds nothing.
# Percentiles of the pixels of an average that become black and white.
_DARKEST, _BRIGHTEST = 0.5, 99.5


class Shades(NamedTuple):
    """A number for each image, and the colours of numbers."""

    values: Floats
    mappable: Any


class Style(NamedTuple):
    """Colours of images (n, 4) and of classes (C, 4), and shape of the points of each class."""

    of_image: Floats
    of_class: Floats
    shape: Words


def shades_of(classes: Classification, color: str, values: Array | None) -> Shades:
    """Return the numbers that give images their colours: `values`, or the scores of their classes."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    n = len(classes.label)
    if values is None and color == "score":
        numbers = np.append(classes.ranking.score, np.nan)[classes.label]
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
    return Shades(numbers, ScalarMappable(Normalize(low, high), shades))


def style_of(classes: Classification, shades: Shades | None) -> Style:
    """Give images and classes their colours and shapes; without shades, each class has its own."""
    from matplotlib.colors import to_rgba_array

    junk = classes.ranking.junk
    # Junk classes and the others are numbered separately.
    number = np.where(junk, np.cumsum(junk), np.cumsum(~junk)) - 1
    table, greys = to_rgba_array(COLORS), to_rgba_array(JUNK_COLORS)
    of_class = np.where(junk[:, None], greys[number % len(greys)], table[number % len(table)])
    kept_shape = np.array(SHAPES)[number // len(COLORS) % len(SHAPES)]
    shape = np.where(junk, JUNK_SHAPE, kept_shape)
    pale = to_rgba_array(_NO_CLASS)
    if shades is None:
        return Style(np.concatenate([of_class, pale])[classes.label], of_class, shape)
    known = np.isfinite(shades.values)
    of_image = np.where(known[:, None], shades.mappable.to_rgba(np.where(known, shades.values, 0)), pale)
    for k in range(len(of_class)):
        members = shades.values[(classes.label == k) & known]
        of_class[k] = shades.mappable.to_rgba(np.median(members)) if len(members) else pale[0]
    return Style(of_image, of_class, shape)


def class_tiles(classes: Classification, chosen: Indices) -> Images:
    """Return averages with grey values from 0 to 1."""
    tiles = classes.averages.averages[chosen]
    box = tiles.shape[-1]
    offset = np.arange(box) - (box - 1) / 2
    inside = np.hypot(offset[:, None], offset) <= box / 2
    return stretch_contrast(tiles, _DARKEST, _BRIGHTEST, inside).astype(np.float32)


def readable_on(color: Floats) -> str:
    """Return black or white, whichever can be read on a colour."""
    return "black" if float(color[:3] @ (0.299, 0.587, 0.114)) > 0.55 else "white"


def totals(classes: Classification) -> str:
    """Say how many images and classes there are, and how many are junk or have no class."""
    n, count, n_junk = len(classes.label), len(classes.averages.size), int(classes.ranking.junk.sum())
    n_left = int((classes.label < 0).sum())
    parts = [f"{counted(n, 'image')} in {counted(count, 'class')}"]
    if n_junk:
        in_junk = int(np.append(classes.ranking.junk, False)[classes.label].sum())
        parts.append(f"{n_junk} of them junk ({counted(in_junk, 'image')})")
    if n_left:
        parts.append(f"{counted(n_left, 'image')} without a class")
    return ", ".join(parts)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in the right form."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"
