"""The radial filter: a verdict on each image from where its mass lies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count, check_not_empty, check_radius
from fastsort._crop import apply_crop, crop_operator
from fastsort._parts import in_parts
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
from fastsort._threshold import MIN_JUDGED, fit_scores, junk_probability
from fastsort._types import Array, Bools, Codes, Floats, Images, Numbers, Singles, Words
from fastsort.images.batches import map_batches
from fastsort.images.joined import join_batches
from fastsort.images.normalize import inspect_and_level, inspect_pixels, normalize_background
from fastsort.particles.source import Particles, as_particles
from fastsort.radial.discriminant import discriminant_score, outlyingness
from fastsort.radial.evidence import N_FEATURES, N_POWERS, Peaks, radial_features
from fastsort.radial.learn import BATCH, LearnedRadial, background_radius, learn_radial, read_sample
from fastsort.radial.published import cluster_peaks, published_measurements

PRESETS = ("default", "published")
CONTRASTS = ("auto", "bright", "dark")
# The radial template shows no more in larger boxes (measured at 32 to 48 px).
GRID = 36
# An image with power this many standard deviations above that of the particles shows something else.
EXCESS = 4.0


@brief
class RadialResult(NamedTuple):
    """Verdict of the radial filter: arrays with one entry per image, and what was learned.

    Attributes
    ----------
    keep : ndarray of bool, shape (n,)
    score : ndarray of float64, shape (n,)
        Larger for junk; infinite for images that cannot be judged.
    reason, suspicion : ndarray of str, shape (n,)
        "valid", or why the image is rejected; and why it would be, which for rejected images is the same.
        Made of `suspicion_code` whenever they are asked for.
    centre : ndarray of float32, shape (n, 2)
        Row and column of the particle from pixel d // 2, in pixels: `nearest` for images that are kept
        and `strongest` for the others; made of these whenever it is asked for.
    suspicion_code : ndarray of int8, shape (n,)
        Why the image would be rejected, as a place in the list of all reasons.
    nearest, strongest : ndarray of float32, shape (n, 2)
        Where the best match near the centre lies, and the best match anywhere.
    n_clusters, n_scattered : ndarray of int32, shape (n,)
        Clusters among the highest values of the response, and values in no cluster.
    peak : ndarray of float32, shape (n,)
        Highest response near the centre, in standard deviations of the noise; the highest
        correlation anywhere with ``preset="published"``.
    second_peak : ndarray of float32, shape (n,)
        Highest response left after a particle of height `peak` is subtracted; NaN if published.
    outlyingness : ndarray of float32, shape (n,)
        Mahalanobis distance from the bulk of the particles, as far as it exceeds its expectation; NaN
        if published.
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

    keep: Bools
    score: Floats
    suspicion_code: Codes
    nearest: Singles
    strongest: Singles
    n_clusters: Numbers
    n_scattered: Numbers
    peak: Singles
    second_peak: Singles
    outlyingness: Singles
    junk_probability: Floats
    threshold: float
    radius: float
    contrast: str
    learned: LearnedRadial | None

    @property
    def reason(self) -> Words:
        """What each image shows: "valid", or why it is rejected."""
        return verdict_in_words(self.keep, self.suspicion_code)

    @property
    def suspicion(self) -> Words:
        """Why each image would be rejected."""
        return reason_names(self.suspicion_code)

    @property
    def centre(self) -> Singles:
        """Where the particle of each image lies."""
        return np.where(self.keep[:, None], self.nearest, self.strongest)

    @property
    def cut(self) -> float:
        """The name of `threshold` in version 0.1.0."""
        return self.threshold


class _Measurements(NamedTuple):
    """What a worker returns of one batch; fields as in `RadialResult`.

    `codes` say why an image would be rejected, `counts` are `n_clusters` and `n_scattered`.
    """

    codes: Codes
    score: Floats
    nearest: Singles
    strongest: Singles
    counts: npt.NDArray[np.int64]
    peak: Singles
    second_peak: Singles
    outlyingness: Singles


def radial_filter(
    images: Array | Particles,
    radius: float | None = None,
    n_peaks: int | None = None,
    *,
    preset: str = "default",
    contrast: str = "auto",
    learned: LearnedRadial | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
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
        From an earlier result on images of the same box. Nothing is learned from the new images:
        radius and contrast are the earlier ones, too.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
        Random seed, for the choice of the images that the template is learned from.
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
    The default preset learns from at most 2048 images: a radial template (`learn_template`), and the
    directions in which the centres of good picks differ from displaced places of the same images, and
    from noise as a picker finds it (`fit_discriminant`, `picked_noise`). The score of an image is its
    distance from the typical particle against these directions, plus a penalty if it lies outside the
    bulk of the particles. The valid images are compact on this scale, and a mixture fitted to the scores
    says where their bulk ends (`fit_scores`). Fewer than 50 images cannot say what is common: they get
    scores, but only those that cannot be judged are rejected.

    References
    ----------
    .. [1] Kapnulin, Heimowitz, Sharon, "Outlier removal in cryo-EM via radial profiles" (2024).

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(150, 150, snr=0.1, box=36, junk=("noise", "partial"))
    >>> result = fs.radial_filter(images)
    >>> bool((result.keep == truth.label).mean() > 0.9)
    True
    >>> result.contrast
    'bright'

    More images of the same kind are scored with what was learned:

    >>> more, truth = fs.simulate_particles(5, 5, snr=0.1, box=36, seed=1)
    >>> score = fs.radial_filter(more, learned=result.learned).score
    >>> bool((score[truth.label].mean() < score[~truth.label].mean()))
    True
    """
    particles = as_particles(images)
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
        return _published_result(_joined(batches, len(particles)), radius)

    operator = crop_operator(box, min(box, GRID))
    scale = box / len(operator)
    with one_blas_thread():
        if learned is None:
            learned = learn_radial_filter(particles, radius, contrast, seed)
        if learned is None:
            batches = map_batches(_unfit_batch, particles, n_jobs=n_jobs, progress=progress)
            contrast = "bright" if contrast == "auto" else contrast
            return _result(_joined(batches, len(particles)), None, radius or 0.25 * box, contrast)
        batches = map_batches(
            _batch, particles, operator, learned, n_peaks, batch_size=BATCH, n_jobs=n_jobs, progress=progress
        )
        measured = _joined(batches, len(particles))
    measured = measured._replace(
        nearest=measured.nearest * np.float32(scale), strongest=measured.strongest * np.float32(scale)
    )
    contrast = "bright" if learned.template.sign > 0 else "dark"
    return _result(measured, learned, learned_radius(learned, box), contrast)


def learn_radial_filter(
    particles: Particles, radius: float | None, contrast: str, seed: int
) -> LearnedRadial | None:
    """Learn what `radial_filter` scores images with; None where no image is fit to learn from."""
    operator = crop_operator(particles.box, min(particles.box, GRID))
    radius = radius and radius * len(operator) / particles.box
    with one_blas_thread():
        sample = read_sample(particles, operator, radius, seed)
        return None if sample is None else learn_radial(sample, radius, contrast)


def learned_radius(learned: LearnedRadial, box: int) -> float:
    """Return the radius of the particle that was learned, in pixels of images of `box` pixels."""
    return learned.radius * (box / min(box, GRID))


def check_n_peaks(n_peaks: int | None, box: int) -> int:
    """Return how many of the highest values are clustered in images of `box` pixels."""
    if n_peaks is None:
        return max(1, round(box / 5))
    if check_count("n_peaks", n_peaks) > box * box:
        raise InputError(f"n_peaks must be at most the {box * box} pixels of an image; got {n_peaks}.")
    return n_peaks


def _batch(
    images: Images, start: int, operator: Singles, learned: LearnedRadial, n_peaks: int
) -> _Measurements:
    codes = inspect_and_level(images).codes
    images = apply_crop(images, operator)
    box = len(operator)
    normalize_background(images, background_radius(learned.radius, box))
    features, peaks, response = radial_features(images, learned.template, learned.radius)
    score = discriminant_score(features[0], learned.discriminant)
    outlying = outlyingness(features[0], learned.discriminant).astype(np.float32)
    elsewhere = (peaks.other > peaks.near) & (peaks.other > learned.second_height)
    reasons = _reasons(features[0], peaks, elsewhere, learned, box)
    counts = cluster_peaks(response, learned.radius, n_peaks)
    judged = codes == VALID
    score[~judged] = np.inf
    codes = np.where(judged, reasons, codes).astype(np.int8)
    strongest = np.where(elsewhere[:, None], peaks.other_shift, peaks.near_shift)
    return _Measurements(codes, score, peaks.near_shift, strongest, counts, peaks.near, peaks.other, outlying)


def _reasons(features: Floats, peaks: Peaks, elsewhere: Bools, learned: LearnedRadial, box: int) -> Codes:
    """Why each image would be rejected, should its score be above the threshold."""
    second = learned.second_height
    # A particle in the middle that is rejected all the same differs in a way that has no name.
    strongest = np.maximum(peaks.near, peaks.other)
    codes = np.where(strongest > second, UNLIKE, NOISE).astype(np.int8)
    codes[elsewhere] = OFF_CENTRE
    codes[elsewhere & (np.abs(peaks.other_shift).max(axis=1) > box / 2 - learned.radius)] = PARTIAL
    codes[(peaks.other > second) & (np.maximum(peaks.near, peaks.third) > second)] = MULTIPLE
    # More power than any particle has counts, less does not.
    spread = np.sqrt(np.diag(np.linalg.inv(learned.discriminant.precision)))
    excess = ((features - learned.discriminant.mean) / spread)[:, N_FEATURES - N_POWERS :].max(axis=1)
    codes[(excess > EXCESS) | (strongest > 2 * learned.typical_height)] = CONTAMINATION
    return codes


def _unfit_batch(images: Images, start: int) -> _Measurements:
    """Measurements where no image of the whole set is fit to learn from."""
    n = len(images)
    unknown = np.full(n, np.nan, dtype=np.float32)
    nowhere = np.zeros((n, 2), dtype=np.float32)
    return _Measurements(
        codes=inspect_pixels(images).codes,
        score=np.full(n, np.inf),
        nearest=nowhere,
        strongest=nowhere,
        counts=np.zeros((n, 2), dtype=np.int64),
        peak=unknown,
        second_peak=unknown,
        outlyingness=unknown,
    )


def _published_batch(images: Images, start: int, radius: float, n_peaks: int) -> _Measurements:
    measured = published_measurements(images, radius, n_peaks)
    unknown = np.full(len(images), np.nan, dtype=np.float32)
    return _Measurements(
        codes=measured.codes,
        score=-measured.heights.astype(np.float64),
        nearest=measured.centres,
        strongest=measured.centres,
        counts=measured.counts,
        peak=measured.peaks,
        second_peak=unknown,
        outlyingness=unknown,
    )


def _joined(batches: Iterator[_Measurements], n: int) -> _Measurements:
    return _Measurements(*join_batches(batches, n))


def _result(
    measured: _Measurements, learned: LearnedRadial | None, radius: float, contrast: str
) -> RadialResult:
    judged = np.isfinite(measured.score)
    probability = np.where(judged, np.nan, 1.0)
    threshold = np.nan
    keep = judged
    if judged.sum() >= MIN_JUDGED and learned is not None:
        model = fit_scores(measured.score[judged], learned.displaced_scores)
        probability[judged] = in_parts(partial(junk_probability, model=model), measured.score[judged])
        threshold = model.threshold
        keep = measured.score <= threshold
    return RadialResult(
        keep=keep,
        score=measured.score,
        suspicion_code=suspected(measured.codes),
        nearest=measured.nearest,
        strongest=measured.strongest,
        n_clusters=measured.counts[:, 0].astype(np.int32),
        n_scattered=measured.counts[:, 1].astype(np.int32),
        peak=measured.peak,
        second_peak=measured.second_peak,
        outlyingness=measured.outlyingness,
        junk_probability=probability,
        threshold=threshold,
        radius=radius,
        contrast=contrast,
        learned=learned,
    )


def _published_result(measured: _Measurements, radius: float) -> RadialResult:
    keep = measured.codes == VALID
    return RadialResult(
        keep=keep,
        score=measured.score,
        suspicion_code=suspected(measured.codes),
        nearest=measured.nearest,
        strongest=measured.strongest,
        n_clusters=measured.counts[:, 0].astype(np.int32),
        n_scattered=measured.counts[:, 1].astype(np.int32),
        peak=measured.peak,
        second_peak=measured.second_peak,
        outlyingness=measured.outlyingness,
        junk_probability=1.0 - keep,
        threshold=np.nan,
        radius=radius,
        contrast="bright",
        learned=None,
    )
