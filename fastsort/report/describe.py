"""What the folder of a finished run holds, said without its input."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from fastsort._checks import InputError, check_readable
from fastsort._types import FilePath
from fastsort.report.finished import load_result
from fastsort.report.folder import FOLDERS, RESULT_NAMES, SUMMARY

# Kinds of runs by what only their summaries hold; the last has the least.
_KINDS = {
    "votes": "particles, sorted",
    "places": "micrographs, picked",
    "classes": "particles, divided into classes",
    "predicted_error": "particles, denoised",
    "kept_classes": "particles, chosen by their classes",
    "list": "particles, chosen by a list",
}
# What is counted, as it is called here and in summaries.
_COUNTS = {
    "images": "images",
    "micrographs": "micrographs",
    "kept": "kept",
    "rejected": "rejected",
    "set aside": "rescued",
    "chosen by hand": "by_hand",
    "classes": "classes",
    "without a class": "without_class",
    "extracted": "particles",
}
# Parameters that are said elsewhere, or that change no result.
_NO_SETTINGS = ("update", "work", "keep_work", "data_dir")


class RunDescription(NamedTuple):
    """What the folder of a finished run holds.

    Attributes
    ----------
    path : str
    kind : str
        Such as "particles, sorted".
    version : str
        Of fastsort; "unknown" where the summary does not say.
    input : str or None
        What was read.
    counts : dict of str to int
        What was counted, such as "kept"; what is 0 is left out, but for "kept" and "rejected".
    settings : dict of str
        Options of the run, but for those that were left to fastsort; and what it found in their place.
    files : list of str
        Results and folders of results that are there.
    problems : list of str
        What keeps other commands from going on from here; a sentence each.
    """

    path: str
    kind: str
    version: str
    input: str | None
    counts: dict[str, int]
    settings: dict[str, Any]
    files: list[str]
    problems: list[str]

    @property
    def usable(self) -> bool:
        """Whether nothing is missing."""
        return not self.problems


def is_run(folder: FilePath) -> bool:
    """Whether a folder holds a finished run of any command."""
    return (Path(folder) / SUMMARY).is_file()


def describe_run(folder: FilePath) -> RunDescription:
    """Say what the folder of a finished run holds.

    Parameters
    ----------
    folder : path
        As one of fastsort's commands left it.

    Returns
    -------
    description : RunDescription

    Raises
    ------
    InputError
        If its summary is damaged, or not one of fastsort's.
    """
    folder = Path(folder)
    with check_readable(folder / SUMMARY) as file:
        try:
            summary = json.load(file)
        except (ValueError, RecursionError):
            summary = None
    kind = next((key for key in _KINDS if isinstance(summary, dict) and key in summary), None)
    if kind is None:
        raise InputError(f"{folder / SUMMARY} is damaged, or was not written by fastsort.")
    problems = []
    if kind == "votes":
        try:
            load_result(folder)
        except InputError as error:
            problems.append(str(error))
    source = summary.get("input")
    if isinstance(source, str) and not os.path.exists(source):
        problems.append(f"{source}, which was read, is gone: other commands need its new place.")
    return RunDescription(
        path=str(folder),
        kind=_KINDS[kind],
        version=str((summary.get("versions") or summary.get("software") or {}).get("fastsort", "unknown")),
        input=source if isinstance(source, str) else None,
        counts=_counts(summary),
        settings=_settings(summary),
        files=sorted(f"{item.name}{'/' * item.is_dir()}" for item in folder.iterdir() if _is_ours(item)),
        problems=problems,
    )


def _counts(summary: dict[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, key in _COUNTS.items():
        number = summary.get(key)
        # Of sorted sets a table says how many micrographs there are.
        number = number.get("number") if isinstance(number, dict) else number
        if isinstance(number, int) and (number or key in ("kept", "rejected")):
            counts[name] = number
    if summary.get("junk_classes"):
        counts["junk classes"] = len(summary["junk_classes"])
    return counts


def _settings(summary: dict[str, Any]) -> dict[str, Any]:
    parameters = summary.get("parameters") or {}
    settings = {
        name.replace("_", " "): value
        for name, value in parameters.items()
        if name not in _NO_SETTINGS and value not in (None, False, "auto", "default")
    }
    if "method" in summary:
        settings["method"] = summary["method"]
    if summary.get("diameter") and not parameters.get("diameter"):
        settings["diameter"] = f"{summary['diameter']:.1f} A (found)"
    return settings


def _is_ours(item: Path) -> bool:
    return item.name in RESULT_NAMES or (item.name in FOLDERS and item.is_dir())
