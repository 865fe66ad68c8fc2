"""Align images to references: find the turn and the shift of each image, and undo them.

`rings` samples images on rings of the Fourier plane, `references` prepares what they are compared with,
`search` compares all turns and shifts, `refine` improves the best ones, and `transform` moves the images.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._checks import InputError, check_count, check_positive
from fastsort._progress import Progress
from fastsort._types import Array, Bools, Floats, Images, Indices, Singles
from fastsort.images.batches import map_batches
from fastsort.invariants.references import References, prepare_references
from fastsort.invariants.rings import polar_spectra
from fastsort.invariants.search import search_poses
from fastsort.invariants.transform import move_images
from fastsort.particles.source import Particles, as_particles

# How far from pixel d // 2 a particle may lie by default, in parts of the box.
MAX_SHIFT = 0.125
# Part of the references that features leave to compare with by default.
NEAREST = 0.2


@brief
class Alignment(NamedTuple):
    """How to bring images onto a reference; one entry an image.

    For an image that is flat or holds a NaN or an infinity, angle and shift are NaN and the score is -inf.

    Attributes
    ----------
    angle : ndarray of float32, shape (n,)
        In degrees, from -180 to 180. After shift and mirroring, turn the image by this angle about pixel
        d // 2, from the x axis (columns) towards the y axis (rows): what lay at direction theta then lies
        at theta + angle, as in the reference. With rows drawn downwards the turn is clockwise.
    shift : ndarray of float32, shape (n, 2)
        Row and column of the particle's centre, in pixels from pixel d // 2: this point of the image comes
        to lie on pixel d // 2 of the reference.
    score : ndarray of float32, shape (n,)
        Normalised correlation with the reference over all frequencies below Nyquist, in [-1, 1].
    mirrored : ndarray of bool, shape (n,)
        Whether to reverse the columns about pixel d // 2, between shift and turn.
    """

    angle: Singles
    shift: Singles
    score: Singles
    mirrored: Bools


@brief
class Match(NamedTuple):
    """The reference that fits each image best, and how to bring the image onto it.

    Attributes
    ----------
    reference : ndarray of intp, shape (n,)
        -1 for an image that cannot be aligned.
    angle, shift, score, mirrored
        As in an `Alignment` to that reference.
    n_tried : ndarray of intp, shape (n,)
        How many references the image was compared with.
    """

    reference: Indices
    angle: Singles
    shift: Singles
    score: Singles
    mirrored: Bools
    n_tried: Indices


def align_images(
    images: Array | Particles,
    reference: npt.ArrayLike,
    *,
    max_shift: float | None = None,
    mirror: bool = False,
    n_jobs: int | None = None,
) -> Alignment:
    """Find the rotation and the shift that bring each image onto a reference.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
        In any unit: the scale and the offset of an image do not matter, its sign does.
    reference : ndarray, shape (d, d)
        Only what lies inside the circle inscribed in the box is used.
    max_shift : float, optional
        How far from pixel d // 2 a particle may lie, in pixels; by default an eighth of the box.
    mirror : bool
        Whether to try mirror images too.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    alignment : Alignment

    Raises
    ------
    InputError
        If the images are no stack of squares, or the reference has another shape, is flat or not finite.

    Notes
    -----
    The Fourier transforms of the image and the reference are sampled on rings of whole frequencies. On the
    inner rings the search compares all rotations at all shifts of a grid, by a matrix product of the
    shifted images with the rotated reference. Amplitudes alone cannot tell an angle from the one half a
    turn away; the sum and the difference of the products of real and imaginary parts give the scores of
    both. Gauss-Newton steps then refine the highest peaks in angle and shift together, on more and more
    rings, and the best pose on all rings is returned.

    Images of more than 96 pixels are Fourier-cropped to 96 before they are compared.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> reference = np.zeros((32, 32))
    >>> reference[12:20, 10:14] = reference[12:16, 14:22] = 1
    >>> image = np.roll(reference, (2, -1), axis=(0, 1))
    >>> alignment = fs.invariants.align_images(image[np.newaxis], reference)
    >>> alignment.shift.round().tolist()
    [[2.0, -1.0]]
    >>> bool(abs(alignment.angle[0]) < 1), bool(alignment.score[0] > 0.99)
    (True, True)
    """
    particles = as_particles(images)
    one = np.asarray(reference)
    if one.shape != (particles.box, particles.box):
        raise InputError(
            f"reference must have the images' shape {(particles.box, particles.box)}; got {one.shape}."
        )
    match = match_to_references(particles, one[None], max_shift=max_shift, mirror=mirror, n_jobs=n_jobs)
    return Alignment(match.angle, match.shift, match.score, match.mirrored)


def match_to_references(
    images: Array | Particles,
    references: npt.ArrayLike,
    *,
    features: Array | None = None,
    reference_features: npt.ArrayLike | None = None,
    n_candidates: int | None = None,
    max_shift: float | None = None,
    mirror: bool = False,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> Match:
    """Find the reference that each image looks most like, and align the image to it.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
    references : ndarray, shape (R, d, d)
        A flat one, such as the average of an empty class, never fits best.
    features : ndarray, shape (n, F), optional
        Numbers that do not change when an image is rotated or shifted, such as `invariant_features`. If
        given, each image is compared only with the references that have the nearest features.
    reference_features : ndarray, shape (R, F), optional
        The features of the references. A reference whose features are not finite counts as the farthest.
    n_candidates : int, optional
        How many references to compare each image with when there are features; by default a fifth of all,
        rounded up.
    max_shift, mirror, n_jobs
        As for `align_images`.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    match : Match

    Raises
    ------
    InputError
        As for `align_images`; if every reference is flat; or if the features have another shape.

    Notes
    -----
    This is the two-stage classification that [1]_ outlines: invariant features choose a few candidates,
    and an exhaustive search decides among them. It compares references by normalised correlation, first
    all of them on the inner rings, then the best few on all rings.

    References
    ----------
    .. [1] Gu, "Machine Learning Problems in Cryo-EM" (2018).

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> references = np.zeros((2, 32, 32))
    >>> references[0, 12:20, 10:14] = references[0, 12:16, 14:22] = 1
    >>> references[1, 14:18, 8:24] = 1
    >>> images = np.rot90(references[[1, 0, 1]], axes=(1, 2))
    >>> fs.invariants.match_to_references(images, references).reference.tolist()
    [1, 0, 1]
    """
    particles = as_particles(images)
    n = len(particles)
    stack = _check_references(references, particles.box)
    limit = check_max_shift(max_shift, particles.box)
    features_of_both = _check_features(features, reference_features, n, len(stack))
    n_tried = _check_candidates(n_candidates, len(stack), features_of_both is not None)
    bank = prepare_references(stack, mirror=mirror)
    if not (bank.norm > 0).any():
        raise InputError("all references are flat: give at least one that shows something.")
    match = Match(
        np.empty(n, dtype=np.intp),
        np.empty(n, dtype=np.float32),
        np.empty((n, 2), dtype=np.float32),
        np.empty(n, dtype=np.float32),
        np.empty(n, dtype=np.bool_),
        np.full(n, n_tried, dtype=np.intp),
    )
    columns: tuple[Array, ...] = match[:5]
    start = 0
    arguments = bank, features_of_both, n_tried, limit
    for part in map_batches(_match_batch, particles, *arguments, n_jobs=n_jobs, progress=progress):
        stop = start + len(part[0])
        for column, values in zip(columns, part, strict=True):
            column[start:stop] = values
        start = stop
    return match


def _match_batch(
    images: Images,
    start: int,
    bank: References,
    features: tuple[Array, Floats] | None,
    n_tried: int,
    max_shift: float,
) -> tuple[Array, ...]:
    """Columns of a `Match` for a batch; `features` are those of all images and those of the references."""
    candidates = None
    if features is not None and n_tried < bank.n_references:
        candidates = _nearest(features[0][start : start + len(images)], features[1], n_tried)
    return tuple(search_poses(polar_spectra(images), bank, candidates, max_shift))


def _nearest(features: Array, references: Floats, count: int) -> Indices:
    """References (n, count) with the nearest features for each image, in ascending order."""
    features = np.asarray(features, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = (references**2).sum(axis=1) - 2 * features @ references.T
    distance[~np.isfinite(distance)] = np.inf
    return np.sort(np.argsort(distance, axis=1, kind="stable")[:, :count], axis=1)


def _check_references(references: npt.ArrayLike, box: int) -> Images:
    stack = np.asarray(references)
    if stack.dtype.kind not in "fiub":
        raise InputError(f"references must be real numbers; got an array of {stack.dtype}.")
    if stack.ndim != 3 or stack.shape[1:] != (box, box) or len(stack) == 0:
        raise InputError(f"references must have shape (R, {box}, {box}), as the images; got {stack.shape}.")
    with np.errstate(over="ignore"):
        stack = np.array(stack, dtype=np.float32, order="C")
    if not np.isfinite(stack).all():
        raise InputError("references must be finite; got NaN or infinity: leave those references out.")
    return stack


def check_max_shift(max_shift: float | None, box: int) -> float:
    """Return the largest shift in pixels; by default an eighth of the box."""
    if max_shift is None:
        return MAX_SHIFT * box
    if max_shift == 0:
        return 0.0
    limit = check_positive("max_shift", max_shift, "px")
    if limit > box / 2:
        raise InputError(f"max_shift must be at most half the box, {box / 2:g} px; got {limit:g} px.")
    return limit


def _check_features(
    features: Array | None, references: npt.ArrayLike | None, n: int, n_references: int
) -> tuple[Array, Floats] | None:
    if features is None and references is None:
        return None
    if features is None or references is None:
        raise InputError("features and reference_features go together: give both or neither.")
    of_references = np.asarray(references, dtype=np.float64)
    if np.ndim(features) != 2 or len(features) != n:
        raise InputError(f"features must have shape ({n}, F), a row an image; got {np.shape(features)}.")
    if of_references.shape != (n_references, features.shape[1]):
        raise InputError(
            f"reference_features must have shape {(n_references, features.shape[1])}; "
            f"got {of_references.shape}."
        )
    return features, of_references


def _check_candidates(n_candidates: int | None, n_references: int, chosen_by_features: bool) -> int:
    """Return how many references each image is compared with."""
    if not chosen_by_features:
        if n_candidates is not None:
            raise InputError("n_candidates needs features and reference_features, which choose them.")
        return n_references
    default = math.ceil(NEAREST * n_references - 1e-9)
    count = default if n_candidates is None else check_count("n_candidates", n_candidates)
    return min(count, n_references)


def apply_alignment(
    images: Array | Particles, alignment: Alignment | Match, *, n_jobs: int | None = None
) -> Images:
    """Shift, mirror and rotate images onto their reference.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
    alignment : Alignment or Match
        One entry an image.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    aligned : ndarray of float32, shape (n, d, d)
        NaN where the alignment is NaN. Images count as periodic, so that the corners of the box are
        filled.

    Raises
    ------
    InputError
        If the alignment has not one entry an image.

    Notes
    -----
    The shift is a phase in the Fourier plane, which is exact for band-limited images. The turn is an
    interpolation by cubic B-splines, whose coefficients come from the same transform.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(20, 0, box=32, snr=2, seed=1)
    >>> alignment = fs.invariants.align_images(images, images[0], max_shift=4)
    >>> aligned = fs.invariants.apply_alignment(images, alignment)
    >>> aligned.shape
    (20, 32, 32)
    >>> bool(np.corrcoef(aligned[0].ravel(), images[0].ravel())[0, 1] > 0.99)
    True
    """
    particles = as_particles(images)
    n = len(particles)
    if len(alignment.angle) != n:
        raise InputError(
            f"alignment must have one entry for each of the {n} images; got {len(alignment.angle)}."
        )
    poses = (
        np.asarray(alignment.angle, dtype=np.float32),
        np.asarray(alignment.shift, dtype=np.float32),
        np.asarray(alignment.mirrored, dtype=np.bool_),
    )
    aligned = np.empty((n, particles.box, particles.box), dtype=np.float32)
    start = 0
    for part in map_batches(_apply_batch, particles, each=poses, n_jobs=n_jobs):
        aligned[start : start + len(part)] = part
        start += len(part)
    return aligned


def _apply_batch(images: Images, start: int, angle: Singles, shift: Singles, mirrored: Bools) -> Images:
    return move_images(images, angle, shift, mirrored)
