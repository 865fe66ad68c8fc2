"""Are the results the same, bit for bit, as those of another version, and for any number of workers?

python benchmarks/digests.py --write before.json
python benchmarks/digests.py --compare before.json

The first line records a digest of every result; the second, with another version of the package, makes
them again and names those that differ. Inputs are simulated: an array, a STAR project with a CTF, the same
images as a cryoSPARC dataset, and micrographs with picks. All methods and presets sort them, alone and
together, with one worker and with two, and the command writes its tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np

import fastsort as fs
from fastsort.cli import main as command

N_GOOD, N_JUNK, BOX, PIXEL_SIZE = 400, 200, 64, 3.0
DIAMETER = 0.55  # of the box, where the method needs it
SIDE = 10  # images in a row of a micrograph
WORKERS = (1, 2)
METHODS: dict[str, dict[str, Any]] = {
    "all methods": {},
    "all methods, unanimous": {"unanimous": True},
    "all methods, keep_at_least, keep_off_centre": {"keep_at_least": 0.9, "keep_off_centre": True},
    "radial": {"method": "radial"},
    "radial, published": {"method": "radial", "preset": "published"},
    "subspaces": {"method": "subspaces"},
    "subspaces, published": {"method": "subspaces", "preset": "published"},
    "invariants": {"method": "invariants"},
}
# By the names that every version knows.
FIELDS = (
    *("keep", "score", "reason", "suspicion", "rescued", "junk_probability", "votes", "offset"),
    *("measurements", "cut", "diameter", "diameter_px", "contrast", "phase_flipped", "views"),
)
PARTS = [f"{part}.{suffix}" for part in ("kept", "rejected", "rescued") for suffix in ("star", "cs")]
TABLES = [*PARTS, "scores.csv", "micrographs.csv"]
MAP_TABLES = [*PARTS, "particles.star", "images.csv", "classes.star", "classes.mrcs"]


def digest(value: Any) -> str:
    """Return the digest of arrays, numbers and words, nested in any way; names of fields do not count."""
    total = hashlib.sha256()
    for part in parts(value):
        total.update(part)
    return total.hexdigest()[:16]


def parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, np.ndarray):
        yield f"{value.dtype.str}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, dict):
        # Kinds of decoys may get other words; what is known of them may not change.
        yield from sorted(b"".join(parts(item)) for item in value.values())
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from parts(item)
    else:
        yield repr(value).encode()


def make_inputs(folder: Path) -> dict[str, Any]:
    images, _ = fs.simulate_particles(N_GOOD, N_JUNK, snr=0.05, box=BOX, junk="all", seed=3)
    with_ctf, truth = fs.simulate_particles(N_GOOD, N_JUNK, snr=0.05, box=BOX, junk="all", ctf=True, seed=4)
    star = fs.write_project(folder / "project", [with_ctf], truth)
    cs = write_cs(folder, star)
    micrographs = write_micrographs(folder, images)
    return {"array": images, "STAR": star, "cs": cs, "micrographs": micrographs}


def write_cs(folder: Path, star: Path) -> Path:
    """Write what a STAR file says as a cryoSPARC dataset."""
    particles = fs.open_particles(star)
    fields = [("uid", "<u8"), ("blob/path", "S200"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")]
    fields += [(f"ctf/{name}", "<f4") for name in ("df1_A", "df2_A", "df_angle_rad", "accel_kv", "cs_mm")]
    rows = np.zeros(len(particles), [*fields, ("ctf/amp_contrast", "<f4")])
    for row, name in enumerate(particles.names):
        section, _, stack = name.partition("@")
        rows["blob/path"][row], rows["blob/idx"][row] = stack, int(section) - 1
    ctf = particles.ctf
    assert ctf is not None
    rows["uid"] = 1 + np.arange(len(rows))
    rows["blob/psize_A"] = particles.pixel_size
    rows["ctf/df1_A"], rows["ctf/df2_A"] = ctf.defocus_u, ctf.defocus_v
    rows["ctf/df_angle_rad"] = np.radians(ctf.defocus_angle)
    rows["ctf/accel_kv"], rows["ctf/cs_mm"] = ctf.voltage, ctf.spherical_aberration
    rows["ctf/amp_contrast"] = ctf.amplitude_contrast
    path = star.parent / "particles.cs"
    with open(path, "wb") as file:
        np.save(file, rows)
    return path


def write_micrographs(folder: Path, images: np.ndarray) -> tuple[str, str]:
    """Lay images side by side, dark, and write a file of picks for each micrograph."""
    for name in ("mics", "picks"):
        (folder / name).mkdir()
    a_micrograph = SIDE * SIDE
    for number in range(len(images) // a_micrograph):
        some = images[number * a_micrograph : (number + 1) * a_micrograph]
        rows = some.reshape(SIDE, SIDE, BOX, BOX).transpose(0, 2, 1, 3).reshape(SIDE * BOX, SIDE * BOX)
        with mrcfile.new(folder / "mics" / f"m{number}.mrc") as file:
            file.set_data(-rows)
            file.voxel_size = PIXEL_SIZE
        lines = ["data_", "", "loop_", "_rlnCoordinateX #1", "_rlnCoordinateY #2"]
        lines += [f"{x * BOX + BOX // 2} {y * BOX + BOX // 2}" for y in range(SIDE) for x in range(SIDE)]
        (folder / "picks" / f"m{number}.star").write_text("\n".join(lines) + "\n")
    return str(folder / "mics" / "*.mrc"), str(folder / "picks" / "*.star")


def sorted_digests(inputs: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for kind, source in inputs.items():
        box = {"box": BOX} if kind == "micrographs" else {}
        particles = fs.open_particles(source, **box)
        for method, options in METHODS.items():
            for workers in WORKERS:
                if method == "radial, published":
                    options = {**options, "diameter": DIAMETER * BOX * particles.pixel_size}
                result = fs.sort_particles(particles, n_jobs=workers, seed=1, **options)
                held = [getattr(result, name) for name in FIELDS]
                errors = result.errors and result.errors._replace(remark="")
                yield f"sort, {kind}, {method}, {workers}", digest([*held, errors])
    for workers in WORKERS:
        result = fs.classify_particles(inputs["STAR"], n_classes=5, embedding="pca", n_jobs=workers)
        yield f"map, STAR, {workers}", digest([result.classes, result.keep, result.score])
    half = len(inputs["array"]) // 2
    first = fs.sort_particles(inputs["array"][:half])
    later = fs.sort_particles(inputs["array"][half:], earlier=first)
    yield "sort, array, earlier", digest([later.keep, later.score, later.junk_probability])
    names = [f"{i + 1:06d}@array" for i in range(half)]
    for again in (False, True):
        updated = fs.update_particles(inputs["array"], first, names, judge_again=again)
        yield f"update, array, judge_again={again}", digest([updated.keep, updated.score, updated.reason])
    yield (
        "cut again",
        digest([fs.cut_again(first, fraction=0.5).keep, fs.cut_again(first, probability=0.2).reason]),
    )


def written_digests(folder: Path, inputs: dict[str, Any]) -> Iterator[tuple[str, str]]:
    mics, picks = inputs["micrographs"]
    runs = {
        "STAR": ["sort", str(inputs["STAR"]), "--recentre"],
        "cs": ["sort", str(inputs["cs"]), "--score-field"],
        "micrographs": ["sort", "--micrographs", mics, "--coordinates", picks, "--box", str(BOX)],
        "map": ["map", str(inputs["STAR"]), "--classes", "5", "--embedding", "pca"],
    }
    for name, arguments in runs.items():
        out = folder / f"out_{name}"
        assert command([*arguments, "-o", str(out), "--quiet", "--seed", "1"]) == 0
        tables = MAP_TABLES if name == "map" else TABLES
        found = [path for table in tables if (path := out / table).is_file()]
        found += sorted(path for part in ("kept", "rejected") for path in (out / part).glob("*.star"))
        for path in found:
            # Comments hold the date on which the input was made.
            lines = [line for line in path.read_bytes().splitlines() if not line.startswith(b"#")]
            text = b"\n".join(lines).replace(os.fsencode(folder), b"")
            yield f"command, {name}, {path.relative_to(out)}", hashlib.sha256(text).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--write", metavar="FILE")
    group.add_argument("--compare", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = make_inputs(folder)
        digests = {"simulated images": digest(inputs["array"])}
        for what, value in chain(sorted_digests(inputs), written_digests(folder, inputs)):
            digests[what] = value
            print(value, what, flush=True)
    if options.write:
        Path(options.write).write_text(json.dumps(digests, indent=1) + "\n")
        return 0
    before = json.loads(Path(options.compare).read_text())
    other = [what for what in {**before, **digests} if before.get(what) != digests.get(what)]
    print(f"{len(digests)} digests, {len(other)} differ", *other, sep="\n  ")
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
