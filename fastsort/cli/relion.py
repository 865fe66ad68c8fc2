"""``--relion-job``: a command as an External job of RELION, which has words of its own for our options."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from fastsort._checks import InputError

IS_JOB = "--relion-job"
# What RELION gives an External job to work on, as our options; what it adds; what cannot be sorted.
_INPUTS = {"--in_mics": ["--micrographs"], "--in_coords": ["--coordinates"], "--in_parts": []}
_OF_NO_USE = ("--pipeline_control", "--pipeline-control")
_NO_PARTICLES = ("--in_movies", "--in_3dref", "--in_mask")
_RESULTS = "sorted"


def run_job(arguments: Sequence[str], run: Callable[[list[str]], int | None]) -> None:
    """Run as RELION calls an External job, and tell it how that ended.

    Parameters
    ----------
    arguments : sequence of str
        As RELION gives them.
    run : callable
        Runs the command with arguments as fastsort has them.
    """
    from fastsort.report.relion_job import list_outputs, relion_job

    given: dict[str, str] = {}
    translated = []
    words = iter(arguments)
    for word in words:
        if word.startswith("--in_") or word in ("--o", *_OF_NO_USE):
            given[word] = next(words, "")
        else:
            translated.append("--jobs" if word == "--j" else word)
    folder = given.get("--o")
    if not folder:
        raise InputError("--relion-job needs the job's folder, which RELION gives with --o.")
    for name, ours in _INPUTS.items():
        translated += [*ours, given[name]] if name in given else []
    with relion_job(folder) as outputs:
        for name in _NO_PARTICLES:
            if name in given:
                raise InputError(
                    f"{name} is of no use for sorting: give particles, or micrographs and picks."
                )
        # A job that runs once more replaces what it made.
        again = [] if "--update" in translated else ["--overwrite"]
        run([*translated, *again, "--output", os.path.join(folder, _RESULTS)])
        outputs += list_outputs(folder, _RESULTS, given.get("--in_coords"))
