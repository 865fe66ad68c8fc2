"""Votes of several methods become one score and one junk probability, without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.optimize

from fastsort._brief import brief
from fastsort._checks import InputError, check_count, check_positive
from fastsort._process import one_blas_thread
from fastsort._threshold import MIN_JUDGED, balanced_threshold, fit_scores, junk_probability

# Votes that know where the particle lies. The others may refine what these have found, but not decide
# what is looked for: a vote that is blind to it can tell made junk from real images, not from particles.
KNOW_THE_CENTRE = ("radial", "subspaces")
# Weights are learned from at most so many images.
MAX_TAUGHT = 10_000
# The share of the images that stand for particles at first: those that no vote speaks against.
CONFIDENT = 0.3
N_ROUNDS = 20
# Weight of an image that looks like junk, against that of made junk: junk of other kinds counts, but
# cannot run away with the particles.
UNLABELLED = 0.4
RIDGE = 1.0
# What is added to the sum of the votes stands among their weights under this name.
OFFSET = "offset"
# Beyond these estimated shares the set is all of one kind, and no second kind is looked for.
CLEAN, EMPTY = 0.05, 0.9
# Part of the second count in the probabilities of other sets: where kinds overlap, the first is not sure
# enough of itself, and the second too sure.
SECOND = 0.3
# No set is so clean, or so bad, that the share of either kind is below one half per cent, in nats.
SUREST = math.log(0.995 / 0.005)

Array = npt.NDArray[np.float64]


@brief
class Combination(NamedTuple):
    """One verdict out of several votes.

    Attributes
    ----------
    score : ndarray of float64, shape (n,)
        Weighted sum of the votes, about the logarithm of the odds that an image is like the made junk;
        infinite for images that cannot be judged.
    junk_probability : ndarray of float64, shape (n,)
        Of two images, the one with the higher votes has no lower one. NaN with fewer than 50 images, or
        where the votes say nothing.
    cut : float
        Images with a larger score are better rejected; NaN where there are no probabilities.
    weights : dict of str to float
        Of the votes, and "offset", which is added.
    shares : tuple of float
        Share of junk as the shape of the scores has it, and as the made junk has it.
    """

    score: Array
    junk_probability: Array
    cut: float
    weights: dict[str, float]
    shares: tuple[float, float]


def confident(votes: Mapping[str, Array]) -> npt.NDArray[np.intp]:
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
    known = [votes[name] for name in votes if name in KNOW_THE_CENTRE] or list(votes.values())
    judged = np.flatnonzero(np.isfinite(known[0]))
    worst = np.zeros(len(judged), dtype=np.intp)
    for vote in known:
        rank = np.empty(len(judged), dtype=np.intp)
        rank[np.argsort(vote[judged], kind="stable")] = np.arange(len(judged))
        worst = np.maximum(worst, rank)
    chosen = np.argsort(worst, kind="stable")[: max(1, round(CONFIDENT * len(judged)))]
    return np.sort(judged[chosen])


def combine_votes(votes: Mapping[str, Array], junk: Mapping[str, Array]) -> Combination:
    """Weigh votes against each other and say how likely each image is junk.

    Parameters
    ----------
    votes : mapping of str to ndarray of float64, shape (n,)
        Score of each method, larger for junk; infinite, in all of them, for images that cannot be judged.
    junk : mapping of str to ndarray of float64, shape (m,)
        What the same methods say of junk made from the same images (`make_decoys`).

    Returns
    -------
    combination : Combination

    Notes
    -----
    Learning from known junk and unlabelled images: a logistic model with weights that are not negative,
    hence monotone in every vote, is fitted by expectation maximisation. Made junk is junk; an image is a
    particle as far as the model of the round before says so, and counts 0.4 as junk as far as not (after
    Elkan & Noto, Learning classifiers from only positive and unlabeled data, KDD 2008, where the known
    class is ours of junk). The start takes the 30 % of the images that no vote speaks against for the
    particles. Votes that do not know where the particle lies join in the last round.

    The score then has two counts of the junk: the mixture of `fit_scores`, and the share that makes
    the scores most likely when they are taken for log-odds (Saerens, Latinne & Decaestecker, Neural
    Computation 14, 2002). The second one tells sets that are all particles or all junk, and decides
    there. Otherwise the probability is 0.7 of the first, which knows the shape of the particles' scores,
    and 0.3 of the second.

    Balanced accuracy would be highest with the cut where the junk probability is the share of junk. A
    lost particle costs more than junk that is kept: the cut is halfway from there to one half, where
    junk becomes likelier than a particle.
    """
    names = list(votes)
    judged = np.isfinite(votes[names[0]])
    n = int(judged.sum())
    score = np.full(len(judged), np.inf)
    probability = np.where(judged, np.nan, 1.0)
    rows = np.column_stack([votes[name][judged] for name in names])
    known = np.column_stack([junk[name][np.isfinite(junk[name])] for name in names])
    if n < MIN_JUDGED or not len(known) or not np.ptp(rows, axis=0).any():
        # Too few images, or votes that say nothing.
        score[judged] = rows.mean(axis=1)
        equal = {**dict.fromkeys(names, 1 / len(names)), OFFSET: 0.0}
        return Combination(score, probability, math.nan, equal, (math.nan, math.nan))
    with one_blas_thread():
        learned, offset = _learn_weights(rows, known, names)
    score[judged] = rows @ learned + offset
    cut, found, shares = calibrate(score[judged], known @ learned + offset)
    probability[judged] = found
    weights = {**dict(zip(names, learned.tolist(), strict=True)), OFFSET: offset}
    return Combination(score, probability, cut, weights, shares)


def _learn_weights(rows: Array, known: Array, names: list[str]) -> tuple[Array, float]:
    rows = rows[:: -(-len(rows) // MAX_TAUGHT)]
    sure = confident({name: rows[:, k] for k, name in enumerate(names)})
    # What is beyond all that is known says no more than what is at its end.
    low = np.quantile(rows[sure], 0.1, axis=0)
    high = np.maximum(np.quantile(rows, 0.9, axis=0), np.quantile(known, 0.95, axis=0))
    rows, known = np.clip(rows, low, high), np.clip(known, low, high)
    n = len(rows)
    sees = [k for k, name in enumerate(names) if name in KNOW_THE_CENTRE] or list(range(len(names)))

    def fit(columns: list[int], parts: list[tuple[Array, float, Array]]) -> tuple[Array, float]:
        values = np.concatenate([part[:, columns] for part, _, _ in parts])
        target = np.concatenate([np.full(len(part), label) for part, label, _ in parts])
        return _fit_logistic(values, target, np.concatenate([weight for _, _, weight in parts]))

    share = np.full(len(known), n / len(known))
    weights, offset = fit(sees, [(rows[sure], 0.0, np.full(len(sure), n / len(sure))), (known, 1.0, share)])
    for step in range(N_ROUNDS):
        odds = rows[:, sees] @ weights + offset
        doubt = 1 / (1 + np.exp(np.clip(-odds, -30, 30)))
        share = np.full(len(known), (1 - doubt).sum() / len(known))
        columns = list(range(len(names))) if step == N_ROUNDS - 1 else sees
        parts = [(rows, 1.0, UNLABELLED * doubt), (rows, 0.0, 1 - doubt), (known, 1.0, share)]
        weights, offset = fit(columns, parts)
    return weights, offset


def _fit_logistic(values: Array, target: Array, amount: Array) -> tuple[Array, float]:
    """Logistic regression of weighted rows with weights that are not negative: weights and offset."""
    mean, spread = values.mean(axis=0), values.std(axis=0) + 1e-9
    rows = (values - mean) / spread

    def loss(parameters: Array) -> tuple[float, Array]:
        odds = rows @ parameters[1:] + parameters[0]
        pull = amount * (1 / (1 + np.exp(-odds)) - target)
        value = (
            amount @ (np.logaddexp(0, odds) - target * odds) + 0.5 * RIDGE * parameters[1:] @ parameters[1:]
        )
        return float(value), np.concatenate([[pull.sum()], rows.T @ pull + RIDGE * parameters[1:]])

    start = np.concatenate([[0.0], np.full(rows.shape[1], 0.5)])
    bounds = [(None, None)] + [(0, None)] * rows.shape[1]
    found = scipy.optimize.minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x
    weights: Array = found[1:] / spread
    return weights, float(found[0] - weights @ mean)


def calibrate(score: Array, known: Array) -> tuple[float, Array, tuple[float, float]]:
    """Turn scores into junk probabilities.

    Parameters
    ----------
    score : ndarray of float64, shape (n,)
        Finite; about the logarithm of odds.
    known : ndarray of float64, shape (m,)
        Scores of made junk.

    Returns
    -------
    cut : float
        The highest score that is kept.
    junk_probability : ndarray of float64, shape (n,)
    shares : tuple of float
        As `Combination.shares`.
    """
    by_odds = probability_by_odds(score)
    by_shape = junk_probability(score, fit_scores(score, known))
    shares = float(by_shape.mean()), float(by_odds.mean())
    found = (1 - SECOND) * by_shape + SECOND * by_odds if CLEAN <= shares[1] <= EMPTY else by_odds
    keep = found <= 0.5 * (float(found.mean()) + 0.5)
    cut = float(score[keep].max()) if keep.any() else float(np.nextafter(score.min(), -np.inf))
    return cut, found, shares


def probability_by_odds(score: Array) -> Array:
    """Junk probabilities of scores that are taken for log-odds, with the likeliest share of junk.

    Parameters
    ----------
    score : ndarray of float64, shape (n,)
        Infinite for images that cannot be judged, which get 1.

    Returns
    -------
    probability : ndarray of float64, shape (n,)
    """
    judged = np.isfinite(score)
    probability = np.ones(len(score))
    if judged.any():
        balance = float(np.clip(balanced_threshold(score[judged]), -SUREST, SUREST))
        probability[judged] = 1 / (1 + np.exp(np.clip(balance - score[judged], -700, 700)))
    return probability


def choose_cut(
    score: Array,
    junk_probability: Array,
    *,
    probability: float | None = None,
    keep_at_least: float | None = None,
    discard: int | None = None,
    fraction: float | None = None,
) -> npt.NDArray[np.bool_]:
    """Apply a strictness that a user asks for.

    Parameters
    ----------
    score, junk_probability : ndarray of float64, shape (n,)
        Infinite and 1 for images that cannot be judged.
    probability : float, optional
        Reject images with a larger junk probability.
    keep_at_least : float, optional
        Keep the best images until they hold this share of all particles, as the probabilities have it.
    discard : int, optional
        Reject so many, the worst.
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
        # Rounding must not ask for one more image.
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
