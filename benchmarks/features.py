"""How invariant are the features, and how fast, against libraries that compute the same ones?

python benchmarks/features.py [--images N] [--runs N]

Needs motif-learn (imported as mtflearn) and mahotas beside fastsort. One worker, one BLAS thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version

import mahotas.features
import numpy as np
from mtflearn.features import ZPs
from scipy.special import eval_jacobi
from tables import print_machine, print_table, seconds_in_turn
from threadpoolctl import threadpool_limits

from fastsort.invariants.features import feature_index, invariant_features
from fastsort.invariants.zernike import radial_polynomials, zernike_index, zernike_moments

BOX = 64
RADIUS = BOX // 2
MAX_ORDER = 20
# mahotas takes one image at a time.
N_MAHOTAS = 200
# As many as fit a processor's cache serve numpy better than all at once.
BATCH = 256
SHIFTS = np.random.default_rng(1).uniform(-0.12, 0.12, (100, 2))
PLAIN = {"noise_floor": None, "disk": "pixels", "unit": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print_machine()
    print(f"motif-learn {version('motif-learn')}, mahotas {version('mahotas')}.")
    precision_table()
    images = np.random.default_rng(0).standard_normal((options.images, BOX, BOX), dtype=np.float32)
    with threadpool_limits(limits=1):
        speed_table(images, options.runs)
        default_table(images, options.runs)


def precision_table() -> None:
    radii = np.linspace(0, 1, 201)
    apart = 0.0
    for row, n, m in zip(radial_polynomials(60, radii), *zernike_index(60), strict=True):
        expected = radii**m * eval_jacobi((n - m) // 2, 0, m, 2 * radii**2 - 1)
        apart = max(apart, float(np.abs(row - expected).max()))
    seeds = range(100)
    before = invariant_features(np.array([blobs(seed) for seed in seeds]))
    changed = {
        "turned by 90 degrees": [np.rot90(blobs(seed)) for seed in seeds],
        "turned by any angle": [blobs(seed, angle=seed * 0.41) for seed in seeds],
        "shifted by up to 0.12 of the box": [blobs(seed, shift=SHIFTS[seed]) for seed in seeds],
    }
    rows = [
        (
            "radial polynomials up to order 60 against scipy's Jacobi polynomials, absolute",
            f"{apart:.0e}",
            "1e-10",
        )
    ]
    for (name, images), wanted in zip(changed.items(), ("1e-5", "0.02", "0.02"), strict=True):
        apart = difference(invariant_features(np.array(images)), before)
        rows.append((f"features of images and of the same {name}, relative", f"{apart:.1g}", wanted))
    print_table(
        f"Largest difference, {len(seeds)} band-limited images of {BOX} px", ("what", "found", "wanted"), rows
    )


def blobs(seed: int, angle: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Gaussian blobs about the middle, turned, then shifted by parts of the box: no pixel is resampled."""
    rng = np.random.default_rng(seed)
    y, x = rng.normal(0, 0.08 * BOX, (2, 12)).clip(-0.15 * BOX, 0.15 * BOX)
    width, height = rng.uniform(0.025, 0.045, 12) * BOX, rng.uniform(-0.5, 1.5, 12)
    offset = np.arange(BOX) - RADIUS
    image = np.zeros((BOX, BOX))
    for a, b, w, h in zip(y, x, width, height, strict=True):
        down = np.sin(angle) * b + np.cos(angle) * a + shift[0] * BOX
        across = np.cos(angle) * b - np.sin(angle) * a + shift[1] * BOX
        image += h * np.outer(*(np.exp(-((offset - at) ** 2) / (2 * w**2)) for at in (down, across)))
    return image


def speed_table(images: np.ndarray, runs: int) -> None:
    n = len(images)
    zernike = ZPs(MAX_ORDER, BOX + 1)
    some = images[:N_MAHOTAS]
    jobs: dict[str, Callable[[], np.ndarray]] = {
        "fastsort, periodic, pixels": lambda: invariant_features(images, oversampling=1, n_jobs=1, **PLAIN),
        "numpy.fft + mtflearn": lambda: with_mtflearn(images, zernike, 1),
        "fastsort, padded twice, pixels": lambda: invariant_features(images, n_jobs=1, **PLAIN),
        "numpy.fft, padded twice, + mtflearn": lambda: with_mtflearn(images, zernike, 2),
        f"numpy.fft + mahotas ({len(some)} images)": lambda: with_mahotas(some),
    }
    results = {name: job() for name, job in jobs.items()}
    seconds = seconds_in_turn(jobs, runs)
    ours, theirs, padded, theirs_padded, mahotas_ = jobs
    pairs = {
        ours: (ours, None),
        theirs: (ours, difference(results[theirs], results[ours])),
        padded: (padded, None),
        theirs_padded: (padded, difference(results[theirs_padded], results[padded])),
        mahotas_: (ours, mahotas_difference(some, results[mahotas_])),
    }
    rows = []
    for name, (against, apart) in pairs.items():
        per_image = np.median(seconds[name]) / len(results[name])
        reference = np.median(seconds[against]) / len(results[against])
        rows.append(
            (
                name,
                f"{1e6 * per_image:.0f}",
                f"{1e6 * min(seconds[name]) / len(results[name]):.0f} to "
                f"{1e6 * max(seconds[name]) / len(results[name]):.0f}",
                f"{per_image / reference:.1f}",
                "" if apart is None else f"{apart:.0e}",
            )
        )
    print_table(
        f"Images to |a_nm|, order {MAX_ORDER}, {BOX} px, {n:,} images, one worker, median of {runs}; wanted: "
        "mtflearn 5 times, mahotas 300 times the time of fastsort",
        ("what", "us an image", "range", "times fastsort's", "relative difference of values"),
        rows,
    )


def default_table(images: np.ndarray, runs: int) -> None:
    choices: dict[str, dict] = {
        "periodic, plain": {"oversampling": 1, "noise_floor": None},
        "padded twice, plain": {"noise_floor": None},
        "padded twice, noise floor (default)": {},
        "padded twice, noise floor, whitened": {"whiten": "auto"},
    }
    jobs = {
        name: lambda chosen=chosen: invariant_features(images, n_jobs=1, **chosen)
        for name, chosen in choices.items()
    }
    for job in jobs.values():
        job()
    seconds = seconds_in_turn(jobs, runs)
    print_table(
        f"What the options of fastsort cost, same images, continuous disk, median of {runs}",
        ("options", "us an image", "images a second"),
        [
            (name, f"{1e6 * np.median(s) / len(images):.0f}", f"{len(images) / np.median(s):,.0f}")
            for name, s in seconds.items()
        ],
    )


def maps(images: np.ndarray, times: int) -> np.ndarray:
    """F^-1 |F image| with its origin at pixel d // 2, in double precision."""
    size = times * BOX
    if times > 1:
        # Padding must begin where the image ends: at the level outside the disk, as in fastsort.
        offset = np.arange(BOX) - RADIUS
        outside = np.add.outer(offset**2, offset**2) >= RADIUS**2
        images = images - images[:, outside].mean(axis=1, dtype=float)[:, np.newaxis, np.newaxis]
    amplitudes = np.abs(np.fft.rfft2(images, s=(size, size)))
    amplitudes[:, 0, 0] = 0
    around = np.fft.fftshift(np.fft.irfft2(amplitudes, s=(size, size)), axes=(1, 2))
    first = size // 2 - RADIUS
    return around[:, first : first + BOX, first : first + BOX]


def with_mtflearn(images: np.ndarray, zernike: ZPs, times: int) -> np.ndarray:
    """Features of batches; its grid of 65 px is that of 64 px with one row more."""
    features = []
    framed = np.zeros((BATCH, BOX + 1, BOX + 1))
    pairs = [
        np.flatnonzero((zernike.n == n) & (np.abs(zernike.m) == m))
        for n, m in zip(*feature_index(MAX_ORDER), strict=True)
    ]
    for start in range(0, len(images), BATCH):
        batch = maps(images[start : start + BATCH], times)
        framed[: len(batch), :BOX, :BOX] = batch
        # The ends of the axes, which lie inside a closed disk and outside an open one.
        framed[:, [0, RADIUS], [RADIUS, 0]] = 0
        squares = zernike.transform(framed[: len(batch)]).data ** 2
        features.append(np.sqrt([squares[:, pair].sum(axis=1) for pair in pairs]).T)
    # It divides by the area of its disk, and its functions are larger than ours.
    return np.concatenate(features) * (np.pi * zernike.size**2 / 4) / (RADIUS * np.sqrt(np.pi))


def with_mahotas(images: np.ndarray) -> np.ndarray:
    return np.array(
        [
            mahotas.features.zernike_moments(t, RADIUS, MAX_ORDER, cm=(RADIUS, RADIUS))
            for t in raised_maps(images)
        ]
    )


def raised_maps(images: np.ndarray) -> np.ndarray:
    """Maps above zero but at the ends of the axes: mahotas passes over pixels that are not positive."""
    raised = maps(images, 1)
    raised = raised - raised.min() + 1
    raised[:, [0, RADIUS], [RADIUS, 0]] = 0
    return raised


def mahotas_difference(images: np.ndarray, theirs: np.ndarray) -> float:
    raised = raised_maps(images)
    moments, order, angular = zernike_moments(raised, MAX_ORDER)
    offset = np.arange(BOX) - RADIUS
    total = raised[:, np.add.outer(offset**2, offset**2) < RADIUS**2].sum(axis=1)
    scale = np.sqrt((1 + (angular > 0)) * np.pi / (order + 1)) / RADIUS
    return difference(theirs * scale * total[:, np.newaxis], np.abs(moments))


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    apart = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return float(apart.max())


if __name__ == "__main__":
    main()
