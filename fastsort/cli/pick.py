"""``fastsort pick``: where particles are in micrographs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsort._checks import InputError
from fastsort.cli.options import (
    DONE_BUT,
    NO_BAR_HELP,
    Commands,
    add_cluster,
    add_command,
    check_cluster,
    cluster_of,
    n_workers,
    refuse_given,
    resumable,
    work_folder_of,
)
from fastsort.cli.printing import print_picks
from fastsort.cli.relion import IS_JOB
from fastsort.cli.talk import add_talk

if TYPE_CHECKING:
    from fastsort.particles.micrographs import MicrographList
    from fastsort.pick import PickResult

# Options that `pick_particles` has under the same names.
_PARAMETERS = ("diameter", "threshold", "contamination_margin", "pixel_size", "data_dir", "keep_work")


def add_pick(commands: Commands) -> None:
    """Add the command."""
    text = "Find particles in micrographs, and write their coordinates."
    example = "fastsort pick 'mics/*.mrc' -o picked/"
    parser = add_command(commands, "pick", run_pick, "MICROGRAPHS -o DIR ", text, example)
    add = parser.add_argument
    add("input", metavar="MICROGRAPHS", nargs="+", help="MRC files, a pattern in quotes, or a STAR file")
    add("-o", "--output", metavar="DIR", required=True, help="folder for the results")
    add("--diameter", type=float, metavar="A", help="of the particle, in angstroms (default: found)")
    add("--threshold", type=float, metavar="P", help="keep what has this probability (default: best F1)")
    margin = "keep nothing so near to contamination (default: a quarter of the diameter)"
    add("--contamination-margin", type=float, metavar="A", help=margin)
    add("--coords-suffix", action="store_true", help="also write coordinates as RELION 3.1 looks for them")
    add("--write-stack", action="store_true", help="also extract the particles: particles.star, .mrcs")
    add("--box", type=int, metavar="PX", help="with --write-stack: side (default: 1.5 diameters)")
    add("--pixel-size", type=float, metavar="A", help="in angstroms (default: that of the files)")
    add("--data-dir", metavar="DIR", help="search here first for the files that a STAR file names")
    add("--update", action="store_true", help="pick in what was added since the run in DIR")
    add("--jobs", type=n_workers, default=-1, metavar="N", help="number of workers (default -1: all cores)")
    add_cluster(parser)
    add("--work", metavar="DIR", help="folder for intermediate files (default .DIR.work)")
    add("--keep-work", action="store_true", help="keep the work folder after the run")
    add("--overwrite", action="store_true", help="replace earlier results in DIR")
    add(IS_JOB, action="store_true", help="run as an External job of RELION")
    add_talk(parser, NO_BAR_HELP)


def run_pick(options: argparse.Namespace) -> int | None:
    """Run the command."""
    from fastsort._checks import check_output_folder

    folder = check_output_folder(options.output, options.overwrite or options.update)
    if not options.write_stack:
        refuse_given(options, ["box"], "without --write-stack")
    check_cluster(options)
    if options.update and options.overwrite:
        raise InputError(
            "--update goes on from what is in DIR, and --overwrite replaces it: give one of them."
        )
    source = options.input[0] if len(options.input) == 1 else options.input
    if not str(options.input[0]).lower().endswith(".star"):
        refuse_given(options, ["data_dir"], "without a STAR file that names micrographs")
    earlier = _earlier(folder) if options.update else None
    work = work_folder_of(options)
    with resumable(work, options.keep_work):
        result = _pick_into(folder, source, options, work, earlier)
    return DONE_BUT if result.failed else None


def _earlier(folder: Path) -> PickResult:
    from fastsort._saved import load
    from fastsort.pick import PickResult

    results = folder / "results.npz"
    if not results.is_file():
        raise InputError(f"{folder} holds no finished run: leave out --update, or give its folder.")
    earlier = load(results)
    if not isinstance(earlier, PickResult):
        raise InputError(f"{folder} holds a run of another command: give the folder of a run of `pick`.")
    return earlier


def _pick_into(
    folder: Path,
    source: Any,
    options: argparse.Namespace,
    work: Path,
    earlier: PickResult | None,
) -> PickResult:
    """Pick, write every result into a folder, and print the summary."""
    from fastsort._checks import check_box, check_count
    from fastsort.particles.micrographs import list_micrographs
    from fastsort.pick import pick_particles
    from fastsort.report.folder import results_folder
    from fastsort.report.made import how_made
    from fastsort.report.picks import (
        check_all_given,
        file_names,
        finish_summary,
        write_coords_suffix,
        write_particles,
        write_picks,
    )
    from fastsort.report.picks_page import write_picks_page
    from fastsort.report.relion_job import stop_when_aborted

    if options.box is not None:
        check_box(check_count("box", options.box), options.box, "the box")
    listed: MicrographList = list_micrographs(
        source, pixel_size=options.pixel_size, data_dir=options.data_dir
    )
    # Now, and not when all the work is done.
    file_names([*listed.names, *(set() if earlier is None else {*earlier.names.tolist()} - {*listed.names})])
    if options.write_stack and earlier is not None:
        check_all_given(earlier.names.tolist(), listed)
    side = min(min(header.ny, header.nx) for header in listed.headers)
    if options.box is not None and options.box > side:
        raise InputError(
            f"a box of {options.box} px is larger than the micrographs, {side} px: give a smaller one."
        )
    parameters = {name: getattr(options, name) for name in _PARAMETERS}
    paths = [header.path for header in listed.headers]
    overwrite = options.overwrite or options.update
    with (
        results_folder(folder, overwrite=overwrite, inputs=paths) as partial,
        cluster_of(options, paths, work),
    ):
        with options.talk.progress("picking", "micrographs") as bar:
            progress = stop_when_aborted(folder.parent, bar) if options.relion_job else bar
            result = pick_particles(
                listed,
                # Until the results are whole.
                **{**parameters, "keep_work": True},
                earlier=earlier,
                work=work,
                n_jobs=options.jobs,
                progress=progress,
            )
        summary = write_picks(partial, options.output, result, parameters)
        summary["opened_with"] = {
            "micrographs": options.input,
            "folder": os.getcwd(),
            "data_dir": options.data_dir and os.path.abspath(options.data_dir),
        }
        if options.coords_suffix:
            write_coords_suffix(partial, result, str(options.input[0]))
        if options.write_stack:
            summary["particles"] = write_particles(partial, options.output, listed, result, options.box)
        summary["made"] = how_made(paths, options.talk.command)
        finish_summary(partial, summary)
        title = os.path.basename(os.path.normpath(folder))
        write_picks_page(
            partial,
            title,
            listed,
            result,
            parameters=parameters,
            made=summary["made"],
            n_jobs=options.jobs,
        )
    talk = options.talk
    talk.summary(options.output, lambda: print_picks(summary, options.output, talk.seconds))
    return result
