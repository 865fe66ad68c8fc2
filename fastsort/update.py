"""Live use: a set that has grown since it was sorted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

from fastsort._checks import InputError, check_is
from fastsort._progress import Progress
from fastsort._threshold import MIN_JUDGED
from fastsort._types import Array, Bools, FilePath, Indices
from fastsort.decide.by_hand import choose_by_hand
from fastsort.decide.calibrate import calibrate, usual_limit
from fastsort.decide.combine import OFFSET
from fastsort.decide.copies import (
    COLUMNS,
    CONTENT,
    COPY,
    STAMP,
    copies_among,
    taken,
)
from fastsort.decide.duplicates import find_all_duplicates
from fastsort.decide.rescue import Views
from fastsort.decide.result import BY_HAND, SortResult
from fastsort.decide.settings import DUPLICATES, RUN, STRICTNESS, VERDICT, VOTES, is_given, option_names
from fastsort.decide.verdict import cut_again, knows_junk, passed_by, scale_of, with_verdict
from fastsort.decide.votes import METHODS
from fastsort.images.content import read_content, stamps_of
from fastsort.images.copies import Copies, copies_by_content, doubts_of_copies
from fastsort.particles.open import open_particles
from fastsort.particles.source import Particles, choose_particles
from fastsort.sort import sort_particles

# Votes on the images that are kept have drifted where their distributions differ by so much (the
# Kolmogorov-Smirnov distance), and differ so much by chance with a smaller probability than this.
DRIFT, BY_CHANCE = 0.25, 1e-4
# With fewer images, a model of their own is worse than one that does not quite fit.
FEWEST = 500
KEPT, ANEW = "kept", "learned anew"
DRIFTED = "kept, although the images have drifted: too few are new to learn from"


def update_particles(
    particles: FilePath | Array | Particles,
    earlier: SortResult,
    names: Sequence[str],
    *,
    judge_again: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> SortResult:
    """Sort the images that have been added to a set since it was sorted.

    Parameters
    ----------
    particles : path, ndarray (n, d, d) or Particles
        The whole set as it is now. Images are recognised by their names.
    earlier : SortResult
        Of all methods, on the set as it was.
    names : sequence of str
        Of the images of the earlier result.
    judge_again : bool
        Whether the verdicts on images that were there before may change.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``, where all are the images that are read. If they
        must be sorted a second time, with models of their own, it begins again.
    **options
        As for `sort_particles`. By default, each is what it was in the earlier run. Only
        `duplicate_distance`, `work`, `keep_work` and `n_jobs` may differ from that run and, with
        `judge_again`, how much is kept.

    Returns
    -------
    result : SortResult
        Of the whole set, in its order. ``parameters["update"]`` says how many images were new, how many of
        the earlier ones are no longer there, and whether the models were kept, or learned anew since the
        images have drifted. Once models were learned anew,
        ``measurements["models"]`` says which models each image was judged with: 0 for the first.

    Raises
    ------
    InputError
        If none of the earlier images is left; if they were of another size, too few, or sorted by one
        method; or if an option is out of range or differs from the earlier run.

    Notes
    -----
    Only new images are read, and judged with what the earlier run has learned. If the votes on new images
    that are kept differ from the votes on earlier ones, by a Kolmogorov-Smirnov distance above 0.25 that
    has a probability below 1e-4 to arise by chance, the models no longer fit. Then 500 new images or more
    get models of their own, and their scores are shifted so that the threshold stays the same. With
    `judge_again`, all images get new probabilities from all scores; if the models no longer fit, all images
    are read and sorted anew. Of two picks of one particle, the one that was kept before stays. What
    a person chose stays chosen, and new images are judged with the weights that were learned from it.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(80, 40, snr=0.5, box=24, junk="noise", seed=1)
    >>> earlier = fs.sort_particles(images[:100])
    >>> names = fs.open_particles(images[:100]).names
    >>> result = fs.update_particles(images, earlier, names)
    >>> result.parameters["update"]
    {'new_images': 20, 'removed_images': 0, 'models': 'kept'}
    >>> bool((result.keep[:100] == earlier.keep).all())
    True
    """
    begin = time.perf_counter()
    check_is(earlier, SortResult, "earlier", "sort_particles")
    particles = open_particles(particles)
    settings, strictness = _options_of_update(earlier, options, judge_again)
    _check_usable(particles, earlier, judge_again)
    rows = _earlier_rows(particles, names)
    rows = _rows_by_content(particles, earlier, rows, settings.get("n_jobs"))
    n_new = int((rows < 0).sum())
    n_removed = len(earlier.keep) - len(np.unique(rows[rows >= 0]))
    noted = partial(_noted, n_new=n_new, n_removed=n_removed)
    sort: Callable[..., SortResult] = partial(sort_particles, progress=progress, **settings)
    models, new = KEPT, earlier
    if n_new:
        models, new = _sort_new(particles, earlier, rows, sort, judge_again)
    if models == ANEW and judge_again:
        whole = sort(particles, **strictness)
        return noted(whole, whole.parameters, whole.seconds, models=models)
    distance = settings["duplicate_distance"]
    result, is_new = _merged(earlier, new, rows, models == ANEW, particles, distance, judge_again)
    changed = {"duplicate_distance": distance}
    if judge_again:
        result = _calibrated(result, strictness)
        changed |= strictness
    else:
        threshold = earlier.threshold
        passed = np.where(is_new, passed_by(result, threshold), result.keep)
        result = with_verdict(result, passed, threshold)
        if not result.learned.decoys:
            # What was learned from a person's choices has no decoys to test it with.
            result = result._replace(errors=earlier.errors)
    if BY_HAND in result.measurements:
        by_hand = result.measurements[BY_HAND]
        result = choose_by_hand(result, np.flatnonzero(by_hand > 0), np.flatnonzero(by_hand < 0))
    seconds = {**(new.seconds if n_new else {}), "total": time.perf_counter() - begin}
    # Also of images that were there before.
    copy = result.measurements.get(COPY, np.zeros(len(particles), bool))
    result = result._replace(doubts=(*particles.doubts, *doubts_of_copies(particles, copy)))
    return noted(result, {**earlier.parameters, **changed}, seconds, models=models)


def can_go_on_from(earlier: SortResult) -> bool:
    """Whether a result of all methods had enough images to judge others with what was learned from them."""
    judged = not np.isnan(earlier.junk_probability).any()
    return len(earlier.votes) < len(METHODS) or bool(earlier.views and knows_junk(earlier) and judged)


def _options_of_update(
    earlier: SortResult, options: dict[str, Any], judge_again: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what to sort with, and how much to keep of what is judged again."""
    before = earlier.parameters
    unknown = sorted(set(options) - set(option_names()))
    if unknown:
        raise TypeError(f"update_particles() got an unexpected keyword argument {unknown[0]!r}")
    strict = option_names(STRICTNESS)
    fixed = option_names(VOTES, VERDICT) + (() if judge_again else strict)
    for name, value in options.items():
        if name in fixed and value != before.get(name):
            hint = " judge again too," if name in strict else ""
            raise InputError(
                f"{name} was {before.get(name)} in the earlier run, and an update goes on from it; got "
                f"{value}: leave it out,{hint} or sort without updating."
            )
    strictness = {name: options[name] for name in strict if name in options}
    if not strictness:
        strictness = {name: before[name] for name in strict if is_given(name, before.get(name))}
    settings = {name: before[name] for name in option_names(VOTES, VERDICT, DUPLICATES) if name in before}
    free = option_names(DUPLICATES, RUN)
    return settings | {name: value for name, value in options.items() if name in free}, strictness


def _earlier_rows(particles: Particles, names: Sequence[str]) -> Indices:
    """Return the row that each image had in the earlier run; -1 for new ones.

    A table may name an image several times, and now once more.
    """
    row_of = {name: row for row, name in enumerate(_numbered(names))}
    places = (row_of.get(name, row_of.get((name[0], 0), -1)) for name in _numbered(particles.names))
    rows = np.fromiter(places, np.intp, len(particles))
    if (rows < 0).all():
        raise InputError(
            f"none of the {len(rows)} images was there in the earlier run: sort them without updating."
        )
    return rows


def _rows_by_content(particles: Particles, earlier: SortResult, rows: Indices, n_jobs: int | None) -> Indices:
    """Correct the rows of images whose files were written anew: an image is what its pixels are."""
    content, stamps = (earlier.measurements.get(name) for name in (CONTENT, STAMP))
    if content is None or stamps is None:
        return rows
    now = stamps_of(particles)
    # Images that are in no file have no stamp.
    doubtful = np.flatnonzero((rows >= 0) & ((now != stamps[rows]) | (now == 0)))
    if len(doubtful) == 0:
        return rows
    found = read_content(choose_particles(particles, doubtful), n_jobs)
    changed = found != content[rows[doubtful]]
    row_of = {number: row for row, number in reversed(list(enumerate(content.tolist())))}
    rows = rows.copy()
    rows[doubtful[changed]] = [row_of.get(number, -1) for number in found[changed].tolist()]
    if (rows < 0).all():
        raise InputError(
            f"all {len(rows)} images have other pixels than in the earlier run: sort them without updating."
        )
    return rows


def _numbered(names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Number images that have the same name."""
    seen: dict[str, int] = {}
    for name in names:
        number = seen.get(name, 0)
        seen[name] = number + 1
        yield name, number


def _check_usable(particles: Particles, earlier: SortResult, judge_again: bool) -> None:
    """Refuse an earlier run that cannot judge these images."""
    if len(earlier.votes) < len(METHODS):
        raise InputError(
            f"the earlier run had one method only, {next(iter(earlier.votes))}, and an update needs all: "
            "sort without updating."
        )
    if not can_go_on_from(earlier):
        raise InputError(
            f"the earlier run had {len(earlier.keep)} images, too few to learn from: sort without updating."
        )
    if judge_again and not earlier.learned.decoys:
        raise InputError(
            "the earlier run learned from choices made by hand, and nothing else is left to judge again by: "
            "do not judge again, or sort without updating."
        )
    box, pixel_size = scale_of(earlier)
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


# Sorting what is new.


def _sort_new(
    particles: Particles,
    earlier: SortResult,
    rows: Indices,
    sort: Callable[..., SortResult],
    judge_again: bool,
) -> tuple[str, SortResult]:
    """Sort the new images with the earlier models or, if these no longer fit, with models of their own."""
    new = choose_particles(particles, np.flatnonzero(rows < 0))
    # Duplicates are looked for in the whole set, later.
    sort = partial(sort, duplicate_distance=0)
    last = _last_models(earlier)
    result = sort(new, earlier=last)
    if not _has_drifted(last, taken(result, copies_among(result).distinct)):
        return KEPT, result
    if len(new) < FEWEST:
        return DRIFTED, result
    if judge_again:
        # The whole set is sorted anew.
        return ANEW, result
    anew = sort(new)
    # If nearly all images are unfit, nothing can be learned from them.
    return (DRIFTED, result) if np.isnan(anew.threshold) else (ANEW, _aligned(anew, last))


def _models_of(result: SortResult) -> Array:
    """Return which models each image was judged with: 0 for the first."""
    first = np.zeros(len(result.keep), dtype=np.int16)
    return result.measurements.get("models", first)


def _last_models(earlier: SortResult) -> SortResult:
    """Return what was judged with the newest models, with their own threshold, however strict the run was."""
    models = _models_of(earlier)
    last = models == models.max()
    score, probability = earlier.score[last], earlier.junk_probability[last]
    judged = np.isfinite(score)
    limit = usual_limit(probability[judged]) if judged.any() else 0.5
    junk = probability > limit
    low = np.max(score[judged & ~junk], initial=-np.inf)
    high = np.min(score[judged & junk], initial=np.inf)
    threshold = earlier.threshold
    if not low <= threshold <= high:
        threshold = float(low if np.isfinite(low) else high)
    votes = {name: vote[last] for name, vote in earlier.votes.items()}
    return earlier._replace(score=score, junk_probability=probability, votes=votes, threshold=threshold)


def _has_drifted(last: SortResult, new: SortResult) -> bool:
    """Whether the votes on new particles differ from those on the particles that the models come from."""
    before, now = last.score <= last.threshold, new.score <= last.threshold
    if now.sum() < MIN_JUDGED:
        return len(now) >= FEWEST
    for name in last.votes:
        test = ks_2samp(last.votes[name][before], new.votes[name][now], method="asymp")
        if test.statistic > DRIFT and test.pvalue < BY_CHANCE:
            return True
    return False


def _aligned(anew: SortResult, last: SortResult) -> SortResult:
    """Shift the scores of new models so that their threshold is that of the models before."""
    step = last.threshold - anew.threshold
    learned = anew.learned
    weights = {**learned.weights, OFFSET: learned.weights[OFFSET] + step}
    before = last.learned.decoys
    decoys = {
        kind: np.concatenate([before[kind], scores + step])
        for kind, scores in learned.decoys.items()
        if kind in before
    }
    learned = learned._replace(weights=weights, decoys=decoys)
    return anew._replace(score=anew.score + step, learned=learned, threshold=last.threshold)


# Earlier and new images together.


def _merged(
    earlier: SortResult,
    new: SortResult,
    rows: Indices,
    anew: bool,
    particles: Particles,
    distance: float,
    judge_again: bool,
) -> tuple[SortResult, Bools]:
    """Put earlier and new images into the order of the set, each with the verdict that it has so far.

    Returns that, and which images have the verdict of a new one.
    """
    columns: dict[str, Any] = {
        name: _in_order(getattr(earlier, name), getattr(new, name), rows) for name in COLUMNS
    }
    measurements = _all_in_order(earlier.measurements, new.measurements, rows)
    models = _models_of(earlier)
    if anew or models.any():
        newest = np.full(len(rows), models.max() + anew, dtype=np.int16)
        measurements["models"] = _in_order(models, newest[rows < 0], rows)
    merged = new._replace(
        **columns,
        votes=_all_in_order(earlier.votes, new.votes, rows),
        measurements=measurements,
        views=earlier.views and _views_in_order(earlier.views, rows),
        subspaces=None,
    )
    first = _first_of_same(merged, rows)
    merged, is_new = taken(merged, first), rows[first] < 0
    copies = Copies(*np.unique(first, return_inverse=True))
    measurements = merged.measurements
    measurements.pop(COPY, None)
    if BY_HAND in earlier.measurements:
        # Nobody has chosen among the new ones, not even copies of earlier ones.
        nobody = np.zeros((rows < 0).sum(), np.int8)
        measurements[BY_HAND] = _in_order(earlier.measurements[BY_HAND], nobody, rows)
    if len(copies.distinct) < len(first):
        measurements[COPY] = copies.copy
    stays = ~is_new & (not judge_again)
    was_duplicate = measurements["duplicate"]
    # Of images whose verdict stays, those that are kept come before all others, and duplicates last.
    score = np.where(stays & merged.keep, -np.inf, np.where(stays & was_duplicate, np.inf, merged.score))
    duplicate = find_all_duplicates(particles, distance, score[copies.distinct], copies.distinct)[copies.of]
    if particles.table.has_picks and distance:
        duplicate |= copies.copy
    measurements["duplicate"] = np.where(stays, was_duplicate, duplicate)
    if particles.outside is not None:
        measurements["outside"] = particles.outside
    if CONTENT in measurements:
        measurements[STAMP] = stamps_of(particles)
    return merged, is_new


def _first_of_same(merged: SortResult, rows: Indices) -> Indices:
    """Return for each image the first with the same pixels, of which earlier ones come before new ones."""
    first = np.arange(len(rows))
    if CONTENT in merged.measurements:
        order = np.argsort(rows < 0, kind="stable")
        content, judged = merged.measurements[CONTENT][order], np.isfinite(merged.score)[order]
        distinct, of = copies_by_content(content, judged)
        first[order] = order[distinct[of]]
    return first


def _in_order(before: Array, now: Array, rows: Indices) -> Array:
    """Put values of earlier images and of new ones into the order of the set."""
    old = rows >= 0
    values = np.empty((len(rows), *now.shape[1:]), np.result_type(before, now))
    values[old] = before[rows[old]]
    # Where no image is new, `now` are the values before.
    values[~old] = now if (~old).any() else now[:0]
    return values


def _all_in_order(before: dict[str, Array], now: dict[str, Array], rows: Indices) -> dict[str, Array]:
    return {name: _in_order(before[name], now[name], rows) for name in before if name in now}


def _views_in_order(views: Views, rows: Indices) -> Views:
    """Give new images, which are not on the map, no place and no class."""
    nowhere, no_class = np.full((1, 2), np.nan, np.float32), np.full(1, -1, dtype=np.intp)
    return views._replace(
        coordinates=np.concatenate([views.coordinates, nowhere])[rows],
        label=np.concatenate([views.label, no_class])[rows],
    )


def _calibrated(result: SortResult, strictness: dict[str, Any]) -> SortResult:
    """Give all images new probabilities and verdicts, from all scores."""
    distinct, of = copies_among(result)
    score = result.score[distinct]
    judged = np.isfinite(score)
    probability = np.ones(len(judged))
    threshold, probability[judged], shares = calibrate(score[judged], result.learned.decoys)
    learned = result.learned._replace(shares=shares)
    result = result._replace(junk_probability=probability[of], learned=learned)
    result = with_verdict(result, (judged & (score <= threshold))[of], threshold)
    return cut_again(result, **strictness) if strictness else result


def _noted(
    result: SortResult,
    parameters: dict[str, Any],
    seconds: dict[str, float],
    *,
    n_new: int,
    n_removed: int,
    models: str,
) -> SortResult:
    """Say what was done, and how long it took."""
    update = {"new_images": n_new, "removed_images": n_removed, "models": models}
    return result._replace(parameters={**parameters, "update": update}, seconds=seconds)
