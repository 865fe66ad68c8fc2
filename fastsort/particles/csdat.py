"""CSDAT, the compressed files of cryoSPARC: a header in JSON, a block a field, and all text at the end.

A block is the field's bytes, row after row, as they are or in LZ4's block format. Of a text field it has
where each text begins in the last part of the file, as 64-bit numbers; a zero ends each text.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError
from fastsort._jit import kernel
from fastsort._types import FilePath

MAGIC = b"\x95CSDAT"
_NUMBER = re.compile(r"[<|=]?(?:[iuf][1248]|c8|c16)")
_MAX_SIDE = 1 << 16
_MAX_SIDES = 3
# LZ4 repeats at most 255 bytes for one that is stored, so that a longer promise is none.
_MOST = 255


def read_csdat(content: memoryview, path: FilePath) -> npt.NDArray[Any]:
    """Return the rows of a compressed dataset.

    Parameters
    ----------
    content : memoryview
        The whole file.
    path : path
        For messages.

    Returns
    -------
    rows : structured ndarray, shape (n,)
        Text as bytes, with room for a zero after the longest one, as cryosparc-tools converts it.

    Raises
    ------
    InputError
        When the file is damaged; no memory is taken for rows that it cannot hold.
    """
    try:
        return _read(content)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, UnicodeError) as error:
        raise InputError(f"{path} is damaged ({error}): copy or export it again.") from None


def _read(content: memoryview) -> npt.NDArray[Any]:
    place = len(MAGIC)
    text, place = _block(content, place)
    header = json.loads(bytes(text))
    n_rows, described = header["length"], [_field(*entry) for entry in header["dtype"]]
    compressed = header["compressed_fields"] if header["compression"] is not None else []
    if header["compression"] not in (None, "lz4"):
        raise ValueError(f"it is compressed with {str(header['compression'])[:20]!r}, and LZ4 alone is read")
    if type(n_rows) is not int or n_rows < 0 or len({name for name, _, _ in described}) != len(described):
        raise ValueError("its header makes no sense")
    columns: list[npt.NDArray[Any]] = []
    for name, kind, shape in described if n_rows else []:
        stored, place = _block(content, place)
        size = n_rows * kind.itemsize * int(np.prod(shape, dtype=np.int64))
        if name in compressed:
            if size > _MOST * len(stored):
                raise ValueError(f"{name} is too short for {n_rows} rows")
            unpacked = np.empty(size, np.uint8)
            if _unpack(np.frombuffer(stored, np.uint8), unpacked) != size:
                raise ValueError(f"the block of {name} cannot be unpacked")
        elif len(stored) == size:
            unpacked = np.frombuffer(stored, np.uint8)
        else:
            raise ValueError(f"{name} has {len(stored)} bytes for {n_rows} rows")
        columns.append(unpacked.view(kind).reshape(n_rows, *shape))
    heap = bytes(content[place:])
    texts = [entry[0] for entry in header["dtype"] if str(entry[1]).endswith("O")]
    for number, (name, _, _) in enumerate(described):
        if name in texts and n_rows:
            columns[number] = _texts(columns[number], heap, name)
    if not n_rows:
        columns = [np.zeros((0, *shape), "S1" if name in texts else kind) for name, kind, shape in described]
    layout = [
        (name, own.dtype.str, own.shape[1:]) for (name, _, _), own in zip(described, columns, strict=True)
    ]
    rows = np.empty(n_rows, np.dtype(layout))
    for (name, _, _), own in zip(described, columns, strict=True):
        rows[name] = own
    return rows


def _block(content: memoryview, place: int) -> tuple[memoryview, int]:
    """Return a block, whose length stands before it, and where the next one begins."""
    start = place + 4
    stop = start + int.from_bytes(content[place:start], "little")
    if stop > len(content) or start > len(content):
        raise ValueError(f"it ends early: {stop} bytes are promised, and it has {len(content)}")
    return content[start:stop], stop


def _field(name: Any, kind: Any, shape: Any = ()) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    """Return name, type and shape of a field; text has the type of its place."""
    sides = tuple(shape)
    good = len(sides) <= _MAX_SIDES and all(type(side) is int and 0 < side < _MAX_SIDE for side in sides)
    is_text = kind in ("|O", "O")
    if (
        type(name) is not str
        or not name.isprintable()
        or not good
        or not (is_text or _NUMBER.fullmatch(kind))
    ):
        raise ValueError("its header makes no sense")
    return name, np.dtype("<u8" if is_text else kind), sides


def _texts(starts: npt.NDArray[Any], heap: bytes, name: str) -> npt.NDArray[Any]:
    """Return the texts that begin at these places."""
    places, text_of = np.unique(starts, return_inverse=True)
    found = []
    for place in places.tolist():
        end = heap.find(b"\0", place)
        if end < 0:
            raise ValueError(f"a text of {name} lies outside of the file")
        found.append(heap[place:end])
    return np.array(found, f"S{1 + max(map(len, found))}")[text_of].reshape(starts.shape)


@kernel
def _length(stored, at, length):
    # A length of 15 goes on in bytes up to the first that is not full. Returns it and where it ends; -1 if
    # the block ends before.
    more = 255
    while length >= 15 and more == 255:
        if at >= len(stored):
            return -1, at
        more = np.int64(stored[at])
        at += 1
        length += more
    return length, at


@kernel
def _unpack(stored, unpacked):
    # stored: (bytes,) in LZ4's block format. Writes unpacked: (size,); returns how much was written, -1 if
    # the block is damaged.
    at = 0
    done = 0
    while at < len(stored):
        token = np.int64(stored[at])
        at += 1
        length, at = _length(stored, at, token >> 4)
        if length < 0 or length > len(stored) - at or length > len(unpacked) - done:
            return -1
        for k in range(length):
            unpacked[done + k] = stored[at + k]
        at += length
        done += length
        if at == len(stored):
            # The last sequence has no match.
            return done
        if at + 2 > len(stored):
            return -1
        back = stored[at] + (stored[at + 1] << 8)
        at += 2
        length, at = _length(stored, at, token & 15)
        if length < 0:
            return -1
        length += 4
        if back == 0 or back > done or length > len(unpacked) - done:
            return -1
        for k in range(length):
            # Byte by byte, because the match may overlap with what it writes.
            unpacked[done + k] = unpacked[done + k - back]
        done += length
    return done
