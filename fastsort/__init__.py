"""Unsupervised sorting of picked cryo-EM particle images.

The public functions, in the order in which a particle meets them. Nothing heavy is imported
before one of them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastsort._checks import InputError

if TYPE_CHECKING:
    from fastsort.images.crop import fourier_crop
    from fastsort.images.ctf import contrast_transfer, phase_flip
    from fastsort.particles.source import Particles, open_particles
    from fastsort.radial.filter import radial_filter
    from fastsort.simulate import project_volume, simulate_particles, write_project
    from fastsort.sort import sort_particles

__version__ = "0.1.0"

_HOMES = {
    "open_particles": "fastsort.particles.source",
    "Particles": "fastsort.particles.source",
    "fourier_crop": "fastsort.images.crop",
    "contrast_transfer": "fastsort.images.ctf",
    "phase_flip": "fastsort.images.ctf",
    "radial_filter": "fastsort.radial.filter",
    "sort_particles": "fastsort.sort",
    "simulate_particles": "fastsort.simulate",
    "project_volume": "fastsort.simulate",
    "write_project": "fastsort.simulate",
}

__all__ = [
    "InputError",
    "Particles",
    "contrast_transfer",
    "fourier_crop",
    "open_particles",
    "phase_flip",
    "project_volume",
    "radial_filter",
    "simulate_particles",
    "sort_particles",
    "write_project",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastsort' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
