"""What the page says in words and tables, before its script runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from fastsort._reasons import REASONS, VALID, count_reasons
from fastsort.decide.calibrate import GOOD
from fastsort.decide.decoys import Estimate, EstimatedErrors
from fastsort.decide.micrographs import MicrographTable
from fastsort.decide.result import SortResult
from fastsort.particles.source import Particles
from fastsort.report.made import made_words
from fastsort.report.tables import software_versions
from fastsort.report.words import SORTED, Words, diameter_words, flip_words, one_line

MAX_ROWS, MAX_LISTED = 2000, 200
# Letters of a command line that are shown.
MAX_WORDS = 1000


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def verdict_html(particles: Particles, result: SortResult, words: Words = SORTED) -> str:
    """Return the counts of kept, rejected and rescued images, and of images with each reason."""
    n, kept = len(result.keep), int(result.keep.sum())
    rescued = int((result.rescued & ~result.keep).sum())
    figures = [("images", n), ("kept", kept), ("rejected", n - kept - rescued)]
    # A map rescues nothing.
    figures += [("rescued", rescued)] if words is SORTED else []
    facts = [
        diameter_words(result),
        f"box {particles.box} px",
        f"{particles.pixel_size:.4g} Å/px" if math.isfinite(particles.pixel_size) else "pixel size unknown",
        *([] if result.contrast == "unknown" else [f"{result.contrast} particles"]),
        flip_words(result),
    ]
    counts = list(count_reasons(result.reason_code).values())
    present = [code for code in range(len(REASONS)) if counts[code]]
    rows = [
        f'<tr class="{words.kinds[code]}"><th scope="row">{words.labels[code]}</th>'
        f'<td class="num">{counts[code]:,}</td><td class="num">{_share(counts[code], n)}</td>'
        f'<td class="bar">{_bar(counts[code] / n)}</td><td>{words.meanings[code]}</td></tr>'
        for code in sorted(present, key=lambda code: (code != VALID, -counts[code]))
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
            *(
                f'<p class="warning" role="note"><strong>Doubt:</strong> {escape(doubt)}</p>'
                for doubt in result.doubts
            ),
            f'<dl class="figures">{"".join(blocks)}</dl>',
            _table("Images by reason", ("reason", "images", "share", "", "meaning"), rows, numbers=(1, 2)),
        ]
    )


def _bar(share: float) -> str:
    return f'<span class="track"><span class="fill" style="width:{100 * share:.2f}%"></span></span>'


def _table(caption: str, heads: Sequence[str], rows: Iterable[str], numbers: Sequence[int] = ()) -> str:
    cells = "".join(
        f'<th scope="col"{" class=num" if place in numbers else ""}>{head}</th>'
        if head
        else f"<td{' class=bar' if place else ''}></td>"
        for place, head in enumerate(heads)
    )
    body = "\n".join(rows)
    return (
        f"<table><caption>{caption}</caption><thead><tr>{cells}</tr></thead><tbody>\n{body}\n</tbody></table>"
    )


def errors_html(errors: EstimatedErrors | None) -> str:
    """Return the estimated errors of the whole set and of each kind of decoys."""
    if errors is None:
        return '<p class="note">Errors were not estimated in this run.</p>'
    remark = escape(_sentence(errors.remark))
    parts = []
    if not errors.known:
        parts.append(
            '<p class="warning" role="note"><strong>The errors are not known.</strong> '
            f"{remark or 'No reason is given.'} Do not trust the figures below.</p>"
        )
    elif remark:
        parts.append(f'<p class="note">{remark}</p>')
    heads: tuple[str, ...] = ("", "estimate", "95 % interval", "")
    rows = [
        _estimate_row("particles that are kept", errors.true_positive_rate),
        _estimate_row("junk that is rejected", errors.true_negative_rate),
        _estimate_row("kept images that are particles", errors.precision),
        _estimate_row("images that are junk", errors.junk_share),
    ]
    parts.append(_table("Whole set, estimated from the junk probabilities", heads, rows, numbers=(1, 2)))
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
            _table(
                "Decoys: junk and particles made from the set's own images", heads, kinds, numbers=(1, 2, 3)
            )
        )
    return f'<div class="pair">{"".join(parts)}</div>'


def _sentence(remark: str) -> str:
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


def micrographs_html(table: MicrographTable | None) -> str:
    """Return which micrographs to leave out, what junk depends on, and a table that can be sorted."""
    if table is None:
        return '<p class="note">The input does not say from which micrographs the images come.</p>'
    m = len(table.name)
    worst = np.lexsort((np.arange(m), -np.nan_to_num(table.junk_share), ~table.drop))[:MAX_ROWS]
    parts = [_dropped(table), _trends(table.trends)]
    if len(worst) < m:
        parts.append(
            f'<p class="note">The table shows {len(worst):,} of {m:,} micrographs: those better left out, '
            "then those with the most junk. The file micrographs.csv lists all of them.</p>"
        )
    rows = []
    for i in worst.tolist():
        drop = bool(table.drop[i])
        name, images, kept = escape(one_line(table.name[i])), int(table.n_images[i]), int(table.n_kept[i])
        cells = [
            cell(images, f"{images:,}"),
            cell(kept, f"{kept:,}"),
            cell(table.junk_share[i], f"{100 * table.junk_share[i]:.1f} %"),
            cell(table.mean_score[i], f"{table.mean_score[i]:.3g}"),
            cell(table.defocus[i], f"{table.defocus[i] / 1e4:.2f}"),
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
        '<table id="micrographs"><caption>Click a heading to sort by it; click it again to reverse the order'
        f"</caption><thead><tr>{buttons}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )
    return "\n".join(parts)


def cell(value: float, text: str) -> str:
    """Return a cell of a table that can be sorted by its value."""
    known = math.isfinite(value)
    return f'<td class="num" data-v="{f"{value:.7g}" if known else ""}">{text if known else "–"}</td>'


def _dropped(table: MicrographTable) -> str:
    names = [name for name, drop in zip(table.name, table.drop.tolist(), strict=True) if drop]
    if not names:
        return f"<p>None of the {len(table.name):,} micrographs is bad enough to be left out.</p>"
    more = f"<li>and {len(names) - MAX_LISTED:,} more</li>" if len(names) > MAX_LISTED else ""
    items = "".join(f"<li>{escape(one_line(name))}</li>" for name in names[:MAX_LISTED])
    return (
        f"<p><strong>{len(names):,} of {len(table.name):,} micrographs are better left out:"
        f'</strong></p><ul class="names">{items}{more}</ul>'
    )


def _trends(trends: dict[str, float]) -> str:
    if not trends:
        return "<p>No dependence of junk on defocus or position was found.</p>"
    words = {"edge_distance": "distance from the edge of the micrograph"}
    phrases = [
        f"{escape(words.get(name, name))} ({'more' if value > 0 else 'less'} junk where it is larger, "
        f"rank correlation {value:+.2f})"
        for name, value in trends.items()
    ]
    return f"<p>Junk depends on: {'; '.join(phrases)}.</p>"


def run_html(parameters: Mapping[str, Any], seconds: Mapping[str, float], made: dict[str, Any] | None) -> str:
    """Return where the results come from, the parameters, the versions of the software, and times."""
    tables: dict[str, Mapping[str, Any]] = {
        "Origin": made_words(made),
        "Parameters": {name: "default" if value is None else value for name, value in parameters.items()},
        "Versions": software_versions(),
        "Seconds": seconds,
    }
    return "\n".join(
        _table(
            caption,
            ("name", "value"),
            [
                f'<tr><th scope="row">{escape(one_line(str(name)))}</th>'
                f"<td>{escape(one_line(_plain(value), MAX_WORDS))}</td></tr>"
                for name, value in entries.items()
            ],
        )
        for caption, entries in tables.items()
        if entries
    )


def _plain(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}" if math.isfinite(value) else "unknown"
    return str(value)
