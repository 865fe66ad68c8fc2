"""How much faster is a sort with two Dask workers than with one, and with threads of one process?

python benchmarks/cluster.py [--work FOLDER] [--runs 3] [--images 200000]

The stack of 64 px (3.3 GB for 200,000 images) is made in the work folder, or taken from there if an earlier
run left one. Workers have one thread each and run on this machine, as the scheduler and the caller do.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

BOX = 64
PIXEL_SIZE = 3.0
# The particle's diameter in parts of the box.
FILL = 0.6
SIMULATED = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--images", type=int, default=200_000)
    options = parser.parse_args()
    from tables import print_machine, print_table

    print_machine()
    stack = make_stack(options.work, options.images)
    print_table(
        f"sort_particles, {options.images} images of {BOX} px, page cache warm (median of {options.runs}; "
        "lowest to highest)",
        (
            "what",
            "seconds",
            "range",
            "reading",
            "measuring",
            "deciding",
            "the caller's CPU",
            "the workers' CPU",
        ),
        rows(stack, options.runs, options.work),
    )


def make_stack(folder: Path, n: int) -> Path:
    """Write simulated images over and over, each time turned or moved in another way."""
    import numpy as np

    import fastsort as fs
    from fastsort.particles.mrc import write_stack

    path = folder / f"fastsort_cluster_{n}x{BOX}.mrcs"
    if path.exists():
        return path
    half = SIMULATED // 2
    images, _ = fs.simulate_particles(SIMULATED - half, half, snr=0.05, box=BOX, fill=FILL, seed=0)
    rounds = -(-n // len(images))
    # Quarter turns, and at most 2 px either way: particles stay in the middle.
    moved = (
        np.roll(np.rot90(images, turn, (1, 2)), (turn // 4 % 5 - 2, turn // 20 % 5 - 2), (1, 2))
        for turn in range(rounds)
    )
    blocks = (block[: n - turn * len(images)] for turn, block in enumerate(moved))
    write_stack(path, blocks, PIXEL_SIZE, n, BOX)
    return path


def rows(stack: Path, runs: int, work: Path):
    import numpy as np
    from distributed import Client, LocalCluster
    from tables import seconds_in_turn

    import fastsort as fs
    from fastsort.images.cluster import use_cluster

    found = defaultdict(list)

    def sort(what: str, **workers):
        result = fs.sort_particles(
            stack, diameter=FILL * BOX * PIXEL_SIZE, work=work / "fastsort_cluster_work", **workers
        )
        found[what].append(result)
        return result

    with ExitStack() as clusters:
        addresses = {}
        for count in (1, 2):
            cluster = LocalCluster(
                n_workers=count, threads_per_worker=1, dashboard_address=":0", silence_logs=50
            )
            addresses[count] = clusters.enter_context(cluster).scheduler_address
        used = defaultdict(list)

        def sort_there(what: str, count: int) -> None:
            with use_cluster(addresses[count], [stack], work=work), Client(addresses[count]) as client:
                before = sum(client.run(cpu_seconds).values()), cpu_seconds()
                sort(what)
                after = sum(client.run(cpu_seconds).values()), cpu_seconds()
            used[what].append([after[1] - before[1], after[0] - before[0]])

        def sort_here(what: str, n_jobs: int) -> None:
            before = cpu_seconds()
            sort(what, n_jobs=n_jobs)
            used[what].append([cpu_seconds() - before, 0.0])

        jobs = {
            "1 Dask worker": lambda: sort_there("1 Dask worker", 1),
            "2 Dask workers": lambda: sort_there("2 Dask workers", 2),
            "1 thread": lambda: sort_here("1 thread", 1),
            "2 threads": lambda: sort_here("2 threads", 2),
        }
        # Everybody compiles, and reads all files once.
        for job in jobs.values():
            job()
        found.clear(), used.clear()
        seconds = seconds_in_turn(jobs, runs)
    for what, times in seconds.items():
        stages = [
            np.median([result.seconds[stage] for result in found[what]])
            for stage in ("read and crop", "measure", "decide")
        ]
        cpu = np.median(used[what], axis=0)
        yield (
            what,
            f"{np.median(times):.2f}",
            f"{min(times):.2f} to {max(times):.2f}",
            *(f"{value:.2f}" for value in (*stages, *cpu)),
        )
    one, two, single, threads = (float(np.median(times)) for times in seconds.values())
    blank = [""] * 6
    yield "1 worker / 2 workers", f"{one / two:.2f}", *blank
    yield "1 thread / 2 threads", f"{single / threads:.2f}", *blank
    yield "1 thread / 2 workers", f"{single / two:.2f}", *blank
    first = found["1 thread"][0]
    same = all(
        result.score.tobytes() == first.score.tobytes() for results in found.values() for result in results
    )
    yield "same bits", "yes" if same else "NO", *blank


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
