"""Where the files are that a table names: stacks, micrographs, files of picks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from fastsort._checks import InputError
from fastsort._types import FilePath

_MOST_SHOWN = 200


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
    InputError
        When a file is nowhere, or `data_dir` is no folder.
    """
    if data_dir is not None and not os.path.isdir(data_dir):
        raise InputError(f"data_dir {data_dir} is not a folder: give the folder that holds the {what}.")
    paths = locate_files(names, table_path, data_dir)
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} {what} named by {table_path} were not found: "
            f"{first_few(missing)}. "
            f"Looked in {', '.join(_folders(table_path, data_dir))}. "
            "Give the folder to which these names are relative with --data-dir."
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

    Returns
    -------
    paths : list of str or None
        None for a file that is nowhere.
    """
    folders = _folders(table_path, data_dir)
    given = folders[: data_dir is not None]
    folders = folders[len(given) :]
    paths: list[str | None] = []
    for name in names:
        places = ((folder, os.path.join(folder, name)) for folder in [*given, *folders])
        folder, path = next(((f, p) for f, p in places if os.path.isfile(p)), (None, None))
        paths.append(path)
        if folder in folders:  # where one file is, the next will be: look there first
            folders.remove(folder)
            folders.insert(0, folder)
    return paths


def _folders(table_path: str, data_dir: FilePath | None) -> list[str]:
    given = [] if data_dir is None else [os.path.abspath(data_dir)]
    table = Path(table_path).absolute()
    # A table given through a link belongs to the folder of the link or to that of the file.
    return [*given, *dict.fromkeys(map(str, [Path.cwd(), *table.parents, *table.resolve().parents]))]
