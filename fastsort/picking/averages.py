"""Averages of particles that look alike: where the middle of a place is, and how like a particle it looks."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import logsumexp

from fastsort._jit import kernel
from fastsort._types import Bools, Floats, Indices, Numbers, Singles
from fastsort.images.maxima import deviation_from_zero
from fastsort.picking.mixture import Gaussian, log_density, usual_part, weighted_part
from fastsort.picking.places import Places
from fastsort.picking.planes import Surface, as_plane, filtered
from fastsort.picking.template import MARGIN, Template

N_AVERAGES, N_ANGLES, N_ROUNDS = 6, 16, 12
# Learned from so many places, the likeliest, and from no fewer than this.
MOST_LEARNED, LEAST_LEARNED = 400, 30
# They reach so far, since neighbours begin beyond, and lie so far from the place at most, in diameters;
# so far in general, in parts of that.
RADIUS, SHIFT, USUAL_SHIFT = 0.6, 0.33, 2 / 3
# An average of few is drawn towards nothing, as if so many of its images were empty.
EMPTY = 4.0
# Its middle is that of its power, under a Gaussian of so many diameters: neighbours are not to draw it away.
WINDOW = 0.5
# A place takes about 50 kB while it is compared.
N_AT_ONCE = 64
# Places are at least so surely noise, particle and foreign before they are compared.
LEAST_PRIOR = 1e-4
# What is less likely a particle than this is not compared: it takes time, and finds next to none.
LEAST_COMPARED = 0.01
# Less likely by this logarithm than the best is nothing.
FAR_LESS = 20.0


class Averages(NamedTuple):
    """What particles look like from several sides, and what places measure when compared with that.

    Attributes
    ----------
    pixels : ndarray of float32, shape (k, p)
        Of whitened micrographs, in a disk.
    share : ndarray of float64, shape (k,)
        How many particles look like each.
    radius, shift : int
        Of the disk, and how far from a place it may lie; in pixels of the reduced micrographs.
    noise, particles, foreign : Gaussian
        Of the measurements.
    """

    pixels: Singles
    share: Floats
    radius: int
    shift: int
    noise: Gaussian
    particles: Gaussian
    foreign: Gaussian

    def likely(self, measured: Floats, likely: Floats) -> Floats:
        """Return how likely places are particles and foreign, shape (m, 2), given that before comparison.

        Where nothing is measured, it stays.
        """
        known = np.isfinite(measured[:, 0])
        before = likely[known]
        prior = np.maximum(np.column_stack([1 - before.sum(axis=1), before]), LEAST_PRIOR)
        parts = (log_density(measured[known], part) for part in (self.noise, self.particles, self.foreign))
        logarithm = np.log(prior) + np.column_stack([*parts])
        after = likely.copy()
        after[known] = np.exp(logarithm - logsumexp(logarithm, axis=1, keepdims=True))[:, 1:]
        return after


class Compared(NamedTuple):
    """Places compared with averages.

    Attributes
    ----------
    evidence : ndarray of float64, shape (m,)
        Logarithm of how much likelier a place shows one of the averages, at some angle and shift, than noise.
    down, right : ndarray of float64, shape (m,)
        From the place to the middle of the particle, in pixels: means over averages, angles and shifts.
    rest : ndarray of float64, shape (m,)
        Variance that is left when the likeliest average is taken away.
    """

    evidence: Floats
    down: Floats
    right: Floats
    rest: Floats

    @property
    def measured(self) -> Floats:
        """What tells particles from noise and contamination, shape (m, 2)."""
        height = np.sign(self.evidence) * np.sqrt(np.abs(self.evidence))
        return np.column_stack([height, np.log(np.maximum(self.rest, 1e-6))])


def whitened(surface: Surface, template: Template, area: Bools) -> Singles:
    """Whiten a micrograph; the result has deviation 1 in an area."""
    plane = as_plane(surface.pixels, math.ceil(MARGIN * template.width))
    white = filtered(plane, 1 / np.sqrt(template.power))
    unit = deviation_from_zero(white[area])
    scaled: Singles = white / np.float32(unit) if unit > 0 else np.zeros_like(white)
    return scaled


def learn_averages(
    whites: list[Singles], places: list[tuple[Indices, Indices]], diameter: float
) -> Averages | None:
    """Average particles that look alike, turned and shifted onto each other.

    Parameters
    ----------
    whites : list of ndarray of float32, shape (height, width)
        Micrographs, as from `whitened`.
    places : list of (ndarray of intp, ndarray of intp)
        Rows and columns of particles in each, the likeliest first.
    diameter : float
        In pixels.

    Returns
    -------
    averages : Averages or None
        None where there are too few particles. The distributions are not known yet.

    Notes
    -----
    Expectation and maximisation over averages, angles and shifts. It starts with means of a few particles
    each.
    """
    radius, shift = math.ceil(RADIUS * diameter), max(1, round(SHIFT * diameter))
    most = MOST_LEARNED // max(1, len(places))
    patches = np.concatenate(
        [
            cut_out(white, row[:most], column[:most], radius, shift)
            for white, (row, column) in zip(whites, places, strict=True)
        ]
    )
    if len(patches) < LEAST_LEARNED:
        return None
    _, turns = _turning(radius)
    centre = patches[:, int(np.flatnonzero((_shifts(shift) == 0).all(axis=1))[0])]
    few = max(5, len(patches) // 40)
    alike = np.stack([centre[k::N_AVERAGES][:few].mean(axis=0) for k in range(N_AVERAGES)])
    round_mean = np.tensordot(turns.mean(axis=0), centre.mean(axis=0), 1)
    pixels = (round_mean + 0.5 * (alike - centre.mean(axis=0))).astype(np.float32)
    share = np.full(N_AVERAGES, 1 / N_AVERAGES)
    for _ in range(N_ROUNDS):
        total, number = np.zeros((len(pixels) * N_ANGLES, pixels.shape[1])), np.zeros(len(pixels) * N_ANGLES)
        turned, start = _turned(pixels, share, radius)
        for begin in range(0, len(patches), N_AT_ONCE):
            some = patches[begin : begin + N_AT_ONCE]
            flat = some.reshape(-1, some.shape[2])
            likely = (flat @ turned.T).reshape(*some.shape[:2], -1)
            _to_shares(likely, start, _shift_priors(shift))
            total += likely.reshape(len(flat), -1).T @ flat
            number += likely.sum(axis=(0, 1), dtype=np.float64)
        # Turned back: the transposed of turning.
        back = np.einsum("apq,kap->kq", turns, total.reshape(N_AVERAGES, N_ANGLES, -1), optimize=True)
        weight = np.einsum("apq,ka->kq", turns, number.reshape(N_AVERAGES, N_ANGLES), optimize=True)
        pixels = _centred((back / (weight + EMPTY)).astype(np.float32), radius, WINDOW * diameter)
        share = (number.reshape(N_AVERAGES, -1).sum(axis=1) + 1) / (number.sum() + N_AVERAGES)
    nothing = Gaussian(np.zeros(2), np.eye(2))
    return Averages(pixels, share, radius, shift, nothing, nothing, nothing)


def with_distributions(averages: Averages, measured: Floats, likely: Floats, negative: Floats) -> Averages:
    """Learn what noise, particles and foreign things measure.

    Parameters
    ----------
    averages : Averages
    measured, negative : ndarray of float64, shapes (n, 2) and (m, 2)
        Of places, NaN where they were not compared, and of those of the micrographs' negative.
    likely : ndarray of float64, shape (n, 2)
        How likely places are particles and foreign, before they were compared.
    """
    known = np.isfinite(measured[:, 0])
    particles, foreign = (
        weighted_part(measured[known], np.maximum(likely[known, k], LEAST_PRIOR)) for k in range(2)
    )
    return averages._replace(noise=usual_part(negative), particles=particles, foreign=foreign)


def compare(white: Singles, row: Indices, column: Indices, averages: Averages) -> Compared:
    """Compare places of a whitened micrograph with averages, at all angles and shifts.

    Parameters
    ----------
    white : ndarray of float32, shape (height, width)
        As from `whitened`; its negative for places of the negative.
    row, column : ndarray of intp, shape (m,)
    averages : Averages

    Returns
    -------
    compared : Compared
    """
    turned, start = _turned(averages.pixels, averages.share, averages.radius)
    prior, shifts = _shift_priors(averages.shift), _shifts(averages.shift).astype(np.float64)
    result = np.empty((4, len(row)))
    for begin in range(0, len(row), N_AT_ONCE):
        part = slice(begin, begin + N_AT_ONCE)
        patches = cut_out(white, row[part], column[part], averages.radius, averages.shift)
        match = (patches.reshape(-1, patches.shape[2]) @ turned.T).reshape(*patches.shape[:2], -1)
        _compare(match, start, prior, shifts, patches, turned, result[:, part])
    return Compared(*result)


def recentred(
    white: Singles, places: Places, which: Bools, averages: Averages, distance: float
) -> tuple[Places, Floats, Bools]:
    """Move places to the middle of what is there; of those that then are nearer than a distance, one stays.

    Parameters
    ----------
    white : ndarray of float32, shape (height, width)
        As from `whitened`; its negative for places of the negative.
    places : Places
    which : ndarray of bool, shape (m,)
        Which places are compared with the averages; the others do not move.
    averages : Averages
    distance : float
        In pixels.

    Returns
    -------
    places : Places
    measured : ndarray of float64, shape (n, 2)
        NaN where a place was not compared.
    stays : ndarray of bool, shape (m,)
        Which of the places given these are: those with most evidence.
    """
    row, column = places.row.copy(), places.column.copy()
    evidence, measured = np.full(len(row), -np.inf), np.full((len(row), 2), np.nan)
    at_row, at_column = places.pixel
    compared = compare(white, at_row[which], at_column[which], averages)
    evidence[which], measured[which] = compared.evidence, compared.measured
    row[which], column[which] = np.rint(row[which]) + compared.down, np.rint(column[which]) + compared.right
    height, width = white.shape
    moved = places._replace(row=np.clip(row, 0, height - 1), column=np.clip(column, 0, width - 1))
    stays = _apart(moved, evidence, distance)
    return moved.some(stays), measured[stays], stays


def _apart(places: Places, evidence: Floats, distance: float) -> Bools:
    order = np.argsort(-evidence, kind="stable")
    stays = np.ones(len(order), bool)
    if len(order):
        tree = cKDTree(np.column_stack([places.row, places.column])[order])
        near = tree.query_pairs(distance, output_type="ndarray")
        for better, worse in near[np.lexsort(near.T[::-1])].tolist():
            if stays[order[better]]:
                stays[order[worse]] = False
    return stays


def cut_out(pixels: Singles, row: Indices, column: Indices, radius: int, shift: int) -> Singles:
    """Cut disks out of a micrograph, about places and about all pixels near them.

    Parameters
    ----------
    pixels : ndarray of float32, shape (height, width)
        What lies beyond the edges counts as 0.
    row, column : ndarray of intp, shape (m,)
    radius, shift : int
        Of the disks, and how far from a place their centres may lie.

    Returns
    -------
    patches : ndarray of float32, shape (m, s, p)
    """
    shifts, (disk, _) = _shifts(shift), _turning(radius)
    patches = np.empty((len(row), len(shifts), len(disk)), np.float32)
    _cut_out(pixels, row.astype(np.int32), column.astype(np.int32), shifts, disk, patches)
    return patches


@lru_cache(maxsize=8)
def _shifts(shift: int) -> Numbers:
    """Return the pixels within a distance, as (down, right)."""
    line = np.arange(-shift, shift + 1, dtype=np.int32)
    inside = np.hypot(line[:, None], line) <= shift + 0.1
    return np.argwhere(inside).astype(np.int32) - np.int32(shift)


def _shift_priors(shift: int) -> Singles:
    """Return the logarithm of how likely each shift is."""
    squared = np.square(_shifts(shift)).sum(axis=1)
    logarithm = -squared / (2 * (USUAL_SHIFT * shift) ** 2)
    return (logarithm - logsumexp(logarithm)).astype(np.float32)


@lru_cache(maxsize=2)
def _turning(radius: int) -> tuple[Numbers, Singles]:
    """Return the pixels of a disk, and what turns it by each angle: bilinear interpolation, (a, p, p)."""
    disk = _shifts(radius)
    number = np.full((2 * radius + 4,) * 2, -1)
    number[tuple(disk.T + radius + 1)] = np.arange(len(disk))
    turns = np.zeros((N_ANGLES, len(disk), len(disk)), np.float32)
    for turn, angle in zip(turns, 2 * math.pi * np.arange(N_ANGLES) / N_ANGLES, strict=True):
        matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        exact = disk @ matrix.T
        low = np.floor(exact).astype(np.intp)
        for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight = (1 - np.abs(exact - low - corner)).prod(axis=1)
            at = number[tuple(np.clip(low + corner + radius + 1, 0, 2 * radius + 3).T)]
            turn[np.flatnonzero(at >= 0), at[at >= 0]] += weight[at >= 0]
    return disk, turns


def _turned(pixels: Singles, share: Floats, radius: int) -> tuple[Singles, Singles]:
    """Return averages at all angles, and the logarithm of what noise alone makes of each."""
    turned = np.einsum("apq,kq->kap", _turning(radius)[1], pixels, optimize=True).reshape(-1, pixels.shape[1])
    logarithm = np.repeat(np.log(share / N_ANGLES), N_ANGLES) - np.square(turned, dtype=np.float64).sum(1) / 2
    return np.ascontiguousarray(turned, np.float32), logarithm.astype(np.float32)


def _centred(pixels: Singles, radius: int, deviation: float) -> Singles:
    """Move each average so that the middle of its power is the middle of the disk, by a part of a pixel."""
    disk = _turning(radius)[0]
    power = np.square(pixels, dtype=np.float64) * np.exp(-np.square(disk).sum(axis=1) / (2 * deviation**2))
    middle = power @ disk / np.maximum(power.sum(axis=1, keepdims=True), 1e-9)
    frame = np.zeros((len(pixels), 2 * radius + 4, 2 * radius + 4))
    at = disk + radius + 1
    frame[:, at[:, 0], at[:, 1]] = pixels
    moved = np.zeros(pixels.shape)
    low = np.floor(middle).astype(np.intp)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (1 - np.abs(middle - low - corner)).prod(axis=1, keepdims=True)
        place = np.clip(at + (low + corner)[:, None], 0, 2 * radius + 3)
        moved += weight * frame[np.arange(len(pixels))[:, None], place[..., 0], place[..., 1]]
    return moved.astype(np.float32)


@kernel
def _cut_out(pixels, row, column, shifts, disk, patches):
    # row, column: (m,); shifts: (s, 2); disk: (p, 2). Writes patches: (m, s, p).
    height, width = pixels.shape
    for i in range(len(row)):
        for s in range(len(shifts)):
            for p in range(len(disk)):
                y = row[i] + shifts[s, 0] + disk[p, 0]
                x = column[i] + shifts[s, 1] + disk[p, 1]
                inside = 0 <= y < height and 0 <= x < width
                patches[i, s, p] = pixels[y, x] if inside else np.float32(0)


@kernel
def _to_shares(match, start, prior):
    # match: (m, s, k), products of patches and turned averages; start: (k,); prior: (s,). Writes match: the
    # share of each among all of its place.
    for i in range(match.shape[0]):
        most = np.float32(-np.inf)
        for s in range(match.shape[1]):
            for k in range(match.shape[2]):
                match[i, s, k] += start[k] + prior[s]
                most = max(most, match[i, s, k])
        total = 0.0
        for s in range(match.shape[1]):
            for k in range(match.shape[2]):
                less = match[i, s, k] - most
                match[i, s, k] = np.exp(less) if less > -FAR_LESS else np.float32(0)
                total += match[i, s, k]
        for s in range(match.shape[1]):
            for k in range(match.shape[2]):
                match[i, s, k] = np.float32(match[i, s, k] / total)


@kernel
def _compare(match, start, prior, shifts, patches, turned, result):
    # As above; shifts: (s, 2); patches: (m, s, p); turned: (k, p). Writes result: (4, m).
    for i in range(match.shape[0]):
        most = np.float32(-np.inf)
        best, view = 0, 0
        for s in range(match.shape[1]):
            for k in range(match.shape[2]):
                match[i, s, k] += start[k] + prior[s]
                if match[i, s, k] > most:
                    most = match[i, s, k]
                    best, view = s, k
        total, down, right = 0.0, 0.0, 0.0
        for s in range(match.shape[1]):
            here = 0.0
            for k in range(match.shape[2]):
                less = match[i, s, k] - most
                if less > -FAR_LESS:
                    here += np.exp(less)
            total += here
            down += here * shifts[s, 0]
            right += here * shifts[s, 1]
        rest = 0.0
        for p in range(patches.shape[2]):
            apart = np.float64(patches[i, best, p] - turned[view, p])
            rest += apart * apart
        result[0, i] = most + np.log(total)
        result[1, i] = down / total
        result[2, i] = right / total
        result[3, i] = rest / patches.shape[2]
