"""``fastsort apply``: choices made by hand, a list, or a finished run with another threshold."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import TYPE_CHECKING, Any

from fastsort._checks import InputError
from fastsort.cli.map import write_selected
from fastsort.cli.options import (
    STRICTNESS,
    Commands,
    add_command,
    add_micrographs,
    add_reading,
    add_strictness,
    check_data_dir,
    check_reading,
    open_input,
    refuse_all_but,
    refuse_given,
)
from fastsort.cli.printing import drawing, print_learned, print_picks_again, print_verdicts, warn_of_learned

if TYPE_CHECKING:
    from fastsort.decide.corrections import Learned
    from fastsort.decide.result import SortResult
    from fastsort.particles.micrographs import MicrographList
    from fastsort.pick import PickResult
    from fastsort.report.finished import Finished
    from fastsort.report.picks import FinishedPicks

_ALWAYS = ("chosen", "input", "output", "overwrite", "quiet")
# What says how micrographs and picks are opened. No pixel is read, so that --bright has no effect.
_PICKS = ("micrographs", "coordinates", "box", "pixel_size", "data_dir")


def add_apply(commands: Commands) -> None:
    """Add the command."""
    text = "Write what a person chose, or what a finished run keeps with another threshold."
    example = "fastsort apply choices.json sorted/ -o chosen/"
    needs = "CHOICES|LIST|SORTED [INPUT] -o DIR "
    parser = add_command(commands, "apply", run_apply, needs, text, example)
    add = parser.add_argument
    chosen = "choices saved on the page, list of indices to keep, from 0, or folder of a finished run"
    add("chosen", metavar="CHOICES|LIST|SORTED", help=chosen)
    particles = (
        "folder of the run on whose page CHOICES were made; particles or run that LIST belongs to; input of "
        "SORTED if that has moved"
    )
    add("input", metavar="INPUT", nargs="?", help=particles)
    add("-o", "--output", metavar="DIR", required=True, help="folder for the results")
    learn = "with CHOICES: also learn from them what else to keep or reject"
    add("--learn", action="store_true", help=learn)
    add_strictness(parser, with_probability=True)
    add("--threshold", type=float, metavar="P", help="of picks: keep what is a particle with probability P")
    add_reading(parser)
    add_micrographs(parser, reads_pixels=False)
    add("--overwrite", action="store_true", help="replace earlier results in DIR")
    add("--quiet", action="store_true", help="show no summary")


def run_apply(options: argparse.Namespace) -> None:
    """Run the command."""
    from fastsort._checks import check_output_folder
    from fastsort._saved import kind_of
    from fastsort.report.folder import RESULTS
    from fastsort.report.selection import holds_map

    check_output_folder(options.output, options.overwrite)
    run = options.chosen if os.path.isdir(options.chosen) else options.input
    if run is not None and kind_of(os.path.join(run, RESULTS)) == "pick-result":
        _apply_to_picks(options, run)
    elif os.path.isdir(options.chosen):
        _apply_threshold(options)
    elif options.input is not None and holds_map(options.input):
        _apply_to_map(options)
    elif options.input is not None and os.path.isdir(options.input):
        _apply_by_hand(options)
    else:
        _apply_list(options)


def _apply_list(options: argparse.Namespace) -> None:
    from fastsort.particles.open import open_table
    from fastsort.report.choices import holds_choices
    from fastsort.report.folder import results_folder
    from fastsort.report.lists import read_list, write_choice

    # Before the input, whose stacks may be many.
    if holds_choices(options.chosen):
        raise InputError(
            f"{options.chosen} has choices made on the page of a run: give the folder of that run."
        )
    if options.input is None and options.micrographs is None:
        raise InputError(f"{options.chosen} is a list: say of which STAR file, .cs file or stack.")
    opening = ["passthrough"] if options.micrographs is None else _PICKS
    refuse_all_but(options, [*_ALWAYS, *opening], "with a list")
    if options.micrographs is None:
        check_reading(options, options.input)
        source, table = options.input, open_table(options.input, options.passthrough)
    else:
        particles = open_input(options)
        source, table = options.coordinates, particles.table
    keep = read_list(options.chosen, len(table))
    inputs = [options.chosen, *table.files]
    with results_folder(options.output, overwrite=options.overwrite, inputs=inputs) as partial:
        summary = write_choice(partial, table, keep, options.chosen, source)
    if not options.quiet:
        print(f"{summary['kept']:,} kept, {summary['rejected']:,} rejected; results in {options.output}")


def _apply_by_hand(options: argparse.Namespace) -> None:
    import numpy as np

    from fastsort.decide.by_hand import choose_by_hand
    from fastsort.report.choices import apply_choices, holds_choices, learn_choices, read_choices
    from fastsort.report.finished import open_finished
    from fastsort.report.lists import read_list

    refuse_all_but(options, [*_ALWAYS, "data_dir", "learn"], "with choices of a finished run")
    is_list = not holds_choices(options.chosen)
    if is_list:
        refuse_given(options, ["learn"], "with a list, which does not say what a person looked at")
    finished = open_finished(options.input, data_dir=options.data_dir)
    result, told = finished.result, None
    if is_list:
        keep = read_list(options.chosen, len(result.keep))
        result = choose_by_hand(
            result, np.flatnonzero(keep & ~result.keep), np.flatnonzero(~keep & result.keep)
        )
    else:
        choices = read_choices(options.chosen)
        if options.learn:
            result, told = learn_choices(options.chosen, result, choices)
        else:
            result = apply_choices(options.chosen, result, choices)
    write_again(options, finished, result, [options.chosen], told)


def _apply_to_map(options: argparse.Namespace) -> None:
    from fastsort.report.selection import select_by_hand

    refuse_all_but(options, [*_ALWAYS], "with choices of a finished map")
    inputs = [options.chosen, os.path.join(options.input, "summary.json")]
    selection = select_by_hand(options.input, options.chosen)
    write_selected(options, selection, inputs)


def _apply_threshold(options: argparse.Namespace) -> None:
    from fastsort.decide.verdict import cut_again
    from fastsort.report.finished import open_finished

    useful = [*_ALWAYS, *STRICTNESS, "data_dir"]
    refuse_all_but(options, useful, "with a finished run, which has its own")
    finished = open_finished(options.chosen, options.input, data_dir=options.data_dir)
    if not options.given & {*STRICTNESS}:
        ways = ", ".join(f"--{name.replace('_', '-')}" for name in STRICTNESS)
        raise InputError(f"say how much of {options.chosen} to keep: give one of {ways}.")
    result = cut_again(finished.result, **{name: getattr(options, name) for name in STRICTNESS})
    write_again(options, finished, result, [])


def _apply_to_picks(options: argparse.Namespace, run: str) -> None:
    """Write finished picks as a person chose, or with another threshold; no place is looked for again."""
    from fastsort.particles.micrographs import list_micrographs
    from fastsort.pick import judge_picks
    from fastsort.report.choices import apply_to_picks, holds_choices, read_choices
    from fastsort.report.picks import list_again, list_of_picks, open_picks

    finished = open_picks(run)
    inputs = []
    useful = [*_ALWAYS, "micrographs"]
    if options.micrographs is not None:
        useful.append("data_dir")
    if run == options.chosen:
        refuse_all_but(options, [*useful, "threshold"], "with a folder of picks")
        if options.input is not None:
            raise InputError(
                f"{options.input} does nothing with picks: give --micrographs if these have moved."
            )
        if options.threshold is None:
            raise InputError(f"say how much of {run} to keep: give --threshold.")
        result = judge_picks(finished.result, options.threshold)
    else:
        refuse_all_but(options, useful, "with what a person chose of picks")
        inputs.append(options.chosen)
        if holds_choices(options.chosen):
            result = apply_to_picks(options.chosen, finished.result, read_choices(options.chosen))
        else:
            result = list_of_picks(options.chosen, finished.result)
    listed = (
        list_again(finished)
        if options.micrographs is None
        else list_micrographs(options.micrographs, data_dir=options.data_dir)
    )
    if listed is not None:
        inputs += [header.path for header in listed.headers]
    _write_picks(options, finished, result, listed, inputs)


def _write_picks(
    options: argparse.Namespace,
    finished: FinishedPicks,
    result: PickResult,
    listed: MicrographList | None,
    inputs: list[str],
) -> None:
    from fastsort.report.folder import results_folder
    from fastsort.report.made import how_made
    from fastsort.report.picks import extracted_box, finish_summary, write_picks_again
    from fastsort.report.picks_page import write_picks_page

    title = os.path.basename(os.path.abspath(options.output))
    # Before the folder is replaced.
    box = extracted_box(finished)
    with results_folder(options.output, overwrite=options.overwrite, inputs=inputs) as partial:
        summary = write_picks_again(partial, options.output, finished, result)
        paths = [] if listed is None else [header.path for header in listed.headers]
        made = summary["made"] = how_made(paths, options.talk.command)
        finish_summary(partial, summary)
        parameters = summary["parameters"]
        write_picks_page(partial, title, listed, result, parameters=parameters, made=made, n_jobs=-1)
    if options.quiet:
        return
    notes = []
    if listed is None:
        notes.append("the micrographs are not at hand, so the page shows none: give --micrographs")
    if box is not None:
        notes.append(f"particles are not extracted again{_how_to_extract(options, finished, box)}")
    print_picks_again(summary, options.output, notes)


def _how_to_extract(options: argparse.Namespace, finished: FinishedPicks, box: int) -> str:
    """Complete "particles are not extracted again": `pick` looks only where it has not looked before."""
    how = finished.summary.get("opened_with")
    if how is None or options.micrographs is not None:
        return ": the micrographs are not where they were"
    given = how["micrographs"] if len(how["micrographs"]) < 4 else ["MICROGRAPHS"]
    words = ["fastsort", "pick", *given, "-o", os.path.abspath(options.output), "--update", "--write-stack"]
    words += ["--box", str(box)]
    for name in ("pixel_size", "data_dir"):
        value = (finished.summary.get("parameters") or {}).get(name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    where = "" if how["folder"] == os.getcwd() else f" in {how['folder']}"
    return f"; to do so{where}: {shlex.join(words)}"


def write_again(
    options: argparse.Namespace,
    finished: Finished,
    result: SortResult,
    inputs: list[str],
    told: Learned | None = None,
    *,
    in_place: bool = False,
) -> dict[str, Any]:
    """Write a finished run with another verdict, and say what it is and what was learned for it.

    With `in_place`, it takes the place of the run itself. Returns the summary.
    """
    from fastsort.report.drawing import draw_results
    from fastsort.report.folder import results_folder
    from fastsort.report.results import write_results

    particles = finished.particles
    check_data_dir(options, particles)
    inputs = [*inputs, *particles.files]
    if told is not None:
        warn_of_learned(told, options.talk.remark)
    with results_folder(options.output, overwrite=options.overwrite or in_place, inputs=inputs) as partial:
        summary = write_results(
            partial,
            particles,
            result,
            recentre=bool(finished.summary.get("recentred")),
            learned=finished.summary.get("subspaces"),
            score_field=bool(finished.summary.get("score_field")),
            command=options.talk.command,
        )
        with drawing("report.png"):
            draw_results(partial, particles, result, made=summary["made"], n_jobs=-1)

    def tell() -> None:
        if told is not None:
            print_learned(told)
        print_verdicts(summary)
        print(f"results in {options.output}")

    options.talk.summary(options.output, tell)
    return summary
