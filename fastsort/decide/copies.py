"""Copies share a verdict: only distinct images are learned from and judged."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastsort._reasons import DUPLICATE
from fastsort._types import Array, Indices
from fastsort.decide.result import SortResult
from fastsort.images.copies import Copies, copies_by_content
from fastsort.particles.source import Particles

# What a result calls the content of images, the stamps of their files, and the copies among them.
CONTENT, STAMP, COPY = "content", "stamp", "copy"
# What a result says of every image, besides votes and measurements.
COLUMNS = ("keep", "score", "reason_code", "suspicion_code", "rescued", "junk_probability", "offset")
_OF_SUBSPACES = (
    "keep",
    "score",
    "suspicion_code",
    "junk_probability",
    "factor",
    "log_likelihood",
    "excess",
    "beside",
)


def copies_among(result: SortResult) -> Copies:
    """Return the copies that a result knows of."""
    n = len(result.keep)
    if COPY not in result.measurements:
        return Copies(np.arange(n), np.arange(n))
    return copies_by_content(result.measurements[CONTENT], np.isfinite(result.score))


def spread(result: SortResult, copies: Copies, particles: Particles) -> SortResult:
    """Give all images what is said of the distinct ones.

    Parameters
    ----------
    result : SortResult
        Of the distinct images.
    copies : Copies
    particles : Particles
        All images. Copies among picks were picked twice, so that they are duplicates; others are meant.

    Returns
    -------
    result : SortResult
        Of all images; the same one where all are distinct.
    """
    if len(copies.distinct) == len(copies.of):
        return result
    result = taken(result, copies.of)
    measurements = {**result.measurements, COPY: copies.copy}
    if "duplicate" not in measurements or not particles.table.has_picks:
        return result._replace(measurements=measurements)
    again = copies.copy & bool(result.parameters["duplicate_distance"])
    again &= ~measurements.get("outside", np.zeros(len(again), bool))
    measurements["duplicate"] = measurements["duplicate"] | again
    return result._replace(
        measurements=measurements,
        keep=result.keep & ~again,
        rescued=result.rescued & ~again,
        reason_code=np.where(again, np.int8(DUPLICATE), result.reason_code),
    )


def taken(result: SortResult, rows: Indices) -> SortResult:
    """Return a result in which image i has what is said of image ``rows[i]``."""

    def all_taken(columns: dict[str, Array]) -> dict[str, Any]:
        return {name: values[rows] for name, values in columns.items()}

    views, subspaces = result.views, result.subspaces
    if views is not None:
        views = views._replace(coordinates=views.coordinates[rows], label=views.label[rows])
    if subspaces is not None:
        columns = all_taken({name: getattr(subspaces, name) for name in _OF_SUBSPACES})
        subspaces = subspaces._replace(**columns)
    return result._replace(
        **all_taken({name: getattr(result, name) for name in COLUMNS}),
        votes=all_taken(result.votes),
        measurements=all_taken(result.measurements),
        views=views,
        subspaces=subspaces,
    )
