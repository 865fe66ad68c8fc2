"""Micrographs made ready for filters: levelled, padded and transformed once."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy.ndimage import maximum_filter, median_filter, minimum_filter
from scipy.special import j0

from fastsort._types import Bools, Floats, Indices, Singles
from fastsort.images.maxima import QUARTILE, in_deviations

# Filters are curves over these frequencies, in cycles a pixel, up to the corner of the transform.
FREQUENCIES: Floats = np.linspace(0.0, 0.72, 400)
N_RINGS = 256
# The strongest structures count no more than this, in deviations of the levelled pixels.
CLIPPED = 5.0
# A border of repeated lines is not wider than this part of a side. Its lines differ by less than this part
# of what neighbouring lines of the micrograph differ by.
WIDEST_BORDER, REPEATED = 0.06, 0.3
# A row or column is odd if its mean differs so much, in robust deviations, from the median of so many.
ODD, NEIGHBOURS = 6.0, 9
# Blocks of so many pixels in width that have one value are no measurement.
FLAT = 5
# The background is not divided by a smaller share of usable pixels.
_LEAST_SMOOTHED = 1e-3


class Surface(NamedTuple):
    """A micrograph without its background.

    Attributes
    ----------
    pixels : ndarray of float32, shape (height, width)
        Mean 0, deviation 1; 0 where they are not usable.
    usable : ndarray of bool, shape (height, width)
    """

    pixels: Singles
    usable: Bools


class Plane(NamedTuple):
    """The transform of a picture, continued beyond its edges by a margin in which it is mirrored.

    Attributes
    ----------
    spectrum : ndarray of complex64, shape (padded height, padded width // 2 + 1)
    shape : (int, int)
        Of the picture.
    padded : (int, int)
    margin : int
    """

    spectrum: npt.NDArray[np.complex64]
    shape: tuple[int, int]
    padded: tuple[int, int]
    margin: int


def usable_pixels(image: Singles) -> Bools:
    """Tell which pixels of a micrograph show something.

    Parameters
    ----------
    image : ndarray of float32, shape (height, width)

    Returns
    -------
    usable : ndarray of bool, shape (height, width)
        Not those that are no numbers, nor areas of one value, nor a border in which lines are repeated, as
        programs leave it that move frames or smooth.
    """
    usable: Bools = np.isfinite(image)
    if not usable.any():
        return usable
    filled = np.where(usable, image, np.float32(np.median(image[usable])))
    # Counts of few electrons are often alike by chance, but not in a whole block.
    flat = maximum_filter(filled, FLAT, mode="nearest") == minimum_filter(filled, FLAT, mode="nearest")
    usable &= ~maximum_filter(flat, FLAT, mode="constant", cval=False)
    for axis in (0, 1):
        lines, kept = (filled, usable) if axis == 0 else (filled.T, usable.T)
        change = np.abs(np.diff(lines, axis=0)).mean(axis=1, dtype=np.float64)
        usual = float(np.median(change)) if len(change) else 0.0
        if not usual > 0:
            continue
        n = max(1, int(WIDEST_BORDER * len(change)))
        alike = change < REPEATED * usual
        leading, trailing = np.flatnonzero(alike[:n]), np.flatnonzero(alike[::-1][:n])
        if len(leading):
            kept[: leading[-1] + 2] = False
        if len(trailing):
            kept[len(kept) - trailing[-1] - 2 :] = False
    return usable


def level(image: Singles, reach: float) -> Surface | None:
    """Take the background out of a micrograph and bring it to deviation 1.

    Parameters
    ----------
    image : ndarray of float32, shape (height, width)
    reach : float
        Deviation of the Gaussian whose average counts as background, in pixels.

    Returns
    -------
    surface : Surface or None
        None where nothing is usable, or all has one value.
    """
    usable = usable_pixels(image)
    pixels = in_deviations(image, usable)
    if pixels is None:
        return None
    _even_out(pixels)
    margin = math.ceil(2 * reach)
    background = smoothed(as_plane(pixels, margin), reach)
    if not usable.all():
        share = smoothed(as_plane(usable.astype(np.float32), margin), reach)
        background /= np.maximum(share, np.float32(_LEAST_SMOOTHED))
    pixels = np.where(usable, pixels - background, np.float32(0))
    deviation = float(pixels[usable].std(dtype=np.float64))
    if not deviation > 0:
        return None
    return Surface(np.clip(pixels / np.float32(deviation), -CLIPPED, CLIPPED), usable)


def _even_out(pixels: Singles) -> None:
    """Take out what a whole row or column has beside its neighbours, as a dead one leaves it."""
    for lines in (pixels, pixels.T):
        mean = lines.mean(axis=1, dtype=np.float64)
        beside = mean - median_filter(mean, NEIGHBOURS, mode="nearest")
        usual = float(np.median(np.abs(beside))) / QUARTILE
        odd = np.abs(beside) > ODD * usual
        lines[odd] -= beside[odd, None].astype(np.float32)


def as_plane(pixels: Singles, margin: int) -> Plane:
    """Transform a picture of shape (height, width), continued by a margin on all sides."""
    height, width = pixels.shape
    padded = tuple(scipy.fft.next_fast_len(side + 2 * margin, real=True) for side in (height, width))
    widths = [(margin, whole - side - margin) for side, whole in zip((height, width), padded, strict=True)]
    spectrum = scipy.fft.rfft2(np.pad(pixels, widths, mode="symmetric"), workers=1)
    return Plane(spectrum, (height, width), (padded[0], padded[1]), margin)


def filtered(plane: Plane, curve: Floats) -> Singles:
    """Filter a picture; the curve gives the filter at `FREQUENCIES`."""
    return _back(plane, on_plane(plane.padded, curve))


def smoothed(plane: Plane, deviation: float) -> Singles:
    """Smooth a picture with a Gaussian of a deviation in pixels."""
    return filtered(plane, gaussian(deviation))


def gaussian(deviation: float) -> Floats:
    """Return the curve of a Gaussian of a deviation in pixels."""
    return np.exp(-2 * (math.pi * deviation * FREQUENCIES) ** 2)


def radial_curve(profile: Floats) -> Floats:
    """Return the curve of a filter that looks for a radial profile, given at radii of 0, 1, 2, ... pixels."""
    radius = np.arange(len(profile))
    weight = 2 * math.pi * np.maximum(radius, 0.25) * profile
    curve: Floats = j0(2 * math.pi * FREQUENCIES[:, None] * radius) @ weight
    return curve


def ring_power(planes: list[Plane], areas: list[int]) -> Floats:
    """Return the mean power of a pixel of pictures at `FREQUENCIES`; areas are their usable pixels."""
    total, count = np.zeros(N_RINGS), np.zeros(N_RINGS)
    for plane, area in zip(planes, areas, strict=True):
        ring = _rings(plane.padded).ravel()
        power = np.square(np.abs(plane.spectrum)).ravel() / max(area, 1)
        total += np.bincount(ring, power, N_RINGS)
        count += np.bincount(ring, minlength=N_RINGS)
    middles = (np.arange(N_RINGS) + 0.5) / (2 * N_RINGS)
    known = count > 0
    power = np.interp(FREQUENCIES, middles[known], total[known] / count[known])
    # What is filtered away altogether would be divided by nothing.
    floor: Floats = np.maximum(power, 1e-4 * power.max())
    return floor


def on_plane(padded: tuple[int, int], curve: Floats) -> Singles:
    """Return a curve at each place of a transform; read-only."""
    return _transfer(padded, curve.tobytes())


# The same filter meets one micrograph after the other.
@lru_cache(maxsize=4)
def _transfer(padded: tuple[int, int], curve: bytes) -> Singles:
    place, part = _places(padded)
    values = np.frombuffer(curve).astype(np.float32)
    transfer: Singles = values[place] * (1 - part) + values[place + 1] * part
    transfer.flags.writeable = False
    return transfer


def _back(plane: Plane, transfer: Singles) -> Singles:
    whole = scipy.fft.irfft2(plane.spectrum * transfer, s=plane.padded, workers=1, overwrite_x=True)
    top, (height, width) = plane.margin, plane.shape
    return np.ascontiguousarray(whole[top : top + height, top : top + width])


@lru_cache(maxsize=4)
def _places(padded: tuple[int, int]) -> tuple[Indices, Singles]:
    """Return between which `FREQUENCIES` each place of a transform lies, and how far."""
    step = FREQUENCIES[1]
    exact = _frequency(padded) / step
    place = np.minimum(exact.astype(np.intp), len(FREQUENCIES) - 2)
    return place, (exact - place).astype(np.float32)


@lru_cache(maxsize=4)
def _rings(padded: tuple[int, int]) -> Indices:
    return np.minimum((2 * N_RINGS * _frequency(padded)).astype(np.intp), N_RINGS - 1)


def _frequency(padded: tuple[int, int]) -> Floats:
    frequency: Floats = np.hypot(scipy.fft.fftfreq(padded[0])[:, None], scipy.fft.rfftfreq(padded[1]))
    return frequency
