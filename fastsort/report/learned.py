"""The lower part of the picture: the subspaces, and the course of learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from fastsort._types import Array, Floats, Images
from fastsort.report.layout import COLUMNS, GAP, LABEL, PIXELS_PER_UNIT, TILE
from fastsort.subspaces.filter import SubspaceResult
from fastsort.subspaces.pictures import denoised_images, eigenimages

MAX_ROWS = 4
_LABEL_COLUMNS = 2
_BLUE, _DROP = "#0072B2", "#D55E00"
# Heights in pixels.
_HEADING = 44
_ROW = round((TILE + LABEL + GAP) * PIXELS_PER_UNIT)
_NOTE = 40
_TRACE_TITLE, _TRACE, _TRACE_LABELS = 60, 200, 70
# If the largest value is more than so many times the smallest, the axis is logarithmic.
_WIDE = 100
# Axes with less than this share of the noise variance are not shown: few images fill few dimensions.
_LEAST = 1e-3

Place: TypeAlias = Callable[[float, float, float, float], Any]
"""Gives axes at left, top, width and height, in pixels."""


def learned_height(result: SubspaceResult) -> int:
    """Return how many pixels `draw_learned` needs."""
    if not is_learned(result):
        return _HEADING + _NOTE
    rows = min(len(result.model.weights), MAX_ROWS)
    return 2 * _HEADING + (rows + 1) * _ROW + _TRACE_TITLE + _TRACE + _TRACE_LABELS


def is_learned(result: SubspaceResult) -> bool:
    """Tell whether there were images to learn from."""
    return len(result.model.trace.n_images) > 0


def draw_learned(
    place: Place,
    result: SubspaceResult,
    images: Images,
    scores: Floats,
) -> None:
    """Draw mean and leading axes of each subspace, denoised images, and the course of learning.

    Parameters
    ----------
    place : callable
        ``place(left, top, width, height)`` in pixels gives axes; the origin is the upper left corner
        of this part, which is as high as `learned_height` says.
    result : SubspaceResult
    images : ndarray of float32, shape (k, d, d)
        At most 6 images to denoise, with phases flipped if the run flipped them.
    scores : ndarray of float64, shape (k,)
    """
    n_subspaces, _, n_components = result.model.loadings.shape
    if not is_learned(result):
        axes = _row(place, _HEADING, "Subspaces")
        note = "none: there were fewer than two images to learn from"
        axes.text(0, 8, note, fontsize=12, color="0.4", va="top")
        return
    shown = np.sort(np.argsort(-result.model.weights, kind="stable")[:MAX_ROWS])
    some = "" if len(shown) == n_subspaces else f", the {len(shown)} largest"
    plural = "" if n_components == 1 else "s"
    title = f"Subspaces: {n_subspaces} of {n_components} dimension{plural}{some}"
    pictures = eigenimages(result, COLUMNS - _LABEL_COLUMNS)
    for row, number in enumerate(shown.tolist()):
        axes = _row(place, _HEADING + row * _ROW, "" if row else title)
        text = f"Subspace {number + 1}\n{100 * result.model.weights[number]:.3g} % of the images"
        _draw_eigenimages(axes, text, pictures[number], result.model.noise_variance)
        if row == 0:
            _explain(axes, result)
    top = 2 * _HEADING + len(shown) * _ROW
    _draw_pairs(_row(place, top, "Denoised: the best of the kept images"), result, images, scores)
    _draw_trace(place, top + _ROW + _TRACE_TITLE, result)


def _row(place: Place, top: float, title: str) -> Any:
    axes = place(32, top, round(COLUMNS * (TILE + GAP) * PIXELS_PER_UNIT), _ROW)
    axes.axis("off")
    axes.set_xlim(0, COLUMNS * (TILE + GAP))
    axes.set_ylim(TILE + LABEL + GAP, 0)
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=4)
    return axes


def _explain(axes: Any, result: SubspaceResult) -> None:
    text = "mean, and axes with their variance in units of the noise variance"
    half = np.any(result.model.loadings != 0, axis=1) & ~np.any(
        result.model.loadings[:, result.basis.angular >= 0] != 0, axis=1
    )
    if half.any():
        text += "; of two axes that differ by a rotation, one is shown"
    axes.text(COLUMNS * (TILE + GAP) - GAP, -4, text, fontsize=11, color="0.3", ha="right")


def _draw_eigenimages(axes: Any, text: str, pictures: Images, noise_variance: float) -> None:
    axes.text(0, TILE / 2, text, fontsize=11, va="center", linespacing=1.5)
    # The basis is orthonormal, so an axis is as long as its picture.
    variances = np.square(pictures.astype(np.float64)).sum(axis=(1, 2)) / noise_variance
    shown = [0, *(1 + np.flatnonzero(variances[1:] >= _LEAST)).tolist()]
    for column, number in enumerate(shown, _LABEL_COLUMNS):
        label = f"{variances[number]:.3g} × noise" if number else "mean"
        _draw_tile(axes, column, pictures[number], label)


def _draw_pairs(
    axes: Any,
    result: SubspaceResult,
    images: Images,
    scores: Floats,
) -> None:
    if len(images) == 0:
        axes.text(0, 8, "no image is kept", fontsize=12, color="0.4", va="top")
        return
    seen, denoised = denoised_images(images, result)
    for pair, score in enumerate(scores.tolist()):
        _draw_tile(axes, 2 * pair, seen[pair], f"{score:.3g}")
        _draw_tile(axes, 2 * pair + 1, denoised[pair], "denoised")


def _draw_tile(axes: Any, column: int, picture: Array, label: str) -> None:
    left = column * (TILE + GAP)
    extent = (left, left + TILE, TILE, 0)
    # Zero, which is the background, is grey.
    highest = float(np.percentile(np.abs(picture), 99.8)) or 1.0
    options = {"cmap": "gray", "vmin": -highest, "vmax": highest, "interpolation": "bilinear"}
    axes.imshow(picture, extent=extent, aspect="auto", **options)
    axes.text(left + TILE / 2, TILE + 2, label, fontsize=8.5, ha="center", va="top")
    # Each image has changed the limits.
    axes.set_xlim(0, COLUMNS * (TILE + GAP))
    axes.set_ylim(TILE + LABEL + GAP, 0)


def _draw_trace(place: Place, top: float, result: SubspaceResult) -> None:
    trace = result.model.trace
    panels: tuple[tuple[str, str, Array], ...] = (
        ("Log-likelihood", "nats per image", trace.log_likelihood),
        ("Noise variance", "background = 1", trace.noise_variance),
        ("Images in use", "images", trace.n_images),
    )
    iterations = np.arange(1, len(trace.n_images) + 1)
    changes = 1 + np.flatnonzero(np.diff(trace.n_images))
    for column, (title, unit, values) in enumerate(panels):
        axes = place(110 + 520 * column, top, 390, _TRACE)
        axes.set_title(title, loc="left", fontsize=13, fontweight="bold")
        axes.set_xlabel("iteration", fontsize=11)
        axes.set_ylabel(unit, fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        style = "steps-mid" if values is trace.n_images else "default"
        axes.plot(iterations, values, color=_BLUE, marker="o", markersize=4, linewidth=1.5, drawstyle=style)
        for change in changes.tolist():
            label = None if change > changes[0] else "images dropped"
            axes.axvline(change + 0.5, color=_DROP, linestyle=":", linewidth=1.2, label=label)
        axes.set_xlim(0.5, len(iterations) + 0.5)
        axes.locator_params(axis="x", nbins=8, integer=True, min_n_ticks=1)
        _number(axes, values)
    if len(changes):
        axes.legend(loc="lower left", fontsize=10, edgecolor="none")


def _number(axes: Any, values: Array) -> None:
    low, high = float(np.min(values)), float(np.max(values))
    if values.dtype.kind == "i":
        axes.set_ylim(low - max(1, 0.15 * (high - low)), high + max(1, 0.3 * (high - low)))
        axes.locator_params(axis="y", nbins=5, integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    elif 0 < low and high > _WIDE * low:
        axes.set_yscale("log")
    else:
        # If nothing changed any more, the axis is wide enough to hide rounding errors.
        least = 1e-4 * max(abs(low), abs(high), 1e-300)
        if high - low < least:
            axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
        axes.locator_params(axis="y", nbins=5)
        axes.ticklabel_format(axis="y", useOffset=False)
