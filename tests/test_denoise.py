"""Denoising from beginning to end: `fastsort denoise`, and the calls behind it."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import scipy.fft

import fastsort as fs
from fastsort import cli
from fastsort._checks import InputError
from fastsort.denoise import METHODS, denoise_images, denoised_batches, learn_denoiser
from fastsort.images.ctf import contrast_transfer
from fastsort.particles.mrc import write_stack
from fastsort.particles.open import open_table
from fastsort.particles.star import read_star

BOX = 32
ONE_WORKER = ["--jobs", 1, "--quiet"]
# The fastest of all methods, where the method does not matter.
QUICK = ["--method", "wiener", *ONE_WORKER]
# Of the files of a finished run.
NAMES = {"denoised.mrcs", "denoised.star", "denoised.png", "summary.json"}
STAR_30 = (
    "\ndata_\n\nloop_\n_rlnMicrographName #1\n_rlnImageName #2\n_rlnDetectorPixelSize #3\n"
    "_rlnMagnification #4\n# a remark\n"
)


def call(*arguments):
    """Run the command in this process, which saves the imports."""
    try:
        return cli.main(list(map(str, arguments)))
    except SystemExit as stop:
        return stop.code


def simulated(n=80, snr=0.3, seed=1, box=BOX, noise="white", **more):
    """Return noisy images, the clean ones and the truth."""
    more = {"noise": noise, "snr_definition": "power", "box": box, "seed": seed, **more}
    images, truth = fs.simulate_particles(n, 0, snr=snr, **more)
    clean, same = fs.simulate_particles(n, 0, snr=math.inf, **{**more, "ctf": False})
    np.testing.assert_array_equal(truth.rotation, same.rotation)
    return images, clean, truth


def disk(box):
    offset = np.arange(box) - box // 2
    return np.hypot(offset[:, None], offset) <= box / 2


def error_of(images, clean):
    """Return the mean square error inside the disk in parts of the clean images' power."""
    inside = disk(clean.shape[1])
    return float(((images - clean)[:, inside] ** 2).mean() / (clean[:, inside] ** 2).mean())


def correlations(images, clean):
    """Return the correlation of each image with its clean one, inside the disk."""
    inside = disk(clean.shape[1])
    one, other = (some[:, inside] - some[:, inside].mean(axis=1, keepdims=True) for some in (images, clean))
    return (one * other).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))


def stack(path):
    with mrcfile.open(path) as file:
        return np.array(file.data)


def save(path, images, pixel_size=2.5):
    write_stack(path, [np.asarray(images, np.float32)], pixel_size, len(images), images.shape[1])
    return path


def everything(folder):
    """Return the bytes of all files below a folder."""
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def image_names(star):
    return read_star(star).particles_block.column("_rlnImageName")


def without_names(path, names):
    """Return the text of a table with a placeholder for each of the names, which stand there once each."""
    text = Path(path).read_text()
    for name in names:
        assert text.count(name) == 1
        text = text.replace(name, "NAME")
    return text


def one_line(capsys, *words):
    """Assert that the error stream holds one line of the command, with some words in it."""
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("fastsort: error: "), message
    for word in words:
        assert word in message, message


@pytest.fixture(scope="module")
def white():
    return simulated()


@pytest.fixture(scope="module")
def source(white, tmp_path_factory):
    """A project of RELION 3.1; no test may change it."""
    images, _, truth = white
    return fs.write_project(tmp_path_factory.mktemp("source") / "project", images, truth)


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("run") / "denoised"
    assert call("denoise", source, "-o", folder, *QUICK) == 0
    return folder


@pytest.fixture(scope="module")
def optics():
    """Images with a contrast transfer function that has zeros."""
    return simulated(120, 0.5, 4, 48, ctf=True, pixel_size=4.0, fill=0.6)


@pytest.fixture(scope="module")
def optics_star(optics, tmp_path_factory):
    images, _, truth = optics
    return fs.write_project(tmp_path_factory.mktemp("optics") / "project", images, truth)


@pytest.fixture
def picture():
    """Asked for by tests that need the picture; it takes longer than the rest."""


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch):
    if "picture" not in request.fixturenames:
        monkeypatch.setattr("fastsort.report.denoised.draw_denoised", lambda path, *_: path.touch())


@pytest.fixture
def small(white, tmp_path):
    """A bare stack of a few images."""
    return save(tmp_path / "small.mrcs", white[0][:60])


# The files.


def test_results_are_these_files_and_nothing_is_left_beside_them(finished):
    assert {file.name for file in finished.iterdir()} == NAMES
    assert [file.name for file in finished.parent.iterdir()] == ["denoised"]


def test_star_file_differs_in_names_alone(source, finished, white):
    n = len(white[0])
    named = image_names(finished / "denoised.star")
    assert named == [f"{number:06d}@{finished}/denoised.mrcs" for number in range(1, n + 1)]
    old = image_names(source)
    assert without_names(source, old) == without_names(finished / "denoised.star", named)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_old_star_file_in_any_order_with_remarks(white, tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.mrcs", white[0][:30])
    save(tmp_path / "b.mrcs", white[0][30:60])
    order = np.random.default_rng(3).permutation(60)
    named = [f"{row % 30 + 1}@{'ab'[row // 30]}.mrcs" for row in order.tolist()]
    rows = [f"mics/m{row}.mrc   {name}\t5.000000  20000.0 " for row, name in enumerate(named)]
    text = STAR_30 + "\n".join([*rows[:7], "# between", "", *rows[7:], "", "# the end"]) + "\n"
    Path("in.star").write_bytes(text.replace("\n", ending).encode())

    assert call("denoise", "in.star", "-o", "some/out", *QUICK) == 0

    expected = text
    for number, name in enumerate(named, 1):
        old, new = f" {name}\t", f" {number:06d}@some/out/denoised.mrcs\t"
        assert expected.count(old) == 1
        expected = expected.replace(old, new)
    assert Path("some/out/denoised.star").read_bytes() == expected.replace("\n", ending).encode()
    # In the order of the table, not of the stacks.
    np.testing.assert_array_equal(
        fs.open_particles("some/out/denoised.star").read(0, 60),
        denoise_images(white[0][:60][order], method="wiener"),
    )
    assert fs.open_particles("some/out/denoised.star").pixel_size == pytest.approx(2.5)


@pytest.mark.parametrize("given", ["out", "out/", "./out", "deep/in/out"])
def test_stack_is_named_under_the_folder_as_it_was_given(source, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    assert call("denoise", source, "-o", given, *QUICK) == 0
    [name] = {name.partition("@")[2] for name in image_names(f"{given}/denoised.star")}
    assert name in (f"{given.rstrip('/')}/denoised.mrcs", f"{Path(given)}/denoised.mrcs")
    assert len(fs.open_particles(f"{given}/denoised.star")) == 80


def test_file_holds_what_the_function_returns(source, finished, white):
    particles = fs.open_particles(finished / "denoised.star")
    pixels = particles.read(0, len(particles))
    np.testing.assert_array_equal(pixels, stack(finished / "denoised.mrcs"))
    np.testing.assert_array_equal(pixels, denoise_images(white[0], method="wiener"))
    np.testing.assert_array_equal(pixels, denoise_images(source, method="wiener"))


def test_box_pixel_size_and_number_stay(source, finished):
    before = fs.open_particles(source)
    for name in ("denoised.star", "denoised.mrcs"):
        after = fs.open_particles(finished / name)
        assert (len(after), after.box) == (len(before), before.box)
        assert after.pixel_size == pytest.approx(before.pixel_size, rel=1e-6)
    with mrcfile.open(finished / "denoised.mrcs") as file:
        pixels = file.data
        assert file.is_image_stack() and file.header.mode == 2
        assert float(file.header.dmin) == pixels.min() and float(file.header.dmax) == pixels.max()
        assert float(file.header.dmean) == pytest.approx(pixels.mean(dtype=float), abs=1e-6)
        assert float(file.header.rms) == pytest.approx(pixels.std(dtype=float), rel=1e-5)


def test_bare_stack_gives_no_table(small, tmp_path):
    assert call("denoise", small, "-o", tmp_path / "out", *QUICK, "--pixel-size", 3.25) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == NAMES - {"denoised.star"}
    assert fs.open_particles(tmp_path / "out" / "denoised.mrcs").pixel_size == pytest.approx(3.25)
    assert summary(tmp_path / "out")["pixel_size"] == 3.25


def test_half_precision(source, finished, tmp_path):
    assert call("denoise", source, "-o", tmp_path / "half", "--float16", *QUICK) == 0
    whole, half = stack(finished / "denoised.mrcs"), stack(tmp_path / "half" / "denoised.mrcs")
    assert half.dtype == np.float16
    with mrcfile.open(tmp_path / "half" / "denoised.mrcs", header_only=True) as file:
        assert file.header.mode == 12
    np.testing.assert_array_equal(half, whole.astype(np.float16))
    sizes = [(folder / "denoised.mrcs").stat().st_size - 1024 for folder in (tmp_path / "half", finished)]
    assert 2 * sizes[0] == sizes[1]
    particles = fs.open_particles(tmp_path / "half" / "denoised.star")
    np.testing.assert_allclose(particles.read(0, 80), whole, rtol=2.0**-11, atol=1e-7)


def test_half_precision_beyond_its_range(white, tmp_path):
    save(tmp_path / "in.mrcs", white[0][:60] * np.float32(1e5))
    assert call("denoise", tmp_path / "in.mrcs", "-o", tmp_path / "out", "--float16", *QUICK) == 0
    pixels = stack(tmp_path / "out" / "denoised.mrcs")
    assert np.isfinite(pixels).all() and pixels.max() == np.finfo(np.float16).max


def test_write_stack_with_half_precision_writes_block_after_block(tmp_path):
    images = np.random.default_rng(0).normal(size=(5, 16, 16)).astype(np.float32)
    write_stack(tmp_path / "a.mrcs", [images[:2], images[2:]], 1.5, 5, 16, half=True)
    np.testing.assert_array_equal(stack(tmp_path / "a.mrcs"), images.astype(np.float16))
    with mrcfile.open(tmp_path / "a.mrcs") as file:
        stored = file.data.astype(float)
        assert float(file.header.dmean) == pytest.approx(stored.mean(), abs=1e-6)
        assert float(file.header.rms) == pytest.approx(stored.std(), rel=1e-5)
    with pytest.raises(ValueError, match="6 were promised"):
        write_stack(tmp_path / "b.mrcs", [images], 1.5, 6, 16, half=True)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mrcs"]


def test_output_folder_with_a_blank(source, tmp_path, capsys):
    """Either the table names the stack, or one line says that it cannot."""
    code = call("denoise", source, "-o", tmp_path / "my results", *QUICK)
    if code == 1:
        one_line(capsys, "my results")
    else:
        assert len(fs.open_particles(tmp_path / "my results" / "denoised.star")) == 80


@pytest.mark.parametrize(
    "kind",
    [
        "star",
        "cs",
    ],
)
def test_output_folder_whose_name_is_no_text(source, white, tmp_path, kind):
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9sultats"))
    path = source if kind == "star" else write_rows(tmp_path / "in.cs", dataset(tmp_path, white[0][:60])[0])
    assert call("denoise", path, "-o", out, *QUICK) == 0
    expected = denoise_images(source if kind == "star" else str(path), method="wiener")
    np.testing.assert_array_equal(
        fs.open_particles(out / f"denoised.{kind}").read(0, len(expected)), expected
    )


# Datasets of cryoSPARC.


BLOB = [("blob/path", "S60"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4")]
SIGN = [("blob/sign", "<f4")]


def dataset(folder, images, signs=None, extra=()):
    """Write images as two stacks and a dataset that names them in another order; return its rows."""
    half = len(images) // 2
    folder.mkdir(exist_ok=True)
    save(folder / "a.mrcs", images[:half])
    save(folder / "b.mrcs", images[half:])
    order = np.random.default_rng(8).permutation(len(images))
    rows = np.zeros(
        len(images), [("uid", "<u8"), *BLOB, *(SIGN if signs is not None else []), ("score", "<f4"), *extra]
    )
    rows["uid"] = 1000 + np.arange(len(images))
    rows["blob/path"] = np.where(order < half, b"a.mrcs", b"b.mrcs")
    rows["blob/idx"] = np.where(order < half, order, order - half)
    rows["blob/shape"], rows["blob/psize_A"] = images.shape[1], 2.5
    rows["score"] = np.random.default_rng(9).normal(size=len(images))
    if signs is not None:
        rows["blob/sign"] = signs
    return rows, order


def write_rows(path, rows):
    with open(path, "wb") as file:
        np.save(file, rows)
    return path


@pytest.mark.parametrize("sign", [None, 1, -1])
def test_dataset_of_cryosparc(white, tmp_path, monkeypatch, sign):
    monkeypatch.chdir(tmp_path)
    rows, order = dataset(tmp_path / "job", white[0][:60], sign)
    path = write_rows(tmp_path / "job" / "in.cs", rows)
    assert call("denoise", path, "-o", "out", *QUICK) == 0
    assert {file.name for file in Path("out").iterdir()} == NAMES - {"denoised.star"} | {"denoised.cs"}

    after = fs.open_particles("out/denoised.cs")
    pixels = after.read(0, 60)
    np.testing.assert_array_equal(pixels, stack("out/denoised.mrcs"))
    np.testing.assert_array_equal(pixels, denoise_images(str(path), method="wiener"))
    # As bright as they are shown: the sign is in the pixels, and not applied again.
    shown = white[0][:60][order] * np.float32(sign or 1)
    assert (correlations(pixels, shown) > 0.3).all()
    assert after.pixel_size == pytest.approx(2.5)

    new = np.load("out/denoised.cs")
    assert set(new["blob/path"].tolist()) == {b"out/denoised.mrcs"}
    np.testing.assert_array_equal(new["blob/idx"], np.arange(60))
    assert new.dtype.names == rows.dtype.names
    for name in ("uid", "blob/shape", "blob/psize_A", "score"):
        np.testing.assert_array_equal(new[name], rows[name])
    if sign is not None:
        assert (new["blob/sign"] == 1).all()


def test_dataset_whose_images_stand_in_the_passthrough_file(white, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, _ = dataset(tmp_path, white[0][:60], -1)
    write_rows(Path("rest.cs"), rows[::-1].copy())
    main = np.zeros(60, [("uid", "<u8"), ("score", "<f4")])
    main["uid"], main["score"] = rows["uid"], rows["score"]
    write_rows(Path("main.cs"), main)
    assert call("denoise", "main.cs", "--passthrough", "rest.cs", "-o", "out", *QUICK) == 0
    expected = denoise_images(fs.open_particles("main.cs", passthrough="rest.cs"), method="wiener")
    again = fs.open_particles("out/denoised.cs")
    np.testing.assert_array_equal(again.read(0, 60), expected)
    beside = fs.open_particles("out/denoised.cs", passthrough="out/denoised_passthrough.cs")
    np.testing.assert_array_equal(beside.read(0, 60), expected)


def test_naming_of_tables(source, white, tmp_path):
    assert open_table(save(tmp_path / "a.mrcs", white[0][:3])).naming("x.mrcs") is None
    added = open_table(source).naming("here/x.mrcs")
    assert added.fields == {} and list(added.labels) == ["_rlnImageName"]
    assert added.labels["_rlnImageName"][::79] == ["000001@here/x.mrcs", "000080@here/x.mrcs"]


# What is denoised, and how well.


@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_the_error(white, source, tmp_path, method):
    images, clean, _ = white
    assert call("denoise", source, "-o", tmp_path / "out", "--method", method, *ONE_WORKER) == 0
    told = summary(tmp_path / "out")
    assert told["method"] == method and list(told["compared"]) == [method]
    after = error_of(stack(tmp_path / "out" / "denoised.mrcs"), clean)
    assert after < 0.35 * error_of(images - np.median(images), clean)
    assert np.median(correlations(stack(tmp_path / "out" / "denoised.mrcs"), clean)) > 0.9


def test_default_method_is_the_one_with_the_least_predicted_error(white, source, tmp_path):
    assert call("denoise", source, "-o", tmp_path / "out", *ONE_WORKER) == 0
    told = summary(tmp_path / "out")
    assert {"wiener", "covariance", "neighbours", "bm3d"} == set(told["compared"])
    assert told["predicted_error"] == told["compared"][told["method"]] == min(told["compared"].values())
    np.testing.assert_array_equal(
        stack(tmp_path / "out" / "denoised.mrcs"), denoise_images(white[0], method=told["method"])
    )


@pytest.mark.parametrize(("snr", "volume"), [(0.05, "globular"), (0.3, "two-lobed"), (0.1, "elongated")])
def test_predicted_error_is_the_true_one(snr, volume):
    images, clean, _ = simulated(200, snr, 11, BOX, volume=volume)
    wrong = {}
    for method in ("wiener", "covariance", "neighbours", "bm3d"):
        particles = fs.open_particles(images if method != "bm3d" else images[:60])
        denoiser = learn_denoiser(particles, method=method)
        true = error_of(np.concatenate([*denoised_batches(particles, denoiser)]), clean[: len(particles)])
        if not abs(denoiser.error - true) <= max(0.25 * true, 0.03, 3 * denoiser.doubt):
            wrong[method] = denoiser.error, true
    assert not wrong


def test_signal_to_noise_and_noise_are_those_of_the_images(white):
    images, clean, _ = white
    denoiser = learn_denoiser(fs.open_particles(images), method="wiener")
    noise = (images - clean).var(dtype=float)
    assert denoiser.noise_power == pytest.approx(noise, rel=0.03)
    assert denoiser.snr == pytest.approx((clean**2).mean(dtype=float) / noise, rel=0.15)


@pytest.mark.parametrize("method", ["wiener", "covariance", "neighbours", "bm3d"])
def test_dark_particles_stay_dark(white, method):
    images, clean, _ = white
    images, clean = images[:40], clean[:40]
    bright = denoise_images(images, method=method)
    dark = denoise_images(-images, method=method)
    assert (correlations(dark, -clean) > 0.5).all()
    assert np.square(dark + bright).mean() < 0.02 * np.square(bright).mean()


def test_unit_of_the_images(white):
    images = white[0]
    one, other = (denoise_images(some, method="wiener") for some in (images, 300 * images))
    np.testing.assert_allclose(other / 300, one, atol=1e-4)


@pytest.mark.parametrize("method", ["wiener", "covariance", "neighbours"])
@pytest.mark.parametrize("level", [5, 1000])
def test_background_of_the_images_does_not_matter(white, method, level):
    images, clean, _ = white
    one, other = (
        learn_denoiser(fs.open_particles(some), method=method)
        for some in (images, images + np.float32(level))
    )
    assert other.noise_power == pytest.approx(one.noise_power, rel=0.05)
    assert other.snr == pytest.approx(one.snr, rel=0.05)
    assert other.error == pytest.approx(one.error, rel=0.1)
    denoised = denoise_images(images + np.float32(level), method=method)
    assert error_of(denoised, clean) < 1.2 * error_of(denoise_images(images, method=method), clean)


def test_other_noise_than_white():
    images, clean, _ = simulated(120, 0.3, 5, BOX, noise="decaying")
    for method in ("wiener", "covariance", "total_variation"):
        denoised = denoise_images(images, method=method)
        assert error_of(denoised, clean) < 0.6 * error_of(images, clean)


# The contrast transfer function.


@pytest.mark.parametrize("method", ["wiener", "covariance", "neighbours", "total_variation"])
def test_contrast_transfer_is_corrected(optics, optics_star, tmp_path, method):
    images, clean, truth = optics
    transfer = contrast_transfer(truth.ctf, 48, truth.pixel_size)
    assert (transfer < -0.3).mean() > 0.1  # else nothing had to be corrected
    assert call("denoise", optics_star, "-o", tmp_path / "out", "--method", method, *ONE_WORKER) == 0
    assert summary(tmp_path / "out")["ctf_corrected"] is True
    denoised = stack(tmp_path / "out" / "denoised.mrcs")
    before, after = correlations(images, clean), correlations(denoised, clean)
    assert np.median(after) > max(0.7, 1.5 * np.median(before))
    assert (after > before).mean() > 0.95
    # In the same frequencies where the sign was reversed, it no longer is.
    reversed_ = transfer < -0.5
    one, other = scipy.fft.rfft2(denoised), scipy.fft.rfft2(clean)
    assert (one * other.conj()).real[reversed_].sum() > 0


def without_ctf(star, path):
    """Copy a table beside itself without the column of defocus."""
    text = Path(star).read_text()
    path = Path(star).with_name(path)
    path.write_text(text.replace("_rlnDefocusU", "_rlnDefocusX"))
    return path


def test_without_defocus_nothing_is_corrected(optics_star, optics, tmp_path):
    star = Path(shutil.copytree(optics_star.parent, tmp_path / "project")) / optics_star.name
    assert call("denoise", without_ctf(star, "no.star"), "-o", tmp_path / "out", *QUICK) == 0
    assert summary(tmp_path / "out")["ctf_corrected"] is False
    denoised = stack(tmp_path / "out" / "denoised.mrcs")
    np.testing.assert_array_equal(denoised, denoise_images(optics[0], method="wiener"))


@pytest.mark.parametrize("method", ["wiener", "covariance", "tight_frame", "total_variation"])
def test_predicted_error_with_contrast_transfer(optics, optics_star, method):
    images, clean, truth = optics
    transfer = contrast_transfer(truth.ctf, 48, truth.pixel_size)
    seen = scipy.fft.irfft2(scipy.fft.rfft2(clean) * transfer, s=(48, 48))
    # The simulation scales what is seen, with and without the transfer.
    clean = clean * ((seen * images).sum() / (seen**2).sum())
    particles = fs.open_particles(optics_star)
    denoiser = learn_denoiser(particles, method=method)
    true = error_of(np.concatenate([*denoised_batches(particles, denoiser)]), clean)
    assert true < 0.2
    assert abs(denoiser.error - true) <= 3 * denoiser.doubt <= 0.3


PER_IMAGE = ("label", "kind", "shift", "angle", "rotation", "micrograph")


def flag_optics(star, label, value="1"):
    """Add a column to the optics table of a project."""
    head, _, tail = star.read_text().partition("data_particles")
    lines = head.rstrip().split("\n")
    last = max(number for number, line in enumerate(lines) if line.startswith("_rln"))
    row = max(number for number, line in enumerate(lines) if line.startswith("opticsGroup1"))
    lines[row] += f" {value}"
    lines.insert(last + 1, f"{label} #{sum(line.startswith('_rln') for line in lines) + 1}")
    star.write_text("\n".join(lines) + "\n\n\ndata_particles" + tail)
    return star


def test_contrast_transfer_is_corrected_by_patches(optics, tmp_path):
    images, clean, truth = optics
    few = truth._replace(
        ctf=truth.ctf.of(slice(30)), **{name: getattr(truth, name)[:30] for name in PER_IMAGE}
    )
    star = fs.write_project(tmp_path / "in", images[:30], few)
    before, after = (
        correlations(some, clean[:30]) for some in (images[:30], denoise_images(star, method="bm3d"))
    )
    assert np.median(after) > max(0.7, 1.4 * np.median(before))


@pytest.mark.parametrize("method", ["wiener", "covariance", "total_variation"])
def test_flipped_phases_are_taken_into_account(optics, optics_star, tmp_path, method):
    images, _, truth = optics
    flipped = fs.phase_flip(images, truth.ctf, truth.pixel_size)
    star = flag_optics(fs.write_project(tmp_path / "flipped", flipped, truth), "_rlnCtfDataArePhaseFlipped")
    assert fs.open_particles(star).corrected.all()
    one, other = (denoise_images(path, method=method) for path in (optics_star, star))
    assert np.square(one - other).mean() < 1e-3 * np.square(one).mean()
    # The mark matters.
    unmarked = denoise_images(fs.write_project(tmp_path / "no", flipped, truth), method=method)
    assert np.square(one - unmarked).mean() > 0.003 * np.square(one).mean()


def test_mark_that_says_no_changes_nothing(optics, optics_star, tmp_path):
    star = fs.write_project(tmp_path / "same", optics[0], optics[2])
    flag_optics(star, "_rlnCtfDataArePhaseFlipped", "0")
    one, other = (denoise_images(path, method="wiener") for path in (optics_star, star))
    np.testing.assert_array_equal(one, other)


def test_images_multiplied_with_their_ctf_are_refused(optics, tmp_path, capsys):
    star = fs.write_project(tmp_path / "in", optics[0], optics[2])
    flag_optics(star, "_rlnCtfDataAreCtfPremultiplied")
    assert call("denoise", star, "-o", tmp_path / "out", *QUICK) == 1
    one_line(capsys, "multiplied with their contrast transfer function", "extract them")
    assert [file.name for file in tmp_path.iterdir()] == ["in"]
    with pytest.raises(InputError, match="multiplied"):
        denoise_images(star)


def test_several_boxes_are_refused(white, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save("a.mrcs", white[0][:30], 2.5)
    save("b.mrcs", white[0][30:60, 4:28, 4:28], 2.5)
    rows = [f"m.mrc {number}@{name}.mrcs 5 20000" for name in "ab" for number in range(1, 31)]
    Path("in.star").write_text(STAR_30 + "\n".join(rows) + "\n")
    assert call("denoise", "in.star", "-o", "out", *QUICK) == 1
    one_line(capsys, "several boxes", "denoise them apart")
    assert not Path("out").exists()


# Images that are no ordinary ones.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["wiener", "covariance", "neighbours", "bm3d", "total_variation"])
def test_images_with_bad_pixels_stay_and_others_do_not_care(white, method, value):
    images = white[0][:40].copy()
    images[7, 10, 12] = images[31, 16] = value
    denoised = denoise_images(images, method=method)
    np.testing.assert_array_equal(denoised[[7, 31]], images[[7, 31]])
    others = np.delete(np.arange(40), [7, 31])
    assert np.isfinite(denoised[others]).all()
    assert error_of(denoised[others], white[1][others]) < 0.35 * error_of(images[others], white[1][others])


@pytest.mark.parametrize(
    "value",
    [
        np.nan,
        np.inf,
    ],
)
def test_images_with_bad_pixels_are_named(white, tmp_path, capsys, picture, value):
    images = white[0][:60].copy()
    images[7, 10, 12] = images[31, 16] = value
    path = save_any(tmp_path / "in.mrcs", images)
    assert call("denoise", path, "-o", tmp_path / "out", "--method", "wiener", "--jobs", 1) == 0
    np.testing.assert_array_equal(stack(tmp_path / "out" / "denoised.mrcs")[[7, 31]], images[[7, 31]])
    names = ["000008@in.mrcs", "000032@in.mrcs"]
    assert summary(tmp_path / "out")["left_as_they_were"] == names
    out = capsys.readouterr().out
    assert all(name in out for name in names) and "no numbers" in out
    assert picture_size(tmp_path / "out" / "denoised.png")[0] == 1600


def save_any(path, images, pixel_size=2.5):
    """Write a stack without statistics, which warn of NaN."""
    save(path, np.zeros_like(images), pixel_size)
    with open(path, "r+b") as file:
        file.seek(1024)
        file.write(np.ascontiguousarray(images, "<f4").tobytes())
    return path


def test_bad_pixel_in_the_corner_is_named_too(white, tmp_path):
    images = white[0][:60].copy()
    images[7, 0, 0] = np.nan
    path = save_any(tmp_path / "in.mrcs", images)
    assert call("denoise", path, "-o", tmp_path / "out", *QUICK) == 0
    np.testing.assert_array_equal(stack(tmp_path / "out" / "denoised.mrcs")[7], images[7])
    assert summary(tmp_path / "out")["left_as_they_were"] == ["000008@in.mrcs"]


def test_flipped_image_with_a_bad_pixel_stays(optics, tmp_path):
    images, _, truth = optics
    images = fs.phase_flip(images, truth.ctf, truth.pixel_size)
    images[5, 24, 24] = np.nan
    star = fs.write_project(tmp_path / "in", np.nan_to_num(images), truth)
    first = int((truth.micrograph[:6] == truth.micrograph[5]).argmax())
    path = tmp_path / "in" / "Extract" / f"micrograph_{truth.micrograph[5]:04d}.mrcs"
    with open(path, "r+b") as file:
        file.seek(1024 + 4 * 48 * 48 * (5 - first))
        file.write(images[5].tobytes())
    flag_optics(star, "_rlnCtfDataArePhaseFlipped")
    np.testing.assert_array_equal(fs.open_particles(star).read(0, 120), images)
    denoised = denoise_images(star, method="wiener")
    np.testing.assert_array_equal(denoised[5], images[5])


def test_header_of_a_stack_with_bad_pixels_holds_numbers(white, tmp_path):
    images = white[0][:60].copy()
    images[7, 16, 16] = np.nan
    path = save_any(tmp_path / "in.mrcs", images)
    assert call("denoise", path, "-o", tmp_path / "out", *QUICK) == 0
    with mrcfile.open(tmp_path / "out" / "denoised.mrcs", header_only=True) as file:
        numbers = [float(file.header[name]) for name in ("dmin", "dmax", "dmean", "rms")]
    assert np.isfinite(numbers).all(), numbers


def test_infinite_pixel_in_half_precision_stays(white, tmp_path):
    images = white[0][:60].copy()
    images[7, 16, 16] = np.inf
    path = save_any(tmp_path / "in.mrcs", images)
    assert call("denoise", path, "-o", tmp_path / "out", *QUICK, "--float16") == 0
    assert summary(tmp_path / "out")["left_as_they_were"] == ["000008@in.mrcs"]
    assert stack(tmp_path / "out" / "denoised.mrcs")[7, 16, 16] == np.inf


@pytest.mark.parametrize("method", [None, *METHODS])
def test_flat_images_alone(tmp_path, method, level=7.5):
    path = save(tmp_path / "in.mrcs", np.full((20, 24, 24), level))
    chosen = [] if method is None else ["--method", method]
    assert call("denoise", path, "-o", tmp_path / "out", *chosen, *ONE_WORKER) == 0
    assert np.abs(stack(tmp_path / "out" / "denoised.mrcs")).max() < 1e-3
    assert summary(tmp_path / "out")["left_as_they_were"] == []
    assert_finite_or_null(summary(tmp_path / "out"))


@pytest.mark.parametrize(
    "method",
    [None, *METHODS],
)
def test_images_without_numbers_alone(tmp_path, method):
    images = np.full((20, 24, 24), np.nan, np.float32)
    path = save_any(tmp_path / "in.mrcs", images)
    chosen = [] if method is None else ["--method", method]
    assert call("denoise", path, "-o", tmp_path / "out", *chosen, *ONE_WORKER) == 0
    np.testing.assert_array_equal(stack(tmp_path / "out" / "denoised.mrcs"), images)
    assert len(summary(tmp_path / "out")["left_as_they_were"]) == 20
    assert_finite_or_null(summary(tmp_path / "out"))


def test_flat_image_among_others(white, tmp_path):
    images = white[0][:60].copy()
    images[3] = 0
    for method in ("wiener", "covariance", "neighbours", "total_variation"):
        denoised = denoise_images(images, method=method)
        assert np.isfinite(denoised).all()
        assert np.square(denoised[3]).mean() < 0.1 * np.square(denoised).mean()


@pytest.mark.parametrize("method", [None, *METHODS])
def test_one_image(white, tmp_path, method):
    path = save(tmp_path / "in.mrcs", white[0][:1])
    chosen = [] if method is None else ["--method", method]
    assert call("denoise", path, "-o", tmp_path / "out", *chosen, *ONE_WORKER) == 0
    [denoised] = stack(tmp_path / "out" / "denoised.mrcs").reshape(-1, BOX, BOX)
    assert np.isfinite(denoised).all()
    assert error_of(denoised[None], white[1][:1]) < error_of(white[0][:1], white[1][:1])
    assert fs.open_particles(tmp_path / "out" / "denoised.mrcs").box == BOX
    assert_finite_or_null(summary(tmp_path / "out"))


@pytest.mark.parametrize("box", [16, 25])
@pytest.mark.parametrize("method", METHODS)
def test_smallest_and_odd_boxes(method, box):
    images, clean, _ = simulated(60, 0.3, 2, box)
    denoised = denoise_images(images, method=method)
    assert error_of(denoised, clean) < 0.6 * error_of(images, clean)


# The same bits, and nothing else changed.


@pytest.mark.parametrize("method", ["wiener", "covariance", "neighbours", "total_variation"])
def test_same_bits_for_any_number_of_workers(tmp_path, monkeypatch, method):
    monkeypatch.setattr("fastsort.images.batches.default_batch_size", lambda _: 30)
    images, _, truth = simulated(130, 0.2, 6, 24)
    star = fs.write_project(tmp_path / "in", images, truth)
    folders = [tmp_path / name for name in ("one", "two", "again")]
    for folder, jobs in zip(folders, (1, 2, 1), strict=True):
        assert call("denoise", star, "-o", folder, "--method", method, "--jobs", jobs, "--quiet") == 0
    first, *others = ((folder / "denoised.mrcs").read_bytes() for folder in folders)
    assert all(other == first for other in others)
    one, *others = (
        {k: v for k, v in summary(folder).items() if k not in ("seconds", "input")} for folder in folders
    )
    assert all(other == one for other in others)


def test_seed_reaches_what_is_learned(small, tmp_path):
    for seed in (0, 0, 1):
        args = ["--method", "wiener", "--seed", seed, "--overwrite", *ONE_WORKER]
        assert call("denoise", small, "-o", tmp_path / f"out{seed}", *args) == 0
    one, other = (summary(tmp_path / f"out{seed}")["predicted_error"] for seed in (0, 1))
    assert one != other and one == pytest.approx(other, abs=0.06)


def test_input_stays_as_it_is(white, tmp_path):
    star = fs.write_project(tmp_path / "in", white[0], white[2])
    before = everything(tmp_path / "in")
    assert call("denoise", star, "-o", tmp_path / "out", "--method", "neighbours", *ONE_WORKER) == 0
    assert everything(tmp_path / "in") == before


@pytest.mark.parametrize("method", METHODS)
def test_arrays_are_not_changed(white, method):
    images = white[0][:40].copy()
    images.flags.writeable = False
    denoised = denoise_images(images, method=method)
    np.testing.assert_array_equal(images, white[0][:40])
    assert not np.shares_memory(denoised, images)


def test_progress_counts_to_the_end(white):
    seen = []
    denoise_images(white[0], method="wiener", progress=lambda *numbers: seen.append(numbers))
    assert seen[-1] == (80, 80) and seen == sorted(seen)


# Folders.


def test_folder_with_results_needs_overwrite(small, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("denoise", small, "-o", out, *QUICK) == 0
    before = everything(out)
    capsys.readouterr()
    assert call("denoise", small, "-o", out, "--method", "covariance", *ONE_WORKER) == 1
    one_line(capsys, "not empty", "--overwrite")
    assert everything(out) == before
    assert call("denoise", small, "-o", out, "--method", "covariance", *ONE_WORKER, "--overwrite") == 0
    assert summary(out)["method"] == "covariance"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "small.mrcs"]


def test_empty_folder_may_be_used(small, tmp_path):
    (tmp_path / "out").mkdir()
    assert call("denoise", small, "-o", tmp_path / "out", *QUICK) == 0
    assert (tmp_path / "out" / "denoised.mrcs").is_file()


@pytest.mark.parametrize("also_results", [False, True])
def test_folder_with_other_files_is_not_touched(small, finished, tmp_path, capsys, also_results):
    out = tmp_path / "out"
    if also_results:
        shutil.copytree(finished, out)
    out.mkdir(exist_ok=True)
    (out / "thesis.txt").write_text("years of work")
    before = everything(out)
    assert call("denoise", small, "-o", out, *QUICK, "--overwrite") == 1
    one_line(capsys, "thesis.txt", "did not write")
    assert everything(out) == before


def test_input_in_the_folder_is_not_replaced(finished, tmp_path, capsys):
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    before = everything(out)
    assert call("denoise", out / "denoised.mrcs", "-o", out, *QUICK, "--overwrite") == 1
    one_line(capsys, "lies in the output folder")
    assert everything(out) == before


STOPS = {
    "key": (KeyboardInterrupt(), 130),
    "disk": (OSError(28, "No space left on device"), 1),
    "defect": (RuntimeError("a defect"), None),
}


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    ("where", "stop"),
    [
        *(("denoising", stop) for stop in STOPS),
        *((where, "key") for where in ("learning", "table", "picture", "summary")),
    ],
)
def test_interrupted_run_leaves_nothing_behind(source, finished, tmp_path, monkeypatch, where, stop, earlier):
    stop, code = STOPS[stop]
    out = tmp_path / "deep" / "out"
    if earlier:
        shutil.copytree(finished, out)
    before = everything(tmp_path)

    def stops(*_, **__):
        raise stop

    def in_the_middle(*_, **__):
        yield np.zeros((40, BOX, BOX), np.float32)
        assert list(out.parent.glob(".out*/denoised.mrcs*"))  # else nothing would have to be removed
        raise stop

    name, instead = {
        "learning": ("fastsort.denoise.learn_denoiser", stops),
        "denoising": ("fastsort.denoise.denoised_batches", in_the_middle),
        "table": ("fastsort.particles.relion.StarTable.write_part", stops),
        "picture": ("fastsort.report.denoised.draw_denoised", stops),
        "summary": ("fastsort.report.denoised.write_summary", stops),
    }[where]
    monkeypatch.setattr(name, instead)
    arguments = ["denoise", source, "-o", out, *QUICK, "--overwrite"]
    if code is None:
        with pytest.raises(RuntimeError, match="a defect"):
            call(*arguments)
    else:
        assert call(*arguments) == code
    assert everything(tmp_path) == before
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_dir()) == (
        ["deep", "out"] if earlier else []
    )


def test_stack_that_ends_while_it_is_read_leaves_nothing(white, tmp_path, monkeypatch, capsys):
    from fastsort.particles.store import StackImages

    path, read, calls = save(tmp_path / "in.mrcs", white[0]), StackImages.read, []
    monkeypatch.setattr("fastsort.images.batches.default_batch_size", lambda _: 16)

    def fails_late(self, indices):
        calls.append(len(indices))
        if len(calls) > 8:
            raise InputError("in.mrcs has become shorter while it was read: copy or write it again.")
        return read(self, indices)

    monkeypatch.setattr(StackImages, "read", fails_late)
    assert call("denoise", path, "-o", tmp_path / "out", *QUICK) == 1
    assert len(calls) == 9
    one_line(capsys, "has become shorter")
    assert [file.name for file in tmp_path.iterdir()] == ["in.mrcs"]


# The picture and the summary.


def picture_size(path):
    head = Path(path).read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", head[16:24])


def test_picture(finished):
    width, height = picture_size(finished / "denoised.png")
    assert width == 1600 and 400 < height < 2000
    from matplotlib.image import imread

    pixels = imread(finished / "denoised.png")[..., :3].mean(axis=2)
    # 24 images before and after, in four rows: each row of pictures is grey, and not white.
    assert (pixels < 0.9).any(axis=1).mean() > 0.6
    assert pixels.std() > 0.1


@pytest.mark.parametrize("kind", ["one", "flat", "few"])
def test_picture_of_odd_sets(white, tmp_path, picture, kind):
    images = {"one": white[0][:1], "flat": np.full((30, 20, 20), 7.5), "few": white[0][:7]}[kind]
    path = save(tmp_path / "in.mrcs", images)
    assert call("denoise", path, "-o", tmp_path / "out", *QUICK) == 0
    width, height = picture_size(tmp_path / "out" / "denoised.png")
    assert width == 1600 and height > 150


def test_strongest_images_are_drawn_first(white):
    from fastsort.report.denoised import spread_over

    strength = np.array([3.0, np.nan, 1.0, np.inf, 2.0])
    assert spread_over(strength, 24).tolist() == [0, 4, 2, 1, 3]
    many = np.random.default_rng(0).permutation(1000).astype(float)
    chosen = many[spread_over(many, 24)]
    assert len(chosen) == 24 and chosen[0] == 999 and chosen[-1] == 0 and (np.diff(chosen) < 0).all()


def test_without_matplotlib_only_the_picture_is_missing(small, tmp_path):
    program = (
        "import sys; sys.modules['matplotlib'] = None; from fastsort import cli; "
        f"sys.exit(cli.main(['denoise', {str(small)!r}, '-o', {str(tmp_path / 'out')!r}, "
        "'--method', 'wiener', '--jobs', '1']))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "no denoised.png without matplotlib" in run.stderr and "Traceback" not in run.stderr
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"denoised.mrcs", "summary.json"}
    assert "60 images denoised with wiener" in run.stdout


def assert_finite_or_null(value):
    if isinstance(value, dict):
        for item in value.values():
            assert_finite_or_null(item)
    elif isinstance(value, list):
        for item in value:
            assert_finite_or_null(item)
    else:
        assert value is None or isinstance(value, (str, bool, int)) or math.isfinite(value)


def test_summary(source, finished, small, tmp_path):
    told = summary(finished)
    assert_finite_or_null(told)
    assert told["input"] == str(source) and (told["images"], told["box"]) == (80, BOX)
    assert told["method"] == "wiener" and told["strength"] is None
    assert 0 < told["predicted_error"] < 1 and told["seconds"] > 0 and told["snr"] > 0
    assert told["ctf_corrected"] is False and told["left_as_they_were"] == []
    assert "not for reconstruction" in told["remark"]
    assert call("denoise", small, "-o", tmp_path / "out", "--method", "total_variation", *ONE_WORKER) == 0
    assert summary(tmp_path / "out")["strength"] in (1.0, 0.7, 0.5, 1.4)


def test_pure_noise_gives_a_summary_of_numbers_or_null(tmp_path):
    noise = np.random.default_rng(7).normal(size=(80, 24, 24)).astype(np.float32)
    path = save(tmp_path / "in.mrcs", noise)
    assert call("denoise", path, "-o", tmp_path / "out", *ONE_WORKER) == 0
    told = summary(tmp_path / "out")
    assert_finite_or_null(told)
    assert told["snr"] < 0.05
    assert np.square(stack(tmp_path / "out" / "denoised.mrcs")).mean() < 0.1


def test_what_is_printed(small, tmp_path, capsys):
    assert call("denoise", small, "-o", tmp_path / "out", "--method", "wiener", "--jobs", 1) == 0
    out, told = capsys.readouterr().out, summary(tmp_path / "out")
    assert out.startswith("60 images denoised with wiener\n")
    assert f"predicted error {told['predicted_error']:.3f} of the particles' power" in out
    assert f"(standard error {told['standard_error']:.3f})" in out
    assert f"signal to noise {told['snr']:.3g}; contrast transfer function not known" in out
    assert "not for reconstruction" in out and f"results in {tmp_path / 'out'}" in out
    assert call("denoise", small, "-o", tmp_path / "quiet", *QUICK) == 0
    assert capsys.readouterr() == ("", "")


# Wrong usage.


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["in.mrcs"], "-o/--output"),
        (["in.mrcs", "-o", "out", "--method", "magic"], "invalid choice: 'magic'"),
        (["in.mrcs", "-o", "out", "--jobs", "0"], "--jobs"),
        (["in.mrcs", "-o", "out", "--seed", "x"], "--seed"),
        (["in.mrcs", "-o", "out", "--diameter", "100"], "--diameter"),
    ],
)
def test_wrong_usage_leaves_with_2(tmp_path, monkeypatch, capsys, arguments, word):
    monkeypatch.chdir(tmp_path)
    assert call("denoise", *arguments) == 2
    assert word in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.star", "-o", "out"], ["nowhere.star does not exist"]),
        (["-o", "out"], ["nothing to read"]),
        (["small.mrcs", "-o", "out", "--seed", "-1"], ["seed must be a whole number", "-1"]),
        (["small.mrcs", "-o", "out", "--data-dir", "x"], ["--data-dir does nothing"]),
        (["small.mrcs", "-o", "out", "--pixel-size", "-2"], ["pixel_size must be positive", "-2"]),
        (["small.mrcs", "-o", "small.mrcs"], ["is a file, not a folder"]),
        (["small.mrcs", "-o", "out", "--bright"], ["--bright does nothing"]),
    ],
)
def test_mistakes_give_one_line_and_code_1(small, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(small.parent)
    before = everything(small.parent)
    assert call("denoise", *arguments, *QUICK) == 1
    one_line(capsys, *words)
    assert everything(small.parent) == before


def test_mistakes_in_python(white):
    with pytest.raises(InputError, match="method must be one of 'neighbours'"):
        denoise_images(white[0], method="magic")
    with pytest.raises(InputError, match="seed"):
        denoise_images(white[0], seed=-1)
    with pytest.raises(InputError, match="shape"):
        denoise_images(white[0][0])
    with pytest.raises(InputError, match="no images"):
        denoise_images(white[0][:0])


def test_help_names_every_option_and_method(capsys):
    assert call("denoise", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: fastsort denoise INPUT -o DIR [options]" in text
    assert "example: fastsort denoise particles.star -o denoised/" in text
    for word in (*METHODS, "--float16", "--overwrite", "--quiet", "--seed", "--jobs", "--pixel-size"):
        assert word in text
    assert call("--help") == 0
    assert "denoise particle images, for eyes and for picking" in " ".join(capsys.readouterr().out.split())


def test_function_stands_at_the_front_door():
    assert fs.denoise_images is denoise_images and "denoise_images" in fs.__all__


def test_guide_is_printed(capsys):
    assert call("guide", "denoise") == 0
    text = capsys.readouterr().out
    for word in (*METHODS, "denoised.mrcs", "denoised.star", "denoised.cs", "denoised.png", "--float16"):
        assert word in text
