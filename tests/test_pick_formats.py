"""Picks of other programs: crYOLO, Topaz and EMAN2 in, and the same files with some of the picks out."""

from __future__ import annotations

import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsort.particles as particles_room
from fastsort._checks import InputError
from fastsort.cli import main
from fastsort.cli.entry import build_parser
from fastsort.cli.options import fill_in_defaults, open_input
from fastsort.particles import open as door
from fastsort.particles.describe_picks import describe_picks
from fastsort.particles.eman_picks import read_eman_picks
from fastsort.particles.open import open_particles
from fastsort.particles.picks import PickFile
from fastsort.particles.table import Added

REAL = Path(__file__).parents[2] / "shared" / "data" / "real" / "micrographs_betagal"
BOX = 20
CENTRES = np.array([[30.0, 40.0], [51.5, 62.5], [70.0, 25.0], [44.0, 80.0]])

CRYOLO_CBOX = """
data_global

_cbox_format_version 1.0

data_cryolo

loop_
_CoordinateX #1
_CoordinateY #2
_CoordinateZ #3
_Width #4
_Height #5
_Depth #6
_EstWidth #7
_EstHeight #8
_Confidence #9
_NumBoxes #10
_Angle #11
{rows}

data_cryolo_include

loop_
_slice_index #1

"""
CRYOLO_STAR = """
data_

loop_
_rlnCoordinateX #1
_rlnCoordinateY #2
_rlnClassNumber #3
_rlnAnglePsi #4
_rlnAutopickFigureOfMerit #5
{rows}
"""


def cbox(centres):
    rows = [
        f"{x - 12:.1f} {y - 10:.1f} <NA> 24 20 <NA> 22.5 21.5 0.{i}31 <NA> <NA>"
        for i, (x, y) in enumerate(centres)
    ]
    return CRYOLO_CBOX.format(rows="\n".join(rows)), rows


def cryolo_star(centres):
    rows = [f"  {x:12.6f} {y:12.6f}  -9999 -9999.000000  0.5{i}" for i, (x, y) in enumerate(centres)]
    return CRYOLO_STAR.format(rows="\n".join(rows)), rows


def topaz(centres):
    rows = [f"a.b\t{x:g}\t{y:g}\t-0.{i}7" for i, (x, y) in enumerate(centres)]
    return "image_name\tx_coord\ty_coord\tscore\n" + "\n".join(rows) + "\n", rows


def box(centres):
    rows = [f"{x - 10:.1f}\t{y - 10:.1f}\t20\t20\t-3" for x, y in centres]
    return "\n".join(rows) + "\n", rows


def eman(centres):
    rows = [f'[\n  {x}, {y}, "manual"\n ]' for x, y in centres]
    return '{\n "boxes": [\n ' + ",\n ".join(rows) + '\n ],\n "quality": 5, "note": "[1, 2]"\n}', rows


FORMATS = {
    "a.b.cbox": cbox,
    "a.b.star": cryolo_star,
    "extracted.txt": topaz,
    "a.b.box": box,
    "a.b_info.json": eman,
}


@pytest.fixture
def micrograph(tmp_path):
    path = tmp_path / "a.b.mrc"
    with mrcfile.new(path) as file:
        file.set_data(np.random.default_rng(0).normal(size=(100, 110)).astype(np.float32))
        file.voxel_size = 2.0
    return path


def test_every_format_is_listed_with_a_function_that_is_there():
    for table in (door.TABLES, door.PICKS):
        assert all(callable(door._function(place)) for place in table.values())


@pytest.mark.parametrize("name", FORMATS)
def test_centres_are_read(micrograph, name):
    path = micrograph.parent / name
    path.write_text(FORMATS[name](CENTRES)[0])
    particles = open_particles((micrograph, path), box=BOX)
    assert particles.table.has_picks and particles.table.files == [str(path)]
    np.testing.assert_allclose(np.stack([particles.table.x, particles.table.y], axis=1), CENTRES)
    assert particles.micrographs == [str(micrograph)] * len(CENTRES)


@pytest.mark.parametrize("name", FORMATS)
def test_kept_and_rejected_are_the_file_with_some_of_its_picks(micrograph, name, tmp_path, capsys):
    text, rows = FORMATS[name](CENTRES)
    path = tmp_path / name
    path.write_text(text)
    (tmp_path / "list.txt").write_text("0\n3\n")
    arguments = ["--micrographs", str(micrograph), "--coordinates", str(path), "--box", str(BOX)]
    assert main(["apply", str(tmp_path / "list.txt"), *arguments, "-o", str(tmp_path / "out")]) == 0
    for part, kept in (("kept", (0, 3)), ("rejected", (1, 2))):
        assert sorted(file.name for file in (tmp_path / "out" / part).iterdir()) == [".fastsort", name]
        written = (tmp_path / "out" / part / name).read_text()
        again = door.read_picks(str(tmp_path / "out" / part / name))
        np.testing.assert_allclose(np.stack([again.x, again.y], axis=1), CENTRES[list(kept)])
        for number, row in enumerate(rows):
            assert (row in written) == (number in kept)
        expected = FORMATS[name](CENTRES[list(kept)])[0]
        for number, row in zip(kept, FORMATS[name](CENTRES[list(kept)])[1], strict=True):
            expected = expected.replace(row, rows[number])
        assert written == expected
    assert path.read_text() == text


def test_info_says_what_picks_there_are(tmp_path, capsys):
    folder = tmp_path / "picks"
    folder.mkdir()
    for name, make in FORMATS.items():
        (folder / name).write_text(make(CENTRES)[0])
        (tmp_path / name).write_text(make(CENTRES)[0])
        assert main(["info", str(tmp_path / name)]) == 0
        text = capsys.readouterr().out
        facts = {line[2:16].strip(): line[16:] for line in text.splitlines()[1:]}
        assert text.startswith(f"{tmp_path / name}: picks ")
        assert (facts["picks"], facts["micrographs"]) == ("4", "1")
        assert facts["reach"] == "x 30 to 70, y 25 to 80 px"
    (folder / "broken.txt").write_text("1 2 3\n")
    (folder / "empty.box").write_text("")
    found = describe_picks(folder)
    assert (found.n_picks, found.n_empty, len(found.problems)) == (4 * len(FORMATS), 1, 1)
    assert not found.usable
    listed = "\n".join(f"a{k} picks/{name}" for k, name in enumerate(["a.b.star", "gone.star"]))
    columns = "loop_\n_rlnMicrographName\n_rlnMicrographCoordinates\n"
    (tmp_path / "list.star").write_text(f"data_coordinate_files\n\n{columns}{listed}\n")
    assert main(["info", str(tmp_path / "list.star")]) == 1
    text = capsys.readouterr().out
    assert "missing       1 file\n    picks/gone.star" in text and "picks         4" in text
    (tmp_path / "none").mkdir()
    assert main(["info", str(tmp_path / "none")]) == 1
    assert "neither a finished run of fastsort nor files of picks" in capsys.readouterr().err
    # What is neither is told as before.
    (tmp_path / "other.star").write_text("data_\n\nloop_\n_rlnVoltage\n300\n")
    assert main(["info", str(tmp_path / "other.star")]) == 1
    assert "_rlnImageName" in capsys.readouterr().err


@pytest.mark.parametrize("name", FORMATS)
def test_all_and_none_of_the_picks(micrograph, name, tmp_path):
    text, rows = FORMATS[name](CENTRES)
    path = tmp_path / name
    path.write_text(text)
    table = open_particles((micrograph, path), box=BOX).table
    (tmp_path / "out").mkdir()
    table.write_files(tmp_path / "out", np.arange(4), Added())
    assert (tmp_path / "out" / name).read_text() == text
    table.write_files(tmp_path / "out", np.arange(0), Added())
    assert len(door.read_picks(str(tmp_path / "out" / name)).x) == 0
    assert not any(row in (tmp_path / "out" / name).read_text() for row in rows)


boxes = st.lists(st.tuples(st.floats(0, 99), st.floats(0, 99), st.sampled_from(["manual", "auto_net", "é"])))


@settings(max_examples=60, deadline=None)
@given(boxes=boxes, indent=st.sampled_from([None, 0, 1]), ascii_only=st.booleans(), data=st.data())
def test_eman_files_lose_nothing_but_the_boxes_that_go(tmp_path_factory, boxes, indent, ascii_only, data):
    content = {"ctf": [1, {"boxes": [[9, 9]]}], "boxes": [list(item) for item in boxes], "z": "a, [b"}
    folder = tmp_path_factory.mktemp("eman")
    path = folder / "m_info.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    picks = read_eman_picks(str(path))
    assert picks.x.tolist() == [item[0] for item in boxes]
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes))), bool)
    picks.write(str(folder / "some.json"), kept, Added())
    content["boxes"] = [item for item, keep in zip(content["boxes"], kept, strict=True) if keep]
    assert json.loads((folder / "some.json").read_text(encoding="utf-8")) == content
    picks.write(str(folder / "all.json"), np.ones(len(boxes), bool), Added())
    assert (folder / "all.json").read_bytes() == path.read_bytes()


def test_a_list_of_topaz_holds_the_picks_of_many_micrographs(micrograph, tmp_path):
    other = tmp_path / "c.mrc"
    other.write_bytes(micrograph.read_bytes())
    lines = ["image_name\tx_coord\ty_coord\tscore", "c\t30\t40\t1.5", "a.b\t50\t60\t0.5", "c\t35\t45\t2.5"]
    (tmp_path / "p.txt").write_text("\n".join(lines) + "\n")
    particles = open_particles((str(tmp_path / "*.mrc"), tmp_path / "p.txt"), box=BOX)
    assert [Path(name).name for name in particles.micrographs] == ["c.mrc", "a.b.mrc", "c.mrc"]
    (tmp_path / "out").mkdir()
    particles.table.write_files(tmp_path / "out", np.array([2]), Added({"_rlnX": list("abc")}))
    assert (tmp_path / "out" / "p.txt").read_text() == "\n".join([lines[0], lines[3]]) + "\n"


def test_a_pattern_that_the_shell_has_replaced_is_the_same(micrograph, tmp_path):
    other = tmp_path / "c.mrc"
    other.write_bytes(micrograph.read_bytes())
    for name in ("a.b.box", "c.box"):
        (tmp_path / name).write_text(box(CENTRES)[0])

    def opened(mics, picks):
        words = ["sort", "--micrographs", *mics, "--coordinates", *picks, "--box", str(BOX), "-o", "out"]
        options = fill_in_defaults(build_parser().parse_args(words))
        return open_input(options)

    quoted = opened([str(tmp_path / "*.mrc")], [str(tmp_path / "*.box")])
    replaced = opened([str(micrograph), str(other)], [str(tmp_path / name) for name in ("a.b.box", "c.box")])
    assert quoted.opened_with["micrographs"] == str(tmp_path / "*.mrc")
    assert replaced.opened_with["micrographs"] == [str(micrograph), str(other)]
    assert list(quoted.names) == list(replaced.names) and len(replaced) == 2 * len(CENTRES)


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.b.cbox", "data_cryolo\n\nloop_\n_CoordinateX #1\n1\n", ["no table with _CoordinateX", "crYOLO"]),
        ("a.b.cbox", cbox([[np.nan, 1]])[0], ["finite", "line 20 of"]),
        ("x.txt", "1 2 3\n", ["no list of Topaz", "image_name, x_coord", "'1 2 3'"]),
        ("x.txt", "", ["no list of Topaz"]),
        ("x.txt", topaz(CENTRES)[0] + "a.b\t3\n", ["line 6 of", "'a.b 3'"]),
        ("x.txt", topaz(CENTRES)[0] + "a.b\t3\tnan\t1\n", ["line 6 of", "finite"]),
        ("a.b_info.json", "{", ["no JSON file"]),
        ("a.b_info.json", "[" * 100_000, ["no JSON file"]),
        ("a.b_info.json", "[1]", ['no list "boxes"']),
        ("a.b_info.json", '{"boxes": 3}', ['no list "boxes"']),
        ("a.b_info.json", '{"boxes": [[1, 2], [3]]}', ["box 1 of", "x and y"]),
        ("a.b_info.json", '{"boxes": [[1, NaN, "manual"]]}', ["box 0 of", "finite"]),
    ],
)
def test_files_that_are_not_what_they_seem_are_refused(micrograph, name, text, parts):
    path = micrograph.parent / name
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        open_particles((micrograph, path), box=BOX)
    assert len(str(caught.value).splitlines()) == 1
    for part in [name, *parts]:
        assert part in str(caught.value)


def test_a_new_format_is_a_file_and_a_line(micrograph, tmp_path, monkeypatch):
    """What somebody would write for a program that nobody knows yet."""
    (tmp_path / "dots_picks.py").write_text(
        "import numpy as np\n"
        "from fastsort.particles.picks import LineFile, numbered, read_lines\n"
        "def read_dots(path):\n"
        "    lines = read_lines(path)\n"
        "    dots = list(numbered(lines))\n"
        "    x, y = np.array([[float(word) for word in words] for _, words in dots]).reshape(-1, 2).T\n"
        "    return LineFile(path, None, x, y, None, lines, np.array([n for n, _ in dots], int))\n"
    )
    monkeypatch.setattr(particles_room, "__path__", [*particles_room.__path__, str(tmp_path)])
    monkeypatch.setitem(door.PICKS, ".dots", "dots_picks:read_dots")
    (tmp_path / "a.b.dots").write_text("30 40\n50 60\n")
    table = open_particles((micrograph, tmp_path / "a.b.dots"), box=BOX).table
    assert isinstance(table.contents[0], PickFile)
    (tmp_path / "kept").mkdir()
    table.write_files(tmp_path / "kept", np.array([1]), Added())
    assert (tmp_path / "kept" / "a.b.dots").read_text() == "50 60\n"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the shared data folder {REAL} is not here")
def test_real_picks_are_the_same_in_every_format(tmp_path):
    name = "Falcon_2012_06_12-14_33_35_0"
    mics = REAL / f"{name}.mrc"
    topaz_star = open_particles((mics, REAL / f"{name}_topaz.star"), box=56).table
    centres = np.stack([topaz_star.x, topaz_star.y], axis=1)
    for suffix, make in ((".cbox", cbox), (".box", box), ("_info.json", eman)):
        path = tmp_path / f"{name}{suffix}"
        path.write_text(make(centres)[0])
        table = open_particles((mics, path), box=56).table
        np.testing.assert_allclose(np.stack([table.x, table.y], axis=1), centres, atol=0.06)
