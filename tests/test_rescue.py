"""Rare views are set aside and junk is not; classes and the map of a sample of the images."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import naive
import numpy as np
import pytest
import scipy.ndimage
from scipy.spatial.transform import Rotation

import fastsort as fs
from fastsort.decide import rescue as module
from fastsort.decide.recentre import centred_scores
from fastsort.decide.rescue import find_views
from fastsort.decide.verdict import cut_again
from fastsort.particles.open import open_particles
from fastsort.simulate.phantoms import phantom_blobs, phantom_volume
from fastsort.sort import sort_particles

pytestmark = pytest.mark.slow

RING = Path(__file__).parents[2] / "shared/data/volumes/sheath_ring_64px_4.4A.mrc"
BOX = 64


def turned(rng, n, tilt):
    """Turn by any angle in the plane what is seen from within a few degrees of one direction."""
    spin = Rotation.from_euler("z", rng.uniform(0, 360, (n, 1)), degrees=True)
    wobble = Rotation.from_rotvec(np.radians(rng.normal(0, 4, (n, 3))))
    return (spin * Rotation.from_euler("y", tilt, degrees=True) * wobble).as_matrix()


def views_of(volume, counts, snr=0.1, seed=0, box=BOX, scale=1.0):
    """Images of a volume from a few directions in white noise, and the tilt of each.

    The ratio of signal to noise is that of the variance of the first view within a third of the box.
    """
    rng = np.random.default_rng(seed)
    tilts = np.repeat(list(counts), list(counts.values()))
    rotations = np.concatenate([turned(rng, n, tilt) for tilt, n in counts.items()])
    clean = fs.project_volume(volume, rotations, box, scale=scale)
    offset = np.arange(box) - box // 2
    disk = np.hypot(offset[:, None], offset) <= box / 3
    shift = rng.normal(0, 0.01 * box, (len(clean), 2))
    images = np.array([scipy.ndimage.shift(image, s, order=1) for image, s in zip(clean, shift, strict=True)])
    first = clean[tilts == next(iter(counts))]
    images += rng.normal(0, np.sqrt(first[:, disk].var() / snr), images.shape)
    order = rng.permutation(len(images))
    return images[order].astype(np.float32), tilts[order]


@pytest.fixture(scope="module")
def ring():
    if not RING.is_file():
        pytest.skip(f"{RING.name} is not here")
    with mrcfile.open(RING, permissive=True) as file:
        volume = np.array(file.data, dtype=np.float32)
    return views_of(volume, {0: 1176, 90: 24})


@pytest.fixture(scope="module")
def sorted_ring(ring):
    return sort_particles(ring[0], n_jobs=2)


def assert_sound(views, rare, score, keep):
    """Assert what holds of all views."""
    n, count = len(keep), len(views.size)
    assert views.coordinates.shape == (n, 2) and views.label.shape == (n,)
    assert all(len(column) == count for column in (views.averages, views.resolution, views.rare))
    sampled = views.label >= 0
    np.testing.assert_array_equal(np.isfinite(views.coordinates).all(axis=1), sampled)
    assert not sampled[~np.isfinite(score)].any()
    np.testing.assert_array_equal(np.bincount(views.label[sampled], minlength=count), views.size)
    rejected = np.isfinite(score) & ~keep
    if keep.sum() >= 50:
        expected = min(keep.sum(), module.N_KEPT), min(rejected.sum(), module.N_REJECTED)
        assert ((sampled & keep).sum(), (sampled & rejected).sum()) == expected
    assert (views.size > 0).all() and np.isfinite(views.averages).all()
    # Rare ones last, and of either sort the largest first; no class holds both kept and rejected images.
    assert (np.diff(views.rare.astype(int)) >= 0).all()
    assert all((np.diff(views.size[views.rare == some]) <= 0).all() for some in (False, True))
    for label in range(count):
        assert len(set(keep[views.label == label])) == 1
    assert not rare[keep | ~np.isfinite(score)].any()
    # Members of other classes may look like a rare view, and its own may not.
    assert rare.any() or not views.rare.any()
    assert views.rare.any() or not rare.any()
    assert rare.sum() <= module.RARE * keep.sum()


def assert_identical(one, other):
    for (a, b), name in zip(zip(one[0], other[0], strict=True), one[0]._fields, strict=True):
        np.testing.assert_array_equal(a, b, name)
    np.testing.assert_array_equal(one[1], other[1])


# In the sorting as a whole.


def test_rare_view_of_the_ring_is_rescued(ring, sorted_ring):
    side, result = ring[1] == 90, sorted_ring
    assert result.keep[side].mean() < 0.5
    assert (result.keep | result.rescued)[side].mean() >= 0.9
    assert (result.keep | result.rescued)[~side].mean() >= 0.97
    # The others are particles, too: of 1176 a few look more like the side than like junk.
    assert result.rescued[~side].sum() <= 15
    assert result.rescued[side].sum() >= 0.6 * result.rescued.sum()
    assert not (result.keep & result.rescued).any()
    np.testing.assert_array_equal(result.rescued, result.reason == "rare_view")
    np.testing.assert_array_equal(result.rescued, result.measurements["rare_view"])
    assert "rare_view" not in result.suspicion
    assert_sound(result.views, result.rescued, result.score, result.score <= result.threshold)
    assert result.views.rare.sum() == 1


def test_what_another_cut_keeps_needs_no_rescue(ring, sorted_ring):
    strict = cut_again(sorted_ring, fraction=0.5)
    np.testing.assert_array_equal(strict.rescued, sorted_ring.rescued)
    assert not (strict.keep & strict.rescued).any()
    lax = cut_again(sorted_ring, fraction=1.0)
    assert lax.keep.all() and not lax.rescued.any()


def test_no_junk_of_any_kind_is_rescued():
    images, truth = fs.simulate_particles(
        300, 300, snr=0.05, box=48, junk=naive.SEVEN, centring=0.015, seed=7
    )
    result = sort_particles(images, n_jobs=2)
    assert result.keep[truth.label].mean() >= 0.88
    assert (~result.keep)[~truth.label].mean() > 0.8
    assert not result.rescued.any() and not result.views.rare.any()
    assert_sound(result.views, result.rescued, result.score, result.score <= result.threshold)


# The views alone.


def rod(counts, n_noise, snr=0.3, seed=0):
    """A rod from its side, now and then from its end, and noise: images and the tilt of each, or -1."""
    volume = phantom_volume(phantom_blobs("elongated"), 64, 50)
    images, tilt = views_of(volume, counts, snr, seed, 40, 50 / 24)
    rng = np.random.default_rng(seed + 1)
    noise = rng.normal(0, images[:, 0].std(), (n_noise, 40, 40)).astype(np.float32)
    order = rng.permutation(len(tilt) + n_noise)
    return np.concatenate([images, noise])[order], np.append(tilt, [-1] * n_noise)[order]


@pytest.fixture(scope="module")
def rods():
    images, tilt = rod({0: 500, 90: 30}, 100)
    score = np.random.default_rng(0).normal(0, 1, len(tilt)) + 10 * (tilt != 0)
    score[[5, 77, 300]] = np.inf
    images[[5, 77, 300]] = 0
    return open_particles(images), tilt, score


def found_in(rods, limit=5.0, radius=12.0, **more):
    particles, _, score = rods
    keep = score <= limit
    views, rare = find_views(particles, score, keep, radius, **more)
    assert_sound(views, rare, score, keep)
    return views, rare


@pytest.fixture(scope="module")
def views_of_rods(rods):
    return found_in(rods)


def test_end_views_are_rare_and_noise_is_not(rods, views_of_rods):
    views, rare = views_of_rods
    _, tilt, score = rods
    judged = np.isfinite(score)
    assert rare[(tilt == 90) & judged].mean() >= 0.9
    assert rare[tilt == -1].mean() <= 0.05
    assert views.rare.any() and np.isfinite(views.resolution[views.rare]).all()
    # The map shows them apart.
    common, end = (views.coordinates[(tilt == kind) & (views.label >= 0)] for kind in (0, 90))
    assert np.linalg.norm(np.median(common, axis=0) - np.median(end, axis=0)) > common.std()


def test_workers_and_a_second_run_do_not_change_bits(rods, views_of_rods):
    assert_identical(views_of_rods, found_in(rods, n_jobs=1))
    assert_identical(views_of_rods, found_in(rods, n_jobs=2))


def test_rare_ones_beyond_the_sample_are_found(rods, monkeypatch):
    monkeypatch.setattr(module, "N_KEPT", 300)
    monkeypatch.setattr(module, "N_REJECTED", 90)
    views, rare = found_in(rods)
    _, tilt, score = rods
    beyond = (views.label < 0) & np.isfinite(score)
    assert rare[beyond & (tilt == 90)].mean() >= 0.75
    assert rare[tilt == -1].mean() <= 0.1


def test_what_is_frequent_is_not_rare():
    images, tilt = rod({0: 300, 90: 90}, 0, seed=3)
    score = np.where(tilt == 90, 10.0, 0.0) + np.linspace(0, 1, 390)
    views, rare = found_in((open_particles(images), tilt, score))
    assert not rare.any() and not views.rare.any()
    assert len(views.size)


def test_particles_beside_the_middle_are_no_rare_view():
    images, truth = fs.simulate_particles(
        400, 100, snr=0.3, box=40, volume="elongated", junk=("off-centre",), seed=2
    )
    score = np.where(truth.label, 0.0, 10.0) + np.linspace(0, 1, len(images))
    _, rare = found_in((open_particles(images), None, score), radius=10.0)
    assert rare.sum() <= 0.01 * len(images)


def test_doubles_in_the_class_of_a_rare_view_stay_rejected():
    images, tilt = rod({0: 400, 90: 30}, 0, seed=5)
    common = images[tilt == 0]
    doubles = np.roll(common[:60], 8, 1) + np.roll(common[60:120], -8, 1)
    stack = np.concatenate([images, doubles])
    score = np.append(np.where(tilt == 90, 10.0, 0.0), np.full(60, 10.0)) + np.linspace(0, 1, len(stack))
    # Doubles outnumber the rare view in its class, which then holds too little of it to be found.
    _, rare = found_in((open_particles(stack), None, score))
    assert rare[len(tilt) :].mean() <= 0.1


def test_nothing_is_rare_beside_noise():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((400, 32, 32)).astype(np.float32)
    score = rng.normal(0, 1, 400)
    for limit in (0.0, 1.5):
        assert not found_in((open_particles(images), None, score), limit)[1].any()


def test_without_rejected_images_there_are_still_views():
    images, tilt = rod({0: 120}, 0)
    views, rare = found_in((open_particles(images), tilt, np.linspace(0, 1, 120)))
    assert not rare.any() and len(views.size)
    assert len(found_in((open_particles(images), tilt, np.linspace(0, 1, 120)), radius=None)[0].size)


def test_too_few_kept_images_make_no_map():
    images, tilt = rod({0: 60}, 0)
    for n_kept in (0, 1, 49):
        views, rare = found_in((open_particles(images), tilt, np.arange(60.0)), n_kept - 0.5)
        assert not rare.any() and len(views.size) == 0
        assert (views.label == -1).all() and np.isnan(views.coordinates).all()
    assert len(found_in((open_particles(images), tilt, np.arange(60.0)), 49.5)[0].size)


def test_one_rejected_image_is_no_view(rods):
    particles, tilt, score = rods
    places = np.where(np.isfinite(score), np.arange(len(tilt)), np.inf)
    assert not found_in((particles, tilt, places), len(tilt) - 1.5)[1].any()


# Particles beside the centre.


@pytest.fixture(scope="module")
def centred():
    images, truth = fs.simulate_particles(160, 120, snr=0.2, box=48, fill=0.4, junk=("noise",), seed=8)
    return images, truth, sort_particles(images, n_jobs=2)


def test_moved_particles_are_good_in_the_middle(centred):
    images, truth, result = centred
    good = np.flatnonzero(result.keep & truth.label)
    rng = np.random.default_rng(0)
    steps = rng.integers(-9, 10, (len(images), 2))
    moved = np.array([np.roll(image, step, (0, 1)) for image, step in zip(images, steps, strict=True)])
    working = open_particles(moved)

    def at(which, offset, **more):
        return centred_scores(working, which, offset[which].astype(float), 9.6, result.learned, **more)

    found = at(good, steps)
    assert (found <= result.threshold).mean() >= 0.95
    # But for rounding, it is the score of the image that was not moved.
    assert np.corrcoef(found, result.score[good])[0, 1] > 0.999
    # Where they are not, there is nothing.
    assert (at(good, -np.sign(steps + 0.5) * 12) <= result.threshold).mean() <= 0.1
    noise = np.flatnonzero(truth.kind == "noise")
    assert (at(noise, steps) <= result.threshold).mean() <= 0.1
    np.testing.assert_array_equal(at(good, steps, n_jobs=2), found)


def test_particles_over_the_edge_are_not_asked_about(centred):
    images, truth, result = centred
    good = np.flatnonzero(result.keep & truth.label)[:40]
    working = open_particles(images)
    offset = np.zeros((40, 2))
    offset[:20, 0], offset[20:30, 1] = 15, -15
    for radius, expected in ((9.0, np.ones(40, bool)), (9.5, np.arange(40) >= 30)):
        found = centred_scores(working, good, offset, radius, result.learned)
        np.testing.assert_array_equal(np.isfinite(found), expected)
    assert centred_scores(working, good[:0], offset[:0], 9.0, result.learned).shape == (0,)
