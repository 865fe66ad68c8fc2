"""Where particles lie in their micrographs, and which images stand in a set more than once."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort.particles.relion import join_optics
from fastsort.particles.source import Indices, Particles, StackImages

Floats = npt.NDArray[np.float64]


class Places(NamedTuple):
    """Which micrograph each image was cut from, and where.

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
    """Read from its STAR file where each particle lies in its micrograph.

    Parameters
    ----------
    particles : Particles
        As from `open_particles`.

    Returns
    -------
    places : Places or None
        None where no STAR file was opened, or its table names no micrographs.

    Raises
    ------
    InputError
        When a coordinate, a defocus or a pixel size is not a number.

    Notes
    -----
    Since RELION 3.1 ``_rlnMicrographPixelSize`` is that of the coordinates.
    RELION does not always keep it with the particles; ``_rlnMicrographOriginalPixelSize``
    then stands in for it, which is the same unless motion correction binned
    the movies. RELION 3.0 knows only the pixel size of the images, which is the
    same unless these were rescaled on extraction.
    """
    if particles.star is None or particles.micrographs is None:
        return None
    number_of: dict[str, int] = {}
    micrograph = [number_of.setdefault(name, len(number_of)) for name in particles.micrographs]
    table = join_optics(particles.star)
    x, y = table.floats("_rlnCoordinateX"), table.floats("_rlnCoordinateY")
    if x is None or y is None:
        x = y = None
    pixel_size = table.floats("_rlnMicrographPixelSize")
    if pixel_size is None:
        pixel_size = table.floats("_rlnMicrographOriginalPixelSize")
    detector, magnification = table.floats("_rlnDetectorPixelSize"), table.floats("_rlnMagnification")
    if pixel_size is None and detector is not None and magnification is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            pixel_size = 10000 * detector / magnification  # detector pixels are in micrometres
    if pixel_size is None:
        pixel_size = np.full(len(micrograph), np.nan)
    pixel_size = np.where(np.isfinite(pixel_size) & (pixel_size > 0), pixel_size, np.nan)
    defocus, defocus_v = table.floats("_rlnDefocusU"), table.floats("_rlnDefocusV")
    if defocus is not None and defocus_v is not None:
        defocus = (defocus + defocus_v) / 2
    return Places(np.array(micrograph, np.intp), list(number_of), x, y, pixel_size, defocus)


def repeated_images(particles: Particles) -> npt.NDArray[np.bool_]:
    """Find images that are the same section of the same stack as an earlier one.

    Parameters
    ----------
    particles : Particles
        As from `open_particles`.

    Returns
    -------
    repeated : ndarray of bool, shape (n,)
        True for all but the first of each; all False for an array.
    """
    repeated = np.ones(len(particles), bool)
    store = particles.store
    if not isinstance(store, StackImages):
        return ~repeated
    # A file may be named in several ways.
    number_of: dict[str, int] = {}
    files = [number_of.setdefault(os.path.realpath(stack.path), len(number_of)) for stack in store.stacks]
    keys = np.array(files, np.int64)[store.stack_of] << 32 | store.section_of
    repeated[np.unique(keys, return_index=True)[1]] = False
    return repeated
