"""cryoSPARC datasets: what they name, what they say of it, and their rows back as they were."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import sys
import time
import tracemalloc
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import recfunctions

from fastsort._checks import InputError
from fastsort.particles.cs import CsDataset
from fastsort.particles.cs_file import read_cs, subset_cs, write_cs
from fastsort.particles.mrc import write_stack
from fastsort.particles.open import open_particles
from fastsort.particles.table import Added
from fastsort.report.recentre import recentred

SAMPLES = Path(__file__).parents[2] / "shared" / "data" / "formats"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"the sample files {SAMPLES} are not here")

BLOB = [
    ("blob/path", "S40"),
    ("blob/idx", "<u4"),
    ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"),
    ("blob/sign", "<f4"),
]
CTF = [
    ("ctf/type", "S9"),
    ("ctf/accel_kv", "<f4"),
    ("ctf/cs_mm", "<f4"),
    ("ctf/amp_contrast", "<f4"),
    ("ctf/df1_A", "<f4"),
    ("ctf/df2_A", "<f4"),
    ("ctf/df_angle_rad", "<f4"),
    ("ctf/phase_shift_rad", "<f4"),
]
PLACE = [("location/micrograph_path", "S40"), ("location/center_x_frac", "<f4")]
POSE = [("alignments3D/pose", "<f4", (3,)), ("alignments3D/split", "<u4")]
BOX = 16
STACKS = {b"J19/extract/a.mrc": 3, b"J19/extract/b.mrc": 4}


def make_rows(n=7, fields=(*BLOB, *CTF, *PLACE, *POSE)):
    """Return particles in two stacks, with every field filled with something to be told apart by."""
    rng = np.random.default_rng(5)
    rows = np.zeros(n, [("uid", "<u8"), *fields])
    names = rows.dtype.names
    rows["uid"] = rng.permutation(1 << 20)[:n].astype(np.uint64) + np.uint64(2**63)
    given = {
        "blob/path": np.where(np.arange(n) % 7 < 3, *STACKS),
        "blob/idx": [0, 1, 2, 0, 1, 2, 3] * (n // 7) + [0, 1, 2, 0, 1, 2][: n % 7],
        "blob/shape": BOX,
        "blob/psize_A": 1.5,
        "blob/sign": 1,
        "ctf/type": b"patch",
        "ctf/accel_kv": 300,
        "ctf/cs_mm": 2.7,
        "ctf/amp_contrast": 0.1,
        "ctf/df1_A": rng.uniform(5000, 20000, n),
        "ctf/df2_A": rng.uniform(5000, 20000, n),
        "ctf/df_angle_rad": rng.uniform(-3, 3, n),
        "ctf/phase_shift_rad": np.pi / 2,
        "location/micrograph_path": np.where(np.arange(n) % 7 < 3, b">J2/a_doseweighted.mrc", b"J2/b.mrc"),
        "location/center_x_frac": rng.uniform(0, 1, n),
        "alignments3D/pose": rng.normal(size=(n, 3)),
        "alignments3D/split": np.arange(n) % 2,
    }
    for name, values in given.items():
        if name in names:
            rows[name] = values
    return rows


def save(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.save(file, rows)
    return str(path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with the stacks of an extraction job; the working folder is elsewhere."""
    folder, elsewhere = tmp_path / "CS-project", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for number, (name, count) in enumerate(STACKS.items()):
        stack = folder / name.decode()
        stack.parent.mkdir(parents=True, exist_ok=True)
        images = np.random.default_rng(number).normal(size=(count, BOX, BOX)).astype(np.float32)
        write_stack(stack, [images], 9.0, count, BOX)
    return folder


def pixels(project):
    """Return the images of all stacks in order."""
    return np.concatenate([open_particles(project / name.decode()).read(0, n) for name, n in STACKS.items()])


def without(rows, *names):
    return recfunctions.drop_fields(rows, names, usemask=False)


def only(rows, *names):
    return recfunctions.repack_fields(rows[list(names)])


def refused(path, *parts, **options):
    """Open what cannot be opened; return the message, one line that holds all parts."""
    with pytest.raises(InputError) as caught:
        open_particles(str(path), **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert str(part) in message
    return message


@needs_samples
def test_sample_is_the_same_particles_as_its_star_file():
    ours = open_particles(SAMPLES / "empiar_10076_7.cs")
    star = open_particles(SAMPLES / "empiar_10076_7.star")
    assert ours.pixel_size == pytest.approx(star.pixel_size, rel=1e-6)
    assert len(ours) == len(star) == 7
    tolerances = {"defocus_u": 1, "defocus_v": 1, "defocus_angle": 0.01, "phase_shift": 0.01}
    for name in ours.ctf._fields:
        expected = getattr(star.ctf, name)
        np.testing.assert_allclose(getattr(ours.ctf, name), expected, rtol=0, atol=tolerances.get(name, 1e-6))
    images = ours.read(0, 7)
    np.testing.assert_array_equal(images, -star.read(0, 7))
    # Particles are bright where the sign has been applied.
    assert images[:, 130:190, 130:190].mean() > images.mean() + 0.05
    assert ours.names[6] == "000007@empiar_10076_7.mrc"
    assert ours.micrographs is None


@needs_samples
def test_sample_of_a_refinement_names_a_project_that_is_not_there():
    path = SAMPLES / "cryosparc_P12_J24_001_particles.cs"
    message = refused(path, "50 of 50 stacks", "J19/extract/", SAMPLES, "--data-dir")
    assert ">" not in message
    rows = read_cs(path)
    np.testing.assert_array_equal(rows, np.load(path))


@needs_samples
@pytest.mark.parametrize("name", ["empiar_10076_7.cs", "cryosparc_P12_J24_001_particles.cs"])
def test_rows_of_samples_come_back_byte_for_byte(tmp_path, name):
    dataset = CsDataset(str(SAMPLES / name), read_cs(SAMPLES / name))
    write_cs(tmp_path / "all.cs", dataset.rows, np.arange(len(dataset)), {})
    ours, theirs = np.load(tmp_path / "all.cs"), np.load(SAMPLES / name)
    assert ours.dtype.descr == theirs.dtype.descr
    assert ours.tobytes() == theirs.tobytes()


def test_images_are_found_from_the_job_folder(project):
    rows = make_rows()
    particles = open_particles(save(project / "J24" / "J24_particles.cs", rows))
    assert (len(particles), particles.box, particles.pixel_size) == (7, BOX, 1.5)
    np.testing.assert_array_equal(particles.read(0, 7), pixels(project))
    assert particles.names[:] == [
        f"{i + 1:06d}@J19/extract/{stack}.mrc" for stack, n in (("a", 3), ("b", 4)) for i in range(n)
    ]
    assert particles.names[-1] == "000004@J19/extract/b.mrc"
    assert particles.micrographs == ["J2/a_doseweighted.mrc"] * 3 + ["J2/b.mrc"] * 4
    np.testing.assert_array_equal(particles.table.rows, rows)
    assert particles.table.files == [str(project / "J24" / "J24_particles.cs")]


def test_images_are_found_from_the_working_folder_and_from_data_dir(project, tmp_path, monkeypatch):
    path = save(tmp_path / "export" / "particles.cs", make_rows())
    refused(path, "2 of 2 stacks", "Looked in", tmp_path / "elsewhere", tmp_path / "export", "--data-dir")
    refused(path, "is not a folder", data_dir=tmp_path / "nowhere")
    expected = pixels(project)
    np.testing.assert_array_equal(open_particles(path, data_dir=project).read(0, 7), expected)
    monkeypatch.chdir(project)
    np.testing.assert_array_equal(open_particles(path).read(0, 7), expected)


def test_marks_and_kinds_of_text_do_not_matter(project):
    rows = make_rows()
    marked = rows.copy()
    marked["blob/path"] = [b">" + path for path in rows["blob/path"]]
    marked["blob/path"][2] = rows["blob/path"][2]
    unicode = rows.astype([(n, "U40") if n == "blob/path" else (n, rows.dtype[n]) for n in rows.dtype.names])
    for number, other in enumerate((marked, unicode)):
        particles = open_particles(save(project / "J24" / f"{number}.cs", other))
        np.testing.assert_array_equal(particles.read(0, 7), pixels(project))
        assert len(particles.store.stacks) == 2
        assert particles.names[0] == "000001@J19/extract/a.mrc"


def test_names_that_are_not_utf8_are_found(project):
    odd = os.fsencode(project) + b"/J19/extract/\xff.mrc"
    try:
        shutil.copy(project / "J19/extract/a.mrc", odd)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    rows = make_rows(3)
    rows["blob/path"] = b"J19/extract/\xff.mrc"
    particles = open_particles(save(project / "J24" / "x.cs", rows))
    np.testing.assert_array_equal(particles.read(0, 3), pixels(project)[:3])


def test_any_order_of_rows_and_stacks_is_kept(project):
    order = np.random.default_rng(2).permutation(7)
    rows = make_rows()[order]
    particles = open_particles(save(project / "J24" / "x.cs", rows))
    np.testing.assert_array_equal(particles.read([5, 0, 3]), pixels(project)[order[[5, 0, 3]]])
    np.testing.assert_allclose(particles.ctf.defocus_u, rows["ctf/df1_A"])


def test_sign_multiplies_pixels(project):
    rows = make_rows()
    rows["blob/sign"] = [1, -1, 1, -1, -1, 1, 1]
    particles = open_particles(save(project / "J24" / "x.cs", rows))
    expected = pixels(project) * rows["blob/sign"][:, None, None]
    np.testing.assert_array_equal(particles.read(0, 7), expected)
    np.testing.assert_array_equal(particles.part(2, 5).read(0, 3), expected[2:5])
    assert open_particles(save(project / "J24" / "y.cs", make_rows())).store.sign_of is None


def test_ctf_is_in_angstroms_and_degrees(project):
    rows = make_rows()
    ctf = open_particles(save(project / "J24" / "x.cs", rows)).ctf
    np.testing.assert_array_equal(ctf.defocus_u, rows["ctf/df1_A"].astype(float))
    np.testing.assert_array_equal(ctf.defocus_v, rows["ctf/df2_A"].astype(float))
    np.testing.assert_allclose(ctf.defocus_angle, rows["ctf/df_angle_rad"] * (180 / np.pi), rtol=1e-6)
    np.testing.assert_allclose(ctf.phase_shift, 90, rtol=1e-6)
    np.testing.assert_allclose(ctf.voltage, 300)
    np.testing.assert_allclose(ctf.spherical_aberration, 2.7, rtol=1e-6)
    np.testing.assert_allclose(ctf.amplitude_contrast, 0.1, rtol=1e-6)


def test_ctf_needs_all_but_the_phase_shift(project):
    rows = make_rows()
    path = save(project / "J24" / "x.cs", without(rows, "ctf/phase_shift_rad"))
    assert (open_particles(path).ctf.phase_shift == 0).all()
    for name in ("ctf/df1_A", "ctf/df_angle_rad", "ctf/cs_mm"):
        assert open_particles(save(Path(path), without(rows, name))).ctf is None
    rows["ctf/df1_A"] = rows["ctf/df2_A"] = rows["ctf/accel_kv"] = 0
    assert open_particles(save(Path(path), rows)).ctf is None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ctf/df1_A", np.nan, "ctf/df1_A must be finite; it is nan in row 4"),
        ("ctf/accel_kv", 0, "ctf/accel_kv must be positive; it is 0 in row 4"),
        ("blob/psize_A", 0, "blob/psize_A must be positive; it is 0 in row 4"),
        ("blob/psize_A", np.inf, "blob/psize_A must be positive; it is inf in row 4"),
        ("blob/sign", 0, "blob/sign must be 1 or -1; it is 0 in row 4"),
        ("blob/sign", np.nan, "blob/sign must be 1 or -1; it is nan in row 4"),
        ("blob/idx", 4, "row 4 of"),
        ("blob/shape", (16, 18), "18 x 16 px"),
        ("blob/path", b"", "blob/path"),
        ("blob/path", b"J19/extract/c.mrc", "1 of 3 stacks"),
        ("blob/path", b"J19/\n/c.mrc", "characters that no path has"),
        ("blob/path", b"J19/\0/c.mrc", "characters that no path has"),
    ],
)
def test_rows_that_cannot_be_are_named(project, name, value, said):
    rows = make_rows()
    rows[name][4] = value
    refused(save(project / "J24" / "x.cs", rows), said, "x.cs")


def test_defocus_of_nothing_is_named(project):
    rows = make_rows()
    rows["ctf/df1_A"][2] = rows["ctf/df2_A"][2] = 0
    refused(save(project / "J24" / "x.cs", rows), "both 0 in row 2")


def test_given_pixel_size_wins_and_headers_stand_in(project):
    path = save(project / "J24" / "x.cs", make_rows())
    assert open_particles(path, pixel_size=3.0).pixel_size == 3
    assert open_particles(save(Path(path), without(make_rows(), "blob/psize_A"))).pixel_size == 9


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blob/path", "<u4"),
        ("blob/idx", "<f4"),
        ("blob/shape", "<u4"),
        ("blob/sign", "S4"),
        ("blob/psize_A", "<c8"),
        ("ctf/df1_A", "(2,)<f4"),
        ("location/micrograph_path", "<f8"),
    ],
)
def test_fields_of_another_type_are_named(project, name, kind):
    rows = make_rows()
    other = np.zeros(7, [(n, kind) if n == name else (n, rows.dtype[n]) for n in rows.dtype.names])
    for other_name in rows.dtype.names:
        if other_name != name:
            other[other_name] = rows[other_name]
    refused(save(project / "J24" / "x.cs", other), name, "must be")


def test_what_is_not_particles_is_told(project):
    folder = project / "J24"
    rows = make_rows()
    exposures = np.zeros(2, [("uid", "<u8"), ("micrograph_blob/path", "S9"), ("micrograph_blob/idx", "<u4")])
    refused(save(folder / "exposures.cs", exposures), "exposures")
    refused(save(folder / "volume.cs", np.zeros(1, [("uid", "<u8"), ("map/path", "S9")])), "volumes")
    refused(save(folder / "templates.cs", without(rows, "blob/idx")), "templates", "blob/idx")
    picks = only(rows, "uid", "location/micrograph_path", "location/center_x_frac")
    refused(save(folder / "picks.cs", picks), "blob/path", "extract the particles")
    refused(save(folder / "P1_J24_passthrough_particles.cs", picks), "passthrough file", "--passthrough")
    refused(save(folder / "nothing.cs", rows[:0]), "no images")


def test_passthrough_may_have_another_order_and_more_rows(project):
    rows = make_rows()
    more = make_rows(12)
    order = np.random.default_rng(3).permutation(12)
    more["uid"][:7] = rows["uid"]
    more["uid"][7:] = np.arange(5)
    main = only(rows, "uid", "alignments3D/pose", *[name for name in rows.dtype.names if "ctf/" in name])
    rest = more[["uid", *(name for name, *_ in (*BLOB, *PLACE))]]
    rest = recfunctions.repack_fields(rest)[order]
    path = save(project / "J24" / "particles.cs", main)
    second = save(project / "J20" / "more.cs", rest)
    particles = open_particles(path, passthrough=second)
    np.testing.assert_array_equal(particles.read(0, 7), pixels(project))
    assert particles.micrographs == ["J2/a_doseweighted.mrc"] * 3 + ["J2/b.mrc"] * 4
    assert particles.ctf is not None
    assert particles.table.files == [path, second]
    np.testing.assert_array_equal(particles.table.field("location/center_x_frac"), more[:7][PLACE[1][0]])
    assert particles.table.field("no/such") is None

    kept = [6, 1, 3]
    particles.table.write_part(project, "kept", np.array(kept), Added())
    np.testing.assert_array_equal(np.load(project / "kept.cs"), main[[1, 3, 6]])
    written = np.load(project / "kept_passthrough.cs")
    np.testing.assert_array_equal(written, rest[np.isin(rest["uid"], rows["uid"][kept])])
    # What was written is found again without being named.
    again = open_particles(str(project / "kept.cs"))
    np.testing.assert_array_equal(again.read(0, 3), pixels(project)[[1, 3, 6]])


def test_first_file_wins_over_the_passthrough(project):
    rows = make_rows()
    other = rows.copy()
    other["ctf/df1_A"] = 1
    second = save(project / "J20" / "more.cs", other)
    ctf = open_particles(save(project / "J24" / "x.cs", rows), passthrough=second).ctf
    np.testing.assert_allclose(ctf.defocus_u, rows["ctf/df1_A"])


def test_passthrough_of_the_job_is_found_beside_it(project):
    rows = make_rows()
    folder = project / "J24"
    blob = [name for name, *_ in BLOB]
    path = save(folder / "cryosparc_P12_J24_001_particles.cs", without(rows, *blob))
    # Those of other particles, of another job and those that add nothing are passed over.
    strange = only(rows, "uid", *blob)
    strange["uid"] += np.uint64(1 << 30)
    save(folder / "J24_passthrough_particles_excluded.cs", strange)
    save(folder / "J24_passthrough_particles_a.cs", only(rows, "uid", "alignments3D/pose"))
    wrong = only(rows, "uid", *blob)
    wrong["blob/idx"] = 99
    save(folder / "P12_J7_passthrough_particles.cs", wrong)
    refused(path, "no blob/path", "passthrough")
    found = save(folder / "P12_J24_passthrough_particles.cs", only(rows, "uid", *blob)[::-1])
    particles = open_particles(path)
    assert particles.table.passthrough.path == found
    np.testing.assert_array_equal(particles.read(0, 7), pixels(project))
    # A file that has all is opened without looking further.
    whole = save(folder / "J24_particles.cs", rows)
    Path(found).write_bytes(b"damaged")
    assert open_particles(whole).table.passthrough is None
    refused(path, found, "is not a cryoSPARC dataset")


def test_passthrough_that_has_most_of_what_is_missing_is_taken(project):
    rows = make_rows()
    path = save(project / "J24" / "J24_particles.cs", only(rows, "uid", *[name for name, *_ in BLOB]))
    save(project / "J24" / "J24_passthrough_particles_a.cs", only(rows, "uid", "location/micrograph_path"))
    second = save(project / "J24" / "J24_passthrough_particles_b.cs", rows)
    save(project / "J24" / "J24_passthrough_particles_c.cs", rows)
    assert open_particles(path).table.passthrough.path == second


def test_passthrough_that_does_not_fit_is_told(project):
    rows = make_rows()
    path = save(project / "J24" / "x.cs", rows)
    second = project / "J20" / "more.cs"
    refused(path, "1 of the 7", rows["uid"][6], second, passthrough=save(second, rows[:6]))
    refused(path, "7 of the 7", passthrough=save(second, rows[:0]))
    twice = rows.copy()
    twice["uid"][3] = twice["uid"][5]
    refused(path, f"uid {twice['uid'][3]} twice", second, passthrough=save(second, twice))
    refused(save(project / "J24" / "twice.cs", twice), "twice", passthrough=save(second, rows))
    refused(path, "no field uid", second, passthrough=save(second, without(rows, "uid")))
    blind = save(project / "J24" / "blind.cs", only(rows, "uid", "ctf/df1_A"))
    refused(blind, "neither", "blob/path", passthrough=save(second, only(rows, "uid", "ctf/df2_A")))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_subset_keeps_bytes_and_types_and_appends(tmp_path_factory, data):
    kinds = st.sampled_from(
        ["<f4", "<f8", "<u4", "<u8", "<i2", ">f4", "|b1", "S5", "<U3", "<c8", "|u1", "V3"]
    )
    shapes = st.sampled_from([(), (3,), (2, 2), (1,), (0,)])
    types = data.draw(st.lists(st.tuples(kinds, shapes), min_size=1, max_size=8))
    n = data.draw(st.integers(0, 20))
    rows = np.zeros(n, [("uid", "<u8"), *((f"f/{i}", *kind) for i, kind in enumerate(types))])
    noise = np.random.default_rng(data.draw(st.integers(0, 99)))
    texts = [name for name in rows.dtype.names if rows.dtype[name].base.kind == "U"]
    rows.view(np.uint8)[...] = noise.integers(0, 256, rows.nbytes)
    for name in texts:  # not every number is a character
        rows[name] = "ab"
    kept = data.draw(st.lists(st.integers(0, n - 1), unique=True)) if n else []
    path = tmp_path_factory.mktemp("cs") / "some.cs"
    score = noise.normal(size=n)
    for fields in ({}, {"fastsort/score": score, "fastsort/pair": np.zeros((n, 2), np.int32)}):
        write_cs(path, rows, kept, fields)
        some = np.load(path)
        assert some.dtype.descr[: len(rows.dtype.descr)] == rows.dtype.descr
        for name in rows.dtype.names:
            assert some[name].tobytes() == rows[name][sorted(kept)].tobytes()
        assert some.dtype.names[len(rows.dtype.names) :] == tuple(fields)
        assert read_cs(path).tobytes() == some.tobytes()
        assert read_cs(path).dtype.descr == some.dtype.descr
    np.testing.assert_array_equal(some["fastsort/score"], score[sorted(kept)])
    assert some.dtype["fastsort/pair"] == np.dtype(("<i4", (2,)))


def test_padding_and_titles_come_back(tmp_path):
    aligned = np.dtype([("uid", "u1"), ("blob/idx", "<f8"), ("ctf/type", "S3")], align=True)
    titled = np.dtype([("uid", "<u8"), (("a title", "blob/idx"), "<f4")])
    for number, dtype in enumerate((aligned, titled)):
        rows = np.ones(4, dtype)
        path = Path(save(tmp_path / f"{number}.cs", rows))
        write_cs(path, read_cs(path), [0, 2], {"fastsort/score": np.arange(4.0)})
        some = np.load(path)
        assert some.dtype.descr[:-1] == dtype.descr
        assert some["fastsort/score"].tolist() == [0, 2]
        assert (some["blob/idx"] == 1).all()


def test_field_that_is_there_is_overwritten_or_replaced():
    rows = make_rows(5)
    new = np.arange(5.0)
    some = subset_cs(rows, np.arange(5), {"ctf/df1_A": new})
    assert some.dtype == rows.dtype
    np.testing.assert_array_equal(some["ctf/df1_A"], new)
    some = subset_cs(rows, [4, 2], {"alignments3D/split": new, "alignments3D/pose": new})
    assert some.dtype["alignments3D/split"] == np.float64
    assert some.dtype["alignments3D/pose"] == np.float64
    assert some.dtype.names == rows.dtype.names
    np.testing.assert_array_equal(some["alignments3D/split"], [2, 4])
    np.testing.assert_array_equal(some["blob/path"], rows["blob/path"][[2, 4]])
    np.testing.assert_array_equal(rows, make_rows(5))


def test_further_fields_have_types_that_cryosparc_knows():
    rows = make_rows(2)
    fields = {
        "a/keep": np.array([True, False]),
        "a/reason": np.array(["flat", "é"]),
        "a/half": np.ones(2, "e"),
    }
    some = subset_cs(rows, [0, 1], fields)
    assert (some["a/keep"].dtype, some["a/half"].dtype) == (np.uint8, np.float32)
    assert some["a/reason"].tolist() == [b"flat", "é".encode()]
    assert some["a/keep"].tolist() == [1, 0]


def test_subset_asks_for_an_entry_for_every_particle():
    rows = make_rows(5)
    with pytest.raises(ValueError, match=r"must have 5 entries; got shape \(2,\)"):
        subset_cs(rows, [0, 1], {"fastsort/score": np.zeros(2)})
    with pytest.raises(IndexError):
        subset_cs(rows, [5], {})


def test_failed_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "kept.cs"
    path.write_bytes(b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_cs(path, make_rows(), [0], {})
    assert os.listdir(tmp_path) == ["kept.cs"]
    assert path.read_bytes() == b"before"


def test_long_headers_and_other_letters_come_back_without_warning(tmp_path):
    many = [
        (f"alignments_class3D_{k}/{name}", "<f4") for k in range(300) for name in ("alpha", "error", "pose")
    ]
    for number, fields in enumerate(
        (many, [*many, *[(f"x/{i}", "<f4") for i in range(2000)]], [("é/日", "<f4")])
    ):
        rows = np.ones(2, [("uid", "<u8"), *fields])
        write_cs(tmp_path / f"{number}.cs", rows, [1], {})
        again = read_cs(tmp_path / f"{number}.cs")
        assert again.dtype == rows.dtype
        assert again.tobytes() == rows[1:].tobytes()


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_objects_are_refused_and_never_run(tmp_path):
    fired = tmp_path / "fired"
    rows = np.zeros(1, [("uid", "<u8"), ("blob/path", "O")])
    rows["blob/path"][0] = Bomb(fired)
    path = tmp_path / "x.cs"
    with open(path, "wb") as file:
        np.save(file, rows, allow_pickle=True)
    refused(path, "pickled Python objects")
    save(path, np.array([Bomb(fired)], dtype=object))
    refused(path, "pickled Python objects")
    path.write_bytes(pickle.dumps(Bomb(fired)))
    refused(path, "is not a cryoSPARC dataset")
    assert not fired.exists()


def header(text, version=1, rows=b""):
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + rows


FINE = b"{'descr': [('uid', '<u8')], 'fortran_order': False, 'shape': (2,), }\n"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_is_read(tmp_path, version):
    (tmp_path / "x.cs").write_bytes(header(FINE, version, bytes(16)))
    assert read_cs(tmp_path / "x.cs")["uid"].tolist() == [0, 0]
    (tmp_path / "x.cs").write_bytes(header(FINE.replace(b"(2,)", b"(2L,)"), version, bytes(16)))
    assert len(read_cs(tmp_path / "x.cs")) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a cryoSPARC dataset (0 bytes"),
        (b"\x93NUMPY", "is not a cryoSPARC dataset"),
        (b"\x94CSDAT\x01\x00", "CSDAT"),
        (b"data_particles\nloop_\n", "is not a cryoSPARC dataset"),
        (header(FINE, 9), "version 9"),
        (header(FINE, 1, bytes(15)), "ends early"),
        (header(FINE, 1, bytes(17)), "goes on"),
        (header(FINE)[:40], "damaged"),
        (header(FINE)[:9], "damaged"),
        (header(FINE, 2)[:8] + b"\xff\xff\xff\x7f", "damaged"),
        (header(FINE.replace(b"(2,)", b"(1000000000000000,)"), 1, bytes(16)), "8000000000000"),
        (header(FINE.replace(b"(2,)", b"(-2,)"), 1, bytes(16)), "(-2,)"),
        (header(FINE.replace(b"(2,)", b"(1, 2)"), 1, bytes(16)), "(1, 2)"),
        (header(FINE.replace(b"(2,)", b"()"), 1, bytes(8)), "()"),
        (header(FINE.replace(b"(2,)", b"(True,)"), 1, bytes(8)), "(True,)"),
        (header(FINE.replace(b"(2,)", b"2"), 1, bytes(16)), "shape 2"),
        (header(FINE.replace(b"(2,)", b"(" + b"9" * 30 + b",)")), "makes no sense"),
        (header(FINE.replace(b"[('uid', '<u8')]", b"'<f8'"), 1, bytes(16)), "plain array of float64"),
        (header(FINE.replace(b"[('uid', '<u8')]", b"[]"), 1, bytes(16)), "plain array"),
        (header(FINE.replace(b"<u8", b"S0"), 1), "0 bytes a row"),
        (header(FINE.replace(b"<u8", b"<M8[s]"), 1, bytes(16)), "makes no sense"),
        (header(FINE.replace(b"<u8", b"a8"), 1, bytes(16)), "makes no sense"),
        (header(FINE.replace(b"'<u8'", b"'<u8', (2147483647, 9)")), "makes no sense"),
        (header(FINE.replace(b"'<u8'", b"'<u8', (-1,)")), "makes no sense"),
        (header(FINE.replace(b"uid", rb"\p")), "makes no sense"),
        (header(FINE.replace(b"False", b"1if 1else 2")), "makes no sense"),
        (header(FINE.replace(b"False", b"__import__('os').getcwd()")), "makes no sense"),
        (header(b"(" * 60000), "makes no sense"),
        (header(b"{" * 90 + b"}" * 90), "makes no sense"),
        (header(b"{}"), "makes no sense"),
        (header(b""), "makes no sense"),
        (header(FINE.replace(b"uid", b"\xff"), 3), "makes no sense"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path, content, said):
    (tmp_path / "x.cs").write_bytes(content)
    refused(tmp_path / "x.cs", said, tmp_path / "x.cs")


def test_truncated_file_is_told_with_both_sizes(tmp_path):
    path = Path(save(tmp_path / "x.cs", make_rows()))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused(path, len(whole), len(whole) - 100, "7 rows")


def test_missing_file_and_folder_are_told(tmp_path):
    refused(tmp_path / "x.cs", "does not exist")
    (tmp_path / "y.cs").mkdir()
    refused(tmp_path / "y.cs", "folder")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_damaged_files_are_refused_or_sound(project, seed):
    """Whatever bytes change: one clear line or particles, without much memory or time."""
    chance = random.Random(seed)
    source = project / "J24" / "whole.cs"
    if not source.exists():
        save(source, make_rows())
    content = bytearray(source.read_bytes())
    rows_at = 10 + int.from_bytes(content[8:10], "little")
    words = [
        b"'O'",
        b"9" * 18,
        b"((((",
        b"\\",
        b"-1",
        b"{",
        b"S0",
        b"\xff" * 4,
        b"\0",
        b"', '",
        b"1if",
        b"\n",
    ]
    for _ in range(chance.choice([1, 1, 2, 8])):
        at = chance.randrange(*chance.choice([(0, 12), (10, rows_at), (rows_at, len(content))]))
        at = min(at, len(content) - 1)
        match chance.randrange(5):
            case 0:
                content[at] = chance.randrange(256)
            case 1:
                word = chance.choice(words)
                content[at : at + len(word)] = word
            case 2:
                content[at:at] = chance.choice(words)
            case 3:
                del content[at : at + chance.choice([1, 1, 8, 60])]
            case 4:
                content[at] ^= 1 << chance.randrange(8)
    path = project / "J24" / "damaged.cs"
    path.write_bytes(content)
    tracemalloc.start()
    begin = time.thread_time()
    try:
        particles = open_particles(str(path))
        assert particles.names[len(particles) - 1].startswith("00000")
        assert particles.ctf is None or all(np.isfinite(column).all() for column in particles.ctf)
        assert len(subset_cs(particles.table.rows, np.arange(len(particles)), {})) == len(particles)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 3e6
    assert time.thread_time() - begin < 5


def calls_to_open(project, n):
    """Number of calls of functions in Python, and in C, that it takes to open so many rows, in any order."""
    rows = make_rows(n)
    rows["uid"] = np.arange(n)
    rows["blob/path"] = np.random.default_rng(0).permutation(rows["blob/path"])
    rows["blob/idx"] %= 3
    path = save(project / "J24" / "x.cs", rows)
    calls, before = dict.fromkeys(("call", "c_call"), 0), sys.getprofile()

    def count(frame, event, argument):
        if event in calls:
            calls[event] += 1

    sys.setprofile(count)
    try:
        particles = open_particles(path)
    finally:
        sys.setprofile(before)
    begin = time.thread_time()
    assert len(particles.names) == len(open_particles(path)) == n
    assert time.thread_time() - begin < 2
    return calls.values()


def test_many_rows_open_quickly(project):
    """A hundred thousand take a fraction of a second, in whatever order their stacks come."""
    few, _ = calls_to_open(project, 1002)
    many, inside = calls_to_open(project, 100_002)
    assert many < 1.1 * few
    assert inside < 2 * 100_002


# Recentring.

ALIGNED = [("alignments2D/shift", "<f4", (2,)), ("alignments2D/psize_A", "<f4"), ("alignments2D/pose", "<f4")]
WHERE = [
    ("location/center_y_frac", "<f4"),
    ("location/micrograph_shape", "<u4", (2,)),
    ("location/micrograph_psize_A", "<f4"),
]
# Row and column in pixels of 1.5 A; the last is unknown, the one before is not kept.
OFFSET = np.array([[2.0, -4.0]] * 5 + [[1.0, 1.0], [np.nan, 1.0]])
KEEP = np.array([True] * 5 + [False, True])


def aligned_rows():
    rows = make_rows(fields=(*BLOB, *CTF, *PLACE, *WHERE, *ALIGNED))
    rows["location/micrograph_shape"], rows["location/micrograph_psize_A"] = (300, 600), 0.75
    rows["location/center_y_frac"] = 0.5
    rows["alignments2D/psize_A"], rows["alignments2D/shift"] = 3, 9
    return rows


def test_shifts_are_minus_the_offset_in_pixels_of_the_alignment(project):
    path = save(project / "J20" / "p.cs", aligned_rows())
    added = recentred(open_particles(path), OFFSET, KEEP)
    assert list(added.fields) == ["alignments2D/shift"] and added.labels == {}
    assert added.fields["alignments2D/shift"].tolist() == [[2, -1]] * 5 + [[9, 9]] * 2
    assert added.fields["alignments2D/shift"].dtype == np.float32


@pytest.mark.parametrize("why", ["no alignment", "alignment of nothing"])
def test_places_move_by_the_offset_where_there_is_no_alignment(project, why):
    rows = aligned_rows()
    rows["alignments2D/psize_A"] = 0
    rows = without(rows, *(name for name, *_ in ALIGNED)) if why == "no alignment" else rows
    added = recentred(open_particles(save(project / "J20" / "p.cs", rows)), OFFSET, KEEP)
    x, y = added.fields["location/center_x_frac"], added.fields["location/center_y_frac"]
    # 4 px of 1.5 A are 8 px of the micrograph, which is 600 px wide and 300 px high.
    np.testing.assert_allclose(x[:5], rows["location/center_x_frac"][:5] - 8 / 600, rtol=1e-6)
    np.testing.assert_allclose(y[:5], 0.5 + 4 / 300, rtol=1e-6)
    assert (x[5:] == rows["location/center_x_frac"][5:]).all() and (y[5:] == 0.5).all()
    assert x.dtype == y.dtype == np.float32


def test_new_values_are_written_where_the_old_ones_stand(project, tmp_path):
    rows = aligned_rows()
    own = without(rows, *(name for name, *_ in (*ALIGNED, *WHERE)))
    order = np.random.default_rng(0).permutation(len(rows))
    through = only(rows[order], "uid", *(name for name, *_ in (*ALIGNED, *WHERE)))
    save(project / "J20" / "P1_J20_passthrough_particles.cs", through)
    particles = open_particles(
        save(project / "J20" / "P1_J20_particles.cs", own),
        passthrough=project / "J20" / "P1_J20_passthrough_particles.cs",
    )
    added = recentred(particles, OFFSET, KEEP)
    particles.table.write_part(tmp_path, "kept", np.array([0, 3, 6]), added)
    assert read_cs(tmp_path / "kept.cs").tobytes() == own[[0, 3, 6]].tobytes()
    written = read_cs(tmp_path / "kept_passthrough.cs")
    assert written.dtype == through.dtype
    shift_of = dict(zip(written["uid"].tolist(), written["alignments2D/shift"].tolist(), strict=True))
    assert shift_of == dict(zip(rows["uid"][[0, 3, 6]].tolist(), [[2, -1], [2, -1], [9, 9]], strict=True))
    assert (written["alignments2D/psize_A"] == 3).all()


def test_what_cannot_say_where_particles_lie_is_refused(project):
    bare = without(aligned_rows(), *(name for name, *_ in (*ALIGNED, *WHERE)))
    with pytest.raises(InputError, match="neither 2D alignments nor location/center_y_frac, location/micro"):
        recentred(open_particles(save(project / "J20" / "p.cs", bare)), OFFSET, KEEP)
    rows = aligned_rows()
    rows["location/micrograph_psize_A"][2], rows["alignments2D/psize_A"] = np.nan, 0
    with pytest.raises(InputError, match="location/micrograph_psize_A must be positive; it is nan"):
        recentred(open_particles(save(project / "J20" / "q.cs", rows)), OFFSET, KEEP)
    with pytest.raises(InputError, match="only the particles of a STAR file or"):
        recentred(open_particles(np.zeros((7, 16, 16), np.float32)), OFFSET, KEEP)


@pytest.mark.parametrize("binning", [1, 2])
def test_picks_move_onto_their_particles(tmp_path, binning):
    """A spot beside each pick lies in the middle once the picks have moved, in micrographs of any binning."""
    width, height, places = 400, 300, np.array([[100, 80], [200, 150], [310, 220]])
    y, x = np.mgrid[:height, :width][..., None]
    spots = np.exp(-((x - places[:, 0]) ** 2 + (y - places[:, 1]) ** 2) / 8)
    pixels = spots.sum(axis=2).astype(np.float32)
    with mrcfile.new(tmp_path / "m.mrc", pixels) as file:
        file.voxel_size = 2.0
    moved = np.array([[4, -6], [-2, 0], [3, 5]])
    rows = np.zeros(3, [("uid", "<u8"), *PLACE, *WHERE])
    rows["uid"], rows["location/micrograph_path"] = [5, 6, 7], b"m.mrc"
    rows["location/micrograph_shape"] = (height * binning, width * binning)
    rows["location/micrograph_psize_A"] = 2.0 / binning
    rows["location/center_x_frac"], rows["location/center_y_frac"] = ((places - moved) / (width, height)).T
    source = (str(tmp_path / "m.mrc"), save(tmp_path / "picks.cs", rows))
    particles = open_particles(source, box=32, invert=False)
    offset = moved[:, ::-1].astype(float)
    for image, (row, column) in zip(particles.read(0, 3), moved[:, ::-1], strict=True):
        assert image[16 + row, 16 + column] == image.max() > 0
    added = recentred(particles, offset, np.ones(3, bool))
    (tmp_path / "kept").mkdir()
    particles.table.write_part(tmp_path, "kept", np.arange(3), added)
    again = open_particles((source[0], str(tmp_path / "kept" / "picks.cs")), box=32, invert=False)
    for image in again.read(0, 3):
        assert image[16, 16] == image.max() > 0
