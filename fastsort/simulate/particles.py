"""Labelled stacks: particles and junk, in random order, with the truth about every image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import check_count
from fastsort._types import FilePath, Images
from fastsort.images.batches import map_batches
from fastsort.simulate import junk as contaminants
from fastsort.simulate.noise import noise_image
from fastsort.simulate.plan import (
    PIXELS,
    Simulation,
    Truth,
    apply_ctf,
    particle_disk,
    plan_particles,
    random_stream,
)
from fastsort.simulate.projections import images_at, project_spectra

_BLOCK = 64


def simulate_particles(
    n_good: int = 1000,
    n_junk: int = 1000,
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
) -> tuple[Images, Truth]:
    """Simulate a stack of particles and junk, with the truth about every image.

    Parameters
    ----------
    n_good, n_junk : int
        Number of images with a particle, and of images of junk, in equal parts
        of every kind. They are in random order.
    snr : float
        Signal-to-noise ratio of the good particles, defined by `snr_definition`;
        ``math.inf`` makes clean images.
    box : int
        Side of the images in pixels.
    volume : ndarray (d, d, d), path, or {"globular", "elongated", "shell", "two-lobed"}
        What to project: a density [z, y, x], an MRC file, or a built-in phantom.
        It is centred on its mass and resampled to the pixel size of the images.
    pixel_size : float, optional
        Angstroms a pixel. By default it follows from `fill`.
    fill : float, optional
        Diameter of the particle in parts of the box. By default it follows from
        `pixel_size`, or is that of the recipe; with both given, the particle is
        scaled. A density of unknown voxel size counts as a particle of 250 A.
    junk : {"paper", "all", "ppca"} or sequence of kinds
        A recipe (see Notes), or some of "noise", "picked", "partial", "multiple",
        "off-centre", "ice", "carbon", "texture", "photograph" and "hot_pixels",
        which are then made as in the recipe "all".
    ctf : bool
        Whether the particles are seen through a contrast transfer function:
        300 kV, 2.7 mm, amplitude contrast 0.1, defocus 1.0 to 2.5 um with
        300 A of astigmatism, one function for each micrograph. Phases are not flipped.
    n_micrographs : int
        Number of micrographs over which the images are spread, in order.
    noise : {"white", "radial", "decaying"}, optional
        Spectrum of the noise (see Notes); by default that of the recipe.
    snr_definition : {"mean", "power", "white_power", "image_power"}, optional
        How `snr` is defined (see Notes); by default as in the recipe.
    source_box : int, optional
        Side in pixels of the larger images from which these count as downsampled:
        noise and `snr` are those of the larger images. By default that of the
        recipe, or `box` if that is more.
    centring : float, optional
        Standard deviation of a good particle's shift on each axis, in parts of
        the box; by default that of the recipe.
    normalize : bool, optional
        Whether the background of every noisy image, all that lies outside the
        particle's disk, gets mean 0 and deviation 1; by default as in the recipe.
    contrast : {"bright", "dark"}
        Whether particles are brighter or darker than the background.
    seed : int
        Random seed. The same seed gives the same bits.

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
    The signal-to-noise ratio is one number for the set, measured in 400 clean
    views of the particle:

    - "mean": mean of the images in their central 65/85, over the standard
      deviation of the noise.
    - "power": variance inside the particle's disk, over the variance of the noise.
    - "white_power": as "power", but over the variance of the white noise before it
      is given its spectrum; "decaying" takes 3/4 of that variance away.
    - "image_power": as "power", but with the variance of the whole image.

    With f in cycles a pixel, "white" noise has power 1, "radial" noise power
    1 + f^2, and "decaying" noise amplitude 1 / sqrt(1 + (6 f)^2).

    "paper" follows the public code of [1]_, section 3.1: images of 85 px, which
    the particle fills to 0.57, downsampled; SNR "mean", noise "radial"; every
    particle 2/3 to 3/2 times as strong, as in the simulator of ASPIRE. A third
    of the junk each is noise, partial particles (shifted by 0.25 to 0.66 of the
    box along each axis, in either direction) and means of two particles (one in the
    middle, one shifted by 0.10 to 0.66). The noise in the text of the paper is "decaying".

    "ppca" follows [2]_, section 4.1 (use five times as many particles as junk):
    SNR "image_power", white noise. Half of the junk is noise, half shows parts of
    a photograph, here a synthetic scene as strong as the particles. The "small
    shifts" of the paper are those of "all".

    "all" is our own hard recipe, meant for ``ctf=True`` and ``snr=1 / 20``: SNR
    "power", "decaying" noise, which is added after the CTF, a box 1.5 times as
    large as the particle, normalised. Particles lie beside the middle as pickers
    leave them, with a standard deviation of 0.03 on each axis. The junk is noise,
    picked (the place that looks most like a blob in a field of noise, on half of
    them above carbon or ice), partial (shifted by 0.40 to 0.60), multiple (two
    particles, 0.20 to 0.32 from the middle on opposite sides), off-centre (0.20 to
    0.33), ice, carbon and texture. Ice and carbon are not seen through the CTF; their strength is a
    multiple of the particles' standard deviation inside the disk.

    References
    ----------
    .. [1] Kapnulin, Heimowitz, Sharon. Outlier Removal in Cryo-EM via Radial
       Profiles.
    .. [2] Weiss-Dicker, Eldar, Shkolinsky, Bendory. Unsupervised Particle
       Sorting for Cryo-EM Using Probabilistic PCA. ISBI 2023.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(6, 3, snr=0.1, box=32)
    >>> images.shape, int(truth.label.sum())
    ((9, 32, 32), 6)
    >>> sorted(set(truth.kind.tolist()))
    ['good', 'multiple', 'noise', 'partial']
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


class _Planned(NamedTuple):
    """Images `start` to `stop` of a planned stack, as `map_batches` shares them among workers."""

    simulation: Simulation
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> _Planned:
        return _Planned(self.simulation, self.start + start, self.start + stop)

    def read(self, start: int, stop: int) -> Images:
        return render_particles(self.simulation, self.start + start, self.start + stop)


def particle_blocks(
    simulation: Simulation, block: int = _BLOCK, *, n_jobs: int | None = None
) -> Iterator[Images]:
    """Yield the images of a planned stack, `block` at a time, in order.

    Parameters
    ----------
    simulation : Simulation
        As from `plan_particles`.
    block : int
        The images are the same in blocks of any size.
    n_jobs : int, optional
        Workers, as joblib counts them. Images do not depend on it.

    Yields
    ------
    images : ndarray of float32, shape (at most block, box, box)

    Examples
    --------
    >>> import fastsort as fs
    >>> simulation = fs.simulate.plan_particles(8, 4, box=32, seed=1)
    >>> [len(images) for images in fs.simulate.particle_blocks(simulation, 5)]
    [5, 5, 2]
    """
    planned = _Planned(simulation, 0, len(simulation.truth.label))
    yield from map_batches(_read, planned, batch_size=check_count("block", block), n_jobs=n_jobs)


def _read(images: Images, start: int) -> Images:
    return images


def render_particles(simulation: Simulation, start: int, stop: int) -> Images:
    """Render the images `start` to `stop` of a planned stack; they are the same in blocks of any size.

    Parameters
    ----------
    simulation : Simulation
    start, stop : int

    Returns
    -------
    images : ndarray of float32, shape (stop - start, box, box)
    """
    truth, box = simulation.truth, simulation.box
    images = _clean_particles(simulation, start, stop)
    for i in range(start, stop):
        rng = random_stream(simulation.seed, PIXELS, i)
        if truth.kind[i] == "picked":
            images[i - start] = _picked(simulation, rng)
            continue
        images[i - start] += _contamination(simulation, str(truth.kind[i]), rng)
        if simulation.noise_deviation > 0:
            noise = noise_image(rng, simulation.noise_amplitude, box)
            images[i - start] += np.float32(simulation.noise_deviation) * noise
    if simulation.normalize:
        outside = ~particle_disk(box, truth.diameter / truth.pixel_size)
        # Indexing would lay pixels out by the number of images, and sums of them would depend on it.
        background = np.compress(outside.ravel(), images.reshape(len(images), -1), axis=1)
        images -= background.mean(axis=1)[:, None, None]
        images /= background.std(axis=1)[:, None, None]
    return images if simulation.sign > 0 else -images


def _clean_particles(simulation: Simulation, start: int, stop: int) -> Images:
    """Project the particles of some images, seen through their CTF; images without one are zero."""
    truth, particles = simulation.truth, simulation.particles
    images = np.zeros((stop - start, simulation.box, simulation.box), dtype=np.float32)
    first, end = np.searchsorted(particles.image, (start, stop))
    if end == first:
        return images
    shown_in = particles.image[first:end]
    spectra = project_spectra(simulation.projector, particles.rotation[first:end])
    if truth.ctf is not None:
        apply_ctf(spectra, truth.ctf, truth.micrograph, shown_in, truth.pixel_size)
    views = images_at(spectra, simulation.box, particles.shift[first:end])
    in_pair = np.bincount(shown_in - start, minlength=len(images))[shown_in - start] > 1
    views *= particles.strength[first:end, None, None].astype(np.float32)
    views[in_pair] *= np.float32(simulation.pair_weight)
    np.add.at(images, shown_in - start, views)
    images *= np.float32(simulation.gain)
    return images


def _picked(simulation: Simulation, rng: np.random.Generator) -> Images:
    """Draw a field without particles, and cut out what a picker takes for one."""
    box, truth = simulation.box, simulation.truth
    size = contaminants.PICKED_FIELD * box
    field = noise_image(rng, simulation.picked_amplitude, size)
    field *= np.float32(simulation.noise_deviation)
    field += np.float32(simulation.particle_deviation) * contaminants.beneath_picks(rng, size, box)
    return contaminants.best_pick(field, truth.diameter / truth.pixel_size / 2, box)


def _contamination(simulation: Simulation, kind: str, rng: np.random.Generator) -> Images | float:
    """Draw what lies on an image besides particles and noise, in units of the particles' deviation."""
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
