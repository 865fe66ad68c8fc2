"""How good, how fast and how frugal is the picker, in real and in simulated micrographs?

python benchmarks/picking.py [--data FOLDER] [--only real simulated speed memory picture] [--quick]

A pick is right when it takes a particle: picks go in order of their score, the best first, and each takes the
nearest particle that is still free, within half a diameter. "Best cut" is the threshold with the highest F1,
which nobody knows who has no truth; "own cut" is the picker's. One worker. The picture is only drawn when
asked for. With --quick, simulated noise is white only. scikit-image is compared where it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mrcfile
import numpy as np
import starfile
from scipy.spatial.distance import cdist
from tables import DATA, ROOT, print_machine, print_table, seconds_in_turn

import fastsort as fs
from fastsort.images import blob_maxima
from fastsort.particles.mrc import read_header
from fastsort.particles.reduced import read_reduced
from fastsort.picking.look import look_at
from fastsort.simulate import simulate_micrographs
from fastsort.simulate.micrographs import MASK_BINNING

HUMAN_NEAR = 16.0  # pixels within which labels of the apoferritin picks were taken
DOG_WIDTH, DOG_APART = 20, 0.65  # pixels of a reduced particle; diameters between two blobs
SKIMAGE_THRESHOLDS = np.geomspace(0.02, 2, 16)  # in deviations of the micrograph
VOLUMES = {
    "EF-G": ("efg_64px_2.5A.mrc", {"pixel_size": 2.5}),
    "sheath ring": ("sheath_ring_64px_4.4A.mrc", {"pixel_size": 4.0}),
    "70S ribosome": ("ribosome70s_65px.mrc", {"pixel_size": 4.0, "diameter": 250}),
}
CONTAMINATED, SIDE, SNR, SEED = ((0.2, 4), (0.0, 2)), 2048, 1 / 20, 11
SPEED_SIDE, SPEED_DIAMETER, SPEED_SNR, RUNS = 4096, 160, 1 / 10, 3
MEMORY_SIDE, COPIES = 1024, (50, 200)
REAL_COLUMNS = (
    "set|within, px|picker|cut|picks|precision|recall|F1|diameter, A|learning, s a micrograph|"
    "picking, s a micrograph"
)
SIMULATED_COLUMNS = (
    "particle|noise|contamination, micrographs|particles|F1, own cut|F1, best cut|picks on contamination|"
    "diameter, found / true|error of hits / diameter, median|called contaminated|truly contaminated|"
    "s a micrograph"
)
PICTURE = ROOT / "benchmarks" / "picks.png"


class RealSet(NamedTuple):
    """Micrographs whose particles are known, and files of other pickers."""

    name: str
    folder: Path
    diameter: float
    pixel_size: float
    truth: str
    pickers: dict[str, str]
    near: tuple[float, ...]

    @property
    def files(self) -> list[Path]:
        """Return the micrographs."""
        return sorted(self.folder.glob("*.mrc"))

    def read(self, suffix: str) -> list[np.ndarray]:
        """Return x, y and score of what a file for each micrograph holds, as columns."""
        return [read_star(path.with_name(f"{path.stem}_{suffix}.star")) for path in self.files]


class Ranked(NamedTuple):
    """Picks of all micrographs, the best first, which of them hit, and how far from the particle."""

    score: np.ndarray
    hit: np.ndarray
    error: np.ndarray
    n_truth: int

    def rates(self, n: int) -> tuple[float, float, float]:
        """Return precision, recall and F1 of the first n picks."""
        hits = int(self.hit[:n].sum())
        return hits / max(n, 1), hits / max(self.n_truth, 1), 2 * hits / max(n + self.n_truth, 1)

    def best(self) -> int:
        """Return the number of picks with the highest F1 that a threshold can choose."""
        ends = self.ends()
        f1 = 2 * np.cumsum(self.hit)[ends - 1] / (ends + self.n_truth)
        return int(ends[f1.argmax()]) if len(ends) else 0

    def ends(self) -> np.ndarray:
        """Return the numbers of picks that thresholds choose."""
        return np.flatnonzero(np.diff(self.score, append=-np.inf)) + 1


def main() -> None:
    parts = {"real": real, "simulated": simulated, "speed": speed, "memory": memory, "picture": picture}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="+", choices=parts, default=[*parts][:-1])
    parser.add_argument("--quick", action="store_true", help="white noise only")
    parser.add_argument("--child", nargs=2, metavar=("PATTERN", "DIAMETER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure_child(options.child[0], float(options.child[1]))
        return
    print_machine()
    for name in options.only:
        parts[name](options)


# Picks against the truth.


def ranked(picks: list[np.ndarray], truth: list[np.ndarray], near: float) -> Ranked:
    """Match picks (x, y, score) with particles (x, y), micrograph by micrograph, one to one."""
    parts = []
    for some, known in zip(picks, truth, strict=True):
        some = some[np.argsort(-some[:, 2], kind="stable")]
        distance = cdist(some[:, :2], known[:, :2])
        error = np.full(len(some), np.nan)
        for row in range(len(some) if len(known) else 0):
            nearest = distance[row].argmin()
            if distance[row, nearest] <= near:
                error[row] = distance[row, nearest]
                distance[:, nearest] = np.inf
        parts.append(np.column_stack([some[:, 2], error]))
    score, error = np.concatenate(parts).T
    order = np.argsort(-score, kind="stable")
    error = error[order]
    return Ranked(score[order], np.isfinite(error), error, sum(map(len, truth)))


def picks_of(result: fs.PickResult) -> list[np.ndarray]:
    """Return x, y and probability of what may be a particle, for each micrograph."""
    columns = np.column_stack([result.x, result.y, result.probability])
    likely = result.probability > 0
    return [columns[(result.micrograph == number) & likely] for number in range(len(result.names))]


def read_star(path: Path) -> np.ndarray:
    table = starfile.read(path)
    columns = table[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy(float)
    scores = table.get("rlnAutopickFigureOfMerit", np.zeros(len(table)))
    return np.column_stack([columns, np.asarray(scores, float)])


# Real micrographs.


def real_sets(data: Path) -> Iterator[RealSet]:
    pickers, folder = {"Topaz": "topaz", "crYOLO": "cryolo"}, data / "real"
    ferritin = folder / "micrographs", 128, 1.5, "human", {"Topaz": "topaz"}, (128 / 1.5 / 2, HUMAN_NEAR)
    galactosidase = folder / "micrographs_betagal", 180, 3.54, "truth", pickers, (180 / 3.54 / 2,)
    for name, known in (("apoferritin", ferritin), ("beta-galactosidase", galactosidase)):
        found = RealSet(name, *known)
        if found.files:
            yield found
        else:
            print(f"\n{found.name} is left out: no micrographs in {found.folder}.")


def real(options: argparse.Namespace) -> None:
    rows = []
    for of in real_sets(options.data):
        truth = of.read(of.truth)
        pick = partial(fs.pick_particles, of.files, pixel_size=of.pixel_size, n_jobs=1)
        pick(diameter=of.diameter)
        found: list[tuple[str, list[np.ndarray], int | None, tuple]] = []
        for what, diameter in (("nothing known", None), ("diameter given", of.diameter)):
            result = pick(diameter=diameter)
            seconds = (result.seconds[step] / len(of.files) for step in ("learn", "pick"))
            told = (f"{result.diameter:.0f}", *(f"{s:.2f}" for s in seconds))
            found.append((f"fastsort, {what}", picks_of(result), int(result.keep.sum()), told))
        for what, suffix in of.pickers.items():
            found.append((f"{what}, its file", of.read(suffix), -1, ("", "", "")))
        begin = time.perf_counter()
        blobs = blobs_of(of)
        told = ("", "", f"{(time.perf_counter() - begin) / len(of.files):.2f}")
        found.append(("difference of Gaussians", blobs, None, told))
        for near in of.near:
            for what, picks, own, told in found:
                all_picks = ranked(picks, truth, near)
                numbers = {"best": all_picks.best()}
                if own is not None:
                    numbers = {
                        "own" if own >= 0 else "all": own if own >= 0 else len(all_picks.hit),
                        **numbers,
                    }
                for cut, n in numbers.items():
                    rates = (f"{rate:.3f}" for rate in all_picks.rates(n))
                    rows.append((of.name, f"{near:.1f}", what, cut, n, *rates, *told))
            rows += skimage_rows(of, truth, near)
    print_table(
        "Real micrographs: picks against known particles, one to one, best score first",
        REAL_COLUMNS.split("|"),
        rows,
    )


def reduced_for_blobs(of: RealSet) -> Iterator[tuple[np.ndarray, int, float]]:
    """Yield reduced micrographs, how much they are reduced, and the particle's width in them."""
    across = of.diameter / of.pixel_size
    binning = max(1, round(across / DOG_WIDTH))
    for path in of.files:
        yield read_reduced(read_header(path), binning), binning, across / binning


def blobs_of(of: RealSet) -> list[np.ndarray]:
    picks = []
    for image, binning, width in reduced_for_blobs(of):
        blobs = blob_maxima(image, width / 2, DOG_APART * width, bright=False)
        x, y = ((side + 0.5) * binning - 0.5 for side in (blobs.column, blobs.row))
        picks.append(np.column_stack([x, y, blobs.height]))
    return picks


def skimage_rows(of: RealSet, truth: list[np.ndarray], near: float) -> list[tuple]:
    """Score scikit-image's blobs, at the best of some thresholds; it tells no scores."""
    try:
        from skimage.feature import blob_dog
    except ImportError:
        print("\nscikit-image is left out: it is not installed.")
        return []
    results, begin = [], time.perf_counter()
    for threshold in SKIMAGE_THRESHOLDS:
        picks = []
        for image, binning, width in reduced_for_blobs(of):
            bright = (np.median(image) - image) / image.std()
            sigma = width / 2 / np.sqrt(2)
            blobs = blob_dog(bright, 0.7 * sigma, 1.2 * sigma, threshold=threshold, overlap=1 - DOG_APART)
            places = (blobs[:, 1::-1] + 0.5) * binning - 0.5
            # The highest come first.
            picks.append(np.column_stack([places, -np.arange(len(places))]))
        some = ranked(picks, truth, near)
        results.append((some.rates(len(some.hit)), len(some.hit)))
    seconds = (time.perf_counter() - begin) / len(SKIMAGE_THRESHOLDS) / len(of.files)
    rates, n = max(results, key=lambda result: result[0][2])
    told = (*(f"{rate:.3f}" for rate in rates), "", "", f"{seconds:.2f}")
    return [(of.name, f"{near:.1f}", "scikit-image, blob_dog", "best", n, *told)]


# Simulated micrographs.


def write_image(path: Path, image: np.ndarray, pixel_size: float) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(image)
        file.voxel_size = pixel_size
    return path


def simulated(options: argparse.Namespace) -> None:
    print_table(
        f"Simulated micrographs of {SIDE} px, SNR 1/{1 / SNR:.0f}, seed {SEED}; nothing is known",
        SIMULATED_COLUMNS.split("|"),
        (
            (
                name,
                noise,
                f"{contamination:g}, {n}",
                *simulated_row(options.data, name, noise, contamination, n),
            )
            for name in present(options.data)
            for noise in (("white",) if options.quick else ("white", "decaying"))
            for contamination, n in CONTAMINATED
        ),
    )


def present(data: Path) -> list[str]:
    """Return particles whose density is there, and say which are not."""
    there = []
    for name, (file, _) in VOLUMES.items():
        path = data / "volumes" / file
        if path.exists():
            there.append(name)
        else:
            print(f"\n{name} is left out: no {path}.")
    return there


def picked(data: Path, name: str, n: int, side: int, **known) -> tuple[list, fs.PickResult]:
    """Return simulated micrographs, and what was found in them."""
    file, sizes = VOLUMES[name]
    volume = data / "volumes" / file
    made = list(simulate_micrographs(n, side, snr=SNR, seed=SEED, volume=volume, **sizes, **known))
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            write_image(Path(folder, f"{number}.mrc"), one.image, one.pixel_size)
            for number, one in enumerate(made)
        ]
        return made, fs.pick_particles(paths, n_jobs=1)


def simulated_row(data: Path, name: str, noise: str, contamination: float, n: int) -> tuple:
    made, result = picked(data, name, n, SIDE, noise=noise, contamination=contamination)
    pixel_size = made[0].pixel_size
    true = made[0].diameter
    truth = [micrograph.centre[:, ::-1] for micrograph in made]
    picks = ranked(picks_of(result), truth, true / pixel_size / 2)
    n_kept = int(result.keep.sum())
    on_mask = []
    for number, micrograph in enumerate(made):
        kept = result.keep & (result.micrograph == number)
        row, column = (
            np.clip(np.rint(side[kept]).astype(int) // MASK_BINNING, 0, most - 1)
            for side, most in zip((result.y, result.x), micrograph.mask.shape, strict=True)
        )
        on_mask.append(micrograph.mask[row, column])
    errors = picks.error[:n_kept][picks.hit[:n_kept]] * pixel_size / true
    return (
        picks.n_truth,
        f"{picks.rates(n_kept)[2]:.3f}",
        f"{picks.rates(picks.best())[2]:.3f}",
        f"{np.concatenate(on_mask).mean() if n_kept else 0:.3f}",
        f"{result.diameter / true:.2f}",
        f"{np.median(errors) if len(errors) else np.nan:.3f}",
        f"{result.contaminated.mean():.3f}",
        f"{np.mean([micrograph.mask.mean() for micrograph in made]):.3f}",
        f"{result.seconds['total'] / n:.2f}",
    )


# Time and memory.


def speed(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = simulate_micrographs(2, SPEED_SIDE, snr=SPEED_SNR, diameter=SPEED_DIAMETER, pixel_size=1.0)
        first, other = (
            write_image(Path(folder, f"{number}.mrc"), micrograph.image, 1.0)
            for number, micrograph in enumerate(made)
        )
        pick = partial(fs.pick_particles, n_jobs=1)
        earlier = pick(first, diameter=SPEED_DIAMETER)
        if earlier.learned is None:
            print("\nspeed is left out: nothing was learned.")
            return
        binning, header = earlier.learned.template.binning, read_header(other)
        jobs = {
            "learning and picking": lambda: pick(first, diameter=SPEED_DIAMETER),
            "picking another, learned before": lambda: pick(other, earlier=earlier),
            f"reading and reducing it {binning} times": lambda: read_reduced(header, binning),
        }
        seconds_in_turn(jobs, 1)
        medians = {what: float(np.median(times)) for what, times in seconds_in_turn(jobs, RUNS).items()}
    reading = medians[[*jobs][-1]]
    print_table(
        f"One micrograph of {SPEED_SIDE} px, float32, diameter of {SPEED_DIAMETER} px given, one worker, "
        f"page cache warm (median of {RUNS})",
        ("what", "seconds", "times reading"),
        ((what, f"{median:.3f}", f"{median / reading:.1f}") for what, median in medians.items()),
    )


def memory(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        easy = {"snr": 0.2, "noise": "white", "contamination": 0, "diameter": 60, "pixel_size": 2.0}
        (micrograph,) = simulate_micrographs(1, MEMORY_SIDE, **easy)
        path = write_image(Path(folder, "micrograph.mrc"), micrograph.image, 2.0)
        measured = []
        # The first only compiles.
        for n in (1, *COPIES):
            links = Path(folder, f"{n}")
            links.mkdir()
            for number in range(n):
                # Not symbolic links: those count as one micrograph given twice.
                os.link(path, links / f"{number:04d}.mrc")
            command = [sys.executable, __file__, "--child", str(links / "*.mrc"), "60"]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured.append(json.loads(answer.splitlines()[-1]))
    each = f"{(measured[2][0] - measured[1][0]) / (COPIES[1] - COPIES[0]):.3f}"
    print_table(
        f"Copies of one micrograph of {MEMORY_SIDE} px, float32, one worker",
        ("micrographs", "picks", "most memory, MB", "seconds", "MB for each more"),
        (
            (n, picks, f"{peak:.0f}", f"{seconds:.1f}", more)
            for n, (peak, seconds, picks), more in zip(COPIES, measured[1:], ("", each), strict=True)
        ),
    )


def measure_child(pattern: str, diameter: float) -> None:
    begin = time.perf_counter()
    result = fs.pick_particles(pattern, diameter=diameter, n_jobs=1)
    seconds = time.perf_counter() - begin
    # Not ru_maxrss: that begins with what the parent had when it started this process.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps((int(peak) * 1024 / 1e6, seconds, int(result.keep.sum()))))


# The picture.


def picture(options: argparse.Namespace) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((16, 8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_curves(left, options.data)
    draw_micrograph(right, options.data)
    figure.savefig(PICTURE, format="png")
    print(f"\nWrote {PICTURE}.")


def draw_curves(axes, data: Path) -> None:
    for of, colour in zip(real_sets(data), ("tab:blue", "tab:orange"), strict=False):
        truth = of.read(of.truth)
        result = fs.pick_particles(of.files, pixel_size=of.pixel_size, n_jobs=1)
        picks = ranked(picks_of(result), truth, of.near[0])
        precision, recall, _ = np.array([picks.rates(n) for n in picks.ends()]).T
        axes.plot(recall, precision, color=colour, label=f"{of.name}: fastsort, nothing known")
        precision, recall, _ = picks.rates(int(result.keep.sum()))
        axes.plot(recall, precision, "o", color=colour, ms=10, label="its own cut")
        for (what, suffix), marker in zip(of.pickers.items(), ("s", "^"), strict=False):
            others = ranked(of.read(suffix), truth, of.near[0])
            precision, recall, _ = others.rates(others.best())
            axes.plot(recall, precision, marker, color=colour, ms=10, mfc="none", label=f"{what}, best cut")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title("Real micrographs, hits within half a diameter")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")


def draw_micrograph(axes, data: Path) -> None:
    from matplotlib.patches import Circle

    names = present(data)
    if not names:
        return
    made, result = picked(data, names[-1], 4, SIDE, noise="white", contamination=0.2)
    if result.learned is None:
        print("\nNothing was found in the micrograph of the picture.")
        return
    binning = result.learned.template.binning
    with tempfile.TemporaryDirectory() as folder:
        path = write_image(Path(folder, "shown.mrc"), made[-1].image, made[-1].pixel_size)
        seen = look_at(read_reduced(read_header(path), binning), result.learned)
        pixels, bad = seen.surface.pixels, seen.bad
    low, high = np.percentile(pixels, (1, 99))
    height, width = pixels.shape
    extent = (-0.5, width * binning - 0.5, height * binning - 0.5, -0.5)
    axes.imshow(pixels, cmap="gray", vmin=low, vmax=high, extent=extent)
    x, y = ((np.arange(side) + 0.5) * binning - 0.5 for side in (width, height))
    axes.contour(x, y, bad, [0.5], colors="tab:red", linewidths=1.5)
    kept = result.keep & (result.micrograph == len(result.names) - 1)
    for centre in zip(result.x[kept], result.y[kept], strict=True):
        axes.add_patch(Circle(centre, result.diameter_px / 2, fill=False, color="tab:cyan", lw=1))
    axes.set_title(
        f"{names[-1]}, simulated, SNR 1/{1 / SNR:.0f}: picks, and what is called contaminated (red)"
    )
    axes.set_axis_off()


if __name__ == "__main__":
    main()
