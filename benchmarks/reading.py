"""How fast are stacks and particle tables read, against others, and what does reading ahead gain?

python benchmarks/reading.py [--work FOLDER] [--runs 5] [--images 20000] [--rows 1000000]
    [--only warm narrow orders ahead tables] [--peers-python PYTHON]

Up to 7 GB of stacks and tables are made in the work folder and removed again. ASPIRE and cryoDRGN are run by
the interpreter given as --peers-python, which needs nothing but the packages aspire and cryodrgn; what it
lacks is left out with a message. "Cold": the files' pages are dropped from the page cache before each pass
(fsync, then POSIX_FADV_DONTNEED); a disk or a host of virtual machines may keep a cache of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastsort.particles.store import StackImages

BOX = 280
NARROW_BOX = 140
WORKING_SIZE = 55
PIXEL_SIZE = 1.34
HEADER_BYTES = 1024
BLOCK = 500
ON_MANY_STACKS = 4_000
PER_STACK = 200
COLD_RUNS = 3
PEERS = ("aspire", "cryodrgn")

OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMtfFileName #3
_rlnMicrographOriginalPixelSize #4
_rlnVoltage #5
_rlnSphericalAberration #6
_rlnAmplitudeContrast #7
_rlnImagePixelSize #8
_rlnImageSize #9
_rlnImageDimensionality #10
opticsGroup1 1 mtf_k2_300kV.star 0.885000 300.000000 1.400000 0.100000 {:.6f} {} 2

# version 30001

data_particles

loop_
"""
NUMBERS = {
    "_rlnCoordinateX": 4000,
    "_rlnCoordinateY": 4000,
    "_rlnAutopickFigureOfMerit": 10,
    "_rlnAnglePsi": 360,
    "_rlnCtfMaxResolution": 6,
    "_rlnCtfFigureOfMerit": 1,
    "_rlnDefocusU": 20000,
    "_rlnDefocusV": 20000,
    "_rlnDefocusAngle": 180,
    "_rlnCtfBfactor": 1,
    "_rlnCtfScalefactor": 1,
    "_rlnPhaseShift": 180,
    "_rlnAngleRot": 360,
    "_rlnAngleTilt": 180,
    "_rlnOriginXAngst": 10,
    "_rlnOriginYAngst": 10,
}
"""Columns of a refinement, and how large their numbers get."""
APPENDED = ("_rlnParticleSelectZScore", "_fastsortJunkProbability", "_fastsortReason")

Read = Callable[[int, int], object]


class Stacks(NamedTuple):
    """Images on disk, and a STAR file that names them in the order in which they are read."""

    star: Path
    files: list[Path]
    stack_of: np.ndarray
    section_of: np.ndarray
    box: int
    dtype: np.dtype

    @property
    def gigabytes(self) -> float:
        """Of all images."""
        return len(self.stack_of) * self.box**2 * self.dtype.itemsize / 1e9


def main() -> None:
    questions = {
        "warm": warm_table,
        "narrow": narrow_table,
        "orders": orders_table,
        "ahead": ahead_table,
        "tables": star_table,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the tables")
    parser.add_argument("--only", nargs="+", choices=questions, default=list(questions))
    parser.add_argument("--peers-python", help="interpreter with aspire and cryodrgn")
    parser.add_argument("--peer", nargs=3, metavar=("NAME", "STAR", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        name, star, batch = options.peer
        serve_passes(name, star, int(batch))
        return
    from tables import print_machine

    print_machine()
    for question in options.only:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            questions[question](Path(folder), options)


def warm_table(folder: Path, options: argparse.Namespace) -> None:
    stacks = make_stacks(folder, options.images, options.images, BOX, np.float32)
    print_readers(
        f"{options.images} images of {BOX} px, float32, one stack of {stacks.gigabytes:.1f} GB, "
        "page cache warm",
        stacks,
        options,
    )


def narrow_table(folder: Path, options: argparse.Namespace) -> None:
    for dtype in (np.int16, np.float16):
        stacks = make_stacks(folder, options.images, options.images, NARROW_BOX, dtype)
        print_readers(
            f"{options.images} images of {NARROW_BOX} px, {np.dtype(dtype).name}, one stack of "
            f"{stacks.gigabytes:.1f} GB, read to float32, page cache warm",
            stacks,
            options,
        )


def orders_table(folder: Path, options: argparse.Namespace) -> None:
    for order, shuffled in (("in order", False), ("shuffled", True)):
        n = min(ON_MANY_STACKS, options.images)
        stacks = make_stacks(folder, n, PER_STACK, BOX, np.float32, shuffled)
        for cold in (True, False):
            print_readers(
                f"{n} images of {BOX} px, float32, {len(stacks.files)} stacks, a STAR file that names them "
                f"{order}, page cache {'cold' if cold else 'warm'}",
                stacks,
                options,
                cold,
            )


def print_readers(title: str, stacks: Stacks, options: argparse.Namespace, cold: bool = False) -> None:
    """Print how long each reader takes for a pass over all images."""
    from tables import print_table

    batch, runs = batch_size(stacks.box), COLD_RUNS if cold else options.runs
    jobs: dict[str, Callable[[], float]] = {}
    for what, open_reader in own_readers(stacks).items():
        jobs[what] = partial(
            pass_seconds, open_reader, len(stacks.stack_of), batch, stacks.files if cold else []
        )
    peers = {}
    for name in PEERS if options.peers_python else ():
        peer, answer = start_peer(options.peers_python, name, stacks.star, batch)
        if answer.startswith("ready "):
            peers[name] = peer
            jobs[answer.removeprefix("ready ")] = lambda peer=peer: ask(peer, cold, stacks.files)
        else:
            stop_peer(peer)
            print(f"\n{name} is left out: {answer}")
    if not options.peers_python:
        print("\nASPIRE and cryoDRGN are left out: give --peers-python.")
    seconds = seconds_told(jobs, runs)
    for peer in peers.values():
        stop_peer(peer)
    bare = float(np.median(seconds["numpy.fromfile"]))
    rows = []
    for what, times in seconds.items():
        median = float(np.median(times))
        rows.append(
            (
                what,
                f"{median:.3f}",
                f"{min(times):.3f} to {max(times):.3f}",
                f"{stacks.gigabytes / median:.1f}",
                f"{median / bare:.2f}",
            )
        )
    print_table(
        f"{title}, in ranges of {batch}, one thread (median of {runs}; lowest to highest)",
        ("reader", "seconds", "range", "GB/s", "times numpy.fromfile"),
        rows,
    )


def seconds_told(jobs: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Run jobs that time themselves, one after the other, again and again; a first round does not count."""
    seconds: dict[str, list[float]] = {what: [] for what in jobs}
    for _ in range(runs + 1):
        for what, job in jobs.items():
            seconds[what].append(job())
    return {what: times[1:] for what, times in seconds.items()}


def pass_seconds(open_reader: Callable[[], Read], n: int, batch: int, cold_files: Iterable[Path]) -> float:
    """Read all images in ranges, from files whose pages are dropped before."""
    drop_pages(cold_files)
    # Opened here and gone afterwards: pages that somebody has mapped cannot be dropped.
    read = open_reader()
    begin = time.perf_counter()
    for start in range(0, n, batch):
        read(start, min(start + batch, n))
    return time.perf_counter() - begin


def drop_pages(files: Iterable[Path]) -> None:
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def batch_size(box: int) -> int:
    from fastsort.images.batches import default_batch_size

    return default_batch_size(box)


def own_readers(stacks: Stacks) -> dict[str, Callable[[], Read]]:
    """Return what opens functions that read a range of the images as float32."""
    from importlib.metadata import version

    import mrcfile

    import fastsort as fs

    source = stacks.star if len(stacks.files) > 1 else stacks.files[0]
    pixels = stacks.box**2

    def runs(start: int, stop: int):
        """Yield stack and first section of each run of neighbours, and how many they are."""
        stack, section = stacks.stack_of[start:stop], stacks.section_of[start:stop]
        ends = np.flatnonzero((np.diff(stack) != 0) | (np.diff(section) != 1)) + 1
        for first, end in zip([0, *ends], [*ends, stop - start], strict=True):
            yield first, end, stack[first], section[first]

    def whole(parts: list[np.ndarray]) -> np.ndarray:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def fromfile(start: int, stop: int) -> np.ndarray:
        parts = []
        for first, end, stack, section in runs(start, stop):
            offset = HEADER_BYTES + int(section) * pixels * stacks.dtype.itemsize
            flat = np.fromfile(stacks.files[stack], stacks.dtype, (end - first) * pixels, offset=offset)
            parts.append(flat.reshape(-1, stacks.box, stacks.box).astype(np.float32, copy=False))
        return whole(parts)

    def one_stack_fromfile(start: int, stop: int) -> np.ndarray:
        offset = HEADER_BYTES + start * pixels * stacks.dtype.itemsize
        flat = np.fromfile(stacks.files[0], stacks.dtype, (stop - start) * pixels, offset=offset)
        return flat.reshape(-1, stacks.box, stacks.box).astype(np.float32, copy=False)

    def open_maps() -> Read:
        maps = [mrcfile.mmap(path, permissive=True).data for path in stacks.files]

        def mapped(start: int, stop: int) -> np.ndarray:
            return whole(
                [
                    np.array(maps[stack][section : section + end - first], np.float32)
                    for first, end, stack, section in runs(start, stop)
                ]
            )

        return mapped

    return {
        "fastsort": lambda: fs.open_particles(source).read,
        "numpy.fromfile": lambda: one_stack_fromfile if len(stacks.files) == 1 else fromfile,
        f"mrcfile {version('mrcfile')}, mmap": open_maps,
    }


def serve_passes(name: str, star: str, batch: int) -> None:
    """Be a process that reads all images with somebody else's reader whenever it is asked to."""
    answers, sys.stdout = sys.stdout, sys.stderr
    try:
        title, n, read = peer_reader(name, star)
        read(0, min(batch, n))
    except Exception as error:  # whatever it is, the others can still be timed
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=answers, flush=True)
        return
    print(f"ready {title}", file=answers, flush=True)
    for line in sys.stdin:
        cold, *files = line.rstrip("\n").split("\t")
        seconds = pass_seconds(lambda: read, n, batch, map(Path, files if cold == "cold" else []))
        print(seconds, file=answers, flush=True)


def peer_reader(name: str, star: str) -> tuple[str, int, Read]:
    from importlib.metadata import version

    if name == "aspire":
        from aspire.source import RelionSource

        # Other types would be kept as they are in the file.
        source = RelionSource(star, data_folder="/", dtype=np.float32)
        return (
            f"ASPIRE {version('aspire')}",
            source.n,
            lambda start, stop: source.images[start:stop].asnumpy(),
        )
    from cryodrgn.source import ImageSource

    images = ImageSource.from_file(star, lazy=True)
    return (
        f"cryoDRGN {version('cryodrgn')}",
        images.n,
        lambda start, stop: images.images(np.arange(start, stop)).float(),
    )


def start_peer(python: str, name: str, star: Path, batch: int) -> tuple[subprocess.Popen, str]:
    command = [python, __file__, "--peer", name, str(star), str(batch)]
    pipe = subprocess.PIPE
    peer = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    return peer, peer.stdout.readline().strip() or "it does not start"


def ask(peer: subprocess.Popen, cold: bool, files: Sequence[Path]) -> float:
    print("cold" if cold else "warm", *files, sep="\t", file=peer.stdin, flush=True)
    return float(peer.stdout.readline())


def stop_peer(peer: subprocess.Popen) -> None:
    peer.communicate()


def make_stacks(
    folder: Path, n: int, per_stack: int, box: int, dtype: type, shuffled: bool = False
) -> Stacks:
    """Write stacks of noise, or take those that are there, and a STAR file."""
    import mrcfile

    files = [folder / f"{np.dtype(dtype).name}_{i:04d}.mrcs" for i in range(-(-n // per_stack))]
    rng = np.random.default_rng(0)
    block = 100 * rng.standard_normal((min(BLOCK, n), box, box), dtype=np.float32)
    block = block.astype(dtype)
    for number, path in enumerate(files):
        if path.exists():
            continue
        count = min(per_stack, n - number * per_stack)
        with mrcfile.new(path, block[:1]) as first:
            first.set_image_stack()
            first.voxel_size = PIXEL_SIZE
            first.header.nz = count
        # Written, not mapped: pages of a map stay small in the page cache, and are read at half the speed.
        with open(path, "ab") as stack:
            stack.write(block[1:count].data)
            for start in range(len(block), count, len(block)):
                stack.write(block[: count - start].data)
    order = rng.permutation(n) if shuffled else np.arange(n)
    stack_of, section_of = order // per_stack, order % per_stack
    star = folder / f"{np.dtype(dtype).name}_{'shuffled' if shuffled else 'ordered'}.star"
    names = [
        f"{section + 1:06d}@{files[stack].resolve()} 1\n"
        for stack, section in zip(stack_of.tolist(), section_of.tolist(), strict=True)
    ]
    text = OPTICS.format(PIXEL_SIZE, box) + "_rlnImageName #1\n_rlnOpticsGroup #2\n" + "".join(names)
    star.write_text(text, encoding="utf-8")
    return Stacks(star, files, stack_of, section_of, box, block.dtype)


def ahead_table(folder: Path, options: argparse.Namespace) -> None:
    from tables import print_table

    import fastsort as fs
    from fastsort._crop import crop_operator

    n, batch = min(ON_MANY_STACKS, options.images), batch_size(BOX)
    operator = crop_operator(BOX, WORKING_SIZE)
    rows = []
    for order in ("in order", "shuffled"):
        stacks = make_stacks(folder, n, PER_STACK, BOX, np.float32, order == "shuffled")
        particles = fs.open_particles(stacks.star)
        images = particles.read(0, batch)
        for cold in (True, False):
            files = stacks.files if cold else []
            jobs = {
                "read": partial(pass_seconds, lambda read=particles.read: read, n, batch, files),
                "crop": partial(crop_seconds, Repeated(images, n), operator, 1, batch, []),
            }
            store = particles.store
            silent = replace(particles, store=Unannounced(store.stacks, store.stack_of, store.section_of))
            for workers in (1, 2):
                jobs[f"{workers}"] = partial(crop_seconds, silent, operator, workers, batch, files)
                jobs[f"{workers} told"] = partial(crop_seconds, particles, operator, workers, batch, files)
            seconds = seconds_told(jobs, COLD_RUNS if cold else options.runs)
            medians = {what: float(np.median(times)) for what, times in seconds.items()}
            for workers in (1, 2):
                both, told = medians[f"{workers}"], medians[f"{workers} told"]
                cells = (f"{s:.2f}" for s in (medians["read"], medians["crop"], both, told, both / told))
                rows.append((order, "cold" if cold else "warm", workers, *cells))
    print_table(
        f"A pass that reads and crops {n} images of {BOX} px, float32, {n // PER_STACK} stacks, without and "
        "with scattered images announced to the system two batches ahead (POSIX_FADV_WILLNEED); seconds "
        f"(median of {COLD_RUNS} cold, {options.runs} warm)",
        (
            "order of the STAR file",
            "page cache",
            "workers",
            "read alone, 1 worker",
            "crop alone, 1 worker",
            "read and crop, unannounced",
            "announced",
            "gain",
        ),
        rows,
    )


def crop_seconds(source, operator, workers: int, batch: int, files: Sequence[Path]) -> float:
    from speed import crop

    from fastsort.images.batches import map_batches

    drop_pages(files)
    begin = time.perf_counter()
    for _ in map_batches(crop, source, operator, batch_size=batch, n_jobs=workers):
        pass
    return time.perf_counter() - begin


@dataclass(frozen=True)
class Repeated:
    """As many images as wanted, none of them read."""

    images: np.ndarray
    n: int

    def __len__(self) -> int:
        return self.n

    def part(self, start: int, stop: int) -> Repeated:
        """Return a range alone."""
        return Repeated(self.images, stop - start)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return a range."""
        return self.images[: stop - start]


class Unannounced(StackImages):
    """Images of which the system is told nothing beforehand."""

    def announce(self) -> None:
        """Say nothing."""
        return


def star_table(folder: Path, options: argparse.Namespace) -> None:
    from importlib.metadata import version

    from tables import print_table, seconds_in_turn

    path = folder / "particles.star"
    write_particle_table(path, options.rows)
    rng = np.random.default_rng(1)
    columns = {
        APPENDED[0]: [f"{value:.4f}" for value in rng.standard_normal(options.rows)],
        APPENDED[1]: [f"{value:.4f}" for value in rng.random(options.rows)],
        APPENDED[2]: rng.choice(["ok", "ice", "two_particles"], options.rows).tolist(),
    }
    jobs = {
        "read": lambda: read_with_fastsort(path),
        "read, starfile": lambda: read_with_starfile(path),
        "written": lambda: write_with_fastsort(read, columns, folder / "out.star"),
        "written, starfile": lambda: write_with_starfile(frames, columns, folder / "peer.star"),
    }
    read, frames = read_with_fastsort(path), read_with_starfile(path)
    seconds = seconds_in_turn(jobs, min(options.runs, COLD_RUNS))
    medians = {what: float(np.median(times)) for what, times in seconds.items()}
    rows = [
        (
            what,
            f"{medians[ours]:.2f}",
            f"{min(seconds[ours]):.2f} to {max(seconds[ours]):.2f}",
            f"{medians[theirs]:.2f}",
            f"{medians[theirs] / medians[ours]:.1f}",
        )
        for what, ours, theirs in (
            ("read, with the columns that images need", "read", "read, starfile"),
            ("written with three more columns", "written", "written, starfile"),
        )
    ]
    print_table(
        f"A particle table of {options.rows} rows and {len(NUMBERS) + 4} columns, "
        f"{path.stat().st_size / 1e6:.0f} MB, page cache warm "
        f"(median of {min(options.runs, COLD_RUNS)}; lowest to highest)",
        ("what", "fastsort, seconds", "range", f"starfile {version('starfile')}, seconds", "times as fast"),
        rows,
    )


def write_particle_table(path: Path, n: int) -> None:
    """Write a table as RELION 3.1 does after a refinement."""
    rng = np.random.default_rng(0)
    labels = [*NUMBERS, "_rlnImageName", "_rlnMicrographName", "_rlnOpticsGroup", "_rlnGroupNumber"]
    form = (
        "%12.6f " * len(NUMBERS)
        + "%06d@Extract/job012/Movies/mic_%05d.mrcs MotionCorr/job002/Movies/mic_%05d.mrc "
    )
    form += "%12d %12d \n"
    with open(path, "w", encoding="utf-8") as file:
        file.write(OPTICS.format(PIXEL_SIZE, BOX))
        file.writelines(f"{label} #{i}\n" for i, label in enumerate(labels, 1))
        for first in range(0, n, PER_STACK):
            count = min(PER_STACK, n - first)
            stack = first // PER_STACK
            numbers = (rng.random((count, len(NUMBERS))) * list(NUMBERS.values())).tolist()
            file.writelines(form % (*row, i, stack, stack, 1, stack + 1) for i, row in enumerate(numbers, 1))
        file.write("\n")


def read_with_fastsort(path: Path):
    from fastsort.particles.star import read_star

    star = read_star(path)
    block = star.particles_block
    for label in ("_rlnImageName", "_rlnMicrographName"):
        block.column(label)
    for label in ("_rlnOpticsGroup", "_rlnDefocusU", "_rlnDefocusV", "_rlnDefocusAngle", "_rlnPhaseShift"):
        block.floats(label)
    return star


def read_with_starfile(path: Path):
    import starfile

    return starfile.read(path, always_dict=True)


def write_with_fastsort(star, columns: dict[str, list[str]], path: Path) -> None:
    from fastsort.particles.star import subset_bytes

    with open(path, "wb") as file:
        file.writelines(subset_bytes(star, np.ones(star.particles_block.n_rows, bool), columns))


def write_with_starfile(frames, columns: dict[str, list[str]], path: Path) -> None:
    import starfile

    added = {label.removeprefix("_"): values for label, values in columns.items()}
    starfile.write({**frames, "particles": frames["particles"].assign(**added)}, path)


if __name__ == "__main__":
    main()
