"""Particles: how many images there are, how large, with what pixel size; and their pixels."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort._checks import InputError, check_box, check_positive, check_stack
from fastsort._types import Array
from fastsort.particles.mrc import MrcHeader, announce_sections, read_header, read_sections
from fastsort.particles.star import StarFile, read_star

_STACK_SUFFIXES = (".mrcs", ".mrc", ".st", ".map")

Images = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


@brief
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


class ImageStore(ABC):
    """Whatever holds images and can read some of them."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return a name for messages and tables."""

    @abstractmethod
    def read(self, indices: Indices) -> Images:
        """Return owned, C-ordered images in the order asked for; indices are valid."""

    def part(self, chosen: Indices) -> ImageStore:
        """Return a store of some of the images, which takes little to send to another process."""
        return ChosenImages(self, chosen)

    def announce(self) -> None:
        """Tell the system that all images will be read soon, where it would not see that by itself."""
        return

    def files(self) -> list[str]:
        """Return the paths of all files that hold pixels."""
        return []

    def layout(self) -> list[npt.NDArray[Any]]:
        """Return what tells the images from others that the same files may hold."""
        return []

    def repeated(self) -> npt.NDArray[np.bool_]:
        """Return which images are the same pixels of the same file as an earlier one, shape (n,)."""
        return np.zeros(len(self), bool)


class Table(Protocol):
    """What named the images, and what some of its rows are written back as."""

    @property
    def files(self) -> list[str]:
        """Return the paths of the files that it was read from."""


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
    table : StarFile, CsDataset, PickedFiles or None
        What named the images.
    outside : ndarray of bool, shape (n,), or None
        Images that reach over the edge of their micrograph; None where there are none.
    rescaled : ndarray of float64, shape (n,), or None
        How many pixels of its stack make one pixel of an image as it is read, where images of several boxes
        or pixel sizes were brought to one; otherwise None.
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
    table: Table | None = field(default=None, repr=False)
    outside: npt.NDArray[np.bool_] | None = field(default=None, repr=False)
    rescaled: npt.NDArray[np.float64] | None = field(default=None, repr=False)
    opened_with: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.names) == 0:
            object.__setattr__(self, "names", _NumberedNames(self.store))

    def __len__(self) -> int:
        return len(self.store)

    @property
    def star(self) -> StarFile | None:
        """The table, if it is a STAR file with a line an image."""
        return self.table if isinstance(self.table, StarFile) else None

    @property
    def files(self) -> list[str]:
        """The paths of all files that the set was read from."""
        named = [self.path] if self.path and not self.table else []
        return [*named, *(self.table.files if self.table else []), *self.store.files()]

    @property
    def own_pixel_size(self) -> npt.NDArray[np.float64]:
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


@dataclass(frozen=True, eq=False)
class ArrayImages(ImageStore):
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

    def part(self, chosen: Indices) -> ImageStore:
        """Return a store of some of the images; of a range, it is a view."""
        whole_range = len(chosen) > 0 and bool((np.diff(chosen) == 1).all())
        return ArrayImages(self.array[chosen[0] : chosen[-1] + 1] if whole_range else self.array[chosen])


@dataclass(frozen=True, eq=False)
class StackImages(ImageStore):
    """Images of one or more MRC stacks.

    Attributes
    ----------
    stacks : list of MrcHeader
        All of one box size.
    stack_of : ndarray of int32, shape (n,)
        Which stack each image is in.
    section_of : ndarray of int32, shape (n,)
        Where in the stack, counted from 0.
    sign_of : ndarray of int8, shape (n,), or None
        What pixels are multiplied with, 1 or -1; None for 1.
    """

    stacks: list[MrcHeader]
    stack_of: npt.NDArray[np.int32]
    section_of: npt.NDArray[np.int32]
    sign_of: npt.NDArray[np.int8] | None = None

    def __len__(self) -> int:
        return len(self.stack_of)

    def name(self, index: int) -> str:
        """Return a name for messages and tables."""
        stack = os.path.basename(self.stacks[self.stack_of[index]].path)
        return f"{self.section_of[index] + 1:06d}@{stack}"

    def read(self, indices: Indices) -> Images:
        """Read file after file, each in ascending order; then restore the order asked for."""
        stack, section = self.stack_of[indices], self.section_of[indices].astype(np.intp)
        keys = stack.astype(np.int64) << 32 | section
        order = None
        # A range of a stack ascends as it is, and looking is a tenth of the time that sorting takes.
        if not (keys[1:] > keys[:-1]).all():
            _, first, order = np.unique(keys, return_index=True, return_inverse=True)
            stack, section = stack[first], section[first]
        box = self.stacks[0].nx
        images = np.empty((len(stack), box, box), np.float32)
        ends = (np.flatnonzero(stack[1:] != stack[:-1]) + 1).tolist()
        for start, end in pairwise([0, *ends, len(stack)] if len(stack) else []):
            read_sections(self.stacks[stack[start]], section[start:end], images[start:end])
        images = images if order is None else images[order]
        if self.sign_of is not None:
            with np.errstate(invalid="ignore"):  # signalling NaN
                images *= self.sign_of[indices].astype(np.float32)[:, None, None]
        return images

    def part(self, chosen: Indices) -> ImageStore:
        """Return a store of some of the images, which knows their stacks alone."""
        used, stack_of = np.unique(self.stack_of[chosen], return_inverse=True)
        sign_of = None if self.sign_of is None else self.sign_of[chosen]
        stacks = [self.stacks[number] for number in used.tolist()]
        return replace(
            self,
            stacks=stacks,
            stack_of=stack_of.astype(np.int32),
            section_of=self.section_of[chosen],
            sign_of=sign_of,
        )

    def announce(self) -> None:
        """Tell the system which sections will be read soon."""
        keys = np.unique(self.stack_of.astype(np.int64) << 32 | self.section_of)
        for number in np.unique(self.stack_of).tolist():
            announce_sections(self.stacks[number], (keys[keys >> 32 == number] & 0xFFFFFFFF).astype(np.intp))

    def files(self) -> list[str]:
        """Return the paths of the stacks."""
        return [stack.path for stack in self.stacks]

    def layout(self) -> list[npt.NDArray[Any]]:
        """Return which image is where."""
        return [self.stack_of, self.section_of, *([] if self.sign_of is None else [self.sign_of])]

    def repeated(self) -> npt.NDArray[np.bool_]:
        """Return which images are the same section of the same stack as an earlier one."""
        repeated = np.ones(len(self), bool)
        # A file may be named in several ways.
        number_of: dict[str, int] = {}
        files = [number_of.setdefault(os.path.realpath(stack.path), len(number_of)) for stack in self.stacks]
        keys = np.array(files, np.int64)[self.stack_of] << 32 | self.section_of
        repeated[np.unique(keys, return_index=True)[1]] = False
        return repeated


@dataclass(frozen=True, eq=False)
class ChosenImages(ImageStore):
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

    def part(self, chosen: Indices) -> ImageStore:
        """Return a store of some of the images."""
        return self.store.part(self.chosen[chosen])

    def files(self) -> list[str]:
        """Return the paths of all files that hold pixels."""
        return self.store.files()

    def layout(self) -> list[npt.NDArray[Any]]:
        """Return what tells the images from others that the same files may hold."""
        return [*self.store.layout(), self.chosen]


def choose_particles(particles: Particles, chosen: npt.NDArray[np.integer[Any]]) -> Particles:
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
        table=None,
        outside=None if particles.outside is None else particles.outside[which],
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


def open_particles(
    source: str | os.PathLike[str] | npt.NDArray[Any] | Particles | tuple[Any, Any],
    *,
    box: int | None = None,
    pixel_size: float | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    passthrough: str | os.PathLike[str] | None = None,
    invert: bool = True,
) -> Particles:
    """Open a set of particle images.

    Parameters
    ----------
    source : path, ndarray of shape (n, d, d), Particles, or (micrographs, coordinates)
        A RELION .star file, a cryoSPARC .cs file, an MRC stack (.mrcs, .mrc, .st, .map), an array,
        which is kept and not copied, or an open set. Or two: micrographs and the picks in them, each
        a path, a pattern such as ``"picks/*.star"`` or a list of paths, as `open_micrographs` has them.
    box : int, optional
        Side in pixels of what is cut from micrographs; of use for these alone.
    pixel_size : float, optional
        In angstroms. By default that of the file, NaN if it has none, and 1
        for an array.
    data_dir : path, optional
        Folder in which to look first for the files that a STAR or .cs file names.
    passthrough : path, optional
        A second .cs file with more fields of the same particles; by default one that lies beside the
        first is found by its name.
    invert : bool
        Whether particles are dark in the micrographs, and are made bright; of use for these alone.

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
    picked = isinstance(source, tuple) and len(source) == 2
    if picked and box is None:
        raise InputError("particles that are cut from micrographs need a box: give it, in pixels.")
    if box is not None and not picked:
        raise InputError("box is for particles that are cut from micrographs: leave it out.")
    if isinstance(source, (Particles, np.ndarray)):
        return as_particles(source, pixel_size=given)
    again: dict[str, Any] = {"pixel_size": given, "data_dir": _absolute(data_dir)}
    if isinstance(source, tuple) and box is not None:
        from fastsort.particles.micrographs import open_micrographs

        particles = open_micrographs(*source, box, pixel_size=given, data_dir=data_dir, invert=invert)
        again |= {"micrographs": _absolute(source[0]), "coordinates": _absolute(source[1])}
        return replace(particles, opened_with={**again, "box": box, "invert": invert})
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"particles must be a path or an ndarray; got {type(source).__name__}.")
    path, suffix = os.fspath(source), Path(source).suffix.lower()
    _check_passthrough(path, passthrough)
    if suffix == ".cs":
        from fastsort.particles.cs import open_cs

        particles = open_cs(path, given, data_dir, passthrough)
        again |= {"passthrough": _absolute(passthrough)}
    elif suffix == ".star":
        from fastsort.particles.relion import open_star

        particles = open_star(path, given, data_dir)
    elif suffix in _STACK_SUFFIXES:
        particles = _open_stack(path, given)
    else:
        kinds = f".star or .cs file or an MRC stack ({', '.join(_STACK_SUFFIXES)})"
        raise InputError(f"{source} must be a {kinds}.")
    return replace(particles, opened_with=again)


def open_table(
    path: str | os.PathLike[str], passthrough: str | os.PathLike[str] | None = None
) -> tuple[Table | None, int]:
    """Open what names images, or a stack, without looking for any image.

    Parameters
    ----------
    path, passthrough : path
        As for `open_particles`.

    Returns
    -------
    table : StarFile, CsDataset or None
        None for a stack.
    n_images : int
    """
    suffix = Path(path).suffix.lower()
    _check_passthrough(path, passthrough)
    if suffix == ".star":
        star = read_star(path)
        return star, star.particles_block.n_rows
    if suffix == ".cs":
        from fastsort.particles.cs import open_dataset

        dataset = open_dataset(os.fspath(path), passthrough)
        return dataset, len(dataset)
    return None, len(open_particles(path))


def _check_passthrough(path: str | os.PathLike[str], passthrough: object) -> None:
    if passthrough is not None and Path(path).suffix.lower() != ".cs":
        raise InputError(f"a passthrough file belongs to a .cs file, and {path} is none: leave it out.")


def _absolute(paths: Any) -> Any:
    if paths is None or isinstance(paths, (str, os.PathLike)):
        return paths and os.path.abspath(paths)
    return [os.path.abspath(path) for path in paths]


def _open_stack(path: str, pixel_size: float | None) -> Particles:
    header = read_header(path)
    check_box(header.ny, header.nx, f"images of {path}")
    sections = np.arange(header.n_images, dtype=np.int32)
    store = StackImages([header], np.zeros_like(sections), sections)
    return Particles(store, header.nx, pixel_size or header.pixel_size, path)
