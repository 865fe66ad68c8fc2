"""``fastsort demo``: simulated images, sorted and compared with the truth."""

from __future__ import annotations

import argparse

from fastsort.cli.beside import compiling_beside
from fastsort.cli.options import SEED_HELP, Commands, add_command
from fastsort.cli.printing import print_accuracy
from fastsort.cli.simulate import write_simulation
from fastsort.cli.sort import sort_into

# Particles, and as many images of junk.
N_IMAGES = 1000


def add_demo(commands: Commands) -> None:
    """Add the command."""
    text = "Simulate labelled images, sort them, and say how well that went."
    parser = add_command(commands, "demo", run_demo, "", text, "fastsort demo -o try/ --seed 7")
    add = parser.add_argument
    add(
        "-o",
        "--output",
        metavar="DIR",
        default="fastsort-demo",
        help="folder for images and results (default fastsort-demo)",
    )
    add("--seed", type=int, default=0, metavar="N", help=SEED_HELP)
    add("--overwrite", action="store_true", help="replace an earlier demo in DIR")
    add("--quiet", action="store_true", help="show no progress bar and no summary of sorting")


def run_demo(options: argparse.Namespace) -> None:
    """Run the command."""
    from fastsort._checks import check_output_folder
    from fastsort.report.painter import painting_beside

    folder = check_output_folder(options.output, options.overwrite)
    with painting_beside() as painter, compiling_beside():
        from fastsort.particles.open import open_particles
        from fastsort.simulate import plan_particles

        simulation = plan_particles(N_IMAGES, N_IMAGES, snr=0.05, junk="all", seed=options.seed)
        star = write_simulation(folder / "simulated", simulation, options)
        particles, how = open_particles(star), {"seed": options.seed, "n_jobs": -1}
        result, _ = sort_into(folder / "sorted", particles, options, painter, **how)
    print_accuracy(simulation.truth, result)
    print(f"page: {folder / 'sorted' / 'report.html'}")
