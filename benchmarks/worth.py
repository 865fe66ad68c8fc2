"""What is sorting worth: how much time does it save, and does the map stay as good?

python benchmarks/worth.py [--quick] [--molecule NAME] [--data FOLDER] [--picture PNG]

A simulated project as a picker leaves it goes through RELION three times: all images, those that fastsort
keeps with nothing set, and the true particles. RELION classifies each set in 2D, always with the same
options, and makes a map of it. Particles go into the map with their true poses, junk with random ones, so
that maps differ by their images alone. This needs relion_refine and relion_reconstruct.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from classes import VOLUMES
from scipy.spatial.transform import Rotation
from tables import DATA, print_machine, print_table
from verdict import sort_command

import fastsort as fs
from fastsort._saved import load
from fastsort.particles.table import NOTHING_ADDED, Added
from fastsort.report.canvas import HEADING, MARGIN, add_panel, new_figure, write, write_heading
from fastsort.report.layout import WIDTH
from fastsort.simulate.phantoms import load_volume, volume_extent
from fastsort.simulate.plan import Truth

PICTURE = Path(__file__).with_name("worth.png")
PROGRAMS = ("relion_refine", "relion_reconstruct")
N_GOOD, N_JUNK, BOX, SNR = 6000, 4000, 48, 1 / 20
# Coarse, so that all images take minutes and not hours.
CLASSIFY = (
    "--K 10 --iter 5 --tau2_fudge 2 --flatten_solvent --zero_mask --strict_highres_exp 15 "
    "--oversampling 0 --psi_step 36 --offset_range 2 --offset_step 2 --ctf --norm --scale --pad 2 "
    "--pool 30 --dont_combine_weights_via_disc --no_parallel_disc_io --random_seed 1 --j 1"
)
COLORS = ("#b5482a", "#1f6fb2", "#2c8a4b")


class Seconds(NamedTuple):
    """What a program took: of the clock, and of the processor."""

    wall: float
    processor: float


class Outcome(NamedTuple):
    """What became of one set of images."""

    name: str
    n_images: int
    n_good: int
    classification: Seconds
    density: np.ndarray
    fsc: np.ndarray
    resolution: float

    @property
    def purity(self) -> float:
        """Share of particles in the set."""
        return self.n_good / self.n_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--molecule", choices=tuple(VOLUMES), default="EF-G")
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    parser.add_argument("--picture", type=Path, help="PNG; without --quick, worth.png beside this script")
    options = parser.parse_args()
    if not options.quick:
        options.picture = options.picture or PICTURE
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    volume = options.data / "volumes" / VOLUMES[options.molecule]
    if missing:
        print(f"{' and '.join(missing)} not installed: nothing to measure with.")
    elif not volume.exists():
        print(f"no {volume}: nothing to simulate.")
    else:
        print_machine()
        with tempfile.TemporaryDirectory(prefix="fastsort-worth-") as folder:
            measure(options, volume, Path(folder) / "project")


def measure(options: argparse.Namespace, volume: Path, folder: Path) -> None:
    parts = 10 if options.quick else 1
    images, truth = fs.simulate_particles(
        N_GOOD // parts,
        N_JUNK // parts,
        snr=SNR,
        snr_definition="white_power",
        box=BOX,
        volume=volume,
        junk="all",
        ctf=True,
        seed=0,
    )
    star = fs.write_project(folder, images, truth)
    # The first run compiles.
    sort_command(star, folder / "compiled")
    sorting = seconds_of(lambda: sort_command(star, folder / "sorted"))
    sets = {
        "all images": np.ones_like(truth.label),
        "kept by fastsort": load(folder / "sorted" / "results.npz").keep,
        "true particles": truth.label,
    }
    true = true_density(volume, truth)
    outcomes = [outcome_of(name, chosen, star, truth, true) for name, chosen in sets.items()]
    whole = outcomes[0]
    print_table(
        f"{options.molecule}, {len(truth.label):,} images of {BOX} px of {truth.pixel_size:.2f} A, junk of "
        f'all kinds, SNR "white_power" 1/{1 / SNR:.0f}, contrast transfer function, one seed; seconds of '
        "the processor, in brackets of the clock, RELION on one thread; resolution: where the FSC with the "
        "true density, inside a soft sphere, is 0.5.",
        (
            "set",
            "images",
            "of all images",
            "particles",
            "particles in the set",
            "RELION's 2D classification",
            "of the time of all images",
            "resolution of the map, A",
        ),
        (
            (
                one.name,
                f"{one.n_images:,}",
                f"{one.n_images / whole.n_images:.3f}",
                f"{one.n_good:,}",
                f"{100 * one.purity:.1f} %",
                f"{one.classification.processor:.0f} ({one.classification.wall:.0f})",
                f"{one.classification.processor / whole.classification.processor:.3f}",
                f"{one.resolution:.2f}",
            )
            for one in outcomes
        ),
    )
    print(f"\nSorting took {sorting.processor:.1f} s of the processor ({sorting.wall:.1f} s of the clock).")
    if options.picture:
        draw(options.picture, options.molecule, truth, outcomes, true * soft_sphere(truth), sorting)


def seconds_of(job: Callable[[], object]) -> Seconds:
    """Time a job that runs in processes of its own; other jobs disturb the processor's time less."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    job()
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def outcome_of(name: str, chosen: np.ndarray, star: Path, truth: Truth, true: np.ndarray) -> Outcome:
    folder, rows, table = star.parent, np.flatnonzero(chosen), fs.open_particles(star).table
    label = name.split()[0]
    # RELION starts from the poses that a table has: the classification is told none.
    table.write_part(folder, label, rows, NOTHING_ADDED)
    table.write_part(folder, f"{label}_poses", rows, Added(labels=poses(truth)))
    (folder / f"{label}_classes").mkdir()
    diameter = f"--particle_diameter {1.2 * truth.diameter:.0f}"
    seconds = seconds_of(
        lambda: relion(
            folder, f"relion_refine --i {label}.star --o {label}_classes/run {diameter} {CLASSIFY}"
        )
    )
    relion(folder, f"relion_reconstruct --i {label}_poses.star --o {label}.mrc --ctf")
    sphere = soft_sphere(truth)
    density = load_volume(folder / f"{label}.mrc")[0] * sphere
    fsc = shell_correlation(density, true * sphere)
    resolution = len(true) * truth.pixel_size / crossing(fsc)
    return Outcome(name, len(rows), int(truth.label[rows].sum()), seconds, density, fsc, resolution)


def relion(folder: Path, command: str) -> None:
    done = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command.split()[0]} failed: {done.stderr[-2000:]}")


def poses(truth: Truth) -> dict[str, list[str]]:
    """True angles and origins of particles, random angles of junk, as columns for RELION."""
    rotation = Rotation.random(len(truth.label), random_state=1)
    matrices = np.where(truth.label[:, None, None], truth.rotation, rotation.as_matrix())
    # RELION's angles turn the frame, so they are those of the inverse rotation. Its origins are the shifts
    # that bring particles back to the middle.
    angles = Rotation.from_matrix(matrices).inv().as_euler("ZYZ", degrees=True)
    origins = -np.where(truth.label[:, None], truth.shift, 0) * truth.pixel_size
    columns = {
        "_rlnAngleRot": angles[:, 0],
        "_rlnAngleTilt": angles[:, 1],
        "_rlnAnglePsi": angles[:, 2],
        "_rlnOriginXAngst": origins[:, 1],
        "_rlnOriginYAngst": origins[:, 0],
    }
    return {label: [f"{value:.5f}" for value in values] for label, values in columns.items()}


# Maps.


def true_density(volume: Path, truth: Truth) -> np.ndarray:
    """The density on the grid of the map, its centre of mass on voxel box // 2, as the simulation has it."""
    density = load_volume(volume)[0].astype(np.float64)
    extent = volume_extent(density)
    scale = extent.diameter * truth.pixel_size / truth.diameter
    limit = (BOX - 1) // 2 if scale >= 1 else int((BOX - 1) / 2 * scale)
    wave = 2j * np.pi * np.arange(-limit, limit + 1)
    to_map = np.exp(np.outer(np.arange(BOX) - BOX // 2, wave) / BOX)
    for centre in extent.centre:
        position = (np.arange(len(density)) - centre) / (BOX * scale)
        sample = (to_map @ np.exp(-np.outer(wave, position))).real / BOX
        # Each turn takes the first axis and puts it last; after three all are where they were.
        density = np.tensordot(density, sample, (0, 1))
    return density


def distances() -> np.ndarray:
    """Distance of every voxel from voxel box // 2; of a shifted transform, from frequency zero."""
    line = np.arange(BOX) - BOX // 2
    return np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)


def soft_sphere(truth: Truth) -> np.ndarray:
    """1 inside a sphere a tenth wider than the particle, and 0 from four voxels further out."""
    beyond = distances() - 1.1 * truth.diameter / truth.pixel_size / 2
    return 0.5 + 0.5 * np.cos(np.pi * np.clip(beyond / 4, 0, 1))


def shell_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Fourier shell correlation, below the Nyquist frequency."""
    shell = np.rint(distances()).astype(int).ravel()
    a, b = (np.fft.fftshift(np.fft.fftn(density)).ravel() for density in (one, other))
    cross, first, second = (
        np.bincount(shell, values)[: BOX // 2]
        for values in ((a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2)
    )
    return cross / np.sqrt(first * second)


def crossing(fsc: np.ndarray, level: float = 0.5) -> float:
    """The first shell, fractions allowed, at which a curve is at the level; its last if it stays above."""
    below = np.flatnonzero(fsc[1:] < level) + 1
    if not len(below):
        return len(fsc) - 1.0
    end = below[0]
    return end - (level - fsc[end]) / (fsc[end - 1] - fsc[end])


# The picture. All lengths are pixels.


def draw(
    path: Path, molecule: str, truth: Truth, outcomes: list[Outcome], true: np.ndarray, sorting: Seconds
) -> None:
    tile, gap, left, width, height = 330, 24, 96, 660, 740
    figure = new_figure(HEADING + height + 100)
    write_heading(
        figure,
        "What is sorting worth?",
        f"{molecule}, {len(truth.label):,} simulated images, {100 * (1 - outcomes[0].purity):.0f} % of them "
        f"junk; sorting takes {sorting.processor:.0f} s, "
        "RELION's 2D classification what stands above each map",
    )
    axes = add_panel(figure, (left, HEADING + 20, width, height - 20))
    draw_curves(axes, truth, outcomes)
    shown = [(name_of(one), facts_of(one), low_pass(one, truth), color) for one, color in styled(outcomes)]
    shown.append(("the true density", "", true, "0.2"))
    for number, (name, facts, density, color) in enumerate(shown):
        row, column = divmod(number, 2)
        x = WIDTH - MARGIN - 2 * tile - gap + column * (tile + gap)
        y = HEADING + 60 + row * (tile + 80)
        write(figure, x, y - 30, name, fontsize=13, fontweight="bold", color=color)
        write(figure, x, y - 9, facts, fontsize=11, color="0.3")
        picture = add_panel(figure, (x, y, tile, tile))
        section = density[BOX // 2]
        # One grey for the solvent of all maps, however deep the troughs in it are.
        picture.imshow(section / section.max(), vmin=-0.15, vmax=1, cmap="gray", interpolation="bicubic")
        picture.axis("off")
    notes = "Central slices, each map cut off at its own resolution. Junk has random angles in the maps."
    write(figure, WIDTH - MARGIN, HEADING + height + 84, notes, ha="right", fontsize=10, color="0.3")
    figure.savefig(path, format="png")


def draw_curves(axes: Any, truth: Truth, outcomes: list[Outcome]) -> None:
    frequency = np.arange(BOX // 2) / (BOX * truth.pixel_size)
    for one, color in styled(outcomes):
        label = f"{name_of(one)}: {one.resolution:.2f} A"
        axes.plot(frequency, one.fsc, color=color, linewidth=2.2, label=label)
    axes.axhline(0.5, color="0.6", linewidth=1, linestyle="--")
    axes.set(xlim=(0, frequency[-1]), ylim=(-0.05, 1.02))
    axes.set_xlabel("resolution in A", fontsize=12)
    axes.set_ylabel("Fourier shell correlation with the true density", fontsize=12)
    ticks = frequency[4::4]
    axes.set_xticks(ticks, [f"{1 / tick:.1f}" for tick in ticks])
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", fontsize=12, frameon=False)


def styled(outcomes: list[Outcome]) -> list[tuple[Outcome, str]]:
    return list(zip(outcomes, COLORS, strict=True))


def name_of(one: Outcome) -> str:
    return f"{one.name} ({one.n_images:,})"


def facts_of(one: Outcome) -> str:
    return f"{100 * one.purity:.1f} % particles, 2D in {one.classification.processor:.0f} s"


def low_pass(one: Outcome, truth: Truth) -> np.ndarray:
    inside = distances() <= BOX * truth.pixel_size / one.resolution
    return np.fft.ifftn(np.fft.fftn(one.density) * np.fft.ifftshift(inside)).real


if __name__ == "__main__":
    main()
