"""Rows of coefficients, in memory or in a file larger than memory, read in ascending ranges."""

from __future__ import annotations

import math
from mmap import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError
from fastsort.images.batches import map_batches

# Rows of a batch take about this much; their number depends on the row's length alone.
BATCH_BYTES = 4 << 20
# Sets of this many numbers are computed in double precision: it costs nothing there.
SMALL = 1 << 20


def check_rows(coefficients: npt.ArrayLike, length: int | None = None) -> npt.NDArray[Any]:
    """Return coefficients itself, not copied, if they are real (n, L)."""
    rows = coefficients if isinstance(coefficients, np.ndarray) else np.asarray(coefficients)
    if rows.dtype.kind not in "fiub":
        raise InputError(f"coefficients must be real numbers; got an array of {rows.dtype}.")
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"coefficients must have shape (n, L); got {rows.shape}: one row an image.")
    if length is not None and rows.shape[1] != length:
        raise InputError(
            f"coefficients must have the {length} columns of those that taught; got {rows.shape[1]}."
        )
    return rows


class Rows:
    """Rows of coefficients in memory or in a file, brought to mean 0 and variance 1 as they are used.

    A memory map is known by its file: a task then carries no data, and pages that were read do not
    count as memory.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        Of products: double precision for double input and small sets, where it costs nothing.
    batch_size : int
    origin : ndarray of float64, shape (L,)
    scale : float
    """

    def __init__(self, coefficients: npt.NDArray[Any]) -> None:
        self.shape = coefficients.shape
        double = coefficients.dtype.itemsize > 4 or coefficients.size <= SMALL
        self.dtype = np.dtype(np.float64 if double else np.float32)
        self.batch_size = min(8192, max(64, BATCH_BYTES // (self.dtype.itemsize * self.shape[1])))
        self.origin = np.zeros(self.shape[1])
        self.scale = 1.0
        self._source: npt.NDArray[Any] | tuple[str, int, str] = coefficients
        if isinstance(coefficients, np.memmap) and isinstance(coefficients.base, mmap):
            if coefficients.flags.c_contiguous and coefficients.filename is not None:
                self._source = str(coefficients.filename), int(coefficients.offset), coefficients.dtype.str

    def __len__(self) -> int:
        return int(self.shape[0])

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows as they are stored."""
        if not isinstance(self._source, tuple):
            return self._source[start:stop]
        path, offset, dtype = self._source
        width = self.shape[1]
        offset += start * width * np.dtype(dtype).itemsize
        return np.fromfile(path, dtype, (stop - start) * width, offset=offset).reshape(-1, width)

    def prepared(self, block: npt.NDArray[Any]) -> npt.NDArray[np.floating]:
        """Return stored rows moved and scaled, as a new array."""
        precision = np.result_type(block, self.dtype)
        moved = np.subtract(block, self.origin.astype(precision), order="C")
        moved *= moved.dtype.type(1 / self.scale)
        return moved.astype(self.dtype, copy=False)

    def take(self, indices: npt.NDArray[np.intp]) -> npt.NDArray[np.floating]:
        """Return some rows moved and scaled; indices ascend."""
        parts: list[npt.NDArray[np.floating]] = [np.empty((0, self.shape[1]), dtype=self.dtype)]
        for start in range(0, len(self), self.batch_size):
            stop = min(start + self.batch_size, len(self))
            some = indices[np.searchsorted(indices, start) : np.searchsorted(indices, stop)]
            if len(some):
                parts.append(self.prepared(self.read(start, stop)[some - start]))
        return np.concatenate(parts)

    def map(self, function: Any, *arguments: Any, n_jobs: int | None = None) -> list[Any]:
        """Call ``function(stored rows, start, *arguments)`` on every batch; results in order."""
        return list(map_batches(function, self, *arguments, batch_size=self.batch_size, n_jobs=n_jobs))


def open_rows(
    coefficients: npt.NDArray[Any], n_jobs: int | None = None
) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Find the origin and the scale of a set.

    Returns
    -------
    rows : Rows
    finite : ndarray of bool, shape (n,)
        Rows without NaN and infinity; the others have no part in origin and scale.
    """
    rows = Rows(coefficients)
    moments = rows.map(_moments, n_jobs=n_jobs)
    finite = np.concatenate([part for part, _, _ in moments])
    count = max(1, int(finite.sum()))
    origin = np.sum([total for _, total, _ in moments], axis=0) / count
    # Deviations from the first mean: squares of a large origin would drown them.
    rows.origin = origin
    deviations = rows.map(_square_deviation, finite, rows, n_jobs=n_jobs)
    spread = math.sqrt(math.fsum(deviations) / count / rows.shape[1])
    if spread > 1e-7 * math.sqrt(float(np.mean(origin**2))):
        rows.scale = spread
    return rows, finite


def _moments(
    block: npt.NDArray[Any], start: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], int]:
    finite = np.isfinite(block).all(axis=1)
    some = block if finite.all() else block[finite]
    return finite, some.sum(axis=0, dtype=np.float64), len(some)


def _square_deviation(
    block: npt.NDArray[Any], start: int, finite: npt.NDArray[np.bool_], rows: Rows
) -> float:
    chosen = finite[start : start + len(block)]
    moved = np.subtract(block[chosen], rows.origin)
    return float(np.einsum("ij,ij->", moved, moved))
