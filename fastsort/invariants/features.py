"""Features that neither a turn nor a shift of the particle changes: Zernike moments of F^-1 |F image|."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
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
# Images that lie side by side, as many as a vector of the processor has numbers; and spectra at a time, few
# enough to stay in its cache.
PACK = 16
PACKS_BYTES = 1 << 20
# Rows and columns of a matrix at a time: products so small are the fastest, and short sums are more exact.
ROWS = 6
PIECE = 2048
# In pixels: larger images get fast transforms.
LARGEST_BOX = 192
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
    # While the matrices are made, they are there twice.
    n_bytes = 4 * (max_order // 2 + 1) ** 2 * (size // 2 + 1) * (size // 2 + 2)
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
    n, box, size = len(images), plan.box, plan.box * plan.oversampling
    # For small images, matrix products take less time than fast transforms: a wave is even or odd about the
    # middle of a row, so that half of it is enough, and no number is complex.
    waves = _waves(box, size)
    operator, columns = _operator(box, plan.max_order, plan.oversampling, plan.disk)
    q, h = waves.shape[1:]
    packs = max(1, min(-(-n // PACK), PACKS_BYTES // (16 * PACK * q * q)))
    # One more than needed: numbers that lie a power of two apart share lines of the cache.
    parts = np.empty((2, 2, packs, h, h + 1, PACK), dtype=np.float32)
    rows = np.empty((2, 2, packs, q, h + 1, PACK), dtype=np.float32)
    parts_down, rows_down = (each[..., :h, :].swapaxes(3, 4) for each in (parts, rows))
    spectra = np.empty((2, 2, packs, q, q, PACK), dtype=np.float32)
    plus, minus = spectra[0, 0], spectra[1, 1]
    # Zero beyond the last frequency.
    pieces, length = operator[0].shape[::3]
    folded = np.zeros((4, packs, pieces, 1, length, PACK), dtype=np.float32)
    firsts = range(0, n, packs * PACK)
    moments = [np.empty((len(firsts), packs, *each.shape[:3], PACK), dtype=np.float32) for each in operator]
    means = np.empty((box // 2 + 1, PACK))
    gain = _gain(plan, size)
    with np.errstate(invalid="ignore", over="ignore"):
        for group, first in enumerate(firsts):
            subtract_background(images[first : first + packs * PACK])
            # The last image stands for those that are missing in its pack.
            chosen = np.minimum(first + np.arange(packs * PACK), n - 1)
            if box > LARGEST_BOX:
                # Rows of padding are not transformed along x.
                across = scipy.fft.rfft(images[first : chosen[-1] + 1], n=size, workers=1)
                amplitudes = np.abs(scipy.fft.fft(across, n=size, axis=1, workers=1))
                plus[:], minus[:] = _of_both(amplitudes[chosen - first])
            else:
                _mirror(images, first, parts.reshape(4, packs, h, h + 1, PACK))
                np.matmul(waves[:, None, None, None], parts_down, out=rows_down)
                np.matmul(waves[:, None, None], rows[..., :h, :], out=spectra)
                _find_amplitudes(*spectra.reshape(4, -1))
            if plan.floor is not None:
                both = (amplitudes.reshape(packs, q * q, PACK) for amplitudes in (plus, minus))
                _subtract_noise(*_rings(box, size), plan.floor, means, *both)
            if plan.ctf is not None:
                transfer = np.abs(contrast_transfer(plan.ctf.of(start + chosen), size, plan.pixel_size))
                transfer /= transfer * transfer + np.float32(WIENER)
                for amplitudes, factors in zip((plus, minus), _of_both(transfer), strict=True):
                    amplitudes *= factors
            _fold(plus, minus, gain, folded.reshape(4, packs, pieces * length, PACK))
            for matrices, each, found in zip(operator, folded, moments, strict=True):
                np.matmul(matrices, each, out=found[group])
        products = np.concatenate([found.sum(axis=2) for found in moments], axis=2)
        products = np.moveaxis(products, -1, 2).reshape(len(firsts) * packs * PACK, -1)[:n]
        features = np.abs(products[:, columns.cosines])
        features[:, columns.paired] = np.hypot(features[:, columns.paired], products[:, columns.sines])
    features[~np.isfinite(features).all(axis=1)] = np.nan
    if plan.unit:
        norm = np.sqrt(np.einsum("ij,ij->i", features, features, dtype=np.float64))
        features /= np.where(norm == 0, 1, norm)[:, np.newaxis]
    return features


@lru_cache(maxsize=2)
def _waves(box: int, size: int) -> Singles:
    """Cosines and sines of each frequency at the pixels of half a row, from its middle."""
    places = np.arange((box + 1) // 2) + (box % 2 == 0) / 2
    angle = 2 * np.pi / size * np.outer(np.arange(size // 2 + 1), places)
    waves = np.stack([np.cos(angle), np.sin(angle)])
    # The pixel in the middle is its own mirror image.
    waves[:, :, places == 0] /= 2
    return waves.astype(np.float32)


def _of_both(values: Singles) -> tuple[Singles, Singles]:
    """Values on the half plane of a real FFT, as those of the quadrant and of its mirror image."""
    size, q = values.shape[1:]
    beside = np.empty((len(values) // PACK, size, q, PACK), dtype=np.float32)
    for i in range(PACK):
        beside[..., i] = values[i::PACK]
    return beside[:, :q], beside[:, -np.arange(q)]


def _gain(plan: FeaturePlan, size: int) -> Singles:
    """What each frequency of the quadrant is multiplied by; constant beyond the end of the curve."""
    curve = np.ones(plan.box // 2 + 1) if plan.gain is None else plan.gain
    rings = plane_radius(size)[: size // 2 + 1] * plan.box / size
    return np.interp(rings, np.arange(len(curve)), curve).astype(np.float32)


@lru_cache(maxsize=2)
def _rings(box: int, size: int) -> tuple[Indices, Singles]:
    """Ring of each frequency of the quadrant, and what either amplitude there counts in the ring's mean."""
    rings, weights = rings_of_plane(box, size)
    of_either = (weights.reshape(size, -1)[: size // 2 + 1] * _share(size)).astype(np.float32).ravel()
    return rings[: len(of_either)], of_either


def _share(size: int) -> Floats:
    """How much of a coefficient of a real FFT either amplitude of the quadrant has, row by row."""
    # A frequency that has no other sign has both amplitudes.
    return np.where(2 * np.arange(size // 2 + 1) % size == 0, 0.5, 1)[:, np.newaxis]


@kernel
def _mirror(images, first, parts):
    # Sums and differences of mirrored pixels of images (n, d, d) from `first` on: parts (4, packs, h, h + 1,
    # PACK), even down and across, even and odd, odd and even, odd. Four images at a time: the cache holds no
    # more, and fewer fill less of a vector.
    n, d = images.shape[:2]
    h = parts.shape[2]
    for pack in range(parts.shape[1]):
        for start in range(0, PACK, 4):
            for y in range(h):
                for x in range(h):
                    for i in range(start, start + 4):
                        j = min(first + pack * PACK + i, n - 1)
                        a = images[j, d - h + y, d - h + x]
                        b = images[j, d - h + y, h - 1 - x]
                        c = images[j, h - 1 - y, d - h + x]
                        e = images[j, h - 1 - y, h - 1 - x]
                        parts[0, pack, y, x, i] = a + b + c + e
                        parts[1, pack, y, x, i] = a - b + c - e
                        parts[2, pack, y, x, i] = a + b - c - e
                        parts[3, pack, y, x, i] = a - b - c + e


@kernel
def _find_amplitudes(even, across, down, both):
    # Spectra of parts: even ones, odd across, odd down, odd in both. In place: the amplitude of each
    # frequency instead of the first, and that of its mirror image instead of the last.
    for k in range(len(even)):
        real = even[k] - both[k]
        imaginary = across[k] + down[k]
        mirrored_real = even[k] + both[k]
        mirrored_imaginary = across[k] - down[k]
        even[k] = math.sqrt(real * real + imaginary * imaginary)
        both[k] = math.sqrt(mirrored_real * mirrored_real + mirrored_imaginary * mirrored_imaginary)


@kernel
def _subtract_noise(rings, weights, floor, means, plus, minus):
    # Subtract from amplitudes (packs, k, PACK) in place what noise adds to the mean of each ring; means is
    # scratch.
    for pack in range(len(plus)):
        means[:] = 0
        for k in range(len(rings)):
            ring = rings[k]
            weight = weights[k]
            for i in range(PACK):
                means[ring, i] += weight * (plus[pack, k, i] + minus[pack, k, i])
        for ring in range(len(floor)):
            for i in range(PACK):
                signal = means[ring, i] * means[ring, i] - floor[ring] * floor[ring]
                # A NaN must stay one.
                means[ring, i] -= 0.0 if signal < 0 else math.sqrt(signal)
        for k in range(len(rings)):
            ring = rings[k]
            for i in range(PACK):
                plus[pack, k, i] -= means[ring, i]
                minus[pack, k, i] -= means[ring, i]


@kernel
def _fold(plus, minus, gain, folded):
    # Amplitudes (packs, q, q, PACK) at (v, u) and (-v, u). A cosine has the same sign at both, a sine the
    # other. Where u and v are swapped, cosines of m = 0, 4, 8 ... keep their sign, those of m = 2, 6, 10 ...
    # do not, and sines are the other way round. So each needs an eighth of the plane: folded (4, packs, k,
    # PACK), for cosines of the first and the second kind, and sines.
    for pack in range(len(plus)):
        k = 0
        for v in range(len(gain)):
            for u in range(v + 1):
                g = gain[v, u]
                for i in range(PACK):
                    here = g * (plus[pack, v, u, i] + minus[pack, v, u, i])
                    there = g * (plus[pack, u, v, i] + minus[pack, u, v, i])
                    folded[0, pack, k, i] = here + there
                    folded[1, pack, k, i] = here - there
                    here = g * (plus[pack, v, u, i] - minus[pack, v, u, i])
                    there = g * (plus[pack, u, v, i] - minus[pack, u, v, i])
                    folded[2, pack, k, i] = here - there
                    folded[3, pack, k, i] = here + there
                k += 1


class _Columns(NamedTuple):
    """Where the moments are among the products: cosines of all features, and sines of those that have one."""

    cosines: Indices
    paired: Indices
    sines: Indices


@lru_cache(maxsize=2)
def _operator(box: int, max_order: int, oversampling: int, disk: str) -> tuple[list[Singles], _Columns]:
    """Matrices from what `_fold` makes of |F image| to moments, and where these come to lie.

    They are divided into pieces, which are zero at the end, and blocks: (pieces, blocks, ROWS, length).
    """
    angular = feature_index(max_order)[1]
    size = box * oversampling
    v, u = np.tril_indices(size // 2 + 1)
    weights = (multiplicity(size)[: size // 2 + 1] * _share(size))[v, u] / size**2
    weights[v == u] /= 2
    weights[0] = 0
    waves = np.zeros((2, len(angular), len(v)), dtype=np.float32)
    transform = _continuous_rows if disk == "continuous" else _pixel_rows
    transform(waves, box, max_order, size, v, u)
    waves *= weights.astype(np.float32)
    pieces = -(-len(v) // PIECE)
    length = -(-len(v) // pieces)
    operator = []
    rows = np.zeros((2, len(angular)), dtype=np.intp)
    end = 0
    for sine, swapped in ((0, 0), (0, 2), (1, 0), (1, 2)):
        members = np.flatnonzero((angular % 4 == swapped) & (angular >= sine))
        blocks = -(-len(members) // ROWS)
        matrix = np.zeros((blocks * ROWS, pieces * length), dtype=np.float32)
        matrix[: len(members), : len(v)] = waves[sine, members]
        operator.append(np.moveaxis(matrix.reshape(blocks, ROWS, pieces, length), 2, 0).copy())
        rows[sine, members] = end + np.arange(len(members))
        end += blocks * ROWS
    paired = np.flatnonzero(angular)
    return operator, _Columns(rows[0], paired, rows[1, paired])


def _continuous_rows(waves: Singles, box: int, max_order: int, size: int, v: Indices, u: Indices) -> None:
    """Fill in the transforms of Zernike functions on the whole disk: cosines and sines."""
    radius = box // 2
    phi = np.arctan2(v, u)
    squares, place = np.unique(v * v + u * u, return_inverse=True)
    z = 2 * np.pi * radius / size * np.sqrt(squares[1:])
    # At the highest frequency of an even size both signs fall together, and their mean is taken.
    paired = (2 * v != size) & (2 * u != size)
    for i, (n, m) in enumerate(zip(*feature_index(max_order), strict=True)):
        # n and m are even: the powers of i and -1 make one sign.
        scale = 2 * np.sqrt((1 + (m > 0)) * (n + 1) * np.pi) * radius * (-1) ** (n // 2)
        profile = np.append(scale / 2 if n == 0 else 0.0, scale * jv(n + 1, z) / z)[place]
        waves[0, i] = profile * np.cos(m * phi)
        waves[1, i] = profile * np.sin(m * phi) * paired


def _pixel_rows(waves: Singles, box: int, max_order: int, size: int, v: Indices, u: Indices) -> None:
    """Fill in the transforms of the samples of Zernike functions, from pixel d // 2: cosines and sines."""
    basis = zernike_basis(box, max_order)
    frame = np.zeros((size, size))
    for i, (n, m) in enumerate(zip(*feature_index(max_order), strict=True)):
        for function in np.flatnonzero((basis.order == n) & (np.abs(basis.angular) == m)):
            frame[:box, :box] = basis.functions[function]
            shifted = np.roll(frame, (-(box // 2), -(box // 2)), axis=(0, 1))
            # Real, since the function is even and the disk symmetric.
            waves[int(basis.angular[function] < 0), i] = scipy.fft.rfft2(shifted, workers=1).real[v, u]
