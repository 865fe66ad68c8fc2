"""The page of picks: micrographs with the picks drawn on them, to choose from."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from fastsort._types import FilePath, Indices
from fastsort.particles.micrographs import MicrographList
from fastsort.particles.mrc import MrcHeader
from fastsort.particles.source import evenly_spaced
from fastsort.pick import REASONS, PickResult
from fastsort.report.choices import mark_of_picks
from fastsort.report.folder import PAGE, PAGE_IMAGES, listed_folder
from fastsort.report.micrograph_pictures import N_SHOWN, Picture, draw_micrographs, picture_data
from fastsort.report.page import COLUMNS, embedded, filled
from fastsort.report.page_data import packed
from fastsort.report.page_html import cell, run_html
from fastsort.report.words import one_line

# With more micrographs than this, pictures and places lie in a folder beside the page.
IN_ONE_FILE = 8


def write_picks_page(
    folder: FilePath,
    title: str,
    listed: MicrographList | None,
    result: PickResult,
    *,
    parameters: Mapping[str, Any] | None = None,
    made: dict[str, Any] | None = None,
    n_jobs: int | None = None,
) -> None:
    """Write the page on which one looks at picks and chooses among them.

    Parameters
    ----------
    folder : path
        An existing folder. Gets ``report.html``; of more than eight micrographs also ``report_images``.
    title : str
    listed : MicrographList or None
        Up to a hundred of these micrographs are read again: those with most picks, least, and evenly
        between. None if they are not at hand.
    result : PickResult
    parameters : mapping, optional
        Of the run.
    made : dict, optional
        As from `how_made`.
    n_jobs : int, optional
        Workers, as joblib counts them. The page does not depend on it.
    """
    folder = Path(folder)
    headers = _headers_of(listed, result)
    shown = [number for number in choose_micrographs(result).tolist() if number in headers]
    if result.learned is None:
        shown = []
    names = [f"picks_{number:05d}.png" for number in shown]
    beside = None
    if len(result.names) > IN_ONE_FILE:
        beside = listed_folder(folder / PAGE_IMAGES, [COLUMNS, *names])
    pictures = []
    chosen = [headers[number] for number in shown]
    drawn = draw_micrographs(chosen, result.diameter_px, result.learned, n_jobs=n_jobs)
    for number, name, picture in zip(shown, names, drawn, strict=True):
        if picture is None:
            continue
        if beside is None:
            src = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
        else:
            src = f"{quote(PAGE_IMAGES)}/{name}"
            (beside / name).write_bytes(picture.png)
        pictures.append(_picture_data(picture, src, number, result))
    columns = _columns(result, pictures)
    if beside is not None:
        (beside / COLUMNS).write_text(f"window.fastsortColumns = {embedded(columns)};\n", "utf-8")
    parts = {
        "title": escape(title),
        "facts": _facts(result),
        "table": _table(result, len(pictures)),
        "run": run_html(parameters or {}, result.seconds, made),
        "columns": "" if beside is None else f'<script src="{quote(PAGE_IMAGES)}/{COLUMNS}"></script>',
        "data": embedded(
            {**_page_data(title, result), "columns": columns if beside is None else None},
        ),
    }
    scripts = ("page_tools.js", "picks.js", "page_choices.js", "page_micrographs.js")
    (folder / PAGE).write_bytes(filled("picks.html", ("page.css", "picks.css"), scripts, parts))


def _page_data(title: str, result: PickResult) -> dict[str, Any]:
    return {
        "name": one_line(title),
        "n": len(result.x),
        "mark": mark_of_picks(result),
        "threshold": float(result.threshold),
        "reasons": REASONS,
        "micrographs": _short_names(result),
        "words": {"one": "place", "judged": "probability at least", "list": "kept_places.txt"},
    }


def _columns(result: PickResult, pictures: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is known of each place; where it lies is known of those that are shown."""
    code = {name: number for number, name in enumerate(REASONS)}
    by_hand = np.zeros(len(result.x), np.int8) if result.by_hand is None else result.by_hand
    return {
        "p": packed(result.probability, "<f8"),
        "why": packed([code[name] for name in result.reason.tolist()], "u1"),
        "start": packed(_bounds(result), "<i4"),
        "hand": packed(by_hand, "i1"),
        "pictures": pictures,
    }


def _bounds(result: PickResult) -> Indices:
    """Return where the places of each micrograph begin, and where the last ones end."""
    bounds: Indices = np.searchsorted(result.micrograph, np.arange(len(result.names) + 1))
    return bounds


def _short_names(result: PickResult) -> list[str]:
    return [one_line(os.path.basename(name)) for name in result.names.tolist()]


def _facts(result: PickResult) -> str:
    n, kept = len(result.x), int(result.keep.sum())
    how = "found" if result.diameter_found else "given"
    if result.learned is None:
        size = "unknown"
    elif math.isfinite(result.diameter):
        size = f"{result.diameter:.0f} Å ({how})"
    else:
        size = f"{result.diameter_px:.0f} px ({how})"
    rows = "".join(
        f'<tr><th scope="row">{name.replace("_", " ")}</th>'
        f'<td class="num">{int((result.reason == name).sum()):,}</td></tr>'
        for name in REASONS[1:]
        if (result.reason == name).any()
    )
    notes = "".join(f'<p class="warning">{escape(doubt)}</p>' for doubt in result.doubts)
    if result.failed:
        names = ", ".join(os.path.basename(name) for name in result.failed)
        notes += f'<p class="warning">Not read: {escape(names)}. micrographs.csv says why.</p>'
    return (
        '<section aria-label="Result"><dl class="figures">'
        f'<div class="kept"><dt>picked</dt><dd>{kept:,}</dd></div>'
        f"<div><dt>micrographs</dt><dd>{len(result.names):,}</dd></div>"
        f"<div><dt>diameter</dt><dd>{size}</dd></div>"
        f"<div><dt>particles</dt><dd>{result.contrast}</dd></div></dl>{notes}"
        f'<p class="facts">{n:,} places were looked at more closely. How many of the picks are right is not '
        "known: look at the pictures below. Each pick has a probability, its figure of merit; the threshold "
        f"is {result.threshold:.2f}.</p>"
        f"<table><caption>Places that were not picked, by reason</caption><tbody>{rows}</tbody></table>"
        "</section>"
    )


def _table(result: PickResult, n_shown: int) -> str:
    """Return the table of all micrographs, of which some have a picture; the page adds its buttons."""
    n = len(result.names)
    kept = np.bincount(result.micrograph[result.keep], minlength=n)
    places = np.bincount(result.micrograph, minlength=n)
    heads = "".join(
        f'<th scope="col"{" class=num" if place else ""}><button type="button">{head}'
        '<span aria-hidden="true"></span></button></th>'
        for place, head in enumerate(("micrograph", "picked", "rejected", "contaminated"))
    )
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>{cell(kept[k], f"{kept[k]:,}")}'
        f"{cell(places[k] - kept[k], f'{places[k] - kept[k]:,}')}"
        f"{cell(result.contaminated[k], f'{100 * result.contaminated[k]:.1f} %')}</tr>"
        for k, name in enumerate(_short_names(result))
    )
    told = f'<p class="hint">{n_shown:,} of {n:,} can be seen.</p>' if 0 < n_shown < n else ""
    return (
        f'{told}<div class="scroll" tabindex="0" role="region" aria-label="Table of micrographs">'
        '<table id="micrographs"><caption>Click a heading to sort by it, and a name to see the micrograph'
        f"</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def choose_micrographs(result: PickResult) -> Indices:
    """Return which micrographs to show, ascending: evenly spaced among all by their number of picks."""
    n = len(result.names)
    kept = np.bincount(result.micrograph[result.keep], minlength=n)
    order = np.argsort(-kept, kind="stable")
    return np.sort(order[evenly_spaced(n, N_SHOWN)])


def _headers_of(listed: MicrographList | None, result: PickResult) -> dict[int, MrcHeader]:
    """Return headers of the micrographs at hand, by number; a file name tells one that has moved."""
    if listed is None:
        return {}
    by_name = dict(zip(listed.names, listed.headers, strict=True))
    by_file = {os.path.basename(name): header for name, header in by_name.items()}
    found = {
        number: by_name.get(name) or by_file.get(os.path.basename(name))
        for number, name in enumerate(result.names.tolist())
    }
    return {number: header for number, header in found.items() if header is not None}


def _picture_data(picture: Picture, src: str, number: int, result: PickResult) -> dict[str, Any]:
    start, stop = _bounds(result)[number : number + 2].tolist()
    x, y = result.x[start:stop], result.y[start:stop]
    return {"micrograph": number, **picture_data(picture, src, x, y, result.diameter_px)}
