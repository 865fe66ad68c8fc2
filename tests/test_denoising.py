"""Spectra, Wiener filters, covariance filter, neighbours, and predicted errors."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_covariance import covariance_filter as naive_covariance_filter
from naive_covariance import shrink
from scipy.spatial.transform import Rotation

import fastsort as fs
from fastsort._checks import InputError
from fastsort.denoising.covariance import (
    covariance_filter,
    group_profiles,
    learn_covariance,
    plan_of,
    quadrature,
    resampled,
    shrunk,
    without_mean,
)
from fastsort.denoising.neighbours import learn_neighbours, neighbour_filter
from fastsort.denoising.risk import predict_error
from fastsort.denoising.spectra import learn_spectra, on_plane
from fastsort.denoising.wiener import wiener
from fastsort.images.ctf import contrast_transfer
from fastsort.particles.source import as_particles
from fastsort.simulate.phantoms import phantom_blobs, phantom_volume
from fastsort.simulate.plan import optics_at
from fastsort.simulate.projections import project_volume
from fastsort.subspaces.pswf import angular_blocks, pswf_basis

BOX, N, PIXEL_SIZE = 32, 400, 5.0


def projections(n=N, box=BOX, shape="two-lobed", seed=0):
    volume = phantom_volume(phantom_blobs(shape), box, 2 / 3 * box)
    images = project_volume(volume, Rotation.random(n, random_state=seed).as_matrix())
    return (images / images.std()).astype(np.float32)


def with_noise(clean, snr, seed=1):
    rng = np.random.default_rng(seed)
    return clean + rng.normal(0, snr**-0.5, clean.shape).astype(np.float32)


def error_of(denoised, clean):
    offset = np.arange(clean.shape[1]) - clean.shape[1] // 2
    disk = np.hypot(offset[:, None], offset) <= clean.shape[1] / 2
    return float(((denoised - clean)[:, disk] ** 2).sum() / (clean[:, disk] ** 2).sum())


def through_ctf(clean, seed=2, pixel_size=PIXEL_SIZE):
    rng = np.random.default_rng(seed)
    optics = optics_at(rng.uniform(1e4, 2.5e4, 6), np.zeros(6))
    ctf = optics.of(np.arange(len(clean)) % 6)
    transfer = contrast_transfer(ctf, clean.shape[1], pixel_size)
    seen = scipy.fft.irfft2(scipy.fft.rfft2(clean) * transfer, clean.shape[1:])
    return seen.astype(np.float32), ctf, transfer


@pytest.fixture(scope="module")
def clean():
    return projections()


# Spectra.


@pytest.mark.parametrize("snr", [0.8, 0.05])
def test_white_noise_is_known_to_one_percent(snr):
    images = with_noise(projections(1000), snr)
    spectra = learn_spectra(images)
    assert spectra.noise == pytest.approx(np.full(BOX // 2 + 2, 1 / snr), rel=0.01)


def test_coloured_noise_and_signal_are_recovered(clean):
    white = np.random.default_rng(0).standard_normal(clean.shape)
    truth = 4 / (1 + (np.arange(BOX // 2 + 2) / 6) ** 2) + 0.5
    noise = scipy.fft.irfft2(scipy.fft.rfft2(white) * np.sqrt(on_plane(truth, BOX)), (BOX, BOX))
    spectra = learn_spectra((clean + noise).astype(np.float32))
    # The corners of a small box show low frequencies through a narrow window.
    assert spectra.noise[4:-1] == pytest.approx(truth[4:-1], rel=0.12)
    power = learn_spectra(clean + np.float32(1e-3) * white.astype(np.float32)).signal
    assert spectra.signal[2:6] == pytest.approx(power[2:6], rel=0.2)


def test_signal_is_that_before_the_ctf(clean):
    seen, ctf, _ = through_ctf(clean)
    particles = replace(as_particles(with_noise(seen, 1.0), pixel_size=PIXEL_SIZE), ctf=ctf)
    power = learn_spectra(with_noise(clean, 1e4)).signal
    assert learn_spectra(particles).signal[2:8] == pytest.approx(power[2:8], rel=0.25)


def test_images_of_junk_do_not_change_the_noise(clean):
    images = with_noise(clean, 0.2)
    spoilt = images.copy()
    spoilt[::20] *= 20
    spoilt[1::20, 3, 3] = np.nan
    assert learn_spectra(spoilt).noise == pytest.approx(learn_spectra(images).noise, rel=0.02)


# The covariance filter.


@pytest.mark.parametrize("m", [0, 1, 6])
def test_a_radial_multiplier_is_a_matrix_in_each_angular_index(m):
    size, bandlimit = 40, 0.4
    basis = pswf_basis(size, bandlimit)
    nodes, waves = quadrature(size, bandlimit)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    functions = basis.functions[angular_blocks(basis)[m][0]].astype(np.float64)

    def multiplier(k):
        return np.cos(20 * k**2) ** 2 * np.maximum(1 - (k / bandlimit) ** 2, 0) ** 2

    seen = np.fft.irfft2(np.fft.rfft2(functions) * multiplier(frequency), (size, size))
    matrix = np.tensordot(functions, seen, ([1, 2], [1, 2]))
    np.testing.assert_allclose((waves[m] * multiplier(nodes * bandlimit)) @ waves[m].T, matrix, atol=0.03)


@settings(max_examples=30, deadline=None)
@given(st.floats(1.01, 50), st.floats(0.01, 2))
def test_eigenvalues_are_shrunk_as_the_published_formula_says(value, ratio):
    n, size = 8 / ratio, 8
    scatter = np.diag([value] + [1e-3] * (size - 1))
    signal = shrunk(scatter, np.eye(size), n)
    assert signal[0, 0] == pytest.approx(shrink(value, ratio), rel=1e-6, abs=1e-9)
    assert 0 <= signal[0, 0] < value


@pytest.mark.parametrize("with_transfer", [False, True])
def test_agrees_with_the_naive_filter(with_transfer):
    clean = projections(150, 24)
    seen, ctf, transfer = through_ctf(clean, pixel_size=7.0)
    images = with_noise(seen if with_transfer else clean, 0.4)
    particles = as_particles(images, pixel_size=7.0)
    if with_transfer:
        particles = replace(particles, ctf=ctf)
    model = learn_covariance(particles)
    plan = plan_of(model, 7.0)
    assert model.working_box <= model.box
    ours = covariance_filter(particles, model)
    # The naive filter works in the box of the model.
    cut = resampled(scipy.fft.rfft2(images - plan.background, norm="ortho"), 24, model.working_box)
    half = model.working_box // 2
    rows = np.r_[0:half, -half:0] if model.working_box % 2 == 0 else np.r_[0 : half + 1, -half:0]
    kinds = transfer if with_transfer else np.ones_like(transfer)
    kinds = kinds[:, rows][:, :, : half + 1]
    noise = on_plane(plan.noise, 24)[rows][:, : half + 1]
    theirs = naive_covariance_filter(cut, kinds, noise, model.working_box, model.bandlimit)
    theirs = resampled(scipy.fft.rfft2(theirs, norm="ortho"), model.working_box, 24)
    assert np.linalg.norm(ours - theirs) < 0.1 * np.linalg.norm(theirs)
    assert error_of(ours, clean) == pytest.approx(error_of(theirs, clean), rel=0.02)


def test_turned_images_are_denoised_alike(clean):
    images = with_noise(clean[:60], 0.5)[:, 1:, 1:]
    model = learn_covariance(images)
    turned = np.rot90(images, axes=(1, 2)).copy()
    np.testing.assert_allclose(
        covariance_filter(turned, model), np.rot90(covariance_filter(images, model), axes=(1, 2)), atol=1e-3
    )


# Neighbours.


@pytest.mark.parametrize("snr", [0.8, 0.1, 0.02])
def test_neighbours_beat_the_covariance_filter_and_that_beats_wiener(clean, snr):
    images = with_noise(clean, snr)
    errors = [error_of(denoise(images), clean) for denoise in (neighbour_filter, covariance_filter, wiener)]
    assert errors[0] < 0.97 * errors[1] and errors[1] < 0.97 * errors[2]


def test_neighbours_beat_the_covariance_filter_with_a_ctf(clean):
    seen, ctf, _ = through_ctf(clean)
    particles = replace(as_particles(with_noise(seen, 0.2), pixel_size=PIXEL_SIZE), ctf=ctf)
    assert error_of(neighbour_filter(particles), clean) < 0.95 * error_of(covariance_filter(particles), clean)
    assert error_of(covariance_filter(particles), clean) < 0.95 * error_of(wiener(particles), clean)


def test_dark_particles_are_denoised_like_bright_ones(clean):
    images = with_noise(clean[:100], 0.5)
    np.testing.assert_allclose(
        covariance_filter(-images), -covariance_filter(images), atol=2e-3 * np.abs(images).max()
    )


def test_junk_among_the_images_does_little_harm(clean):
    images = with_noise(clean, 0.2)
    spoilt = images.copy()
    spoilt[::10] = np.random.default_rng(5).normal(0, 20, spoilt[::10].shape)
    good = np.arange(len(images)) % 10 > 0
    error = error_of(neighbour_filter(spoilt)[good], clean[good])
    assert error < 1.2 * error_of(neighbour_filter(images)[good], clean[good])


# Predicted errors.


@pytest.mark.parametrize("snr", [0.8, 0.2, 0.1])
def test_predicted_errors_are_true_within_ten_percent(clean, snr):
    # 400 images of 32 px leave a standard error of about 1 % of the clean images' power.
    images = with_noise(clean, snr)
    for denoise in (wiener, covariance_filter):
        truth = error_of(denoise(images), clean)
        found = predict_error(denoise, images)
        assert found.error == pytest.approx(truth, rel=0.1, abs=0.02), denoise
        assert abs(found.error - truth) < 3 * found.doubt < 0.15


def test_an_error_without_a_signal_is_unknown():
    noise = np.random.default_rng(0).normal(size=(100, 24, 24)).astype(np.float32)
    assert np.isnan(predict_error(wiener, noise).error)


# Same bits, and ugly images.


def test_the_number_of_workers_changes_no_bit(clean):
    images = np.concatenate([with_noise(clean, 0.05), with_noise(clean, 0.05, seed=9)])
    one, two = (learn_neighbours(images, n_jobs=n_jobs) for n_jobs in (1, 2))
    np.testing.assert_array_equal(one.views, two.views)
    np.testing.assert_array_equal(one.weights, two.weights)
    np.testing.assert_array_equal(
        neighbour_filter(images, one, n_jobs=1), neighbour_filter(images, two, n_jobs=2)
    )


DENOISERS = (wiener, covariance_filter, neighbour_filter)


@pytest.mark.parametrize("denoise", DENOISERS)
@pytest.mark.parametrize("box", [16, 17, 33, 128])
def test_any_box(denoise, box):
    clean = projections(40, box)
    images = with_noise(clean, 0.5)
    denoised = denoise(images)
    assert denoised.shape == images.shape and denoised.dtype == np.float32
    assert error_of(denoised, clean) < 0.9


@pytest.mark.parametrize("denoise", DENOISERS)
def test_images_with_nan_stay_and_do_not_matter(denoise, clean):
    images = with_noise(clean[:100], 0.5)
    spoilt = images.copy()
    spoilt[7, 3, 4] = np.nan
    spoilt[8, 3, 4] = np.inf
    before = spoilt.copy()
    denoised = denoise(spoilt)
    np.testing.assert_array_equal(spoilt, before)
    np.testing.assert_array_equal(denoised[7:9], spoilt[7:9])
    assert np.isfinite(np.delete(denoised, [7, 8], axis=0)).all()


@pytest.mark.parametrize("denoise", DENOISERS)
@pytest.mark.parametrize("level", [0, 3])
def test_flat_images_and_single_images(denoise, level):
    flat = np.full((5, 24, 24), level, np.float32)
    np.testing.assert_allclose(denoise(flat), 0, atol=1e-5)
    one = np.random.default_rng(0).normal(size=(1, 24, 24)).astype(np.float32)
    assert np.isfinite(denoise(one)).all()
    assert np.isnan(denoise(np.full((2, 24, 24), np.nan, np.float32))).all()


def test_mistakes_are_named(clean):
    images = with_noise(clean[:20], 0.5)
    model = learn_covariance(images)
    with pytest.raises(InputError, match="32 px"):
        covariance_filter(images[:, 4:-4, 4:-4], model)
    _, ctf, _ = through_ctf(clean[:3])
    with pytest.raises(InputError, match="one entry an image"):
        learn_spectra(images, ctf=ctf)
    with pytest.raises(fs.InputError, match="n_views"):
        learn_neighbours(images, n_views=0)


def test_groups_of_defocus_hold_all_images(clean):
    _, ctf, _ = through_ctf(clean)
    model = learn_covariance(with_noise(clean, 0.5))
    profiles, group = group_profiles(ctf, plan_of(model, PIXEL_SIZE))
    assert len(profiles) == 6 and set(group) == set(range(6))


def test_without_its_mean_a_model_has_the_same_second_moments(clean):
    model = learn_covariance(with_noise(clean, 0.3))
    plain = without_mean(model)
    expected = model.factors[0] @ model.factors[0].T + np.outer(model.mean, model.mean)
    np.testing.assert_allclose(plain.factors[0] @ plain.factors[0].T, expected, atol=1e-9 * expected.max())
    assert not plain.mean.any() and plain.factors[1:] == model.factors[1:]
    empty = np.full((1, BOX, BOX), model.spectra.background, np.float32)
    assert (
        np.abs(covariance_filter(empty, plain)).max() < 1e-6 * np.abs(covariance_filter(empty, model)).max()
    )
