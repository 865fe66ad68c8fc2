"""The way into the command: choose what runs, and turn what went wrong into one line and an exit code."""

from __future__ import annotations

import argparse
import atexit
import gc
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial

from fastsort._checks import InputError
from fastsort._version import __version__
from fastsort.cli.apply import add_apply
from fastsort.cli.cryosparc import add_cryosparc
from fastsort.cli.demo import add_demo
from fastsort.cli.denoise import add_denoise
from fastsort.cli.guide import add_guide
from fastsort.cli.info import add_info
from fastsort.cli.map import add_map
from fastsort.cli.options import DONE, FAILED, INTERRUPTED, fill_in_defaults, leave_out_defaults
from fastsort.cli.pick import add_pick
from fastsort.cli.relion import IS_JOB, run_job
from fastsort.cli.report import add_report
from fastsort.cli.simulate import add_simulate
from fastsort.cli.sort import add_sort
from fastsort.cli.talk import talking
from fastsort.cli.usage import refuse_rest, refuse_unknown
from fastsort.cli.watch import add_watch

# In the order in which help lists the commands.
_ADD_COMMANDS = (
    add_pick,
    add_sort,
    add_watch,
    add_cryosparc,
    add_apply,
    add_report,
    add_info,
    add_map,
    add_denoise,
    add_simulate,
    add_demo,
    add_guide,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    code : int
        0 when done, 1 when it failed or ``info`` found something missing, 3 when it is done but ``pick``
        could not read some micrographs or a limit of ``--fail-if`` was passed, 130 when it was interrupted.
        Wrong usage leaves with code 2.
    """
    begin = time.perf_counter()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    code: int | None = DONE
    if threading.current_thread() is threading.main_thread():
        # A batch system stops a job with SIGTERM: clean up as after Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As on the error stream: names of files may hold bytes that are no text.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Imports and the compiler make hundreds of thousands of objects that stay. Python would look through all
    # of them again and again for what can be freed, and once more at the end: half a second.
    gc.set_threshold(300_000, 10, 10)
    atexit.register(gc.freeze)
    run = partial(_run, begin=begin)
    try:
        code = run_job(arguments, run) if IS_JOB in arguments else run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our summary has seen enough; the results are on the disk.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError, KeyboardInterrupt) as error:
        print("fastsort: error:", _told(error), file=sys.stderr)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED
    return code or DONE


def _run(arguments: Sequence[str], begin: float) -> int | None:
    parser = build_parser()
    refuse_unknown(parser, arguments)
    options, rest = parser.parse_known_args(arguments)
    if rest:
        refuse_rest(parser, arguments, rest)
    options = fill_in_defaults(options)
    with talking(options, arguments, begin, _told) as options.talk:
        code: int | None = options.run(options)
    return code


def _told(error: BaseException) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, KeyboardInterrupt):
        text = str(error) or "interrupted"
    elif isinstance(error, OSError):
        text = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    else:
        text = str(error) if isinstance(error, InputError) else repr(error)
    return " ".join(text.split())


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `fill_in_defaults` completes what it parses."""
    parser = argparse.ArgumentParser(
        prog="fastsort",
        description="Find cryo-EM particles in micrographs, and sort them into particles and junk.",
        epilog="example: fastsort sort particles.star --diameter 128 -o sorted/",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastsort {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in _ADD_COMMANDS:
        add_command(commands)
    for command in commands.choices.values():
        leave_out_defaults(command)
    return parser
