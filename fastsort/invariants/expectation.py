"""How likely each class, angle and shift made each image, and the sums that averages are made of.

On the rings of the Fourier plane, an image is its class average, turned, moved, seen through its contrast
transfer function, and covered by noise of known power. Expanded in the angle, a turn is a factor, so that
all angles of all classes come from one product of matrices for each angular index and one short transform.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.fft

from fastsort._jit import kernel
from fastsort._types import Array, Floats, Images, Indices, Singles
from fastsort.invariants.bessel import Complexes
from fastsort.invariants.references import soft_disk
from fastsort.invariants.rings import rings_of, sample_rings, usable_images

# What the coarse search finds less likely than the best by so many nats is dropped.
DROPPED = 7.0
# Steps of the shift in a period of the outermost ring, in the fine search.
FINE_STEPS = 2.0
# Angles for each angular index.
ANGLES = 2.1
# Particles farther from the middle than so many deviations are not looked for.
FARTHEST = 4.0
# Images are cropped to so many rings more than are needed, if that makes them smaller than this part of them.
BEYOND, SMALLER = 4, 0.8
# Pairs of a row and a class, none of whose angles is likelier than this, add nothing to the averages.
NEGLIGIBLE = 1e-6
# Images at once: what lies between two steps should stay in the processor's cache.
CHUNK = 32


class ClassModel(NamedTuple):
    """What is known of K classes.

    Attributes
    ----------
    box : int
        Side of the images in pixels.
    references : ndarray of complex64, shape (H, M, R, K)
        Averages on the first R rings, expanded in the angle, for the even and the odd images (H = 2) or for
        all of them (H = 1).
    shares : ndarray of float64, shape (K,)
        Of the classes.
    noise : ndarray of float64, shape (R,)
        Power of the noise on each ring, times the ring's radius.
    deviation : float
        Of the shifts on each axis, in pixels.
    reach : float
        The longest shift.
    window : float
        Radius in pixels of the disk of the images that is used.
    coarse : int
        Rings of the coarse search. On these alone it decides which classes and shifts are looked at closely.
    steps : float
        Of the shift in the coarse search, in a period of its outermost ring.
    """

    box: int
    references: Complexes
    shares: Floats
    noise: Floats
    deviation: float
    reach: float
    window: float
    coarse: int
    steps: float = 3.0


class ClassSums(NamedTuple):
    """What the next averages are made of, summed over images; H, M, R and K as in the model.

    Attributes
    ----------
    products : ndarray of complex128, shape (H, M, R, K)
        Of the aligned images with their contrast transfer function, weighted by their probabilities.
    weights : ndarray of float64, shape (H, R, K)
        Squares of that function.
    counts : ndarray of float64, shape (H, K)
        Images, by their probabilities.
    residue : ndarray of float64, shape (R,)
        Power that the model does not explain.
    square_shift : float
    n_images : int
    """

    products: Complexes
    weights: Floats
    counts: Floats
    residue: Floats
    square_shift: float
    n_images: int


class Assignments(NamedTuple):
    """The likeliest class and pose of each image.

    Attributes
    ----------
    label : ndarray of intp, shape (n,)
        -1 for images that are flat or hold a NaN or an infinity.
    probability : ndarray of float32, shape (n,)
        Of the class.
    angle, shift, pose_probability
        Shapes (n,), (n, 2), (n,). As of an `Alignment`; and the largest probability of one pose.
    score : ndarray of float32, shape (n,)
        Correlation with the average of the other half, seen through the contrast transfer function.
    """

    label: Indices
    probability: Singles
    angle: Singles
    shift: Singles
    pose_probability: Singles
    score: Singles


def expect(
    images: Images, half: Indices | None, terms: Floats | None, model: ClassModel
) -> tuple[ClassSums, Assignments]:
    """Find how likely every class and pose of some images is.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        Phases flipped where there is a contrast transfer function.
    half : ndarray of intp, shape (n,), optional
        Which half each image belongs to, 0 or 1; not needed where the model has one for all.
    terms : ndarray of float64, shape (n, 5), optional
        From `phase_terms`; by default the transfer function is 1.
    model : ClassModel

    Returns
    -------
    sums : ClassSums
        Images that are flat or hold a NaN or an infinity do not count.
    assignments : Assignments
    """
    sums = no_sums(model.references.shape)
    found = no_assignments(len(images))
    for number, rows, chunk in _chunks(images, half, terms, model):
        sums = _add(sums, _sums(chunk, model, number), number)
        write_assignments(found, rows, _assigned(chunk, model, number, between=True))
    return sums, found


def sum_up(images: Images, half: Indices | None, terms: Floats | None, model: ClassModel) -> ClassSums:
    """Return the sums that `expect` finds, without any assignments."""
    sums = no_sums(model.references.shape)
    for number, _, chunk in _chunks(images, half, terms, model):
        sums = _add(sums, _sums(chunk, model, number), number)
    return sums


def assign(images: Images, half: Indices, model: ClassModel) -> Assignments:
    """Return the assignments that `expect` finds where the transfer function is 1, without any sums.

    The shifts are those that were compared.
    """
    found = no_assignments(len(images))
    for number, rows, chunk in _chunks(images, half, None, model):
        write_assignments(found, rows, _assigned(chunk, model, number, between=False))
    return found


def no_assignments(n: int) -> Assignments:
    """Return assignments of `n` images to no class."""
    return Assignments(
        np.full(n, -1, dtype=np.intp),
        np.zeros(n, dtype=np.float32),
        np.full(n, np.nan, dtype=np.float32),
        np.full((n, 2), np.nan, dtype=np.float32),
        np.zeros(n, dtype=np.float32),
        np.full(n, -np.inf, dtype=np.float32),
    )


def no_sums(shape: tuple[int, ...]) -> ClassSums:
    """Return the sums of no images, for references of this shape (H, M, R, K)."""
    halves, _, n_rings, n_classes = shape
    return ClassSums(
        np.zeros(shape, dtype=np.complex128),
        np.zeros((halves, n_rings, n_classes)),
        np.zeros((halves, n_classes)),
        np.zeros(n_rings),
        0.0,
        0,
    )


def write_assignments(into: Assignments, rows: Indices, found: Assignments) -> None:
    """Write the assignments of some images among those of all."""
    columns: tuple[Array, ...] = into
    for column, values in zip(columns, found, strict=True):
        column[rows] = values


def add_sums(one: ClassSums, other: ClassSums) -> ClassSums:
    """Add the sums of two batches."""
    return ClassSums(
        one.products + other.products,
        one.weights + other.weights,
        one.counts + other.counts,
        one.residue + other.residue,
        one.square_shift + other.square_shift,
        one.n_images + other.n_images,
    )


def mixed_sums(old: ClassSums, new: ClassSums, share: float, scale: float) -> ClassSums:
    """Take in new sums, times `scale`, with a share; rings and indices that the old ones lack are new."""
    _, n_indices, n_rings, _ = old.products.shape
    products, weights = scale * new.products, scale * new.weights
    products[:, :n_indices, :n_rings] *= share
    products[:, :n_indices, :n_rings] += (1 - share) * old.products
    weights[:, :n_rings] *= share
    weights[:, :n_rings] += (1 - share) * old.weights
    counts = share * scale * new.counts + (1 - share) * old.counts
    return new._replace(products=products, weights=weights, counts=counts)


def as_they_lie(images: Images, terms: Floats | None, model: ClassModel, label: int) -> ClassSums:
    """Sum images that are neither turned nor moved, as members of one class."""
    sums = no_sums(model.references.shape)
    rows = np.flatnonzero(usable_images(images))
    if not len(rows):
        return sums
    n_indices, n_rings = model.references.shape[1:3]
    on_rings = _on_rings(images[rows], None if terms is None else terms[rows], model, n_rings)
    still = _Poses(np.arange(len(rows)), np.zeros((len(rows), 2)), *np.empty((2, 0), dtype=np.intp))
    expanded = _expanded(on_rings, still, model.box, n_indices, n_rings)
    real, imaginary = expanded.sum(axis=2).swapaxes(0, 1)
    sums.products[0, :, :, label] = real + 1j * imaginary
    sums.weights[0, :, label] = on_rings.transfer.sum(axis=0)
    sums.counts[0, label] = len(rows)
    return sums._replace(residue=on_rings.power.sum(axis=0), n_images=len(rows))


def _add(sums: ClassSums, part: ClassSums, half: int) -> ClassSums:
    sums.products[half] += part.products
    sums.weights[half] += part.weights
    sums.counts[half] += part.counts
    sums.residue[:] += part.residue
    return sums._replace(
        square_shift=sums.square_shift + part.square_shift, n_images=sums.n_images + part.n_images
    )


class _Images(NamedTuple):
    """A chunk of images on rings.

    Attributes
    ----------
    spectra : ndarray of float32, shape (n, 2, R, A)
        Real and imaginary parts, times the contrast transfer function.
    transfer : ndarray of float32, shape (n, R)
        Mean of its squares on each ring.
    power : ndarray of float64, shape (n, R)
        Of the images on each ring.
    """

    spectra: Singles
    transfer: Singles
    power: Floats


class _Poses(NamedTuple):
    """Poses of a chunk that are compared: each row is an image at a shift, each pair a row and a class.

    Attributes
    ----------
    image : ndarray of intp, shape (rows,)
        In ascending order.
    shift : ndarray of float64, shape (rows, 2)
    row, label : ndarray of intp, shape (pairs,)
        Rows in ascending order.
    """

    image: Indices
    shift: Floats
    row: Indices
    label: Indices


class _Chunk(NamedTuple):
    """A chunk of images, compared with all classes.

    Attributes
    ----------
    on_rings : _Images
    poses : _Poses
    compared : _Compared
    probability : ndarray of float32, shape (pairs, angles)
        Of every class and pose of an image; they add up to 1.
    peak : ndarray of float32, shape (pairs,)
        Of the likeliest angle of each pair.
    of_class : ndarray of float64, shape (n, K)
    square_shift : float
        Sum of the expected squares of the shifts.
    """

    on_rings: _Images
    poses: _Poses
    compared: _Compared
    probability: Singles
    peak: Singles
    of_class: Floats
    square_shift: float


def _chunks(
    images: Images, half: Indices | None, terms: Floats | None, model: ClassModel
) -> Iterator[tuple[int, Indices, _Chunk]]:
    """Yield the usable images chunk by chunk: their half, which they are, and how they compare."""
    usable = usable_images(images)
    n_halves = len(model.references)
    for number in range(n_halves):
        members = np.flatnonzero(usable if n_halves == 1 else usable & (half == number))
        for first in range(0, len(members), CHUNK):
            rows = members[first : first + CHUNK]
            of_rows = None if terms is None else terms[rows]
            yield number, rows, _compared_with_all(images[rows], of_rows, model, number)


def _compared_with_all(images: Images, terms: Floats | None, model: ClassModel, half: int) -> _Chunk:
    n_rings = model.references.shape[2]
    on_rings = _on_rings(images, terms, model, n_rings)
    poses = _coarse_poses(len(images), model, n_rings)
    if n_rings > model.coarse:
        poses = _fine_poses(_compare(on_rings, poses, model, half, model.coarse), poses, model, n_rings)
    return _weighted(on_rings, poses, _compare(on_rings, poses, model, half, n_rings), model)


def _on_rings(images: Images, terms: Floats | None, model: ClassModel, n_rings: int) -> _Images:
    rings = rings_of(model.box)
    spectra = _sampled(images, model, n_rings)
    power = (spectra**2).sum(axis=1).mean(axis=2, dtype=np.float64)
    transfer = np.ones((len(images), n_rings), dtype=np.float32)
    if terms is not None:
        _see_through(spectra, transfer, terms, rings.cosine, rings.sine, model.box)
    return _Images(spectra, transfer, power)


def _sampled(images: Images, model: ClassModel, n_rings: int) -> Singles:
    """Sample the first rings of images, from smaller ones where these show so many rings."""
    box = min(2 * (n_rings + BEYOND), model.box)
    if box > SMALLER * model.box:
        box = model.box
    rings = rings_of(box, rings_of(model.box).n_angles)
    window = soft_disk(model.box, model.window)
    spectra = sample_rings(images, rings, rings.image_taps, window)[:, :, :n_rings]
    # The transform of fewer pixels sums fewer.
    return np.ascontiguousarray(spectra) * np.float32((model.box / box) ** 2)


@kernel
def _see_through(spectra, transfer, terms, cosine, sine, box):
    # spectra (n, 2, R, A) are multiplied with the magnitude of the contrast transfer function; transfer
    # (n, R) becomes the mean of its square.
    n_angles = cosine.size
    for i in range(spectra.shape[0]):
        for ring in range(spectra.shape[2]):
            total = 0.0
            for j in range(n_angles):
                x = cosine[j] * (ring + 1) / box
                y = sine[j] * (ring + 1) / box
                square = x * x + y * y
                turns = terms[i, 0] * x * x + terms[i, 1] * y * y + terms[i, 2] * x * y
                turns += terms[i, 4] - terms[i, 3] * square * square
                value = abs(math.sin(math.pi * turns))
                spectra[i, 0, ring, j] *= value
                spectra[i, 1, ring, j] *= value
                total += value * value
            transfer[i, ring] = total / n_angles


def _coarse_poses(n_images: int, model: ClassModel, n_rings: int) -> _Poses:
    """All classes at all shifts of a grid."""
    step = model.box / (model.steps * min(n_rings, model.coarse))
    farthest = min(model.reach, FARTHEST * model.deviation + 0.5 * step)
    line = np.arange(-int(farthest / step + 1e-9), int(farthest / step + 1e-9) + 1) * step
    shifts = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    shifts = shifts[np.hypot(shifts[:, 0], shifts[:, 1]) <= farthest + 1e-9]
    n_rows, n_classes = n_images * len(shifts), model.references.shape[3]
    return _Poses(
        np.repeat(np.arange(n_images), len(shifts)),
        np.tile(shifts, (n_images, 1)),
        np.repeat(np.arange(n_rows), n_classes),
        np.tile(np.arange(n_classes), n_rows),
    )


class _Compared(NamedTuple):
    """Poses of a chunk compared with the references.

    Attributes
    ----------
    expanded : ndarray of float32, shape (M, 2, rows, R)
        Images at their shifts, times the contrast transfer function, expanded in the angle.
    likelihood : ndarray of float32, shape (pairs, angles)
        Logarithm, with the prior, less a constant of each image.
    """

    expanded: Singles
    likelihood: Singles


def _compare(on_rings: _Images, poses: _Poses, model: ClassModel, half: int, n_rings: int) -> _Compared:
    """Compare the first rings of images at some shifts with some classes at all angles."""
    n_indices = _indices_within(model.references.shape[1], n_rings, model.references.shape[2])
    references = model.references[half, :n_indices, :n_rings]
    expanded = _expanded(on_rings, poses, model.box, n_indices, n_rings)
    certainty = _certainty(model, n_rings)
    weighted = references.conj() * certainty[:, None]
    # Real and imaginary parts of the products side by side.
    products = np.matmul(expanded[:, 0], np.concatenate([weighted.real, weighted.imag], axis=2))
    products += np.matmul(expanded[:, 1], np.concatenate([-weighted.imag, weighted.real], axis=2))
    angles = _n_angles(n_indices)
    chosen = np.empty((len(poses.row), n_indices), dtype=np.complex64)
    _choose(products, poses.row, poses.label, chosen)
    likelihood = scipy.fft.irfft(chosen, angles, axis=1, workers=1)
    likelihood *= np.float32(angles)
    power = np.abs(references) ** 2
    power[1:] *= 2
    cost = (on_rings.transfer[:, :n_rings] * (0.5 * certainty)) @ power.sum(axis=0)
    image = poses.image[poses.row]
    offset = np.log(np.maximum(model.shares, 1e-12))[poses.label] - cost[image, poses.label]
    offset -= ((poses.shift**2).sum(axis=1) / (2 * model.deviation**2))[poses.row]
    likelihood += offset.astype(np.float32)[:, None]
    return _Compared(expanded, likelihood)


def _indices_within(n_indices: int, n_rings: int, all_rings: int) -> int:
    """Angular indices that the first rings hold, of those that all rings hold."""
    return min(n_indices, math.ceil(n_indices * n_rings / all_rings) + 2)


def _n_angles(n_indices: int) -> int:
    return scipy.fft.next_fast_len(math.ceil(ANGLES * n_indices), real=True)


def _certainty(model: ClassModel, n_rings: int) -> Singles:
    """Independent samples on each ring, over the power of the noise."""
    rings = np.arange(1, n_rings + 1)
    return (2 * np.pi * rings / model.noise[:n_rings]).astype(np.float32)


@kernel
def _choose(products, row, label, chosen):
    # chosen (pairs, M): products (M, rows, 2 K) of each pair of a row and a class.
    n_classes = products.shape[2] // 2
    for m in range(products.shape[0]):
        for pair in range(row.size):
            one = products[m, row[pair]]
            chosen[pair, m] = complex(one[label[pair]], one[n_classes + label[pair]])


def _expanded(on_rings: _Images, poses: _Poses, box: int, n_indices: int, n_rings: int) -> Singles:
    """Move images by their shifts and expand them in the angle: (M, 2, rows, R)."""
    rings = rings_of(box)
    # Fewer angles are enough for few rings; they must hold all that lies within the inscribed circle.
    enough = math.ceil(max(math.pi * n_rings, n_indices))
    most = max(rings.n_angles // enough, 1)
    every = next(step for step in range(most, 0, -1) if rings.n_angles % step == 0)
    cosine, sine = (np.ascontiguousarray(values[::every]) for values in (rings.cosine, rings.sine))
    n_rows = len(poses.image)
    moved = np.empty((n_rows, n_rings, 2, len(cosine)), dtype=np.float32)
    few = np.ascontiguousarray(on_rings.spectra[:, :, :n_rings, ::every])
    _move(few, poses.image, poses.shift, cosine, sine, 2 * np.pi / box, moved)
    flat = moved.reshape(-1, 2, len(cosine))
    expanded = np.empty((n_indices, 2, n_rows, n_rings), dtype=np.float32)
    for part, table in enumerate(_angular(len(cosine), n_indices)):
        expanded[part::2] = (table @ flat[:, part].T).reshape(-1, 2, n_rows, n_rings)
    return expanded


@kernel
def _move(spectra, image, shift, cosine, sine, wave, moved):
    # moved (rows, R, 2, A): spectra of images brought back by their shifts, real and imaginary parts.
    n_angles = cosine.size
    step = np.empty((2, n_angles), dtype=np.float32)
    turn = np.empty((2, n_angles), dtype=np.float32)
    for row in range(image.size):
        for j in range(n_angles):
            phase = wave * (cosine[j] * shift[row, 1] + sine[j] * shift[row, 0])
            step[0, j] = math.cos(phase)
            step[1, j] = math.sin(phase)
            turn[0, j] = 1
            turn[1, j] = 0
        for ring in range(spectra.shape[2]):
            re = spectra[image[row], 0, ring]
            im = spectra[image[row], 1, ring]
            for j in range(n_angles):
                a = turn[0, j] * step[0, j] - turn[1, j] * step[1, j]
                b = turn[0, j] * step[1, j] + turn[1, j] * step[0, j]
                turn[0, j] = a
                turn[1, j] = b
                moved[row, ring, 0, j] = re[j] * a - im[j] * b
                moved[row, ring, 1, j] = re[j] * b + im[j] * a


@lru_cache(maxsize=16)
def _angular(n_angles: int, n_indices: int) -> tuple[Singles, Singles]:
    """Matrices from samples on half a ring to coefficients: even indices from real parts, odd from imaginary.

    On the other half of the ring the samples are complex conjugate. The factors i^m make the coefficients
    of `DiskBasis` real.
    """
    angle = -math.pi / 2 + math.pi * np.arange(n_angles) / n_angles
    index = np.arange(n_indices)
    table = np.exp(-1j * np.outer(angle, index)) * 1j**index / n_angles
    table[:, 1::2] *= 1j
    parts = np.stack([table.T.real, table.T.imag], axis=1).astype(np.float32)
    even, odd = (np.ascontiguousarray(parts[part::2].reshape(-1, n_angles)) for part in (0, 1))
    return even, odd


def _fine_poses(coarse: _Compared, poses: _Poses, model: ClassModel, n_rings: int) -> _Poses:
    """Keep classes and shifts that the coarse search finds likely, and divide the shifts more finely."""
    best = coarse.likelihood.max(axis=1)
    image = poses.image[poses.row]
    highest = np.full(int(poses.image[-1]) + 1, -np.inf, dtype=np.float32)
    np.maximum.at(highest, image, best)
    kept = best > highest[image] - DROPPED
    rows, place = np.unique(poses.row[kept], return_inverse=True)
    coarse_step = model.box / (model.steps * model.coarse)
    parts = math.ceil(coarse_step * FINE_STEPS * n_rings / model.box)
    line = ((np.arange(parts) + 0.5) / parts - 0.5) * coarse_step
    offsets = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    shift = (poses.shift[rows][:, None] + offsets).reshape(-1, 2)
    row = (place[:, None] * len(offsets) + np.arange(len(offsets))).ravel()
    label = np.repeat(poses.label[kept], len(offsets))
    order = np.argsort(row, kind="stable")
    return _Poses(np.repeat(poses.image[rows], len(offsets)), shift, row[order], label[order])


def _weighted(on_rings: _Images, poses: _Poses, compared: _Compared, model: ClassModel) -> _Chunk:
    """Turn likelihoods into probabilities."""
    likelihood = compared.likelihood
    n, n_classes = len(on_rings.spectra), model.references.shape[3]
    image = poses.image[poses.row]
    first = np.searchsorted(image, np.arange(n))
    best = likelihood.max(axis=1)
    highest = np.maximum.reduceat(best, first)
    probability = np.exp(likelihood - highest[image][:, None])
    total = np.add.reduceat(probability.sum(axis=1, dtype=np.float64), first)
    scale = (1 / total[image]).astype(np.float32)
    probability *= scale[:, None]
    peak = np.exp(best - highest[image]) * scale
    of_pair = probability.sum(axis=1, dtype=np.float64)
    place = image * n_classes + poses.label
    of_class = _weights_by(place, of_pair, n * n_classes).reshape(n, n_classes)
    square = _weights_by(image, of_pair * (poses.shift**2).sum(axis=1)[poses.row], n)
    return _Chunk(on_rings, poses, compared, probability, peak, of_class, float(square.sum()))


def _sums(chunk: _Chunk, model: ClassModel, half: int) -> ClassSums:
    """Sum the images, turned back by each angle, weighted by its probability; without the axis of halves."""
    on_rings, poses, compared, probability, peak, of_class, square_shift = chunk
    n, n_classes = of_class.shape
    counted = np.flatnonzero(peak > NEGLIGIBLE)
    turned = scipy.fft.rfft(probability[counted], axis=1, workers=1)
    references = model.references[half]
    parts = np.zeros((len(references), n_classes, 2, references.shape[1]), dtype=np.float32)
    _add_up(compared.expanded, turned, poses.row[counted], poses.label[counted], parts)
    real, imaginary = parts.transpose(2, 0, 3, 1)
    products = real + 1j * imaginary
    weights = on_rings.transfer.astype(np.float64).T @ of_class
    power = np.abs(references) ** 2
    explained = (references.conj() * products).real
    power[1:] *= 2
    explained[1:] *= 2
    residue = on_rings.power.sum(axis=0) - 2 * explained.sum(axis=(0, 2))
    residue += (weights * power.sum(axis=0)).sum(axis=1)
    return ClassSums(products, weights, of_class.sum(axis=0), residue, square_shift, n)


@kernel
def _add_up(expanded, turned, row, label, parts):
    # parts (M, K, 2, R): to each class are added its rows of expanded (M, 2, rows, R), times the complex
    # conjugates of turned (pairs, M).
    n_rings = expanded.shape[3]
    for m in range(expanded.shape[0]):
        for pair in range(row.size):
            real = turned[pair, m].real
            imaginary = turned[pair, m].imag
            image_real = expanded[m, 0, row[pair]]
            image_imaginary = expanded[m, 1, row[pair]]
            into = parts[m, label[pair]]
            for ring in range(n_rings):
                into[0, ring] += image_real[ring] * real + image_imaginary[ring] * imaginary
                into[1, ring] += image_imaginary[ring] * real - image_real[ring] * imaginary


def _weights_by(place: Indices, weights: Floats, count: int) -> Floats:
    """Add up weights by their places."""
    return np.bincount(place, weights, count).astype(np.float64)


def _assigned(chunk: _Chunk, model: ClassModel, half: int, *, between: bool) -> Assignments:
    """Choose the likeliest class of each image, and the likeliest pose in it.

    Shifts may lie `between` those that were compared, which takes another comparison.
    """
    on_rings, poses, compared, probability, peak, of_class, _ = chunk
    n = len(of_class)
    label = of_class.argmax(axis=1)
    likelihood = compared.likelihood
    image = poses.image[poses.row]
    best = np.where(label[image] == poses.label, peak, -1)
    # The first of the largest in each image's pairs, which are neighbours.
    order = np.lexsort((-best, image))
    pair = order[np.searchsorted(image[order], np.arange(n))]
    row, place = poses.row[pair], probability[pair].argmax(axis=1)
    n_angles = probability.shape[1]
    turn = 2 * np.pi * place / n_angles
    other = model.references[half ^ 1 if len(model.references) == 2 else half]
    certainty = _certainty(model, other.shape[1])
    factor = np.exp(1j * np.arange(len(other))[:, None] * turn).astype(np.complex64)
    factor[1:] *= 2
    expected = other[:, :, label].transpose(0, 2, 1).conj()
    # The reference, turned like the image, against the image.
    real, imaginary = compared.expanded[:, :, row].swapaxes(0, 1)
    overlap = (factor[:, :, None] * expected * (real + 1j * imaginary)).real.sum(axis=0) @ certainty
    power = np.abs(expected) ** 2
    power[1:] *= 2
    seen = (power.sum(axis=0) * on_rings.transfer) @ certainty
    norm = np.sqrt(seen * (on_rings.power @ certainty))
    score = np.divide(overlap, norm, out=np.full(n, np.nan), where=norm > 0)
    # The image is its reference turned by this angle; an alignment turns it back.
    angle = np.degrees(-turn - 2 * np.pi / n_angles * _beside(likelihood[pair], place))
    angle -= 360 * np.round(angle / 360)
    shift = poses.shift[row]
    if between:
        shift = shift + _beside_shift(on_rings, shift, label, place, likelihood[pair, place], model, half)
    return Assignments(
        label,
        of_class.max(axis=1).astype(np.float32),
        angle.astype(np.float32),
        shift.astype(np.float32),
        probability[pair, place],
        score.astype(np.float32),
    )


def _beside(likelihood: Singles, place: Indices) -> Floats:
    """Where between the angles the likelihood (n, angles) peaks: steps from `place`, by a parabola."""
    rows, n_angles = np.arange(len(place)), likelihood.shape[1]
    low, middle, high = (
        likelihood[rows, (place + step) % n_angles].astype(np.float64) for step in (-1, 0, 1)
    )
    return _peak(low, middle, high)


def _beside_shift(
    on_rings: _Images,
    shift: Floats,
    label: Indices,
    place: Indices,
    height: Singles,
    model: ClassModel,
    half: int,
) -> Floats:
    """Where beside shifts (n, 2) the likelihood peaks, in one class at one angle of each image: (n, 2).

    The `height` of the likelihood at these shifts is known.
    """
    n, n_rings = len(shift), model.references.shape[2]
    # At most this far from the grid of the search.
    step = model.box / (2 * FINE_STEPS * n_rings)
    around = step * np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
    count = len(around)
    rows = np.arange(n * count)
    near = _Poses(
        np.repeat(np.arange(n), count),
        (shift[:, None] + around).reshape(-1, 2),
        rows,
        np.repeat(label, count),
    )
    likelihood = _compare(on_rings, near, model, half, n_rings).likelihood
    sides = likelihood[rows, np.repeat(place, count)].reshape(n, count).astype(np.float64)
    above, below, left, right = sides.T
    middle = height.astype(np.float64)
    peaks = np.stack([_peak(above, middle, below), _peak(left, middle, right)], axis=1)
    return step * np.clip(peaks, -1, 1)


def _peak(low: Floats, middle: Floats, high: Floats) -> Floats:
    """Where the parabola through three heights, one step apart, peaks: steps from the middle."""
    bend = low - 2 * middle + high
    return np.divide(0.5 * (low - high), bend, out=np.zeros(len(middle)), where=bend < 0)
