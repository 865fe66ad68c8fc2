"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fastsort._checks import InputError
from fastsort.cli.talk import add_talk

if TYPE_CHECKING:
    from fastsort._types import FilePath
    from fastsort.particles.source import Particles

# Exit codes. With the third the results are whole, but some micrographs were left out or a limit was passed.
DONE, FAILED, WRONG_USAGE, DONE_BUT, INTERRUPTED = 0, 1, 2, 3, 130
METHODS = ("radial", "subspaces", "invariants")
STRICTNESS = ("probability", "keep_at_least", "discard", "fraction", "unanimous")
KINDS = "RELION .star file, cryoSPARC .cs file or MRC stack"
DATA_DIR_HELP = "search here first for the files that INPUT names"
DENOISED_HELP = "also show denoised images in the report"
SEED_HELP = "random seed (default 0)"
NO_BAR_HELP = "show no progress and no summary"
# Files that are looked for on every worker before work begins; it will look for the others itself.
_N_LOOKED_FOR = 20

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
# A command's parser, or a group of options in it.
Options: TypeAlias = "argparse._ActionsContainer"
Runner: TypeAlias = Callable[[argparse.Namespace], "int | None"]


class _Help(argparse.HelpFormatter):
    """Help in which an option with several values has one word for them."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.option_strings and action.nargs == "+":
            return str(action.metavar)
        return super()._format_args(action, default_metavar)


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
        formatter_class=lambda prog: _Help(prog, max_help_position=28, width=80),
    )
    parser.set_defaults(run=run)
    return parser


def add_places(parser: argparse.ArgumentParser, kinds: str, optional: bool = False) -> None:
    """Add what is read and where results go."""
    add = parser.add_argument
    add("input", metavar="INPUT", nargs="?" if optional else None, help=kinds)
    add("-o", "--output", metavar="DIR", required=True, help="folder for the results")


def add_images(parser: Options, diameter: str, size: str) -> None:
    """Add what says what the images show and how they are read."""
    add = parser.add_argument
    sphere = f"in angstroms, of 95 %% of the mass (default: {diameter})"
    add("--diameter", type=float, metavar="A", help=sphere)
    flip = "flip phases for the CTF: yes, no or auto"
    add("--phase-flip", choices=("auto", "yes", "no"), default="auto", metavar="WHEN", help=flip)
    add_reading(parser)
    add("--working-size", type=int, metavar="PX", help=f"crop images to this size ({size})")


def add_run(parser: Options, cluster: bool = False, repeated: bool = False) -> None:
    """Add what says how the work is done, and what is said of it."""
    add = parser.add_argument
    add("--jobs", type=n_workers, default=-1, metavar="N", help="number of workers (default -1: all cores)")
    if cluster:
        add_cluster(parser)
    add("--seed", type=int, default=0, metavar="N", help=SEED_HELP)
    add("--work", metavar="DIR", help="folder for intermediate files (default .DIR.work)")
    add("--keep-work", action="store_true", help="keep the work folder after the run")
    if not repeated:
        add("--overwrite", action="store_true", help="replace earlier results in DIR")
    add_talk(parser, NO_BAR_HELP)


def add_cluster(parser: Options) -> None:
    """Add what gives the work to the workers of a cluster."""
    add = parser.add_argument
    add("--cluster", metavar="ADDRESS", help="address of a Dask scheduler, to use its workers")
    wait = "seconds to wait for the first of them (default 60)"
    add("--cluster-wait", type=float, metavar="S", help=wait)


def check_cluster(options: argparse.Namespace) -> None:
    """Refuse what has no effect with a cluster, or without one."""
    if options.cluster is None:
        refuse_given(options, ["cluster_wait"], "without --cluster")
    else:
        refuse_given(options, ["jobs"], "with --cluster, whose workers do the work")


def cluster_of(
    options: argparse.Namespace, paths: Sequence[str], work: FilePath | None
) -> AbstractContextManager[object]:
    """Give the work to a cluster, if that was asked for.

    Parameters
    ----------
    options : argparse.Namespace
    paths : sequence of str
        What will be read; the first of them are looked for on every worker before work begins.
    work : path or None
        The work folder.
    """
    if getattr(options, "cluster", None) is None:
        return nullcontext()
    from fastsort.images.cluster import use_cluster

    wait = {} if options.cluster_wait is None else {"wait": options.cluster_wait}
    return use_cluster(options.cluster, paths[:_N_LOOKED_FOR], work=work, say=options.talk.remark, **wait)


def n_workers(text: str) -> int:
    """Read a number of workers."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number, or -1 for all cores; got {text!r}")
    return number


def add_reading(parser: Options) -> None:
    """Add what says how a file of particles is opened."""
    add = parser.add_argument
    add("--pixel-size", type=float, metavar="A", help="pixel size in angstroms (default: that of INPUT)")
    add("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    add("--passthrough", metavar="FILE", help="passthrough .cs file (default: found beside INPUT)")


class _Names(argparse.Action):
    """Names of files, as a shell gives them for a pattern without quotes; a single one stays a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def add_micrographs(parser: Options, reads_pixels: bool = True) -> None:
    """Add what says from where particles are extracted; help is silent on what matters only to their pixels,
    where these are not read.
    """
    add = parser.add_argument
    # Where another name may follow, it would be taken for one of several files.
    several: dict[str, Any] = {"nargs": "+", "action": _Names} if reads_pixels else {}
    named = "micrographs, e.g. 'mics/*.mrc', or a STAR file"
    add("--micrographs", metavar="FILES", help=named, **several)
    picks = "picks: 'picks/*.star', .cs, .box, .cbox, .json or .txt"
    add("--coordinates", metavar="FILES", help=picks, **several)
    add("--box", type=int, metavar="PX", help="size of the boxes to extract from the micrographs")
    bright = "particles are bright in the micrographs" if reads_pixels else argparse.SUPPRESS
    add("--bright", action="store_true", help=bright)


def add_strictness(parser: Options, with_probability: bool = False) -> None:
    """Add the ways to say how much is kept, of which one can be chosen."""
    add = parser.add_mutually_exclusive_group().add_argument
    if with_probability:
        add("--probability", type=float, metavar="P", help="reject images with a junk probability above P")
    add(
        "--keep-at-least", type=float, metavar="X", help="keep an estimated share X of all particles (0 to 1)"
    )
    add("--discard", type=int, metavar="N", help="reject the N worst images")
    add("--fraction", type=float, metavar="X", help="keep the best images, a share X of all (0 to 1)")
    add("--unanimous", action="store_true", help="reject only what all methods reject")


def leave_out_defaults(parser: argparse.ArgumentParser) -> None:
    """Let what is parsed hold only what was given; `fill_in_defaults` brings the rest."""
    defaults = {}
    for action in parser._actions:
        if action.default is not argparse.SUPPRESS:
            defaults[action.dest] = action.default
            action.default = argparse.SUPPRESS
    parser.set_defaults(defaults=defaults)


def fill_in_defaults(options: argparse.Namespace) -> argparse.Namespace:
    """Return options with the defaults of those that were not given; ``given`` names the others."""
    given = vars(options).keys() & options.defaults.keys()
    return argparse.Namespace(**{**options.defaults, **vars(options), "given": given})


def refuse_given(options: argparse.Namespace, names: Collection[str], where: str) -> None:
    """Refuse those of some options that were given, because they have no effect.

    Parameters
    ----------
    options : argparse.Namespace
        As from `fill_in_defaults`.
    names : collection of str
        Of options without effect, such as ``data_dir``.
    where : str
        Completes "--data-dir does nothing", such as "with a stack".

    Raises
    ------
    InputError
        If any was given.
    """
    idle = [f"--{name.replace('_', '-')}" for name in options.defaults if name in options.given & {*names}]
    if len(idle) == 1:
        raise InputError(f"{idle[0]} does nothing {where}: leave it out.")
    if idle:
        raise InputError(f"{', '.join(idle[:-1])} and {idle[-1]} do nothing {where}: leave them out.")


def refuse_all_but(options: argparse.Namespace, useful: Collection[str], where: str) -> None:
    """Refuse whatever was given besides the options that have an effect, as `refuse_given` does."""
    refuse_given(options, options.defaults.keys() - {*useful}, where)


def check_reading(options: argparse.Namespace, path: str) -> None:
    """Refuse what would have no effect on how a file of particles is opened."""
    suffix = Path(path).suffix.lower()
    if suffix != ".cs":
        refuse_given(options, ["passthrough"], f"with {path}, which is no .cs file")
    if suffix not in (".star", ".cs"):
        refuse_given(options, ["data_dir"], f"with {path}, which names no other files")


def check_data_dir(options: argparse.Namespace, particles: Particles) -> None:
    """Refuse a folder for the files that the input of a finished run names, if it names none."""
    how = particles.opened_with
    if "micrographs" in how:
        _check_picks_name_files(options, how["micrographs"], how["coordinates"])
    elif particles.path:
        check_reading(options, particles.path)


def open_input(options: argparse.Namespace) -> Particles:
    """Open the particles that a command was given: a file, or micrographs and the picks in them."""
    from fastsort.particles.open import open_particles

    reading = {"pixel_size": options.pixel_size, "data_dir": options.data_dir}
    if options.given & {"micrographs", "coordinates", "box"}:
        _check_micrographs(options)
        source = options.micrographs, options.coordinates
        return open_particles(source, box=options.box, invert=not options.bright, **reading)
    refuse_given(options, ["bright"], "without --micrographs")
    if options.input is None:
        raise InputError("nothing to read: give a STAR file, a .cs file, a stack or --micrographs.")
    check_reading(options, options.input)
    return open_particles(options.input, passthrough=options.passthrough, **reading)


def _check_micrographs(options: argparse.Namespace) -> None:
    """Refuse an incomplete account of where picks are, and what has no effect on them."""
    needed = ("micrographs", "coordinates", "box")
    one = next(f"--{name}" for name in needed if name in options.given)
    if options.input is not None:
        raise InputError(f"give either INPUT or micrographs; got {options.input} and {one}.")
    for name in needed:
        if name not in options.given:
            raise InputError(
                f"{one} needs --{name} too: give micrographs, the picks in them, and a box in pixels."
            )
    refuse_given(options, ["passthrough"], "with --micrographs")
    _check_picks_name_files(options, options.micrographs, options.coordinates)


def _check_picks_name_files(options: argparse.Namespace, *sources: str | list[str]) -> None:
    paths = [path for source in sources for path in ([source] if isinstance(source, str) else source)]
    if not any(Path(path).suffix.lower() == ".star" for path in paths):
        refuse_given(options, ["data_dir"], "without a STAR file that names other files")


def work_folder_of(options: argparse.Namespace) -> Path:
    """Return where a run keeps what it has done: the folder that was given, or a hidden one beside DIR."""
    if options.work:
        return Path(options.work)
    results = Path(options.output).resolve()
    return results.with_name(f".{results.name}.work")


@contextmanager
def resumable(work: Path, keep: bool) -> Iterator[None]:
    """Keep the work folder until the results are whole, and say where a run can go on that has not ended.

    Parameters
    ----------
    work : Path
        From `work_folder_of`.
    keep : bool
        Whether it is kept afterwards, too.
    """
    from fastsort._disk import is_full
    from fastsort.images.work import stays_until_done

    try:
        with stays_until_done(work, keep):
            yield
    except KeyboardInterrupt:
        if work.is_dir():
            raise KeyboardInterrupt(f"interrupted: the same command goes on from {work}") from None
        raise
    except OSError as error:
        if is_full(error) and work.is_dir():
            where = f": {error.filename}" if error.filename else ""
            hint = f"when there is room, the same command goes on from {work}"
            raise OSError(error.errno, f"{error.strerror}{where}; {hint}") from error
        raise
