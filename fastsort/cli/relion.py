"""``--relion-job``: a command as an External job of RELION, which has words of its own for our options."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from fastsort._checks import InputError

IS_JOB = "--relion-job"
# What RELION gives an External job to work on, as our options; and what it adds for itself.
_INPUTS = {"--in_mics": ["--micrographs"], "--in_coords": ["--coordinates"], "--in_parts": []}
_OF_NO_USE = ("--pipeline_control", "--pipeline-control")
_RESULTS = "sorted"
# `pick` is given micrographs alone.
_PICK, _PICKED = "pick", "picked"


def run_job(arguments: Sequence[str], run: Callable[[list[str]], int | None]) -> int | None:
    """Run as RELION calls an External job, and tell it how that ended.

    Parameters
    ----------
    arguments : sequence of str
        As RELION gives them.
    run : callable
        Runs the command with arguments as fastsort has them.

    Returns
    -------
    code : int or None
        What the command returned.
    """
    from fastsort.report.relion_job import JobOutput, list_outputs, relion_job

    given, ours = _divide(arguments)
    folder = given.pop("--o", None)
    if not folder:
        raise InputError("--relion-job needs the job's folder, which RELION gives with --o.")
    with relion_job(folder) as outputs:
        for word in ours:
            if word.startswith("-o") or word.split("=")[0] == "--output":
                raise InputError(
                    f"{word} does nothing with --relion-job, whose results go to {folder}: leave it out."
                )
        # A job that runs once more replaces what it made.
        again = [] if "--update" in ours else ["--overwrite"]
        picks = ours[:1] == [_PICK]
        results = _PICKED if picks else _RESULTS
        inputs = [word for name, value in given.items() for word in _translated(name, value, ours)]
        code = run([*ours, *inputs, *again, "--output", os.path.join(folder, results)])
        if picks:
            outputs.append(JobOutput(f"{results}/autopick.star", "coordinates"))
            if os.path.isfile(os.path.join(folder, results, "particles.star")):
                outputs.append(JobOutput(f"{results}/particles.star"))
        else:
            outputs += list_outputs(folder, results, given.get("--in_coords"))
    return code


def _divide(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return what RELION says, in its own words, and what its user has given besides."""
    given: dict[str, str] = {}
    ours = []
    words = iter(arguments)
    for word in words:
        if word.startswith("--in_") or word in ("--o", "--j"):
            given[word] = next(words, "")
        elif word in _OF_NO_USE:
            next(words, None)
        else:
            ours.append(word)
    return given, ours


def _translated(name: str, value: str, ours: Sequence[str]) -> list[str]:
    """Return what RELION says as options of ours."""
    if name == "--j":
        # RELION always gives it, so that it counts for less than what the user has given.
        is_set = any(word.split("=")[0] in ("--jobs", "--cluster") for word in ours)
        return [] if is_set else ["--jobs", value]
    if ours[:1] == [_PICK]:
        if name != "--in_mics":
            raise InputError(f"{name} is of no use for picking: give micrographs.")
        return [value]
    if name not in _INPUTS:
        raise InputError(f"{name} is of no use for sorting: give particles, or micrographs and picks.")
    return [*_INPUTS[name], value]
