"""Copies: lines that name one image again, images with the same pixels, and files that were written anew."""

from __future__ import annotations

import os
from pathlib import Path

import naive
import numpy as np
import pytest
import starfile
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsort import (
    InputError,
    classify_particles,
    cli,
    cut_again,
    open_particles,
    simulate_particles,
    sort_particles,
    update_particles,
)
from fastsort.decide.copies import COLUMNS
from fastsort.images.content import content_of, read_content, stamps_of
from fastsort.images.copies import copies_by_content, copies_of, doubts_of_copies
from fastsort.particles.mrc import write_stack
from fastsort.report.classes import write_map

CASES = Path(__file__).parents[2] / "shared" / "cases"
N = 110


@pytest.fixture(scope="module")
def images():
    return simulate_particles(70, 40, snr=0.5, box=16, junk=naive.SEVEN, seed=5)[0]


@pytest.fixture(scope="module")
def once(images, tmp_path_factory):
    """A stack, and the result of sorting it."""
    path = tmp_path_factory.mktemp("once") / "a.mrcs"
    write_stack(path, [images], 3.0, N, 16)
    return path, sort_particles(path, n_jobs=1)


def star(path, names):
    """Write a table of images, each with coordinates that are far apart for every line."""
    head = "data_\nloop_\n_rlnImageName #1\n_rlnMicrographName #2\n_rlnCoordinateX #3\n_rlnCoordinateY #4\n"
    lines = [f"{name} m.mrc {500 * (k % N)} {500 * (k // N)}\n" for k, name in enumerate(names)]
    path.write_text(head + "".join(lines))
    return path


def assert_spread(result, rows, once):
    """Assert that image i has the verdict of image ``rows[i]`` of the set without copies."""
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(result, name), getattr(once, name)[rows], name)
    for name, votes in once.votes.items():
        np.testing.assert_array_equal(result.votes[name], votes[rows])
    np.testing.assert_array_equal(result.measurements["peak"], once.measurements["peak"][rows])
    np.testing.assert_equal(result.errors, once.errors)
    np.testing.assert_equal(result.views.label, once.views.label[rows])
    first = np.unique(rows, return_index=True)[1]
    assert np.flatnonzero(~result.measurements["copy"]).tolist() == sorted(first.tolist())


@pytest.mark.parametrize("kind", ["lines", "each thrice", "stacks", "array", "shuffled"])
def test_copies_share_the_verdict_of_the_first(images, once, tmp_path, kind):
    path, expected = once
    rows = np.concatenate([np.arange(N)] * 3) if kind != "each thrice" else np.repeat(np.arange(N), 3)
    if kind == "shuffled":
        # Copies in any order; the first ones stay in theirs.
        rows = np.concatenate([np.arange(N), np.random.default_rng(0).integers(0, N, 150)])
    if kind == "stacks":
        (tmp_path / "a.mrcs").symlink_to(path)
        for name in ("b.mrcs", "c.mrcs"):
            write_stack(tmp_path / name, [images], 3.0, N, 16)
        source = star(tmp_path / "p.star", [f"{k + 1:06d}@{s}.mrcs" for s in "abc" for k in range(N)])
    elif kind == "array":
        source = images[rows]
    else:
        (tmp_path / "a.mrcs").symlink_to(path)
        source = star(tmp_path / "p.star", [f"{k + 1:06d}@a.mrcs" for k in rows])
    particles = open_particles(source)
    result = sort_particles(particles, n_jobs=1)
    assert_spread(result, rows, expected)
    doubts = doubts_of_copies(particles, result.measurements["copy"])
    if kind in ("stacks", "array"):
        assert doubts == ("220 of 330 images have the pixels of another image, whose verdict they share.",)
        assert result.doubts[-1:] == doubts
    else:
        assert doubts == ()
        assert f"{len(rows) - N} lines name an image again" in result.doubts[-1]


def test_copies_do_not_count_when_the_threshold_changes(images, once):
    rows = np.concatenate([np.arange(N), np.zeros(50, int), np.arange(N)])
    result = sort_particles(images[rows], n_jobs=1)
    for options in ({"fraction": 0.5}, {"discard": 30}, {"keep_at_least": 0.8}, {"unanimous": True}):
        assert_spread(cut_again(result, **options), rows, cut_again(once[1], **options))


@pytest.mark.parametrize("method", ["radial", "subspaces", "invariants"])
def test_every_method_sees_distinct_images(images, method):
    rows = np.concatenate([np.arange(N)] * 2)
    one, two = (sort_particles(some, method=method, n_jobs=1) for some in (images, images[rows]))
    np.testing.assert_array_equal(two.keep, one.keep[rows])
    np.testing.assert_array_equal(two.score, one.score[rows])
    if method == "subspaces":
        np.testing.assert_array_equal(two.subspaces.beside, one.subspaces.beside[rows])


def test_images_without_copies_have_none(once):
    path, result = once
    assert "copy" not in result.measurements and result.doubts == ()
    np.testing.assert_array_equal(result.measurements["content"], read_content(open_particles(path), 1))


def test_images_that_cannot_be_judged_are_no_copies(images):
    some = images.copy()
    some[3:20] = 0
    result = sort_particles(some, n_jobs=1)
    assert "copy" not in result.measurements and (result.reason[3:20] == "flat").all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), box=st.integers(1, 20))
def test_content_is_that_of_every_pixel(seed, box):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(4, box, box)).astype(np.float32)
    content = content_of(images)
    np.testing.assert_array_equal(content_of(images[::-1].copy()), content[::-1])
    y, x = rng.integers(0, box, 2)
    images[0, y, x] = -images[0, y, x]
    images[1] = images[1, ::-1].copy()
    images[2] = images[3]
    now = content_of(images)
    assert now[0] != content[0] and now[2] == now[3] == content[3]
    assert (now[1] == content[1]) == (box == 1)


def test_signs_of_two_pixels_do_not_cancel():
    image = np.ones((16, 16), np.float32)
    changed = []
    for other in range(1, 256):
        flat = image.copy().reshape(-1)
        flat[[0, other]] = -1
        changed.append(flat.reshape(16, 16))
    assert len(set(content_of(np.array(changed)).tolist())) == 255


def test_copies_by_content_are_those_of_the_first():
    content = np.array([7, 5, 7, 5, 5, 9], np.uint64)
    found = copies_by_content(content, np.array([True, True, True, False, True, True]))
    assert found.distinct.tolist() == [0, 1, 3, 5] and found.of.tolist() == [0, 1, 0, 2, 1, 3]
    assert found.copy.tolist() == [False, False, True, False, True, False]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20))
def test_copies_by_content_are_those_that_a_dictionary_finds(images):
    content = np.array([number for number, _ in images], np.uint64)
    found = copies_by_content(content, np.array([judged for _, judged in images], bool))
    seen: dict[int, int] = {}
    first = [seen.setdefault(number, i) if judged else i for i, (number, judged) in enumerate(images)]
    assert found.distinct[found.of].tolist() == first


def test_copies_of_copies():
    none, some = copies_of(np.arange(4)), copies_of(np.array([0, 0, 2, 2]))
    assert none.followed_by(some) is some and some.followed_by(copies_of(np.arange(2))) is some
    found = some.followed_by(copies_of(np.zeros(2, np.intp)))
    assert found.distinct.tolist() == [0] and found.of.tolist() == [0] * 4


@pytest.mark.parametrize("first", [[], [0], [0, 1, 2], [0, 0, 0], [0, 1, 0, 3, 1, 0]])
def test_copies_of_the_first_of_each(first):
    found = copies_of(np.array(first, np.intp))
    for array, expected in zip(found, np.unique(first, return_inverse=True), strict=True):
        assert array.dtype == np.intp and array.tolist() == expected.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lines", "array"])
def test_classes_are_made_of_distinct_images(images, once, tmp_path, kind):
    options = {"n_classes": 2, "embedding": "pca", "n_jobs": 1}
    whole = classify_particles(once[0], **options)
    rows = np.r_[:N, np.repeat(np.arange(40), 2)]
    if kind == "lines":
        (tmp_path / "a.mrcs").symlink_to(once[0])
        source = open_particles(star(tmp_path / "p.star", [f"{k + 1:06d}@a.mrcs" for k in rows]))
        # Coordinates, which lines of one image may differ in, are no pixels.
        assert source.doubts[-1].startswith("80 lines name an image again")
    else:
        source = open_particles(images[rows], pixel_size=3.0)
    result = classify_particles(source, **options)
    np.testing.assert_array_equal(result.keep, whole.keep[rows])
    np.testing.assert_array_equal(result.score, whole.score[rows])
    for name in ("label", "probability"):
        np.testing.assert_array_equal(getattr(result.classes, name), getattr(whole.classes, name)[rows])
    for name in ("coordinates", "label", "probability"):
        np.testing.assert_array_equal(
            getattr(result.classes.map, name), getattr(whole.classes.map, name)[rows]
        )
    averages, expected = result.classes.averages, whole.classes.averages
    for name in ("angle", "shift", "score"):
        np.testing.assert_array_equal(getattr(averages, name), getattr(expected, name)[rows])
    for name in ("averages", "size", "resolution", "frc"):
        np.testing.assert_array_equal(getattr(averages, name), getattr(expected, name))
    said = f"80 of {len(rows)} images have the pixels of another image, whose verdict they share."
    assert result.doubts == (*source.doubts, *([said] if kind == "array" else []))
    # Files count images, and what was averaged.
    write_map(tmp_path, source, result)
    table = starfile.read(tmp_path / "classes.star")
    assert table["fastsortClassSize"].sum() == N
    members = np.bincount(result.classes.label, minlength=len(table))
    np.testing.assert_allclose(table["rlnClassDistribution"], members / len(rows), rtol=1e-5)
    assert len(starfile.read(tmp_path / "particles.star")) == len(rows) if kind == "lines" else True


@pytest.mark.slow
def test_copies_are_no_members_to_make_classes_of(images):
    with pytest.raises(InputError, match="30 classes need as many images; got 20"):
        classify_particles(images[np.tile(np.arange(20), 3)], n_classes=30, n_jobs=1)


# Files written anew.


@pytest.fixture
def project(images, tmp_path):
    """Two stacks, their table, names and result."""
    for name, part in (("a.mrcs", images[:60]), ("b.mrcs", images[60:])):
        write_stack(tmp_path / name, [part], 3.0, len(part), 16)
    names = [f"{k + 1:06d}@a.mrcs" for k in range(60)] + [f"{k + 1:06d}@b.mrcs" for k in range(50)]
    path = star(tmp_path / "p.star", names)
    return path, list(open_particles(path).names), sort_particles(path, n_jobs=1)


def later(path):
    """Let a file look as if it were written later."""
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_the_same_pixels_in_new_files_are_not_read_as_new(project):
    path, names, earlier = project
    before = stamps_of(open_particles(path))
    later(path.with_name("a.mrcs"))
    changed = stamps_of(open_particles(path)) != before
    assert changed.tolist() == [True] * 60 + [False] * 50
    result = update_particles(path, earlier, names, n_jobs=1)
    assert result.parameters["update"]["new_images"] == 0
    np.testing.assert_array_equal(result.score, earlier.score)
    np.testing.assert_array_equal(result.measurements["stamp"], stamps_of(open_particles(path)))


def test_images_in_another_order_have_their_own_verdicts(images, project):
    path, names, earlier = project
    write_stack(path.with_name("a.mrcs"), [images[59::-1]], 3.0, 60, 16)
    later(path.with_name("a.mrcs"))
    result = update_particles(path, earlier, names, n_jobs=1)
    assert result.parameters["update"]["new_images"] == 0
    rows = np.r_[59:-1:-1, 60:N]
    np.testing.assert_array_equal(result.keep, earlier.keep[rows])
    np.testing.assert_array_equal(result.score, earlier.score[rows])


@pytest.mark.parametrize("n_changed", [1, 60])
def test_other_images_of_the_same_names_are_measured(project, images, n_changed):
    path, names, earlier = project
    others = images[:60].copy()
    others[:n_changed] = simulate_particles(40, 20, snr=0.5, box=16, junk=naive.SEVEN, seed=6)[0][:n_changed]
    write_stack(path.with_name("a.mrcs"), [others], 3.0, 60, 16)
    later(path.with_name("a.mrcs"))
    result = update_particles(path, earlier, names, n_jobs=1)
    assert result.parameters["update"]["new_images"] == n_changed
    assert (result.score[:n_changed] != earlier.score[:n_changed]).all()
    np.testing.assert_array_equal(result.score[n_changed:], earlier.score[n_changed:])


def test_report_refuses_images_that_are_not_those_sorted(project, images, tmp_path, capsys, monkeypatch):
    path, _, _ = project
    monkeypatch.setattr("fastsort.report.drawing.draw_page", lambda path, *_, **__: path.write_bytes(b""))
    folder, stack = tmp_path / "s", path.with_name("a.mrcs")
    assert cli.main(["sort", str(path), "-o", str(folder), "--jobs", "1", "--quiet"]) == 0
    later(stack)
    assert cli.main(["report", str(folder), "--quiet"]) == 0
    others = images[:60].copy()
    others[7] = others[8]
    write_stack(stack, [others], 3.0, 60, 16)
    later(stack)
    for command in (
        ["report", str(folder)],
        ["apply", str(folder), "-o", str(tmp_path / "t"), "--fraction", "0.5"],
    ):
        capsys.readouterr()
        assert cli.main(command) != 0
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "image 000008@a.mrcs has other pixels now" in said
        assert "sort again" in said
    # A list of images needs no pixels.
    (tmp_path / "list.txt").write_text("3\n5\n")
    assert (
        cli.main(["apply", str(tmp_path / "list.txt"), str(path), "-o", str(tmp_path / "u"), "--quiet"]) == 0
    )


def test_a_run_that_was_kept_starts_anew_with_other_images(project, images, tmp_path):
    path, _, earlier = project
    work = tmp_path / "work"
    sort_particles(path, work=work, keep_work=True, n_jobs=1)
    write_stack(path.with_name("a.mrcs"), [images[59::-1]], 3.0, 60, 16)
    later(path.with_name("a.mrcs"))
    result = sort_particles(path, work=work, keep_work=True, n_jobs=1)
    np.testing.assert_equal(
        result.measurements["content"], earlier.measurements["content"][np.r_[59:-1:-1, 60:N]]
    )


def test_new_images_that_are_copies_share_the_earlier_verdict(images):
    earlier = sort_particles(images[:100], n_jobs=1)
    rows = np.r_[:100, 40:60]
    names = open_particles(images[:100]).names
    result = update_particles(images[rows], earlier, names, n_jobs=1)
    for name in ("keep", "score", "reason", "junk_probability"):
        np.testing.assert_array_equal(getattr(result, name), getattr(earlier, name)[rows], name)
    assert result.measurements["copy"].sum() == 20
    again = update_particles(images[rows], earlier, names, judge_again=True, n_jobs=1)
    np.testing.assert_array_equal(again.keep[100:], again.keep[40:60])


# Cases.


def case(name):
    if not (CASES / name).is_dir():
        pytest.skip(f"{CASES / name} is absent")
    return CASES / name


def test_four_copies_of_a_set_are_sorted_as_the_set():
    folder = case("repeats_are_learned_from")
    one, four = (sort_particles(folder / f"{name}.star", n_jobs=1) for name in ("one", "four"))
    np.testing.assert_array_equal(four.keep, np.tile(one.keep, 4))
    np.testing.assert_equal(four.errors, one.errors)


def test_lines_of_a_symmetry_expansion_are_no_duplicates():
    particles = open_particles(case("symmetry_expanded") / "expanded.star")
    result = sort_particles(particles, n_jobs=1)
    assert "duplicate" not in result.reason
    assert result.doubts[-1].startswith("40 lines name an image again (symmetry expansion?)")
