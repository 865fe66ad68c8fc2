"""Verdicts that a person changed: in Python, as a file from the page, and with ``fastsort apply``."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsort as fs
from fastsort import cli
from fastsort._saved import load
from fastsort.decide.by_hand import FIXED, best_first, choose_by_hand, keep_best, mark_of
from fastsort.report.choices import apply_choices, read_choices

N = 300


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A project, its sorted folder, and the result; with images that cannot be judged, and a copy."""
    folder = tmp_path_factory.mktemp("by_hand")
    images, truth = fs.simulate_particles(200, 100, snr=0.2, box=32, seed=5)
    images[11] = 0
    images[12] = 3
    images[40] = images[41]
    star = fs.write_project(folder / "project", images, truth)
    assert cli.main(["sort", str(star), "-o", str(folder / "sorted"), "--jobs", "1", "--quiet"]) == 0
    return star, folder / "sorted", load(folder / "sorted" / "results.npz")


def choices_of(result, **changes):
    told = {"kind": "fastsort choices", "version": 1, "images": N, "mark": mark_of(result)}
    return {**told, "threshold": None, "keep": [], "reject": [], **changes}


def save(folder, told):
    path = folder / "choices.json"
    path.write_text(told if isinstance(told, str) else json.dumps(told))
    return path


def rows_of(folder):
    with open(folder / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


@given(st.lists(st.integers(0, N - 1), unique=True, max_size=40), st.integers(0, 40))
def test_only_what_is_chosen_changes(run, chosen, n_kept):
    result = run[2]
    usable = [i for i in chosen if result.reason[i] not in ("bad_pixels", "flat")]
    kept, rejected = usable[:n_kept], usable[n_kept:]
    other = choose_by_hand(result, kept, rejected)
    assert other.keep[kept].all() and not other.keep[rejected].any()
    rest = np.setdiff1d(np.arange(N), usable)
    for name in ("keep", "reason", "rescued"):
        np.testing.assert_array_equal(getattr(other, name)[rest], getattr(result, name)[rest])
    assert (other.reason[kept] == "valid").all() and (other.reason[rejected] != "valid").all()
    assert other.score is result.score and other.junk_probability is result.junk_probability
    assert not (other.keep & other.rescued).any()
    changed = (other.keep != result.keep).sum()
    assert other.errors.known == (result.errors.known and not changed)
    assert ("by hand" in other.errors.remark) == (changed > 0)


def test_mistakes_are_named(run):
    result = run[2]
    for keep, reject, words in (
        ([1, 2], [2], "image 2 is both kept and rejected"),
        ([11], [], "image 11 cannot be kept"),
        ([12], [], "'flat'"),
        ([], [N], "names image 300"),
        ([-1], [], "names image -1"),
        ([0.5], [], "list of indices"),
        ([[1]], [], "list of indices"),
    ):
        with pytest.raises(fs.InputError, match=words):
            choose_by_hand(result, keep, reject)
    with pytest.raises(fs.InputError, match="cannot be kept"):
        keep_best(result, N)


@pytest.mark.parametrize("number", [0, 1, 77, 200])
def test_the_best_are_kept(run, number):
    result = run[2]
    kept = keep_best(result, number)
    assert kept.keep.sum() == number
    judged = ~np.isin(result.reason, FIXED)
    assert (
        result.junk_probability[kept.keep].max(initial=0)
        <= result.junk_probability[judged & ~kept.keep].min()
    )
    np.testing.assert_array_equal(np.flatnonzero(kept.keep), np.sort(best_first(result)[:number]))


def test_choices_are_applied_to_the_run(run, tmp_path):
    _, folder, result = run
    best = best_first(result)
    told = choices_of(
        result, threshold={"best": 100}, keep=[[int(best[150])] * 2], reject=[[int(best[0])] * 2]
    )
    arguments = [str(save(tmp_path, told)), str(folder), "-o", str(tmp_path / "out"), "--quiet"]
    assert cli.main(["apply", *arguments]) == 0
    rows = rows_of(tmp_path / "out")
    kept = {*best[1:100].tolist(), int(best[150])}
    assert {int(row["index"]) for row in rows if row["keep"] == "1"} == kept
    by_hand = {int(row["index"]): int(row["by_hand"]) for row in rows if row["by_hand"] != "0"}
    assert by_hand == {int(best[150]): 1, int(best[0]): -1}
    before = rows_of(folder)
    for name in ("score", "junk_probability", "offset_x"):
        assert [row[name] for row in rows] == [row[name] for row in before]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["by_hand"] == 2 and summary["kept"] == 100 and not summary["errors"]["known"]
    text = (tmp_path / "out" / "kept.star").read_text()
    assert "_fastsortByHand" in text and "_fastsortReason" in text
    # Another choice is made on what was chosen.
    again = load(tmp_path / "out" / "results.npz")
    assert mark_of(again) != mark_of(result) and again.keep.sum() == 100
    assert cli.main(["apply", *arguments[:1], str(tmp_path / "out"), "-o", str(tmp_path / "no")]) == 1


def test_a_list_is_applied_to_the_run(run, tmp_path):
    _, folder, result = run
    wanted = np.sort(best_first(result)[50:150])
    (tmp_path / "list.txt").write_text("".join(f"{i}\n" for i in wanted))
    assert cli.main(["apply", str(tmp_path / "list.txt"), str(folder), "-o", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out")
    assert [int(row["index"]) for row in rows if row["keep"] == "1"] == wanted.tolist()
    changed = result.keep != np.isin(np.arange(N), wanted)
    assert [row["by_hand"] != "0" for row in rows] == changed.tolist()


def test_a_threshold_is_that_of_the_page(run, tmp_path):
    _, _, result = run
    path = save(tmp_path, choices_of(result, threshold={"probability": 0.25}))
    applied = apply_choices(path, result, read_choices(path))
    np.testing.assert_array_equal(applied.keep, fs.cut_again(result, probability=0.25).keep)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"kind": "other"}, "no choices made on a page"),
        ({"version": 2}, "version 2"),
        ({"images": 299}, "299 images"),
        ({"mark": "0" * 16}, "another run"),
        ({"keep": [[2, 1]]}, "damaged"),
        ({"keep": [[1, N]]}, "damaged"),
        ({"keep": [[0, 10**15]]}, "damaged"),
        ({"reject": 5}, "damaged"),
        ({"keep": [[True, 1]]}, "damaged"),
        ({"threshold": {"best": -1}}, "damaged"),
        ({"threshold": {"probability": "x"}}, "damaged"),
        ({"threshold": {"probability": 7}}, "probability"),
        ({"threshold": [1]}, "damaged"),
        ({"keep": [[3, 3]], "reject": [[3, 3]]}, "both kept and rejected"),
        ("{", "no JSON"),
        ("{}", "no choices"),
    ],
)
def test_wrong_choices_are_refused(run, tmp_path, capsys, told, words):
    _, folder, result = run
    path = save(tmp_path, told if isinstance(told, str) else choices_of(result, **told))
    assert cli.main(["apply", str(path), str(folder), "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_choices_need_the_folder_of_their_run(run, tmp_path, capsys):
    star, folder, result = run
    path = save(tmp_path, choices_of(result))
    for more in ([], [str(star)]):
        assert cli.main(["apply", str(path), *more, "-o", str(tmp_path / "out")]) == 1
        assert "folder" in capsys.readouterr().err
    assert cli.main(["apply", str(path), str(folder), "-o", str(tmp_path / "out"), "--fraction", "0.5"]) in (
        1,
        2,
    )


def test_a_page_of_chosen_images_says_what_was_chosen(run, tmp_path):
    _, folder, result = run
    path = save(tmp_path, choices_of(result, reject=[[0, 9]]))
    assert cli.main(["apply", str(path), str(folder), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    assert "changed by hand" in (tmp_path / "out" / "report.html").read_text()
    shutil.rmtree(tmp_path / "out")
