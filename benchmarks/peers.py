"""Against whom: other programs on the same input, in the same run.

python benchmarks/peers.py [--data FOLDER] [--runs 5] [--peers-python PYTHON]

One worker, one BLAS thread. What is not installed is left out with a message; ASPIRE is run by the
interpreter given as --peers-python, which needs nothing but the package aspire.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BOX, N = 64, 2000
# The slower a peer, the fewer images it gets; seconds are for as many as fastsort had.
N_RULES, N_MAHOTAS, N_BASIS = 500, 100, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peers-python", help="interpreter with aspire")
    parser.add_argument("--aspire", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.aspire:
        print(json.dumps(run_aspire(Path(options.aspire), options.runs)))
        return
    from tables import DATA, print_machine, print_table
    from threadpoolctl import threadpool_limits

    print_machine()
    volume = (options.data or DATA) / "volumes" / "ribosome70s_65px.mrc"
    with threadpool_limits(limits=1), tempfile.TemporaryDirectory(prefix="fastsort-peers-") as folder:
        rows = [
            row
            for compare in (compare_rules, compare_features, compare_models)
            for row in compare(volume if volume.exists() else "globular", options.runs)
        ]
        rows += compare_aspire(Path(folder), options.peers_python, options.runs)
    print_table(
        f"fastsort and others, one thread (median of {options.runs} runs in turn)",
        ("what", "other program", "fastsort, s", "range", "the other, s", "range", "takes, times fastsort's"),
        rows,
    )


Job = tuple[Callable[[], object], float]


def compared(what: str, peer: str, jobs: tuple[Job, Job], runs: int) -> list[object]:
    """Time two jobs in turn; each is a callable and by what its time is multiplied."""
    seconds: tuple[list[float], list[float]] = [], []
    for job, _ in jobs:
        job()
    for _ in range(runs):
        for (job, factor), times in zip(jobs, seconds, strict=True):
            begin = time.perf_counter()
            job()
            times.append(factor * (time.perf_counter() - begin))
    return row_of(what, peer, *seconds)


def row_of(what: str, peer: str, ours: list[float], theirs: list[float]) -> list[object]:
    cells: list[object] = [what, peer]
    for times in (ours, theirs):
        cells += [f"{statistics.median(times):.3g}", f"{min(times):.3g} to {max(times):.3g}"]
    return [*cells, f"{statistics.median(theirs) / statistics.median(ours):.1f}"]


def compare_rules(volume: str | Path, runs: int):
    import published

    import fastsort as fs

    images, _ = fs.simulate_particles(N // 2, N // 2, snr=1 / 50, box=33, volume=volume, seed=0)
    few = images[:N_RULES]
    ours = (lambda: published.published(images), 1.0)
    what = f"published radial rules, {N:,} images of 33 px"
    rewrite = (lambda: published.naive.published_filter(few, 5.0, published.N_PEAKS), N / N_RULES)
    yield compared(what, "the authors' rules in NumPy and scikit-learn", (ours, rewrite), runs)
    sorted_ = (lambda: published.sorted_by_numpy(few, 5.0), N / N_RULES)
    yield compared(what, "the same, ranked by NumPy", (ours, sorted_), runs)


def compare_features(volume: str | Path, runs: int):
    try:
        import features
    except ImportError as error:
        print(f"({error.name} is not installed: features left out)", file=sys.stderr)
        return
    from importlib.metadata import version

    from mtflearn.features import ZPs

    from fastsort import invariant_features

    rng = np.random.default_rng(0)
    images = rng.standard_normal((N, features.BOX, features.BOX), dtype=np.float32)
    what = f"invariant features, order {features.MAX_ORDER}, {N:,} images of {features.BOX} px"
    ours = (lambda: invariant_features(images, oversampling=1, n_jobs=1, **features.PLAIN), 1.0)
    zernike = ZPs(features.MAX_ORDER, features.BOX + 1)
    theirs = (lambda: features.with_mtflearn(images, zernike, 1), 1.0)
    yield compared(what, f"numpy.fft and motif-learn {version('motif-learn')}", (ours, theirs), runs)
    some = (lambda: features.with_mahotas(images[:N_MAHOTAS]), N / N_MAHOTAS)
    yield compared(what, f"numpy.fft and mahotas {version('mahotas')}", (ours, some), runs)


def compare_models(volume: str | Path, runs: int):
    import subspaces

    rng = np.random.default_rng(0)
    n, length, n_components = 20_000, 400, 30
    axes = rng.standard_normal((n_components, length))
    rows = rng.standard_normal((n, n_components)) @ axes + rng.standard_normal((n, length))
    rows = rows.astype(np.float32)
    what = f"principal components, {n:,} x {length}, K = {n_components}"
    fewest = subspaces.fewest_iterations(rows, n_components, subspaces.closed_form(rows, n_components)[1])
    _, fit, score, _ = subspaces.fastsort_peer(rows, n_components, fewest, 1)
    peers = [subspaces.scikit_learn_peer, subspaces.ppca_peer, subspaces.pyppca_peer]
    for name, their_fit, their_score, _ in filter(None, (peer(rows, n_components) for peer in peers)):
        yield compared(f"{what}: fit", name, ((fit, 1.0), (their_fit, 1.0)), runs)
        if their_score:
            both = (lambda: score(fit()), 1.0), (lambda f=their_fit, s=their_score: s(f()), 1.0)
            yield compared(f"{what}: fit and scores", name, both, runs)


def compare_aspire(folder: Path, python: str | None, runs: int):
    """Expand images in prolate functions, and read a stack, with ASPIRE."""
    if python is None:
        print("(ASPIRE is left out: give --peers-python)", file=sys.stderr)
        return
    import fastsort as fs

    images, truth = fs.simulate_particles(N // 2, N // 2, snr=0.1, box=BOX, seed=0)
    star = fs.write_project(folder / "project", [images], truth)
    np.save(folder / "images.npy", images[:N_BASIS])
    command = [python, __file__, "--aspire", str(folder), "--runs", str(runs)]
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    if done.returncode:
        print(f"(ASPIRE does not run in {python}: left out)", file=sys.stderr)
        return
    theirs = json.loads(done.stdout.splitlines()[-1])
    few = images[:N_BASIS]
    jobs = {
        "coefficients": lambda: fs.pswf_coefficients(few, bandlimit=0.5, n_jobs=1),
        "reading": lambda: fs.open_particles(star).read(0, N),
    }
    count = len(fs.pswf_basis(BOX, 0.5).functions)
    names = {
        "coefficients": f"{count} prolate coefficients (PSWF), {N_BASIS} images of {BOX} px, basis at hand",
        "reading": f"table and {N:,} images of {BOX} px read, warm",
    }
    for name, what in names.items():
        jobs[name]()
        ours = []
        for _ in range(runs):
            begin = time.perf_counter()
            jobs[name]()
            ours.append(time.perf_counter() - begin)
        for peer, seconds in theirs[name].items():
            yield row_of(what, peer, ours, seconds)


def run_aspire(folder: Path, runs: int) -> dict[str, dict[str, list[float]]]:
    """Be a process that times ASPIRE."""
    from importlib.metadata import version

    sys.stdout, answers = sys.stderr, sys.stdout
    from aspire.basis import FPSWFBasis2D, PSWFBasis2D
    from aspire.image import Image
    from aspire.source import RelionSource

    images = np.load(folder / "images.npy")
    star = str(folder / "project" / "particles.star")

    def seconds(job: Callable[[], object]) -> list[float]:
        job()
        times = []
        for _ in range(runs):
            begin = time.perf_counter()
            job()
            times.append(time.perf_counter() - begin)
        return times

    def read() -> object:
        source = RelionSource(star, data_folder=str(folder / "project"), dtype=np.float32)
        return source.images[:].asnumpy()

    found: dict[str, dict[str, list[float]]] = {"coefficients": {}, "reading": {}}
    release = f"ASPIRE {version('aspire')}"
    for kind in (FPSWFBasis2D, PSWFBasis2D):
        basis = kind((images.shape[1], images.shape[1]))
        title = f"{release}, {kind.__name__}, {basis.count} functions"
        found["coefficients"][title] = seconds(lambda basis=basis: basis.evaluate_t(Image(images)))
    found["reading"][release] = seconds(read)
    sys.stdout = answers
    return found


if __name__ == "__main__":
    main()
