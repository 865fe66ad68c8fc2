"""Denoising with a dictionary of patches that is learned from the images themselves (K-SVD)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_count, check_images, check_not_empty, check_positive
from fastsort._jit import kernel
from fastsort._types import Images, Singles
from fastsort.denoising.patches import (
    add_patches,
    check_deviation,
    check_patch,
    cosine_waves,
    overlap,
    patches_by_rows,
    sample_patches,
)

# Allowed error of a pixel of a patch, in deviations of the noise.
STRENGTH = 1.1
# No patch is a sum of more atoms than this part of its pixels.
MOST = 0.5
# An error below this part of a patch's energy is one of single precision.
ROUNDING = 1e-6
# Steps of the power method by which an atom is fitted: it starts from the atom before, so few are enough.
N_STEPS = 3


class Dictionary(NamedTuple):
    """Atoms of which patches are sparse sums.

    Attributes
    ----------
    atoms : ndarray of float32, shape (n_atoms, p * p)
        Patches of p x p pixels, of mean 0 and unit norm.
    """

    atoms: Singles


def learn_dictionary(
    images: npt.ArrayLike,
    deviation: float = 1.0,
    *,
    patch: int = 8,
    n_atoms: int = 128,
    strength: float = STRENGTH,
    n_rounds: int = 10,
    n_patches: int = 20_000,
    seed: int = 0,
) -> Dictionary:
    """Learn the dictionary in which patches of images are sparsest.

    Parameters
    ----------
    images : array_like, shape (n, d, d)
        All images, or enough of them. Never modified.
    deviation : float
        Standard deviation of the noise, in the unit of the images.
    patch : int
        Side p of a patch, in pixels.
    n_atoms : int
    strength : float
        Root mean square error a patch may keep, in standard deviations of the noise.
    n_rounds : int
        Rounds of alternation; 0 leaves the overcomplete discrete cosine transform.
    n_patches : int
        Patches to learn from, at random places.
    seed : int

    Returns
    -------
    dictionary : Dictionary

    Raises
    ------
    InputError
        If there are no images, they are not square, or a parameter is out of range.

    Notes
    -----
    K-SVD [1]_ as used for denoising [2]_: each round codes all patches by orthogonal matching pursuit, and
    then fits the atoms one after the other, each with its coefficients, to what the other atoms leave of the
    patches that use it. The best rank-1 fit comes from the power method. An atom that no patch uses is
    replaced by the patch that is represented worst. Means of patches are set aside.

    References
    ----------
    .. [1] Aharon, Elad, Bruckstein. K-SVD: an algorithm for designing overcomplete dictionaries for sparse
       representation. IEEE Trans. Signal Process. 54 (2006), 4311-4322.
    .. [2] Elad, Aharon. Image denoising via sparse and redundant representations over learned dictionaries.
       IEEE Trans. Image Process. 15 (2006), 3736-3745.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsort.denoising.ksvd import ksvd, learn_dictionary
    >>> clean = np.zeros((4, 32, 32), np.float32)
    >>> clean[:, 8:24, 8:24] = 3
    >>> noisy = clean + np.random.default_rng(0).normal(size=clean.shape)
    >>> dictionary = learn_dictionary(noisy, n_patches=2000)
    >>> bool(((ksvd(noisy, dictionary) - clean) ** 2).mean() < 0.25)
    True
    """
    images = check_images(images)
    check_not_empty(len(images))
    allowed = check_deviation(deviation) * check_positive("strength", strength)
    patch = check_patch(patch, images.shape[1])
    n_atoms = check_count("n_atoms", n_atoms)
    n_rounds = check_count("n_rounds", n_rounds, 0)
    patches = sample_patches(images, patch, check_count("n_patches", n_patches), seed)
    patches -= patches.mean(axis=1, keepdims=True)
    atoms = overcomplete_cosines(patch, n_atoms)
    for _ in range(n_rounds):
        coefficients = sparse_codes(patches, atoms, allowed)
        left_over = patches - coefficients @ atoms
        _fit_atoms(patches, np.ascontiguousarray(coefficients.T), N_STEPS, left_over, atoms)
    return Dictionary(atoms)


def ksvd(
    images: npt.ArrayLike, dictionary: Dictionary, deviation: float = 1.0, *, strength: float = STRENGTH
) -> Images:
    """Denoise images by coding their patches sparsely with a dictionary.

    Parameters
    ----------
    images : array_like, shape (n, d, d)
        Intensities in any unit; never modified.
    dictionary : Dictionary
        From `learn_dictionary`.
    deviation : float
        Standard deviation of the noise, in the unit of the images. 0 returns the images.
    strength : float
        Root mean square error a patch may keep, in standard deviations of the noise.

    Returns
    -------
    denoised : ndarray of float32, shape (n, d, d)

    Raises
    ------
    InputError
        If the images are not square or smaller than the atoms, or a parameter is out of range.

    Notes
    -----
    Orthogonal matching pursuit adds atoms to a patch until its error is below `strength` * `deviation` a
    pixel (constant C of [1]_). All overlapping patches are averaged. The noisy image itself gets no weight.

    References
    ----------
    .. [1] Elad, Aharon. Image denoising via sparse and redundant representations over learned dictionaries.
       IEEE Trans. Image Process. 15 (2006), 3736-3745.
    """
    images = check_images(images)
    deviation = check_deviation(deviation)
    allowed = check_positive("strength", strength) * deviation
    atoms = np.array(dictionary.atoms, dtype=np.float32, order="C")
    patch = round(atoms.shape[-1] ** 0.5)
    if atoms.ndim != 2 or atoms.shape[1] != patch * patch:
        raise InputError(f"atoms must have shape (n_atoms, p * p); got {atoms.shape}: use learn_dictionary.")
    check_patch(patch, images.shape[1])
    if deviation == 0 or not len(images):
        return images
    count = overlap(images.shape[1], patch)
    denoised = np.zeros_like(images)
    for image, total in zip(images, denoised, strict=True):
        mean = np.float32(image.mean(dtype=np.float64))
        for first, patches in patches_by_rows(image - mean, patch):
            means = patches.mean(axis=1, keepdims=True)
            patches -= means
            add_patches(sparse_codes(patches, atoms, allowed) @ atoms + means, first, total)
        total /= count
        total += mean
    return denoised


def overcomplete_cosines(patch: int, n_atoms: int) -> Singles:
    """Return products of cosine waves along rows and columns, lowest frequencies first.

    Parameters
    ----------
    patch : int
        Side p of an atom, in pixels.
    n_atoms : int

    Returns
    -------
    atoms : ndarray of float32, shape (n_atoms, p * p)
        Of mean 0 and unit norm.
    """
    n_waves = max(math.ceil(math.sqrt(n_atoms + 1)), 2)
    waves = cosine_waves(patch, n_waves)
    frequency = np.add.outer(np.arange(n_waves), np.arange(n_waves)).ravel()
    order = np.argsort(frequency, kind="stable")[1 : n_atoms + 1]
    return np.kron(waves, waves)[order].astype(np.float32)


def sparse_codes(patches: Singles, atoms: Singles, allowed: float) -> Singles:
    """Code patches as sparse sums of atoms by orthogonal matching pursuit.

    Parameters
    ----------
    patches : ndarray of float32, shape (n, m)
    atoms : ndarray of float32, shape (n_atoms, m)
        Of unit norm.
    allowed : float
        Atoms are added until the root mean square error of a patch is at most this, in the patches' unit.

    Returns
    -------
    coefficients : ndarray of float32, shape (n, n_atoms)

    Notes
    -----
    Batch-OMP: Rubinstein, Zibulevsky, Elad, "Efficient implementation of the K-SVD algorithm using batch
    orthogonal matching pursuit", Technion CS-2008-08.
    """
    n_atoms, m = atoms.shape
    most = min(max(int(MOST * m), 1), n_atoms)
    coefficients = np.zeros((len(patches), n_atoms), np.float32)
    _pursue(
        patches @ atoms.T,
        atoms.astype(np.float64) @ atoms.T.astype(np.float64),
        np.einsum("ij,ij->i", patches, patches, dtype=np.float64),
        m * allowed**2,
        most,
        coefficients,
    )
    return coefficients


@kernel
def _pursue(products, gram, energies, allowed, most, coefficients):
    # products: (n, k) of patches and atoms; gram: (k, k); energies: (n,). Writes coefficients: (n, k), which
    # are 0 before.
    n, n_atoms = products.shape
    factor = np.empty((most, most))  # lower triangle of the Cholesky factor of the chosen atoms' Gram matrix
    forward, solution = np.empty(most), np.empty(most)
    chosen = np.empty(most, np.intp)
    left = np.empty(n_atoms)
    for i in range(n):
        error = energies[i]
        enough = max(allowed, ROUNDING * error)
        for j in range(n_atoms):
            left[j] = products[i, j]
        size = 0
        while error > enough and size < most:
            best = 0
            for j in range(1, n_atoms):
                if abs(left[j]) > abs(left[best]):
                    best = j
            # One more row of the factor.
            pivot = gram[best, best]
            for k in range(size):
                value = gram[best, chosen[k]]
                for q in range(k):
                    value -= factor[k, q] * factor[size, q]
                value /= factor[k, k]
                factor[size, k] = value
                pivot -= value * value
            if not pivot > 1e-6 or not abs(left[best]) > 0:
                break  # the atom is a sum of those chosen, or nothing is left that atoms explain
            factor[size, size] = np.sqrt(pivot)
            chosen[size] = best
            value = np.float64(products[i, best])
            for q in range(size):
                value -= factor[size, q] * forward[q]
            forward[size] = value / factor[size, size]
            error -= forward[size] * forward[size]
            size += 1
            for k in range(size - 1, -1, -1):
                value = forward[k]
                for q in range(k + 1, size):
                    value -= factor[q, k] * solution[q]
                solution[k] = value / factor[k, k]
            if not error > enough:
                break
            for j in range(n_atoms):
                left[j] = products[i, j]
            for k in range(size):
                row, value = gram[chosen[k]], solution[k]
                for j in range(n_atoms):
                    left[j] -= value * row[j]
        for k in range(size):
            coefficients[i, chosen[k]] = solution[k]


@kernel
def _fit_atoms(patches, coefficients, n_steps, left_over, atoms):
    # patches: (n, m); coefficients: (k, n), left_over: (n, m), what the atoms leave of the patches, and
    # atoms: (k, m) are updated.
    n, m = patches.shape
    users = np.empty(n, np.intp)
    fresh = np.empty(m)
    replaced = np.zeros(n, np.bool_)
    for k in range(len(atoms)):
        atom, share = atoms[k], coefficients[k]
        n_users = 0
        for i in range(n):
            if share[i] != 0:
                users[n_users] = i
                n_users += 1
        if n_users == 0:
            worst, most = -1, 0.0
            for i in range(n):
                energy = 0.0
                for j in range(m):
                    energy += left_over[i, j] * left_over[i, j]
                if energy > most and not replaced[i]:
                    worst, most = i, energy
            if worst >= 0:
                replaced[worst] = True
                norm = 0.0
                for j in range(m):
                    norm += patches[worst, j] * patches[worst, j]
                for j in range(m):
                    atom[j] = patches[worst, j] / np.sqrt(norm)
            continue
        for q in range(n_users):
            row, value = left_over[users[q]], share[users[q]]
            for j in range(m):
                row[j] += value * atom[j]
        for _ in range(n_steps):
            fresh[:] = 0
            for q in range(n_users):
                row, value = left_over[users[q]], share[users[q]]
                for j in range(m):
                    fresh[j] += value * row[j]
            norm = 0.0
            for j in range(m):
                norm += fresh[j] * fresh[j]
            if not norm > 0:
                break
            for j in range(m):
                atom[j] = fresh[j] / np.sqrt(norm)
            for q in range(n_users):
                row = left_over[users[q]]
                value = np.float32(0)
                for j in range(m):
                    value += row[j] * atom[j]
                share[users[q]] = value
        for q in range(n_users):
            row, value = left_over[users[q]], share[users[q]]
            for j in range(m):
                row[j] -= value * atom[j]
