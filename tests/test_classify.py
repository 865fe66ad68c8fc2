"""The map from files: what it writes, and what is made of it afterwards."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess

import mrcfile
import numpy as np
import pytest
import starfile

import fastsort as fs
from fastsort import InputError, cli
from fastsort.classify import classify_particles
from fastsort.report.classes import select_classes, write_map
from fastsort.simulate import write_project

pytestmark = pytest.mark.slow

FILES = {
    "particles.star",
    "kept.star",
    "rejected.star",
    "images.csv",
    "classes.mrcs",
    "classes.star",
    "summary.json",
    "map.png",
    "classes.png",
}


def call(*arguments):
    try:
        return cli.main(list(map(str, arguments)))
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def simulated():
    options = {"box": 48, "volume": "two-lobed", "noise": "white", "ctf": True, "n_micrographs": 4}
    return fs.simulate_particles(300, 60, snr=0.2, junk="all", seed=3, **options)


@pytest.fixture(scope="module")
def project(simulated, tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("project") / "p", *simulated)


@pytest.fixture(scope="module")
def result(project):
    return classify_particles(project, n_classes=4, embedding="pca", n_jobs=2)


@pytest.fixture(scope="module")
def finished(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "map"
    assert call("map", project, "-o", folder, "--classes", 4, "--embedding", "pca", "--quiet") == 0
    return folder


def column(path, name):
    with open(path, newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def test_result_agrees_with_itself(result, simulated):
    classes = result.classes
    assert len(result.keep) == len(classes.label) == 360
    assert (result.keep == ~classes.ranking.junk[classes.label]).all()
    assert (result.score == classes.ranking.score[classes.label]).all()
    assert result.phase_flipped
    assert result.pixel_size == pytest.approx(simulated[1].pixel_size)
    assert list(result.seconds) == ["read and crop", "map", "total"]
    good = simulated[1].label
    assert result.keep[good].mean() > 0.95
    assert result.keep[~good].mean() < 0.5


def test_workers_and_kind_of_source_do_not_change_bits(result, project, simulated):
    again = classify_particles(project, n_classes=4, embedding="pca", n_jobs=1)
    for one, other in zip(again.classes.averages, result.classes.averages, strict=True):
        np.testing.assert_array_equal(one, other)
    images, truth = simulated
    flipped = fs.phase_flip(images, truth.ctf, truth.pixel_size)
    plain = classify_particles(flipped, n_classes=4, embedding="pca", n_jobs=1)
    assert (plain.classes.label == result.classes.label).mean() > 0.98


@pytest.fixture(scope="module")
def few(simulated):
    images, truth = simulated
    return fs.open_particles(images[:90], pixel_size=truth.pixel_size)


def test_progress_reaches_the_end(few):
    seen = []
    classify_particles(few, n_classes=2, embedding="pca", progress=lambda *step: seen.append(step))
    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert seen[-1] == (90, 90)


def test_working_size_is_that_of_the_averages(few):
    small = classify_particles(few, n_classes=2, embedding="pca", working_size=32)
    assert small.classes.averages.averages.shape[1:] == (32, 32)
    assert small.pixel_size == pytest.approx(few.pixel_size * 48 / 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_classes": 361}, "361 classes need as many images; got 360"),
        ({"n_classes": 0}, "n_classes"),
        ({"n_groups": 0}, "n_groups"),
        ({"embedding": "tsne"}, "embedding must be one of"),
        ({"phase_flip": "maybe"}, "phase_flip must be one of"),
        ({"working_size": 64}, "working size must not exceed the box of 48 px"),
        ({"diameter": 1e5}, "diameter"),
        ({"work": "/nowhere/at/all"}, "work folder"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_options(project, options, message):
    with pytest.raises(InputError, match=message):
        classify_particles(project, **options)


def test_unfit_images_have_no_class(simulated, tmp_path):
    images = simulated[0][:60].copy()
    images[3, 5, 5] = np.nan
    images[7] = 1.0
    result = classify_particles(images, n_classes=2, embedding="pca")
    assert set(np.flatnonzero(result.classes.label < 0)) == {3, 7}
    assert not result.keep[[3, 7]].any()
    assert np.isinf(result.score[[3, 7]]).all()
    write_map(tmp_path, fs.open_particles(images), result)
    assert json.loads((tmp_path / "summary.json").read_text())["without_class"] == 2
    assert column(tmp_path / "images.csv", "class")[3] == "0"


def test_a_single_image(simulated, tmp_path):
    result = classify_particles(simulated[0][:1])
    assert result.classes.label.tolist() == [0]
    write_map(tmp_path, fs.open_particles(simulated[0][:1]), result)


def test_no_usable_image(tmp_path):
    with pytest.raises(InputError, match="all 5 images are flat"):
        classify_particles(np.full((5, 32, 32), np.nan, dtype=np.float32))


def test_files(finished, project, result):
    assert {path.name for path in finished.iterdir()} == FILES
    classes = result.classes
    original, mapped = (
        starfile.read(project)["particles"],
        starfile.read(finished / "particles.star")["particles"],
    )
    assert (mapped["rlnImageName"] == original["rlnImageName"]).all()
    assert (mapped["rlnClassNumber"] == classes.label + 1).all()
    np.testing.assert_allclose(mapped["fastsortClassScore"], result.score, rtol=1e-5)
    np.testing.assert_allclose(mapped["fastsortMapX"], classes.map.coordinates[:, 0], rtol=1e-4)
    kept = starfile.read(finished / "kept.star")["particles"]
    assert (kept["rlnImageName"].to_numpy() == original["rlnImageName"].to_numpy()[result.keep]).all()
    assert len(kept) + len(starfile.read(finished / "rejected.star")["particles"]) == 360
    table = starfile.read(finished / "classes.star")
    assert len(table) == len(classes.averages.size)
    assert table["fastsortClassSize"].tolist() == classes.averages.size.tolist()
    assert table["rlnClassDistribution"].sum() == pytest.approx(1)
    assert table["rlnReferenceImage"][0] == "000001@classes.mrcs"
    np.testing.assert_allclose(table["fastsortClassScore"], classes.ranking.score, atol=1e-5)
    with mrcfile.open(finished / "classes.mrcs") as file:
        assert file.data.shape == (len(table), 48, 48)
        assert file.voxel_size.x == pytest.approx(result.pixel_size, rel=1e-5)
        agreement = np.corrcoef(file.data[0].ravel(), classes.averages.averages[0].ravel())[0, 1]
    assert agreement > 0.7
    assert list(map(int, column(finished / "images.csv", "class"))) == (classes.label + 1).tolist()
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["classes"] == len(table)
    assert summary["kept"] == int(result.keep.sum())
    assert summary["junk_classes"] == (np.flatnonzero(classes.ranking.junk) + 1).tolist()


@pytest.mark.skipif(not shutil.which("relion_image_handler"), reason="RELION is not installed")
def test_relion_reads_the_classes(finished, tmp_path):
    command = ["relion_image_handler", "--i", "classes.mrcs", "--stats"]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, check=True)
    assert "48" in done.stdout
    command = ["relion_star_printtable", "classes.star", "data_model_classes", "_rlnReferenceImage"]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "000001@classes.mrcs"


@pytest.mark.parametrize("option", ["--discard-classes", "--keep-classes"])
def test_classes_are_chosen_without_computing(finished, tmp_path, option, monkeypatch):
    monkeypatch.setattr("fastsort.classify.classify_particles", None)
    assert call("map", finished, option, "1,3", "-o", tmp_path / "out", "--quiet") == 0
    table = starfile.read(finished / "particles.star")["particles"]
    chosen = table["rlnClassNumber"].isin([1, 3])
    expected = table[chosen if option == "--keep-classes" else ~chosen]
    kept = starfile.read(tmp_path / "out" / "kept.star")["particles"]
    assert kept["rlnImageName"].tolist() == expected["rlnImageName"].tolist()
    assert len(starfile.read(tmp_path / "out" / "rejected.star")["particles"]) == 360 - len(expected)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["kept"] == len(expected)


def test_choice_where_there_is_no_star_file(simulated, tmp_path):
    particles = fs.open_particles(simulated[0][:80])
    result = classify_particles(particles, n_classes=2, embedding="pca")
    folder = tmp_path / "map"
    folder.mkdir()
    write_map(folder, particles, result)
    assert not list(folder.glob("*.star")) or (folder / "classes.star").exists()
    assert call("map", folder, "--keep-classes", "1", "-o", tmp_path / "out", "--quiet") == 0
    lines = (tmp_path / "out" / "kept.txt").read_text().splitlines()
    assert list(map(int, lines[1:])) == np.flatnonzero(result.classes.label == 0).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--discard-classes", "9"], "class 9 is not in"),
        (["--keep-classes", "0"], "class 0 is not in"),
        (["--keep-classes", "1,x"], "must be numbers with commas between them; got '1,x'"),
        (["--keep-classes", "1", "--discard-classes", "2"], "not allowed with"),
    ],
)
def test_wrong_choices(finished, tmp_path, capsys, arguments, message):
    assert call("map", finished, *arguments, "-o", tmp_path / "out") in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_choice_needs_a_map(project, tmp_path, capsys):
    assert call("map", project, "--keep-classes", "1", "-o", tmp_path / "out") == 1
    assert "holds no map" in capsys.readouterr().err
    with pytest.raises(InputError, match="either"):
        select_classes(tmp_path)


def test_choice_does_not_replace_its_map(finished, capsys):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    assert call("map", finished, "--keep-classes", "1", "-o", finished, "--overwrite") == 1
    assert "lies in the output folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


@pytest.fixture
def asked(result, monkeypatch):
    """What the command asks of a classification; it gets the one of `result`, which is that of `finished`."""
    asked = []

    def known(particles, **options):
        asked.append(options)
        return result

    monkeypatch.setattr("fastsort.classify.classify_particles", known)
    return asked


def test_summary_on_the_terminal(project, asked, tmp_path, capsys):
    assert call("map", project, "-o", tmp_path / "out", "--classes", 3, "--embedding", "pca") == 0
    assert (asked[0]["n_classes"], asked[0]["embedding"]) == (3, "pca")
    lines = capsys.readouterr().out.splitlines()
    n_classes = json.loads((tmp_path / "out" / "summary.json").read_text())["classes"]
    assert lines[0].startswith(f"360 images in {n_classes} class")
    assert len(lines) == n_classes + 2
    assert "kept" in lines[-1]


@pytest.mark.parametrize("color", ["score", "displaced", "likeness"])
def test_other_colors_make_another_map(project, finished, asked, tmp_path, color):
    folder = tmp_path / "out"
    options = ("--classes", 4, "--embedding", "pca", "--quiet", "--color", color)
    assert call("map", project, "-o", folder, *options) == 0
    assert (folder / "map.png").read_bytes() != (finished / "map.png").read_bytes()
    assert (folder / "classes.mrcs").read_bytes() == (finished / "classes.mrcs").read_bytes()
    assert (asked[0]["n_classes"], asked[0]["embedding"]) == (4, "pca")
