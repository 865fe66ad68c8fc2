"""``fastsort info``: what a file of particles or picks holds, or the folder of a run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fastsort._checks import InputError
from fastsort.cli.options import (
    DONE,
    FAILED,
    KINDS,
    Commands,
    add_command,
    add_reading,
    check_reading,
    refuse_given,
)
from fastsort.cli.printing import print_description, print_picks_description, print_run


def add_info(commands: Commands) -> None:
    """Add the command."""
    text = "Show what a file of particles or picks holds, or the folder of a run."
    parser = add_command(commands, "info", run_info, "INPUT ", text, "fastsort info particles.star")
    kinds = f"{KINDS}, file of picks (.star, .cs, .box, .cbox, .json, .txt), or folder of picks or of a run"
    parser.add_argument("input", metavar="INPUT", help=kinds)
    add_reading(parser)


def run_info(options: argparse.Namespace) -> int:
    """Run the command."""
    from fastsort.particles.open import PICKS, STACKS, TABLES

    suffix = Path(options.input).suffix.lower()
    if os.path.isdir(options.input):
        usable = _folder(options)
    elif suffix in PICKS and suffix not in TABLES:
        usable = _picks(options)
    else:
        check_reading(options, options.input)
        try:
            usable = _particles(options)
        except InputError:
            if suffix in STACKS or not (suffix in PICKS and _holds_picks(options.input)):
                raise
            usable = _picks(options)
    return DONE if usable else FAILED


def _particles(options: argparse.Namespace) -> bool:
    from fastsort.particles.describe import describe

    description = describe(
        options.input,
        pixel_size=options.pixel_size,
        data_dir=options.data_dir,
        passthrough=options.passthrough,
    )
    print_description(description)
    return description.usable


def _holds_picks(path: str) -> bool:
    from fastsort.particles.describe_picks import describe_picks

    try:
        describe_picks(path)
    except InputError:
        return False
    return True


def _picks(options: argparse.Namespace) -> bool:
    from fastsort.particles.describe_picks import describe_picks

    refuse_given(options, ["pixel_size", "passthrough"], "with picks")
    if Path(options.input).suffix.lower() != ".star":
        refuse_given(options, ["data_dir"], f"with {options.input}, which names no other files")
    description = describe_picks(options.input, data_dir=options.data_dir)
    print_picks_description(description)
    return description.usable


def _folder(options: argparse.Namespace) -> bool:
    from fastsort.report.describe import describe_run, is_run

    if not is_run(options.input):
        return _picks(options)
    refuse_given(options, ["pixel_size", "passthrough", "data_dir"], "with the folder of a run")
    description = describe_run(options.input)
    print_run(description)
    return description.usable
