"""Why an image was kept or rejected: the codes that kernels write and the words that people read."""

from __future__ import annotations

import numpy as np

from fastsort._types import Bools, Codes, Words

REASONS = (
    "valid",
    "noise",
    "partial",
    "multiple",
    "off-centre",
    "contamination",
    "bad_pixels",
    "flat",
    "duplicate",
    "rare_view",
    "outside",
    "unlike",
)
(
    VALID,
    NOISE,
    PARTIAL,
    MULTIPLE,
    OFF_CENTRE,
    CONTAMINATION,
    BAD_PIXELS,
    FLAT,
    DUPLICATE,
    RARE_VIEW,
    OUTSIDE,
    UNLIKE,
) = range(len(REASONS))


def reason_names(codes: Codes) -> Words:
    """Return the words for an array of reason codes, which take 52 times the memory."""
    return np.array(REASONS)[codes]


def reason_codes(words: Words) -> Codes:
    """Return the codes for an array of reasons in words.

    Raises
    ------
    ValueError
        If a word is no reason.
    """
    codes = np.full(words.shape, -1, np.int8)
    for code, name in enumerate(REASONS):
        codes[words == name] = code
    if (codes < 0).any():
        raise ValueError(f"{str(words[codes < 0][0])!r} is no reason")
    return codes


def verdict_in_words(keep: Bools, suspicion: Codes) -> Words:
    """Return "valid" for images that are kept, and for the others the words for what speaks against them."""
    return reason_names(np.where(keep, np.int8(VALID), suspicion))


def suspected(codes: Codes) -> Codes:
    """Return what speaks against images: the codes, but UNLIKE where they say VALID."""
    return np.where(codes == VALID, np.int8(UNLIKE), codes)


def count_reasons(codes: Codes) -> dict[str, int]:
    """Return how many images have each reason, by its word."""
    return dict(zip(REASONS, np.bincount(codes, minlength=len(REASONS)).tolist(), strict=True))
