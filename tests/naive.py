"""The project's algorithms written again, slowly and obviously, to compare the compiled kernels with.

Everything is float64, one image at a time, and imports nothing from fastsort.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import sklearn.cluster

# Radial profiles: Kapnulin, Heimowitz, Sharon, "Outlier Removal in Cryo-EM via Radial Profiles".
# Where text and public code of the authors differ, the code is followed.


class PublishedVerdict(NamedTuple):
    """What the published rules say of the strongest points of one image."""

    reason: str
    n_clusters: int
    n_scattered: int
    centre: tuple[float, float]


class PublishedResult(NamedTuple):
    """Arrays with one entry an image, in input order."""

    keep: npt.NDArray[np.bool_]
    reason: npt.NDArray[np.str_]
    n_clusters: npt.NDArray[np.intp]
    n_scattered: npt.NDArray[np.intp]
    peak: npt.NDArray[np.float64]
    centre: npt.NDArray[np.float64]
    points: npt.NDArray[np.intp]


def published_filter(images: npt.ArrayLike, radius: float, n_peaks: int) -> PublishedResult:
    """Sort images by the published radial filter (Algorithm 1, as in the authors' code).

    The authors subtract the mean of the batch first. That adds a constant to every
    correlation map and so leaves the ranking alone: it is left out.

    Parameters
    ----------
    images : array_like, shape (n, d, d)
        Particle bright, finite, not flat.
    radius : float
        Radius r of the particle, in pixels.
    n_peaks : int
        How many of the largest values A of the correlation map are looked at.
    """
    images = np.asarray(images, dtype=np.float64)
    d = images.shape[-1]
    maps = gaussian_sum(images)
    points = [top_peaks(one_map, n_peaks) for one_map in maps]
    verdicts = [published_verdict(one, d, radius) for one in points]
    return PublishedResult(
        keep=np.array([verdict.reason == "valid" for verdict in verdicts]),
        reason=np.array([verdict.reason for verdict in verdicts]),
        n_clusters=np.array([verdict.n_clusters for verdict in verdicts]),
        n_scattered=np.array([verdict.n_scattered for verdict in verdicts]),
        peak=np.array([one_map.max() for one_map in maps]),
        centre=np.array([verdict.centre for verdict in verdicts]),
        points=np.array(points),
    )


def filter_width(d: int) -> int:
    """Width k of the filter for images of d pixels; Python's round: a half goes to the even number."""
    return round(0.3 * d)


def gaussian_sum_kernel(d: int) -> npt.NDArray[np.float64]:
    """Sum of five Gaussians, shape (k, k); each has unit sum, so the whole has sum 5."""
    k = filter_width(d)
    x = np.arange(k) - (k - 1) / 2
    squared_distance = x[:, np.newaxis] ** 2 + x[np.newaxis, :] ** 2
    total = np.zeros((k, k))
    for percent in (5, 15, 25, 35, 45):
        std = percent / 100 * k
        gaussian = np.exp(-squared_distance / (2 * std**2))
        total += gaussian / gaussian.sum()
    return total


def gaussian_sum(images: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Correlation map of every image with the sum of Gaussians, shape (n, d, d).

    The filter is its own mirror image: correlation and convolution are the same. The
    convolution is circular, and output pixel n sees input pixels n - (k-1) + k//2 to n + k//2.
    """
    images = np.asarray(images, dtype=np.float64)
    d = images.shape[-1]
    k = filter_width(d)
    padded = np.zeros((d, d))
    padded[:k, :k] = gaussian_sum_kernel(d)
    maps = np.empty(images.shape)
    for i, image in enumerate(images):
        convolved = np.fft.ifft2(np.fft.fft2(image) * np.fft.fft2(padded)).real
        # The filter stands in the corner, not in the middle: move the result back by half its width.
        maps[i] = np.roll(convolved, (-(k // 2), -(k // 2)), axis=(0, 1))
    return maps


def top_peaks(one_map: npt.NDArray[np.floating], n: int) -> npt.NDArray[np.intp]:
    """Positions (y, x) of the n largest values, largest first; of equal values the lower row-major index."""
    values = one_map.ravel()
    order = sorted(range(values.size), key=lambda index: (-values[index], index))
    return np.array([divmod(index, one_map.shape[1]) for index in order[:n]])


def dbscan(points: npt.ArrayLike, eps: float, min_samples: int) -> npt.NDArray[np.intp]:
    """Cluster of every point, numbered in the order of discovery; -1 where it belongs to none.

    A point counts itself among its neighbours. Clusters grow one after another from the first
    free core point; a border point between two clusters belongs to the one that comes first.
    """
    points = np.asarray(points, dtype=np.float64)
    n = len(points)
    neighbours = [[j for j in range(n) if ((points[i] - points[j]) ** 2).sum() <= eps**2] for i in range(n)]
    is_core = [len(near) >= min_samples for near in neighbours]
    labels = np.full(n, -1)
    n_clusters = 0
    for seed in range(n):
        if not is_core[seed] or labels[seed] != -1:
            continue
        labels[seed] = n_clusters
        to_visit = [seed]
        while to_visit:
            point = to_visit.pop()
            for near in neighbours[point]:
                if labels[near] == -1:
                    labels[near] = n_clusters
                    # Clusters grow through core points only; border points join and stop there.
                    if is_core[near]:
                        to_visit.append(near)
        n_clusters += 1
    return labels


def published_min_samples(n_peaks: int) -> int:
    """Points that make a cluster, round(A/3).

    One peak would give zero, which scikit-learn refuses. Any point counts itself, so zero and
    one mean the same: every point is a cluster.
    """
    return max(1, round(n_peaks / 3))


def published_verdict(points: npt.ArrayLike, d: int, radius: float) -> PublishedVerdict:
    """Judge the strongest points (y, x) of an image of d pixels, given strongest first."""
    points = np.asarray(points)
    n_peaks = len(points)
    min_samples = published_min_samples(n_peaks)
    labels = sklearn.cluster.DBSCAN(eps=radius, min_samples=min_samples).fit_predict(points)
    clusters = [points[labels == label] for label in range(labels.max() + 1)]
    scattered = points[labels == -1]
    # np.round takes a half to the even number, as the authors' code does.
    centres = [np.round(cluster.mean(axis=0)) for cluster in clusters]

    if len(scattered) > round(n_peaks / 3):
        reason = "noise"
    elif all_along_one_side(scattered, d, radius) or any(is_near_edge(c, d, radius) for c in centres):
        reason = "partial"
    else:
        reason = "valid"

    if clusters:
        # max() returns the first of equally large clusters, which is the first that DBSCAN found.
        largest = max(range(len(clusters)), key=lambda label: len(clusters[label]))
        centre = centres[largest]
    else:
        centre = points[0]
    return PublishedVerdict(
        reason=reason,
        n_clusters=len(clusters),
        n_scattered=len(scattered),
        centre=(float(centre[0] - d // 2), float(centre[1] - d // 2)),
    )


def all_along_one_side(scattered: npt.NDArray[np.intp], d: int, radius: float) -> bool:
    """Whether there are scattered points and all of them lie within the radius of the same side."""
    if len(scattered) == 0:
        return False
    y, x = scattered[:, 0], scattered[:, 1]
    return bool(
        (y <= radius).all() or (y >= d - radius).all() or (x <= radius).all() or (x >= d - radius).all()
    )


def is_near_edge(centre: npt.NDArray[np.floating], d: int, radius: float) -> bool:
    """Whether a point lies within the radius of any side."""
    y, x = centre
    return bool(y <= radius or y >= d - radius or x <= radius or x >= d - radius)
