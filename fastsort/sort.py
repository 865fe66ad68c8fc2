"""The whole story: particles go in, a verdict on every image comes out."""

from __future__ import annotations

import time

import numpy as np

from fastsort._checks import check_is, check_workers
from fastsort._crop import crop_operator
from fastsort._process import one_blas_thread, return_memory
from fastsort._progress import Progress, part_of
from fastsort._reasons import VALID
from fastsort._types import Array, FilePath
from fastsort.decide.copies import CONTENT, STAMP, spread
from fastsort.decide.diameter import estimate_diameter
from fastsort.decide.result import SortResult
from fastsort.decide.second_look import look_again
from fastsort.decide.settings import OPTIONS, settings_for
from fastsort.decide.verdict import check_earlier, cut_again, decide
from fastsort.decide.votes import ask_methods
from fastsort.images.content import stamps_of
from fastsort.images.copies import copies_by_content, copies_by_name, doubts_of_copies
from fastsort.images.prepare import ctf_to_flip, prepare_images, working_radius
from fastsort.images.work import fingerprint, work_folder
from fastsort.particles.open import open_particles
from fastsort.particles.source import Particles, choose_particles

STAGES = ("read and crop", "measure", "decide")
# Where in the whole work the images are read, and where they are measured; the rest is the verdict.
READ, MEASURED = 0.4, 0.8


def sort_particles(
    particles: FilePath | Array | Particles,
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
    keep_at_least: float | None = None,
    discard: int | None = None,
    fraction: float | None = None,
    unanimous: bool = False,
    keep_off_centre: bool = False,
    duplicate_distance: float | None = None,
    earlier: SortResult | None = None,
    work: FilePath | None = None,
    keep_work: bool = False,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SortResult:
    """Sort picked particle images into particles and junk.

    Parameters
    ----------
    particles : path, ndarray (n, d, d) or Particles
        As for `open_particles`. Read once, never changed.
    diameter : float, optional
        Of the particle in angstroms: of the sphere about its centre of mass that holds 95 % of its mass. By
        default it is estimated from the images that are kept.
    method : {"radial", "subspaces", "invariants"}, optional
        Asks one method only: where the mass of the image lies (`radial_filter`), what the image is made
        of (`subspace_filter`), or to which class it belongs (`invariant_filter`). By
        default all three vote.
    preset : {"default", "published"}
        As for the method, which must be named for "published".
    phase_flip : {"auto", "yes", "no"}
        Whether to flip phases. "auto" flips them where the source knows the defocus and does not say that
        it was done.
    contrast : {"auto", "bright", "dark"}
        Of the particles; only the radial method uses it.
    working_size : int, optional
        Box in pixels to which images are cropped in Fourier space. By default 36, and 48 for the
        published rules, or the box where that is smaller.
    n_peaks : int, optional
        As for `radial_filter`.
    n_subspaces, n_components : int, optional
        As for `subspace_filter`; only with the subspaces method alone.
    keep_at_least, discard, fraction : optional
        As for `cut_again`; at most one of them. By default, the threshold is the one with the best
        expected balanced accuracy, moved halfway towards keeping more (`combine_votes`).
    unanimous : bool
        Reject only what all methods reject.
    keep_off_centre : bool
        Give particles that lie off the centre, but whole in the box, the score and the probability that
        they would have in the middle.
    duplicate_distance : float, optional
        Picks of one micrograph that are closer than this, in angstroms, count as one particle, and only
        the best of them is kept. By default 20; 0 keeps them all. Segments of filaments are no duplicates
        of each other.
    earlier : SortResult, optional
        From a run with all methods, on images of the same box or, where both pixel sizes are known, of the
        same side in angstroms. Nothing is learned from the new images:
        scores, junk probabilities and the threshold mean what they meant in that run.
    work : path, optional
        Folder for temporary files of 2 bytes a working pixel; by default one of the system's. If a run
        was killed, start it again with the same folder, and it goes on where it stopped.
    keep_work : bool
        Whether the folder stays after a run without errors.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    seed : int
        Random seed.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    result : SortResult

    Raises
    ------
    InputError
        If the source cannot be read, or an option is out of range or has no effect.

    Notes
    -----
    Lines that name one image, and images with the same pixels, share the verdict of the first: nothing is
    learned from the others, and errors are estimated of distinct images. Only picks of one place are
    duplicates.

    The images are read once: cropped, phase-flipped, normalised, and their pixels measured. The methods
    work on the result. `combine_votes` turns their votes into one junk probability, with the help of
    decoys made from the set itself (`make_decoys`). `estimate_errors` estimates the errors of the verdict,
    and rejected images that form a rare view are set aside.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(80, 40, snr=0.5, box=24, junk="noise", seed=1)
    >>> result = fs.sort_particles(images)
    >>> bool(result.keep[truth.label].mean() > 0.9 and result.keep[~truth.label].mean() < 0.1)
    True
    >>> list(result.votes)
    ['radial', 'subspaces', 'invariants']
    """
    given = {name: value for name, value in locals().items() if name in OPTIONS}
    check_workers(n_jobs)
    if earlier is not None:
        check_is(earlier, SortResult, "earlier", "sort_particles")
    particles = open_particles(particles)
    settings = settings_for(particles, given)
    n, size = len(particles), settings.working_size
    operator = crop_operator(particles.box, size)
    radius = working_radius(particles, diameter, size)
    ctf = ctf_to_flip(particles, phase_flip)
    named = copies_by_name(particles)
    images = particles
    if len(named.distinct) < n:
        images = choose_particles(particles, named.distinct)
        ctf = ctf and ctf.of(named.distinct)
    learned = None
    if earlier is not None:
        check_earlier(earlier, settings, particles)
        learned = earlier.learned
    stamps = stamps_of(particles)
    mark = ""
    if work is not None:
        mark = fingerprint("sort", particles, settings.voting, learned and learned.weights)
    times = [time.perf_counter()]
    # What is learned multiplies small matrices, where threads of BLAS wait longer than they compute.
    with one_blas_thread(), work_folder(work, fingerprint=mark, keep=keep_work) as folder:
        working, pixels, content = prepare_images(
            images,
            operator,
            folder.path("images"),
            radius=radius,
            ctf=ctf,
            n_jobs=n_jobs,
            progress=part_of(progress, 0.0, READ, n),
        )
        times.append(time.perf_counter())
        same = copies_by_content(content, pixels.codes == VALID)
        if len(same.distinct) < len(content):
            working = choose_particles(working, same.distinct)
            pixels = pixels.of(same.distinct)
        copies, content = named.followed_by(same), content[named.of]
        # What is no longer needed is let go of before more is made of the same size.
        del named, same
        return_memory()
        results = ask_methods(
            working,
            settings.methods,
            radius=radius,
            learned=learned and learned.methods,
            # Decoys teach the reasons, where all methods decide.
            suspect=settings.method is not None or (learned is not None and learned.reasons is None),
            stage=folder.stage,
            work=folder.folder,
            progress=part_of(progress, READ, MEASURED, n),
            **settings.of_methods,
        )
        if settings.method is None:
            results = results.to_decide_together()
        return_memory()
        times.append(time.perf_counter())
        decided = part_of(progress, MEASURED, 1.0, n)
        verdict = decide(
            particles,
            working,
            pixels,
            results,
            settings,
            rows=copies.distinct,
            earlier=earlier,
            progress=decided,
        )
        if radius is not None:
            diameter_px = 2 * radius * (particles.box / size)
        elif earlier is not None:
            diameter_px = earlier.diameter_px
        elif preset == "published":
            # Nothing says how many of the images that are kept are particles.
            diameter_px = np.nan
        else:
            diameter_px = estimate_diameter(
                particles if len(copies.distinct) == n else choose_particles(particles, copies.distinct),
                working,
                verdict.keep,
                verdict.junk_probability,
                verdict.suspicion_code,
                contrast=results.contrast,
                phase_flipped=ctf is not None,
            )
        votes, found_contrast = results.votes, results.contrast
        subspaces = results.subspaces if method is not None else None
    times.append(time.perf_counter())
    result = SortResult(
        **verdict._asdict(),
        votes=votes,
        diameter=diameter_px * particles.pixel_size,
        diameter_px=diameter_px,
        diameter_estimated=diameter is None,
        contrast=found_contrast,
        phase_flipped=ctf is not None,
        subspaces=subspaces,
        parameters=settings.parameters,
        seconds={**dict(zip(STAGES, np.diff(times).tolist(), strict=True)), "total": times[-1] - times[0]},
        box=particles.box,
        pixel_size=particles.pixel_size,
    )
    del results, working, pixels, verdict, votes, subspaces
    return_memory()
    result = spread(result, copies, particles)
    result = look_again(particles, result, check_errors=earlier is None, n_jobs=n_jobs)
    result.measurements.update({CONTENT: content, STAMP: stamps})
    result = result._replace(doubts=(*particles.doubts, *doubts_of_copies(particles, copies.copy)))
    if progress:
        progress(n, n)
    return cut_again(result, **settings.strictness) if settings.strictness else result
