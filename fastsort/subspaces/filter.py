"""From images to verdicts: do they look like the particles of the set, or like their surroundings?"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._bulk import excess_distance, fit_bulk
from fastsort._checks import check_choice, check_count, check_not_empty
from fastsort._crop import crop_operator
from fastsort._process import one_blas_thread
from fastsort._reasons import (
    CONTAMINATION,
    MULTIPLE,
    NOISE,
    OFF_CENTRE,
    PARTIAL,
    VALID,
    reason_names,
    suspicions,
)
from fastsort._threshold import MIN_JUDGED, balanced_threshold
from fastsort.images.batches import map_batches
from fastsort.images.normalize import inspect_pixels, normalize_background
from fastsort.images.prepare import crop_and_normalize, sample_batches
from fastsort.particles.source import open_particles
from fastsort.subspaces.fit import PRESETS, check_counts, fit_subspaces
from fastsort.subspaces.mixture import FitTrace, SubspaceModel
from fastsort.subspaces.pswf import Blocks, PswfBasis, angular_blocks, pswf_basis
from fastsort.subspaces.rows import Rows
from fastsort.subspaces.scores import Prepared, denoise, evaluate, measure, prepare
from fastsort.subspaces.shapes import Shape, fit_shape, log_ratio, regularize, relative_level

if TYPE_CHECKING:
    from fastsort.particles.source import Particles

# Larger images show no more (measured at 32 to 48 px), nor do higher frequencies than this, in cycles
# a pixel of that grid.
GRID = 36
BANDLIMIT = 0.35
BATCH = 512
N_TAUGHT = 4096
# The share of the images that stand for particles while learning, small enough for sets that are
# mostly junk; of the first round, which has to choose among all.
PROMISING = 0.3
FIRST = 0.5
N_CONCENTRATIONS = 5
N_REFINEMENTS = 2
# Mahalanobis distances beyond the bulk from which on an image does not teach.
OUTLYING = 1.0
EXCLUDED = 3.0
SLACK = 0.5
# A band with so many deviations more power than particles have counts against an image.
EXCESS = 3.0
# Where else a particle is looked for, in parts of the box, and by how many nats it must win.
NEARBY, ASIDE = 0.27, 0.45
DIRECTIONS = tuple((math.sin(0.25 * math.pi * k), math.cos(0.25 * math.pi * k)) for k in range(8))
CLEARLY = 3.0
# Evidence for a particle beside the centre, or for two on opposite sides, counts against an image from so
# many deviations above what particles show.
BESIDE = 1.0
# Log-likelihood ratios scatter by more than this in any set that is not one image many times.
LEAST_SPREAD = 0.1

Array = npt.NDArray[np.float64]


@brief
class SubspaceResult(NamedTuple):
    """Verdict on every image, in input order.

    Attributes
    ----------
    keep : ndarray of bool, shape (n,)
    score : ndarray of float64, shape (n,)
        Larger for junk: log-likelihood ratio of the surroundings to the particles, plus what unusual
        power and particles beside the centre cost, in nats; with the published preset the sorting
        factor. Infinite for images that cannot be judged.
    reason : ndarray of str, shape (n,)
    suspicion : ndarray of str, shape (n,)
        Why the image would be rejected, should it be; for rejected images the same as `reason`.
    junk_probability : ndarray of float64, shape (n,)
        From the score and the share of junk that fits all scores; NaN with fewer than 50 images; 0
        or 1 if published.
    factor : ndarray of float64, shape (n,)
        As `sorting_factor` in the learned subspaces; NaN where they are not described.
    log_likelihood : ndarray of float64, shape (n,)
        Of the image in the learned subspaces; NaN where they are not described.
    excess : ndarray of float32, shape (n,)
        Deviations by which the band of frequencies that stands out most has more power than in
        particles (of the logarithm); NaN if published.
    beside : ndarray of float32, shape (n, 2)
        Log-likelihood ratio of a particle 0.27 of the box off the centre, the highest in any direction,
        and the highest that two opposite directions both reach; NaN if published.
    threshold : float
        Images with a larger score are rejected; NaN if published or with fewer than 50 images.
    radius : float
        Of the particle in pixels, estimated: where its variance ends; NaN if published or where
        nothing could be learned.
    contrast : str
        "bright" or "dark".
    model : SubspaceModel
        Subspaces of the images that are kept, among coefficients of `basis`; without dimensions and
        iterations where they are not described.
    basis : PswfBasis
        Of the cropped images.
    learned : LearnedShapes or None
        What the score rests on, to score more images with; None if published or where nothing could
        be learned.
    """

    keep: npt.NDArray[np.bool_]
    score: Array
    reason: npt.NDArray[np.str_]
    suspicion: npt.NDArray[np.str_]
    junk_probability: Array
    factor: Array
    log_likelihood: Array
    excess: npt.NDArray[np.float32]
    beside: npt.NDArray[np.float32]
    threshold: float
    radius: float
    contrast: str
    model: SubspaceModel
    basis: PswfBasis
    learned: LearnedShapes | None

    @property
    def cut(self) -> float:
        """The name of `threshold` in version 0.1.0."""
        return self.threshold


def eigenimages(result: SubspaceResult, n_images: int) -> npt.NDArray[np.float32]:
    """Mean and principal axes of each subspace as images.

    Parameters
    ----------
    result : SubspaceResult
    n_images : int
        How many of each subspace at most.

    Returns
    -------
    images : ndarray of float32, shape (M, k, d, d)
        The mean first, then the axes with the largest variance; of a pair that differs by a rotation
        alone, only the cosine.
    """
    model, basis = result.model, result.basis
    pictures = []
    for mean, loading in zip(model.means, model.loadings, strict=True):
        order = np.argsort(-np.square(loading).sum(axis=0), kind="stable")
        # The sine of a pair lives on functions of negative angular index.
        positive = np.square(loading[basis.angular >= 0]).sum(axis=0)
        sine = (positive == 0) & (np.square(loading).sum(axis=0) > 0)
        cosines = [k for k in order if not sine[k]]
        rows = np.column_stack([mean, loading[:, cosines[: n_images - 1]]]).T
        pictures.append(np.tensordot(rows.astype(np.float32), basis.functions, 1))
    fewest = min(len(part) for part in pictures)
    return np.stack([part[:fewest] for part in pictures])


def denoised_images(
    images: npt.NDArray[np.float32], result: SubspaceResult
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Images as the filter sees them, and what the learned subspaces take for signal in them.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        Of the set that was sorted.
    result : SubspaceResult

    Returns
    -------
    seen, denoised : ndarray of float32, shape (n, g, g)
        Cropped to the grid of the basis, with background mean 0 and deviation 1; and their posterior
        mean in the subspaces.
    """
    basis = result.basis
    seen = crop_and_normalize(images, crop_operator(images.shape[1], basis.box))
    clean = denoise(_coefficients(seen, basis).astype(np.float32), result.model, n_jobs=1)
    return seen, np.tensordot(clean, basis.functions, 1)


class _Batch(NamedTuple):
    codes: npt.NDArray[np.int8]
    score: Array
    factor: Array
    log_likelihood: Array
    excess: npt.NDArray[np.float32]
    beside: npt.NDArray[np.float32]


class LearnedShapes(NamedTuple):
    """What was learned of particles and surroundings: all that is needed to score an image.

    Attributes
    ----------
    basis : PswfBasis
        Of the cropped images.
    blocks, bands : tuple of ndarray
        Its functions, by angle and by frequency.
    particle, background : Shape
    usual, spread : ndarray of float64, shape (b,)
        Logarithm of the power of particles in each band, and how much it scatters.
    steep : float
        Slope of the spectrum of particles.
    beside : ndarray of float64, shape (2, 2)
        What particles show beside the centre, and how much that scatters: the highest ratio in any
        direction, and the highest that two opposite directions both reach.
    subspaces : SubspaceModel
        As `SubspaceResult.model`.
    described : Prepared or None
        The subspaces as `factor` and `log_likelihood` need them.
    """

    basis: PswfBasis
    blocks: Blocks
    bands: tuple[npt.NDArray[np.intp], ...]
    particle: Shape
    background: Shape
    usual: Array
    spread: Array
    steep: float
    beside: Array
    subspaces: SubspaceModel
    described: Prepared | None


def subspace_filter(
    images: npt.NDArray[Any] | Particles,
    n_subspaces: int | None = None,
    n_components: int | None = None,
    *,
    preset: str = "default",
    describe: bool = True,
    learned: LearnedShapes | None = None,
    work: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SubspaceResult:
    """Sort images by what they are made of.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        The background is normalised. Neither the size nor the contrast of the particle is needed.
    n_subspaces, n_components : int, optional
        As for `fit_subspaces`.
    preset : {"default", "published"}
        "published" is the algorithm of [1]_ on prolate coefficients: what it discards is rejected.
    describe : bool
        Whether to say with `fit_subspaces` what the particles are made of. The verdict does not depend
        on it.
    learned : LearnedShapes, optional
        From an earlier result on images of the same box: nothing is learned from these.
    work : path, optional
        Existing folder for the coefficients of all images, which the published preset needs; by
        default the system's.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
        For the sample that is learned from, and for `fit_subspaces`.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    result : SubspaceResult

    Raises
    ------
    InputError
        If the images cannot be sorted or a parameter is out of range.

    Notes
    -----
    The default asks of every image whether it is more like the particles of this set or more like
    other places of the same images, which have the same noise, defocus and normalisation: displaced
    by half a box, they hold no centred particle. Both are shapes, covariances of the prolate
    coefficients under all in-plane rotations, in which only the direction of an image counts. Strong
    contamination thus has no more say than a faint particle, and one that lies in the same directions
    is told by the power in bands of frequency, where it must not be far from most.

    The particles' shape is learned from the 30 % of a sample of at most 4096 images that look most
    like particles and least like contamination, chosen anew five times, then twice from all that are
    kept. The score is the logarithm of the likelihood ratio, plus (z^2 - 9) / 2 where a band has z > 3
    deviations more power than in particles, plus (z^2 - 1) / 2 where the image moved by 0.27 of the box
    in one of eight directions looks z > 1 deviations more like a particle than a centred particle does,
    and the same where two opposite directions do. With the share of junk that makes all scores most
    likely, it gives the probability, and the threshold is where junk becomes likelier.
    `fit_subspaces` with the basis then describes what the particles are made of.

    References
    ----------
    .. [1] Weiss-Dicker, Eldar, Shkolnisky, Bendory, "Unsupervised particle sorting for cryo-EM using
       probabilistic PCA" (2023).
    """
    particles = open_particles(images)
    check_not_empty(len(particles))
    check_choice("preset", preset, PRESETS)
    seed = check_count("seed", seed, 0)
    operator = crop_operator(particles.box, min(particles.box, GRID))
    basis = pswf_basis(len(operator), BANDLIMIT)
    check_numbers(n_subspaces, n_components, particles.box)
    numbers = n_subspaces, n_components
    if preset == "published":
        return _published(particles, operator, basis, numbers, work, n_jobs, seed, progress)
    model = learned
    if model is None:
        sample = _sample(particles, operator, seed)
        with one_blas_thread():
            model = None if len(sample) < 2 else _learn(sample, basis, describe, numbers, n_jobs, seed)
    if model is None:
        found = _gather(map_batches(_unjudged_batch, particles, n_jobs=n_jobs, progress=progress))
        return _unjudged(found, basis)
    batches = map_batches(
        _batch, particles, operator, model, batch_size=BATCH, n_jobs=n_jobs, progress=progress
    )
    return _result(_gather(batches), model, particles.box / len(operator))


def check_numbers(n_subspaces: int | None, n_components: int | None, box: int) -> None:
    """Refuse numbers that no set of images of `box` pixels could have."""
    check_counts(n_subspaces, n_components, len(pswf_basis(min(box, GRID), BANDLIMIT).functions))


def _sample(particles: Particles, operator: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float32]:
    """Cropped and normalised images to learn from."""
    images = np.concatenate(list(sample_batches(particles, operator, N_TAUGHT, BATCH, seed)))
    normalize_background(images, 0.5 * len(operator))
    return images


def _coefficients(images: npt.NDArray[np.float32], basis: PswfBasis) -> Array:
    flat = basis.functions.reshape(len(basis.functions), -1)
    found: Array = (images.reshape(len(images), -1) @ flat.T).astype(np.float64)
    return found


def frequency_bands(basis: PswfBasis) -> tuple[npt.NDArray[np.intp], ...]:
    """Split functions into about six octaves by how fast they oscillate."""
    order = np.abs(basis.angular) + 2 * basis.radial
    edges = np.unique(np.rint(np.geomspace(1, order.max() + 2, 7)).astype(int)) - 1
    bands = [np.flatnonzero((order >= low) & (order < high)) for low, high in itertools.pairwise(edges)]
    return tuple(band for band in bands if len(band))


def _log_powers(coefficients: Array, bands: tuple[npt.NDArray[np.intp], ...]) -> Array:
    powers = [np.square(coefficients[:, band]).mean(axis=1) for band in bands]
    return np.log(np.stack(powers, axis=1) + 1e-12)


def _learn(
    images: npt.NDArray[np.float32],
    basis: PswfBasis,
    describe: bool,
    numbers: tuple[int | None, int | None],
    n_jobs: int | None,
    seed: int,
) -> LearnedShapes:
    n, half = len(images), images.shape[1] // 2
    blocks, bands = angular_blocks(basis), frequency_bands(basis)
    centred = _coefficients(images, basis)
    shifts = ((half, 0), (0, half), (half, half))
    displaced = np.concatenate([_coefficients(np.roll(images, shift, (1, 2)), basis) for shift in shifts])
    powers = _log_powers(centred, bands)
    outlying = excess_distance(powers, fit_bulk(powers))
    other_powers = _log_powers(displaced, bands)
    ordinary = excess_distance(other_powers, fit_bulk(other_powers)) < EXCLUDED
    ordinary &= np.tile(outlying < EXCLUDED, len(shifts))
    background = fit_shape(displaced, ordinary if ordinary.any() else ~ordinary, blocks)

    # At first most images, whatever they are, say what is usual.
    use = _enough(outlying < OUTLYING)
    for step in range(N_CONCENTRATIONS + 1):
        particle, ratio = _compare(centred, use, background, blocks)
        teachers = np.flatnonzero(use)
        if step == 0:
            teachers = teachers[np.argsort(-ratio[teachers], kind="stable")[: max(2, round(FIRST * n))]]
        measured = np.column_stack([ratio, powers])
        excess = np.maximum(excess_distance(measured, fit_bulk(measured[teachers])) - SLACK, 0)
        usual, spread = _typical(ratio[teachers])
        if step < N_CONCENTRATIONS:
            # More than usual is no better: contamination can look too much like a particle.
            doubt = np.maximum((usual - ratio) / spread, 0) + excess
            use = np.zeros(n, dtype=bool)
            use[np.argsort(doubt, kind="stable")[: max(2, round(PROMISING * n))]] = True
    for _ in range(N_REFINEMENTS):
        kept = (-ratio <= balanced_threshold(-ratio)) & (excess < OUTLYING)
        use = kept if kept.sum() >= min(n, MIN_JUDGED) else use
        particle, ratio = _compare(centred, use, background, blocks)
    subspaces = _no_subspaces(basis)
    if describe:
        subspaces = fit_subspaces(
            centred[use].astype(np.float32),
            *numbers,
            discard=0,
            robust=False,
            basis=basis,
            max_iterations=30,
            n_jobs=n_jobs,
            seed=seed,
        )
    bulk = fit_bulk(powers[use])
    steep = float(np.median(_slope(powers[use])))
    # Noise alone scatters more than this.
    widths = np.maximum(np.sqrt(np.diag(np.linalg.inv(bulk.precision))), 0.02)
    nearby = np.concatenate(
        [_nearby(part, basis, particle, background, blocks) for part in _parts(images[use])]
    )
    beside = np.array([_typical(values) for values in _highest(nearby)])
    described = prepare(subspaces, np.float32) if describe else None
    return LearnedShapes(
        basis, blocks, bands, particle, background, bulk.mean, widths, steep, beside, subspaces, described
    )


def _parts(images: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    return (images[start : start + BATCH] for start in range(0, len(images), BATCH))


def _typical(values: Array) -> tuple[float, float]:
    """Median, and the deviation that belongs to the median absolute one."""
    median = float(np.median(values))
    return median, max(1.4826 * float(np.median(np.abs(values - median))), LEAST_SPREAD)


def _nearby(
    images: npt.NDArray[np.float32],
    basis: PswfBasis,
    particle: Shape,
    background: Shape,
    blocks: Blocks,
    distance: float = NEARBY,
    step: int = 1,
) -> Array:
    """Log-likelihood ratios (n, k) of a particle at a distance from the centre, in parts of the box."""
    box = images.shape[1]
    ratios = []
    for y, x in DIRECTIONS[::step]:
        shift = (round(-y * distance * box), round(-x * distance * box))
        coefficients = _coefficients(np.roll(images, shift, (1, 2)), basis)
        ratios.append(log_ratio(coefficients, particle, background, blocks))
    return np.stack(ratios, axis=1)


def _highest(nearby: Array) -> tuple[Array, Array]:
    """The highest of the ratios, and the highest that is reached on two opposite sides."""
    opposite = np.minimum(nearby, np.roll(nearby, nearby.shape[1] // 2, axis=1))
    return nearby.max(axis=1), opposite.max(axis=1)


def _slope(log_powers: Array) -> Array:
    half = log_powers.shape[1] // 2
    slope: Array = log_powers[:, :half].mean(axis=1) - log_powers[:, half:].mean(axis=1)
    return slope


def _enough(use: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return use if 2 * use.sum() >= len(use) else np.ones_like(use)


def _compare(
    coefficients: Array, use: npt.NDArray[np.bool_], background: Shape, blocks: Blocks
) -> tuple[Shape, Array]:
    particle = regularize(fit_shape(coefficients, use, blocks), background, int(use.sum()), blocks)
    return particle, log_ratio(coefficients, particle, background, blocks)


def _batch(
    images: npt.NDArray[np.float32], start: int, operator: npt.NDArray[np.float32], model: LearnedShapes
) -> _Batch:
    codes = inspect_pixels(images).codes
    judged = codes == VALID
    images = crop_and_normalize(images, operator)
    coefficients = _coefficients(images, model.basis)
    score = -log_ratio(coefficients, model.particle, model.background, model.blocks)
    powers = _log_powers(coefficients, model.bands)
    excess = ((powers - model.usual) / model.spread).max(axis=1)
    score += _penalty(excess, EXCESS)
    nearby = _nearby(images, model.basis, model.particle, model.background, model.blocks)
    beside = np.stack(_highest(nearby), axis=1)
    usual, spread = model.beside.T
    score += _penalty((beside - usual) / spread, BESIDE).sum(axis=1)
    factor = log_likelihood = np.full(len(images), np.nan)
    if model.described is not None:
        log_likelihood, factor, *_ = measure(coefficients.astype(np.float32), model.described)
    doubtful = np.flatnonzero(judged & (score > -CLEARLY))
    codes[doubtful] = _reasons(
        images[doubtful],
        nearby[doubtful],
        score[doubtful],
        excess[doubtful],
        _slope(powers[doubtful]),
        model,
    )
    score[~judged] = np.inf
    factor, log_likelihood = (np.where(judged, factor, np.inf), np.where(judged, log_likelihood, -np.inf))
    return _Batch(codes, score, factor, log_likelihood, excess.astype(np.float32), beside.astype(np.float32))


def _penalty(deviations: Array, free: float) -> Array:
    """Cost in nats of so many deviations above what is usual, the first few of which are free."""
    return 0.5 * np.maximum(deviations * np.abs(deviations) - free**2, 0)


def _reasons(
    images: npt.NDArray[np.float32],
    nearby: Array,
    score: Array,
    excess: Array,
    slope: Array,
    model: LearnedShapes,
) -> npt.NDArray[np.int8]:
    """Why images would be rejected, should their scores be above the threshold."""
    codes = np.full(len(images), NOISE, dtype=np.int8)
    if len(images) == 0:
        return codes
    # The background's deviation being 1, the slope of the spectrum says how much there is: noise has a
    # flatter one than particles.
    codes[slope > model.steep] = CONTAMINATION
    far = _nearby(images, model.basis, model.particle, model.background, model.blocks, ASIDE, step=2)
    near, aside = nearby.max(axis=1), far.max(axis=1)
    there = np.maximum(near, aside) > np.maximum(-score, 0) + CLEARLY
    codes[there] = np.where(near >= aside, OFF_CENTRE, PARTIAL)[there]
    # Two particles lie on opposite sides of the centre.
    codes[_highest(nearby)[1] > CLEARLY] = MULTIPLE
    codes[excess > EXCESS] = CONTAMINATION
    return codes


def _unjudged_batch(images: npt.NDArray[np.float32], start: int) -> _Batch:
    n = len(images)
    nothing = np.full(n, np.inf)
    unknown = np.full((n, 2), np.nan, dtype=np.float32)
    return _Batch(inspect_pixels(images).codes, nothing, nothing, -nothing, unknown[:, 0], unknown)


def _gather(batches: Iterator[_Batch]) -> _Batch:
    return _Batch(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def _unjudged(found: _Batch, basis: PswfBasis) -> SubspaceResult:
    """Verdict where at most one image is fit: nothing can be learned, and only the unfit are rejected."""
    keep = found.codes == VALID
    return SubspaceResult(
        keep,
        np.where(keep, 0.0, np.inf),
        reason_names(found.codes),
        suspicions(found.codes),
        np.where(keep, np.nan, 1.0),
        found.factor,
        found.log_likelihood,
        found.excess,
        found.beside,
        np.nan,
        np.nan,
        "bright",
        _no_subspaces(basis),
        basis,
        None,
    )


def _no_subspaces(basis: PswfBasis) -> SubspaceModel:
    length, nothing = len(basis.angular), np.empty(0)
    trace = FitTrace(nothing, nothing, nothing.astype(np.intp))
    nobody = np.empty(0, dtype=bool)
    return SubspaceModel(np.ones(1), np.zeros((1, length)), np.zeros((1, length, 1)), 1.0, nobody, trace)


def _result(found: _Batch, model: LearnedShapes, scale: float) -> SubspaceResult:
    judged = np.isfinite(found.score)
    probability = np.ones(len(judged))
    threshold = np.nan
    keep = judged
    if judged.sum() >= MIN_JUDGED:
        threshold = balanced_threshold(found.score[judged])
        # Beyond 700 the exponential is more than a float holds.
        probability[judged] = 1 / (1 + np.exp(np.clip(threshold - found.score[judged], -700, 700)))
        keep = found.score <= threshold
    else:
        probability[judged] = np.nan
    mean = np.tensordot(model.particle.mean, model.basis.functions[model.blocks[0][0]], 1)
    return SubspaceResult(
        keep,
        found.score,
        reason_names(np.where(keep, VALID, found.codes)),
        suspicions(found.codes),
        probability,
        found.factor,
        found.log_likelihood,
        found.excess,
        found.beside,
        threshold,
        _radius(model) * scale,
        _contrast(mean),
        model.subspaces,
        model.basis,
        model,
    )


def _radius(model: LearnedShapes) -> float:
    """Radius of the particle in pixels of the cropped image."""
    box = model.basis.box
    functions = model.basis.functions.reshape(len(model.basis.functions), -1).astype(np.float64)
    excess = np.square(np.tensordot(model.particle.mean, functions[model.blocks[0][0]], 1))
    level = relative_level(model.particle, model.background, model.blocks)
    for members, near, far in zip(
        model.blocks, model.particle.covariances, model.background.covariances, strict=True
    ):
        for columns in members:
            part = functions[columns]
            excess += np.einsum("ip,ij,jp->p", part, near - level * far, part, optimize=True)
    offset = np.arange(box) - box // 2
    distance = np.hypot.outer(offset, offset).ravel()
    ring = np.rint(distance).astype(int)
    inside = ring < box // 2
    profile = np.bincount(ring[inside], excess[inside]) / np.bincount(ring[inside])
    energy = np.cumsum(
        np.maximum(profile - profile[-max(2, box // 12) :].mean(), 0) * np.arange(len(profile))
    )
    radius = 0.5 + float(np.interp(0.95, energy / max(energy[-1], 1e-30), np.arange(len(profile))))
    return float(np.clip(radius, 0.1 * box, 0.5 * box))


def _published(
    particles: Particles,
    operator: npt.NDArray[np.float32],
    basis: PswfBasis,
    numbers: tuple[int | None, int | None],
    work: str | os.PathLike[str] | None,
    n_jobs: int | None,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> SubspaceResult:
    """Learn from all images, which therefore are kept as coefficients in a file."""
    n = len(particles)
    with tempfile.TemporaryDirectory(prefix="fastsort-", dir=work) as folder:
        path = os.path.join(folder, "coefficients")
        shape = (n, len(basis.functions))
        batches = map_batches(
            _published_batch, particles, operator, basis, batch_size=BATCH, n_jobs=n_jobs, progress=progress
        )
        codes = []
        with open(path, "wb") as file:
            for part_codes, coefficients in batches:
                codes.append(part_codes)
                file.write(coefficients.data)
        usable = np.concatenate(codes) == VALID
        if usable.sum() < 2:
            nothing = np.full(n, np.inf)
            empty = np.full((n, 2), np.nan, dtype=np.float32)
            found = _Batch(np.concatenate(codes), nothing, nothing, -nothing, empty[:, 0], empty)
            return _unjudged(found, basis)
        stored: npt.NDArray[np.float32] = np.memmap(path, np.float32, "r", shape=shape)
        model = fit_subspaces(stored, *numbers, preset="published", n_jobs=n_jobs, seed=seed)
        scores = evaluate(Rows(stored), model, n_jobs)
    reason = np.where(model.keep, VALID, np.concatenate(codes)).astype(np.int8)
    reason[~model.keep & (reason == VALID)] = NOISE
    return SubspaceResult(
        model.keep,
        scores.factor,
        reason_names(reason),
        suspicions(reason),
        np.where(model.keep, 0.0, 1.0),
        scores.factor,
        scores.log_likelihood,
        np.full(n, np.nan, dtype=np.float32),
        np.full((n, 2), np.nan, dtype=np.float32),
        np.nan,
        np.nan,
        _contrast(np.tensordot(model.weights @ model.means, basis.functions, 1)),
        model,
        basis,
        None,
    )


def _contrast(image: npt.NDArray[np.floating]) -> str:
    """Sign of a mean image against its rim; a hollow particle counts as what its wall is."""
    box = len(image)
    offset = np.arange(box) - box // 2
    distance = np.hypot.outer(offset, offset)
    middle, rim = distance <= 0.3 * box, (distance > 0.4 * box) & (distance < box // 2)
    return "bright" if image[middle].mean() >= image[rim].mean() else "dark"


def _published_batch(
    images: npt.NDArray[np.float32], start: int, operator: npt.NDArray[np.float32], basis: PswfBasis
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    codes = inspect_pixels(images).codes
    coefficients = np.ascontiguousarray(
        _coefficients(crop_and_normalize(images, operator), basis), dtype=np.float32
    )
    coefficients[codes != VALID] = np.nan
    return codes, coefficients
