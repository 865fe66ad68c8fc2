"""Results as files: the same bits back, and nothing from files of anybody else."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastsort import _saved
from fastsort._checks import InputError
from fastsort._saved import SAVED_TYPES, load, save
from fastsort.classify import MapResult
from fastsort.decide.calibrate import GOOD
from fastsort.decide.decoys import JUNK
from fastsort.decide.result import SortResult
from fastsort.decide.verdict import cut_again
from fastsort.images.normalize import PixelStatistics
from fastsort.invariants.filter import InvariantResult
from fastsort.particles.open import open_particles
from fastsort.radial import filter as radial_room
from fastsort.simulate import simulate_particles, write_project
from fastsort.sort import sort_particles
from fastsort.subspaces import filter as subspaces_room
from fastsort.subspaces.mixture import FitTrace, Strength
from fastsort.subspaces.pswf import pswf_basis

OLD = Path(__file__).parent / "data" / "results_0_1_0.npz"
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


@pytest.mark.slow
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
    fields |= {"subspaces": subspaces, "votes": {"radial": radial.score}, "errors": None}
    fields["threshold"] = math.nan
    for value in (radial, subspaces, SortResult(**fields), of_radial[-1], of_subspaces[-1]):
        assert_same(round_trip(tmp_path, value), value)


def types_in(annotation):
    """NamedTuples that a value with this annotation may be or hold."""
    if isinstance(annotation, type) and hasattr(annotation, "_fields"):
        yield annotation
        inner = get_type_hints(annotation).values()
    else:
        inner = get_args(annotation)
    for other in inner:
        yield from types_in(other)


# Results, and what the stages of a run leave in the work folder.
WHOLE = (SortResult, MapResult, radial_room.RadialResult, subspaces_room.SubspaceResult, InvariantResult)


def test_all_that_a_result_may_hold_can_be_saved():
    held = {kind for whole in WHOLE for kind in types_in(whole)}
    assert {FitTrace, Strength, radial_room.LearnedRadial} < held
    places = {f"{kind.__module__}:{kind.__qualname__}" for kind in held}
    missing = sorted(places - set(SAVED_TYPES.values()))
    assert not missing, f"add to SAVED_TYPES in fastsort/_saved.py, under a new name each: {missing}"


def test_every_name_of_a_saved_type_leads_to_one_type():
    assert len(set(SAVED_TYPES.values())) == len(SAVED_TYPES)
    for name, place in SAVED_TYPES.items():
        kind = _saved._saved_type(name)
        assert issubclass(kind, tuple) and f"{kind.__module__}:{kind.__qualname__}" == place, (
            f"SAVED_TYPES in fastsort/_saved.py: {name!r} must say where {kind.__qualname__} stands now"
        )
    for former in _saved._FORMER.values():
        assert set(former.types.values()) <= set(SAVED_TYPES)
        for name, fields in former.fields.items():
            assert set(fields.values()) <= set(_saved._saved_type(name)._fields)


# Files of version 0.1.0.


@pytest.fixture(scope="module")
def old_result():
    """What 0.1.0 made of 60 simulated images; the basis, two thirds of the file, is left out of it."""
    result = load(OLD)
    learned = result.learned.methods.subspaces
    basis = pswf_basis(learned.basis.box, learned.basis.bandlimit)
    assert not learned.basis.functions.any() and basis.functions.shape == learned.basis.functions.shape
    methods = result.learned.methods._replace(subspaces=learned._replace(basis=basis))
    return result._replace(learned=result.learned._replace(methods=methods))


def test_results_of_0_1_0_open(old_result):
    assert type(old_result) is SortResult and old_result.keep.sum() == 32
    assert old_result.threshold == 0.31599875600332245
    assert old_result.score[:2].tolist() == [0.5050907909601746, 1.28852286923498]
    assert old_result.reason[:3].tolist() == ["contamination", "noise", "valid"]
    assert old_result.parameters["duplicate_distance"] == 20
    kinds = tuple(kind for kind in (*JUNK, GOOD) if kind != "picked noise")
    assert tuple(old_result.learned.decoys) == kinds == tuple(old_result.errors.by_kind)
    assert tuple(old_result.errors.n_decoys) == kinds
    strict = cut_again(old_result, fraction=0.3)
    assert strict.keep.sum() == 18 and strict.threshold == -0.7306742597055917
    assert strict.errors.by_kind["noise"].value == pytest.approx(149 / 150)


def test_names_of_0_1_0_lead_to_the_same_values(old_result):
    assert old_result.cut == old_result.threshold and old_result.judge is old_result.learned
    assert old_result.judge.learned is old_result.learned.methods
    assert old_result.judge.learned.radial.radius == pytest.approx(5.0505, abs=1e-4)


def test_results_of_0_1_0_are_written_in_the_format_of_today(old_result, tmp_path):
    assert_same(round_trip(tmp_path, old_result), old_result)
    with np.load(tmp_path / "value") as arrays:
        text = arrays["structure"].tobytes()
    assert json.loads(text)["format"] == _saved.FORMAT and b"fastsort." not in text


@pytest.mark.parametrize("number", [1, 2])
def test_older_files_have_the_reasons_of_methods_in_words(images, tmp_path, number):
    radial = radial_room.radial_filter(images[150:250], 9)._replace(learned=None)
    subspaces = subspaces_room.subspace_filter(images[150:250], describe=False)
    subspaces = subspaces._replace(learned=None, model=None, basis=None)
    rest = {name: getattr(subspaces, name) for name in InvariantResult._fields}
    written = {new: old for old, new in _saved._FORMER[number].types.items()}
    for result in (radial, subspaces, InvariantResult(**rest)):
        assert {"valid", "noise"} <= set(result.reason) and "valid" not in result.suspicion
        save(tmp_path / "value", result)
        with np.load(tmp_path / "value") as file:
            arrays = dict(file)
        value = json.loads(arrays.pop("structure").tobytes())["value"]
        fields = value["fields"]["dict"]
        del fields["suspicion_code"]
        more = ("reason", "suspicion", "centre") if result is radial else ("reason", "suspicion")
        for name in more:
            fields[name], arrays[name] = {"array": name}, getattr(result, name)
        value["named"] = written[value["named"]]
        write(tmp_path / "value", {**whole(value), "format": number}, **arrays)
        found = load(tmp_path / "value")
        assert_same(found, result)
        for name in more:
            assert_same(getattr(found, name), arrays[name])
        arrays["suspicion"][0] = "none"
        write(tmp_path / "value", {**whole(value), "format": number}, **arrays)
        with pytest.raises(InputError, match="'none' is no reason"):
            load(tmp_path / "value")


@pytest.mark.parametrize("number", [2, 3])
def test_older_files_have_the_reasons_of_sorts_in_words(old_result, tmp_path, number):
    save(tmp_path / "value", old_result)
    with np.load(tmp_path / "value") as file:
        arrays = dict(file)
    value = json.loads(arrays.pop("structure").tobytes())["value"]
    fields = value["fields"]["dict"]
    for name in ("reason", "suspicion"):
        del fields[f"{name}_code"]
        fields[name], arrays[name] = {"array": name}, getattr(old_result, name)
    write(tmp_path / "value", {**whole(value), "format": number}, **arrays)
    found = load(tmp_path / "value")
    assert_same(found, old_result)
    assert found.reason_code.dtype == np.int8
    assert_same(found.suspicion, arrays["suspicion"])


def test_images_are_not_sorted_with_what_0_1_0_learned(old_result, tmp_path):
    images, truth = simulate_particles(36, 24, snr=0.4, box=16, ctf=True, seed=21)
    particles = open_particles(write_project(tmp_path / "p", images, truth))
    says = r"version 0\.1\.0.*: sort its images again with this version"
    with pytest.raises(InputError, match=says) as told:
        sort_particles(particles, earlier=old_result, n_jobs=1)
    assert "\n" not in str(told.value)


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
PIXELS = "pixel-statistics"


def test_a_type_that_has_no_name_says_what_to_do(tmp_path):
    with pytest.raises(TypeError, match=r"test_saved.Elsewhere cannot be saved: add a line .* SAVED_TYPES"):
        save(tmp_path / "value", [Elsewhere(1)])


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
            "fastsort.images.normalize:PixelStatistics",
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
        {**whole(1), "format": "2"},
        {**whole(1), "format": 2.5},
        {**whole(1), "format": [2]},
        {**whole({"named": PIXELS, "fields": FIELDS}), "format": 1},
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
    with pytest.raises(InputError, match="value is damaged, or was not written by fastsort: ") as refused:
        load(tmp_path / "value")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("number", [0, -1, _saved.FORMAT + 1, 99])
def test_unknown_formats_are_refused_and_other_versions_are_not(tmp_path, number):
    write(tmp_path / "value", {**whole(1), "format": number})
    with pytest.raises(InputError, match=f"value has format {number}, and this version .* update fastsort"):
        load(tmp_path / "value")
    for version in ("0.0.0", "99.0", "a\nb"):
        write(tmp_path / "value", {**whole(1), "version": version})
        assert load(tmp_path / "value") == 1


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
        with pytest.raises(InputError, match="was not written by fastsort"):
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
