"""A second look at picks in micrographs: what a picker sees there that has not seen the verdict."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import cKDTree

from fastsort._reasons import CONTAMINATION
from fastsort._types import Bools, Floats, Singles
from fastsort.decide.result import SortResult
from fastsort.decide.verdict import passed_by, with_verdict
from fastsort.images.batches import map_batches
from fastsort.particles.extract import MicrographImages
from fastsort.particles.reduced import ReducedMicrographs, Unread
from fastsort.particles.source import Particles
from fastsort.picking.learn import LearnedPicks, learn_from
from fastsort.picking.look import clean_area, look_at

# The micrographs with most picks are looked at, so many of them; with fewer kept picks nothing is said.
N_MICROGRAPHS, FEWEST = 4, 100
# A place is the pick's if it lies so near, in diameters.
SAME = 0.35
# If nearly all picks are kept, and the picker finds fewer of them than this, the figures are not trusted. Of
# particles that people picked it finds 0.74 and more.
NEARLY_ALL, FOUND = 0.85, 0.65
# Where this part of the kept picks seems to lie on contamination, the particles were taken for it.
MOST_SPOILT = 0.5


def look_again(
    particles: Particles, result: SortResult, *, check_errors: bool = True, n_jobs: int | None = None
) -> SortResult:
    """Check a verdict on picks against the micrographs themselves.

    Parameters
    ----------
    particles : Particles
    result : SortResult
    check_errors : bool
        Whether the errors are checked, too.
    n_jobs : int, optional

    Returns
    -------
    result : SortResult
        The same one where there are no micrographs, or nothing stands out in them. Picks on contamination or
        where a micrograph shows nothing cannot be judged: their score is infinite. Errors are not known where
        nearly all picks are kept and the micrographs show far fewer particles: noise of a kind that no decoy
        has looks like particles among images, and like noise in a micrograph, whose negative has it too.
    """
    store = particles.store
    if not isinstance(store, MicrographImages):
        return result
    counts = np.bincount(store.micrograph_of[result.keep], minlength=len(store.micrographs))
    chosen = np.argsort(-counts, kind="stable")[:N_MICROGRAPHS]
    chosen = np.sort(chosen[counts[chosen] > 0])
    if counts[chosen].sum() < FEWEST:
        return result
    headers = [store.micrographs[number] for number in chosen.tolist()]
    diameter = result.diameter_px if math.isfinite(result.diameter_px) else None
    learned = learn_from(headers, particles.pixel_size, diameter)
    if learned is None:
        return result
    found = None
    if check_errors and result.errors and result.errors.known and result.keep.mean() >= NEARLY_ALL:
        found = _share_found(store, result.keep, chosen.tolist(), learned)
    spoilt = _on_contamination(store, learned, n_jobs)
    if spoilt[result.keep].mean() < MOST_SPOILT:
        result = _without(result, spoilt)
        result = result._replace(learned=result.learned._replace(picks=learned))
    if found is None or found >= FOUND or result.errors is None:
        return result
    remark = (
        f"nearly all picks are kept, but the micrographs, searched anew, show a particle at only "
        f"{100 * found:.0f} % of them: pick with `fastsort pick`, or look at the images"
    )
    return result._replace(errors=result.errors._replace(known=False, remark=remark))


def _without(result: SortResult, spoilt: Bools) -> SortResult:
    """Reject picks that cannot be judged."""
    if not spoilt.any():
        return result
    measurements = dict(result.measurements)
    if "rare_view" in measurements:
        measurements["rare_view"] = measurements["rare_view"] & ~spoilt
    result = result._replace(
        score=np.where(spoilt, np.inf, result.score),
        junk_probability=np.where(spoilt, 1.0, result.junk_probability),
        suspicion_code=np.where(spoilt, np.int8(CONTAMINATION), result.suspicion_code),
        measurements=measurements,
    )
    return with_verdict(result, passed_by(result, result.threshold), result.threshold)


def _on_contamination(store: MicrographImages, learned: LearnedPicks, n_jobs: int | None) -> Bools:
    """Tell which picks lie on contamination, or where their micrograph shows nothing."""
    binning = learned.template.binning
    spoilt = np.zeros(len(store), bool)
    numbers = np.unique(store.micrograph_of).tolist()
    reduced = ReducedMicrographs([store.micrographs[number] for number in numbers], binning)
    order = np.argsort(store.micrograph_of, kind="stable")
    ends = np.searchsorted(store.micrograph_of[order], numbers, side="right").tolist()
    for number, clean in enumerate(map_batches(_clean_area, reduced, learned, batch_size=1, n_jobs=n_jobs)):
        if clean is None:
            continue
        own = order[ends[number - 1] if number else 0 : ends[number]]
        row, column = (
            np.clip(np.rint((side[own] + 0.5) / binning - 0.5).astype(np.intp), 0, most - 1)
            for side, most in zip((store.y, store.x), clean.shape, strict=True)
        )
        spoilt[own] = ~clean[row, column]
    return spoilt


def _clean_area(images: list[Singles | Unread], start: int, learned: LearnedPicks) -> Bools | None:
    return None if isinstance(images[0], Unread) else clean_area(images[0], learned)


def _share_found(
    store: MicrographImages, keep: Bools, chosen: list[int], learned: LearnedPicks
) -> float | None:
    """Return which part of the kept picks of some micrographs a picker finds; None if it sees nothing."""
    headers = [store.micrographs[number] for number in chosen]
    reduced = ReducedMicrographs(headers, learned.template.binning)
    hits = total = 0
    for number, image in zip(chosen, reduced.read(0, len(reduced)), strict=True):
        own = np.flatnonzero(keep & (store.micrograph_of == number))
        places = None if isinstance(image, Unread) else _particles_in(image, learned)
        if places is None:
            continue
        picks = np.column_stack([store.y[own], store.x[own]])
        if len(places):
            hits += int((cKDTree(places).query(picks)[0] <= SAME * learned.diameter).sum())
        total += len(own)
    return hits / total if total else None


def _particles_in(image: Singles, learned: LearnedPicks) -> Floats | None:
    """Return where a micrograph shows particles, as (y, x) in its pixels; None where it shows nothing."""
    seen = look_at(image, learned)
    if seen is None:
        return None
    kept = seen.likely[:, 0] >= learned.cut
    places = np.column_stack([seen.places.row, seen.places.column])
    row, column = np.rint(places).astype(np.intp).T
    height, width = image.shape
    kept &= seen.clean[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return (places[kept] + 0.5) * learned.template.binning - 0.5
