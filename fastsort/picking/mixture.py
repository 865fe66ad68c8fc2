"""Which maxima are particles: a mixture of noise, which the negative shows, of particles, and of the rest."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from fastsort._types import Bools, Floats

N_ROUNDS = 40
# Noise is described by this part of the negative, the most usual.
USUAL_NOISE, N_NOISE_ROUNDS = 0.9, 6
# Covariances are drawn so far towards their diagonal.
SHRINKAGE = 0.05
# The first guess of the particles: maxima above the negative's highest fiftieth, the weaker half.
UNEXPLAINED, WEAKER = 0.02, 0.5
# Below this quantile of the negative's heights nearly all maxima are noise; they say how much noise there is.
# Some are particles after all: so much of that number counts.
LOW, OF_LOW = 0.6, 0.8
# In so many steps of height is noise compared with the negative. Never is all of a step noise, or nothing.
N_STEPS, MOST_NOISE, LEAST_NOISE = 30, 0.998, 0.002
# Features are not normal, and depend on each other in more ways than a covariance says: their evidence counts
# only so much.
TRUST = 0.7
# No threshold is above this probability.
SUREST = 0.99
# The mean squared distance of a place from its own distribution is one a feature; a mean nearer than this
# part of it is typical.
TYPICAL = 0.5
# The rest is learned from at least so many maxima a feature, and starts so many times wider than the maxima.
ENOUGH, WIDER = 3, 4.0


class Gaussian(NamedTuple):
    """A normal distribution of features.

    Attributes
    ----------
    mean : ndarray of float64, shape (p,)
    covariance : ndarray of float64, shape (p, p)
    """

    mean: Floats
    covariance: Floats


class Mixture(NamedTuple):
    """Noise, particles, and whatever is neither.

    Attributes
    ----------
    noise, particles, foreign : Gaussian
    height, noise_share : ndarray of float64, shape (k,)
        How many of the maxima of a height are noise; between these heights, a straight line.
    particle_share : float
        Of particles among what is not noise.
    """

    noise: Gaussian
    particles: Gaussian
    foreign: Gaussian
    height: Floats
    noise_share: Floats
    particle_share: float

    @property
    def has_tails(self) -> bool:
        """Whether what should be foreign lies about the particles and is as high: these have long tails."""
        apart = float(_squared_distance(self.foreign.mean[None], self.particles)[0])
        lower = self.particles.mean[0] - math.sqrt(self.particles.covariance[0, 0])
        return apart < TYPICAL * len(self.foreign.mean) and self.foreign.mean[0] > lower

    def share_of_noise(self, height: Floats) -> Floats:
        """Return how many of the maxima of some heights are noise."""
        return np.interp(height, self.height, self.noise_share)


def fit_mixture(
    features: Floats, negative: Floats, height: Floats, negative_height: Floats
) -> Mixture | None:
    """Learn what tells particles from noise and from foreign things, without labels.

    Parameters
    ----------
    features : ndarray of float64, shape (n, p)
        Of maxima; the first is the logarithm of the height.
    negative : ndarray of float64, shape (m, p)
        Of maxima of the micrographs' negative, measured as if the negative were a micrograph.
    height, negative_height : ndarray of float64, shapes (n,) and (m,)
        Responses of the template.

    Returns
    -------
    mixture : Mixture or None
        None where there are too few maxima to learn from.

    Notes
    -----
    Expectation and maximisation with three normal distributions. That of noise is the negative's and stays:
    noise has no sign. How many of the maxima of a height are noise follows from how often the negative has
    that height; it falls with the height. Particles are alike, so that one distribution holds them; it starts
    with the weakest maxima that noise does not explain, since contamination is stronger. The third takes
    what fits neither.
    """
    p = features.shape[1]
    if min(len(features), len(negative)) < ENOUGH * p:
        return None
    noise = usual_part(negative)
    unexplained = height > np.quantile(negative_height, 1 - UNEXPLAINED)
    if unexplained.sum() < ENOUGH * p:
        return None
    weaker = unexplained & (height <= np.quantile(height[unexplained], WEAKER))
    foreign = weighted_part(features, unexplained.astype(np.float64))
    mixture = Mixture(
        noise,
        weighted_part(features, weaker.astype(np.float64)),
        Gaussian(foreign.mean, WIDER * foreign.covariance),
        *_noise_by_height(height, negative_height),
        0.7,
    )
    of_noise, share = log_density(features, noise), mixture.share_of_noise(height)
    for _ in range(N_ROUNDS):
        parts = _parts(of_noise, share, features, mixture)
        if parts[:, 1].sum() < ENOUGH * p:
            # Of one feature, what was found first is good enough.
            return mixture if p == 1 else None
        among = float(parts[:, 1].sum() / parts[:, 1:].sum())
        mixture = mixture._replace(
            particles=weighted_part(features, parts[:, 1]), particle_share=min(max(among, 0.02), 0.98)
        )
        if parts[:, 2].sum() > ENOUGH * p:
            mixture = mixture._replace(foreign=weighted_part(features, parts[:, 2]))
    return mixture


def probabilities(features: Floats, height: Floats, mixture: Mixture) -> Floats:
    """Return how likely each of n maxima is noise, a particle and foreign, shape (n, 3)."""
    share = mixture.share_of_noise(height)
    parts = _parts(log_density(features, mixture.noise), share, features, mixture)
    if mixture.has_tails:
        parts[:, 1] += parts[:, 2]
        parts[:, 2] = 0
    return parts


def _parts(of_noise: Floats, share: Floats, features: Floats, mixture: Mixture) -> Floats:
    others = (log_density(features, part) for part in (mixture.particles, mixture.foreign))
    among = mixture.particle_share
    priors = np.column_stack([share, (1 - share) * among, (1 - share) * (1 - among)])
    return _posterior(TRUST * np.column_stack([of_noise, *others]) + np.log(priors))


def _noise_by_height(height: Floats, negative_height: Floats) -> tuple[Floats, Floats]:
    """Return heights, ascending, and which part of the maxima there is noise, falling."""
    low = np.quantile(negative_height, LOW)
    counted = (height < low).sum() / max(1, (negative_height < low).sum())
    both = np.concatenate([height, negative_height])
    edges = np.unique(np.quantile(both, np.linspace(0, 1, N_STEPS + 1)))
    middles = (edges[:-1] + edges[1:]) / 2
    edges[0], edges[-1] = -np.inf, np.inf
    found = np.histogram(height, edges)[0] + 0.5
    expected = OF_LOW * min(1.0, counted) * np.histogram(negative_height, edges)[0] + 0.5
    return middles, np.clip(_falling(expected / found, found), LEAST_NOISE, MOST_NOISE)


def _falling(values: Floats, weight: Floats) -> Floats:
    """Return the falling sequence nearest to some values: pools of neighbours that violate it."""
    pools: list[tuple[float, float, int]] = []
    for value, own in zip(values.tolist(), weight.tolist(), strict=True):
        pools.append((value, own, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (a, wa, na), (b, wb, nb) = pools[-2:]
            pools[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return np.concatenate([np.full(number, value) for value, _, number in pools])


def best_cut(probability: Floats) -> float:
    """Return the least probability that is kept, so that the expected F1 is highest.

    Parameters
    ----------
    probability : ndarray of float64, shape (n,)
        That each is a particle.

    Returns
    -------
    cut : float
        1 where nothing can be kept.
    """
    if not len(probability) or not probability.sum() > 0:
        return 1.0
    ordered = np.sort(probability)[::-1]
    found = np.cumsum(ordered)
    score = 2 * found / (np.arange(1, len(ordered) + 1) + found[-1])
    return min(float(ordered[int(score.argmax())]), SUREST)


def log_density(features: Floats, part: Gaussian) -> Floats:
    """Return the logarithm of a normal density at n points, shape (n,)."""
    root = cholesky(part.covariance, lower=True)
    apart = solve_triangular(root, (features - part.mean).T, lower=True)
    constant = np.log(np.diag(root)).sum() + 0.5 * len(part.mean) * math.log(2 * math.pi)
    density: Floats = -0.5 * np.square(apart).sum(axis=0) - constant
    return density


def _posterior(logarithms: Floats) -> Floats:
    parts = np.exp(logarithms - logarithms.max(axis=1, keepdims=True))
    shares: Floats = parts / parts.sum(axis=1, keepdims=True)
    return shares


def weighted_part(features: Floats, weight: Floats) -> Gaussian:
    """Describe features, each with a weight, by a normal distribution drawn a little towards its diagonal."""
    mean = weight @ features / weight.sum()
    apart = features - mean
    return Gaussian(mean, _shrunk((weight[:, None] * apart).T @ apart / weight.sum()))


def _shrunk(covariance: Floats) -> Floats:
    diagonal = np.diag(np.diag(covariance))
    shrunk: Floats = (1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal + 1e-6 * np.eye(len(covariance))
    return shrunk


def usual_part(negative: Floats) -> Gaussian:
    """Describe the most usual part of the negative, scaled so that its median distance is a Gaussian's."""
    kept: Bools = np.ones(len(negative), bool)
    part = weighted_part(negative, kept.astype(np.float64))
    for _ in range(N_NOISE_ROUNDS):
        distance = _squared_distance(negative, part)
        kept = distance <= np.quantile(distance, USUAL_NOISE)
        part = weighted_part(negative, kept.astype(np.float64))
        # The median of a chi-squared variable is about two thirds below its mean.
        unit = float(np.median(_squared_distance(negative, part))) / (negative.shape[1] - 0.67)
        part = Gaussian(part.mean, part.covariance * max(unit, 1e-3))
    return part


def _squared_distance(features: Floats, part: Gaussian) -> Floats:
    root = cholesky(part.covariance, lower=True)
    distance: Floats = np.square(solve_triangular(root, (features - part.mean).T, lower=True)).sum(axis=0)
    return distance
