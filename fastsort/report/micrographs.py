"""The table of micrographs as a file."""

from __future__ import annotations

import csv
import os

from fastsort.decide.micrographs import MicrographTable
from fastsort.report.tables import formatted


def write_micrographs(path: str | os.PathLike[str], table: MicrographTable) -> None:
    """Write a CSV table: a line a micrograph.

    Parameters
    ----------
    path : path
        Gets the columns micrograph, images, kept, junk_share, mean_score,
        defocus_angstrom and drop (1 or 0); an unknown number is nan.
    table : MicrographTable
        As from `summarize_micrographs`.

    Raises
    ------
    OSError
        When the disk refuses.
    """
    numbers = {
        "images": table.n_images,
        "kept": table.n_kept,
        "junk_share": table.junk_share,
        "mean_score": table.mean_score,
        "defocus_angstrom": table.defocus,
        "drop": table.drop,
    }
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["micrograph", *numbers])
        columns = [formatted(values, "%.7g") for values in numbers.values()]
        writer.writerows(zip(table.name, *columns, strict=True))
