"""The error of a denoiser, predicted without clean images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.fft

from fastsort._brief import brief
from fastsort._checks import check_positive
from fastsort._types import Array, Bools, Floats, Images
from fastsort.denoising.neighbours import EXTRA, NeighbourModel
from fastsort.denoising.spectra import Spectra, learn_spectra, noise_like, ring_counts, with_ctf
from fastsort.images.ctf import contrast_transfer
from fastsort.invariants.ring_statistics import multiplicity
from fastsort.particles.source import Particles
from fastsort.particles.table import CtfParameters

# Where the contrast transfer is weaker, an image says too little of the clean one.
LEAST_TRANSFER = 0.2


@brief
class Predicted(NamedTuple):
    """A predicted error.

    Attributes
    ----------
    error : float
        Mean square error inside the disk of radius d / 2, in parts of the clean images' power there. NaN if
        the images hold no signal, or if the denoiser explains more than the spectra say there is: where
        images are full of particles up to their corners, noise and signal cannot be told apart.
    doubt : float
        Standard error of `error`, from the scatter of the images and from what is known of their power.
    """

    error: float
    doubt: float


def predict_error(
    denoise: Callable[[Images], Images],
    images: Array | Particles,
    *,
    spectra: Spectra | None = None,
    ctf: CtfParameters | None = None,
    extra: float = 0.2,
    n_draws: int = 3,
    seed: int = 0,
) -> Predicted:
    """Predict the mean square error of a denoiser on images without knowing the clean ones.

    Parameters
    ----------
    denoise : callable
        Takes images, float32 (n, d, d), and returns what it makes of them. If it learns, it should do so
        from the images that it is given; what it learned from these images before has seen their noise.
    images : ndarray, shape (n, d, d), or Particles
        A set that fits into memory. Images with a NaN or an infinity are left out.
    spectra : Spectra, optional
        Of the images; learned from them by default.
    ctf : CtfParameters, optional
        One entry an image. By default that of the set, none for an array. The denoiser is expected to
        correct it.
    extra : float
        Variance of the noise that is added, in parts of the images' own.
    n_draws : int
        How often noise is added; the mean is returned.
    seed : int
        Of the noise.

    Returns
    -------
    predicted : Predicted
        The error, and how far from the truth it may be.

    Raises
    ------
    InputError
        If the images are not a stack of squares, there are none, or a parameter is out of range.

    Notes
    -----
    The coupled bootstrap [1]_, also known as recorrupted-to-recorrupted [2]_. With a fresh draw w of the
    noise, y + sqrt(a) w and y - w / sqrt(a) have independent noise. The first is denoised to g. Then
    |g|^2 - 2 <g, second> + |x|^2 has the mean of |g - x|^2. The power |x|^2 of the clean images is taken
    from the spectra.

    The images denoised have 1 + a times the noise. The result is multiplied with the ratio of the errors of
    the Wiener filter for the noise without and with this factor.

    With a contrast transfer function h, the second is divided by h in Fourier space where h is above
    0.2; the other coefficients of each ring are taken to be like these.

    References
    ----------
    .. [1] Oliveira, Lei, Tibshirani, "Unbiased risk estimation in the normal means problem via coupled
       bootstrap techniques", arXiv:2111.09447 (2021).
    .. [2] Pang, Zheng, Quan, Ji, "Recorrupted-to-recorrupted: unsupervised deep learning for image
       denoising", CVPR (2021).

    Examples
    --------
    >>> import fastsort as fs
    >>> from fastsort.denoising.risk import predict_error
    >>> from fastsort.denoising.wiener import wiener
    >>> images, _ = fs.simulate_particles(200, 0, snr=0.2, box=32, noise="white")
    >>> bool(0 < predict_error(wiener, images).error < 1)
    True
    """
    extra = check_positive("extra", extra)
    particles, ctf = with_ctf(images, ctf)
    if spectra is None:
        spectra = learn_spectra(particles, ctf=ctf)
    pixels = particles.read(0, len(particles))
    pixels -= np.float32(spectra.background)
    box = particles.box
    usable = np.isfinite(pixels).all(axis=(1, 2))
    power = float(ring_counts(box) @ spectra.signal)
    if power <= 0 or not usable.any():
        return Predicted(math.nan, math.inf)
    transfer = None if ctf is None else contrast_transfer(ctf, box, particles.pixel_size)
    disk, root = inscribed_disk(box), np.float32(np.sqrt(extra))
    errors = []
    for draw in range(n_draws):
        noise = noise_like(pixels, spectra.noise, seed, draw)
        # The denoiser gets images that no one else holds.
        clean = np.asarray(denoise(pixels + root * noise + np.float32(spectra.background)))
        clean = np.where(disk, clean, 0)[usable]
        second = (pixels - noise / root)[usable]
        square = np.square(clean, dtype=np.float64).sum(axis=(1, 2))
        if transfer is None:
            product = (clean * second).sum(axis=(1, 2), dtype=np.float64)
        else:
            product = _products(clean, second, transfer[usable])
        errors.append(1 + (square - 2 * product) / power)
    error = float(np.mean(errors))
    scatter = float(np.std(errors) / np.sqrt(np.size(errors)))
    doubt = float(np.hypot(scatter, power_doubt(error, spectra, box)))
    if not error > 0:
        return Predicted(math.nan, doubt)
    ratio = wiener_error(spectra, box) / wiener_error(spectra, box, 1 + extra)
    return Predicted(error * ratio, doubt * ratio)


def power_doubt(error: float, spectra: Spectra, box: int) -> float:
    """Return how much the standard error of the clean images' power moves a predicted error.

    Parameters
    ----------
    error : float
        Mean square error in parts of the clean images' power.
    spectra : Spectra
        Of the images from which it was predicted.
    box : int
        Side of the images in pixels.

    Returns
    -------
    doubt : float
        In parts of the clean images' power; infinite if they show none.
    """
    power = float(ring_counts(box) @ spectra.signal)
    return (1 - error) * spectra.doubt / power if power > 0 else math.inf


def wiener_error(spectra: Spectra, box: int, noise_factor: float = 1.0) -> float:
    """Return the error of the Wiener filter on images without CTF, if the spectra are right.

    Parameters
    ----------
    spectra : Spectra
    box : int
        Side of the images in pixels.
    noise_factor : float
        Multiplies the noise.

    Returns
    -------
    error : float
        Mean square error in parts of the clean images' power.
    """
    counts, signal, noise = ring_counts(box), spectra.signal, noise_factor * spectra.noise
    return float((counts * signal * noise / (signal + noise)).sum() / (counts * signal).sum())


def neighbour_error(model: NeighbourModel, spectra: Spectra) -> float:
    """Return the error of the neighbour filter, as the coupled bootstrap has predicted it.

    Parameters
    ----------
    model : NeighbourModel
    spectra : Spectra
        Of the images.

    Returns
    -------
    error : float
        Mean square error in parts of the clean images' power; NaN where views do not help, or explain more
        than the coordinates should hold, as in images that are full of particles up to their corners.

    Notes
    -----
    What the coordinates do not describe is lost altogether. For the extra noise with which views are
    learned, the error is corrected as in `predict_error`.
    """
    covariance = model.covariance
    described = float(covariance.mean @ covariance.mean)
    described += sum(
        (1 + (m > 0)) * float(np.square(factor).sum()) for m, factor in enumerate(covariance.factors)
    )
    power = float(ring_counts(covariance.box) @ spectra.signal)
    if not (power > 0 and model.error > 0):
        return float("nan")
    error = 1 - (1 - model.error) * described / power
    if error <= 0:
        return float("nan")
    return error * wiener_error(spectra, covariance.box) / wiener_error(spectra, covariance.box, 1 + EXTRA)


def _products(clean: Images, second: Images, transfer: Array) -> Floats:
    """<clean, second / transfer> of each image, where weak transfer is left out and others count for it."""
    box = clean.shape[1]
    one = scipy.fft.rfft2(clean, norm="ortho", workers=1)
    other = scipy.fft.rfft2(second, norm="ortho", workers=1)
    # The lowest frequencies are weak in all images, and often the strongest in the particles.
    strong = np.abs(transfer) > np.minimum(LEAST_TRANSFER, np.abs(transfer).max(axis=0) / 2)
    products = np.where(strong, (one.conj() * other).real / np.where(strong, transfer, 1), 0)
    weights = multiplicity(box) * len(clean) / np.maximum(strong.sum(axis=0), 1)
    product: Floats = products.reshape(len(clean), -1).astype(np.float64) @ weights.ravel()
    return product


def inscribed_disk(box: int) -> Bools:
    """Tell which pixels lie in the disk of radius d / 2, inside which errors are measured."""
    offset = np.arange(box) - box // 2
    return np.hypot(offset[:, np.newaxis], offset) <= box / 2
