"""Stores of images: whatever holds pixels and can read some of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fastsort._types import Array, Images, Indices, Numbers
from fastsort.particles.mrc import MrcHeader, announce_sections, read_sections


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

    def file_of(self) -> Indices:
        """Return which of these files each image is in, shape (n,), where there are files."""
        return np.zeros(len(self), np.intp)

    def layout(self) -> list[Array]:
        """Return what tells the images from others that the same files may hold."""
        return []

    def first_named(self) -> Indices:
        """Return for each image the first one that is the same pixels of the same file, shape (n,)."""
        return np.arange(len(self))


@dataclass(frozen=True, eq=False)
class ArrayImages(ImageStore):
    """Images of an array, which is kept and not copied."""

    array: Array

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
    stack_of: Numbers
    section_of: Numbers
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
        # One says how large images are, even if there are none.
        stacks = [self.stacks[number] for number in used.tolist()] or self.stacks[:1]
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

    def file_of(self) -> Indices:
        """Return which stack each image is in."""
        return self.stack_of.astype(np.intp)

    def layout(self) -> list[Array]:
        """Return which image is where."""
        return [self.stack_of, self.section_of, *([] if self.sign_of is None else [self.sign_of])]

    def first_named(self) -> Indices:
        """Return for each image the first one that is the same section of the same stack."""
        # A file may be named in several ways.
        number_of: dict[str, int] = {}
        files = [number_of.setdefault(os.path.realpath(stack.path), len(number_of)) for stack in self.stacks]
        keys = np.array(files, np.int64)[self.stack_of] << 32 | self.section_of
        _, first, which = np.unique(keys, return_index=True, return_inverse=True)
        return first[which]


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

    def file_of(self) -> Indices:
        """Return which of these files each image is in."""
        return self.store.file_of()[self.chosen]

    def layout(self) -> list[Array]:
        """Return what tells the images from others that the same files may hold."""
        return [*self.store.layout(), self.chosen]
