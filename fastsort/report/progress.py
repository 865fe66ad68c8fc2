"""A line on the terminal that shows how much of the work is done."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastsort._progress import Progress

_SECONDS_BETWEEN = 0.2


@contextmanager
def progress_bar(label: str, quiet: bool = False) -> Iterator[Progress | None]:
    """Give a callable ``progress(done, total)``, in images, that draws a bar on stderr.

    Parameters
    ----------
    label : str
        What is being done.
    quiet : bool
        Whether to show nothing. Nothing is shown either if stderr is not a terminal.

    Yields
    ------
    progress : callable or None
        None if nothing is shown.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        counter = _Counter(label)
        try:
            yield counter
        finally:
            counter.end()
        return
    # Terminals in containers may report a size of 0 by 0, for which tqdm by itself shows nothing.
    width, height = shutil.get_terminal_size()
    with tqdm(
        desc=label,
        unit=" images",
        unit_scale=True,
        ncols=min(100, width),
        nrows=height,
        file=sys.stderr,
    ) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(max(0, done - bar.n))

        yield advance


class _Counter:
    """The same as one plain line, for machines without tqdm."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.started = time.monotonic()
        self.shown = 0.0
        self.done = 0

    def __call__(self, done: int, total: int) -> None:
        self.done = max(done, self.done)
        now = time.monotonic()
        if now - self.shown < _SECONDS_BETWEEN and self.done < total:
            return
        self.shown = now
        speed = self.done / max(now - self.started, 1e-9)
        line = f"\r{self.label}: {self.done:,} of {total:,} images, {speed:,.0f} images/s"
        sys.stderr.write(line + " " * 8)
        sys.stderr.flush()

    def end(self) -> None:
        if self.shown:
            sys.stderr.write("\n")
