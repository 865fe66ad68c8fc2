"""The picture ``report.png``: scores, reasons, and the best, the borderline and the worst images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastsort._reasons import BAD_PIXELS, FLAT, REASONS, VALID
from fastsort._types import Bools, FilePath, Floats, Images, Indices, Singles
from fastsort._version import __version__
from fastsort.decide.result import SortResult
from fastsort.particles.source import Particles
from fastsort.report.canvas import new_figure, save_figure
from fastsort.report.denoised_tiles import TileDenoiser, denoised_tiles
from fastsort.report.layout import COLUMNS, GAP, LABEL, TILE, WIDTH
from fastsort.report.learned import N_PAIRS, draw_learned, learned_height
from fastsort.report.png import Greys
from fastsort.report.tiles import flip_as_sorted, read_tiles
from fastsort.report.words import diameter_words, flip_words

N_TILES = 24
_HEIGHT = 1520
_KEPT, _REJECTED = "#0072B2", "#D55E00"
_NOT_JUDGED = REASONS[BAD_PIXELS], REASONS[FLAT]


def draw_report(
    path: FilePath, particles: Particles, result: SortResult, *, denoiser: TileDenoiser | None = None
) -> None:
    """Draw scores, reasons, and the best, the borderline and the worst images as one PNG.

    The subspaces method adds the subspaces and the course of learning below.

    Parameters
    ----------
    path : path
        The PNG to write, 1600 px wide.
    particles : Particles
        What was sorted; up to 78 images are read.
    result : SortResult
        As from `sort_particles`.
    denoiser : TileDenoiser, optional
        As from `learn_tiles`; with it the images are drawn denoised.

    Raises
    ------
    ImportError
        When matplotlib is not installed.
    OSError
        When the disk refuses.
    """
    height = _HEIGHT + (0 if result.subspaces is None else learned_height(result.subspaces))
    figure = new_figure(height)
    # The upper part has the same size with and without a lower part.
    scale = _HEIGHT / height

    def upper(left: float, bottom: float, width: float, part: float) -> Any:
        return figure.add_axes((left, 1 - scale + scale * bottom, width, scale * part))

    def lower(left: float, top: float, width: float, part: float) -> Any:
        bottom = height - _HEIGHT - top - part
        return figure.add_axes((left / WIDTH, bottom / height, width / WIDTH, part / height))

    _write_title(figure, scale, particles, result)
    _draw_scores(upper(0.055, 0.725, 0.53, 0.19), result)
    _draw_reasons(upper(0.70, 0.725, 0.27, 0.19), result)
    for (title, indices), bottom in zip(_choices(result).items(), (0.452, 0.23, 0.008), strict=True):
        tiles = (
            read_tiles(particles, result, indices) if denoiser is None else denoised_tiles(denoiser, indices)
        )
        if denoiser is not None:
            title += ", denoised"
        _draw_montage(upper(0.02, bottom, 0.96, 0.195), title, indices, tiles, particles.box, result)
    if result.subspaces is not None:
        draw_learned(lower, result.subspaces, *_best_kept(particles, result))
    save_figure(figure, path)


def _write_title(figure: Any, scale: float, particles: Particles, result: SortResult) -> None:
    name = Path(particles.path).name if particles.path else "array"
    # The font lacks some letters.
    name = name.encode("ascii", "replace").decode()
    name = name if len(name) <= 60 else f"{name[:40]}...{name[-17:]}"
    n, kept = len(result.keep), int(result.keep.sum())
    title = f"{name}: {n:,} images, {kept:,} kept, {n - kept:,} rejected"
    facts = [diameter_words(result), f"{result.contrast} particles", flip_words(result)]
    details = ", ".join([*facts, f"fastsort {__version__}"])
    figure.text(0.025, 1 - scale + scale * 0.968, title, fontsize=19, fontweight="bold", parse_math=False)
    figure.text(0.025, 1 - scale + scale * 0.945, details, fontsize=12, color="0.3", parse_math=False)


def _draw_scores(axes: Any, result: SortResult) -> None:
    axes.set_title("Scores", loc="left", fontsize=13, fontweight="bold")
    axes.set_xlabel("score (larger for junk)", fontsize=11)
    axes.set_ylabel("images", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    scored = np.isfinite(result.score)
    scores, keep = result.score[scored], result.keep[scored]
    if len(scores) == 0:
        axes.text(0.5, 0.5, "no image has a score", transform=axes.transAxes, ha="center", va="center")
        return
    edges = _edges(scores, result.threshold)
    shown = np.clip(scores, edges[0], edges[-1])
    groups = [shown[keep], shown[~keep]]
    names = [f"kept ({keep.sum():,})", f"rejected ({(~keep).sum():,})"]
    axes.hist(groups, edges, stacked=True, color=(_KEPT, _REJECTED), label=names)
    axes.set_xlim(edges[0], edges[-1])
    axes.locator_params(axis="y", integer=True)
    if np.isfinite(result.threshold):
        label = f"threshold {result.threshold:.3g}"
        axes.axvline(result.threshold, color="black", linestyle="--", linewidth=1.5, label=label)
    notes = [
        f"{count:,} images {where} the axis are counted in the {side} bar"
        for where, side, count in (
            ("left of", "first", (scores < edges[0]).sum()),
            ("right of", "last", (scores > edges[-1]).sum()),
        )
        if count
    ]
    if len(scores) < len(result.score):
        notes.append(f"{len(result.score) - len(scores):,} images have no score")
    style = {"loc": "upper right", "title_fontsize": 9, "fontsize": 10, "frameon": False}
    legend = axes.legend(title="\n".join(notes) or None, **style)
    if result.subspaces is not None:
        # Where all scores are near the threshold, the legend cannot avoid its line.
        legend.set_frame_on(True)
        legend.get_frame().set(edgecolor="none", alpha=0.85)


def _edges(scores: Floats, threshold: float) -> Floats:
    """Return the edges of the bars; the threshold is one of them, so that no bar lies on both sides."""
    ends = [threshold] if np.isfinite(threshold) else []
    low, high = np.percentile(scores, (0.5, 98))
    low, high = min([low, *ends]), max([high, *ends])
    step = (high - low) / 56 or 0.05
    origin = ends[0] if ends else low
    first, last = np.floor((low - origin) / step) - 2, np.ceil((high - origin) / step) + 3
    edges: Floats = origin + step * np.arange(first, last)
    return edges


def _draw_reasons(axes: Any, result: SortResult) -> None:
    counts = {name: int((result.reason == name).sum()) for name in REASONS}
    counts = {name: count for name, count in counts.items() if count}
    names = sorted(counts, key=lambda name: (name == REASONS[VALID], counts[name]))
    colors = [_KEPT if name == REASONS[VALID] else _REJECTED for name in names]
    bars = axes.barh(names, [counts[name] for name in names], color=colors)
    labels = [f"{counts[name]:,} ({100 * counts[name] / len(result.reason):.1f} %)" for name in names]
    axes.bar_label(bars, labels, padding=4, fontsize=10)
    axes.set_xlim(0, 1.4 * max(counts.values(), default=1))
    axes.set_ylim(-0.6, max(4, len(names)) - 0.4)
    axes.set_title("Reasons", loc="left", fontsize=13, fontweight="bold")
    axes.set_xlabel("images", fontsize=11)
    axes.tick_params(axis="y", labelsize=11)
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def _choices(result: SortResult) -> dict[str, Indices]:
    judged = np.flatnonzero(~np.isin(result.reason, _NOT_JUDGED) & ~np.isnan(result.score))
    order = judged[np.argsort(result.score[judged], kind="stable")]
    scores = result.score[order]
    finite = np.isfinite(scores)
    distance = np.where(finite, np.abs(np.where(finite, scores, 0) - result.threshold), np.inf)
    nearest = order[np.sort(np.argsort(distance, kind="stable")[:N_TILES])]
    border = "scores nearest to the threshold"
    if result.subspaces is not None and np.isnan(result.threshold):
        mixed = not result.keep[order].all()
        border = "highest scores kept, lowest scores rejected" if mixed else "no threshold"
        nearest = _border(order, result.keep[order])
    return {
        "Best: lowest scores": order[:N_TILES],
        f"Borderline: {border}": nearest,
        "Worst: highest scores": order[::-1][:N_TILES],
    }


def _border(order: Indices, keep: Bools) -> Indices:
    """Return the last kept and the first rejected images in the order of the scores; none if all are kept."""
    if keep.all():
        return order[:0]
    kept, rejected = order[keep][-N_TILES // 2 :], order[~keep][: N_TILES // 2]
    return np.concatenate([kept, rejected])


def _best_kept(particles: Particles, result: SortResult) -> tuple[Images, Floats]:
    """Return the kept images with the lowest scores, flipped where the run flipped them, and their scores."""
    kept = np.flatnonzero(result.keep)
    chosen = kept[np.argsort(result.score[kept], kind="stable")[:N_PAIRS]]
    return flip_as_sorted(particles.read(chosen), particles, result, chosen), result.score[chosen]


def _draw_montage(
    axes: Any, title: str, indices: Indices, tiles: Greys, box: int, result: SortResult
) -> None:
    width, height = TILE + GAP, TILE + LABEL
    axes.axis("off")
    count = f" ({len(indices)})" if len(indices) < N_TILES else ""
    axes.set_title(title + count, loc="left", fontsize=13, fontweight="bold", pad=4)
    for place, (index, tile) in enumerate(zip(indices.tolist(), tiles, strict=True)):
        left, top = place % COLUMNS * width, place // COLUMNS * height
        extent = (left, left + TILE, top + TILE, top)
        axes.imshow(tile, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="bilinear")
        axes.text(
            left + TILE / 2,
            top + TILE + 2,
            f"{result.score[index]:.3g} {result.reason[index]}",
            color=_KEPT if result.keep[index] else _REJECTED,
            fontsize=8.5,
            ha="center",
            va="top",
        )
    if len(indices) and np.isfinite(result.diameter_px):
        _draw_circle(axes, result.offset[indices[0]], result.diameter_px, box)
    elif not len(indices):
        axes.text(0, TILE / 2, "none", fontsize=12, color="0.4")
    axes.set_aspect("equal", anchor="NW")
    axes.set_xlim(0, COLUMNS * width)
    axes.set_ylim(-(-N_TILES // COLUMNS) * height, 0)


def _draw_circle(axes: Any, offset: Singles, diameter_px: float, box: int) -> None:
    from matplotlib.patches import Circle, Rectangle

    scale = TILE / box
    y, x = (np.nan_to_num(offset) + box // 2 + 0.5) * scale
    circle = Circle((x, y), diameter_px * scale / 2, fill=False, color="yellow", alpha=0.6)
    axes.add_patch(circle)
    circle.set_clip_path(Rectangle((0, 0), TILE, TILE, transform=axes.transData))
