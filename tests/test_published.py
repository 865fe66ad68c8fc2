"""The published radial filter: the compiled one against naive.py, and against the rules themselves."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import mrcfile
import naive
import numpy as np
import pytest
import scipy.ndimage
import sklearn.cluster
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsort._checks import InputError
from fastsort.radial.filter import radial_filter
from fastsort.radial.published import gaussian_sum_correlation

REAL = Path(__file__).parents[2] / "shared" / "data" / "real"

# What float32 may move a value of the correlation map by, in standard deviations of that map.
TOLERANCE = 1e-4
FIELDS = ("keep", "score", "reason", "centre", "n_clusters", "n_scattered", "peak")
# What is decided from the positions of the peaks alone: no rounding, once the ranking is clear.
DECISIONS = ("keep", "reason", "n_clusters", "n_scattered", "centre")

# Compiling takes longer than any deadline.
examples = settings(max_examples=60, deadline=None)

seeds = st.integers(0, 2**32 - 1)
boxes = st.integers(16, 72)


def published(images, radius, n_peaks):
    return radial_filter(images, radius=radius, n_peaks=n_peaks, preset="published")


def noise_and_blobs(seed, n, d):
    """Return images of white noise with no to three Gaussian blobs anywhere, edges included."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:d, :d]
    images = rng.normal(size=(n, d, d))
    for image in images:
        for _ in range(rng.integers(0, 4)):
            centre_y, centre_x = rng.uniform(0, d, size=2)
            width = rng.uniform(0.03, 0.15) * d
            squared_distance = (y - centre_y) ** 2 + (x - centre_x) ** 2
            image += rng.uniform(0, 3) * np.exp(-squared_distance / (2 * width**2))
    return images.astype(np.float32)


def radii(d):
    """Radii in quarters of a pixel: exact in binary, so that "equal to the radius" means it."""
    return st.integers(1, 2 * d).map(lambda quarters: quarters / 4)


def ranking_is_clear(images, n_peaks):
    """Whether float32 can tell the n_peaks + 1 largest values of each correlation map apart.

    Where it cannot, another pixel may rightly enter, or a point between two clusters may join the other.
    """
    maps = naive.gaussian_sum(images).reshape(len(images), -1)
    largest = np.sort(maps, axis=1)[:, ::-1][:, : n_peaks + 1]
    smallest_gap = -np.diff(largest, axis=1).max(axis=1)
    return smallest_gap > TOLERANCE * maps.std(axis=1)


def assert_decisions_equal(actual, expected, where=slice(None)):
    for name in DECISIONS:
        np.testing.assert_array_equal(getattr(actual, name)[where], getattr(expected, name)[where], name)


def assert_identical(actual, expected, which=slice(None)):
    """Assert that `actual` holds the same bits as the images `which` of `expected`."""
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name)[which], name)


# The slow version against its sources.


@pytest.mark.parametrize(
    ("d", "k"), [(16, 5), (25, 8), (33, 10), (35, 10), (45, 14), (48, 14), (55, 16), (65, 20)]
)
def test_filter_width_rounds_half_to_even(d, k):
    # 0.3 d is 7.5, 10.5, 13.5, 16.5 and 19.5 for 25, 35, 45, 55 and 65.
    assert naive.filter_width(d) == k
    assert naive.gaussian_sum_kernel(d).shape == (k, k)


@pytest.mark.parametrize("d", [16, 20, 33])
def test_naive_map_sums_the_pixels_that_the_table_names(d):
    k = naive.filter_width(d)
    image = noise_and_blobs(1, 1, d)[0]
    # Mode "wrap" is circular; scipy's window starts k//2 pixels before the output pixel, ours k-1-k//2.
    expected = scipy.ndimage.correlate(
        image.astype(np.float64), naive.gaussian_sum_kernel(d), mode="wrap", origin=-1 if k % 2 == 0 else 0
    )
    first, last = -(k - 1) + k // 2, k // 2
    window = [(17 + shift) % d for shift in range(first, last + 1)]
    by_hand = (naive.gaussian_sum_kernel(d) * image[np.ix_(window, window)]).sum()
    actual = naive.gaussian_sum(image[np.newaxis])[0]
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    np.testing.assert_allclose(actual[17 % d, 17 % d], by_hand, atol=1e-12)


def test_naive_peaks_take_equal_values_by_position():
    one_map = np.array([[1, 5, 3], [5, 0, 3], [3, 9, 5]])
    expected = [(2, 1), (0, 1), (1, 0), (2, 2), (0, 2), (1, 2)]
    np.testing.assert_array_equal(naive.top_peaks(one_map, 6), expected)


@examples
@given(data=st.data(), d=st.integers(3, 24), min_samples=st.integers(1, 9))
def test_naive_dbscan_is_that_of_scikit_learn(data, d, min_samples):
    pixel = st.tuples(st.integers(0, d - 1), st.integers(0, d - 1))
    points = np.array(data.draw(st.lists(pixel, min_size=1, max_size=30, unique=True)))
    eps = data.draw(radii(d))
    expected = sklearn.cluster.DBSCAN(eps=eps, min_samples=min_samples).fit_predict(points)
    np.testing.assert_array_equal(naive.dbscan(points, eps, min_samples), expected)


# The correlation map.


@pytest.mark.slow
@examples
@given(seed=seeds, d=boxes, n=st.integers(1, 3))
def test_map_is_the_naive_one(seed, d, n):
    images = noise_and_blobs(seed, n, d)
    actual, expected = gaussian_sum_correlation(images), naive.gaussian_sum(images)
    assert actual.dtype == np.float32
    assert actual.shape == images.shape
    for one, reference in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, reference, rtol=0, atol=TOLERANCE * reference.std())


@pytest.mark.parametrize("d", [16, 17, 20, 33, 48, 55, 65, 72])
@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_one_bright_pixel_paints_the_filter_around_itself_and_across_the_edges(d, corner):
    k = naive.filter_width(d)
    image = np.zeros((1, d, d), dtype=np.float32)
    image[0][corner] = 1
    expected = np.zeros((d, d))
    expected[:k, :k] = naive.gaussian_sum_kernel(d)
    expected = np.roll(expected, np.array(corner) - k // 2, axis=(0, 1))
    np.testing.assert_allclose(gaussian_sum_correlation(image)[0], expected, atol=1e-5 * expected.max())


# The whole filter against the slow one.


@pytest.mark.slow
@examples
@given(data=st.data(), seed=seeds, d=boxes, n_peaks=st.integers(1, 24), n=st.integers(1, 4))
def test_decisions_are_the_naive_ones(data, seed, d, n_peaks, n):
    radius = data.draw(radii(d))
    images = noise_and_blobs(seed, n, d)
    clear = ranking_is_clear(images, n_peaks)
    actual, expected = published(images, radius, n_peaks), naive.published_filter(images, radius, n_peaks)
    assert_decisions_equal(actual, expected, clear)
    map_std = naive.gaussian_sum(images).std(axis=(1, 2))
    assert (np.abs(actual.peak - expected.peak) <= TOLERANCE * map_std).all()


@pytest.mark.parametrize(("d", "radius"), [(33, 5), (32, 5), (48, 8), (55, 8)])
def test_decisions_are_the_naive_ones_at_the_sizes_of_the_paper(d, radius):
    images = noise_and_blobs(d, 200, d)
    clear = ranking_is_clear(images, 10)
    actual, expected = published(images, radius, 10), naive.published_filter(images, radius, 10)
    # Without these two the comparison could agree on very little.
    assert clear.mean() > 0.9
    assert all((expected.reason == reason).mean() > 0.05 for reason in ("valid", "noise", "partial"))
    assert_decisions_equal(actual, expected, clear)


def test_every_pixel_may_be_a_peak():
    images = noise_and_blobs(3, 4, 16)
    assert_decisions_equal(published(images, 1, 256), naive.published_filter(images, 1, 256))


@pytest.mark.parametrize("name", ["apoferritin_picks", "betagal_curated"])
@pytest.mark.parametrize("radius", [5, 8])
def test_decisions_are_the_naive_ones_on_real_particles(name, radius):
    path = REAL / f"{name}.mrcs"
    if not path.exists():
        pytest.skip(f"needs the real particles in {path.name}, which are not part of the project")
    with mrcfile.mmap(path, mode="r") as stack:
        which = np.linspace(0, len(stack.data) - 1, 300).astype(int)
        images = np.array(stack.data[which])
    clear = ranking_is_clear(images, 10)
    actual, expected = published(images, radius, 10), naive.published_filter(images, radius, 10)
    assert clear.mean() > 0.9
    assert 0.05 < expected.keep.mean() < 0.95
    assert (actual.reason == expected.reason)[clear].mean() >= 0.999
    assert (actual.keep == expected.keep)[clear].mean() >= 0.999
    # Close values seldom change a verdict: the unclear images are no excuse either.
    assert (actual.reason == expected.reason).mean() >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "std"), [(900, 30), (60000, 5)])
def test_counts_far_from_zero_lose_nothing(mean, std):
    # Whole numbers that float32 holds exactly, but whose sums are too coarse to rank in the second case,
    # unless the mean is taken off first.
    images = np.round(mean + std * noise_and_blobs(2, 400, 48)).astype(np.uint16)
    clear = ranking_is_clear(images, 10)
    assert clear.mean() > 0.9
    assert_decisions_equal(published(images, 8, 10), naive.published_filter(images, 8, 10), clear)


# The rules, one by one: images made so that their strongest points lie where we want them.

# Boxes whose filter has no frequency near zero: only there can the filter be undone. The zeros come with
# filters of even width in even boxes, which the comparisons with noise above include.
UNDOABLE_BOXES = (16, 17, 18, 22, 23, 24, 29, 30, 31, 33, 36, 37, 38, 49, 50)


def image_with_peaks(points, d):
    """Return an image whose correlation map is zero but for the points, the first the highest."""
    k = naive.filter_width(d)
    wanted = np.zeros((d, d))
    for rank, (y, x) in enumerate(points):
        wanted[y, x] = 2 - rank / len(points)
    padded = np.zeros((d, d))
    padded[:k, :k] = naive.gaussian_sum_kernel(d)
    transfer = np.fft.fft2(np.roll(padded, (-(k // 2), -(k // 2)), axis=(0, 1)))
    image = np.fft.ifft2(np.fft.fft2(wanted) / transfer).real.astype(np.float32)
    one_map = naive.gaussian_sum(image[np.newaxis])[0]
    np.testing.assert_array_equal(naive.top_peaks(one_map, len(points)), points)
    return image


def block(y, x, n):
    """Return n points filling a square of three by three pixels from its upper left corner (y, x)."""
    return [(y + i // 3, x + i % 3) for i in range(n)]


LEFT = [(15, 13), (15, 12), (14, 12), (16, 12)]
RIGHT = [(15, 17), (15, 18), (14, 18), (16, 18)]


class Rule(NamedTuple):
    """Points of an image of 30 px, strongest first, and what the filter must say of them."""

    points: list[tuple[int, int]]
    radius: float
    reason: str
    n_clusters: int
    n_scattered: int
    centre: tuple[int, int]


# At radius 5, 0 to 5 and 25 to 29 are near an edge. Of nine points three make a cluster, three may scatter.
RULES = {
    "one tight cluster": Rule(block(14, 14, 9), 5, "valid", 1, 0, (0, 0)),
    "as many scattered as allowed": Rule(
        [*block(14, 14, 6), (2, 15), (27, 15), (15, 2)], 5, "valid", 1, 3, (-1, 0)
    ),
    "one scattered too many": Rule(
        [*block(14, 14, 5), (2, 15), (27, 15), (15, 2), (15, 27)], 5, "noise", 1, 4, (-1, 0)
    ),
    "nothing but scattered": Rule(
        [(8, 8), (0, 0), (0, 15), (0, 29), (15, 0), (15, 29), (29, 0), (29, 15), (29, 29)],
        5,
        "noise",
        0,
        9,
        (-7, -7),
    ),
    "noise comes before partial": Rule(
        [*block(14, 14, 5), (1, 2), (1, 10), (1, 18), (1, 26)], 5, "noise", 1, 4, (-1, 0)
    ),
    "scattered along the top": Rule(
        [*block(14, 14, 6), (5, 7), (0, 15), (5, 23)], 5, "partial", 1, 3, (-1, 0)
    ),
    "all but one along the top": Rule(
        [*block(14, 14, 6), (6, 7), (0, 15), (5, 23)], 5, "valid", 1, 3, (-1, 0)
    ),
    "scattered along the bottom": Rule(
        [*block(14, 14, 6), (25, 7), (29, 15), (25, 23)], 5, "partial", 1, 3, (-1, 0)
    ),
    "all but one along the bottom": Rule(
        [*block(14, 14, 6), (24, 7), (29, 15), (25, 23)], 5, "valid", 1, 3, (-1, 0)
    ),
    "scattered along the left": Rule(
        [*block(14, 14, 6), (7, 5), (15, 0), (23, 5)], 5, "partial", 1, 3, (-1, 0)
    ),
    "scattered along the right": Rule(
        [*block(14, 14, 6), (7, 25), (15, 29), (23, 25)], 5, "partial", 1, 3, (-1, 0)
    ),
    "each along an edge, but not the same": Rule(
        [*block(14, 14, 7), (5, 15), (25, 15)], 5, "valid", 1, 2, (0, 0)
    ),
    "a single scattered point along an edge": Rule([*block(14, 13, 8), (15, 5)], 5, "partial", 1, 1, (0, -1)),
    "cluster centre on the limit": Rule(block(4, 14, 9), 5, "partial", 1, 0, (-10, 0)),
    "cluster centre inside the limit": Rule(block(5, 14, 9), 5, "valid", 1, 0, (-9, 0)),
    "cluster centre on the far limit": Rule(block(14, 24, 9), 5, "partial", 1, 0, (0, 10)),
    "cluster centre inside the far limit": Rule(block(14, 23, 9), 5, "valid", 1, 0, (0, 9)),
    # A half goes to the even number: 6.5 to 6, which is the radius, and 24.5 to 24, which is below 25.
    "half rounded down to the limit": Rule(
        [(y, x) for x in (13, 14, 15, 16) for y in (6, 7)], 6, "partial", 1, 0, (-9, -1)
    ),
    "half rounded down inside the far limit": Rule(
        [(y, x) for x in (13, 14, 15, 16) for y in (24, 25)], 5, "valid", 1, 0, (9, -1)
    ),
    # 5.5 goes to 6.
    "half rounded up inside the limit": Rule(
        [(y, x) for x in (13, 14, 15, 16) for y in (5, 6)], 5, "valid", 1, 0, (-9, -1)
    ),
    "two clusters, both inside": Rule([*block(10, 10, 5), *block(20, 20, 4)], 5, "valid", 2, 0, (-5, -4)),
    "the smaller cluster near an edge": Rule(
        [*block(14, 14, 6), (0, 3), (1, 3), (2, 3)], 5, "partial", 2, 0, (-1, 0)
    ),
    "of equal clusters the stronger": Rule([*block(20, 20, 4), *block(10, 10, 4)], 5, "valid", 2, 0, (5, 6)),
    "neighbours at exactly the radius": Rule(
        [(15, 15), (18, 19), (12, 11), (10, 15), (15, 20), (20, 15), (15, 10), (11, 12), (19, 18)],
        5,
        "valid",
        1,
        0,
        (0, 0),
    ),
    "distances do not go round the edges": Rule(
        [(15, 0), (14, 0), (16, 0), (15, 29), (14, 29), (16, 29)], 5, "partial", 2, 0, (0, -15)
    ),
    "one peak is a cluster": Rule([(12, 20)], 5, "valid", 1, 0, (-3, 5)),
    "one peak near an edge": Rule([(12, 25)], 5, "partial", 1, 0, (-3, 10)),
    # Of twelve points four make a cluster. The point (15, 15) touches one core point on either side,
    # and belongs to the cluster that was found first, which it makes the largest.
    "a point between two clusters, the left one stronger": Rule(
        [*LEFT, *RIGHT, (15, 15), (5, 15), (25, 15), (5, 5)], 2, "valid", 2, 3, (0, -2)
    ),
    "a point between two clusters, the right one stronger": Rule(
        [*RIGHT, *LEFT, (15, 15), (5, 15), (25, 15), (5, 5)], 2, "valid", 2, 3, (0, 2)
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    points, radius, *expected = RULES[rule]
    assert list(naive.published_verdict(points, 30, radius)) == expected
    actual = published(image_with_peaks(points, 30)[np.newaxis], radius, len(points))
    assert [
        actual.reason[0],
        actual.n_clusters[0],
        actual.n_scattered[0],
        tuple(actual.centre[0]),
    ] == expected
    assert actual.keep[0] == (actual.reason[0] == "valid")


@st.composite
def point_sets(draw):
    """Draw a box, a radius and distinct points, some anywhere and some crowded around a few of them."""
    d = draw(st.sampled_from(UNDOABLE_BOXES))
    coordinate, step = st.integers(0, d - 1), st.integers(-2, 2)
    anchors = draw(st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=3))
    crowded = st.tuples(st.sampled_from(anchors), step, step).map(
        lambda drawn: (min(max(drawn[0][0] + drawn[1], 0), d - 1), min(max(drawn[0][1] + drawn[2], 0), d - 1))
    )
    anywhere = st.tuples(coordinate, coordinate)
    points = draw(st.lists(crowded | crowded | crowded | anywhere, min_size=1, max_size=24, unique=True))
    radius = draw(st.integers(4, max(4, d)).map(lambda quarters: quarters / 4))
    return d, radius, points


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(case=point_sets())
def test_rules_on_any_set_of_points(case):
    d, radius, points = case
    image = image_with_peaks(points, d)
    actual = published(image[np.newaxis], radius, len(points))
    expected = naive.published_verdict(points, d, radius)
    assert actual.reason[0] == expected.reason
    assert (actual.n_clusters[0], actual.n_scattered[0]) == (expected.n_clusters, expected.n_scattered)
    assert tuple(actual.centre[0]) == expected.centre


# What must not matter.


@examples
@given(seed=seeds, d=boxes, n=st.integers(2, 6))
def test_permuting_the_images_permutes_the_results(seed, d, n):
    images = noise_and_blobs(seed, n, d)
    order = np.random.default_rng(seed).permutation(n)
    assert_identical(published(images[order], d / 6, 10), published(images, d / 6, 10), order)


@pytest.mark.slow
@examples
@given(seed=seeds, d=boxes, n=st.integers(2, 6))
def test_other_images_of_the_batch_do_not_matter(seed, d, n):
    images = noise_and_blobs(seed, n, d)
    # Far brighter neighbours, whose batch mean would drown the first image.
    images[1:] *= 1e4
    images[1:] += 1e6
    together = published(images, d / 6, 10)
    for i in range(n):
        assert_identical(published(images[i : i + 1], d / 6, 10), together, [i])


@examples
@given(
    seed=seeds,
    d=boxes,
    exponent=st.integers(-80, 80),
    mantissa=st.floats(1, 2),
    offset=st.floats(-10, 10),
)
def test_brightness_and_contrast_do_not_matter(seed, d, exponent, mantissa, offset):
    # Powers of two up to the limits of float32: squares of such values overflow, or vanish.
    images = noise_and_blobs(seed, 3, d)
    changed = ((images.astype(np.float64) * mantissa + offset) * 2.0**exponent).astype(np.float32)
    clear = ranking_is_clear(images, 10) & ranking_is_clear(changed, 10)
    before, after = published(images, d / 6, 10), published(changed, d / 6, 10)
    assert_decisions_equal(after, before, clear)


def test_noise_scores_higher_than_particles():
    rng = np.random.default_rng(6)
    y, x = np.mgrid[:33, :33] - 16
    noise = rng.normal(size=(40, 33, 33))
    particles = 3 * np.exp(-(y**2 + x**2) / (2 * 4**2)) + 0.3 * rng.normal(size=(40, 33, 33))
    result = published(np.concatenate([particles, noise]), 5, 10)
    assert result.keep[:40].all()
    assert np.isfinite(result.score).all()
    assert result.score[:40].mean() < result.score[40:].mean()


# Ugly input.


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6 / 3, 65504.0, 1e30, 1e-40])
@pytest.mark.parametrize("d", [16, 33])
def test_flat_image(value, d):
    images = noise_and_blobs(7, 5, d)
    before = published(images, 4, 10)
    images[2] = value
    after = published(images, 4, 10)
    assert after.reason[2] == "flat"
    assert not after.keep[2]
    others = [0, 1, 3, 4]
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(after, name)[others], getattr(before, name)[others], name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pixel", [(0, 0), (16, 16), (32, 32), slice(None)])
def test_bad_pixels(value, pixel):
    images = noise_and_blobs(8, 5, 33)
    before = published(images, 4, 10)
    images[2][pixel] = value
    after = published(images, 4, 10)
    assert after.reason[2] == "bad_pixels"
    assert not after.keep[2]
    others = [0, 1, 3, 4]
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(after, name)[others], getattr(before, name)[others], name)


def test_bad_pixels_in_an_otherwise_flat_image():
    images = np.ones((1, 16, 16), dtype=np.float32)
    images[0, 3, 5] = np.nan
    assert published(images, 4, 10).reason[0] == "bad_pixels"


def test_one_bright_pixel_is_not_flat():
    images = np.ones((1, 33, 33), dtype=np.float32)
    images[0, 16, 16] = 1.001
    assert published(images, 5, 10).reason[0] == "valid"


def test_one_image():
    images = noise_and_blobs(9, 1, 33)
    assert ranking_is_clear(images, 10).all()
    assert_decisions_equal(published(images, 5, 10), naive.published_filter(images, 5, 10))


def test_input_is_left_as_it_was():
    images = noise_and_blobs(10, 3, 33)
    images[1, 4, 4] = np.nan
    copy = images.copy()
    published(images, 5, 10)
    gaussian_sum_correlation(images)
    np.testing.assert_array_equal(images, copy)


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", "f8", ">f8", "i1", "<i2", ">i2", "u2"])
def test_any_type_of_number(dtype):
    # Whole numbers up to a hundred: every one of these types holds them exactly.
    counts = np.round(20 * noise_and_blobs(11, 8, 33)).clip(0, 100)
    expected = published(counts, 5, 10)
    assert set(expected.reason) <= {"valid", "noise", "partial"}
    assert_identical(published(counts.astype(dtype), 5, 10), expected)


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_read_only_memory_map(dtype, tmp_path):
    images = noise_and_blobs(12, 6, 33)
    np.save(tmp_path / "images.npy", images.astype(dtype))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert not mapped.flags.writeable
    assert_identical(published(mapped, 5, 10), published(images, 5, 10))
    np.testing.assert_array_equal(gaussian_sum_correlation(mapped), gaussian_sum_correlation(images))


@pytest.mark.parametrize(
    "view",
    [
        lambda images: images[::2],
        lambda images: images[:, ::-1, ::-1],
        lambda images: images.transpose(0, 2, 1),
        lambda images: images[:, 3:35, 1:33],
        lambda images: np.asfortranarray(images),
    ],
    ids=["every other", "reversed", "transposed", "window", "fortran"],
)
def test_not_contiguous(view):
    images = view(noise_and_blobs(13, 6, 36))
    assert not images.flags.c_contiguous
    assert_identical(published(images, 5, 10), published(images.copy(order="C"), 5, 10))


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((0, 33, 33)), {}, "no images"),
        (np.zeros((2, 16, 16)), {"n_peaks": 257}, "257"),
        (np.zeros((2, 33, 33)), {"n_peaks": 0}, "n_peaks"),
        (np.zeros((2, 33, 33)), {"n_peaks": -1}, "n_peaks"),
        (np.zeros((2, 33, 33)), {"n_peaks": 2.5}, "n_peaks"),
        (np.zeros((2, 33, 33)), {"radius": 0}, "radius"),
        (np.zeros((2, 33, 33)), {"radius": -3}, "radius"),
        (np.zeros((2, 33, 33)), {"radius": np.nan}, "radius"),
        (np.zeros((2, 33, 33)), {"radius": np.inf}, "radius"),
        (np.zeros((2, 33, 33)), {"preset": "publisht"}, "preset"),
        (np.zeros((33, 33)), {}, "shape"),
        (np.zeros((2, 33, 32)), {}, "square"),
        (np.zeros((2, 8, 8)), {}, "px wide"),
        (np.zeros((2, 33, 33), dtype=complex), {}, "real"),
    ],
    ids=[
        "none",
        "more peaks than pixels",
        "no peaks",
        "negative peaks",
        "half a peak",
        "radius zero",
        "radius negative",
        "radius nan",
        "radius infinite",
        "unknown preset",
        "one axis missing",
        "not square",
        "too small",
        "complex",
    ],
)
def test_refused(images, options, message):
    with pytest.raises(InputError, match=message):
        radial_filter(images, **{"radius": 5, "n_peaks": 10, "preset": "published", **options})
