"""Maxima of micrographs: where a blob picker would pick."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsort._checks import InputError
from fastsort.images import blob_maxima
from fastsort.images.picks import NARROW, WIDE, blob_response


def with_disks(places, radius=7, height=2.0, shape=(110, 150), seed=0):
    image = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    row, column = np.ogrid[: shape[0], : shape[1]]
    for y, x in places:
        image[np.hypot(row - y, column - x) < radius] += height
    return image


PLACES = [(20, 30), (60, 100), (90, 40), (3, 145)]


@pytest.mark.parametrize("sign", [1, -1])
def test_disks_are_the_highest_places_also_at_the_edge(sign):
    found = blob_maxima(sign * with_disks(PLACES), 7, 14, bright=sign > 0)
    highest = list(zip(found.row[:4].tolist(), found.column[:4].tolist(), strict=True))
    for y, x in PLACES[:3]:
        assert min(np.hypot(y - row, x - column) for row, column in highest) < 2
    # Beyond the edge the disk goes on mirrored, so its middle lies nearer to the edge.
    assert min(np.hypot(3 - row, 145 - column) for row, column in highest) < 7
    assert found.height[3] > 1.5 * found.height[4]
    other = blob_maxima(sign * with_disks(PLACES), 7, 14, bright=sign < 0)
    assert other.height[0] < found.height[3]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(1.0, 30.0), st.integers(5, 60), st.integers(5, 60))
def test_places_are_apart_sorted_and_maximal(seed, distance, height, width):
    image = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    found = blob_maxima(image, 3, distance)
    places = np.column_stack([found.row, found.column])
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(places))
    assert not len(places) or apart.min() >= distance
    assert (np.diff(found.height) <= 0).all() and (found.height > 0).all()
    # All maxima that were left out lie near a higher one.
    everything = blob_maxima(image, 3, 1e-3)
    for row, column, value in zip(*everything, strict=True):
        near = np.hypot(found.row - row, found.column - column) < distance
        assert (found.height[near] >= value).any()


def test_unit_and_offset_of_the_pixels_do_not_matter():
    image = with_disks(PLACES)
    one, other = blob_maxima(image, 7, 14), blob_maxima(1000 + 32 * image, 7, 14)
    np.testing.assert_array_equal(one.row[:8], other.row[:8])
    np.testing.assert_allclose(one.height[:8], other.height[:8], rtol=1e-2)


def test_unusable_and_strong_pixels_do_not_hide_particles():
    image = with_disks(PLACES[:3])
    broken = image.copy()
    broken[50:54] = np.nan
    broken[5, 5], broken[100, 120] = np.inf, 1e6
    before, found = blob_maxima(image, 7, 14), blob_maxima(broken, 7, 14)
    assert np.isfinite(found.height).all()
    for row, column in zip(before.row[:3], before.column[:3], strict=True):
        assert np.hypot(found.row[:3] - row, found.column[:3] - column).min() < 3


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 30)),
        np.full((40, 30), 7.0),
        np.full((40, 30), np.nan),
        np.zeros((0, 5)),
        np.ones((1, 1)),
    ],
)
def test_nothing_is_found_where_nothing_is_shown(image):
    assert [len(column) for column in blob_maxima(image.astype(np.float32), 5, 10)] == [0, 0, 0]


@pytest.mark.parametrize("wrong", [{"radius": 0}, {"distance": -1}, {"image": np.zeros((2, 5, 5))}])
def test_what_is_no_micrograph_or_no_length_is_refused(wrong):
    with pytest.raises(InputError):
        blob_maxima(**{"image": np.zeros((9, 9), np.float32), "radius": 2, "distance": 3, **wrong})


def test_response_of_oblong_images_is_a_difference_of_gaussians():
    point = np.zeros((1, 64, 90), np.float32)
    point[0, 30, 41] = 1
    square = (np.arange(64)[:, None] - 30) ** 2 + (np.arange(90) - 41) ** 2
    narrow, wide = (
        np.exp(-square / (2 * (part * 6) ** 2)) / (2 * np.pi * (part * 6) ** 2) for part in (NARROW, WIDE)
    )
    np.testing.assert_allclose(blob_response(point, 6)[0], narrow - wide, atol=2e-5)
