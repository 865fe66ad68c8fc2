"""What lies on a micrograph and where: carbon film, ice, clumps of particles, and free places between."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt

from fastsort._types import Array, Bools, Floats, Singles
from fastsort.simulate.junk import cloud, wavy_depth

CONTAMINANTS = ("carbon", "crystals", "ice", "aggregates")

# Of the micrographs, where other contamination is allowed; the edge takes this part of what is covered.
_WITH_CARBON, _CARBON_PART = 1 / 3, (0.4, 0.9)
# How often each kind of piece is put down. Radii are in diameters of the particle.
_WEIGHTS = {"crystals": 0.3, "ice": 0.5, "aggregates": 0.2}
_RADII = {"crystals": (0.8, 2.2), "ice": (0.3, 0.7)}
_CLUMP = (5, 16)
# Neighbours in a clump are so many diameters apart, in projection.
_CLUMP_STEP = (0.4, 0.75)
# Of a crystal's corners.
_SHARPNESS = 12.0
# Distances to contamination are measured on every so-manieth pixel.
_COARSE = 4
_TRIES = 100


class Contamination(NamedTuple):
    """What lies on a canvas besides single particles.

    Attributes
    ----------
    mask : ndarray of bool, shape (size, size)
        Where contamination is.
    mass : ndarray of float32, shape (size, size)
        Of film and ice, in units of the particle's mean projection.
    film : ndarray of float32, shape (size, size)
        1 where carbon is, 0 elsewhere, with a soft edge.
    clumped : ndarray of float64, shape (m, 2)
        Centres, (y, x), of the particles in clumps.
    """

    mask: Bools
    mass: Singles
    film: Singles
    clumped: Floats


def contaminate(
    rng: np.random.Generator,
    size: int,
    frame: tuple[slice, slice],
    diameter: float,
    share: float,
    kinds: tuple[str, ...],
) -> Contamination:
    """Put down film, ice and clumps of particles until they cover a share of the frame.

    Parameters
    ----------
    rng : numpy.random.Generator
    size : int
        Side in pixels of the canvas, whose opposite edges are neighbours.
    frame : (slice, slice)
        The part of the canvas that the micrograph shows.
    diameter : float
        Of the particle, in pixels.
    share : float
        Of the frame.
    kinds : tuple of str
        Some of `CONTAMINANTS`. Without others, every micrograph has its carbon; with them a third has.
    """
    mass, film = np.zeros((2, size, size), np.float32)
    field = Contamination(np.zeros((size, size), bool), mass, film, np.empty((0, 2)))
    pieces = [kind for kind in kinds if kind != "carbon"]
    if share and "carbon" in kinds and not (pieces and rng.random() > _WITH_CARBON):
        _lay_carbon(rng, field, frame, diameter, share * (rng.uniform(*_CARBON_PART) if pieces else 1.0))
    weights = np.array([_WEIGHTS[kind] for kind in pieces])
    clumps = [field.clumped]
    shown = field.mask[frame]
    while pieces and (missing := share - np.count_nonzero(shown) / shown.size) > 0:
        middle = rng.uniform(0, size, 2)
        # No piece is much larger than what is missing, or small shares would become large ones.
        largest = max(math.sqrt(missing * shown.size / math.pi), 0.2 * diameter)
        kind = pieces[int(rng.choice(len(pieces), p=weights / weights.sum()))]
        if kind == "aggregates":
            # One particle, or two, would be no clump.
            n = max(min(int(rng.integers(*_CLUMP)), math.ceil(2 * (largest / diameter) ** 2)), 3)
            clumps.append(middle + diameter * _clump(rng, n))
            for place in clumps[-1]:
                _put(field.mask, _disk(diameter), place, np.logical_or)
        else:
            radius = min(rng.uniform(*_RADII[kind]) * diameter, largest)
            piece = _crystal(rng, radius) if kind == "crystals" else _ice(rng, radius)
            _put(field.mask, piece > 0, middle, np.logical_or)
            _put(field.mass, piece, middle)
    return field._replace(clumped=np.concatenate(clumps))


def free_places(
    rng: np.random.Generator,
    mask: Bools,
    frame: tuple[slice, slice],
    diameter: float,
    crowding: float,
    spacing: float,
) -> Floats:
    """Draw where single particles lie: in and around the frame, apart, and off the contamination.

    Parameters
    ----------
    rng : numpy.random.Generator
    mask : ndarray of bool, shape (size, size)
        Where contamination is.
    frame : (slice, slice)
    diameter : float
        In pixels.
    crowding : float
        Number of particles, as the area of their disks over the area where their centres may lie.
    spacing : float
        Least distance of two centres, in diameters.

    Returns
    -------
    places : ndarray of float64, shape (m, 2)
        As (y, x); fewer where not all fit.
    """
    coarse = mask[::_COARSE, ::_COARSE]
    # A mask without a single True has no distances.
    distance = distance_transform_edt(~coarse) if coarse.any() else np.full(coarse.shape, np.inf)
    free = _COARSE * distance > diameter / 2
    # Particles further outside than their radius would never be seen.
    near = np.zeros_like(free)
    near[tuple(_widened(part, diameter / 2) for part in frame)] = True
    corners = _COARSE * np.argwhere(free & near)
    number = round(crowding * len(corners) * _COARSE**2 / (math.pi / 4 * diameter**2))
    places = np.empty((number, 2))
    n = 0
    for _ in range(_TRIES * number):
        if n == number:
            break
        place = corners[rng.integers(len(corners))] + _COARSE * rng.random(2)
        if not n or (np.square(places[:n] - place).sum(axis=1)).min() >= (spacing * diameter) ** 2:
            places[n] = place
            n += 1
    return places[:n]


def add_images(canvas: Singles, images: Singles, places: Floats) -> None:
    """Add images to a canvas, in place, their pixel box // 2 on the whole part of the places (y, x)."""
    for image, place in zip(images, places, strict=True):
        _put(canvas, image, place)


def _widened(part: slice, by: float) -> slice:
    return slice(max(math.floor((part.start - by) / _COARSE), 0), math.ceil((part.stop + by) / _COARSE))


def _put(canvas: Array, patch: Array, place: Floats, how: np.ufunc = np.add) -> None:
    """Combine a canvas with a patch about a place; what leaves it on one side comes back on the other."""
    rows, columns = (
        (math.floor(middle) - side // 2 + np.arange(side)) % len(canvas)
        for middle, side in zip(place, patch.shape, strict=True)
    )
    where = np.ix_(rows, columns)
    canvas[where] = how(canvas[where], patch)


def _lay_carbon(
    rng: np.random.Generator, field: Contamination, frame: tuple[slice, slice], diameter: float, share: float
) -> None:
    """Lay a film with a round hole on the canvas, so that the film covers a share of the frame."""
    size = len(field.mask)
    # Holes are some times larger than micrographs: the edge is nearly straight or clearly round.
    direction, hole = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 2.0) * size
    line = np.arange(size, dtype=np.float32) - size / 2
    down, across = math.sin(direction), math.cos(direction)
    depth = np.hypot(line[:, None] - hole * down, line - hole * across)
    along = line[:, None] * across - line * down
    for period in (8.0 * diameter, 3.0 * diameter, 1.2 * diameter):
        depth += 0.01 * period * np.cos(2 * math.pi / period * along + float(rng.uniform(0, 2 * math.pi)))
    depth -= np.float32(np.quantile(depth[frame][::_COARSE, ::_COARSE], 1 - share))
    # The film is thickest at its edge, where it curled when it was made.
    thickness = 1 + 0.6 * np.exp(-np.maximum(depth, 0) / (0.4 * diameter))
    field.film[:] = np.clip(depth / (0.05 * diameter) + 0.5, 0, 1)
    field.mass[:] += rng.uniform(3.0, 6.0) * field.film * thickness
    field.mask[:] = depth > 0


def _crystal(rng: np.random.Generator, radius: float) -> Singles:
    """Draw the mass of a crystal: facets, round corners, steep sides, an inside mottled by diffraction."""
    box = 2 * math.ceil(1.4 * radius)
    y, x = np.ogrid[-1.4 : 1.4 : box * 1j, -1.4 : 1.4 : box * 1j]
    walls = 2 * np.pi / 6 * (np.arange(6) + rng.uniform(-0.25, 0.25, 6) + rng.random())[:, None, None]
    reach = rng.uniform(0.7, 1.1, (6, 1, 1)) - np.cos(walls) * x - np.sin(walls) * y
    # A smooth minimum of the distances to the walls.
    depth = -np.log(np.exp(-_SHARPNESS * reach).sum(axis=0)) / _SHARPNESS
    mottled = 1 + 0.4 * cloud(rng, box, (1 / 20, 1 / 8))
    return (rng.uniform(5, 12) * _steep(depth, radius) * np.clip(mottled, 0.2, None)).astype(np.float32)


def _ice(rng: np.random.Generator, radius: float) -> Singles:
    """Draw the mass of a small piece of ice: round, thickest in the middle."""
    depth = wavy_depth(rng, 2 * math.ceil(1.4 * radius), radius) / radius
    return (rng.uniform(2.5, 8) * _steep(depth, radius) * (0.6 + 0.4 * depth)).astype(np.float32)


def _steep(depth: Floats, radius: float) -> Floats:
    """Return a profile that rises steeply where `depth`, in radii, is 0, and is 0 outside."""
    return np.sqrt(np.clip(2 * depth, 0, 1)) * np.clip(radius * depth + 0.5, 0, 1)


def _clump(rng: np.random.Generator, n: int) -> Floats:
    """Draw centres of n particles that stick together, in diameters."""
    places = np.zeros((n, 2))
    for i in range(1, n):
        direction, step = rng.uniform(0, 2 * np.pi), rng.uniform(*_CLUMP_STEP)
        places[i] = places[rng.integers(i)] + (step * math.sin(direction), step * math.cos(direction))
    return places


def _disk(diameter: float) -> Bools:
    side = 2 * math.ceil(diameter / 2) + 1
    line = np.arange(side) - side // 2
    return np.hypot(line[:, None], line) <= diameter / 2
