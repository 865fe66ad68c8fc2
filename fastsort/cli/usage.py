"""Wrong usage that argparse alone would not explain: mistyped options, patterns without quotes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import NoReturn

# Files that are sets of particles.
_SETS = (".star", ".cs", ".mrcs")
# How many words without a place are named.
_N_NAMED = 3


def refuse_unknown(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Leave with code 2 at the first unknown command or option, and name the nearest that there is.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of all commands.
    arguments : sequence of str
        As given; what else is wrong with them is left to the parser.
    """
    commands = _commands(parser)
    name = next((word for word in arguments if not word.startswith("-")), None)
    if name is None:
        return
    if name not in commands:
        if near := _nearest(name, commands):
            parser.error(f"there is no command {name}: did you mean {near}?")
        return
    command = commands[name]
    known = command._option_string_actions
    for word in arguments[arguments.index(name) + 1 :]:
        if word == "--":
            return
        option = word.split("=")[0]
        if option in known or " " in option or not option.startswith("-"):
            continue
        # One dash too few would give -o the rest of the word.
        if f"-{option}" in known:
            command.error(f"there is no option {option}: did you mean -{option}?")
        if option.startswith("--"):
            near = _nearest(option, [other for other in known if other.startswith("--")])
            command.error(f"there is no option {option}{f': did you mean {near}?' if near else ''}")


def refuse_rest(parser: argparse.ArgumentParser, arguments: Sequence[str], rest: Sequence[str]) -> NoReturn:
    """Leave with code 2 because of words that no option and no place has taken."""
    command = _commands(parser).get(next(word for word in arguments if not word.startswith("-")), parser)
    options = [word for word in rest if word.startswith("-")]
    if options:
        command.error(f"unrecognized arguments: {' '.join(options)}")
    first_few = ", ".join(rest[:_N_NAMED])
    if all(os.path.splitext(word)[1].lower() in _SETS for word in rest):
        command.error(
            f"too many names: {first_few}: give one set of particles; RELION joins STAR files with "
            "relion_star_handler --combine --i 'a.star b.star' --o all.star"
        )
    more = f" and {len(rest) - _N_NAMED:,} more" if len(rest) > _N_NAMED else ""
    command.error(
        f"too many names: {first_few}{more}: give one, and a pattern such as 'mics/*.mrc' in quotes, so that "
        "the shell does not replace it"
    )


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _nearest(word: str, others: Iterable[str]) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, list(others), 1)), None)
