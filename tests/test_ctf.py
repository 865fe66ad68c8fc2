"""The contrast transfer function against its formula written again, and against known relations."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsort._checks import InputError
from fastsort.images.ctf import contrast_transfer, phase_flip


def parameters(n=1, **changes):
    values = {
        "defocus_u": 18000.0,
        "defocus_v": 15000.0,
        "defocus_angle": 35.0,
        "phase_shift": 0.0,
        "voltage": 300.0,
        "spherical_aberration": 2.7,
        "amplitude_contrast": 0.1,
    }
    values.update(changes)
    return SimpleNamespace(**{k: np.broadcast_to(np.asarray(v, float), n).copy() for k, v in values.items()})


def wavelength(kilovolts):
    """De Broglie's formula with relativity, from the constants of nature."""
    energy = kilovolts * 1e3 * 1.602176634e-19
    rest = 9.1093837015e-31 * 299792458.0**2
    return 6.62607015e-34 * 299792458.0 / np.sqrt(energy * (energy + 2 * rest)) * 1e10


def naive_transfer(ctf, i, box, pixel_size):
    """The formula pixel by pixel, with directions and square roots."""
    length = wavelength(ctf.voltage[i])
    out = np.empty((box, box // 2 + 1))
    for row, fy in enumerate(np.fft.fftfreq(box) / pixel_size):
        for column, fx in enumerate(np.abs(np.fft.rfftfreq(box)) / pixel_size):
            k = np.hypot(fx, fy)
            turn = 2 * (np.arctan2(fy, fx) - np.deg2rad(ctf.defocus_angle[i]))
            mean, half = (
                (ctf.defocus_u[i] + ctf.defocus_v[i]) / 2,
                (ctf.defocus_u[i] - ctf.defocus_v[i]) / 2,
            )
            w = ctf.amplitude_contrast[i]
            chi = np.pi * length * (mean + half * np.cos(turn)) * k**2
            chi -= np.pi / 2 * ctf.spherical_aberration[i] * 1e7 * length**3 * k**4
            chi += np.deg2rad(ctf.phase_shift[i]) + np.arctan2(w, np.sqrt(1 - w * w))
            out[row, column] = np.sin(chi)
    return out


@pytest.mark.parametrize("box", [16, 33, 48])
def test_equals_the_formula_written_again(box):
    ctf = parameters(
        3,
        defocus_u=[9000, 25300, -4000],
        defocus_angle=[0, 71, 163],
        phase_shift=[0, 90, 20],
        voltage=[300, 200, 120],
        amplitude_contrast=[0.0, 0.07, 1.0],
    )
    transfer = contrast_transfer(ctf, box, 2.7)
    for i in range(3):
        # The wavelength's published constants have six digits.
        np.testing.assert_allclose(transfer[i], naive_transfer(ctf, i, box, 2.7), atol=2e-3)


def test_first_zero_lies_where_theory_puts_it():
    # Without aberration and amplitude contrast sin(pi l z k^2) is zero at k = 1 / sqrt(l z).
    ctf = parameters(defocus_u=20000, defocus_v=20000, spherical_aberration=0, amplitude_contrast=0)
    box, pixel_size = 512, 2.0
    line = contrast_transfer(ctf, box, pixel_size)[0, 0]
    crossing = np.flatnonzero(np.diff(np.sign(line[1:])))[0] + 1
    expected = box * pixel_size / np.sqrt(wavelength(300) * 20000)
    assert crossing <= expected <= crossing + 1


def test_low_frequencies_are_positive_whatever_the_phase_plate():
    assert contrast_transfer(parameters(), 64, 3.0)[0, 0, 0] == pytest.approx(0.1)
    assert contrast_transfer(parameters(phase_shift=90), 64, 3.0)[0, 0, 0] == pytest.approx(np.sqrt(0.99))


@pytest.mark.parametrize(("angle", "axis"), [(0, "x"), (90, "y")])
def test_defocus_u_holds_along_the_defocus_angle_from_the_x_axis(angle, axis):
    astigmatic = contrast_transfer(parameters(defocus_angle=angle), 64, 3.0)[0]
    round_u = contrast_transfer(parameters(defocus_v=18000), 64, 3.0)[0]
    round_v = contrast_transfer(parameters(defocus_u=15000), 64, 3.0)[0]
    along_x, along_y = (round_u, round_v) if axis == "x" else (round_v, round_u)
    np.testing.assert_allclose(astigmatic[0, :], along_x[0, :], atol=1e-5)
    np.testing.assert_allclose(astigmatic[:32, 0], along_y[:32, 0], atol=1e-5)


def test_angle_turns_from_x_towards_y():
    # At 45 degrees frequencies with fx and fy of the same sign see defocus u.
    transfer = contrast_transfer(parameters(defocus_angle=45), 64, 3.0)[0]
    round_u = contrast_transfer(parameters(defocus_v=18000), 64, 3.0)[0]
    diagonal = np.arange(1, 32)
    np.testing.assert_allclose(transfer[diagonal, diagonal], round_u[diagonal, diagonal], atol=1e-5)
    assert np.abs(transfer[-diagonal, diagonal] - round_u[-diagonal, diagonal]).max() > 0.5


@pytest.mark.parametrize("box", [16, 33, 48])
def test_flip_multiplies_by_the_sign(box):
    rng = np.random.default_rng(1)
    images = rng.standard_normal((4, box, box)).astype(np.float32)
    before = images.copy()
    ctf = parameters(4, defocus_u=rng.uniform(1e4, 3e4, 4), defocus_angle=rng.uniform(0, 180, 4))
    flipped = phase_flip(images, ctf, 4.0)
    assert flipped.dtype == np.float32
    np.testing.assert_array_equal(images, before)
    for i in range(4):
        sign = np.where(naive_transfer(ctf, i, box, 4.0) < 0, -1, 1)
        expected = np.fft.irfft2(np.fft.rfft2(images[i].astype(float)) * sign, s=(box, box))
        np.testing.assert_allclose(flipped[i], expected, atol=1e-5)


def test_flip_makes_a_blurred_point_white_again():
    point = np.zeros((1, 65, 65), dtype=np.float32)
    point[0, 32, 32] = 1
    ctf = parameters(defocus_u=22000, defocus_v=21000)
    seen = np.fft.irfft2(np.fft.rfft2(point) * contrast_transfer(ctf, 65, 3.0), s=(65, 65))
    corrected = phase_flip(seen.astype(np.float32), ctf, 3.0)[0]
    absolute = np.fft.irfft2(np.fft.rfft2(point[0]) * np.abs(contrast_transfer(ctf, 65, 3.0)[0]), s=(65, 65))
    np.testing.assert_allclose(corrected, absolute, atol=1e-5)
    assert np.unravel_index(corrected.argmax(), corrected.shape) == (32, 32)
    assert corrected[32, 32] > 2 * seen[0, 32, 32]


@settings(max_examples=20, deadline=None)
@given(
    defocus=st.floats(5000, 30000),
    astigmatism=st.floats(0, 3000),
    angle=st.floats(0, 180),
    seed=st.integers(0, 99),
)
def test_flip_turns_with_the_image(defocus, astigmatism, angle, seed):
    # A quarter turn of the array, from x towards y, turns the astigmatism by 90 degrees.
    image = np.random.default_rng(seed).standard_normal((1, 33, 33)).astype(np.float32)
    pair = {"defocus_u": defocus + astigmatism, "defocus_v": defocus}
    straight = phase_flip(image, parameters(**pair, defocus_angle=angle), 4.0)
    turned = phase_flip(np.rot90(image, -1, (1, 2)), parameters(**pair, defocus_angle=angle + 90), 4.0)
    difference = np.abs(np.rot90(straight, -1, (1, 2)) - turned)
    # One frequency whose function is zero to rounding may take either sign.
    assert difference.max() < 0.05


def test_flipping_twice_is_nothing():
    image = np.random.default_rng(0).standard_normal((2, 33, 33)).astype(np.float32)
    ctf = parameters(2)
    np.testing.assert_allclose(phase_flip(phase_flip(image, ctf, 2.0), ctf, 2.0), image, atol=2e-6)


def test_flip_takes_other_arrays():
    images = np.random.default_rng(0).integers(-99, 99, (3, 16, 16))
    ctf = parameters(3)
    expected = phase_flip(images.astype(np.float32), ctf, 2.0)
    np.testing.assert_array_equal(phase_flip(images.astype(">f4"), ctf, 2.0), expected)
    np.testing.assert_array_equal(phase_flip(images.astype(np.int16), ctf, 2.0), expected)
    frozen = images.astype(np.float32)
    frozen.flags.writeable = False
    np.testing.assert_array_equal(phase_flip(frozen[::-1][::-1], ctf, 2.0), expected)
    assert phase_flip(np.empty((0, 16, 16), np.float32), parameters(0), 2.0).shape == (0, 16, 16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"defocus_u": np.nan}, "defocus_u must be finite"),
        ({"voltage": 0}, "voltage must be positive"),
        ({"amplitude_contrast": 1.5}, "between 0 and 1"),
    ],
)
def test_impossible_parameters_are_told(changes, words):
    with pytest.raises(InputError, match=words):
        phase_flip(np.zeros((1, 16, 16), np.float32), parameters(**changes), 2.0)


def test_wrong_counts_and_sizes_are_told():
    image = np.zeros((2, 16, 16), np.float32)
    with pytest.raises(InputError, match="got 3 for 2 images"):
        phase_flip(image, parameters(3), 2.0)
    with pytest.raises(InputError, match="pixel_size must be positive"):
        phase_flip(image, parameters(2), 0.0)
    with pytest.raises(InputError, match="square"):
        phase_flip(np.zeros((2, 16, 18), np.float32), parameters(2), 2.0)
    uneven = parameters(2)
    uneven.voltage = np.array([300.0])
    with pytest.raises(InputError, match="voltage must hold one number an image"):
        contrast_transfer(uneven, 16, 2.0)
