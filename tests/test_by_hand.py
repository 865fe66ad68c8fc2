"""Verdicts that a person changed: in Python, as a file from the page, and with ``fastsort apply``."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsort as fs
from fastsort import cli
from fastsort._saved import load
from fastsort.decide.by_hand import FIXED, best_first, choose_by_hand, keep_best, mark_of
from fastsort.decide.corrections import learn_from_choices
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


def test_the_guide_explains_every_column(run, tmp_path, capsys, no_pictures):
    assert cli.main(["guide", "decisions"]) == 0
    table = capsys.readouterr().out.partition("## The columns of scores.csv")[2]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    explained = {name for row in rows for name in re.findall("`([a-z_]+)`", row)}
    _, folder, result = run
    folders = [folder, tmp_path / "chosen"]
    path = save(tmp_path, choices_of(result, keep=[[3, 3]]))
    assert cli.main(["apply", str(path), str(folder), "-o", str(folders[1]), "--quiet"]) == 0
    for each in folders:
        columns = {*rows_of(each)[0]}
        assert columns <= explained, columns - explained
    assert "by_hand" in columns and "vote_radial" in columns


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
    judged = ~np.isin(result.reason_code, FIXED)
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
    page = (tmp_path / "out" / "report.html").read_text()
    assert "changed by hand" in page and '"title":"by hand"' in page
    shutil.rmtree(tmp_path / "out")


# Learning from choices.


def spoiled(result):
    """The same run with a threshold that rejects nearly all."""
    return fs.cut_again(result, fraction=0.03)


def balanced(keep, label):
    return (keep[label].mean() + (~keep[~label]).mean()) / 2


@pytest.fixture(scope="module")
def plain():
    """A sorted set without images that cannot be judged, and the truth."""
    images, truth = fs.simulate_particles(400, 300, snr=0.1, box=32, junk="noise", seed=8)
    return fs.sort_particles(images, n_jobs=1), truth.label


def chosen_by_chance(label, number, seed=0):
    rows = np.random.default_rng(seed).choice(len(label), number, replace=False)
    return rows[label[rows]], rows[~label[rows]]


@pytest.mark.parametrize("number", [30, 100])
def test_a_poor_verdict_gets_better(plain, number):
    result, label = plain
    poor = spoiled(result)
    told = learn_from_choices(poor, *chosen_by_chance(label, number))
    rest = told.result.measurements["by_hand"] == 0
    assert told.learned and told.after > told.before
    assert balanced(told.result.keep[rest], label[rest]) > balanced(poor.keep[rest], label[rest]) + 0.2
    assert told.changed == (told.result.keep != poor.keep)[rest].sum() > 50
    assert not told.result.errors.known and "learned from" in told.result.errors.remark
    # The score is the sum of the votes with the new weights, and the verdict that of the threshold.
    learned, after = told.result.learned, told.result
    np.testing.assert_allclose(after.score, learned.score(after.votes))
    np.testing.assert_array_equal((after.score <= after.threshold)[rest], after.keep[rest])
    p = after.junk_probability
    assert (np.diff(p[np.argsort(after.score)]) >= 0).all() and ((p >= 0) & (p <= 1)).all()


def test_a_good_verdict_gets_no_worse(plain):
    result, label = plain
    n_learned = 0
    for seed in range(12):
        told = learn_from_choices(result, *chosen_by_chance(label, 30, seed))
        rest = told.result.measurements["by_hand"] == 0
        n_learned += told.learned
        assert balanced(told.result.keep[rest], label[rest]) > balanced(result.keep[rest], label[rest]) - 0.01
        if not told.learned:
            np.testing.assert_array_equal(told.result.keep[rest], result.keep[rest])
            assert told.result.score is result.score and told.changed == 0
    assert n_learned < 6


def test_choices_that_mean_nothing_teach_nothing(plain):
    result, label = plain
    accepted = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = rng.choice(len(label), 40, replace=False)
        kept = rng.random(40) < 0.5
        accepted += learn_from_choices(spoiled(result), rows[kept], rows[~kept]).learned
    # Chance alone passes the check in about one of six.
    assert accepted <= 7


def test_too_few_choices_teach_nothing(plain):
    result, label = plain
    good, junk = np.flatnonzero(label), np.flatnonzero(~label)
    for keep, reject in ((good[:1], junk[:9]), ([], []), (good[:9], [])):
        told = learn_from_choices(result, keep, reject)
        assert not told.learned and np.isnan(told.before) and told.result.keep[np.array(keep, int)].all()
    off = result._replace(parameters={**result.parameters, "keep_off_centre": True})
    with pytest.raises(fs.InputError, match="off-centre"):
        learn_from_choices(off, [1, 2], [3, 4])


def test_more_images_are_judged_by_what_was_learned(plain):
    result, label = plain
    told = learn_from_choices(spoiled(result), *chosen_by_chance(label, 100))
    votes = {name: values[:7] for name, values in told.result.votes.items()}
    np.testing.assert_allclose(told.result.learned.score(votes), told.result.score[:7])


def test_the_command_learns(run, tmp_path, capsys, no_pictures):
    star, folder, _ = run
    with open(star.parent / "truth.csv", newline="") as file:
        label = np.array([row["label"] == "1" for row in csv.DictReader(file)])
    poor = tmp_path / "poor"
    assert cli.main(["apply", str(folder), "-o", str(poor), "--fraction", "0.05", "--quiet"]) == 0
    keep, reject = chosen_by_chance(label, 60, seed=3)
    keep = keep[~np.isin(keep, [11, 12])]
    told = choices_of(load(poor / "results.npz"), keep=[[int(i)] * 2 for i in keep])
    told["reject"] = [[int(i)] * 2 for i in reject]
    path, out = save(tmp_path, told), tmp_path / "out"
    capsys.readouterr()
    assert cli.main(["apply", str(path), str(poor), "-o", str(out), "--learn"]) == 0
    said = capsys.readouterr().out
    assert "other verdicts changed; balanced accuracy on the choices" in said
    learned = load(out / "results.npz")
    assert learned.keep.sum() > 100
    # The same in the folder of the run itself, and as part of an update.
    updated = shutil.copytree(poor, tmp_path / "updated")
    for folder_of_run, more in ((poor, []), (updated, [str(star), "--update", "--jobs", "1"])):
        sort = ["sort", "-o", str(folder_of_run), "--learn-from", str(path), *more]
        assert cli.main(sort) == 0
        assert said.splitlines()[0] in capsys.readouterr().out
        again = load(folder_of_run / "results.npz")
        np.testing.assert_array_equal(again.keep, learned.keep)
        assert again.learned.weights == learned.learned.weights and not again.errors.known
        assert cli.main(sort) == 1
        assert "page of another run" in capsys.readouterr().err
    assert cli.main(["sort", "-o", str(tmp_path / "none"), "--learn-from", str(path)]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert cli.main(["sort", "-o", str(poor), "--learn-from", str(path), "--diameter", "90"]) == 1
    assert "--diameter does nothing with --learn-from" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("1\n2\n")
    for first in (tmp_path / "list.txt", folder):
        more = [str(poor)] if first.is_file() else []
        assert cli.main(["apply", str(first), *more, "-o", str(tmp_path / "no"), "--learn"]) == 1
        assert "--learn" in capsys.readouterr().err
