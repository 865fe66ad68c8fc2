"""What a command says while it runs and when it is done: to people, to its log, and as JSON."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import IO

from fastsort._checks import InputError
from fastsort._progress import Progress
from fastsort._version import __version__


def add_talk(parser: argparse._ActionsContainer, quiet: str) -> None:
    """Add what says how much a long command says, and where."""
    add = parser.add_argument
    add("--log", metavar="FILE", help="append progress, summary and errors to FILE")
    add("--json", action="store_true", help="print summary.json in place of a summary")
    add("--quiet", action="store_true", help=quiet)


class Talk:
    """What a run says.

    Attributes
    ----------
    quiet : bool
        Whether neither progress nor a summary is shown.
    command : str
        As it was called.
    """

    def __init__(
        self, options: argparse.Namespace, begin: float, command: str, log: IO[str] | None = None
    ) -> None:
        self.command = command
        self.quiet: bool = getattr(options, "quiet", False)
        self._as_json: bool = getattr(options, "json", False)
        self._begin = begin
        self._log = log

    @property
    def seconds(self) -> float:
        """Seconds since the command was called, what it imports included."""
        return time.perf_counter() - self._begin

    def restart(self) -> None:
        """Count seconds from now."""
        self._begin = time.perf_counter()

    def progress(self, label: str, unit: str = "images") -> AbstractContextManager[Progress | None]:
        """Give a callable ``progress(done, total)`` that shows it and writes it to the log."""
        from fastsort.report.progress import progress_bar

        return progress_bar(label, self.quiet, unit, self.log if self._log else None)

    def summary(self, folder: str | Path, tell: Callable[[], None]) -> None:
        """Say what came out, when the results are in their folder.

        Parameters
        ----------
        folder : path
            Holds the ``summary.json`` that is printed if that was asked for.
        tell : callable
            Prints the summary for people.
        """
        heard = io.StringIO()
        with redirect_stdout(heard):
            tell()
        for line in heard.getvalue().splitlines():
            self.log(line)
        try:
            self._print(folder, heard.getvalue())
        except BrokenPipeError:
            # Whoever read it has seen enough; the results are on the disk.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _print(self, folder: str | Path, heard: str) -> None:
        if self._as_json:
            sys.stdout.write((Path(folder) / "summary.json").read_text(encoding="utf-8").rstrip() + "\n")
        elif not self.quiet:
            sys.stdout.write(heard)
        sys.stdout.flush()

    def remark(self, line: str) -> None:
        """Say something that matters even where nothing else is shown."""
        print(f"fastsort: {line}", file=sys.stderr)
        self.log(f"fastsort: {line}")

    def log(self, line: str) -> None:
        """Write a line to the log, if there is one; a disk that takes no more ends no run for that."""
        if self._log:
            with suppress(OSError, ValueError):
                self._log.write(f"{line}\n")
                self._log.flush()


@contextmanager
def talking(
    options: argparse.Namespace,
    arguments: Sequence[str],
    begin: float,
    told: Callable[[BaseException], str],
) -> Iterator[Talk]:
    """Open the log, and write there how the command was called and what it ends with if it fails.

    Parameters
    ----------
    options : argparse.Namespace
    arguments : sequence of str
        As the command was given them.
    begin : float
        When, by `time.perf_counter`.
    told : callable
        Says in one line what an error was.

    Yields
    ------
    talk : Talk

    Raises
    ------
    InputError
        If the log cannot be written, or would lie among the results.
    """
    path = getattr(options, "log", None)
    called = shlex.join(["fastsort", *arguments])
    if path is None:
        yield Talk(options, begin, called)
        return
    with _opened(path, options.output) as log:
        talk = Talk(options, begin, called, log)
        talk.log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {called} (version {__version__})")
        try:
            yield talk
        except BaseException as error:
            talk.log(f"{time.strftime('%H:%M:%S')} error: {told(error)}")
            raise


def _opened(path: str, output: str) -> IO[str]:
    results = Path(output).resolve()
    try:
        if results in Path(path).resolve().parents:
            raise InputError(
                f"the log {path} would lie in the folder {output}, which is replaced as a whole: "
                "give a file elsewhere."
            )
        return open(path, "a", encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write the log {path} ({why}): give another file.") from None
