"""Particles cut from micrographs, and the coordinate files that are read and written."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mrcfile.dtypes import HEADER_DTYPE

from fastsort._checks import InputError
from fastsort.particles import extract
from fastsort.particles.open import open_particles
from fastsort.particles.source import choose_particles
from fastsort.particles.table import Added

REAL = Path(__file__).parents[2] / "shared" / "data" / "real" / "micrographs"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"the shared data folder {REAL} is not here")

MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
BOX = 16


def make_micrograph(path, pixels, mode=2, order="<", pixel_size=1.5, nz=1):
    """Write one micrograph (ny, nx) with a header made by hand."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ny, nx = pixels.shape
    header = np.zeros((), HEADER_DTYPE.newbyteorder(order))
    header["nx"], header["ny"], header["nz"], header["mode"] = nx, ny, nz, mode
    header["mx"], header["my"], header["mz"] = nx, ny, 1
    header["cella"] = nx * pixel_size, ny * pixel_size, 1
    path.write_bytes(header.tobytes() + pixels.astype(order + MODES[mode]).tobytes() * nz)
    return str(path)


def noise(ny=120, nx=100, seed=0):
    return np.random.default_rng(seed).normal(100, 8, (ny, nx)).round()


def picks_star(path, picks, extra=(), ending="\n"):
    """Write an autopick STAR file; extra is (label, words)."""
    labels = ["_rlnCoordinateX", "_rlnCoordinateY", *(label for label, _ in extra)]
    lines = ["", "# version 30001", "", "data_", "", "loop_"]
    lines += [f"{label} #{i}" for i, label in enumerate(labels, 1)]
    for row, (x, y) in enumerate(picks):
        lines.append(" ".join([f"{x:12.6f}", f"{y:12.6f}", *(words[row] for _, words in extra), ""]))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((ending.join(lines) + ending).encode())
    return str(path)


def cs_picks(path, paths, x, y, shape, **more):
    fields = [("uid", "<u8"), ("location/micrograph_path", "S60"), ("location/micrograph_shape", "<u4", (2,))]
    fields += [("location/center_x_frac", "<f4"), ("location/center_y_frac", "<f4")]
    rows = np.zeros(len(paths), [*fields, *((name, values.dtype) for name, values in more.items())])
    rows["uid"] = np.arange(len(paths)) + 7
    rows["location/micrograph_path"], rows["location/micrograph_shape"] = paths, shape
    rows["location/center_x_frac"] = np.divide(x, shape[1])
    rows["location/center_y_frac"] = np.divide(y, shape[0])
    for name, values in more.items():
        rows[name] = values
    with open(path, "wb") as file:
        np.save(file, rows)
    return str(path)


def cut_slowly(pixels, x, y, box, invert=True):
    """The same images again, by NumPy's least squares, one by one."""
    offset = np.arange(box) - box // 2
    v, u = np.meshgrid(offset, offset, indexing="ij")
    outside = u**2 + v**2 > (box / 2) ** 2
    design = np.stack([np.ones_like(u), u, v], axis=-1).astype(float)
    images = []
    padded = np.pad(pixels.astype(float), box, mode="symmetric")
    for column, row in zip(np.floor(x).astype(int), np.floor(y).astype(int), strict=True):
        if not (0 <= column < pixels.shape[1] and 0 <= row < pixels.shape[0]):
            images.append(np.zeros((box, box)))
            continue
        left, top = column - box // 2 + box, row - box // 2 + box
        image = padded[top : top + box, left : left + box]
        plane = np.linalg.lstsq(design[outside], image[outside], rcond=None)[0]
        image = image - design @ plane
        images.append((-1 if invert else 1) * image / image[outside].std())
    return np.array(images)


def over_the_edge(pixels, x, y, box):
    left, top = np.floor(x) - box // 2, np.floor(y) - box // 2
    return (left < 0) | (top < 0) | (left + box > pixels.shape[1]) | (top + box > pixels.shape[0])


def refused(*parts, micrographs, coordinates, box=BOX, **options):
    """Assert that opening fails with one line that has all of these parts, and return it."""
    with pytest.raises(InputError) as error:
        open_particles((micrographs, coordinates), box=box, **options)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


@pytest.fixture
def one(tmp_path):
    """A micrograph and a file of three picks."""
    pixels = noise()
    micrograph = make_micrograph(tmp_path / "a.mrc", pixels)
    picks = [(50, 60), (20.5, 30.999), (80, 100)]
    return micrograph, picks_star(tmp_path / "a_topaz.star", picks), pixels, np.array(picks)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("box", [16, 21])
def test_images_of_every_mode_agree_with_least_squares(tmp_path, mode, order, box):
    pixels = noise() + np.add.outer(np.arange(120), np.arange(100)) // 12
    pixels = pixels if mode else pixels // 2
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-4, 104, 60), rng.uniform(-4, 124, 60)
    micrograph = make_micrograph(tmp_path / "a.mrc", pixels, mode, order)
    for invert in (True, False):
        coordinates = picks_star(tmp_path / "a.star", zip(x, y, strict=True))
        particles = open_particles((micrograph, coordinates), box=box, invert=invert)
        expected = cut_slowly(pixels, x, y, box, invert)
        np.testing.assert_allclose(particles.read(0, 60), expected, atol=2e-5)
        assert np.array_equal(particles.outside, over_the_edge(pixels, x, y, box))
    assert 5 < particles.outside.sum() < 50


def test_order_repeats_and_bands_change_nothing(tmp_path, monkeypatch):
    micrographs, files, expected = [], [], []
    rng = np.random.default_rng(2)
    for number, (ny, nx) in enumerate([(70, 200), (200, 64), (100, 100)]):
        pixels = noise(ny, nx, number)
        x, y = rng.integers(0, nx, 20), rng.integers(0, ny, 20)
        micrographs.append(make_micrograph(tmp_path / f"{number}.mrc", pixels, 1))
        files.append(picks_star(tmp_path / f"{number}.star", zip(x, y, strict=True)))
        expected.append(cut_slowly(pixels, x, y, BOX))
    expected = np.concatenate(expected)
    particles = open_particles((micrographs, files), box=BOX)
    for band_bytes in (1, 20 * 200 * 2, 1 << 20):
        monkeypatch.setattr(extract, "_BAND_BYTES", band_bytes)
        chosen = rng.integers(0, 60, 90)
        np.testing.assert_allclose(particles.read(chosen), expected[chosen], atol=2e-5)
    some = pickle.loads(pickle.dumps(particles.part(25, 37)))
    assert len(some.store.files()) == 1
    assert np.array_equal(some.read(0, 12), particles.read(25, 37))
    some = choose_particles(particles, np.array([59, 3, 21]))
    np.testing.assert_allclose(some.read(0, 3), expected[[59, 3, 21]], atol=2e-5)
    assert list(some.names) == ["000020@2.mrc", "000004@0.mrc", "000002@1.mrc"]
    assert particles.read([]).shape == (0, BOX, BOX)


@given(
    st.integers(16, 33),
    *[st.floats(-1e3, 1e3)] * 2,
    st.floats(-1e4, 1e4),
    st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
# Below the smallest normal number single precision has steps of one size.
@example(box=16, slope_x=0.0, slope_y=9.203198240038875e-41, height=0.0, seed=0)
def test_a_plane_changes_nothing(tmp_path_factory, box, slope_x, slope_y, height, seed):
    folder = tmp_path_factory.mktemp("plane")
    pixels = np.random.default_rng(seed).normal(0, 10, (box, box))
    plane = height + np.add.outer(slope_y * np.arange(box), slope_x * np.arange(box))
    coordinates = picks_star(folder / "a.star", [(box // 2, box // 2)])
    read = []
    for image in (pixels, pixels + plane):
        make_micrograph(folder / "a.mrc", image)
        read.append(open_particles((folder / "a.mrc", coordinates), box=box).read(0, 1)[0])
    scale = 10 + abs(slope_x) * box + abs(slope_y) * box + abs(height)
    np.testing.assert_allclose(read[0], read[1], atol=1e-6 + 3e-8 * scale)
    make_micrograph(folder / "a.mrc", plane)
    flat = open_particles((folder / "a.mrc", coordinates), box=box).read(0, 1)
    assert not flat.any()


def test_background_has_mean_0_and_deviation_1(one):
    image = open_particles(one[:2], box=32).read(0, 1)[0].astype(float)
    v, u = np.indices((32, 32)) - 16
    background = image[u**2 + v**2 > 16**2]
    assert abs(background.mean()) < 1e-6
    assert abs(background.std() - 1) < 1e-6


def test_flat_and_bad_pixels_can_be_told(tmp_path):
    pixels = noise()
    pixels[:30, :30] = 5
    pixels[15, 15] = 90
    pixels[60, 60] = np.nan
    pixels[100, 31] = np.inf
    make_micrograph(tmp_path / "a.mrc", pixels)
    picks = [(15, 15), (60, 60), (67, 67), (39, 108), (80, 30)]
    particles = open_particles((tmp_path / "a.mrc", picks_star(tmp_path / "a.star", picks)), box=BOX)
    images = particles.read(0, 5)
    assert not images[0].any()
    assert np.isnan(images[1]).sum() == 1 and np.isnan(images[1, 8, 8])
    assert np.isnan(images[2]).all() and np.isnan(images[3]).all()
    assert np.isfinite(images[4]).all()
    assert particles.outside is None


def test_the_fraction_of_a_coordinate_is_cut_off_as_relion_does(tmp_path):
    pixels = np.zeros((64, 64))
    pixels[30, 20] = 1
    pixels += noise(64, 64) * 1e-3
    make_micrograph(tmp_path / "a.mrc", pixels)
    picks = [(20, 30), (20.49, 30.5), (20.999999, 30.999999), (21, 29.99)]
    particles = open_particles(
        (tmp_path / "a.mrc", picks_star(tmp_path / "a.star", picks)), box=BOX, invert=False
    )
    peaks = [np.unravel_index(image.argmax(), image.shape) for image in particles.read(0, 4)]
    assert peaks == [(8, 8), (8, 8), (8, 8), (9, 7)]


@pytest.mark.parametrize("box", [16, 17])
def test_one_pixel_over_the_edge_is_outside(tmp_path, box):
    make_micrograph(tmp_path / "a.mrc", noise(50, 40))
    first, last_x, last_y = box // 2, 40 - box + box // 2, 50 - box + box // 2
    picks = [(first, first), (last_x, last_y), (first - 1, 20), (20, first - 1)]
    picks += [(last_x + 1, 20), (20, last_y + 1), (1e12, -1e12), (first - 0.01, 21)]
    picks += [(20, 25)] * 3
    particles = open_particles((tmp_path / "a.mrc", picks_star(tmp_path / "a.star", picks)), box=box)
    assert particles.outside.tolist() == [False] * 2 + [True] * 6 + [False] * 3
    # Mirrored at the edge, but nothing where the middle is not in the micrograph.
    assert particles.read(0, 11).any(axis=(1, 2)).tolist() == [True] * 6 + [False] + [True] * 4
    first = particles.store.first_named()
    assert (first < np.arange(11)).tolist() == [False] * 9 + [True] * 2


def test_what_is_known_of_a_set(one):
    micrograph, coordinates, _, picks = one
    particles = open_particles((micrograph, coordinates), box=BOX)
    assert (len(particles), particles.box, particles.pixel_size, particles.ctf) == (3, BOX, 1.5, None)
    assert list(particles.names) == [f"{number:06d}@a.mrc" for number in (1, 2, 3)]
    assert particles.micrographs == [micrograph] * 3
    table = particles.table
    assert table.path == particles.path == coordinates
    assert table.names_of_micrographs == [micrograph] and table.micrograph_of.tolist() == [0] * 3
    assert np.array_equal(np.stack([table.x, table.y], axis=1), picks)
    assert (table.files, table.pixel_size, table.defocus) == ([coordinates], 1.5, None)
    assert particles.store.files() == [os.path.abspath(micrograph)]
    assert open_particles((micrograph, coordinates), box=BOX, pixel_size=2).pixel_size == 2
    layouts = [open_particles(one[:2], box=BOX, invert=invert).store.layout() for invert in (True, False)]
    assert not all(map(np.array_equal, *layouts))


def test_files_are_matched_by_the_longest_stem(tmp_path):
    for seed, stem in enumerate(["mic_1", "mic_10", "mic_1_b", "mic.2", "empty"]):
        make_micrograph(tmp_path / "mics" / f"{stem}.mrc", noise(seed=seed))
    for name in ("mic_1_topaz", "mic_10", "mic_1_b_topaz", "mic.2-picks"):
        picks_star(tmp_path / "picks" / f"{name}.star", [(50, 50)])
    particles = open_particles((tmp_path / "mics" / "*.mrc", str(tmp_path / "picks" / "*.star")), box=BOX)
    assert [Path(name).stem for name in particles.micrographs] == ["mic.2", "mic_10", "mic_1_b", "mic_1"]
    assert [Path(path).stem for path in particles.table.files] == [
        "mic.2-picks",
        "mic_10",
        "mic_1_b_topaz",
        "mic_1_topaz",
    ]
    os.unlink(tmp_path / "mics" / "mic_10.mrc")
    refused("1 of 4 coordinate files", "mic_10.star", micrographs=tmp_path / "mics" / "*.mrc",
            coordinates=tmp_path / "picks" / "*.star")  # fmt: skip


def test_files_of_one_stem_are_told_apart_by_their_folders(tmp_path):
    for seed, folder in enumerate("AB"):
        make_micrograph(tmp_path / "mics" / folder / "m.mrc", noise(seed=seed))
    micrographs = str(tmp_path / "mics" / "*" / "m.mrc")
    picks = picks_star(tmp_path / "picks" / "B" / "m_auto.star", [(50, 50)])
    assert Path(open_particles((micrographs, picks), box=BOX).micrographs[0]).parts[-2] == "B"
    names = [("_rlnMicrographName", ["A/m.mrc", "job/B/m.mrc"])]
    both = picks_star(tmp_path / "all.star", [(50, 50), (60, 60)], names)
    found = open_particles((micrographs, both), box=BOX).micrographs
    assert [Path(name).parts[-2] for name in found] == ["A", "B"]
    refused("may be", "A/m.mrc", "B/m.mrc", micrographs=micrographs,
            coordinates=picks_star(tmp_path / "m.star", [(50, 50)]))  # fmt: skip


def test_two_files_for_one_micrograph_are_refused(one, tmp_path):
    other = picks_star(tmp_path / "a_human.star", [(40, 40)])
    refused(
        "a_topaz.star", "a_human.star", "one file for each", micrographs=one[0], coordinates=[one[1], other]
    )


CTF_LABELS = ["_rlnMicrographName", "_rlnOpticsGroup", "_rlnDefocusU", "_rlnDefocusV", "_rlnDefocusAngle"]


def micrographs_star(path, rows, optics="1 0.83 300 2.7 0.1", labels=CTF_LABELS):
    text = "# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnMicrographPixelSize #2\n"
    text += "_rlnVoltage #3\n_rlnSphericalAberration #4\n_rlnAmplitudeContrast #5\n" + optics
    text += (
        "\n\n\n# version 30001\n\ndata_micrographs\n\nloop_\n" + "\n".join(labels) + "\n" + "\n".join(rows)
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return str(path)


def test_a_relion_project_with_lists_of_both(tmp_path):
    for seed in (1, 2, 3):
        make_micrograph(tmp_path / f"MotionCorr/job002/m{seed}.mrc", noise(seed=seed), 12)
    rows = [f"MotionCorr/job002/m{seed}.mrc 1 {seed}0000 {seed}1000 {seed}5" for seed in (1, 2, 3)]
    micrographs = micrographs_star(tmp_path / "CtfFind/job003/micrographs_ctf.star", rows)
    for seed in (3, 1):
        picks_star(
            tmp_path / f"AutoPick/job004/m{seed}_autopick.star", [(50, 50), (40, 60 + seed)][: 3 - seed or 1]
        )
    text = "\n# version 30001\n\ndata_coordinate_files\n\nloop_ \n"
    text += "_rlnMicrographName #1 \n_rlnMicrographCoordinates #2 \n"
    text += "".join(f"MotionCorr/job002/m{s}.mrc AutoPick/job004/m{s}_autopick.star \n" for s in (3, 1))
    (tmp_path / "AutoPick/job004/autopick.star").write_text(text)
    particles = open_particles((micrographs, tmp_path / "AutoPick/job004/autopick.star"), box=BOX)
    assert particles.pixel_size == 0.83
    assert particles.micrographs == [f"MotionCorr/job002/m{seed}.mrc" for seed in (3, 1, 1)]
    assert particles.ctf.defocus_u.tolist() == [30000, 10000, 10000]
    assert particles.ctf.defocus_angle.tolist() == [35, 15, 15]
    assert particles.ctf.voltage.tolist() == [300] * 3
    assert particles.table.defocus.tolist() == [30500, 10500, 10500]
    expected = cut_slowly(noise(seed=1), [50, 40], [50, 61], BOX)
    np.testing.assert_allclose(particles.read(1, 3), expected, atol=1e-3)
    os.unlink(tmp_path / "AutoPick/job004/m3_autopick.star")
    refused("1 of 2 coordinate files", "m3_autopick.star", micrographs=micrographs,
            coordinates=tmp_path / "AutoPick/job004/autopick.star")  # fmt: skip
    os.unlink(tmp_path / "MotionCorr/job002/m2.mrc")
    refused("1 of 3 micrographs", "MotionCorr/job002/m2.mrc", "--data-dir", micrographs=micrographs,
            coordinates=tmp_path / "AutoPick/job004/m1_autopick.star")  # fmt: skip
    make_micrograph(tmp_path / "elsewhere/MotionCorr/job002/m2.mrc", noise())
    options = {"data_dir": tmp_path / "elsewhere", "box": BOX}
    assert len(open_particles((micrographs, tmp_path / "AutoPick/job004/m1_autopick.star"), **options)) == 2
    refused(
        "is not a folder", micrographs=micrographs, coordinates=tmp_path / "x.star", data_dir=tmp_path / "no"
    )


def test_a_particle_table_brings_its_micrographs_and_its_ctf(tmp_path):
    for stem in "ab":
        make_micrograph(tmp_path / "mics" / f"{stem}.mrc", noise(seed=ord(stem)))
    labels = ["_rlnCoordinateX", "_rlnCoordinateY", "_rlnMicrographName", "_rlnOpticsGroup", "_rlnDefocusU"]
    rows = ["50 60 Old/job1/b.mrc 1 12000", "40 30 Old/job1/a.mrc 1 13000", "20 21 Old/job1/b.mrc 1 14000"]
    table = micrographs_star(tmp_path / "particles.star", rows, labels=labels)
    particles = open_particles((tmp_path / "mics" / "*.mrc", table), box=BOX)
    assert [Path(name).name for name in particles.micrographs] == ["b.mrc", "a.mrc", "b.mrc"]
    assert particles.ctf.defocus_u.tolist() == [12000, 13000, 14000]
    assert list(particles.names) == ["000001@b.mrc", "000002@a.mrc", "000003@b.mrc"]
    expected = cut_slowly(noise(seed=ord("b")), [50, 20], [60, 21], BOX)
    np.testing.assert_allclose(particles.read([0, 2]), expected, atol=2e-5)
    assert particles.pixel_size == 1.5
    refused("2 picks are of 1 micrographs that are not given", "Old/job1/b.mrc",
            micrographs=tmp_path / "mics" / "a.mrc", coordinates=table)  # fmt: skip


def write_picks(folder, table, rows, labels=None, fields=None):
    """Write some of the picks; return the names of the files."""
    chosen = np.arange(len(table))[np.asarray(rows, bool if np.asarray(rows).dtype == bool else int)]
    table.write_files(folder, chosen, Added(labels or {}, fields or {}))
    return table.files_of_part


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_box_files_name_corners(tmp_path, ending):
    pixels = noise()
    make_micrograph(tmp_path / "a.mrc", pixels)
    lines = ["10 20 32 32", "  41\t52\t21\t21\t-3", "", "# by hand", "60.5 3 30 30"]
    (tmp_path / "a.box").write_bytes(ending.join(lines).encode())
    particles = open_particles((tmp_path / "a.mrc", tmp_path / "a.box"), box=BOX)
    assert particles.table.x.tolist() == [26, 51.5, 75.5]
    assert particles.table.y.tolist() == [36, 62.5, 18]
    np.testing.assert_allclose(
        particles.read(0, 3), cut_slowly(pixels, [26, 51, 75], [36, 62, 18], BOX), atol=2e-5
    )
    for kept, left in {(0, 2): [0, 2, 3, 4], (1,): [1, 2, 3], (): [2, 3]}.items():
        assert write_picks(tmp_path, particles.table, kept, {"_rlnX": ["a", "b", "c"]}) == ["a.box"]
        text = (tmp_path / "a.box").read_bytes()
        assert text == b"".join(line.encode() for i in left for line in [lines[i] + ending * (i < 4)])


def test_cryosparc_picks_are_fractions(tmp_path):
    pixels = {name: noise(seed=seed) for seed, name in enumerate(["one", "two"])}
    for name, values in pixels.items():
        make_micrograph(tmp_path / f"{name}.mrc", values)
    rng = np.random.default_rng(3)
    x, y = rng.integers(8, 92, 40), rng.integers(8, 112, 40)
    stored = [b">J2/imported/000123456789012345678_one.mrc", b"J2/motioncorrected/two.mrc"]
    which = rng.integers(0, 2, 40)
    paths = [stored[number] for number in which]
    score = rng.normal(size=40).astype("f4")
    path = cs_picks(tmp_path / "picked.cs", paths, x, y, (120, 100), **{"pick_stats/ncc_score": score})
    particles = open_particles((tmp_path / "*.mrc", path), box=BOX)
    assert np.array_equal(particles.table.x, x) and np.array_equal(particles.table.y, y)
    assert [Path(name).stem for name in particles.micrographs] == [["one", "two"][number] for number in which]
    for number, name in enumerate(pixels):
        own = np.flatnonzero(which == number)
        np.testing.assert_allclose(
            particles.read(own), cut_slowly(pixels[name], x[own], y[own], BOX), atol=2e-5
        )
    binned = cs_picks(tmp_path / "binned.cs", paths, x / 2, y / 2, (60, 50))
    assert np.array_equal(open_particles((tmp_path / "*.mrc", binned), box=BOX).table.x, x)

    (tmp_path / "out").mkdir()
    rows, before = np.arange(40)[::-3], np.load(path)
    fields = {"fastsort/score": np.arange(40, dtype="f4")}
    assert write_picks(tmp_path / "out", particles.table, rows, fields=fields) == ["picked.cs"]
    after = np.load(tmp_path / "out" / "picked.cs")
    for name in before.dtype.names:
        assert np.array_equal(after[name], before[np.sort(rows)][name])
    assert np.array_equal(after["fastsort/score"], np.sort(rows))
    write_picks(tmp_path / "out", particles.table, [])
    assert len(np.load(tmp_path / "out" / "picked.cs")) == 0

    turned = cs_picks(tmp_path / "turned.cs", paths, x, y, (100, 120))
    refused("row 0", "120 x 100 px", "has 100 x 120 px", micrographs=tmp_path / "*.mrc", coordinates=turned)
    bad = cs_picks(tmp_path / "bad.cs", paths, np.where(np.arange(40) == 6, np.nan, x), y, (120, 100))
    refused("row 6", "finite", micrographs=tmp_path / "*.mrc", coordinates=bad)
    with open(tmp_path / "other.cs", "wb") as file:
        np.save(file, before[["uid", "location/micrograph_path"]])
    refused("location/center_x_frac", micrographs=tmp_path / "*.mrc", coordinates=tmp_path / "other.cs")
    refused(f"{(which == 1).sum()} picks are of 1 micrographs", "two.mrc", micrographs=tmp_path / "one.mrc",
            coordinates=path)  # fmt: skip


def test_cryosparc_particles_bring_their_ctf(tmp_path):
    make_micrograph(tmp_path / "one.mrc", noise())
    ctf = {
        "df1_A": 9000,
        "df2_A": 8000,
        "df_angle_rad": np.pi / 4,
        "accel_kv": 200,
        "cs_mm": 2,
        "amp_contrast": 0.1,
    }
    fields = {f"ctf/{name}": np.full(2, value, "f4") for name, value in ctf.items()}
    path = cs_picks(tmp_path / "p.cs", [b"one.mrc"] * 2, [40, 50], [40, 50], (120, 100), **fields)
    particles = open_particles((tmp_path / "one.mrc", path), box=BOX)
    assert particles.ctf.defocus_v.tolist() == [8000, 8000]
    np.testing.assert_allclose(particles.ctf.defocus_angle, 45, rtol=1e-6)
    assert particles.table.defocus.tolist() == [8500, 8500]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_star_picks_come_back_byte_for_byte(tmp_path, ending):
    rng = np.random.default_rng(4)
    files, texts, counts = [], [], [4, 0, 7, 1]
    for number, count in enumerate(counts):
        make_micrograph(tmp_path / f"m{number}.mrc", noise(seed=number))
        merit = [("_rlnAutopickFigureOfMerit", [f"{value:.6f}" for value in rng.normal(size=count)])]
        files.append(
            picks_star(tmp_path / f"m{number}_auto.star", rng.uniform(20, 80, (count, 2)), merit, ending)
        )
        texts.append(Path(files[-1]).read_bytes())
    table = open_particles((str(tmp_path / "m?.mrc"), files), box=BOX).table
    assert table.file_of.tolist() == np.repeat([0, 1, 2, 3], counts).tolist()
    assert table.row_of.tolist() == [row for count in counts for row in range(count)]
    (tmp_path / "out").mkdir()
    names = [f"m{number}_auto.star" for number in range(4)]

    def written(rows, columns=None):
        assert write_picks(tmp_path / "out", table, rows, columns) == names
        return [(tmp_path / "out" / name).read_bytes() for name in names]

    assert written(np.ones(12, bool)) == texts
    keep = np.arange(12) % 3 == 1
    lines = [text.split(ending.encode()) for text in texts]
    expected, own, start = [], np.split(keep, np.cumsum(counts)[:-1]), 9
    for text, kept in zip(lines, own, strict=True):
        rows = [row for row, is_kept in zip(text[start:-1], kept, strict=True) if is_kept]
        expected.append(ending.encode().join([*text[:start], *rows, b""]))
    assert written(keep) == written(np.flatnonzero(keep)[::-1]) == expected
    assert written([]) == [ending.encode().join([*text[:start], b""]) for text in lines]
    scores = [f"{number}.5" for number in range(12)]
    kept = written(keep, {"_rlnParticleSelectZScore": scores})
    found = [
        line.split()[-1].decode() for text in kept for line in text.split(ending.encode())[start + 1 : -1]
    ]
    assert found == [scores[number] for number in np.flatnonzero(keep)]
    assert all(b"_rlnParticleSelectZScore #4" + ending.encode() in text for text in kept)


def test_a_particle_table_of_picks_comes_back_with_all_of_its_tables(tmp_path):
    make_micrograph(tmp_path / "a.mrc", noise())
    rows = ["50 60 a.mrc 1", "40 30 x/a.mrc 1"]
    labels = ["_rlnCoordinateX", "_rlnCoordinateY", "_rlnMicrographName", "_rlnOpticsGroup"]
    path = micrographs_star(tmp_path / "p.star", rows, labels=labels)
    before = Path(path).read_text()
    table = open_particles((tmp_path / "a.mrc", path), box=BOX).table
    (tmp_path / "out").mkdir()
    assert write_picks(tmp_path / "out", table, [1]) == ["p.star"]
    assert (tmp_path / "out" / "p.star").read_text() == before.replace(rows[0] + "\n", "")


def test_a_table_without_columns_holds_no_picks(one, tmp_path):
    make_micrograph(tmp_path / "b.mrc", noise())
    nothing = tmp_path / "b_topaz.star"
    nothing.write_text("\n# version 30001\n\ndata_\n\n")
    particles = open_particles((tmp_path / "?.mrc", [one[1], nothing]), box=BOX)
    assert len(particles) == 3
    (tmp_path / "out").mkdir()
    write_picks(tmp_path / "out", particles.table, [0])
    assert (tmp_path / "out" / "b_topaz.star").read_text() == nothing.read_text()
    refused("hold no picks", micrographs=tmp_path / "b.mrc", coordinates=nothing)


def test_files_that_would_be_written_over_one_another_are_refused(one, tmp_path):
    copy = picks_star(tmp_path / "more" / "a_topaz.star", [(30, 30)])
    refused("a_topaz.star", "have one name", "rename", micrographs=one[0], coordinates=[one[1], copy])
    refused("have one name", micrographs=one[0], coordinates=[one[1], one[1]])


def test_micrographs_that_cannot_be_used_are_refused(one, tmp_path):
    refused("no file matches", "*.tif", micrographs=str(tmp_path / "*.tif"), coordinates=one[1])
    refused("does not exist", "none.mrc", micrographs=tmp_path / "none.mrc", coordinates=one[1])
    refused("must be a path", "ndarray", micrographs=np.zeros((2, 16, 16)), coordinates=one[1])
    refused("no micrographs are given", micrographs=[], coordinates=one[1])
    refused("given twice", "a.mrc", micrographs=[one[0], one[0]], coordinates=one[1])
    link = tmp_path / "link.mrc"
    link.symlink_to(one[0])
    refused("given twice", "link.mrc", micrographs=[one[0], link], coordinates=one[1])
    movie = make_micrograph(tmp_path / "movie" / "a.mrc", noise(), nz=3)
    refused("has 3 images", "movie", micrographs=movie, coordinates=one[1])
    refused("no table with _rlnMicrographName", micrographs=one[1], coordinates=one[1])
    empty = micrographs_star(tmp_path / "empty.star", [])
    refused("lists no micrographs", micrographs=empty, coordinates=one[1])


def test_micrographs_of_several_pixel_sizes_are_refused(tmp_path):
    sizes = {"a": 1.5, "b": 1.5004, "c": 1.6, "d": 0}
    for name, size in sizes.items():
        make_micrograph(tmp_path / f"{name}.mrc", noise(), pixel_size=size)
    coordinates = picks_star(tmp_path / "a.star", [(50, 50)])

    def given(names):
        return [tmp_path / f"{name}.mrc" for name in names]

    assert open_particles((given("ab"), coordinates), box=BOX).pixel_size == 1.5
    message = refused("differ in pixel size", "a.mrc has 1.5 A", "c.mrc 1.6 A", micrographs=given("abc"),
                      coordinates=coordinates)  # fmt: skip
    assert "b.mrc" not in message
    refused("d.mrc no known pixel size", micrographs=given("ad"), coordinates=coordinates)
    assert open_particles((given("abcd"), coordinates), box=BOX, pixel_size=1.4).pixel_size == 1.4
    alone = picks_star(tmp_path / "d.star", [(50, 50)])
    assert np.isnan(open_particles((given("d"), alone), box=BOX).pixel_size)


def test_coordinates_that_cannot_be_used_are_refused(one, tmp_path):
    def bad(text, *parts, name="a.star"):
        (tmp_path / name).write_text(text)
        refused(*parts, micrographs=one[0], coordinates=tmp_path / name)

    header = "data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n"
    for value in ("nan", "inf", "-inf"):
        bad(header + f"10 20\n30 {value}\n", "finite", "line 7 of")
    bad(header + "10 abc\n", "line 6 of", "'abc'")
    bad("data_\n\nloop_\n_rlnCoordinateX #1\n10\n", "no table with _rlnCoordinateX and _rlnCoordinateY")
    bad("data_x\n\nloop_\n_rlnMicrographName #1\n_rlnMicrographCoordinates #2\n", "lists no coordinate files")
    bad("10 20 30\n", "line 1 of", "four numbers", name="a.box")
    bad("1 2 3 4\n1 2 x 4\n", "line 2 of", "'1 2 x 4'", name="a.box")
    bad("1 2 3 4\n\n1 nan 3 4\n", "line 3 of", "finite", name="a.box")
    bad("", "hold no picks", name="a.box")
    bad("", "no file of picks that can be read", ".star, .cs, .box", name="a.dat")
    refused("no file matches", micrographs=one[0], coordinates=str(tmp_path / "*.cs"))
    refused("does not exist", micrographs=one[0], coordinates=tmp_path / "none.star")
    refused("belong to no micrograph", "b.star", micrographs=one[0],
            coordinates=picks_star(tmp_path / "b.star", [(50, 50)]))  # fmt: skip


def test_picks_of_another_binning_are_refused(one, tmp_path):
    inside, astray = [(50, 50)] * 2, [(50, 120), (-0.1, 50), (100, 5)]
    path = picks_star(tmp_path / "a.star", inside + astray[:2])
    assert open_particles((one[0], path), box=BOX).outside.sum() == 2
    path = picks_star(tmp_path / "a.star", inside + astray)
    refused("3 of 5 picks", "another binning", micrographs=one[0], coordinates=path)


def test_boxes_that_cannot_be_cut_are_refused(one):
    refused("16 to 1024 px", "8 px", micrographs=one[0], coordinates=one[1], box=8)
    refused("whole number", "20.5", micrographs=one[0], coordinates=one[1], box=20.5)
    refused("all 3 picks", "box of 110 px", "smaller box", micrographs=one[0], coordinates=one[1], box=110)
    refused("need a box", micrographs=one[0], coordinates=one[1], box=None)


def test_a_micrograph_that_shrinks_after_opening_is_told(one):
    particles = open_particles(one[:2], box=BOX)
    with open(one[0], "r+b") as file:
        file.truncate(1024 + 4 * 100 * 104)
    assert particles.read(0, 2).any()
    with pytest.raises(InputError, match="has become shorter"):
        particles.read(0, 3)


def test_files_are_read_in_bands_of_bounded_size(tmp_path):
    import tracemalloc

    make_micrograph(tmp_path / "a.mrc", noise(5000, 2000), 1)
    x, y = np.random.default_rng(5).uniform(20, [[1980], [4980]], (2, 50))
    particles = open_particles(
        (tmp_path / "a.mrc", picks_star(tmp_path / "a.star", zip(x, y, strict=True))), box=32
    )
    particles.read(0, 1)
    tracemalloc.start()
    particles.read(0, 50)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < extract._BAND_BYTES + 2 * 50 * 32 * 32 * 4


@needs_data
def test_real_particles_are_bright_shells():
    particles = open_particles((REAL / "*.mrc", REAL / "*_human.star"), box=128)
    assert (len(particles), particles.pixel_size) == (325, 1.5)
    mean = particles.read(np.flatnonzero(~particles.outside)).mean(axis=0)
    v, u = np.indices((128, 128)) - 64
    radius = 1.5 * np.hypot(v, u)
    shell = mean[(radius > 35) & (radius < 50)].mean()
    assert shell > 0.15 > 0.05 > abs(mean[radius > 96].mean())
    # The published particles of these and other micrographs, of 48 px at 4 A.
    published = open_particles(REAL.parent / "apoferritin_curated.mrcs")
    profiles = []
    for image, size in ((mean, 1.5), (published.read(0, len(published)).mean(axis=0), published.pixel_size)):
        v, u = np.indices(image.shape) - len(image) // 2
        radius = size * np.hypot(v, u)
        profiles.append([image[(radius >= a) & (radius < a + 12)].mean() for a in range(0, 96, 12)])
    assert np.corrcoef(profiles)[0, 1] > 0.8
