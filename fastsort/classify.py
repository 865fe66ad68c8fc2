"""The map of a data set: particles go in, classes, their averages and a rank of each come out."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count, check_work_folder
from fastsort._crop import crop_operator
from fastsort.images.prepare import ctf_to_flip, prepare_images, working_radius
from fastsort.invariants.classes import Classification, classify_images
from fastsort.invariants.map import EMBEDDINGS
from fastsort.particles.source import Particles, open_particles

# Finer detail tells classes of single images no better.
WORKING_SIZE = 96
# Reading is this part of the work; the progress that a user sees says so.
READING = 0.3


@brief
class MapResult(NamedTuple):
    """Classes of a set of particles, and how they were reached.

    Attributes
    ----------
    classes : Classification
        Of the working images; shifts are in working pixels.
    keep : ndarray of bool, shape (n,)
        Whether the image stands in a class that is no junk.
    score : ndarray of float64, shape (n,)
        That of the class: larger for junk, infinite for images without a class.
    pixel_size : float
        Of the class averages, in angstroms; NaN where it is unknown.
    phase_flipped : bool
        Whether the phases were flipped here.
    parameters : dict
        What the run was asked for.
    seconds : dict of str to float
        Wall time of each stage.
    """

    classes: Classification
    keep: npt.NDArray[np.bool_]
    score: npt.NDArray[np.float64]
    pixel_size: float
    phase_flipped: bool
    parameters: dict[str, Any]
    seconds: dict[str, float]


def classify_particles(
    particles: str | os.PathLike[str] | npt.NDArray[Any] | Particles,
    *,
    diameter: float | None = None,
    n_classes: int | None = None,
    n_groups: int = 1,
    embedding: str = "auto",
    phase_flip: str = "auto",
    working_size: int | None = None,
    work: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> MapResult:
    """Divide particle images into classes, average the classes and say which of them are junk.

    Parameters
    ----------
    particles : path, ndarray (n, d, d) or Particles
        As for `open_particles`. Read once, never changed.
    diameter : float, optional
        Of the particle in angstroms; by default 0.8 of the box.
    n_classes, n_groups, embedding
        As for `classify_images`.
    phase_flip : {"auto", "yes", "no"}
        Whether to flip phases; "auto" does where the source knows the defocus and does not say that
        it was done.
    working_size : int, optional
        Box in pixels to which images are cropped in Fourier space, and that of the class averages; by
        default 96, or the box where that is smaller.
    work : path, optional
        Existing folder for temporary files of 2 bytes a working pixel; by default the system's.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    result : MapResult

    Raises
    ------
    InputError
        If the source cannot be read or a parameter is out of range.
    """
    particles = open_particles(particles)
    n, box = len(particles), particles.box
    check_choice("embedding", embedding, EMBEDDINGS)
    seed = check_count("seed", seed, 0)
    size = min(box, WORKING_SIZE) if working_size is None else check_count("working_size", working_size, 16)
    operator = crop_operator(box, size)
    radius = working_radius(particles, diameter, size)
    ctf = ctf_to_flip(particles, phase_flip)
    if n_classes is not None and check_count("n_classes", n_classes) > n:
        raise InputError(f"{n_classes} classes need as many images; got {n}: give fewer classes.")
    check_work_folder(work)

    def report(part: float, share: float) -> Callable[[int, int], None] | None:
        return progress and (lambda done, total: progress(round(n * (part + share * done / total)), n))

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fastsort-", dir=work) as folder:
        working, _ = prepare_images(
            particles,
            operator,
            os.path.join(folder, "images"),
            radius=radius,
            ctf=ctf,
            n_jobs=n_jobs,
            progress=report(0, READING),
        )
        prepared = time.perf_counter()
        classes = classify_images(
            working,
            n_classes,
            radius=radius,
            n_groups=n_groups,
            embedding=embedding,
            n_jobs=n_jobs,
            seed=seed,
            progress=report(READING, 1 - READING),
        )
    done = time.perf_counter()
    # One more entry at the end, for images without a class.
    score = np.append(classes.ranking.score, np.inf)[classes.label]
    keep = ~np.append(classes.ranking.junk, True)[classes.label]
    parameters = {
        "diameter": diameter,
        "n_classes": n_classes,
        "n_groups": n_groups,
        "embedding": embedding,
        "phase_flip": phase_flip,
        "working_size": size,
        "seed": seed,
    }
    seconds = {"read and crop": prepared - begin, "map": done - prepared, "total": done - begin}
    return MapResult(classes, keep, score, working.pixel_size, ctf is not None, parameters, seconds)
