"""The picture and the page of a run: drawn after sorting, and drawn again from a finished run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fastsort._checks import InputError
from fastsort._types import FilePath
from fastsort.decide.result import SortResult
from fastsort.particles.source import Particles
from fastsort.report.finished import Finished
from fastsort.report.folder import PAGE, PICTURE
from fastsort.report.micrographs import find_micrographs


def draw_results(folder: FilePath, particles: Particles, result: SortResult) -> None:
    """Write the page ``report.html`` and draw the picture ``report.png``.

    Parameters
    ----------
    folder : path
        An existing folder.
    particles : Particles
        What was sorted; some of the images are read.
    result : SortResult

    Raises
    ------
    ImportError
        When matplotlib is not installed; the page is written first.
    OSError
        When the disk refuses.
    """
    for name in (PAGE, PICTURE):
        _draw(Path(folder) / name, particles, result)


def redraw(finished: Finished, path: FilePath | None = None) -> list[Path]:
    """Draw the picture and write the page of a finished run again.

    Parameters
    ----------
    finished : Finished
    path : path, optional
        A new .html file for the page, or a new .png file for the picture. By default both are replaced
        in the folder of the run.

    Returns
    -------
    written : list of Path

    Raises
    ------
    InputError
        If `path` exists, or is neither .html nor .png.
    ImportError
        When matplotlib is not installed.
    OSError
        When the disk refuses; earlier files stay as they were.
    """
    if path is None:
        folder = finished.folder.resolve()
        targets, beside = [folder / PAGE, folder / PICTURE], folder.parent
    else:
        target = Path(path).absolute()
        if target.suffix.lower() not in (".html", ".png"):
            raise InputError(f"{path} must end in .html or .png: the report is a page and a picture.")
        if os.path.lexists(target):
            raise InputError(f"{path} exists: give another name.")
        if not target.parent.is_dir():
            raise InputError(f"{target.parent} is no folder: make it, or give another name.")
        targets, beside = [target], target.parent
    with tempfile.TemporaryDirectory(prefix=".fastsort-", dir=beside) as partial:
        for target in targets:
            drawn = Path(partial) / f"report{target.suffix.lower()}"
            _draw(drawn, finished.particles, finished.result)
            os.replace(drawn, target)
    return targets


def _draw(path: Path, particles: Particles, result: SortResult) -> None:
    if path.suffix == Path(PAGE).suffix:
        from fastsort.report.page import write_page

        write_page(path, particles, result, find_micrographs(particles, result))
    else:
        from fastsort.report.plots import draw_report

        draw_report(path, particles, result)
