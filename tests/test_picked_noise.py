"""Noise as a picker finds it: its spectrum, its blob, and what the filters make of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

import fastsort as fs
from fastsort.images.normalize import normalize_background
from fastsort.images.picks import NARROW, WIDE, blob_response, picked_noise
from fastsort.subspaces import subspace_filter

BOX = 36


def coloured(n, seed, slope=6.0, box=BOX):
    """Noise whose amplitude falls with the frequency, cut from larger fields."""
    rng = np.random.default_rng(seed)
    size = 2 * box
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    spectra = np.fft.rfft2(rng.standard_normal((n, size, size))) / np.sqrt(1 + (slope * frequency) ** 2)
    images = np.fft.irfft2(spectra, s=(size, size))[:, :box, :box].astype(np.float32)
    normalize_background(images, 0.5 * box)
    return images


def distances(box=BOX):
    line = np.arange(box) - box // 2
    return np.hypot(line[:, None], line)


def background_power(images):
    """Power in rings of the transform of what lies outside the disk, straight from its definition."""
    outside = distances() > 0.4 * BOX
    rows = []
    for image in images:
        rest = np.where(outside, image - image[outside].mean(), 0)
        rows.append(np.abs(np.fft.fft2(rest)) ** 2)
    power = np.mean(rows, axis=0)
    line = np.fft.fftfreq(BOX) * BOX
    ring = np.rint(np.hypot(line[:, None], line)).astype(int)
    return np.array([power[ring == k].mean() for k in range(1, BOX // 2)])


@pytest.mark.parametrize("slope", [0.0, 3.0, 8.0])
def test_background_has_the_spectrum_of_the_set(slope):
    images = coloured(400, 0, slope)
    # Particles in the middle do not count.
    images[:200] += 2 * np.exp(-0.5 * (distances() / 5) ** 2).astype(np.float32)
    found = background_power(picked_noise(images, 400, 0.5 * BOX)) / background_power(images)
    assert np.abs(np.log(found)).mean() < 0.12


@pytest.mark.parametrize("sign", [1, -1])
def test_blob_in_the_middle_has_the_contrast_of_the_set(sign):
    images = coloured(200, 1)
    images += sign * np.exp(-0.5 * (distances() / 6) ** 2).astype(np.float32)
    mean = sign * picked_noise(images, 300, 0.5 * BOX).mean(axis=0)
    middle, rim = mean[distances() < 4].mean(), mean[(distances() > 10) & (distances() < 15)].mean()
    assert middle > rim + 0.3


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), number=st.sampled_from([1, 7, 8, 50]), box=st.sampled_from([16, 33, 36]))
def test_same_seed_same_bits_and_normalised(seed, number, box):
    images = coloured(20, seed, box=box)
    one, again, other = (picked_noise(images, number, 0.5 * box, s) for s in (seed, seed, seed + 1))
    assert one.shape == (number, box, box) and one.dtype == np.float32
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    outside = distances(box) > 0.5 * box
    np.testing.assert_allclose(one[:, outside].mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(one[:, outside].std(axis=1), 1, rtol=1e-4)


def test_images_without_noise_give_no_picks_but_zeros():
    assert not picked_noise(np.zeros((5, BOX, BOX), dtype=np.float32), 6, 0.5 * BOX).any()


def test_response_is_a_difference_of_gaussians():
    field = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    narrow, wide = (gaussian_filter(field, part * 9, mode="wrap", truncate=8) for part in (NARROW, WIDE))
    np.testing.assert_allclose(blob_response(field[None], 9)[0], narrow - wide, atol=2e-4)


def test_largest_response_is_to_disks_of_the_radius():
    disk = (distances(128) <= 10).astype(np.float32)
    response = [float(blob_response(disk[None], radius)[0, 64, 64]) for radius in range(4, 20)]
    assert abs(range(4, 20)[int(np.argmax(response))] - 10) <= 1


@pytest.mark.parametrize("volume", ["globular", "two-lobed"])
def test_subspaces_know_picked_noise(volume):
    images, truth = fs.simulate_particles(
        400, 200, snr=0.15, box=BOX, volume=volume, junk="picked", snr_definition="power", seed=3
    )
    result = subspace_filter(images, describe=False, n_jobs=1)
    assert roc_auc_score(~truth.label, result.score) > 0.9
    assert result.learned.picked_share > 0.5


@pytest.mark.parametrize("junk", ["noise", "multiple"])
def test_sets_without_picked_noise_are_not_taken_for_such(junk):
    images, _ = fs.simulate_particles(400, 200, snr=0.15, box=BOX, junk=junk, snr_definition="power", seed=3)
    assert subspace_filter(images, describe=False, n_jobs=1).learned.picked_share < 0.3


def test_simulated_picks_are_the_highest_places_of_their_fields():
    images, truth = fs.simulate_particles(20, 200, snr=0.05, box=BOX, junk="picked", seed=4)
    picks = images[~truth.label]
    radius = truth.diameter / truth.pixel_size / 2
    response = np.array(
        [blob_response(np.pad(pick, BOX // 2, mode="reflect")[None], radius)[0] for pick in picks]
    )
    middle = response[:, BOX - 1 : BOX + 2, BOX - 1 : BOX + 2].mean(axis=(1, 2))
    assert (middle > response.mean(axis=(1, 2)) + response.std(axis=(1, 2))).mean() > 0.9
    assert np.isnan(truth.shift[~truth.label]).all()
