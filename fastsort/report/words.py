"""What the picture and the page both say: words for reasons, names on one line, facts about a run."""

from __future__ import annotations

import math
from typing import NamedTuple

from fastsort._reasons import (
    BAD_PIXELS,
    CONTAMINATION,
    DUPLICATE,
    FLAT,
    MULTIPLE,
    NOISE,
    OFF_CENTRE,
    OUTSIDE,
    PARTIAL,
    RARE_VIEW,
    REASONS,
    UNLIKE,
    VALID,
)
from fastsort.decide.result import SortResult


class Words(NamedTuple):
    """What reasons are called, each at the place of its code.

    Attributes
    ----------
    kinds : tuple of str
        "kept", "rejected" or "rescued".
    labels, meanings : tuple of str
    """

    kinds: tuple[str, ...]
    labels: tuple[str, ...]
    meanings: tuple[str, ...]


_LONGEST_NAME = 120


def _words(labels: dict[int, str], meanings: dict[int, str]) -> Words:
    codes = range(len(REASONS))
    return Words(
        tuple({VALID: "kept", RARE_VIEW: "rescued"}.get(code, "rejected") for code in codes),
        tuple(labels.get(code, REASONS[code]) for code in codes),
        tuple(meanings.get(code, "") for code in codes),
    )


SORTED = _words(
    {VALID: "kept", RARE_VIEW: "rescued: rare view"},
    {
        VALID: "looks like a particle",
        NOISE: "no particle found",
        PARTIAL: "a particle that the edge of the box cuts off",
        MULTIPLE: "several particles in one box",
        OFF_CENTRE: "a particle far from the middle of the box",
        CONTAMINATION: "ice, carbon or dirt: strong, and no particle",
        BAD_PIXELS: "NaN, infinite or hot pixels: cannot be judged",
        FLAT: "no contrast: cannot be judged",
        DUPLICATE: "the same particle as another image",
        RARE_VIEW: "unlike most images, but alike among themselves: set aside for you to look at",
        OUTSIDE: "the box reaches over the edge of the micrograph",
        UNLIKE: "unlike the particles, and no other reason is clearly the likeliest",
    },
)
# A map judges classes, not images.
MAPPED = _words(
    {VALID: "kept", UNLIKE: "junk class", FLAT: "no class"},
    {
        VALID: "its class shows a particle",
        UNLIKE: "its class shows none, or a blurred one, or one that is not in the middle",
        FLAT: "no contrast, or NaN or infinite pixels: belongs to no class",
    },
)


def one_line(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return a name on one line, shortened to so many letters."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(name) <= longest:
        return name
    return f"{name[: longest // 2]}…{name[-longest // 2 :]}"


def diameter_words(result: SortResult) -> str:
    """Say how large the particle is, and whether the user gave its diameter."""
    if not math.isfinite(result.diameter_px):
        return "diameter unknown"
    known = math.isfinite(result.diameter)
    size = f"{result.diameter:.0f} Å" if known else f"{result.diameter_px:.1f} px"
    return f"diameter {size} ({'estimated' if result.diameter_estimated else 'given'})"


def flip_words(result: SortResult) -> str:
    """Say whether the run flipped the phases."""
    return "phases flipped" if result.phase_flipped else "phases not flipped"
