"""What the commands print."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsort.classify import MapResult
    from fastsort.decide.corrections import Learned
    from fastsort.decide.result import SortResult
    from fastsort.particles.describe import Description, Look
    from fastsort.particles.describe_picks import PicksDescription
    from fastsort.particles.table import OpticsGroup
    from fastsort.report.describe import RunDescription
    from fastsort.simulate.plan import Truth

_LINE = 99
# How many of a long list are named.
_N_NAMED = 10
_N_MICROGRAPHS = 5


@contextmanager
def drawing(names: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Go on without pictures where matplotlib is missing, and say so."""
    try:
        yield
    except ImportError:
        hint = f"no {names} without matplotlib: pip install 'fastsort[report]'"
        if say:
            say(hint)
        else:
            print(f"fastsort: {hint}", file=sys.stderr)


def print_summary(summary: dict[str, Any], folder: str | os.PathLike[str], seconds: float) -> None:
    """Print how a set was sorted, from what ``summary.json`` holds, and how long the command took."""
    n = summary["images"]
    print_verdicts(summary)
    update = summary["parameters"].get("update")
    if update:
        n = update["new_images"]
        # Runs of earlier versions do not say it.
        gone = update.get("removed_images", 0)
        removed = f"{_count(gone, 'image')} removed from the input since the earlier run; " if gone else ""
        print(f"{_count(n, 'new image')}; {removed}models {update['models']}")
    origin = "estimated" if summary["diameter_estimated"] else "given"
    known = summary["diameter"] == summary["diameter"]
    angstroms = f"{summary['diameter']:.1f} A, " if known else ""
    flips = "flipped" if summary["phase_flipped"] else "not flipped"
    measured = summary["diameter_px"] == summary["diameter_px"]
    diameter = f"{angstroms}{summary['diameter_px']:.1f} px ({origin})" if measured else "unknown"
    print(f"diameter {diameter}", end="; ")
    contrast = "contrast unknown" if summary["contrast"] == "unknown" else f"{summary['contrast']} particles"
    print(f"{contrast}; phases {flips}")
    if summary["subspaces"] is not None:
        print(_describe_subspaces(**summary["subspaces"]))
    print(f"{seconds:.1f} s, {n / seconds if seconds else 0:,.0f} images/s; results in {folder}")


def print_verdicts(summary: dict[str, Any]) -> None:
    """Print how many images there are of each kind, how sure that is, and what to look at."""
    n, rescued = summary["images"], summary["rescued"]
    set_aside = f", {rescued:,} set aside" if rescued else ""
    print(f"{n:,} images: {summary['kept']:,} kept, {summary['rejected']:,} rejected{set_aside}")
    for name, count in summary["reasons"].items():
        if count:
            print(f"  {name:<14}{count:>10,}  {100 * count / n:5.1f} %")
    if summary["errors"] is not None:
        _print_errors(summary["errors"])
    if rescued:
        where = summary["files"]["rescued"]
        print(f"{_count(rescued, 'image')} of rare views set aside: look at them in {where}")
    drop = (summary["micrographs"] or {}).get("drop")
    if drop:
        names = ", ".join(os.path.basename(name) for name in drop[:_N_MICROGRAPHS])
        more = ", ..." if len(drop) > _N_MICROGRAPHS else ""
        number = f"{len(drop):,} of {summary['micrographs']['number']:,}"
        _print_wrapped(f"micrographs better left out: {number}: {names}{more}; see micrographs.csv", "", 2)
    _print_doubts(summary["doubts"])


def print_picks(summary: dict[str, Any], folder: str | os.PathLike[str], seconds: float) -> None:
    """Print what was picked, from what ``summary.json`` holds, and how long the command took."""
    n = summary["micrographs"]
    print(f"{_count(n, 'micrograph')}: {_count(summary['kept'], 'particle')} picked")
    for name, count in summary["reasons"].items():
        if count and name != "valid":
            print(f"  not picked: {name:<14}{count:>10,}")
    if "particles" in summary:
        others = (
            "; the boxes of the others reach over an edge" if summary["particles"] < summary["kept"] else ""
        )
        print(f"{_count(summary['particles'], 'particle')} extracted{others}")
    if summary["contrast"] != "unknown":
        how = "found" if summary["diameter_found"] else "given"
        known = summary["diameter"] == summary["diameter"]
        angstroms = f"{summary['diameter']:.0f} A, " if known else ""
        print(
            f"diameter {angstroms}{summary['diameter_px']:.1f} px ({how}); {summary['contrast']} particles",
            end="",
        )
        print(f"; {100 * summary['contaminated']:.1f} % of the area contaminated")
        print("how many of the picks are right is not known: look at report.html")
    failed = list(summary["failed"].items())
    for name, why in failed[:_N_NAMED]:
        _print_wrapped(f"not read: {name}: {why}", "", 2)
    if len(failed) > _N_NAMED:
        print(f"not read: {len(failed) - _N_NAMED:,} more; see micrographs.csv")
    _print_doubts(summary["doubts"])
    print(f"{seconds:.1f} s, {n / seconds if seconds else 0:,.1f} micrographs/s; results in {folder}")


def print_picks_again(summary: dict[str, Any], folder: str | os.PathLike[str], notes: Sequence[str]) -> None:
    """Print what was picked after another verdict, and what else is to be said, one line each."""
    n, by_hand = summary["places"], summary["by_hand"]
    chosen = f"; {by_hand:,} chosen by hand" if by_hand else ""
    print(f"{summary['kept']:,} of {_count(n, 'place')} kept{chosen}; results in {folder}")
    for note in notes:
        print(note)


def _print_doubts(doubts: Sequence[str]) -> None:
    for doubt in doubts:
        _print_wrapped(f"doubt: {doubt}", "", 2)


def _print_errors(errors: dict[str, Any]) -> None:
    remark = errors["remark"].rstrip(".")
    if not errors["known"]:
        _print_wrapped(": ".join(filter(None, ["errors cannot be estimated", remark])), "", 2)
        return
    kept, rejected, pure = (
        _percent(**errors[name]) for name in ("true_positive_rate", "true_negative_rate", "precision")
    )
    told = [f"{kept[0]} of the particles kept ({kept[1]})", f"precision {pure[0]}"]
    # Where there is no junk, no share of it is rejected.
    if errors["true_negative_rate"]["value"] == errors["true_negative_rate"]["value"]:
        told.insert(1, f"{rejected[0]} of the junk rejected ({rejected[1]})")
    _print_wrapped(f"estimated: {', '.join(told)}", "", 2)
    if remark:
        _print_wrapped(remark, "  ", 2)


def _percent(value: float, low: float, high: float) -> tuple[str, str]:
    """Return a share and its interval in words."""
    if value != value:
        return "unknown", "unknown"
    return f"{100 * value:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}"


def _describe_subspaces(number: int, components: int, iterations: int, images: int, **_: object) -> str:
    if not number:
        return "no subspaces: fewer than two images could be learned from"
    learned = f"learned in {_count(iterations, 'iteration')} from {_count(images, 'image')}"
    return f"{_count(number, 'subspace')} of {_count(components, 'dimension')}, {learned}"


def print_accuracy(truth: Truth, result: SortResult) -> None:
    """Print how well simulated images were sorted."""
    from fastsort.report.accuracy import measure_accuracy

    whole = measure_accuracy(truth.label, result.keep, result.score)
    print("compared with the truth:")
    print(f"  {'particles kept':<22}{100 * whole.true_positive_rate:6.1f} %")
    print(
        f"  {'junk rejected':<22}{100 * whole.true_negative_rate:6.1f} %   AUC {whole.area_under_curve:.3f}"
    )
    for kind in sorted(set(truth.kind[~truth.label].tolist())):
        chosen = truth.label | (truth.kind == kind)
        part = measure_accuracy(truth.label[chosen], result.keep[chosen], result.score[chosen])
        print(f"    {kind:<20}{100 * part.true_negative_rate:6.1f} %   AUC {part.area_under_curve:.3f}")


def print_map(summary: dict[str, Any], result: MapResult, folder: str, seconds: float) -> None:
    """Print how many classes a map has, a line for each of them, and how long the command took."""
    from fastsort.report.classes import members_of_classes

    n, averages = summary["images"], result.classes.averages
    junk = summary["junk_classes"]
    named = f": {', '.join(map(str, junk))}" if junk else ""
    print(
        f"{n:,} images in {_count(summary['classes'], 'class', 'classes')}, {len(junk)} of them junk{named}"
    )
    unit = "A" if result.pixel_size == result.pixel_size else "px"
    for k, (size, resolution, score) in enumerate(
        zip(members_of_classes(result), averages.resolution, result.classes.ranking.score, strict=True), 1
    ):
        resolved = f"{resolution:6.1f} {unit}" if resolution < 1e6 else "  unresolved"
        print(f"  {k:>3}{size:>10,}  {100 * size / n:5.1f} %  {resolved:<12}  score {score:.2f}")
    if summary["without_class"]:
        print(f"{_count(summary['without_class'], 'image')} without a class: flat, or with bad pixels")
    if summary["denoised"] is not None:
        _print_wrapped(_compare_with_denoised(unit=unit, **summary["denoised"]), "", 2)
    if not summary["diameter_given"]:
        known = summary["diameter"] == summary["diameter"]
        angstroms = f", {summary['diameter']:.0f} A," if known else ""
        print(f"diameter not known: a disk of 0.8 of the box{angstroms} counted as the particle")
    _print_doubts(summary["doubts"])
    print(f"{summary['kept']:,} kept, {summary['rejected']:,} rejected", end="; ")
    print(f"{seconds:.1f} s; results in {folder}")


def _compare_with_denoised(
    unit: str,
    method: str,
    predicted_error: float,
    agreement: float,
    resolution_as_they_are: float,
    resolution_denoised: float,
) -> str:
    """Say in a sentence or two what classes of denoised images are worth."""
    known = f", predicted error {predicted_error:.3f}" if predicted_error == predicted_error else ""
    before, after = (
        f"{resolution:.1f} {unit}" if resolution < 1e6 else "unresolved"
        for resolution in (resolution_as_they_are, resolution_denoised)
    )
    return (
        f"classes of the denoised images ({method}{known}) agree with these to {agreement:.2f} (adjusted "
        f"Rand index); averages of the images as they are: {before} in these classes, {after} in those"
    )


def print_description(description: Description) -> None:
    """Print what a file of particles holds."""
    print(f"{description.path}: {description.kind}")
    n_repeated = description.n_repeated
    repeated = f", of which {n_repeated:,} repeat an earlier one" if n_repeated else ""
    _print_fact("images", f"{description.n_images:,}{repeated}")
    boxes = [f"{nx} px" if nx == ny else f"{nx} x {ny} px" for nx, ny in description.boxes]
    if len(boxes) > 1:
        counts = description.boxes.values()
        boxes = [f"{box}: {count:,}" for box, count in zip(boxes, counts, strict=True)]
    _print_fact("box", "; ".join(boxes) or "unknown")
    _print_fact(
        "pixel size", _quantity(description.pixel_size, "A") or "unknown, or not the same for all images"
    )
    _print_optics(description)
    kinds = [
        name if len(description.pixels) == 1 else f"{name} ({n:,})" for name, n in description.pixels.items()
    ]
    size = f"{description.stack_bytes / 1e6:,.1f} MB" if description.stack_bytes else ""
    _print_fact("stacks", "; ".join(filter(None, [f"{description.n_stacks:,}", size, *kinds])))
    _print_look(description.look)
    if description.missing:
        _print_missing(description.missing, description.near_matches)
    for doubt in description.doubts:
        _print_fact("doubt", doubt)
    for problem in description.problems[:_N_NAMED]:
        _print_fact("problem", problem)
    _print_rest(len(description.problems))


def print_picks_description(description: PicksDescription) -> None:
    """Print what files of picks hold."""
    kinds = "; ".join(f"{kind} ({n:,})" if n > 1 else kind for kind, n in description.kinds.items())
    print(f"{description.path}: {kinds or 'list of files of picks'}")
    n_repeated = description.n_repeated
    repeated = f", of which {n_repeated:,} repeat an earlier one" if n_repeated else ""
    _print_fact("picks", f"{description.n_picks:,}{repeated}")
    _print_fact("micrographs", f"{description.n_micrographs:,}")
    if description.n_empty:
        _print_fact("empty", f"{_count(description.n_empty, 'file')} without picks")
    left, right, low, high = description.reach
    if left == left:
        unit = "of the sides" if "picks of cryoSPARC" in description.kinds else "px"
        _print_fact("reach", f"x {left:.5g} to {right:.5g}, y {low:.5g} to {high:.5g} {unit}")
    if description.has_segments:
        _print_fact("filaments", "neighbouring picks overlap on purpose")
    _print_fact("CTF", "defocus known" if description.has_ctf else "not in these files")
    if description.missing:
        _print_fact("missing", _count(len(description.missing), "file"))
        for name in description.missing[:_N_NAMED]:
            print(f"    {name}")
        _print_rest(len(description.missing))
    for problem in description.problems[:_N_NAMED]:
        _print_fact("problem", problem)
    _print_rest(len(description.problems))


def print_run(description: RunDescription) -> None:
    """Print what the folder of a finished run holds."""
    print(f"{description.path}: {description.kind} by fastsort {description.version}")
    if description.input:
        _print_fact("input", description.input)
    for name, number in description.counts.items():
        _print_fact(name, f"{number:,}")
    settings = [f"{name} {_in_words(value)}" for name, value in description.settings.items()]
    _print_fact("settings", ", ".join(settings) or "all left to fastsort")
    _print_fact("files", ", ".join(description.files))
    for problem in description.problems:
        _print_fact("problem", problem)


def _in_words(value: Any) -> str:
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)


def _print_optics(description: Description) -> None:
    for group in description.optics:
        known = _describe_optics(group)
        if known:
            _print_fact("optics group" if group.name else "optics", known)
    if description.optics:
        _print_fact("CTF", _describe_ctf(description))
        n_micrographs = description.n_micrographs
        _print_fact("micrographs", "not named" if n_micrographs is None else f"{n_micrographs:,}")


def _describe_optics(group: OpticsGroup) -> str:
    parts = [
        f"{group.name}: {_count(group.n_images, 'image')}" if group.name else "",
        _quantity(group.pixel_size, "A/px"),
        _quantity(group.box, "px"),
        _quantity(group.voltage, "kV"),
        _quantity(group.spherical_aberration, "mm", "Cs "),
        _quantity(group.amplitude_contrast, "", "amplitude contrast "),
    ]
    return ", ".join(filter(None, parts))


def _describe_ctf(description: Description) -> str:
    low, high = description.defocus
    if low != low:
        defocus = "no defocus"
    else:
        defocus = f"defocus {low:,.0f} to {high:,.0f} A"
        if not description.has_ctf:
            defocus += ", but other numbers that a CTF needs are missing"
    marks = [
        word if count == description.n_images else f"{count:,} of {description.n_images:,} images {word}"
        for word, count in description.corrected.items()
    ]
    return f"{defocus}; {', '.join(marks) or 'not marked as phase-flipped'}"


def _print_look(look: Look) -> None:
    if look.n_images:
        guess = "unclear" if look.contrast == "unclear" else f"{look.contrast} particles"
        _print_fact("contrast", f"{guess} ({_count(look.n_images, 'image')} examined)")
        levels = f"mean {look.background_mean:.3g}, standard deviation {look.background_std:.3g}"
        _print_fact("background", f"{levels}: {'' if look.normalized else 'not '}normalised")
    if look.n_bad or look.n_flat:
        bad = f"{look.n_bad:,} with NaN or infinity, {look.n_flat:,} flat"
        _print_fact("bad images", f"{bad}, of {look.n_images:,} examined")


def _print_missing(missing: dict[str, int], near_matches: dict[str, str]) -> None:
    n_images = sum(missing.values())
    _print_fact("missing", f"{_count(len(missing), 'stack')} with {_count(n_images, 'image')}")
    for name, count in list(missing.items())[:_N_NAMED]:
        print(f"    {name}: {_count(count, 'image')}")
    _print_rest(len(missing))
    for advice in dict.fromkeys(filter(None, near_matches.values())):
        _print_wrapped(advice, "  ", 2)
    if not any(near_matches.values()):
        print("  use --data-dir to give the folder to which these names are relative")


def _print_rest(number: int) -> None:
    if number > _N_NAMED:
        print(f"    and {number - _N_NAMED:,} more")


def _print_fact(name: str, text: str) -> None:
    _print_wrapped(text, f"  {name:<14}", 16)


def _print_wrapped(text: str, first: str, indent: int) -> None:
    lines = textwrap.wrap(
        text,
        _LINE,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print("\n".join(lines) or first.rstrip())


def _quantity(value: float, unit: str, before: str = "") -> str:
    """Return a number with its unit; nothing where it is unknown."""
    return f"{before}{value:.5g} {unit}".strip() if value == value else ""


def _count(number: int, noun: str, several: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"


def warn_of_learned(told: Learned, remark: Callable[[str], None]) -> None:
    """Warn where a few choices overrule many verdicts."""
    from fastsort.decide.corrections import MANY
    from fastsort.decide.result import BY_HAND

    number = int((told.result.measurements[BY_HAND] != 0).sum())
    if told.learned and told.changed > MANY * number:
        said = f"{_count(number, 'choice')} changed {_count(told.changed, 'other verdict')}: look at them"
        remark(f"warning: {said}.")


def print_learned(told: Learned) -> None:
    """Print what was learned from choices."""
    from fastsort.decide.corrections import FEWEST

    if told.before != told.before:
        words = f"nothing learned: that needs {FEWEST} kept and {FEWEST} rejected images at least"
    else:
        words = f"{_count(told.changed, 'other verdict')} changed" if told.learned else "nothing learned"
        words += f"; balanced accuracy on the choices {told.before:.2f}"
        words += f", predicted from the others {told.after:.2f}"
    print(textwrap.fill(words, _LINE))


def print_denoised(summary: dict[str, Any], folder: str | os.PathLike[str], seconds: float) -> None:
    """Print how a set was denoised, from what ``summary.json`` holds, and how long the command took."""
    print(f"{_count(summary['images'], 'image')} denoised with {summary['method']}")
    known = {name: error for name, error in summary["compared"].items() if error == error}
    if summary["predicted_error"] == summary["predicted_error"]:
        known.pop(summary["method"], None)
        others = [f"{name} {error:.3f}" for name, error in sorted(known.items(), key=lambda item: item[1])]
        against = f"; {', '.join(others)}" if others else ""
        error, doubt = summary["predicted_error"], summary["standard_error"]
        print(f"predicted error {error:.3f} of the particles' power (standard error {doubt:.3f}){against}")
    else:
        print("predicted error not known: what is noise and what are particles cannot be told")
    corrected = "corrected" if summary["ctf_corrected"] else "not known, not corrected"
    print(f"signal to noise {summary['snr']:.3g}; contrast transfer function {corrected}")
    left = summary["left_as_they_were"]
    if left:
        some = ", ".join(left[:_N_NAMED])
        more = f" and {len(left) - _N_NAMED:,} more" if len(left) > _N_NAMED else ""
        print(f"not denoised, since some of their pixels are no numbers: {some}{more}")
    print(textwrap.fill(summary["remark"], _LINE))
    print(f"{seconds:.1f} s, {summary['images'] / seconds:,.0f} images/s; results in {folder}")
