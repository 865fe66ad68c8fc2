"""Patch methods on stacks: the noise made white, the strength found, the contrast transfer corrected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.fft

from fastsort._brief import brief
from fastsort._progress import Progress
from fastsort._types import Floats, Images, Singles
from fastsort.denoising.bm3d import bm3d
from fastsort.denoising.ksvd import Dictionary, ksvd, learn_dictionary
from fastsort.denoising.nonlocal_means import nonlocal_means
from fastsort.denoising.risk import predict_error
from fastsort.denoising.spectra import Spectra, noise_like, on_plane, ring_power, with_ctf
from fastsort.denoising.tight_frame import Frame, learn_frame, tight_frame
from fastsort.denoising.total_variation import total_variation
from fastsort.images.batches import map_batches
from fastsort.images.ctf import contrast_transfer
from fastsort.particles.source import Particles, evenly_spaced
from fastsort.particles.store import ArrayImages
from fastsort.particles.table import CtfParameters

Learned = Dictionary | Frame | None

# The strengths that are compared, for each method. The first is the usual one.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "bm3d": (1.0, 1.15, 1.4),
    "ksvd": (1.1, 1.2, 1.4),
    "tight_frame": (2.9, 3.5, 4.5),
    "total_variation": (1.0, 0.7, 0.5, 1.4),
    "nonlocal_means": (0.8, 1.1, 2.0, 4.0),
}
# Pixels of the images that tell the error; strengths are compared on fewer images by this factor.
JUDGED_PIXELS, JUDGED_FOR_TRIED = 512 * 64 * 64, 10
# Images that patches are learned from.
MOST_LEARNED = 2000
# Variance of the noise that is added to find what a method leaves, in parts of the images' own.
EXTRA = 0.2
# A ring's error is at least this part of its signal.
LEAST_ERROR = 1e-3


@brief
class PatchModel(NamedTuple):
    """How a patch method is used on a set.

    Attributes
    ----------
    method : str
        Of `STRENGTHS`.
    strength : float
    learned : Dictionary, Frame or None
        What was learned from patches.
    spectra : Spectra
        Of the images.
    left : ndarray of float64, shape (d // 2 + 2,)
        Power of the error that the method leaves, before the contrast transfer is corrected.
    error : float
        Predicted mean square error inside the disk, in parts of the clean images' power there.
    doubt : float
        Standard error of `error`.
    """

    method: str
    strength: float
    learned: Learned
    spectra: Spectra
    left: Floats
    error: float
    doubt: float


def learn_patchwise(
    particles: Particles,
    method: str,
    spectra: Spectra,
    *,
    ctf: CtfParameters | None = None,
    seed: int = 0,
) -> PatchModel:
    """Learn what a patch method needs, and find the strength that leaves the least error.

    Parameters
    ----------
    particles : Particles
        A few of them are denoised to compare strengths, and at most 2000 read to learn from.
    method : {"bm3d", "ksvd", "tight_frame", "total_variation", "nonlocal_means"}
    spectra : Spectra
        Of the images.
    ctf : CtfParameters, optional
        One entry an image. By default that of the set.
    seed : int

    Returns
    -------
    model : PatchModel

    Notes
    -----
    Whoever compares errors on images that are not clean needs noise of their own: `predict_error` adds some.
    """
    particles, ctf = with_ctf(particles, ctf)
    n, box = len(particles), particles.box
    learned: Learned = None
    if method in ("ksvd", "tight_frame"):
        images = particles.read(evenly_spaced(n, MOST_LEARNED))
        usable = images[np.isfinite(images).all(axis=(1, 2))]
        white = _whitened(usable if len(usable) else np.zeros_like(images[:1]), spectra)
        learned = (learn_dictionary if method == "ksvd" else learn_frame)(white, seed=seed)
    first = PatchModel(method, STRENGTHS[method][0], learned, spectra, np.zeros(box // 2 + 2), np.nan, np.inf)
    most = max(1, JUDGED_PIXELS // box**2)
    some, of_some = _some(particles, ctf, most // JUDGED_FOR_TRIED)
    models = [
        _with_error(first._replace(strength=strength), some, of_some, seed) for strength in STRENGTHS[method]
    ]
    best = min(models, key=lambda model: np.nan_to_num(model.error, nan=np.inf))
    # Few images are more or less like the others, and so is the error of the chosen strength.
    return _with_error(best, *_some(particles, ctf, most), seed)


def _some(
    particles: Particles, ctf: CtfParameters | None, most: int
) -> tuple[Particles, CtfParameters | None]:
    """Read some images, evenly spaced, that hold numbers alone."""
    chosen = evenly_spaced(len(particles), max(1, most))
    images = particles.read(chosen)
    usable = np.isfinite(images).all(axis=(1, 2))
    some = Particles(ArrayImages(images[usable]), particles.box, particles.pixel_size)
    return some, None if ctf is None else ctf.of(chosen[usable])


def _with_error(model: PatchModel, some: Particles, ctf: CtfParameters | None, seed: int) -> PatchModel:
    """Find what a method leaves at one strength, with noise of our own."""
    if not len(some):
        return model
    spectra = model.spectra
    if ctf is not None:
        model = model._replace(left=_left_over(model, some, ctf, seed))
    noisier = _noisier(model)
    found = predict_error(
        lambda images: _denoised(images, 0, ctf, noisier, some.pixel_size),
        some,
        spectra=spectra,
        ctf=ctf,
        extra=EXTRA,
        n_draws=1,
        seed=seed,
    )
    return model._replace(error=found.error, doubt=found.doubt)


def _noisier(model: PatchModel) -> PatchModel:
    """Return what denoises images to which noise was added."""
    return model._replace(spectra=model.spectra._replace(noise=model.spectra.noise * (1 + EXTRA)))


def patchwise_batches(
    particles: Particles,
    model: PatchModel,
    *,
    ctf: CtfParameters | None = None,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Images]:
    """Denoise a set with a patch method, batch by batch.

    Parameters
    ----------
    particles : Particles
    model : PatchModel
        As from `learn_patchwise`.
    ctf : CtfParameters, optional
        One entry an image. By default that of the set. It is corrected.
    n_jobs, progress
        As for `map_batches`.

    Yields
    ------
    denoised : ndarray of float32, shape (m, d, d)
        Without the background's grey value. An image with a NaN or an infinity stays what it is.

    Notes
    -----
    Images are divided by the root of the noise's spectrum, so that the noise is white and of deviation 1,
    denoised, and multiplied by it again. Where there is a contrast transfer function h, a patch method
    denoises what it leaves of the signal. A Wiener filter then divides by it: each frequency is multiplied
    by h S / (h^2 S + E), with the power S of the signal and E of the error that the method leaves.
    """
    particles, ctf = with_ctf(particles, ctf)
    return map_batches(
        _patchwise_batch,
        particles,
        model,
        particles.pixel_size,
        each=(ctf,),
        batch_size=max(1, (1 << 18) // particles.box**2),
        n_jobs=n_jobs,
        progress=progress,
    )


def _patchwise_batch(
    images: Images, start: int, ctf: CtfParameters | None, model: PatchModel, pixel_size: float
) -> Images:
    usable = np.isfinite(images).all(axis=(1, 2))
    if usable.any():
        of_usable = None if ctf is None else ctf.of(usable)
        images[usable] = _denoised(images[usable], start, of_usable, model, pixel_size)
    return images


def _denoised(
    images: Images, start: int, ctf: CtfParameters | None, model: PatchModel, pixel_size: float
) -> Images:
    box = images.shape[1]
    root = np.sqrt(on_plane(model.spectra.noise, box)).astype(np.float32)
    clean = _apply(_whitened(images, model.spectra), model)
    transforms = scipy.fft.rfft2(clean, workers=1) * root
    if ctf is not None:
        transforms *= _correction(ctf, model, box, pixel_size)
    back: Images = scipy.fft.irfft2(transforms, s=(box, box), workers=1)
    return back


def _whitened(images: Images, spectra: Spectra) -> Images:
    """Return images whose noise is white and of deviation 1, and whose background is 0."""
    box = images.shape[1]
    root = np.sqrt(on_plane(spectra.noise, box)).astype(np.float32)
    transforms = scipy.fft.rfft2(images - np.float32(spectra.background), workers=1)
    white: Images = scipy.fft.irfft2(transforms / root, s=(box, box), workers=1)
    return np.ascontiguousarray(white, np.float32)


def _apply(white: Images, model: PatchModel) -> Images:
    if isinstance(model.learned, Dictionary):
        return ksvd(white, model.learned, strength=model.strength)
    if isinstance(model.learned, Frame):
        return tight_frame(white, model.learned, threshold=model.strength)
    if model.method == "total_variation":
        return total_variation(white, model.strength)
    if model.method == "nonlocal_means":
        return nonlocal_means(white, model.strength)
    return bm3d(white, strength=model.strength)


def _correction(ctf: CtfParameters, model: PatchModel, box: int, pixel_size: float) -> Singles:
    transfer = contrast_transfer(ctf, box, pixel_size)
    signal, left = (on_plane(power, box) for power in (model.spectra.signal, model.left))
    floor = 1e-12 * max(float(signal.max()), 1e-30)
    gain: Singles = (transfer * signal / (transfer**2 * signal + left + floor)).astype(np.float32)
    return gain


def _left_over(model: PatchModel, some: Particles, ctf: CtfParameters, seed: int) -> Floats:
    """Return the power, on each ring, of the error that a method leaves in images seen through their CTF."""
    pixels, box = some.read(0, len(some)), some.box
    root = np.float32(np.sqrt(EXTRA))
    noise = noise_like(pixels, model.spectra.noise, seed, 0)
    noisier = _noisier(model)
    seen = _denoised(pixels + root * noise, 0, None, noisier, some.pixel_size)
    clean = scipy.fft.rfft2(seen, workers=1)
    second = scipy.fft.rfft2(pixels - np.float32(model.spectra.background) - noise / root, workers=1)
    transfer = np.square(contrast_transfer(ctf, box, some.pixel_size))
    area = box * box
    square = ring_power(clean).mean(axis=0) / area
    product = ring_power((clean * second.conj()).real).mean(axis=0) / area
    signal = model.spectra.signal * ring_power(transfer).mean(axis=0)
    most = np.maximum(signal, noisier.spectra.noise)
    left: Floats = np.clip(square - 2 * product + signal, LEAST_ERROR * signal, most)
    return left
