"""What a simulated stack will show: kinds, places, rotations, optics and noise, but no pixels yet."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._checks import InputError, check_box, check_choice, check_count, check_positive
from fastsort._types import Array, Bools, FilePath, Floats, Images, Indices, Singles, Words
from fastsort.images.ctf import contrast_transfer
from fastsort.particles.table import CtfParameters
from fastsort.simulate import junk as contaminants
from fastsort.simulate.junk import PICKED_FIELD
from fastsort.simulate.noise import SPECTRA, noise_amplitude, noise_canvas, noise_gain
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
from fastsort.simulate.recipes import PAPER_BOX, Recipe, find_recipe, particle_shifts

SNR_DEFINITIONS = ("mean", "power", "white_power", "image_power")

# What is drawn at random has a stream for each purpose, so that none depends on how many images there are.
ORDER, MICROGRAPHS, CALIBRATION, SCENE, GEOMETRY, PIXELS, FIELDS, DETECTOR = range(8)
_CALIBRATION_VIEWS = 400
# The part of the paper's box, along each axis, in which its "mean" signal is measured.
_CENTRAL_PART = 65 / PAPER_BOX
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
        Number of the micrograph of each image, in ascending order.
    pixel_size : float
        Angstroms a pixel.
    diameter : float
        The particle's, in angstroms.
    """

    label: Bools
    kind: Words
    shift: Floats
    angle: Floats
    rotation: Floats
    ctf: CtfParameters | None
    micrograph: Indices
    pixel_size: float
    diameter: float


class PlacedParticles(NamedTuple):
    """All particles of a stack: one in most images, two in those of the kind "multiple", none in others.

    Attributes
    ----------
    image : ndarray of intp, shape (m,)
        The image that shows the particle, in ascending order.
    rotation : ndarray of float64, shape (m, 3, 3)
    shift : ndarray of float64, shape (m, 2)
        As (y, x) in pixels from pixel box // 2.
    strength : ndarray of float64, shape (m,)
        What the projection is multiplied with.
    """

    image: Indices
    rotation: Floats
    shift: Floats
    strength: Floats


class Simulation(NamedTuple):
    """A planned stack: everything but the pixels.

    Attributes
    ----------
    truth : Truth
    box : int
        Side of the images in pixels.
    seed : int
    projector : Projector
    particles : PlacedParticles
    pair_weight : float
        What each of two particles in one image is multiplied with.
    gain : float
        Scales projections so that the signal of the signal-to-noise ratio is 1, for the usual strength.
    particle_deviation, noise_deviation : float
        Standard deviation of the clean particles inside their disk, and of the noise.
    noise_amplitude, picked_amplitude : ndarray of float32, shape (canvas, canvas // 2 + 1)
        From `fastsort.simulate.noise.noise_amplitude`, for images and for fields in which noise is picked.
    scene : ndarray of float32, shape (d, d), or None
        The photograph of which images show a part.
    normalize : bool
        Whether the background of every image gets mean 0 and deviation 1.
    sign : int
        1 for bright particles, -1 for dark ones.
    """

    truth: Truth
    box: int
    seed: int
    projector: Projector
    particles: PlacedParticles
    pair_weight: float
    gain: float
    particle_deviation: float
    noise_deviation: float
    noise_amplitude: Singles
    picked_amplitude: Singles
    scene: Images | None
    normalize: bool
    sign: int


def plan_particles(
    n_good: int,
    n_junk: int,
    *,
    snr: float = 0.02,
    box: int = 64,
    volume: npt.ArrayLike | FilePath = "globular",
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

    Examples
    --------
    >>> import fastsort as fs
    >>> simulation = fs.simulate.plan_particles(8, 4, box=32, seed=1)
    >>> len(simulation.truth.label), simulation.box
    (12, 32)
    """
    n_good, n_junk = check_count("n_good", n_good, 0), check_count("n_junk", n_junk, 0)
    n = check_count("n_good + n_junk", n_good + n_junk)
    box = check_box(check_count("box", box), box, "simulated images")
    if snr != math.inf:
        snr = check_positive("snr", snr)
    seed = check_count("seed", seed, 0)
    check_choice("contrast", contrast, ("bright", "dark"))
    n_micrographs = min(check_count("n_micrographs", n_micrographs), n)
    recipe = _adapted_recipe(junk, box, noise, snr_definition, source_box, centring, normalize)

    density, extent, voxel_size = load_density(volume)
    pixel_size, scale = _sampling(extent.diameter, voxel_size, box, pixel_size, fill, recipe.fill)
    diameter = extent.diameter / scale
    # Twice the box, so that nothing that leaves it comes back on the other side.
    projector = prepare_volume(density, 2 * box, scale, extent.centre)

    kinds = _kinds_in_order(n_good, n_junk, recipe.kinds, seed)
    micrograph = np.arange(n, dtype=np.intp) * n_micrographs // n
    optics = _optics(n_micrographs, seed) if ctf else None
    particles = _place_particles(kinds, recipe, box, seed)
    signal, deviation = clean_signal(
        projector, box, diameter, recipe.snr_definition, optics, pixel_size, seed
    )
    return Simulation(
        truth=_truth(kinds, particles, optics, micrograph, pixel_size, diameter),
        box=box,
        seed=seed,
        projector=projector,
        particles=particles,
        pair_weight=0.5 if recipe.mean_of_two else 1.0,
        gain=1 / (signal * float(np.mean(recipe.strength))),
        particle_deviation=deviation / signal,
        noise_deviation=_noise_deviation(snr, recipe),
        noise_amplitude=noise_amplitude(recipe.noise, noise_canvas(box), recipe.source_box / box),
        picked_amplitude=noise_amplitude(
            recipe.noise, noise_canvas(PICKED_FIELD * box), recipe.source_box / box
        ),
        scene=_scene(box, seed) if "photograph" in kinds else None,
        normalize=recipe.normalize and snr != math.inf,
        sign=1 if contrast == "bright" else -1,
    )


def _adapted_recipe(
    junk: str | Sequence[str],
    box: int,
    noise: str | None,
    snr_definition: str | None,
    source_box: int | None,
    centring: float | None,
    normalize: bool | None,
) -> Recipe:
    """Return the recipe with the user's options in place of its own."""
    recipe = find_recipe(junk)
    noise = check_choice("noise", noise or recipe.noise, SPECTRA)
    snr_definition = check_choice("snr_definition", snr_definition or recipe.snr_definition, SNR_DEFINITIONS)
    if source_box is None:
        source_box = max(recipe.source_box, box)
    source_box = check_count("source_box", source_box, box)
    centring = recipe.centring if centring is None else centring
    if not (math.isfinite(centring) and centring >= 0):
        raise InputError(f"centring must be 0 or more, in parts of the box; got {centring}.")
    return recipe._replace(
        noise=noise,
        snr_definition=snr_definition,
        source_box=source_box,
        centring=centring,
        normalize=recipe.normalize if normalize is None else normalize,
    )


# The particle: its density and its size.


def load_density(volume: npt.ArrayLike | FilePath) -> tuple[Singles, Extent, float]:
    """Return a density, where the particle in it is, and the voxel size in angstroms."""
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
    """Return the pixel size in angstroms, and voxels a pixel, of a particle of so many voxels."""
    if pixel_size is not None:
        pixel_size = check_positive("pixel_size", pixel_size, "A/px")
    advice = "a smaller fill"
    if fill is None:
        advice = "a larger box or a larger pixel size"
        fill = usual if pixel_size is None else voxels * voxel_size / pixel_size / box
    fill = check_positive("fill", fill)
    if fill > 1:
        raise InputError(f"the particle's diameter is {fill:.2f} times the box: give {advice}.")
    scale = voxels / (fill * box)
    return voxel_size * scale if pixel_size is None else pixel_size, scale


# The images: which kind, where the particles are, through which optics.


def _kinds_in_order(n_good: int, n_junk: int, kinds: tuple[str, ...], seed: int) -> Words:
    names = np.array(["good"] * n_good + [kinds[i % len(kinds)] for i in range(n_junk)])
    return random_stream(seed, ORDER).permutation(names)


def _optics(n_micrographs: int, seed: int) -> CtfParameters:
    """Return a CTF for each micrograph."""
    rng = random_stream(seed, MICROGRAPHS)
    defocus = rng.uniform(1e4, 2.5e4, n_micrographs)
    return optics_at(defocus, rng.uniform(0, 180, n_micrographs))


def optics_at(defocus: Floats, angle: Floats) -> CtfParameters:
    """Return the CTF of our microscope at some defoci (angstrom) and angles of the astigmatism (degree)."""
    n = len(defocus)
    return CtfParameters(
        defocus_u=defocus + 150,
        defocus_v=defocus - 150,
        defocus_angle=angle,
        phase_shift=np.zeros(n),
        voltage=np.full(n, 300.0),
        spherical_aberration=np.full(n, 2.7),
        amplitude_contrast=np.full(n, 0.1),
    )


def _place_particles(kinds: Words, recipe: Recipe, box: int, seed: int) -> PlacedParticles:
    """Draw shifts and rotations; those of an image depend on its number and kind alone."""
    streams = [random_stream(seed, GEOMETRY, i) for i in range(len(kinds))]
    shifts = [
        box * particle_shifts(kind, recipe, rng) for kind, rng in zip(kinds.tolist(), streams, strict=True)
    ]
    image = np.repeat(np.arange(len(kinds)), [len(places) for places in shifts])
    rotation = np.array([random_rotation(streams[i]) for i in image]).reshape(-1, 3, 3)
    strength = np.array([streams[i].uniform(*recipe.strength) for i in image])
    return PlacedParticles(image, rotation, np.concatenate(shifts), strength)


def _truth(
    kinds: Words,
    particles: PlacedParticles,
    optics: CtfParameters | None,
    micrograph: Indices,
    pixel_size: float,
    diameter: float,
) -> Truth:
    n = len(kinds)
    rotation, shift = np.full((n, 3, 3), np.nan), np.full((n, 2), np.nan)
    # Of two particles in one image, the first.
    first = np.flatnonzero(np.diff(particles.image, prepend=-1))
    rotation[particles.image[first]] = particles.rotation[first]
    shift[particles.image[first]] = particles.shift[first]
    return Truth(
        label=kinds == "good",
        kind=kinds,
        shift=shift,
        angle=np.degrees(np.arctan2(rotation[:, 1, 2], rotation[:, 0, 2])),
        rotation=rotation,
        ctf=None if optics is None else optics.of(micrograph),
        micrograph=micrograph,
        pixel_size=pixel_size,
        diameter=diameter * pixel_size,
    )


def _scene(box: int, seed: int) -> Images:
    return contaminants.photograph(random_stream(seed, SCENE), max(512, 4 * box))


# Signal and noise.


def clean_signal(
    projector: Projector,
    box: int,
    diameter: float,
    snr_definition: str,
    optics: CtfParameters | None,
    pixel_size: float,
    seed: int,
    n_views: int = _CALIBRATION_VIEWS,
) -> tuple[float, float]:
    """Measure clean views: the signal of the signal-to-noise ratio, and the deviation inside the disk."""
    rng = random_stream(seed, CALIBRATION)
    spectra = project_spectra(projector, np.array([random_rotation(rng) for _ in range(n_views)]))
    if optics is not None:
        micrograph = np.arange(n_views) % len(optics.voltage)
        apply_ctf(spectra, optics.of(micrograph), micrograph, np.arange(n_views), pixel_size)
    images = images_at(spectra, box)
    inside = images[:, particle_disk(box, diameter)]
    deviation = math.sqrt(inside.var(axis=1, dtype=np.float64).mean())
    if snr_definition == "mean":
        margin = round((1 - _CENTRAL_PART) / 2 * box)
        signal = float(images[:, margin : box - margin, margin : box - margin].mean(dtype=np.float64))
    elif snr_definition in ("power", "white_power"):
        signal = deviation
    else:
        signal = math.sqrt(images.var(axis=(1, 2), dtype=np.float64).mean())
    if signal <= 0:
        raise InputError(
            f"the particles' signal must be positive; by snr_definition={snr_definition!r} it is "
            f"{signal:.3g}: use snr_definition='power'."
        )
    return signal, deviation


def _noise_deviation(snr: float, recipe: Recipe) -> float:
    if recipe.snr_definition == "mean":
        return 1 / snr
    return (noise_gain(recipe.noise) if recipe.snr_definition == "white_power" else 1.0) / math.sqrt(snr)


# What rendering needs too.


def random_stream(seed: int, *purpose: int) -> np.random.Generator:
    """Return the random numbers for a purpose, such as the pixels of an image: ``PIXELS, 17``."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=purpose))


def particle_disk(box: int, diameter: float) -> Bools:
    """Return which pixels lie in a disk about pixel box // 2; the diameter is in pixels."""
    line = np.arange(box) - box // 2
    return np.hypot(line[:, None], line) <= diameter / 2


def apply_ctf(
    spectra: Array, ctf: CtfParameters, micrograph: Indices, image: Indices, pixel_size: float
) -> None:
    """Multiply spectra with the contrast transfer function of their micrograph, in place.

    Parameters
    ----------
    spectra : ndarray of complex64, shape (m, box, box // 2 + 1)
    ctf : CtfParameters
        One entry an image: the same for all images of a micrograph.
    micrograph : ndarray of intp, shape (n,)
        Of each image.
    image : ndarray of intp, shape (m,)
        The image of each spectrum.
    pixel_size : float
        Angstroms a pixel.
    """
    for number in np.unique(micrograph[image]):
        here = micrograph[image] == number
        one = int(image[here][0])
        transfer = contrast_transfer(ctf.of(slice(one, one + 1)), spectra.shape[1], pixel_size)
        spectra[here] *= transfer
