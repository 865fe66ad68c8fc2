"""A second process, which draws the picture ``report.png`` while this one sorts and writes the page."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from fastsort.report.picture import Bars, Picture, Row, picture_png


class Painter:
    """A process that waits for a picture, with all that it needs imported."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def begin(self, picture: Picture) -> None:
        """Let the process draw a picture."""
        assert self._process.stdin is not None
        # It may have ended: what is missing is found out by `end`.
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            pickle.dump(picture, pipe)

    def end(self) -> bytes | None:
        """Wait for the PNG; None where the process has failed."""
        assert self._process.stdout is not None
        # Its length comes first: the end of the process need not be waited for.
        with suppress(EOFError, pickle.UnpicklingError):
            png: bytes = pickle.load(self._process.stdout)
            return png
        return None


@contextmanager
def painting_beside() -> Iterator[Painter | None]:
    """Start a painter, and end it with the context; None where there is one core, or no process to be had."""
    import joblib

    command, pipe, nowhere = [sys.executable, "-m", __name__], subprocess.PIPE, subprocess.DEVNULL
    process = None
    if joblib.cpu_count() > 1:
        # Where no more processes are allowed, this one draws.
        with suppress(OSError):
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere)
    if process is None:
        yield None
        return
    with process:
        try:
            yield Painter(process)
        finally:
            process.kill()


def _paint() -> None:
    # What is imported stays until the end.
    gc.disable()
    # The first picture takes twice as long as the next.
    one = np.ones(1, np.intp)
    row = Row("", np.ones((1, 1, 1), np.uint8), [""], one > 0, (0.5, 0.5, 0.5))
    picture_png(Picture("", "", Bars(np.arange(2.0), one, one, 0.5, []), {"noise": 1}, [row] * 3))
    pickle.dump(picture_png(pickle.load(sys.stdin.buffer)), sys.stdout.buffer)
    sys.stdout.flush()


if __name__ == "__main__":
    _paint()
