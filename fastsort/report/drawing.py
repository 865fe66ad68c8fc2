"""The picture and the page of a run: drawn after sorting, and drawn again from a finished run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from fastsort._checks import InputError
from fastsort._types import FilePath
from fastsort.decide.result import SortResult
from fastsort.particles.source import Particles
from fastsort.report.denoised_tiles import TileDenoiser, learn_tiles
from fastsort.report.finished import Finished
from fastsort.report.folder import PAGE, PAGE_IMAGES, PICTURE, listed_folder
from fastsort.report.micrographs import find_micrographs
from fastsort.report.painter import Painter
from fastsort.report.picture import picture_png
from fastsort.report.plots import draw_report, picture_of
from fastsort.report.words import SORTED, Words


def draw_results(
    folder: FilePath,
    particles: Particles,
    result: SortResult,
    *,
    denoised: bool = False,
    made: dict[str, Any] | None = None,
    painter: Painter | None = None,
    n_jobs: int | None = None,
) -> None:
    """Write the page ``report.html`` and draw the picture ``report.png``.

    Parameters
    ----------
    folder : path
        An existing folder. Gets ``report_images`` too, if the set is too large for a page of one file.
    particles : Particles
        What was sorted; its images are read once.
    result : SortResult
    denoised : bool
        Whether the picture shows denoised images, and the page does on a switch.
    made : dict, optional
        As from `how_made`, for the page.
    painter : Painter, optional
        Draws the picture while the page is written; not that of the subspaces method.
    n_jobs : int, optional
        Workers, as joblib counts them.

    Raises
    ------
    ImportError
        When matplotlib is not installed; the page is written first.
    OSError
        When the disk refuses.
    """
    folder = Path(folder)
    denoiser = learn_tiles(particles, result) if denoised else None
    picture = picture_of(particles, result, denoiser=denoiser)
    if painter is not None:
        painter.begin(picture)
    how: dict[str, Any] = {"denoiser": denoiser, "made": made, "n_jobs": n_jobs}
    draw_page(folder / PAGE, folder / PAGE_IMAGES, PAGE_IMAGES, particles, result, **how)
    png = None if painter is None else painter.end()
    (folder / PICTURE).write_bytes(picture_png(picture) if png is None else png)


def redraw(
    finished: Finished,
    path: FilePath | None = None,
    *,
    denoised: bool = False,
    n_jobs: int | None = None,
) -> list[Path]:
    """Draw the picture and write the page of a finished run again.

    Parameters
    ----------
    finished : Finished
    path : path, optional
        A new .html file for the page, or a new .png file for the picture. By default both are replaced
        in the folder of the run. The images of a page too large for one file lie beside it, in a folder of
        its name with ``_images``.
    denoised, n_jobs
        As for `draw_results`.

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
        for name in (target, _images_beside(target)):
            if os.path.lexists(name):
                raise InputError(f"{name} exists: give another name.")
        if not target.parent.is_dir():
            raise InputError(f"{target.parent} is no folder: make it, or give another name.")
        targets, beside = [target], target.parent
    particles, result, made = finished.particles, finished.result, finished.summary.get("made")
    denoiser = learn_tiles(particles, result) if denoised else None
    with tempfile.TemporaryDirectory(prefix=".fastsort-", dir=beside) as partial:
        for target in targets:
            drawn, images = Path(partial) / target.name, _images_beside(target)
            if target.suffix.lower() == ".png":
                draw_report(drawn, particles, result, denoiser=denoiser)
            else:
                drawn_images = Path(partial) / images.name
                how: dict[str, Any] = {"denoiser": denoiser, "made": made, "n_jobs": n_jobs}
                draw_page(drawn, drawn_images, images.name, particles, result, **how)
                if images.exists():
                    images.rename(Path(partial) / "earlier")
                if drawn_images.exists():
                    drawn_images.rename(images)
            os.replace(drawn, target)
    return targets


def _images_beside(page: Path) -> Path:
    return page.with_name(f"{page.stem}_images")


def draw_page(
    path: Path,
    images: Path,
    address: str,
    particles: Particles,
    result: SortResult,
    *,
    denoiser: TileDenoiser | None = None,
    made: dict[str, Any] | None = None,
    words: Words = SORTED,
    mark: str | None = None,
    n_jobs: int | None = None,
) -> None:
    """Write the page of a verdict, with the micrographs that are at hand.

    Parameters
    ----------
    path : Path
        The page.
    images : Path
        A new folder for the files beside it; it is made if there are any.
    address : str
        Of that folder, seen from the page.
    particles, result, denoiser, made, words, mark, n_jobs
        As for `write_page`.
    """
    from fastsort.report.page import page_files, write_page
    from fastsort.report.page_micrographs import micrographs_at_hand

    at_hand = micrographs_at_hand(particles, result)
    names = page_files(len(particles), particles.box, denoised=denoiser is not None, at_hand=at_hand)
    write_page(
        path,
        particles,
        result,
        find_micrographs(particles, result),
        denoiser=denoiser,
        at_hand=at_hand,
        beside=listed_folder(images, names) if names else None,
        address=address,
        made=made,
        words=words,
        mark=mark,
        n_jobs=n_jobs,
    )
