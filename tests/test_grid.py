"""Images of several boxes or pixel sizes: brought to one, sorted, and written back as they were."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import starfile

from fastsort import InputError, open_particles, simulate_particles, sort_particles
from fastsort._crop import crop_operator
from fastsort.particles.mrc import write_stack
from fastsort.report.recentre import origin_columns

HEAD = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnImagePixelSize #3
{optics}

# version 30001

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
{rows}
"""


def project(folder, *groups):
    """Write groups of (images, pixel size) as a stack and an optics group each; rows take turns."""
    optics, rows = [], []
    for number, (images, pixel_size) in enumerate(groups, 1):
        write_stack(folder / f"{number}.mrcs", [images], pixel_size, len(images), images.shape[1])
        optics.append(f"{number} group{number} {pixel_size}")
        rows += [(i, number) for i in range(len(images))]
    lines = [f"{i + 1:06d}@{number}.mrcs {number}" for i, number in sorted(rows)]
    path = folder / "particles.star"
    path.write_text(HEAD.format(optics="\n".join(optics), rows="\n".join(lines)))
    return path, sorted(rows)


def blob(box, pixel_size, shift=(0.0, 0.0), width=9.0):
    """A smooth particle, known at any pixel size; lengths in angstroms."""
    y, x = (np.mgrid[:box, :box] - box // 2) * pixel_size
    value = np.exp(-((y - shift[0]) ** 2 + 0.6 * (x - shift[1]) ** 2) / (2 * width**2))
    return value.astype(np.float32)


def test_the_grid_has_the_largest_pixels_and_the_smallest_field_of_view(tmp_path):
    fine = np.stack([blob(128, 1.0, (5, -3)), blob(128, 1.0)])
    coarse = np.stack([blob(50, 2.2, (5, -3)), blob(50, 2.2)])
    wide = np.stack([blob(81, 2.2, (5, -3))])
    path, rows = project(tmp_path, (fine, 1.0), (coarse, 2.2), (wide, 2.2))
    particles = open_particles(path)
    assert particles.pixel_size == 2.2 and particles.box == 50
    images = particles.read(0, 5)
    for image, (i, _) in zip(images, rows, strict=True):
        np.testing.assert_allclose(image, coarse[i], atol=2e-4)
    np.testing.assert_allclose(particles.rescaled, [2.2 if number == 1 else 1 for _, number in rows])
    np.testing.assert_allclose(particles.own_pixel_size, [1 if number == 1 else 2.2 for _, number in rows])
    np.testing.assert_array_equal(particles.read([4, 1, 1]), images[[4, 1, 1]])
    assert particles.names[0] == "000001@1.mrcs"


def test_of_the_same_pixel_size_only_the_middle_is_taken(tmp_path):
    rng = np.random.default_rng(0)
    small, large = (rng.normal(size=(3, box, box)).astype(np.float32) for box in (24, 33))
    path, _ = project(tmp_path, (small, 1.5), (large, 1.5))
    images = open_particles(path).read([0, 1])
    np.testing.assert_array_equal(images[0], small[0])
    np.testing.assert_array_equal(images[1], large[0, 4:28, 4:28])


def test_rounding_of_the_pixel_size_makes_no_new_kind(tmp_path):
    images = np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32)
    path, _ = project(tmp_path, (images, 1.5), (images, 1.50001))
    particles = open_particles(path)
    assert particles.rescaled is None and particles.box == 32
    np.testing.assert_array_equal(particles.read(0, 4), images[[0, 0, 1, 1]])


def test_a_pixel_size_that_is_given_holds_for_all(tmp_path):
    images = np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32)
    path, _ = project(tmp_path, (images, 1.5), (images, 3.0))
    particles = open_particles(path, pixel_size=1.2)
    assert (particles.box, particles.pixel_size, particles.rescaled) == (32, 1.2, None)


def test_stacks_without_any_pixel_size_count_as_the_same(tmp_path):
    for name, box in (("a", 20), ("b", 32)):
        write_stack(tmp_path / f"{name}.mrcs", [np.ones((2, box, box), np.float32)], math.nan, 2, box)
    (tmp_path / "x.star").write_text("data_\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n2@b.mrcs\n")
    particles = open_particles(tmp_path / "x.star")
    assert particles.box == 20 and math.isnan(particles.pixel_size)
    np.testing.assert_allclose(particles.rescaled, 1)


def test_too_little_in_common_is_refused_with_all_kinds(tmp_path):
    images = np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32)
    path, _ = project(tmp_path, (images, 1.0), (images, 8.0))
    with pytest.raises(InputError) as caught:
        open_particles(path)
    for part in (
        "optics group group1: box 32 px, pixel size 1 A, 2 images",
        "optics group group2: box 32 px, pixel size 8 A, 2 images",
        "4 px",
    ):
        assert part in str(caught.value)


def test_a_part_knows_its_own_stacks_alone(tmp_path):
    rng = np.random.default_rng(0)
    path, _ = project(
        tmp_path, *((rng.normal(size=(40, b, b)).astype(np.float32), 1.5) for b in (24, 33, 40))
    )
    particles = open_particles(path)
    part = pickle.loads(pickle.dumps(particles.part(7, 19)))
    np.testing.assert_array_equal(part.read(0, 12), particles.read(7, 19))
    inner = part.store.part(np.array([0, 3]))
    assert inner.files() == [str(tmp_path / "2.mrcs")]
    assert part.names[:] == particles.names[7:19]


def test_repeated_images_are_found_in_every_kind(tmp_path):
    rng = np.random.default_rng(0)
    path, _ = project(tmp_path, *((rng.normal(size=(2, b, b)).astype(np.float32), 1.5) for b in (24, 33)))
    text = path.read_text().rstrip()
    path.write_text(text + "\n000002@2.mrcs 2\n000001@1.mrcs 1\n")
    first = open_particles(path).store.first_named()
    assert (first < np.arange(6)).tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize("step", [1.0, 1.3, 2.0])
def test_operator_of_a_step_shows_the_middle_at_that_step(step):
    size = int(96 / step) - 5
    operator = crop_operator(96, size, step)
    here = operator @ blob(96, 1.0, (4, -6), 7.0) @ operator.T
    np.testing.assert_allclose(here, blob(size, step, (4, -6), 7.0), atol=3e-5)


def balanced(keep, label):
    return (keep[label].mean() + 1 - keep[~label].mean()) / 2


def test_two_groups_are_sorted_as_well_as_one(tmp_path):
    images, truth = simulate_particles(
        400, 400, snr=0.3, box=64, junk=("noise", "partial", "multiple"), seed=3
    )
    # The second half as another microscope has it: larger pixels, or the same with less around it.
    operator = crop_operator(64, 40, 1.6)
    coarse = operator @ images[400:] @ operator.T
    path, rows = project(tmp_path, (images[:400], 2.0), (coarse.astype(np.float32), 3.2))
    label = np.array([truth.label[i + 400 * (number - 1)] for i, number in rows])
    result = sort_particles(path)
    kept, dropped = result.keep[label].mean(), 1 - result.keep[~label].mean()
    assert (kept + dropped) / 2 > 0.95
    alone = sort_particles(images)
    assert (kept + dropped) / 2 > alone.keep[truth.label].mean() / 2 - alone.keep[
        ~truth.label
    ].mean() / 2 + 0.47
    assert result.diameter == pytest.approx(2 * alone.diameter, rel=0.15)


def test_origins_are_in_each_image_s_own_angstroms(tmp_path):
    rng = np.random.default_rng(0)
    path, rows = project(
        tmp_path, *((rng.normal(size=(2, 64, 64)).astype(np.float32), s) for s in (1.0, 2.0))
    )
    particles = open_particles(path)
    columns = origin_columns(particles, np.full((4, 2), 1.5), np.ones(4, bool))
    # 1.5 pixels of 2 A, whichever group an image is of.
    assert set(columns["_rlnOriginXAngst"]) == {"-3.000000"}
    assert list(particles.rescaled) == [2.0 if number == 1 else 1.0 for _, number in rows]


def test_lines_come_back_whatever_the_box(tmp_path):
    from fastsort.cli import main

    images, _ = simulate_particles(150, 150, snr=0.2, box=48, seed=3)
    path, _ = project(tmp_path, (images[:150], 2.0), (images[150:, 4:44, 4:44].copy(), 2.0))
    before = path.read_bytes()
    assert main(["sort", str(path), "-o", str(tmp_path / "out"), "--quiet", "--write-stack"]) == 0
    assert path.read_bytes() == before
    kept = starfile.read(tmp_path / "out" / "kept.star", always_dict=True)["particles"]
    rejected = starfile.read(tmp_path / "out" / "rejected.star", always_dict=True)["particles"]
    names = [*kept["rlnImageName"], *rejected["rlnImageName"]]
    assert sorted(names) == sorted(line.split()[0] for line in before.decode().splitlines() if "@" in line)
    assert open_particles(tmp_path / "out" / "kept.mrcs").box == 40
