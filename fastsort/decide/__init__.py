"""From measurements to a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsort._lazy import lazy_names

if TYPE_CHECKING:
    from fastsort.decide.combine import combine_votes
    from fastsort.decide.decoys import estimate_errors, make_decoys
    from fastsort.decide.result import SortResult
    from fastsort.decide.verdict import cut_again

__all__ = [
    "SortResult",
    "combine_votes",
    "cut_again",
    "estimate_errors",
    "make_decoys",
]

__getattr__, __dir__ = lazy_names(
    "fastsort.decide",
    {
        "SortResult": "fastsort.decide.result",
        "cut_again": "fastsort.decide.verdict",
        "combine_votes": "fastsort.decide.combine",
        "make_decoys": "fastsort.decide.decoys",
        "estimate_errors": "fastsort.decide.decoys",
    },
)
