"""Particles: how many images there are, how large, with what pixel size; and their pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_positive, check_stack
from fastsort._types import Array, Bools, Floats, Images, Indices
from fastsort.particles.store import ArrayImages, ImageStore
from fastsort.particles.table import CtfParameters, NumberedImages, Table


@dataclass(frozen=True, eq=False)
class Particles:
    """A set of particle images, read when asked for.

    Attributes
    ----------
    store : ImageStore
        Where the pixels are.
    box : int
        Side of an image in pixels.
    pixel_size : float
        In angstroms; NaN when unknown.
    path : str or None
        The file that was opened; None for an array.
    ctf : CtfParameters or None
        None when the source does not give all that a CTF needs.
    names : sequence of str
        Such as ``000017@Extract/job012/a.mrcs``.
    micrographs : list of str or None
        The micrograph of each image.
    table : Table
        What named the images, and what a part of them is written as.
    outside : ndarray of bool, shape (n,), or None
        Images that reach over the edge of their micrograph; None where there are none.
    rescaled : ndarray of float64, shape (n,), or None
        How many pixels of its stack make one pixel of an image as it is read, where images of several boxes
        or pixel sizes were brought to one; otherwise None.
    corrected : ndarray of bool, shape (n,), or None
        Images whose phases the source says were flipped, or multiplied with the CTF; None where there are
        none.
    doubts : tuple of str
        What looks wrong in the files, a line each, with what to do.
    opened_with : dict of str to anything that JSON can hold
        What `open_particles` needs besides `path` to open the set again, with absolute paths.
    """

    store: ImageStore = field(repr=False)
    box: int
    pixel_size: float
    path: str | None = None
    ctf: CtfParameters | None = field(default=None, repr=False)
    names: Sequence[str] = field(default=(), repr=False)
    micrographs: list[str] | None = field(default=None, repr=False)
    # What is opened without a table gets one of numbers alone.
    table: Table = field(default=None, repr=False)  # type: ignore[assignment]
    outside: Bools | None = field(default=None, repr=False)
    rescaled: Floats | None = field(default=None, repr=False)
    corrected: Bools | None = field(default=None, repr=False)
    doubts: tuple[str, ...] = ()
    opened_with: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.table is None:
            object.__setattr__(self, "table", NumberedImages(self.path, len(self.store)))
        if len(self.names) == 0:
            object.__setattr__(self, "names", _NumberedNames(self.store))

    def __len__(self) -> int:
        return len(self.store)

    @property
    def files(self) -> list[str]:
        """The paths of all files that the set was read from."""
        return [*self.table.files, *self.store.files()]

    @property
    def own_pixel_size(self) -> Floats:
        """The pixel size in angstroms of each image as its stack has it, shape (n,)."""
        sizes = np.full(len(self), self.pixel_size)
        return sizes if self.rescaled is None else sizes / self.rescaled

    def part(self, start: int, stop: int) -> Particles:
        """Return a range of the images without all that is known of them, as small as a task should be."""
        return Particles(self.store.part(np.arange(start, stop)), self.box, self.pixel_size, self.path)

    @overload
    def read(self, start: int, stop: int) -> Images: ...

    @overload
    def read(self, start: npt.ArrayLike) -> Images: ...

    def read(self, start: Any, stop: int | None = None) -> Images:
        """Read images: ``read(start, stop)`` a range, ``read(indices)`` any.

        Parameters
        ----------
        start : int, or array of int, shape (n,)
            First image, or all indices, counted from 0, in any order, also
            several times.
        stop : int, optional
            One past the last image of a range.

        Returns
        -------
        images : ndarray of float32, shape (n, box, box)
            Owned, C-ordered, native; in the order asked for.

        Raises
        ------
        IndexError
            When there is no such image.
        InputError
            When a file can no longer be read.
        """
        if stop is not None:
            if not 0 <= start <= stop <= len(self):
                raise IndexError(f"images {start} to {stop} were asked for; there are {len(self)}.")
            return self.store.read(np.arange(start, stop))
        indices = np.asarray(start)
        if indices.ndim != 1 or (indices.dtype.kind not in "iu" and indices.size):
            raise IndexError(f"indices must be a list of whole numbers; got {start!r}.")
        outside = indices[(indices < 0) | (indices >= len(self))]
        if len(outside):
            raise IndexError(f"image {outside[0]} was asked for; there are {len(self)}, counted from 0.")
        return self.store.read(indices.astype(np.intp))


class _NumberedNames(Sequence[str]):
    """Names made when asked for."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: Any) -> Any:
        numbers = range(len(self))[index]
        if isinstance(numbers, range):
            return [self._store.name(number) for number in numbers]
        return self._store.name(numbers)


def evenly_spaced(n: int, number: int) -> Indices:
    """Return at most `number` positions of `n`, evenly spaced, the first and the last among them."""
    return np.linspace(0, n - 1, min(n, number)).round().astype(np.intp)


def choose_particles(particles: Particles, chosen: npt.ArrayLike) -> Particles:
    """Return some of the particles as a set of their own, without the table that named them.

    Parameters
    ----------
    particles : Particles
    chosen : ndarray of int, shape (n,)
        Which, counted from 0.

    Returns
    -------
    some : Particles
    """
    which: Indices = np.asarray(chosen, dtype=np.intp)
    return replace(
        particles,
        store=particles.store.part(which),
        ctf=particles.ctf and particles.ctf.of(which),
        names=(),
        micrographs=None,
        table=NumberedImages(particles.path, len(which)),
        outside=None if particles.outside is None else particles.outside[which],
        corrected=None if particles.corrected is None else particles.corrected[which],
        rescaled=None if particles.rescaled is None else particles.rescaled[which],
    )


def as_particles(images: Array | Particles, *, pixel_size: float | None = None) -> Particles:
    """Return images as a set of particles; a set stays what it is.

    Parameters
    ----------
    images : ndarray of shape (n, d, d), or Particles
        An array is kept and not copied.
    pixel_size : float, optional
        In angstroms. By default that of the set, and 1 for an array.

    Returns
    -------
    particles : Particles

    Raises
    ------
    InputError
        When the images are neither, or are no stack of real square images.

    Examples
    --------
    >>> import numpy as np
    >>> as_particles(np.zeros((10, 32, 32), np.float32), pixel_size=1.5).pixel_size
    1.5
    """
    given = None if pixel_size is None else check_positive("pixel_size", pixel_size, "A")
    if isinstance(images, Particles):
        return images if given is None else replace(images, pixel_size=given)
    if isinstance(images, np.ndarray):
        return Particles(ArrayImages(check_stack(images)), images.shape[1], given or 1.0)
    hint = ": open it with open_particles first" if isinstance(images, (str, os.PathLike)) else ""
    raise InputError(f"images must be an ndarray or Particles; got {type(images).__name__}{hint}.")
