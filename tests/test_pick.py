"""Picking from beginning to end: `fastsort pick`, and the call behind it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import joblib
import mrcfile
import numpy as np
import pytest

import fastsort as fs
from fastsort import cli, pick
from fastsort._checks import InputError
from fastsort._saved import load
from fastsort.particles.star import read_star
from fastsort.simulate import simulate_micrographs, write_micrographs

PIXEL_SIZE, ACROSS = 4.0, 14
DIAMETER = PIXEL_SIZE * ACROSS
BOX = 40
GIVEN = ["--diameter", DIAMETER, "--jobs", 1, "--quiet"]


def call(*arguments):
    """Run the command in this process, which saves the imports."""
    try:
        return cli.main(list(map(str, arguments)))
    except SystemExit as stop:
        return stop.code


def write_micrograph(path, pixels, pixel_size=PIXEL_SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path) as file:
        # What mrcfile has to say of NaN is left out: it computes statistics when data are set.
        file.set_data(np.zeros(pixels.shape, np.float32))
        file.data[:] = pixels
        file.voxel_size = pixel_size
    return str(path)


def noise(seed, ny=300, nx=340):
    return np.random.default_rng(seed).normal(0, 1, (ny, nx))


def disks(seed, ny=300, nx=340, n=40):
    """Return a micrograph with dark disks, and their middles (x, y); none is close to the edge or another."""
    rng = np.random.default_rng(1000 + seed)
    middles = np.empty((0, 2))
    while len(middles) < n:
        middle = rng.uniform(16, [nx - 17, ny - 17])
        if (np.hypot(*(middles - middle).T) > 20).all():
            middles = np.vstack([middles, middle])
    v, u = np.mgrid[:ny, :nx]
    pixels = noise(seed, ny, nx)
    for x, y in middles:
        pixels -= 1.5 * np.clip((ACROSS + 1) / 2 - np.hypot(u - x, v - y), 0, 1)
    return pixels, middles


@pytest.fixture(scope="module")
def disk_set(tmp_path_factory):
    """Three micrographs with disks, as files, and where the disks are."""
    folder = tmp_path_factory.mktemp("mics")
    made = [disks(seed) for seed in range(3)]
    paths = [write_micrograph(folder / f"mic_{number}.mrc", some[0]) for number, some in enumerate(made)]
    return SimpleNamespace(
        folder=folder,
        pattern=str(folder / "*.mrc"),
        paths=paths,
        pixels=[some[0] for some in made],
        middles=[some[1] for some in made],
    )


@pytest.fixture(scope="module")
def result(disk_set):
    return fs.pick_particles(disk_set.pattern, diameter=DIAMETER, n_jobs=1)


@pytest.fixture(scope="module")
def finished(disk_set, tmp_path_factory):
    """The folder of a run with extracted particles."""
    folder = tmp_path_factory.mktemp("run") / "picked"
    assert call("pick", disk_set.pattern, "-o", folder, *GIVEN, "--write-stack", "--box", BOX) == 0
    return folder


@pytest.fixture
def mics(disk_set, tmp_path):
    """A folder with the same micrographs that a test may change."""
    return Path(shutil.copytree(disk_set.folder, tmp_path / "mics"))


@pytest.fixture
def learned_before(result, monkeypatch):
    """Leave out learning, which takes longest, where it does not matter: the disks are the same."""
    monkeypatch.setattr(pick, "learn_from", lambda *_: result.learned)


def f1_and_errors(found, middles):
    """Return F1 of places within half a diameter of a disk, and the distances of those to their disks."""
    apart = np.hypot(*(found[:, None] - middles).transpose(2, 0, 1))
    nearest = apart.min(axis=1)
    right = nearest < ACROSS / 2
    # A disk that is found twice counts once.
    n_right = len(np.unique(apart.argmin(axis=1)[right]))
    return 2 * n_right / (len(found) + len(middles)), nearest[right]


def kept_in(result, number):
    chosen = result.keep & (result.micrograph == number)
    return np.column_stack([result.x[chosen], result.y[chosen]])


def kept_of(result, name):
    """Return how many were kept in the micrograph whose file has this name."""
    [number] = [k for k, path in enumerate(result.names.tolist()) if Path(path).name == name]
    return len(kept_in(result, number))


def assert_same_bits(one, other, where="result"):
    """Assert that two results agree in every bit; seconds may differ."""
    assert type(one) is type(other), where
    if hasattr(one, "_fields"):
        for name in one._fields:
            if name != "seconds":
                assert_same_bits(getattr(one, name), getattr(other, name), f"{where}.{name}")
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same_bits(*pair, f"{where}[{number}]")
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        assert one.tobytes() == other.tobytes(), where
    else:
        assert repr(one) == repr(other), where


def assert_refused(capsys, folder, *parts):
    """Assert that the command said one line with these parts, and that a folder holds what it held before."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("fastsort: error: "), error
    for part in parts:
        assert part in error, error
    assert sorted(path.name for path in folder.iterdir()) == ["mics"]


def table_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def coordinates_in(path):
    table = read_star(path).table_with("_rlnCoordinateX", "_rlnCoordinateY")
    return np.column_stack([np.array(table.column(f"_rlnCoordinate{axis}"), float) for axis in "XY"])


# What is found.


def test_disks_are_found_where_they_are(result, disk_set):
    assert result.contrast == "dark"
    assert result.names.tolist() == disk_set.paths
    assert (result.diameter, result.diameter_px, result.diameter_found) == (DIAMETER, ACROSS, False)
    assert result.pixel_size == PIXEL_SIZE and result.failed == {}
    for number, middles in enumerate(disk_set.middles):
        f1, errors = f1_and_errors(kept_in(result, number), middles)
        assert f1 > 0.8
        assert np.median(errors) < 1.5


def test_places_are_not_shifted(result, disk_set):
    """Half a pixel would be seen: the middle of the first pixel is 0."""
    shifts = []
    for number, middles in enumerate(disk_set.middles):
        for place in kept_in(result, number):
            shift = middles - place
            shifts.append(shift[np.hypot(*shift.T).argmin()])
    assert np.abs(np.median(shifts, axis=0)).max() < 0.2


def test_the_fields_agree_with_each_other(result):
    assert (np.diff(result.micrograph) >= 0).all()
    for number in range(len(result.names)):
        assert (np.diff(result.probability[result.micrograph == number]) <= 0).all()
    assert np.array_equal(result.keep, result.probability >= result.threshold)
    assert np.array_equal(result.keep, result.reason == "valid")
    assert set(result.reason.tolist()) <= set(pick.REASONS)
    assert ((result.contaminated >= 0) & (result.contaminated < 0.2)).all()


def test_bright_disks_are_found_as_well(disk_set, result, tmp_path):
    for number, pixels in enumerate(disk_set.pixels):
        write_micrograph(tmp_path / f"mic_{number}.mrc", -pixels)
    turned = fs.pick_particles(str(tmp_path / "*.mrc"), diameter=DIAMETER, n_jobs=1)
    assert turned.contrast == "bright"
    for number, middles in enumerate(disk_set.middles):
        assert f1_and_errors(kept_in(turned, number), middles)[0] > 0.8


def test_the_diameter_is_found(tmp_path):
    simulated = simulate_micrographs(2, 448, diameter=120, pixel_size=4, snr=0.2, noise="white")
    found = fs.pick_particles(write_micrographs(tmp_path / "set", simulated), n_jobs=1)
    assert found.diameter_found
    assert abs(found.diameter / 120 - 1) < 0.5
    assert found.diameter == pytest.approx(4 * found.diameter_px)
    assert found.contrast == "dark"


@pytest.mark.usefixtures("learned_before")
def test_a_threshold_keeps_what_reaches_it(disk_set, result):
    low, high = (
        fs.pick_particles(disk_set.paths[:2], diameter=DIAMETER, threshold=cut, n_jobs=1)
        for cut in (0.02, 0.999999)
    )
    assert len(low.x) > 60
    assert (low.threshold, high.threshold) == (0.02, 0.999999)
    assert low.probability.tobytes() == high.probability.tobytes()
    for some in (low, high):
        assert np.array_equal(some.keep, some.probability >= some.threshold)


def test_without_a_pixel_size_lengths_are_in_pixels(disk_set, tmp_path):
    paths = [
        write_micrograph(tmp_path / f"{k}.mrc", pixels, pixel_size=0)
        for k, pixels in enumerate(disk_set.pixels[:2])
    ]
    found = fs.pick_particles(paths, diameter=ACROSS, n_jobs=1)
    assert np.isnan(found.pixel_size) and np.isnan(found.diameter) and found.diameter_px == ACROSS
    assert f1_and_errors(kept_in(found, 0), disk_set.middles[0])[0] > 0.8
    assert any("--pixel-size" in doubt for doubt in found.doubts)


@pytest.mark.usefixtures("learned_before")
def test_a_pixel_size_can_be_given(disk_set, result):
    told = fs.pick_particles(disk_set.paths, diameter=2 * DIAMETER, pixel_size=2 * PIXEL_SIZE, n_jobs=1)
    assert (told.diameter, told.diameter_px, told.pixel_size) == (2 * DIAMETER, ACROSS, 2 * PIXEL_SIZE)
    assert told.x.tobytes() == result.x.tobytes()


@pytest.mark.usefixtures("learned_before")
@pytest.mark.parametrize("backend", [None, "loky"])
def test_two_workers_find_the_same_bits(disk_set, result, backend):
    if backend is None:
        again = fs.pick_particles(disk_set.pattern, diameter=DIAMETER, n_jobs=2)
    else:
        with joblib.parallel_config(backend=backend, n_jobs=2):
            again = fs.pick_particles(disk_set.pattern, diameter=DIAMETER)
    assert_same_bits(again, result)


def test_progress_ends_at_the_end(disk_set):
    seen = []
    fs.pick_particles(
        disk_set.paths, diameter=DIAMETER, n_jobs=1, progress=lambda done, total: seen.append((done, total))
    )
    done, total = zip(*seen, strict=True)
    assert list(done) == sorted(done) and len(set(total)) == 1
    assert done[-1] == pytest.approx(total[-1])


# What is written.


def test_the_folder_holds_all_results(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        *("kept", "rejected", "autopick.star", "scores.csv", "micrographs.csv", "summary.json"),
        *("results.npz", "report.html", "particles.star", "particles.mrcs"),
    }
    assert [path.name for path in finished.parent.iterdir()] == ["picked"]


def test_saved_results_are_those_of_the_call(finished, result):
    assert_same_bits(load(finished / "results.npz"), result)


def test_each_micrograph_has_coordinate_files(finished, result, disk_set):
    files = [f"{Path(path).stem}_fastsort.star" for path in disk_set.paths]
    for part, chosen in (("kept", result.keep), ("rejected", ~result.keep)):
        assert sorted(path.name for path in (finished / part).glob("*.star")) == files
        for number, file in enumerate(files):
            rows = chosen & (result.micrograph == number)
            places = np.column_stack([result.x[rows], result.y[rows]])
            assert coordinates_in(finished / part / file).shape == places.shape
            assert np.abs(coordinates_in(finished / part / file) - places).max(initial=0) <= 0.00501


def test_the_list_for_relion_names_files_and_micrographs(finished, disk_set):
    table = read_star(finished / "autopick.star").block("coordinate_files")
    assert table.column("_rlnMicrographName") == disk_set.paths
    files = list(map(Path, table.column("_rlnMicrographCoordinates")))
    assert [file.parent for file in files] == [finished / "kept"] * 3
    assert all(file.is_file() for file in files)
    assert [file.name for file in files] == [f"{Path(path).stem}_fastsort.star" for path in disk_set.paths]


def test_scores_are_those_of_the_result(finished, result):
    rows = table_of(finished / "scores.csv")
    assert [row["micrograph"] for row in rows] == result.names[result.micrograph].tolist()
    assert [row["reason"] for row in rows] == result.reason.tolist()
    assert [row["keep"] == "1" for row in rows] == result.keep.tolist()
    for name, error in (("x", 0.00501), ("y", 0.00501), ("probability", 1e-6), ("height", 1e-4)):
        values = np.array([row[name] for row in rows], float)
        assert np.abs(values - getattr(result, name)).max() <= error


def test_the_summary_counts_what_the_result_holds(finished, result):
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["micrographs"], summary["places"]) == (3, len(result.x))
    assert summary["kept"] == result.keep.sum() == summary["reasons"]["valid"]
    assert sum(summary["reasons"].values()) == len(result.x)
    assert (summary["contrast"], summary["diameter"], summary["diameter_found"]) == ("dark", DIAMETER, False)
    assert summary["parameters"]["diameter"] == DIAMETER
    assert summary["failed"] == {} and summary["doubts"] == list(result.doubts)


def test_the_table_of_micrographs_counts_picks(finished, result):
    rows = table_of(finished / "micrographs.csv")
    assert [row["micrograph"] for row in rows] == result.names.tolist()
    assert [int(row["kept"]) for row in rows] == [len(kept_in(result, number)) for number in range(3)]
    assert [int(row["places"]) for row in rows] == np.bincount(result.micrograph, minlength=3).tolist()
    assert {row["failed"] for row in rows} == {""}


def test_the_page_names_micrographs_and_needs_no_other_file(finished, disk_set):
    page = (finished / "report.html").read_text()
    for path in disk_set.paths:
        assert f'<th scope="row">{Path(path).name}</th>' in page
    assert page.count('"src":"data:image/png;base64,') == 3
    # The name of SVG is no address.
    assert not re.search(r"https?://|@import|url\(", page.replace("http://www.w3.org/2000/svg", ""))
    assert all(link.startswith("data:") for link in re.findall(r"(?:href|src)=[\"']([^\"']*)", page))


def test_sort_opens_what_was_picked(finished, result, disk_set):
    opened = fs.open_particles((disk_set.pattern, str(finished / "kept" / "*.star")), box=24)
    assert len(opened) == result.keep.sum() > 0
    listed = fs.open_particles((disk_set.pattern, str(finished / "autopick.star")), box=24)
    assert len(listed) == len(opened)


def test_extracted_particles_are_bright_in_the_middle_and_whole(finished, result, disk_set):
    particles = fs.open_particles(finished / "particles.star")
    kept = np.vstack([coordinates_in(path) for path in sorted((finished / "kept").glob("*.star"))])
    corner = np.floor(kept) - BOX // 2
    inside = ((corner >= 0) & (corner + BOX <= [340, 300])).all(axis=1)
    assert 0 < inside.sum() < len(kept)
    assert len(particles) == inside.sum()
    assert (particles.box, particles.pixel_size) == (BOX, PIXEL_SIZE)
    images = particles.read(np.arange(len(particles)))
    middle = images[:, 17:24, 17:24].mean(axis=(1, 2))
    assert np.mean(middle > 0.7) > 0.95
    # Each image is of the place that its row says, in the micrograph that it says.
    table = read_star(finished / "particles.star").block("particles")
    pixels = dict(zip(disk_set.paths, disk_set.pixels, strict=True))
    assert np.array_equal(coordinates_in(finished / "particles.star"), kept[inside])
    for image, name, (left, top) in zip(
        images, table.column("_rlnMicrographName"), corner[inside].astype(int), strict=True
    ):
        cut = pixels[name][top : top + BOX, left : left + BOX]
        assert np.corrcoef(-cut.ravel(), image.ravel())[0, 1] > 0.9


def test_the_summary_counts_extracted_particles(finished):
    n = len(fs.open_particles(finished / "particles.star"))
    assert json.loads((finished / "summary.json").read_text()).get("particles") == n


def test_bright_particles_stay_bright_when_extracted(disk_set, tmp_path):
    for number, pixels in enumerate(disk_set.pixels[:2]):
        write_micrograph(tmp_path / "mics" / f"{number}.mrc", -pixels)
    assert call("pick", tmp_path / "mics" / "*.mrc", "-o", tmp_path / "out", *GIVEN, "--write-stack") == 0
    particles = fs.open_particles(tmp_path / "out" / "particles.star")
    # One and a half diameters are 21 px; the next side without a large prime factor is 24.
    assert particles.box == 24
    middle = particles.read(np.arange(len(particles)))[:, 9:16, 9:16]
    assert np.mean(middle.mean(axis=(1, 2)) > 0.7) > 0.95


@pytest.mark.usefixtures("learned_before")
def test_results_in_the_folder_at_hand_open_from_there(mics, monkeypatch):
    monkeypatch.chdir(mics.parent)
    assert call("pick", "mics/mic_[01].mrc", "-o", "out/", *GIVEN, "--write-stack", "--box", 24) == 0
    table = read_star("out/autopick.star").block("coordinate_files")
    assert table.column("_rlnMicrographCoordinates") == [f"out/kept/mic_{k}_fastsort.star" for k in (0, 1)]
    assert table.column("_rlnMicrographName") == ["mics/mic_0.mrc", "mics/mic_1.mrc"]
    particles = fs.open_particles("out/particles.star")
    assert np.isfinite(particles.read(np.arange(len(particles)))).all() and len(particles) > 30


def test_what_was_done_is_printed(disk_set, tmp_path, capsys):
    options = ["--diameter", DIAMETER, "--jobs", 1]
    assert call("pick", *disk_set.paths[:2], "-o", tmp_path / "out", *options) == 0
    out = capsys.readouterr().out
    kept = json.loads((tmp_path / "out" / "summary.json").read_text())["kept"]
    assert f"2 micrographs: {kept} particles picked" in out
    assert "diameter 56 A, 14.0 px (given); dark particles" in out


@pytest.mark.usefixtures("learned_before")
def test_a_list_of_micrographs_can_be_given(disk_set, result, tmp_path):
    names = "\n".join(Path(path).name for path in disk_set.paths)
    star = tmp_path / "micrographs.star"
    star.write_text(f"\ndata_micrographs\n\nloop_\n_rlnMicrographName #1\n{names}\n")
    options = ["--data-dir", disk_set.folder]
    assert call("pick", star, "-o", tmp_path / "out", *options, *GIVEN) == 0
    saved = load(tmp_path / "out" / "results.npz")
    assert saved.names.tolist() == names.split()
    assert_same_bits(saved._replace(names=result.names), result)


# What cannot be picked in.


def test_noise_alone_has_no_picks(tmp_path, capsys):
    for number in range(2):
        write_micrograph(tmp_path / "mics" / f"mic_{number}.mrc", noise(50 + number, 200, 220))
    out = tmp_path / "out"
    assert call("pick", tmp_path / "mics" / "*.mrc", "-o", out, "--write-stack", "--jobs", 1) == 0
    assert "2 micrographs: 0 particles picked" in capsys.readouterr().out
    found = load(out / "results.npz")
    assert not found.keep.any() and found.contrast == "unknown" and np.isnan(found.diameter)
    [doubt] = [doubt for doubt in found.doubts if "nothing stands out" in doubt]
    page = (out / "report.html").read_text()
    assert doubt.split(":")[0] in page and "mic_1.mrc" in page
    assert len(list((out / "kept").glob("*.star"))) == 2
    assert not (out / "particles.star").exists()


def test_noise_alone_has_no_picks_of_a_diameter_either(tmp_path):
    paths = [write_micrograph(tmp_path / f"{number}.mrc", noise(60 + number)) for number in range(2)]
    found = fs.pick_particles(paths, diameter=DIAMETER, n_jobs=1)
    assert found.keep.sum() <= 1


def test_nobody_is_told_to_give_a_diameter_who_has_given_it(tmp_path):
    path = write_micrograph(tmp_path / "mic.mrc", noise(60, 200, 220))
    found = fs.pick_particles(path, diameter=DIAMETER, n_jobs=1)
    assert found.doubts and not any("give --diameter" in doubt for doubt in found.doubts)


@pytest.mark.parametrize("value", [7.5, np.nan], ids=str)
def test_a_micrograph_without_any_contrast_has_no_picks(mics, disk_set, value, tmp_path):
    write_micrograph(mics / "mic_1b.mrc", np.full((300, 340), value))
    assert call("pick", mics / "*.mrc", "-o", tmp_path / "out", *GIVEN, "--write-stack", "--box", 24) == 0
    found = load(tmp_path / "out" / "results.npz")
    assert kept_of(found, "mic_1b.mrc") == 0 and len(found.names) == 4
    for number in range(3):
        place = found.names.tolist().index(str(mics / f"mic_{number}.mrc"))
        assert f1_and_errors(kept_in(found, place), disk_set.middles[number])[0] > 0.8
    opened = fs.open_particles((str(mics / "*.mrc"), str(tmp_path / "out" / "kept" / "*.star")), box=24)
    assert len(opened) == found.keep.sum()
    assert len(fs.open_particles(tmp_path / "out" / "particles.star")) > 100


def test_only_micrographs_without_contrast(tmp_path):
    path = write_micrograph(tmp_path / "mics" / "mic.mrc", np.ones((200, 220)))
    assert call("pick", path, "-o", tmp_path / "out", "--jobs", 1, "--quiet") == 0
    found = load(tmp_path / "out" / "results.npz")
    assert len(found.x) == 0 and found.doubts


def test_micrographs_may_differ_in_their_sides(disk_set, tmp_path):
    shapes = [(300, 340), (420, 250), (251, 403)]
    made = [disks(20 + seed, *shape, n=30) for seed, shape in enumerate(shapes)]
    paths = [write_micrograph(tmp_path / f"{k}.mrc", pixels) for k, (pixels, _) in enumerate(made)]
    found = fs.pick_particles(paths, diameter=DIAMETER, n_jobs=1)
    for number, (_, middles) in enumerate(made):
        f1, errors = f1_and_errors(kept_in(found, number), middles)
        assert f1 > 0.8 and np.median(errors) < 1.5


def test_pixel_sizes_that_differ_are_refused(mics, tmp_path, capsys):
    write_micrograph(mics / "mic_3.mrc", noise(3), pixel_size=3)
    assert call("pick", mics / "*.mrc", "-o", tmp_path / "out", *GIVEN) == 1
    assert_refused(capsys, tmp_path, "3", "4", "pixel")


def test_a_movie_is_refused_and_named(mics, tmp_path, capsys):
    write_micrograph(mics / "mic_movie.mrc", np.stack([noise(3)] * 2))
    assert call("pick", mics / "*.mrc", "-o", tmp_path / "out", *GIVEN) == 1
    assert_refused(capsys, tmp_path, "mic_movie.mrc", "movie")


def truncate(path):
    path.write_bytes(path.read_bytes()[:200_000])


@pytest.mark.usefixtures("learned_before")
def test_a_truncated_file_is_named_and_the_others_are_done(mics, disk_set, tmp_path, capsys):
    truncate(mics / "mic_1.mrc")
    out = tmp_path / "out"
    options = ["--diameter", DIAMETER, "--jobs", 1, "--write-stack", "--box", 24]
    assert call("pick", mics / "*.mrc", "-o", out, *options) == 3
    captured = capsys.readouterr()
    assert "mic_1.mrc" in captured.out + captured.err
    found = load(out / "results.npz")
    assert [Path(name).name for name in found.names.tolist()] == ["mic_0.mrc", "mic_2.mrc"]
    assert list(found.failed) == [str(mics / "mic_1.mrc")]
    for number, middles in enumerate(disk_set.middles[::2]):
        assert f1_and_errors(kept_in(found, number), middles)[0] > 0.8
    rows = {Path(row["micrograph"]).name: row for row in table_of(out / "micrographs.csv")}
    assert {name: bool(row["failed"]) for name, row in rows.items()} == {
        "mic_0.mrc": False,
        "mic_2.mrc": False,
        "mic_1.mrc": True,
    }
    assert json.loads((out / "summary.json").read_text())["failed"] == found.failed
    assert "mic_1.mrc" in (out / "report.html").read_text()
    assert sorted(path.name for path in (out / "kept").glob("*.star")) == [
        "mic_0_fastsort.star",
        "mic_2_fastsort.star",
    ]


def test_a_file_that_is_damaged_while_picking_is_named(mics, result, tmp_path, monkeypatch):
    """Headers are read first: later a file may be shorter."""

    def learn_and_truncate(*_):
        truncate(mics / "mic_1.mrc")
        return result.learned

    monkeypatch.setattr(pick, "learn_from", learn_and_truncate)
    assert call("pick", mics / "*.mrc", "-o", tmp_path / "out", *GIVEN, "--write-stack", "--box", 24) == 3
    found = load(tmp_path / "out" / "results.npz")
    assert [Path(name).name for name in found.names.tolist()] == ["mic_0.mrc", "mic_2.mrc"]
    assert list(found.failed) == [str(mics / "mic_1.mrc")]
    assert (found.micrograph < 2).all() and len(kept_in(found, 1)) > 30


def test_nothing_is_left_when_all_files_are_truncated(mics, tmp_path, capsys):
    for path in mics.iterdir():
        truncate(path)
    assert call("pick", mics / "*.mrc", "-o", tmp_path / "out", *GIVEN) == 1
    assert_refused(capsys, tmp_path, "mic_0.mrc")


def test_micrographs_of_one_name_are_refused(mics, tmp_path, capsys):
    shutil.copytree(mics, mics / "more")
    paths = [mics / "mic_0.mrc", mics / "more" / "mic_0.mrc"]
    assert call("pick", *paths, "-o", tmp_path / "out", *GIVEN) == 1
    assert_refused(capsys, tmp_path, *map(str, paths), "one name")


# Options.


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--diameter", 0], "diameter"),
        (["--diameter", "nan"], "diameter"),
        (["--diameter", 20], "diameter of 20 A is 5 px"),
        (["--diameter", 404], "diameter of 404 A"),
        (["--diameter", DIAMETER, "--threshold", 1.5], "threshold"),
        (["--diameter", DIAMETER, "--threshold", 0], "threshold"),
        (["--diameter", DIAMETER, "--contamination-margin", -1], "contamination_margin"),
        (["--diameter", DIAMETER, "--contamination-margin", "inf"], "contamination_margin"),
        (["--diameter", DIAMETER, "--pixel-size", 0], "pixel_size"),
        (["--diameter", DIAMETER, "--write-stack", "--box", 0], "box"),
        (["--box", 24], "--box does nothing without --write-stack"),
        (["--jobs", 2, "--cluster", "tcp://127.0.0.1:1"], "--jobs does nothing with --cluster"),
        (["--data-dir", "."], "--data-dir does nothing without a STAR file"),
        (["--update", "--overwrite"], "give one of them"),
        (["--update"], "holds no finished run"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(mics, tmp_path, capsys, options, part):
    assert call("pick", mics / "*.mrc", "-o", tmp_path / "out", *options) == 1
    assert_refused(capsys, tmp_path, part)


@pytest.mark.usefixtures("learned_before")
def test_a_box_that_fits_nowhere_is_refused(mics, tmp_path, capsys):
    options = [*GIVEN, "--write-stack", "--box", 1000]
    assert call("pick", mics / "*.mrc", "-o", tmp_path / "out", *options) == 1
    assert_refused(capsys, tmp_path, "a box of 1000 px", "smaller")


@pytest.mark.parametrize(
    "options",
    [
        {"diameter": 0},
        {"diameter": 1000.0},
        {"threshold": 1.0},
        {"threshold": np.nan},
        {"contamination_margin": -1.0},
        {"contamination_margin": np.nan},
    ],
    ids=str,
)
def test_the_call_refuses_values_out_of_range(disk_set, options):
    with pytest.raises(InputError, match=next(iter(options))):
        fs.pick_particles(disk_set.paths, **{"diameter": DIAMETER, **options})


@pytest.mark.usefixtures("learned_before")
def test_earlier_results_are_replaced_only_when_told(mics, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("pick", mics / "mic_0.mrc", "-o", out, *GIVEN) == 0
    before = (out / "results.npz").read_bytes()
    assert call("pick", mics / "mic_1.mrc", "-o", out, *GIVEN) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "results.npz").read_bytes() == before
    assert call("pick", mics / "mic_1.mrc", "-o", out, *GIVEN, "--overwrite") == 0
    assert load(out / "results.npz").names.tolist() == [str(mics / "mic_1.mrc")]
    assert [path.name for path in (out / "kept").glob("*.star")] == ["mic_1_fastsort.star"]


# More micrographs, and runs that were killed.


def count_calls(monkeypatch, fail_at=None):
    """Count how many micrographs are looked at; one of them may be as far as the run gets."""
    calls = []
    once = pick._picks_of

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return once(*arguments)

    monkeypatch.setattr(pick, "_picks_of", counted)
    return calls


@pytest.mark.usefixtures("learned_before")
def test_an_update_looks_at_new_micrographs_only(mics, disk_set, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (mics / "mic_1.mrc").rename(tmp_path / "mic_1.mrc")
    assert call("pick", mics / "*.mrc", "-o", out, *GIVEN) == 0
    before = load(out / "results.npz")
    assert [Path(name).name for name in before.names.tolist()] == ["mic_0.mrc", "mic_2.mrc"]
    (tmp_path / "mic_1.mrc").rename(mics / "mic_1.mrc")
    calls = count_calls(monkeypatch)
    assert call("pick", mics / "*.mrc", "-o", out, "--update", "--jobs", 1, "--quiet") == 0
    assert len(calls) == 1
    after = load(out / "results.npz")
    assert [Path(name).name for name in after.names.tolist()] == ["mic_0.mrc", "mic_2.mrc", "mic_1.mrc"]
    n = len(before.x)
    for name in ("micrograph", "x", "y", "probability", "height", "keep", "reason"):
        assert getattr(after, name)[:n].tobytes() == getattr(before, name).tobytes(), name
    assert (after.micrograph[n:] == 2).all()
    assert_same_bits(after.learned, before.learned)
    assert (after.diameter, after.diameter_found) == (DIAMETER, False)
    f1, errors = f1_and_errors(kept_in(after, 2), disk_set.middles[1])
    assert f1 > 0.8 and np.median(errors) < 1.5
    assert len(list((out / "kept").glob("*.star"))) == 3
    opened = fs.open_particles((str(mics / "*.mrc"), str(out / "kept" / "*.star")), box=24)
    assert len(opened) == after.keep.sum()


@pytest.mark.usefixtures("learned_before")
def test_an_update_without_anything_new_changes_nothing(mics, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert call("pick", mics / "*.mrc", "-o", out, *GIVEN) == 0
    before = load(out / "results.npz")
    calls = count_calls(monkeypatch)
    assert call("pick", mics / "*.mrc", "-o", out, "--update", "--jobs", 1, "--quiet") == 0
    assert calls == []
    assert_same_bits(load(out / "results.npz"), before)


@pytest.mark.usefixtures("learned_before")
def test_an_update_tries_again_what_could_not_be_read(mics, disk_set, tmp_path):
    out = tmp_path / "out"
    truncate(mics / "mic_1.mrc")
    assert call("pick", mics / "*.mrc", "-o", out, *GIVEN) == 3
    shutil.copy(disk_set.paths[1], mics / "mic_1.mrc")
    assert call("pick", mics / "*.mrc", "-o", out, "--update", "--jobs", 1, "--quiet") == 0
    found = load(out / "results.npz")
    assert found.failed == {} and kept_of(found, "mic_1.mrc") > 30


@pytest.mark.usefixtures("learned_before")
def test_an_update_refuses_another_diameter_and_another_pixel_size(mics, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("pick", mics / "mic_[01].mrc", "-o", out, *GIVEN) == 0
    before = (out / "results.npz").read_bytes()
    for options, part in ((["--diameter", 80], "diameter"), (["--pixel-size", 3], "pixel")):
        assert call("pick", mics / "*.mrc", "-o", out, "--update", *options, "--quiet") == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and part in error
    assert (out / "results.npz").read_bytes() == before


def test_an_update_refuses_the_folder_of_another_command(mics, tmp_path, capsys):
    from fastsort._saved import save

    (tmp_path / "out").mkdir()
    save(tmp_path / "out" / "results.npz", (1, 2))
    assert call("pick", mics / "*.mrc", "-o", tmp_path / "out", "--update") == 1
    assert "run of another command" in capsys.readouterr().err


@pytest.mark.usefixtures("learned_before")
def test_an_update_keeps_the_threshold_that_was_given_before(mics, tmp_path):
    out = tmp_path / "out"
    assert call("pick", mics / "mic_[01].mrc", "-o", out, *GIVEN, "--threshold", 0.25) == 0
    assert call("pick", mics / "*.mrc", "-o", out, "--update", "--jobs", 1, "--quiet") == 0
    after = load(out / "results.npz")
    assert np.array_equal(after.keep, after.probability >= after.threshold)
    assert after.threshold == 0.25


def test_an_update_after_nothing_was_found_looks_at_all_micrographs(mics, disk_set, tmp_path, monkeypatch):
    """One micrograph with few particles may be too little to learn from."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("fastsort.picking.learn.LEAST_AT_ONE", 1e9)
        call("pick", mics / "mic_0.mrc", "-o", out, *GIVEN)
    assert load(out / "results.npz").learned is None
    call("pick", mics / "*.mrc", "-o", out, *GIVEN, "--update")
    after = load(out / "results.npz")
    assert kept_of(after, "mic_1.mrc") > 30
    assert kept_of(after, "mic_0.mrc") > 30


def test_a_killed_call_goes_on_to_the_same_bits(disk_set, result, tmp_path, monkeypatch):
    monkeypatch.setattr(pick, "N_SAVED_AT_ONCE", 1)
    work = tmp_path / "work"
    options = {"diameter": DIAMETER, "work": work, "n_jobs": 1}
    with monkeypatch.context() as patch:
        count_calls(patch, fail_at=2)
        with pytest.raises(KeyboardInterrupt):
            fs.pick_particles(disk_set.pattern, **options)
    assert (work / "places-0.stage").exists() and not (work / "places-1.stage").exists()
    calls = count_calls(monkeypatch)
    assert_same_bits(fs.pick_particles(disk_set.pattern, **options), result)
    assert len(calls) == 2
    assert not work.exists()


@pytest.mark.usefixtures("learned_before")
def test_a_killed_command_says_how_to_go_on(disk_set, result, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pick, "N_SAVED_AT_ONCE", 1)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        count_calls(patch, fail_at=2)
        assert call("pick", disk_set.pattern, "-o", out, *GIVEN) == 130
    assert f"goes on from {tmp_path / '.out.work'}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".out.work"]
    assert call("pick", disk_set.pattern, "-o", out, *GIVEN) == 0
    assert_same_bits(load(out / "results.npz"), result)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_work_folder_is_of_no_use_for_another_diameter(disk_set, result, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(pick, "learn_from", lambda *arguments: calls.append(arguments) or result.learned)
    options = {"work": tmp_path / "work", "keep_work": True, "n_jobs": 1}
    for diameter in (DIAMETER, DIAMETER, 72):
        fs.pick_particles(disk_set.paths, diameter=diameter, **options)
    assert [across for *_, across in calls] == [ACROSS, 18]


@pytest.mark.usefixtures("learned_before")
def test_a_work_folder_is_of_no_use_after_a_micrograph_has_changed(mics, disk_set, tmp_path):
    options = {"diameter": DIAMETER, "work": tmp_path / "work", "keep_work": True, "n_jobs": 1}
    fs.pick_particles(str(mics / "*.mrc"), **options)
    shutil.copy(disk_set.paths[1], mics / "mic_0.mrc")
    again = fs.pick_particles(str(mics / "*.mrc"), **options)
    assert f1_and_errors(kept_in(again, 0), disk_set.middles[1])[0] > 0.8


# As a job of RELION.


@pytest.mark.usefixtures("learned_before")
def test_a_job_of_relion_names_the_list(mics, monkeypatch):
    monkeypatch.chdir(mics.parent)
    names = "\n".join(f"mics/{path.name}" for path in sorted(mics.iterdir()))
    Path("micrographs.star").write_text(f"\ndata_micrographs\n\nloop_\n_rlnMicrographName #1\n{names}\n")
    job = Path("External/job001")
    job.mkdir(parents=True)
    given = ["--relion-job", "--in_mics", "micrographs.star", "--o", "External/job001/", "--j", "1"]
    for options in ([], ["--write-stack", "--box", 24]):
        assert call("pick", "--diameter", DIAMETER, "--quiet", *options, *given) == 0
        assert (job / "RELION_JOB_EXIT_SUCCESS").is_file()
        table = read_star(job / "RELION_OUTPUT_NODES.star").block("output_nodes")
        files = ["External/job001/picked/autopick.star"]
        files += ["External/job001/picked/particles.star"] if options else []
        assert table.column("_rlnPipeLineNodeName") == files
    listed = read_star(files[0]).block("coordinate_files")
    assert listed.column("_rlnMicrographName") == names.split()
    assert all(Path(file).is_file() for file in listed.column("_rlnMicrographCoordinates"))
    assert len(fs.open_particles(files[1])) > 100


@pytest.mark.parametrize(
    ("given", "part"),
    [(["--in_parts", "particles.star"], "--in_parts"), (["--in_mics", "none.star"], "none.star")],
    ids=["particles", "no file"],
)
def test_a_job_of_relion_that_fails_says_so(tmp_path, monkeypatch, capsys, given, part):
    monkeypatch.chdir(tmp_path)
    job = Path("External/job001")
    job.mkdir(parents=True)
    assert call("pick", "--relion-job", *given, "--o", "External/job001/") == 1
    assert part in capsys.readouterr().err
    assert [path.name for path in job.iterdir()] == ["RELION_JOB_EXIT_FAILURE"]


def test_a_job_that_sorts_may_have_a_folder_called_pick(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["--in_parts", "none.star", "--o", "External/job001/"]
    assert call("sort", "--relion-job", "--work", "pick", *given) == 1
    assert "none.star does not exist" in capsys.readouterr().err


def test_three_in_a_heap_are_a_clump_and_a_pair_that_touches_is_not():
    row = np.array([10.0, 10.0, 17.0, 100.0, 100.0, 200.0])
    column = np.array([10.0, 18.0, 14.0, 100.0, 108.0, 50.0])
    heap = pick.heaped(row, column, np.ones(6, bool), 10.0)
    assert heap.tolist() == [True, True, True, False, False, False]
    # What shows no particle makes no heap, but may lie in one.
    assert (
        pick.heaped(row, column, np.array([True, False, False, True, True, True]), 10.0).tolist()
        == [False] * 6
    )
    assert pick.heaped(row, column, np.array([True, True, False, True, True, True]), 10.0)[2]
    assert not pick.heaped(row[:0], column[:0], np.zeros(0, bool), 10.0).size
