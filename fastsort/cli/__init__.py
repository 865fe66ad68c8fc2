"""The command line: arguments -> one public function -> exit code.

Arguments are read before anything heavy is imported, so that help comes at once: what a command needs is
imported by its runner, and not at the head of its file.
"""

from fastsort.cli.entry import main

__all__ = ["main"]
