"""Results as files: nested tuples of arrays, written whole or not at all and read back bit for bit.

A file holds data alone. Reading one never runs anything that it names: the only types that it can ask
for are those of the table below.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from operator import index
from typing import Any, NamedTuple

import numpy as np

from fastsort._checks import InputError, check_readable
from fastsort._disk import on_disk
from fastsort._reasons import reason_codes
from fastsort._types import Array, FilePath
from fastsort._version import __version__

# Where the types stand that a file can hold, by the names that files have for them. A type may move or be
# renamed: its line changes here, and files do not. A new field with a default has it in files without the
# field. What else changes its fields needs another format, and a line in `_FORMER` that says what they were.
SAVED_TYPES = {
    "sort-result": "fastsort.decide.result:SortResult",
    "estimated-errors": "fastsort.decide.decoys:EstimatedErrors",
    "estimate": "fastsort.decide.decoys:Estimate",
    "views": "fastsort.decide.rescue:Views",
    "learned-verdict": "fastsort.decide.votes:LearnedVerdict",
    "learned-reasons": "fastsort.decide.reasons:LearnedReasons",
    "learned-methods": "fastsort.decide.votes:LearnedMethods",
    "radial-result": "fastsort.radial.filter:RadialResult",
    "learned-radial": "fastsort.radial.learn:LearnedRadial",
    "radial-template": "fastsort.radial.template:RadialTemplate",
    "discriminant": "fastsort.radial.discriminant:Discriminant",
    "subspace-result": "fastsort.subspaces.filter:SubspaceResult",
    "learned-shapes": "fastsort.subspaces.learn:LearnedShapes",
    "shape": "fastsort.subspaces.shapes:Shape",
    "pswf-basis": "fastsort.subspaces.pswf:PswfBasis",
    "subspace-model": "fastsort.subspaces.mixture:SubspaceModel",
    "fit-trace": "fastsort.subspaces.mixture:FitTrace",
    "strength": "fastsort.subspaces.mixture:Strength",
    "model-arrays": "fastsort.subspaces.mixture:ModelArrays",
    "standardized-model": "fastsort.subspaces.scores:StandardizedModel",
    "invariant-result": "fastsort.invariants.filter:InvariantResult",
    "learned-invariants": "fastsort.invariants.filter:LearnedInvariants",
    "learned-classes": "fastsort.invariants.filter:LearnedClasses",
    "class-model": "fastsort.invariants.expectation:ClassModel",
    "bulk": "fastsort._bulk:Bulk",
    "pick-result": "fastsort.pick:PickResult",
    "micrograph-picks": "fastsort.pick:MicrographPicks",
    "learned-picks": "fastsort.picking.learn:LearnedPicks",
    "pick-template": "fastsort.picking.template:Template",
    "pick-limits": "fastsort.picking.contamination:Limits",
    "pick-mixture": "fastsort.picking.mixture:Mixture",
    "pick-averages": "fastsort.picking.averages:Averages",
    "pick-gaussian": "fastsort.picking.mixture:Gaussian",
    "map-result": "fastsort.classify:MapResult",
    "denoised-classes": "fastsort.classify:DenoisedClasses",
    "classification": "fastsort.invariants.classes:Classification",
    "class-ranking": "fastsort.invariants.ranking:ClassRanking",
    "class-averages": "fastsort.invariants.averages:ClassAverages",
    "particle-map": "fastsort.invariants.map:ParticleMap",
    "pixel-statistics": "fastsort.images.normalize:PixelStatistics",
}
FORMAT = 4
_STRUCTURE = "structure"
_KINDS = "biufcSU"


class _Former(NamedTuple):
    """What an earlier format called things.

    Attributes
    ----------
    types : dict of str to str
        Names of types, and what they are called now.
    fields : dict of str to dict of str to str
        For types as they are called now: fields that had other names, and what they are called now.
    keys : dict of str to str
        The same of keys in dicts.
    words : dict of str to dict of str to str
        For types as they are called now: fields with reasons in words, and the fields that have codes now.
    implied : dict of str to tuple of str
        For types as they are called now: fields in files that follow from the others now.
    """

    types: dict[str, str]
    fields: dict[str, dict[str, str]]
    keys: dict[str, str]
    words: dict[str, dict[str, str]]
    implied: dict[str, tuple[str, ...]]


# Results of sorts had reasons in words up to format 3, and those of the methods up to format 2.
_WORDS_OF_SORTS = {"sort-result": {"reason": "reason_code", "suspicion": "suspicion_code"}}
_WORDS = _WORDS_OF_SORTS | {
    name: {"suspicion": "suspicion_code"} for name in ("radial-result", "subspace-result", "invariant-result")
}
_IMPLIED = {
    "radial-result": ("reason", "centre"),
    "subspace-result": ("reason",),
    "invariant-result": ("reason",),
}


# Files of version 0.1.0 name the modules in which the types stood.
_FORMER = {
    1: _Former(
        types={
            "fastsort.sort:SortResult": "sort-result",
            "fastsort.decide.decoys:EstimatedErrors": "estimated-errors",
            "fastsort.decide.decoys:Estimate": "estimate",
            "fastsort.decide.rescue:Views": "views",
            "fastsort.decide.votes:Judge": "learned-verdict",
            "fastsort.decide.votes:Learned": "learned-methods",
            "fastsort.radial.filter:RadialResult": "radial-result",
            "fastsort.radial.filter:LearnedRadial": "learned-radial",
            "fastsort.radial.template:RadialTemplate": "radial-template",
            "fastsort.radial.discriminant:Discriminant": "discriminant",
            "fastsort.subspaces.filter:SubspaceResult": "subspace-result",
            "fastsort.subspaces.filter:LearnedShapes": "learned-shapes",
            "fastsort.subspaces.shapes:Shape": "shape",
            "fastsort.subspaces.pswf:PswfBasis": "pswf-basis",
            "fastsort.subspaces.mixture:SubspaceModel": "subspace-model",
            "fastsort.subspaces.mixture:FitTrace": "fit-trace",
            "fastsort.subspaces.mixture:Strength": "strength",
            "fastsort.subspaces.mixture:Stack": "model-arrays",
            "fastsort.subspaces.scores:Prepared": "standardized-model",
            "fastsort.invariants.filter:InvariantResult": "invariant-result",
            "fastsort.invariants.filter:LearnedInvariants": "learned-invariants",
            "fastsort._bulk:Bulk": "bulk",
        },
        fields={
            "sort-result": {"cut": "threshold", "judge": "learned"},
            "learned-verdict": {"learned": "methods"},
            "radial-result": {"cut": "threshold"},
            "learned-radial": {"height": "typical_height", "second": "second_height"},
            "standardized-model": {"model": "arrays"},
            "subspace-result": {"cut": "threshold"},
            "invariant-result": {"cut": "threshold"},
        },
        # A kind of decoys.
        keys={"surroundings": "background"},
        words=_WORDS,
        implied=_IMPLIED,
    ),
    2: _Former(
        types={name: name for name in SAVED_TYPES}, fields={}, keys={}, words=_WORDS, implied=_IMPLIED
    ),
    3: _Former({name: name for name in SAVED_TYPES}, {}, {}, _WORDS_OF_SORTS, {}),
    FORMAT: _Former({name: name for name in SAVED_TYPES}, {}, {}, {}, {}),
}


def save(path: FilePath, value: Any) -> None:
    """Write a value to a file, which appears under its name only when it is complete.

    Parameters
    ----------
    path : path
        Replaced if it is there. Until then the file grows beside it, as ``path.partial``.
    value
        Made of the NamedTuples in `SAVED_TYPES`, dicts with str as keys, tuples, lists, arrays and NumPy
        scalars of numbers, bool or text, float, int, bool, str and None.

    Raises
    ------
    TypeError
        When something else is in it.
    OSError
        When the disk refuses; no file is left behind.
    """
    arrays: dict[str, Array] = {}
    structure = {"format": FORMAT, "version": __version__, "value": _encode(value, arrays)}
    arrays[_STRUCTURE] = np.frombuffer(json.dumps(structure).encode(), dtype=np.uint8)
    partial = f"{os.fspath(path)}.partial"
    try:
        with on_disk(path), open(partial, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def load(path: FilePath) -> Any:
    """Read what `save` has written.

    Parameters
    ----------
    path : path

    Returns
    -------
    value
        Equal to the one saved: types, shapes and bits. Arrays are owned and writable, in C order
        unless they were Fortran-ordered.

    Raises
    ------
    InputError
        When the file cannot be read, is damaged, was written by something else, or has a format that
        this version does not know.
    """
    with check_readable(path) as file:
        # A damaged file makes the readers underneath raise nearly anything.
        try:
            with np.load(file, allow_pickle=False) as arrays:
                structure = json.loads(arrays[_STRUCTURE].tobytes())
                written = index(structure["format"])
                if written in _FORMER:
                    return _decode(structure["value"], arrays, _FORMER[written])
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{os.fspath(path)} is damaged, or was not written by fastsort: {text}: "
                "remove it, and make it again."
            ) from None
    raise InputError(
        f"{os.fspath(path)} has format {written}, and this version of fastsort, {__version__}, reads formats "
        f"up to {FORMAT}: update fastsort."
    )


def kind_of(path: FilePath) -> str | None:
    """Return the name, as in `SAVED_TYPES`, of what a file holds; None where that cannot be told.

    Parameters
    ----------
    path : path
        No array in it is read.
    """
    # As in `load`, which says what is wrong.
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            written = json.loads(arrays[_STRUCTURE].tobytes())["value"]["named"]
    except Exception:
        return None
    return written if isinstance(written, str) else None


def _encode(value: Any, arrays: dict[str, Array]) -> Any:
    """Return a value as JSON can hold it, its arrays laid aside."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, np.generic) or kind in (np.ndarray, np.memmap):
        if value.dtype.kind not in _KINDS:
            raise TypeError(f"an array of {value.dtype} cannot be saved.")
        place = f"a{len(arrays)}"
        arrays[place] = np.asarray(value)
        return {"scalar" if isinstance(value, np.generic) else "array": place}
    if kind in (list, tuple):
        return {kind.__name__: [_encode(item, arrays) for item in value]}
    if kind is dict:
        if not all(type(key) is str for key in value):
            raise TypeError("a dict can be saved only if all its keys are str.")
        return {"dict": {key: _encode(item, arrays) for key, item in value.items()}}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        fields = dict(zip(kind._fields, value, strict=True))
        return {"named": _saved_name(kind), "fields": _encode(fields, arrays)}
    raise TypeError(f"a {kind.__module__}.{kind.__qualname__} cannot be saved.")


def _saved_name(kind: type) -> str:
    """Return the name that files have for a type."""
    place = f"{kind.__module__}:{kind.__qualname__}"
    for name, registered in SAVED_TYPES.items():
        if registered == place and _saved_type(name) is kind:
            return name
    raise TypeError(
        f"a {kind.__module__}.{kind.__qualname__} cannot be saved: "
        f'add a line "its-name": "{place}" to SAVED_TYPES in fastsort/_saved.py.'
    )


def _saved_type(name: str) -> Any:
    """Return the type that files have a name for."""
    module, _, qualname = SAVED_TYPES[name].partition(":")
    return getattr(importlib.import_module(module), qualname)


def _decode(node: Any, arrays: Mapping[str, Array], former: _Former) -> Any:
    if not isinstance(node, dict):
        if isinstance(node, list):
            raise ValueError("its structure is unknown")
        return node
    match node:
        case {"array": str(place), **rest} if not rest:
            return _array(arrays, place)
        case {"scalar": str(place), **rest} if not rest:
            return _array(arrays, place)[()]
        case {"list": list(items), **rest} if not rest:
            return [_decode(item, arrays, former) for item in items]
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_decode(item, arrays, former) for item in items)
        case {"dict": dict(items), **rest} if not rest:
            keys = _renamed(items, former.keys)
            return {keys[key]: _decode(item, arrays, former) for key, item in items.items()}
        case {"named": str(written), "fields": {"dict": dict(items)}, **rest} if not rest:
            if written not in former.types:
                raise ValueError(f"it names {written!r}, which is no result of fastsort")
            name = former.types[written]
            keys = _renamed(items, former.fields.get(name, {}))
            fields = {keys[key]: _decode(item, arrays, former) for key, item in items.items()}
            for field in former.implied.get(name, ()):
                del fields[field]
            for words, codes in former.words.get(name, {}).items():
                fields[codes] = reason_codes(fields.pop(words))
            kind = _saved_type(name)
            # A field with a default is younger than the type, so files may lack it.
            odd = (set(fields) ^ set(kind._fields)) - set(kind._field_defaults)
            if odd:
                raise ValueError(f"it has a {written} with or without {min(odd)}, unlike this version")
            return kind(**fields)
    raise ValueError("its structure is unknown")


def _renamed(items: dict[str, Any], names: dict[str, str]) -> dict[str, str]:
    """Return what keys are called now."""
    return {key: names.get(key, key) for key in items}


def _array(arrays: Mapping[str, Array], place: str) -> Array:
    array = arrays[place]
    if not isinstance(array, np.ndarray):  # NumPy gives the bytes of what does not begin as an array
        raise ValueError(f"its array {place} is damaged")
    return array
