"""Class averages from the sums of an expectation step: the likeliest functions on the particle's disk."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._types import Floats
from fastsort.invariants.bessel import Coefficients, Complexes, DiskBasis
from fastsort.invariants.expectation import ClassSums

# Rounds in which the averages and their expected power are found together.
N_ROUNDS = 2
LEAST_POWER = 1e-20


class Averages(NamedTuple):
    """Averages of K classes, as coefficients, and what they are expected to be.

    Attributes
    ----------
    coefficients : tuple of ndarray of complex128, shape (K, functions)
        For each angular index.
    power : ndarray of float64, shape (R,)
        Expected square of a coefficient at the frequency of each ring: the prior of all classes.
    known : ndarray of float64, shape (R,)
        Part of that square which the images have decided, from 0 to 1; the rest is uncertain.
    """

    coefficients: Coefficients
    power: Floats
    known: Floats


def maximize(sums: ClassSums, half: int | None, noise: Floats, power: Floats, basis: DiskBasis) -> Averages:
    """Find the likeliest averages.

    Parameters
    ----------
    sums : ClassSums
        Of an expectation step.
    half : int or None
        Which half's averages; None for those of all images.
    noise : ndarray of float64, shape (R,)
    power : ndarray of float64, shape (R,)
        Expected power to start from.
    basis : DiskBasis
        Of R rings.

    Returns
    -------
    averages : Averages

    Notes
    -----
    For each angular index this is a least-squares problem with a few unknowns: rings, weighted by the squares
    of the contrast transfer functions over the noise, against functions that are zero outside the disk. The
    coefficients have a normal prior. Its variance, on each ring the same for all classes, is found by
    expectation maximization, too: so frequencies that show nothing are left out, without any threshold.
    """
    products, weights, counts = sums.products, sums.weights, sums.counts
    if half is None:
        products, weights, counts = products.sum(axis=0), weights.sum(axis=0), counts.sum(axis=0)
    else:
        products, weights, counts = products[half], weights[half], counts[half]
    certainty = 2 * np.pi * np.arange(1, len(noise) + 1) / noise
    n_classes = len(counts)
    weighted = certainty[:, None] * weights
    right, left = [], []
    for m, table in enumerate(basis.on_rings):
        size = table.shape[1]
        if m < len(products):
            left.append((table.T[None] * weighted.T[:, None]) @ table)
            right.append((certainty[:, None] * products[m]).T @ table)
        else:
            left.append(np.zeros((n_classes, size, size)))
            right.append(np.zeros((n_classes, size), dtype=np.complex128))
    right[0] = right[0].real + 0j
    for _ in range(N_ROUNDS):
        coefficients = []
        square, decided = np.zeros((2, n_classes, len(noise)))
        number = np.zeros(len(noise))
        for m, shell in enumerate(basis.shell):
            prior = np.diag(1 / np.maximum(power[shell], LEAST_POWER))
            inverse = np.linalg.inv(left[m] + prior)
            found = np.einsum("kqp,kp->kq", inverse, right[m])
            coefficients.append(found)
            # Indices m and -m.
            weight = 1 if m == 0 else 2
            likeliest = weight * np.abs(found) ** 2
            np.add.at(decided.T, shell, likeliest.T)
            np.add.at(square.T, shell, likeliest.T + weight * np.einsum("kqq->kq", inverse).T)
            number += weight * np.bincount(shell, minlength=len(noise))
        mean, known = counts @ square / max(float(counts.sum()), 1e-12), counts @ decided
        # Rings hold few functions each: neighbours are taken together.
        power = _of_three(mean) / np.maximum(_of_three(number), 1e-12)
    known = _of_three(known) / np.maximum(_of_three(counts @ square), 1e-300)
    return Averages(tuple(coefficients), power, known)


def _of_three(values: Floats) -> Floats:
    return np.convolve(values, np.ones(3), mode="same")


def on_rings(coefficients: Coefficients, basis: DiskBasis) -> Complexes:
    """Return averages as the expectation step uses them: complex64, shape (M, R, K)."""
    tables = zip(coefficients, basis.on_rings, strict=True)
    return np.stack([table @ values.T for values, table in tables]).astype(np.complex64)
