"""Classify a set: particles go in, classes come out, with an average and a rank of each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count, check_workers
from fastsort._crop import crop_operator
from fastsort._progress import Progress, part_of
from fastsort._reasons import VALID
from fastsort._types import Array, Bools, FilePath, Floats, Images, Indices
from fastsort.denoise import as_taken, denoised_batches, learn_denoiser
from fastsort.images.copies import copies_by_content, copies_by_name, doubts_of_copies
from fastsort.images.prepare import ctf_to_flip, keep_images, prepare_images, working_radius
from fastsort.images.work import WorkFolder, fingerprint, work_folder
from fastsort.invariants.averages import ClassAverages
from fastsort.invariants.classes import Classification, averages_of_given, best_first, find_classes
from fastsort.invariants.map import EMBEDDINGS
from fastsort.invariants.ranking import RADIUS
from fastsort.particles.open import open_particles
from fastsort.particles.source import Particles, choose_particles

WORKING_SIZE = 96
# Reading counts as this part of the work in the progress that a user sees.
READING = 0.3
# The classes of the images as they are take this part if those of the denoised images follow. Of these, the
# parts end here: denoising, classes, averages of either division.
AS_THEY_ARE, DENOISING, DENOISED_CLASSES, FIRST_AVERAGES = 0.4, 0.2, 0.6, 0.8


@brief
class DenoisedClasses(NamedTuple):
    """Classes found among denoised images, judged by the images as they are.

    Attributes
    ----------
    classes : Classification
        As many as were sought among the images as they are, which averages and ranking are made of again. The
        map shows the denoised images. There is one group, 0, besides that of junk, -1.
    method : str
        How the images were denoised.
    predicted_error : float
        Of the denoised images, as in `Denoiser`; NaN where it is not known.
    agreement : float
        Adjusted Rand index of the two divisions of the distinct images: 1 if they are the same, about 0 if
        one says nothing of the other.
    resolution_as_they_are, resolution_denoised : float
        Resolution of the average that an image is in, median over the images: of classes found among the
        images as they are, and among the denoised ones. Either is learned anew from the images as they are,
        each class from its members alone. In angstroms, or in pixels if the pixel size is unknown; infinite
        where averages show nothing.
    """

    classes: Classification
    method: str
    predicted_error: float
    agreement: float
    resolution_as_they_are: float
    resolution_denoised: float


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
    denoised : DenoisedClasses or None
        What comes of the denoised images; None unless it was asked for.
    """

    classes: Classification
    keep: Bools
    score: Floats
    pixel_size: float
    phase_flipped: bool
    parameters: dict[str, Any]
    seconds: dict[str, float]
    doubts: tuple[str, ...] = ()
    denoised: DenoisedClasses | None = None


def classify_particles(
    particles: FilePath | Array | Particles,
    *,
    diameter: float | None = None,
    n_classes: int | None = None,
    n_groups: int = 1,
    embedding: str = "auto",
    phase_flip: str = "auto",
    working_size: int | None = None,
    denoised: bool = False,
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
    denoised : bool
        Whether to look for classes among the denoised working images too, and to compare both divisions.
    work : path, optional
        Folder for temporary files of 2 bytes a working pixel, 4 with denoised images; made if it is missing.
        By default a temporary folder of the system. Call again with the same folder after a run was killed,
        and it goes on where it was and gives the same bits.
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
        If the source cannot be read, a parameter is out of range, the work folder is in use or holds
        files of anyone else, or images cannot be denoised (see `denoise_images`) that should be.

    Notes
    -----
    Only distinct images are divided and averaged: two copies of an image in the two halves of a class would
    share their noise, and the class would seem sharper than it is. Lines that name one image, and images
    with the same pixels, get the class, the place and the alignment of the first.

    Halves of denoised images share what was learned from all of them, so that their correlation says nothing.
    Therefore averages of the images as they are judge either division.

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
    check_workers(n_jobs)
    particles = open_particles(particles)
    n, box = len(particles), particles.box
    check_choice("embedding", embedding, EMBEDDINGS)
    seed = check_count("seed", seed, 0)
    size = min(box, WORKING_SIZE) if working_size is None else check_count("working_size", working_size, 16)
    operator = crop_operator(box, size)
    radius = working_radius(particles, diameter, size)
    ctf = ctf_to_flip(particles, phase_flip)
    if denoised:
        # Refuses, now and not in the end, images whose noise is no longer what it was.
        as_taken(particles)
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
        "denoised": denoised,
        "seed": seed,
    }
    # Groups and denoised images come last: all else in the work folder is the same with and without them.
    kept_for = {**parameters, "n_groups": None, "denoised": None}
    mark = "" if work is None else fingerprint("classify", particles, kept_for)
    first = part_of(progress, 0, AS_THEY_ARE if denoised else 1, n)
    begin = time.perf_counter()
    with work_folder(work, fingerprint=mark, keep=keep_work) as folder:
        working, pixels, content = prepare_images(
            images,
            operator,
            folder.path("images"),
            radius=radius,
            ctf=ctf,
            n_jobs=n_jobs,
            progress=part_of(first, 0, READING, n),
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
            progress=part_of(first, READING, 1, n),
        )
        mapped = time.perf_counter()
        second: DenoisedClasses | None = None
        if denoised:
            second = _among_denoised(
                working,
                classes,
                folder,
                radius=RADIUS * size if radius is None else radius,
                embedding=embedding,
                n_jobs=n_jobs,
                seed=seed,
                progress=part_of(progress, AS_THEY_ARE, 1, n),
            )
    end = time.perf_counter()
    seconds = {"read and crop": prepared - begin, "map": mapped - prepared}
    if denoised:
        seconds["denoised"] = end - mapped
    seconds["total"] = end - begin
    copies = named.followed_by(same)
    classes = _spread(classes, copies.of)
    if second is not None:
        second = second._replace(classes=_spread(second.classes, copies.of))
    # One more entry at the end, for images without a class.
    score = np.append(classes.ranking.score, np.inf)[classes.label]
    keep = ~np.append(classes.ranking.junk, True)[classes.label]
    doubts = (*particles.doubts, *doubts_of_copies(particles, copies.copy))
    flipped = ctf is not None
    return MapResult(classes, keep, score, working.pixel_size, flipped, parameters, seconds, doubts, second)


def _among_denoised(
    working: Particles,
    classes: Classification,
    folder: WorkFolder,
    *,
    radius: float,
    embedding: str,
    n_jobs: int | None,
    seed: int,
    progress: Progress | None,
) -> DenoisedClasses:
    """Divide the denoised working images into as many classes, and compare this with the first division."""
    n, number = len(working), classes.map.n_classes

    def divide() -> tuple[str, float, Classification]:
        # Classes take phases as flipped wherever there is a contrast transfer function.
        taken = replace(working, corrected=None if working.ctf is None else np.ones(n, dtype=bool))
        denoiser = learn_denoiser(taken, n_jobs=n_jobs, seed=seed)
        blocks = denoised_batches(taken, denoiser, n_jobs=n_jobs, progress=part_of(progress, 0, DENOISING, n))
        images = keep_images(
            folder.path("denoised"),
            _zero_without_class(blocks, classes.label),
            n,
            working.box,
            working.pixel_size,
        )
        found = find_classes(
            images,
            number,
            radius=radius,
            embedding=embedding,
            n_jobs=n_jobs,
            seed=seed,
            progress=part_of(progress, DENOISING, DENOISED_CLASSES, n),
        )
        return denoiser.method, denoiser.error, found

    def averages_of(name: str, label: Indices, begin: float, end: float) -> ClassAverages:
        def learn() -> ClassAverages:
            counted = part_of(progress, begin, end, n)
            return averages_of_given(working, label, radius, n_jobs=n_jobs, seed=seed, progress=counted)

        averages: ClassAverages = folder.stage(name, learn)
        return averages

    method, error, found = folder.stage("denoised", divide)
    first = averages_of("first", classes.label, DENOISED_CLASSES, FIRST_AVERAGES)
    averages = averages_of("second", found.label, FIRST_AVERAGES, 1)
    label, averages, ranking = best_first(
        working, averages, found.label, found.map.coordinates, radius, n_jobs=n_jobs
    )
    group = np.where(ranking.junk, -1, 0)
    placed = (classes.label >= 0) & (label >= 0)
    return DenoisedClasses(
        found._replace(label=label, averages=averages, ranking=ranking, group=group),
        method,
        error,
        adjusted_rand_index(classes.label[placed], label[placed]),
        median_resolution(first),
        median_resolution(averages),
    )


def _zero_without_class(blocks: Iterator[Images], label: Indices) -> Iterator[Images]:
    """Yield images, zero where they have no class: they were unfit before, and stay it."""
    start = 0
    for block in blocks:
        unfit = label[start : start + len(block)] < 0
        yield np.where(unfit[:, None, None], np.float32(0), block)
        start += len(block)


def adjusted_rand_index(one: Indices, other: Indices) -> float:
    """Say how far two divisions of the same things agree, beyond what chance does.

    Parameters
    ----------
    one, other : ndarray of int, shape (n,)
        Classes from 0.

    Returns
    -------
    index : float
        1 if both put the same things together; 0 is expected of divisions that have nothing to do with each
        other.

    Notes
    -----
    Hubert, Arabie, "Comparing partitions", J. Classification 2 (1985).
    """
    table = np.zeros((one.max(initial=0) + 1, other.max(initial=0) + 1))
    np.add.at(table, (one, other), 1)
    together, first, second, pairs = (
        float((counts * (counts - 1)).sum()) / 2
        for counts in (table, table.sum(axis=1), table.sum(axis=0), table.sum())
    )
    expected, most = first * second / max(pairs, 1), (first + second) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


def median_resolution(averages: ClassAverages) -> float:
    """Return the median of the resolution of class averages, in which each class counts its members."""
    order = np.argsort(averages.resolution, kind="stable")
    members = np.cumsum(averages.size[order])
    return float(averages.resolution[order][np.searchsorted(members, members[-1] / 2)])


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
