"""Densities to project: built-in phantoms, and volumes of the user."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_choice, check_count, check_positive
from fastsort._process import without_warnings
from fastsort._types import FilePath, Floats, Singles
from fastsort.simulate.projections import check_volume

PHANTOMS = ("globular", "elongated", "shell", "two-lobed")

# Density below this part of the peak counts as solvent or noise.
_SOLVENT = 0.05
_MASS_INSIDE = 0.98


class Blobs(NamedTuple):
    """A density that is a sum of isotropic Gaussians.

    Attributes
    ----------
    centre : ndarray of float64, shape (m, 3)
        As (x, y, z), in particle diameters from the particle's middle.
    width : ndarray of float64, shape (m,)
        Standard deviations, in particle diameters.
    weight : ndarray of float64, shape (m,)
        Peak densities.
    """

    centre: Floats
    width: Floats
    weight: Floats


def phantom_blobs(shape: str, seed: int = 0) -> Blobs:
    """Return the Gaussians that make up a built-in particle.

    Parameters
    ----------
    shape : {"globular", "elongated", "shell", "two-lobed"}
        A shell is hollow. No shape has a symmetry: every view differs.
    seed : int
        Another seed gives another particle of the same shape.

    Returns
    -------
    blobs : Blobs

    Raises
    ------
    InputError
        If there is no such shape.
    """
    check_choice("volume", shape, PHANTOMS)
    rng = np.random.default_rng([check_count("seed", seed, 0), PHANTOMS.index(shape)])
    n = 160
    direction = rng.standard_normal((n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = 0.42 * rng.random((n, 1)) ** 0.45
    centre = direction * radius
    if shape == "elongated":
        centre *= (1.05, 0.42, 0.5)
    elif shape == "shell":
        centre = direction * rng.uniform(0.36, 0.43, (n, 1))
    elif shape == "two-lobed":
        large = np.arange(n) < 0.65 * n
        centre = np.where(large[:, None], centre * 0.65 - (0.18, 0, 0), centre * 0.45 + (0.26, 0.06, 0.04))
    width = rng.uniform(0.022, 0.05, n)
    weight = rng.uniform(0.4, 1.0, n)
    # A dense side makes the views differ at low resolution too.
    weight *= 1 + 0.6 * np.tanh(4 * centre @ (0.5, 0.7, 0.5))
    return Blobs(centre, width, weight)


def phantom_volume(blobs: Blobs, size: int, diameter: float) -> Singles:
    """Sample a sum of Gaussians on a grid.

    Parameters
    ----------
    blobs : Blobs
    size : int
        Side of the volume in voxels.
    diameter : float
        Diameter of the particle in voxels.

    Returns
    -------
    volume : ndarray of float32, shape (size, size, size)
        As [z, y, x], centred on voxel size // 2.
    """
    grid = (np.arange(size) - size // 2) / check_positive("diameter", diameter, "voxels")
    x, y, z = np.moveaxis(grid - blobs.centre[:, :, None], 1, 0)
    x, y, z = (np.exp(-0.5 * (line / blobs.width[:, None]) ** 2) for line in (x, y, z))
    planes = (y[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    volume = (blobs.weight[:, None] * z).T @ planes
    return volume.reshape(size, size, size).astype(np.float32)


class Extent(NamedTuple):
    """Place and size of the particle in a density.

    Attributes
    ----------
    centre : ndarray of float64, shape (3,)
        Centre of mass as (z, y, x) in voxels.
    diameter : float
        Diameter, in voxels, of the smallest sphere about the centre that holds 98 % of the mass.
    """

    centre: Floats
    diameter: float


def volume_extent(volume: npt.ArrayLike) -> Extent:
    """Measure the centre of mass and the diameter of the particle in a density.

    Parameters
    ----------
    volume : ndarray, shape (d, d, d)
        The particle is positive; density below 5 % of the peak counts as solvent.

    Returns
    -------
    extent : Extent

    Raises
    ------
    InputError
        If there is no positive density.
    """
    density = check_volume(volume)
    peak = float(density.max())
    if peak <= 0:
        raise InputError(
            f"volume holds no positive density; its largest value is {peak:g}: multiply it by -1 if the "
            "particle is dark."
        )
    density = np.where(density > _SOLVENT * peak, density, 0)
    points = np.argwhere(density)
    mass = density[density > 0].astype(np.float64)
    centre = mass @ points / mass.sum()
    distance = np.linalg.norm(points - centre, axis=1)
    order = np.argsort(distance)
    inside = np.searchsorted(np.cumsum(mass[order]), _MASS_INSIDE * mass.sum())
    return Extent(centre, max(2 * float(distance[order[inside]]), 1.0))


def load_volume(path: FilePath) -> tuple[Singles, float | None]:
    """Read a density from an MRC file.

    Parameters
    ----------
    path : path
        An MRC volume.

    Returns
    -------
    volume : ndarray of float32, shape (d, d, d)
    voxel_size : float or None
        Angstroms; None if the header does not say.

    Raises
    ------
    InputError
        If there is no such file or it is not a cubic volume.
    """
    import mrcfile

    try:
        with without_warnings():
            # Permissive: a wrong field in the header is no reason to refuse the density.
            with mrcfile.open(os.fspath(path), permissive=True) as file:
                data, voxel_size = file.data, float(file.voxel_size.x)
    except FileNotFoundError:
        raise InputError(
            f"volume {path} does not exist: give an MRC file or one of {', '.join(PHANTOMS)}."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"volume {path} cannot be read as MRC ({error}): give an MRC volume.") from None
    if data is None:
        raise InputError(f"volume {path} cannot be read as MRC (it holds no data): give an MRC volume.")
    return check_volume(data), voxel_size if math.isfinite(voxel_size) and voxel_size > 0 else None
