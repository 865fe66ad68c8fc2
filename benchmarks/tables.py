"""What benchmarks share: how they time, and what they print of machine and versions, and as tables."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import fastsort

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / ".." / "shared" / "data"
LIBRARIES = ("numpy", "scipy", "numba", "joblib", "scikit-learn")


def print_machine() -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    print(
        f"{processor()}, {os.cpu_count()} cores; {datetime.date.today()}; Python {platform.python_version()},"
    )
    print(f"fastsort {fastsort.__version__}, {versions}.")


def processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def seconds_in_turn(jobs: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Time jobs one after the other, again and again, so that all meet the same disturbances."""
    seconds: dict[str, list[float]] = {what: [] for what in jobs}
    for _ in range(runs):
        for what, job in jobs.items():
            begin = time.perf_counter()
            job()
            seconds[what].append(time.perf_counter() - begin)
    return seconds


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print(f"\n{title}\n")
    print("| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), sep="\n")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
