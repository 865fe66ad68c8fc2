"""Are the prolate basis and the mixture of subspaces right, fast and small, and how well do they sort?

python benchmarks/subspaces.py [--quick] [--data FOLDER] [--work FOLDER] [table ...]

The tables are basis, closed-form, iteration, peers, memory, bits, paper and denoise; all of them without any
name. The memory table makes a file of 2 GB in the work folder and removes it. Simulated sets: the mean over
the seeds, and the lowest in brackets.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import joblib
import numpy as np
import scipy.fft
import scipy.linalg
import scipy.signal
from tables import DATA, print_machine, print_table, seconds_in_turn
from threadpoolctl import threadpool_limits

import fastsort as fs
from fastsort.decide.votes import METHODS
from fastsort.subspaces.mixture import Parameters, maximize, orthogonal
from fastsort.subspaces.pswf import radial_modes
from fastsort.subspaces.rows import open_rows

SEEDS = (0, 1, 2)
VOLUME = "ribosome70s_65px.mrc"
BOX = 71
# At 0.5 the basis of 71 px has 3025 functions, at this one 753; beyond it the particles have next to nothing.
BANDLIMIT = 0.25
N_TOTAL = 60
PLAIN = {"robust": False, "discard": 0}
# Relative difference of log-likelihoods that counts as none.
SAME = 1e-4
# Table 1 of the paper: particles, outliers, noise in percent.
PAPER = {
    "raw": (83.33, 8.33, 8.33),
    "1 subspace": (87.89, 3.38, 8.73),
    "2 subspaces": (89.25, 3.95, 6.8),
    "3 subspaces": (91.04, 2.9, 6.06),
    "steerable PCA": (90.1, 9.6, 0.84),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--quick", action="store_true", help="one seed, fewer images, fewer runs")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "JSON"), help=argparse.SUPPRESS)
    parser.add_argument("tables", nargs="*", metavar="table", help=", ".join(TABLES))
    options = parser.parse_args()
    if options.measure:
        what, arguments = options.measure
        print(json.dumps(MEASURES[what](**json.loads(arguments))))
        return
    unknown = sorted(set(options.tables) - set(TABLES))
    if unknown:
        parser.error(f"no table named {', '.join(unknown)}: there are {', '.join(TABLES)}.")
    print_machine()
    for name in options.tables or TABLES:
        TABLES[name](options)


def measured_apart(what: str, **arguments: object) -> dict:
    """Call one of the measures in a fresh process."""
    command = [sys.executable, __file__, "--measure", what, json.dumps(arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def spiked(n: int, length: int, n_components: int, seed: int = 0) -> np.ndarray:
    """Float32 rows off the origin, with axes of variance 60 down to 6 in white noise of variance 1."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((length, n_components)))[0]
    loadings = (axes * np.sqrt(np.linspace(60, 6, n_components))).T.astype(np.float32)
    rows = rng.standard_normal((n, length), dtype=np.float32)
    rows += 5 * rng.standard_normal(length, dtype=np.float32)
    return rows + rng.standard_normal((n, n_components), dtype=np.float32) @ loadings


def shares(values: list[float], digits: int = 2) -> str:
    low = f" ({min(values):.{digits}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{low}"


# The basis.


def basis_table(options: argparse.Namespace) -> None:
    print_table(
        "Prolate basis, band limit 0.5: errors wanted below 1e-8 (transform, by quadrature) and 1e-5 (grid), "
        "71 px in less than 2 s; seconds: median of fresh processes, without imports",
        ("box", "functions", "transform", "orthonormality on the grid", "seconds", "range"),
        basis_rows(1 if options.quick else 5),
    )


def basis_rows(runs: int) -> Iterator[tuple]:
    for box in (48, 71):
        seconds = [measured_apart("basis", box=box)["seconds"] for _ in range(runs)]
        functions = fs.pswf_basis(box).functions
        flat = functions.reshape(len(functions), -1).astype(np.float64)
        apart = np.abs(flat @ flat.T - np.eye(len(flat))).max()
        yield (
            box,
            len(functions),
            f"{transform_error(2 * np.pi * 0.5 * (box // 2)):.1e}",
            f"{apart:.1e}",
            f"{np.median(seconds):.2f}",
            f"{min(seconds):.2f} to {max(seconds):.2f}",
        )


def measure_basis(box: int) -> dict:
    begin = time.perf_counter()
    fs.pswf_basis(box)
    return {"seconds": time.perf_counter() - begin}


def transform_error(bandwidth: float) -> float:
    """Largest difference between the finite Fourier transform of a function and its multiple."""
    nodes, weights = np.polynomial.legendre.leggauss(int(bandwidth) + 50)
    radii, weights = (nodes + 1) / 2, weights / 2
    n_angles = int(4 * bandwidth) + 80
    theta = 2 * np.pi * np.arange(n_angles) / n_angles
    y, x = np.random.default_rng(0).uniform(-0.7, 0.7, (2, 9))
    phase = np.multiply.outer(x, np.outer(radii, np.cos(theta)))
    phase += np.multiply.outer(y, np.outer(radii, np.sin(theta)))
    kernel = np.exp(1j * bandwidth * phase).reshape(-1, n_angles)
    largest = 0.0
    for mode in radial_modes(bandwidth, 1.0):
        m = mode.angular
        weighted = mode.evaluate(radii) * weights * radii
        profiles = mode.evaluate(np.hypot(x, y))
        norm = math.sqrt(np.pi if m else 2 * np.pi)
        for wave in (np.cos, np.sin)[: m + 1]:
            around = (kernel @ wave(m * theta)).reshape(len(x), -1) * (2 * np.pi / n_angles / norm)
            expected = (2 * np.pi * 1j**m * mode.eigenvalues)[:, None] * profiles
            expected = expected * wave(m * np.arctan2(y, x)) / norm
            largest = max(largest, float(np.abs(weighted @ around.T - expected).max()))
    return largest


# One subspace.


def closed_form_table(options: argparse.Namespace) -> None:
    print_table(
        "One subspace against Tipping and Bishop's closed form, 5,000 x 300, K = 20, one worker; wanted: "
        "log-likelihood to 1e-4 of itself, angle 0.5 degrees",
        ("tolerance", "log-likelihood", "largest angle (degrees)", "iterations", "seconds"),
        closed_form_rows(3 if options.quick else 9),
    )


def closed_form_rows(runs: int) -> Iterator[tuple]:
    rows = spiked(5000, 300, 20)
    axes, best = closed_form(rows, 20)
    for what, settings in (
        ("1e-5 (default)", {}),
        ("1e-7", {"tolerance": 1e-7}),
        ("0, 60 iterations", {"tolerance": 0, "max_iterations": 60}),
    ):
        model = fs.fit_subspaces(rows, 1, 20, n_jobs=1, **PLAIN, **settings)
        found = fs.subspace_scores(rows, model).log_likelihood.mean()
        angle = np.rad2deg(scipy.linalg.subspace_angles(model.loadings[0], axes).max())
        job = {"fit": lambda s=settings: fs.fit_subspaces(rows, 1, 20, n_jobs=1, **PLAIN, **s)}
        seconds = np.median(seconds_in_turn(job, runs)["fit"])
        n_iterations = len(model.trace.log_likelihood)
        yield what, f"{(found - best) / abs(best):.1e}", f"{angle:.3f}", n_iterations, f"{seconds:.3f}"


def closed_form(rows: np.ndarray, n_components: int) -> tuple[np.ndarray, float]:
    """Principal axes (L, K), and the highest mean log-likelihood that one subspace can have."""
    values, vectors = np.linalg.eigh(np.cov(rows.T.astype(np.float64), bias=True))
    return vectors[:, ::-1][:, :n_components], mean_log_likelihood(values[::-1], n_components)


def mean_log_likelihood(variances: np.ndarray, n_components: int) -> float:
    """Of images with these variances along K axes and, in any split, along the others."""
    along, left = variances[:n_components], variances[n_components:]
    log_determinant = np.log(along).sum() + len(left) * math.log(left.mean())
    return -0.5 * (len(variances) * (math.log(2 * math.pi) + 1) + float(log_determinant))


def subspace_log_likelihood(rows: np.ndarray, axes: np.ndarray) -> float:
    """The highest mean log-likelihood on a given subspace."""
    orthonormal = np.linalg.qr(axes)[0]
    centred = rows - rows.mean(axis=0, dtype=np.float64)
    along = np.linalg.eigvalsh(np.cov((centred @ orthonormal).T, bias=True))
    n_left = rows.shape[1] - len(along)
    left = (np.square(centred).sum() / len(rows) - along.sum()) / n_left
    return mean_log_likelihood(np.concatenate([along, np.full(n_left, left)]), len(along))


# One iteration.


def iteration_table(options: argparse.Namespace) -> None:
    print_table(
        "One iteration of EM, 50,000 x 750 in float32, one worker, BLAS one thread; the two products are Y C "
        "and Y^T X on the same batches; wanted: at most 1.5 times those",
        ("M", "K", "iteration (s)", "range", "two products (s)", "range", "ratio", "range of ratios"),
        iteration_rows(3 if options.quick else 9),
    )


def iteration_rows(runs: int) -> Iterator[tuple]:
    data = spiked(50_000, 750, N_TOTAL)
    rows, energy = open_rows(data, 1)
    finite = np.isfinite(energy)
    for n_subspaces in (1, 3):
        n_components = N_TOTAL // n_subspaces
        rng = np.random.default_rng(1)
        loadings = rng.standard_normal((n_subspaces, 750, n_components)) / math.sqrt(n_components)
        weights, means = np.full(n_subspaces, 1 / n_subspaces), np.zeros((n_subspaces, 750))
        model = orthogonal(Parameters(weights, means, loadings, 0.5))
        columns = np.concatenate(list(loadings), axis=1).astype(np.float32)
        jobs = {
            "iteration": lambda model=model: maximize(rows, finite, model, 1),
            "products": lambda columns=columns: two_products(data, columns, rows.batch_size),
        }
        with threadpool_limits(limits=1, user_api="blas"):
            seconds_in_turn(jobs, 1)
            seconds = seconds_in_turn(jobs, runs)
        ratios = np.array(seconds["iteration"]) / seconds["products"]
        cells = []
        for times in seconds.values():
            cells += [f"{np.median(times):.3f}", f"{min(times):.3f} to {max(times):.3f}"]
        yield (
            n_subspaces,
            n_components,
            *cells,
            f"{np.median(ratios):.2f}",
            f"{ratios.min():.2f} to {ratios.max():.2f}",
        )


def two_products(rows: np.ndarray, columns: np.ndarray, batch_size: int) -> None:
    for start in range(0, len(rows), batch_size):
        block = rows[start : start + batch_size]
        block.T @ (block @ columns)


# Other programs.


def peers_table(options: argparse.Namespace) -> None:
    print_table(
        "Time to the log-likelihood of the closed form, float32; fastsort with the fewest iterations that "
        "come within 1e-4 of it, the others as they stop by themselves. Threads: of BLAS, and fastsort's "
        "workers. Log-likelihood: best one on the subspace found, less the closed form, in parts of it",
        (
            "rows",
            "L",
            "K",
            "threads",
            "what",
            "log-likelihood",
            "fit (s)",
            "takes, times fastsort's fit",
            "fit and scores (s)",
            "takes, times fastsort's",
        ),
        peers_rows(3 if options.quick else 9),
    )


def peers_rows(runs: int) -> Iterator[tuple]:
    for n, length, n_components, everyone in ((5000, 300, 20, True), (50_000, 500, 40, False)):
        rows = spiked(n, length, n_components)
        best = closed_form(rows, n_components)[1]
        n_iterations = fewest_iterations(rows, n_components, best)
        for threads in (1, 2):
            peers = [
                fastsort_peer(rows, n_components, n_iterations, threads),
                scikit_learn_peer(rows, n_components),
            ]
            if everyone:
                others = (ppca_peer(rows, n_components), pyppca_peer(rows, n_components))
                peers += [other for other in others if other]
            with threadpool_limits(limits=threads, user_api="blas"):
                seconds = {name: time_peer(fit, score, runs) for name, fit, score, _ in peers}
                shortfalls = [shortfall(fit()) for _, fit, _, shortfall in peers]
            own = next(iter(seconds.values()))
            for (name, times), difference in zip(seconds.items(), shortfalls, strict=True):
                cells = []
                for time_taken, of_fastsort in zip(times, own, strict=True):
                    known = time_taken is not None
                    cells += [
                        f"{time_taken:.3f}" if known else "",
                        f"{time_taken / of_fastsort:.2f}" if known else "",
                    ]
                yield f"{n:,}", length, n_components, threads, name, f"{difference:.1e}", *cells


def fewest_iterations(rows: np.ndarray, n_components: int, best: float) -> int:
    for n_iterations in range(1, 100):
        model = fs.fit_subspaces(rows, 1, n_components, max_iterations=n_iterations, tolerance=0, **PLAIN)
        found = fs.subspace_scores(rows, model).log_likelihood.mean()
        if best - found <= SAME * abs(best):
            return n_iterations
    raise RuntimeError("the log-likelihood of the closed form was not reached in 100 iterations.")


def time_peer(
    fit: Callable[[], object], score: Callable[[object], object] | None, runs: int
) -> tuple[float, float | None]:
    """Median seconds of the fit, and of fit and scores."""
    fit()
    fits, both = [], []
    for _ in range(runs):
        begin = time.perf_counter()
        model = fit()
        fits.append(time.perf_counter() - begin)
        if score:
            score(model)
            both.append(time.perf_counter() - begin)
    return float(np.median(fits)), float(np.median(both)) if both else None


# A peer is a name, how it fits, how it scores its model, and how far its subspace is from the best.
Peer = tuple[str, Callable[[], object], Callable[[object], object] | None, Callable[[object], float]]


def shortfall(rows: np.ndarray, axes: np.ndarray) -> float:
    best = closed_form(rows, axes.shape[1])[1]
    return (subspace_log_likelihood(rows, axes) - best) / abs(best)


def fastsort_peer(rows: np.ndarray, n_components: int, n_iterations: int, n_jobs: int) -> Peer:
    settings = {"max_iterations": n_iterations, "tolerance": 0, "n_jobs": n_jobs, **PLAIN}
    return (
        f"fastsort, {n_iterations} iteration{'s' if n_iterations > 1 else ''}",
        lambda: fs.fit_subspaces(rows, 1, n_components, **settings),
        lambda model: fs.subspace_scores(rows, model, n_jobs=n_jobs),
        lambda model: shortfall(rows, model.loadings[0]),
    )


def scikit_learn_peer(rows: np.ndarray, n_components: int) -> Peer:
    from sklearn.decomposition import PCA

    return (
        "scikit-learn PCA",
        lambda: PCA(n_components=n_components).fit(rows),
        lambda model: model.score_samples(rows),
        lambda model: shortfall(rows, model.components_.T),
    )


def ppca_peer(rows: np.ndarray, n_components: int) -> Peer | None:
    try:
        from ppca import PPCA
    except ImportError:
        print("(ppca is not installed: left out)", file=sys.stderr)
        return None

    def fit() -> object:
        # It draws from numpy's global generator.
        np.random.seed(0)  # noqa: NPY002
        model = PPCA()
        model.fit(rows, d=n_components)
        return model

    # It divides every coefficient by its standard deviation first.
    return f"ppca {version('ppca')}", fit, None, lambda model: shortfall(model.data, model.C)


def pyppca_peer(rows: np.ndarray, n_components: int) -> Peer | None:
    try:
        import pyppca
    except ImportError:
        print("(pyppca is not installed: left out)", file=sys.stderr)
        return None

    def fit() -> object:
        np.random.seed(0)  # noqa: NPY002
        return pyppca.ppca(rows, n_components, False)

    return f"pyppca {version('pyppca')}", fit, None, lambda found: shortfall(rows, found[0].real)


# Memory.


def memory_table(options: argparse.Namespace) -> None:
    n = 200_000 if options.quick else 1_000_000
    print_table(
        f"Peak resident memory of a fresh process, {n:,} x 500 in float32 as a memory map "
        f"({2e-3 * n:.0f} MB); wanted: less than 1000 MB",
        ("fit_subspaces", "workers", "M", "K", "iterations", "MB", "seconds"),
        memory_rows(n, options.work),
    )


def memory_rows(n: int, work: Path) -> Iterator[tuple]:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        path = Path(folder) / "coefficients.npy"
        write_rows(path, n, 500)
        fixed = {"n_subspaces": 2, "n_components": 20, "max_iterations": 8}
        for what, settings, workers in (
            ("M = 2, K = 20, max_iterations=8", fixed, 1),
            ("M = 2, K = 20, max_iterations=8", fixed, 2),
            ("max_iterations=20", {"max_iterations": 20}, 2),
        ):
            found = measured_apart("memory", path=str(path), n_jobs=workers, **settings)
            counts = (found[name] for name in ("M", "K", "iterations", "MB"))
            yield what, workers, *counts, f"{found['seconds']:.0f}"


def write_rows(path: Path, n: int, length: int, block: int = 50_000) -> None:
    """Two groups with axes of their own in white noise."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((2, length, 20)))[0] * np.sqrt(np.linspace(60, 6, 20))
    axes = np.swapaxes(axes, 1, 2).astype(np.float32)
    middles = rng.standard_normal((2, length), dtype=np.float32)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (n, length))
    for start in range(0, n, block):
        rows = rng.standard_normal((min(block, n - start), length), dtype=np.float32)
        for group in (0, 1):
            members = rows[group::2]
            members += rng.standard_normal((len(members), 20), dtype=np.float32) @ axes[group]
            members += middles[group]
        file[start : start + len(rows)] = rows
    file.flush()


def measure_memory(path: str, **settings: int) -> dict:
    mapped = np.load(path, mmap_mode="r")
    begin = time.perf_counter()
    model = fs.fit_subspaces(mapped, **settings)
    seconds = time.perf_counter() - begin
    # Unlike ru_maxrss, it does not start from the peak of the process that started this one.
    with open("/proc/self/status", encoding="utf-8") as file:
        kilobytes = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    n_subspaces, _, n_components = model.loadings.shape
    return {
        "M": n_subspaces,
        "K": n_components,
        "iterations": len(model.trace.log_likelihood),
        "MB": round(1024 * kilobytes / 1e6),
        "seconds": seconds,
    }


# The same bits.


def bits_table(options: argparse.Namespace) -> None:
    print_table(
        "The same fit and its scores, nothing set, 20,000 x 200: largest difference from one thread in "
        "memory, in parts of the largest value; processes: those that computed something",
        ("workers", "processes", "in memory", "seconds", "memory map", "seconds"),
        bits_rows(options.work),
    )


def bits_rows(work: Path) -> Iterator[tuple]:
    data = spiked(20_000, 200, 20)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        path = Path(folder) / "coefficients.npy"
        np.save(path, data)
        first = None
        # A configuration of joblib holds from the moment that it is made: each is made in its turn.
        for what, workers in (
            ("1 thread", lambda: joblib.parallel_config("threading", n_jobs=1)),
            ("2 threads", lambda: joblib.parallel_config("threading", n_jobs=2)),
            ("loky, 2 processes", lambda: joblib.parallel_config("loky", n_jobs=2)),
            # With one thread, joblib would compute everything in this process.
            ("dask, 1 worker of 2 threads", lambda: dask_cluster(1, 2)),
            ("dask, 2 workers", lambda: dask_cluster(2, 1)),
        ):
            cells = []
            try:
                with workers():
                    processes = len(set(open_rows(data)[0].map(process_of)))
                    for source in (data, np.load(path, mmap_mode="r")):
                        begin = time.perf_counter()
                        found = numbers_of(source)
                        seconds = time.perf_counter() - begin
                        first = found if first is None else first
                        cells += [difference(found, first), f"{seconds:.1f}"]
            except ImportError:
                print(f"({what}: dask and distributed are not installed: left out)", file=sys.stderr)
                continue
            yield what, processes, *cells


def process_of(block: np.ndarray, start: int) -> int:
    return os.getpid()


@contextmanager
def dask_cluster(n_workers: int, n_threads: int) -> Iterator[None]:
    import distributed

    # Of the size of an array that goes with every task.
    warnings.filterwarnings("ignore", message="Sending large graph")
    with (
        distributed.LocalCluster(
            n_workers=n_workers, threads_per_worker=n_threads, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        yield


def numbers_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    model = fs.fit_subspaces(rows)
    parts = {"trace": model.trace, "strength": model.strength, "scores": fs.subspace_scores(rows, model)}
    numbers = {name: np.asarray(getattr(model, name)) for name in model._fields if name not in parts}
    for part, values in parts.items():
        numbers |= {f"{part}.{name}": np.asarray(getattr(values, name)) for name in values._fields}
    return numbers


def difference(found: dict[str, np.ndarray], first: dict[str, np.ndarray]) -> str:
    largest = 0.0
    for name, expected in first.items():
        if found[name].shape != expected.shape:
            return f"{name} of another shape"
        if found[name].tobytes() != expected.tobytes():
            apart = np.abs(found[name].astype(float) - expected.astype(float)).max()
            largest = max(largest, float(apart / np.abs(expected).max()), 5e-324)
    return f"{largest:.1e}" if largest else "same bits"


# The paper's simulation.


def paper_table(options: argparse.Namespace) -> None:
    volume = options.data / "volumes" / VOLUME
    if not volume.exists():
        print(f"\nno {volume}: nothing simulated.")
        return
    seeds = SEEDS[:1] if options.quick else SEEDS
    n_good, n_junk = (1667, 333) if options.quick else (8333, 1667)
    setting = f"{n_good} + {n_junk} images of {BOX} px, band limit {BANDLIMIT}"
    found: dict[tuple[str, str], list[tuple]] = {}
    verdicts: dict[tuple[str, str], list[tuple]] = {}
    for noise in (10, 30):
        for seed in seeds:
            images, truth = fs.simulate_particles(
                n_good, n_junk, snr=1 / noise, box=BOX, volume=volume, junk="ppca", seed=seed
            )
            coefficients = fs.pswf_coefficients(images, BANDLIMIT)
            if noise == 10:
                for row, cells in paper_recipe(coefficients, truth.kind):
                    found.setdefault(row, []).append(cells)
            for what, keep, detail in default_verdicts(images, coefficients, truth):
                rates = (truth.label[keep].mean(), keep[truth.label].mean(), detail)
                verdicts.setdefault((f"1/{noise}", what), []).append(rates)
    columns = ("particles", "outliers", "noise")
    print_table(
        f"The paper's Table 1 in percent of what is left: 70S ribosome, SNR 1/10, {setting} "
        "(at 0.5 the basis has 3025 functions)",
        ("what", "removed", *columns, *(f"paper: {column}" for column in columns)),
        (paper_row(row, cells) for row, cells in found.items()),
    )
    print_table(
        f"Nothing set; {setting}; wanted 0.99 each at SNR 1/10, 0.97 each at 1/30",
        ("SNR", "what", "precision", "recall", "M x K"),
        (
            (*row, shares(precision, 4), shares(recall, 4), ", ".join(filter(None, sizes)))
            for row, (precision, recall, sizes) in (
                (row, zip(*rates, strict=True)) for row, rates in verdicts.items()
            )
        ),
    )


def paper_row(row: tuple[str, str], cells: list[tuple]) -> tuple:
    known = [f"{share:.2f}" for share in PAPER[row[0]]] if row[1] != "own stopping rule" else ["", "", ""]
    removed, particles, *junk = (100 * np.array(column) for column in zip(*cells, strict=True))
    columns = [f"{removed.mean():.2f}", shares(particles), *(f"{share.mean():.2f}" for share in junk)]
    return (", ".join(filter(None, row)), *columns, *known)


def paper_recipe(coefficients: np.ndarray, kind: np.ndarray) -> Iterator[tuple]:
    """What was done, and the share removed with those of particles, outliers and noise left."""
    n = len(kind)
    yield ("raw", ""), left(np.ones(n, dtype=bool), kind)
    for n_subspaces in (1, 2, 3):
        name = f"{n_subspaces} subspace{'s' if n_subspaces > 1 else ''}"
        model = fs.fit_subspaces(coefficients, n_subspaces, N_TOTAL // n_subspaces, preset="published")
        factor = fs.sorting_factor(coefficients, model)
        yield (name, "own stopping rule"), left(model.keep, kind)
        yield (name, "10 % by the final factor"), left(without_largest(factor), kind)
        # A cut comes after 6 iterations and after 12.
        model = fs.fit_subspaces(
            coefficients,
            n_subspaces,
            N_TOTAL // n_subspaces,
            preset="published",
            tolerance=0,
            max_iterations=13,
        )
        yield (name, "two cuts of 5 %"), left(model.keep, kind)
    pca = fs.steerable_pca(coefficients, fs.pswf_basis(BOX, BANDLIMIT), n_components=N_TOTAL)
    yield ("steerable PCA", ""), left(without_largest(-fs.relative_energy(coefficients, pca)), kind)


def left(keep: np.ndarray, kind: np.ndarray) -> tuple[float, ...]:
    return (
        1 - keep.mean(),
        *(float((kind[keep] == name).mean()) for name in ("good", "photograph", "noise")),
    )


def without_largest(score: np.ndarray) -> np.ndarray:
    keep = np.zeros(len(score), dtype=bool)
    keep[np.argsort(score, kind="stable")[: round(0.9 * len(score))]] = True
    return keep


def default_verdicts(images: np.ndarray, coefficients: np.ndarray, truth) -> Iterator[tuple]:
    for what, basis in (("coefficients", None), ("steerable", fs.pswf_basis(BOX, BANDLIMIT))):
        model = fs.fit_subspaces(coefficients, basis=basis)
        yield f"fit_subspaces, {what}", model.keep, "{} x {}".format(*model.loadings.shape[::2])
    if "subspaces" in METHODS:
        particles = fs.open_particles(images, pixel_size=truth.pixel_size)
        yield "sort_particles, method subspaces", fs.sort_particles(particles, method="subspaces").keep, ""


# Denoising.


def denoise_table(options: argparse.Namespace) -> None:
    volume = options.data / "volumes" / VOLUME
    if not volume.exists():
        print(f"\nno {volume}: nothing simulated.")
        return
    n = 1000 if options.quick else 5000
    print_table(
        f"Mean square error in the disk r < {BOX // 2} px, {n} images of {BOX} px of the 70S ribosome, "
        "SNR 1/10, no junk; in parts of the clean images' mean square there",
        ("what", "error", "of the Wiener filter's", "M x K", "seconds"),
        denoise_rows(volume, n),
    )


def denoise_rows(volume: Path, n: int) -> Iterator[tuple]:
    recipe = {"box": BOX, "volume": volume, "junk": "ppca", "seed": 0}
    images, _ = fs.simulate_particles(n, 0, snr=1 / 10, **recipe)
    clean, _ = fs.simulate_particles(n, 0, snr=math.inf, **recipe)
    # The recipe's clean images have mean variance 1, and its noise is white of variance 1 / SNR.
    noise_variance = 10.0
    measured = np.var(images - clean, dtype=np.float64)
    if abs(measured / noise_variance - 1) > 0.01:
        raise RuntimeError(f"the noise was to have variance {noise_variance:g}; it has {measured:.3f}.")
    line = np.arange(BOX) - BOX // 2
    inside = np.add.outer(line**2, line**2) < (BOX // 2) ** 2
    scale = np.square(clean[:, inside], dtype=np.float64).mean()

    def error(found: np.ndarray) -> float:
        some = clean[: len(found), inside]
        return float(np.square(found[:, inside] - some, dtype=np.float64).mean() / scale)

    reference = error(wiener_filtered(images, clean, noise_variance))
    mean = clean.mean(axis=0)
    about_mean = error(mean + wiener_filtered(images - mean, clean - mean, noise_variance))
    yield "nothing", f"{error(images):.4f}", f"{error(images) / reference:.2f}", "", ""
    yield "Wiener filter of the true spectra", f"{reference:.4f}", "1.00", "", ""
    what = "the same about the true mean image"
    yield what, f"{about_mean:.4f}", f"{about_mean / reference:.2f}", "", ""
    few = images[:500]
    local = {
        size: error(np.array([scipy.signal.wiener(image, size, noise_variance) for image in few]))
        for size in (3, 5, 7, 9, 11, 13)
    }
    size = min(local, key=local.__getitem__)
    what = f"scipy.signal.wiener, {size} x {size} px (the best), {len(few)} images"
    yield what, f"{local[size]:.4f}", f"{local[size] / reference:.2f}", "", ""
    coefficients = fs.pswf_coefficients(images, BANDLIMIT)
    basis = fs.pswf_basis(BOX, BANDLIMIT)
    for what, settings in (
        ("fit_subspaces, nothing set", {}),
        ("fit_subspaces, steerable", {"basis": basis}),
        ("fit_subspaces, M = 1, K = 60, not robust", {"n_subspaces": 1, "n_components": 60, **PLAIN}),
        ("fit_subspaces, M = 1, K = 150, steerable", {"n_subspaces": 1, "n_components": 150, "basis": basis}),
    ):
        begin = time.perf_counter()
        model = fs.fit_subspaces(coefficients, **settings)
        found = fs.pswf_images(fs.subspaces.denoise(coefficients, model), BOX, BANDLIMIT)
        seconds = time.perf_counter() - begin
        counts = "{} x {}".format(*model.loadings.shape[::2])
        yield what, f"{error(found):.4f}", f"{error(found) / reference:.2f}", counts, f"{seconds:.1f}"
    bound = error(fs.pswf_images(fs.pswf_coefficients(clean, BANDLIMIT), BOX, BANDLIMIT))
    yield f"what the basis loses (band limit {BANDLIMIT})", f"{bound:.4f}", f"{bound / reference:.2f}", "", ""


def wiener_filtered(images: np.ndarray, clean: np.ndarray, noise_variance: float) -> np.ndarray:
    """The best linear filter of the kind: knows the radial mean of the clean images' power, and the noise."""
    power = np.mean([np.square(np.abs(scipy.fft.rfft2(image))) for image in clean], axis=0)
    frequency = BOX * np.hypot(scipy.fft.fftfreq(BOX)[:, None], scipy.fft.rfftfreq(BOX))
    ring = frequency.round().astype(int)
    # Columns of half a plane stand for two, but for the first.
    weight = np.where(np.arange(power.shape[1]) > 0, 2.0, 1.0) * np.ones_like(power)
    profile = np.bincount(ring.ravel(), (weight * power).ravel()) / np.bincount(ring.ravel(), weight.ravel())
    gain = profile[ring] / (profile[ring] + BOX**2 * noise_variance)
    return np.array([scipy.fft.irfft2(scipy.fft.rfft2(image) * gain, s=(BOX, BOX)) for image in images])


TABLES = {
    "basis": basis_table,
    "closed-form": closed_form_table,
    "iteration": iteration_table,
    "peers": peers_table,
    "memory": memory_table,
    "bits": bits_table,
    "paper": paper_table,
    "denoise": denoise_table,
}
MEASURES = {"basis": measure_basis, "memory": measure_memory}


if __name__ == "__main__":
    main()
