"""Where the mass of an image lies: the radial template and what departs from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsort._lazy import lazy_names

if TYPE_CHECKING:
    from fastsort.radial.filter import radial_filter

__all__ = [
    "radial_filter",
]

__getattr__, __dir__ = lazy_names(
    "fastsort.radial",
    {
        "radial_filter": "fastsort.radial.filter",
    },
)
