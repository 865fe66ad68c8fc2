"""Steerable principal components: against a dense covariance of turned copies; rank; noise; ugly input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsort import InputError
from fastsort.subspaces import rows as rows_module
from fastsort.subspaces import steerable
from fastsort.subspaces.pswf import pswf_basis, pswf_coefficients, pswf_images
from fastsort.subspaces.steerable import relative_energy, steerable_pca

examples = settings(max_examples=15, deadline=None)
BASIS = pswf_basis(24, 0.35)
LENGTH = len(BASIS.angular)


def noise(seed, n, variance=1.0):
    return np.sqrt(variance) * np.random.default_rng(seed).normal(size=(n, LENGTH))


def spikes(seed, n, strengths):
    """Coefficients of random orientation along one direction an angular index, and its cosine rows."""
    rng = np.random.default_rng(seed)
    rows, directions = np.zeros((n, LENGTH)), {}
    for m, strength in strengths.items():
        cosine = np.flatnonzero(BASIS.angular == m)
        direction = rng.normal(size=len(cosine))
        direction /= np.linalg.norm(direction)
        directions[m] = np.zeros(LENGTH)
        directions[m][cosine] = direction
        phase = rng.uniform(0, 2 * np.pi, (n, 1))
        rows[:, cosine] += strength * np.sqrt(2) * np.cos(phase) * direction
        if m:
            rows[:, np.flatnonzero(BASIS.angular == -m)] += strength * np.sqrt(2) * np.sin(phase) * direction
    return rows, directions


def all_orientations(rows):
    """Every row turned by many angles, and mirrored."""
    rows = np.concatenate([rows, np.where(BASIS.angular < 0, -rows, rows)])
    n_angles = 2 * BASIS.angular.max() + 1
    copies = []
    for angle in 2 * np.pi * np.arange(n_angles) / n_angles:
        copy = rows.copy()
        for cosine in np.flatnonzero(BASIS.angular > 0):
            turn = BASIS.angular[cosine] * angle
            copy[:, cosine] = rows[:, cosine] * np.cos(turn) + rows[:, cosine + 1] * np.sin(turn)
            copy[:, cosine + 1] = rows[:, cosine + 1] * np.cos(turn) - rows[:, cosine] * np.sin(turn)
        copies.append(copy)
    return np.concatenate(copies)


def ragged(seed, n):
    """Skewed coefficients with a mean, of very different variances."""
    rng = np.random.default_rng(seed)
    mixed = rng.exponential(size=(n, LENGTH)) @ rng.normal(size=(LENGTH, LENGTH)) / np.sqrt(LENGTH)
    return mixed * np.exp(rng.normal(size=LENGTH))


@pytest.mark.parametrize("n", [7, 60])
def test_components_are_those_of_all_turned_and_mirrored_copies(n):
    rows = ragged(n, n)
    pca = steerable_pca(rows, BASIS, LENGTH)
    copies = all_orientations(rows)
    np.testing.assert_allclose(pca.mean, copies.mean(axis=0), atol=1e-12)
    covariance = np.cov(copies.T, bias=True)
    rebuilt = (pca.components.T * pca.eigenvalues) @ pca.components
    np.testing.assert_allclose(rebuilt, covariance, atol=1e-11 * np.abs(covariance).max())
    np.testing.assert_allclose(
        pca.eigenvalues, np.linalg.eigvalsh(covariance)[::-1], atol=1e-11 * pca.eigenvalues[0]
    )


@examples
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 80), n_components=st.integers(1, LENGTH))
def test_components_are_orthonormal_descending_and_in_pairs(seed, n, n_components):
    pca = steerable_pca(ragged(seed, n), BASIS, n_components)
    k = len(pca.components)
    assert k in (n_components, n_components + 1)
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(k), atol=1e-12)
    assert (np.diff(pca.eigenvalues) <= 0).all()
    assert (pca.components[pca.angular[:, None] != BASIS.angular] == 0).all()
    for first in np.flatnonzero(pca.angular > 0):
        assert pca.angular[first + 1] == -pca.angular[first]
        assert pca.eigenvalues[first + 1] == pca.eigenvalues[first]
        m = pca.angular[first]
        np.testing.assert_array_equal(
            pca.components[first, BASIS.angular == m], pca.components[first + 1, BASIS.angular == -m]
        )


def test_components_of_turned_images_are_the_same():
    rows = ragged(5, 40)
    images = pswf_images(rows, 24, 0.35)
    turned = images.copy()
    turned[:, 1:, 1:] = np.rot90(images[:, 1:, 1:], axes=(1, 2))
    turned[20:, 1:, 1:] = images[20:, 1:, :0:-1]
    one, other = (steerable_pca(pswf_coefficients(part, 0.35), BASIS, 30) for part in (images, turned))
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-5 * np.abs(one.mean).max())
    np.testing.assert_allclose(one.eigenvalues, other.eigenvalues, rtol=1e-4)


@pytest.mark.parametrize("n", [40, 400, 4000])
def test_noise_has_rank_zero_and_its_variance_is_found(n):
    for seed in range(6):
        pca = steerable_pca(noise(seed, n, 7.0), BASIS)
        assert pca.rank == 0
        assert pca.components.shape == (0, LENGTH)
        assert abs(pca.noise_variance / 7 - 1) < max(0.02, 0.4 / np.sqrt(n))


@pytest.mark.parametrize(("size", "n_samples"), [(20, 4000), (150, 300), (200, 200), (400, 100)])
def test_median_of_the_law_of_noise(size, n_samples):
    rows = np.random.default_rng(size).normal(size=(n_samples, size))
    values = np.linalg.svd(rows, compute_uv=False) ** 2 / n_samples
    assert abs(steerable._median_of_noise(size, n_samples) / np.median(values) - 1) < 0.03


@pytest.mark.parametrize(("n", "tolerance"), [(4, 0.12), (12, 0.04), (40, 0.012)])
def test_noise_variance_from_few_images_is_right_on_average(n, tolerance):
    signal, _ = spikes(n, n, dict.fromkeys(range(8), 30.0))
    for offset in (0, signal):
        found = [steerable_pca(offset + noise(seed, n), BASIS).noise_variance for seed in range(60)]
        assert abs(np.mean(found) - 1) < tolerance


@pytest.mark.parametrize("n", [60, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_spikes_are_found_and_the_noise_under_them(n, dtype):
    strengths = {0: 4.0, 1: 6.0, 4: 3.0, 9: 5.0}
    signal, directions = spikes(n, n, strengths)
    rows = signal + noise(n + 1, n) + (BASIS.angular == 0) * 100.0
    pca = steerable_pca(rows.astype(dtype), BASIS)
    assert pca.rank == len(pca.components) == 7
    assert sorted(np.abs(pca.angular)) == [0, 1, 1, 4, 4, 9, 9]
    assert abs(pca.noise_variance - 1) < (0.02 if n > 100 else 0.06)
    for m, direction in directions.items():
        found = int(np.flatnonzero(pca.angular == m)[0])
        assert abs(pca.components[found] @ direction) > (0.98 if n > 100 else 0.8)
        assert abs(pca.eigenvalues[found] / (strengths[m] ** 2 + 1) - 1) < 4 / np.sqrt(n)
    np.testing.assert_allclose(pca.mean[BASIS.angular == 0], 100, atol=20 / np.sqrt(n))
    assert not pca.mean[BASIS.angular != 0].any()


def test_noise_is_found_under_signal_in_many_components():
    rng = np.random.default_rng(8)
    rows = noise(9, 3000)
    low = np.flatnonzero(np.abs(BASIS.angular) < 6)
    rows[:, low] += rng.normal(size=(3000, len(low))) * 10 / (1 + BASIS.radial[low])
    assert len(low) > 0.4 * LENGTH
    pca = steerable_pca(rows, BASIS)
    assert abs(pca.noise_variance - 1) < 0.02
    assert pca.rank == len(low)


def test_given_noise_variance_and_number_are_taken():
    signal, _ = spikes(3, 500, {0: 5.0, 3: 8.0})
    rows = signal + noise(4, 500)
    assert steerable_pca(rows, BASIS, noise_variance=1.0).rank == 3
    above = steerable_pca(rows, BASIS, noise_variance=40.0)
    assert above.rank == 2
    assert above.noise_variance == 40
    assert list(above.angular) == [3, -3]
    more = steerable_pca(rows, BASIS, 10)
    assert more.rank == 3
    assert len(more.components) in (10, 11)
    np.testing.assert_array_equal(more.components[:3], steerable_pca(rows, BASIS).components)


def test_images_without_noise():
    signal, _ = spikes(6, 300, {0: 5.0, 2: 8.0})
    pca = steerable_pca(signal, BASIS)
    assert pca.rank == 3
    assert pca.noise_variance < 1e-20
    np.testing.assert_allclose(relative_energy(signal, pca), 1)


def test_relative_energy_is_that_of_the_projection():
    signal, _ = spikes(3, 200, {0: 5.0, 3: 8.0})
    rows = signal + noise(4, 200) + 2
    rows[5] = 0
    rows[6, 3] = np.nan
    rows[7, 0] = np.inf
    pca = steerable_pca(rows, BASIS, 5)
    found = relative_energy(rows, pca)
    for i, row in enumerate(rows):
        if i in (5, 6, 7):
            assert found[i] == 0
            continue
        projection = sum((component @ row) * component for component in pca.components)
        assert found[i] == pytest.approx((projection @ projection) / (row @ row), abs=1e-12)
    np.testing.assert_allclose(relative_energy(rows * 1e-160, pca), found)
    np.testing.assert_allclose(relative_energy(rows * 1e160, pca), found)
    inside = np.random.default_rng(0).normal(size=(4, len(pca.components))) @ pca.components
    np.testing.assert_allclose(relative_energy(inside, pca), 1)
    none = pca._replace(components=pca.components[:0])
    np.testing.assert_array_equal(relative_energy(rows, none), 0)


def test_memory_map_and_workers_change_no_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "BATCH_BYTES", 8 * LENGTH * 70)
    rows = ragged(2, 500).astype(np.float32)
    rows[[3, 77]] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    expected = steerable_pca(rows, BASIS, 20, n_jobs=1)
    for other in (
        steerable_pca(np.load(tmp_path / "rows.npy", mmap_mode="r"), BASIS, 20),
        steerable_pca(rows, BASIS, 20, n_jobs=2),
        steerable_pca(rows.astype(">f4"), BASIS, 20),
        steerable_pca(np.asfortranarray(rows), BASIS, 20),
    ):
        for one, two in zip(expected, other, strict=True):
            np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(
        relative_energy(np.load(tmp_path / "rows.npy", mmap_mode="r"), expected, n_jobs=2),
        relative_energy(rows, expected, n_jobs=1),
    )
    assert np.isnan(rows[3]).all()


def test_half_precision_is_read_as_it_is():
    rows = ragged(2, 90).astype(np.float16)
    half, double = (steerable_pca(rows.astype(dtype), BASIS, 9) for dtype in (np.float16, np.float64))
    np.testing.assert_array_equal(half.components, double.components)


@examples
@given(seed=st.integers(0, 2**32 - 1))
def test_order_of_images_does_not_matter(seed):
    signal, _ = spikes(1, 150, {0: 5.0, 3: 8.0})
    rows = signal + noise(2, 150)
    order = np.random.default_rng(seed).permutation(150)
    one, other = steerable_pca(rows, BASIS), steerable_pca(rows[order], BASIS)
    np.testing.assert_allclose(one.components, other.components, atol=1e-10)
    np.testing.assert_allclose(one.noise_variance, other.noise_variance, rtol=1e-12)
    np.testing.assert_allclose(relative_energy(rows, one)[order], relative_energy(rows[order], other))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_unfit_rows_are_left_out(value):
    rows = ragged(4, 50)
    spoiled = np.insert(rows, 20, rows[0], axis=0)
    spoiled[20, 8] = value
    one, other = steerable_pca(rows, BASIS, 9), steerable_pca(spoiled, BASIS, 9)
    np.testing.assert_allclose(one.components, other.components, atol=1e-10)
    np.testing.assert_allclose(one.eigenvalues, other.eigenvalues, rtol=1e-12)


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (np.zeros((4, 9)), {}, f"must have {LENGTH} columns; got 9: make them with the same basis"),
        (np.zeros(LENGTH), {}, "must have shape"),
        (np.zeros((0, LENGTH)), {}, "no rows"),
        (np.zeros((4, LENGTH), dtype=complex), {}, "real numbers; got an array of complex128"),
        (np.zeros((1, LENGTH)), {}, "two images or more; got 1"),
        (np.full((4, LENGTH), np.nan), {}, "got 0 without NaN among 4"),
        (np.ones((4, LENGTH)), {"n_components": 0}, "n_components must be a whole number"),
        (np.ones((4, LENGTH)), {"n_components": LENGTH + 1}, f"at most the {LENGTH} functions"),
        (np.ones((4, LENGTH)), {"noise_variance": -1.0}, "noise_variance must be positive; got -1"),
    ],
)
def test_impossible_requests_are_refused(rows, arguments, message):
    with pytest.raises(InputError, match=message):
        steerable_pca(rows, BASIS, **arguments)


def test_coefficients_of_another_basis_have_no_energy():
    pca = steerable_pca(noise(0, 20), BASIS, 3)
    with pytest.raises(InputError, match=f"must have {LENGTH} columns"):
        relative_energy(np.zeros((2, LENGTH + 1)), pca)
