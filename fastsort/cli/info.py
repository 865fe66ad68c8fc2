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
    parser.add_argument("input", metavar="INPUT", nargs="+", help=kinds)
    add_reading(parser)


def run_info(options: argparse.Namespace) -> int:
    """Run the command."""
    usable = True
    for path in options.input:
        try:
            usable = _describe(options, path) and usable
        except InputError as error:
            if len(options.input) == 1:
                raise
            # Of several files the others are described all the same.
            options.talk.remark(f"error: {error}")
            usable = False
    return DONE if usable else FAILED


def _describe(options: argparse.Namespace, path: str) -> bool:
    """Print what a file or folder holds; return whether it is usable."""
    from fastsort.particles.open import PICKS, TABLES

    suffix = Path(path).suffix.lower()
    if os.path.isdir(path):
        return _folder(options, path)
    if suffix in PICKS and suffix not in TABLES:
        return _picks(options, path)
    check_reading(options, path)
    try:
        return _particles(options, path)
    except InputError:
        if suffix in TABLES and _holds_picks(path):
            return _picks(options, path)
        raise


def _particles(options: argparse.Namespace, path: str) -> bool:
    from fastsort.particles.describe import describe

    description = describe(
        path,
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


def _picks(options: argparse.Namespace, path: str) -> bool:
    from fastsort.particles.describe_picks import describe_picks

    refuse_given(options, ["pixel_size", "passthrough"], "with picks")
    if Path(path).suffix.lower() != ".star":
        refuse_given(options, ["data_dir"], f"with {path}, which names no other files")
    description = describe_picks(path, data_dir=options.data_dir)
    print_picks_description(description)
    return description.usable


def _folder(options: argparse.Namespace, path: str) -> bool:
    from fastsort.report.describe import describe_run, is_run

    if not is_run(path):
        return _picks(options, path)
    refuse_given(options, ["pixel_size", "passthrough", "data_dir"], "with the folder of a run")
    description = describe_run(path)
    print_run(description)
    return description.usable
