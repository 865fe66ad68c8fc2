"""Picks in .cs files of cryoSPARC: fractions of the sides of the micrograph."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fastsort._checks import InputError
from fastsort._types import Array, Bools, Floats
from fastsort.particles.cs import CsDataset, dataset_ctf, dataset_numbers, dataset_texts, moved_fractions
from fastsort.particles.cs_file import read_cs, write_cs
from fastsort.particles.picks import PickFile, check_finite
from fastsort.particles.table import Added

# What is left of whole pixels after they were fractions of a micrograph in single precision.
_FRACTION_ERROR = 2e-3
_SAME_SHAPE = 0.01
_NEEDED = ("location/micrograph_path", "location/center_x_frac", "location/center_y_frac")


@dataclass(frozen=True, eq=False)
class CsPicks(PickFile):
    """Picks of a cryoSPARC dataset; x and y are fractions of the sides.

    Attributes
    ----------
    dataset : CsDataset
    """

    dataset: CsDataset = field(repr=False)

    @property
    def has_segments(self) -> bool:
        """Whether the picks follow filaments."""
        return self.dataset.has_segments

    def in_pixels(self, width: Floats, height: Floats, micrographs: list[str]) -> tuple[Floats, Floats]:
        """Return coordinates in pixels of the micrographs as they are, whatever their binning."""
        shapes = self.dataset.field("location/micrograph_shape")
        if shapes is not None and shapes.shape[1:] == (2,) and shapes.dtype.kind in "iuf":
            own_height, own_width = shapes.astype(np.float64).T
            unlike = np.abs(own_width * height - own_height * width) > _SAME_SHAPE * own_height * width
            if unlike.any():
                row = int(unlike.argmax())
                raise InputError(
                    f"row {row} of {self.path} was picked in a micrograph of {own_width[row]:g} x "
                    f"{own_height[row]:g} px, but {micrographs[row]} has {width[row]:g} x "
                    f"{height[row]:g} px: give the micrographs in which the particles were picked."
                )
        return _whole_pixels(self.x * width), _whole_pixels(self.y * height)

    def recentred(self, offset: Floats, new: Bools, pixel_size: float) -> dict[str, Array]:
        """Return ``location/center_*_frac`` moved by so many pixels of the micrographs that were given."""
        moved = offset[:, ::-1]
        own = dataset_numbers(self.dataset, "location/micrograph_psize_A")
        if own is not None and (own > 0).all() and np.isfinite(pixel_size):
            # Another binning than that of the micrographs in which they were picked.
            moved = moved * (pixel_size / own)[:, None]
        return moved_fractions(self.dataset, moved, new)

    def write(self, path: str, kept: Bools, added: Added) -> None:
        """Write the dataset with some of the rows, and more fields."""
        write_cs(path, self.dataset.rows, np.flatnonzero(kept), added.fields)


def _whole_pixels(pixels: Floats) -> Floats:
    whole = np.round(pixels)
    return np.where(np.abs(pixels - whole) < _FRACTION_ERROR, whole, pixels)


def read_cs_picks(path: str) -> CsPicks:
    """Read picks of cryoSPARC: a dataset with ``location/*``.

    Raises
    ------
    InputError
        When the file cannot be read, lacks a field, or its coordinates are no finite numbers.
    """
    dataset = CsDataset(path, read_cs(path))
    for name in _NEEDED:
        if dataset.field(name) is None:
            raise InputError(f"{path} has no field {name}: give picks, or the passthrough file that has it.")
    x, y = (dataset_numbers(dataset, name) for name in _NEEDED[1:])
    assert x is not None and y is not None
    if not len(dataset):
        return CsPicks(path, [], x, y, None, dataset)
    check_finite(x, y, lambda row: f"row {row} of {path}")
    paths, path_of = dataset_texts(dataset, _NEEDED[0])
    names = [paths[number] for number in path_of.tolist()]
    return CsPicks(path, names, x, y, dataset_ctf(dataset), dataset)
