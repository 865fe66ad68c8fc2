"""What happens to every image: crop, normalisation, unfit pixels, and batches read in order."""

from __future__ import annotations

import threading

import joblib
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from fastsort import InputError, fourier_crop, open_particles
from fastsort._crop import crop_operator
from fastsort._reasons import BAD_PIXELS, FLAT, VALID
from fastsort.images import normalize
from fastsort.images.batches import default_batch_size, map_batches
from fastsort.images.normalize import (
    LEAST_RAMP,
    inspect_and_level,
    inspect_pixels,
    normalize_background,
    subtract_ramps,
)
from fastsort.images.prepare import crop_and_normalize, keep_images, prepare_images, sample_batches

examples = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def noise(seed, n, d):
    return np.random.default_rng(seed).normal(size=(n, d, d)).astype(np.float32)


# Fourier crop.


@examples
@given(data=st.data(), seed=seeds, box=st.integers(16, 70))
def test_crop_is_that_of_the_transform(data, seed, box):
    size = data.draw(st.integers(1, box))
    image = noise(seed, 1, box)
    np.testing.assert_allclose(fourier_crop(image, size)[0], naive.fourier_crop(image[0], size), atol=2e-5)


@pytest.mark.parametrize("box", [16, 17, 69, 70])
@pytest.mark.parametrize("size", [1, 2, 15, 16])
def test_crop_at_the_ends_of_odd_and_even(box, size):
    image = noise(box, 2, box)
    expected = [naive.fourier_crop(one, size) for one in image]
    np.testing.assert_allclose(fourier_crop(image, size), expected, atol=2e-5)


@examples
@given(seed=seeds, box=st.integers(16, 70))
def test_crop_to_its_own_size_changes_nothing(seed, box):
    images = noise(seed, 2, box)
    cropped = fourier_crop(images, box)
    np.testing.assert_array_equal(cropped, images)
    assert not np.shares_memory(cropped, images)


@examples
@given(data=st.data(), seed=seeds, box=st.integers(16, 70), offset=st.floats(-100, 100))
def test_crop_preserves_the_mean(data, seed, box, offset):
    images = noise(seed, 2, box) + np.float32(offset)
    cropped = fourier_crop(images, data.draw(st.integers(1, box)))
    np.testing.assert_allclose(cropped.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=1e-3)


@pytest.mark.parametrize("box", [32, 33, 70])
@pytest.mark.parametrize("size", [16, 17, 30, 31])
def test_middle_pixel_stays_the_middle(box, size):
    delta = np.zeros((1, box, box))
    delta[0, box // 2, box // 2] = 1
    cropped = fourier_crop(delta, size)[0]
    assert np.unravel_index(cropped.argmax(), cropped.shape) == (size // 2, size // 2)

    offset = np.arange(box) - box // 2
    blob = np.exp(-np.add.outer(offset**2, offset**2) / (2 * (0.1 * box) ** 2))
    position = (np.arange(size) - size // 2) * box / size
    expected = np.exp(-np.add.outer(position**2, position**2) / (2 * (0.1 * box) ** 2))
    inside = slice(2, size - 2)
    np.testing.assert_allclose(
        fourier_crop(blob[np.newaxis], size)[0][inside, inside], expected[inside, inside], atol=1e-3
    )


@pytest.mark.parametrize("dtype", ["f2", ">f4", "f8", "i2"])
def test_crop_takes_any_type_and_leaves_it_as_it_was(dtype):
    images = np.round(20 * noise(1, 3, 33)).astype(dtype)
    images.flags.writeable = False
    np.testing.assert_array_equal(fourier_crop(images, 20), fourier_crop(images.astype(np.float32), 20))


@pytest.mark.parametrize("size", [34, 0, -1, 2.5, np.nan])
def test_impossible_crops_are_refused(size):
    with pytest.raises(InputError, match="working size"):
        fourier_crop(noise(1, 1, 33), size)


# Background.


@examples
@given(
    seed=seeds,
    box=st.integers(16, 40),
    part=st.floats(0.1, 0.5),
    scale=st.floats(0.01, 100),
    offset=st.floats(-10, 10),
)
def test_background_gets_mean_0_and_deviation_1(seed, box, part, scale, offset):
    images = noise(seed, 3, box)
    changed = ((images + np.float32(offset)) * np.float32(scale)).astype(np.float32)
    y, x = np.mgrid[:box, :box] - box // 2
    outside = y**2 + x**2 > (part * box) ** 2
    background = changed[:, outside].astype(np.float64)
    expected_mean, expected_std = background.mean(axis=1), background.std(axis=1)
    expected = (changed - expected_mean[:, None, None]) / expected_std[:, None, None]
    mean, std = normalize_background(changed, part * box)
    tolerance = 1e-5 * scale * (1 + abs(offset))
    np.testing.assert_allclose(mean, expected_mean, atol=tolerance)
    np.testing.assert_allclose(std, expected_std, rtol=1e-5)
    np.testing.assert_allclose(changed, expected, atol=1e-5)
    # Neither brightness nor contrast is left.
    normalize_background(images, part * box)
    np.testing.assert_allclose(changed, images, atol=1e-4)


def test_background_without_variance_becomes_zero():
    images = noise(1, 3, 20)
    y, x = np.mgrid[:20, :20] - 10
    images[1, y**2 + x**2 > 64] = 0.1
    before = images.copy()
    _, std = normalize_background(images, 8)
    assert std[1] == pytest.approx(0, abs=1e-7)
    assert np.isfinite(images).all()
    normalize_background(before[[0, 2]], 8)
    assert std[0] > 0.5 and std[2] > 0.5


def test_images_are_kept_in_half_precision_as_numpy_rounds_them(tmp_path):
    any_bits = np.random.default_rng(0).integers(0, 2**32, (400, 32, 32), dtype=np.uint32).view(np.float32)
    images = np.concatenate([any_bits, noise(1, 400, 32), 1e-5 * noise(2, 400, 32)])
    # Ties, the smallest numbers of either kind, what is cut off, and what is no number.
    ugly = [2.0**-25, 1.5 * 2.0**-24, 2.0**-14, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 0, 65504, np.inf, np.nan]
    images[0, 0, : len(ugly)], images[0, 1, : len(ugly)] = ugly, np.negative(ugly)
    with np.errstate(invalid="ignore"):
        expected = np.clip(images, -6e4, 6e4).astype(np.float16).astype(np.float32)
    kept = keep_images(tmp_path / "kept", [images[:900], images[900:]], len(images), 32, 1.0)
    np.testing.assert_array_equal(kept.read(0, len(images)), expected)
    np.testing.assert_array_equal(np.signbit(kept.read(0, 1)), np.signbit(expected[:1]))


# Ramps.


def ramps(seed, n, d, height):
    """Planes of random directions, `height` at the edge of the box."""
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, n)[:, None, None]
    y, x = (np.mgrid[:d, :d] - (d - 1) / 2) / (d / 2)
    return (height * (np.sin(angle) * y + np.cos(angle) * x)).astype(np.float32)


@examples
@given(seed=seeds, box=st.integers(2, 40), height=st.floats(-20, 20), offset=st.floats(-100, 100))
def test_ramps_are_subtracted_as_far_as_they_explain_more_than_chance(seed, box, height, offset):
    images = noise(seed, 3, box) + ramps(seed, 3, box, height) + np.float32(offset)
    expected = [naive.subtract_ramp(image, LEAST_RAMP) for image in images]
    subtract_ramps(images)
    np.testing.assert_allclose(images, expected, atol=1e-4)


@examples
@given(seed=seeds, box=st.integers(16, 40), height=st.floats(1, 1000), scale=st.floats(0.001, 1000))
def test_what_is_left_of_a_ramp_is_small(seed, box, height, scale):
    plain = noise(seed, 3, box)
    images = (plain + ramps(seed, 3, box, height)) * np.float32(scale)
    subtract_ramps(images)
    images /= np.float32(scale)
    np.testing.assert_allclose(images, plain, atol=1 + 1e-5 * height)
    # Nothing is left to subtract.
    again = images.copy()
    subtract_ramps(again)
    np.testing.assert_array_equal(again, images)


@examples
@given(seed=seeds, box=st.integers(16, 64))
def test_images_without_ramps_keep_their_bits(seed, box):
    y, x = np.mgrid[:box, :box] - (box - 1) / 2
    particle = 3 * np.exp(-(y**2 + x**2) / (0.02 * box**2))
    images = (noise(seed, 3, box) * (1 if box > 24 else 0.3) + particle).astype(np.float32)
    before = images.copy()
    subtract_ramps(images)
    np.testing.assert_array_equal(images, before)


def test_ramps_of_ugly_images():
    for box in (1, 2, 3):
        images = noise(1, 2, box)
        subtract_ramps(images)
        assert np.isfinite(images).all()
    images = np.zeros((4, 20, 20), np.float32)
    images[1] = 0.1
    images[2] = ramps(1, 1, 20, 5)[0]
    images[3] = np.nan
    subtract_ramps(images)
    assert not images[0].any() and (images[1] == np.float32(0.1)).all()
    np.testing.assert_allclose(images[2], 0, atol=1e-5)
    assert np.isnan(images[3]).all()
    subtract_ramps(images[:0])


def test_inspecting_and_levelling_at_once_leaves_the_same_bits():
    images = np.concatenate([noise(1, 4, 31), noise(2, 4, 31) + ramps(2, 4, 31, 9)]).astype(np.float32)
    images[1, 3, 4] = np.nan
    images[5] += ramps(3, 1, 31, 40)[0]
    images[6, 20, 9] = 1e4
    images[7] = 2
    at_once, after = images.copy(), images.copy()
    statistics = inspect_and_level(at_once)
    expected = inspect_pixels(after)
    subtract_ramps(after)
    np.testing.assert_array_equal(at_once, after)
    np.testing.assert_array_equal(statistics, expected)
    assert (at_once[5] != images[5]).any()


def test_every_entry_takes_ramps_out(tmp_path):
    plain = noise(1, 40, 48)
    steep = plain + ramps(1, 40, 48, 30)
    operator = crop_operator(48, 24)

    def entries(images, name):
        particles = open_particles(images)
        working = prepare_images(particles, operator, tmp_path / name).particles
        return (
            working.read(0, 40),
            crop_and_normalize(images.copy(), operator),
            *sample_batches(particles, operator, 40, 64, 0),
        )

    for without, with_ramps in zip(entries(plain, "plain"), entries(steep, "steep"), strict=True):
        # What is left of a ramp, and the plane that noise has by chance.
        assert np.abs(without - with_ramps).max() < 0.5


# Images that cannot be judged.


def assert_only_flagged(images, which, code):
    """Assert that one image has the code and becomes zero, and that the others stay as they are."""
    before = images.copy()
    statistics = inspect_pixels(images)
    assert statistics.codes[which] == code
    assert not images[which].any()
    assert statistics.mean[which] == statistics.std[which] == 0
    others = np.delete(np.arange(len(images)), which)
    assert (statistics.codes[others] == VALID).all()
    np.testing.assert_array_equal(images[others], before[others])
    np.testing.assert_allclose(statistics.mean[others], before[others].mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(statistics.std[others], before[others].std(axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pixel", [(0, 0), (10, 10), (19, 19), (10, 3), slice(None)])
def test_pixels_that_are_no_numbers(value, pixel):
    images = noise(2, 4, 20)
    images[1][pixel] = value
    assert_only_flagged(images, 1, BAD_PIXELS)


def test_infinities_of_both_signs():
    images = noise(2, 4, 20)
    images[1, 3, 3:5] = np.inf, -np.inf
    assert_only_flagged(images, 1, BAD_PIXELS)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("box", [20, 33, 64])
@pytest.mark.parametrize(
    "pixel", [(0, 0), (0, -1), (-1, 0), (-1, -1), (0, 7), (7, 0), (-1, 7), (7, -1), (7, 7)]
)
def test_hot_pixel(sign, box, pixel):
    images = noise(3, 4, box)
    images[2][pixel] = sign * 60
    assert_only_flagged(images, 2, BAD_PIXELS)


@pytest.mark.parametrize("value", [0, 0.1, -1e6 / 3, 65504, 1e30, -1e30, 1e-40, 3e38])
@pytest.mark.parametrize("box", [16, 33])
def test_constant_image(value, box):
    images = noise(4, 4, box)
    images[3] = value
    assert_only_flagged(images, 3, FLAT)


def test_hot_pixel_beside_ice_is_found_and_ice_alone_is_not_one():
    images = noise(5, 3, 64)
    y, x = np.mgrid[:64, :64]
    ice = 40 * np.exp(-((y - 15) ** 2 + (x - 20) ** 2) / (2 * 3**2))
    images[0] += ice
    images[2] += ice
    images[2, 50, 50] = 400
    assert images[0].max() > 10 * images[0].std()
    assert_only_flagged(images, 2, BAD_PIXELS)


@pytest.mark.parametrize("box", [16, 24])
def test_noise_is_never_flagged(box):
    images = noise(6, 1000, box)
    before = images.copy()
    assert (inspect_pixels(images).codes == VALID).all()
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("offset", [60000, -60000])
def test_large_offsets_do_no_harm(offset):
    images = (5 * noise(7, 20, 48) + offset).astype(np.float32)
    statistics = inspect_pixels(images)
    assert (statistics.codes == VALID).all()
    exact = images.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, exact.mean(axis=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(statistics.std, exact.std(axis=(1, 2)), rtol=1e-3)


@examples
@given(seed=seeds, box=st.integers(16, 40), exponent=st.integers(-50, 50))
def test_brightness_does_not_decide_what_is_hot(seed, box, exponent):
    images = noise(seed, 3, box)
    images[1, seed % box, 2] = 13 * box
    images *= np.float32(2.0**exponent)
    np.testing.assert_array_equal(inspect_pixels(images).codes, [VALID, BAD_PIXELS, VALID])


def test_codes_are_those_of_today_and_not_of_the_compiler(monkeypatch):
    images = noise(9, 3, 20)
    images[0, 3, 3], images[1] = np.nan, 4
    assert inspect_pixels(images.copy()).codes.tolist() == [BAD_PIXELS, FLAT, VALID]
    for name, code in (("BAD_PIXELS", 51), ("FLAT", 52), ("VALID", 53)):
        monkeypatch.setattr(normalize, name, code)
    assert inspect_pixels(images.copy()).codes.tolist() == [51, 52, 53]


# Batches.


def start_and_sum(images, start, factor=1):
    return start, len(images), float(images.sum()) * factor


def blas_threads(images=None, start=0):
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def fail_at(images, start, place):
    if start == place:
        raise RuntimeError(f"cannot use image {start}")
    return start


def meet_others(images, start, others, log):
    """Wait for others, but the first batch for nobody; a meeting that does not come about breaks the test."""
    log.append(("begins", start))
    if start:
        others.wait()
    log.append(("ends", start))
    return threading.get_ident()


def meeting(number):
    return threading.Barrier(number, timeout=60)


@pytest.fixture
def particles():
    return open_particles(noise(8, 50, 16))


@pytest.fixture
def two_blas_threads():
    with threadpool_limits(limits=2, user_api="blas"):
        threads = blas_threads()
        if not threads or max(threads) < 2:
            pytest.skip("BLAS has one thread here: there is nothing to limit")
        yield threads


@pytest.mark.parametrize("batch_size", [1, 7, 25, 49, 50, 51, None])
def test_batches_come_in_order_with_the_same_bits_for_any_workers(particles, batch_size):
    images = particles.read(0, 50)
    size = batch_size or default_batch_size(16)
    expected = [start_and_sum(images[start : start + size], start, 3) for start in range(0, 50, size)]
    for n_jobs in (None, 1, 2, 5):
        found = list(map_batches(start_and_sum, particles, 3, batch_size=batch_size, n_jobs=n_jobs))
        assert found == expected


def test_processes_give_the_same_bits(particles):
    expected = list(map_batches(start_and_sum, particles, batch_size=7))
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert list(map_batches(start_and_sum, particles, batch_size=7)) == expected
        limits = list(map_batches(blas_threads, particles, batch_size=10))
    assert all(set(threads) <= {1} for threads in limits)


def test_batches_do_not_change_the_source(particles):
    before = particles.read(0, 50)

    def overwrite(images, start):
        images[:] = 0

    list(map_batches(overwrite, particles, batch_size=10, n_jobs=2))
    np.testing.assert_array_equal(particles.read(0, 50), before)


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 50, 100])
def test_progress_rises_to_the_end(particles, n_jobs, batch_size):
    calls = []
    list(
        map_batches(
            start_and_sum,
            particles,
            batch_size=batch_size,
            n_jobs=n_jobs,
            progress=lambda *call: calls.append(call),
        )
    )
    done = [call[0] for call in calls]
    assert done == sorted(set(done))
    assert calls[-1] == (50, 50)
    assert {total for _, total in calls} == {50}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_blas_has_one_thread_inside_and_as_many_as_before_after(particles, two_blas_threads, n_jobs):
    for inside in map_batches(blas_threads, particles, batch_size=10, n_jobs=n_jobs):
        assert set(inside) == {1}
    assert blas_threads() == two_blas_threads


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("place", [0, 10, 40])
def test_exceptions_come_through_and_blas_is_restored(particles, two_blas_threads, n_jobs, place):
    with pytest.raises(RuntimeError, match=f"cannot use image {place}"):
        list(map_batches(fail_at, particles, place, batch_size=10, n_jobs=n_jobs))
    assert blas_threads() == two_blas_threads


@pytest.mark.slow
def test_exceptions_come_out_of_processes(particles):
    with (
        joblib.parallel_config(backend="loky", n_jobs=2),
        pytest.raises(RuntimeError, match="cannot use image 20"),
    ):
        list(map_batches(fail_at, particles, 20, batch_size=10))


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("taken", [1, 2])
def test_blas_is_restored_when_nobody_reads_on(particles, two_blas_threads, n_jobs, taken):
    batches = map_batches(start_and_sum, particles, batch_size=5, n_jobs=n_jobs)
    for _ in range(taken):
        next(batches)
    batches.close()
    assert blas_threads() == two_blas_threads


def test_first_batch_runs_alone(particles):
    log = []
    # The four others meet two by two, so they do not wait for one another.
    workers = list(map_batches(meet_others, particles, meeting(2), log, batch_size=10, n_jobs=2))
    assert log[:2] == [("begins", 0), ("ends", 0)]
    assert workers[0] == threading.get_ident()
    assert sorted(log) == sorted((what, start) for start in range(0, 50, 10) for what in ("begins", "ends"))


def test_outer_configuration_chooses_workers(particles):
    with joblib.parallel_config(backend="threading", n_jobs=3):
        workers = set(map_batches(meet_others, particles, meeting(3), [], batch_size=5))
    assert len(workers) > 2
    with joblib.parallel_config(backend="threading", n_jobs=1):
        alone = set(map_batches(meet_others, particles, meeting(1), [], batch_size=10))
    assert alone == {threading.get_ident()}


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_impossible_batches_are_refused(particles, batch_size):
    with pytest.raises(InputError, match="batch_size"):
        list(map_batches(start_and_sum, particles, batch_size=batch_size))
