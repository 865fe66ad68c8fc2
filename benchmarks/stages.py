"""Where does the time of a sort go: seconds by stage, by pass over the images and by function.

python benchmarks/stages.py [--images 10000 100000] [--box 128] [--most 30]
python benchmarks/stages.py --start

The images are generated as they are read, as in scale.py; what that takes stands under "generated images".
One worker sorts them while a profiler counts, which makes many short calls look dearer than they are.
Kernels count like functions. A pass reads every image once, as it is or cropped; its bytes are those that
it gets, in single precision.

With --start, whole processes are timed instead: the interpreter, the import, commands that compute nothing, a
sort of 2,000 images of 64 px, and the demo with nothing compiled and once more.
"""

from __future__ import annotations

import argparse
import compileall
import cProfile
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from scale import PIXEL_SIZE, SIMULATED, GeneratedImages
from tables import print_machine, print_table

from fastsort import simulate_particles, sort_particles, write_project
from fastsort.images import batches
from fastsort.particles.mrc import write_stack
from fastsort.particles.source import Particles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--start", action="store_true", help="time how long commands take to start")
    parser.add_argument("--most", type=int, default=30, metavar="N", help="functions that are listed")
    options = parser.parse_args()
    print_machine()
    if options.start:
        print_starts()
        return
    with tempfile.TemporaryDirectory(prefix="fastsort-stages-") as folder:
        stack = Path(folder) / "simulated.mrcs"
        images, _ = simulate_particles(SIMULATED // 2, SIMULATED // 2, snr=0.05, box=options.box, junk="all")
        write_stack(stack, [images], PIXEL_SIZE, len(images), options.box)
        # Kernels are compiled, and libraries loaded, before anything is measured.
        sort_particles(generated(stack, 600, options.box), n_jobs=1)
        for n in options.images:
            print_profile(stack, n, options)


def print_starts() -> None:
    """Time whole processes, those that compute nothing nine times and a sort three times."""
    # As pip does when it installs.
    compileall.compile_dir(str(Path(batches.__file__).parents[1]), quiet=1)
    with tempfile.TemporaryDirectory(prefix="fastsort-stages-") as folder:
        images, truth = simulate_particles(1000, 1000, snr=0.05, junk="all", seed=1)
        star = str(write_project(Path(folder) / "project", images, truth))
        python, command = [sys.executable], [sys.executable, "-m", "fastsort"]
        cache = {"NUMBA_CACHE_DIR": str(Path(folder) / "cache")}
        demo = [*command, "demo", "--quiet", "--overwrite", "-o", str(Path(folder) / "demo")]
        sort = [*command, "sort", star, "--quiet", "--overwrite", "-o", str(Path(folder) / "sorted")]
        jobs = [
            ("python", [*python, "-c", "pass"], 9, {}),
            ("import fastsort", [*python, "-c", "import fastsort"], 9, {}),
            ("fastsort --version", [*command, "--version"], 9, {}),
            ("fastsort --help", [*command, "--help"], 9, {}),
            ("fastsort info", [*command, "info", star], 9, {}),
            ("fastsort demo, nothing compiled", demo, 1, cache),
            ("fastsort demo, again", demo, 3, cache),
            ("fastsort sort, 2,000 images of 64 px", sort, 3, cache),
        ]
        rows = []
        for name, words, runs, more in jobs:
            seconds = [seconds_of(words, more) for _ in range(runs)]
            rows.append(
                (name, f"{np.median(seconds):.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}", runs)
            )
    print_table("Whole processes", ("what", "seconds, median", "range", "runs"), rows)


def seconds_of(command: list[str], more: dict[str, str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, env={**os.environ, **more}, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def generated(stack: Path, n: int, box: int) -> Particles:
    return Particles(GeneratedImages(str(stack), np.arange(n)), box, PIXEL_SIZE)


def print_profile(stack: Path, n: int, options: argparse.Namespace) -> None:
    moved: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    run = batches._run

    def counted(function, arguments, home, task):
        name = f"{function.__module__.removeprefix('fastsort.')}.{function.__qualname__}"

        def noted(images, *rest):
            if isinstance(images, np.ndarray):
                moved[name] += images.nbytes
                calls[name] += len(images)
            return function(images, *rest)

        return run(noted, arguments, home, task)

    profile = cProfile.Profile()
    batches._run = counted
    try:
        profile.enable()
        result = sort_particles(generated(stack, n, options.box), n_jobs=1)
        profile.disable()
    finally:
        batches._run = run
    total = result.seconds["total"]
    print_table(
        f"{n:,} images of {options.box} px, one worker, profiled: stages",
        ("stage", "seconds", "share", "microseconds an image"),
        [
            (name, f"{value:.1f}", f"{value / total:.0%}", f"{1e6 * value / n:.0f}")
            for name, value in result.seconds.items()
        ],
    )
    print_table(
        "Passes over images, those of decoys and of class averages too",
        ("pass", "images", "MB"),
        [(name, f"{calls[name]:,}", f"{size / 1e6:,.0f}") for name, size in moved.most_common()],
    )
    own, times = own_seconds(profile)
    rows = [
        (name, f"{value:.2f}", f"{value / own.total():.1%}", f"{times[name]:,}")
        for name, value in own.most_common(options.most)
    ]
    print_table("Functions and kernels by their own time", ("function", "seconds", "share", "calls"), rows)


def own_seconds(profile: cProfile.Profile) -> tuple[Counter[str], Counter[str]]:
    """Return seconds in each function itself, and how often it was called; built-in ones by their callers."""
    own: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for place, (_, n_calls, seconds, _, callers) in pstats.Stats(profile).stats.items():
        if place[0] != "~":
            own[name_of(place)] += seconds
            times[name_of(place)] += n_calls
            continue
        # What NumPy's own code does counts where it was asked for.
        for caller, (_, n_by_it, seconds_by_it, _) in callers.items():
            name = f"{name_of(caller)}: {place[2].strip('<>').split(' of ')[0]}"
            own[name] += seconds_by_it
            times[name] += n_by_it
    return own, times


def name_of(place: tuple[str, int, str]) -> str:
    """Name a function of ours by its file, one of a library by that."""
    path, _, name = place
    if name == "_vary":
        return "generated images"
    if "/fastsort/" in path and "site-packages" not in path:
        return f"{path.rsplit('/fastsort/', 1)[1].removesuffix('.py')}.{name}"
    parts = path.split("site-packages/")[-1].split("/")
    return f"({parts[0] if len(parts) > 1 else Path(path).stem}) {name}"


if __name__ == "__main__":
    main()
