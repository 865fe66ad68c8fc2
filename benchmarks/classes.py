"""How good are map, classes and averages, and how fast against RELION's 2D classification?

python benchmarks/classes.py [--data FOLDER] [--only NAME ...] [--quick] [--iterations N]
                             [--relion NAME ...] [--peers-python PYTHON]

The comparison with RELION runs where relion_refine is installed. Both programs read one project from
disk and may use all cores; start-up and writing count. The map is made with umap-learn where that is
installed, and without it. ASPIRE is run by the interpreter given as --peers-python, which needs nothing
but the package aspire.
"""

from __future__ import annotations

import argparse
import inspect
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
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from tables import DATA, ROOT, print_machine, print_table
from threadpoolctl import threadpool_limits

import fastsort as fs
from fastsort.invariants.references import soft_disk
from fastsort.particles.mrc import write_stack
from fastsort.report.accuracy import measure_accuracy
from fastsort.simulate import write_project
from fastsort.simulate.noise import noise_amplitude, noise_canvas, noise_gain, noise_image
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
DETAIL_TITLE = (
    f"Detail: {DETAIL_GOOD:,} particles and {DETAIL_JUNK:,} images of junk of eight kinds (chaperonin: "
    f"700 and 700), {DETAIL_BOX} px, contrast transfer function, coloured noise, SNR 1/20 "
    f"(white_power), {RELION_CLASSES} classes: correlation of the detail of each average with that of "
    "the nearest projection, weighted by the particles"
)
DETAIL_COLUMNS = (
    "molecule",
    "program",
    "detail",
    "best class",
    "its particles",
    "balanced accuracy, best choice",
    "own choice",
    "s",
)
# Of fewer particles no class says much.
LEAST_MEMBERS = 30
# Components of the features among which scikit-learn looks for its mixture.
N_COMPONENTS = 20
# ASPIRE takes about a second for an average of 200 images, and makes one for every image if it is let.
N_ASPIRE, ASPIRE_SECONDS = 100, 900
N_HINGES, HINGE_RADIUS = 5, 27.0
# Neither molecule has a symmetry, so that angles are unique.
ALIGNED = ("70S ribosome", "EF-G")
# With white noise, "power" and "white_power" are the same.
NOISES = (("white", "power"), ("decaying", "white_power"), ("decaying", "power"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="*", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--quick", action="store_true", help="one seed instead of three")
    parser.add_argument("--iterations", type=int, default=25, help="of relion_refine")
    parser.add_argument("--relion", nargs="*", default=(), metavar="NAME", help="detail of RELION for these")
    parser.add_argument("--peers-python", metavar="PYTHON", help="interpreter with aspire")
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
            rows.append((name, *fastsort_row(stack, n_jobs=2)))
            if name in options.relion and shutil.which("relion_refine"):
                rows.append((name, *relion_row(stack, options.iterations)))
    print_table(DETAIL_TITLE, DETAIL_COLUMNS, rows)


def fastsort_row(stack: Stack, n_jobs: int) -> tuple[str, ...]:
    begin = time.perf_counter()
    found = fs.classify_particles(
        stack.star, n_classes=RELION_CLASSES, diameter=stack.diameter, embedding="pca", n_jobs=n_jobs
    )
    seconds = time.perf_counter() - begin
    good = stack.kind == "good"
    own = (found.keep[good].mean() + (~found.keep[~good]).mean()) / 2
    row = detail_row(stack, found.classes.averages.averages, found.classes.label)
    return ("fastsort map", *row, f"{own:.3f}", f"{seconds:.0f}")


def relion_row(stack: Stack, iterations: int) -> tuple[str, ...]:
    folder = stack.star.parent
    seconds = run_relion(folder, iterations, stack.diameter, threads=1)
    row = detail_row(stack, *relion_classes(folder, iterations))
    return ("relion_refine, one thread", *row, "", f"{seconds:.0f}")


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
    best = int(np.argmax(np.where(size >= LEAST_MEMBERS, agreement, -1)))
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


# Against other programs.


def peers(options: argparse.Namespace) -> None:
    rows = []
    for name in DETAIL_SETS:
        with threadpool_limits(limits=1), tempfile.TemporaryDirectory() as folder:
            stack = detail_stack(options.data, name, Path(folder))
            rows.append((name, *fastsort_row(stack, n_jobs=1)))
            rows.append((name, *mixture_row(stack)))
            if options.peers_python:
                rows += [(name, *row) for row in aspire_rows(stack, options.peers_python)]
            if name in options.relion and shutil.which("relion_refine"):
                rows.append((name, *relion_row(stack, options.iterations)))
    if not options.peers_python:
        print("\n(ASPIRE is left out: give --peers-python)")
    print_table(
        f"{DETAIL_TITLE}. One thread each. The mixture of scikit-learn divides {N_COMPONENTS} principal "
        "components of our features; our class_averages averages its classes, with flipped phases. ASPIRE "
        "has no classes: each image gets the average of the images most like it, mirrored or not, here of "
        "as many as a class holds on average, and with flipped phases. Its first line has the averages of "
        f"{N_ASPIRE} images, evenly spread: detail is the mean over those that are particles, the best "
        f"class is the best of {N_ASPIRE}, and an image is chosen if the others of its average hold more "
        "than their share of the particles, so that every image is a class. Its second line has up to "
        f"{RELION_CLASSES} of these averages, the best by ASPIRE's measure (banded SNR), none of them made "
        "for an image that is in a better one; an image in several counts for the best of them, and images "
        "in none form one more class, which has no average and does not count for detail",
        DETAIL_COLUMNS,
        rows,
    )


def mixture_row(stack: Stack) -> tuple[str, ...]:
    begin = time.perf_counter()
    particles = fs.open_particles(stack.star)
    images = fs.phase_flip(particles.read(0, len(particles)), particles.ctf, particles.pixel_size)
    features = fs.invariant_features(images, ctf=particles.ctf, pixel_size=particles.pixel_size, n_jobs=1)
    components = PCA(N_COMPONENTS, random_state=0).fit_transform(features)
    label = GaussianMixture(RELION_CLASSES, n_init=3, random_state=0).fit_predict(components)
    radius = stack.diameter / stack.pixel_size / 2
    found = fs.class_averages(images, label, n_classes=RELION_CLASSES, radius=radius, n_jobs=1)
    seconds = time.perf_counter() - begin
    row = detail_row(stack, found.averages, label)
    return (f"scikit-learn {version('scikit-learn')}, GaussianMixture", *row, "", f"{seconds:.0f}")


def aspire_rows(stack: Stack, python: str) -> list[tuple[str, ...]]:
    """Of its averages as they come, and of its best ones."""
    good, folder = stack.kind == "good", stack.star.parent
    settings = str(folder), len(good) // RELION_CLASSES, N_ASPIRE, RELION_CLASSES
    # The other interpreter need not have anything that this file imports.
    code = f"{inspect.getsource(run_aspire)}\nrun_aspire(*{settings!r})"
    names = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"
    begin = time.perf_counter()
    try:
        subprocess.run(
            [python, "-c", code],
            cwd=folder,
            env={**os.environ, **dict.fromkeys(names, "1"), "PYTHONPATH": ""},
            check=True,
            timeout=ASPIRE_SECONDS,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError) as error:
        print(f"\n(ASPIRE does not run, or not in {ASPIRE_SECONDS} s: {type(error).__name__})")
        return []
    seconds = f"{time.perf_counter() - begin:.0f}"
    with np.load(folder / "aspire.npz") as found:
        release, averages, members = str(found["release"]), found["averages"], found["members"]
        base, best = found["base"], found["best"]
    agreement = agreement_in_detail(averages, true_views(stack, averages.shape[-1]), stack)
    size = good[members[base]].sum(axis=1)
    first = int(np.argmax(np.where(size >= LEAST_MEMBERS, agreement, -1)))
    # The image itself comes first among the members.
    share = good[members[:, 1:]].mean(axis=1)
    keep = share / good.mean() > (1 - share) / (1 - good.mean())
    chosen = (keep[good].mean() + (~keep[~good]).mean()) / 2
    every = (
        f"{agreement[good[base]].mean():.3f}",
        f"{agreement[first]:.3f}",
        str(size[first]),
        f"{chosen:.3f}",
    )
    label = np.full(len(good), -1)
    for number, place in reversed(list(enumerate(best))):
        label[members[base[place]]] = number
    row = detail_row(stack, averages[best], label)
    return [
        (f"ASPIRE {release}, RIRClass2D, {len(base)} averages", *every, "", seconds),
        (f"ASPIRE {release}, RIRClass2D, best {len(best)}", *row, "", ""),
    ]


def run_aspire(folder: str, n_members: int, n_averages: int, n_best: int) -> None:
    """Be a process that runs ASPIRE, and leave what it finds in the file aspire.npz."""
    import os

    # ASPIRE gives its transforms as many threads as there are processors.
    os.cpu_count = lambda: 1

    from importlib.metadata import version

    import numpy as np
    from aspire.classification import BandedSNRImageQualityFunction, BFTAverager2D, RIRClass2D
    from aspire.source import RelionSource

    source = RelionSource(f"{folder}/particles.star", data_folder=folder, n_workers=1, dtype=np.float32)
    # Where particles were bright, ASPIRE's flipped phases make them dark.
    flipped = source.phase_flip().normalize_background().invert_contrast().cache()
    # On EF-G and the chaperonin, averages are sharper with this whitening than with ASPIRE's other or none,
    # and with the default radius of the search for shifts than with a radius of 3 px.
    classifier = RIRClass2D(
        flipped.legacy_whiten().cache(), n_nbor=n_members, nn_implementation="sklearn", seed=0
    )
    members, mirrored, _ = classifier.classify()
    averager = BFTAverager2D(classifier.pca_basis.basis, flipped, dtype=np.float32)
    base = np.arange(n_averages) * len(members) // n_averages
    averages = averager.average(members[base], mirrored[base]).asnumpy()
    # As its GlobalWithRepulsionClassSelector, which would need an average for every image.
    taken: set[int] = set()
    best: list[int] = []
    for place in np.argsort(-BandedSNRImageQualityFunction()(averages)):
        if len(best) < n_best and base[place] not in taken:
            taken.update(members[base[place]].tolist())
            best.append(int(place))
    np.savez(
        f"{folder}/aspire.npz",
        release=version("aspire"),
        averages=averages.astype(np.float32),
        members=members,
        base=base,
        best=best,
    )


# Known views.


def known_views_in_detail(options: argparse.Namespace) -> None:
    rows = []
    for name in (*VOLUMES, "elongated"):
        seen = views(options.data, name, 2000, 10)
        found = fs.classify_images(seen.images, 10, radius=seen.radius, embedding="pca", n_jobs=2).averages
        stack = Stack(Path(), name, np.empty(0), 2 * seen.radius, 1.0)
        large = found.size >= 50
        agreement = agreement_in_detail(found.averages, seen.truth, stack)[large]
        rows.append((name, f"{agreement.mean():.3f}", f"{agreement.min():.3f}", int(large.sum())))
    print_table(
        "2,000 images in 10 views, 64 px, SNR 1/10, white noise: detail of the averages of classes of 50 or "
        "more",
        ("molecule", "mean", "lowest", "classes"),
        rows,
    )


def alignment(options: argparse.Namespace) -> None:
    rows = []
    for name, n_views, (spectrum, definition) in itertools.product(ALIGNED, (1, 10), NOISES):
        seen = views(options.data, name, 2000, n_views, spectrum, definition)
        found = fs.classify_images(seen.images, n_views, radius=seen.radius, embedding="pca", n_jobs=2)
        # Whoever shows another view than most of the class has no true place in its average.
        main = np.array(
            [np.bincount(seen.view[found.label == k]).argmax() for k in range(found.label.max() + 1)]
        )
        right = (found.label >= 0) & (main[found.label] == seen.view)
        ours = pose_errors(seen, np.where(right, found.label, -1), found.averages.angle, found.averages.shift)
        angle, shift = np.empty(len(seen.view)), np.empty((len(seen.view), 2))
        for k, picture in enumerate(seen.truth):
            members = seen.view == k
            pose = fs.align_images(seen.images[members], picture, n_jobs=2)
            angle[members], shift[members] = pose.angle, pose.shift
        known = pose_errors(seen, seen.view, angle, shift)
        cells = (f"{np.median(error):.2f}, {np.percentile(error, 90):.2f}" for error in (*ours, *known))
        noise = f"{spectrum}, {definition}" if spectrum != "white" else spectrum
        rows.append((name, n_views, noise, f"{right.mean():.3f}", *cells))
    print_table(
        "Poses of 2,000 images in one or ten views, 64 px, SNR 1/10 (variance inside the particle's disk "
        'over that of the noise; "white_power": of the noise before it gets its spectrum), turned at random '
        "and shifted by 1 px on each axis, as many classes as views: errors (median, 90th percentile) up to "
        "one turn and one shift a class, for images of the view that most of their class show; and those of "
        "align_images, told the view of each image and given it without noise",
        (
            "molecule",
            "views",
            "noise",
            "images of their class's main view",
            "angle, degrees",
            "shift, px",
            "angle, views known",
            "shift, views known",
        ),
        rows,
    )


def pose_errors(
    seen: Views, label: np.ndarray, angle: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Errors in degrees and in pixels, up to one turn and one shift of each class; without those in none."""
    turn, move = [], []
    for k in np.unique(label[label >= 0]):
        members = label == k
        # An image that was turned by an angle is turned back by the same.
        off = angle[members] + seen.angle[members]
        guess = np.arange(360.0)
        near = np.median(np.abs(within_half_turn(off - guess[:, None])), axis=1).argmin()
        off = within_half_turn(off - guess[near])
        turn.append(np.abs(off - np.median(off)))
        # The centre of the average is one point of the particle, and turns with it.
        cosine, sine = np.cos(np.radians(seen.angle[members])), np.sin(np.radians(seen.angle[members]))
        row, column = (shift[members] - seen.shift[members]).T
        off = np.stack([cosine * row - sine * column, sine * row + cosine * column])
        move.append(np.hypot(*(off - np.median(off, axis=1, keepdims=True))))
    return np.concatenate(turn), np.concatenate(move)


def within_half_turn(degrees: np.ndarray) -> np.ndarray:
    return (degrees + 180) % 360 - 180


class Views(NamedTuple):
    """Noisy images of a few views, each turned and then shifted.

    `view` says which one an image shows, `truth` holds the true projections; `angle` is in degrees, from x
    to y, and `shift` in pixels, as row and column.
    """

    images: np.ndarray
    view: np.ndarray
    truth: np.ndarray
    radius: float
    angle: np.ndarray
    shift: np.ndarray


def views(
    data: Path, name: str, n: int, n_views: int, spectrum: str = "white", definition: str = "power"
) -> Views:
    box, radius = 64, 64 * FILL / 2
    rng = np.random.default_rng(5)
    turns = Rotation.random(n_views, random_state=5).as_matrix()
    angle = rng.uniform(0, 360, n)
    spin = Rotation.from_euler("z", angle[:, None], degrees=True).as_matrix()
    view = np.arange(n) % n_views
    volume, scale = centred_volume(data, name, box)
    truth = fs.project_volume(volume, turns, box, scale=scale)
    images = fs.project_volume(volume, spin @ turns[view], box, scale=scale)
    shift = rng.normal(0, 1.0, (n, 2))
    for image, moves in zip(images, shift, strict=True):
        image[:] = np.fft.ifft2(scipy.ndimage.fourier_shift(np.fft.fft2(image), moves)).real
    offset = np.arange(box) - box // 2
    inside = np.hypot(offset[:, None], offset) <= radius
    sigma = np.sqrt(truth[:, inside].var(axis=1).mean() * 10)
    if spectrum == "white":
        noise = rng.normal(0, sigma, images.shape)
    else:
        sigma *= noise_gain(spectrum) if definition == "white_power" else 1
        amplitude = noise_amplitude(spectrum, noise_canvas(box))
        noise = sigma * np.stack([noise_image(rng, amplitude, box) for _ in images])
    return Views((images + noise).astype(np.float32), view, truth, radius, angle, shift)


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
    "peers": peers,
    "views": known_views_in_detail,
    "alignment": alignment,
    "conformations": conformations,
    "memory": memory,
    "relion": relion,
}


if __name__ == "__main__":
    main()
