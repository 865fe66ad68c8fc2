"""The folder of picks: coordinate files, RELION's list of them, tables, and the extracted particles."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastsort._checks import InputError, check_readable
from fastsort._saved import load, save
from fastsort._types import Bools, FilePath, Indices
from fastsort.particles.micrographs import MicrographList, list_micrographs
from fastsort.particles.mrc import read_header, write_stack
from fastsort.particles.open import open_particles
from fastsort.pick import REASONS, PickResult, judge_picks
from fastsort.report.folder import COORDS, MICROGRAPHS, RESULTS, SCORES, SUMMARY, listed_folder
from fastsort.report.lists import read_list
from fastsort.report.tables import formatted, image_blocks, software_versions, write_json

LIST, STACK, PARTICLES = "autopick.star", "particles.mrcs", "particles.star"
ENDING = "_fastsort.star"
_SUFFIX = f"coords_suffix{ENDING}"
_JOB = re.compile(r"^.*?/job\d{3,}/")
# A box holds so many diameters, and its side has no large prime factor.
OF_DIAMETER = 1.5
_SIDES = sorted(
    2**a * 3**b * 5**c for a in range(1, 12) for b in range(7) for c in range(5) if a + b + c < 16
)


def file_names(names: Sequence[str]) -> list[str]:
    """Return the name of the coordinate file of each micrograph.

    Raises
    ------
    InputError
        If two micrographs would share one.
    """
    first: dict[str, str] = {}
    files = []
    for name in names:
        file = os.path.splitext(os.path.basename(name))[0] + ENDING
        other = first.setdefault(file, name)
        if other != name:
            raise InputError(
                f"micrographs {other} and {name} have one name, and so would their coordinate files: pick "
                "them in two runs, or rename one."
            )
        files.append(file)
    return files


def default_box(diameter_px: float) -> int:
    """Return a box in pixels for particles of a diameter in pixels."""
    return next(side for side in _SIDES if side >= OF_DIAMETER * diameter_px and side >= 16)


def write_picks(
    folder: FilePath,
    final: FilePath,
    result: PickResult,
    parameters: dict[str, Any],
) -> dict[str, Any]:
    """Write everything but the page and the particles.

    Parameters
    ----------
    folder : path
        An existing folder. Gets ``kept`` and ``rejected`` with one coordinate file a micrograph, RELION's
        list of the kept ones (``autopick.star``), ``scores.csv``, ``micrographs.csv``, ``summary.json`` and
        ``results.npz``.
    final : path
        What the folder will be called: the list names the files by it.
    result : PickResult
    parameters : dict
        Of the run, for the summary.

    Returns
    -------
    summary : dict
        For ``summary.json``, which `finish_summary` writes when all is known.
    """
    folder = Path(folder)
    names = result.names.tolist()
    files = file_names(names)
    for part, chosen in (("kept", result.keep), ("rejected", ~result.keep)):
        _write_each(listed_folder(folder / part, files), files, result, chosen)
    paths = [os.path.join(os.fspath(final), "kept", file) for file in files]
    listed = {"_rlnMicrographName": names, "_rlnMicrographCoordinates": paths}
    _write_star(folder / LIST, {"coordinate_files": listed})
    _write_scores(folder / SCORES, result)
    _write_micrographs(folder / MICROGRAPHS, result)
    save(folder / RESULTS, result)
    return summarize_picks(result, parameters)


class FinishedPicks(NamedTuple):
    """A finished run of picking, read back.

    Attributes
    ----------
    folder : Path
    result : PickResult
    summary : dict
        What ``summary.json`` holds.
    """

    folder: Path
    result: PickResult
    summary: dict[str, Any]


def open_picks(folder: FilePath) -> FinishedPicks:
    """Read back a finished run of picking.

    Parameters
    ----------
    folder : path
        As ``fastsort pick`` left it.

    Returns
    -------
    finished : FinishedPicks

    Raises
    ------
    InputError
        If the folder holds no such run, or a damaged one.
    """
    folder = Path(folder)
    result = load(folder / RESULTS)
    n = np.size(getattr(result, "keep", ()))
    columns = ("micrograph", "x", "y", "probability", "height", "reason")
    if not isinstance(result, PickResult) or any(np.shape(getattr(result, name)) != (n,) for name in columns):
        raise InputError(f"{folder} holds no whole run of `pick`: pick again.")
    with check_readable(folder / SUMMARY) as file:
        try:
            summary = json.load(file)
        except (ValueError, RecursionError):
            summary = None
    if not isinstance(summary, dict) or not _is_usable(summary.get("opened_with")):
        raise InputError(f"{folder / SUMMARY} is damaged: pick again.")
    return FinishedPicks(folder, result, summary)


def _is_usable(how: Any) -> bool:
    """Whether micrographs can be found again as a summary says; one of an earlier version says nothing."""
    return how is None or (
        isinstance(how, dict)
        and isinstance(how.get("folder"), str)
        and isinstance(how.get("data_dir"), (str, type(None)))
        and isinstance(how.get("micrographs"), list)
        and all(isinstance(name, str) for name in how["micrographs"])
    )


def list_again(finished: FinishedPicks) -> MicrographList | None:
    """Find the micrographs of a finished run where they were; None where they are no longer at hand."""
    how, size = finished.summary.get("opened_with"), finished.result.pixel_size
    if how is None:
        return None
    try:
        return list_micrographs(
            [os.path.join(how["folder"], name) for name in how["micrographs"]],
            pixel_size=size if math.isfinite(size) else None,
            data_dir=how["data_dir"],
        )
    except InputError:
        return None


def extracted_box(finished: FinishedPicks) -> int | None:
    """Return the side in pixels of the particles that a run has extracted; None where it has none."""
    stack = finished.folder / STACK
    return read_header(stack).nx if stack.is_file() else None


def list_of_picks(path: FilePath, result: PickResult) -> PickResult:
    """Keep the places of a list, counted from 0, and reject all others.

    Parameters
    ----------
    path : path
        As for `read_list`.
    result : PickResult

    Returns
    -------
    result : PickResult
        With another `keep`, `reason` and `by_hand`; this is 0 where the threshold says the same.
    """
    keep = read_list(path, len(result.keep)).astype(np.int8)
    likely = (result.probability >= result.threshold).astype(np.int8)
    return judge_picks(result, by_hand=keep - likely)


def write_picks_again(
    folder: FilePath, final: FilePath, finished: FinishedPicks, result: PickResult
) -> dict[str, Any]:
    """Write a finished run with another verdict, but for page and summary; particles are not extracted.

    Parameters
    ----------
    folder, final : path
        As for `write_picks`.
    finished : FinishedPicks
    result : PickResult
        Of the same places.

    Returns
    -------
    summary : dict
        As from `write_picks`.
    """
    earlier = finished.summary
    summary = write_picks(folder, final, result, earlier.get("parameters") or {})
    suffix = finished.folder / COORDS / _SUFFIX
    if suffix.is_file():
        write_coords_suffix(folder, result, suffix.read_text("utf-8", "surrogateescape").strip())
    if "opened_with" in earlier:
        summary["opened_with"] = earlier["opened_with"]
    return summary


def finish_summary(folder: FilePath, summary: dict[str, Any]) -> None:
    """Write ``summary.json``."""
    write_json(Path(folder) / SUMMARY, summary)


def write_coords_suffix(folder: FilePath, result: PickResult, source: str) -> None:
    """Write the kept picks as RELION 3.1 looks for them.

    Parameters
    ----------
    folder : path
        As for `write_picks`. Gets the folder ``coords``.
    result : PickResult
    source : str
        What the micrographs are listed in; RELION shows it.

    Notes
    -----
    RELION 3.1 finds the picks of ``MotionCorr/job002/Micrographs/a.mrc`` beside the file
    ``coords_suffix_fastsort.star``, in ``Micrographs/a_fastsort.star``: what follows the job in the name.
    """
    names = result.names.tolist()
    places = [_JOB.sub("", name.lstrip("/")) for name in names]
    files = [os.path.splitext(os.path.normpath(place))[0] + ENDING for place in places]
    inside = listed_folder(Path(folder) / COORDS, [_SUFFIX, *files])
    _write_each(inside, files, result, result.keep)
    (inside / _SUFFIX).write_text(f"{source}\n", "utf-8", "surrogateescape")


def summarize_picks(result: PickResult, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return what ``summary.json`` holds."""
    learned = result.learned
    return {
        "micrographs": len(result.names),
        "places": len(result.x),
        "kept": int(result.keep.sum()),
        "reasons": {name: int((result.reason == name).sum()) for name in REASONS},
        "by_hand": 0 if result.by_hand is None else int(np.count_nonzero(result.by_hand)),
        "contaminated": float(np.nanmean(result.contaminated))
        if np.isfinite(result.contaminated).any()
        else math.nan,
        "pixel_size": result.pixel_size,
        "diameter": result.diameter,
        "diameter_px": result.diameter_px,
        "diameter_found": result.diameter_found,
        "contrast": result.contrast,
        "threshold": result.threshold,
        "binning": None if learned is None else learned.template.binning,
        "evidence": None if learned is None else learned.template.evidence,
        "failed": result.failed,
        "doubts": list(result.doubts),
        "parameters": parameters,
        "seconds": result.seconds,
        "software": software_versions(),
    }


def _write_each(folder: Path, files: list[str], result: PickResult, chosen: Bools) -> None:
    """Write the chosen places of each micrograph into its file."""
    bounds = np.searchsorted(result.micrograph, np.arange(len(files) + 1)).tolist()
    for file, start, stop in zip(files, bounds[:-1], bounds[1:], strict=True):
        _write_coordinates(folder / file, result, start + np.flatnonzero(chosen[start:stop]))


def _write_coordinates(path: Path, result: PickResult, rows: Indices) -> None:
    columns: dict[str, Sequence[str]] = {
        "_rlnCoordinateX": [f"{value:.2f}" for value in result.x[rows].tolist()],
        "_rlnCoordinateY": [f"{value:.2f}" for value in result.y[rows].tolist()],
        "_rlnAutopickFigureOfMerit": [f"{value:.6f}" for value in result.probability[rows].tolist()],
        "_rlnClassNumber": ["1"] * len(rows),
        "_rlnAnglePsi": ["0.00"] * len(rows),
    }
    if (result.reason[rows] != REASONS[0]).any():
        columns["_fastsortReason"] = result.reason[rows].tolist()
    _write_star(path, {"": columns})


def _write_star(path: Path, tables: dict[str, dict[str, Sequence[str]]]) -> None:
    """Write a STAR file of some tables, by name, as RELION does."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        for name, columns in tables.items():
            labels = "".join(f"{label} #{number}\n" for number, label in enumerate(columns, 1))
            rows = "".join(f"{' '.join(map(_word, row))}\n" for row in zip(*columns.values(), strict=True))
            file.write(f"\n# version 30001\n\ndata_{name}\n\nloop_\n{labels}{rows}\n")


def _word(value: str) -> str:
    return f'"{value}"' if not value or any(map(str.isspace, value)) else value


def _write_scores(path: Path, result: PickResult) -> None:
    names = result.names[result.micrograph].tolist()
    numbers = [
        formatted(values, form)
        for values, form in (
            (result.x, "%.2f"),
            (result.y, "%.2f"),
            (result.probability, "%.6f"),
            (result.height, "%.4f"),
            (result.keep, "%d"),
        )
    ]
    heads = ["micrograph", "x", "y", "probability", "height", "keep", "reason"]
    words = [result.reason.tolist()]
    if result.by_hand is not None:
        heads.append("by_hand")
        words.append(formatted(result.by_hand, "%d"))
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heads)
        writer.writerows(zip(names, *numbers, *words, strict=True))


def _write_micrographs(path: Path, result: PickResult) -> None:
    n = len(result.names)
    kept = np.bincount(result.micrograph[result.keep], minlength=n)
    places = np.bincount(result.micrograph, minlength=n)
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["micrograph", "kept", "places", "contaminated", "failed"])
        for row in zip(
            result.names.tolist(), kept.tolist(), places.tolist(), result.contaminated.tolist(), strict=True
        ):
            writer.writerow([*row[:3], f"{row[3]:.4f}", ""])
        for name, why in result.failed.items():
            writer.writerow([name, "", "", "", why])


def check_all_given(names: Sequence[str], listed: MicrographList) -> None:
    """Refuse to extract particles from micrographs that an earlier run has picked in and are not given."""
    missing = [name for name in names if name not in {*listed.names}]
    if missing:
        raise InputError(
            f"particles cannot be extracted from {missing[0]}, which an earlier run has picked in and which "
            "is not given now under this name: give all micrographs as before, or leave out --write-stack."
        )


def write_particles(
    folder: FilePath, final: FilePath, listed: MicrographList, result: PickResult, box: int | None
) -> int:
    """Extract the kept particles into ``particles.mrcs``, with ``particles.star``.

    Parameters
    ----------
    folder, final : path
        As for `write_picks`, whose coordinate files are read.
    listed : MicrographList
        The micrographs that were picked in.
    result : PickResult
    box : int, optional
        Side in pixels; by default one and a half diameters.

    Returns
    -------
    number : int
        Of particles. Those whose box reaches over the edge of their micrograph are left out.
    """
    folder = Path(folder)
    if not result.keep.any():
        return 0
    box = default_box(result.diameter_px) if box is None else box
    paths = {name: header.path for name, header in zip(listed.names, listed.headers, strict=True)}
    names = result.names.tolist()
    check_all_given(names, listed)
    files = [str(folder / "kept" / file) for file in file_names(names)]
    size = None if math.isnan(result.pixel_size) else result.pixel_size
    source = ([paths[name] for name in names], files)
    particles = open_particles(source, box=box, pixel_size=size, invert=result.contrast == "dark")
    outside = np.zeros(len(particles), bool) if particles.outside is None else particles.outside
    inside = np.flatnonzero(~outside)
    if not len(inside):
        return 0
    write_stack(folder / STACK, image_blocks(particles, inside), result.pixel_size, len(inside), box)
    _write_particle_star(folder / PARTICLES, final, inside, listed, result, box)
    return len(inside)


def _write_particle_star(
    path: Path,
    final: FilePath,
    rows: Indices,
    listed: MicrographList,
    result: PickResult,
    box: int,
) -> None:
    places = np.flatnonzero(result.keep)[rows]
    stack = os.path.join(os.fspath(final), STACK)
    micrographs = result.names[result.micrograph[places]].tolist()
    columns: dict[str, Sequence[str]] = {
        "_rlnImageName": [f"{number:06d}@{stack}" for number in range(1, len(rows) + 1)],
        "_rlnMicrographName": micrographs,
        "_rlnCoordinateX": [f"{value:.2f}" for value in result.x[places].tolist()],
        "_rlnCoordinateY": [f"{value:.2f}" for value in result.y[places].tolist()],
        "_rlnAutopickFigureOfMerit": [f"{value:.6f}" for value in result.probability[places].tolist()],
    }
    groups, group_of = np.zeros((1, 0)), np.zeros(len(rows), np.intp)
    ctf = listed.ctf
    if ctf is not None:
        number = {name: row for row, name in enumerate(listed.names)}
        of = np.array([number[name] for name in micrographs], np.intp)
        for label, values in (
            ("_rlnDefocusU", ctf.defocus_u),
            ("_rlnDefocusV", ctf.defocus_v),
            ("_rlnDefocusAngle", ctf.defocus_angle),
            ("_rlnPhaseShift", ctf.phase_shift),
        ):
            columns[label] = [f"{value:.4f}" for value in values[of].tolist()]
        microscope = np.column_stack([ctf.voltage, ctf.spherical_aberration, ctf.amplitude_contrast])
        groups, group_of = np.unique(microscope[of], axis=0, return_inverse=True)
    names = [str(number) for number in range(1, len(groups) + 1)]
    columns["_rlnOpticsGroup"] = [names[group] for group in group_of.reshape(-1).tolist()]
    optics: dict[str, Sequence[str]] = {
        "_rlnOpticsGroupName": [f"opticsGroup{name}" for name in names],
        "_rlnOpticsGroup": names,
        "_rlnImageSize": [str(box)] * len(names),
        "_rlnImageDimensionality": ["2"] * len(names),
    }
    if math.isfinite(result.pixel_size):
        optics["_rlnImagePixelSize"] = [f"{result.pixel_size:.6f}"] * len(names)
    labels = ("_rlnVoltage", "_rlnSphericalAberration", "_rlnAmplitudeContrast")
    for label, numbers in zip(labels, groups.T, strict=False):
        optics[label] = [f"{value:.6f}" for value in numbers.tolist()]
    _write_star(path, {"optics": optics, "particles": columns})
