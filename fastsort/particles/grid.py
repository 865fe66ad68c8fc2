"""Images of several boxes or pixel sizes, brought to one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import MIN_BOX, InputError, check_box
from fastsort._crop import apply_crop, crop_operator
from fastsort._types import Floats, Images, Indices
from fastsort.particles.kinds import check_no_micrograph
from fastsort.particles.store import ImageStore, StackImages

_SAME_PIXEL_SIZE = 1e-4
# Before they are cropped they may be much larger than what they become.
_IMAGES_AT_ONCE = 32
# Each takes an operator of up to 4 MB.
_MOST_KINDS = 200


class Grid(NamedTuple):
    """Images that all have one box and one pixel size.

    Attributes
    ----------
    store : ImageStore
    box : int
        In pixels.
    pixel_size : float
        In angstroms; NaN where it is unknown.
    rescaled : ndarray of float64, shape (n,), or None
        How many pixels of its stack make one pixel of each image; None where all are as in their stacks.
    """

    store: ImageStore
    box: int
    pixel_size: float
    rescaled: Floats | None


def bring_to_one_grid(
    images: StackImages, pixel_sizes: Floats | None, path: str, group_of: Callable[[int], str] | None = None
) -> Grid:
    """Find a box and a pixel size that all images of a table can have.

    Parameters
    ----------
    images : StackImages
        Of stacks of any square boxes.
    pixel_sizes : ndarray of float64, shape (n,), or None
        In angstroms, as the table has them; None leaves them to the headers of the stacks, and where one
        of these has none, all count as the same.
    path : str
        The table, for messages.
    group_of : callable, optional
        Gives the name of an image's optics group, for messages.

    Returns
    -------
    grid : Grid
        With the largest pixel size and the smallest field of view of all.

    Raises
    ------
    InputError
        When images are not square or no sensible box, or have too little in common.
    """
    for stack in images.stacks:
        check_no_micrograph(stack)
        check_box(stack.ny, stack.nx, f"images of {stack.path}")
    boxes = np.array([stack.nx for stack in images.stacks])[images.stack_of]
    if pixel_sizes is None:
        sizes = np.array([stack.pixel_size for stack in images.stacks])[images.stack_of]
        known = bool(np.isfinite(sizes).all())
        sizes = sizes if known else np.ones(len(images))
    else:
        sizes, known = pixel_sizes, True
    if boxes.min() == boxes.max() and sizes.max() <= sizes.min() * (1 + _SAME_PIXEL_SIZE):
        return Grid(images, int(boxes[0]), float(sizes[0]) if known else np.nan, None)
    sizes = _levelled(sizes)
    kinds, kind_of = np.unique(np.stack([boxes, sizes], axis=1), axis=0, return_inverse=True)
    kind_of = kind_of.reshape(-1).astype(np.int32)
    if len(kinds) > _MOST_KINDS:
        raise InputError(
            f"the images of {path} are of {len(kinds)} different boxes or pixel sizes (these are from "
            f"{kinds[:, 1].min():.5g} to {kinds[:, 1].max():.5g}), which is more than {_MOST_KINDS}: "
            "correct the pixel sizes, or give one for all."
        )
    pixel_size = float(kinds[:, 1].max()) if known else np.nan
    with np.errstate(over="ignore"):
        steps = kinds[:, 1].max() / kinds[:, 1]
    box = int(np.floor(kinds[:, 0] / steps + 1e-6).min())
    if box < MIN_BOX:
        listed = []
        for kind, (side, size) in enumerate(kinds.tolist()):
            mine = np.flatnonzero(kind_of == kind)
            name = f"optics group {group_of(int(mine[0]))}: " if group_of else ""
            listed.append(f"{name}box {side:.0f} px, pixel size {size:.5g} A, {len(mine)} images")
        raise InputError(
            f"the images of {path} have too little in common ({'; '.join(listed)}): with the largest pixels "
            f"and the smallest field of view of all a box would have {box} px. Correct the pixel sizes, or "
            "sort each kind by itself."
        )
    stores: list[ImageStore] = [images.part(np.flatnonzero(kind_of == kind)) for kind in range(len(kinds))]
    place = np.empty(len(images), np.int64)
    for kind, store in enumerate(stores):
        place[kind_of == kind] = np.arange(len(store))
    operators = [
        None if step == 1 else crop_operator(int(side), box, step)
        for side, step in zip(kinds[:, 0], steps, strict=True)
    ]
    return Grid(GridImages(stores, operators, box, kind_of, place), box, pixel_size, steps[kind_of])


def _levelled(sizes: Floats) -> Floats:
    """Give pixel sizes that differ by rounding alone the same value."""
    values, which = np.unique(sizes, return_inverse=True)
    for i in range(1, len(values)):
        if values[i] <= values[i - 1] * (1 + _SAME_PIXEL_SIZE):
            values[i] = values[i - 1]
    levelled: Floats = values[which]
    return levelled


@dataclass(frozen=True, eq=False)
class GridImages(ImageStore):
    """Images of several kinds, cropped to one box and one pixel size as they are read.

    Attributes
    ----------
    stores : list of ImageStore
        One for each kind.
    operators : list of ndarray of float32, shape (box, own box), or None
        From `crop_operator`; None where pixels stay as they are and only the box shrinks.
    box : int
    kind_of : ndarray of int, shape (n,)
    place : ndarray of int64, shape (n,)
        Of each image in the store of its kind.
    """

    stores: list[ImageStore]
    operators: list[npt.NDArray[np.float32] | None]
    box: int
    kind_of: npt.NDArray[np.signedinteger[Any]]
    place: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kind_of)

    def name(self, index: int) -> str:
        """Return a name for messages and tables."""
        return self.stores[self.kind_of[index]].name(int(self.place[index]))

    def read(self, indices: Indices) -> Images:
        """Read kind after kind, and crop."""
        images = np.empty((len(indices), self.box, self.box), np.float32)
        kinds = self.kind_of[indices]
        for kind in np.unique(kinds).tolist():
            mine = np.flatnonzero(kinds == kind)
            for start in range(0, len(mine), _IMAGES_AT_ONCE):
                some = mine[start : start + _IMAGES_AT_ONCE]
                own = self.stores[kind].read(self.place[indices[some]].astype(np.intp))
                operator = self.operators[kind]
                if operator is None:
                    first = own.shape[1] // 2 - self.box // 2
                    images[some] = own[:, first : first + self.box, first : first + self.box]
                else:
                    with np.errstate(all="ignore"):  # what is not finite stays so, and is told later
                        images[some] = apply_crop(own, operator)
        return images

    def part(self, chosen: Indices) -> ImageStore:
        """Return a store of some of the images, which knows their stacks alone."""
        kinds, kind_of = np.unique(self.kind_of[chosen], return_inverse=True)
        stores: list[ImageStore] = []
        place = np.empty(len(chosen), np.int64)
        for number, kind in enumerate(kinds.tolist()):
            mine = kind_of == number
            stores.append(self.stores[kind].part(self.place[chosen[mine]].astype(np.intp)))
            place[mine] = np.arange(mine.sum())
        operators = [self.operators[kind] for kind in kinds.tolist()]
        return GridImages(stores, operators, self.box, kind_of.astype(np.int32), place)

    def announce(self) -> None:
        """Tell the system which sections will be read soon."""
        for store in self.stores:
            store.announce()

    def files(self) -> list[str]:
        """Return the paths of the stacks."""
        return [path for store in self.stores for path in store.files()]

    def file_of(self) -> Indices:
        """Return which of these stacks each image is in."""
        file_of = np.empty(len(self), np.intp)
        n_before = 0
        for kind, store in enumerate(self.stores):
            mine = self.kind_of == kind
            file_of[mine] = n_before + store.file_of()[self.place[mine]]
            n_before += len(store.files())
        return file_of

    def layout(self) -> list[npt.NDArray[Any]]:
        """Return which image is where, and what is made of it."""
        return [self.kind_of, self.place, *(part for store in self.stores for part in store.layout())]

    def first_named(self) -> Indices:
        """Return for each image the first one of its kind that is the same section of the same stack."""
        first = np.arange(len(self))
        for kind, store in enumerate(self.stores):
            mine = np.flatnonzero(self.kind_of == kind)
            _, earliest, which = np.unique(
                store.first_named()[self.place[mine]], return_index=True, return_inverse=True
            )
            first[mine] = mine[earliest[which]]
        return first
