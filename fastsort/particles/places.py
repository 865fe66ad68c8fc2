"""Where particles lie in their micrographs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort.particles.coordinates import PickedFiles
from fastsort.particles.cs import CsDataset, dataset_numbers
from fastsort.particles.relion import detector_pixel_sizes, join_optics, micrograph_pixel_sizes
from fastsort.particles.source import CtfParameters, Indices, Particles

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

    Notes
    -----
    Since RELION 3.1 ``_rlnMicrographPixelSize`` is that of the coordinates.
    RELION does not always keep it with the particles; ``_rlnMicrographOriginalPixelSize``
    then stands in for it, which is the same unless motion correction binned
    the movies. RELION 3.0 knows only the pixel size of the images, which is the
    same unless these were rescaled on extraction.
    """
    if particles.table is None or particles.micrographs is None:
        return None
    number_of: dict[str, int] = {}
    numbers = [number_of.setdefault(name, len(number_of)) for name in particles.micrographs]
    micrograph, names = np.array(numbers, np.intp), list(number_of)
    if isinstance(particles.table, PickedFiles):
        picks = particles.table
        return Places(
            micrograph, names, picks.x, picks.y, np.full(len(picks.x), picks.pixel_size), picks.defocus
        )
    if isinstance(particles.table, CsDataset):
        return Places(micrograph, names, *_cs_places(particles.table, particles.ctf))
    assert particles.star is not None
    table = join_optics(particles.star)
    x, y = table.floats("_rlnCoordinateX"), table.floats("_rlnCoordinateY")
    if x is None or y is None:
        x = y = None
    pixel_size, by_detector = micrograph_pixel_sizes(table), detector_pixel_sizes(table)
    if pixel_size is None:
        pixel_size = by_detector
    if pixel_size is None:
        pixel_size = np.full(len(numbers), np.nan)
    pixel_size = np.where(np.isfinite(pixel_size) & (pixel_size > 0), pixel_size, np.nan)
    defocus, defocus_v = table.floats("_rlnDefocusU"), table.floats("_rlnDefocusV")
    if defocus is not None and defocus_v is not None:
        defocus = defocus / 2 + defocus_v / 2
    return Places(micrograph, names, x, y, pixel_size, defocus)


def _cs_places(
    dataset: CsDataset, ctf: CtfParameters | None
) -> tuple[Floats | None, Floats | None, Floats, Floats | None]:
    """Return x, y, pixel size and defocus, as `Places` has them."""
    n = len(dataset)
    x, y, sizes = (
        dataset_numbers(dataset, f"location/{name}")
        for name in ("center_x_frac", "center_y_frac", "micrograph_psize_A")
    )
    shape = dataset.field("location/micrograph_shape")
    if x is None or y is None or shape is None or shape.shape != (n, 2) or shape.dtype.kind not in "iuf":
        x = y = None
    else:
        with np.errstate(all="ignore"):
            x, y = x * shape[:, 1], y * shape[:, 0]
    pixel_size = np.full(n, np.nan) if sizes is None else sizes
    pixel_size = np.where(np.isfinite(pixel_size) & (pixel_size > 0), pixel_size, np.nan)
    return x, y, pixel_size, None if ctf is None else (ctf.defocus_u + ctf.defocus_v) / 2


def are_segments(particles: Particles) -> bool:
    """Whether the images follow filaments, so that neighbours overlap on purpose."""
    if isinstance(particles.table, CsDataset):
        return particles.table.field("filament/filament_uid") is not None
    return particles.star is not None and any(
        "_rlnHelicalTubeID" in block.labels for block in particles.star.blocks
    )
