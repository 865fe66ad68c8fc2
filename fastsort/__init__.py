"""Unsupervised sorting of picked cryo-EM particle images.

The main functions stand here; what they are made of stands in `fastsort.images`, `fastsort.radial`,
`fastsort.subspaces`, `fastsort.invariants`, `fastsort.denoising`, `fastsort.decide` and
`fastsort.simulate`. Nothing heavy is imported before one of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsort._checks import InputError
from fastsort._lazy import lazy_names
from fastsort._version import __version__ as __version__

if TYPE_CHECKING:
    import fastsort.decide as decide
    import fastsort.denoising as denoising
    import fastsort.images as images
    import fastsort.invariants as invariants
    import fastsort.radial as radial
    import fastsort.simulate as simulate
    import fastsort.subspaces as subspaces
    from fastsort.classify import classify_particles
    from fastsort.decide.result import SortResult
    from fastsort.decide.verdict import cut_again
    from fastsort.denoise import denoise_images
    from fastsort.images.cluster import use_cluster
    from fastsort.images.crop import fourier_crop
    from fastsort.images.ctf import phase_flip
    from fastsort.invariants.filter import invariant_filter
    from fastsort.particles.open import open_particles
    from fastsort.particles.source import Particles
    from fastsort.pick import pick_particles
    from fastsort.radial.filter import radial_filter
    from fastsort.report.finished import load_result
    from fastsort.simulate.particles import simulate_particles
    from fastsort.simulate.project import write_project
    from fastsort.sort import sort_particles
    from fastsort.subspaces.filter import subspace_filter
    from fastsort.update import update_particles

__all__ = [
    "InputError",
    "Particles",
    "SortResult",
    "classify_particles",
    "cut_again",
    "decide",
    "denoise_images",
    "denoising",
    "fourier_crop",
    "images",
    "invariant_filter",
    "invariants",
    "load_result",
    "open_particles",
    "phase_flip",
    "pick_particles",
    "radial",
    "radial_filter",
    "simulate",
    "simulate_particles",
    "sort_particles",
    "subspace_filter",
    "subspaces",
    "update_particles",
    "use_cluster",
    "write_project",
]

_ROOMS = ("decide", "denoising", "images", "invariants", "radial", "simulate", "subspaces")
# Names that stood here in version 0.1.0; they stand in their rooms now.
_FORMER = {
    "align_images": "fastsort.invariants.align",
    "apply_alignment": "fastsort.invariants.align",
    "class_averages": "fastsort.invariants.averages",
    "classify_images": "fastsort.invariants.classes",
    "combine_votes": "fastsort.decide.combine",
    "contrast_transfer": "fastsort.images.ctf",
    "estimate_errors": "fastsort.decide.decoys",
    "fit_subspaces": "fastsort.subspaces.fit",
    "fourier_ring_correlation": "fastsort.invariants.ring_correlation",
    "group_classes": "fastsort.invariants.groups",
    "invariant_features": "fastsort.invariants.features",
    "make_decoys": "fastsort.decide.decoys",
    "map_features": "fastsort.invariants.map",
    "map_particles": "fastsort.invariants.map",
    "match_to_references": "fastsort.invariants.align",
    "project_volume": "fastsort.simulate.projections",
    "pswf_basis": "fastsort.subspaces.pswf",
    "pswf_coefficients": "fastsort.subspaces.pswf",
    "pswf_images": "fastsort.subspaces.pswf",
    "rank_classes": "fastsort.invariants.ranking",
    "relative_energy": "fastsort.subspaces.steerable",
    "sorting_factor": "fastsort.subspaces.scores",
    "steerable_pca": "fastsort.subspaces.steerable",
    "subspace_scores": "fastsort.subspaces.scores",
    "zernike_basis": "fastsort.invariants.zernike",
    "zernike_moments": "fastsort.invariants.zernike",
}

__getattr__, __dir__ = lazy_names(
    "fastsort",
    {
        "open_particles": "fastsort.particles.open",
        "Particles": "fastsort.particles.source",
        "fourier_crop": "fastsort.images.crop",
        "phase_flip": "fastsort.images.ctf",
        "radial_filter": "fastsort.radial.filter",
        "subspace_filter": "fastsort.subspaces.filter",
        "invariant_filter": "fastsort.invariants.filter",
        "sort_particles": "fastsort.sort",
        "SortResult": "fastsort.decide.result",
        "load_result": "fastsort.report.finished",
        "cut_again": "fastsort.decide.verdict",
        "update_particles": "fastsort.update",
        "classify_particles": "fastsort.classify",
        "pick_particles": "fastsort.pick",
        "denoise_images": "fastsort.denoise",
        "use_cluster": "fastsort.images.cluster",
        "simulate_particles": "fastsort.simulate.particles",
        "write_project": "fastsort.simulate.project",
        **{room: f"fastsort.{room}" for room in _ROOMS},
        **_FORMER,
    },
)
