"""Poses refined in angle and shift together by Gauss-Newton steps on more and more rings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._jit import kernel
from fastsort._types import Array, Floats, Indices, Singles
from fastsort.invariants.references import References
from fastsort.invariants.rings import Polar, rings_of, working_box


class Starts(NamedTuple):
    """Where the refinement of each image starts: s poses an image.

    Attributes
    ----------
    variant : ndarray of int64, shape (n, s)
        Which reference or mirror image of one; -1 for none.
    angle : ndarray of float64, shape (n, s)
        In radians.
    shift : ndarray of float64, shape (n, s, 2)
        Row and column in pixels of the working box.
    """

    variant: Array
    angle: Floats
    shift: Floats


class Refined(NamedTuple):
    """The best pose of each image, in the units of `Starts`.

    Attributes
    ----------
    variant : ndarray of int64, shape (n,)
        -1 where there was no start.
    angle : ndarray of float64, shape (n,)
    shift : ndarray of float64, shape (n, 2)
    score : ndarray of float64, shape (n,)
        Correlation on the last rings of the schedule.
    """

    variant: Array
    angle: Floats
    shift: Floats
    score: Floats


def refine_poses(
    polar: Polar, bank: References, starts: Starts, max_shift: float, schedule: Indices
) -> Refined:
    """Refine poses, and return the best of each image.

    Parameters
    ----------
    polar : Polar
    bank : References
    starts : Starts
    max_shift : float
        In pixels of the working box.
    schedule : ndarray of intp, shape (steps,)
        Number of rings each time that a pose is compared; a step leads from one time to the next.

    Returns
    -------
    refined : Refined
    """
    n = len(polar.spectra)
    rings = rings_of(working_box(polar.box))
    best = Refined(
        np.full(n, -1, dtype=np.int64), np.full(n, np.nan), np.full((n, 2), np.nan), np.full(n, -np.inf)
    )
    _refine(
        polar.spectra,
        bank.table,
        bank.norm,
        bank.normal,
        rings.cosine,
        rings.sine,
        *starts,
        2 * np.pi / rings.box,
        max_shift,
        schedule,
        *best,
    )
    return best


@kernel
def _refine(
    spectra,
    table,
    norm,
    normal,
    cosine,
    sine,
    start_variant,
    start_angle,
    start_shift,
    wave,
    limit,
    schedule,
    variants,
    angles,
    shifts,
    scores,
):
    # variants, angles, scores (n,), shifts (n, 2): the best pose that any start of the image has led to.
    n_angles = cosine.size
    n_rings = schedule[-1]
    work = np.empty((5, n_angles), dtype=np.float32)
    out = np.empty(4)
    step = np.empty(3)
    for i in range(spectra.shape[0]):
        for start in range(start_variant.shape[1]):
            v = start_variant[i, start]
            if v < 0:
                continue
            angle = start_angle[i, start]
            y = start_shift[i, start, 0]
            x = start_shift[i, start, 1]
            for turn in range(schedule.size):
                rings = schedule[turn]
                _correlate(spectra[i], table[v], cosine, sine, wave, rings, angle, y, x, work, out)
                if rings == n_rings and out[0] / norm[v] > scores[i]:
                    scores[i] = out[0] / norm[v]
                    variants[i] = v
                    angles[i] = angle
                    shifts[i, 0] = y
                    shifts[i, 1] = x
                if turn == schedule.size - 1:
                    break
                if not _solve(normal[v, rings - 1], out, angle, step):
                    continue
                # A step of more than half a period of the outermost ring would leave the peak.
                longest = 0.5 * 2 * np.pi / (wave * rings)
                length = np.sqrt(step[1] * step[1] + step[2] * step[2])
                if length > longest:
                    step[1] *= longest / length
                    step[2] *= longest / length
                small = 1e-4 / wave
                angle += min(max(step[0], -0.1), 0.1)
                x += step[1]
                y += step[2]
                length = np.sqrt(x * x + y * y)
                if length > limit:
                    x *= limit / length
                    y *= limit / length
                if rings == n_rings and abs(step[0]) < 1e-4 and abs(step[1]) + abs(step[2]) < small:
                    break


def pose_scores(polar: Polar, bank: References, which: Indices, angle: Singles, shift: Singles) -> Singles:
    """Score images in given poses.

    Parameters
    ----------
    polar : Polar
    bank : References
    which : ndarray of intp, shape (n,)
        Reference of each image.
    angle : ndarray of float32, shape (n,)
    shift : ndarray of float32, shape (n, 2)
        As of an `Alignment`.

    Returns
    -------
    score : ndarray of float32, shape (n,)
        NaN where the reference is flat or the pose is NaN.
    """
    rings = rings_of(working_box(polar.box))
    known = (bank.norm[which] > 0) & np.isfinite(angle)
    starts = Starts(
        np.where(known, which, -1)[:, None],
        np.radians(angle.astype(np.float64))[:, None],
        shift.astype(np.float64)[:, None] * (rings.box / polar.box),
    )
    # Compared once, and no step.
    refined = refine_poses(polar, bank, starts, np.inf, np.array([rings.n_rings]))
    return np.where(refined.variant < 0, np.nan, refined.score).astype(np.float32)


@kernel
def _correlate(spectrum, table, cosine, sine, wave, rings, angle, y, x, work, out):
    # The correlation, and its slopes along the angle (radians), columns and rows of the image's frame.
    n_angles = cosine.size
    finer = table.shape[1]
    span = np.pi / (n_angles * finer)
    position = angle / span
    nearest = int(np.floor(position + 0.5))
    rest = np.float32(position - nearest)
    full = 2 * n_angles * finer
    begin, sign, sub = _locate(nearest % full, n_angles, finer)
    begin_low, sign_low, sub_low = _locate((nearest - 1) % full, n_angles, finer)
    begin_high, sign_high, sub_high = _locate((nearest + 1) % full, n_angles, finer)
    step_re = work[0]
    step_im = work[1]
    turn_re = work[2]
    turn_im = work[3]
    moment = work[4]
    for j in range(n_angles):
        phase = wave * (cosine[j] * x + sine[j] * y)
        step_re[j] = np.cos(phase)
        step_im[j] = np.sin(phase)
        turn_re[j] = 1
        turn_im[j] = 0
        moment[j] = 0
    total = 0.0
    slope = 0.0
    half = np.float32(0.5)
    two_sign = sign + sign
    for ring in range(rings):
        k = np.float32(ring + 1)
        re = spectrum[0, ring]
        im = spectrum[1, ring]
        re_mid = table[0, sub, ring, begin : begin + n_angles]
        im_mid = table[1, sub, ring, begin : begin + n_angles]
        re_low = table[0, sub_low, ring, begin_low : begin_low + n_angles]
        im_low = table[1, sub_low, ring, begin_low : begin_low + n_angles]
        re_high = table[0, sub_high, ring, begin_high : begin_high + n_angles]
        im_high = table[1, sub_high, ring, begin_high : begin_high + n_angles]
        ring_total = np.float32(0)
        ring_slope = np.float32(0)
        for j in range(n_angles):
            a = turn_re[j] * step_re[j] - turn_im[j] * step_im[j]
            b = turn_re[j] * step_im[j] + turn_im[j] * step_re[j]
            turn_re[j] = a
            turn_im[j] = b
            moved_re = re[j] * a - im[j] * b
            moved_im = re[j] * b + im[j] * a
            slope_re = half * (re_high[j] - re_low[j])
            slope_im = half * (sign_high * im_high[j] - sign_low * im_low[j])
            bend_re = re_high[j] - re_mid[j] - re_mid[j] + re_low[j]
            bend_im = sign_high * im_high[j] - two_sign * im_mid[j] + sign_low * im_low[j]
            value_re = re_mid[j] + rest * (slope_re + half * rest * bend_re)
            value_im = sign * im_mid[j] + rest * (slope_im + half * rest * bend_im)
            slope_re += rest * bend_re
            slope_im += rest * bend_im
            ring_total += moved_re * value_re + moved_im * value_im
            ring_slope += moved_re * slope_re + moved_im * slope_im
            moment[j] += k * (moved_im * value_re - moved_re * value_im)
        total += ring_total
        slope += ring_slope
    along_x = 0.0
    along_y = 0.0
    for j in range(n_angles):
        along_x -= moment[j] * cosine[j]
        along_y -= moment[j] * sine[j]
    out[0] = total
    out[1] = slope / span
    out[2] = along_x * wave
    out[3] = along_y * wave


@kernel
def _locate(index, n_angles, finer):
    # Half a turn further the transform of a real image is the complex conjugate.
    begin = index // finer
    if begin >= n_angles:
        return begin - n_angles, np.float32(-1), index % finer
    return begin, np.float32(1), index % finer


@kernel
def _solve(normal, out, angle, step):
    # normal step = slopes / amplitude, in the reference's frame; the shift goes back to the image's.
    norm = normal[1, 1] + normal[2, 2]
    if not (out[0] > 0 and norm > 0):
        return False
    cosine = np.cos(angle)
    sine = np.sin(angle)
    turning = out[1]
    across = out[2] * cosine - out[3] * sine
    down = out[2] * sine + out[3] * cosine
    a = normal[0, 0] * (1 + 1e-6) + 1e-9
    b = normal[0, 1]
    c = normal[0, 2]
    d = normal[1, 1] + 1e-6 * norm
    e = normal[1, 2]
    f = normal[2, 2] + 1e-6 * norm
    minor_a = d * f - e * e
    minor_b = c * e - b * f
    minor_c = b * e - c * d
    determinant = a * minor_a + b * minor_b + c * minor_c
    if not determinant > 0:
        return False
    scale = 1 / (determinant * out[0])
    turn = (minor_a * turning + minor_b * across + minor_c * down) * scale
    along_x = (minor_b * turning + (a * f - c * c) * across + (b * c - a * e) * down) * scale
    along_y = (minor_c * turning + (b * c - a * e) * across + (a * d - b * b) * down) * scale
    step[0] = turn
    step[1] = along_x * cosine + along_y * sine
    step[2] = -along_x * sine + along_y * cosine
    return True
