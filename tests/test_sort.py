"""sort_particles: from files to a verdict, whatever the source, and whatever goes wrong on the way."""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
import tempfile
import time
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import get_type_hints

import joblib
import killed
import mrcfile
import naive
import numpy as np
import pytest
import scipy.stats

from fastsort import (
    InputError,
    cut_again,
    open_particles,
    simulate_particles,
    sort_particles,
    update_particles,
    write_project,
)
from fastsort._saved import save
from fastsort.decide import votes
from fastsort.decide.result import SortResult
from fastsort.decide.settings import (
    DUPLICATES,
    OPTIONS,
    RUN,
    STRICTNESS,
    VERDICT,
    VOTES,
    is_given,
    option_names,
)
from fastsort.decide.verdict import scale_of
from fastsort.particles.mrc import write_stack
from fastsort.particles.store import ImageStore

REAL = Path(__file__).parents[2] / "shared" / "data" / "real"
ARRAYS = ("keep", "score", "reason", "suspicion", "rescued", "junk_probability", "offset")
METHODS = ("radial", "subspaces", "invariants")


@pytest.fixture(scope="module")
def stack():
    # All kinds but picked noise: what 300 images show of it is too little to learn from.
    junk = ("noise", "partial", "multiple", "off-centre", "ice", "carbon", "texture")
    return simulate_particles(150, 150, snr=0.1, box=56, ctf=True, junk=junk, n_micrographs=5, seed=1)


@pytest.fixture(scope="module")
def project(stack, tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("sort") / "project", *stack)


@pytest.fixture(scope="module")
def sorted_project(project):
    return sort_particles(project, method="radial")


@pytest.fixture(scope="module")
def sorted_array(stack):
    return sort_particles(stack[0], method="radial")


@pytest.fixture(scope="module")
def small():
    # So few images tell no more of particles that lie farther from the middle.
    return simulate_particles(
        120, 80, snr=0.3, box=32, ctf=True, junk=naive.SEVEN, centring=0.015, n_micrographs=4, seed=11
    )


@pytest.fixture(scope="module")
def small_project(small, tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("small") / "project", *small)


@pytest.fixture(scope="module")
def jointly(small_project):
    return sort_particles(small_project)


@pytest.fixture(scope="module")
def tiny():
    return simulate_particles(70, 50, snr=0.5, box=18, ctf=True, junk=naive.SEVEN, n_micrographs=2, seed=13)


@pytest.fixture(scope="module")
def tiny_project(tiny, tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("tiny") / "project", *tiny)


@pytest.fixture(scope="module")
def tiny_result(tiny_project):
    return sort_particles(tiny_project)


@pytest.fixture(scope="module")
def tiny_array_result(tiny):
    return sort_particles(tiny[0])


def assert_identical(actual, expected):
    """Assert the same bits of everything that does not tell where the images came from."""
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), name)
    for name in ("votes", "measurements"):
        # Stamps are those of the files.
        some, others = ({**getattr(result, name), "stamp": None} for result in (actual, expected))
        assert list(some) == list(others)
        for key, values in others.items():
            np.testing.assert_array_equal(some[key], values, key)
    for name in ("threshold", "diameter_px", "contrast", "phase_flipped", "errors"):
        np.testing.assert_equal(getattr(actual, name), getattr(expected, name), name)
    if expected.views is not None:
        # The pixel size depends on the source.
        np.testing.assert_equal(actual.views[:-1], expected.views[:-1])
    np.testing.assert_equal(actual.learned.weights, expected.learned.weights)
    np.testing.assert_equal(actual.learned.decoys, expected.learned.decoys)


def assert_identical_but_for_size(actual, expected):
    """Assert the same bits, where only one source tells the defocus, on which the diameter depends."""
    assert_identical(actual._replace(diameter_px=expected.diameter_px), expected)


def area_under_curve(score, label):
    """Chance that a particle has a lower score than junk."""
    ranks = scipy.stats.rankdata(score)
    n_junk = np.count_nonzero(~label)
    return (ranks[~label].sum() - n_junk * (n_junk + 1) / 2) / (n_junk * np.count_nonzero(label))


# Where the images come from.


def test_project_is_sorted(stack, sorted_project):
    _, truth = stack
    assert sorted_project.phase_flipped
    assert sorted_project.diameter_estimated
    assert sorted_project.contrast == "bright"
    assert sorted_project.diameter == pytest.approx(sorted_project.diameter_px * truth.pixel_size, rel=1e-4)
    assert area_under_curve(sorted_project.score, truth.label) > 0.94
    np.testing.assert_array_equal(sorted_project.keep, sorted_project.reason == "valid")
    judged = np.isfinite(sorted_project.score)
    np.testing.assert_array_equal(
        sorted_project.keep[judged], (sorted_project.score <= sorted_project.threshold)[judged]
    )


def test_array_and_stack_file_give_the_same(stack, sorted_array, tmp_path):
    images, truth = stack
    with mrcfile.new(tmp_path / "particles.mrcs") as file:
        file.set_data(images)
        file.set_image_stack()
        file.voxel_size = truth.pixel_size
    assert not sorted_array.phase_flipped
    for path in (tmp_path / "particles.mrcs", str(tmp_path / "particles.mrcs")):
        from_file = sort_particles(path, method="radial")
        assert_identical(from_file, sorted_array)
        assert from_file.diameter == pytest.approx(sorted_array.diameter_px * truth.pixel_size, rel=1e-4)
    assert sorted_array.diameter == sorted_array.diameter_px


def test_project_without_flipping_is_the_array(sorted_array, project):
    plain = sort_particles(project, method="radial", phase_flip="no")
    assert not plain.phase_flipped
    assert_identical_but_for_size(plain, sorted_array)


def test_flipping_when_told_is_flipping_by_itself(project, sorted_project):
    told = sort_particles(project, method="radial", phase_flip="yes")
    assert told.phase_flipped
    assert_identical(told, sorted_project)


def shuffle_rows(star, name, order):
    """Write the STAR file again beside itself with the particles in another order."""
    lines = star.read_text().splitlines(keepends=True)
    rows = [i for i, line in enumerate(lines) if "@" in line]
    for row, old in zip(rows, order, strict=True):
        lines[row] = star.read_text().splitlines(keepends=True)[rows[old]]
    shuffled = star.with_name(name)
    shuffled.write_text("".join(lines))
    return shuffled


def test_order_of_the_rows_follows_the_names(stack, project, sorted_project):
    images = stack[0]
    order = np.random.default_rng(2).permutation(len(images))
    shuffled = open_particles(shuffle_rows(project, "shuffled.star", order))
    position = {name: i for i, name in enumerate(open_particles(project).names)}
    by_name = np.array([position[name] for name in shuffled.names])
    np.testing.assert_array_equal(by_name, order)
    # The same images in the same order, from many stacks or from one array.
    plain = sort_particles(shuffled, method="radial", phase_flip="no")
    assert_identical_but_for_size(plain, sort_particles(images[order], method="radial"))
    # Another order changes sums in their last bits only.
    result = sort_particles(shuffled, method="radial")
    assert (result.keep != sorted_project.keep[by_name]).mean() <= 0.01
    assert np.corrcoef(result.score, sorted_project.score[by_name])[0, 1] > 0.999


def with_optics(star, name, label, value):
    """Write the STAR file again beside itself with one more label in the optics table."""
    lines = star.read_text().splitlines()
    labels = [i for i, line in enumerate(lines) if line.startswith("_rlnImageDimensionality")]
    row = next(i for i in range(labels[0], len(lines)) if lines[i].startswith("opticsGroup1"))
    lines[row] += f" {value}"
    lines.insert(labels[0] + 1, label)
    changed = star.with_name(name)
    changed.write_text("\n".join(lines) + "\n")
    return changed


@pytest.mark.parametrize("label", ["_rlnCtfDataArePhaseFlipped", "_rlnCtfDataAreCtfPremultiplied"])
def test_phases_flipped_before_are_not_flipped_again(project, label):
    done = with_optics(project, f"done{label}.star", label, 1)
    assert not sort_particles(done, method="radial").phase_flipped
    assert sort_particles(done, method="radial", phase_flip="yes").phase_flipped
    undone = with_optics(project, f"undone{label}.star", label, 0)
    assert sort_particles(undone, method="radial").phase_flipped


@pytest.mark.parametrize("n_jobs", [1, 2, -1])
def test_workers_do_not_change_bits(project, sorted_project, n_jobs):
    assert_identical(sort_particles(project, method="radial", n_jobs=n_jobs), sorted_project)


@pytest.mark.slow
def test_processes_do_not_change_bits(project, sorted_project):
    images = simulate_particles(300, 300, snr=0.1, box=36, seed=3)[0]
    # Three batches and more, for any method.
    several = simulate_particles(330, 230, snr=0.3, box=16, junk=naive.SEVEN, seed=3)[0]
    expected = sort_particles(images, method="radial", n_jobs=1)
    jointly = sort_particles(several, n_jobs=1)
    assert_identical(sort_particles(several, n_jobs=2), jointly)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert_identical(sort_particles(project, method="radial"), sorted_project)
        assert_identical(sort_particles(images, method="radial"), expected)
        assert_identical(sort_particles(several), jointly)


def test_images_that_cannot_be_judged(stack):
    images = stack[0].copy()
    images[0] = 0.1
    images[1, 3, 3] = np.nan
    images[2, 0, 0] = -np.inf
    images[3, 5, 5] += 200 * images.std()
    result = sort_particles(images, method="radial")
    np.testing.assert_array_equal(result.reason[:4], ["flat", "bad_pixels", "bad_pixels", "bad_pixels"])
    assert not result.keep[:4].any()
    assert np.isinf(result.score[:4]).all()
    assert np.isfinite(result.score[4:]).all()


@pytest.mark.parametrize("dtype", ["f2", ">f4", "f8"])
def test_any_type_of_read_only_map(stack, dtype, tmp_path):
    exact = stack[0][:120].astype(np.float16).astype(np.float32)
    np.save(tmp_path / "images.npy", exact.astype(dtype))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert_identical(sort_particles(mapped, method="radial"), sort_particles(exact, method="radial"))


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize(("n", "box"), [(1, 16), (1, 56), (2, 16), (4, 16), (49, 17), (60, 16)])
def test_small_sets_and_small_boxes(n, box, method):
    images = np.random.default_rng(4).normal(size=(n, box, box)).astype(np.float32)
    result = sort_particles(images, method=method)
    assert len(result.keep) == n
    assert np.isfinite(result.score).all()
    assert list(result.votes) == ([method] if method else list(METHODS))
    np.testing.assert_array_equal(result.reason == "valid", result.keep)
    if n < 50:
        assert result.keep.all() and np.isnan(result.threshold) and np.isnan(result.junk_probability).all()
    else:
        assert np.isfinite(result.threshold) and np.isfinite(result.junk_probability).all()


# All methods together.


def test_methods_together_tell_particles_from_junk(small, jointly):
    label = small[1].label
    assert area_under_curve(jointly.score, label) > 0.9
    assert jointly.keep[label].mean() > 0.78 and jointly.keep[~label].mean() < 0.25
    assert jointly.phase_flipped and jointly.diameter_estimated and jointly.contrast == "bright"
    assert jointly.parameters["method"] is None
    assert jointly.errors.known and jointly.errors.remark == ""
    assert jointly.errors.true_positive_rate.low - 0.05 <= jointly.keep[label].mean()
    assert len(jointly.views.label) == len(label) and jointly.views.rare.any() == jointly.rescued.any()
    # The subspaces are described by their own method alone.
    assert jointly.subspaces is None and not {"factor", "log_likelihood"} & set(jointly.measurements)


@pytest.mark.parametrize("kind", ["one direction", "any direction", "all alike"])
def test_ramps_do_not_matter(stack, kind):
    images, truth = stack[0], stack[1].label
    n, box = images.shape[:2]
    height = 2 * np.random.default_rng(0).normal(size=(2, n, 1, 1)).astype(np.float32)
    if kind == "one direction":
        height[1] = 0
    elif kind == "all alike":
        height[:] = 2
    place = np.linspace(-1, 1, box, dtype=np.float32)
    ramp = height[0] * place[:, None] + height[1] * place
    plain, steep = sort_particles(images), sort_particles(images + ramp)
    assert area_under_curve(steep.score, truth) > area_under_curve(plain.score, truth) - 0.03
    assert (steep.keep == plain.keep).mean() > 0.85


def test_verdict_of_all_methods_is_made_of_their_votes(jointly):
    n = len(jointly.keep)
    assert list(jointly.votes) == list(METHODS)
    weights = jointly.learned.weights
    score = sum(weights[name] * jointly.votes[name] for name in METHODS) + weights["offset"]
    np.testing.assert_allclose(jointly.score, score, rtol=1e-9, atol=1e-9)
    assert min(weights[name] for name in METHODS) >= 0
    duplicate = jointly.measurements["duplicate"]
    np.testing.assert_array_equal(jointly.keep, (jointly.score <= jointly.threshold) & ~duplicate)
    np.testing.assert_array_equal(jointly.keep, jointly.reason == "valid")
    np.testing.assert_array_equal(jointly.rescued, jointly.reason == "rare_view")
    np.testing.assert_array_equal(duplicate, jointly.reason == "duplicate")
    usual = ~(jointly.keep | jointly.rescued | duplicate)
    np.testing.assert_array_equal(jointly.reason[usual], jointly.suspicion[usual])
    assert not np.isin(jointly.suspicion, ("valid", "duplicate", "rare_view")).any()
    order = np.argsort(jointly.score)
    assert (np.diff(jointly.junk_probability[order]) >= 0).all()
    assert jointly.offset.shape == (n, 2) and np.isfinite(jointly.offset).all()


def test_votes_are_the_scores_of_the_single_methods(small_project, jointly):
    against = np.zeros(len(jointly.keep), dtype=int)
    radius = jointly.learned.methods.radial.radius
    for method in METHODS:
        # Among the others, the invariant filter knows how large the particle is from the radial one.
        given = 2 * radius * jointly.pixel_size if method == "invariants" else None
        single = sort_particles(small_project, method=method, diameter=given)
        if given:
            # The radius changes what counts as background, and so the pixels by which halves are told.
            assert np.corrcoef(single.score, jointly.votes[method])[0, 1] > 0.8
        else:
            np.testing.assert_array_equal(single.score, jointly.votes[method])
        np.testing.assert_array_equal(single.votes[method], single.score)
        np.testing.assert_array_equal(single.keep, single.score <= single.threshold)
        np.testing.assert_array_equal(single.keep, single.reason == "valid")
        assert single.errors is None and single.views is None
        assert np.isnan(single.diameter) == np.isnan(single.diameter_px)
        assert single.diameter_estimated == (given is None)
        assert np.isnan(single.offset).all() == (method != "radial")
        against += ~single.keep
    difference = np.abs(jointly.measurements["against"] - against)
    assert difference.max() <= 1 and difference.mean() < 0.15


@pytest.mark.slow
def test_array_and_stack_file_give_the_same_to_all_methods(tiny, tiny_array_result, tiny_project, tmp_path):
    images, truth = tiny
    with mrcfile.new(tmp_path / "particles.mrcs") as file:
        file.set_data(images)
        file.set_image_stack()
        file.voxel_size = truth.pixel_size
    assert_identical(sort_particles(tmp_path / "particles.mrcs"), tiny_array_result)
    # These particles were never picked twice.
    assert_identical_but_for_size(sort_particles(tiny_project, phase_flip="no"), tiny_array_result)


@pytest.mark.slow
def test_images_that_no_method_can_judge(small):
    images = small[0].copy()
    images[0] = 0.1
    images[1, 3, 3] = np.nan
    images[2, 0, 0] = -np.inf
    images[3, 5, 5] += 200 * images.std()
    result = sort_particles(images)
    reasons = ["flat", "bad_pixels", "bad_pixels", "bad_pixels"]
    for result_ in (result, cut_again(result, fraction=1.0), cut_again(result, probability=1.0)):
        np.testing.assert_array_equal(result_.reason[:4], reasons)
        np.testing.assert_array_equal(result_.suspicion[:4], reasons)
        assert not result_.keep[:4].any() and not result_.rescued[:4].any()
    assert (result.junk_probability[:4] == 1).all() and np.isinf(result.score[:4]).all()
    assert np.isfinite(result.score[4:]).all() and np.isfinite(result.junk_probability[4:]).all()
    assert result.keep[4:].sum() > 80


def test_only_images_that_cannot_be_judged():
    result = sort_particles(np.ones((60, 20, 20), dtype=np.float32))
    assert not result.keep.any() and set(result.reason) == {"flat"} and np.isinf(result.score).all()
    assert (result.junk_probability == 1).all()


@pytest.mark.slow
def test_scale_does_not_matter_to_all_methods(tiny, tiny_array_result):
    expected = tiny_array_result
    found = sort_particles(tiny[0] * np.float32(3e-5) + np.float32(1e-3))
    assert (found.keep != expected.keep).mean() <= 0.01
    assert np.corrcoef(found.score, expected.score)[0, 1] > 0.999


def assert_much_alike(found, expected, order):
    """Scores agree; what is judged differently is uncertain, and no more than a sample of 200 lets expect."""
    assert np.corrcoef(found.score, expected.score[order])[0, 1] > 0.98
    differs = found.keep != expected.keep[order]
    assert differs.mean() <= 0.1
    for probability in (found.junk_probability, expected.junk_probability[order]):
        assert ((probability > 0.1) & (probability < 0.9))[differs].all()


@pytest.mark.slow
def test_order_and_seed_matter_little_to_all_methods(small, jointly, small_project):
    star = shuffle_rows(small_project, "mixed.star", np.random.default_rng(8).permutation(len(jointly.keep)))
    position = {name: i for i, name in enumerate(open_particles(small_project).names)}
    by_name = np.array([position[name] for name in open_particles(star).names])
    assert_much_alike(sort_particles(star), jointly, by_name)
    other = sort_particles(small_project, seed=1)
    assert not np.array_equal(other.score, jointly.score)
    assert_much_alike(other, jointly, np.arange(len(jointly.keep)))


@pytest.mark.slow
def test_particles_beside_the_centre_are_kept_on_demand(small_project, jointly):
    found = sort_particles(small_project, keep_off_centre=True)
    good = found.score < jointly.score
    assert (good & found.keep).any() and not good[jointly.keep].any()
    assert (found.suspicion[good] == "off-centre").all()
    assert (found.junk_probability[good] <= jointly.junk_probability[good]).all()
    np.testing.assert_array_equal(found.keep, jointly.keep | (found.score <= found.threshold))
    np.testing.assert_array_equal(found.score[~good], jointly.score[~good])
    # Each is told where it lies, and that is beside the centre.
    assert (np.hypot(*found.offset[good].T) > 2).all()


def test_an_earlier_run_judges_the_same_images_alike(tiny, tiny_result, tiny_project):
    found = sort_particles(tiny_project, earlier=tiny_result)
    np.testing.assert_array_equal(found.score, tiny_result.score)
    np.testing.assert_array_equal(found.keep, tiny_result.keep)
    np.testing.assert_allclose(found.junk_probability, tiny_result.junk_probability, atol=1e-12)
    assert found.threshold == tiny_result.threshold
    # A few that could not be judged alone.
    star = open_particles(first_of(tiny_project, 12))
    some = sort_particles(star, earlier=tiny_result)
    np.testing.assert_allclose(some.score, tiny_result.score[:12], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(some.keep, tiny_result.keep[:12])


def first_of(star, number):
    """Write the STAR file again beside itself with its first particles alone."""
    lines = star.read_text().splitlines(keepends=True)
    rows = [i for i, line in enumerate(lines) if "@" in line]
    few = star.with_name("few.star")
    few.write_text("".join(line for i, line in enumerate(lines) if i not in rows[number:]))
    return few


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "radial"}, "with all methods only"),
        ({"working_size": 16}, "had images of 18 working pixels"),
    ],
    ids=str,
)
def test_an_earlier_run_of_another_kind_is_refused(tiny_project, tiny_result, options, message):
    with pytest.raises(InputError, match=message):
        sort_particles(tiny_project, earlier=tiny_result, **options)
    with pytest.raises(InputError, match="with all methods only"):
        sort_particles(tiny_project, earlier=sort_particles(tiny_project, method="radial"))


@pytest.mark.parametrize(
    ("box", "pixel_size", "message"),
    [
        (48, None, "images of 32 px, and these have 48 px, with pixels of unknown size"),
        (32, 3.0, "32 px with 2 A a pixel, and these have 32 px with 3 A: .*only boxes of 64 A"),
        (48, 2.0, "32 px with 2 A a pixel, and these have 48 px with 2 A: .*only boxes of 64 A"),
        (48, 64 / 48, None),
        (32, 2.0, None),
        (32, None, None),
    ],
    ids=str,
)
def test_an_earlier_run_judges_images_of_its_scale_alone(box, pixel_size, message):
    images, truth = simulate_particles(70, 30, snr=0.5, box=32, seed=1)
    earlier = sort_particles(open_particles(images, pixel_size=pixel_size and 2.0), working_size=24)
    assert scale_of(earlier) == (32, 2.0 if pixel_size else 1.0)
    more, truth = simulate_particles(40, 20, snr=0.5, box=box, seed=2)
    more = open_particles(more, pixel_size=pixel_size)
    if message:
        with pytest.raises(InputError, match=message):
            sort_particles(more, earlier=earlier, working_size=24)
    else:
        result = sort_particles(more, earlier=earlier, working_size=24)
        assert result.keep[truth.label].mean() > 0.8 and result.keep[~truth.label].mean() < 0.3


# Another cut through the same result.


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_a_share_of_the_particles_is_kept(jointly, share):
    found = cut_again(jointly, keep_at_least=share)
    particles = 1 - jointly.junk_probability
    order = np.argsort(jointly.score, kind="stable")
    number = np.count_nonzero(found.keep)
    # The best are kept, and one less would be too few.
    assert set(np.flatnonzero(found.keep)) == set(order[:number])
    assert particles[found.keep].sum() >= share * particles.sum() * (1 - 1e-6)
    assert particles[order[: number - 1]].sum() < share * particles.sum()
    assert found.threshold == jointly.score[found.keep].max()


@pytest.mark.parametrize("number", [0, 1, 77, 200])
def test_so_many_images_are_discarded(jointly, number):
    found = cut_again(jointly, discard=number)
    assert np.count_nonzero(~found.keep) == number
    if 0 < number < 200:
        assert jointly.score[found.keep].max() <= jointly.score[~found.keep].min()
    same = cut_again(jointly, fraction=(200 - number) / 200) if number < 200 else found
    np.testing.assert_array_equal(same.keep, found.keep)
    np.testing.assert_array_equal(found.reason == "valid", found.keep)
    np.testing.assert_array_equal(found.reason == "rare_view", found.rescued)


def test_a_probability_is_a_cut(jointly):
    keeps = []
    for probability in (0, 0.1, 0.5, 0.9, 1):
        found = cut_again(jointly, probability=probability)
        np.testing.assert_array_equal(found.keep, jointly.junk_probability <= probability)
        keeps.append(np.count_nonzero(found.keep))
    assert keeps == sorted(keeps) and keeps[-1] == len(jointly.keep)
    # By default it lies halfway from the share of junk to one half.
    usual = 0.5 * (jointly.junk_probability.mean() + 0.5)
    assert_identical(cut_again(jointly, probability=usual), jointly)


def test_unanimous_rejects_what_all_methods_reject(jointly):
    found = cut_again(jointly, unanimous=True)
    np.testing.assert_array_equal(found.keep, jointly.measurements["against"] < 3)
    assert np.count_nonzero(found.keep) > np.count_nonzero(jointly.keep)
    assert np.isnan(found.threshold)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"keep_at_least": 0.9}, {"discard": 70}, {"fraction": 0.4}, {"unanimous": True}], ids=str
)
def test_cutting_at_once_is_cutting_again(tiny_project, tiny_result, options):
    found = sort_particles(tiny_project, **options)
    assert_identical(found, cut_again(tiny_result, **options))
    assert {name: found.parameters[name] for name in options} == options


def test_errors_follow_the_cut(jointly):
    strict, lax = (cut_again(jointly, fraction=fraction) for fraction in (0.3, 0.9))
    for narrow, wide in ((strict, jointly), (jointly, lax)):
        assert narrow.errors.true_positive_rate.value < wide.errors.true_positive_rate.value
        assert narrow.errors.true_negative_rate.value > wide.errors.true_negative_rate.value
        assert narrow.errors.by_kind["noise"].value >= wide.errors.by_kind["noise"].value
        assert narrow.errors.by_kind["particle"].value <= wide.errors.by_kind["particle"].value
        assert narrow.errors.junk_share == wide.errors.junk_share
    assert lax.errors.true_positive_rate.value > strict.errors.true_positive_rate.value + 0.2


def test_a_cut_does_not_change_what_it_cuts(jointly):
    copies = {name: np.copy(getattr(jointly, name)) for name in ARRAYS}
    back = cut_again(cut_again(jointly, discard=150), fraction=0.5)
    for name, copy in copies.items():
        np.testing.assert_array_equal(getattr(jointly, name), copy, name)
    assert_identical(back, cut_again(jointly, fraction=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one .* got none"),
        ({"probability": 0.5, "discard": 3}, "exactly one .* got probability, discard"),
        ({"unanimous": True, "fraction": 0.3}, "exactly one .* got fraction, unanimous"),
        ({"probability": 1.5}, "probability must be from 0 to 1; got 1.5"),
        ({"probability": -0.1}, "probability must be from 0 to 1"),
        ({"probability": math.nan}, "probability must be from 0 to 1"),
        ({"keep_at_least": 2}, "keep_at_least must be a share"),
        ({"discard": 201}, "at most the 200 images"),
        ({"fraction": 0}, "fraction must be positive"),
    ],
    ids=str,
)
def test_impossible_cuts_are_told(jointly, options, message):
    with pytest.raises(InputError, match=message):
        cut_again(jointly, **options)


@pytest.mark.slow
def test_cuts_of_results_that_cannot_tell(small):
    few = sort_particles(small[0][:40])
    for options in ({"probability": 0.5}, {"keep_at_least": 0.9}):
        with pytest.raises(InputError, match="too few images"):
            cut_again(few, **options)
    assert np.count_nonzero(cut_again(few, discard=10).keep) == 30
    single = sort_particles(small[0], method="radial")
    with pytest.raises(InputError, match="several methods"):
        cut_again(single, unanimous=True)
    assert np.count_nonzero(cut_again(single, discard=10).keep) == 190


# What the images are made of.


@pytest.fixture(scope="module")
def by_subspaces(stack):
    return sort_particles(stack[0], method="subspaces")


@pytest.fixture(scope="module")
def by_published(stack):
    return sort_particles(stack[0], method="subspaces", preset="published")


def assert_same_subspaces(actual, expected):
    """Assert the same bits of what was learned."""
    for name in ("weights", "means", "loadings", "noise_variance", "keep"):
        np.testing.assert_array_equal(getattr(actual.model, name), getattr(expected.model, name), name)
    for name, values in expected.model.trace._asdict().items():
        np.testing.assert_array_equal(getattr(actual.model.trace, name), values, name)


def test_subspaces_tell_particles_from_junk(stack, by_subspaces):
    images, truth = stack
    assert area_under_curve(by_subspaces.score, truth.label) > 0.94
    assert by_subspaces.keep[truth.label].mean() > 0.84
    assert by_subspaces.keep[~truth.label].mean() < 0.2
    np.testing.assert_array_equal(by_subspaces.keep, by_subspaces.score <= by_subspaces.threshold)
    np.testing.assert_array_equal(by_subspaces.keep, by_subspaces.reason == "valid")
    np.testing.assert_array_equal(by_subspaces.keep, by_subspaces.junk_probability <= 0.5)
    assert by_subspaces.contrast == "bright" and by_subspaces.diameter_estimated
    assert 0.5 * truth.diameter < by_subspaces.diameter * truth.pixel_size < 1.5 * truth.diameter
    assert np.isnan(by_subspaces.offset).all() and by_subspaces.offset.shape == (len(images), 2)
    assert set(by_subspaces.measurements) == {
        "content",
        "stamp",
        "factor",
        "log_likelihood",
        "excess",
        "pixel_mean",
        "pixel_std",
    }
    assert (by_subspaces.measurements["factor"] > 0).all()
    assert by_subspaces.subspaces.model.weights.sum() == pytest.approx(1)


def test_subspaces_of_other_methods_are_none(sorted_project):
    assert sorted_project.subspaces is None


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["default", "published"])
def test_subspaces_of_array_map_stack_and_star_are_the_same(
    stack, project, by_subspaces, by_published, tmp_path, preset
):
    images, truth = stack
    options = {"method": "subspaces", "preset": preset}
    expected = by_subspaces if preset == "default" else by_published
    np.save(tmp_path / "images.npy", images)
    with mrcfile.new(tmp_path / "particles.mrcs") as file:
        file.set_data(images)
        file.set_image_stack()
        file.voxel_size = truth.pixel_size
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for source in (mapped, tmp_path / "particles.mrcs"):
        found = sort_particles(source, **options)
        assert_identical(found, expected)
        assert_same_subspaces(found.subspaces, expected.subspaces)
    plain = sort_particles(project, phase_flip="no", **options)
    assert_identical_but_for_size(plain, expected)
    assert plain.diameter == pytest.approx(plain.diameter_px * truth.pixel_size, rel=1e-4, nan_ok=True)
    flipped = sort_particles(project, **options)
    assert flipped.phase_flipped and not np.array_equal(flipped.score, expected.score)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["default", "published"])
def test_workers_do_not_change_bits_of_subspaces(stack, tmp_path, preset):
    # Three batches, one of them smaller.
    images = np.tile(stack[0], (4, 1, 1))[:1100, 10:46, 10:46]
    images += np.random.default_rng(6).normal(scale=0.5 * images.std(), size=images.shape)
    options = {"method": "subspaces", "preset": preset, "n_subspaces": 2, "n_components": 6}
    expected = sort_particles(images, n_jobs=1, **options)
    threads = sort_particles(images, n_jobs=2, **options)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        processes = sort_particles(images, **options)
    for found in (threads, processes):
        assert_identical(found, expected)
        assert_same_subspaces(found.subspaces, expected.subspaces)


@pytest.mark.parametrize("preset", ["default", "published"])
def test_images_that_subspaces_cannot_judge(stack, preset):
    images = stack[0].copy()
    images[0] = 0.1
    images[1, 3, 3] = np.nan
    images[2, 0, 0] = -np.inf
    images[3, 5, 5] += 200 * images.std()
    result = sort_particles(images, method="subspaces", preset=preset)
    np.testing.assert_array_equal(result.reason[:4], ["flat", "bad_pixels", "bad_pixels", "bad_pixels"])
    assert not result.keep[:4].any() and (result.junk_probability[:4] == 1).all()
    assert np.isinf(result.score[:4]).all() and np.isfinite(result.score[4:]).all()
    assert (result.measurements["factor"][:4] == np.inf).all()
    assert (result.measurements["log_likelihood"][:4] == -np.inf).all()
    assert np.isfinite(result.measurements["log_likelihood"][4:]).all()
    # They teach nothing either.
    rest = sort_particles(images[4:], method="subspaces", preset=preset)
    if preset == "default":
        np.testing.assert_allclose(result.score[4:], rest.score, rtol=1e-3, atol=1e-2)
    assert result.subspaces.model.trace.n_images[0] == rest.subspaces.model.trace.n_images[0]


@pytest.mark.parametrize("n", [2, 10, 49])
def test_few_images_are_all_kept_by_subspaces(stack, n):
    result = sort_particles(stack[0][:n], method="subspaces")
    assert result.keep.all() and np.isnan(result.threshold) and np.isnan(result.junk_probability).all()
    assert np.isfinite(result.score).all()
    assert (result.reason == "valid").all()


def test_sixty_images_are_sorted_by_subspaces(stack):
    images, truth = stack
    chosen = np.concatenate([np.flatnonzero(truth.label)[:40], np.flatnonzero(~truth.label)[:20]])
    result = sort_particles(images[chosen], method="subspaces")
    assert np.isfinite(result.threshold) and np.isfinite(result.score).all()
    assert area_under_curve(result.score, truth.label[chosen]) > 0.75


def test_one_image_is_kept_by_subspaces(stack):
    result = sort_particles(stack[0][:1], method="subspaces")
    assert result.keep.all() and (result.reason == "valid").all() and np.isnan(result.threshold)
    assert len(result.subspaces.model.trace.n_images) == 0


@pytest.mark.parametrize("box", [16, 17, 33, 57])
def test_subspaces_of_small_and_odd_boxes(box):
    images, truth = simulate_particles(100, 100, snr=0.4, box=box, junk="noise", seed=3)
    result = sort_particles(images, method="subspaces")
    assert area_under_curve(result.score, truth.label) > 0.95
    assert result.keep[truth.label].mean() > 0.85 and result.keep[~truth.label].mean() < 0.15
    assert 0.2 * box < result.diameter_px <= box


def test_subspaces_of_only_junk():
    images = simulate_particles(0, 200, snr=0.1, box=36, junk=naive.SEVEN, seed=4)[0]
    result = sort_particles(images, method="subspaces")
    assert np.isfinite(result.score).all() and np.isfinite(result.threshold)
    np.testing.assert_array_equal(result.keep, result.score <= result.threshold)
    # Nobody knows what was wanted, but not all of these look alike.
    assert result.keep.mean() < 0.75


@pytest.mark.parametrize("preset", ["default", "published"])
@pytest.mark.parametrize("factor", [-1.0, 2.0, 3e-5, 1e7], ids=str)
def test_scale_and_contrast_do_not_matter_to_subspaces(stack, by_subspaces, by_published, preset, factor):
    images, expected = stack[0], by_subspaces if preset == "default" else by_published
    found = sort_particles(images * np.float32(factor), method="subspaces", preset=preset)
    np.testing.assert_array_equal(found.keep, expected.keep)
    np.testing.assert_array_equal(found.reason, expected.reason)
    for name in ("score", "junk_probability"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=2e-3)
    for name in ("log_likelihood", "excess"):
        actual, wanted = found.measurements[name], expected.measurements[name]
        np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=2e-3, err_msg=name)
    # An image that has next to nothing in the subspaces has a huge factor, which rounding changes: its
    # length in the subspaces over that beside them does not change.
    lengths = [1 / np.sqrt(result.measurements["factor"]) for result in (found, expected)]
    np.testing.assert_allclose(*lengths, atol=5e-5)
    if preset == "default":
        assert found.contrast == ("dark" if factor < 0 else "bright")
        assert found.diameter_px == pytest.approx(expected.diameter_px, rel=1e-3)


def test_offset_of_grey_values_does_not_matter_to_subspaces(stack, by_subspaces):
    found = sort_particles(stack[0] + np.float32(5), method="subspaces")
    np.testing.assert_array_equal(found.keep, by_subspaces.keep)
    np.testing.assert_allclose(found.score, by_subspaces.score, rtol=1e-3, atol=5e-3)


def test_seeds_of_subspaces(stack, by_subspaces, by_published):
    # All of so few images are learned from, whatever the seed.
    assert_identical(sort_particles(stack[0], method="subspaces", seed=1), by_subspaces)
    published = [
        sort_particles(stack[0], method="subspaces", preset="published", seed=seed) for seed in (0, 1)
    ]
    assert_identical(published[0], by_published)
    assert not np.array_equal(published[1].score, by_published.score)


def test_order_of_images_does_not_matter_to_subspaces(stack, by_subspaces):
    order = np.random.default_rng(7).permutation(len(stack[0]))
    found = sort_particles(stack[0][order], method="subspaces")
    assert (found.keep != by_subspaces.keep[order]).mean() <= 0.01
    np.testing.assert_allclose(found.score, by_subspaces.score[order], rtol=1e-2, atol=2e-2)


def test_numbers_of_subspaces_are_those_asked_for(stack):
    result = sort_particles(stack[0], method="subspaces", n_subspaces=3, n_components=4)
    assert result.subspaces.model.loadings.shape[::2] == (3, 4)
    assert (result.parameters["n_subspaces"], result.parameters["n_components"]) == (3, 4)


def test_diameter_given_is_told_by_subspaces(stack, by_subspaces):
    images, truth = stack
    particles = open_particles(images, pixel_size=truth.pixel_size)
    result = sort_particles(particles, method="subspaces", diameter=truth.diameter)
    assert result.diameter == pytest.approx(truth.diameter) and not result.diameter_estimated
    assert np.corrcoef(result.score, by_subspaces.score)[0, 1] > 0.999


def test_published_subspaces_drop_a_twentieth(stack, by_published):
    result = by_published
    trace = result.subspaces.model.trace.n_images
    assert trace[0] == len(stack[0]) and set(trace) <= {300, 285, 271, 257, 244}
    assert result.keep.sum() < len(stack[0]) and np.isnan(result.threshold)
    np.testing.assert_array_equal(result.score, result.measurements["factor"])
    np.testing.assert_array_equal(result.junk_probability, (~result.keep).astype(float))
    assert set(result.reason[~result.keep]) == {"noise"}


# The work folder.


@pytest.mark.parametrize("preset", ["default", "published"])
def test_work_folder_of_subspaces_is_removed_in_the_end(stack, by_subspaces, by_published, tmp_path, preset):
    seen = []
    options = {"method": "subspaces", "preset": preset}
    result = sort_particles(
        stack[0], work=tmp_path, progress=lambda *_: seen.extend(tmp_path.rglob("*")), **options
    )
    assert "images.work" in {path.name for path in seen} and not tmp_path.exists()
    assert_identical(result, by_subspaces if preset == "default" else by_published)


@pytest.mark.slow
def test_work_folder_is_made_and_removed_with_its_parents(tiny_project, tiny_result, tmp_path):
    seen, work = [], tmp_path / "new" / "work"
    result = sort_particles(tiny_project, work=work, progress=lambda *_: seen.extend(work.rglob("*")))
    assert {"images.work", "radial.stage", "subspaces.stage"} <= {path.name for path in seen}
    assert list(tmp_path.iterdir()) == []
    assert_identical(result, tiny_result)


class Stop(BaseException):
    """What no code that means well would catch."""


def stop_beyond(share):
    """Progress that ends a run once it has done more than a share of its work."""

    def stop(done, total):
        if done > share * total:
            raise Stop

    return stop


def forbid(patch, *names):
    """Let images no longer be prepared, methods no longer learn, or one no longer judge but decoys."""
    for name in names:
        if name == "images":
            patch.setattr("fastsort.images.prepare._prepare", must_not_run)
        elif name == "learned":
            patch.setattr(votes, "_learn", must_not_run)
        else:
            place = {"radial": "radial_filter", "subspaces": "subspace_filter"}.get(name, "invariant_filter")
            allowed = getattr(votes, place)

            def judge(images, *arguments, allowed=allowed, **options):
                if not isinstance(images, np.ndarray):
                    must_not_run()
                return allowed(images, *arguments, **options)

            patch.setattr(votes, place, judge)


def must_not_run(*_):
    raise AssertionError("something was done twice")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "done"),
    [
        (0.41, ["images"]),
        (0.5, ["images", "learned"]),
        (0.6, ["images", "learned", "radial"]),
        (0.75, ["images", "learned", "radial", "subspaces"]),
    ],
)
def test_a_run_goes_on_where_it_was_stopped(tiny_project, tiny_result, tmp_path, monkeypatch, share, done):
    work = tmp_path / "work"
    with pytest.raises(Stop):
        sort_particles(tiny_project, work=work, n_jobs=2, progress=stop_beyond(share))
    assert (work / "images.work").exists()
    with monkeypatch.context() as patch:
        forbid(patch, *done)
        result = sort_particles(tiny_project, work=work)
    assert_identical(result, tiny_result)
    assert not work.exists()


@pytest.mark.slow
def test_another_run_does_not_go_on_where_this_one_was_stopped(tiny_project, tiny_result, tmp_path):
    with pytest.raises(Stop):
        sort_particles(tiny_project, work=tmp_path, seed=5, diameter=300, progress=stop_beyond(0.75))
    assert (tmp_path / "subspaces.stage").exists()
    assert_identical(sort_particles(tiny_project, work=tmp_path), tiny_result)


@pytest.mark.slow
def test_work_folder_is_kept_on_demand_and_read_again(tiny_project, tiny_result, tmp_path, monkeypatch):
    work = tmp_path / "work"
    assert_identical(sort_particles(tiny_project, work=work, keep_work=True), tiny_result)
    kept = {path.name for path in work.iterdir()}
    assert {"images.work", *(f"{method}.stage" for method in METHODS)} <= kept
    with monkeypatch.context() as patch:
        forbid(patch, "images", "learned", *METHODS)
        again = sort_particles(tiny_project, work=work, keep_work=True)
    assert_identical(again, tiny_result)
    assert {path.name for path in work.iterdir()} == kept
    sort_particles(tiny_project, work=work)
    assert not work.exists()


def test_work_folder_with_files_of_others_is_left_alone(tiny_project, tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        sort_particles(tiny_project, work=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match=r"work folder .* is a file"):
        sort_particles(tiny_project, work=tmp_path / "thesis.tex")


@pytest.fixture(scope="module")
def steps(stack):
    """All that the progress of a whole run is told."""
    calls = []
    sort_particles(stack[0], method="radial", progress=lambda *call: calls.append(call))
    return calls


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("when", [0, -1])
def test_temporary_folder_is_removed_after_a_failure(stack, steps, tmp_path, monkeypatch, error, when):
    fatal = steps[when]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []

    def stop_there(*call):
        seen.extend(tmp_path.iterdir())
        if call == fatal:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        sort_particles(stack[0], method="radial", n_jobs=2, progress=stop_there)
    assert seen and list(tmp_path.iterdir()) == []


def sort_and_save(folder, progress=None):
    """Sort the project beside a folder, and leave everything but the time it took."""
    star = folder.parent / "project" / "particles.star"
    result = sort_particles(star, work=folder / "work", n_jobs=1, progress=progress)
    save(folder / "result", result._replace(seconds={}))


def end_beyond(share):
    """Progress that kills its process once a run has done more than a share of its work."""

    def end(done, total):
        if done > share * total:
            os.kill(os.getpid(), signal.SIGKILL)

    return end


def kill_often(folder):
    """Kill runs, one on its way and others at random, until one comes to its end with the usual bits.

    Returns how many were killed, for each of two folders.
    """
    for name in ("first", "expected"):
        # The first one loads the kernels.
        (folder / name).mkdir()
        begin = time.perf_counter()
        sort_and_save(folder / name)
        longest = time.perf_counter() - begin
    expected = (folder / "expected" / "result").read_bytes()
    n_killed = []
    for seed, share in enumerate((0.3, 0.7)):
        own = folder / str(seed)
        own.mkdir()
        n_killed.append(killed.killed_by_itself(partial(sort_and_save, progress=end_beyond(share)), own))
        n_killed[-1] += killed.killed_at_random(sort_and_save, own, 1.3 * longest, seed)
        assert [path.name for path in own.iterdir()] == ["result"]
        assert (own / "result").read_bytes() == expected
    return n_killed


@pytest.mark.slow
def test_killed_and_started_again(tiny_project, tmp_path):
    shutil.copytree(tiny_project.parent, tmp_path / "project")
    code = f"import test_sort; from pathlib import Path; print(test_sort.kill_often(Path({str(tmp_path)!r})))"
    n_killed = eval(killed.fresh_process(code))
    assert len(n_killed) == 2 and sum(n_killed) >= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "preset"),
    [
        (None, "default"),
        ("radial", "default"),
        ("radial", "published"),
        ("subspaces", "default"),
        ("subspaces", "published"),
        ("invariants", "default"),
    ],
)
@pytest.mark.parametrize("n", [10, 700])
def test_progress_rises_to_the_end(method, preset, n):
    images = np.random.default_rng(5).normal(size=(n, 24, 24)).astype(np.float32)
    calls = []
    options = {"method": method, "preset": preset, "n_jobs": 2}
    sort_particles(images, diameter=12, progress=lambda *call: calls.append(call), **options)
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert calls[-1] == (n, n)
    assert {total for _, total in calls} == {n}


# Options.


def test_every_option_is_known_in_one_place():
    given = {name: parameter.default for name, parameter in signature(sort_particles).parameters.items()}
    assert set(OPTIONS) == set(given) - {"particles", "earlier", "progress"}
    # By default, nothing is asked for that not all methods know.
    for name, option in OPTIONS.items():
        assert not (option.method or option.together) or not is_given(name, given[name])
    assert set(option_names(VOTES, VERDICT, STRICTNESS, DUPLICATES, RUN)) == set(OPTIONS)


@pytest.mark.parametrize(
    "function", [sort_particles, cut_again, update_particles, SortResult], ids=lambda f: f.__name__
)
def test_annotations_can_be_read(function):
    assert get_type_hints(function)


# What cannot be.


class Unreadable(ImageStore):
    """A store whose images must not be asked for."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number

    def name(self, index):
        return str(index)

    def read(self, indices):
        raise AssertionError("an image was read")


def test_diameter_means_nothing_without_a_pixel_size(stack, tmp_path):
    with mrcfile.new(tmp_path / "particles.mrcs") as file:
        file.set_data(stack[0][:60])
        file.set_image_stack()
        file.voxel_size = 0
    assert math.isnan(sort_particles(tmp_path / "particles.mrcs", method="radial").diameter)
    with pytest.raises(InputError, match="pixel size is unknown"):
        sort_particles(tmp_path / "particles.mrcs", diameter=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diameter": 57}, "larger box"),
        ({"diameter": 0}, "diameter"),
        ({"diameter": math.nan}, "diameter"),
        ({"diameter": "wide"}, "diameter"),
        ({"preset": "published"}, "name it, radial or subspaces"),
        ({"preset": "published", "method": "invariants"}, "name it, radial or subspaces"),
        ({"preset": "published", "method": "radial"}, "diameter"),
        ({"preset": "publisht"}, "preset"),
        ({"method": "magic"}, "method"),
        ({"phase_flip": "maybe"}, "phase_flip"),
        ({"phase_flip": "yes"}, "does not give defocus"),
        ({"contrast": "grey"}, "contrast"),
        ({"working_size": 57}, "working size"),
        ({"working_size": 15}, "working_size"),
        ({"n_peaks": 0}, "n_peaks"),
        ({"n_subspaces": 2}, "n_subspaces is for the method subspaces alone"),
        ({"n_components": 2}, "n_components is for the method subspaces alone"),
        ({"method": "radial", "n_subspaces": 2}, "n_subspaces does nothing"),
        ({"method": "radial", "n_components": 2}, "n_components does nothing"),
        ({"method": "subspaces", "n_peaks": 2}, "n_peaks does nothing"),
        ({"method": "subspaces", "contrast": "dark"}, "contrast does nothing"),
        ({"method": "invariants", "contrast": "bright"}, "contrast does nothing"),
        ({"method": "invariants", "n_peaks": 2}, "n_peaks does nothing"),
        ({"method": "invariants", "n_subspaces": 2}, "n_subspaces does nothing"),
        ({"method": "invariants", "n_components": 2}, "n_components does nothing"),
        ({"method": "radial", "unanimous": True}, "unanimous"),
        ({"method": "subspaces", "keep_off_centre": True}, "keep_off_centre"),
        ({"method": "radial", "duplicate_distance": 30}, "duplicate_distance"),
        ({"keep_work": True}, "cannot be kept"),
        ({"method": "subspaces", "n_subspaces": 0}, "n_subspaces"),
        ({"method": "subspaces", "n_components": 0}, "n_components"),
        ({"method": "subspaces", "n_components": 1.5}, "n_components"),
        ({"method": "subspaces", "n_components": 9999}, "n_components"),
        ({"seed": -1}, "seed"),
        ({"keep_at_least": 0}, "keep_at_least must be positive"),
        ({"keep_at_least": 1.01}, "keep_at_least must be a share from 0 to 1; got 1.01"),
        ({"keep_at_least": math.nan}, "keep_at_least must be positive"),
        ({"keep_at_least": "most"}, "keep_at_least must be a number"),
        ({"discard": -1}, "discard must be a whole number"),
        ({"discard": 1.5}, "discard must be a whole number"),
        ({"discard": 61}, "discard must be at most the 60 images; got 61"),
        ({"fraction": 0}, "fraction must be positive"),
        ({"fraction": -0.5}, "fraction must be positive"),
        ({"fraction": 2}, "fraction must be a share from 0 to 1; got 2"),
        ({"fraction": math.inf}, "fraction must be positive"),
        ({"fraction": 0.5, "discard": 3}, "at most one"),
        ({"fraction": 0.5, "unanimous": True}, "at most one"),
        ({"keep_at_least": 0.5, "unanimous": True}, "at most one"),
        ({"duplicate_distance": -1}, "duplicate_distance must be positive"),
        ({"duplicate_distance": math.nan}, "duplicate_distance must be positive"),
        ({"duplicate_distance": "near"}, "duplicate_distance must be a number"),
    ],
    ids=str,
)
def test_impossible_wishes_are_told_before_anything_is_read(stack, options, message):
    particles = open_particles(stack[0][:60])
    particles = replace(particles, store=Unreadable(len(particles)), names=())
    calls = []
    with pytest.raises(InputError, match=message) as told:
        sort_particles(particles, **options, progress=lambda *call: calls.append(call))
    assert calls == [] and "\n" not in str(told.value)


def test_more_subspaces_than_images_are_told(stack):
    with pytest.raises(InputError, match="n_subspaces"):
        sort_particles(stack[0][:60], method="subspaces", n_subspaces=61)


def test_probabilities_of_few_images_are_not_asked_for_in_vain(stack):
    particles = open_particles(stack[0][:49])
    particles = replace(particles, store=Unreadable(len(particles)), names=())
    with pytest.raises(InputError, match="too few images"):
        sort_particles(particles, keep_at_least=0.9)


@pytest.mark.parametrize("shape", [(0, 32, 32), (32, 32), (3, 32, 33), (3, 8, 8)])
def test_what_is_no_stack_is_refused(shape):
    with pytest.raises(InputError):
        sort_particles(np.zeros(shape, dtype=np.float32))


# Where the particle lies.


def ball():
    offset = np.arange(48) - 24
    square = offset[:, None, None] ** 2 + offset[:, None] ** 2 + offset**2
    return np.exp(-square / (2 * 6**2)).astype(np.float32)


# Without noise to smooth it, the template of a structured particle follows its details, not its mass.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("volume", "snr", "centring", "correlation"), [("globular", 0.2, 0.05, 0.7), ("ball", 1.0, 0.02, 0.8)]
)
@pytest.mark.parametrize("box", [48, 72])
def test_offset_is_the_shift_in_input_pixels(box, volume, snr, centring, correlation):
    images, truth = simulate_particles(
        300,
        100,
        snr=snr,
        box=box,
        volume=ball() if volume == "ball" else volume,
        junk="noise",
        centring=centring,
        fill=0.5,
        seed=6,
    )
    result = sort_particles(images, method="radial")
    good = truth.label & result.keep
    assert good.sum() > 150
    for axis in (0, 1):
        found, true = result.offset[good, axis], truth.shift[good, axis]
        assert np.corrcoef(found, true)[0, 1] > correlation
        # Rows are not columns, and pixels are those of the input.
        assert abs(np.corrcoef(found, truth.shift[good, 1 - axis])[0, 1]) < 0.3
        assert np.polyfit(true, found, 1)[0] == pytest.approx(1, abs=0.3)
        assert np.median(found - true) == pytest.approx(0, abs=0.01 * box)


def test_diameter_given_is_the_diameter_used(stack):
    images, truth = stack
    particles = open_particles(images, pixel_size=truth.pixel_size)
    result = sort_particles(particles, method="radial", diameter=truth.diameter)
    assert not result.diameter_estimated
    assert result.diameter == pytest.approx(truth.diameter)
    assert result.diameter_px == pytest.approx(truth.diameter / truth.pixel_size)


# Particles that were picked twice.


@pytest.fixture(scope="module")
def few():
    """120 images of 2 A a pixel, and their verdict when nobody knows where they were picked."""
    images = simulate_particles(80, 40, snr=0.4, box=20, junk="noise", seed=12)[0]
    return images, sort_particles(open_particles(images, pixel_size=2.0))


def write_picks(folder, images, rows, labels=(), micrograph_pixel_size=2.0):
    """Write a stack and a table with rows of section, micrograph, x, y and values of more labels."""
    write_stack(folder / "p.mrcs", [images], 2.0, len(images), images.shape[1])
    names = ["ImageName", "MicrographName", "CoordinateX", "CoordinateY", *labels]
    lines = ["data_optics", "loop_", "_rlnOpticsGroup #1", "_rlnImagePixelSize #2"]
    lines += ["_rlnMicrographPixelSize #3", f"1 2.0 {micrograph_pixel_size}", "", "data_particles", "loop_"]
    lines += [f"_rln{name} #{i + 1}" for i, name in enumerate(names)] + [f"_rlnOpticsGroup #{len(names) + 1}"]
    lines += [
        " ".join([f"{section + 1}@p.mrcs", f"{micrograph}.mrc", *map(str, values), "1"])
        for section, micrograph, *values in rows
    ]
    star = folder / "p.star"
    star.write_text("\n".join(lines) + "\n")
    return star


def pairs(rows):
    return [(first, first + 1) for first in rows]


NEAR, BESIDE = pairs(range(0, 40, 2)), pairs(range(40, 80, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "pixel_size", "label", "found"),
    [
        ({}, 2.0, None, NEAR),
        ({"duplicate_distance": 17.9}, 2.0, None, []),
        ({"duplicate_distance": 22.1}, 2.0, None, NEAR + BESIDE),
        ({"duplicate_distance": 0}, 2.0, None, []),
        # The pixels are those of the micrograph, not of the images.
        ({}, 1.0, None, NEAR + BESIDE),
        ({}, 3.0, None, []),
        ({}, 2.0, "HelicalTubeID", []),
        ({}, 2.0, "AutopickFigureOfMerit", NEAR),
    ],
    ids=["20 A", "less", "more", "none", "small pixels", "large pixels", "filaments", "no filaments"],
)
def test_picks_close_to_each_other_are_one_particle(few, tmp_path, options, pixel_size, label, found):
    images, alone = few
    places = 100.0 * np.arange(len(images))
    # 9 pixels from one another, or 11; the last forty are far from everything.
    for first, second in NEAR + BESIDE:
        places[second] = places[first] + (9 if second < 40 else 11)
    more = [1] if label else []
    rows = [(i, "m", 50.0, place, *more) for i, place in enumerate(places)]
    labels = [label] if label else []
    result = sort_particles(write_picks(tmp_path, images, rows, labels, pixel_size), **options)
    np.testing.assert_array_equal(result.score, alone.score)
    expected = np.zeros(len(images), dtype=bool)
    for pair in found:
        expected[max(pair, key=lambda i: alone.score[i])] = True
    np.testing.assert_array_equal(result.measurements["duplicate"], expected)
    np.testing.assert_array_equal(result.keep, alone.keep & ~expected)
    np.testing.assert_array_equal(result.rescued, alone.rescued & ~expected)
    np.testing.assert_array_equal(result.reason, np.where(expected, "duplicate", alone.reason))
    np.testing.assert_array_equal(result.suspicion, alone.suspicion)
    # No strictness brings them back.
    np.testing.assert_array_equal(cut_again(result, fraction=1.0).keep, ~expected)


@pytest.mark.slow
def test_picks_of_two_micrographs_are_two_particles(few, tmp_path):
    images, alone = few
    rows = [(i, i % 2, 50.0, 100.0 * (i // 2)) for i in range(len(images))]
    result = sort_particles(write_picks(tmp_path, images, rows))
    assert not result.measurements["duplicate"].any()
    np.testing.assert_array_equal(result.keep, alone.keep)


@pytest.mark.slow
@pytest.mark.parametrize("distance", [20.0, 0.0])
def test_sections_that_are_listed_twice_are_sorted_once(few, tmp_path, distance):
    images = few[0]
    sections = [*range(len(images)), *range(0, 60, 3)]
    # In places of their own, as if nobody had noticed.
    rows = [(section, "m", 100.0 * i, 7.0) for i, section in enumerate(sections)]
    result = sort_particles(write_picks(tmp_path, images, rows), duplicate_distance=distance)
    again = np.arange(len(images), len(sections))
    # Sums over other rows of a batch differ in their last bits.
    np.testing.assert_allclose(result.score[again], result.score[sections[len(images) :]], rtol=1e-4)
    # Copies share the verdict of the first, and are no duplicates of it.
    assert "duplicate" not in result.reason
    np.testing.assert_array_equal(result.keep[again], result.keep[sections[len(images) :]])
    assert result.keep[0:60:3].any()


# Real particles.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "diameter", "least"),
    [("apoferritin_curated", 128, 0.97), ("apoferritin_picks", 128, 0.95), ("betagal_curated", 180, 0.93)],
)
@pytest.mark.parametrize("given", [True, False], ids=["diameter given", "diameter found"])
def test_real_particles(name, diameter, least, given):
    star = REAL / f"{name}.star"
    if not star.exists():
        pytest.skip(f"the real particles are not here: {star.parent.name}/{star.name}")
    with open(REAL / f"{name}_labels.csv", newline="") as file:
        labels = np.array([row["label"] for row in csv.DictReader(file)])
    result = sort_particles(star, method="radial", diameter=diameter if given else None)
    certain = labels != "uncertain"
    assert len(labels) == len(result.score)
    assert area_under_curve(result.score[certain], labels[certain] == "good") >= least
