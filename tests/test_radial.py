"""The radial filter that learns its template: helpers, accuracy, and what must not matter."""

from __future__ import annotations

import math

import joblib
import naive
import numpy as np
import pytest
import scipy.stats
import sklearn.cluster
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsort import radial_filter, simulate_particles
from fastsort._threshold import fit_scores, junk_probability
from fastsort.images.normalize import normalize_background
from fastsort.radial.discriminant import (
    Discriminant,
    discriminant_score,
    fit_discriminant,
    outlyingness,
)
from fastsort.radial.evidence import N_FEATURES, radial_features
from fastsort.radial.published import cluster_peaks
from fastsort.radial.template import (
    RadialTemplate,
    backward,
    forward,
    gains,
    learn_template,
    matched_filter,
    n_used,
    ring_count,
    ring_power,
    ring_sum,
    waves,
)

examples = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**32 - 1)
FIELDS = (
    "keep",
    "score",
    "reason",
    "centre",
    "suspicion",
    "nearest",
    "strongest",
    "n_clusters",
    "n_scattered",
    "peak",
    "second_peak",
    "outlyingness",
    "junk_probability",
    "threshold",
    "radius",
    "contrast",
)


def white_noise(seed, n, d):
    return np.random.default_rng(seed).normal(size=(n, d, d)).astype(np.float32)


def filtered(images, curve):
    """Images (n, d, d) whose waves are multiplied with a radial curve."""
    maps = backward(forward(images), gains(curve, images.shape[1]))
    return np.ascontiguousarray(maps.transpose(1, 0, 2))


def some_template(seed, box, radius):
    """A smooth particle of about the radius in noise whose power falls to a quarter, with scatter."""
    rng = np.random.default_rng(seed)
    frequency = np.arange(box // 2 + 1) / box
    signal = 50 * np.exp(-0.5 * (np.pi * frequency * radius) ** 2) * rng.uniform(0.8, 1.2, len(frequency))
    signal[0] = 0
    noise = (0.25 + 0.75 / (1 + (8 * frequency) ** 2)) * rng.uniform(0.8, 1.2, len(frequency))
    return RadialTemplate(signal, noise, noise * rng.uniform(1, 1.5, len(frequency)), 1)


def area_under_curve(score, label):
    """Chance that a particle has a lower score than junk."""
    ranks = scipy.stats.rankdata(score)
    n_junk = np.count_nonzero(~label)
    return (ranks[~label].sum() - n_junk * (n_junk + 1) / 2) / (n_junk * np.count_nonzero(label))


def assert_identical(actual, expected):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), name)


def assert_sane(result, n):
    """Assert what holds of every result, whatever the images were."""
    assert all(len(getattr(result, name)) == n for name in FIELDS[:13])
    assert not np.isnan(result.score).any()
    np.testing.assert_array_equal(result.keep, result.reason == "valid")
    unfit = np.isin(result.reason, ("bad_pixels", "flat"))
    np.testing.assert_array_equal(np.isinf(result.score), unfit)
    assert np.isfinite(result.centre).all()
    where = np.where(result.keep[:, None], result.nearest, result.strongest)
    np.testing.assert_array_equal(result.centre, where)
    assert not np.isin(result.suspicion, ("valid", "duplicate", "rare_view")).any()
    np.testing.assert_array_equal(result.suspicion[~result.keep], result.reason[~result.keep])


@pytest.fixture(scope="module")
def mixed():
    return simulate_particles(300, 300, snr=0.05, box=36, seed=1)


@pytest.fixture(scope="module")
def mixed_result(mixed):
    return radial_filter(mixed[0])


# Helpers against the slow versions.


@examples
@given(seed=seeds, box=st.integers(16, 48))
def test_ring_power_is_the_naive_one(seed, box):
    images = white_noise(seed, 3, box)
    np.testing.assert_allclose(
        ring_power(images), [naive.ring_power(one) for one in images], rtol=1e-4, atol=1e-7
    )


@examples
@given(seed=seeds, box=st.integers(16, 48))
def test_ring_sums_of_waves_at_a_place_are_ring_means_of_the_moved_transform(seed, box):
    image = white_noise(seed, 1, box)
    y, x = np.random.default_rng(seed).integers(box, size=2)
    centred = np.roll(image[0].astype(np.float64), (-y, -x), axis=(0, 1))
    here = np.outer(waves(box)[:, y], waves(box)[:, x])
    actual = ring_sum(forward(image)[:, 0] * here) / ring_count(box) * box**2
    np.testing.assert_allclose(actual, naive.ring_mean(np.fft.fft2(centred).real), atol=1e-3)


@examples
@given(seed=seeds, box=st.integers(16, 48), share=st.floats(0, 1))
def test_images_come_back_filtered(seed, box, share):
    images = white_noise(seed, 3, box)
    curve = np.random.default_rng(seed).normal(size=box // 2 + 1)
    curve[1 + round(share * (len(curve) - 1)) :] = 0
    plane = gains(curve, box)
    used = n_used(plane)
    assert used == 1 or plane[used - 1].any()
    for some in (plane, plane[:used, :used]):
        for one, actual in zip(images, backward(forward(images), some).transpose(1, 0, 2), strict=True):
            np.testing.assert_allclose(actual, naive.filter_radially(one, curve), atol=1e-4)


@pytest.mark.parametrize("box", [32, 33, 48])
def test_matched_filter_answers_noise_with_deviation_1(box):
    template = some_template(box, box, 0.28 * box)
    curve = matched_filter(template, box)
    np.testing.assert_allclose(curve, naive.matched_filter(template.signal, template.noise, box), rtol=1e-9)
    response = filtered(filtered(white_noise(1, 600, box), np.sqrt(template.noise)), curve)
    assert response.std() == pytest.approx(1, abs=0.03)


@examples
@given(data=st.data(), seed=seeds, box=st.integers(16, 44), part=st.floats(0.12, 0.45))
def test_features_are_the_naive_ones(data, seed, box, part):
    radius = part * box
    template = some_template(seed, box, radius)
    anywhere = st.tuples(st.integers(-box, box), st.integers(-box, box))
    places = data.draw(st.lists(anywhere, min_size=1, max_size=3))
    images = white_noise(seed, 2, box)
    features, peaks, response = radial_features(images, template, radius, tuple(places))
    assert features.shape == (len(places), 2, N_FEATURES)
    for k, place in enumerate(places):
        for i, image in enumerate(images):
            expected = naive.radial_measurement(image, *template[:3], radius, place)
            np.testing.assert_allclose(response[i], expected.response, atol=1e-4)
            np.testing.assert_allclose(features[k, i], expected.features, atol=2e-3)
            if k == len(places) - 1:
                assert peaks.near[i] == pytest.approx(expected.near, abs=1e-4)
                assert peaks.other[i] == pytest.approx(expected.other, abs=1e-3)
                np.testing.assert_allclose(peaks.near_shift[i], expected.near_shift, atol=0.05)
                np.testing.assert_array_equal(peaks.other_shift[i], expected.other_shift)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, box=st.integers(16, 48), n_peaks=st.integers(1, 24), quarters=st.integers(2, 40))
def test_cluster_counts_are_those_of_scikit_learn(seed, box, n_peaks, quarters):
    maps = filtered(white_noise(seed, 3, box), np.exp(-np.arange(box // 2 + 1) / 4))
    counts = cluster_peaks(maps, quarters / 4, n_peaks)
    minimum = max(1, round(n_peaks / 3))
    for one, (n_clusters, n_scattered) in zip(maps, counts, strict=True):
        points = naive.top_peaks(one, n_peaks)
        labels = sklearn.cluster.DBSCAN(eps=quarters / 4, min_samples=minimum).fit_predict(points)
        assert n_clusters == labels.max() + 1
        assert n_scattered == np.count_nonzero(labels == -1)


def test_cluster_counts_of_the_filter_are_within_what_was_clustered(mixed_result):
    # A box of 36 px has 7 peaks, of which 2 make a cluster.
    assert (2 * mixed_result.n_clusters + mixed_result.n_scattered <= 7).all()
    assert mixed_result.n_clusters.min() >= 0
    assert len(np.unique(mixed_result.n_clusters)) > 1


# The discriminant.


def two_clouds(seed, n=800, p=5):
    """Features of particles (half of the images) and of junk, which looks like the displaced places.

    Picked noise has a part of what particles have.
    """
    rng = np.random.default_rng(seed)
    difference = np.array([3.0, 1.0, -2.0, 0.5, 0.0])[:p]
    mixing = np.eye(p) + 0.3 * rng.normal(size=(p, p))
    mixing[0] = np.eye(p)[0]
    label = np.arange(n) % 2 == 0
    centred = (rng.normal(size=(n, p)) + 2 * label[:, None] * difference) @ mixing.T
    displaced = rng.normal(size=(3, n, p)) @ mixing.T
    picked = (rng.normal(size=(400, p)) + 0.3 * difference) @ mixing.T
    return centred, displaced, picked, label, mixing @ difference * 2, mixing @ mixing.T


@pytest.mark.parametrize("seed", range(3))
def test_discriminant_finds_fishers_direction(seed):
    centred, displaced, picked, label, difference, covariance = two_clouds(seed)
    fitted = fit_discriminant(centred, displaced, picked, np.ones(len(centred), dtype=bool))
    fisher = np.linalg.solve(covariance, difference)
    # Compared in coordinates where the noise is round.
    root = np.linalg.cholesky(covariance)
    for direction in fitted.direction:
        actual, expected = root.T @ direction, root.T @ fisher
        assert actual @ expected > 0.95 * np.linalg.norm(actual) * np.linalg.norm(expected)
    assert area_under_curve(discriminant_score(centred, fitted), label) > 0.99
    assert np.median(outlyingness(centred[label], fitted)) < 0.5
    # The typical particle scores 0, and displaced places scatter by 1.
    assert abs(np.median(discriminant_score(centred[label], fitted))) < 0.7
    assert 0.7 < discriminant_score(displaced[0], fitted).std() < 2


def test_units_of_the_features_do_not_matter_to_the_discriminant():
    centred, displaced, picked, _, _, _ = two_clouds(3)
    units = np.array([10, 0.1, 3, 50, 0.5])
    usable = np.ones(len(centred), dtype=bool)
    before = discriminant_score(centred, fit_discriminant(centred, displaced, picked, usable))
    moved = fit_discriminant(centred * units, displaced * units, picked * units, usable)
    after = discriminant_score(centred * units, moved)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_score_is_the_distance_told():
    rng = np.random.default_rng(4)
    root = rng.normal(size=(4, 4))
    directions, origins = rng.normal(size=(2, 4)), rng.normal(size=2)
    discriminant = Discriminant(directions, origins, rng.normal(size=4), root @ root.T, 2.0, 0.4)
    # In results of version 0.1.0 there is one direction.
    former = discriminant._replace(direction=directions[0], origin=0.7, unit=1.0, penalty=0.7)
    features = 3 * rng.normal(size=(30, 4))
    for one, score in zip(features, discriminant_score(features, discriminant), strict=True):
        offset = one - discriminant.mean
        distance = math.sqrt(offset @ discriminant.precision @ offset)
        odds = [
            math.exp(-(one @ direction - origin))
            for direction, origin in zip(directions, origins, strict=True)
        ]
        assert score == pytest.approx(math.log(sum(odds)) / 2 + 0.4 * max(distance - 2, 0))
        along = one @ former.direction - former.origin
        alone = discriminant_score(one[None], former)[0]
        assert alone == pytest.approx(-along + 0.7 * max(distance - 2, 0))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_cut_between_two_bulks_is_where_their_densities_cross(share):
    rng = np.random.default_rng(5)
    n = 4000
    label = rng.uniform(size=n) < share
    scores = np.where(label, rng.normal(0, 1, n), rng.normal(6, 1.3, n))
    model = fit_scores(scores, rng.normal(6, 1.3, n))
    grid = np.linspace(0, 6, 6001)
    junk = (1 - share) * scipy.stats.norm.pdf(grid, 6, 1.3)
    crossing = grid[np.argmax(junk > share * scipy.stats.norm.pdf(grid, 0, 1))]
    assert model.threshold == pytest.approx(crossing, abs=0.4)
    assert model.weights[0] == pytest.approx(share, abs=0.03)
    probability = junk_probability(np.linspace(-20, 50, 500), model)
    assert (np.diff(probability) >= -1e-12).all()
    assert probability[0] < 0.05 and probability[-1] > 0.95
    assert (junk_probability(scores[scores > model.threshold], model) > 0.49).all()


# The template.


@pytest.mark.parametrize("contrast", ["bright", "dark"])
@pytest.mark.parametrize("volume", ["globular", "shell"])
def test_template_is_the_radial_mean_of_the_particles(volume, contrast):
    made = {"box": 36, "volume": volume, "contrast": contrast, "seed": 2}
    images, truth = simulate_particles(500, 500, snr=0.05, **made)
    clean, _ = simulate_particles(500, 500, snr=math.inf, **made)
    radius = truth.diameter / truth.pixel_size / 2
    normalize_background(images, radius)
    template, given = learn_template(images, radius)
    assert given == radius
    assert template.sign == (1 if contrast == "bright" else -1)
    expected = naive.radial_signal(clean[truth.label].mean(axis=0))
    assert np.corrcoef(template.signal[1:], expected[1:])[0, 1] > 0.95
    np.testing.assert_allclose(template.noise[2:].mean(), 1, atol=0.3)


@pytest.mark.parametrize("box", [36])
@pytest.mark.parametrize("volume", ["globular", "elongated", "shell", "two-lobed"])
def test_radius_is_found(volume, box):
    images, truth = simulate_particles(400, 400, snr=0.05, box=box, volume=volume, seed=3)
    expected = truth.diameter / truth.pixel_size / 2
    # The diameter is the longest extent; of a long particle the rotational mean shows less.
    tolerance = 0.4 if volume == "elongated" else 0.35
    assert radial_filter(images).radius == pytest.approx(expected, rel=tolerance)


# Accuracy.


@pytest.mark.parametrize("box", [33, 64])
@pytest.mark.parametrize("volume", ["globular", "shell"])
def test_accuracy_at_a_ratio_of_1_to_20(volume, box):
    # As in the paper, but for doubles of which one is in the middle: its centre is that of a weak particle.
    paper = {"snr_definition": "mean", "noise": "radial", "fill": 0.57, "source_box": 85, "centring": 0}
    images, truth = simulate_particles(
        600, 600, snr=1 / 20, box=box, volume=volume, junk=("noise", "partial"), seed=4, **paper
    )
    result = radial_filter(images)
    assert_sane(result, 1200)
    assert result.contrast == "bright"
    assert result.keep[truth.label].mean() >= 0.98
    assert (~result.keep[~truth.label]).mean() >= 0.98


def known_template_scores(images, clean, truth):
    """Answers at the centre of the best radial filter there is: it is told particles, noise and labels."""
    box = images.shape[1]
    signal = naive.radial_signal(clean[truth.label].mean(axis=0))
    noise = np.mean([naive.ring_power(one) for one in images[truth.kind == "noise"][:100]], axis=0)
    curve = naive.matched_filter(signal, noise, box)
    return np.array([-naive.filter_radially(one, curve)[box // 2, box // 2] for one in images])


@pytest.mark.parametrize("volume", ["globular", "shell"])
def test_at_a_ratio_of_1_to_50_learning_costs_little(volume):
    made = {"box": 33, "volume": volume, "seed": 5}
    images, truth = simulate_particles(1000, 1000, snr=1 / 50, **made)
    clean, _ = simulate_particles(1000, 1000, snr=math.inf, **made)
    radius = truth.diameter / truth.pixel_size / 2
    score = radial_filter(images, radius).score
    best = known_template_scores(images, clean, truth)
    judged = truth.label | (truth.kind == "noise")
    reached = area_under_curve(score[judged], truth.label[judged])
    possible = area_under_curve(best[judged], truth.label[judged])
    assert reached > possible - 0.04


def test_dark_particles_get_the_verdict_of_bright_ones(mixed, mixed_result):
    dark = radial_filter(-mixed[0])
    assert dark.contrast == "dark"
    np.testing.assert_array_equal(dark.keep, mixed_result.keep)
    np.testing.assert_allclose(dark.score, mixed_result.score, rtol=1e-3, atol=1e-3)
    told = radial_filter(-mixed[0], contrast="dark")
    np.testing.assert_array_equal(told.keep, mixed_result.keep)


@pytest.mark.parametrize("snr", [0.05, 0.1])
def test_clean_set_loses_few(snr):
    images, _ = simulate_particles(600, 0, snr=snr, box=36, seed=6)
    assert radial_filter(images).keep.mean() >= 0.94


def test_nothing_but_noise_gives_a_verdict():
    images, _ = simulate_particles(0, 400, junk="noise", box=33, seed=7)
    result = radial_filter(images)
    assert_sane(result, 400)
    assert np.isfinite(result.threshold) and result.cut == result.threshold


# What must not matter.


def test_order_of_the_images_does_not_matter(mixed, mixed_result):
    order = np.random.default_rng(8).permutation(len(mixed[0]))
    shuffled = radial_filter(mixed[0][order])
    assert (shuffled.keep != mixed_result.keep[order]).mean() <= 0.01
    assert np.corrcoef(shuffled.score, mixed_result.score[order])[0, 1] > 0.999


@pytest.mark.parametrize(("scale", "offset"), [(1e-3, 0), (100, 0), (1, 50), (7, -300)])
def test_brightness_and_contrast_do_not_matter(mixed, mixed_result, scale, offset):
    changed = radial_filter((mixed[0].astype(np.float64) * scale + offset).astype(np.float32))
    assert (changed.keep != mixed_result.keep).mean() <= 0.01
    assert np.corrcoef(changed.score, mixed_result.score)[0, 1] > 0.999


def test_each_image_may_have_its_own_brightness(mixed, mixed_result):
    rng = np.random.default_rng(9)
    scale, offset = rng.uniform(0.1, 10, (600, 1, 1)), rng.uniform(-30, 30, (600, 1, 1))
    changed = radial_filter((mixed[0] * scale + offset).astype(np.float32))
    assert (changed.keep != mixed_result.keep).mean() <= 0.01


def test_workers_and_backends_do_not_change_bits(mixed, mixed_result):
    for n_jobs in (1, 2, 3):
        assert_identical(radial_filter(mixed[0], n_jobs=n_jobs), mixed_result)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert_identical(radial_filter(mixed[0]), mixed_result)


# Ugly input.


@pytest.mark.parametrize("n", [1, 2, 3, 49])
def test_few_images_are_all_kept(mixed, n):
    result = radial_filter(mixed[0][:n])
    assert_sane(result, n)
    assert result.keep.all()
    assert math.isnan(result.threshold)
    assert np.isnan(result.junk_probability).all()


def test_few_images_of_which_some_are_unfit(mixed):
    images = mixed[0][:20].copy()
    images[3] = 5
    images[7, 2, 2] = np.nan
    result = radial_filter(images)
    assert_sane(result, 20)
    assert result.reason[3] == "flat"
    assert result.reason[7] == "bad_pixels"
    assert result.keep.sum() == 18


@pytest.mark.parametrize("n", [1, 60])
@pytest.mark.parametrize(("value", "reason"), [(0, "flat"), (0.1, "flat"), (np.nan, "bad_pixels")])
def test_nothing_can_be_judged(n, value, reason):
    result = radial_filter(np.full((n, 20, 20), value, dtype=np.float32))
    assert_sane(result, n)
    assert (result.reason == reason).all()
    assert not result.keep.any()


def test_unfit_images_leave_the_verdict_on_others_alone(mixed, mixed_result):
    images = mixed[0].copy()
    images[0:5] = 3
    images[5:10, 4, 4] = np.nan
    images[10:15, 0, 0] = np.inf
    images[15:20, 20, 20] += 100 * images.std()
    result = radial_filter(images)
    assert_sane(result, 600)
    assert (result.reason[:5] == "flat").all()
    assert (result.reason[5:20] == "bad_pixels").all()
    assert (result.junk_probability[:20] == 1).all()
    assert (result.keep[20:] != mixed_result.keep[20:]).mean() <= 0.02


@pytest.mark.parametrize("box", [16, 17, 19, 35, 37, 51])
def test_small_and_odd_boxes(box):
    images, truth = simulate_particles(100, 100, snr=0.5, box=box, seed=10)
    result = radial_filter(images)
    assert_sane(result, 200)
    assert result.keep[truth.label].mean() > 0.9
    assert (~result.keep[np.isin(truth.kind, ("noise", "partial"))]).mean() > 0.7


@pytest.mark.parametrize("dtype", ["<f2", ">f2", ">f4", "<f8"])
def test_any_type_of_read_only_memory_map(mixed, dtype, tmp_path):
    exact = mixed[0][:200].astype(np.float16).astype(np.float32)
    np.save(tmp_path / "images.npy", exact.astype(dtype))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert not mapped.flags.writeable
    assert_identical(radial_filter(mapped), radial_filter(exact))


def test_input_is_left_as_it_was(mixed):
    images = mixed[0][:80].copy()
    images[3, 3, 3] = np.nan
    before = images.copy()
    radial_filter(images)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("n", [2, 60])
def test_the_same_image_again_and_again(mixed, n):
    result = radial_filter(np.repeat(mixed[0][:1], n, axis=0))
    assert_sane(result, n)
    assert len(np.unique(result.keep)) == 1
    np.testing.assert_allclose(result.score, result.score[0], atol=1e-3)


def test_half_of_the_images_twice(mixed):
    images = np.concatenate([mixed[0][:150], mixed[0][:150]])
    result = radial_filter(images)
    np.testing.assert_array_equal(result.keep[:150], result.keep[150:])
    np.testing.assert_allclose(result.score[:150], result.score[150:], atol=1e-4)


# What was learned once.


def test_what_was_learned_gives_the_same_scores_again(mixed, mixed_result):
    again = radial_filter(mixed[0], learned=mixed_result.learned)
    assert_identical(again, mixed_result)
    for one in ("template", "discriminant"):
        for actual, expected in zip(
            getattr(again.learned, one), getattr(mixed_result.learned, one), strict=True
        ):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_a_few_images_are_scored_by_what_was_learned_from_many(mixed, mixed_result, n):
    found = radial_filter(mixed[0][100 : 100 + n], learned=mixed_result.learned)
    # Sums over other batches differ in their last bits.
    np.testing.assert_allclose(found.score, mixed_result.score[100 : 100 + n], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.strongest, mixed_result.strongest[100 : 100 + n], atol=0.02)
    assert (found.radius, found.contrast) == (mixed_result.radius, mixed_result.contrast)


def test_published_rules_and_empty_sets_learn_nothing(mixed):
    assert radial_filter(mixed[0][:60], 5.0, preset="published").learned is None
    assert radial_filter(np.zeros((5, 36, 36), dtype=np.float32)).learned is None
