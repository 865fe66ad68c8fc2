"""The radial filter: one verdict an image from where its mass lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import joblib
import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count, check_not_empty, check_radius
from fastsort._crop import apply_crop, crop_operator
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
from fastsort._threshold import MIN_JUDGED, fit_scores, junk_probability
from fastsort.images.batches import map_batches
from fastsort.images.normalize import inspect_pixels, normalize_background
from fastsort.images.prepare import sample_batches
from fastsort.particles.source import open_particles
from fastsort.radial.discriminant import (
    Discriminant,
    discriminant_score,
    fit_discriminant,
    outlyingness,
)
from fastsort.radial.evidence import N_FEATURES, N_POWERS, Features, Peaks, radial_features
from fastsort.radial.published import cluster_peaks, gaussian_sum_correlation, published_measurements
from fastsort.radial.template import RadialTemplate, forward, learn_template, ordinary, ring_power

if TYPE_CHECKING:
    from fastsort.particles.source import Particles

__all__ = ["RadialResult", "gaussian_sum_correlation", "radial_filter"]

PRESETS = ("default", "published")
CONTRASTS = ("auto", "bright", "dark")
# The radial template shows no more in larger boxes (measured at 32 to 48 px).
GRID = 36
# Small enough for all maps of a batch to stay in the processor's cache.
BATCH = 256
N_TAUGHT = 2048
# A peak away from the centre counts as a particle if it is higher than nine tenths of those beside
# good particles, within these parts of a typical height.
SECOND_PARTICLE = (0.25, 0.9)
# Power this many standard deviations above that of the bulk of the particles is something else.
EXCESS = 4.0


@brief
class RadialResult(NamedTuple):
    """What the radial filter found: arrays of one entry an image, and what it learned.

    Attributes
    ----------
    keep : ndarray of bool, shape (n,)
    score : ndarray of float64, shape (n,)
        Larger for junk; infinite for images that cannot be judged.
    reason : ndarray of str, shape (n,)
        "valid", or why the image is rejected.
    centre : ndarray of float32, shape (n, 2)
        Row and column of the particle from pixel d // 2, in pixels.
    suspicion : ndarray of str, shape (n,)
        Why the image would be rejected, should it be; for rejected images the same as `reason`.
    nearest, strongest : ndarray of float32, shape (n, 2)
        Where the best match near the centre lies, and the best match anywhere: `centre` is the first
        for images that are kept and the second for the others.
    n_clusters, n_scattered : ndarray of int64, shape (n,)
        Clusters among the highest values of the response, and values in no cluster.
    peak : ndarray of float32, shape (n,)
        Highest response near the centre, in standard deviations of the noise; the highest
        correlation anywhere with ``preset="published"``.
    second_peak : ndarray of float32, shape (n,)
        Highest response left after a particle of height `peak` is subtracted; NaN if published.
    outlyingness : ndarray of float32, shape (n,)
        Mahalanobis distance beyond the bulk of the particles; NaN if published.
    junk_probability : ndarray of float64, shape (n,)
        Under the fitted mixture of scores; NaN with fewer than 50 images; 0 or 1 if published.
    threshold : float
        Images with a larger score are rejected; NaN if published or with fewer than 50 images.
    radius : float
        Of the particle in pixels, given or estimated.
    contrast : str
        "bright" or "dark".
    learned : LearnedRadial or None
        What the score rests on, to score more images with; None if published or where nothing could
        be learned.
    """

    keep: npt.NDArray[np.bool_]
    score: npt.NDArray[np.float64]
    reason: npt.NDArray[np.str_]
    centre: npt.NDArray[np.float32]
    suspicion: npt.NDArray[np.str_]
    nearest: npt.NDArray[np.float32]
    strongest: npt.NDArray[np.float32]
    n_clusters: npt.NDArray[np.int64]
    n_scattered: npt.NDArray[np.int64]
    peak: npt.NDArray[np.float32]
    second_peak: npt.NDArray[np.float32]
    outlyingness: npt.NDArray[np.float32]
    junk_probability: npt.NDArray[np.float64]
    threshold: float
    radius: float
    contrast: str
    learned: LearnedRadial | None

    @property
    def cut(self) -> float:
        """The name of `threshold` in version 0.1.0."""
        return self.threshold


class _Batch(NamedTuple):
    """Measurements of one batch, as they come back from a worker.

    `centre` holds for images that are kept, `strongest` (where the strongest peak is) for others.
    """

    codes: npt.NDArray[np.int8]
    score: npt.NDArray[np.float64]
    centre: npt.NDArray[np.float32]
    strongest: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    peak: npt.NDArray[np.float32]
    second_peak: npt.NDArray[np.float32]
    outlyingness: npt.NDArray[np.float32]


def radial_filter(
    images: npt.NDArray[Any] | Particles,
    radius: float | None = None,
    n_peaks: int | None = None,
    *,
    preset: str = "default",
    contrast: str = "auto",
    learned: LearnedRadial | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> RadialResult:
    """Sort images by where their mass lies.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        Best at a box of 32 to 64 px; the background is normalised.
    radius : float, optional
        Particle radius in pixels; by default it is estimated from the data. The published preset
        needs it.
    n_peaks : int, optional
        How many of the highest values are clustered; by default d / 5.
    preset : {"default", "published"}
        "published" applies the rules of [1]_ as their authors' program does.
    contrast : {"auto", "bright", "dark"}
        Of the particles; "auto" finds it. The published rules take bright particles for granted.
    learned : LearnedRadial, optional
        From an earlier result on images of the same box: nothing is learned from these, and radius
        and contrast are those of then.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
        For the sample that the template is learned from.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    result : RadialResult

    Raises
    ------
    InputError
        If the images are not a stack of squares, there are none, or a parameter is out of range.

    Notes
    -----
    The default learns from at most 2048 images: a radial template (`learn_template`), and the
    direction in which the centres of good picks differ from other places of the same images
    (`fit_discriminant`). An image's score is its distance from the typical particle against that
    direction, plus a penalty for lying outside the bulk of the particles at all. The valid images
    are compact on this scale, and a mixture fitted to the scores says where their bulk ends
    (`fit_scores`). Fewer than 50 images cannot say what is common: they get scores, but only those
    that cannot be judged are rejected.

    References
    ----------
    .. [1] Kapnulin, Heimowitz, Sharon, "Outlier removal in cryo-EM via radial profiles" (2024).
    """
    particles = open_particles(images)
    check_not_empty(len(particles))
    check_choice("preset", preset, PRESETS)
    check_choice("contrast", contrast, CONTRASTS)
    seed = check_count("seed", seed, 0)
    box = particles.box
    if radius is not None:
        radius = check_radius(radius, box)
    n_peaks = check_n_peaks(n_peaks, box)
    if preset == "published":
        if radius is None:
            raise InputError("the published preset needs the particle's radius: give radius=, in pixels.")
        batches = map_batches(_published_batch, particles, radius, n_peaks, n_jobs=n_jobs, progress=progress)
        return _published_result(_gather(batches), radius)

    operator = crop_operator(box, min(box, GRID))
    scale = box / len(operator)
    model = learned
    if model is None:
        sample = _sample(particles, operator, radius and radius / scale, seed)
        model = sample if sample is None else _learn(sample, radius and radius / scale, contrast, n_jobs)
    if model is None:
        batches = map_batches(_unjudged_batch, particles, n_jobs=n_jobs, progress=progress)
        return _result(
            _gather(batches), None, radius or 0.25 * box, "bright" if contrast == "auto" else contrast
        )
    batches = map_batches(
        _batch, particles, operator, model, n_peaks, batch_size=BATCH, n_jobs=n_jobs, progress=progress
    )
    found = _gather(batches)
    found = found._replace(
        centre=found.centre * np.float32(scale), strongest=found.strongest * np.float32(scale)
    )
    return _result(found, model, model.radius * scale, "bright" if model.template.sign > 0 else "dark")


def check_n_peaks(n_peaks: int | None, box: int) -> int:
    """Return how many of the highest values are clustered in images of `box` pixels."""
    if n_peaks is None:
        return max(1, round(box / 5))
    if check_count("n_peaks", n_peaks) > box * box:
        raise InputError(f"n_peaks must be at most the {box * box} pixels of an image; got {n_peaks}.")
    return n_peaks


class LearnedRadial(NamedTuple):
    """What was learned of particles: all that is needed to score an image; lengths in cropped pixels.

    Attributes
    ----------
    template : RadialTemplate
    radius : float
        Of the particle.
    discriminant : Discriminant
    displaced_scores : ndarray of float64, shape (m,)
        What displaced places of the images scored that were learned from.
    height, second : float
        Typical height of the peak near the centre, and of what counts as a second particle.
    """

    template: RadialTemplate
    radius: float
    discriminant: Discriminant
    displaced_scores: npt.NDArray[np.float64]
    height: float
    second: float


def _sample(
    particles: Particles, operator: npt.NDArray[np.float32], radius: float | None, seed: int
) -> npt.NDArray[np.float32] | None:
    """Cropped and normalised images to learn from, or None where all are unfit."""
    images = np.concatenate(list(sample_batches(particles, operator, N_TAUGHT, BATCH, seed)))
    if len(images) == 0:
        return None
    normalize_background(images, _background_radius(radius, len(operator)))
    return images


def _background_radius(radius: float | None, box: int) -> float:
    return 0.5 * box if radius is None else min(max(radius, 0.25 * box), 0.5 * box)


def _learn(
    images: npt.NDArray[np.float32], radius: float | None, contrast: str, n_jobs: int | None
) -> LearnedRadial:
    template, radius = learn_template(images, radius, contrast, n_jobs)
    box = images.shape[1]
    half = box // 2
    places = ((half, 0), (0, half), (half, half), (0, 0))
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    tasks = (joblib.delayed(_measure)(part, template, radius, places) for part in parts)
    measured = joblib.Parallel(n_jobs=n_jobs, require="sharedmem")(tasks)
    features = np.concatenate([part for part, _ in measured], axis=1)
    other = np.concatenate([part for _, part in measured])
    displaced, centred = features[:3], features[3]
    discriminant = fit_discriminant(centred, displaced, ordinary(ring_power(images)))
    scores = discriminant_score(displaced.reshape(-1, displaced.shape[-1]), discriminant)
    best = np.argsort(discriminant_score(centred, discriminant), kind="stable")[: max(1, len(images) // 4)]
    height = float(np.median(centred[best, 0]))
    low, high = SECOND_PARTICLE
    second = float(np.clip(np.quantile(other[best], 0.9), low * height, high * height))
    return LearnedRadial(template, radius, discriminant, scores, height, second)


def _measure(
    images: npt.NDArray[np.float32],
    template: RadialTemplate,
    radius: float,
    places: tuple[tuple[int, int], ...],
) -> tuple[Features, npt.NDArray[np.float32]]:
    features, peaks, _ = radial_features(forward(images), template, radius, places)
    return features, peaks.other


def _batch(
    images: npt.NDArray[np.float32],
    start: int,
    operator: npt.NDArray[np.float32],
    model: LearnedRadial,
    n_peaks: int,
) -> _Batch:
    codes = inspect_pixels(images).codes
    images = apply_crop(images, operator)
    box = len(operator)
    normalize_background(images, _background_radius(model.radius, box))
    features, peaks, response = radial_features(forward(images), model.template, model.radius)
    score = discriminant_score(features[0], model.discriminant)
    outlying = outlyingness(features[0], model.discriminant).astype(np.float32)
    elsewhere = (peaks.other > peaks.near) & (peaks.other > model.second)
    reasons = _reasons(features[0], peaks, elsewhere, model, box)
    counts = cluster_peaks(response, model.radius, n_peaks)
    judged = codes == VALID
    score[~judged] = np.inf
    codes = np.where(judged, reasons, codes).astype(np.int8)
    strongest = np.where(elsewhere[:, None], peaks.other_shift, peaks.near_shift)
    return _Batch(codes, score, peaks.near_shift, strongest, counts, peaks.near, peaks.other, outlying)


def _reasons(
    features: Features, peaks: Peaks, elsewhere: npt.NDArray[np.bool_], model: LearnedRadial, box: int
) -> npt.NDArray[np.int8]:
    """Why each image would be rejected, should its score be above the threshold."""
    codes = np.full(len(features), NOISE, dtype=np.int8)
    codes[elsewhere] = OFF_CENTRE
    codes[elsewhere & (np.abs(peaks.other_shift).max(axis=1) > box / 2 - model.radius)] = PARTIAL
    codes[(peaks.other > model.second) & (np.maximum(peaks.near, peaks.third) > model.second)] = MULTIPLE
    # More than any particle has, not less.
    spread = np.sqrt(np.diag(np.linalg.inv(model.discriminant.precision)))
    excess = ((features - model.discriminant.mean) / spread)[:, N_FEATURES - N_POWERS :].max(axis=1)
    strongest = np.maximum(peaks.near, peaks.other)
    codes[(excess > EXCESS) | (strongest > 2 * model.height)] = CONTAMINATION
    return codes


def _unjudged_batch(images: npt.NDArray[np.float32], start: int) -> _Batch:
    n = len(images)
    nothing = np.full(n, np.nan, dtype=np.float32)
    return _Batch(
        inspect_pixels(images).codes,
        np.full(n, np.inf),
        np.zeros((n, 2), dtype=np.float32),
        np.zeros((n, 2), dtype=np.float32),
        np.zeros((n, 2), dtype=np.int64),
        nothing,
        nothing,
        nothing,
    )


def _published_batch(images: npt.NDArray[np.float32], start: int, radius: float, n_peaks: int) -> _Batch:
    codes, counts, peaks, heights, centres = published_measurements(images, radius, n_peaks)
    unknown = np.full(len(images), np.nan, dtype=np.float32)
    return _Batch(codes, -heights.astype(np.float64), centres, centres, counts, peaks, unknown, unknown)


def _gather(batches: Iterator[_Batch]) -> _Batch:
    return _Batch(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def _result(found: _Batch, model: LearnedRadial | None, radius: float, contrast: str) -> RadialResult:
    judged = np.isfinite(found.score)
    probability = np.ones(len(found.score))
    threshold = np.nan
    keep = np.zeros(len(judged), dtype=bool)
    if judged.sum() >= MIN_JUDGED and model is not None:
        scores = fit_scores(found.score[judged], model.displaced_scores)
        probability[judged] = junk_probability(found.score[judged], scores)
        threshold = scores.threshold
        keep = found.score <= threshold
    else:
        probability[judged] = np.nan
        keep = judged
    codes = np.where(keep, VALID, found.codes)
    return RadialResult(
        keep,
        found.score,
        reason_names(codes),
        np.where(keep[:, None], found.centre, found.strongest),
        suspicions(found.codes),
        found.centre,
        found.strongest,
        found.counts[:, 0],
        found.counts[:, 1],
        found.peak,
        found.second_peak,
        found.outlyingness,
        probability,
        threshold,
        radius,
        contrast,
        model,
    )


def _published_result(found: _Batch, radius: float) -> RadialResult:
    keep = found.codes == VALID
    return RadialResult(
        keep,
        found.score,
        reason_names(found.codes),
        found.centre,
        suspicions(found.codes),
        found.centre,
        found.strongest,
        found.counts[:, 0],
        found.counts[:, 1],
        found.peak,
        found.second_peak,
        found.outlyingness,
        1.0 - keep,
        np.nan,
        radius,
        "bright",
        None,
    )
