"""The radial Wiener filter: each frequency as much as it holds of the signal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.fft

from fastsort._progress import Progress
from fastsort._types import Array, Images
from fastsort.denoising.spectra import Spectra, learn_spectra, on_plane, with_ctf
from fastsort.images.batches import map_batches
from fastsort.images.ctf import contrast_transfer
from fastsort.particles.source import Particles
from fastsort.particles.table import CtfParameters


def wiener(
    images: Array | Particles,
    spectra: Spectra | None = None,
    *,
    ctf: CtfParameters | None = None,
    n_jobs: int | None = None,
) -> Images:
    """Denoise images with the radial Wiener filter, and correct their contrast transfer function.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
    spectra : Spectra, optional
        From `learn_spectra`; learned from the images by default.
    ctf : CtfParameters, optional
        One entry an image. By default that of the set, none for an array.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    denoised : ndarray of float32, shape (n, d, d)
        Without the background's grey value. An image with a NaN or an infinity stays what it is.

    Raises
    ------
    InputError
        If the images are not a stack of squares, or there are none.

    Notes
    -----
    The transform of an image is multiplied by h S / (h^2 S + N), with the contrast transfer h, the
    spectrum S of the signal and N of the noise. No other radial filter has a smaller mean square
    error [1]_.

    References
    ----------
    .. [1] Wiener, "Extrapolation, interpolation, and smoothing of stationary time series" (1949).

    Examples
    --------
    >>> import fastsort as fs
    >>> from fastsort.denoising.wiener import wiener
    >>> images, _ = fs.simulate_particles(200, 0, snr=0.2, box=32, noise="white")
    >>> denoised = wiener(images, fs.denoising.learn_spectra(images))
    >>> bool(denoised.var() < images.var())
    True
    """
    particles, ctf = with_ctf(images, ctf)
    if spectra is None:
        spectra = learn_spectra(particles, ctf=ctf, n_jobs=n_jobs)
    return np.concatenate([*wiener_batches(particles, spectra, ctf=ctf, n_jobs=n_jobs)])


def wiener_batches(
    particles: Particles,
    spectra: Spectra,
    *,
    ctf: CtfParameters | None = None,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Images]:
    """Denoise a set as `wiener` does, and yield batch after batch, in order.

    Parameters
    ----------
    particles : Particles
    spectra : Spectra
    ctf : CtfParameters, optional
        One entry an image. By default that of the set.
    n_jobs, progress
        As for `map_batches`.

    Yields
    ------
    denoised : ndarray of float32, shape (m, d, d)
    """
    particles, ctf = with_ctf(particles, ctf)
    return map_batches(
        _wiener_batch,
        particles,
        spectra,
        particles.pixel_size,
        each=(ctf,),
        n_jobs=n_jobs,
        progress=progress,
    )


def _wiener_batch(
    images: Images, start: int, ctf: CtfParameters | None, spectra: Spectra, pixel_size: float
) -> Images:
    box = images.shape[1]
    usable = np.isfinite(images).all(axis=(1, 2))
    signal, noise = on_plane(spectra.signal, box), on_plane(spectra.noise, box)
    some = images[usable] - np.float32(spectra.background)
    transforms = scipy.fft.rfft2(some, workers=1)
    if ctf is None:
        transforms *= (signal / (signal + noise)).astype(np.float32)
    else:
        transfer = contrast_transfer(ctf.of(usable), box, pixel_size)
        transforms *= (transfer * signal / (transfer**2 * signal + noise)).astype(np.float32)
    images[usable] = scipy.fft.irfft2(transforms, s=(box, box), workers=1, overwrite_x=True)
    return images
