"""Functions on a disk: what an average may look like, and how it appears on rings of the Fourier plane.

An average is zero outside the particle's disk. In there it is a sum of Fourier-Bessel functions, each with
one angular index m: turned by an angle phi, it is multiplied with exp(-i m phi).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.special
from scipy.interpolate import CubicSpline

from fastsort._types import Floats, Images, Indices

Complexes = npt.NDArray[np.complexfloating[Any, Any]]
# Points along a radius, for each pixel of the box, between which functions are interpolated.
FINER = 2
# Of averages of K classes: for each angular index m, an array (K, functions of this index).
Coefficients = tuple[Complexes, ...]


class DiskBasis(NamedTuple):
    """Fourier-Bessel functions on a disk, up to a frequency; one entry for each angular index.

    Attributes
    ----------
    box : int
        Side of the images in pixels.
    radius : float
        Of the disk, in pixels.
    n_rings : int
        Rings at 1, 2, ... cycles a box. Functions of higher frequency are left out.
    on_rings : tuple of ndarray of float64, shape (n_rings, functions)
        Transform of each function on each ring, times the root of the ring's radius.
    shell : tuple of ndarray of intp, shape (functions,)
        Ring nearest to the frequency of each function, counted from 0.
    root : tuple of ndarray of float64, shape (functions,)
        Where on the axis of the Bessel function the edge of the disk lies.
    """

    box: int
    radius: float
    n_rings: int
    on_rings: tuple[Floats, ...]
    shell: tuple[Indices, ...]
    root: tuple[Floats, ...]


@lru_cache(maxsize=64)
def disk_basis(box: int, radius: float, n_rings: int, n_indices: int | None = None) -> DiskBasis:
    """Return the functions on a disk of `radius` pixels, of at most `n_rings` cycles a box.

    Only the first `n_indices` angular indices are taken, if a number is given.

    Notes
    -----
    The functions are J_m(root rho / radius) exp(i m theta), with zeros at the edge and norm 1 on the disk
    (Zhao, Singer, J. Opt. Soc. Am. A 30, 2013). Their transforms are integrals of products of two Bessel
    functions, which Lommel gave in closed form.
    """
    ring = np.arange(1, n_rings + 1)
    edge = 2 * math.pi * radius / box * ring
    on_rings: list[Floats] = []
    shell: list[Indices] = []
    roots: list[Floats] = []
    while n_indices is None or len(roots) < n_indices:
        m = len(roots)
        root = scipy.special.jn_zeros(m, int(edge[-1] / math.pi) + 2)
        root = root[root <= edge[-1]]
        if not len(root):
            break
        slope = scipy.special.jv(m + 1, root)
        square = root**2 - edge[:, None] ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            overlap = root * slope * scipy.special.jv(m, edge)[:, None] / square
        overlap = np.where(np.abs(square) < 1e-6, 0.5 * slope**2, overlap)
        scale = 2 * math.sqrt(math.pi) * radius / np.abs(slope)
        on_rings.append(overlap * scale * np.sqrt(ring)[:, None])
        shell.append(np.clip(np.rint(root / edge[0]).astype(np.intp) - 1, 0, n_rings - 1))
        roots.append(root)
    return DiskBasis(box, radius, n_rings, tuple(on_rings), tuple(shell), tuple(roots))


def draw_averages(coefficients: Coefficients, basis: DiskBasis) -> Images:
    """Draw averages on the grid of the images.

    Parameters
    ----------
    coefficients : tuple of ndarray of complex, shape (K, functions)
        Of the first angular indices of the basis.
    basis : DiskBasis

    Returns
    -------
    images : ndarray of float32, shape (K, box, box)
    """
    offset = np.arange(basis.box) - basis.box // 2
    y, x = np.meshgrid(offset, offset, indexing="ij")
    inside = np.hypot(y, x) < basis.radius
    distance, angle = np.hypot(y, x)[inside] / basis.radius, np.arctan2(y, x)[inside]
    # Bessel functions are slow: they are computed along one radius, and interpolated.
    line = np.linspace(0, 1, FINER * basis.box)
    images = np.zeros((len(coefficients[0]), basis.box, basis.box))
    for m, (weights, root) in enumerate(zip(coefficients, basis.root, strict=False)):
        norm = math.sqrt(math.pi) * basis.radius * np.abs(scipy.special.jv(m + 1, root))
        along = weights @ (scipy.special.jv(m, root[:, None] * line) / norm[:, None])
        radial = CubicSpline(line, along, axis=1)(distance)
        # The function with index -m is the complex conjugate.
        images[:, inside] += (1 if m == 0 else 2) * (radial * np.exp(1j * m * angle)).real
    return images.astype(np.float32)
