"""The command on every kind of input: what comes back, in whose format, and that nothing else is touched."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile

from fastsort import InputError, open_particles, simulate_particles, write_project
from fastsort.cli import main
from fastsort.particles.mrc import write_stack

BOX, N = 32, 130
DTYPE = [
    ("uid", "<u8"),
    ("blob/path", "S40"),
    ("blob/idx", "<u4"),
    ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"),
    ("blob/sign", "<f4"),
]
PASSTHROUGH = [
    ("uid", "<u8"),
    ("location/micrograph_path", "S40"),
    ("location/micrograph_shape", "<u4", (2,)),
    ("location/center_x_frac", "<f4"),
    ("location/center_y_frac", "<f4"),
]


def call(*arguments):
    return main([*map(str, arguments)])


def save(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.save(file, rows)
    return path


@pytest.fixture(scope="module")
def simulated():
    return simulate_particles(N, N, snr=0.5, box=BOX, junk=("noise", "partial", "multiple"), seed=1)


@pytest.fixture
def dataset(simulated, tmp_path):
    """A cryoSPARC job's particles, dark in their stack, and its passthrough file in another order."""
    images, truth = simulated
    (tmp_path / "J19/extract").mkdir(parents=True)
    write_stack(tmp_path / "J19/extract/a.mrc", [-images], 3.0, len(images), BOX)
    rows, more = np.zeros(len(images), DTYPE), np.zeros(len(images), PASSTHROUGH)
    rows["uid"] = np.random.default_rng(0).permutation(len(images)) + 10**18
    rows["blob/path"], rows["blob/idx"] = b">J19/extract/a.mrc", np.arange(len(images))
    rows["blob/shape"], rows["blob/psize_A"], rows["blob/sign"] = BOX, 3.0, -1
    more["uid"] = rows["uid"]
    more["location/micrograph_path"], more["location/micrograph_shape"] = b">J2/m.mrc", 4000
    more["location/center_x_frac"] = np.random.default_rng(1).random(len(images))
    more["location/center_y_frac"] = np.random.default_rng(2).random(len(images))
    # One particle that was picked twice.
    more[["location/center_x_frac", "location/center_y_frac"]][1] = more[
        ["location/center_x_frac", "location/center_y_frac"]
    ][0]
    save(tmp_path / "J24/P1_J24_passthrough_particles.cs", more[::-1])
    return save(tmp_path / "J24/cryosparc_P1_J24_particles.cs", rows), truth


@pytest.mark.slow
def test_a_dataset_comes_back_row_by_row(dataset, tmp_path, no_pictures):
    path, truth = dataset
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    out = tmp_path / "out"
    assert call("sort", path, "-o", out, "--quiet") == 0
    whole, more = np.load(path), np.load(path.parent / "P1_J24_passthrough_particles.cs")
    kept, rejected = np.load(out / "kept.cs"), np.load(out / "rejected.cs")
    assert kept.dtype == rejected.dtype == whole.dtype
    label = dict(zip(whole["uid"].tolist(), truth.label.tolist(), strict=True))
    assert np.mean([label[uid] for uid in kept["uid"].tolist()]) > 0.9
    assert len(kept) + len(rejected) == len(whole)
    assert np.array_equal(kept, whole[np.isin(whole["uid"], kept["uid"])])
    assert np.array_equal(rejected, whole[~np.isin(whole["uid"], kept["uid"])])
    beside = np.load(out / "kept_passthrough.cs")
    assert np.array_equal(beside, more[np.isin(more["uid"], kept["uid"])])
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    again = open_particles(out / "kept.cs", data_dir=tmp_path)
    assert len(again) == len(kept) and again.micrographs[0] == "J2/m.mrc"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["contrast"] == "bright" and summary["files"]["kept"] == "kept.cs"
    with open(out / "scores.csv") as file:
        header, first = file.readline().split(","), file.readline().split(",")
    assert first[header.index("uid")] == str(whole["uid"][0])
    assert (out / "micrographs.csv").is_file()


@pytest.mark.slow
def test_scores_go_into_a_dataset_when_asked_for(dataset, tmp_path, no_pictures):
    path, _ = dataset
    assert call("sort", path, "-o", tmp_path / "out", "--quiet", "--score-field") == 0
    kept, rejected = np.load(tmp_path / "out/kept.cs"), np.load(tmp_path / "out/rejected.cs")
    assert kept.dtype.descr[: len(DTYPE)] == np.load(path).dtype.descr
    assert kept.dtype.names[len(DTYPE) :] == ("fastsort/score", "fastsort/junk_probability")
    assert np.median(kept["fastsort/score"]) < np.median(rejected["fastsort/score"])
    assert call("apply", tmp_path / "out", "-o", tmp_path / "strict", "--fraction", "0.2", "--quiet") == 0
    strict = np.load(tmp_path / "strict/kept.cs")
    # One of the best may be a particle that was picked twice.
    assert round(0.2 * 2 * N) - len(strict) in (0, 1) and strict.dtype == kept.dtype


def test_a_dataset_is_divided_by_a_list_without_its_images(dataset, tmp_path):
    path, _ = dataset
    shutil.rmtree(tmp_path / "J19")
    (tmp_path / "list.txt").write_text("5\n0\n17\n")
    assert call("apply", tmp_path / "list.txt", path, "-o", tmp_path / "out", "--quiet") == 0
    assert np.array_equal(np.load(tmp_path / "out/kept.cs"), np.load(path)[[0, 5, 17]])
    assert len(np.load(tmp_path / "out/kept_passthrough.cs")) == 3


@pytest.mark.parametrize("option", [["--pixel-size", 2], ["--data-dir", "."], ["--box", 64]])
def test_options_about_images_mean_nothing_to_a_list(dataset, tmp_path, capsys, option):
    (tmp_path / "list.txt").write_text("5\n")
    arguments = [tmp_path / "list.txt", dataset[0], *option, "-o", tmp_path / "out"]
    assert call("apply", *arguments) == 1
    assert f"{option[0]} does nothing with a list" in capsys.readouterr().err


@pytest.mark.slow
def test_classes_of_a_dataset_are_chosen_again(dataset, tmp_path):
    pytest.importorskip("sklearn")
    path, _ = dataset
    assert call("map", path, "-o", tmp_path / "map", "--embedding", "pca", "--classes", 4, "--quiet") == 0
    everything = np.load(tmp_path / "map/particles.cs")
    arguments = ["--keep-classes", 1, "-o", tmp_path / "one", "--quiet"]
    assert call("map", tmp_path / "map", *arguments) == 0
    chosen = np.load(tmp_path / "one/kept.cs")
    assert np.array_equal(chosen, everything[everything["fastsort/class"] == 1])
    assert len(np.load(tmp_path / "one/kept_passthrough.cs")) == len(chosen)
    assert call("map", tmp_path / "map", "--discard-classes", 1, "-o", tmp_path / "map", "--overwrite") == 1


@pytest.fixture(scope="module")
def picked(tmp_path_factory):
    """Two micrographs with dark particles, some of them near the edge, and picks of them and of nothing."""
    folder = tmp_path_factory.mktemp("picked")
    rng = np.random.default_rng(5)
    particles, _ = simulate_particles(240, 0, snr=1e6, box=BOX, seed=2)
    particles = particles / particles.std(axis=(1, 2), keepdims=True)
    truth = {}
    for number in range(2):
        pixels = rng.normal(100, 2.2, (640, 800)) + np.linspace(0, 30, 800)
        picks, good = [], []
        cells = rng.permutation(20 * 16)
        for k, cell in enumerate(cells[:240]):
            x, y = 20 + 40 * (cell % 20), 20 + 40 * (cell // 20)
            if k < 120:
                top, left = y - BOX // 2, x - BOX // 2
                pixels[top : top + BOX, left : left + BOX] -= particles[120 * number + k]
            picks.append((x, y))
            good.append(k < 120)
        picks.append((10, 300))
        good.append(False)
        with mrcfile.new(folder / f"mic{number}.mrc") as file:
            file.set_data(pixels.astype(np.float32))
            file.voxel_size = 3.0
        lines = [f"{x:.1f} {y:.1f} {k} # pick" for k, (x, y) in enumerate(picks)]
        head = "# a comment\n\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnClassNumber #3\n"
        (folder / f"mic{number}_pick.star").write_text(head + "\n".join(lines) + "\n")
        truth[f"mic{number}_pick.star"] = np.array(good)
    return folder, truth


def sources(folder, coordinates="*_pick.star", box=40):
    return ["--micrographs", folder / "mic*.mrc", "--coordinates", folder / coordinates, "--box", box]


def numbers(path):
    return [int(line.split()[2]) for line in path.read_text().splitlines() if "# pick" in line]


@pytest.mark.slow
def test_picks_are_sorted_and_come_back_as_coordinate_files(picked, tmp_path, capsys, no_pictures):
    folder, truth = picked
    before = {file: file.read_bytes() for file in folder.iterdir()}
    out = tmp_path / "out"
    assert call("sort", *sources(folder), "-o", out, "--write-stack") == 0
    said = capsys.readouterr().out
    assert "outside" in said and "bright particles" in said
    for name, good in truth.items():
        kept, rejected = numbers(out / "kept" / name), numbers(out / "rejected" / name)
        assert sorted(kept + rejected) == list(range(241)) and 240 in rejected
        chosen = np.isin(np.arange(241), kept)
        assert chosen[good].mean() > 0.9 and chosen[~good].mean() < 0.1
        assert (
            (out / "kept" / name).read_text().startswith("# a comment\n\ndata_\n\nloop_\n_rlnCoordinateX #1")
        )
        assert "_fastsortReason" in (out / "kept" / name).read_text()
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    stack = open_particles(out / "kept.mrcs")
    kept = sum(len(numbers(out / "kept" / name)) for name in truth)
    assert (len(stack), stack.box) == (kept, 40) and stack.pixel_size == pytest.approx(3)
    assert json.loads((out / "summary.json").read_text())["reasons"]["outside"] >= 2


@pytest.mark.slow
def test_a_finished_run_on_micrographs_is_cut_and_drawn_again(picked, tmp_path, monkeypatch):
    folder, truth = picked
    monkeypatch.chdir(folder)
    out = tmp_path / "out"
    relative = ["--micrographs", "mic*.mrc", "--coordinates", "*_pick.star", "--box", 40]
    assert call("sort", *relative, "-o", out, "--quiet") == 0
    monkeypatch.chdir(tmp_path)
    page = (out / "report.html").read_bytes()
    assert call("apply", out, "-o", tmp_path / "few", "--discard", 400, "--quiet") == 0
    few = sum(len(numbers(tmp_path / "few/kept" / name)) for name in truth)
    assert 0 < few <= 82
    assert call("report", out, "--quiet") == 0
    # Micrographs are named as they were opened.
    assert (out / "report.html").read_bytes().replace(f"{folder}/".encode(), b"") == page
    (tmp_path / "list.txt").write_text("0\n3\n250\n")
    arguments = [tmp_path / "list.txt", *sources(folder), "-o", tmp_path / "listed", "--quiet"]
    assert call("apply", *arguments) == 0
    assert [numbers(tmp_path / "listed/kept" / name) for name in sorted(truth)] == [[0, 3], [9]]
    # The same again: folders of coordinate files are replaced, and only while all in them is ours.
    again = ["sort", *sources(folder), "-o", out, "--quiet", "--overwrite", "--method", "radial"]
    assert call(*again) == 0
    (out / "kept" / "mine.txt").write_text("keep me")
    assert call(*again) == 1
    assert (out / "kept" / "mine.txt").read_text() == "keep me"


@pytest.mark.slow
def test_new_micrographs_are_sorted_as_they_come(picked, tmp_path, no_pictures):
    folder, truth = picked
    live = tmp_path / "live"
    live.mkdir()
    for name in ("mic0.mrc", "mic0_pick.star"):
        shutil.copy(folder / name, live)
    out = tmp_path / "out"
    assert call("sort", *sources(live), "-o", out, "--quiet") == 0
    first = (out / "kept/mic0_pick.star").read_bytes()
    for name in ("mic1.mrc", "mic1_pick.star"):
        shutil.copy(folder / name, live)
    assert call("sort", *sources(live), "-o", out, "--quiet", "--update") == 0
    assert (out / "kept/mic0_pick.star").read_bytes() == first
    good = truth["mic1_pick.star"]
    chosen = np.isin(np.arange(241), numbers(out / "kept/mic1_pick.star"))
    assert chosen[good].mean() > 0.85 and chosen[~good].mean() < 0.15


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["nothing to read"]),
        (["--micrographs", "a.mrc"], ["--micrographs needs --coordinates"]),
        (["--micrographs", "a.mrc", "--coordinates", "b.star"], ["needs --box"]),
        (["--box", "64"], ["--box needs --micrographs"]),
        (["x.star", "--box", "64"], ["either INPUT or micrographs"]),
        (["x.star", "--bright"], ["--bright does nothing"]),
        (["x.star", "--passthrough", "y.cs"], ["--passthrough does nothing with x.star", "no .cs file"]),
        (["--micrographs", "no*.mrc", "--coordinates", "b.star", "--box", "64"], ["no*.mrc"]),
        (["x.star", "--score-field"], ["--score-field does nothing"]),
    ],
)
def test_sources_that_mean_nothing_are_refused(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("sort", *arguments, "-o", "out") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words)
    assert not (tmp_path / "out").exists()


def test_micrographs_need_a_box_in_python_too(picked):
    folder, _ = picked
    with pytest.raises(InputError, match="need a box"):
        open_particles((folder / "*.mrc", folder / "*_pick.star"))
    with pytest.raises(InputError, match="box is for particles that are extracted"):
        open_particles(np.zeros((2, 32, 32)), box=32)


@pytest.mark.skipif(shutil.which("relion_preprocess") is None, reason="RELION is not installed")
def test_relion_extracts_the_picks_that_are_kept(picked, tmp_path, no_pictures):
    folder, truth = picked
    out = tmp_path / "out"
    assert call("sort", *sources(folder), "-o", out, "--quiet", "--write-stack") == 0
    for name in ("mic0.mrc", "mic1.mrc"):
        shutil.copy(folder / name, tmp_path)
    optics = ["OpticsGroup", "OpticsGroupName", "MicrographPixelSize", "Voltage", "SphericalAberration"]
    optics = "".join(f"_rln{name}\n" for name in [*optics, "AmplitudeContrast"]) + "1 one 3 300 2.7 0.1\n"
    rows = "_rlnMicrographName\n_rlnOpticsGroup\nmic0.mrc 1\nmic1.mrc 1\n"
    tables = [f"# version 30001\n\ndata_{name}\n\nloop_\n" for name in ("optics", "micrographs")]
    (tmp_path / "mics.star").write_text(f"{tables[0]}{optics}\n{tables[1]}{rows}")
    command = "relion_preprocess --i mics.star --coord_dir out/kept/ --coord_suffix _pick.star "
    command += "--part_star parts.star --part_dir Parts/ --extract --extract_size 40 "
    command += "--norm --bg_radius 20 --white_dust -1 --black_dust -1 --invert_contrast"
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    extracted, written = open_particles(tmp_path / "parts.star"), open_particles(out / "kept.mrcs")
    assert len(extracted) == len(written) == sum(len(numbers(out / "kept" / name)) for name in truth)
    ours, theirs = written.read(0, 20), extracted.read(0, 20)
    for one, other in zip(ours, theirs, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9999


@pytest.mark.slow
def test_relion_runs_the_command_as_a_job(simulated, tmp_path, monkeypatch, no_pictures):
    """Called as the pipeline does it; the pipeline itself is tried in test_relion_job."""
    images, truth = simulated
    star = write_project(tmp_path / "project", [images], truth)
    monkeypatch.chdir(tmp_path / "project")
    job = Path("External/job012")
    job.mkdir(parents=True)
    (job / "run.out").write_text("RELION's own")
    arguments = ["sort", "--relion-job", "--o", "External/job012/", "--in_parts", star.name]
    arguments += ["--diameter", 150, "--j", 1, "--pipeline_control", "External/job012/"]
    for more in ([], ["--method", "radial"]):
        assert call(*arguments, *more, "--quiet") == 0
    names = {path.name for path in job.iterdir()}
    assert names == {"run.out", "sorted", "RELION_JOB_EXIT_SUCCESS", "RELION_OUTPUT_NODES.star"}
    made = starfile.read(job / "RELION_OUTPUT_NODES.star")
    assert made["rlnPipeLineNodeName"].tolist()[0] == "External/job012/sorted/kept.star"
    kept = open_particles(job / "sorted/kept.star")
    assert 0.8 * N < len(kept) < 1.2 * N
    arguments[arguments.index("--in_parts")] = "--in_movies"
    assert call(*arguments) == 1
    assert {path.name for path in job.iterdir()} == {"run.out", "sorted", "RELION_JOB_EXIT_FAILURE"}
