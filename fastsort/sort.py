"""The whole story: particles go in, a verdict on every image comes out."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_choice, check_count, check_work_folder
from fastsort._reasons import VALID, reason_names
from fastsort.images.crop import crop_operator
from fastsort.images.prepare import ctf_to_flip, prepare_images, working_radius
from fastsort.particles.source import Particles, open_particles
from fastsort.radial.filter import CONTRASTS, PRESETS, RadialResult, check_n_peaks, radial_filter
from fastsort.subspaces.filter import SubspaceResult, check_numbers, subspace_filter

METHODS = ("radial", "subspaces")
WORKING_SIZE = 48
# Reading and cropping is most of the work; the progress that a user sees says so.
READING = 0.8


class SortResult(NamedTuple):
    """The verdict on every image, in input order, and how it was reached.

    Attributes
    ----------
    keep : ndarray of bool, shape (n,)
    score : ndarray of float64, shape (n,)
        Larger for junk; infinite for images that cannot be judged.
    reason : ndarray of str, shape (n,)
        "valid", or why the image is rejected.
    junk_probability : ndarray of float64, shape (n,)
    offset : ndarray of float32, shape (n, 2)
        Where the particle's centre lies: row and column from pixel box // 2, in input pixels. NaN with
        the subspaces method, which does not look for it.
    measurements : dict of str to ndarray
        Everything else that was measured, one entry an image.
    cut : float
        Images with a larger score are rejected.
    diameter : float
        Of the particle in angstroms; NaN where the pixel size is unknown.
    diameter_px : float
        The same in input pixels.
    diameter_estimated : bool
        Whether it was found from the data.
    contrast : str
        "bright" or "dark": of the particles in the images.
    phase_flipped : bool
        Whether the phases were flipped here.
    subspaces : SubspaceResult or None
        What was learned with the subspaces method, for working images.
    parameters : dict
        What the run was asked for.
    seconds : dict of str to float
        Wall time of each stage.
    """

    keep: npt.NDArray[np.bool_]
    score: npt.NDArray[np.float64]
    reason: npt.NDArray[np.str_]
    junk_probability: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float32]
    measurements: dict[str, npt.NDArray[Any]]
    cut: float
    diameter: float
    diameter_px: float
    diameter_estimated: bool
    contrast: str
    phase_flipped: bool
    subspaces: SubspaceResult | None
    parameters: dict[str, Any]
    seconds: dict[str, float]


def sort_particles(
    particles: str | os.PathLike[str] | npt.NDArray[Any] | Particles,
    *,
    diameter: float | None = None,
    method: str | None = None,
    preset: str = "default",
    phase_flip: str = "auto",
    contrast: str = "auto",
    working_size: int | None = None,
    n_peaks: int | None = None,
    n_subspaces: int | None = None,
    n_components: int | None = None,
    work: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SortResult:
    """Sort picked particle images into particles and junk.

    Parameters
    ----------
    particles : path, ndarray (n, d, d) or Particles
        As for `open_particles`. Read once, never changed.
    diameter : float, optional
        Of the particle in angstroms; by default it is estimated from the data.
    method : {"radial", "subspaces"}, optional
        Where the mass of the image lies, as `radial_filter`, or what the image is made of, as
        `subspace_filter`. By default radial.
    preset : {"default", "published"}
        As for the method.
    phase_flip : {"auto", "yes", "no"}
        Whether to flip phases; "auto" does where the source knows the defocus and does not say that
        it was done.
    contrast : {"auto", "bright", "dark"}
        Of the particles; of use to the radial method alone.
    working_size : int, optional
        Box in pixels to which images are cropped in Fourier space; by default 48, or the box where
        that is smaller.
    n_peaks : int, optional
        As for `radial_filter`.
    n_subspaces, n_components : int, optional
        As for `subspace_filter`.
    work : path, optional
        Existing folder for temporary files of 2 bytes a working pixel; by default the system's.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    result : SortResult

    Raises
    ------
    InputError
        If the source cannot be read or a parameter is out of range.
    """
    particles = open_particles(particles)
    n, box = len(particles), particles.box
    method = check_choice("method", method or "radial", METHODS)
    check_choice("preset", preset, PRESETS)
    check_choice("contrast", contrast, CONTRASTS)
    check_count("seed", seed, 0)
    size = min(box, WORKING_SIZE) if working_size is None else check_count("working_size", working_size, 16)
    operator = crop_operator(box, size)
    check_n_peaks(n_peaks, size)
    radius = working_radius(particles, diameter, size)
    if method == "radial":
        _refuse(method, n_subspaces=n_subspaces, n_components=n_components)
    else:
        _refuse(method, n_peaks=n_peaks, contrast=None if contrast == "auto" else contrast)
        check_numbers(n_subspaces, n_components, size)
    if method == "radial" and preset == "published" and radius is None:
        raise InputError("the published preset needs the particle's diameter: give it, in angstroms.")
    ctf = ctf_to_flip(particles, phase_flip)
    check_work_folder(work)

    def report(part: float, share: float) -> Callable[[int, int], None] | None:
        return progress and (lambda done, total: progress(round(n * (part + share * done / total)), n))

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fastsort-", dir=work) as folder:
        working, pixels = prepare_images(
            particles,
            operator,
            os.path.join(folder, "images"),
            radius=radius,
            ctf=ctf,
            n_jobs=n_jobs,
            progress=report(0, READING),
        )
        prepared = time.perf_counter()
        found: RadialResult | SubspaceResult
        if method == "radial":
            found = radial_filter(
                working,
                radius,
                n_peaks,
                preset=preset,
                contrast=contrast,
                n_jobs=n_jobs,
                seed=seed,
                progress=report(READING, 1 - READING),
            )
        else:
            found = subspace_filter(
                working,
                n_subspaces,
                n_components,
                preset=preset,
                work=folder,
                n_jobs=n_jobs,
                seed=seed,
                progress=report(READING, 1 - READING),
            )
    judged = time.perf_counter()
    parameters = {
        "diameter": diameter,
        "method": method,
        "preset": preset,
        "phase_flip": phase_flip,
        "contrast": contrast,
        "working_size": size,
        "n_peaks": n_peaks,
        "n_subspaces": n_subspaces,
        "n_components": n_components,
        "seed": seed,
    }
    seconds = {"read and crop": prepared - begin, method: judged - prepared, "total": judged - begin}
    diameter_px = 2 * (radius or found.radius) * box / size
    subspaces = found if isinstance(found, SubspaceResult) else None
    return SortResult(
        found.keep,
        found.score,
        np.where(pixels.codes == VALID, found.reason, reason_names(pixels.codes)),
        found.junk_probability,
        _offset(found, box / size),
        {**_measurements(found), "pixel_mean": pixels.mean, "pixel_std": pixels.std},
        found.cut,
        diameter_px * particles.pixel_size,
        diameter_px,
        diameter is None,
        found.contrast,
        ctf is not None,
        subspaces,
        parameters,
        seconds,
    )


def _refuse(method: str, **options: object) -> None:
    """Refuse options that would have no effect."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name} does nothing with method {method!r}: leave it out.")


def _offset(found: RadialResult | SubspaceResult, scale: float) -> npt.NDArray[np.float32]:
    if isinstance(found, RadialResult):
        return found.centre * np.float32(scale)
    return np.full((len(found.keep), 2), np.nan, dtype=np.float32)


def _measurements(found: RadialResult | SubspaceResult) -> dict[str, npt.NDArray[Any]]:
    names: tuple[str, ...] = ("factor", "log_likelihood", "excess")
    if isinstance(found, RadialResult):
        names = ("peak", "second_peak", "outlyingness", "n_clusters", "n_scattered")
    return {name: getattr(found, name) for name in names}
