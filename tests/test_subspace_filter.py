"""Shapes of particles and background, the filter built on them, and its threshold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsort as fs
from fastsort._bulk import fit_bulk
from fastsort._threshold import balanced_threshold, valley
from fastsort.report.accuracy import measure_accuracy
from fastsort.subspaces.evidence import coefficients_of, compare, frequency_bands, log_powers, ratios_beside
from fastsort.subspaces.pictures import eigenimages
from fastsort.subspaces.pswf import angular_blocks, pswf_basis, pswf_coefficients
from fastsort.subspaces.shapes import distances, fit_shape, log_ratio, regularize

BASIS = pswf_basis(24, 0.25)
LENGTH = len(BASIS.angular)
BLOCKS = angular_blocks(BASIS)
ALL = slice(None)
examples = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def everyone(n):
    return np.ones(n, dtype=bool)


def noise(seed, n=600):
    return np.random.default_rng(seed).normal(size=(n, LENGTH))


def steerable_images(seed, n=600, strength=4.0):
    """Noise, and along a few pairs of functions more than noise: in every orientation alike."""
    images = noise(seed, n)
    for m, n_radial in ((0, 0), (1, 0), (2, 1), (3, 0)):
        images[:, (np.abs(BASIS.angular) == m) & (BASIS.radial == n_radial)] *= strength
    return images


def dense(shape):
    """The whole covariance matrix of a shape."""
    matrix = np.zeros((LENGTH, LENGTH))
    for members, covariance in zip(BLOCKS, shape.covariances, strict=True):
        for columns in members:
            matrix[np.ix_(columns, columns)] = covariance
    return matrix


def dense_mean(shape):
    mean = np.zeros(LENGTH)
    mean[BLOCKS[0][0]] = shape.mean
    return mean


# Shapes.


def test_blocks_hold_every_function_once_and_pair_cosines_with_sines():
    every = np.concatenate([members.ravel() for members in BLOCKS])
    np.testing.assert_array_equal(np.sort(every), np.arange(LENGTH))
    for m, members in enumerate(BLOCKS):
        assert len(members) == 1 + (m > 0)
        np.testing.assert_array_equal(BASIS.radial[members[0]], BASIS.radial[members[-1]])
        np.testing.assert_array_equal(BASIS.angular[members[-1]], -m if m else 0)
        # Each sine stands behind its cosine, and the functions of one index follow each other.
        np.testing.assert_array_equal(members.T.ravel(), members[0, 0] + np.arange(members.size))


@examples
@given(seed=seeds)
def test_distances_and_volume_are_those_of_the_dense_matrix(seed):
    images = steerable_images(seed, 200)
    shape = fit_shape(images, everyone(200), BLOCKS)
    matrix, moved = dense(shape), images - dense_mean(shape)
    expected = np.einsum("ni,ij,nj->n", moved, np.linalg.inv(matrix), moved)
    np.testing.assert_allclose(distances(images, shape, BLOCKS), expected, rtol=1e-8)
    assert shape.log_volume == pytest.approx(0.5 * np.linalg.slogdet(matrix)[1])


def test_shape_is_the_average_over_orientations():
    images = noise(1, 300)
    images[:, BASIS.angular == 2] *= 5  # the cosines alone: turned by 45 degrees these are the sines
    shape = fit_shape(images, everyone(300), BLOCKS)
    members = BLOCKS[2]
    # Weights differ from image to image, so the plain average is met only roughly.
    both = np.concatenate([images[:, columns] for columns in members])
    variance = np.diag(shape.covariances[2]) / np.median(np.diag(shape.covariances[3]))
    np.testing.assert_allclose(variance, np.square(both).mean(axis=0), rtol=0.4)


@examples
@given(seed=seeds)
def test_strength_of_an_image_does_not_matter(seed):
    images = steerable_images(seed)
    images[:, BLOCKS[0][0]] -= images[:, BLOCKS[0][0]].mean(axis=0)
    strength = np.exp(np.random.default_rng(seed).normal(0, 2, (len(images), 1)))
    plain, strong = (fit_shape(rows, everyone(len(rows)), BLOCKS) for rows in (images, images * strength))
    one, other = dense(plain), dense(strong)
    one, other = one / np.trace(one), other / np.trace(other)
    assert np.abs(one - other).max() < 0.3 * one.max()
    # A plain covariance is ruled by the few strongest.
    assert np.corrcoef(np.diag(one), np.diag(other))[0, 1] > 0.98


def test_a_few_strong_images_do_not_bend_a_shape():
    images = steerable_images(2)
    line = np.random.default_rng(3).normal(size=LENGTH)
    bent = images.copy()
    bent[::20] = 30 * line
    clean, robust = (dense(fit_shape(rows, everyone(len(rows)), BLOCKS)) for rows in (images, bent))
    naive = bent.T @ bent / len(bent)
    direction = line / np.linalg.norm(line)
    share = [direction @ matrix @ direction / np.trace(matrix) for matrix in (clean, robust, naive)]
    assert share[1] < 6 * share[0]
    assert share[2] > 40 * share[0]


@pytest.mark.parametrize("box", [23, 24])
def test_folded_images_have_the_coefficients_and_ratios_of_whole_ones(box):
    basis = pswf_basis(box, 0.25)
    blocks, flat = angular_blocks(basis), basis.functions.reshape(len(basis.functions), -1).astype(np.float64)
    images = np.random.default_rng(0).normal(size=(300, box, box)).astype(np.float32)
    images[::2, box // 2 + 1, 8:] += 1
    rows = coefficients_of(images, basis)
    np.testing.assert_allclose(rows, images.reshape(300, -1) @ flat.T, atol=1e-5)
    bands = frequency_bands(basis)
    expected = np.log([np.square(rows[:, band]).mean(axis=1) for band in bands]).T
    np.testing.assert_allclose(log_powers(rows, bands), expected)

    particle, background = (fit_shape(rows, np.arange(300) % 2 == part, blocks) for part in (0, 1))
    ratios = ratios_beside(images, compare(particle, background, basis, blocks), 0.3, step=2)
    away = round(0.3 * box)
    for k, (down, right) in enumerate(((0, away), (away, 0), (0, -away), (-away, 0))):
        beside = np.roll(images, (-down, -right), (1, 2)).reshape(300, -1) @ flat.T
        expected = log_ratio(beside, particle, [background], blocks)
        np.testing.assert_allclose(ratios[:, k], expected, atol=1e-3)
    assert ratios.std() > 1


def test_ratio_tells_shapes_apart_and_is_calibrated():
    particles, others = steerable_images(4, 2000, 1.4), noise(5, 2000)
    half = np.arange(2000) < 1000
    near, far = fit_shape(particles, half, BLOCKS), fit_shape(others, half, BLOCKS)
    ratio = np.concatenate([log_ratio(rows[~half], near, [far], BLOCKS) for rows in (particles, others)])
    is_particle = np.arange(2000) < 1000
    # Of the images to which the ratio gives odds of x to 1, so many are particles.
    for low, high in ((-2, -0.5), (-0.5, 0.5), (0.5, 2)):
        some = (ratio > low) & (ratio < high)
        assert some.sum() > 30
        expected = 1 / (1 + np.exp(-ratio[some]))
        assert is_particle[some].mean() == pytest.approx(expected.mean(), abs=0.12)


@examples
@given(seed=seeds, factor=st.floats(1e-3, 1e3))
def test_ratio_does_not_depend_on_strength(seed, factor):
    images = steerable_images(seed, 100)
    shape, other = (fit_shape(rows, everyone(len(rows)), BLOCKS) for rows in (images, noise(seed)))
    shape, other = (one._replace(mean=np.zeros_like(one.mean)) for one in (shape, other))
    np.testing.assert_allclose(
        log_ratio(factor * images, shape, [other], BLOCKS),
        log_ratio(images, shape, [other], BLOCKS),
        atol=1e-6,
    )


def test_ratio_does_not_depend_on_orientation():
    rng = np.random.default_rng(6)
    images = rng.normal(size=(40, 25, 25)).astype(np.float32)
    basis = pswf_basis(25, 0.25)
    blocks = angular_blocks(basis)
    turned = [
        pswf_coefficients(rows, 0.25).astype(np.float64)
        for rows in (images, np.rot90(images, 1, (1, 2)), images[:, ::-1])
    ]
    other = rng.normal(size=(40, len(basis.angular))) * np.linspace(0.5, 2, len(basis.angular))
    near, far = fit_shape(turned[0], everyone(40), blocks), fit_shape(other, everyone(40), blocks)
    expected = log_ratio(turned[0], near, [far], blocks)
    for rows in turned[1:]:
        np.testing.assert_allclose(log_ratio(rows, near, [far], blocks), expected, atol=1e-3)


def test_what_chance_alone_makes_is_given_up():
    background = fit_shape(noise(7, 3000), everyone(3000), BLOCKS)
    images = noise(8, 120)
    raw = fit_shape(images, everyone(120), BLOCKS)
    fresh = noise(9, 500)
    overfitted = log_ratio(fresh, raw, [background], BLOCKS)
    regular = log_ratio(fresh, regularize(raw, background, 120, BLOCKS), [background], BLOCKS)
    assert np.abs(regular).mean() < 0.5 * np.abs(overfitted).mean()
    # What is there stays.
    images = steerable_images(10, 120)
    found = regularize(fit_shape(images, everyone(120), BLOCKS), background, 120, BLOCKS)
    assert (log_ratio(steerable_images(11, 200), found, [background], BLOCKS) > 0).mean() > 0.95
    assert (log_ratio(fresh, found, [background], BLOCKS) < 0).mean() > 0.95


def test_bands_share_out_all_functions():
    bands = frequency_bands(BASIS)
    assert len(bands) >= 4
    np.testing.assert_array_equal(np.sort(np.concatenate(bands)), np.arange(LENGTH))
    order = np.abs(BASIS.angular) + 2 * BASIS.radial
    for low, high in itertools.pairwise(bands):
        assert order[low].max() < order[high].min()


def test_bulk_is_where_most_are():
    rng = np.random.default_rng(12)
    values = rng.normal(size=(1000, 3)) * (1, 2, 3) + 5
    values[:200] += 100
    bulk = fit_bulk(values)
    np.testing.assert_allclose(bulk.mean, 5, atol=0.4)
    distance = np.einsum("ni,ij,nj->n", values - bulk.mean, bulk.precision, values - bulk.mean)
    assert distance[:200].min() > distance[200:].max()
    for degenerate in (np.ones((10, 3)), np.ones((1, 3)), values[:2]):
        assert np.isfinite(fit_bulk(degenerate).precision).all()


# The threshold.


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_balanced_threshold_finds_the_share_of_junk(share):
    rng = np.random.default_rng(13)
    n, distance = 20000, 3.0
    junk = rng.random(n) < share
    # The log-likelihood ratio of two normal distributions.
    values = rng.normal(np.where(junk, distance, 0.0))
    scores = distance * values - 0.5 * distance**2
    assert balanced_threshold(scores) == pytest.approx(np.log((1 - share) / share), abs=0.15)


@pytest.mark.parametrize(
    "scores", [np.full(100, -5.0), np.full(100, 5.0), np.zeros(100), np.array([1e300, -1e300])]
)
def test_balanced_threshold_of_odd_sets_is_finite(scores):
    assert np.isfinite(balanced_threshold(scores))


def test_valley_lies_between_two_peaks_only():
    rng = np.random.default_rng(14)
    two = np.concatenate([rng.normal(-50, 8, 3000), rng.normal(20, 10, 600)])
    assert -30 < valley(two) < 0
    for one in (rng.normal(size=3000), rng.exponential(size=3000), rng.standard_t(3, 3000), np.ones(50)):
        assert valley(one) == np.inf
    # Too few to be a second kind.
    assert valley(np.concatenate([rng.normal(size=3000), np.full(5, 8.0)])) == np.inf


# The filter.


@pytest.fixture(scope="module")
def hard():
    images, truth = fs.simulate_particles(
        900, 600, snr=1 / 20, snr_definition="white_power", box=48, junk="all", ctf=True, seed=2
    )
    return fs.phase_flip(images, truth.ctf, truth.pixel_size), truth


@pytest.fixture(scope="module")
def sorted_hard(hard):
    return fs.subspace_filter(hard[0], n_jobs=2)


def area(truth, result, kind=None):
    some = slice(None) if kind is None else truth.label | (truth.kind == kind)
    return measure_accuracy(truth.label[some], result.keep[some], result.score[some]).area_under_curve


def test_contamination_stronger_than_the_particles_is_told(hard, sorted_hard):
    _, truth = hard
    assert area(truth, sorted_hard) > 0.95
    for kind in ("carbon", "texture", "noise", "partial"):
        assert area(truth, sorted_hard, kind) > 0.97
    assert area(truth, sorted_hard, "ice") > 0.9
    keep = sorted_hard.keep
    assert keep[truth.label].mean() > 0.93
    assert (~keep[~truth.label]).mean() > 0.7
    # The factor of the same subspaces does not see it.
    factor = measure_accuracy(truth.label, keep, sorted_hard.factor).area_under_curve
    assert factor < 0.9


def test_estimates_of_radius_and_contrast(hard, sorted_hard):
    images, truth = hard
    assert sorted_hard.radius == pytest.approx(truth.diameter / truth.pixel_size / 2, rel=0.25)
    assert sorted_hard.contrast == "bright"
    dark = fs.subspace_filter(-images, n_jobs=2)
    assert dark.contrast == "dark"
    np.testing.assert_allclose(dark.score, sorted_hard.score, atol=0.05)


def test_probability_belongs_to_the_threshold(sorted_hard):
    order = np.argsort(sorted_hard.score)
    assert (np.diff(sorted_hard.junk_probability[order]) >= 0).all()
    np.testing.assert_array_equal(sorted_hard.keep, sorted_hard.score <= sorted_hard.threshold)
    assert sorted_hard.cut == sorted_hard.threshold
    np.testing.assert_array_equal(sorted_hard.junk_probability > 0.5, ~sorted_hard.keep)
    np.testing.assert_array_equal(sorted_hard.reason == "valid", sorted_hard.keep)


def test_suspicions_are_the_reasons_of_what_is_rejected(hard, sorted_hard):
    _, truth = hard
    rejected = ~sorted_hard.keep
    np.testing.assert_array_equal(sorted_hard.suspicion[rejected], sorted_hard.reason[rejected])
    assert not np.isin(sorted_hard.suspicion, ("valid", "duplicate", "rare_view")).any()
    # Whatever is kept of what lies beside the centre is suspected of that, more than particles are.
    beside = sorted_hard.suspicion == "off-centre"
    assert beside[truth.kind == "off-centre"].mean() > 2 * beside[truth.label].mean()


def test_verdict_does_not_depend_on_the_description(hard):
    images = hard[0][:300]
    described, plain = (fs.subspace_filter(images, describe=describe) for describe in (True, False))
    for name in ("keep", "score", "reason", "suspicion", "junk_probability", "excess", "threshold", "radius"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(described, name), name)
    assert np.isnan(plain.factor).all() and np.isnan(plain.log_likelihood).all()
    assert np.isfinite(described.factor).all() and len(described.model.trace.n_images)
    assert len(plain.model.trace.n_images) == 0 and not plain.model.means.any()
    again = fs.subspace_filter(images, learned=plain.learned)
    np.testing.assert_array_equal(again.score, described.score)


@pytest.mark.parametrize("some", [slice(None), slice(700, 740), slice(5, 6)], ids=str)
def test_what_was_learned_gives_the_same_scores_again(hard, sorted_hard, some):
    found = fs.subspace_filter(hard[0][some], learned=sorted_hard.learned, n_jobs=2)
    for name in ("score", "factor", "log_likelihood", "excess"):
        actual, expected = getattr(found, name), getattr(sorted_hard, name)[some]
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3, err_msg=name)
    assert (found.radius, found.contrast) == (sorted_hard.radius, sorted_hard.contrast)
    assert found.model is sorted_hard.model
    if some == slice(None):
        np.testing.assert_array_equal(found.score, sorted_hard.score)
        np.testing.assert_array_equal(found.keep, sorted_hard.keep)


def test_probability_is_calibrated(hard, sorted_hard):
    _, truth = hard
    probability = sorted_hard.junk_probability
    expected = probability.sum()
    assert expected == pytest.approx((~truth.label).sum(), rel=0.2)
    sure = probability > 0.95
    assert (~truth.label[sure]).mean() > 0.9


def test_reasons_fit_the_kinds(hard, sorted_hard):
    _, truth = hard
    rejected = ~sorted_hard.keep

    def share(kind, *reasons):
        return np.isin(sorted_hard.reason[rejected & (truth.kind == kind)], reasons).mean()

    assert share("ice", "contamination") > 0.5
    assert share("noise", "noise") > 0.5
    assert share("off-centre", "off-centre", "partial") > 0.5
    assert share("multiple", "multiple", "off-centre", "partial") > 0.5


def test_neither_brightness_nor_contrast_of_single_images_matters(hard, sorted_hard):
    images, _ = hard
    rng = np.random.default_rng(15)
    factor, offset = np.exp(rng.normal(0, 1, (2, len(images), 1, 1)))
    changed = fs.subspace_filter((factor * images + 10 * offset).astype(np.float32), n_jobs=2)
    np.testing.assert_allclose(changed.score, sorted_hard.score, atol=0.05)


def test_subspaces_describe_the_kept_images(hard, sorted_hard):
    pictures = eigenimages(sorted_hard, 5)
    basis = sorted_hard.basis
    assert pictures.shape[0] == len(sorted_hard.model.weights)
    assert 2 <= pictures.shape[1] <= 5
    assert pictures.shape[2:] == (basis.box, basis.box)
    # The mean is bright in the middle.
    middle = pictures[0, 0, basis.box // 2 - 3 : basis.box // 2 + 4, basis.box // 2 - 3 : basis.box // 2 + 4]
    assert middle.mean() > pictures[0, 0, :3].mean()
    assert len(sorted_hard.model.trace.log_likelihood) >= 2


def test_clean_set_stays_whole():
    images, _ = fs.simulate_particles(800, 0, snr=1 / 20, box=33, junk="paper", seed=3)
    # The weakest particles are two thirds as strong as the usual one.
    assert fs.subspace_filter(images).keep.mean() > 0.87


def test_published_preset_drops_what_lies_off_its_subspaces():
    images, truth = fs.simulate_particles(1000, 200, snr=1 / 10, box=40, junk="ppca", seed=4)
    result = fs.subspace_filter(images, 2, 20, preset="published")
    assert result.model.loadings.shape[::2] == (2, 20)
    assert 0.7 < result.keep.mean() < 1
    assert truth.label[result.keep].mean() > truth.label.mean()
    np.testing.assert_array_equal(result.score, result.factor)
    default = fs.subspace_filter(images)
    assert default.keep[truth.label].mean() > 0.99
    assert truth.label[default.keep].mean() > 0.98


@pytest.mark.parametrize("n", [1, 2, 3, 10, 49])
def test_small_sets_are_kept(n, hard):
    result = fs.subspace_filter(hard[0][:n])
    assert result.keep.all()
    assert np.isnan(result.threshold)
    assert not np.isnan(result.score).any()
    assert np.isnan(result.junk_probability).all()


@pytest.mark.parametrize("preset", ["default", "published"])
def test_unfit_images_are_rejected_with_their_reason(preset, hard):
    images = hard[0][:200].copy()
    images[3, 0, 0] = np.nan
    images[5] = 7.0
    images[8, 2, 2] = np.inf
    images[9, 10, 10] = 1e4
    result = fs.subspace_filter(images, 1, 4, preset=preset)
    np.testing.assert_array_equal(
        result.reason[[3, 5, 8, 9]], ["bad_pixels", "flat", "bad_pixels", "bad_pixels"]
    )
    assert not result.keep[[3, 5, 8, 9]].any()
    assert np.isposinf(result.score[[3, 5, 8, 9]]).all()
    assert (result.junk_probability[[3, 5, 8, 9]] == 1).all()
    assert result.keep.sum() > 50


def test_nothing_but_unfit_images():
    images = np.zeros((60, 32, 32), dtype=np.float32)
    result = fs.subspace_filter(images)
    assert not result.keep.any()
    assert (result.reason == "flat").all()


def test_one_image_many_times():
    image = np.random.default_rng(16).normal(size=(1, 32, 32))
    result = fs.subspace_filter(np.repeat(image, 80, axis=0))
    assert not np.isnan(result.score).any()
    assert len(set(result.keep)) == 1


@pytest.mark.parametrize("box", [16, 17, 31, 64])
def test_any_box(box):
    images, truth = fs.simulate_particles(
        300, 100, snr=0.3, snr_definition="power", box=box, junk="ppca", seed=5
    )
    result = fs.subspace_filter(images)
    assert area(truth, result) > 0.9


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"preset": "best"}, "preset"),
        ({"n_subspaces": 0}, "n_subspaces"),
        ({"n_components": 0}, "n_components"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_requests(request_, message, hard):
    with pytest.raises(fs.InputError, match=message):
        fs.subspace_filter(hard[0][:100], **request_)


@pytest.fixture(scope="module")
def images():
    return fs.simulate_particles(150, 50, snr=0.2, box=40, seed=1)[0]


@pytest.mark.parametrize(
    "options",
    [{"n_subspaces": 0}, {"n_components": 0}, {"n_components": 1.5}, {"n_components": 9999}],
    ids=str,
)
@pytest.mark.parametrize("preset", ["default", "published"])
def test_impossible_subspaces_are_told_before_anything_is_read(images, options, preset):
    calls = []
    with pytest.raises(fs.InputError, match=next(iter(options))):
        fs.sort_particles(
            images, method="subspaces", preset=preset, progress=lambda *call: calls.append(call), **options
        )
    assert calls == []


@pytest.mark.parametrize("preset", ["default", "published"])
def test_nothing_to_learn_from(images, preset):
    some = np.ones((5, 32, 32), np.float32)
    some[2] = images[0, :32, :32]
    for stack, kept in ((some, [2]), (some[:2], []), (some[2:3], [0])):
        result = fs.sort_particles(stack, method="subspaces", preset=preset)
        assert np.flatnonzero(result.keep).tolist() == kept
        assert np.isfinite(result.score[kept]).all() and np.isinf(result.score[~result.keep]).all()
        assert np.isnan(result.diameter_px)


@pytest.mark.parametrize("sign", [1, -1])
def test_published_subspaces_know_the_contrast_and_no_diameter(images, sign):
    result = fs.sort_particles(sign * images, method="subspaces", preset="published")
    assert result.contrast == ("bright" if sign > 0 else "dark")
    assert np.isnan(result.diameter_px)
