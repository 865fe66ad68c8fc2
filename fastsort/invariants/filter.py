"""The invariant filter: does the middle of an image look like a particle, however the particle lies?"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastsort._brief import brief
from fastsort._bulk import Bulk, distance, excess_distance, fit_bulk
from fastsort._checks import check_count, check_not_empty
from fastsort._crop import crop_operator
from fastsort._process import one_blas_thread
from fastsort._progress import Progress
from fastsort._reasons import NOISE, UNLIKE, VALID, reason_names, suspicions
from fastsort._threshold import MIN_JUDGED, fit_scores, junk_probability
from fastsort._types import Array, Bools, Codes, Floats, Images, Singles, Words
from fastsort.images.batches import map_batches
from fastsort.images.normalize import inspect_pixels, normalize_background
from fastsort.images.prepare import crop_and_normalize, sample_batches
from fastsort.invariants.features import FeaturePlan, features_of
from fastsort.particles.source import Particles, as_particles

# Features of single images show no more in larger boxes, nor at higher orders or on more axes
# (measured at 36 and 48 px, order 10 and 16, 12 to 30 axes).
GRID = 36
MAX_ORDER = 16
N_AXES = 12
# Only the middle of the image is used: radius of the window in parts of the box, width of its edge in pixels.
WINDOW, EDGE = 0.3, 1.5
BATCH = 512
# Images that are learned from at most.
N_SAMPLED = 4096
# The share of the sample that stands for particles in each round of learning, and in the first round, which
# knows nothing yet.
PARTICLE_SHARE = 0.3
FIRST_SHARE = 0.5
N_ROUNDS = 5
# How far from the bulk of all images a particle may lie in the first round, how far from the bulk of all
# displaced places a displaced place may lie, and how far from the particles an image may lie at no cost.
FIRST_EXCESS, DISPLACED_EXCESS, FREE_EXCESS = 1.0, 3.0, 0.5
# Images that look like neither: their share, and their width in parts of that of the particles.
STRANGE_SHARE, STRANGE_WIDTH = math.exp(-2), 3.0
# Added to features of norm 1 before their logarithm is taken; and the largest deviation that counts.
SMALLEST = 1e-3
LARGEST = 8.0
# Features scatter by at least this, unless all images are copies of one.
LEAST_VARIANCE = 1e-3


class LearnedInvariants(NamedTuple):
    """What was learned of particles and displaced places: all that is needed to score an image.

    Attributes
    ----------
    centre, scale : ndarray of float64, shape (f,)
        Median and spread of the logarithms of the features at displaced places, by which all are
        standardised.
    origin : ndarray of float64, shape (f,)
        Of the axes, among the standardised logarithms.
    axes : ndarray of float64, shape (f, k)
    particle, background : Bulk
        Where particles and displaced places lie on the axes.
    displaced_scores : ndarray of float64, shape (m,)
        Scores of the displaced places.
    """

    centre: Floats
    scale: Floats
    origin: Floats
    axes: Floats
    particle: Bulk
    background: Bulk
    displaced_scores: Floats


@brief
class InvariantResult(NamedTuple):
    """Verdict on every image, in input order.

    Attributes
    ----------
    keep : ndarray of bool, shape (n,)
    score : ndarray of float64, shape (n,)
        Larger for junk: log-likelihood ratio of background or anything strange to particles, in nats.
        Infinite for images that cannot be judged.
    reason : ndarray of str, shape (n,)
        "valid", or why the image is rejected.
    suspicion : ndarray of str, shape (n,)
        Why the image would be rejected; for rejected images the same as `reason`.
    junk_probability : ndarray of float64, shape (n,)
        Probability of junk by a mixture that is fitted to the scores; NaN with fewer than 50 images.
    threshold : float
        Images with a larger score are rejected; NaN with fewer than 50 images.
    learned : LearnedInvariants or None
        What the scores are computed from, to score more images with; None if there were too few images.
    """

    keep: Bools
    score: Floats
    reason: Words
    suspicion: Words
    junk_probability: Floats
    threshold: float
    learned: LearnedInvariants | None

    @property
    def cut(self) -> float:
        """The name of `threshold` in version 0.1.0."""
        return self.threshold


def invariant_filter(
    images: Array | Particles,
    *,
    learned: LearnedInvariants | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> InvariantResult:
    """Sort images by features of their middle that do not change with a turn or a small shift.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        Their background is normalised here.
    learned : LearnedInvariants, optional
        From an earlier result on images of the same box; nothing is learned from these images then.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
        Random seed of the sample that is learned from.
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
    The image is faded out beyond 0.3 of the box from its centre, and its absolute Zernike moments are taken
    (`invariant_features` [1]_), which do not depend on how the particle lies. On the twelve leading axes of
    their logarithms, particles have a Gaussian distribution, and so have displaced places: the same images
    displaced by half a box. The distribution of particles is learned from the 30 % of a sample of at most
    4096 images that look most like particles and do not stand out; they are chosen again five times. Images
    that look like neither have a Gaussian distribution three times as wide as that of the particles. The
    threshold is where a mixture that is fitted to the scores makes junk likelier than a particle.

    The features of one image are mostly noise. Alone, this is the weakest of the three methods, but it
    measures what the others do not.

    References
    ----------
    .. [1] Da, Yeo, Yang, Loh, "CryoEM 2D classification with translational and rotational invariant
       features".

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(150, 50, box=36, snr=1, seed=1)
    >>> result = fs.invariant_filter(images)
    >>> result.keep.shape
    (200,)
    >>> bool(result.score[~truth.label].mean() > result.score[truth.label].mean())
    True
    >>> more = fs.invariant_filter(images[:10], learned=result.learned)
    >>> bool(np.allclose(more.score, result.score[:10], atol=0.01))
    True
    """
    particles = as_particles(images)
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


def _result(codes: Codes, score: Floats, learned: LearnedInvariants | None) -> InvariantResult:
    judged = np.isfinite(score)
    keep, threshold = judged, np.nan
    probability = np.where(judged, np.nan, 1.0)
    if learned is not None and judged.sum() >= MIN_JUDGED:
        model = fit_scores(score[judged], learned.displaced_scores)
        probability[judged] = junk_probability(score[judged], model)
        threshold = model.threshold
        keep = score <= threshold
    elif learned is None:
        keep = codes == VALID
    reason = reason_names(np.where(keep, VALID, codes))
    return InvariantResult(keep, score, reason, suspicions(codes), probability, threshold, learned)


def _learn(particles: Particles, operator: Singles, seed: int) -> LearnedInvariants | None:
    centred, displaced = [], []
    half = len(operator) // 2
    for part in sample_batches(particles, operator, N_SAMPLED, BATCH, seed):
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
    # The images that stand out most would take axes for themselves.
    strength = np.abs(both).max(axis=1)
    quiet = both[strength <= np.quantile(strength, 0.8)]
    origin = quiet.mean(axis=0)
    axes = np.linalg.eigh(np.cov((quiet - origin).T))[1][:, : -N_AXES - 1 : -1]
    features, others = (features - origin) @ axes, (others - origin) @ axes
    background = _bulk_of(others[excess_distance(others, fit_bulk(others)) < DISPLACED_EXCESS])
    particle = _learn_particles(features, background)
    learned = LearnedInvariants(centre, scale, origin, axes, particle, background, np.empty(0))
    return learned._replace(displaced_scores=_scores(others, learned)[0])


def _learn_particles(features: Floats, background: Bulk) -> Bulk:
    """Find the particles among images on the axes: unlike the background, and like one another."""
    n = len(features)
    use = excess_distance(features, _bulk_of(features)) < FIRST_EXCESS
    use = use if 2 * use.sum() >= n else np.ones(n, dtype=bool)
    for step in range(N_ROUNDS):
        ratio = _log_density(features, _bulk_of(features[use])) - _log_density(features, background)
        chosen = np.flatnonzero(use)
        if step == 0:
            likeliest = np.argsort(-ratio[chosen], kind="stable")
            chosen = chosen[likeliest[: max(2, round(FIRST_SHARE * n))]]
        usual = float(np.median(ratio[chosen]))
        spread = 1.4826 * float(np.median(np.abs(ratio[chosen] - usual))) + 1e-9
        # A larger ratio than usual is no better: contamination can look too much like a particle.
        doubt = np.maximum((usual - ratio) / spread, 0)
        doubt += np.maximum(excess_distance(features, _bulk_of(features[chosen])) - FREE_EXCESS, 0)
        use = np.zeros(n, dtype=bool)
        use[np.argsort(doubt, kind="stable")[: max(2 * N_AXES, round(PARTICLE_SHARE * n))]] = True
    return _bulk_of(features[use])


def _bulk_of(values: Floats) -> Bulk:
    return fit_bulk(values, LEAST_VARIANCE)


def _log_density(values: Floats, bulk: Bulk) -> Floats:
    return 0.5 * np.linalg.slogdet(bulk.precision)[1] - 0.5 * distance(values, bulk) ** 2


def _scores(values: Floats, learned: LearnedInvariants) -> tuple[Floats, Bools]:
    """Score of images on the axes, and whether they look strange rather than like the background."""
    particle = _log_density(values, learned.particle)
    background = _log_density(values, learned.background)
    square = distance(values, learned.particle) ** 2
    wider = 0.5 * square * (1 - STRANGE_WIDTH**-2)
    strange = particle + wider - N_AXES * math.log(STRANGE_WIDTH) + math.log(STRANGE_SHARE)
    return np.logaddexp(background, strange) - particle, strange > background


def _batch(
    images: Images,
    start: int,
    operator: Singles,
    learned: LearnedInvariants | None,
) -> tuple[Codes, Floats]:
    codes = inspect_pixels(images).codes
    score = np.full(len(images), np.inf)
    judged = codes == VALID
    if learned is not None and judged.any():
        features = _log_features(crop_and_normalize(images[judged], operator))
        features = _clipped((features - learned.centre) / learned.scale)
        score[judged], strange = _scores((features - learned.origin) @ learned.axes, learned)
        codes[judged] = np.where(strange, UNLIKE, NOISE)
    elif learned is None:
        score[judged] = 0.0
    return codes, score


def _log_features(images: Images) -> Floats:
    box = images.shape[1]
    offset = np.arange(box) - box // 2
    window = 1 / (1 + np.exp((np.hypot.outer(offset, offset) - WINDOW * box) / EDGE))
    # Nothing is left at the edge, so that the image may count as periodic.
    plan = FeaturePlan(box, MAX_ORDER, 1, "continuous", None, None, None, 1.0, True)
    features = features_of(images * window.astype(np.float32), 0, plan)
    return np.log(features.astype(np.float64) + SMALLEST)


def _clipped(values: Floats) -> Floats:
    return np.clip(values, -LARGEST, LARGEST)
