"""Labelled stacks: particles and junk, in random order, with the truth about every image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._checks import InputError, check_box, check_choice, check_count, check_positive
from fastsort.images.ctf import contrast_transfer
from fastsort.particles.source import CtfParameters
from fastsort.simulate import junk as contaminants
from fastsort.simulate.noise import SPECTRA, noise_amplitude, noise_canvas, noise_gain, noise_image
from fastsort.simulate.phantoms import (
    PHANTOMS,
    Extent,
    load_volume,
    phantom_blobs,
    phantom_volume,
    volume_extent,
)
from fastsort.simulate.projections import (
    Projector,
    check_volume,
    images_at,
    prepare_volume,
    project_spectra,
    random_rotation,
)
from fastsort.simulate.recipes import PAPER_BOX, find_recipe, particle_shifts

SNR_DEFINITIONS = ("mean", "power", "white_power", "image_power")

# What is independent of how many images there are has a stream of its own.
_ORDER, _MICROGRAPHS, _CALIBRATION, _SCENE, _GEOMETRY, _PIXELS = range(6)
_CALIBRATION_VIEWS = 400
_BLOCK = 256
_VICINITY = 65 / PAPER_BOX
_UNKNOWN_DIAMETER = 250.0
_PHANTOM_VOXELS = 96


@brief
class Truth(NamedTuple):
    """What is known of every simulated image.

    Attributes
    ----------
    label : ndarray of bool, shape (n,)
        True for a good particle.
    kind : ndarray of str, shape (n,)
        "good", or the kind of junk.
    shift : ndarray of float64, shape (n, 2)
        Where the particle's centre of mass lies, as (y, x) in pixels from
        pixel box // 2; of two particles, the first. NaN where there is none.
    angle : ndarray of float64, shape (n,)
        In-plane rotation in degrees, from the x to the y axis. NaN where there is none.
    rotation : ndarray of float64, shape (n, 3, 3)
        As for `project_volume`. NaN where there is none.
    ctf : CtfParameters or None
        One entry an image.
    micrograph : ndarray of intp, shape (n,)
        Never falling.
    pixel_size : float
        Angstroms a pixel.
    diameter : float
        The particle's, in angstroms.
    """

    label: npt.NDArray[np.bool_]
    kind: npt.NDArray[np.str_]
    shift: npt.NDArray[np.float64]
    angle: npt.NDArray[np.float64]
    rotation: npt.NDArray[np.float64]
    ctf: CtfParameters | None
    micrograph: npt.NDArray[np.intp]
    pixel_size: float
    diameter: float


class Simulation(NamedTuple):
    """A planned stack: everything but the pixels.

    A body is one particle in one image: there are two where `kind` is "multiple",
    each then weighted by `pair_weight`. `gain` scales projections so that the
    quantity of the signal-to-noise ratio is 1.
    """

    truth: Truth
    box: int
    seed: int
    projector: Projector
    body_image: npt.NDArray[np.intp]
    body_rotation: npt.NDArray[np.float64]
    body_shift: npt.NDArray[np.float64]
    pair_weight: float
    gain: float
    particle_deviation: float
    noise_deviation: float
    noise_amplitude: npt.NDArray[np.float32]
    scene: npt.NDArray[np.float32] | None
    normalize: bool
    sign: int


def simulate_particles(
    n_good: int = 1000,
    n_junk: int = 1000,
    *,
    snr: float = 0.02,
    box: int = 64,
    volume: npt.ArrayLike | str | os.PathLike[str] = "globular",
    pixel_size: float | None = None,
    fill: float | None = None,
    junk: str | Sequence[str] = "paper",
    ctf: bool = False,
    n_micrographs: int = 24,
    noise: str | None = None,
    snr_definition: str | None = None,
    source_box: int | None = None,
    centring: float | None = None,
    normalize: bool | None = None,
    contrast: str = "bright",
    seed: int = 0,
) -> tuple[npt.NDArray[np.float32], Truth]:
    """Simulate a stack of particles and junk, and say which is which.

    Parameters
    ----------
    n_good, n_junk : int
        Particles, and images of junk in equal parts of every kind. They are
        interleaved at random.
    snr : float
        Signal-to-noise ratio of the good particles, as `snr_definition` says;
        ``math.inf`` makes clean images.
    box : int
        Side of the images in pixels.
    volume : ndarray (d, d, d), path, or {"globular", "elongated", "shell", "two-lobed"}
        What to project: a density [z, y, x], an MRC file, or a built-in phantom.
        It is centred on its mass and resampled to the images' pixel size.
    pixel_size : float, optional
        Angstroms a pixel. By default what `fill` makes it.
    fill : float, optional
        The particle's diameter in parts of the box. By default the recipe's,
        or what `pixel_size` makes it; with both given, the particle is scaled.
        A density of unknown voxel size counts as a particle of 250 A.
    junk : {"paper", "all", "ppca"} or sequence of kinds
        A recipe (see Notes), or some of "noise", "partial", "multiple",
        "off-centre", "ice", "carbon", "texture", "photograph" and "hot_pixels",
        made as in "all".
    ctf : bool
        Whether the particles are seen through a contrast transfer function:
        300 kV, 2.7 mm, amplitude contrast 0.1, defocus 1.0 to 2.5 um with
        300 A of astigmatism, one function a micrograph. Not phase-flipped.
    n_micrographs : int
        Over how many micrographs the images are spread, in order.
    noise : {"white", "radial", "decaying"}, optional
        Spectrum, as in `noise_amplitude`; by default the recipe's.
    snr_definition : {"mean", "power", "white_power", "image_power"}, optional
        "mean": mean of the clean particle images in their central 65/85, over
        the noise's standard deviation. "power": variance of the clean particles
        inside their disk over the noise's variance. "white_power": over the
        variance of the white noise before it is given its spectrum, which takes
        3/4 of it away from "decaying" noise. "image_power": as "power", but
        over the whole image. One number for the set, from 400 views of it.
        By default the recipe's.
    source_box : int, optional
        The images count as made with this many pixels a side and downsampled
        to `box`: noise and its part in `snr` are those of the larger image. By
        default the recipe's, or `box` where that is more.
    centring : float, optional
        Standard deviation of a good particle's shift on each axis, in parts of
        the box; by default the recipe's.
    normalize : bool, optional
        Whether every noisy image gets mean 0 and deviation 1 outside the
        particle's disk; by default the recipe's.
    contrast : {"bright", "dark"}
        Of the particles.
    seed : int
        The same seed gives the same bits.

    Returns
    -------
    images : ndarray of float32, shape (n_good + n_junk, box, box)
    truth : Truth
        One entry an image.

    Raises
    ------
    InputError
        If a parameter is out of range or a volume cannot be used.

    Notes
    -----
    "paper" is the public code of [1]_, section 3.1: images of 85 px whose
    particle fills 0.57, downsampled; SNR "mean", noise "radial"; thirds of
    noise, of partial particles (shifted by 0.25 to 0.66 of the box along each
    axis, either way) and of means of two particles (0.10 to 0.66). The text's
    noise is "decaying".

    "ppca" is [2]_, section 4.1 (call it with five times as many particles as
    junk): SNR "image_power", white noise; halves of noise and of cuts of a
    photograph, here a synthetic scene as strong as the particles. The paper's
    "small shifts" are those of "all".

    "all" is a hard recipe of ours, meant for ``ctf=True`` and ``snr=1 / 20``:
    SNR "power", noise "decaying" and added after the CTF, box 1.5 times the
    particle, centred within 0.015, normalised; noise, partial (shifted by 0.40
    to 0.60), multiple (two, 0.20 to 0.32 either side of the middle), off-centre
    (0.20 to 0.33), ice, carbon and texture. Ice and carbon are not seen through
    the CTF; their strength is a multiple of the particles' standard deviation
    inside the disk.

    References
    ----------
    .. [1] Kapnulin, Heimowitz, Sharon. Outlier Removal in Cryo-EM via Radial
       Profiles.
    .. [2] Weiss-Dicker, Eldar, Shkolinsky, Bendory. Unsupervised Particle
       Sorting for Cryo-EM Using Probabilistic PCA. ISBI 2023.
    """
    simulation = plan_particles(
        n_good,
        n_junk,
        snr=snr,
        box=box,
        volume=volume,
        pixel_size=pixel_size,
        fill=fill,
        junk=junk,
        ctf=ctf,
        n_micrographs=n_micrographs,
        noise=noise,
        snr_definition=snr_definition,
        source_box=source_box,
        centring=centring,
        normalize=normalize,
        contrast=contrast,
        seed=seed,
    )
    images = np.empty((len(simulation.truth.label), simulation.box, simulation.box), dtype=np.float32)
    start = 0
    for block in particle_blocks(simulation):
        images[start : start + len(block)] = block
        start += len(block)
    return images, simulation.truth


def plan_particles(
    n_good: int,
    n_junk: int,
    *,
    snr: float = 0.02,
    box: int = 64,
    volume: npt.ArrayLike | str | os.PathLike[str] = "globular",
    pixel_size: float | None = None,
    fill: float | None = None,
    junk: str | Sequence[str] = "paper",
    ctf: bool = False,
    n_micrographs: int = 24,
    noise: str | None = None,
    snr_definition: str | None = None,
    source_box: int | None = None,
    centring: float | None = None,
    normalize: bool | None = None,
    contrast: str = "bright",
    seed: int = 0,
) -> Simulation:
    """Draw everything about a stack but its pixels, for `particle_blocks` to render.

    Parameters and errors are those of `simulate_particles`; a stack larger than
    memory is planned here, rendered block by block and written by `write_project`.
    """
    n_good, n_junk = check_count("n_good", n_good, 0), check_count("n_junk", n_junk, 0)
    n = check_count("n_good + n_junk", n_good + n_junk)
    box = check_box(check_count("box", box), box, "simulated images")
    if snr != math.inf:
        snr = check_positive("snr", snr)
    seed = check_count("seed", seed, 0)
    recipe = find_recipe(junk)
    noise = check_choice("noise", noise or recipe.noise, SPECTRA)
    snr_definition = check_choice("snr_definition", snr_definition or recipe.snr_definition, SNR_DEFINITIONS)
    check_choice("contrast", contrast, ("bright", "dark"))
    n_micrographs = min(check_count("n_micrographs", n_micrographs), n)
    if source_box is None:
        source_box = max(recipe.source_box, box)
    source_box = check_count("source_box", source_box, box)
    centring = recipe.centring if centring is None else centring
    if not (math.isfinite(centring) and centring >= 0):
        raise InputError(f"centring must be 0 or more, in parts of the box; got {centring}.")
    normalize = recipe.normalize if normalize is None else normalize

    density, extent, voxel_size = _density(volume)
    pixel_size, scale = _sampling(extent.diameter, voxel_size, box, pixel_size, fill, recipe.fill)
    diameter = extent.diameter / scale
    # Nothing that leaves the box may come back on the other side.
    projector = prepare_volume(density, 2 * box, scale, extent.centre)

    kinds = _kinds_in_order(n_good, n_junk, recipe.kinds, seed)
    micrograph = np.arange(n, dtype=np.intp) * n_micrographs // n
    optics = _optics(n_micrographs, seed) if ctf else None
    streams = [_stream(seed, _GEOMETRY, i) for i in range(n)]
    shifts = [
        box * particle_shifts(kind, recipe, centring, rng)
        for kind, rng in zip(kinds.tolist(), streams, strict=True)
    ]
    body_image = np.repeat(np.arange(n), [len(places) for places in shifts])
    body_shift = np.concatenate(shifts)
    body_rotation = np.array([random_rotation(streams[i]) for i in body_image]).reshape(-1, 3, 3)

    rotation, shift = np.full((n, 3, 3), np.nan), np.full((n, 2), np.nan)
    first = np.flatnonzero(np.diff(body_image, prepend=-1))
    rotation[body_image[first]] = body_rotation[first]
    shift[body_image[first]] = body_shift[first]
    truth = Truth(
        kinds == "good",
        kinds,
        shift,
        np.degrees(np.arctan2(rotation[:, 1, 2], rotation[:, 0, 2])),
        rotation,
        None if optics is None else optics.of(micrograph),
        micrograph,
        pixel_size,
        diameter * pixel_size,
    )
    level, deviation = _particle_level(projector, box, diameter, snr_definition, optics, pixel_size, seed)
    return Simulation(
        truth,
        box,
        seed,
        projector,
        body_image,
        body_rotation,
        body_shift,
        0.5 if recipe.mean_of_two else 1.0,
        1 / level,
        deviation / level,
        _noise_deviation(snr, snr_definition, noise),
        noise_amplitude(noise, noise_canvas(box), source_box / box),
        contaminants.photograph(_stream(seed, _SCENE), max(512, 4 * box)) if "photograph" in kinds else None,
        normalize and snr != math.inf,
        1 if contrast == "bright" else -1,
    )


def particle_blocks(simulation: Simulation, block: int = _BLOCK) -> Iterator[npt.NDArray[np.float32]]:
    """The images of a planned stack, `block` at a time, in order."""
    block = check_count("block", block)
    n = len(simulation.truth.label)
    for start in range(0, n, block):
        yield render_particles(simulation, start, min(start + block, n))


def render_particles(simulation: Simulation, start: int, stop: int) -> npt.NDArray[np.float32]:
    """The images `start` to `stop` of a planned stack, the same in whatever blocks they are asked for.

    Parameters
    ----------
    simulation : Simulation
    start, stop : int

    Returns
    -------
    images : ndarray of float32, shape (stop - start, box, box)
    """
    truth, box = simulation.truth, simulation.box
    images = np.zeros((stop - start, box, box), dtype=np.float32)
    first, last = np.searchsorted(simulation.body_image, (start, stop))
    if last > first:
        spectra = project_spectra(simulation.projector, simulation.body_rotation[first:last])
        where = simulation.body_image[first:last]
        if truth.ctf is not None:
            _apply_ctf(spectra, truth.ctf, truth.micrograph, where, truth.pixel_size)
        bodies = images_at(spectra, box, simulation.body_shift[first:last])
        twice = np.bincount(where - start, minlength=len(images))[where - start] > 1
        bodies[twice] *= np.float32(simulation.pair_weight)
        np.add.at(images, where - start, bodies)
        images *= np.float32(simulation.gain)
    for i in range(start, stop):
        rng = _stream(simulation.seed, _PIXELS, i)
        images[i - start] += _contamination(simulation, str(truth.kind[i]), rng)
        if simulation.noise_deviation > 0:
            drawn = noise_image(rng, simulation.noise_amplitude, box)
            images[i - start] += np.float32(simulation.noise_deviation) * drawn
    if simulation.normalize:
        outside = images[:, ~_disk(box, truth.diameter / truth.pixel_size)]
        images -= outside.mean(axis=1)[:, None, None]
        images /= outside.std(axis=1)[:, None, None]
    return images if simulation.sign > 0 else -images


def _contamination(
    simulation: Simulation, kind: str, rng: np.random.Generator
) -> npt.NDArray[np.float32] | float:
    box, deviation = simulation.box, np.float32(simulation.particle_deviation)
    if kind == "ice":
        return deviation * contaminants.ice(rng, box)
    if kind == "carbon":
        return deviation * contaminants.carbon(rng, box)
    if kind == "texture":
        return deviation * contaminants.texture(rng, box)
    if kind == "photograph" and simulation.scene is not None:
        return deviation * contaminants.photograph_crop(rng, simulation.scene, box)
    if kind == "hot_pixels":
        pixel = math.hypot(float(deviation), simulation.noise_deviation)
        return np.float32(pixel) * contaminants.hot_pixels(rng, box)
    return 0.0


def _apply_ctf(
    spectra: npt.NDArray[np.complex64],
    ctf: CtfParameters,
    micrograph: npt.NDArray[np.intp],
    where: npt.NDArray[np.intp],
    pixel_size: float,
) -> None:
    # One function a micrograph: the same for all of its images.
    for name in np.unique(micrograph[where]):
        here = micrograph[where] == name
        one = int(where[here][0])
        single = ctf.of(slice(one, one + 1))
        spectra[here] *= contrast_transfer(single, spectra.shape[1], pixel_size)


def _kinds_in_order(n_good: int, n_junk: int, kinds: tuple[str, ...], seed: int) -> npt.NDArray[np.str_]:
    names = np.array(["good"] * n_good + [kinds[i % len(kinds)] for i in range(n_junk)])
    return _stream(seed, _ORDER).permutation(names)


def _optics(n_micrographs: int, seed: int) -> CtfParameters:
    rng = _stream(seed, _MICROGRAPHS)
    defocus = rng.uniform(1e4, 2.5e4, n_micrographs)
    return CtfParameters(
        defocus_u=defocus + 150,
        defocus_v=defocus - 150,
        defocus_angle=rng.uniform(0, 180, n_micrographs),
        phase_shift=np.zeros(n_micrographs),
        voltage=np.full(n_micrographs, 300.0),
        spherical_aberration=np.full(n_micrographs, 2.7),
        amplitude_contrast=np.full(n_micrographs, 0.1),
    )


def _particle_level(
    projector: Projector,
    box: int,
    diameter: float,
    snr_definition: str,
    optics: CtfParameters | None,
    pixel_size: float,
    seed: int,
) -> tuple[float, float]:
    rng = _stream(seed, _CALIBRATION)
    spectra = project_spectra(projector, np.array([random_rotation(rng) for _ in range(_CALIBRATION_VIEWS)]))
    if optics is not None:
        micrograph = np.arange(_CALIBRATION_VIEWS) % len(optics[0])
        spread = optics.of(micrograph)
        _apply_ctf(spectra, spread, micrograph, np.arange(_CALIBRATION_VIEWS), pixel_size)
    images = images_at(spectra, box)
    inside = images[:, _disk(box, diameter)]
    deviation = math.sqrt(inside.var(axis=1, dtype=np.float64).mean())
    if snr_definition == "mean":
        margin = round((1 - _VICINITY) / 2 * box)
        level = float(images[:, margin : box - margin, margin : box - margin].mean(dtype=np.float64))
    elif snr_definition in ("power", "white_power"):
        level = deviation
    else:
        level = math.sqrt(images.var(axis=(1, 2), dtype=np.float64).mean())
    if level <= 0:
        raise InputError("the particles' mean inside the disk is not positive: use snr_definition='power'.")
    return level, deviation


def _noise_deviation(snr: float, snr_definition: str, noise: str) -> float:
    if snr_definition == "mean":
        return 1 / snr
    return (noise_gain(noise) if snr_definition == "white_power" else 1.0) / math.sqrt(snr)


def _disk(box: int, diameter: float) -> npt.NDArray[np.bool_]:
    line = np.arange(box) - box // 2
    return np.hypot(line[:, None], line) <= diameter / 2


def _density(
    volume: npt.ArrayLike | str | os.PathLike[str],
) -> tuple[npt.NDArray[np.float32], Extent, float]:
    voxel_size: float | None = None
    if isinstance(volume, str) and volume in PHANTOMS:
        density = phantom_volume(phantom_blobs(volume), _PHANTOM_VOXELS, 0.8 * _PHANTOM_VOXELS)
    elif isinstance(volume, str | os.PathLike):
        density, voxel_size = load_volume(volume)
    else:
        density = check_volume(volume)
    extent = volume_extent(density)
    return density, extent, voxel_size or _UNKNOWN_DIAMETER / extent.diameter


def _sampling(
    voxels: float, voxel_size: float, box: int, pixel_size: float | None, fill: float | None, usual: float
) -> tuple[float, float]:
    if pixel_size is not None:
        pixel_size = check_positive("pixel_size", pixel_size, "A/px")
    if fill is None:
        fill = usual if pixel_size is None else voxels * voxel_size / pixel_size / box
    fill = check_positive("fill", fill)
    if fill > 1:
        raise InputError(
            f"the particle's diameter is {fill:.2f} times the box: "
            "give a larger box, a larger pixel_size or a smaller fill."
        )
    scale = voxels / (fill * box)
    return voxel_size * scale if pixel_size is None else pixel_size, scale


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
