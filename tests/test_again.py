"""The folder of a finished run: written, read back, and written again."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest

from fastsort import InputError, cli
from fastsort._reasons import reason_codes
from fastsort._saved import load, save
from fastsort._version import __version__
from fastsort.decide.combine import OFFSET
from fastsort.decide.result import SortResult
from fastsort.decide.votes import LearnedMethods, LearnedVerdict
from fastsort.particles.open import open_particles
from fastsort.report import drawing
from fastsort.report.drawing import redraw
from fastsort.report.finished import load_result, open_finished
from fastsort.report.folder import RESULT_NAMES
from fastsort.report.lists import read_list, write_choice
from fastsort.report.results import write_results
from fastsort.simulate import simulate_particles, write_project

N = 60


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    images, truth = simulate_particles(30, 30, snr=0.5, box=32, junk="all", n_micrographs=3, seed=1)
    return write_project(tmp_path_factory.mktemp("project") / "p", images, truth)


@pytest.fixture(scope="module")
def simulated():
    return simulate_particles(30, 30, snr=0.5, box=32, seed=2)


@pytest.fixture
def stack(simulated, tmp_path):
    images, truth = simulated
    path = tmp_path / "images.mrcs"
    with mrcfile.new(path) as file:
        file.set_data(images)
        file.voxel_size = truth.pixel_size
    return path


def make_result(n=N, seed=0, **changes):
    """What sorting returns: the images with the lowest scores are kept, three are rescued."""
    rng = np.random.default_rng(seed)
    score = rng.normal(0, 3, n)
    keep = score < np.median(score)
    rescued = np.zeros(n, dtype=bool)
    rescued[np.flatnonzero(~keep)[:3]] = True
    reason = np.where(keep, "valid", np.where(rescued, "rare_view", "noise"))
    fields = {
        "keep": keep,
        "score": score,
        "reason_code": reason_codes(reason),
        "suspicion_code": reason_codes(np.where(keep, "noise", reason)),
        "rescued": rescued,
        "junk_probability": 1 / (1 + np.exp(-score)),
        "votes": {"radial": score},
        "offset": rng.normal(0, 2, (n, 2)).astype(np.float32),
        "measurements": {
            "peak": rng.random(n),
            "pixel_mean": np.zeros(n, np.float32),
            "pixel_std": np.ones(n, np.float32),
        },
        "threshold": float(np.median(score)),
        "diameter": 50.0,
        "diameter_px": 20.0,
        "diameter_estimated": True,
        "contrast": "bright",
        "phase_flipped": False,
        "subspaces": None,
        "errors": None,
        "views": None,
        "learned": LearnedVerdict(
            LearnedMethods(None, None, None), {"radial": 1.0, OFFSET: 0.0}, {}, (np.nan, np.nan)
        ),
        "parameters": {"method": "radial", "seed": 0},
        "seconds": {"total": 1.0},
    }
    return SortResult(**{**fields, **changes})


def finished_at(folder, source, **changes):
    folder.mkdir()
    write_results(folder, open_particles(source), make_result(**changes))
    return folder


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_equal(one, other):
    for name, a, b in zip(one._fields, one, other, strict=True):
        if isinstance(a, dict):
            assert a.keys() == b.keys(), name
            for key in a:
                np.testing.assert_array_equal(a[key], b[key], err_msg=f"{name} {key}")
        elif isinstance(a, LearnedVerdict):
            assert_equal(a, b)
        elif a is None or isinstance(a, LearnedMethods):
            assert a == b
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_results_are_read_back_as_they_were(project, tmp_path):
    particles, result = open_particles(project), make_result()
    summary = write_results(tmp_path, particles, result)
    assert summary["kept"] == 30 and summary["rescued"] == 3 and summary["rejected"] == 27
    assert set(names_in(tmp_path)) <= set(RESULT_NAMES)
    files = {"kept.star", "rejected.star", "rescued.star", "scores.csv", "summary.json", "results.npz"}
    assert set(names_in(tmp_path)) == files | {"micrographs.csv"}
    away = project.rename(project.with_suffix(".away"))
    assert_equal(load_result(tmp_path), result)
    away.rename(project)
    finished = open_finished(tmp_path)
    assert_equal(finished.result, result)
    assert repr(result).splitlines()[:2] == [
        "SortResult: 30 of 60 images kept, 27 rejected, 3 set aside",
        "  keep=bool (60,)",
    ]
    assert finished.particles.names == particles.names and finished.summary["kept"] == 30
    with open(tmp_path / "micrographs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and sum(int(row["kept"]) for row in rows) == 30
    assert json.loads((tmp_path / "summary.json").read_text())["micrographs"]["number"] == 3


def test_model_of_the_subspaces_is_left_out(project, tmp_path):
    model = SimpleNamespace(trace=SimpleNamespace(n_images=()))
    result = make_result(subspaces=SimpleNamespace(model=model))
    write_results(tmp_path, open_particles(project), result)
    assert load(tmp_path / "results.npz").subspaces is None
    assert open_finished(tmp_path).summary["subspaces"]["number"] == 0
    write_results(tmp_path, open_particles(project), make_result(), learned={"number": 2})
    assert load(tmp_path / "results.npz").subspaces is None
    assert open_finished(tmp_path).summary["subspaces"] == {"number": 2}


def test_stack_has_no_micrographs(stack, tmp_path):
    folder = finished_at(tmp_path / "out", stack)
    assert "micrographs.csv" not in names_in(folder) and "rescued.txt" in names_in(folder)
    assert_equal(open_finished(folder).result, make_result())


def test_origins(project, tmp_path):
    particles = open_particles(project)
    write_results(tmp_path, particles, make_result(), recentre=True)
    lines = (tmp_path / "kept.star").read_text().splitlines()
    labels = [line.split()[0] for line in lines if line.startswith("_")]
    labels = labels[labels.index("_rlnImageName") :] if "_rlnImageName" in labels else labels
    assert "_rlnOriginXAngst" in labels and "_rlnOriginYAngst" in labels
    assert json.loads((tmp_path / "summary.json").read_text())["recentred"] is True
    with pytest.raises(InputError, match=r"STAR file"):
        write_results(tmp_path, open_particles(particles.read(0, N)), make_result(), recentre=True)


def test_info_says_what_a_folder_holds(project, tmp_path, capsys):
    parameters = {"method": "radial", "seed": 3, "discard": None}
    folder = finished_at(tmp_path / "out", project, parameters=parameters)
    assert cli.main(["info", str(folder)]) == 0
    text = capsys.readouterr().out
    facts = {line[2:16].strip(): line[16:] for line in text.splitlines()[1:]}
    assert text.startswith(f"{folder}: particles, sorted by fastsort {__version__}\n")
    assert str(project) in text
    assert (facts["images"], facts["kept"], facts["rejected"], facts["set aside"]) == ("60", "30", "27", "3")
    assert facts["settings"] == "method radial, seed 3, diameter 50.0 A (found)"
    assert "kept.star, micrographs.csv, rejected.star, rescued.star, results.npz" in facts["files"]
    assert cli.main(["info", str(folder), "--pixel-size", "2"]) == 1
    assert "--pixel-size does nothing with the folder of a run" in capsys.readouterr().err
    (folder / "results.npz").unlink()
    assert cli.main(["info", str(folder)]) == 1
    assert "holds no results.npz" in " ".join(capsys.readouterr().out.split())
    (folder / "summary.json").write_text("{}")
    assert cli.main(["info", str(folder)]) == 1
    assert "was not written by fastsort" in capsys.readouterr().err


# A run that cannot be taken up.


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no results\.npz"):
        open_finished(tmp_path)
    save(tmp_path / "results.npz", make_result())
    with pytest.raises(InputError, match=r"no summary\.json"):
        open_finished(tmp_path)
    with pytest.raises(InputError, match=r"there is no folder .*gone"):
        load_result(tmp_path / "gone")
    (tmp_path / ".gone.work").mkdir()
    with pytest.raises(InputError, match=r"the run into .*gone has not ended: start the same command again"):
        load_result(tmp_path / "gone")


@pytest.mark.parametrize("kind", ["summary", "results", "other", "code", "no input"])
def test_damaged_run_is_refused(project, tmp_path, kind):
    folder = finished_at(tmp_path / "out", project)
    if kind == "summary":
        (folder / "summary.json").write_text("{")
    elif kind == "results":
        data = (folder / "results.npz").read_bytes()
        (folder / "results.npz").write_bytes(data[: len(data) // 2])
    elif kind == "other":
        save(folder / "results.npz", {"keep": np.ones(N)})
    elif kind == "code":
        save(folder / "results.npz", make_result(reason_code=np.full(N, 99, np.int8)))
    else:
        (folder / "summary.json").write_text("{}")
    with pytest.raises(InputError, match=r"name the input" if kind == "no input" else "again|no result"):
        open_finished(folder)


def test_input_that_has_moved_is_named(stack, tmp_path):
    folder = finished_at(tmp_path / "out", stack)
    moved = stack.rename(tmp_path / "moved.mrcs")
    with pytest.raises(InputError, match=r"images\.mrcs, which was sorted into .* is gone"):
        open_finished(folder)
    assert open_finished(folder, moved).particles.path == str(moved)


def test_input_that_has_changed_is_refused(project, tmp_path):
    folder = finished_at(tmp_path / "out", project)
    text = project.read_text()
    lines = text.rstrip("\n").split("\n")
    other = project.with_name("other.star")
    other.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(InputError, match="it has 59 images, and 60 were sorted"):
        open_finished(folder, other)
    other.write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n")
    with pytest.raises(InputError, match="its image 58, counted from 0, is"):
        open_finished(folder, other)
    small = project.with_name("small.mrcs")
    with mrcfile.new(small) as file:
        file.set_data(np.zeros((N, 24, 24), np.float32))
    with pytest.raises(InputError, match="its box is 24 px, and was 32 px"):
        open_finished(folder, small)


# The report, drawn again.


@pytest.mark.slow
def test_report_is_replaced(project, tmp_path):
    folder = finished_at(tmp_path / "out", project)
    for name in ("report.png", "report.html"):
        (folder / name).write_text("old")
    before = {name: (folder / name).read_bytes() for name in names_in(folder) if "report" not in name}
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (folder / "report.html").read_text()[:200].lower()
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert names_in(tmp_path) == ["out"] and set(names_in(folder)) <= set(RESULT_NAMES)


@pytest.mark.slow
def test_report_into_a_file(project, tmp_path, capsys):
    folder = finished_at(tmp_path / "out", project)
    before = names_in(folder)
    page = tmp_path / "new.html"
    assert cli.main(["report", str(folder), "-o", str(page)]) == 0
    assert capsys.readouterr().out.split() == [str(page)]
    assert page.stat().st_size > 1000 and names_in(folder) == before
    assert names_in(tmp_path) == ["new.html", "out"]
    written = page.read_bytes()
    shown = tmp_path / "denoised.html"
    assert cli.main(["report", str(folder), "-o", str(shown), "--denoised"]) == 0
    assert shown.stat().st_size > page.stat().st_size
    assert cli.main(["report", str(folder), "-o", str(page)]) == 1
    assert "exists" in capsys.readouterr().err and page.read_bytes() == written
    for name, word in (("new.pdf", ".html or .png"), ("deep/new.png", "no folder")):
        assert cli.main(["report", str(folder), "-o", str(tmp_path / name)]) == 1
        assert word in capsys.readouterr().err
    assert redraw(open_finished(folder), tmp_path / "new.png") == [tmp_path / "new.png"]
    assert names_in(tmp_path) == ["denoised.html", "new.html", "new.png", "out"]


def test_failed_report_leaves_the_old_one(project, tmp_path, monkeypatch, capsys):
    folder = finished_at(tmp_path / "out", project)
    (folder / "report.png").write_text("old")

    def fail(path, *_, **__):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drawing, "draw_page", fail)
    assert cli.main(["report", str(folder)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert (folder / "report.png").read_text() == "old" and names_in(tmp_path) == ["out"]


def test_page_without_matplotlib(project, tmp_path, monkeypatch, capsys):
    folder = finished_at(tmp_path / "out", project)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["report", str(folder)]) == 0
    assert "pip install 'fastsort[report]'" in capsys.readouterr().err
    assert "report.png" not in names_in(folder)


# Lists.


def test_lists_are_read(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\ufeff# kept by hand: 3 of 8 images\r\n5\r\n\r\n # more\r\n0 # good\r\n7\r\n", "utf-8")
    assert np.flatnonzero(read_list(path, 8)).tolist() == [0, 5, 7]
    path.write_text("2\n1")
    assert np.flatnonzero(read_list(path, 3)).tolist() == [1, 2]
    path.write_text("# fastsort kept images: 2 of 3, junk probability at most 0.5, a.star\n0\n2\n")
    assert np.flatnonzero(read_list(path, 3)).tolist() == [0, 2]
    path.write_text("# kept images, 0 of 3: none\n")
    assert not read_list(path, 3).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n8\n", "line 2 of .* is 8, but the input has 8 images, 0 to 7"),
        ("-1\n", "line 1 of .* is -1"),
        ("1\n# x\n2\n1\n", "line 4 of .* repeats 1, which line 1 has"),
        ("1\ntwo\n", "line 2 of .* is 'two'"),
        ("1.0\n", "line 1 of .* is '1.0'"),
        ("1 2\n", "'1 2'"),
        ("9" * 30, "'9999"),
        ("x" * 500, r"'x{37}\.\.\.'"),
        ("", "names no images"),
        ("# none\n\n", "names no images"),
        ("# 2 of 9 images\n1\n2\n", "another set: it was made from 9 images, and the input has 8"),
        ("# 1,000 of 2,000 images\n1\n", "2,000"),
        ("# 3 of 8 images\n1\n2\n", "says that it has 3 images, but names 2"),
        ("# 0 of 8 images\n1\n", "says that it has 0 images, but names 1"),
        ("1\0\n", "binary"),
    ],
)
def test_wrong_lists_are_refused(tmp_path, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_list(path, 8)


def data_rows(path):
    return [line for line in Path(path).read_bytes().split(b"\n") if b"@" in line]


def test_list_of_a_star_file_keeps_lines_byte_for_byte(project, tmp_path, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text("# 3 of 60 images\n59\n0\n17\n")
    assert cli.main(["apply", str(listed), str(project), "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"3 kept, 57 rejected; results in {tmp_path / 'out'}\n"
    assert names_in(tmp_path / "out") == ["kept.star", "rejected.star", "summary.json"]
    rows = data_rows(project)
    assert data_rows(tmp_path / "out" / "kept.star") == [rows[0], rows[17], rows[59]]
    assert len(data_rows(tmp_path / "out" / "rejected.star")) == 57
    other = [line for line in project.read_bytes().split(b"\n") if b"@" not in line]
    kept = (tmp_path / "out" / "kept.star").read_bytes().split(b"\n")
    assert [line for line in kept if b"@" not in line] == other
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [summary[name] for name in ("images", "kept", "rejected")] == [60, 3, 57]
    assert summary["input"] == str(project) and summary["list"] == str(listed)


def test_our_own_list_of_a_stack(stack, tmp_path):
    folder = finished_at(tmp_path / "out", stack)
    assert (
        cli.main(["apply", str(folder / "kept.txt"), str(stack), "-o", str(tmp_path / "new"), "--quiet"]) == 0
    )
    assert (tmp_path / "new" / "kept.txt").read_bytes() == (folder / "kept.txt").read_bytes()
    rejected = np.loadtxt(tmp_path / "new" / "rejected.txt", dtype=int)
    assert rejected.tolist() == np.flatnonzero(~make_result().keep).tolist()
    with pytest.raises(InputError, match="another set"):
        read_list(folder / "kept.txt", N + 1)


def test_choice_of_all(project, tmp_path):
    summary = write_choice(tmp_path, open_particles(project).table, np.ones(N, bool), "list.txt", project)
    assert summary["kept"] == N and summary["list"] == os.path.abspath("list.txt")
    assert (tmp_path / "kept.star").read_bytes() == project.read_bytes()
    assert data_rows(tmp_path / "rejected.star") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["LIST"], "is a list: say of which STAR file, .cs file or stack"),
        (["LIST", "STAR", "--fraction", "0.5"], "--fraction does nothing with a list"),
        (["LIST", "STAR", "--unanimous"], "--unanimous does nothing with a list"),
        (["nowhere.txt", "STAR"], "nowhere.txt does not exist"),
        (["LIST", "nowhere.star"], "nowhere.star does not exist"),
        (["EMPTY"], "holds no results.npz"),
        (["SORTED", "--pixel-size", "2"], "--pixel-size does nothing with a finished run"),
    ],
)
def test_wrong_use_of_apply(project, tmp_path, capsys, arguments, words):
    (tmp_path / "list.txt").write_text("1\n")
    (tmp_path / "empty").mkdir()
    folder = finished_at(tmp_path / "sorted", project)
    places = {"LIST": tmp_path / "list.txt", "STAR": project, "EMPTY": tmp_path / "empty", "SORTED": folder}
    before = names_in(tmp_path)
    assert (
        cli.main(["apply", *(str(places.get(word, word)) for word in arguments), "-o", str(tmp_path / "o")])
        == 1
    )
    captured = capsys.readouterr()
    assert captured.err.startswith("fastsort: error: ") and words in captured.err
    assert captured.err.count("\n") == 1 and captured.out == "" and names_in(tmp_path) == before


def test_list_in_the_folder_that_is_replaced(project, tmp_path, capsys):
    folder = finished_at(tmp_path / "out", project)
    listed = folder / "kept.txt"
    listed.write_text("1\n")
    assert cli.main(["apply", str(listed), str(project), "-o", str(folder), "--overwrite"]) == 1
    assert "lies in the output folder" in capsys.readouterr().err and listed.exists()


# A finished run with another threshold.


def scores_of(folder):
    with open(folder / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def cut_into(tmp_path, folder, *options):
    return cli.main(["apply", str(folder), "-o", str(tmp_path / "new"), "--overwrite", *options])


@pytest.mark.slow
def test_another_cut_keeps_the_best(project, tmp_path, capsys):
    folder = finished_at(tmp_path / "out", project)
    score = make_result().score
    before = {name: (folder / name).read_bytes() for name in names_in(folder)}
    for options, n_kept in ((["--discard", "12"], 48), (["--fraction", "0.25"], 15)):
        assert cut_into(tmp_path, folder, *options) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"60 images: {n_kept} kept") and text.endswith(f"{tmp_path / 'new'}\n")
        keep = np.array([row["keep"] == "1" for row in scores_of(tmp_path / "new")])
        assert keep.sum() == n_kept and score[keep].max() < score[~keep].min()
        names = set(names_in(tmp_path / "new"))
        assert {"kept.star", "rejected.star", "results.npz", "report.png", "report.html"} <= names
        np.testing.assert_array_equal(load(tmp_path / "new" / "results.npz").keep, keep)
    assert {name: (folder / name).read_bytes() for name in names_in(folder)} == before


def test_cut_by_probability(project, tmp_path, no_pictures):
    folder = finished_at(tmp_path / "out", project)
    assert cut_into(tmp_path, folder, "--probability", "0.9", "--quiet") == 0
    keep = [row["keep"] == "1" for row in scores_of(tmp_path / "new")]
    assert keep == (make_result().junk_probability < 0.9).tolist()


def test_cut_again_keeps_what_the_run_was_asked_for(project, tmp_path, no_pictures):
    folder = tmp_path / "out"
    folder.mkdir()
    learned = {"number": 2, "components": 3}
    write_results(folder, open_particles(project), make_result(), recentre=True, learned=learned)
    assert cut_into(tmp_path, folder, "--discard", "5", "--quiet") == 0
    summary = json.loads((tmp_path / "new" / "summary.json").read_text())
    assert summary["recentred"] is True and summary["subspaces"] == learned and summary["kept"] == 55
    assert "_rlnOriginXAngst" in (tmp_path / "new" / "kept.star").read_text()


def test_cut_in_place(project, tmp_path, no_pictures):
    folder = finished_at(tmp_path / "out", project)
    assert (
        cli.main(["apply", str(folder), "-o", str(folder), "--overwrite", "--discard", "1", "--quiet"]) == 0
    )
    assert json.loads((folder / "summary.json").read_text())["kept"] == 59
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "options",
    [["--fraction", "1.5"], ["--discard", "-1"], ["--discard", "61"], ["--probability", "nan"]],
    ids=str,
)
def test_cut_that_cannot_be(project, tmp_path, capsys, options):
    folder = finished_at(tmp_path / "out", project)
    assert cut_into(tmp_path, folder, *options) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("fastsort: error: ") and captured.err.count("\n") == 1
    assert names_in(tmp_path) == ["out"]


def test_one_cut_at_a_time(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cut_into(tmp_path, tmp_path, "--discard", "1", "--fraction", "0.5")
    assert stop.value.code == 2 and "not allowed with" in capsys.readouterr().err
