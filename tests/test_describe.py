"""A look at a file of particles before it is sorted."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from fastsort import InputError, cli
from fastsort.particles import describe as room
from fastsort.particles.describe import describe
from fastsort.simulate import simulate_particles, write_project

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    images, truth = simulate_particles(90, 30, snr=0.3, box=32, junk="all", ctf=True, n_micrographs=3, seed=1)
    return write_project(tmp_path_factory.mktemp("project") / "p", images, truth)


def stack_of(path, images, pixel_size=None):
    with mrcfile.new(path) as file, warnings.catch_warnings():
        # It warns of NaN.
        warnings.simplefilter("ignore")
        file.set_data(images)
        if pixel_size:
            file.voxel_size = pixel_size
    return path


def noise_of(n, box=32, seed=0):
    return np.random.default_rng(seed).normal(size=(n, box, box)).astype(np.float32)


def star_of(path, rows, columns=("_rlnImageName",), before=""):
    labels = "\n".join(columns)
    path.write_text(f"{before}data_\n\nloop_\n{labels}\n" + "\n".join(rows) + "\n")
    return path


def test_project(project):
    found = describe(project)
    assert found.kind == "RELION 3.1 or later" and found.usable and found.path == str(project)
    assert (found.n_images, found.n_repeated, found.boxes) == (120, 0, {(32, 32): 120})
    assert found.n_micrographs == found.n_stacks == 3
    assert found.stack_bytes == sum(path.stat().st_size for path in (project.parent / "Extract").iterdir())
    assert found.pixels == {"float32, little-endian": 3}
    (group,) = found.optics
    assert (group.n_images, group.box, group.voltage) == (120, 32, 300)
    assert group.pixel_size == found.pixel_size > 0
    assert found.has_ctf and 1000 < found.defocus[0] < found.defocus[1] < 50000 and found.corrected == {}
    look = found.look
    assert (look.n_images, look.contrast, look.n_bad, look.n_flat) == (120, "bright", 0, 0)
    assert look.normalized


def test_contrast_and_normalisation_are_seen(tmp_path):
    images, truth = simulate_particles(100, 20, snr=0.2, box=32, seed=3)
    dark = describe(stack_of(tmp_path / "dark.mrcs", 100 - 7 * images, truth.pixel_size))
    assert dark.look.contrast == "dark" and not dark.look.normalized
    assert dark.look.background_mean == pytest.approx(100, abs=1)
    assert dark.look.background_std > 2 and dark.pixel_size == pytest.approx(truth.pixel_size)
    assert dark.kind == "MRC stack" and dark.n_micrographs is None and dark.optics == []
    assert describe(stack_of(tmp_path / "noise.mrcs", noise_of(200))).look.contrast == "unclear"
    assert math.isnan(describe(tmp_path / "noise.mrcs").pixel_size)
    assert describe(tmp_path / "noise.mrcs", pixel_size=1.5).pixel_size == 1.5


def test_unfit_images_are_counted(tmp_path):
    images = noise_of(40)
    images[3] = 5
    images[7, 2, 2] = np.nan
    images[8, 2, 2] = np.inf
    look = describe(stack_of(tmp_path / "a.mrcs", images)).look
    assert (look.n_images, look.n_flat, look.n_bad) == (40, 1, 2)
    assert look.background_std == pytest.approx(1, abs=0.05)
    nothing = describe(stack_of(tmp_path / "b.mrcs", np.full((5, 32, 32), np.nan, np.float32))).look
    assert (nothing.n_bad, nothing.contrast, nothing.normalized) == (5, "unclear", False)


def test_sample_is_spread_over_a_large_set(tmp_path, monkeypatch):
    images = noise_of(90)
    images[60:] = 1
    monkeypatch.setattr(room, "N_SAMPLED", 30)
    look = describe(stack_of(tmp_path / "a.mrcs", images)).look
    assert (look.n_images, look.n_flat) == (30, 10)


def test_sample_of_huge_images_is_small(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_BYTES_SAMPLED", 4 * 32 * 32 * 60)
    assert describe(stack_of(tmp_path / "a.mrcs", noise_of(100))).look.n_images == 60


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("<i2", "int16, little-endian"),
        (">f4", "float32, big-endian"),
        ("<f2", "float16, little-endian"),
        ("i1", "int8"),
    ],
)
def test_kinds_of_pixels(tmp_path, dtype, name):
    images = np.clip(noise_of(12) * 20, -120, 120).astype(dtype)
    found = describe(stack_of(tmp_path / "a.mrcs", images))
    assert found.pixels == {name: 1} and found.look.n_images == 12 and found.usable


def test_missing_stacks_are_named_and_the_rest_is_looked_at(tmp_path):
    images, _ = simulate_particles(60, 0, snr=0.5, box=32, seed=4)
    stack_of(tmp_path / "here.mrcs", images)
    rows = [f"{i}@here.mrcs" for i in range(1, 61)]
    rows += ["1@lost/b.mrcs", "2@lost/b.mrcs", "1@lost/a.mrcs"]
    found = describe(star_of(tmp_path / "set.star", rows))
    assert not found.usable and found.missing == {"lost/b.mrcs": 2, "lost/a.mrcs": 1} and found.problems == []
    assert (found.n_images, found.n_stacks, found.boxes) == (63, 3, {(32, 32): 60})
    assert found.look.n_images == 60 and found.look.contrast == "bright"
    (tmp_path / "data" / "lost").mkdir(parents=True)
    for name in "ab":
        stack_of(tmp_path / "data" / "lost" / f"{name}.mrcs", noise_of(2))
    assert describe(tmp_path / "set.star", data_dir=tmp_path / "data").usable


def test_all_stacks_missing(tmp_path):
    found = describe(star_of(tmp_path / "set.star", ["1@a.mrcs", "2@a.mrcs"]))
    assert found.missing == {"a.mrcs": 2} and found.look.n_images == 0 and found.look.contrast == "unclear"
    assert found.boxes == {} and math.isnan(found.pixel_size)


def test_damaged_stacks_are_problems(tmp_path):
    stack_of(tmp_path / "a.mrcs", noise_of(4))
    short = stack_of(tmp_path / "short.mrcs", noise_of(4))
    short.write_bytes(short.read_bytes()[:-100])
    (tmp_path / "text.mrcs").write_text("hello")
    rows = ["1@a.mrcs", "1@short.mrcs", "1@text.mrcs", "1@gone.mrcs"]
    found = describe(star_of(tmp_path / "set.star", rows))
    assert len(found.problems) == 2 and "short.mrcs ends early" in found.problems[0]
    assert "text.mrcs is not an MRC file" in found.problems[1]
    assert found.missing == {"gone.mrcs": 1} and found.look.n_images == 1


def test_what_would_stop_sorting_is_a_problem(tmp_path):
    stack_of(tmp_path / "a.mrcs", noise_of(4))
    stack_of(tmp_path / "b.mrcs", noise_of(3, 24))
    mixed = describe(star_of(tmp_path / "mixed.star", ["1@a.mrcs", "2@a.mrcs", "1@b.mrcs"]))
    assert mixed.boxes == {(32, 32): 2, (24, 24): 1} and mixed.look.n_images == 2
    assert mixed.problems == [] and mixed.usable
    beyond = describe(star_of(tmp_path / "beyond.star", ["1@a.mrcs", "1@a.mrcs", "9@a.mrcs", "x@a.mrcs"]))
    assert beyond.n_repeated == 1 and beyond.look.n_images == 2 and not beyond.usable
    wide = describe(stack_of(tmp_path / "wide.mrcs", noise_of(3)[:, :20].copy()))
    assert wide.boxes == {(32, 20): 3} and "square" in wide.problems[0] and wide.look.n_images == 0


def test_optics_groups_and_old_tables(tmp_path):
    stack_of(tmp_path / "a.mrcs", noise_of(6))
    optics = (
        "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnOpticsGroupName\n_rlnImagePixelSize\n_rlnVoltage\n"
        "_rlnCtfDataArePhaseFlipped\n1 one 1.5 300 1\n2 two 2.5 200 1\n\n"
    )
    rows = [f"{i}@a.mrcs {1 + (i > 4)}" for i in range(1, 7)]
    path = star_of(tmp_path / "new.star", rows, ("_rlnImageName", "_rlnOpticsGroup"), optics)
    found = describe(path)
    assert found.optics[0][:3] == ("one", 4, 1.5)
    assert [(group.name, group.n_images, group.voltage) for group in found.optics] == [
        ("one", 4, 300),
        ("two", 2, 200),
    ]
    assert math.isnan(found.pixel_size) and found.corrected == {"phase-flipped": 6} and not found.has_ctf
    columns = ("_rlnImageName", "_rlnDefocusU", "_rlnMagnification", "_rlnDetectorPixelSize", "_rlnVoltage")
    columns += ("_rlnSphericalAberration", "_rlnAmplitudeContrast")
    rows = [f"{i}@a.mrcs {10000 + i} 50000 7.5 {299 + i} 2.7 0.1" for i in range(1, 7)]
    old = describe(star_of(tmp_path / "old.star", rows, columns))
    assert old.kind == "RELION 3.0 or earlier" and old.usable and old.has_ctf
    assert old.pixel_size == pytest.approx(1.5) and old.defocus == (10001, 10006)
    assert math.isnan(old.optics[0].voltage) and old.optics[0].spherical_aberration == 2.7


def test_numbers_that_are_none_do_not_stop_it(tmp_path):
    stack_of(tmp_path / "a.mrcs", noise_of(2))
    rows = ["1@a.mrcs 10000", "2@a.mrcs none"]
    found = describe(star_of(tmp_path / "set.star", rows, ("_rlnImageName", "_rlnDefocusU")))
    assert found.defocus == (10000, 10000) and not found.has_ctf
    assert len(found.problems) == 1 and "none" in found.problems[0] and found.look.n_images == 2


@pytest.mark.parametrize("kind", ["gone", "text", "picks", "suffix", "header"])
def test_what_is_no_particle_file_is_refused(tmp_path, kind):
    path = tmp_path / {"gone": "a.star", "suffix": "a.tif", "header": "a.mrcs"}.get(kind, "b.star")
    if kind == "text":
        path.write_text("hello")
    elif kind == "picks":
        star_of(path, ["1 2"], ("_rlnCoordinateX", "_rlnCoordinateY"))
    elif kind in ("suffix", "header"):
        path.write_bytes(b"II*\0")
    with pytest.raises(InputError, match=path.name):
        describe(path)


def test_nothing_is_written(project):
    before = {path: path.stat().st_mtime_ns for path in project.parents[1].rglob("*")}
    describe(project)
    assert {path: path.stat().st_mtime_ns for path in project.parents[1].rglob("*")} == before


def test_printed(project, tmp_path, capsys):
    assert cli.main(["info", str(project)]) == 0
    text = capsys.readouterr().out
    facts = {line[2:16].strip(): line[16:] for line in text.splitlines()[1:]}
    assert facts["images"] == "120" and facts["box"] == "32 px" and facts["micrographs"] == "3"
    assert "300 kV" in facts["optics group"] and "120 images" in facts["optics group"]
    assert facts["contrast"].startswith("bright particles") and "float32, little-endian" in facts["stacks"]
    assert facts["CTF"].startswith("defocus ") and facts["background"].endswith(": normalised")
    assert "missing" not in facts and max(map(len, text.splitlines()[1:])) < 100


def test_missing_stacks_printed(tmp_path, capsys):
    rows = [f"1@lost{i:02d}.mrcs" for i in range(12)]
    assert cli.main(["info", str(star_of(tmp_path / "set.star", rows))]) == 1
    captured = capsys.readouterr()
    assert captured.err == "" and "12 stacks with 12 images" in captured.out
    assert "lost09.mrcs: 1 image\n" in captured.out and "lost10" not in captured.out
    assert "and 2 more" in captured.out and "--data-dir" in captured.out


def test_several_files_are_described_one_after_another(project, tmp_path, capsys):
    stack = stack_of(tmp_path / "a.mrcs", noise_of(4))
    assert cli.main(["info", str(project), str(stack)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{project}: ") and f"\n{stack}: MRC stack\n" in text
    assert cli.main(["info", str(tmp_path / "nowhere.star"), str(stack)]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{stack}: ")
    assert captured.err.startswith("fastsort: error: ") and "nowhere.star" in captured.err


def test_problems_printed(tmp_path, capsys):
    assert cli.main(["info", str(stack_of(tmp_path / "wide.mrcs", noise_of(3)[:, :20].copy()))]) == 1
    text = capsys.readouterr().out
    assert "32 x 20 px" in text and "problem" in text
    assert cli.main(["info", str(tmp_path / "nowhere.star")]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("fastsort: error: ")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not here")
@pytest.mark.parametrize("name", ["apoferritin_curated", "apoferritin_picks", "betagal_curated"])
def test_real_sets(name):
    found = describe(SHARED / "real" / f"{name}.star")
    assert found.usable and found.look.contrast == "bright" and found.look.normalized
    assert found.boxes.keys() == {(48, 48)} and not found.has_ctf


@pytest.mark.skipif(not SHARED.is_dir(), reason="files of other programs are not here")
def test_every_file_of_other_programs_is_described_or_refused():
    paths = [path for path in SHARED.rglob("*") if path.suffix in (".star", ".mrc", ".mrcs")]
    kinds = {}
    for path in paths:
        try:
            kinds[path.name] = describe(path).kind
        except InputError as error:
            kinds[path.name] = str(error)
            assert "_rlnImageName" in kinds[path.name]
    assert kinds["empiar_10076_7.star"] == "RELION 3.0 or earlier" and kinds["relion31.mrcs"] == "MRC stack"
    assert describe(SHARED / "formats" / "empiar_10076_7.star").has_ctf
