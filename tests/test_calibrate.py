"""Scores become probabilities: the mixture, its limits, and sets in which nothing can be told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fastsort.decide.calibrate import GOOD, HARDLY, calibrate, mixture_probability, second_hump, told_apart


def scores(n_good, n_junk, seed=0, distance=7.0, width=3.0):
    """Scores of particles, of junk of two kinds, and of decoys of four kinds."""
    rng = np.random.default_rng(seed)
    half = n_junk // 2
    junk = np.concatenate([rng.normal(distance - 3, 2, half), rng.normal(distance + 4, 4, n_junk - half)])
    score = np.concatenate([rng.normal(-3, width, n_good), junk])
    decoys = {
        "near": rng.normal(distance - 3, 2, 150),
        "far": rng.normal(distance + 4, 4, 150),
        "absent": rng.normal(distance, 1, 150),
        GOOD: rng.normal(-5, width, 150),
    }
    return score, np.arange(n_good + n_junk) >= n_good, decoys


def calibration_error(probability, junk):
    bins = np.minimum((10 * probability).astype(int), 9)
    return np.abs(np.bincount(bins, probability - junk)).sum() / len(junk)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_share_and_probabilities_are_right(share, seed):
    score, junk, decoys = scores(round(3000 * (1 - share)), round(3000 * share), seed)
    threshold, probability, shares = calibrate(score, decoys)
    assert shares[0] == pytest.approx(share, abs=0.04)
    assert calibration_error(probability, junk) < 0.06
    keep = score <= threshold
    assert keep[~junk].mean() > 0.85


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("skew", [1.0, 1.3])
def test_tail_of_particles_is_no_junk(seed, skew):
    score, _, decoys = scores(1500, 0, seed)
    score = np.where(score > -3, -3 + skew * (score + 3), score)
    threshold, probability, _ = calibrate(score, decoys)
    assert (score <= threshold).mean() >= (0.98 if skew == 1 else 0.95)
    assert probability.mean() < 0.08


@pytest.mark.parametrize("seed", range(3))
def test_particles_of_different_strength_are_no_junk(seed):
    rng = np.random.default_rng(seed)
    weak_to_strong = rng.uniform(-15, -1, 2000) + rng.normal(0, 2, 2000)
    decoys = {"far": rng.normal(7, 2, 150), GOOD: rng.normal(-12, 2, 150)}
    threshold, probability, _ = calibrate(weak_to_strong, decoys)
    assert (weak_to_strong <= threshold).mean() > 0.99
    assert probability.mean() < 0.02
    # Half of them might be junk of a kind of its own: this is said.
    assert 0.2 < second_hump(weak_to_strong, decoys) < 0.7
    one_strength = rng.normal(-9, 2.5, 2000)
    assert second_hump(one_strength, decoys) == 0


@pytest.mark.parametrize("seed", range(3))
def test_odds_that_see_junk_where_no_decoy_lies_do_not_decide(seed):
    rng = np.random.default_rng(seed)
    particles = rng.normal(-0.5, 3.3, 1500)
    decoys = {"far": rng.normal(8, 4, 150), GOOD: rng.normal(-4.3, 2, 150)}
    threshold, _, shares = calibrate(particles, decoys)
    assert shares[1] > 0.3
    assert (particles <= threshold).mean() > 0.98


def test_junk_of_no_known_kind_is_found():
    rng = np.random.default_rng(0)
    good, other = rng.normal(-4.5, 1.8, 760), rng.normal(0.9, 1.0, 240)
    decoys = {"far": rng.normal(7, 2, 150), GOOD: rng.normal(-5, 1.5, 150)}
    threshold, _, shares = calibrate(np.concatenate([good, other]), decoys)
    assert shares[0] == pytest.approx(0.24, abs=0.04)
    assert (good <= threshold).mean() > 0.93 and (other > threshold).mean() > 0.85


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n_good=st.integers(0, 300), n_junk=st.integers(0, 300))
def test_probability_never_falls_with_the_score(seed, n_good, n_junk):
    score, _, decoys = scores(n_good + 25, n_junk + 25, seed)
    threshold, probability, _ = calibrate(score, decoys)
    assert (np.diff(probability[np.argsort(score)]) >= -1e-12).all()
    assert ((probability >= 0) & (probability <= 1)).all()
    assert np.isfinite(threshold)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), moved=st.floats(-20, 20))
def test_origin_of_the_scores_does_not_matter_to_the_mixture(seed, moved):
    score, _, decoys = scores(300, 200, seed)
    del decoys[GOOD]
    one = mixture_probability(score, decoys)
    other = mixture_probability(score + moved, {kind: values + moved for kind, values in decoys.items()})
    np.testing.assert_allclose(one, other, atol=0.02)


def test_told_apart_is_the_mean_area_under_the_curve():
    _, _, decoys = scores(1, 1)
    expected = []
    for kind in ("near", "far", "absent"):
        label = np.repeat([0, 1], 150)
        expected.append(roc_auc_score(label, np.concatenate([decoys[GOOD], decoys[kind]])))
    assert told_apart(decoys) == pytest.approx(np.mean(expected), abs=1e-3)
    assert told_apart({"near": decoys["near"]}) == 1


def test_where_nothing_is_told_apart_next_to_nothing_is_kept():
    rng = np.random.default_rng(0)
    score = rng.normal(1, 1.5, 1500)
    decoys = {kind: rng.normal(1, 1.5, 150) for kind in ("near", "far")} | {GOOD: rng.normal(0.3, 1.5, 150)}
    assert told_apart(decoys) < 0.9
    threshold, probability, _ = calibrate(score, decoys)
    assert (score <= threshold).mean() < 0.05
    assert (probability[score <= threshold] <= HARDLY).all()


def test_scores_that_do_not_count_twice():
    score, _, decoys = scores(400, 200)
    more = {kind: np.append(values, [np.inf, np.inf]) for kind, values in decoys.items() if kind != GOOD}
    less = {kind: values for kind, values in decoys.items() if kind != GOOD}
    np.testing.assert_array_equal(mixture_probability(score, more), mixture_probability(score, less))
