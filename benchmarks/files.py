"""Does it run on files of other programs, and are particles found among raw picks?

python benchmarks/files.py [formats micrographs] [--data FOLDER]

Every file is read; sorted where its images are there, else divided by a list; written; and read by other
code, which compares all fields of all rows. STAR files are read by RELION too, where it is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import starfile
from scipy.spatial import cKDTree
from tables import DATA, print_machine, print_table

from fastsort import cli, open_particles, sort_particles
from fastsort.report.accuracy import measure_accuracy

# Picks as near to a human one as this, in pixels, are good.
NEAR = 16
DIAMETER = 128.0
BOXES = (112, 128, 144, 160, 192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", default=["formats", "micrographs"])
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    print_machine()
    if "formats" in options.questions:
        with tempfile.TemporaryDirectory(prefix="fastsort-files-") as folder:
            print_formats(options.data / "formats", Path(folder))
    if "micrographs" in options.questions:
        print_micrographs(options.data / "real" / "micrographs")


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


if __name__ == "__main__":
    main()
