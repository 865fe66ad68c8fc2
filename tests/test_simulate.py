"""Simulated stacks: does every image show what its truth says?"""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from scipy.ndimage import center_of_mass
from scipy.spatial.transform import Rotation

import fastsort
from fastsort._checks import InputError
from fastsort.simulate import junk as contaminants
from fastsort.simulate import (
    particle_blocks,
    plan_particles,
    project_volume,
    simulate_particles,
    write_project,
)
from fastsort.simulate.noise import noise_amplitude, noise_canvas, noise_image
from fastsort.simulate.particles import render_particles
from fastsort.simulate.phantoms import PHANTOMS, load_volume, phantom_blobs, phantom_volume, volume_extent

VOLUMES = Path(__file__).parents[2] / "shared/data/volumes"


def rotations(n, seed=0):
    return Rotation.random(n, rng=np.random.default_rng(seed)).as_matrix()


def analytic_projections(blobs, turns, box, diameter):
    """A Gaussian's projection is a Gaussian about the turned centre."""
    grid = np.arange(box) - box // 2
    images = np.zeros((len(turns), box, box))
    for i, turn in enumerate(turns):
        for centre, width, weight in zip(blobs.centre, blobs.width, blobs.weight, strict=True):
            x, y, _ = turn @ centre * diameter
            s = width * diameter
            blob = np.exp(-((grid[:, None] - y) ** 2 + (grid - x) ** 2) / (2 * s * s))
            images[i] += weight * s * math.sqrt(2 * math.pi) * blob
    return images


def radial_power(images):
    """Mean power at each whole frequency of the images' transforms."""
    box = images.shape[-1]
    power = (np.abs(np.fft.fft2(images)) ** 2).mean(axis=0) / box**2
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(box), np.fft.fftfreq(box)))
    ring = np.rint(radius * box).astype(int).ravel()
    count = np.bincount(ring)
    mean = np.bincount(ring, power.ravel()) / count
    return (np.bincount(ring, radius.ravel()) / count)[: box // 2], mean[: box // 2]


def disk(box, diameter):
    line = np.arange(box) - box // 2
    return np.hypot(line[:, None], line) <= diameter / 2


@pytest.mark.parametrize(("size", "box"), [(64, 64), (65, 65), (64, 81), (65, 40)])
@pytest.mark.parametrize("shape", PHANTOMS)
def test_projections_equal_the_analytic_ones(shape, size, box):
    blobs = phantom_blobs(shape)
    turns = rotations(4)
    images = project_volume(phantom_volume(blobs, size, 0.75 * size), turns, box)
    expected = analytic_projections(blobs, turns, box, 0.75 * size)
    assert np.linalg.norm(images - expected) < 2e-3 * np.linalg.norm(expected)
    assert np.abs(images - expected).max() < 5e-3 * expected.max()


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.7])
def test_scale_is_voxels_a_pixel(scale):
    blobs = phantom_blobs("globular")
    turns = rotations(3)
    images = project_volume(phantom_volume(blobs, 80, 60), turns, 90, scale=scale)
    expected = analytic_projections(blobs, turns, 90, 60 / scale) * scale
    assert np.linalg.norm(images - expected) < 2e-2 * np.linalg.norm(expected)


def test_unturned_projection_is_the_sum_along_z():
    volume = phantom_volume(phantom_blobs("two-lobed"), 48, 34)
    image = project_volume(volume, np.eye(3))[0]
    np.testing.assert_allclose(image, volume.sum(axis=0), atol=4e-3 * image.max())


def test_quarter_turns_move_x_to_y_and_show_the_sides():
    volume = phantom_volume(phantom_blobs("two-lobed"), 49, 34)
    straight = volume.sum(axis=0)
    quarter = project_volume(volume, Rotation.from_euler("z", 90, degrees=True).as_matrix())[0]
    # What lay at +x lies at +y: images[y, x] = straight[-x, y].
    np.testing.assert_allclose(quarter, straight.T[:, ::-1], atol=4e-3 * straight.max())
    from_y = project_volume(volume, Rotation.from_euler("x", 90, degrees=True).as_matrix())[0]
    # What lay at +z lies at -y.
    np.testing.assert_allclose(from_y, volume.sum(axis=1)[::-1], atol=4e-3 * straight.max())


@pytest.mark.parametrize(
    ("volume", "turns", "words"),
    [
        (np.zeros((8, 8, 9)), np.eye(3), "cube"),
        (np.zeros((8, 8)), np.eye(3), "cube"),
        (np.full((8, 8, 8), np.nan), np.eye(3), "finite"),
        (np.zeros((8, 8, 8), complex), np.eye(3), "real"),
        (np.zeros((8, 8, 8)), np.eye(2), "shape"),
        (np.zeros((8, 8, 8)), 2 * np.eye(3), "orthogonal"),
    ],
)
def test_impossible_projections_are_told(volume, turns, words):
    with pytest.raises(InputError, match=words):
        project_volume(volume, turns)


def test_extent_of_a_ball():
    z, y, x = np.mgrid[:40, :40, :40]
    ball = (np.hypot(np.hypot(z - 17.5, y - 20), x - 23) <= 12).astype(np.float32)
    extent = volume_extent(ball + 0.001)
    np.testing.assert_allclose(extent.centre, (17.5, 20, 23), atol=0.05)
    assert extent.diameter == pytest.approx(24, rel=0.03)
    with pytest.raises(InputError, match="no positive density"):
        volume_extent(-ball)


def test_phantoms_have_their_shapes():
    volumes = {shape: phantom_volume(phantom_blobs(shape), 48, 36) for shape in PHANTOMS}
    middle = {shape: v[20:28, 20:28, 20:28].mean() / v.max() for shape, v in volumes.items()}
    assert middle["shell"] < 0.02 < 0.15 < middle["globular"]
    spread = {}
    for shape, volume in volumes.items():
        points = np.argwhere(volume > 0.1 * volume.max())
        eigenvalues = np.linalg.eigvalsh(np.cov(points.T))
        spread[shape] = math.sqrt(eigenvalues[2] / eigenvalues[0])
    assert spread["globular"] < 1.3 < 1.6 < spread["elongated"]
    assert spread["shell"] < 1.3 < 1.5 < spread["two-lobed"]


@pytest.mark.parametrize("shape", PHANTOMS)
def test_phantoms_look_different_from_every_side(shape):
    views = project_volume(phantom_volume(phantom_blobs(shape), 32, 24), rotations(12)).reshape(12, -1)
    likeness = np.corrcoef(views)
    assert likeness[~np.eye(12, dtype=bool)].max() < 0.99
    assert not np.array_equal(phantom_blobs(shape, 1).centre, phantom_blobs(shape).centre)


@pytest.mark.slow
def test_snr_by_mean_is_what_was_asked():
    clean, truth = simulate_particles(300, 100, snr=math.inf, junk="noise", snr_definition="mean", centring=0)
    noisy, _ = simulate_particles(
        300, 100, snr=0.25, junk="noise", snr_definition="mean", centring=0, normalize=False
    )
    edge = round(64 * 10 / 85)
    signal = clean[truth.label][:, edge:-edge, edge:-edge].mean()
    assert signal / noisy[~truth.label].std() == pytest.approx(0.25, rel=0.03)
    assert (noisy - clean).std() == pytest.approx(noisy[~truth.label].std(), rel=0.01)


@pytest.mark.parametrize("definition", ["power", "image_power"])
def test_snr_by_power_is_what_was_asked(definition):
    settings = {"junk": "noise", "ctf": True, "snr_definition": definition, "box": 48, "normalize": False}
    clean, truth = simulate_particles(400, 100, snr=math.inf, **settings)
    noisy, _ = simulate_particles(400, 100, snr=0.05, **settings)
    particles = clean[truth.label]
    if definition == "power":
        particles = particles[:, disk(48, truth.diameter / truth.pixel_size)]
    signal = particles.reshape(len(particles), -1).var(axis=1).mean()
    assert signal / noisy[~truth.label].var() == pytest.approx(0.05, rel=0.03)


def test_snr_of_the_paper_is_that_of_85_pixels():
    # White noise that fills 85 px keeps the part (33 / 85)^2 of its power in 33 px.
    made = {"box": 33, "noise": "white", "snr": 0.02}
    small, truth = simulate_particles(0, 300, **made)
    same, _ = simulate_particles(0, 300, **made, source_box=33)
    noise = truth.kind == "noise"
    assert same[noise].std() / small[noise].std() == pytest.approx(85 / 33, rel=0.01)


@pytest.mark.parametrize(
    ("spectrum", "formula"),
    [
        ("white", lambda f: np.ones_like(f)),
        ("radial", lambda f: 1 + f**2),
        ("decaying", lambda f: 1 / (1 + (6 * f) ** 2)),
    ],
)
def test_noise_has_its_spectrum(spectrum, formula):
    rng = np.random.default_rng(0)
    images = np.stack([noise_image(rng, noise_amplitude(spectrum, noise_canvas(64)), 64) for _ in range(400)])
    assert images.std() == pytest.approx(1, rel=0.01)
    frequency, power = radial_power(images)
    ratio = power[2:] / formula(frequency[2:])
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=0.08)


def test_noise_of_opposite_edges_is_independent():
    rng = np.random.default_rng(0)
    amplitude = noise_amplitude("decaying", noise_canvas(32))
    images = np.stack([noise_image(rng, amplitude, 32) for _ in range(500)])
    beside = np.mean(images[:, 10] * images[:, 11])
    across = np.mean(images[:, 0] * images[:, -1])
    assert abs(across) < 0.05 < 0.3 < beside


def test_normalized_background_has_mean_0_and_deviation_1():
    images, truth = simulate_particles(20, 35, snr=0.05, junk="all", ctf=True, box=48)
    outside = images[:, ~disk(48, truth.diameter / truth.pixel_size)]
    np.testing.assert_allclose(outside.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(outside.std(axis=1), 1, atol=1e-5)


def test_dark_particles_are_the_negative():
    bright, _ = simulate_particles(5, 5, box=32, seed=3)
    dark, _ = simulate_particles(5, 5, box=32, seed=3, contrast="dark")
    np.testing.assert_array_equal(dark, -bright)


def test_centres_of_mass_lie_where_truth_says():
    images, truth = simulate_particles(60, 60, snr=math.inf, junk="off-centre", fill=0.3, centring=0.03)
    for image, shift in zip(images, truth.shift, strict=True):
        np.testing.assert_allclose(np.array(center_of_mass(image)) - 32, shift, atol=0.15)
    assert truth.shift[truth.label].std() == pytest.approx(0.03 * 64, rel=0.2)
    length = np.hypot(*truth.shift[~truth.label].T) / 64
    assert 0.20 <= length.min() < 0.22
    assert 0.31 < length.max() <= 0.33


def test_images_are_projections_at_the_rotations_told():
    volume = phantom_volume(phantom_blobs("two-lobed"), 48, 30)
    images, truth = simulate_particles(8, 0, snr=math.inf, volume=volume, box=48, fill=0.6)
    extent = volume_extent(volume)
    expected = project_volume(volume, truth.rotation, 48, scale=extent.diameter / (0.6 * 48))
    for image, other in zip(images, expected, strict=True):
        moved = np.array(center_of_mass(other)) - 24
        if np.abs(moved).max() < 0.5:
            assert np.corrcoef(image.ravel(), other.ravel())[0, 1] > 0.9
    likeness = np.corrcoef(images.reshape(8, -1), expected.reshape(8, -1))[:8, 8:]
    np.testing.assert_array_equal(likeness.argmax(axis=1), np.arange(8))


def test_turning_back_by_the_angle_leaves_no_turn_in_the_plane():
    _, truth = simulate_particles(20, 20, snr=math.inf, box=32)
    seen = truth.kind != "noise"
    back = (
        Rotation.from_euler("z", -truth.angle[seen][:, None], degrees=True).as_matrix() @ truth.rotation[seen]
    )
    np.testing.assert_allclose(back[:, 1, 2], 0, atol=1e-12)
    assert (back[:, 0, 2] >= 0).all()
    assert np.isnan(truth.angle[~seen]).all()
    assert np.isnan(truth.shift[~seen]).all()


def test_rotations_are_uniform():
    _, truth = simulate_particles(4000, 0, snr=math.inf, box=16)
    # A uniform rotation's matrix has entries of mean 0 and variance 1/3.
    np.testing.assert_allclose(truth.rotation.mean(axis=0), 0, atol=0.04)
    np.testing.assert_allclose((truth.rotation**2).mean(axis=0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(np.linalg.det(truth.rotation), 1)


def test_kinds_are_equal_parts_in_random_order():
    _, truth = simulate_particles(90, 80, junk="all", box=16, ctf=True)
    kinds, counts = np.unique(truth.kind, return_counts=True)
    assert dict(zip(kinds.tolist(), counts.tolist(), strict=True)) == {
        "good": 90,
        **dict.fromkeys(
            ("noise", "picked", "partial", "multiple", "off-centre", "ice", "carbon", "texture"), 10
        ),
    }
    np.testing.assert_array_equal(truth.label, truth.kind == "good")
    assert 30 < np.diff(truth.label.astype(int)).astype(bool).sum() < 120


def test_same_seed_same_bits_in_blocks_of_any_size():
    settings = {"snr": 0.05, "junk": "all", "ctf": True, "box": 32, "seed": 7}
    images, truth = simulate_particles(20, 21, **settings)
    again, same = simulate_particles(20, 21, **settings)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(truth.kind, same.kind)
    plan = plan_particles(20, 21, **settings)
    for block in (1, 7):
        np.testing.assert_array_equal(np.concatenate(list(particle_blocks(plan, block))), images)
    np.testing.assert_array_equal(render_particles(plan, 30, 33), images[30:33])
    other, elsewhere = simulate_particles(20, 21, **{**settings, "seed": 8})
    assert not np.array_equal(truth.kind, elsewhere.kind)
    assert abs(np.corrcoef(images.ravel(), other.ravel())[0, 1]) < 0.05


def test_micrographs_share_one_ctf_in_the_range_told():
    images, truth = simulate_particles(60, 60, snr=0.05, junk="all", ctf=True, box=16, n_micrographs=10)
    assert len(images) == len(truth.ctf.defocus_u) == 120
    np.testing.assert_array_equal(np.bincount(truth.micrograph), 12)
    mean = (truth.ctf.defocus_u + truth.ctf.defocus_v) / 2
    assert len(np.unique(mean)) == 10
    assert len(np.unique(np.stack([truth.micrograph, mean]), axis=1).T) == 10
    assert 1e4 <= mean.min() < mean.max() <= 2.5e4
    np.testing.assert_allclose(truth.ctf.defocus_u - truth.ctf.defocus_v, 300)


def test_particles_are_seen_through_the_ctf():
    settings = {"snr": math.inf, "junk": "all", "box": 48, "pixel_size": 5.0, "fill": 0.4, "centring": 0}
    plain, _ = simulate_particles(6, 0, **settings)
    seen, truth = simulate_particles(6, 0, ctf=True, **settings)
    box, frequency = 96, np.fft.fftfreq(96) / 5.0
    wavelength = 0.019687
    for i in range(6):
        square = frequency[:, None] ** 2 + frequency**2
        turn = 2 * (np.arctan2(frequency[:, None], frequency) - np.deg2rad(truth.ctf.defocus_angle[i]))
        u, v = truth.ctf.defocus_u[i], truth.ctf.defocus_v[i]
        chi = np.pi * wavelength * ((u + v) / 2 + (u - v) / 2 * np.cos(turn)) * square
        chi += math.asin(0.1) - np.pi / 2 * 2.7e7 * wavelength**3 * square**2
        wide = np.pad(plain[i], (box - 48) // 2)
        expected = np.fft.ifft2(np.fft.fft2(wide) * np.sin(chi)).real[24:72, 24:72]
        assert np.corrcoef(seen[i].ravel(), expected.ravel())[0, 1] > 0.999
        # A white particle stays white.
        assert seen[i, 20:28, 20:28].mean() > 0


def clean(kind, n=40, **settings):
    images, _ = simulate_particles(0, n, snr=math.inf, junk=(kind,), box=64, **settings)
    return images


def test_noise_shows_nothing():
    assert not clean("noise").any()


def test_partial_particles_are_cut_by_the_box():
    images, truth = simulate_particles(40, 120, snr=math.inf, junk=("partial",), centring=0)
    mass = images.sum(axis=(1, 2)) / images[truth.label].sum(axis=(1, 2)).mean()
    length = np.hypot(*truth.shift[~truth.label].T) / 64
    assert 0.40 <= length.min() < length.max() <= 0.60
    assert 0.9 < mass[truth.label].min()
    assert mass[~truth.label].max() < 0.95
    assert np.median(mass[~truth.label]) < 0.6
    # Nothing comes back on the other side.
    for image, (y, x) in zip(images[~truth.label], truth.shift[~truth.label], strict=True):
        rows, columns = np.arange(64)[:, None] - 32, np.arange(64) - 32
        behind = rows * y + columns * x < -0.1 * 64 * math.hypot(y, x)
        assert abs(image[behind].sum()) < 0.01 * images[truth.label].sum(axis=(1, 2)).mean()


def test_partial_particles_of_the_paper_are_shifted_along_both_axes():
    images, truth = simulate_particles(100, 300, snr=math.inf, box=33)
    shift = np.abs(truth.shift[truth.kind == "partial"]) / 33
    assert 0.25 <= shift.min() < 0.27
    assert 0.64 < shift.max() <= 0.66
    np.testing.assert_array_equal(truth.shift[truth.label], 0)
    assert (np.unique(truth.kind, return_counts=True)[1] == 100).all()
    # Of two particles, one is in the middle and half as strong as those that are alone.
    multiple = truth.kind == "multiple"
    np.testing.assert_array_equal(truth.shift[multiple], 0)
    mass = images.sum(axis=(1, 2)) / images[truth.label].sum(axis=(1, 2)).mean()
    assert 0.5 < mass[multiple].mean() < mass[truth.label].mean()
    assert mass[multiple].mean() > 1.5 * mass[truth.kind == "partial"].mean()


def test_particles_of_the_paper_differ_in_strength():
    images, _ = simulate_particles(300, 0, snr=math.inf, box=33, seed=2)
    mass = images.sum(axis=(1, 2)) / images.sum(axis=(1, 2)).mean()
    # From 2/3 to 3/2, of which the mean is 13/12.
    assert 0.6 < mass.min() < 0.66 and 1.34 < mass.max() < 1.41
    same, _ = simulate_particles(300, 0, snr=math.inf, box=33, junk="all", seed=2)
    assert np.ptp(same.sum(axis=(1, 2))) < 0.1 * same.sum(axis=(1, 2)).mean()


def test_multiple_particles_lie_either_side_of_the_middle():
    images, truth = simulate_particles(30, 60, snr=math.inf, junk="multiple", fill=0.3, centring=0)
    mass = images.sum(axis=(1, 2)) / images[truth.label].sum(axis=(1, 2)).mean()
    np.testing.assert_allclose(mass[~truth.label], 2, rtol=0.05)
    rows, columns = np.arange(64)[:, None] - 32, np.arange(64) - 32
    for image, (y, x) in zip(images[~truth.label], truth.shift[~truth.label], strict=True):
        near = rows * y + columns * x > 0
        first = np.array(center_of_mass(image * near)) - 32
        second = np.array(center_of_mass(image * ~near)) - 32
        np.testing.assert_allclose(first, (y, x), atol=1)
        np.testing.assert_allclose(second, (-y, -x), atol=1)


def test_ice_is_one_blob_with_a_sharp_rim():
    heights = []
    for image in clean("ice", 60):
        height = image.flat[np.abs(image).argmax()]
        heights.append(height)
        covered = np.isclose(image, height)
        rim = ~covered & (image != 0)
        radius = math.sqrt(covered.sum() / math.pi)
        assert 0.07 * 64 < radius < 0.42 * 64
        assert rim.sum() < 4 * math.pi * (radius + 2)
    heights = np.array(heights)
    assert 2 <= np.abs(heights).min() < np.abs(heights).max() <= 8
    assert 10 < (heights > 0).sum() < 50


def test_carbon_is_one_side_of_a_straight_edge():
    for image in clean("carbon"):
        film = image != 0
        assert 0.05 < film.mean() < 0.95
        rows, columns = np.mgrid[:64, :64]
        features = np.stack([rows.ravel(), columns.ravel(), np.ones(64 * 64)], axis=1)
        direction = np.linalg.lstsq(features, 2.0 * film.ravel() - 1, rcond=None)[0][:2]
        along = rows * direction[0] + columns * direction[1]
        # Sorted along the normal of the edge, film follows hole with hardly a pixel out of order.
        ordered = film.ravel()[np.argsort(along.ravel())]
        assert np.abs(ordered.astype(int) - (np.arange(ordered.size) >= (~film).sum())).mean() < 0.04
        inner = image[film]
        assert 0.5 < inner.mean() < 6
        assert inner.std() > 0.2 * inner.mean()


def test_texture_has_its_deviation_and_is_smooth():
    deviation = [image.std() for image in clean("texture")]
    assert 0.7 <= min(deviation) < max(deviation) <= 1.5001
    frequency, power = radial_power(clean("texture"))
    assert power[frequency < 0.05].mean() > 100 * power[frequency > 0.3].mean()


def test_hot_pixels_stand_out_of_the_noise():
    images, _ = simulate_particles(0, 40, snr=0.05, junk="hot_pixels", normalize=False)
    noise, _ = simulate_particles(0, 40, snr=0.05, junk="noise", normalize=False)
    counts = (images > 8 * noise.std()).sum(axis=(1, 2))
    assert 3 <= counts.min() < counts.max() <= 12
    assert np.median(images, axis=(1, 2)).max() < noise.std()


def test_photographs_have_edges_and_the_spectrum_of_natural_images():
    scene = contaminants.photograph(np.random.default_rng(0))
    assert scene.mean() == pytest.approx(0, abs=1e-4)
    assert scene.std() == pytest.approx(1, rel=1e-4)
    window = np.outer(np.hanning(512), np.hanning(512))
    frequency, power = radial_power((scene * window)[None])
    middle = (frequency > 0.02) & (frequency < 0.2)
    slope = np.polyfit(np.log(frequency[middle]), np.log(power[middle]), 1)[0]
    assert -3.3 < slope < -1.7
    steps = np.abs(np.diff(scene, axis=0))
    assert (steps == 0).mean() > 0.7
    crops = clean("photograph")
    assert len(np.unique(crops[:, 0, 0])) > 10


def test_ppca_recipe_is_half_noise_half_photograph():
    _, truth = simulate_particles(50, 10, junk="ppca", snr=0.1, box=71)
    assert (truth.kind == "noise").sum() == (truth.kind == "photograph").sum() == 5


def test_sizes_agree():
    _, truth = simulate_particles(1, 1, box=48, pixel_size=4.0, fill=0.5)
    assert truth.diameter == pytest.approx(0.5 * 48 * 4.0)
    _, truth = simulate_particles(1, 1, box=48, pixel_size=8.0)
    assert (truth.pixel_size, truth.diameter) == pytest.approx((8.0, 250.0))
    _, truth = simulate_particles(1, 1, box=48, junk="all")
    assert truth.diameter / truth.pixel_size == pytest.approx(48 / 1.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_good": -1}, "n_good must be a whole number"),
        ({"n_good": 0, "n_junk": 0}, "n_good \\+ n_junk"),
        ({"snr": 0}, "snr must be positive"),
        ({"snr": math.nan}, "snr must be positive"),
        ({"box": 8}, "16 to 1024 px"),
        ({"box": 32.5}, "box must be a whole number"),
        ({"volume": "cube"}, "does not exist"),
        ({"volume": np.zeros((4, 4))}, "cube"),
        ({"volume": np.zeros((16, 16, 16))}, "no positive density"),
        ({"pixel_size": -2}, "pixel_size must be positive"),
        ({"pixel_size": 0.5}, "times the box: give a larger box or a larger pixel size"),
        ({"fill": 1.2}, "times the box: give a smaller fill"),
        ({"junk": "dirt"}, "junk must be one of"),
        ({"junk": ("noise", "dirt")}, "junk must be one of"),
        ({"junk": ()}, "names no kinds"),
        ({"noise": "pink"}, "noise must be one of"),
        ({"snr_definition": "dB"}, "snr_definition must be one of"),
        ({"contrast": "grey"}, "contrast must be one of"),
        ({"n_micrographs": 0}, "n_micrographs"),
        ({"source_box": 20}, "source_box"),
        ({"centring": -0.1}, "centring"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_settings_are_told(settings, words):
    with pytest.raises(InputError, match=words):
        simulate_particles(**{"n_good": 2, "n_junk": 2, "box": 32, **settings})


def test_volume_files(tmp_path):
    path = tmp_path / "density.mrc"
    volume = phantom_volume(phantom_blobs("globular"), 32, 24)
    with mrcfile.new(path) as file:
        file.set_data(volume)
        file.voxel_size = 3.5
    density, voxel_size = load_volume(path)
    np.testing.assert_array_equal(density, volume)
    assert voxel_size == 3.5
    from_file, truth = simulate_particles(3, 3, box=32, volume=path)
    assert truth.diameter == pytest.approx(volume_extent(volume).diameter * 3.5)
    from_array, _ = simulate_particles(3, 3, box=32, volume=volume)
    np.testing.assert_allclose(from_file, from_array, atol=1e-4)
    (tmp_path / "text.mrc").write_text("not a density")
    with pytest.raises(InputError, match="cannot be read as MRC"):
        load_volume(tmp_path / "text.mrc")
    with pytest.raises(InputError, match="cannot be read as MRC"):
        load_volume(tmp_path)


@pytest.mark.skipif(not VOLUMES.is_dir(), reason=f"no densities in {VOLUMES}")
def test_radial_recipe_on_the_ribosome():
    images, truth = simulate_particles(
        200, 150, snr=1 / 50, box=33, volume=VOLUMES / "ribosome70s_65px.mrc", noise="white"
    )
    clean, _ = simulate_particles(200, 0, snr=math.inf, box=33, volume=VOLUMES / "ribosome70s_65px.mrc")
    assert truth.pixel_size * 33 / 85 == pytest.approx(5.2, rel=0.02)
    ratio = clean[:, 4:-4, 4:-4].mean() / images[truth.kind == "noise"].std()
    assert ratio * 33 / 85 == pytest.approx(1 / 50, rel=0.03)


@pytest.fixture(scope="module")
def stack():
    return simulate_particles(30, 28, snr=0.05, junk="all", ctf=True, box=32, n_micrographs=4)


def test_project_comes_back(stack, tmp_path):
    images, truth = stack
    star = write_project(tmp_path / "sim", images, truth)
    assert star == tmp_path / "sim/particles.star"
    tables = starfile.read(star)
    assert float(tables["optics"]["rlnImagePixelSize"].item()) == pytest.approx(truth.pixel_size)
    particles = tables["particles"]
    assert len(particles) == 58
    np.testing.assert_allclose(particles["rlnDefocusU"], truth.ctf.defocus_u, atol=1e-3)
    assert particles["rlnMicrographName"].nunique() == 4
    stacks = {}
    for i, name in enumerate(particles["rlnImageName"]):
        number, path = name.split("@")
        if path not in stacks:
            with mrcfile.open(star.parent / path) as file:
                assert file.is_image_stack()
                assert float(file.voxel_size.x) == pytest.approx(truth.pixel_size)
                stacks[path] = file.data.copy()
        np.testing.assert_array_equal(stacks[path][int(number) - 1], images[i])
    assert sum(map(len, stacks.values())) == 58
    lines = (star.parent / "truth.csv").read_text().splitlines()
    assert lines[0] == "name,label,kind,shift_y,shift_x,angle"
    assert [line.split(",")[2] for line in lines[1:]] == truth.kind.tolist()
    assert [line.split(",")[0] for line in lines[1:]] == particles["rlnImageName"].tolist()
    assert not [path for path in tmp_path.iterdir() if path.name != "sim"]


def test_project_from_blocks_is_the_same(stack, tmp_path):
    images, truth = stack
    plan = plan_particles(30, 28, snr=0.05, junk="all", ctf=True, box=32, n_micrographs=4)
    write_project(tmp_path / "whole", images, truth)
    write_project(tmp_path / "blocks", particle_blocks(plan, 11), plan.truth)
    for path in sorted((tmp_path / "whole/Extract").iterdir()):
        with mrcfile.open(path) as one, mrcfile.open(tmp_path / "blocks/Extract" / path.name) as other:
            np.testing.assert_array_equal(one.data, other.data)
    # After its line of date and program, the table is the same too.
    whole, blocks = (
        (tmp_path / n / "particles.star").read_text().split("\n", 1)[1] for n in ("whole", "blocks")
    )
    assert whole == blocks


def test_project_is_written_whole_or_not_at_all(stack, tmp_path):
    images, truth = stack

    def breaking():
        yield images[:40]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_project(tmp_path / "sim", breaking(), truth)
    with pytest.raises(InputError, match="fewer images"):
        write_project(tmp_path / "sim", images[:-1], truth)
    with pytest.raises(InputError, match="more images"):
        write_project(tmp_path / "sim", [images, images[:1]], truth)
    assert not list(tmp_path.iterdir())


def test_project_replaces_only_a_project(stack, tmp_path):
    images, truth = stack
    folder = tmp_path / "sim"
    write_project(folder, images, truth)
    with pytest.raises(InputError, match="not empty"):
        write_project(folder, images, truth)
    (folder / "Extract/old.mrcs").write_text("old")
    write_project(folder, images, truth, overwrite=True)
    assert len(list((folder / "Extract").iterdir())) == 4
    with pytest.raises(OSError, match="gone"):
        write_project(folder, failing(OSError("gone")), truth, overwrite=True)
    assert len(list((folder / "Extract").iterdir())) == 4
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("words")
    with pytest.raises(InputError, match="not a simulated project"):
        write_project(precious, images, truth, overwrite=True)
    assert (precious / "thesis.txt").read_text() == "words"
    assert {path.name for path in tmp_path.iterdir()} == {"sim", "precious"}


def failing(error):
    raise error
    yield


def test_project_without_ctf_has_no_defocus(tmp_path):
    images, truth = simulate_particles(4, 3, box=32, n_micrographs=2)
    particles = starfile.read(write_project(tmp_path / "sim", images, truth))["particles"]
    assert "rlnDefocusU" not in particles
    with pytest.raises(InputError, match="never fall"):
        write_project(tmp_path / "other", images, truth._replace(micrograph=truth.micrograph[::-1]))


@pytest.mark.skipif(shutil.which("relion_stack_create") is None, reason="RELION is not installed")
def test_relion_reads_the_project(stack, tmp_path):
    images, truth = stack
    star = write_project(tmp_path / "sim", images, truth)
    subprocess.run(
        ["relion_stack_create", "--i", star.name, "--o", "all"],
        cwd=star.parent,
        check=True,
        capture_output=True,
        timeout=600,
    )
    with mrcfile.open(star.parent / "all.mrcs", permissive=True) as file:
        np.testing.assert_allclose(file.data, images, atol=1e-5)


@pytest.mark.slow
def test_projections_have_the_same_bits_from_the_compiler_and_from_its_cache(tmp_path):
    code = (
        "import hashlib, numpy as np, fastsort as fs;"
        "rng = np.random.default_rng(0); volume = rng.random((24, 24, 24), np.float32);"
        "turns = np.stack([np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(8)]);"
        "turns *= np.linalg.det(turns)[:, None, None];"
        "print(hashlib.sha256(fs.project_volume(volume, turns, 24).tobytes()).hexdigest())"
    )
    root = str(Path(fastsort.__file__).parents[1])
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": root, "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert found[0] == found[1] != ""
