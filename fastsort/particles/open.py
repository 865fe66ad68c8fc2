"""The door: the only file that knows all formats, and the only one that is given paths by a user."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastsort._checks import InputError, check_box, check_not_empty, check_positive
from fastsort._types import Array, FilePath
from fastsort.particles.doubts import stack_doubts, table_doubts
from fastsort.particles.files import MOVIES
from fastsort.particles.grid import bring_to_one_grid
from fastsort.particles.kinds import check_no_micrograph, check_no_volume
from fastsort.particles.mrc import MrcHeader, read_header
from fastsort.particles.source import Particles, as_particles
from fastsort.particles.store import StackImages
from fastsort.particles.table import ImageTable, Table

# Each format is a file of this folder with one function that reads it: a new format is a line here.
STACKS = (".mrcs", ".mrc", ".st", ".map")
TABLES = {
    ".star": "relion:read_star_table",
    ".cs": "cs:read_cs_table",
}
PICKS = {
    ".star": "star_picks:read_star_picks",
    ".cs": "cs_picks:read_cs_picks",
    ".box": "box_picks:read_box_picks",
    ".cbox": "cbox_picks:read_cbox_picks",
    ".json": "eman_picks:read_eman_picks",
    ".txt": "topaz_picks:read_topaz_picks",
}


def open_particles(
    source: FilePath | Array | Particles | tuple[Any, Any],
    *,
    box: int | None = None,
    pixel_size: float | None = None,
    data_dir: FilePath | None = None,
    passthrough: FilePath | None = None,
    invert: bool = True,
) -> Particles:
    """Open a set of particle images.

    Parameters
    ----------
    source : path, ndarray of shape (n, d, d), Particles, or (micrographs, coordinates)
        A RELION .star file, a cryoSPARC .cs file, an MRC stack (.mrcs, .mrc, .st, .map), an array, which is
        kept and not copied, or a set that is open already. Or two: micrographs and the picks in them, each a
        path, a pattern such as ``"picks/*.star"`` or a list of paths, as `open_micrographs` takes them.
    box : int, optional
        Side in pixels of the images that are extracted from micrographs; for micrographs alone.
    pixel_size : float, optional
        In angstroms. By default that of the file, NaN if it has none, and 1 for an array.
    data_dir : path, optional
        Folder in which to look first for the files that a STAR or .cs file names.
    passthrough : path, optional
        A second .cs file with more fields of the same particles; by default it is found beside the first.
        For .cs files alone.
    invert : bool
        Whether particles are dark in the micrographs, and are made bright; for micrographs alone.

    Returns
    -------
    particles : Particles
        All file headers have been read and checked; no pixels yet.

    Raises
    ------
    InputError
        When the set cannot be used, or an option has no effect on it.

    Examples
    --------
    >>> import fastsort as fs, numpy as np
    >>> particles = fs.open_particles(np.ones((10, 32, 32), np.float32), pixel_size=1.5)
    >>> len(particles), particles.box, particles.pixel_size
    (10, 32, 1.5)
    """
    given = None if pixel_size is None else check_positive("pixel_size", pixel_size, "A")
    picked = isinstance(source, tuple) and len(source) == 2
    _check_options(source, picked, box, passthrough)
    if isinstance(source, (Particles, np.ndarray)):
        return as_particles(source, pixel_size=given)
    again: dict[str, Any] = {"pixel_size": given, "data_dir": _absolute(data_dir)}
    if isinstance(source, tuple) and box is not None:
        from fastsort.particles.micrographs import open_micrographs

        particles = open_micrographs(
            *source, box, read_picks, pixel_size=given, data_dir=data_dir, invert=invert
        )
        again |= {"micrographs": _absolute(source[0]), "coordinates": _absolute(source[1])}
        return replace(particles, opened_with={**again, "box": box, "invert": invert})
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"particles must be a path or an ndarray; got {type(source).__name__}.")
    path = os.fspath(source)
    if Path(path).suffix.lower() in STACKS:
        return replace(_open_stack(path, given), opened_with=again)
    if Path(path).suffix.lower() in MOVIES:
        raise InputError(
            f"{source} is a TIFF or EER file, as movies are: give particles that were extracted from its "
            "sum (.star, .cs or an MRC stack), or this sum with --micrographs and picks with --coordinates."
        )
    if Path(path).suffix.lower() not in TABLES:
        raise InputError(f"{source} must be a .star or .cs file or an MRC stack ({', '.join(STACKS)}).")
    particles = _open_images(_read_table(path, passthrough), given, data_dir)
    if passthrough is not None:
        again |= {"passthrough": _absolute(passthrough)}
    return replace(particles, opened_with=again)


def open_table(path: FilePath, passthrough: FilePath | None = None) -> Table:
    """Open what names images, or a stack, without looking for any image.

    Parameters
    ----------
    path, passthrough : path
        As for `open_particles`.

    Returns
    -------
    table : Table

    Raises
    ------
    InputError
        When the file cannot be read.
    """
    suffix = Path(path).suffix.lower()
    _check_options(path, False, None, passthrough)
    if suffix in TABLES:
        return _read_table(os.fspath(path), passthrough)
    return open_particles(path).table


def read_picks(path: str) -> Any:
    """Read a file of picks of any format.

    Parameters
    ----------
    path : str

    Returns
    -------
    picks : PickFile

    Raises
    ------
    InputError
        When it cannot be read, or its coordinates are no finite numbers.
    """
    reader = PICKS.get(Path(path).suffix.lower())
    if reader is None:
        kinds = ", ".join(PICKS)
        raise InputError(f"{path} is no file of picks that can be read: give one of {kinds}.")
    return _function(reader)(path)


def _function(place: str) -> Any:
    """Import what reads a format, when it is needed."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"fastsort.particles.{module}"), name)


def _read_table(path: str, passthrough: FilePath | None) -> ImageTable:
    reader = _function(TABLES[Path(path).suffix.lower()])
    table: ImageTable = reader(path) if passthrough is None else reader(path, passthrough)
    return table


def _check_options(source: Any, picked: bool, box: int | None, passthrough: FilePath | None) -> None:
    """Refuse options that have no effect on this source."""
    if picked and box is None:
        raise InputError("particles that are extracted from micrographs need a box: give it, in pixels.")
    if box is not None and not picked:
        raise InputError("box is for particles that are extracted from micrographs: leave it out.")
    if passthrough is None:
        return
    is_path = isinstance(source, (str, os.PathLike))
    if not is_path or Path(source).suffix.lower() != ".cs":
        what = source if is_path else "micrographs" if picked else type(source).__name__
        raise InputError(f"a passthrough file belongs to a .cs file, and {what} is none: leave it out.")


def _absolute(paths: FilePath | Sequence[FilePath] | None) -> Any:
    if paths is None or isinstance(paths, (str, os.PathLike)):
        return paths and os.path.abspath(paths)
    return [os.path.abspath(path) for path in paths]


def whole_stack(header: MrcHeader) -> StackImages:
    """Return all images of one stack."""
    sections = np.arange(header.n_images, dtype=np.int32)
    return StackImages([header], np.zeros_like(sections), sections)


def _open_stack(path: str, pixel_size: float | None) -> Particles:
    header = read_header(path)
    check_no_micrograph(header)
    check_box(header.ny, header.nx, f"images of {path}")
    check_no_volume(header)
    doubts = tuple(stack_doubts([header]))
    return Particles(whole_stack(header), header.nx, pixel_size or header.pixel_size, path, doubts=doubts)


def _open_images(table: ImageTable, pixel_size: float | None, data_dir: FilePath | None) -> Particles:
    """Find the images that a table names, and bring them to one box and pixel size."""
    check_not_empty(len(table), table.path)
    images = table.images(data_dir)
    listed = table.pixel_sizes() if pixel_size is None else None
    sizes = listed if pixel_size is None else np.full(len(images), pixel_size)
    grid = bring_to_one_grid(images, sizes, table.path, table.group_of)
    names, ctf, corrections = table.names, table.ctf(), [*table.corrections().values()]
    assert names is not None
    n_repeated = int((images.first_named() != np.arange(len(images))).sum())
    return Particles(
        grid.store,
        grid.box,
        grid.pixel_size,
        table.path,
        ctf=ctf,
        names=names,
        micrographs=table.micrographs(),
        table=table,
        rescaled=grid.rescaled,
        corrected=np.any(corrections, axis=0) if corrections else None,
        doubts=table_doubts(table, images.stacks, images.stack_of, n_repeated, listed, ctf),
    )
