"""The page of picks: micrographs with the picks drawn on them."""

from __future__ import annotations

import base64
import json
import math
import os
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from fastsort._types import Bools, FilePath, Indices, Singles
from fastsort.particles.micrographs import MicrographList
from fastsort.particles.mrc import MrcHeader
from fastsort.particles.reduced import ReducedMicrographs, Unread
from fastsort.particles.source import evenly_spaced
from fastsort.pick import REASONS, PickResult
from fastsort.picking.look import look_at
from fastsort.report.page_tiles import grey_png
from fastsort.report.tiles import Greys

# So many micrographs are shown, no larger than this in pixels of the picture, on so much of the page.
N_SHOWN, LARGEST, WIDE = 8, 900, 820
# Percentiles of the pixels that become black and white.
_DARKEST, _BRIGHTEST = 0.5, 99.5
# Smoothed by a Gaussian of this part of a diameter, as one looks at micrographs.
_SMOOTH = 0.08
_MANY = 4000


def write_picks_page(path: FilePath, title: str, listed: MicrographList, result: PickResult) -> None:
    """Write a page with the picks drawn on some micrographs, as one HTML file that needs no other.

    Parameters
    ----------
    path : path
    title : str
    listed : MicrographList
        Up to eight of these micrographs are read again: those with most picks, least, and evenly between.
    result : PickResult
    """
    style = files("fastsort.report").joinpath("page.css").read_text("utf-8")
    own = files("fastsort.report").joinpath("picks.css").read_text("utf-8")
    script = files("fastsort.report").joinpath("picks.js").read_text("utf-8")
    page = (
        "<!DOCTYPE html>\n"
        f'<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)} – picks</title>\n'
        f"<style>\n{style}\n{own}</style>\n</head>\n<body>\n<header><h1>{escape(title)}</h1></header>\n<main>\n"
        f"{_facts(result)}\n{_table(result)}\n{_pictures(listed, result)}\n</main>\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )
    Path(path).write_text(page, "utf-8", "replace")


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
        f'<tr><th scope="row">{name}</th><td class="num">{int((result.reason == name).sum()):,}</td></tr>'
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


def _table(result: PickResult) -> str:
    n = len(result.names)
    kept = np.bincount(result.micrograph[result.keep], minlength=n)
    places = np.bincount(result.micrograph, minlength=n)
    rows = "".join(
        f'<tr><th scope="row">{escape(os.path.basename(name))}</th><td class="num">{kept[k]:,}</td>'
        f'<td class="num">{places[k] - kept[k]:,}</td>'
        f'<td class="num">{_percent(result.contaminated[k])}</td></tr>'
        for k, name in enumerate(result.names[:_MANY].tolist())
    )
    more = "" if n <= _MANY else f"<p>The first {_MANY:,} of {n:,}; micrographs.csv has all.</p>"
    return (
        "<section><details><summary>Table of micrographs</summary><table><thead><tr>"
        '<th scope="col">micrograph</th><th scope="col" class="num">picked</th>'
        '<th scope="col" class="num">rejected</th><th scope="col" class="num">area contaminated</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>{more}</details></section>"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "unknown"


def choose_micrographs(result: PickResult) -> Indices:
    """Return which micrographs to show: evenly spaced among all, ordered by their number of picks."""
    n = len(result.names)
    kept = np.bincount(result.micrograph[result.keep], minlength=n)
    order = np.argsort(-kept, kind="stable")
    return order[evenly_spaced(n, N_SHOWN)]


def _pictures(listed: MicrographList, result: PickResult) -> str:
    learned = result.learned
    if learned is None:
        return ""
    headers: dict[str, MrcHeader] = dict(zip(listed.names, listed.headers, strict=True))
    drawn = []
    for number in choose_micrographs(result).tolist():
        name = str(result.names[number])
        if name not in headers:
            continue
        binning = learned.template.binning
        image = ReducedMicrographs([headers[name]], binning).read(0, 1)[0]
        seen = None if isinstance(image, Unread) else look_at(image, learned)
        if seen is not None:
            drawn.append(_picture(name, seen.surface.pixels, seen.bad, result, number, binning))
    controls = (
        '<fieldset class="controls"><label>Threshold <input id="cut" type="range" min="0.01" max="0.99" '
        f'step="0.01" value="{result.threshold:.2f}"></label><output id="value"></output>'
        '<label><input id="rejected" type="checkbox"> show what was rejected</label>'
        '<label><input id="area" type="checkbox" checked> show contamination</label></fieldset>'
        '<p class="hint">The slider shows what another threshold would pick; to pick so, run again with '
        "<code>--threshold</code>.</p>"
    )
    return f"<section><h2>Picks on micrographs</h2>{controls}{''.join(drawn)}</section>"


def _picture(name: str, pixels: Singles, bad: Bools, result: PickResult, number: int, binning: int) -> str:
    import scipy.ndimage

    smooth = scipy.ndimage.gaussian_filter(pixels, _SMOOTH * result.diameter_px / binning)
    step = max(1, math.ceil(max(smooth.shape) / LARGEST))
    small, area = smooth[::step, ::step], bad[::step, ::step]
    height, width = small.shape
    rows = np.flatnonzero(result.micrograph == number)
    scale = 1 / (binning * step)
    places = [
        [
            round((float(result.x[row]) + 0.5) * scale, 1),
            round((float(result.y[row]) + 0.5) * scale, 1),
            round(float(result.probability[row]), 3),
            str(result.reason[row]) if not result.keep[row] else "",
        ]
        for row in rows.tolist()
    ]
    radius = result.diameter_px / 2 * scale
    data = escape(json.dumps(places, separators=(",", ":")))
    shown = escape(os.path.basename(name))
    return (
        f"<figure><figcaption>{shown}: <span class='number'></span></figcaption>"
        f'<svg viewBox="0 0 {width} {height}" width="{WIDE}" data-radius="{radius:.1f}" '
        f'data-places="{data}" role="img" aria-label="Micrograph {shown} with its picks">'
        f'<image href="data:image/png;base64,{base64.b64encode(grey_png(_greys(small))).decode()}" '
        f'width="{width}" height="{height}"/><path class="area" d="{_outline(area)}"/></svg></figure>'
    )


def _greys(pixels: Singles) -> Greys:
    low, high = np.percentile(pixels, (_DARKEST, _BRIGHTEST))
    span = max(float(high - low), 1e-9)
    greys: Greys = (np.clip((pixels - low) / span, 0, 1) * 63).astype(np.uint8) * np.uint8(4)
    return greys


def _outline(area: Bools) -> str:
    """Return an SVG path that covers an area: one strip for each run of pixels of a row."""
    strips = []
    padded = np.pad(area, ((0, 0), (1, 1))).astype(np.int8)
    change = np.diff(padded, axis=1)
    for row in np.flatnonzero(area.any(axis=1)).tolist():
        starts, stops = np.flatnonzero(change[row] == 1), np.flatnonzero(change[row] == -1)
        strips += [
            f"M{a} {row}h{b - a}v1h{a - b}z" for a, b in zip(starts.tolist(), stops.tolist(), strict=True)
        ]
    return "".join(strips)
