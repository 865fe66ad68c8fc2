"""Why an image would be rejected: the likeliest of the reasons that decoys of the same set teach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.optimize

from fastsort._reasons import CONTAMINATION, MULTIPLE, NOISE, OFF_CENTRE, PARTIAL, REASONS, UNLIKE
from fastsort._types import Codes, Floats, Indices
from fastsort.decide.calibrate import GOOD

# What each kind of decoy shows. Two kinds are left out: "noise", whose spectrum is that of whole images, so
# that it is not as quiet as a place without particles, and "background", which has a particle in its corners.
# Copies of particles are there so that a rejected particle need not be named after any junk.
SHOWN = {
    "plain noise": NOISE,
    "picked noise": NOISE,
    "scrambled": NOISE,
    "partial": PARTIAL,
    "multiple": MULTIPLE,
    "off-centre": OFF_CENTRE,
    "contamination": CONTAMINATION,
    GOOD: UNLIKE,
}
# A reason is named if its probability exceeds that of the next by this. Contamination has a thousand looks,
# and noise that is not Gaussian resembles some of them, so it must be clearer, unless its power is beyond
# that of any particle: no noise has that.
CLEAR, CLEARER = 0.2, 0.5
# The measurement of power beyond that of most particles, among the clues.
POWER = 7
# Measurements beyond these quantiles of those of the decoys tell no more.
EXTREME = 0.005
# Price of the squares of the weights, against the mean logarithm of the likelihood; and the most steps.
PRICE, N_STEPS = 0.003, 300


class LearnedReasons(NamedTuple):
    """What tells the reasons apart: a logistic regression on the measurements of p kinds.

    Attributes
    ----------
    reasons : tuple of str
        The k reasons.
    low, high : ndarray of float64, shape (p,)
        Measurements are clipped to these.
    mean, deviation : ndarray of float64, shape (p,)
        By which they are standardised then.
    weights : ndarray of float64, shape (p + 1, k)
        Of the measurements and of a constant, in the logarithm of the odds.
    most_power : float
        The largest measurement of power among copies of particles; infinite in results that do not know it.
    """

    reasons: tuple[str, ...]
    low: Floats
    high: Floats
    mean: Floats
    deviation: Floats
    weights: Floats
    most_power: float = math.inf


def learn_reasons(measured: Mapping[str, Floats]) -> LearnedReasons | None:
    """Learn what tells the reasons apart.

    Parameters
    ----------
    measured : mapping of str to ndarray of float64, shape (m, p)
        For each kind of decoy, what was measured of its decoys.

    Returns
    -------
    learned : LearnedReasons or None
        None where a kind of `SHOWN` is missing, or was measured of no decoy.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsort._reasons import REASONS
    >>> from fastsort.decide.reasons import SHOWN, learn_reasons, likeliest_reasons
    >>> rng = np.random.default_rng(0)
    >>> measured = {kind: rng.normal(9 * np.eye(12)[code], size=(99, 12)) for kind, code in SHOWN.items()}
    >>> learned = learn_reasons(measured)
    >>> kinds = "partial", "multiple", "particle"
    >>> [REASONS[likeliest_reasons(measured[kind], learned)[0]] for kind in kinds]
    ['partial', 'multiple', 'unlike']
    """
    if not set(SHOWN) <= set(measured):
        return None
    rows = [measured[kind][np.isfinite(measured[kind]).all(axis=1)] for kind in SHOWN]
    if min(map(len, rows)) == 0:
        return None
    together = np.concatenate(rows)
    low, high = np.quantile(together, (EXTREME, 1 - EXTREME), axis=0)
    clipped = np.clip(together, low, high)
    mean, deviation = clipped.mean(axis=0), clipped.std(axis=0) + 1e-9
    codes = list(SHOWN.values())
    shown = sorted(set(codes))
    # All reasons weigh the same, and so do all kinds of decoys with one reason.
    weight = np.repeat(
        [1 / (len(shown) * codes.count(code) * len(part)) for code, part in zip(codes, rows, strict=True)],
        [len(part) for part in rows],
    )
    which = np.repeat([shown.index(code) for code in codes], [len(part) for part in rows])
    weights = _fit(_with_constant((clipped - mean) / deviation), which, weight, len(shown))
    most_power = float(rows[list(SHOWN).index(GOOD)][:, POWER].max())
    reasons = tuple(REASONS[code] for code in shown)
    return LearnedReasons(reasons, low, high, mean, deviation, weights, most_power)


def likeliest_reasons(measured: Floats, learned: LearnedReasons) -> Codes:
    """Return the reason of each image, and UNLIKE where none is much likelier than all others.

    Parameters
    ----------
    measured : ndarray of float64, shape (n, p)
    learned : LearnedReasons

    Returns
    -------
    reasons : ndarray of int8, shape (n,)
        UNLIKE for images with a measurement that is not finite.
    """
    standard = (np.clip(measured, learned.low, learned.high) - learned.mean) / learned.deviation
    probability = _probabilities(_with_constant(standard), learned.weights)
    second, first = np.sort(probability, axis=1)[:, -2:].T
    codes = np.array([REASONS.index(name) for name in learned.reasons], np.int8)[probability.argmax(axis=1)]
    doubtful = (codes == CONTAMINATION) & ~(measured[:, POWER] > learned.most_power)
    enough = np.where(doubtful, CLEARER, CLEAR)
    named = np.isfinite(measured).all(axis=1) & (first - second > enough)
    return np.where(named, codes, np.int8(UNLIKE))


def _with_constant(standard: Floats) -> Floats:
    return np.concatenate([standard, np.ones((len(standard), 1))], axis=1)


def _probabilities(rows: Floats, weights: Floats) -> Floats:
    odds = rows @ weights
    odds = np.exp(odds - odds.max(axis=1, keepdims=True))
    probability: Floats = odds / odds.sum(axis=1, keepdims=True)
    return probability


def _fit(rows: Floats, which: Indices, weight: Floats, k: int) -> Floats:
    """Return the weights (p + 1, k) that make it likeliest which reason each row has."""
    shape = rows.shape[1], k
    truth = np.eye(k)[which]

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(shape)
        probability = _probabilities(rows, weights)
        free = np.concatenate([weights[:-1], np.zeros((1, k))])
        value = -(weight * np.log((probability * truth).sum(axis=1) + 1e-300)).sum()
        slope = rows.T @ ((probability - truth) * weight[:, None]) + PRICE * free
        return float(value + 0.5 * PRICE * (free**2).sum()), slope.ravel()

    start = np.zeros(shape[0] * k)
    best = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": N_STEPS}).x
    weights: Floats = best.reshape(shape)
    return weights
