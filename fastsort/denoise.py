"""Denoise: images go in, images without most of their noise come out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count
from fastsort._progress import Progress
from fastsort._types import Array, Bools, FilePath, Floats, Images, Indices
from fastsort.denoising.covariance import (
    CovarianceModel,
    covariance_batches,
    covariance_filter,
    learn_covariance,
)
from fastsort.denoising.neighbours import NeighbourModel, learn_neighbours, neighbour_batches
from fastsort.denoising.patchwise import STRENGTHS, PatchModel, learn_patchwise, patchwise_batches
from fastsort.denoising.risk import Predicted, neighbour_error, predict_error
from fastsort.denoising.spectra import Spectra, learn_spectra, ring_counts, ring_power
from fastsort.denoising.wiener import wiener, wiener_batches
from fastsort.images.ctf import contrast_transfer, phase_flip
from fastsort.particles.open import open_particles
from fastsort.particles.source import Particles, evenly_spaced
from fastsort.particles.store import ArrayImages, ImageStore
from fastsort.particles.table import CtfParameters

Model: TypeAlias = Spectra | CovarianceModel | NeighbourModel | PatchModel

OF_SETS = ("neighbours", "covariance", "wiener")
METHODS = (*OF_SETS, *STRENGTHS)
# Pixels of the images that tell the error of what learns from all images: 4096 images of 64 px.
JUDGED_PIXELS = 4096 * 64 * 64
# So many contrast transfer functions tell their mean.
N_TRANSFERS = 256
# An error whose standard error is larger is not known.
UNSURE = 0.1
# With fewer images than this, what one image says of itself may be worth more than what the others say.
FEW = 200


@brief
class Denoiser(NamedTuple):
    """What denoises the images of a set, and how well.

    Attributes
    ----------
    method : str
    model : Spectra, CovarianceModel, NeighbourModel or PatchModel
        What the method has learned.
    error : float
        Predicted mean square error inside the disk of radius d / 2, in parts of the clean images' power
        there. NaN where it is not known.
    doubt : float
        Standard error of `error`.
    compared : dict of str to float
        The predicted error of each method that was compared; only of this one where a method was given.
    snr : float
        Signal to noise of the images: power of the clean images, seen through the contrast transfer function,
        over that of the noise, in all pixels.
    noise_power : float
        Of a pixel.
    ctf_corrected : bool
        Whether the images have a contrast transfer function, which is corrected.
    """

    method: str
    model: Model
    error: float
    doubt: float
    compared: dict[str, float]
    snr: float
    noise_power: float
    ctf_corrected: bool

    @property
    def strength(self) -> float:
        """Strength of a patch method; NaN for others, which have none."""
        return self.model.strength if isinstance(self.model, PatchModel) else math.nan


def denoise_images(
    images: FilePath | Array | Particles,
    *,
    method: str | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Images:
    """Denoise images; nothing has to be set.

    Parameters
    ----------
    images : path, ndarray (n, d, d) or Particles
        As for `open_particles`; never changed. Several hundred teach what the others have in common.
    method : str, optional
        "neighbours": each image is explained by views that the set agrees on; "covariance": covariance Wiener
        filtering; "wiener": the radial Wiener filter; or a method that looks at patches, "bm3d", "ksvd",
        "tight_frame", "total_variation" or "nonlocal_means". By default the one with the least predicted
        error.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
        Of the noise with which errors are predicted, and of what is learned.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    denoised : ndarray of float32, shape (n, d, d)
        About a background of 0, in the unit and with the contrast of the images. The contrast transfer
        function is corrected where it is known. An image with a NaN or an infinity stays what it is.

    Raises
    ------
    InputError
        If the source cannot be read, a parameter is out of range, or the images were multiplied with their
        contrast transfer function.

    Notes
    -----
    `write_denoised` of `fastsort denoise` holds one batch at a time; this function returns all images.
    Denoised images are for eyes and for picking, not for reconstruction: they show what is likely, not what
    was measured.

    The sources of the methods stand in their functions: `fastsort.denoising`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(300, 0, snr=0.3, box=32, noise="white", seed=1)
    >>> denoised = fs.denoise_images(images)
    >>> denoised.shape == images.shape and bool(denoised.std() < images.std())
    True
    """
    particles = open_particles(images)
    denoiser = learn_denoiser(particles, method=method, n_jobs=n_jobs, seed=seed)
    return np.concatenate([*denoised_batches(particles, denoiser, n_jobs=n_jobs, progress=progress)])


def learn_denoiser(
    particles: Particles, *, method: str | None = None, n_jobs: int | None = None, seed: int = 0
) -> Denoiser:
    """Learn from a set how to denoise it.

    Parameters
    ----------
    particles, method, n_jobs, seed
        As for `denoise_images`.

    Returns
    -------
    denoiser : Denoiser
    """
    if method is not None:
        check_choice("method", method, METHODS)
    seed = check_count("seed", seed, 0)
    particles = as_taken(particles)
    spectra = learn_spectra(particles, n_jobs=n_jobs)
    counts = ring_counts(particles.box)
    noise, signal = float(counts @ spectra.noise), float(counts @ _seen(particles, spectra))
    learned: dict[str, tuple[Model, Predicted]] = {}
    some = _in_memory(particles) if method in (None, *OF_SETS) else particles
    if method in (None, "wiener"):
        learned["wiener"] = spectra, _predicted(wiener, some, spectra, seed)
    if method in (None, "covariance", "neighbours"):
        covariance = learn_covariance(particles, spectra=spectra, n_jobs=n_jobs)
        of_covariance = _predicted(covariance_filter, some, spectra, seed)
        learned["covariance"] = covariance, of_covariance
    if method in (None, "neighbours"):
        neighbours = learn_neighbours(
            particles, spectra=spectra, covariance=covariance, seed=seed, n_jobs=n_jobs
        )
        learned["neighbours"] = neighbours, _error_of_neighbours(neighbours, spectra, of_covariance)
    if method in STRENGTHS or (method is None and len(particles) < FEW):
        patches = learn_patchwise(particles, method or "bm3d", spectra, seed=seed)
        learned[patches.method] = patches, Predicted(patches.error, patches.doubt)
    compared = {name: _told(found) for name, (_, found) in learned.items() if method in (None, name)}
    best = method or _best(compared, len(particles))
    model, found = learned[best]
    area = counts.sum()
    return Denoiser(
        best,
        model,
        compared[best],
        found.doubt,
        compared,
        signal / noise if noise > 0 else math.nan,
        noise / area,
        particles.ctf is not None,
    )


def _told(found: Predicted) -> float:
    """Return a predicted error; NaN if it may be far from the truth."""
    return found.error if found.doubt <= UNSURE else math.nan


def _error_of_neighbours(model: NeighbourModel, spectra: Spectra, of_covariance: Predicted) -> Predicted:
    """Return the error of the neighbour filter, which is no worse than the covariance filter's."""
    if math.isnan(model.error):
        return of_covariance
    error = float(np.minimum(neighbour_error(model, spectra), of_covariance.error))
    # The same images and as much noise of our own tell both.
    return Predicted(error, of_covariance.doubt)


def _best(compared: dict[str, float], n: int) -> str:
    """Return the method with the least error; where it is not known, the one that needs most images."""
    if n >= FEW and math.isnan(compared["neighbours"]):
        return "neighbours"
    return min(compared, key=lambda name: (np.nan_to_num(compared[name], nan=np.inf), METHODS.index(name)))


def _seen(particles: Particles, spectra: Spectra) -> Floats:
    """Return the power of the clean images by ring, as far as the contrast transfer lets it through."""
    if particles.ctf is None:
        return spectra.signal
    some = evenly_spaced(len(particles), N_TRANSFERS)
    transfer = contrast_transfer(particles.ctf.of(some), particles.box, particles.pixel_size)
    return spectra.signal * ring_power(np.square(transfer)).mean(axis=0)


def _in_memory(particles: Particles) -> Particles:
    """Read some images, evenly spaced, that tell the error of what learns from all images."""
    chosen = evenly_spaced(len(particles), max(1, JUDGED_PIXELS // particles.box**2))
    ctf = None if particles.ctf is None else particles.ctf.of(chosen)
    return Particles(ArrayImages(particles.read(chosen)), particles.box, particles.pixel_size, ctf=ctf)


def _predicted(filtered: Callable[..., Images], some: Particles, spectra: Spectra, seed: int) -> Predicted:
    """Predict the error of a filter that learns from the images which it is given."""

    def denoise(images: Images) -> Images:
        return filtered(replace(some, store=ArrayImages(images)), n_jobs=1)

    return predict_error(denoise, some, spectra=spectra, n_draws=1, seed=seed)


def denoised_batches(
    particles: Particles,
    denoiser: Denoiser,
    *,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Images]:
    """Denoise a set batch by batch, in order.

    Parameters
    ----------
    particles : Particles
        The set that the denoiser was learned from, or others of the kind.
    denoiser : Denoiser
    n_jobs, progress
        As for `denoise_images`.

    Yields
    ------
    denoised : ndarray of float32, shape (m, d, d)
    """
    particles, model = as_taken(particles), denoiser.model
    if isinstance(model, NeighbourModel):
        return neighbour_batches(particles, model, n_jobs=n_jobs, progress=progress)
    if isinstance(model, CovarianceModel):
        return covariance_batches(particles, model, n_jobs=n_jobs, progress=progress)
    if isinstance(model, PatchModel):
        return patchwise_batches(particles, model, n_jobs=n_jobs, progress=progress)
    return wiener_batches(particles, model, n_jobs=n_jobs, progress=progress)


def as_taken(particles: Particles) -> Particles:
    """Return images as the microscope took them: phases that were flipped are flipped back.

    Raises
    ------
    InputError
        If images were multiplied with their contrast transfer function, or brought from several sizes to one.
    """
    if particles.table.corrections().get("CTF-premultiplied", np.zeros(1, bool)).any():
        raise InputError(
            "these images were multiplied with their contrast transfer function, which changes their noise: "
            "extract them without that, and denoise those."
        )
    if particles.rescaled is not None:
        raise InputError(
            "these images have several boxes or pixel sizes, and one stack holds one: denoise them apart."
        )
    flipped = particles.corrected
    if particles.ctf is None or flipped is None or not flipped.any():
        return particles
    store = _FlippedBack(particles.store, particles.ctf, particles.pixel_size, flipped)
    return replace(particles, store=store, corrected=None)


@dataclass(frozen=True, eq=False)
class _FlippedBack(ImageStore):
    """Images whose phases are flipped when they are read."""

    store: ImageStore
    ctf: CtfParameters
    pixel_size: float
    flipped: Bools

    def __len__(self) -> int:
        return len(self.store)

    def name(self, index: int) -> str:
        """Return a name for messages and tables."""
        return self.store.name(index)

    def read(self, indices: Indices) -> Images:
        """Read from the other store, and flip those that are flipped."""
        images = self.store.read(indices)
        flipped = np.flatnonzero(self.flipped[indices] & np.isfinite(images).all(axis=(1, 2)))
        if len(flipped):
            images[flipped] = phase_flip(images[flipped], self.ctf.of(indices[flipped]), self.pixel_size)
        return images

    def part(self, chosen: Indices) -> ImageStore:
        """Return a store of some of the images."""
        ctf = self.ctf.of(chosen)
        return _FlippedBack(self.store.part(chosen), ctf, self.pixel_size, self.flipped[chosen])

    def files(self) -> list[str]:
        """Return the paths of all files that hold pixels."""
        return self.store.files()
