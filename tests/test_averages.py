"""Class averages: against the truth, in halves, and for classes that hardly are any."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

import fastsort as fs
from fastsort import InputError
from fastsort.invariants import members
from fastsort.invariants.align import align_images, apply_alignment
from fastsort.invariants.averages import averages_around, averages_from_poses, class_averages
from fastsort.invariants.ring_correlation import filter_averages, fourier_ring_correlation
from fastsort.particles.mrc import write_stack
from fastsort.simulate.phantoms import phantom_blobs, phantom_volume

BOX, DIAMETER = 64, 40


def disk():
    offset = np.arange(BOX) - BOX // 2
    return np.hypot(offset[:, None], offset) <= DIAMETER / 2


def views(n, n_views, shape, seed=3, snr=0.1):
    """Noisy images of a few views in any pose, which view each one is, and the true projections."""
    volume = phantom_volume(phantom_blobs(shape), 64, 50)
    rng = np.random.default_rng(seed)
    turns = Rotation.random(n_views, random_state=seed).as_matrix()
    label = np.arange(n) % n_views
    spin = Rotation.from_euler("z", rng.uniform(0, 360, (n, 1)), degrees=True).as_matrix()
    truth = fs.project_volume(volume, turns, BOX, scale=50 / DIAMETER)
    images = fs.project_volume(volume, spin @ turns[label], BOX, scale=50 / DIAMETER)
    shift = rng.normal(0, 1.5, (n, 2))
    images = np.array([np.fft.fft2(image) for image in images])
    images = [
        np.fft.ifft2(scipy.ndimage.fourier_shift(f, s)).real for f, s in zip(images, shift, strict=True)
    ]
    sigma = truth[:, disk()].std(axis=1).mean() / np.sqrt(snr)
    return (images + rng.normal(0, sigma, (n, BOX, BOX))).astype(np.float32), label, truth


def agreement(averages, truth):
    found = [
        align_images(average[None], true, n_jobs=1) for average, true in zip(averages, truth, strict=True)
    ]
    aligned = [apply_alignment(a[None], pose, n_jobs=1)[0] for a, pose in zip(averages, found, strict=True)]
    return np.array([np.corrcoef(a[disk()], t[disk()])[0, 1] for a, t in zip(aligned, truth, strict=True)])


@pytest.mark.parametrize("shape", ["elongated", "shell"])
def test_averages_look_like_the_projections(shape):
    images, label, truth = views(600, 3, shape)
    result = class_averages(images, label, n_jobs=1)
    assert result.size.tolist() == [200, 200, 200]
    assert agreement(result.averages, truth).min() > 0.96
    assert agreement(filter_averages(result.averages, result.frc), truth).min() > 0.98
    assert np.isfinite(result.resolution).all()
    aligned = apply_alignment(images, as_alignment(result), n_jobs=1)
    again = np.array([aligned[label == k].mean(axis=0) for k in range(3)])
    for one, other in zip(again, result.averages, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99


def as_alignment(result):
    from fastsort.invariants.align import Alignment

    return Alignment(result.angle, result.shift, result.score, np.zeros(len(result.angle), dtype=bool))


def test_classes_of_fifty():
    images, label, truth = views(150, 3, "two-lobed")
    result = class_averages(images, label, n_jobs=1)
    assert agreement(filter_averages(result.averages, result.frc), truth).min() > 0.95


def test_noise_does_not_resolve():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(120, BOX, BOX)).astype(np.float32)
    images[:60] += views(60, 1, "globular", snr=1e6)[0] / 3
    result = class_averages(images, np.repeat([0, 1], 60), n_jobs=1)
    # Aligned noise would correlate on high rings, too, had the halves one reference.
    assert np.abs(result.frc[1, 14:]).mean() < 0.2
    assert result.resolution[0] < result.resolution[1]
    assert result.spread[0] < result.spread[1]


def test_ring_correlation_written_out():
    rng = np.random.default_rng(0)
    for box in (16, 17):
        one, other = rng.normal(size=(2, box, box))
        first, second = np.fft.fft2(one), np.fft.fft2(other)
        frequency = np.fft.fftfreq(box, 1 / box)
        expected = []
        for ring in range(box // 2 + 1):
            total, left, right = 0, 0, 0
            for v in range(box):
                for u in range(box):
                    if round(np.hypot(frequency[v], frequency[u])) == ring:
                        total += (first[v, u] * np.conj(second[v, u])).real
                        left += abs(first[v, u]) ** 2
                        right += abs(second[v, u]) ** 2
            expected.append(total / np.sqrt(left * right))
        assert np.allclose(fourier_ring_correlation(one, other), expected, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 71), st.floats(1e-3, 1e3))
def test_ring_correlation_of_itself(box, scale):
    image = np.random.default_rng(box).normal(size=(box, box))
    assert np.allclose(fourier_ring_correlation(image, scale * image), 1)
    assert np.allclose(fourier_ring_correlation(image, -image), -1)
    assert (fourier_ring_correlation(image, 0 * image) == 0).all()


def test_scale_and_offset_of_each_image_do_not_matter():
    images, label, _ = views(60, 2, "globular", snr=1)
    rng = np.random.default_rng(0)
    scale, offset = rng.uniform(0.1, 10, (2, 60, 1, 1)).astype(np.float32)
    one = class_averages(images, label, n_jobs=1)
    other = class_averages(images * scale + offset, label, n_jobs=1)
    for a, b in zip(one.averages, other.averages, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.999


def test_same_bits_for_two_workers_and_without_room(monkeypatch):
    images, label, _ = views(1100, 2, "globular")
    images = images[:, 16:48, 16:48].copy()
    one = class_averages(images, label, n_iterations=1, n_jobs=1)
    two = class_averages(images, label, n_iterations=1, n_jobs=2)
    monkeypatch.setattr(members, "CACHE_BYTES", 0)
    none = class_averages(images, label, n_iterations=1, n_jobs=2)
    for a, b, c in zip(one, two, none, strict=True):
        assert np.array_equal(a, b, equal_nan=True)
        assert np.array_equal(a, c, equal_nan=True)


def test_averages_around_a_narrow_disk():
    images, label, truth = views(300, 2, "elongated", snr=0.3)
    images[2] = np.nan
    narrow = class_averages(images, label, n_classes=3, radius=14, n_jobs=1)
    label[:2] = -1
    found = averages_around(fs.open_particles(images), label, narrow, 28.0, n_jobs=1)
    assert found.size.tolist() == [148, 149, 0] and not found.averages[2].any()
    assert agreement(found.averages[:2], truth).min() > 0.97
    # They lie as the images do, and are not centred again.
    aligned = apply_alignment(np.nan_to_num(images), as_alignment(narrow), n_jobs=1)
    for k in (0, 1):
        mean = aligned[np.flatnonzero(label == k)[3:]].mean(axis=0)
        assert np.corrcoef(mean[disk()], found.averages[k][disk()])[0, 1] > 0.99
    assert (found.spread[:2] < 0.7).all() and np.isnan(found.spread[2])
    again = averages_around(fs.open_particles(images), label, narrow, 28.0, n_jobs=2)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_averages_from_poses_that_one_reference_gave():
    rng = np.random.default_rng(0)
    images, _, truth = views(120, 1, "elongated", snr=0.3)
    noise = rng.normal(0, images.std(), (120, BOX, BOX)).astype(np.float32)
    particles, label = fs.open_particles(np.concatenate([images, noise])), np.repeat([0, 1], 120)
    # Noise that is aligned to noise shows it.
    start = [
        align_images(some, some[0] if k else truth[0], n_jobs=1) for k, some in enumerate((images, noise))
    ]
    angle, shift = (np.concatenate([getattr(pose, name) for pose in start]) for name in ("angle", "shift"))
    angle[5] = np.nan
    options = {"n_iterations": 4, "max_shift": 8.0, "radius": 25.0}
    found = averages_from_poses(particles, label, angle, shift, 3, n_jobs=1, **options)
    assert found.size.tolist() == [119, 120, 0] and not np.isfinite(found.score[5])
    assert agreement(found.averages[:1], truth)[0] > 0.95
    # Not where the halves are aligned each to its own average.
    assert np.abs(found.frc[1, 14:]).mean() < 0.2 and found.frc[0, :10].mean() > 0.8
    assert found.spread[0] < found.spread[1]
    again = averages_from_poses(particles, label, angle, shift, 3, n_jobs=2, **options)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_empty_classes_of_a_stack(tmp_path):
    images, _, _ = views(12, 1, "globular", snr=1)
    write_stack(tmp_path / "a.mrcs", [images], 1.0, len(images), BOX)
    label = np.repeat([1, 3], 6)
    stack = class_averages(fs.open_particles(tmp_path / "a.mrcs"), label, n_classes=5, n_jobs=1)
    for one, other in zip(stack, class_averages(images, label, n_classes=5, n_jobs=1), strict=True):
        np.testing.assert_array_equal(one, other)


def test_hardly_a_class():
    images, _, _ = views(12, 1, "globular", snr=1)
    images[3, 0, 0] = np.nan
    images[4] = 2
    label = np.array([0, 0, 0, 0, 0, 2, 3, 3, 3, 3, -1, 5])
    images[6:10] = images[6]
    images[11] = np.nan
    result = class_averages(images, label, n_classes=8, n_jobs=1)
    assert result.size.tolist() == [3, 0, 1, 4, 0, 0, 0, 0]
    empty = [1, 4, 5, 6, 7]
    assert (result.averages[empty] == 0).all() and np.isfinite(result.averages).all()
    assert np.isinf(result.resolution[[*empty, 2]]).all()
    assert np.isnan(result.spread[[*empty, 2]]).all()
    assert (result.frc[[*empty, 2]] == 0).all()
    assert np.isnan(result.angle[[3, 4, 10, 11]]).all()
    assert (result.score[[3, 4, 10, 11]] == -np.inf).all()
    assert np.isnan(result.score[5])
    # Four copies of one image: the average is that image, moved, and halves agree entirely.
    assert result.frc[3, :20].min() > 0.99
    pose = align_images(images[6:7], result.averages[3], n_jobs=1)
    moved = apply_alignment(images[6:7], pose, n_jobs=1)[0]
    assert np.corrcoef(moved[disk()], result.averages[3][disk()])[0, 1] > 0.98


@pytest.mark.parametrize("box", [16, 35, 71])
def test_sizes_and_types(box):
    offset = np.arange(box) - box // 2
    image = np.exp(-np.add.outer((offset - 2) ** 2 / 8, offset**2 / 20))
    image[box // 2 :, box // 2 :] *= 2
    images = np.array([np.rot90(image[box % 2 == 0 :, box % 2 == 0 :], k) for k in range(8)])
    if box % 2 == 0:
        images = np.pad(images, ((0, 0), (1, 0), (1, 0)))
    result = class_averages(images.astype(np.float16), np.zeros(8, dtype=np.int8), n_jobs=1)
    assert result.averages.shape == (1, box, box)
    assert result.score.min() > 0.9


def test_resolution_in_angstroms():
    images, label, _ = views(60, 1, "globular", snr=0.5)
    pixels = class_averages(images, label, n_jobs=1).resolution
    angstroms = class_averages(images, label, pixel_size=2.5, n_jobs=1).resolution
    assert np.allclose(angstroms, 2.5 * pixels)
    assert 2 <= pixels[0] < 20


@pytest.mark.parametrize(
    ("labels", "more", "words"),
    [
        ([0, 0], {}, "one for each"),
        ([0.0, 1.0, 2.0], {}, "whole numbers"),
        ([0, -2, 1], {}, "-1"),
        ([0, 1, 2], {"n_classes": 2}, "below n_classes"),
        ([0, 1, 2], {"n_iterations": 0}, "n_iterations"),
        ([0, 1, 2], {"radius": 20}, "diameter"),
    ],
)
def test_mistakes_are_named(labels, more, words):
    images = np.random.default_rng(0).normal(size=(3, 16, 16))
    with pytest.raises(InputError, match=words):
        class_averages(images, labels, **more)


def test_no_class_at_all():
    images = np.random.default_rng(0).normal(size=(3, 16, 16))
    result = class_averages(images, [-1, -1, -1], n_jobs=1)
    assert len(result.averages) == 0
    assert (result.score == -np.inf).all()
