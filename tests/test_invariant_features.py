"""Features of F^-1 |F image|: against direct sums; blind to turns, shifts, brightness; what options do."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsort import InputError, contrast_transfer, open_particles, phase_flip
from fastsort.images.batches import default_batch_size
from fastsort.invariants.features import feature_index, invariant_features
from fastsort.invariants.ring_statistics import SAMPLE, ring_statistics
from fastsort.invariants.zernike import radial_polynomials, zernike_basis, zernike_index, zernike_moments
from fastsort.particles.table import CtfParameters

examples = settings(max_examples=10, deadline=None)
PLAIN = {"noise_floor": None, "oversampling": 1, "disk": "pixels", "unit": False}


def noise(seed, n, box):
    return np.random.default_rng(seed).normal(size=(n, box, box)).astype(np.float32)


def scene(seed, box, angle=0.0, shift=(0.0, 0.0), extent=0.75):
    """Blobs within extent / 4 of a box, turned about pixel d // 2 from x to y, then shifted by (y, x)."""
    rng = np.random.default_rng(seed)
    size = extent * box
    places = rng.normal(0, size / 8, (12, 2))
    places *= np.minimum(1, size / 4 / np.hypot(*places.T))[:, np.newaxis]
    widths = np.maximum(rng.uniform(0.03, 0.06, 12) * size, 1.1)
    heights = rng.uniform(0.5, 1.5, 12) * np.where(rng.random(12) < 0.25, -1, 1)
    offset = np.arange(box) - box // 2
    image = np.zeros((box, box))
    for (y, x), width, height in zip(places, widths, heights, strict=True):
        here = (
            np.sin(angle) * x + np.cos(angle) * y + shift[0],
            np.cos(angle) * x - np.sin(angle) * y + shift[1],
        )
        down, across = (np.exp(-((offset - at) ** 2) / (2 * width**2)) for at in here)
        image += height * np.outer(down, across)
    return image.astype(np.float32)


def difference(found, expected):
    """Largest relative difference of rows."""
    return (np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()


def naive_map(image):
    """T = F^-1 |F image| without frequency zero, its origin at pixel d // 2."""
    amplitude = np.abs(np.fft.fft2(np.asarray(image, dtype=float)))
    amplitude[0, 0] = 0
    return np.fft.fftshift(np.fft.ifft2(amplitude).real)


def padded(image, size):
    out = np.zeros((size, size))
    start = size // 2 - len(image) // 2
    out[start : start + len(image), start : start + len(image)] = image
    return out


def defocused(images, defocus, pixel_size):
    """What each of the images looks like at each defocus: (n, n_defocus, d, d), and parameters of all."""
    n, box = len(images), images.shape[1]
    every = np.tile(np.asarray(defocus, dtype=float), n)
    same = {"phase_shift": 0, "voltage": 300, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}
    ctf = CtfParameters(
        defocus_u=every + 150,
        defocus_v=every - 150,
        defocus_angle=np.full(len(every), 30.0),
        **{name: np.full(len(every), float(value)) for name, value in same.items()},
    )
    seen = np.fft.rfft2(np.repeat(images, len(defocus), axis=0)) * contrast_transfer(ctf, box, pixel_size)
    return np.fft.irfft2(seen, s=(box, box)).astype(np.float32), ctf


def spread(features, n_views):
    """Distance between looks at one view in parts of that between views."""
    views = features.reshape(n_views, -1, features.shape[-1])
    inside = np.linalg.norm(views[:, :, None] - views[:, None], axis=-1)
    between = np.linalg.norm(views[:, None] - views[None], axis=-1)
    n = views.shape[1]
    return (inside.sum() / (n_views * n * (n - 1))) / (between.sum() / (n_views * (n_views - 1) * n))


# The definition.


@examples
@given(seed=st.integers(0, 2**32 - 1), box=st.integers(16, 71))
def test_features_are_the_naive_ones(seed, box):
    images = noise(seed, 3, box)
    basis = zernike_basis(box, 12)
    found = invariant_features(images, 12, **PLAIN)
    for row, image in zip(found, images, strict=True):
        t = naive_map(image)
        for value, n, m in zip(row, *feature_index(12), strict=True):
            parts = [
                (t * basis.functions[(basis.order == n) & (basis.angular == sign)][0]).sum()
                for sign in {m, -m}
            ]
            np.testing.assert_allclose(value, np.hypot.reduce(parts), atol=1e-5 * np.linalg.norm(row))


@pytest.mark.parametrize("box", [16, 33, 48, 71, 193, 200])
@pytest.mark.parametrize("oversampling", [1, 2, 3])
def test_parseval(box, oversampling):
    images = np.array([scene(seed, box) for seed in range(4)])
    found = invariant_features(images, 14, **{**PLAIN, "oversampling": oversampling})
    size = box * oversampling
    start = size // 2 - box // 2
    maps = np.array([naive_map(padded(image, size)) for image in images])
    maps = maps[:, start : start + box, start : start + box]
    moments, order, _ = zernike_moments(maps, 14)
    assert difference(found, np.abs(moments[:, order % 2 == 0])) < 1e-5 + 1e-3 * (oversampling > 1)
    assert np.abs(moments[:, order % 2 == 1]).max() < 1e-5 * np.abs(moments).max()


@pytest.mark.parametrize("box", [20, 33])
def test_continuous_disk_is_the_integral_of_the_interpolated_map(box):
    image = scene(1, box)
    found = invariant_features(image[None], 8, noise_floor=None, unit=False)[0]
    size, radius = 2 * box, box // 2
    corner = image[np.add.outer(*2 * [(np.arange(box) - radius) ** 2]) >= radius**2].mean()
    amplitude = np.abs(np.fft.fft2(image - float(corner), s=(size, size)))
    amplitude[0, 0] = 0
    nodes, weights = np.polynomial.legendre.leggauss(60)
    radii, weights = (nodes + 1) / 2, weights / 2
    theta = 2 * np.pi * np.arange(120) / 120
    y, x = radius * np.outer(radii, np.sin(theta)), radius * np.outer(radii, np.cos(theta))
    frequency = np.fft.fftfreq(size)
    waves = [np.exp(2j * np.pi * np.multiply.outer(axis, frequency)) for axis in (y, x)]
    t = np.einsum("rtk,kl,rtl->rt", waves[0], amplitude, waves[1], optimize=True).real / size**2
    polynomials = radial_polynomials(8, radii)
    for row, n, m in zip(polynomials, *zernike_index(8), strict=True):
        if n % 2 == 0:
            ring = (t * np.exp(-1j * m * theta)).sum(axis=1) * (2 * np.pi / 120)
            value = (
                np.abs((ring * row * radii * weights).sum())
                * radius
                * np.sqrt((1 + (m > 0)) * (n + 1) / np.pi)
            )
            column = np.flatnonzero((feature_index(8)[0] == n) & (feature_index(8)[1] == m))
            np.testing.assert_allclose(found[column], value, atol=2e-5 * np.linalg.norm(found))


def test_continuous_and_pixels_agree_on_fine_pixels():
    apart = []
    for box in (32, 64, 128):
        images = np.array([scene(seed, box) for seed in range(3)])
        continuous, pixels = (invariant_features(images, 10, disk=disk) for disk in ("continuous", "pixels"))
        apart.append(difference(pixels, continuous))
    assert apart[0] > apart[-1]
    assert apart[-1] < 0.01


def test_features_of_lower_order_come_first():
    images = noise(0, 3, 32)
    low, high = (invariant_features(images, order, unit=False) for order in (7, 20))
    np.testing.assert_allclose(low, high[:, : low.shape[1]], rtol=1e-5)
    least = invariant_features(images, 0, unit=False)
    np.testing.assert_allclose(least, high[:, :1], rtol=1e-5)
    assert [len(feature_index(order)[0]) for order in (0, 6, 7, 20)] == [1, 10, 10, 66]


def test_same_values_as_motif_learn():
    features = pytest.importorskip("mtflearn.features")
    images = noise(6, 4, 64)
    maps = np.zeros((4, 65, 65))
    maps[:, :64, :64] = [naive_map(image) for image in images]
    # Its disk is closed, and ours open.
    maps[:, [0, 32], [32, 0]] = 0
    zernike = features.ZPs(20, 65)
    theirs = maps.reshape(4, -1) @ zernike.polynomials.reshape(len(zernike.polynomials), -1).T
    found = invariant_features(images, **PLAIN)
    for column, n, m in zip(found.T, *feature_index(20), strict=True):
        pair = (zernike.n == n) & (np.abs(zernike.m) == m)
        expected = np.linalg.norm(theirs[:, pair], axis=1) / 32 / np.sqrt(np.pi)
        np.testing.assert_allclose(column, expected, atol=1e-5 * np.linalg.norm(found[0]))


# Invariance.


@pytest.mark.parametrize("box", [31, 32, 48, 64, 71])
@pytest.mark.parametrize("options", [{}, PLAIN, {"whiten": "auto"}], ids=["default", "plain", "whitened"])
def test_quarter_turn_changes_nothing(box, options):
    images = np.array([scene(seed, box, extent=0.6) for seed in range(4)])
    if "whiten" in options:
        options = {"whiten": ring_statistics(images).amplitude}
    before, after = (invariant_features(i, **options) for i in (images, np.rot90(images, axes=(1, 2))))
    assert difference(after, before) < 1e-5


@pytest.mark.parametrize("box", [31, 32, 48, 64, 71])
def test_any_turn_changes_next_to_nothing(box):
    for seed in range(8):
        images = [scene(seed, box, angle) for angle in (0, 0.3, 0.7, 1.1, 2.2, 4.0)]
        before, *after = invariant_features(np.array(images))
        assert difference(np.array(after), before) < 0.02


def test_what_a_turn_does_to_a_periodic_image():
    turned = np.array([scene(seed, 64, angle, extent=1) for seed in range(6) for angle in (0, 0.3, 1.1)])
    apart = {}
    for options in ((1, "pixels"), (2, "pixels"), (1, "continuous"), (2, "continuous")):
        oversampling, disk = options
        features = invariant_features(turned, oversampling=oversampling, disk=disk).reshape(6, 3, -1)
        apart[options] = difference(features[:, 1:], features[:, :1])
    assert apart[2, "continuous"] < 0.02
    assert apart[2, "continuous"] < 0.7 * apart[2, "pixels"]
    assert apart[2, "continuous"] < 0.25 * apart[1, "continuous"]


@pytest.mark.slow
@examples
@given(
    seed=st.integers(0, 2**32 - 1),
    box=st.integers(31, 71),
    shift=st.tuples(*2 * [st.floats(-0.12, 0.12)]),
)
def test_shift_changes_next_to_nothing(seed, box, shift):
    images = [scene(seed, box, shift=np.multiply(shift, box) * by) for by in (0, 1)]
    before, after = invariant_features(np.array(images))
    assert difference(after, before) < 0.02


def test_cyclic_shift_of_a_periodic_image_changes_nothing():
    images = noise(3, 4, 48)
    before, after = (invariant_features(i, **PLAIN) for i in (images, np.roll(images, (5, -17), axis=(1, 2))))
    assert difference(after, before) < 1e-5


def test_turned_noise_keeps_its_features():
    # Not only smooth images: a quarter turn is exact for any.
    images = noise(1, 4, 33)
    before, after = (invariant_features(i) for i in (images, np.rot90(images, axes=(1, 2))))
    assert difference(after, before) < 1e-5


@pytest.mark.parametrize("options", [{}, PLAIN])
def test_brightness_sign_and_scale(options):
    images = np.array([scene(seed, 48, extent=0.6) for seed in range(3)])
    expected = invariant_features(images, **options)
    assert difference(invariant_features(images + 100, **options), expected) < 1e-4
    assert difference(invariant_features(-images, **options), expected) < 1e-5
    scale = 1 if options.get("unit", True) else 1000
    assert difference(invariant_features(1000 * images, **options), scale * expected) < 1e-5
    if scale == 1:
        np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-5)


def test_different_views_differ():
    images = np.array([scene(seed, 48) for seed in range(12)])
    features = invariant_features(images)
    apart = np.linalg.norm(features[:, None] - features, axis=-1)
    assert apart[~np.eye(12, dtype=bool)].min() > 0.1


# What the options do.


@pytest.mark.parametrize("deviation", [0.5, 1.0, 3.0])
def test_noise_is_measured_in_the_corners(deviation):
    images = np.array([scene(seed % 10, 48) for seed in range(300)])
    images += deviation * noise(4, 300, 48)
    measured = ring_statistics(images).noise
    assert len(measured) == 25
    # The median of a ring's mean power lies below its mean, the more the fewer coefficients there are.
    np.testing.assert_allclose(measured[8:], deviation**2, rtol=0.1)
    np.testing.assert_allclose(measured[:8], deviation**2, rtol=0.35)
    white = ring_statistics(deviation * noise(5, 300, 48)).amplitude
    np.testing.assert_allclose(white[8:], np.sqrt(np.pi) / 2 * deviation, rtol=0.05)


@pytest.mark.parametrize(("deviation", "share"), [(0.25, 0.9), (0.5, 0.7), (1.0, 0.5)])
def test_noise_floor_brings_noisy_images_near_to_clean_ones(deviation, share):
    clean = np.array([scene(seed, 48) for seed in range(8)])
    noisy = np.repeat(clean, 16, axis=0)
    noisy += deviation * noise(7, len(noisy), 48)
    expected = invariant_features(clean, unit=False)
    apart = {}
    known = np.full(25, deviation**2)
    for name, floor in (("none", None), ("auto", "auto"), ("known", known)):
        features = invariant_features(noisy, noise_floor=floor, unit=False).reshape(8, 16, -1).mean(axis=1)
        apart[name] = difference(features, expected)
    assert apart["auto"] < share * apart["none"]
    assert apart["auto"] < 1.15 * apart["known"]


def test_noise_floor_makes_the_level_of_noise_matter_less():
    clean = np.repeat([scene(seed, 48) for seed in range(8)], 24, axis=0)
    drift = {}
    for floor in (None, "auto"):
        low, high = (
            invariant_features(clean + deviation * noise(8, len(clean), 48), noise_floor=floor)
            .reshape(8, 24, -1)
            .mean(axis=1)
            for deviation in (0.5, 0.9)
        )
        views = np.linalg.norm(low[:, None] - low, axis=-1).sum() / (8 * 7)
        drift[floor] = np.linalg.norm(high - low, axis=1).mean() / views
    assert drift["auto"] < 0.95 * drift[None]


def test_clean_images_have_no_floor():
    images = np.array([scene(seed, 48, extent=0.6) for seed in range(5)])
    assert difference(invariant_features(images), invariant_features(images, noise_floor=None)) < 1e-3


def test_whitening_undoes_what_a_microscope_blurs():
    images = np.array([scene(seed, 64) for seed in range(30)])
    envelope = np.exp(-60 * (np.fft.fftfreq(64)[:, None] ** 2 + np.fft.rfftfreq(64) ** 2))
    blurred = np.fft.irfft2(np.fft.rfft2(images) * envelope, s=(64, 64)).astype(np.float32)
    apart = {
        whiten: difference(*(invariant_features(i, whiten=whiten) for i in (blurred, images)))
        for whiten in (None, "auto")
    }
    assert apart["auto"] < 0.5 * apart[None]
    measured = ring_statistics(images).amplitude
    np.testing.assert_array_equal(
        invariant_features(images, whiten=measured), invariant_features(images, whiten="auto")
    )


@pytest.mark.parametrize("pixel_size", [2.0, 3.0, 5.0])
def test_ctf_brings_defoci_together(pixel_size):
    views = np.array([scene(seed, 64) for seed in range(10)])
    images, ctf = defocused(views, [10000, 14000, 18000, 22000, 25000], pixel_size)
    plain = spread(invariant_features(images), 10)
    corrected = invariant_features(images, ctf=ctf, pixel_size=pixel_size)
    assert spread(corrected, 10) < 0.8 * plain
    flipped = phase_flip(images, ctf, pixel_size)
    # Padding does not know of the flip's fringes, which wrap around.
    periodic = {"ctf": ctf, "pixel_size": pixel_size, "oversampling": 1, "noise_floor": None}
    assert difference(invariant_features(flipped, **periodic), invariant_features(images, **periodic)) < 1e-4


# Any input.


def test_permuted_images_have_permuted_features():
    images = noise(9, 40, 24)
    order = np.random.default_rng(0).permutation(40)
    for options in ({"noise_floor": None}, {"whiten": "auto"}):
        features = invariant_features(images, 10, **options)
        np.testing.assert_allclose(
            invariant_features(images[order], 10, **options), features[order], atol=1e-6
        )


def test_same_bits_for_any_number_of_workers():
    box = 33
    images = noise(1, default_batch_size(box) + 30, box)
    _, ctf = defocused(images[:1], np.linspace(9000, 25000, len(images)), 3.0)
    options = {"max_order": 8, "whiten": "auto", "ctf": ctf, "pixel_size": 3.0}
    features = invariant_features(images, **options, n_jobs=1)
    np.testing.assert_array_equal(features, invariant_features(open_particles(images), **options, n_jobs=2))
    with joblib.parallel_config(backend="loky", n_jobs=2):
        np.testing.assert_array_equal(features, invariant_features(images, **options))


@pytest.mark.parametrize("box", [33, 194])
def test_each_image_has_its_own_ctf(box):
    n = default_batch_size(box) + 20
    images, ctf = defocused(noise(1, 1, box), np.linspace(9000, 25000, n), 3.0)
    options = {"noise_floor": None, "pixel_size": 3.0}
    together = invariant_features(images, 8, ctf=ctf, **options)
    for i in (0, 1, n - 15, n - 1):
        own = CtfParameters(*(column[i : i + 1] for column in ctf))
        alone = invariant_features(images[i : i + 1], 8, ctf=own, **options)
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-6)


def test_every_kind_of_number(tmp_path):
    images = np.round(noise(2, 6, 16) * 64) / 64
    before = images.copy()
    expected = invariant_features(images, 8)
    for kind in (np.float16, ">f4", np.float64):
        np.testing.assert_array_equal(invariant_features(images.astype(kind), 8), expected)
    np.save(tmp_path / "images.npy", images)
    np.testing.assert_array_equal(
        invariant_features(np.load(tmp_path / "images.npy", mmap_mode="r"), 8), expected
    )
    floor = ring_statistics(images).noise
    alone = invariant_features(images[2:3], 8, noise_floor=floor)
    np.testing.assert_allclose(alone, expected[2:3], atol=1e-6)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(8, 8), (0, 0)])
@pytest.mark.parametrize("unit", [False, True])
def test_unfit_pixel_spoils_its_own_image_alone(value, place, unit):
    images = noise(4, 5, 16)
    options = {"max_order": 8, "noise_floor": ring_statistics(images).noise, "unit": unit}
    expected = invariant_features(images, **options)
    images[(2, *place)] = value
    found = invariant_features(images, **options)
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(np.delete(found, 2, axis=0), np.delete(expected, 2, axis=0))
    rings = ring_statistics(images)
    np.testing.assert_allclose(rings, ring_statistics(np.delete(images, 2, axis=0)), rtol=1e-6)


@pytest.mark.parametrize("level", [0.0, 1.0, -3.3e7])
@pytest.mark.parametrize("options", [{}, {"whiten": "auto"}, PLAIN])
def test_flat_images_have_no_features(level, options):
    images = noise(4, 4, 20)
    images[1] = level
    features = invariant_features(images, 8, **options)
    assert np.isfinite(features).all()
    assert not features[1].any()
    assert np.linalg.norm(features, axis=1)[[0, 2, 3]].min() > 0.5


def test_nothing_but_flat_or_unfit_images():
    assert not invariant_features(np.full((3, 16, 16), 7.0), noise_floor="auto").any()
    assert not invariant_features(np.full((3, 16, 16), 7.0), whiten="auto").any()
    assert np.isnan(invariant_features(np.full((2, 16, 16), np.nan), whiten="auto")).all()


def test_many_images_are_sampled():
    images = noise(2, 20, 16)[np.random.default_rng(0).integers(0, 20, SAMPLE + 500)]
    chosen = np.linspace(0, SAMPLE + 499, SAMPLE).round().astype(int)
    np.testing.assert_allclose(ring_statistics(images), ring_statistics(images[chosen]), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_order": -2}, "max_order must be a whole number, 0 or more; got -2"),
        ({"oversampling": 1.5}, "oversampling must be a whole number"),
        ({"oversampling": 0}, "oversampling must be a whole number, 1 or more; got 0"),
        ({"disk": "round"}, "disk must be one of 'continuous', 'pixels'; got 'round'"),
        ({"noise_floor": "median"}, "noise_floor must be one of 'auto'"),
        ({"noise_floor": np.ones(10)}, r"noise_floor must be real \(11,\) for a box of 20 px.*\(10,\)"),
        ({"noise_floor": -np.ones(11)}, "noise_floor must be finite and not negative; got -1"),
        ({"whiten": np.full(11, np.nan)}, "whiten must be finite"),
        ({"whiten": np.zeros(11)}, "whiten must not be zero at all frequencies"),
        ({"ctf": "auto"}, "the array gives no CTF"),
        ({"ctf": CtfParameters(*7 * [np.ones(2)])}, "one number an image; got .2,. for 3 images"),
        ({"pixel_size": -1}, "pixel_size must be positive"),
        ({"max_order": 200, "oversampling": 40}, "GiB: crop the images"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        invariant_features(noise(0, 3, 20), **options)


def test_unfit_arrays_are_refused():
    with pytest.raises(InputError, match="square"):
        invariant_features(np.zeros((2, 20, 24)))
    with pytest.raises(InputError, match="no images"):
        invariant_features(np.zeros((0, 20, 20)))
    with pytest.raises(InputError, match="real"):
        invariant_features(np.zeros((2, 20, 20), dtype=complex))
