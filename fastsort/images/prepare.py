"""Images brought to the working size: cropped, phase-flipped, normalised, and kept in a temporary file."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_choice, check_positive, check_radius
from fastsort.images.batches import map_batches
from fastsort.images.crop import apply_crop
from fastsort.images.ctf import phase_flip as flip_phases
from fastsort.images.normalize import PixelStatistics, inspect_pixels, normalize_background
from fastsort.particles.mrc import MrcHeader
from fastsort.particles.source import CtfParameters, Particles, StackImages

PHASE_FLIPS = ("auto", "yes", "no")


class Prepared(NamedTuple):
    """Working images, and what was seen of the original pixels.

    Attributes
    ----------
    particles : Particles
        Working images in half precision; zero where an image is unfit. They live as long as the file.
    pixels : PixelStatistics
        Of the original images, one entry an image.
    """

    particles: Particles
    pixels: PixelStatistics


def prepare_images(
    particles: Particles,
    operator: npt.NDArray[np.float32],
    path: str | os.PathLike[str],
    *,
    radius: float | None = None,
    ctf: CtfParameters | None = None,
    n_jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Read every image once and write what the methods work on.

    Parameters
    ----------
    particles : Particles
    operator : ndarray of float32, shape (size, box)
        From `crop_operator`.
    path : path
        File to be written: 2 bytes a working pixel.
    radius : float, optional
        Of the particle, in working pixels: outside it is background. By default half the box.
    ctf : CtfParameters, optional
        To flip phases with, one entry an image.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    prepared : Prepared
    """
    n, size = len(particles), len(operator)
    with open(path, "wb") as file:
        file.truncate(n * size * size * np.dtype(np.float16).itemsize)
    pixel_size = particles.pixel_size * particles.box / size
    place = os.fspath(path)
    batches = map_batches(
        _prepare, particles, operator, ctf, pixel_size, radius, place, n_jobs=n_jobs, progress=progress
    )
    pixels = PixelStatistics(*(np.concatenate(column) for column in zip(*batches, strict=True)))
    # Read, not mapped, since mapped pages count as memory.
    header = MrcHeader(place, n, size, size, np.dtype(np.float16), 0, pixel_size)
    sections = np.arange(n, dtype=np.int32)
    stack = StackImages([header], np.zeros_like(sections), sections)
    return Prepared(Particles(stack, size, pixel_size, place), pixels)


def _prepare(
    images: npt.NDArray[np.float32],
    start: int,
    operator: npt.NDArray[np.float32],
    ctf: CtfParameters | None,
    pixel_size: float,
    radius: float | None,
    path: str,
) -> PixelStatistics:
    """Bring a batch to the working size and write it to its place; images that are unfit become zero."""
    stop = start + len(images)
    pixels = inspect_pixels(images)
    cropped = apply_crop(images, operator)
    if ctf is not None:
        cropped = flip_phases(cropped, CtfParameters(*(column[start:stop] for column in ctf)), pixel_size)
    normalize_background(cropped, 0.5 * len(operator) if radius is None else radius)
    # Beyond this, half precision is infinite; nothing that has to be judged is.
    working = np.clip(cropped, -6e4, 6e4, out=cropped).astype(np.float16)
    with open(path, "r+b") as file:
        file.seek(start * working[0].nbytes)
        file.write(working.data)
    return pixels


def working_radius(particles: Particles, diameter: float | None, size: int) -> float | None:
    """Return the radius in working pixels of a particle whose diameter is given in angstroms."""
    if diameter is None:
        return None
    diameter = check_positive("diameter", diameter, "angstrom")
    if not np.isfinite(particles.pixel_size):
        raise InputError(
            "the pixel size is unknown, so a diameter in angstroms means nothing: give the pixel size too."
        )
    return check_radius(diameter / particles.pixel_size / 2, particles.box) * size / particles.box


def ctf_to_flip(particles: Particles, phase_flip: str) -> CtfParameters | None:
    """Return the CTF with which phases must be flipped, or None where they must not.

    Parameters
    ----------
    particles : Particles
    phase_flip : {"auto", "yes", "no"}
        "auto" flips where the source knows the defocus and does not say that it was done.
    """
    check_choice("phase_flip", phase_flip, PHASE_FLIPS)
    if phase_flip == "yes" and particles.ctf is None:
        raise InputError(
            "phases cannot be flipped: the source gives no defocus, voltage, spherical aberration and "
            "amplitude contrast."
        )
    if phase_flip == "no" or (phase_flip == "auto" and _is_corrected(particles)):
        return None
    return particles.ctf


def _is_corrected(particles: Particles) -> bool:
    """Whether the STAR file says that something has dealt with the phases already."""
    if particles.star is None:
        return False
    for block in particles.star.blocks:
        for label in ("_rlnCtfDataArePhaseFlipped", "_rlnCtfDataAreCtfPremultiplied"):
            if label in block.labels and block.n_rows and np.all(block.floats(label) == 1):
                return True
    return False
