"""Why images are rejected: reasons learned from decoys, and named only where they are clear."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

import fastsort as fs
from fastsort._reasons import NOISE, REASONS, UNLIKE, count_reasons, reason_names
from fastsort._saved import load, save
from fastsort.decide.decoys import make_decoys_of_reasons
from fastsort.decide.reasons import (
    CLEAR,
    CLEARER,
    POWER,
    PRICE,
    SHOWN,
    LearnedReasons,
    learn_reasons,
    likeliest_reasons,
)
from fastsort.decide.votes import MethodResults
from fastsort.images.picks import plain_noise
from fastsort.update import update_particles

RIGHT = {
    "noise": "noise",
    "picked": "noise",
    "partial": "partial",
    "multiple": "multiple",
    "off-centre": "off-centre",
    "ice": "contamination",
    "carbon": "contamination",
    "texture": "contamination",
}
NAMED = tuple(set(RIGHT.values()))


def test_reasons_are_counted_by_their_words():
    codes = np.random.default_rng(0).integers(0, 5, 40).astype(np.int8)
    counts = count_reasons(codes)
    assert list(counts) == list(REASONS)
    assert counts == {name: (reason_names(codes) == name).sum() for name in REASONS}
    assert set(count_reasons(codes[:0]).values()) == {0}


def decoys(apart, seed=0, number=60, p=8):
    """Measurements of decoys of all kinds, each about a point of its own reason."""
    rng = np.random.default_rng(seed)
    points = apart * np.random.default_rng(99).normal(size=(len(REASONS), p))
    return {kind: points[code] + rng.normal(size=(number, p)) for kind, code in SHOWN.items()}


def by_hand(*reasons):
    """What was learned if the first measurements are logarithms of the odds of reasons."""
    p = POWER + 1
    weights = np.eye(p + 1, len(reasons))
    return LearnedReasons(reasons, np.full(p, -50.0), np.full(p, 50.0), np.zeros(p), np.ones(p), weights)


def with_power(odds, power=0.0):
    """Measurements for `by_hand`, shape (n, p)."""
    rows = np.zeros((len(odds), POWER + 1))
    rows[:, : len(odds[0])] = odds
    rows[:, POWER] = power
    return rows


# Learning.


def test_reasons_of_decoys_far_apart_are_found_again():
    learned = learn_reasons(decoys(5))
    for kind, values in decoys(5, seed=1).items():
        assert (likeliest_reasons(values, learned) == SHOWN[kind]).mean() > 0.95


def test_nothing_is_named_where_decoys_look_alike():
    found = np.concatenate(
        [likeliest_reasons(values, learn_reasons(decoys(0))) for values in decoys(0, 1).values()]
    )
    assert (found == UNLIKE).mean() > 0.8


def test_weights_are_those_of_another_library():
    measured = decoys(1)
    learned = learn_reasons(measured)
    rows = np.concatenate([measured[kind] for kind in SHOWN])
    rows = (np.clip(rows, learned.low, learned.high) - learned.mean) / learned.deviation
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(rows.std(axis=0), 1, rtol=1e-6)
    words = np.repeat([REASONS[code] for code in SHOWN.values()], 60)
    weight = np.empty(len(words))
    for reason in learned.reasons:
        weight[words == reason] = 1 / len(learned.reasons) / (words == reason).sum()
    theirs = LogisticRegression(C=1 / PRICE, tol=1e-8, max_iter=2000).fit(rows, words, weight)
    order = [list(theirs.classes_).index(reason) for reason in learned.reasons]
    np.testing.assert_allclose(learned.weights[:-1].T, theirs.coef_[order], atol=0.02)


def test_numbers_of_decoys_do_not_count():
    measured = decoys(1)
    more = {kind: np.tile(values, (3, 1)) if kind == "noise" else values for kind, values in measured.items()}
    twice = {kind: np.tile(values, (2, 1)) for kind, values in measured.items()}
    others = {**measured, "background": np.full((9, 8), 7.0)}
    expected = learn_reasons(measured).weights
    for same in (more, others):
        np.testing.assert_array_equal(learn_reasons(same).weights, expected)
    # Quantiles of twice as many values are a little different.
    np.testing.assert_allclose(learn_reasons(twice).weights, expected, atol=0.05)


@pytest.mark.parametrize("kind", SHOWN)
def test_nothing_is_learned_if_a_kind_is_missing(kind):
    measured = decoys(1)
    unknown = {**measured, kind: np.full((5, 8), np.nan)}
    assert learn_reasons(unknown) is None
    del measured[kind]
    assert learn_reasons(measured) is None
    assert learn_reasons({}) is None


def test_decoys_that_could_not_be_measured_are_left_out():
    measured = decoys(1)
    odd = {kind: np.concatenate([values, np.full((3, 8), np.inf)]) for kind, values in measured.items()}
    np.testing.assert_array_equal(learn_reasons(odd).weights, learn_reasons(measured).weights)


# Naming.


@settings(deadline=None, max_examples=200)
@given(odds=st.lists(st.floats(-8, 8), min_size=4, max_size=4))
def test_named_only_if_clear(odds):
    reasons = ("noise", "multiple", "contamination", "unlike")
    found = likeliest_reasons(with_power([odds]), by_hand(*reasons))[0]
    chance = np.exp(odds) / np.exp(odds).sum()
    second, first = np.sort(chance)[-2:]
    best = reasons[int(np.argmax(chance))]
    if abs(first - second - CLEAR) > 1e-9 and abs(first - second - CLEARER) > 1e-9:
        clear = first - second > (CLEARER if best == "contamination" else CLEAR)
        assert REASONS[found] == (best if clear else "unlike")


def test_contamination_stronger_than_any_particle_is_named_as_other_reasons_are():
    # Probabilities of about 0.64 and 0.35: clear, but not clearer.
    odds = [[0.6, 0.0, -4.0]]
    for reasons in (("contamination", "noise", "unlike"), ("noise", "contamination", "unlike")):
        learned = by_hand(*reasons)._replace(most_power=3.0)
        for power, named in ((3.0, reasons[0] == "noise"), (3.1, True), (np.nan, False)):
            found = likeliest_reasons(with_power(odds, power), learned)[0]
            assert REASONS[found] == (reasons[0] if named else "unlike")
        # Nothing stronger than particles is known of older results.
        found = likeliest_reasons(with_power(odds, 40.0), by_hand(*reasons))[0]
        assert (REASONS[found] == "noise") == (reasons[0] == "noise")


def test_power_is_where_the_clues_have_it():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 5)), rng.normal(size=(5, 2))
    radial = SimpleNamespace(peak=one[0], second_peak=one[0], nearest=two, strongest=two, score=one[0])
    subspaces = SimpleNamespace(score=one[0], excess=np.arange(5.0) ** 2, beside=two)
    clues = MethodResults(radial, subspaces, None).clues()
    assert clues.shape == (5, 10)
    np.testing.assert_allclose(clues[:, POWER], np.arange(5))


def test_most_power_is_that_of_copies_of_particles():
    measured = decoys(1)
    measured["contamination"][:, POWER] += 50
    assert learn_reasons(measured).most_power == measured["particle"][:, POWER].max()


def test_measurements_that_are_no_numbers_name_nothing():
    learned = by_hand("noise", "multiple", "unlike")
    rows = with_power([[9, 0, 0], [np.nan, 9, 0], [np.inf, 0, 0], [1e300, 0, 0]])
    assert likeliest_reasons(rows, learned).tolist() == [NOISE, UNLIKE, UNLIKE, NOISE]
    assert likeliest_reasons(rows[:0], learned).shape == (0,)


# The decoys that teach the reasons only.


@pytest.mark.parametrize("box", [24, 33])
def test_plain_noise_is_as_strong_as_the_background_and_has_no_middle(box):
    images = np.random.default_rng(0).normal(size=(60, box, box)).astype(np.float32)
    made = plain_noise(images, 200, 0.5 * box, 3)
    assert made.shape == (200, box, box) and made.dtype == np.float32
    middle = made[:, box // 2 - 3 : box // 2 + 3, box // 2 - 3 : box // 2 + 3]
    assert abs(middle.mean()) < 0.05
    assert made.std() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(made, plain_noise(images, 200, 0.5 * box, 3))
    assert (made != plain_noise(images, 200, 0.5 * box, 4)).any()


def test_contamination_is_added_to_noise_and_to_images():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(30, 32, 32)).astype(np.float32)
    made = make_decoys_of_reasons(images, images, np.random.default_rng(1), 40)
    assert list(made) == ["plain noise", "contamination"]
    offset = np.arange(32) - 16
    outside = np.hypot(offset[:, None], offset) > 16
    for kind in made.values():
        assert kind.shape == (40, 32, 32) and kind.dtype == np.float32 and np.isfinite(kind).all()
        np.testing.assert_allclose(kind[:, outside].std(axis=1), 1, rtol=1e-4)
    # Structure is smoother than noise: neighbours are alike.
    neighbours = {
        kind: np.mean([np.corrcoef(one[:, :-1].ravel(), one[:, 1:].ravel())[0, 1] for one in some])
        for kind, some in made.items()
    }
    assert abs(neighbours["plain noise"]) < 0.1 and neighbours["contamination"] > 0.4


# A whole sort.


@pytest.fixture(scope="module")
def hard():
    images, truth = fs.simulate_particles(
        400, 300, snr=1 / 10, box=36, junk="all", snr_definition="white_power", seed=5
    )
    return images, truth, fs.sort_particles(images, n_jobs=2)


def test_most_junk_gets_a_reason_and_most_reasons_are_right(hard):
    _, truth, result = hard
    junk = ~result.keep & ~result.rescued & ~truth.label
    named = junk & np.isin(result.reason, NAMED)
    right = [
        RIGHT[kind] == reason for kind, reason in zip(truth.kind[named], result.reason[named], strict=True)
    ]
    assert named.sum() > 2 / 3 * junk.sum()
    assert np.mean(right) > 0.7
    # Nobody calls plain noise contamination.
    assert "contamination" not in result.reason[junk & (truth.kind == "noise")]


def test_new_images_get_reasons_by_what_was_learned_before(hard):
    images, _, result = hard
    again = fs.sort_particles(images[:100], earlier=result)
    assert (again.suspicion == result.suspicion[:100]).mean() > 0.97
    assert again.learned.reasons is result.learned.reasons
    names = fs.open_particles(images[:600]).names
    before = fs.sort_particles(images[:600], n_jobs=2)
    updated = update_particles(images, before, names)
    assert (updated.suspicion[600:] == result.suspicion[600:]).mean() > 0.8


def test_one_method_gives_reasons_without_decoys(hard):
    images, truth, _ = hard
    for method in ("radial", "subspaces", "invariants"):
        result = fs.sort_particles(images, method=method, n_jobs=2)
        assert result.learned.reasons is None
        assert set(result.reason) <= {*NAMED, "unlike", "valid"}
        assert "contamination" not in result.reason[truth.kind == "noise"]


def test_results_without_learned_reasons_open_and_explain_as_methods_do(hard, tmp_path):
    images, _, result = hard
    save(tmp_path / "new.npz", result.learned)
    with np.load(tmp_path / "new.npz") as arrays:
        held = dict(arrays)
    (place,) = (
        name
        for name, array in held.items()
        if array.dtype == np.uint8 and array.ndim == 1 and b"learned-verdict" in array.tobytes()
    )
    structure = json.loads(held[place].tobytes())
    del structure["value"]["fields"]["dict"]["reasons"]
    held[place] = np.frombuffer(json.dumps(structure).encode(), dtype=np.uint8)
    np.savez(tmp_path / "old.npz", **held)
    learned = load(tmp_path / "old.npz")
    assert learned.reasons is None
    np.testing.assert_array_equal(load(tmp_path / "new.npz").reasons.weights, result.learned.reasons.weights)
    old = fs.sort_particles(images[:100], earlier=result._replace(learned=learned))
    assert not (old.suspicion == "valid").any() and old.learned.reasons is None
