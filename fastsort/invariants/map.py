"""The map of a set of images: where each lies among the others, and which class it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from fastsort._brief import brief
from fastsort._checks import InputError, check_choice, check_count
from fastsort._process import one_blas_thread, without_warnings
from fastsort._types import Array, Bools, Floats, Indices, Singles
from fastsort.invariants.features import invariant_features
from fastsort.particles.source import Particles

EMBEDDINGS = ("auto", "umap", "pca")
# Part of the variance that the principal components keep.
KEPT = 0.95
# The mixture uses at most so many components: further ones hold noise.
N_CLUSTERED = 10
# Models are fitted to so many images; the others are assigned to classes chunk by chunk.
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
        Place on the map; NaN for images with a NaN or an infinity.
    label : ndarray of intp, shape (n,)
        Class of each image, from 0 for the largest; -1 for images with a NaN or an infinity.
    probability : ndarray of float32, shape (n,)
        Probability by the mixture that the image belongs to its class; 0 without a class.
    n_classes : int
    n_components : int
        Number of principal components that keep 95 % of the variance.
    criterion : ndarray of float64, shape (k,)
        Bayesian information criterion for each number of classes that was tried, in ascending order; empty
        if the number was given.
    embedding : str
        "umap" or "pca": how the coordinates were made.
    """

    coordinates: Singles
    label: Indices
    probability: Singles
    n_classes: int
    n_components: int
    criterion: Floats
    embedding: str


def map_particles(
    images: Array | Particles,
    n_classes: int | None = None,
    *,
    max_order: int = 20,
    embedding: str = "auto",
    n_jobs: int | None = None,
    seed: int = 0,
) -> ParticleMap:
    """Put images on a map by features that do not change with a turn or a shift.

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

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(40, 0, box=32, snr=2, seed=1)
    >>> places = fs.invariants.map_particles(images, 2, max_order=10, embedding="pca")
    >>> places.coordinates.shape, places.n_classes
    ((40, 2), 2)
    """
    features = invariant_features(images, max_order, noise_floor="auto", whiten="auto", n_jobs=n_jobs)
    return map_features(features, n_classes, embedding=embedding, seed=seed)


def map_features(
    features: Array,
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
        Real numbers, in memory or a memory map. Rows with a NaN or an infinity have no place.
    n_classes : int, optional
        Number of classes. By default the number with the best Bayesian information criterion, from
        `fewest` to 20.
    fewest : int
        Smallest number of classes that is tried.
    embedding : {"auto", "umap", "pca"}
        "umap" needs the package umap-learn. "pca" takes the first two principal components. "auto" is
        "umap" if the package is installed, and "pca" if not.
    seed : int
        Random seed of the mixture and of UMAP.

    Returns
    -------
    map : ParticleMap

    Raises
    ------
    InputError
        If the features are not real (n, p), there are fewer finite rows than classes, a parameter is out of
        range, or a package is missing.

    Notes
    -----
    As in [1]_, the map consists of the principal components that keep 95 % of the variance, two dimensions
    of UMAP made of them, and a Gaussian mixture. Here the mixture is fitted to the first ten components at
    most, which UMAP has not distorted. The components come from sums over all images, mixture and UMAP from
    10,000 images, evenly spread; all others are assigned afterwards.

    References
    ----------
    .. [1] Da, Yeo, Yang, Loh, "CryoEM 2D classification with translational and rotational invariant
       features".

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> rng = np.random.default_rng(0)
    >>> features = np.concatenate([rng.normal(size=(30, 5)), rng.normal(9, size=(20, 5))])
    >>> places = fs.invariants.map_features(features, embedding="pca")
    >>> places.n_classes, np.bincount(places.label).tolist()
    (2, [30, 20])
    """
    features = _check_features(features)
    check_choice("embedding", embedding, EMBEDDINGS)
    seed = check_count("seed", seed, 0)
    if n_classes is not None:
        check_count("n_classes", n_classes)
    fewest = check_count("fewest", fewest)
    n = len(features)
    # OpenMP too: the threads of k-means add up in the order in which they end.
    with one_blas_thread(), threadpool_limits(limits=1, user_api="openmp"):
        finite, mean, axes, n_components = _principal_axes(features)
        usable = np.flatnonzero(finite)
        if len(usable) < (n_classes or fewest):
            raise InputError(
                f"{n_classes or fewest} classes need as many images; got {len(usable)} without NaN "
                f"among {n}: give fewer classes."
            )
        fitted = usable[:: -(-len(usable) // N_FITTED)]
        sample = _components(features[fitted], mean, axes)
        mixture, criterion = _fit_mixture(sample, n_classes, fewest, seed)
        place, embedding = _embedding(sample, embedding, seed)
        coordinates = np.full((n, 2), np.nan, dtype=np.float32)
        label = np.full(n, -1, dtype=np.intp)
        probability = np.zeros(n, dtype=np.float32)
        for start in range(0, len(usable), CHUNK):
            rows = usable[start : start + CHUNK]
            components = _components(features[rows], mean, axes)
            others = ~np.isin(rows, fitted)
            if others.any():
                coordinates[rows[others]] = place(components[others])
            shares = mixture.predict_proba(components[:, :N_CLUSTERED])
            label[rows] = shares.argmax(axis=1)
            probability[rows] = shares.max(axis=1)
        coordinates[fitted] = place(None)
    order = np.argsort(-np.bincount(label[finite], minlength=mixture.n_components), kind="stable")
    label[finite] = np.argsort(order, kind="stable")[label[finite]]
    return ParticleMap(
        coordinates, label, probability, mixture.n_components, n_components, criterion, embedding
    )


def _check_features(features: Array) -> Array:
    rows = features if isinstance(features, np.ndarray) else np.asarray(features)
    if rows.dtype.kind not in "fiub" or rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"features must be real (n, p); got {rows.dtype} {rows.shape}: one row an image.")
    if len(rows) == 0:
        raise InputError("features hold no rows: nothing to map.")
    return rows


def _principal_axes(
    features: Array,
) -> tuple[Bools, Floats, Floats, int]:
    """Which rows are finite, their mean, axes (p, k), and how many axes keep 95 % of their variance."""
    n, width = features.shape
    finite = np.empty(n, dtype=bool)
    total, products = np.zeros(width), np.zeros((width, width))
    origin = np.zeros(width)
    for start in range(0, n, CHUNK):
        rows = np.array(features[start : start + CHUNK], dtype=np.float64)
        finite[start : start + CHUNK] = np.isfinite(rows).all(axis=1)
        rows = rows[finite[start : start + CHUNK]]
        if start == 0 and len(rows):
            # Close enough to the mean that a large one does not cost the squares their last digits.
            origin = rows[:1024].mean(axis=0)
        rows -= origin
        total += rows.sum(axis=0)
        products += rows.T @ rows
    count = int(finite.sum())
    if count == 0:
        raise InputError(f"a map needs an image; got none without NaN among {n}.")
    shift = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(shift, shift))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    # The sign of each axis makes its largest entry positive.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(width)])
    part = np.cumsum(values) / max(float(values.sum()), 1e-300)
    n_components = min(int(np.searchsorted(part, KEPT)) + 1, width)
    return finite, origin + shift, vectors[:, : max(n_components, min(2, width))], n_components


def _components(rows: Array, mean: Floats, axes: Floats) -> Floats:
    components: Floats = (np.asarray(rows, dtype=np.float64) - mean) @ axes
    return components


def _fit_mixture(sample: Floats, n_classes: int | None, fewest: int, seed: int) -> tuple[Any, Floats]:
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError:
        raise InputError(
            "a map needs scikit-learn, which is not installed: pip install 'fastsort[map]'."
        ) from None
    rows = sample[:, :N_CLUSTERED]
    if len(rows) == 1:
        # A mixture needs two.
        rows = np.repeat(rows, 2, axis=0)
    scale = float(rows.var(axis=0).sum())

    def fitted(number: int) -> Any:
        floor = 1e-6 * scale + 1e-12
        mixture = GaussianMixture(number, n_init=N_STARTS, reg_covar=floor, random_state=seed, max_iter=200)
        return mixture.fit(rows)

    with without_warnings():
        # A mixture that has not converged, or has fewer distinct images than classes, is good enough.
        if n_classes is not None:
            return fitted(n_classes), np.empty(0)
        mixtures, criterion = [], []
        # A class must have enough images for its covariance.
        most = min(MAX_CLASSES, max(fewest, len(rows) // (5 * rows.shape[1])))
        for number in range(fewest, most + 1):
            mixtures.append(fitted(number))
            criterion.append(mixtures[-1].bic(rows))
            # After three worse numbers in a row no better one is to be expected.
            if number - fewest - int(np.argmin(criterion)) >= 3:
                break
    return mixtures[int(np.argmin(criterion))], np.array(criterion)


def _embedding(sample: Floats, embedding: str, seed: int) -> tuple[Callable[[Floats | None], Any], str]:
    """Return a function from principal components to places, which for None gives those of the sample."""

    def first_two(components: Floats | None) -> Floats:
        rows = sample if components is None else components
        return np.column_stack([rows, np.zeros(len(rows))])[:, :2]

    if embedding == "pca":
        return first_two, "pca"
    try:
        with without_warnings():
            # Without Tensorflow it warns.
            import umap
    except ImportError:
        if embedding == "umap":
            raise InputError("umap-learn is not installed: pip install 'fastsort[map]'.") from None
        return first_two, "pca"
    # Fewer images have no neighbourhoods.
    if len(sample) < 20 or np.ptp(sample, axis=0).max() == 0:
        return first_two, "pca"
    with without_warnings():
        # It warns that a seed leaves it with one worker, which is what is wanted here.
        reducer = umap.UMAP(n_neighbors=min(15, len(sample) - 1), random_state=seed, n_jobs=1)
        reducer.fit(sample)

    def places(components: Floats | None) -> Any:
        if components is None:
            return reducer.embedding_
        with without_warnings():
            return reducer.transform(components)

    return places, "umap"
