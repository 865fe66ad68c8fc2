"""The subspace filter: does an image look more like the particles of the set, or like the background?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fastsort._brief import brief
from fastsort._checks import check_choice, check_count, check_not_empty
from fastsort._crop import apply_crop, crop_operator
from fastsort._process import one_blas_thread
from fastsort._progress import Progress
from fastsort._reasons import (
    CONTAMINATION,
    MULTIPLE,
    NOISE,
    OFF_CENTRE,
    PARTIAL,
    UNLIKE,
    VALID,
    reason_names,
    suspected,
    verdict_in_words,
)
from fastsort._threshold import MIN_JUDGED, balanced_threshold
from fastsort._types import Array, Bools, Codes, FilePath, Floats, Images, Singles, Words
from fastsort.images.batches import map_batches
from fastsort.images.joined import join_batches
from fastsort.images.normalize import inspect_and_level, inspect_pixels, normalize_background
from fastsort.particles.source import Particles, as_particles
from fastsort.subspaces.appearance import mean_contrast, particle_radius
from fastsort.subspaces.evidence import (
    Comparison,
    coefficients_of,
    compare,
    highest_beside,
    log_powers,
    ratios_beside,
    spectral_slope,
)
from fastsort.subspaces.fit import PRESETS, check_counts
from fastsort.subspaces.learn import BATCH, LearnedShapes, learn_shapes, no_subspaces, read_sample
from fastsort.subspaces.mixture import SubspaceModel
from fastsort.subspaces.pswf import PswfBasis, pswf_basis
from fastsort.subspaces.published import PublishedScores, published_scores
from fastsort.subspaces.scores import measure
from fastsort.subspaces.shapes import log_ratio

# Larger images show no more (measured at 32 to 48 px), nor do higher frequencies than this, in cycles
# a pixel of that grid.
GRID = 36
BANDLIMIT = 0.35
# A band with so many deviations more power than particles have counts against an image.
EXCESS = 3.0
# Evidence for a particle beside the centre, or for two on opposite sides, counts against an image from so
# many deviations above what particles show.
BESIDE = 1.0
# A particle that lies so far from the centre, in parts of the box, reaches over the edge. By so many nats
# a place beside the centre must be likelier than the centre.
ASIDE = 0.45
CLEARLY = 3.0


@brief
class SubspaceResult(NamedTuple):
    """Verdict on every image, in input order.

    Attributes
    ----------
    keep : ndarray of bool, shape (n,)
    score : ndarray of float64, shape (n,)
        Larger for junk: log-likelihood ratio of the background to the particles, plus what unusual
        power and particles beside the centre cost, in nats; with the published preset the sorting
        factor. Infinite for images that cannot be judged.
    reason, suspicion : ndarray of str, shape (n,)
        "valid", or why the image is rejected; and why it would be, which for rejected images is the same.
        Made of `suspicion_code` whenever they are asked for.
    suspicion_code : ndarray of int8, shape (n,)
        Why the image would be rejected, as a place in the list of all reasons.
    junk_probability : ndarray of float64, shape (n,)
        From the score and the share of junk that fits all scores; NaN with fewer than 50 images; 0
        or 1 if published.
    factor : ndarray of float64, shape (n,)
        As `sorting_factor` in the learned subspaces; NaN where they are not described.
    log_likelihood : ndarray of float64, shape (n,)
        Of the image in the learned subspaces; NaN where they are not described.
    excess : ndarray of float32, shape (n,)
        By how many deviations the logarithm of the power is above that of particles, in the band where
        this is most; NaN if published.
    beside : ndarray of float32, shape (n, 2)
        Log-likelihood ratio of a particle 0.27 of the box beside the centre: the highest in any
        direction, and the highest that two opposite directions both reach; NaN if published.
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

    keep: Bools
    score: Floats
    suspicion_code: Codes
    junk_probability: Floats
    factor: Floats
    log_likelihood: Floats
    excess: Singles
    beside: Singles
    threshold: float
    radius: float
    contrast: str
    model: SubspaceModel
    basis: PswfBasis
    learned: LearnedShapes | None

    @property
    def reason(self) -> Words:
        """What each image shows: "valid", or why it is rejected."""
        return verdict_in_words(self.keep, self.suspicion_code)

    @property
    def suspicion(self) -> Words:
        """Why each image would be rejected."""
        return reason_names(self.suspicion_code)

    @property
    def cut(self) -> float:
        """The name of `threshold` in version 0.1.0."""
        return self.threshold


class _Measurements(NamedTuple):
    """What a worker returns of one batch; fields as in `SubspaceResult`.

    `codes` say why an image would be rejected.
    """

    codes: Codes
    score: Floats
    factor: Floats
    log_likelihood: Floats
    excess: Singles
    beside: Singles


def subspace_filter(
    images: Array | Particles,
    n_subspaces: int | None = None,
    n_components: int | None = None,
    *,
    preset: str = "default",
    describe: bool = True,
    learned: LearnedShapes | None = None,
    work: FilePath | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SubspaceResult:
    """Sort images by what they are made of.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        The background is normalised. Neither the size nor the contrast of the particle is needed.
    n_subspaces, n_components : int, optional
        As for `fit_subspaces`.
    preset : {"default", "published"}
        "published" is the algorithm of [1]_ on prolate coefficients: images that it discards are
        rejected.
    describe : bool
        Whether `fit_subspaces` describes what the particles are made of. The verdict does not depend
        on it.
    learned : LearnedShapes, optional
        From an earlier result on images of the same box: nothing is learned from these.
    work : path, optional
        Existing folder for the coefficients of all images, which the published preset needs; by
        default the system's folder for temporary files.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
        Random seed, for the choice of the images that are learned from, and for `fit_subspaces`.
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
    The default preset asks whether an image is more like the particles of this set or more like displaced
    places of the same images. These have the same noise, defocus and normalisation, but hold no centred
    particle, since they lie half a box away. Pickers do not return any place, but places where the noise
    looks like a particle, so in sets of 500 images and more each is compared with `picked_noise`, too.
    For all three, a shape is learned: the covariance of the prolate coefficients under all in-plane
    rotations, of which only the direction of an image counts. Therefore strong contamination counts no
    more than a faint particle. Contamination in the same directions as the particles shows in the power
    in bands of frequency, which must not be far from that of most images.

    The shape of the particles is learned from the 30 % of a sample of at most 4096 images that look most
    like particles and least like contamination. They are chosen five times, each time by the shape of
    those chosen before; then the shape is learned twice more, from all that would be kept. The score is the
    logarithm of the likelihood ratio, plus (z^2 - 9) / 2 where a band has z > 3 deviations more power than
    in particles, plus (z^2 - 1) / 2 where the image moved by 0.27 of the box in one of eight directions
    looks z > 1 deviations more like a particle than a centred particle does, and the same where two
    opposite directions do. With the share of junk that makes all scores most likely, the score gives the
    junk probability; above the threshold, it is more than one half. `fit_subspaces` with the basis then
    describes what the particles are made of.

    References
    ----------
    .. [1] Weiss-Dicker, Eldar, Shkolnisky, Bendory, "Unsupervised particle sorting for cryo-EM using
       probabilistic PCA" (2023).

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(150, 150, snr=0.2, box=32, junk=("noise", "partial"))
    >>> result = fs.subspace_filter(images, describe=False)
    >>> bool((result.keep == truth.label).mean() > 0.9)
    True
    >>> result.contrast
    'bright'
    """
    particles = as_particles(images)
    check_not_empty(len(particles))
    check_choice("preset", preset, PRESETS)
    seed = check_count("seed", seed, 0)
    operator = crop_operator(particles.box, min(particles.box, GRID))
    basis = pswf_basis(len(operator), BANDLIMIT)
    check_numbers(n_subspaces, n_components, particles.box)
    numbers = n_subspaces, n_components
    if preset == "published":
        scores = published_scores(particles, operator, basis, numbers, work, n_jobs, seed, progress)
        return _published_result(scores, basis)
    with one_blas_thread():
        if learned is None:
            learned = learn_subspace_filter(particles, describe, numbers, n_jobs, seed)
        if learned is None:
            batches = map_batches(_unfit_batch, particles, n_jobs=n_jobs, progress=progress)
            return _unfit_result(np.concatenate(list(batches)), basis)
        return score_images(particles, learned, n_jobs, progress)


def learn_subspace_filter(
    particles: Particles,
    describe: bool,
    numbers: tuple[int | None, int | None],
    n_jobs: int | None,
    seed: int,
) -> LearnedShapes | None:
    """Learn what `subspace_filter` scores images with; None where fewer than two are fit to learn from."""
    operator = crop_operator(particles.box, min(particles.box, GRID))
    with one_blas_thread():
        sample = read_sample(particles, operator, seed)
        if len(sample) < 2:
            return None
        return learn_shapes(sample, pswf_basis(len(operator), BANDLIMIT), describe, numbers, n_jobs, seed)


def score_images(
    particles: Particles,
    learned: LearnedShapes,
    n_jobs: int | None = None,
    progress: Progress | None = None,
    *,
    suspect: bool = True,
) -> SubspaceResult:
    """Score images with what `subspace_filter` has learned.

    Parameters
    ----------
    particles : Particles
    learned : LearnedShapes
    n_jobs, progress
        As for `subspace_filter`.
    suspect : bool
        Whether to ask why each image would be rejected, which takes a third of the time where most would;
        else all are suspected to be unlike particles.

    Returns
    -------
    result : SubspaceResult
    """
    operator = crop_operator(particles.box, min(particles.box, GRID))
    with one_blas_thread():
        comparison = compare(learned.particle, learned.background, learned.basis, learned.blocks)
        batches = map_batches(
            _batch,
            particles,
            operator,
            comparison,
            learned,
            suspect,
            batch_size=BATCH,
            n_jobs=n_jobs,
            progress=progress,
        )
        return _result(_joined(batches, len(particles)), learned, particles.box / len(operator))


def check_numbers(n_subspaces: int | None, n_components: int | None, box: int) -> None:
    """Refuse numbers of subspaces and components that no set of images of `box` pixels could have."""
    check_counts(n_subspaces, n_components, len(pswf_basis(min(box, GRID), BANDLIMIT).functions))


def _batch(
    images: Images,
    start: int,
    operator: Singles,
    comparison: Comparison,
    learned: LearnedShapes,
    suspect: bool,
) -> _Measurements:
    codes = inspect_and_level(images).codes
    judged = codes == VALID
    images = apply_crop(images, operator)
    normalize_background(images, 0.5 * len(operator))
    coefficients = coefficients_of(images, learned.basis)
    score = -log_ratio(
        coefficients, learned.particle, learned.others, learned.blocks, np.maximum(learned.shares, 1e-6)
    )
    powers = log_powers(coefficients, learned.bands)
    excess = ((powers - learned.usual) / learned.spread).max(axis=1)
    score += _penalty(excess, EXCESS)
    nearby = ratios_beside(images, comparison)
    beside = np.stack(highest_beside(nearby), axis=1)
    usual, spread = learned.beside.T
    score += _penalty((beside - usual) / spread, BESIDE).sum(axis=1)
    factor = log_likelihood = np.full(len(images), np.nan)
    if learned.described is not None:
        log_likelihood, factor, *_ = measure(coefficients.astype(np.float32), learned.described)
    doubtful = np.flatnonzero(judged & (score > -CLEARLY) & suspect)
    codes[doubtful] = _reasons(
        images[doubtful],
        nearby[doubtful],
        score[doubtful],
        excess[doubtful],
        spectral_slope(powers[doubtful]),
        comparison,
        learned,
    )
    score[~judged] = np.inf
    return _Measurements(
        codes=codes,
        score=score,
        factor=np.where(judged, factor, np.inf),
        log_likelihood=np.where(judged, log_likelihood, -np.inf),
        excess=excess.astype(np.float32),
        beside=beside.astype(np.float32),
    )


def _penalty(deviations: Floats, free: float) -> Floats:
    """Cost in nats of so many deviations above what is usual, the first few of which are free."""
    return 0.5 * np.maximum(deviations * np.abs(deviations) - free**2, 0)


def _reasons(
    images: Images,
    nearby: Floats,
    score: Floats,
    excess: Floats,
    slope: Floats,
    comparison: Comparison,
    learned: LearnedShapes,
) -> Codes:
    """Why images would be rejected, should their scores be above the threshold."""
    codes = np.full(len(images), NOISE, dtype=np.int8)
    if len(images) == 0:
        return codes
    # The background's deviation is 1, so the slope of the spectrum says how much an image shows: that of
    # noise is flatter than that of particles. What shows more than noise need not be stronger than particles.
    codes[slope > learned.steep] = UNLIKE
    far = ratios_beside(images, comparison, ASIDE, step=2)
    near, aside = nearby.max(axis=1), far.max(axis=1)
    beside = np.maximum(near, aside) > np.maximum(-score, 0) + CLEARLY
    codes[beside] = np.where(near >= aside, OFF_CENTRE, PARTIAL)[beside]
    # Two particles lie on opposite sides of the centre.
    codes[highest_beside(nearby)[1] > CLEARLY] = MULTIPLE
    codes[excess > EXCESS] = CONTAMINATION
    return codes


def _unfit_batch(images: Images, start: int) -> Codes:
    return inspect_pixels(images).codes


def _joined(batches: Iterator[_Measurements], n: int) -> _Measurements:
    return _Measurements(*join_batches(batches, n))


def _result(measured: _Measurements, learned: LearnedShapes, scale: float) -> SubspaceResult:
    judged = np.isfinite(measured.score)
    probability = np.where(judged, np.nan, 1.0)
    threshold = np.nan
    keep = judged
    if judged.sum() >= MIN_JUDGED:
        threshold = balanced_threshold(measured.score[judged])
        # A float does not hold the exponential of more than 709.
        probability[judged] = 1 / (1 + np.exp(np.clip(threshold - measured.score[judged], -700, 700)))
        keep = measured.score <= threshold
    mean = np.tensordot(learned.particle.mean, learned.basis.functions[learned.blocks[0][0]], 1)
    return SubspaceResult(
        keep=keep,
        score=measured.score,
        suspicion_code=suspected(measured.codes),
        junk_probability=probability,
        factor=measured.factor,
        log_likelihood=measured.log_likelihood,
        excess=measured.excess,
        beside=measured.beside,
        threshold=threshold,
        radius=particle_radius(learned) * scale,
        contrast=mean_contrast(mean),
        model=learned.subspaces,
        basis=learned.basis,
        learned=learned,
    )


def _unfit_result(codes: Codes, basis: PswfBasis) -> SubspaceResult:
    """Verdict where at most one image is fit: nothing can be learned, and only the unfit are rejected."""
    n, keep = len(codes), codes == VALID
    return SubspaceResult(
        keep=keep,
        score=np.where(keep, 0.0, np.inf),
        suspicion_code=suspected(codes),
        junk_probability=np.where(keep, np.nan, 1.0),
        factor=np.full(n, np.inf),
        log_likelihood=np.full(n, -np.inf),
        excess=np.full(n, np.nan, dtype=np.float32),
        beside=np.full((n, 2), np.nan, dtype=np.float32),
        threshold=np.nan,
        radius=np.nan,
        contrast="bright",
        model=no_subspaces(basis),
        basis=basis,
        learned=None,
    )


def _published_result(scores: PublishedScores, basis: PswfBasis) -> SubspaceResult:
    model = scores.model
    if model is None:
        return _unfit_result(scores.codes, basis)
    n, keep = len(scores.codes), model.keep
    codes = np.where(keep, VALID, scores.codes).astype(np.int8)
    codes[~keep & (codes == VALID)] = NOISE
    return SubspaceResult(
        keep=keep,
        score=scores.factor,
        suspicion_code=suspected(codes),
        junk_probability=np.where(keep, 0.0, 1.0),
        factor=scores.factor,
        log_likelihood=scores.log_likelihood,
        excess=np.full(n, np.nan, dtype=np.float32),
        beside=np.full((n, 2), np.nan, dtype=np.float32),
        threshold=np.nan,
        radius=np.nan,
        contrast=mean_contrast(np.tensordot(model.weights @ model.means, basis.functions, 1)),
        model=model,
        basis=basis,
        learned=None,
    )
