"""What an image is made of: prolate coefficients and mixtures of subspaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsort._lazy import lazy_names

if TYPE_CHECKING:
    from fastsort.subspaces.filter import subspace_filter
    from fastsort.subspaces.fit import fit_subspaces
    from fastsort.subspaces.pswf import pswf_basis, pswf_coefficients, pswf_images
    from fastsort.subspaces.scores import denoise, sorting_factor, subspace_scores
    from fastsort.subspaces.steerable import relative_energy, steerable_pca

__all__ = [
    "denoise",
    "fit_subspaces",
    "pswf_basis",
    "pswf_coefficients",
    "pswf_images",
    "relative_energy",
    "sorting_factor",
    "steerable_pca",
    "subspace_filter",
    "subspace_scores",
]

__getattr__, __dir__ = lazy_names(
    "fastsort.subspaces",
    {
        "subspace_filter": "fastsort.subspaces.filter",
        "pswf_basis": "fastsort.subspaces.pswf",
        "pswf_coefficients": "fastsort.subspaces.pswf",
        "pswf_images": "fastsort.subspaces.pswf",
        "fit_subspaces": "fastsort.subspaces.fit",
        "subspace_scores": "fastsort.subspaces.scores",
        "sorting_factor": "fastsort.subspaces.scores",
        "denoise": "fastsort.subspaces.scores",
        "steerable_pca": "fastsort.subspaces.steerable",
        "relative_energy": "fastsort.subspaces.steerable",
    },
)
