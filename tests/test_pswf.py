"""Prolate functions: against their integral equation and a dense construction; on the grid; coefficients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import jv

from fastsort import InputError, open_particles
from fastsort.images.batches import default_batch_size
from fastsort.subspaces.pswf import pswf_basis, pswf_coefficients, pswf_images, radial_modes, zernike_radial

examples = settings(max_examples=15, deadline=None)


def gauss(n):
    """Nodes and weights for integrals from 0 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2


def dense_modes(bandwidth, m):
    """Eigenvalues, largest first, and functions at the nodes, of the radial integral equation."""
    nodes, weights = gauss(int(bandwidth) + 60)
    root = np.sqrt(weights * nodes)
    values, vectors = np.linalg.eigh(root[:, None] * jv(m, bandwidth * np.outer(nodes, nodes)) * root)
    order = np.argsort(-np.abs(values))
    return values[order], (vectors[:, order] / root[:, None]).T, nodes, weights * nodes


def blob(box, y, x, sigma):
    offset = np.arange(box) - box // 2
    return np.exp(-np.add.outer((offset - y) ** 2, (offset - x) ** 2) / (2 * sigma**2))


def noise(seed, n, box):
    return np.random.default_rng(seed).normal(size=(n, box, box)).astype(np.float32)


def turned(coefficients, basis, angle):
    """Coefficients of images whose value at theta is that of the given ones at theta + angle."""
    turned = coefficients.copy()
    cosine = np.flatnonzero(basis.angular > 0)
    turn = basis.angular[cosine] * angle
    a, b = coefficients[:, cosine], coefficients[:, cosine + 1]
    turned[:, cosine] = a * np.cos(turn) + b * np.sin(turn)
    turned[:, cosine + 1] = b * np.cos(turn) - a * np.sin(turn)
    return turned


# The continuous functions.


@pytest.mark.parametrize(
    ("bandwidth", "truncation", "step"), [(2.0, 1e-3, 1), (25.1, 1e-6, 1), (75.4, 1.0, 9), (110.0, 1e-2, 25)]
)
def test_finite_fourier_transform_is_a_multiple(bandwidth, truncation, step):
    modes = radial_modes(bandwidth, truncation)
    radii, weights = gauss(int(bandwidth) + 50)
    theta = 2 * np.pi * np.arange(int(4 * bandwidth) + 80) / (int(4 * bandwidth) + 80)
    y, x = np.random.default_rng(0).uniform(-0.7, 0.7, (2, 9))
    phase = np.multiply.outer(x, np.outer(radii, np.cos(theta))) + np.multiply.outer(
        y, np.outer(radii, np.sin(theta))
    )
    kernel = np.exp(1j * bandwidth * phase).reshape(-1, len(theta))
    for mode in modes[::step]:
        m = mode.angular
        for wave in (np.cos, np.sin)[: m + 1]:
            norm = np.sqrt(np.pi if m else 2 * np.pi)
            angular = (
                (kernel @ wave(m * theta).astype(complex)).reshape(len(x), -1)
                * (2 * np.pi / len(theta))
                / norm
            )
            transform = (mode.evaluate(radii) * weights * radii) @ angular.T
            values = mode.evaluate(np.hypot(x, y)) * wave(m * np.arctan2(y, x)) / norm
            expected = (2 * np.pi * 1j**m * mode.eigenvalues)[:, None] * values
            np.testing.assert_allclose(transform, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("bandwidth", [3.0, 25.1, 110.0])
def test_continuous_functions_are_orthonormal(bandwidth):
    radii, weights = gauss(int(bandwidth) + 60)
    for mode in radial_modes(bandwidth, 1e-4)[::7]:
        profiles = mode.evaluate(radii)
        np.testing.assert_allclose((profiles * weights * radii) @ profiles.T, np.eye(mode.size), atol=1e-11)


@pytest.mark.parametrize("bandwidth", [4.0, 25.1, 50.3])
@pytest.mark.parametrize("truncation", [1e-3, 1.0, 30.0])
def test_modes_are_those_of_the_dense_integral_equation(bandwidth, truncation):
    modes = radial_modes(bandwidth, truncation)
    for m in range(0, len(modes) + 1, 5):
        values, functions, nodes, weights = dense_modes(bandwidth, m)
        concentration = (bandwidth * values) ** 2
        n_kept = int((concentration > truncation**2 / (1 + truncation**2)).sum())
        if m == len(modes):
            assert n_kept == 0
            continue
        assert modes[m].size == n_kept
        np.testing.assert_allclose(modes[m].eigenvalues ** 2, values[:n_kept] ** 2, rtol=0, atol=1e-15)
        # Where eigenvalues are told apart the functions themselves, elsewhere what they span.
        profiles = modes[m].evaluate(nodes)
        overlap = (profiles * weights) @ functions[:n_kept].T
        np.testing.assert_allclose(overlap @ overlap.T, np.eye(n_kept), atol=1e-9)
        apart = np.flatnonzero(concentration[:n_kept] < 0.999)
        np.testing.assert_allclose(np.abs(overlap[apart, apart]), 1, atol=1e-9)
        np.testing.assert_allclose(modes[m].eigenvalues[apart], values[apart], rtol=1e-8)


def test_tiny_eigenvalues_keep_their_digits():
    # A narrow band limit: the first function is nearly r^m, whose transform is a power series.
    bandwidth = 0.01
    modes = radial_modes(bandwidth, 1e-6)
    assert [mode.size for mode in modes] == [1, 1]
    np.testing.assert_allclose(modes[0].eigenvalues, 1 / 2, rtol=1e-4)
    np.testing.assert_allclose(modes[1].eigenvalues, bandwidth / 2 / 4, rtol=1e-4)
    bandwidth = 30.0
    for m, mode in enumerate(radial_modes(bandwidth, 1e-6)[::6]):
        values = dense_modes(bandwidth, 6 * m)[0][: mode.size]
        np.testing.assert_allclose(mode.eigenvalues, values, rtol=1e-8)


@pytest.mark.parametrize("m", [0, 1, 7, 60])
def test_zernike_polynomials(m):
    radii, weights = gauss(80)
    polynomials = zernike_radial(m, 12, radii)
    np.testing.assert_allclose((polynomials * weights * radii) @ polynomials.T, np.eye(12), atol=1e-12)
    np.testing.assert_allclose(
        zernike_radial(m, 12, np.ones(1))[:, 0], np.sqrt(2 * (m + 2 * np.arange(12) + 1)), rtol=1e-12
    )
    np.testing.assert_allclose(
        zernike_radial(4, 2, radii)[1], np.sqrt(14) * (6 * radii**6 - 5 * radii**4), atol=1e-12
    )


# The functions on the grid.


def check_basis(basis, box):
    n = len(basis.functions)
    flat = basis.functions.reshape(n, -1)
    chosen = np.arange(n)[:: 1 + n // 500]
    products = flat[chosen] @ flat.T
    np.testing.assert_allclose(products, np.eye(n)[chosen], rtol=0, atol=3e-6)
    np.testing.assert_allclose(np.einsum("ij,ij->i", flat, flat, dtype=np.float64), 1, rtol=0, atol=1e-6)
    offset = np.arange(box) - box // 2
    outside = np.add.outer(offset**2, offset**2) >= (box // 2) ** 2
    assert not basis.functions[:, outside].any()
    keys = [(abs(m), k, m < 0) for m, k in zip(basis.angular, basis.radial, strict=True)]
    assert keys == sorted(set(keys))
    for m in range(1, basis.angular.max() + 1):
        assert (basis.angular == m).sum() == (basis.angular == -m).sum() > 0
    inner = basis.functions[chosen] if box % 2 else basis.functions[chosen, 1:, 1:]
    mirror = np.where(basis.angular[chosen] < 0, -1, 1)[:, None, None]
    np.testing.assert_array_equal(inner[:, ::-1], inner * mirror)


@pytest.mark.parametrize(
    ("box", "bandlimit"),
    [(16, 0.11), (16, 0.3), (16, 0.5), (33, 0.11), (33, 0.5), (48, 0.3), (48, 0.5), (71, 0.11), (71, 0.5)],
)
def test_functions_are_orthonormal_on_the_grid(box, bandlimit):
    check_basis(pswf_basis(box, bandlimit), box)


@examples
@given(
    box=st.integers(16, 32), bandlimit=st.floats(0.1, 0.5), truncation=st.floats(0, 4).map(lambda t: 10**t)
)
def test_functions_are_orthonormal_for_any_arguments(box, bandlimit, truncation):
    try:
        basis = pswf_basis(box, bandlimit, truncation=truncation)
    except InputError as error:
        assert "no function is left" in str(error)
        return
    check_basis(basis, box)


@pytest.mark.parametrize(("box", "bandlimit"), [(33, 0.5), (48, 0.5), (48, 0.25), (71, 0.25)])
def test_as_many_functions_as_the_area_of_the_disk_times_that_of_the_band(box, bandlimit):
    bandwidth = 2 * np.pi * bandlimit * (box // 2)
    expected = bandwidth**2 / 4
    basis = pswf_basis(box, bandlimit)
    assert abs(len(basis.functions) - expected) < 0.02 * expected
    concentration = (bandwidth * np.abs(basis.eigenvalues) / (2 * np.pi)) ** 2
    assert concentration.min() > 0.5
    assert concentration.max() < 1 + 1e-12
    fewer = pswf_basis(box, bandlimit, truncation=10.0)
    beyond = np.maximum(1 - concentration, 0)
    assert len(fewer.functions) == (np.sqrt(concentration) > 10 * np.sqrt(beyond)).sum()


def test_well_concentrated_functions_are_the_samples_of_continuous_ones():
    box, bandlimit, truncation = 48, 0.3, 100.0
    basis = pswf_basis(box, bandlimit, truncation=truncation)
    modes = radial_modes(2 * np.pi * bandlimit * 24, truncation)
    offset = (np.arange(box) - 24) / 24
    y, x = np.meshgrid(offset, offset, indexing="ij")
    radii = np.hypot(y, x)
    for i in range(0, len(basis.functions), 23):
        m, n = int(basis.angular[i]), basis.radial[i]
        wave = np.sin(-m * np.arctan2(y, x)) if m < 0 else np.cos(m * np.arctan2(y, x))
        norm = 24 * np.sqrt(np.pi if m else 2 * np.pi)
        samples = modes[abs(m)].evaluate(np.minimum(radii, 1).ravel())[n].reshape(box, box) * wave / norm
        np.testing.assert_allclose(basis.functions[i], samples * (radii < 1), atol=2e-4)
        np.testing.assert_allclose(
            basis.eigenvalues[i], 2 * np.pi * 1j ** abs(m) * modes[abs(m)].eigenvalues[n], rtol=1e-12
        )


def test_basis_is_made_once_and_cannot_be_changed():
    basis = pswf_basis(20, 0.4)
    assert pswf_basis(20, bandlimit=0.4, truncation=1) is basis
    for array in basis[:4]:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


# Coefficients of images.


@pytest.mark.parametrize("box", [16, 33, 48])
def test_quarter_turn_turns_every_pair(box):
    basis = pswf_basis(box)
    coefficients = np.random.default_rng(box).normal(size=(5, len(basis.functions)))
    images = pswf_images(coefficients, box)
    odd = images if box % 2 else images[:, 1:, 1:]
    odd[:] = np.rot90(odd, axes=(1, 2)).copy()
    expected = turned(coefficients, basis, np.pi / 2)
    np.testing.assert_allclose(pswf_coefficients(images), expected, atol=2e-5)


@pytest.mark.parametrize("box", [48, 49])
def test_any_turn_of_a_smooth_image_turns_every_pair(box):
    basis = pswf_basis(box, 0.3)
    first, angle = 0.4, 1.1
    images = [
        blob(box, 9 * np.sin(at), 9 * np.cos(at), 2.5) - blob(box, -7 * np.sin(at), -7 * np.cos(at), 2)
        for at in (first, first + angle)
    ]
    before, after = pswf_coefficients(np.array(images), 0.3)
    np.testing.assert_allclose(
        turned(before[None], basis, -angle)[0], after, atol=2e-3 * np.abs(before).max()
    )


@pytest.mark.parametrize("box", [32, 33, 48])
def test_image_with_a_band_limit_comes_back(box):
    r = box / 48
    images = np.array([blob(box, 5 * r, -6 * r, 2.4), blob(box, -4 * r, 2 * r, 2.0) - blob(box, 0, 0, 1.6)])
    coefficients = pswf_coefficients(images)
    assert coefficients.dtype == np.float32
    np.testing.assert_allclose(pswf_images(coefficients, box), images, atol=5e-3)
    np.testing.assert_allclose((coefficients**2).sum(axis=1), (images**2).sum(axis=(1, 2)), rtol=1e-3)


@examples
@given(seed=st.integers(0, 2**32 - 1), box=st.integers(16, 40), truncation=st.sampled_from([1.0, 10.0]))
def test_coefficients_come_back(seed, box, truncation):
    n = len(pswf_basis(box, 0.4, truncation=truncation).functions)
    coefficients = np.random.default_rng(seed).normal(size=(3, n))
    images = pswf_images(coefficients, box, 0.4, truncation=truncation)
    np.testing.assert_allclose(pswf_coefficients(images, 0.4, truncation=truncation), coefficients, atol=2e-5)


def test_white_noise_stays_white():
    coefficients = pswf_coefficients(noise(3, 4000, 16)).astype(np.float64)
    n, length = coefficients.shape
    covariance = coefficients.T @ coefficients / n
    assert abs(np.trace(covariance) / length - 1) < 5 * np.sqrt(2 / (n * length))
    deviation = np.abs(covariance - np.eye(length)) * np.sqrt(n / (1 + np.eye(length)))
    assert deviation.max() < 5.5


def test_products_are_the_plain_ones_for_any_number_of_workers():
    box = 40
    n = default_batch_size(box) + 30
    images = noise(1, n, box)
    functions = pswf_basis(box, 0.2).functions.astype(np.float64)
    coefficients = pswf_coefficients(images, 0.2, n_jobs=1)
    expected = images.reshape(n, -1) @ functions.reshape(len(functions), -1).T
    np.testing.assert_allclose(coefficients, expected, atol=1e-5)
    np.testing.assert_array_equal(coefficients, pswf_coefficients(open_particles(images), 0.2, n_jobs=2))


def test_every_kind_of_number(tmp_path):
    images = np.round(noise(2, 6, 16) * 64) / 64
    expected = pswf_coefficients(images)
    np.testing.assert_array_equal(pswf_coefficients(images.astype(np.float16)), expected)
    np.testing.assert_array_equal(pswf_coefficients(images.astype(">f4")), expected)
    np.testing.assert_array_equal(pswf_coefficients(images.astype(np.float64)[:, ::-1][:, ::-1]), expected)
    np.save(tmp_path / "images.npy", images)
    np.testing.assert_array_equal(
        pswf_coefficients(np.load(tmp_path / "images.npy", mmap_mode="r")), expected
    )
    np.testing.assert_allclose(pswf_coefficients(images[2:3]), expected[2:3], atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(8, 8), (0, 0)])
def test_unfit_pixel_spoils_its_own_image_alone(value, place):
    images = noise(4, 5, 16)
    expected = pswf_coefficients(images)
    images[(2, *place)] = value
    found = pswf_coefficients(images)
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(np.delete(found, 2, axis=0), np.delete(expected, 2, axis=0))
    back = pswf_images(found, 16)
    assert np.isnan(back[2]).all()
    assert np.isfinite(np.delete(back, 2, axis=0)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((48, 0.0), "bandlimit must be positive; got 0"),
        ((48, -0.1), "bandlimit must be positive; got -0.1"),
        ((48, np.nan), "bandlimit must be positive; got nan"),
        ((48, 0.51), "at most 0.5 cycles/px.*got 0.51"),
        ((48, "wide"), "bandlimit must be a number"),
        ((48, 0.003), "no function is left for a box of 48 px at bandlimit 0.003.*raise the bandlimit"),
        ((48, 0.5, 0.0), "truncation must be positive"),
        ((48, 0.5, 1e-9), "truncation must be between 1e-6 and 1e6; got 1e-09"),
        ((48, 0.5, 1e-3), "cannot tell the .* functions apart.*raise the truncation"),
        ((15, 0.5), "16 to 1024 px wide; got 15"),
        ((20.5, 0.5), "box must be a whole number"),
        ((400, 0.5), "box of 400 px at bandlimit 0.5 would take .* GiB: crop the images"),
    ],
)
def test_impossible_bases_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        pswf_basis(*arguments[:2], **({"truncation": arguments[2]} if len(arguments) > 2 else {}))


def test_unfit_arrays_are_refused():
    with pytest.raises(InputError, match="square"):
        pswf_coefficients(np.zeros((2, 20, 24)))
    with pytest.raises(InputError, match="no images"):
        pswf_coefficients(np.zeros((0, 20, 20)))
    length = len(pswf_basis(20).functions)
    with pytest.raises(InputError, match=rf"must be real \(n, {length}\) for a box of 20 px.*\(2, 7\)"):
        pswf_images(np.zeros((2, 7)), 20)
    with pytest.raises(InputError, match="complex"):
        pswf_images(np.zeros((2, length), dtype=complex), 20)
