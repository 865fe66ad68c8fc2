"""Results as files: nested tuples of arrays, written whole or not at all and read back bit for bit.

A file holds data alone. Reading one never runs anything that it names: the only types that it can ask
for are the NamedTuples of this package.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_readable
from fastsort._version import __version__

FORMAT = 1
_STRUCTURE = "structure"
_KINDS = "biufcSU"
_NAME = re.compile(r"(fastsort(?:\.[a-z_]\w*)*):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)", re.ASCII)


def save(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value to a file, which appears under its name only when it is complete.

    Parameters
    ----------
    path : path
        Replaced if it is there. Until then the file grows beside it, as ``path.partial``.
    value
        Made of NamedTuples of this package, dicts with str as keys, tuples, lists, arrays and NumPy
        scalars of numbers, bool or text, float, int, bool, str and None.

    Raises
    ------
    TypeError
        When something else is in it.
    OSError
        When the disk refuses; no file is left behind.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    structure = {"format": FORMAT, "version": __version__, "value": _encode(value, arrays)}
    arrays[_STRUCTURE] = np.frombuffer(json.dumps(structure).encode(), dtype=np.uint8)
    partial = f"{os.fspath(path)}.partial"
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def load(path: str | os.PathLike[str]) -> Any:
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
        When the file cannot be read, is damaged, or was written by something else.
    """
    with check_readable(path) as file:
        # A damaged file makes the readers underneath raise nearly anything.
        try:
            with np.load(file, allow_pickle=False) as arrays:
                structure = json.loads(arrays[_STRUCTURE].tobytes())
                written = structure["format"], structure["version"]
                if written != (FORMAT, __version__):
                    raise ValueError(f"it is of version {written[1]}, this is {__version__}")
                return _decode(structure["value"], arrays)
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{os.fspath(path)} was not written by this version of fastsort: {text}: "
                "remove it, and make it again."
            ) from None


def _encode(value: Any, arrays: dict[str, npt.NDArray[Any]]) -> Any:
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
        name = f"{kind.__module__}:{kind.__qualname__}"
        try:
            findable = _named_tuple(name) is kind
        except (ValueError, ImportError, AttributeError):
            findable = False
        if findable:
            return {"named": name, "fields": _encode(dict(zip(kind._fields, value, strict=True)), arrays)}
    raise TypeError(f"a {kind.__module__}.{kind.__qualname__} cannot be saved.")


def _decode(node: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
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
            return [_decode(item, arrays) for item in items]
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_decode(item, arrays) for item in items)
        case {"dict": dict(items), **rest} if not rest:
            return {key: _decode(item, arrays) for key, item in items.items()}
        case {"named": str(name), "fields": {"dict": dict(items)}, **rest} if not rest:
            kind = _named_tuple(name)
            odd = set(items) ^ set(kind._fields)
            if odd:
                raise ValueError(f"{name} with or without {min(odd)} is not the one that is known")
            return kind(**{key: _decode(item, arrays) for key, item in items.items()})
    raise ValueError("its structure is unknown")


def _array(arrays: Mapping[str, npt.NDArray[Any]], place: str) -> npt.NDArray[Any]:
    array = arrays[place]
    if not isinstance(array, np.ndarray):  # NumPy gives the bytes of what does not begin as an array
        raise ValueError(f"its array {place} is damaged")
    return array


def _named_tuple(name: str) -> Any:
    """Return the NamedTuple class of this package that is called ``module:qualname``."""
    match = _NAME.fullmatch(name)
    # What stands in a __main__ runs when it is imported.
    if match is None or match[1].endswith("__main__"):
        raise ValueError(f"it names {name!r}, which is no result of fastsort")
    found: Any = importlib.import_module(match[1])
    for attribute in match[2].split("."):
        found = getattr(found, attribute)
    is_class = isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")
    if not is_class or found.__module__ != match[1]:
        raise ValueError(f"it names {name!r}, which is no result of fastsort")
    return found
