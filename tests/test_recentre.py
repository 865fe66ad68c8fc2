"""Recentring: origins by which RELION moves particles to the middle of their images."""

from __future__ import annotations

import math
import shutil
import subprocess

import numpy as np
import pytest

import fastsort as fs
from fastsort._checks import InputError
from fastsort.particles.mrc import write_stack
from fastsort.particles.open import open_particles
from fastsort.particles.star import read_star, subset_bytes
from fastsort.report.recentre import origin_columns

needs_relion = pytest.mark.skipif(
    shutil.which("relion_stack_create") is None, reason="the RELION tools are not installed"
)

OPTICS = (
    "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnVoltage #2\n_rlnSphericalAberration #3\n"
    "_rlnImagePixelSize #4\n1 300 2.7 2.5\n\n"
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Stand in a folder with a stack of three images; return a way to open a table of them."""
    monkeypatch.chdir(tmp_path)
    write_stack(tmp_path / "a.mrcs", [np.zeros((3, 16, 16), np.float32)], 2.5, 3, 16)

    def opened(optics, labels, rows, **options):
        head = "".join(f"{label}\n" for label in ["_rlnImageName", *labels])
        body = "".join(f"{i}@a.mrcs {row}\n" for i, row in enumerate(rows, 1))
        (tmp_path / "p.star").write_text(f"{optics}data_particles\n\nloop_\n{head}{body}")
        return open_particles("p.star", **options)

    return opened


OFFSET = [[1.5, -2.0], [0.0, 4.0], [math.nan, math.nan]]


def test_origins_are_minus_the_offset_in_angstroms_or_pixels(project):
    columns = origin_columns(project(OPTICS, [], ["", "", ""]), OFFSET, [True] * 3)
    assert columns == {
        "_rlnOriginXAngst": ["5.000000", "-10.000000", "0.000000"],
        "_rlnOriginYAngst": ["-3.750000", "0.000000", "0.000000"],
    }
    columns = origin_columns(project("", [], ["", "", ""]), OFFSET, [True] * 3)
    assert columns == {
        "_rlnOriginX": ["2.000000", "-4.000000", "0.000000"],
        "_rlnOriginY": ["-1.500000", "0.000000", "0.000000"],
    }


def test_what_was_not_measured_or_is_not_kept_stays_as_it_was(project):
    labels, rows = ["_rlnOriginYAngst", "_rlnOriginX"], ["7 8", "07.5 8", "-1e2 8"]
    columns = origin_columns(project(OPTICS, labels, rows), OFFSET, [False, True, True])
    assert columns == {
        "_rlnOriginXAngst": ["0.000000", "-10.000000", "0.000000"],
        "_rlnOriginYAngst": ["7", "0.000000", "-1e2"],
    }
    half_known = [[math.nan, 1.0], [1.0, math.inf], [1.0, 1.0]]
    columns = origin_columns(project("", labels, rows), half_known, [True] * 3)
    assert columns["_rlnOriginX"] == ["8", "8", "-1.000000"]
    assert columns["_rlnOriginY"] == ["0.000000", "0.000000", "-1.000000"]


def test_angstroms_are_those_of_the_file_that_relion_will_read(project):
    columns = origin_columns(project(OPTICS, [], ["", "", ""], pixel_size=99), OFFSET, [True] * 3)
    assert columns["_rlnOriginXAngst"][0] == "5.000000"
    bare = OPTICS.replace("_rlnImagePixelSize", "_rlnSomethingElse")
    columns = origin_columns(project(bare, [], ["", "", ""], pixel_size=3), OFFSET, [True] * 3)
    assert columns["_rlnOriginXAngst"][0] == "6.000000"


def test_what_cannot_be_centred_is_refused(project, tmp_path):
    with pytest.raises(InputError, match="only the particles of a STAR file"):
        origin_columns(open_particles(np.zeros((3, 16, 16))), OFFSET, [True] * 3)
    particles = project(OPTICS, [], ["", "", ""])
    with pytest.raises(InputError, match=r"shapes \(3, 2\) and \(3,\).*got \(2, 2\)"):
        origin_columns(particles, OFFSET[:2], [True] * 3)
    with pytest.raises(InputError, match=r"and \(2,\)"):
        origin_columns(particles, OFFSET, [True] * 2)
    with pytest.raises(InputError, match=r"_rlnOriginXAngst must be a number; line 16 of p\.star has '1 2'"):
        origin_columns(project(OPTICS, ["_rlnOriginXAngst"], ["0", "'1 2'", "0"]), OFFSET, [True] * 3)
    write_stack(tmp_path / "a.mrcs", [np.zeros((3, 16, 16), np.float32)], math.nan, 3, 16)
    unknown = project(OPTICS.replace("_rlnImagePixelSize", "_rlnSomethingElse"), [], ["", "", ""])
    with pytest.raises(InputError, match=r"p\.star needs origins in angstroms"):
        origin_columns(unknown, OFFSET, [True] * 3)


def centre_of_mass(images):
    """Return row and column of the centre of mass from pixel box // 2, shape (n, 2)."""
    images = images.astype(float)
    grid = np.arange(images.shape[1]) - images.shape[1] // 2
    mass = images.sum(axis=(1, 2))
    return np.stack([images.sum(axis=2) @ grid, images.sum(axis=1) @ grid], axis=1) / mass[:, None]


def relion30(star, pixel_size):
    """Write the same particles as RELION 3.0 would, with origins that are wrong."""
    names = star.particles_block.column("_rlnImageName")
    labels = ["ImageName", "OriginX", "AnglePsi", "OriginY", "Magnification", "DetectorPixelSize"]
    labels += ["Voltage", "DefocusU", "DefocusV", "DefocusAngle", "SphericalAberration", "AmplitudeContrast"]
    head = "".join(f"_rln{label} #{i}\n" for i, label in enumerate(labels, 1))
    rows = "".join(f"{name}  9 0 -9.5 10000  {pixel_size} 300 1e4 1e4 0 2.7 0.1\n" for name in names)
    return f"\ndata_\n\nloop_\n{head}{rows}\n"


@needs_relion
@pytest.mark.parametrize("box", [64, 65])
@pytest.mark.parametrize("dialect", ["3.0", "3.1"])
def test_relion_centres_particles_by_these_origins(tmp_path, monkeypatch, dialect, box):
    images, truth = fs.simulate_particles(
        16, 0, snr=math.inf, box=box, pixel_size=8.0, centring=0.05, n_micrographs=2, seed=3
    )
    fs.write_project(tmp_path / "project", images, truth)
    monkeypatch.chdir(tmp_path / "project")
    if dialect == "3.0":
        with open("old.star", "w") as file:
            file.write(relion30(read_star("particles.star"), truth.pixel_size))
    particles = open_particles("old.star" if dialect == "3.0" else "particles.star")
    assert particles.pixel_size == pytest.approx(8.0)
    before = centre_of_mass(images)
    assert np.abs(before).max() > 4 and np.abs(before.mean(axis=0)).max() > 0.5
    columns = origin_columns(particles, truth.shift, np.ones(16, bool))
    if dialect == "3.1":
        columns["_rlnAnglePsi"] = ["0"] * 16
    with open("centred.star", "wb") as file:
        file.writelines(subset_bytes(particles.table.star, range(16), columns))

    command = ["relion_stack_create", "--i", "centred.star", "--o", "moved", "--apply_transformation"]
    subprocess.run(command, capture_output=True, check=True)
    moved = open_particles("moved.mrcs").read(0, 16)
    assert np.abs(centre_of_mass(moved)).max() < 0.5
    assert np.abs(centre_of_mass(moved.mean(axis=0)[None])).max() < 0.1
