"""``fastsort guide``: what there is to read, on the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from fastsort._checks import InputError
from fastsort.cli.options import Commands, add_command

if TYPE_CHECKING:
    from importlib.abc import Traversable

_ENDING = ".md"


def add_guide(commands: Commands) -> None:
    """Add the command."""
    text = "List the guides, or print one of them."
    parser = add_command(commands, "guide", run_guide, "[NAME] ", text, "fastsort guide relion")
    parser.add_argument("name", metavar="NAME", nargs="?", help="guide to print (default: list all)")


def run_guide(options: argparse.Namespace) -> None:
    """Run the command."""
    guides = _find_guides()
    if options.name is None:
        width = max(map(len, guides), default=0)
        for name, guide in guides.items():
            print(f"  {name:<{width}}  {_title(guide)}")
    elif options.name in guides:
        sys.stdout.write(guides[options.name].read_text(encoding="utf-8"))
    else:
        raise InputError(f"there is no guide {options.name!r}: the guides are {', '.join(guides)}.")


def _find_guides() -> dict[str, Traversable]:
    """Return the guides that are shipped with the package, by name."""
    from importlib.resources import files

    held = files("fastsort").joinpath("guides").iterdir()
    return {
        guide.name.removesuffix(_ENDING): guide
        for guide in sorted(held, key=lambda guide: guide.name)
        if guide.name.endswith(_ENDING)
    }


def _title(guide: Traversable) -> str:
    """Return the first heading of a guide."""
    lines = guide.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("#").strip() for line in lines if line.startswith("#")), "")
