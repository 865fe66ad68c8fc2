"""Where the learning of subspaces starts: how many there are, of how many dimensions, along which axes."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import scipy.cluster.vq

from fastsort._checks import InputError
from fastsort._types import Bools, Floats, Indices
from fastsort.subspaces.mixture import (
    FLOOR,
    Parameters,
    Symmetry,
    maximize,
    model_arrays,
    orthogonal,
    posterior,
)
from fastsort.subspaces.pswf import PswfBasis, angular_blocks
from fastsort.subspaces.rows import Rows

# The most images that the start is found on.
N_SAMPLE = 4096
MAX_COMPONENTS = 60
MAX_SUBSPACES = 4
# A further subspace must raise the held-out log-likelihood by this many of its standard errors.
WORTH = 3.0
# The fewest images from which one can learn what is usual.
MIN_LEARNED = 50
# Starts of the clustering, and iterations by which numbers of subspaces are compared.
N_STARTS = 3
N_TRIED = 15
# Rounds of subspace iteration for the first axes. Where K is given, EM does the rest; where it is not,
# the variances of the last axes decide.
N_POWERS, N_POWERS_COUNTED = 1, 4


def start_model(
    rows: Rows,
    usable: Bools,
    n_subspaces: int | None,
    n_components: int | None,
    basis: PswfBasis | None,
    seed: int,
) -> tuple[Parameters, Symmetry | None]:
    """Find a model to start from, and M and K where they are not given.

    Parameters
    ----------
    rows : Rows
    usable : ndarray of bool, shape (n,)
        Images to learn from.
    n_subspaces, n_components : int or None
        M and K, as for `fit_subspaces`.
    basis : PswfBasis or None
        Of the coefficients, if the model is to be steerable.
    seed : int

    Returns
    -------
    parameters : Parameters
    symmetry : Symmetry or None
        None without a basis.
    """
    rng = np.random.default_rng(seed)
    sample, unit = _sample(rows, usable, seed)
    n_axes = n_components or _most_axes(sample)
    if basis is None:
        rounds = N_POWERS if n_components else N_POWERS_COUNTED
        axes, symmetry = _principal_axes(unit, n_axes, rounds, rng), None
    else:
        axes, symmetry = _steerable_axes(unit, n_axes, basis)
    positions = sample @ axes
    if n_components is None:
        kept = _axes_above_noise(unit, axes, symmetry)
        axes, positions = axes[:, kept], positions[:, kept]
        symmetry = symmetry and _reduced(symmetry, kept)
    if n_subspaces is not None:
        return _clustered(sample, axes, positions, n_subspaces, symmetry, rng), symmetry
    return _best_number(sample, axes, positions, symmetry, rng), symmetry


def _sample(
    rows: Rows, usable: Bools, seed: int
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Some of the images, and the same scaled to one length."""
    indices = np.flatnonzero(usable)
    if len(indices) > N_SAMPLE:
        indices = np.sort(np.random.default_rng(seed).choice(indices, N_SAMPLE, replace=False))
    sample = rows.take(indices)
    lengths = np.sqrt(np.einsum("ij,ij->i", sample, sample))
    factors = math.sqrt(np.mean(lengths**2)) / np.where(lengths > 0, lengths, 1)
    return sample, sample * factors[:, None].astype(sample.dtype)


def _most_axes(sample: npt.NDArray[np.floating]) -> int:
    """How many axes are looked at where K is not given."""
    return min(MAX_COMPONENTS, max(1, min(sample.shape[1] - 1, len(sample) // 4)))


def random_model(width: int, n_subspaces: int, n_components: int, seed: int) -> Parameters:
    """Return a model to start from: subspaces with random axes through the mean of the images."""
    rng = np.random.default_rng(seed)
    loadings = rng.standard_normal((n_subspaces, width, n_components)) / math.sqrt(n_components)
    weights = np.full(n_subspaces, 1 / n_subspaces)
    return orthogonal(Parameters(weights, np.zeros((n_subspaces, width)), loadings, 1.0))


def _axes_above_noise(
    unit: npt.NDArray[np.floating], axes: npt.NDArray[np.floating], symmetry: Symmetry | None
) -> Indices:
    """Which axes have more variance than noise would give them; at least one, or one pair."""
    variances = np.square(unit @ axes).mean(axis=0, dtype=np.float64)
    edge = _noise_edge(unit, variances)
    if symmetry is not None:
        # A cosine and its sine stay together.
        variances = np.minimum(variances, variances[symmetry.latent_partner])
    above = np.flatnonzero(variances > edge)
    if len(above) == 0:
        above = np.arange(1) if symmetry is None else np.unique([0, symmetry.latent_partner[0]])
    return above.astype(np.intp)


def _noise_edge(sample: npt.NDArray[np.floating], variances: npt.NDArray[np.floating]) -> float:
    """Largest variance that noise gives an axis (Marchenko and Pastur)."""
    n, width = sample.shape
    total = float(np.square(sample).sum(axis=1).mean())
    falling = np.sort(variances)[::-1]
    n_above = 0
    while True:
        noise = (total - float(falling[:n_above].sum())) / (width - n_above)
        edge = noise * (1 + math.sqrt(width / n)) ** 2
        n_now = int((falling > edge).sum())
        if n_now <= n_above or n_now == width:
            return edge
        n_above = n_now


def _principal_axes(
    sample: npt.NDArray[np.floating], n_components: int, rounds: int, rng: np.random.Generator
) -> npt.NDArray[np.floating]:
    """Leading right singular vectors (L, K) by subspace iteration from a random one (Halko et al. 2011)."""
    n_drawn = min(n_components + 10, *sample.shape)
    vectors = sample.T @ rng.standard_normal((len(sample), n_drawn)).astype(sample.dtype)
    for _ in range(rounds):
        vectors = sample.T @ (sample @ np.linalg.qr(vectors)[0])
    basis = np.linalg.qr(vectors)[0]
    positions = sample @ basis
    _, turn = np.linalg.eigh(positions.T @ positions)
    axes = basis @ turn[:, ::-1]
    if axes.shape[1] < n_components:
        # Fewer images than components: the other axes are random.
        more = rng.standard_normal((sample.shape[1], n_components - axes.shape[1])).astype(axes.dtype)
        axes = np.linalg.qr(np.column_stack([axes, more]))[0]
    return axes[:, :n_components]


def _steerable_axes(
    sample: npt.NDArray[np.floating], n_components: int, basis: PswfBasis
) -> tuple[npt.NDArray[np.floating], Symmetry]:
    """Leading axes of a sample in all orientations; the cosine and the sine of each stay together."""
    blocks = angular_blocks(basis)
    partner = np.empty(len(basis.angular), dtype=np.intp)
    candidates = []
    for m, members in enumerate(blocks):
        # Index 0 has no sines: the cosines are their own partners.
        partner[members] = members[::-1]
        both = np.concatenate([sample[:, members[0]], sample[:, members[-1]]])
        values, vectors = np.linalg.eigh(both.T @ both / len(both))
        candidates += [(-value, m, vector) for value, vector in zip(values, vectors.T, strict=True)]
    columns: list[Floats] = []
    latent_angular: list[int] = []
    latent_partner: list[int] = []
    for _, m, vector in sorted(candidates, key=lambda one: one[:2]):
        here = len(columns)
        if here + 1 + (m > 0) > n_components:
            continue
        for sign, places in zip((1, -1), blocks[m], strict=False):
            column = np.zeros(sample.shape[1])
            column[places] = vector
            columns.append(column)
            latent_angular.append(sign * m)
        latent_partner += [here] if m == 0 else [here + 1, here]
    if not columns:
        raise InputError(
            f"n_components must be 2 or more where the strongest axis turns; got {n_components}."
        )
    symmetry = Symmetry(basis.angular, partner, np.array(latent_angular), np.array(latent_partner))
    return np.column_stack(columns), symmetry


def _reduced(symmetry: Symmetry, kept: Indices) -> Symmetry:
    """Keep some of the latent axes, partners together."""
    return symmetry._replace(
        latent_angular=symmetry.latent_angular[kept],
        latent_partner=np.searchsorted(kept, symmetry.latent_partner[kept]),
    )


def _clustered(
    sample: npt.NDArray[np.floating],
    axes: npt.NDArray[np.floating],
    positions: npt.NDArray[np.floating],
    n_subspaces: int,
    symmetry: Symmetry | None,
    rng: np.random.Generator,
) -> Parameters:
    """One subspace for each cluster of the positions, all with the same axes."""
    if symmetry is not None:
        # The length of a pair does not change when the image turns.
        features = np.hypot(positions, positions[:, symmetry.latent_partner])
    else:
        features = positions
    labels = _k_means(features, n_subspaces, rng)
    total, along = np.square(sample).sum(axis=1).mean(), np.square(positions).sum(axis=1).mean()
    noise = max(float(total - along) / (sample.shape[1] - positions.shape[1]), FLOOR)
    weights = np.bincount(labels, minlength=n_subspaces) / len(labels)
    still = np.ones(sample.shape[1], dtype=bool) if symmetry is None else symmetry.angular == 0
    means, loadings = [], []
    for m in range(n_subspaces):
        members = labels == m
        mean = np.where(still, sample[members].mean(axis=0), 0)
        spread = np.square(positions[members] - mean @ axes).mean(axis=0)
        if symmetry is not None:
            spread = 0.5 * (spread + spread[symmetry.latent_partner])
        means.append(mean)
        loadings.append(axes * np.sqrt(np.maximum(spread - noise, 0.01 * noise)))
    return orthogonal(Parameters(weights, np.array(means), np.array(loadings), noise), symmetry)


def _k_means(points: Floats, n_clusters: int, rng: np.random.Generator) -> Indices:
    """Labels of points (n, p); no cluster is empty."""
    if n_clusters == 1 or len(np.unique(points, axis=0)) < n_clusters:
        return np.arange(len(points)) % n_clusters
    best: tuple[float, Indices] | None = None
    for _ in range(N_STARTS):
        centres, labels = scipy.cluster.vq.kmeans2(
            points, n_clusters, iter=20, minit="++", missing="warn", seed=rng
        )
        cost = float(np.square(points - centres[labels]).sum())
        if best is None or cost < best[0]:
            best = cost, labels.astype(np.intp)
    assert best is not None
    labels = best[1]
    for empty in np.setdiff1d(np.arange(n_clusters), labels):
        largest = np.flatnonzero(labels == np.bincount(labels).argmax())
        labels[largest[: max(1, len(largest) // 2)]] = empty
    return labels


def _best_number(
    sample: npt.NDArray[np.floating],
    axes: npt.NDArray[np.floating],
    positions: npt.NDArray[np.floating],
    symmetry: Symmetry | None,
    rng: np.random.Generator,
) -> Parameters:
    """The model with as many subspaces as raise the log-likelihood of images that it was not learned from."""
    best = _clustered(sample, axes, positions, 1, symmetry, rng)
    if len(sample) < 4 * MIN_LEARNED:
        return best
    even = np.arange(len(sample)) % 2 == 0
    rows, all_rows = Rows(sample[even]), np.ones(int(even.sum()), dtype=bool)
    previous = None
    for n_subspaces in range(1, MAX_SUBSPACES + 1):
        model = _clustered(sample[even], axes, positions[even], n_subspaces, symmetry, rng)
        for _ in range(N_TRIED):
            model, _ = maximize(rows, all_rows, model, 1, symmetry)
        density = posterior(sample[~even], model_arrays(model, np.float64)).log_density
        if previous is not None:
            gain = density - previous
            if gain.mean() <= WORTH * gain.std() / math.sqrt(len(gain)):
                break
            best = _clustered(sample, axes, positions, n_subspaces, symmetry, rng)
        previous = density
    return best
