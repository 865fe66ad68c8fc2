"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from fastsort._checks import InputError

if TYPE_CHECKING:
    from fastsort.particles.source import Particles

DONE, FAILED = 0, 1
METHODS = ("radial", "subspaces", "invariants")
STRICTNESS = ("probability", "keep_at_least", "discard", "fraction", "unanimous")
KINDS = "RELION .star file, cryoSPARC .cs file or MRC stack"
DATA_DIR_HELP = "where the files lie that INPUT names"
SEED_HELP = "of all that is random (default 0)"

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Runner: TypeAlias = Callable[[argparse.Namespace], "int | None"]


def add_command(
    commands: Commands, name: str, run: Runner, needs: str, text: str, example: str
) -> argparse.ArgumentParser:
    """Add a command.

    Parameters
    ----------
    commands : action
        As from ``add_subparsers``.
    name : str
    run : callable
        Called with the options; returns an exit code, or None when done.
    needs : str
        What the usage line says between the name and the options, such as ``"INPUT -o DIR "``.
    text : str
        A sentence that says what the command does.
    example : str
        A whole command line.

    Returns
    -------
    parser : argparse.ArgumentParser
        Of the command; to be given its options.
    """
    parser = commands.add_parser(
        name,
        help=text[0].lower() + text[1:-1],
        description=text,
        epilog=f"example: {example}",
        usage=f"fastsort {name} {needs}[options]",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=80),
    )
    parser.set_defaults(run=run)
    return parser


def add_input(
    parser: argparse.ArgumentParser, kinds: str, diameter: str, work: str = "", optional: bool = False
) -> None:
    """Add what every command has that measures particles."""
    add = parser.add_argument
    add("input", metavar="INPUT", nargs="?" if optional else None, help=kinds)
    add("-o", "--output", metavar="DIR", required=True, help="folder for the results")
    add("--diameter", type=float, metavar="A", help=f"particle's, in angstroms; {diameter}")
    add("--phase-flip", choices=("auto", "yes", "no"), default="auto", help="correct the CTF's signs")
    add_reading(parser)
    add("--working-size", type=int, metavar="PX", help="box after the Fourier crop")
    add("--jobs", type=int, default=-1, metavar="N", help="workers; default -1, all cores")
    add("--seed", type=int, default=0, metavar="N", help=SEED_HELP)
    add("--work", metavar="DIR", help="; ".join(filter(None, ["folder for intermediate files", work])))
    add("--overwrite", action="store_true", help="replace earlier results in DIR")
    add("--quiet", action="store_true", help="no progress bar, no summary")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add what says how a file of particles is opened."""
    add = parser.add_argument
    add("--pixel-size", type=float, metavar="A", help="in angstroms; otherwise that of the input")
    add("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    add("--passthrough", metavar="FILE", help="second .cs file; otherwise found beside the first")


def add_micrographs(parser: argparse.ArgumentParser) -> None:
    """Add what tells where particles are to be extracted from."""
    add = parser.add_argument
    add("--micrographs", metavar="FILES", help="pattern, e.g. 'mics/*.mrc', or STAR file")
    add("--coordinates", metavar="FILES", help="picks: pattern, e.g. 'picks/*.star'; .star, .box or .cs")
    add("--box", type=int, metavar="PX", help="side of what is cut from the micrographs")
    add("--bright", action="store_true", help="particles are bright in the micrographs")


def add_strictness(parser: argparse.ArgumentParser, with_probability: bool = False) -> None:
    """Add the ways to say how much is kept, of which one can be chosen."""
    add = parser.add_mutually_exclusive_group().add_argument
    if with_probability:
        add("--probability", type=float, metavar="P", help="reject what is junk with more than P, 0 to 1")
    add("--keep-at-least", type=float, metavar="X", help="share of the particles to keep, estimated")
    add("--discard", type=int, metavar="N", help="reject the N worst images")
    add("--fraction", type=float, metavar="X", help="keep this share of the images")
    add("--unanimous", action="store_true", help="reject only what all methods reject")


def refuse_given(values: Mapping[str, Any], where: str) -> None:
    """Refuse options that would have no effect, if they were given."""
    for name, value in values.items():
        if value is not None and value is not False:
            raise InputError(f"--{name.replace('_', '-')} does nothing with {where}: leave it out.")


def open_input(options: argparse.Namespace) -> Particles:
    """Open the particles that a command was given: a file, or micrographs and the picks in them."""
    from fastsort.particles.source import open_particles

    reading = {"pixel_size": options.pixel_size, "data_dir": options.data_dir}
    micrographs = {name: getattr(options, name, None) for name in ("micrographs", "coordinates", "box")}
    given = [f"--{name}" for name, value in micrographs.items() if value is not None]
    if not given:
        if getattr(options, "bright", False):
            raise InputError("--bright does nothing without --micrographs: leave it out.")
        if options.input is None:
            raise InputError("nothing to read: name a STAR file, a .cs file, a stack, or micrographs.")
        return open_particles(options.input, passthrough=options.passthrough, **reading)
    if options.input is not None:
        raise InputError(f"give either INPUT or micrographs; got {options.input} and {given[0]}.")
    if len(given) < len(micrographs):
        missing = next(f"--{name}" for name, value in micrographs.items() if value is None)
        raise InputError(f"{given[0]} needs {missing} too: micrographs, picks in them, and a box in pixels.")
    source = options.micrographs, options.coordinates
    return open_particles(source, box=options.box, invert=not options.bright, **reading)
