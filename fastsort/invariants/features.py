"""Features that neither a turn nor a shift of the particle changes: Zernike moments of F^-1 |F image|."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy.special import jv

from fastsort._checks import InputError, check_choice, check_count
from fastsort._jit import kernel
from fastsort._progress import Progress
from fastsort._types import Array, Floats, Images, Indices, Singles
from fastsort.images.batches import map_batches
from fastsort.images.ctf import contrast_transfer
from fastsort.invariants.ring_statistics import (
    multiplicity,
    plane_radius,
    ring_statistics,
    rings_of_plane,
    subtract_background,
)
from fastsort.invariants.zernike import zernike_basis, zernike_index
from fastsort.particles.source import Particles, as_particles
from fastsort.particles.table import CtfParameters

Auto = Literal["auto"]

MAX_BYTES = 2 << 30
# Spectra at a time, few enough to stay in the processor's cache; and amplitudes at a time, enough that the
# product with a matrix larger than the cache is fast.
SPECTRA_BYTES = 2 << 20
AMPLITUDE_BYTES = 8 << 20
# Whitening must not raise frequencies that hold no signal: this part of the largest amplitude is the least.
LEAST_AMPLITUDE = 0.01
# Wiener's constant, as noise power over signal power: no amplitude is raised more than 2.9 times.
WIENER = 0.03


def invariant_features(
    images: Array | Particles,
    max_order: int = 20,
    *,
    noise_floor: Auto | Array | None = "auto",
    whiten: Auto | Array | None = None,
    ctf: Auto | CtfParameters | None = None,
    pixel_size: float | None = None,
    unit: bool = True,
    oversampling: int = 2,
    disk: str = "continuous",
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> Singles:
    """Absolute Zernike moments |a_nm| of T = F^-1 |F image|.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        Particles on a background; its mean outside the disk of radius d // 2 counts as zero.
    max_order : int
        Highest n.
    noise_floor : "auto", None or ndarray, shape (d // 2 + 1,)
        Power of the noise, as `RingStatistics.noise`; "auto" measures it. What noise adds to the mean of
        |F image| over a ring is subtracted. To compare the features of several calls, give the same to
        all of them.
    whiten : "auto" or ndarray, shape (d // 2 + 1,), optional
        Amplitude by which to divide |F image|, as `RingStatistics.amplitude`; "auto" measures it.
        The largest and the smallest divisor differ by a factor of 100 at most.
    ctf : "auto" or CtfParameters, optional
        One entry an image; "auto" takes those of the Particles. It does not matter whether the images
        are phase-flipped.
    pixel_size : float, optional
        In angstroms, for the CTF. By default that of the Particles, and 1 for an array.
    unit : bool
        Whether to scale every row to norm 1, so that gain, exposure and ice thickness do not matter. The
        row of an image without contrast is zero.
    oversampling : int
        The image is padded to so many times its side. At 1 the image and T count as periodic: then the
        tails of T come back from the other side, and a turn changes the features a little.
    disk : {"continuous", "pixels"}
        Whether the moments are integrals over the disk, or sums over its pixels.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    features : ndarray of float32, shape (n, n_features)
        By n, then by m: those of `feature_index`. The row of an image with a NaN or an infinity
        anywhere is NaN.

    Raises
    ------
    InputError
        If the images are not a stack of squares, there are none, or an argument is out of range.

    Notes
    -----
    These are the features of [1]_, equations 1 and 2. A shift does not change |F image|, T turns with the
    image, and a turn does not change the absolute moments. T is real and even, so the moments of odd n
    vanish and are left out. A feature with m > 0 stands for m and -m: its square is the energy of T in
    both, and distances between features are distances between all moments.

    T is never formed. By Parseval's theorem its moments are products of |F image| on half a plane with the
    transforms of the Zernike functions. For "continuous" these are the transforms of functions on the whole
    disk,

        2 pi R^2 (-1)^{(n - m) / 2} i^{-m} J_{n+1}(k R) / (k R) cos(m phi) or sin(m phi)

    for R_n^m cos(m theta) or sin(m theta), with R = d // 2 pixels, because a turn moves the pixels along
    the edge of the disk in and out. Frequency zero is left out, so that brightness does not matter.

    Noise of power P in a pixel has the mean amplitude f = d sqrt(pi P) / 2 (Rayleigh's law). Where there is
    a particle, noise adds less, because powers add and amplitudes do not: of a ring with mean amplitude a,
    a - sqrt(a^2 - f^2) is noise. With a CTF c, what remains is multiplied by |c| / (c^2 + 0.03).

    References
    ----------
    .. [1] Da, Yeo, Yang, Loh, "CryoEM 2D classification with translational and rotational invariant
       features".

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(5, 0, box=32, snr=1, seed=1)
    >>> features = fs.invariants.invariant_features(images, 10, noise_floor=None)
    >>> features.shape
    (5, 21)
    >>> turned = fs.invariants.invariant_features(np.rot90(images, axes=(1, 2)), 10, noise_floor=None)
    >>> bool(np.abs(turned - features).max() < 0.02)
    True
    """
    particles = as_particles(images, pixel_size=pixel_size)
    box = particles.box
    max_order = check_count("max_order", max_order, 0)
    oversampling = check_count("oversampling", oversampling)
    check_choice("disk", disk, ("continuous", "pixels"))
    size = box * oversampling
    n_bytes = 4 * (max_order // 2 + 1) ** 2 * size * (size // 2 + 1)
    if n_bytes > MAX_BYTES:
        raise InputError(
            f"features up to order {max_order} of a box of {box} px, oversampled {oversampling} times, would "
            f"take {n_bytes / 2**30:.1f} GiB: crop the images to a smaller box, or lower max_order."
        )
    noise, amplitude = (
        None if given is None or isinstance(given, str) else _check_curve(name, given, box)
        for name, given in (("noise_floor", noise_floor), ("whiten", whiten))
    )
    for name, given in (("noise_floor", noise_floor), ("whiten", whiten), ("ctf", ctf)):
        if isinstance(given, str):
            check_choice(name, given, ("auto",))
    if isinstance(noise_floor, str) or isinstance(whiten, str):
        rings = ring_statistics(particles, n_jobs=n_jobs)
        noise = rings.noise if isinstance(noise_floor, str) else noise
        amplitude = rings.amplitude if isinstance(whiten, str) else amplitude
    plan = FeaturePlan(
        box,
        max_order,
        oversampling,
        disk,
        None if noise is None else box * np.sqrt(np.pi * noise) / 2,
        None if amplitude is None else _whitening(amplitude),
        _check_ctf(ctf, particles),
        particles.pixel_size,
        bool(unit),
    )
    features = np.empty((len(particles), len(feature_index(max_order)[0])), dtype=np.float32)
    start = 0
    for part in map_batches(features_of, particles, plan, n_jobs=n_jobs, progress=progress):
        features[start : start + len(part)] = part
        start += len(part)
    return features


def feature_index(max_order: int = 20) -> tuple[Indices, Indices]:
    """Return n and m of each column of `invariant_features`: the even ones, by n, then by m."""
    order, angular = zernike_index(max_order)
    return order[order % 2 == 0], angular[order % 2 == 0]


class FeaturePlan(NamedTuple):
    """How to make features, in a form small enough to send to workers, which make the operator themselves.

    The names are those of the parameters of `invariant_features`; `floor` and `gain` hold one number a ring.
    """

    box: int
    max_order: int
    oversampling: int
    disk: str
    floor: Floats | None
    gain: Floats | None
    ctf: CtfParameters | None
    pixel_size: float
    unit: bool


def _check_curve(name: str, curve: Array, box: int) -> Floats:
    values = np.asarray(curve)
    if values.dtype.kind not in "fiu" or values.shape != (box // 2 + 1,):
        raise InputError(
            f"{name} must be real ({box // 2 + 1},) for a box of {box} px; "
            f"got {values.dtype} {values.shape}: give what ring_statistics measures."
        )
    checked: Floats = values.astype(np.float64)
    if not (np.isfinite(checked).all() and (checked >= 0).all()):
        raise InputError(
            f"{name} must be finite and not negative; got {checked.min():g} to {checked.max():g}."
        )
    if name == "whiten" and not checked[1:].any():
        raise InputError("whiten must not be zero at all frequencies: leave it out.")
    return checked


def _whitening(amplitude: Floats) -> Floats:
    largest = amplitude[1:].max()
    return 1 / np.maximum(amplitude, LEAST_AMPLITUDE * largest if largest > 0 else 1)


def _check_ctf(ctf: Auto | CtfParameters | None, particles: Particles) -> CtfParameters | None:
    if ctf is None:
        return None
    if isinstance(ctf, str):
        if particles.ctf is None:
            raise InputError(
                f"{particles.path or 'the array'} gives no CTF: leave ctf out, or give the parameters."
            )
        ctf = particles.ctf
    if not math.isfinite(particles.pixel_size):
        raise InputError("the pixel size is unknown: give pixel_size, in angstrom.")
    ctf = CtfParameters(*(np.atleast_1d(np.asarray(column, dtype=np.float64)) for column in ctf))
    for name, column in zip(ctf._fields, ctf, strict=True):
        if column.shape != (len(particles),):
            raise InputError(
                f"ctf.{name} must hold one number an image; got {column.shape} for {len(particles)} images: "
                "take the parameters of these very images."
            )
    return ctf


def features_of(images: Images, start: int, plan: FeaturePlan) -> Singles:
    """Features of a batch of images (n, d, d), which are overwritten; `start` is the place of the first."""
    box, size = plan.box, plan.box * plan.oversampling
    cosines, sines, paired = _operator(box, plan.max_order, plan.oversampling, plan.disk)
    even = cosines.shape[1]
    products = np.empty((len(images), len(cosines) + len(sines)), dtype=np.float32)
    gain = None if plan.gain is None else _half_plane(plan.gain, box, size)
    subtract_background(images)
    chunk = max(1, AMPLITUDE_BYTES // (4 * size * (size // 2 + 1)))
    # Using the same memory again costs less than new memory, which the system must clear first.
    room = np.empty((min(chunk, len(images)), size, size // 2 + 1), dtype=np.float32)
    spectra = np.empty_like(room[: max(1, SPECTRA_BYTES // (2 * room[0].nbytes))], dtype=np.complex64)
    with np.errstate(invalid="ignore", over="ignore"):
        for first in range(0, len(images), chunk):
            part = slice(first, first + chunk)
            amplitudes = _amplitudes(images[part], spectra, room)
            if plan.floor is not None:
                flat = amplitudes.reshape(len(amplitudes), -1)
                _subtract_noise(*rings_of_plane(box, size), plan.floor, np.empty(box // 2 + 1), flat)
            if gain is not None:
                amplitudes *= gain
            if plan.ctf is not None:
                own = slice(start + first, start + first + len(amplitudes))
                ctf = plan.ctf.of(own)
                transfer = np.abs(contrast_transfer(ctf, size, plan.pixel_size))
                amplitudes *= transfer / (transfer * transfer + np.float32(WIENER))
            _fold(amplitudes)
            flat = amplitudes.reshape(len(amplitudes), -1)
            np.matmul(flat[:, :even], cosines.T, out=products[part, : len(cosines)])
            np.matmul(flat[:, even:], sines.T, out=products[part, len(cosines) :])
    features = np.abs(products[:, : len(cosines)])
    features[:, paired] = np.hypot(features[:, paired], products[:, len(cosines) :])
    features[~np.isfinite(products).all(axis=1)] = np.nan
    if plan.unit:
        norm = np.sqrt(np.einsum("ij,ij->i", features, features, dtype=np.float64))
        features /= np.where(norm == 0, 1, norm)[:, np.newaxis]
    return features


def _amplitudes(images: Images, spectra: npt.NDArray[np.complex64], room: Singles) -> Singles:
    """|F image| of padded images, in `room`; `spectra` is scratch for a few of them."""
    n, box = images.shape[:2]
    size = spectra.shape[1]
    for first in range(0, n, len(spectra)):
        some = images[first : first + len(spectra)]
        here = spectra[: len(some)]
        # Rows of padding are not transformed along x; clear what the last batch left there.
        here[:, :box] = scipy.fft.rfft(some, n=size, workers=1)
        here[:, box:] = 0
        here = scipy.fft.fft(here, axis=1, overwrite_x=True, workers=1)
        np.abs(here, out=room[first : first + len(some)])
    return room[:n]


@kernel
def _subtract_noise(rings, weights, floor, means, amplitudes):
    # Subtract in place what noise adds to the mean of each ring; means is scratch.
    for i in range(amplitudes.shape[0]):
        means[:] = 0
        for k in range(amplitudes.shape[1]):
            means[rings[k]] += weights[k] * amplitudes[i, k]
        for ring in range(means.shape[0]):
            signal = means[ring] * means[ring] - floor[ring] * floor[ring]
            # A NaN must stay one.
            means[ring] -= 0.0 if signal < 0 else math.sqrt(signal)
        for k in range(amplitudes.shape[1]):
            amplitudes[i, k] -= means[rings[k]]


@kernel
def _fold(amplitudes):
    # In place: rows of frequencies y > 0 become sums with those of -y, and these become differences. Cosines
    # have the same sign in both, and sines the other, so that each needs one half.
    n, size, width = amplitudes.shape
    for i in range(n):
        for y in range(1, (size + 1) // 2):
            above = amplitudes[i, y]
            below = amplitudes[i, size - y]
            for x in range(width):
                one, other = above[x], below[x]
                above[x] = one + other
                below[x] = other - one


def _half_plane(curve: Floats, box: int, size: int) -> Singles:
    """Spread a curve over the half plane; constant beyond its end."""
    return np.interp(plane_radius(size) * box / size, np.arange(len(curve)), curve).astype(np.float32)


@lru_cache(maxsize=2)
def _operator(box: int, max_order: int, oversampling: int, disk: str) -> tuple[Singles, Singles, Indices]:
    """Matrices from folded |F image| to moments, cosines and sines; which feature each sine belongs to."""
    order, angular = feature_index(max_order)
    sine = np.flatnonzero(angular)
    size = box * oversampling
    rows = np.empty((len(order) + len(sine), size, size // 2 + 1), dtype=np.float32)
    transform = _continuous_rows if disk == "continuous" else _pixel_rows
    transform(rows, box, order, angular)
    weights = multiplicity(size) / size**2
    weights[0, 0] = 0
    rows *= weights.astype(np.float32)
    half = size // 2 + 1
    cosines, sines = (
        np.ascontiguousarray(part.reshape(len(part), -1))
        for part in (rows[: len(order), :half], rows[len(order) :, half:])
    )
    for matrix in (cosines, sines):
        matrix.flags.writeable = False
    return cosines, sines, sine


def _continuous_rows(rows: Singles, box: int, order: Indices, angular: Indices) -> None:
    """Fill in the transforms of Zernike functions on the whole disk."""
    size, radius = rows.shape[1], box // 2
    frequency = size * scipy.fft.fftfreq(size)[:, np.newaxis] + 1j * np.arange(size // 2 + 1)
    phi = np.arctan2(frequency.real, frequency.imag)
    squares, place = np.unique(np.rint(np.abs(frequency) ** 2), return_inverse=True)
    place = place.reshape(phi.shape)
    z = 2 * np.pi * radius / size * np.sqrt(squares[1:])
    # At the highest frequency of an even size both signs fall together, and their mean is taken.
    paired = np.ones(phi.shape)
    if size % 2 == 0:
        paired[size // 2] = paired[:, -1] = 0
    last = len(order)
    for i, (n, m) in enumerate(zip(order, angular, strict=True)):
        # n and m are even: the powers of i and -1 make one sign.
        scale = 2 * np.sqrt((1 + (m > 0)) * (n + 1) * np.pi) * radius * (-1) ** (n // 2)
        profile = np.append(scale / 2 if n == 0 else 0.0, scale * jv(n + 1, z) / z)[place]
        rows[i] = profile * np.cos(m * phi)
        if m:
            rows[last] = profile * np.sin(m * phi) * paired
            last += 1


def _pixel_rows(rows: Singles, box: int, order: Indices, angular: Indices) -> None:
    """Fill in the transforms of the samples of Zernike functions, from pixel d // 2."""
    size = rows.shape[1]
    basis = zernike_basis(box, int(order[-1]))
    even = np.flatnonzero(basis.order % 2 == 0)
    cosine, sine = (even[basis.angular[even] >= 0], even[basis.angular[even] < 0])
    frame = np.zeros((size, size))
    for i, function in enumerate(np.concatenate([cosine, sine])):
        frame[:box, :box] = basis.functions[function]
        shifted = np.roll(frame, (-(box // 2), -(box // 2)), axis=(0, 1))
        # Real, since the function is even and the disk symmetric.
        rows[i] = scipy.fft.rfft2(shifted, workers=1).real
