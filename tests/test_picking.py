"""Picking: reduced micrographs, maxima, rings, templates, contamination and the mixture of what is found."""

from __future__ import annotations

from functools import lru_cache

import mrcfile
import naive
import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsort._checks import InputError
from fastsort.images.maxima import maxima_of
from fastsort.particles import reduced
from fastsort.particles.mrc import read_header
from fastsort.particles.reduced import ReducedMicrographs, Unread, read_reduced
from fastsort.picking import contamination, mixture
from fastsort.picking.averages import (
    LEAST_LEARNED,
    N_ANGLES,
    USUAL_SHIFT,
    Averages,
    compare,
    learn_averages,
    recentred,
    whitened,
    with_distributions,
)
from fastsort.picking.contamination import Limits, contaminated, contamination_maps, kinds_of
from fastsort.picking.learn import (
    LEAST_EVIDENCE,
    find_diameter,
    learn_picks,
    picking_binning,
    search_binning,
    start_widths,
)
from fastsort.picking.look import look_at
from fastsort.picking.mixture import Gaussian, best_cut, fit_mixture, log_density, probabilities
from fastsort.picking.places import LEAST_HEIGHT, N_FEATURES, Places, find_places, response_of
from fastsort.picking.planes import (
    FREQUENCIES,
    as_plane,
    filtered,
    gaussian,
    level,
    radial_curve,
    ring_power,
    smoothed,
    usable_pixels,
)
from fastsort.picking.rings import rings_about
from fastsort.picking.template import evidence, learn_template, usual_areas, without

examples = settings(max_examples=15, deadline=None)
DIAMETER = 14


def noise(seed, shape=(60, 80)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def micrograph(seed, depth=0.8, n=45, shape=(260, 300), sign=-1):
    """White noise with faint disks that do not touch, and where these are."""
    image, rng = noise([seed, 1], shape), np.random.default_rng([seed, 2])
    row, column = np.ogrid[: shape[0], : shape[1]]
    places = []
    while len(places) < n:
        place = rng.uniform(DIAMETER, np.array(shape) - DIAMETER)
        if all(np.hypot(*(place - other)) > 1.5 * DIAMETER for other in places):
            places.append(place)
            image[np.hypot(row - place[0], column - place[1]) < DIAMETER / 2] += sign * depth
    return image, np.array(places)


@lru_cache(maxsize=1)
def with_square():
    """Two micrographs, in the first a dark square much larger than a particle; and what is learned."""
    pairs = [micrograph(seed) for seed in (0, 1)]
    pairs[0][0][100:170, 120:190] -= 3
    images = [image for image, _ in pairs]
    return images, [places for _, places in pairs], learn_picks(images, 1, DIAMETER)


@lru_cache(maxsize=1)
def clean():
    images, places = zip(*(micrograph(seed) for seed in (2, 3)), strict=True)
    surfaces = [level(image, 3 * DIAMETER) for image in images]
    usual = usual_areas(surfaces, DIAMETER)
    return surfaces, usual, list(places), learn_template(surfaces, usual, 1, 0.8 * DIAMETER)


def auc(high, low):
    """How often one of the first is higher than one of the second."""
    return (np.asarray(high)[:, None] > np.asarray(low)).mean()


def write_mrc(path, data, order=None):
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(data)
    if order == "big":
        # The header counts in words of four bytes, but for its text.
        with mrcfile.open(path, mode="r") as file:
            header = file.header.copy()
        header = header.byteswap().view(header.dtype.newbyteorder())
        header["machst"] = [0x11, 0x11, 0, 0]
        path.write_bytes(header.tobytes() + data.astype(data.dtype.newbyteorder(">")).tobytes())
    return read_header(path)


def block_means(image, binning):
    """Means of what is finite in each block, one block after another."""
    height, width = (side // binning for side in image.shape)
    means = np.full((height, width), np.nan)
    for y in range(height):
        for x in range(width):
            block = image[y * binning : (y + 1) * binning, x * binning : (x + 1) * binning]
            values = block[np.isfinite(block)].astype(np.float64)
            if len(values):
                means[y, x] = values.mean()
    return means


# Reduced micrographs.


@pytest.mark.parametrize("binning", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16, np.float32])
def test_reduced_micrographs_are_means_of_blocks(tmp_path, monkeypatch, dtype, binning):
    # The file is read in many bands, the last of them shorter.
    monkeypatch.setattr(reduced, "_BAND_BYTES", 3 * 61 * 4 * binning)
    low = 0 if dtype == np.uint16 else -120
    data = np.random.default_rng(0).uniform(low, 127, size=(43, 61)).astype(dtype)
    found = read_reduced(write_mrc(tmp_path / "a.mrc", data), binning)
    assert found.dtype == np.float32
    assert found.shape == (43 // binning, 61 // binning)
    np.testing.assert_allclose(found, block_means(data, binning), rtol=1e-5, atol=1e-4)


@examples
@given(
    height=st.integers(1, 30), width=st.integers(1, 30), binning=st.integers(1, 9), rows=st.integers(1, 2000)
)
def test_any_side_and_binning(tmp_path_factory, height, width, binning, rows):
    data = noise([height, width], (height, width))
    header = write_mrc(tmp_path_factory.mktemp("sides") / "a.mrc", data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduced, "_BAND_BYTES", rows)
        found = read_reduced(header, binning)
    np.testing.assert_allclose(found, block_means(data, binning), rtol=1e-5, atol=1e-5)


def test_largest_whole_numbers_do_not_overflow(tmp_path):
    for dtype in (np.uint16, np.int16):
        data = np.full((40, 40), np.iinfo(dtype).max, dtype)
        np.testing.assert_allclose(read_reduced(write_mrc(tmp_path / "a.mrc", data), 20), data[0, 0])
    data = np.full((40, 40), 6e4, np.float16)
    np.testing.assert_allclose(read_reduced(write_mrc(tmp_path / "a.mrc", data), 20), float(data[0, 0]))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_either_byte_order_is_read(tmp_path, dtype):
    data = (100 * noise(1)).astype(dtype)
    header = write_mrc(tmp_path / "a.mrc", data, order="big")
    assert header.dtype.byteorder == ">"
    np.testing.assert_allclose(read_reduced(header, 3), block_means(data, 3), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("binning", [1, 2, 5])
def test_pixels_that_are_no_numbers_are_left_out_of_the_means(tmp_path, dtype, binning):
    data = noise(2, (33, 47)).astype(dtype)
    header = write_mrc(tmp_path / "a.mrc", data)
    whole = read_reduced(header, binning)
    data[3, 4] = np.nan
    data[20:31, 10:22] = np.nan
    data[0, 46] = data[0, 0] = np.nan
    # Written behind the back of mrcfile, which warns of NaN.
    (tmp_path / "a.mrc").write_bytes((tmp_path / "a.mrc").read_bytes()[: header.offset] + data.tobytes())
    found, expected = read_reduced(header, binning), block_means(data, binning)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    untouched = block_means(np.isnan(data), binning) == 0
    np.testing.assert_allclose(found[untouched], whole[untouched], rtol=1e-5, atol=1e-6)


def test_micrograph_that_became_shorter_is_refused_and_the_others_are_read(tmp_path):
    data = noise(3)
    headers = [write_mrc(tmp_path / f"{number}.mrc", data + number) for number in range(4)]
    with open(headers[1].path, "r+b") as file:
        file.truncate(headers[1].offset + headers[1].image_bytes - 4)
    (tmp_path / "2.mrc").unlink()
    with pytest.raises(InputError, match="shorter"):
        read_reduced(headers[1], 1)
    micrographs = ReducedMicrographs(headers, 2)
    images = micrographs.read(0, 4)
    assert [isinstance(image, Unread) for image in images] == [False, True, True, False]
    assert "shorter" in images[1] and "2.mrc does not exist" in images[2]
    np.testing.assert_allclose(images[3], block_means(data + 3, 2), rtol=1e-5)
    part = micrographs.part(1, 4)
    assert len(part) == 3 and len(micrographs) == 4
    np.testing.assert_array_equal(part.read(2, 3)[0], images[3])


def test_missing_rows_that_fill_no_block_are_not_missed(tmp_path):
    # The last row fills no block of three.
    data = noise(4, (31, 30))
    header = write_mrc(tmp_path / "a.mrc", data)
    with open(header.path, "r+b") as file:
        file.truncate(header.offset + 30 * 30 * 4)
    np.testing.assert_allclose(read_reduced(header, 3), block_means(data, 3), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError):
        read_reduced(header, 1)


# Maxima.


@examples
@given(st.integers(0, 1000), st.floats(0.5, 15.0), st.integers(1, 40), st.integers(1, 40))
def test_maxima_are_taken_greedily_from_the_highest(seed, distance, height, width):
    response = noise(seed, (height, width))
    usable = np.random.default_rng(seed).random((height, width)) < 0.8
    expected = []
    for place in np.argsort(-response, axis=None, kind="stable"):
        y, x = divmod(int(place), width)
        around = response[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        if not (usable[y, x] and response[y, x] > 0 and response[y, x] == around.max()):
            continue
        if all(np.hypot(y - row, x - column) >= distance for row, column in expected):
            expected.append((y, x))
    found = maxima_of(response, distance, usable)
    assert list(zip(found.row.tolist(), found.column.tolist(), strict=True)) == expected


def test_heights_are_in_deviations_of_the_usable_area_alone():
    response = noise(5, (120, 120))
    usable = np.zeros(response.shape, bool)
    usable[:, :60] = True
    expected = maxima_of(response[:, :60], 4)
    # Beyond the area all is a thousand times stronger.
    loud = response.copy()
    loud[:, 61:] *= 1000
    found = maxima_of(loud, 4, usable)
    assert found.column.max() < 60
    inner = expected.column < 50
    assert set(zip(expected.row[inner][:9], expected.height[inner][:9], strict=True)) <= set(
        zip(found.row, found.height, strict=True)
    )
    spread = np.median(np.abs(response[:, :60])) / 0.6745
    np.testing.assert_allclose(found.height, response[found.row, found.column] / spread, rtol=1e-6)
    assert abs(spread - 1) < 0.05


def test_least_height_leaves_out_the_lower_maxima():
    response = 7 * noise(6)
    everything, high = maxima_of(response, 3), maxima_of(response, 3, least=1.5)
    kept = everything.height > 1.5
    assert 0 < kept.sum() < len(kept)
    for one, other in zip(everything, high, strict=True):
        np.testing.assert_array_equal(one[kept], other)


def test_no_maxima_where_nothing_is_usable_or_nothing_varies():
    response = noise(7)
    assert len(maxima_of(response, 3).row)
    assert not len(maxima_of(response, 3, np.zeros(response.shape, bool)).row)
    assert not len(maxima_of(np.zeros_like(response), 3).row)
    assert not len(maxima_of(-np.abs(response), 3).row)


# Rings.


@examples
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 25), st.integers(1, 25))
def test_rings_are_those_of_the_slow_reference(seed, n_rings, height, width):
    rng = np.random.default_rng(seed)
    pixels = (3 + rng.normal(size=(height, width))).astype(np.float32)
    row, column = rng.integers(0, height, 6), rng.integers(0, width, 6)
    mean, variance = rings_about(pixels, row, column, n_rings)
    assert mean.shape == variance.shape == (6, n_rings)
    for i in range(6):
        expected = naive.rings_about(pixels, row[i], column[i], n_rings)
        np.testing.assert_allclose(mean[i], expected[0], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(variance[i], expected[1], rtol=1e-8, atol=1e-10)


def test_rings_beyond_the_edge_count_as_zero_and_a_ring_of_one_value_has_no_variance():
    pixels = np.full((41, 41), 5, np.float32)
    mean, variance = rings_about(pixels, np.array([20, 0]), np.array([20, 0]), 9)
    np.testing.assert_array_equal(mean[0], 5)
    np.testing.assert_array_equal(variance[0], 0)
    # At a corner a quarter of each ring is inside, and the two axes.
    assert mean[1, 0] == 5
    assert (np.abs(mean[1, 2:] / 5 - 0.25) < 0.15).all() and (variance[1, 1:] > 0).all()


def test_rings_about_no_place():
    mean, variance = rings_about(noise(0), np.empty(0, np.intp), np.empty(0, np.intp), 4)
    assert mean.shape == variance.shape == (0, 4)


# Planes.


def test_plain_noise_is_usable():
    for seed in range(3):
        usable = usable_pixels(noise(seed, (90, 130)))
        # The last corner has no neighbours to compare it with.
        assert usable.size - usable.sum() <= 1


@pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
@pytest.mark.parametrize("width", [2, 5])
def test_border_of_repeated_lines_is_found(side, width):
    image = noise(8, (120, 160))
    turns = {"top": 0, "left": 1, "bottom": 2, "right": 3}[side]
    # A view: what is written to it stands in the image.
    lines = np.rot90(image, -turns)
    lines[:width] = lines[width]
    usable = np.rot90(usable_pixels(image), -turns)
    # The line that was repeated cannot be told from its copies.
    assert not usable[: width + 1].any()
    assert usable[width + 1 :].mean() > 0.999


def test_nearly_repeated_lines_are_a_border_too():
    image = noise(9, (120, 160))
    image[:, -4:] = image[:, -5:-4] + 0.02 * noise(10, (120, 4))
    usable = usable_pixels(image)
    assert not usable[:, -4:].any() and usable[:, :-6].all()


def test_pixels_that_are_no_numbers_and_areas_of_one_value_are_not_usable():
    image = noise(11, (90, 130))
    image[3, 5], image[70, 100] = np.nan, np.inf
    image[20:40, 30:60] = np.nan
    image[50:70, 80:110] = 2.5
    usable = usable_pixels(image)
    assert not (usable[3, 5] or usable[70, 100] or usable[20:40, 30:60].any())
    # The last line of the area has other neighbours.
    assert not usable[50:69, 80:109].any()
    rest = np.ones(image.shape, bool)
    rest[20:40, 30:60] = rest[50:70, 80:110] = rest[3, 5] = rest[70, 100] = rest[-1, -1] = False
    assert usable[rest].all()


@pytest.mark.parametrize("value", [0, 7.5, np.nan, np.inf])
def test_nothing_is_usable_in_an_image_of_one_value(value):
    image = np.full((40, 50), value, np.float32)
    assert not usable_pixels(image).any()
    assert level(image, 10) is None


def test_levelled_micrographs_have_mean_zero_and_deviation_one():
    image = 1000 + 30 * noise(12, (150, 200))
    image[40:60, 50:80] = np.nan
    surface = level(image, 30)
    inside = surface.pixels[surface.usable]
    assert surface.pixels.dtype == np.float32
    assert abs(inside.mean()) < 0.02 and abs(inside.std() - 1) < 0.01
    assert not surface.pixels[~surface.usable].any() and not surface.usable[40:60, 50:80].any()
    # Unit and offset do not matter.
    other = level(image * 4 + 96, 30)
    np.testing.assert_allclose(other.pixels, surface.pixels, atol=1e-2)


def test_levelling_removes_a_ramp_and_keeps_what_is_small():
    ramp = np.linspace(-2, 2, 300)[None] + np.linspace(-1, 1, 200)[:, None]
    image = noise(13, (200, 300))
    image[90:100, 140:150] += 3
    surface = level((image + ramp).astype(np.float32), 20)
    middle = (slice(30, -30), slice(30, -30))
    kept, before = surface.pixels[middle].ravel(), (image + ramp)[middle].ravel()
    assert np.corrcoef(before, ramp[middle].ravel())[0, 1] > 0.5
    assert abs(np.corrcoef(kept, ramp[middle].ravel())[0, 1]) < 0.02
    assert surface.pixels[90:100, 140:150].mean() > 2


def test_strong_pixels_are_clipped():
    image = noise(14)
    image[30, 40], image[10, 10] = 1e6, -1e6
    pixels = level(image, 10).pixels
    assert pixels[30, 40] == pixels.max() <= 6
    assert pixels[10, 10] == pixels.min() >= -6
    assert pixels[30, 40] > 4


@examples
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 15), st.floats(0.3, 6.0))
def test_filters_keep_what_they_should(height, width, margin, deviation):
    margin = min(margin, height, width)
    image = noise([height, width], (height, width))
    np.testing.assert_allclose(filtered(as_plane(image, margin), np.ones(len(FREQUENCIES))), image, atol=1e-5)
    constant = np.full((height, width), 3.5, np.float32)
    np.testing.assert_allclose(smoothed(as_plane(constant, margin), deviation), constant, atol=1e-4)


@pytest.mark.parametrize("deviation", [1.5, 4.0])
def test_smoothing_is_that_with_a_gaussian_of_a_mirrored_picture(deviation):
    image = noise(15)
    expected = scipy.ndimage.gaussian_filter(image, deviation, mode="reflect", truncate=8)
    found = smoothed(as_plane(image, 24), deviation)
    np.testing.assert_allclose(found, expected, atol=3e-3)


def test_curve_of_a_profile_is_correlation_with_its_picture():
    radius = np.arange(13)
    profile = np.exp(-((radius - 4) ** 2) / 8) - 0.4 * np.exp(-(radius**2) / 60)
    profile *= np.clip((13 - radius) / 5, 0, 1)
    line = np.arange(-13, 14)
    picture = np.interp(np.hypot(line[:, None], line), radius, profile, right=0)
    # Noise without what is finer than the profile can say.
    image = scipy.ndimage.gaussian_filter(noise(16, (90, 110)), 1.5)
    expected = scipy.ndimage.correlate(image.astype(np.float64), picture, mode="reflect")
    found = filtered(as_plane(image, 30), radial_curve(profile))
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999


def test_ring_power_is_the_mean_square_of_white_noise_and_follows_a_filter():
    images = [2 * noise(seed, (128, 160)) for seed in (17, 18)]
    planes = [as_plane(image, 0) for image in images]
    inside = (FREQUENCIES > 0.02) & (FREQUENCIES < 0.5)
    power = ring_power(planes, [image.size for image in images])
    assert abs(power[inside].mean() / 4 - 1) < 0.03
    curve = 0.5 + gaussian(1.0)
    softened = [as_plane(filtered(plane, curve), 0) for plane in planes]
    after = ring_power(softened, [image.size for image in images])
    np.testing.assert_allclose((after / power)[inside], curve[inside] ** 2, rtol=0.05)


# Templates.


def test_evidence_tells_samples_of_one_distribution_from_shifted_ones():
    rng = np.random.default_rng(19)
    same = [evidence(rng.normal(size=900), rng.normal(size=900)) for _ in range(20)]
    # Chance alone gives each of the 24 steps about a half.
    assert 0 <= min(same) and max(same) < 20
    some = rng.normal(size=900)
    assert evidence(some, some) == 0
    few = np.append(rng.normal(size=800), rng.normal(4, 1, size=100))
    assert evidence(few, rng.normal(size=900)) > 2 * max(same)
    assert evidence(rng.normal(size=900) + 1, rng.normal(size=900)) > 2 * max(same)
    # All of one height.
    assert evidence(np.ones(50), np.ones(50)) == 0


def test_template_responds_to_faint_disks():
    surfaces, usual, places, template = clean()
    assert template.evidence > LEAST_EVIDENCE
    assert template.excess > 5 * template.deviation
    rng = np.random.default_rng(20)
    high, low = [], []
    for surface, area, some in zip(surfaces, usual, places, strict=True):
        response = response_of(surface, template, area)
        assert abs(np.median(np.abs(response[area])) / 0.6745 - 1) < 1e-3
        row, column = np.rint(some).astype(int).T
        high.extend(response[row, column])
        row, column = (rng.integers(0, side, 600) for side in response.shape)
        far = np.hypot(row[:, None] - some[:, 0], column[:, None] - some[:, 1]).min(axis=1) > DIAMETER / 2
        low.extend(response[row[far], column[far]])
    assert auc(high, low) > 0.95


def test_template_has_no_mean_and_ends_in_zero():
    profile = clean()[3].profile
    weight = np.maximum(np.arange(len(profile)), 0.25)
    assert abs(profile @ weight) < 1e-9 * (np.abs(profile) @ weight) + 1e-9
    assert abs(profile[-1]) < 0.3 * np.abs(profile).max()


@pytest.mark.slow
def test_pure_noise_has_little_evidence():
    for seed in range(5):
        surfaces = [level(noise([seed, 7], (200, 240)), 36)]
        # Noise of another spectrum, too.
        surfaces.append(level(scipy.ndimage.gaussian_filter(noise([seed, 8], (200, 240)), 1), 36))
        for surface in surfaces:
            template = learn_template([surface], usual_areas([surface], 12), 1, 12.0)
            assert template.evidence < LEAST_EVIDENCE


def test_nothing_is_learned_where_nothing_may_be_used():
    surface = level(noise(21), 20)
    assert learn_template([surface], [np.zeros(surface.pixels.shape, bool)], 1, 8.0) is None
    assert learn_template([surface], [surface.usable], 1, 8.0) is not None


def test_usual_areas_leave_out_a_strange_one_and_little_else():
    image = noise(22, (200, 240))
    image[60:110, 80:130] -= 4
    image[150:180, 20:60] *= 4
    surface = level(image, 42)
    usual = usual_areas([surface], DIAMETER)[0]
    assert not usual[70:100, 90:120].any() and not usual[158:172, 30:50].any()
    assert usual.mean() > 0.59
    # Micrographs on their own look usual.
    plain = level(noise(23, (200, 240)), 42)
    assert usual_areas([plain], DIAMETER)[0].mean() > 0.9


def test_places_hold_the_disks_to_a_part_of_a_pixel():
    surfaces, usual, places, template = clean()
    for surface, area, some in zip(surfaces, usual, places, strict=True):
        response = response_of(surface, template, area)
        found = find_places(surface, response, template, area, DIAMETER, 0.65 * DIAMETER, -1)
        assert found.features.shape == (len(found.row), N_FEATURES)
        assert np.isfinite(found.features).all()
        assert (found.height > LEAST_HEIGHT).all() and (np.diff(found.height) <= 0).all()
        apart = np.hypot(found.row - some[:, :1], found.column - some[:, 1:])
        inside = area[tuple(np.rint(some).astype(int).T)]
        assert inside.mean() > 0.8
        near = apart[inside].min(axis=1)
        assert np.median(near) < 1 and (near < DIAMETER / 3).mean() > 0.9


def test_negative_is_measured_as_if_it_were_a_micrograph():
    surfaces, usual, _, template = clean()
    response = response_of(surfaces[0], template, usual[0])
    turned = surfaces[0]._replace(pixels=-surfaces[0].pixels)
    one = find_places(surfaces[0], response, template, usual[0], DIAMETER, 9.0, -1, negative=True)
    other = find_places(turned, -response, template, usual[0], DIAMETER, 9.0, -1)
    assert len(one.row) > 10
    np.testing.assert_array_equal(one.height, other.height)
    np.testing.assert_allclose(one.features, other.features, rtol=1e-4, atol=1e-4)


# Averages.


def some_averages(seed, radius=5, shift=2, n=2):
    """Two patterns as averages, and as squares."""
    line = np.arange(-radius, radius + 1)
    inside = np.hypot(line[:, None], line) <= radius + 0.1
    squares = scipy.ndimage.gaussian_filter(noise([seed, 3], (n, len(line), len(line))), (0, 1, 1)) * 3
    unknown = Gaussian(np.zeros(2), np.eye(2))
    share = np.linspace(1, 2, n) / np.linspace(1, 2, n).sum()
    return Averages(squares[:, inside], share, radius, shift, unknown, unknown, unknown), squares


def places_at(row, column):
    nothing = np.ones(len(row))
    return Places(np.array(row, float), np.array(column, float), nothing, nothing[:, None])


def rings_and_spots(seed, n=40, shape=(260, 300)):
    """White noise with rings that have a brighter spot somewhere; and the middles of the rings."""
    image, rng = noise([seed, 4], shape), np.random.default_rng([seed, 5])
    row, column = np.ogrid[: shape[0], : shape[1]]
    middles = []
    while len(middles) < n:
        middle = rng.uniform(DIAMETER, np.array(shape) - DIAMETER)
        if all(np.hypot(*(middle - other)) > 1.5 * DIAMETER for other in middles):
            middles.append(middle)
            angle = rng.uniform(0, 2 * np.pi)
            spot = middle + 4 * np.array([np.sin(angle), np.cos(angle)])
            image += np.abs(np.hypot(row - middle[0], column - middle[1]) - 5) < 1.5
            image += 0.5 * (np.hypot(row - spot[0], column - spot[1]) < 2)
    return image, np.array(middles)


@pytest.mark.parametrize("place", [(20, 30), (0, 0), (59, 41), (3, 79)])
def test_compared_place_is_that_of_a_plain_search(place):
    image, (averages, squares) = noise(7), some_averages(1)
    image.flags.writeable = False
    found = compare(image, np.array([place[0]]), np.array([place[1]]), averages)
    evidence, move, rest = naive.compared_place(
        image, *place, squares, averages.share, averages.radius, averages.shift, USUAL_SHIFT, N_ANGLES
    )
    np.testing.assert_allclose(found.evidence, evidence, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose([found.down[0], found.right[0]], move, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.rest, rest, rtol=1e-4)


def test_a_turned_micrograph_has_the_same_evidence():
    image, (averages, _) = noise(8, (61, 61)), some_averages(2)
    row, column = np.random.default_rng(0).integers(0, 61, (2, 25))
    one = compare(image, row, column, averages)
    other = compare(np.ascontiguousarray(np.rot90(image)), 60 - column, row, averages)
    np.testing.assert_allclose(other.evidence, one.evidence, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(other.down, -one.right, atol=1e-3)
    np.testing.assert_allclose(other.right, one.down, atol=1e-3)
    np.testing.assert_allclose(other.rest, one.rest, rtol=1e-4)


def test_places_beside_particles_move_to_their_middle_and_become_one():
    image, middles = rings_and_spots(0)
    rng = np.random.default_rng(1)
    angle = rng.uniform(0, 2 * np.pi, len(middles))
    beside = middles + 2.5 * np.column_stack([np.sin(angle), np.cos(angle)])
    row, column = np.rint(beside).astype(int).T
    averages = learn_averages([image], [(row, column)], DIAMETER)
    known = np.ones(2 * len(row), bool)
    known[-1] = False
    twice = places_at(np.tile(row, 2), np.tile(column, 2))
    found, measured, stays = recentred(image, twice, known, averages, 0.65 * DIAMETER)
    assert len(found.row) == stays.sum() == len(measured) <= len(middles)
    apart = np.hypot(found.row[:, None] - middles[:, 0], found.column[:, None] - middles[:, 1])
    assert (apart.min(axis=0) < 1.5).mean() > 0.9
    assert np.median(apart.min(axis=1)) < 1
    np.testing.assert_array_equal(image, rings_and_spots(0)[0])


def test_what_is_not_compared_stays():
    image, (averages, _) = noise(9), some_averages(3)
    places = places_at([3.4, 30.0, 50.2], [5.0, 41.6, 70.0])
    found, measured, stays = recentred(image, places, np.zeros(3, bool), averages, 9)
    assert stays.all() and np.isnan(measured).all()
    np.testing.assert_array_equal(found.row, places.row)
    before = np.array([[0.2, 0.1], [0.0, 1.0], [0.9, 0.0]])
    np.testing.assert_array_equal(averages.likely(measured, before), before)


def test_averages_need_particles():
    image, middles = rings_and_spots(2, 10)
    row, column = np.rint(middles).astype(int).T
    assert len(row) < LEAST_LEARNED
    assert learn_averages([image], [(row, column)], DIAMETER) is None
    averages, _ = some_averages(4)
    none = compare(image, row[:0], column[:0], averages)
    assert none.measured.shape == (0, 2)
    assert len(recentred(image, places_at([], []), np.ones(0, bool), averages, 9)[0].row) == 0


def test_distributions_turn_likely_into_surer():
    rng = np.random.default_rng(6)
    truth = np.arange(900) % 3
    measured = np.array([[1, 0], [4, 0], [4, 2]])[truth] + rng.normal(size=(900, 2)) * [0.7, 0.3]
    before = np.full((900, 2), 0.1)
    before[np.arange(900)[truth > 0], truth[truth > 0] - 1] = 0.6
    before[truth == 0] = 0.2
    negative = [1, 0] + rng.normal(size=(400, 2)) * [0.7, 0.3]
    averages = with_distributions(some_averages(5)[0], measured, before, negative)
    after = averages.likely(measured, before)
    assert ((after >= 0) & (after.sum(axis=1, keepdims=True) <= 1 + 1e-9)).all()
    for k in range(2):
        assert after[truth == k + 1, k].mean() > before[truth == k + 1, k].mean() + 0.2
        assert after[truth != k + 1, k].mean() < before[truth != k + 1, k].mean()


@pytest.mark.slow
def test_what_was_learned_has_averages_and_looks_with_them():
    images, places, learned = with_square()
    assert learned.averages is not None
    seen = look_at(images[1], learned)
    plain = look_at(images[1], learned._replace(averages=None))
    kept = seen.likely[:, 0] >= learned.cut
    apart = np.hypot(*(np.column_stack([seen.places.row, seen.places.column])[:, None] - places[1]).T).T
    assert (apart[kept].min(axis=1) < DIAMETER / 2).mean() > 0.9
    assert (apart[kept].min(axis=0) < DIAMETER / 2).mean() > 0.8
    assert len(seen.likely) == len(seen.places.row) <= len(plain.places.row)
    white = whitened(seen.surface, learned.template, seen.clean)
    assert white[seen.clean].std() == pytest.approx(1, abs=0.1)


# The mixture.


def features_of(seed, n_noise=900, n_particles=300, n_foreign=80):
    """Features and heights of noise, particles and foreign things; what each is; those of the negative."""
    rng = np.random.default_rng(seed)
    height = [rng.gamma(4, 0.25, n) + 1.5 for n in (n_noise, n_noise)]
    height += [rng.normal(6, 0.8, n_particles).clip(3), rng.normal(14, 2, n_foreign).clip(8)]

    def of(height, middle, width):
        return np.column_stack([np.log(height), middle + width * rng.normal(size=(len(height), 4))])

    noises = [of(h, np.zeros(4), 1.0) for h in height[:2]]
    others = of(height[2], np.array([3, -3, 2, 0]), 0.8), of(height[3], np.array([8, 4, -6, 5]), 3.0)
    kind = np.repeat([0, 1, 2], [n_noise, n_particles, n_foreign])
    return (
        np.concatenate([noises[0], *others]),
        np.concatenate([height[0], *height[2:]]),
        kind,
        noises[1],
        height[1],
    )


@pytest.mark.parametrize("seed", range(3))
def test_mixture_separates_particles_from_noise_and_from_what_is_foreign(seed):
    features, height, kind, negative, negative_height = features_of(seed)
    fitted = fit_mixture(features, negative, height, negative_height)
    parts = probabilities(features, height, fitted)
    np.testing.assert_allclose(parts.sum(axis=1), 1, rtol=1e-12)
    assert (parts >= 0).all()
    assert (parts.argmax(axis=1) == kind).mean() > 0.95
    assert auc(parts[kind == 1, 1], parts[kind != 1, 1]) > 0.98
    assert not fitted.has_tails
    assert abs(fitted.particle_share - 300 / 380) < 0.05
    # What a feature tells of noise is the negative's.
    np.testing.assert_allclose(fitted.noise.mean, negative.mean(axis=0), atol=0.15)


def test_mixture_without_foreign_things_calls_next_to_nothing_foreign():
    features, height, kind, negative, negative_height = features_of(5, n_foreign=0)
    parts = probabilities(features, height, fit_mixture(features, negative, height, negative_height))
    assert (parts[kind == 1, 1] > 0.5).mean() > 0.9
    assert (parts[kind == 0, 1] > 0.5).mean() < 0.02


def test_tails_of_particles_are_particles():
    features, height, kind, negative, negative_height = features_of(6)
    fitted = fit_mixture(features, negative, height, negative_height)
    tails = fitted._replace(foreign=mixture.Gaussian(fitted.particles.mean, 4 * fitted.particles.covariance))
    assert tails.has_tails and not fitted.has_tails
    parts = probabilities(features, height, tails)
    np.testing.assert_allclose(parts.sum(axis=1), 1, rtol=1e-12)
    assert not parts[:, 2].any() and (parts[kind == 1, 1] > 0.9).mean() > 0.9


def test_too_few_maxima_teach_nothing():
    features, height, _, negative, negative_height = features_of(7)
    assert fit_mixture(features, negative, height, negative_height) is not None
    assert fit_mixture(features[:14], negative, height[:14], negative_height) is None
    assert fit_mixture(features, negative[:14], height, negative_height[:14]) is None
    # Nothing is higher than noise.
    assert fit_mixture(negative, negative, negative_height, negative_height + 2) is None


def test_share_of_noise_falls_with_height():
    features, height, _, negative, negative_height = features_of(8)
    fitted = fit_mixture(features, negative, height, negative_height)
    share = fitted.share_of_noise(np.linspace(-5, 30, 200))
    assert (np.diff(share) <= 1e-12).all() and (share > 0).all() and (share < 1).all()
    assert share[-1] < 0.1 and share[0] > 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=12), st.booleans())
def test_best_cut_is_that_of_all_cuts(eighths, odd):
    probability = np.array(eighths) / 8 * (0.93 if odd else 1)
    cut = best_cut(probability)
    if not probability.any():
        assert cut == 1
        return

    def expected_f1(cut):
        kept = probability >= cut
        return 2 * probability[kept].sum() / (kept.sum() + probability.sum())

    scores = [expected_f1(other) for other in probability]
    # No threshold is surer than 0.99, which no probability lies above but 1.
    assert cut in (*probability.tolist(), 0.99)
    assert expected_f1(cut) == pytest.approx(max(scores), rel=1e-12)


def test_best_cut_of_nothing():
    assert best_cut(np.empty(0)) == 1


@pytest.mark.skipif(not hasattr(scipy.optimize, "isotonic_regression"), reason="this scipy has none")
@examples
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_falling_is_the_isotonic_regression(seed, n):
    rng = np.random.default_rng(seed)
    values, weight = rng.normal(size=n) - 0.05 * np.arange(n), rng.uniform(0.5, 20, n)
    expected = scipy.optimize.isotonic_regression(values, weights=weight, increasing=False).x
    np.testing.assert_allclose(mixture._falling(values, weight), expected, rtol=1e-10, atol=1e-12)


def test_log_density_is_that_of_a_normal_distribution():
    rng = np.random.default_rng(24)
    root = rng.normal(size=(4, 4))
    part = mixture.Gaussian(rng.normal(size=4), root @ root.T + np.eye(4))
    points = rng.normal(size=(20, 4))
    inverse, size = np.linalg.inv(part.covariance), np.linalg.det(2 * np.pi * part.covariance)
    expected = [-0.5 * (x - part.mean) @ inverse @ (x - part.mean) - 0.5 * np.log(size) for x in points]
    np.testing.assert_allclose(log_density(points, part), expected)


# Contamination.


@pytest.mark.slow
def test_large_dark_square_is_contaminated_and_faint_disks_are_not():
    images, places, learned = with_square()
    assert learned.sign == -1
    for number, (image, some) in enumerate(zip(images, places, strict=True)):
        surface = level(image, 3 * DIAMETER)
        maps = contamination_maps(surface, DIAMETER, learned.sign)
        bad = contaminated(maps, learned.limits, surface.usable)
        row, column = np.rint(some).astype(int).T
        near = (np.abs(row - 135) < 65) & (np.abs(column - 155) < 65) & (number == 0)
        assert (~near).sum() > 20
        assert not bad[row[~near], column[~near]].any()
        if number == 0:
            assert bad[105:165, 125:185].all()
            assert bad.mean() < 0.2
        else:
            assert bad.mean() < 0.02


def test_kinds_of_contamination():
    shape, disk = (120, 140), 20.0
    bad = np.zeros(shape, bool)
    areas = {
        contamination.CARBON_FILM: (slice(0, 40), slice(0, 50)),
        contamination.ICE: (slice(60, 70), slice(20, 30)),
        contamination.AGGREGATE: (slice(60, 70), slice(60, 70)),
        contamination.CONTAMINATION: (slice(60, 70), slice(100, 110)),
    }
    maps = np.zeros((contamination.N_MAPS, *shape), np.float32)
    for area in areas.values():
        bad[area] = True
    maps[1][areas[contamination.ICE]] = 20
    maps[4][areas[contamination.AGGREGATE]] = 20
    maps[3][areas[contamination.CONTAMINATION]] = 20
    # Carbon is so by its place and size, whatever else it looks like.
    maps[0][areas[contamination.CARBON_FILM]] = 20
    limits = Limits(np.ones(contamination.N_MAPS), np.full(contamination.N_MAPS, 2.0))
    kinds = kinds_of(bad, maps, limits, disk)
    for kind, area in areas.items():
        assert (kinds[area] == kind).all()
    assert ((kinds == -1) == ~bad).all()
    assert contamination.WORDS[kinds[5, 5]] == "carbon"
    # As large, but not at the edge; at the edge, but small.
    inner = np.roll(bad, (3, 3), axis=(0, 1))
    shifted = kinds_of(inner, np.roll(maps, (3, 3), axis=(1, 2)), limits, disk)
    assert contamination.WORDS[shifted[10, 10]] == "ice"
    assert contamination.WORDS[kinds_of(bad, maps, limits, 10 * disk)[5, 5]] == "ice"
    assert (kinds_of(np.zeros(shape, bool), maps, limits, disk) == -1).all()


@pytest.mark.slow
@pytest.mark.parametrize("edge", [(slice(0, 70),), (slice(None), slice(-70, None))])
def test_dark_film_at_the_edge_is_carbon(edge):
    _, _, learned = with_square()
    image = micrograph(30)[0]
    image[edge] -= 3
    surface = level(image, 3 * DIAMETER)
    maps = contamination_maps(surface, DIAMETER, learned.sign)
    bad = contaminated(maps, learned.limits, surface.usable)
    kinds = kinds_of(bad, maps, learned.limits, np.pi * (DIAMETER / 2) ** 2)
    named = kinds[bad]
    assert len(named) > 3000
    assert (named == contamination.CARBON_FILM).mean() > 0.9


def test_without_is_what_is_farther_than_the_margin():
    usable, bad = np.ones((30, 40), bool), np.zeros((30, 40), bool)
    usable[0] = False
    assert without(usable, bad, 5.0) is usable
    bad[10, 12] = True
    row, column = np.ogrid[:30, :40]
    np.testing.assert_array_equal(without(usable, bad, 5.0), usable & (np.hypot(row - 10, column - 12) > 5))


# All of it.


@pytest.mark.slow
def test_learning_twice_gives_the_same_bits():
    images, _, learned = with_square()
    copies = [image.copy() for image in images]
    again = learn_picks(copies, 1, DIAMETER)
    for one, other in zip(images, copies, strict=True):
        np.testing.assert_array_equal(one, other)

    def leaves(found):
        if isinstance(found, tuple):
            return [leaf for part in found for leaf in leaves(part)]
        return [np.asarray(found)]

    one, other = leaves(learned), leaves(again)
    assert len(one) == len(other) > 20
    for before, after in zip(one, other, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.slow
def test_learned_picks_keep_the_disks_and_not_the_noise():
    images, places, learned = with_square()
    right, kept, wanted = 0, 0, 0
    for image, some in zip(images, places, strict=True):
        surface = level(image, 3 * DIAMETER)
        maps = contamination_maps(surface, DIAMETER, learned.sign)
        bad = contaminated(maps, learned.limits, surface.usable)
        area = without(surface.usable, bad, 0.25 * DIAMETER)
        response = response_of(surface, learned.template, area)
        found = find_places(
            surface, response, learned.template, area, learned.width, 0.65 * DIAMETER, learned.sign
        )
        parts = learned.probabilities(found)
        assert parts.shape == (len(found.row), 2)
        # A ten thousandth is added so that no view is quite sure.
        assert (parts > 0).all() and (parts < 1 + 2e-4).all()
        keep = parts[:, 0] >= learned.cut
        there = some[area[tuple(np.rint(some).astype(int).T)]]
        apart = np.hypot(found.row[keep] - there[:, :1], found.column[keep] - there[:, 1:])
        right += (apart.min(axis=1) < DIAMETER / 2).sum()
        wanted += len(there)
        kept += keep.sum()
    assert wanted > 60
    assert right > 0.75 * wanted
    assert right > 0.75 * kept


@pytest.mark.slow
def test_bright_particles_are_told_from_dark_ones():
    images = [micrograph(seed, sign=1, depth=1.0)[0] for seed in (2, 3)]
    assert learn_picks(images, 1, DIAMETER).sign == 1


def test_noise_and_nothing_teach_no_picks():
    images = [noise([seed, 31], (160, 200)) for seed in range(2)]
    assert learn_picks(images, 1, DIAMETER) is None
    assert learn_picks([np.full((60, 60), value, np.float32) for value in (3, np.nan)], 1, DIAMETER) is None
    assert find_diameter([np.zeros((90, 90), np.float32)], 1, 5.0) is None


@examples
@given(st.floats(0.3, 20.0), st.integers(64, 12000))
def test_widths_to_start_with_ascend_and_fit_the_micrograph(pixel_size, side):
    for size in (pixel_size, float("nan")):
        widths = start_widths(size, side)
        assert len(widths) and widths[0] >= 8
        np.testing.assert_allclose(np.diff(np.log(widths)), np.log(1.3))
        assert len(widths) == 1 or widths[-1] <= side / 5 * (1 + 1e-9)
        # A width takes at least as many pixels as learning needs.
        assert widths[0] / search_binning(size, side) >= 8
    assert picking_binning(15) == 1 and picking_binning(33) == 3
    across = side / 3
    assert across / picking_binning(across) >= min(across, 9.6)
