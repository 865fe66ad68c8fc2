"""The command, run as a user runs it."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
import starfile

from fastsort import __version__, cli
from fastsort.cli import demo
from fastsort.cli.printing import print_verdicts
from fastsort.particles.mrc import write_stack
from fastsort.particles.open import open_particles
from fastsort.simulate import simulate_micrographs, simulate_particles, write_project

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "fastsort"]
STACK_RESULTS = {"kept.txt", "rejected.txt", "scores.csv", "summary.json", "results.npz"}
STACK_RESULTS |= {"report.png", "report.html"}
STAR_RESULTS = STACK_RESULTS - {"kept.txt", "rejected.txt"} | {
    "kept.star",
    "rejected.star",
    "micrographs.csv",
}


def run(*arguments, **options):
    """Run the command as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=environment, **options
    )


def call(*arguments):
    """Run the command in this process, which saves the imports."""
    try:
        return cli.main(list(map(str, arguments)))
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    images, truth = simulate_particles(60, 60, snr=0.5, box=32, junk="all", n_micrographs=3, seed=1)
    return write_project(tmp_path_factory.mktemp("project") / "p", images, truth)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    images, truth = simulate_particles(40, 40, snr=0.5, box=32, junk="paper", seed=2)
    path = tmp_path_factory.mktemp("stack") / "images.mrcs"
    with mrcfile.new(path) as file:
        file.set_data(images)
        file.voxel_size = truth.pixel_size
    return path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        [],
        *(
            [name]
            for name in "pick sort watch cryosparc apply report info map denoise simulate demo guide".split()
        ),
    ],
    ids=str,
)
def test_help_fits_a_screen_and_shows_an_example(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert call(*command, "--help") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    # What does not fit on a screen is found by the headings of its groups.
    groups = [len(group.splitlines()) - 1 for group in captured.out.split("\n\n")[3:-1]]
    assert len(lines) <= (62 if len(groups) >= 4 and max(groups) <= 15 else 55)
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("example: fastsort ") for line in lines)
    # The score above which images are rejected is a threshold; crop and extract have their own names.
    assert "cut" not in captured.out.split()


def packages_loaded_by(code):
    """Names of the packages, Python's own left out, that code loads in a fresh interpreter."""
    loaded = "{name.split('.')[0] for name in sys.modules}"
    code = f"import sys; before = {loaded}\n{code}\nprint(*{loaded} - before - sys.stdlib_module_names)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_comes_at_once():
    """It would not if it loaded what sorting needs."""
    code = "import fastsort.cli\ntry: fastsort.cli.main(['sort', '--help'])\nexcept SystemExit: pass"
    assert packages_loaded_by(code) == {"fastsort"}


def test_import_loads_nothing_heavy():
    assert packages_loaded_by("import fastsort") == {"fastsort"}


def test_version(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out == f"fastsort {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["polish"],
        ["sort"],
        ["sort", "a.star"],
        ["sort", "a.star", "-o", "out", "--method", "foo"],
        ["sort", "a.star", "-o", "out", "--preset", "best"],
        ["sort", "a.star", "-o", "out", "--phase-flip", "maybe"],
        ["sort", "a.star", "-o", "out", "--contrast", "red"],
        ["sort", "a.star", "-o", "out", "--diameter", "wide"],
        ["sort", "a.star", "-o", "out", "--diam", "100"],
        ["sort", "a.star", "-o", "out", "--discard", "3", "--fraction", "0.5"],
        ["sort", "a.star", "-o", "out", "--unanimous", "--keep-at-least", "0.5"],
        ["sort", "a.star", "-o", "out", "--discard", "many"],
        ["sort", "a.star", "-o", "out", "--jobs", "0"],
        ["sort", "a.star", "-o", "out", "--jobs", "many"],
        ["apply", "list.txt", "a.star"],
        ["apply", "-o", "out"],
        ["apply", "sorted", "-o", "out", "--probability", "0.5", "--unanimous"],
        ["report"],
        ["info"],
        ["simulate", "-o", "out", "--recipe", "secret"],
        ["simulate", "-o", "out", "--noise", "pink"],
    ],
)
def test_wrong_usage_is_code_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("usage: fastsort") and captured.out == ""
    assert names_in(tmp_path) == []


def star_of(tmp_path, rows, columns="_rlnImageName #1"):
    path = tmp_path / "set.star"
    path.write_text(f"data_\n\nloop_\n{columns}\n" + "\n".join(rows) + "\n")
    return path


def stack_of(path, images, **options):
    with mrcfile.new(path, **options) as file:
        file.set_data(images)
    return path


def bad_input(kind, tmp_path):
    """Return the arguments of a bad call, and what the answer must name."""
    noise = np.random.default_rng(0).normal(size=(4, 32, 32)).astype(np.float32)
    stack = stack_of(tmp_path / "good.mrcs", noise)
    if kind == "missing":
        return ["nowhere.star"], ["nowhere.star"]
    if kind == "folder":
        return [tmp_path], [tmp_path.name]
    if kind == "not star":
        path = tmp_path / "text.star"
        path.write_text("hello\n")
        return [path], ["not a STAR file"]
    if kind == "unknown suffix":
        path = tmp_path / "images.tif"
        path.write_bytes(b"II*\0")
        return [path], [".star"]
    if kind == "no image names":
        return [star_of(tmp_path, ["1 2"], "_rlnCoordinateX #1\n_rlnCoordinateY #2")], ["_rlnImageName"]
    if kind == "unresolved":
        rows = [f"{i}@Extract/lost{i}.mrcs" for i in range(1, 6)]
        return [star_of(tmp_path, rows)], ["Extract/lost1.mrcs", "lost3.mrcs", str(tmp_path)]
    if kind == "short stack":
        data = stack.read_bytes()
        stack.write_bytes(data[:-4000])
        return [stack], [str(len(data)), str(len(data) - 4000)]
    if kind == "index beyond":
        return [star_of(tmp_path, ["1@good.mrcs", "9@good.mrcs"])], ["9", "4"]
    if kind == "nothing in common":
        for name, box, pixel_size in (("a", 32, 1.0), ("b", 20, 0.5)):
            write_stack(tmp_path / f"{name}.mrcs", [noise[:, :box, :box]], pixel_size, 4, box)
        return [star_of(tmp_path, ["1@a.mrcs", "1@b.mrcs"])], ["box 32 px", "box 20 px"]
    if kind == "not square":
        return [stack_of(tmp_path / "wide.mrcs", noise[:, :20].copy())], ["32 x 20"]
    if kind == "complex":
        return [stack_of(tmp_path / "fourier.mrcs", noise.astype(np.complex64))], ["mode 4"]
    if kind == "empty":
        return [star_of(tmp_path, [])], ["no images"]
    if kind == "box too small":
        return [stack, "--pixel-size", "2", "--diameter", "100"], ["32 px", "larger box"]
    if kind == "diameter negative":
        return [stack, "--diameter", "-5"], ["diameter", "positive", "-5"]
    if kind == "diameter nan":
        return [stack, "--diameter", "nan"], ["diameter", "positive", "nan"]
    if kind == "pixel size zero":
        return [stack, "--pixel-size", "0"], ["pixel_size", "positive"]
    raise AssertionError(kind)


BAD_INPUTS = (
    "missing",
    "folder",
    "not star",
    "unknown suffix",
    "no image names",
    "unresolved",
    "short stack",
    "index beyond",
    "nothing in common",
    "not square",
    "complex",
    "empty",
    "box too small",
    "diameter negative",
    "diameter nan",
    "pixel size zero",
)


def without_progress(text):
    """What a command without a terminal has said besides its progress."""
    line = r"^\d\d:\d\d:\d\d (\w+ \d+ %, [\d,]+ of [\d,]+ \w+|compiling.*)\n"
    return re.sub(line, "", text, flags=re.MULTILINE)


def assert_one_line(text, *words):
    text = without_progress(text)
    assert text.startswith("fastsort: error: ") and text.count("\n") == 1 and text.endswith("\n")
    for word in words:
        assert word in text


@pytest.mark.parametrize("kind", BAD_INPUTS)
def test_bad_input_is_one_line_and_nothing_written(kind, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    arguments, words = bad_input(kind, tmp_path / "data")
    assert call("sort", *arguments, "-o", tmp_path / "out" / "deep") == 1
    captured = capsys.readouterr()
    assert_one_line(captured.err, *words)
    assert captured.out == ""
    assert names_in(tmp_path) == ["data"]


def test_bad_input_as_a_process(tmp_path):
    done = run("sort", "nowhere.star", "-o", "out", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert_one_line(done.stderr, "nowhere.star")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("command", ["sort", "map", "simulate", "demo"])
def test_output_folder_that_exists_is_refused_before_any_work(command, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("precious")
    # The input does not exist either: the output is looked at first.
    assert call(command, *(["nowhere.star"] if command in ("sort", "map") else []), "-o", out) == 1
    assert_one_line(capsys.readouterr().err, "out", "--overwrite")
    assert names_in(out) == ["notes.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission(project, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert call("sort", project, "-o", tmp_path / "out") == 1
    assert_one_line(capsys.readouterr().err, "permission")


@pytest.mark.slow
def test_sort_of_a_project(project, tmp_path):
    before = {path: path.read_bytes() for path in project.parent.rglob("*") if path.is_file()}
    done = run("sort", project, "-o", tmp_path / "out", "--jobs", "2")
    assert done.returncode == 0 and without_progress(done.stderr) == ""
    assert set(names_in(tmp_path / "out")) - {"rescued.star"} == STAR_RESULTS
    assert names_in(tmp_path) == ["out"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images"] == 120
    assert summary["kept"] + summary["rejected"] + summary["rescued"] == 120
    assert summary["votes"] == ["radial", "subspaces", "invariants"]
    assert ("rescued.star" in names_in(tmp_path / "out")) == (summary["rescued"] > 0)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"120 images: {summary['kept']} kept, {summary['rejected']} rejected")
    assert max(map(len, lines[:-1])) < 100
    for name, count in summary["reasons"].items():
        assert any(line.split()[:2] == [name, str(count)] for line in lines) == (count > 0)
    assert "(estimated)" in done.stdout
    assert ("errors cannot be estimated" in done.stdout) != ("of the junk rejected" in done.stdout)
    assert "images/s" in lines[-1] and lines[-1].endswith("out")
    with open(project.parent / "truth.csv", newline="") as file:
        label = np.array([row["label"] == "1" for row in csv.DictReader(file)])
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        score = np.array([float(row["score"]) for row in csv.DictReader(file)])
    assert np.median(score[label]) < np.median(score[~label])
    assert {path: path.read_bytes() for path in project.parent.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_sort_of_a_stack(stack, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ("sort", stack, "-o", out, "--diameter", "200", "--write-stack", "--method", "radial")
    assert call(*arguments, "--preset", "published") == 0
    assert "(given)" in capsys.readouterr().out
    assert set(names_in(out)) == STACK_RESULTS | {"kept.mrcs"}
    kept = np.loadtxt(out / "kept.txt", dtype=int)
    rejected = np.loadtxt(out / "rejected.txt", dtype=int)
    assert sorted([*kept, *rejected]) == list(range(80)) and len(kept)
    copy = open_particles(out / "kept.mrcs")
    np.testing.assert_array_equal(copy.read(0, len(copy)), open_particles(stack).read(kept))
    assert call(*arguments) == 1
    assert_one_line(capsys.readouterr().err, "--overwrite")
    assert call(*arguments, "--overwrite", "--quiet") == 0
    assert capsys.readouterr().out == ""
    # The kept stack of the first run must not vanish because it is the second run's input.
    assert call("sort", out / "kept.mrcs", "-o", out, "--overwrite", "--method", "radial") == 1
    assert_one_line(capsys.readouterr().err, "lies in the output folder")
    assert (out / "kept.mrcs").exists()


@pytest.fixture(scope="module")
def ctf_project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctf") / "p"
    arguments = ("--good", 200, "--junk", 200, "--box", 40, "--snr", 0.3, "--recipe", "all", "--ctf")
    assert call("simulate", "-o", folder, *arguments, "--quiet") == 0
    return folder / "particles.star"


def labels_of(project):
    with open(project.parent / "truth.csv", newline="") as file:
        return np.array([row["label"] == "1" for row in csv.DictReader(file)])


def scores_of(folder):
    with open(folder / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_sort_by_subspaces(ctf_project, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("sort", ctf_project, "--method", "subspaces", "-o", out, "--jobs", "2") == 0
    captured = capsys.readouterr()
    assert without_progress(captured.err) == ""
    assert set(names_in(out)) == STAR_RESULTS
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images"] == 400 and summary["phase_flipped"] and summary["diameter_estimated"]
    assert summary["parameters"]["method"] == "subspaces"
    label, rows = labels_of(ctf_project), scores_of(out)
    keep = np.array([row["keep"] == "1" for row in rows])
    assert keep.sum() == summary["kept"]
    assert keep[label].mean() > 0.9 and keep[~label].mean() < 0.18
    assert all(row["offset_x"] == row["offset_y"] == "nan" for row in rows)
    found = summary["subspaces"]
    assert len(found["weights"]) == found["number"] and sum(found["weights"]) == pytest.approx(1)
    assert 0 < found["noise_variance"] < 10
    assert found["log_likelihood"]["first"] <= found["log_likelihood"]["last"]
    plural = ["" if found[name] == 1 else "s" for name in ("number", "components")]
    line = (
        f"{found['number']} subspace{plural[0]} of {found['components']} dimension{plural[1]}, "
        f"learned in {found['iterations']} iterations from {found['images']} images"
    )
    assert line in captured.out.splitlines()
    images = open_particles(out / "kept.star", data_dir=ctf_project.parent)
    assert len(images) == summary["kept"]
    header = (out / "kept.star").read_text()
    for name in ("_fastsortSortingFactor", "_fastsortLogLikelihood", "_rlnParticleSelectZScore"):
        assert name in header
    assert "_fastsortOffset" not in header


@pytest.mark.slow
def test_numbers_of_subspaces_and_components(ctf_project, tmp_path, capsys, no_pictures):
    arguments = ("sort", ctf_project, "--method", "subspaces", "-o", tmp_path / "out", "--overwrite")
    assert call(*arguments, "--n-subspaces", 3, "--n-components", 5) == 0
    assert "3 subspaces of 5 dimensions, learned in" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (found["subspaces"]["number"], found["subspaces"]["components"]) == (3, 5)
    assert (found["parameters"]["n_subspaces"], found["parameters"]["n_components"]) == (3, 5)
    assert call(*arguments, "--n-subspaces", 1, "--n-components", 1) == 0
    assert "1 subspace of 1 dimension, learned in" in capsys.readouterr().out


@pytest.mark.slow
def test_published_subspaces(ctf_project, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("sort", ctf_project, "--method", "subspaces", "--preset", "published", "-o", out) == 0
    assert "2 subspaces of 30 dimensions, learned in" in capsys.readouterr().out
    assert set(names_in(out)) == STAR_RESULTS
    summary = json.loads((out / "summary.json").read_text())
    # A twentieth is dropped every so often, and of nothing else.
    assert summary["kept"] in (400, 380, 361, 343, 326) and summary["kept"] < 400
    assert summary["cut"] is None and summary["subspaces"]["images"] == summary["kept"]
    assert summary["reasons"]["noise"] == summary["rejected"]
    rows = scores_of(out)
    assert [row["junk_probability"] == "1" for row in rows] == [row["keep"] == "0" for row in rows]


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("subspaces", ["--n-peaks", "3"], ["n_peaks", "subspaces", "leave it out"]),
        ("subspaces", ["--contrast", "dark"], ["contrast", "subspaces", "leave it out"]),
        ("radial", ["--n-subspaces", "2"], ["n_subspaces", "radial", "leave it out"]),
        ("radial", ["--n-components", "2"], ["n_components", "radial", "leave it out"]),
        ("subspaces", ["--n-components", "0"], ["n_components", "0"]),
        ("subspaces", ["--n-components", "-2"], ["n_components", "-2"]),
        ("subspaces", ["--n-components", "100000"], ["n_components", "100000"]),
        ("subspaces", ["--n-subspaces", "0"], ["n_subspaces", "0"]),
        ("subspaces", ["--n-subspaces", "100000"], ["n_subspaces", "100000"]),
        ("subspaces", ["--n-subspaces", "0", "--preset", "published"], ["n_subspaces", "0"]),
        ("subspaces", ["--recentre"], ["--recentre", "no centres", "leave it out"]),
        ("invariants", ["--recentre"], ["--recentre", "invariants", "leave it out"]),
        ("subspaces", ["--keep-off-centre"], ["keep_off_centre", "leave the method out"]),
        ("radial", ["--unanimous"], ["unanimous", "leave the method out"]),
        ("radial", ["--duplicate-distance", "-1"], ["duplicate_distance", "leave the method out"]),
        ("radial", ["--judge-again"], ["--judge-again", "--update", "leave it out"]),
        ("radial", ["--update", "--overwrite"], ["--update", "--overwrite", "one of them"]),
        ("radial", ["--keep-at-least", "1.5"], ["keep_at_least", "1.5"]),
        ("radial", ["--fraction", "-0.1"], ["fraction", "-0.1"]),
        ("radial", ["--discard", "-1"], ["discard", "-1"]),
    ],
    ids=str,
)
def test_options_that_do_nothing_or_cannot_be(project, tmp_path, capsys, method, arguments, words):
    assert call("sort", project, "--method", method, *arguments, "-o", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert_one_line(captured.err, *words)
    # What is found only after reading leaves what was read.
    assert captured.out == "" and set(names_in(tmp_path)) <= {".out.work"}


PICKS = ["--micrographs", "a.mrc", "--coordinates", "a.box", "--box", "64"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sort", "STACK", "--data-dir", "."], "--data-dir does nothing with images.mrcs"),
        (["sort", "STACK", "--passthrough", "x.cs"], "--passthrough does nothing with images.mrcs"),
        (["sort", *PICKS, "--passthrough", "x.cs"], "--passthrough does nothing with --micrographs"),
        (["sort", *PICKS, "--data-dir", "."], "--data-dir does nothing without a STAR file"),
        (["sort", *PICKS, "--score-field"], "--score-field does nothing without a .cs file"),
        (["sort", "STACK", "--duplicate-distance", "30"], "--duplicate-distance does nothing where"),
        (["sort", "TUBES", "--duplicate-distance", "30"], "--duplicate-distance does nothing with segments"),
        (["sort", "STACK", "--cluster-wait", "5"], "--cluster-wait does nothing without --cluster"),
        (["sort", "STACK", "--cluster", "tcp://x:1", "--jobs", "-1"], "--jobs does nothing with --cluster"),
        (
            ["sort", "STACK", "--method", "radial", "--preset", "published", "--contrast", "dark"],
            "--contrast does nothing with the published rules",
        ),
        (["apply", "LIST", "STACK", "--bright"], "--bright does nothing with a list"),
        (["apply", "LIST", "STACK", "--data-dir", "."], "--data-dir does nothing with a list"),
        (["apply", "LIST", "STACK", "--passthrough", "x.cs"], "--passthrough does nothing with images.mrcs"),
        (["apply", "LIST", *PICKS, "--bright"], "--bright does nothing with a list"),
        (["apply", "LIST", *PICKS, "--passthrough", "x.cs"], "--passthrough does nothing with a list"),
        (["apply", "DONE"], "say how much of done to keep: give one of --probability"),
        (["apply", "DONE", "--discard", "1", "--data-dir", "."], "--data-dir does nothing with"),
        (["apply", "DONE", "--discard", "1", "--bright", "--box", "9"], "--box and --bright do nothing with"),
        (["report", "DONE", "--data-dir", "."], "--data-dir does nothing with"),
        (["info", "STACK", "--data-dir", "."], "--data-dir does nothing with images.mrcs"),
        (["info", "TUBES", "--passthrough", "x.cs"], "--passthrough does nothing with tubes.star"),
        (["map", "STACK", "--data-dir", "."], "--data-dir does nothing with images.mrcs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_without_effect_are_refused_by_name(
    finished_stack, tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(finished_stack)
    places = {"STACK": "images.mrcs", "TUBES": "tubes.star", "LIST": "list.txt", "DONE": "done"}
    output = [] if arguments[0] in ("info", "report") else ["-o", tmp_path / "out"]
    before = names_in(finished_stack)
    assert call(*(places.get(word, word) for word in arguments), *output) == 1
    assert_one_line(capsys.readouterr().err, words)
    assert names_in(finished_stack) == before and names_in(tmp_path) == []


@pytest.fixture(scope="module")
def finished_stack(tmp_path_factory):
    """A stack sorted into done, a list of its images, and a table of segments of filaments."""
    folder = tmp_path_factory.mktemp("finished")
    images, truth = simulate_particles(30, 20, snr=0.5, box=32, junk="paper", seed=2)
    write_stack(folder / "images.mrcs", [images], truth.pixel_size, 50, 32)
    (folder / "list.txt").write_text("1\n3\n")
    columns = "_rlnImageName\n_rlnMicrographName\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnHelicalTubeID"
    rows = "\n".join(f"{i + 1}@images.mrcs a.mrc {10 * i} 5 1" for i in range(50))
    (folder / "tubes.star").write_text(f"data_\n\nloop_\n{columns}\n{rows}\n")
    arguments = ("--method", "radial", "-o", folder / "done", "--quiet")
    assert call("sort", folder / "images.mrcs", *arguments) == 0
    return folder


@pytest.mark.parametrize("choice", ["--keep-classes", "--discard-classes"])
def test_a_choice_of_classes_takes_the_map_as_it_is(choice, tmp_path, capsys):
    options = [
        "--diameter",
        "--classes",
        "--groups",
        "--embedding",
        "--color",
        "--phase-flip",
        "--pixel-size",
    ]
    options += ["--data-dir", "--passthrough", "--working-size", "--jobs", "--seed", "--work", "--keep-work"]
    # Given as they are by default, too.
    usual = {"--groups": "1", "--embedding": "auto", "--color": "class", "--phase-flip": "auto"}
    values = {**dict.fromkeys(options, "1"), **usual, "--jobs": "-1", "--seed": "0"}
    for option in options:
        words = [option] if option == "--keep-work" else [option, values[option]]
        assert call("map", "nowhere", choice, "1,2", *words, "-o", tmp_path / "out") == 1
        assert_one_line(capsys.readouterr().err, f"{option} does nothing with {choice}", "leave it out")
    assert call("map", "nowhere", choice, "1", "--seed", 1, "--jobs", 2, "-o", tmp_path / "out") == 1
    assert_one_line(capsys.readouterr().err, "--jobs and --seed do nothing", "leave them out")
    assert names_in(tmp_path) == []


def write_dataset(folder):
    """Write a cryoSPARC dataset of four images, and its stack."""
    noise = np.random.default_rng(0).normal(size=(4, 32, 32)).astype(np.float32)
    write_stack(folder / "a.mrc", [noise], 3.0, 4, 32)
    fields = [("uid", "<u8"), ("blob/path", "S20"), ("blob/idx", "<u4"), ("blob/shape", "<u4", 2)]
    rows = np.zeros(4, [*fields, ("blob/psize_A", "<f4"), ("blob/sign", "<f4")])
    rows["uid"], rows["blob/idx"], rows["blob/path"] = np.arange(4), np.arange(4), b"a.mrc"
    rows["blob/shape"], rows["blob/psize_A"], rows["blob/sign"] = 32, 3.0, 1
    with open(folder / "particles.cs", "wb") as file:
        np.save(file, rows)
    more = np.zeros(4, [("uid", "<u8"), ("location/micrograph_path", "S20")])
    more["uid"], more["location/micrograph_path"] = np.arange(4), [b"m1", b"m1", b"m2", b"m3"]
    with open(folder / "other.cs", "wb") as file:
        np.save(file, more)
    return folder / "particles.cs"


def test_info_reads_the_passthrough_file(tmp_path, capsys):
    path = write_dataset(tmp_path)
    assert call("info", path) == 0
    assert "not named" in capsys.readouterr().out
    assert call("info", path, "--passthrough", tmp_path / "other.cs") == 0
    assert "micrographs   3" in capsys.readouterr().out
    assert call("info", path, "--passthrough", tmp_path / "nowhere.cs") == 1
    assert_one_line(capsys.readouterr().err, "nowhere.cs")


def parsed_job(monkeypatch, tmp_path, *arguments):
    """Return the options with which a job of RELION sorts."""
    seen = []
    monkeypatch.setattr("fastsort.cli.sort.run_sort", seen.append)
    monkeypatch.chdir(tmp_path)
    job = ["sort", "--relion-job", "--o", "External/job001/", "--in_parts", "p.star"]
    assert call(*job, *arguments) == 0
    return seen[0]


def test_threads_of_a_relion_job(monkeypatch, tmp_path):
    """RELION always says how many; what its user says counts for more, and a cluster has its own."""
    assert parsed_job(monkeypatch, tmp_path, "--j", 3).jobs == 3
    assert parsed_job(monkeypatch, tmp_path, "--jobs", 2, "--j", 1).jobs == 2
    options = parsed_job(monkeypatch, tmp_path, "--cluster", "tcp://x:1", "--j", 1)
    assert "jobs" not in options.given and options.input == "p.star"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--in_tomograms", "t.star"], ["--in_tomograms is of no use"]),
        (["--in_3dref", "v.mrc"], ["--in_3dref is of no use"]),
        (["--output", "elsewhere"], ["--output does nothing with --relion-job"]),
        (["-oelsewhere"], ["-oelsewhere does nothing with --relion-job"]),
    ],
)
def test_what_a_relion_job_cannot_use_is_refused(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastsort.cli.sort.run_sort", None)
    monkeypatch.chdir(tmp_path)
    assert call("sort", "--relion-job", "--o", "job/", "--in_parts", "p.star", *arguments) == 1
    assert_one_line(capsys.readouterr().err, *words)
    assert names_in(tmp_path / "job") == ["RELION_JOB_EXIT_FAILURE"]


def test_nothing_to_learn_from(tmp_path, capsys):
    images = np.ones((5, 32, 32), np.float32)
    images[2] = np.random.default_rng(0).normal(size=(32, 32))
    path = stack_of(tmp_path / "flat.mrcs", images)
    assert call("sort", path, "--method", "subspaces", "-o", tmp_path / "out") == 0
    assert "no subspaces: fewer than two images could be learned from" in capsys.readouterr().out
    assert np.loadtxt(tmp_path / "out" / "kept.txt", dtype=int, ndmin=1).tolist() == [2]
    assert (tmp_path / "out" / "report.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "radial", "subspaces", "invariants"])
def test_same_seed_gives_the_same_files(project, tmp_path, method, no_pictures):
    for name, jobs in (("a", 1), ("b", 2)):
        arguments = (*(["--method", method] if method else []), "--quiet", "--jobs", jobs)
        assert call("sort", project, "-o", tmp_path / name, *arguments) == 0
    for name in ("kept.star", "rejected.star", "scores.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["write_tables", "draw_page"])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_failure_half_way_leaves_only_the_work_folder(
    project, tmp_path, monkeypatch, capsys, when, error, words
):
    from fastsort.report import drawing, results

    module = {"write_tables": results, "draw_page": drawing}[when]
    original = getattr(module, when)

    def fail(*arguments, **options):
        original(*arguments, **options)
        raise error

    monkeypatch.setattr(module, when, fail)
    code = 130 if isinstance(error, KeyboardInterrupt) else 1
    assert call("sort", project, "-o", tmp_path / "out", "--method", "radial") == code
    assert_one_line(capsys.readouterr().err, words, f"the same command goes on from {tmp_path / '.out.work'}")
    # What was measured is not measured again.
    assert names_in(tmp_path) == [".out.work"]


@pytest.mark.slow
def test_full_disk_leaves_nothing(project, tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    done = run("sort", project, "-o", tmp_path / "out", preexec_fn=limit)
    assert done.returncode == 1 and done.stdout == ""
    assert_one_line(done.stderr, "File too large")
    # What was done stays there for the next run.
    assert set(names_in(tmp_path)) <= {".out.work"}


def test_defect_shows_its_traceback(project, tmp_path, monkeypatch):
    from fastsort.report import results

    def fail(*arguments, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(results, "write_tables", fail)
    with pytest.raises(ZeroDivisionError):
        call("sort", project, "-o", tmp_path / "out", "--method", "radial")
    assert names_in(tmp_path) == [".out.work"]


def test_missing_matplotlib_costs_only_the_picture(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    # Neither does the second process find it.
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "matplotlib.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"), prepend=os.pathsep)
    assert call("sort", project, "-o", tmp_path / "out", "--method", "radial") == 0
    said = without_progress(capsys.readouterr().err)
    assert said.count("\n") == 1 and "pip install 'fastsort[report]'" in said
    assert set(names_in(tmp_path / "out")) == STAR_RESULTS - {"report.png"}


@pytest.mark.slow
def test_reader_who_leaves_early_is_no_error(project, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*COMMAND, "sort", project, "-o", tmp_path / "out", "--method", "radial"]
    command += ["--log", tmp_path / "log", "--fail-if", "junk>0"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writing)
    assert done.returncode == 3 and "limit junk>0 passed" in without_progress(done.stderr)
    assert "error" not in done.stderr + (tmp_path / "log").read_text()
    assert set(names_in(tmp_path / "out")) == STAR_RESULTS


def test_work_folder_lies_beside_the_output(project, tmp_path, monkeypatch, no_pictures):
    import fastsort.sort

    seen = []
    original = fastsort.sort.sort_particles

    def watch(*arguments, **options):
        seen.append(options)
        return original(*arguments, **options)

    monkeypatch.setattr(fastsort.sort, "sort_particles", watch)
    arguments = ("sort", project, "-o", tmp_path / "deep" / "out", "--method", "radial", "--quiet")
    assert call(*arguments) == 0
    # It is the command that removes it, when the results are whole.
    assert Path(seen[0]["work"]) == tmp_path / "deep" / ".out.work" and seen[0]["keep_work"]
    assert names_in(tmp_path / "deep") == ["out"]
    assert call(*arguments, "--overwrite", "--work", tmp_path / "w", "--keep-work") == 0
    assert names_in(tmp_path) == ["deep", "w"] and names_in(tmp_path / "w")
    assert names_in(tmp_path / "deep") == ["out"]


def test_interrupted_run_goes_on(project, tmp_path, monkeypatch, capsys, no_pictures):
    import fastsort.sort

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    arguments = ("sort", project, "--method", "radial", "-o", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(fastsort.sort, "ask_methods", interrupt)
        assert call(*arguments) == 130
    assert_one_line(capsys.readouterr().err, "interrupted", str(tmp_path / ".out.work"))
    assert names_in(tmp_path) == [".out.work"]
    assert call(*arguments) == 0 and names_in(tmp_path) == ["out"]
    assert call(*arguments[:-1], tmp_path / "straight") == 0
    for name in ("kept.star", "rejected.star", "scores.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


@pytest.mark.parametrize("named", [False, True])
def test_interrupted_map_goes_on(project, tmp_path, monkeypatch, capsys, named):
    """Its work folder is where that of sorting would be; here without the work."""
    seen = []

    def interrupt(particles, *, work, keep_work, **parameters):
        seen.append((work, keep_work))
        work.mkdir(exist_ok=True)
        raise KeyboardInterrupt

    work = tmp_path / ("w" if named else ".out.work")
    arguments = ["map", project, "-o", tmp_path / "out", *(["--work", work, "--keep-work"] if named else [])]
    monkeypatch.setattr("fastsort.classify.classify_particles", interrupt)
    assert call(*arguments) == 130
    assert_one_line(capsys.readouterr().err, f"interrupted: the same command goes on from {work}\n")
    assert seen == [(work, True)] and names_in(tmp_path) == [work.name]


@pytest.mark.slow
def test_interrupted_map_ends_with_the_same_files(project, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    options = ("--classes", 3, "--embedding", "pca", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr("fastsort.classify.find_classes", stop)
        assert call("map", project, "-o", tmp_path / "out", *options) == 130
    assert names_in(tmp_path) == [".out.work"]
    images = open_particles(project).store
    original, paths = type(images).read, []

    def watched(self, indices):
        paths.extend(self.files())
        return original(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(type(images), "read", watched)
        # The page shows the images themselves.
        patch.setattr("fastsort.report.map_page.draw_map_page", lambda *arguments, **options: None)
        assert call("map", project, "-o", tmp_path / "out", *options) == 0
    # What is read are the working images, and the images themselves never again.
    assert paths and not {*paths} & {*images.files()}
    assert names_in(tmp_path) == ["out"]
    assert call("map", project, "-o", tmp_path / "straight", "--keep-work", *options) == 0
    assert names_in(tmp_path) == [".straight.work", "out", "straight"]
    for name in ("particles.star", "kept.star", "images.csv", "classes.mrcs"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_how_much_is_kept(project, tmp_path, no_pictures):
    arguments = ("sort", project, "--method", "radial", "-o", tmp_path / "out", "--quiet", "--overwrite")
    for options, kept in ((["--discard", "20"], 100), (["--fraction", "0.25"], 30)):
        assert call(*arguments, *options) == 0
        rows = scores_of(tmp_path / "out")
        keep = np.array([row["keep"] == "1" for row in rows])
        score = np.array([float(row["score"]) for row in rows])
        assert keep.sum() == kept and score[keep].max() <= score[~keep].min()


@pytest.mark.slow
def test_recentre_writes_origins(project, tmp_path, capsys, no_pictures):
    out = tmp_path / "out"
    assert call("sort", project, "--recentre", "--keep-off-centre", "--diameter", 150, "-o", out) == 0
    table = starfile.read(out / "kept.star", always_dict=True)["particles"]
    offset = table["fastsortOffsetXAngst"].to_numpy()
    np.testing.assert_allclose(table["rlnOriginXAngst"], -offset, atol=2e-3)
    assert np.abs(offset).max() > 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["recentred"] and summary["parameters"]["keep_off_centre"]
    stack = stack_of(tmp_path / "a.mrcs", np.zeros((4, 32, 32), np.float32))
    capsys.readouterr()
    assert call("sort", stack, "--recentre", "-o", tmp_path / "other") == 1
    assert_one_line(capsys.readouterr().err, "STAR file")


def test_update_goes_on_from_the_folder(project, tmp_path, monkeypatch, capsys, no_pictures):
    from fastsort.sort import sort_particles

    seen = []

    def update_particles(particles, earlier, names, *, judge_again=False, progress=None, **parameters):
        # What the folder holds is needed until the new results are whole.
        assert len(earlier.keep) == len(names) == len(particles)
        seen.append((names_in(out), judge_again, parameters))
        return sort_particles(particles, method="radial")

    monkeypatch.setitem(
        sys.modules,
        "fastsort.update",
        SimpleNamespace(update_particles=update_particles, can_go_on_from=lambda _: True),
    )
    out = tmp_path / "out"
    assert call("sort", project, "--method", "radial", "-o", out, "--quiet") == 0
    before = names_in(out)
    assert call("sort", project, "-o", out, "--update", "--judge-again", "--seed", 3) == 0
    assert "120 images" in capsys.readouterr().out
    names, judge_again, parameters = seen[0]
    assert names == before == names_in(out) and judge_again
    assert len(seen) == 1
    # What was not asked for now is not overruled.
    run = {"n_jobs": -1, "work": tmp_path / ".out.work", "keep_work": True}
    assert parameters == {"seed": 3, **run}
    # What was asked for counts, even if it is what is usual.
    usual = ["--seed", 0, "--contrast", "auto", "--jobs", -1]
    assert call("sort", project, "-o", out, "--update", *usual, "--quiet") == 0
    assert seen[1][2] == {"seed": 0, "contrast": "auto", **run}


def verdicts(capsys, **changes):
    summary = {
        "images": 1000,
        "kept": 700,
        "rejected": 288,
        "rescued": 12,
        "files": {"kept": "kept.star", "rejected": "rejected.star", "rescued": "rescued.star"},
        "reasons": {"valid": 700, "noise": 288, "rare_view": 12, "flat": 0},
        "errors": None,
        "micrographs": None,
        "doubts": [],
        "input": "/data/particles.star",
    }
    print_verdicts({**summary, **changes})
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) < 100
    return text


def test_verdicts_printed(capsys):
    text = verdicts(capsys)
    assert text.splitlines()[0] == "1,000 images: 700 kept, 288 rejected, 12 set aside"
    assert "12 images of rare views set aside: look at them in rescued.star" in text and "flat" not in text
    assert "rescued/" in verdicts(capsys, files={"rescued": "rescued/"})
    assert "set aside" not in verdicts(capsys, rescued=0)


def test_estimated_errors_printed(capsys):
    def share(value, low, high):
        return {"value": value, "low": low, "high": high}

    errors = {
        "true_positive_rate": share(0.986, 0.979, 0.991),
        "true_negative_rate": share(0.962, 0.93, 0.98),
        "precision": share(0.97, 0.95, 0.99),
        "known": True,
        "remark": "",
    }
    lines = verdicts(capsys, errors=errors).splitlines()
    told = " ".join(" ".join(lines).split())
    assert "estimated: 98.6 % of the particles kept (97.9 to 99.1), 96.2 % of the junk rejected (93.0" in told
    assert "to 98.0), precision 97.0 %" in told
    unknown = {**errors, "precision": share(math.nan, math.nan, math.nan)}
    assert "precision unknown" in verdicts(capsys, errors=unknown)
    assert "cannot be estimated\n" in verdicts(capsys, errors={**errors, "known": False})
    text = verdicts(capsys, errors={**errors, "known": False, "remark": "word " * 40})
    assert "errors cannot be estimated: word word" in text and "97.0" not in text


def test_micrographs_to_drop_printed(capsys):
    names = [f"Micrographs/m{i}.mrc" for i in range(7)]
    text = verdicts(capsys, micrographs={"number": 50, "drop": names, "trends": {}})
    assert "7 of 50: m0.mrc, m1.mrc, m2.mrc, m3.mrc, m4.mrc, ...; see" in text and "micrographs.csv" in text
    assert "micrograph" not in verdicts(capsys, micrographs={"number": 50, "drop": [], "trends": {}})


def test_simulate_writes_a_project(tmp_path, capsys):
    arguments = ("simulate", "-o", tmp_path / "sim", "--good", 20, "--junk", 10, "--box", 32, "--snr", 0.1)
    assert call(*arguments, "--recipe", "all", "--ctf", "--volume", "shell", "--seed", 3) == 0
    assert "20 particles and 10 images of junk" in capsys.readouterr().out
    particles = open_particles(tmp_path / "sim" / "particles.star")
    assert len(particles) == 30 and particles.box == 32 and particles.ctf is not None
    expected, _ = simulate_particles(20, 10, snr=0.1, box=32, junk="all", ctf=True, volume="shell", seed=3)
    np.testing.assert_allclose(particles.read(0, 30), expected, rtol=1e-6)
    assert call(*arguments) == 1
    assert call(*arguments, "--overwrite", "--quiet") == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--good", "-1"], "n_good"),
        (["--snr", "0"], "snr"),
        (["--box", "8"], "px"),
        (["--volume", "nowhere.mrc"], "nowhere.mrc"),
        (["--good", "0", "--junk", "0"], "n_good"),
    ],
)
def test_bad_simulation_is_one_line(arguments, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("simulate", "-o", "sim", *arguments) == 1
    assert_one_line(capsys.readouterr().err, word)
    assert names_in(tmp_path) == []


def test_simulate_writes_micrographs(tmp_path, capsys):
    arguments = (
        "simulate",
        "-o",
        tmp_path / "mics",
        "--micrographs",
        2,
        "--diameter",
        160,
        "--pixel-size",
        4,
    )
    more = ("--snr", 0.1, "--contaminants", "ice", "carbon", "--bright", "--no-defects", "--defocus", 1, 2)
    assert call(*arguments, "--size", 260, 200, *more) == 0
    settings = {"snr": 0.1, "contaminants": ["ice", "carbon"], "contrast": "bright", "defocus": (1, 2)}
    expected = list(
        simulate_micrographs(2, (200, 260), diameter=160, pixel_size=4, defects=False, **settings)
    )
    assert f"{sum(len(m.centre) for m in expected)} particles on 2" in capsys.readouterr().out
    images = sorted((tmp_path / "mics" / "Micrographs").iterdir())
    for path, micrograph in zip(images, expected, strict=True):
        np.testing.assert_array_equal(mrcfile.read(path), micrograph.image)
    assert call(*arguments, "--size", 128) == 1
    assert call(*arguments, "--size", 128, "--overwrite", "--quiet") == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--micrographs", "2", "--good", "5"], "--good does nothing with --micrographs"),
        (["--crowding", "0.2"], "--crowding does nothing without --micrographs"),
        (["--micrographs", "0"], "n must be"),
        (["--micrographs", "1", "--size", "1", "2", "3"], "--size"),
        (["--micrographs", "1", "--contaminants", "dust"], "contaminants"),
    ],
)
def test_bad_micrographs_are_one_line(arguments, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("simulate", "-o", "mics", *arguments) == 1
    assert_one_line(capsys.readouterr().err, word)
    assert names_in(tmp_path) == []


def test_guides_are_listed_and_printed_as_they_stand(capsys):
    folder = ROOT / "fastsort" / "guides"
    names = sorted(path.stem for path in folder.glob("*.md"))
    assert "relion" in names
    assert call("guide") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names
    for name, line in zip(names, lines, strict=True):
        text = (folder / f"{name}.md").read_text(encoding="utf-8")
        assert len(line) < 100 and text.startswith(f"# {line.split(maxsplit=1)[1]}\n")
        assert call("guide", name) == 0
        assert capsys.readouterr().out == text
    for unknown in ("nowhere", "../README", "relion.md", ""):
        assert call("guide", unknown) == 1
        assert_one_line(capsys.readouterr().err, f"no guide {unknown!r}", ", ".join(names))


@pytest.mark.slow
def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "N_IMAGES", 150)
    monkeypatch.chdir(tmp_path)
    assert call("demo", "--seed", 1) == 0
    text = capsys.readouterr().out
    assert names_in(tmp_path) == ["fastsort-demo"]
    assert set(names_in(tmp_path / "fastsort-demo" / "sorted")) - {"rescued.star"} == STAR_RESULTS
    assert str(Path("fastsort-demo", "sorted", "report.html")) in text
    assert "particles kept" in text and "junk rejected" in text and "off-centre" in text
    area = float(text.split("compared with the truth:")[1].split("AUC")[1].split()[0])
    assert area > 0.8
    assert call("demo") == 1
    assert_one_line(capsys.readouterr().err, "fastsort-demo")
    monkeypatch.setattr(demo, "N_IMAGES", 25)
    assert call("demo", "--overwrite", "--quiet") == 0
