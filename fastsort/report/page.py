"""The page ``report.html``: one file to look at after sorting, with a threshold that can be moved."""

from __future__ import annotations

import base64
import json
import re
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastsort._types import FilePath
from fastsort.decide.micrographs import MicrographTable
from fastsort.decide.result import SortResult
from fastsort.particles.source import Particles
from fastsort.report.page_data import class_data, count_data, group_data, image_codes, map_data, tile_data
from fastsort.report.page_html import errors_html, micrographs_html, run_html, verdict_html
from fastsort.report.page_tiles import choose_images, sprite_png
from fastsort.report.tiles import read_tiles
from fastsort.report.words import one_line

MAX_BYTES = 8_000_000
_SLOT = re.compile(r"<!-- (\w+) -->")


def write_page(
    path: FilePath,
    particles: Particles,
    result: SortResult,
    micrographs: MicrographTable | None = None,
) -> None:
    """Write the verdict as one HTML page of less than 8 MB, which needs no other file.

    Parameters
    ----------
    path : path
        The file to write. The same input gives the same bytes.
    particles : Particles
        What was sorted; up to 552 images are read, in ascending order.
    result : SortResult
        As from `sort_particles`.
    micrographs : MicrographTable, optional
        As from `summarize_micrographs`.

    Raises
    ------
    InputError
        If images can no longer be read.
    OSError
        When the disk refuses.

    Notes
    -----
    The page opens with the run's own verdict on each image. Its slider replaces that verdict by a
    threshold on the junk probability. For more than about 2,000,000 images the page holds only the number
    of images of each kind: it then has no list to save, and says so.
    """
    codes = image_codes(result)
    choice = choose_images(result)
    tiles = read_tiles(particles, result, choice.every)
    averages, classes = class_data(result.views, codes)
    name = one_line(Path(particles.path).name if particles.path else "array")
    data = {
        **count_data(codes, result),
        "name": name,
        "tiles": tile_data(particles, result, codes, choice, tiles.shape[1]),
        "groups": group_data(choice),
        "views": map_data(result.views, codes, classes),
    }
    parts = {
        "title": escape(name),
        "verdict": verdict_html(particles, result),
        "errors": errors_html(result.errors),
        "tiles": base64.b64encode(sprite_png(tiles)).decode(),
        "averages": base64.b64encode(sprite_png(averages)).decode(),
        "micrographs": micrographs_html(micrographs),
        "run": run_html(result),
    }
    every_code = base64.b64encode(codes.astype("<u2").tobytes()).decode()
    template = _template()
    page = _fill(template, {**parts, "data": _embedded({**data, "codes": every_code})})
    if len(page) > MAX_BYTES:
        page = _fill(template, {**parts, "data": _embedded({**data, "codes": None})})
    Path(path).write_bytes(page)


def _template() -> str:
    """Return the page with its style and its script, and with a slot for each part."""
    room = files("fastsort.report")
    template, style, script = (
        room.joinpath(f"page.{suffix}").read_text("utf-8") for suffix in ("html", "css", "js")
    )
    return template.replace("<!-- style -->", style).replace("<!-- script -->", script)


def _fill(template: str, parts: dict[str, str]) -> bytes:
    """Fill all slots at once, so that a filled part is never searched for slots."""
    return _SLOT.sub(lambda slot: parts[slot[1]], template).encode("utf-8", "replace")


def _embedded(data: dict[str, Any]) -> str:
    """Return JSON that cannot end the script element around it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
