"""How long does a stack on disk take from pixels to verdicts, and how much memory?

python benchmarks/speed.py [--stack FILE.mrcs] [--work FOLDER] [--runs 5] [--images 20000]
    [--method radial]

Without --stack, a stack of 280 px (6.3 GB for 20,000 images) is made in the work folder, or taken from
there if an earlier run left one. Each measurement of memory runs in a process of its own; the set of twice
as many images is a STAR file that names those of the stack twice.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

BOX = 280
WORKING_SIZE = 55
PIXEL_SIZE = 1.34
# The particle's diameter in parts of the box.
FILL = 0.57
SIMULATED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stack", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--images", type=int, default=20_000, help="how many are made without --stack")
    parser.add_argument("--method", choices=("radial", "subspaces"), default="radial")
    parser.add_argument("--measure-memory", nargs=2, metavar=("STAR", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        star, workers = options.measure_memory
        print(peak_memory(star, int(workers), options.method))
        return
    from tables import print_machine, print_table

    print_machine()
    stack = options.stack or make_stack(options.work, options.images)
    n = warm_page_cache(stack)
    print_table(
        f"{n} images of {stack.name}, page cache warm (median of {options.runs}; lowest to highest)",
        ("what", "seconds", "range", "images/s"),
        timing_rows(stack, n, options.runs, options.method),
    )
    print_table(
        f"Peak resident memory of sort_particles, working size {WORKING_SIZE} px",
        ("images", "workers", "MB"),
        memory_rows(stack, n, options.work, options.method),
    )


def make_stack(folder: Path, n: int) -> Path:
    """Write simulated images over and over, each time moved by one more row."""
    import numpy as np

    import fastsort as fs
    from fastsort.particles.mrc import write_stack

    path = folder / f"fastsort_speed_{n}x{BOX}.mrcs"
    if path.exists():
        return path
    half = min(SIMULATED, n) // 2
    images, _ = fs.simulate_particles(
        min(SIMULATED, n) - half, half, snr=1 / 50, box=BOX, pixel_size=PIXEL_SIZE, fill=FILL, seed=0
    )
    rounds = -(-n // len(images))
    blocks = (np.roll(images, row, axis=1)[: n - row * len(images)] for row in range(rounds))
    write_stack(path, blocks, PIXEL_SIZE, n, BOX)
    return path


def warm_page_cache(stack: Path) -> int:
    import fastsort as fs

    with open(stack, "rb", buffering=0) as file:
        while file.read(1 << 26):
            pass
    return len(fs.open_particles(stack))


def timing_rows(stack: Path, n: int, runs: int, method: str):
    import numpy as np
    from tables import seconds_in_turn

    import fastsort as fs

    jobs = {
        "a: only read and crop, 1 worker": lambda: read_and_crop(stack),
        "b: sort_particles, 1 worker": lambda: sort(stack, 1, method),
        "c: sort_particles, 2 workers": lambda: sort(stack, 2, method),
    }
    # Compile on a few images first.
    particles = fs.open_particles(stack)
    few = fs.open_particles(particles.read(0, min(n, 200)), pixel_size=particles.pixel_size)
    sort(few, 1, method)
    seconds = seconds_in_turn(jobs, runs)
    medians = [float(np.median(times)) for times in seconds.values()]
    for (what, times), median in zip(seconds.items(), medians, strict=True):
        yield what, f"{median:.2f}", f"{min(times):.2f} to {max(times):.2f}", f"{n / median:.0f}"
    alone, one, two = medians
    yield "b / a", f"{one / alone:.2f}", "", ""
    yield "b / c", f"{one / two:.2f}", "", ""


def read_and_crop(stack: Path) -> None:
    import fastsort as fs
    from fastsort._crop import crop_operator
    from fastsort.images.batches import map_batches

    particles = fs.open_particles(stack)
    for _ in map_batches(crop, particles, crop_operator(particles.box, WORKING_SIZE), n_jobs=1):
        pass


def crop(images, start: int, operator) -> None:
    from fastsort._crop import apply_crop

    apply_crop(images, operator)


def sort(source, workers: int, method: str) -> None:
    import fastsort as fs

    particles = fs.open_particles(source)
    diameter = FILL * particles.box * particles.pixel_size
    fs.sort_particles(particles, diameter=diameter, method=method, working_size=WORKING_SIZE, n_jobs=workers)


def memory_rows(stack: Path, n: int, work: Path, method: str):
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for times in (1, 2):
            star = Path(folder) / f"{times}.star"
            write_star(star, stack.resolve(), n, times)
            for workers in (1, 2):
                command = [sys.executable, __file__, "--measure-memory", str(star), str(workers)]
                command += ["--method", method]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                yield times * n, workers, done.stdout.strip()


def write_star(path: Path, stack: Path, n: int, times: int) -> None:
    import fastsort as fs

    particles = fs.open_particles(stack)
    # RELION takes image names from the folder of its project: an absolute one holds everywhere.
    names = [f"{i:06d}@{stack} 1\n" for i in range(1, n + 1)]
    path.write_text(
        "# version 30001\n\ndata_optics\n\nloop_\n"
        "_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n_rlnImageSize #3\n"
        f"1 {particles.pixel_size:.4f} {particles.box}\n\n"
        "# version 30001\n\ndata_particles\n\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n"
        + "".join(times * names),
        encoding="utf-8",
    )


def peak_memory(star: str, workers: int, method: str) -> int:
    """Sort, and return this process's highest resident memory in MB."""
    sort(star, workers, method)
    try:
        # Unlike ru_maxrss, it does not start from the peak of the process that started this one.
        with open("/proc/self/status", encoding="utf-8") as file:
            kilobytes = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
        return round(1024 * kilobytes / 1e6)
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / 1e6 if sys.platform == "darwin" else 1024 * peak / 1e6)


if __name__ == "__main__":
    main()
