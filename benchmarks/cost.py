"""What does a run cost: a model on paper, fitted to some runs and held against others.

python benchmarks/cost.py [--only sort map denoise pick] [--largest 1000000] [--work FOLDER]

A command takes a sum of terms, such as a number for each pixel that is read, times what a term costs here.
These costs are fitted to the runs that are marked, for one and for two workers apart, and predict the others.
From what two workers share, the last table says what 64 cores take for far larger sets. Images are generated
as they are read, as in scale.py; micrographs are simulated ones, named again and again. Each run is the
median of as many as take ten seconds together.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scale import PIXEL_SIZE, SIMULATED, GeneratedImages
from scipy.optimize import nnls
from tables import print_machine, print_table

import fastsort as fs
from fastsort.denoise import JUDGED_PIXELS
from fastsort.denoising.covariance import MAX_WORKING_BOX, choose_band
from fastsort.denoising.spectra import learn_spectra
from fastsort.invariants.fit_classes import n_compared
from fastsort.particles.mrc import write_stack
from fastsort.particles.source import Particles
from fastsort.pick import N_LEARNED_FROM
from fastsort.simulate import simulate_micrographs

WORKERS = (1, 2)
# Seconds that the runs of one size take together, at the least.
LONG_ENOUGH = 10.0
# Sets of more images are not given to one worker.
ALONE = 100_000
# A prediction should be as close as this.
WANTED = 0.15
# What the last table is for, and bytes a second of a parallel file system.
CORES, FILE_SYSTEM = 64, 5e9
# Pixels of images that are mapped.
MAPPED = 64
# Micrographs that differ.
DIFFERENT = 4

Size = tuple[int, ...]


class Command(NamedTuple):
    """A command whose cost is predicted.

    Attributes
    ----------
    sizes : tuple of str
        What the numbers of a size are.
    terms : dict of str to callable
        What a run of a size is made of.
    fitted, predicted : sequences of sizes
    make : callable
        Called as ``make(*size)``; returns a source of this size.
    run : callable
        Called as ``run(source, size, workers)``.
    beyond : size
        The larger set of the last table.
    bytes_read : callable
        Bytes of a set of a size.
    """

    sizes: tuple[str, ...]
    terms: dict[str, Callable[..., float]]
    fitted: Sequence[Size]
    predicted: Sequence[Size]
    make: Callable[..., Any]
    run: Callable[[Any, Size, int], Any]
    beyond: Size
    bytes_read: Callable[..., float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=[*COMMANDS])
    parser.add_argument("--largest", type=int, default=1_000_000, help="sets of more images are left out")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(prefix="fastsort-cost-", dir=options.work) as folder:
        beyond = [predict(name, COMMANDS[name](Path(folder)), options.largest) for name in options.only]
    print_table(
        f"On paper: {CORES} cores, files read at {FILE_SYSTEM / 1e9:g} GB/s",
        ("command", "set", "shared by all cores, minutes", "what two do not share done by one", "reading"),
        beyond,
    )


def sort_command(folder: Path) -> Command:
    return Command(
        ("images", "box, px"),
        {
            "the run": lambda n, box: 1,
            "an image": lambda n, box: n,
            "1,000 pixels": lambda n, box: n * box**2 / 1e3,
        },
        [(10_000, 64), (100_000, 64), (10_000, 256)],
        [(10_000, 128), (30_000, 64), (100_000, 128), (10_000, 512), (1_000_000, 128)],
        partial(generated, folder),
        lambda images, size, workers: fs.sort_particles(images, n_jobs=workers),
        (10_000_000, 400),
        lambda n, box: 4 * n * box**2,
    )


def map_command(folder: Path) -> Command:
    return Command(
        ("images", "classes"),
        {
            "the run": lambda n, k: 1,
            "an image": lambda n, k: n,
            "an image and class, each time they are compared": lambda n, k: k * n_compared(n, k),
        },
        [(1_000, 8), (1_000, 24), (4_000, 8), (4_000, 24), (20_000, 8)],
        [(2_000, 16), (6_000, 12), (3_000, 30), (24_000, 12)],
        lambda n, k: generated(folder, n, MAPPED),
        lambda images, size, workers: fs.classify_particles(
            images, n_classes=size[1], embedding="pca", n_jobs=workers
        ),
        (1_000_000, 100),
        lambda n, k: 4 * n * MAPPED**2,
    )


def denoise_command(folder: Path) -> Command:
    def with_detail(n: int, box: int) -> Size:
        # Images are made as small as what the set shows allows, which is part of the set's size.
        images = generated(folder, n, box)
        return n, box, choose_band(learn_spectra(images), box, n)[0]

    return Command(
        ("images", "box, px", "of the detail that shows, px"),
        {
            "the run": lambda n, box, detail: 1,
            "1,000 pixels of images that tell the error": lambda n, box, detail: (
                judged(n, box) * box**2 / 1e3
            ),
            "1,000 pixels": lambda n, box, detail: n * box**2 / 1e3,
            # An image has about as many functions as pixels.
            "1,000,000 pixels and functions": lambda n, box, detail: (n + judged(n, box)) * detail**4 / 1e6,
        },
        [with_detail(*size) for size in ((4_000, 48), (4_000, 96), (16_000, 64), (16_000, 128))],
        [with_detail(*size) for size in ((2_000, 64), (8_000, 64), (2_000, 128), (20_000, 96))],
        lambda n, box, detail: generated(folder, n, box),
        lambda images, size, workers: fs.denoise_images(images, method="covariance", n_jobs=workers),
        (1_000_000, 256, MAX_WORKING_BOX),
        lambda n, box, detail: 4 * n * box**2,
    )


def pick_command(folder: Path) -> Command:
    return Command(
        ("micrographs", "side, px"),
        {
            "the run": lambda n, side: 1,
            "1,000,000 pixels to learn from": lambda n, side: min(n, N_LEARNED_FROM) * side**2 / 1e6,
            "1,000,000 pixels": lambda n, side: n * side**2 / 1e6,
        },
        [(8, 1024), (48, 1024), (8, 2048), (48, 2048)],
        [(16, 1024), (24, 2048), (8, 3072)],
        partial(micrographs, folder),
        lambda paths, size, workers: fs.pick_particles(paths, diameter=160.0, n_jobs=workers),
        (10_000, 4096),
        lambda n, side: 4 * n * side**2,
    )


def judged(n: int, box: int) -> float:
    """Return how many of n images tell the error of what learns from all."""
    return min(n, JUDGED_PIXELS / box**2)


def generated(folder: Path, n: int, box: int) -> Particles:
    """Return a set of images that are made as they are read."""
    stack = folder / f"{box}.mrcs"
    if not stack.exists():
        half = min(SIMULATED, 200_000_000 // box**2 // 4) // 2
        images, _ = fs.simulate_particles(half, half, snr=0.05, box=box, junk="all")
        write_stack(stack, [images], PIXEL_SIZE, len(images), box)
    return Particles(GeneratedImages(str(stack), np.arange(n)), box, PIXEL_SIZE)


def micrographs(folder: Path, n: int, side: int) -> list[str]:
    """Return the paths of as many micrographs; only a few differ."""
    paths = []
    for number in range(n):
        path = folder / f"{side}_{number}.mrc"
        if not path.exists():
            if number < DIFFERENT:
                easy = {"snr": 0.2, "noise": "white", "contamination": 0, "diameter": 160, "seed": number}
                (made,) = simulate_micrographs(1, side, pixel_size=2.5, **easy)
                write_stack(path, [made.image[None]], 2.5, 1, side)
            else:
                # Not symbolic links: those count as one micrograph given twice.
                path.hardlink_to(folder / f"{side}_{number % DIFFERENT}.mrc")
        paths.append(str(path))
    return paths


def predict(name: str, command: Command, largest: int) -> list[str]:
    """Fit the costs, print what they predict beside what is measured, and return what a larger set takes."""
    sizes = [size for size in (*command.fitted, *command.predicted) if size[0] <= largest]
    sources = {size: command.make(*size) for size in sizes}
    costs, rows = [], []
    for workers in WORKERS:
        # Kernels are compiled, and libraries loaded, before anything is measured.
        command.run(sources[sizes[0]], sizes[0], workers)
        chosen = [size for size in sizes if workers > 1 or size[0] <= ALONE]
        measured = {size: seconds(partial(command.run, sources[size], size, workers)) for size in chosen}
        matrix = np.array([terms_of(command, size) for size in command.fitted])
        times = np.array([measured[size] for size in command.fitted])
        # Relative errors count, and nothing costs less than nothing.
        cost = nnls(matrix / times[:, None], np.ones(len(times)))[0]
        costs.append(cost)
        for size in chosen:
            expected = float(terms_of(command, size) @ cost)
            apart = expected / measured[size] - 1
            fitted = "fitted" if size in command.fitted else "" if abs(apart) <= WANTED else "SHORT"
            numbers = [f"{number:,}" for number in size]
            rows.append(
                [workers, *numbers, f"{expected:.1f}", f"{measured[size]:.1f}", f"{apart:+.0%}", fitted]
            )
    print_table(
        f"{name}: seconds by the model and measured; wanted: within {WANTED:.0%}",
        ("workers", *command.sizes, "model", "measured", "apart", ""),
        rows,
    )
    print_table(
        f"{name}: what each term costs, milliseconds",
        ("term", *(f"{workers} workers" if workers > 1 else "1 worker" for workers in WORKERS)),
        [[term, *(f"{1e3 * cost[place]:.4g}" for cost in costs)] for place, term in enumerate(command.terms)],
    )
    alone, two = costs
    terms = terms_of(command, command.beyond)
    whole = float(terms @ alone)
    # What two workers take longer than half the time is done by one.
    serial = float(np.clip(2 * (terms @ two) - whole, 0, whole))
    reading = command.bytes_read(*command.beyond) / FILE_SYSTEM
    what = ", ".join(f"{number:,} {unit}" for number, unit in zip(command.beyond, command.sizes, strict=True))
    minutes = (whole / CORES, serial + (whole - serial) / CORES, reading)
    return [name, what, *(f"{value / 60:.1f}" for value in minutes)]


def terms_of(command: Command, size: Size) -> np.ndarray:
    return np.array([term(*size) for term in command.terms.values()], dtype=float)


def seconds(run: Callable[[], object]) -> float:
    """Time a run; the median of several where it is short."""
    times: list[float] = []
    while sum(times) < LONG_ENOUGH:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


COMMANDS = {"sort": sort_command, "map": map_command, "denoise": denoise_command, "pick": pick_command}

if __name__ == "__main__":
    main()
