"""Denoised images as files: a stack, the table that names it, and a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastsort._types import FilePath, Floats, Images, Indices
from fastsort.denoise import Denoiser
from fastsort.denoising.risk import inscribed_disk
from fastsort.particles.mrc import write_stack
from fastsort.particles.open import open_particles
from fastsort.particles.source import Particles, evenly_spaced
from fastsort.report.canvas import HEADING, MARGIN, add_panel, new_figure, save_figure, write, write_heading
from fastsort.report.folder import DENOISED, DENOISED_STACK, SUMMARY
from fastsort.report.layout import WIDTH
from fastsort.report.tables import software_versions, write_json

# The picture: so many images, each before and after, in rows of so many pairs.
N_SHOWN, PAIRS = 24, 6
_GAP, _LABEL = 12, 26
# Percentiles of a picture that become black and white.
_DARKEST, _BRIGHTEST = 0.5, 99.5
WARNING = (
    "Denoised images are for eyes and for picking, not for reconstruction: they show what is likely, not "
    "what was measured."
)


def write_denoised(
    folder: FilePath,
    final: FilePath,
    particles: Particles,
    blocks: Iterable[Images],
    *,
    half: bool = False,
) -> Floats:
    """Write denoised images as a stack, and the table that names them.

    Parameters
    ----------
    folder, final : path
        Where the files are written, and where they will lie in the end: the table names the stack there.
    particles : Particles
        What was denoised.
    blocks : iterable of ndarray of float32, shape (m, d, d)
        All denoised images in order; never held together.
    half : bool
        Whether the stack has half precision.

    Returns
    -------
    strength : ndarray of float64, shape (n,)
        Mean square of each denoised image inside the disk of radius d / 2; NaN for those that are not.

    Notes
    -----
    The table differs from that of the images in their names alone. Where nothing names them, there is only
    the stack.
    """
    folder, strength = Path(folder), np.empty(len(particles))
    path = folder / DENOISED_STACK
    measured = _measured(blocks, strength, particles.box)
    write_stack(path, measured, particles.pixel_size, len(particles), particles.box, half=half)
    added = particles.table.naming(os.path.join(os.fspath(final), DENOISED_STACK))
    if added is not None:
        particles.table.write_part(folder, DENOISED, np.arange(len(particles)), added)
    return strength


def _measured(blocks: Iterable[Images], strength: Floats, box: int) -> Iterator[Images]:
    disk, start = inscribed_disk(box), 0
    for block in blocks:
        with np.errstate(over="ignore", invalid="ignore"):
            square = np.square(block[:, disk], dtype=np.float64).mean(axis=1)
            strength[start : start + len(block)] = np.where(
                np.isfinite(block).all(axis=(1, 2)), square, np.nan
            )
        start += len(block)
        yield block


def write_summary(
    folder: FilePath, particles: Particles, strength: Floats, denoiser: Denoiser, seconds: float
) -> dict[str, Any]:
    """Write ``summary.json``, and return what it holds."""
    left = np.flatnonzero(~np.isfinite(strength)).tolist()
    summary = {
        "input": particles.path and os.path.abspath(particles.path),
        "images": len(particles),
        "box": particles.box,
        "pixel_size": particles.pixel_size,
        "method": denoiser.method,
        "strength": denoiser.strength,
        "predicted_error": denoiser.error,
        "standard_error": denoiser.doubt,
        "compared": denoiser.compared,
        "snr": denoiser.snr,
        "ctf_corrected": denoiser.ctf_corrected,
        "left_as_they_were": [particles.names[row] for row in left],
        "seconds": seconds,
        "remark": WARNING,
        "versions": software_versions(),
    }
    write_json(Path(folder) / SUMMARY, summary)
    return summary


def draw_denoised(
    path: FilePath, stack: FilePath, particles: Particles, strength: Floats, denoiser: Denoiser
) -> None:
    """Draw images before and after, the strongest first, as one PNG.

    Parameters
    ----------
    path : path
        The PNG to write, 1600 px wide.
    stack : path
        Of the denoised images.
    particles : Particles
    strength : ndarray of float64, shape (n,)
        As from `write_denoised`.
    denoiser : Denoiser

    Raises
    ------
    ImportError
        When matplotlib is not installed.

    Notes
    -----
    At most 24 images are drawn, spread evenly over all by how strong the denoised image is. The number below
    each is the power of the denoised image inside the disk over that of the noise.
    """
    chosen = spread_over(strength, N_SHOWN)
    before = particles.read(chosen)
    after = open_particles(stack).read(chosen)
    side = ((WIDTH - 2 * MARGIN + _GAP) // PAIRS - 2 * _GAP) // 2
    rows = max(1, -(-len(chosen) // PAIRS))
    height = HEADING + rows * (side + _LABEL + _GAP) + MARGIN
    figure = new_figure(height)
    known = np.isfinite(denoiser.error)
    error = f", predicted error {denoiser.error:.3f} of the particles' power" if known else ""
    words = f"{len(particles):,} images denoised with {denoiser.method}{error}"
    details = f"{len(chosen)} of them before and after, the strongest first; below: power over noise"
    write_heading(figure, words, details)
    for number, image in enumerate(chosen.tolist()):
        left = MARGIN + number % PAIRS * (2 * side + 2 * _GAP)
        top = HEADING + number // PAIRS * (side + _LABEL + _GAP)
        for step, pixels in enumerate((before[number], after[number])):
            _draw(figure, (left + step * (side + 2), top, side, side), pixels)
        ratio = strength[image] / denoiser.noise_power
        label = f"{ratio:.2g}" if np.isfinite(ratio) else "not denoised"
        write(figure, left + side + 1, top + side + 18, label, fontsize=11, ha="center")
    write(figure, MARGIN, height - 10, WARNING, fontsize=11, color="0.3")
    save_figure(figure, path)


def spread_over(strength: Floats, number: int) -> Indices:
    """Return some of the images, the strongest first, evenly spread over all by their rank."""
    order = np.argsort(-np.nan_to_num(strength, nan=-1.0, posinf=-1.0), kind="stable")
    return order[evenly_spaced(len(order), number)]


def _draw(figure: Any, place: tuple[int, int, int, int], pixels: Images) -> None:
    axes = add_panel(figure, place)
    axes.axis("off")
    usable = pixels[np.isfinite(pixels)]
    low, high = np.percentile(usable, (_DARKEST, _BRIGHTEST)) if usable.size else (0.0, 1.0)
    axes.imshow(
        np.nan_to_num(pixels, nan=low, posinf=high, neginf=low),
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-12),
        interpolation="nearest",
    )
