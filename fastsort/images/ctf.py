"""The contrast transfer function, and the phase flip that reverses its changes of sign."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import scipy.fft

from fastsort._checks import InputError, check_box, check_count, check_images, check_positive
from fastsort._jit import kernel
from fastsort._types import Floats, Images, Singles
from fastsort.particles.table import CtfParameters


def contrast_transfer(ctf: CtfParameters, box: int, pixel_size: float) -> Singles:
    """Compute the contrast transfer function of each image on the half plane of a real FFT.

    Parameters
    ----------
    ctf : CtfParameters
        Arrays with one entry an image: defocus (angstrom, positive if underfocused),
        astigmatism angle and phase shift (degree), voltage (kV), spherical aberration (mm),
        amplitude contrast (fraction).
    box : int
        Side of the images in pixels.
    pixel_size : float
        Angstroms a pixel.

    Returns
    -------
    transfer : ndarray of float32, shape (n, box, box // 2 + 1)
        In [-1, 1], laid out as by ``scipy.fft.rfft2``; positive at low
        frequencies, so that a white particle keeps a white centre.

    Raises
    ------
    InputError
        If a parameter is infinite, NaN or outside its range, or the arrays differ in length.

    Notes
    -----
    The value is sin(chi) with

        chi = pi l z k^2 - pi/2 Cs l^3 k^4 + phase shift + arcsin(w),
        z = (u + v)/2 + (u - v)/2 cos(2 (theta - angle)),

    where l is the wavelength, w the amplitude contrast and theta the direction
    of the frequency from the x axis (the last axis of the image) to the y axis:
    sign and angles as in RELION, whose ``getCTF`` calls minus chi its argument
    and returns minus its sine [1]_.

    References
    ----------
    .. [1] Rohou, Grigorieff. CTFFIND4. J. Struct. Biol. 192 (2015), equations 2 to 5;
       RELION 3.1, ``src/ctf.h``.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(2, 2, box=32, ctf=True)
    >>> transfer = fs.contrast_transfer(truth.ctf, 32, truth.pixel_size)
    >>> transfer.shape
    (4, 32, 17)

    At frequency zero the function is the amplitude contrast:

    >>> [round(float(value), 3) for value in transfer[:, 0, 0]]
    [0.1, 0.1, 0.1, 0.1]
    """
    box = check_count("box", box)
    terms = phase_terms(ctf, check_positive("pixel_size", pixel_size, "A/px"))
    transfer = np.empty((len(terms), box, box // 2 + 1), dtype=np.float32)
    _contrast_transfer(terms, box, transfer)
    return transfer


@kernel
def _contrast_transfer(terms, box, transfer):
    for i in range(transfer.shape[0]):
        for row in range(transfer.shape[1]):
            y = (row if 2 * row < box else row - box) / box
            for column in range(transfer.shape[2]):
                transfer[i, row, column] = math.sin(math.pi * _half_turns(terms[i], y, column / box))


@kernel
def _half_turns(terms, y, x):
    xx = x * x
    yy = y * y
    square = xx + yy
    return terms[0] * xx + terms[1] * yy + terms[2] * x * y - terms[3] * square * square + terms[4]


def phase_flip(images: npt.ArrayLike, ctf: CtfParameters, pixel_size: float) -> Images:
    """Give every frequency of each image the sign that it has at low frequencies.

    Parameters
    ----------
    images : ndarray, shape (n, d, d)
        Never modified.
    ctf : CtfParameters
        One entry an image, as for `contrast_transfer`.
    pixel_size : float
        Angstroms a pixel of these images: after a crop, that of the cropped ones.

    Returns
    -------
    flipped : ndarray of float32, shape (n, d, d)

    Raises
    ------
    InputError
        If there are not as many parameters as images, or one is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(2, 2, box=32, ctf=True)
    >>> flipped = fs.phase_flip(images, truth.ctf, truth.pixel_size)
    >>> flipped.shape
    (4, 32, 32)

    A second flip gives the images back, but for rounding:

    >>> again = fs.phase_flip(flipped, truth.ctf, truth.pixel_size)
    >>> bool(np.abs(again - images).max() < 1e-4 * np.abs(images).max())
    True
    """
    if not (isinstance(images, np.ndarray) and images.dtype == np.float32 and images.ndim == 3):
        images = check_images(images)
    box = check_box(images.shape[1], images.shape[2])
    terms = phase_terms(ctf, check_positive("pixel_size", pixel_size, "A/px"))
    if len(terms) != len(images):
        raise InputError(
            f"ctf must hold one entry an image; got {len(terms)} for {len(images)} images: "
            "give the parameters of these images, such as ctf.of(chosen)."
        )
    spectra = scipy.fft.rfft2(images, workers=1)
    _flip_signs(terms, box, spectra)
    return scipy.fft.irfft2(spectra, s=(box, box), workers=1, overwrite_x=True)


@kernel
def _flip_signs(terms, box, spectra):
    # The sign of sin(pi t) is the parity of floor(t): no sine is taken.
    for i in range(spectra.shape[0]):
        for row in range(spectra.shape[1]):
            y = (row if 2 * row < box else row - box) / box
            for column in range(spectra.shape[2]):
                if math.floor(_half_turns(terms[i], y, column / box)) & 1:
                    spectra[i, row, column] = -spectra[i, row, column]


def phase_terms(ctf: CtfParameters, pixel_size: float) -> Floats:
    """Compute the coefficients of chi / pi as a polynomial in frequency (cycles a pixel).

    Parameters
    ----------
    ctf : CtfParameters
    pixel_size : float
        Angstroms a pixel.

    Returns
    -------
    terms : ndarray of float64, shape (n, 5)
        Of x^2, y^2, x y, -(x^2 + y^2)^2 and 1. No pixel needs the direction theta,
        because k^2 cos(2 theta) = x^2 - y^2.

    Raises
    ------
    InputError
        As for `contrast_transfer`.
    """
    names = (
        "defocus_u",
        "defocus_v",
        "defocus_angle",
        "phase_shift",
        "voltage",
        "spherical_aberration",
        "amplitude_contrast",
    )
    columns = [np.atleast_1d(np.asarray(getattr(ctf, name), dtype=np.float64)) for name in names]
    for name, column in zip(names, columns, strict=True):
        if column.shape != columns[0].shape or column.ndim != 1:
            raise InputError(
                f"ctf.{name} must hold one number an image, as ctf.{names[0]} of shape {columns[0].shape} "
                f"does; got shape {column.shape}."
            )
        if not np.isfinite(column).all():
            first = int(np.flatnonzero(~np.isfinite(column))[0])
            raise InputError(f"ctf.{name} must be finite; got {column[first]} for image {first}.")
    u, v, angle, phase_shift, voltage, aberration, amplitude = columns
    if (voltage <= 0).any():
        raise InputError(
            f"ctf.voltage must be positive; got {voltage.min():g} kV: give it in kilovolts, such as 300."
        )
    if ((amplitude < 0) | (amplitude > 1)).any():
        outside = amplitude[(amplitude < 0) | (amplitude > 1)][0]
        raise InputError(f"ctf.amplitude_contrast must be between 0 and 1; got {outside:g}.")
    volts = 1e3 * voltage
    wavelength = 12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts))
    mean = wavelength * (u + v) / 2 / pixel_size**2
    spread = wavelength * (u - v) / 2 / pixel_size**2
    double = 2 * np.deg2rad(angle)
    return np.stack(
        [
            mean + spread * np.cos(double),
            mean - spread * np.cos(double),
            2 * spread * np.sin(double),
            0.5e7 * aberration * wavelength**3 / pixel_size**4,
            phase_shift / 180 + np.arcsin(amplitude) / np.pi,
        ],
        axis=1,
    )
