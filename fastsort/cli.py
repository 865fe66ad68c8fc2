"""The command: arguments -> one public function -> exit code.

Arguments are read before anything heavy is imported, so that help comes at once.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsort._checks import InputError
from fastsort._version import __version__

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fastsort.classify import MapResult
    from fastsort.particles.describe import Description
    from fastsort.particles.source import Particles
    from fastsort.simulate.particles import Simulation, Truth
    from fastsort.sort import SortResult

DONE, FAILED = 0, 1

_N_DEMO = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    code : int
        0 when done, 1 when it failed or ``info`` found something missing. Wrong usage leaves with code 2.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    code: int | None = DONE
    run = _run_relion_job if "--relion-job" in arguments else _run
    if threading.current_thread() is threading.main_thread():
        # A batch system stops a job with SIGTERM: clean up as after Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As on the error stream: names of files may hold bytes that are no text.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our summary has seen enough; the results are on the disk.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt as error:
        return _failed(str(error) or "interrupted")
    return code or DONE


def _run(arguments: list[str]) -> int | None:
    options = _parser().parse_args(arguments)
    code: int | None = options.run(options)
    return code


# What RELION gives an External job to work on, as our options; what it adds; what cannot be sorted.
_RELION_INPUTS = {"--in_mics": ["--micrographs"], "--in_coords": ["--coordinates"], "--in_parts": []}
_OF_NO_USE = ("--pipeline_control", "--pipeline-control")
_NO_PARTICLES = ("--in_movies", "--in_3dref", "--in_mask")
_IN_JOB = "sorted"


def _run_relion_job(arguments: list[str]) -> None:
    """Run as RELION calls an External job, and tell it how that ended."""
    from fastsort.report.relion_job import list_outputs, relion_job

    given: dict[str, str] = {}
    translated = []
    words = iter(arguments)
    for word in words:
        if word.startswith("--in_") or word in ("--o", *_OF_NO_USE):
            given[word] = next(words, "")
        else:
            translated.append("--jobs" if word == "--j" else word)
    folder = given.get("--o")
    if not folder:
        raise InputError("--relion-job needs the job's folder, which RELION gives with --o.")
    for name, ours in _RELION_INPUTS.items():
        translated += [*ours, given[name]] if name in given else []
    with relion_job(folder) as outputs:
        for name in _NO_PARTICLES:
            if name in given:
                raise InputError(
                    f"{name} is of no use for sorting: give particles, or micrographs and picks."
                )
        # A job that runs once more replaces what it made.
        again = [] if "--update" in translated else ["--overwrite"]
        _run([*translated, *again, "--output", os.path.join(folder, _IN_JOB)])
        outputs += list_outputs(folder, _IN_JOB, given.get("--in_coords"))


def _failed(message: str) -> int:
    print("fastsort: error:", " ".join(message.split()), file=sys.stderr)
    return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastsort",
        description="Sort picked cryo-EM particle images into particles and junk.",
        epilog="example: fastsort sort particles.star --diameter 128 -o sorted/",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastsort {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_sort(commands)
    _add_apply(commands)
    _add_report(commands)
    _add_info(commands)
    _add_map(commands)
    _add_simulate(commands)
    _add_demo(commands)
    return parser


def _add_command(
    commands: Any, name: str, run: Any, needs: str, text: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
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


def _add_sort(commands: Any) -> None:
    text = "Sort particle images and write what to keep."
    example = "fastsort sort particles.star --diameter 128 -o sorted/"
    parser = _add_command(commands, "sort", _sort, "INPUT -o DIR ", text, example)
    add = parser.add_argument
    add("--method", choices=_METHODS, help="how to sort; otherwise all three together")
    _add_cut(parser, "unanimous")
    add("--preset", choices=("default", "published"), default="default", help="rules of the method")
    add("--contrast", choices=("auto", "bright", "dark"), default="auto", help="of the particles")
    add("--n-peaks", type=int, metavar="N", help="radial: peaks looked at in each image")
    add("--n-subspaces", type=int, metavar="M", help="subspaces: how many; otherwise found")
    add("--n-components", type=int, metavar="K", help="subspaces: dimensions of each; otherwise found")
    add("--recentre", action="store_true", help="write where the particle lies as its origin")
    add("--keep-off-centre", action="store_true", help="keep particles off the centre; use with --recentre")
    add("--duplicate-distance", type=float, metavar="A", help="closer picks are one particle; 0: never")
    add("--write-stack", action="store_true", help="copy the kept images to kept.mrcs")
    add("--score-field", action="store_true", help="add the score to .cs files")
    add("--keep-work", action="store_true", help="leave the work folder when all is done")
    add("--update", action="store_true", help="INPUT has grown since the run in DIR: measure what is new")
    add("--judge-again", action="store_true", help="with --update: old verdicts may change too")
    add("--cluster", metavar="ADDRESS", help="of a Dask scheduler, whose workers do the work")
    kinds = f"{_KINDS}; not with --micrographs"
    _add_input(parser, kinds, "otherwise estimated", "otherwise .DIR.work", optional=True)
    _add_micrographs(add)
    add("--relion-job", action="store_true", help="run as an External job of RELION")


_KINDS = "RELION .star file, cryoSPARC .cs file or MRC stack"


_METHODS = ("radial", "subspaces", "invariants")


def _add_cut(parser: argparse.ArgumentParser, *more: str) -> None:
    """Add the ways to say how much is kept, of which one can be chosen."""
    add = parser.add_mutually_exclusive_group().add_argument
    if "probability" in more:
        add("--probability", type=float, metavar="P", help="reject what is junk with more than P, 0 to 1")
    add("--keep-at-least", type=float, metavar="X", help="share of the particles to keep, estimated")
    add("--discard", type=int, metavar="N", help="reject the N worst images")
    add("--fraction", type=float, metavar="X", help="keep this share of the images")
    add("--unanimous", action="store_true", help="reject only what all methods reject")


def _add_micrographs(add: Any) -> None:
    """Add what tells where particles are to be cut from."""
    add("--micrographs", metavar="FILES", help="pattern, e.g. 'mics/*.mrc', or STAR file")
    add("--coordinates", metavar="FILES", help="picks: pattern, e.g. 'picks/*.star'; .star, .box or .cs")
    add("--box", type=int, metavar="PX", help="side of what is cut from the micrographs")
    add("--bright", action="store_true", help="particles are bright in the micrographs")


def _add_apply(commands: Any) -> None:
    text = "Write what a list keeps, or what a finished run keeps with another cut."
    example = "fastsort apply sorted/ -o strict/ --fraction 0.5"
    needs = "LIST|SORTED [INPUT] -o DIR "
    parser = _add_command(commands, "apply", _apply, needs, text, example)
    add = parser.add_argument
    add("chosen", metavar="LIST|SORTED", help="file of kept indices from 0, or folder of a finished run")
    add("input", metavar="INPUT", nargs="?", help="what the list is of; where a run's input lies now")
    add("-o", "--output", metavar="DIR", required=True, help="folder for the results")
    _add_cut(parser, "probability")
    _add_reading(add)
    _add_micrographs(add)
    add("--overwrite", action="store_true", help="replace earlier results in DIR")
    add("--quiet", action="store_true", help="no summary")


def _add_report(commands: Any) -> None:
    text = "Draw the picture and the page of a finished run again."
    parser = _add_command(commands, "report", _report, "SORTED ", text, "fastsort report sorted/")
    add = parser.add_argument
    add("sorted", metavar="SORTED", help="folder of a finished run")
    add("-o", "--output", metavar="FILE", help="new .html or .png; otherwise both, in SORTED")
    add("--input", metavar="INPUT", help="where what was sorted lies now")
    add("--data-dir", metavar="DIR", help=_DATA_DIR_HELP)
    add("--quiet", action="store_true", help="say nothing")


def _add_info(commands: Any) -> None:
    text = "Say what a file of particles holds, and what is missing."
    parser = _add_command(commands, "info", _info, "INPUT ", text, "fastsort info particles.star")
    parser.add_argument("input", metavar="INPUT", help=_KINDS)
    _add_reading(parser.add_argument)


_DATA_DIR_HELP = "where the files lie that INPUT names"


def _add_reading(add: Any) -> None:
    add("--pixel-size", type=float, metavar="A", help="in angstroms; otherwise that of the input")
    add("--data-dir", metavar="DIR", help=_DATA_DIR_HELP)
    add("--passthrough", metavar="FILE", help="second .cs file; otherwise found beside the first")


def _add_map(commands: Any) -> None:
    text = "Divide particle images into classes, average and rank them."
    example = "fastsort map particles.star --diameter 128 -o map/"
    parser = _add_command(commands, "map", _map, "INPUT -o DIR ", text, example)
    add = parser.add_argument
    add("--classes", type=int, metavar="N", help="how many; otherwise found")
    add("--groups", type=int, default=1, metavar="N", help="kinds of particle (default 1)")
    add("--embedding", choices=("auto", "umap", "pca"), default="auto", help="what makes the map")
    add("--color", choices=_COLORS, default="class", help="of the points on the map (default class)")
    choice = parser.add_mutually_exclusive_group()
    kept = "of the finished map INPUT, e.g. 1,4,5: write its images, compute nothing"
    choice.add_argument("--keep-classes", type=_numbers, metavar="LIST", help=f"only these {kept}")
    choice.add_argument("--discard-classes", type=_numbers, metavar="LIST", help=f"all but these {kept}")
    _add_input(parser, f"{_KINDS}, or a finished map", "otherwise 0.8 of the box")


_COLORS = ("class", "score", "displaced", "likeness")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between them; got {text!r}") from None


def _add_input(
    parser: argparse.ArgumentParser, kinds: str, diameter: str, work: str = "", optional: bool = False
) -> None:
    """Add what every command has that reads particles."""
    add = parser.add_argument
    add("input", metavar="INPUT", nargs="?" if optional else None, help=kinds)
    add("-o", "--output", metavar="DIR", required=True, help="folder for the results")
    add("--diameter", type=float, metavar="A", help=f"particle's, in angstroms; {diameter}")
    add("--phase-flip", choices=("auto", "yes", "no"), default="auto", help="correct the CTF's signs")
    _add_reading(add)
    add("--working-size", type=int, metavar="PX", help="box after the Fourier crop")
    add("--jobs", type=int, default=-1, metavar="N", help="workers; default -1, all cores")
    add("--seed", type=int, default=0, metavar="N", help="of all that is random (default 0)")
    add("--work", metavar="DIR", help="; ".join(filter(None, ["folder for intermediate files", work])))
    add("--overwrite", action="store_true", help="replace earlier results in DIR")
    add("--quiet", action="store_true", help="no progress bar, no summary")


def _add_simulate(commands: Any) -> None:
    text = "Simulate a labelled project: stacks, STAR file, truth."
    example = "fastsort simulate -o sim/ --good 1000 --junk 1000 --snr 0.02"
    parser = _add_command(commands, "simulate", _simulate, "-o DIR ", text, example)
    add = parser.add_argument
    add("-o", "--output", metavar="DIR", required=True, help="folder for the project")
    add("--good", type=int, default=1000, metavar="N", help="particles (default 1000)")
    add("--junk", type=int, default=1000, metavar="N", help="images of junk (default 1000)")
    add("--snr", type=float, default=0.02, metavar="X", help="signal-to-noise ratio (default 0.02)")
    add("--box", type=int, default=64, metavar="PX", help="side of an image (default 64)")
    add("--volume", default="globular", metavar="SHAPE|MRC", help=_VOLUME_HELP)
    add("--recipe", choices=("paper", "all", "ppca"), default="paper", help="which junk and noise")
    add("--ctf", action="store_true", help="contrast transfer function, not flipped")
    add("--pixel-size", type=float, metavar="A", help="in angstroms; otherwise that of the volume")
    add("--noise", choices=("white", "radial", "decaying"), help="otherwise that of the recipe")
    add("--seed", type=int, default=0, metavar="N", help="of all that is random (default 0)")
    add("--overwrite", action="store_true", help="replace an earlier project in DIR")
    add("--quiet", action="store_true", help="no progress bar, no summary")


_VOLUME_HELP = "globular, elongated, shell, two-lobed, or an .mrc file (default globular)"


def _add_demo(commands: Any) -> None:
    text = "Simulate labelled images, sort them, and say how well that went."
    parser = _add_command(commands, "demo", _demo, "", text, "fastsort demo -o try/ --seed 7")
    add = parser.add_argument
    add("-o", "--output", metavar="DIR", default="fastsort-demo", help="default fastsort-demo")
    add("--seed", type=int, default=0, metavar="N", help="of all that is random (default 0)")
    add("--overwrite", action="store_true", help="replace an earlier demo in DIR")
    add("--quiet", action="store_true", help="no progress bar, no summary of the sorting")


def _sort(options: argparse.Namespace) -> None:
    from fastsort._checks import check_output_folder

    folder = check_output_folder(options.output, options.overwrite or options.update)
    _refuse_idle(options)
    if options.update and not (folder / "results.npz").is_file():
        raise InputError(f"{folder} holds no finished run: leave --update out, or give the folder of one.")
    particles = _open(options)
    _check_tables(particles, options)
    distance = options.duplicate_distance
    target = folder.resolve()
    work = Path(options.work) if options.work else target.with_name(f".{target.name}.work")
    try:
        _sort_into(
            folder,
            particles,
            options,
            diameter=options.diameter,
            method=options.method,
            preset=options.preset,
            phase_flip=options.phase_flip,
            contrast=options.contrast,
            working_size=options.working_size,
            n_peaks=options.n_peaks,
            n_subspaces=options.n_subspaces,
            n_components=options.n_components,
            keep_at_least=options.keep_at_least,
            discard=options.discard,
            fraction=options.fraction,
            unanimous=options.unanimous,
            keep_off_centre=options.keep_off_centre,
            **({} if distance is None else {"duplicate_distance": distance}),
            work=work,
            keep_work=options.keep_work,
            n_jobs=options.jobs,
            seed=options.seed,
        )
    except KeyboardInterrupt:
        if work.is_dir():
            raise KeyboardInterrupt(f"interrupted: the same command goes on from {work}") from None
        raise


def _refuse_idle(options: argparse.Namespace) -> None:
    """Refuse options that would have no effect, and combinations that mean nothing."""
    if options.judge_again and not options.update:
        raise InputError("--judge-again does nothing without --update: leave it out.")
    if options.update and options.overwrite:
        raise InputError(
            "--update goes on from what is in DIR, and --overwrite replaces it: give one of them."
        )
    if options.score_field and not str(options.input).lower().endswith(".cs"):
        raise InputError("--score-field does nothing without a .cs file: leave it out.")
    if options.recentre and options.method in ("subspaces", "invariants"):
        raise InputError(
            f"--recentre does nothing with method {options.method!r}, which finds no centres: leave it out."
        )


def _check_tables(particles: Particles, options: argparse.Namespace) -> None:
    """Find now what would else fail when all the work is done."""
    import numpy as np

    from fastsort.particles.places import micrograph_places
    from fastsort.report.recentre import origin_columns

    micrograph_places(particles)
    if options.recentre:
        n = len(particles)
        origin_columns(particles, np.zeros((n, 2)), np.zeros(n, bool))


def _open(options: argparse.Namespace) -> Particles:
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


def _sort_into(
    folder: str | os.PathLike[str], particles: Particles, options: argparse.Namespace, **parameters: Any
) -> SortResult:
    """Sort, write every result, and print the summary."""
    from fastsort.report.again import write_results
    from fastsort.report.folder import results_folder
    from fastsort.report.progress import progress_bar
    from fastsort.report.relion_job import stop_when_aborted

    # An update is made from what the folder holds.
    overwrite = options.overwrite or getattr(options, "update", False)
    with results_folder(folder, overwrite=overwrite, inputs=particles.files) as partial:
        with (
            progress_bar("sorting", options.quiet) as bar,
            _workers(particles, options, parameters.get("work")),
        ):
            progress = stop_when_aborted(Path(folder).parent, bar) if _is_relion_job(options) else bar
            result = _sort_or_update(folder, particles, options, progress=progress, **parameters)
        summary = write_results(
            partial,
            particles,
            result,
            write_stack=getattr(options, "write_stack", False),
            recentre=getattr(options, "recentre", False),
            score_field=getattr(options, "score_field", False),
        )
        _draw(partial, particles, result)
    if not options.quiet:
        _print_summary(summary, folder)
    return result


def _is_relion_job(options: argparse.Namespace) -> bool:
    return getattr(options, "relion_job", False)


def _workers(
    particles: Particles, options: argparse.Namespace, work: str | os.PathLike[str] | None
) -> AbstractContextManager[object]:
    """Give the work to a cluster, if that was asked for."""
    if getattr(options, "cluster", None) is None:
        return nullcontext()
    from fastsort.images.cluster import use_cluster

    return use_cluster(options.cluster, particles.store.files()[:_N_LOOKED_FOR], work=work)


# Files that are looked for on every worker before work begins; it will look for the others itself.
_N_LOOKED_FOR = 20


def _sort_or_update(
    folder: str | os.PathLike[str], particles: Particles, options: argparse.Namespace, **parameters: Any
) -> SortResult:
    from inspect import signature

    from fastsort.sort import sort_particles

    if not getattr(options, "update", False):
        return sort_particles(particles, **parameters)
    from fastsort.report.again import read_earlier
    from fastsort.update import update_particles

    # What was not asked for now is as it was in the run.
    usual = signature(sort_particles).parameters
    asked = {name: value for name, value in parameters.items() if value != usual[name].default}
    earlier, names = read_earlier(folder)
    return update_particles(particles, earlier, names, judge_again=options.judge_again, **asked)


def _draw(folder: Path, particles: Particles, result: SortResult) -> None:
    from fastsort.report.again import draw_results

    with _drawing("report.png"):
        draw_results(folder, particles, result)


@contextmanager
def _drawing(names: str) -> Iterator[None]:
    """Go on without pictures where matplotlib is missing, and say so."""
    try:
        yield
    except ImportError:
        hint = f"fastsort: no {names} without matplotlib: pip install 'fastsort[report]'"
        print(hint, file=sys.stderr)


def _apply(options: argparse.Namespace) -> None:
    from fastsort._checks import check_output_folder

    check_output_folder(options.output, options.overwrite)
    if os.path.isdir(options.chosen):
        _cut_again(options)
    else:
        _apply_list(options)


def _apply_list(options: argparse.Namespace) -> None:
    from fastsort._checks import check_readable
    from fastsort.particles.source import open_table
    from fastsort.report.again import read_list, write_choice
    from fastsort.report.folder import results_folder

    if options.input is None and options.micrographs is None:
        raise InputError(f"{options.chosen} is a list: say of which STAR file or stack.")
    idle = _cut_of(options)
    if options.micrographs is None:
        # The images themselves are not looked for.
        idle |= {name: getattr(options, name) for name in ("pixel_size", "data_dir", "box", "coordinates")}
    _refuse_given(idle, "a list")
    # Before the input, whose stacks may be many.
    check_readable(options.chosen).close()
    if options.micrographs is None:
        source, table = options.input, open_table(options.input, options.passthrough)
        n_images = len(table)
    else:
        particles = _open(options)
        source, table, n_images = options.coordinates, particles.table, len(particles)
    keep = read_list(options.chosen, n_images)
    inputs = [options.chosen, *table.files]
    with results_folder(options.output, overwrite=options.overwrite, inputs=inputs) as partial:
        summary = write_choice(partial, table, keep, options.chosen, source)
    if not options.quiet:
        print(f"{summary['kept']:,} kept, {summary['rejected']:,} rejected; results in {options.output}")


def _refuse_given(options: dict[str, Any], where: str) -> None:
    for name, value in options.items():
        if value is not None and value is not False:
            raise InputError(f"--{name.replace('_', '-')} does nothing with {where}: leave it out.")


def _cut_of(options: argparse.Namespace) -> dict[str, Any]:
    names = ("probability", "keep_at_least", "discard", "fraction", "unanimous")
    return {name: getattr(options, name) for name in names}


def _cut_again(options: argparse.Namespace) -> None:
    from fastsort.report.again import open_finished, write_results
    from fastsort.report.folder import results_folder
    from fastsort.sort import cut_again

    names = ("pixel_size", "passthrough", "micrographs", "coordinates", "box", "bright")
    _refuse_given({name: getattr(options, name) for name in names}, "a finished run, which has its own")
    finished = open_finished(options.chosen, options.input, data_dir=options.data_dir)
    particles = finished.particles
    result = cut_again(finished.result, **_cut_of(options))
    with results_folder(options.output, overwrite=options.overwrite, inputs=particles.files) as partial:
        summary = write_results(
            partial,
            particles,
            result,
            recentre=bool(finished.summary.get("recentred")),
            learned=finished.summary.get("subspaces"),
            score_field=bool(finished.summary.get("score_field")),
        )
        _draw(partial, particles, result)
    if not options.quiet:
        _print_verdicts(summary)
        print(f"results in {options.output}")


def _report(options: argparse.Namespace) -> None:
    from fastsort.report.again import open_finished, redraw

    finished = open_finished(options.sorted, options.input, data_dir=options.data_dir)
    with _drawing("report.png"):
        written = redraw(finished, options.output)
        if not options.quiet:
            print(*written, sep="\n")


def _info(options: argparse.Namespace) -> int:
    from fastsort.particles.describe import describe

    description = describe(
        options.input,
        pixel_size=options.pixel_size,
        data_dir=options.data_dir,
        passthrough=options.passthrough,
    )
    _print_description(description)
    return DONE if description.usable else FAILED


_N_NAMED = 10


def _print_description(found: Description) -> None:
    print(f"{found.path}: {found.kind}")
    repeated = f", {_count(found.n_repeated, 'line')} of them repeated" if found.n_repeated else ""
    _print_fact("images", f"{found.n_images:,}{repeated}")
    boxes = [f"{nx} px" if nx == ny else f"{nx} x {ny} px" for nx, ny in found.boxes]
    if len(boxes) > 1:
        boxes = [f"{box}: {count:,}" for box, count in zip(boxes, found.boxes.values(), strict=True)]
    _print_fact("box", "; ".join(boxes) or "unknown")
    _print_fact("pixel size", _quantity(found.pixel_size, "A") or "unknown, or not one")
    for group in found.optics:
        parts = [f"{group.name}: {_count(group.n_images, 'image')}"] if group.name else []
        parts += [
            _quantity(group.pixel_size, "A/px"),
            _quantity(group.box, "px"),
            _quantity(group.voltage, "kV"),
            _quantity(group.spherical_aberration, "mm", "Cs "),
            _quantity(group.amplitude_contrast, "", "amplitude contrast "),
        ]
        known = ", ".join(filter(None, parts))
        if known:
            _print_fact("optics group" if group.name else "optics", known)
    if found.optics:
        _print_fact("CTF", _describe_ctf(found))
        micrographs = "not named" if found.n_micrographs is None else f"{found.n_micrographs:,}"
        _print_fact("micrographs", micrographs)
    kinds = [name if len(found.pixels) == 1 else f"{name} ({n:,})" for name, n in found.pixels.items()]
    size = f"{found.stack_bytes / 1e6:,.1f} MB" if found.stack_bytes else ""
    _print_fact("stacks", "; ".join(filter(None, [f"{found.n_stacks:,}", size, *kinds])))
    look = found.look
    if look.n_images:
        guess = "unclear" if look.contrast == "unclear" else f"{look.contrast} particles"
        _print_fact("contrast", f"{guess} ({_count(look.n_images, 'image')} looked at)")
        levels = f"mean {look.background_mean:.3g}, deviation {look.background_std:.3g}"
        _print_fact("background", f"{levels}: {'' if look.normalized else 'not '}normalised")
    if look.n_bad or look.n_flat:
        bad = f"{look.n_bad:,} with NaN or infinity, {look.n_flat:,} flat"
        _print_fact("bad images", f"{bad}, of {look.n_images:,} looked at")
    if found.missing:
        lost = sum(found.missing.values())
        _print_fact("missing", f"{_count(len(found.missing), 'stack')} with {_count(lost, 'image')}")
        for name, count in list(found.missing.items())[:_N_NAMED]:
            print(f"    {name}: {_count(count, 'image')}")
        _print_rest(len(found.missing))
        print("  give the folder to which these names are relative with --data-dir")
    for problem in found.problems[:_N_NAMED]:
        _print_fact("problem", problem)
    _print_rest(len(found.problems))


def _print_rest(number: int) -> None:
    if number > _N_NAMED:
        print(f"    and {number - _N_NAMED:,} more")


def _print_fact(name: str, text: str) -> None:
    _print_wrapped(text, f"  {name:<14}", 16)


def _print_wrapped(text: str, first: str, indent: int) -> None:
    import textwrap

    lines = textwrap.wrap(
        text,
        _LINE,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print("\n".join(lines) or first.rstrip())


_LINE = 99


def _quantity(value: float, unit: str, before: str = "") -> str:
    return f"{before}{value:.5g} {unit}".strip() if value == value else ""


def _describe_ctf(found: Description) -> str:
    low, high = found.defocus
    if low != low:
        defocus = "no defocus"
    else:
        defocus = f"defocus {low:,.0f} to {high:,.0f} A"
        if not found.has_ctf:
            defocus += ", but not all that a CTF needs"
    return f"{defocus}; {found.corrected or 'not said to be phase-flipped'}"


def _map(options: argparse.Namespace) -> None:
    from fastsort._checks import check_output_folder

    check_output_folder(options.output, options.overwrite)
    if options.keep_classes is None and options.discard_classes is None:
        _make_map(options)
    else:
        _select_classes(options)


def _make_map(options: argparse.Namespace) -> None:
    from fastsort.classify import classify_particles
    from fastsort.report.atlas import draw_classes, draw_map
    from fastsort.report.classes import summarize_map, write_map
    from fastsort.report.folder import results_folder
    from fastsort.report.progress import progress_bar

    particles = _open(options)
    with results_folder(options.output, overwrite=options.overwrite, inputs=particles.files) as partial:
        with progress_bar("mapping", options.quiet) as progress:
            result = classify_particles(
                particles,
                diameter=options.diameter,
                n_classes=options.classes,
                n_groups=options.groups,
                embedding=options.embedding,
                phase_flip=options.phase_flip,
                working_size=options.working_size,
                work=options.work,
                n_jobs=options.jobs,
                seed=options.seed,
                progress=progress,
            )
        write_map(partial, particles, result)
        with _drawing("map.png and classes.png"):
            draw_classes(partial / "classes.png", result.classes, result.pixel_size)
            values, label = _point_values(options.color, result)
            draw_map(
                partial / "map.png",
                result.classes,
                result.pixel_size,
                options.color,
                values=values,
                label=label,
            )
    if not options.quiet:
        _print_map(summarize_map(particles, result), result, options.output)


def _point_values(color: str, result: MapResult) -> tuple[npt.NDArray[np.floating[Any]] | None, str | None]:
    """Return numbers by which points are coloured, if they are no class's, and what they are."""
    if color == "displaced":
        return result.classes.displaced, "probability of no particle in the middle"
    if color == "likeness":
        return result.classes.averages.score, "correlation with the class average"
    return None, None


def _print_map(summary: dict[str, Any], result: MapResult, folder: str) -> None:
    n, averages = summary["images"], result.classes.averages
    junk = summary["junk_classes"]
    named = f": {', '.join(map(str, junk))}" if junk else ""
    print(
        f"{n:,} images in {_count(summary['classes'], 'class', 'classes')}, {len(junk)} of them junk{named}"
    )
    unit = "A" if result.pixel_size == result.pixel_size else "px"
    for k, (size, resolution, score) in enumerate(
        zip(averages.size, averages.resolution, result.classes.ranking.score, strict=True), 1
    ):
        resolved = f"{resolution:6.1f} {unit}" if resolution < 1e6 else "  unresolved"
        print(f"  {k:>3}{size:>10,}  {100 * size / n:5.1f} %  {resolved:<12}  score {score:.2f}")
    if summary["without_class"]:
        print(f"{_count(summary['without_class'], 'image')} in no class: flat, or with bad pixels")
    print(f"{summary['kept']:,} kept, {summary['rejected']:,} rejected", end="; ")
    speed = summary["images_per_second"]
    print(f"{n / speed if speed else 0:.1f} s; results in {folder}")


def _select_classes(options: argparse.Namespace) -> None:
    from fastsort.report.classes import select_classes, write_selection
    from fastsort.report.folder import results_folder

    selection = select_classes(options.input, keep=options.keep_classes, discard=options.discard_classes)
    inputs = [os.path.join(options.input, "summary.json")]
    with results_folder(options.output, overwrite=options.overwrite, inputs=inputs) as partial:
        write_selection(partial, selection)
    if not options.quiet:
        kept = int(selection.keep.sum())
        print(f"{kept:,} kept, {len(selection.keep) - kept:,} rejected; results in {options.output}")


def _print_summary(summary: dict[str, Any], folder: str | os.PathLike[str]) -> None:
    n = summary["images"]
    _print_verdicts(summary)
    update = summary["parameters"].get("update")
    if update:
        n = update["new_images"]
        print(f"{_count(n, 'new image')}; models {update['models']}")
    origin = "estimated" if summary["diameter_estimated"] else "given"
    known = summary["diameter"] == summary["diameter"]
    angstroms = f"{summary['diameter']:.1f} A, " if known else ""
    flips = "flipped" if summary["phase_flipped"] else "not flipped"
    measured = summary["diameter_px"] == summary["diameter_px"]
    diameter = f"{angstroms}{summary['diameter_px']:.1f} px ({origin})" if measured else "unknown"
    print(f"diameter {diameter}", end="; ")
    contrast = "contrast unknown" if summary["contrast"] == "unknown" else f"{summary['contrast']} particles"
    print(f"{contrast}; phases {flips}")
    if summary["subspaces"] is not None:
        print(_describe_subspaces(**summary["subspaces"]))
    seconds = summary["seconds"]["total"]
    print(f"{seconds:.1f} s, {n / seconds if seconds else 0:,.0f} images/s; results in {folder}")


def _print_verdicts(summary: dict[str, Any]) -> None:
    """Print how many images there are of each kind, how sure that is, and what to look at."""
    n, rescued = summary["images"], summary["rescued"]
    set_aside = f", {rescued:,} set aside" if rescued else ""
    print(f"{n:,} images: {summary['kept']:,} kept, {summary['rejected']:,} rejected{set_aside}")
    for name, count in summary["reasons"].items():
        if count:
            print(f"  {name:<14}{count:>10,}  {100 * count / n:5.1f} %")
    if summary["errors"] is not None:
        _print_errors(summary["errors"])
    if rescued:
        where = summary["files"]["rescued"]
        print(f"{_count(rescued, 'image')} of rare views set aside: look at them in {where}")
    drop = (summary["micrographs"] or {}).get("drop")
    if drop:
        names = ", ".join(os.path.basename(name) for name in drop[:_N_MICROGRAPHS])
        more = ", ..." if len(drop) > _N_MICROGRAPHS else ""
        number = f"{len(drop):,} of {summary['micrographs']['number']:,}"
        _print_wrapped(f"micrographs better left out: {number}: {names}{more}; see micrographs.csv", "", 2)


_N_MICROGRAPHS = 5


def _print_errors(errors: dict[str, Any]) -> None:
    remark = errors["remark"].rstrip(".")
    if not errors["known"]:
        _print_wrapped(": ".join(filter(None, ["errors cannot be estimated", remark])), "", 2)
        return
    kept, rejected, pure = (
        _percent(**errors[name]) for name in ("true_positive_rate", "true_negative_rate", "precision")
    )
    print(f"estimated: {kept[0]} of the particles kept ({kept[1]}),")
    print(f"  {rejected[0]} of the junk rejected ({rejected[1]}), precision {pure[0]}")
    if remark:
        _print_wrapped(remark, "  ", 2)


def _percent(value: float, low: float, high: float) -> tuple[str, str]:
    """Return a share and its interval in words."""
    if value != value:
        return "unknown", "unknown"
    return f"{100 * value:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}"


def _describe_subspaces(number: int, components: int, iterations: int, images: int, **_: object) -> str:
    if not number:
        return "no subspaces: fewer than two images could be learned from"
    learned = f"learned in {_count(iterations, 'iteration')} from {_count(images, 'image')}"
    return f"{_count(number, 'subspace')} of {_count(components, 'dimension')}, {learned}"


def _count(number: int, noun: str, several: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"


def _simulate(options: argparse.Namespace) -> None:
    from fastsort._checks import check_output_folder
    from fastsort.simulate import plan_particles

    check_output_folder(options.output, options.overwrite)
    simulation = plan_particles(
        options.good,
        options.junk,
        snr=options.snr,
        box=options.box,
        volume=options.volume,
        junk=options.recipe,
        ctf=options.ctf,
        pixel_size=options.pixel_size,
        noise=options.noise,
        seed=options.seed,
    )
    star = _write_simulation(options.output, simulation, options)
    if not options.quiet:
        print(f"{options.good:,} particles and {options.junk:,} images of junk: {star}")


def _write_simulation(
    folder: str | os.PathLike[str], simulation: Simulation, options: argparse.Namespace
) -> Path:
    from fastsort.report.progress import progress_bar
    from fastsort.simulate import particle_blocks, write_project

    n = len(simulation.truth.label)
    with progress_bar("simulating", options.quiet) as progress:

        def blocks() -> Iterator[npt.NDArray[np.float32]]:
            done = 0
            for block in particle_blocks(simulation):
                yield block
                done += len(block)
                if progress:
                    progress(done, n)

        return write_project(folder, blocks(), simulation.truth, overwrite=options.overwrite)


def _demo(options: argparse.Namespace) -> None:
    from fastsort._checks import check_output_folder
    from fastsort.particles.source import open_particles
    from fastsort.simulate import plan_particles

    folder = check_output_folder(options.output, options.overwrite)
    simulation = plan_particles(_N_DEMO, _N_DEMO, snr=0.05, junk="all", seed=options.seed)
    star = _write_simulation(folder / "simulated", simulation, options)
    result = _sort_into(folder / "sorted", open_particles(star), options, seed=options.seed, n_jobs=-1)
    _print_accuracy(simulation.truth, result)
    print(f"page: {folder / 'sorted' / 'report.html'}")


def _print_accuracy(truth: Truth, result: SortResult) -> None:
    from fastsort.report.accuracy import measure_accuracy

    whole = measure_accuracy(truth.label, result.keep, result.score)
    print("compared with the truth:")
    print(f"  {'particles kept':<22}{100 * whole.true_positive_rate:6.1f} %")
    print(
        f"  {'junk rejected':<22}{100 * whole.true_negative_rate:6.1f} %   AUC {whole.area_under_curve:.3f}"
    )
    for kind in sorted(set(truth.kind[~truth.label].tolist())):
        chosen = truth.label | (truth.kind == kind)
        part = measure_accuracy(truth.label[chosen], result.keep[chosen], result.score[chosen])
        print(f"    {kind:<20}{100 * part.true_negative_rate:6.1f} %   AUC {part.area_under_curve:.3f}")
