"""``fastsort report``: the page and the picture of a finished run, again."""

from __future__ import annotations

import argparse

from fastsort.cli.options import DATA_DIR_HELP, DENOISED_HELP, Commands, add_command, check_data_dir
from fastsort.cli.printing import drawing


def add_report(commands: Commands) -> None:
    """Add the command."""
    text = "Make the page and the picture of a finished run again."
    parser = add_command(commands, "report", run_report, "SORTED ", text, "fastsort report sorted/")
    add = parser.add_argument
    add("sorted", metavar="SORTED", help="folder of a finished run")
    add("-o", "--output", metavar="FILE", help="new .html or .png file (default: replace both in SORTED)")
    add("--input", metavar="INPUT", help="where the sorted file is now, if it has moved")
    add("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    add("--denoised", action="store_true", help=DENOISED_HELP)
    add("--quiet", action="store_true", help="print nothing")


def run_report(options: argparse.Namespace) -> None:
    """Run the command."""
    from fastsort.report.drawing import redraw
    from fastsort.report.finished import open_finished

    finished = open_finished(options.sorted, options.input, data_dir=options.data_dir)
    check_data_dir(options, finished.particles)
    with drawing("report.png"):
        written = redraw(finished, options.output, denoised=options.denoised, n_jobs=-1)
        if not options.quiet:
            print(*written, sep="\n")
