"""Files that could be read wrong without a word: each is read right, doubted, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fastsort import InputError, classify_particles, open_particles, sort_particles
from fastsort._saved import _FORMER, FORMAT, _decode, _encode, load
from fastsort.cli import main
from fastsort.cli.printing import print_map
from fastsort.decide.duplicates import find_all_duplicates
from fastsort.images.ctf import phase_flip
from fastsort.images.prepare import ctf_to_flip
from fastsort.particles.mrc import write_stack
from fastsort.particles.open import open_table, read_picks
from fastsort.particles.source import choose_particles
from fastsort.particles.star import read_star, subset_bytes
from fastsort.report.classes import summarize_map
from fastsort.report.finished import open_finished
from fastsort.report.tables import write_tables

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

CTF_FIELDS = [
    f"ctf/{name}" for name in ("df1_A", "df2_A", "df_angle_rad", "accel_kv", "cs_mm", "amp_contrast")
]
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


# Files that are longer than their header says.


def with_bytes(path, before=b"", after=b""):
    """Put bytes between header and images, or after these, of which the header does not know."""
    content = path.read_bytes()
    path.write_bytes(content[:1024] + before + content[1024:] + after)
    return path


@pytest.mark.parametrize(("file", "more"), [("p.mrcs", 131072), ("fewer.mrcs", 245760)])
def test_longer_files_are_refused(file, more, capsys):
    path = case("longer_than_header", file)
    refused(path, f"{path} has {more} bytes more than its header promises", "more images", "extended header")
    if file == "p.mrcs":
        text, code = info(path.with_suffix(".star"), capsys)
        assert code == 1 and f"has {more} bytes more than its header promises" in text


@pytest.mark.parametrize(
    "bytes_more",
    [
        {"before": b"\1" + bytes(767)},
        {"before": bytes(80)},
        {"after": b"abcd" * 20},
        {"after": bytes(4 * BOX * BOX)},
        {"after": b"\1" * 3 * 4 * BOX * BOX},
    ],
)
def test_bytes_that_may_shift_the_images_are_refused(tmp_path, bytes_more):
    path = with_bytes(stack(tmp_path / "p.mrcs"), **bytes_more)
    refused(path, "bytes more than its header promises (4 images, and 0 bytes of extended header)", "nsymbt")


@pytest.mark.parametrize("after", [bytes(512), bytes(3), b"\r\n", b"xyz" * 5])
def test_bytes_that_cannot_shift_the_images_are_left_out(tmp_path, after, capsys):
    path = with_bytes(stack(tmp_path / "p.mrcs"), after=after)
    particles = open_particles(path)
    np.testing.assert_array_equal(particles.read(0, 4), noise())
    doubt = f"p.mrcs has {len(after)} bytes after its last image, which are left out: check that it is whole."
    assert particles.doubts == (doubt,)
    text, code = info(path, capsys)
    assert code == 0 and f"doubt {doubt}" in text


def test_doubts_about_many_stacks_are_one_line(tmp_path):
    for name in "abc":
        with_bytes(stack(tmp_path / f"{name}.mrcs"), after=bytes(8))
    path = star(tmp_path, table(["_rlnImageName"], [(f"1@{name}.mrcs",) for name in "abc"]))
    (doubt,) = open_particles(path).doubts
    assert doubt.startswith("a.mrcs (and 2 more) has 8 bytes after its last image")


# Bytes with and without a sign.


def bytes_stack(path, images, stamp=None):
    """Write numbers as they stand, in mode 0."""
    stack(path, noise(len(images), images.shape[1]))
    header = bytearray(path.read_bytes()[:1024])
    header[12:16] = bytes(4)
    if stamp is not None:
        header[152:160] = np.array([1146047817, stamp], "<i4").tobytes()
    path.write_bytes(bytes(header) + images.tobytes())
    return path


@pytest.mark.parametrize(("mean", "std"), [(128, 20), (100, 30), (150, 40)])
def test_unsigned_bytes_are_told_by_their_pixels(tmp_path, mean, std):
    images = np.clip(np.round(mean + std * noise()), 0, 255).astype(np.uint8)
    path = bytes_stack(tmp_path / "p.mrcs", images)
    particles = open_particles(path)
    np.testing.assert_array_equal(particles.read(0, 4), images)
    (doubt,) = particles.doubts
    assert doubt.startswith("p.mrcs holds bytes, which are read as 0 to 255, since neighbouring pixels")
    wrong = open_particles(bytes_stack(path, images, stamp=1))
    np.testing.assert_array_equal(wrong.read(0, 4), images.view(np.int8))
    assert wrong.doubts == ()


@pytest.mark.parametrize(("mean", "std"), [(0, 20), (-30, 40), (50, 10), (0, 60)])
def test_signed_bytes_stay_signed(tmp_path, mean, std):
    images = np.clip(np.round(mean + std * noise()), -128, 127).astype(np.int8)
    particles = open_particles(bytes_stack(tmp_path / "p.mrcs", images))
    np.testing.assert_array_equal(particles.read(0, 4), images)
    assert particles.doubts == ()
    stamped = open_particles(bytes_stack(tmp_path / "p.mrcs", images, stamp=0))
    np.testing.assert_array_equal(stamped.read(0, 4), images.view(np.uint8))


def test_bytes_that_tell_nothing_are_read_as_the_standard_says(tmp_path):
    images = np.random.default_rng(0).integers(-128, 128, (4, BOX, BOX)).astype(np.int8)
    particles = open_particles(bytes_stack(tmp_path / "p.mrcs", images))
    np.testing.assert_array_equal(particles.read(0, 4), images)
    assert "read as -128 to 127, as the MRC standard has it, and may be 0 to 255" in particles.doubts[0]


# Flags that count for one optics group.

FLAGS = ("_rlnCtfDataArePhaseFlipped", "_rlnCtfDataAreCtfPremultiplied")


def two_groups(folder, flags, label=FLAGS[0], n=(3, 5)):
    stack(folder / "p.mrcs", noise(sum(n), 32))
    optics = table(
        [*OPTICS, label], [(g, 300, 2.7, 0.1, flag) for g, flag in zip("12", flags, strict=True)], "optics"
    )
    rows = [(f"{i + 1}@p.mrcs", 1 + (i >= n[0]), 15000 + 100 * i, 15000) for i in range(sum(n))]
    images = table(["_rlnImageName", "_rlnOpticsGroup", "_rlnDefocusU", "_rlnDefocusV"], rows)
    return star(folder, optics, images)


@pytest.mark.parametrize("label", FLAGS)
@pytest.mark.parametrize("flags", [(1, 0), (0, 1)])
def test_flags_of_one_group_are_for_its_images(tmp_path, label, flags, capsys):
    path = two_groups(tmp_path, flags, label)
    particles = open_particles(path)
    done = np.repeat(flags, (3, 5)) == 1
    np.testing.assert_array_equal(particles.corrected, done)
    ctf = ctf_to_flip(particles, "auto")
    flipped = phase_flip(particles.read(0, 8), ctf, particles.pixel_size)
    all_flipped = phase_flip(particles.read(0, 8), particles.ctf, particles.pixel_size)
    np.testing.assert_array_equal(flipped[~done], all_flipped[~done])
    np.testing.assert_allclose(flipped[done], particles.read(0, 8)[done], atol=1e-5)
    assert ctf_to_flip(particles, "yes") is particles.ctf and ctf_to_flip(particles, "no") is None
    word = "phase-flipped" if label == FLAGS[0] else "CTF-premultiplied"
    assert f"{done.sum()} of 8 images {word}" in info(path, capsys)[0]
    # A part of the set knows it too.
    np.testing.assert_array_equal(choose_particles(particles, [7, 0]).corrected, done[[7, 0]])


def test_flags_of_all_groups_or_of_none(tmp_path):
    all_done = open_particles(two_groups(tmp_path, (1, 1)))
    assert all_done.corrected.all() and ctf_to_flip(all_done, "auto") is None
    none_done = open_particles(two_groups(tmp_path, (0, 0)))
    assert none_done.corrected is None and ctf_to_flip(none_done, "auto") is none_done.ctf


def test_flags_of_images_and_of_different_kinds(tmp_path):
    stack(tmp_path / "p.mrcs")
    rows = [(f"{i + 1}@p.mrcs", i == 0, i > 2) for i in range(4)]
    rows = [(name, int(flipped), int(multiplied)) for name, flipped, multiplied in rows]
    path = star(tmp_path, table(["_rlnImageName", *FLAGS], rows))
    assert open_particles(path).corrected.tolist() == [True, False, False, True]


# Numbers that cannot be.


def one_group(folder, name="a.star", pixel_size=2.0, values=(300, 2.7, 0.1), defocus=(15000, 14000), **more):
    """Write eight images of one optics group."""
    stack(folder / "p.mrcs", noise(8))
    optics = table(
        [*OPTICS, "_rlnImagePixelSize", *more], [(1, *values, pixel_size, *more.values())], "optics"
    )
    rows = [(f"{i + 1}@p.mrcs", 1, *defocus) for i in range(8)]
    images = table(["_rlnImageName", "_rlnOpticsGroup", "_rlnDefocusU", "_rlnDefocusV"], rows)
    return star(folder, optics, images, name=name)


def test_usual_numbers_raise_no_doubt(tmp_path):
    for number, values in enumerate([(300, 2.7, 0.1), (80, 0, 0), (200, 0.01, 0.2), (120, 2, 0.07)]):
        assert open_particles(one_group(tmp_path, f"{number}.star", values=values)).doubts == ()
    assert open_particles(one_group(tmp_path, pixel_size=2.06)).doubts == ()


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"defocus": (1.5, 1.4)}, "the defocus is 1.45 A: if that is in micrometres, multiply it by 10000"),
        ({"defocus": (0, 0)}, "the defocus is 0 A: estimate the CTF"),
        ({"defocus": (1500, 1300)}, "the defocus is 1400 A: if that is in nanometres"),
        ({"defocus": (1e6, 1e6)}, "the defocus is 1e+06 A: check it"),
        ({"defocus": (-15000, -15000)}, "the defocus is -15000 A: underfocus is positive"),
        ({"values": (300000, 2.7, 0.1)}, "the voltage is 300000 kV: give it in kilovolts"),
        ({"values": (0.3, 2.7, 0.1)}, "the voltage is 0.3 kV"),
        ({"values": (300, -2.7, 0.1)}, "the spherical aberration is -2.7 mm"),
        ({"values": (300, 27, 0.1)}, "the spherical aberration is 27 mm"),
        ({"values": (300, 2.7, 10)}, "the amplitude contrast is 10: give it as a fraction"),
        (
            {"pixel_size": 8.0},
            "the table says 8 A/px, and the header of p.mrcs 2 A/px: if the table is wrong",
        ),
        ({"pixel_size": 0.5}, "the table says 0.5 A/px, and the header of p.mrcs 2 A/px"),
    ],
)
def test_numbers_that_cannot_be_are_doubted(tmp_path, changes, doubt, capsys):
    path = one_group(tmp_path, **changes)
    (found,) = open_particles(path).doubts
    assert found.startswith(doubt)
    text, code = info(path, capsys)
    assert code == 0 and f"doubt {found}" in text


def test_a_pixel_size_that_is_given_is_not_doubted(tmp_path):
    assert open_particles(one_group(tmp_path, pixel_size=8.0), pixel_size=2.0).doubts == ()


@pytest.mark.parametrize(
    ("file", "doubt"),
    [
        ("apix.star", "the table says 1.465 A/px, and the header of p.mrcs 5.859 A/px"),
        ("um.star", "the defocus is 1.3645 to 2.0158 A: if that is in micrometres"),
    ],
)
def test_the_collected_contradictions(file, doubt):
    (found,) = open_particles(case("table_against_header", file)).doubts
    assert found.startswith(doubt)


def test_micrographs_against_the_table_that_lists_them(tmp_path):
    for name in "abc":
        stack(tmp_path / f"{name}.mrc", noise(1, 99), 1.0 if name == "c" else 4.0)
        (tmp_path / f"{name}.box").write_text("30 30 16 16\n")
    optics = table([*OPTICS, "_rlnMicrographPixelSize"], [(1, 300e3, 2.7, 0.1, 1.1)], "optics")
    labels = ["_rlnMicrographName", "_rlnOpticsGroup", "_rlnDefocusU"]
    listed = table(labels, [(f"{name}.mrc", 1, 12000) for name in "abc"], "micrographs")
    picks = [tmp_path / f"{name}.box" for name in "abc"]
    source = star(tmp_path, optics, listed), picks
    of_pixels, of_voltage = open_particles(source, box=BOX).doubts
    assert of_pixels.startswith(
        "the table says 1.1 A/px, and the header of a.mrc 4 A/px for 2 of 3 images: if"
    )
    assert of_voltage.startswith("the voltage is 300000 kV: give it in kilovolts")
    assert open_particles(source, box=BOX, pixel_size=4.0).doubts == (of_voltage,)


def test_doubts_say_how_many_images_they_are_about(tmp_path):
    stack(tmp_path / "p.mrcs")
    fields = [(name, "<f4") for name in CTF_FIELDS]
    values = {
        "ctf__df1_A": (1.5, 15000, 15000, 0),
        "ctf__df2_A": 12000,
        "ctf__accel_kv": (300, 300e3, 300, 300),
    }
    path = dataset(tmp_path, range(4), more=fields, ctf__cs_mm=2.7, ctf__amp_contrast=0.1, **values)
    assert open_particles(path).doubts == (
        "the voltage is 300000 kV for 1 of 4 images: give it in kilovolts, such as 300, or sort with "
        "--phase-flip no.",
    )


# Volumes.


def volume(path, shape=(32, 32, 32), ispg=1):
    density = gaussian_filter(np.random.default_rng(0).normal(size=shape), 2)
    return says_volume(stack(path, density.astype(np.float32)), ispg)


def says_volume(path, ispg=1):
    content = bytearray(path.read_bytes())
    n = int.from_bytes(content[8:12], "little")
    content[36:40], content[88:92] = n.to_bytes(4, "little"), ispg.to_bytes(4, "little")
    path.write_bytes(content)
    return path


def test_volumes_are_refused(tmp_path, capsys):
    path = volume(tmp_path / "a.mrc")
    message = f"{path} is a volume, not a stack of images: its header says so (space group 1 and mz = nz)"
    refused(path, message)
    refused(volume(tmp_path / "flat.map", (20, 32, 32)), "is a volume")
    text, code = info(path, capsys)
    assert code == 1 and message in text and "doubt" not in text
    refused(case("volume_as_stack", "map.mrc"), "map.mrc is a volume")


def test_a_cube_that_may_be_a_volume_is_doubted(tmp_path):
    doubt = "may be a volume, whose sections are no images: if it is, give a stack of particles."
    assert open_particles(volume(tmp_path / "a.mrc", ispg=0)).doubts == (f"a.mrc {doubt}",)
    noisy = says_volume(stack(tmp_path / "b.mrcs", noise(32, 32)))
    assert open_particles(noisy).doubts == (f"b.mrcs {doubt}",)
    assert open_particles(stack(tmp_path / "c.mrcs", noise(32, 32))).doubts == ()


def test_a_stack_whose_header_says_volume_by_default_is_sorted(tmp_path):
    path = says_volume(stack(tmp_path / "a.mrcs", noise(40, 32)))
    assert len(open_particles(path)) == 40 and open_particles(path).doubts == ()


@pytest.mark.parametrize(
    "name",
    ["run_it025_classes.mrcs", "J12_020_class_averages.mrc", "run_unmasked_classes.mrcs", "templates.mrc"],
)
def test_class_averages_are_told_by_their_names(tmp_path, name):
    stack(tmp_path / name)
    expected = f"{name} holds class averages or templates by its name: give the particles instead."
    assert open_particles(tmp_path / name).doubts == (expected,)
    path = star(tmp_path, table(["_rlnImageName"], [(f"1@{name}",)]))
    assert open_particles(path).doubts == (expected,)


@pytest.mark.parametrize("name", ["particles_class3.mrcs", "classified.mrcs", "subclasses.mrcs"])
def test_particles_are_no_class_averages(tmp_path, name):
    assert open_particles(stack(tmp_path / name)).doubts == ()


# Lines that name an image again.


@pytest.mark.parametrize(("copies", "doubt"), [(2, "4 lines name an"), (3, "8 lines name an")])
def test_lines_that_name_an_image_again_are_counted(tmp_path, copies, doubt, capsys):
    stack(tmp_path / "p.mrcs")
    # One file by two names is one file.
    (tmp_path / "q.mrcs").symlink_to("p.mrcs")
    rows = [(f"{i + 1}@{'pqp'[copy]}.mrcs", 120 * copy) for copy in range(copies) for i in range(4)]
    path = star(tmp_path, table(["_rlnImageName", "_rlnAngleRot"], rows))
    (found,) = open_particles(path).doubts
    assert found.startswith(f"{doubt} image again (symmetry expansion?): ")
    text, _ = info(path, capsys)
    assert f"{doubt[:1]} repeat an earlier one" in text and f"doubt {found}" in text


def test_rows_that_name_an_image_again(tmp_path):
    stack(tmp_path / "p.mrcs")
    path = dataset(tmp_path, range(4), more=[("sym_expand/idx", "<u4")], blob__idx=(0, 1, 1, 2))
    assert open_particles(path).doubts[0].startswith("1 row names an image again")
    expanded = open_particles(case("symmetry_expanded", "expanded.star"))
    assert expanded.doubts[0].startswith("40 lines name an image again (symmetry expansion?)")


# Where doubts are shown.


@pytest.mark.slow
def test_doubts_are_printed_saved_and_on_the_page(tmp_path, capsys):
    path = one_group(tmp_path, defocus=(1.5, 1.5))
    (doubt,) = open_particles(path).doubts
    assert main(["sort", str(path), "-o", str(tmp_path / "sorted")]) == 0
    assert f"doubt: {doubt}" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "sorted/summary.json").read_text())["doubts"] == [doubt]
    assert f"<strong>Doubt:</strong> {doubt}" in (tmp_path / "sorted/report.html").read_text()
    assert load(tmp_path / "sorted/results.npz").doubts == (doubt,)
    finished = open_finished(tmp_path / "sorted")
    assert finished.result.doubts == (doubt,)
    result = classify_particles(path, n_classes=1, embedding="pca")
    summary = summarize_map(open_particles(path), result)
    assert summary["doubts"] == [doubt]
    print_map(summary, result, "map", 1.0)
    assert f"doubt: {doubt}" in " ".join(capsys.readouterr().out.split())


def test_results_without_doubts_can_still_be_read(tmp_path):
    result = sort_particles(noise(20, 32), method="radial")
    structure = _encode(result, arrays := {})
    del structure["fields"]["dict"]["doubts"]
    assert _decode(structure, arrays, _FORMER[FORMAT]).doubts == ()


# A table against its stacks.


@pytest.mark.parametrize("side", [64, 8])
def test_a_box_that_the_table_contradicts_is_refused(tmp_path, side, capsys):
    path = one_group(tmp_path, _rlnImageSize=side)
    message = refused(
        path, f"says that its images have {side} px (_rlnImageSize)", "p.mrcs have 16 px", "line 21"
    )
    text, code = info(path, capsys)
    assert code == 1 and message in text
    assert len(open_particles(one_group(tmp_path, _rlnImageSize=BOX))) == 8


def test_the_box_of_each_group_counts_for_its_images(tmp_path):
    stack(tmp_path / "p.mrcs")
    stack(tmp_path / "q.mrcs", noise(4, 32), 1.0)
    optics = table(
        ["_rlnOpticsGroup", "_rlnImagePixelSize", "_rlnImageSize"], [(1, 2.0, BOX), (2, 1.0, 32)], "optics"
    )
    for first, fits in ((1, True), (2, False)):
        rows = [("1@p.mrcs", first), ("1@q.mrcs", 3 - first)]
        path = star(tmp_path, optics, table(["_rlnImageName", "_rlnOpticsGroup"], rows))
        if fits:
            assert len(open_particles(path)) == 2
        else:
            refused(path, "its images have 32 px", "p.mrcs have 16 px")
    refused(case("table_against_header", "size.star"), "256 px (_rlnImageSize)", "have 64 px")


# Other kinds of data.


@pytest.mark.parametrize(
    ("file", "what"), [("sub3d.star", "one volume"), ("stack2d.star", "one stack of tilt")]
)
def test_the_collected_subtomograms(file, what, capsys):
    path = case("subtomograms", file)
    message = refused(path, "lists subtomograms (", what, "which fastsort cannot sort")
    assert message in info(path, capsys)[0]


@pytest.mark.parametrize("numbered", [False, True])
def test_subtomograms_are_refused_before_their_files_are_looked_for(tmp_path, numbered):
    names = [(f"{'000001@' * numbered}nowhere/{i}.mrc", 1) for i in range(3)]
    images = table(["_rlnImageName", "_rlnOpticsGroup"], names)
    labels = ["_rlnOpticsGroup", "_rlnImageDimensionality"]
    refused(star(tmp_path, table(labels, [(1, 3)], "optics"), images), "_rlnImageDimensionality on line 7")
    general = "data_general\n\n_rlnTomoSubTomosAre2DStacks 1\n"
    refused(
        star(tmp_path, general, images), "_rlnTomoSubTomosAre2DStacks on line 3), one stack of tilt images"
    )
    # Another group may be anything.
    unused = table(labels, [(1, 2), (2, 3)], "optics")
    refused(star(tmp_path, unused, images), "3 of 3 stacks")


def test_files_of_several_sections_need_numbers(tmp_path):
    stack(tmp_path / "a.mrc")
    path = star(tmp_path, table(["_rlnImageName"], [("a.mrc",)]))
    refused(path, "image a.mrc on line 6", "has no number, and the file holds 4 sections", "subtomogram")


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (["_rlnReferenceImage"], "it lists class averages or references"),
        (["_rlnMicrographMovieName"], "it lists movies"),
        (["_rlnTomoName", "_rlnCoordinateX"], "it lists tomograms"),
        (["_rlnMicrographName", "_rlnCoordinateX"], "it lists picks"),
        (["_rlnMicrographName"], "it lists micrographs"),
    ],
)
def test_tables_of_other_things_are_told_by_what_they_list(tmp_path, labels, what):
    refused(star(tmp_path, table(labels, [[1] * len(labels)])), "has no table with _rlnImageName", what)


@pytest.mark.parametrize("name", ["movie.tif", "movie.tiff", "movie.eer", "MOVIE.EER"])
def test_movies_are_told_by_their_names(tmp_path, name):
    (tmp_path / name).write_bytes(b"II*\0" + bytes(2000))
    refused(tmp_path / name, f"{name} is a TIFF or EER file, as movies are")
    table_of_movies = star(tmp_path, table(["_rlnImageName"], [(f"1@{name}",)]))
    refused(
        table_of_movies, f"stacks named by {table_of_movies} are TIFF or EER files, as movies are: {name}."
    )
    (tmp_path / name).rename(tmp_path / "a.mrc")
    refused(tmp_path / "a.mrc", "a.mrc is not an MRC file but a TIFF or EER file, as movies are")


def test_movies_and_micrographs_in_mrc_files_are_refused(tmp_path):
    content = bytearray(stack(tmp_path / "a.mrc").read_bytes()[:1024])
    for name, shape, shown in (
        ("k2.mrc", (3838, 3710, 1), "3838 x 3710"),
        ("falcon.mrcs", (4096, 4096, 3), "4096"),
    ):
        # Bytes that are not there take no place.
        content[:16] = np.array([*shape, 0], "<i4").tobytes()
        content[152:156] = np.array([1146047817], "<i4").tobytes()
        with open(tmp_path / name, "wb") as file:
            file.write(content)
            file.truncate(1024 + int(np.prod(shape)))
        refused(tmp_path / name, f"{name} have {shown}", "at most 1024", "a movie")
    picks = tmp_path / "falcon.box"
    picks.write_text("10 10 16 16\n")
    with pytest.raises(InputError, match="has 3 images: it is a movie or a stack"):
        open_particles((tmp_path / "falcon.mrcs", picks), box=BOX)


# Picks that are no picks of particles, or follow filaments.


@pytest.mark.parametrize(
    ("lines", "first"),
    [("10 10 16 16 -1\n90 90 16 16 -2\n", 1), ("10 10 16 16 0\n20 20 16 16\n90\t90\t16\t16\t-2\n", 3)],
)
def test_ends_of_helices_are_no_picks(tmp_path, lines, first):
    (tmp_path / "a.box").write_text(lines)
    with pytest.raises(InputError, match=f"line {first} of .* is an end of a helix .fifth column -"):
        read_picks(str(tmp_path / "a.box"))


def test_other_fifth_columns_say_nothing(tmp_path):
    (tmp_path / "a.box").write_text("10 10 16 16 -3\n20 20 16 16 0.7\n30 30 16 16\n")
    assert read_picks(str(tmp_path / "a.box")).x.tolist() == [18, 28, 38]


def filament_picks(folder, kind):
    if kind == "star":
        return star(folder, table(["_rlnCoordinateX", "_rlnCoordinateY", "_rlnHelicalTubeID"], POINTS))
    if kind in ("cbox", "single.cbox"):
        rows = [(x, y, 16, 16, "<NA>" if kind == "single.cbox" else tube) for x, y, tube in POINTS]
        labels = ["_CoordinateX", "_CoordinateY", "_Width", "_Height", "_filamentid"]
        return star(folder, table(labels, rows, "cryolo"), name="a.cbox")
    if kind == "box":
        (folder / "a.box").write_text("".join(f"{x} {y} 16 16\n" for x, y, _ in POINTS))
        return folder / "a.box"
    fields = [("location/micrograph_path", "S9"), ("filament/filament_uid", "<u8")]
    fields += [(f"location/center_{axis}_frac", "<f4") for axis in "xy"]
    places = {f"location__center_{axis}_frac": [p[i] / 99 for p in POINTS] for i, axis in enumerate("xy")}
    return dataset(folder, range(3), more=fields, location__micrograph_path=b"a.mrc", **places)


POINTS = [(30, 30, 1), (31, 30, 1), (60, 60, 2)]


@pytest.mark.parametrize(
    ("kind", "segments"),
    [("star", True), ("cbox", True), ("cs", True), ("single.cbox", False), ("box", False)],
)
def test_segments_in_files_of_picks_are_no_duplicates(tmp_path, kind, segments):
    stack(tmp_path / "a.mrc", noise(1, 99))
    particles = open_particles((tmp_path / "a.mrc", filament_picks(tmp_path, kind)), box=BOX)
    assert particles.table.has_segments == segments
    duplicate = find_all_duplicates(particles, 20.0, np.arange(3.0), np.arange(3))
    assert duplicate.tolist() == [False, not segments, False]


# Names of files that are not there.


def named(folder, *names):
    return star(folder, table(["_rlnImageName"], [(f"1@{name}",) for name in names]))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("Extract/p.mrc", "correct the names in"),
        ("Extract\\p.mrcs", "correct the names in"),
        ("C:\\old\\Extract\\p.mrcs", "correct the names in"),
        ("proj/Extract/p.mrcs", "correct the names in"),
        ("/old/proj/Extract/p.mrcs", "give --data-dir {folder}"),
        ("/old/proj/Extract/p.mrc", "correct the names in"),
    ],
)
def test_a_near_match_is_named(tmp_path, name, advice, capsys):
    stack(tmp_path / "Extract/p.mrcs")
    path = named(tmp_path, name)
    advice = f"Extract/p.mrcs is here: is that it? Then {advice.format(folder=tmp_path)}"
    refused(path, "1 of 1 stacks", advice)
    text, code = info(path, capsys)
    assert code == 1 and advice in text and "to which these names are relative" not in text


def test_a_name_like_no_file_is_looked_for_with_data_dir(tmp_path, capsys):
    stack(tmp_path / "Extract/p.mrcs")
    path = named(tmp_path, "Extract/q.mrcs")
    assert "is that it" not in refused(path, "Give the folder to which these names are relative")
    assert "use --data-dir to give the folder" in info(path, capsys)[0]


def test_the_project_may_have_moved(tmp_path):
    for job in ("job1", "job2"):
        stack(tmp_path / f"new/Extract/{job}/p.mrcs", noise(seed=int(job[3])))
    (tmp_path / "elsewhere").mkdir()
    path = named(tmp_path / "elsewhere", *(f"/old/proj/Extract/job{i}/p.mrcs" for i in (2, 1)))
    particles = open_particles(path, data_dir=tmp_path / "new")
    for i, seed in enumerate((2, 1)):
        np.testing.assert_array_equal(particles.read(i, i + 1), noise(seed=seed)[:1])
    # The tails of both would be one file, of another job.
    refused(path, "2 of 2 stacks", data_dir=tmp_path / "new/Extract/job1")


def test_the_collected_names(monkeypatch):
    path = case("names_not_found", "abs.star")
    assert len(open_particles(path, data_dir=path.parent)) == 20
    monkeypatch.chdir(path.parent)
    for file in ("abs.star", "ext.star", "back.star"):
        message = refused(file, "Extract/p.mrcs is here: is that it?")
        looked = message.split("Looked in ")[1].split(". ")[0].split(", ")
        assert len(looked) == len(set(looked))


# What is not known.


def test_a_probability_that_is_not_known_is_no_number_in_a_dataset(tmp_path):
    stack(tmp_path / "p.mrcs", noise(20, 32))
    particles = open_particles(dataset(tmp_path, range(20)))
    write_tables(tmp_path, particles, sort_particles(particles, method="radial"), score_field=True)
    rows = np.concatenate([np.load(tmp_path / f"{name}.cs") for name in ("kept", "rejected")])
    assert len(rows) == 20 and np.isnan(rows["fastsort/junk_probability"]).all()
