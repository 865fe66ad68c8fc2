"""How well do the methods tell particles from junk, without any tuning?

python benchmarks/accuracy.py [--data FOLDER] [--quick]

TPR: good images kept; TNR: junk rejected; AUC: chance that junk has the higher score. Simulated sets:
the mean over the seeds, and the lowest in brackets.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tables import DATA, print_machine, print_table

import fastsort as fs
from fastsort.report.accuracy import measure_accuracy

SEEDS = (0, 1, 2)
SNRS = (20, 50, 118)
RIBOSOME = "ribosome70s_65px.mrc"
VOLUMES = {"ribosome": RIBOSOME, "sheath ring": "sheath_ring_64px_4.4A.mrc", "EF-G": "efg_64px_2.5A.mrc"}
HARD_KINDS = ("noise", "picked", "partial", "multiple", "off-centre", "ice", "carbon", "texture")
REAL_DIAMETERS = {"apoferritin_curated": 128.0, "apoferritin_picks": 128.0, "betagal_curated": 180.0}
# Of the authors' program, TPR / TNR: on their own simulation, and on these stacks.
KNOWN = {20: "not published", 50: "0.99 / 0.85", 118: "0.67 / 0.84"}
KNOWN_REAL = {
    "apoferritin_curated": "TPR 0.40 to 0.47",
    "apoferritin_picks": "0.45 / 0.75",
    "betagal_curated": "not known",
}
RATES = ("TPR", "TNR", "AUC")
METHODS = ("radial", "subspaces")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--quick", action="store_true", help="one seed instead of three")
    options = parser.parse_args()
    seeds = SEEDS[:1] if options.quick else SEEDS
    volumes = options.data / "volumes"
    print_machine()
    if (volumes / RIBOSOME).exists():
        print_table(
            "Radial paper's recipe: 70S ribosome, 33 px, 1000 good + 999 junk",
            ("SNR", "what", *RATES, "authors' program, TPR / TNR"),
            paper_recipe(volumes / RIBOSOME, seeds),
        )
        print_table(
            "How much is kept, by the share of junk: the same recipe, 2000 images, diameter given",
            ("SNR", "junk", "method", "kept", *RATES),
            junk_shares(volumes / RIBOSOME, seeds),
        )
        print_table(
            "Hard recipe: CTF, coloured noise, SNR 1/20, 48 px, 1800 good + 1200 junk; AUC",
            ("noise counted", "volume", "what", "all", *HARD_KINDS, "TPR", "TNR"),
            hard_recipe(volumes, seeds),
        )
    else:
        print(f"\nno {volumes}: nothing simulated.")
    if (options.data / "real").is_dir():
        print_table(
            "Real stacks, good against all else (uncertain labels left out)",
            ("stack", "what", *RATES, "balanced accuracy", "published filter's known figures"),
            real_stacks(options.data / "real"),
        )
        print_table(
            "Real stacks, only good or only junk images, diameter given",
            ("stack", "images", "number", "method", "kept"),
            real_halves(options.data / "real"),
        )
    else:
        print(f"\nno {options.data / 'real'}: no real stacks.")


def paper_recipe(volume: Path, seeds: tuple[int, ...]) -> Iterator[tuple]:
    for noise in SNRS:
        found: dict[str, list] = {}
        for seed in seeds:
            images, truth = fs.simulate_particles(
                1000, 999, snr=1 / noise, box=33, volume=volume, junk="paper", seed=seed
            )
            particles = fs.open_particles(images, pixel_size=truth.pixel_size)
            given = fs.sort_particles(particles, method="radial", diameter=truth.diameter, n_jobs=1)
            estimated = fs.sort_particles(particles, method="radial", n_jobs=1)
            subspaces = fs.sort_particles(particles, method="subspaces", n_jobs=1)
            published = fs.radial_filter(images, 5.0, 10, preset="published", n_jobs=1)
            for what, result in (
                ("radial, diameter given", given),
                ("radial, diameter estimated", estimated),
                ("subspaces, nothing set", subspaces),
                ("radial, published, r = 5, A = 10", published),
            ):
                found.setdefault(what, []).append(measure_accuracy(truth.label, result.keep, result.score))
        for what, rates in found.items():
            yield (f"1/{noise}", what, *map(mean_and_lowest, zip(*rates, strict=True)), KNOWN[noise])


def junk_shares(volume: Path, seeds: tuple[int, ...]) -> Iterator[tuple]:
    for noise in SNRS[:2]:
        for share in (0, 0.01, 0.6, 1):
            n_junk = round(2000 * share)
            for method in METHODS:
                kept, rates = [], []
                for seed in seeds:
                    images, truth = fs.simulate_particles(
                        2000 - n_junk, n_junk, snr=1 / noise, box=33, volume=volume, junk="paper", seed=seed
                    )
                    particles = fs.open_particles(images, pixel_size=truth.pixel_size)
                    result = fs.sort_particles(particles, diameter=truth.diameter, method=method, n_jobs=1)
                    kept.append(f"{100 * result.keep.mean():.1f} %")
                    rates.append(measure_accuracy(truth.label, result.keep, result.score))
                columns = map(mean_and_lowest, zip(*rates, strict=True))
                yield (f"1/{noise}", f"{100 * share:g} %", method, ", ".join(kept), *columns)


def hard_recipe(volumes: Path, seeds: tuple[int, ...]) -> Iterator[tuple]:
    for definition in ("power", "white_power"):
        for name, file in VOLUMES.items():
            found: dict[str, list] = {}
            for seed in seeds:
                images, truth = simulate_hard(volumes / file, definition, seed, 1 / 20)
                with tempfile.TemporaryDirectory() as folder:
                    star = fs.write_project(Path(folder) / "project", images, truth)
                    result = fs.sort_particles(star, method="radial", diameter=truth.diameter, n_jobs=1)
                    subspaces = fs.sort_particles(star, method="subspaces", n_jobs=1)
                    published = fs.sort_particles(
                        star,
                        method="radial",
                        preset="published",
                        diameter=truth.diameter / 2,
                        n_peaks=10,
                        n_jobs=1,
                    )
                height = known_matched_filter(images, truth, volumes / file, definition, seed)
                typical = np.median(height[truth.label])
                for what, score, keep in (
                    ("radial, diameter given", result.score, result.keep),
                    ("subspaces, nothing set", subspaces.score, subspaces.keep),
                    ("sorting factor of its subspaces", subspaces.measurements["factor"], None),
                    ("radial, published, r = half the radius", published.score, published.keep),
                    ("oracle: height", -height, None),
                    ("oracle: distance from the usual height", np.abs(height - typical), None),
                ):
                    found.setdefault(what, []).append(by_kind(truth, score, keep))
            for what, rates in found.items():
                yield (f'"{definition}"', name, what, *map(mean_and_lowest, zip(*rates, strict=True)))


def simulate_hard(volume: Path, definition: str, seed: int, snr: float) -> tuple:
    return fs.simulate_particles(
        1800,
        1200,
        snr=snr,
        box=48,
        volume=volume,
        junk="all",
        ctf=True,
        snr_definition=definition,
        seed=seed,
    )


def by_kind(truth, score: np.ndarray, keep: np.ndarray | None) -> list[float]:
    verdict = np.zeros(len(score), dtype=bool) if keep is None else keep
    over_all = measure_accuracy(truth.label, verdict, score)
    areas = [over_all.area_under_curve]
    for kind in HARD_KINDS:
        some = truth.label | (truth.kind == kind)
        areas.append(measure_accuracy(truth.label[some], verdict[some], score[some]).area_under_curve)
    unknown = (np.nan, np.nan)
    return [*areas, *(unknown if keep is None else over_all[:2])]


def known_matched_filter(images: np.ndarray, truth, volume: Path, definition: str, seed: int) -> np.ndarray:
    """Highest response within 3 px of the centre to the true radial mean, whitened by the true spectrum.

    What the mean profile alone can tell. It is no upper bound for a filter that also looks at the
    power of the image, which the particle's asymmetric part raises, or at the rest of the map.
    """
    box = images.shape[1]
    clean, _ = simulate_hard(volume, definition, seed, np.inf)
    mean = fs.phase_flip(clean, truth.ctf, truth.pixel_size)[truth.label].mean(axis=0)
    line = np.arange(box) - box // 2
    distance = np.hypot(line[:, None], line)
    ring = distance.round().astype(int)
    profile = np.bincount(ring.ravel(), mean.ravel()) / np.bincount(ring.ravel())
    template = np.fft.rfft2(np.fft.ifftshift(profile[ring]))
    frequency = np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box))
    whitened = template.conj() * (1 + (6 * frequency) ** 2)
    flipped = fs.phase_flip(images, truth.ctf, truth.pixel_size)
    response = np.fft.irfft2(np.fft.rfft2(flipped) * whitened, s=(box, box))
    return response[:, distance <= 3].max(axis=1)


def mean_and_lowest(values: tuple[float, ...]) -> str:
    if np.isnan(values).all():
        return ""
    return f"{np.mean(values):.3f}" + (f" ({min(values):.3f})" if len(values) > 1 else "")


def real_stacks(folder: Path) -> Iterator[tuple]:
    for name, diameter in REAL_DIAMETERS.items():
        particles, good, certain = open_real(folder, name)
        if particles is None:
            continue
        given = fs.sort_particles(particles, method="radial", diameter=diameter, n_jobs=1)
        estimated = fs.sort_particles(particles, method="radial", n_jobs=1)
        results = {
            f"radial, {diameter:.0f} A given": given,
            "radial, nothing set": estimated,
            "subspaces, nothing set": fs.sort_particles(particles, method="subspaces", n_jobs=1),
        }
        radius, n_peaks = diameter / particles.pixel_size / 2, round(particles.box / 5)
        # In the paper's own simulation r is 5 px, about half the particle's radius of 9.4 px.
        for r in (radius, radius / 2):
            results[f"radial, published, r = {r:.1f} px, A = {n_peaks}"] = fs.radial_filter(
                particles, r, n_peaks, preset="published", n_jobs=1
            )
        for what, result in results.items():
            rates = measure_accuracy(good[certain], result.keep[certain], result.score[certain])
            figures = [f"{rate:.3f}" for rate in (*rates, (rates[0] + rates[1]) / 2)]
            yield (name, what, *figures, KNOWN_REAL[name] if "published" in what else "")


def real_halves(folder: Path) -> Iterator[tuple]:
    for name, diameter in REAL_DIAMETERS.items():
        particles, good, certain = open_real(folder, name)
        if particles is None:
            continue
        for what, chosen in (("good", good & certain), ("junk", ~good & certain)):
            some = fs.open_particles(particles.read(np.flatnonzero(chosen)), pixel_size=particles.pixel_size)
            for method in METHODS:
                result = fs.sort_particles(some, diameter=diameter, method=method, n_jobs=1)
                yield (name, what, len(some), method, f"{100 * result.keep.mean():.1f} %")


def open_real(folder: Path, name: str) -> tuple:
    path = folder / f"{name}.mrcs"
    if not path.exists():
        print(f"({path} is absent: skipped)", file=sys.stderr)
        return None, None, None
    label = real_labels(folder, name)
    return fs.open_particles(path), label == "good", label != "uncertain"


def real_labels(folder: Path, name: str) -> np.ndarray:
    return np.loadtxt(folder / f"{name}_labels.csv", delimiter=",", skiprows=1, usecols=1, dtype=str)


if __name__ == "__main__":
    main()
