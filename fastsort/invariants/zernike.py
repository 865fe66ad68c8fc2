"""Zernike functions on the pixels of a disk, and the moments of images with them."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from fastsort._brief import brief
from fastsort._checks import InputError, check_box, check_count
from fastsort._process import one_blas_thread
from fastsort._types import Array, Floats, Images, Indices, Singles
from fastsort.images.batches import map_batches
from fastsort.images.disk import quarter_disk
from fastsort.particles.source import Particles, as_particles

MAX_BYTES = 2 << 30
# Functions count as dependent on the grid if a combination of norm 1 has a squared norm below this there.
MIN_NORM = 1e-8


@brief
class ZernikeBasis(NamedTuple):
    """Zernike functions on the pixels of a disk; read-only.

    Attributes
    ----------
    functions : ndarray of float32, shape (L, d, d)
        Zero at d // 2 pixels or more from pixel d // 2. Sorted by order, then by angular index, the cosine
        before the sine; so the functions of a lower `max_order` come first.
    order : ndarray of intp, shape (L,)
        Degree n of the radial polynomial.
    angular : ndarray of intp, shape (L,)
        m >= 0 if the function goes as cos(m theta), -m if it goes as sin(m theta); theta runs from the last
        axis (x) to the one before (y).
    box : int
        Side of the images in pixels.
    max_order : int
    """

    functions: Singles
    order: Indices
    angular: Indices
    box: int
    max_order: int


@brief
class ZernikeMoments(NamedTuple):
    """Complex Zernike moments of images.

    Attributes
    ----------
    moments : ndarray of complex64, shape (n, n_moments)
        Product with the cosine, minus i times that with the sine. NaN for an image with a NaN or an
        infinity anywhere.
    order, angular : ndarray of intp, shape (n_moments,)
        n, and m >= 0; sorted by n, then by m.
    """

    moments: npt.NDArray[np.complex64]
    order: Indices
    angular: Indices


def zernike_basis(box: int, max_order: int = 20, *, orthonormal: bool = False) -> ZernikeBasis:
    """Zernike functions of all orders up to the highest, as cosines and sines.

    Parameters
    ----------
    box : int
        Side of the images in pixels.
    max_order : int
        Highest degree of the radial polynomials.
    orthonormal : bool
        Whether to replace the samples by the orthonormal functions that are closest to them in the sum of
        squares (symmetric orthonormalisation).

    Returns
    -------
    basis : ZernikeBasis
        The same object for the same arguments, and therefore read-only.

    Raises
    ------
    InputError
        If an argument is out of range, the functions would take more than 2 GiB, or the grid is too coarse
        to make them orthonormal.

    Notes
    -----
    The functions are sqrt((2 - [m = 0]) (n + 1) / pi) / R times R_n^m(r / R) cos(m theta) or
    sin(m theta) with R = d // 2 pixels: integrals over the disk, in pixels, of products of two are
    0 or 1. Sums over the pixels only come close to that, less so for higher orders. Orthonormal samples
    mix angular indices that differ by multiples of 4, and so they turn less well.

    Examples
    --------
    >>> import fastsort as fs
    >>> basis = fs.invariants.zernike_basis(32, 4)
    >>> basis.functions.shape
    (15, 32, 32)
    >>> basis.order[:6].tolist(), basis.angular[:6].tolist()
    ([0, 1, 1, 2, 2, 2], [0, 1, -1, 0, 2, -2])
    """
    box = check_count("box", box)
    check_box(box, box, "the box")
    max_order = check_count("max_order", max_order, 0)
    size = 2 * (max_order + 1) * (max_order + 2) * box * box
    if size > MAX_BYTES:
        raise InputError(
            f"functions up to order {max_order} for a box of {box} px would take {size / 2**30:.1f} GiB: "
            "crop the images to a smaller box, or lower max_order."
        )
    return _basis(box, max_order, bool(orthonormal))


def zernike_moments(
    images: Array | Particles,
    max_order: int = 20,
    *,
    orthonormal: bool = False,
    n_jobs: int | None = None,
) -> ZernikeMoments:
    """Complex moments of images with the functions of `zernike_basis`.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
    max_order, orthonormal
        As for `zernike_basis`.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    result : ZernikeMoments

    Raises
    ------
    InputError
        If the images are not a stack of squares, there are none, or `zernike_basis` raises it.

    Notes
    -----
    An image that the functions span is the real part of the sum of a_nm E_nm over m >= 0, where
    E_nm is the cosine plus i times the sine, and its energy is the sum of |a_nm|^2: a_nm stands for
    m and -m. An image turned by alpha from x to y has the moments a_nm exp(-i m alpha).

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> images = np.random.default_rng(0).normal(size=(3, 33, 33))
    >>> moments = fs.invariants.zernike_moments(images, 6).moments
    >>> moments.shape
    (3, 16)
    >>> turned = fs.invariants.zernike_moments(np.rot90(images, axes=(1, 2)), 6).moments
    >>> bool(np.allclose(np.abs(turned), np.abs(moments), atol=1e-3))
    True
    """
    particles = as_particles(images)
    zernike_basis(particles.box, max_order, orthonormal=orthonormal)
    order, angular = zernike_index(max_order)
    moments = np.empty((len(particles), len(order)), dtype=np.complex64)
    start = 0
    # Workers make the basis from its arguments, because a task must not carry it.
    for part in map_batches(_moments_batch, particles, max_order, orthonormal, n_jobs=n_jobs):
        moments[start : start + len(part)] = part
        start += len(part)
    return ZernikeMoments(moments, order, angular)


def zernike_index(max_order: int) -> tuple[Indices, Indices]:
    """Return n and m >= 0 of all functions up to an order, sorted by n, then by m."""
    max_order = check_count("max_order", max_order, 0)
    pairs = [(n, m) for n in range(max_order + 1) for m in range(n % 2, n + 1, 2)]
    order, angular = np.array(pairs, dtype=np.intp).T
    return order, angular


def radial_polynomials(max_order: int, radii: npt.ArrayLike) -> Floats:
    """Zernike's radial polynomials R_n^m, which are 1 at radius 1.

    Parameters
    ----------
    max_order : int
        Highest n.
    radii : ndarray, shape (n_radii,)
        From 0 to 1.

    Returns
    -------
    polynomials : ndarray of float64, shape (n_moments, n_radii)
        In the order of `zernike_index`.

    Notes
    -----
    The recurrence is R_n^m = r (R_{n-1}^{|m-1|} + R_{n-1}^{m+1}) - R_{n-2}^m [1]_, where a polynomial with
    m > n is zero. No coefficient is larger than one, so rounding errors grow slowly with the order; the
    usual sum of factorials loses all its digits near order 46.

    References
    ----------
    .. [1] Shakibaei, Paramesran, "Recursive formula to compute Zernike radial polynomials",
       Opt. Lett. 38 (2013).
    """
    max_order = check_count("max_order", max_order, 0)
    r = np.asarray(radii, dtype=np.float64)
    rows: list[list[Floats]] = [[np.ones_like(r)]]
    for n in range(1, max_order + 1):
        before = rows[n - 1]
        row = []
        for m in range(n % 2, n + 1, 2):
            # Row n - 1 holds every second m from (n - 1) % 2.
            value = r * before[abs(m - 1) // 2]
            if m + 1 <= n - 1:
                value += r * before[(m + 1) // 2]
            if m <= n - 2:
                value -= rows[n - 2][m // 2]
            row.append(value)
        rows.append(row)
    return np.concatenate(rows)


def _moments_batch(
    images: Images, start: int, max_order: int, orthonormal: bool
) -> npt.NDArray[np.complex64]:
    basis = zernike_basis(images.shape[1], max_order, orthonormal=orthonormal)
    with np.errstate(invalid="ignore", over="ignore"):
        products = images.reshape(len(images), -1) @ basis.functions.reshape(len(basis.functions), -1).T
    sine = basis.angular < 0
    moments = products[:, ~sine].astype(np.complex64)
    moments.imag[:, np.flatnonzero(basis.angular[~sine])] = -products[:, sine]
    spoilt = ~np.isfinite(products).all(axis=1)
    # Pixels outside the disk count as well.
    spoilt |= ~np.isfinite(images).all(axis=(1, 2))
    moments[spoilt] = complex(np.nan, np.nan)
    return moments


@lru_cache(maxsize=2)
def _basis(box: int, max_order: int, orthonormal: bool) -> ZernikeBasis:
    # The number of threads would change the last bits.
    with one_blas_thread():
        return _sampled_basis(box, max_order, orthonormal)


def _sampled_basis(box: int, max_order: int, orthonormal: bool) -> ZernikeBasis:
    order, angular = zernike_index(max_order)
    pairs = np.repeat(np.arange(len(order)), 1 + (angular > 0))
    sine = np.diff(pairs, prepend=-1) == 0
    order, angular = order[pairs], angular[pairs]
    quarter = quarter_disk(box // 2)
    radii, place = np.unique(quarter.y**2 + quarter.x**2, return_inverse=True)
    profiles = radial_polynomials(max_order, np.sqrt(radii) / (box // 2))
    theta = np.arctan2(quarter.y, quarter.x)
    samples = np.empty((len(order), len(theta)))
    for i in range(len(order)):
        wave = np.sin if sine[i] else np.cos
        norm = np.sqrt((1 + (angular[i] > 0)) * (order[i] + 1) / np.pi) / (box // 2)
        samples[i] = norm * profiles[pairs[i], place] * wave(angular[i] * theta)
    # The computed cosine of a quarter turn is not exactly zero.
    samples[np.ix_((angular + sine) % 2 == 1, quarter.x == 0)] = 0
    if orthonormal:
        # Functions of different symmetry under the turns and mirrors of the grid are orthogonal.
        symmetry = np.where(angular % 2 == 1, 1, angular % 4) + 4 * sine
        for kind in np.unique(symmetry):
            block = np.flatnonzero(symmetry == kind)
            try:
                samples[block] = _orthonormalized(samples[block], quarter.weights)
            except np.linalg.LinAlgError:
                raise InputError(
                    f"the pixels of a box of {box} px cannot tell the {len(order)} functions up to order "
                    f"{max_order} apart: lower max_order, or use a larger box."
                ) from None
    functions = quarter.unfolded(samples, angular, sine, box)
    basis = ZernikeBasis(functions, order, np.where(sine, -angular, angular), box, max_order)
    for array in basis[:3]:
        array.flags.writeable = False
    return basis


def _orthonormalized(samples: Floats, weights: Floats) -> Floats:
    values, vectors = eigh((samples * weights) @ samples.T, check_finite=False)
    if values[0] < MIN_NORM:
        raise np.linalg.LinAlgError("dependent samples")
    return (vectors / np.sqrt(values)) @ (vectors.T @ samples)
