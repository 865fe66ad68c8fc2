"""Decoys: images of which it is known what they are, and what they say of the errors of a verdict."""

from __future__ import annotations

import math

import naive
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsort as fs
from fastsort._reasons import reason_names
from fastsort.decide.decoys import (
    GOOD,
    JUNK,
    MIN_IMAGES,
    MULTIPLE,
    N_TO_LEARN,
    N_TO_TEST,
    OFF_CENTRE,
    PARTIAL,
    estimate_errors,
    make_decoys,
    votes_on_decoys,
)
from fastsort.decide.votes import METHODS, ask_methods, explain
from fastsort.particles.open import open_particles
from fastsort.subspaces.filter import EXCESS

BOXES = (24, 25, 33)
seeds = st.integers(0, 2**32 - 1)
few_examples = settings(max_examples=10, deadline=None)


def noise(n, box, seed=0):
    return np.random.default_rng(seed).standard_normal((n, box, box)).astype(np.float32)


def lopsided(box, faint=0.002):
    """A smooth thing without symmetry about the centre, and next to nothing around it."""
    y, x = np.mgrid[:box, :box] - box // 2
    image = np.exp(-(y**2 + x**2) / (0.1 * box) ** 2)
    image += 0.7 * np.exp(-((y - 0.12 * box) ** 2 + x**2) / (0.05 * box) ** 2)
    image += 0.5 * np.exp(-((y + 0.02 * box) ** 2 + (x - 0.15 * box) ** 2) / (0.06 * box) ** 2)
    return (image + faint * noise(1, box, 9)[0]).astype(np.float32)


def outside(box):
    y, x = np.mgrid[:box, :box] - box // 2
    return y**2 + x**2 > (0.5 * box) ** 2


def normalised(image):
    background = image[outside(len(image))]
    return (image - background.mean()) / background.std()


def likeness(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


# Making decoys.


@few_examples
@given(seed=seeds, box=st.sampled_from(BOXES), m=st.integers(1, 7), k=st.integers(1, 7), good=st.booleans())
def test_every_kind_in_number_and_normalised(seed, box, m, k, good):
    images, others = noise(m, box, seed) + lopsided(box), noise(k, box, seed + 1)
    before = images.copy(), others.copy()
    found = make_decoys(images, others, np.random.default_rng(seed), 5, good=good)
    assert tuple(found) == ((*JUNK, GOOD) if good else JUNK)
    for decoys in found.values():
        assert decoys.shape == (5, box, box) and decoys.dtype == np.float32
        background = decoys[:, outside(box)]
        np.testing.assert_allclose(background.mean(axis=1), 0, atol=1e-5)
        np.testing.assert_allclose(background.std(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(images, before[0])
    np.testing.assert_array_equal(others, before[1])
    again = make_decoys(images, others, np.random.default_rng(seed), 5, good=good)
    other = make_decoys(images, others, np.random.default_rng(seed + 1), 5, good=good)
    for kind in found:
        np.testing.assert_array_equal(found[kind], again[kind])
    assert all((found[kind] != other[kind]).any() for kind in ("off-centre", "scrambled", "noise"))


@pytest.mark.parametrize("box", BOXES)
def test_scrambled_ones_have_the_spectrum_of_their_source_and_nothing_else(box):
    image = noise(1, box) + lopsided(box)
    made = make_decoys(image, noise(3, box), np.random.default_rng(0), 6)["scrambled"]
    spectrum = np.abs(np.fft.fft2(image[0])).ravel()[1:]
    for decoy in made:
        ratio = np.abs(np.fft.fft2(decoy)).ravel()[1:] / spectrum
        np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-2)
        assert abs(likeness(decoy, image[0])) < 0.5
    assert abs(likeness(made[0], made[1])) < 0.5


@pytest.mark.parametrize("box", BOXES)
def test_background_lies_half_a_box_away(box):
    others = noise(4, box)
    made = make_decoys(noise(1, box, 1), others, np.random.default_rng(0), 12)["background"]
    expected = [normalised(np.roll(other, (box // 2, box // 2), (0, 1))) for other in others]
    found = [int(np.argmin([np.abs(decoy - one).max() for one in expected])) for decoy in made]
    assert len(set(found)) > 1
    for decoy, source in zip(made, found, strict=True):
        np.testing.assert_allclose(decoy, expected[source], atol=1e-4)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(("kind", "reach"), [("off-centre", OFF_CENTRE), ("partial", PARTIAL)])
def test_pushed_ones_are_moved_by_whole_pixels_as_far_as_told(box, kind, reach):
    image = noise(1, box)
    made = make_decoys(image, noise(1, box, 1), np.random.default_rng(2), 40)[kind]
    directions = []
    for decoy in made:
        agreement = np.fft.ifft2(np.fft.fft2(decoy) * np.conj(np.fft.fft2(image[0]))).real
        step = np.unravel_index(np.argmax(agreement), agreement.shape)
        np.testing.assert_allclose(decoy, normalised(np.roll(image[0], step, (0, 1))), atol=1e-4)
        # The box is periodic: of equal ways the one within reach, be it the longer one.
        ways = [(y, x) for y in (step[0], step[0] - box) for x in (step[1], step[1] - box)]
        near = [way for way in ways if reach[0] * box - 0.8 <= math.hypot(*way) <= reach[1] * box + 0.8]
        assert near
        directions.append(math.atan2(*near[0]))
    # All around.
    assert np.histogram(directions, 4, (-math.pi, math.pi))[0].min() >= 3


@pytest.mark.parametrize("box", (24, 25))
def test_multiple_ones_are_two_on_opposite_sides(box):
    image = noise(1, box)
    made = make_decoys(image, noise(1, box, 1), np.random.default_rng(3), 8)["multiple"]
    steps = [
        (y, x)
        for y in range(-box // 2, box // 2)
        for x in range(box // 2)
        if MULTIPLE[0] * box - 0.8 <= math.hypot(y, x) <= MULTIPLE[1] * box + 0.8
    ]
    pairs = [
        normalised(np.roll(image[0], step, (0, 1)) + np.roll(image[0], (-step[0], -step[1]), (0, 1)))
        for step in steps
    ]
    for decoy in made:
        assert min(np.abs(decoy - pair).max() for pair in pairs) < 1e-4


@pytest.mark.parametrize("box", BOXES)
def test_noise_has_the_spectrum_of_the_background_and_is_gaussian(box):
    rng = np.random.default_rng(4)
    others = scipy.ndimage.gaussian_filter(rng.standard_normal((60, box, box)), (0, 1, 1), mode="wrap")
    made = make_decoys(noise(1, box), others.astype(np.float32), rng, 400)["noise"]
    one, other = (np.mean(np.abs(np.fft.fft2(some)) ** 2, axis=0) for some in (others, made))
    strong = one > 0.01 * one.max()
    strong[0, 0] = False
    ratio = (other / one)[strong]
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=0.6)
    assert np.corrcoef(np.log(one[strong]), np.log(other[strong]))[0, 1] > 0.95
    assert abs(scipy.stats.kurtosis(made[:, box // 2, box // 2])) < 1
    # No two are alike, nor like what they were made after.
    assert np.abs(np.corrcoef(made[:40].reshape(40, -1)) - np.eye(40)).max() < 0.8


def turned(image, angle, shift=(0.0, 0.0)):
    """Turn an image about pixel box // 2, and move it."""
    middle = len(image) // 2
    y, x = np.mgrid[: len(image), : len(image)] - middle
    cos, sin = math.cos(angle), math.sin(angle)
    at = cos * y - sin * x + middle - shift[0], sin * y + cos * x + middle - shift[1]
    return scipy.ndimage.map_coordinates(image, at, order=3, mode="grid-wrap")


@pytest.mark.parametrize("box", BOXES)
def test_copies_are_their_source_turned(box):
    image = lopsided(box)
    nothing = np.zeros((1, box, box), dtype=np.float32)
    made = make_decoys(image[None], nothing, np.random.default_rng(5), 8, good=True)[GOOD]
    angles = np.radians(np.arange(0, 360, 4))
    middle = box // 2
    found = []
    for decoy in made:
        back = [turned(decoy, angle) for angle in angles]
        alike = []
        for candidate in back:
            agreement = np.fft.ifft2(np.fft.fft2(image) * np.conj(np.fft.fft2(candidate))).real
            step = np.unravel_index(np.argmax(agreement), agreement.shape)
            alike.append(likeness(np.roll(candidate, step, (0, 1)), image))
        best = int(np.argmax(alike))
        found.append(angles[best])
        assert alike[best] > 0.97
        # It stays about where it was: the centre of its mass is as far from the middle, but for a pixel.
        weight = np.clip(decoy, 0.2 * decoy.max(), None) - 0.2 * decoy.max()
        before = np.clip(image, 0.2 * image.max(), None) - 0.2 * image.max()
        far, was = (math.dist(scipy.ndimage.center_of_mass(some), (middle,) * 2) for some in (weight, before))
        assert abs(far - was) < 1.7
    assert np.ptp(found) > 1


@pytest.mark.parametrize("box", BOXES)
def test_copies_are_moved_by_up_to_a_pixel_in_any_direction(box):
    y, x = np.mgrid[:box, :box] - box // 2
    image = np.exp(-(y**2 + x**2) / (0.1 * box) ** 2).astype(np.float32) + 0.002 * noise(1, box)[0]
    nothing = np.zeros((1, box, box), dtype=np.float32)
    made = make_decoys(image[None], nothing, np.random.default_rng(7), 300, good=True)[GOOD]
    weight = np.clip(made - 0.2 * made.max(axis=(1, 2), keepdims=True), 0, None)
    mass = weight.sum(axis=(1, 2))
    moved = np.column_stack([(weight * axis).sum(axis=(1, 2)) / mass for axis in (y, x)])
    assert np.hypot(*moved.T).max() < 1.5
    assert np.square(moved).mean() == pytest.approx(1 / 3, rel=0.2)
    assert np.abs(moved.mean(axis=0)).max() < 0.15


def test_copies_have_more_noise():
    box = 32
    image, others = lopsided(box), noise(50, box)
    made = make_decoys(image[None], others, np.random.default_rng(6), 100, good=True)[GOOD]
    # Next to no noise of its own: what is around a copy, and has deviation 1, is what was added.
    assert made[:, box // 2, box // 2].mean() == pytest.approx(image[box // 2, box // 2] / 0.3, rel=0.2)
    assert np.abs(np.corrcoef(made[:20, outside(box)]) - np.eye(20)).max() < 0.6


# Asking the methods.


@pytest.fixture(scope="module")
def asked():
    images, _ = fs.simulate_particles(160, 120, snr=0.1, box=36, junk="all", seed=2)
    images[[3, 50]] = 0
    particles = open_particles(images)
    return particles, ask_methods(particles, METHODS, n_jobs=2)


def test_what_is_learned_is_not_saved_with_the_results(asked):
    particles, found = asked
    saved = {}

    def stage(name, compute):
        saved[name] = compute()
        return saved[name]

    again = ask_methods(particles, METHODS, learned=found.learned, stage=stage)
    assert [saved[name].learned for name in METHODS] == [None] * 3
    assert all(one is other for one, other in zip(again.learned, found.learned, strict=True))


def test_votes_do_not_depend_on_whether_anybody_asks_for_suspicions(asked):
    particles, found = asked
    some = ask_methods(particles, METHODS, learned=found.learned, suspect=False)
    for name, vote in some.votes.items():
        np.testing.assert_array_equal(vote, found.votes[name])
    np.testing.assert_array_equal(some.clues(), found.clues())
    np.testing.assert_array_equal(some.against, found.against)
    assert len(set(found.subspaces.suspicion)) > 3
    # Unusable pixels are found all the same.
    assert set(some.subspaces.suspicion) == {"unlike", found.subspaces.suspicion[3]}


def test_methods_that_have_learned_say_the_same_again(asked):
    particles, found = asked
    again = ask_methods(particles, METHODS, learned=found.learned)
    for name in METHODS:
        np.testing.assert_allclose(again.votes[name], found.votes[name], rtol=1e-9, err_msg=name)


def test_some_methods_alone(asked):
    particles, found = asked
    # Among the others, the invariant filter knows how large the particle is from the radial one.
    alone = ask_methods(particles, ["invariants"], radius=found.radial.radius)
    np.testing.assert_array_equal(alone.votes["invariants"], found.votes["invariants"])
    assert list(alone.votes) == ["invariants"] and alone.radial is None
    np.testing.assert_array_equal(alone.against, ~found.invariants.keep)


def test_methods_against_an_image_are_counted(asked):
    found = asked[1]
    expected = [sum(not result.keep[i] for result in found) for i in range(len(found.radial.keep))]
    np.testing.assert_array_equal(found.against, expected)
    assert set(found.against) == {0, 1, 2, 3}


def test_radial_explains_first_and_others_where_it_sees_but_noise(asked):
    found = asked[1]
    excess = found.subspaces.excess > EXCESS
    reasons = reason_names(explain(found))
    for i, reason in enumerate(reasons):
        says = [result.suspicion[i] for result in found]
        named = next((word for word in says if word not in ("noise", "unlike")), None)
        first = named or ("noise" if "noise" in says else "unlike")
        assert reason == ("contamination" if excess[i] else first)
    assert excess.any()
    assert reasons[3] == reasons[50] == "flat"
    assert {"off-centre", "noise"} <= set(reasons)


def test_what_counts_where_all_decide_takes_little_memory(asked):
    found = asked[1]
    together = found.to_decide_together()
    arrays = [value for result in together for value in result if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) <= 80 * len(found.radial.keep)
    np.testing.assert_array_equal(explain(together), explain(found))
    np.testing.assert_array_equal(together.clues(), found.clues())
    np.testing.assert_array_equal(together.against, found.against)
    assert list(together.votes) == list(found.votes) and together.contrast == found.contrast


@pytest.mark.parametrize("names", [METHODS, ("radial", "invariants")])
def test_votes_on_decoys_are_those_of_the_seed(asked, names):
    particles, found = asked
    votes = {name: found.votes[name] for name in names}
    first, again, two, other = (
        votes_on_decoys(particles, votes, found.learned, n_jobs=n_jobs, seed=seed)
        for n_jobs, seed in ((1, 0), (1, 0), (2, 0), (1, 1))
    )
    assert tuple(first.to_learn) == names
    assert tuple(first.to_test) == (*JUNK, GOOD)
    for name in names:
        assert first.to_learn[name].shape == (len(JUNK) * N_TO_LEARN,)
        np.testing.assert_array_equal(first.to_learn[name], again.to_learn[name])
        np.testing.assert_array_equal(first.to_learn[name], two.to_learn[name])
        assert (first.to_learn[name] != other.to_learn[name]).any()
        for kind in first.to_test:
            assert first.to_test[kind][name].shape == (N_TO_TEST,)
            np.testing.assert_array_equal(first.to_test[kind][name], two.to_test[kind][name])
    # Junk looks worse than copies of the best.
    good = np.median(first.to_test[GOOD]["radial"])
    assert np.median(first.to_learn["radial"]) > good
    assert all(np.median(first.to_test[kind]["radial"]) > good for kind in JUNK)


@pytest.mark.parametrize("n", [0, 3, 4, 5])
def test_votes_on_decoys_of_next_to_nothing(asked, n):
    particles, found = asked
    some = {
        name: np.where(np.arange(len(vote)) < 200 + n, vote, np.inf) for name, vote in found.votes.items()
    }
    some = {name: np.where(np.arange(len(vote)) >= 200, vote, np.inf) for name, vote in some.items()}
    known = votes_on_decoys(particles, {"radial": some["radial"]}, found.learned)
    assert len(known.to_learn["radial"]) == (0 if n < 4 else len(JUNK) * N_TO_LEARN)
    assert bool(known.to_test) == (n >= 4)


# Estimating errors.


def estimate(probability, keep=None, rejected=None, shares=None):
    probability = np.asarray(probability, dtype=float)
    keep = probability <= 0.5 if keep is None else keep
    share = float(np.mean(probability)) if shares is None else 0.0
    return estimate_errors(keep, probability, rejected or {}, shares or (share, share))


@settings(max_examples=60, deadline=None)
@given(number=st.integers(1, 300), part=st.floats(0, 1))
def test_intervals_of_the_decoys_are_wilsons(number, part):
    hits = round(part * number)
    hit = np.random.default_rng(0).permutation(np.arange(number) < hits)
    errors = estimate(np.full(300, 0.2), rejected={"noise": hit, GOOD: hit, "partial": hit[:0]})
    expected = scipy.stats.binomtest(hits, number).proportion_ci(method="wilson")
    for low, high in (expected, naive.wilson_interval(hits, number, 1.959964)):
        assert errors.by_kind["noise"] == pytest.approx((hits / number, low, high), abs=1e-4)
        # Of particles the share that is kept.
        assert errors.by_kind[GOOD] == pytest.approx((1 - hits / number, 1 - high, 1 - low), abs=1e-4)
    assert errors.n_decoys == {"noise": number, GOOD: number, "partial": 0}
    assert "partial" not in errors.by_kind


@few_examples
@given(seed=seeds, limit=st.floats(0.05, 0.95))
def test_rates_are_expected_numbers(seed, limit):
    p = np.random.default_rng(seed).beta(0.4, 0.4, 500)
    keep = p <= limit
    errors = estimate(p, keep)
    junk_kept = sum(x for x, kept in zip(p, keep, strict=True) if kept)
    good_kept = sum(1 - x for x, kept in zip(p, keep, strict=True) if kept)
    assert errors.true_positive_rate.value == pytest.approx(good_kept / (500 - p.sum()))
    assert errors.true_negative_rate.value == pytest.approx((p.sum() - junk_kept) / p.sum())
    assert errors.precision.value == pytest.approx(good_kept / keep.sum())
    assert errors.junk_share.value == pytest.approx(p.mean())
    for rate in errors[:4]:
        assert 0 <= rate.low <= rate.value <= rate.high <= 1


@pytest.mark.parametrize(("a", "b"), [(0.4, 0.4), (0.1, 0.4), (0.05, 0.05), (2, 2)])
@pytest.mark.parametrize("n", [250, 2000])
def test_truth_is_within_the_intervals(a, b, n):
    rng = np.random.default_rng(0)
    n_sets, hits = 200, np.zeros(4)
    for _ in range(n_sets):
        p = rng.beta(a, b, n)
        is_junk = rng.random(n) < p
        keep = p <= 0.5
        errors = estimate(p, keep)
        truth = keep[~is_junk].mean(), (~keep)[is_junk].mean(), (~is_junk)[keep].mean(), is_junk.mean()
        hits += [rate.low <= value <= rate.high for rate, value in zip(errors[:4], truth, strict=True)]
    assert (hits >= 0.9 * n_sets).all()


def test_images_without_probability_do_not_count_and_unreadable_ones_are_junk():
    p = np.random.default_rng(0).beta(0.4, 0.4, 400)
    plain = estimate(p, shares=(0.5, 0.5))
    more = estimate(np.append(p, [np.nan] * 9), np.append(p <= 0.5, [True] * 9), shares=(0.5, 0.5))
    assert plain == more
    unreadable = estimate(np.append(p, [1.0] * 100), np.append(p <= 0.5, [False] * 100), shares=(0.5, 0.5))
    assert unreadable.junk_share.value == pytest.approx((p.sum() + 100) / 500)
    assert unreadable.true_negative_rate.value > plain.true_negative_rate.value


def test_intervals_hold_what_the_other_count_says():
    p = np.random.default_rng(0).beta(1, 1, 3000)
    keep = p <= 0.5
    plain = estimate_errors(keep, p, {}, (0.5, 0.5))
    for factor in (0.3, 3.0):
        # By Bayes' rule with other odds of junk.
        q = factor * p / (factor * p + 1 - p)
        found = estimate_errors(keep, p, {}, (0.5, float(q.mean())), other=q)
        expected = (
            (1 - q)[keep].sum() / (1 - q).sum(),
            q[~keep].sum() / q.sum(),
            (1 - q)[keep].mean(),
            q.mean(),
        )
        for rate, before, other in zip(found[:4], plain[:4], expected, strict=True):
            assert rate.value == before.value
            # Half of the way to it.
            value = 0.5 * (rate.value + other)
            assert rate.low <= value <= rate.high
            assert rate.low <= before.low and rate.high >= before.high
            assert rate.high - rate.low > before.high - before.low


def test_intervals_widen_where_scores_overlap():
    widths = []
    for doubt in (0.0, 0.1, 0.3):
        p = np.repeat([doubt, 1 - doubt], 5000)
        errors = estimate(p, shares=(0.5, 0.5))
        assert errors.true_positive_rate.value == pytest.approx(1 - doubt)
        # The balanced error is the doubt; of so many images, the scatter adds next to nothing.
        assert errors.true_positive_rate.low == pytest.approx(1 - doubt - 0.06 - 0.6 * doubt, abs=0.005)
        widths.append(errors.junk_share.high - errors.junk_share.low)
    assert widths == sorted(widths) and widths[0] == pytest.approx(0.12, abs=0.01)


def test_nothing_is_said_of_none():
    errors = estimate(np.zeros(300))
    assert all(math.isnan(x) for x in errors.true_negative_rate)
    assert errors.true_positive_rate.value == 1 and errors.known
    errors = estimate(np.ones(300))
    assert all(math.isnan(x) for x in (*errors.true_positive_rate, *errors.precision))
    assert errors.true_negative_rate.value == 1 and not errors.known
    for p in (np.empty(0), np.full(40, np.nan)):
        errors = estimate(p, np.ones(len(p), dtype=bool), shares=(math.nan, math.nan))
        assert all(math.isnan(x) for rate in errors[:4] for x in rate)
        assert not errors.known and errors.remark.startswith(f"{len(p)} images are too few")


def decoys(share, kinds=JUNK, good=0.0):
    hit = np.arange(100)
    return {**{kind: hit < 100 * share for kind in kinds}, GOOD: hit < 100 * good}


@pytest.mark.parametrize(
    ("n", "share", "shares", "rejected", "words"),
    [
        (MIN_IMAGES - 1, 0.3, (0.3, 0.3), decoys(1), f"{MIN_IMAGES - 1} images are too few"),
        (MIN_IMAGES, 0.3, (0.3, 0.3), decoys(1), ""),
        (400, 0.3, (0.3, 0.5), decoys(1), ""),
        (
            400,
            0.3,
            (0.3, 0.6),
            decoys(1),
            "the junk is 30 % by the shape of the scores and 60 % by the scores taken",
        ),
        (
            400,
            0.3,
            (0.6, 0.3),
            decoys(1),
            "the junk is 60 % by the shape of the scores and 30 % by the scores taken",
        ),
        (400, 0.96, (0.96, 0.5), decoys(1), "hardly any image looks like a particle"),
        (400, 0.94, (0.94, 0.94), decoys(1), ""),
        (400, 0.96, (0.96, 0.96), decoys(1), "hardly any image looks like a particle"),
        (400, 0.3, (0.3, 0.3), decoys(0.5), ""),
        (400, 0.3, (0.3, 0.3), decoys(0.4), "only 40 % of the decoys that are junk are rejected"),
        (
            400,
            0.3,
            (0.3, 0.3),
            decoys(0.4, ("noise",), 1),
            "only 0 % of the decoys that are particles are kept",
        ),
        (400, 0.3, (0.3, 0.3), {}, ""),
    ],
)
def test_what_cannot_be_trusted_is_said(n, share, shares, rejected, words):
    errors = estimate(np.full(n, share), np.ones(n, dtype=bool), rejected, shares)
    assert errors.known == (not words)
    assert (words in errors.remark) if words else errors.remark == ""
