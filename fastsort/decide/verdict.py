"""From measurements to a verdict: keep or reject, and why, for one method or for all of them together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastsort._checks import InputError
from fastsort._progress import Progress, part_of
from fastsort._reasons import DUPLICATE, OFF_CENTRE, OUTSIDE, RARE_VIEW, VALID
from fastsort._types import Array, Bools, Codes, Floats, Indices, Singles
from fastsort.decide.calibrate import mixture_shares, probability_by_odds, second_hump, told_apart
from fastsort.decide.combine import (
    OFFSET,
    Combination,
    apply_strictness,
    combination_of,
    weigh_votes,
    weighted,
)
from fastsort.decide.copies import COPY, copies_among
from fastsort.decide.decoys import JUNK, N_TO_LEARN, EstimatedErrors, estimate_errors, votes_on_decoys
from fastsort.decide.duplicates import find_all_duplicates
from fastsort.decide.reasons import learn_reasons
from fastsort.decide.recentre import centred_scores
from fastsort.decide.rescue import Views, find_views
from fastsort.decide.result import BY_HAND, SortResult
from fastsort.decide.settings import Settings, check_strictness
from fastsort.decide.votes import METHODS, LearnedVerdict, MethodResults, explain
from fastsort.images.normalize import PixelStatistics
from fastsort.invariants.filter import LearnedInvariants
from fastsort.particles.source import Particles
from fastsort.radial.filter import GRID, RadialResult

# What the methods measure besides their votes.
OF_RADIAL = ("peak", "second_peak", "outlyingness", "n_clusters", "n_scattered")
OF_SUBSPACES = ("factor", "log_likelihood", "excess")
# Part of the time of a verdict of all methods that weighing the votes takes; rare views take the rest.
WEIGHING = 0.3
# While weights are learned, all kinds of decoys together count for at least this share of the images, and
# each has at least this part of an equal share.
LEAST_OF_A_KIND = 0.1
# Boxes whose sides in angstroms differ by less than this part are of one scale.
SAME_SCALE = 1e-2
# Stands for the reason of images that are rejected for what is suspected of them.
AS_SUSPECTED = -1


class Verdict(NamedTuple):
    """What is decided about every image; the attributes are those of `SortResult`."""

    keep: Bools
    score: Floats
    reason_code: Codes
    suspicion_code: Codes
    rescued: Bools
    junk_probability: Floats
    offset: Singles
    measurements: dict[str, Array]
    threshold: float
    errors: EstimatedErrors | None
    views: Views | None
    learned: LearnedVerdict


def decide(
    particles: Particles,
    working: Particles,
    pixels: PixelStatistics,
    results: MethodResults,
    settings: Settings,
    *,
    rows: Indices,
    earlier: SortResult | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Return the verdict of the methods that were asked.

    Parameters
    ----------
    particles : Particles
        The images that are sorted.
    working : Particles
        The working images of the distinct ones.
    pixels : PixelStatistics
        Of their pixels.
    results : MethodResults
        What the methods say of the working images.
    settings : Settings
    rows : ndarray of intp, shape (m,)
        Which of the particles the working images are.
    earlier : SortResult, optional
        Nothing is learned from these images: votes are weighed, and scores mean, what they did then.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    verdict : Verdict
        Of one method, without errors, views and decoys.
    """
    suspicion = np.where(pixels.codes == VALID, explain(results), pixels.codes)
    measurements = _measurements(particles, rows, pixels, results)
    scale = np.float32(particles.box / working.box)
    if settings.method is not None:
        return _decide_by_one(results, suspicion, measurements, scale)
    return _decide_by_all(
        particles, working, results, settings, rows, suspicion, measurements, scale, earlier, progress
    )


def _decide_by_one(
    results: MethodResults, suspicion: Codes, measurements: dict[str, Array], scale: np.float32
) -> Verdict:
    """Return the verdict of the one method that was asked."""
    result = next(result for result in results if result is not None)
    weights = {**dict.fromkeys(results.votes, 1.0), OFFSET: 0.0}
    learned = LearnedVerdict(results.learned, weights, {}, (np.nan, np.nan))
    keep, decided, rescued, errors = _conclude(
        result.keep, result.threshold, result.score, result.junk_probability, measurements, learned
    )
    offset = np.full((len(keep), 2), np.nan, dtype=np.float32)
    if results.radial is not None:
        offset = results.radial.centre * scale
    return Verdict(
        keep=keep,
        score=result.score,
        reason_code=np.where(decided == AS_SUSPECTED, suspicion, decided),
        suspicion_code=suspicion,
        rescued=rescued,
        junk_probability=result.junk_probability,
        offset=offset,
        measurements=measurements,
        threshold=result.threshold,
        errors=errors,
        views=None,
        learned=learned,
    )


def _decide_by_all(
    particles: Particles,
    working: Particles,
    results: MethodResults,
    settings: Settings,
    rows: Indices,
    suspicion: Codes,
    measurements: dict[str, Array],
    scale: np.float32,
    earlier: SortResult | None,
    progress: Progress | None,
) -> Verdict:
    """Return the verdict of all methods together."""
    radial, n, n_jobs = results.radial, len(rows), settings.n_jobs
    assert radial is not None
    if earlier is None:
        combination, learned = _weigh(working, results, n_jobs, settings.seed)
    else:
        combination, learned = _weigh_as_before(results, earlier), earlier.learned
    if progress:
        progress(round(WEIGHING * n), n)
    score, threshold = combination.score, combination.threshold
    if learned.reasons is not None:
        suspicion = np.where(np.isfinite(score), explain(results, learned.reasons), suspicion)
    junk_probability = combination.junk_probability
    if settings.keep_off_centre and np.isfinite(threshold):
        score = _scores_in_the_middle(combination, working, suspicion, radial, learned, n_jobs)
        junk_probability = _interpolated(score, combination.score, junk_probability)
        # What is more like a particle in the middle is a particle beside it, whatever it resembles else.
        suspicion = np.where(score < combination.score, np.int8(OFF_CENTRE), suspicion)
    passed = np.isfinite(score) if np.isnan(threshold) else score <= threshold
    # The classes correct the amplitudes, whoever flipped the phases; nobody has where a user says "no".
    ctf = particles.ctf.of(rows) if particles.ctf and settings.phase_flip != "no" else None
    views, rare = find_views(
        replace(working, ctf=ctf),
        score,
        passed,
        radial.radius,
        n_jobs=n_jobs,
        seed=settings.seed,
        progress=part_of(progress, WEIGHING, 1.0, n),
    )
    measurements = {
        **measurements,
        "against": results.against,
        "duplicate": find_all_duplicates(particles, settings.duplicate_distance, score, rows),
        "rare_view": rare,
    }
    keep, decided, rescued, errors = _conclude(
        passed, threshold, score, junk_probability, measurements, learned
    )
    central = keep & (suspicion != OFF_CENTRE)
    offset = np.where(central[:, None], radial.nearest, radial.strongest)
    return Verdict(
        keep=keep,
        score=score,
        reason_code=np.where(decided == AS_SUSPECTED, suspicion, decided),
        suspicion_code=suspicion,
        rescued=rescued,
        junk_probability=junk_probability,
        offset=offset * scale,
        measurements=measurements,
        threshold=threshold,
        errors=errors,
        views=views,
        learned=learned,
    )


def cut_again(
    result: SortResult,
    *,
    probability: float | None = None,
    keep_at_least: float | None = None,
    discard: int | None = None,
    fraction: float | None = None,
    unanimous: bool = False,
) -> SortResult:
    """Choose another threshold for a finished result; nothing is measured again.

    Parameters
    ----------
    result : SortResult
    probability : float, optional
        Reject images with a larger junk probability.
    keep_at_least : float, optional
        Keep the best images until they hold this share of all particles, by the junk probabilities.
    discard : int, optional
        Reject this many images, the worst; duplicates are rejected besides.
    fraction : float, optional
        Keep this share of all images, the best.
    unanimous : bool
        Reject only what all methods reject.

    Returns
    -------
    result : SortResult
        With another `keep`, `reason`, `rescued`, `threshold` and `errors`. The threshold is NaN for
        `unanimous`.

    Raises
    ------
    InputError
        If not exactly one is given, one is out of range, or the result cannot tell: `probability` and
        `keep_at_least` need 50 images, `unanimous` needs several methods.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(60, 60, snr=0.5, box=24, junk="noise", seed=1)
    >>> result = fs.sort_particles(images, method="radial")
    >>> strict = fs.cut_again(result, fraction=0.25)
    >>> int(strict.keep.sum()), strict.threshold < result.threshold
    (30, True)
    """
    given: dict[str, Any] = {
        "probability": probability,
        "keep_at_least": keep_at_least,
        "discard": discard,
        "fraction": fraction,
    }
    check_strictness({**given, "unanimous": unanimous or None}, len(result.keep), exactly_one=True)
    if not unanimous:
        # Copies of an image do not count, and share its verdict.
        distinct, of = copies_among(result)
        passed = apply_strictness(result.score[distinct], result.junk_probability[distinct], **given)[of]
        return with_verdict(result, passed, float(np.max(result.score[passed], initial=-np.inf)))
    if len(result.votes) < 2:
        raise InputError("unanimous needs the votes of several methods: sort with all of them.")
    # The votes decide here, and not the score.
    return with_verdict(result, kept_by_any(result), np.nan)


def kept_by_any(result: SortResult) -> Bools:
    """Return which images can be judged and are kept by at least one method."""
    against = result.measurements.get("against")
    # One method alone, which decides by its own rules.
    kept = result.keep if against is None else against < len(result.votes)
    return np.isfinite(result.score) & kept


def passed_by(result: SortResult, threshold: float) -> Bools:
    """Return which images the threshold keeps or, where there is none, which ones any method keeps."""
    if np.isnan(threshold):
        return kept_by_any(result)
    passed: Bools = result.score <= threshold
    return passed


def with_verdict(result: SortResult, passed: Bools, threshold: float) -> SortResult:
    """Judge the images of a finished result anew.

    Parameters
    ----------
    result : SortResult
    passed : ndarray of bool, shape (n,)
        Images that are kept unless they are duplicates or lie outside their micrograph.
    threshold : float
        The highest score that passes; NaN where the score does not decide.

    Returns
    -------
    result : SortResult
        With another `keep`, `reason`, `rescued`, `threshold` and `errors`.
    """
    keep, decided, rescued, errors = _conclude(
        passed, threshold, result.score, result.junk_probability, result.measurements, result.learned
    )
    reason_code = np.where(decided == AS_SUSPECTED, result.suspicion_code, decided)
    return result._replace(
        keep=keep, reason_code=reason_code, rescued=rescued, threshold=threshold, errors=errors
    )


def check_earlier(earlier: SortResult, settings: Settings, particles: Particles) -> None:
    """Refuse an earlier result with which images cannot be judged.

    Images of another box are fine where their working images have pixels of the same size in angstroms.

    Raises
    ------
    InputError
    """
    before, size = earlier.parameters.get("working_size"), settings.working_size
    if settings.method is not None or len(earlier.votes) < len(METHODS):
        raise InputError(
            "an earlier result can be used with all methods only: sort both sets without naming a method."
        )
    if isinstance(earlier.learned.methods.invariants, LearnedInvariants):
        raise InputError(
            "the earlier run was made by version 0.1.0, and its invariant method knows no classes: "
            "sort its images again with this version."
        )
    if np.isnan(earlier.threshold) or not knows_junk(earlier):
        raise InputError(
            "the earlier run has no threshold, since it was unanimous or had too few images: "
            "sort all images together."
        )
    if before != size:
        raise InputError(
            f"the earlier run had images of {before} working pixels, and these have {size}: "
            "give the same working size, or sort without it."
        )
    box, pixel_size = scale_of(earlier)
    here = particles.pixel_size
    # Arrays have 1 where nobody gave a size.
    if not all(np.isfinite(size) and size != 1 for size in (pixel_size, here)):
        if box != particles.box:
            raise InputError(
                f"the earlier run had images of {box} px, and these have {particles.box} px, with pixels of "
                "unknown size: give the pixel sizes in both runs, or sort without the earlier one."
            )
    elif abs(here * particles.box / (pixel_size * box) - 1) > SAME_SCALE:
        raise InputError(
            f"the earlier run had images of {box} px with {pixel_size:.4g} A a pixel, and these have "
            f"{particles.box} px with {here:.4g} A: what it learned fits only boxes of "
            f"{box * pixel_size:.4g} A: bring the images to that, or sort without the earlier run."
        )


def knows_junk(result: SortResult) -> bool:
    """Whether decoys, or the choices of a person, have told a result what junk looks like."""
    return bool(result.learned.decoys) or BY_HAND in result.measurements


def scale_of(result: SortResult) -> tuple[int, float]:
    """Return box and pixel size of the images of a run with all methods; NaN where the size is unknown."""
    if result.box:
        return result.box, result.pixel_size
    learned = result.learned.methods.radial
    assert learned is not None
    # In results of version 0.1.0, the diameter in input pixels and in those of the radial method, whose box
    # is known, tell the box.
    size = min(result.parameters["working_size"], GRID)
    box = round(size * result.diameter_px / (2 * learned.radius))
    return box, result.diameter / result.diameter_px


def _measurements(
    particles: Particles, rows: Indices, pixels: PixelStatistics, results: MethodResults
) -> dict[str, Array]:
    """Collect what was measured besides the votes."""
    measurements: dict[str, Array] = {}
    if results.radial is not None:
        measurements |= {name: getattr(results.radial, name) for name in OF_RADIAL}
    if results.subspaces is not None:
        # The subspaces are described only where no other method is asked.
        names = OF_SUBSPACES if results.radial is None else ("excess",)
        measurements |= {name: getattr(results.subspaces, name) for name in names}
    measurements |= {"pixel_mean": pixels.mean, "pixel_std": pixels.std}
    if particles.outside is not None:
        measurements["outside"] = particles.outside[rows]
    return measurements


def _weigh(
    working: Particles, results: MethodResults, n_jobs: int | None, seed: int
) -> tuple[Combination, LearnedVerdict]:
    """Learn the weights of the votes from decoys, and score other decoys to test the verdict with.

    A method may be right about junk that the set does not hold. So the weights are learned twice, the second
    time with as many decoys of each kind as there is junk like them.
    """
    decoys = votes_on_decoys(working, results.votes, results.learned, n_jobs=n_jobs, seed=seed)
    weighing = weigh_votes(results.votes, decoys.to_learn)
    if weighing.learned:
        tested = {kind: weighted(decoys.to_test[kind], weighing.weights) for kind in JUNK}
        shares = mixture_shares(weighing.score[np.isfinite(weighing.score)], tested)
        least = LEAST_OF_A_KIND * max(sum(shares.values()), LEAST_OF_A_KIND) / len(JUNK)
        amounts = np.repeat([shares[kind] + least for kind in JUNK], N_TO_LEARN)
        weighing = weigh_votes(results.votes, decoys.to_learn, amounts)
    tested = {kind: weighted(votes, weighing.weights) for kind, votes in decoys.to_test.items()}
    combination = combination_of(weighing, tested)
    reasons = learn_reasons(decoys.measured)
    return combination, LearnedVerdict(
        results.learned, combination.weights, tested, combination.shares, reasons
    )


def _weigh_as_before(results: MethodResults, earlier: SortResult) -> Combination:
    """Score images as in an earlier run, with the junk probabilities that such scores had there."""
    learned = earlier.learned
    score = learned.score(results.votes)
    probability = _interpolated(score, earlier.score, earlier.junk_probability)
    return Combination(score, probability, earlier.threshold, learned.weights, learned.shares)


def _interpolated(score: Floats, scores: Floats, probability: Floats) -> Floats:
    """Return the junk probabilities of scores, from scores whose probabilities are known."""
    finite = np.isfinite(scores)
    places, first = np.unique(scores[finite], return_index=True)
    between = np.interp(score, places, probability[finite][first])
    return np.where(np.isfinite(score), between, 1.0)


def _scores_in_the_middle(
    combination: Combination,
    working: Particles,
    suspicion: Codes,
    radial: RadialResult,
    learned: LearnedVerdict,
    n_jobs: int | None,
) -> Floats:
    """Give rejected off-centre particles the score that they have in the middle, if that is lower."""
    score = combination.score.copy()
    rejected = (score > combination.threshold) & np.isfinite(score)
    off_centre = (suspicion == OFF_CENTRE) | (radial.suspicion_code == OFF_CENTRE)
    moved = np.flatnonzero(rejected & off_centre)
    in_the_middle = centred_scores(working, moved, radial.strongest[moved], radial.radius, learned, n_jobs)
    score[moved] = np.minimum(score[moved], in_the_middle)
    return score


def _conclude(
    passed: Bools,
    threshold: float,
    score: Floats,
    junk_probability: Floats,
    measurements: dict[str, Array],
    learned: LearnedVerdict,
) -> tuple[Bools, Codes, Bools, EstimatedErrors | None]:
    """Set rare views aside, reject what no score decides, and find the reasons that no suspicion gives.

    Returns which images are kept, the reasons, which images are rescued, and the errors.
    """
    duplicate, rare, outside, copy = (
        measurements.get(name, np.zeros(len(passed), dtype=bool))
        for name in ("duplicate", "rare_view", "outside", COPY)
    )
    keep = passed & ~duplicate & ~outside
    rescued = rare & ~keep & ~duplicate & ~outside
    reason = np.where(keep, np.int8(VALID), np.int8(AS_SUSPECTED))
    reason[duplicate] = DUPLICATE
    reason[rescued] = RARE_VIEW
    reason[outside] = OUTSIDE
    if not learned.decoys:
        return keep, reason, rescued, None
    decoys = {} if np.isnan(threshold) else learned.decoys
    # For images over the edge of their micrograph the score decides nothing; copies of an image are one.
    counted: Any = ~(outside | copy)
    if counted.all():
        counted = slice(None)
    errors = estimate_errors(
        keep[counted],
        junk_probability[counted],
        {kind: scores > threshold for kind, scores in decoys.items()},
        learned.shares,
        other=probability_by_odds(score[counted]),
        apart=told_apart(decoys),
        hump=second_hump(score[counted][np.isfinite(score[counted])], decoys),
    )
    return keep, reason, rescued, errors
