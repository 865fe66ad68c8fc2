"""Principal components of images and of all their turned and mirrored copies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from fastsort._brief import brief
from fastsort._checks import InputError, check_count, check_positive
from fastsort._process import one_blas_thread
from fastsort._types import Array, Floats, Indices
from fastsort.subspaces.pswf import Blocks, PswfBasis, angular_blocks
from fastsort.subspaces.rows import Rows, check_rows

# The largest eigenvalue of pure noise lies this many Tracy-Widom units above its typical place in
# one block of ten thousand.
TRACY_WIDOM = 4.4
MAX_ROUNDS = 100


@brief
class SteerablePca(NamedTuple):
    """Principal components that turn with the image.

    Attributes
    ----------
    mean : ndarray of float64, shape (L,)
        Of the coefficients; zero except for angular index 0.
    components : ndarray of float64, shape (K, L)
        Orthonormal rows. For m > 0 they come in pairs, one of cosines and the same of sines.
    eigenvalues : ndarray of float64, shape (K,)
        Variances along the components, descending; the noise is not taken off.
    angular : ndarray of intp, shape (K,)
        m >= 0 for components of cosines, -m for those of sines.
    noise_variance : float
        Of a single coefficient, given or estimated.
    rank : int
        How many components stand out of the noise; pairs count as two.
    """

    mean: Floats
    components: Floats
    eigenvalues: Floats
    angular: Indices
    noise_variance: float
    rank: int


class _Block(NamedTuple):
    """Eigenvalues of one angular index, descending, with eigenvectors as rows."""

    angular: int
    eigenvalues: Floats
    vectors: Floats
    n_samples: int


def steerable_pca(
    coefficients: Array,
    basis: PswfBasis,
    n_components: int | None = None,
    *,
    noise_variance: float | None = None,
    n_jobs: int | None = None,
) -> SteerablePca:
    """Principal components of coefficients, as if the set held every image in all orientations.

    Parameters
    ----------
    coefficients : ndarray, shape (n, L)
        From `pswf_coefficients`, in memory or a memory map. Rows with a NaN or an infinity are left
        out.
    basis : PswfBasis
        Of the coefficients.
    n_components : int, optional
        How many components to return, pairs counted as two; one more if the last would be half a
        pair. By default all that stand out of the noise.
    noise_variance : float, optional
        Of a single coefficient. By default it is estimated from the eigenvalues.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    pca : SteerablePca

    Raises
    ------
    InputError
        If the coefficients are not those of the basis, fewer than two rows are fit, or a parameter
        is out of range.

    Notes
    -----
    An image turned by phi has the coefficients c - i s of angular index m times exp(i m phi). Over
    all phi the covariance of images is block diagonal in m, and the mean is zero but for m = 0 [1]_.
    With mirrored copies, which are projections from the opposite side, the Hermitian blocks become
    real: the average of the covariances of cosines and of sines. Each is one block for 2 n samples.

    Noise of variance v in p coefficients gives n samples eigenvalues up to v (1 + sqrt(p / n))^2
    (Marchenko and Pastur). Since the largest scatters about this edge and there are many blocks, a
    component has to exceed the edge of its block by 4.4 units of [2]_. The noise variance is such
    that half of all eigenvalues not above the edges lie below the medians of the law; it counts on
    white noise.

    References
    ----------
    .. [1] Zhao, Shkolnisky, Singer, "Fast steerable principal component analysis", IEEE Trans.
       Comput. Imaging 2 (2016), section III.
    .. [2] Johnstone, "On the distribution of the largest eigenvalue in principal components
       analysis", Ann. Statist. 29 (2001), equations 1.3 and 1.4, with the offsets of one half of
       Ma, Bernoulli 18 (2012).

    Examples
    --------
    >>> import fastsort as fs
    >>> images, _ = fs.simulate_particles(500, 0, snr=0.5, box=24)
    >>> basis = fs.pswf_basis(24, 0.3)
    >>> pca = fs.steerable_pca(fs.pswf_coefficients(images, 0.3), basis)
    >>> pca.components.shape == (pca.rank, len(basis.functions))
    True

    White noise has none:

    >>> noise, _ = fs.simulate_particles(0, 500, junk="noise", box=24, noise="white")
    >>> fs.steerable_pca(fs.pswf_coefficients(noise, 0.3), basis).rank
    0
    """
    rows = _check_coefficients(coefficients, len(basis.angular))
    length = rows.shape[1]
    if n_components is not None and check_count("n_components", n_components) > length:
        raise InputError(
            f"n_components must be at most the {length} functions of the basis; got {n_components}."
        )
    if noise_variance is not None:
        noise_variance = check_positive("noise_variance", noise_variance)
    members = angular_blocks(basis)
    count, mean, covariances = _moments(rows, members, n_jobs)
    # As in `map_batches`, since the number of threads must not change the result.
    with one_blas_thread():
        blocks = [_block(m, covariance, count) for m, covariance in enumerate(covariances)]
    if noise_variance is None:
        noise_variance = _estimate_noise(blocks)
    ranks = _ranks(blocks, noise_variance)
    rank = sum(n * (1 + (block.angular > 0)) for n, block in zip(ranks, blocks, strict=True))

    counts = ranks if n_components is None else [len(block.eigenvalues) for block in blocks]
    components, eigenvalues, angular = _leading_components(blocks, counts, members, n_components)
    return SteerablePca(mean, components, eigenvalues, angular, noise_variance, rank)


def _leading_components(
    blocks: list[_Block], counts: list[int], members: Blocks, n_components: int | None
) -> tuple[Floats, Floats, Indices]:
    """The first components of each block together, those with the largest variance first.

    Returns
    -------
    components : ndarray of float64, shape (K, L)
    eigenvalues : ndarray of float64, shape (K,)
    angular : ndarray of intp, shape (K,)
    """
    leading = [(block, k) for n, block in zip(counts, blocks, strict=True) for k in range(n)]
    leading.sort(key=lambda one: -one[0].eigenvalues[one[1]])
    length = sum(columns.size for columns in members)
    components: list[Floats] = []
    eigenvalues: list[float] = []
    angular: list[int] = []
    for block, k in leading:
        if n_components is not None and len(components) >= n_components:
            break
        # A cosine and its sine have the same variance.
        for sign, columns in zip((1, -1), members[block.angular], strict=False):
            component = np.zeros(length)
            component[columns] = block.vectors[k]
            components.append(component)
            eigenvalues.append(float(block.eigenvalues[k]))
            angular.append(sign * block.angular)
    return (
        np.array(components).reshape(-1, length),
        np.array(eigenvalues, dtype=np.float64),
        np.array(angular, dtype=np.intp),
    )


def _block(angular: int, covariance: Floats, count: int) -> _Block:
    values, vectors = eigh(covariance, overwrite_a=True, check_finite=False)
    vectors = vectors.T[::-1]
    # Of the two signs, the one by which the largest entry is positive.
    largest = vectors[np.arange(len(vectors)), np.abs(vectors).argmax(axis=1)]
    vectors = vectors * np.sign(largest)[:, np.newaxis]
    return _Block(angular, np.maximum(values[::-1], 0), vectors, count * (1 + (angular > 0)))


def relative_energy(coefficients: Array, pca: SteerablePca, *, n_jobs: int | None = None) -> Floats:
    """Part of the energy of each image that lies in the span of the components.

    Parameters
    ----------
    coefficients : ndarray, shape (n, L)
        Not centred. In memory or a memory map.
    pca : SteerablePca
    n_jobs : int, optional
        Workers, as joblib counts them.

    Returns
    -------
    energy : ndarray of float64, shape (n,)
        In [0, 1], small for junk; 0 for rows that are zero or hold a NaN or an infinity.

    Raises
    ------
    InputError
        If the coefficients do not fit the components.

    Notes
    -----
    |P y|^2 / |y|^2 for the projection P: the rule of sorting by steerable PCA.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(300, 100, snr=0.5, box=24, junk="noise")
    >>> coefficients = fs.pswf_coefficients(images, 0.3)
    >>> pca = fs.steerable_pca(coefficients, fs.pswf_basis(24, 0.3), 8)
    >>> energy = fs.relative_energy(coefficients, pca)
    >>> bool(energy[truth.label].mean() > energy[~truth.label].mean())
    True
    """
    rows = _check_coefficients(coefficients, len(pca.mean))
    parts = rows.map(_energy_batch, pca.components, n_jobs=n_jobs)
    return np.minimum(np.concatenate(parts), 1)


def _energy_batch(block: Array, start: int, components: Floats) -> Floats:
    rows = np.array(block, dtype=np.float64, order="C")
    finite = np.isfinite(rows).all(axis=1)
    rows[~finite] = 0
    # Squares of single-precision numbers are safe, those of the largest doubles are not.
    largest = np.abs(rows).max(axis=1, initial=0)
    rows /= np.where(largest > 0, largest, 1)[:, np.newaxis]
    total = np.einsum("ij,ij->i", rows, rows)
    projected = rows @ components.T
    energy: Floats = np.einsum("ij,ij->i", projected, projected) / np.where(total > 0, total, 1)
    return energy


def _check_coefficients(coefficients: Array, length: int) -> Rows:
    rows = Rows(check_rows(coefficients, length))
    if len(rows) == 0:
        raise InputError("coefficients hold no rows: nothing to sort.")
    return rows


def _moments(rows: Rows, members: Blocks, n_jobs: int | None) -> tuple[int, Floats, list[Floats]]:
    """Number of fit rows, their mean over all orientations, and one covariance per angular index."""
    count = 0
    total = np.zeros(len(members[0][0]))
    products = [np.zeros((columns.shape[1], columns.shape[1])) for columns in members]
    for part_count, part_total, part_products in rows.map(_moments_batch, members, n_jobs=n_jobs):
        count += part_count
        total += part_total
        for product, part in zip(products, part_products, strict=True):
            product += part
    if count < 2:
        raise InputError(
            f"principal components need two images or more; got {count} without NaN among {len(rows)}."
        )
    mean = np.zeros(rows.shape[1])
    mean[members[0][0]] = total / count
    covariances = [product / (count * (1 + (m > 0))) for m, product in enumerate(products)]
    covariances[0] -= np.outer(total / count, total / count)
    return count, mean, covariances


def _moments_batch(block: Array, start: int, members: Blocks) -> tuple[int, Floats, list[Floats]]:
    rows = block[np.isfinite(block).all(axis=1)].astype(np.float64, order="C")
    products = []
    for block_columns in members:
        product = np.zeros((block_columns.shape[1], block_columns.shape[1]))
        for columns in block_columns:
            part = rows[:, columns]
            product += part.T @ part
        products.append(product)
    return len(rows), rows[:, members[0][0]].sum(axis=0), products


def _estimate_noise(blocks: list[_Block]) -> float:
    """Variance of the noise with which the eigenvalues below the edges follow the law of noise."""
    ranks = [0] * len(blocks)
    noise_variance = np.inf
    for _ in range(MAX_ROUNDS):
        ratios, weights = [], []
        for rank, block in zip(ranks, blocks, strict=True):
            # The others are noise of fewer dimensions in fewer samples.
            n_samples = block.n_samples - rank
            n_left = min(len(block.eigenvalues) - rank, n_samples)
            if n_left > 0:
                left = block.eigenvalues[rank : rank + n_left]
                scale = n_samples / block.n_samples
                middle = _median_of_noise(len(block.eigenvalues) - rank, n_samples)
                ratios.append(left / (scale * middle))
                weights.append(np.full(n_left, 1 + (block.angular > 0)))
        if not ratios:
            break
        estimate = _weighted_median(np.concatenate(ratios), np.concatenate(weights))
        # The ranks can only grow, so the rounds come to an end.
        if estimate >= noise_variance:
            break
        noise_variance = estimate
        ranks = _ranks(blocks, noise_variance)
    return float(noise_variance)


def _weighted_median(values: Floats, weights: Indices) -> float:
    order = np.argsort(values, kind="stable")
    part = np.cumsum(weights[order]) - 0.5 * weights[order]
    return float(np.interp(0.5 * weights.sum(), part, values[order]))


def _median_of_noise(size: int, n_samples: int) -> float:
    """Median of the eigenvalues above zero of a sample covariance of white noise.

    By the law of Marchenko and Pastur, which is smooth in phi if x = 1 + g + 2 sqrt(g) cos(phi).
    """
    ratio = size / n_samples
    shape = min(ratio, 1 / ratio)
    phi = np.pi * (np.arange(2000) + 0.5) / 2000
    x = 1 + shape + 2 * np.sqrt(shape) * np.cos(phi)
    part = np.cumsum(np.sin(phi) ** 2 / x)
    # With more coefficients than samples, these are the eigenvalues of the products of the samples.
    return float(np.interp(0.5 * part[-1], part, x)) * max(ratio, 1)


def _ranks(blocks: list[_Block], noise_variance: float) -> list[int]:
    """How many eigenvalues of each block are larger than noise of this variance would give."""
    # Images without noise have eigenvalues that are nothing but rounding.
    largest = max(block.eigenvalues[0] for block in blocks)
    rounding = 1e-13 * largest
    ranks = []
    for block in blocks:
        size, samples = np.sqrt(len(block.eigenvalues) - 0.5), np.sqrt(block.n_samples - 0.5)
        width = (size + samples) * (1 / size + 1 / samples) ** (1 / 3)
        edge = noise_variance * ((size + samples) ** 2 + TRACY_WIDOM * width) / block.n_samples
        ranks.append(int((block.eigenvalues > max(edge, rounding)).sum()))
    return ranks
