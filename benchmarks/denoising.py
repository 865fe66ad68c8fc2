"""How much of the noise is taken out, how well is that known, and how long does it take?

python benchmarks/denoising.py [--data FOLDER] [--only PART ...] [--peers-python PYTHON]

Errors are mean squares inside the disk of radius d / 2, in parts of the clean images' power there. Signal to
noise is the variance of the clean images over that of the noise, in all pixels. Nothing is told to fastsort;
ASPIRE, bm3d and scikit-image get the true noise. Those that are installed are run by the interpreter given as
--peers-python; what is missing there is left out with a message. One worker, one BLAS thread; slow peers get
fewer images. The scale, the network (the extra `gan`), which take a quarter of an hour each, and the picture
are only made when asked for.

Purity: each class counts for the conformation, or the molecule, that most of its images show.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

SNRS = (0.8, 0.4, 0.2, 0.1, 0.05, 0.01)
BOX, N, SEED = 64, 400, 5
NUMBERS = (100, 1_000, 10_000)
# Sets that lie on the disk: distinct views, noise for each image.
SCALE_BOX, SCALE_SNR, SCALE_VIEWS, SCALE_NUMBERS = 128, 0.1, 2_000, (25_000, 100_000)
# Of which molecules: choices were made on the first.
MOLECULES = ("70S ribosome", "EF-G", "sheath ring")
METHODS = ("bm3d", "ksvd", "tight_frame", "total_variation", "nonlocal_means", "wiener", "covariance")
N_MICROGRAPHS, DEFOCUS, PIXEL_SIZE = 24, (1e4, 2.5e4), 3.0
# Images that slow peers get.
N_SLOW = 20
# Sets that are classified before and after: images, signal to noise, classes of two molecules, seeds.
N_SORTED, SORTED_SNRS, N_VIEWS, SEEDS = 2000, (0.1, 0.05), 10, (0, 1, 2)


class Images(NamedTuple):
    """Clean images, the same with noise, and the CTF of each."""

    clean: np.ndarray
    noisy: np.ndarray
    deviation: float
    defocus: np.ndarray | None


def main() -> None:
    parts = {
        "white": white,
        "ctf": with_ctf,
        "large": large,
        "classes": classes,
        "speed": speed,
        "scale": scale,
        "gan": network,
        "picture": picture,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=parts, default=[*parts][:-3])
    numbers = "for the part large (default 100, 1000 and 10000)"
    parser.add_argument("--images", nargs="+", type=int, default=list(NUMBERS), metavar="N", help=numbers)
    parser.add_argument("--peers-python", help="interpreter with aspire, bm3d and scikit-image")
    parser.add_argument("--peers", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peers:
        run_peers(options.peers)
        return
    from tables import DATA, print_machine
    from threadpoolctl import threadpool_limits

    options.data = options.data or DATA
    print_machine()
    with threadpool_limits(1):
        for name in options.only:
            parts[name](options)


# Test images.


def projections(data: Path, name: str, n: int, seed: int = SEED) -> np.ndarray:
    from classes import centred_volume
    from scipy.spatial.transform import Rotation

    import fastsort as fs

    volume, scale = centred_volume(data, name, BOX)
    rotations = Rotation.random(n, rng=np.random.default_rng(seed)).as_matrix()
    clean = fs.simulate.project_volume(volume, rotations, BOX, scale=scale).astype(np.float32)
    return clean / clean.std()


def noisy_images(clean: np.ndarray, snr: float, ctf: bool = False) -> Images:
    rng = np.random.default_rng(SEED + 1)
    seen, defocus = clean, None
    if ctf:
        from fastsort.images.ctf import contrast_transfer

        of = np.linspace(*DEFOCUS, N_MICROGRAPHS)
        defocus = of[np.arange(len(clean)) % N_MICROGRAPHS]
        transfer = contrast_transfer(parameters(defocus), BOX, PIXEL_SIZE)
        seen = np.fft.irfft2(np.fft.rfft2(clean) * transfer, s=clean.shape[1:])
    deviation = snr**-0.5
    noise = rng.normal(0, deviation, clean.shape)
    return Images(clean, (seen + noise).astype(np.float32), deviation, defocus)


def parameters(defocus: np.ndarray):
    from fastsort.particles.table import CtfParameters

    def all_of(value: float) -> np.ndarray:
        return np.full(len(defocus), value)

    return CtfParameters(defocus, defocus, all_of(0), all_of(0), all_of(300), all_of(2.7), all_of(0.1))


def as_particles(images: Images):
    from dataclasses import replace

    import fastsort as fs

    particles = fs.open_particles(images.noisy, pixel_size=PIXEL_SIZE)
    return particles if images.defocus is None else replace(particles, ctf=parameters(images.defocus))


def error_of(denoised: np.ndarray, clean: np.ndarray) -> float:
    offset = np.arange(BOX) - BOX // 2
    disk = np.hypot(offset[:, None], offset) <= BOX / 2
    apart = denoised[:, disk].astype(np.float64) - clean[: len(denoised), disk]
    return float(np.square(apart).sum() / np.square(clean[: len(denoised), disk], dtype=np.float64).sum())


# Ours and theirs.


class Measured(NamedTuple):
    """Error of a method, what it predicted, and milliseconds an image, learning included."""

    error: float
    predicted: float
    seconds: float
    method: str


def measured(images: Images, method: str | None) -> Measured:
    from fastsort.denoise import denoised_batches, learn_denoiser

    particles = as_particles(images)
    begin = time.process_time()
    denoiser = learn_denoiser(particles, method=method, n_jobs=1)
    denoised = np.concatenate([*denoised_batches(particles, denoiser, n_jobs=1)])
    seconds = time.process_time() - begin
    return Measured(error_of(denoised, images.clean), denoiser.error, seconds, denoiser.method)


def peers_of(options: argparse.Namespace, images: Images) -> dict[str, tuple[float, float]]:
    """Return error, and milliseconds an image, of what is installed for the other interpreter."""
    if options.peers_python is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        np.save(path / "noisy.npy", images.noisy)
        if images.defocus is not None:
            np.save(path / "defocus.npy", images.defocus)
        (path / "told.json").write_text(json.dumps({"deviation": images.deviation}))
        command = [options.peers_python, os.path.abspath(__file__), "--peers", folder]
        # ASPIRE writes logs where it is started.
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            print(f"\nThe other programs failed: {done.stderr.strip().splitlines()[-1]}")
            return {}
        told = json.loads(done.stdout.splitlines()[-1])
        for missing in told["missing"]:
            print(f"\n{missing} is left out: it is not installed.")
        return {
            name: (error_of(np.load(path / f"{name}.npy"), images.clean), milliseconds)
            for name, milliseconds in told["milliseconds"].items()
        }


def run_peers(folder: Path) -> None:
    """Run in the other interpreter: denoise with every program that is there, and save what it makes."""
    logging.disable(logging.CRITICAL)
    noisy = np.load(folder / "noisy.npy")
    deviation = json.loads((folder / "told.json").read_text())["deviation"]
    defocus = np.load(folder / "defocus.npy") if (folder / "defocus.npy").exists() else None
    programs: dict[str, Callable[[], np.ndarray]] = {"aspire": lambda: run_aspire(noisy, deviation, defocus)}
    if defocus is None:
        programs["bm3d"] = lambda: run_bm3d(noisy[:N_SLOW], deviation)
        programs["skimage"] = lambda: run_skimage(noisy, deviation)
    milliseconds, missing = {}, []
    for name, program in programs.items():
        begin = time.process_time()
        try:
            denoised = program()
        except ImportError:
            missing.append(name)
            continue
        milliseconds[name] = 1000 * (time.process_time() - begin) / len(denoised)
        np.save(folder / f"{name}.npy", denoised)
    print(json.dumps({"milliseconds": milliseconds, "missing": missing}))


def run_aspire(noisy: np.ndarray, deviation: float, defocus: np.ndarray | None) -> np.ndarray:
    from aspire.basis import FFBBasis2D
    from aspire.denoising import DenoiserCov2D
    from aspire.operators import RadialCTFFilter
    from aspire.source import ArrayImageSource

    source = ArrayImageSource(noisy, pixel_size=PIXEL_SIZE)
    if defocus is not None:
        of, group = np.unique(defocus, return_inverse=True)
        source.unique_filters = [RadialCTFFilter(defocus=u, Cs=2.7, alpha=0.1, voltage=300) for u in of]
        source.filter_indices = group
    basis = FFBBasis2D(noisy.shape[1:], dtype=np.float32)
    denoised = DenoiserCov2D(source, basis, deviation**2).denoise[:].asnumpy().reshape(noisy.shape)
    # Its transfer functions have the other sign.
    return denoised if defocus is None else -denoised


def run_bm3d(noisy: np.ndarray, deviation: float) -> np.ndarray:
    from bm3d import bm3d

    return np.array([bm3d(image, deviation) for image in noisy])


def run_skimage(noisy: np.ndarray, deviation: float) -> np.ndarray:
    from skimage.restoration import denoise_tv_chambolle

    return np.array([denoise_tv_chambolle(image, weight=deviation) for image in noisy])


# Tables.


def rows_of(options: argparse.Namespace, ctf: bool) -> Iterator[tuple]:
    for name in MOLECULES:
        clean = projections(options.data, name, N)
        found: dict[str, list[str]] = {}
        for snr in SNRS:
            images = noisy_images(clean, snr, ctf)
            ours = {method: measured(images, method) for method in METHODS if name == MOLECULES[0]}
            ours["fastsort, nothing given"] = measured(images, None)
            for method, one in ours.items():
                found.setdefault(method, []).append(f"{one.error:.3f} ({one.predicted:.3f})")
            for peer, (error, _) in peers_of(options, images).items():
                found.setdefault(f"{peer}, noise given", []).append(f"{error:.3f}")
        yield from ((name, method, *errors) for method, errors in found.items())


def white(options: argparse.Namespace) -> None:
    from tables import print_table

    print_table(
        f"{N} images of {BOX} px, white noise, no contrast transfer function: error (predicted error)",
        ("molecule", "method", *map(str, SNRS)),
        rows_of(options, ctf=False),
    )


def with_ctf(options: argparse.Namespace) -> None:
    from tables import print_table

    print_table(
        f"The same, {N_MICROGRAPHS} micrographs of 1 to 2.5 um defocus",
        ("molecule", "method", *map(str, SNRS)),
        rows_of(options, ctf=True),
    )


def large(options: argparse.Namespace) -> None:
    from tables import print_table

    def rows() -> Iterator[tuple]:
        clean = projections(options.data, MOLECULES[0], max(options.images))
        for ctf in (False, True):
            for n in options.images:
                for snr in SNRS:
                    # The noise of the first images does not depend on how many follow.
                    images = noisy_images(clean[:n], snr, ctf)
                    one = measured(images, None)
                    error = f"{one.error:.3f} ({one.predicted:.3f})"
                    ms = f"{1000 * one.seconds / n:.1f}"
                    yield f"{n:,}", "yes" if ctf else "no", snr, one.method, error, ms

    print_table(
        f"Images of the {MOLECULES[0]}: error (predicted error), nothing given",
        ("images", "CTF", "SNR", "method", "error", "ms an image"),
        rows(),
    )
    for name in MOLECULES:
        clean = projections(options.data, name, N)
        print(f"\nPSNR of the {name} in dB: {psnr_at_one(clean):.1f} - 10 log10(error).")


def psnr_at_one(clean: np.ndarray) -> float:
    """Peak signal-to-noise ratio of images whose error is as large as their power, in the disk."""
    offset = np.arange(BOX) - BOX // 2
    disk = np.hypot(offset[:, None], offset) <= BOX / 2
    return float(10 * np.log10(np.square(clean.max()) / np.square(clean[:, disk], dtype=np.float64).mean()))


def classes(options: argparse.Namespace) -> None:
    from tables import print_table

    print_table(
        f"{N_SORTED:,} images of {BOX} px, white noise, no contrast transfer function: purity of as many "
        "classes on the images as they are and denoised, nothing given (mean over the seeds, lowest in "
        "brackets); k-means on the invariant features",
        (
            "set",
            "SNR",
            "method (predicted error)",
            "classes",
            "classes, denoised",
            "k-means",
            "k-means, denoised",
        ),
        purities(options),
    )


def purities(options: argparse.Namespace) -> Iterator[tuple]:
    from classes import HINGE_RADIUS, N_HINGES, spread

    from fastsort.denoise import denoised_batches, learn_denoiser

    two = [projections(options.data, name, N_SORTED // 2, SEED + i) for i, name in enumerate(MOLECULES[:2])]
    for snr in SORTED_SNRS:
        mixed = noisy_images(np.concatenate(two), snr).noisy
        molecule = np.repeat([0, 1], N_SORTED // 2)
        for name, images, truth, number, radius in (
            (f"{N_HINGES} conformations", *conformations(snr), N_HINGES, HINGE_RADIUS),
            (" + ".join(MOLECULES[:2]), mixed, molecule, N_VIEWS, None),
        ):
            particles = as_particles(Images(images, images, np.nan, None))
            denoiser = learn_denoiser(particles, n_jobs=1)
            denoised = np.concatenate([*denoised_batches(particles, denoiser, n_jobs=1)])
            found = (
                spread([purity(labels(some, number, radius, seed), truth) for seed in SEEDS])
                for labels in (likeliest, nearest)
                for some in (images, denoised)
            )
            yield name, snr, f"{denoiser.method} ({denoiser.error:.3f})", *found


def conformations(snr: float) -> tuple[np.ndarray, np.ndarray]:
    from classes import hinges

    return hinges(N_SORTED, snr)[:2]


def likeliest(images: np.ndarray, number: int, radius: float | None, seed: int) -> np.ndarray:
    import fastsort as fs

    return fs.classify_images(images, number, radius=radius, embedding="pca", n_jobs=1, seed=seed).label


def nearest(images: np.ndarray, number: int, radius: float | None, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    import fastsort as fs

    features = fs.invariant_features(images, n_jobs=1)
    return KMeans(number, n_init=10, random_state=seed).fit_predict(features)


def purity(label: np.ndarray, truth: np.ndarray) -> float:
    return sum(np.bincount(truth[label == k]).max() for k in np.unique(label)) / len(truth)


def network(options: argparse.Namespace) -> None:
    """Train the network on projections of a molecule, and denoise images of the first."""
    try:
        import jax  # noqa: F401
    except ImportError:
        print("\nthe network is left out: JAX is not installed.")
        return
    from classes import centred_volume
    from tables import print_table

    from fastsort.denoising.gan import gan, projection_pairs, train_gan
    from fastsort.images.ctf import phase_flip

    clean = projections(options.data, MOLECULES[0], N)

    def rows() -> Iterator[tuple]:
        for ctf in (False, True):
            optics = parameters(np.linspace(*DEFOCUS, N_MICROGRAPHS)) if ctf else None
            for name in MOLECULES[:2]:
                volume, scale = centred_volume(options.data, name, BOX)
                pairs = projection_pairs(volume, BOX, scale=scale, ctf=optics, pixel_size=PIXEL_SIZE)
                begin = time.process_time()
                weights = train_gan(pairs, BOX)
                seconds = time.process_time() - begin
                errors = []
                for snr in SNRS:
                    images = noisy_images(clean, snr, ctf)
                    seen = images.noisy
                    if images.defocus is not None:
                        seen = phase_flip(seen, parameters(images.defocus), PIXEL_SIZE)
                    denoised = gan(seen / np.float32(images.deviation), weights) * images.deviation
                    errors.append(f"{error_of(denoised, images.clean):.3f}")
                yield "yes" if ctf else "no", name, *errors, f"{seconds:.0f}"

    print_table(
        f"The network of the slides on {N} images of the {MOLECULES[0]}, 1000 steps on projections: error",
        ("CTF", "trained on", *map(str, SNRS), "s of the processor"),
        rows(),
    )


def speed(options: argparse.Namespace) -> None:
    from tables import print_table

    clean = projections(options.data, MOLECULES[0], N)
    images = noisy_images(clean, 0.1)
    rows: list[tuple] = []
    for method in ("neighbours", *METHODS):
        measured(images._replace(clean=clean[:60], noisy=images.noisy[:60]), method)
        rows.append((f"fastsort, {method}", f"{1000 * measured(images, method).seconds / N:.2f}"))
    rows += [(peer, f"{ms:.2f}") for peer, (_, ms) in peers_of(options, images).items()]
    print_table(
        f"{N} images of {BOX} px, SNR 0.1: processor time, learning and the search for the strength included",
        ("method", "ms an image"),
        rows,
    )


def scale(options: argparse.Namespace) -> None:
    from tables import print_table

    def rows() -> Iterator[tuple]:
        for n in SCALE_NUMBERS:
            with tempfile.TemporaryDirectory() as folder:
                stack, out = Path(folder) / "stack.mrcs", Path(folder) / "out"
                write_large_stack(options.data, stack, n)
                command = [sys.executable, "-m", "fastsort", "denoise", stack, "-o", out, "--float16"]
                begin = time.perf_counter()
                subprocess.run([*command, "--jobs", "2", "--quiet"], check=True)
                seconds = time.perf_counter() - begin
                peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
                told = json.loads((out / "summary.json").read_text())
                error = f"{told['predicted_error']:.3f}"
                yield f"{n:,}", told["method"], f"{seconds:.0f}", f"{n / seconds:.0f}", f"{peak:.2f}", error

    print_table(
        f"Images of {SCALE_BOX} px, SNR {SCALE_SNR}, two workers, the whole command, on an empty machine",
        ("images", "method", "s", "images/s", "largest process, GiB", "predicted error"),
        rows(),
    )


def write_large_stack(data: Path, path: Path, n: int) -> None:
    """Write projections with fresh noise, batch by batch; views repeat after 2,000 images."""
    from classes import centred_volume
    from scipy.spatial.transform import Rotation

    import fastsort as fs
    from fastsort.particles.mrc import write_stack

    volume, factor = centred_volume(data, MOLECULES[0], SCALE_BOX)
    rotations = Rotation.random(SCALE_VIEWS, rng=np.random.default_rng(SEED)).as_matrix()
    clean = fs.simulate.project_volume(volume, rotations, SCALE_BOX, scale=factor).astype(np.float32)
    clean /= clean.std()

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, n, 500):
            views = clean[np.arange(start, min(start + 500, n)) % SCALE_VIEWS]
            noise = np.random.default_rng([SEED, start]).standard_normal(views.shape, np.float32)
            yield views + np.float32(SCALE_SNR**-0.5) * noise

    write_stack(path, blocks(), PIXEL_SIZE, n, SCALE_BOX, half=True)


def picture(options: argparse.Namespace) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    clean = projections(options.data, MOLECULES[0], N)
    curves: dict[str, list[float]] = {}
    for snr in SNRS:
        images = noisy_images(clean, snr)
        for method in ("neighbours", *METHODS):
            curves.setdefault(method, []).append(measured(images, method).error)
    figure = Figure((9, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for method, errors in curves.items():
        axes.plot(SNRS, errors, "o-", label=method, lw=2.5 if method == "neighbours" else 1.2)
    axes.set(xscale="log", yscale="log", xlabel="signal to noise", ylabel="error, in parts of the power")
    axes.set_title(f"{N} projections of the {MOLECULES[0]}, {BOX} px, white noise")
    axes.grid(alpha=0.3)
    axes.legend()
    path = Path(__file__).with_name("denoising.png")
    figure.savefig(path, format="png")
    print(f"\nWrote {os.path.relpath(path)}.")


if __name__ == "__main__":
    sys.exit(main())
