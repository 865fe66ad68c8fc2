"""The search over all references, angles and shifts for the pose that fits each image best."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastsort._jit import kernel
from fastsort._types import Bools, Floats, Indices, Singles
from fastsort.invariants.references import SEARCH_RINGS, References
from fastsort.invariants.refine import Starts, refine_poses
from fastsort.invariants.rings import CHUNK, SEARCH_ANGLES, Polar, rings_of, working_box

# Grid points of the shift a period of the highest frequency in the search.
SHIFT_SAMPLING = 2.5
# Peaks of the search that are refined; those of one reference are this many search angles apart.
N_STARTS = 3
APART = 4


class Poses(NamedTuple):
    """The reference that fits each image best, and how the image is brought onto it.

    Attributes
    ----------
    reference : ndarray of intp, shape (n,)
        -1 for an image that cannot be aligned.
    angle, shift, score, mirrored
        As of an `Alignment` onto that reference.
    """

    reference: Indices
    angle: Singles
    shift: Singles
    score: Singles
    mirrored: Bools


def search_poses(
    polar: Polar,
    bank: References,
    candidates: Indices | None,
    max_shift: float,
    inner_only: bool = False,
) -> Poses:
    """Compare images with references at all angles and shifts, and refine the best.

    Parameters
    ----------
    polar : Polar
    bank : References
    candidates : ndarray of intp, shape (n, q), optional
        References each image is compared with; all by default. Negative entries stand for none.
    max_shift : float
        In pixels of the images.
    inner_only : bool
        Whether the inner rings are enough: for references that have no others.

    Returns
    -------
    poses : Poses
    """
    rings = rings_of(working_box(polar.box))
    scale = polar.box / rings.box
    limit = max_shift / scale
    starts = _highest_peaks(polar, bank, candidates, limit)
    schedule = _schedule(min(SEARCH_RINGS, rings.n_rings), rings.n_rings, inner_only)
    refined = refine_poses(polar, bank, starts, limit, schedule)
    nothing = refined.variant < 0
    flipped = refined.variant >= bank.n_references
    angle = np.where(flipped, -refined.angle, refined.angle)
    angle = np.degrees(angle - 2 * np.pi * np.round(angle / (2 * np.pi)))
    return Poses(
        np.where(nothing, -1, refined.variant % bank.n_references).astype(np.intp),
        angle.astype(np.float32),
        (refined.shift * scale).astype(np.float32),
        np.where(nothing, -np.inf, np.clip(refined.score, -1, 1)).astype(np.float32),
        flipped,
    )


def _schedule(inner: int, n_rings: int, inner_only: bool) -> Indices:
    """Rings of each comparison: twice those of the search, half of the others, then all."""
    if inner_only:
        return np.full(3, inner, dtype=np.intp)
    half = (inner + n_rings) // 2
    return np.array([inner, inner, half, n_rings, n_rings, n_rings, n_rings], dtype=np.intp)


def _highest_peaks(polar: Polar, bank: References, candidates: Indices | None, limit: float) -> Starts:
    """Compare the inner rings at all angles and all shifts on a grid; shifts are in working pixels."""
    n = len(polar.spectra)
    rings = rings_of(working_box(polar.box))
    inner = min(SEARCH_RINGS, rings.n_rings)
    shifts, turn = _shift_grid(rings.box, inner, limit)
    strength = np.full((n, N_STARTS), -np.inf, dtype=np.float32)
    # Reference, angle and shift of each peak, as places in their lists.
    place = np.full((n, N_STARTS, 3), -1, dtype=np.int64)
    order = _by_candidates(polar.usable, candidates)
    variants = np.flatnonzero(bank.norm > 0)
    for start in range(0, len(order), CHUNK):
        some = order[start : start + CHUNK]
        rows = np.empty((2, len(some), len(shifts), inner * SEARCH_ANGLES), dtype=np.float32)
        _shift_rows(polar.spectra, some, rings.n_angles // SEARCH_ANGLES, inner, turn, rows)
        asked = variants
        if candidates is not None:
            # In this order, few images have few candidates.
            asked = variants[np.isin(variants % bank.n_references, candidates[some])]
        for v in asked:
            mine = np.arange(len(some))
            if candidates is not None:
                mine = np.flatnonzero((candidates[some] == v % bank.n_references).any(axis=1))
            compared = rows if len(mine) == len(some) else rows[:, mine]
            flat = compared.reshape(2, -1, inner * SEARCH_ANGLES)
            real = (flat[0] @ bank.coarse[v, 0]).reshape(len(mine), len(shifts), SEARCH_ANGLES)
            imaginary = (flat[1] @ bank.coarse[v, 1]).reshape(real.shape)
            _keep_peaks(real, imaginary, some[mine], v, 1 / bank.coarse_norm[v], strength, place)
    variant, angle, shift = (np.ascontiguousarray(place[..., part]) for part in range(3))
    return Starts(variant, angle * np.pi / SEARCH_ANGLES, shifts[shift])


def _by_candidates(usable: Bools, candidates: Indices | None) -> Indices:
    """Usable images in the order in which they are compared: those with the same first candidate together."""
    if candidates is None:
        return np.flatnonzero(usable)
    order: Indices = np.argsort(candidates[:, 0], kind="stable")
    return order[usable[order]]


@lru_cache(maxsize=8)
def _shift_grid(box: int, inner: int, limit: float) -> tuple[Floats, Singles]:
    """Shifts (S, 2), row and column in pixels, and the phases that undo them (S, 2, rings x angles)."""
    step = box / (SHIFT_SAMPLING * inner)
    reach = int(limit / step + 0.5)
    line = np.arange(-reach, reach + 1) * step
    shifts = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    length = np.hypot(shifts[:, 0], shifts[:, 1])
    shifts = shifts[length <= limit + 0.5 * step]
    length = np.hypot(shifts[:, 0], shifts[:, 1])
    # What lies beyond the limit is brought back to it, so that the rim is searched, too.
    shifts = shifts * np.minimum(1, limit / np.maximum(length, 1e-9))[:, None]
    angle = -math.pi / 2 + math.pi * np.arange(SEARCH_ANGLES) / SEARCH_ANGLES
    along = shifts[:, :1] * np.sin(angle) + shifts[:, 1:] * np.cos(angle)
    phase = 2 * np.pi / box * np.arange(1, inner + 1)[:, None] * along[:, None, :]
    turn = np.stack([np.cos(phase), np.sin(phase)], axis=1).astype(np.float32)
    return shifts, turn.reshape(len(shifts), 2, -1)


@kernel
def _shift_rows(spectra, some, stride, inner, turn, rows):
    # rows (2, images, shifts, rings x angles): real and imaginary parts of some of the images, each
    # shifted to every point of the grid.
    count = turn.shape[2] // inner
    re = np.empty(inner * count, dtype=np.float32)
    im = np.empty(inner * count, dtype=np.float32)
    for i in range(len(some)):
        for ring in range(inner):
            for j in range(count):
                re[ring * count + j] = spectra[some[i], 0, ring, j * stride]
                im[ring * count + j] = spectra[some[i], 1, ring, j * stride]
        for s in range(turn.shape[0]):
            cosine = turn[s, 0]
            sine = turn[s, 1]
            first = rows[0, i, s]
            second = rows[1, i, s]
            for j in range(len(re)):
                first[j] = re[j] * cosine[j] - im[j] * sine[j]
                second[j] = re[j] * sine[j] + im[j] * cosine[j]


@kernel
def _keep_peaks(real, imaginary, images, variant, scale, strength, place):
    # strength (n, N_STARTS), place (n, N_STARTS, 3): take in the highest peak of each image, and the
    # highest one that is far from it in angle.
    n_shifts = real.shape[1]
    count = real.shape[2]
    best = np.empty(2 * count, dtype=np.float32)
    where = np.empty(2 * count, dtype=np.int64)
    for i in range(real.shape[0]):
        for a in range(2 * count):
            best[a] = -np.inf
        for s in range(n_shifts):
            for a in range(count):
                plus = real[i, s, a] + imaginary[i, s, a]
                minus = real[i, s, a] - imaginary[i, s, a]
                if plus > best[a]:
                    best[a] = plus
                    where[a] = s
                if minus > best[count + a]:
                    best[count + a] = minus
                    where[count + a] = s
        # No literals, which have a type of their own: what gets them would be compiled for each.
        top = np.intp(0)
        for a in range(2 * count):
            if best[a] > best[top]:
                top = a
        _insert(images[i], best[top] * scale, variant, top, where[top], strength, place)
        second = np.intp(-1)
        for a in range(2 * count):
            apart = abs(a - top)
            if min(apart, 2 * count - apart) >= APART and (second < 0 or best[a] > best[second]):
                second = a
        _insert(images[i], best[second] * scale, variant, second, where[second], strength, place)


@kernel
def _insert(image, value, variant, angle, shift, strength, place):
    last = strength.shape[1] - 1
    if not value > strength[image, last]:
        return
    slot = last
    while slot > 0 and value > strength[image, slot - 1]:
        strength[image, slot] = strength[image, slot - 1]
        for part in range(3):
            place[image, slot, part] = place[image, slot - 1, part]
        slot -= 1
    strength[image, slot] = value
    place[image, slot, 0] = variant
    place[image, slot, 1] = angle
    place[image, slot, 2] = shift
