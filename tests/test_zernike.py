"""Zernike functions: against exact polynomials and other libraries; on the grid; moments of images."""

from __future__ import annotations

import joblib
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import eval_jacobi

from fastsort import InputError, open_particles
from fastsort.images.batches import default_batch_size
from fastsort.invariants.zernike import (
    radial_polynomials,
    zernike_basis,
    zernike_index,
    zernike_moments,
)

examples = settings(max_examples=15, deadline=None)


def noise(seed, n, box):
    return np.random.default_rng(seed).normal(size=(n, box, box)).astype(np.float32)


def blob(box, y, x, sigma):
    offset = np.arange(box) - box // 2
    return np.exp(-np.add.outer((offset - y) ** 2, (offset - x) ** 2) / (2 * sigma**2))


def in_disk(box):
    offset = np.arange(box) - box // 2
    return np.add.outer(offset**2, offset**2) < (box // 2) ** 2


def naive_function(box, n, m):
    """A function pixel by pixel, by the sum of factorials, in exact integers until the last step."""
    radius, out = box // 2, np.zeros((box, box))
    f = mpmath.factorial
    for row in range(box):
        for column in range(box):
            y, x = row - radius, column - radius
            if y * y + x * x < radius * radius:
                r, theta = np.hypot(y, x) / radius, np.arctan2(y, x)
                value = 0
                for k in range((n - abs(m)) // 2 + 1):
                    terms = f(k) * f((n + abs(m)) // 2 - k) * f((n - abs(m)) // 2 - k)
                    value += (-1) ** k * int(f(n - k) / terms) * r ** (n - 2 * k)
                wave = np.sin(-m * theta) if m < 0 else np.cos(m * theta)
                out[row, column] = value * wave * np.sqrt((1 + (m != 0)) * (n + 1) / np.pi) / radius
    return out


# The polynomials.


@pytest.mark.parametrize(("max_order", "error"), [(20, 1e-13), (60, 1e-10), (100, 1e-10), (200, 1e-9)])
def test_polynomials_are_jacobis(max_order, error):
    radii = np.linspace(0, 1, 57)
    polynomials = radial_polynomials(max_order, radii)
    for row, n, m in zip(polynomials, *zernike_index(max_order), strict=True):
        k = (n - m) // 2
        expected = (-1) ** k * radii**m * eval_jacobi(k, m, 0, 1 - 2 * radii**2)
        np.testing.assert_allclose(row, expected, rtol=0, atol=error)


@pytest.mark.parametrize(("order", "error"), [(46, 1e-12), (60, 1e-10), (100, 1e-10)])
def test_polynomials_are_those_of_exact_arithmetic(order, error):
    radii = np.array([0, 0.05, 0.31, 0.5, 0.77, 0.9, 0.99, 0.999, 1])
    found = radial_polynomials(order, radii)
    index = {
        pair: i for i, pair in enumerate(zip(*map(np.ndarray.tolist, zernike_index(order)), strict=True))
    }
    with mpmath.workdps(90):
        for m in range(order % 2, order + 1, 6):
            for row, radius in enumerate(radii):
                expected = mpmath.mpf(0)
                for k in range((order - m) // 2 + 1):
                    coefficient = mpmath.binomial(order - k, k) * mpmath.binomial(
                        order - 2 * k, (order - m) // 2 - k
                    )
                    expected += (-1) ** k * coefficient * mpmath.mpf(float(radius)) ** (order - 2 * k)
                assert abs(found[index[order, m], row] - float(expected)) < error


def test_polynomials_end_at_one_and_stay_below():
    polynomials = radial_polynomials(120, np.linspace(0, 1, 301))
    np.testing.assert_allclose(polynomials[:, -1], 1, atol=1e-12)
    assert np.abs(polynomials).max() < 1 + 1e-12
    np.testing.assert_allclose(radial_polynomials(4, [0.3])[-2:, 0], [4 * 0.3**4 - 3 * 0.3**2, 0.3**4])


def test_continuous_functions_are_orthonormal():
    nodes, weights = np.polynomial.legendre.leggauss(130)
    radii, weights = (nodes + 1) / 2, weights / 2
    order, angular = zernike_index(100)
    polynomials = radial_polynomials(100, radii) * np.sqrt(2 * (order + 1))[:, np.newaxis]
    for m in (0, 1, 2, 37, 100):
        rows = polynomials[angular == m]
        np.testing.assert_allclose((rows * weights * radii) @ rows.T, np.eye(len(rows)), atol=1e-11)


# The functions on the grid.


@pytest.mark.parametrize("box", [16, 17, 24])
def test_functions_are_the_plain_formula(box):
    basis = zernike_basis(box, 9)
    for function, n, m in zip(basis.functions, basis.order, basis.angular, strict=True):
        np.testing.assert_allclose(function, naive_function(box, int(n), int(m)), atol=1e-7)


@pytest.mark.parametrize("box", [16, 33, 48, 64, 71])
@pytest.mark.parametrize("orthonormal", [False, True])
def test_support_order_and_symmetry(box, orthonormal):
    max_order = 10 if box < 20 else 20
    basis = zernike_basis(box, max_order, orthonormal=orthonormal)
    assert len(basis.functions) == (max_order + 1) * (max_order + 2) // 2
    assert not basis.functions[:, ~in_disk(box)].any()
    assert basis.functions[0][in_disk(box)].all()
    keys = [(n, abs(m), m < 0) for n, m in zip(basis.order, basis.angular, strict=True)]
    assert keys == sorted(set(keys))
    inner = basis.functions if box % 2 else basis.functions[:, 1:, 1:]
    sign = np.where(basis.angular < 0, -1, 1)[:, None, None]
    np.testing.assert_array_equal(inner[:, ::-1], inner * sign)
    np.testing.assert_array_equal(inner[:, ::-1, ::-1], inner * (1 - 2 * (basis.order % 2))[:, None, None])


@pytest.mark.parametrize(("box", "max_order"), [(16, 8), (33, 20), (48, 20), (64, 20), (71, 33)])
def test_functions_are_orthonormal_on_the_grid(box, max_order):
    functions = zernike_basis(box, max_order, orthonormal=True).functions
    flat = functions.reshape(len(functions), -1).astype(np.float64)
    np.testing.assert_allclose(flat @ flat.T, np.eye(len(flat)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("box", "error"), [(64, 0.2), (128, 0.05), (256, 0.03)])
def test_sums_over_pixels_approach_integrals(box, error):
    functions = zernike_basis(box, 20).functions
    flat = functions.reshape(len(functions), -1)
    largest = np.abs(flat @ flat.T - np.eye(len(flat))).max()
    assert 1e-4 < largest < error


def test_orthonormal_functions_are_the_closest():
    # The symmetric square root is the only positive definite change of basis that does it.
    plain, made = (zernike_basis(40, 14, orthonormal=on).functions.reshape(120, -1) for on in (False, True))
    change = made.astype(float) @ plain.T
    np.testing.assert_allclose(change, change.T, atol=1e-5)
    assert np.linalg.eigvalsh(change).min() > 0.1


def test_lower_orders_come_first():
    low, high = zernike_basis(32, 7), zernike_basis(32, 12)
    np.testing.assert_array_equal(low.functions, high.functions[: len(low.functions)])
    np.testing.assert_array_equal(low.angular, high.angular[: len(low.angular)])


def test_basis_is_made_once_and_cannot_be_changed():
    basis = zernike_basis(20, 5)
    assert zernike_basis(20, max_order=5, orthonormal=False) is basis
    for array in basis[:3]:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


# Other libraries.


def test_functions_are_those_of_motif_learn():
    features = pytest.importorskip("mtflearn.features")
    theirs = features.ZPs(16, 65)
    inside = in_disk(65)
    basis = zernike_basis(65, 16)
    for function, n, m in zip(basis.functions, basis.order, basis.angular, strict=True):
        same = theirs.polynomials[(theirs.n == n) & (theirs.m == m)][0]
        np.testing.assert_allclose(function[inside] * 32 * np.sqrt(np.pi), same[inside], atol=2e-5)


def test_moments_are_those_of_mahotas():
    mahotas = pytest.importorskip("mahotas.features")
    box, max_order = 48, 12
    image = (0.2 + np.abs(noise(3, 1, box)[0])) * in_disk(box)
    moments, order, angular = zernike_moments(image[np.newaxis], max_order)
    theirs = mahotas.zernike_moments(image, 24, max_order, cm=(24, 24))
    # It weighs by (n + 1) / pi, divides by the sum of the pixels, and takes m alone, not m and -m.
    scale = np.sqrt((1 + (angular > 0)) * np.pi / (order + 1)) / 24 * image.sum()
    np.testing.assert_allclose(np.abs(moments[0]), theirs * scale, atol=1e-4 * np.abs(moments).max())


# Moments of images.


@examples
@given(seed=st.integers(0, 2**32 - 1), box=st.integers(16, 40), orthonormal=st.booleans())
def test_moments_are_plain_sums(seed, box, orthonormal):
    images = noise(seed, 3, box)
    moments, order, angular = zernike_moments(images, 8, orthonormal=orthonormal)
    basis = zernike_basis(box, 8, orthonormal=orthonormal)
    for column, (n, m) in enumerate(zip(order, angular, strict=True)):
        parts = [
            (images * basis.functions[(basis.order == n) & (basis.angular == sign)].astype(float)).sum((1, 2))
            for sign in ((m, -m) if m else (m,))
        ]
        expected = parts[0] - 1j * parts[1] if m else parts[0]
        np.testing.assert_allclose(moments[:, column], expected, atol=1e-5)


@pytest.mark.parametrize("box", [32, 33, 64])
def test_image_comes_back_from_its_moments(box):
    basis = zernike_basis(box, 12, orthonormal=True)
    weights = np.random.default_rng(box).normal(size=len(basis.functions))
    image = np.einsum("i,ijk->jk", weights, basis.functions)
    moments, _, angular = zernike_moments(image[np.newaxis], 12, orthonormal=True)
    np.testing.assert_allclose((np.abs(moments) ** 2).sum(), (image**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(moments[0].real, weights[basis.angular >= 0], atol=1e-4)
    np.testing.assert_allclose(-moments[0, angular > 0].imag, weights[basis.angular < 0], atol=1e-4)


@pytest.mark.parametrize("box", [48, 49])
@pytest.mark.parametrize("angle", [np.pi / 2, 0.7, -2.1])
def test_turn_changes_the_phase_alone(box, angle):
    before, after = (
        blob(box, 6 * np.sin(at), 6 * np.cos(at), 2.5) - 0.5 * blob(box, 7 * np.cos(at), -7 * np.sin(at), 2)
        for at in (0.3, 0.3 + angle)
    )
    moments, _, angular = zernike_moments(np.array([before, after]), 12)
    expected = moments[0] * np.exp(-1j * angular * angle)
    np.testing.assert_allclose(moments[1], expected, atol=1e-5 * np.abs(moments).max())


def test_same_bits_for_any_number_of_workers():
    box = 40
    images = noise(1, default_batch_size(box) + 30, box)
    moments = zernike_moments(images, 10, n_jobs=1).moments
    np.testing.assert_array_equal(moments, zernike_moments(open_particles(images), 10, n_jobs=2).moments)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        np.testing.assert_array_equal(moments, zernike_moments(images, 10).moments)


def test_every_kind_of_number():
    images = np.round(noise(2, 6, 16) * 64) / 64
    expected = zernike_moments(images, 6).moments
    for kind in (np.float16, ">f4", np.float64):
        np.testing.assert_array_equal(zernike_moments(images.astype(kind), 6).moments, expected)
    np.testing.assert_allclose(zernike_moments(images[2:3], 6).moments, expected[2:3], atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(8, 8), (0, 0)])
def test_unfit_pixel_spoils_its_own_image_alone(value, place):
    images = noise(4, 5, 16)
    expected = zernike_moments(images, 6).moments
    images[(2, *place)] = value
    found = zernike_moments(images, 6).moments
    assert np.isnan(found[2].real).all()
    assert np.isnan(found[2].imag).all()
    np.testing.assert_array_equal(np.delete(found, 2, axis=0), np.delete(expected, 2, axis=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((15,), "16 to 1024 px wide; got 15"),
        ((20.5,), "box must be a whole number"),
        ((32, -1), "max_order must be a whole number, 0 or more; got -1"),
        ((32, 2.5), "max_order must be a whole number"),
        ((1024, 40), "order 40 for a box of 1024 px would take .* GiB: crop the images"),
        ((16, 30, True), "box of 16 px cannot tell the 496 functions up to order 30 apart: lower max_order"),
    ],
)
def test_impossible_bases_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        zernike_basis(*arguments[:2], **({"orthonormal": True} if len(arguments) > 2 else {}))


def test_unfit_arrays_are_refused():
    with pytest.raises(InputError, match="square"):
        zernike_moments(np.zeros((2, 20, 24)))
    with pytest.raises(InputError, match="no images"):
        zernike_moments(np.zeros((0, 20, 20)))
