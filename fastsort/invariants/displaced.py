"""Which class averages show a particle that does not lie in the middle: they look like another one, moved."""

from __future__ import annotations

import numpy as np
import scipy.ndimage

from fastsort._types import Bools, Floats, Images
from fastsort.invariants.align import match_to_references
from fastsort.invariants.references import soft_disk

# How far a particle in the middle may lie from it, and how far displaced ones are looked for, in radii.
NEAR, FAR = 0.15, 1.2
# No farther than this part of the box.
FARTHEST = 0.375
# The rim begins here, in radii; it is sampled at so many angles. What is cut by the rim has more of its power
# there than what lies in the middle, by at least this much.
RIM, N_ANGLES, MORE = 0.8, 96, 0.1
# The averages that others are compared with, at most.
N_COMPARED = 6


def displaced_averages(averages: Images, clarity: Floats, radius: float) -> Floats:
    """Return how much better each average fits another one if it is moved out of the middle.

    Parameters
    ----------
    averages : ndarray of float32, shape (C, d, d)
    clarity : ndarray of float64, shape (C,)
        How much each counts; those that count most are what the others are compared with, and those with 0
        are not.
    radius : float
        Of the particle, in pixels.

    Returns
    -------
    displaced : ndarray of float64, shape (C,)
        Largest gain in correlation, from 0 to 2.

    Notes
    -----
    A box beside a particle, or between two, shows parts of the same particle again and again, so that its
    average is as sharp as any. Moved far enough, it fits the average of centred particles better than it
    does in the middle. The same holds the other way round, so only the average counts as displaced of which
    the rim of the disk cuts more: the one with more power there that changes along the rim.
    """
    gain = np.zeros(len(averages))
    shown: Bools = np.asarray(averages.any(axis=(1, 2)))
    rim = np.where(shown, _power_at_rim(averages, radius), np.inf)
    reach = min(FAR * radius, FARTHEST * averages.shape[-1])
    disk = soft_disk(averages.shape[-1], radius)
    clearest = np.argsort(np.where(shown, -clarity, np.inf), kind="stable")[:N_COMPARED]
    for other in clearest[shown[clearest] & (clarity[clearest] > 0)]:
        cut = shown & (rim > rim[other] + MORE)
        if cut.any():
            gain[cut] = np.maximum(
                gain[cut], _gain(averages, cut, averages[other] * disk, NEAR * radius, reach)
            )
    return gain


def _gain(averages: Images, cut: Bools, reference: Images, near: float, far: float) -> Floats:
    scores = [
        match_to_references(averages[cut], reference[None], max_shift=limit, n_jobs=1).score
        for limit in (near, far)
    ]
    return np.maximum(scores[1] - scores[0], 0).astype(np.float64)


def _power_at_rim(averages: Images, radius: float) -> Floats:
    """Power that changes along the rim of the disk, in parts of that of the whole disk."""
    angle = 2 * np.pi * np.arange(N_ANGLES) / N_ANGLES
    distance = np.arange(0.5, radius, 0.5)[:, None]
    middle = averages.shape[-1] // 2
    places = middle + distance * np.sin(angle), middle + distance * np.cos(angle)
    outer = distance[:, 0] >= RIM * radius
    power = np.zeros(len(averages))
    for i, average in enumerate(averages):
        values = scipy.ndimage.map_coordinates(average.astype(np.float64), places, order=1)
        whole = np.average((values**2).mean(axis=1), weights=distance[:, 0])
        changing = values[outer].var(axis=1)
        power[i] = np.average(changing, weights=distance[outer, 0]) / max(float(whole), 1e-12)
    return power
