"""Picks in STAR files: those of RELION, and of programs that write as it does, such as crYOLO and Topaz."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fastsort._checks import InputError
from fastsort._types import Bools
from fastsort.particles.picks import PickFile, check_finite
from fastsort.particles.relion import join_optics, listed_ctf
from fastsort.particles.star import StarBlock, StarFile, read_star, subset_bytes
from fastsort.particles.table import Added

# In .cbox files of crYOLO.
_FILAMENT, _NO_FILAMENT = "_filamentid", ("<NA>", "nan", "None")


@dataclass(frozen=True, eq=False)
class StarPicks(PickFile):
    """Picks in a table of a STAR file.

    Attributes
    ----------
    star : StarFile
    block : StarBlock
        The table with one row a pick.
    """

    star: StarFile = field(repr=False)
    block: StarBlock = field(repr=False)

    @property
    def has_segments(self) -> bool:
        """Whether RELION or crYOLO counts the filaments that the picks belong to."""
        labels = self.block.labels
        return "_rlnHelicalTubeID" in labels or (
            _FILAMENT in labels and any(word not in _NO_FILAMENT for word in self.block.column(_FILAMENT))
        )

    def write(self, path: str, kept: Bools, added: Added) -> None:
        """Write the file with some of the rows, and more columns."""
        with open(path, "wb") as file:
            if self.block.labels:
                file.writelines(subset_bytes(self.star, kept, added.labels, self.block))
            else:
                file.write(self.star.text)


def read_star_picks(path: str) -> StarPicks:
    """Read picks of RELION: a table with ``_rlnCoordinateX`` and ``_rlnCoordinateY``.

    Raises
    ------
    InputError
        When the file cannot be read, or its coordinates are no finite numbers.
    """
    star = read_star(path)
    block = star.table_with("_rlnCoordinateX", "_rlnCoordinateY")
    # Of no picks, RELION writes a table without columns.
    block = block or next((block for block in star.blocks if not block.labels), None)
    if block is None:
        raise InputError(
            f"{path} has no table with _rlnCoordinateX and _rlnCoordinateY: give the picks of a RELION job."
        )
    if not block.labels:
        return StarPicks(path, None, np.zeros(0), np.zeros(0), None, star, block)
    x, y = block.floats("_rlnCoordinateX"), block.floats("_rlnCoordinateY")
    check_finite(x, y, lambda row: f"line {block.line_number(row)} of {path}")
    if "_rlnMicrographName" not in block.labels:
        return StarPicks(path, None, x, y, None, star, block)
    ctf = listed_ctf(join_optics(star, block)) if "_rlnDefocusU" in block.labels else None
    return StarPicks(path, block.column("_rlnMicrographName"), x, y, ctf, star, block)
