"""The files of cryoSPARC: NumPy's format, read without trust and written byte for byte; CSDAT is read."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from io import BufferedReader
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_readable
from fastsort._types import Array, FilePath
from fastsort.particles.csdat import MAGIC, read_csdat

_MAGIC = b"\x93NUMPY"
_EARLIER_MAGIC = b"\x94CSDAT"
_MAX_HEADER = 1 << 18
_MAX_NESTING = 16
# All that NumPy writes into a header, Python 2 included. What Python's parser warns of is not among it.
_TOKEN = re.compile(r"""[ \n,:(){}\[\]]|-?\d{1,19}L?(?!\w)|True|False|'[^'\\\n\r\0]*'|"[^"\\\n\r\0]*\"""")
_NUMBERS_OR_TEXT = re.compile(r"[<>|=]?(?:[biufc]\d{1,2}|\?|[SUV]\d{1,9})")

Rows: TypeAlias = npt.NDArray[Any]
"""A structured array: one row a particle."""


def read_cs(path: FilePath) -> Rows:
    """Read a cryoSPARC dataset.

    Nothing in the file is trusted: no object is unpickled, and no memory is taken
    for rows that the file does not hold.

    Parameters
    ----------
    path : path
        A structured array as NumPy writes it, of any version of its format; or a compressed one (CSDAT), as
        cryosparc-tools 5 writes it.

    Returns
    -------
    rows : structured ndarray, shape (n,)
        Owned; every field as it stands.

    Raises
    ------
    InputError
        When the file cannot be read, is no dataset, holds Python objects, or has
        not the size that its header promises.
    """
    with check_readable(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.peek(len(MAGIC))[: len(MAGIC)] == MAGIC:
            return read_csdat(memoryview(file.read()), path)
        dtype, n_rows = _read_layout(file, path, size)
        promised = file.tell() + n_rows * dtype.itemsize
        if size != promised:
            wrong = "ends early" if size < promised else "goes on after its last row"
            raise InputError(
                f"{path} {wrong}: its header promises {promised} bytes ({n_rows} rows of {dtype.itemsize}), "
                f"but the file has {size}: copy or export it again."
            )
        rows = np.fromfile(file, dtype, n_rows) if n_rows else np.zeros(0, dtype)
    if len(rows) != n_rows:
        raise InputError(f"{path} has become shorter while it was read: copy or export it again.")
    return rows


def _read_layout(file: BufferedReader, path: FilePath, size: int) -> tuple[np.dtype[Any], int]:
    """Return what a row looks like and how many there are; the file stands at the first row then."""
    start = file.read(len(_MAGIC) + 2)
    if start.startswith(_EARLIER_MAGIC):
        raise InputError(
            f"{path} is compressed as an earlier cryosparc-tools than 5 does (CSDAT): load it with that one, "
            "and save it with format=NUMPY_FORMAT."
        )
    if not start.startswith(_MAGIC) or len(start) < len(_MAGIC) + 2:
        raise InputError(
            f"{path} is not a cryoSPARC dataset ({size} bytes, which do not begin as those of a NumPy file): "
            "give the .cs file of a particle job."
        )
    version = start[-2]
    if version not in (1, 2, 3):
        raise InputError(f"{path} has version {version} of NumPy's format; 1, 2 and 3 can be read.")
    length = int.from_bytes(file.read(2 if version == 1 else 4), "little")
    if length > min(_MAX_HEADER, size - file.tell()):
        raise InputError(
            f"{path} is damaged: its header promises to be {length} bytes long, "
            f"and the file has {size} bytes (a header has at most {_MAX_HEADER}): copy or export it again."
        )
    header = file.read(length)
    try:
        layout = _parse(header.decode("utf-8" if version == 3 else "latin-1"))
        descr, shape = layout["descr"], layout["shape"]
        objects = _check_types(descr)
        dtype = np.dtype(np.void) if objects else np.lib.format.descr_to_dtype(descr)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError):
        raise InputError(
            f"{path} is damaged: the header that describes its rows makes no sense: copy or export it again."
        ) from None
    if objects:
        raise InputError(
            f"{path} holds pickled Python objects, which could run any program when they are read: "
            "save it with fields of numbers and text alone."
        )
    if not dtype.names:
        raise InputError(
            f"{path} is a plain array of {dtype}, not a table with named fields: "
            "give the .cs file of a particle job."
        )
    whole = isinstance(shape, tuple) and all(type(count) is int and count >= 0 for count in shape)
    if not whole or len(shape) != 1 or dtype.itemsize == 0:
        raise InputError(
            f"{path} is not a list of particles: its header promises an array of shape "
            f"{repr(shape)[:80]} with {dtype.itemsize} bytes a row: copy or export it again."
        )
    return dtype, shape[0]


def _parse(text: str) -> Any:
    tokens = _TOKEN.findall(text)
    if sum(map(len, tokens)) != len(text):
        raise ValueError("a header holds names, numbers and brackets alone")
    nesting = accumulate((token in "([{") - (token in ")]}") for token in tokens)
    if max(nesting, default=0) > _MAX_NESTING:
        raise ValueError("no header is nested like this")
    # Python 2 wrote 2019L.
    return ast.literal_eval(
        "".join(token[:-1] if re.fullmatch(r"-?\d+L", token) else token for token in tokens)
    )


def _check_types(descr: Any) -> bool:
    """Refuse types that are not numbers or text; return whether there are Python objects."""
    if isinstance(descr, str):
        if descr.lstrip("<>|=").startswith("O"):
            return True
        if not _NUMBERS_OR_TEXT.fullmatch(descr):
            raise ValueError(descr)
        return False
    if not isinstance(descr, list):
        raise TypeError(descr)
    objects = False
    for names, kind, *shape in descr:
        # NumPy would write them as escapes, which are not read.
        if not "".join(names).isprintable():
            raise ValueError(names)
        if any(
            not isinstance(sides, tuple) or any(type(side) is not int for side in sides) for sides in shape
        ):
            raise TypeError(shape)
        objects |= _check_types(kind)
    return objects


def subset_cs(rows: Rows, chosen: npt.ArrayLike, fields: Mapping[str, Array]) -> Rows:
    """Return some rows of a dataset, with further fields.

    Parameters
    ----------
    rows : structured ndarray, shape (n,)
        The whole dataset.
    chosen : array of int, shape (m,)
        Which rows, counted from 0; they are kept in the order of the file.
    fields : mapping of str to ndarray, shape (n, ...)
        One entry for each particle of the whole dataset. Truth is written as 0 and 1,
        text as UTF-8 bytes and half precision as single, which are the types that
        cryoSPARC knows.

    Returns
    -------
    some : structured ndarray, shape (m,)
        The fields of the file as they stand, then the further ones. A field that the
        file has already keeps its type if that can hold the new values, and its place.

    Raises
    ------
    ValueError
        When a field does not have one entry for each particle.
    IndexError
        When there is no such row.
    """
    kept = np.sort(np.asarray(chosen, dtype=np.intp))
    added = {name: _storable(np.asarray(values)) for name, values in fields.items()}
    for name, values in added.items():
        if values.ndim == 0 or len(values) != len(rows):
            raise ValueError(f"{name} must have {len(rows)} entries; got shape {values.shape}.")
    stored = rows.dtype
    new = {name: values for name, values in added.items() if not _can_hold(stored, name, values)}
    entries: list[Any] = [
        (entry[0], new[name].dtype.str, new[name].shape[1:])
        if (name := entry[0][-1] if isinstance(entry[0], tuple) else entry[0]) in new
        else entry
        for entry in stored.descr
    ]
    entries += [
        (name, values.dtype.str, values.shape[1:])
        for name, values in new.items()
        if name not in (stored.names or ())
    ]
    some = np.zeros(len(kept), np.lib.format.descr_to_dtype(entries))
    for name in some.dtype.names or ():
        some[name] = added[name][kept] if name in added else rows[name][kept]
    return some


def _storable(values: Array) -> Array:
    if values.dtype.kind == "U":
        return np.char.encode(values, "utf-8", "surrogateescape")
    kinds = {"?": np.uint8, "e": np.float32}
    return values.astype(kinds.get(values.dtype.char, values.dtype))


def _can_hold(stored: np.dtype[Any], name: str, values: Array) -> bool:
    """Whether a field is there and can take these values; rounding of real numbers is no loss."""
    if name not in (stored.names or ()):
        return False
    base, shape = stored[name].base, stored[name].shape
    both_real = base.kind == values.dtype.kind == "f"
    return shape == values.shape[1:] and (both_real or np.can_cast(values.dtype, base, "safe"))


def write_cs(
    path: FilePath,
    rows: Rows,
    chosen: npt.ArrayLike,
    fields: Mapping[str, Array],
) -> None:
    """Write some rows of a dataset, with further fields, as a .cs file.

    Parameters
    ----------
    path : path
        The file to write or to replace; it appears under its name when it is complete.
    rows, chosen, fields
        As `subset_cs` takes them.

    Raises
    ------
    OSError
        When the disk refuses; no file is left behind.
    """
    some = subset_cs(rows, chosen, fields)
    partial = f"{os.fspath(path)}.{os.getpid()}.partial"
    try:
        with open(partial, "wb") as file:
            np.lib.format.write_array(file, some, _format_version(some.dtype), allow_pickle=False)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def _format_version(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the oldest version of NumPy's format that can describe the rows: asked for, it does not warn."""
    described = repr(dtype.descr)
    if not described.isascii():
        return (3, 0)
    # A little is left for the other parts of the header.
    return (1, 0) if len(described) < (1 << 16) - 1024 else (2, 0)
