"""Files that could be read wrong without a word: each is read right, doubted, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastsort import InputError, open_particles
from fastsort.cli import main
from fastsort.particles.mrc import write_stack
from fastsort.particles.open import open_table, read_picks
from fastsort.particles.star import read_star, subset_bytes

CASES = Path(__file__).parents[2] / "shared" / "cases"
BOX = 16


def case(name, file):
    """Return a file of the collected cases."""
    path = CASES / name / file
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def noise(n=4, box=BOX, seed=0):
    return np.random.default_rng(seed).normal(size=(n, box, box)).astype(np.float32)


def stack(path, images=None, pixel_size=2.0):
    images = noise() if images is None else images
    path.parent.mkdir(parents=True, exist_ok=True)
    write_stack(path, [images], pixel_size, len(images), images.shape[1])
    return path


def table(labels, rows, name="particles"):
    """Return a loop as text."""
    head = "".join(f"{label} #{i}\n" for i, label in enumerate(labels, 1))
    return f"\ndata_{name}\n\nloop_\n{head}" + "".join(" ".join(map(str, row)) + "\n" for row in rows) + "\n"


OPTICS = ("_rlnOpticsGroup", "_rlnVoltage", "_rlnSphericalAberration", "_rlnAmplitudeContrast")


def star(folder, *tables, name="a.star"):
    path = folder / name
    path.write_text("".join(tables))
    return path


def refused(path, *parts, **options):
    """Open what cannot be opened: an error of one line, which `info` shows and `sort` ends with."""
    with pytest.raises(InputError) as caught:
        open_particles(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


def info(path, capsys):
    """Return what `fastsort info` prints, as one line, and its exit code."""
    code = main(["info", str(path)])
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split()), code


# Several tables with images in one file.


def two_tables(folder, middle=""):
    stack(folder / "p.mrcs")
    first, second = (table(["_rlnImageName"], [(f"{i}@p.mrcs",) for i in part]) for part in ((1, 2), (3, 4)))
    return star(folder, first, middle, second.replace("data_particles", "data_more"))


def test_two_tables_with_images_are_refused(tmp_path, capsys):
    path = two_tables(tmp_path)
    expected = "a.star has two tables with _rlnImageName (lines 2 and 10): join them into one."
    refused(path, expected)
    with pytest.raises(InputError, match="two tables"):
        open_table(path)
    (tmp_path / "keep.txt").write_text("0\n")
    for command in (["apply", str(tmp_path / "keep.txt")], ["sort"], ["map"], ["info"]):
        output = [] if command == ["info"] else ["-o", str(tmp_path / "o")]
        assert main([*command, str(path), *output]) == 1
        assert expected in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o").exists()


def test_three_tables_and_single_rows_count_too(tmp_path):
    path = two_tables(tmp_path, "\ndata_single\n\n_rlnImageName 3@p.mrcs\n")
    refused(path, "has 3 tables with _rlnImageName (lines 2 and 10, ...)")
    refused(
        case("two_particle_tables", "all.star"), "all.star has two tables with _rlnImageName (lines 20 and"
    )


def test_tables_without_rows_are_no_second_table(tmp_path):
    stack(tmp_path / "p.mrcs")
    empty = table(["_rlnImageName"], [], name="none")
    full = table(["_rlnImageName"], [("1@p.mrcs",), ("2@p.mrcs",)])
    assert len(open_particles(star(tmp_path, empty, full))) == 2


def test_two_tables_of_picks_micrographs_or_optics_are_refused(tmp_path):
    picks = table(["_rlnCoordinateX", "_rlnCoordinateY"], [(1, 2)], name="")
    with pytest.raises(InputError, match=r"two tables with _rlnCoordinateX \(lines 2 and 10\)"):
        read_picks(str(star(tmp_path, picks, picks)))
    boxes = table(["_CoordinateX", "_CoordinateY", "_Width", "_Height"], [(1, 2, 3, 4)], name="cryolo")
    with pytest.raises(InputError, match="two tables with _CoordinateX"):
        read_picks(str(star(tmp_path, boxes, boxes, name="a.cbox")))
    listed = table(["_rlnMicrographName"], [("a.mrc",)])
    with pytest.raises(InputError, match="two tables with _rlnMicrographName"):
        open_particles((star(tmp_path, listed, listed), str(tmp_path / "a.box")), box=BOX)
    stack(tmp_path / "p.mrcs")
    optics = table(["_rlnOpticsGroup"], [(1,)], name="optics")
    images = table(["_rlnImageName", "_rlnOpticsGroup"], [("1@p.mrcs", 1)])
    refused(star(tmp_path, optics, images, optics), "two tables named data_optics (lines 2 and 17)")


# Keys that occur twice.


def test_an_optics_group_that_is_listed_twice_is_refused(tmp_path, capsys):
    path = case("optics_number_twice", "p.star")
    expected = "data_optics of {} lists group 1 on lines 15 and 16: give each group a number of its own"
    refused(path, expected.format(path))
    text, code = info(path, capsys)
    assert code == 1 and expected.format(path) in text


@pytest.mark.parametrize("groups", [(1, 2, 1), (3, 3), (1, 2, 2.0)])
def test_optics_groups_are_told_by_their_numbers(tmp_path, groups):
    stack(tmp_path / "p.mrcs")
    optics = table(["_rlnOpticsGroup", "_rlnImagePixelSize"], [(g, 1.5) for g in groups], name="optics")
    images = table(["_rlnImageName", "_rlnOpticsGroup"], [("1@p.mrcs", groups[0])])
    first, last = 7 + groups.index(groups[-1]), 6 + len(groups)
    refused(star(tmp_path, optics, images), f"lists group {groups[-1]:g} on lines {first} and {last}")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (table(["_rlnImageName", "_rlnA", "_rlnA"], [("1@p.mrcs", 1, 2)]), "twice, on lines 6 and 7"),
        (table(["_rlnImageName", "_rlnA", "_rlnImageName"], [("1@p.mrcs", 1, "2@p.mrcs")]), "lines 5 and 7"),
        ("data_general\n\n_rlnA 1\n_rlnA 2\n" + table(["_rlnImageName"], [("1@p.mrcs",)]), "lines 3 and 4"),
    ],
)
def test_a_column_that_is_named_twice_is_refused(tmp_path, text, lines):
    stack(tmp_path / "p.mrcs")
    refused(star(tmp_path, text), lines, "remove one")


# A table that is written otherwise.


def test_a_table_without_loop_is_told_by_its_cause(tmp_path, capsys):
    path = case("star_without_loop", "noloop.star")
    expected = "has columns but no loop_: put a line with loop_ before line 7, which names the first of them"
    assert f"data_optics of {path}" in refused(path, expected, "_rlnOpticsGroupName")
    assert info(path, capsys)[1] == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data_\n\n_rlnImageName #1\n_rlnA\n1@a 2\n", ["data_ of", "no loop_", "line 3", "_rlnImageName"]),
        ("data_a\n\n1@a 2\n", ["data_a of", "rows (line 3)", "neither loop_ nor columns"]),
        ("data_a\n_rlnB 3\n1@a 2 3\n", ["single values and then, on line 3", "loop_"]),
        ("data_a\nloop_\n_rlnImageName\n1@a\n\nloop_\n_rlnB\n3\n", ["line 6", "a second loop_"]),
    ],
)
def test_other_faults_of_tables_are_told_by_their_cause(tmp_path, text, parts):
    refused(star(tmp_path, text), *parts)


@pytest.mark.parametrize("write", [str, str.upper, str.title])
def test_data_and_loop_may_be_in_capital_letters(tmp_path, write):
    stack(tmp_path / "p.mrcs")
    text = table(["_rlnOpticsGroup", "_rlnImagePixelSize"], [(1, 1.5)], name="optics")
    text += table(["_rlnImageName", "_rlnOpticsGroup"], [("1@p.mrcs", 1), ("3@p.mrcs", 1)])
    for word in ("data_optics", "data_particles", "loop_"):
        text = text.replace(word, write(word))
    particles = open_particles(star(tmp_path, text))
    assert len(particles) == 2 and particles.pixel_size == 1.5
    np.testing.assert_array_equal(particles.read(1, 2), noise()[2:3])
    written = b"".join(subset_bytes(read_star(tmp_path / "a.star"), [1])).decode()
    assert written == text.replace("1@p.mrcs 1\n", "")
    assert len(open_particles(case("star_without_loop", "upper.star"))) == 20


def single(folder, ending="\n"):
    stack(folder / "p.mrcs")
    optics = "data_optics\n\n_rlnOpticsGroup 1\n_rlnImagePixelSize 5.86\n\n"
    images = "data_particles\n\n_rlnImageName 000002@p.mrcs\n_rlnOpticsGroup 1 # the only one\n\n# end\n"
    path = folder / "one.star"
    path.write_bytes(f"{optics}{images}".replace("\n", ending).encode())
    return path


def test_a_table_of_one_row_needs_no_loop(tmp_path):
    assert len(open_particles(case("star_without_loop", "single.star"))) == 1
    particles = open_particles(single(tmp_path))
    assert (len(particles), particles.pixel_size, list(particles.names)) == (1, 5.86, ["000002@p.mrcs"])
    np.testing.assert_array_equal(particles.read(0, 1), noise()[1:2])


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_table_of_one_row_is_written_with_it_and_without_it(tmp_path, ending):
    path = single(tmp_path, ending)
    text, file = path.read_bytes(), read_star(path)
    assert b"".join(subset_bytes(file, [0])) == text
    added = {"_rlnOpticsGroup": ["2"], "_new": ["x"]}
    newline = ending.encode()
    new = newline.join([b"Group 2 # the only one", b"_new x", b""])
    expected = text.replace(b"Group 1 # the only one" + newline, new)
    assert b"".join(subset_bytes(file, [0], added)) == expected
    without = b"".join(subset_bytes(file, [], added))
    head = text[: text.index(b"_rlnImageName")]
    lines = [b"loop_", b"_rlnImageName #1", b"_rlnOpticsGroup #2", b"_new #3", b"", b"# end", b""]
    assert without == head + newline.join(lines)
    path.write_bytes(without)
    again = read_star(path).particles_block
    assert again.n_rows == 0 and again.labels == ["_rlnImageName", "_rlnOpticsGroup", "_new"]


# cryoSPARC.

DTYPE = [("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")]


def dataset(folder, uids, name="a.cs", more=(), **fields):
    """Write a dataset whose rows name the images of p.mrcs one after the other."""
    rows = np.zeros(len(uids), [*DTYPE, *more])
    rows["uid"], rows["blob/path"], rows["blob/idx"], rows["blob/psize_A"] = (
        uids,
        b"p.mrcs",
        range(len(uids)),
        2,
    )
    for field, values in fields.items():
        rows[field.replace("__", "/")] = values
    with open(folder / name, "wb") as file:
        np.save(file, rows)
    return folder / name


@pytest.mark.parametrize(("uids", "rows"), [((7, 8, 9, 8), "rows 1 and 3"), ((5, 5, 6, 7), "rows 0 and 1")])
def test_a_uid_that_occurs_twice_is_refused(tmp_path, uids, rows):
    stack(tmp_path / "p.mrcs")
    refused(dataset(tmp_path, uids), f"a.cs has uid {uids[-1] if uids[0] == 7 else 5} twice, in {rows}")
    good, twice = dataset(tmp_path, range(4)), dataset(tmp_path, uids, "twice.cs")
    refused(good, "twice.cs has uid", rows, passthrough=twice)


def test_copies_of_symmetry_expansion_may_share_a_uid(tmp_path):
    stack(tmp_path / "p.mrcs")
    expanded = dataset(tmp_path, (7, 7, 8, 8), more=[("sym_expand/idx", "<u4")], blob__idx=(0, 0, 1, 1))
    assert len(open_particles(expanded)) == 4
