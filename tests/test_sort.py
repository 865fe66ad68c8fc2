"""sort_particles: from files to a verdict, whatever the source, and whatever goes wrong on the way."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import joblib
import mrcfile
import numpy as np
import pytest
import scipy.stats

from fastsort import InputError, open_particles, simulate_particles, sort_particles, write_project

REAL = Path(__file__).parents[2] / "shared" / "data" / "real"
ARRAYS = ("keep", "score", "reason", "junk_probability", "offset")


@pytest.fixture(scope="module")
def stack():
    return simulate_particles(150, 150, snr=0.1, box=56, ctf=True, junk="all", n_micrographs=5, seed=1)


@pytest.fixture(scope="module")
def project(stack, tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("sort") / "project", *stack)


@pytest.fixture(scope="module")
def sorted_project(project):
    return sort_particles(project)


def assert_identical(actual, expected, order=slice(None)):
    """Assert the same bits, `actual` being in input order and `expected` in another."""
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name)[order], name)
    for name, values in expected.measurements.items():
        np.testing.assert_array_equal(actual.measurements[name], values[order], name)
    np.testing.assert_equal(actual.cut, expected.cut)
    np.testing.assert_equal(actual.diameter_px, expected.diameter_px)
    assert (actual.contrast, actual.phase_flipped) == (expected.contrast, expected.phase_flipped)


def area_under_curve(score, label):
    """Chance that a particle has a lower score than junk."""
    ranks = scipy.stats.rankdata(score)
    n_junk = np.count_nonzero(~label)
    return (ranks[~label].sum() - n_junk * (n_junk + 1) / 2) / (n_junk * np.count_nonzero(label))


# Where the images come from.


def test_project_is_sorted(stack, sorted_project):
    _, truth = stack
    assert sorted_project.phase_flipped
    assert sorted_project.diameter_estimated
    assert sorted_project.contrast == "bright"
    assert sorted_project.diameter == pytest.approx(sorted_project.diameter_px * truth.pixel_size, rel=1e-4)
    assert area_under_curve(sorted_project.score, truth.label) > 0.95
    np.testing.assert_array_equal(sorted_project.keep, sorted_project.reason == "valid")
    judged = np.isfinite(sorted_project.score)
    np.testing.assert_array_equal(
        sorted_project.keep[judged], (sorted_project.score <= sorted_project.cut)[judged]
    )


def test_array_and_stack_file_give_the_same(stack, tmp_path):
    images, truth = stack
    with mrcfile.new(tmp_path / "particles.mrcs") as file:
        file.set_data(images)
        file.set_image_stack()
        file.voxel_size = truth.pixel_size
    from_array = sort_particles(images)
    assert not from_array.phase_flipped
    for path in (tmp_path / "particles.mrcs", str(tmp_path / "particles.mrcs")):
        from_file = sort_particles(path)
        assert_identical(from_file, from_array)
        assert from_file.diameter == pytest.approx(from_array.diameter_px * truth.pixel_size, rel=1e-4)
    assert from_array.diameter == from_array.diameter_px


def test_project_without_flipping_is_the_array(stack, project):
    plain = sort_particles(project, phase_flip="no")
    assert not plain.phase_flipped
    assert_identical(plain, sort_particles(stack[0]))


def test_flipping_when_told_is_flipping_by_itself(project, sorted_project):
    told = sort_particles(project, phase_flip="yes")
    assert told.phase_flipped
    assert_identical(told, sorted_project)


def shuffle_rows(star, name, order):
    """Write the STAR file again beside itself with the particles in another order."""
    lines = star.read_text().splitlines(keepends=True)
    rows = [i for i, line in enumerate(lines) if "@" in line]
    for row, old in zip(rows, order, strict=True):
        lines[row] = star.read_text().splitlines(keepends=True)[rows[old]]
    shuffled = star.with_name(name)
    shuffled.write_text("".join(lines))
    return shuffled


def test_order_of_the_rows_follows_the_names(stack, project, sorted_project):
    images = stack[0]
    order = np.random.default_rng(2).permutation(len(images))
    shuffled = open_particles(shuffle_rows(project, "shuffled.star", order))
    position = {name: i for i, name in enumerate(open_particles(project).names)}
    by_name = np.array([position[name] for name in shuffled.names])
    np.testing.assert_array_equal(by_name, order)
    # The same images in the same order, from many stacks or from one array.
    assert_identical(sort_particles(shuffled, phase_flip="no"), sort_particles(images[order]))
    # Another order changes sums in their last bits only.
    result = sort_particles(shuffled)
    assert (result.keep != sorted_project.keep[by_name]).mean() <= 0.01
    assert np.corrcoef(result.score, sorted_project.score[by_name])[0, 1] > 0.999


def with_optics(star, name, label, value):
    """Write the STAR file again beside itself with one more label in the optics table."""
    lines = star.read_text().splitlines()
    labels = [i for i, line in enumerate(lines) if line.startswith("_rlnImageDimensionality")]
    row = next(i for i in range(labels[0], len(lines)) if lines[i].startswith("opticsGroup1"))
    lines[row] += f" {value}"
    lines.insert(labels[0] + 1, label)
    changed = star.with_name(name)
    changed.write_text("\n".join(lines) + "\n")
    return changed


@pytest.mark.parametrize("label", ["_rlnCtfDataArePhaseFlipped", "_rlnCtfDataAreCtfPremultiplied"])
def test_phases_flipped_before_are_not_flipped_again(project, label):
    done = with_optics(project, f"done{label}.star", label, 1)
    assert not sort_particles(done).phase_flipped
    assert sort_particles(done, phase_flip="yes").phase_flipped
    undone = with_optics(project, f"undone{label}.star", label, 0)
    assert sort_particles(undone).phase_flipped


@pytest.mark.parametrize("n_jobs", [1, 2, -1])
def test_workers_do_not_change_bits(project, sorted_project, n_jobs):
    assert_identical(sort_particles(project, n_jobs=n_jobs), sorted_project)


def test_processes_do_not_change_bits(project, sorted_project):
    images = simulate_particles(400, 400, snr=0.1, box=36, seed=3)[0]
    expected = sort_particles(images, n_jobs=1)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert_identical(sort_particles(project), sorted_project)
        assert_identical(sort_particles(images), expected)


def test_images_that_cannot_be_judged(stack):
    images = stack[0].copy()
    images[0] = 0.1
    images[1, 3, 3] = np.nan
    images[2, 0, 0] = -np.inf
    images[3, 5, 5] += 200 * images.std()
    result = sort_particles(images)
    np.testing.assert_array_equal(result.reason[:4], ["flat", "bad_pixels", "bad_pixels", "bad_pixels"])
    assert not result.keep[:4].any()
    assert np.isinf(result.score[:4]).all()
    assert np.isfinite(result.score[4:]).all()


@pytest.mark.parametrize("dtype", ["f2", ">f4", "f8"])
def test_any_type_of_read_only_map(stack, dtype, tmp_path):
    exact = stack[0][:120].astype(np.float16).astype(np.float32)
    np.save(tmp_path / "images.npy", exact.astype(dtype))
    assert_identical(sort_particles(np.load(tmp_path / "images.npy", mmap_mode="r")), sort_particles(exact))


@pytest.mark.parametrize(("n", "box"), [(1, 16), (1, 56), (49, 17), (60, 16)])
def test_small_sets_and_small_boxes(n, box):
    images = np.random.default_rng(4).normal(size=(n, box, box)).astype(np.float32)
    result = sort_particles(images)
    assert len(result.keep) == n
    assert np.isfinite(result.score).all()
    assert result.keep.all() or n >= 50


# What the images are made of.


@pytest.fixture(scope="module")
def by_subspaces(stack):
    return sort_particles(stack[0], method="subspaces")


def assert_same_subspaces(actual, expected):
    """Assert the same bits of what was learned."""
    for name in ("weights", "means", "loadings", "noise_variance", "keep"):
        np.testing.assert_array_equal(getattr(actual.model, name), getattr(expected.model, name), name)
    for name, values in expected.model.trace._asdict().items():
        np.testing.assert_array_equal(getattr(actual.model.trace, name), values, name)


def test_subspaces_tell_particles_from_junk(stack, by_subspaces):
    images, truth = stack
    assert area_under_curve(by_subspaces.score, truth.label) > 0.93
    assert by_subspaces.keep[truth.label].mean() > 0.85
    assert by_subspaces.keep[~truth.label].mean() < 0.2
    np.testing.assert_array_equal(by_subspaces.keep, by_subspaces.score <= by_subspaces.cut)
    np.testing.assert_array_equal(by_subspaces.keep, by_subspaces.reason == "valid")
    np.testing.assert_array_equal(by_subspaces.keep, by_subspaces.junk_probability <= 0.5)
    assert by_subspaces.contrast == "bright" and by_subspaces.diameter_estimated
    assert 0.5 * truth.diameter < by_subspaces.diameter * truth.pixel_size < 1.5 * truth.diameter
    assert np.isnan(by_subspaces.offset).all() and by_subspaces.offset.shape == (len(images), 2)
    assert set(by_subspaces.measurements) == {
        "factor",
        "log_likelihood",
        "excess",
        "pixel_mean",
        "pixel_std",
    }
    assert (by_subspaces.measurements["factor"] > 0).all()
    assert by_subspaces.subspaces.model.weights.sum() == pytest.approx(1)


def test_subspaces_of_other_methods_are_none(sorted_project):
    assert sorted_project.subspaces is None


@pytest.mark.parametrize("preset", ["default", "published"])
def test_subspaces_of_array_map_stack_and_star_are_the_same(stack, project, tmp_path, preset):
    images, truth = stack
    options = {"method": "subspaces", "preset": preset}
    expected = sort_particles(images, **options)
    np.save(tmp_path / "images.npy", images)
    with mrcfile.new(tmp_path / "particles.mrcs") as file:
        file.set_data(images)
        file.set_image_stack()
        file.voxel_size = truth.pixel_size
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for source in (mapped, tmp_path / "particles.mrcs"):
        found = sort_particles(source, **options)
        assert_identical(found, expected)
        assert_same_subspaces(found.subspaces, expected.subspaces)
    plain = sort_particles(project, phase_flip="no", **options)
    assert_identical(plain, expected)
    assert plain.diameter == pytest.approx(plain.diameter_px * truth.pixel_size, rel=1e-4, nan_ok=True)
    flipped = sort_particles(project, **options)
    assert flipped.phase_flipped and not np.array_equal(flipped.score, expected.score)


@pytest.mark.parametrize("preset", ["default", "published"])
def test_workers_do_not_change_bits_of_subspaces(stack, tmp_path, preset):
    # Three batches, one of them smaller.
    images = np.tile(stack[0], (4, 1, 1))[:1100, 10:46, 10:46]
    images += np.random.default_rng(6).normal(scale=0.5 * images.std(), size=images.shape)
    options = {"method": "subspaces", "preset": preset, "n_subspaces": 2, "n_components": 6}
    expected = sort_particles(images, n_jobs=1, **options)
    threads = sort_particles(images, n_jobs=2, **options)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        processes = sort_particles(images, **options)
    for found in (threads, processes):
        assert_identical(found, expected)
        assert_same_subspaces(found.subspaces, expected.subspaces)


@pytest.mark.parametrize("preset", ["default", "published"])
def test_images_that_subspaces_cannot_judge(stack, preset):
    images = stack[0].copy()
    images[0] = 0.1
    images[1, 3, 3] = np.nan
    images[2, 0, 0] = -np.inf
    images[3, 5, 5] += 200 * images.std()
    result = sort_particles(images, method="subspaces", preset=preset)
    np.testing.assert_array_equal(result.reason[:4], ["flat", "bad_pixels", "bad_pixels", "bad_pixels"])
    assert not result.keep[:4].any() and (result.junk_probability[:4] == 1).all()
    assert np.isinf(result.score[:4]).all() and np.isfinite(result.score[4:]).all()
    assert (result.measurements["factor"][:4] == np.inf).all()
    assert (result.measurements["log_likelihood"][:4] == -np.inf).all()
    assert np.isfinite(result.measurements["log_likelihood"][4:]).all()
    # They teach nothing either.
    rest = sort_particles(images[4:], method="subspaces", preset=preset)
    if preset == "default":
        np.testing.assert_allclose(result.score[4:], rest.score, rtol=1e-3, atol=1e-2)
    assert result.subspaces.model.trace.n_images[0] == rest.subspaces.model.trace.n_images[0]


@pytest.mark.parametrize("n", [2, 10, 49])
def test_few_images_are_all_kept_by_subspaces(stack, n):
    result = sort_particles(stack[0][:n], method="subspaces")
    assert result.keep.all() and np.isnan(result.cut) and np.isnan(result.junk_probability).all()
    assert np.isfinite(result.score).all()
    assert (result.reason == "valid").all()


def test_sixty_images_are_sorted_by_subspaces(stack):
    images, truth = stack
    chosen = np.concatenate([np.flatnonzero(truth.label)[:40], np.flatnonzero(~truth.label)[:20]])
    result = sort_particles(images[chosen], method="subspaces")
    assert np.isfinite(result.cut) and np.isfinite(result.score).all()
    assert area_under_curve(result.score, truth.label[chosen]) > 0.75


def test_one_image_is_kept_by_subspaces(stack):
    result = sort_particles(stack[0][:1], method="subspaces")
    assert result.keep.all() and (result.reason == "valid").all() and np.isnan(result.cut)
    assert len(result.subspaces.model.trace.n_images) == 0


@pytest.mark.parametrize("box", [16, 17, 33, 57])
def test_subspaces_of_small_and_odd_boxes(box):
    images, truth = simulate_particles(100, 100, snr=0.4, box=box, junk="noise", seed=3)
    result = sort_particles(images, method="subspaces")
    assert area_under_curve(result.score, truth.label) > 0.95
    assert result.keep[truth.label].mean() > 0.85 and result.keep[~truth.label].mean() < 0.15
    assert 0.2 * box < result.diameter_px <= box


def test_subspaces_of_only_junk():
    images = simulate_particles(0, 200, snr=0.1, box=36, junk="all", seed=4)[0]
    result = sort_particles(images, method="subspaces")
    assert np.isfinite(result.score).all() and np.isfinite(result.cut)
    np.testing.assert_array_equal(result.keep, result.score <= result.cut)
    # Nobody knows what was wanted, but not all of these look alike.
    assert result.keep.mean() < 0.75


@pytest.mark.parametrize("preset", ["default", "published"])
@pytest.mark.parametrize("factor", [-1.0, 2.0, 3e-5, 1e7], ids=str)
def test_scale_and_contrast_do_not_matter_to_subspaces(stack, preset, factor):
    images = stack[0]
    expected = sort_particles(images, method="subspaces", preset=preset)
    found = sort_particles(images * np.float32(factor), method="subspaces", preset=preset)
    np.testing.assert_array_equal(found.keep, expected.keep)
    np.testing.assert_array_equal(found.reason, expected.reason)
    for name in ("score", "junk_probability"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=2e-3)
    for name in ("log_likelihood", "excess"):
        actual, wanted = found.measurements[name], expected.measurements[name]
        np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=2e-3, err_msg=name)
    # An image that has next to nothing in the subspaces has a huge factor, which rounding changes: its
    # length in the subspaces over that beside them does not change.
    lengths = [1 / np.sqrt(result.measurements["factor"]) for result in (found, expected)]
    np.testing.assert_allclose(*lengths, atol=2e-5)
    if preset == "default":
        assert found.contrast == ("dark" if factor < 0 else "bright")
        assert found.diameter_px == pytest.approx(expected.diameter_px, rel=1e-3)


def test_offset_of_grey_values_does_not_matter_to_subspaces(stack, by_subspaces):
    found = sort_particles(stack[0] + np.float32(5), method="subspaces")
    np.testing.assert_array_equal(found.keep, by_subspaces.keep)
    np.testing.assert_allclose(found.score, by_subspaces.score, rtol=1e-3, atol=5e-3)


def test_seeds_of_subspaces(stack, by_subspaces):
    # All of so few images are learned from, whatever the seed.
    assert_identical(sort_particles(stack[0], method="subspaces", seed=1), by_subspaces)
    published = [
        sort_particles(stack[0], method="subspaces", preset="published", seed=seed) for seed in (0, 0, 1)
    ]
    assert_identical(published[1], published[0])
    assert not np.array_equal(published[2].score, published[0].score)


def test_order_of_images_does_not_matter_to_subspaces(stack, by_subspaces):
    order = np.random.default_rng(7).permutation(len(stack[0]))
    found = sort_particles(stack[0][order], method="subspaces")
    assert (found.keep != by_subspaces.keep[order]).mean() <= 0.01
    np.testing.assert_allclose(found.score, by_subspaces.score[order], rtol=1e-2, atol=2e-2)


def test_numbers_of_subspaces_are_those_asked_for(stack):
    result = sort_particles(stack[0], method="subspaces", n_subspaces=3, n_components=4)
    assert result.subspaces.model.loadings.shape[::2] == (3, 4)
    assert (result.parameters["n_subspaces"], result.parameters["n_components"]) == (3, 4)


def test_diameter_given_is_told_by_subspaces(stack, by_subspaces):
    images, truth = stack
    particles = open_particles(images, pixel_size=truth.pixel_size)
    result = sort_particles(particles, method="subspaces", diameter=truth.diameter)
    assert result.diameter == pytest.approx(truth.diameter) and not result.diameter_estimated
    assert np.corrcoef(result.score, by_subspaces.score)[0, 1] > 0.999


def test_published_subspaces_drop_a_twentieth(stack):
    result = sort_particles(stack[0], method="subspaces", preset="published")
    trace = result.subspaces.model.trace.n_images
    assert trace[0] == len(stack[0]) and set(trace) <= {300, 285, 271, 257, 244}
    assert result.keep.sum() < len(stack[0]) and np.isnan(result.cut)
    np.testing.assert_array_equal(result.score, result.measurements["factor"])
    np.testing.assert_array_equal(result.junk_probability, (~result.keep).astype(float))
    assert set(result.reason[~result.keep]) == {"noise"}


# The working folder.


@pytest.mark.parametrize("preset", ["default", "published"])
def test_working_folder_of_subspaces_is_empty_in_the_end(stack, tmp_path, preset):
    seen = []
    options = {"method": "subspaces", "preset": preset}
    result = sort_particles(
        stack[0], work=tmp_path, progress=lambda *_: seen.extend(tmp_path.rglob("*")), **options
    )
    assert "images" in {path.name for path in seen} and list(tmp_path.iterdir()) == []
    assert_identical(result, sort_particles(stack[0], **options))


def test_working_folder_is_empty_in_the_end(project, sorted_project, tmp_path):
    seen = []
    result = sort_particles(project, work=tmp_path, progress=lambda *_: seen.extend(tmp_path.rglob("images")))
    assert seen
    assert list(tmp_path.iterdir()) == []
    assert_identical(result, sorted_project)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("when", [0, -1])
def test_working_folder_is_empty_after_a_failure(stack, tmp_path, error, when):
    calls = []
    sort_particles(stack[0], progress=lambda *call: calls.append(call))
    fatal = calls[when]

    def stop_there(*call):
        if call == fatal:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        sort_particles(stack[0], work=tmp_path, n_jobs=2, progress=stop_there)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["radial", "subspaces"])
@pytest.mark.parametrize("preset", ["default", "published"])
@pytest.mark.parametrize("n", [10, 700])
def test_progress_rises_to_the_end(method, preset, n):
    images = np.random.default_rng(5).normal(size=(n, 64, 64)).astype(np.float32)
    calls = []
    options = {"method": method, "preset": preset, "n_jobs": 2}
    sort_particles(images, diameter=30, progress=lambda *call: calls.append(call), **options)
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert calls[-1] == (n, n)
    assert {total for _, total in calls} == {n}


# What cannot be.


def test_diameter_means_nothing_without_a_pixel_size(stack, tmp_path):
    with mrcfile.new(tmp_path / "particles.mrcs") as file:
        file.set_data(stack[0][:60])
        file.set_image_stack()
        file.voxel_size = 0
    assert math.isnan(sort_particles(tmp_path / "particles.mrcs").diameter)
    with pytest.raises(InputError, match="pixel size is unknown"):
        sort_particles(tmp_path / "particles.mrcs", diameter=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diameter": 57}, "larger box"),
        ({"diameter": 0}, "diameter"),
        ({"diameter": math.nan}, "diameter"),
        ({"diameter": "wide"}, "diameter"),
        ({"preset": "published"}, "diameter"),
        ({"preset": "publisht"}, "preset"),
        ({"method": "magic"}, "method"),
        ({"phase_flip": "maybe"}, "phase_flip"),
        ({"phase_flip": "yes"}, "no defocus"),
        ({"contrast": "grey"}, "contrast"),
        ({"working_size": 57}, "working size"),
        ({"working_size": 15}, "working_size"),
        ({"n_peaks": 0}, "n_peaks"),
        ({"n_subspaces": 2}, "n_subspaces does nothing"),
        ({"n_components": 2}, "n_components does nothing"),
        ({"method": "subspaces", "n_peaks": 2}, "n_peaks does nothing"),
        ({"method": "subspaces", "contrast": "dark"}, "contrast does nothing"),
        ({"method": "subspaces", "n_subspaces": 0}, "n_subspaces"),
        ({"method": "subspaces", "n_components": 0}, "n_components"),
        ({"method": "subspaces", "n_components": 1.5}, "n_components"),
        ({"method": "subspaces", "n_components": 9999}, "n_components"),
        ({"method": "subspaces", "n_subspaces": 61}, "n_subspaces"),
        ({"seed": -1}, "seed"),
        ({"work": "/no/such/folder"}, "work folder"),
    ],
    ids=str,
)
def test_impossible_wishes_are_told(stack, options, message):
    with pytest.raises(InputError, match=message):
        sort_particles(stack[0][:60], **options)


@pytest.mark.parametrize(
    "options", [{"preset": "publisht"}, {"contrast": "grey"}, {"n_peaks": 0}, {"seed": -1}], ids=str
)
def test_impossible_wishes_are_told_before_anything_is_read(stack, options):
    calls = []
    with pytest.raises(InputError):
        sort_particles(stack[0][:60], **options, progress=lambda *call: calls.append(call))
    assert calls == []


@pytest.mark.parametrize("shape", [(0, 32, 32), (32, 32), (3, 32, 33), (3, 8, 8)])
def test_what_is_no_stack_is_refused(shape):
    with pytest.raises(InputError):
        sort_particles(np.zeros(shape, dtype=np.float32))


# Where the particle lies.


def ball():
    offset = np.arange(48) - 24
    square = offset[:, None, None] ** 2 + offset[:, None] ** 2 + offset**2
    return np.exp(-square / (2 * 6**2)).astype(np.float32)


# Without noise to smooth it, the template of a structured particle follows its details, not its mass.
@pytest.mark.parametrize(
    ("volume", "snr", "centring", "correlation"), [("globular", 0.2, 0.05, 0.7), ("ball", 1.0, 0.02, 0.8)]
)
@pytest.mark.parametrize("box", [48, 72])
def test_offset_is_the_shift_in_input_pixels(box, volume, snr, centring, correlation):
    images, truth = simulate_particles(
        300,
        100,
        snr=snr,
        box=box,
        volume=ball() if volume == "ball" else volume,
        junk="noise",
        centring=centring,
        fill=0.5,
        seed=6,
    )
    result = sort_particles(images)
    good = truth.label & result.keep
    assert good.sum() > 150
    for axis in (0, 1):
        found, true = result.offset[good, axis], truth.shift[good, axis]
        assert np.corrcoef(found, true)[0, 1] > correlation
        # Rows are not columns, and pixels are those of the input.
        assert abs(np.corrcoef(found, truth.shift[good, 1 - axis])[0, 1]) < 0.3
        assert np.polyfit(true, found, 1)[0] == pytest.approx(1, abs=0.3)
        assert np.median(found - true) == pytest.approx(0, abs=0.01 * box)


def test_diameter_given_is_the_diameter_used(stack):
    images, truth = stack
    particles = open_particles(images, pixel_size=truth.pixel_size)
    result = sort_particles(particles, diameter=truth.diameter)
    assert not result.diameter_estimated
    assert result.diameter == pytest.approx(truth.diameter)
    assert result.diameter_px == pytest.approx(truth.diameter / truth.pixel_size)


# Real particles.


@pytest.mark.parametrize(
    ("name", "diameter", "least"),
    [("apoferritin_curated", 128, 0.97), ("apoferritin_picks", 128, 0.95), ("betagal_curated", 180, 0.93)],
)
@pytest.mark.parametrize("given", [True, False], ids=["diameter given", "diameter found"])
def test_real_particles(name, diameter, least, given):
    star = REAL / f"{name}.star"
    if not star.exists():
        pytest.skip(f"the real particles are not here: {star.parent.name}/{star.name}")
    with open(REAL / f"{name}_labels.csv", newline="") as file:
        labels = np.array([row["label"] for row in csv.DictReader(file)])
    result = sort_particles(star, diameter=diameter if given else None)
    certain = labels != "uncertain"
    assert len(labels) == len(result.score)
    assert area_under_curve(result.score[certain], labels[certain] == "good") >= least
