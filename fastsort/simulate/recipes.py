"""Recipes for test sets, published ones and our own: which junk, which shifts, which noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastsort._checks import InputError, check_choice
from fastsort._types import Floats

KINDS = (
    "noise",
    "picked",
    "partial",
    "multiple",
    "off-centre",
    "ice",
    "carbon",
    "texture",
    "photograph",
    "hot_pixels",
)

# The public code of the radial-profile paper pads a density of 65 voxels to 85.
PAPER_BOX = 85
_OFF_CENTRE = (0.20, 0.33)


class Recipe(NamedTuple):
    """How a test set is made; lengths are in parts of the box.

    Attributes
    ----------
    kinds : tuple of str
        Kinds of junk.
    snr_definition, noise : str
        As for `simulate_particles`.
    fill : float
        Diameter of the particle.
    centring : float
        Standard deviation of a good particle's shift on each axis.
    normalize : bool
        Whether the background of every image gets mean 0 and deviation 1.
    source_box : int
        Box in pixels before the images were downsampled.
    partial, multiple : (float, float)
        Least and largest shift of particles of these kinds.
    along_axes : bool
        Whether these are drawn for each axis; otherwise for a random direction.
    mean_of_two : bool
        Whether an image with two particles is the mean of two images, of which the second is moved; otherwise
        the sum of two that are moved in opposite directions.
    strength : (float, float)
        Least and largest factor that a particle's projection is multiplied with.
    """

    kinds: tuple[str, ...]
    snr_definition: str
    noise: str
    fill: float
    centring: float
    normalize: bool
    source_box: int
    partial: tuple[float, float]
    multiple: tuple[float, float]
    along_axes: bool
    mean_of_two: bool
    strength: tuple[float, float]


_HARD = Recipe(
    kinds=("noise", "picked", "partial", "multiple", "off-centre", "ice", "carbon", "texture"),
    snr_definition="power",
    noise="decaying",
    fill=1 / 1.5,
    centring=0.03,
    normalize=True,
    source_box=0,
    partial=(0.40, 0.60),
    multiple=(0.20, 0.32),
    along_axes=False,
    mean_of_two=False,
    strength=(1.0, 1.0),
)
RECIPES = {
    "all": _HARD,
    "paper": Recipe(
        kinds=("noise", "partial", "multiple"),
        snr_definition="mean",
        noise="radial",
        fill=0.57,
        centring=0.0,
        normalize=False,
        source_box=PAPER_BOX,
        partial=(0.25, 0.66),
        multiple=(0.10, 0.66),
        along_axes=True,
        mean_of_two=True,
        strength=(2 / 3, 3 / 2),
    ),
    "ppca": _HARD._replace(
        kinds=("photograph", "noise"), snr_definition="image_power", noise="white", normalize=False
    ),
}


def find_recipe(junk: str | Sequence[str]) -> Recipe:
    """Return the recipe with this name, or the recipe "all" with these kinds of junk."""
    if isinstance(junk, str):
        if junk not in RECIPES and junk in KINDS:
            junk = (junk,)
        else:
            return RECIPES[check_choice("junk", junk, tuple(RECIPES) + KINDS)]
    kinds = tuple(junk)
    if not kinds:
        raise InputError(
            f"junk names no kinds; got {junk!r}: give a recipe or some kinds (n_junk=0 makes none)."
        )
    for kind in kinds:
        check_choice("junk", kind, KINDS)
    return _HARD._replace(kinds=kinds)


def particle_shifts(kind: str, recipe: Recipe, rng: np.random.Generator) -> Floats:
    """Draw where the particles of one image lie.

    Parameters
    ----------
    kind : str
        "good", or a kind of junk.
    recipe : Recipe
    rng : numpy.random.Generator

    Returns
    -------
    shifts : ndarray of float64, shape (0, 1 or 2, 2)
        As (y, x) from the middle, in parts of the box.
    """
    away = _along_axes if recipe.along_axes else _any_direction
    if kind == "good":
        return recipe.centring * rng.standard_normal((1, 2))
    if kind == "partial":
        return away(rng, recipe.partial)[None]
    if kind == "off-centre":
        return _any_direction(rng, _OFF_CENTRE)[None]
    if kind == "multiple" and recipe.mean_of_two:
        return np.stack([np.zeros(2), away(rng, recipe.multiple)])
    if kind == "multiple":
        return np.outer((1, -1), away(rng, recipe.multiple))
    return np.empty((0, 2))


def _any_direction(rng: np.random.Generator, limits: tuple[float, float]) -> Floats:
    length, direction = rng.uniform(*limits), rng.uniform(0, 2 * np.pi)
    return length * np.array([math.sin(direction), math.cos(direction)])


def _along_axes(rng: np.random.Generator, limits: tuple[float, float]) -> Floats:
    return rng.uniform(*limits, 2) * rng.choice((-1, 1), 2)
