"""The invariant filter: what it finds, what does not matter to it, its score by hand, and ugly images."""

from __future__ import annotations

import functools
import math

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
from fastsort.invariants import filter as module
from fastsort.invariants.features import invariant_features
from fastsort.invariants.filter import invariant_filter
from fastsort.particles.source import Particles
from fastsort.particles.store import ArrayImages

seeds = st.integers(0, 2**32 - 1)
few_examples = settings(max_examples=15, deadline=None)


def simulated(n_good, n_junk, seed=0, box=48, snr=0.05, junk="paper", **more):
    return fs.simulate_particles(n_good, n_junk, snr=snr, box=box, junk=junk, seed=seed, **more)


@pytest.fixture(scope="module")
def mixed():
    return simulated(300, 300)


@pytest.fixture(scope="module")
def result(mixed):
    return invariant_filter(mixed[0])


def assert_identical(one, other):
    for name, a, b in zip(one._fields, one, other, strict=True):
        if isinstance(a, tuple):
            assert_identical(a, b)
        else:
            np.testing.assert_array_equal(a, b, name)


def assert_sane(found, n):
    """Assert what holds of every result."""
    assert all(len(column) == n for column in found[:5])
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


# What it finds.


@pytest.mark.parametrize(("volume", "box"), [("globular", 65), ("two-lobed", 48), ("shell", 64)])
def test_particles_are_found_in_noise(volume, box):
    images, truth = simulated(300, 300, 1, box, volume=volume)
    found = invariant_filter(images)
    assert_sane(found, 600)
    assert roc_auc_score(~truth.label, found.score) > 0.9
    some = truth.label | (truth.kind == "noise")
    assert roc_auc_score(~truth.label[some], found.score[some]) > 0.93


def test_contamination_is_found():
    images, truth = simulated(400, 80, 2, junk=("carbon", "photograph"), snr=0.1)
    found = invariant_filter(images)
    assert_sane(found, 480)
    assert roc_auc_score(~truth.label, found.score) > 0.9


def test_clean_set_loses_few():
    images, _ = simulated(600, 0, 3, snr=0.1)
    found = invariant_filter(images)
    assert_sane(found, 600)
    assert found.keep.mean() >= 0.9


# What does not matter.


@functools.cache
def learned_in(box):
    """Images, what is learned from them, and their scores by that."""
    images, _ = simulated(120, 80, 4, box)
    learned = invariant_filter(images).learned
    return images, learned, invariant_filter(images, learned=learned).score


@pytest.mark.parametrize("box", [33, 48, 63])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turns_do_not_change_scores(box, turns):
    images, learned, plain = learned_in(box)
    turned = np.rot90(images, turns, (1, 2))
    if box % 2 == 0:
        # Pixel box // 2 is the centre, and it is not the middle of the box.
        turned = np.roll(turned, {1: (1, 0), 2: (1, 1), 3: (0, 1)}[turns], (1, 2))
    other = invariant_filter(turned, learned=learned).score
    assert np.abs(other - plain).max() < (0.02 if box <= 36 else 0.4) * plain.std()


def test_handedness_does_not_change_scores():
    images, learned, plain = learned_in(33)
    other = invariant_filter(images[:, ::-1], learned=learned).score
    assert np.abs(other - plain).max() < 0.02 * plain.std()


def test_grey_values_do_not_change_scores(mixed, result):
    factor = np.exp(np.random.default_rng(0).normal(0, 1, (600, 1, 1)))
    other = invariant_filter((factor * mixed[0] + 10 * factor).astype(np.float32))
    np.testing.assert_allclose(other.score, result.score, rtol=1e-3, atol=0.02)
    assert (other.keep == result.keep).mean() > 0.99


def test_order_of_images_does_not_matter(mixed, result):
    order = np.random.default_rng(0).permutation(600)
    other = invariant_filter(mixed[0][order])
    np.testing.assert_allclose(other.score, result.score[order], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(other.keep, result.keep[order])


def test_learned_before_gives_the_same_scores(mixed, result):
    again = invariant_filter(mixed[0], learned=result.learned)
    assert_identical(again, result)
    some = np.arange(600) % 3 == 0
    part = invariant_filter(mixed[0][some], learned=result.learned)
    # Products of other sizes are rounded otherwise.
    np.testing.assert_allclose(part.score, result.score[some], rtol=1e-4, atol=1e-4)
    one = invariant_filter(mixed[0][:1], learned=result.learned)
    assert one.score == pytest.approx(result.score[0], rel=1e-4, abs=1e-4)
    assert_sane(one, 1)


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_workers_do_not_change_bits(mixed, result, backend):
    # Several batches.
    images = np.concatenate([mixed[0], mixed[0]])
    with joblib.parallel_config(backend=backend):
        two = invariant_filter(images, n_jobs=2)
    assert_identical(invariant_filter(images, n_jobs=1), two)


def test_seed_chooses_the_sample_of_a_large_set(monkeypatch):
    images, truth = simulated(150, 100)
    monkeypatch.setattr(module, "N_SAMPLED", 200)
    one, same, other = (invariant_filter(images, seed=seed) for seed in (1, 1, 2))
    assert_identical(one, same)
    assert (one.score != other.score).any()
    for found in (one, other):
        assert roc_auc_score(~truth.label, found.score) > 0.85


def test_progress_counts_up(mixed):
    seen = []
    invariant_filter(mixed[0], progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (600, 600)


def test_images_are_not_changed(mixed):
    images = mixed[0][:60].copy()
    invariant_filter(images)
    np.testing.assert_array_equal(images, mixed[0][:60])


# The score by hand.


def log_features(images):
    """Logarithms of what is left of the images when they are faded out."""
    box = images.shape[-1]
    y, x = np.mgrid[:box, :box] - box // 2
    distances = np.hypot(y, x)
    normalized = []
    for image in images:
        background = image[distances > box / 2]
        normalized.append((image - background.mean()) / background.std())
    faded = np.array(normalized) / (1 + np.exp((distances - 0.3 * box) / module.EDGE))
    source = Particles(ArrayImages(faded.astype(np.float32)), box, 1.0)
    features = invariant_features(source, module.MAX_ORDER, noise_floor=None, oversampling=1)
    return np.log(features + module.SMALLEST)


@pytest.mark.parametrize("box", [32, 35, 48])
def test_score_is_that_of_three_gaussians(box):
    images, _ = simulated(100, 60, 5, box)
    found = invariant_filter(images)
    learned = found.learned
    size = min(box, module.GRID)
    working = np.array([naive.fourier_crop(image, size) for image in images]) if box > size else images
    standard = (log_features(working) - learned.centre) / learned.scale
    places = (np.clip(standard, -module.LARGEST, module.LARGEST) - learned.origin) @ learned.axes
    particle, background = (
        (bulk.mean, np.linalg.inv(bulk.precision)) for bulk in (learned.particle, learned.background)
    )
    expected = naive.strangeness_score(places, particle, background, math.exp(-2), 3.0)
    np.testing.assert_allclose(found.score, expected, rtol=0.01, atol=0.05)
    odd = naive.log_gaussian(places, particle[0], 9 * particle[1]) - 2
    strange = odd > naive.log_gaussian(places, *background)
    assert (strange == (found.suspicion == "unlike")).mean() > 0.99
    assert np.corrcoef(found.score, expected)[0, 1] > 0.9999


def test_learned_is_standardized_by_displaced_places(result):
    learned = result.learned
    assert learned.axes.shape[1] == module.N_AXES
    np.testing.assert_allclose(learned.axes.T @ learned.axes, np.eye(module.N_AXES), atol=1e-9)
    assert len(learned.displaced_scores) == 3 * 600
    # Displaced places are junk to it.
    assert np.median(learned.displaced_scores) > np.median(result.score[result.keep])


# Ugly images.


@pytest.mark.parametrize(("box", "snr"), [(33, 0.1), (16, 0.3), (47, 0.1)])
def test_odd_and_small_boxes(box, snr):
    images, truth = simulated(100, 60, 6, box, snr)
    found = invariant_filter(images)
    assert_sane(found, 160)
    assert roc_auc_score(~truth.label, found.score) > 0.75


def test_images_that_cannot_be_judged(mixed, result):
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
    # They are not learned from.
    assert_identical(found.learned, invariant_filter(images[:200]).learned)


@pytest.mark.parametrize("n", [1, 2, 23, 24, 25, 49, 50, 51])
def test_few_images(mixed, n):
    found = invariant_filter(mixed[0][:n])
    assert_sane(found, n)
    assert (found.learned is None) == (n <= 24)
    assert np.isfinite(found.threshold) == (n >= 50)
    np.testing.assert_equal(found.cut, found.threshold)
    if found.learned is None:
        assert (found.score == 0).all()


def test_nothing_but_images_that_cannot_be_judged():
    found = invariant_filter(np.zeros((60, 32, 32), dtype=np.float32))
    assert_sane(found, 60)
    assert found.learned is None and not found.keep.any()
    assert set(found.reason) == {"flat"}


def test_nothing_but_noise():
    images = np.random.default_rng(0).standard_normal((300, 40, 40)).astype(np.float32)
    found = invariant_filter(images)
    assert_sane(found, 300)


@pytest.mark.parametrize("dtype", ["float16", ">f4", "<f8", "int16", ">i2", "uint8"])
def test_any_type_and_read_only_maps(mixed, tmp_path, dtype):
    images = mixed[0][:150]
    if np.dtype(dtype).kind in "iu":
        images = np.clip(20 * images + 128, 0, 255).round()
    np.save(tmp_path / "images.npy", images.astype(dtype))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    expected = invariant_filter(np.array(mapped, dtype=np.float32))
    assert_identical(invariant_filter(mapped), expected)


@pytest.mark.parametrize(
    ("images", "more"),
    [
        (np.zeros((0, 32, 32), np.float32), {}),
        (np.zeros((4, 32, 30), np.float32), {}),
        (np.zeros((32, 32), np.float32), {}),
        (np.zeros((4, 32, 32), np.float32), {"seed": -1}),
        (np.zeros((4, 32, 32), np.float32), {"seed": 0.5}),
    ],
)
def test_mistakes_are_told(images, more):
    with pytest.raises(InputError):
        invariant_filter(images, **more)


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
