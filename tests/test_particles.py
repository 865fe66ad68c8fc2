"""The room where images come from: MRC stacks, RELION tables, sets of particles."""

from __future__ import annotations

import errno
import io
import math
import os
import pickle
import re
import resource
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from hypothesis import given, settings
from hypothesis import strategies as st
from mrcfile.dtypes import HEADER_DTYPE

from fastsort._checks import InputError
from fastsort.particles import mrc
from fastsort.particles.mrc import read_header, read_sections, write_stack
from fastsort.particles.open import open_particles
from fastsort.particles.star import read_star, subset_bytes

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared data folder {DATA} is not here")
needs_relion = pytest.mark.skipif(
    shutil.which("relion_star_handler") is None, reason="the RELION tools are not installed"
)

MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def make_stack(path, images, mode=2, order="<", stamp=None, extended=b"", tail=b"", **fields):
    """Write an MRC file by hand, so that anything may be wrong with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = np.zeros((), HEADER_DTYPE.newbyteorder(order))
    header["nz"], header["ny"], header["nx"] = images.shape
    header["mode"], header["nsymbt"] = mode, len(extended)
    header["machst"] = stamp or ((0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0))
    for name, value in fields.items():
        header[name] = value
    pixels = images.astype(order + MODES.get(mode, "f4"))
    path.write_bytes(header.tobytes() + extended + pixels.tobytes() + tail)
    return path


def noise(n=5, box=16, seed=0):
    """Images that every mode can hold without rounding."""
    return np.random.default_rng(seed).integers(0, 120, (n, box, box)).astype(np.float32)


def table(labels, rows, name="particles"):
    """Return a loop as text."""
    head = "".join(f"{label} #{i}\n" for i, label in enumerate(labels, 1))
    body = "".join(" ".join(map(str, row)) + "\n" for row in rows)
    return f"\ndata_{name}\n\nloop_\n{head}{body}\n"


def refused(source, *parts, **options):
    """Open what cannot be opened; return the message, one line that holds all parts."""
    with pytest.raises(InputError) as caught:
        open_particles(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_and_byte_order_gives_native_float32(tmp_path, mode, order):
    images = noise()
    path = make_stack(tmp_path / "a.mrcs", images, mode, order, map=b"MAP ")
    read = open_particles(path).read(0, 5)
    assert read.dtype == np.dtype("=f4") and read.dtype.isnative
    assert read.flags.c_contiguous and read.flags.owndata and read.flags.writeable
    np.testing.assert_array_equal(read, images)
    np.testing.assert_array_equal(read, mrcfile.read(path).astype(np.float32))


@pytest.mark.parametrize("dtype", ["i1", "i2", "f4", "u2", "f2"])
def test_reads_what_mrcfile_writes(tmp_path, dtype):
    images = noise().astype(dtype)
    with mrcfile.new(tmp_path / "a.mrcs") as file:
        file.set_data(images)
        file.voxel_size = 1.25
    header = read_header(tmp_path / "a.mrcs")
    assert (header.n_images, header.ny, header.nx) == images.shape
    assert header.pixel_size == pytest.approx(1.25)
    np.testing.assert_array_equal(open_particles(tmp_path / "a.mrcs").read(0, 5), images)


@pytest.mark.parametrize("order", "<>")
def test_bytes_are_unsigned_only_if_imod_says_so(tmp_path, order):
    images = noise() - 60
    imod = np.array([1146047817, 0], order + "i4").tobytes()
    signed = np.array([1146047817, 1], order + "i4").tobytes()
    plain, unsigned, flagged = (
        make_stack(tmp_path / f"{i}.mrcs", images, 0, order, extra2=bytes(40) + stamp)
        for i, stamp in enumerate([b"", imod, signed])
    )
    np.testing.assert_array_equal(open_particles(plain).read(0, 5), images)
    np.testing.assert_array_equal(open_particles(flagged).read(0, 5), images)
    np.testing.assert_array_equal(
        open_particles(unsigned).read(0, 5), np.where(images < 0, images + 256, images)
    )


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("stamp", [(0, 0, 0, 0), (255, 1, 2, 3)])
def test_wrong_unimportant_fields_do_no_harm(tmp_path, order, stamp):
    images = noise()
    path = make_stack(
        tmp_path / "a.mrcs", images, 2, order, stamp, b"x" * 333, b"y" * 77, mz=-5, ispg=99, nlabl=-1, mapc=7
    )
    header = read_header(path)
    assert header.offset == 1024 + 333
    assert math.isnan(header.pixel_size)
    np.testing.assert_array_equal(open_particles(path).read(0, 5), images)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(3, "Fourier"), (4, "Fourier"), (101, "4-bit"), (7, "0, 1, 2, 6 and 12"), (-2, "0, 1, 2, 6 and 12")],
)
def test_modes_that_are_no_images_are_refused(tmp_path, mode, reason):
    path = make_stack(tmp_path / "a.mrcs", noise(), mode)
    refused(path, path, f"MRC mode {mode}", reason)


def test_a_stack_that_ends_early_is_told_with_both_sizes(tmp_path):
    path = make_stack(tmp_path / "a.mrcs", noise(), extended=b"x" * 100)
    whole = path.read_bytes()
    assert len(whole) == 1124 + 5 * 1024
    path.write_bytes(whole[:-1])
    refused(path, path, "6244 bytes (5 images)", "6243 bytes (4 whole images)")
    path.write_bytes(whole[:1050])
    refused(path, "1050 bytes (0 whole images)")


def test_a_stack_that_shrinks_after_opening_is_told(tmp_path):
    path = make_stack(tmp_path / "a.mrcs", noise())
    particles = open_particles(path)
    os.truncate(path, 3000)
    with pytest.raises(InputError, match="shorter while it was read"):
        particles.read(0, 5)


@pytest.mark.parametrize("content", [b"", b"MAP ", b"data_\nloop_\n" * 200, b"\xff" * 2000, bytes(2000)])
def test_what_is_no_mrc_file_is_refused(tmp_path, content):
    path = tmp_path / "a.mrcs"
    path.write_bytes(content)
    refused(path, path, "is not an MRC file")


def test_files_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
    refused(tmp_path / "none.mrcs", "does not exist", tmp_path / "none.mrcs")
    refused(tmp_path / "none.star", "does not exist")
    (tmp_path / "folder.mrcs").mkdir()
    refused(tmp_path / "folder.mrcs", "is a folder")
    os.mkfifo(tmp_path / "pipe.star")
    refused(tmp_path / "pipe.star", "is a pipe")
    refused("nul\0.mrcs", "cannot read")

    def forbidden(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "stat", forbidden)
    refused(tmp_path / "a.mrcs", "no permission to read")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((0, 16, 16), "holds no images"),
        ((3, 16, 20), "must be square; got 20 x 16 px"),
        ((3, 8, 8), "must be 16 to 1024 px wide; got 8 px"),
        ((2, 1025, 1025), "have 1025 x 1025 px, and at most 1024 can be sorted"),
    ],
)
def test_stacks_of_useless_shape_are_refused(tmp_path, shape, reason):
    path = make_stack(tmp_path / "a.mrcs", np.zeros(shape), 0)
    refused(path, path, reason)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 223), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_header_never_gives_another_error(tmp_path_factory, damage):
    path = make_stack(tmp_path_factory.mktemp("damaged") / "a.mrcs", noise())
    content = bytearray(path.read_bytes())
    for place, value in damage:
        content[place] = value
    path.write_bytes(content)
    try:
        particles = open_particles(path)
    except InputError:
        return
    assert particles.read([0]).shape == (1, particles.box, particles.box)


def test_a_run_of_neighbours_is_one_read_straight_into_the_output(tmp_path, monkeypatch):
    images = noise(50)
    header = read_header(make_stack(tmp_path / "a.mrcs", images))
    targets = []
    monkeypatch.setattr(mrc, "_fill", lambda file, header, array: targets.append(array))
    out = np.zeros((30, 16, 16), np.float32)
    read_sections(header, np.r_[3:20, 30:40, 45, 47:49], out)
    assert [len(target) for target in targets] == [17, 10, 1, 2]
    assert all(np.shares_memory(target, out) for target in targets)


@pytest.mark.parametrize("mode", [1, 2, 12])
def test_conversion_in_pieces_changes_nothing(tmp_path, monkeypatch, mode):
    images = noise(50)
    path = make_stack(tmp_path / "a.mrcs", images, mode, ">")
    monkeypatch.setattr(mrc, "_CONVERSION_BYTES", 3000)
    np.testing.assert_array_equal(open_particles(path).read(0, 50), images)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    pixel_size=st.floats(0.1, 20),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_a_written_stack_is_valid_and_tells_the_truth(tmp_path_factory, sizes, pixel_size, scale, seed):
    path = tmp_path_factory.mktemp("written") / "out.mrcs"
    images = (np.random.default_rng(seed).normal(5, 1, (sum(sizes), 16, 16)) * scale).astype(np.float32)
    blocks = np.split(images, np.cumsum(sizes)[:-1])
    if len(images) == 0:
        with pytest.raises(InputError, match="n_images"):
            write_stack(path, blocks, pixel_size, 0, 16)
        return
    write_stack(path, iter(blocks), pixel_size, len(images), 16)
    assert os.listdir(path.parent) == ["out.mrcs"]
    assert mrcfile.validate(path, print_file=io.StringIO())
    with mrcfile.open(path) as file:
        assert file.header.ispg == 0 and (file.is_image_stack() or len(images) == 1)
        assert file.voxel_size.x == pytest.approx(pixel_size, rel=1e-6)
        np.testing.assert_array_equal(file.data.reshape(images.shape), images)
        truth = images.astype(np.float64)
        assert file.header.dmin == images.min() and file.header.dmax == images.max()
        assert file.header.dmean == pytest.approx(truth.mean(), rel=1e-5)
        assert file.header.rms == pytest.approx(truth.std(), rel=1e-5)
    np.testing.assert_array_equal(open_particles(path).read(0, len(images)), images)


def test_an_unknown_pixel_size_stays_unknown(tmp_path):
    write_stack(tmp_path / "a.mrcs", [noise()], math.nan, 5, 16)
    assert math.isnan(open_particles(tmp_path / "a.mrcs").pixel_size)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full"), MemoryError])
def test_an_interrupted_stack_leaves_nothing_behind(tmp_path, error):
    path = tmp_path / "a.mrcs"
    path.write_bytes(b"what was here before")

    def blocks():
        yield noise()
        raise error

    with pytest.raises(error if isinstance(error, type) else OSError):
        write_stack(path, blocks(), 1.0, 10, 16)
    assert os.listdir(tmp_path) == ["a.mrcs"]
    assert path.read_bytes() == b"what was here before"


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_stack(tmp_path / "a.mrcs", [noise(100)], 1.0, 100, 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("blocks", "message"),
    [([noise(4)], "4 images; 5 were"), ([noise(5, 20)], r"got \(5, 20, 20\)"), ([noise()[0]], "got")],
)
def test_blocks_that_break_the_promise_leave_nothing_behind(tmp_path, blocks, message):
    with pytest.raises(ValueError, match=message):
        write_stack(tmp_path / "a.mrcs", blocks, 1.0, 5, 16)
    assert os.listdir(tmp_path) == []


plain_word = st.text("abcXYZ019.-+/_@", min_size=1, max_size=8).filter(
    lambda word: word[0] not in "_" and not word.startswith(("data_", "loop_"))
)
quoted = st.builds(
    lambda text, mark: f"{mark}{text}{mark}", st.text("ab #1@", max_size=8), st.sampled_from("'\"")
)
blank = st.text(" \t", min_size=1, max_size=3)


@st.composite
def star_texts(draw, words=plain_word | quoted, odd_lines=True):
    """Return the text of a STAR file, its particle rows as written and its row lines."""
    ending = draw(st.sampled_from(["\n", "\r\n"]))
    n_columns = draw(st.integers(1, 4))
    labels = ["_rlnImageName", *(f"_rlnColumn{i}" for i in range(1, n_columns))]
    rows = draw(st.lists(st.lists(words, min_size=n_columns, max_size=n_columns), max_size=6))
    numbered = draw(st.booleans())
    lines = ["# version 30001", "", "data_optics", "", "loop_ ", "_rlnOpticsGroup #1 ", " 1 ", ""]
    lines = draw(st.sampled_from([[], ["", *lines], ["data_general", "", "_rlnKind  'a b'", "", *lines]]))
    lines += [draw(st.sampled_from(["data_", "data_images", "data_particles"])), "", "loop_"]
    lines += [f"{label} #{i}" if numbered else label for i, label in enumerate(labels, 1)]
    row_lines = []
    for row in rows:
        if odd_lines:
            lines += draw(st.lists(st.sampled_from(["", "  ", "# said between rows", "\t"]), max_size=1))
        gaps = [draw(blank) for _ in row]
        line = draw(st.sampled_from(["", " ", "\t"])) + "".join(w + g for w, g in zip(row, gaps, strict=True))
        line = line if draw(st.booleans()) else line.rstrip()
        row_lines.append(line)
        lines.append(line)
    lines += draw(st.sampled_from([[], [""], ["", "# version 30001", "", "data_end", "", "_rlnLast 1"]]))
    final = draw(st.sampled_from(["", ending])) if lines[-1].strip() else ending
    return ending.join(lines) + final, labels, rows, row_lines, ending


def unquoted(word):
    return word[1:-1] if len(word) > 1 and word[0] in "'\"" and word[0] == word[-1] else word


def star_of(folder, text):
    path = folder / "particles.star"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_star(path)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(star_texts(), st.data())
def test_tables_survive_reading_and_writing(tmp_path_factory, generated, data):
    text, labels, rows, row_lines, ending = generated
    folder = tmp_path_factory.mktemp("star")
    star = star_of(folder, text)
    block = star.particles_block
    assert block.labels == labels
    for i, label in enumerate(labels):
        assert block.column(label) == [unquoted(row[i]) for row in rows]
    assert b"".join(subset_bytes(star, range(len(rows)))) == text.encode()

    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    scores = [f"{i}.5" for i in range(len(rows))]
    written = b"".join(subset_bytes(star, keep, {"_fsScore": scores, "_fsReason": ["ice"] * len(rows)}))
    again = star_of(folder, written)
    new = again.particles_block
    assert new.labels == [*labels, "_fsScore", "_fsReason"]
    assert new.column("_fsScore") == [score for score, kept in zip(scores, keep, strict=True) if kept]
    assert new.column("_fsReason") == ["ice"] * keep.sum()
    for i, label in enumerate(labels):
        assert new.column(label) == [unquoted(row[i]) for row, kept in zip(rows, keep, strict=True) if kept]

    # Taking out exactly what was put in gives back the original without the rows that were dropped.
    bare = written.decode()
    for i, kept in enumerate(keep):
        bare = bare.replace(f" {i}.5 ice", "", 1) if kept else bare
    n = len(labels)
    added = f"_fsScore #{n + 1}{ending}_fsReason #{n + 2}"
    bare = (
        bare.replace(added + ending, "", 1) if added + ending in bare else bare.replace(ending + added, "", 1)
    )
    assert bare.splitlines() == expected_lines(text, row_lines, keep)

    overwritten = b"".join(subset_bytes(again, range(keep.sum()), {"_fsScore": ["7"] * keep.sum()}))
    for i, kept in enumerate(keep):
        written = written.replace(f" {i}.5 ice".encode(), b" 7 ice", 1) if kept else written
    assert overwritten == written


@settings(max_examples=100, deadline=None)
@given(star_texts(), st.data())
def test_replaced_values_are_all_that_changes(tmp_path_factory, generated, data):
    text, labels, rows, row_lines, ending = generated
    star = star_of(tmp_path_factory.mktemp("replaced"), text)
    n = len(rows)
    chosen = data.draw(st.lists(st.sampled_from(labels), min_size=1, unique=True))
    columns = {label: data.draw(st.lists(plain_word, min_size=n, max_size=n)) for label in chosen}
    new = {"_fsNew": [f"new{i}" for i in range(n)]} if data.draw(st.booleans()) else {}

    expected, place = text, 0
    for i, (row, line) in enumerate(zip(rows, row_lines, strict=True)):
        changed, at = line, 0
        for label, word in zip(labels, row, strict=True):
            at = changed.index(word, at)
            given_word = columns[label][i] if label in columns else word
            changed = changed[:at] + given_word + changed[at + len(word) :]
            at += len(given_word)
        place = expected.index(ending + line, place) + len(ending)
        expected = expected[:place] + changed + expected[place + len(line) :]
        place += len(changed)
    written = b"".join(subset_bytes(star, np.ones(n, bool), {**columns, **new})).decode()
    if new:
        for word in new["_fsNew"]:
            written = written.replace(f" {word}", "", 1)
        added = f"_fsNew #{len(labels) + 1}"
        given_up = added + ending if added + ending in written else ending + added
        written = written.replace(given_up, "", 1)
    assert written == expected


def test_a_longer_value_widens_its_line_and_moves_nothing_else(tmp_path):
    head = "data_\r\nloop_\r\n_rlnOriginX\r\n_rlnImageName\r\n_rlnOriginY\r\n"
    star = star_of(tmp_path, head + "\t1   1@a  -2 \t # why\r\n'3'  2@a\t4\r\n\r\n 5 3@a 6")
    columns = {"_rlnOriginY": ["20.5", "40.5", "60.5"], "_rlnOriginX": ["-10.000000", "30", "7"]}
    written = b"".join(subset_bytes(star, [0, 1, 2], columns)).decode()
    body = "\t-10.000000   1@a  20.5 \t # why\r\n30  2@a\t40.5\r\n\r\n 7 3@a 60.5"
    assert written == head + body
    some = b"".join(subset_bytes(star, [2], {"_rlnOriginX": ["1", "2", "3"], "_rlnNew": ["4", "5", "6"]}))
    assert some.decode() == head + "_rlnNew #4\r\n\r\n 3 3@a 6 6"


def expected_lines(text, row_lines, keep):
    """Return the lines of the text without the rows that are not kept."""
    result, row = [], 0
    in_rows = False
    for line in text.splitlines():
        in_rows |= line.startswith("_rlnImageName")
        if in_rows and row < len(row_lines) and line == row_lines[row]:
            if keep[row]:
                result.append(line)
            row += 1
        else:
            result.append(line)
    return result


@settings(max_examples=25, deadline=None)
@given(
    star_texts(words=st.text("abcXYZ", min_size=1, max_size=8).filter(lambda w: w != "nan"), odd_lines=False)
)
def test_columns_agree_with_the_starfile_package(tmp_path_factory, generated):
    text, labels, rows, _, _ = generated
    if not rows:
        return
    folder = tmp_path_factory.mktemp("reference")
    star = star_of(folder, text)
    blocks = starfile.read(
        folder / "particles.star", always_dict=True, parse_as_string=[s[1:] for s in labels]
    )
    reference = blocks[star.particles_block.name]
    for label in labels:
        assert star.particles_block.column(label) == list(reference[label[1:]])


@settings(max_examples=100, deadline=None)
@given(star_texts(), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), max_size=5), st.floats(0, 1))
def test_a_damaged_table_never_gives_another_error(tmp_path_factory, generated, damage, cut):
    content = bytearray(generated[0].encode())
    for where, piece in damage:
        place = int(where * len(content))
        content[place : place + len(piece)] = piece
    path = tmp_path_factory.mktemp("fuzz") / "a.star"
    path.write_bytes(content[: int(cut * len(content)) + 1])
    try:
        open_particles(path)
    except InputError as error:
        assert "\n" not in str(error)


def test_single_values_comments_and_floats(tmp_path):
    text = (
        "# first\ndata_general\n\n_rlnName   'two words'  # why\n_rlnNumber\t-1.5e2\n\ndata_\n\nloop_\n"
        "_rlnImageName #1 [what it is]\n_rlnA\n\n# between\n 1@a \t 2  # after the row\n2@a -1e-3\n"
    )
    star = star_of(tmp_path, text)
    general = star.block("general")
    assert general.column("_rlnName") == ["two words"]
    assert general.floats("_rlnNumber").tolist() == [-150.0]
    assert star.particles_block.floats("_rlnA").tolist() == [2.0, -0.001]
    assert star.block("nowhere") is None
    written = b"".join(subset_bytes(star, [0], {"_rlnB": ["x", "y"]})).decode()
    assert written == text.replace("_rlnA\n", "_rlnA\n_rlnB #3\n").replace("2  #", "2 x  #").replace(
        "2@a -1e-3\n", ""
    )


def test_an_empty_loop_at_the_end_of_the_file_gets_its_column(tmp_path):
    star = star_of(tmp_path, "data_\r\nloop_\r\n_rlnImageName #1\r\n")
    assert b"".join(subset_bytes(star, [], {"_b": []})).endswith(b"#1\r\n_b #2\r\n")
    star = star_of(tmp_path, "data_\nloop_\n_rlnImageName #1")
    assert b"".join(subset_bytes(star, [], {"_b": []})) == b"data_\nloop_\n_rlnImageName #1\n_b #2"


def test_rows_may_be_given_in_any_order_and_many_times(tmp_path, monkeypatch):
    monkeypatch.setattr("fastsort.particles.star._ROWS_AT_ONCE", 7)
    rows = [(f"{i}@a", i) for i in range(1, 101)]
    star = star_of(tmp_path, table(["_rlnImageName", "_rlnA"], rows))
    chosen = [99, 3, 50, 3, 7]
    expected = table(["_rlnImageName", "_rlnA"], [rows[i] for i in sorted(set(chosen))])
    assert b"".join(subset_bytes(star, chosen)) == expected.encode()
    everything = b"".join(subset_bytes(star, np.ones(100, bool), {"_rlnA": ["x"] * 100}))
    assert everything == table(["_rlnImageName", "_rlnA"], [(name, "x") for name, _ in rows]).encode()


@pytest.mark.parametrize("values", [["1"], ["1", "2 3"], ["1", ""]])
def test_columns_that_would_break_the_table_are_refused(tmp_path, values):
    star = star_of(tmp_path, table(["_rlnImageName"], [("1@a",), ("2@a",)]))
    with pytest.raises(ValueError, match="_b must have one word for each of the 2 rows"):
        subset_bytes(star, [0], {"_b": values})


def test_a_file_larger_than_one_piece_is_read_without_a_seam(tmp_path, monkeypatch):
    rows = [(f"{i}@a/b.mrcs", "x" * (i % 17 + 1), i) for i in range(300)]
    text = table(["_rlnImageName", "_rlnA", "_rlnB"], rows)
    monkeypatch.setattr("fastsort.particles.star._BYTES_AT_ONCE", 13)
    block = star_of(tmp_path, text.rstrip("\n")).particles_block
    assert block.column("_rlnA") == [row[1] for row in rows]
    assert block.floats("_rlnB").tolist() == list(range(300))
    assert text.splitlines()[block.line_number(299) - 1] == " ".join(map(str, rows[299]))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("just a text\n", ["is not a STAR file", "no line starts with data_"]),
        ("", ["is not a STAR file"]),
        (b"data_\nloop_\n\0\1\2", ["is not a STAR file", "binary"]),
        (
            table(["_rlnMicrographName"], [("m",)], "micrographs"),
            ["no table with _rlnImageName", "data_micrographs", "it lists micrographs", "--coordinates"],
        ),
        ("data_\n\n_rlnA 1@a\n", ["no table with _rlnImageName"]),
        (table(["_rlnImageName", "_rlnA"], [("1@a", 2), ("2@a",)]), ["line 8 ", "has 1 values", "2 columns"]),
        (table(["_rlnImageName"], [("1@a",), ("2@a", 3, 4)]), ["line 7 ", "has 3 values", "1 columns"]),
        (table(["_rlnImageName"], []), ["holds no images"]),
        ("data_\nloop_\n1 2 3\n", ["rows (line 3)", "no columns"]),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, text, parts):
    path = tmp_path / "a.star"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(path, path, *parts)


def test_a_stack_called_star_is_refused(tmp_path):
    refused(make_stack(tmp_path / "a.star", noise()), "is not a STAR file: it is binary")


OPTICS = [
    "_rlnOpticsGroup",
    "_rlnOpticsGroupName",
    "_rlnVoltage",
    "_rlnSphericalAberration",
    "_rlnAmplitudeContrast",
    "_rlnImagePixelSize",
    "_rlnImageSize",
]
PARTICLES = [
    "_rlnImageName",
    "_rlnMicrographName",
    "_rlnOpticsGroup",
    "_rlnDefocusU",
    "_rlnDefocusV",
    "_rlnDefocusAngle",
]


def relion31(folder, optics, rows, name="Refine3D/job020/run_data.star"):
    """Write a particle table with optics groups."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# version 30001\n" + table(OPTICS, optics, "optics") + table(PARTICLES, rows))
    return path


def test_relion31_joins_each_image_to_its_optics_group(tmp_path):
    images = noise(4)
    make_stack(tmp_path / "Extract/a.mrcs", images)
    optics = [
        [7, "krios", 300, 2.7, 0.1, 1.5, 16],
        [3, "unused", 100, 1.0, 0.2, 9.9, 64],
        [2, "talos", 200, 0.01, 0.07, 1.50001, 16],
    ]
    rows = [
        ["000003@Extract/a.mrcs", "m1.mrc", 2, 11000, 10000, 30],
        ["000001@Extract/a.mrcs", "m2.mrc", 7, 12000, 11000, -40],
        ["000004@Extract/a.mrcs", "m1.mrc", 2, 13000, 12000, 0],
    ]
    path = relion31(tmp_path, optics, rows)
    particles = open_particles(path)
    assert (len(particles), particles.box, particles.path) == (3, 16, str(path))
    assert particles.pixel_size == pytest.approx(1.5, rel=1e-4)
    assert list(particles.names) == [row[0] for row in rows]
    assert particles.micrographs == ["m1.mrc", "m2.mrc", "m1.mrc"]
    np.testing.assert_array_equal(particles.read(0, 3), images[[2, 0, 3]])
    ctf = particles.ctf
    assert all(values.dtype == np.float64 for values in ctf)
    assert ctf.defocus_u.tolist() == [11000, 12000, 13000]
    assert ctf.defocus_v.tolist() == [10000, 11000, 12000]
    assert ctf.defocus_angle.tolist() == [30, -40, 0]
    assert ctf.phase_shift.tolist() == [0, 0, 0]
    assert ctf.voltage.tolist() == [200, 300, 200]
    assert ctf.spherical_aberration.tolist() == [0.01, 2.7, 0.01]
    assert ctf.amplitude_contrast.tolist() == [0.07, 0.1, 0.07]
    assert open_particles(path, pixel_size=2.5).pixel_size == 2.5


def test_relion30_carries_everything_in_each_row(tmp_path):
    images = noise(2)
    make_stack(tmp_path / "a.mrcs", images, cella=(99, 99, 99), mx=1)
    labels = [
        "_rlnImageName",
        "_rlnVoltage",
        "_rlnSphericalAberration",
        "_rlnAmplitudeContrast",
        "_rlnDetectorPixelSize",
        "_rlnMagnification",
        "_rlnDefocusU",
        "_rlnPhaseShift",
    ]
    path = tmp_path / "p.star"
    path.write_text(
        table(
            labels,
            [["2@a.mrcs", 300, 2, 0.1, 5, 38168, 9000, 90], ["1@a.mrcs", 200, 2, 0.1, 5, 38168, 8000, 0]],
            "",
        )
    )
    particles = open_particles(path)
    assert particles.pixel_size == pytest.approx(50000 / 38168)
    assert particles.ctf.voltage.tolist() == [300, 200]
    assert particles.ctf.defocus_v.tolist() == [9000, 8000]
    assert particles.ctf.phase_shift.tolist() == [90, 0]
    assert particles.micrographs is None
    np.testing.assert_array_equal(particles.read([0, 1]), images[::-1])


def simple_star(folder, names, extra="", value=""):
    path = folder / "p.star"
    path.write_text(table(["_rlnImageName", *([extra] if extra else [])], [(name, value) for name in names]))
    return path


def test_the_pixel_size_comes_from_the_first_place_that_has_one(tmp_path):
    make_stack(tmp_path / "a.mrcs", noise(), mx=16, cella=(24, 24, 24))
    make_stack(tmp_path / "b.mrcs", noise())
    assert open_particles(simple_star(tmp_path, ["1@a.mrcs"], "_rlnPixelSize", 3.25)).pixel_size == 3.25
    assert open_particles(simple_star(tmp_path, ["1@a.mrcs"], "_rlnImagePixelSize", 3.5)).pixel_size == 3.5
    assert open_particles(simple_star(tmp_path, ["1@a.mrcs"])).pixel_size == 1.5
    assert math.isnan(open_particles(simple_star(tmp_path, ["1@b.mrcs"])).pixel_size)
    for wrong in ("0", "-1", "nan", "inf"):
        path = simple_star(tmp_path, ["1@a.mrcs"], "_rlnImagePixelSize", wrong)
        refused(path, f"the pixel size must be positive; it is {wrong} for the image on line 7", path)
        assert open_particles(path, pixel_size=2).pixel_size == 2
    refused(simple_star(tmp_path, ["1@a.mrcs"], "_rlnPixelSize", "wide"), "_rlnPixelSize", "line 7", "'wide'")
    refused(path, "pixel_size must be positive", pixel_size=-1)


def test_incomplete_ctf_is_none_and_impossible_ctf_is_refused(tmp_path):
    make_stack(tmp_path / "a.mrcs", noise())
    assert open_particles(simple_star(tmp_path, ["1@a.mrcs"], "_rlnDefocusU", 9000)).ctf is None
    assert open_particles(simple_star(tmp_path, ["1@a.mrcs"], "_rlnVoltage", 300)).ctf is None
    optics = [[1, "g", 300, 2.7, 0.1, 1.5, 16]]
    path = relion31(tmp_path, optics, [["1@a.mrcs", "m", 1, "nan", 1, 1]])
    refused(path, "_rlnDefocusU must be finite; it is nan for the image on line 25", path)
    optics[0][2] = 0
    path = relion31(tmp_path, optics, [["1@a.mrcs", "m", 1, 5, 5, 1]])
    refused(path, "_rlnVoltage must be positive; it is 0 for the image on line 25")
    path = relion31(tmp_path, optics, [["1@a.mrcs", "m", 1, 5, "none", 1]])
    refused(path, "_rlnDefocusV must be a number", "line 25", "'none'")


def test_optics_groups_must_be_known(tmp_path):
    make_stack(tmp_path / "a.mrcs", noise())
    optics = [[1, "g", 300, 2, 0.1, 1.5, 16], [2, "h", 300, 2, 0.1, 1.5, 16]]
    path = relion31(tmp_path, optics, [["1@a.mrcs", "m", 1, 1, 1, 1], ["1@a.mrcs", "m", 5, 1, 1, 1]])
    refused(path, "line 27", "optics group 5", "only 1, 2")
    path.write_text(path.read_text().replace("_rlnOpticsGroup #3", "_rlnSomething #3"))
    refused(path, "2 optics groups", "no column _rlnOpticsGroup")


def test_a_lone_optics_group_needs_no_column(tmp_path):
    make_stack(tmp_path / "a.mrcs", noise())
    path = relion31(tmp_path, [[1, "g", 300, 2, 0.1, 1.5, 16]], [["1@a.mrcs", "m", 1, 1, 1, 1]])
    path.write_text(path.read_text().replace("_rlnOpticsGroup #3", "_rlnSomething #3"))
    assert open_particles(path).ctf.voltage.tolist() == [300]


def test_stacks_are_looked_for_where_users_have_them(tmp_path, monkeypatch):
    def holds(value, star, **options):
        return open_particles(star, **options).read(0, 1)[0, 0, 0] == value

    project, elsewhere, here = tmp_path / "project", tmp_path / "elsewhere", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    job = project / "Select" / "job3"
    job.mkdir(parents=True)
    star = simple_star(job, ["1@Extract/a.mrcs"])
    refused(star, "1 of 1 stacks", "Extract/a.mrcs", here, job, project, "--data-dir")

    full = {}
    for value, folder in enumerate([project, job, here, elsewhere], 1):
        full[value] = make_stack(folder / "Extract/a.mrcs", np.full((1, 16, 16), value))
        if folder is not elsewhere:
            assert holds(value, star)
    assert holds(4, star, data_dir=elsewhere)
    assert holds(4, star, data_dir="../elsewhere")
    assert holds(2, simple_star(job, [f"1@{full[2]}"]), data_dir=elsewhere)
    assert holds(1, simple_star(job, ["1@../project/Extract/a.mrcs"]))
    refused(star, "data_dir", "nowhere", "is not a folder", data_dir=tmp_path / "nowhere")


def test_the_given_folder_wins_for_each_stack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_stack(tmp_path / "a.mrcs", np.full((1, 16, 16), 1))
    make_stack(tmp_path / "b.mrcs", np.full((1, 16, 16), 2))
    make_stack(tmp_path / "data/b.mrcs", np.full((1, 16, 16), 3))
    particles = open_particles(simple_star(tmp_path, ["1@a.mrcs", "1@b.mrcs"]), data_dir="data")
    assert particles.read(0, 2)[:, 0, 0].tolist() == [1, 3]


def test_missing_stacks_are_counted_and_the_first_named(tmp_path):
    make_stack(tmp_path / "s0.mrcs", noise())
    star = simple_star(tmp_path, [f"{i}@s{j}.mrcs" for i in (1, 2) for j in range(9)])
    message = refused(
        star, "8 of 9 stacks", "s1.mrcs, s2.mrcs, s3.mrcs, ...", "--data-dir", data_dir=tmp_path
    )
    assert "s4.mrcs" not in message
    assert message.count(str(tmp_path) + ",") == 1


def test_the_working_folder_may_change_after_opening(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_stack(tmp_path / "a.mrcs", noise())
    simple_star(tmp_path, ["2@a.mrcs"])
    sets = open_particles("p.star"), open_particles("a.mrcs")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    np.testing.assert_array_equal(sets[0].read(0, 1), noise()[1:2])
    np.testing.assert_array_equal(sets[1].read(0, 5), noise())


@pytest.mark.parametrize(
    "name", ["0@a.mrcs", "000006@a.mrcs", "-1@a.mrcs", "99999999999999999999999@a.mrcs", "a.mrcs"]
)
def test_images_that_do_not_exist_are_told(tmp_path, name):
    stack = make_stack(tmp_path / "a.mrcs", noise())
    holds = "1@ to 5@" if "@" in name else "has no number, and the file holds 5 sections"
    refused(simple_star(tmp_path, ["5@a.mrcs", name]), f"image {name} on line 7", holds)
    assert stack.is_file()


@pytest.mark.parametrize("name", ["x@a.mrcs", "@a.mrcs", "1.5@a.mrcs"])
def test_names_that_make_no_sense_are_told(tmp_path, name):
    refused(simple_star(tmp_path, [name]), repr(name), "line 6", "number@stack")


def test_a_single_image_needs_no_number(tmp_path):
    make_stack(tmp_path / "a.mrc", noise(1))
    np.testing.assert_array_equal(open_particles(simple_star(tmp_path, ["a.mrc"])).read(0, 1), noise(1))
    refused(simple_star(tmp_path, ["-1@a.mrc"]), "does not exist")


def test_a_bad_stack_among_many_is_found_at_opening(tmp_path):
    make_stack(tmp_path / "a.mrcs", noise())
    bad = make_stack(tmp_path / "b.mrcs", noise())
    star = simple_star(tmp_path, ["1@a.mrcs", "1@b.mrcs"])
    os.truncate(bad, 4000)
    refused(star, bad, "ends early")
    make_stack(bad, np.zeros((2, 16, 20)))
    refused(star, bad, "must be square")


@pytest.fixture(scope="module")
def many_stacks(tmp_path_factory):
    """Return particles over stacks of all modes and orders, and the answer in memory."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(3)
    stacks = []
    for i, (mode, order) in enumerate((mode, order) for mode in MODES for order in "<>"):
        stacks.append(noise(7, seed=i))
        make_stack(folder / f"Extract/s{i}.mrcs", stacks[-1], mode, order)
    pairs = rng.permutation([(stack, section) for stack in range(len(stacks)) for section in range(7)])
    star = simple_star(folder, [f"{section + 1:06d}@Extract/s{stack}.mrcs" for stack, section in pairs])
    return open_particles(star), np.array([stacks[stack][section] for stack, section in pairs])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_reads_in_any_order_agree_with_plain_indexing(many_stacks, data):
    particles, truth = many_stacks
    indices = data.draw(st.lists(st.integers(0, len(truth) - 1), max_size=40))
    for given_as in (indices, np.array(indices, data.draw(st.sampled_from([np.uint8, np.int32, np.intp])))):
        read = particles.read(given_as)
        assert read.flags.c_contiguous and read.flags.owndata and read.dtype.isnative
        np.testing.assert_array_equal(read, truth[indices].reshape(-1, 16, 16))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(truth))] * 2)))
    np.testing.assert_array_equal(particles.read(np.int32(start), np.uint16(stop)), truth[start:stop])


def test_threads_may_read_together(many_stacks):
    particles, truth = many_stacks
    orders = [np.random.default_rng(seed).permutation(len(truth)) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        for order, read in zip(orders, pool.map(particles.read, orders), strict=True):
            np.testing.assert_array_equal(read, truth[order])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((0, 71), "images 0 to 71 were asked for; there are 70"),
        ((-1, 3), "images -1 to 3"),
        ((5, 3), "images 5 to 3"),
        (([3, 70],), "image 70 was asked for; there are 70"),
        (([-1],), "image -1"),
        ((5,), "whole numbers; got 5"),
        (([1.0],), "whole numbers"),
        (([True, False],), "whole numbers"),
        (([[1]],), "whole numbers"),
    ],
)
def test_images_out_of_range_are_an_index_error(many_stacks, asked, message):
    for particles in (many_stacks[0], open_particles(many_stacks[1])):
        with pytest.raises(IndexError, match=re.escape(message)):
            particles.read(*asked)


def test_a_part_is_small_and_reads_the_same(tmp_path):
    for name in "abc":
        make_stack(tmp_path / f"{name}.mrcs", noise(seed=ord(name)))
    rows = [
        [f"{i % 5 + 1:06d}@{'abc'[i // 700]}.mrcs", "a_rather_long_micrograph_name.mrc", 1, 1, 2, 3]
        for i in range(2000)
    ]
    particles = open_particles(relion31(tmp_path, [[1, "g", 300, 2.7, 0.1, 1.5, 16]], rows))
    part = particles.part(695, 705)
    sent = pickle.dumps(part)
    assert len(sent) < 2000
    copy = pickle.loads(sent)
    assert (len(copy), copy.box, copy.pixel_size, copy.path) == (10, 16, 1.5, particles.path)
    assert [Path(file).name for file in copy.store.files()] == ["a.mrcs", "b.mrcs"]
    assert copy.table.names is None and copy.ctf is None and copy.micrographs is None
    assert copy.names[:] == particles.names[695:705]
    np.testing.assert_array_equal(copy.read(0, 10), particles.read(695, 705))


def test_a_part_of_an_array_carries_no_more_than_its_images():
    images = noise(20)
    part = open_particles(images).part(3, 7)
    assert len(pickle.dumps(part)) < images.nbytes / 2
    np.testing.assert_array_equal(part.read([3, 0]), images[[6, 3]])


def test_names_of_a_bare_stack_are_made_on_demand(tmp_path):
    particles = open_particles(str(make_stack(tmp_path / "stack.MRCS", noise(20))))
    assert particles.names[16] == "000017@stack.MRCS"
    assert particles.names[-1] == "000020@stack.MRCS"
    assert particles.names[1:3] == ["000002@stack.MRCS", "000003@stack.MRCS"]
    assert len(list(particles.names)) == 20
    with pytest.raises(IndexError):
        particles.names[20]
    assert particles.ctf is particles.micrographs is particles.table.names is None


@pytest.mark.parametrize("dtype", ["f4", ">f4", "f8", "f2", "i2", ">u2", "i1", "?"])
def test_arrays_are_kept_and_read_as_copies(dtype):
    array = noise().astype(dtype)
    array.flags.writeable = False
    particles = open_particles(array)
    assert np.shares_memory(particles.store.array, array)
    assert (len(particles), particles.box, particles.pixel_size, particles.path) == (5, 16, 1.0, None)
    assert particles.names[4] == "000005@array"
    for indices in ([], [0, 1, 2], [4, 0, 0]):
        read = particles.read(indices)
        assert read.flags.owndata and read.flags.writeable and read.flags.c_contiguous
        assert read.dtype == np.float32 and read.dtype.isnative
        np.testing.assert_array_equal(read, array[np.array(indices, int)].astype("f4"))
    assert not np.shares_memory(particles.read(0, 5), array)
    assert open_particles(array, pixel_size=2).pixel_size == 2.0


def test_memory_maps_and_open_sets_are_taken_as_they_are(tmp_path):
    np.save(tmp_path / "a.npy", noise()[:, ::-1])
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    particles = open_particles(mapped)
    read = particles.read([3, 1])
    assert type(read) is np.ndarray
    np.testing.assert_array_equal(read, noise()[[3, 1], ::-1])
    assert open_particles(particles) is particles
    changed = open_particles(particles, pixel_size=3)
    assert changed.pixel_size == 3.0 and changed.store is particles.store


def test_values_beyond_float32_become_infinite():
    assert np.isinf(open_particles(np.full((1, 16, 16), 1e300)).read(0, 1)).all()


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (np.zeros((16, 16)), ["shape (n, d, d); got (16, 16)"]),
        (np.zeros((2, 16, 18)), ["must be square; got 18 x 16"]),
        (np.zeros((2, 4, 4)), ["16 to 1024 px"]),
        (np.zeros((0, 16, 16)), ["holds no images"]),
        (np.zeros((2, 16, 16), complex), ["complex128"]),
        (np.full((2, 16, 16), "a"), ["real numbers"]),
        ("particles.txt", [".star", ".mrcs", ".st", ".map", "particles.txt"]),
        (Path("Extract"), [".star"]),
        (None, ["path or an ndarray", "NoneType"]),
        ([1, 2], ["path or an ndarray", "list"]),
    ],
)
def test_other_sources_are_refused(source, parts):
    refused(source, *parts)


@needs_data
def test_files_of_relion_and_aspire(tmp_path):
    formats = DATA / "formats"
    particles = open_particles(formats / "relion31.star")
    assert (len(particles), particles.box, particles.pixel_size) == (5, 256, 2.806)
    assert particles.ctf.defocus_u[0] == 13108.082418 and particles.ctf.spherical_aberration[0] == 0.01
    with pytest.warns(RuntimeWarning):
        reference = mrcfile.open(formats / "relion31.mrcs", permissive=True).data
    np.testing.assert_array_equal(particles.read([4, 0]), reference[[4, 0]])

    particles = open_particles(formats / "empiar_10076_7.star")
    assert (len(particles), particles.box) == (7, 320)
    assert particles.pixel_size == pytest.approx(1.31, abs=1e-3)
    np.testing.assert_array_equal(particles.read(0, 7), mrcfile.read(formats / "empiar_10076_7.mrc"))

    (tmp_path / "sample.mrcs").symlink_to(formats / "aspire_sample.mrcs")
    dialects = [
        open_particles(formats / f"aspire_sample_particles_relion{version}.star", data_dir=tmp_path)
        for version in ("30", "31")
    ]
    assert [len(particles) for particles in dialects] == [17, 17]
    assert dialects[0].pixel_size == pytest.approx(1.338, abs=1e-3)
    assert dialects[1].pixel_size == 1.4
    assert sorted(set(dialects[1].ctf.voltage)) == [200, 300]
    np.testing.assert_array_equal(dialects[0].ctf.defocus_u, dialects[1].ctf.defocus_u)
    np.testing.assert_array_equal(dialects[0].read(0, 17), dialects[1].read(0, 17))


@needs_data
@pytest.mark.parametrize("name", ["formats/relion31", "formats/empiar_10076_7", "real/betagal_curated"])
def test_tables_of_other_programs_are_written_back_byte_for_byte(name):
    star = read_star(DATA / f"{name}.star")
    everything = range(star.particles_block.n_rows)
    assert b"".join(subset_bytes(star, everything)) == star.text
    half = b"".join(subset_bytes(star, everything[::2])).splitlines()
    names = set(star.particles_block.column("_rlnImageName")[1::2])
    dropped = [line for line in star.text.splitlines() if names & set(line.decode().split())]
    assert half == [line for line in star.text.splitlines() if line not in dropped]


@needs_relion
@pytest.mark.parametrize("dialect", ["3.0", "3.1"])
def test_relion_reads_what_was_written(tmp_path, monkeypatch, dialect):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).normal(size=(6, 32, 32)).astype(np.float32)
    write_stack("a.mrcs", [images[:4], images[4:]], 1.5, 6, 32)
    if dialect == "3.1":
        rows = [[f"{i:06d}@a.mrcs", "m.mrc", 1, 10000 + i, 9000, 20] for i in range(1, 7)]
        path = relion31(tmp_path, [[1, "g", 300, 2.7, 0.1, 1.5, 32]], rows, "p.star")
    else:
        path = tmp_path / "p.star"
        labels = ["ImageName", "DefocusU", "Voltage", "SphericalAberration", "AmplitudeContrast"]
        labels = [f"_rln{label}" for label in [*labels, "DetectorPixelSize", "Magnification"]]
        rows = [[f"{i:06d}@a.mrcs", 10000 + i, 300, 2.7, 0.1, 5, 50000] for i in range(1, 7)]
        path.write_text(table(labels, rows, "images"))
    kept = [5, 1, 2]
    columns = {
        "_rlnParticleSelectZScore": [f"{i / 8:.6f}" for i in range(6)],
        "_fastsortReason": ["keep", "ice", "offcentre", "empty", "none", "two"],
    }
    with open("subset.star", "wb") as file:
        file.writelines(subset_bytes(read_star(path), kept, columns))

    run = subprocess.run(
        ["relion_star_handler", "--i", "subset.star", "--o", "copy.star"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        "will ignore (but maintain) values for the unknown label: fastsortReason" in run.stdout + run.stderr
    )
    block = read_star("copy.star").particles_block
    assert block.column("_rlnImageName") == ["000002@a.mrcs", "000003@a.mrcs", "000006@a.mrcs"]
    assert block.floats("_rlnParticleSelectZScore").tolist() == [0.125, 0.25, 0.625]
    assert block.column("_fastsortReason") == ["ice", "offcentre", "two"]
    assert block.floats("_rlnDefocusU").tolist() == [10002, 10003, 10006]

    subprocess.run(
        ["relion_stack_create", "--i", "subset.star", "--o", "stack"], capture_output=True, check=True
    )
    np.testing.assert_array_equal(open_particles("stack.mrcs").read(0, 3), images[[1, 2, 5]])
    shown = subprocess.run(
        ["relion_image_handler", "--i", "a.mrcs", "--stats"], capture_output=True, text=True, check=True
    ).stdout
    assert shown.count("32 x 32 x 1 x 1") == 6 and "angpix = 1.5" in shown
    assert f"minval= {images[5].min():.6g}"[:14] in shown
