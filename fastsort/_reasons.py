"""Why an image was kept or rejected: the codes that kernels write and the words that people read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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


def reason_names(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.str_]:
    """Return the words for an array of reason codes."""
    return np.array(REASONS)[codes]


def suspicions(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.str_]:
    """Return what speaks against images: the words for codes, but "unlike" where they say valid."""
    return reason_names(np.where(codes == VALID, UNLIKE, codes))
