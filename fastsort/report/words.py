"""What the picture and the page both say: words for reasons, names on one line, facts about a run."""

from __future__ import annotations

import math

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

KINDS = tuple({VALID: "kept", RARE_VIEW: "rescued"}.get(code, "rejected") for code in range(len(REASONS)))
LABELS = tuple(
    {VALID: "kept", RARE_VIEW: "rescued: rare view"}.get(code, name) for code, name in enumerate(REASONS)
)
MEANINGS = {
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
}
_LONGEST_NAME = 120


def one_line(name: str) -> str:
    """Return a name on one line, shortened to 120 letters."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 2]}…{name[-_LONGEST_NAME // 2 :]}"


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
