"""Denoising patch by patch: each method against a plain one, and what must hold for any image."""

from __future__ import annotations

import naive_denoising as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsort._checks import InputError
from fastsort.denoising import bm3d as bm3d_module
from fastsort.denoising import ksvd as ksvd_module
from fastsort.denoising.bm3d import bm3d
from fastsort.denoising.ksvd import Dictionary, ksvd, learn_dictionary, overcomplete_cosines, sparse_codes
from fastsort.denoising.nonlocal_means import nonlocal_means
from fastsort.denoising.patches import add_patches, cosine_waves, overlap, patches_by_rows, sample_patches
from fastsort.denoising.tight_frame import Frame, learn_frame, tight_frame
from fastsort.denoising.total_variation import total_variation


def phantom(n=3, d=32, seed=0):
    """Disks and bars with soft edges, and white noise of deviation 1."""
    rng = np.random.default_rng(seed)
    row, column = np.ogrid[:d, :d]
    clean = np.zeros((n, d, d))
    for image in clean:
        for _ in range(3):
            y, x = rng.uniform(d / 4, 3 * d / 4, 2)
            image += 2 / (1 + np.exp(np.hypot(row - y, column - x) - d / 6))
    return clean.astype(np.float32), (clean + rng.normal(size=clean.shape)).astype(np.float32)


CLEAN, NOISY = phantom()
FRAME = learn_frame(NOISY, n_patches=2000, n_rounds=5)
DICTIONARY = learn_dictionary(NOISY, n_patches=2000, n_rounds=3, n_atoms=100)
METHODS = {
    "total variation": lambda images, deviation=1.0: total_variation(images, deviation=deviation),
    "non-local means": lambda images, deviation=1.0: nonlocal_means(images, deviation=deviation),
    "K-SVD": lambda images, deviation=1.0: ksvd(images, DICTIONARY, deviation),
    "tight frame": lambda images, deviation=1.0: tight_frame(images, FRAME, deviation),
    "BM3D": bm3d,
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


# What holds for every method.


@every_method
def test_error_falls_to_a_third_at_most(method):
    denoised = method(NOISY)
    assert ((denoised - CLEAN) ** 2).mean() < ((NOISY - CLEAN) ** 2).mean() / 3
    assert denoised.dtype == np.float32 and denoised.shape == NOISY.shape


@every_method
def test_constant_images_stay(method):
    for value in (0.0, 5.0, -300.0):
        images = np.full((2, 20, 20), value, np.float32)
        np.testing.assert_allclose(method(images), images, rtol=1e-5, atol=1e-6)


@every_method
@settings(max_examples=6, deadline=None)
@given(st.integers(0, 100), st.integers(-8, 8), st.sampled_from([16, 17, 23]))
def test_unit_of_the_images_does_not_matter(method, seed, exponent, d):
    images = phantom(1, d, seed)[1]
    factor = 2.0**exponent
    # A power of two changes no digit, so no decision falls otherwise.
    np.testing.assert_allclose(
        method(images * np.float32(factor), factor), method(images) * factor, rtol=1e-4, atol=1e-4 * factor
    )


@every_method
def test_an_offset_goes_through(method):
    # A decision may fall otherwise where two numbers are nearly equal, so only most pixels must agree.
    change = np.abs(method(NOISY + np.float32(16)) - 16 - method(NOISY))
    assert np.quantile(change, 0.9) < 0.01


@pytest.mark.parametrize("method", [total_variation, nonlocal_means, bm3d])
def test_transposed_images_give_transposed_results(method):
    transposed = np.ascontiguousarray(NOISY.transpose(0, 2, 1))
    change = np.abs(method(transposed).transpose(0, 2, 1) - method(NOISY))
    assert np.quantile(change, 0.9) < 0.01


@every_method
def test_images_do_not_depend_on_each_other_and_are_not_modified(method):
    images = NOISY.copy()
    images.flags.writeable = False
    together = method(images)
    np.testing.assert_array_equal(images, NOISY)
    np.testing.assert_array_equal(together, method(images))
    for k in range(len(images)):
        np.testing.assert_array_equal(method(images[k : k + 1])[0], together[k])


@every_method
def test_no_noise_returns_a_copy_and_none_is_fine(method):
    returned = method(NOISY, 0.0)
    np.testing.assert_array_equal(returned, NOISY)
    assert not np.shares_memory(returned, NOISY)
    assert method(NOISY[:0]).shape == (0, 32, 32)


@every_method
@pytest.mark.parametrize("dtype", [">f4", np.float16, np.int16, np.float64])
def test_any_real_type_is_read(method, dtype):
    images = np.rint(8 * NOISY).astype(dtype)
    np.testing.assert_array_equal(method(images, 8.0), method(images.astype(np.float32), 8.0))


@every_method
def test_one_strong_pixel_gives_no_nan(method):
    images = NOISY.copy()
    images[0, 0, 0], images[1, 31, 15] = 1e6, -1e6
    assert np.isfinite(method(images)).all()
    assert np.isfinite(method(NOISY, 1e-3)).all() and np.isfinite(method(NOISY, 1e3)).all()


@every_method
def test_wrong_input_is_refused(method):
    with pytest.raises(InputError, match="deviation must be positive"):
        method(NOISY, -1.0)
    with pytest.raises(InputError, match="deviation must be positive"):
        method(NOISY, float("nan"))
    with pytest.raises(InputError, match="square"):
        method(NOISY[:, :20])
    with pytest.raises(InputError, match="shape"):
        method(NOISY[0])


def test_more_strength_leaves_less_noise():
    def left(images):
        return np.abs(np.diff(images, axis=2)).mean()

    for method, weak, strong in (
        (total_variation, 0.5, 2.0),
        (nonlocal_means, 0.4, 2.0),
        (lambda images, strength: bm3d(images, strength=strength), 0.7, 1.3),
        (lambda images, strength: ksvd(images, DICTIONARY, strength=strength), 1.0, 1.2),
        (lambda images, strength: tight_frame(images, FRAME, threshold=strength), 2.0, 4.0),
    ):
        assert left(method(NOISY, weak)) > left(method(NOISY, strong))
        with pytest.raises(InputError, match="positive"):
            method(NOISY, 0.0)


# Total variation.


@pytest.mark.parametrize("weight", [0.1, 1.0, 4.0])
def test_total_variation_reaches_the_minimum_of_its_objective(weight):
    image = phantom(1, 20, 3)[1]
    ours = naive.rof_objective(total_variation(image, weight)[0], image[0], weight)
    best = naive.rof_objective(naive.chambolle(image[0], weight), image[0], weight)
    assert ours <= best * (1 + 1.1e-3)
    long = total_variation(image, weight, n_iterations=1)
    assert naive.rof_objective(long[0], image[0], weight) > best * (1 + 1e-4)


def test_total_variation_keeps_the_mean_and_flattens_when_strong():
    denoised = total_variation(NOISY, 2.0)
    np.testing.assert_allclose(denoised.mean(axis=(1, 2)), NOISY.mean(axis=(1, 2)), atol=1e-4)
    flat = total_variation(NOISY, 200.0, n_iterations=2000)
    assert flat.std(axis=(1, 2)).max() < 0.05


# Non-local means.


@pytest.mark.parametrize(
    ("patch", "distance", "strength"), [(5, 6, 0.8), (3, 2, 0.3), (7, 9, 2.0), (1, 1, 0.5)]
)
def test_nonlocal_means_follow_the_formula(patch, distance, strength):
    image = phantom(1, 16, 4)[1]
    expected = naive.nonlocal_means(image[0], strength, 1.2, patch, distance)
    found = nonlocal_means(image, strength, 1.2, patch=patch, distance=distance)[0]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_nonlocal_means_refuse_windows_that_do_not_fit():
    with pytest.raises(InputError, match="odd"):
        nonlocal_means(NOISY, patch=4)
    with pytest.raises(InputError, match="fit"):
        nonlocal_means(NOISY, distance=32)


# Patches.


@settings(max_examples=20, deadline=None)
@given(st.integers(16, 40), st.integers(2, 12))
def test_patches_go_back_where_they_came_from(d, p):
    image = np.random.default_rng(d).normal(size=(d, d)).astype(np.float32)
    expected = naive.all_patches(image, p)[0]
    total = np.zeros((d, d), np.float32)
    parts = []
    for first, patches in patches_by_rows(image, p):
        add_patches(patches, first, total)
        parts.append(patches)
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    np.testing.assert_allclose(total / overlap(d, p), image, rtol=1e-4, atol=1e-5)


def test_large_images_are_cut_in_several_groups():
    image = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
    groups = list(patches_by_rows(image, 8))
    assert len(groups) > 1 and sum(len(patches) for _, patches in groups) == 93 * 93
    np.testing.assert_array_equal(groups[1][1][0], image[groups[1][0] :, :][:8, :8].ravel())


def test_sampled_patches_are_patches_of_all_images():
    images = (np.arange(4)[:, None, None] * 1000 + np.arange(400).reshape(20, 20)).astype(np.float32)
    patches = sample_patches(images, 5, 500, seed=3)
    first = patches[:, 0]
    assert set((first // 1000).astype(int)) == {0, 1, 2, 3}
    offsets = (20 * np.arange(5)[:, None] + np.arange(5)).ravel()
    np.testing.assert_array_equal(patches, first[:, None] + offsets)
    assert ((first % 1000) % 20 <= 15).all() and ((first % 1000) // 20 <= 15).all()
    np.testing.assert_array_equal(patches, sample_patches(images, 5, 500, seed=3))
    assert (patches != sample_patches(images, 5, 500, seed=4)).any()


def test_cosine_waves():
    np.testing.assert_allclose(cosine_waves(8, 8), naive.cosine_matrix(8), atol=1e-12)
    waves = cosine_waves(8, 12)
    np.testing.assert_allclose(np.linalg.norm(waves, axis=1), 1)
    np.testing.assert_allclose(waves[1:].sum(axis=1), 0, atol=1e-12)


# K-SVD.


def test_pursuit_is_that_of_least_squares_over_supports():
    rng = np.random.default_rng(0)
    atoms = overcomplete_cosines(6, 50)
    patches = rng.normal(size=(60, 36)).astype(np.float32)
    for allowed in (0.9, 0.5, 0.2):
        found = sparse_codes(patches, atoms, allowed)
        most = int(ksvd_module.MOST * 36)
        for patch, one in zip(patches, found, strict=True):
            expected = naive.pursuit(patch.astype(float), atoms.astype(float), allowed, most)
            np.testing.assert_allclose(one, expected, atol=2e-3)
    # One atom alone explains itself, and nothing explains nothing.
    for allowed in (0.1, 1e-3, 0.0):
        np.testing.assert_allclose(sparse_codes(3 * atoms[:5], atoms, allowed), 3 * np.eye(5, 50), atol=1e-5)
    assert not sparse_codes(0 * patches, atoms, 0.0).any()


def test_atoms_become_best_rank_one_fits():
    rng = np.random.default_rng(1)
    atoms = overcomplete_cosines(4, 12)
    coefficients = (rng.normal(size=(300, 12)) * (rng.random((300, 12)) < 0.2)).astype(np.float32)
    patches = (coefficients @ atoms + 0.3 * rng.normal(size=(300, 16))).astype(np.float32)
    expected, shares = naive.ksvd_round(
        patches.astype(float), atoms.astype(float), coefficients.astype(float)
    )
    found, left_over = atoms.copy(), patches - coefficients @ atoms
    transposed = np.ascontiguousarray(coefficients.T)
    ksvd_module._fit_atoms(patches, transposed, 100, left_over, found)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(transposed.T, shares, atol=5e-3)
    np.testing.assert_allclose(left_over, patches - transposed.T @ found, atol=1e-4)


def test_unused_atoms_are_replaced_by_different_patches():
    rng = np.random.default_rng(2)
    atoms = overcomplete_cosines(4, 12)
    patches = rng.normal(size=(40, 16)).astype(np.float32)
    left_over = patches.copy()
    found = atoms.copy()
    ksvd_module._fit_atoms(patches, np.zeros((12, 40), np.float32), 3, left_over, found)
    likeness = np.abs(found @ (patches / np.linalg.norm(patches, axis=1, keepdims=True)).T)
    assert len(set(likeness.argmax(axis=1))) == 12
    np.testing.assert_allclose(likeness.max(axis=1), 1, atol=1e-5)


def test_patches_need_fewer_atoms_of_a_learned_dictionary():
    start = overcomplete_cosines(8, 30)
    learned = learn_dictionary(NOISY, n_patches=3000, n_rounds=6, n_atoms=30).atoms
    patches = sample_patches(NOISY, 8, 500, seed=9)
    patches -= patches.mean(axis=1, keepdims=True)
    before, after = (np.count_nonzero(sparse_codes(patches, atoms, 1.0)) for atoms in (start, learned))
    assert after < before
    np.testing.assert_allclose(np.linalg.norm(learned, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(learned.mean(axis=1), 0, atol=1e-5)


def test_ksvd_averages_coded_patches():
    image = phantom(1, 18, 5)[1]
    atoms = overcomplete_cosines(6, 60)
    patches, places = naive.all_patches(image[0].astype(float), 6)
    means = patches.mean(axis=1, keepdims=True)
    coded = [naive.pursuit(one, atoms.astype(float), 1.1, 18) @ atoms for one in patches - means]
    expected = naive.averaged(np.array(coded) + means, places, 6, 18)
    np.testing.assert_allclose(ksvd(image, Dictionary(atoms))[0], expected, atol=1e-3)


# Tight frame.


def test_one_round_of_the_tight_frame_is_its_definition():
    patches = sample_patches(NOISY, 6, 800, seed=2).astype(float)
    patches -= patches.mean(axis=1, keepdims=True)
    cosines = np.kron(naive.cosine_matrix(6), naive.cosine_matrix(6))
    coefficients = naive.hard(patches @ cosines.T, 2.0)
    # The orthogonal matrix W with the smallest sum |W g - c|^2, with the constant coefficient kept at 0.
    u, _, vt = np.linalg.svd(coefficients[:, 1:].T @ patches, full_matrices=False)
    found = learn_frame(NOISY, patch=6, threshold=2.0, n_rounds=1, n_patches=800, seed=2).filters
    np.testing.assert_allclose(found[1:], u @ vt, atol=1e-3)


def test_frames_are_orthonormal_and_make_patches_sparser():
    filters = FRAME.filters.astype(float)
    np.testing.assert_allclose(filters @ filters.T, np.eye(64), atol=1e-5)
    np.testing.assert_allclose(filters[0], 1 / 8, atol=1e-6)
    patches = sample_patches(NOISY, 8, 2000, seed=0)
    start = learn_frame(NOISY, n_rounds=0).filters

    def objective(frame):
        large = np.minimum((patches @ frame.T) ** 2, 2.9**2)
        return large[:, 1:].sum()

    assert objective(FRAME.filters) < objective(start)


def test_tight_frame_averages_thresholded_patches():
    image = phantom(1, 18, 6)[1]
    filters = FRAME.filters.astype(float)
    patches, places = naive.all_patches(image[0].astype(float), 8)
    coefficients = patches @ filters.T
    kept = naive.hard(coefficients, 2.5)
    kept[:, 0] = coefficients[:, 0]
    expected = naive.averaged(kept @ filters, places, 8, 18)
    np.testing.assert_allclose(tight_frame(image, FRAME, threshold=2.5)[0], expected, atol=1e-3)


def test_learning_is_deterministic_and_checks_its_input():
    for learn in (learn_frame, learn_dictionary):
        one, same, other = (learn(NOISY, n_patches=300, n_rounds=1, seed=seed)[0] for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert (one != other).any()
        for factor in (0.25, 64.0):
            scaled = learn(NOISY * np.float32(factor), factor, n_patches=300, n_rounds=1, seed=1)[0]
            np.testing.assert_allclose(scaled, one, atol=1e-4)
        with pytest.raises(InputError, match="no images"):
            learn(NOISY[:0])
        with pytest.raises(InputError, match="patch must be at most"):
            learn(NOISY, patch=33)
    with pytest.raises(InputError, match="learn_frame"):
        tight_frame(NOISY, Frame(np.zeros((63, 64), np.float32)))
    with pytest.raises(InputError, match="learn_dictionary"):
        ksvd(NOISY, Dictionary(np.zeros((10, 63), np.float32)))


# BM3D.


@pytest.mark.parametrize(("d", "offset", "n_passes"), [(16, 0.0, 1), (24, 20.0, 1), (17, 0.0, 2)])
def test_bm3d_is_its_plain_version(d, offset, n_passes):
    image = phantom(1, d, 7)[1]
    image += np.float32(offset) - image.mean()
    expected = naive.bm3d(image[0], 0.9, n_passes)
    # A coefficient next to the threshold may fall on its other side, so a few pixels may differ a little.
    change = np.abs(bm3d(image, 0.9, n_passes=n_passes)[0] - expected)
    assert np.quantile(change, 0.9) < 1e-3 and change.max() < 0.1


def test_bm3d_takes_a_small_mean_for_noise():
    noise = np.random.default_rng(0).normal(size=(20, 32, 32)).astype(np.float32)
    noise -= noise.mean(axis=(1, 2), keepdims=True)

    def found(mean):
        return float(np.median(bm3d(noise + np.float32(mean)).mean(axis=(1, 2))))

    assert found(1.0) == pytest.approx(1.0, abs=0.01)
    assert found(3.1 / 32) == pytest.approx(3.1 / 32, abs=0.01)
    assert abs(found(1.0 / 32)) < 0.5 / 32


def test_bm3d_wavelets_are_those_of_the_plain_version():
    np.testing.assert_allclose(bm3d_module._wavelets(), naive.wavelet_matrix(8), atol=1e-12)


def test_bm3d_on_images_larger_than_its_window():
    """Beyond 39 rows the blocks overwrite those that are no longer needed."""
    image = phantom(1, 64, 8)[1]
    scaled = (image[0] - image[0].mean()).astype(np.float32)
    found = bm3d_module._filtered(scaled[None], scaled[None], False, bm3d_module._wavelets())[0]
    expected = naive.bm3d_stage(scaled.astype(float), scaled.astype(float), False, 3)
    change = np.abs(found - expected)
    assert np.quantile(change, 0.9) < 1e-3 and change.max() < 0.1
