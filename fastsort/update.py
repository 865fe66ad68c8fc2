"""Live use: a set that has grown since it was sorted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

from fastsort._checks import InputError
from fastsort._cut import MIN_JUDGED
from fastsort.decide.combine import calibrate
from fastsort.decide.decoys import JUNK
from fastsort.images.prepare import is_corrected
from fastsort.particles.source import Particles, choose_particles
from fastsort.sort import SortResult, find_all_duplicates, sort_particles, with_verdict

# Votes on the images that are kept have drifted where their distributions differ by so much (the
# Kolmogorov-Smirnov distance), and cannot differ so much by chance.
DRIFT, BY_CHANCE = 0.25, 1e-4
# With fewer images a model of their own is worse than one that does not quite fit.
FEWEST = 500
# What is as it was in the earlier run, unless it is given.
OF_THE_RUN = (
    "diameter",
    "phase_flip",
    "contrast",
    "working_size",
    "n_peaks",
    "n_subspaces",
    "n_components",
    "keep_off_centre",
    "duplicate_distance",
    "seed",
)
# What a result has of every image, besides votes and measurements.
COLUMNS = ("keep", "score", "reason", "suspicion", "rescued", "junk_probability", "offset")


def update_particles(
    particles: Particles,
    earlier: SortResult,
    names: Sequence[str],
    *,
    judge_again: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> SortResult:
    """Sort the images that have been added to a set since it was sorted.

    Parameters
    ----------
    particles : Particles
        The whole set as it is now; images are known by their names.
    earlier : SortResult
        Of all methods, on the set as it was.
    names : sequence of str
        Of its images.
    judge_again : bool
        Whether the verdicts on images that were there before may change.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.
    **options
        As for `sort_particles`. What is not given is as it was in the earlier run.

    Returns
    -------
    result : SortResult
        Of the whole set, in its order. ``parameters["update"]`` says how many images were new, and
        whether the models were kept or, since the images have drifted, learned anew.

    Raises
    ------
    InputError
        If none of the earlier images is left, or an option is out of range.

    Notes
    -----
    Only new images are read, with what was learned before. Where the votes on those that are kept differ
    from what they were, by a Kolmogorov-Smirnov distance above 0.25 and with a probability below 1e-4 to
    do so by chance, the models no longer fit: from 500 new images on, these get models of their own.
    Asked to judge again, all images get probabilities from all scores; where the models do not fit any
    more, all are read and sorted anew.
    """
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.array([row_of.get(name, -1) for name in particles.names], dtype=np.intp)
    new = np.flatnonzero(rows < 0)
    if len(new) == len(rows):
        raise InputError(
            f"none of the {len(rows)} images was there in the earlier run: sort them without updating."
        )
    given = {name: earlier.parameters[name] for name in OF_THE_RUN if name in earlier.parameters} | options
    distance = given.pop("duplicate_distance")
    whole = {**given, "duplicate_distance": distance, "progress": progress}
    part = {**given, "duplicate_distance": 0, "progress": progress}
    if part["phase_flip"] == "auto":
        # A part of the set has no table, which says whether the phases were flipped.
        part["phase_flip"] = "no" if particles.ctf is None or is_corrected(particles) else "yes"
    models, found = "kept", earlier
    if len(new):
        some = choose_particles(particles, new)
        found = sort_particles(some, earlier=earlier, **part)
        if len(new) >= FEWEST and _has_drifted(earlier, found):
            models = "learned anew"
            if judge_again:
                return _noted(sort_particles(particles, **whole), len(new), models)
            found = sort_particles(some, **part)
    result = _merged(earlier, found, rows)
    old = rows >= 0
    # Of two picks of one particle the earlier image stays, whatever its score, if it may not change.
    score = result.score if judge_again else np.where(old, -np.inf, result.score)
    duplicate = find_all_duplicates(particles, distance, score)
    if not judge_again:
        duplicate = np.where(old, result.measurements["duplicate"], duplicate)
    result = result._replace(measurements={**result.measurements, "duplicate": duplicate})
    result = _calibrated(result) if judge_again else with_verdict(result, result.keep, result.cut)
    return _noted(result, len(new), models)


def _has_drifted(earlier: SortResult, found: SortResult) -> bool:
    """Whether the models see particles otherwise than those that they were learned from."""
    for name, before in earlier.votes.items():
        now = found.votes[name][found.keep]
        if len(now) < MIN_JUDGED:
            return True
        test = ks_2samp(before[earlier.keep], now, method="asymp")
        if test.statistic > DRIFT and test.pvalue < BY_CHANCE:
            return True
    return False


def _merged(earlier: SortResult, found: SortResult, rows: npt.NDArray[np.intp]) -> SortResult:
    """Put earlier and new images into the order of the set."""
    old = rows >= 0

    def merged(before: npt.NDArray[Any], now: npt.NDArray[Any]) -> npt.NDArray[Any]:
        values = np.empty((len(rows), *now.shape[1:]), np.result_type(before, now))
        values[old] = before[rows[old]]
        values[~old] = now if (~old).any() else now[:0]
        return values

    def merged_all(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
        return {name: merged(before[name], now[name]) for name in before if name in now}

    columns: dict[str, Any] = {name: merged(getattr(earlier, name), getattr(found, name)) for name in COLUMNS}
    views = earlier.views
    if views is not None:
        unknown = views._replace(
            coordinates=np.full((1, 2), np.nan, np.float32), label=np.full(1, -1, dtype=np.intp)
        )
        where = np.where(old, rows, -1)
        views = views._replace(
            coordinates=np.concatenate([views.coordinates, unknown.coordinates])[where],
            label=np.concatenate([views.label, unknown.label])[where],
        )
    return found._replace(
        **columns,
        votes=merged_all(earlier.votes, found.votes),
        measurements=merged_all(earlier.measurements, found.measurements),
        views=views,
        subspaces=None,
        diameter=earlier.diameter,
        diameter_px=earlier.diameter_px,
        diameter_estimated=earlier.diameter_estimated,
    )


def _calibrated(result: SortResult) -> SortResult:
    """Give all images new probabilities and verdicts, from all scores."""
    judged = np.isfinite(result.score)
    known = np.concatenate([result.judge.decoys[kind] for kind in JUNK])
    cut, found, shares = calibrate(result.score[judged], known)
    probability = np.ones(len(judged))
    probability[judged] = found
    result = result._replace(junk_probability=probability, judge=result.judge._replace(shares=shares))
    return with_verdict(result, judged & (result.score <= cut), cut)


def _noted(result: SortResult, n_new: int, models: str) -> SortResult:
    return result._replace(
        parameters={**result.parameters, "update": {"new_images": n_new, "models": models}}
    )
