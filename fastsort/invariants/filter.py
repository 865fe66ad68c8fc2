"""The invariant filter: does the image belong to a class of particles, however the particle lies?"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from fastsort._brief import brief
from fastsort._bulk import Bulk
from fastsort._checks import InputError, check_count, check_not_empty, check_radius
from fastsort._crop import apply_crop, crop_operator
from fastsort._parts import in_parts
from fastsort._progress import Progress, part_of
from fastsort._reasons import NOISE, UNLIKE, VALID, reason_names, suspected, verdict_in_words
from fastsort._threshold import MIN_JUDGED, fit_scores, junk_probability
from fastsort._types import Array, Bools, Codes, Floats, Images, Indices, Singles, Words
from fastsort.images.batches import map_batches
from fastsort.images.content import content_of
from fastsort.images.joined import join_batches
from fastsort.images.normalize import inspect_and_level, inspect_pixels, normalize_background
from fastsort.images.prepare import crop_and_normalize
from fastsort.invariants.expectation import ClassModel, assign
from fastsort.invariants.fit_classes import LEAST_RADIUS, averages_of, fit_classes
from fastsort.invariants.ranking import RADIUS, rank_classes
from fastsort.invariants.ring_correlation import resolved_rings
from fastsort.particles.source import Particles, as_particles

# Junk and particles part in classes of images this small, in half of the rounds that a map takes
# (measured at 22 to 36 px and with all rounds).
GRID, EFFORT = 24, 0.5
BATCH = 256
# Images that are learned from at most; the most classes, and members that a class should have.
N_SAMPLED, MOST_CLASSES, MEMBERS = 2048, 12, 50
# Images are scored in one search, with so many steps of the shift in a period of the finest detail.
STEPS = 2.0
# What a class counts at most, and how far from the usual likeness, in deviations, an image counts.
HIGHEST, FARTHEST = 6.0, 3.0
# Displaced places that are judged at most, and the part of the whole work in which the classes are learned.
N_DISPLACED, LEARNING = 512, 0.6


class LearnedInvariants(NamedTuple):
    """What version 0.1.0 learned. Its files are read, but its features score no images any more."""

    centre: Floats
    scale: Floats
    origin: Floats
    axes: Floats
    particle: Bulk
    background: Bulk
    displaced_scores: Floats


class LearnedClasses(NamedTuple):
    """Classes that were learned: all that is needed to score an image.

    Attributes
    ----------
    model : ClassModel
        Averages of the two halves of the sample.
    junk : ndarray of float64, shape (K,)
        Score of each class, as that of `rank_classes`, at most 6.
    resolved : ndarray of bool, shape (K,)
        Whether the average of the class shows anything.
    usual, deviation : float
        Of the correlation of images with the average of their class.
    displaced_scores : ndarray of float64, shape (m,)
        Scores of displaced places of the sample.
    """

    model: ClassModel
    junk: Floats
    resolved: Bools
    usual: float
    deviation: float
    displaced_scores: Floats


@brief
class InvariantResult(NamedTuple):
    """Verdict on every image, in input order.

    Attributes
    ----------
    keep : ndarray of bool, shape (n,)
    score : ndarray of float64, shape (n,)
        Larger for junk: the score of the image's class, less the image's likeness to its average, in
        deviations from the usual. Infinite for images that cannot be judged.
    reason, suspicion : ndarray of str, shape (n,)
        "valid", or why the image is rejected; and why it would be, which for rejected images is the same.
        Made of `suspicion_code` whenever they are asked for.
    suspicion_code : ndarray of int8, shape (n,)
        Why the image would be rejected, as a place in the list of all reasons.
    junk_probability : ndarray of float64, shape (n,)
        Probability of junk by a mixture that is fitted to the scores; NaN with fewer than 50 images.
    threshold : float
        Images with a larger score are rejected; NaN with fewer than 50 images.
    learned : LearnedClasses or None
        What the scores are computed from, to score more images with; None if there were too few images.
    """

    keep: Bools
    score: Floats
    suspicion_code: Codes
    junk_probability: Floats
    threshold: float
    learned: LearnedClasses | None

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


def invariant_filter(
    images: Array | Particles,
    radius: float | None = None,
    *,
    learned: LearnedClasses | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> InvariantResult:
    """Sort images by the classes that they form, whatever their angles and small shifts.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        Phase-flipped, if there is a contrast transfer function. Their background is normalised here.
    radius : float, optional
        Radius of the particle in pixels; by default 0.4 of the box.
    learned : LearnedClasses, optional
        From an earlier result on images of the same box; nothing is learned from these images then.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
        Random seed of the sample that is learned from, and of the classes.
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
    At most twelve classes are learned from a sample of at most 2048 images, as `classify_images` does it,
    but of images cropped to 24 pixels and without a contrast transfer function, so that whatever is made
    from images can be compared with them. `rank_classes` says which classes are junk: averages without
    anything in the middle, with something beside it, stronger or less sharp than others of their size. Every
    image is compared with the averages at all angles and small shifts. Its score is that of its likeliest
    class, less the correlation with the average, in deviations from the usual. The averages
    are made of two halves of the sample, and every image is compared with that of the half to which it does
    not belong, so that none is like itself. The threshold is where a mixture that is fitted to the scores
    makes junk likelier than a particle.

    Classes, and junk classes among them, are the way of [1]_; there, features that do not change with a turn
    or a shift make them.

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
    >>> more.score.shape
    (10,)
    """
    particles = as_particles(images)
    n, box = len(particles), particles.box
    check_not_empty(n)
    seed = check_count("seed", seed, 0)
    if radius is not None:
        radius = check_radius(radius, box)
    size = min(box, GRID)
    operator = crop_operator(box, size)
    begin = 0.0
    if learned is None:
        begin = LEARNING
        learned = learn_invariant_filter(particles, radius, n_jobs, seed, part_of(progress, 0, begin, n))
    elif learned.model.box != size:
        raise InputError(
            f"the classes were learned from images of {learned.model.box} px, and these have {size}: "
            "give images of the same box."
        )
    batches = map_batches(
        _batch,
        particles,
        operator,
        learned,
        batch_size=BATCH,
        n_jobs=n_jobs,
        progress=part_of(progress, begin, 1.0, n),
    )
    codes, score = join_batches(batches, n)
    return _result(codes, score, learned)


def _result(codes: Codes, score: Floats, learned: LearnedClasses | None) -> InvariantResult:
    judged = np.isfinite(score)
    keep, threshold = judged, np.nan
    probability = np.where(judged, np.nan, 1.0)
    if learned is not None and judged.sum() >= MIN_JUDGED:
        model = fit_scores(score[judged], learned.displaced_scores)
        probability[judged] = in_parts(partial(junk_probability, model=model), score[judged])
        threshold = model.threshold
        keep = score <= threshold
    elif learned is None:
        keep = codes == VALID
    return InvariantResult(keep, score, suspected(codes), probability, threshold, learned)


def learn_invariant_filter(
    particles: Particles, radius: float | None, n_jobs: int | None, seed: int, progress: Progress | None
) -> LearnedClasses | None:
    """Learn what `invariant_filter` scores images with; None where too few are fit to learn from."""
    box = min(particles.box, GRID)
    half, images = _sample(particles, crop_operator(particles.box, box), seed)
    if len(images) < MEMBERS:
        return None
    radius = (RADIUS * particles.box if radius is None else radius) * box / particles.box
    radius = min(max(radius, LEAST_RADIUS), box / 2)
    fitted = fit_classes(
        as_particles(images),
        min(len(images) // MEMBERS, MOST_CLASSES),
        radius,
        half=half,
        effort=EFFORT,
        n_jobs=n_jobs,
        seed=seed,
        progress=progress,
    )
    averages = averages_of(fitted, 1.0)
    label, score = fitted.assignments.label, fitted.assignments.score
    ranking = rank_classes(averages, label, None, radius=radius)
    known = np.isfinite(score)
    usual, deviation = (float(np.mean(score[known])), float(np.std(score[known]))) if known.any() else (0, 0)
    learned = LearnedClasses(
        fitted.model._replace(coarse=fitted.model.references.shape[2], steps=STEPS),
        np.minimum(ranking.score, HIGHEST),
        resolved_rings(averages.frc) > 0,
        usual,
        max(deviation, 1e-6),
        np.empty(0),
    )
    step = -(-len(images) // N_DISPLACED)
    displaced = np.roll(images[::step], (box // 2, box // 2), (1, 2))
    return learned._replace(displaced_scores=_scores(displaced, half[::step], learned)[1])


def _sample(particles: Particles, operator: Singles, seed: int) -> tuple[Indices, Images]:
    """Choose images to learn from, crop and normalise them; return the half of each, too."""
    chosen = np.arange(len(particles))
    if len(chosen) > N_SAMPLED:
        chosen = np.sort(np.random.default_rng(seed).choice(len(particles), N_SAMPLED, replace=False))
    halves, images = [], []
    for start in range(0, len(chosen), BATCH):
        part = particles.read(chosen[start : start + BATCH])
        part = part[inspect_pixels(part).codes == VALID]
        halves.append(_half_of(part))
        images.append(crop_and_normalize(part, operator))
    return np.concatenate(halves), np.concatenate(images)


def _half_of(images: Images) -> Indices:
    """Divide images into halves by their pixels: an image is in the same half wherever it stands."""
    return (content_of(images) & np.uint64(1)).astype(np.intp)


def _batch(
    images: Images, start: int, operator: Singles, learned: LearnedClasses | None
) -> tuple[Codes, Floats]:
    half = _half_of(images)
    codes = inspect_and_level(images).codes
    score = np.full(len(images), np.inf)
    judged = codes == VALID
    if learned is None:
        score[judged] = 0.0
    elif judged.any():
        images = apply_crop(images[judged], operator)
        normalize_background(images, 0.5 * len(operator))
        label, score[judged] = _scores(images, half[judged], learned)
        codes[judged] = np.where(learned.resolved[label], UNLIKE, NOISE)
    return codes, score


def _scores(images: Images, half: Indices, learned: LearnedClasses) -> tuple[Indices, Floats]:
    """Class and score of images that were cropped and normalised."""
    found = assign(images, half, learned.model)
    likeness = (np.nan_to_num(found.score.astype(np.float64)) - learned.usual) / learned.deviation
    return found.label, learned.junk[found.label] - np.clip(likeness, -FARTHEST, FARTHEST)
