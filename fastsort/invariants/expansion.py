"""Images on rings: seen through their contrast transfer function, moved, and expanded in the angle.

Angular indices come in an order of their own, all even ones first: they are made of the real parts of samples
on half a ring, and the odd ones of the imaginary parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastsort._jit import inlined, kernel
from fastsort._types import Bools, Floats, Images, Indices, Singles
from fastsort.invariants.references import soft_disk
from fastsort.invariants.rings import Taps, levelled, rings_of, sample_rings, usable_images

# Images are cropped to so many rings more than are needed, if that makes them smaller than this part of them.
BEYOND, SMALLER = 4, 0.8
# Images with at most so many pixels, times their samples, are multiplied with waves: it beats a transform.
DIRECT = 2_000_000
# Of a power series of cos(pi x) in x ** 2, for x from -1/2 to 1/2.
_COSINE = (
    1.0,
    -4.93480220054,
    4.05871212642,
    -1.33526276885,
    0.235330630359,
    -0.02580689139,
    0.0019295743094,
    -0.000104638104925,
)


class RingImages(NamedTuple):
    """A few images on rings.

    Attributes
    ----------
    spectra : ndarray of float32, shape (2, A, R, n)
        Real and imaginary parts, times the contrast transfer function.
    transfer : ndarray of float32, shape (n, R)
        Mean of its squares on each ring.
    power : ndarray of float64, shape (n, R)
        Of the images on each ring.
    start : int
        Where the first image is in the spectra, which may be those of more images.
    """

    spectra: Singles
    transfer: Singles
    power: Floats
    start: int = 0

    def part(self, some: slice) -> RingImages:
        """Return some of the images in a row, without a copy."""
        return RingImages(self.spectra, self.transfer[some], self.power[some], some.start)


@dataclass(frozen=True)
class KeptRings:
    """Images on rings that stay in memory from round to round; they are read in ranges, as images are.

    Attributes
    ----------
    spectra : ndarray of float32, shape (n, 2, A, R)
    transfer, power
        As of `RingImages`.
    usable : ndarray of bool, shape (n,)
        The others are flat, or hold a NaN or an infinity.
    """

    spectra: Singles
    transfer: Singles
    power: Floats
    usable: Bools

    def __len__(self) -> int:
        return len(self.usable)

    def read(self, start: int, stop: int) -> KeptRings:
        """Return a range."""
        return self.chosen(slice(start, stop))

    def part(self, start: int, stop: int) -> KeptRings:
        """Return a range as a source."""
        return self.chosen(slice(start, stop))

    def chosen(self, rows: Indices | slice) -> KeptRings:
        """Return some of the images."""
        return KeptRings(self.spectra[rows], self.transfer[rows], self.power[rows], self.usable[rows])

    def first_rings(self, rows: Indices, n_rings: int) -> RingImages:
        """Return the first rings of some images."""
        spectra = self.spectra[rows, :, :, :n_rings].transpose(1, 2, 3, 0)
        values = np.ascontiguousarray(spectra), self.transfer[rows, :n_rings], self.power[rows, :n_rings]
        return RingImages(*values)


def keep_rings(
    images: Images, terms: Floats | None, box: int, window: float, n_rings: int
) -> tuple[Singles, Singles, Floats, Bools]:
    """Sample the first rings as `put_on_rings` does; return what `KeptRings` are made of."""
    usable = usable_images(images)
    images[~usable] = 0
    spectra, transfer, power, _ = put_on_rings(images, terms, box, window, n_rings)
    return np.ascontiguousarray(spectra.transpose(3, 0, 1, 2)), transfer, power, usable


def put_on_rings(images: Images, terms: Floats | None, box: int, window: float, n_rings: int) -> RingImages:
    """Sample the first rings of images, within a window, seen through their contrast transfer function.

    Parameters
    ----------
    images : ndarray of float32, shape (n, box, box)
    terms : ndarray of float64, shape (n, 5), optional
        From `phase_terms`; by default the transfer function is 1.
    box : int
    window : float
        Radius in pixels of the disk that is used.
    n_rings : int

    Returns
    -------
    on_rings : RingImages
    """
    rings = rings_of(box)
    spectra = _sampled(images, box, window, n_rings)
    power = np.empty((len(images), n_rings))
    _sum_power(spectra, power)
    transfer = np.ones((len(images), n_rings), dtype=np.float32)
    if terms is not None:
        _see_through(spectra, transfer, terms, rings.cosine, rings.sine, box)
    return RingImages(spectra, transfer, power)


def _sampled(images: Images, box: int, window: float, n_rings: int) -> Singles:
    """Sample the first rings of images: (2, A, R, n)."""
    n_angles = rings_of(box).n_angles
    if 2 * n_rings * n_angles * box**2 <= DIRECT:
        return _sampled_directly(images, box, window, n_rings)
    # From smaller images where these show so many rings.
    size = min(2 * (n_rings + BEYOND), box)
    if size > SMALLER * box:
        size = box
    rings = rings_of(size, n_angles)._replace(n_rings=n_rings)
    first, taps = slice(n_rings * n_angles), rings.image_taps
    taps = Taps(
        taps.first_row[first], taps.first_column[first], taps.row_weight[first], taps.column_weight[first]
    )
    spectra = sample_rings(images, rings, taps, _window(box, window))
    # The transform of fewer pixels sums fewer.
    return np.ascontiguousarray(spectra.transpose(1, 3, 2, 0)) * np.float32((box / size) ** 2)


def _sampled_directly(images: Images, box: int, window: float, n_rings: int) -> Singles:
    pixel, opposite, waves = _waves(box, window, n_rings)
    flat = levelled(images, np.ones(box, dtype=np.float32)).reshape(len(images), -1)
    samples = np.empty((2, waves.shape[1], len(images)), dtype=np.float32)
    _multiply_waves(flat, pixel, opposite, waves, samples)
    return samples.reshape(2, -1, n_rings, len(images))


@lru_cache(maxsize=8)
def _window(box: int, radius: float) -> Singles:
    return soft_disk(box, radius)


@lru_cache(maxsize=8)
def _waves(box: int, radius: float, n_rings: int) -> tuple[Indices, Indices, Singles]:
    """Pixels of half of the window, those opposite, and waves (2, A R, pixels): cosines and sines.

    Sums of opposite pixels, times cosines, are the real parts of samples; their differences, times sines, are
    the imaginary parts.
    """
    rings, mask = rings_of(box), _window(box, radius).ravel()
    middle = box // 2 * (box + 1)
    pixel = np.flatnonzero(mask[middle:]) + middle
    weight = mask[pixel]
    weight[0] /= 2
    ring = np.arange(1, n_rings + 1)
    phase = 2 * np.pi / box * (np.arange(box) - box // 2)
    along_y, along_x = (
        np.exp(-1j * np.outer(np.outer(direction, ring), phase)).astype(np.complex64)
        for direction in (rings.sine, rings.cosine)
    )
    y, x = np.divmod(pixel, box)
    waves = along_y[:, y] * along_x[:, x] * weight
    waves *= np.tile(np.sqrt(ring), rings.n_angles).astype(np.float32)[:, None]
    return pixel, 2 * middle - pixel, np.ascontiguousarray([waves.real, waves.imag])


@kernel
def _multiply_waves(flat, pixel, opposite, waves, samples):
    # flat (n, pixels of the box), waves (2, A R, pixels of half the window); writes samples (2, A R, n).
    folded = np.empty((2, flat.shape[0], pixel.size), dtype=np.float32)
    for i in range(flat.shape[0]):
        for k in range(pixel.size):
            folded[0, i, k] = flat[i, pixel[k]] + flat[i, opposite[k]]
            folded[1, i, k] = flat[i, pixel[k]] - flat[i, opposite[k]]
    for part in range(2):
        np.dot(waves[part], folded[part].T, samples[part])


@kernel
def _sum_power(spectra, power):
    # power (n, R): the mean over all angles of the squares of spectra (2, A, R, n).
    n_angles = spectra.shape[1]
    total = np.empty(spectra.shape[3])
    for ring in range(spectra.shape[2]):
        for i in range(total.size):
            total[i] = 0
        for j in range(n_angles):
            real = spectra[0, j, ring]
            imaginary = spectra[1, j, ring]
            for i in range(total.size):
                total[i] += real[i] * real[i] + imaginary[i] * imaginary[i]
        for i in range(total.size):
            power[i, ring] = total[i] / n_angles


@kernel
def _see_through(spectra, transfer, terms, cosine, sine, box):
    # spectra (2, A, R, n) are multiplied with the magnitude of the contrast transfer function; transfer
    # (n, R) becomes the mean of its square.
    n_angles = cosine.size
    n = transfer.shape[0]
    total = np.empty(n)
    for ring in range(spectra.shape[2]):
        for i in range(n):
            total[i] = 0
        for j in range(n_angles):
            x = cosine[j] * (ring + 1) / box
            y = sine[j] * (ring + 1) / box
            square = x * x + y * y
            real = spectra[0, j, ring]
            imaginary = spectra[1, j, ring]
            for i in range(n):
                turns = terms[i, 0] * x * x + terms[i, 1] * y * y + terms[i, 2] * x * y
                turns += terms[i, 4] - terms[i, 3] * square * square
                # |sin(pi turns)| is the cosine of what the turns are away from the middle of two whole ones.
                away = turns - np.floor(turns) - 0.5
                value = _cosine(away * away)
                real[i] *= value
                imaginary[i] *= value
                total[i] += value * value
        for i in range(n):
            transfer[i, ring] = total[i] / n_angles


@inlined
def _cosine(square):
    # Of a phase of at most half a turn, by the square of what it is in half turns.
    value = _COSINE[-1]
    for k in range(len(_COSINE) - 2, -1, -1):
        value = value * square + _COSINE[k]
    return value


def even_first(n_indices: int) -> Indices:
    """Return the angular indices, those first that half a turn does not change."""
    return np.concatenate([np.arange(0, n_indices, 2), np.arange(1, n_indices, 2)])


def phases_of_shifts(shifts: Floats, box: int, n_rings: int, n_indices: int) -> Singles:
    """Cosines and sines of shifts (S, 2) on the first ring, at the angles that all rings need: (2, A, S)."""
    rings, every = rings_of(box), _every(box, n_rings, n_indices)
    directions = np.stack([rings.sine[::every], rings.cosine[::every]], axis=1)
    phase = directions @ (2 * np.pi / box * shifts).astype(np.float32).T
    phases = np.empty((2, *phase.shape), dtype=np.float32)
    np.cos(phase, out=phases[0])
    np.sin(phase, out=phases[1])
    return phases


def at_all_shifts(on_rings: RingImages, phases: Singles, n_rings: int, n_indices: int) -> Singles:
    """Move every image by the same shifts and expand it in the angle: (M, 2, R, n x S)."""
    first = np.arange(len(on_rings.transfer) + 1) * phases.shape[2]
    return _moved(on_rings, first, phases, n_rings, n_indices)


def at_own_shifts(
    on_rings: RingImages, image: Indices, shift: Floats, box: int, n_rings: int, n_indices: int
) -> Singles:
    """Move images by shifts of their own and expand them in the angle: (M, 2, R, rows).

    Parameters
    ----------
    on_rings : RingImages
    image : ndarray of intp, shape (rows,)
        In ascending order.
    shift : ndarray of float64, shape (rows, 2)
    box, n_rings, n_indices : int
    """
    first = np.searchsorted(image, np.arange(len(on_rings.transfer) + 1))
    phases = phases_of_shifts(shift, box, n_rings, n_indices)
    return _moved(on_rings, first, phases, n_rings, n_indices)


def _moved(on_rings: RingImages, first: Indices, phases: Singles, n_rings: int, n_indices: int) -> Singles:
    expanded = np.empty((n_indices, 2, n_rings, first[-1]), dtype=np.float32)
    tables = _angular(phases.shape[1], n_indices)
    _move(on_rings.spectra, on_rings.start, first.astype(np.uint64), phases, tables, expanded)
    return expanded


def _every(box: int, n_rings: int, n_indices: int) -> int:
    """Fewer angles are enough for few rings: return which of them are used, the first of every so many."""
    n_angles = rings_of(box).n_angles
    # They must hold all that lies within the inscribed circle.
    most = max(n_angles // math.ceil(max(math.pi * n_rings, n_indices)), 1)
    return next(step for step in range(most, 0, -1) if n_angles % step == 0)


@kernel
def _move(spectra, start, first, phases, tables, expanded):
    # expanded (M, 2, R, rows): spectra (2, angles, rings, images) of some images, from `start` on, brought
    # back by shifts, times the tables. Each image has rows of its own, from first[i] to first[i + 1], without
    # a sign: an index that may be negative takes longer. Phases (2, A, shifts) are cosines and sines on the
    # first ring; there are as many shifts as rows, or all images have the same. There may be more angles and
    # rings of the spectra than are needed.
    _, n_angles, n_shifts = phases.shape
    every = spectra.shape[1] // n_angles
    n_rings = expanded.shape[2]
    n_rows = expanded.shape[3]
    folded = np.empty((4, n_angles // 2 + 1, n_rows), dtype=np.float32)
    product = np.empty((tables.shape[1], n_rows), dtype=np.float32)
    turn = np.empty((2, n_angles, n_shifts), dtype=np.float32)
    for j in range(n_angles):
        for s in range(n_shifts):
            turn[0, j, s] = 1
            turn[1, j, s] = 0
    for ring in range(n_rings):
        for j in range(n_angles):
            for s in range(n_shifts):
                real = turn[0, j, s]
                imaginary = turn[1, j, s]
                turn[0, j, s] = real * phases[0, j, s] - imaginary * phases[1, j, s]
                turn[1, j, s] = real * phases[1, j, s] + imaginary * phases[0, j, s]
        for j in range(folded.shape[1]):
            other = (n_angles - j) % n_angles
            # A direction that is its own mirror image counts once.
            both = np.float32(0 if other == j else 1)
            for i in range(first.size - 1):
                x = spectra[0, every * j, ring, start + i]
                y = spectra[1, every * j, ring, start + i]
                other_x = both * spectra[0, every * other, ring, start + i]
                other_y = both * spectra[1, every * other, ring, start + i]
                shared = first[i] if n_shifts < n_rows else first[0]
                for row in range(first[i], first[i + 1]):
                    s = row - shared
                    real = x * turn[0, j, s] - y * turn[1, j, s]
                    imaginary = x * turn[1, j, s] + y * turn[0, j, s]
                    other_real = other_x * turn[0, other, s] - other_y * turn[1, other, s]
                    other_imaginary = other_x * turn[1, other, s] + other_y * turn[0, other, s]
                    folded[0, j, row] = real + other_real
                    folded[1, j, row] = real - other_real
                    folded[2, j, row] = imaginary + other_imaginary
                    folded[3, j, row] = imaginary - other_imaginary
        _expand(folded, tables, product, ring, expanded)


@kernel
def _expand(folded, tables, product, ring, expanded):
    # One ring of expanded (M, 2, R, rows): products of tables (4, indices, directions) with folded samples
    # (4, directions, rows). One ring at a time stays in the processor's cache.
    n_even = (expanded.shape[0] + 1) // 2
    for quarter in range(4):
        np.dot(tables[quarter], folded[quarter], product)
        begin = 0 if quarter < 2 else n_even
        for m in range(n_even if quarter < 2 else expanded.shape[0] - n_even):
            for row in range(product.shape[1]):
                expanded[begin + m, quarter % 2, ring, row] = product[m, row]


@lru_cache(maxsize=64)
def _angular(n_angles: int, n_indices: int) -> Singles:
    """Tables from folded samples to coefficients: real and imaginary parts of even indices, then of odd ones.

    Shape (4, indices, directions). Samples are taken on half a ring; on the other half they are complex
    conjugate. So even indices are made of real parts and odd ones of imaginary parts. Cosines are the same
    or the opposite in directions that mirror each other, and so are sines: only sums and differences of such
    samples are multiplied. The factors i^m make the coefficients of `DiskBasis` real.
    """
    angle = -math.pi / 2 + math.pi * np.arange(n_angles // 2 + 1) / n_angles
    tables = np.zeros((4, (n_indices + 1) // 2, len(angle)), dtype=np.float32)
    for odd in (0, 1):
        index = np.arange(odd, n_indices, 2)
        waves = np.exp(-1j * np.outer(index, angle)) * (1j**index * 1j**odd)[:, None] / n_angles
        tables[2 * odd, : len(index)], tables[2 * odd + 1, : len(index)] = waves.real, waves.imag
    return tables
