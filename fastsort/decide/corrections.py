"""A verdict that learns from what a person kept and rejected."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.optimize

from fastsort._brief import brief
from fastsort._checks import InputError
from fastsort._types import Bools, Floats, Indices
from fastsort.decide.by_hand import choose_by_hand, without_choices
from fastsort.decide.calibrate import highest_kept
from fastsort.decide.combine import OFFSET, weighted
from fastsort.decide.result import BY_HAND, SortResult
from fastsort.decide.verdict import with_verdict

# How far the log odds of junk, their slope, and what each vote adds are expected to move.
OFFSET_MOVES, SLOPE_MOVES, VOTE_MOVES = 3.0, 0.5, 0.7
# Scores count as odds up to here, and votes up to so many deviations: one far image decides nothing.
FARTHEST, FARTHEST_VOTE = 10.0, 6.0
# Choices are predicted from the others in so many parts.
FOLDS = 5
# Balanced accuracy on the choices must grow by this over the root of their number.
LEAST_GAIN = 0.5
# Fewer of a kind tell nothing.
FEWEST = 2
# More changed verdicts for each choice are worth a warning.
MANY = 50


@brief
class Learned(NamedTuple):
    """What was learned from choices.

    Attributes
    ----------
    result : SortResult
        With the choices, and with another score, probability, threshold and verdict where something was
        learned.
    learned : bool
        Whether the verdict changed.
    before, after : float
        Balanced accuracy of the verdict on the choices: as it was, and as it would be if each choice were
        predicted from others. NaN where there are too few.
    changed : int
        Verdicts that changed on images that nobody chose.
    """

    result: SortResult
    learned: bool
    before: float
    after: float
    changed: int


def learn_from_choices(result: SortResult, keep: npt.ArrayLike, reject: npt.ArrayLike) -> Learned:
    """Refit the weights of the votes and the threshold to choices made by hand; no image is read.

    Parameters
    ----------
    result : SortResult
        Of n images.
    keep, reject : array_like of int
        Images that a person kept and rejected. They should be chosen by chance, and hold what the verdict has
        right as well as what it has wrong: from mistakes of one kind alone only that kind is learned.

    Returns
    -------
    learned : Learned
        The choices themselves hold whatever was learned.

    Raises
    ------
    InputError
        As for `choose_by_hand`; and if the scores of the result are no sums of votes, as with
        ``keep_off_centre``.

    Notes
    -----
    The score is taken for the logarithm of the odds that an image is junk. Logistic regression on the choices
    moves it, its slope, and the weight of each vote, from where they are: the prior is normal about the run's
    own. The threshold has the best expected balanced accuracy over all images. All this is first learned five
    times without a fifth of the choices. Unless the verdict on these fifths is better than the run's by more
    than chance gives, nothing is learned.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(60, 60, snr=0.5, box=24, junk="noise", seed=1)
    >>> wrong = fs.cut_again(fs.sort_particles(images, method="radial"), fraction=0.1)
    >>> good, junk = np.flatnonzero(truth.label), np.flatnonzero(~truth.label)
    >>> told = fs.decide.learn_from_choices(wrong, keep=good[::3], reject=junk[::3])
    >>> told.learned, bool((told.result.keep == truth.label).mean() > 0.9)
    (True, True)
    """
    if result.parameters.get("keep_off_centre"):
        raise InputError("nothing can be learned where off-centre particles are kept: sort without that.")
    chosen = choose_by_hand(result, keep, reject)
    by_hand = chosen.measurements[BY_HAND]
    judged = np.isfinite(result.score)
    rows = np.flatnonzero((by_hand != 0) & judged)
    junk = by_hand[rows] < 0
    if min(junk.sum(), (~junk).sum()) < FEWEST:
        return Learned(chosen, False, np.nan, np.nan, 0)
    before = _balanced(result.keep[rows], junk)
    after = _balanced(_predicted(result, rows, junk), junk)
    if not after > before + LEAST_GAIN / np.sqrt(len(rows)):
        return Learned(chosen, False, before, after, 0)
    learned = _relearned(result, rows, junk)
    changed = int(((learned.keep != result.keep) & (by_hand == 0)).sum())
    learned = choose_by_hand(learned, np.flatnonzero(by_hand > 0), np.flatnonzero(by_hand < 0))
    if learned.errors is not None:
        remark = f"the verdict was learned from {len(rows):,} choices made by hand"
        learned = learned._replace(errors=learned.errors._replace(known=False, remark=remark))
    return Learned(learned, True, before, after, changed)


def learn_again(result: SortResult) -> Learned:
    """Learn from the choices that a result holds, as if they had just been made."""
    by_hand = result.measurements[BY_HAND]
    return learn_from_choices(
        without_choices(result), np.flatnonzero(by_hand > 0), np.flatnonzero(by_hand < 0)
    )


def _balanced(keep: Bools, junk: Bools) -> float:
    return float((keep[~junk].mean() + (~keep[junk]).mean()) / 2)


def _predicted(result: SortResult, rows: Indices, junk: Bools) -> Bools:
    """Return whether chosen images are kept by what the others teach."""
    rng, fold = np.random.default_rng(0), np.empty(len(rows), np.intp)
    for kind in (junk, ~junk):
        fold[kind] = rng.permutation(np.arange(kind.sum()) % FOLDS)
    keep = np.empty(len(rows), bool)
    for number in range(FOLDS):
        out = fold == number
        keep[out] = _relearned(result, rows[~out], junk[~out]).keep[rows[out]]
    return keep


def _relearned(result: SortResult, rows: Indices, junk: Bools) -> SortResult:
    """Return the result with weights and threshold that suit some images whose kind is known."""
    judged = np.isfinite(result.score)
    votes = np.column_stack([values[judged] for values in result.votes.values()])
    middle = np.median(votes, axis=0)
    spread = 1.4826 * np.median(np.abs(votes - middle), axis=0)
    spread[spread == 0] = 1
    place = np.cumsum(judged)[rows] - 1
    moves = _fitted(
        np.clip(result.score[rows], -FARTHEST, FARTHEST),
        np.clip((votes[place] - middle) / spread, -FARTHEST_VOTE, FARTHEST_VOTE),
        junk,
    )
    offset, slope, added = moves[0], 1 + moves[1], moves[2:] / spread
    old = result.learned.weights
    weights = {name: slope * old[name] + more for name, more in zip(result.votes, added, strict=True)}
    weights[OFFSET] = slope * old[OFFSET] + offset - added @ middle
    score = weighted(result.votes, weights)
    probability = np.ones(len(score))
    probability[judged] = 1 / (1 + np.exp(-np.clip(score[judged], -30, 30)))
    # Expected balanced accuracy is highest where what is likelier junk than the average is rejected.
    share = float(probability[judged].mean())
    threshold = highest_kept(score[judged], probability[judged], share)
    # Decoys were scored with the old weights, and test nothing any more.
    learned = result.learned._replace(weights=weights, decoys={})
    changed = result._replace(score=score, junk_probability=probability, learned=learned)
    verdict = with_verdict(changed, score <= threshold, threshold)
    return verdict._replace(errors=result.errors)


def _fitted(score: Floats, votes: Floats, junk: Bools) -> Floats:
    """Return by how much offset, slope and the part of each vote move, as logistic regression has it."""
    width = np.array([OFFSET_MOVES, SLOPE_MOVES, *[VOTE_MOVES] * votes.shape[1]])
    columns = np.column_stack([np.ones(len(score)), score, votes])

    def cost(moves: Floats) -> tuple[float, Floats]:
        odds = score + columns @ moves
        loss = np.logaddexp(0, odds).sum() - odds[junk].sum() + np.square(moves / width).sum() / 2
        slope: Floats = columns.T @ (1 / (1 + np.exp(-odds)) - junk) + moves / width**2
        return float(loss), slope

    # The slope stays positive: a larger score never means less junk.
    bounds = [(None, None), (-0.95, None), *[(None, None)] * votes.shape[1]]
    found: Floats = scipy.optimize.minimize(
        cost, np.zeros(len(width)), jac=True, bounds=bounds, method="L-BFGS-B"
    ).x
    return found
