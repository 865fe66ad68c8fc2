"""Labelled images, projects and micrographs to test with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsort._lazy import lazy_names

if TYPE_CHECKING:
    from fastsort.simulate.micrographs import simulate_micrographs, write_micrographs
    from fastsort.simulate.particles import particle_blocks, simulate_particles
    from fastsort.simulate.plan import plan_particles
    from fastsort.simulate.project import write_project
    from fastsort.simulate.projections import project_volume

__all__ = [
    "particle_blocks",
    "plan_particles",
    "project_volume",
    "simulate_micrographs",
    "simulate_particles",
    "write_micrographs",
    "write_project",
]

__getattr__, __dir__ = lazy_names(
    "fastsort.simulate",
    {
        "simulate_particles": "fastsort.simulate.particles",
        "plan_particles": "fastsort.simulate.plan",
        "particle_blocks": "fastsort.simulate.particles",
        "project_volume": "fastsort.simulate.projections",
        "simulate_micrographs": "fastsort.simulate.micrographs",
        "write_micrographs": "fastsort.simulate.micrographs",
        "write_project": "fastsort.simulate.project",
    },
)
