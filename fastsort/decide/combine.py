"""Votes of several methods become one score and one junk probability, without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastsort._brief import brief
from fastsort._checks import InputError, check_count, check_positive
from fastsort._process import one_blas_thread
from fastsort._threshold import MIN_JUDGED
from fastsort._types import Bools, Floats, Indices
from fastsort.decide.calibrate import calibrate

# Votes that know where the particle lies. The other votes may refine the result of these, but must not
# decide what a particle is: a vote that ignores the place can tell decoys from images, not from particles.
KNOW_THE_CENTRE = ("radial", "subspaces")
# Weights are learned from at most so many images.
MAX_LEARNED_FROM = 10_000
# At first, this share of the images stands for the particles: those that no vote speaks against.
CONFIDENT = 0.3
N_ROUNDS = 20
# Weight of an image that looks like junk, where a decoy has 1: junk of other kinds than the decoys counts,
# but cannot outweigh the particles.
UNLABELLED = 0.4
RIDGE = 1.0
# Newton's method comes to its end long before.
MOST_STEPS = 100
# The number that is added to the sum of the votes stands among their weights under this name.
OFFSET = "offset"


@brief
class Combination(NamedTuple):
    """One verdict out of several votes.

    Attributes
    ----------
    score : ndarray of float64, shape (n,)
        Weighted sum of the votes: about the logarithm of the odds that an image is junk like the decoys.
        Infinite for images that cannot be judged.
    junk_probability : ndarray of float64, shape (n,)
        Never falls where all votes rise. NaN with fewer than 50 images, or where the votes say nothing.
    threshold : float
        Images with a larger score are better rejected; NaN where there are no probabilities.
    weights : dict of str to float
        Of the votes, and "offset", which is added.
    shares : tuple of float
        Share of junk, estimated in two ways: from the mixture, and from scores taken for odds.
    """

    score: Floats
    junk_probability: Floats
    threshold: float
    weights: dict[str, float]
    shares: tuple[float, float]

    @property
    def cut(self) -> float:
        """The name of `threshold` in version 0.1.0."""
        return self.threshold


class Weighing(NamedTuple):
    """Weights of the votes, and the scores they give.

    Attributes
    ----------
    score : ndarray of float64, shape (n,)
    weights : dict of str to float
        As `Combination.weights`.
    learned : bool
        Whether there was enough to learn from.
    """

    score: Floats
    weights: dict[str, float]
    learned: bool


def weighted(votes: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """Return the score of images: the weighted sum of the votes; infinite where one of them is.

    Parameters
    ----------
    votes : mapping of str to ndarray of float64, shape (n,)
    weights : mapping of str to float
        Of each vote, and "offset", which is added.

    Returns
    -------
    score : ndarray of float64, shape (n,)
    """
    rows = np.column_stack([votes[name] for name in votes])
    judged = np.isfinite(rows).all(axis=1)
    score = np.full(len(rows), np.inf)
    score[judged] = rows[judged] @ [weights[name] for name in votes] + weights[OFFSET]
    return score


def confident(votes: Mapping[str, Floats]) -> Indices:
    """Return the images that no vote which knows the centre speaks against, in ascending order.

    Parameters
    ----------
    votes : mapping of str to ndarray of float64, shape (n,)
        Larger for junk; infinite for images that cannot be judged.

    Returns
    -------
    indices : ndarray of intp
        About 30 % of the images that can be judged.
    """
    decisive = [votes[name] for name in votes if name in KNOW_THE_CENTRE] or list(votes.values())
    judged = np.flatnonzero(np.isfinite(decisive[0]))
    worst = np.zeros(len(judged), dtype=np.intp)
    for vote in decisive:
        rank = np.empty(len(judged), dtype=np.intp)
        rank[np.argsort(vote[judged], kind="stable")] = np.arange(len(judged))
        worst = np.maximum(worst, rank)
    chosen = np.argsort(worst, kind="stable")[: max(1, round(CONFIDENT * len(judged)))]
    return np.sort(judged[chosen])


def combine_votes(votes: Mapping[str, Floats], junk: Mapping[str, Floats]) -> Combination:
    """Weigh votes against each other and say how likely each image is junk.

    Parameters
    ----------
    votes : mapping of str to ndarray of float64, shape (n,)
        Score of each method, larger for junk; infinite, in all of them, for images that cannot be judged.
    junk : mapping of str to ndarray of float64, shape (m,)
        Scores of the same methods for decoys that are junk, made from the same images (`make_decoys`).

    Returns
    -------
    combination : Combination

    Notes
    -----
    The weights are learned from decoys and from images without labels. A logistic model whose weights are
    not negative, and which therefore rises with every vote, is fitted by expectation maximisation. Decoys
    are junk. An image counts as a particle with the probability that the last round gave it, and counts
    0.4 as junk with the rest (after Elkan & Noto, Learning classifiers from only positive and unlabeled
    data, KDD 2008, where particles would be the known class; here it is junk). In the first round, the
    30 % of the images that no vote speaks against are the particles. Votes that do not know where the
    particle lies join in the last round, in which the others keep their ratio to each other.

    The junk probability comes from a mixture that is fitted to the scores; it knows how decoys score, but not
    how much of such junk there is (`calibrate`). The share of junk is estimated in a second way, too: as the
    one that makes the scores most likely when they are taken for log-odds (Saerens, Latinne & Decaestecker,
    Neural Computation 14, 2002). It says how far the first can be trusted, and decides where that fails
    (`calibrate`).

    The expected balanced accuracy is highest where images are rejected whose junk probability is above the
    share of junk. A lost particle costs more than junk that is kept, so the limit lies halfway between that
    share and one half.

    Examples
    --------
    Two methods, of which the second only guesses:

    >>> import numpy as np
    >>> import fastsort as fs
    >>> rng = np.random.default_rng(0)
    >>> is_junk = np.arange(400) < 100
    >>> votes = {"good": rng.normal(4.0 * is_junk), "guess": rng.normal(size=400)}
    >>> decoys = {"good": rng.normal(4.0, size=300), "guess": rng.normal(size=300)}
    >>> combination = fs.combine_votes(votes, decoys)
    >>> combination.weights["good"] > 10 * combination.weights["guess"]
    True
    >>> keep = combination.score <= combination.threshold
    >>> bool(keep[~is_junk].mean() > 0.95 and keep[is_junk].mean() < 0.05)
    True
    """
    weighing = weigh_votes(votes, junk)
    return combination_of(weighing, {"junk": weighted(junk, weighing.weights)})


def weigh_votes(
    votes: Mapping[str, Floats], junk: Mapping[str, Floats], amounts: Floats | None = None
) -> Weighing:
    """Learn the weights of the votes, as `combine_votes` describes it, and return them with the scores.

    Each decoy counts as much as its amount says; by default, all count the same.
    """
    names = list(votes)
    judged = np.isfinite(votes[names[0]])
    score = np.full(len(judged), np.inf)
    rows = np.column_stack([votes[name][judged] for name in names])
    sure = np.isfinite(junk[names[0]])
    decoys = np.column_stack([junk[name][sure] for name in names])
    if len(rows) < MIN_JUDGED or not len(decoys) or not np.ptp(rows, axis=0).any():
        # Too few images, or votes that say nothing.
        score[judged] = rows.mean(axis=1)
        return Weighing(score, {**dict.fromkeys(names, 1 / len(names)), OFFSET: 0.0}, False)
    with one_blas_thread():
        weights, offset = _learn_weights(rows, decoys, names, None if amounts is None else amounts[sure])
    score[judged] = rows @ weights + offset
    return Weighing(score, {**dict(zip(names, weights.tolist(), strict=True)), OFFSET: offset}, True)


def combination_of(weighing: Weighing, decoys: Mapping[str, Floats]) -> Combination:
    """Say how likely each image is junk, from its score and the scores of decoys by kind."""
    score = weighing.score
    judged = np.isfinite(score)
    probability = np.where(judged, np.nan, 1.0)
    threshold, shares = math.nan, (math.nan, math.nan)
    if weighing.learned:
        threshold, probability[judged], shares = calibrate(score[judged], decoys)
    return Combination(score, probability, threshold, weighing.weights, shares)


def _learn_weights(
    rows: Floats, decoys: Floats, names: list[str], amounts: Floats | None
) -> tuple[Floats, float]:
    """Learn the weights of the votes in the columns, and the offset, by expectation maximisation."""
    rows = rows[:: -(-len(rows) // MAX_LEARNED_FROM)]
    particles = confident({name: rows[:, k] for k, name in enumerate(names)})
    # A vote outside the range of particles and decoys says no more than the end of that range.
    low = np.quantile(rows[particles], 0.1, axis=0)
    high = np.maximum(np.quantile(rows, 0.9, axis=0), np.quantile(decoys, 0.95, axis=0))
    rows, decoys = np.clip(rows, low, high), np.clip(decoys, low, high)
    n = len(rows)
    decisive = [k for k, name in enumerate(names) if name in KNOW_THE_CENTRE] or list(range(len(names)))
    others = [k for k in range(len(names)) if k not in decisive]
    shares = np.full(len(decoys), 1 / len(decoys)) if amounts is None else amounts / amounts.sum()
    good, bad = rows[:, decisive], decoys[:, decisive]
    of_particles = np.full(len(particles), n / len(particles))
    weights, offset = _fit_parts([(good[particles], 0.0, of_particles), (bad, 1.0, n * shares)])
    for _ in range(N_ROUNDS):
        doubt = 1 / (1 + np.exp(np.clip(-(good @ weights + offset), -30, 30)))
        # Every image is both, a particle and junk, as far as that is likely.
        amount = UNLABELLED * doubt + 1 - doubt
        unsure = (UNLABELLED * doubt / amount, amount), (1.0, (1 - doubt).sum() * shares)
        weights, offset = _fit_parts([(good, *unsure[0]), (bad, *unsure[1])], weights, offset)
    # The other votes join what was found without them, whose votes keep their ratio.
    joined, junk = (
        np.column_stack([part @ weights, whole[:, others]]) for part, whole in ((good, rows), (bad, decoys))
    )
    last, offset = _fit_parts([(joined, *unsure[0]), (junk, *unsure[1])])
    found = np.zeros(len(names))
    found[decisive], found[others] = last[0] * weights, last[1:]
    return found, offset


def _fit_parts(
    parts: list[tuple[Floats, float | Floats, Floats]], weights: Floats | None = None, offset: float = 0.0
) -> tuple[Floats, float]:
    """Fit a logistic model to rows that are particles (0), junk (1) or in between, each with its amount."""
    target = np.concatenate([np.broadcast_to(share, len(rows)) for rows, share, _ in parts])
    values, amount = (np.concatenate([part[k] for part in parts]) for k in (0, 2))
    return _fit_logistic(values, target, amount, weights, offset)


def _fit_logistic(
    values: Floats, target: Floats, amount: Floats, weights: Floats | None = None, offset: float = 0.0
) -> tuple[Floats, float]:
    """Logistic regression of weighted rows with weights that are not negative: weights and offset.

    By Newton's method from the weights and the offset that are given; those that a step would make negative
    stay at 0.
    """
    mean, spread = values.mean(axis=0), values.std(axis=0) + 1e-9
    rows = np.column_stack([np.ones(len(values)), (values - mean) / spread])
    ridge = np.concatenate([[0.0], np.full(values.shape[1], RIDGE)])
    found = np.full(len(ridge), 0.5)
    found[0] = 0.0 if weights is None else offset + weights @ mean
    if weights is not None:
        found[1:] = weights * spread

    def loss(parameters: Floats) -> tuple[float, Floats]:
        odds = rows @ parameters
        value = amount @ (np.logaddexp(0, odds) - target * odds) + 0.5 * ridge @ parameters**2
        return float(value), odds

    value, odds = loss(found)
    for _ in range(MOST_STEPS):
        junk = 1 / (1 + np.exp(-np.clip(odds, -500, 500)))
        slope = rows.T @ (amount * (junk - target)) + ridge * found
        bend = (rows.T * (amount * junk * (1 - junk))) @ rows + np.diag(ridge + 1e-9)
        free = (found > 0) | (slope < 0)
        free[0] = True
        step = np.zeros(len(found))
        step[free] = np.linalg.solve(bend[np.ix_(free, free)], slope[free])
        # Far from the optimum a whole step may lead away from it.
        for length in 0.5 ** np.arange(30):
            next_one = found - length * step
            next_one[1:] = np.maximum(next_one[1:], 0)
            lower, odds = loss(next_one)
            if lower <= value:
                break
        if lower >= value - 1e-12 * abs(value):
            break
        found, value = next_one, lower
    return found[1:] / spread, float(found[0] - found[1:] / spread @ mean)


def apply_strictness(
    score: Floats,
    junk_probability: Floats,
    *,
    probability: float | None = None,
    keep_at_least: float | None = None,
    discard: int | None = None,
    fraction: float | None = None,
) -> Bools:
    """Keep as much as a user asks for.

    Parameters
    ----------
    score, junk_probability : ndarray of float64, shape (n,)
        Infinite and 1 for images that cannot be judged.
    probability : float, optional
        Reject images with a larger junk probability.
    keep_at_least : float, optional
        Keep the best images until they hold this share of all particles, by the junk probabilities.
    discard : int, optional
        Reject this many images, the worst.
    fraction : float, optional
        Keep this share of all images, the best.

    Returns
    -------
    keep : ndarray of bool, shape (n,)

    Raises
    ------
    InputError
        If not exactly one is given, or it is out of range.
    """
    given = [value for value in (probability, keep_at_least, discard, fraction) if value is not None]
    if len(given) != 1:
        raise InputError(f"give one of probability, keep_at_least, discard and fraction; got {len(given)}.")
    judged = np.isfinite(score)
    order = np.argsort(np.where(judged, score, np.inf), kind="stable")
    if probability is not None or keep_at_least is not None:
        if np.isnan(junk_probability).any():
            raise InputError("there are too few images for junk probabilities: give a number or a fraction.")
    if probability is not None:
        if not 0 <= probability <= 1:
            raise InputError(f"probability must be from 0 to 1; got {probability:g}.")
        return judged & (junk_probability <= probability)
    if keep_at_least is not None:
        if check_positive("keep_at_least", keep_at_least) > 1:
            raise InputError(f"keep_at_least must be a share from 0 to 1; got {keep_at_least:g}.")
        particles = np.cumsum((1 - junk_probability)[order])
        # Rounding must not make it one image more.
        number = int(np.searchsorted(particles, keep_at_least * particles[-1] * (1 - 1e-9))) + 1
        number *= bool(particles[-1] > 0)
    elif discard is not None:
        if check_count("discard", discard, 0) > len(score):
            raise InputError(f"discard must be at most the {len(score)} images; got {discard}.")
        number = len(score) - int(discard)
    else:
        assert fraction is not None
        if check_positive("fraction", fraction) > 1:
            raise InputError(f"fraction must be a share from 0 to 1; got {fraction:g}.")
        number = round(fraction * len(score))
    keep = np.zeros(len(score), dtype=bool)
    keep[order[:number]] = True
    return keep & judged
