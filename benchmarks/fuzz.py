"""Does every damaged file lead to a clear error or to a sound result, without a crash, a wait or much memory?

python benchmarks/fuzz.py [--files 10000] [--seed 0] [--only KIND ...] [--workers 1] [--work FOLDER]
python benchmarks/fuzz.py --again KIND SEED

Small projects of each kind are made, one file of each is damaged (bits, bytes, lines, words, header fields,
types, shapes, length, files put in the place of others), and the project is used as anybody would: opened,
looked at, described, and a part of it is written and opened again. "Sound": images are float32 and of the
promised shape, what was written holds the rows that were asked for, and nothing else in the folder has
changed. "Clear error": an InputError of one line that names a file. All else is a failure, a warning too; so
is a file that takes more than 10 s, ends the process, or makes it ask for more than 1 GB. Each failure is
printed with its seed, and --again runs that one alone, with its traceback.

Files are used in worker processes, which are ended when they take too long. A worker may take 1 GB for data
beyond what it starts with (RLIMIT_DATA: more is a MemoryError, however little of it would be used). "Peak":
the largest growth of its resident memory (VmHWM, set back before each file).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

MICROSCOPE = "Voltage SphericalAberration AmplitudeContrast"
MOST_SECONDS = 10.0
MOST_BYTES = 1 << 30
LONGEST_MESSAGE = 2000
BOX = 16
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
SHOWN = 3  # failures of a sort


class Project(NamedTuple):
    """Files that belong together, and how they are used.

    `source` is what is opened; `targets` are the files that are damaged, some named more often than others.
    """

    files: dict[str, bytes]
    source: str | tuple[str, str]
    targets: Sequence[str]


class Unsound(Exception):
    """A result that is not what was promised."""


# Sound projects.


def mrc(
    images: np.ndarray, mode: int = 2, order: str = "<", extended: bytes = b"", size: float = 2.0
) -> bytes:
    header = np.zeros((), HEADER_DTYPE.newbyteorder(order))
    header["nz"], header["ny"], header["nx"] = header["mz"], header["my"], header["mx"] = images.shape
    header["mode"], header["nsymbt"], header["map"] = mode, len(extended), b"MAP "
    header["cella"] = tuple(size * side for side in images.shape[::-1])
    header["machst"] = (0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0)
    return header.tobytes() + extended + images.astype(order + MODES[mode]).tobytes()


def pixels(n: int, ny: int, nx: int | None = None, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 120, (n, ny, nx or ny)).astype(np.float32)


def loop(name: str, labels: Sequence[str], rows: Sequence[Sequence[object]], ending: str = "\n") -> str:
    lines = ["", "# version 30001", "", f"data_{name}", "", "loop_"]
    lines += [f"_rln{label} #{i}" for i, label in enumerate(labels, 1)]
    lines += [" ".join(map(str, row)) + " " for row in rows]
    return ending.join([*lines, "", ""])


def relion30() -> Project:
    labels = (
        "ImageName MicrographName CoordinateX CoordinateY DefocusU DefocusV DefocusAngle Voltage "
        "SphericalAberration AmplitudeContrast DetectorPixelSize Magnification"
    ).split()
    rows = [
        (
            f"{i // 2 + 1:06d}@Extract/job1/{'ab'[i % 2]}.mrcs",
            f"Micrographs/{'ab'[i % 2]}.mrc",
            10.5 * i,
            7 * i,
        )
        for i in range(9)
    ]
    rows = [(*row, 10000 + i, 9900.5 + i, 4 * i, 300, 2.7, 0.1, 5, 25000) for i, row in enumerate(rows)]
    stacks = {f"Extract/job1/{name}.mrcs": mrc(pixels(5, BOX, seed=i)) for i, name in enumerate("ab")}
    files = {"run.star": loop("images", labels, rows).encode(), **stacks}
    return Project(files, "run.star", ["run.star"] * 5 + list(stacks))


def relion31() -> Project:
    groups = [("'group one'", 1, 2.0, BOX, 300, 2.7, 0.1), ('"two"', 2, 1.25, 28, 200, 2.7, 0.1)]
    optics = loop(
        "optics",
        f"OpticsGroupName OpticsGroup ImagePixelSize ImageSize {MICROSCOPE}".split(),
        groups,
    )
    labels = (
        "ImageName OpticsGroup MicrographName CoordinateX CoordinateY DefocusU DefocusV DefocusAngle "
        "PhaseShift GroupName MicrographPixelSize"
    ).split()
    rows = [
        (f"{i // 2 + 1}@{'ab'[i % 2]}.mrcs", i % 2 + 1, f"'{'ab'[i % 2]} .mrc'", 3 * i, 5.25 * i)
        for i in range(10)
    ]
    rows = [(*row, 12000 + i, 11000.5, -3.5 * i, 90, '"a  b"', 1.0) for i, row in enumerate(rows)]
    general = "\n# version 50001\n\ndata_general\n\n_rlnTomoSubTomosAre2DStacks 0 \n_rlnNote 'a # b' # c\n\n"
    table = loop("particles", labels, rows).replace("6@", "# in between\n\n6@", 1)
    stacks = {"a.mrcs": mrc(pixels(5, BOX)), "b.mrcs": mrc(pixels(5, 28, seed=1), 12)}
    return Project(
        {"particles.star": (general + optics + table).encode(), **stacks},
        "particles.star",
        ["particles.star"] * 6 + list(stacks),
    )


def cs_bytes(rows: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.lib.format.write_array(file, rows, (1, 0))
        return file.getvalue()


def structured(n: int, **columns: Any) -> np.ndarray:
    """Return rows with fields whose names are given with two underscores for each slash."""
    arrays = {name.replace("__", "/"): np.asarray(values) for name, values in columns.items()}
    fields = [
        (name, array.dtype.str, array.shape[1:]) if array.ndim > 1 else (name, array.dtype.str)
        for name, array in arrays.items()
    ]
    rows = np.zeros(n, fields)
    for name, array in arrays.items():
        rows[name] = array
    return rows


def cryosparc() -> Project:
    n = 10
    number = np.arange(n)
    uid = np.random.default_rng(0).integers(1, 1 << 62, n).astype(np.uint64)
    path = np.array([b">J1/extract/a.mrc", b"J1/extract/b.mrc"])[number % 2]
    own = structured(
        n,
        uid=uid,
        blob__path=path,
        blob__idx=(number // 2).astype("<u4"),
        blob__shape=np.full((n, 2), BOX, "<u4"),
        blob__psize_A=np.full(n, 1.5, "<f4"),
        blob__sign=np.where(number % 3, 1, -1).astype("<f4"),
        alignments2D__pose=np.zeros((n, 3), "<f4"),
    )
    passed = structured(
        n,
        uid=uid[::-1],
        ctf__type=np.full(n, b"spline"),
        ctf__accel_kv=np.full(n, 300, "<f4"),
        ctf__cs_mm=np.full(n, 2.7, "<f4"),
        ctf__amp_contrast=np.full(n, 0.1, "<f4"),
        ctf__df1_A=np.linspace(9000, 12000, n).astype("<f4"),
        ctf__df2_A=np.linspace(9100, 12100, n).astype("<f4"),
        ctf__df_angle_rad=np.linspace(-1, 1, n).astype("<f4"),
        ctf__phase_shift_rad=np.zeros(n, "<f4"),
        location__micrograph_path=path[::-1],
        location__micrograph_shape=np.full((n, 2), 4096, "<u4"),
        location__micrograph_psize_A=np.full(n, 0.75, "<f4"),
        location__center_x_frac=np.linspace(0, 1, n).astype("<f4"),
        location__center_y_frac=np.linspace(0.1, 0.9, n).astype("<f4"),
    )
    stacks = {f"J1/extract/{name}.mrc": mrc(pixels(5, BOX, seed=i), 12 * i) for i, name in enumerate("ab")}
    first, second = "J1/cryosparc_P1_J1_extracted.cs", "J1/P1_J1_passthrough_particles.cs"
    files = {first: cs_bytes(own), second: cs_bytes(passed), **stacks}
    return Project(files, first, [*[first] * 5, *[second] * 4, *stacks])


def stack(number: int) -> Project:
    """Return one of ten kinds of stack."""
    mode, order = list(MODES)[number % 5], "<>"[number // 5 % 2]
    extended = b"\x01extended " * 16 if number % 2 else b""
    return Project({"s.mrcs": mrc(pixels(6, BOX, seed=number), mode, order, extended)}, "s.mrcs", ["s.mrcs"])


def micrographs() -> dict[str, bytes]:
    return {f"mics/m_{i}.mrc": mrc(pixels(1, 60, 70, i), (2, 1)[i % 2], "<>"[i % 2]) for i in range(2)}


def picks(i: int) -> list[tuple[float, float]]:
    return [(12.0 + 5.5 * k, 10.0 + 4 * k + i) for k in range(8)]


def star_picks() -> Project:
    pictures = micrographs()
    tables = {
        f"picks/m_{i}_autopick.star": loop(
            "", ("CoordinateX", "CoordinateY", "AutopickFigureOfMerit"), [(*pick, 1.5) for pick in picks(i)]
        ).encode()
        for i in range(2)
    }
    return Project(
        {**pictures, **tables}, ("mics/*.mrc", "picks/*.star"), [*tables, *tables, *tables, *list(pictures)]
    )


def listed_picks() -> Project:
    pictures = micrographs()
    names = list(pictures)
    tables = {
        f"picks/m_{i}_autopick.star": loop("", ("CoordinateX", "CoordinateY"), picks(i)).encode()
        for i in range(2)
    }
    listed = loop(
        "coordinate_files", ("MicrographName", "MicrographCoordinates"), list(zip(names, tables, strict=True))
    )
    optics = loop(
        "optics",
        f"OpticsGroupName OpticsGroup MicrographPixelSize {MICROSCOPE}".split(),
        [("one", 1, 2.0, 300, 2.7, 0.1)],
    )
    labels = "MicrographName OpticsGroup DefocusU DefocusV DefocusAngle".split()
    ctf = loop("micrographs", labels, [(name, 1, 9000 + i, 9100, 20) for i, name in enumerate(names)])
    files = {"mics.star": (optics + ctf).encode(), "picks.star": listed.encode(), **pictures, **tables}
    return Project(files, ("mics.star", "picks.star"), ["mics.star"] * 4 + ["picks.star"] * 3 + list(tables))


def box_picks() -> Project:
    pictures = micrographs()
    boxes = {
        f"picks/m_{i}.box": "".join(
            f"{x - 8:.1f}\t{y - 8:.1f}\t{BOX}\t{BOX}\t0.5\n" for x, y in picks(i)
        ).encode()
        for i in range(2)
    }
    return Project({**pictures, **boxes}, ("mics/*.mrc", "picks/*.box"), list(boxes) * 4 + list(pictures))


def cs_picks() -> Project:
    pictures = micrographs()
    places = np.array([(i, *pick) for i in range(2) for pick in picks(i)])
    rows = structured(
        len(places),
        uid=np.arange(1, len(places) + 1).astype("<u8"),
        location__micrograph_path=np.array([b"J2/imported/123456789012345678901_m_0.mrc", b"J2/m_1.mrc"])[
            places[:, 0].astype(int)
        ],
        location__micrograph_shape=np.full((len(places), 2), (60, 70), "<u4"),
        location__center_x_frac=(places[:, 1] / 70).astype("<f4"),
        location__center_y_frac=(places[:, 2] / 60).astype("<f4"),
    )
    files = {**pictures, "picked.cs": cs_bytes(rows)}
    return Project(files, ("mics/*.mrc", "picked.cs"), ["picked.cs"] * 8 + list(pictures))


def finished_run() -> Project:
    import fastsort
    from fastsort.report.results import write_results

    images, _ = fastsort.simulate_particles(n_good=40, n_junk=40, box=32, snr=0.2, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path, results = Path(folder) / "s.mrcs", Path(folder) / "sorted"
        path.write_bytes(mrc(images))
        results.mkdir()
        particles = fastsort.open_particles(path)
        found = fastsort.sort_particles(particles, diameter=40, method="radial", n_jobs=1, seed=0)
        write_results(results, particles, found)
        files = {f"sorted/{file.name}": file.read_bytes() for file in sorted(results.iterdir())}
        files["s.mrcs"] = path.read_bytes()
    files["sorted/summary.json"] = files["sorted/summary.json"].replace(folder.encode(), b"{folder}")
    targets = [f"sorted/{name}" for name in ("results.npz", "results.npz", "summary.json", "scores.csv")]
    return Project(files, "sorted", targets)


MAKERS: dict[str, Sequence[Callable[[], Project]]] = {
    "STAR, RELION 3.0": [relion30],
    "STAR, optics groups": [relion31],
    "cryoSPARC .cs": [cryosparc],
    "MRC stack": [lambda number=number: stack(number) for number in range(10)],
    "micrographs, STAR picks": [star_picks, listed_picks],
    "micrographs, .box picks": [box_picks],
    "micrographs, .cs picks": [cs_picks],
    "finished run": [finished_run],
}
SHARES = dict(zip(MAKERS, (23, 23, 22, 15, 5, 4, 4, 4), strict=True))


# Damage.

NUMBERS = (
    "nan inf -inf 1e400 -1e400 1e308 -1e308 1e-320 -1 0 -0.0 1e5 2147483647 2147483648 -2147483649 "
    "4294967296 18446744073709551616 0x10 1_0 1,5 3."
)
WORDS = [word.encode() for word in NUMBERS.split()] + [
    *(b"9" * 400, b"9" * 5000, b"''", b'"a b"', b"'", b'"', b"#", b"null", b"\xff\xfe", b"\x1b[2J", b"\0"),
    *("\u00b5 \u0663".encode(), "\x85".encode(), "\u2028".encode(), b"_rlnImageName", b"loop_", b"data_"),
    *(b"data_particles", b"a" * 300, b"a/" * 3000, b"A" * 100_000, b"'a \"b " * 20_000),
]
PATHS = (
    "1@../../../etc/passwd 1@/etc/passwd 1@/dev/zero 1@/dev/stdin 1@/proc/self/mem 1@. 1@ @ @@ -1@a.mrcs "
    "0@a.mrcs 9@a.mrcs 99999999999@a.mrcs 1.5@a.mrcs 1@./a.mrcs 1@../project/a.mrcs a.mrcs 1@a.mrcs@1 "
    "\u0661@a.mrcs 1@b.mrcs 1@Extract 1@run.star / . .."
)
NAMES = [path.encode() for path in PATHS.split()]
NAMES += [b"1@" + b"n" * 256, b"1@" + b"../" * 2000 + b"a.mrcs"]
INTEGERS = [
    *(0, 1, -1, 2, 3, 4, 12, 15, 16, 17, 64, 101, 1024, 1025),
    *(65535, 65536, 2**31 - 1, -(2**31), 1 << 24),
]
REALS = [*(0.0, -0.0, -1.0, np.nan, np.inf, -np.inf), *(3.4e38, -3.4e38, 1e-45, 1e-30, 1e30)]
NUMBER = re.compile(rb"(?<![^\s\"'])[-+]?[\d.]+(?:[eE][-+]?\d+)?(?![^\s\"'])")
LABEL = re.compile(rb"_[a-z]+[A-Z]\w+")
CS_TYPES = "<f4 <f8 <f2 >f4 <u8 <i8 |i1 |b1 |O <U5 <U0 S0 |S999999999 |V8 <M8[s] <c16 f4,f4 <f16 <i3 |S16 <u4"
CS_WORDS = [f"'{name}'" for name in CS_TYPES.split()] + [
    *(
        "[('a', '<f4'), ('b', '<i4')]",
        "('<f4', (2,))",
        "None",
        "True",
        "-1",
        "1e400",
        "1L",
        "'\\\\x00'",
        "''",
    ),
    *(
        "(" * 60 + ")" * 60,
        "[" * 2000,
        "{" * 30,
        "__import__('os').system('true')",
        "9" * 5000,
        "0o7",
        "1if",
        "'",
    ),
]
CS_SHAPES = [
    *(
        "(1000000000000000,)",
        "(-1,)",
        "()",
        "(0,)",
        "(1, 1)",
        "(10, 1)",
        "(18446744073709551616,)",
        "(True,)",
    ),
    *(
        "(9,)",
        "(11,)",
        "(2147483648,)",
        "(9223372036854775807,)",
        "10",
        "(10.0,)",
        "('a',)",
        "[10]",
        "(10,) * 9",
    ),
]
NAMED = re.compile(r"/|@|\.(?:star|cs|box|mrcs?|npz|json|csv)\b")


def damage_bytes(data: bytes, chance: random.Random) -> bytes:
    """Change bytes without knowing what they mean."""
    size = len(data)
    at = chance.randrange(size + 1)
    run = min(chance.choice([1, 1, 2, 4, 8, 60, 1000]), size - at)
    how = chance.randrange(9)
    if how == 0 and at < size:
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if how <= 2:
        return data[:at] + chance.randbytes(run) + data[at + run :]
    if how == 3:
        return data[:at]
    if how == 4:
        return data[:at] + data[at + run :]
    if how == 5:
        return data[:at] + chance.randbytes(run) + data[at:]
    if how == 6:
        return data + chance.choice([b"\n", b"\0", data, chance.randbytes(3), chance.randbytes(5000)])
    if how == 7:
        return data[:at] + chance.choice([b"\0", b"\xff", b"\x7f", b" ", b"\n"]) * run + data[at + run :]
    return chance.choice([b"", b"\n", data[:1], data[: size // 2] * 3, chance.randbytes(size), data[::-1]])


def damage_text(data: bytes, chance: random.Random) -> bytes:
    """Change lines and words."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    how = chance.randrange(14)
    if how == 0:
        lines.insert(at, chance.choice([*lines, *WORDS, *NAMES]))
    elif how == 1:
        del lines[at : at + chance.choice([1, 1, 1, 5])]
    elif how == 2:
        other = chance.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif how <= 5:
        words = list(re.finditer(rb"\S+", data))
        if words:
            start, stop = chance.choice(words).span()
            new = chance.choice([b"", b"a b", *WORDS, *NAMES, chance.choice(words)[0]])
            return data[:start] + new + data[stop:]
    elif how <= 8:
        numbers = list(NUMBER.finditer(data))
        if numbers:
            start, stop = chance.choice(numbers).span()
            return data[:start] + chance.choice(WORDS[:20]) + data[stop:]
    elif how == 9:
        return damage_column(data, chance)
    elif how <= 11:
        labels = list(LABEL.finditer(data))
        if labels:
            place = chance.choice(labels)
            new = chance.choice(
                [chance.choice(labels)[0], b"_rlnX", b"_", b"rlnImageName", b"_rlnHelicalTubeID", b""]
            )
            return data[: place.start()] + new + data[place.end() :]
    elif how == 12:
        return chance.choice(
            [data.replace(b"\n", b"\r\n"), data.replace(b"\n", b"\r"), data.replace(b" ", b"\t")]
        )
    else:
        names = [word for word in re.finditer(rb"\S+", data) if b"@" in word[0] or b"/" in word[0]]
        if names:
            start, stop = chance.choice(names).span()
            return data[:start] + chance.choice(NAMES) + data[stop:]
    return b"\n".join(lines)


def damage_column(data: bytes, chance: random.Random) -> bytes:
    """Give one word of every long line the same value, or others at random."""
    column, word = chance.randrange(12), chance.choice(WORDS[:30])
    lines = data.split(b"\n")
    for i, line in enumerate(lines):
        words = line.split()
        if len(words) > 3 and column < len(words):
            words[column] = word if len(word) % 2 else b"%g" % (10 ** chance.uniform(-3, 6))
            lines[i] = b" ".join(words)
    return b"\n".join(lines)


def damage_mrc(data: bytes, chance: random.Random) -> bytes:
    """Change fields of a header, the important ones more often, and keep or mend the file's size."""
    at = 4 * chance.choice([0, 1, 2, 3, 0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 23, 23, 53, chance.randrange(256)])
    real = 9 < at // 4 < 16 or chance.random() < 0.1
    value = np.float32(chance.choice(REALS)) if real else np.int32(chance.choice(INTEGERS))
    if chance.random() < 0.2:
        value = np.int32(chance.randrange(-(2**31), 2**31))
    order = chance.choice("<<<>")
    data = data[:at] + value.astype(value.dtype.newbyteorder(order)).tobytes() + data[at + 4 :]
    if chance.random() < 0.1:
        pixels = chance.randbytes(400) + b"\xff\xff\x7f\x7f" * 20
        data = data[:1024] + pixels + data[1024 + len(pixels) :]
    return data


def damage_cs(data: bytes, chance: random.Random) -> bytes:
    """Change the description of the rows, or values in them."""
    stop = 10 + int.from_bytes(data[8:10], "little")
    text, rows = data[10:stop].decode("latin-1"), data[stop:]
    how = chance.randrange(8)
    kinds = list(re.finditer(r"'[<>|=]\w+'", text))
    names = list(re.finditer(r"'[a-z]\w*(?:/\w+)?'", text))
    if how <= 1 and kinds:
        text = replaced(text, chance.choice(kinds), chance.choice(CS_WORDS))
    elif how == 2:
        text = re.sub(r"(?<='shape': )\([^)]*\)", lambda _: chance.choice(CS_SHAPES), text)
    elif how == 3 and names:
        text = replaced(
            text, chance.choice(names), chance.choice([*names, "''", "'uid'", "'a b'", "'x\u00b5'"])
        )
    elif how == 4:
        tokens = list(re.finditer(r"\d+|[(){}\[\],:]|\w+", text)) or [re.match("", text)]
        text = replaced(
            text, chance.choice(tokens), chance.choice([*CS_WORDS, *CS_SHAPES, "", ",", "(", ")"])
        )
    else:
        return damage_rows(data, text, stop, chance)
    if chance.random() < 0.5:
        # Padding lets the length stand, so that what follows is read at all.
        text = text.rstrip()
        text += " " * (stop - 10 - len(text) - 1) + "\n"
        return data[:8] + len(text).to_bytes(2, "little") + text.encode("latin-1") + rows
    return data[:10] + text.encode("latin-1", "replace") + rows


def replaced(text: str, match: re.Match[str], new: str | re.Match[str]) -> str:
    return text[: match.start()] + (new if isinstance(new, str) else new[0]) + text[match.end() :]


def damage_rows(data: bytes, text: str, stop: int, chance: random.Random) -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False).copy()
        names = rows.dtype.names or ()
        name = chance.choice(names)
        row = chance.choice([slice(None), chance.randrange(len(rows)), slice(0, 2)])
        kind = rows.dtype[name].base.kind
        if kind == "f":
            rows[name][row] = chance.choice(REALS)
        elif kind in "iu":
            rows[name][row] = chance.choice([0, 1, 2, 15, 17, np.iinfo(rows.dtype[name].base).max])
        elif kind == "S":
            rows[name][row] = chance.choice([name for name in (*NAMES, *WORDS) if b"\0" not in name])
        return cs_bytes(rows[: chance.choice([len(rows), len(rows), 1, 0])])
    except Exception:
        # What has been damaged before makes NumPy raise nearly anything.
        return damage_bytes(data, chance)


def damage_archive(data: bytes, chance: random.Random) -> bytes:
    """Change arrays of a result and the text that says what they are, with checksums made again."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OSError):
        return damage_bytes(data, chance)
    name = chance.choice(list(parts))
    if chance.random() < 0.5 and "structure.npy" in parts:
        name = "structure.npy"
        # An array of bytes: what follows the line that describes it.
        text = damage_json(parts[name].partition(b"\n")[2], chance)
        part = io.BytesIO()
        np.save(part, np.frombuffer(text, np.uint8))
        parts[name] = part.getvalue()
    elif chance.random() < 0.5:
        parts[name] = damage_bytes(parts[name], chance)
    else:
        other = chance.choice(list(parts))
        parts[name], parts[other] = parts[other], parts[name]
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, part)
        return file.getvalue()


def damage_json(data: bytes, chance: random.Random) -> bytes:
    """Put another value in the place of one, or another name."""
    tokens = list(re.finditer(rb'"[^"\n]*"|[-\d.]+(?:e[-+]?\d+)?|true|false|null|[{}\[\],:]', data))
    if not tokens:
        return damage_bytes(data, chance)
    others = [
        b"1e400",
        b"NaN",
        b"-1",
        b"0",
        b"null",
        b"[]",
        b"{}",
        b'""',
        b'"\\u0000"',
        b"[[[1]]]",
        b"99999999999999",
    ]
    others += [b"[" * 100_000, b'"/etc/passwd"', b'"../../x"', b'{"a": 1}', b"3.5", b"true"]
    start, stop = chance.choice(tokens).span()
    return data[:start] + chance.choice([*others, chance.choice(tokens)[0]]) + data[stop:]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".star": damage_text,
    ".box": damage_text,
    ".csv": damage_text,
    ".json": damage_json,
    ".npz": damage_archive,
    ".cs": damage_cs,
    ".mrc": damage_mrc,
    ".mrcs": damage_mrc,
}


def damage(project: Project, chance: random.Random) -> dict[str, bytes]:
    """Return the files of a project, one of them damaged once or several times."""
    files = dict(project.files)
    target = chance.choice(project.targets)
    knowing = DAMAGES[Path(target).suffix]
    if chance.random() < 0.03:
        other = chance.choice(list(files))
        files[target], files[other] = files[other], files[target]
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        files[target] = (damage_bytes if chance.random() < 0.3 else knowing)(files[target], chance)
    return files


# Use.


def use_project(project: Project, files: dict[str, bytes], root: Path, chance: random.Random) -> bool:
    """Do all that is done with such files; return whether they could be opened.

    An InputError of its opening is answered by False once it has been looked at; all else is raised.
    """
    folder = root / "project"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            content.replace(b"{folder}", os.fsencode(folder)) if name.endswith(".json") else content
        )
    out = root / "out"
    out.mkdir()
    before = listing(folder)
    try:
        if project.source == "sorted":
            opened = use_results(folder, out)
        else:
            opened = use_particles(project, folder, out, chance)
    finally:
        after = listing(folder)
    expect(before == after, "files beside the output were changed")
    expect({path.name for path in root.iterdir()} == {"project", "out"}, "something was written elsewhere")
    return opened


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path, _, names in os.walk(folder):
        for name in names:
            state = os.lstat(os.path.join(path, name))
            found[os.path.join(path, name)] = state.st_size, state.st_mtime_ns
    return found


def expect(condition: object, what: str) -> None:
    if not condition:
        raise Unsound(what)


def check_message(error: Exception, folder: Path) -> None:
    message = str(error)
    names = {path.name for path in folder.rglob("*")}
    expect(
        len(message.splitlines()) == 1, f"a message of {len(message.splitlines())} lines: {message[:300]!r}"
    )
    expect(
        NAMED.search(message) or any(name in message for name in names),
        f"a message that names no file: {message[:300]!r}",
    )
    expect(len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters: {message[:300]!r}")


def use_particles(project: Project, folder: Path, out: Path, chance: random.Random) -> bool:
    from fastsort import InputError, open_particles
    from fastsort.particles.describe import describe
    from fastsort.particles.places import micrograph_places
    from fastsort.particles.table import Added
    from fastsort.report.subsets import write_subset

    source = project.source
    picked = isinstance(source, tuple)
    full = tuple(str(folder / name) for name in source) if picked else str(folder / source)
    options = {"box": BOX} if picked else {}
    try:
        particles = open_particles(full, **options)
        n, box = len(particles), particles.box
        chosen = [0, n - 1, chance.randrange(n), 0]
        images = particles.read(chosen)
        places = micrograph_places(particles)
        repeated = particles.store.first_named() != np.arange(n)
        expect(particles.table.has_segments in (False, True), "segments")
    except InputError as error:
        check_message(error, folder)
        particles = None
    if not picked:
        look(describe, full, particles, folder)
        count_rows(full, particles, folder)
    if particles is None:
        return False
    expect(images.shape == (4, box, box) and images.dtype == np.float32, "images of another shape or type")
    expect(images.flags.c_contiguous and images.dtype.isnative, "images of another layout")
    first = particles.read(0, min(n, 3))
    expect(same_pixels(first[0], images[0], particles), "a range reads other pixels")
    expect(same_pixels(images[0], images[3], particles), "an image read twice differs")
    expect(len(particles.names) == n and all(isinstance(name, str) for name in particles.names[:3]), "names")
    expect(particles.micrographs is None or len(particles.micrographs) == n, "micrographs")
    expect(particles.ctf is None or all(np.isfinite(c).all() and len(c) == n for c in particles.ctf), "CTF")
    expect(repeated.shape == (n,) and repeated.dtype == bool, "repeated images")
    expect(not particles.pixel_size <= 0, "a pixel size of nothing")
    if places is not None:
        arrays = [places.micrograph, places.x, places.y, places.coordinate_pixel_size, places.defocus]
        expect(all(values is None or values.shape == (n,) for values in arrays), "places")
    rows = np.array(sorted(chance.sample(range(n), chance.randrange(1, n + 1))))
    values = np.arange(n) / 8
    write_subset(
        out,
        "kept",
        particles.table,
        rows,
        Added(
            {"_rlnParticleSelectZScore": [f"{value:.6f}" for value in values]},
            {"fastsort/score": values.astype(np.float32)},
        ),
    )
    read_again(particles, full, out, rows)
    return True


def count_rows(path: str, particles: Any, folder: Path) -> None:
    """Open a table without its images, which may do where opening all of it does not."""
    from fastsort import InputError
    from fastsort.particles.open import open_table

    try:
        n_rows = len(open_table(path))
    except InputError as error:
        check_message(error, folder)
        expect(particles is None, f"opened, but not as a table: {error}")
    else:
        expect(particles is None or n_rows == len(particles), "the table has another number of rows")


def same_pixels(one: np.ndarray, other: np.ndarray, particles: Any) -> bool:
    """Whether images are equal; where they were cropped, the last digits depend on their neighbours."""
    if particles.rescaled is None:
        return np.array_equal(one, other, equal_nan=True)
    finite = np.isfinite(one) & np.isfinite(other)
    level = np.abs(one[finite]).max(initial=0)
    return np.allclose(one[finite], other[finite], rtol=1e-3, atol=1e-3 * level)


def look(describe: Any, path: str, particles: Any, folder: Path) -> None:
    """Describe a file as the command does, which must agree with opening it."""
    from fastsort import InputError
    from fastsort.cli import main

    try:
        found = describe(path)
    except InputError as error:
        check_message(error, folder)
        expect(particles is None, f"opened, but not described: {error}")
    else:
        expect(found.usable == (particles is not None), f"usable is {found.usable}: {found.problems[:1]}")
        expect(particles is None or found.n_images == len(particles), "another number of images is described")
    # As those of a terminal are.
    printed = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]
    with contextlib.redirect_stdout(printed[0]), contextlib.redirect_stderr(printed[1]):
        code = main(["info", path])
    printed[1].flush()
    said = printed[1].buffer.getvalue().decode("utf-8", "replace")
    expect(code == (particles is None) and said.count("\n") <= 1, f"info ends with {code}: {said[:300]}")


def read_again(particles: Any, full: Any, out: Path, rows: np.ndarray) -> None:
    from fastsort import InputError, open_particles
    from fastsort.report.lists import read_list

    written = sorted(os.listdir(out))
    if isinstance(full, tuple):
        try:
            coordinates = [out / "kept" / os.path.basename(path) for path in particles.table.files]
            again = open_particles((full[0], coordinates), box=BOX)
        except InputError:
            # Few picks may all lie outside, which is refused.
            return
    elif particles.table.names is None:
        expect(written == ["kept.txt"], f"{written} was written")
        keep = read_list(out / "kept.txt", len(particles))
        expect(np.array_equal(np.flatnonzero(keep), rows), "the list holds other images")
        return
    else:
        suffix = Path(full).suffix
        expect(f"kept{suffix.lower()}" in written, f"{written} was written")
        again = open_particles(out / f"kept{suffix}", data_dir=out.parent / "project")
    expect(len(again) == len(rows), f"{len(again)} images instead of {len(rows)} are in what was written")
    if again.box == particles.box and (again.rescaled is None) == (particles.rescaled is None):
        some = np.array([0, len(rows) - 1])
        same = same_pixels(again.read(some), particles.read(rows[some]), particles)
        expect(same or again.pixel_size != particles.pixel_size, "what was written names other images")


def use_results(folder: Path, out: Path) -> bool:
    from fastsort import InputError
    from fastsort.decide.verdict import cut_again
    from fastsort.report.finished import open_finished, read_earlier
    from fastsort.report.page import write_page
    from fastsort.report.results import write_results

    results = folder / "sorted"
    try:
        finished = open_finished(results)
        _, names = read_earlier(results)
        cut = cut_again(finished.result, fraction=0.5)
    except InputError as error:
        check_message(error, folder)
        return False
    n = len(finished.particles)
    expect(cut.keep.shape == (n,) and len(names) == n, "another number of verdicts")
    write_results(out, finished.particles, cut)
    write_page(out / "report.html", finished.particles, cut, None)
    again = open_finished(out)
    expect(np.array_equal(again.result.keep, cut.keep), "what was written holds another verdict")
    return True


# Workers, and whoever watches them.


class Outcome(NamedTuple):
    """What became of one file: "sound", "clear error" or what went wrong."""

    what: str
    seconds: float
    peak: float


def file_of(
    kind: str, seed: int, made: dict[str, list[Project]]
) -> tuple[Project, dict[str, bytes], random.Random]:
    """Return the project of a seed and its damaged files; the same seed gives the same bytes."""
    chance = random.Random(f"{kind} {seed}")
    project = chance.choice(made[kind])
    return project, damage(project, chance), chance


def serve(connection: Any, work: Path, kinds: Sequence[str]) -> None:
    """Use the files that are asked for, one after the other."""
    warnings.simplefilter("error")
    ignored: list[str] = []
    sys.unraisablehook = lambda hook: ignored.append(f"{hook.exc_type.__name__}: {hook.exc_value}")
    made = make_projects(kinds, work)
    limit = memory("VmData") + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    connection.send("ready")
    while (asked := connection.recv()) is not None:
        project, files, chance = file_of(*asked, made)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        ignored.clear()
        resident, begin = memory("VmRSS"), time.perf_counter()
        try:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                sound = use_project(project, files, Path(folder), chance)
            what = "sound" if sound else "clear error"
        except BaseException as error:
            what = f"{type(error).__name__}: {str(error)[:400]} ({where(error)})"
        what = ignored[0] if ignored else what
        connection.send(Outcome(what, time.perf_counter() - begin, (memory("VmHWM") - resident) / 1e6))


def make_projects(kinds: Sequence[str], work: Path) -> dict[str, list[Project]]:
    """Make the projects of some kinds, and use each as it is: what fails then is not the damage's fault."""
    made = {kind: [make() for make in MAKERS[kind]] for kind in kinds}
    for kind, projects in made.items():
        for project in projects:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                expect(
                    use_project(project, project.files, Path(folder), random.Random(0)), f"{kind} is refused"
                )
    return made


def memory(name: str) -> int:
    """Return a line of this process's status, in bytes."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


def where(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "fastsort" in frame.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[:-4:-1])


class Worker:
    """A process that uses files, and is started anew when it was lost."""

    def __init__(self, work: Path, kinds: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, work, kinds), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.recv()

    def ask(self, kind: str, seed: int) -> None:
        """Have a file used."""
        self.asked, self.begin = (kind, seed), time.perf_counter()
        self.connection.send(self.asked)

    def answer(self) -> Outcome:
        """Return what became of the file; the process is gone if it took too long or crashed."""
        try:
            if self.connection.poll(max(0.0, self.begin + MOST_SECONDS - time.perf_counter())):
                return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            what = f"ended the process with {self.process.exitcode}"
        else:
            self.process.kill()
            self.process.join()
            what = "took too long"
        return Outcome(what, time.perf_counter() - self.begin, np.nan)


def run_all(files: Sequence[tuple[str, int]], work: Path, n_workers: int) -> dict[str, list[Outcome]]:
    kinds = list(dict.fromkeys(kind for kind, _ in files))
    outcomes: dict[str, list[Outcome]] = {kind: [] for kind in kinds}
    shown: Counter[str] = Counter()
    workers = [Worker(work, kinds) for _ in range(n_workers)]
    waiting = list(reversed(files))
    busy = []
    while waiting or busy:
        while waiting and len(busy) < len(workers):
            worker = next(worker for worker in workers if worker not in busy)
            worker.ask(*waiting.pop())
            busy.append(worker)
        worker = busy.pop(0)
        kind, seed = worker.asked
        outcome = worker.answer()
        if not worker.process.is_alive():
            workers[workers.index(worker)] = Worker(work, kinds)
        outcomes[kind].append(outcome)
        if outcome.what not in ("sound", "clear error"):
            alike = re.sub(r"[\d.]+", "0", outcome.what[:60] + outcome.what.rpartition("(")[2])
            shown[alike] += 1
            if shown[alike] <= SHOWN:
                print(f"--again {kind!r} {seed}: {outcome.what}", flush=True)
    for worker in workers:
        worker.connection.send(None)
        worker.process.join()
    return outcomes


def divided(n: int, kinds: Sequence[str], seed: int) -> list[tuple[str, int]]:
    total = sum(SHARES[kind] for kind in kinds)
    return [(kind, seed * n + i) for kind in kinds for i in range(round(n * SHARES[kind] / total))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--again", nargs=2, metavar=("KIND", "SEED"), help="one file, with its traceback")
    options = parser.parse_args()
    if options.again:
        show_one(options.again[0], int(options.again[1]), options.work)
        return
    from tables import print_machine, print_table

    print_machine()
    files = divided(options.files, options.only, options.seed)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        outcomes = run_all(files, Path(folder), options.workers)
    print_table(
        f"{len(files)} damaged files, seed {options.seed}",
        ("kind of file", "files", "sound result", "clear error", "failure", "slowest, s", "peak, MB"),
        [
            table_row(kind, found)
            for kind, found in [
                *outcomes.items(),
                ("all", [one for found in outcomes.values() for one in found]),
            ]
        ],
    )


def table_row(kind: str, outcomes: Sequence[Outcome]) -> tuple[object, ...]:
    counts = Counter(outcome.what for outcome in outcomes)
    sound, clear = counts["sound"], counts["clear error"]
    slowest = max(outcome.seconds for outcome in outcomes)
    peak = np.nanmax([outcome.peak for outcome in outcomes])
    return kind, len(outcomes), sound, clear, len(outcomes) - sound - clear, f"{slowest:.2f}", f"{peak:.0f}"


def show_one(kind: str, seed: int, work: Path) -> None:
    warnings.simplefilter("error")
    made = make_projects([kind], work)
    project, files, chance = file_of(kind, seed, made)
    folder = Path(tempfile.mkdtemp(dir=work))
    for name, content in files.items():
        if content != project.files.get(name):
            print(f"damaged: {folder / 'project' / name}")
    print("sound" if use_project(project, files, folder, chance) else "clear error")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
