"""Duplicates: particles that were picked more than once, and images that stand in a set twice."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from fastsort._checks import InputError
from fastsort.decide.duplicates import find_duplicates
from fastsort.particles.mrc import write_stack
from fastsort.particles.open import open_particles
from fastsort.particles.places import Places


def places_at(x, y, micrograph=None):
    """Return places in one micrograph, or in those given by number."""
    n = len(x)
    micrograph = np.zeros(n, np.intp) if micrograph is None else np.array(micrograph, np.intp)
    names = [f"{i}.mrc" for i in range(max(micrograph, default=-1) + 1)]
    return Places(micrograph, names, np.array(x, float), np.array(y, float), np.full(n, math.nan), None)


def naive_duplicates(places, distance, score):
    """Visit images from the best up; ask every one that was kept before."""
    kept = []
    duplicate = np.zeros(len(score), bool)
    for i in sorted(range(len(score)), key=lambda i: (math.isnan(score[i]), score[i], i)):
        near = any(
            places.micrograph[i] == places.micrograph[j]
            and math.hypot(places.x[i] - places.x[j], places.y[i] - places.y[j]) < distance
            for j in kept
        )
        duplicate[i] = near
        if not near:
            kept.append(i)
    return duplicate


picks = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(-12, 12),
        st.integers(-12, 12),
        st.sampled_from([0.0, 1.0, 2.5, math.inf, math.nan]) | st.floats(0, 3),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(picks, st.integers(1, 9))
def test_duplicates_are_those_of_the_plain_definition(rows, distance):
    micrograph, x, y, score = (list(column) for column in zip(*rows, strict=True)) if rows else [[]] * 4
    places = places_at(x, y, micrograph)
    found = find_duplicates(places, distance, score)
    np.testing.assert_array_equal(found, naive_duplicates(places, distance, score))

    def near(i, j):
        apart = math.hypot(x[i] - x[j], y[i] - y[j])
        return micrograph[i] == micrograph[j] and apart < distance

    singles = np.flatnonzero(~found).tolist()
    assert not any(near(i, j) for i, j in itertools.combinations(singles, 2))
    for i in np.flatnonzero(found).tolist():
        better = [j for j in singles if near(i, j) and (score[j] <= score[i] or math.isnan(score[i]))]
        assert better, f"image {i} is a duplicate of nothing"


@settings(max_examples=40, deadline=None)
@given(picks, st.randoms(use_true_random=False))
def test_the_order_of_the_input_is_of_no_matter_where_scores_differ(rows, random):
    micrograph, x, y = (np.array([row[i] for row in rows], int) for i in range(3))
    score = np.random.default_rng(0).permutation(len(rows))
    order = np.array(random.sample(range(len(rows)), len(rows)), int)
    found = find_duplicates(places_at(x, y, micrograph), 5, score)
    shuffled = find_duplicates(places_at(x[order], y[order], micrograph[order]), 5, score[order])
    np.testing.assert_array_equal(shuffled, found[order])


def test_the_best_of_a_group_stays_and_a_duplicate_makes_no_others():
    row = places_at([0, 6, 12, 40], [0, 0, 0, 0])
    assert find_duplicates(row, 7, [1, 2, 3, 4]).tolist() == [False, True, False, False]
    assert find_duplicates(row, 7, [2, 1, 2, 4]).tolist() == [True, False, True, False]
    assert find_duplicates(row, 7, [1, 1, 1, 1]).tolist() == [False, True, False, False]
    assert find_duplicates(row, 7, [math.inf, 3, math.nan, 0]).tolist() == [True, False, True, False]


def test_closer_means_closer_and_only_in_the_same_micrograph():
    assert not find_duplicates(places_at([0, 3], [0, 4]), 5, [1, 2]).any()
    assert find_duplicates(places_at([0, 3], [0, 4]), 5.001, [1, 2]).tolist() == [False, True]
    assert not find_duplicates(places_at([0, 0], [0, 0], [0, 1]), 5, [1, 2]).any()
    assert find_duplicates(places_at([0, 0, 1e8], [0, 0, 0]), 1e200, [3, 2, 1]).tolist() == [
        True,
        True,
        False,
    ]


def test_offsets_are_rows_and_columns_from_the_pick():
    two = places_at([100, 140], [50, 50])
    assert not find_duplicates(two, 10, [1, 2]).any()
    towards_each_other = [[0, 20], [0, -19]]
    assert find_duplicates(two, 10, [1, 2], offset_px=towards_each_other).tolist() == [False, True]
    along_y = [[20, 0], [-19, 0]]
    assert not find_duplicates(two, 10, [1, 2], offset_px=along_y).any()
    half_known = [[math.nan, math.nan], [0, -39]]
    assert find_duplicates(two, 10, [1, 2], offset_px=half_known).tolist() == [False, True]
    assert two.x.tolist() == [100, 140], "the places given were changed"


def test_images_without_a_place_are_no_duplicates():
    places = places_at([math.nan, math.nan, 5, 5, math.inf], [5, 5, 5, 5, 5])
    assert find_duplicates(places, 10, np.zeros(5)).tolist() == [False, False, False, True, False]
    assert not find_duplicates(places._replace(x=None, y=None), 10, np.zeros(5)).any()
    assert find_duplicates(places_at([], []), 10, []).tolist() == []


def test_a_crowd_in_one_place_is_no_burden():
    n = 200_000
    score = np.random.default_rng(0).normal(size=n)
    found = find_duplicates(places_at(np.zeros(n), np.zeros(n)), 10, score)
    assert np.flatnonzero(~found).tolist() == [score.argmin()]


def test_a_large_set_has_no_two_singles_within_the_distance():
    rng = np.random.default_rng(1)
    n, distance = 100_000, 120.0
    places = places_at(*rng.uniform(0, 4096, (2, n)), rng.integers(0, 300, n))
    score = rng.normal(size=n)
    found = find_duplicates(places, distance, score)
    assert 0.2 < found.mean() < 0.6
    # Micrographs set far apart along a third axis, so that one tree holds them all.
    points = np.stack([places.x, places.y, places.micrograph * 1e5], axis=1)
    singles = cKDTree(points[~found])
    assert len(singles.query_pairs(distance * (1 - 1e-9))) == 0
    apart, nearest = singles.query(points[found], k=8, distance_upper_bound=distance)
    of_single = np.append(score[~found], math.inf)[nearest]
    assert (np.where(np.isfinite(apart), of_single, math.inf).min(axis=1) < score[found]).all()


@pytest.mark.parametrize(
    ("distance", "score", "offset", "message"),
    [
        (0, [1, 2], None, "distance_px must be positive; got 0 px"),
        (math.nan, [1, 2], None, "distance_px must be positive"),
        (5, [1], None, r"score must have shape \(2,\)"),
        (5, [1, 2], [1, 2], r"offset_px must have shape \(2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(distance, score, offset, message):
    with pytest.raises(InputError, match=message):
        find_duplicates(places_at([0, 1], [0, 1]), distance, score, offset_px=offset)


def test_images_named_twice_are_found_by_file_and_section(tmp_path):
    images = np.zeros((3, 16, 16), np.float32)
    for name in ("a.mrcs", "b.mrcs"):
        write_stack(tmp_path / name, [images], 1.0, 3, 16)
    (tmp_path / "again.mrcs").symlink_to("a.mrcs")
    names = ["2@a.mrcs", "2@b.mrcs", "000002@a.mrcs", "1@a.mrcs", "2@./a.mrcs", "2@again.mrcs", "3@b.mrcs"]
    path = tmp_path / "p.star"
    path.write_text("data_\nloop_\n_rlnImageName #1\n" + "".join(f"{name}\n" for name in names))
    assert open_particles(path).store.first_named().tolist() == [0, 1, 0, 3, 0, 0, 6]
    assert open_particles(tmp_path / "a.mrcs").store.first_named().tolist() == [0, 1, 2]
    assert open_particles(images).store.first_named().tolist() == [0, 1, 2]
