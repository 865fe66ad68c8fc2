"""``fastsort simulate``: a labelled project, or whole micrographs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsort._checks import InputError
from fastsort.cli.options import NO_BAR_HELP, SEED_HELP, Commands, add_command, refuse_given

if TYPE_CHECKING:
    from fastsort._types import Images
    from fastsort.simulate.micrographs import Micrograph
    from fastsort.simulate.plan import Simulation

_VOLUME_HELP = "particle: globular, elongated, shell, two-lobed, or an .mrc file (default globular)"
_OF_IMAGES = ("good", "junk", "box", "recipe", "ctf")
_OF_MICROGRAPHS = (
    "diameter",
    "crowding",
    "spacing",
    "defocus",
    "contamination",
    "contaminants",
    "ramp",
)
_SHARED = ("snr", "volume", "pixel_size", "noise", "seed")


def add_simulate(commands: Commands) -> None:
    """Add the command."""
    text = "Simulate a labelled project, or micrographs: pixels, STAR file, truth."
    example = "fastsort simulate -o sim/ --good 1000 --junk 1000 --snr 0.02"
    parser = add_command(commands, "simulate", run_simulate, "-o DIR ", text, example)
    add = parser.add_argument
    add("-o", "--output", metavar="DIR", required=True, help="folder for the project")
    add("--good", type=int, default=1000, metavar="N", help="number of particles (default 1000)")
    add("--junk", type=int, default=1000, metavar="N", help="number of junk images (default 1000)")
    snr = "signal-to-noise ratio (default 0.02; of micrographs 0.05, in the particles' disks)"
    add("--snr", type=float, metavar="X", help=snr)
    add("--box", type=int, default=64, metavar="PX", help="size of the images (default 64)")
    add("--volume", default="globular", metavar="SHAPE|MRC", help=_VOLUME_HELP)
    add(
        "--recipe",
        choices=("paper", "all", "ppca"),
        default="paper",
        help="kinds of junk and of noise (default paper)",
    )
    add("--ctf", action="store_true", help="apply a CTF, and do not flip phases")
    size = "in angstroms (default: so that the particle fits; of micrographs 2.5)"
    add("--pixel-size", type=float, metavar="A", help=size)
    noise = "spectrum of the noise (default: that of the recipe; of micrographs decaying)"
    add("--noise", choices=("white", "radial", "decaying"), help=noise)
    add("--seed", type=int, default=0, metavar="N", help=SEED_HELP)
    add("--overwrite", action="store_true", help="replace an earlier project in DIR")
    add("--quiet", action="store_true", help=NO_BAR_HELP)
    _add_micrographs(parser)


def _add_micrographs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("whole micrographs, to test a picker with").add_argument
    add("--micrographs", type=int, metavar="N", help="make so many micrographs instead of boxed images")
    add("--size", type=int, nargs="+", metavar="PX", help="side, or width and height (default 2048)")
    add("--diameter", type=float, metavar="A", help="of the particle, in angstroms (default: its own)")
    crowding = "area of the particles' disks, as a part of the clean area (default 0.15)"
    add("--crowding", type=float, metavar="X", help=crowding)
    add("--spacing", type=float, metavar="X", help="least distance of two, in diameters (default 1)")
    defocus = "least and largest defocus in um (default 1 2.5)"
    add("--defocus", type=float, nargs=2, metavar=("LEAST", "MOST"), help=defocus)
    contamination = "part of the area that is contaminated, 0 to 0.9 (default 0.1)"
    add("--contamination", type=float, metavar="X", help=contamination)
    kinds = "some of carbon, crystals, ice, aggregates (default all)"
    add("--contaminants", nargs="+", metavar="KIND", help=kinds)
    ramp = "how much brighter one side is than the other, at most (default 0.05)"
    add("--ramp", type=float, metavar="X", help=ramp)
    add("--no-defects", action="store_true", help="no dead columns and hot pixels")
    add("--bright", action="store_true", help="particles brighter than the background")


def run_simulate(options: argparse.Namespace) -> None:
    """Run the command."""
    from fastsort._checks import check_output_folder
    from fastsort.simulate import plan_particles

    check_output_folder(options.output, options.overwrite)
    if options.micrographs is not None:
        _simulate_micrographs(options)
        return
    refuse_given(options, [*_OF_MICROGRAPHS, "size", "no_defects", "bright"], "without --micrographs")
    simulation = plan_particles(
        options.good,
        options.junk,
        snr=0.02 if options.snr is None else options.snr,
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


def _simulate_micrographs(options: argparse.Namespace) -> None:
    from fastsort.report.progress import progress_bar
    from fastsort.simulate import simulate_micrographs, write_micrographs

    refuse_given(options, _OF_IMAGES, "with --micrographs")
    # The defaults of the others are those of the library.
    settings: dict[str, Any] = {
        name: getattr(options, name) for name in (*_OF_MICROGRAPHS, *_SHARED) if name in options.given
    }
    if options.size is not None:
        if len(options.size) > 2:
            raise InputError(f"--size must be one number or two; got {len(options.size)}: width and height.")
        settings["shape"] = (options.size[-1], options.size[0])
    micrographs = simulate_micrographs(
        options.micrographs,
        defects=not options.no_defects,
        contrast="bright" if options.bright else "dark",
        **settings,
    )
    n_particles = 0
    with progress_bar("simulating", options.quiet) as progress:

        def counted() -> Iterator[Micrograph]:
            nonlocal n_particles
            for done, micrograph in enumerate(micrographs, 1):
                n_particles += len(micrograph.centre)
                yield micrograph
                if progress:
                    progress(done, options.micrographs)

        star = write_micrographs(options.output, counted(), overwrite=options.overwrite)
    if not options.quiet:
        print(f"{n_particles:,} particles on {options.micrographs:,} micrographs: {star}")


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
            for block in particle_blocks(simulation, n_jobs=-1):
                yield block
                done += len(block)
                if progress:
                    progress(done, n)

        return write_project(folder, blocks(), simulation.truth, overwrite=options.overwrite)
