"""Ramps taken out, background brought to mean 0 and deviation 1, and images that cannot be judged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._jit import kernel
from fastsort._reasons import BAD_PIXELS, FLAT, VALID
from fastsort._types import Codes, Images, Indices, Singles

# A single pixel this many standard deviations from the mean of its image, with no neighbour half as far, is
# a defect of the detector: nothing that a microscope shows is so sharp.
HOT_PIXEL = 10.0

# A plane is taken for a ramp as far as it explains more than this part of the variance that it leaves: noise,
# neighbours and particles off the centre make planes too, and most of them explain less.
LEAST_RAMP = 0.05


class PixelStatistics(NamedTuple):
    """Statistics of the original pixels of each image.

    Attributes
    ----------
    codes : ndarray of int8, shape (n,)
        VALID, BAD_PIXELS (NaN, infinity or hot pixels) or FLAT (no variance).
    mean, std : ndarray of float32, shape (n,)
        Of all pixels; zero for images with bad pixels or without variance.
    """

    codes: Codes
    mean: Singles
    std: Singles

    def of(self, rows: Indices) -> PixelStatistics:
        """Return the statistics of some of the images."""
        return PixelStatistics(self.codes[rows], self.mean[rows], self.std[rows])


def inspect_pixels(images: Images) -> PixelStatistics:
    """Find images that cannot be judged, and set them to zero in place.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        Images with the codes BAD_PIXELS or FLAT are filled with zeros.

    Returns
    -------
    statistics : PixelStatistics
    """
    return _sweep(images, judge=True, level=False)


def subtract_ramps(images: Images) -> None:
    """Take ramps out of images in place: one side brighter than the other, as by thick ice or uneven stain.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        The mean of each stays. Of the plane that fits all its pixels best, the more is subtracted, the
        more of the variance it explains; an image without a ramp keeps its bits.
    """
    _sweep(images, judge=False, level=True)


def inspect_and_level(images: Images) -> PixelStatistics:
    """Do what `inspect_pixels` and then `subtract_ramps` do, in less time."""
    return _sweep(images, judge=True, level=True)


def _sweep(images: Images, *, judge: bool, level: bool) -> PixelStatistics:
    n, box = images.shape[:2]
    codes = np.empty(n, dtype=np.int8)
    mean = np.empty(n, dtype=np.float32)
    std = np.empty(n, dtype=np.float32)
    places = (np.arange(box) - 0.5 * (box - 1)).astype(np.float32)
    _inspect(images, places, HOT_PIXEL, LEAST_RAMP, judge, level, VALID, BAD_PIXELS, FLAT, codes, mean, std)
    return PixelStatistics(codes, mean, std)


def normalize_background(images: Images, radius: float) -> tuple[Singles, Singles]:
    """Bring the background of each image to mean 0 and standard deviation 1, in place.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
    radius : float
        Radius in pixels of the disk about pixel d // 2; the background is all that lies outside it.

    Returns
    -------
    mean, std : ndarray of float32, shape (n,)
        Of the background before. An image whose background has no variance becomes zero, with std 0.
    """
    n, box = images.shape[:2]
    offset = np.arange(box) - box // 2
    # Numbers and no list of places: sums over all pixels are vectorised.
    outside = (np.add.outer(offset**2, offset**2) > radius**2).ravel().astype(np.float64)
    mean = np.empty(n, dtype=np.float32)
    std = np.empty(n, dtype=np.float32)
    _normalize(images.reshape(n, box * box), outside, mean, std)
    return mean, std


@kernel
def _inspect(images, places, hot, least, judge, level, valid, bad_pixels, flat, codes, means, stds):
    # places: (d,), from the middle of the box, about which the terms of a plane are orthogonal. The plane is
    # fitted to all pixels: one fitted to the background alone hangs on its corners, and what it takes from
    # them tells displaced places, which are centred there, from others. A float32 sum for each row is exact
    # enough once a typical value is subtracted. The bits of floats without their sign are ordered like
    # integers, and a maximum of integers is vectorised; one of floats is not, because it must care for NaN.
    d = images.shape[1]
    # Sum over all pixels of the square of one coordinate.
    square_of_places = d * d * (d * d - 1) / 12
    for i in range(images.shape[0]):
        image = images[i]
        middle = 0.0
        for x in range(d):
            middle += image[d // 2, x]
        typical = np.float32(middle / d)
        origin = image[0, 0]
        total = 0.0
        total_x = 0.0
        total_y = 0.0
        square = 0.0
        bits = np.int32(0)
        for y in range(d):
            row = np.float32(0)
            row_x = np.float32(0)
            row_square = np.float32(0)
            for x in range(d):
                difference = image[y, x] - typical
                row += difference
                row_x += difference * places[x]
                row_square += difference * difference
                from_origin = np.float32(image[y, x] - origin)
                bits = max(bits, np.int32(from_origin.view(np.int32) & np.int32(0x7FFFFFFF)))
            total += row
            total_x += row_x
            total_y += row * places[y]
            square += row_square
        if judge:
            mean = typical + total / image.size
            std = np.sqrt(max(square - total * total / image.size, 0.0) / image.size)
            largest = np.int32(bits).view(np.float32)
            means[i] = 0
            stds[i] = 0
            if not (std < np.inf and abs(mean) < np.inf):
                codes[i] = bad_pixels
            elif largest == 0:
                codes[i] = flat
            elif largest + abs(mean - origin) > hot * std and _has_hot_pixel(image, mean, hot * std):
                codes[i] = bad_pixels
            else:
                codes[i] = valid
                means[i] = mean
                stds[i] = std
            if codes[i] != valid:
                for y in range(d):
                    for x in range(d):
                        image[y, x] = 0
                continue
        explained = (total_x * total_x + total_y * total_y) / square_of_places
        left = max(square - total * total / image.size - explained, 0.0)
        if not (level and explained > least * left):
            continue
        part = (1 - least * left / explained) / square_of_places
        slope_x = np.float32(part * total_x)
        slope_y = part * total_y
        for y in range(d):
            row = np.float32(slope_y * places[y])
            for x in range(d):
                image[y, x] -= row + slope_x * places[x]


@kernel
def _has_hot_pixel(image, mean, limit):
    d = image.shape[0]
    for y in range(d):
        for x in range(d):
            height = abs(image[y, x] - mean)
            if height <= limit:
                continue
            lonely = True
            for v in range(max(y - 1, 0), min(y + 2, d)):
                for u in range(max(x - 1, 0), min(x + 2, d)):
                    if (v != y or u != x) and abs(image[v, u] - mean) > 0.5 * height:
                        lonely = False
            if lonely:
                return True
    return False


@kernel
def _normalize(flat, outside, means, stds):
    # outside: (d * d,), 1 outside the disk and 0 within.
    n_outside = 0.0
    for j in range(len(outside)):
        n_outside += outside[j]
    for i in range(flat.shape[0]):
        image = flat[i]
        total = 0.0
        for j in range(len(image)):
            total += outside[j] * image[j]
        mean = total / n_outside
        square = 0.0
        for j in range(len(image)):
            difference = image[j] - mean
            square += outside[j] * difference * difference
        std = np.sqrt(square / n_outside)
        scale = 1 / std if std > 0 else 0.0
        for j in range(len(image)):
            image[j] = (image[j] - mean) * scale
        means[i] = mean
        stds[i] = std
