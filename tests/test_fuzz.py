"""Damaged files give a clear error or a sound result; no name in a file leads out of the output folder."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fastsort._checks import InputError
from fastsort.cli import main
from fastsort.particles.describe import describe
from fastsort.particles.open import open_particles
from fastsort.particles.source import Particles
from fastsort.report.folder import RESULT_NAMES

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
if not SCRIPT.is_file():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
SPEC = importlib.util.spec_from_file_location("fuzz", SCRIPT)
fuzz = sys.modules["fuzz"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)

PER_KIND = {
    "STAR, RELION 3.0": 60,
    "STAR, optics groups": 60,
    "cryoSPARC .cs": 60,
    "MRC stack": 40,
    "micrographs, STAR picks": 20,
    "micrographs, .box picks": 20,
    "micrographs, .cs picks": 20,
    "finished run": 20,
}
SEED = 1_000_000


@pytest.mark.parametrize("kind", PER_KIND)
def test_damaged_files_are_refused_or_sound(tmp_path, kind):
    made = fuzz.make_projects([kind], tmp_path)
    outcomes = []
    for seed in range(SEED, SEED + PER_KIND[kind]):
        project, files, chance = fuzz.file_of(kind, seed, made)
        root = tmp_path / str(seed)
        root.mkdir()
        tracemalloc.start()
        begin = time.thread_time()
        try:
            outcomes.append(fuzz.use_project(project, files, root, chance))
        except Exception as error:
            raise AssertionError(f"python benchmarks/fuzz.py --again {kind!r} {seed}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 64e6, seed
        assert time.thread_time() - begin < fuzz.MOST_SECONDS, seed
    # Damage that never matters, or always, would test half of it.
    assert 0.05 < np.mean(outcomes) < 0.95


def test_a_seed_always_gives_the_same_bytes():
    made = {
        kind: [make() for make in makers] for kind, makers in fuzz.MAKERS.items() if kind != "finished run"
    }
    for kind in made:
        first, again = (fuzz.file_of(kind, 5, made) for _ in range(2))
        assert first[:2] == again[:2]
        others = [fuzz.file_of(kind, seed, made)[1] for seed in range(6, 12)]
        assert any(files != first[1] for files in others)


def test_what_is_promised_of_results_is_looked_at(tmp_path, monkeypatch):
    """The judge must notice what is wrong: here images of another type, and a part with a row too few."""
    project = fuzz.relion30()
    for number, (name, wrong) in enumerate(
        [
            ("fastsort.particles.source.Particles.read", lambda old: lambda *a: old(*a).astype(np.float64)),
            (
                "fastsort.particles.relion.subset_bytes",
                lambda old: lambda star, rows, *a: old(star, rows[1:], *a),
            ),
        ]
    ):
        root = tmp_path / str(number)
        root.mkdir()
        with monkeypatch.context() as patch:
            module, _, attribute = name.rpartition(".")
            owner = Particles if module.endswith("Particles") else sys.modules[module]
            patch.setattr(owner, attribute, wrong(getattr(owner, attribute)))
            with pytest.raises(fuzz.Unsound):
                fuzz.use_project(project, project.files, root, random.Random(3))


def test_a_dataset_of_several_stacks_is_described_whole(tmp_path):
    project = fuzz.cryosparc()
    for name, content in project.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = describe(tmp_path / project.source)
    assert (found.kind, found.n_images, found.n_stacks, found.usable) == ("cryoSPARC dataset", 10, 2, True)
    assert found.boxes == {(fuzz.BOX, fuzz.BOX): 10}
    assert found.pixel_size == 1.5 and found.optics[0].voltage == 300 and found.has_ctf
    assert found.defocus == (9000, 12000) and found.n_micrographs == 2 and found.n_repeated == 0
    assert found.pixels == {"int8": 1, "float16, little-endian": 1}
    assert found.look.n_images == 10


@pytest.mark.parametrize("row", ["'a " * 50_000, "'a \"b " * 50_000, "9" * 100_000 + " 1"])
def test_long_lines_take_no_more_than_their_length(tmp_path, row):
    """Quotes that never end, and numbers where names are; looking for each end anew would take minutes."""
    path = tmp_path / "p.star"
    path.write_text(fuzz.loop("", ("CoordinateX", "CoordinateY", "MicrographName"), [("5", "5", row)]))
    (tmp_path / "m.mrc").write_bytes(fuzz.mrc(fuzz.pixels(1, 60)))
    begin = time.thread_time()
    with pytest.raises(InputError):
        open_particles((tmp_path / "m.mrc", path), box=fuzz.BOX)
    path.write_text(path.read_text().replace(" 1 \n", "\n"))
    with pytest.raises(InputError):
        open_particles((tmp_path / "m.mrc", path), box=fuzz.BOX)
    assert time.thread_time() - begin < 2


def test_a_column_of_random_pixel_sizes_takes_no_memory(tmp_path):
    """Each pixel size asks for an operator of its own."""
    (tmp_path / "a.mrcs").write_bytes(fuzz.mrc(fuzz.pixels(1, 256)))
    sizes = np.random.default_rng(0).uniform(1, 2, 20_000)
    rows = [("1@a.mrcs", f"{size:.5f}") for size in sizes]
    (tmp_path / "p.star").write_text(fuzz.loop("", ("ImageName", "PixelSize"), rows))
    with pytest.raises(InputError, match="different boxes or pixel sizes"):
        open_particles(tmp_path / "p.star")


# Where results go.


def tree(folder):
    """Return all that is in a folder: what files hold, and where links point."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path] = os.readlink(path)
        else:
            found[path] = path.read_bytes() if path.is_file() else None
    return found


def apply_list(tmp_path, *arguments, code=0):
    """Write some images of an input, and check that nothing beside the output folder has changed."""
    chosen, out = tmp_path / "list.txt", tmp_path / "results" / "out"
    chosen.write_text("0\n2\n")
    out.parent.mkdir(exist_ok=True)
    before = tree(tmp_path)
    assert main(["apply", str(chosen), *map(str, arguments), "-o", str(out), "--quiet"]) == code
    after = tree(tmp_path)
    new = {path for path in after if before.get(path, before) != after[path]}
    assert new == {path for path in after if path == out or out in path.parents}
    assert set(before) <= set(after)
    return out


EVIL = [
    *(
        "../../../evil.mrc",
        "/etc/evil.mrc",
        "..",
        ".",
        "/",
        "~/evil.mrc",
        "$HOME/evil.mrc",
        "results/out/kept.star",
    ),
    *(
        "a/" * 2000,
        "n" * 5000,
        "-o",
        "--overwrite",
        "\udcff\udcfe.mrc",
        "a\x85b",
        "CON",
        "a\\..\\b",
        "%s%n{}{0}",
    ),
]


@pytest.fixture
def stacks(tmp_path):
    """The same stack by way of all kinds of names, as seen from a table in tmp_path / project."""
    images = fuzz.mrc(fuzz.pixels(4, fuzz.BOX))
    far = tmp_path / "elsewhere" / "far.mrcs"
    far.parent.mkdir()
    far.write_bytes(images)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "link.mrcs").symlink_to(far)
    (tmp_path / "project" / "folder").symlink_to(far.parent)
    long = "x" * 250 + ".mrcs"
    (tmp_path / "project" / long).write_bytes(images)
    return [
        "../elsewhere/far.mrcs",
        str(far),
        "link.mrcs",
        "folder/far.mrcs",
        "folder/../elsewhere/far.mrcs",
        long,
    ]


def test_names_in_a_star_file_do_not_lead_out(tmp_path, stacks):
    rows = [
        (f"{i % 4 + 1}@{stacks[i % len(stacks)]}", micrograph, 5 * i, 7 * i)
        for i, micrograph in enumerate(EVIL)
    ]
    path = tmp_path / "project" / "p.star"
    text = fuzz.loop("", ("ImageName", "MicrographName", "CoordinateX", "CoordinateY"), rows)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    out = apply_list(tmp_path, path)
    assert {item.name for item in out.iterdir()} == {"kept.star", "rejected.star", "summary.json"}
    again = open_particles(out / "kept.star", data_dir=path.parent)
    assert again.micrographs == [EVIL[0], EVIL[2]]


def test_a_whole_run_stays_in_its_folder(tmp_path, stacks):
    rows = [
        (f"{i % 4 + 1}@{stacks[i % len(stacks)]}", EVIL[i % len(EVIL)], 50 * i, 31 * i % 997)
        for i in range(40)
    ]
    path, out = tmp_path / "project" / "p.star", tmp_path / "out"
    text = fuzz.loop("", ("ImageName", "MicrographName", "CoordinateX", "CoordinateY"), rows)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    before = tree(tmp_path)
    options = ["--diameter", "10", "--pixel-size", "1", "--method", "radial", "--jobs", "1", "--quiet"]
    assert main(["sort", str(path), "-o", str(out), *options]) == 0
    after = tree(tmp_path)
    assert {item: after[item] for item in before} == before
    assert {item.parent for item in after if item not in before} == {tmp_path, out}
    assert {item.name for item in out.iterdir()} <= set(RESULT_NAMES)


def test_names_in_a_dataset_do_not_lead_out(tmp_path, stacks):
    evil = [
        name.encode("utf-8", "surrogateescape") for name in EVIL if name.isprintable() and len(name) < 300
    ]
    n = len(evil)
    rows = fuzz.structured(
        n,
        uid=np.arange(n, dtype="<u8"),
        blob__path=np.array([f">{stacks[i % len(stacks)]}".encode() for i in range(n)]),
        blob__idx=np.arange(n, dtype="<u4") % 4,
        location__micrograph_path=np.array(evil),
    )
    path = tmp_path / "project" / "p.cs"
    path.write_bytes(fuzz.cs_bytes(rows))
    (tmp_path / "project" / "passthrough.cs").symlink_to(path)
    out = apply_list(tmp_path, path)
    assert {item.name for item in out.iterdir()} == {"kept.cs", "rejected.cs", "summary.json"}
    assert len(open_particles(out / "kept.cs", data_dir=path.parent)) == 2


@pytest.mark.parametrize("name", [b"a\nb.mrc", b"a\rb.mrc", b"a\0b.mrc", b"\x1b]0;a.mrc"], ids=ascii)
def test_paths_with_control_characters_are_refused(tmp_path, capsys, name):
    rows = fuzz.structured(3, blob__path=np.array([name] * 3), blob__idx=np.arange(3, dtype="<u4"))
    path = tmp_path / "p.cs"
    path.write_bytes(fuzz.cs_bytes(rows))
    before = tree(tmp_path)
    assert main(["sort", str(path), "-o", str(tmp_path / "out")]) == 1
    assert tree(tmp_path) == before
    assert "characters that no path has" in capsys.readouterr().err


@pytest.fixture
def picked(tmp_path):
    """Two micrographs, and a list that names their picks by names that lead elsewhere."""
    pictures = fuzz.micrographs()
    (tmp_path / "project" / "mics").mkdir(parents=True)
    for name, content in pictures.items():
        (tmp_path / "project" / name).write_bytes(content)
    far = tmp_path / "elsewhere"
    far.mkdir()

    def make(path, i):
        text = fuzz.loop("", ("CoordinateX", "CoordinateY"), fuzz.picks(i))
        path.write_bytes(text.encode())
        return path

    return list(pictures), far, make


def apply_picks(tmp_path, pictures, names, code=0):
    listed = fuzz.loop(
        "coordinate_files",
        ("MicrographName", "MicrographCoordinates"),
        list(zip(pictures, names, strict=True)),
    )
    path = tmp_path / "project" / "picks.star"
    path.write_bytes(listed.encode("utf-8", "surrogateescape"))
    arguments = ["--micrographs", tmp_path / "project" / "mics" / "*.mrc", "--coordinates", path]
    return apply_list(tmp_path, *arguments, "--box", fuzz.BOX, code=code)


def test_coordinate_files_are_written_by_their_last_name_alone(tmp_path, picked):
    pictures, far, make = picked
    make(far / "one.star", 0)
    second = make(far / "two.star", 1)
    link = tmp_path / "project" / "link.star"
    link.symlink_to(second)
    out = apply_picks(tmp_path, pictures, ["../elsewhere/../elsewhere/one.star", "link.star"])
    for part in ("kept", "rejected"):
        written = {item.name for item in (out / part).iterdir()}
        assert written == {".fastsort", "one.star", "link.star"}
        assert not any(item.is_symlink() for item in (out / part).iterdir())
    kept = (out / "kept" / "one.star").read_text().split("\n")
    assert [line for line in kept if line[:1].isdigit()] == ["12.0 10.0 ", "23.0 18.0 "]


@pytest.mark.parametrize(
    "name", [".star.star", "x" * 250 + ".star", "\udcff.star", "kept.star", "*.star", "..star"]
)
def test_odd_names_of_coordinate_files_stay_in_the_folder(tmp_path, picked, name):
    pictures, far, make = picked
    make(far / name, 0)
    make(far / "two.star", 1)
    out = apply_picks(tmp_path, pictures, [f"../elsewhere/{name}", str(far / "two.star")])
    assert {item.name for item in (out / "kept").iterdir()} == {".fastsort", name, "two.star"}


def test_a_line_break_in_the_name_of_a_coordinate_file_stays_in_the_folder(tmp_path, picked):
    _, far, make = picked
    make(far / "m_0\n..\nb.star", 0)
    arguments = ["--micrographs", tmp_path / "project" / "mics" / "m_0.mrc", "--coordinates", far / "*.star"]
    out = apply_list(tmp_path, *arguments, "--box", fuzz.BOX)
    assert {item.name for item in (out / "kept").iterdir()} == {".fastsort", "m_0\n..\nb.star"}


def test_two_coordinate_files_of_one_name_overwrite_nothing(tmp_path, picked, capsys):
    pictures, far, make = picked
    make(far / "one.star", 0)
    make(tmp_path / "project" / "one.star", 1)
    apply_picks(tmp_path, pictures, ["../elsewhere/one.star", "one.star"], code=1)
    assert "have one name" in capsys.readouterr().err


def test_a_name_too_long_for_what_is_written_leaves_nothing(tmp_path, picked, capsys):
    """A .cs file grows under a longer name until it is whole."""
    _, far, _ = picked
    rows = fuzz.cs_picks().files["picked.cs"]
    (far / ("x" * 252 + ".cs")).write_bytes(rows)
    arguments = ["--micrographs", tmp_path / "project" / "mics" / "*.mrc", "--coordinates", far / "*.cs"]
    apply_list(tmp_path, *arguments, "--box", fuzz.BOX, code=1)
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", ["kept.star", "kept", "summary.json", "scores.csv"])
def test_links_in_the_output_folder_are_not_followed(tmp_path, stacks, name, capsys):
    path, out, victim = tmp_path / "project" / "p.star", tmp_path / "out", tmp_path / "victim"
    path.write_text(fuzz.loop("", ("ImageName",), [(f"{i + 1}@link.mrcs",) for i in range(4)]))
    chosen = tmp_path / "list.txt"
    chosen.write_text("0\n2\n")
    arguments = ["apply", str(chosen), str(path), "-o", str(out), "--quiet"]
    assert main(arguments) == 0
    victim.write_text("precious")
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(victim)
    before = tree(tmp_path)
    assert main([*arguments, "--overwrite"]) == 1
    assert tree(tmp_path) == before
    assert name in capsys.readouterr().err


def test_a_link_in_the_place_of_the_unfinished_folder_is_not_followed(tmp_path, stacks, capsys):
    path = tmp_path / "project" / "p.star"
    path.write_text(fuzz.loop("", ("ImageName",), [(f"{i + 1}@link.mrcs",) for i in range(4)]))
    chosen, victim = tmp_path / "list.txt", tmp_path / "victim"
    chosen.write_text("0\n2\n")
    victim.mkdir()
    (tmp_path / ".out.partial").symlink_to(victim)
    before = tree(tmp_path)
    assert main(["apply", str(chosen), str(path), "-o", str(tmp_path / "out"), "--quiet"]) == 1
    assert tree(tmp_path) == before
    assert "unfinished" in capsys.readouterr().err
