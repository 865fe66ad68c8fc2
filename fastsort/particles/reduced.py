"""Whole micrographs, reduced to a working pixel size while they are read."""

from __future__ import annotations

from dataclasses import dataclass
from io import BufferedReader

import numpy as np

from fastsort._checks import InputError, check_readable
from fastsort._types import Array, Singles
from fastsort.particles.mrc import MrcHeader

# Rows that are read at one go: about what a cache holds.
_BAND_BYTES = 8 << 20
# So many rows tell what values are usual; others count no more than this, in robust deviations.
_ROWS_SAMPLED, _STRONGEST = 64, 8.0
# The quartiles of a Gaussian are so many deviations apart.
_QUARTILES_APART = 1.349


def read_reduced(header: MrcHeader, binning: int) -> Singles:
    """Read a micrograph and average blocks of its pixels.

    Parameters
    ----------
    header : MrcHeader
        Of one image.
    binning : int
        Side of a block in pixels. Rows and columns that fill no block are left out.

    Returns
    -------
    image : ndarray of float32, shape (ny // binning, nx // binning)
        Pixel i covers the pixels from ``i * binning`` on. NaN where no pixel of a block is finite. Hot and
        dead pixels count no more than 8 robust deviations from the median of a sample of rows.

    Raises
    ------
    InputError
        If the file cannot be read, or has become shorter.
    """
    height, width = header.ny // binning, header.nx // binning
    image = np.empty((height, width), np.float32)
    row_bytes = header.nx * header.dtype.itemsize
    rows = max(1, _BAND_BYTES // (row_bytes * binning))
    with check_readable(header.path) as file:
        limits = _usual_values(file, header) if binning > 1 else None
        file.seek(header.offset)
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            band = np.empty(((stop - start) * binning, header.nx), header.dtype)
            try:
                n_read = file.readinto(band.data)
            except OSError as error:
                raise InputError(f"cannot read {header.path}: {error.strerror}.") from None
            if n_read != band.nbytes:
                raise InputError(
                    f"{header.path} has become shorter while it was read: copy or write it again."
                )
            if limits is not None:
                np.clip(band, *limits, out=band)
            image[start:stop] = block_averages(band, binning)
    return image


def _usual_values(file: BufferedReader, header: MrcHeader) -> tuple[Array, Array] | None:
    """Return the least and the largest value that count, in the micrograph's own type; None for all."""
    row_bytes = header.nx * header.dtype.itemsize
    rows = []
    for number in np.linspace(0, header.ny - 1, min(header.ny, _ROWS_SAMPLED)).astype(np.intp).tolist():
        file.seek(header.offset + number * row_bytes)
        data = file.read(row_bytes)
        if len(data) == row_bytes:
            rows.append(np.frombuffer(data, header.dtype))
    values = np.concatenate(rows).astype(np.float64) if rows else np.empty(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    reach = _STRONGEST * (high - low) / _QUARTILES_APART
    if not reach > 0:
        return None
    ends = np.array([middle - reach, middle + reach])
    if header.dtype.kind != "f":
        about = np.iinfo(header.dtype)
        ends = np.clip(np.array([np.floor(ends[0]), np.ceil(ends[1])]), about.min, about.max)
    elif header.dtype.itemsize == 2:
        ends = np.clip(ends, np.finfo(np.float16).min, np.finfo(np.float16).max)
    least, most = ends.astype(header.dtype)
    return least, most


def block_averages(image: Array, binning: int) -> Singles:
    """Average blocks of pixels; NaN where none of a block is finite.

    Parameters
    ----------
    image : ndarray, shape (height, width)
        Rows and columns that fill no block are left out.
    binning : int
        Side of a block in pixels.

    Returns
    -------
    averages : ndarray of float32, shape (height // binning, width // binning)
    """
    height, width = (side // binning * binning for side in image.shape)
    band = image[:height, :width]
    blocks = (height // binning, binning, width)
    # Whole rows are added first: that is one long sum, which the processor does several numbers at a time.
    with np.errstate(over="ignore", invalid="ignore"):
        rows = band.reshape(blocks).sum(axis=1, dtype=np.float32)
        sums = rows.reshape(len(rows), -1, binning).sum(axis=2)
    if np.isfinite(sums).all():
        return (sums / np.float32(binning**2)).astype(np.float32)
    finite = np.isfinite(band)
    count = finite.reshape(blocks).sum(axis=1).reshape(len(rows), -1, binning).sum(axis=2)
    # In double precision: values may be large.
    rows = np.where(finite, band, 0).astype(np.float64).reshape(blocks).sum(axis=1)
    sums = rows.reshape(len(rows), -1, binning).sum(axis=2)
    averages: Singles = np.where(count > 0, sums / np.maximum(count, 1), np.nan).astype(np.float32)
    return averages


class Unread(str):
    """Why a micrograph could not be read."""


@dataclass(frozen=True, eq=False)
class ReducedMicrographs:
    """Micrographs that are read one at a time and reduced.

    Attributes
    ----------
    headers : list of MrcHeader
    binning : int
        As for `read_reduced`.
    """

    headers: list[MrcHeader]
    binning: int

    def __len__(self) -> int:
        return len(self.headers)

    def read(self, start: int, stop: int) -> list[Singles | Unread]:
        """Return the images of a range; in place of one that cannot be read, the reason."""
        images: list[Singles | Unread] = []
        for header in self.headers[start:stop]:
            try:
                images.append(read_reduced(header, self.binning))
            except InputError as error:
                images.append(Unread(error))
        return images

    def part(self, start: int, stop: int) -> ReducedMicrographs:
        """Return a range alone."""
        return ReducedMicrographs(self.headers[start:stop], self.binning)
