"""Where results come from: when, by what command, on which machine, from which input."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any


def how_made(files: Iterable[str], command: str | None = None) -> dict[str, Any]:
    """Return what a result should say of its origin.

    Parameters
    ----------
    files : iterable of str
        Paths of the input; their sizes and times are asked for, nothing is read.
    command : str, optional
        The command line; without one, a program called fastsort.

    Returns
    -------
    made : dict
        "date", "command", "folder", "host"; "input_files" and "input_bytes", their number and size; and
        "input_changed", when the newest of them was last written. Dates are local, with their offset.
    """
    known = [os.stat(name) for name in files if os.path.exists(name)]
    return {
        "date": _date(datetime.now(timezone.utc).timestamp()),
        "command": command or "called from Python",
        "folder": os.getcwd(),
        "host": platform.node() or "unknown",
        "input_files": len(known),
        "input_bytes": sum(file.st_size for file in known),
        "input_changed": _date(max(file.st_mtime for file in known)) if known else None,
    }


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).astimezone().isoformat(sep=" ", timespec="seconds")


def made_words(made: dict[str, Any] | None) -> dict[str, str]:
    """Return the same for people, by name; nothing for results of earlier versions, which do not know it."""
    if not made:
        return {}
    words = {name: str(made.get(name) or "unknown") for name in ("date", "command", "folder", "host")}
    number, size = made.get("input_files"), made.get("input_bytes")
    if number and size is not None:
        files = "1 file" if number == 1 else f"{number:,} files"
        words["input"] = f"{files}, {_size(size)}, last written {made.get('input_changed') or 'unknown'}"
    return words


def _size(n_bytes: float) -> str:
    power = min(4, max(0, math.floor(math.log10(max(n_bytes, 1)) / 3)))
    return f"{n_bytes / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
