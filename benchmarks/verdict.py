"""How good is the verdict of all methods together, how fast, how small, and does it survive being killed?

python benchmarks/verdict.py [--quick] [--data FOLDER] [part ...]

The parts are accuracy, real, diameter, picked, reasons, shares, rare, aside, choices, speed, memory, kill,
bits and relion; all of them without any name. Nothing is set: neither diameter nor method. Speed and memory
make a stack of 6.3 GB in a temporary folder, which goes when all is done; relion runs where it is installed.
Several seeds: the mean, and the lowest in brackets.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import scipy.ndimage
import speed
import starfile
from accuracy import (
    REAL_DIAMETERS,
    RIBOSOME,
    SEEDS,
    SNRS,
    VOLUMES,
    mean_and_lowest,
    open_real,
    real_labels,
    simulate_hard,
)
from classes import RELION_CLASSES, best_choice, centred_volume
from classes import VOLUMES as MOLECULES
from scipy.spatial.transform import Rotation
from subspaces import BOX as PPCA_BOX
from tables import DATA, ROOT, print_machine, print_table, seconds_in_turn

import fastsort as fs
from fastsort._crop import crop_operator
from fastsort._saved import load
from fastsort.decide.result import SortResult
from fastsort.decide.settings import WORKING_SIZE
from fastsort.decide.votes import METHODS
from fastsort.images.batches import map_batches
from fastsort.particles.mrc import write_stack
from fastsort.report.accuracy import measure_accuracy
from fastsort.simulate.phantoms import PHANTOMS, load_volume, phantom_blobs, phantom_volume

WORKERS = 2
N_BINS = 10
# Sets of drawn recipes: how many, the range of their signal-to-noise ratio, their numbers of images, and the
# steps of the expected balanced error by which they are told of.
N_RANDOM, SIGNALS, NUMBERS = 120, (1 / 80, 1 / 5), (600, 1500, 3000)
OVERLAPS = (0.0, 0.05, 0.1, 0.15, 0.2, 1.0)
SHARES = (0, 0.01, 0.6, 1)
# Images whose diameter is estimated: is the contrast transfer function told, is it there without being told,
# or is there none; signal-to-noise ratio; share of junk; diameter in parts of the box.
SIZES = (
    ("told", 1 / 5, 0.1, 0.55),
    ("told", 1 / 20, 0.3, 0.65),
    ("told", 1 / 50, 0.3, 0.65),
    ("told", 1 / 20, 0.6, 0.42),
    ("untold", 1 / 10, 0.3, 0.6),
    ("none", 1 / 10, 0.6, 0.75),
    ("none", 1 / 20, 0.4, 0.65),
    ("none", 1 / 50, 0.3, 0.45),
)
RARE_BOX = 48
RARE_MOLECULES = ("sheath ring", "EF-G", "70S ribosome", "elongated", "two-lobed")
# The stack on disk: simulated in a small box, then brought to the large one.
BOX, SMALL_BOX, PIXEL_SIZE, BLOCK = 280, 70, 1.34, 1000
KILLED_SEED, KILLED_TIMES = 0, 10
RELION_BOX = 42


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--quick", action="store_true", help="one seed, fewer images, fewer runs")
    parser.add_argument("--measure-memory", metavar="STAR", help=argparse.SUPPRESS)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    options = parser.parse_args()
    if options.measure_memory:
        print(*peak_memory(options.measure_memory))
        return
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part named {', '.join(unknown)}: there are {', '.join(PARTS)}.")
    options.seeds = SEEDS[:1] if options.quick else SEEDS
    print_machine()
    with tempfile.TemporaryDirectory(prefix="fastsort-verdict-") as folder:
        options.folder = Path(folder)
        for name in options.parts or PARTS:
            if name not in SIMULATED or (options.data / "volumes" / RIBOSOME).exists():
                PARTS[name](options)
            else:
                print(f"\nno {options.data / 'volumes'}: nothing simulated for {name}.")


# Particles and junk told apart.


class Set(NamedTuple):
    """What is to be sorted, which images are good, and which labels count."""

    source: Any
    good: np.ndarray
    certain: np.ndarray


VERDICT = (
    "best single method",
    "its balanced accuracy",
    "balanced accuracy",
    "TPR",
    "TNR",
    "AUC",
    "estimated TPR",
    "off by",
    "estimated TNR",
    "off by",
    "calibration error",
    "known",
)
LEGEND = (
    "all methods together after the best of them alone; estimated: TPR and TNR as the verdict has them, "
    f"with their largest deviation from the truth; calibration error of the junk probability in {N_BINS} "
    "bins; known: sets whose estimates call themselves trustworthy"
)


def accuracy(options: argparse.Namespace) -> None:
    volumes = options.data / "volumes"
    recipes = {
        f"radial, SNR 1/{noise}": radial_sets(volumes / RIBOSOME, noise, options.seeds) for noise in SNRS
    }
    recipes["PPCA, SNR 1/10"] = ppca_sets(volumes / RIBOSOME, options)
    for definition in ("power", "white_power"):
        for name, file in VOLUMES.items():
            recipes[f'hard, "{definition}", {name}'] = hard_sets(volumes / file, definition, options.seeds)
    print_table(
        f"Simulated sets, nothing set: {LEGEND}.",
        ("recipe", *VERDICT),
        ((recipe, *verdict_cells(sets)) for recipe, sets in recipes.items()),
    )


def real(options: argparse.Namespace) -> None:
    if not (options.data / "real").is_dir():
        print(f"\nno {options.data / 'real'}: no real stacks.")
        return
    opened = {name: open_real(options.data / "real", name) for name in REAL_DIAMETERS}
    print_table(
        f"Real stacks, uncertain labels left out, nothing set: {LEGEND}.",
        ("stack", *VERDICT),
        ((name, *verdict_cells([Set(*found)])) for name, found in opened.items() if found[0] is not None),
    )


def radial_sets(
    volume: Path, noise: float, seeds: Iterable[int], n_good: int = 1000, n_junk: int = 999
) -> Iterator[Set]:
    for seed in seeds:
        images, truth = fs.simulate_particles(
            n_good, n_junk, snr=1 / noise, box=33, volume=volume, junk="paper", seed=seed
        )
        yield simulated_set(images, truth)


def ppca_sets(volume: Path, options: argparse.Namespace) -> Iterator[Set]:
    n_good, n_junk = (1000, 200) if options.quick else (4000, 800)
    for seed in options.seeds:
        yield simulated_set(
            *fs.simulate_particles(
                n_good, n_junk, snr=1 / 10, box=PPCA_BOX, volume=volume, junk="ppca", seed=seed
            )
        )


def hard_sets(volume: Path, definition: str, seeds: Iterable[int]) -> Iterator[Set]:
    for seed in seeds:
        yield from project_sets(*simulate_hard(volume, definition, seed, 1 / 20))


def simulated_set(images: np.ndarray, truth) -> Set:
    particles = fs.open_particles(images, pixel_size=truth.pixel_size)
    return Set(particles, truth.label, np.ones_like(truth.label))


def project_sets(images: np.ndarray, truth) -> Iterator[Set]:
    """One set, in a STAR file with the defocus: phases are flipped."""
    with tempfile.TemporaryDirectory() as folder:
        star = fs.write_project(Path(folder) / "project", images, truth)
        yield Set(star, truth.label, np.ones_like(truth.label))


def verdict_cells(sets: Iterable[Set]) -> tuple[str, ...]:
    """Cells of `VERDICT` over several sets of one kind."""
    alone: dict[str, list[float]] = {method: [] for method in METHODS}
    rates, estimates, calibration, known = [], [], [], []
    for source, good, certain in sets:
        for method, values in alone.items():
            result = fs.sort_particles(source, method=method, n_jobs=WORKERS)
            values.append(balanced(good[certain], result.keep[certain]))
        result = fs.sort_particles(source, n_jobs=WORKERS)
        found = measure_accuracy(good[certain], result.keep[certain], result.score[certain])
        rates.append((balanced(good[certain], result.keep[certain]), *found))
        estimates.append(estimated_rates(result))
        calibration.append(calibration_error(result.junk_probability[certain], ~good[certain]))
        known.append(is_known(result))
    best = max(alone, key=lambda method: np.mean(alone[method]))
    columns = list(zip(*rates, strict=True))
    told = []
    for true, estimate in zip(columns[1:3], zip(*estimates, strict=True), strict=True):
        apart = np.abs(np.subtract(estimate, true))
        told += [mean_and_lowest(estimate), "" if np.isnan(apart).all() else f"{np.nanmax(apart):.3f}"]
    return (
        best,
        mean_and_lowest(alone[best]),
        *map(mean_and_lowest, columns),
        *told,
        f"{np.mean(calibration):.3f}",
        f"{sum(known)} of {len(known)}",
    )


def balanced(good: np.ndarray, keep: np.ndarray) -> float:
    return float((keep[good].mean() + (~keep[~good]).mean()) / 2)


def is_known(result: SortResult) -> bool:
    return result.errors is not None and result.errors.known


def estimated_rates(result: SortResult) -> tuple[float, float]:
    if result.errors is None:
        return np.nan, np.nan
    return result.errors.true_positive_rate.value, result.errors.true_negative_rate.value


def calibration_error(probability: np.ndarray, junk: np.ndarray) -> float:
    """Mean difference between the probability of junk and its share, bin by bin; NaN where it is unknown."""
    if np.isnan(probability).any():
        return np.nan
    number = np.minimum((probability * N_BINS).astype(int), N_BINS - 1)
    return float(np.abs(np.bincount(number, probability - junk)).sum() / len(junk))


# How often the truth is within the intervals of what is estimated.


def intervals(options: argparse.Namespace) -> None:
    molecules = [*(options.data / "volumes" / file for file in VOLUMES.values()), *PHANTOMS]
    found, unknown = [], 0
    for source, good, _ in random_sets(molecules, 12 if options.quick else N_RANDOM):
        result = fs.sort_particles(source, n_jobs=WORKERS)
        if not is_known(result):
            unknown += 1
            continue
        kept = result.keep
        truth = kept[good].mean(), (~kept)[~good].mean(), good[kept].mean(), (~good).mean()
        told = result.errors[:4]
        within = [share.low <= value <= share.high for share, value in zip(told, truth, strict=True)]
        width = np.mean([share.high - share.low for share in told])
        found.append((1 - (told[0].value + told[1].value) / 2, *within, width))
    rows = np.array(found)
    steps = [(low, high, (rows[:, 0] >= low) & (rows[:, 0] < high)) for low, high in pairwise(OVERLAPS)]
    parts = [*((f"{low:g} to {high:g}", some) for low, high, some in steps), ("all", rows[:, 0] >= 0)]
    print_table(
        f"Share of the sets in which the truth is within the interval of 95 %, among {len(found)} sets whose "
        f"errors are known; those of {unknown} are not. Molecule, signal, share of junk, number of images, "
        "and contrast transfer or none are drawn.",
        ("expected balanced error", "sets", "TPR", "TNR", "precision", "share of junk", "mean width"),
        (
            (name, some.sum(), *(f"{value:.2f}" for value in rows[some, 1:].mean(axis=0)))
            for name, some in parts
            if some.any()
        ),
    )


def random_sets(molecules: list, n_sets: int) -> Iterator[Set]:
    """Draw recipes, and simulate one set by each."""
    # Other sets than those by which the width of the intervals was chosen.
    for seed in range(5000, 5000 + n_sets):
        rng = np.random.default_rng(seed)
        molecule, snr = molecules[rng.integers(len(molecules))], np.exp(rng.uniform(*np.log(SIGNALS)))
        n, share = int(rng.choice(NUMBERS)), rng.uniform(0.1, 0.65)
        images, truth = fs.simulate_particles(
            n - round(share * n),
            round(share * n),
            snr=float(snr),
            box=48,
            volume=molecule,
            fill=rng.uniform(0.45, 0.75) if molecule in PHANTOMS else None,
            junk="all",
            ctf=bool(rng.integers(2)),
            snr_definition=str(rng.choice(["power", "white_power"])),
            seed=seed,
        )
        yield from [simulated_set(images, truth)] if truth.ctf is None else project_sets(images, truth)


# How large the particle is.


def diameter(options: argparse.Namespace) -> None:
    volumes = {name: options.data / "volumes" / file for name, file in VOLUMES.items()}
    molecules = volumes | dict.fromkeys(PHANTOMS)
    print_table(
        "Estimated diameter over that of the sphere that truly holds 95 % of the mass, nothing set, 1200 "
        "images of 48 px, junk of all kinds, one figure a seed; ?: not known; CTF: told, untold (in the "
        "images, not in the source) or none.",
        ("CTF", "SNR", "junk", "diameter / box", *molecules),
        (
            (
                ctf,
                f"1/{1 / snr:.0f}",
                f"{100 * share:.0f} %",
                fill,
                *(size_cell(options, name, path, ctf, snr, share, fill) for name, path in molecules.items()),
            )
            for ctf, snr, share, fill in SIZES
        ),
    )
    real = {name: open_real(options.data / "real", name)[0] for name in REAL_DIAMETERS}
    print_table(
        "Real stacks, whose defocus is not known, nothing set.",
        ("stack", "diameter in A", "estimated"),
        (
            (name, f"{REAL_DIAMETERS[name]:.0f}", f"{fs.sort_particles(source, n_jobs=WORKERS).diameter:.0f}")
            for name, source in real.items()
            if source is not None
        ),
    )


def size_cell(
    options: argparse.Namespace,
    name: str,
    path: Path | None,
    ctf: str,
    snr: float,
    share: float,
    fill: float,
) -> str:
    if path is None:
        volume = phantom_volume(phantom_blobs(name), 96, 50.0)
    else:
        volume = load_volume(path)[0]
    # The diameter that a simulation tells holds 98 % of the mass.
    part = mass_diameter(volume, 0.95) / mass_diameter(volume, 0.98)
    n_junk = round(1200 * share)
    found = []
    for seed in options.seeds:
        images, truth = fs.simulate_particles(
            1200 - n_junk,
            n_junk,
            snr=snr,
            box=48,
            volume=name if path is None else path,
            fill=fill,
            junk="all",
            ctf=ctf != "none",
            # Neither the seeds nor the noise by which the method was chosen.
            seed=1000 + seed,
        )
        sets = project_sets(images, truth) if ctf == "told" else [simulated_set(images, truth)]
        for source, *_ in sets:
            result = fs.sort_particles(source, n_jobs=WORKERS)
            found.append(result.diameter / (part * truth.diameter))
    return ", ".join("?" if np.isnan(value) else f"{value:.2f}" for value in found)


def mass_diameter(volume: np.ndarray, part: float) -> float:
    """Diameter in voxels of the sphere about the centre of mass that holds a part of the mass."""
    density = np.where(volume > 0.05 * volume.max(), volume, 0)
    points, mass = np.argwhere(density), density[density > 0].astype(np.float64)
    distance = np.linalg.norm(points - mass @ points / mass.sum(), axis=1)
    order = np.argsort(distance)
    return 2 * float(distance[order[np.searchsorted(np.cumsum(mass[order]), part * mass.sum())]])


# What pickers return, and estimates that hold.

# Sets by which neither methods nor limits were chosen have seed 1.
PICKED_SEED = 1


def picked(options: argparse.Namespace) -> None:
    rows = []
    for name, file in VOLUMES.items():
        volume = options.data / "volumes" / file
        rows += picked_rows(f"picked noise, one third, {name}", [hard_project(volume, "picked", 2000, 1000)])
        for definition in ("white_power", "power"):
            hard = simulate_hard(volume, definition, PICKED_SEED, 1 / 20)
            rows += picked_rows(f'hard, "{definition}", {name}', [hard])
        rows += picked_rows(f"particles only, {name}", [hard_project(volume, "all", 1500, 0)])
        rows += picked_rows(f"junk only, {name}", [hard_project(volume, "all", 0, 1500)])
        for share in (0.02, 0.6, 0.9, 0.95):
            n_junk = round(2000 * share)
            made = hard_project(volume, "all", 2000 - n_junk, n_junk)
            rows += picked_rows(f"{100 * share:g} % junk, {name}", [made])
    print_table(
        'Simulated sets, CTF, SNR 1/20 ("white_power" where nothing is said), nothing set; area under the '
        "curve by kind; estimates with their intervals, and ! where these miss the truth.",
        ("set", *PICKED),
        rows,
    )


PICKED = (
    "AUC",
    "ice",
    "picked",
    "TPR",
    "TNR",
    "precision",
    "estimated",
    "",
    "",
    "calibration error",
    "known",
)


def hard_project(volume: Path, junk: str, n_good: int, n_junk: int, seed: int = PICKED_SEED) -> tuple:
    return fs.simulate_particles(
        n_good,
        n_junk,
        snr=1 / 20,
        box=48,
        volume=volume,
        junk=junk,
        ctf=True,
        snr_definition="white_power",
        seed=seed,
    )


def picked_rows(name: str, made: Iterable[tuple]) -> Iterator[tuple[str, ...]]:
    for images, truth in made:
        for source, good, _ in project_sets(images, truth):
            result = fs.sort_particles(source, n_jobs=WORKERS)
            found = measure_accuracy(good, result.keep, result.score)
            areas = [found.area_under_curve]
            for kind in ("ice", "picked"):
                some = good | (truth.kind == kind)
                part = measure_accuracy(good[some], result.keep[some], result.score[some])
                areas.append(part.area_under_curve)
            rates = (found[0], found[1], good[result.keep].mean() if result.keep.any() else np.nan)
            yield (
                name,
                *(f"{value:.3f}" for value in (*areas, *rates)),
                *estimate_cells(result, rates),
                f"{calibration_error(result.junk_probability, ~good):.3f}",
                "yes" if is_known(result) else "no",
            )


def estimate_cells(result: SortResult, rates: tuple[float, ...]) -> Iterator[str]:
    errors = result.errors
    told = (errors.true_positive_rate, errors.true_negative_rate, errors.precision)
    for estimate, rate in zip(told, rates, strict=True):
        missed = not estimate.low <= rate <= estimate.high and np.isfinite(rate + estimate.value)
        yield f"{estimate.low:.2f} to {estimate.high:.2f}{'!' if missed else ''}"


# Why images are rejected.

# What is right for each kind of the hard recipe, and for the labels of the real stacks. Where a label says
# only that the middle holds no whole particle, three reasons are right.
RIGHT = {
    "noise": ("noise",),
    "picked": ("noise",),
    "partial": ("partial",),
    "multiple": ("multiple",),
    "off-centre": ("off-centre",),
    "ice": ("contamination",),
    "carbon": ("contamination",),
    "texture": ("contamination",),
    "offcentre": ("off-centre", "partial", "multiple"),
}
NAMES = ("noise", "partial", "multiple", "off-centre", "contamination")


def reasons(options: argparse.Namespace) -> None:
    volumes = options.data / "volumes"
    rows = []
    if (volumes / RIBOSOME).exists():
        for name, file in VOLUMES.items():
            found = []
            for seed in options.seeds:
                images, truth = simulate_hard(volumes / file, "white_power", seed, 1 / 20)
                for source, _, _ in project_sets(images, truth):
                    result = fs.sort_particles(source, n_jobs=WORKERS)
                    rejected = ~result.keep & ~result.rescued
                    found.append((truth.kind[rejected], result.reason[rejected]))
            kinds, given = map(np.concatenate, zip(*found, strict=True))
            rows += reason_rows(name, kinds, given)
    if (options.data / "real").is_dir():
        for name in REAL_DIAMETERS:
            particles, _, certain = open_real(options.data / "real", name)
            if particles is not None:
                label = real_labels(options.data / "real", name)
                result = fs.sort_particles(particles, n_jobs=WORKERS)
                rejected = ~result.keep & ~result.rescued & certain
                rows += reason_rows(name, label[rejected], result.reason[rejected])
    print_table(
        "Reasons of rejected images by what they show, all methods, nothing set, rescued images left out; "
        "named: share with any reason but `unlike`; right: share of the named. Of the simulated sets, all "
        "seeds together.",
        ("set", "shown", "rejected", "named", "right", *NAMES, "unlike"),
        rows,
    )


def reason_rows(name: str, kinds: np.ndarray, given: np.ndarray) -> Iterator[tuple]:
    """One row for all junk whose reason is known, and one for each kind."""
    known = np.isin(kinds, list(RIGHT))
    if known.any():
        yield reason_row(name, "all of these", kinds[known], given[known])
    for kind in sorted(set(kinds.tolist()), key=lambda kind: (kind not in RIGHT, kind)):
        yield reason_row(name, kind, kinds[kinds == kind], given[kinds == kind])


def reason_row(name: str, what: str, kinds: np.ndarray, given: np.ndarray) -> tuple:
    named = np.isin(given, NAMES)
    right = [reason in RIGHT.get(kind, ()) for kind, reason in zip(kinds, given, strict=True)]
    share = f"{np.mean(np.array(right)[named]):.3f}" if named.any() and kinds[0] in RIGHT else ""
    counts = Counter(given.tolist())
    return name, what, len(given), f"{named.mean():.3f}", share, *(counts[n] for n in (*NAMES, "unlike"))


# Any share of junk.


def shares(options: argparse.Namespace) -> None:
    n = 600 if options.quick else 2000
    print_table(
        f"How much of {n} images is kept by the share of junk, nothing set, one figure a seed; known: sets "
        "whose estimates call themselves trustworthy.",
        ("recipe", "junk", "kept", "TPR", "TNR", "known", "estimated share of junk"),
        (
            (recipe, f"{100 * share:g} %", *share_cells(sets))
            for share in SHARES
            for recipe, sets in share_sets(options, n - round(n * share), round(n * share))
        ),
    )


def share_sets(options: argparse.Namespace, n_good: int, n_junk: int) -> Iterator[tuple[str, Iterator[Set]]]:
    volumes = options.data / "volumes"
    yield "radial, SNR 1/50", radial_sets(volumes / RIBOSOME, 50, options.seeds, n_good, n_junk)
    hard = (
        one
        for seed in options.seeds
        for one in project_sets(
            *fs.simulate_particles(
                n_good,
                n_junk,
                snr=1 / 20,
                box=48,
                volume=volumes / VOLUMES["EF-G"],
                junk="all",
                ctf=True,
                snr_definition="white_power",
                seed=seed,
            )
        )
    )
    yield 'hard, "white_power", EF-G', hard


def share_cells(sets: Iterable[Set]) -> tuple[str, ...]:
    kept, rates, known, estimates = [], [], [], []
    for source, good, _ in sets:
        result = fs.sort_particles(source, n_jobs=WORKERS)
        kept.append(percent(result.keep))
        rates.append(measure_accuracy(good, result.keep, result.score)[:2])
        known.append(is_known(result))
        share = np.nan if result.errors is None else result.errors.junk_share.value
        estimates.append("unknown" if np.isnan(share) else f"{100 * share:.1f} %")
    columns = (mean_and_lowest(column) for column in zip(*rates, strict=True))
    return ", ".join(kept), *columns, f"{sum(known)} of {len(known)}", ", ".join(estimates)


def percent(chosen: np.ndarray) -> str:
    return f"{100 * chosen.mean():.1f} %"


# Rare views.


def rare(options: argparse.Namespace) -> None:
    molecules = RARE_MOLECULES[-2:] if options.quick else RARE_MOLECULES
    print_table(
        "1600 images of one view, 40 of another at a right angle to it and 360 of junk of all kinds, "
        f"{RARE_BOX} px, white noise, nothing set: share of each that is kept, or set aside as a rare view.",
        (
            "molecule",
            "SNR",
            "rare kept",
            "rare rescued",
            "rare, both",
            "common kept",
            "junk kept",
            "junk rescued",
        ),
        ((name, f"1/{noise}", *rare_cells(options, name, noise)) for name in molecules for noise in (10, 20)),
    )


def rare_cells(options: argparse.Namespace, name: str, noise: float) -> Iterator[str]:
    found = []
    for seed in options.seeds:
        images, kind = two_views(options.data, name, 1600, 40, 360, seed, 1 / noise)
        result = fs.sort_particles(images, n_jobs=WORKERS)
        keep, rescued = (
            {which: chosen[kind == which].mean() for which in ("rare", "common", "junk")}
            for chosen in (result.keep, result.rescued)
        )
        both = keep["rare"] + rescued["rare"]
        found.append((keep["rare"], rescued["rare"], both, keep["common"], keep["junk"], rescued["junk"]))
    return map(mean_and_lowest, zip(*found, strict=True))


def two_views(
    data: Path, name: str, n_common: int, n_rare: int, n_junk: int, seed: int, snr: float
) -> tuple[np.ndarray, np.ndarray]:
    """Images of a molecule from two sides and of junk, in random order, and the kind of each."""
    rng = np.random.default_rng(seed)
    volume, scale = centred_volume(data, name, RARE_BOX)
    rotations = np.concatenate([turned(rng, n_common, 0), turned(rng, n_rare, 90)])
    images = fs.project_volume(volume, rotations, RARE_BOX, scale=scale)
    offset = np.arange(RARE_BOX) - RARE_BOX // 2
    disk = np.hypot(offset[:, None], offset) <= RARE_BOX / 3
    deviation = np.sqrt(images[:n_common, disk].var() / snr)
    for image in images:
        moved = scipy.ndimage.fourier_shift(np.fft.fft2(image), rng.normal(0, 0.015 * RARE_BOX, 2))
        image[:] = np.fft.ifft2(moved).real
    images += rng.normal(0, deviation, images.shape).astype(np.float32)
    background = images[:, ~disk]
    images -= background.mean(axis=1)[:, None, None]
    images /= background.std(axis=1)[:, None, None]
    others, truth = fs.simulate_particles(
        1,
        n_junk,
        snr=snr,
        snr_definition="power",
        box=RARE_BOX,
        volume=data / "volumes" / MOLECULES[name] if name in MOLECULES else name,
        junk="all",
        noise="white",
        seed=seed + 100,
    )
    kind = np.repeat(["common", "rare", "junk"], [n_common, n_rare, n_junk])
    order = rng.permutation(len(kind))
    return np.concatenate([images, others[~truth.label]])[order], kind[order]


def turned(rng: np.random.Generator, n: int, tilt: float) -> np.ndarray:
    """Turned by any angle in the plane, seen from within a few degrees of one direction."""
    spin = Rotation.from_euler("z", rng.uniform(0, 360, (n, 1)), degrees=True)
    wobble = Rotation.from_rotvec(np.radians(rng.normal(0, 4, (n, 3))))
    return (spin * Rotation.from_euler("y", tilt, degrees=True) * wobble).as_matrix()


# Choices by hand.

N_CHOICES, N_CHOOSERS = (10, 30, 100), 20


def choices(options: argparse.Namespace) -> None:
    volumes = options.data / "volumes"
    recipes: dict[str, Iterable[Set]] = {
        f'hard, "{definition}", {name}': hard_sets(volumes / file, definition, options.seeds)
        for definition in ("power", "white_power")
        for name, file in VOLUMES.items()
    }
    for name in REAL_DIAMETERS if (options.data / "real").is_dir() else ():
        found = open_real(options.data / "real", name)
        if found[0] is not None:
            recipes[name] = [Set(*found)]
    print_table(
        "What is learned from choices: images taken by chance and kept or rejected as the truth says. "
        f"Balanced accuracy of the verdict on all others, and how much it gains: mean of {N_CHOOSERS} "
        "persons a set (lowest), and how often anything is learned.",
        ("recipe", "as it was", *(f"{number} choices" for number in N_CHOICES)),
        ((recipe, *choices_cells(sets)) for recipe, sets in recipes.items()),
    )


def choices_cells(sets: Iterable[Set]) -> Iterator[str]:
    before: list[float] = []
    gains: dict[int, list[float]] = {number: [] for number in N_CHOICES}
    learned = dict.fromkeys(N_CHOICES, 0)
    for source, good, certain in sets:
        result = fs.sort_particles(source, n_jobs=WORKERS)
        known = np.flatnonzero(np.asarray(certain, bool) & np.isfinite(result.score))
        before.append(balanced(good[known], result.keep[known]))
        for number in N_CHOICES:
            for person in range(N_CHOOSERS):
                rows = np.random.default_rng(person).choice(known, number, replace=False)
                told = fs.decide.learn_from_choices(result, rows[good[rows]], rows[~good[rows]])
                rest = np.setdiff1d(known, rows)
                was, now = (balanced(good[rest], one.keep[rest]) for one in (result, told.result))
                gains[number].append(now - was)
                learned[number] += told.learned
    yield f"{np.mean(before):.3f}"
    for number in N_CHOICES:
        share = learned[number] / len(gains[number])
        yield f"{np.mean(gains[number]):+.3f} ({min(gains[number]):+.3f}), {100 * share:.0f} %"


# Sets without a rare view.


def aside(options: argparse.Namespace) -> None:
    print_table(
        "Sets without a rare view, nothing set, one figure a seed: what is set aside as one. Target: at most "
        "1 % of the images, or 70 % of what is set aside are particles.",
        ("recipe", "images", "set aside", "share of all images", "particles among them"),
        ((recipe, *aside_cells(sets)) for recipe, sets in sets_without_rare(options)),
    )


def sets_without_rare(options: argparse.Namespace) -> Iterator[tuple[str, Iterable[Set]]]:
    volumes = options.data / "volumes"
    for name, file in VOLUMES.items():
        for definition in ("white_power", "power"):
            yield f'hard, "{definition}", {name}', hard_sets(volumes / file, definition, options.seeds)
        for what, n_good, n_junk, junk in (
            ("noise that a picker took", 2000, 1000, "picked"),
            ("no junk", 2000, 0, "all"),
            ("90 % junk", 200, 1800, "all"),
        ):
            yield f"{what}, {name}", without_rare(volumes / file, options.seeds, n_good, n_junk, junk)
    for name in REAL_DIAMETERS if (options.data / "real").is_dir() else ():
        found = open_real(options.data / "real", name)
        if found[0] is not None:
            yield name, [Set(*found)]


def without_rare(volume: Path, seeds: Iterable[int], n_good: int, n_junk: int, junk: str) -> Iterator[Set]:
    for seed in seeds:
        yield from project_sets(*hard_project(volume, junk, n_good, n_junk, seed))


def aside_cells(sets: Iterable[Set]) -> Iterator[str]:
    rows = []
    for source, good, certain in sets:
        rescued = fs.sort_particles(source, n_jobs=WORKERS).rescued
        known = rescued & certain
        rows.append(
            (
                str(len(good)),
                str(rescued.sum()),
                percent(rescued),
                percent(good[known]) if known.any() else "-",
            )
        )
    return map(", ".join, zip(*rows, strict=True))


# Time and memory.


def time_taken(options: argparse.Namespace) -> None:
    stack, runs = large_stack(options), 2 if options.quick else 5
    n = speed.warm_page_cache(stack)
    results: dict[str, list[SortResult]] = {
        "all methods": [],
        "radial alone": [],
        "subspaces alone": [],
    }
    jobs = {"only read and crop": lambda: read_and_crop(stack)}
    for (what, found), method in zip(results.items(), (None, "radial", "subspaces"), strict=True):
        jobs[what] = lambda found=found, method=method: found.append(
            fs.sort_particles(stack, method=method, n_jobs=WORKERS)
        )
    # Compile on a few images first.
    few = fs.open_particles(fs.open_particles(stack).read(0, 200))
    for method in (None, "radial", "subspaces"):
        fs.sort_particles(few, method=method, n_jobs=WORKERS)
    seconds = seconds_in_turn(jobs, runs)
    reading = np.median(seconds["only read and crop"])
    stages = ("read and crop", "measure", "decide")
    rows = []
    for what, times in seconds.items():
        found = [result.seconds for result in results.get(what, [])]
        by_stage = [f"{np.median([one[stage] for one in found]):.2f}" if found else "" for stage in stages]
        median = np.median(times)
        spread = f"{min(times):.2f} to {max(times):.2f}"
        rows.append(
            (what, f"{median:.2f}", spread, f"{median / reading:.2f}", f"{n / median:.0f}", *by_stage)
        )
    print_table(
        f"{n:,} images of {BOX} px in float32 on disk, page cache warm, {WORKERS} workers, nothing set: "
        f"seconds, medians of {runs} in turn, and how many times as long as reading and cropping alone.",
        ("what", "seconds", "range", "times reading and cropping", "images/s", *stages),
        rows,
    )


def read_and_crop(stack: Path) -> None:
    particles = fs.open_particles(stack)
    operator = crop_operator(particles.box, WORKING_SIZE["default"])
    for _ in map_batches(speed.crop, particles, operator, n_jobs=WORKERS):
        pass


def large_stack(options: argparse.Namespace) -> Path:
    """The stack on disk; made by whichever part asks first."""
    n = 1000 if options.quick else 20_000
    path = options.folder / f"{n}.mrcs"
    if not path.exists():
        write_stack(path, large_blocks(n), PIXEL_SIZE, n, BOX)
    return path


def large_blocks(n: int) -> Iterator[np.ndarray]:
    """Clean images of a small box on the finer grid of the large one, in white noise."""
    # Cropping in Fourier space, read backwards: bands that the small box has not stay empty.
    finer = crop_operator(BOX, SMALL_BOX).T * np.float32(BOX / SMALL_BOX)
    rng = np.random.default_rng(0)
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        recipe = {"box": SMALL_BOX, "junk": "all", "noise": "white", "normalize": False, "seed": start}
        clean, truth = fs.simulate_particles(size - size // 4, size // 4, snr=np.inf, **recipe)
        if start == 0:
            offset = np.arange(SMALL_BOX) - SMALL_BOX // 2
            disk = np.hypot(offset[:, None], offset) <= SMALL_BOX / 3
            # In the small box a pixel has a signal-to-noise ratio of 1/10, in the large one of 1/160.
            deviation = np.float32(np.sqrt(10 * clean[truth.label][:, disk].var()) * BOX / SMALL_BOX)
        images = np.matmul(np.matmul(finer, clean), finer.T)
        images += deviation * rng.standard_normal(images.shape, dtype=np.float32)
        yield images


def memory(options: argparse.Namespace) -> None:
    stack = large_stack(options)
    n = len(fs.open_particles(stack))
    found = {}
    for times in (1, 2):
        star = options.folder / f"{times}.star"
        speed.write_star(star, stack.resolve(), n, times)
        command = [sys.executable, __file__, "--measure-memory", str(star)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
        found[f"{times * n:,}"] = [int(number) for number in done.stdout.split()]
    peaks = [peak for _, peak in found.values()]
    print_table(
        f"Peak resident memory in MB of a process that sorts images of {BOX} px, {WORKERS} workers, nothing "
        "set (twice as many: each named twice); wanted: less than 1000 MB, and at most 100 MB apart.",
        ("images", "after the imports", "peak"),
        [*((name, *numbers) for name, numbers in found.items()), ("difference", "", peaks[1] - peaks[0])],
    )


def peak_memory(star: str) -> tuple[int, int]:
    before = resident("VmRSS")
    fs.sort_particles(star, n_jobs=WORKERS)
    return before, resident("VmHWM")


def resident(name: str) -> int:
    """Megabytes of this process; unlike ru_maxrss, not those of the process that started this one."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return round(1.024e-3 * next(int(line.split()[1]) for line in file if line.startswith(name)))


# Killed, and the same bits.


def kill(options: argparse.Namespace) -> None:
    star, n = project(options)
    reference = options.folder / "undisturbed"
    # The first run compiles.
    sort_command(star, options.folder / "first")
    begin = time.perf_counter()
    sort_command(star, reference)
    whole = time.perf_counter() - begin
    moments = np.random.default_rng(KILLED_SEED).uniform(0, whole, 3 if options.quick else KILLED_TIMES)
    print_table(
        f"The command fastsort sort on {n:,} images of 64 px, killed once and started again: whether its "
        f"files are those of the undisturbed run, which takes {whole:.1f} s, and what else it leaves.",
        ("killed after", "stage reached", "runs until done", "equal", "strays"),
        (
            (f"{moment:.2f} s", *killed_cells(star, options.folder / f"killed-{number}", moment, reference))
            for number, moment in enumerate(moments)
        ),
    )


def killed_cells(star: Path, folder: Path, moment: float, reference: Path) -> tuple[object, ...]:
    folder.mkdir()
    output = folder / "sorted"
    with subprocess.Popen(command_line(star, output), env=environment()) as process:
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
    stage, runs = stage_reached(output), 1
    # A run that was faster than the undisturbed one is done.
    if process.returncode:
        sort_command(star, output)
        runs += 1
    apart = ", ".join(different_files(output, reference)) or "yes"
    strays = sorted(item.name for item in folder.iterdir() if item != output)
    return stage, runs, apart, ", ".join(strays) or "none"


def stage_reached(output: Path) -> str:
    """What a killed run was doing, by what it has left."""
    work, partial = (output.with_name(f".{output.name}.{end}") for end in ("work", "partial"))
    if output.exists():
        return "done"
    if partial.is_dir() and any(partial.iterdir()):
        return "writing"
    for done, doing in (
        ("invariants.stage", "deciding"),
        ("subspaces.stage", "invariants"),
        ("radial.stage", "subspaces"),
        ("learned.stage", "radial"),
        ("images.work.done", "reading or learning"),
    ):
        if (work / done).exists():
            return doing
    return "starting"


def different_files(folder: Path, reference: Path) -> Iterator[str]:
    """Name what differs in two folders of results, but for the times that the runs took."""
    names = {item.name for item in (*folder.iterdir(), *reference.iterdir())}
    for name in sorted(names):
        one, other = folder / name, reference / name
        if not (one.exists() and other.exists()):
            yield f"{name} is missing"
        elif name == "results.npz":
            for part in differences(*(load(path)._replace(seconds={}) for path in (one, other))):
                yield f"{name}: {part}"
        elif one.suffix in (".star", ".csv", ".txt", ".mrcs") and one.read_bytes() != other.read_bytes():
            yield name


def differences(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """Name the parts of two results that differ in any bit."""
    if type(one) is not type(other):
        yield name
    elif isinstance(one, dict | tuple | list):
        parts = []
        for value in (one, other):
            named = value._asdict() if hasattr(value, "_asdict") else value
            parts.append(dict(named.items() if isinstance(named, dict) else enumerate(named)))
        if list(parts[0]) != list(parts[1]):
            yield name
            return
        for key in parts[0]:
            yield from differences(parts[0][key], parts[1][key], f"{name}.{key}" if name else str(key))
    elif one is not None:
        a, b = np.asarray(one), np.asarray(other)
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            yield name


def bits(options: argparse.Namespace) -> None:
    star, n = project(options)
    print_table(
        f"The same {n:,} images of 64 px, nothing set: what differs in any bit from the result of one "
        "worker.",
        ("workers", "differs", "seconds"),
        bits_rows(star),
    )


def bits_rows(star: Path) -> Iterator[tuple]:
    first = None
    # A configuration of joblib holds from the moment that it is made: it is made in its turn.
    for what, n_jobs, configured in (
        ("n_jobs=1", 1, nullcontext),
        ("n_jobs=2", 2, nullcontext),
        ("loky, 2 processes", None, lambda: joblib.parallel_config("loky", n_jobs=2)),
    ):
        with configured():
            begin = time.perf_counter()
            result = fs.sort_particles(star, n_jobs=n_jobs)
            seconds = time.perf_counter() - begin
        result = result._replace(seconds={})
        first = first or result
        yield what, ", ".join(differences(result, first)) or "nothing", f"{seconds:.1f}"


def project(options: argparse.Namespace) -> tuple[Path, int]:
    """A simulated project on disk, and how many images it has; made by whichever part asks first."""
    # Fewer would make no more than two batches, which no workers share.
    n = 2000 if options.quick else 3000
    folder = options.folder / "project"
    if not folder.exists():
        images, truth = fs.simulate_particles(
            n - n // 3, n // 3, snr=1 / 20, box=64, junk="all", ctf=True, seed=0
        )
        fs.write_project(folder, images, truth)
    return folder / "particles.star", n


# The command, and RELION.


def sort_command(star: Path, folder: Path, *more: str, **variables: str) -> float:
    """Run the command until it is done, and return how many seconds it took."""
    begin = time.perf_counter()
    subprocess.run(command_line(star, folder, *more), check=True, env=environment(**variables))
    return time.perf_counter() - begin


def command_line(star: Path, folder: Path, *more: str) -> list[str]:
    command = [sys.executable, "-m", "fastsort", "sort", str(star), "-o", str(folder), "--quiet"]
    return [*command, *more]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def relion(options: argparse.Namespace) -> None:
    if not shutil.which("relion_refine"):
        print("\nrelion_refine is not installed: nothing to compare with.")
        return
    n, iterations = (200, 2) if options.quick else (2000, 25)
    images, truth = fs.simulate_particles(
        n // 2,
        n // 2,
        snr=1 / 50,
        box=RELION_BOX,
        volume=options.data / "volumes" / RIBOSOME,
        junk="paper",
        seed=0,
    )
    folder = options.folder / "relion"
    star = fs.write_project(folder, images, truth)
    found = {}
    for what, n_jobs, variables in (
        ("fastsort sort, 1 thread", "1", {"OMP_NUM_THREADS": "1"}),
        (f"fastsort sort, {os.cpu_count()} cores (default)", "-1", {}),
    ):
        # The first run compiles.
        seconds = [
            sort_command(star, folder / "sorted", "--overwrite", "--jobs", n_jobs, **variables)
            for _ in range(4)
        ][1:]
        keep = load(folder / "sorted" / "results.npz").keep
        found[what] = float(np.median(seconds)), balanced(truth.label, keep), "its own"
    theirs, label = classify_with_relion(star, iterations, truth.diameter)
    what = f"relion_refine, {RELION_CLASSES} classes, {iterations} iterations, 1 thread"
    found[what] = theirs, best_choice(label, truth.label), "the best choice of classes"
    print_table(
        f"{n:,} images of {RELION_BOX} px, radial recipe at SNR 1/50, half of them junk: wall time of whole "
        "commands (ours: median of 3, with imports, tables and page; RELION: one run).",
        ("program", "wall time in s", "RELION takes so many times as long", "balanced accuracy", "verdict"),
        (
            (name, f"{seconds:.1f}", f"{theirs / seconds:.0f}", f"{value:.3f}", verdict)
            for name, (seconds, value, verdict) in found.items()
        ),
    )


def classify_with_relion(star: Path, iterations: int, diameter: float) -> tuple[float, np.ndarray]:
    """Seconds and classes, in the order of the STAR file, with the usual settings of RELION's window."""
    (star.parent / "classes").mkdir()
    command = (
        f"relion_refine --i {star.name} --o classes/run --K {RELION_CLASSES} --iter {iterations} "
        f"--tau2_fudge 2 --particle_diameter {1.2 * diameter:.0f} --flatten_solvent --zero_mask "
        "--oversampling 1 --psi_step 12 --offset_range 5 --offset_step 2 --norm --scale --pool 3 --pad 2 "
        "--dont_combine_weights_via_disc --random_seed 1 --j 1"
    )
    begin = time.perf_counter()
    with open(star.parent / "relion.log", "w", encoding="utf-8") as log:
        code = subprocess.run(
            command.split(), cwd=star.parent, stdout=log, stderr=log, check=False
        ).returncode
    seconds = time.perf_counter() - begin
    if code:
        raise RuntimeError(f"relion_refine failed: {Path(log.name).read_text(encoding='utf-8')[-2000:]}")
    names = starfile.read(star)["particles"]["rlnImageName"]
    table = starfile.read(star.parent / "classes" / f"run_it{iterations:03d}_data.star")["particles"]
    return seconds, table.set_index("rlnImageName")["rlnClassNumber"][names].to_numpy()


PARTS = {
    "accuracy": accuracy,
    "real": real,
    "intervals": intervals,
    "diameter": diameter,
    "picked": picked,
    "reasons": reasons,
    "shares": shares,
    "rare": rare,
    "aside": aside,
    "choices": choices,
    "speed": time_taken,
    "memory": memory,
    "kill": kill,
    "bits": bits,
    "relion": relion,
}
# What needs the volumes of the data folder.
SIMULATED = ("accuracy", "intervals", "diameter", "picked", "shares", "rare", "aside", "choices", "relion")


if __name__ == "__main__":
    main()
