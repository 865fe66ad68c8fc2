"""Picks that a person keeps and rejects: on their page, as a file from it, and with ``fastsort apply``."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_pick import GIVEN, call, coordinates_in, disks, write_micrograph

import fastsort as fs
from fastsort import pick
from fastsort._saved import kind_of, load, save
from fastsort.particles.micrographs import list_micrographs
from fastsort.pick import judge_picks
from fastsort.report.choices import mark_of_picks
from fastsort.report.picks_page import N_SHOWN, choose_micrographs, write_picks_page

N_MICROGRAPHS = 10


def doubtful(result):
    """Return a result in which the picks of each micrograph are as likely as their order says."""
    rank = np.arange(len(result.x)) - np.searchsorted(result.micrograph, result.micrograph)
    probability = np.where(result.keep, 0.995 - 0.013 * rank, result.probability)
    return judge_picks(result._replace(probability=probability), 0.6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of picks in more micrographs than fit into a page of one file, and the result."""
    folder = tmp_path_factory.mktemp("by_hand")
    for number in range(2):
        pixels = disks(number)[0]
        pixels[90:130, 180:230] -= 5
        write_micrograph(folder / "mics" / f"mic_{number}.mrc", pixels)
    for number in range(2, N_MICROGRAPHS):
        shutil.copy(folder / "mics" / f"mic_{number % 2}.mrc", folder / "mics" / f"mic_{number}.mrc")
    picked = folder / "picked"
    more = ["--write-stack", "--box", 24, "--coords-suffix"]
    with pytest.MonkeyPatch.context() as patch:
        # Two teach as much as six, since all show the same; and disks as clear as these leave no doubt.
        patch.setattr(pick, "N_LEARNED_FROM", 2)
        patch.setattr(pick, "_joined", lambda *given, joined=pick._joined: doubtful(joined(*given)))
        assert call("pick", folder / "mics" / "*.mrc", "-o", picked, *GIVEN, *more) == 0
    return SimpleNamespace(
        folder=folder,
        mics=folder / "mics",
        picked=picked,
        result=load(picked / "results.npz"),
        listed=list_micrographs(str(folder / "mics" / "*.mrc")),
    )


def choices_of(result, **changes):
    told = {"kind": "fastsort choices", "version": 1, "images": len(result.x), "mark": mark_of_picks(result)}
    return {**told, "threshold": None, "keep": [], "reject": [], **changes}


def written(path, told):
    path.write_text(told if isinstance(told, str) else json.dumps(told))
    return path


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def assert_whole(folder, keep, result):
    """Assert that all files of a folder of picks say that these places are kept."""
    found, rows = load(folder / "results.npz"), rows_of(folder / "scores.csv")
    assert np.array_equal(found.keep, keep)
    assert [row["keep"] for row in rows] == ["01"[kept] for kept in keep.tolist()]
    assert [row["reason"] == "valid" for row in rows] == keep.tolist()
    assert json.loads((folder / "summary.json").read_text())["kept"] == keep.sum()
    per_micrograph = np.bincount(result.micrograph[keep], minlength=N_MICROGRAPHS).tolist()
    assert [int(row["kept"]) for row in rows_of(folder / "micrographs.csv")] == per_micrograph
    for number, name in enumerate(result.names.tolist()):
        for part, chosen in (("kept", keep), ("rejected", ~keep)):
            path = folder / part / f"{Path(name).stem}_fastsort.star"
            here = chosen & (result.micrograph == number)
            if here.any():
                places = np.column_stack([result.x[here], result.y[here]])
                np.testing.assert_allclose(coordinates_in(path), places, atol=0.006)
            else:
                assert "\n0" not in path.read_text()
    assert str(folder / "kept") in (folder / "autopick.star").read_text()


# On the page.


def kept_on(browser):
    """Return how many places are kept: in all, and by micrograph as the table says."""
    table = browser.run("Array.from($('micrographs').tBodies[0].rows, row => +row.cells[1].textContent)")
    return int(browser.text("now").split()[0].replace(",", "")), table


def expected(result, keep):
    return int(keep.sum()), np.bincount(result.micrograph[keep], minlength=N_MICROGRAPHS).tolist()


def drag(browser, x, y, to_x, to_y, *, modifiers=0):
    """Press the mouse at a place of the picture, move, and release it; in pixels of the picture."""
    browser.run("$('picture').scrollIntoView({ block: 'start' }); scrollBy(0, -60)")
    browser.settle()
    at = browser.run(
        f"[[{x}, {y}], [{to_x}, {to_y}]].map(([x, y]) => {{ const point = new DOMPoint(x, y)"
        ".matrixTransform($('picture').getScreenCTM()); return [point.x, point.y]; })"
    )
    how = {"button": "left", "buttons": 1, "modifiers": modifiers, "clickCount": 1}
    browser.call("Input.dispatchMouseEvent", type="mousePressed", x=at[0][0], y=at[0][1], **how)
    if at[0] != at[1]:
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[1][0], y=at[1][1], **how)
    browser.call("Input.dispatchMouseEvent", type="mouseReleased", x=at[1][0], y=at[1][1], **how)
    browser.settle()


def circle_of(browser, place):
    circle = f"document.getElementById('place-{place}')"
    return browser.run(f"['cx', 'cy'].map(name => +{circle}.getAttribute(name))")


def test_choices_are_made_undone_remembered_saved_and_applied(run, browser, tmp_path, capsys):
    result = run.result
    browser.open(run.picked / "report.html")
    browser.run("localStorage.clear()")
    browser.open(run.picked / "report.html")
    keep = result.keep.copy()
    assert kept_on(browser) == expected(result, keep)
    assert browser.text("changed") == "nothing chosen by hand"
    # Only what is seen is loaded.
    sent = [event["params"]["request"]["url"] for event in browser.events if "request" in event["params"]]
    assert [Path(url).name for url in sent if url.endswith(".png")] == ["picks_00000.png"]
    # A click on one pick, twice, and once more.
    first = int(np.flatnonzero(keep & (result.micrograph == 0))[3])
    for value in (False, True, False):
        drag(browser, *circle_of(browser, first) * 2)
        keep[first] = value
        assert kept_on(browser) == expected(result, keep)
    assert browser.text("changed") == "1 place chosen by hand, 1 changed"
    # A box over the left half of another micrograph.
    browser.click("next")
    scale = browser.run("picture().width") / 340
    here = result.micrograph == 1
    left = here & ((result.x + 0.5) * scale < 100)
    drag(browser, 1, 1, 100, browser.run("picture().height") - 1)
    keep[left] = False
    assert 5 < (left & result.keep).sum() < (here & result.keep).sum()
    assert kept_on(browser) == expected(result, keep)
    browser.click("undo")
    assert kept_on(browser)[0] == result.keep.sum() - 1
    browser.click("redo")
    # With Shift a box keeps what is in sight: not what the threshold rejects.
    drag(browser, 50, 1, 150, 150, modifiers=8)
    inside = left & ((result.x + 0.5) * scale > 50) & ((result.y + 0.5) * scale < 150)
    keep[inside] = result.keep[inside]
    assert (inside & keep).any() and kept_on(browser) == expected(result, keep)
    # One micrograph is rejected beside its picture, one in the table, and one there by mistake.
    browser.run("showPicture(4)")
    browser.click("reject-all")
    for number, words in ((6, "Reject"), (7, "Reject"), (7, "Keep")):
        browser.run(f"document.querySelector('[aria-label=\"{words}: mic_{number}.mrc\"]').click()")
    keep[np.isin(result.micrograph, [4, 6])] = False
    browser.settle()
    assert kept_on(browser) == expected(result, keep)
    # Keys reject the likeliest place and the one to its right, which is kept again.
    browser.run("showPicture(8); $('picture').focus()")
    browser.press("ArrowRight")
    likeliest = int(browser.run("active"))
    assert likeliest == np.flatnonzero(result.micrograph == 8)[0]
    browser.press("r")
    browser.press("ArrowLeft")
    beside = int(browser.run("active"))
    assert result.x[beside] < result.x[likeliest] and result.micrograph[beside] == 8
    browser.press(" ")
    browser.press("u")
    keep[likeliest] = False
    assert kept_on(browser) == expected(result, keep)
    # The threshold decides on all that nobody chose.
    browser.run("$('cut').focus()")
    browser.press("End")
    browser.press("ArrowLeft", 3)
    cut = float(browser.run("$('cut').value"))
    by_hand = np.array(browser.run("Array.from(byHand)"), np.int8)
    keep = np.where(by_hand == 0, result.probability >= cut, by_hand > 0)
    assert cut == 0.96 and kept_on(browser) == expected(result, keep)
    assert kept_on(browser)[1][7] == (result.keep & (result.micrograph == 7)).sum() > keep[here].sum()
    said = kept_on(browser), browser.text("changed")
    browser.open(run.picked / "report.html")
    assert (kept_on(browser), browser.text("changed")) == said
    path = shutil.copy(browser.save("save", "choices.json"), tmp_path / "choices.json")
    list_path = shutil.copy(browser.save("save-list", "kept_places.txt"), tmp_path / "list.txt")
    # Taken back, and loaded from the file.
    browser.click("forget")
    assert kept_on(browser) == expected(result, result.probability >= cut)
    document = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=document, selector="#load")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    browser.wait("$('said').textContent.startsWith('Choices read')")
    browser.settle()
    assert (kept_on(browser), browser.text("changed")) == said
    assert browser.complaints() == []
    # On the disk.
    chosen = tmp_path / "chosen"
    assert call("apply", path, run.picked, "-o", chosen) == 0
    text = capsys.readouterr().out
    assert (
        f"{keep.sum():,} of {len(keep):,} places kept; {np.count_nonzero(by_hand):,} chosen by hand" in text
    )
    assert_whole(chosen, keep, result)
    assert [int(row["by_hand"]) for row in rows_of(chosen / "scores.csv")] == by_hand.tolist()
    assert load(chosen / "results.npz").threshold == cut
    # The page of what was chosen says the same, and has the choices.
    browser.open(chosen / "report.html")
    assert (kept_on(browser), browser.text("changed")) == said
    assert browser.run("$('pixels').href.baseVal") == "report_images/picks_00000.png"
    assert browser.complaints() == []
    # The list says what was kept, not why.
    assert call("apply", list_path, run.picked, "-o", tmp_path / "listed", "--quiet") == 0
    assert_whole(tmp_path / "listed", keep, result)


def test_a_page_of_few_micrographs_is_one_file_and_tells_when_its_folder_is_missing(run, browser, tmp_path):
    few = run.result.micrograph < 2
    columns = ("micrograph", "x", "y", "probability", "height", "keep", "reason")
    result = run.result._replace(
        names=run.result.names[:2],
        contaminated=run.result.contaminated[:2],
        **{name: getattr(run.result, name)[few] for name in columns},
    )
    write_picks_page(tmp_path, "</script><b>", run.listed, result, n_jobs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    browser.open(tmp_path / "report.html")
    assert int(browser.text("now").split()[0]) == result.keep.sum()
    assert browser.run("$('micrograph').options.length") == 2
    assert browser.run("$('pixels').href.baseVal.slice(0, 5)") == "data:"
    assert browser.complaints() == []
    # Where nothing was found, nothing is shown.
    unknown = {"learned": None, "threshold": 1.0, "diameter": math.nan, "diameter_px": math.nan}
    write_picks_page(
        tmp_path, "none", run.listed, result._replace(**unknown, keep=result.keep & False), n_jobs=1
    )
    browser.open(tmp_path / "report.html")
    assert browser.run("$('figure').hidden && !$('no-pictures').hidden")
    assert browser.text("now") == "0 kept" and browser.complaints() == []
    shutil.copy(run.picked / "report.html", tmp_path / "alone.html")
    browser.call("Page.navigate", url=(tmp_path / "alone.html").as_uri())
    browser.wait("document.getElementById('missing') && !document.getElementById('missing').hidden")


def test_pages_do_not_depend_on_workers(run, tmp_path):
    for n_jobs in (1, 2):
        (tmp_path / str(n_jobs)).mkdir()
        write_picks_page(tmp_path / str(n_jobs), "picked", run.listed, run.result, n_jobs=n_jobs)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("1", "2")
    )
    assert one == two and len(one) == N_MICROGRAPHS + 3
    # The page of the command also says how it was called.
    made, *_ = one["report.html"].split(b'<div class="run">')
    assert (run.picked / "report.html").read_bytes().startswith(made)
    assert f"fastsort pick &#x27;{run.mics}" in (run.picked / "report.html").read_text()


def test_a_hundred_micrographs_are_shown_from_most_picks_to_fewest(run):
    n = 1000
    count = np.random.default_rng(0).integers(0, 30, n)
    micrograph = np.repeat(np.arange(n, dtype=np.int32), count)
    result = run.result._replace(
        names=np.array([f"{number}.mrc" for number in range(n)]),
        micrograph=micrograph,
        keep=np.ones(len(micrograph), bool),
    )
    shown = choose_micrographs(result)
    assert len(shown) == N_SHOWN == 100 and (np.diff(shown) > 0).all()
    assert {count.min(), count.max()} <= {*count[shown].tolist()}
    assert abs(np.median(count[shown]) - np.median(count)) <= 1


# What is judged, and written.


def test_choices_overrule_the_threshold_and_nothing_else(run):
    result = run.result
    by_hand = np.zeros(len(result.x), np.int8)
    unlikely, likely = np.flatnonzero(~result.keep)[:2], np.flatnonzero(result.keep)[:2]
    by_hand[unlikely], by_hand[likely] = 1, -1
    chosen = judge_picks(result, by_hand=by_hand)
    assert (chosen.keep != result.keep).sum() == 4
    assert chosen.reason[likely].tolist() == ["by_hand"] * 2 and (chosen.reason[unlikely] == "valid").all()
    # Another threshold leaves them, and they can be taken back.
    stricter = judge_picks(chosen, 0.97)
    assert stricter.keep[unlikely].all() and not stricter.keep[likely].any()
    back = judge_picks(stricter, result.threshold, np.zeros_like(by_hand))
    assert np.array_equal(back.keep, result.keep)
    rest = np.setdiff1d(np.arange(len(by_hand)), unlikely)
    below = rest[(result.probability[rest] >= result.threshold) & (result.probability[rest] < 0.97)]
    assert (stricter.reason[below] == "noise").sum() == len(below) - np.isin(below, likely).sum() > 0
    for threshold in (0, 1, 2):
        with pytest.raises(fs.InputError, match="between 0 and 1"):
            judge_picks(result, threshold)


def test_a_threshold_is_applied_and_what_was_extracted_is_not_left_stale(run, tmp_path, capsys):
    out = tmp_path / "stricter"
    assert call("apply", run.picked, "--threshold", 0.9, "-o", out) == 0
    keep = run.result.probability >= 0.9
    assert_whole(out, keep, run.result)
    assert not list(out.glob("particles*")) and "by_hand" not in rows_of(out / "scores.csv")[0]
    suffix = (run.picked / "coords" / "coords_suffix_fastsort.star").read_text()
    assert (out / "coords" / "coords_suffix_fastsort.star").read_text() == suffix
    [line] = [line for line in capsys.readouterr().out.splitlines() if "extracted" in line]
    # The line does what it says, without looking for picks.
    words = line.split("fastsort ")[1].replace("'", "").split()
    assert call(*words, "--quiet") == 0
    found = load(out / "results.npz")
    assert np.array_equal(found.keep, keep)
    inside = ((found.x > 12) & (found.x < 328) & (found.y > 12) & (found.y < 288))[keep].sum()
    assert len(fs.open_particles(out / "particles.star")) == pytest.approx(inside, abs=3)


def test_an_update_keeps_what_was_chosen(run, tmp_path):
    result, chosen = run.result, tmp_path / "chosen"
    told = choices_of(result, keep=[[len(result.x) - 1] * 2], reject=[[0, 4]])
    assert call("apply", written(tmp_path / "choices.json", told), run.picked, "-o", chosen, "--quiet") == 0
    before = load(chosen / "results.npz")
    mics = Path(shutil.copytree(run.mics, tmp_path / "mics"))
    os.rename(mics / "mic_9.mrc", mics / "new.mrc")
    after = fs.pick_particles(
        [*before.names.tolist(), str(mics / "new.mrc")], earlier=before, threshold=0.9, n_jobs=1
    )
    n = len(before.x)
    assert after.by_hand[:n].tolist() == before.by_hand.tolist() and not after.by_hand[n:].any()
    assert not after.keep[:5].any() and after.keep[n - 1]
    free = after.by_hand == 0
    assert np.array_equal(after.keep[free], after.probability[free] >= 0.9) and free[n:].sum() > 10


def test_micrographs_that_have_moved_are_named_and_those_that_are_gone_not_shown(run, tmp_path, capsys):
    picked, mics = (
        Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in (run.picked, run.mics)
    )
    summary = json.loads((picked / "summary.json").read_text())
    summary["opened_with"]["micrographs"] = [str(tmp_path / "gone" / "*.mrc")]
    (picked / "summary.json").write_text(json.dumps(summary))
    assert call("apply", picked, "--threshold", 0.9, "-o", tmp_path / "without") == 0
    assert "the page shows none: give --micrographs" in capsys.readouterr().out
    assert not list((tmp_path / "without" / "report_images").glob("*.png"))
    moved = ["--micrographs", mics / "*.mrc"]
    assert call("apply", picked, "--threshold", 0.9, "-o", tmp_path / "with", *moved) == 0
    assert "not at hand" not in capsys.readouterr().out
    shown = sorted((tmp_path / "with" / "report_images").glob("*.png"))
    assert [path.read_bytes() for path in shown] == [
        path.read_bytes() for path in sorted((run.picked / "report_images").glob("*.png"))
    ]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["PICKED"], "give --threshold"),
        (["PICKED", "--probability", "0.5"], "--probability does nothing with a folder of picks"),
        (["PICKED", "--threshold", "1.5"], "between 0 and 1; got 1.5"),
        (["PICKED", "x", "--threshold", "0.5"], "x does nothing with picks"),
        (["PICKED", "--threshold", "0.5", "--data-dir", "x"], "--data-dir does nothing"),
        (["CHOICES", "PICKED", "--learn"], "--learn does nothing with what a person chose of picks"),
        (["CHOICES", "PICKED", "--threshold", "0.5"], "--threshold does nothing"),
        (["OTHER", "PICKED"], "the page of another run"),
        (["BEST", "PICKED"], "save the choices on the page again"),
        (["BOTH", "PICKED"], "save the choices on the page again"),
        (["FEWER", "PICKED"], "the folder of that page"),
        (["LIST", "PICKED"], "999999"),
        (["CHOICES", "DAMAGED"], "pick again"),
        (["CHOICES", "PICKED", "--micrographs", "none/*.mrc"], "none/*.mrc"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(run, tmp_path, capsys, words, part):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    save(damaged / "results.npz", run.result._replace(x=run.result.x[:-1]))
    (tmp_path / "list.txt").write_text("999999\n")
    given = {
        "PICKED": run.picked,
        "DAMAGED": damaged,
        "LIST": tmp_path / "list.txt",
        "CHOICES": written(tmp_path / "choices.json", choices_of(run.result)),
        "OTHER": written(tmp_path / "other.json", choices_of(run.result, mark="another")),
        "BEST": written(tmp_path / "best.json", choices_of(run.result, threshold={"best": 3})),
        "BOTH": written(tmp_path / "both.json", choices_of(run.result, keep=[[0, 1]], reject=[[1, 2]])),
        "FEWER": written(tmp_path / "fewer.json", choices_of(run.result, images=3)),
    }
    assert call("apply", *(given.get(word, word) for word in words), "-o", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_kind_of_a_result_is_told_without_reading_it(run, tmp_path):
    assert kind_of(run.picked / "results.npz") == "pick-result"
    assert kind_of(run.picked / "summary.json") is None and kind_of(tmp_path / "none.npz") is None
    save(tmp_path / "other.npz", run.result.learned)
    assert kind_of(tmp_path / "other.npz") == "learned-picks"
