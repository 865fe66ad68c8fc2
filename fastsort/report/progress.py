"""How much of the work is done: a bar on a terminal, and lines with the time anywhere else."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastsort._progress import Progress

_SECONDS_BETWEEN = 0.2
# Of plain lines, which stay in files.
_SECONDS_BETWEEN_LINES = 20.0


@contextmanager
def progress_bar(
    label: str, quiet: bool = False, unit: str = "images", log: Callable[[str], None] | None = None
) -> Iterator[Progress | None]:
    """Give a callable ``progress(done, total)`` that shows on stderr how much is done.

    Parameters
    ----------
    label : str
        What is being done.
    quiet : bool
        Whether stderr gets nothing. It gets a bar if it is a terminal, and else a plain line now and then.
    unit : str
        What is counted.
    log : callable, optional
        Gets the plain lines, without their ends, in any case.

    Yields
    ------
    progress : callable or None
        None if nobody wants to know.
    """
    on_terminal = not quiet and sys.stderr.isatty()
    writers = [] if log is None else [log]
    if not quiet and not on_terminal:
        writers.append(_write_line)
    lines = _Lines(label, unit, writers) if writers else None
    if lines is None and not on_terminal:
        yield None
        return
    from fastsort._jit import told_of_compiling

    if lines is not None and not on_terminal:
        with told_of_compiling(lines.remark):
            yield lines
        return

    def say(line: str) -> None:
        _write_beside_bar(line)
        if lines:
            lines.remark(line)

    with told_of_compiling(say), _bar(label, unit) as bar:

        def advance(done: int, total: int) -> None:
            bar(done, total)
            if lines:
                lines(done, total)

        yield advance


def clock() -> str:
    """Return the time of the day, with which a plain line begins."""
    return time.strftime("%H:%M:%S")


def _write_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _write_beside_bar(line: str) -> None:
    """Write a line where a bar is, which goes on below it."""
    try:
        from tqdm import tqdm
    except ImportError:
        _write_line(f"\r{line}")
    else:
        tqdm.write(line, file=sys.stderr)


class _Lines:
    """Plain lines: the first at once, the last when all is done, and a few a minute between them."""

    def __init__(self, label: str, unit: str, writers: list[Callable[[str], None]]) -> None:
        self.label = label
        self.unit = unit
        self.writers = writers
        self.written = -_SECONDS_BETWEEN_LINES
        self.last = -1

    def remark(self, text: str) -> None:
        """Write a line about something else."""
        for write in self.writers:
            write(f"{clock()} {text}")

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        is_due = now - self.written >= _SECONDS_BETWEEN_LINES or done >= total
        if done == self.last or not is_due:
            return
        self.written, self.last = now, done
        percent = 100 * done // total if total else 100
        line = f"{clock()} {self.label} {percent} %, {done:,} of {total:,} {self.unit}"
        for write in self.writers:
            write(line)


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Progress]:
    try:
        from tqdm import tqdm
    except ImportError:
        counter = _Counter(label, unit)
        try:
            yield counter
        finally:
            counter.end()
        return
    # Terminals in containers may report a size of 0 by 0, for which tqdm by itself shows nothing.
    width, height = shutil.get_terminal_size()
    with tqdm(
        desc=label,
        unit=f" {unit}",
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

    def __init__(self, label: str, unit: str) -> None:
        self.label = label
        self.unit = unit
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
        line = f"\r{self.label}: {self.done:,} of {total:,} {self.unit}, {speed:,.0f} {self.unit}/s"
        sys.stderr.write(line + " " * 8)
        sys.stderr.flush()

    def end(self) -> None:
        if self.shown:
            sys.stderr.write("\n")
