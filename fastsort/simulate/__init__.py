"""Labelled stacks: phantoms, projections, CTF, noise, every kind of junk."""

from __future__ import annotations

from fastsort.simulate.particles import particle_blocks, plan_particles, simulate_particles
from fastsort.simulate.project import write_project
from fastsort.simulate.projections import project_volume

__all__ = ["particle_blocks", "plan_particles", "project_volume", "simulate_particles", "write_project"]
