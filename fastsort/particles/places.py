"""Where particles lie in their micrographs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._types import Floats, Indices
from fastsort.particles.source import Particles


class Places(NamedTuple):
    """Which micrograph each image was extracted from, and where.

    Attributes
    ----------
    micrograph : ndarray of intp, shape (n,)
        Index into `names`.
    names : list of str
        The micrographs, in the order in which the table first names them.
    x, y : ndarray of float64, shape (n,), or None
        Where the particle was picked, in pixels of the micrograph as it was when
        it was picked; NaN where that is not a number. None where the table has
        no coordinates.
    coordinate_pixel_size : ndarray of float64, shape (n,)
        Of that micrograph, in angstroms; NaN where the table does not say.
    defocus : ndarray of float64, shape (n,), or None
        Mean of the two principal defoci, in angstroms.
    """

    micrograph: Indices
    names: list[str]
    x: Floats | None
    y: Floats | None
    coordinate_pixel_size: Floats
    defocus: Floats | None


def micrograph_places(particles: Particles) -> Places | None:
    """Find where each particle lies in its micrograph, as the files say of it.

    Parameters
    ----------
    particles : Particles
        As from `open_particles`.

    Returns
    -------
    places : Places or None
        None where no table names the micrographs.

    Raises
    ------
    InputError
        When a coordinate, a defocus or a pixel size is not a number.
    """
    if particles.micrographs is None:
        return None
    coordinates = particles.table.coordinates()
    if coordinates is None:
        return None
    number_of: dict[str, int] = {}
    numbers = [number_of.setdefault(name, len(number_of)) for name in particles.micrographs]
    return Places(np.array(numbers, np.intp), list(number_of), *coordinates)
