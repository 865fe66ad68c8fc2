"""``--fail-if``: limits that a result should keep, for scripts that sort without anybody looking."""

from __future__ import annotations

import argparse
import re
from typing import Any, NamedTuple

_JUNK, _UNKNOWN = "junk", "unknown"
_SHARE = re.compile(rf"{_JUNK}\s*>\s*(\d+(?:\.\d*)?|\.\d+)", re.ASCII)


class Limit(NamedTuple):
    """A limit.

    Attributes
    ----------
    text : str
        As it was given.
    share : float or None
        The largest share of rejected images, 0 to 1; None if the errors must be known.
    """

    text: str
    share: float | None = None


def read_limit(text: str) -> Limit:
    """Read a limit as it is given after ``--fail-if``.

    Examples
    --------
    >>> read_limit("junk>0.5").share
    0.5
    """
    if text.strip() == _UNKNOWN:
        return Limit(_UNKNOWN)
    found = _SHARE.fullmatch(text.strip())
    if found and float(found[1]) < 1:
        return Limit(text.strip(), float(found[1]))
    # The shell takes > for itself, and writes what is printed into a file named 0.5.
    hint = "; put it in quotes: --fail-if 'junk>0.5'" if text.strip() == _JUNK else ""
    raise argparse.ArgumentTypeError(f"must be junk>SHARE, a share below 1, or unknown; got {text!r}{hint}")


def how_passed(limit: Limit, summary: dict[str, Any]) -> str | None:
    """Say how the result of a sort passes a limit, from what ``summary.json`` holds; None if it does not."""
    if limit.share is None:
        errors = summary["errors"]
        if errors is not None and errors["known"]:
            return None
        why = "one method alone estimates none" if errors is None else errors["remark"].rstrip(".")
        return f"limit {limit.text} passed: errors cannot be estimated{f': {why}' if why else ''}"
    rejected, n = summary["rejected"], summary["images"]
    if rejected <= limit.share * n:
        return None
    share = f"a share of {rejected / n:.3f}"
    return f"limit {limit.text} passed: {rejected:,} of {n:,} images are rejected, {share}"
