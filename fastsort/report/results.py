"""The folder of a run: every file but the picture and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastsort._saved import save
from fastsort._types import FilePath
from fastsort.decide.result import SortResult
from fastsort.particles.source import Particles
from fastsort.report.folder import MICROGRAPHS, RESULTS
from fastsort.report.made import how_made
from fastsort.report.micrographs import find_micrographs, write_micrographs
from fastsort.report.recentre import recentred
from fastsort.report.tables import summarize, write_tables


def write_results(
    folder: FilePath,
    particles: Particles,
    result: SortResult,
    *,
    write_stack: bool = False,
    recentre: bool = False,
    learned: dict[str, Any] | None = None,
    score_field: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """Write everything but the picture and the page.

    Parameters
    ----------
    folder : path
        An existing folder. Gets what `write_tables` writes; ``results.npz``, the whole result without
        the model of the subspaces; and ``micrographs.csv`` if the micrographs are known.
    particles : Particles
        What was sorted.
    result : SortResult
        As from `sort_particles`.
    write_stack : bool
        As for `write_tables`.
    recentre : bool
        Whether STAR and .cs files say where each particle lies; see `recentred`.
    learned : dict, optional
        As for `write_tables`.
    score_field : bool
        As for `write_tables`.
    command : str, optional
        The command line, for the summary.

    Returns
    -------
    summary : dict
        As from `summarize`, with "made" as from `how_made`.

    Raises
    ------
    InputError
        If origins cannot be written, or the coordinates in the table are not numbers.
    OSError
        When the disk refuses.
    """
    folder = Path(folder)
    micrographs = find_micrographs(particles, result)
    origins = recentred(particles, result.offset, result.keep) if recentre else None
    made = how_made(particles.files, command)
    write_tables(
        folder,
        particles,
        result,
        write_stack=write_stack,
        micrographs=micrographs,
        origins=origins,
        learned=learned,
        score_field=score_field,
        made=made,
    )
    save(folder / RESULTS, result._replace(subspaces=None))
    if micrographs is not None:
        write_micrographs(folder / MICROGRAPHS, micrographs)
    return {**summarize(particles, result, micrographs), "made": made}
