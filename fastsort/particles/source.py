"""Particles: how many images there are, how large, with what pixel size; and their pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_box, check_positive, check_stack
from fastsort.particles.mrc import MrcHeader, read_header, read_sections
from fastsort.particles.star import StarFile

_STACK_SUFFIXES = (".mrcs", ".mrc", ".st", ".map")

Images = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


class CtfParameters(NamedTuple):
    """Contrast transfer parameters: arrays of float64, one entry an image."""

    defocus_u: npt.NDArray[np.float64]
    """Angstrom."""
    defocus_v: npt.NDArray[np.float64]
    """Angstrom."""
    defocus_angle: npt.NDArray[np.float64]
    """Degree, from the x axis to the direction of `defocus_u`."""
    phase_shift: npt.NDArray[np.float64]
    """Degree."""
    voltage: npt.NDArray[np.float64]
    """Kilovolt."""
    spherical_aberration: npt.NDArray[np.float64]
    """Millimetre."""
    amplitude_contrast: npt.NDArray[np.float64]
    """Fraction."""

    def of(self, chosen: Any) -> CtfParameters:
        """Return those of some of the images: a range, or an index of any kind that NumPy knows."""
        return CtfParameters(*(column[chosen] for column in self))


class ImageStore(Protocol):
    """Whatever holds images and can read some of them."""

    def __len__(self) -> int:
        """Return the number of images."""

    def name(self, index: int) -> str:
        """Return a name for messages and tables."""

    def read(self, indices: Indices) -> Images:
        """Return owned, C-ordered images in the order asked for; indices are valid."""


@dataclass(frozen=True, eq=False)
class Particles:
    """A set of particle images, read when asked for.

    A pickled copy can read images and knows the CTF, but leaves the STAR
    table and what comes from it behind, so that a task sent to another
    process stays small: `star` and `micrographs` are None there, and `names`
    are made from the stacks.

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
    star : StarFile or None
        The table that was opened.
    """

    store: ImageStore = field(repr=False)
    box: int
    pixel_size: float
    path: str | None = None
    ctf: CtfParameters | None = field(default=None, repr=False)
    names: Sequence[str] = field(default=(), repr=False)
    micrographs: list[str] | None = field(default=None, repr=False)
    star: StarFile | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.names) == 0:
            object.__setattr__(self, "names", _NumberedNames(self.store))

    def __len__(self) -> int:
        return len(self.store)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "names": _NumberedNames(self.store), "micrographs": None, "star": None}

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


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images of an array, which is kept and not copied."""

    array: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.array)

    def name(self, index: int) -> str:
        """Return a name for messages and tables."""
        return f"{index + 1:06d}@array"

    def read(self, indices: Indices) -> Images:
        """Return copies as float32; a memory map is read in ascending order."""
        chosen, order = np.unique(indices, return_inverse=True)
        whole_range = len(chosen) and chosen[-1] - chosen[0] + 1 == len(chosen)
        images = self.array[chosen[0] : chosen[-1] + 1] if whole_range else self.array[chosen]
        with np.errstate(over="ignore"):
            images = np.array(images, dtype=np.float32, order="C", subok=False)
        return images if np.array_equal(order, np.arange(len(images))) else images[order]


@dataclass(frozen=True, eq=False)
class StackImages:
    """Images of one or more MRC stacks.

    Attributes
    ----------
    stacks : list of MrcHeader
        All of one box size.
    stack_of : ndarray of int32, shape (n,)
        Which stack each image is in.
    section_of : ndarray of int32, shape (n,)
        Where in the stack, counted from 0.
    """

    stacks: list[MrcHeader]
    stack_of: npt.NDArray[np.int32]
    section_of: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.stack_of)

    def name(self, index: int) -> str:
        """Return a name for messages and tables."""
        stack = os.path.basename(self.stacks[self.stack_of[index]].path)
        return f"{self.section_of[index] + 1:06d}@{stack}"

    def read(self, indices: Indices) -> Images:
        """Read file after file, each in ascending order; then restore the order asked for."""
        places = np.stack([self.stack_of[indices], self.section_of[indices]], axis=1)
        keys = places[:, 0].astype(np.int64) << 32 | places[:, 1]
        keys, first, order = np.unique(keys, return_index=True, return_inverse=True)
        places = places[first]
        box = self.stacks[0].nx
        images = np.empty((len(places), box, box), np.float32)
        ends = np.flatnonzero(np.diff(places[:, 0], append=-1)) + 1
        start = 0
        for end in ends.tolist():
            sections = places[start:end, 1].astype(np.intp)
            read_sections(self.stacks[places[start, 0]], sections, images[start:end])
            start = end
        return images if np.array_equal(order, np.arange(len(images))) else images[order]


@dataclass(frozen=True, eq=False)
class ChosenImages:
    """Some of the images of another store.

    Attributes
    ----------
    store : ImageStore
    chosen : ndarray of intp, shape (n,)
        Which, in the order in which they count here.
    """

    store: ImageStore
    chosen: Indices

    def __len__(self) -> int:
        return len(self.chosen)

    def name(self, index: int) -> str:
        """Return a name for messages and tables."""
        return self.store.name(int(self.chosen[index]))

    def read(self, indices: Indices) -> Images:
        """Read from the other store."""
        return self.store.read(self.chosen[indices])


def choose_particles(particles: Particles, chosen: npt.NDArray[np.integer[Any]]) -> Particles:
    """Return some of the particles as a set of their own, without its STAR table.

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
    ctf = particles.ctf and particles.ctf.of(which)
    store: ImageStore = ChosenImages(particles.store, which)
    if isinstance(particles.store, StackImages):
        stacks = particles.store
        store = replace(stacks, stack_of=stacks.stack_of[which], section_of=stacks.section_of[which])
    return replace(particles, store=store, ctf=ctf, names=(), micrographs=None, star=None)


def open_particles(
    source: str | os.PathLike[str] | npt.NDArray[Any] | Particles,
    *,
    pixel_size: float | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Particles:
    """Open a set of particle images.

    Parameters
    ----------
    source : path, ndarray of shape (n, d, d), or Particles
        A RELION .star file, an MRC stack (.mrcs, .mrc, .st, .map), an array,
        which is kept and not copied, or an open set.
    pixel_size : float, optional
        In angstroms. By default that of the file, NaN if it has none, and 1
        for an array.
    data_dir : path, optional
        Folder in which to look first for the stacks that a STAR file names.

    Returns
    -------
    particles : Particles
        All file headers have been read and checked; no pixels yet.

    Raises
    ------
    InputError
        When the set cannot be used.
    """
    given = None if pixel_size is None else check_positive("pixel_size", pixel_size, "A")
    if isinstance(source, Particles):
        return source if given is None else replace(source, pixel_size=given)
    if isinstance(source, np.ndarray):
        return Particles(ArrayImages(check_stack(source)), source.shape[1], given or 1.0)
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"particles must be a path or an ndarray; got {type(source).__name__}.")
    suffix = Path(source).suffix.lower()
    if suffix == ".star":
        from fastsort.particles.relion import open_star

        return open_star(os.fspath(source), given, data_dir)
    if suffix in _STACK_SUFFIXES:
        return _open_stack(os.fspath(source), given)
    raise InputError(f"{source} must be a .star file or an MRC stack ({', '.join(_STACK_SUFFIXES)}).")


def _open_stack(path: str, pixel_size: float | None) -> Particles:
    header = read_header(path)
    check_box(header.ny, header.nx, f"images of {path}")
    sections = np.arange(header.n_images, dtype=np.int32)
    store = StackImages([header], np.zeros_like(sections), sections)
    return Particles(store, header.nx, pixel_size or header.pixel_size, path)
