"""Is this version as fast as another one? The same sort by both, in turn, each in a fresh process.

python benchmarks/versions.py OTHER [--images N]

OTHER is a checkout of the other version. The stack (6.3 GB for 20,000 images of 280 px) is made in a
temporary folder, which goes when all is done.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import speed
from tables import ROOT, print_machine, print_table
from verdict import BOX, PIXEL_SIZE, WORKERS, large_blocks

from fastsort.particles.mrc import write_stack

# Kernels are compiled before the clock starts.
SORT = """
import sys, time
import fastsort as fs
assert fs.__file__.startswith(sys.argv[3]), f"{fs.__file__} is not in {sys.argv[3]}"
stack = sys.argv[1]
fs.sort_particles(fs.open_particles(stack).read(0, 400), n_jobs=int(sys.argv[2]))
begin = time.perf_counter()
result = fs.sort_particles(stack, n_jobs=int(sys.argv[2]))
print(time.perf_counter() - begin, int(result.keep.sum()))
"""


def seconds_of(checkout: Path, stack: Path) -> tuple[float, int]:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", SORT, str(stack), str(WORKERS), str(checkout)]
    # From its own folder: Python looks there before all others.
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout
    )
    seconds, kept = done.stdout.split()
    return float(seconds), int(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("other", type=Path, metavar="OTHER")
    parser.add_argument("--images", type=int, default=20_000, metavar="N", help="a multiple of 1,000")
    options = parser.parse_args()
    checkouts = {"the other version": options.other.resolve(), "this version": ROOT.resolve()}
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        stack, runs = Path(folder) / "stack.mrcs", 5
        write_stack(stack, large_blocks(options.images), PIXEL_SIZE, options.images, BOX)
        n = speed.warm_page_cache(stack)
        seconds: dict[str, list[float]] = {name: [] for name in checkouts}
        kept = dict.fromkeys(checkouts, 0)
        for _ in range(runs):
            for name, checkout in checkouts.items():
                taken, kept[name] = seconds_of(checkout, stack)
                seconds[name].append(taken)
    ratios = np.divide(seconds["this version"], seconds["the other version"])
    print_table(
        f"{n:,} images of 280 px, page cache warm, all methods, {WORKERS} workers: seconds, {runs} runs in "
        f"turn; this version takes {np.median(ratios):.3f} times as long (median of pairs)",
        ("version", "median", "range", "kept"),
        [
            (name, f"{np.median(times):.2f}", f"{min(times):.2f} to {max(times):.2f}", f"{kept[name]:,}")
            for name, times in seconds.items()
        ],
    )


if __name__ == "__main__":
    main()
