"""A second look at picks in micrographs: what a picker sees there that has not seen the verdict."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import cKDTree

from fastsort._types import Bools, Floats, Singles
from fastsort.decide.decoys import EstimatedErrors
from fastsort.decide.result import SortResult
from fastsort.particles.extract import MicrographImages
from fastsort.particles.reduced import ReducedMicrographs, Unread
from fastsort.particles.source import Particles
from fastsort.picking.learn import LearnedPicks, learn_from
from fastsort.picking.look import look_at

# The micrographs with most picks are looked at, so many of them; with fewer kept picks nothing is said.
N_MICROGRAPHS, FEWEST = 4, 100
# A place is the pick's if it lies so near, in diameters.
SAME = 0.35
# If nearly all picks are kept, and the picker finds fewer of them than this, the figures are not trusted. Of
# particles that people picked it finds 0.74 and more.
NEARLY_ALL, FOUND = 0.85, 0.65


def look_again(particles: Particles, result: SortResult) -> EstimatedErrors | None:
    """Check the errors of a verdict on picks against the micrographs themselves.

    Parameters
    ----------
    particles : Particles
    result : SortResult

    Returns
    -------
    errors : EstimatedErrors or None
        Those of the result, but not known where nearly all picks are kept and the micrographs show far fewer
        particles: noise of a kind that no decoy has looks like particles among images, and like noise in a
        micrograph, whose negative has it too.
    """
    errors, store = result.errors, particles.store
    if errors is None or not errors.known or not isinstance(store, MicrographImages):
        return errors
    if result.keep.mean() < NEARLY_ALL:
        return errors
    counts = np.bincount(store.micrograph_of[result.keep], minlength=len(store.micrographs))
    chosen = np.argsort(-counts, kind="stable")[:N_MICROGRAPHS]
    chosen = np.sort(chosen[counts[chosen] > 0])
    if counts[chosen].sum() < FEWEST:
        return errors
    found = _share_found(store, result.keep, chosen.tolist(), result.diameter_px, particles.pixel_size)
    if found is None or found >= FOUND:
        return errors
    remark = (
        f"nearly all picks are kept, but the micrographs, searched anew, show a particle at only "
        f"{100 * found:.0f} % of them: pick with `fastsort pick`, or look at the images"
    )
    return errors._replace(known=False, remark=remark)


def _share_found(
    store: MicrographImages, keep: Bools, chosen: list[int], diameter: float, pixel_size: float
) -> float | None:
    """Return which part of the kept picks of some micrographs a picker finds; None if it finds nothing."""
    headers = [store.micrographs[number] for number in chosen]
    learned = learn_from(headers, pixel_size, diameter if math.isfinite(diameter) else None)
    if learned is None:
        return None
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
