"""The page ``report.html``: one file to look at after sorting, with a cut that can be moved."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastsort._reasons import NOISE, RARE_VIEW, REASONS, VALID
from fastsort.decide.decoys import GOOD, Estimate, EstimatedErrors
from fastsort.decide.rescue import Views
from fastsort.particles.source import Particles
from fastsort.report.page_tiles import (
    COLUMNS,
    Choice,
    choose_images,
    fixed_images,
    sprite_png,
)
from fastsort.report.tables import software_versions
from fastsort.report.tiles import average_tiles, read_tiles

if TYPE_CHECKING:
    from fastsort.decide.micrographs import MicrographTable
    from fastsort.sort import SortResult

MAX_BYTES = 8_000_000
MAX_ROWS, MAX_LISTED = 2000, 200
MAX_POINTS, MAX_CLASSES = 12_000, 96
# The cut moves in steps of a thousandth. An image is one number of 16 bits: ten for its level, the first
# thousandth that is not below its junk probability; four for what speaks against it; then whether it is
# kept, and whether it stays rejected wherever the cut lies.
LEVELS, UNKNOWN = 1000, 1023
REASON_BIT, KEEP_BIT, FIXED_BIT = 10, 14, 15
_FRAME = 4095
_LONGEST_NAME = 120
_MEANING = {
    "valid": "looks like a particle",
    "noise": "no particle found, or unlike the others",
    "partial": "cut off by the edge of the box",
    "multiple": "several particles in one box",
    "off-centre": "a particle far from the middle",
    "contamination": "stronger than any particle",
    "bad_pixels": "NaN, infinite or hot pixels: cannot be judged",
    "flat": "no contrast: cannot be judged",
    "duplicate": "same particle as another image",
    "rare_view": "unlike most, but a class of its own: set aside, look at it",
    "outside": "the box reaches over the edge of the micrograph",
}
_SLOT = re.compile(r"<!-- (\w+) -->")


def write_page(
    path: str | os.PathLike[str],
    particles: Particles,
    result: SortResult,
    micrographs: MicrographTable | None = None,
) -> None:
    """Write the verdict as one HTML page that needs nothing else, below 8 MB.

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
    The page starts with the verdict of the run, image by image. Its slider replaces that by a cut on the
    junk probability. Of more than about 2,000,000 images the page knows only how many there are of each
    kind: it then has no list to save, and says so.
    """
    codes = image_codes(result)
    choice = choose_images(result)
    tiles = read_tiles(particles, result, choice.every)
    averages, classes = _classes(result.views)
    data = {
        **_counts(codes, result),
        "name": _clean(_title(particles)),
        "tiles": _shown(particles, result, codes, choice, tiles.shape[1]),
        "groups": _groups(choice),
        "views": _points(result.views, codes, classes),
    }
    everything = base64.b64encode(codes.astype("<u2").tobytes()).decode()
    parts = {
        "title": escape(_clean(_title(particles))),
        "verdict": _verdict(particles, result),
        "errors": _errors(result.errors),
        "tiles": base64.b64encode(sprite_png(tiles)).decode(),
        "averages": base64.b64encode(sprite_png(averages)).decode(),
        "micrographs": _micrographs(micrographs),
        "run": _run(result),
    }
    template = files("fastsort.report").joinpath("page.html").read_text("utf-8")
    page = _fill(template, {**parts, "data": _embedded({**data, "codes": everything})})
    if len(page) > MAX_BYTES:
        page = _fill(template, {**parts, "data": _embedded({**data, "codes": None})})
    Path(path).write_bytes(page)


def _fill(template: str, parts: dict[str, str]) -> bytes:
    """Fill all slots at once, so that none is looked for in what was filled in."""
    return _SLOT.sub(lambda slot: parts[slot[1]], template).encode("utf-8", "replace")


def _embedded(data: dict[str, Any]) -> str:
    """Return JSON that cannot end the script element that it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _title(particles: Particles) -> str:
    return Path(particles.path).name if particles.path else "array"


def _clean(name: str) -> str:
    """A name on one line and of a length that fits."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 2]}…{name[-_LONGEST_NAME // 2 :]}"


def image_codes(result: SortResult) -> npt.NDArray[np.uint16]:
    """Pack what the slider needs to know of each image into 16 bits.

    Parameters
    ----------
    result : SortResult

    Returns
    -------
    codes : ndarray of uint16, shape (n,)
        From the lowest bit: junk probability in thousandths, rounded up, 1023 where it is unknown (10
        bits); why the image is rejected or would be, as an index into `REASONS` (4); whether it is kept;
        whether it stays rejected wherever the cut lies.
    """
    # Looked up among the very numbers that the page compares with, so that 0.3 is 300 thousandths.
    level = np.searchsorted(np.arange(LEVELS) / LEVELS, result.junk_probability)
    level = np.where(np.isfinite(result.junk_probability), level, UNKNOWN).astype(np.uint16)
    names = np.where(result.keep, result.suspicion, result.reason)
    reason = np.full(len(level), NOISE, dtype=np.uint16)
    for number, name in enumerate(REASONS):
        if number != VALID:
            reason[names == name] = number
    reason[result.rescued & ~result.keep] = RARE_VIEW
    flags = result.keep.astype(np.uint16) << KEEP_BIT | fixed_images(result).astype(np.uint16) << FIXED_BIT
    return (level | reason << REASON_BIT | flags).astype(np.uint16)


def _counts(codes: npt.NDArray[np.uint16], result: SortResult) -> dict[str, Any]:
    """How many images there are of each code, and where the cut of the run lies."""
    probability = np.where(np.isfinite(result.junk_probability), result.junk_probability, 0)
    # No cut decides on what is over an edge: it is none of the particles that a cut could keep.
    probability = np.where(result.reason == "outside", 1, probability)
    count = np.bincount(codes, minlength=1 << 16)
    expected = np.bincount(codes, probability, minlength=1 << 16)
    present = np.flatnonzero(count)
    level, keep = present & UNKNOWN, present >> KEEP_BIT & 1
    movable = (level <= LEVELS) & ~(present >> FIXED_BIT).astype(bool)
    kept = np.bincount(level[movable], (count[present] * keep)[movable], minlength=LEVELS + 1)
    every = np.bincount(level[movable], count[present][movable], minlength=LEVELS + 1)
    # Images that a plain cut would judge otherwise: rejected ones below it, and kept ones above.
    wrong = np.cumsum(every - kept) + kept.sum() - np.cumsum(kept)
    highest = np.flatnonzero(kept)
    errors = result.errors
    return {
        "n": len(codes),
        "reasons": REASONS,
        "counts": [[int(c), int(count[c]), round(float(expected[c]), 4)] for c in present],
        "level": int(np.argmin(wrong)),
        "highest": int(highest[-1]) if len(highest) else 0,
        "differ": int(wrong.min()),
        "movable": int(every.sum()),
        "doubt": "" if errors is None or errors.known else _clean(errors.remark) or "no reason is given",
    }


def _shown(
    particles: Particles,
    result: SortResult,
    codes: npt.NDArray[np.uint16],
    choice: Choice,
    size: int,
) -> dict[str, Any]:
    """Columns of what is known of each tile; places in parts of its side."""
    every, box = choice.every, particles.box
    middle = (result.offset[every].astype(np.float64) + box // 2 + 0.5) / box
    return {
        "size": size,
        "columns": min(COLUMNS, max(1, len(every))),
        "radius": _number(result.diameter_px / (2 * box), 4),
        "index": every.tolist(),
        "code": codes[every].tolist(),
        "p": _numbers(result.junk_probability[every], 4),
        "score": _numbers(result.score[every], 4),
        "x": _numbers(middle[:, 1], 4),
        "y": _numbers(middle[:, 0], 4),
        "name": [_clean(particles.names[index]) for index in every.tolist()],
    }


def _groups(choice: Choice) -> list[dict[str, Any]]:
    place = {index: number for number, index in enumerate(choice.every.tolist())}
    titles = {"valid": "Kept by the run", "rare_view": "Rescued by the run as a rare view"}
    groups = [
        ("best", "Best: lowest junk probability", choice.best),
        ("border", "Borderline: nearest to the cut", choice.border),
        ("worst", "Worst: highest junk probability", choice.worst),
    ]
    for name, indices in choice.by_reason.items():
        title = titles.get(name, f"Rejected by the run as {name}")
        groups.append((name, f"{title}: random sample", indices))
    return [
        {"kind": kind, "title": title, "tiles": [place[index] for index in indices.tolist()]}
        for kind, title, indices in groups
    ]


def _classes(views: Views | None) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Tiles of the class averages, and the numbers of the classes that are shown: rare ones, then large."""
    if views is None:
        return np.empty((0, 1, 1), dtype=np.uint8), []
    order = np.lexsort((-views.size, ~views.rare))[:MAX_CLASSES]
    order = order[np.argsort(-views.size[order], kind="stable")]
    return average_tiles(views.averages[order]), order.tolist()


def _points(views: Views | None, codes: npt.NDArray[np.uint16], classes: list[int]) -> dict[str, Any] | None:
    if views is None:
        return None
    known = np.flatnonzero(np.isfinite(views.coordinates).all(axis=1))
    shown = known[:: max(1, -(-len(known) // MAX_POINTS))]
    places, far = _in_frame(views.coordinates[shown].astype(np.float64))
    unit = views.pixel_size if math.isfinite(views.pixel_size) else 1.0
    return {
        "known": len(known),
        "far": far,
        "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(),
        "label": views.label[shown].tolist(),
        "code": codes[shown].tolist(),
        "n_classes": len(views.size),
        "classes": classes,
        "tile": min(views.averages.shape[1], 64) if classes else 1,
        "columns": min(COLUMNS, max(1, len(classes))),
        "size": views.size[classes].tolist(),
        "resolution": _numbers(views.resolution[classes] * unit, 3),
        "unit": "Å" if math.isfinite(views.pixel_size) else "px",
        "rare": views.rare[classes].tolist(),
    }


def _in_frame(places: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.intp], int]:
    """Places in whole steps of a square frame; the few that are far out lie on its edge and are counted."""
    if len(places) == 0:
        return np.empty((0, 2), dtype=np.intp), 0
    low, high = np.percentile(places, (1, 99), axis=0)
    margin = 0.3 * (high - low)
    low, high = np.maximum(places.min(axis=0), low - margin), np.minimum(places.max(axis=0), high + margin)
    side = float((high - low).max()) or 1.0
    shares = (places - (low + high) / 2) / side + 0.5
    far = int(((shares < 0) | (shares > 1)).any(axis=1).sum())
    return np.rint(np.clip(shares, 0, 1) * _FRAME).astype(np.intp), far


def _number(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def _numbers(values: Iterable[float], digits: int) -> list[float | None]:
    return [_number(value, digits) for value in values]


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _verdict(particles: Particles, result: SortResult) -> str:
    n, kept = len(result.keep), int(result.keep.sum())
    rescued = int((result.rescued & ~result.keep).sum())
    figures = [("images", n), ("kept", kept), ("rejected", n - kept - rescued), ("rescued", rescued)]
    known = math.isfinite(result.diameter)
    size = f"{result.diameter:.0f} Å" if known else f"{result.diameter_px:.1f} px"
    origin = "estimated" if result.diameter_estimated else "given"
    facts = [
        f"diameter {size} ({origin})" if math.isfinite(result.diameter_px) else "diameter unknown",
        f"box {particles.box} px",
        f"{particles.pixel_size:.4g} Å/px" if math.isfinite(particles.pixel_size) else "pixel size unknown",
        f"{result.contrast} particles",
        "phases flipped" if result.phase_flipped else "phases not flipped",
    ]
    counts = {name: int((result.reason == name).sum()) for name in REASONS}
    names = sorted((name for name in REASONS if counts[name]), key=lambda name: _rank(name, counts[name]))
    rows = [
        f'<tr class="{_kind(name)}"><th scope="row">{_label(name)}</th><td class="num">{counts[name]:,}</td>'
        f'<td class="num">{_share(counts[name], n)}</td><td class="bar">{_bar(counts[name] / n)}</td>'
        f"<td>{_MEANING[name]}</td></tr>"
        for name in names
    ]
    blocks = [
        f'<div class="{word}"><dt>{word}</dt><dd>{count:,}'
        + ("" if word == "images" else f" <small>{_share(count, n)}</small>")
        + "</dd></div>"
        for word, count in figures
    ]
    return "\n".join(
        [
            f'<p class="facts">{escape(" · ".join(facts))}</p>',
            f'<dl class="figures">{"".join(blocks)}</dl>',
            _table("Images by reason", ("reason", "images", "share", "", "meaning"), rows, numbers=(1, 2)),
        ]
    )


def _rank(name: str, count: int) -> tuple[bool, int]:
    return name != "valid", -count


def _label(name: str) -> str:
    return {"valid": "kept", "rare_view": "rescued: rare view"}.get(name, name)


def _kind(name: str) -> str:
    return {"valid": "kept", "rare_view": "rescued"}.get(name, "rejected")


def _bar(share: float) -> str:
    return f'<span class="track"><span class="fill" style="width:{100 * share:.2f}%"></span></span>'


def _table(caption: str, heads: Sequence[str], rows: Iterable[str], numbers: Sequence[int] = ()) -> str:
    cells = "".join(
        f'<th scope="col"{" class=num" if place in numbers else ""}>{head}</th>' if head else "<td></td>"
        for place, head in enumerate(heads)
    )
    body = "\n".join(rows)
    return (
        f"<table><caption>{caption}</caption><thead><tr>{cells}</tr></thead><tbody>\n{body}\n</tbody></table>"
    )


def _errors(errors: EstimatedErrors | None) -> str:
    if errors is None:
        return '<p class="note">Errors were not estimated in this run.</p>'
    remark = escape(_clean_remark(errors.remark))
    parts = []
    if not errors.known:
        parts.append(
            '<p class="warning" role="note"><strong>The errors are not known.</strong> '
            f"{remark or 'No reason is given.'} The figures below are not to be trusted.</p>"
        )
    elif remark:
        parts.append(f'<p class="note">{remark}</p>')
    heads: tuple[str, ...] = ("", "estimate", "95 % interval", "")
    rows = [
        _estimate_row("particles kept, of all particles", errors.true_positive_rate),
        _estimate_row("junk rejected, of all junk", errors.true_negative_rate),
        _estimate_row("precision: particles, of all kept", errors.precision),
        _estimate_row("junk, of all images", errors.junk_share),
    ]
    parts.append(_table("Whole set, from the junk probabilities", heads, rows, numbers=(1, 2)))
    kinds = [
        _estimate_row(
            f"{escape(kind)}: {'kept' if kind == GOOD else 'rejected'}",
            estimate,
            errors.n_decoys.get(kind, 0),
        )
        for kind, estimate in errors.by_kind.items()
    ]
    if kinds:
        heads = ("decoys", "number", "estimate", "95 % interval", "")
        parts.append(
            _table("Decoys: junk and particles made from the images", heads, kinds, numbers=(1, 2, 3))
        )
    return f'<div class="pair">{"".join(parts)}</div>'


def _clean_remark(remark: str) -> str:
    remark = remark.strip()
    return remark and f"{remark[0].upper()}{remark[1:].rstrip('.')}."


def _estimate_row(name: str, estimate: Estimate, number: int | None = None) -> str:
    value, low, high = estimate
    count = "" if number is None else f'<td class="num">{number:,}</td>'
    if not math.isfinite(value):
        return f'<tr><th scope="row">{name}</th>{count}<td class="num">unknown</td><td></td><td></td></tr>'
    whisker = (
        '<span class="track"><span class="range" '
        f'style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></span>'
        f'<span class="tick" style="left:{100 * value:.2f}%"></span></span>'
    )
    return (
        f'<tr><th scope="row">{name}</th>{count}<td class="num">{_share(value, 1)}</td>'
        f'<td class="num">{100 * low:.1f} – {100 * high:.1f} %</td><td class="bar">{whisker}</td></tr>'
    )


def _micrographs(table: MicrographTable | None) -> str:
    if table is None:
        return '<p class="note">The input does not say from which micrographs the images come.</p>'
    m = len(table.name)
    worst = np.lexsort((np.arange(m), -np.nan_to_num(table.junk_share), ~table.drop))[:MAX_ROWS]
    parts = [_dropped(table), _trends(table.trends)]
    if len(worst) < m:
        parts.append(
            f'<p class="note">The table has {len(worst):,} of {m:,} micrographs: those better left out, then '
            "those with most junk. All of them stand in micrographs.csv.</p>"
        )
    rows = []
    for i in worst.tolist():
        drop = bool(table.drop[i])
        name, images, kept = escape(_clean(table.name[i])), int(table.n_images[i]), int(table.n_kept[i])
        cells = [
            _cell(images, f"{images:,}"),
            _cell(kept, f"{kept:,}"),
            _cell(table.junk_share[i], f"{100 * table.junk_share[i]:.1f} %"),
            _cell(table.mean_score[i], f"{table.mean_score[i]:.3g}"),
            _cell(table.defocus[i], f"{table.defocus[i] / 1e4:.2f}"),
        ]
        rows.append(
            f'<tr{" class=drop" if drop else ""}><th scope="row">{name}</th>{"".join(cells)}'
            f'<td data-v="{int(drop)}">{"leave out" if drop else ""}</td></tr>'
        )
    heads = ("micrograph", "images", "kept", "junk share", "mean score", "defocus (µm)", "advice")
    buttons = "".join(
        f'<th scope="col"{" class=num" if 0 < place < 6 else ""}><button type="button">{head}'
        '<span aria-hidden="true"></span></button></th>'
        for place, head in enumerate(heads)
    )
    body = "\n".join(rows)
    parts.append(
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of micrographs">'
        '<table id="micrographs"><caption>Press a heading to sort by it, again to turn the order round'
        f"</caption><thead><tr>{buttons}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )
    return "\n".join(parts)


def _cell(value: float, text: str) -> str:
    known = math.isfinite(value)
    return f'<td class="num" data-v="{f"{value:.7g}" if known else ""}">{text if known else "–"}</td>'


def _dropped(table: MicrographTable) -> str:
    names = [name for name, drop in zip(table.name, table.drop.tolist(), strict=True) if drop]
    if not names:
        return f"<p>None of the {len(table.name):,} micrographs is so bad that it is better left out.</p>"
    more = f"<li>and {len(names) - MAX_LISTED:,} more</li>" if len(names) > MAX_LISTED else ""
    items = "".join(f"<li>{escape(_clean(name))}</li>" for name in names[:MAX_LISTED])
    return (
        f"<p><strong>{len(names):,} of {len(table.name):,} micrographs are better left out as a whole:"
        f'</strong></p><ul class="names">{items}{more}</ul>'
    )


def _trends(trends: dict[str, float]) -> str:
    if not trends:
        return "<p>Junk does not go along with defocus or place beyond chance.</p>"
    words = {"edge_distance": "distance from the edge of the micrograph"}
    said = [
        f"{escape(words.get(name, name))}: {'more' if value > 0 else 'less'} junk where it is larger "
        f"(rank correlation {value:+.2f})"
        for name, value in trends.items()
    ]
    return f"<p>What the junk goes along with: {'; '.join(said)}.</p>"


def _run(result: SortResult) -> str:
    parameters: dict[str, Any] = {
        name: "by default" if value is None else value for name, value in result.parameters.items()
    }
    tables: dict[str, dict[str, Any]] = {
        "Parameters": {**parameters, "cut on the score": result.cut, "votes": ", ".join(result.votes)},
        "Versions": software_versions(),
        "Seconds": result.seconds,
    }
    return "\n".join(
        _table(
            caption,
            ("name", "value"),
            [
                f'<tr><th scope="row">{escape(_clean(str(name)))}</th>'
                f"<td>{escape(_clean(_plain(value)))}</td></tr>"
                for name, value in entries.items()
            ],
        )
        for caption, entries in tables.items()
    )


def _plain(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}" if math.isfinite(value) else "unknown"
    return str(value)
