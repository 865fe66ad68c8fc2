"""The generator trained against a critic: what it learns, what it refuses, what a file of it holds."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import scipy.ndimage
from scipy.spatial.transform import Rotation

from fastsort._checks import InputError
from fastsort._saved import save
from fastsort.denoising import gan as gan_module
from fastsort.denoising.gan import (
    average_pairs,
    gan,
    load_gan,
    projection_pairs,
    save_gan,
    train_gan,
)
from fastsort.images.ctf import contrast_transfer
from fastsort.invariants.references import soft_disk
from fastsort.simulate.phantoms import phantom_blobs, phantom_volume
from fastsort.simulate.plan import optics_at
from fastsort.simulate.projections import project_volume

BOX = 16
VOLUME = phantom_volume(phantom_blobs("two-lobed"), 24, 16)
needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None or importlib.util.find_spec("optax") is None,
    reason="JAX and optax are not installed: pip install 'fastsort[gan]'",
)


def ten_averages():
    """Projections in an odd unit on a background of 0."""
    rng = np.random.default_rng(5)
    turned = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(10)]
    return 7 * project_volume(VOLUME, np.array(turned), BOX, scale=1.5)


def error(estimate, clean):
    """Squared error over the power of the clean images."""
    return float(((estimate - clean) ** 2).sum() / (clean**2).sum())


@pytest.fixture(scope="module")
def trained():
    """A generator after a few steps."""
    return train_gan(projection_pairs(VOLUME, BOX, scale=1.5), BOX, n_steps=50, batch=16, seed=1)


# Training and denoising.


@needs_jax
def test_error_falls_below_that_of_the_best_scaled_images(trained):
    noisy, clean = projection_pairs(VOLUME, BOX, scale=1.5, snr=(0.3, 0.3))(np.random.default_rng(3), 100)
    scaled = noisy * ((noisy * clean).sum() / (noisy**2).sum())
    denoised = gan(noisy, trained)
    assert denoised.dtype == np.float32 and denoised.shape == noisy.shape
    assert error(denoised, clean) < 0.7 * error(scaled, clean)


@needs_jax
def test_course_of_the_losses_is_kept(trained):
    assert trained.losses.shape == (50, 3) and trained.n_steps == 50 and trained.seconds > 0
    assert trained.losses[-10:, 0].mean() < 0.8 * trained.losses[:10, 0].mean()


@needs_jax
def test_critic_learns_to_tell_clean_images(trained):
    lead = trained.losses[:, 1]
    assert lead[30:].mean() > 0.5 > 10 * abs(lead[0])


@needs_jax
def test_critic_reaches_the_slope_that_is_asked_of_it(trained):
    assert trained.losses[-10:, 2].mean() < 0.3


@needs_jax
def test_same_seed_same_weights_and_another_seed_others(trained):
    # As many steps and pairs as before, so that nothing is compiled anew.
    pairs, seen = projection_pairs(VOLUME, BOX, scale=1.5), []
    same, other = (
        train_gan(
            pairs,
            BOX,
            n_steps=50,
            batch=16,
            seed=seed,
            progress=lambda done, total: seen.append((done, total)),
        )
        for seed in (1, 2)
    )
    for name, array in trained.weights.items():
        np.testing.assert_array_equal(array, same.weights[name])
    np.testing.assert_array_equal(trained.losses, same.losses)
    assert any((array != other.weights[name]).any() for name, array in trained.weights.items())
    assert seen == 2 * [(done, 50) for done in range(1, 51)]


@needs_jax
def test_images_do_not_depend_on_their_company(trained, monkeypatch):
    noisy, _ = projection_pairs(VOLUME, BOX, scale=1.5)(np.random.default_rng(6), 11)
    together = gan(noisy, trained)
    monkeypatch.setattr(gan_module, "PIXELS_AT_ONCE", 4 * BOX * BOX)
    np.testing.assert_allclose(gan(noisy, trained), together, atol=1e-5)
    order = np.random.default_rng(7).permutation(11)
    np.testing.assert_allclose(gan(noisy[order], trained), together[order], atol=1e-5)


@needs_jax
def test_quarter_turns_and_mirrors_of_images_turn_the_result(trained):
    noisy, _ = projection_pairs(VOLUME, BOX, scale=1.5)(np.random.default_rng(8), 3)
    denoised = gan(noisy, trained)
    turned = np.roll(noisy.swapaxes(1, 2)[:, :, ::-1], 1, axis=2)
    expected = np.roll(denoised.swapaxes(1, 2)[:, :, ::-1], 1, axis=2)
    np.testing.assert_allclose(gan(turned, trained), expected, atol=1e-5)
    mirrored = np.roll(noisy[:, ::-1], 1, axis=1)
    np.testing.assert_allclose(gan(mirrored, trained), np.roll(denoised[:, ::-1], 1, axis=1), atol=1e-5)


@needs_jax
def test_ugly_images(trained):
    noisy, _ = projection_pairs(VOLUME, BOX, scale=1.5)(np.random.default_rng(9), 4)
    before = noisy.copy()
    expected = gan(noisy, trained)
    np.testing.assert_array_equal(noisy, before)
    ugly = noisy.copy()
    ugly[1, 3, 3], ugly[2, 0, 0] = np.nan, np.inf
    denoised = gan(ugly, trained)
    assert np.isnan(denoised[1:3]).all()
    np.testing.assert_array_equal(denoised[[0, 3]], expected[[0, 3]])
    assert gan(noisy[:0], trained).shape == (0, BOX, BOX)
    np.testing.assert_array_equal(gan(noisy.astype(">f4"), trained), expected)
    flat = gan(np.full((1, BOX, BOX), 2.0, np.float16), trained)
    assert np.isfinite(flat).all()


@needs_jax
def test_networks_fit_boxes_of_all_kinds():
    import jax

    rng = np.random.default_rng(0)
    generator = gan_module._first_weights(gan_module._generator_shapes(), rng)
    critic = gan_module._first_weights(gan_module._critic_shapes(), rng)
    for box in (16, 24, 64, 136, 248, 256):
        images = np.zeros((2, box, box), np.float32)
        denoised = jax.eval_shape(lambda *given: gan_module._generate(jax, *given), generator, images)
        said = jax.eval_shape(lambda *given: gan_module._criticize(jax, *given), critic, images)
        assert denoised.shape == images.shape and said.shape == (2,)


@needs_jax
def test_folding_is_undone_and_keeps_blocks_together():
    planes = np.arange(2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    folded = gan_module._folded(planes, 4)
    assert folded.shape == (2, 2, 2, 48)
    assert set(folded[1, 0, 1]) == set(planes[1, :4, 4:].ravel())
    np.testing.assert_array_equal(gan_module._unfolded(folded, 4), planes)


@needs_jax
def test_convolution_is_that_of_scipy():
    import jax

    rng = np.random.default_rng(0)
    planes, kernel = rng.normal(size=(1, 9, 9, 2)), rng.normal(size=(3, 3, 2, 1))
    weights = {"some.kernel": np.float32(kernel), "some.offset": np.float32([0.5])}
    expected = 0.5 + sum(
        scipy.ndimage.correlate(planes[0, :, :, i], kernel[:, :, i, 0], mode="constant") for i in range(2)
    )
    convolved = gan_module._conv(jax, weights, "some", np.float32(planes))
    np.testing.assert_allclose(convolved[0, :, :, 0], expected, atol=1e-4)


def test_eight_positions_keep_the_centre_and_are_undone():
    images = np.random.default_rng(0).normal(size=(2, BOX, BOX))
    seen = set()
    for turns in range(4):
        for mirrored in (False, True):
            placed = gan_module._placed(np, images, turns, mirrored)
            np.testing.assert_array_equal(placed[:, BOX // 2, BOX // 2], images[:, BOX // 2, BOX // 2])
            np.testing.assert_array_equal(gan_module._put_back(np, placed, turns, mirrored), images)
            seen.add(placed.tobytes())
    assert len(seen) == 8


def test_strength_of_the_signal_is_guessed():
    noisy, clean = projection_pairs(VOLUME, 64, scale=0.5, snr=(0.1, 0.1))(np.random.default_rng(0), 200)
    guessed = gan_module._signal_strength(np, noisy)[:, 0, 0]
    true = np.sqrt((clean**2).mean(axis=(1, 2)))
    assert 0.6 * true.mean() < guessed.mean() < 1.1 * true.mean()
    noise = np.random.default_rng(1).normal(size=(20, 64, 64))
    assert gan_module._signal_strength(np, noise).max() < 0.12


# Files.


@needs_jax
def test_saved_and_loaded_weights_give_the_same_images(trained, tmp_path):
    path = tmp_path / "weights.npz"
    save_gan(trained, path)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.npz"]
    loaded = load_gan(path)
    noisy, _ = projection_pairs(VOLUME, BOX, scale=1.5)(np.random.default_rng(2), 5)
    np.testing.assert_array_equal(gan(noisy, loaded), gan(noisy, trained))
    np.testing.assert_array_equal(loaded.losses, trained.losses)
    assert (loaded.box, loaded.n_steps, loaded.seconds) == (BOX, 50, trained.seconds)
    with np.load(path, allow_pickle=False) as arrays:
        assert all(array.dtype.kind in "fu" for array in arrays.values())


@needs_jax
def test_file_that_cannot_be_finished_leaves_the_old_one(trained, tmp_path, monkeypatch):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"old")

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        save_gan(trained, path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@needs_jax
@pytest.mark.parametrize("change", ["shape", "missing", "type", "field"])
def test_weights_of_another_build_are_refused(trained, tmp_path, change):
    weights = dict(trained.weights)
    if change == "shape":
        weights["out.kernel"] = np.zeros((1, 1, 5, 4), np.float32)
    elif change == "missing":
        del weights["out.kernel"]
    else:
        weights["out.kernel"] = weights["out.kernel"].astype(str)
    fields = {"kind": gan_module._KIND, **trained._asdict(), "weights": weights}
    if change == "field":
        del fields["box"]
    save(tmp_path / "odd.npz", fields)
    with pytest.raises(InputError, match="another build: train it again"):
        load_gan(tmp_path / "odd.npz")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.npz"
    save(path, {"kind": "something else"})
    with pytest.raises(InputError, match="no trained generator"):
        load_gan(path)
    path.write_bytes(b"PK nonsense")
    with pytest.raises(InputError):
        load_gan(path)
    with pytest.raises(InputError, match="does not exist"):
        load_gan(tmp_path / "none.npz")


# Pairs.


def test_projections_have_the_signal_to_noise_ratio_asked_for():
    noisy, clean = projection_pairs(VOLUME, 24, snr=(0.25, 0.25))(np.random.default_rng(0), 400)
    assert clean.var() == pytest.approx(0.25, rel=0.03)
    noise = noisy - clean
    assert noise.mean() == pytest.approx(0, abs=0.01) and noise.std() == pytest.approx(1, abs=0.01)


def test_projections_are_those_of_the_volume_at_another_place():
    still, moved = (
        projection_pairs(VOLUME, 24, snr=(0.25, 0.25), shift=shift)(np.random.default_rng(0), 400)[1]
        for shift in (0, 0.05)
    )
    rotations = Rotation.random(400, random_state=np.random.default_rng(0)).as_matrix()
    expected = project_volume(VOLUME, rotations, 24)
    np.testing.assert_allclose(still, expected * (still.sum() / expected.sum()), atol=1e-4)
    for axis in (1, 2):
        places = [
            (images.sum(axis=axis) @ np.arange(24)) / images.sum(axis=(1, 2)) for images in (still, moved)
        ]
        assert (places[1] - places[0]).std() == pytest.approx(0.05 * 24, rel=0.12)


def test_strengths_are_spread_evenly_over_the_logarithm():
    strengths = gan_module._strengths(np.random.default_rng(0), 4000, (0.01, 0.81))
    logarithm = np.log(strengths.astype(float) ** 2)
    assert strengths.min() >= 0.1 and strengths.max() <= 0.9
    assert np.median(logarithm) == pytest.approx(np.log(0.09), abs=0.1)


def test_contrast_transfer_is_in_the_noisy_images_alone():
    rng = np.random.default_rng(0)
    ctf = optics_at(np.full(1, 15000.0), np.zeros(1))
    pairs = projection_pairs(VOLUME, 32, snr=(0.5, 0.5), shift=0, ctf=ctf, pixel_size=4.0)
    noisy, clean = pairs(rng, 400)
    plain = projection_pairs(VOLUME, 32, snr=(0.5, 0.5), shift=0)(np.random.default_rng(0), 400)[1]
    np.testing.assert_allclose(clean, plain, atol=1e-5)
    transfer = np.abs(contrast_transfer(ctf, 32, 4.0)[0])
    noise = noisy - np.fft.irfft2(np.fft.rfft2(clean) * transfer, s=(32, 32))
    # White, and independent of the clean images.
    power = (np.abs(np.fft.rfft2(noise)) ** 2).mean(axis=0)[1:16, 1:16] / 32**2
    assert power.min() > 0.7 and power.max() < 1.3
    assert abs((noise * clean).mean()) < 0.01


def test_averages_are_turned_moved_and_scaled():
    averages = ten_averages()
    noisy, clean = average_pairs(averages, snr=(0.25, 0.25))(np.random.default_rng(0), 300)
    assert (noisy - clean).std() == pytest.approx(1, abs=0.01)
    assert clean.var() == pytest.approx(0.25, rel=0.1)
    # Sums stay as they were, but for the scale and what the turn brings over the edge.
    expected = (averages * soft_disk(BOX)).sum(axis=(1, 2))
    sums = clean.sum(axis=(1, 2))
    assert sums.mean() / expected.mean() == pytest.approx(0.5 / (averages * soft_disk(BOX)).std(), rel=0.05)
    assert len(np.unique(clean[:, 5, 5])) == 300


def test_pairs_depend_on_the_generator_alone():
    for pairs in (projection_pairs(VOLUME, BOX), average_pairs(ten_averages())):
        first, again = (pairs(np.random.default_rng(3), 4) for _ in range(2))
        np.testing.assert_array_equal(first, again)


# What is refused, in one line.


@needs_jax
def test_wrong_box_is_refused_in_one_line(trained):
    with pytest.raises(InputError, match="weights are for images of 16 px; got 24 px: crop") as caught:
        gan(np.zeros((1, 24, 24), np.float32), trained)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("box", [8, 20, 264, 64.5])
def test_boxes_that_cannot_be_halved_three_times_are_refused(box):
    with pytest.raises(InputError, match="box must be"):
        train_gan(average_pairs(ten_averages()), box, n_steps=1)


@needs_jax
@pytest.mark.parametrize("wrong", ["box", "number", "nan"])
def test_pairs_that_cannot_be_used_are_refused(wrong):
    def pairs(rng, n):
        images = np.zeros((n + (wrong == "number"), *(2 * [24 if wrong == "box" else BOX])), np.float32)
        if wrong == "nan":
            images[0, 0, 0] = np.nan
        return images, images

    with pytest.raises(InputError, match="pairs must return") as caught:
        train_gan(pairs, BOX, n_steps=1, batch=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"snr": (0.5, 0.1)}, "turn them round"),
        ({"snr": 0.5}, "two numbers"),
        ({"snr": (0, 0.5)}, "snr must be positive"),
        ({"shift": -1}, "shift must be positive"),
        ({"scale": 0}, "scale must be positive"),
        ({"volume": np.zeros((24, 24, 24))}, "must show a particle"),
        ({"volume": np.zeros((24, 24))}, "volume must be a cube"),
        ({"box": 20}, "box must be a multiple of 8"),
        ({"ctf": optics_at(np.zeros(0), np.zeros(0))}, "ctf holds no"),
    ],
)
def test_projections_that_cannot_be_made_are_refused(change, message):
    given = {"volume": VOLUME, "box": BOX, **change}
    with pytest.raises(InputError, match=message):
        projection_pairs(given.pop("volume"), given.pop("box"), **given)


@pytest.mark.parametrize(
    ("averages", "message"),
    [
        (np.zeros((2, BOX, BOX)), "must show a particle"),
        (np.zeros((0, BOX, BOX)), "holds no images"),
        (np.full((1, BOX, BOX), np.nan), "averages must be finite"),
        (np.zeros((1, 20, 20)), "multiple of 8"),
    ],
)
def test_averages_that_cannot_be_used_are_refused(averages, message):
    with pytest.raises(InputError, match=message):
        average_pairs(averages)


@pytest.mark.parametrize("package", ["jax", "optax"])
def test_missing_package_is_told_in_one_line(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'fastsort\[gan\]'") as caught:
        train_gan(average_pairs(ten_averages()), BOX, n_steps=1)
    assert "\n" not in str(caught.value)
