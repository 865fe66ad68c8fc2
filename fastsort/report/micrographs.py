"""The table of micrographs: made from a verdict, and written as a file."""

from __future__ import annotations

import csv

from fastsort._types import FilePath
from fastsort.decide.micrographs import MicrographTable, summarize_micrographs
from fastsort.decide.result import SortResult
from fastsort.particles.places import micrograph_places
from fastsort.particles.source import Particles
from fastsort.report.tables import formatted


def find_micrographs(particles: Particles, result: SortResult) -> MicrographTable | None:
    """Summarise a verdict for each micrograph; None if the micrographs are not known."""
    places = micrograph_places(particles)
    if places is None:
        return None
    return summarize_micrographs(places, result.keep, result.score, result.junk_probability)


def write_micrographs(path: FilePath, table: MicrographTable) -> None:
    """Write a CSV table with one line for each micrograph.

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
