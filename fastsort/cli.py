"""The command: arguments -> one public function -> exit code.

Arguments are read before anything heavy is imported, so that help comes at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsort import InputError, __version__

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fastsort.classify import MapResult
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
        0 when done, 1 when it failed. Wrong usage leaves with code 2.
    """
    options = _parser().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        # A batch system stops a job with SIGTERM: clean up as after Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our summary has seen enough; the results are on the disk.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        return _failed("interrupted")
    return DONE


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
    add("--method", choices=("radial", "subspaces"), help="how to sort (default radial)")
    add("--preset", choices=("default", "published"), default="default", help="rules of the method")
    add("--contrast", choices=("auto", "bright", "dark"), default="auto", help="of the particles")
    add("--n-peaks", type=int, metavar="N", help="radial: peaks looked at in each image")
    add("--n-subspaces", type=int, metavar="M", help="subspaces: how many; otherwise found")
    add("--n-components", type=int, metavar="K", help="subspaces: dimensions of each; otherwise found")
    add("--write-stack", action="store_true", help="copy the kept images to kept.mrcs")
    _add_input(parser, "RELION .star file or MRC stack", "otherwise estimated")


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
    _add_input(parser, "RELION .star file or MRC stack, or a finished map", "otherwise 0.8 of the box")


_COLORS = ("class", "score", "displaced", "likeness")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between them; got {text!r}") from None


def _add_input(parser: argparse.ArgumentParser, kinds: str, diameter: str) -> None:
    """Add what every command has that reads particles."""
    add = parser.add_argument
    add("input", metavar="INPUT", help=kinds)
    add("-o", "--output", metavar="DIR", required=True, help="folder for the results")
    add("--diameter", type=float, metavar="A", help=f"particle's, in angstroms; {diameter}")
    add("--phase-flip", choices=("auto", "yes", "no"), default="auto", help="correct the CTF's signs")
    add("--pixel-size", type=float, metavar="A", help="in angstroms; otherwise that of the input")
    add("--data-dir", metavar="DIR", help="where the stacks lie that a STAR file names")
    add("--working-size", type=int, metavar="PX", help="box after the Fourier crop")
    add("--jobs", type=int, default=-1, metavar="N", help="workers; default -1, all cores")
    add("--seed", type=int, default=0, metavar="N", help="of all that is random (default 0)")
    add("--work", metavar="DIR", help="folder for intermediate files")
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

    check_output_folder(options.output, options.overwrite)
    particles = _open(options)
    _sort_into(
        options.output,
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
        work=options.work,
        n_jobs=options.jobs,
        seed=options.seed,
    )


def _open(options: argparse.Namespace) -> Particles:
    from fastsort.particles.source import open_particles

    return open_particles(options.input, pixel_size=options.pixel_size, data_dir=options.data_dir)


def _sort_into(
    folder: str | os.PathLike[str], particles: Particles, options: argparse.Namespace, **parameters: Any
) -> SortResult:
    """Sort, write every result, and print the summary."""
    from fastsort.report.folder import results_folder
    from fastsort.report.plots import draw_report
    from fastsort.report.progress import progress_bar
    from fastsort.report.tables import summarize, write_tables
    from fastsort.sort import sort_particles

    with results_folder(folder, overwrite=options.overwrite, inputs=_files_of(particles)) as partial:
        with progress_bar("sorting", options.quiet) as progress:
            result = sort_particles(particles, progress=progress, **parameters)
        write_tables(partial, particles, result, write_stack=getattr(options, "write_stack", False))
        with _drawing("report.png"):
            draw_report(partial / "report.png", particles, result)
    if not options.quiet:
        _print_summary(summarize(particles, result), folder)
    return result


def _files_of(particles: Particles) -> list[str]:
    """Return the files that results must not replace."""
    stacks = (stack.path for stack in getattr(particles.store, "stacks", ()))
    return [path for path in (particles.path, *stacks) if path]


@contextmanager
def _drawing(names: str) -> Iterator[None]:
    """Go on without pictures where matplotlib is missing, and say so."""
    try:
        yield
    except ImportError:
        hint = f"fastsort: no {names} without matplotlib: pip install 'fastsort[report]'"
        print(hint, file=sys.stderr)


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
    with results_folder(options.output, overwrite=options.overwrite, inputs=_files_of(particles)) as partial:
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
    print(f"{n:,} images: {summary['kept']:,} kept, {summary['rejected']:,} rejected")
    for name, count in summary["reasons"].items():
        if count:
            print(f"  {name:<14}{count:>10,}  {100 * count / n:5.1f} %")
    origin = "estimated" if summary["diameter_estimated"] else "given"
    known = summary["diameter"] == summary["diameter"]
    angstroms = f"{summary['diameter']:.1f} A, " if known else ""
    flips = "flipped" if summary["phase_flipped"] else "not flipped"
    measured = summary["diameter_px"] == summary["diameter_px"]
    diameter = f"{angstroms}{summary['diameter_px']:.1f} px ({origin})" if measured else "unknown"
    print(f"diameter {diameter}", end="; ")
    print(f"{summary['contrast']} particles; phases {flips}")
    if summary["subspaces"] is not None:
        print(_describe_subspaces(**summary["subspaces"]))
    speed = summary["images_per_second"]
    print(f"{n / speed if speed else 0:.1f} s, {speed:,.0f} images/s; results in {folder}")


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
    print(f"picture: {folder / 'sorted' / 'report.png'}")


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
