"""The room where verdicts become files: tables, the picture, the folder that holds them."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import shutil
import subprocess
import sys
from itertools import chain
from types import SimpleNamespace

import killed
import mrcfile
import naive
import numpy as np
import pytest
import starfile
from matplotlib.figure import Figure
from matplotlib.image import imread

from fastsort._checks import InputError
from fastsort._reasons import REASONS, reason_codes
from fastsort.decide.decoys import Estimate, EstimatedErrors
from fastsort.decide.micrographs import MicrographTable
from fastsort.decide.result import SortResult
from fastsort.images.ctf import phase_flip
from fastsort.particles.open import open_particles
from fastsort.particles.table import Added
from fastsort.report import learned, plots
from fastsort.report.accuracy import measure_accuracy
from fastsort.report.folder import RESULT_NAMES, results_folder
from fastsort.report.painter import painting_beside
from fastsort.report.plots import draw_report
from fastsort.report.progress import progress_bar
from fastsort.report.tables import write_tables
from fastsort.simulate import simulate_particles, write_project
from fastsort.subspaces.filter import SubspaceResult
from fastsort.subspaces.mixture import FitTrace, SubspaceModel
from fastsort.subspaces.pswf import pswf_basis

NEW_COLUMNS = [
    "_rlnParticleSelectZScore",
    "_fastsortReason",
    "_fastsortJunkProbability",
    "_fastsortOffsetXAngst",
    "_fastsortOffsetYAngst",
]


class Result(SimpleNamespace):
    """Stands for a `SortResult` that a test can change."""

    reason = SortResult.reason
    suspicion = SortResult.suspicion


def make_result(n, seed=0, **changes):
    """A result with every reason in it (if n allows), and scores with a long tail."""
    rng = np.random.default_rng(seed)
    reason = np.array(REASONS)[np.arange(n) % len(REASONS)]
    score = np.where(reason == "valid", rng.normal(0, 1, n), rng.gamma(2, 4, n) + 3)
    score[reason == "flat"] = np.nan
    fields = {
        "keep": reason == "valid",
        "score": score,
        "reason_code": reason_codes(reason),
        "suspicion_code": reason_codes(np.where(reason == "valid", "noise", reason)),
        "rescued": np.zeros(n, dtype=bool),
        "votes": {"radial": score},
        "junk_probability": rng.random(n),
        "offset": rng.normal(0, 3, (n, 2)).astype(np.float32),
        "measurements": {"peak": rng.random(n), "n_clusters": np.arange(n)},
        "threshold": 3.0,
        "diameter": 128.0,
        "diameter_px": 32.0,
        "diameter_estimated": False,
        "contrast": "bright",
        "phase_flipped": False,
        "subspaces": None,
        "errors": None,
        "views": None,
        "parameters": {"seed": np.int64(0), "method": None, "radius": np.float32(2.5)},
        "seconds": {"total": 2.0, "measure": 1.5},
        "doubts": (),
    }
    return Result(**{**fields, **changes})


def make_subspaces(n_subspaces=2, n_components=3, n_images=(40, 40, 38), steps=None, **changes):
    """What `subspace_filter` returns of the subspaces, with loadings of known lengths."""
    basis = pswf_basis(16, 0.35)
    rng = np.random.default_rng(1)
    width = len(basis.angular)
    loadings = np.linalg.qr(rng.normal(size=(n_subspaces, width, n_components)))[0]
    loadings *= 4.0 / (1 + np.arange(n_components))
    steps = np.arange(len(n_images)) if steps is None else steps
    trace = FitTrace(-500.0 + steps, 2.0 - 0.1 * steps, np.array(n_images, dtype=np.intp))
    weights = np.arange(1, n_subspaces + 1) / (n_subspaces * (n_subspaces + 1) / 2)
    means = rng.normal(size=(n_subspaces, width))
    model = SubspaceModel(weights, means, loadings, 0.25, np.ones(max(n_images, default=1), bool), trace)
    nothing = np.empty(0)
    fields = dict.fromkeys(SubspaceResult._fields, nothing)
    return SubspaceResult(**{**fields, "model": model, "basis": basis, **changes})


def make_learned_result(n, **changes):
    """The same as `make_result` of the subspaces method."""
    rng = np.random.default_rng(2)
    factor, log_likelihood = rng.gamma(4, 2, n), -500 - rng.gamma(2, 9, n)
    factor[::5], log_likelihood[::5] = np.inf, -np.inf
    factor[1::9] = np.nan
    fields = {
        "offset": np.full((n, 2), np.nan, np.float32),
        "measurements": {"factor": factor, "log_likelihood": log_likelihood, "excess": rng.random(n)},
        "subspaces": make_subspaces(),
        "votes": {"subspaces": factor},
    }
    return make_result(n, **{**fields, **changes})


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    images, truth = simulate_particles(12, 12, snr=0.5, box=32, junk=naive.SEVEN, ctf=True, n_micrographs=3)
    return write_project(tmp_path_factory.mktemp("project") / "p", images, truth)


@pytest.fixture(scope="module")
def commented(project):
    """The same with comments at odd places, one of them where RELION allows none."""
    lines = project.read_text().rstrip("\n").split("\n")
    lines.insert(-3, "# a note between the rows")
    star = project.with_name("commented.star")
    star.write_text("# first line\n" + "\n".join(lines) + "\n\n# last line\n")
    return star


def data_rows(path):
    return [line for line in path.read_bytes().split(b"\n") if b"@" in line]


def test_star_files_are_the_input_without_the_new_columns(commented, tmp_path):
    particles = open_particles(commented)
    result = make_result(24)
    write_tables(tmp_path, particles, result)
    original = commented.read_bytes().split(b"\n")
    order = {row: i for i, row in enumerate(data_rows(commented))}
    found = set()
    for name, chosen in (("kept", result.keep), ("rejected", ~result.keep)):
        lines = (tmp_path / f"{name}.star").read_bytes().split(b"\n")
        stripped = [line.rsplit(b" ", 5)[0] if b"@" in line else line for line in lines]
        stripped = [line for line in stripped if line.split(b" ")[0].decode() not in NEW_COLUMNS]
        rows = [order[line] for line in stripped if b"@" in line]
        assert rows == np.flatnonzero(chosen).tolist()
        assert [line for line in stripped if b"@" not in line] == [x for x in original if b"@" not in x]
        found.update(rows)
    assert found == set(range(24))


def test_star_columns_hold_the_result(project, tmp_path):
    particles = open_particles(project)
    result = make_result(24)
    write_tables(tmp_path, particles, result)
    for name, chosen in (("kept", result.keep), ("rejected", ~result.keep)):
        tables = starfile.read(tmp_path / f"{name}.star", always_dict=True)
        table = tables["particles"]
        assert tables["optics"].equals(starfile.read(project, always_dict=True)["optics"])
        scores = np.nan_to_num(result.score[chosen], nan=999999)
        np.testing.assert_allclose(table["rlnParticleSelectZScore"], scores, atol=1e-6)
        assert table["fastsortReason"].tolist() == result.reason[chosen].tolist()
        probability = result.junk_probability[chosen]
        np.testing.assert_allclose(table["fastsortJunkProbability"], probability, atol=1e-6)
        size = particles.pixel_size
        np.testing.assert_allclose(table["fastsortOffsetXAngst"], result.offset[chosen, 1] * size, atol=1e-3)
        np.testing.assert_allclose(table["fastsortOffsetYAngst"], result.offset[chosen, 0] * size, atol=1e-3)


def test_star_columns_of_the_subspaces(project, tmp_path):
    result = make_learned_result(24)
    write_tables(tmp_path, open_particles(project), result)
    for name, chosen in (("kept", result.keep), ("rejected", ~result.keep)):
        lines = (tmp_path / f"{name}.star").read_text().splitlines()
        assert not [line for line in lines if "Offset" in line and line.startswith("_fastsort")]
        table = starfile.read(tmp_path / f"{name}.star", always_dict=True)["particles"]
        factor = result.measurements["factor"][chosen]
        log_likelihood = result.measurements["log_likelihood"][chosen]
        assert not np.isfinite(factor).all() and np.isfinite(factor).any()
        factor = np.where(np.isfinite(factor), factor, 999999)
        log_likelihood = np.where(np.isfinite(log_likelihood), log_likelihood, -999999)
        np.testing.assert_allclose(table["fastsortSortingFactor"], factor, rtol=1e-5)
        np.testing.assert_allclose(table["fastsortLogLikelihood"], log_likelihood, rtol=1e-5)
        assert table["fastsortReason"].tolist() == result.reason[chosen].tolist()


def test_columns_of_all_methods_together(project, tmp_path):
    result = make_result(24)
    more = {"factor": np.ones(24), "log_likelihood": np.ones(24)}
    votes = {name: result.score + i for i, name in enumerate(("radial", "subspaces", "invariants"))}
    result = make_result(24, measurements={**result.measurements, **more}, votes=votes)
    write_tables(tmp_path, open_particles(project), result)
    table = starfile.read(tmp_path / "kept.star", always_dict=True)["particles"]
    ours = [f"_{name}" for name in table if name.startswith(("fastsort", "rlnParticleSelect"))]
    assert ours == NEW_COLUMNS
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name, values in votes.items():
        np.testing.assert_allclose([float(row[f"vote_{name}"]) for row in rows], values, rtol=1e-6)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["votes"] == ["radial", "subspaces", "invariants"]


def test_probability_that_is_not_known(project, tmp_path):
    probability = np.full(24, np.nan)
    write_tables(tmp_path, open_particles(project), make_result(24, junk_probability=probability))
    assert "_fastsortJunkProbability" not in (tmp_path / "kept.star").read_text()
    probability[0] = 0.25
    write_tables(tmp_path, open_particles(project), make_result(24, junk_probability=probability))
    table = starfile.read(tmp_path / "kept.star", always_dict=True)["particles"]
    assert table["fastsortJunkProbability"].tolist() == [0.25, 1]


@pytest.mark.parametrize("kind", ["star", "stack"])
def test_rescued_images_stand_apart(project, tmp_path, kind):
    rescued = make_result(24).reason == "rare_view"
    result = make_result(24, rescued=rescued)
    particles = open_particles(project)
    source = particles if kind == "star" else open_particles(particles.read(0, 24))
    write_tables(tmp_path, source, result)
    suffix = ".star" if kind == "star" else ".txt"
    found = {}
    for name in ("kept", "rejected", "rescued"):
        path = tmp_path / f"{name}{suffix}"
        if kind == "star":
            names = [line.split()[0].decode() for line in data_rows(path)]
            found[name] = [particles.names.index(image) for image in names]
        else:
            assert path.read_text().startswith(f"# {name} images, ")
            found[name] = np.loadtxt(path, dtype=int).tolist()
    assert found["rescued"] == np.flatnonzero(rescued).tolist()
    assert found["kept"] == np.flatnonzero(result.keep).tolist()
    assert sorted(chain.from_iterable(found.values())) == list(range(24))
    summary = json.loads((tmp_path / "summary.json").read_text())
    counts = [summary[name] for name in ("kept", "rejected", "rescued")]
    assert counts == [len(found[name]) for name in ("kept", "rejected", "rescued")]
    with open(tmp_path / "scores.csv", newline="") as file:
        assert [row["rescued"] == "1" for row in csv.DictReader(file)] == rescued.tolist()


def test_nothing_rescued_leaves_no_file(project, tmp_path):
    write_tables(tmp_path, open_particles(project), make_result(24))
    assert not list(tmp_path.glob("rescued*"))


def test_summary_of_errors_and_micrographs(project, tmp_path):
    some = Estimate(0.9, 0.8, math.nan)
    errors = EstimatedErrors(some, some, some, some, {"noise": some}, {"noise": 7}, True, "few")
    numbers = [np.arange(2.0)] * 3
    drop = np.array([False, True])
    micrographs = MicrographTable(
        ["a.mrc", "b.mrc"], np.array([3, 4]), *numbers, numbers[0], drop, {"x": 0.5}
    )
    write_tables(tmp_path, open_particles(project), make_result(24, errors=errors), micrographs=micrographs)
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["errors"]["precision"] == {"value": 0.9, "low": 0.8, "high": None}
    assert summary["errors"]["by_kind"]["noise"]["value"] == 0.9 and summary["errors"]["n_decoys"] == {
        "noise": 7
    }
    assert summary["errors"]["known"] is True and summary["errors"]["remark"] == "few"
    assert summary["micrographs"] == {"number": 2, "drop": ["b.mrc"], "trends": {"x": 0.5}}
    write_tables(tmp_path, open_particles(project), make_result(24))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["errors"] is None and summary["micrographs"] is None


def test_origins_are_written_where_given(project, tmp_path):
    origins = Added({"_rlnOriginXAngst": [f"{i}.5" for i in range(24)]})
    result = make_result(24)
    write_tables(tmp_path, open_particles(project), result, origins=origins)
    table = starfile.read(tmp_path / "kept.star", always_dict=True)["particles"]
    assert table["rlnOriginXAngst"].tolist() == [i + 0.5 for i in np.flatnonzero(result.keep)]
    assert json.loads((tmp_path / "summary.json").read_text())["recentred"] is True
    write_tables(tmp_path, open_particles(project), result)
    assert json.loads((tmp_path / "summary.json").read_text())["recentred"] is False


def test_unknown_likelihood_is_the_worst(project, tmp_path):
    result = make_learned_result(24)
    result.measurements["log_likelihood"][:] = np.nan
    write_tables(tmp_path, open_particles(project), result)
    table = starfile.read(tmp_path / "kept.star", always_dict=True)["particles"]
    assert (table["fastsortLogLikelihood"] == -999999).all()


def test_star_without_pixel_size_gives_offsets_in_pixels(project, tmp_path):
    (tmp_path / "out").mkdir()
    star = tmp_path / "old.star"
    rows = "".join(f"{i + 1}@{project.parent}/Extract/micrograph_0000.mrcs\n" for i in range(8))
    star.write_text(f"data_\n\nloop_\n_rlnImageName #1\n{rows}")
    stack = project.parent / "Extract" / "micrograph_0000.mrcs"
    with mrcfile.open(stack) as file:
        images = file.data.copy()
    bare = tmp_path / "bare.mrcs"
    with mrcfile.new(bare) as file:
        file.set_data(images)
    star.write_text(star.read_text().replace(str(stack), str(bare)))
    particles = open_particles(star)
    assert math.isnan(particles.pixel_size)
    result = make_result(8, diameter=math.nan)
    write_tables(tmp_path / "out", particles, result)
    table = starfile.read(tmp_path / "out" / "rejected.star")
    np.testing.assert_allclose(table["fastsortOffsetX"], result.offset[~result.keep, 1], atol=1e-3)
    assert "fastsortOffsetXAngst" not in table
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["pixel_size"] is None and summary["diameter"] is None


@pytest.mark.skipif(shutil.which("relion_star_handler") is None, reason="the RELION tools are not installed")
@pytest.mark.parametrize("name", ["kept", "rejected"])
def test_relion_reads_the_star_files(project, tmp_path, name):
    result = make_result(24)
    write_tables(tmp_path, open_particles(project), result)
    relion = tmp_path / "relion.star"
    command = ["relion_star_handler", "--i", tmp_path / f"{name}.star", "--o", relion]
    subprocess.run(command, check=True, capture_output=True)
    read = starfile.read(relion, always_dict=True)["particles"]
    chosen = result.keep if name == "kept" else ~result.keep
    assert read["fastsortReason"].tolist() == result.reason[chosen].tolist()
    scores = np.nan_to_num(result.score[chosen], nan=999999)
    np.testing.assert_allclose(read["rlnParticleSelectZScore"], scores, atol=1e-5)
    command = ["relion_stack_create", "--i", tmp_path / f"{name}.star", "--o", tmp_path / "stack"]
    subprocess.run(command, check=True, capture_output=True, cwd=project.parent)
    with mrcfile.open(tmp_path / "stack.mrcs") as file:
        np.testing.assert_array_equal(file.data, open_particles(project).read(np.flatnonzero(chosen)))


def test_scores_have_one_row_an_image(project, tmp_path):
    particles = open_particles(project)
    result = make_result(24)
    write_tables(tmp_path, particles, result)
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(24))
    assert [row["name"] for row in rows] == list(particles.names)
    assert [row["keep"] == "1" for row in rows] == result.keep.tolist()
    assert [row["reason"] for row in rows] == result.reason.tolist()
    expected = {
        "score": result.score,
        "junk_probability": result.junk_probability,
        "offset_x": result.offset[:, 1],
        "offset_y": result.offset[:, 0],
        "rescued": result.rescued,
        **result.measurements,
    }
    assert set(rows[0]) == {"index", "name", "keep", "reason", *expected}
    for column, values in expected.items():
        np.testing.assert_allclose([float(row[column]) for row in rows], values, rtol=1e-6, err_msg=column)


def test_scores_survive_names_with_commas_and_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("fastsort.report.tables._ROWS_AT_ONCE", 3)
    images = np.random.default_rng(0).normal(size=(8, 16, 16)).astype(np.float32)
    path = tmp_path / 'a,"b".mrcs'
    with mrcfile.new(path) as file:
        file.set_data(images)
    write_tables(tmp_path, open_particles(path), make_result(8))
    with open(tmp_path / "scores.csv", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert names == [f'{i:06d}@a,"b".mrcs' for i in range(1, 9)]
    assert np.loadtxt(tmp_path / "rejected.txt", dtype=int).tolist() == list(range(1, 8))


def test_summary_counts_add_up(project, tmp_path):
    result = make_result(24, threshold=np.inf)
    write_tables(tmp_path, open_particles(project), result)
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["images"] == 24 and summary["kept"] == 2 and summary["rejected"] == 22
    assert summary["reasons"] == {name: len(range(k, 24, len(REASONS))) for k, name in enumerate(REASONS)}
    assert summary["input"] == str(project)
    assert summary["box"] == 32 and summary["diameter"] == 128.0 and summary["cut"] is None
    assert summary["parameters"] == {"seed": 0, "method": None, "radius": 2.5}
    assert summary["seconds"]["total"] == 2.0 and summary["images_per_second"] == 12.0
    assert summary["versions"]["numpy"] == np.__version__
    assert set(summary["versions"]) == {"fastsort", "python", "numpy", "numba", "scipy"}


def test_summary_of_the_subspaces(project, tmp_path):
    def summary_of(result):
        write_tables(tmp_path, open_particles(project), result)
        return json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)["subspaces"]

    assert summary_of(make_result(24)) is None
    assert summary_of(make_learned_result(24)) == {
        "number": 2,
        "components": 3,
        "weights": [pytest.approx(1 / 3), pytest.approx(2 / 3)],
        "noise_variance": 0.25,
        "iterations": 3,
        "images": 38,
        "log_likelihood": {"first": -500.0, "last": -498.0},
    }
    earlier = {"number": 5}
    write_tables(tmp_path, open_particles(project), make_result(24), learned=earlier)
    assert json.loads((tmp_path / "summary.json").read_text())["subspaces"] == earlier
    assert summary_of(make_learned_result(24, subspaces=make_subspaces(1, 1, ()))) == {
        "number": 0,
        "components": 0,
        "weights": [],
        "noise_variance": None,
        "iterations": 0,
        "images": 0,
        "log_likelihood": {"first": None, "last": None},
    }


@pytest.mark.parametrize("pixel_size", [1.5, None])
def test_stack_gives_lists_and_a_copy_of_kept_images(tmp_path, monkeypatch, pixel_size):
    monkeypatch.setattr("fastsort.report.tables._BYTES_AT_ONCE", 2 * 4 * 20 * 20)
    images = np.random.default_rng(0).normal(size=(50, 20, 20)).astype(np.float32)
    particles = open_particles(images, pixel_size=pixel_size)
    result = make_result(50)
    write_tables(tmp_path, particles, result, write_stack=True)
    for name, chosen in (("kept", result.keep), ("rejected", ~result.keep)):
        first, *rest = (tmp_path / f"{name}.txt").read_text().splitlines()
        assert first.startswith(f"# {name} images, {chosen.sum()} of 50: ") and "counted from 0" in first
        assert list(map(int, rest)) == np.flatnonzero(chosen).tolist()
    copy = open_particles(tmp_path / "kept.mrcs")
    np.testing.assert_array_equal(copy.read(0, len(copy)), images[result.keep])
    assert copy.pixel_size == pytest.approx(particles.pixel_size)
    assert not list(tmp_path.glob("*.star"))


def test_no_stack_when_nothing_is_kept(tmp_path):
    images = np.ones((4, 16, 16), np.float32)
    write_tables(tmp_path, open_particles(images), make_result(4, keep=np.zeros(4, bool)), write_stack=True)
    assert not (tmp_path / "kept.mrcs").exists()
    assert (tmp_path / "kept.txt").read_text().count("\n") == 1


def fill(folder, text="new"):
    for name in ("kept.star", "rejected.star", "summary.json"):
        (folder / name).write_text(text)


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_folder_appears_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with results_folder(out) as partial:
        fill(partial)
        assert not out.exists()
    assert names_in(tmp_path / "deep") == ["out", "out/kept.star", "out/rejected.star", "out/summary.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("earlier", [False, True])
def test_folder_keeps_what_it_held_after_an_error(tmp_path, error, earlier):
    out = tmp_path / "out"
    if earlier:
        out.mkdir()
        fill(out, "old")
    before = {path: path.read_text() for path in out.rglob("*")}
    expected = RuntimeError if error is RuntimeError else type(error) if isinstance(error, OSError) else error
    with pytest.raises(expected), results_folder(out, overwrite=earlier) as partial:
        fill(partial)
        raise error
    assert {path: path.read_text() for path in out.rglob("*")} == before
    assert names_in(tmp_path) == (names_in(tmp_path) if earlier else [])
    assert not list(tmp_path.glob(".*"))


def test_folder_replaces_earlier_results_only_when_told(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    (out / "report.png").write_text("old")
    with pytest.raises(InputError, match="--overwrite"), results_folder(out):
        pass
    with results_folder(out, overwrite=True) as partial:
        fill(partial)
    assert names_in(tmp_path) == ["out", "out/kept.star", "out/rejected.star", "out/summary.json"]
    assert (out / "kept.star").read_text() == "new"


@pytest.mark.parametrize("foreign", ["notes.txt", "kept.star/deeper.txt", ".hidden"])
def test_folder_with_other_files_is_never_touched(tmp_path, foreign):
    out = tmp_path / "out"
    (out / foreign).parent.mkdir(parents=True)
    (out / foreign).write_text("precious")
    (out / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="did not write"), results_folder(out, overwrite=True) as partial:
        fill(partial)
    assert (out / foreign).read_text() == "precious"


def test_folder_without_summary_is_never_touched(tmp_path):
    (tmp_path / "kept.star").write_text("of another program")
    with pytest.raises(InputError, match="did not write"), results_folder(tmp_path, overwrite=True):
        pass
    assert names_in(tmp_path) == ["kept.star"]


def test_files_that_arrive_meanwhile_are_kept(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    with pytest.raises(InputError, match=r"notes\.txt"), results_folder(out, overwrite=True) as partial:
        fill(partial)
        (out / "notes.txt").write_text("precious")
    assert (out / "notes.txt").read_text() == "precious" and (out / "kept.star").read_text() == "old"
    assert names_in(tmp_path)[0] == "out" and not list(tmp_path.glob(".*"))


def test_input_in_the_output_folder_is_refused(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "input")
    link = tmp_path / "link.star"
    link.symlink_to(out / "kept.star")
    for name in (out / "kept.star", link):
        with pytest.raises(InputError, match="lies in the output folder"):
            with results_folder(out, overwrite=True, inputs=[name]):
                pass
    assert (out / "kept.star").read_text() == "input"


def test_working_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="working folder"), results_folder("."):
        pass


def test_two_runs_cannot_write_the_same_folder(tmp_path):
    out = tmp_path / "out"
    with results_folder(out) as partial:
        fill(partial)
        before = names_in(tmp_path)
        with pytest.raises(InputError, match=r"another run is writing to .*out: wait"), results_folder(out):
            pass
        with results_folder(tmp_path / "other") as other:
            fill(other)
        assert set(before) < set(names_in(tmp_path))
    assert names_in(out) == ["kept.star", "rejected.star", "summary.json"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "left", ["kept.star", "kept.mrcs.123.partial", "results.npz.partial", "images.csv", "report.html"]
)
def test_what_a_killed_run_left_is_cleared_away(tmp_path, left):
    (tmp_path / ".out.lock").touch()
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / left).write_text("unfinished")
    with results_folder(tmp_path / "out") as partial:
        assert names_in(partial) == []
        fill(partial)
    assert names_in(tmp_path) == ["out", "out/kept.star", "out/rejected.star", "out/summary.json"]


@pytest.mark.parametrize("folder", [".out.partial", ".out.old"])
@pytest.mark.parametrize("foreign", ["notes.txt", "kept.star/deeper.txt", "notes.txt.12.partial", None])
def test_leavings_that_somebody_has_changed_are_never_touched(tmp_path, folder, foreign):
    if foreign is None:
        (tmp_path / folder).write_text("precious")
    else:
        (tmp_path / folder / foreign).parent.mkdir(parents=True)
        (tmp_path / folder / foreign).write_text("precious")
        (tmp_path / folder / "summary.json").write_text("{}")
    before = names_in(tmp_path)
    with pytest.raises(InputError, match=r"is for unfinished results, but .* is none of them: move it"):
        with results_folder(tmp_path / "out", overwrite=True):
            pass
    assert names_in(tmp_path) == before
    path = tmp_path / folder if foreign is None else tmp_path / folder / foreign
    assert path.read_text() == "precious"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_results_that_a_killed_run_moved_aside_come_back_first(tmp_path, overwrite, empty):
    out, old = tmp_path / "out", tmp_path / ".out.old"
    old.mkdir()
    fill(old, "old")
    if empty:
        out.mkdir()
    # Even the run that is refused, or fails, puts them back.
    expected = RuntimeError if overwrite else InputError
    with pytest.raises(expected), results_folder(out, overwrite=overwrite):
        assert (out / "kept.star").read_text() == "old"
        raise RuntimeError
    assert names_in(tmp_path) == ["out", "out/kept.star", "out/rejected.star", "out/summary.json"]
    assert (out / "kept.star").read_text() == "old"


def test_results_that_were_half_removed_do_not_come_back(tmp_path):
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "kept.star").write_text("old")
    with results_folder(tmp_path / "out") as partial:
        assert not (tmp_path / "out").exists()
        fill(partial)
    assert names_in(tmp_path) == ["out", "out/kept.star", "out/rejected.star", "out/summary.json"]


def replace_results(folder):
    with results_folder(folder / "out", overwrite=True) as partial:
        fill(partial)


def make_results(folder):
    """What a user does who does not know whether the killed run had come to its end."""
    try:
        with results_folder(folder / "deep" / "out") as partial:
            fill(partial)
    except InputError as error:
        assert "--overwrite" in str(error)


def make_earlier_results(folder):
    (folder / "out").mkdir()
    fill(folder / "out", "old")
    (folder / "out" / "report.png").write_text("old")


def look_for_whole_results(folder):
    """Earlier or new results are there, whole, at any moment."""
    found = folder / "out" if (folder / "out").exists() else folder / ".out.old"
    texts = {path.name: path.read_text() for path in found.iterdir()}
    names = ["kept.star", "rejected.star", "summary.json"]
    assert texts in (dict.fromkeys([*names, "report.png"], "old"), dict.fromkeys(names, "new"))


def check_new_results(folder):
    out = next(folder.rglob("out"))
    assert names_in(out.parent) == ["out", "out/kept.star", "out/rejected.star", "out/summary.json"]
    assert {path.read_text() for path in out.iterdir()} == {"new"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "setup", "look"),
    [
        ("replace_results", "make_earlier_results", "look_for_whole_results"),
        ("make_results", "str", "str"),
    ],
)
def test_killed_at_every_step_and_run_again(tmp_path, job, setup, look):
    names = f"{job}, Path({str(tmp_path)!r}), {setup}, check_new_results, {look}"
    code = f"import killed; from test_report import *; print(killed.killed_at_every_step({names}))"
    steps = killed.fresh_process(f"from pathlib import Path; {code}")
    assert int(steps) >= 8


def test_folder_holds_only_known_names(project, tmp_path):
    particles, result = open_particles(project), make_result(24)
    write_tables(tmp_path, particles, result, write_stack=True)
    draw_report(tmp_path / "report.png", particles, result)
    assert set(names_in(tmp_path)) <= set(RESULT_NAMES)
    assert {"kept.star", "kept.mrcs", "report.png"} <= set(names_in(tmp_path))


def picture(tmp_path, particles, result):
    path = tmp_path / "report.png"
    draw_report(path, particles, result)
    pixels = imread(path)[..., :3]
    assert pixels.shape[1] == 1600
    return pixels


def test_picture_shows_images_scores_and_reasons(project, tmp_path):
    pixels = picture(tmp_path, open_particles(project), make_result(24))
    grey = np.ptp(pixels, axis=2) < 0.02
    dark = grey & (pixels[..., 0] < 0.9)
    height = len(pixels)
    blue = (pixels[..., 2] > 0.6) & (pixels[..., 0] < 0.1)
    assert blue[: height // 3].mean() > 0.005, "no bar of kept images"
    for top in (0.34, 0.56, 0.79):
        row = dark[int(top * height) : int((top + 0.2) * height)]
        assert row.mean() > 0.2, "a montage is missing"
    assert dark[: int(0.06 * height)].mean() > 0.01, "no title"


@pytest.mark.parametrize(
    "changes",
    [
        {"keep": np.ones(5, bool)},
        {"keep": np.zeros(5, bool), "score": np.full(5, np.nan), "threshold": np.nan},
        {"score": np.array([0, np.inf, -np.inf, 1e30, np.nan])},
        {"score": np.zeros(5), "threshold": 0.0},
        {"offset": np.full((5, 2), np.nan, np.float32), "diameter": np.nan, "threshold": np.inf},
    ],
)
def test_picture_of_odd_results(tmp_path, changes):
    images = np.random.default_rng(0).normal(size=(5, 33, 33)).astype(np.float32)
    images[3] = 7
    pixels = picture(tmp_path, open_particles(images), make_result(5, **changes))
    assert pixels.std() > 0.05


@pytest.mark.slow
def test_picture_shows_the_subspaces_below(project, tmp_path):
    particles = open_particles(project)
    plain = picture(tmp_path, particles, make_learned_result(24, subspaces=None))
    result = make_learned_result(24)
    pixels = picture(tmp_path, particles, result)
    assert len(plain) == 1520 and len(pixels) == 1520 + learned.learned_height(result.subspaces)
    # What stood there before is the same but for the place of some edges within their pixel.
    assert np.abs(pixels[:1500] - plain[:1500]).mean() < 0.02
    grey = np.ptp(pixels, axis=2) < 0.02
    dark = grey & (pixels[..., 0] < 0.9)
    top = 1520 + 44
    for row in range(2):
        tiles = dark[top + 148 * row : top + 148 * row + 120]
        # The first two columns hold words; then the mean and three axes.
        columns = [tiles[:, 32 + 128 * column : 32 + 128 * column + 120].mean() for column in range(12)]
        assert min(columns[2:6]) > 0.9
        assert max(columns[6:]) == 0
    top += 2 * 148 + 44
    columns = [pixels[top : top + 120, 32 + 128 * column : 32 + 128 * column + 120] for column in range(12)]
    # Two images are kept: each stands beside its copy.
    assert [np.ptp(tile) > 0.3 for tile in columns] == [True] * 4 + [False] * 8
    blue = (pixels[1520:, :, 2] > 0.6) & (pixels[1520:, :, 0] < 0.1)
    for left in (110, 630, 1150):
        assert blue[:, left : left + 390].sum() > 300, "no curve"


def painted(result, images=(), scores=()):
    """The axes of the lower part, drawn on a figure of its own."""
    images = np.array(images, dtype=np.float32).reshape(-1, 16, 16)
    figure = Figure(figsize=(16, learned.learned_height(result) / 100))
    learned.draw_learned(
        lambda *box: figure.add_axes((0, 0, 1, 1), label=str(box)), result, images, np.array(scores)
    )
    return figure.axes


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_axes_say_their_variance_and_subspaces_their_share():
    first, second, pairs, likelihood, noise, images = painted(make_subspaces())
    assert words(pairs) == ["no image is kept"]
    assert first.get_title(loc="left") == "Subspaces: 2 of 3 dimensions"
    # Squared lengths 16, 4 and 16 / 9 over a noise variance of 1 / 4.
    for axes, share in ((first, "33.3 %"), (second, "66.7 %")):
        assert [word for word in words(axes) if "noise" in word and "×" in word] == [
            "64 × noise",
            "16 × noise",
            "7.11 × noise",
        ]
        assert share in words(axes)[0] and len(axes.images) == 4
    for axes, unit, values in (
        (likelihood, "nats per image", [-500, -499, -498]),
        (noise, "background = 1", [2, 1.9, 1.8]),
        (images, "images", [40, 40, 38]),
    ):
        assert axes.get_xlabel() == "iteration" and axes.get_ylabel() == unit
        np.testing.assert_allclose(axes.lines[0].get_xdata(), [1, 2, 3])
        np.testing.assert_allclose(axes.lines[0].get_ydata(), values)
        # The images are dropped between the second iteration and the third.
        np.testing.assert_allclose(axes.lines[1].get_xdata(), 2.5)
        assert len(axes.lines) == 2
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks == [round(tick) for tick in ticks] and len(ticks)


def test_many_subspaces_are_the_largest_four():
    axes = painted(make_subspaces(6, 12))
    assert len(axes) == 4 + 1 + 3
    assert [words(row)[0].split("\n")[0] for row in axes[:4]] == [f"Subspace {i}" for i in (3, 4, 5, 6)]
    assert all(len(row.images) == 10 for row in axes[:4])
    assert "4 largest" in axes[0].get_title(loc="left")


def test_axes_without_length_are_left_out():
    subspaces = make_subspaces()
    subspaces.model.loadings[0, :, 1:] *= 1e-9
    first, second, *_ = painted(subspaces)
    assert len(first.images) == 2 and len(second.images) == 4


def test_denoised_copies_stand_beside_their_images():
    subspaces = make_subspaces()
    model, basis = subspaces.model, subspaces.basis
    # An image of the first subspace, seen in noise.
    inside = np.tensordot(model.means[0] + model.loadings[0] @ [2.0, -1.0, 1.0], basis.functions, 1)
    noisy = inside + np.random.default_rng(5).normal(scale=0.5, size=(3, 16, 16))
    pairs = painted(subspaces, noisy, [-7.5, -3.25, 1e6])[2]
    assert words(pairs) == ["-7.5", "denoised", "-3.25", "denoised", "1e+06", "denoised"]
    seen, copy = (pairs.images[i].get_array() for i in (0, 1))
    assert np.corrcoef(copy.ravel(), inside.ravel())[0, 1] > np.corrcoef(seen.ravel(), inside.ravel())[0, 1]
    assert pairs.images[1].get_extent()[0] > pairs.images[0].get_extent()[1]


def test_images_to_denoise_are_those_that_were_sorted(project):
    particles = open_particles(project)
    result = make_learned_result(24, keep=np.arange(24) % 3 > 0)
    order = np.flatnonzero(result.keep)
    # Images without a score come last.
    order = order[np.argsort(result.score[order])][:6]
    images, scores = plots._best_kept(particles, result)
    np.testing.assert_array_equal(images, particles.read(order))
    np.testing.assert_array_equal(scores, result.score[order])
    result.phase_flipped = True
    flipped, _ = plots._best_kept(particles, result)
    ctf = type(particles.ctf)(*(column[order] for column in particles.ctf))
    np.testing.assert_array_equal(flipped, phase_flip(images, ctf, particles.pixel_size))
    result.keep[:] = False
    assert len(plots._best_kept(particles, result)[0]) == 0


def test_nothing_learned_is_said():
    (axes,) = painted(make_subspaces(1, 1, ()))
    assert words(axes) == ["none: there were fewer than two images to learn from"]
    assert len(axes.images) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "subspaces",
    [
        make_subspaces(1, 1, (2,)),
        make_subspaces(1, 1, ()),
        make_subspaces(4, 1, (9, 9)),
        make_subspaces(1, 20, (9, 9), steps=np.array([0.0, 1e-9])),
        make_subspaces(2, 3, (99,) * 30, steps=np.linspace(0, 19.9999, 30)),
        make_subspaces(2, 3, (99, 50, 25, 12, 6)),
    ],
    ids=range(6),
)
@pytest.mark.parametrize("n", [1, 40])
def test_picture_of_odd_subspaces(tmp_path, subspaces, n):
    images = np.random.default_rng(0).normal(size=(n, 17, 17)).astype(np.float32)
    pixels = picture(tmp_path, open_particles(images), make_learned_result(n, subspaces=subspaces))
    assert len(pixels) == 1520 + learned.learned_height(subspaces)
    assert (pixels[1520:] < 0.5).any(axis=(1, 2)).sum() > 10
    # Nothing runs over the edges.
    for edge in (pixels[1520:, :8], pixels[1520:, -8:], pixels[-3:]):
        assert edge.min() == 1


@pytest.mark.slow
def test_picture_without_diameter(tmp_path):
    images = np.random.default_rng(0).normal(size=(30, 16, 16)).astype(np.float32)
    result = make_learned_result(30, diameter=np.nan, diameter_px=np.nan)
    assert picture(tmp_path, open_particles(images), result).std() > 0.05


def test_picture_of_one_image(tmp_path):
    images = np.random.default_rng(0).normal(size=(1, 130, 130)).astype(np.float32)
    assert picture(tmp_path, open_particles(images), make_result(1)).std() > 0.05


def test_picture_of_names_with_odd_letters(tmp_path):
    path = tmp_path / "粒子 $x_1$ .mrcs"
    with mrcfile.new(path) as file:
        file.set_data(np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32))
    assert picture(tmp_path, open_particles(path), make_result(3)).std() > 0.05


def test_choices_are_in_order_and_leave_out_unjudged_images():
    result = make_result(800)
    best, borderline, worst = (result.score[rows] for rows in plots._choices(result).values())
    judged = np.sort(result.score[~np.isin(result.reason, ["flat", "bad_pixels"])])
    np.testing.assert_array_equal(best, judged[:24])
    np.testing.assert_array_equal(worst, judged[::-1][:24])
    nearest = judged[np.argsort(np.abs(judged - result.threshold))[:24]]
    np.testing.assert_array_equal(borderline, np.sort(nearest))


def test_without_a_threshold_the_border_lies_between_kept_and_rejected():
    result = make_learned_result(800, threshold=np.nan)
    rejected = np.flatnonzero(~result.keep & ~np.isin(result.reason, ["flat", "bad_pixels"]))
    chosen = list(plots._choices(result).values())[1]
    assert len(chosen) == 24 and result.keep[chosen[:12]].all() and not result.keep[chosen[12:]].any()
    np.testing.assert_array_equal(result.score[chosen[:12]], np.sort(result.score[result.keep])[-12:])
    np.testing.assert_array_equal(result.score[chosen[12:]], np.sort(result.score[rejected])[:12])
    all_kept = make_learned_result(30, threshold=np.nan, keep=np.ones(30, bool))
    assert len(plots._choices(all_kept)["Borderline: no threshold"]) == 0


def test_a_second_process_draws_the_same_picture(project, tmp_path, monkeypatch):
    particles, result = open_particles(project), make_result(24)
    draw_report(tmp_path / "report.png", particles, result)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    with painting_beside() as painter:
        painter.begin(plots.picture_of(particles, result))
        assert painter.end() == (tmp_path / "report.png").read_bytes()


def test_a_second_process_that_fails_gives_no_picture(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    with painting_beside() as painter:
        painter._process.kill()
        painter.begin(plots.picture_of(open_particles(np.ones((2, 16, 16))), make_result(2)))
        assert painter.end() is None


@pytest.mark.parametrize("cores", [1, 2])
def test_without_a_core_or_a_process_nothing_is_drawn_beside(monkeypatch, cores):
    def refuse(*_, **__):
        raise BlockingIOError

    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    monkeypatch.setattr("subprocess.Popen", refuse)
    with painting_beside() as painter:
        assert painter is None


def test_picture_without_matplotlib_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError):
        draw_report(tmp_path / "report.png", open_particles(np.ones((2, 16, 16))), make_result(2))
    assert not (tmp_path / "report.png").exists()


def test_accuracy_by_hand():
    label = np.array([True, True, True, False, False])
    keep = np.array([True, True, False, False, True])
    accuracy = measure_accuracy(label, keep, np.array([0.0, 1, 2, np.nan, 1]))
    # Pairs (good, junk): NaN wins all three; 1 beats 0, ties with 1, loses to 2.
    assert accuracy == pytest.approx((2 / 3, 1 / 2, (3 + 1.5) / 6))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("has_tqdm", [True, False])
def test_progress_never_jumps_back(monkeypatch, has_tqdm):
    if not has_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("sorting") as progress:
        for done in (100, 50, 300, 200, 400):
            progress(done, 400)
    shown = terminal.getvalue()
    assert shown.startswith("\rsorting") and "400" in shown.split("\r")[-1] and "/s" in shown
    assert shown.endswith("\n")


def test_quiet_progress_is_silent(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("sorting", quiet=True) as progress:
        assert progress is None
    assert stream.getvalue() == ""
