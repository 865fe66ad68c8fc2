"""Rows of coefficients, in memory or in a file larger than memory, read in ascending ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from mmap import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError
from fastsort._jit import kernel
from fastsort._types import Array, Floats, Indices
from fastsort.images.batches import map_batches

# About the size of a batch. How many rows it has depends on nothing but their length.
BATCH_BYTES = 4 << 20
# Sets with at most this many numbers are computed in double precision, which costs nothing there.
SMALL = 1 << 20


def check_rows(coefficients: npt.ArrayLike, length: int | None = None) -> Array:
    """Return `coefficients` itself, not copied, if they are real (n, L)."""
    rows = coefficients if isinstance(coefficients, np.ndarray) else np.asarray(coefficients)
    if rows.dtype.kind not in "fiub":
        raise InputError(f"coefficients must be real numbers; got an array of {rows.dtype}.")
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"coefficients must have shape (n, L); got {rows.shape}: one row an image.")
    if length is not None and rows.shape[1] != length:
        raise InputError(
            f"coefficients must have {length} columns; got {rows.shape[1]}: make them with the same basis."
        )
    return rows


class Rows:
    """Rows of coefficients in memory or in a file, brought to mean 0 and variance 1 when they are used.

    Of a memory map only the name of its file is kept: tasks then carry no data, and pages that were read
    do not count as memory.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        Of products: double precision for double input and small sets, where it costs nothing.
    batch_size : int
    origin : ndarray of float64, shape (L,)
    scale : float
    """

    def __init__(self, coefficients: Array) -> None:
        self.shape = coefficients.shape
        double = coefficients.dtype.itemsize > 4 or coefficients.size <= SMALL
        self.dtype = np.dtype(np.float64 if double else np.float32)
        self.batch_size = min(8192, max(64, BATCH_BYTES // (self.dtype.itemsize * self.shape[1])))
        self.origin = np.zeros(self.shape[1])
        self.scale = 1.0
        self._source: Array | tuple[str, int, str] = coefficients
        if isinstance(coefficients, np.memmap) and isinstance(coefficients.base, mmap):
            if coefficients.flags.c_contiguous and coefficients.filename is not None:
                self._source = str(coefficients.filename), int(coefficients.offset), coefficients.dtype.str

    def __len__(self) -> int:
        return int(self.shape[0])

    def read(self, start: int, stop: int) -> Array:
        """Return rows as they are stored."""
        if not isinstance(self._source, tuple):
            return self._source[start:stop]
        path, offset, dtype = self._source
        width = self.shape[1]
        offset += start * width * np.dtype(dtype).itemsize
        return np.fromfile(path, dtype, (stop - start) * width, offset=offset).reshape(-1, width)

    def part(self, start: int, stop: int) -> Rows:
        """Return a range of the rows, with the same origin and scale."""
        some = copy(self)
        some.shape = stop - start, self.shape[1]
        if isinstance(self._source, tuple):
            path, offset, dtype = self._source
            some._source = path, offset + start * self.shape[1] * np.dtype(dtype).itemsize, dtype
        else:
            some._source = self._source[start:stop]
        return some

    def standardized(self, block: Array) -> npt.NDArray[np.floating]:
        """Return stored rows without their origin and scale, as a new array."""
        return standardized(block, self.origin, self.scale, self.dtype)

    def take(self, indices: Indices) -> npt.NDArray[np.floating]:
        """Return some rows, standardized; indices ascend."""
        parts: list[npt.NDArray[np.floating]] = [np.empty((0, self.shape[1]), dtype=self.dtype)]
        for start in range(0, len(self), self.batch_size):
            stop = min(start + self.batch_size, len(self))
            some = indices[np.searchsorted(indices, start) : np.searchsorted(indices, stop)]
            if len(some):
                parts.append(self.standardized(self.read(start, stop)[some - start]))
        return np.concatenate(parts)

    def map(
        self, function: Any, *arguments: Any, each: Sequence[Any] = (), n_jobs: int | None = None
    ) -> list[Any]:
        """Call ``function(stored rows, start, *each, *arguments)`` on every batch; results in order."""
        results = map_batches(
            function, self, *arguments, each=each, batch_size=self.batch_size, n_jobs=n_jobs
        )
        return list(results)


def standardized(
    block: Array, origin: npt.NDArray[np.floating], scale: float, dtype: npt.DTypeLike
) -> npt.NDArray[np.floating]:
    """Rows (b, L) without an origin and a scale, as a new array."""
    # In the rows' own precision: the difference may be much smaller than the origin.
    precision = np.result_type(block, np.dtype(dtype))
    moved = np.subtract(block, origin.astype(precision), order="C")
    moved *= moved.dtype.type(1 / scale)
    return moved.astype(dtype, copy=False)


def open_rows(coefficients: Array, n_jobs: int | None = None) -> tuple[Rows, Floats]:
    """Return a set of rows, and find the origin and the scale that standardize it.

    Returns
    -------
    rows : Rows
    energy : ndarray of float64, shape (n,)
        Squared length of every stored row. Not finite where a row has a NaN or an infinity; origin and
        scale do not depend on such rows.
    """
    rows = Rows(coefficients)
    # Some origin near the mean: squares about 0 would lose small deviations from a large mean.
    first = coefficients[:256]
    usable = first[np.isfinite(first).all(axis=1)]
    if len(usable):
        rows.origin = usable.mean(axis=0, dtype=np.float64)
    moments = rows.map(_moments, rows.part(0, 0), n_jobs=n_jobs)
    energy = np.concatenate([part for part, _, _ in moments])
    count = max(1, int(np.isfinite(energy).sum()))
    shift = np.sum([total for _, total, _ in moments], axis=0) / count
    square = math.fsum(part for _, _, part in moments) / count - float(shift @ shift)
    rows.origin = rows.origin + shift
    spread = math.sqrt(max(square, 0.0) / rows.shape[1])
    if spread > 1e-7 * math.sqrt(float(np.mean(rows.origin**2))):
        rows.scale = spread
    return rows, energy


def _moments(block: Array, start: int, rows: Rows) -> tuple[Floats, Floats, float]:
    with np.errstate(all="ignore"):
        moved = rows.standardized(block)
        square = squares(moved)
        along = moved @ rows.origin.astype(moved.dtype)
        energy = np.maximum(square + 2 * along + rows.origin @ rows.origin, 0)
    finite = np.isfinite(square)
    energy[~finite] = np.inf
    if not finite.all():
        moved, square = moved[finite], square[finite]
    return energy, (np.ones(len(moved), dtype=moved.dtype) @ moved).astype(np.float64), float(square.sum())


def squares(rows: npt.NDArray[np.floating]) -> Floats:
    """Squared length of rows (b, L)."""
    energy = np.empty(len(rows))
    _square(rows, energy)
    return energy


@kernel
def _square(rows, energy):
    for i in range(rows.shape[0]):
        total = 0.0
        for j in range(rows.shape[1]):
            total += rows[i, j] * rows[i, j]
        energy[i] = total
