"""Images turned and shifted onto references: polar Fourier correlation, then a joint refinement."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft

from fastsort._brief import brief
from fastsort._checks import InputError, check_count, check_positive
from fastsort._crop import apply_crop, crop_operator
from fastsort._jit import kernel
from fastsort.images.batches import map_batches
from fastsort.particles.source import open_particles

if TYPE_CHECKING:
    from fastsort.particles.source import Particles

# Larger images are cropped to this many pixels before they are compared.
WORKING_BOX = 96
# The search over all turns and shifts sees this many rings of the Fourier plane at 32 angles a half turn.
SEARCH_RINGS = 10
SEARCH_ANGLES = 32
# Grid points of the shift a period of the highest frequency in the search.
SHIFT_SAMPLING = 2.5
# How far from pixel d // 2 a particle may lie, in parts of the box, where nothing else is said.
MAX_SHIFT = 0.125
# Peaks of the search that are refined; those of one reference are this many search angles apart.
N_STARTS = 3
APART = 4
# A reference is sampled this many times as finely in angle as an image.
FINER = 4
# Part of the references that are left when features choose them.
NEAREST = 0.2
# Images at once, so that what is between two steps stays in the cache.
CHUNK = 16
_TAPS = 4

Images = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


@brief
class Alignment(NamedTuple):
    """How images are brought onto a reference; one entry an image.

    An image that is flat, or has a NaN or an infinity anywhere, has angle and shift NaN and score -inf.

    Attributes
    ----------
    angle : ndarray of float32, shape (n,)
        In degrees, from -180 to 180. The image, once its particle is in the middle and mirrored if
        `mirrored` says so, is turned by this angle from the x axis (columns) towards the y axis (rows)
        about pixel d // 2: what lay at direction theta then lies at theta + angle, as in the reference.
        With rows drawn downwards the turn is clockwise.
    shift : ndarray of float32, shape (n, 2)
        Row and column, in pixels from pixel d // 2, of the point of the image that comes to lie on pixel
        d // 2 of the reference.
    score : ndarray of float32, shape (n,)
        Normalised correlation with the reference over all frequencies below Nyquist, in [-1, 1].
    mirrored : ndarray of bool, shape (n,)
        Whether columns are reversed about pixel d // 2 between shift and turn.
    """

    angle: Floats
    shift: Floats
    score: Floats
    mirrored: npt.NDArray[np.bool_]


@brief
class Match(NamedTuple):
    """The best of several references for every image, and how the image is brought onto it.

    Attributes
    ----------
    reference : ndarray of intp, shape (n,)
        -1 for an image that cannot be aligned.
    angle, shift, score, mirrored
        As of an `Alignment` onto that reference.
    n_tried : ndarray of intp, shape (n,)
        References that were tried by brute force.
    """

    reference: Indices
    angle: Floats
    shift: Floats
    score: Floats
    mirrored: npt.NDArray[np.bool_]
    n_tried: Indices


def align_images(
    images: npt.NDArray[Any] | Particles,
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
        Any unit: scale and offset of an image do not matter, the sign does.
    reference : ndarray, shape (d, d)
        What lies outside the circle inscribed in the box has no part in it.
    max_shift : float, optional
        How far from pixel d // 2 a particle may lie, in pixels; an eighth of the box by default.
    mirror : bool
        Whether mirror images are tried, too.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    alignment : Alignment

    Raises
    ------
    InputError
        If the images are no stack of squares, or the reference does not fit them, is flat or not finite.

    Notes
    -----
    Both transforms are sampled on rings of whole frequencies. On the inner rings all rotations are
    compared at all shifts on a grid: one product of the shifted images with the rotated reference. The
    two angles that the amplitudes alone cannot tell apart, half a turn from each other, are the sum and
    the difference of the products of real and imaginary parts. The highest peaks are refined in angle
    and shift together by Gauss-Newton steps on more and more rings; the best one on all rings is taken.

    Images of more than 96 pixels are compared as if they were Fourier-cropped to 96.
    """
    particles = open_particles(images)
    one = np.asarray(reference)
    if one.shape != (particles.box, particles.box):
        raise InputError(
            f"reference must have the images' shape {(particles.box, particles.box)}; got {one.shape}."
        )
    match = match_to_references(particles, one[None], max_shift=max_shift, mirror=mirror, n_jobs=n_jobs)
    return Alignment(match.angle, match.shift, match.score, match.mirrored)


def match_to_references(
    images: npt.NDArray[Any] | Particles,
    references: npt.ArrayLike,
    *,
    features: npt.NDArray[Any] | None = None,
    reference_features: npt.ArrayLike | None = None,
    n_candidates: int | None = None,
    max_shift: float | None = None,
    mirror: bool = False,
    n_jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Match:
    """Find the reference that each image looks most like, and align the image to it.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
    references : ndarray, shape (R, d, d)
        Flat ones, such as averages of empty classes, are never chosen.
    features : ndarray, shape (n, F), optional
        Numbers that do not change when an image is rotated or shifted. With them each image is compared
        only with the references that are nearest in these numbers.
    reference_features : ndarray, shape (R, F), optional
        The same of the references. Where they are not finite, the reference is the last to be tried.
    n_candidates : int, optional
        How many references are compared with each image if there are features; a fifth, rounded up, by
        default.
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
        As `align_images`, if every reference is flat, or if the features do not fit.

    Notes
    -----
    The stages are those of the two-stage classification that [1]_ outlines: invariants leave a few
    candidates, and brute force decides among them. References are compared by normalised correlation,
    first on the inner rings, then the best few on all.

    References
    ----------
    .. [1] Gu, "Machine Learning Problems in Cryo-EM" (2018).
    """
    particles = open_particles(images)
    stack = _check_references(references, particles.box)
    limit = check_max_shift(max_shift, particles.box)
    chosen = _check_features(features, reference_features, len(particles), len(stack))
    n_tried = len(stack)
    if chosen is not None:
        default = math.ceil(NEAREST * len(stack) - 1e-9)
        n_tried = default if n_candidates is None else check_count("n_candidates", n_candidates)
        n_tried = min(n_tried, len(stack))
    elif n_candidates is not None:
        raise InputError("n_candidates needs features and reference_features, which choose the candidates.")
    bank = prepare_references(stack, mirror=mirror)
    if not (bank.norm > 0).any():
        raise InputError("reference is flat: there is nothing to align to.")
    n = len(particles)
    out = Match(
        np.empty(n, dtype=np.intp),
        *empty_alignment(n),
        np.full(n, n_tried, dtype=np.intp),
    )
    columns: tuple[npt.NDArray[Any], ...] = tuple(out)
    start = 0
    arguments = bank, chosen, n_tried, limit
    for part in map_batches(_match_batch, particles, *arguments, n_jobs=n_jobs, progress=progress):
        stop = start + len(part[0])
        for column, values in zip(columns, part, strict=False):
            column[start:stop] = values
        start = stop
    return out


def _match_batch(
    images: Images,
    start: int,
    bank: References,
    chosen: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None,
    n_tried: int,
    max_shift: float,
) -> tuple[Indices, Floats, Floats, Floats, npt.NDArray[np.bool_]]:
    candidates = None
    if chosen is not None and n_tried < bank.n_references:
        candidates = _nearest(chosen[0][start : start + len(images)], chosen[1], n_tried)
    polar = polar_spectra(images)
    found = search(polar, bank, candidates, max_shift)
    return found.reference, *found.alignment


def _nearest(
    features: npt.NDArray[np.float64], references: npt.NDArray[np.float64], count: int
) -> npt.NDArray[np.intp]:
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
    """Return the largest shift in pixels, an eighth of the box by default."""
    if max_shift is None:
        return MAX_SHIFT * box
    if max_shift == 0:
        return 0.0
    limit = check_positive("max_shift", max_shift, "px")
    if limit > box / 2:
        raise InputError(f"max_shift must be at most half the box, {box / 2:g} px; got {limit:g} px.")
    return limit


def _check_features(
    features: npt.NDArray[Any] | None, references: npt.ArrayLike | None, n: int, n_references: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]] | None:
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


def empty_alignment(n: int) -> Alignment:
    """Return room for `n` alignments."""
    angle, score = np.empty((2, n), dtype=np.float32)
    return Alignment(angle, np.empty((n, 2), dtype=np.float32), score, np.empty(n, dtype=np.bool_))


# Images on rings of the Fourier plane.


class Rings(NamedTuple):
    """Where images of one box are sampled in the Fourier plane, and how.

    Attributes
    ----------
    box : int
        Side of the images in pixels.
    n_rings : int
        At 1, 2, ... cycles a box, all below Nyquist.
    n_angles : int
        A half turn, from -90 degrees up; the other half is the complex conjugate.
    outside : ndarray of intp
        Pixels outside the inscribed circle.
    fall_off : ndarray of float32, shape (box,)
        What the interpolation does to an axis of the image, inverted.
    padded : int
        Side of the transform that is interpolated.
    phase : ndarray of complex64, shape (padded,)
        Moves the origin of the transform to pixel box // 2.
    image_points, reference_points : tuple of ndarray
        Taps: first row, first column, weights along rows and along columns.
    cosine, sine : ndarray of float32, shape (n_angles,)
    """

    box: int
    n_rings: int
    n_angles: int
    outside: Indices
    fall_off: Floats
    padded: int
    phase: npt.NDArray[np.complex64]
    image_points: tuple[npt.NDArray[Any], ...]
    reference_points: tuple[npt.NDArray[Any], ...]
    cosine: Floats
    sine: Floats


class Polar(NamedTuple):
    """Images on rings of the Fourier plane.

    Attributes
    ----------
    spectra : ndarray of float32, shape (n, 2, K, A)
        Real and imaginary parts, with sum of squares 1: times the root of the ring's radius, so that sums
        are integrals over the plane. Zero for images that cannot be aligned.
    usable : ndarray of bool, shape (n,)
        Whether the image is finite and not flat.
    box : int
        Of the images that were given.
    """

    spectra: Floats
    usable: npt.NDArray[np.bool_]
    box: int


@lru_cache(maxsize=8)
def rings_of(box: int) -> Rings:
    """Return the sampling for images of `box` pixels."""
    n_rings = (box - 1) // 2
    # Enough for a particle that fills four fifths of the box, and a multiple of the search's angles.
    n_angles = SEARCH_ANGLES * max(1, math.ceil(0.4 * math.pi * n_rings / SEARCH_ANGLES))
    padded = scipy.fft.next_fast_len(2 * box, real=True)
    padded += padded % 2
    offset = np.arange(box) - box // 2
    outside = np.flatnonzero(np.add.outer(offset**2, offset**2) > (box // 2) ** 2)
    # The Kaiser-Bessel window's shape for twofold oversampling, after Beatty, Nishimura, Pauly,
    # IEEE Trans. Med. Imaging 24 (2005), equation 5.
    shape = math.pi * math.sqrt((_TAPS / 2 * 1.5) ** 2 - 0.8)
    root = np.sqrt(shape**2 - (math.pi * _TAPS * offset / padded) ** 2)
    fall_off = root / (_TAPS * np.sinh(root))
    # Transforms keep their first pixel in place; the phase moves the middle there.
    frequency = scipy.fft.fftfreq(padded)
    phase = np.exp(2j * np.pi * frequency * (box // 2))

    def points(count: int) -> tuple[npt.NDArray[Any], ...]:
        angle = -math.pi / 2 + math.pi * np.arange(count) / count
        radius = np.arange(1, n_rings + 1)[:, None] * padded / box
        taps = [_taps(radius * function(angle), shape) for function in (np.sin, np.cos)]
        return taps[0][0], taps[1][0], taps[0][1], taps[1][1]

    angle = -math.pi / 2 + math.pi * np.arange(n_angles) / n_angles
    return Rings(
        box,
        n_rings,
        n_angles,
        outside,
        fall_off.astype(np.float32),
        padded,
        phase.astype(np.complex64),
        points(n_angles),
        points(n_angles * FINER),
        np.cos(angle).astype(np.float32),
        np.sin(angle).astype(np.float32),
    )


def _taps(
    position: npt.NDArray[np.float64], shape: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    flat = position.ravel()
    first = np.floor(flat).astype(np.int32) - _TAPS // 2 + 1
    distance = (flat[:, None] - first[:, None] - np.arange(_TAPS)) * (2 / _TAPS)
    weight = np.i0(shape * np.sqrt(np.maximum(1 - distance**2, 0)))
    return first, weight.astype(np.float32)


def polar_spectra(images: Images) -> Polar:
    """Sample the transforms of images on rings.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)

    Returns
    -------
    polar : Polar
        Of the images cropped to at most 96 pixels.
    """
    n, box = images.shape[:2]
    usable = np.empty(n, dtype=np.bool_)
    _find_usable(images, usable)
    if not usable.all():
        images = np.where(usable[:, None, None], images, np.float32(0))
    rings = rings_of(min(box, WORKING_BOX))
    spectra = np.empty((n, 2, rings.n_rings, rings.n_angles), dtype=np.float32)
    _sample(images, rings, rings.image_points, None, spectra)
    _normalize(spectra)
    return Polar(spectra, usable, box)


def _sample(
    images: Images,
    rings: Rings,
    points: tuple[npt.NDArray[Any], ...],
    mask: Floats | None,
    spectra: Floats,
) -> None:
    operator = crop_operator(images.shape[1], rings.box) if images.shape[1] > rings.box else None
    for start in range(0, len(images), CHUNK):
        some = images[start : start + CHUNK]
        canvas = np.empty((len(some), rings.box, rings.box), dtype=np.float32)
        level = np.empty((len(some), 2), dtype=np.float64)
        _measure(some, level)
        if operator is not None:
            levelled = (some - level[:, :1, None]) * level[:, 1:, None]
            some = apply_crop(levelled.astype(np.float32), operator)
            level[:] = 0, 1
        _level(some, level, rings.outside, rings.fall_off, mask is None, canvas)
        if mask is not None:
            canvas *= mask
        half = scipy.fft.rfft(canvas, rings.padded, axis=2, workers=1)
        plane = scipy.fft.fft(half, rings.padded, axis=1, workers=1, overwrite_x=True)
        shape = (len(some), 2, rings.n_rings, -1)
        _resample(plane, rings.phase, *points, spectra[start : start + CHUNK].reshape(shape))


@kernel
def _find_usable(images, usable):
    for i in range(images.shape[0]):
        flat = images[i].ravel()
        low = flat[0]
        high = flat[0]
        # A sum of magnitudes is not finite as soon as one of them is not.
        total = 0.0
        for j in range(flat.size):
            low = min(low, flat[j])
            high = max(high, flat[j])
            total += abs(flat[j])
        usable[i] = total < np.inf and high > low


@kernel
def _measure(images, level):
    for i in range(images.shape[0]):
        flat = images[i].ravel()
        total = 0.0
        for j in range(flat.size):
            total += flat[j]
        mean = total / flat.size
        square = 0.0
        for j in range(flat.size):
            difference = flat[j] - mean
            square += difference * difference
        level[i, 0] = mean
        level[i, 1] = 1 / np.sqrt(square / flat.size) if square > 0 else 0.0


@kernel
def _level(images, level, outside, fall_off, divide, canvas):
    # The background, outside the circle, to 0; then what the interpolation will do to the axes is undone.
    d = images.shape[1]
    for i in range(images.shape[0]):
        flat = images[i].ravel()
        total = 0.0
        for j in outside:
            total += flat[j] - level[i, 0]
        base = np.float32(total / len(outside) * level[i, 1])
        mean = level[i, 0]
        scale = level[i, 1]
        for y in range(d):
            along = fall_off[y]
            for x in range(d):
                value = np.float32((images[i, y, x] - mean) * scale) - base
                canvas[i, y, x] = value * along * fall_off[x]


@kernel
def _resample(plane, phase, first_row, first_column, row_weight, column_weight, spectra):
    # The half plane is laid out with frequency 0 in the middle of the rows and a margin of negative
    # columns, so that taps need no wrapping.
    padded = plane.shape[1]
    half = plane.shape[2]
    margin = 2
    real = np.zeros((padded + 4, half + margin + 2), dtype=np.float32)
    imaginary = np.zeros((padded + 4, half + margin + 2), dtype=np.float32)
    middle = padded // 2 + 2
    n_rings = spectra.shape[2]
    n_angles = spectra.shape[3]
    for i in range(spectra.shape[0]):
        for v in range(-(padded // 2), padded - padded // 2):
            turn = phase[v % padded]
            row = plane[i, v % padded]
            for u in range(half):
                value = row[u] * (turn * phase[u])
                real[middle + v, margin + u] = value.real
                imaginary[middle + v, margin + u] = value.imag
        for v in range(-(padded // 2) + 1, padded // 2):
            for u in range(1, margin + 1):
                real[middle + v, margin - u] = real[middle - v, margin + u]
                imaginary[middle + v, margin - u] = -imaginary[middle - v, margin + u]
        point = 0
        for ring in range(n_rings):
            weight = np.float32(np.sqrt(ring + 1.0))
            for angle in range(n_angles):
                y = middle + first_row[point]
                x = margin + first_column[point]
                total = np.float32(0)
                other = np.float32(0)
                for tap in range(_TAPS):
                    a = np.float32(0)
                    b = np.float32(0)
                    for k in range(_TAPS):
                        a += column_weight[point, k] * real[y + tap, x + k]
                        b += column_weight[point, k] * imaginary[y + tap, x + k]
                    total += row_weight[point, tap] * a
                    other += row_weight[point, tap] * b
                spectra[i, 0, ring, angle] = weight * total
                spectra[i, 1, ring, angle] = weight * other
                point += 1


@kernel
def _normalize(spectra):
    for i in range(spectra.shape[0]):
        flat = spectra[i].ravel()
        total = 0.0
        for j in range(flat.size):
            total += flat[j] * flat[j]
        scale = np.float32(1 / np.sqrt(total)) if total > 0 else np.float32(0)
        for j in range(flat.size):
            flat[j] *= scale


class References(NamedTuple):
    """References made ready for `search`.

    Attributes
    ----------
    table : ndarray of float32, shape (V, 2, FINER, K, 2 A)
        Real and imaginary parts on rings; angle a of subtable s is (a + s / FINER) steps from -90 degrees.
        Mirror images, if any, follow the references.
    coarse : ndarray of float32, shape (V, 2, inner rings x angles, angles)
        The inner rings, turned by each of the search's angles.
    norm, coarse_norm : ndarray of float64, shape (V,)
        Zero for a flat reference.
    normal : ndarray of float64, shape (V, K, 3, 3)
        Of a Gauss-Newton step (radians, columns, rows in pixels of the working box) on all rings up to
        each, for a correlation of 1.
    n_references : int
        Without mirror images.
    """

    table: Floats
    coarse: Floats
    norm: npt.NDArray[np.float64]
    coarse_norm: npt.NDArray[np.float64]
    normal: npt.NDArray[np.float64]
    n_references: int


def prepare_references(
    images: Images, weights: npt.NDArray[np.floating] | None = None, mirror: bool = False
) -> References:
    """Sample references on rings.

    Parameters
    ----------
    images : ndarray of float32, shape (R, d, d)
        Finite.
    weights : ndarray, shape (R, d // 2 + 1), optional
        A filter for each: what is left of frequency 0, 1, ... cycles a box.
    mirror : bool
        Whether mirror images are added.
    """
    if mirror:
        flipped = mirrored(images)
        images = np.concatenate([images, flipped])
        weights = None if weights is None else np.concatenate([weights, weights])
    count, box = images.shape[:2]
    rings = rings_of(min(box, WORKING_BOX))
    n_rings, n_angles = rings.n_rings, rings.n_angles
    fine = np.zeros((count, 2, n_rings, n_angles * FINER), dtype=np.float32)
    usable = np.empty(count, dtype=np.bool_)
    _find_usable(images, usable)
    _sample(images, rings, rings.reference_points, soft_disk(rings.box), fine)
    fine[~usable] = 0
    if weights is not None:
        fine *= weights[:, None, 1 : n_rings + 1, None].astype(np.float32)
    _normalize(fine)
    table = np.empty((count, 2, FINER, n_rings, 2 * n_angles), dtype=np.float32)
    parts = fine.reshape(count, 2, n_rings, n_angles, FINER).transpose(0, 1, 4, 2, 3)
    table[..., :n_angles] = parts
    table[:, 0, ..., n_angles:] = parts[:, 0]
    table[:, 1, ..., n_angles:] = -parts[:, 1]
    inner = min(SEARCH_RINGS, n_rings)
    stride = n_angles // SEARCH_ANGLES
    turned = np.add.outer(np.arange(SEARCH_ANGLES), np.arange(SEARCH_ANGLES)) * stride
    coarse = table[:, :, 0, :inner][..., turned].reshape(count, 2, inner * SEARCH_ANGLES, SEARCH_ANGLES)
    norm = np.sqrt((table[:, :, 0, :, :n_angles].astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
    coarse_norm = np.sqrt((coarse[..., 0].astype(np.float64) ** 2).sum(axis=(1, 2)))
    normal = np.empty((count, n_rings, 3, 3))
    _normal_equations(table, rings.cosine, rings.sine, 2 * np.pi / rings.box, normal)
    return References(
        table, np.ascontiguousarray(coarse), norm, coarse_norm, normal, count // 2 if mirror else count
    )


def mirrored(images: Images) -> Images:
    """Reverse the columns about pixel d // 2."""
    box = images.shape[-1]
    return images[..., (2 * (box // 2) - np.arange(box)) % box]


def soft_disk(box: int, radius: float | None = None) -> Floats:
    """Return a disk about pixel d // 2, the inscribed one by default, with a soft edge inside its radius."""
    radius = float(box // 2) if radius is None else radius
    offset = np.arange(box) - box // 2
    edge = max(0.1 * radius, 1.0)
    distance = (np.hypot(offset[:, None], offset) - (radius - edge)) / edge
    return (0.5 + 0.5 * np.cos(np.pi * np.clip(distance, 0, 1))).astype(np.float32)


@kernel
def _normal_equations(table, cosine, sine, wave, normal):
    n_angles = cosine.size
    finer = table.shape[2]
    span = 2 * np.pi / (n_angles * finer)
    for v in range(table.shape[0]):
        sums = np.zeros((3, 3))
        total = 0.0
        for ring in range(table.shape[3]):
            k = wave * (ring + 1)
            for j in range(n_angles):
                re = table[v, 0, 0, ring, j]
                im = table[v, 1, 0, ring, j]
                # The neighbours on both sides: the last subtable of the angle before, wrapped by conjugation.
                if j > 0:
                    re_low = table[v, 0, finer - 1, ring, j - 1]
                    im_low = table[v, 1, finer - 1, ring, j - 1]
                else:
                    re_low = table[v, 0, finer - 1, ring, n_angles - 1]
                    im_low = -table[v, 1, finer - 1, ring, n_angles - 1]
                slope_re = (table[v, 0, 1, ring, j] - re_low) / span
                slope_im = (table[v, 1, 1, ring, j] - im_low) / span
                kx = k * cosine[j]
                ky = k * sine[j]
                power = re * re + im * im
                cross = slope_im * re - slope_re * im
                total += power
                sums[0, 0] += slope_re * slope_re + slope_im * slope_im
                sums[0, 1] -= kx * cross
                sums[0, 2] -= ky * cross
                sums[1, 1] += kx * kx * power
                sums[1, 2] += kx * ky * power
                sums[2, 2] += ky * ky * power
            sums[1, 0] = sums[0, 1]
            sums[2, 0] = sums[0, 2]
            sums[2, 1] = sums[1, 2]
            normal[v, ring] = sums / total if total > 0 else sums


# The search, and what refines it.


class Found(NamedTuple):
    """What `search` returns: the best reference of every image, and the alignment to it."""

    reference: Indices
    alignment: Alignment


def search(
    polar: Polar,
    bank: References,
    candidates: npt.NDArray[np.intp] | None,
    max_shift: float,
    coarse: bool = False,
) -> Found:
    """Compare images with references at all angles and shifts, and refine the best.

    Parameters
    ----------
    polar : Polar
    bank : References
    candidates : ndarray of intp, shape (n, q), optional
        References each image is compared with; all by default. Negative entries stand for none.
    max_shift : float
        In pixels of the images.
    coarse : bool
        Whether the inner rings are enough: for references that have no others.
    """
    n = len(polar.spectra)
    rings = rings_of(min(polar.box, WORKING_BOX))
    scale = polar.box / rings.box
    limit = max_shift / scale
    inner = min(SEARCH_RINGS, rings.n_rings)
    shifts, turn = _shift_grid(rings.box, inner, limit)
    strength = np.full((n, N_STARTS), -np.inf, dtype=np.float32)
    place = np.full((n, N_STARTS, 3), -1, dtype=np.int64)
    if candidates is None:
        order = np.flatnonzero(polar.usable)
    else:
        order = np.argsort(candidates[:, 0], kind="stable")
        order = order[polar.usable[order]]
    stride = rings.n_angles // SEARCH_ANGLES
    variants = [v for v in range(len(bank.norm)) if bank.norm[v] > 0]
    for start in range(0, len(order), CHUNK):
        some = order[start : start + CHUNK]
        rows = np.empty((2, len(some), len(shifts), inner * SEARCH_ANGLES), dtype=np.float32)
        _shift_rows(polar.spectra, some, stride, turn, rows)
        for v in variants:
            mine = np.arange(len(some))
            if candidates is not None:
                mine = np.flatnonzero((candidates[some] == v % bank.n_references).any(axis=1))
                if len(mine) == 0:
                    continue
            compared = rows if len(mine) == len(some) else rows[:, mine]
            flat = compared.reshape(2, -1, inner * SEARCH_ANGLES)
            real = (flat[0] @ bank.coarse[v, 0]).reshape(len(mine), len(shifts), SEARCH_ANGLES)
            imaginary = (flat[1] @ bank.coarse[v, 1]).reshape(real.shape)
            _keep_peaks(real, imaginary, some[mine], v, 1 / bank.coarse_norm[v], strength, place)
    variant, angle, found, score = (
        np.full(n, -1, dtype=np.int64),
        np.full(n, np.nan),
        np.full((n, 2), np.nan),
        np.full(n, -np.inf),
    )
    _refine(
        polar.spectra,
        bank.table,
        bank.norm,
        bank.normal,
        rings.cosine,
        rings.sine,
        shifts,
        place,
        2 * np.pi / rings.box,
        limit,
        _schedule(inner, rings.n_rings)[: 2 if coarse else None],
        variant,
        angle,
        found,
        score,
    )
    flipped = variant >= bank.n_references
    angle = np.where(flipped, -angle, angle)
    angle = np.degrees(angle - 2 * np.pi * np.round(angle / (2 * np.pi)))
    reference = np.where(variant < 0, -1, variant % bank.n_references).astype(np.intp)
    alignment = Alignment(
        angle.astype(np.float32),
        (found * scale).astype(np.float32),
        np.where(variant < 0, -np.inf, np.clip(score, -1, 1)).astype(np.float32),
        flipped,
    )
    return Found(reference, alignment)


def _schedule(inner: int, n_rings: int) -> npt.NDArray[np.intp]:
    # Two steps on the search's rings, one on half of the others, and then all.
    return np.array([inner, inner, (inner + n_rings) // 2, n_rings, n_rings, n_rings], dtype=np.intp)


@lru_cache(maxsize=8)
def _shift_grid(box: int, inner: int, limit: float) -> tuple[npt.NDArray[np.float64], Floats]:
    """Shifts (S, 2), row and column in pixels, and the phases that undo them (S, 2, rings, angles)."""
    step = box / (SHIFT_SAMPLING * inner)
    reach = int(limit / step + 0.5)
    line = np.arange(-reach, reach + 1) * step
    shifts = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    length = np.hypot(shifts[:, 0], shifts[:, 1])
    shifts = shifts[length <= limit + 0.5 * step]
    length = np.hypot(shifts[:, 0], shifts[:, 1])
    # What lies beyond the limit is brought back to it, so that the rim is searched, too.
    shifts = shifts * np.minimum(1, limit / np.maximum(length, 1e-9))[:, None]
    angle = -math.pi / 2 + math.pi * np.arange(SEARCH_ANGLES) / SEARCH_ANGLES
    along = shifts[:, :1] * np.sin(angle) + shifts[:, 1:] * np.cos(angle)
    phase = 2 * np.pi / box * np.arange(1, inner + 1)[:, None] * along[:, None, :]
    return shifts, np.stack([np.cos(phase), np.sin(phase)], axis=1).astype(np.float32)


@kernel
def _shift_rows(spectra, some, stride, turn, rows):
    inner = turn.shape[2]
    count = turn.shape[3]
    re = np.empty(inner * count, dtype=np.float32)
    im = np.empty(inner * count, dtype=np.float32)
    for i in range(len(some)):
        for ring in range(inner):
            for j in range(count):
                re[ring * count + j] = spectra[some[i], 0, ring, j * stride]
                im[ring * count + j] = spectra[some[i], 1, ring, j * stride]
        for s in range(turn.shape[0]):
            cosine = turn[s, 0].ravel()
            sine = turn[s, 1].ravel()
            first = rows[0, i, s]
            second = rows[1, i, s]
            for j in range(len(re)):
                first[j] = re[j] * cosine[j] - im[j] * sine[j]
                second[j] = re[j] * sine[j] + im[j] * cosine[j]


@kernel
def _keep_peaks(real, imaginary, images, variant, scale, strength, place):
    # The highest peak, and the highest one that is far from it in angle.
    n_shifts = real.shape[1]
    count = real.shape[2]
    best = np.empty(2 * count, dtype=np.float32)
    where = np.empty(2 * count, dtype=np.int64)
    for i in range(real.shape[0]):
        best[:] = -np.inf
        for s in range(n_shifts):
            for a in range(count):
                plus = real[i, s, a] + imaginary[i, s, a]
                minus = real[i, s, a] - imaginary[i, s, a]
                if plus > best[a]:
                    best[a] = plus
                    where[a] = s
                if minus > best[count + a]:
                    best[count + a] = minus
                    where[count + a] = s
        top = 0
        for a in range(2 * count):
            if best[a] > best[top]:
                top = a
        _insert(images[i], best[top] * scale, variant, top, where[top], strength, place)
        second = -1
        for a in range(2 * count):
            apart = abs(a - top)
            if min(apart, 2 * count - apart) >= APART and (second < 0 or best[a] > best[second]):
                second = a
        _insert(images[i], best[second] * scale, variant, second, where[second], strength, place)


@kernel
def _insert(image, value, variant, angle, shift, strength, place):
    last = strength.shape[1] - 1
    if not value > strength[image, last]:
        return
    slot = last
    while slot > 0 and value > strength[image, slot - 1]:
        strength[image, slot] = strength[image, slot - 1]
        place[image, slot] = place[image, slot - 1]
        slot -= 1
    strength[image, slot] = value
    place[image, slot, 0] = variant
    place[image, slot, 1] = angle
    place[image, slot, 2] = shift


@kernel
def _refine(
    spectra,
    table,
    norm,
    normal,
    cosine,
    sine,
    shifts,
    place,
    wave,
    limit,
    schedule,
    variants,
    angles,
    found,
    scores,
):
    n_angles = cosine.size
    n_rings = schedule[-1]
    work = np.empty((5, n_angles), dtype=np.float32)
    out = np.empty(4)
    step = np.empty(3)
    for i in range(spectra.shape[0]):
        for start in range(place.shape[1]):
            v = place[i, start, 0]
            if v < 0:
                continue
            angle = place[i, start, 1] * np.pi / SEARCH_ANGLES
            y = shifts[place[i, start, 2], 0]
            x = shifts[place[i, start, 2], 1]
            for turn in range(schedule.size + 1):
                rings = schedule[min(turn, schedule.size - 1)]
                _correlate(spectra[i], table[v], cosine, sine, wave, rings, angle, y, x, work, out)
                if rings == n_rings and out[0] / norm[v] > scores[i]:
                    scores[i] = out[0] / norm[v]
                    variants[i] = v
                    angles[i] = angle
                    found[i, 0] = y
                    found[i, 1] = x
                if turn == schedule.size:
                    break
                if not _solve(normal[v, rings - 1], out, angle, step):
                    continue
                # A step of more than a period of the outermost ring leaves the peak.
                longest = 0.5 * 2 * np.pi / (wave * rings)
                length = np.sqrt(step[1] ** 2 + step[2] ** 2)
                if length > longest:
                    step[1] *= longest / length
                    step[2] *= longest / length
                small = 1e-4 / wave
                angle += min(max(step[0], -0.1), 0.1)
                x += step[1]
                y += step[2]
                length = np.sqrt(x * x + y * y)
                if length > limit:
                    x *= limit / length
                    y *= limit / length
                if rings == n_rings and abs(step[0]) < 1e-4 and abs(step[1]) + abs(step[2]) < small:
                    break


def correlate(
    polar: Polar, bank: References, which: npt.NDArray[np.intp], angle: Floats, shift: Floats
) -> Floats:
    """Score of images with given references (n,) in given poses; NaN where either is missing."""
    rings = rings_of(min(polar.box, WORKING_BOX))
    score = np.empty(len(polar.spectra), dtype=np.float32)
    _score(
        polar.spectra,
        bank.table,
        bank.norm,
        rings.cosine,
        rings.sine,
        2 * np.pi / rings.box,
        which,
        np.radians(angle.astype(np.float64)),
        shift.astype(np.float64) * (rings.box / polar.box),
        score,
    )
    return score


@kernel
def _score(spectra, table, norm, cosine, sine, wave, which, angle, shift, score):
    work = np.empty((5, cosine.size), dtype=np.float32)
    out = np.empty(4)
    n_rings = table.shape[3]
    for i in range(spectra.shape[0]):
        v = which[i]
        score[i] = np.nan
        if norm[v] > 0 and abs(angle[i]) < np.inf:
            y, x = shift[i, 0], shift[i, 1]
            _correlate(spectra[i], table[v], cosine, sine, wave, n_rings, angle[i], y, x, work, out)
            score[i] = out[0] / norm[v]


@kernel
def _correlate(spectrum, table, cosine, sine, wave, rings, angle, y, x, work, out):
    # The correlation, and its slopes along the angle (radians), columns and rows of the image's frame.
    n_angles = cosine.size
    finer = table.shape[1]
    span = np.pi / (n_angles * finer)
    position = angle / span
    nearest = int(np.floor(position + 0.5))
    rest = np.float32(position - nearest)
    full = 2 * n_angles * finer
    begin, sign, sub = _locate(nearest % full, n_angles, finer)
    begin_low, sign_low, sub_low = _locate((nearest - 1) % full, n_angles, finer)
    begin_high, sign_high, sub_high = _locate((nearest + 1) % full, n_angles, finer)
    step_re = work[0]
    step_im = work[1]
    turn_re = work[2]
    turn_im = work[3]
    moment = work[4]
    for j in range(n_angles):
        phase = wave * (cosine[j] * x + sine[j] * y)
        step_re[j] = np.cos(phase)
        step_im[j] = np.sin(phase)
        turn_re[j] = 1
        turn_im[j] = 0
        moment[j] = 0
    total = 0.0
    slope = 0.0
    half = np.float32(0.5)
    two_sign = sign + sign
    for ring in range(rings):
        k = np.float32(ring + 1)
        re = spectrum[0, ring]
        im = spectrum[1, ring]
        re_mid = table[0, sub, ring, begin : begin + n_angles]
        im_mid = table[1, sub, ring, begin : begin + n_angles]
        re_low = table[0, sub_low, ring, begin_low : begin_low + n_angles]
        im_low = table[1, sub_low, ring, begin_low : begin_low + n_angles]
        re_high = table[0, sub_high, ring, begin_high : begin_high + n_angles]
        im_high = table[1, sub_high, ring, begin_high : begin_high + n_angles]
        ring_total = np.float32(0)
        ring_slope = np.float32(0)
        for j in range(n_angles):
            a = turn_re[j] * step_re[j] - turn_im[j] * step_im[j]
            b = turn_re[j] * step_im[j] + turn_im[j] * step_re[j]
            turn_re[j] = a
            turn_im[j] = b
            moved_re = re[j] * a - im[j] * b
            moved_im = re[j] * b + im[j] * a
            slope_re = half * (re_high[j] - re_low[j])
            slope_im = half * (sign_high * im_high[j] - sign_low * im_low[j])
            bend_re = re_high[j] - re_mid[j] - re_mid[j] + re_low[j]
            bend_im = sign_high * im_high[j] - two_sign * im_mid[j] + sign_low * im_low[j]
            value_re = re_mid[j] + rest * (slope_re + half * rest * bend_re)
            value_im = sign * im_mid[j] + rest * (slope_im + half * rest * bend_im)
            slope_re += rest * bend_re
            slope_im += rest * bend_im
            ring_total += moved_re * value_re + moved_im * value_im
            ring_slope += moved_re * slope_re + moved_im * slope_im
            moment[j] += k * (moved_im * value_re - moved_re * value_im)
        total += ring_total
        slope += ring_slope
    along_x = 0.0
    along_y = 0.0
    for j in range(n_angles):
        along_x -= moment[j] * cosine[j]
        along_y -= moment[j] * sine[j]
    out[0] = total
    out[1] = slope / span
    out[2] = along_x * wave
    out[3] = along_y * wave


@kernel
def _locate(index, n_angles, finer):
    # Half a turn further the transform of a real image is the complex conjugate.
    begin = index // finer
    if begin >= n_angles:
        return begin - n_angles, np.float32(-1), index % finer
    return begin, np.float32(1), index % finer


@kernel
def _solve(normal, out, angle, step):
    # normal step = slopes / amplitude, in the reference's frame; the shift goes back to the image's.
    norm = normal[1, 1] + normal[2, 2]
    if not (out[0] > 0 and norm > 0):
        return False
    cosine = np.cos(angle)
    sine = np.sin(angle)
    right = np.empty(3)
    right[0] = out[1]
    right[1] = out[2] * cosine - out[3] * sine
    right[2] = out[2] * sine + out[3] * cosine
    a = normal[0, 0] * (1 + 1e-6) + 1e-9
    b = normal[0, 1]
    c = normal[0, 2]
    d = normal[1, 1] + 1e-6 * norm
    e = normal[1, 2]
    f = normal[2, 2] + 1e-6 * norm
    minor_a = d * f - e * e
    minor_b = c * e - b * f
    minor_c = b * e - c * d
    determinant = a * minor_a + b * minor_b + c * minor_c
    if not determinant > 0:
        return False
    scale = 1 / (determinant * out[0])
    turn = (minor_a * right[0] + minor_b * right[1] + minor_c * right[2]) * scale
    along_x = (minor_b * right[0] + (a * f - c * c) * right[1] + (b * c - a * e) * right[2]) * scale
    along_y = (minor_c * right[0] + (b * c - a * e) * right[1] + (a * d - b * b) * right[2]) * scale
    step[0] = turn
    step[1] = along_x * cosine + along_y * sine
    step[2] = -along_x * sine + along_y * cosine
    return True


# What an alignment does to images.


def apply_alignment(
    images: npt.NDArray[Any] | Particles, alignment: Alignment | Match, *, n_jobs: int | None = None
) -> Images:
    """Rotate and shift images onto their reference.

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
        NaN where the alignment is. Images are continued periodically, so that the corners of the box
        have no holes.

    Raises
    ------
    InputError
        If there are not as many alignments as images.

    Notes
    -----
    The shift is a phase in the Fourier plane, exact for band-limited images; cubic B-splines whose
    coefficients come from the same transform do the turn.
    """
    particles = open_particles(images)
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


def _apply_batch(
    images: Images,
    start: int,
    angle: npt.NDArray[np.float32],
    shift: npt.NDArray[np.float32],
    mirrored: npt.NDArray[np.bool_],
) -> Images:
    return moved(images, angle, shift, mirrored)


def moved(
    images: Images, angle: npt.NDArray[Any], shift: npt.NDArray[Any], flipped: npt.NDArray[np.bool_]
) -> Images:
    """Return images (n, d, d) shifted by minus `shift`, mirrored, and turned by `angle` in degrees."""
    n, box = images.shape[:2]
    out = np.empty((n, box, box), dtype=np.float32)
    wave = 2 * np.pi * scipy.fft.fftfreq(box)
    spline = 3 / (2 + np.cos(wave))
    gain = (spline[:, None] * spline[: box // 2 + 1]).astype(np.float32)
    for start in range(0, n, CHUNK):
        some = slice(start, min(start + CHUNK, n))
        spectra = scipy.fft.rfft2(images[some], workers=1)
        along_rows, along_columns = (_phases(shift[some, axis], box) for axis in (0, 1))
        _shift_spectra(spectra, along_rows, along_columns, gain)
        coefficients = scipy.fft.irfft2(spectra, s=(box, box), workers=1, overwrite_x=True)
        radians = np.radians(angle[some].astype(np.float64))
        _rotate(coefficients, np.cos(radians), np.sin(radians), flipped[some], out[some])
    return out


def _phases(shift: npt.NDArray[Any], box: int) -> npt.NDArray[np.complex64]:
    phase = 2 * np.pi * np.outer(shift.astype(np.float64), scipy.fft.fftfreq(box))
    turn = np.exp(1j * phase)
    if box % 2 == 0:
        # Nyquist stands for both signs.
        turn[:, box // 2] = turn[:, box // 2].real
    return turn.astype(np.complex64)


@kernel
def _shift_spectra(spectra, along_rows, along_columns, gain):
    for i in range(spectra.shape[0]):
        for v in range(spectra.shape[1]):
            for u in range(spectra.shape[2]):
                spectra[i, v, u] *= along_rows[i, v] * along_columns[i, u] * gain[v, u]


@kernel
def _rotate(coefficients, cosine, sine, flipped, out):
    d = out.shape[1]
    centre = d // 2
    # A pixel of the corner comes from half a diagonal away at most.
    margin = int(np.ceil(0.2072 * d)) + 4
    width = d + 2 * margin
    wide = np.empty((width, width), dtype=np.float32)
    for i in range(out.shape[0]):
        # A NaN is below nothing.
        if not (abs(cosine[i]) < np.inf and abs(coefficients[i, 0, 0]) < np.inf):
            out[i] = np.nan
            continue
        for y in range(width):
            row = coefficients[i, (y - margin) % d]
            for x in range(margin):
                wide[y, x] = row[(x - margin) % d]
                wide[y, margin + d + x] = row[x % d]
            wide[y, margin : margin + d] = row
        side = np.float32(-1.0 if flipped[i] else 1.0)
        for y in range(d):
            across = np.float32(y - centre)
            for x in range(d):
                along = np.float32(x - centre)
                column = side * (np.float32(cosine[i]) * along + np.float32(sine[i]) * across)
                row_at = np.float32(cosine[i]) * across - np.float32(sine[i]) * along
                from_y = int(np.floor(row_at))
                from_x = int(np.floor(column))
                py = row_at - np.float32(from_y)
                px = column - np.float32(from_x)
                wy0, wy1, wy2, wy3 = _spline(py)
                wx0, wx1, wx2, wx3 = _spline(px)
                top = from_y + centre + margin - 1
                left = from_x + centre + margin - 1
                a = wide[top, left : left + 4]
                b = wide[top + 1, left : left + 4]
                c = wide[top + 2, left : left + 4]
                e = wide[top + 3, left : left + 4]
                out[i, y, x] = (
                    wx0 * (wy0 * a[0] + wy1 * b[0] + wy2 * c[0] + wy3 * e[0])
                    + wx1 * (wy0 * a[1] + wy1 * b[1] + wy2 * c[1] + wy3 * e[1])
                    + wx2 * (wy0 * a[2] + wy1 * b[2] + wy2 * c[2] + wy3 * e[2])
                    + wx3 * (wy0 * a[3] + wy1 * b[3] + wy2 * c[3] + wy3 * e[3])
                )


@kernel
def _spline(part):
    rest = np.float32(1) - part
    sixth = np.float32(1 / 6)
    square = part * part
    return (
        rest * rest * rest * sixth,
        (np.float32(4) - np.float32(6) * square + np.float32(3) * square * part) * sixth,
        (np.float32(4) - np.float32(6) * rest * rest + np.float32(3) * rest * rest * rest) * sixth,
        square * part * sixth,
    )
