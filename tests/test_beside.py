"""What is compiled beside a command: in a second process, while a kernel is missing, and no longer."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from fastsort.cli import beside
from fastsort.images.normalize import inspect_pixels

# Compiles a kernel inside the context, waits, and tells which kernels the folder of the cache holds.
COMPILE = """
import sys, time
from pathlib import Path
import numpy as np
from fastsort.cli import beside
from fastsort.images.normalize import inspect_pixels

started = []
class Popen(beside.subprocess.Popen):
    def __init__(self, *command, **options):
        super().__init__(*command, **options)
        started.append(self)

beside.subprocess.Popen = Popen
with beside.compiling_beside():
    inspect_pixels(np.ones((2, 16, 16), np.float32))
    if sys.argv[1] == "wait":
        started[0].wait(300)
print(len(started), started[0].returncode if started else 0)
"""


@pytest.mark.parametrize("wait", [pytest.param("wait", marks=pytest.mark.slow), "leave"])
def test_a_missing_kernel_starts_one_process_that_ends_with_the_context(wait, tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "FASTSORT_NUMBA_CACHE": "1"}
    command = [sys.executable, "-c", COMPILE, wait]
    begin = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    number, code = map(int, done.stdout.split())
    assert number == 1
    kept = {path.name.split("-")[0] for path in tmp_path.rglob("*.nbi")}
    assert "normalize._inspect" in kept
    if wait == "wait":
        # Classes and views have left their kernels for the first process.
        assert code == 0
        assert len(kept) > 20
    else:
        assert code < 0 and time.monotonic() - begin < 60


def test_nothing_is_started_where_no_kernel_is_kept():
    environment = {**os.environ, "FASTSORT_NUMBA_CACHE": "0"}
    command = [sys.executable, "-c", COMPILE, "leave"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["0", "0"], done.stderr


def test_nothing_is_started_where_all_kernels_are_at_hand(monkeypatch):
    images = np.ones((2, 16, 16), np.float32)
    inspect_pixels(images)

    def refuse(*command, **options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with beside.compiling_beside():
        inspect_pixels(images)
