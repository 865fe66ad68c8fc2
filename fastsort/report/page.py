"""The page ``report.html``: all images to look at and to choose from after sorting."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastsort._types import FilePath
from fastsort.decide.by_hand import mark_of
from fastsort.decide.micrographs import MicrographTable
from fastsort.decide.result import SortResult
from fastsort.particles.source import Particles
from fastsort.report.denoised_tiles import TileDenoiser
from fastsort.report.page_data import class_data, column_data, page_data, shown_order
from fastsort.report.page_html import errors_html, micrographs_html, run_html, verdict_html
from fastsort.report.page_micrographs import AtHand, picture_columns
from fastsort.report.page_tiles import PER_SHEET, ROWS, denoised_sheets, sheet_png, side_of, tile_sheets
from fastsort.report.words import MAPPED, SORTED, Words, one_line

# With more images than this, tiles and columns lie in a folder beside the page.
IN_ONE_FILE = 2_500
COLUMNS = "columns.js"
# In the order in which they are put together.
SCRIPTS = ("tools", "state", "choices", "threshold", "images", "map", "pictures", "micrographs", "start")
_SLOT = re.compile(r"<!-- (\w+) -->")


def page_files(n: int, box: int, *, denoised: bool = False, at_hand: AtHand | None = None) -> list[str]:
    """Return the names of the files beside the page of a set; none where the page is one file.

    Parameters
    ----------
    n, box : int
        Number of images, and their side in pixels.
    denoised : bool
        Whether denoised images are shown too.
    at_hand : AtHand, optional
        The micrographs that are shown.

    Returns
    -------
    names : list of str
    """
    pictures = [] if at_hand is None else at_hand.files
    if n <= IN_ONE_FILE:
        return pictures
    kinds = ("tiles", "denoised")[: 1 + denoised] if side_of(n, box) else ()
    numbers = range(-(-n // PER_SHEET))
    sheets = (_sheet_name(kind, number) for kind in kinds for number in numbers)
    return [COLUMNS, *sheets, *pictures]


def _sheet_name(kind: str, number: int) -> str:
    return f"{kind}_{number:05d}.png"


def write_page(
    path: FilePath,
    particles: Particles,
    result: SortResult,
    micrographs: MicrographTable | None = None,
    *,
    denoiser: TileDenoiser | None = None,
    at_hand: AtHand | None = None,
    beside: FilePath | None = None,
    address: str = "",
    made: dict[str, Any] | None = None,
    words: Words = SORTED,
    mark: str | None = None,
    n_jobs: int | None = None,
) -> None:
    """Write a page on which one looks at all images and chooses among them.

    Parameters
    ----------
    path : path
        The file to write. The same input gives the same bytes.
    particles : Particles
        What was sorted; all images are read once, in the order of the files.
    result : SortResult
        As from `sort_particles`.
    micrographs : MicrographTable, optional
        As from `summarize_micrographs`.
    denoiser : TileDenoiser, optional
        As from `learn_tiles`; with it a switch on the page shows denoised images.
    at_hand : AtHand, optional
        As from `micrographs_at_hand`: micrographs that are shown with the images picked in them.
    beside : path, optional
        An existing folder for the files that `page_files` names. Not needed up to 2,500 images without
        micrographs, of which the page is one file.
    address : str
        Of that folder, seen from the page.
    made : dict, optional
        As from `how_made`.
    words : Words
        What reasons are called. With those of a map, the page has no errors and no threshold.
    mark : str, optional
        Of the result, for choices; by default as from `mark_of`.
    n_jobs : int, optional
        Workers, as joblib counts them. The page does not depend on it.

    Raises
    ------
    InputError
        If images can no longer be read.
    OSError
        When the disk refuses.

    Notes
    -----
    The page opens with the run's own verdict on each image. A threshold on the junk probability replaces it,
    and images, classes, micrographs and parts of the map are kept or rejected by hand. What was chosen is
    saved as a file for ``fastsort apply``. Above 1,000,000 images the page shows numbers only.
    """
    n, size = len(particles), side_of(len(particles), particles.box)
    order = shown_order(result)
    name = one_line(Path(particles.path).name if particles.path else "array")
    whole = n <= IN_ONE_FILE
    folder = None if whole or beside is None else Path(beside)
    sheets: dict[str, list[str]] = {}
    if size:
        tiles = tile_sheets(particles, result, order, n_jobs=n_jobs)
        sheets["tiles"] = list(_placed(folder, address, "tiles", tiles))
    if size and denoiser is not None:
        sheets["denoised"] = list(_placed(folder, address, "denoised", denoised_sheets(denoiser, order)))
    columns = column_data(particles, result, order)
    if at_hand is not None and beside is not None:
        pictures = picture_columns(at_hand, particles, result, Path(beside), address, n_jobs)
        columns["pictures"] = pictures
    if folder is not None:
        (folder / COLUMNS).write_text(f"window.fastsortColumns = {embedded(columns)};\n", "utf-8")
    averages, classes = class_data(result.views, result.keep)
    votes = (
        {"threshold on the score": result.threshold, "votes": ", ".join(result.votes)} if result.votes else {}
    )
    parts = {
        "title": escape(name),
        "kind": "map" if words is MAPPED else "run",
        "of": "map" if words is MAPPED else "sorted",
        "verdict": verdict_html(particles, result, words),
        "errors": errors_html(result.errors),
        "averages": _inline(sheet_png(averages)),
        "micrographs": micrographs_html(micrographs),
        "images_folder": escape(address or "the folder of images"),
        "run": run_html({**result.parameters, **votes}, result.seconds, made),
        "columns": "" if folder is None else f'<script src="{quote(address)}/{COLUMNS}"></script>',
        "data": embedded(
            {
                **page_data(
                    particles,
                    result,
                    classes,
                    name=name,
                    size=size,
                    rows=ROWS,
                    words=words,
                    mark=mark or mark_of(result),
                ),
                "sheets": sheets,
                "columns": columns if folder is None else None,
            }
        ),
    }
    scripts = [f"page_{name}.js" for name in SCRIPTS]
    Path(path).write_bytes(filled("page.html", ["page.css"], scripts, parts))


def _placed(folder: Path | None, address: str, kind: str, sheets: Iterable[bytes]) -> Iterator[str]:
    """Write sheets into the folder, and return their addresses; without a folder the sheets themselves."""
    for number, png in enumerate(sheets):
        if folder is None:
            yield _inline(png)
        else:
            name = _sheet_name(kind, number)
            (folder / name).write_bytes(png)
            yield f"{quote(address)}/{name}"


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def filled(template: str, styles: Sequence[str], scripts: Sequence[str], parts: dict[str, str]) -> bytes:
    """Put a page together.

    Parameters
    ----------
    template : str
        Name of an HTML file of this room, with slots such as ``<!-- data -->``.
    styles, scripts : sequence of str
        Names of files, in the order in which they are put together.
    parts : dict of str to str
        What goes into each other slot.

    Returns
    -------
    page : bytes
    """
    room = files("fastsort.report")
    text, style, script = (
        "\n".join(room.joinpath(name).read_text("utf-8") for name in names)
        for names in ([template], styles, scripts)
    )
    text = text.replace("<!-- style -->", style).replace("<!-- script -->", script)
    # All slots at once, so that a filled part is never searched for slots.
    return _SLOT.sub(lambda slot: parts[slot[1]], text).encode("utf-8", "replace")


def embedded(data: dict[str, Any]) -> str:
    """Return JSON that cannot end the script element around it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
