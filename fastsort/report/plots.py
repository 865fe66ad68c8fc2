"""What the picture ``report.png`` shows: scores, reasons, the best, the borderline and the worst images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastsort._reasons import REASONS, count_reasons
from fastsort._types import Bools, FilePath, Floats, Images, Indices
from fastsort._version import __version__
from fastsort.decide.by_hand import WITHOUT_PIXELS
from fastsort.decide.result import SortResult
from fastsort.particles.source import Particles
from fastsort.report.denoised_tiles import TileDenoiser, denoised_tiles
from fastsort.report.layout import N_PAIRS, N_TILES
from fastsort.report.picture import Bars, Picture, Row, picture_png
from fastsort.report.tiles import flip_as_sorted, read_tiles
from fastsort.report.words import diameter_words, flip_words


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
    Path(path).write_bytes(picture_png(picture_of(particles, result, denoiser=denoiser)))


def picture_of(particles: Particles, result: SortResult, *, denoiser: TileDenoiser | None = None) -> Picture:
    """Return what `draw_report` draws.

    Parameters
    ----------
    particles, result, denoiser
        As for `draw_report`.

    Returns
    -------
    picture : Picture
    """
    title, details = _title(particles, result)
    rows = []
    for heading, indices in _choices(result).items():
        tiles = (
            read_tiles(particles, result, indices) if denoiser is None else denoised_tiles(denoiser, indices)
        )
        rows.append(
            Row(
                heading if denoiser is None else f"{heading}, denoised",
                tiles,
                [f"{result.score[i]:.3g} {REASONS[result.reason_code[i]]}" for i in indices.tolist()],
                result.keep[indices],
                _circle(particles, result, indices),
            )
        )
    counts = count_reasons(result.reason_code)
    learned = None
    if result.subspaces is not None:
        learned = (result.subspaces, *_best_kept(particles, result))
    return Picture(title, details, _bars(result), {k: n for k, n in counts.items() if n}, rows, learned)


def _title(particles: Particles, result: SortResult) -> tuple[str, str]:
    name = Path(particles.path).name if particles.path else "array"
    # The font lacks some letters.
    name = name.encode("ascii", "replace").decode()
    name = name if len(name) <= 60 else f"{name[:40]}...{name[-17:]}"
    n, kept = len(result.keep), int(result.keep.sum())
    facts = [diameter_words(result), f"{result.contrast} particles", flip_words(result)]
    details = ", ".join([*facts, f"fastsort {__version__}"])
    return f"{name}: {n:,} images, {kept:,} kept, {n - kept:,} rejected", details


def _bars(result: SortResult) -> Bars | None:
    """Count the images in each bar; None where no image has a score."""
    scored = np.isfinite(result.score)
    scores, keep = result.score[scored], result.keep[scored]
    if len(scores) == 0:
        return None
    edges = _edges(scores, result.threshold)
    shown = np.clip(scores, edges[0], edges[-1])
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
    kept, rejected = (np.histogram(shown[part], edges)[0] for part in (keep, ~keep))
    return Bars(edges, kept, rejected, result.threshold, notes)


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


def _choices(result: SortResult) -> dict[str, Indices]:
    judged = np.flatnonzero(~np.isin(result.reason_code, WITHOUT_PIXELS) & ~np.isnan(result.score))
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


def _circle(particles: Particles, result: SortResult, indices: Indices) -> tuple[float, float, float] | None:
    """Return column, row and radius of the particle on the first tile, in parts of its side."""
    if not len(indices) or not np.isfinite(result.diameter_px):
        return None
    y, x = (np.nan_to_num(result.offset[indices[0]]) + particles.box // 2 + 0.5) / particles.box
    return float(x), float(y), result.diameter_px / particles.box / 2
