"""The invariant filter: what it finds, what does not matter to it, its score by hand, and ugly images."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import joblib
import naive
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import MinCovDet
from sklearn.metrics import roc_auc_score

import fastsort as fs
from fastsort import InputError
from fastsort._bulk import Bulk, distance, excess_distance, fit_bulk
from fastsort.images.normalize import LEAST_RAMP
from fastsort.invariants import filter as module
from fastsort.invariants.expectation import expect
from fastsort.invariants.filter import invariant_filter
from fastsort.invariants.fit_classes import averages_of, fit_classes
from fastsort.invariants.ranking import rank_classes
from fastsort.particles.source import as_particles

seeds = st.integers(0, 2**32 - 1)
few_examples = settings(max_examples=15, deadline=None)


def simulated(n_good, n_junk, seed=0, box=48, snr=0.05, junk="paper", **more):
    return fs.simulate_particles(n_good, n_junk, snr=snr, box=box, junk=junk, seed=seed, **more)


class Sorted(NamedTuple):
    """A result, and what was learned on the way to it."""

    result: object
    sample: np.ndarray
    radius: float
    fitted: object


def sorted_and_watched(images, *arguments, **settings_of_module):
    """Sort images, with some settings of the module changed, and keep what `fit_classes` got and gave."""
    calls = []

    def watched(particles, count, radius, **options):
        fitted = fit_classes(particles, count, radius, **options)
        calls.append((particles.read(0, len(particles)), radius, fitted))
        return fitted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit_classes", watched)
        for name, value in settings_of_module.items():
            patch.setattr(module, name, value)
        result = invariant_filter(images, *arguments)
    assert len(calls) == 1
    return Sorted(result, *calls[0])


@pytest.fixture(scope="module")
def mixed():
    return simulated(200, 200)


@pytest.fixture(scope="module")
def watched(mixed):
    return sorted_and_watched(mixed[0])


@pytest.fixture(scope="module")
def result(watched):
    return watched.result


@pytest.fixture
def halves_by_place(monkeypatch):
    """Images belong to the halves by turns, and not by their pixels, which are about to change."""
    monkeypatch.setattr(module, "_half_of", lambda images: np.arange(len(images)) % 2)


@pytest.fixture
def quick(monkeypatch):
    """Few rounds, where it does not matter how good the classes are."""
    monkeypatch.setattr(module, "EFFORT", 0.1)


def assert_identical(one, other):
    for name, a, b in zip(one._fields, one, other, strict=True):
        if isinstance(a, tuple):
            assert_identical(a, b)
        else:
            np.testing.assert_array_equal(a, b, name)


def assert_sane(found, n):
    """Assert what holds of every result."""
    assert all(len(column) == n for column in found[:4])
    judged = np.isfinite(found.score)
    assert not np.isnan(found.score).any()
    assert (found.junk_probability[~judged] == 1).all()
    assert not found.keep[~judged].any()
    np.testing.assert_array_equal(found.keep, found.reason == "valid")
    np.testing.assert_array_equal(found.reason[~found.keep], found.suspicion[~found.keep])
    assert set(found.suspicion[judged]) <= {"noise", "unlike"}
    if judged.sum() >= 50 and found.learned is not None:
        np.testing.assert_array_equal(found.keep, found.score <= found.threshold)
        order = np.argsort(found.score[judged])
        assert (np.diff(found.junk_probability[judged][order]) >= 0).all()
    else:
        assert np.isnan(found.threshold) and np.isnan(found.junk_probability[judged]).all()
        np.testing.assert_array_equal(found.keep, judged)


def rank_correlation(one, other):
    return scipy.stats.spearmanr(one, other).statistic


# What it finds.


@pytest.mark.slow
@pytest.mark.parametrize(("volume", "box"), [("globular", 65), ("two-lobed", 48), ("shell", 64)])
def test_particles_are_found_in_noise(volume, box):
    images, truth = simulated(150, 150, 1, box, volume=volume)
    found = invariant_filter(images)
    assert_sane(found, 300)
    assert roc_auc_score(~truth.label, found.score) > 0.94
    some = truth.label | (truth.kind == "noise")
    assert roc_auc_score(~truth.label[some], found.score[some]) > 0.98
    assert found.keep[truth.label].mean() > 0.92 and found.keep[~truth.label].mean() < 0.45


@pytest.mark.slow
def test_contamination_is_found():
    images, truth = simulated(250, 60, 2, junk=("carbon", "photograph"), snr=0.1)
    found = invariant_filter(images)
    assert_sane(found, 310)
    assert roc_auc_score(~truth.label, found.score) > 0.95
    assert found.keep[truth.label].mean() > 0.9 and found.keep[~truth.label].mean() < 0.4


@pytest.mark.slow
def test_clean_set_loses_few():
    images, _ = simulated(300, 0, 3, snr=0.1)
    found = invariant_filter(images)
    assert_sane(found, 300)
    assert found.keep.mean() >= 0.92


def test_displaced_places_are_junk(mixed, result):
    displaced = result.learned.displaced_scores
    particles = result.score[mixed[1].label]
    assert len(displaced) == 400
    assert np.quantile(displaced, 0.05) > np.quantile(particles, 0.95)


def test_at_most_512_displaced_places_are_judged(mixed, quick, monkeypatch):
    monkeypatch.setattr(module, "N_DISPLACED", 40)
    # Every fourth of 121 images.
    assert len(invariant_filter(mixed[0][:121]).learned.displaced_scores) == 31
    assert len(invariant_filter(mixed[0][:120]).learned.displaced_scores) == 40


# What does not matter.


@functools.cache
def learned_in(box):
    """Images, whether they are particles, what is learned from them, and their scores by that."""
    images, truth = simulated(120, 80, 4, box)
    learned = invariant_filter(images).learned
    return images, truth.label, learned, invariant_filter(images, learned=learned).score


def turned_about_the_centre(images, turns):
    turned = np.rot90(images, turns, (1, 2))
    if images.shape[1] % 2 == 0:
        # Pixel box // 2 is the centre, and it is not the middle of the box.
        turned = np.roll(turned, {1: (1, 0), 2: (1, 1), 3: (0, 1)}[turns], (1, 2))
    return turned


@pytest.mark.parametrize("box", [33, 48])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turns_do_not_change_scores(box, turns, halves_by_place):
    images, particle, learned, _ = learned_in(box)
    plain = invariant_filter(images, learned=learned).score
    other = invariant_filter(turned_about_the_centre(images, turns), learned=learned).score
    # What the angles between those that are compared, and another class now and then, make of it.
    assert rank_correlation(other, plain) > 0.99
    assert np.median(np.abs(other - plain)) < 0.05
    assert abs(roc_auc_score(~particle, other) - roc_auc_score(~particle, plain)) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("change", ["turned", "mirrored", "reordered"])
def test_what_is_learned_from_turned_or_mirrored_or_reordered_images_is_as_good(mixed, result, change):
    images, truth = mixed
    order = np.arange(400)
    if change == "reordered":
        order = np.random.default_rng(0).permutation(400)
    turns = np.random.default_rng(1).integers(1, 4, 400)
    changed = images[order]
    if change == "turned":
        changed = np.stack([turned_about_the_centre(images[[i]], turns[i])[0] for i in range(400)])
    elif change == "mirrored":
        changed = images[:, ::-1]
    other = invariant_filter(changed)
    particle = truth.label[order]
    assert roc_auc_score(~particle, other.score) > roc_auc_score(~truth.label, result.score) - 0.02
    # Other images make the first averages, so that the classes are others.
    assert rank_correlation(other.score, result.score[order]) > 0.9
    assert (other.keep == result.keep[order]).mean() > 0.95


def test_grey_values_do_not_change_scores(mixed, halves_by_place):
    factor = np.exp(np.random.default_rng(0).normal(0, 1, (400, 1, 1)))
    result = invariant_filter(mixed[0])
    other = invariant_filter((factor * mixed[0] + 10 * factor).astype(np.float32))
    np.testing.assert_allclose(other.score, result.score, rtol=1e-3, atol=0.02)
    assert (other.keep == result.keep).mean() > 0.99


@pytest.mark.slow
def test_learned_before_gives_the_same_scores_in_and_outside_the_sample():
    images, truth = simulated(200, 200, 7, 24)
    found, sample, _, _ = sorted_and_watched(images, N_SAMPLED=200)
    rows = rows_of(sample, cropped(images))
    assert len(sample) == 200 and (np.diff(rows) > 0).all()
    outside = np.setdiff1d(np.arange(400), rows)
    order = np.random.default_rng(0).permutation(400)
    again = invariant_filter(images[order], learned=found.learned)
    np.testing.assert_allclose(again.score, found.score[order], atol=1e-4)
    assert roc_auc_score(~truth.label[outside], found.score[outside]) > 0.94


def test_learned_before_gives_the_same_scores_for_any_part(mixed, result):
    whole = invariant_filter(mixed[0], learned=result.learned)
    np.testing.assert_allclose(whole.score, result.score, rtol=1e-4, atol=1e-4)
    assert whole.learned is result.learned
    for start, stop in ((0, 1), (7, 60), (1, 400)):
        part = invariant_filter(mixed[0][start:stop], learned=result.learned)
        assert_sane(part, stop - start)
        # Products of other sizes are rounded otherwise.
        np.testing.assert_allclose(part.score, whole.score[start:stop], rtol=1e-4, atol=1e-4)


def rows_of(sample, small):
    """Which of the cropped images the images of a sample are."""
    overlap = np.tensordot(sample, small, ((1, 2), (1, 2)))
    rows = (np.square(small).sum(axis=(1, 2)) - 2 * overlap).argmin(axis=1)
    np.testing.assert_allclose(sample, small[rows], atol=1e-3)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_workers_do_not_change_bits(mixed, quick, backend):
    # Several batches.
    with joblib.parallel_config(backend=backend):
        two = invariant_filter(mixed[0], n_jobs=2)
    assert_identical(invariant_filter(mixed[0], n_jobs=1), two)


def test_seed_chooses_the_sample_of_a_large_set(mixed, quick, monkeypatch):
    images, truth = mixed
    monkeypatch.setattr(module, "N_SAMPLED", 150)
    operator = np.eye(48, dtype=np.float32)
    every = module.crop_and_normalize(images.copy(), operator)
    samples = [rows_of(module._sample(as_particles(images), operator, seed)[1], every) for seed in (1, 2)]
    assert all(len(set(rows)) == 150 and rows.max() > 350 for rows in samples)
    assert len(np.intersect1d(*samples)) < 90
    one, same, other = (invariant_filter(images, seed=seed) for seed in (1, 1, 2))
    assert_identical(one, same)
    assert (one.score != other.score).mean() > 0.9
    assert len(one.learned.junk) == 3 and len(one.learned.displaced_scores) == 150
    for found in (one, other):
        assert roc_auc_score(~truth.label, found.score) > 0.92


def test_seed_chooses_the_classes_of_a_small_set(mixed, quick):
    one, other = (invariant_filter(mixed[0][:120], seed=seed) for seed in (0, 1))
    assert (one.score != other.score).mean() > 0.9


@pytest.mark.parametrize("before", [False, True])
def test_progress_counts_up(mixed, result, quick, before):
    seen = []
    invariant_filter(
        mixed[0],
        learned=result.learned if before else None,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen) and seen[-1] == (400, 400)
    assert {total for _, total in seen} == {400}
    # Learning is a good part of it.
    assert sum(done < 0.6 * 400 for done, _ in seen) >= (0 if before else 8)
    assert sum(done > 0.6 * 400 for done, _ in seen) >= 2 - before


def test_images_are_not_changed(mixed, quick):
    images = mixed[0][:60].copy()
    learned = invariant_filter(images).learned
    invariant_filter(images, learned=learned)
    np.testing.assert_array_equal(images, mixed[0][:60])


# The score by hand.


def cropped(images):
    """Images without ramps, on 24 pixels or fewer, with a background of mean 0 and deviation 1."""
    size = min(images.shape[-1], 24)
    small = np.array([naive.fourier_crop(naive.subtract_ramp(image, LEAST_RAMP), size) for image in images])
    y, x = np.mgrid[:size, :size] - size // 2
    background = np.hypot(y, x) > size / 2
    mean = small[:, background].mean(axis=1)[:, None, None]
    return ((small - mean) / small[:, background].std(axis=1)[:, None, None]).astype(np.float32)


def by_hand(small, half, learned):
    """Class, likeness and score of each image, which was cropped."""
    found = expect(small, half, None, learned.model)[1]
    scores = []
    for label, likeness in zip(found.label, found.score, strict=True):
        deviations = (likeness - learned.usual) / learned.deviation
        scores.append(learned.junk[label] - min(max(deviations, -3), 3))
    return found.label, found.score, np.array(scores)


@pytest.mark.parametrize("box", [16, 35, 48])
def test_score_is_that_of_the_class_less_the_likeness(box, quick):
    images, _ = simulated(100, 60, 5, box, snr=0.2)
    found, sample, radius, _ = sorted_and_watched(images)
    learned = found.learned
    small = cropped(images)
    np.testing.assert_allclose(sample, small, atol=1e-3)
    assert radius == pytest.approx(0.4 * min(box, 24))
    label, _, expected = by_hand(small, module._half_of(images), learned)
    # Between two classes that are equally likely, rounding decides.
    assert (np.abs(found.score - expected) < 2e-3).mean() > 0.98
    reason = np.where(learned.resolved[label], "unlike", "noise")
    assert (reason == found.suspicion).mean() > 0.98


def test_what_is_learned_is_what_the_classes_say(watched):
    learned, fitted = watched.result.learned, watched.fitted
    averages = averages_of(fitted, 1.0)
    ranking = rank_classes(averages, fitted.assignments.label, None, radius=0.4 * 24)
    assert len(learned.junk) == 400 // 50
    np.testing.assert_array_equal(learned.junk, [min(score, 6) for score in ranking.score])
    for name in ("references", "shares", "noise", "deviation", "reach", "window"):
        assert getattr(learned.model, name) is getattr(fitted.model, name)
    # Images are scored in one search, on all rings.
    assert learned.model.coarse == fitted.model.references.shape[2]
    resolved = [(correlation[1:3] > 0.143).all() for correlation in fitted.correlation]
    np.testing.assert_array_equal(learned.resolved, resolved)
    assert learned.usual == pytest.approx(fitted.assignments.score.mean(), rel=1e-6)
    assert learned.deviation == pytest.approx(fitted.assignments.score.std(), rel=1e-6)


def test_junk_classes_are_those_of_junk(mixed, watched):
    label, junk = watched.fitted.assignments.label, watched.result.learned.junk
    particle = mixed[1].label
    for k in range(len(junk)):
        members = particle[label == k]
        assert len(members) < 10 or 0.3 < members.mean() < 0.7 or (junk[k] < 1) == (members.mean() > 0.5)
    assert (junk > 1).any() and (junk < 1).any()


@pytest.mark.parametrize("n", [99, 100, 640])
def test_there_is_a_class_for_every_50_images_but_no_more_than_12(mixed, monkeypatch, n):
    monkeypatch.setattr(module, "EFFORT", 0.01)
    images = np.concatenate([mixed[0], mixed[0]])[:n]
    assert len(invariant_filter(images).learned.junk) == min(n // 50, 12)


def test_radius_is_that_of_the_cropped_images(mixed):
    assert sorted_and_watched(mixed[0][:60], 12, EFFORT=0.01).radius == pytest.approx(12 / 2)
    # These are not cropped.
    images = simulated(40, 20, 6, 20)[0]
    assert sorted_and_watched(images, 7, EFFORT=0.01).radius == pytest.approx(7)


def test_noise_is_no_more_like_its_own_class_than_other_noise_is(monkeypatch):
    """Images of the sample are compared with the half that they do not belong to."""
    images = np.random.default_rng(0).standard_normal((1200, 24, 24)).astype(np.float32)
    # Small classes, to which a single image adds much.
    changed = {"N_SAMPLED": 400, "MEMBERS": 33, "EFFORT": 0.1}
    found, sample, _, _ = sorted_and_watched(images, None, **changed)
    small = cropped(images)
    rows = rows_of(sample, small)
    half = module._half_of(images)
    in_sample = np.isin(np.arange(1200), rows)

    def excess(likeness):
        """By how many sampling errors images of the sample are more like their class than others are."""
        parts = likeness[in_sample], likeness[~in_sample]
        error = math.hypot(*(part.std() / math.sqrt(len(part)) for part in parts))
        return (parts[0].mean() - parts[1].mean()) / error

    label, likeness, score = by_hand(small, half, found.learned)
    assert (np.abs(found.score - score) < 2e-3).mean() > 0.98
    used = found.learned.junk[label] - found.score
    assert abs(excess(used)) < 2.5 and abs(excess(likeness)) < 2.5
    # With the other half it would show.
    assert excess(by_hand(small, 1 - half, found.learned)[1]) > 2.5


# Ugly images.


@pytest.mark.parametrize(("box", "snr"), [(33, 0.1), (16, 0.3), (47, 0.1)])
def test_odd_and_small_boxes(box, snr):
    images, truth = simulated(100, 60, 6, box, snr)
    found = invariant_filter(images)
    assert_sane(found, 160)
    assert roc_auc_score(~truth.label, found.score) > 0.92


def test_images_that_cannot_be_judged(mixed, quick):
    images = np.concatenate([mixed[0][:200], mixed[0][:6]])
    images[200] = 7
    images[201, 3, 4] = np.nan
    images[202, 0, 0] = np.inf
    images[203, -1, -1] = -np.inf
    images[204] = np.nan
    images[205, 20, 20] = 1e6
    found = invariant_filter(images)
    assert_sane(found, 206)
    assert found.reason[200:].tolist() == ["flat"] + 5 * ["bad_pixels"]
    assert np.isposinf(found.score[200:]).all() and np.isfinite(found.score[:200]).all()
    # They are not learned from, and do not change which half the others belong to.
    without = invariant_filter(images[:200])
    assert_identical(found.learned, without.learned)
    np.testing.assert_allclose(found.score[:200], without.score, atol=1e-4)
    first = np.concatenate([images[200:], images[:200]])
    np.testing.assert_allclose(invariant_filter(first).score[6:], without.score, atol=1e-4)


@pytest.mark.parametrize("n", [1, 3, 20, 49, 50, 60])
def test_few_images(mixed, quick, n):
    found = invariant_filter(mixed[0][:n])
    assert_sane(found, n)
    assert (found.learned is None) == (n < 50)
    assert np.isfinite(found.threshold) == (n >= 50)
    np.testing.assert_equal(found.cut, found.threshold)
    if found.learned is None:
        assert (found.score == 0).all() and found.keep.all() and set(found.suspicion) == {"unlike"}
    else:
        assert len(set(found.score)) == n


def test_few_images_among_others_that_cannot_be_judged(mixed, quick):
    images = mixed[0][:70].copy()
    images[:21] = 0
    found = invariant_filter(images)
    assert_sane(found, 70)
    assert found.learned is None and found.keep.sum() == 49
    images[20] = mixed[0][20]
    found = invariant_filter(images)
    assert_sane(found, 70)
    assert len(found.learned.junk) == 1 and np.isfinite(found.threshold)


def test_nothing_but_images_that_cannot_be_judged():
    found = invariant_filter(np.zeros((60, 32, 32), dtype=np.float32))
    assert_sane(found, 60)
    assert found.learned is None and not found.keep.any()
    assert set(found.reason) == {"flat"}


def test_nothing_but_noise(quick):
    images = np.random.default_rng(0).standard_normal((300, 40, 40)).astype(np.float32)
    found = invariant_filter(images)
    assert_sane(found, 300)
    # No average shows anything.
    assert not found.learned.resolved.any() and set(found.suspicion) == {"noise"}


def test_copies_of_one_image_are_judged_alike(mixed, quick):
    found = invariant_filter(np.repeat(mixed[0][:1], 80, axis=0))
    assert_sane(found, 80)
    assert np.ptp(found.score) < 1e-3 and found.keep.all()


@pytest.mark.parametrize("dtype", ["float16", ">f4", "<f8", "int16", ">i2", "uint8"])
def test_any_type_and_read_only_maps(mixed, quick, tmp_path, dtype):
    images = mixed[0][:60]
    if np.dtype(dtype).kind in "iu":
        images = np.clip(20 * images + 128, 0, 255).round()
    np.save(tmp_path / "images.npy", images.astype(dtype))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    expected = invariant_filter(np.array(mapped, dtype=np.float32))
    assert_identical(invariant_filter(mapped), expected)


SOME = np.zeros((4, 32, 32), np.float32)


@pytest.mark.parametrize(
    ("images", "more", "says"),
    [
        (SOME[:0], {}, "no images"),
        (SOME[:, :, :30], {}, "square"),
        (SOME[0], {}, r"\(n, d, d\)"),
        (SOME, {"seed": -1}, "seed must be a whole number"),
        (SOME, {"seed": 0.5}, "seed must be a whole number"),
        (SOME, {"radius": 16.5}, "diameter is 33.0 px, but the box has only 32 px"),
        (SOME, {"radius": -3}, "radius must be positive; got -3"),
        (SOME, {"radius": 0}, "radius must be positive; got 0"),
        (SOME, {"radius": math.nan}, "radius must be positive; got nan"),
        (SOME, {"radius": "wide"}, "radius must be a number"),
    ],
)
def test_mistakes_are_told(images, more, says):
    with pytest.raises(InputError, match=says) as told:
        invariant_filter(images, **more)
    assert "\n" not in str(told.value)


# The bulk.


def cloud(seed, n=400, p=4):
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((p, p)))[0] * rng.uniform(0.5, 2, p)
    return rng.standard_normal((n, p)) @ axes.T + rng.normal(0, 10, p)


@few_examples
@given(seed=seeds, p=st.integers(2, 6))
def test_mean_of_the_bulk_is_that_of_the_concentration_steps(seed, p):
    values = cloud(seed, 200, p)
    values[:20] += 50
    expected = naive.concentrated(values, 0.75, 3)
    found = fit_bulk(values)
    # One image on the border may be chosen otherwise.
    assert distance(expected[None], found)[0] < 0.06


@few_examples
@given(seed=seeds, p=st.integers(1, 8))
def test_distances_are_those_of_mahalanobis_and_of_a_gaussian(seed, p):
    values = cloud(seed, 500, p)
    found = fit_bulk(values)
    moved = values - found.mean
    expected = [math.sqrt(row @ found.precision @ row) for row in moved]
    np.testing.assert_allclose(distance(values, found), expected, rtol=1e-6, atol=1e-9)
    assert np.median(np.square(expected)) == pytest.approx(p - 0.7, rel=0.01)
    # And that is about right.
    assert p == 1 or scipy.stats.chi2.median(p) == pytest.approx(p - 0.7, rel=0.08)
    np.testing.assert_allclose(
        excess_distance(values, found), np.maximum(np.array(expected) - p**0.5, 0), atol=1e-6
    )


@few_examples
@given(seed=seeds)
def test_a_tenth_of_outliers_does_not_move_the_bulk(seed):
    values = cloud(seed)
    clean = fit_bulk(values)
    dirty = values.copy()
    direction = np.linalg.cholesky(np.linalg.inv(clean.precision)) @ np.ones(4)
    dirty[:40] += 30 * direction
    found = fit_bulk(dirty)
    assert distance(found.mean[None], clean)[0] < 0.5
    # As scikit-learn has it, and unlike the plain mean.
    robust = MinCovDet(support_fraction=0.75, random_state=0).fit(dirty)
    assert distance(robust.location_[None], found)[0] < 0.5
    assert distance(dirty.mean(axis=0)[None], clean)[0] > 2
    assert (excess_distance(dirty[:40], found) > 5).all()


@few_examples
@given(seed=seeds)
def test_axes_of_the_measurements_do_not_matter_to_the_bulk(seed):
    values = cloud(seed)
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0] * rng.uniform(0.5, 2, 4)
    one, other = fit_bulk(values), fit_bulk(values @ turn + 3)
    np.testing.assert_allclose(
        distance(values @ turn + 3, other), distance(values, one), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_bulk_of_next_to_nothing(n):
    values = np.arange(3.0 * n).reshape(n, 3)
    found = fit_bulk(values)
    assert isinstance(found, Bulk)
    np.testing.assert_allclose(found.mean, values.mean(axis=0))
    assert np.isfinite(found.precision).all() and np.isfinite(distance(values, found)).all()


def test_bulk_of_measurements_that_are_all_the_same():
    found = fit_bulk(np.full((50, 3), 2.0))
    np.testing.assert_allclose(found.mean, 2)
    np.testing.assert_array_equal(distance(np.full((5, 3), 2.0), found), 0)
