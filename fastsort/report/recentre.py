"""Recentring: where particles lie in their images, as RELION and cryoSPARC take it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError
from fastsort._types import Bools, Floats
from fastsort.particles.source import Particles
from fastsort.particles.table import Added
from fastsort.report.tables import formatted


def recentred(particles: Particles, offset: npt.ArrayLike, keep: npt.ArrayLike) -> Added:
    """Return what tells RELION or cryoSPARC how to centre each image, in the format that was opened.

    Parameters
    ----------
    particles, offset, keep
        As for `origin_columns`, and from a .cs file, too.

    Returns
    -------
    added : Added
        Labels as from `origin_columns`; or the fields that the table's `recentred` returns.

    Raises
    ------
    InputError
        If the format cannot say where particles lie, or something that this needs is unknown.
    """
    table = particles.table
    if table.takes == "labels" and not table.has_picks:
        return Added(labels=origin_columns(particles, offset, keep))
    places, kept = _checked(particles, offset, keep)
    if particles.rescaled is not None:
        places = places * particles.rescaled[:, None]
    new = kept & np.isfinite(places).all(axis=1)
    return Added(fields=table.recentred(places, new, particles.pixel_size))


def origin_columns(particles: Particles, offset: npt.ArrayLike, keep: npt.ArrayLike) -> dict[str, list[str]]:
    """Return the columns that tell RELION how to centre each image.

    Parameters
    ----------
    particles : Particles
        From a STAR file.
    offset : array of float, shape (n, 2)
        Where the particle lies: row and column from pixel box // 2, in input
        pixels. Where one is not finite, the old value stays.
    keep : array of bool, shape (n,)
        Which images are centred. The old value of the others stays: what was
        measured on them is not where a particle lies.

    Returns
    -------
    columns : dict of str to list of str
        For `Added`: ``_rlnOriginXAngst`` and ``_rlnOriginYAngst`` in
        angstroms for a table with optics groups (RELION 3.1 and later), else
        ``_rlnOriginX`` and ``_rlnOriginY`` in pixels. An old value that the table
        does not have is 0.

    Raises
    ------
    InputError
        If no STAR file was opened, there is not one offset for each image, an
        old value is not a number, or the pixel size is needed and unknown.

    Notes
    -----
    The origin is the shift that RELION applies to centre an image: minus the
    offset. The new values replace the old ones and are not added to them, for
    the offset was measured on the images as they stand in the stack.
    """
    n = len(particles)
    origins = particles.table.origins()
    places, kept = _checked(particles, offset, keep)
    scale = np.ones(n) if origins.pixel_size is None else _pixel_sizes(origins.pixel_size, particles)
    if particles.rescaled is not None:
        scale = scale * particles.rescaled
    # Minus zero would be written with its sign.
    origin = 0.0 - places * scale[:, None]
    new = kept & np.isfinite(origin).all(axis=1)
    columns = {}
    for label, old, values in zip(origins.labels, origins.old, (origin[:, 1], origin[:, 0]), strict=True):
        words = formatted(np.where(new, values, 0), "%.6f")
        columns[label] = [word if is_new else was for word, was, is_new in zip(words, old, new, strict=True)]
    return columns


def _checked(particles: Particles, offset: npt.ArrayLike, keep: npt.ArrayLike) -> tuple[Floats, Bools]:
    """Refuse places that are not those of these particles."""
    n = len(particles)
    places, kept = np.asarray(offset, np.float64), np.asarray(keep, bool)
    if places.shape != (n, 2) or kept.shape != (n,):
        raise InputError(
            f"offset and keep must have shapes ({n}, 2) and ({n},), one entry for each image; "
            f"got {places.shape} and {kept.shape}."
        )
    return places, kept


def _pixel_sizes(sizes: Floats, particles: Particles) -> Floats:
    """Return the pixel size by which RELION will divide; where the table has none, the user has given it."""
    if not np.isnan(sizes).all():
        return sizes
    if not math.isfinite(particles.pixel_size):
        raise InputError(
            f"{particles.path} needs origins in angstroms, but its pixel size is unknown: give it."
        )
    return np.full(len(particles), particles.pixel_size)
