"""Live use: a set that has grown since it was sorted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

from fastsort._checks import InputError
from fastsort._threshold import MIN_JUDGED
from fastsort.decide.combine import OFFSET, calibrate
from fastsort.decide.decoys import JUNK
from fastsort.decide.duplicates import find_all_duplicates
from fastsort.decide.votes import METHODS
from fastsort.images.prepare import is_corrected
from fastsort.particles.source import Particles, choose_particles, open_particles
from fastsort.sort import SortResult, cut_again, kept_by_any, sort_particles, with_verdict

# Votes on the images that are kept have drifted where their distributions differ by so much (the
# Kolmogorov-Smirnov distance), and cannot differ so much by chance.
DRIFT, BY_CHANCE = 0.25, 1e-4
# With fewer images a model of their own is worse than one that does not quite fit.
FEWEST = 500
# What the models and the verdicts on old images rest on, and so must be as it was.
OF_THE_RUN = (
    "diameter",
    "method",
    "preset",
    "phase_flip",
    "contrast",
    "working_size",
    "n_peaks",
    "n_subspaces",
    "n_components",
    "keep_off_centre",
    "seed",
)
STRICTNESS = ("keep_at_least", "discard", "fraction", "unanimous")
# What may be another in each run.
OF_THIS_TIME = ("duplicate_distance", "work", "keep_work", "n_jobs")
# What a result has of every image, besides votes and measurements.
COLUMNS = ("keep", "score", "reason", "suspicion", "rescued", "junk_probability", "offset")
KEPT, ANEW = "kept", "learned anew"
DRIFTED = "kept, although the images have drifted: too few are new to learn from"

Bools = npt.NDArray[np.bool_]


def update_particles(
    particles: str | os.PathLike[str] | npt.NDArray[Any] | Particles,
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
    particles : path, ndarray (n, d, d) or Particles
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
        As for `sort_particles`. What is not given is as it was in the earlier run. Only
        `duplicate_distance`, `work`, `keep_work` and `n_jobs` may be others than then and, asked to
        judge again, how much is kept.

    Returns
    -------
    result : SortResult
        Of the whole set, in its order. ``parameters["update"]`` says how many images were new, and
        whether the models were kept or, since the images have drifted, learned anew. Where that was
        ever so, ``measurements["models"]`` says which models each image was judged with: 0 for the first.

    Raises
    ------
    InputError
        If none of the earlier images is left, they were of another size, too few or sorted by one
        method, or an option is out of range or another than it was.

    Notes
    -----
    Only new images are read, with what was learned before. Where the votes on those that are kept differ
    from what they were, by a Kolmogorov-Smirnov distance above 0.25 and with a probability below 1e-4 to
    do so by chance, the models no longer fit: from 500 new images on, these get models of their own,
    whose scores are moved so that the cut means the same. Asked to judge again, all images get
    probabilities from all scores; where the models do not fit any more, all are read and sorted anew.
    Of two picks of one particle, the one that was kept before stays.
    """
    begin = time.perf_counter()
    particles = open_particles(particles)
    settings, strictness = _settings(earlier, options, judge_again)
    _check_usable(particles, earlier)
    row_of = {name: row for row, name in enumerate(_numbered(names))}
    rows = np.array([row_of.get(name, -1) for name in _numbered(particles.names)], dtype=np.intp)
    new = np.flatnonzero(rows < 0)
    if len(new) == len(rows):
        raise InputError(
            f"none of the {len(rows)} images was there in the earlier run: sort them without updating."
        )
    distance = settings.pop("duplicate_distance")
    models, found = KEPT, earlier
    if len(new):
        some = choose_particles(particles, new)
        part = {**settings, "duplicate_distance": 0, "progress": progress}
        if part["phase_flip"] == "auto":
            # A part of the set has no table, which says whether the phases were flipped.
            part["phase_flip"] = "no" if particles.ctf is None or is_corrected(particles) else "yes"
        last = _last_models(earlier)
        found = sort_particles(some, earlier=last, **part)
        if _has_drifted(last, found):
            models = ANEW if len(new) >= FEWEST else DRIFTED
        if models == ANEW and judge_again:
            whole = {**settings, **strictness, "duplicate_distance": distance, "progress": progress}
            return _noted(sort_particles(particles, **whole), {}, len(new), models)
        if models == ANEW:
            anew = sort_particles(some, **part)
            # Of images nearly all of which are unfit, nothing can be learned.
            models, found = (DRIFTED, found) if np.isnan(anew.cut) else (ANEW, _aligned(anew, last))
    result = _merged(earlier, found, rows, models == ANEW)
    old = rows >= 0
    duplicate = _find_duplicates(particles, distance, result, old & (not judge_again))
    outside = {} if particles.outside is None else {"outside": particles.outside}
    result = result._replace(measurements={**result.measurements, "duplicate": duplicate, **outside})
    if judge_again:
        result = _calibrated(result, strictness)
    else:
        passed = _passed(result, earlier.cut)
        result = with_verdict(result, np.where(old, result.keep, passed), earlier.cut)
    asked = {"duplicate_distance": distance, **(strictness if judge_again else {})}
    spent = found.seconds if len(new) else {}
    result = result._replace(seconds={**spent, "total": time.perf_counter() - begin})
    return _noted(result, {**earlier.parameters, **asked}, len(new), models)


def _numbered(names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Number images that have the same name: a table may name one image several times."""
    seen: dict[str, int] = {}
    for name in names:
        number = seen.get(name, 0)
        seen[name] = number + 1
        yield name, number


def _settings(
    earlier: SortResult, options: dict[str, Any], judge_again: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to sort with, and how much to keep of what is judged again."""
    before = earlier.parameters
    unknown = sorted(set(options) - {*OF_THE_RUN, *STRICTNESS, *OF_THIS_TIME})
    if unknown:
        raise TypeError(f"update_particles() got an unexpected keyword argument {unknown[0]!r}")
    fixed = OF_THE_RUN if judge_again else OF_THE_RUN + STRICTNESS
    for name, value in options.items():
        if name in fixed and value != before.get(name):
            hint = " judge again too," if name in STRICTNESS else ""
            raise InputError(
                f"{name} was {before.get(name)} in the earlier run, and an update goes on from it; got "
                f"{value}: leave it out,{hint} or sort without updating."
            )
    strictness = {name: options[name] for name in STRICTNESS if name in options}
    if not strictness:
        strictness = {name: before[name] for name in STRICTNESS if before.get(name) not in (None, False)}
    settings = {name: before[name] for name in (*OF_THE_RUN, "duplicate_distance") if name in before}
    return settings | {name: options[name] for name in OF_THIS_TIME if name in options}, strictness


def _check_usable(particles: Particles, earlier: SortResult) -> None:
    """Refuse a run that nothing can be learned from for these images."""
    if len(earlier.votes) < len(METHODS):
        raise InputError(
            f"the earlier run had one method only, {next(iter(earlier.votes))}, and an update needs all: "
            "sort without updating."
        )
    if earlier.views is None or not earlier.judge.decoys or np.isnan(earlier.junk_probability).any():
        raise InputError(
            f"the earlier run had {len(earlier.keep)} images, too few to learn from: sort without updating."
        )
    pixel_size = earlier.diameter / earlier.diameter_px
    if np.isnan(pixel_size) or np.isnan(particles.pixel_size):
        return
    box = round(earlier.parameters["working_size"] * earlier.views.pixel_size / pixel_size)
    if box != particles.box:
        raise InputError(
            f"the earlier run had images of {box} px, and these have {particles.box} px: "
            "sort without updating."
        )
    if abs(particles.pixel_size / pixel_size - 1) > 1e-3:
        raise InputError(
            f"the earlier run had a pixel size of {pixel_size:.4g} A, and these images have "
            f"{particles.pixel_size:.4g} A: correct it, or sort without updating."
        )


def _last_models(earlier: SortResult) -> SortResult:
    """What was judged with the newest models, with the cut of sorting, however strict it was."""
    models = earlier.measurements.get("models", np.zeros(len(earlier.keep), dtype=np.int16))
    last = models == models.max()
    score, probability = earlier.score[last], earlier.junk_probability[last]
    judged = np.isfinite(score)
    junk = probability > 0.5
    low = np.max(score[judged & ~junk], initial=-np.inf)
    high = np.min(score[judged & junk], initial=np.inf)
    cut = earlier.cut
    if not low <= cut <= high:
        cut = float(low if np.isfinite(low) else high)
    votes = {name: vote[last] for name, vote in earlier.votes.items()}
    return earlier._replace(score=score, junk_probability=probability, votes=votes, cut=cut)


def _has_drifted(last: SortResult, found: SortResult) -> bool:
    """Whether the models see particles otherwise than those that they were learned from."""
    passed, before = found.score <= last.cut, last.score <= last.cut
    if passed.sum() < MIN_JUDGED:
        return len(passed) >= FEWEST
    for name in last.votes:
        test = ks_2samp(last.votes[name][before], found.votes[name][passed], method="asymp")
        if test.statistic > DRIFT and test.pvalue < BY_CHANCE:
            return True
    return False


def _aligned(anew: SortResult, last: SortResult) -> SortResult:
    """Move the scores of new models, so that they are cut where those of the old ones are."""
    step = last.cut - anew.cut
    weights = {**anew.judge.weights, OFFSET: anew.judge.weights[OFFSET] + step}
    decoys = {
        kind: np.concatenate([last.judge.decoys[kind], scores + step])
        for kind, scores in anew.judge.decoys.items()
    }
    return anew._replace(
        score=anew.score + step, judge=anew.judge._replace(weights=weights, decoys=decoys), cut=last.cut
    )


def _merged(earlier: SortResult, found: SortResult, rows: npt.NDArray[np.intp], anew: bool) -> SortResult:
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
    measurements = merged_all(earlier.measurements, found.measurements)
    models = earlier.measurements.get("models", np.zeros(len(earlier.keep), dtype=np.int16))
    if anew or models.any():
        newest = np.full(len(rows), models.max() + anew, dtype=np.int16)
        newest[old] = models[rows[old]]
        measurements["models"] = newest
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
        measurements=measurements,
        views=views,
        subspaces=None,
    )


def _find_duplicates(particles: Particles, distance: float, result: SortResult, stays: Bools) -> Bools:
    """Find duplicates; of images whose verdict stays, those that were kept come before all others."""
    before = result.measurements["duplicate"]
    score = np.where(stays & result.keep, -np.inf, np.where(stays & before, np.inf, result.score))
    return np.where(stays, before, find_all_duplicates(particles, distance, score))


def _passed(result: SortResult, cut: float) -> Bools:
    """Images that the cut keeps; where there is none, those that any method keeps."""
    if np.isnan(cut):
        return kept_by_any(result)
    passed: Bools = result.score <= cut
    return passed


def _calibrated(result: SortResult, strictness: dict[str, Any]) -> SortResult:
    """Give all images new probabilities and verdicts, from all scores."""
    judged = np.isfinite(result.score)
    known = np.concatenate([result.judge.decoys[kind] for kind in JUNK])
    cut, found, shares = calibrate(result.score[judged], known)
    probability = np.ones(len(judged))
    probability[judged] = found
    result = result._replace(junk_probability=probability, judge=result.judge._replace(shares=shares))
    result = with_verdict(result, judged & (result.score <= cut), cut)
    return cut_again(result, **strictness) if strictness else result


def _noted(result: SortResult, parameters: dict[str, Any], n_new: int, models: str) -> SortResult:
    update = {"new_images": n_new, "models": models}
    return result._replace(parameters={**(parameters or result.parameters), "update": update})
