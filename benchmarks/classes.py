"""How good are map, classes and averages, and how fast against RELION's 2D classification?

python benchmarks/classes.py [--data FOLDER] [--only NAME ...] [--quick] [--iterations N]

The comparison with RELION runs where relion_refine is installed. Both programs read one project from
disk and may use all cores; start-up and writing count. The map is made with umap-learn where that is
installed, and without it.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import mrcfile
import numpy as np
import pandas as pd
import scipy.ndimage
import starfile
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation
from scipy.stats import norm
from tables import DATA, ROOT, print_machine, print_table

import fastsort as fs
from fastsort.invariants.references import soft_disk
from fastsort.particles.mrc import write_stack
from fastsort.report.accuracy import measure_accuracy
from fastsort.simulate import write_project
from fastsort.simulate.phantoms import load_volume, phantom_blobs, phantom_volume, volume_extent

VOLUMES = {
    "70S ribosome": "ribosome70s_65px.mrc",
    "EF-G": "efg_64px_2.5A.mrc",
    "sheath ring": "sheath_ring_64px_4.4A.mrc",
}
PAIRS = (("70S ribosome", "EF-G"), ("globular", "two-lobed"), ("70S ribosome", "sheath ring"))
# Shot noise of 20 electrons on a pixel of 1 A against the contrast of a particle of 85 A: a sphere of
# protein, 2.2 V over ice at 300 kV, has about 1/30; what is less compact has more.
SNRS = (15, 20, 30)
BOX, PIXEL_SIZE, FILL = 128, 1.0, 2 / 3
SEEDS = (0, 1, 2)
RELION_BOX, RELION_CLASSES, RELION_SNR = 84, 10, 20
ROWS = 1_000_000
DETAIL_SETS = ("chaperonin", *VOLUMES, "two-lobed", "elongated")
DETAIL_BOX, DETAIL_GOOD, DETAIL_JUNK = 60, 1200, 800
N_HINGES, HINGE_RADIUS = 5, 27.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="*", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--quick", action="store_true", help="one seed instead of three")
    parser.add_argument("--iterations", type=int, default=25, help="of relion_refine")
    parser.add_argument("--relion", nargs="*", default=(), metavar="NAME", help="detail of RELION for these")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows:
        map_rows(options.rows)
        return
    print_machine()
    for name in options.only:
        PARTS[name](options)


# Two molecules in one set.


def molecules(options: argparse.Namespace) -> None:
    seeds = SEEDS[:1] if options.quick else SEEDS
    print_table(
        f"Two molecules, 2,000 images each, {BOX} px of {PIXEL_SIZE:g} A, defocus 1 to 2.5 um, flipped, "
        "white noise: part of the images in the right half (mean over the seeds, lowest in brackets)",
        ("molecules", "SNR", "two groups of 10 classes", "two components among the features"),
        (
            (f"{one} + {other}", f"1/{snr}", *map(spread, zip(*splits, strict=True)))
            for one, other in PAIRS
            for snr in SNRS
            for splits in [[split(options.data, (one, other), snr, seed) for seed in seeds]]
        ),
    )
    print_table(
        "The same with 15 % junk of all kinds, 10 classes: class score over images",
        ("molecules", "SNR", "AUC", "particles in classes that are kept", "junk in classes that are dropped"),
        (
            (f"{one} + {other}", f"1/{snr}", *map(spread, zip(*found, strict=True)))
            for one, other in PAIRS
            for snr in SNRS
            for found in [[junk_classes(options.data, (one, other), snr, seed) for seed in seeds]]
        ),
    )


def split(data: Path, names: tuple[str, str], snr: float, seed: int) -> tuple[float, float]:
    images, molecule, _ = mixture(data, names, 2000, 0, snr, seed)
    found = fs.classify_particles(
        images, n_classes=10, n_groups=2, diameter=BOX * FILL, embedding="pca", n_jobs=2
    )
    group = np.append(found.classes.group, -1)[found.classes.label]
    features = fs.invariant_features(images, n_jobs=2)
    return purity(group, molecule), purity(fs.map_features(features, 2, embedding="pca").label, molecule)


def purity(group: np.ndarray, molecule: np.ndarray) -> float:
    return max(float((group == molecule).mean()), float((group == 1 - molecule).mean()))


def junk_classes(data: Path, names: tuple[str, str], snr: float, seed: int) -> tuple[float, float, float]:
    images, _, kind = mixture(data, names, 2000, 353, snr, seed)
    found = fs.classify_particles(images, n_classes=10, diameter=BOX * FILL, embedding="pca", n_jobs=2)
    accuracy = measure_accuracy(kind == "good", found.keep, found.score)
    return accuracy.area_under_curve, accuracy.true_positive_rate, accuracy.true_negative_rate


def mixture(
    data: Path, names: tuple[str, str], n_good: int, n_junk: int, snr: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Phase-flipped images of two molecules in random order, which one each belongs to, and its kind."""
    parts = []
    for number, name in enumerate(names):
        images, truth = simulate(data, name, n_good, n_junk, BOX, snr, 10 * seed + number)
        images = fs.phase_flip(images, truth.ctf, truth.pixel_size)
        parts.append((images, np.full(len(images), number), truth.kind))
    images, molecule, kind = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.random.default_rng(seed).permutation(len(images))
    return images[order], molecule[order], kind[order]


def simulate(data: Path, name: str, n_good: int, n_junk: int, box: int, snr: float, seed: int):
    volume = data / "volumes" / VOLUMES[name] if name in VOLUMES else name
    return fs.simulate_particles(
        n_good,
        n_junk,
        snr=1 / snr,
        box=box,
        volume=volume,
        pixel_size=PIXEL_SIZE * BOX / box,
        fill=FILL,
        junk="all",
        noise="white",
        ctf=True,
        seed=seed,
    )


def spread(values: tuple[float, ...]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f})" if len(values) > 1 else f"{values[0]:.3f}"


def real(options: argparse.Namespace) -> None:
    sets = {"apoferritin_picks": 128.0, "betagal_curated": 180.0}
    stacks = [fs.open_particles(options.data / "real" / f"{name}.mrcs") for name in sets]
    images = np.concatenate([stack.read(0, len(stack)) for stack in stacks])
    molecule = np.repeat([0, 1], [len(stack) for stack in stacks])
    features = fs.invariant_features(images, n_jobs=2)
    rows = [
        (
            "two components among the features",
            purity(fs.map_features(features, 2, embedding="pca").label, molecule),
        )
    ]
    found = fs.classify_particles(images, n_classes=10, n_groups=2, embedding="pca", n_jobs=2).classes
    group = np.append(found.group, -1)[found.label]
    rows.append(
        ("two groups of 10 classes, images in kept classes", purity(group[group >= 0], molecule[group >= 0]))
    )
    print_table(
        f"Real: {len(stacks[0])} images of apoferritin_picks + {len(stacks[1])} of betagal_curated",
        ("how", "purity"),
        ((how, f"{value:.4f}") for how, value in rows),
    )


# Detail.


class Stack(NamedTuple):
    """A simulated project with junk, and what it shows."""

    star: Path
    volume: Path | str
    kind: np.ndarray
    diameter: float
    pixel_size: float


def detail(options: argparse.Namespace) -> None:
    rows = []
    for name in DETAIL_SETS:
        with tempfile.TemporaryDirectory() as folder:
            stack = detail_stack(options.data, name, Path(folder))
            begin = time.perf_counter()
            found = fs.classify_particles(
                stack.star, n_classes=RELION_CLASSES, diameter=stack.diameter, embedding="pca", n_jobs=2
            )
            seconds = time.perf_counter() - begin
            good = stack.kind == "good"
            own = (found.keep[good].mean() + (~found.keep[~good]).mean()) / 2
            classes = found.classes
            row = detail_row(stack, classes.averages.averages, classes.label)
            rows.append((name, "fastsort map", *row, f"{own:.3f}", f"{seconds:.0f}"))
            if name in options.relion and shutil.which("relion_refine"):
                seconds = run_relion(Path(folder), options.iterations, stack.diameter, threads=1)
                row = detail_row(stack, *relion_classes(Path(folder), options.iterations))
                rows.append((name, "relion_refine, one thread", *row, "", f"{seconds:.0f}"))
    print_table(
        f"Detail: {DETAIL_GOOD:,} particles and {DETAIL_JUNK:,} images of junk of eight kinds (chaperonin: "
        f"700 and 700), {DETAIL_BOX} px, contrast transfer function, coloured noise, SNR 1/20 "
        f"(white_power), {RELION_CLASSES} classes: correlation of the detail of each average with that of "
        "the nearest projection, weighted by the particles",
        (
            "molecule",
            "program",
            "detail",
            "best class",
            "its particles",
            "balanced accuracy, best choice",
            "own choice",
            "s",
        ),
        rows,
    )


def detail_stack(data: Path, name: str, folder: Path) -> Stack:
    volume: Path | str = data / "volumes" / VOLUMES[name] if name in VOLUMES else name
    counts = DETAIL_GOOD, DETAIL_JUNK
    if name == "chaperonin":
        volume, counts = write_chaperonin(folder / "chaperonin.mrc"), (700, 700)
    images, truth = fs.simulate_particles(
        *counts,
        snr=1 / 20,
        snr_definition="white_power",
        box=DETAIL_BOX,
        volume=volume,
        junk="all",
        ctf=True,
        # As when RELION classified these images, which takes 14 to 28 minutes a set.
        centring=0.015,
        seed=5,
    )
    star = write_project(folder / "project", images, truth)
    for path in star.parent.iterdir():
        path.rename(folder / path.name)
    return Stack(folder / star.name, volume, truth.kind, truth.diameter, truth.pixel_size)


def write_chaperonin(path: Path) -> Path:
    """Two rings of seven subunits, back to back; each has an equatorial, a middle and an apical domain."""
    size, pixel_size = 80, 2.5
    z, y, x = (np.indices((size, size, size)) - size // 2) * pixel_size
    volume = np.zeros((size, size, size))
    for ring, subunit in itertools.product((-1, 1), range(7)):
        angle = 2 * np.pi * (subunit + 0.25 * ring) / 7
        for radius, height, width, weight, turn in (
            (42, 18, 13, 1.0, 0.0),
            (50, 38, 8, 0.8, 0.12),
            (44, 60, 12, 0.9, 0.28),
        ):
            place = radius * np.cos(angle + turn), radius * np.sin(angle + turn), ring * height
            square = (x - place[0]) ** 2 + (y - place[1]) ** 2 + (z - place[2]) ** 2
            volume += weight * np.exp(-1.1 * square / width**2)
    write_stack(path, [volume.astype(np.float32)], pixel_size, size, size)
    return path


def detail_row(stack: Stack, averages: np.ndarray, label: np.ndarray) -> tuple[str, str, str, str]:
    good = stack.kind == "good"
    size = np.bincount(label[good & (label >= 0)], minlength=len(averages))
    agreement = agreement_in_detail(averages, true_views(stack, averages.shape[-1]), stack)
    # Of a few particles no class says much.
    best = int(np.argmax(np.where(size >= 30, agreement, -1)))
    return (
        f"{(agreement * size).sum() / size.sum():.3f}",
        f"{agreement[best]:.3f}",
        str(size[best]),
        f"{best_choice(label, good):.3f}",
    )


def true_views(stack: Stack, box: int, count: int = 600) -> np.ndarray:
    """Projections along directions that cover the sphere evenly."""
    if isinstance(stack.volume, Path):
        volume = load_volume(stack.volume)[0]
    else:
        volume = phantom_volume(phantom_blobs(stack.volume), 64, 42)
    extent = volume_extent(volume)
    volume = scipy.ndimage.shift(volume, np.array(volume.shape) // 2 - extent.centre).astype(np.float32)
    number = np.arange(count) + 0.5
    tilt, turn = np.arccos(1 - 2 * number / count), np.pi * (1 + math.sqrt(5)) * number
    rotations = Rotation.from_euler("zy", np.stack([turn, tilt], axis=1)).as_matrix().transpose(0, 2, 1)
    return fs.project_volume(
        volume, rotations, box, scale=extent.diameter * stack.pixel_size / stack.diameter
    )


def agreement_in_detail(averages: np.ndarray, views: np.ndarray, stack: Stack) -> np.ndarray:
    """Best correlation of each average with a view, in periods below a third of the diameter, in the disk."""
    box = averages.shape[-1]
    diameter = stack.diameter / stack.pixel_size
    references = high_pass(views, diameter / 3) * soft_disk(box, 0.525 * diameter)
    shown = np.flatnonzero(np.ptp(averages.reshape(len(averages), -1), axis=1) > 0)
    fine = high_pass(averages[shown], diameter / 3) * soft_disk(box, 0.575 * diameter)
    agreement = np.zeros(len(averages))
    agreement[shown] = fs.match_to_references(fine, references, max_shift=box / 20, n_jobs=2).score
    return agreement


def high_pass(images: np.ndarray, period: float) -> np.ndarray:
    box = images.shape[-1]
    frequency = np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box))
    weight = 1 / (1 + np.exp((1 / period - frequency) * period / 0.15))
    return np.fft.irfft2(np.fft.rfft2(images) * weight, s=(box, box)).astype(np.float32)


def relion_classes(folder: Path, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Averages, and the class of each image in the order of the project, from 0."""
    run = folder / "relion" / f"run_it{iterations:03d}"
    table = starfile.read(f"{run}_data.star")["particles"].set_index("rlnImageName")["rlnClassNumber"]
    names = starfile.read(folder / "particles.star")["particles"]["rlnImageName"]
    with mrcfile.open(f"{run}_classes.mrcs") as file:
        return np.array(file.data, dtype=np.float32), table[names].to_numpy() - 1


def known_views_in_detail(options: argparse.Namespace) -> None:
    rows = []
    for name in (*VOLUMES, "elongated"):
        images, _, truth, radius = views(options.data, name, 2000, 10)
        found = fs.classify_images(images, 10, radius=radius, embedding="pca", n_jobs=2).averages
        stack = Stack(Path(), name, np.empty(0), 2 * radius, 1.0)
        large = found.size >= 50
        agreement = agreement_in_detail(found.averages, truth, stack)[large]
        rows.append((name, f"{agreement.mean():.3f}", f"{agreement.min():.3f}", int(large.sum())))
    print_table(
        "2,000 images in 10 views, 64 px, SNR 1/10, white noise: detail of the averages of classes of 50 or "
        "more",
        ("molecule", "mean", "lowest", "classes"),
        rows,
    )


# Conformations.


def conformations(options: argparse.Namespace) -> None:
    rows = []
    for snr in (10, 20):
        images, label, limit = hinges(2000, 1 / snr)
        for seed in SEEDS[:1] if options.quick else SEEDS:
            found = fs.classify_images(
                images, N_HINGES, radius=HINGE_RADIUS, embedding="pca", n_jobs=2, seed=seed
            ).label
            table = np.zeros((N_HINGES, N_HINGES))
            np.add.at(table, (label, found), 1)
            right = table[linear_sum_assignment(-table)].sum() / len(label)
            error = np.abs(table.sum(axis=0) / len(label) - 1 / N_HINGES).max()
            rows.append((f"1/{snr}", seed, f"{right:.3f}", f"{error:.3f}", f"{limit:.3f}"))
    print_table(
        f"{N_HINGES} conformations of a molecule of two domains (a hinge of 0, 10, ... degrees, seen from "
        "one side), 2,000 images of 64 px, found as classes",
        (
            "SNR",
            "seed",
            "purity",
            "largest error of a share",
            "two neighbours told apart, if all else were known",
        ),
        rows,
    )


def hinges(n: int, snr: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Images of the conformations, which one each shows, and how often the best test tells neighbours."""
    box, rng = 64, np.random.default_rng(3)
    label = np.arange(n) % N_HINGES
    images = np.empty((n, box, box), dtype=np.float32)
    still = np.empty((N_HINGES, box, box), dtype=np.float32)
    for k in range(N_HINGES):
        volume, members = hinged(10 * k, box), np.flatnonzero(label == k)
        spin = Rotation.from_euler("z", rng.uniform(0, 360, (len(members), 1)), degrees=True).as_matrix()
        images[members] = fs.project_volume(volume, spin, box, scale=1.0)
        still[k] = fs.project_volume(volume, np.eye(3)[None], box, scale=1.0)[0]
    for image in images:
        moved = scipy.ndimage.fourier_shift(np.fft.fft2(image), rng.normal(0, 1.0, 2))
        image[:] = np.fft.ifft2(moved).real
    offset = np.arange(box) - box // 2
    inside = np.hypot(offset[:, None], offset) <= HINGE_RADIUS
    sigma = math.sqrt(still[:, inside].var(axis=1).mean() / snr)
    told = []
    for one, other in itertools.pairwise(still):
        pose = fs.align_images(other[None], one, n_jobs=1)
        difference = one - fs.apply_alignment(other[None], pose, n_jobs=1)[0]
        told.append(norm.cdf(math.sqrt((difference**2).sum()) / sigma / 2))
    noisy = images + rng.normal(0, sigma, images.shape)
    return noisy.astype(np.float32), label, float(np.mean(told))


def hinged(degrees: float, size: int) -> np.ndarray:
    """Two domains of five blobs each, one of them turned about their joint."""
    rng = np.random.default_rng(1)
    z, y, x = np.indices((size, size, size)) - size // 2
    volume = np.zeros((size, size, size), dtype=np.float32)
    for side in (-1, 1):
        turn = math.radians(degrees) if side == 1 else 0.0
        for place in range(5):
            along, across, depth = side * (3 + 4.5 * place), rng.normal(0, 4), rng.normal(0, 3)
            column = along * math.cos(turn) - across * math.sin(turn)
            row = along * math.sin(turn) + across * math.cos(turn)
            volume += np.exp(-((x - column) ** 2 + (y - row) ** 2 + (z - depth) ** 2) / (2 * 2.0**2))
    return volume


def views(data: Path, name: str, n: int, n_views: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Noisy images of a few views, turned and shifted at random, and the true projections."""
    box, radius = 64, 64 * FILL / 2
    rng = np.random.default_rng(5)
    turns = Rotation.random(n_views, random_state=5).as_matrix()
    spin = Rotation.from_euler("z", rng.uniform(0, 360, (n, 1)), degrees=True).as_matrix()
    label = np.arange(n) % n_views
    volume, scale = centred_volume(data, name, box)
    truth = fs.project_volume(volume, turns, box, scale=scale)
    images = fs.project_volume(volume, spin @ turns[label], box, scale=scale)
    for image in images:
        moved = scipy.ndimage.fourier_shift(np.fft.fft2(image), rng.normal(0, 1.0, 2))
        image[:] = np.fft.ifft2(moved).real
    offset = np.arange(box) - box // 2
    inside = np.hypot(offset[:, None], offset) <= radius
    sigma = np.sqrt(truth[:, inside].var(axis=1).mean() * 10)
    return (images + rng.normal(0, sigma, images.shape)).astype(np.float32), label, truth, radius


# Against RELION.


def relion(options: argparse.Namespace) -> None:
    if not shutil.which("relion_refine"):
        print("\nrelion_refine is not installed: nothing to compare with.")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth = write_two_molecules(options.data, folder)
        good = (truth["kind"] == "good").to_numpy()
        found = {}
        for embedding in ("pca", "umap") if installed("umap-learn") else ("pca",):
            run_map(folder, embedding)
            seconds = statistics.median(run_map(folder, embedding) for _ in range(3))
            table = starfile.read(folder / "map" / "particles.star")["particles"]
            kept = (table["fastsortClassScore"] <= 1).to_numpy()
            chosen = (kept[good].mean() + (~kept[~good]).mean()) / 2
            best = best_choice(table["rlnClassNumber"].to_numpy(), good)
            found[f"fastsort map, {embedding}"] = seconds, best, f"{chosen:.3f}"
        theirs = run_relion(folder, options.iterations, BOX * FILL, threads=os.cpu_count() or 1)
        label = starfile.read(folder / "relion" / f"run_it{options.iterations:03d}_data.star")["particles"]
        label = label.set_index("rlnImageName")["rlnClassNumber"][truth["name"]].to_numpy()
        found[f"relion_refine, {options.iterations} iterations"] = theirs, best_choice(label, good), ""
    rows = [
        (name, f"{seconds:.1f}", f"{theirs / seconds:.0f}", f"{best:.3f}", chosen)
        for name, (seconds, best, chosen) in found.items()
    ]
    print_table(
        f"2,000 images of {RELION_BOX} px, {RELION_CLASSES} classes, {os.cpu_count()} cores: 70S ribosome "
        f"and EF-G, 850 each, 15 % junk of all kinds, SNR 1/{RELION_SNR}, contrast transfer function",
        (
            "program",
            "wall time in s",
            "times as fast",
            "balanced accuracy, best choice of classes",
            "its own choice",
        ),
        rows,
    )


def write_two_molecules(data: Path, folder: Path) -> pd.DataFrame:
    tables, truths = [], []
    for number, name in enumerate(("70S ribosome", "EF-G")):
        images, truth = simulate(data, name, 850, 150, RELION_BOX, RELION_SNR, 10 * number + 1)
        project = starfile.read(write_project(folder / str(number), images, truth))
        table = project["particles"]
        table["rlnImageName"] = table["rlnImageName"].str.replace("@", f"@{number}/")
        table["rlnMicrographName"] = f"{number}/" + table["rlnMicrographName"]
        tables.append(table)
        truths.append(pd.DataFrame({"name": table["rlnImageName"], "kind": truth.kind}))
    path = folder / "particles.star"
    starfile.write({"optics": project["optics"], "particles": pd.concat(tables)}, path)
    path.write_text(path.read_text().replace("\ndata_", "\n# version 30001\n\ndata_"))
    return pd.concat(truths, ignore_index=True)


def run_relion(folder: Path, iterations: int, diameter: float, threads: int) -> float:
    """What RELION's window runs if nothing is changed in it but the number of classes and of threads."""
    (folder / "relion").mkdir()
    command = (
        f"relion_refine --i particles.star --o relion/run --ctf --K {RELION_CLASSES} --iter {iterations} "
    )
    command += f"--tau2_fudge 2 --particle_diameter {1.2 * diameter:.0f} --flatten_solvent --zero_mask "
    command += (
        "--oversampling 1 --psi_step 12 --offset_range 5 --offset_step 2 --norm --scale --pool 3 --pad 2 "
    )
    command += f"--dont_combine_weights_via_disc --random_seed 1 --j {threads}"
    begin = time.perf_counter()
    subprocess.run(
        command.split(), cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - begin


def run_map(folder: Path, embedding: str) -> float:
    command = [
        sys.executable,
        "-m",
        "fastsort",
        "map",
        "particles.star",
        "-o",
        "map",
        "--overwrite",
        "--quiet",
    ]
    command += ["--classes", str(RELION_CLASSES), "--diameter", f"{BOX * FILL:.0f}", "--embedding", embedding]
    begin = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return time.perf_counter() - begin


def best_choice(label: np.ndarray, good: np.ndarray) -> float:
    """Balanced accuracy if those classes are kept that hold more than their share of the particles."""
    keep = np.zeros(len(good), dtype=bool)
    for number in np.unique(label):
        members = label == number
        keep[members] = good[members].sum() / good.sum() > (~good[members]).sum() / (~good).sum()
    return float((keep[good].mean() + (~keep[~good]).mean()) / 2)


def installed(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True


# Size.


def memory(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "features.npy"
        rng = np.random.default_rng(0)
        width = fs.invariant_features(rng.standard_normal((1, 32, 32), dtype=np.float32)).shape[1]
        rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(ROWS, width))
        centres = rng.standard_normal((12, width))
        for start in range(0, ROWS, 10_000):
            which = rng.integers(0, 12, 10_000)
            rows[start : start + 10_000] = centres[which] + rng.standard_normal((10_000, width))
        rows.flush()
        results = []
        for embedding in ("pca", "umap") if installed("umap-learn") else ("pca",):
            command = [sys.executable, __file__, "--rows", str(path)]
            environment = {**os.environ, "EMBEDDING": embedding}
            output = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            ).stdout
            results.append((embedding, *output.split()))
    print_table(
        f"{ROWS:,} feature vectors of {width} numbers, memory-mapped: map and mixture",
        ("embedding", "classes", "wall time in s", "peak memory in GB"),
        results,
    )


def map_rows(path: Path) -> None:
    begin = time.perf_counter()
    found = fs.map_features(np.load(path, mmap_mode="r"), embedding=os.environ["EMBEDDING"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(found.n_classes, f"{time.perf_counter() - begin:.0f}", f"{peak:.2f}")


def centred_volume(data: Path, name: str, box: int) -> tuple[np.ndarray, float]:
    """A density, and the scale at which its particle fills two thirds of the box."""
    if name in VOLUMES:
        volume = load_volume(data / "volumes" / VOLUMES[name])[0]
    else:
        volume = phantom_volume(phantom_blobs(name), 64, 42)
    extent = volume_extent(volume)
    # Projections turn about the middle voxel.
    middle = np.rint(extent.centre).astype(int)
    return np.roll(volume, len(volume) // 2 - middle, axis=(0, 1, 2)), extent.diameter / (FILL * box)


PARTS = {
    "molecules": molecules,
    "real": real,
    "detail": detail,
    "views": known_views_in_detail,
    "conformations": conformations,
    "memory": memory,
    "relion": relion,
}


if __name__ == "__main__":
    main()
