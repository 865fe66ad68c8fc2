"""``fastsort sort``: a verdict on every image, written and drawn."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsort._checks import InputError
from fastsort.cli.apply import write_again
from fastsort.cli.beside import compiling_beside
from fastsort.cli.limits import how_passed, read_limit
from fastsort.cli.options import (
    DENOISED_HELP,
    DONE,
    DONE_BUT,
    KINDS,
    METHODS,
    Commands,
    add_command,
    add_images,
    add_micrographs,
    add_places,
    add_run,
    add_strictness,
    check_cluster,
    cluster_of,
    open_input,
    refuse_all_but,
    refuse_given,
    resumable,
    work_folder_of,
)
from fastsort.cli.printing import drawing, print_learned, print_summary, warn_of_learned
from fastsort.cli.relion import IS_JOB

if TYPE_CHECKING:
    from fastsort.decide.corrections import Learned
    from fastsort.decide.result import SortResult
    from fastsort.particles.source import Particles
    from fastsort.report.painter import Painter

# Options that `sort_particles` has under the same names.
_PARAMETERS = (
    "diameter",
    "method",
    "preset",
    "phase_flip",
    "contrast",
    "working_size",
    "n_peaks",
    "n_subspaces",
    "n_components",
    "keep_at_least",
    "discard",
    "fraction",
    "unanimous",
    "keep_off_centre",
    "duplicate_distance",
    "keep_work",
    "seed",
)
# What has an effect where a finished run learns from choices and nothing is sorted.
_TO_LEARN = ("input", "output", "learn_from", "data_dir", "fail_if", "log", "json", "quiet")


def add_sort(commands: Commands) -> None:
    """Add the command."""
    text = "Sort particle images, and write which ones to keep."
    example = "fastsort sort particles.star --diameter 128 -o sorted/"
    parser = add_command(commands, "sort", run_sort, "INPUT -o DIR ", text, example)
    add_options(parser)


def add_options(parser: argparse.ArgumentParser, repeated: bool = False) -> None:
    """Add the options, or those of them that a run has that is updated again and again."""
    add_places(parser, KINDS, optional=True)
    verdict = parser.add_argument_group("verdict")
    add = verdict.add_argument
    if not repeated:
        alone = "radial, subspaces or invariants alone (default: all)"
        add("--method", choices=METHODS, metavar="NAME", help=alone)
    add_strictness(verdict)
    if not repeated:
        rules = "rules of the method: default, or published"
        add("--preset", choices=("default", "published"), default="default", metavar="NAME", help=rules)
    contrast = "particles are bright, dark or auto (default: found)"
    add("--contrast", choices=("auto", "bright", "dark"), default="auto", metavar="HOW", help=contrast)
    add("--n-peaks", type=int, metavar="N", help="radial: number of peaks to measure in each image")
    if not repeated:
        add("--n-subspaces", type=int, metavar="M", help="subspaces: their number (default: from the data)")
        add("--n-components", type=int, metavar="K", help="subspaces: dimensions (default: from the data)")
    add("--keep-off-centre", action="store_true", help="keep off-centre particles; use with --recentre")
    closer = "closer picks are one particle (default 20; 0: off)"
    add("--duplicate-distance", type=float, metavar="A", help=closer)
    add = parser.add_argument_group("results").add_argument
    add("--recentre", action="store_true", help="write origins that centre each particle")
    add("--write-stack", action="store_true", help="also copy the kept images to kept.mrcs")
    add("--denoised", action="store_true", help=DENOISED_HELP)
    add("--score-field", action="store_true", help="append scores to .cs files")
    limits = "code 3 if this: 'junk>SHARE', or unknown errors"
    add("--fail-if", type=read_limit, action="append", default=[], metavar="LIMIT", help=limits)
    images = parser.add_argument_group("images")
    add_images(images, "estimated", "default 36")
    add_micrographs(images)
    run = parser.add_argument_group("run")
    add = run.add_argument
    if not repeated:
        add("--update", action="store_true", help="sort what was added to INPUT since the run in DIR")
    judging = "earlier verdicts may change too"
    add("--judge-again", action="store_true", help=judging if repeated else f"with --update: {judging}")
    if not repeated:
        add("--learn-from", metavar="FILE", help="learn from choices made on the page in DIR")
    add_run(run, cluster=True, repeated=repeated)
    if not repeated:
        add(IS_JOB, action="store_true", help="run as an External job of RELION")


def run_sort(options: argparse.Namespace) -> int:
    """Run the command."""
    _, passed = sort_once(options)
    return DONE_BUT if passed else DONE


def sort_once(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Sort as the options say; return the summary, and what is said of the limits that it passes."""
    from fastsort._checks import check_output_folder

    goes_on = options.update or options.learn_from is not None
    folder = check_output_folder(options.output, options.overwrite or goes_on)
    if goes_on and options.overwrite:
        one = "update" if options.update else "learn-from"
        raise InputError(
            f"--{one} goes on from what is in DIR, and --overwrite replaces it: give one of them."
        )
    if goes_on and not options.update:
        summary = _learn(options)
    else:
        summary = _sort(folder, options)
    passed = [line for limit in options.fail_if if (line := how_passed(limit, summary))]
    for line in passed:
        options.talk.remark(line)
    return summary, passed


def _learn(options: argparse.Namespace) -> dict[str, Any]:
    """Judge the finished run in the folder by the choices made on its page; nothing is sorted."""
    from fastsort.report.choices import learn_choices, read_choices
    from fastsort.report.finished import open_finished

    refuse_all_but(options, _TO_LEARN, "with --learn-from, unless --update is given too")
    finished = open_finished(options.output, options.input, data_dir=options.data_dir)
    result, told = learn_choices(options.learn_from, finished.result, read_choices(options.learn_from))
    return write_again(options, finished, result, [options.learn_from], told, in_place=True)


def _sort(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Sort or update, and return the summary."""
    from fastsort.report.painter import painting_beside

    if options.update and not _has_run(folder) and options.learn_from is not None:
        raise InputError(f"{folder} holds no run whose page {options.learn_from} was saved on: sort first.")
    particles = check_sort(options)
    work = work_folder_of(options)
    parameters = {name: getattr(options, name) for name in _PARAMETERS}
    # The painter imports what it needs while we import what we need.
    with painting_beside() as painter, compiling_beside(), resumable(work, options.keep_work):
        # Until the results are whole: they may need more room than there is.
        parameters["keep_work"] = True
        places = {"work": work, "n_jobs": options.jobs}
        _, summary = sort_into(folder, particles, options, painter, **places, **parameters)
    return summary


def check_sort(options: argparse.Namespace) -> Particles:
    """Open what is sorted, and refuse what would fail later or have no effect."""
    _check_combination(options)
    particles = open_input(options)
    _check_tables(particles, options)
    return particles


def _has_run(folder: Path) -> bool:
    """Whether a folder holds a run to go on from; refuse one that holds anything else."""
    if (folder / "results.npz").is_file():
        return True
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} holds no finished run: give its folder to --update, or one that is empty or new."
        )
    return False


def _check_combination(options: argparse.Namespace) -> None:
    """Refuse options that would have no effect, and combinations that mean nothing."""
    if not options.update:
        refuse_given(options, ["judge_again"], "without --update")
    elif options.method is not None:
        raise InputError(f"an update needs all methods, not {options.method} alone: leave out --method.")
    if not str(options.input).lower().endswith(".cs"):
        refuse_given(options, ["score_field"], "without a .cs file")
    if options.method in ("subspaces", "invariants"):
        refuse_given(options, ["recentre"], f"with method {options.method!r}, which finds no centres")
    if options.method == "radial" and options.preset == "published":
        refuse_given(options, ["contrast"], "with the published rules, which are for bright particles")
    check_cluster(options)


def _check_tables(particles: Particles, options: argparse.Namespace) -> None:
    """Find now what would else fail when all the work is done, or have no effect."""
    from fastsort.particles.places import micrograph_places

    places = micrograph_places(particles)
    if options.recentre:
        import numpy as np

        from fastsort.report.recentre import recentred

        n = len(particles)
        recentred(particles, np.zeros((n, 2)), np.zeros(n, bool))
    if options.duplicate_distance and options.method is None:
        if particles.table.has_segments:
            refuse_given(options, ["duplicate_distance"], "with segments of filaments")
        if places is None or places.x is None:
            where = "where the input does not say where in a micrograph each particle was picked"
            refuse_given(options, ["duplicate_distance"], where)


def sort_into(
    folder: str | os.PathLike[str],
    particles: Particles,
    options: argparse.Namespace,
    painter: Painter | None,
    **parameters: Any,
) -> tuple[SortResult, dict[str, Any]]:
    """Sort, write every result into a folder, and print the summary; return the result and the summary."""
    from fastsort.decide.corrections import learn_again
    from fastsort.report.drawing import draw_results
    from fastsort.report.folder import results_folder
    from fastsort.report.relion_job import stop_when_aborted
    from fastsort.report.results import write_results

    talk = options.talk
    # An update is made from what the folder holds.
    overwrite = options.overwrite or getattr(options, "update", False)
    choices = getattr(options, "learn_from", None)
    told: Learned | None = None
    inputs = [*particles.files, *([choices] if choices else [])]
    with results_folder(folder, overwrite=overwrite, inputs=inputs) as partial:
        with (
            talk.progress("sorting") as bar,
            cluster_of(options, particles.store.files(), parameters.get("work")),
        ):
            is_job = getattr(options, "relion_job", False)
            progress = stop_when_aborted(Path(folder).parent, bar) if is_job else bar
            if watch := getattr(options, "watch", None):
                progress = watch(bar)
            result = _sort_or_update(folder, particles, options, progress=progress, **parameters)
        if choices:
            told = learn_again(result)
            warn_of_learned(told, talk.remark)
            result = told.result if told.learned else result
        summary = write_results(
            partial,
            particles,
            result,
            write_stack=getattr(options, "write_stack", False),
            recentre=getattr(options, "recentre", False),
            score_field=getattr(options, "score_field", False),
            command=talk.command,
        )
        with drawing("report.png", talk.remark):
            draw_results(
                partial,
                particles,
                result,
                denoised=getattr(options, "denoised", False),
                made=summary["made"],
                painter=painter if result.subspaces is None else None,
                n_jobs=parameters.get("n_jobs"),
            )

    def tell() -> None:
        if told is not None:
            print_learned(told)
        print_summary(summary, folder, talk.seconds)

    talk.summary(folder, tell)
    return result, summary


def _sort_or_update(
    folder: str | os.PathLike[str], particles: Particles, options: argparse.Namespace, **parameters: Any
) -> SortResult:
    from fastsort.sort import sort_particles

    if not (getattr(options, "update", False) and _has_run(Path(folder))):
        return sort_particles(particles, **parameters)
    from fastsort.report.choices import apply_choices, read_choices
    from fastsort.report.finished import read_earlier
    from fastsort.update import can_go_on_from, update_particles

    earlier, names = read_earlier(folder)
    choices = getattr(options, "learn_from", None)
    if choices is not None:
        earlier = apply_choices(choices, earlier, read_choices(choices))
    if choices is None and not can_go_on_from(earlier):
        # Too few images to learn from: what is there now is sorted as a whole.
        return sort_particles(particles, **parameters)
    # What is not given now is as it was in the run; these belong to a run and have no names as options.
    given = options.given | {"work", "keep_work", "n_jobs", "progress"}
    asked = {name: value for name, value in parameters.items() if name in given}
    return update_particles(particles, earlier, names, judge_again=options.judge_again, **asked)
