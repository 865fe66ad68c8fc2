"""Alignment: known turns and shifts come back; brute force in plain numpy agrees; what cannot be aligned."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsort as fs
from fastsort import InputError
from fastsort.invariants.align import Alignment, align_images, apply_alignment, match_to_references

examples = settings(max_examples=15, deadline=None)


def blobs(box, seed=0, n=12):
    """Centres (row, column) from d // 2, widths and heights of Gaussians that fill some of the box."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(0, 0.11 * box, (n, 2))
    return centre, rng.uniform(0.035, 0.06, n) * box, rng.uniform(0.5, 2, n)


def drawn(particle, box, angle=0.0, shift=(0.0, 0.0), mirror=False):
    """The particle as `angle`, `shift` and `mirror` of an alignment would undo it: exact at any pose."""
    centre, width, height = particle
    offset = np.arange(box) - box // 2
    turn = np.radians(-angle)
    y, x = centre.T
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    x = -x if mirror else x
    y, x = y + shift[0], x + shift[1]
    image = np.zeros((box, box))
    for v, u, w, h in zip(y, x, width, height, strict=True):
        image += h * np.exp(-np.add.outer((offset - v) ** 2, (offset - u) ** 2) / (2 * w * w))
    return image


def turned_by(angle, truth):
    return np.abs((np.asarray(angle) - truth + 180) % 360 - 180)


def poses(n, box, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-180, 180, n), rng.uniform(-0.07, 0.07, (n, 2)) * box


def noise(seed, shape):
    return np.random.default_rng(seed).normal(size=shape)


@examples
@given(
    st.integers(16, 71),
    st.floats(-180, 180),
    st.floats(-0.08, 0.08),
    st.floats(-0.08, 0.08),
    st.booleans(),
    st.integers(0, 5),
)
def test_angle_and_shift_come_back(box, angle, y, x, mirror, seed):
    particle = blobs(box, seed)
    image = drawn(particle, box, angle, (y * box, x * box), mirror)
    found = align_images(image[None], drawn(particle, box), mirror=True, n_jobs=1)
    assert found.mirrored[0] == mirror
    # The rim of a particle in a small box moves less for the same angle. Of 3,400 poses one was off by 0.48.
    assert turned_by(found.angle[0], angle) < 0.6 * max(1, 48 / box)
    assert np.abs(found.shift[0] - np.array([y, x]) * box).max() < 0.05
    assert found.score[0] > 0.995


@pytest.mark.parametrize("box", [63, 64, 150])
def test_aligned_image_is_the_reference(box):
    particle = blobs(box)
    angle, shift = poses(6, box)
    images = np.array(
        [drawn(particle, box, a, s, i % 2) for i, (a, s) in enumerate(zip(angle, shift, strict=True))]
    )
    found = align_images(images, drawn(particle, box), mirror=True, n_jobs=1)
    aligned = apply_alignment(images, found, n_jobs=1)
    offset = np.arange(box) - box // 2
    # Beyond it, a particle's tail may have come round from the other side.
    inside = np.hypot(offset[:, None], offset) < 0.36 * box
    assert np.abs(aligned - drawn(particle, box))[:, inside].max() < 0.02 * images.max()


def test_angle_is_from_columns_to_rows():
    box = 64
    reference = np.zeros((box, box))
    reference[32, 32 + 10] = reference[32, 32 - 4] = reference[32 + 3, 32] = 1
    reference = scipy.ndimage.gaussian_filter(reference, 2)
    # numpy turns the first axis given into the second: x towards y.
    image = np.zeros((box, box))
    image[1:, 1:] = np.rot90(reference[1:, 1:], 1, axes=(0, 1))
    # rot90 from rows to columns takes a pixel on the x axis to negative y.
    assert image[32 - 10, 32] == reference[32, 32 + 10] > 10 * image[32 + 10, 32]
    found = align_images(image[None], reference, n_jobs=1)
    assert turned_by(found.angle[0], 90) < 0.1


def test_noisy_images():
    box, n = 64, 300
    rng = np.random.default_rng(3)
    direction, radius = rng.uniform(0, 2 * np.pi, 60), 17 * np.sqrt(rng.random(60))
    centre = np.stack([radius * np.sin(direction), radius * np.cos(direction)], axis=1)
    particle = centre, np.full(60, 2.0), rng.uniform(0.5, 2, 60)
    reference = drawn(particle, box)
    angle, shift = poses(n, box, 1)
    images = np.array([drawn(particle, box, a, s) for a, s in zip(angle, shift, strict=True)])
    offset = np.arange(box) - box // 2
    disk = np.hypot(offset[:, None], offset) <= 20
    images += noise(2, images.shape) * reference[disk].std() * np.sqrt(10)
    found = align_images(images, reference, n_jobs=1)
    error = turned_by(found.angle, angle)
    assert np.median(error) < 3
    assert np.mean(error > 20) < 0.02
    assert np.median(np.abs(found.shift - shift)) < 0.5


def naive_best(image, reference, angles, reach):
    """Best score over rotations by spline interpolation and whole-pixel shifts, one at a time."""
    best = (-np.inf, 0.0, 0, 0)
    for angle in angles:
        # A positive angle of scipy turns columns towards negative rows.
        template = scipy.ndimage.rotate(np.pad(reference, ((0, 1), (0, 1))), angle, reshape=False)[:-1, :-1]
        for y in range(-reach, reach + 1):
            for x in range(-reach, reach + 1):
                score = (np.roll(template, (y, x), (0, 1)) * image).sum() / np.linalg.norm(template)
                best = max(best, (score, angle, y, x))
    return best


def test_brute_force_agrees():
    box = 32
    particle = blobs(box, 4, 8)
    reference = drawn(particle, box)
    for i, (angle, shift) in enumerate(zip(*poses(4, box, 7), strict=True)):
        image = drawn(particle, box, angle, shift) + 0.5 * noise(i, (box, box))
        found = align_images(image[None], reference, max_shift=3, n_jobs=1)
        _, best, y, x = naive_best(image - image.mean(), reference, range(-180, 180, 6), 3)
        assert turned_by(found.angle[0], best) < 8
        assert np.abs(found.shift[0] - [y, x]).max() < 1.2


@examples
@given(st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_scale_and_offset_do_not_matter(scale, offset):
    particle = blobs(48)
    image = drawn(particle, 48, 33, (2, -1)) + 0.3 * noise(0, (48, 48))
    plain = align_images(image[None], drawn(particle, 48), n_jobs=1)
    other = align_images((image * scale + offset * scale)[None], drawn(particle, 48), n_jobs=1)
    assert np.allclose(plain.angle, other.angle, atol=0.05)
    assert np.allclose(plain.shift, other.shift, atol=0.01)
    assert np.allclose(plain.score, other.score, atol=1e-3)


def test_order_of_images_does_not_matter():
    images = noise(0, (40, 32, 32))
    reference = drawn(blobs(32), 32)
    order = np.random.default_rng(1).permutation(40)
    first = align_images(images, reference, n_jobs=1)
    second = align_images(images[order], reference, n_jobs=1)
    for one, other in zip(first, second, strict=True):
        assert np.allclose(one[order], other, atol=1e-3)


def test_same_bits_for_two_workers():
    images = noise(0, (1100, 32, 32)).astype(np.float32)
    references = np.array([drawn(blobs(32, seed), 32) for seed in range(3)])
    features = noise(1, (1100, 4))
    results = [
        match_to_references(
            images, references, features=features, reference_features=features[:3], n_candidates=2, n_jobs=n
        )
        for n in (1, 2)
    ]
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one, other)
    moved = [apply_alignment(images, results[0], n_jobs=n) for n in (1, 2)]
    assert np.array_equal(*moved)


def test_unusable_images():
    particle = blobs(32)
    images = np.array([drawn(particle, 32, 50)] * 5)
    images[1, 3, 3] = np.nan
    images[2] = 7
    images[3, 0, 0] = -np.inf
    found = align_images(images, drawn(particle, 32), n_jobs=1)
    assert np.isnan(found.angle[1:4]).all() and np.isnan(found.shift[1:4]).all()
    assert (found.score[1:4] == -np.inf).all()
    assert turned_by(found.angle[[0, 4]], 50).max() < 0.3
    aligned = apply_alignment(images, found, n_jobs=1)
    assert np.isnan(aligned[1:4]).all() and np.isfinite(aligned[[0, 4]]).all()
    match = match_to_references(images, images[:1], n_jobs=1)
    assert match.reference.tolist() == [0, -1, -1, -1, 0]


@pytest.mark.parametrize("dtype", ["float16", ">f4", "int16"])
def test_other_types(dtype):
    particle = blobs(40)
    image = (100 * drawn(particle, 40, -70, (1, 2)))[None].astype(dtype)
    image.flags.writeable = False
    found = align_images(image, drawn(particle, 40), n_jobs=1)
    assert turned_by(found.angle[0], -70) < 0.5
    assert np.abs(found.shift[0] - [1, 2]).max() < 0.1


def test_best_reference_of_all_and_of_the_nearest():
    box, count, n = 48, 10, 60
    particles = [blobs(box, seed) for seed in range(count)]
    references = np.array([drawn(particle, box) for particle in particles])
    label = np.arange(n) % count
    angle, shift = poses(n, box)
    images = np.array([drawn(particles[k], box, a, s) for k, a, s in zip(label, angle, shift, strict=True)])
    images += 0.8 * noise(0, images.shape)
    match = match_to_references(images, references, n_jobs=1)
    assert np.array_equal(match.reference, label)
    assert (match.n_tried == count).all()
    assert np.median(turned_by(match.angle, angle)) < 3
    features = np.eye(count)
    near = match_to_references(
        images, references, features=features[label], reference_features=features, n_jobs=1
    )
    assert np.array_equal(near.reference, label)
    assert (near.n_tried == 2).all()
    wrong = (label + 1) % count
    misled = match_to_references(
        images, references, features=features[wrong], reference_features=features, n_candidates=1, n_jobs=1
    )
    assert np.array_equal(misled.reference, wrong)


def test_flat_references_are_never_chosen():
    reference = drawn(blobs(32), 32)
    references = np.array([np.zeros((32, 32)), reference, np.ones((32, 32))])
    match = match_to_references(noise(0, (9, 32, 32)), references, n_jobs=1)
    assert (match.reference == 1).all()


def test_shift_stays_within_its_limit():
    found = align_images(noise(0, (50, 32, 32)), drawn(blobs(32), 32), max_shift=1.5, n_jobs=1)
    assert np.hypot(*found.shift.T).max() <= 1.5 + 1e-5
    still = align_images(noise(0, (5, 32, 32)), drawn(blobs(32), 32), max_shift=0, n_jobs=1)
    assert (still.shift == 0).all()


def test_rotation_matches_scipy():
    box, angle = 63, 37.0
    image = scipy.ndimage.gaussian_filter(noise(0, (box, box)), 1.5)
    pose = Alignment(np.array([angle]), np.zeros((1, 2)), np.zeros(1), np.zeros(1, dtype=bool))
    ours = apply_alignment(image[None], pose, n_jobs=1)[0]
    theirs = scipy.ndimage.rotate(image, -angle, reshape=False, order=3, mode="grid-wrap")
    offset = np.arange(box) - box // 2
    inside = np.hypot(offset[:, None], offset) < 28
    assert np.abs(ours - theirs)[inside].max() < 2e-3 * np.abs(image).max()


@pytest.mark.parametrize("box", [16, 33, 64])
def test_shift_alone_is_exact(box):
    image = scipy.ndimage.gaussian_filter(noise(0, (box, box)), 2, mode="wrap")
    pose = Alignment(np.zeros(1), np.array([[1.3, -2.6]]), np.zeros(1), np.zeros(1, dtype=bool))
    ours = apply_alignment(image[None], pose, n_jobs=1)[0]
    theirs = np.fft.ifft2(scipy.ndimage.fourier_shift(np.fft.fft2(image), (-1.3, 2.6))).real
    assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reference": np.ones((16, 16))}, "flat"),
        ({"reference": np.ones((17, 17))}, "shape"),
        ({"reference": np.full((16, 16), np.nan)}, "finite"),
        ({"max_shift": 9}, "half the box"),
        ({"images": noise(0, (2, 16, 17))}, "square"),
    ],
)
def test_mistakes_are_named(change, words):
    arguments = {"images": noise(0, (2, 16, 16)), "reference": noise(1, (16, 16)), **change}
    with pytest.raises(InputError, match=words):
        align_images(**arguments)


def test_features_must_fit():
    images = noise(0, (4, 16, 16))
    with pytest.raises(InputError, match="together"):
        match_to_references(images, images, features=np.ones((4, 2)))
    with pytest.raises(InputError, match="features must have shape"):
        match_to_references(images, images, features=np.ones((3, 2)), reference_features=np.ones((4, 2)))
    with pytest.raises(InputError, match="reference_features"):
        match_to_references(images, images, features=np.ones((4, 2)), reference_features=np.ones((4, 3)))
    with pytest.raises(InputError, match="needs features"):
        match_to_references(images, images, n_candidates=2)


@pytest.mark.parametrize(
    "method",
    [
        fs.invariant_features,
        fs.invariant_filter,
        fs.zernike_moments,
        fs.map_particles,
        fs.classify_images,
        lambda images: fs.align_images(images, np.eye(16)),
        lambda images: fs.match_to_references(images, np.eye(16)[None]),
        lambda images: fs.class_averages(images, [0]),
        lambda images: fs.apply_alignment(images, align_images(np.eye(16)[None], np.eye(16))),
    ],
)
def test_methods_open_no_paths(method, tmp_path):
    with pytest.raises(InputError, match="open it with open_particles first"):
        method(tmp_path / "particles.mrcs")
