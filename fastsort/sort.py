"""The whole story: particles go in, a verdict on every image comes out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count, check_positive
from fastsort._crop import crop_operator
from fastsort._reasons import VALID, reason_names
from fastsort._threshold import MIN_JUDGED
from fastsort.decide.combine import OFFSET, Combination, choose_cut, combine_votes, probability_by_odds
from fastsort.decide.decoys import EstimatedErrors, estimate_errors, known_images
from fastsort.decide.duplicates import find_all_duplicates
from fastsort.decide.recentre import centred_scores
from fastsort.decide.rescue import Views, find_views
from fastsort.decide.votes import METHODS, Asked, Judge, ask_methods, explain
from fastsort.images.prepare import Prepared, ctf_to_flip, prepare_images, working_radius
from fastsort.images.work import fingerprint, work_folder
from fastsort.particles.source import Particles, open_particles
from fastsort.radial.filter import CONTRASTS, PRESETS, RadialResult, check_n_peaks
from fastsort.subspaces.filter import SubspaceResult, check_numbers

# The methods see no more in larger images; the published rules were made for larger ones.
WORKING_SIZE = {"default": 36, "published": 48}
# Parts of the work, as the progress that a user sees has them.
READING, MEASURING, DECIDING = 0.4, 0.4, 0.2
# What the methods measure besides their votes.
RADIAL = ("peak", "second_peak", "outlyingness", "n_clusters", "n_scattered")
SUBSPACES = ("factor", "log_likelihood", "excess")
# Picks that are closer than this, in angstroms, are one particle picked twice.
DUPLICATE = 20.0


@brief
class SortResult(NamedTuple):
    """The verdict on every image, in input order, and how it was reached.

    Attributes
    ----------
    keep : ndarray of bool, shape (n,)
    score : ndarray of float64, shape (n,)
        Larger for junk; infinite for images that cannot be judged.
    reason : ndarray of str, shape (n,)
        "valid", or why the image is rejected.
    suspicion : ndarray of str, shape (n,)
        Why the image would be rejected, should it be; for rejected images the same as `reason`.
    rescued : ndarray of bool, shape (n,)
        Rejected images that belong to a rare view and are set aside; their reason is "rare_view".
    junk_probability : ndarray of float64, shape (n,)
    votes : dict of str to ndarray of float64, shape (n,)
        Score of each method that was asked, larger for junk; infinite for images that cannot be judged.
    offset : ndarray of float32, shape (n, 2)
        Where the particle's centre lies: row and column from pixel box // 2, in input pixels. NaN where
        the radial method was not asked, which alone looks for it.
    measurements : dict of str to ndarray
        Everything else that was measured, one entry an image.
    cut : float
        Images with a larger score are rejected.
    diameter : float
        Of the particle in angstroms; NaN where the pixel size is unknown.
    diameter_px : float
        The same in input pixels.
    diameter_estimated : bool
        Whether it was found from the data.
    contrast : str
        "bright" or "dark": of the particles in the images.
    phase_flipped : bool
        Whether the phases were flipped here.
    subspaces : SubspaceResult or None
        With the subspaces method alone: all that it says of the working images.
    errors : EstimatedErrors or None
        How well the set was sorted, as far as that can be said without labels; None with one method.
    views : Views or None
        Classes of a sample of the images; None with one method.
    judge : Judge
        What the verdict rests on, to judge more images with.
    parameters : dict
        What the run was asked for.
    seconds : dict of str to float
        Wall time of each stage.
    """

    keep: npt.NDArray[np.bool_]
    score: npt.NDArray[np.float64]
    reason: npt.NDArray[np.str_]
    suspicion: npt.NDArray[np.str_]
    rescued: npt.NDArray[np.bool_]
    junk_probability: npt.NDArray[np.float64]
    votes: dict[str, npt.NDArray[np.float64]]
    offset: npt.NDArray[np.float32]
    measurements: dict[str, npt.NDArray[Any]]
    cut: float
    diameter: float
    diameter_px: float
    diameter_estimated: bool
    contrast: str
    phase_flipped: bool
    subspaces: SubspaceResult | None
    errors: EstimatedErrors | None
    views: Views | None
    judge: Judge
    parameters: dict[str, Any]
    seconds: dict[str, float]


def sort_particles(
    particles: str | os.PathLike[str] | npt.NDArray[Any] | Particles,
    *,
    diameter: float | None = None,
    method: str | None = None,
    preset: str = "default",
    phase_flip: str = "auto",
    contrast: str = "auto",
    working_size: int | None = None,
    n_peaks: int | None = None,
    n_subspaces: int | None = None,
    n_components: int | None = None,
    keep_at_least: float | None = None,
    discard: int | None = None,
    fraction: float | None = None,
    unanimous: bool = False,
    keep_off_centre: bool = False,
    duplicate_distance: float | None = None,
    earlier: SortResult | None = None,
    work: str | os.PathLike[str] | None = None,
    keep_work: bool = False,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SortResult:
    """Sort picked particle images into particles and junk.

    Parameters
    ----------
    particles : path, ndarray (n, d, d) or Particles
        As for `open_particles`. Read once, never changed.
    diameter : float, optional
        Of the particle in angstroms; by default it is estimated from the data.
    method : {"radial", "subspaces", "invariants"}, optional
        Where the mass of the image lies, as `radial_filter`; what the image is made of, as
        `subspace_filter`; or what no turn changes, as `invariant_filter`. By default all three vote.
    preset : {"default", "published"}
        As for the method, which must be named for "published".
    phase_flip : {"auto", "yes", "no"}
        Whether to flip phases; "auto" does where the source knows the defocus and does not say that
        it was done.
    contrast : {"auto", "bright", "dark"}
        Of the particles; of use to the radial method alone.
    working_size : int, optional
        Box in pixels to which images are cropped in Fourier space; by default 36, and 48 for
        the published rules, or the box where that is smaller.
    n_peaks : int, optional
        As for `radial_filter`.
    n_subspaces, n_components : int, optional
        As for `subspace_filter`; with the subspaces method alone.
    keep_at_least, discard, fraction : optional
        As for `cut_again`, one of them at most. By default the cut leans from the highest balanced
        accuracy, as the probabilities have it, towards keeping (`combine_votes`).
    unanimous : bool
        Reject only what all methods reject.
    keep_off_centre : bool
        Particles that lie off the centre, but whole in the box, get the score and the probability that
        they would have in the middle.
    duplicate_distance : float, optional
        Picks of one micrograph that are closer, in angstroms, are one particle: the best of them stays.
        By default 20; 0 keeps them all. Segments of filaments are no duplicates of each other.
    earlier : SortResult, optional
        Of a run with all methods on images of the same box: nothing is learned from these images, and
        scores, junk probabilities and the cut mean what they meant then.
    work : path, optional
        Folder for temporary files of 2 bytes a working pixel; by default one of the system's. A run that
        was killed goes on from there if it is started again with the same folder.
    keep_work : bool
        Whether the folder stays when all went well.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    result : SortResult

    Raises
    ------
    InputError
        If the source cannot be read or a parameter is out of range.

    Notes
    -----
    One pass over the images crops, flips and normalises them and measures their pixels; the methods work
    on what it leaves. `combine_votes` makes one junk probability of their votes, with the help of junk made
    from the set itself (`make_decoys`); `estimate_errors` says how well that went, and `find_views` sets
    rare views aside.
    """
    particles = open_particles(particles)
    n, box = len(particles), particles.box
    if method is not None:
        check_choice("method", method, METHODS)
    methods = METHODS if method is None else (method,)
    check_choice("preset", preset, PRESETS)
    check_choice("contrast", contrast, CONTRASTS)
    seed = check_count("seed", seed, 0)
    size = min(box, WORKING_SIZE[preset])
    if working_size is not None:
        size = check_count("working_size", working_size, 16)
    operator = crop_operator(box, size)
    check_n_peaks(n_peaks, size)
    radius = working_radius(particles, diameter, size)
    options: dict[str, Any] = {
        "n_peaks": n_peaks,
        "contrast": contrast,
        "n_subspaces": n_subspaces,
        "n_components": n_components,
    }
    _refuse(methods, {**options, "contrast": None if contrast == "auto" else contrast})
    check_numbers(n_subspaces, n_components, size)
    if preset == "published" and method not in ("radial", "subspaces"):
        raise InputError("the published rules are those of one method: name it, radial or subspaces.")
    if preset == "published" and method == "radial" and radius is None:
        raise InputError("the published preset needs the particle's diameter: give it, in angstroms.")
    if method is not None and (unanimous or keep_off_centre or duplicate_distance is not None):
        raise InputError(
            "unanimous, keep_off_centre and duplicate_distance need all methods: leave the method out."
        )
    distance = DUPLICATE if duplicate_distance is None else duplicate_distance
    if earlier is not None:
        _check_earlier(earlier, method, size)
    if distance:
        check_positive("duplicate_distance", distance, "angstrom")
    strictness: dict[str, Any] = {"keep_at_least": keep_at_least, "discard": discard, "fraction": fraction}
    _check_strictness({**strictness, "unanimous": unanimous or None}, n)
    ctf = ctf_to_flip(particles, phase_flip)
    measured_with = {
        "diameter": diameter,
        "method": method,
        "preset": preset,
        "phase_flip": phase_flip,
        "working_size": size,
        **options,
        "seed": seed,
    }
    parameters = {
        **measured_with,
        **strictness,
        "unanimous": unanimous,
        "keep_off_centre": keep_off_centre,
        "duplicate_distance": distance,
    }

    def report(part: float, share: float) -> Callable[[float], None] | None:
        return progress and (lambda done: progress(round(n * (part + share * done)), n))

    reading, asking = report(0, READING), report(READING, MEASURING)
    deciding = report(READING + MEASURING, DECIDING)
    begin = time.perf_counter()
    judge = earlier and earlier.judge
    mark = fingerprint("sort", particles, measured_with, judge and judge.weights) if work is not None else ""
    with work_folder(work, fingerprint=mark, keep=keep_work) as folder:
        prepared = prepare_images(
            particles,
            operator,
            folder.path("images"),
            radius=radius,
            ctf=ctf,
            n_jobs=n_jobs,
            progress=reading and (lambda done, total: reading(done / total)),
        )
        read = time.perf_counter()
        asked = ask_methods(
            prepared.particles,
            methods,
            radius=radius,
            preset=preset,
            learned=judge and judge.learned,
            stage=folder.stage,
            work=os.fspath(folder.folder),
            n_jobs=n_jobs,
            seed=seed,
            progress=asking,
            **options,
        )
        measured = time.perf_counter()
        if method:
            result = _single(particles, prepared, asked)
        else:
            result = _joint(
                particles, prepared, asked, distance, keep_off_centre, earlier, n_jobs, seed, deciding
            )
    end = time.perf_counter()
    seconds = {"read and crop": read - begin, "measure": measured - read, "decide": end - measured}
    scale = box / size
    diameter_px = 2 * (radius or _first(asked, "radius") or np.nan) * scale
    result = result._replace(
        diameter=diameter_px * particles.pixel_size,
        diameter_px=diameter_px,
        diameter_estimated=diameter is None,
        phase_flipped=ctf is not None,
        parameters=parameters,
        seconds={**seconds, "total": end - begin},
    )
    if progress:
        progress(n, n)
    if unanimous or any(value is not None for value in strictness.values()):
        return cut_again(result, unanimous=unanimous, **strictness)
    return result


def cut_again(
    result: SortResult,
    *,
    probability: float | None = None,
    keep_at_least: float | None = None,
    discard: int | None = None,
    fraction: float | None = None,
    unanimous: bool = False,
) -> SortResult:
    """Cut a finished result at another place; nothing is measured.

    Parameters
    ----------
    result : SortResult
    probability : float, optional
        Reject images with a larger junk probability.
    keep_at_least : float, optional
        Keep the best images until they hold this share of all particles, as the junk probabilities
        have it.
    discard : int, optional
        Reject so many images, the worst; duplicates go besides.
    fraction : float, optional
        Keep this share of all images, the best.
    unanimous : bool
        Reject only what all methods reject.

    Returns
    -------
    result : SortResult
        With another `keep`, `reason`, `rescued`, `cut` and `errors`; the cut is NaN for `unanimous`.

    Raises
    ------
    InputError
        If not exactly one is given, one is out of range, or the result cannot tell.
    """
    given: dict[str, Any] = {
        "probability": probability,
        "keep_at_least": keep_at_least,
        "discard": discard,
        "fraction": fraction,
    }
    _check_strictness({**given, "unanimous": unanimous or None}, len(result.keep), exactly=True)
    if unanimous:
        if len(result.votes) < 2:
            raise InputError("unanimous needs the votes of several methods: sort with all of them.")
        keep = kept_by_any(result)
    else:
        keep = choose_cut(result.score, result.junk_probability, **given)
    # Not the scores decide what is unanimous.
    highest = np.nan if unanimous else float(np.max(result.score[keep], initial=-np.inf))
    return with_verdict(result, keep, highest)


def kept_by_any(result: SortResult) -> npt.NDArray[np.bool_]:
    """Images that can be judged and that not all methods reject."""
    return np.isfinite(result.score) & (result.measurements["against"] < len(result.votes))


def with_verdict(result: SortResult, keep: npt.NDArray[np.bool_], cut: float) -> SortResult:
    """Set aside rare views, take out what no score decides, and give every image its reason."""
    duplicate, rare, outside = (
        result.measurements.get(name, np.zeros(len(keep), dtype=bool))
        for name in ("duplicate", "rare_view", "outside")
    )
    keep = keep & ~duplicate & ~outside
    rescued = rare & ~keep & ~duplicate & ~outside
    reason = np.where(keep, "valid", result.suspicion)
    reason = np.where(rescued, "rare_view", np.where(duplicate, "duplicate", reason))
    reason = np.where(outside, "outside", reason)
    errors = None
    if result.judge.decoys:
        decoys = {} if np.isnan(cut) else result.judge.decoys
        rejected = {kind: scores > cut for kind, scores in decoys.items()}
        # Of images over the edge of their micrograph the score decides nothing.
        errors = estimate_errors(
            keep[~outside],
            result.junk_probability[~outside],
            rejected,
            result.judge.shares,
            other=probability_by_odds(result.score[~outside]),
        )
    return result._replace(keep=keep, rescued=rescued, reason=reason, cut=cut, errors=errors)


def _check_strictness(given: dict[str, Any], n: int, exactly: bool = False) -> None:
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1 or (exactly and not named):
        wanted = "exactly one" if exactly else "at most one"
        raise InputError(f"give {wanted} of {', '.join(given)}; got {', '.join(named) or 'none'}.")
    blank = np.zeros(n)
    # Few images have no probabilities.
    unknown = blank if n >= MIN_JUDGED else np.full(n, np.nan)
    if named and named[0] != "unanimous":
        # Refused before the work, not after it.
        choose_cut(blank, unknown, **{name: value for name, value in given.items() if name != "unanimous"})


def _refuse(methods: Sequence[str], options: dict[str, object]) -> None:
    """Refuse options that would have no effect."""
    for name, value in options.items():
        if value is None:
            continue
        describes = name in ("n_subspaces", "n_components")
        if ("subspaces" if describes else "radial") not in methods:
            raise InputError(f"{name} does nothing with method {methods[0]!r}: leave it out.")
        if describes and len(methods) > 1:
            raise InputError(f"{name} is for the method subspaces alone: name it, or leave {name} out.")


def _first(asked: Asked, name: str) -> Any:
    """Return what the first method that knows it says."""
    return next((getattr(result, name) for result in asked if hasattr(result, name)), None)


def _single(particles: Particles, prepared: Prepared, asked: Asked) -> SortResult:
    """The verdict of one method."""
    found = next(result for result in asked if result is not None)
    reason = np.where(prepared.pixels.codes == VALID, found.reason, reason_names(prepared.pixels.codes))
    result = _result(particles, prepared, asked, explain(asked))
    outside = result.measurements.get("outside", np.zeros(len(reason), dtype=bool))
    return result._replace(
        keep=found.keep & ~outside,
        score=found.score,
        reason=np.where(outside, "outside", reason),
        junk_probability=found.junk_probability,
        cut=found.cut,
    )


def _result(
    particles: Particles, prepared: Prepared, asked: Asked, suspicion: npt.NDArray[np.str_]
) -> SortResult:
    """A result with all that was measured, and no verdict yet."""
    n, codes = len(particles), prepared.pixels.codes
    scale = particles.box / prepared.particles.box
    measurements: dict[str, npt.NDArray[Any]] = {}
    offset = np.full((n, 2), np.nan, dtype=np.float32)
    if asked.radial is not None:
        measurements |= {name: getattr(asked.radial, name) for name in RADIAL}
        offset = asked.radial.centre * np.float32(scale)
    if asked.subspaces is not None:
        names = SUBSPACES if asked.radial is None else SUBSPACES[-1:]
        measurements |= {name: getattr(asked.subspaces, name) for name in names}
    measurements |= {"pixel_mean": prepared.pixels.mean, "pixel_std": prepared.pixels.std}
    if particles.outside is not None:
        measurements["outside"] = particles.outside
    return SortResult(
        keep=np.zeros(n, dtype=bool),
        score=np.full(n, np.inf),
        reason=suspicion,
        suspicion=np.where(codes == VALID, suspicion, reason_names(codes)),
        rescued=np.zeros(n, dtype=bool),
        junk_probability=np.ones(n),
        votes=asked.votes,
        offset=offset,
        measurements=measurements,
        cut=np.nan,
        diameter=np.nan,
        diameter_px=np.nan,
        diameter_estimated=True,
        contrast=_first(asked, "contrast") or "unknown",
        phase_flipped=False,
        subspaces=asked.subspaces if asked.radial is None else None,
        errors=None,
        views=None,
        judge=Judge(asked.learned, {**dict.fromkeys(asked.votes, 1.0), OFFSET: 0.0}, {}, (np.nan, np.nan)),
        parameters={},
        seconds={},
    )


def _joint(
    particles: Particles,
    prepared: Prepared,
    asked: Asked,
    duplicate_distance: float,
    keep_off_centre: bool,
    earlier: SortResult | None,
    n_jobs: int | None,
    seed: int,
    progress: Callable[[float], None] | None,
) -> SortResult:
    """The verdict of all methods together."""
    working, votes, radial = prepared.particles, asked.votes, asked.radial
    assert radial is not None
    result = _result(particles, prepared, asked, explain(asked))
    if earlier is None:
        known = known_images(working, votes, asked.learned, n_jobs=n_jobs, seed=seed)
        found = combine_votes(votes, known.teach)
        judge = Judge(asked.learned, found.weights, {}, found.shares)
        decoys = {kind: judge.score(by_method) for kind, by_method in known.test.items()}
        judge = judge._replace(decoys=decoys)
    else:
        judge = earlier.judge
        found = _judged_before(judge.score(votes), earlier)
    if progress:
        progress(0.3)
    if keep_off_centre and np.isfinite(found.cut):
        found = _moved_to_the_middle(found, working, result.suspicion, radial, judge, n_jobs)
    keep = np.isfinite(found.score) if np.isnan(found.cut) else found.score <= found.cut
    views, rare = find_views(
        working,
        found.score,
        keep,
        radial.radius,
        n_jobs=n_jobs,
        seed=seed,
        progress=progress and (lambda done, total: progress(0.3 + 0.7 * done / total)),
    )
    measurements = {
        **result.measurements,
        "against": asked.against,
        "duplicate": find_all_duplicates(particles, duplicate_distance, found.score),
        "rare_view": rare,
    }
    result = result._replace(
        score=found.score,
        junk_probability=found.junk_probability,
        measurements=measurements,
        views=views,
        judge=judge,
    )
    result = with_verdict(result, keep, found.cut)
    beside = result.suspicion == "off-centre"
    at = np.where((result.keep & ~beside)[:, None], radial.nearest, radial.strongest)
    return result._replace(offset=at * np.float32(particles.box / working.box))


def _check_earlier(earlier: SortResult, method: str | None, size: int) -> None:
    before = earlier.parameters.get("working_size")
    if method is not None or len(earlier.votes) < len(METHODS):
        raise InputError(
            "an earlier result is of use with all methods only: leave the method out, then and now."
        )
    if np.isnan(earlier.cut) or not earlier.judge.decoys:
        raise InputError(
            "the earlier run has no cut, since it was unanimous or had too few images: sort all together."
        )
    if before != size:
        raise InputError(
            f"the earlier run had images of {before} working pixels, and these have {size}: "
            "give the same working size, or sort without it."
        )


def _judged_before(score: npt.NDArray[np.float64], earlier: SortResult) -> Combination:
    """Junk probabilities of scores as in an earlier run."""
    probability = _interpolated(score, earlier.score, earlier.junk_probability)
    return Combination(score, probability, earlier.cut, earlier.judge.weights, earlier.judge.shares)


def _interpolated(
    score: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], probability: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Junk probabilities of scores, from those of others."""
    known, first = np.unique(scores[np.isfinite(scores)], return_index=True)
    found = np.interp(score, known, probability[np.isfinite(scores)][first])
    return np.where(np.isfinite(score), found, 1.0)


def _moved_to_the_middle(
    found: Combination,
    working: Particles,
    suspicion: npt.NDArray[np.str_],
    radial: RadialResult,
    judge: Judge,
    n_jobs: int | None,
) -> Combination:
    """Give particles beside the centre the score and probability that they have in the middle, if lower."""
    candidates = (found.score > found.cut) & np.isfinite(found.score)
    candidates &= (suspicion == "off-centre") | (radial.suspicion == "off-centre")
    beside = np.flatnonzero(candidates)
    score = found.score.copy()
    moved = centred_scores(working, beside, radial.strongest[beside], radial.radius, judge, n_jobs)
    score[beside] = np.minimum(score[beside], moved)
    return found._replace(
        score=score, junk_probability=_interpolated(score, found.score, found.junk_probability)
    )
