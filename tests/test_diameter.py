"""The diameter that is reported: the sphere that holds 95 % of the mass."""

from __future__ import annotations

import math
from dataclasses import replace

import naive
import numpy as np
import pytest

from fastsort._reasons import NOISE, OFF_CENTRE
from fastsort.decide.diameter import (
    FREQUENCIES,
    GRID,
    STEP,
    Candidate,
    Profile,
    _ring_waves,
    _shells,
    estimate_diameter,
    fit_radius,
    mean_profile,
    ring_means,
)
from fastsort.images.ctf import phase_flip
from fastsort.images.normalize import normalize_background
from fastsort.particles.open import open_particles
from fastsort.simulate.particles import simulate_particles
from fastsort.simulate.phantoms import phantom_blobs, phantom_volume
from fastsort.simulate.project import write_project
from fastsort.sort import sort_particles

N = 600


def true_diameter(truth, shape):
    """Diameter in angstroms of the sphere that holds 95 % of a phantom."""
    volume = phantom_volume(phantom_blobs(shape), 96, 50.0)
    return truth.diameter * naive.mass_diameter(volume, 0.95) / naive.mass_diameter(volume, 0.98)


def estimate(images, pixel_size=1.0, *, particles=None, junk=0.0, contrast="bright", flipped=False):
    """Estimate the diameter in pixels where all images are kept."""
    images = np.array(images, np.float32)
    normalize_background(images, 0.5 * images.shape[1])
    n = len(images)
    working = replace(open_particles(images), pixel_size=pixel_size)
    return estimate_diameter(
        working if particles is None else particles,
        working,
        np.ones(n, dtype=bool),
        np.full(n, junk),
        np.full(n, NOISE, np.int8),
        contrast=contrast,
        phase_flipped=flipped,
    )


@pytest.fixture(scope="module")
def ball():
    """A compact particle without a contrast transfer function."""
    return simulate_particles(N, 0, snr=1 / 10, box=36, fill=0.6, junk="all", seed=2)


# The parts of the fit.


@pytest.mark.parametrize("box", [20, 27])
def test_profile_is_the_naive_one(box):
    images = np.random.default_rng(0).normal(size=(7, box, box)).astype(np.float32)
    found = ring_means(images)
    expected = naive.ring_means(images, found.shape[1])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    profile = mean_profile(found)
    np.testing.assert_allclose(profile.mean, expected.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(profile.covariance, np.cov(expected.T) / 7, atol=1e-6)


@pytest.mark.parametrize("radius", [4.0, 13.5])
def test_shells_are_projected_as_points_on_a_sphere_are(radius):
    # So large a box that the width of the shell, which grows with it, hides the limit in frequency.
    box, n_rings = 108, 40
    found = _ring_waves(box, n_rings) @ _shells(np.array([radius]), box)[:, 0]
    expected = naive.shell_rings(radius, STEP * box, box, n_rings)
    np.testing.assert_allclose(found, expected, atol=0.01 * expected.max())


def ball_profile(radius, transfer, background, error):
    """Exact profile of a solid ball."""
    radii = np.arange(0.25, radius, 0.5)
    shells = _ring_waves(GRID, 22) @ (transfer[:, None] * _shells(radii, GRID))
    return Profile(shells @ radii**2 + background, error**2 * np.eye(22))


@pytest.mark.parametrize("radius", [5.0, 8.0, 11.0, 14.0])
@pytest.mark.parametrize("background", [-30.0, 0.0, 100.0])
def test_radius_of_a_ball_upon_any_background(radius, background):
    flat = np.ones_like(FREQUENCIES)
    profile = ball_profile(radius, flat, background, 1e-3)
    found = fit_radius(profile, [Candidate(flat, 0)], GRID)
    assert found == pytest.approx(0.95 ** (1 / 3) * radius, abs=0.5)


def test_fringes_are_not_taken_for_mass():
    fringes = np.sin(np.pi * (0.03 + 80 * FREQUENCIES**2))
    profile = ball_profile(8.0, fringes, -3.0, 1e-3)
    found = fit_radius(profile, [Candidate(fringes, 0)], GRID)
    assert found == pytest.approx(0.95 ** (1 / 3) * 8, abs=0.5)


def test_a_flat_profile_and_explanations_that_contradict_each_other_have_no_radius():
    flat = np.ones_like(FREQUENCIES)
    profile = ball_profile(8.0, flat, 0.0, 1e-3)
    assert math.isnan(fit_radius(profile._replace(mean=np.ones(22)), [Candidate(flat, 0)], GRID))
    assert math.isnan(fit_radius(profile._replace(mean=-profile.mean), [Candidate(flat, 0)], GRID))
    assert math.isnan(fit_radius(profile._replace(covariance=np.zeros((22, 22))), [Candidate(flat, 0)], GRID))


def test_a_fit_that_does_not_converge_gives_no_radius(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Maximum number of iterations reached.")

    flat = np.ones_like(FREQUENCIES)
    profile = ball_profile(8.0, flat, 0.0, 1e-3)
    monkeypatch.setattr("scipy.optimize.nnls", fail)
    assert math.isnan(fit_radius(profile, [Candidate(flat, 0)], GRID))


# From images.


@pytest.mark.parametrize("shape", ["globular", "shell", "two-lobed"])
@pytest.mark.parametrize("fill", [0.45, 0.7])
def test_diameter_of_phantoms(shape, fill):
    images, truth = simulate_particles(N, 0, snr=1 / 10, box=48, fill=fill, volume=shape, junk="all", seed=3)
    found = estimate(images) * truth.pixel_size
    assert found == pytest.approx(true_diameter(truth, shape), rel=0.12)


@pytest.mark.parametrize("flipped", [True, False], ids=["flipped", "not flipped"])
@pytest.mark.parametrize("shape", ["globular", "shell"])
def test_diameter_seen_through_a_known_contrast_transfer_function(tmp_path, shape, flipped):
    # Particles beside the middle blur the rim of their mean.
    images, truth = simulate_particles(
        N, 0, snr=1 / 5, box=48, fill=0.6, volume=shape, junk="all", ctf=True, centring=0.015, seed=4
    )
    particles = open_particles(write_project(tmp_path / "project", images, truth))
    if flipped:
        images = phase_flip(images, truth.ctf, truth.pixel_size)
    found = estimate(images, particles=particles, flipped=flipped) * truth.pixel_size
    assert found == pytest.approx(true_diameter(truth, shape), rel=0.12)


def test_grey_values_and_pixel_size_do_not_matter(ball):
    images, truth = ball
    expected = estimate(images)
    assert expected * truth.pixel_size == pytest.approx(true_diameter(truth, "globular"), rel=0.12)
    assert estimate(images, pixel_size=math.nan) == expected
    assert estimate(3 * images + 7) == pytest.approx(expected, rel=1e-3)
    assert estimate(-images, contrast="dark") == pytest.approx(expected, rel=1e-3)
    for sign in (1, -1):
        assert estimate(sign * images, contrast="unknown") == pytest.approx(expected, rel=1e-3)


def test_images_turned_and_in_another_order_have_the_same_diameter(ball):
    expected = estimate(ball[0][:, 1:, 1:])
    turned = np.rot90(ball[0][::-1, 1:, 1:], axes=(1, 2))
    assert estimate(turned) == pytest.approx(expected, rel=1e-3)


def test_pixels_of_half_the_size_make_twice_the_diameter():
    options = {"snr": 1 / 5, "fill": 0.6, "noise": "white", "junk": "all", "seed": 5}
    fine, _ = simulate_particles(N, 0, box=72, source_box=72, **options)
    coarse = sum(fine[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    assert estimate(fine) == pytest.approx(2 * estimate(coarse), rel=0.05)


# Where nobody can know.


def test_too_few_or_too_impure_images_have_no_diameter(ball):
    images = ball[0]
    assert math.isnan(estimate(images[:49]))
    assert math.isnan(estimate(images[:1]))
    assert math.isnan(estimate(images, junk=math.nan))
    assert math.isnan(estimate(images, junk=0.4))
    assert np.isfinite(estimate(images, junk=0.2))


def test_images_off_the_centre_do_not_count(ball):
    images = np.concatenate([ball[0], np.roll(ball[0], 9, axis=2)])
    normalize_background(images, 18)
    working = open_particles(images)
    keep = np.ones(2 * N, dtype=bool)
    suspicion = np.repeat(np.array([NOISE, OFF_CENTRE], np.int8), N)
    options = {"contrast": "bright", "phase_flipped": False}
    found = estimate_diameter(working, working, keep, np.zeros(2 * N), suspicion, **options)
    assert found == pytest.approx(estimate(ball[0]), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_noise_has_no_diameter(seed):
    noise = np.random.default_rng(seed).normal(size=(400, 36, 36))
    for contrast in ("bright", "dark", "unknown"):
        assert math.isnan(estimate(noise, contrast=contrast))


def test_one_image_many_times_has_no_diameter(ball):
    assert math.isnan(estimate(np.repeat(ball[0][:1], 60, axis=0)))


@pytest.mark.parametrize("box", [16, 17, 19])
def test_tiny_boxes_do_not_fail(box):
    images = np.random.default_rng(box).normal(size=(60, box, box))
    images[:, box // 2, box // 2] += 9
    found = estimate(images)
    assert math.isnan(found) or 0 < found <= box


# In a run.


def test_junk_alone_has_no_diameter():
    images, truth = simulate_particles(0, 300, snr=1 / 20, box=36, junk="all", seed=6)
    result = sort_particles(open_particles(images, pixel_size=truth.pixel_size))
    assert math.isnan(result.diameter) and math.isnan(result.diameter_px)
    assert result.diameter_estimated


def test_later_images_have_the_diameter_of_the_earlier_run():
    images, _ = simulate_particles(200, 60, snr=0.3, box=24, junk="noise", seed=1)
    earlier = sort_particles(images[:220])
    assert np.isfinite(earlier.diameter_px)
    later = sort_particles(images[220:], earlier=earlier)
    assert later.diameter_px == earlier.diameter_px
