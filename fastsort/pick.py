"""Pick: micrographs go in, places of particles come out."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from scipy.spatial import cKDTree

from fastsort._brief import brief
from fastsort._checks import InputError, check_is, check_positive, check_workers
from fastsort._progress import Progress, part_of
from fastsort._types import Array, Bools, Codes, FilePath, Floats, Numbers, Singles, Words
from fastsort.images.batches import map_batches
from fastsort.images.work import WorkFolder, fingerprint, work_folder
from fastsort.particles.doubts import stack_doubts
from fastsort.particles.micrographs import MicrographList, list_micrographs
from fastsort.particles.mrc import MrcHeader
from fastsort.particles.reduced import ReducedMicrographs, Unread
from fastsort.particles.source import evenly_spaced
from fastsort.picking.contamination import AGGREGATE, WORDS, kinds_of
from fastsort.picking.learn import LearnedPicks, learn_from
from fastsort.picking.look import look_at

REASONS = ("valid", "noise", *WORDS, "by_hand")
VALID, NOISE, FIRST_WORD, BY_HAND = 0, 1, 2, 2 + len(WORDS)
# So many micrographs teach what particles look like.
N_LEARNED_FROM = 6
# After so many micrographs a run saves what it has found.
N_SAVED_AT_ONCE = 16
# Learning takes about as long as so many micrographs; for the bar.
LEARNING = 20
# A particle has fewer others than this beside it that are nearer than this, in diameters.
MOST_BESIDE, HEAPED = 2, 0.9
# What is hardly ever a particle is not listed at all, unless contamination hides it.
_LEAST_LISTED = 0.01


@brief
class PickResult(NamedTuple):
    """Places in micrographs that may be particles, and which of them are.

    Attributes
    ----------
    names : ndarray of str, shape (m,)
        The micrographs, as they were given.
    micrograph : ndarray of int32, shape (n,)
        In which micrograph each place lies; ascending. Within a micrograph, the likeliest place is first.
    x, y : ndarray of float64, shape (n,)
        Centre in pixels of the micrograph; the middle of the first pixel is 0.
    probability : ndarray of float64, shape (n,)
        That the place is a particle: its figure of merit.
    height : ndarray of float64, shape (n,)
        Response of the template, in deviations.
    keep : ndarray of bool, shape (n,)
    reason : ndarray of str, shape (n,)
        "valid", or why it is no particle: "noise", "contamination", "carbon", "ice", "aggregate"; "by_hand"
        where a person rejected what the threshold keeps.
    contaminated : ndarray of float64, shape (m,)
        Part of the area of each micrograph in which no particle can be seen.
    diameter, diameter_px : float
        Of the particle, in angstroms and in pixels; NaN when unknown.
    diameter_found : bool
        Whether it was found, and not given.
    contrast : str
        "dark" or "bright": the particles in the micrographs; "unknown" where none were found.
    threshold : float
        Least probability of what is kept.
    pixel_size : float
        Of the micrographs in angstroms; NaN when unknown.
    learned : LearnedPicks or None
        What tells particles from everything else; None where nothing stands out from noise.
    failed : dict of str to str
        Micrographs that could not be read, and why.
    doubts : tuple of str
    seconds : dict of str to float
    by_hand : ndarray of int8, shape (n,), or None
        1 for places that a person kept, -1 for rejected ones, 0 for all others; None where nobody chose.
    """

    names: Words
    micrograph: Numbers
    x: Floats
    y: Floats
    probability: Floats
    height: Floats
    keep: Bools
    reason: Words
    contaminated: Floats
    diameter: float
    diameter_px: float
    diameter_found: bool
    contrast: str
    threshold: float
    pixel_size: float
    learned: LearnedPicks | None
    failed: dict[str, str]
    doubts: tuple[str, ...]
    seconds: dict[str, float]
    by_hand: Codes | None = None


class MicrographPicks(NamedTuple):
    """What was found in one micrograph.

    Attributes
    ----------
    x, y, probability, height : ndarray of float64, shape (n,)
        Coordinates in pixels of the micrograph as it was.
    reason : ndarray of int8, shape (n,)
        What the place is if it is no particle, as in `REASONS`.
    contaminated : float
        Part of the area.
    failed : str
        Why the micrograph could not be read; empty if it could.
    """

    x: Floats
    y: Floats
    probability: Floats
    height: Floats
    reason: Array
    contaminated: float
    failed: str


def pick_particles(
    micrographs: FilePath | Sequence[FilePath] | MicrographList,
    *,
    diameter: float | None = None,
    threshold: float | None = None,
    contamination_margin: float | None = None,
    pixel_size: float | None = None,
    data_dir: FilePath | None = None,
    earlier: PickResult | None = None,
    work: FilePath | None = None,
    keep_work: bool = False,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> PickResult:
    """Find particles in micrographs. Nothing has to be known of them, and nothing is trained.

    Parameters
    ----------
    micrographs : path, pattern, list of them, or MicrographList
        MRC files of one image each, or a RELION STAR file that lists them; or what `list_micrographs` made of
        them. Read once, a few twice; never changed.
    diameter : float, optional
        Of the particle, in angstroms; in pixels where the pixel size is unknown. By default it is found.
    threshold : float, optional
        Keep what is a particle with this probability at least. By default the one with the best expected F1.
    contamination_margin : float, optional
        Nothing is kept that lies nearer to contamination than this, in angstroms; in pixels where the pixel
        size is unknown. By default a quarter of the diameter.
    pixel_size : float, optional
        In angstroms, instead of what the files say.
    data_dir : path, optional
        Folder in which to look first for files that a STAR file names.
    earlier : PickResult, optional
        Of an earlier run. Its micrographs are not looked at again; in the others, what it has learned is
        used.
    work : path, optional
        Folder for what a run has found so far. If it was killed, start it again with the same folder, and it
        goes on where it stopped.
    keep_work : bool
        Whether the folder stays after a run without errors.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    progress : callable, optional
        Called as ``progress(done, total)``, in micrographs.

    Returns
    -------
    result : PickResult

    Raises
    ------
    InputError
        If no micrograph can be read, one is a movie, they differ in pixel size, or an option is out of range.

    Notes
    -----
    Noise has no sign: the negative of a micrograph shows what noise looks like to a picker. A radial
    template is learned from what the highest places have and those of the negative have not, for blobs of
    all sizes; the sizes with most evidence win. Templates from the micrographs themselves are the idea of
    the KLT picker (Eldar, Landa & Shkolnisky, J. Struct. Biol. 210, 2020). Places where the micrograph is
    darker, steeper or finer than particles are contaminated. A mixture of noise, which the negative shows,
    particles, and the rest, over the rings and the fine structure about each place, gives a probability. The
    likeliest places are averaged in a few classes, turned and shifted; how much likelier than noise a place
    shows one of these, and what it leaves, makes the probability surer, and its shift is the place's.
    Particles that lie closer than they can side by side are a clump. A micrograph that cannot be read is
    skipped and named.

    The number of rounds is fixed: four for each template, two in which contamination and template are
    learned from each other.

    Examples
    --------
    >>> import os, tempfile
    >>> import fastsort as fs
    >>> from fastsort.simulate import simulate_micrographs, write_micrographs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     simulated = simulate_micrographs(2, 768, diameter=120, pixel_size=4, snr=0.2, noise="white")
    ...     star = write_micrographs(os.path.join(folder, "set"), simulated)
    ...     result = fs.pick_particles(star)
    >>> result.contrast
    'dark'
    """
    begin = time.perf_counter()
    check_workers(n_jobs)
    if earlier is not None:
        check_is(earlier, PickResult, "earlier", "pick_particles")
    listed = (
        micrographs
        if isinstance(micrographs, MicrographList)
        else list_micrographs(micrographs, pixel_size=pixel_size, data_dir=data_dir)
    )
    unit = listed.pixel_size if math.isfinite(listed.pixel_size) else 1.0
    across = None if diameter is None else _diameter_px(diameter, unit, listed)
    if threshold is not None:
        check_threshold(threshold)
    margin = None
    if contamination_margin is not None:
        margin = _check_margin(contamination_margin) / unit
    if earlier is not None and earlier.learned is None:
        # It has found nothing, and so knows nothing: all are looked at together.
        earlier = None
    known = (
        set()
        if earlier is None
        else {*map(os.path.realpath, earlier.names.tolist()), *earlier.names.tolist()}
    )
    new = [
        number
        for number, (name, header) in enumerate(zip(listed.names, listed.headers, strict=True))
        if name not in known and os.path.realpath(header.path) not in known
    ]
    headers = [listed.headers[number] for number in new]
    learned = None if earlier is None else earlier.learned
    if earlier is not None:
        _check_earlier(earlier, listed, diameter)
    mark = ""
    if work is not None:
        known_before = None if learned is None else [learned.template.profile, learned.diameter, learned.cut]
        files = [_identity(header) for header in headers]
        mark = fingerprint("pick", files, listed.pixel_size, across, margin, known_before)
    with work_folder(work, fingerprint=mark, keep=keep_work) as folder:
        if learned is None and headers:
            sample = _spread(headers)
            learned = folder.stage("learned", lambda: learn_from(sample, listed.pixel_size, across))
        if progress:
            progress(0, len(headers) + LEARNING)
        learning = time.perf_counter()
        shown = part_of(progress, LEARNING / (len(headers) + LEARNING), 1.0, len(headers) + LEARNING)
        found = _find(headers, learned, margin, folder, n_jobs, shown)
    names = [listed.names[number] for number in new]
    if earlier is not None and threshold is None:
        threshold = earlier.threshold
    result = _joined(names, found, listed, learned, diameter is None, threshold)
    if earlier is not None:
        result = _after(earlier, result)
    seconds = {"learn": learning - begin, "pick": time.perf_counter() - learning}
    return result._replace(seconds={**seconds, "total": math.fsum(seconds.values())})


def _diameter_px(diameter: float, unit: float, listed: MicrographList) -> float:
    across = check_positive("diameter", diameter, "A") / unit
    side = min(min(header.ny, header.nx) for header in listed.headers)
    if not 8 <= across <= side / 3:
        raise InputError(
            f"a diameter of {diameter:g} A is {across:.0f} px in micrographs of {side} px: it must be 8 px "
            "to a third of the micrograph. Check the diameter and the pixel size."
        )
    return across


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that is no probability."""
    if not 0 < threshold < 1:
        raise InputError(f"threshold is a probability between 0 and 1; got {threshold:g}.")


def _check_margin(margin: float) -> float:
    if not (math.isfinite(margin) and margin >= 0):
        raise InputError(f"contamination_margin must be 0 or a positive length; got {margin:g}.")
    return margin


def _check_earlier(earlier: PickResult, listed: MicrographList, diameter: float | None) -> None:
    sizes = earlier.pixel_size, listed.pixel_size
    if all(map(math.isfinite, sizes)) and abs(sizes[0] / sizes[1] - 1) > 1e-3:
        raise InputError(
            f"the earlier run had micrographs of {sizes[0]:.5g} A a pixel, these have {sizes[1]:.5g} A: pick "
            "them in a run of their own."
        )
    if diameter is not None and earlier.learned is not None:
        raise InputError("diameter does nothing beside what an earlier run has learned: leave it out.")


def _identity(header: MrcHeader) -> list[str | int]:
    """Return what changes when a micrograph is written anew."""
    try:
        status = os.stat(header.path)
    except OSError:
        return [header.path]
    return [header.path, status.st_size, status.st_mtime_ns]


def _spread(headers: list[MrcHeader]) -> list[MrcHeader]:
    """Return a few micrographs, evenly spaced among all."""
    return [headers[place] for place in evenly_spaced(len(headers), N_LEARNED_FROM).tolist()]


def _find(
    headers: list[MrcHeader],
    learned: LearnedPicks | None,
    margin: float | None,
    folder: WorkFolder,
    n_jobs: int | None,
    progress: Progress | None,
) -> list[MicrographPicks]:
    """Look at all micrographs; what was found is saved after every few."""
    if learned is None:
        return [_nothing()] * len(headers)
    found: list[MicrographPicks] = []
    for start in range(0, len(headers), N_SAVED_AT_ONCE):
        some = headers[start : start + N_SAVED_AT_ONCE]
        compute = partial(_find_some, some, learned, margin, n_jobs)
        found += folder.stage(f"places-{start // N_SAVED_AT_ONCE}", compute)
        if progress:
            progress(len(found), len(headers))
    return found


def _nothing(failed: str = "") -> MicrographPicks:
    """Return what is found where nothing can be seen."""
    empty = np.empty(0)
    return MicrographPicks(empty, empty, empty, empty, np.empty(0, np.int8), math.nan, failed)


def _find_some(
    headers: list[MrcHeader], learned: LearnedPicks, margin: float | None, n_jobs: int | None
) -> list[MicrographPicks]:
    reduced = ReducedMicrographs(headers, learned.template.binning)
    return [*map_batches(_picks_of, reduced, learned, margin, batch_size=1, n_jobs=n_jobs)]


def _picks_of(
    images: list[Singles | Unread], start: int, learned: LearnedPicks, margin: float | None
) -> MicrographPicks:
    """Find the places of one micrograph."""
    image = images[0]
    if isinstance(image, Unread):
        return _nothing(str(image))
    width, binning = learned.width, learned.template.binning
    seen = look_at(image, learned, None if margin is None else margin / binning)
    if seen is None:
        return _nothing()
    places, likely = seen.places, seen.likely
    row, column = (np.rint(side).astype(np.intp) for side in (places.row, places.column))
    row, column = np.clip(row, 0, image.shape[0] - 1), np.clip(column, 0, image.shape[1] - 1)
    spoilt = ~seen.clean[row, column]
    kinds = _nearest_kind(kinds_of(seen.bad, seen.maps, learned.limits, math.pi / 4 * width**2), row, column)
    heap = ~spoilt & heaped(places.row, places.column, ~spoilt & (likely[:, 0] >= learned.cut), width)
    probability = np.where(spoilt | heap, 0.0, likely[:, 0])
    reason = np.where(likely[:, 1] > 1 - likely.sum(axis=1), FIRST_WORD, NOISE)
    reason = np.where(spoilt, FIRST_WORD + np.maximum(kinds, 0), reason)
    reason = np.where(heap, FIRST_WORD + AGGREGATE, reason).astype(np.int8)
    listed = np.flatnonzero((probability >= _LEAST_LISTED) | spoilt | heap)
    listed = listed[np.argsort(-probability[listed], kind="stable")]
    x, y = ((side + 0.5) * binning - 0.5 for side in (places.column, places.row))
    share = float(seen.bad.sum() / max(1, seen.surface.usable.sum()))
    return MicrographPicks(
        x[listed], y[listed], probability[listed], places.height[listed], reason[listed], share, ""
    )


def heaped(row: Floats, column: Floats, likely: Bools, width: float) -> Bools:
    """Tell which places lie in a heap of particles: two that lie side by side leave room for no third.

    Parameters
    ----------
    row, column : ndarray of float64, shape (m,)
    likely : ndarray of bool, shape (m,)
        Which places show particles.
    width : float
        Of a particle, in the same pixels.

    Returns
    -------
    heap : ndarray of bool, shape (m,)
        Places with two likely ones or more nearer than nine tenths of a width, themselves not counted.
    """
    places = np.column_stack([row, column])
    heap = np.zeros(len(places), bool)
    if likely.any():
        near = cKDTree(places[likely]).query_ball_point(places, HEAPED * width, return_length=True)
        heap = near - likely >= MOST_BESIDE
    return heap


def _nearest_kind(kinds: Array, row: Array, column: Array) -> Array:
    """Return the kind of the contamination nearest to places; -1 where there is none at all."""
    if not len(row) or (kinds < 0).all():
        return np.full(len(row), -1, np.int8)
    nearest = scipy.ndimage.distance_transform_edt(kinds < 0, return_distances=False, return_indices=True)
    found: Array = kinds[nearest[0][row, column], nearest[1][row, column]]
    return found


def _joined(
    names: list[str],
    found: list[MicrographPicks],
    listed: MicrographList,
    learned: LearnedPicks | None,
    diameter_found: bool,
    threshold: float | None,
) -> PickResult:
    read = [number for number, some in enumerate(found) if not some.failed]
    failed = {**listed.failed, **{names[k]: some.failed for k, some in enumerate(found) if some.failed}}
    parts = [found[number] for number in read]
    micrograph = np.repeat(np.arange(len(parts), dtype=np.int32), [len(some.x) for some in parts])
    x, y, probability, height = (
        np.concatenate([np.empty(0), *(some[field] for some in parts)]) for field in range(4)
    )
    cut = 1.0 if learned is None else learned.cut
    cut = cut if threshold is None else threshold
    keep = probability >= cut
    code = np.concatenate([np.empty(0, np.int8), *(some.reason for some in parts)])
    across = math.nan if learned is None else learned.diameter
    contrast = "unknown" if learned is None else "dark" if learned.sign < 0 else "bright"
    return PickResult(
        names=np.array([names[number] for number in read], str),
        micrograph=micrograph,
        x=x,
        y=y,
        probability=probability,
        height=height,
        keep=keep,
        reason=np.array(REASONS)[np.where(keep, VALID, code).astype(np.intp)],
        contaminated=np.array([some.contaminated for some in parts]),
        diameter=across * listed.pixel_size,
        diameter_px=across,
        diameter_found=diameter_found,
        contrast=contrast,
        threshold=cut,
        pixel_size=listed.pixel_size,
        learned=learned,
        failed=failed,
        doubts=(*stack_doubts(listed.headers), *_doubts(listed, learned, diameter_found)),
        seconds={},
    )


def _doubts(listed: MicrographList, learned: LearnedPicks | None, diameter_found: bool) -> list[str]:
    doubts = []
    if learned is None:
        advice = "give --diameter" if diameter_found else "try another --diameter, or none"
        doubts.append(
            "nothing stands out from noise in these micrographs, so nothing was picked: look at one of them, "
            f"and {advice} if particles can be seen."
        )
    if not math.isfinite(listed.pixel_size):
        doubts.append("no file says the pixel size: lengths are in pixels. Give --pixel-size.")
    return doubts


def _after(earlier: PickResult, new: PickResult) -> PickResult:
    """Put what was found in new micrographs after what an earlier run has found."""
    if new.threshold != earlier.threshold:
        earlier = judge_picks(earlier, new.threshold)
    by_hand = earlier.by_hand
    if by_hand is not None:
        by_hand = np.concatenate([by_hand, np.zeros(len(new.x), np.int8)])
    micrograph = np.concatenate([earlier.micrograph, new.micrograph + np.int32(len(earlier.names))])
    return new._replace(
        names=np.concatenate([earlier.names, new.names]),
        micrograph=micrograph,
        x=np.concatenate([earlier.x, new.x]),
        y=np.concatenate([earlier.y, new.y]),
        probability=np.concatenate([earlier.probability, new.probability]),
        height=np.concatenate([earlier.height, new.height]),
        keep=np.concatenate([earlier.keep, new.keep]),
        reason=np.concatenate([earlier.reason, new.reason]),
        contaminated=np.concatenate([earlier.contaminated, new.contaminated]),
        diameter_found=earlier.diameter_found,
        by_hand=by_hand,
    )


def judge_picks(
    result: PickResult, threshold: float | None = None, by_hand: Codes | None = None
) -> PickResult:
    """Judge the same places by another threshold, or by what a person chose; probabilities stay.

    Parameters
    ----------
    result : PickResult
        Of n places.
    threshold : float, optional
        Least probability of what is kept; by default that of the result.
    by_hand : ndarray of int8, shape (n,), optional
        1 for places to keep whatever their probability, -1 for those to reject, 0 for all others; by default
        those of the result.

    Returns
    -------
    result : PickResult
        With another `keep`, `reason`, `threshold` and `by_hand`. What was kept before
        and the threshold rejects now is "noise".

    Raises
    ------
    InputError
        If the threshold is no probability.
    """
    if threshold is None:
        threshold = result.threshold
    else:
        check_threshold(threshold)
    by_hand = result.by_hand if by_hand is None else by_hand
    likely = result.probability >= threshold
    keep = likely if by_hand is None else np.where(by_hand == 0, likely, by_hand > 0)
    no_particle = ~np.isin(result.reason, (REASONS[VALID], REASONS[BY_HAND]))
    why = np.where(likely, REASONS[BY_HAND], np.where(no_particle, result.reason, REASONS[NOISE]))
    reason = np.where(keep, REASONS[VALID], why)
    return result._replace(keep=keep, reason=reason, threshold=threshold, by_hand=by_hand)
