"""Votes become one verdict: weights, probabilities, counts of the junk, cuts, and the sorting as a whole."""

from __future__ import annotations

import joblib
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import fastsort as fs
from fastsort import InputError
from fastsort._threshold import balanced_threshold
from fastsort.decide import combine as module
from fastsort.decide.calibrate import probability_by_odds
from fastsort.decide.combine import OFFSET, apply_strictness, combine_votes, confident
from fastsort.decide.verdict import cut_again
from fastsort.sort import sort_particles

NAMES = ("radial", "subspaces", "invariants")
seeds = st.integers(0, 2**32 - 1)
few_examples = settings(max_examples=12, deadline=None)


def gaussian_votes(n_good, n_junk, distance=3.0, seed=0, names=NAMES, n_known=600):
    """Votes that are normal on either side, junk further up, on images and on decoys; which is junk."""
    rng = np.random.default_rng(seed)
    is_junk = rng.permutation(np.arange(n_good + n_junk) < n_junk)
    votes = {name: rng.standard_normal(len(is_junk)) + distance * is_junk for name in names}
    return votes, {name: rng.standard_normal(n_known) + distance for name in names}, is_junk


def chosen(votes, which):
    return {name: vote[which] for name, vote in votes.items()}


# The logistic model.


def logistic_problem(seed, n=300, k=3):
    rng = np.random.default_rng(seed)
    values = rng.normal(rng.normal(0, 5, k), np.exp(rng.normal(0, 2, k)), (n, k))
    target = (rng.random(n) < 0.4).astype(float)
    values += np.outer(target, rng.normal(0, 1.5, k)) * values.std(axis=0)
    return values, target, rng.exponential(1, n)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, k=st.integers(1, 4))
def test_weights_meet_the_conditions_of_an_optimum(seed, k):
    values, target, amount = logistic_problem(seed, k=k)
    weights, offset = module._fit_logistic(values, target, amount)
    slopes, of_offset = naive.logistic_slopes(values, target, amount, weights, offset, module.RIDGE)
    assert (weights >= 0).all()
    assert abs(of_offset) < 0.02
    assert (np.abs(slopes[weights > 0]) < 0.02).all()
    assert (slopes[weights == 0] > -0.02).all()


def test_weights_are_those_of_scikit_learn_where_none_is_zero():
    for seed in range(5):
        values, target, amount = logistic_problem(seed)
        values += 2 * np.outer(target, values.std(axis=0))
        weights, offset = module._fit_logistic(values, target, amount)
        assert (weights > 0).all()
        scaled = (values - values.mean(axis=0)) / values.std(axis=0)
        other = LogisticRegression(C=1 / module.RIDGE, tol=1e-10, max_iter=1000)
        other.fit(scaled, target, sample_weight=amount)
        np.testing.assert_allclose(weights * values.std(axis=0), other.coef_[0], rtol=2e-3, atol=1e-3)
        expected = other.decision_function(scaled)
        np.testing.assert_allclose(values @ weights + offset, expected, atol=0.01)


def test_a_vote_against_the_truth_has_no_weight():
    votes, known, is_junk = gaussian_votes(500, 300)
    votes["subspaces"] = np.random.default_rng(1).normal(3.0 * ~is_junk, 1)
    found = combine_votes(votes, known | {"subspaces": known["subspaces"] - 3})
    assert found.weights["subspaces"] == 0 < found.weights["radial"]


# The share of junk.


@few_examples
@given(seed=seeds, share=st.sampled_from([0.01, 0.2, 0.5, 0.9]), distance=st.floats(0.5, 5))
def test_share_is_the_most_likely_one(seed, share, distance):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, 800) + distance * (rng.random(800) < share)
    odds = distance * x - distance**2 / 2
    expected = naive.likeliest_share(odds)
    found = 1 / (1 + np.exp(balanced_threshold(odds) - 1e-6))
    if distance > 2 and expected > 0.05:
        assert found == pytest.approx(expected, abs=2e-4)
    # The way to a share of nothing is long: of all images together it matters little where it ends.
    likelihood = [np.log(x * np.exp(odds) + 1 - x).sum() for x in (found, expected)]
    assert likelihood[0] > likelihood[1] - 0.3


@few_examples
@given(seed=seeds, share=st.sampled_from([0.1, 0.3, 0.6]))
def test_probabilities_of_log_odds_are_bayes_rule_with_that_share(seed, share):
    rng = np.random.default_rng(seed)
    score = np.append(3 * rng.normal(0, 1, 500) + 9 * (rng.random(500) < share) - 4.5, [np.inf] * 3)
    found = probability_by_odds(score)
    prior = min(max(naive.likeliest_share(score[:500]), 1e-12), 1 - 1e-12)
    ratio = np.exp(score[:500])
    expected = prior * ratio / (prior * ratio + 1 - prior)
    np.testing.assert_allclose(found[:500], expected, atol=1e-3)
    assert (found[500:] == 1).all()


def test_probabilities_of_log_odds_of_nothing():
    assert probability_by_odds(np.full(3, np.inf)).tolist() == [1, 1, 1]
    assert probability_by_odds(np.empty(0)).shape == (0,)


# Combined votes.


@few_examples
@given(seed=seeds, n=st.integers(60, 400), share=st.floats(0, 1), k=st.integers(1, 3))
def test_who_is_worse_in_every_vote_is_worse(seed, n, share, k):
    votes, known, _ = gaussian_votes(n - int(share * n), int(share * n), 2.0, seed, NAMES[:k])
    # One image is raised in one vote, beside a twin that is not.
    rng = np.random.default_rng(seed)
    votes = {name: np.append(vote, vote[:2]) for name, vote in votes.items()}
    votes[NAMES[rng.integers(k)]][-2:] += rng.exponential([0.1, 5.0])
    found = combine_votes(votes, known)
    assert all(found.weights[name] >= 0 for name in votes)
    assert (found.score[-2:] >= found.score[:2]).all()
    assert (found.junk_probability[-2:] >= found.junk_probability[:2]).all()
    # The same holds of all pairs.
    order = np.argsort(found.score, kind="stable")
    assert (np.diff(found.junk_probability[order]) >= 0).all()
    rows = np.column_stack(list(votes.values()))
    for i in range(0, len(rows), 7):
        worse = (rows >= rows[i]).all(axis=1)
        assert (found.score[worse] >= found.score[i] - 1e-9).all()


@few_examples
@given(seed=seeds, share=st.floats(0, 1), k=st.integers(1, 3))
def test_score_is_the_weighted_sum_and_the_cut_is_halfway_to_one_half(seed, share, k):
    votes, known, _ = gaussian_votes(int(400 * (1 - share)), int(400 * share) + 1, 3.0, seed, NAMES[:k])
    found = combine_votes(votes, known)
    expected = found.weights[OFFSET] + sum(found.weights[name] * votes[name] for name in votes)
    np.testing.assert_allclose(found.score, expected, rtol=1e-9, atol=1e-9)
    assert set(found.weights) == {*votes, OFFSET}
    assert ((found.junk_probability >= 0) & (found.junk_probability <= 1)).all()
    limit = 0.5 * (found.junk_probability.mean() + 0.5)
    np.testing.assert_array_equal(found.score <= found.threshold, found.junk_probability <= limit)


@pytest.mark.slow
@few_examples
@given(seed=seeds)
def test_order_of_images_and_of_made_junk_does_not_matter(seed):
    votes, known, _ = gaussian_votes(300, 100, seed=seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(400)
    one = combine_votes(votes, known)
    other = combine_votes(chosen(votes, order), chosen(known, rng.permutation(600)))
    np.testing.assert_allclose(other.score, one.score[order], atol=0.1)
    np.testing.assert_allclose(other.junk_probability, one.junk_probability[order], atol=0.03)


@pytest.mark.slow
@few_examples
@given(seed=seeds, factor=st.floats(0.01, 100), moved=st.floats(-100, 100))
def test_units_of_a_vote_do_not_matter(seed, factor, moved):
    votes, known, _ = gaussian_votes(300, 100, seed=seed)
    one = combine_votes(votes, known)
    votes, known = ({**some, "subspaces": factor * some["subspaces"] + moved} for some in (votes, known))
    other = combine_votes(votes, known)
    np.testing.assert_allclose(other.junk_probability, one.junk_probability, atol=5e-3)
    assert other.weights["subspaces"] * factor == pytest.approx(one.weights["subspaces"], rel=0.02, abs=0.01)


@pytest.mark.slow
@few_examples
@given(seed=seeds, n_bad=st.integers(1, 80))
def test_images_that_cannot_be_judged_do_not_count(seed, n_bad):
    votes, known, _ = gaussian_votes(200, 100, seed=seed)
    clean = combine_votes(votes, known)
    bad = np.zeros(300 + n_bad, dtype=bool)
    bad[np.random.default_rng(seed).permutation(300 + n_bad)[:n_bad]] = True
    filled = {name: np.full(300 + n_bad, np.inf) for name in votes}
    for name, vote in votes.items():
        filled[name][~bad] = vote
    known = {name: np.append(vote, [np.inf] * 3) for name, vote in known.items()}
    found = combine_votes(filled, known)
    np.testing.assert_array_equal(found.score[~bad], clean.score)
    np.testing.assert_array_equal(found.junk_probability[~bad], clean.junk_probability)
    assert np.isposinf(found.score[bad]).all()
    assert (found.junk_probability[bad] == 1).all()
    assert (found.threshold, found.weights, found.shares) == (clean.threshold, clean.weights, clean.shares)


@pytest.mark.parametrize(("n", "n_known"), [(49, 600), (1, 600), (0, 600), (300, 0)])
def test_too_little_is_known_for_probabilities(n, n_known):
    votes, known, _ = gaussian_votes(n, 0, n_known=n_known)
    votes = {name: np.append(vote, np.inf) for name, vote in votes.items()}
    found = combine_votes(votes, known)
    assert np.isnan(found.threshold) and np.isnan(found.shares).all()
    assert np.isnan(found.junk_probability[:n]).all() and found.junk_probability[n] == 1
    np.testing.assert_allclose(found.score[:n], sum(votes.values())[:n] / 3)
    assert found.score[n] == np.inf
    assert found.weights == {**dict.fromkeys(NAMES, 1 / 3), OFFSET: 0}


def test_fifty_images_are_enough():
    found = combine_votes(*gaussian_votes(30, 20, 6.0)[:2])
    assert np.isfinite(found.threshold) and np.isfinite(found.junk_probability).all()


@pytest.mark.parametrize("noisy", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_vote_of_pure_noise_does_no_harm(noisy, seed):
    votes, known, is_junk = gaussian_votes(600, 400, 2.0, seed)
    rng = np.random.default_rng(seed + 10)
    votes[noisy], known[noisy] = rng.standard_normal(1000), rng.standard_normal(600)
    good = next(name for name in NAMES[:2] if name != noisy)
    pair = [{name: some[name] for name in NAMES if name in (good, noisy)} for some in (votes, known)]
    found = combine_votes(*pair)
    assert roc_auc_score(is_junk, found.score) >= roc_auc_score(is_junk, votes[good]) - 0.01
    # Three votes of which two are good are better than one of them.
    found = combine_votes(votes, known)
    assert roc_auc_score(is_junk, found.score) >= roc_auc_score(is_junk, votes[good]) - 0.01


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 1000, 12_000])
@pytest.mark.parametrize("distance", [3.0, 4.0])
def test_clean_set_is_kept_and_junk_is_not(n, distance):
    for seed in range(3):
        votes, known, _ = gaussian_votes(n, 0, distance, seed)
        found = combine_votes(votes, known)
        assert (found.score > found.threshold).mean() <= 0.03
        assert found.junk_probability.mean() <= 0.03
        votes, known, _ = gaussian_votes(0, n, distance, seed)
        found = combine_votes(votes, known)
        assert (found.score > found.threshold).mean() >= 0.97
        assert found.junk_probability.mean() >= 0.97


@pytest.mark.parametrize(("n_good", "n_junk"), [(1980, 20), (800, 1200), (200, 1800), (25_000, 10_000)])
def test_any_share_of_junk(n_good, n_junk):
    for seed in range(2):
        votes, known, is_junk = gaussian_votes(n_good, n_junk, 3.5, seed)
        found = combine_votes(votes, known)
        keep = found.score <= found.threshold
        # Where particles are few, not all that are sure at first are particles.
        assert keep[~is_junk].mean() >= (0.97 if is_junk.mean() < 0.7 else 0.9)
        assert keep[is_junk].mean() <= max(0.03, 3 / n_junk)
        assert found.junk_probability.mean() == pytest.approx(is_junk.mean(), abs=0.05)
        assert found.shares[1] == pytest.approx(is_junk.mean(), abs=0.04)


def test_probabilities_are_calibrated():
    error = []
    for seed in range(4):
        votes, known, is_junk = gaussian_votes(1500, 1000, 2.0, seed)
        probability = combine_votes(votes, known).junk_probability
        bins = np.minimum((10 * probability).astype(int), 9)
        gap = [(probability - is_junk)[bins == b].sum() for b in range(10)]
        error.append(np.abs(gap).sum() / len(is_junk))
    assert max(error) <= 0.05


def test_junk_that_was_not_made_is_found_too():
    votes, known, is_junk = gaussian_votes(800, 200, 4.0)
    # Of a kind that the decoys do not show: one vote sees it from afar, and another one hardly.
    votes["radial"][is_junk] += 4
    votes["subspaces"][is_junk] -= 1.5
    found = combine_votes(votes, known)
    keep = found.score <= found.threshold
    assert keep[~is_junk].mean() >= 0.97 and keep[is_junk].mean() <= 0.03


def test_the_same_bits_twice():
    votes, known, _ = gaussian_votes(300, 200)
    one, other = (combine_votes(votes, known) for _ in range(2))
    np.testing.assert_array_equal(one.score, other.score)
    np.testing.assert_array_equal(one.junk_probability, other.junk_probability)
    assert one[2:] == other[2:]


def test_nothing_is_changed_in_place():
    votes, known, _ = gaussian_votes(100, 50)
    copies = [{name: vote.copy() for name, vote in some.items()} for some in (votes, known)]
    for vote in (*votes.values(), *known.values()):
        vote.flags.writeable = False
    combine_votes(votes, known)
    for some, copy in zip((votes, known), copies, strict=True):
        for name in NAMES:
            np.testing.assert_array_equal(some[name], copy[name])


@settings(max_examples=30, deadline=None)
@given(seed=seeds, n=st.integers(4, 200), names=st.sampled_from([NAMES, NAMES[:2], NAMES[2:], NAMES[1:]]))
def test_confident_images_are_those_that_no_vote_speaks_against(seed, n, names):
    votes = gaussian_votes(n, 0, seed=seed, names=names)[0]
    bad = np.random.default_rng(seed).random(n) < 0.2
    votes = {name: np.where(bad, np.inf, vote) for name, vote in votes.items()}
    if bad.all():
        return
    found = confident(votes)
    asked = [name for name in names if name != "invariants"] or list(names)
    rank = np.array([[np.sum(votes[name] < value) for value in votes[name]] for name in asked]).max(axis=0)
    assert (np.diff(found) > 0).all()
    assert not bad[found].any()
    assert len(found) == max(1, round(0.3 * (~bad).sum()))
    others = np.setdiff1d(np.flatnonzero(~bad), found)
    assert rank[found].max() <= rank[others].min(initial=n)


# Strictness.


def verdicts(seed, n=40, digits=None):
    rng = np.random.default_rng(seed)
    score = rng.normal(0, 2, n)
    score = score if digits is None else score.round(digits)
    score[rng.random(n) < 0.1] = np.inf
    return score, np.where(np.isfinite(score), 1 / (1 + np.exp(-score)), 1.0)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, digits=st.sampled_from([None, 0]), share=st.floats(0.01, 1), limit=st.floats(0, 1))
def test_each_strictness_is_what_brute_force_finds(seed, digits, share, limit):
    score, probability = verdicts(seed, digits=digits)
    n = len(score)
    keep = apply_strictness(score, probability, probability=limit)
    expected = [np.isfinite(s) and p <= limit for s, p in zip(score, probability, strict=True)]
    np.testing.assert_array_equal(keep, expected)
    keep = apply_strictness(score, probability, fraction=share)
    np.testing.assert_array_equal(keep, naive.best_images(score, round(share * n)))
    keep = apply_strictness(score, probability, discard=int(share * n))
    np.testing.assert_array_equal(keep, naive.best_images(score, n - int(share * n)))
    keep = apply_strictness(score, probability, keep_at_least=share)
    number = naive.fewest_that_hold(score, probability, share)
    np.testing.assert_array_equal(keep, naive.best_images(score, number))


def test_ends_of_each_strictness():
    score, probability = verdicts(3)
    judged = np.isfinite(score)
    for options in ({"probability": 1}, {"fraction": 1}, {"discard": 0}, {"keep_at_least": 1}):
        np.testing.assert_array_equal(apply_strictness(score, probability, **options), judged)
    for options in ({"probability": 0}, {"discard": 40}, {"fraction": 0.01}):
        assert not apply_strictness(score, probability, **options).any()


def test_without_probabilities_numbers_are_still_possible():
    score, unknown = np.arange(20.0), np.full(20, np.nan)
    assert apply_strictness(score, unknown, discard=5).sum() == 15
    assert apply_strictness(score, unknown, fraction=0.5).sum() == 10
    for options in ({"probability": 0.5}, {"keep_at_least": 0.9}):
        with pytest.raises(InputError, match="too few images for junk probabilities"):
            apply_strictness(score, unknown, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "got 0"),
        ({"discard": 1, "fraction": 0.5}, "got 2"),
        ({"probability": 1.5}, "probability must be from 0 to 1; got 1.5"),
        ({"probability": -0.1}, "probability must be from 0 to 1"),
        ({"probability": np.nan}, "probability must be from 0 to 1"),
        ({"keep_at_least": 1.01}, "keep_at_least must be a share"),
        ({"keep_at_least": 0}, "keep_at_least"),
        ({"keep_at_least": np.nan}, "keep_at_least"),
        ({"discard": -1}, "discard"),
        ({"discard": 2.5}, "discard"),
        ({"discard": 21}, "discard must be at most the 20 images; got 21"),
        ({"fraction": 1.2}, "fraction must be a share"),
        ({"fraction": -0.5}, "fraction"),
    ],
)
def test_wrong_strictness_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        apply_strictness(np.arange(20.0), np.linspace(0, 1, 20), **options)


# The sorting as a whole.


@pytest.fixture(scope="module")
def stack():
    return fs.simulate_particles(200, 200, snr=0.3, box=48, junk=("noise", "partial", "multiple"), seed=4)


@pytest.fixture(scope="module")
def result(stack):
    return sort_particles(stack[0], n_jobs=2)


def assert_same(one, other):
    """Assert the same bits all the way down, but for the time that it took."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            if name != "total":
                assert_same(one[name], other[name])
    elif isinstance(one, tuple):
        names = getattr(one, "_fields", range(len(one)))
        for name, a, b in zip(names, one, other, strict=True):
            if name != "seconds":
                assert_same(a, b)
    else:
        np.testing.assert_array_equal(one, other)


def test_particles_and_junk_are_told_apart(stack, result):
    label = stack[1].label
    assert result.keep[label].mean() > 0.95
    assert (~result.keep)[~label].mean() > 0.95
    assert not result.rescued.any()
    np.testing.assert_array_equal(result.keep, result.score <= result.threshold)
    np.testing.assert_array_equal(result.keep, result.reason == "valid")
    np.testing.assert_array_equal(result.reason[~result.keep], result.suspicion[~result.keep])
    assert list(result.votes) == list(NAMES)
    np.testing.assert_allclose(result.learned.score(result.votes), result.score, rtol=1e-9)
    assert result.errors.known
    for rate, truth in (
        (result.errors.true_positive_rate, result.keep[label].mean()),
        (result.errors.true_negative_rate, (~result.keep)[~label].mean()),
        (result.errors.precision, label[result.keep].mean()),
        (result.errors.junk_share, (~label).mean()),
    ):
        assert rate.value == pytest.approx(truth, abs=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"probability": 0.05},
        {"keep_at_least": 0.8},
        {"discard": 250},
        {"fraction": 0.25},
        {"fraction": 0.75},
        {"unanimous": True},
    ],
    ids=str,
)
def test_another_cut(result, options):
    other = cut_again(result, **options)
    score, probability = result.score, result.junk_probability
    expected = {
        "probability": lambda limit: probability <= limit,
        "keep_at_least": lambda share: naive.best_images(
            score, naive.fewest_that_hold(score, probability, share)
        ),
        "discard": lambda number: naive.best_images(score, len(score) - number),
        "fraction": lambda share: naive.best_images(score, round(share * len(score))),
        "unanimous": lambda _: result.measurements["against"] < 3,
    }
    for name, value in options.items():
        np.testing.assert_array_equal(other.keep, expected[name](value))
    np.testing.assert_array_equal(other.keep, other.reason == "valid")
    np.testing.assert_array_equal(other.reason[~other.keep], result.suspicion[~other.keep])
    # What was measured stays, and the first result with it.
    for name in ("score", "junk_probability", "suspicion", "offset", "votes", "measurements"):
        assert_same(getattr(other, name), getattr(result, name))
    assert result.keep.sum() != other.keep.sum()
    # The best of what is rejected is no better than the worst of what is kept.
    if "unanimous" not in options:
        assert score[other.keep].max() == other.threshold
        assert score[~other.keep].min() > other.threshold


def test_strictness_of_the_sorting_is_that_of_another_cut(stack, result):
    told = sort_particles(stack[0], fraction=0.4, n_jobs=2)
    again = cut_again(result, fraction=0.4)
    assert_same(told._replace(parameters={}), again._replace(parameters={}))


@pytest.mark.parametrize(
    "options",
    [{}, {"discard": 3, "unanimous": True}, {"discard": 401}, {"fraction": 2}, {"probability": -1}],
    ids=str,
)
def test_another_cut_that_cannot_be(result, options):
    with pytest.raises(InputError):
        cut_again(result, **options)


def test_unanimous_needs_several_methods(stack):
    alone = sort_particles(stack[0][:60], method="radial")
    with pytest.raises(InputError, match="several methods"):
        cut_again(alone, unanimous=True)
    assert alone.errors is None and alone.views is None


@pytest.mark.parametrize("n", [1, 3, 4, 49])
def test_few_images_are_all_kept(stack, n):
    found = sort_particles(stack[0][:n])
    assert found.keep.all() and not found.rescued.any()
    assert np.isnan(found.threshold) and np.isnan(found.junk_probability).all()
    assert cut_again(found, discard=1).keep.sum() == n - 1
    with pytest.raises(InputError, match="too few images"):
        cut_again(found, probability=0.5)


def test_processes_do_not_change_bits(stack, result):
    with joblib.parallel_config(backend="loky"):
        other = sort_particles(stack[0], n_jobs=2)
    assert_same(result._replace(parameters={}), other._replace(parameters={}))


def test_off_centre_particles_are_kept_when_asked_for():
    images, truth = fs.simulate_particles(
        240, 120, snr=0.3, box=64, fill=0.4, junk=("off-centre", "noise"), seed=6
    )
    asked = sort_particles(images, keep_off_centre=True, n_jobs=2)
    beside = truth.kind == "off-centre"
    # Whole is what does not reach over the edge.
    whole = beside & (np.abs(truth.shift).max(axis=1) + 0.2 * 64 <= 31)
    named = whole & (asked.suspicion == "off-centre")
    assert named.sum() >= 15
    assert asked.keep[named].mean() >= 0.9
    assert asked.keep[truth.label].mean() >= 0.95
    assert asked.keep[truth.kind == "noise"].mean() <= 0.05
    np.testing.assert_array_equal(asked.keep, asked.score <= asked.threshold)
    np.testing.assert_array_equal(asked.keep, asked.reason == "valid")
    # Where they lie is told, so that they can be extracted anew.
    moved = asked.offset[whole & asked.keep] - truth.shift[whole & asked.keep].reshape(-1, 2)
    assert np.median(np.hypot(*moved.T)) < 2
