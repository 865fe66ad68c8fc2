"""Results as files: the same bits back, and nothing from files of anybody else."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import zipfile
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastsort import _saved
from fastsort._checks import InputError
from fastsort._saved import load, save
from fastsort.images.normalize import PixelStatistics
from fastsort.radial import filter as radial_room
from fastsort.sort import SortResult
from fastsort.subspaces import filter as subspaces_room
from fastsort.subspaces.mixture import FitTrace, Strength

DTYPES = "?", "i1", "<i2", ">i4", "i8", "u1", "u8", "f2", ">f4", "f8", "c8", ">c16", "U3", ">U2", "S4"


def assert_same(found, given):
    """Assert that two values are of the same types all the way down, with the same bits."""
    assert type(found) is type(given)
    if isinstance(given, dict):
        assert list(found) == list(given)
        found, given = list(found.values()), list(given.values())
    if isinstance(given, (list, tuple)):
        assert len(found) == len(given)
        for one, other in zip(found, given, strict=True):
            assert_same(one, other)
    elif isinstance(given, (np.ndarray, np.generic)):
        assert found.dtype == given.dtype and found.dtype.str == given.dtype.str
        assert found.shape == given.shape and found.tobytes() == given.tobytes()
    elif isinstance(given, float):
        assert found == given or (math.isnan(found) and math.isnan(given))
        assert math.copysign(1, found) == math.copysign(1, given) or math.isnan(given)
    else:
        assert found == given


def round_trip(folder, value):
    save(folder / "value", value)
    assert [path.name for path in folder.iterdir()] == ["value"]
    return load(folder / "value")


arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
)
scalars = st.sampled_from([np.float32(1.5), np.float64(np.nan), np.int8(-3), np.bool_(True), np.str_("ü")])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | arrays | scalars
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        | st.builds(FitTrace, inner, inner, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values)
def test_values_come_back(tmp_path, value):
    assert_same(round_trip(tmp_path, value), value)


@pytest.mark.parametrize(
    "value",
    [
        {"array": "a0"},
        {"named": "os:system", "fields": {"dict": {}}},
        {"structure": np.arange(3), "a0": [np.arange(2)]},
        (("list",), [], (), {}, "", 2**80, -0.0, math.inf, -math.inf, "\udc80", "a\0b"),
        Strength(1.0, 2, None, "x"),
    ],
)
def test_values_that_look_like_the_structure_of_a_file(tmp_path, value):
    assert_same(round_trip(tmp_path, value), value)


def test_arrays_of_any_layout(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4)
    mapped = np.lib.format.open_memmap(tmp_path / "m.npy", "w+", np.int16, (5, 2))
    mapped[:] = np.arange(10).reshape(5, 2)
    value = [array.T, array[:, ::2], array[::-1], np.broadcast_to(array[0], (3, 3, 4)), array[:0]]
    folder = tmp_path / "inside"
    folder.mkdir()
    found = round_trip(folder, [*value, mapped])
    for one, other in zip(found, [*value, np.array(mapped)], strict=True):
        assert type(one) is np.ndarray and one.flags.writeable
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert found[0].flags.f_contiguous


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:36, :36] - 18
    images = rng.normal(size=(300, 36, 36)).astype(np.float32)
    images[:200] += 2 * (y**2 + x**2 < 81)
    return images


def sent_to_workers(monkeypatch, room):
    """NamedTuples that a room gives to its batches, as they come."""
    seen, function = [], room.map_batches

    def spy(task, particles, *arguments, **options):
        seen.extend(argument for argument in arguments if hasattr(argument, "_fields"))
        return function(task, particles, *arguments, **options)

    monkeypatch.setattr(room, "map_batches", spy)
    return seen


def test_results_and_models_of_the_methods(images, tmp_path, monkeypatch):
    of_radial = sent_to_workers(monkeypatch, radial_room)
    of_subspaces = sent_to_workers(monkeypatch, subspaces_room)
    radial = radial_room.radial_filter(images, 9)
    subspaces = subspaces_room.subspace_filter(images)
    assert of_radial and of_subspaces
    fields = dict.fromkeys(SortResult._fields, np.arange(3.0))
    fields |= {"subspaces": subspaces, "votes": {"radial": radial.score}, "errors": None, "cut": math.nan}
    for value in (radial, subspaces, SortResult(**fields), of_radial[-1], of_subspaces[-1]):
        assert_same(round_trip(tmp_path, value), value)


class Elsewhere(NamedTuple):
    number: int


class Text(str):
    pass


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        b"bytes",
        1j,
        {1: "a number as a key"},
        {Text("a"): 1},
        Text("a"),
        Elsewhere(1),
        print,
        np.array([None]),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.zeros(2, dtype="i4,f4"),
        np.ma.masked_array([1, 2], [True, False]),
        [1, (2, {"deep": slice(3)})],
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_refused(tmp_path, value):
    save(tmp_path / "value", "before")
    with pytest.raises(TypeError, match=r"cannot be saved|can be saved only"):
        save(tmp_path / "value", value)
    assert load(tmp_path / "value") == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["savez", "fsync", "replace"])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, name):
    save(tmp_path / "value", "before")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_saved.np if name == "savez" else _saved.os, name, fail)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "value", np.arange(5))
    assert load(tmp_path / "value") == "before" and len(list(tmp_path.iterdir())) == 1


def write(path, structure, **arrays):
    """A file of the right kind with any structure."""
    text = structure if isinstance(structure, bytes) else json.dumps(structure).encode()
    with open(path, "wb") as file:
        np.savez(file, structure=np.frombuffer(text, np.uint8), **arrays)


def whole(value):
    return {"format": _saved.FORMAT, "version": _saved.__version__, "value": value}


FIELDS = {"dict": {"codes": 1, "mean": 2, "std": 3}}
PIXELS = "fastsort.images.normalize:PixelStatistics"


def test_files_made_by_hand_are_what_the_next_tests_take_them_for(tmp_path):
    write(tmp_path / "value", whole({"named": PIXELS, "fields": FIELDS}))
    assert_same(load(tmp_path / "value"), PixelStatistics(1, 2, 3))


@pytest.mark.parametrize(
    "structure",
    [
        whole({"named": name, "fields": FIELDS})
        for name in (
            "os:system",
            "builtins:print",
            "collections:Counter",
            "fastsort.images.normalize:np.save",
            "fastsort.images.normalize:inspect_pixels",
            "fastsort.images.normalize:PixelStatistics._make",
            "fastsort.images.prepare:PixelStatistics",
            "fastsort.images.prepare:os.path.join",
            "fastsort.particles.source:Particles",
            "fastsort.__main__:main",
            "fastsort.no_such:Thing",
            "fastsort.images.normalize:Nothing",
            "fastsort_evil:Thing",
            "fastsort/../evil:Thing",
            "fastsort.images.normalize:",
            "",
        )
    ]
    + [
        whole({"named": PIXELS, "fields": {"dict": {"codes": 1, "mean": 2}}}),
        whole({"named": PIXELS, "fields": {"dict": {**FIELDS["dict"], "more": 1}}}),
        whole({"named": PIXELS, "fields": [1, 2, 3]}),
        whole({"named": PIXELS}),
        whole({"array": "a7"}),
        whole({"array": 3}),
        whole({"call": "print"}),
        whole({"list": [1], "tuple": [2]}),
        whole({}),
        whole([1, 2]),
        {**whole(1), "format": 99},
        {**whole(1), "version": "0.0.0"},
        {"value": 1},
        [],
        3,
        b"{",
        b"\xff",
        b"[" * 100_000,
    ],
    ids=lambda structure: str(structure)[-60:-1],
)
def test_foreign_structures_are_refused(tmp_path, structure):
    write(tmp_path / "value", structure)
    with pytest.raises(InputError, match="value was not written by this version of fastsort: ") as refused:
        load(tmp_path / "value")
    assert "\n" not in str(refused.value)


def test_a_file_cannot_have_anything_imported_or_unpickled(tmp_path, monkeypatch):
    (tmp_path / "fastsort_evil.py").write_text("raise SystemExit('imported')")
    write(tmp_path / "one", whole({"named": "fastsort_evil:Thing", "fields": FIELDS}))
    write(tmp_path / "two", whole({"named": "fastsort.__main__:main", "fields": FIELDS}))
    write(tmp_path / "three", whole({"array": "a0"}), a0=np.array([print], dtype=object))
    code = (
        "import sys\n"
        "from fastsort._saved import load\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        load(name)\n"
        "    except ValueError as error:\n        assert 'not written by' in str(error)\n"
        "    else:\n        raise AssertionError(name)\n"
        "assert not {'fastsort_evil', 'fastsort.__main__', 'fastsort.cli', 'pickle'} & "
        "(set(sys.modules) - before)\n"
    ).replace("import sys\n", "import sys, numpy, pickle\nbefore = set(sys.modules)\n", 1)
    monkeypatch.syspath_prepend(tmp_path)
    names = [str(tmp_path / name) for name in ("one", "two", "three")]
    root = _saved.__file__.rsplit("/fastsort/", 1)[0]
    environment = {"PYTHONPATH": f"{tmp_path}:{root}"}
    done = subprocess.run([sys.executable, "-c", code, *names], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_files_of_others_and_none_at_all(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello\n")
    np.save(tmp_path / "array.npy", np.arange(3))
    np.savez(tmp_path / "arrays.npz", a=np.arange(3))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("structure.npy", "no array")
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match="was not written by this version of fastsort"):
            load(path)
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(InputError, match="a folder"):
        load(tmp_path)


def test_damaged_files_are_refused_or_unharmed(tmp_path):
    value = {"a": np.arange(6, dtype=np.float32), "b": FitTrace(np.ones(2), "text", None)}
    save(tmp_path / "value", value)
    whole = (tmp_path / "value").read_bytes()
    path = tmp_path / "damaged"
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="was not written by"):
            load(path)
    # Some bytes of a zip file mean nothing; all those that count are guarded by a checksum.
    refused = 0
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = load(path)
        except InputError:
            refused += 1
        else:
            assert_same(found, value)
    assert refused > len(whole) / 9
    assert io.BytesIO(whole).read(2) == b"PK"
