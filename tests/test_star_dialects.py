"""STAR files as every program and editor leaves them: whatever is not meant to change, does not."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsort.particles import star as star_module
from fastsort.particles.mrc import write_stack
from fastsort.particles.open import open_particles
from fastsort.particles.star import read_star, subset_bytes

KNOWN = [b"007", b"-0", b"1e-5", b"None", b"nan", b'""', b"''", b"000017@Extract/job012/Movies/a.mrcs"]


class Piece(NamedTuple):
    """A line of a file, its ending included, and, if it is a row of particles, its values."""

    line: bytes
    values: list[bytes] | None = None


class Table(NamedTuple):
    """A file before it was written, and whether to work on it as on large files, in pieces."""

    labels: list[str]
    pieces: list[Piece]
    in_pieces: bool

    @property
    def text(self):
        return b"".join(piece.line for piece in self.pieces)

    @property
    def rows(self):
        return [piece.values for piece in self.pieces if piece.values is not None]

    def kept(self, keep):
        """Return the text without the rows that `keep` leaves out."""
        wanted = iter(keep)
        return b"".join(piece.line for piece in self.pieces if piece.values is None or next(wanted))


def words(line):
    """Return the values of a line, byte by byte as the STAR format has it, quotes included."""
    found, place = [], 0
    while place < len(line) and line[place : place + 1] != b"#":
        if line[place] <= ord(" "):
            place += 1
            continue
        start, mark = place, line[place : place + 1]
        ends = [
            i for i in range(start + 1, len(line)) if line[i : i + 1] == mark and line[i + 1 : i + 2] <= b" "
        ]
        if mark in (b"'", b'"') and ends:
            place = ends[0] + 1
        else:
            while place < len(line) and line[place] > ord(" "):
                place += 1
        found.append(line[start:place])
    return found


def unquoted(value):
    return value[1:-1] if value[:1] in (b"'", b'"') and value[-1:] == value[:1] and len(value) > 1 else value


def spaces(least=0):
    return st.sampled_from([b"", b" ", b"\t", b"  ", b" \t"][least:])


def bare(raw):
    """Turn any bytes into a value without quotes: it begins with nothing that means anything else."""
    return raw[:1].translate(_FIRST) + raw[1:].translate(_REST)


_REST = bytes(byte if byte > ord(" ") and byte not in b"'\"" else ord("a") + byte % 26 for byte in range(256))
_FIRST = bytes(ord("x") if byte in b"#_" else byte for byte in _REST)
BARE = (
    st.binary(min_size=1, max_size=7)
    .map(bare)
    .filter(lambda value: not value.startswith(b"data_") and value.lower() != b"loop_")
)
PLAIN = st.sampled_from([value for value in KNOWN if b'"' not in value and b"'" not in value]) | BARE.map(
    lambda value: value.replace(b"#", b"x")
)
COMMENT = st.sampled_from([b"# version 30001", b"#", b"# it's", b'# "data_', b"# data_particles", b"#loop_"])


@st.composite
def quoted(draw):
    """A quoted value: a quote inside ends it only where a blank follows."""
    mark = draw(st.sampled_from([b"'", b'"']))
    inside = draw(
        st.lists(st.sampled_from([b"a", b" ", b"#", b"\xff", b"'", b'"', b"_", b"data_"]), max_size=6)
    )
    value = mark + b"".join(inside) + mark
    return value if words(value + b" x") == [value, b"x"] else mark + b"a # b" + mark


@st.composite
def tables(draw):
    """A file with one table of particles among others."""
    plain = draw(st.booleans())
    endings = draw(st.sampled_from([[b"\n"], [b"\r\n"], [b"\n", b"\r\n"]]))
    value = PLAIN if plain else st.one_of(PLAIN, BARE, st.sampled_from(KNOWN), quoted())
    remark = st.just(b"") if plain else st.one_of(st.just(b""), COMMENT)
    filler = st.lists(st.tuples(spaces(), remark).map(b"".join), max_size=2)
    numbered = draw(st.booleans())
    pieces = []

    def add(line, values=None, comments=True):
        tail = draw(spaces()) + (b" " + draw(remark) if comments and draw(st.booleans()) else b"")
        pieces.append(Piece(draw(spaces()) + line + tail + draw(st.sampled_from(endings)), values))

    def fill():
        for line in draw(filler):
            pieces.append(Piece(line + draw(st.sampled_from(endings))))

    def loop(name, labels, mine=False):
        fill()
        add(b"data_" + name)
        fill()
        add(b"loop_")
        for number, label in enumerate(labels, 1):
            add(label.encode() + (b" #%d" % number if numbered else b""))
        for _ in range(draw(st.integers(0, 6))):
            fill()
            row = draw(st.lists(value, min_size=len(labels), max_size=len(labels)))
            line = row[0] + b"".join(draw(spaces(1)) + word for word in row[1:])
            add(line, row if mine else None)
        fill()

    def singles(name):
        fill()
        add(b"data_" + name)
        for label in ("_rlnPipeLineJobCounter", "_rlnReferenceDimensionality"):
            fill()
            add(label.encode() + draw(spaces(1)) + draw(value))
        fill()

    def others(names):
        for name in draw(st.lists(st.sampled_from(names), max_size=2)):
            if name == b"general":
                singles(name)
            else:
                loop(name, ["_rlnOpticsGroup", "_rlnImagePixelSize"][: draw(st.integers(1, 2))])

    labels = ["_rlnImageName", "_rlnOpticsGroup", "_rlnClassNumber"][: draw(st.integers(1, 3))]
    labels = draw(st.permutations(labels))
    others([b"optics", b"general"])
    loop(draw(st.sampled_from([b"particles", b"images", b""])), labels, mine=True)
    others([b"micrographs", b"general", b"movies"])
    if draw(st.booleans()):
        last = pieces[-1]
        pieces[-1] = last._replace(line=last.line.rstrip(b"\r\n"))
    return Table(labels, pieces, draw(st.booleans()))


@contextmanager
def cut(table):
    """Let even the smallest file be read and written in pieces."""
    with pytest.MonkeyPatch.context() as patch:
        if table.in_pieces:
            patch.setattr(star_module, "_BYTES_AT_ONCE", 7)
            patch.setattr(star_module, "_ROWS_AT_ONCE", 2)
        yield


def read(text, table):
    with tempfile.TemporaryDirectory() as folder, cut(table):
        path = Path(folder) / "particles.star"
        path.write_bytes(text)
        return read_star(path)


def written(star, table, rows, columns=None):
    with cut(table):
        return b"".join(subset_bytes(star, rows, columns))


def column(star, label):
    return [value.encode("utf-8", "surrogateescape") for value in star.particles_block.column(label)]


def without_new(text, labels, new):
    """Take new columns out of a text again, and return it with the new values of each row."""
    lines = [part + b"\n" for part in text.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    heads = [i for i, line in enumerate(lines) if words(line) and words(line)[0].startswith(b"data_")]
    image_name = next(i for i, line in enumerate(lines) if words(line)[:1] == [b"_rlnImageName"])
    first = max(head for head in heads if head < image_name) + 1
    end = min([head for head in heads if head > image_name], default=len(lines))
    values = []
    for number in range(first, end):
        found = words(lines[number])
        if found and found[0].decode("latin-1") in new:
            lines[number] = b""
        elif found and found[0] != b"loop_" and not found[0].startswith(b"_"):
            assert len(found) == len(labels) + len(new)
            values.append(found[len(labels) :])
            lines[number] = without_last(lines[number], b"".join(b" " + value for value in values[-1]))
    return b"".join(lines), values


def without_last(line, tail):
    """Cut out of a line the last place where the tail makes up the last of its values."""
    number = len(words(line)) - len(words(tail))
    for place in range(len(line) - len(tail), -1, -1):
        before, after = line[:place], line[place + len(tail) :]
        if line[place : place + len(tail)] == tail and len(words(before)) == number and not words(after):
            return before + after
    raise AssertionError(line)


MANY = settings(max_examples=200, deadline=None)
NEW = ("_rlnParticleSelectZScore", "_fastsortReason")
WORD = st.sampled_from(["0.5", "-1e-7", "007", "None", "None_of_it", "é", "a#b", "it's"])


@MANY
@given(tables())
def test_values_are_read_as_they_were_written(table):
    block = read(table.text, table).particles_block
    assert block.labels == table.labels
    assert block.n_rows == len(table.rows)
    for index, label in enumerate(table.labels):
        got = [value.encode("utf-8", "surrogateescape") for value in block.column(label)]
        assert got == [unquoted(row[index]) for row in table.rows]


@MANY
@given(tables(), st.data())
def test_a_subset_has_the_lines_of_its_rows_and_every_other_byte(table, data):
    star = read(table.text, table)
    n = len(table.rows)
    assert written(star, table, range(n)) == table.text
    keep = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    assert written(star, table, keep) == table.kept(keep)
    chosen = data.draw(st.permutations([row for row in range(n) if keep[row]]))
    assert written(star, table, chosen) == table.kept(keep)


@MANY
@given(tables(), st.data())
def test_new_columns_stand_beside_what_was_there(table, data):
    star = read(table.text, table)
    n = len(table.rows)
    keep = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    new = NEW[: data.draw(st.integers(1, 2))]
    columns = {label: data.draw(st.lists(WORD, min_size=n, max_size=n)) for label in new}
    text = written(star, table, keep, columns)
    old, values = without_new(text, table.labels, new)
    expected = table.kept(keep)
    if not table.rows and not table.text.endswith(b"\n") and old != expected:
        assert old in (expected + b"\n", expected + b"\r\n")  # a label needs a line of its own
    else:
        assert old == expected
    kept = [row for row in range(n) if keep[row]]
    assert values == [[columns[label][row].encode() for label in new] for row in kept]
    again = read(text, table)
    assert again.particles_block.labels == [*table.labels, *new]
    for label in table.labels:
        assert column(again, label) == [column(star, label)[row] for row in kept]
    for label in new:
        assert again.particles_block.column(label) == [columns[label][row] for row in kept]


@MANY
@given(tables(), st.data())
def test_overwriting_a_column_changes_only_its_values(table, data):
    star = read(table.text, table)
    n = len(table.rows)
    index = data.draw(st.integers(0, len(table.labels) - 1))
    words_ = data.draw(st.lists(WORD, min_size=n, max_size=n))
    text = written(star, table, range(n), {table.labels[index]: words_})
    lines, given_words = [], iter(words_)
    for line, values in table.pieces:
        if values is not None:
            place = 0
            for value in values[:index]:
                place = line.index(value, place) + len(value)
            place = line.index(values[index], place)
            line = line[:place] + next(given_words).encode() + line[place + len(values[index]) :]
        lines.append(line)
    assert text == b"".join(lines)
    again = read(text, table)
    for i, label in enumerate(table.labels):
        assert column(again, label) == ([w.encode() for w in words_] if i == index else column(star, label))


def test_a_quote_inside_a_quoted_value_does_not_end_it():
    text = b"data_\nloop_\n_rlnImageName #1\n_rlnMicrographName #2\n'1@a dog's life' \"2\"x\"\n"
    table = Table([], [], in_pieces=False)
    block = read(text, table).particles_block
    assert block.column("_rlnImageName") == ["1@a dog's life"]
    assert block.column("_rlnMicrographName") == ['2"x']


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A RELION 5 project on another disk, seen through a link, and somewhere else to stand."""
    disk = tmp_path / "disk" / "project"
    (disk / "Extract/job012/Movies").mkdir(parents=True)
    (disk / "Select/job020").mkdir(parents=True)
    images = np.zeros((3, 16, 16), np.float32)
    write_stack(disk / "Extract/job012/Movies/a.mrcs", [images], 1.5, *images.shape[:2])
    (disk / "Select/job020/particles.star").write_text(particles("Extract/job012/Movies/a.mrcs"))
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return disk


def particles(stack):
    """Return a table of RELION 5 that names two images of a stack."""
    optics = "\n# version 50001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n1 1.5\n\n"
    labels = "_rlnImageName #1\n_rlnOpticsGroup #2\n"
    rows = f"000003@{stack} 1\n000001@{stack} 1\n"
    return f"{optics}\n# version 50001\n\ndata_particles\n\nloop_\n{labels}{rows}\n"


def opens(path):
    opened = open_particles(path)
    assert opened.pixel_size == 1.5
    return opened.read(0, 2).shape == (2, 16, 16)


def test_names_are_relative_to_the_project(project):
    assert opens(project / "Select/job020/particles.star")


def test_a_linked_project_a_linked_job_and_a_linked_stack_are_entered(project, tmp_path):
    (tmp_path / "home/project").symlink_to(project)
    assert opens(tmp_path / "home/project/Select/job020/particles.star")
    (project / "Select/good").symlink_to("job020")
    assert opens(project / "Select/good/particles.star")
    (project / "Extract").rename(tmp_path / "big")
    (project / "Extract").symlink_to(tmp_path / "big")
    assert opens(project / "Select/job020/particles.star")
    stack = tmp_path / "big/job012/Movies/a.mrcs"
    stack.rename(tmp_path / "b.mrcs")
    stack.symlink_to(tmp_path / "b.mrcs")
    assert opens(project / "Select/job020/particles.star")


def test_names_with_dots_are_followed(project):
    path = project / "Select/job020/particles.star"
    path.write_text(particles("../../Extract/job012/Movies/a.mrcs"))
    assert opens(path)
    path.write_text(particles("./Extract/job012/../job012/Movies/a.mrcs"))
    assert opens(path)


def test_a_linked_table_is_looked_for_beside_the_link_and_beside_the_file(project, tmp_path):
    link = tmp_path / "home/particles.star"
    link.symlink_to(project / "Select/job020/particles.star")
    assert opens(link)


def test_a_table_in_a_linked_job_folder_belongs_to_either_project(project, tmp_path):
    job = tmp_path / "other/Select/job020"
    job.parent.mkdir(parents=True)
    job.symlink_to(project / "Select/job020")
    assert opens(job / "particles.star")
