"""``fastsort simulate``: a labelled project."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fastsort.cli.options import NO_BAR_HELP, SEED_HELP, Commands, add_command

if TYPE_CHECKING:
    from fastsort._types import Images
    from fastsort.simulate.plan import Simulation

_VOLUME_HELP = "particle: globular, elongated, shell, two-lobed, or an .mrc file (default globular)"


def add_simulate(commands: Commands) -> None:
    """Add the command."""
    text = "Simulate a labelled project: stacks, STAR file, truth."
    example = "fastsort simulate -o sim/ --good 1000 --junk 1000 --snr 0.02"
    parser = add_command(commands, "simulate", run_simulate, "-o DIR ", text, example)
    add = parser.add_argument
    add("-o", "--output", metavar="DIR", required=True, help="folder for the project")
    add("--good", type=int, default=1000, metavar="N", help="number of particles (default 1000)")
    add("--junk", type=int, default=1000, metavar="N", help="number of junk images (default 1000)")
    add("--snr", type=float, default=0.02, metavar="X", help="signal-to-noise ratio (default 0.02)")
    add("--box", type=int, default=64, metavar="PX", help="size of the images (default 64)")
    add("--volume", default="globular", metavar="SHAPE|MRC", help=_VOLUME_HELP)
    add(
        "--recipe",
        choices=("paper", "all", "ppca"),
        default="paper",
        help="kinds of junk and of noise (default paper)",
    )
    add("--ctf", action="store_true", help="apply a CTF, and do not flip phases")
    add("--pixel-size", type=float, metavar="A", help="in angstroms (default: so that the particle fits)")
    noise = "spectrum of the noise (default: that of the recipe)"
    add("--noise", choices=("white", "radial", "decaying"), help=noise)
    add("--seed", type=int, default=0, metavar="N", help=SEED_HELP)
    add("--overwrite", action="store_true", help="replace an earlier project in DIR")
    add("--quiet", action="store_true", help=NO_BAR_HELP)


def run_simulate(options: argparse.Namespace) -> None:
    """Run the command."""
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
    star = write_simulation(options.output, simulation, options)
    if not options.quiet:
        print(f"{options.good:,} particles and {options.junk:,} images of junk: {star}")


def write_simulation(
    folder: str | os.PathLike[str], simulation: Simulation, options: argparse.Namespace
) -> Path:
    """Make the images of a plan and write them as a project; return the path of its STAR file."""
    from fastsort.report.progress import progress_bar
    from fastsort.simulate import particle_blocks, write_project

    n = len(simulation.truth.label)
    with progress_bar("simulating", options.quiet) as progress:

        def blocks() -> Iterator[Images]:
            done = 0
            for block in particle_blocks(simulation):
                yield block
                done += len(block)
                if progress:
                    progress(done, n)

        return write_project(folder, blocks(), simulation.truth, overwrite=options.overwrite)
