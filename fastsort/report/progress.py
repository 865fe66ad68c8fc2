"""A line on the terminal that says how far the work is."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS_BETWEEN = 0.2


@contextmanager
def progress_bar(label: str, quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """Give a callable ``progress(images_done, images_in_all)`` that keeps a bar on stderr.

    Parameters
    ----------
    label : str
        What is done.
    quiet : bool
        Whether to show nothing; nothing is shown either where stderr is no terminal.

    Yields
    ------
    progress : callable or None
        None when nothing is to be shown.
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
    # Terminals inside containers may claim a size of 0 by 0, where tqdm by itself shows nothing.
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
    """The same in one plain line, for machines without tqdm."""

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
