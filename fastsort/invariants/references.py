"""References made ready for the search: on rings, turned to every angle, with their slopes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._jit import kernel
from fastsort._types import Array, Floats, Images, Singles
from fastsort.invariants.rings import (
    FINER,
    SEARCH_ANGLES,
    normalize_spectra,
    rings_of,
    sample_rings,
    usable_images,
    working_box,
)

# The search over all angles and shifts sees so many of the innermost rings.
SEARCH_RINGS = 10


class References(NamedTuple):
    """References made ready for the search; V of them, mirror images included, which follow the others.

    Attributes
    ----------
    table : ndarray of float32, shape (V, 2, FINER, K, 2 A)
        Real and imaginary parts on rings; angle a of subtable s is (a + s / FINER) steps from -90 degrees.
    coarse : ndarray of float32, shape (V, 2, inner rings x angles, angles)
        The inner rings, turned by each of the search's angles.
    norm, coarse_norm : ndarray of float64, shape (V,)
        Zero for a flat reference.
    normal : ndarray of float64, shape (V, K, 3, 3)
        Matrix of a Gauss-Newton step (radians, columns, rows in pixels of the working box) on all rings up
        to each, for a correlation of 1.
    n_references : int
        Without mirror images.
    """

    table: Singles
    coarse: Singles
    norm: Floats
    coarse_norm: Floats
    normal: Floats
    n_references: int


def prepare_references(images: Images, weights: Array | None = None, mirror: bool = False) -> References:
    """Sample references on rings, and turn them.

    Parameters
    ----------
    images : ndarray of float32, shape (R, d, d)
        Finite.
    weights : ndarray of float, shape (R, d // 2 + 1), optional
        A filter for each: what is left of frequency 0, 1, ... cycles a box.
    mirror : bool
        Whether mirror images are added.

    Returns
    -------
    references : References
    """
    if mirror:
        images = np.concatenate([images, mirrored(images)])
        weights = None if weights is None else np.concatenate([weights, weights])
    count, box = images.shape[:2]
    rings = rings_of(working_box(box))
    n_rings, n_angles = rings.n_rings, rings.n_angles
    fine = sample_rings(images, rings, rings.reference_taps, soft_disk(box))
    fine[~usable_images(images)] = 0
    if weights is not None:
        fine *= weights[:, None, 1 : n_rings + 1, None].astype(np.float32)
    normalize_spectra(fine)
    table = _subtables(fine)
    coarse = _turned(table, min(SEARCH_RINGS, n_rings), n_angles // SEARCH_ANGLES)
    norm = np.sqrt((table[:, :, 0, :, :n_angles].astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
    coarse_norm = np.sqrt((coarse[..., 0].astype(np.float64) ** 2).sum(axis=(1, 2)))
    normal = np.empty((count, n_rings, 3, 3))
    _normal_equations(table, rings.cosine, rings.sine, 2 * np.pi / rings.box, normal)
    n_references = count // 2 if mirror else count
    return References(table, np.ascontiguousarray(coarse), norm, coarse_norm, normal, n_references)


def _subtables(fine: Singles) -> Singles:
    """Divide fine angles (V, 2, K, A FINER) into subtables of the image's angles, over a whole turn."""
    count, _, n_rings, n_fine = fine.shape
    n_angles = n_fine // FINER
    table = np.empty((count, 2, FINER, n_rings, 2 * n_angles), dtype=np.float32)
    parts = fine.reshape(count, 2, n_rings, n_angles, FINER).transpose(0, 1, 4, 2, 3)
    table[..., :n_angles] = parts
    table[:, 0, ..., n_angles:] = parts[:, 0]
    table[:, 1, ..., n_angles:] = -parts[:, 1]
    return table


def _turned(table: Singles, inner: int, stride: int) -> Singles:
    """Inner rings (V, 2, rings x angles, angles) turned by each of the search's angles."""
    angles = np.arange(SEARCH_ANGLES)
    turned = table[:, :, 0, :inner][..., np.add.outer(angles, angles) * stride]
    return turned.reshape(len(table), 2, inner * SEARCH_ANGLES, SEARCH_ANGLES)


def inner_ring_weights(count: int, box: int) -> Floats:
    """Return weights (count, box // 2 + 1) that leave of references what the search looks at."""
    weights = np.zeros((count, box // 2 + 1))
    weights[:, : SEARCH_RINGS + 1] = 1
    return weights


def mirrored(images: Images) -> Images:
    """Reverse the columns of images (..., d, d) about pixel d // 2."""
    box = images.shape[-1]
    return images[..., (2 * (box // 2) - np.arange(box)) % box]


def soft_disk(box: int, radius: float | None = None) -> Singles:
    """Return a disk about pixel d // 2, the inscribed one by default, with a soft edge inside its radius."""
    radius = float(box // 2) if radius is None else radius
    offset = np.arange(box) - box // 2
    edge = max(0.1 * radius, 1.0)
    distance = (np.hypot(offset[:, None], offset) - (radius - edge)) / edge
    return (0.5 + 0.5 * np.cos(np.pi * np.clip(distance, 0, 1))).astype(np.float32)


@kernel
def _normal_equations(table, cosine, sine, wave, normal):
    # normal (V, K, 3, 3): of the slopes along the angle, columns and rows, summed over the rings up to each.
    n_angles = cosine.size
    finer = table.shape[2]
    span = 2 * np.pi / (n_angles * finer)
    for v in range(table.shape[0]):
        total = 0.0
        turn_turn = 0.0
        turn_x = 0.0
        turn_y = 0.0
        x_x = 0.0
        x_y = 0.0
        y_y = 0.0
        for ring in range(table.shape[3]):
            k = wave * (ring + 1)
            for j in range(n_angles):
                re = table[v, 0, 0, ring, j]
                im = table[v, 1, 0, ring, j]
                # The neighbours on both sides. The one before is the last subtable's, half a turn further,
                # where it is conjugated.
                slope_re = (table[v, 0, 1, ring, j] - table[v, 0, finer - 1, ring, n_angles - 1 + j]) / span
                slope_im = (table[v, 1, 1, ring, j] + table[v, 1, finer - 1, ring, n_angles - 1 + j]) / span
                kx = k * cosine[j]
                ky = k * sine[j]
                power = re * re + im * im
                cross = slope_im * re - slope_re * im
                total += power
                turn_turn += slope_re * slope_re + slope_im * slope_im
                turn_x -= kx * cross
                turn_y -= ky * cross
                x_x += kx * kx * power
                x_y += kx * ky * power
                y_y += ky * ky * power
            scale = 1 / total if total > 0 else 1.0
            normal[v, ring, 0, 0] = turn_turn * scale
            normal[v, ring, 0, 1] = normal[v, ring, 1, 0] = turn_x * scale
            normal[v, ring, 0, 2] = normal[v, ring, 2, 0] = turn_y * scale
            normal[v, ring, 1, 1] = x_x * scale
            normal[v, ring, 1, 2] = normal[v, ring, 2, 1] = x_y * scale
            normal[v, ring, 2, 2] = y_y * scale
