"""Verdicts as files: STAR subsets or index lists, one table of scores, one summary."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastsort._reasons import REASONS, count_reasons
from fastsort._version import __version__
from fastsort.decide.copies import CONTENT, STAMP
from fastsort.decide.result import BY_HAND
from fastsort.particles.mrc import write_stack as write_mrc_stack
from fastsort.particles.source import Particles
from fastsort.particles.table import Added
from fastsort.report.subsets import subsets, write_subset

if TYPE_CHECKING:
    from fastsort.decide.micrographs import MicrographTable
    from fastsort.decide.result import SortResult
    from fastsort.subspaces.mixture import SubspaceModel

_ROWS_AT_ONCE = 50_000
_BYTES_AT_ONCE = 1 << 25
_NO_SCORE = 999999.0
_LIBRARIES = ("numpy", "numba", "scipy")


def write_tables(
    folder: str | os.PathLike[str],
    particles: Particles,
    result: SortResult,
    *,
    write_stack: bool = False,
    micrographs: MicrographTable | None = None,
    origins: Added | None = None,
    learned: dict[str, Any] | None = None,
    score_field: bool = False,
    made: dict[str, Any] | None = None,
) -> None:
    """Write the verdicts.

    Parameters
    ----------
    folder : path
        An existing folder. Gets ``scores.csv`` and ``summary.json``; further ``kept`` and ``rejected``
        as `write_subset` writes them. Images that were set aside as rare views stand in ``rescued``
        instead of the rejected ones; without any there is no such file.
        An image without a score is 999999 in a STAR or .cs file and nan in ``scores.csv``.
    particles : Particles
        What was sorted.
    result : SortResult
        As from `sort_particles`.
    write_stack : bool
        Whether to copy the kept images, unchanged, to ``kept.mrcs``. Where none
        is kept there is no such file.
    micrographs : MicrographTable, optional
        As from `summarize_micrographs`.
    origins : Added, optional
        As from `recentred`: where each particle lies.
    learned : dict, optional
        What an earlier summary says of the subspaces, where the result no longer holds them.
    score_field : bool
        Whether .cs files get the fields ``fastsort/score`` and ``fastsort/junk_probability``.
    made : dict, optional
        As from `how_made`.

    Raises
    ------
    OSError
        When the disk refuses.
    """
    folder = Path(folder)
    table = particles.table
    places = origins or Added()
    added = Added(
        {**_star_columns(particles, result), **places.labels} if table.takes == "labels" else {},
        {**(_cs_fields(result) if table.takes == "fields" and score_field else {}), **places.fields},
    )
    parts = subsets(result.keep, result.rescued)
    for name, indices in parts.items():
        write_subset(folder, name, table, indices, added)
    _write_scores(folder / "scores.csv", particles, result)
    summary = summarize(particles, result, micrographs)
    summary["made"] = made
    summary["recentred"] = origins is not None
    summary["score_field"] = score_field
    summary["subspaces"] = summary["subspaces"] or learned
    write_json(folder / "summary.json", summary)
    kept = parts["kept"]
    if write_stack and len(kept):
        blocks = image_blocks(particles, kept)
        write_mrc_stack(folder / "kept.mrcs", blocks, particles.pixel_size, len(kept), particles.box)


def summarize(
    particles: Particles, result: SortResult, micrographs: MicrographTable | None = None
) -> dict[str, Any]:
    """Return what ``summary.json`` holds; an unknown number is NaN."""
    n = len(particles)
    parts = subsets(result.keep, result.rescued)
    counts = {name: len(indices) for name, indices in parts.items()}
    seconds = result.seconds.get("total", math.fsum(result.seconds.values()))
    return {
        "input": particles.path and os.path.abspath(particles.path),
        "opened_with": particles.opened_with,
        "files": {name: particles.table.part_name(name) for name in parts},
        "images": n,
        "kept": counts["kept"],
        "rejected": counts["rejected"],
        "rescued": counts.get("rescued", 0),
        "reasons": count_reasons(result.reason_code),
        "by_hand": int(np.count_nonzero(result.measurements.get(BY_HAND, 0))),
        "votes": list(result.votes),
        "errors": None if result.errors is None else _nested(result.errors),
        "micrographs": None if micrographs is None else _summarize_micrographs(micrographs),
        "box": particles.box,
        "pixel_size": particles.pixel_size,
        "diameter": result.diameter,
        "diameter_px": result.diameter_px,
        "diameter_estimated": result.diameter_estimated,
        "contrast": result.contrast,
        "phase_flipped": result.phase_flipped,
        "cut": result.threshold,
        "doubts": list(result.doubts),
        "subspaces": None if result.subspaces is None else _summarize_model(result.subspaces.model),
        "parameters": result.parameters,
        "seconds": result.seconds,
        "images_per_second": n / seconds if seconds > 0 else math.nan,
        "versions": software_versions(),
    }


def _nested(value: Any) -> Any:
    """Return named tuples as dictionaries."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _nested(item) for key, item in value.items()}
    return value


def _summarize_micrographs(table: MicrographTable) -> dict[str, Any]:
    drop = [name for name, chosen in zip(table.name, table.drop.tolist(), strict=True) if chosen]
    return {"number": len(table.name), "drop": drop, "trends": table.trends}


def _summarize_model(model: SubspaceModel) -> dict[str, Any]:
    trace = model.trace
    learned = len(trace.n_images) > 0
    return {
        "number": len(model.weights) if learned else 0,
        "components": model.loadings.shape[2] if learned else 0,
        "weights": model.weights if learned else [],
        "noise_variance": model.noise_variance if learned else math.nan,
        "iterations": len(trace.n_images),
        "images": int(trace.n_images[-1]) if learned else 0,
        "log_likelihood": {
            "first": float(trace.log_likelihood[0]) if learned else math.nan,
            "last": float(trace.log_likelihood[-1]) if learned else math.nan,
        },
    }


def _star_columns(particles: Particles, result: SortResult) -> dict[str, Sequence[str]]:
    known = math.isfinite(particles.pixel_size)
    unit, pixel_size = ("Angst", particles.pixel_size) if known else ("", 1.0)
    columns: dict[str, Sequence[str]] = {
        "_rlnParticleSelectZScore": formatted(_for_relion(result.score), "%.6f"),
        "_fastsortReason": _shared_words(result).tolist(),
    }
    if np.isfinite(result.junk_probability).any():
        # RELION would read nan as 0, and so as certainly good.
        columns["_fastsortJunkProbability"] = formatted(np.nan_to_num(result.junk_probability, nan=1), "%.6f")
    if BY_HAND in result.measurements:
        columns["_fastsortByHand"] = formatted(result.measurements[BY_HAND], "%d")
    if list(result.votes) == ["subspaces"]:
        factor, log_likelihood = (result.measurements[name] for name in ("factor", "log_likelihood"))
        columns["_fastsortSortingFactor"] = formatted(_for_relion(factor), "%.6g")
        # The smaller, the worse.
        columns["_fastsortLogLikelihood"] = formatted(-_for_relion(-log_likelihood), "%.6g")
    if np.isfinite(result.offset).any():
        offset = result.offset.astype(np.float64) * pixel_size
        columns[f"_fastsortOffsetX{unit}"] = formatted(offset[:, 1], "%.3f")
        columns[f"_fastsortOffsetY{unit}"] = formatted(offset[:, 0], "%.3f")
    return columns


def _cs_fields(result: SortResult) -> dict[str, npt.NDArray[Any]]:
    return {
        "fastsort/score": _for_relion(result.score).astype(np.float32),
        # NaN where it is unknown.
        "fastsort/junk_probability": result.junk_probability.astype(np.float32),
    }


def _for_relion(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # RELION reads nan as 0, which would be a good score.
    return np.nan_to_num(values, nan=_NO_SCORE, posinf=_NO_SCORE, neginf=-_NO_SCORE)


def _shared_words(result: SortResult) -> npt.NDArray[np.object_]:
    """Return the reasons of all images; each word is in memory once, which `SortResult.reason` cannot do."""
    return np.array(REASONS, object)[result.reason_code]


def _write_scores(path: Path, particles: Particles, result: SortResult) -> None:
    # In the pixels of each image's own stack.
    offset = result.offset if particles.rescaled is None else result.offset * particles.rescaled[:, None]
    numbers: dict[str, npt.NDArray[Any]] = {
        **particles.table.identifiers(),
        "keep": result.keep,
        "reason": _shared_words(result),
        "score": result.score,
        "junk_probability": result.junk_probability,
        "offset_x": offset[:, 1],
        "offset_y": offset[:, 0],
        "rescued": result.rescued,
        **{name: values for name, values in result.measurements.items() if name not in (CONTENT, STAMP)},
    }
    if len(result.votes) > 1:
        numbers |= {f"vote_{name}": values for name, values in result.votes.items()}
    write_rows(path, particles, numbers)


def write_rows(path: Path, particles: Particles, columns: dict[str, npt.NDArray[Any]]) -> None:
    """Write a CSV table: a line an image, with its index, its name and what else `columns` hold."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["index", "name", *columns])
        for start in range(0, len(particles), _ROWS_AT_ONCE):
            rows = slice(start, min(start + _ROWS_AT_ONCE, len(particles)))
            writer.writerows(
                zip(
                    range(rows.start, rows.stop),
                    particles.names[rows],
                    *(formatted(values[rows], "%.7g") for values in columns.values()),
                    strict=True,
                )
            )


def formatted(values: npt.NDArray[Any], pattern: str) -> Sequence[str]:
    """Return numbers as words; only those with a fraction follow `pattern`."""
    if values.dtype.kind != "f":
        return list(map(str, values.astype(int).tolist() if values.dtype.kind == "b" else values.tolist()))
    return list(map(str.__mod__, repeat(pattern, len(values)), values.tolist()))


def write_json(path: Path, summary: dict[str, Any]) -> None:
    """Write a summary; what is not finite becomes null."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(_plain(summary), file, indent=2, allow_nan=False)
        file.write("\n")


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def software_versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of what it computes with."""
    found = {"fastsort": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def image_blocks(particles: Particles, indices: npt.NDArray[np.intp]) -> Iterator[npt.NDArray[np.float32]]:
    """Read images block by block."""
    step = max(1, _BYTES_AT_ONCE // (4 * particles.box**2))
    for start in range(0, len(indices), step):
        yield particles.read(indices[start : start + step])
