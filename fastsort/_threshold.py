"""Which threshold a score gets: from the shape of its distribution, and from what displaced places score."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from fastsort._types import Floats

# Weight of the displaced places against the images when the score of junk is fitted.
PRIOR = 0.1
MAX_FITTED = 5000
# The mixture is found when no place or width changes by more than this in a round; and the most rounds.
SETTLED, N_ROUNDS = 1e-6, 300
# With fewer images nobody can say what is common among them.
MIN_JUDGED = 50
# The dip between two peaks counts as a valley if it is at most this high, in parts of the lower peak,
# and if at least this share of the images, and this many of them, have a larger score.
VALLEY = 0.5
LEAST_SHARE_ABOVE, FEWEST_ABOVE = 0.01, 10


class ScoreModel(NamedTuple):
    """Distribution of a score: particles (a split normal), junk (a normal), and a constant for the rest.

    Attributes
    ----------
    weights : ndarray of float64, shape (3,)
        Shares of particles, junk and the rest.
    mode, lower, upper : float
        Of the particles, with the widths to either side.
    junk_mean, junk_std : float
    far : float
        Where the constant density of the rest ends; it begins at `junk_mean`.
    threshold : float
        Score above which an image is likelier junk than a particle.
    """

    weights: Floats
    mode: float
    lower: float
    upper: float
    junk_mean: float
    junk_std: float
    far: float
    threshold: float


def fit_scores(scores: Floats, displaced: Floats) -> ScoreModel:
    """Find where the compact bulk of the valid images ends.

    Parameters
    ----------
    scores : ndarray of float64, shape (n,)
    displaced : ndarray of float64, shape (m,)
        Scores of displaced places: what junk looks like where nothing else is known.

    Returns
    -------
    model : ScoreModel

    Notes
    -----
    A mixture by expectation maximisation. Particles have a split normal distribution, since contrast
    and view leave a longer tail towards junk. Junk has a normal distribution. It starts at the scores of
    the displaced places, which count as much as a tenth as many images would: this keeps a clean set in
    one piece. They do not count where they score higher than all the images, as long as the junk that
    is found without them is separate from the particles by Ashman's criterion, D > 2 (Ashman, Bird &
    Zepf, Astron. J. 108, 1994). The highest scores have a constant density. Above the threshold, an image
    is likelier junk than a particle.
    """
    values = np.sort(scores)[:: max(1, len(scores) // MAX_FITTED)]
    far = float(np.quantile(np.concatenate([values, displaced]), 0.995)) + 5
    near = float(values[0]) - 1
    values, displaced = np.clip(values, near, far), np.clip(displaced, near, far)
    prior_weight = PRIOR * len(values)
    if np.median(displaced) < np.quantile(values, 0.99):
        return _fit_mixture(values, displaced, far, prior_weight)
    free = _fit_mixture(values, displaced, far, 0.0)
    separation = math.sqrt(2) * (free.junk_mean - free.mode) / math.hypot(free.upper, free.junk_std)
    return free if separation > 2 else _fit_mixture(values, displaced, far, prior_weight)


def _fit_mixture(values: Floats, displaced: Floats, far: float, prior_weight: float) -> ScoreModel:
    mode = float(np.quantile(values, 0.15))
    lower = upper = max(mode - float(np.quantile(values, 0.02)), 0.3)
    prior_mean = junk_mean = float(np.median(displaced))
    prior_std = junk_std = 1.4826 * float(np.median(np.abs(displaced - junk_mean))) + 0.1
    weights = np.array([0.5, 0.45, 0.05])
    for _ in range(N_ROUNDS):
        before = mode, lower, upper, junk_mean, junk_std
        density = _densities(values, *before, far) * weights[:, None]
        share = density / (density.sum(axis=0) + 1e-300)
        weights = share.mean(axis=1)
        particle, junk, _rest = share
        below = values < mode
        left = float((particle * below * (mode - values) ** 2).sum()) ** (1 / 3)
        right = float((particle * ~below * (values - mode) ** 2).sum()) ** (1 / 3)
        total = particle.sum() + 1e-9
        lower = max(left * math.sqrt((left + right) / total), 0.15)
        upper = max(right * math.sqrt((left + right) / total), 0.15)
        pull = particle / np.where(below, lower**2, upper**2)
        mode = float((pull * values).sum() / (pull.sum() + 1e-12))
        amount = junk.sum() + prior_weight + 1e-9
        junk_mean = float(((junk * values).sum() + prior_weight * prior_mean) / amount)
        prior_spread = prior_std**2 + (prior_mean - junk_mean) ** 2
        spread = (junk * (values - junk_mean) ** 2).sum() + prior_weight * prior_spread
        junk_std = max(math.sqrt(float(spread / amount)), 0.15)
        after = mode, lower, upper, junk_mean, junk_std
        if max(abs(new - old) for new, old in zip(after, before, strict=True)) < SETTLED:
            break
    model = ScoreModel(weights, mode, lower, upper, junk_mean, junk_std, far, far)
    grid = np.linspace(mode, max(junk_mean, mode) + 1e-6, 2000)
    likely = np.flatnonzero(junk_probability(grid, model) > 0.5)
    return model._replace(threshold=float(grid[likely[0]] if len(likely) else grid[-1]))


def junk_probability(scores: Floats, model: ScoreModel) -> Floats:
    """Probability that an image with a score is junk, by the fitted mixture; never falls with the score."""
    low, high = model.mode, max(model.junk_mean, model.mode)
    values = np.clip(scores, low, high)
    density = _densities(values, *model[1:7]) * model.weights[:, None]
    return (density[1] + density[2]) / (density.sum(axis=0) + 1e-300)


def _densities(
    values: Floats, mode: float, lower: float, upper: float, junk_mean: float, junk_std: float, far: float
) -> Floats:
    particle = np.exp(-0.5 * ((values - mode) / np.where(values < mode, lower, upper)) ** 2)
    particle *= 2 / (lower + upper) / math.sqrt(2 * math.pi)
    junk = np.exp(-0.5 * ((values - junk_mean) / junk_std) ** 2) / junk_std / math.sqrt(2 * math.pi)
    start = max(junk_mean, mode)
    return np.stack([particle, junk, np.where(values > start, 1 / (far - start), 0)])


def balanced_threshold(scores: Floats) -> float:
    """Find the threshold of scores that are log-likelihood ratios of junk to particles.

    Parameters
    ----------
    scores : ndarray of float64, shape (n,)
        In nats.

    Returns
    -------
    threshold : float
        Score above which an image is likelier junk than a particle, with the share of junk that
        maximises the likelihood of all scores.
    """
    likelihood = np.exp(-np.clip(scores, -500, 500))
    share = 0.5
    for _ in range(1000):
        before = share
        share = float(np.mean(share / (share + (1 - share) * likelihood)))
        if not 1e-12 < share < 1 - 1e-12 or abs(share - before) < 1e-9:
            break
    share = min(max(share, 1e-12), 1 - 1e-12)
    # Rounding must not reject an image whose score equals the threshold.
    return math.log((1 - share) / share) + 1e-6


def valley(scores: Floats) -> float:
    """Return the deepest minimum of the density of scores above their main peak.

    Particles really end here where the likelihood ratios, which `balanced_threshold` trusts, are too
    sure of themselves. Infinity where there is no such minimum.
    """
    lower, upper = np.quantile(scores, [0.25, 0.75])
    spread = float(upper - lower) / 1.349
    if spread <= 0:
        return math.inf
    low, high = float(np.quantile(scores, 0.001)), float(np.median(scores)) + 15 * spread
    values = np.clip(scores, low, min(high, float(scores.max())))
    # Silverman's rule for the width of the kernel.
    width = 0.9 * spread * len(values) ** -0.2
    edges = np.linspace(low - 3 * width, float(values.max()) + 3 * width, 1024)
    counts = np.histogram(values, edges)[0].astype(np.float64)
    density = scipy.ndimage.gaussian_filter1d(counts, width / (edges[1] - edges[0]), mode="constant")
    middle = 0.5 * (edges[1:] + edges[:-1])
    peak = int(np.argmax(np.where(middle <= np.quantile(values, 0.9), density, 0)))
    highest_ahead = np.maximum.accumulate(density[::-1])[::-1]
    n_above = len(values) - np.searchsorted(np.sort(values), middle, side="right")
    enough = n_above >= max(FEWEST_ABOVE, LEAST_SHARE_ABOVE * len(values))
    depth = density / np.maximum(np.minimum(highest_ahead, density[peak]), 1e-300)
    depth = np.where(enough & (np.arange(len(density)) > peak), depth, np.inf)
    lowest = int(np.argmin(depth))
    return float(middle[lowest]) if depth[lowest] <= VALLEY else math.inf
