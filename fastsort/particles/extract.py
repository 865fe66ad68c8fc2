"""Images that are extracted from micrographs when they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from fastsort._checks import InputError, check_readable
from fastsort._jit import kernel
from fastsort._types import Array, Bools, Floats, Images, Indices, Numbers
from fastsort.particles.mrc import MrcHeader, widen
from fastsort.particles.store import ImageStore

# Rows of a micrograph that are read at one go, unless one image takes more: about what a cache holds.
_BAND_BYTES = 8 << 20
# A deviation this small, relative to the values themselves, is what rounding to single precision leaves.
_ROUNDING = 1e-7
# What it leaves of values below the smallest normal number, however small they are: the smallest number.
_SMALLEST = 2.0**-149


@dataclass(frozen=True, eq=False)
class MicrographImages(ImageStore):
    """Images that are extracted from micrographs when they are read.

    Attributes
    ----------
    micrographs : list of MrcHeader
        One image each; sides may differ.
    micrograph_of : ndarray of int32, shape (n,)
        Which micrograph each image is extracted from.
    x, y : ndarray of int32, shape (n,)
        The pixel of the micrograph that becomes pixel ``box // 2`` of the image.
    number_of : ndarray of int32, shape (n,)
        Of the pick in its file, counted from 0.
    box : int
        Side of an image in pixels.
    invert : bool
        Whether pixels are multiplied by -1.

    Notes
    -----
    Of each image the plane is subtracted that fits the pixels outside the disk of radius ``box / 2`` best,
    and what is left is scaled so that these pixels have mean 0 and standard deviation 1. An image without
    variance there is zero. Beyond the edge of its micrograph an image shows what lies before it, mirrored;
    one whose middle lies beyond is zero.
    """

    micrographs: list[MrcHeader]
    micrograph_of: Numbers
    x: Numbers
    y: Numbers
    number_of: Numbers
    box: int
    invert: bool = True

    def __len__(self) -> int:
        return len(self.micrograph_of)

    def name(self, index: int) -> str:
        """Return a name for messages and tables."""
        micrograph = os.path.basename(self.micrographs[self.micrograph_of[index]].path)
        return f"{self.number_of[index] + 1:06d}@{micrograph}"

    def _sides(self, indices: Any) -> tuple[Array, Array]:
        """Return height and width of the micrographs of images."""
        sides = np.array([(header.ny, header.nx) for header in self.micrographs])[self.micrograph_of[indices]]
        return sides[:, 0], sides[:, 1]

    def outside(self, indices: Any = slice(None)) -> Bools:
        """Return which images reach over an edge of their micrograph, shape (n,)."""
        height, width = self._sides(indices)
        left, top = self.x[indices] - self.box // 2, self.y[indices] - self.box // 2
        return (left < 0) | (top < 0) | (left + self.box > width) | (top + self.box > height)

    def read(self, indices: Indices) -> Images:
        """Extract from micrograph after micrograph, each from top to bottom."""
        images = np.zeros((len(indices), self.box, self.box), np.float32)
        micrograph, x, y = self.micrograph_of[indices], self.x[indices], self.y[indices]
        height, width = self._sides(indices)
        there = (np.minimum(height, width) >= self.box) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
        wanted = y - self.box // 2, x - self.box // 2
        top, left = (
            np.clip(start, 0, np.maximum(side - self.box, 0))
            for start, side in zip(wanted, (height, width), strict=True)
        )
        order = np.lexsort((top, micrograph))
        order = order[there[order]]
        ends = (np.flatnonzero(np.diff(micrograph[order])) + 1).tolist()
        for start, end in pairwise([0, *ends, len(order)] if len(order) else []):
            chosen = order[start:end]
            header = self.micrographs[micrograph[chosen[0]]]
            for image, pixels in zip(chosen.tolist(), self._windows(header, top, left, chosen), strict=True):
                if header.dtype.kind == "f" and header.dtype.itemsize == 2:
                    widen(pixels, images[image])
                else:
                    images[image] = pixels
        for image in np.flatnonzero(there & ((top != wanted[0]) | (left != wanted[1]))).tolist():
            rows = _mirrored(wanted[0][image], self.box, height[image]) - top[image]
            columns = _mirrored(wanted[1][image], self.box, width[image]) - left[image]
            images[image] = images[image][np.ix_(rows, columns)]
        starts, stops, inverse = _background(self.box)
        _level(images, starts, stops, inverse, -1.0 if self.invert else 1.0, _ROUNDING)
        return images

    def _windows(
        self,
        header: MrcHeader,
        top: Numbers,
        left: Numbers,
        chosen: Indices,
    ) -> Iterator[Array]:
        """Yield the pixels of images of one micrograph, which are sorted by their first row.

        They are read and not mapped: it takes the same time, mapped pages count as memory, and a file
        that is cut off while it is mapped ends the program.
        """
        row_bytes = header.nx * header.dtype.itemsize
        most = max(self.box, _BAND_BYTES // row_bytes)
        tops = top[chosen].tolist()
        buffer = np.empty((min(most, tops[-1] + self.box - tops[0]), header.nx), header.dtype)
        first = stop = -1
        with check_readable(header.path) as file:
            for number, row in enumerate(tops):
                if row + self.box > stop:
                    first, stop = row, row + self.box
                    for later in tops[number + 1 :]:
                        if later > stop or later + self.box > first + most:
                            break
                        stop = later + self.box
                    band = buffer[: stop - first]
                    file.seek(header.offset + first * row_bytes)
                    if file.readinto(band.data) != band.nbytes:
                        raise InputError(
                            f"{header.path} has become shorter while it was read: copy or write it again."
                        )
                column = left[chosen[number]]
                yield buffer[row - first : row - first + self.box, column : column + self.box]

    def part(self, chosen: Indices) -> ImageStore:
        """Return a store of some of the images, which knows their micrographs alone."""
        used, micrograph_of = np.unique(self.micrograph_of[chosen], return_inverse=True)
        return replace(
            self,
            micrographs=[self.micrographs[number] for number in used.tolist()],
            micrograph_of=micrograph_of.astype(np.int32),
            x=self.x[chosen],
            y=self.y[chosen],
            number_of=self.number_of[chosen],
        )

    def files(self) -> list[str]:
        """Return the paths of the micrographs."""
        return [header.path for header in self.micrographs]

    def file_of(self) -> Indices:
        """Return which micrograph each image is in."""
        return self.micrograph_of.astype(np.intp)

    def layout(self) -> list[Array]:
        """Return which image is where, and how it is extracted."""
        return [self.micrograph_of, self.x, self.y, np.array([self.box, self.invert])]

    def first_named(self) -> Indices:
        """Return for each image the first one that has the same centre in the same micrograph."""
        places = np.stack([self.micrograph_of, self.y, self.x], axis=1)
        _, first, which = np.unique(places, axis=0, return_index=True, return_inverse=True)
        return first[which.reshape(-1)]


def _mirrored(start: int, box: int, side: int) -> Indices:
    """Return places start, start + 1, ... of a line of pixels, and beyond its ends those before them."""
    places: Indices = np.arange(start, start + box, dtype=np.intp)
    return np.where(places < 0, -1 - places, np.where(places >= side, 2 * side - 1 - places, places))


def _background(box: int) -> tuple[Indices, Indices, Floats]:
    """Return where in each row the disk starts and stops, and what solves for the plane outside of it.

    The inverse, shape (3, 3), of the matrix of the normal equations turns the sums of the values, and of
    these times their offsets in x and y from pixel ``box // 2``, into the height there and the two slopes.
    """
    middle = box // 2
    offset = np.arange(box) - middle
    half = np.sqrt(box * box / 4 - offset**2).astype(np.intp)
    starts, stops = np.maximum(middle - half, 0), np.minimum(middle + half + 1, box)
    powers = np.stack([offset**0, offset, offset**2])
    upto = np.concatenate([np.zeros((3, 1), np.intp), np.cumsum(powers, axis=1)], axis=1)
    count, x, xx = (upto[:, -1:] - (upto[:, stops] - upto[:, starts])).astype(np.float64)
    normal = [
        [count.sum(), x.sum(), count @ offset],
        [x.sum(), xx.sum(), x @ offset],
        [count @ offset, x @ offset, count @ offset**2],
    ]
    return starts, stops, np.linalg.inv(np.array(normal))


@kernel
def _level(images, starts, stops, inverse, sign, rounding):
    n, box = images.shape[:2]
    middle = box // 2
    n_outside = n_inside = 0
    for v in range(box):
        n_inside += stops[v] - starts[v]
    n_outside = box * box - n_inside
    for i in range(n):
        image = images[i]
        total = 0.0
        total_x = 0.0
        total_y = 0.0
        square = 0.0
        for v in range(box):
            row = 0.0
            for u in range(starts[v]):
                value = np.float64(image[v, u])
                row += value
                total_x += value * (u - middle)
                square += value * value
            for u in range(stops[v], box):
                value = np.float64(image[v, u])
                row += value
                total_x += value * (u - middle)
                square += value * value
            total += row
            total_y += row * (v - middle)
        size = np.sqrt(square / n_outside)
        height = inverse[0, 0] * total + inverse[0, 1] * total_x + inverse[0, 2] * total_y
        slope_x = inverse[1, 0] * total + inverse[1, 1] * total_x + inverse[1, 2] * total_y
        slope_y = inverse[2, 0] * total + inverse[2, 1] * total_x + inverse[2, 2] * total_y
        square = 0.0
        for v in range(box):
            level = height + slope_y * (v - middle) - slope_x * middle
            for u in range(box):
                image[v, u] = image[v, u] - (level + slope_x * u)
            for u in range(starts[v]):
                square += np.float64(image[v, u]) * image[v, u]
            for u in range(stops[v], box):
                square += np.float64(image[v, u]) * image[v, u]
        std = np.sqrt(square / n_outside)
        scale = 0.0 if std <= rounding * size + _SMALLEST else sign / std
        for v in range(box):
            for u in range(box):
                image[v, u] = image[v, u] * scale
