"""Runs that are killed again and again, each in a process of its own, until one comes to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np

STEPS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree"}


def fresh_process(code):
    """Run code in an interpreter that may fork, for it has no other threads, and return what it prints."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def killed_at_every_step(job, folder, setup, check, look=lambda folder: None):
    """Kill one run before each step that it takes in a folder of its own, then let another one finish.

    ``setup(folder)`` comes before, ``job(folder)`` runs, ``look(folder)`` sees what the killed run has
    left, ``check(folder)`` what the other one has. Returns the number of steps.
    """
    for step in range(10_000):
        own = folder / str(step)
        own.mkdir(parents=True)
        setup(own)
        whole = _ended(_start(job, own, kill_at=step))
        if not whole:
            look(own)
            assert _ended(_start(job, own))
        check(own)
        if whole:
            return step
    raise AssertionError("the run never ends")


def killed_at_random(job, folder, longest, seed):
    """Kill runs after random times in seconds until one is faster; return the number of those killed.

    Each may take a little longer than the one before: on a slow or busy machine too, one comes to its end.
    """
    rng = np.random.default_rng(seed)
    for n_killed in range(10_000):
        if ended_within(job, folder, rng.uniform(0, longest * 1.02**n_killed)):
            return n_killed
    raise AssertionError("no run ends")


def killed_by_itself(job, folder):
    """Let a run kill itself; return 1 if it did so before its end, else 0."""
    return int(not _ended(_start(job, folder)))


def ended_within(job, folder, seconds):
    """Start a run, kill it after some time, and return whether it had come to its end."""
    child = _start(job, folder)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return _ended(child)


def _start(job, folder, kill_at=None):
    child = os.fork()
    if child:
        return child
    try:
        if kill_at is not None:
            sys.addaudithook(_executioner(str(folder), kill_at))
        job(folder)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _executioner(folder, steps):
    left = [steps]

    def hook(event, arguments):
        if event in STEPS and str(arguments[0]).startswith(folder):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    return hook


def _ended(child):
    """Whether a process came to its end; False if it was killed."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), "a run failed by itself"
    return status == 0
