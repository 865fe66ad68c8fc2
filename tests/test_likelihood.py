"""Classes by likelihood: functions on a disk, likelihoods of poses, sums, averages, and whole fits."""

from __future__ import annotations

import sys
from dataclasses import replace

import joblib
import naive
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsort as fs
from fastsort.images.ctf import contrast_transfer, phase_terms
from fastsort.invariants import expansion, expectation, fit_classes
from fastsort.invariants.align import Alignment, apply_alignment
from fastsort.invariants.bessel import disk_basis, draw_averages
from fastsort.invariants.expectation import ClassModel, add_sums, as_they_lie, expect, no_sums
from fastsort.invariants.maximization import maximize, on_rings
from fastsort.invariants.references import soft_disk
from fastsort.invariants.rings import rings_of, sample_rings
from fastsort.particles.source import as_particles
from fastsort.particles.table import CtfParameters

BOX = 32
RADIUS = 10.0
fit = fit_classes.fit_classes


def random_coefficients(basis, n_classes=1, seed=0, decay=4.0):
    """Coefficients of averages with less and less detail."""
    rng = np.random.default_rng(seed)
    drawn = []
    for m, root in enumerate(basis.root):
        values = rng.normal(size=(n_classes, len(root))) + 1j * rng.normal(size=(n_classes, len(root)))
        drawn.append((values.real if m == 0 else values) * np.exp(-root / decay) + 0j)
    return tuple(drawn)


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


# Places (row, column) of blobs in pixels from the middle, and their widths: two objects unlike any turned
# or mirrored version of each other or of themselves.
BLOBS = (
    ((-5.0, 0.0, 2.0), (3.0, 5.0, 1.6), (2.0, -4.0, 2.4)),
    ((-6.0, -1.0, 1.6), (5.0, 2.0, 1.8), (0.0, 6.0, 1.6), (-1.0, 1.0, 2.6)),
)


def picture(kind, angle=0.0, shift=(0.0, 0.0), box=BOX):
    """Draw an object turned by an angle in degrees, from columns towards rows, and moved then."""
    offset = np.arange(box) - box // 2
    y, x = np.meshgrid(offset, offset, indexing="ij")
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    image = np.zeros((box, box))
    for row, column, width in BLOBS[kind]:
        down = sine * column + cosine * row + shift[0]
        right = cosine * column - sine * row + shift[1]
        image += np.exp(-((y - down) ** 2 + (x - right) ** 2) / (2 * width**2))
    return image.astype(np.float32)


def pictures(kind, angle, shift, snr=None, seed=0):
    """Objects in poses, with white noise if a ratio of powers over the box is given."""
    images = np.array([picture(k, a, s) for k, a, s in zip(kind, angle, shift, strict=True)])
    if snr is None:
        return images
    noise = np.random.default_rng(seed).normal(size=images.shape)
    return (images + images.std() / np.sqrt(snr) * noise).astype(np.float32)


def planted(n, seed=0, far=1.0, n_kinds=2):
    """Objects, angles and shifts of images; both halves, the even and the odd ones, show all objects."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) // 2 % n_kinds
    return kind, rng.uniform(-180, 180, n), rng.uniform(-far, far, (n, 2))


def model_of(references, noise, **more):
    """A model of these averages (H, M, R, K), with equal shares."""
    n_rings, n_classes = references.shape[2:]
    usual = {
        "shares": np.full(n_classes, 1 / n_classes),
        "noise": np.broadcast_to(np.asarray(noise, dtype=float), n_rings).copy(),
        "deviation": 1.0,
        "reach": 2.5,
        "window": 14.0,
        "coarse": min(8, n_rings),
    }
    return ClassModel(BOX, references.astype(np.complex64), **{**usual, **more})


def model_of_pictures(n_halves=1, noise=0.02, n_rings=15):
    """Averages of the two objects as they are drawn."""
    basis = disk_basis(BOX, 13.0, n_rings)
    model = model_of(np.zeros((1, len(basis.root), n_rings, 2)), 1.0)
    sums = no_sums(model.references.shape)
    for kind in (0, 1):
        sums = add_sums(sums, as_they_lie(picture(kind)[None], None, model, kind))
    found = maximize(sums, None, np.full(n_rings, 1e-6), np.full(n_rings, 1e3), basis)
    references = np.repeat(on_rings(found.coefficients, basis)[None], n_halves, axis=0)
    return model_of(references, noise)


def on_rings_of(images, terms, model, n_rings):
    return expansion.put_on_rings(images, terms, model.box, model.window, n_rings)


def at_all_angles(parts, n_angles):
    places = np.repeat(np.arange(n_angles), parts.shape[2])
    every = np.tile(np.arange(parts.shape[2]), n_angles)
    return expectation._at(places, parts[:, :, every]).reshape(n_angles, -1).T


def correlation(one, other, radius=RADIUS, box=BOX):
    """Correlate two images inside a disk."""
    offset = np.arange(box) - box // 2
    inside = np.hypot(offset[:, None], offset) <= radius
    return np.corrcoef(one[inside], other[inside])[0, 1]


def apart(one, other):
    """Angle between directions in degrees."""
    return np.abs((one - other + 180) % 360 - 180)


def same(one, other):
    if isinstance(one, tuple):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        np.testing.assert_array_equal(one, other)


# Functions on a disk.


@pytest.mark.parametrize(("m", "q"), [(0, 0), (0, 3), (1, 0), (2, 1), (5, 0)])
def test_functions_have_norm_one_and_vanish_at_the_edge(m, q):
    box, radius = 128, 50.0
    basis = disk_basis(box, radius, 8)
    coefficients = [np.zeros((1, len(root)), dtype=complex) for root in basis.root]
    coefficients[m][0, q] = 1
    image = draw_averages(tuple(coefficients), basis)[0].astype(np.float64)
    # With the function of index -m the image is twice the real part.
    assert (image**2).sum() == pytest.approx(1 if m == 0 else 2, rel=2e-3)
    offset = np.arange(box) - box // 2
    distance = np.hypot(offset[:, None], offset)
    assert (image[distance >= radius] == 0).all()
    near = (distance < radius) & (distance > radius - 0.5)
    assert np.abs(image[near]).max() < 0.05 * np.abs(image).max()


def test_all_functions_up_to_the_last_ring_are_there():
    basis = disk_basis(40, 12.0, 10)
    last = 2 * np.pi * 12.0 / 40 * 10
    for m, root in enumerate(basis.root):
        expected = scipy.special.jn_zeros(m, 50)
        np.testing.assert_allclose(root, expected[expected <= last])
        np.testing.assert_array_equal(basis.shell[m], np.maximum(np.rint(root / last * 10) - 1, 0))
    assert scipy.special.jn_zeros(len(basis.root), 1)[0] > last


@pytest.mark.parametrize(("box", "radius"), [(64, 25.0), (65, 20.0)])
def test_transforms_on_rings_are_those_of_the_drawn_image(box, radius):
    basis = disk_basis(box, radius, 16)
    coefficients = random_coefficients(basis, 2, decay=8.0)
    images = draw_averages(coefficients, basis)
    expanded = on_rings(coefficients, basis)
    rings = rings_of(box)
    directions = -np.pi / 2 + np.pi * np.arange(rings.n_angles) / rings.n_angles
    sampled = sample_rings(images, rings, rings.image_taps)[:, :, :12]
    for k in (0, 1):
        exact = naive.expansion_on_rings(expanded[:, :12, k], directions)
        # Samples are of images of deviation 1.
        found = (sampled[k, 0] + 1j * sampled[k, 1]) * images[k].std()
        assert relative(found, exact) < 5e-3
        assert relative(naive.on_rings(images[k], 12, directions[::9]), exact[:, ::9]) < 5e-3
        back = naive.expanded_in_angle(
            naive.expansion_on_rings(expanded[:, :, k], 2 * np.pi * np.arange(200) / 200),
            2 * np.pi * np.arange(200) / 200,
            len(expanded),
        )
        np.testing.assert_allclose(back, expanded[:, :, k], atol=1e-5 * np.abs(expanded).max())


@pytest.mark.parametrize("angle", [90.0, -90.0, 31.0])
def test_a_factor_turns_the_drawn_image(angle):
    basis = disk_basis(48, 20.0, 8)
    coefficients = random_coefficients(basis, decay=6.0)
    before = draw_averages(coefficients, basis)
    # From columns towards rows.
    factors = np.exp(-1j * np.radians(angle) * np.arange(len(coefficients)))
    after = draw_averages(tuple(f * c for f, c in zip(factors, coefficients, strict=True)), basis)
    pose = Alignment(np.array([angle]), np.zeros((1, 2)), np.ones(1), np.zeros(1, dtype=bool))
    assert correlation(after[0], apply_alignment(before, pose)[0], 18, 48) > 0.9999
    if angle == 90:
        # What lies on the first axis comes to lie on the second.
        np.testing.assert_allclose(after[0, 25:44, 24], before[0, 24, 25:44], atol=1e-5)


# Likelihoods and sums against the plain formulas.

N_RINGS = 8
OPTICS = {"voltage": 300.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}


def ctf_of(defocus):
    """Transfer functions without astigmatism."""
    defocus = np.asarray(defocus, dtype=float)
    one = np.ones(len(defocus))
    return CtfParameters(
        defocus_u=defocus,
        defocus_v=defocus,
        defocus_angle=0 * one,
        phase_shift=0 * one,
        **{name: value * one for name, value in OPTICS.items()},
    )


def windowed(image, window):
    """Deviation 1, the corners at 0, and nothing outside the window."""
    image, box = (image - image.mean()) / image.std(), len(image)
    offset = np.arange(box) - box // 2
    corner = np.add.outer(offset**2, offset**2) > (box // 2) ** 2
    return (image - image[corner].mean()) * soft_disk(box, window)


class Case:
    """Images, a model with two classes, and both as the plain formulas want them."""

    def __init__(self, with_ctf, n=3, seed=0):
        rng = np.random.default_rng(seed)
        self.images = pictures(*planted(n, seed), snr=1.0, seed=seed)
        basis = disk_basis(BOX, RADIUS, N_RINGS)
        one, other = (20 * on_rings(random_coefficients(basis, 1, seed + i), basis) for i in (0, 1))
        # So much alike that no class is certain.
        self.references = np.concatenate([one, one + 0.1 * other], axis=2)[None]
        self.shares, self.deviation, self.window = np.array([0.7, 0.3]), 0.9, 12.0
        self.noise = 3e4 * rng.uniform(0.5, 1.5, N_RINGS)
        self.model = model_of(
            self.references,
            self.noise,
            shares=self.shares,
            deviation=self.deviation,
            reach=1.4,
            window=self.window,
            coarse=N_RINGS,
        )
        defocus = rng.uniform(8e3, 2e4, n)
        self.terms = phase_terms(ctf_of(defocus), 4.0) if with_ctf else None
        self.contrast = np.ones((n, N_RINGS))
        if with_ctf:
            optics = OPTICS["voltage"], OPTICS["spherical_aberration"], OPTICS["amplitude_contrast"]
            self.contrast = np.array(
                [naive.contrast_on_rings(N_RINGS, BOX, 4.0, value, *optics) for value in defocus]
            )
        self.n_angles = expectation._n_angles(self.references.shape[1])
        # Each angle that is compared is a whole number of steps.
        self.directions = 2 * np.pi * np.arange(4 * self.n_angles) / (4 * self.n_angles)
        self.angles = 2 * np.pi * np.arange(self.n_angles) / self.n_angles
        self.shifts = 4 / 3 * np.array([[-1, 0], [0, -1], [0, 0], [0, 1], [1, 0]])
        self.samples = [
            naive.on_rings(windowed(image, self.window), N_RINGS, self.directions) for image in self.images
        ]

    def plain(self, i, k, angle, shift):
        """The formula, with what is known of classes and shifts."""
        value = naive.pose_log_likelihood(
            self.samples[i],
            self.references[0, :, :, k],
            angle,
            shift,
            self.directions,
            BOX,
            self.contrast[i],
            self.noise,
        )
        return value + np.log(self.shares[k]) - shift @ shift / (2 * self.deviation**2)

    def sums(self, i):
        return naive.pose_sums(
            self.samples[i],
            self.references[0],
            self.shares,
            self.angles,
            self.shifts,
            self.deviation,
            self.directions,
            BOX,
            self.contrast[i],
            self.noise,
        )


@pytest.mark.parametrize("with_ctf", [False, True])
def test_likelihoods_of_poses(with_ctf):
    case = Case(with_ctf)
    images = on_rings_of(case.images, case.terms, case.model, N_RINGS)
    poses = expectation._coarse_poses(3, case.model)
    compared = expectation._compare(images, poses, expectation._search(case.model, 0, N_RINGS))
    found = at_all_angles(compared.parts, case.n_angles) + compared.offset[:, None]
    np.testing.assert_allclose(compared.best, found.max(axis=1), rtol=1e-5)
    assert found.shape == (3 * 5 * 2, case.n_angles)
    rng = np.random.default_rng(1)
    image = poses.image[poses.row]
    for i in range(3):
        pairs = rng.choice(np.flatnonzero(image == i), 40)
        places = rng.integers(0, case.n_angles, 40)
        plain = np.array(
            [
                case.plain(i, poses.label[pair], case.angles[place], poses.shift[poses.row[pair]])
                for pair, place in zip(pairs, places, strict=True)
            ]
        )
        difference = found[pairs, places] - plain
        # They differ by a constant of the image.
        assert np.ptp(plain) > 3
        np.testing.assert_allclose(difference, difference.mean(), atol=3e-3 * np.ptp(plain))


@pytest.mark.parametrize("with_ctf", [False, True])
def test_sums_and_assignments(with_ctf):
    case = Case(with_ctf)
    sums, found = expect(case.images, None, case.terms, case.model)
    plain = [case.sums(i) for i in range(3)]
    shifts = {tuple(np.round(s, 4)) for s in expectation._coarse_poses(1, case.model).shift}
    assert shifts == {tuple(np.round(s, 4)) for s in case.shifts}
    # Neither is any pose or class certain, nor are all the same.
    assert all(10 / one.posterior.size < one.posterior.max() < 0.7 for one in plain)
    assert relative(sums.products[0], sum(one.products for one in plain)) < 3e-3
    np.testing.assert_allclose(sums.weights[0], sum(one.weights for one in plain), rtol=3e-3)
    of_class = np.array([one.posterior.sum(axis=(1, 2)) for one in plain])
    assert of_class.max(axis=1).min() < 0.9
    np.testing.assert_allclose(sums.counts[0], of_class.sum(axis=0), rtol=2e-3)
    np.testing.assert_allclose(sums.residue, sum(one.residue for one in plain), rtol=3e-3)
    assert sums.square_shift == pytest.approx(sum(one.square_shift for one in plain), rel=3e-3)
    assert sums.n_images == 3
    np.testing.assert_array_equal(found.label, of_class.argmax(axis=1))
    np.testing.assert_allclose(found.probability, of_class.max(axis=1), rtol=2e-3)
    for i, (one, k) in enumerate(zip(plain, found.label, strict=True)):
        s, p = np.unravel_index(one.posterior[k].argmax(), one.posterior[k].shape)
        # Beside the likeliest of the shifts that were compared, where a parabola through neighbours peaks.
        step = BOX / (4 * N_RINGS)
        for axis, neighbour in enumerate(step * np.eye(2)):
            heights = [
                case.plain(i, k, case.angles[p], case.shifts[s] + side * neighbour) for side in (-1, 0, 1)
            ]
            bend, slope, _ = np.polyfit((-step, 0, step), heights, 2)
            assert bend < 0
            peak = -slope / (2 * bend)
            beside = np.clip(peak, -step, step)
            assert found.shift[i, axis] == pytest.approx(case.shifts[s, axis] + beside, abs=0.03)
        # An alignment turns the image back, by an angle that lies between those compared.
        assert apart(found.angle[i], -np.degrees(case.angles[p])) < 180 / len(case.angles)
        assert found.pose_probability[i] == pytest.approx(one.posterior[k].max(), rel=1e-2)
        score = naive.pose_correlation(
            case.samples[i],
            case.references[0, :, :, k],
            case.angles[p],
            case.shifts[s],
            case.directions,
            BOX,
            case.contrast[i],
            case.noise,
        )
        assert found.score[i] == pytest.approx(score, abs=3e-3)


@pytest.mark.parametrize("with_ctf", [False, True])
def test_images_as_they_lie(with_ctf):
    case = Case(with_ctf)
    sums = as_they_lie(case.images, case.terms, case.model, 1)
    seen = [c[:, None] * samples for c, samples in zip(case.contrast, case.samples, strict=True)]
    expected = sum(naive.expanded_in_angle(one, case.directions, len(sums.products[0])) for one in seen)
    assert relative(sums.products[0, :, :, 1], expected) < 3e-3
    assert not sums.products[0, :, :, 0].any() and not sums.weights[0, :, 0].any()
    np.testing.assert_allclose(sums.weights[0, :, 1], (case.contrast**2).sum(axis=0), rtol=1e-3)
    power = sum((np.abs(samples) ** 2).mean(axis=1) for samples in case.samples)
    np.testing.assert_allclose(sums.residue, power, rtol=3e-3)
    assert sums.counts.tolist() == [[0, 3]] and sums.n_images == 3


@pytest.mark.parametrize("n_indices", [1, 2, 3, 14, 41])
def test_quarters_of_a_turn_hold_all_angles(n_indices):
    rng = np.random.default_rng(n_indices)
    products = rng.normal(size=(2, n_indices, 700)).astype(np.float32)
    index = expansion.even_first(n_indices)
    assert sorted(index) == list(range(n_indices))
    n_angles = expectation._n_angles(n_indices)
    assert n_angles >= expectation.ANGLES * n_indices
    turns = np.exp(2j * np.pi * np.outer(index, np.arange(n_angles)) / n_angles)
    exact = products[0].T @ turns.real + products[1].T @ turns.imag
    tables = expectation._turns(n_indices)
    parts = np.empty((4, len(tables[0]), 700), dtype=np.float32)
    # Each image is its own product.
    expanded, weights = products.swapaxes(0, 1)[:, :, None].copy(), np.zeros((2, n_indices, 1, 2), np.float32)
    weights[0, ..., 0] = weights[1, ..., 1] = 1
    found, every = np.empty_like(products), np.empty(0, dtype=np.intp)
    expectation._multiply(expanded, weights, every, *tables, found, parts)
    np.testing.assert_array_equal(found, products)
    np.testing.assert_allclose(at_all_angles(parts, n_angles), exact, atol=1e-4)
    # Probabilities, and their sums with cosines and sines.
    owner, label, row = rng.integers(0, 5, 700), rng.integers(0, 3, 700), rng.integers(0, 20, 700)
    # Some pairs are so unlikely that nothing is left of them in single precision.
    offset = -rng.choice([0.0, 3.0, 200.0], 700).astype(np.float32)
    best, highest = np.empty(700, dtype=np.float32), np.full(5, -np.inf, dtype=np.float32)
    expectation._find_best(parts, offset, owner, best, highest)
    np.testing.assert_allclose(best, exact.max(axis=1) + offset, atol=1e-4)
    np.testing.assert_allclose(highest, [best[owner == i].max() for i in range(5)])
    of_class, of_row = np.zeros((5, 3)), np.zeros(20)
    expectation._weigh(parts, offset, highest, owner, row, label, of_class, of_row)
    probability = np.exp(exact + (offset - highest[owner])[:, None])
    for found, places in ((of_class.ravel(), 3 * owner + label), (of_row, row)):
        plain = np.bincount(places, probability.sum(axis=1), len(found))
        np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-30)
    turned = np.empty_like(products)
    expectation._sum_angles(parts, *tables, turned)
    plain = (probability @ turns.T).T
    np.testing.assert_allclose(turned[0] + 1j * turned[1], plain, atol=1e-4 * np.abs(plain).max())


@pytest.mark.parametrize(("box", "n_rings"), [(24, 11), (32, 6), (33, 16)])
def test_small_images_are_sampled_exactly(box, n_rings):
    images = np.random.default_rng(box).normal(size=(3, box, box)).astype(np.float32)
    window = 0.45 * box
    found = expansion._sampled(images, box, window, n_rings)
    directions = -np.pi / 2 + np.pi * np.arange(rings_of(box).n_angles) / rings_of(box).n_angles
    assert found.shape == (2, len(directions), n_rings, 3)
    for i in range(3):
        exact = naive.on_rings(windowed(images[i], window), n_rings, directions)
        assert relative(found[0, :, :, i] + 1j * found[1, :, :, i], exact.T) < 1e-5


@pytest.mark.parametrize("n_rings", [6, 12])
def test_larger_images_are_sampled_as_small_ones(monkeypatch, n_rings):
    images, box, window = pictures(*planted(6)), BOX, 14.0
    exact = expansion._sampled(images, box, window, n_rings)
    monkeypatch.setattr(expansion, "DIRECT", 0)
    usual = expansion._sampled(images, box, window, n_rings)
    assert usual.shape == exact.shape
    assert relative(usual, exact) < 3e-3


def test_samples_are_seen_through_the_transfer_function():
    rings, n_rings = rings_of(BOX), 12
    changed = {"defocus_v": np.array([8e3, 2e4, 3.6e4]), "defocus_angle": np.full(3, 30.0)}
    terms = phase_terms(ctf_of([9e3, 2e4, 4e4])._replace(**changed), 2.0)
    samples = np.random.default_rng(0).normal(size=(2, rings.n_angles, n_rings, 3)).astype(np.float32)
    seen, transfer = samples.copy(), np.empty((3, n_rings), dtype=np.float32)
    expansion._see_through(seen, transfer, terms, rings.cosine, rings.sine, BOX)
    x, y = (
        np.multiply.outer(d.astype(float), np.arange(1, n_rings + 1) / BOX)
        for d in (rings.cosine, rings.sine)
    )
    for i, (xx, yy, xy, fourth, constant) in enumerate(terms):
        turns = xx * x**2 + yy * y**2 + xy * x * y - fourth * (x**2 + y**2) ** 2 + constant
        expected = np.abs(np.sin(np.pi * turns))
        np.testing.assert_allclose(seen[..., i], samples[..., i] * expected, atol=1e-5)
        np.testing.assert_allclose(transfer[i], (expected**2).mean(axis=0), rtol=1e-5)


def test_steps_that_are_nearly_fine_enough_are_not_divided():
    model = model_of_pictures(n_rings=13)
    on_all = on_rings_of(pictures(*planted(6), snr=1.0), None, model, 13)
    rough = expectation._coarse_poses(6, model)
    compared = expectation._compare(on_all, rough, expectation._search(model, 0, model.coarse))
    # 12 rings fit the steps of the search on 8, and 13 nearly do.
    for n_rings, times in ((12, 1), (13, 1), (14, 4)):
        poses = expectation._fine_poses(compared, rough, model, n_rings)
        kept = np.unique(rough.row[compared.best > compared.highest[rough.owner] - expectation.DROPPED])
        assert len(poses.image) == times * len(kept)


@pytest.mark.parametrize("with_ctf", [False, True])
def test_images_kept_on_rings_are_found_as_they_are(with_ctf):
    case = Case(with_ctf, n=6)
    images, half = case.images, np.arange(6) % 2
    images[4] = 1
    model = case.model._replace(references=np.concatenate([case.references, 0.9 * case.references]))
    # More rings are kept than are compared.
    kept = expansion.KeptRings(
        *expansion.keep_rings(images.copy(), case.terms, BOX, case.window, rings_of(BOX).n_rings)
    )
    np.testing.assert_array_equal(kept.usable, np.arange(6) != 4)
    sums, found = expect(images, half, case.terms, model)
    sums_of_kept, found_of_kept = expect(kept, half, None, model)
    for one, other in zip(sums, sums_of_kept, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())
    for one, other in zip(found, found_of_kept, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_what_is_kept_on_rings_makes_the_same_classes(monkeypatch):
    kept = fit(small_set(), 2, RADIUS, n_jobs=1)
    monkeypatch.setattr(fit_classes, "KEPT_BYTES", 0)
    read = fit(small_set(), 2, RADIUS, n_jobs=1)
    np.testing.assert_array_equal(kept.assignments.label, read.assignments.label)
    np.testing.assert_allclose(kept.averages, read.averages, atol=1e-3 * np.abs(read.averages).max())


def test_a_pose_is_found_on_all_rings_as_on_a_grid_of_fine_steps():
    """The second search compares every class and shift near what the first has found, on all rings."""
    model = model_of_pictures()
    images = pictures(*planted(6), snr=1.0)
    both = on_rings_of(images, None, model, 15)
    rough = expectation._coarse_poses(6, model)
    compared = expectation._compare(both, rough, expectation._search(model, 0, model.coarse))
    poses = expectation._fine_poses(compared, rough, model, 15)
    assert (np.diff(poses.image) >= 0).all()
    # Steps of at most half a period of the outermost ring, evenly around the places of the first search.
    first = np.unique(rough.shift[:, 0])
    fine = np.unique(np.round(poses.shift[:, 0], 6))
    assert np.diff(first).max() <= BOX / (3 * model.coarse) + 1e-9
    assert np.diff(fine).max() <= BOX / (2 * 15)
    pairs = {(i, tuple(np.round(s, 6))) for i, s in zip(poses.image, poses.shift, strict=True)}
    assert len(pairs) == len(poses.image)


# Poses that were planted.


def test_planted_poses_are_found():
    model = model_of_pictures()
    kind, angle, shift = planted(40)
    sums, found = expect(pictures(kind, angle, shift, snr=30.0), None, None, model)
    np.testing.assert_array_equal(found.label, kind)
    assert found.probability.min() > 0.99
    # Finer than the steps of the search, 2/3 px.
    step = 360 / expectation._n_angles(model.references.shape[1])
    assert step <= 5
    assert apart(-angle, found.angle).max() < step
    assert np.sqrt((apart(-angle, found.angle) ** 2).mean()) < 0.4 * step
    assert np.abs(found.shift - shift).max() < 1 / 3 and (found.shift - shift).std() < 0.12
    np.testing.assert_allclose(sums.counts[0], [20, 20], atol=0.1)
    assert found.score.min() > 0.8


def test_poses_are_those_of_an_alignment():
    model = model_of_pictures()
    kind, angle, shift = planted(20, seed=1)
    images = pictures(kind, angle, shift)
    _, found = expect(images, None, None, model)
    pose = Alignment(found.angle, found.shift, found.score, np.zeros(20, dtype=bool))
    for image, k in zip(apply_alignment(images, pose), kind, strict=True):
        assert correlation(image, picture(k)) > 0.97
    # As the alignment to the same reference has it.
    of_first = fs.invariants.align_images(images[kind == 0], picture(0))
    assert apart(found.angle[kind == 0], of_first.angle).max() < 3.5
    assert np.abs(found.shift[kind == 0] - of_first.shift).max() < 0.5


def test_images_that_cannot_be_used_do_not_count():
    model = model_of_pictures()
    images = pictures(*planted(12), snr=1.0)
    images[2], images[5, 3, 3], images[7, 0, 0] = 4, np.nan, np.inf
    bad = np.isin(np.arange(12), [2, 5, 7])
    sums, found = expect(images, None, None, model)
    without, alone = expect(images[~bad], None, None, model)
    assert sums.n_images == without.n_images == 9
    for one, other in zip(sums, without, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
    for values, only in zip(found, alone, strict=True):
        np.testing.assert_allclose(values[~bad], only, rtol=1e-4, atol=1e-4)
    assert (found.label[bad] == -1).all() and (found.probability[bad] == 0).all()
    assert np.isnan(found.angle[bad]).all() and np.isnan(found.shift[bad]).all()
    assert (found.score[bad] == -np.inf).all()
    nothing, lost = expect(images[bad], None, None, model)
    assert nothing.n_images == 0 and not nothing.products.any() and (lost.label == -1).all()


def test_sums_of_two_batches_add_up():
    model = model_of_pictures(n_halves=2)
    images = pictures(*planted(50), snr=0.5)
    half = np.arange(50) % 2
    whole, found = expect(images, half, None, model)
    parts = [expect(images[rows], half[rows], None, model) for rows in (slice(17), slice(17, None))]
    together = add_sums(parts[0][0], parts[1][0])
    for one, other in zip(whole, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
    for column, *pair in zip(found, parts[0][1], parts[1][1], strict=True):
        np.testing.assert_allclose(column, np.concatenate(pair), rtol=1e-4, atol=1e-4)
    # Even images are compared with the first averages, odd ones with the second.
    np.testing.assert_allclose(whole.counts.sum(axis=1), [25, 25], rtol=1e-5)


def test_each_half_follows_its_own_averages():
    model = model_of_pictures(n_halves=2)
    # In the second half, the classes have changed places.
    references = model.references.copy()
    references[1] = references[1][:, :, ::-1]
    _, angle, shift = planted(8)
    images = pictures(np.zeros(8, dtype=int), angle, shift, snr=5.0)
    half = np.arange(8) % 2
    _, found = expect(images, half, None, model._replace(references=references))
    assert found.label.tolist() == [0, 1] * 4
    # The score compares with the average of the other half, which is the other object.
    _, usual = expect(images, half, None, model)
    assert found.score.max() < 0.9 * usual.score.min()


# Averages from sums.


def exact_sums(coefficients, basis, members):
    """Sums that images without noise would give: the averages, as often as they are members."""
    rng = np.random.default_rng(0)
    expanded = on_rings(coefficients, basis).astype(complex)
    seen = rng.uniform(0.3, 1, (basis.n_rings, 1)) * np.asarray(members)
    sums = no_sums((1, *expanded.shape))
    return sums._replace(
        products=(seen * expanded)[None], weights=seen[None], counts=np.array([members], dtype=float)
    )


def test_averages_are_recovered_where_there_is_no_noise():
    basis = disk_basis(BOX, 12.0, 12)
    coefficients = random_coefficients(basis, 3)
    sums = exact_sums(coefficients, basis, [30, 5, 200])
    found = maximize(sums, None, np.full(12, 1e-9), np.full(12, 1e3), basis)
    for one, other in zip(found.coefficients, coefficients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert (found.coefficients[0].imag == 0).all()


def test_averages_are_a_least_squares_solution_with_a_prior(monkeypatch):
    monkeypatch.setattr("fastsort.invariants.maximization.N_ROUNDS", 1)
    basis = disk_basis(BOX, 12.0, 10)
    rng = np.random.default_rng(3)
    sums = exact_sums(random_coefficients(basis, 2), basis, [30, 5])
    sums.products[:] += rng.normal(size=sums.products.shape) + 1j * rng.normal(size=sums.products.shape)
    noise, power = rng.uniform(1, 3, 10), rng.uniform(0.01, 0.1, 10)
    found = maximize(sums, None, noise, power, basis)
    for m, table in enumerate(basis.on_rings):
        for k in (0, 1):
            seen = sums.weights[0, :, k]
            root = np.sqrt(2 * np.pi * np.arange(1, 11) / noise * seen)
            rows = np.concatenate([root[:, None] * table, np.diag(power[basis.shell[m]] ** -0.5)])
            values = np.append(root * sums.products[0, m, :, k] / seen, np.zeros(table.shape[1]))
            best = np.linalg.lstsq(rows.astype(complex), values, rcond=None)[0]
            np.testing.assert_allclose(found.coefficients[m][k], best.real if m == 0 else best, atol=1e-5)


def test_power_shrinks_where_there_is_only_noise():
    basis = disk_basis(BOX, 12.0, 15)
    rng = np.random.default_rng(0)
    coefficients = tuple(
        np.where(shell < 5, values, 0)
        for values, shell in zip(random_coefficients(basis, 4, decay=50.0), basis.shell, strict=True)
    )
    sums = exact_sums(coefficients, basis, [40] * 4)
    noise = np.full(15, 30.0)
    certainty = 2 * np.pi * np.arange(1, 16)[:, None] / noise[:, None]
    spread = np.sqrt(sums.weights / certainty / 2)[:, None]
    sums.products[:] += spread * (
        rng.normal(size=sums.products.shape) + 1j * rng.normal(size=sums.products.shape)
    )
    power = np.full(15, 1e3)
    free = maximize(sums, None, noise, power, basis)
    for _ in range(40):
        found = maximize(sums, None, noise, power, basis)
        power = found.power
    assert power[:4].min() > 0.3
    assert power[8:].max() < 0.05 * power[:4].min()
    high = [shell >= 8 for shell in basis.shell]
    left, before = (
        sum((np.abs(values[:, chosen]) ** 2).sum() for values, chosen in zip(c, high, strict=True))
        for c in (found.coefficients, free.coefficients)
    )
    assert left < 0.1 * before
    # What is there stays.
    for values, exact, shell in zip(found.coefficients, coefficients, basis.shell, strict=True):
        if (shell < 4).any():
            assert relative(values[:, shell < 4], exact[:, shell < 4]) < 0.5


def test_a_class_without_members_has_an_empty_average():
    basis = disk_basis(BOX, 12.0, 10)
    sums = exact_sums(random_coefficients(basis, 3), basis, [30, 0, 20])
    found = maximize(sums, None, np.ones(10), np.ones(10), basis)
    alone = sums._replace(
        products=sums.products[..., [0, 2]], weights=sums.weights[..., [0, 2]], counts=sums.counts[:, [0, 2]]
    )
    without = maximize(alone, None, np.ones(10), np.ones(10), basis)
    np.testing.assert_allclose(found.power, without.power)
    for values, others in zip(found.coefficients, without.coefficients, strict=True):
        assert not values[1].any()
        np.testing.assert_allclose(values[[0, 2]], others)
    empty = maximize(no_sums(sums.products.shape), None, np.ones(10), np.ones(10), basis)
    assert np.isfinite(empty.power).all()
    assert not any(values.any() for values in empty.coefficients)


def test_halves_are_made_of_their_own_images():
    basis = disk_basis(BOX, 12.0, 10)
    one, other = (exact_sums(random_coefficients(basis, 2, seed), basis, [30, 9]) for seed in (1, 2))
    both = no_sums((2, *one.products.shape[1:]))
    for field, first, second in zip(both[:3], one[:3], other[:3], strict=True):
        field[0], field[1] = first[0], second[0]
    noise, power = np.ones(10), np.ones(10)
    same(maximize(both, 0, noise, power, basis), maximize(one, None, noise, power, basis))
    same(maximize(both, 1, noise, power, basis), maximize(other, 0, noise, power, basis))
    same(maximize(both, None, noise, power, basis), maximize(add_sums(one, other), None, noise, power, basis))


# Whole fits.


def blurred(images, defocus, pixel_size=4.0):
    """Images seen through transfer functions whose phases were flipped."""
    transfer = np.abs(contrast_transfer(ctf_of(defocus), BOX, pixel_size))
    return np.fft.irfft2(np.fft.rfft2(images) * transfer, s=(BOX, BOX)).astype(np.float32)


def assert_sound(found, n, n_classes):
    assert found.averages.shape == (n_classes, BOX, BOX)
    assert np.isfinite(found.averages).all() and np.isfinite(found.correlation).all()
    assert np.abs(found.correlation).max() <= 1 + 1e-9
    assert found.assignments.label.shape == (n,)
    assert found.assignments.label.max() < n_classes
    used = found.assignments.label >= 0
    assert np.isfinite(found.assignments.angle[used]).all()
    # The other half of a class may have no members.
    half = 2 * found.assignments.label + np.arange(n) % 2
    paired = used & np.isin(half ^ 1, half[used])
    assert np.isfinite(found.assignments.score[paired]).all()
    assert not np.isinf(found.assignments.score[used]).any()
    assert found.assignments.probability[used].min() > 0
    assert found.assignments.probability.max() < 1.0001
    assert np.hypot(*found.assignments.shift[used].T).max() <= fit_classes.REACH * BOX + BOX / 12


def small_set(n=60, snr=1.0, seed=0):
    return as_particles(pictures(*planted(n, seed), snr=snr, seed=seed))


@pytest.mark.slow
def test_two_objects_in_two_classes():
    kind, angle, shift = planted(120)
    found = fit(as_particles(pictures(kind, angle, shift, snr=0.3)), 2, RADIUS, n_jobs=1)
    assert_sound(found, 120, 2)
    label = found.assignments.label
    order = [int(np.bincount(kind[label == k], minlength=2).argmax()) for k in (0, 1)]
    assert sorted(order) == [0, 1]
    assert (np.array(order)[label] == kind).mean() > 0.98
    for k in (0, 1):
        # Any member that was drawn without noise, brought onto the average.
        members = np.flatnonzero((label == k) & (kind == order[k]))
        pose = Alignment(
            *(values[members] for values in found.assignments[2:4]),
            np.ones(len(members)),
            np.zeros(len(members), dtype=bool),
        )
        straight = apply_alignment(pictures(kind[members], angle[members], shift[members]), pose)
        assert np.median([correlation(one, found.averages[k]) for one in straight]) > 0.95
    assert found.correlation[:, 1:4].min() > 0.9


@pytest.mark.slow
def test_an_average_is_corrected_for_the_transfer_function():
    n = 60
    rng = np.random.default_rng(0)
    defocus = rng.uniform(1e4, 2e4, n)
    clean = blurred(np.repeat(picture(0)[None], n, axis=0), defocus)
    images = (clean + clean.std() * rng.normal(size=clean.shape)).astype(np.float32)
    particles = replace(fs.open_particles(images, pixel_size=4.0), ctf=ctf_of(defocus))
    found = fit(particles, 1, RADIUS, n_jobs=1)
    corrected = correlation(found.averages[0], picture(0))
    assert corrected > 0.97
    assert corrected > correlation(images.mean(axis=0), picture(0)) + 0.05
    without = fit(replace(particles, ctf=None), 1, RADIUS, n_jobs=1)
    assert corrected > correlation(without.averages[0], picture(0)) + 0.05


@pytest.mark.slow
def test_workers_and_processes_do_not_change_bits(monkeypatch):
    monkeypatch.setattr(fit_classes, "BATCH", 16)
    particles = small_set()
    one = fit(particles, 2, RADIUS, n_jobs=1)
    same(one, fit(particles, 2, RADIUS, n_jobs=1))
    same(one, fit(particles, 2, RADIUS, n_jobs=2))
    with joblib.parallel_config(backend="loky", n_jobs=2):
        same(one, fit(particles, 2, RADIUS))
    other = fit(particles, 2, RADIUS, n_jobs=1, seed=1)
    assert not np.array_equal(one.averages, other.averages)
    # The objects are the same ones.
    assert_sound(other, 60, 2)
    for found in (one, other):
        members = np.bincount(2 * found.assignments.label + planted(60)[0])
        assert sorted(members.tolist()) == [0, 0, 30, 30]


def recorded(monkeypatch):
    """The models of all batches of a fit that is yet to come."""
    models = []
    plain = fit_classes._expect

    def noted(images, start, half, terms, model):
        models.append(model)
        return plain(images, start, half, terms, model)

    monkeypatch.setattr(fit_classes, "_expect", noted)
    return models


@pytest.mark.slow
def test_the_coarse_search_drops_hardly_any_pose_that_wins(monkeypatch):
    n = 150
    options = {"box": BOX, "noise": "white", "snr_definition": "power"}
    images, _ = fs.simulate_particles(n, 0, volume="two-lobed", snr=0.2, seed=4, **options)
    models = recorded(monkeypatch)
    fit(as_particles(images), 4, 12.0, n_jobs=1)
    model = models[-1]
    n_rings = model.references.shape[2]
    assert n_rings == 15 > model.coarse
    on_all = on_rings_of(images, None, model, n_rings)
    rough = expectation._coarse_poses(n, model)
    compared = expectation._compare(on_all, rough, expectation._search(model, 0, model.coarse))

    def known(poses):
        return list(
            zip(
                poses.image[poses.row].tolist(),
                poses.label.tolist(),
                map(tuple, np.round(poses.shift[poses.row], 6).tolist()),
                strict=True,
            )
        )

    kept = set(known(expectation._fine_poses(compared, rough, model, n_rings)))
    monkeypatch.setattr(expectation, "DROPPED", 1e9)
    poses = expectation._fine_poses(compared, rough, model, n_rings)
    every = known(poses)
    assert len(kept) < 0.5 * len(every)
    best = expectation._compare(on_all, poses, expectation._search(model, 0, n_rings)).best
    winners = {}
    for pose, value in zip(every, best, strict=True):
        if value > winners.get(pose[0], (None, -np.inf))[1]:
            winners[pose[0]] = pose, value
    assert np.mean([pose in kept for pose, _ in winners.values()]) >= 0.99


@pytest.mark.slow
def test_halves_of_noise_do_not_agree():
    images = np.random.default_rng(0).normal(size=(200, BOX, BOX)).astype(np.float32)
    found = fit(as_particles(images), 2, 12.0, n_jobs=1)
    assert_sound(found, 200, 2)
    assert found.correlation[:, BOX // 6 + 1 :].max() < 0.5


@pytest.mark.slow
def test_halves_agree_no_further_than_the_images_show(monkeypatch):
    # Blobs so wide that nothing is left of them beyond ring 6.
    wide = tuple(tuple((0.8 * y, 0.8 * x, 2.8) for y, x, _ in kind) for kind in BLOBS)
    monkeypatch.setattr(sys.modules[__name__], "BLOBS", wide)
    power = np.abs(np.fft.rfft2(picture(0))) ** 2
    ring = np.hypot(np.fft.fftfreq(BOX, 1 / BOX)[:, None], np.arange(BOX // 2 + 1))
    assert power[ring > 6.5].max() < 1e-5 * power.max()
    found = fit(as_particles(pictures(*planted(300), snr=0.1)), 3, 13.0, n_jobs=1)
    assert found.correlation[:, 1:4].min() > 0.8
    assert np.abs(found.correlation[:, 9:].mean(axis=1)).max() < 0.35


def test_one_class():
    found = fit(small_set(40), 1, RADIUS, n_jobs=1)
    assert_sound(found, 40, 1)
    assert (found.assignments.label == 0).all()
    np.testing.assert_allclose(found.assignments.probability, 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "n_classes", "n_kinds", "snr"),
    [
        # More classes than there are views; fewer images than make the first averages; without noise.
        (60, 6, 1, 1.0),
        (24, 8, 2, 1.0),
        (10, 3, 2, 1.0),
        (3, 3, 2, 1.0),
        (2, 1, 1, 1.0),
        (1, 1, 1, 1.0),
        (30, 4, 1, None),
    ],
)
def test_classes_that_empty_or_have_few_images(n, n_classes, n_kinds, snr):
    kind, angle, shift = planted(n, n_kinds=n_kinds)
    found = fit(as_particles(pictures(kind, angle, shift, snr=snr)), n_classes, RADIUS, n_jobs=1)
    assert_sound(found, n, n_classes)
    assert (found.assignments.label >= 0).all()


@pytest.mark.slow
def test_images_that_cannot_be_used_spoil_no_fit():
    images = small_set(60).read(0, 60)
    images[:20] = np.nan
    images[20:40] = 3
    images[40, 0, 0] = np.inf
    found = fit(as_particles(images), 2, RADIUS, n_jobs=1)
    assert_sound(found, 60, 2)
    np.testing.assert_array_equal(found.assignments.label >= 0, np.arange(60) > 40)
    assert (found.assignments.score[:41] == -np.inf).all()
    none = fit(as_particles(images[:40]), 2, RADIUS, n_jobs=1)
    assert (none.assignments.label == -1).all() and not none.averages.any()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_the_images_do_not_matter(scale):
    model = model_of_pictures()
    images = pictures(*planted(6), snr=1.0)
    _, one = expect(images, None, None, model)
    _, other = expect((scale * images - 3 * scale).astype(np.float32), None, None, model)
    np.testing.assert_array_equal(one.label, other.label)
    # Scaled images are rounded in another way, and single precision keeps that.
    np.testing.assert_allclose(one.angle, other.angle, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(one.score, other.score, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 1))
def test_new_sums_are_taken_in_by_their_share(seed, share):
    rng = np.random.default_rng(seed)

    def some(shape):
        halves, _, n_rings, n_classes = shape
        return no_sums(shape)._replace(
            products=rng.normal(size=shape) + 0j,
            weights=rng.random((halves, n_rings, n_classes)),
            counts=rng.random((halves, n_classes)),
        )

    old, new = some((1, 4, 3, 2)), some((1, 6, 5, 2))
    mixed = expectation.mixed_sums(old, new, share, 7.0)
    np.testing.assert_allclose(mixed.counts, 7 * share * new.counts + (1 - share) * old.counts)
    expected = 7 * share * new.products[:, :4, :3] + (1 - share) * old.products
    np.testing.assert_allclose(mixed.products[:, :4, :3], expected)
    # What the old ones do not have is new.
    np.testing.assert_allclose(mixed.products[:, 4:], 7 * new.products[:, 4:])
    np.testing.assert_allclose(mixed.products[:, :, 3:], 7 * new.products[:, :, 3:])
    np.testing.assert_allclose(mixed.weights[:, 3:], 7 * new.weights[:, 3:])
    np.testing.assert_allclose(
        mixed.weights[:, :3], 7 * share * new.weights[:, :3] + (1 - share) * old.weights
    )


def test_correlation_of_averages_by_frequency():
    basis = disk_basis(BOX, 12.0, 15)
    one = random_coefficients(basis, 2, decay=50.0)
    other = random_coefficients(basis, 2, seed=1, decay=50.0)
    # The second class shows nothing beyond a frequency.
    one, other = (
        tuple(
            np.where((shell >= 9) & (np.arange(2) == 1)[:, None], 0, values)
            for values, shell in zip(coefficients, basis.shell, strict=True)
        )
        for coefficients in (one, other)
    )
    itself = fit_classes.shell_correlation(one, one, basis)
    np.testing.assert_allclose(itself[0], 1)
    np.testing.assert_allclose(itself[1, :9], 1)
    assert (itself[1, 11:] == 0).all()
    mixed = tuple((a + b) / 2 for a, b in zip(one, other, strict=True))
    assert np.abs(fit_classes.shell_correlation(one, other, basis)[0, 6:]).max() < 0.4
    np.testing.assert_allclose(
        fit_classes.shell_correlation(one, mixed, basis)[0, 6:], np.sqrt(0.5), atol=0.15
    )
    doubled = tuple(-2 * values for values in one)
    np.testing.assert_allclose(fit_classes.shell_correlation(one, doubled, basis)[0], -1)
