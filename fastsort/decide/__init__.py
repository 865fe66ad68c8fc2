"""From measurements to a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsort._lazy import lazy_names

if TYPE_CHECKING:
    from fastsort.decide.by_hand import choose_by_hand, keep_best
    from fastsort.decide.combine import combine_votes
    from fastsort.decide.corrections import learn_from_choices
    from fastsort.decide.decoys import estimate_errors, make_decoys
    from fastsort.decide.result import SortResult
    from fastsort.decide.verdict import cut_again

__all__ = [
    "SortResult",
    "choose_by_hand",
    "combine_votes",
    "cut_again",
    "estimate_errors",
    "keep_best",
    "learn_from_choices",
    "make_decoys",
]

__getattr__, __dir__ = lazy_names(
    "fastsort.decide",
    {
        "SortResult": "fastsort.decide.result",
        "choose_by_hand": "fastsort.decide.by_hand",
        "cut_again": "fastsort.decide.verdict",
        "keep_best": "fastsort.decide.by_hand",
        "learn_from_choices": "fastsort.decide.corrections",
        "combine_votes": "fastsort.decide.combine",
        "make_decoys": "fastsort.decide.decoys",
        "estimate_errors": "fastsort.decide.decoys",
    },
)
