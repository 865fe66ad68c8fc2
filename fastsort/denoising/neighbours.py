"""Denoising by neighbours: every image is explained by views that many images of the set agree on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft

from fastsort._brief import brief
from fastsort._checks import InputError, check_count
from fastsort._process import one_blas_thread
from fastsort._progress import Progress
from fastsort._types import Array, Floats, Images, Indices, Singles
from fastsort.denoising.covariance import (
    CovarianceModel,
    Frame,
    Matrices,
    Plan,
    apply_blocks,
    batch_size,
    filtered,
    fit_covariance,
    frame_of,
    group_profiles,
    inverses,
    learn_covariance,
    plan_of,
    posterior,
    statistics_of,
    usable_images,
)
from fastsort.denoising.spectra import Spectra, noise_like, with_ctf
from fastsort.images.batches import map_batches
from fastsort.particles.source import Particles, choose_particles, evenly_spaced
from fastsort.particles.table import CtfParameters

# Images from which views are learned, at most.
SAMPLE = 10_000
# Noise added to the images that views are learned from, in parts of their own.
EXTRA = 0.2
# Images a view, times the root of what an image says in all: strong images need fewer to make a view.
MEMBERS = 280.0
# Images that say no more than this need more members still.
WEAK, ENOUGH_VIEWS = 40.0, 48
FEWEST_MEMBERS = 4.0
MAX_VIEWS = 512
MAX_VIEWS_TOGETHER = 768
N_BANKS = 8
MAX_ROUNDS = 20
# A round counts as progress if it lowers the error to this part of the lowest before.
PROGRESS = 0.995
PATIENCE = 2
# Views count only if they lower the error to this part of that of the covariance filter.
WORTH = 0.97
# Variance about the views that the search starts with, and its limits.
SPREAD, LEAST_SPREAD, LARGEST_SPREAD = 0.1, 1e-4, 1.5
# How far the weights of a few modes are expected to lie from those of all modes, and those from (0, 1).
SCATTER, FREEDOM = 0.1, 0.25
# Modes that share weights.
MODES = 4
ANGLES_AN_INDEX = 2.5
CHUNK_VALUES = 1 << 21

Complexes = npt.NDArray[np.complex64]


@brief
class NeighbourModel(NamedTuple):
    """Views of the molecules, and how an image is mixed with them.

    Attributes
    ----------
    covariance : CovarianceModel
        Gives the coordinates z, in which clean images have the covariance 1.
    views : ndarray of float32, shape (P, K)
        Coordinates of each view, at one angle in the plane.
    spread : ndarray of float64, shape (K,)
        Variance of clean images about their views.
    weights : ndarray of float64, shape (2, K)
        In the result, of the covariance filter's estimate and of the estimate from the views.
    error : float
        Predicted mean square error in parts of the power that the coordinates describe, for images with
        1.2 times the noise. NaN where views do not help.
    """

    covariance: CovarianceModel
    views: Singles
    spread: Floats
    weights: Floats
    error: float


def learn_neighbours(
    images: Array | Particles,
    *,
    ctf: CtfParameters | None = None,
    spectra: Spectra | None = None,
    covariance: CovarianceModel | None = None,
    n_views: int | None = None,
    seed: int = 0,
    n_jobs: int | None = None,
) -> NeighbourModel:
    """Learn views of the molecules in a set, and what they are worth.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        If there are more than 10,000, so many are read, evenly spaced. Images with a NaN or an infinity are
        left out.
    ctf : CtfParameters, optional
        One entry an image. By default that of the set, none for an array.
    spectra : Spectra, optional
        From `learn_spectra`; learned by default.
    covariance : CovarianceModel, optional
        From `learn_covariance`; learned by default.
    n_views : int, optional
        Views a bank; chosen from the signal and the number of images by default.
    seed : int
        Chooses the images from which the views start, and the noise.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    model : NeighbourModel

    Raises
    ------
    InputError
        If the images are not a stack of squares, there are none, or a parameter is out of range.

    Notes
    -----
    In the coordinates of the covariance filter, an image is taken to be a view, turned by any angle in
    the plane and perhaps mirrored, plus a normal deviation with the variance V of each mode, seen
    through the contrast transfer function and noise. The views are learned by expectation-maximisation of
    this mixture [1]_ [2]_: all views at all angles share an image by how likely they are, and a view
    becomes the likeliest mean of its shares under the prior N(0, 1). A view is a block vector by angular
    index, so that the likelihoods of all angles are one short FFT. Views start from the covariance filter's
    estimates of single images. Up to eight banks of views are learned side by side, each by all images; the
    result is taken over their union, which tiles the directions more finely than one bank could be learned.

    The estimate from the views is the mean of the posterior, m + V (1 + G V)^-1 (b - G m), with the
    mean m of the views at their angles, and b and G from `statistics_of`. The result is the combination of
    it and the covariance filter's estimate that is nearest to the clean images.

    V, the weights of this combination and the number of rounds are learned with the coupled bootstrap
    [3]_: everything is made from images with extra noise, and compared with the same images with opposite
    extra noise, whose noise is independent. Thereby the views can not pass for better than they are.

    References
    ----------
    .. [1] Scheres, Valle, Nunez, Sorzano, Marabini, Herman, Carazo, "Maximum-likelihood multi-reference
       refinement for electron microscopy images", J. Mol. Biol. 348 (2005).
    .. [2] Zhao, Singer, "Rotationally invariant image representation for viewing direction
       classification in cryo-EM", J. Struct. Biol. 186 (2014).
    .. [3] Oliveira, Lei, Tibshirani, "Unbiased risk estimation in the normal means problem via coupled
       bootstrap techniques", arXiv:2111.09447 (2021).

    Examples
    --------
    >>> import fastsort as fs
    >>> from fastsort.denoising.neighbours import learn_neighbours, neighbour_filter
    >>> images, _ = fs.simulate_particles(200, 0, snr=0.5, box=24, noise="white")
    >>> model = learn_neighbours(images)
    >>> neighbour_filter(images, model).shape
    (200, 24, 24)
    """
    particles, ctf = with_ctf(images, ctf)
    if covariance is None:
        covariance = learn_covariance(particles, ctf=ctf, spectra=spectra, n_jobs=n_jobs)
    elif covariance.box != particles.box:
        raise InputError(f"the covariance is one of {covariance.box} px; the images have {particles.box} px.")
    chosen = evenly_spaced(len(particles), SAMPLE)
    n = len(chosen)
    some, ctf = choose_particles(particles, chosen), None if ctf is None else ctf.of(chosen)
    plan = plan_of(covariance, particles.pixel_size)
    mean, factors = fit_covariance(some, ctf, plan, extra=EXTRA, seed=seed, n_jobs=n_jobs)
    own = covariance._replace(mean=mean, factors=factors)
    profiles, group = group_profiles(ctf, plan)
    with one_blas_thread():
        frame = frame_of(own, profiles)
        if n_views is None:
            n_views = _number_of_views(frame, n)
        n_views = min(check_count("n_views", n_views), n)
        found = _Learning(some, ctf, group, plan, frame, seed, n_jobs).run(n_views)
    if found is None:
        size = sum(one.shape[1] * (1 + (m > 0)) for m, one in enumerate(covariance.factors))
        plain = np.stack([np.ones(size), np.zeros(size)])
        return NeighbourModel(covariance, np.zeros((1, size), np.float32), np.ones(size), plain, np.nan)
    return NeighbourModel(own, *found)


def neighbour_filter(
    images: Array | Particles,
    model: NeighbourModel | None = None,
    *,
    ctf: CtfParameters | None = None,
    n_jobs: int | None = None,
) -> Images:
    """Denoise images with the views that a set agrees on; see `neighbour_batches`.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
    model : NeighbourModel, optional
        From `learn_neighbours`; learned from the images by default.
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
    See `learn_neighbours`.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, _ = fs.simulate_particles(200, 0, snr=0.3, box=24, noise="white")
    >>> denoised = fs.denoising.neighbour_filter(images)
    >>> bool(denoised.std() < images.std())
    True
    """
    particles, ctf = with_ctf(images, ctf)
    if model is None:
        model = learn_neighbours(particles, ctf=ctf, n_jobs=n_jobs)
    return np.concatenate([*neighbour_batches(particles, model, ctf=ctf, n_jobs=n_jobs)])


def neighbour_batches(
    particles: Particles,
    model: NeighbourModel,
    *,
    ctf: CtfParameters | None = None,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Images]:
    """Denoise a set as `neighbour_filter` does, and yield batch after batch, in order.

    Parameters
    ----------
    particles : Particles
    model : NeighbourModel
    ctf : CtfParameters, optional
        One entry an image. By default that of the set.
    n_jobs, progress
        As for `map_batches`.

    Yields
    ------
    denoised : ndarray of float32, shape (m, d, d)
    """
    particles, ctf = with_ctf(particles, ctf)
    if model.covariance.box != particles.box:
        raise InputError(
            f"the model is one of {model.covariance.box} px; the images have {particles.box} px."
        )
    plan = plan_of(model.covariance, particles.pixel_size)
    profiles, group = group_profiles(ctf, plan)
    with one_blas_thread():
        frame = frame_of(model.covariance, profiles)
        search = _search(frame, model.views, model.spread)
    weights = model.weights.astype(np.float32)
    return map_batches(
        _filter_batch,
        particles,
        plan,
        frame,
        search,
        weights,
        each=(ctf, group),
        n_jobs=n_jobs,
        progress=progress,
    )


def _filter_batch(
    images: Images,
    start: int,
    ctf: CtfParameters | None,
    group: Indices | None,
    plan: Plan,
    frame: Frame,
    search: _Search,
    weights: Singles,
) -> Images:
    own = np.zeros(len(images), np.intp) if group is None else group

    def estimate(rows: Singles) -> Singles:
        mean = _expect(search, frame, rows, own).mean
        return weights[0] * posterior(rows, own, frame) + weights[1] * _about(search, frame, rows, own, mean)

    return filtered(images, ctf, group, plan, frame, estimate)


def _number_of_views(frame: Frame, n: int) -> int:
    """How many views a bank has, so that its images make good ones."""
    says = sum(
        len(places) * float(np.trace(one.mean(axis=0)))
        for places, one in zip(frame.places, frame.information, strict=True)
    )
    members = max(MEMBERS / max(says, 1e-6) ** 0.5, FEWEST_MEMBERS)
    # Weak images need more members still, as long as there are enough views.
    fewest = min(n / members, ENOUGH_VIEWS)
    return int(np.clip(n / members / (1 + WEAK / max(says, 1e-6)), max(fewest, 1), MAX_VIEWS))


class _Search(NamedTuple):
    """What the likelihoods of views need.

    Attributes
    ----------
    views : ndarray of float32, shape (P, K)
    n_banks : int
        Banks of equal size that are learned side by side.
    sharp : tuple of ndarray of float64, shape (groups, r, r)
        (1 + G V)^-1 for each angular index.
    tight : tuple of ndarray of float64, shape (groups, r, r)
        (1 + G V)^-1 G: information of an image about its view.
    around : tuple of ndarray of float64, shape (groups, r, r)
        V (1 + G V)^-1.
    half : ndarray of float32, shape (groups, P)
        Half of what each view would say of itself.
    n_angles : int
    """

    views: Singles
    n_banks: int
    sharp: Matrices
    tight: Matrices
    around: Matrices
    half: Singles
    n_angles: int


class _Expected(NamedTuple):
    """Posterior means of the views of images (n, K), and sums over images for new views."""

    mean: Singles
    total: Floats
    counts: Floats


def _search(frame: Frame, views: Singles, spread: Floats, n_banks: int = 1) -> _Search:
    sharp: list[Floats] = []
    tight: list[Floats] = []
    around: list[Floats] = []
    half = np.zeros((len(frame.shift), len(views)))
    for places, information in zip(frame.places, frame.information, strict=True):
        variance = np.diag(spread[places[0]])
        one: Floats = np.asarray(np.linalg.inv(np.eye(len(variance)) + information @ variance), np.float64)
        sharp.append(one)
        tight.append(one @ information)
        around.append(variance @ one)
        for place in places:
            part = views[:, place].astype(np.float64)
            half += 0.5 * ((part @ tight[-1]) * part).sum(axis=2)
    top = max((m for m, places in enumerate(frame.places) if places.size), default=0)
    n_angles = 2 * scipy.fft.next_fast_len(int(ANGLES_AN_INDEX * top / 2) + 8)
    return _Search(
        views, n_banks, tuple(sharp), tuple(tight), tuple(around), half.astype(np.float32), n_angles
    )


def _expect(
    search: _Search, frame: Frame, rows: Singles, group: Indices, leave: Indices | None = None
) -> _Expected:
    """Share images out among all views at all angles.

    `leave` (n, banks) names a view that has no part in an image, -1 for none.
    """
    n_views, n_angles = len(search.views), search.n_angles
    sharp = apply_blocks(search.sharp, rows, group, frame)
    found = _Expected(
        np.zeros_like(rows), np.zeros(search.views.shape), np.zeros((len(search.half), n_views))
    )
    used = [m for m, places in enumerate(frame.places) if places.size]
    views = {m: _as_complex(search.views, frame.places[m]) for m in used}
    step = max(1, CHUNK_VALUES // (2 * n_views * n_angles))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        seen = {m: _as_complex(sharp[part], frame.places[m]) for m in used}
        spectra = np.zeros((n_angles // 2 + 1, 2, len(rows[part]), n_views), np.complex64)
        for m in used:
            scaled = seen[m].conj() * np.float32(n_angles if m == 0 else n_angles / 2)
            # A mirrored view has the conjugate coefficients.
            np.matmul(scaled, views[m].T, out=spectra[m, 0])
            np.matmul(scaled, views[m].conj().T, out=spectra[m, 1])
        shares = scipy.fft.irfft(spectra, n=n_angles, axis=0, workers=1)
        shares -= search.half[group[part]]
        if leave is not None:
            for i, bank in np.argwhere(leave[part] >= 0):
                shares[:, :, i, leave[part][i, bank]] = -np.inf
        of_bank = _normalize(shares, search.n_banks)
        spectra = scipy.fft.rfft(shares, axis=0, overwrite_x=True, workers=1)
        for m in used:
            plain, mirrored = spectra[m].conj()
            mean = (plain * of_bank) @ views[m] + (mirrored * of_bank) @ views[m].conj()
            total = plain.conj().T @ seen[m] + mirrored.T @ seen[m].conj()
            places = frame.places[m]
            found.mean[part, places[0]] = mean.real
            found.total[:, places[0]] += total.real
            if m > 0:
                found.mean[part, places[1]] = -mean.imag
                found.total[:, places[1]] -= total.imag
        np.add.at(found.counts, group[part], spectra[0].real.sum(axis=0))
    return found


def _normalize(shares: Singles, n_banks: int) -> Singles:
    """Turn log likelihoods (angles, 2, n, P) into shares that sum to 1 in each bank, in place.

    Returns the share of the bank of each view, (n, P).
    """
    n, n_views = shares.shape[2:]
    banks = shares.reshape(*shares.shape[:2], n, n_banks, -1)
    top = banks.max(axis=(0, 1, 4))
    # A bank whose only view is left out has no likelihood at all.
    top = np.maximum(top, np.float32(-1e30))
    banks -= top[:, :, np.newaxis]
    np.exp(shares, out=shares)
    evidence = banks.sum(axis=(0, 1, 4))
    banks /= np.maximum(evidence, np.float32(1e-30))[:, :, np.newaxis]
    part = np.exp(top - top.max(axis=1, keepdims=True)) * evidence
    part /= np.maximum(part.sum(axis=1, keepdims=True), np.float32(1e-30))
    return np.repeat(part, n_views // n_banks, axis=1)


def _about(search: _Search, frame: Frame, rows: Singles, group: Indices, mean: Singles) -> Singles:
    """Posterior means of z (n, K) about means of views."""
    rest = rows - apply_blocks(frame.information, mean, group, frame)
    return mean + apply_blocks(search.around, rest, group, frame)


def _as_complex(rows: Singles, places: Indices) -> Complexes:
    """Cosines minus i times sines; turned by phi, they are multiplied with exp(i m phi)."""
    one = rows[:, places[0]].astype(np.complex64)
    return one if len(places) == 1 else one - np.complex64(1j) * rows[:, places[1]]


class _Learning(NamedTuple):
    """A set whose views are learned."""

    particles: Particles
    ctf: CtfParameters | None
    group: Indices | None
    plan: Plan
    frame: Frame
    seed: int
    n_jobs: int | None

    def run(self, n_views: int) -> tuple[Singles, Floats, Floats, float] | None:
        """Views, spread, weights and error of the best round; None if views do not help."""
        n, size = len(self.particles), len(self.frame.angular)
        if n < 2 or size == 0:
            return None
        spread, best = np.full(size, SPREAD), None
        n_banks = int(np.clip(MAX_VIEWS_TOGETHER // n_views, 1, N_BANKS))
        own = np.concatenate(
            [np.random.default_rng([self.seed, bank]).permutation(n)[:n_views] for bank in range(n_banks)]
        )
        views = self._first_views(own)
        leave = np.full((n, n_banks), -1)
        leave[own, np.repeat(np.arange(n_banks), n_views)] = np.arange(len(own))
        noisier = _noisier(self.frame)
        waited = 0
        for number in range(MAX_ROUNDS):
            search = _search(noisier, views, spread, n_banks)
            total, counts, moments, n_seen = self._round(search, noisier, leave if number == 0 else None)
            if n_seen < 2:
                break
            old = spread
            spread, weights, error, without = self._judge(moments, n_seen)
            waited = 0 if best is None or error < PROGRESS * best[3] else waited + 1
            if error < (WORTH * without if best is None else best[3]):
                best = views, old, weights, error
            if waited == PATIENCE:
                break
            views = _new_views(total, counts, search, noisier)
        return best

    def _first_views(self, own: Indices) -> Singles:
        parts = map_batches(
            _first_batch,
            choose_particles(self.particles, own),
            self.plan,
            self.frame,
            each=(
                None if self.ctf is None else self.ctf.of(own),
                None if self.group is None else self.group[own],
            ),
            batch_size=batch_size(self.plan.box),
            n_jobs=self.n_jobs,
        )
        return np.concatenate(list(parts))

    def _round(
        self, search: _Search, noisier: Frame, leave: Indices | None
    ) -> tuple[Floats, Floats, Floats, float]:
        parts = map_batches(
            _round_batch,
            self.particles,
            self.plan,
            self.frame,
            noisier,
            search,
            self.seed,
            each=(self.ctf, self.group, leave),
            batch_size=batch_size(self.plan.box),
            n_jobs=self.n_jobs,
        )
        total, counts, moments, n_seen = next(parts)
        for part in parts:
            total += part[0]
            counts += part[1]
            moments += part[2]
            n_seen += part[3]
        return total, counts, moments, n_seen

    def _judge(self, moments: Floats, n_seen: float) -> tuple[Floats, Floats, float, float]:
        """Spread, weights, error, and error without views, from sums over images (11, K).

        `_round_batch` says what they are.
        """
        together = _together(self.frame)
        pooled, overall = moments @ together, moments.sum(axis=1, keepdims=True)
        number = n_seen * together.sum(axis=0)
        weights = _regression(pooled, _regression(overall, np.array([[0.0], [1.0]]), FREEDOM), SCATTER)
        # What the views' means alone explain says how far clean images lie from them.
        slope = _slope(pooled[[7, 10]], _slope(overall[[7, 10]], np.ones(1), FREEDOM), SCATTER)
        spread = np.clip(1 + (1 - 2 * slope) * pooled[3] / number, LEAST_SPREAD, LARGEST_SPREAD)
        one, two = weights
        explained = (one**2 * pooled[0] + 2 * one * two * pooled[1] + two**2 * pooled[2]) / number
        # The covariance filter's weight is that which is best for all modes.
        alone = _slope(overall[[4, 8]], np.ones(1), FREEDOM)
        energy = (self.frame.functions.astype(np.float64) ** 2).sum(axis=(1, 2))
        plain = (2 * alone - 1) * pooled[0] / number
        error, without = (1 - float(energy @ part / energy.sum()) for part in (explained, plain))
        return spread, weights, error, without


def _first_batch(
    images: Images,
    start: int,
    ctf: CtfParameters | None,
    group: Indices | None,
    plan: Plan,
    frame: Frame,
) -> Singles:
    images[~usable_images(images, plan)] = plan.background
    return posterior(statistics_of(images, ctf, group, plan, frame), group, frame)


def _round_batch(
    images: Images,
    start: int,
    ctf: CtfParameters | None,
    group: Indices | None,
    leave: Indices | None,
    plan: Plan,
    frame: Frame,
    noisier: Frame,
    search: _Search,
    seed: int,
) -> tuple[Floats, Floats, Floats, float]:
    """Sums over images: for new views, and products of estimates with each other and with the second half.

    The products are, for the covariance filter's estimate f, that about the views g, and the views' mean m:
    f f, f g, g g, m m; the same with G between the two; f b, g b, m b.
    """
    usable = usable_images(images, plan)
    images[~usable] = plan.background
    noise = noise_like(images, plan.noise, seed, start)
    root = np.float32(EXTRA**0.5)
    # In units of the larger noise, the first half has the information of `noisier`.
    first = statistics_of(images + root * noise, ctf, group, plan, frame) / np.float32(1 + EXTRA)
    second = statistics_of(images - noise / root, ctf, group, plan, frame)
    group = np.zeros(len(images), np.intp) if group is None else group
    group, first, second = group[usable], first[usable], second[usable]
    mean, total, counts = _expect(search, noisier, first, group, None if leave is None else leave[usable])
    one, two = posterior(first, group, noisier), _about(search, noisier, first, group, mean)
    heard = [apply_blocks(frame.information, estimate, group, frame) for estimate in (one, two, mean)]
    pairs = (
        *((one, one), (one, two), (two, two), (mean, mean)),
        *((one, heard[0]), (one, heard[1]), (two, heard[1]), (mean, heard[2])),
        *((one, second), (two, second), (mean, second)),
    )
    moments = np.stack([(a * b).sum(axis=0, dtype=np.float64) for a, b in pairs])
    return total, counts, moments, float(usable.sum())


def _noisier(frame: Frame) -> Frame:
    """Return the coordinates for images with the extra noise."""
    information = tuple(one / (1 + EXTRA) for one in frame.information)
    return frame._replace(information=information, inverse=inverses(information))


def _new_views(total: Floats, counts: Floats, search: _Search, frame: Frame) -> Singles:
    """Likeliest views under the prior, from the sums over images."""
    views = np.zeros(total.shape, np.float32)
    for places, tight in zip(frame.places, search.tight, strict=True):
        precision = np.eye(tight.shape[1]) + np.tensordot(counts.T, tight, 1)
        for place in places:
            views[:, place] = np.linalg.solve(precision, total[:, place, np.newaxis])[..., 0]
    return views


def _together(frame: Frame) -> Floats:
    """Which modes share weights, as a matrix (K, K) of ones: cosines, sines, and some of like information."""
    size = len(frame.angular)
    values = np.zeros(size)
    for places, information in zip(frame.places, frame.information, strict=True):
        values[places] = np.diagonal(information.mean(axis=0))
    rank = np.empty(size, np.intp)
    rank[np.argsort(-values, kind="stable")] = np.arange(size) // MODES
    return (rank[:, np.newaxis] == rank).astype(np.float64)


def _regression(sums: Floats, prior: Floats, scatter: float) -> Floats:
    """Weights (2, modes) of two estimates, from sums of products; the prior is normal about `prior`."""
    scale, stiff = 1 + 1 / EXTRA, scatter**-2.0
    aa, ab, bb = sums[4] / scale + stiff, sums[5] / scale, sums[6] / scale + stiff
    a, b = sums[8] / scale + stiff * prior[0], sums[9] / scale + stiff * prior[1]
    determinant = aa * bb - ab**2
    return np.stack([bb * a - ab * b, aa * b - ab * a]) / determinant


def _slope(sums: Floats, prior: Floats, scatter: float) -> Floats:
    """Weight of one estimate, from sums of its products with itself and with the second half."""
    scale, stiff = 1 + 1 / EXTRA, scatter**-2.0
    slope: Floats = (sums[1] / scale + stiff * prior) / (sums[0] / scale + stiff)
    return slope
