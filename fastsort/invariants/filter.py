"""The invariant filter: does the middle of an image hold what particles hold, however they lie?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._bulk import Bulk, distance, excess_distance, fit_bulk
from fastsort._checks import check_count, check_not_empty
from fastsort._crop import crop_operator
from fastsort._process import one_blas_thread
from fastsort._reasons import CONTAMINATION, NOISE, VALID, reason_names, suspicions
from fastsort._threshold import MIN_JUDGED, fit_scores, junk_probability
from fastsort.images.batches import map_batches
from fastsort.images.normalize import inspect_pixels, normalize_background
from fastsort.images.prepare import crop_and_normalize, sample_batches
from fastsort.invariants.features import FeaturePlan, features_of
from fastsort.particles.source import open_particles

if TYPE_CHECKING:
    from fastsort.particles.source import Particles

# Features of single images show no more in larger boxes, nor at higher orders or on more axes
# (measured at 36 and 48 px, order 10 and 16, 12 to 30 axes).
GRID = 36
MAX_ORDER = 16
N_AXES = 12
# Only the middle is looked at: radius of the window in parts of the box, and width of its edge in pixels.
WINDOW, EDGE = 0.3, 1.5
BATCH = 512
N_TAUGHT = 4096
# The share of the images that stand for particles while learning; of the first round, which has to
# choose among all.
PROMISING = 0.3
FIRST = 0.5
N_ROUNDS = 5
# Distances beyond the bulk from which on an image does not teach, at first.
OUTLYING = 1.0
EXCLUDED = 3.0
SLACK = 0.5
# Share, and width in parts of the particles', of images that are like nothing else.
STRANGE, WIDE = math.exp(-2), 3.0
# Smallest feature that counts, in parts of a row of norm 1, and the largest deviation.
SMALLEST = 1e-3
LARGEST = 8.0
# The features of any set that is not one image many times scatter by more than this.
LEAST_VARIANCE = 1e-3

Array = npt.NDArray[np.float64]


class LearnedInvariants(NamedTuple):
    """What was learned of particles and surroundings: all that is needed to score an image.

    Attributes
    ----------
    centre, scale : ndarray of float64, shape (f,)
        Of the logarithms of the features, by which they are standardized.
    origin : ndarray of float64, shape (f,)
    axes : ndarray of float64, shape (f, k)
    particle, background : Bulk
        On the axes.
    displaced_scores : ndarray of float64, shape (m,)
        What displaced places of the images scored that were learned from.
    """

    centre: Array
    scale: Array
    origin: Array
    axes: Array
    particle: Bulk
    background: Bulk
    displaced_scores: Array


@brief
class InvariantResult(NamedTuple):
    """Verdict on every image, in input order.

    Attributes
    ----------
    keep : ndarray of bool, shape (n,)
    score : ndarray of float64, shape (n,)
        Larger for junk: log-likelihood ratio of surroundings or of anything strange to particles, in
        nats. Infinite for images that cannot be judged.
    reason : ndarray of str, shape (n,)
    suspicion : ndarray of str, shape (n,)
        Why the image would be rejected, should it be; for rejected images the same as `reason`.
    junk_probability : ndarray of float64, shape (n,)
        Under the fitted mixture of scores; NaN with fewer than 50 images.
    cut : float
        Images with a larger score are rejected; NaN with fewer than 50 images.
    learned : LearnedInvariants or None
        What the score rests on, to score more images with; None where nothing could be learned.
    """

    keep: npt.NDArray[np.bool_]
    score: Array
    reason: npt.NDArray[np.str_]
    suspicion: npt.NDArray[np.str_]
    junk_probability: Array
    cut: float
    learned: LearnedInvariants | None


def invariant_filter(
    images: npt.NDArray[Any] | Particles,
    *,
    learned: LearnedInvariants | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> InvariantResult:
    """Sort images by features of their middle that no turn and no small shift changes.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        The background is normalised.
    learned : LearnedInvariants, optional
        From an earlier result on images of the same box: nothing is learned from these.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
        For the sample that is learned from.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    result : InvariantResult

    Raises
    ------
    InputError
        If the images cannot be sorted or a parameter is out of range.

    Notes
    -----
    The image is faded out beyond 0.3 of the box from its centre, and its absolute Zernike moments
    (`invariant_features` [1]_) are taken: two particles differ by how they lie, and these features do
    not. On the twelve leading axes of their logarithms, particles are a Gaussian, and so are other
    places of the same images, displaced by half a box. Particles are learned from the 30 % of a sample
    of at most 4096 images that look most like them and do not stand out, chosen anew five times. What
    looks like neither has a Gaussian three times as wide as the particles'. The cut is that of
    `fit_scores`.

    The features of one image are mostly noise: this is the weakest of the methods alone, but it looks
    at what the others do not.

    References
    ----------
    .. [1] Da, Yeo, Yang, Loh, "CryoEM 2D classification with translational and rotational invariant
       features".
    """
    particles = open_particles(images)
    check_not_empty(len(particles))
    seed = check_count("seed", seed, 0)
    operator = crop_operator(particles.box, min(particles.box, GRID))
    if learned is None:
        with one_blas_thread():
            learned = _learn(particles, operator, seed)
    batches = map_batches(
        _batch, particles, operator, learned, batch_size=BATCH, n_jobs=n_jobs, progress=progress
    )
    codes, score = (np.concatenate(column) for column in zip(*batches, strict=True))
    return _result(codes, score, learned)


def _result(codes: npt.NDArray[np.int8], score: Array, learned: LearnedInvariants | None) -> InvariantResult:
    judged = np.isfinite(score)
    keep, cut = judged, np.nan
    probability = np.where(judged, np.nan, 1.0)
    if learned is not None and judged.sum() >= MIN_JUDGED:
        model = fit_scores(score[judged], learned.displaced_scores)
        probability[judged] = junk_probability(score[judged], model)
        keep, cut = score <= model.threshold, model.threshold
    elif learned is None:
        keep = codes == VALID
    reason = reason_names(np.where(keep, VALID, codes))
    return InvariantResult(keep, score, reason, suspicions(codes), probability, cut, learned)


def _learn(particles: Particles, operator: npt.NDArray[np.float32], seed: int) -> LearnedInvariants | None:
    centred, displaced = [], []
    half = len(operator) // 2
    for part in sample_batches(particles, operator, N_TAUGHT, BATCH, seed):
        if len(part) == 0:
            continue
        normalize_background(part, 0.5 * len(operator))
        centred.append(_log_features(part))
        for shift in ((half, 0), (0, half), (half, half)):
            displaced.append(_log_features(np.roll(part, shift, (1, 2))))
    if sum(map(len, centred)) <= 2 * N_AXES:
        return None
    features, others = np.concatenate(centred), np.concatenate(displaced)
    centre = np.median(others, axis=0)
    scale = 1.4826 * np.median(np.abs(others - centre), axis=0) + 1e-6
    features, others = (_clipped((values - centre) / scale) for values in (features, others))
    both = np.concatenate([features, others])
    # What stands out most would claim axes for itself.
    strength = np.abs(both).max(axis=1)
    quiet = both[strength <= np.quantile(strength, 0.8)]
    origin = quiet.mean(axis=0)
    axes = np.linalg.eigh(np.cov((quiet - origin).T))[1][:, : -N_AXES - 1 : -1]
    features, others = (features - origin) @ axes, (others - origin) @ axes
    background = _bulk_of(others[excess_distance(others, fit_bulk(others)) < EXCLUDED])
    particle = _learn_particles(features, background)
    found = LearnedInvariants(centre, scale, origin, axes, particle, background, np.empty(0))
    return found._replace(displaced_scores=_scores(others, found)[0])


def _learn_particles(features: Array, background: Bulk) -> Bulk:
    """Find the particles among images on the axes: unlike the background, and like one another."""
    n = len(features)
    use = excess_distance(features, _bulk_of(features)) < OUTLYING
    use = use if 2 * use.sum() >= n else np.ones(n, dtype=bool)
    for step in range(N_ROUNDS):
        ratio = _log_density(features, _bulk_of(features[use])) - _log_density(features, background)
        teachers = np.flatnonzero(use)
        if step == 0:
            teachers = teachers[np.argsort(-ratio[teachers], kind="stable")[: max(2, round(FIRST * n))]]
        usual = float(np.median(ratio[teachers]))
        spread = 1.4826 * float(np.median(np.abs(ratio[teachers] - usual))) + 1e-9
        # More than usual is no better: contamination can look too much like a particle.
        doubt = np.maximum((usual - ratio) / spread, 0)
        doubt += np.maximum(excess_distance(features, _bulk_of(features[teachers])) - SLACK, 0)
        use = np.zeros(n, dtype=bool)
        use[np.argsort(doubt, kind="stable")[: max(2 * N_AXES, round(PROMISING * n))]] = True
    return _bulk_of(features[use])


def _bulk_of(values: Array) -> Bulk:
    return fit_bulk(values, LEAST_VARIANCE)


def _log_density(values: Array, bulk: Bulk) -> Array:
    return 0.5 * np.linalg.slogdet(bulk.precision)[1] - 0.5 * distance(values, bulk) ** 2


def _scores(values: Array, learned: LearnedInvariants) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Score of images on the axes, and whether they are stranger than like the background."""
    particle = _log_density(values, learned.particle)
    background = _log_density(values, learned.background)
    square = distance(values, learned.particle) ** 2
    strange = particle + 0.5 * square * (1 - WIDE**-2) - N_AXES * math.log(WIDE) + math.log(STRANGE)
    return np.logaddexp(background, strange) - particle, strange > background


def _batch(
    images: npt.NDArray[np.float32],
    start: int,
    operator: npt.NDArray[np.float32],
    learned: LearnedInvariants | None,
) -> tuple[npt.NDArray[np.int8], Array]:
    codes = inspect_pixels(images).codes
    score = np.full(len(images), np.inf)
    judged = codes == VALID
    if learned is not None and judged.any():
        features = _log_features(crop_and_normalize(images[judged], operator))
        features = _clipped((features - learned.centre) / learned.scale)
        score[judged], strange = _scores((features - learned.origin) @ learned.axes, learned)
        codes[judged] = np.where(strange, CONTAMINATION, NOISE)
    elif learned is None:
        score[judged] = 0.0
    return codes, score


def _log_features(images: npt.NDArray[np.float32]) -> Array:
    box = images.shape[1]
    offset = np.arange(box) - box // 2
    window = 1 / (1 + np.exp((np.hypot.outer(offset, offset) - WINDOW * box) / EDGE))
    # Nothing is left at the edge, so that the image may count as periodic.
    plan = FeaturePlan(box, MAX_ORDER, 1, "continuous", None, None, None, 1.0, True)
    features = features_of(images * window.astype(np.float32), 0, plan)
    return np.log(features.astype(np.float64) + SMALLEST)


def _clipped(values: Array) -> Array:
    return np.clip(values, -LARGEST, LARGEST)
