"""Noise of a given spectrum."""

from __future__ import annotations

import math

import numpy as np
import scipy.fft

from fastsort._checks import check_choice
from fastsort._types import Floats, Images, Singles

SPECTRA = ("white", "radial", "decaying")

# Noise is drawn on a wider canvas, because an FFT correlates opposite edges; the margin is thrown away.
_MARGIN = 8


def noise_amplitude(spectrum: str, box: int, oversampling: float = 1.0) -> Singles:
    """Compute the amplitude of noise at each frequency, for standard deviation 1 before downsampling.

    Parameters
    ----------
    spectrum : {"white", "radial", "decaying"}
        "white": power 1. "radial": power 1 + f^2. "decaying": amplitude
        1 / sqrt(1 + (6 f)^2). f is in cycles a pixel, before downsampling.
    box : int
        Side of the images in pixels.
    oversampling : float
        How many times larger the images were before they were downsampled by a
        Fourier crop, which removes a part of their noise.

    Returns
    -------
    amplitude : ndarray of float32, shape (box, box // 2 + 1)
        White noise of deviation 1, filtered with it, is the noise.

    Notes
    -----
    "radial" is the formula in the public code of the radial-profile paper, with
    frequencies in cycles a pixel; "decaying" is the spectrum in its text (section 3.1).
    """
    check_choice("noise", spectrum, SPECTRA)
    down = scipy.fft.fftfreq(box)[:, None] / oversampling
    power = _power(spectrum, down**2 + (scipy.fft.rfftfreq(box) / oversampling) ** 2)
    return (np.sqrt(power) / oversampling / noise_gain(spectrum)).astype(np.float32)


def noise_gain(spectrum: str) -> float:
    """Return the standard deviation that white noise of deviation 1 has once it is given a spectrum."""
    fine = scipy.fft.fftfreq(256)
    return math.sqrt(_power(spectrum, fine[:, None] ** 2 + fine**2).mean())


def _power(spectrum: str, square: Floats) -> Floats:
    if spectrum == "white":
        return np.ones_like(square)
    return 1 + square if spectrum == "radial" else 1 / (1 + 36 * square)


def noise_canvas(box: int) -> int:
    """Return the side of the canvas on which noise for images of `box` pixels is drawn."""
    return int(scipy.fft.next_fast_len(box + _MARGIN, real=True))


def noise_image(rng: np.random.Generator, amplitude: Singles, box: int) -> Images:
    """Draw one image of Gaussian noise.

    Parameters
    ----------
    rng : numpy.random.Generator
    amplitude : ndarray of float32, shape (canvas, canvas // 2 + 1)
        From `noise_amplitude`, on the canvas of `noise_canvas`.
    box : int

    Returns
    -------
    image : ndarray of float32, shape (box, box)
    """
    canvas = len(amplitude)
    spectrum = scipy.fft.rfft2(rng.standard_normal((canvas, canvas), dtype=np.float32), workers=1)
    spectrum *= amplitude
    return scipy.fft.irfft2(spectrum, s=(canvas, canvas), workers=1, overwrite_x=True)[:box, :box]
