"""How large may a set be: time and memory from 10,000 to 1,000,000 particles.

python benchmarks/scale.py [--images 10000 100000 1000000] [--box 128] [--workers 2] [--work FOLDER]
                           [--classes K]

The images are generated as they are read, from simulated ones in a file, each turned by quarters, mirrored
and moved by up to three pixels in its own way. Each set is sorted in a process of its own, whose highest
resident memory is taken. A run needs 2.6 kB an image in the work folder. With --classes, the sets are
divided into so many classes instead, which takes 18 kB an image.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from tables import print_machine, print_table

from fastsort import classify_particles, simulate_particles, sort_particles
from fastsort._jit import kernel
from fastsort._types import Images, Indices
from fastsort.particles.mrc import read_header, read_sections, write_stack
from fastsort.particles.source import Particles
from fastsort.particles.store import ImageStore

PIXEL_SIZE = 2.0
SIMULATED = 2000
# Larger sets run once.
REPEATED = 100_000


class GeneratedImages(ImageStore):
    """As many images as are wanted, made from those of a stack."""

    def __init__(self, path: str, numbers: Indices) -> None:
        self.path = path
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, index: int) -> str:
        """Return a name for messages and tables."""
        return f"{self.numbers[index] + 1:08d}@generated"

    def read(self, indices: Indices) -> Images:
        """Read the images that these are made from, and change each in its own way."""
        numbers = self.numbers[indices]
        header = read_header(self.path)
        sections, which = np.unique(numbers % header.n_images, return_inverse=True)
        stored = np.empty((len(sections), header.ny, header.nx), np.float32)
        read_sections(header, sections, stored)
        images = np.empty((len(numbers), header.ny, header.nx), np.float32)
        _vary(stored, which, numbers // header.n_images, images)
        return images

    def part(self, chosen: Indices) -> ImageStore:
        """Return a store of some of the images."""
        return GeneratedImages(self.path, self.numbers[chosen])


@kernel
def _vary(stored, which, variant, images):
    d = images.shape[1]
    for i in range(len(which)):
        source, out = stored[which[i]], images[i]
        turn, move = variant[i] % 8, variant[i] // 8
        down, right = move % 7 - 3, move // 7 % 7 - 3
        for y in range(d):
            v = (y - down) % d
            for x in range(d):
                u = (x - right) % d
                a, b = (u, v) if turn & 1 else (v, u)
                a = d - 1 - a if turn & 2 else a
                b = d - 1 - b if turn & 4 else b
                out[y, x] = source[a, b]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help=f"of sets up to {REPEATED:,}; the median counts")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--classes", type=int, metavar="K", help="divide the sets into K classes instead")
    parser.add_argument("--sort", nargs=2, metavar=("STACK", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sort:
        stack, number = options.sort
        print(json.dumps(sort(stack, int(number), options.workers, options.work, options.classes)))
        return
    print_machine()
    with tempfile.TemporaryDirectory(prefix="fastsort-scale-", dir=options.work) as folder:
        stack = Path(folder) / "simulated.mrcs"
        images, _ = simulate_particles(SIMULATED // 2, SIMULATED // 2, snr=0.05, box=options.box, junk="all")
        write_stack(stack, [images], PIXEL_SIZE, len(images), options.box)
        found = {
            n: [run(stack, n, options) for _ in range(options.runs)] for n in options.images if n <= REPEATED
        }
        found |= {n: [run(stack, n, options)] for n in options.images if n > REPEATED}
    if options.classes:
        print_classes(found, options)
        return
    print_measured(found, options)


def run(stack: Path, n: int, options: argparse.Namespace) -> dict[str, float]:
    """Sort a set in a process of its own."""
    command = [sys.executable, __file__, "--sort", str(stack), str(n), "--workers", str(options.workers)]
    command += ["--classes", str(options.classes)] if options.classes else []
    done = subprocess.run(
        [*command, "--work", str(stack.parent)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def sort(stack: str, n: int, workers: int, work: Path, n_classes: int | None) -> dict[str, float]:
    """Sort or divide a generated set, and say how long that took and how much memory."""
    run = sort_particles if n_classes is None else partial(classify_particles, n_classes=n_classes)
    store = GeneratedImages(stack, np.arange(n))
    box = read_header(stack).nx
    small = Particles(GeneratedImages(stack, np.arange(600)), box, PIXEL_SIZE)
    # Kernels are compiled, and libraries loaded, before anything is measured.
    run(small, n_jobs=workers)
    # Compiling has taken more memory than what follows: the highest mark starts anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = run(Particles(store, box, PIXEL_SIZE), work=work / f"work{n}", n_jobs=workers)
    peak = resident("VmHWM")
    return {**result.seconds, "kept": float(result.keep.mean()), "before": before, "peak": peak}


def resident(name: str) -> float:
    """Return the resident memory of this process in MB: now (VmRSS), or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def print_measured(found: dict[int, list[dict[str, float]]], options: argparse.Namespace) -> None:
    rows = []
    for n, runs in sorted(found.items()):
        middle = medians(runs)
        seconds = middle["total"]
        stages = [f"{middle[name]:.1f}" for name in ("read and crop", "measure", "decide")]
        rate = n * options.box**2 * 4 / seconds / 1e6
        memory = [f"{middle['before']:.0f}", f"{middle['peak']:.0f}"]
        rows.append(
            [
                f"{n:,}",
                f"{seconds:.1f}",
                *stages,
                f"{n / seconds:,.0f}",
                f"{rate:,.0f}",
                *memory,
                f"{middle['kept']:.3f}",
            ]
        )
    print_table(
        f"Generated images of {options.box} px, all methods, {options.workers} workers "
        f"(median of {options.runs} up to {REPEATED:,})",
        (
            "images",
            "seconds",
            "read and crop",
            "measure",
            "decide",
            "images/s",
            "MB/s",
            "MB before",
            "peak MB",
            "kept",
        ),
        rows,
    )
    sizes = sorted(found)
    rows = []
    for smaller, larger in itertools.pairwise(sizes):
        few, many = medians(found[smaller]), medians(found[larger])
        rate = (larger / many["total"]) / (smaller / few["total"])
        grown = (many["peak"] - few["peak"]) * 1e6 / (larger - smaller)
        rows.append(
            [
                f"{smaller:,} to {larger:,}",
                f"{many['total'] / few['total']:.1f}",
                f"{rate:.2f}",
                f"{grown:,.0f}",
            ]
        )
    print_table(
        "How that grows",
        ("images", "time, times", "images/s, times", "memory, bytes for each more image"),
        rows,
    )


def print_classes(found: dict[int, list[dict[str, float]]], options: argparse.Namespace) -> None:
    rows = []
    first = medians(found[min(found)])["total"]
    for n, runs in sorted(found.items()):
        middle = medians(runs)
        seconds = [f"{middle[name]:.0f}" for name in ("total", "read and crop", "map")]
        memory = [f"{middle[name]:.0f}" for name in ("before", "peak")]
        rows.append([f"{n:,}", *seconds, f"{middle['total'] / first:.1f}", *memory])
    print_table(
        f"{options.classes} classes of generated images of {options.box} px, {options.workers} workers "
        f"(median of {options.runs} up to {REPEATED:,})",
        ("images", "seconds", "read and crop", "map", "times the first", "MB before", "peak MB"),
        rows,
    )


if __name__ == "__main__":
    main()
