"""``fastsort watch``: a set is sorted again whenever it has grown, until somebody stops that."""

from __future__ import annotations

import argparse
import glob
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

from fastsort._checks import InputError, check_positive
from fastsort.cli.options import DONE, Commands, add_command
from fastsort.cli.sort import add_options, sort_once

# A table is read when it was the same for so many seconds: it may just be being written.
_SETTLED = 5.0
_METRICS = {
    "images": ("gauge", "Images in the set."),
    "kept": ("gauge", "Images that are kept."),
    "rejected": ("gauge", "Images that are rejected."),
    "rescued": ("gauge", "Images of rare views that are set aside."),
    "new_images": ("gauge", "Images that were new in the last round."),
    "removed_images": ("gauge", "Images that were no longer there in the last round."),
    "limits_passed": ("gauge", "Limits of --fail-if that the last round passed."),
    "round_seconds": ("gauge", "How long the last round took."),
    "round_timestamp_seconds": ("gauge", "When the last round was done."),
    "rounds_total": ("counter", "Rounds that were done."),
    "failures_total": ("counter", "Rounds that failed."),
}


def add_watch(commands: Commands) -> None:
    """Add the command."""
    text = "Sort particle images again whenever their file has changed."
    example = "fastsort watch particles.star -o sorted/ --every 120"
    parser = add_command(commands, "watch", run_watch, "INPUT -o DIR ", text, example)
    watching = parser.add_argument_group("watching")
    add = watching.add_argument
    add("--every", type=float, default=60.0, metavar="S", help="seconds between looks at INPUT (default 60)")
    add("--on-done", metavar="COMMAND", help="shell command to run after each round")
    add("--metrics", metavar="FILE", help="write numbers of the last round for Prometheus")
    add_options(parser, repeated=True)


class _Round(NamedTuple):
    """What the metrics say."""

    numbers: dict[str, float]
    done: int = 0
    failed: int = 0


def run_watch(options: argparse.Namespace) -> int:
    """Run the command."""
    every = check_positive("--every", options.every, "s")
    _check_metrics(options)
    # What `sort` has besides.
    options.update, options.overwrite, options.relion_job = True, False, False
    options.method, options.preset, options.learn_from = None, "default", None
    options.n_subspaces = options.n_components = None
    talk = options.talk
    sorted_as: Any = None
    last_error = ""
    last = _Round({})
    try:
        while True:
            now = _settled(options, every)
            if now is None or (now == sorted_as and not last_error):
                sleep(every)
                continue
            talk.restart()
            try:
                summary, passed = sort_once(options)
            except (InputError, OSError) as error:
                last = last._replace(failed=last.failed + 1)
                _write_metrics(options, last)
                if last.done == 0:
                    # Somebody who has just given the command is there to correct it.
                    raise
                text = str(error)
                if text != last_error:
                    talk.remark(f"{time.strftime('%H:%M:%S')} not sorted, will be tried again: {text}")
                last_error, sorted_as = text, now
                sleep(every)
                continue
            last_error, sorted_as = "", now
            last = _Round(_numbers(summary, passed, talk.seconds), last.done + 1, last.failed)
            _write_metrics(options, last)
            _run_command(options, summary)
    except KeyboardInterrupt:
        # Some programs send two signals: the second must not turn an orderly end into an error.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        results = f"the results of the last of {last.done:,} rounds are in {options.output}"
        talk.remark(f"stopped; {results}" if last.done else "stopped before the first round was done")
    return DONE


def _settled(options: argparse.Namespace, every: float) -> Any:
    """Return what tells the input from an earlier one, or None while it is missing or being written."""
    before = _state(options)
    if not before:
        return None
    newest = max(changed for _, _, changed in before) / 1e9
    # Clocks of file servers differ, so that the age of a file alone says little.
    if time.time() - newest < _SETTLED:
        sleep(min(every, _SETTLED))
    return before if _state(options) == before else None


def _state(options: argparse.Namespace) -> list[tuple[str, int, int]]:
    given = (options.input, options.micrographs, options.coordinates)
    sources = [name for names in given if names for name in ([names] if isinstance(names, str) else names)]
    state = []
    for source in sources:
        for path in sorted(glob.glob(source)) if not os.path.exists(source) else [source]:
            try:
                status = os.stat(path)
            except OSError:
                continue
            state.append((path, status.st_size, status.st_mtime_ns))
    return state


def _numbers(summary: dict[str, Any], passed: Sequence[str], seconds: float) -> dict[str, float]:
    update = summary["parameters"].get("update") or {"new_images": summary["images"]}
    known = {name: summary[name] for name in ("images", "kept", "rejected", "rescued")}
    return {
        **known,
        "new_images": update["new_images"],
        "removed_images": update.get("removed_images", 0),
        "limits_passed": len(passed),
        "round_seconds": round(seconds, 3),
        "round_timestamp_seconds": round(time.time(), 3),
    }


def _check_metrics(options: argparse.Namespace) -> None:
    """Refuse a file that cannot be written, before anything is sorted."""
    if options.metrics is None:
        return
    if Path(options.output).resolve() in Path(options.metrics).resolve().parents:
        raise InputError(
            f"the metrics {options.metrics} would lie in the folder {options.output}, which is replaced as a "
            "whole: give a file elsewhere."
        )
    try:
        _write_metrics(options, _Round({}))
    except OSError as error:
        raise InputError(
            f"cannot write the metrics {options.metrics} ({error.strerror}): give another file."
        ) from None


def _write_metrics(options: argparse.Namespace, last: _Round) -> None:
    """Write the file beside its place and move it there: whoever reads it never sees half of it."""
    if options.metrics is None:
        return
    values = {**last.numbers, "rounds_total": last.done, "failures_total": last.failed}
    label = os.path.abspath(options.output).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    lines = []
    for name, value in values.items():
        kind, meaning = _METRICS[name]
        lines += [f"# HELP fastsort_{name} {meaning}", f"# TYPE fastsort_{name} {kind}"]
        lines.append(f'fastsort_{name}{{output="{label}"}} {value}')
    place = Path(options.metrics)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        partial.write_text("\n".join(lines) + "\n", "utf-8", "backslashreplace")
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def _run_command(options: argparse.Namespace, summary: dict[str, Any]) -> None:
    """Run the command that was asked for after each round."""
    if options.on_done is None:
        return
    folder = os.path.abspath(options.output)
    told = {
        "FASTSORT_KEPT": str(summary["kept"]),
        "FASTSORT_REJECTED": str(summary["rejected"]),
        "FASTSORT_OUTPUT": folder,
        "FASTSORT_SUMMARY": os.path.join(folder, "summary.json"),
    }
    # Standard output is for the summaries alone where they are read by a program.
    output = 2 if options.json else None
    import subprocess

    done = subprocess.run(options.on_done, shell=True, env={**os.environ, **told}, stdout=output, check=False)
    if done.returncode:
        options.talk.remark(f"the command of --on-done ended with code {done.returncode}")
