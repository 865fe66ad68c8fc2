"""``fastsort info``: what a file of particles holds."""

from __future__ import annotations

import argparse

from fastsort.cli.options import DONE, FAILED, KINDS, Commands, add_command, add_reading, check_reading
from fastsort.cli.printing import print_description


def add_info(commands: Commands) -> None:
    """Add the command."""
    text = "Show what a particle file holds, and what is missing."
    parser = add_command(commands, "info", run_info, "INPUT ", text, "fastsort info particles.star")
    parser.add_argument("input", metavar="INPUT", help=KINDS)
    add_reading(parser)


def run_info(options: argparse.Namespace) -> int:
    """Run the command."""
    from fastsort.particles.describe import describe

    check_reading(options, options.input)
    description = describe(
        options.input,
        pixel_size=options.pixel_size,
        data_dir=options.data_dir,
        passthrough=options.passthrough,
    )
    print_description(description)
    return DONE if description.usable else FAILED
