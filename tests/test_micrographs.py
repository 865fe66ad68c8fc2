"""Micrographs: where particles lie in them, and which are better left out."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from scipy.stats import beta, spearmanr

from fastsort._checks import InputError
from fastsort.decide.micrographs import summarize_micrographs
from fastsort.particles.mrc import write_stack
from fastsort.particles.open import open_particles
from fastsort.particles.places import Places, micrograph_places
from fastsort.report.micrographs import write_micrographs


def opened(folder, labels, rows, optics="", **options):
    """Open a table; names of images are made."""
    write_stack(folder / "a.mrcs", [np.zeros((9, 16, 16), np.float32)], 1.0, 9, 16)
    head = "".join(f"_rln{label}\n" for label in ["ImageName", *labels])
    body = "".join(f"{i}@a.mrcs {row}\n" for i, row in enumerate(rows, 1))
    path = folder / "p.star"
    path.write_text(f"{optics}\ndata_particles\n\nloop_\n{head}{body}")
    return open_particles(path, **options)


def test_places_are_read_from_the_table_and_its_optics_groups(tmp_path):
    optics = (
        "data_optics\nloop_\n_rlnOpticsGroup\n_rlnMicrographOriginalPixelSize\n_rlnImagePixelSize\n"
        "7 0.5 2\n3 0.75 2\n"
    )
    labels = ["MicrographName", "CoordinateX", "CoordinateY", "OpticsGroup", "DefocusU", "DefocusV"]
    rows = ["b.mrc 10.5 20 3 9000 8000", "a.mrc -1e2 7 7 5000 7000", "b.mrc nan 9 3 10000 9000"]
    places = micrograph_places(opened(tmp_path, labels, rows, optics))
    assert places.names == ["b.mrc", "a.mrc"]
    assert places.micrograph.tolist() == [0, 1, 0] and places.micrograph.dtype == np.intp
    np.testing.assert_array_equal(places.x, [10.5, -100, math.nan])
    assert places.y.tolist() == [20, 7, 9]
    assert places.coordinate_pixel_size.tolist() == [0.75, 0.5, 0.75]
    assert places.defocus.tolist() == [8500, 6000, 9500]

    binned = optics.replace("_rlnImagePixelSize\n", "_rlnImagePixelSize\n_rlnMicrographPixelSize\n")
    binned = binned.replace(" 2\n", " 2 1.25\n")
    places = micrograph_places(opened(tmp_path, labels, rows, binned))
    assert places.coordinate_pixel_size.tolist() == [1.25] * 3


def test_places_of_relion_30_and_of_poor_tables(tmp_path):
    labels = ["MicrographName", "CoordinateX", "DetectorPixelSize", "Magnification", "DefocusU"]
    places = micrograph_places(opened(tmp_path, labels, ["a 1 5 25000 7000", "a 2 5 25000 8000"]))
    assert places.x is None and places.y is None
    assert places.coordinate_pixel_size.tolist() == [2, 2]
    assert places.defocus.tolist() == [7000, 8000]
    bare = micrograph_places(opened(tmp_path, ["MicrographName"], ["a", "b"]))
    assert bare.defocus is None and np.isnan(bare.coordinate_pixel_size).all()
    zero = opened(tmp_path, labels, ["a 1 5 0 7000"], pixel_size=1)
    assert np.isnan(micrograph_places(zero).coordinate_pixel_size).all()
    assert micrograph_places(opened(tmp_path, ["CoordinateX", "CoordinateY"], ["1 2"])) is None
    assert micrograph_places(open_particles(tmp_path / "a.mrcs")) is None
    with pytest.raises(InputError, match="_rlnCoordinateY must be a number"):
        micrograph_places(opened(tmp_path, ["MicrographName", "CoordinateX", "CoordinateY"], ["a 1 left"]))


def places_of(counts, x=None, y=None, defocus=None):
    """Return places with so many images in each micrograph, one micrograph after the other."""
    micrograph = np.repeat(np.arange(len(counts)), np.array(counts, int))
    names = [f"Micrographs/m{i}.mrc" for i in range(len(counts))]
    if defocus is not None:
        defocus = np.array(defocus, float)[micrograph]
    return Places(micrograph, names, x, y, np.full(len(micrograph), math.nan), defocus)


def shares(counts, junk):
    """Return the junk probability of images of which exactly so many are junk in each micrograph."""
    marks = [np.arange(n) < k for n, k in zip(counts, junk, strict=True)]
    return np.concatenate([[], *marks]).astype(float)


def summary_of(counts, junk, **places):
    probability = shares(counts, junk)
    return summarize_micrographs(places_of(counts, **places), probability < 0.5, probability, probability)


def test_counts_shares_and_means():
    places = places_of([3, 2, 1], defocus=[1e4, 2e4, math.nan])
    keep = [True, False, False, True, True, False]
    score = [0.5, 1.5, math.inf, 2.0, math.nan, math.inf]
    table = summarize_micrographs(places, keep, score, [0.2, 0.9, 1.0, math.nan, 0.4, math.nan])
    assert table.name == places.names
    assert table.n_images.tolist() == [3, 2, 1] and table.n_kept.tolist() == [1, 2, 0]
    np.testing.assert_allclose(table.junk_share, [0.7, 0.2, 1.0])
    np.testing.assert_array_equal(table.mean_score, [1.0, 2.0, math.nan])
    np.testing.assert_array_equal(table.defocus, [1e4, 2e4, math.nan])
    assert not table.drop.any() and table.trends == {}


def test_a_micrograph_of_junk_among_good_ones_is_dropped():
    rng = np.random.default_rng(0)
    counts = rng.integers(50, 200, 200)
    junk = rng.binomial(counts, rng.beta(5, 40, 200))
    junk[[17, 80]] = counts[[17, 80]] * 0.9
    table = summary_of(counts, junk)
    assert np.flatnonzero(table.drop).tolist() == [17, 80]


def test_the_share_must_be_sure_and_above_a_half_and_above_the_others():
    # A tenth of junk, and one micrograph of junk alone: dropped from 28 images on.
    dropped = [summary_of([100] * 99 + [n], [10] * 99 + [n]).drop[-1] for n in range(1, 60)]
    assert np.flatnonzero(dropped).tolist() == list(range(27, 59))
    # Many images, far above the others, but less than half junk.
    assert not summary_of([1000] * 50, [50] * 49 + [480]).drop.any()
    assert summary_of([1000] * 50, [50] * 49 + [560]).drop[-1]
    # The others lie 0.05 from their median, which is a standard deviation of 0.074: three above it is 0.62.
    others = [350] * 20 + [400] + [450] * 19
    assert not summary_of([*[1000] * 40, 2000], [*others, 1220]).drop.any()
    assert summary_of([*[1000] * 40, 2000], [*others, 1320]).drop[-1]
    # Mostly junk like all the others.
    rng = np.random.default_rng(1)
    assert not summary_of([200] * 300, rng.binomial(200, 0.7, 300)).drop.any()
    assert not summary_of([*[500] * 40, 5000], [*[500] * 40, 5000]).drop.any()
    # Mostly junk, and some of them among others that differ as much.
    assert not summary_of([300] * 40, np.linspace(0, 285, 40).astype(int)).drop.any()


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.8])
def test_chance_alone_drops_nothing(rate):
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 120, 3000)
    assert not summary_of(counts, rng.binomial(counts, rate)).drop.any()


def test_the_bound_is_the_quantile_of_the_posterior():
    counts, junk = np.array([40, 60, 80, 30]), np.array([4, 6, 9, 27])
    prior = 20 * (junk.sum() + 0.5) / (counts.sum() + 1)
    a, b = prior + junk, 20 - prior + counts - junk
    share = junk / counts
    threshold = max(0.5, np.median(share) + 3 * 1.4826 * np.median(abs(share - np.median(share))))
    lower = beta.ppf(0.05, a, b)
    assert lower[3] > threshold > lower[2]
    assert summary_of(counts, junk).drop.tolist() == (lower > threshold).tolist()


def test_one_or_no_micrograph():
    assert summary_of([500], [450]).drop.tolist() == [False]
    table = summary_of([], [])
    assert table.name == [] and table.drop.shape == (0,) and table.trends == {}


def random_places(rng, n, m):
    counts = np.full(m, n // m)
    defocus = rng.uniform(5e3, 3e4, m)
    return places_of(counts, *rng.uniform(0, 4000, (2, n)), defocus), counts


def test_trends_are_spearmans_correlations():
    rng = np.random.default_rng(3)
    places, _ = random_places(rng, 6000, 100)
    edge = np.minimum.reduce([places.x, 4000 - places.x, places.y, 4000 - places.y])
    junk = (0.6 - edge / 4000 + places.defocus / 1e5 + rng.normal(0, 0.2, 6000)).clip(0, 1)
    junk[:5] = math.nan
    places.x[7] = math.nan
    table = summarize_micrographs(places, np.ones(6000, bool), junk, junk)
    assert set(table.trends) == {"defocus", "edge_distance"}
    assert table.trends["defocus"] > 0.5 and table.trends["edge_distance"] < -0.4

    used = np.where(np.isfinite(junk), junk, 0)
    inside = np.isfinite(places.x)
    x, y, used = places.x[inside], places.y[inside], used[inside]
    edge = np.minimum.reduce([x - x.min(), x.max() - x, y - y.min(), y.max() - y])
    assert table.trends["edge_distance"] == pytest.approx(spearmanr(used, edge).statistic, abs=1e-12)
    expected = spearmanr(table.junk_share, table.defocus).statistic
    assert table.trends["defocus"] == pytest.approx(expected, abs=1e-12)

    across = (places.y > 2000).astype(float)
    table = summarize_micrographs(places, across < 1, across, across)
    assert set(table.trends) == {"y"}
    assert table.trends["y"] == pytest.approx(spearmanr(across[inside], y).statistic, abs=1e-12)


def test_a_trend_needs_a_p_value_below_one_in_a_thousand():
    rng = np.random.default_rng(4)
    both = set()
    for _ in range(300):
        places, _ = random_places(rng, 40, 4)
        junk = (places.x / 4000 + rng.normal(0, 0.5, 40)).clip(0, 1)
        trends = summarize_micrographs(places, junk < 0.5, junk, junk).trends
        reference = spearmanr(junk, places.x)
        assert ("x" in trends) == (reference.pvalue < 0.001)
        both.add("x" in trends)
    assert both == {True, False}


def test_constant_columns_have_no_trend_and_perfect_ones_are_one():
    places = places_of([10] * 4, np.full(40, 5.0), np.arange(40.0), [1e4] * 4)
    table = summarize_micrographs(places, np.ones(40, bool), np.zeros(40), np.zeros(40))
    assert table.trends == {}
    junk = np.linspace(0, 1, 40)
    trends = summarize_micrographs(places, junk < 0.5, junk, junk).trends
    assert set(trends) == {"y"} and trends["y"] == pytest.approx(1)


def test_a_few_micrographs_that_rise_together_are_no_trend():
    few, enough = (summary_of([10] * m, range(m), defocus=range(m)).trends for m in (7, 11))
    assert few == {} and enough == {"defocus": pytest.approx(1)}


def test_entries_must_be_one_for_each_image():
    with pytest.raises(InputError, match=r"score must have shape \(3,\).*got \(2,\)"):
        summarize_micrographs(places_of([2, 1]), [True] * 3, [1, 2], [0, 0, 0])


def test_the_file_holds_what_the_table_says(tmp_path):
    places = places_of([100] * 9 + [50], defocus=[*[12345.67] * 9, math.nan])
    places.names[0] = 'odd, "name".mrc'
    junk = shares([100] * 9 + [50], [10] * 9 + [49])
    score = np.where(np.arange(950) < 100, math.nan, junk)
    table = summarize_micrographs(places, junk < 0.5, score, junk)
    write_micrographs(tmp_path / "micrographs.csv", table)
    with open(tmp_path / "micrographs.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["micrograph", "images", "kept", "junk_share", "mean_score", "defocus_angstrom", "drop"]
    assert rows[1] == ['odd, "name".mrc', "100", "90", "0.1", "nan", "12345.67", "0"]
    assert rows[10] == ["Micrographs/m9.mrc", "50", "1", "0.98", "0.98", "nan", "1"]
    assert len(rows) == 11
