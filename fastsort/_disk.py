"""What is said when a disk is full: where that was and, where it is known, how much is needed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsort._types import FilePath

# The disk has no more room, or the user may have no more of it, or no file may be as large.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def on_disk(path: FilePath, needed: int = 0) -> Iterator[None]:
    """Let errors of a full disk say where it is.

    Parameters
    ----------
    path : path
        What is being written. An error that names a file already keeps its own.
    needed : int
        Bytes that it will have; 0 if that is not known.

    Raises
    ------
    OSError
        With the path as its ``filename`` and, in ``strerror``, how much is needed and how much is free.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        text = f"{error.strerror}{_in_numbers(path, needed)}"
        raise OSError(error.errno, text, os.fspath(path)) from error


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room for more."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def _in_numbers(path: FilePath, needed: int) -> str:
    parts = [f"{needed / 1e6:,.1f} MB needed"] if needed else []
    folder = os.path.dirname(os.path.abspath(path))
    with suppress(OSError):
        parts.append(f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB free")
    return f" ({', '.join(parts)})" if parts else ""
