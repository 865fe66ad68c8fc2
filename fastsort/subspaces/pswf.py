"""Images as coefficients of prolate spheroidal wave functions: band-limited, on a disk, steerable."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh, eigh_tridiagonal
from scipy.special import jv, roots_legendre

from fastsort._brief import brief
from fastsort._checks import InputError, check_box, check_count, check_positive
from fastsort._process import one_blas_thread
from fastsort._types import Array, Floats, Images, Indices, Singles
from fastsort.images.batches import map_batches
from fastsort.images.disk import Quarter, quarter_disk
from fastsort.particles.source import Particles, as_particles

Blocks = tuple[Indices, ...]

# Outside of these, the rounding of an eigenvalue would decide whether a function is kept.
TRUNCATIONS = (1e-6, 1e6)
MAX_BYTES = 2 << 30
# Functions count as dependent on the grid if some combination of unit norm has samples with a squared norm
# below this. Double precision divided by this is still better than single precision.
MIN_NORM = 1e-8


@brief
class PswfBasis(NamedTuple):
    """Prolate spheroidal wave functions on the pixels of a disk; read-only.

    Attributes
    ----------
    functions : ndarray of float32, shape (L, d, d)
        Orthonormal over the pixels; zero outside the disk of radius d // 2 about pixel d // 2.
        Ordered by angular index, then by radial index, the cosine before the sine.
    angular : ndarray of intp, shape (L,)
        m >= 0 where the function goes as cos(m theta), -m where it goes as sin(m theta), with
        theta from the last axis (x) to the one before (y).
    radial : ndarray of intp, shape (L,)
        0, 1, ... for every angular index: the number of zeros along a radius.
    eigenvalues : ndarray of complex128, shape (L,)
        Of the finite Fourier transform on the unit disk.
    box : int
        Side of the images in pixels.
    bandlimit : float
        In cycles a pixel.
    """

    functions: Singles
    angular: Indices
    radial: Indices
    eigenvalues: npt.NDArray[np.complex128]
    box: int
    bandlimit: float


def pswf_basis(box: int, bandlimit: float = 0.5, *, truncation: float = 1.0) -> PswfBasis:
    """Orthonormal functions that span the images with a band limit on a disk.

    Parameters
    ----------
    box : int
        Side of the images in pixels.
    bandlimit : float
        Highest frequency in cycles a pixel, at most 0.5.
    truncation : float
        T of [2]_, from 1e-6 to 1e6. A larger one keeps fewer functions, those with less of their
        energy above the band limit.

    Returns
    -------
    basis : PswfBasis
        The same object for the same arguments, hence read-only.

    Raises
    ------
    InputError
        If an argument is out of its range, no function is left, the grid cannot tell the functions
        apart, or they would take more than 2 GiB.

    Notes
    -----
    The functions are eigenfunctions of the finite Fourier transform on the unit disk,

        integral over |u| <= 1 of psi(u) exp(i c <x, u>) du = alpha psi(x),

    at c = 2 pi `bandlimit` R with R = d // 2 pixels [1]_. The energy inside the band limit is
    lambda = (c |alpha| / (2 pi))^2, and those with sqrt(lambda / (1 - lambda)) > T are kept, which
    is the rule of [2]_; at T = 1 they are about c^2 / 4.

    The samples of these functions are nearly orthonormal, up to a factor R. The basis consists of
    the orthonormal functions closest to them in the sum of squares (symmetric orthonormalisation).
    If an image turns by a right angle, each pair of coefficients turns by m right angles exactly, because
    the disk is symmetric; with any other angle, this holds as closely as the pixels allow.

    References
    ----------
    .. [1] Slepian, "Prolate spheroidal wave functions, Fourier analysis and uncertainty IV",
       Bell Syst. Tech. J. 43 (1964).
    .. [2] Landa, Shkolnisky, "Steerable principal components for space-frequency localized images",
       SIAM J. Imaging Sci. 10 (2017); "Approximation scheme for essentially bandlimited and
       space-concentrated functions on a disk", Appl. Comput. Harmon. Anal. 43 (2017).

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> basis = fs.pswf_basis(24, bandlimit=0.3)
    >>> flat = basis.functions.reshape(len(basis.functions), -1)
    >>> bool(np.allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-5))
    True
    >>> basis.angular[:4].tolist()
    [0, 0, 0, 0]
    """
    box = check_count("box", box)
    check_box(box, box, "the box")
    bandlimit = check_positive("bandlimit", bandlimit, "cycles/px")
    if bandlimit > 0.5:
        raise InputError(
            f"bandlimit must be at most 0.5 cycles/px, the highest frequency on the grid; got {bandlimit:g}."
        )
    truncation = check_positive("truncation", truncation)
    if not TRUNCATIONS[0] <= truncation <= TRUNCATIONS[1]:
        raise InputError(f"truncation must be between 1e-6 and 1e6; got {truncation:g}.")
    return _basis(box, bandlimit, truncation)


def pswf_coefficients(
    images: Array | Particles,
    bandlimit: float = 0.5,
    *,
    truncation: float = 1.0,
    n_jobs: int | None = None,
) -> Singles:
    """Coefficients of images in the basis of `pswf_basis`.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
    bandlimit, truncation : float
        As for `pswf_basis`.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    coefficients : ndarray of float32, shape (n, L)
        White noise of variance 1 has white coefficients of variance 1. The row of an image with a
        NaN or an infinity anywhere is NaN.

    Raises
    ------
    InputError
        If the images are not a stack of squares, there are none, or `pswf_basis` raises it.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, _ = fs.simulate_particles(10, 0, box=24)
    >>> coefficients = fs.pswf_coefficients(images, bandlimit=0.3)
    >>> coefficients.shape == (10, len(fs.pswf_basis(24, 0.3).functions))
    True
    """
    particles = as_particles(images)
    basis = pswf_basis(particles.box, bandlimit, truncation=truncation)
    coefficients = np.empty((len(particles), len(basis.functions)), dtype=np.float32)
    start = 0
    # Workers get the basis from its arguments: it is too large to be sent with every task.
    for part in map_batches(_coefficients_batch, particles, bandlimit, truncation, n_jobs=n_jobs):
        coefficients[start : start + len(part)] = part
        start += len(part)
    return coefficients


def pswf_images(
    coefficients: npt.ArrayLike, box: int, bandlimit: float = 0.5, *, truncation: float = 1.0
) -> Images:
    """Images with given coefficients: the inverse of `pswf_coefficients` on the span of the basis.

    Parameters
    ----------
    coefficients : ndarray, shape (n, L)
    box : int
        Side of the images in pixels.
    bandlimit, truncation : float
        As for `pswf_basis`.

    Returns
    -------
    images : ndarray of float32, shape (n, box, box)
        Zero outside the disk; NaN where the coefficients are.

    Raises
    ------
    InputError
        If the coefficients are not those of this basis, or `pswf_basis` raises it.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> images, _ = fs.simulate_particles(10, 0, box=24)
    >>> coefficients = fs.pswf_coefficients(images, 0.3)
    >>> smooth = fs.pswf_images(coefficients, 24, 0.3)
    >>> smooth.shape
    (10, 24, 24)
    >>> bool(np.allclose(fs.pswf_coefficients(smooth, 0.3), coefficients, atol=1e-4))
    True
    """
    functions = pswf_basis(box, bandlimit, truncation=truncation).functions
    rows = np.asarray(coefficients)
    if rows.dtype.kind not in "fiub" or rows.ndim != 2 or rows.shape[1] != len(functions):
        raise InputError(
            f"coefficients must be real (n, {len(functions)}) for a box of {box} px at bandlimit "
            f"{bandlimit:g}; got {rows.dtype} {rows.shape}: "
            "give the box, bandlimit and truncation that they were made with."
        )
    with np.errstate(invalid="ignore", over="ignore"):
        flat = rows.astype(np.float32) @ functions.reshape(len(functions), -1)
    return flat.reshape(len(rows), box, box)


def angular_blocks(basis: PswfBasis) -> Blocks:
    """Return the places of the functions of each angular index in a basis.

    Returns
    -------
    blocks : tuple of ndarray of intp, shape (1 or 2, p)
        For m = 0, 1, ...: a row with the places of the cosines and, if m > 0, one with those of their sines.
    """
    blocks = []
    for m in range(int(basis.angular.max()) + 1):
        parts = (m, -m) if m > 0 else (0,)
        blocks.append(np.array([np.flatnonzero(basis.angular == part) for part in parts]))
    return tuple(blocks)


def _coefficients_batch(images: Images, start: int, bandlimit: float, truncation: float) -> Singles:
    functions = pswf_basis(images.shape[1], bandlimit, truncation=truncation).functions
    with np.errstate(invalid="ignore", over="ignore"):
        coefficients = images.reshape(len(images), -1) @ functions.reshape(len(functions), -1).T
    coefficients[~np.isfinite(coefficients).all(axis=1)] = np.nan
    return coefficients


@lru_cache(maxsize=2)
def _basis(box: int, bandlimit: float, truncation: float) -> PswfBasis:
    bandwidth = 2 * np.pi * bandlimit * (box // 2)
    size = bandwidth**2 * box * box
    if size > MAX_BYTES:
        raise InputError(
            f"a basis for a box of {box} px at bandlimit {bandlimit:g} would take {size / 2**30:.1f} GiB: "
            "crop the images to a smaller box, or lower the bandlimit."
        )
    # The number of threads would change the last bits; and on a busy machine, threads that wait for one
    # another cost far more time than they save.
    with one_blas_thread():
        return _sampled_basis(box, bandlimit, truncation, bandwidth)


def _sampled_basis(box: int, bandlimit: float, truncation: float, bandwidth: float) -> PswfBasis:
    radius = box // 2
    modes = radial_modes(bandwidth, truncation)
    if not modes:
        raise InputError(
            f"no function is left for a box of {box} px at bandlimit {bandlimit:g} and truncation "
            f"{truncation:g}: raise the bandlimit, or lower the truncation."
        )
    orders = [
        (m, n, part) for m, mode in enumerate(modes) for n in range(mode.size) for part in (0, 1)[: m + 1]
    ]
    order, radial, sine = np.array(orders, dtype=np.intp).T
    quarter = quarter_disk(radius)
    samples = np.empty((len(orders), len(quarter.x)))
    eigenvalues = np.empty(len(orders), dtype=np.complex128)
    squares, place = np.unique(quarter.y**2 + quarter.x**2, return_inverse=True)
    angle = np.arctan2(quarter.y, quarter.x)
    for m, mode in enumerate(modes):
        profiles = mode.evaluate(np.sqrt(squares) / radius)[:, place] / (radius * math.sqrt(np.pi))
        if m == 0:
            samples[order == 0] = profiles / math.sqrt(2)
        else:
            samples[(order == m) & (sine == 0)] = profiles * np.cos(m * angle)
            samples[(order == m) & (sine == 1)] = profiles * np.sin(m * angle)
        eigenvalues[order == m] = np.repeat(2 * np.pi * 1j ** (m % 4) * mode.eigenvalues, 1 + (m > 0))
    # Exact zeros: the computed sine of a multiple of pi is only nearly 0.
    samples[np.ix_((order + sine) % 2 == 1, quarter.x == 0)] = 0
    try:
        _orthonormalize(samples, quarter, order, sine)
    except np.linalg.LinAlgError:
        raise InputError(
            f"the pixels of a box of {box} px cannot tell the {len(orders)} functions apart that truncation "
            f"{truncation:g} keeps at bandlimit {bandlimit:g}: raise the truncation, or lower the bandlimit."
        ) from None
    functions = quarter.unfolded(samples, order, sine, box)
    basis = PswfBasis(functions, np.where(sine == 1, -order, order), radial, eigenvalues, box, bandlimit)
    for array in basis[:4]:
        array.flags.writeable = False
    return basis


def _orthonormalize(samples: Floats, quarter: Quarter, order: Indices, sine: Indices) -> None:
    """Replace samples on a quarter by the closest orthonormal ones over the disk, in place.

    Functions of different symmetry under the turns and reflections of the square grid are already
    orthogonal. Five blocks remain: cosines and sines for m divisible by 4, and by 2
    alone; and the cosines of odd m, whose sines are the same functions turned by a right angle.
    """
    for remainder in (0, 2):
        for part in (0, 1):
            block = np.flatnonzero((order % 4 == remainder) & (sine == part))
            if len(block):
                samples[block] = _closest_orthonormal(samples[block], quarter.weights)
    block = np.flatnonzero((order % 2 == 1) & (sine == 0))
    if len(block):
        cosines = _closest_orthonormal(samples[block], quarter.weights)
        samples[block] = cosines
        transposed = np.lexsort((quarter.y, quarter.x))
        sign = np.where(order[block] % 4 == 1, 1.0, -1.0)[:, np.newaxis]
        samples[block + 1] = sign * cosines[:, transposed]


def _closest_orthonormal(rows: Floats, weights: Floats) -> Floats:
    gram = (rows * weights) @ rows.T
    values, vectors = eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
    if values[0] < MIN_NORM:
        raise np.linalg.LinAlgError("dependent samples")
    return ((vectors / np.sqrt(values)) @ vectors.T) @ rows


class RadialModes(NamedTuple):
    """The kept radial functions of one angular index, as sums of Zernike polynomials.

    Attributes
    ----------
    angular : int
    coefficients : ndarray of float64, shape (n_modes, n_terms)
        Of orthonormal Zernike radial polynomials of degrees m, m + 2, ...
    eigenvalues : ndarray of float64, shape (n_modes,)
        beta in: integral from 0 to 1 of J_m(c r s) f(s) s ds = beta f(r); that of the finite
        Fourier transform is 2 pi i^m beta.
    """

    angular: int
    coefficients: Floats
    eigenvalues: Floats

    @property
    def size(self) -> int:
        """Number of functions."""
        return len(self.eigenvalues)

    def evaluate(self, radii: Floats) -> Floats:
        """Return the functions at radii from 0 to 1; their squares times r integrate to 1."""
        return self.coefficients @ zernike_radial(self.angular, self.coefficients.shape[1], radii)


def radial_modes(bandwidth: float, truncation: float) -> list[RadialModes]:
    """Return the radial parts of the prolate functions on the unit disk that a truncation keeps.

    Parameters
    ----------
    bandwidth : float
        c, in radians a radius of the disk.
    truncation : float
        As for `pswf_basis`.

    Returns
    -------
    modes : list of RadialModes
        For the angular indices 0, 1, ... up to the last with any function.

    Notes
    -----
    The radial functions are eigenfunctions of a differential operator that commutes with the
    transform, a symmetric tridiagonal matrix among the Zernike polynomials [1]_: n (n + 2) on the
    diagonal plus c^2 times the matrix of r^2. Its eigenvalues lie far apart, those of the transform
    (up to 1 / c) do not. The latter are Rayleigh quotients, whose absolute error is a rounding of
    1 / c: no quotient of two tiny numbers is taken, and the truncation removes functions with
    eigenvalues too small for this accuracy. The transform of a Zernike polynomial is known:
    (-1)^k J_{n+1}(c r) / (c r) for the degree n = m + 2 k.

    References
    ----------
    .. [1] Shkolnisky, "Prolate spheroidal wave functions on a disc - integration and approximation
       of two-dimensional bandlimited functions", Appl. Comput. Harmon. Anal. 22 (2007).
    """
    # Above degree c, coefficients fall faster than any power.
    degree = int(1.1 * bandwidth) + 60
    nodes, weights = roots_legendre(degree + 2)
    nodes, weights = (nodes + 1) / 2, weights / 2
    bessel = jv(np.arange(degree + 2)[:, np.newaxis], bandwidth * nodes)
    least = truncation**2 / (1 + truncation**2)
    modes: list[RadialModes] = []
    n_kept = degree
    for m in range(degree + 1):
        n_terms = (degree - m) // 2 + 1
        diagonal, beside = _square_radius(m, n_terms)
        degrees = m + 2 * np.arange(n_terms)
        # A function with more turns at the same radial index is less concentrated.
        _, vectors = eigh_tridiagonal(
            degrees * (degrees + 2) + bandwidth**2 * diagonal,
            bandwidth**2 * beside,
            select="i",
            select_range=(0, min(n_kept + 1, n_terms) - 1),
            check_finite=False,
        )
        profiles = vectors.T @ zernike_radial(m, n_terms, nodes)
        sign = (1 - 2.0 * (np.arange(n_terms) % 2)) * np.sqrt(2 * (degrees + 1))
        transforms = (vectors.T * sign) @ bessel[degrees + 1]
        eigenvalues = (profiles * transforms) @ weights / bandwidth
        kept = (bandwidth * eigenvalues) ** 2 > least
        n_kept = len(kept) if kept.all() else int(np.argmin(kept))
        if n_kept == 0:
            break
        profiles = profiles[:n_kept]
        # An eigenvector may have either sign: every function shall rise from the origin.
        high = np.abs(profiles) > 0.1 * np.abs(profiles).max(axis=1, keepdims=True)
        rising = np.sign(profiles[np.arange(n_kept), high.argmax(axis=1)])
        modes.append(RadialModes(m, rising[:, np.newaxis] * vectors.T[:n_kept], eigenvalues[:n_kept]))
    return modes


def zernike_radial(angular: int, n_terms: int, radii: Floats) -> Floats:
    """Return orthonormal Zernike radial polynomials, by their three-term recurrence.

    Parameters
    ----------
    angular : int
        m, not negative.
    n_terms : int
        Of the degrees m, m + 2, ...
    radii : ndarray of float64, shape (n_radii,)
        From 0 to 1.

    Returns
    -------
    polynomials : ndarray of float64, shape (n_terms, n_radii)
        The integral from 0 to 1 of the product of two, times r, is 0 or 1.
    """
    diagonal, beside = _square_radius(angular, n_terms)
    squares = radii * radii
    polynomials = np.empty((n_terms, len(radii)))
    polynomials[0] = math.sqrt(2 * (angular + 1)) * radii**angular
    if n_terms > 1:
        polynomials[1] = (squares - diagonal[0]) * polynomials[0] / beside[0]
    for k in range(2, n_terms):
        polynomials[k] = (
            (squares - diagonal[k - 1]) * polynomials[k - 1] - beside[k - 2] * polynomials[k - 2]
        ) / beside[k - 1]
    return polynomials


def _square_radius(angular: int, n_terms: int) -> tuple[Floats, Floats]:
    """Matrix of r^2 among the Zernike polynomials: its diagonal, and the one beside it.

    With x = 2 r^2 - 1 they are Jacobi polynomials for the weight (1 + x)^m.
    """
    k = np.arange(n_terms)
    degree = angular + 2.0 * k
    diagonal = np.full(n_terms, 0.5)
    if angular > 0:
        diagonal += 0.5 * angular**2 / (degree * (degree + 2))
    k, degree = k[1:], degree[1:]
    return diagonal, k * (k + angular) / (degree * np.sqrt(degree * degree - 1))
