"""Unsupervised sorting of picked cryo-EM particle images.

The public functions, in the order in which a particle meets them. Nothing heavy is imported
before one of them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastsort._checks import InputError
from fastsort._version import __version__ as __version__

if TYPE_CHECKING:
    from fastsort.classify import classify_particles
    from fastsort.decide.combine import combine_votes
    from fastsort.decide.decoys import estimate_errors, make_decoys
    from fastsort.decide.verdict import cut_again
    from fastsort.images.cluster import use_cluster
    from fastsort.images.crop import fourier_crop
    from fastsort.images.ctf import contrast_transfer, phase_flip
    from fastsort.invariants.align import align_images, apply_alignment, match_to_references
    from fastsort.invariants.averages import class_averages
    from fastsort.invariants.classes import classify_images, group_classes, rank_classes
    from fastsort.invariants.features import invariant_features
    from fastsort.invariants.filter import invariant_filter
    from fastsort.invariants.map import map_features, map_particles
    from fastsort.invariants.ring_correlation import fourier_ring_correlation
    from fastsort.invariants.zernike import zernike_basis, zernike_moments
    from fastsort.particles.source import Particles, open_particles
    from fastsort.radial.filter import radial_filter
    from fastsort.simulate import project_volume, simulate_particles, write_project
    from fastsort.sort import sort_particles
    from fastsort.subspaces.filter import subspace_filter
    from fastsort.subspaces.fit import fit_subspaces
    from fastsort.subspaces.pswf import pswf_basis, pswf_coefficients, pswf_images
    from fastsort.subspaces.scores import denoise, sorting_factor, subspace_scores
    from fastsort.subspaces.steerable import relative_energy, steerable_pca
    from fastsort.update import update_particles

_HOMES = {
    "open_particles": "fastsort.particles.source",
    "Particles": "fastsort.particles.source",
    "fourier_crop": "fastsort.images.crop",
    "contrast_transfer": "fastsort.images.ctf",
    "phase_flip": "fastsort.images.ctf",
    "radial_filter": "fastsort.radial.filter",
    "pswf_basis": "fastsort.subspaces.pswf",
    "pswf_coefficients": "fastsort.subspaces.pswf",
    "pswf_images": "fastsort.subspaces.pswf",
    "steerable_pca": "fastsort.subspaces.steerable",
    "relative_energy": "fastsort.subspaces.steerable",
    "fit_subspaces": "fastsort.subspaces.fit",
    "subspace_filter": "fastsort.subspaces.filter",
    "sorting_factor": "fastsort.subspaces.scores",
    "subspace_scores": "fastsort.subspaces.scores",
    "denoise": "fastsort.subspaces.scores",
    "zernike_basis": "fastsort.invariants.zernike",
    "zernike_moments": "fastsort.invariants.zernike",
    "invariant_features": "fastsort.invariants.features",
    "invariant_filter": "fastsort.invariants.filter",
    "align_images": "fastsort.invariants.align",
    "apply_alignment": "fastsort.invariants.align",
    "match_to_references": "fastsort.invariants.align",
    "class_averages": "fastsort.invariants.averages",
    "fourier_ring_correlation": "fastsort.invariants.ring_correlation",
    "map_features": "fastsort.invariants.map",
    "map_particles": "fastsort.invariants.map",
    "classify_images": "fastsort.invariants.classes",
    "rank_classes": "fastsort.invariants.classes",
    "group_classes": "fastsort.invariants.classes",
    "classify_particles": "fastsort.classify",
    "combine_votes": "fastsort.decide.combine",
    "estimate_errors": "fastsort.decide.decoys",
    "make_decoys": "fastsort.decide.decoys",
    "sort_particles": "fastsort.sort",
    "cut_again": "fastsort.decide.verdict",
    "update_particles": "fastsort.update",
    "use_cluster": "fastsort.images.cluster",
    "simulate_particles": "fastsort.simulate",
    "project_volume": "fastsort.simulate",
    "write_project": "fastsort.simulate",
}

__all__ = [
    "InputError",
    "Particles",
    "align_images",
    "apply_alignment",
    "class_averages",
    "classify_images",
    "classify_particles",
    "combine_votes",
    "contrast_transfer",
    "cut_again",
    "denoise",
    "estimate_errors",
    "fit_subspaces",
    "fourier_crop",
    "fourier_ring_correlation",
    "group_classes",
    "invariant_features",
    "invariant_filter",
    "make_decoys",
    "map_features",
    "map_particles",
    "match_to_references",
    "open_particles",
    "phase_flip",
    "project_volume",
    "pswf_basis",
    "pswf_coefficients",
    "pswf_images",
    "radial_filter",
    "rank_classes",
    "relative_energy",
    "simulate_particles",
    "sort_particles",
    "sorting_factor",
    "steerable_pca",
    "subspace_filter",
    "subspace_scores",
    "update_particles",
    "use_cluster",
    "write_project",
    "zernike_basis",
    "zernike_moments",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastsort' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
