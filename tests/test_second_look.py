"""A second look at kept picks: figures are not trusted where the micrographs show no particles there."""

from __future__ import annotations

from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest

import fastsort as fs
from fastsort.decide.decoys import Estimate, EstimatedErrors
from fastsort.decide.second_look import look_again

DIAMETER, SIDE, STEP = 14, 360, 40
SURE = EstimatedErrors(*[Estimate(0.95, 0.9, 1.0)] * 4, {}, {}, True, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three micrographs of dark disks in noise; picks of all disks, and picks of places between them."""
    folder = tmp_path_factory.mktemp("picked")
    row, column = np.mgrid[:SIDE, :SIDE]
    for number in range(3):
        rng = np.random.default_rng(number)
        image = rng.normal(size=(SIDE, SIDE)).astype(np.float32)
        places = np.stack(np.mgrid[20:SIDE:STEP, 20:SIDE:STEP], axis=-1).reshape(-1, 2)
        places = places + rng.integers(-6, 7, places.shape)
        for y, x in places:
            image[np.hypot(row - y, column - x) < DIAMETER / 2] -= 1.5
        with mrcfile.new(folder / f"m{number}.mrc") as file:
            file.set_data(image)
            file.voxel_size = 4.0
        for name, shift in (("disks", 0), ("gaps", STEP // 2)):
            (folder / name).mkdir(exist_ok=True)
            table = "".join(f"{x + shift} {y + shift}\n" for y, x in places)
            star = f"data_\n\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n{table}"
            (folder / name / f"m{number}.star").write_text(star)
    return folder


def looked_at(folder, picks, kept=1.0, errors=SURE, diameter=float(DIAMETER)):
    particles = fs.open_particles((str(folder / "*.mrc"), str(folder / picks / "*.star")), box=24)
    keep = np.arange(len(particles)) < kept * len(particles)
    return look_again(particles, SimpleNamespace(errors=errors, keep=keep, diameter_px=diameter))


def test_figures_stand_where_the_micrographs_show_particles(folder):
    assert looked_at(folder, "disks") is SURE


def test_figures_are_not_known_where_the_micrographs_show_none(folder):
    errors = looked_at(folder, "gaps")
    assert not errors.known
    assert "searched anew" in errors.remark
    assert errors.precision == SURE.precision


def test_size_is_found_where_it_is_unknown(folder):
    assert not looked_at(folder, "gaps", diameter=np.nan).known


def test_nothing_is_said_where_much_is_rejected_or_figures_are_not_known_anyway(folder):
    assert looked_at(folder, "gaps", kept=0.8) is SURE
    unknown = SURE._replace(known=False, remark="no idea")
    assert looked_at(folder, "gaps", errors=unknown) is unknown
    assert looked_at(folder, "gaps", errors=None) is None


def test_nothing_is_said_of_images_without_micrographs():
    particles = fs.open_particles(np.zeros((200, 24, 24), np.float32))
    result = SimpleNamespace(errors=SURE, keep=np.ones(200, bool), diameter_px=14.0)
    assert look_again(particles, result) is SURE
