"""Covariance Wiener filtering: images as members of a Gaussian whose covariance turns with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.fft
from scipy.linalg import eigh, svd

from fastsort._brief import brief
from fastsort._checks import InputError
from fastsort._process import one_blas_thread
from fastsort._progress import Progress
from fastsort._types import Array, Bools, Floats, Images, Indices, Singles
from fastsort.denoising.spectra import Spectra, learn_spectra, noise_like, on_plane, with_ctf
from fastsort.images.batches import default_batch_size, map_batches
from fastsort.images.ctf import contrast_transfer, phase_terms
from fastsort.invariants.ring_statistics import plane_radius
from fastsort.particles.source import Particles
from fastsort.particles.table import CtfParameters
from fastsort.subspaces.pswf import angular_blocks, pswf_basis, radial_modes

# Frequencies above the last where a set holds this part of its detectable signal are left out.
NEGLIGIBLE = 1e-3
MAX_WORKING_BOX = 96
NODES = 192
BATCH = 256
MAX_GROUPS = 24
CG_ROUNDS = 200
CG_TOLERANCE = 1e-5
TRUNCATION = 1.0
TEMPERING_ROUNDS = 3

Matrices = tuple[Floats, ...]


@brief
class CovarianceModel(NamedTuple):
    """What a covariance Wiener filter learned.

    The clean image has the coefficients mean + factor z in a steerable basis; z is standard normal.

    Attributes
    ----------
    box, working_box : int
        Sides of the images, and of the smaller ones that hold all frequencies used, in pixels.
    bandlimit : float
        Highest frequency used, in cycles a pixel of the working box.
    spectra : Spectra
        Noise and signal, ring by ring.
    mean : ndarray of float64, shape (p_0,)
        Mean coefficients of angular index 0.
    factors : tuple of ndarray of float64, shape (p_m, r_m)
        For each angular index, a root of the covariance; orthogonal columns, the strongest first.
    """

    box: int
    working_box: int
    bandlimit: float
    spectra: Spectra
    mean: Floats
    factors: Matrices


class Plan(NamedTuple):
    """What images go through before they become coordinates: fields of `CovarianceModel` and `Spectra`."""

    box: int
    working_box: int
    bandlimit: float
    pixel_size: float
    noise: Floats
    background: float
    largest: float


def learn_covariance(
    images: Array | Particles,
    *,
    ctf: CtfParameters | None = None,
    spectra: Spectra | None = None,
    n_jobs: int | None = None,
) -> CovarianceModel:
    """Learn the covariance of the clean images of a set.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        All are read, in batches. Images with a NaN or an infinity, and those of three times the typical
        power, are left out.
    ctf : CtfParameters, optional
        One entry an image. By default that of the set, none for an array.
    spectra : Spectra, optional
        From `learn_spectra`; learned by default.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    model : CovarianceModel

    Raises
    ------
    InputError
        If the images are not a stack of squares, or there are none.

    Notes
    -----
    This is covariance Wiener filtering [1]_ in prolate functions. All that an image y = H x + n says of x is
    its matched image H N^-1 y, taken in Fourier space, where H and the power N of the noise are numbers. In
    coefficients it is b = G x + e, and both the information and the covariance of e are G, the matrix of
    |H|^2 / N. Over all turned and mirrored copies, the covariance C of the coefficients is real and
    has one block for each angular index [2]_. Its least-squares estimate solves

        sum over images of G C G = sum over images of (b b^T - G),

    the normal equations of [1]_. Images of similar defocus share G. The right side is shrunk before: in the
    coordinates where the mean of G is 1, noise has the eigenvalue 1, and eigenvalues of signal are set to
    what is nearest to the truth in the Frobenius norm [3]_. Conjugate gradients solve the equations.

    Frequencies above those where the set shows a signal are left out, and images become as small as the rest
    allows, at most 96 px.

    References
    ----------
    .. [1] Bhamre, Zhang, Singer, "Denoising and covariance estimation of single particle cryo-EM images",
       J. Struct. Biol. 195 (2016).
    .. [2] Zhao, Shkolnisky, Singer, "Fast steerable principal component analysis", IEEE Trans.
       Comput. Imaging 2 (2016).
    .. [3] Donoho, Gavish, Johnstone, "Optimal shrinkage of eigenvalues in the spiked covariance model",
       Ann. Statist. 46 (2018).

    Examples
    --------
    >>> import fastsort as fs
    >>> from fastsort.denoising.covariance import covariance_filter, learn_covariance
    >>> images, _ = fs.simulate_particles(200, 0, snr=0.2, box=32, noise="white")
    >>> covariance_filter(images, learn_covariance(images)).shape
    (200, 32, 32)
    """
    particles, ctf = with_ctf(images, ctf)
    if spectra is None:
        spectra = learn_spectra(particles, ctf=ctf, n_jobs=n_jobs)
    working_box, bandlimit = choose_band(spectra, particles.box, len(particles))
    model = CovarianceModel(particles.box, working_box, bandlimit, spectra, np.zeros(0), ())
    mean, factors = fit_covariance(particles, ctf, plan_of(model, particles.pixel_size), n_jobs=n_jobs)
    return model._replace(mean=mean, factors=factors)


def without_mean(model: CovarianceModel) -> CovarianceModel:
    """Return a model that expects nothing of an image: the mean becomes a part of the covariance.

    Parameters
    ----------
    model : CovarianceModel

    Returns
    -------
    model : CovarianceModel
        With it, an image in which the mean of the others is not seen does not get it.
    """
    if not model.factors:
        return model
    # Roots of both, side by side, are a root of the sum.
    axes, sizes, _ = svd(np.column_stack([model.factors[0], model.mean]), full_matrices=False)
    kept = sizes > 1e-9 * max(sizes[0], 1e-300)
    first = axes[:, kept] * sizes[kept]
    return model._replace(mean=np.zeros_like(model.mean), factors=(first, *model.factors[1:]))


def fit_covariance(
    particles: Particles,
    ctf: CtfParameters | None,
    plan: Plan,
    *,
    extra: float = 0.0,
    seed: int = 0,
    n_jobs: int | None = None,
) -> tuple[Floats, Matrices]:
    """Mean and factors of the covariance of a set, from images with `extra` times their noise added."""
    profiles, group = group_profiles(ctf, plan)
    parts = map_batches(
        _moments_batch,
        particles,
        plan,
        len(profiles),
        extra,
        seed,
        each=(ctf, group),
        batch_size=batch_size(plan.box),
        n_jobs=n_jobs,
    )
    total, products, counts = next(parts)
    for part in parts:
        total += part[0]
        counts += part[2]
        for product, one in zip(products, part[1], strict=True):
            product += one
    with one_blas_thread():
        return _solve(total, products, counts, profiles / (1 + extra), extra, plan)


def batch_size(box: int) -> int:
    """Images a batch; the noise that is added to images depends on it."""
    return min(BATCH, default_batch_size(box))


def choose_band(spectra: Spectra, box: int, n: int) -> tuple[int, float]:
    """Working box in pixels and band limit in cycles a pixel of it that keep what a set can show."""
    rings = np.arange(1, box // 2)
    signal, noise = spectra.signal[1 : box // 2], spectra.noise[1 : box // 2]
    # A ring of r cycles a box holds about pi r independent coefficients an image.
    error = noise / np.sqrt(np.pi * rings * max(n, 1))
    signal = np.where(signal > 6 * error, signal, 0)
    found = rings * signal**2 / (signal + noise / max(n, 1) ** 0.5)
    rest = 1 - np.cumsum(found) / max(found.sum(), 1e-300)
    last = int(rings[np.argmax(rest < NEGLIGIBLE)]) + 1 if found.sum() > 0 else 4
    last = min(max(last, 4), MAX_WORKING_BOX // 2 - 1, box // 2 - 1)
    working_box = min(box, max(16, 2 * (last + 1)), MAX_WORKING_BOX)
    return working_box, min(last / working_box, 0.5)


@lru_cache(maxsize=8)
def quadrature(working_box: int, bandlimit: float) -> tuple[Floats, Matrices]:
    """Frequencies in parts of the band limit, and transforms of the basis there, one array an angular index.

    A radial multiplier M in Fourier space is the matrix ``(A * M(nodes)) @ A.T`` among the functions of an
    angular index: the transform of a prolate function is the function itself.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    nodes, weights = (nodes + 1) / 2, weights / 2
    bandwidth = 2 * np.pi * bandlimit * (working_box // 2)
    modes = radial_modes(bandwidth, TRUNCATION)
    return nodes, tuple(
        mode.evaluate(nodes) * np.sqrt(weights * nodes) * (bandwidth * mode.eigenvalues)[:, np.newaxis]
        for mode in modes
    )


def group_profiles(ctf: CtfParameters | None, plan: Plan) -> tuple[Floats, Indices | None]:
    """Squared transfer over noise for each group of similar defocus, and the group of each image."""
    nodes, _ = quadrature(plan.working_box, plan.bandlimit)
    frequency = nodes * plan.bandlimit * plan.working_box
    noise = np.interp(frequency, np.arange(len(plan.noise) - 1), plan.noise[:-1])
    if ctf is None:
        return 1 / noise[np.newaxis], None
    terms = phase_terms(ctf, plan.pixel_size)
    defocus = terms[:, 0] + terms[:, 1]
    values = np.unique(np.round(defocus, 9))
    if len(values) > MAX_GROUPS:
        values = np.quantile(defocus, (np.arange(MAX_GROUPS) + 0.5) / MAX_GROUPS)
    group = np.abs(defocus[:, np.newaxis] - values).argmin(axis=1).astype(np.intp)
    profiles = np.zeros((len(values), NODES))
    for one in range(len(values)):
        members = terms[group == one]
        members = members[np.linspace(0, len(members) - 1, 8).astype(int)] if len(members) else terms[:1]
        for angle in np.pi * (np.arange(16) + 0.5) / 16:
            y, x = np.sin(angle) * frequency / plan.box, np.cos(angle) * frequency / plan.box
            turns = np.stack([x * x, y * y, x * y, -((x * x + y * y) ** 2), np.ones_like(x)])
            profiles[one] += (np.sin(np.pi * members @ turns) ** 2).mean(axis=0) / 16
    return profiles / noise, group


def usable_images(images: Images, plan: Plan) -> Bools:
    """Which images are finite and no stronger than particles."""
    with np.errstate(invalid="ignore", over="ignore"):
        power = ((images - np.float32(plan.background)) ** 2).mean(axis=(1, 2), dtype=np.float64)
    usable: Bools = np.isfinite(power) & (power <= plan.largest)
    return usable


def matched_images(images: Images, ctf: CtfParameters | None, plan: Plan) -> Images:
    """Images times transfer over noise in Fourier space, in the working box: all that they say of x."""
    box, size = plan.box, plan.working_box
    images -= np.float32(plan.background)
    with np.errstate(invalid="ignore", over="ignore"):
        transforms = scipy.fft.rfft2(images, norm="ortho", workers=1)
        if ctf is not None:
            transforms *= contrast_transfer(ctf, box, plan.pixel_size)
        transforms *= _multiplier(plan.noise.tobytes(), box, plan.bandlimit * size)
        return resampled(transforms, box, size)


@lru_cache(maxsize=4)
def _multiplier(noise: bytes, box: int, limit: float) -> Singles:
    inverse = 1 / on_plane(np.frombuffer(noise), box)
    return np.where(plane_radius(box) <= limit + 1e-9, inverse, 0).astype(np.float32)


def resampled(transforms: Array, box: int, size: int) -> Images:
    """Images of `size` pixels from orthonormal half planes of `box`; the pixel size // 2 stays in place."""
    if size != box:
        transforms = _cut(transforms, box, size)
    return scipy.fft.irfft2(transforms, s=(size, size), norm="ortho", workers=1).astype(
        np.float32, copy=False
    )


def _cut(transforms: Array, box: int, size: int) -> Array:
    least = min(box, size)
    half = (least - 1) // 2
    rows = np.arange(-half, half + 1)
    new = np.zeros((len(transforms), size, size // 2 + 1), dtype=transforms.dtype)
    # The centre is box // 2 of the one grid and size // 2 of the other.
    shift = box // 2 / box - size // 2 / size
    phase = np.exp(2j * np.pi * shift * rows).astype(np.complex64)
    part = transforms[:, rows % box][:, :, : half + 1] * phase[:, np.newaxis] * phase[half:]
    new[:, (rows % size)[:, np.newaxis], np.arange(half + 1)] = part
    return new


def _moments_batch(
    images: Images,
    start: int,
    ctf: CtfParameters | None,
    group: Indices | None,
    plan: Plan,
    n_groups: int,
    extra: float,
    seed: int,
) -> tuple[Floats, list[Floats], Floats]:
    """Sums over usable images: coefficients of index 0, products for each index; images a group."""
    usable = usable_images(images, plan)
    if extra > 0:
        images += np.float32(extra**0.5) * noise_like(images, plan.noise, seed, start)
    counts = np.bincount(np.zeros(len(images), np.intp) if group is None else group, usable, n_groups)
    images[~usable] = plan.background
    matched = matched_images(images, ctf, plan)
    basis = pswf_basis(plan.working_box, plan.bandlimit, truncation=TRUNCATION)
    rows = (matched.reshape(len(images), -1) @ basis.functions.reshape(len(basis.angular), -1).T).astype(
        float
    )
    blocks = angular_blocks(basis)
    products = []
    for places in blocks:
        one = np.zeros((places.shape[1],) * 2)
        for place in places:
            one += rows[:, place].T @ rows[:, place]
        products.append(one / len(places))
    return rows[:, blocks[0][0]].sum(axis=0), products, np.asarray(counts, dtype=np.float64)


def _solve(
    total: Floats, products: list[Floats], counts: Floats, profiles: Floats, extra: float, plan: Plan
) -> tuple[Floats, Matrices]:
    """Mean and factors of the covariance from the sums over matched images."""
    _, functions = quadrature(plan.working_box, plan.bandlimit)
    n = max(counts.sum(), 1.0)
    # Matched images are in units of the noise without the extra one.
    total = total / (1 + extra)
    products = [product / (1 + extra) ** 2 for product in products]
    mean, factors = np.zeros(0), []
    share = counts / n
    seen = counts > 0 if counts.any() else np.ones(len(counts), bool)
    for m, (product, transforms) in enumerate(zip(products, functions, strict=True)):
        operators = np.array([(transforms * profile) @ transforms.T for profile in profiles[seen]])
        average = np.tensordot(share[seen], operators, 1)
        scatter = product / n
        if m == 0:
            mean = np.linalg.lstsq(average, total / n, rcond=1e-6)[0]
            centre = operators @ mean
            scatter = scatter - np.einsum("g,gi,gj->ij", share[seen], centre, centre)
        signal = shrunk(scatter, average, n * (1 + (m > 0)))
        covariance = _least_squares(signal, operators, share[seen])
        covariance = _tempered(covariance, average, n * (1 + (m > 0)))
        values, vectors = eigh(covariance)
        kept = values > 1e-9 * max(values[-1], 1e-300)
        factors.append((vectors[:, kept] * np.sqrt(values[kept]))[:, ::-1])
    return mean, tuple(factors)


def shrunk(scatter: Floats, noise: Floats, n: float) -> Floats:
    """Covariance of a signal from that of signal and noise over n samples: eigenvalues are shrunk."""
    values, vectors = eigh(noise)
    kept = values > 1e-6 * values[-1]
    root = vectors[:, kept] * np.sqrt(values[kept])
    inverse = vectors[:, kept] / np.sqrt(values[kept])
    found, axes = eigh(inverse.T @ scatter @ inverse)
    ratio = len(found) / n
    above = found > (1 + np.sqrt(ratio)) ** 2
    found, axes = found[above], axes[:, above]
    middle = found + 1 - ratio
    spike = (middle + np.sqrt(np.maximum(middle**2 - 4 * found, 0))) / 2
    cosine = (1 - ratio / (spike - 1) ** 2) / (1 + ratio / (spike - 1))
    size = (spike - 1) * cosine
    back = root @ axes
    result: Floats = (back * size) @ back.T
    return result


def _least_squares(signal: Floats, operators: Floats, share: Floats) -> Floats:
    """Solve sum over groups of share G C G = signal for a symmetric C by conjugate gradients."""
    # Preconditioned with the inverse of the mean operator on both sides.
    values, vectors = eigh(np.tensordot(share, operators, 1))
    kept = values > 1e-6 * values[-1]
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    if len(operators) == 1:
        return inverse @ signal @ inverse
    solution = np.zeros_like(signal)
    residual = signal.copy()
    direction = smooth = inverse @ residual @ inverse
    size = (residual * smooth).sum()
    first = size
    for _ in range(CG_ROUNDS):
        if size <= CG_TOLERANCE**2 * first or size <= 0:
            break
        product = np.tensordot(share, operators @ direction @ operators, 1)
        step = size / (direction * product).sum()
        solution = solution + step * direction
        residual = residual - step * product
        smooth = inverse @ residual @ inverse
        size, old = (residual * smooth).sum(), size
        direction = smooth + size / old * direction
    return (solution + solution.T) / 2


def _tempered(covariance: Floats, information: Floats, n: float) -> Floats:
    """Shrink the entries of a covariance between coefficients that n images say little of.

    An entry between eigenvectors of the mean information, with the eigenvalues mu and nu, has the variance
    1 / (n mu nu). It is multiplied with the gain of a Wiener filter, for entries of the size that they have.
    """
    values, axes = eigh(information)
    said = n * np.maximum(np.outer(values, values), 0)
    entries = axes.T @ covariance @ axes
    gain = np.ones_like(entries)
    for _ in range(TEMPERING_ROUNDS):
        size = (gain * said * entries**2).sum() / max((gain * said).sum(), 1e-300)
        gain = said * size / (1 + said * size)
    result: Floats = axes @ (gain * entries) @ axes.T
    return result


class Frame(NamedTuple):
    """Coordinates z of a model for a set of images: a clean image is the mean plus z times functions.

    Attributes
    ----------
    functions : ndarray of float32, shape (K, w, w)
        In the working box; scaled so that z of clean images has the covariance 1.
    angular : ndarray of intp, shape (K,)
        m for cosines, -m for sines.
    places : tuple of ndarray of intp, shape (1 or 2, r)
        For each angular index, where its cosines are, and its sines.
    information, inverse : tuple of ndarray of float64, shape (groups, r, r)
        G for each angular index and group of images, and (1 + G)^-1.
    mean : ndarray of float32, shape (w, w)
    shift : ndarray of float32, shape (groups, K)
        What the mean contributes to matched images.
    """

    functions: Singles
    angular: Indices
    places: tuple[Indices, ...]
    information: Matrices
    inverse: Matrices
    mean: Singles
    shift: Singles


def plan_of(model: CovarianceModel, pixel_size: float) -> Plan:
    """Return what images must go through before the coordinates of a model."""
    spectra = model.spectra
    return Plan(
        model.box,
        model.working_box,
        model.bandlimit,
        pixel_size,
        spectra.noise,
        spectra.background,
        spectra.largest,
    )


def frame_of(model: CovarianceModel, profiles: Floats) -> Frame:
    """Coordinates of a model for images whose groups have these profiles of transfer over noise."""
    basis = pswf_basis(model.working_box, model.bandlimit, truncation=TRUNCATION)
    flat = basis.functions.reshape(len(basis.angular), -1)
    _, waves = quadrature(model.working_box, model.bandlimit)
    size = sum(one.shape[1] * (1 + (m > 0)) for m, one in enumerate(model.factors))
    functions, angular = np.empty((size, flat.shape[1]), np.float32), np.empty(size, np.intp)
    shift = np.zeros((len(profiles), size), np.float32)
    places, information, start = [], [], 0
    parts = zip(angular_blocks(basis), model.factors, waves, strict=True)
    for m, (own, factor, wave) in enumerate(parts):
        rank = factor.shape[1]
        operators = np.array([(wave * profile) @ wave.T for profile in profiles])
        information.append(factor.T @ operators @ factor)
        place = start + np.arange(len(own) * rank).reshape(len(own), rank)
        for sign, new, old in zip((1, -1), place, own, strict=False):
            functions[new] = factor.T.astype(np.float32) @ flat[old]
            angular[new] = sign * m
        if m == 0:
            shift[:, place[0]] = operators @ model.mean @ factor
            mean = (model.mean @ flat[own[0]]).astype(np.float32)
        places.append(place)
        start += place.size
    box = model.working_box
    return Frame(
        functions.reshape(size, box, box),
        angular,
        tuple(places),
        tuple(information),
        inverses(information),
        mean.reshape(box, box),
        shift,
    )


def inverses(information: Iterable[Floats]) -> Matrices:
    """Return (1 + G)^-1 for each angular index and group of images."""
    return tuple(np.asarray(np.linalg.inv(np.eye(one.shape[1]) + one)) for one in information)


def covariance_filter(
    images: Array | Particles,
    model: CovarianceModel | None = None,
    *,
    ctf: CtfParameters | None = None,
    n_jobs: int | None = None,
) -> Images:
    """Denoise images with the covariance Wiener filter.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
    model : CovarianceModel, optional
        From `learn_covariance`; learned from the images by default.
    ctf : CtfParameters, optional
        One entry an image. By default that of the set, none for an array. It is corrected.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    denoised : ndarray of float32, shape (n, d, d)
        Without the background's grey value. An image with a NaN or an infinity stays what it is.

    Raises
    ------
    InputError
        If the images are not a stack of squares, there are none, or the model is one of another box.

    Notes
    -----
    The estimate is the mean of the posterior, mean + C (1 + G C)^-1 (b - G mean); see `learn_covariance`.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, _ = fs.simulate_particles(200, 0, snr=0.3, box=24, noise="white")
    >>> denoised = fs.denoising.covariance_filter(images)
    >>> bool(denoised.std() < images.std())
    True
    """
    particles, ctf = with_ctf(images, ctf)
    if model is None:
        model = learn_covariance(particles, ctf=ctf, n_jobs=n_jobs)
    return np.concatenate([*covariance_batches(particles, model, ctf=ctf, n_jobs=n_jobs)])


def covariance_batches(
    particles: Particles,
    model: CovarianceModel,
    *,
    ctf: CtfParameters | None = None,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Images]:
    """Denoise a set as `covariance_filter` does, and yield batch after batch, in order.

    Parameters
    ----------
    particles : Particles
    model : CovarianceModel
    ctf : CtfParameters, optional
        One entry an image. By default that of the set.
    n_jobs, progress
        As for `map_batches`.

    Yields
    ------
    denoised : ndarray of float32, shape (m, d, d)
    """
    particles, ctf = with_ctf(particles, ctf)
    if model.box != particles.box:
        raise InputError(f"the model is one of {model.box} px; the images have {particles.box} px.")
    plan = plan_of(model, particles.pixel_size)
    profiles, group = group_profiles(ctf, plan)
    with one_blas_thread():
        frame = frame_of(model, profiles)
    return map_batches(
        _filter_batch, particles, plan, frame, each=(ctf, group), n_jobs=n_jobs, progress=progress
    )


def _filter_batch(
    images: Images,
    start: int,
    ctf: CtfParameters | None,
    group: Indices | None,
    plan: Plan,
    frame: Frame,
) -> Images:
    return filtered(images, ctf, group, plan, frame, lambda rows: posterior(rows, group, frame))


def filtered(
    images: Images,
    ctf: CtfParameters | None,
    group: Indices | None,
    plan: Plan,
    frame: Frame,
    estimate: Callable[[Singles], Singles],
) -> Images:
    """Denoise images, overwritten here, by an estimate of z from what they say; those with a NaN stay."""
    spoilt = ~np.isfinite(images).all(axis=(1, 2))
    before = images[spoilt]
    images[spoilt] = plan.background
    denoised = draw(estimate(statistics_of(images, ctf, group, plan, frame)), frame, plan.box)
    denoised[spoilt] = before
    return denoised


def statistics_of(
    images: Images, ctf: CtfParameters | None, group: Indices | None, plan: Plan, frame: Frame
) -> Singles:
    """All that images, overwritten here, say of z: rows b (n, K) with mean G z and covariance G."""
    matched = matched_images(images, ctf, plan)
    rows = matched.reshape(len(images), -1) @ frame.functions.reshape(-1, frame.mean.size).T
    rows -= frame.shift[0 if group is None else group]
    return np.asarray(rows, dtype=np.float32)


def posterior(rows: Singles, group: Indices | None, frame: Frame) -> Singles:
    """Means of z (n, K) given what images say: (1 + G)^-1 b."""
    return apply_blocks(frame.inverse, rows, group, frame)


def apply_blocks(blocks: Matrices, rows: Singles, group: Indices | None, frame: Frame) -> Singles:
    """Multiply the coordinates of each image with the matrix (groups, r, r) of its group, index by index."""
    result = np.zeros_like(rows)
    if group is None:
        group = np.zeros(len(rows), np.intp)
    for one in np.unique(group):
        members = np.flatnonzero(group == one)
        some = rows[members]
        new = np.empty_like(some)
        for places, block in zip(frame.places, blocks, strict=True):
            matrix = block[one].T.astype(np.float32)
            for place in places:
                new[:, place] = some[:, place] @ matrix
        result[members] = new
    return result


def draw(z: Singles, frame: Frame, box: int) -> Images:
    """Clean images of `box` pixels with the coordinates z (n, K)."""
    w = frame.mean.shape[0]
    images = z @ frame.functions.reshape(-1, frame.mean.size)
    images = images.reshape(-1, w, w) + frame.mean
    if w == box:
        return images
    return resampled(scipy.fft.rfft2(images, norm="ortho", workers=1), w, box)
