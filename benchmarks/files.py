"""Does it run on files of other programs, and are particles found among raw picks?

python benchmarks/files.py [formats micrographs simulated] [--seeds 0] [--data FOLDER]

Every file is read; sorted where its images are there, else divided by a list; written; and read by other
code, which compares all fields of all rows. STAR files are read by RELION too, where it is installed.
"simulated" sorts what a blob picker takes in simulated micrographs, and what two programs took in three real
ones whose particles are known.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mrcfile
import numpy as np
import starfile
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from tables import DATA, print_machine, print_table

from fastsort import cli, open_particles, sort_particles
from fastsort.images import blob_maxima
from fastsort.report.accuracy import measure_accuracy
from fastsort.simulate import project_volume
from fastsort.simulate.phantoms import volume_extent

# Picks as near to a human one as this, in pixels, are good.
NEAR = 16
DIAMETER = 128.0
BOXES = (112, 128, 144, 160, 192)
# Simulated micrographs: how many, their side in pixels, particles in each, the particle's diameter, the box,
# and the variance of a particle inside its disk over that of the noise.
N_MICROGRAPHS, SIDE, N_PARTICLES, WIDE, BOX, SNR = 6, 1536, 150, 48, 72, 1 / 8
MOLECULES = {"EF-G": "efg_64px_2.5A.mrc", "ribosome": "ribosome70s_65px.mrc"}
# Picks for each particle that is there.
PICKERS = {"loose": 1.8, "usual": 1.2, "strict": 0.6}
# beta-galactosidase: box and half the diameter in pixels.
BETAGAL_BOX, BETAGAL_NEAR = 96, 25.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", default=["formats", "micrographs"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    print_machine()
    if "formats" in options.questions:
        with tempfile.TemporaryDirectory(prefix="fastsort-files-") as folder:
            print_formats(options.data / "formats", Path(folder))
    if "micrographs" in options.questions:
        print_micrographs(options.data / "real" / "micrographs")
    if "simulated" in options.questions:
        print_simulated(options.data, options.seeds)


def print_formats(source: Path, folder: Path) -> None:
    """Divide every file, and compare what was written with what was read."""
    for path in source.iterdir():
        shutil.copy(path, folder / path.name.replace("aspire_sample.mrcs", "sample.mrcs"))
    rows = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".star", ".cs"):
            rows.append(divide(path, folder / f"{path.name}.out"))
    print_table(
        "Files of other programs, read, divided, written and read again",
        ("file", "rows", "how", "kept", "rejected", "fields that differ", "read by RELION"),
        rows,
    )


def divide(path: Path, out: Path) -> list[object]:
    try:
        open_particles(path)
        how = "sorted"
        arguments = ["sort", path, "--fraction", "0.6"]
    except ValueError:
        how = "by a list, images absent"
        chosen = path.with_suffix(".txt")
        chosen.write_text("".join(f"{i}\n" for i in range(0, len(rows_of(path)), 3)))
        arguments = ["apply", chosen, path]
    assert cli.main([*map(str, arguments), "-o", str(out), "--quiet"]) == 0
    parts = [
        file for file in sorted(out.glob(f"*{path.suffix}")) if file.stem in ("kept", "rejected", "rescued")
    ]
    counts = {part.stem: len(rows_of(part)) for part in parts}
    readers = [relion_reads(part) for part in parts] if path.suffix == ".star" else ["-"]
    return [
        path.name,
        len(rows_of(path)),
        how,
        counts["kept"],
        sum(counts.values()) - counts["kept"],
        len(differing(path, parts)),
        ", ".join(sorted(set(readers))),
    ]


def rows_of(path: Path) -> dict[str, list[object]] | np.ndarray:
    """Read a table by other code: a structured array, or a table of strings."""
    if path.suffix == ".cs":
        return np.load(path, allow_pickle=False)
    tables = starfile.read(path, always_dict=True, parse_as_string=labels_of(path))
    return next(table for table in tables.values() if "rlnImageName" in table)


def labels_of(path: Path) -> list[str]:
    return [line.split()[0][1:] for line in path.read_text().splitlines() if line.startswith("_rln")]


def differing(path: Path, parts: list[Path]) -> list[str]:
    """Return the fields that are not the same in the parts, taken together, as in the whole."""
    whole, written = rows_of(path), [rows_of(part) for part in parts]
    if path.suffix == ".cs":
        fields = whole.dtype.names
        order = np.argsort(whole["uid"])
        together = {name: np.concatenate([part[name] for part in written]) for name in fields}
        again = np.argsort(together["uid"])
        wrong = [name for name in fields if whole[name][order].tobytes() != together[name][again].tobytes()]
        return wrong + [name for name in fields if together[name].dtype != whole[name].dtype]
    key = [*zip(*(whole[name] for name in whole.columns), strict=True)]
    columns = list(whole.columns)
    found = [row for part in written for row in zip(*(part[name] for name in columns), strict=True)]
    missing = [row for row in key if row not in set(found)]
    return columns if missing or len(found) != len(key) else []


def relion_reads(path: Path) -> str:
    """Let RELION read a STAR file and write it again, and count its rows."""
    program = shutil.which("relion_star_handler")
    if program is None:
        return "not installed"
    copy = path.with_name("relion.star")
    command = [program, "--i", path, "--o", copy]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode or not copy.is_file():
        return "no"
    n = len(rows_of(copy))
    copy.unlink()
    return "yes" if n == len(rows_of(path)) else "no"


def print_micrographs(source: Path) -> None:
    """Sort raw picks, and compare with human ones."""
    if not source.is_dir():
        print(f"no micrographs in {source}: left out")
        return
    rows = []
    for box in BOXES:
        particles = open_particles((source / "*.mrc", source / "*_topaz.star"), box=box)
        good = near_human_picks(source, particles)
        result = sort_particles(particles, diameter=DIAMETER)
        inside = ~particles.outside
        all_picks = measure_accuracy(good, result.keep, result.score)
        whole = measure_accuracy(good[inside], result.keep[inside], result.score[inside])
        rows.append(
            [
                f"{box} px",
                len(particles),
                int(good.sum()),
                int((~inside).sum()),
                f"{all_picks.area_under_curve:.3f}",
                f"{whole.area_under_curve:.3f}",
                int(result.keep.sum()),
                f"{good[result.keep].mean():.3f}",
                f"{whole.true_positive_rate:.3f}",
            ]
        )
    print_table(
        f"Two micrographs with the output of a neural picker; good: within {NEAR} px of a human pick",
        ("box", "picks", "good", "over the edge", "AUC", "AUC inside", "kept", "precision", "recall inside"),
        rows,
    )


def near_human_picks(source: Path, particles) -> np.ndarray:
    picks = particles.table
    distance = np.empty(len(particles))
    for number, name in enumerate(picks.names_of_micrographs):
        human = starfile.read(source / f"{Path(os.path.basename(name)).stem}_human.star")
        tree = cKDTree(human[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy())
        mine = picks.micrograph_of == number
        distance[mine] = tree.query(np.stack([picks.x[mine], picks.y[mine]], axis=1))[0]
    return distance <= NEAR


def print_simulated(data: Path, seeds: list[int]) -> None:
    """Sort picks of a blob picker in simulated micrographs, and of two programs in real ones."""
    print_table(
        "Picks in micrographs whose particles are known; good: within half a diameter of one",
        ("set", "seed", "picks", "good", "AUC", "balanced accuracy", "kept particles", "rejected junk"),
        [*simulated_rows(data / "volumes", seeds), *betagal_rows(data / "real" / "micrographs_betagal")],
    )


def simulated_rows(volumes: Path, seeds: list[int]) -> Iterator[list[object]]:
    for name, file in MOLECULES.items():
        if not (volumes / file).is_file():
            print(f"no volume {volumes / file}: left out")
            continue
        for seed in seeds:
            with tempfile.TemporaryDirectory(prefix="fastsort-simulated-") as folder:
                truth = make_micrographs(volumes / file, Path(folder), seed)
                for picker, share in PICKERS.items():
                    picks = pick(Path(folder), round(share * N_PARTICLES), picker)
                    particles = open_particles((f"{folder}/*.mrc", picks), box=BOX)
                    yield [f"{name} {picker}", seed, *measured(particles, truth, WIDE / 2)]


def make_micrographs(volume: Path, folder: Path, seed: int) -> dict[str, np.ndarray]:
    """Write micrographs of dark particles in noise; return where the particles are, as rows of x and y."""
    rng = np.random.default_rng(seed)
    density = mrcfile.read(volume).astype(np.float32)
    scale = volume_extent(density).diameter / WIDE
    y, x = np.ogrid[:BOX, :BOX]
    disk = np.hypot(y - BOX // 2, x - BOX // 2) < WIDE / 2
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    truth = {}
    for number in range(N_MICROGRAPHS):
        turns = Rotation.random(N_PARTICLES, rng).as_matrix()
        images = project_volume(density, turns, BOX, scale=scale)
        images /= images[:, disk].std(axis=1).mean()
        places = random_places(rng, N_PARTICLES)
        signal = np.zeros((SIDE, SIDE), np.float32)
        for image, (column, row) in zip(images, places, strict=True):
            top, left = row - BOX // 2, column - BOX // 2
            signal[top : top + BOX, left : left + BOX] += image
        spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE))) / np.sqrt(1 + (6 * frequency) ** 2)
        noise = np.fft.irfft2(spectrum, (SIDE, SIDE))
        noise *= SNR**-0.5 / noise.std()
        micrograph = noise + signal + noise.std() * contamination(rng)
        # Particles, ice and carbon are dark.
        with mrcfile.new(folder / f"mic_{number}.mrc") as file:
            file.set_data((-micrograph).astype(np.float32))
            file.voxel_size = 250 / WIDE
        truth[f"mic_{number}"] = places
    return truth


def random_places(rng: np.random.Generator, number: int) -> np.ndarray:
    """Draw centres of particles that do not overlap, whole in the micrograph."""
    places = np.empty((0, 2), np.intp)
    while len(places) < number:
        place = rng.integers(BOX // 2, SIDE - BOX // 2, 2)
        if not len(places) or np.hypot(*(places - place).T).min() > WIDE:
            places = np.vstack([places, place])
    return places


def contamination(rng: np.random.Generator) -> np.ndarray:
    """Ice of any size, and carbon along one side, in deviations of the noise."""
    y, x = np.ogrid[:SIDE, :SIDE]
    field = np.zeros((SIDE, SIDE))
    for _ in range(12):
        row, column = rng.uniform(0, SIDE, 2)
        radius, height = WIDE * rng.uniform(0.2, 1.0), rng.uniform(0.2, 1.0)
        field += height * (np.hypot(y - row, x - column) < radius)
    rough = gaussian_filter(rng.standard_normal((SIDE, SIDE)), 6)
    rim = 0.12 * SIDE + 0.02 * SIDE * np.sin(y / SIDE * 7 + rng.uniform(0, 7))
    field += (x < rim) * (0.3 + 0.3 * rough / rough.std())
    return gaussian_filter(field, 2)


def pick(folder: Path, number: int, picker: str) -> list[Path]:
    """Write the highest places of each micrograph as a picker would give them."""
    written = []
    for path in sorted(folder.glob("*.mrc")):
        found = blob_maxima(mrcfile.read(path), 0.4 * WIDE, 0.7 * WIDE, bright=False)
        lines = [
            f"{x - BOX // 2} {y - BOX // 2} {BOX} {BOX}"
            for x, y in zip(found.column[:number], found.row[:number], strict=True)
        ]
        (folder / picker).mkdir(exist_ok=True)
        written.append(folder / picker / f"{path.stem}.box")
        written[-1].write_text("\n".join(lines) + "\n")
    return written


def betagal_rows(source: Path) -> Iterator[list[object]]:
    if not source.is_dir():
        print(f"no micrographs in {source}: left out")
        return
    truth = {
        path.name.removesuffix("_truth.star"): starfile.read(path)[
            ["rlnCoordinateX", "rlnCoordinateY"]
        ].to_numpy()
        for path in source.glob("*_truth.star")
    }
    for picker in ("cryolo", "topaz"):
        picks = (source / "*.mrc", source / f"*_{picker}.star")
        particles = open_particles(picks, box=BETAGAL_BOX)
        yield [f"beta-galactosidase {picker}", "-", *measured(particles, truth, BETAGAL_NEAR)]


def measured(particles, truth: dict[str, np.ndarray], near: float) -> list[object]:
    """Sort picks; duplicates and what is over the edge do not count."""
    good = matched(particles, truth, near)
    result = sort_particles(particles)
    counted = ~result.measurements["duplicate"]
    if particles.outside is not None:
        counted &= ~particles.outside
    found = measure_accuracy(good[counted], result.keep[counted], result.score[counted])
    kept, rejected = found.true_positive_rate, found.true_negative_rate
    return [
        int(counted.sum()),
        int(good[counted].sum()),
        f"{found.area_under_curve:.3f}",
        f"{(kept + rejected) / 2:.3f}",
        f"{kept:.3f}",
        f"{rejected:.3f}",
    ]


def matched(particles, truth: dict[str, np.ndarray], near: float) -> np.ndarray:
    """Return which picks hit a particle, each particle once and by the nearest pick."""
    picks = particles.table
    good = np.zeros(len(particles), bool)
    for number, name in enumerate(picks.names_of_micrographs):
        places = truth[Path(os.path.basename(name)).stem]
        mine = np.flatnonzero(picks.micrograph_of == number)
        distance, which = cKDTree(places).query(np.stack([picks.x[mine], picks.y[mine]], axis=1))
        taken = np.zeros(len(places), bool)
        for k in np.argsort(distance, kind="stable").tolist():
            if distance[k] <= near and not taken[which[k]]:
                taken[which[k]] = good[mine[k]] = True
    return good


if __name__ == "__main__":
    main()
