"""Noise of a given spectrum."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import scipy.fft

from fastsort._checks import check_choice

SPECTRA = ("white", "radial", "decaying")

# Noise is drawn on a wider canvas: what an FFT correlates across opposite edges is cut off.
_MARGIN = 8


def noise_amplitude(spectrum: str, box: int, oversampling: float = 1.0) -> npt.NDArray[np.float32]:
    """Amplitude of the noise at each frequency, for unit deviation before downsampling.

    Parameters
    ----------
    spectrum : {"white", "radial", "decaying"}
        Power 1; power 1 + f^2; amplitude 1 / sqrt(1 + (6 f)^2), with f in
        cycles a pixel of the images before downsampling.
    box : int
        Side of the images in pixels.
    oversampling : float
        How many times larger the images were before they were downsampled
        (Fourier-cropped): their noise loses what the crop cuts off.

    Returns
    -------
    amplitude : ndarray of float32, shape (box, box // 2 + 1)
        White noise of deviation 1, filtered with it, is the noise.

    Notes
    -----
    "radial" is the formula in the public code of the radial-profile paper,
    frequencies read in cycles a pixel; "decaying" is the spectrum that its
    text names (section 3.1).
    """
    check_choice("noise", spectrum, SPECTRA)
    down = scipy.fft.fftfreq(box)[:, None] / oversampling
    power = _power(spectrum, down**2 + (scipy.fft.rfftfreq(box) / oversampling) ** 2)
    return (np.sqrt(power) / oversampling / noise_gain(spectrum)).astype(np.float32)


def noise_gain(spectrum: str) -> float:
    """Standard deviation of white noise of deviation 1 after it is given a spectrum."""
    fine = scipy.fft.fftfreq(256)
    return math.sqrt(_power(spectrum, fine[:, None] ** 2 + fine**2).mean())


def _power(spectrum: str, square: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if spectrum == "white":
        return np.ones_like(square)
    return 1 + square if spectrum == "radial" else 1 / (1 + 36 * square)


def noise_canvas(box: int) -> int:
    """Side of the canvas on which noise for images of `box` pixels is drawn."""
    return int(scipy.fft.next_fast_len(box + _MARGIN, real=True))


def noise_image(
    rng: np.random.Generator, amplitude: npt.NDArray[np.float32], box: int
) -> npt.NDArray[np.float32]:
    """One image of Gaussian noise.

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
