"""How large the particle is, and whether it is bright or dark, by what was learned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsort.subspaces.learn import LearnedShapes
from fastsort.subspaces.shapes import relative_level


def particle_radius(learned: LearnedShapes) -> float:
    """Return the radius of the particle in pixels of the cropped image: where its variance ends.

    Notes
    -----
    The radius that holds 95 % of the variance of the particle, its squared mean included, above the
    variance of the background.
    """
    box = learned.basis.box
    functions = learned.basis.functions.reshape(len(learned.basis.functions), -1).astype(np.float64)
    excess = np.square(np.tensordot(learned.particle.mean, functions[learned.blocks[0][0]], 1))
    level = relative_level(learned.particle, learned.background, learned.blocks)
    for members, near, far in zip(
        learned.blocks, learned.particle.covariances, learned.background.covariances, strict=True
    ):
        for columns in members:
            part = functions[columns]
            excess += (part * ((near - level * far) @ part)).sum(axis=0)
    offset = np.arange(box) - box // 2
    ring = np.rint(np.hypot.outer(offset, offset).ravel()).astype(int)
    inside = ring < box // 2
    profile = np.bincount(ring[inside], excess[inside]) / np.bincount(ring[inside])
    rim = profile[-max(2, box // 12) :].mean()
    energy = np.cumsum(np.maximum(profile - rim, 0) * np.arange(len(profile)))
    radius = 0.5 + float(np.interp(0.95, energy / max(energy[-1], 1e-30), np.arange(len(profile))))
    return float(np.clip(radius, 0.1 * box, 0.5 * box))


def mean_contrast(image: npt.NDArray[np.floating]) -> str:
    """Return whether the middle of a mean image is "bright" or "dark" against its rim.

    A hollow particle counts as what its wall is.
    """
    box = len(image)
    offset = np.arange(box) - box // 2
    distance = np.hypot.outer(offset, offset)
    middle, rim = distance <= 0.3 * box, (distance > 0.4 * box) & (distance < box // 2)
    return "bright" if image[middle].mean() >= image[rim].mean() else "dark"
