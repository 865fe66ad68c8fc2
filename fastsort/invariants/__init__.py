"""What an image looks like however it lies: invariant features, alignment, classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsort._lazy import lazy_names

if TYPE_CHECKING:
    from fastsort.invariants.align import align_images, apply_alignment, match_to_references
    from fastsort.invariants.averages import class_averages
    from fastsort.invariants.classes import classify_images
    from fastsort.invariants.features import invariant_features
    from fastsort.invariants.filter import invariant_filter
    from fastsort.invariants.groups import group_classes
    from fastsort.invariants.map import map_features, map_particles
    from fastsort.invariants.ranking import rank_classes
    from fastsort.invariants.ring_correlation import fourier_ring_correlation
    from fastsort.invariants.zernike import zernike_basis, zernike_moments

__all__ = [
    "align_images",
    "apply_alignment",
    "class_averages",
    "classify_images",
    "fourier_ring_correlation",
    "group_classes",
    "invariant_features",
    "invariant_filter",
    "map_features",
    "map_particles",
    "match_to_references",
    "rank_classes",
    "zernike_basis",
    "zernike_moments",
]

__getattr__, __dir__ = lazy_names(
    "fastsort.invariants",
    {
        "invariant_filter": "fastsort.invariants.filter",
        "invariant_features": "fastsort.invariants.features",
        "zernike_basis": "fastsort.invariants.zernike",
        "zernike_moments": "fastsort.invariants.zernike",
        "map_features": "fastsort.invariants.map",
        "map_particles": "fastsort.invariants.map",
        "align_images": "fastsort.invariants.align",
        "apply_alignment": "fastsort.invariants.align",
        "match_to_references": "fastsort.invariants.align",
        "class_averages": "fastsort.invariants.averages",
        "fourier_ring_correlation": "fastsort.invariants.ring_correlation",
        "classify_images": "fastsort.invariants.classes",
        "rank_classes": "fastsort.invariants.ranking",
        "group_classes": "fastsort.invariants.groups",
    },
)
