"""A map as files: classes and their averages for RELION, and one table of all images."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fastsort._types import Array, FilePath, Indices
from fastsort.classify import DenoisedClasses, MapResult
from fastsort.invariants.ranking import RADIUS
from fastsort.particles.mrc import write_stack
from fastsort.particles.source import Particles
from fastsort.particles.table import Added
from fastsort.report.folder import CLASS_STACK, IMAGES, SUMMARY
from fastsort.report.made import how_made
from fastsort.report.recentre import origin_columns
from fastsort.report.subsets import write_subset
from fastsort.report.tables import formatted, software_versions, write_json, write_rows

# The score, in a STAR file, of images without a class.
NO_SCORE = 999999.0


def write_map(
    folder: FilePath, particles: Particles, result: MapResult, command: str | None = None
) -> dict[str, Any]:
    """Write all results of a map but its pictures.

    Parameters
    ----------
    folder : path
        An existing folder. Gets ``classes.mrcs``, the averages;
        ``classes.star``, which names them and describes each; ``images.csv``, one line for each image;
        ``summary.json``; and ``kept`` and ``rejected`` as `write_subset` writes them. If the input was a
        STAR or .cs file, also ``particles.star`` or ``particles.cs``: all images, with their classes, angles
        and shifts.
        Classes are counted from 1, as in RELION; 0 is no class.
    particles : Particles
        What was classified.
    result : MapResult
        As from `classify_particles`.
    command : str, optional
        The command line, for the summary.

    Returns
    -------
    summary : dict
        As from `summarize_map`, with "made" as from `how_made`.

    Raises
    ------
    OSError
        When the disk refuses.
    """
    folder = Path(folder)
    classes = result.classes
    averages = classes.averages
    _write_images(folder / IMAGES, particles, result)
    table = particles.table
    labels = _star_columns(particles, result) if table.takes == "labels" else {}
    added = Added(labels, _cs_fields(particles, result))
    if table.names is not None:
        write_subset(folder, "particles", table, np.arange(len(particles)), added)
    for name, keep in (("kept", result.keep), ("rejected", ~result.keep)):
        write_subset(folder, name, table, np.flatnonzero(keep), added)
    if len(averages.size):
        stack = averages.averages
        write_stack(folder / CLASS_STACK, [stack], result.pixel_size, len(stack), stack.shape[1])
        _write_classes(folder / "classes.star", result)
    summary = {**summarize_map(particles, result), "made": how_made(particles.files, command)}
    write_json(folder / SUMMARY, summary)
    return summary


def summarize_map(particles: Particles, result: MapResult) -> dict[str, Any]:
    """Return the content of ``summary.json``; an unknown number is NaN."""
    classes = result.classes
    n, kept = len(particles), int(result.keep.sum())
    seconds = result.seconds["total"]
    groups = classes.group
    members = members_of_classes(result)
    return {
        "input": particles.path and os.path.abspath(particles.path),
        "images": n,
        "kept": kept,
        "rejected": n - kept,
        "without_class": int((classes.label < 0).sum()),
        "classes": len(members),
        "junk_classes": (np.flatnonzero(classes.ranking.junk) + 1).tolist(),
        "groups": [int(members[groups == k].sum()) for k in range(int(groups.max(initial=-1)) + 1)],
        "embedding": classes.map.embedding,
        "components": classes.map.n_components,
        "box": particles.box,
        "pixel_size": particles.pixel_size,
        "class_box": classes.averages.averages.shape[1],
        "class_pixel_size": result.pixel_size,
        "diameter": _diameter(particles, result),
        "diameter_given": result.parameters["diameter"] is not None,
        "phase_flipped": result.phase_flipped,
        "denoised": _summarize_denoised(result.denoised),
        "doubts": list(result.doubts),
        "parameters": result.parameters,
        "seconds": result.seconds,
        "images_per_second": n / seconds if seconds > 0 else math.nan,
        "versions": software_versions(),
    }


def _diameter(particles: Particles, result: MapResult) -> float:
    """Return the diameter in angstroms of the disk that counted as the particle."""
    given = result.parameters["diameter"]
    return 2 * RADIUS * particles.box * particles.pixel_size if given is None else float(given)


def _summarize_denoised(denoised: DenoisedClasses | None) -> dict[str, Any] | None:
    """Say what comes of denoised images; classes have more fields than belong here."""
    if denoised is None:
        return None
    return {name: value for name, value in denoised._asdict().items() if name != "classes"}


def members_of_classes(result: MapResult) -> Indices:
    """Return how many images each class has, copies too, shape (C,); its average counts distinct ones."""
    classes = result.classes
    return np.bincount(classes.label[classes.label >= 0], minlength=len(classes.averages.size))


def _star_columns(particles: Particles, result: MapResult) -> dict[str, Sequence[str]]:
    """Classes and poses in RELION's terms, which turn and move an image onto its average."""
    classes = result.classes
    averages = classes.averages
    placed = classes.label >= 0
    return {
        "_rlnClassNumber": formatted(classes.label + 1, "%d"),
        "_rlnAnglePsi": formatted(np.where(placed, averages.angle, 0.0), "%.6f"),
        **origin_columns(particles, offset_in_box(particles, result), placed),
        "_rlnMaxValueProbDistribution": formatted(classes.probability, "%.6g"),
        "_fastsortClassScore": formatted(np.minimum(result.score, NO_SCORE), "%.6g"),
        "_fastsortMapX": formatted(classes.map.coordinates[:, 0], "%.5g"),
        "_fastsortMapY": formatted(classes.map.coordinates[:, 1], "%.5g"),
    }


def _cs_fields(particles: Particles, result: MapResult) -> dict[str, Array]:
    """The same as cryoSPARC has it, where classes count from 0; images without a class get its first."""
    classes = result.classes
    placed = classes.label >= 0
    shift = np.where(placed[:, None], -offset_in_box(particles, result)[:, ::-1], 0)
    return {
        "alignments2D/class": np.maximum(classes.label, 0).astype(np.uint32),
        "alignments2D/class_posterior": classes.probability.astype(np.float32),
        "alignments2D/pose": np.radians(np.where(placed, classes.averages.angle, 0)).astype(np.float32),
        "alignments2D/shift": shift.astype(np.float32),
        # Two halves, which some readers ask for.
        "alignments2D/split": (np.arange(len(placed)) % 2).astype(np.uint32),
        "alignments2D/psize_A": np.full(len(placed), particles.pixel_size, dtype=np.float32),
        "fastsort/class": (classes.label + 1).astype(np.uint32),
    }


def offset_in_box(particles: Particles, result: MapResult) -> Array:
    """Return where the particle lies in each image: row and column from pixel box // 2, in input pixels."""
    averages = result.classes.averages
    return averages.shift.astype(np.float64) * (particles.box / averages.averages.shape[1])


def _write_images(path: Path, particles: Particles, result: MapResult) -> None:
    classes = result.classes
    averages = classes.averages
    offset = offset_in_box(particles, result)
    numbers: dict[str, Array] = {
        "class": classes.label + 1,
        "keep": result.keep,
        "score": result.score,
        "group": np.append(classes.group, -1)[classes.label] + 1,
        "probability": classes.probability,
        "likeness": averages.score,
        "angle": averages.angle,
        "offset_x": offset[:, 1],
        "offset_y": offset[:, 0],
        "map_x": classes.map.coordinates[:, 0],
        "map_y": classes.map.coordinates[:, 1],
    }
    if result.denoised is not None:
        numbers["class_denoised"] = result.denoised.classes.label + 1
    write_rows(path, particles, numbers)


def _write_classes(path: Path, result: MapResult) -> None:
    """Write one line for each class, under RELION's labels where RELION has one."""
    classes = result.classes
    averages, ranking = classes.averages, classes.ranking
    known = math.isfinite(result.pixel_size)
    columns: dict[str, Array] = {
        "rlnClassNumber": np.arange(1, len(averages.size) + 1),
        "rlnClassDistribution": members_of_classes(result) / max(1, len(classes.label)),
        "rlnEstimatedResolution": np.minimum(averages.resolution, NO_SCORE),
        "fastsortClassSize": averages.size,
        "fastsortClassScore": np.minimum(ranking.score, NO_SCORE),
        "fastsortClassJunk": ranking.junk,
        "fastsortClassGroup": classes.group + 1,
        "fastsortClassSpread": averages.spread,
        **{
            f"fastsortClass{name.capitalize()}": getattr(ranking, name)
            for name in ("displaced", "offset", "strength", "sharpness", "likeness", "compactness")
        },
    }
    if not known:
        del columns["rlnEstimatedResolution"]
    labels = ["rlnReferenceImage", *columns]
    names = [f"{k:06d}@{CLASS_STACK}" for k in range(1, len(averages.size) + 1)]
    rows = zip(names, *(formatted(values, "%.6g") for values in columns.values()), strict=True)
    header = ["", "# version 30001", "", "data_model_classes", "", "loop_"]
    header += [f"_{label} #{i}" for i, label in enumerate(labels, 1)]
    text = "\n".join(chain(header, map(" ".join, rows), ["", ""]))
    path.write_text(text, encoding="ascii")
