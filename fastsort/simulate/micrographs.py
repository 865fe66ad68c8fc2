"""Whole micrographs to test a particle picker with: particles, contamination, and the truth about both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count, check_positive
from fastsort._types import Bools, FilePath, Floats, Indices, Singles
from fastsort.images.ctf import contrast_transfer
from fastsort.particles.table import CtfParameters
from fastsort.simulate.fields import CONTAMINANTS, add_images, contaminate, free_places
from fastsort.simulate.noise import SPECTRA, noise_amplitude, noise_image
from fastsort.simulate.plan import DETECTOR, FIELDS, clean_signal, load_density, optics_at, random_stream
from fastsort.simulate.project import new_folder, write_tables
from fastsort.simulate.projections import (
    Projector,
    images_at,
    prepare_volume,
    project_spectra,
    random_rotation,
)

MICROGRAPHS_NAME = "micrographs.star"
TRUTH_NAME = "particles_truth.star"
# Pixels of the masks are so many pixels of the micrographs wide.
MASK_BINNING = 8

# Particles are a weak contrast on a bright micrograph. In units of their deviation inside the disk:
_LEVEL = 50.0
_HOT, _DEAD = (30.0, 300.0), 0.9 * _LEVEL
# Ice and film also take electrons away, whatever the focus.
_ABSORPTION = 0.08
# Deviation of the mass of film, averaged over a particle's disk, in units of the particle's mean projection.
_GRAIN = 0.08
# This part of the noise is the structure of the ice, and so shows Thon rings.
_STRUCTURE = 0.1
_CALIBRATION_DEFOCI, _CALIBRATION_VIEWS = 16, 64
_LEAST_DIAMETER = 8
_VIEWS_AT_ONCE = 64


@brief
class Micrograph(NamedTuple):
    """A simulated micrograph, and what is known of it.

    Attributes
    ----------
    image : ndarray of float32, shape (height, width)
    centre : ndarray of float64, shape (m, 2)
        Where the particles are that a picker should find, as (y, x) in pixels.
    rotation : ndarray of float64, shape (m, 3, 3)
        Of these particles, as for `project_volume`.
    mask : ndarray of bool, shape (ceil(height / 8), ceil(width / 8))
        Where most pixels of a block of 8 x 8 are contaminated.
    ctf : CtfParameters
        One entry.
    pixel_size : float
        Angstroms a pixel.
    diameter : float
        The particle's, in angstroms.
    """

    image: Singles
    centre: Floats
    rotation: Floats
    mask: Bools
    ctf: CtfParameters
    pixel_size: float
    diameter: float


class _Plan(NamedTuple):
    """What all micrographs of a set share; lengths are in pixels."""

    shape: tuple[int, int]
    canvas: int
    frame: tuple[slice, slice]
    pixel_size: float
    diameter: float
    projector: Projector
    gain: float
    mean_projection: float
    crowding: float
    spacing: float
    defocus: tuple[float, float]
    contamination: float
    kinds: tuple[str, ...]
    noise_deviation: float
    noise_amplitude: Singles
    ramp: float
    dead_columns: Indices
    hot_pixels: Indices
    sign: int
    seed: int


def simulate_micrographs(
    n: int = 1,
    shape: int | tuple[int, int] = 2048,
    *,
    snr: float = 1 / 20,
    volume: npt.ArrayLike | FilePath = "globular",
    pixel_size: float = 2.5,
    diameter: float | None = None,
    crowding: float = 0.15,
    spacing: float = 1.0,
    defocus: tuple[float, float] = (1.0, 2.5),
    contamination: float = 0.1,
    contaminants: str | Sequence[str] = CONTAMINANTS,
    noise: str = "decaying",
    ramp: float = 0.05,
    defects: bool = True,
    contrast: str = "dark",
    seed: int = 0,
) -> Iterator[Micrograph]:
    """Simulate micrographs, one at a time.

    Parameters
    ----------
    n : int
        Number of micrographs. Those that another number has too are the same.
    shape : int or (int, int)
        Side of a square, or height and width, in pixels.
    snr : float
        Signal-to-noise ratio: variance inside the disks of single particles, seen through the CTF, over the
        variance of the noise; ``math.inf`` makes micrographs without noise. It holds on average over the
        defoci, because contrast grows with defocus.
    volume : ndarray (d, d, d), path, or {"globular", "elongated", "shell", "two-lobed"}
        The particle, as for `simulate_particles`.
    pixel_size : float
        Angstroms a pixel.
    diameter : float, optional
        Of the particle, in angstroms; another than its own scales it. A density of unknown voxel size
        counts as a particle of 250 A.
    crowding : float
        Area of the particles' disks, as a part of the area where particles may lie.
    spacing : float
        Least distance of the centres of two particles, in diameters: below 1, neighbours overlap.
    defocus : (float, float)
        Least and largest defocus in micrometres. Each micrograph has its own, with 300 A of astigmatism; all
        have 300 kV, 2.7 mm and amplitude contrast 0.1.
    contamination : float
        Part of the area that is contaminated, 0 to 0.9.
    contaminants : sequence of {"carbon", "crystals", "ice", "aggregates"}
        Carbon film with the edge of its hole, on a third of the micrographs (on all if there is nothing
        else); large crystals; pieces of ice of about a particle's size; clumps of particles.
    noise : {"white", "radial", "decaying"}
        Spectrum of the noise, as for `simulate_particles`.
    ramp : float
        How much brighter one side is than the other, as a part of the mean, at most; its direction is random.
    defects : bool
        Whether the camera has dead columns and hot pixels, at the same places of all micrographs.
    contrast : {"dark", "bright"}
        Whether particles are darker or brighter than the background.
    seed : int
        Random seed. The same seed gives the same bits.

    Returns
    -------
    micrographs : iterator of Micrograph
        Each is made when it is asked for.

    Raises
    ------
    InputError
        If a parameter is out of range or a volume cannot be used.

    Notes
    -----
    No particle is put where its disk would touch contamination, so the truth holds all single particles with
    their centre on the micrograph. Particles whose centre is outside are seen in part and not in the truth,
    nor are those in clumps: these count as contamination.

    Particles, ice and film are seen through the CTF; ice and film also absorb. A tenth of the noise is the
    structure of the ice and seen through the CTF too, with a white spectrum before it.

    Examples
    --------
    >>> import fastsort as fs
    >>> micrograph, other = fs.simulate.simulate_micrographs(2, (256, 320), diameter=80, snr=0.1)
    >>> micrograph.image.shape, micrograph.mask.shape
    ((256, 320), (32, 40))
    >>> len(micrograph.centre) == len(micrograph.rotation) > 5
    True
    >>> bool(micrograph.ctf.defocus_u[0] != other.ctf.defocus_u[0])
    True
    """
    n = check_count("n", n)
    height, width = _pair("shape", (shape, shape) if np.ndim(shape) == 0 else shape)
    height, width = check_count("height", height, 64), check_count("width", width, 64)
    snr = snr if snr == math.inf else check_positive("snr", snr)
    pixel_size = check_positive("pixel_size", pixel_size, "A/px")
    spacing = check_positive("spacing", spacing, "diameters")
    least, largest = (check_positive("defocus", end, "um") for end in _pair("defocus", defocus))
    kinds = (contaminants,) if isinstance(contaminants, str) else tuple(contaminants)
    if not kinds:
        raise InputError("contaminants names no kinds: give some, or contamination=0, which makes none.")
    for kind in kinds:
        check_choice("contaminants", kind, CONTAMINANTS)
    check_choice("noise", noise, SPECTRA)
    check_choice("contrast", contrast, ("bright", "dark"))
    seed = check_count("seed", seed, 0)
    if least > largest:
        raise InputError(f"defocus must be least and largest; got {least:g} and {largest:g} um: swap them.")
    contamination = _check_part("contamination", contamination, 0.9)
    # Beyond, random places hardly ever leave room for one more.
    crowding = _check_part("crowding", crowding, 0.4 / spacing**2)
    ramp = _check_part("ramp", ramp, 1.0)

    density, extent, voxel_size = load_density(volume)
    if diameter is None:
        diameter = extent.diameter * voxel_size
    across = check_positive("diameter", diameter, "A") / pixel_size
    if not _LEAST_DIAMETER <= across <= min(height, width) / 2:
        raise InputError(
            f"the particle's diameter is {across:.0f} px on micrographs of {width} x {height} px: give "
            f"a diameter or pixel size that makes it {_LEAST_DIAMETER} to {min(height, width) // 2} px."
        )
    scale = extent.diameter / across
    # Wide enough for a particle that no sphere of its diameter holds, and for its fringes.
    projector = prepare_volume(density, 2 * math.ceil(across), scale, extent.centre)
    defoci = np.linspace(1e4 * least, 1e4 * largest, _CALIBRATION_DEFOCI)
    optics = optics_at(defoci, np.zeros_like(defoci))
    signal, _ = clean_signal(
        projector, projector.box, across, "power", optics, pixel_size, seed, _CALIBRATION_VIEWS
    )
    # Room around the frame for what reaches into it, because opposite edges of the canvas are neighbours.
    margin = math.ceil(across)
    columns, pixels = _defects(height, width, seed) if defects else (np.empty(0, np.intp),) * 2
    plan = _Plan(
        shape=(height, width),
        canvas=scipy.fft.next_fast_len(max(height, width) + 2 * margin, real=True),
        frame=(slice(margin, margin + height), slice(margin, margin + width)),
        pixel_size=pixel_size,
        diameter=across,
        projector=projector,
        gain=1 / signal,
        mean_projection=float(density.sum(dtype=np.float64)) / scale**2 / (math.pi / 4 * across**2) / signal,
        crowding=crowding,
        spacing=spacing,
        defocus=(1e4 * least, 1e4 * largest),
        contamination=contamination,
        kinds=kinds,
        noise_deviation=1 / math.sqrt(snr),
        noise_amplitude=noise_amplitude(noise, scipy.fft.next_fast_len(max(height, width), real=True)),
        ramp=ramp,
        dead_columns=columns,
        hot_pixels=pixels,
        sign=1 if contrast == "bright" else -1,
        seed=seed,
    )
    return (_simulate(plan, number) for number in range(n))


def _pair(name: str, values: Any) -> tuple[Any, Any]:
    if np.shape(values) != (2,):
        raise InputError(f"{name} must be two numbers; got {values!r}.")
    first, second = values
    return first, second


def _check_part(name: str, value: float, largest: float) -> float:
    if not 0 <= value <= largest:
        raise InputError(f"{name} must be 0 to {largest:.2g}; got {value:g}.")
    return float(value)


def _defects(height: int, width: int, seed: int) -> tuple[Indices, Indices]:
    """Draw columns that are dead, and pixels that are hot, counted row by row."""
    rng = random_stream(seed, DETECTOR)
    n_hot = max(1, round(height * width / 2e5))
    return rng.integers(width, size=rng.integers(1, 4)), rng.integers(height * width, size=n_hot)


# One micrograph.


def _simulate(plan: _Plan, number: int) -> Micrograph:
    rng = random_stream(plan.seed, FIELDS, number)
    ctf = optics_at(rng.uniform(*plan.defocus, 1), rng.uniform(0, 180, 1))
    field = contaminate(rng, plan.canvas, plan.frame, plan.diameter, plan.contamination, plan.kinds)
    singles = free_places(rng, field.mask, plan.frame, plan.diameter, plan.crowding, plan.spacing)
    places = np.concatenate([singles, field.clumped])
    rotations = np.array([random_rotation(rng) for _ in places]).reshape(-1, 3, 3)

    mass = np.zeros_like(field.mass)
    for start in range(0, len(places), _VIEWS_AT_ONCE):
        part = slice(start, start + _VIEWS_AT_ONCE)
        views = images_at(
            project_spectra(plan.projector, rotations[part]), plan.projector.box, places[part] % 1
        )
        add_images(mass, np.float32(plan.gain) * views, places[part])
    grain = np.float32(_GRAIN * math.sqrt(math.pi / 4) * plan.diameter)
    white = rng.standard_normal(mass.shape, dtype=np.float32)
    solid = field.mass + grain * field.film * white
    solid *= np.float32(plan.mean_projection)
    mass += solid

    transfer = contrast_transfer(ctf, plan.canvas, plan.pixel_size)[0]
    structure = rng.standard_normal(mass.shape, dtype=np.float32)
    structure *= np.float32(plan.noise_deviation * math.sqrt(_STRUCTURE / np.square(transfer).mean()))
    image = _through(mass + structure, transfer)[plan.frame] + np.float32(_ABSORPTION) * solid[plan.frame]
    noise = noise_image(rng, plan.noise_amplitude, max(plan.shape))[: plan.shape[0], : plan.shape[1]]
    image += np.float32(plan.noise_deviation * math.sqrt(1 - _STRUCTURE)) * noise
    image = _recorded(rng, plan, plan.sign * image)

    corner = [part.start for part in plan.frame]
    centre = singles - corner
    inside = ((centre >= 0) & (centre <= np.array(plan.shape) - 1)).all(axis=1)
    return Micrograph(
        image=image,
        centre=centre[inside],
        rotation=rotations[: len(singles)][inside],
        mask=_binned(field.mask[plan.frame]),
        ctf=ctf,
        pixel_size=plan.pixel_size,
        diameter=plan.diameter * plan.pixel_size,
    )


def _through(canvas: Singles, transfer: Singles) -> Singles:
    spectrum = scipy.fft.rfft2(canvas, workers=1)
    spectrum *= transfer
    seen: Singles = scipy.fft.irfft2(spectrum, s=canvas.shape, workers=1, overwrite_x=True)
    return seen


def _recorded(rng: np.random.Generator, plan: _Plan, image: Singles) -> Singles:
    """Add the level of an empty micrograph, and what the camera does: a ramp, dead columns, hot pixels."""
    height, width = plan.shape
    direction, steepness = rng.uniform(0, 2 * np.pi), plan.ramp * rng.uniform(0.2, 1.0)
    down = math.sin(direction) * (np.arange(height) / height - 0.5)
    across = math.cos(direction) * (np.arange(width) / width - 0.5)
    image = (image + np.float32(_LEVEL)) * (1 + steepness * (down[:, None] + across)).astype(np.float32)
    image[:, plan.dead_columns] = _DEAD
    image.reshape(-1)[plan.hot_pixels] += rng.uniform(*_HOT, len(plan.hot_pixels)).astype(np.float32)
    return image


def _binned(mask: Bools) -> Bools:
    """Return where most pixels of each block are contaminated; blocks at the edge may be smaller."""
    total = mask.astype(np.float64)
    for axis, side in enumerate(mask.shape):
        starts = np.arange(0, side, MASK_BINNING)
        sizes = np.diff(starts, append=side)
        total = np.add.reduceat(total, starts, axis=axis) / np.expand_dims(sizes, 1 - axis)
    return total > 0.5


# Files.


def write_micrographs(
    folder: FilePath, micrographs: Iterable[Micrograph], *, overwrite: bool = False
) -> Path:
    """Write micrographs and the truth about them as RELION 3.1 has them, one at a time.

    Parameters
    ----------
    folder : path
        It gets ``Micrographs/micrograph_0000.mrc`` and so on; ``micrographs.star``, which serves as RELION's
        ``micrographs_ctf.star``; ``particles_truth.star`` with the centres of the particles in pixels and
        RELION's Euler angles in degrees; and in ``Masks/`` for each micrograph an MRC file of mode 0,
        reduced 8 times, that is 1 where there is contamination.
    micrographs : iterable of Micrograph
        From `simulate_micrographs`.
    overwrite : bool
        Whether to replace micrographs that this function wrote to `folder` before.

    Returns
    -------
    star : Path
        ``micrographs.star``.

    Raises
    ------
    InputError
        If `folder` holds anything already, or there are no micrographs.
    OSError
        If the disk refuses. After any error, `folder` holds what it held before.

    Examples
    --------
    >>> import tempfile
    >>> import fastsort as fs
    >>> micrographs = fs.simulate.simulate_micrographs(2, 256, diameter=80)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     star = fs.simulate.write_micrographs(f"{folder}/simulated", micrographs)
    ...     print(*sorted(path.name for path in star.parent.iterdir()))
    Masks Micrographs micrographs.star particles_truth.star
    """
    known: list[Micrograph] = []
    names: list[str] = []
    with new_folder(folder, TRUTH_NAME, overwrite) as partial:
        for directory in ("Micrographs", "Masks"):
            (partial / directory).mkdir()
        for number, micrograph in enumerate(micrographs):
            stem = f"micrograph_{number:04d}"
            names.append(f"Micrographs/{stem}.mrc")
            _write_image(partial / names[-1], micrograph.image, micrograph.pixel_size)
            _write_image(
                partial / "Masks" / f"{stem}_mask.mrc",
                micrograph.mask.astype(np.int8),
                MASK_BINNING * micrograph.pixel_size,
            )
            # The tables come last and need all but the pixels.
            no_pixels = np.empty((0, 0))
            known.append(micrograph._replace(image=no_pixels.astype(np.float32), mask=no_pixels.astype(bool)))
        if not known:
            raise InputError("there are no micrographs to write: give at least one.")
        _write_tables(partial, names, known)
    return Path(folder) / MICROGRAPHS_NAME


def _write_image(path: Path, image: npt.NDArray[np.generic], pixel_size: float) -> None:
    import mrcfile

    with mrcfile.new(path) as file:
        file.set_data(image)
        file.voxel_size = pixel_size


def _write_tables(folder: Path, names: list[str], micrographs: list[Micrograph]) -> None:
    optics = CtfParameters(
        *(np.concatenate(parts) for parts in zip(*(m.ctf for m in micrographs), strict=True))
    )
    sides: dict[str, object] = {"rlnMicrographPixelSize": [micrographs[0].pixel_size]}
    listed: dict[str, object] = {
        "rlnMicrographName": names,
        "rlnOpticsGroup": np.ones(len(names), dtype=int),
        "rlnDefocusU": optics.defocus_u,
        "rlnDefocusV": optics.defocus_v,
        "rlnDefocusAngle": optics.defocus_angle,
    }
    write_tables(folder / MICROGRAPHS_NAME, optics, sides, "micrographs", listed)
    centre = np.concatenate([m.centre for m in micrographs])
    rot, tilt, psi = _euler_angles(np.concatenate([m.rotation for m in micrographs]))
    truth: dict[str, object] = {
        "rlnMicrographName": np.repeat(names, [len(m.centre) for m in micrographs]),
        "rlnCoordinateX": centre[:, 1],
        "rlnCoordinateY": centre[:, 0],
        "rlnAngleRot": rot,
        "rlnAngleTilt": tilt,
        "rlnAnglePsi": psi,
        "rlnOpticsGroup": np.ones(len(centre), dtype=int),
    }
    write_tables(folder / TRUTH_NAME, optics, sides, "particles", truth)


def _euler_angles(rotation: Floats) -> tuple[Floats, Floats, Floats]:
    """Return RELION's angles rot, tilt and psi in degrees: of a turn about z, one about y, one about z."""
    rot = np.arctan2(rotation[:, 2, 1], rotation[:, 2, 0])
    tilt = np.arccos(np.clip(rotation[:, 2, 2], -1, 1))
    psi = np.arctan2(rotation[:, 1, 2], -rotation[:, 0, 2])
    return np.degrees(rot), np.degrees(tilt), np.degrees(psi)
