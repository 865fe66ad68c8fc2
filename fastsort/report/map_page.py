"""The page of a map: the page of a run, on which classes take the place of verdicts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from fastsort._reasons import FLAT, UNLIKE, VALID
from fastsort.classify import MapResult
from fastsort.decide.rescue import Views
from fastsort.decide.result import SortResult
from fastsort.decide.votes import LearnedMethods, LearnedVerdict
from fastsort.particles.source import Particles
from fastsort.report.choices import mark_of_map
from fastsort.report.classes import members_of_classes, offset_in_box
from fastsort.report.drawing import draw_page
from fastsort.report.folder import PAGE, PAGE_IMAGES
from fastsort.report.words import MAPPED


def draw_map_page(
    folder: Path,
    particles: Particles,
    result: MapResult,
    *,
    made: dict[str, Any] | None = None,
    n_jobs: int | None = None,
) -> None:
    """Write the page ``report.html`` of a map.

    Parameters
    ----------
    folder : Path
        An existing folder. Gets ``report_images`` too, if the set is too large for a page of one file.
    particles : Particles
        What was classified; its images are read once.
    result : MapResult
    made : dict, optional
        As from `how_made`.
    n_jobs : int, optional
        Workers, as joblib counts them.

    Raises
    ------
    InputError
        If images can no longer be read.
    OSError
        When the disk refuses.
    """
    draw_page(
        folder / PAGE,
        folder / PAGE_IMAGES,
        PAGE_IMAGES,
        particles,
        _as_judged(particles, result),
        made=made,
        words=MAPPED,
        mark=mark_of_map(result.classes.label + 1, result.keep),
        n_jobs=n_jobs,
    )


def _as_judged(particles: Particles, result: MapResult) -> SortResult:
    """Say of each image what its class says. There are no probabilities, votes or errors."""
    classes, n = result.classes, len(result.keep)
    averages = classes.averages
    why = np.where(classes.label < 0, np.int8(FLAT), np.int8(UNLIKE))
    known = math.isfinite(result.pixel_size)
    views = Views(
        classes.map.coordinates,
        classes.label,
        averages.averages,
        members_of_classes(result),
        averages.resolution.astype(np.float64) / (result.pixel_size if known else 1.0),
        np.zeros(len(averages.size), bool),
        result.pixel_size,
    )
    given = result.parameters.get("diameter")
    unit = particles.pixel_size if math.isfinite(particles.pixel_size) else 1.0
    diameter_px = math.nan if given is None else given / unit
    return SortResult(
        keep=result.keep,
        score=result.score,
        reason_code=np.where(result.keep, np.int8(VALID), why),
        suspicion_code=why,
        rescued=np.zeros(n, bool),
        junk_probability=np.full(n, np.nan),
        votes={},
        offset=offset_in_box(particles, result).astype(np.float32),
        measurements={
            "probability of its class": classes.probability,
            "correlation with its average": averages.score,
            "kind of particle": np.append(classes.group, -1)[classes.label] + 1,
        },
        threshold=math.nan,
        diameter=diameter_px * particles.pixel_size,
        diameter_px=diameter_px,
        diameter_estimated=False,
        contrast="unknown",
        phase_flipped=result.phase_flipped,
        subspaces=None,
        errors=None,
        views=views,
        learned=LearnedVerdict(LearnedMethods(None, None, None), {}, {}, (math.nan, math.nan)),
        parameters=result.parameters,
        seconds=result.seconds,
        box=particles.box,
        pixel_size=particles.pixel_size,
        doubts=result.doubts,
    )
