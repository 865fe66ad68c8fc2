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

from fastsort._jit import inlined, kernel
from fastsort._types import Array, Bools, Floats, Images, Indices, Singles
from fastsort.invariants.bessel import Complexes
from fastsort.invariants.expansion import (
    KeptRings,
    RingImages,
    at_all_shifts,
    at_own_shifts,
    even_first,
    phases_of_shifts,
    put_on_rings,
)
from fastsort.invariants.rings import usable_images

# What the coarse search finds less likely than the best by so many nats is dropped.
DROPPED = 7.0
# Steps of the shift in a period of the outermost ring, in the fine search.
FINE_STEPS, NEARLY = 2.0, 0.1
# Angles for each angular index.
ANGLES = 2.1
# Particles farther from the middle than so many deviations are not looked for.
FARTHEST = 4.0
# Images at once, times shifts: what lies between two steps should stay in the processor's cache.
ROWS = 256
# Pairs at once in the kernels.
_BLOCK = 512
# Of a power series of 2 ** x for x from -1/2 to 1/2.
_POWERS = (1.0, 6.9314718e-1, 2.4022651e-1, 5.5504109e-2, 9.6181291e-3, 1.3333558e-3, 1.5403530e-4)


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
    images: Images | KeptRings, half: Indices | None, terms: Floats | None, model: ClassModel
) -> tuple[ClassSums, Assignments]:
    """Find how likely every class and pose of some images is.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d), or KeptRings
        Phases flipped where there is a contrast transfer function.
    half : ndarray of intp, shape (n,), optional
        Which half each image belongs to, 0 or 1; not needed where the model has one for all.
    terms : ndarray of float64, shape (n, 5), optional
        From `phase_terms`; by default the transfer function is 1. What is kept was seen through it.
    model : ClassModel

    Returns
    -------
    sums : ClassSums
        Images that are flat or hold a NaN or an infinity do not count.
    assignments : Assignments
    """
    sums = _no_raw_sums(model)
    found = no_assignments(len(images))
    for number, rows, chunk in _chunks(images, half, terms, model):
        sums = _added(sums, chunk, number)
        write_assignments(found, rows, _assigned(chunk, between=True))
    return _finished(sums, model), found


def sum_up(
    images: Images | KeptRings, half: Indices | None, terms: Floats | None, model: ClassModel
) -> ClassSums:
    """Return the sums that `expect` finds, without any assignments."""
    sums = _no_raw_sums(model)
    for number, _, chunk in _chunks(images, half, terms, model):
        sums = _added(sums, chunk, number)
    return _finished(sums, model)


def assign(images: Images, half: Indices, model: ClassModel) -> Assignments:
    """Return the assignments that `expect` finds where the transfer function is 1, without any sums.

    The shifts are those that were compared.
    """
    found = no_assignments(len(images))
    for _, rows, chunk in _chunks(images, half, None, model):
        write_assignments(found, rows, _assigned(chunk, between=False))
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


def as_they_lie(images: Images | KeptRings, terms: Floats | None, model: ClassModel, label: int) -> ClassSums:
    """Sum images that are neither turned nor moved, as members of one class."""
    sums = no_sums(model.references.shape)
    rows = np.flatnonzero(_usable(images))
    if not len(rows):
        return sums
    n_indices, n_rings = model.references.shape[1:3]
    on_rings = _on_rings(images, rows, terms, model)
    order = np.arange(len(rows))
    expanded = at_own_shifts(on_rings, order, np.zeros((len(rows), 2)), model.box, n_rings, n_indices)
    real, imaginary = expanded.sum(axis=3, dtype=np.float64).swapaxes(0, 1)
    sums.products[0, even_first(n_indices), :, label] = real + 1j * imaginary
    sums.weights[0, :, label] = on_rings.transfer.sum(axis=0)
    sums.counts[0, label] = len(rows)
    return sums._replace(residue=on_rings.power.sum(axis=0), n_images=len(rows))


class _Poses(NamedTuple):
    """Poses of a chunk that are compared: each row is an image at a shift, each pair a row and a class.

    Attributes
    ----------
    image : ndarray of intp, shape (rows,)
        In ascending order.
    shift : ndarray of float64, shape (rows, 2)
    row, label, owner : ndarray of intp, shape (pairs,)
        The owner is the image.
    column : ndarray of intp, shape (pairs,)
        Where each pair is among all pairs, class by class; empty where these are all.
    phases : ndarray of float32, shape (2, A, shifts), or None
        Cosines and sines of the shifts on the first ring, where they are the same for every image.
    """

    image: Indices
    shift: Floats
    row: Indices
    label: Indices
    owner: Indices
    column: Indices
    phases: Singles | None


class _Search(NamedTuple):
    """The first rings of a model, as images are compared with them.

    Attributes
    ----------
    n_rings : int
    weights : ndarray of float32, shape (2, M, K, 2 R)
        What real and imaginary parts of images are multiplied with, to be multiplied with cosines and sines
        then. Even indices come first.
    cost : ndarray of float64, shape (R, K)
        What the power of each average takes from its likelihood.
    known : ndarray of float64, shape (K,)
        Logarithm of the shares.
    deviation : float
    box : int
    turns : tuple of ndarray of float32
        As `_turns` returns them.
    others : ndarray of complex64, shape (M, R, K)
        Averages of the other half, even indices first.
    indices : ndarray of intp, shape (M,)
        The angular indices in this order.
    certainty : ndarray of float32, shape (R,)
        Independent samples on each ring, over the power of the noise.
    """

    n_rings: int
    weights: Singles
    cost: Floats
    known: Floats
    deviation: float
    box: int
    turns: tuple[Singles, ...]
    others: Complexes
    indices: Indices
    certainty: Singles


class _Compared(NamedTuple):
    """Poses of a chunk compared with the references; even indices come first.

    The likelihood of an angle, of the angle turned by half a turn, and of both with the other sign are made
    of the same four parts, which are the sums over even and over odd indices of cosines and of sines.

    Attributes
    ----------
    expanded : ndarray of float32, shape (M, 2, R, rows)
        Images at their shifts, times the contrast transfer function, expanded in the angle.
    products : ndarray of float32, shape (2, M, pairs)
        With the references, for cosines and sines of the angles.
    parts : ndarray of float32, shape (4, angles, pairs)
        Of the logarithm of the likelihood, for the first quarter of a turn.
    offset : ndarray of float32, shape (pairs,)
        What is to be added for the class and the shift, less a constant of each image.
    best : ndarray of float32, shape (pairs,)
        The likelihood at the likeliest angle.
    highest : ndarray of float32, shape (n,)
        The likeliest pose of each image.
    """

    expanded: Singles
    products: Singles
    parts: Singles
    offset: Singles
    best: Singles
    highest: Singles


class _Chunk(NamedTuple):
    """A chunk of images, compared with all classes.

    Attributes
    ----------
    on_rings : RingImages
    search : _Search
    poses : _Poses
    compared : _Compared
        Its parts are now those of probabilities: what the cosines and sines are multiplied with in the sums.
    of_class : ndarray of float64, shape (n, K)
    of_row : ndarray of float64, shape (rows,)
        Probabilities, not scaled yet.
    """

    on_rings: RingImages
    search: _Search
    poses: _Poses
    compared: _Compared
    of_class: Floats
    of_row: Floats


def _usable(images: Images | KeptRings) -> Bools:
    return images.usable if isinstance(images, KeptRings) else usable_images(images)


def _on_rings(
    images: Images | KeptRings, rows: Indices, terms: Floats | None, model: ClassModel
) -> RingImages:
    n_rings = model.references.shape[2]
    if isinstance(images, KeptRings):
        return images.first_rings(rows, n_rings)
    terms = None if terms is None else terms[rows]
    return put_on_rings(images[rows], terms, model.box, model.window, n_rings)


def _chunks(
    images: Images | KeptRings, half: Indices | None, terms: Floats | None, model: ClassModel
) -> Iterator[tuple[int, Indices, _Chunk]]:
    """Yield the usable images chunk by chunk: their half, which they are, and how they compare."""
    usable = _usable(images)
    n_halves, _, n_rings, _ = model.references.shape
    count = max(1, ROWS // len(_coarse_poses(1, model).shift))
    for number in range(n_halves):
        members = np.flatnonzero(usable if n_halves == 1 else usable & (half == number))
        if not len(members):
            continue
        searches = [_search(model, number, some) for some in sorted({min(model.coarse, n_rings), n_rings})]
        on_rings = _on_rings(images, members, terms, model)
        for first in range(0, len(members), count):
            some = slice(first, first + count)
            yield number, members[some], _compared_with_all(on_rings.part(some), model, searches)


def _compared_with_all(on_rings: RingImages, model: ClassModel, searches: list[_Search]) -> _Chunk:
    poses = _coarse_poses(len(on_rings.transfer), model)
    compared = _compare(on_rings, poses, searches[0])
    for search in searches[1:]:
        poses = _fine_poses(compared, poses, model, search.n_rings)
        compared = _compare(on_rings, poses, search)
    return _weighted(on_rings, poses, compared, searches[-1])


def _coarse_poses(n_images: int, model: ClassModel) -> _Poses:
    """All classes at all shifts of a grid."""
    _, n_indices, all_rings, n_classes = model.references.shape
    n_rings = min(model.coarse, all_rings)
    step = model.box / (model.steps * n_rings)
    farthest = min(model.reach, FARTHEST * model.deviation + 0.5 * step)
    return _grid(
        n_images,
        n_classes,
        step,
        farthest,
        model.box,
        n_rings,
        _indices_within(n_indices, n_rings, all_rings),
    )


@lru_cache(maxsize=8)
def _grid(
    n_images: int,
    n_classes: int,
    step: float,
    farthest: float,
    box: int,
    n_rings: int,
    n_indices: int,
) -> _Poses:
    shifts, phases = _shifts(step, farthest, box, n_rings, n_indices)
    image = np.repeat(np.arange(n_images), len(shifts))
    return _Poses(
        image,
        np.tile(shifts, (n_images, 1)),
        np.tile(np.arange(len(image)), n_classes),
        np.repeat(np.arange(n_classes), len(image)),
        np.tile(image, n_classes),
        np.empty(0, dtype=np.intp),
        phases,
    )


@lru_cache(maxsize=8)
def _shifts(step: float, farthest: float, box: int, n_rings: int, n_indices: int) -> tuple[Floats, Singles]:
    """Shifts on a grid (S, 2), and their phases (2, A, S)."""
    line = np.arange(-int(farthest / step + 1e-9), int(farthest / step + 1e-9) + 1) * step
    shifts = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    shifts = shifts[np.hypot(shifts[:, 0], shifts[:, 1]) <= farthest + 1e-9]
    return shifts, phases_of_shifts(shifts, box, n_rings, n_indices)


def _search(model: ClassModel, half: int, n_rings: int) -> _Search:
    n_indices = _indices_within(model.references.shape[1], n_rings, model.references.shape[2])
    indices = even_first(n_indices)
    references = model.references[half, indices, :n_rings]
    others = references if len(model.references) == 1 else model.references[1 - half, indices, :n_rings]
    certainty = (2 * np.pi * np.arange(1, n_rings + 1) / model.noise[:n_rings]).astype(np.float32)
    weighted = (references * certainty[:, None]).swapaxes(1, 2)
    n_classes = weighted.shape[1]
    # All indices but 0, which is the first, count for those with the other sign, too.
    weighted[1:] *= 2
    weights = np.empty((2, n_indices, n_classes, 2, n_rings), dtype=np.float32)
    weights[0, :, :, 0], weights[0, :, :, 1] = weighted.real, weighted.imag
    weights[1, :, :, 0], weights[1, :, :, 1] = weighted.imag, -weighted.real
    weights = weights.reshape(2, n_indices, n_classes, 2 * n_rings)
    cost = (0.5 * certainty)[:, None] * _power(references)
    known = np.log(np.maximum(model.shares, 1e-12))
    turns = _turns(n_indices)
    return _Search(
        n_rings, weights, cost, known, model.deviation, model.box, turns, others, indices, certainty
    )


def _compare(on_rings: RingImages, poses: _Poses, search: _Search) -> _Compared:
    """Compare the first rings of images at some shifts with some classes at all angles."""
    n_indices, n_rings = search.weights.shape[1], search.n_rings
    n_pairs = len(poses.owner)
    if poses.phases is not None:
        expanded = at_all_shifts(on_rings, poses.phases, n_rings, n_indices)
    else:
        expanded = at_own_shifts(on_rings, poses.image, poses.shift, search.box, n_rings, n_indices)
    products = np.empty((2, n_indices, n_pairs), dtype=np.float32)
    parts = np.empty((4, len(search.turns[0]), n_pairs), dtype=np.float32)
    _multiply(expanded, search.weights, poses.column, *search.turns, products, parts)
    offset, best = np.empty((2, n_pairs), dtype=np.float32)
    variance = search.deviation**2
    pairs = poses.row, poses.label, poses.owner
    _find_offset(on_rings.transfer, search.cost, search.known, poses.shift, variance, *pairs, offset)
    highest = np.empty(len(on_rings.transfer), dtype=np.float32)
    _find_best(parts, offset, poses.owner, best, highest)
    return _Compared(expanded, products, parts, offset, best, highest)


# Products of matrices stand in kernels: each of them called alone would give back the interpreter's lock and
# wait for it again, which takes as long as a small product.
@kernel
def _multiply(expanded, weights, column, of_a, of_b, of_c, of_d, products, parts):
    # expanded (M, 2, R, rows), weights (2, M, K, 2 R); writes those of products (2, M, K * rows) that the
    # columns name, or all where there are none, and parts (4, angles, pairs): products of the tables (angles,
    # indices) with the quarters of these.
    n_indices, _, n_rings, n_rows = expanded.shape
    n_classes = weights.shape[2]
    every = np.empty((n_classes, n_rows), dtype=np.float32)
    for part in range(2):
        for m in range(n_indices):
            image = expanded[m].reshape((2 * n_rings, n_rows))
            if column.size == 0:
                np.dot(weights[part, m], image, products[part, m].reshape((n_classes, n_rows)))
                continue
            np.dot(weights[part, m], image, every)
            flat = every.ravel()
            for pair in range(column.size):
                products[part, m, pair] = flat[column[pair]]
    n_even = of_a.shape[1]
    np.dot(of_a, products[0, :n_even], parts[0])
    np.dot(of_b, products[1, :n_even], parts[1])
    np.dot(of_c, products[0, n_even:], parts[2])
    np.dot(of_d, products[1, n_even:], parts[3])


@lru_cache(maxsize=64)
def _turns(n_indices: int) -> tuple[Singles, ...]:
    """Cosines and sines of a quarter of a turn: two tables (angles, indices) for even, two for odd."""
    angle = 2 * math.pi * np.arange(_n_angles(n_indices) // 4 + 1) / _n_angles(n_indices)
    phases = (np.outer(angle, index) for index in (np.arange(0, n_indices, 2), np.arange(1, n_indices, 2)))
    return tuple(wave(phase).astype(np.float32) for phase in phases for wave in (np.cos, np.sin))


def _indices_within(n_indices: int, n_rings: int, all_rings: int) -> int:
    """Angular indices that the first rings hold, of those that all rings hold."""
    return min(n_indices, math.ceil(n_indices * n_rings / all_rings) + 2)


def _n_angles(n_indices: int) -> int:
    """Angles that are compared: of each, also the opposite one and both with the other sign."""
    return 4 * math.ceil(ANGLES * n_indices / 4)


@kernel
def _find_offset(transfer, cost, known, shift, variance, row, label, owner, offset):
    # offset (pairs): by class, with the transfer (n, R) that its cost (R, K) was seen through, and by shift.
    of_class = np.empty((len(transfer), known.size))
    for i in range(len(transfer)):
        for k in range(known.size):
            of_class[i, k] = known[k]
            for ring in range(len(cost)):
                of_class[i, k] -= transfer[i, ring] * cost[ring, k]
    for pair in range(offset.size):
        y = shift[row[pair], 0]
        x = shift[row[pair], 1]
        offset[pair] = of_class[owner[pair], label[pair]] - (y * y + x * x) / (2 * variance)


@kernel
def _find_best(parts, offset, owner, best, highest):
    # best (pairs): the largest sum of the four parts (4, angles, pairs), each with every sign that it has
    # at the four angles, and of the offset; highest (n): the largest of each image.
    n_pairs = best.size
    for i in range(highest.size):
        highest[i] = -np.inf
    for first in range(0, n_pairs, _BLOCK):
        some = best[first : first + _BLOCK]
        for pair in range(some.size):
            some[pair] = -np.inf
        for j in range(parts.shape[1]):
            a = parts[0, j, first : first + _BLOCK]
            b = parts[1, j, first : first + _BLOCK]
            c = parts[2, j, first : first + _BLOCK]
            d = parts[3, j, first : first + _BLOCK]
            for pair in range(some.size):
                one = a[pair] + b[pair] + abs(c[pair] + d[pair])
                other = a[pair] - b[pair] + abs(c[pair] - d[pair])
                some[pair] = max(some[pair], max(one, other))
    for pair in range(n_pairs):
        best[pair] += offset[pair]
        highest[owner[pair]] = max(highest[owner[pair]], best[pair])


def _fine_poses(coarse: _Compared, poses: _Poses, model: ClassModel, n_rings: int) -> _Poses:
    """Keep classes and shifts that the coarse search finds likely, and divide the shifts more finely."""
    kept = coarse.best > coarse.highest[poses.owner] - DROPPED
    rows, place = np.unique(poses.row[kept], return_inverse=True)
    coarse_step = model.box / (model.steps * model.coarse)
    # Where there are nearly enough steps already, four times as many poses show nothing more.
    parts = max(math.ceil(coarse_step * FINE_STEPS * n_rings / model.box - NEARLY), 1)
    line = ((np.arange(parts) + 0.5) / parts - 0.5) * coarse_step
    offsets = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    shift = (poses.shift[rows][:, None] + offsets).reshape(-1, 2)
    row = (place[:, None] * len(offsets) + np.arange(len(offsets))).ravel()
    label = np.repeat(poses.label[kept], len(offsets))
    image = np.repeat(poses.image[rows], len(offsets))
    return _Poses(image, shift, row, label, image[row], label * len(image) + row, None)


def _weighted(on_rings: RingImages, poses: _Poses, compared: _Compared, search: _Search) -> _Chunk:
    """Turn likelihoods into probabilities."""
    of_class = np.zeros((len(on_rings.transfer), len(search.known)))
    of_row = np.zeros(len(poses.image))
    _weigh(
        compared.parts,
        compared.offset,
        compared.highest,
        poses.owner,
        poses.row,
        poses.label,
        of_class,
        of_row,
    )
    return _Chunk(on_rings, search, poses, compared, of_class, of_row)


@kernel
def _weigh(parts, offset, highest, owner, row, label, of_class, of_row):
    # of_class (n, K), of_row (rows): sums over all angles of exp(likelihood - highest of the image). In place
    # of the parts (4, angles, pairs) come the sums of these to multiply cosines and sines of even and odd
    # indices with.
    n_angles = parts.shape[1]
    high = np.empty(_BLOCK, dtype=np.float32)
    total = np.empty(_BLOCK, dtype=np.float32)
    for first in range(0, owner.size, _BLOCK):
        some = total[: min(_BLOCK, owner.size - first)]
        for pair in range(some.size):
            some[pair] = 0
            high[pair] = highest[owner[first + pair]] - offset[first + pair]
        for j in range(n_angles):
            # At the ends of the quarter, two of the four angles are the same.
            weight = np.float32(0.5 if j == 0 or j == n_angles - 1 else 1)
            a = parts[0, j, first : first + _BLOCK]
            b = parts[1, j, first : first + _BLOCK]
            c = parts[2, j, first : first + _BLOCK]
            d = parts[3, j, first : first + _BLOCK]
            for pair in range(some.size):
                plus = a[pair] + b[pair] - high[pair]
                minus = a[pair] - b[pair] - high[pair]
                one = weight * _exp(plus + (c[pair] + d[pair]))
                opposite = weight * _exp(plus - (c[pair] + d[pair]))
                mirrored = weight * _exp(minus + (c[pair] - d[pair]))
                both = weight * _exp(minus - (c[pair] - d[pair]))
                a[pair] = one + opposite + mirrored + both
                b[pair] = one + opposite - mirrored - both
                c[pair] = one - opposite + mirrored - both
                d[pair] = one - opposite - mirrored + both
                some[pair] += one + opposite + mirrored + both
        for pair in range(some.size):
            of_class[owner[first + pair], label[first + pair]] += some[pair]
            of_row[row[first + pair]] += some[pair]


@inlined
def _exp(x):
    # To single precision, where x <= 0; library functions would be called one by one.
    turns = max(x, np.float32(-87)) * np.float32(1 / math.log(2))
    whole = np.floor(turns + np.float32(0.5))
    rest = turns - whole
    value = np.float32(_POWERS[-1])
    for k in range(len(_POWERS) - 2, -1, -1):
        value = value * rest + np.float32(_POWERS[k])
    return value * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


class _RawSums(NamedTuple):
    """What is added up chunk by chunk; of `products` the cosine and sine parts with both parts of images.

    Attributes
    ----------
    products : ndarray of float64, shape (H, 2, M, K, 2 R)
    weights : ndarray of float64, shape (H, R, K)
    counts : ndarray of float64, shape (H, K)
    power : ndarray of float64, shape (R,)
        Of the images.
    square_shift : float
    n_images : int
    """

    products: Floats
    weights: Floats
    counts: Floats
    power: Floats
    square_shift: float
    n_images: int


def _no_raw_sums(model: ClassModel) -> _RawSums:
    halves, n_indices, n_rings, n_classes = model.references.shape
    return _RawSums(
        np.zeros((halves, 2, n_indices, n_classes, 2 * n_rings)),
        np.zeros((halves, n_rings, n_classes)),
        np.zeros((halves, n_classes)),
        np.zeros(n_rings),
        0.0,
        0,
    )


def _added(sums: _RawSums, chunk: _Chunk, half: int) -> _RawSums:
    """Add the images, turned back by each angle, weighted by its probability."""
    on_rings, search, poses, compared, of_class, of_row = chunk
    # What makes the probabilities of each image add up to 1.
    scale = 1 / of_class.sum(axis=1)
    of_class = of_class * scale[:, None]
    n_indices, _, _, n_rows = compared.expanded.shape
    # Cosines and sines, weighted by the probabilities.
    turned = np.empty((2, n_indices, len(poses.owner)), dtype=np.float32)
    _sum_angles(compared.parts, *search.turns, turned)
    expanded = compared.expanded.reshape(n_indices, -1, n_rows)
    scales = scale.astype(np.float32)[poses.image]
    _add_products(turned, poses.column, expanded, scales, sums.products[half])
    sums.weights[half] += on_rings.transfer.T @ of_class
    sums.counts[half] += of_class.sum(axis=0)
    sums.power[:] += on_rings.power.sum(axis=0)
    square = (of_row * scale[poses.image]) @ (poses.shift**2).sum(axis=1)
    return sums._replace(square_shift=sums.square_shift + float(square), n_images=sums.n_images + len(scale))


@kernel
def _sum_angles(parts, of_a, of_b, of_c, of_d, turned):
    # The way back: turned (2, M, pairs) from parts (4, angles, pairs), with the same tables.
    n_even = of_a.shape[1]
    np.dot(of_a.T, parts[0], turned[0, :n_even])
    np.dot(of_b.T, parts[1], turned[1, :n_even])
    np.dot(of_c.T, parts[2], turned[0, n_even:])
    np.dot(of_d.T, parts[3], turned[1, n_even:])


@kernel
def _add_products(turned, column, expanded, scale, sums):
    # turned (2, M, pairs), expanded (M, 2 R, rows), scale (rows); adds to sums (2, M, K, 2 R).
    _, n_indices, n_classes, n_samples = sums.shape
    n_rows = scale.size
    images = np.empty((n_samples, n_rows), dtype=np.float32)
    every = np.zeros((n_classes, n_rows), dtype=np.float32)
    flat = every.ravel()
    product = np.empty((n_classes, n_samples), dtype=np.float32)
    for m in range(n_indices):
        for sample in range(n_samples):
            for row in range(n_rows):
                images[sample, row] = expanded[m, sample, row] * scale[row]
        for part in range(2):
            if column.size == 0:
                np.dot(turned[part, m].reshape(n_classes, n_rows), images.T, product)
            else:
                for pair in range(column.size):
                    flat[column[pair]] = turned[part, m, pair]
                np.dot(every, images.T, product)
            for label in range(n_classes):
                for sample in range(n_samples):
                    sums[part, m, label, sample] += product[label, sample]


def _finished(sums: _RawSums, model: ClassModel) -> ClassSums:
    references = model.references
    halves, n_indices, n_rings, n_classes = references.shape
    cosines, sines = sums.products.reshape(halves, 2, n_indices, n_classes, 2, n_rings).swapaxes(0, 1)
    found = cosines[..., 0, :] - sines[..., 1, :] + 1j * (cosines[..., 1, :] + sines[..., 0, :])
    products = np.empty(references.shape, dtype=np.complex128)
    products[:, even_first(n_indices)] = found.swapaxes(2, 3)
    explained = (references.conj() * products).real
    explained[:, 1:] *= 2
    left = sums.power - 2 * explained.sum(axis=(0, 1, 3))
    left += (sums.weights * _power(references)).sum(axis=(0, 2))
    return ClassSums(products, sums.weights, sums.counts, left, sums.square_shift, sums.n_images)


def _power(references: Complexes) -> Floats:
    """Power of averages (..., M, R, K), on each ring."""
    power = np.abs(references) ** 2
    # As in the search, all indices but 0 count twice.
    power[..., 1:, :, :] *= 2
    return power.sum(axis=-3)


def _assigned(chunk: _Chunk, *, between: bool) -> Assignments:
    """Choose the likeliest class of each image, and the likeliest pose in it.

    Shifts may lie `between` those that were compared, which takes another comparison.
    """
    on_rings, search, poses, compared, of_class, _ = chunk
    n = len(of_class)
    place, height = np.empty(n, dtype=np.intp), np.empty(n, dtype=np.float32)
    label, shift = np.empty(n, dtype=np.intp), np.empty((n, 2), dtype=np.float32)
    probability, angle, pose_probability, score = np.empty((4, n), dtype=np.float32)
    found = Assignments(label, probability, angle, shift, pose_probability, score)
    _choose(
        compared.expanded,
        compared.products,
        compared.offset,
        compared.best,
        compared.highest,
        on_rings.transfer,
        on_rings.power,
        of_class,
        *search.turns,
        poses.shift,
        poses.row,
        poses.label,
        poses.owner,
        search.others,
        search.indices,
        search.certainty,
        height,
        place,
        *found,
    )
    if between:
        shift += _beside_shift(on_rings, shift, label, place, height, search).astype(np.float32)
    return found


@kernel
def _choose(
    expanded,
    products,
    offset,
    best,
    highest,
    transfer,
    power,
    of_class,
    of_a,
    of_b,
    of_c,
    of_d,
    shift,
    row,
    label,
    owner,
    references,
    index,
    certainty,
    height,
    place,
    chosen,
    probability,
    angle,
    shifts,
    pose_probability,
    score,
):
    # Writes the height (n) of each image's likeliest pose, its place (n) among all angles, and what is in
    # `Assignments`: the shift is one of those compared, the angle may lie between them.
    n, n_classes = of_class.shape
    n_indices, n_rings, _ = references.shape
    n_even, n_odd = of_a.shape[1], of_c.shape[1]
    quarter = len(of_a) - 1
    n_angles = 4 * quarter
    heights = np.empty(n_angles, dtype=np.float32)
    cosines = np.empty(n_angles)
    sines = np.empty(n_angles)
    for j in range(n_angles):
        cosines[j] = math.cos(2 * math.pi * j / n_angles)
        sines[j] = math.sin(2 * math.pi * j / n_angles)
    # The first of the best pairs of each image with its likeliest class.
    of_image = np.zeros(n, dtype=np.intp)
    for i in range(n):
        chosen[i] = 0
        height[i] = -np.inf
        for k in range(1, n_classes):
            if of_class[i, k] > of_class[i, chosen[i]]:
                chosen[i] = k
    for pair in range(owner.size):
        i = owner[pair]
        if label[pair] == chosen[i] and best[pair] > height[i]:
            height[i] = best[pair]
            of_image[i] = pair
    for i in range(n):
        pair = of_image[i]
        # The likelihood, with each sign that its parts have at the four angles.
        for j in range(quarter + 1):
            even_cosines = np.float32(0)
            even_sines = np.float32(0)
            for m in range(n_even):
                even_cosines += of_a[j, m] * products[0, m, pair]
                even_sines += of_b[j, m] * products[1, m, pair]
            odd_cosines = np.float32(0)
            odd_sines = np.float32(0)
            for m in range(n_odd):
                odd_cosines += of_c[j, m] * products[0, n_even + m, pair]
                odd_sines += of_d[j, m] * products[1, n_even + m, pair]
            plus = odd_cosines + odd_sines
            minus = odd_cosines - odd_sines
            heights[j] = even_cosines + even_sines + plus
            heights[2 * quarter + j] = even_cosines + even_sines - plus
            heights[2 * quarter - j] = even_cosines - even_sines - minus
            heights[n_angles - j if j > 0 else 0] = even_cosines - even_sines + minus
        at = 0
        for j in range(1, n_angles):
            if heights[j] > heights[at]:
                at = j
        place[i] = at
        height[i] = heights[at] + offset[pair]
        total = 0.0
        for k in range(n_classes):
            total += of_class[i, k]
        probability[i] = of_class[i, chosen[i]] / total
        pose_probability[i] = np.exp(height[i] - highest[i]) / total
        # The image is its reference turned by this angle; an alignment turns it back.
        low = np.float64(heights[at - 1 if at > 0 else n_angles - 1])
        high = np.float64(heights[at + 1 if at < n_angles - 1 else 0])
        bend = low - 2 * np.float64(heights[at]) + high
        turn = (at + (0.5 * (low - high) / bend if bend < 0 else 0.0)) / n_angles
        angle[i] = 360 * (np.round(turn) - turn)
        shifts[i, 0] = shift[row[pair], 0]
        shifts[i, 1] = shift[row[pair], 1]
        overlap = 0.0
        expected = 0.0
        for m in range(n_indices):
            # All indices but 0 count for those with the other sign, too.
            times = 1.0 if index[m] == 0 else 2.0
            cosine = cosines[index[m] * at % n_angles]
            sine = sines[index[m] * at % n_angles]
            for ring in range(n_rings):
                value = references[m, ring, chosen[i]]
                real = value.real * cosine + value.imag * sine
                imaginary = value.real * sine - value.imag * cosine
                both = real * expanded[m, 0, ring, row[pair]] - imaginary * expanded[m, 1, ring, row[pair]]
                square = value.real * value.real + value.imag * value.imag
                overlap += times * certainty[ring] * both
                expected += times * certainty[ring] * transfer[i, ring] * square
        there = 0.0
        for ring in range(n_rings):
            there += certainty[ring] * power[i, ring]
        norm = np.sqrt(expected * there)
        score[i] = overlap / norm if norm > 0 else np.nan


def _beside_shift(
    on_rings: RingImages,
    shift: Singles,
    label: Indices,
    place: Indices,
    height: Singles,
    search: _Search,
) -> Floats:
    """Where beside shifts (n, 2) the likelihood peaks, in one class at one angle of each image: (n, 2).

    The `height` of the likelihood at these shifts is known.
    """
    n = len(shift)
    # At most this far from the grid of the search.
    step = search.box / (2 * FINE_STEPS * search.n_rings)
    around = step * np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
    count = len(around)
    rows, image = np.arange(n * count), np.repeat(np.arange(n), count)
    label = np.repeat(label, count)
    beside = (shift[:, None] + around).reshape(-1, 2)
    near = _Poses(image, beside, rows, label, image, label * len(rows) + rows, None)
    compared = _compare(on_rings, near, search)
    sides = _at(np.repeat(place, count), compared.parts) + compared.offset
    above, below, left, right = sides.reshape(n, count).T.astype(np.float64)
    middle = height.astype(np.float64)
    peaks = np.stack([_peak(above, middle, below), _peak(left, middle, right)], axis=1)
    return step * np.clip(peaks, -1, 1)


def _at(place: Indices, parts: Singles) -> Singles:
    """Likelihoods at one place among all angles for each pair, of their parts (4, angles, pairs)."""
    quarter = parts.shape[1] - 1
    # Every other quarter of a turn is the mirror image of the one before.
    number, rest = np.divmod(place, quarter)
    mirrored = number % 2 == 1
    a, b, c, d = parts[:, np.where(mirrored, quarter - rest, rest), np.arange(len(place))]
    plain = a + b + np.where(number == 0, c + d, -c - d)
    return np.where(mirrored, a - b + np.where(number == 1, d - c, c - d), plain)


def _peak(low: Floats, middle: Floats, high: Floats) -> Floats:
    """Where the parabola through three heights, one step apart, peaks: steps from the middle."""
    bend = low - 2 * middle + high
    return np.divide(0.5 * (low - high), bend, out=np.zeros(len(middle)), where=bend < 0)
