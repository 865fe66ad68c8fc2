"""Where the files are that a table names: stacks, micrographs, files of picks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fastsort._checks import InputError
from fastsort._types import FilePath

MOVIES = (".tif", ".tiff", ".eer")
_MOST_SHOWN = 200
# Of a name that may be one.
_LONGEST_PATH, _MOST_FOLDERS = 4096, 32
# Programs disagree on what stacks are called.
_SUFFIXES = (".mrcs", ".mrc")
_DRIVE = re.compile(r"^[A-Za-z]:/")


class NotFoundError(InputError):
    """Files that a table names are nowhere."""


def shown(text: str) -> str:
    """Return what a file says as a message can: not too long, and nothing that ends a line."""
    short = text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in short)


def first_few(names: Sequence[str]) -> str:
    """Return the first three names for a message."""
    return ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")


def find_files(
    names: Sequence[str], table_path: str, data_dir: FilePath | None, what: str = "stacks"
) -> list[str]:
    """Find every file that a table names.

    Parameters
    ----------
    names, table_path, data_dir
        As for `locate_files`.
    what : str
        What the files are, for messages.

    Returns
    -------
    paths : list of str

    Raises
    ------
    NotFoundError
        When a file is nowhere.
    InputError
        When `data_dir` is no folder, or the files are movies.
    """
    if data_dir is not None and not os.path.isdir(data_dir):
        raise InputError(f"data_dir {data_dir} is not a folder: give the folder that holds the {what}.")
    movies = [name for name in names if name.lower().endswith(MOVIES)]
    if movies:
        raise InputError(
            f"{len(movies)} of {len(names)} {what} named by {table_path} are TIFF or EER files, as movies "
            f"are: {first_few(movies)}. Give particles, or micrographs, as MRC files."
        )
    paths = locate_files(names, table_path, data_dir)
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        near = near_match(missing[0], table_path, data_dir)
        advice = near or "Give the folder to which these names are relative with --data-dir."
        raise NotFoundError(
            f"{len(missing)} of {len(names)} {what} named by {table_path} were not found: "
            f"{first_few(missing)}. "
            f"Looked in {', '.join(_folders(table_path, data_dir))}. {advice}"
        )
    return [path for path in paths if path is not None]


def locate_files(names: Iterable[str], table_path: str, data_dir: FilePath | None) -> list[str | None]:
    """Look for files under data_dir, the working folder, the table's folder and each folder above it.

    Parameters
    ----------
    names : iterable of str
        As a table names them.
    table_path : str
    data_dir : path, optional
        Absolute names, of a project that has moved, are also looked for here without the folders that they
        begin with.

    Returns
    -------
    paths : list of str or None
        None for a file that is nowhere, or that two names may mean.
    """
    folders = _folders(table_path, data_dir)
    given = folders[: data_dir is not None]
    folders = folders[len(given) :]
    paths: list[str | None] = []
    moved: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        places = ((folder, os.path.join(folder, name)) for folder in [*given, *folders])
        folder, path = next(((f, p) for f, p in places if os.path.isfile(p)), (None, None))
        if path is None and given and os.path.isabs(name):
            tails = (os.path.join(given[0], tail) for tail in _tails(name))
            path = next((place for place in tails if os.path.isfile(place)), None)
            if path is not None:
                moved.setdefault(path, []).append(number)
        paths.append(path)
        if folder in folders:  # where one file is, the next will be: look there first
            folders.remove(folder)
            folders.insert(0, folder)
    for numbers in moved.values():
        if len(numbers) > 1:
            for number in numbers:
                paths[number] = None
    return paths


def near_match(name: str, table_path: str, data_dir: FilePath | None) -> str:
    """Name a file that may be meant by a name under which there is none, and say what to do then.

    Parameters
    ----------
    name, table_path, data_dir
        As for `locate_files`.

    Returns
    -------
    advice : str
        Two sentences; empty where no file is like it.
    """
    plain = _DRIVE.sub("/", name.replace("\\", "/"))
    suffix = os.path.splitext(plain)[1]
    suffixes = dict.fromkeys([suffix, suffix.lower(), *(_SUFFIXES if suffix.lower() in _SUFFIXES else ())])
    for tail in [plain.lstrip("/"), *_tails(plain)]:
        for folder in _folders(table_path, data_dir):
            for other in suffixes:
                path = os.path.join(folder, f"{tail[: len(tail) - len(suffix)]}{other}")
                if os.path.isfile(path):
                    correct = f"correct the names in {table_path}"
                    is_moved = plain == name and other == suffix and os.path.isabs(name)
                    advice = f"give --data-dir {folder}" if is_moved else correct
                    near = os.path.relpath(path) if folder == os.getcwd() else path
                    return f"{shown(near)} is here: is that it? Then {advice}."
    return ""


def _tails(name: str) -> list[str]:
    """Return a path without its first folder, without its first two, and so on."""
    parts = name.lstrip("/").split("/", _MOST_FOLDERS) if len(name) <= _LONGEST_PATH else []
    return ["/".join(parts[start:]) for start in range(1, len(parts))]


def _folders(table_path: str, data_dir: FilePath | None) -> list[str]:
    given = [] if data_dir is None else [os.path.abspath(data_dir)]
    table = Path(table_path).absolute()
    # A table given through a link belongs to the folder of the link or to that of the file.
    return [*dict.fromkeys([*given, *map(str, [Path.cwd(), *table.parents, *table.resolve().parents])])]
