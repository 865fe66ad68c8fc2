"""Classify a set: particles go in, classes come out, with an average and a rank of each."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count
from fastsort._crop import crop_operator
from fastsort._progress import Progress, part_of
from fastsort._reasons import VALID
from fastsort._types import Array, Bools, FilePath, Floats, Indices
from fastsort.images.copies import copies_by_content, copies_by_name, doubts_of_copies
from fastsort.images.prepare import ctf_to_flip, prepare_images, working_radius
from fastsort.images.work import fingerprint, work_folder
from fastsort.invariants.classes import Classification, find_classes
from fastsort.invariants.map import EMBEDDINGS
from fastsort.particles.open import open_particles
from fastsort.particles.source import Particles, choose_particles

WORKING_SIZE = 96
# Reading counts as this part of the work in the progress that a user sees.
READING = 0.3


@brief
class MapResult(NamedTuple):
    """Classes of a set of particles, and how they were reached.

    Attributes
    ----------
    classes : Classification
        Classes of the working images; shifts are in working pixels. Averages are made of distinct images,
        and their sizes count these; all else has an entry for each image.
    keep : ndarray of bool, shape (n,)
        Whether the image belongs to a class that is no junk.
    score : ndarray of float64, shape (n,)
        Score of the image's class: larger for junk, infinite for images without a class.
    pixel_size : float
        Pixel size of the class averages in angstroms; NaN if it is unknown.
    phase_flipped : bool
        Whether phases were flipped here.
    parameters : dict
        The options of the run.
    seconds : dict of str to float
        Wall time of each stage.
    doubts : tuple of str
        What looks wrong in the input, a line each, with what to do.
    """

    classes: Classification
    keep: Bools
    score: Floats
    pixel_size: float
    phase_flipped: bool
    parameters: dict[str, Any]
    seconds: dict[str, float]
    doubts: tuple[str, ...] = ()


def classify_particles(
    particles: FilePath | Array | Particles,
    *,
    diameter: float | None = None,
    n_classes: int | None = None,
    n_groups: int = 1,
    embedding: str = "auto",
    phase_flip: str = "auto",
    working_size: int | None = None,
    work: FilePath | None = None,
    keep_work: bool = False,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MapResult:
    """Divide particle images into classes, average the classes and find which of them are junk.

    Parameters
    ----------
    particles : path, ndarray (n, d, d) or Particles
        As for `open_particles`. Read once, never changed.
    diameter : float, optional
        Diameter of the particle in angstroms, as for `sort_particles`; by default 0.8 of the box.
    n_classes, n_groups, embedding
        As for `classify_images`.
    phase_flip : {"auto", "yes", "no"}
        Whether to flip phases. "auto" flips them if the source gives the defocus and does not say that they
        were flipped before.
    working_size : int, optional
        Side in pixels to which images are cropped in Fourier space, and side of the class averages; by
        default 96, or the box if that is smaller.
    work : path, optional
        Folder for temporary files of 2 bytes a working pixel; made if it is missing. By default a temporary
        folder of the system. Call again with the same folder after a run was killed, and it goes on where
        it was and gives the same bits.
    keep_work : bool
        Whether to keep the folder when all went well.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
        Random seed of the map.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    result : MapResult

    Raises
    ------
    InputError
        If the source cannot be read, a parameter is out of range, or the work folder is in use or holds
        files of anyone else.

    Notes
    -----
    Only distinct images are divided and averaged: two copies of an image in the two halves of a class would
    share their noise, and the class would seem sharper than it is. Lines that name one image, and images
    with the same pixels, get the class, the place and the alignment of the first.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(60, 0, box=32, snr=2, seed=1)
    >>> result = fs.classify_particles(images, n_classes=2, embedding="pca")
    >>> result.keep.shape, result.classes.averages.averages.shape[1:]
    ((60,), (32, 32))
    >>> bool(result.keep.mean() > 0.9)
    True
    """
    particles = open_particles(particles)
    n, box = len(particles), particles.box
    check_choice("embedding", embedding, EMBEDDINGS)
    seed = check_count("seed", seed, 0)
    size = min(box, WORKING_SIZE) if working_size is None else check_count("working_size", working_size, 16)
    operator = crop_operator(box, size)
    radius = working_radius(particles, diameter, size)
    ctf = ctf_to_flip(particles, phase_flip)
    named = copies_by_name(particles)
    images, n_distinct = particles, len(named.distinct)
    if n_classes is not None and check_count("n_classes", n_classes) > n_distinct:
        raise InputError(f"{n_classes} classes need as many images; got {n_distinct}: give fewer classes.")
    if n_distinct < n:
        images = choose_particles(particles, named.distinct)
        ctf = ctf and ctf.of(named.distinct)
    parameters = {
        "diameter": diameter,
        "n_classes": n_classes,
        "n_groups": n_groups,
        "embedding": embedding,
        "phase_flip": phase_flip,
        "working_size": size,
        "seed": seed,
    }
    # Groups come last: everything in the work folder is the same for any number of them.
    kept_for = {**parameters, "n_groups": None}
    mark = "" if work is None else fingerprint("classify", particles, kept_for)
    begin = time.perf_counter()
    with work_folder(work, fingerprint=mark, keep=keep_work) as folder:
        working, pixels, content = prepare_images(
            images,
            operator,
            folder.path("images"),
            radius=radius,
            ctf=ctf,
            n_jobs=n_jobs,
            progress=part_of(progress, 0, READING, n),
        )
        # The classes correct the amplitudes, whoever flipped the phases.
        working = replace(working, ctf=images.ctf)
        same = copies_by_content(content, pixels.codes == VALID)
        if len(same.distinct) < n_distinct:
            working = choose_particles(working, same.distinct)
        prepared = time.perf_counter()
        classes = find_classes(
            working,
            n_classes,
            stage=folder.stage,
            radius=radius,
            n_groups=n_groups,
            embedding=embedding,
            n_jobs=n_jobs,
            seed=seed,
            progress=part_of(progress, READING, 1, n),
        )
    end = time.perf_counter()
    seconds = {"read and crop": prepared - begin, "map": end - prepared, "total": end - begin}
    copies = named.followed_by(same)
    classes = _spread(classes, copies.of)
    # One more entry at the end, for images without a class.
    score = np.append(classes.ranking.score, np.inf)[classes.label]
    keep = ~np.append(classes.ranking.junk, True)[classes.label]
    doubts = (*particles.doubts, *doubts_of_copies(particles, copies.copy))
    return MapResult(classes, keep, score, working.pixel_size, ctf is not None, parameters, seconds, doubts)


def _spread(classes: Classification, of: Indices) -> Classification:
    """Return classes in which image i has what is said of image ``of[i]``."""
    places, averages = classes.map, classes.averages
    return classes._replace(
        label=classes.label[of],
        probability=classes.probability[of],
        map=places._replace(
            coordinates=places.coordinates[of], label=places.label[of], probability=places.probability[of]
        ),
        averages=averages._replace(
            angle=averages.angle[of], shift=averages.shift[of], score=averages.score[of]
        ),
    )
