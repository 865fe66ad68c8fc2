"""Scores become junk probabilities: a mixture of particles, of every kind of decoy, and of other junk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d

from fastsort._threshold import balanced_threshold
from fastsort._types import Floats

# The density of the scores is computed in so many steps.
N_STEPS = 500
N_ROUNDS = 200
# Where the particles' scores may peak, as a quantile, with the share of junk: each is tried as a start.
STARTS = ((0.15, 0.5), (0.30, 0.3), (0.50, 0.1))
# How many times wider than the other side the upper side of the particles' peak may be, and the lower one.
# A wider tail towards junk would take the junk for particles.
UPPER, LOWER = 1.5, 2.5
NARROWEST = 0.15
# Junk of a kind that no decoy shows lies at least this many widths of the particles above their peak, and
# is so narrow that the peak is this many of its own widths away.
ABOVE, AWAY = 1.0, 2.0
# A mixture with it counts where it is well separate from the particles (Ashman, Bird & Zepf, Astron. J. 108,
# 1994), or so rare that it changes nothing. Where it is only just separate, the scores must be likelier with
# it by so many nats: a skewed tail of the particles gains up to 15.
WELL_SEPARATE, SEPARATE, GAIN, RARE = 3.5, 2.6, 20.0, 0.02
# Where it is as likely, but less separate than that, it may be either (Ashman's limit).
DOUBTFUL = 2.0
# All mixtures that count are averaged: one that is less likely by so many nats counts 1/e as much. Their
# shapes are no more exact than that.
TEMPERED = 20.0
# The last of the junk has any score above the particles, with the same density.
WIDTHS_TO_REST = 2.0
# The kind of decoys that are particles.
GOOD = "particle"
# Where decoys that are particles are told from junk less often than this (area under the curve, mean over
# the kinds), what was learned is no particle. Then only images are kept that are hardly junk by the odds.
TOLD_APART, HARDLY = 0.9, 0.25
# The same where the scores, taken for odds, say that there is more junk than this. Junk that is like the
# decoys would else pass for particles of its own.
EMPTY = 0.9
# Where the mixture finds less junk than the odds by more than this, and rejects a smaller share of the decoys
# that are junk, it has taken junk for the tail of the particles: the odds are right. But the middle of what
# they call junk must lie above this share of the decoys: else it is no more than the particles' own tail.
DISAGREE, CAUGHT, LIKE_DECOYS = 0.25, 0.5, 0.2
# In every set, either kind has a share of at least one half per cent; as log-odds.
SUREST = math.log(0.995 / 0.005)


class _Scale(NamedTuple):
    """Steps of the score: their middles, their width, and how many images have such scores."""

    middle: Floats
    step: float
    counts: Floats


class _Fit(NamedTuple):
    """A fitted mixture.

    Attributes
    ----------
    likelihood : float
        Logarithm of that of all scores.
    peak, lower, upper : float
        Of the particles, with the widths to either side.
    other, width : float
        Where junk lies that no decoy shows.
    share : float
        Of such junk.
    of_kinds : ndarray of float64
        Shares of junk like each kind of decoys.
    probability : ndarray of float64
        Of junk, at every step of the score.
    """

    likelihood: float
    peak: float
    lower: float
    upper: float
    other: float
    width: float
    share: float
    of_kinds: Floats
    probability: Floats

    @property
    def separation(self) -> float:
        """Ashman's D of the junk that no decoy shows."""
        return math.sqrt(2) * (self.other - self.peak) / math.hypot(self.upper, self.width)


def calibrate(score: Floats, decoys: Mapping[str, Floats]) -> tuple[float, Floats, tuple[float, float]]:
    """Turn scores into junk probabilities.

    Parameters
    ----------
    score : ndarray of float64, shape (n,)
        Finite; about the logarithm of odds.
    decoys : mapping of str to ndarray of float64
        Scores of decoys, by kind; those of the kind `GOOD` are particles.

    Returns
    -------
    threshold : float
        The highest score that is kept.
    junk_probability : ndarray of float64, shape (n,)
        Never falls with the score.
    shares : tuple of float
        Share of junk, by these probabilities, and by the scores if they are taken for odds.

    Notes
    -----
    The scores are a mixture, found by expectation maximisation: particles have a split normal
    distribution; junk of each kind has the distribution of its decoys, in any share; other junk has a
    normal distribution; and any score well above the particles may occur. Other junk counts only where it
    is separate from the particles: their tail is not junk of its own. Where several fits are about as likely,
    with other junk or without, their average is taken (Hoeting, Madigan, Raftery & Volinsky, Statistical
    Science 14, 1999).

    Where copies of the best images are not told from decoys that are junk, there may be no particles at
    all. Then the probabilities are those of the scores taken for odds. So they are where these say that more
    than 0.9 of the images are junk, and where the mixture finds much less junk than they do, but rejects
    few of the decoys that are junk, while what the odds call junk looks like these.
    """
    by_odds = probability_by_odds(score)
    mixed, limit = by_odds, HARDLY
    if told_apart(decoys) >= TOLD_APART:
        if by_odds.mean() <= EMPTY:
            mixed = mixture_probability(score, {k: v for k, v in decoys.items() if k != GOOD})
        missed = _share_above(highest_kept(score, mixed), decoys) < CAUGHT
        real = _share_above(_middle_of_junk(score, by_odds), decoys) <= 1 - LIKE_DECOYS
        if by_odds.mean() - mixed.mean() > DISAGREE and missed and real:
            mixed = by_odds
        limit = usual_limit(mixed)
    return highest_kept(score, mixed, limit), mixed, (float(mixed.mean()), float(by_odds.mean()))


def usual_limit(probability: Floats) -> float:
    """Return the junk probability above which images are rejected, if nobody says otherwise."""
    return 0.5 * (float(probability.mean()) + 0.5)


def highest_kept(score: Floats, probability: Floats, limit: float | None = None) -> float:
    """Return the highest score that is kept: of those whose junk probability is at most a limit.

    Parameters
    ----------
    score, probability : ndarray of float64, shape (n,)
    limit : float, optional
        By default halfway between the share of junk and one half.

    Returns
    -------
    threshold : float
        Just below all scores where none is kept.
    """
    keep = probability <= (usual_limit(probability) if limit is None else limit)
    return float(score[keep].max()) if keep.any() else float(np.nextafter(score.min(), -np.inf))


def _middle_of_junk(score: Floats, probability: Floats) -> float:
    """Median score of the junk, each image counted by its probability."""
    order = np.argsort(score, kind="stable")
    amount = np.cumsum(probability[order])
    return float(score[order][np.searchsorted(amount, 0.5 * amount[-1])])


def _share_above(score: float, decoys: Mapping[str, Floats]) -> float:
    """Share of the decoys that are junk, and have a higher score; mean over their kinds."""
    kinds = [values for kind, values in decoys.items() if kind != GOOD and len(values)]
    return float(np.mean([(values > score).mean() for values in kinds])) if kinds else 1.0


def told_apart(decoys: Mapping[str, Floats]) -> float:
    """Return how well decoys that are particles are told from junk: the mean area under the curve.

    1 where there are none of them, and nobody can say.
    """
    kinds = [np.sort(values) for kind, values in decoys.items() if kind != GOOD and len(values)]
    good = decoys.get(GOOD, np.empty(0))
    if not kinds or not len(good):
        return 1.0
    below = [np.searchsorted(junk, good) / len(junk) for junk in kinds]
    return 1 - float(np.mean(below))


def mixture_probability(score: Floats, decoys: Mapping[str, Floats]) -> Floats:
    """Return the junk probabilities of scores by a mixture, as `calibrate` describes it."""
    middle, free, without = _fit_mixture(score, decoys)
    fits, weights = _counted(free, without)
    mean = weights @ np.array([fit.probability for fit in fits])
    # Rounding could make it more.
    return np.interp(score, middle, np.minimum(mean, 1))


def mixture_shares(score: Floats, decoys: Mapping[str, Floats]) -> dict[str, float]:
    """Return which share of the images is junk like each kind of decoys, by the same mixture."""
    _, free, without = _fit_mixture(score, decoys)
    fits, weights = _counted(free, without)
    shares = weights @ np.array([fit.of_kinds for fit in fits])
    return dict(zip(decoys, shares.tolist(), strict=True))


def second_hump(score: Floats, decoys: Mapping[str, Floats]) -> float:
    """Return the share of images that may be junk or weaker particles, since their shape tells neither.

    They make the scores likelier as junk that no decoy shows, but are not clearly apart from the particles. 0
    where there is no such doubt.
    """
    junk = {kind: values for kind, values in decoys.items() if kind != GOOD}
    if not junk or not len(score):
        return 0.0
    _, free, without = _fit_mixture(score, junk)
    likeliest = max(free, key=_likelihood)
    clear = _counts(likeliest, without) or likeliest.separation < DOUBTFUL
    return likeliest.share if _gains(likeliest, without) and not clear else 0.0


def _counted(free: list[_Fit], without: list[_Fit]) -> tuple[list[_Fit], Floats]:
    """Return the fits that count, and how much each of them does."""
    fits = [*(fit for fit in free if _counts(fit, without)), *without]
    likelihood = np.array([fit.likelihood for fit in fits])
    weights = np.exp((likelihood - likelihood.max()) / TEMPERED)
    return fits, weights / weights.sum()


def _counts(fit: _Fit, without: list[_Fit]) -> bool:
    """Whether junk that no decoy shows is no part of the particles."""
    return fit.share <= RARE or fit.separation >= (SEPARATE if _gains(fit, without) else WELL_SEPARATE)


def _gains(fit: _Fit, without: list[_Fit]) -> bool:
    """Whether junk that no decoy shows makes the scores clearly likelier."""
    return fit.likelihood - max(map(_likelihood, without)) >= GAIN


def _fit_mixture(score: Floats, decoys: Mapping[str, Floats]) -> tuple[Floats, list[_Fit], list[_Fit]]:
    """Return the steps of the score, and the fits with and without junk that no decoy shows."""
    kinds = [values[np.isfinite(values)] for values in decoys.values()]
    known = np.concatenate(kinds)
    low = float(min(score.min(), known.min())) - 1
    high = float(max(np.quantile(score, 0.995), np.quantile(known, 0.9))) + 3
    edges = np.linspace(low, high, N_STEPS + 1)
    count = np.histogram(np.clip(score, low, high), edges)[0].astype(np.float64)
    scale = _Scale(0.5 * (edges[1:] + edges[:-1]), float(edges[1] - edges[0]), count)
    shapes = np.array([_smooth(values, edges) for values in kinds])
    typical = min(float(np.median(known)), float(np.quantile(score, 0.97)))
    fits = _fits(scale, shapes, score, typical)
    return scale.middle, fits[: len(STARTS)], fits[len(STARTS) :]


def probability_by_odds(score: Floats) -> Floats:
    """Return the junk probabilities of scores that are taken for log-odds, with the likeliest share of junk.

    Parameters
    ----------
    score : ndarray of float64, shape (n,)
        Infinite for images that cannot be judged, which get 1.

    Returns
    -------
    probability : ndarray of float64, shape (n,)

    Notes
    -----
    The share is found as in Saerens, Latinne & Decaestecker, Neural Computation 14, 2002.
    """
    judged = np.isfinite(score)
    probability = np.ones(len(score))
    if judged.any():
        balance = float(np.clip(balanced_threshold(score[judged]), -SUREST, SUREST))
        probability[judged] = 1 / (1 + np.exp(np.clip(balance - score[judged], -700, 700)))
    return probability


def _smooth(values: Floats, edges: Floats) -> Floats:
    """Density of some scores, with Scott's rule for the width of the kernel."""
    step = float(edges[1] - edges[0])
    values = np.clip(values, edges[0], edges[-1])
    width = max(1.06 * float(values.std()) * len(values) ** -0.2, step)
    counts = np.histogram(values, edges)[0].astype(np.float64)
    density = gaussian_filter1d(counts, width / step, mode="nearest") + 1e-6
    return density / (density.sum() * step)


def _fits(scale: _Scale, shapes: Floats, score: Floats, typical: float) -> list[_Fit]:
    """Fit the mixture from every start: with junk that no decoy shows, then without any."""
    x, count, n = scale.middle, scale.counts, scale.counts.sum()
    quantile, junk = np.tile(STARTS, (2, 1)).T[:, :, None]
    free = np.repeat([1.0, 0.0], len(STARTS))[:, None]
    peak = np.quantile(score, quantile)
    lower = upper = np.maximum(peak - np.quantile(score, np.where(quantile < 0.3, 0.02, 0.16)), 0.3)
    other, width = np.full_like(peak, typical), np.full_like(peak, max(0.5 * float(score.std()), 0.3))
    particles, unknown, rest = 1 - junk, 0.3 * junk * free, 0.1 * junk
    of_kinds = np.repeat(0.6 * junk / len(shapes), len(shapes), axis=1)
    for _ in range(N_ROUNDS):
        good = particles * _split_normal(x, peak, lower, upper)
        bad = np.exp(-0.5 * ((x - other) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        above = x > peak + WIDTHS_TO_REST * upper
        flat = above / np.maximum(above.sum(axis=1, keepdims=True) * scale.step, 1e-9)
        total = good + of_kinds @ shapes + unknown * bad + rest * flat + 1e-300
        pull = count / total
        members, others = good * pull, unknown * bad * pull
        of_kinds = of_kinds * (pull @ shapes.T) / n
        particles, unknown = (part.sum(axis=1, keepdims=True) / n for part in (members, others))
        rest = rest * (flat * pull).sum(axis=1, keepdims=True) / n
        peak, lower, upper = _split_normal_of(x, members, peak)
        amount = others.sum(axis=1, keepdims=True) + 1e-9
        other = np.maximum((others @ x)[:, None] / amount, peak + ABOVE * upper)
        width = np.sqrt((others * (x - other) ** 2).sum(axis=1, keepdims=True) / amount)
        width = np.minimum(np.maximum(width, 0.5 * lower), (other - peak) / AWAY)
    likelihood = (count * np.log(total)).sum(axis=1)
    probability = 1 - good / total
    # Below the peak nothing looks more like a particle than at it.
    at_peak = np.minimum(np.searchsorted(x, peak), len(x) - 1)
    probability = np.where(x < peak, np.take_along_axis(probability, at_peak, axis=1), probability)
    rising = np.maximum.accumulate(probability, axis=1)
    columns = (likelihood, peak, lower, upper, other, width, unknown)
    numbers = zip(*(column.ravel().tolist() for column in columns), strict=True)
    return [_Fit(*row, *arrays) for row, *arrays in zip(numbers, of_kinds, rising, strict=True)]


def _likelihood(fit: _Fit) -> float:
    return fit.likelihood


def _split_normal(x: Floats, peak: Floats, lower: Floats, upper: Floats) -> Floats:
    density: Floats = np.exp(-0.5 * ((x - peak) / np.where(x < peak, lower, upper)) ** 2)
    return density * (2 / (lower + upper) / math.sqrt(2 * math.pi))


def _split_normal_of(x: Floats, weight: Floats, peak: Floats) -> tuple[Floats, Floats, Floats]:
    """One step towards the likeliest peaks and widths (k, 1) of scores with weights (k, number of scores)."""
    below = x < peak
    square = weight * (x - peak) ** 2
    left, right = (np.cbrt((square * side).sum(axis=1, keepdims=True)) for side in (below, ~below))
    size = np.sqrt((left + right) / (weight.sum(axis=1, keepdims=True) + 1e-9))
    lower, upper = np.maximum(left * size, NARROWEST), np.maximum(right * size, NARROWEST)
    lower, upper = np.minimum(lower, LOWER * upper), np.minimum(upper, UPPER * lower)
    pull = weight / np.where(below, lower**2, upper**2)
    return (pull @ x)[:, None] / (pull.sum(axis=1, keepdims=True) + 1e-12), lower, upper
