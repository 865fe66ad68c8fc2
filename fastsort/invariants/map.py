"""The map of a data set: where every image lies among all others, and to which class it belongs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count
from fastsort._process import one_blas_thread, without_warnings
from fastsort.invariants.features import invariant_features

if TYPE_CHECKING:
    from fastsort.particles.source import Particles

Array = npt.NDArray[np.float64]

EMBEDDINGS = ("auto", "umap", "pca")
# Part of the variance that the principal components keep.
KEPT = 0.95
# The mixture sees so many components at most: further ones hold noise.
N_CLUSTERED = 10
# Models are fitted on so many images; the others are assigned in a stream.
N_FITTED = 10_000
MAX_CLASSES = 20
CHUNK = 65_536
N_STARTS = 2


@brief
class ParticleMap(NamedTuple):
    """Place and class of every image.

    Attributes
    ----------
    coordinates : ndarray of float32, shape (n, 2)
        On the map; NaN for images with a NaN or an infinity.
    label : ndarray of intp, shape (n,)
        Class from 0, the largest first; -1 for images with a NaN or an infinity.
    probability : ndarray of float32, shape (n,)
        Of belonging to that class, under the mixture; 0 where there is none.
    n_classes : int
    n_components : int
        Principal components that keep 95 % of the variance.
    criterion : ndarray of float64, shape (k,)
        Bayesian information criterion of the numbers of classes that were tried, one after the other;
        empty where the number was given.
    embedding : str
        "umap" or "pca": what made the coordinates.
    """

    coordinates: npt.NDArray[np.float32]
    label: npt.NDArray[np.intp]
    probability: npt.NDArray[np.float32]
    n_classes: int
    n_components: int
    criterion: Array
    embedding: str


def map_particles(
    images: npt.NDArray[Any] | Particles,
    n_classes: int | None = None,
    *,
    max_order: int = 20,
    embedding: str = "auto",
    n_jobs: int | None = None,
    seed: int = 0,
) -> ParticleMap:
    """Put images on a map by features that neither a turn nor a shift changes.

    Parameters
    ----------
    images : ndarray, shape (n, d, d), or Particles
    n_classes, embedding, seed
        As for `map_features`.
    max_order : int
        As for `invariant_features`; noise floor and whitening are measured.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.

    Returns
    -------
    map : ParticleMap

    Raises
    ------
    InputError
        If the images cannot be used or a parameter is out of range.
    """
    features = invariant_features(images, max_order, noise_floor="auto", whiten="auto", n_jobs=n_jobs)
    return map_features(features, n_classes, embedding=embedding, seed=seed)


def map_features(
    features: npt.NDArray[Any],
    n_classes: int | None = None,
    *,
    fewest: int = 1,
    embedding: str = "auto",
    seed: int = 0,
) -> ParticleMap:
    """Put feature vectors on a map and divide them into classes.

    Parameters
    ----------
    features : ndarray, shape (n, p)
        Real, in memory or a memory map. Rows with a NaN or an infinity have no place.
    n_classes : int, optional
        By default what the Bayesian information criterion says, from `fewest` up to 20.
    fewest : int
    embedding : {"auto", "umap", "pca"}
        "umap" needs umap-learn; "pca" are the first two principal components; "auto" is the first
        where it is installed.
    seed : int

    Returns
    -------
    map : ParticleMap

    Raises
    ------
    InputError
        If the features are not real (n, p), fewer rows are fit than there shall be classes, a
        parameter is out of range, or a package is missing.

    Notes
    -----
    Principal components that keep 95 % of the variance, two dimensions of UMAP on top of them, and a
    Gaussian mixture [1]_; here the mixture lives among the first ten components at most, which the
    embedding has not bent. Components come from streamed sums, the rest from 10,000 images, evenly
    spread; the other images are assigned in a stream.

    References
    ----------
    .. [1] Da, Yeo, Yang, Loh, "CryoEM 2D classification with translational and rotational invariant
       features".
    """
    features = _check_features(features)
    check_choice("embedding", embedding, EMBEDDINGS)
    seed = check_count("seed", seed, 0)
    if n_classes is not None:
        check_count("n_classes", n_classes)
    fewest = check_count("fewest", fewest)
    n = len(features)
    # Of any kind: threads of k-means, too, add in the order in which they end.
    with one_blas_thread(), threadpool_limits(limits=1, user_api="openmp"):
        fit, mean, axes, n_components = _principal_axes(features)
        if fit.sum() < (n_classes or fewest):
            raise InputError(
                f"{n_classes or fewest} classes need as many images; got {fit.sum()} without NaN among {n}."
            )
        usable = np.flatnonzero(fit)
        taught = usable[:: -(-len(usable) // N_FITTED)]
        sample = _scores(features[taught], mean, axes)
        mixture, criterion = _fit_mixture(sample, n_classes, fewest, seed)
        place, embedding = _embedding(sample, embedding, seed)
        coordinates = np.full((n, 2), np.nan, dtype=np.float32)
        label = np.full(n, -1, dtype=np.intp)
        probability = np.zeros(n, dtype=np.float32)
        for start in range(0, len(usable), CHUNK):
            rows = usable[start : start + CHUNK]
            scores = _scores(features[rows], mean, axes)
            others = ~np.isin(rows, taught)
            if others.any():
                coordinates[rows[others]] = place(scores[others])
            shares = mixture.predict_proba(scores[:, :N_CLUSTERED])
            label[rows] = shares.argmax(axis=1)
            probability[rows] = shares.max(axis=1)
        coordinates[taught] = place(None)
    order = np.argsort(-np.bincount(label[fit], minlength=mixture.n_components), kind="stable")
    label[fit] = np.argsort(order, kind="stable")[label[fit]]
    return ParticleMap(
        coordinates, label, probability, mixture.n_components, n_components, criterion, embedding
    )


def _check_features(features: npt.NDArray[Any]) -> npt.NDArray[Any]:
    rows = features if isinstance(features, np.ndarray) else np.asarray(features)
    if rows.dtype.kind not in "fiub" or rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"features must be real (n, p); got {rows.dtype} {rows.shape}: one row an image.")
    if len(rows) == 0:
        raise InputError("features hold no rows: nothing to map.")
    return rows


def _principal_axes(
    features: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.bool_], Array, Array, int]:
    """Rows that are fit, their mean, and axes (p, k) that keep 95 % of their variance."""
    n, width = features.shape
    fit = np.empty(n, dtype=bool)
    total, products = np.zeros(width), np.zeros((width, width))
    origin = np.zeros(width)
    for start in range(0, n, CHUNK):
        rows = np.array(features[start : start + CHUNK], dtype=np.float64)
        finite = fit[start : start + CHUNK] = np.isfinite(rows).all(axis=1)
        rows = rows[finite]
        if start == 0 and len(rows):
            # Near enough to the mean that the squares of a large one do not drown the rest.
            origin = rows[:1024].mean(axis=0)
        rows -= origin
        total += rows.sum(axis=0)
        products += rows.T @ rows
    count = int(fit.sum())
    if count == 0:
        raise InputError(f"a map needs an image; got none without NaN among {n}.")
    shift = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(shift, shift))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    # Of the two signs, that of a positive largest entry.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(width)])
    part = np.cumsum(values) / max(float(values.sum()), 1e-300)
    n_components = min(int(np.searchsorted(part, KEPT)) + 1, width)
    return fit, origin + shift, vectors[:, : max(n_components, min(2, width))], n_components


def _scores(rows: npt.NDArray[Any], mean: Array, axes: Array) -> Array:
    scores: Array = (np.asarray(rows, dtype=np.float64) - mean) @ axes
    return scores


def _fit_mixture(sample: Array, n_classes: int | None, fewest: int, seed: int) -> tuple[Any, Array]:
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError:
        raise InputError(
            "a map needs scikit-learn, which is not installed: pip install 'fastsort[map]'."
        ) from None
    rows = sample[:, :N_CLUSTERED]
    if len(rows) == 1:
        # A mixture wants two.
        rows = np.repeat(rows, 2, axis=0)
    scale = float(rows.var(axis=0).sum())

    def fitted(number: int) -> Any:
        floor = 1e-6 * scale + 1e-12
        mixture = GaussianMixture(number, n_init=N_STARTS, reg_covar=floor, random_state=seed, max_iter=200)
        return mixture.fit(rows)

    with without_warnings():
        # Not converged after 200 iterations, or fewer distinct images than classes: still a mixture.
        if n_classes is not None:
            return fitted(n_classes), np.empty(0)
        mixtures, criterion = [], []
        # A class must have enough images for its covariance.
        most = min(MAX_CLASSES, max(fewest, len(rows) // (5 * rows.shape[1])))
        for number in range(fewest, most + 1):
            mixtures.append(fitted(number))
            criterion.append(mixtures[-1].bic(rows))
            # Three worse numbers in a row: the best is behind.
            if number - fewest - int(np.argmin(criterion)) >= 3:
                break
    return mixtures[int(np.argmin(criterion))], np.array(criterion)


def _embedding(sample: Array, embedding: str, seed: int) -> tuple[Callable[[Array | None], Any], str]:
    """Return a function from principal components to places; of None, those of the sample."""

    def first_two(scores: Array | None) -> Array:
        rows = sample if scores is None else scores
        return np.column_stack([rows, np.zeros(len(rows))])[:, :2]

    if embedding == "pca":
        return first_two, "pca"
    try:
        with without_warnings():
            # It warns of what else it could do with Tensorflow.
            import umap
    except ImportError:
        if embedding == "umap":
            raise InputError("umap-learn is not installed: pip install 'fastsort[map]'.") from None
        return first_two, "pca"
    # Fewer images have no neighbourhood.
    if len(sample) < 20 or np.ptp(sample, axis=0).max() == 0:
        return first_two, "pca"
    with without_warnings():
        # It warns that a seed leaves it with one worker: that is what is wanted.
        reducer = umap.UMAP(n_neighbors=min(15, len(sample) - 1), random_state=seed, n_jobs=1)
        reducer.fit(sample)

    def places(scores: Array | None) -> Any:
        if scores is None:
            return reducer.embedding_
        with without_warnings():
            return reducer.transform(scores)

    return places, "umap"
