"""The map from files: what it writes, and what is made of it afterwards."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mrcfile
import naive
import numpy as np
import pandas as pd
import pytest
import starfile
from sklearn.metrics import adjusted_rand_score
from test_denoise import flag_optics
from test_likelihood import correlation, picture, planted

import fastsort as fs
from fastsort import InputError, cli
from fastsort.classify import adjusted_rand_index, classify_particles, median_resolution
from fastsort.images.ctf import contrast_transfer
from fastsort.images.normalize import subtract_ramps
from fastsort.invariants.fit_classes import averages_of, fit_classes
from fastsort.particles.mrc import write_stack
from fastsort.particles.source import choose_particles
from fastsort.particles.store import ImageStore
from fastsort.particles.table import CtfParameters
from fastsort.report.classes import write_map
from fastsort.report.selection import select_classes
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
    "report.html",
}


def call(*arguments):
    try:
        return cli.main(list(map(str, arguments)))
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def simulated():
    options = {"box": 48, "volume": "two-lobed", "noise": "white", "ctf": True, "n_micrographs": 4}
    return fs.simulate_particles(300, 60, snr=0.2, junk=naive.SEVEN, seed=3, **options)


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
    # Ramps are taken out before phases are flipped.
    level = images.copy()
    subtract_ramps(level)
    flipped = fs.phase_flip(level, truth.ctf, truth.pixel_size)
    array = replace(fs.open_particles(flipped, pixel_size=truth.pixel_size), ctf=truth.ctf)
    plain = classify_particles(array, phase_flip="no", n_classes=4, embedding="pca", n_jobs=1)
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
        ({"work": __file__}, r"work folder .* is a file"),
        ({"keep_work": True}, "a temporary work folder cannot be kept"),
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


# The work folder.

N_FEW, BATCH = 120, 16
FEW_OPTIONS = {"n_classes": 2, "embedding": "pca"}
# What runs in each stage, in the order of the stages.
STAGES = {
    "images": "fastsort.images.prepare._prepare",
    "features": "fastsort.invariants.classes.invariant_features",
    "map": "fastsort.invariants.classes.map_features",
    "classes": "fastsort.invariants.classes.fit_classes",
}


class Stop(BaseException):
    """What no code that means well would catch."""


class Counted(ImageStore):
    """A store that remembers which images were read."""

    def __init__(self, images):
        self.images, self.read_so_far = images, []

    def __len__(self):
        return len(self.images)

    def name(self, index):
        return str(index)

    def read(self, indices):
        self.read_so_far.extend(indices.tolist())
        return self.images[indices]


def stop_beyond(share, how):
    """Progress that ends a run once it has done more than a share of its work."""

    def stop(done, total):
        if done > share * total:
            how()

    return stop


def raise_stop():
    raise Stop


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def must_not_run(*_, **__):
    raise AssertionError("something was done twice")


def assert_identical(one, other):
    if isinstance(one, tuple):
        for a, b in zip(one, other, strict=True):
            assert_identical(a, b)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == other.tobytes()
    else:
        np.testing.assert_equal(one, other)


def same_result(one, other):
    assert_identical(one._replace(seconds=None), other._replace(seconds=None))


@pytest.fixture
def in_batches(simulated, monkeypatch):
    """Some images that are read in many batches, and known by their number alone."""
    monkeypatch.setattr("fastsort.images.batches.BATCH_BYTES", BATCH * 4 * 48 * 48)
    for module in ("prepare", "work"):
        monkeypatch.setattr(
            f"fastsort.images.{module}.source_identity", lambda particles: str(len(particles))
        )
    chosen = np.r_[: N_FEW - 20, 340:360]
    return lambda: replace(fs.open_particles(simulated[0][chosen]), store=Counted(simulated[0][chosen]))


@pytest.fixture(scope="module")
def undisturbed(simulated):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastsort.images.batches.BATCH_BYTES", BATCH * 4 * 48 * 48)
        return classify_particles(simulated[0][np.r_[: N_FEW - 20, 340:360]], **FEW_OPTIONS, n_jobs=1)


@pytest.mark.parametrize("share", [0.01, 0.15, 0.29])
def test_images_that_were_prepared_are_not_read_again(in_batches, undisturbed, tmp_path, share):
    work, first, second = tmp_path / "new" / "work", in_batches(), in_batches()
    with pytest.raises(Stop):
        stop = stop_beyond(share, raise_stop)
        classify_particles(first, **FEW_OPTIONS, work=work, n_jobs=1, progress=stop)
    n_prepared = len(first.store.read_so_far)
    assert n_prepared < N_FEW or share == 0.29
    same_result(classify_particles(second, **FEW_OPTIONS, work=work), undisturbed)
    assert second.store.read_so_far == list(range(n_prepared, N_FEW))
    assert not work.exists()


@pytest.mark.parametrize(("share", "n_done"), [(0.31, 1), (0.36, 1), (0.45, 3), (0.7, 3), (0.99, 3)])
def test_stages_that_were_computed_are_not_computed_again(
    in_batches, undisturbed, tmp_path, monkeypatch, share, n_done
):
    with pytest.raises(Stop):
        stop = stop_beyond(share, raise_stop)
        classify_particles(in_batches(), **FEW_OPTIONS, work=tmp_path / "work", n_jobs=2, progress=stop)
    done = list(STAGES)[:n_done]
    assert {path.stem for path in (tmp_path / "work").glob("*.stage")} == set(done[1:])
    again = in_batches()
    with monkeypatch.context() as patch:
        for name in done:
            patch.setattr(STAGES[name], must_not_run)
        same_result(classify_particles(again, **FEW_OPTIONS, work=tmp_path / "work"), undisturbed)
    assert again.store.read_so_far == []
    assert list(tmp_path.iterdir()) == []


def test_a_kept_folder_serves_any_number_of_groups_but_no_other_option(
    in_batches, undisturbed, tmp_path, monkeypatch
):
    work = tmp_path / "work"
    same_result(classify_particles(in_batches(), **FEW_OPTIONS, work=work, keep_work=True), undisturbed)
    assert {"images.work", *(f"{name}.stage" for name in list(STAGES)[1:])} <= {
        path.name for path in work.iterdir()
    }
    grouped = in_batches()
    with monkeypatch.context() as patch:
        for name in STAGES:
            patch.setattr(STAGES[name], must_not_run)
        again = classify_particles(grouped, **FEW_OPTIONS, n_groups=2, work=work, keep_work=True)
    assert again.keep.any()
    assert_identical(again.classes._replace(group=None), undisturbed.classes._replace(group=None))
    assert grouped.store.read_so_far == []
    other = in_batches()
    classify_particles(other, n_classes=3, embedding="pca", work=work)
    assert len(other.store.read_so_far) == N_FEW
    assert not work.exists()


def killed_run(stack, work, share):
    """Classify a stack until a share of the work is done, and die."""
    classify_particles(
        fs.open_particles(stack), **FEW_OPTIONS, work=work, n_jobs=1, progress=stop_beyond(share, die)
    )


def test_a_run_that_was_killed_goes_on(simulated, tmp_path, monkeypatch):
    stack = tmp_path / "few.mrcs"
    write_stack(stack, [simulated[0][:N_FEW]], 2.0, N_FEW, 48)
    expected = classify_particles(stack, **FEW_OPTIONS, n_jobs=1)
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    for share in (0.2, 0.6):
        arguments = f"{str(stack)!r}, {str(tmp_path / 'w')!r}, {share}"
        code = f"import test_classify; test_classify.killed_run({arguments})"
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=False
        )
        assert done.returncode == -signal.SIGKILL
        assert (tmp_path / "w" / "images.work").exists()
    monkeypatch.setattr(STAGES["images"], must_not_run)
    monkeypatch.setattr(STAGES["features"], must_not_run)
    monkeypatch.setattr(STAGES["map"], must_not_run)
    same_result(classify_particles(stack, **FEW_OPTIONS, work=tmp_path / "w"), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["few.mrcs"]


# Files.


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
    assert table["rlnClassDistribution"].sum() == pytest.approx(1, abs=1e-5)
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


# Poses, as other programs read them.

N_DRAWN, DRAWN_BOX, DRAWN_PIXEL = 60, 48, 2.5


def write_drawn(folder, optics=True, old_origins=False):
    """Write two objects in many poses, hardly any noise, as a project; one image is broken."""
    kind, angle, shift = planted(N_DRAWN, seed=5, far=3.0)
    images = np.array(
        [picture(*pose, box=DRAWN_BOX) for pose in zip(kind, angle, shift, strict=True)], dtype=np.float32
    )
    images += 0.05 * np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    images[7] = 2
    write_stack(folder / "drawn.mrcs", [images], DRAWN_PIXEL, N_DRAWN, DRAWN_BOX)
    table = {"rlnImageName": [f"{i:06d}@drawn.mrcs" for i in range(1, N_DRAWN + 1)]}
    if old_origins:
        for name in ("rlnOriginXAngst", "rlnOriginYAngst") if optics else ("rlnOriginX", "rlnOriginY"):
            table[name] = 1.25
    tables = {"particles": pd.DataFrame(table).assign(rlnOpticsGroup=1) if optics else pd.DataFrame(table)}
    if optics:
        group = {
            "rlnOpticsGroup": [1],
            "rlnOpticsGroupName": ["one"],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
            "rlnImagePixelSize": [DRAWN_PIXEL],
            "rlnImageSize": [DRAWN_BOX],
            "rlnImageDimensionality": [2],
        }
        tables = {"optics": pd.DataFrame(group), **tables}
    starfile.write(tables, folder / "drawn.star")
    text = (folder / "drawn.star").read_text()
    if optics:
        (folder / "drawn.star").write_text(text.replace("\ndata_", "\n# version 30001\n\ndata_"))
    return fs.open_particles(folder / "drawn.star", pixel_size=None if optics else DRAWN_PIXEL), kind


def mapped(folder, particles, **more):
    result = classify_particles(
        particles, n_classes=2, embedding="pca", diameter=20 * DRAWN_PIXEL, n_jobs=1, **more
    )
    write_map(folder, particles, result)
    return result


needs_stack_create = pytest.mark.skipif(
    not shutil.which("relion_stack_create"), reason="relion_stack_create is not installed"
)


@needs_stack_create
@pytest.mark.parametrize("working_size", [48, 32])
def test_relion_turns_and_moves_images_onto_their_averages(tmp_path, monkeypatch, working_size):
    monkeypatch.chdir(tmp_path)
    particles, kind = write_drawn(tmp_path)
    result = mapped(tmp_path, particles, working_size=working_size)
    command = ["relion_stack_create", "--i", "particles.star", "--o", "x", "--apply_transformation"]
    subprocess.run(command, capture_output=True, text=True, check=True)
    label = starfile.read(tmp_path / "x.star")["particles"]["rlnClassNumber"].to_numpy() - 1
    np.testing.assert_array_equal(label, result.classes.label)
    with mrcfile.open(tmp_path / "x.mrcs") as file:
        straight = file.data.astype(np.float32)
    plain = particles.read(0, N_DRAWN)
    averages = result.classes.averages.averages
    assert len(averages) == 2
    radius = 10 * working_size / DRAWN_BOX
    for k, average in enumerate(averages):
        members = np.flatnonzero(label == k)
        assert len(np.unique(kind[members])) == 1
        moved, still = (
            fs.fourier_crop(images[members].mean(axis=0)[None], working_size)[0]
            for images in (straight, plain)
        )
        assert correlation(moved, average, radius, working_size) > 0.95
        assert correlation(still, average, radius, working_size) < 0.9
        each = fs.fourier_crop(straight[members], working_size)
        assert min(correlation(one, average, radius, working_size) for one in each) > 0.85


@pytest.mark.parametrize(("optics", "unit", "scale"), [(True, "Angst", DRAWN_PIXEL), (False, "", 1.0)])
def test_star_files_hold_the_poses(tmp_path, optics, unit, scale):
    particles, _ = write_drawn(tmp_path, optics, old_origins=True)
    result = mapped(tmp_path, particles, working_size=32)
    classes = result.classes
    table = starfile.read(tmp_path / "particles.star")
    table = table["particles"] if optics else table
    used = np.arange(N_DRAWN) != 7
    np.testing.assert_array_equal(table["rlnClassNumber"], classes.label + 1)
    np.testing.assert_allclose(table["rlnAnglePsi"][used], classes.averages.angle[used], atol=1e-4)
    # Working pixels are one and a half of the stack's.
    origins = -classes.averages.shift * 1.5 * scale
    np.testing.assert_allclose(table[f"rlnOriginX{unit}"][used], origins[used, 1], atol=1e-4)
    np.testing.assert_allclose(table[f"rlnOriginY{unit}"][used], origins[used, 0], atol=1e-4)
    assert np.ptp(origins[used], axis=0).min() > 2 * scale
    probability = table["rlnMaxValueProbDistribution"]
    np.testing.assert_allclose(probability, classes.probability, atol=1e-5)
    assert ((probability[used] > 0.4) & (probability[used] <= 1.0001)).all()
    # An image without a class keeps the origin that it had.
    broken = table.iloc[7]
    names = ["rlnClassNumber", "rlnAnglePsi", "rlnMaxValueProbDistribution"]
    assert broken[names].astype(float).tolist() == [0, 0, 0]
    assert broken[[f"rlnOriginX{unit}", f"rlnOriginY{unit}"]].astype(float).tolist() == [1.25, 1.25]


def test_cs_files_hold_the_poses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_drawn(tmp_path)
    fields = [
        ("uid", "<u8"),
        ("blob/path", "S20"),
        ("blob/idx", "<u4"),
        ("blob/shape", "<u4", (2,)),
        ("blob/psize_A", "<f4"),
        ("blob/sign", "<f4"),
        # Of an earlier job.
        ("alignments2D/class", "<u4"),
    ]
    rows = np.zeros(N_DRAWN, fields)
    rows["uid"], rows["blob/idx"] = np.arange(N_DRAWN) + 100, np.arange(N_DRAWN)
    rows["blob/path"], rows["blob/shape"], rows["blob/psize_A"] = b"drawn.mrcs", DRAWN_BOX, DRAWN_PIXEL
    rows["blob/sign"], rows["alignments2D/class"] = 1, 77
    with open("drawn.cs", "wb") as file:
        np.save(file, rows)
    result = mapped(tmp_path, fs.open_particles("drawn.cs"), working_size=32)
    classes = result.classes
    table = np.load(tmp_path / "particles.cs")
    expected = {
        "alignments2D/class": "<u4",
        "alignments2D/class_posterior": "<f4",
        "alignments2D/pose": "<f4",
        "alignments2D/shift": ("<f4", (2,)),
        "alignments2D/psize_A": "<f4",
        "fastsort/class": "<u4",
    }
    for name, kind in expected.items():
        assert table.dtype[name] == np.dtype(kind)
    np.testing.assert_array_equal(table["uid"], rows["uid"])
    used = np.arange(N_DRAWN) != 7
    np.testing.assert_array_equal(table["alignments2D/class"][used], classes.label[used])
    np.testing.assert_array_equal(table["fastsort/class"], classes.label + 1)
    np.testing.assert_array_equal(table["alignments2D/class_posterior"], classes.probability)
    # What RELION calls psi, in radians.
    np.testing.assert_allclose(
        table["alignments2D/pose"][used], np.radians(classes.averages.angle[used]), atol=1e-6
    )
    # Column and row, in pixels of the stack.
    np.testing.assert_allclose(
        table["alignments2D/shift"][used], -1.5 * classes.averages.shift[used, ::-1], atol=1e-5
    )
    assert (table["alignments2D/psize_A"] == np.float32(DRAWN_PIXEL)).all()
    assert table["alignments2D/shift"][7].tolist() == [0, 0] and table["alignments2D/pose"][7] == 0
    assert table["fastsort/class"][7] == table["alignments2D/class_posterior"][7] == 0
    for name in ("kept", "rejected"):
        part = np.load(tmp_path / f"{name}.cs")
        chosen = result.keep if name == "kept" else ~result.keep
        np.testing.assert_array_equal(part, table[chosen])


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
    assert call("map", folder, "--keep-classes", "1-1,1", "-o", tmp_path / "out", "--quiet") == 0
    lines = (tmp_path / "out" / "kept.txt").read_text().splitlines()
    assert list(map(int, lines[1:])) == np.flatnonzero(result.classes.label == 0).tolist()


def embedded(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def test_the_page_of_a_map_says_what_the_map_says(finished, result, project):
    text, told = (finished / "report.html").read_text(), embedded(finished / "report.html")
    assert 'data-of="map"' in text and "rescued</dt>" not in text
    assert [told["n"], told["labels"][told["valid"]]] == [360, "kept"]
    assert sorted(told["views"]["classes"]) == list(range(len(result.classes.averages.size)))
    members = np.bincount(result.classes.label[result.classes.label >= 0])
    assert told["views"]["size"] == members[told["views"]["classes"]].tolist()
    state = np.frombuffer(base64.b64decode(told["columns"]["state"]), np.uint8)
    np.testing.assert_array_equal(state & 1 > 0, result.keep)
    made = json.loads((finished / "summary.json").read_text())["made"]
    assert made["command"].startswith(f"fastsort map {project} -o {finished}")
    stacks = {name.split("@")[1] for name in column(finished / "images.csv", "name")}
    assert made["input_files"] == len(stacks) + 1 and made["host"] in text and made["date"] in text


def choices_on(folder, path, keep, reject, **changes):
    told = embedded(folder / "report.html")
    told = {"images": told["n"], "mark": told["mark"], "threshold": None, **changes}
    chosen = {"kind": "fastsort choices", "version": 1, "keep": keep, "reject": reject}
    path.write_text(json.dumps({**chosen, **told}))
    return path


def test_choices_by_hand_on_a_map(finished, result, tmp_path, capsys):
    keep = result.keep.copy()
    keep[[0, 1, 300]], keep[350:360] = True, False
    chosen = choices_on(finished, tmp_path / "choices.json", [[0, 1], [300, 300]], [[350, 359]])
    assert call("apply", chosen, finished, "-o", tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith(f"{keep.sum()} kept, {360 - keep.sum()} rejected")
    kept, rejected = (
        starfile.read(tmp_path / "out" / f"{part}.star")["particles"] for part in ("kept", "rejected")
    )
    assert kept["rlnImageName"].tolist() == np.array(column(finished / "images.csv", "name"))[keep].tolist()
    assert kept["fastsortByHand"].tolist()[:2] == [1, 1] and set(rejected["fastsortByHand"]) == {0, -1}
    assert column(tmp_path / "out" / "images.csv", "keep") == [str(int(one)) for one in keep]
    assert column(tmp_path / "out" / "images.csv", "class") == column(finished / "images.csv", "class")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["by_hand"] == 13
    # A list says what is kept; what it changes is by hand.
    (tmp_path / "list.txt").write_text("".join(f"{number}\n" for number in np.flatnonzero(keep)))
    assert call("apply", tmp_path / "list.txt", finished, "-o", tmp_path / "same") == 0
    for name in ("kept.star", "rejected.star"):
        assert len(starfile.read(tmp_path / "same" / name)["particles"]) == len(
            kept if name == "kept.star" else rejected
        )
    hand = np.array(column(tmp_path / "same" / "images.csv", "by_hand"), int)
    np.testing.assert_array_equal(hand, np.where(keep == result.keep, 0, np.where(keep, 1, -1)))


def test_classes_are_chosen_on_the_page(browser, finished, result, tmp_path):
    browser.open(finished / "report.html")
    browser.run("localStorage.clear()")
    browser.open(finished / "report.html")
    assert browser.run("getComputedStyle(document.getElementById('threshold')).display") == "none"
    label = int(result.classes.label[result.keep][0])
    members = result.classes.label == label
    browser.run(f"document.querySelector('[aria-label=\"reject class {label + 1}\"]').click()")
    browser.settle()
    left = int((result.keep & ~members).sum())
    assert browser.text("now") == f"{left} kept"
    saved = browser.save("save", "choices.json")
    assert call("apply", saved, finished, "-o", tmp_path / "out", "--quiet") == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["kept"] == left
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"mark": "0" * 16}, "page of another run"), ({"images": 361}, "a page of 361 images")],
)
def test_choices_of_another_map_are_refused(finished, tmp_path, capsys, changes, message):
    chosen = choices_on(finished, tmp_path / "choices.json", [[0, 0]], [], **changes)
    assert call("apply", chosen, finished, "-o", tmp_path / "out") == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--discard-classes", "9"], "class 9 is not in"),
        (["--keep-classes", "0"], "class 0 is not in"),
        (["--keep-classes", "1,x"], "must be numbers or ranges with commas between them, such as 1-3,7"),
        (["--keep-classes", "3-1"], "got '3-1'"),
        (["--keep-classes", "1-99999999"], "got '1-99999999'"),
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
    assert len(lines) == n_classes + 3
    assert "kept" in lines[-1]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not summary["diameter_given"]
    assert summary["diameter"] == pytest.approx(0.8 * summary["box"] * summary["pixel_size"])
    said = f"a disk of 0.8 of the box, {summary['diameter']:.0f} A, counted as the particle"
    assert lines[-2] == f"diameter not known: {said}"


@pytest.mark.parametrize("color", ["score", "probability", "likeness"])
def test_other_colors_make_another_map(project, finished, asked, tmp_path, color):
    folder = tmp_path / "out"
    options = ("--classes", 4, "--embedding", "pca", "--quiet", "--color", color)
    assert call("map", project, "-o", folder, *options) == 0
    assert (folder / "map.png").read_bytes() != (finished / "map.png").read_bytes()
    assert (folder / "classes.mrcs").read_bytes() == (finished / "classes.mrcs").read_bytes()
    assert (asked[0]["n_classes"], asked[0]["embedding"]) == (4, "pca")


# Classes of denoised images.

COMPARED = {"n_classes": 4, "embedding": "pca", "denoised": True}


@pytest.fixture(scope="module")
def compared(project, tmp_path_factory):
    """What comes of the denoised images too, and the work folder it left."""
    work = tmp_path_factory.mktemp("kept") / "work"
    return classify_particles(project, **COMPARED, n_jobs=2, work=work, keep_work=True), work


def pixels_of(path, box=48):
    return np.fromfile(path, np.float16).astype(np.float32).reshape(-1, box, box)


def test_denoised_images_change_nothing_of_the_map_itself(compared, result):
    assert result.denoised is None
    assert_identical(compared[0].classes, result.classes)
    assert (compared[0].keep == result.keep).all()


@pytest.mark.parametrize("flipped", [False, True])
def test_denoised_working_images_are_the_clean_ones(tmp_path, flipped):
    rng, n, box = np.random.default_rng(0), 240, 40
    clean, _ = fs.simulate_particles(n, 0, snr=50, box=box, volume="two-lobed", noise="white", seed=3)
    defocus = rng.uniform(1.5e4, 2.5e4, n)
    ctf = CtfParameters(defocus, defocus, *(np.full(n, value) for value in (0.0, 0.0, 300.0, 2.7, 0.1)))
    transfer = contrast_transfer(ctf, box, 3.0)
    images = np.fft.irfft2(np.fft.rfft2(clean) * transfer, s=(box, box))
    images = (images + rng.normal(0, 2 * images.std(), images.shape)).astype(np.float32)
    if flipped:
        images = fs.phase_flip(images, ctf, 3.0)
    particles = replace(
        fs.open_particles(images, pixel_size=3.0), ctf=ctf, corrected=np.ones(n, bool) if flipped else None
    )
    options = {"n_classes": 2, "embedding": "pca", "work": tmp_path / "work", "keep_work": True}
    classify_particles(particles, denoised=True, n_jobs=1, **options)
    one, other = (
        np.fft.rfft2(pixels) for pixels in (clean, pixels_of(tmp_path / "work" / "denoised.work", box))
    )
    # Where the contrast transfer is negative, phases taken for those of the microscope give -0.4.
    for part, least in ((transfer > 0, 0.95), (transfer < 0, 0.5)):
        product = (one[part].conj() * other[part]).real.sum()
        assert product > least * np.linalg.norm(one[part]) * np.linalg.norm(other[part])


def test_averages_of_either_division_are_made_of_the_images_as_they_are(compared, simulated):
    found, work = compared
    denoised, truth = found.denoised, simulated[1]
    images = fs.open_particles(pixels_of(work / "images.work"), pixel_size=found.pixel_size)
    images = replace(images, ctf=truth.ctf)
    for label, resolution in (
        (found.classes.label, denoised.resolution_as_they_are),
        (denoised.classes.label, denoised.resolution_denoised),
    ):
        resolutions = np.empty(len(label))
        for k in range(label.max() + 1):
            members = np.flatnonzero(label == k)
            alone = fit_classes(choose_particles(images, members), 1, 0.4 * 48, n_jobs=1)
            resolutions[members] = averages_of(alone, found.pixel_size).resolution[0]
        # Infinite for some, which a mean of two would spread.
        assert resolution == pytest.approx(np.sort(resolutions)[(len(label) - 1) // 2], rel=1e-6)
    # A STAR file rounds the defocus.
    last, expected = denoised.classes.averages.averages[-1], alone.averages[0]
    np.testing.assert_allclose(last, expected, atol=1e-3 * expected.std())
    assert (np.diff(denoised.classes.ranking.score) >= 0).all()
    agreement = adjusted_rand_score(found.classes.label, denoised.classes.label)
    assert denoised.agreement == pytest.approx(agreement, abs=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_agreement_is_that_of_all_pairs(classes):
    rng = np.random.default_rng(classes)
    one, other = rng.integers(0, 3, 40), rng.integers(0, classes, 40)
    for second in (other, one, 2 - one, np.where(rng.random(40) < 0.3, other, one)):
        found = adjusted_rand_index(one, second)
        assert found == pytest.approx(naive.adjusted_rand_index(one, second), abs=1e-12)
        assert found == pytest.approx(adjusted_rand_score(one, second), abs=1e-12)
    assert adjusted_rand_index(one, 2 - one) == 1
    alone = np.zeros(1, np.intp)
    assert adjusted_rand_index(alone, alone) == 1


def test_median_resolution_counts_images(result):
    sizes, periods = [3, 1, 0, 5], [9.0, np.inf, 2.0, 7.0]
    averages = result.classes.averages._replace(size=np.array(sizes), resolution=np.array(periods))
    assert median_resolution(averages) == 7
    assert median_resolution(averages._replace(size=np.array([3, 1, 0, 3]))) == 9
    assert median_resolution(averages._replace(size=np.array([1, 2, 0, 0]))) == np.inf


def test_workers_and_interruptions_do_not_change_bits_of_denoised_classes(compared, project, monkeypatch):
    found, work = compared
    same_result(classify_particles(project, **COMPARED, n_jobs=1), found)
    monkeypatch.setattr("fastsort.classify.learn_denoiser", must_not_run)
    for name in STAGES:
        monkeypatch.setattr(STAGES[name], must_not_run)
    same_result(classify_particles(project, **COMPARED, work=work, keep_work=True), found)


def test_unfit_images_and_copies_among_denoised_ones(simulated):
    images = simulated[0][:80].copy()
    images[3, 5, 5] = np.nan
    images[7] = 1.0
    images[50] = images[20]
    seen = []
    found = classify_particles(
        images,
        n_classes=2,
        embedding="pca",
        denoised=True,
        n_jobs=1,
        progress=lambda *step: seen.append(step),
    )
    label = found.denoised.classes.label
    assert set(np.flatnonzero(label < 0)) == {3, 7}
    assert label[50] == label[20] and found.denoised.classes.averages.size.sum() == 77
    done = [step[0] for step in seen]
    assert done == sorted(done) and seen[-1] == (80, 80)


def test_noise_alone_and_a_single_image_can_be_compared(simulated):
    noise = np.random.default_rng(0).normal(size=(60, 32, 32)).astype(np.float32)
    found = classify_particles(noise, n_classes=3, embedding="pca", denoised=True).denoised
    assert np.isnan(found.predicted_error) and abs(found.agreement) < 0.2
    assert classify_particles(simulated[0][:1], denoised=True).denoised.agreement == 1


def test_images_that_cannot_be_denoised_are_refused_before_any_is_read(simulated, tmp_path, monkeypatch):
    star = flag_optics(write_project(tmp_path / "in", *simulated), "_rlnCtfDataAreCtfPremultiplied")
    monkeypatch.setattr("fastsort.classify.prepare_images", must_not_run)
    with pytest.raises(InputError, match="multiplied with their contrast transfer function"):
        classify_particles(star, denoised=True)


def test_files_of_a_map_with_denoised_images(compared, project, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastsort.classify.classify_particles", lambda *_, **options: compared[0])
    folder = tmp_path / "out"
    assert call("map", project, "-o", folder, "--denoised", "--classes", 4, "--embedding", "pca") == 0
    denoised = compared[0].denoised
    assert {path.name for path in folder.iterdir()} == FILES | {"classes_denoised.png"}
    assert (folder / "classes_denoised.png").read_bytes() != (folder / "classes.png").read_bytes()
    written = list(map(int, column(folder / "images.csv", "class_denoised")))
    assert written == (denoised.classes.label + 1).tolist()
    summary = json.loads((folder / "summary.json").read_text())
    known = denoised._replace(predicted_error=None)._asdict() if np.isnan(denoised.predicted_error) else {}
    expected = {**denoised._asdict(), **known}
    del expected["classes"]
    assert summary["denoised"] == expected
    printed = " ".join(capsys.readouterr().out.split())
    assert f"classes of the denoised images ({denoised.method}" in printed
    assert f"agree with these to {denoised.agreement:.2f} (adjusted Rand index)" in printed
    before, after = denoised.resolution_as_they_are, denoised.resolution_denoised
    assert f"{before:.1f} A in these classes, {after:.1f} A in those" in printed
    # These are results of ours, which another run may replace.
    plain = compared[0]._replace(denoised=None)
    monkeypatch.setattr("fastsort.classify.classify_particles", lambda *_, **options: plain)
    assert call("map", project, "-o", folder, "--overwrite", "--quiet") == 0
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "summary.json").read_text())["denoised"] is None


def test_the_command_asks_for_denoised_images(project, asked, tmp_path):
    assert call("map", project, "-o", tmp_path / "a", "--denoised", "--quiet") == 0
    assert call("map", project, "-o", tmp_path / "b", "--quiet") == 0
    assert [options["denoised"] for options in asked] == [True, False]


@pytest.mark.parametrize("choice", ["--keep-classes", "--discard-classes"])
def test_a_finished_map_is_not_denoised(finished, tmp_path, capsys, choice):
    assert call("map", finished, choice, "1", "--denoised", "-o", tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert message.startswith(f"fastsort: error: --denoised does nothing with {choice}")
    assert message.count("\n") == 1
