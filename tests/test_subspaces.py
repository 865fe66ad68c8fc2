"""The mixture of probabilistic PCA: learning, sorting factor, scores, and what must not matter."""

from __future__ import annotations

import joblib
import naive
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fastsort as fs
from fastsort.subspaces.mixture import FitTrace, SubspaceModel

examples = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)
PLAIN = {"discard": 0, "robust": False, "tolerance": 0}


def random_mixture(seed, n_subspaces=2, n_values=12, n_components=3, noise_variance=0.5, offset=3.0):
    """Parameters without structure; loadings and means are of the order of 1."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 1, n_subspaces)
    return naive.Mixture(
        weights / weights.sum(),
        offset * rng.normal(size=(n_subspaces, n_values)),
        rng.normal(size=(n_subspaces, n_values, n_components)),
        noise_variance,
    )


def drawn_from(mixture, n, seed):
    """Images of a mixture, float32 (n, L)."""
    rng = np.random.default_rng(seed)
    n_subspaces, n_values, n_components = mixture.loadings.shape
    chosen = rng.choice(n_subspaces, n, p=mixture.weights)
    x = rng.normal(size=(n, n_components))
    clean = np.einsum("nlk,nk->nl", mixture.loadings[chosen], x) + mixture.means[chosen]
    noise = np.sqrt(mixture.noise_variance) * rng.normal(size=(n, n_values))
    return (clean + noise).astype(np.float32)


def as_model(mixture, n=1):
    """The same parameters as `fit_subspaces` returns them."""
    nothing = np.empty(0)
    trace = FitTrace(nothing, nothing, nothing.astype(np.intp))
    return SubspaceModel(*mixture, keep=np.ones(n, dtype=bool), trace=trace)


def as_mixture(model):
    return naive.Mixture(model.weights, model.means, model.loadings, model.noise_variance)


def products(loadings):
    """C C^T of every subspace: does not change when the coefficients x are rotated."""
    return loadings @ np.swapaxes(loadings, 1, 2)


def assert_near(actual, expected, tolerance, name=""):
    """Compare relative to the largest expected value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name
    )


def assert_identical(actual, expected):
    """Compare two results bit by bit, field by field."""
    assert type(actual) is type(expected)
    for name, one, other in zip(actual._fields, actual, expected, strict=True):
        if isinstance(one, tuple):
            assert_identical(one, other)
        else:
            np.testing.assert_array_equal(one, other, name)


def assert_sound(model, n, n_values):
    """Assert what holds of every model, whatever the images were."""
    n_subspaces, _, n_components = model.loadings.shape
    assert model.weights.shape == (n_subspaces,)
    assert model.means.shape == (n_subspaces, n_values)
    assert model.loadings.shape == (n_subspaces, n_values, n_components)
    assert model.keep.shape == (n,)
    assert model.keep.dtype == bool
    assert 1 <= n_components < n_values
    assert (model.weights >= 0).all()
    assert model.weights.sum() == pytest.approx(1)
    assert np.isfinite(model.means).all()
    assert np.isfinite(model.loadings).all()
    assert np.isfinite(model.noise_variance)
    assert model.noise_variance >= 0
    assert len(model.trace.log_likelihood) == len(model.trace.noise_variance) == len(model.trace.n_images)
    assert np.isfinite(model.trace.log_likelihood).all()
    assert np.isfinite(model.trace.noise_variance).all()
    assert (model.trace.n_images >= 1).all()
    assert (model.trace.n_images <= n).all()
    assert model.keep.any()


def assert_scores_sound(images, model):
    """Assert what holds of all that is said of images, whatever they are."""
    n = len(images)
    scores = fs.subspace_scores(images, model)
    for field in scores:
        assert len(field) == n
    for values in (fs.sorting_factor(images, model), scores.factor, scores.log_likelihood, scores.score):
        assert values.shape == (n,)
        assert not np.isnan(values).any()
    finite = np.isfinite(np.asarray(images, dtype=np.float64)).all(axis=1)
    clean = fs.subspaces.denoise(images, model)
    assert clean.shape == images.shape
    assert clean.dtype == np.float32
    assert np.isfinite(clean[finite]).all()
    assert np.isfinite(scores.log_likelihood[finite]).all()
    assert np.isposinf(scores.factor[~finite]).all()
    assert np.isposinf(scores.score[~finite]).all()


def area_under_curve(score, junk):
    """Chance that junk has a higher score than a particle."""
    ranks = scipy.stats.rankdata(score)
    n_junk = np.count_nonzero(junk)
    return (ranks[junk].sum() - n_junk * (n_junk + 1) / 2) / (n_junk * np.count_nonzero(~junk))


def two_subspaces(seed, n=1500, n_values=40, tilt=0.4, scale=6.0):
    """Images on two subspaces of dimension 3, one the other tilted by an angle, in noise of variance 1."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(n_values, 6)))[0]
    bases = np.stack([axes[:, :3], np.cos(tilt) * axes[:, :3] + np.sin(tilt) * axes[:, 3:]])
    truth = naive.Mixture(np.array([0.5, 0.5]), np.zeros((2, n_values)), scale * bases, 1.0)
    return drawn_from(truth, n, rng.integers(2**32)), bases


def with_scattered_junk(seed, **made):
    """Add one tenth of images of the same energy that point anywhere."""
    images, bases = two_subspaces(seed, **made)
    rng = np.random.default_rng(seed + 1)
    junk = np.arange(len(images)) % 10 == 0
    directions = rng.normal(size=(np.count_nonzero(junk), images.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    images[junk] = directions * np.linalg.norm(images[junk], axis=1, keepdims=True)
    return images, junk, bases


def with_strong_junk(seed, **made):
    """Add one twentieth of images along a line, of ten times the energy."""
    images, bases = two_subspaces(seed, **made)
    rng = np.random.default_rng(seed + 1)
    junk = np.arange(len(images)) % 20 == 0
    n_junk = np.count_nonzero(junk)
    line = rng.normal(size=images.shape[1])
    line /= np.linalg.norm(line)
    energy = np.square(images[~junk]).sum(axis=1).mean()
    length = np.sqrt(10 * energy) * rng.uniform(0.8, 1.2, n_junk) * rng.choice([-1, 1], n_junk)
    images[junk] = np.outer(length, line) + rng.normal(size=(n_junk, images.shape[1]))
    return images, junk, line, bases


# The slow version itself.


@examples
@given(seed=seeds, n_subspaces=st.integers(1, 3), n_values=st.integers(2, 8))
def test_naive_densities_are_those_of_scipy(seed, n_subspaces, n_values):
    mixture = random_mixture(seed, n_subspaces, n_values, 1)
    images = drawn_from(mixture, 5, seed)
    expected = [
        scipy.stats.multivariate_normal(mean, naive.subspace_covariance(mixture, m)).logpdf(images)
        for m, mean in enumerate(mixture.means)
    ]
    np.testing.assert_allclose(naive.subspace_log_densities(images, mixture), np.transpose(expected))
    total = mixture.weights @ np.exp(expected - np.max(expected, axis=0))
    np.testing.assert_allclose(
        naive.mixture_log_likelihood(images, mixture), np.log(total) + np.max(expected, axis=0)
    )
    np.testing.assert_allclose(naive.mixture_responsibilities(images, mixture).sum(axis=1), 1)


@examples
@given(seed=seeds, n_subspaces=st.integers(1, 3), n_components=st.integers(1, 3))
def test_naive_log_likelihood_never_falls(seed, n_subspaces, n_components):
    images = drawn_from(random_mixture(seed, n_subspaces, 6, n_components), 40, seed)
    mixture = random_mixture(seed + 1, n_subspaces, 6, n_components)
    before = naive.mixture_log_likelihood(images, mixture).sum()
    for _ in range(4):
        mixture = naive.mixture_em_iteration(images, mixture)
        after = naive.mixture_log_likelihood(images, mixture).sum()
        assert after >= before - 1e-9 * abs(before)
        before = after


@examples
@given(seed=seeds, n_components=st.integers(1, 4))
def test_naive_iteration_leaves_the_optimum_alone(seed, n_components):
    images = drawn_from(random_mixture(seed, 1, 6, 2), 60, seed)
    optimum = naive.ppca_optimum(images, n_components)
    mixture = naive.Mixture(
        np.ones(1), optimum.mean[np.newaxis], optimum.loadings[np.newaxis], optimum.noise_variance
    )
    assert naive.mixture_log_likelihood(images, mixture).mean() == pytest.approx(optimum.log_likelihood)
    after = naive.mixture_em_iteration(images, mixture)
    np.testing.assert_allclose(after.means, mixture.means, atol=1e-8)
    np.testing.assert_allclose(products(after.loadings), products(mixture.loadings), atol=1e-8)
    assert after.noise_variance == pytest.approx(mixture.noise_variance)


# Learning against the slow version and the closed form.


@pytest.mark.slow
def test_one_subspace_is_the_closed_form():
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(300, 20)))[0]
    truth = naive.Mixture(
        np.ones(1), 5 * rng.normal(size=(1, 300)), (axes * np.sqrt(np.linspace(60, 6, 20)))[np.newaxis], 1.0
    )
    images = drawn_from(truth, 5000, 2)
    expected = naive.ppca_optimum(images, 20)
    model = fs.fit_subspaces(images, 1, 20, max_iterations=60, **PLAIN)
    assert_sound(model, *images.shape)
    assert model.keep.all()
    assert model.weights == pytest.approx([1])
    assert model.trace.log_likelihood[-1] == pytest.approx(expected.log_likelihood, rel=1e-4)
    assert np.rad2deg(scipy.linalg.subspace_angles(model.loadings[0], expected.loadings).max()) < 0.5
    assert model.noise_variance == pytest.approx(expected.noise_variance, rel=1e-4)
    # In units of the scatter: along the subspace a wrong start of the mean is forgotten slowly.
    offset = model.means[0] - expected.mean
    assert offset @ np.linalg.solve(naive.subspace_covariance(as_mixture(model), 0), offset) < 1e-3
    assert_near(products(model.loadings)[0], expected.loadings @ expected.loadings.T, 1e-2)


@st.composite
def problems(draw):
    """Images of a random mixture and the numbers of subspaces and components to learn."""
    n_values = draw(st.integers(2, 30))
    n_components = draw(st.integers(1, min(n_values - 1, 5)))
    n_subspaces = draw(st.integers(1, 4))
    seed = draw(seeds)
    truth = random_mixture(
        seed,
        draw(st.integers(1, 4)),
        n_values,
        draw(st.integers(1, n_values)),
        draw(st.sampled_from([0.01, 0.3, 4.0])),
        draw(st.sampled_from([0.0, 1.0, 10.0])),
    )
    return drawn_from(truth, draw(st.integers(5, 200)), seed), n_subspaces, n_components


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(problem=problems(), discard=st.sampled_from([0, 0, 0.1]), seed=seeds)
def test_log_likelihood_never_falls(problem, discard, seed):
    images, n_subspaces, n_components = problem
    how = PLAIN | {"discard": discard, "every": 4, "max_iterations": 15, "seed": seed}
    try:
        model = fs.fit_subspaces(images, n_subspaces, n_components, **how)
    except fs.InputError:
        # Too few images for so many subspaces; enough of them are never refused.
        assert len(images) < 2 * n_subspaces * (n_components + 1)
        assume(False)
    assert_sound(model, *images.shape)
    value, n_images = model.trace.log_likelihood, model.trace.n_images
    same_images = np.diff(n_images) == 0
    steps = np.diff(value)[same_images]
    assert (steps >= -1e-5 * (np.abs(value[:-1][same_images]) + 1)).all()
    assert_scores_sound(images, model)


@examples
@given(
    seed=seeds,
    n=st.integers(60, 120),
    n_subspaces=st.integers(1, 3),
    n_values=st.integers(4, 14),
    n_components=st.integers(1, 3),
    iterations=st.integers(1, 4),
)
def test_an_iteration_is_the_naive_one(seed, n, n_subspaces, n_values, n_components, iterations):
    images = drawn_from(random_mixture(seed, n_subspaces, n_values, n_components), n, seed)
    request = (images, n_subspaces, n_components)
    before = fs.fit_subspaces(*request, max_iterations=iterations, **PLAIN)
    after = fs.fit_subspaces(*request, max_iterations=iterations + 1, **PLAIN)
    # A subspace that is left with hardly more images than parameters amplifies every rounding.
    assume(before.weights.min() * n > 4 * (n_components + 1))
    expected = naive.mixture_em_iteration(images, as_mixture(before))
    np.testing.assert_allclose(after.weights, expected.weights, rtol=1e-3)
    assert after.noise_variance == pytest.approx(expected.noise_variance, rel=1e-3)
    assert_near(after.means, expected.means, 1e-3, "means")
    assert_near(products(after.loadings), products(expected.loadings), 1e-3, "C C^T")
    assert len(after.trace.log_likelihood) == iterations + 1
    assert after.trace.log_likelihood[-1] == pytest.approx(
        naive.mixture_log_likelihood(images, as_mixture(before)).mean(), rel=1e-4, abs=1e-4
    )
    np.testing.assert_array_equal(after.trace.log_likelihood[:-1], before.trace.log_likelihood)


# Scores against the slow versions.


@st.composite
def models_and_images(draw):
    n_values = draw(st.integers(2, 30))
    seed = draw(seeds)
    mixture = random_mixture(
        seed,
        draw(st.integers(1, 4)),
        n_values,
        draw(st.integers(1, min(n_values - 1, 6))),
        draw(st.sampled_from([0.1, 1.0, 5.0])),
        draw(st.sampled_from([0.0, 1.0, 4.0])),
    )
    n = draw(st.integers(1, 20))
    images = drawn_from(mixture, n, seed)
    # Some belong nowhere.
    images[::3] *= 3
    return mixture, images


def log_likelihood_tolerance(images, mixture):
    """What float32 products may cost: a few of their last digits, of the squares that are summed."""
    squares = np.square(images.astype(np.float64)).sum(axis=1) + np.square(mixture.means).sum(axis=1).max()
    return 1e-5 * (squares / mixture.noise_variance + images.shape[1])


@examples
@given(given_model=models_and_images())
def test_sorting_factor_is_the_naive_one(given_model):
    mixture, images = given_model
    model = as_model(mixture, len(images))
    expected = naive.sorting_factor(images, mixture.loadings)
    actual = fs.sorting_factor(images, model)
    assert actual.dtype == np.float64
    # The residual is a difference: what is left of a nearly complete projection has fewer digits.
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5 * len(mixture.weights))
    np.testing.assert_array_equal(fs.subspace_scores(images, model).factor, actual)


@examples
@given(given_model=models_and_images())
def test_log_likelihood_is_the_naive_one(given_model):
    mixture, images = given_model
    actual = fs.subspace_scores(images, as_model(mixture, len(images))).log_likelihood
    expected = naive.mixture_log_likelihood(images, mixture)
    assert (np.abs(actual - expected) <= log_likelihood_tolerance(images, mixture)).all()


@examples
@given(given_model=models_and_images())
def test_denoised_image_is_the_naive_posterior_mean(given_model):
    mixture, images = given_model
    actual = fs.subspaces.denoise(images, as_model(mixture, len(images)))
    assert actual.dtype == np.float32
    size = np.abs(images).max() + np.abs(mixture.means).max()
    # The probabilities of two subspaces are as uncertain as the difference of their log densities.
    tolerance = 1e-5 + log_likelihood_tolerance(images, mixture)[:, np.newaxis]
    difference = np.abs(actual - naive.posterior_mean(images, mixture))
    assert (difference <= tolerance * size).all()


def test_a_subspace_of_weight_0_says_nothing():
    mixture = random_mixture(3, 2)
    images = drawn_from(mixture, 30, 3)
    alone = naive.Mixture(np.ones(1), mixture.means[:1], mixture.loadings[:1], mixture.noise_variance)
    model = as_model(mixture._replace(weights=np.array([1.0, 0.0])), 30)
    np.testing.assert_allclose(
        fs.subspace_scores(images, model).log_likelihood,
        naive.mixture_log_likelihood(images, alone),
        rtol=1e-4,
    )
    assert_near(fs.subspaces.denoise(images, model), naive.posterior_mean(images, alone), 1e-4)


def test_denoising_removes_noise():
    mixture = random_mixture(4, 2, 60, 3, noise_variance=4.0)
    clean = drawn_from(mixture._replace(noise_variance=0.0), 400, 5)
    noise = 2 * np.random.default_rng(6).normal(size=clean.shape).astype(np.float32)
    model = fs.fit_subspaces(clean + noise, 2, 3, max_iterations=30, **PLAIN)
    left = fs.subspaces.denoise(clean + noise, model) - clean
    # Three of sixty dimensions keep their noise.
    assert np.square(left).mean() < 0.12 * np.square(noise).mean()


# What must not matter.


@pytest.mark.slow
@examples
@given(exponent=st.floats(-6, 6))
def test_scale_of_the_images_does_not_matter(exponent):
    scale = 10**exponent
    images = drawn_from(random_mixture(7, 2), 300, 7)
    scaled_images = (scale * images.astype(np.float64)).astype(np.float32)
    model = fs.fit_subspaces(images, 2, 3, max_iterations=10, **PLAIN)
    scaled = fs.fit_subspaces(scaled_images, 2, 3, max_iterations=10, **PLAIN)
    np.testing.assert_allclose(scaled.weights, model.weights, rtol=1e-3)
    assert_near(scaled.means / scale, model.means, 1e-3)
    assert_near(products(scaled.loadings / scale), products(model.loadings), 1e-3)
    assert scaled.noise_variance / scale**2 == pytest.approx(model.noise_variance, rel=1e-3)
    factor = fs.sorting_factor(images, model)
    np.testing.assert_allclose(fs.sorting_factor(scaled_images, model), factor, rtol=1e-3)
    np.testing.assert_allclose(fs.sorting_factor(scaled_images, scaled), factor, rtol=1e-2)


@examples
@given(seed=seeds, data=st.data())
def test_order_of_the_images_does_not_matter_to_their_scores(seed, data):
    mixture = random_mixture(seed, 2)
    images = drawn_from(mixture, 25, seed)
    order = np.array(data.draw(st.permutations(range(25))))
    model = as_model(mixture, 25)
    before, after = fs.subspace_scores(images, model), fs.subspace_scores(images[order], model)
    for name, one, other in zip(before._fields, before, after, strict=True):
        if np.issubdtype(one.dtype, np.floating):
            np.testing.assert_allclose(other, one[order], rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(other, one[order], err_msg=name)
    np.testing.assert_allclose(
        fs.subspaces.denoise(images[order], model),
        fs.subspaces.denoise(images, model)[order],
        rtol=1e-4,
        atol=1e-4,
    )


def test_order_of_the_images_hardly_matters_to_learning():
    images = drawn_from(random_mixture(8, 1, 20, 3), 500, 8)
    order = np.random.default_rng(9).permutation(500)
    model = fs.fit_subspaces(images, 1, 3, max_iterations=80, **PLAIN)
    shuffled = fs.fit_subspaces(images[order], 1, 3, max_iterations=80, **PLAIN)
    assert shuffled.trace.log_likelihood[-1] == pytest.approx(model.trace.log_likelihood[-1], rel=1e-4)
    assert_near(products(shuffled.loadings), products(model.loadings), 1e-2)


@examples
@given(seed=seeds, n_values=st.integers(2, 20))
def test_rotations_do_not_matter_to_the_log_likelihood(seed, n_values):
    mixture = random_mixture(seed, 2, n_values, 1 + n_values // 4)
    images = drawn_from(mixture, 20, seed)
    before = fs.subspace_scores(images, as_model(mixture, 20)).log_likelihood
    tolerance = log_likelihood_tolerance(images, mixture)

    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(n_values, n_values)))[0]
    turned = mixture._replace(means=mixture.means @ rotation.T, loadings=rotation @ mixture.loadings)
    turned_images = (images @ rotation.T).astype(np.float32)
    after = fs.subspace_scores(turned_images, as_model(turned, 20)).log_likelihood
    assert (np.abs(after - before) <= tolerance).all()

    # The coefficients within a subspace may be rotated alone.
    k = mixture.loadings.shape[2]
    inner = mixture._replace(loadings=mixture.loadings @ np.linalg.qr(rng.normal(size=(k, k)))[0])
    after = fs.subspace_scores(images, as_model(inner, 20)).log_likelihood
    assert (np.abs(after - before) <= tolerance).all()


@examples
@given(seed=seeds)
def test_sorting_factor_knows_the_subspace_only(seed):
    mixture = random_mixture(seed, 2, 15, 3)
    images = drawn_from(mixture, 20, seed)
    rng = np.random.default_rng(seed)
    mixing = np.diag([100.0, 1.0, 0.01]) @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    other = naive.Mixture(
        mixture.weights[::-1].copy(),
        rng.normal(size=mixture.means.shape),
        (mixture.loadings @ mixing)[::-1].copy(),
        7.0,
    )
    np.testing.assert_allclose(
        fs.sorting_factor(images, as_model(other, 20)),
        fs.sorting_factor(images, as_model(mixture, 20)),
        rtol=1e-3,
    )


# Workers, back ends, files.


@pytest.fixture(scope="module")
def many():
    return with_scattered_junk(10, n=9000)[0]


@pytest.fixture(scope="module")
def many_on_disk(many, tmp_path_factory):
    path = tmp_path_factory.mktemp("coefficients") / "coefficients.npy"
    np.save(path, many)
    return np.load(path, mmap_mode="r")


HOW = [
    {"preset": "default", "max_iterations": 8},
    {"preset": "published", "every": 3, "max_iterations": 8, "tolerance": 0},
]


@pytest.fixture(scope="module")
def learned(many):
    return [fs.fit_subspaces(many, 2, 3, n_jobs=1, **how) for how in HOW]


def results(images, model, **workers):
    """All that is said of images by a model."""
    scores = fs.subspace_scores(images, model, **workers)
    return (
        fs.sorting_factor(images, model, **workers),
        *scores,
        fs.subspaces.denoise(images, model, **workers),
    )


def assert_same_bits(images, learned, expected, **workers):
    for how, model in zip(HOW, learned, strict=True):
        assert_identical(fs.fit_subspaces(images, 2, 3, **how, **workers), model)
    for one, other in zip(results(images, learned[0], **workers), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def told(many, learned):
    return results(many, learned[0], n_jobs=1)


def test_threads_and_maps_do_not_change_bits(many, many_on_disk, learned, told):
    assert_same_bits(many, learned, told, n_jobs=2)
    assert_same_bits(many, learned, told)
    assert_same_bits(many_on_disk, learned, told, n_jobs=1)
    assert_same_bits(many_on_disk, learned, told, n_jobs=3)


def test_processes_do_not_change_bits(many, many_on_disk, learned, told):
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert_same_bits(many, learned, told)
        assert_same_bits(many_on_disk, learned, told)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_cluster_does_not_change_bits(many, many_on_disk, learned, told):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        assert_same_bits(many, learned, told)
        assert_same_bits(many_on_disk, learned, told)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", ">f4", "<f8", ">f8"])
def test_any_type_of_read_only_memory_map(dtype, tmp_path):
    exact = with_scattered_junk(11, n=300)[0].astype(np.float16).astype(np.float32)
    np.save(tmp_path / "coefficients.npy", exact.astype(dtype))
    mapped = np.load(tmp_path / "coefficients.npy", mmap_mode="r")
    assert not mapped.flags.writeable
    model = fs.fit_subspaces(exact, 2, 3, max_iterations=5)
    assert_identical(fs.fit_subspaces(mapped, 2, 3, max_iterations=5), model)
    for one, other in zip(results(mapped, model), results(exact, model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_layout_and_whole_numbers_do_not_matter():
    whole = np.rint(20 * with_scattered_junk(11, n=300)[0])
    expected = fs.fit_subspaces(whole.astype(np.float32), 2, 3, max_iterations=5)
    wide = np.zeros((600, 80), dtype=np.float32)
    wide[::2, ::2] = whole
    for same in (whole.astype(np.int16), np.asfortranarray(whole), wide[::2, ::2], whole[::-1].copy()[::-1]):
        assert_identical(fs.fit_subspaces(same, 2, 3, max_iterations=5), expected)
        np.testing.assert_array_equal(
            fs.sorting_factor(same, expected), fs.sorting_factor(whole.astype(np.float32), expected)
        )


def test_same_seed_same_bits_and_input_left_as_it_was():
    images = with_scattered_junk(12, n=300)[0]
    images[5, 5] = np.nan
    before = images.copy()
    images.flags.writeable = False
    model = fs.fit_subspaces(images, seed=3)
    results(images, model)
    np.testing.assert_array_equal(images, before)
    assert_identical(fs.fit_subspaces(before, seed=3), model)


# Discarding and sorting.


@pytest.fixture(scope="module")
def scattered():
    return with_scattered_junk(13)


def test_number_of_images_falls_as_asked(scattered):
    images, _, _ = scattered
    model = fs.fit_subspaces(
        images, 2, 3, discard=0.05, every=6, max_iterations=30, tolerance=0, robust=False
    )
    assert_sound(model, *images.shape)
    used = model.trace.n_images.reshape(5, 6)
    assert (used == used[:, :1]).all()
    in_use = used[:, 0]
    assert in_use[0] == len(images)
    np.testing.assert_allclose(in_use[:-1] - in_use[1:], 0.05 * in_use[:-1], atol=1)
    # A cut may follow the last iteration.
    assert model.keep.sum() <= in_use[-1]
    assert model.keep.sum() >= 0.95 * in_use[-1] - 1


def test_those_with_the_largest_factor_are_dropped(scattered):
    images, _, _ = scattered
    before = fs.fit_subspaces(images, 2, 3, max_iterations=6, **PLAIN)
    after = fs.fit_subspaces(images, 2, 3, max_iterations=7, **(PLAIN | {"discard": 0.05, "every": 6}))
    factor = fs.sorting_factor(images, before)
    n_dropped = np.count_nonzero(~after.keep)
    assert n_dropped == pytest.approx(0.05 * len(images), abs=1)
    assert factor[~after.keep].min() >= factor[after.keep].max()


def test_sorting_factor_tells_scattered_junk_from_subspaces(scattered):
    images, junk, bases = scattered
    how = {"discard": 0.05, "every": 6, "max_iterations": 30, "tolerance": 0, "robust": False}
    model = fs.fit_subspaces(images, 2, 3, **how)
    reached = area_under_curve(fs.sorting_factor(images, model), junk)
    assert reached > 0.95
    # No worse than the factor on the subspaces that the images were made of.
    assert reached > area_under_curve(naive.sorting_factor(images, bases), junk) - 0.02
    assert junk[~model.keep].mean() > 0.45


def test_published_preset_runs_and_drops(scattered):
    images, junk, _ = scattered
    model = fs.fit_subspaces(images, 2, 3, preset="published")
    assert_sound(model, *images.shape)
    assert len(model.trace.log_likelihood) <= 30
    assert not model.keep.all()
    assert 0.7 < model.keep.mean() < 0.96
    assert junk[model.keep].mean() < junk.mean()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_set_on_contamination_stronger_than_the_particles(seed):
    images, junk, line, bases = with_strong_junk(20 + seed)
    model = fs.fit_subspaces(images)
    assert_sound(model, *images.shape)
    assert model.keep[~junk].mean() > 0.97
    assert (~model.keep[junk]).mean() > 0.95
    # Where the line happens to run along the particles' subspaces, it is rightly contained.
    particles = np.linalg.qr(np.concatenate(bases, axis=1))[0]
    outside = line - particles @ (particles.T @ line)
    for loadings in model.loadings:
        # Spanned by what counts in the subspace: the rest of the columns may point anywhere.
        vectors, sizes, _ = np.linalg.svd(loadings, full_matrices=False)
        basis = vectors[:, sizes**2 > model.noise_variance]
        assert np.linalg.norm(basis.T @ outside) < 0.2
    assert area_under_curve(fs.subspace_scores(images, model).score, junk) > 0.98


def test_nothing_set_on_scattered_junk(scattered):
    images, junk, _ = scattered
    model = fs.fit_subspaces(images)
    assert_sound(model, *images.shape)
    assert model.keep[~junk].mean() > 0.9
    assert (~model.keep[junk]).mean() > 0.8
    assert area_under_curve(fs.subspace_scores(images, model).score, junk) > 0.95


@pytest.mark.parametrize("seed", range(14, 17))
def test_nothing_set_on_a_clean_set_drops_few(seed):
    images, _ = two_subspaces(seed)
    model = fs.fit_subspaces(images)
    assert_sound(model, *images.shape)
    assert model.keep.mean() > 0.95


def test_learning_stops_when_nothing_changes():
    images = drawn_from(random_mixture(15, 1, 20, 3), 400, 15)
    how = {"discard": 0, "robust": False, "max_iterations": 200}
    loose = fs.fit_subspaces(images, 1, 3, tolerance=1e-3, **how).trace.log_likelihood
    tight = fs.fit_subspaces(images, 1, 3, tolerance=1e-6, **how).trace.log_likelihood
    assert len(loose) < len(tight) < 200
    for value, tolerance in ((loose, 1e-3), (tight, 1e-6)):
        change = np.abs(np.diff(value)) / np.abs(value[1:])
        assert (change[:-2] > 0.5 * tolerance).all()
        assert change[-1] < 2 * tolerance


# Ugly input.


@pytest.fixture(scope="module")
def some():
    return drawn_from(random_mixture(30, 2, 20, 3), 200, 30)


@pytest.fixture(scope="module")
def some_model(some):
    return fs.fit_subspaces(some, 2, 3)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n_components": 0}, "n_components"),
        ({"n_components": -3}, "n_components"),
        ({"n_components": 2.5}, "n_components"),
        ({"n_components": 20}, "n_components"),
        ({"n_components": 500}, "n_components"),
        ({"n_subspaces": 0}, "n_subspaces"),
        ({"n_subspaces": -1}, "n_subspaces"),
        ({"n_subspaces": "two"}, "n_subspaces"),
        ({"discard": 1}, "discard"),
        ({"discard": 1.5}, "discard"),
        ({"discard": -0.1}, "discard"),
        ({"discard": np.nan}, "discard"),
        ({"every": 0}, "every"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"tolerance": -1}, "tolerance"),
        ({"tolerance": np.nan}, "tolerance"),
        ({"preset": "best"}, "preset"),
    ],
)
def test_impossible_requests(some, request_, message):
    with pytest.raises(fs.InputError, match=message):
        fs.fit_subspaces(some, **({"n_subspaces": 2, "n_components": 3} | request_))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros(20),
        np.zeros((5, 4, 20)),
        np.zeros((), dtype=np.float32),
        np.zeros((30, 20), dtype=np.complex64),
        np.full((30, 20), "1.0"),
        np.full((30, 20), None),
    ],
    ids=["1-D", "3-D", "0-D", "complex", "text", "objects"],
)
def test_arrays_that_are_no_coefficients(images, some_model):
    with pytest.raises(fs.InputError):
        fs.fit_subspaces(images, 1, 2)
    for function in (fs.sorting_factor, fs.subspace_scores, fs.subspaces.denoise):
        with pytest.raises(fs.InputError):
            function(images, some_model)


def test_model_of_other_coefficients(some, some_model):
    for function in (fs.sorting_factor, fs.subspace_scores, fs.subspaces.denoise):
        with pytest.raises(fs.InputError, match="20"):
            function(some[:, :19], some_model)


def test_nothing_to_learn_from():
    for images in (np.empty((0, 20), dtype=np.float32), np.full((50, 20), np.nan), np.empty((5, 0))):
        with pytest.raises(fs.InputError):
            fs.fit_subspaces(images, 1, 2)
    with pytest.raises(fs.InputError):
        fs.fit_subspaces(np.ones((50, 1)))


@pytest.mark.parametrize("robust", [True, False])
@pytest.mark.parametrize("n", [10, 20, 39])
def test_fewer_images_than_dimensions(n, robust):
    images = drawn_from(random_mixture(31, 1, 40, 2), n, 31)
    model = fs.fit_subspaces(images, 1, 2, robust=robust, discard=0, max_iterations=40)
    assert_sound(model, *images.shape)
    assert_scores_sound(images, model)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("n_subspaces", [1, 4, 50])
def test_more_subspaces_than_the_images_carry(n, n_subspaces, some):
    # Refused, or a model that can be used.
    try:
        model = fs.fit_subspaces(some[:n], n_subspaces, 3)
    except fs.InputError:
        assert n < 2 * n_subspaces * 4
    else:
        assert_sound(model, n, 20)
        assert_scores_sound(some, model)


@pytest.mark.parametrize("n", [1, 2, 5, 30])
@pytest.mark.parametrize("n_values", [2, 3, 8, 40])
def test_nothing_set_on_small_sets(n, n_values):
    images = drawn_from(random_mixture(32, 1, n_values, 1), n, 32)
    try:
        model = fs.fit_subspaces(images)
    except fs.InputError:
        assert n < 30
    else:
        assert_sound(model, n, n_values)
        assert_scores_sound(images, model)


@pytest.mark.parametrize("robust", [True, False])
@pytest.mark.parametrize("constant", [0.0, 1e-3, 500.0])
def test_constant_columns(some, constant, robust):
    images = some.copy()
    images[:, [0, 7]] = constant
    model = fs.fit_subspaces(images, 2, 3, robust=robust, discard=0, max_iterations=30)
    assert_sound(model, *images.shape)
    assert_scores_sound(images, model)
    np.testing.assert_allclose(model.means[:, [0, 7]], constant, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(model.loadings[:, [0, 7]], 0, atol=1e-2)


@pytest.mark.parametrize("value", [0.0, 1.0, 3e-8, 1e8])
@pytest.mark.parametrize("n_subspaces", [1, 2])
def test_the_same_image_again_and_again(some, value, n_subspaces):
    images = np.repeat(value * some[:1], 60, axis=0)
    try:
        model = fs.fit_subspaces(images, n_subspaces, 2)
    except fs.InputError:
        return
    assert_sound(model, 60, 20)
    assert_scores_sound(images, model)
    assert len(np.unique(fs.subspace_scores(images, model).score)) == 1


def test_images_without_noise():
    images = drawn_from(random_mixture(33, 1, 20, 3, noise_variance=0.0), 200, 33)
    for n_components in (2, 3, 5):
        model = fs.fit_subspaces(images, 1, n_components, discard=0, max_iterations=60)
        assert_sound(model, 200, 20)
        assert_scores_sound(images, model)


def test_unfit_rows_are_never_used(some):
    images = some.copy()
    images[3, 2] = np.nan
    images[50] = np.nan
    images[70, 0] = np.inf
    images[90] = -np.inf
    unfit = ~np.isfinite(images).all(axis=1)
    for how in ({}, {"preset": "published"}, PLAIN | {"max_iterations": 80}):
        model = fs.fit_subspaces(images, 1, 3, **how)
        assert_sound(model, *images.shape)
        assert not model.keep[unfit].any()
        assert (model.trace.n_images <= 196).all()
        assert_scores_sound(images, model)
        np.testing.assert_allclose(
            fs.sorting_factor(images, model)[~unfit], fs.sorting_factor(images[~unfit], model), rtol=1e-5
        )
    without = fs.fit_subspaces(images[~unfit], 1, 3, **how)
    assert model.noise_variance == pytest.approx(without.noise_variance, rel=1e-3)
    assert_near(products(model.loadings), products(without.loadings), 1e-2)
    assert model.keep[~unfit].all()


def test_an_image_without_projected_energy(some, some_model):
    images = some[:5].copy()
    images[2] = 0
    factor = fs.sorting_factor(images, some_model)
    np.testing.assert_array_equal(np.isposinf(factor), np.arange(5) == 2)
    assert_scores_sound(images, some_model)


def test_scores_of_one_image_and_of_none(some, some_model):
    assert_scores_sound(some[:1], some_model)
    for function in (fs.sorting_factor, fs.subspaces.denoise):
        assert len(function(some[:0], some_model)) == 0
    assert all(len(field) == 0 for field in fs.subspace_scores(some[:0], some_model))


@pytest.mark.parametrize("discard", [0.5, 0.9, 0.999])
def test_discarding_nearly_everything_stops_in_time(some, discard):
    model = fs.fit_subspaces(some, 2, 3, discard=discard, every=1, max_iterations=30, tolerance=0)
    assert_sound(model, *some.shape)
    assert_scores_sound(some, model)


@pytest.mark.parametrize("robust", [True, False])
def test_far_from_the_origin(robust):
    truth = random_mixture(34, 1, 30, 3, noise_variance=1.0, offset=0.0)
    truth = truth._replace(loadings=3 * truth.loadings)
    images = drawn_from(truth, 1000, 34).astype(np.float64) + 1e4
    expected = naive.ppca_optimum(images, 3)
    model = fs.fit_subspaces(images, 1, 3, robust=robust, discard=0, max_iterations=80, tolerance=0)
    assert_sound(model, *images.shape)
    assert_scores_sound(images, model)
    assert model.noise_variance == pytest.approx(expected.noise_variance, rel=0.05)
    assert np.rad2deg(scipy.linalg.subspace_angles(model.loadings[0], expected.loadings).max()) < 3
    np.testing.assert_allclose(model.means[0], expected.mean, atol=1)
    scores = fs.subspace_scores(images, model)
    assert scores.log_likelihood.mean() == pytest.approx(expected.log_likelihood, rel=0.01)
