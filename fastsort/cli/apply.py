"""``fastsort apply``: choices made by hand, a list of images, or a finished run with another threshold."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from fastsort._checks import InputError
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
from fastsort.cli.printing import drawing, print_learned, print_verdicts, warn_of_learned

if TYPE_CHECKING:
    from fastsort.decide.corrections import Learned
    from fastsort.decide.result import SortResult
    from fastsort.report.finished import Finished

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
    add_reading(parser)
    add_micrographs(parser, reads_pixels=False)
    add("--overwrite", action="store_true", help="replace earlier results in DIR")
    add("--quiet", action="store_true", help="show no summary")


def run_apply(options: argparse.Namespace) -> None:
    """Run the command."""
    from fastsort._checks import check_output_folder

    check_output_folder(options.output, options.overwrite)
    if os.path.isdir(options.chosen):
        _apply_threshold(options)
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


def write_again(
    options: argparse.Namespace,
    finished: Finished,
    result: SortResult,
    inputs: list[str],
    told: Learned | None = None,
) -> dict[str, Any]:
    """Write a finished run with another verdict, and say what it is and what was learned for it.

    Returns the summary.
    """
    from fastsort.report.drawing import draw_results
    from fastsort.report.folder import results_folder
    from fastsort.report.results import write_results

    particles = finished.particles
    check_data_dir(options, particles)
    inputs = [*inputs, *particles.files]
    if told is not None:
        warn_of_learned(told, options.talk.remark)
    # `sort` learns in the folder of the run itself.
    overwrite = options.overwrite or "learn_from" in options
    with results_folder(options.output, overwrite=overwrite, inputs=inputs) as partial:
        summary = write_results(
            partial,
            particles,
            result,
            recentre=bool(finished.summary.get("recentred")),
            learned=finished.summary.get("subspaces"),
            score_field=bool(finished.summary.get("score_field")),
        )
        with drawing("report.png"):
            draw_results(partial, particles, result, n_jobs=-1)

    def tell() -> None:
        if told is not None:
            print_learned(told)
        print_verdicts(summary)
        print(f"results in {options.output}")

    options.talk.summary(options.output, tell)
    return summary
