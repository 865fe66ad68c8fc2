"""The project's algorithms written again, slowly and obviously, to compare the compiled kernels with.

Everything is float64, one image at a time, and imports nothing from fastsort.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.ndimage
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


# Images: what happens to every image before anything is measured.


def subtract_ramp(image, least):
    """Subtract the plane of least squares, less as it explains less of the variance."""
    image = image.astype(np.float64)
    y, x = np.indices(image.shape)
    terms = np.stack([np.ones(image.size), x.ravel(), y.ravel()], axis=1)
    plane = (terms @ np.linalg.lstsq(terms, image.ravel())[0]).reshape(image.shape)
    explained, left = ((plane - plane.mean()) ** 2).sum(), ((image - plane) ** 2).sum()
    part = max(0.0, 1 - least * left / explained)
    return image - part * (plane - plane.mean())


def fourier_crop(image: npt.ArrayLike, size: int) -> npt.NDArray[np.float64]:
    """Crop one image to `size` pixels by leaving out high frequencies of its transform.

    Where the new box is even, its highest frequency stands for both signs: their mean is taken.
    """
    image = np.asarray(image, dtype=np.float64)
    box = len(image)
    if size == box:
        return image
    spectrum = np.fft.fft2(np.fft.ifftshift(image))
    frequencies = np.fft.fftfreq(size, 1 / size).astype(int)
    cropped = np.zeros((size, size), dtype=complex)
    for row, y in enumerate(frequencies):
        for column, x in enumerate(frequencies):
            same_y = {y, -y} if 2 * abs(y) == size else {y}
            same_x = {x, -x} if 2 * abs(x) == size else {x}
            cropped[row, column] = np.mean([spectrum[v, u] for v in same_y for u in same_x])
    return np.fft.fftshift(np.fft.ifft2(cropped)).real * (size / box) ** 2


# The radial filter that learns its template.

BANDS = ((0.5, 2.7), (2.7, 6.0), (6.0, 10.7))
PROFILE_RINGS = (0.25, 0.5, 0.75, 1.0, 1.25)
POWER_RINGS = (0.6, 1.0, 1.3)
CENTRING = 0.08
OFFSETS = 0.14
NOISE_FLOOR = 0.02


class RadialMeasurement(NamedTuple):
    """What stands about one place of one image."""

    features: npt.NDArray[np.float64]
    near: float
    near_shift: tuple[float, float]
    other: float
    other_shift: tuple[int, int]
    response: npt.NDArray[np.float64]


def rings(box: int) -> npt.NDArray[np.intp]:
    """Whole cycles a box of every coefficient of the full Fourier plane."""
    frequencies = np.fft.fftfreq(box, 1 / box)
    return np.rint(np.hypot(frequencies[:, np.newaxis], frequencies[np.newaxis, :])).astype(int)


def ring_mean(plane: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Mean of a full Fourier plane over the coefficients of each frequency, 0 to d // 2."""
    box = len(plane)
    return np.array([plane[rings(box) == ring].mean() for ring in range(box // 2 + 1)])


def ring_power(image: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Power of a pixel by frequency: white noise of deviation 1 has 1 everywhere."""
    image = np.asarray(image, dtype=np.float64)
    return ring_mean(np.abs(np.fft.fft2(image)) ** 2 / image.size)


def radial_signal(image: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Radial mean of the transform of an image about its pixel d // 2."""
    return ring_mean(np.fft.fft2(np.fft.ifftshift(np.asarray(image, dtype=np.float64))).real)


def filter_radially(image: npt.ArrayLike, curve: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Multiply the transform with a curve of d // 2 + 1 values; nothing at 0 or beyond the curve."""
    image = np.asarray(image, dtype=np.float64)
    padded = np.zeros(len(image) + 1)
    padded[1 : len(curve)] = curve[1:]
    return np.fft.ifft2(np.fft.fft2(image) * padded[rings(len(image))]).real


def matched_filter(
    signal: npt.NDArray[np.floating], noise: npt.NDArray[np.floating], box: int
) -> npt.NDArray[np.float64]:
    """Signal over noise power, scaled so that the noise leaves the filter with deviation 1."""
    curve = signal / np.maximum(noise, NOISE_FLOOR * noise[1:].max())
    curve[0] = 0
    variance = 0.0
    for ring in rings(box).ravel():
        if 0 < ring <= box // 2:
            variance += curve[ring] ** 2 * noise[ring] / box**2
    return curve / np.sqrt(variance)


def radial_measurement(
    image: npt.NDArray[np.floating],
    signal: npt.NDArray[np.floating],
    noise: npt.NDArray[np.floating],
    spectrum: npt.NDArray[np.floating],
    radius: float,
    displacement: tuple[int, int],
) -> RadialMeasurement:
    """Measure one image about a displaced centre, pixel by pixel; the image continues periodically."""
    box = len(image)
    template = matched_filter(signal, noise, box)
    response = filter_radially(image, template)
    near, y, x, _ = highest_about(response, displacement, CENTRING)
    _, top, left, shift = highest_about(response, displacement, OFFSETS)
    near_shift = (
        shift[0] + vertex(*[response[(top + step) % box, left] for step in (-1, 0, 1)]),
        shift[1] + vertex(*[response[top, (left + step) % box] for step in (-1, 0, 1)]),
    )

    cycles = np.arange(box // 2 + 1) * 2 * radius / box
    cycles[1] = max(cycles[1], BANDS[0][0])
    whitening = 1 / np.sqrt(np.maximum(spectrum, NOISE_FLOOR * spectrum[1:].max()))
    bands = [
        filter_radially(image, np.where((cycles >= low) & (cycles < high), whitening, 0))
        for low, high in BANDS
    ]
    features = [near]
    for inner, outer in zip((0, *PROFILE_RINGS), PROFILE_RINGS, strict=False):
        grey = annulus(bands[0] + bands[1], y, x, inner * radius, outer * radius)
        # Rings of very small particles may hold no pixel: they count as zero.
        features.append(grey.sum() / max(len(grey), 1))
    for band in bands:
        for inner, outer in zip((0, *POWER_RINGS), POWER_RINGS, strict=False):
            grey = annulus(band, y, x, inner * radius, outer * radius)
            features.append(np.log((grey**2).sum() / max(len(grey), 1) + 0.01))

    # What the template answers to itself, standing on pixel (y, x) with the height found there.
    delta = np.zeros((box, box))
    delta[0, 0] = 1
    overlap = filter_radially(delta, signal * template)
    rest = response - max(near, 0) * np.roll(overlap / overlap[0, 0], (y, x), axis=(0, 1))
    other_y, other_x = divmod(int(rest.argmax()), box)
    return RadialMeasurement(
        np.array(features),
        near,
        near_shift,
        rest.max(),
        (other_y - box // 2, other_x - box // 2),
        response,
    )


def highest_about(
    response: npt.NDArray[np.float64], displacement: tuple[int, int], part: float
) -> tuple[float, int, int, tuple[int, int]]:
    """Highest value within a part of the box about a place: its height, pixel and offset."""
    box = len(response)
    reach = max(1, round(part * box))
    best = (-np.inf, 0, 0, (0, 0))
    for v in range(-reach, reach + 1):
        for u in range(-reach, reach + 1):
            row, column = (box // 2 + displacement[0] + v) % box, (box // 2 + displacement[1] + u) % box
            if v**2 + u**2 <= reach**2 and response[row, column] > best[0]:
                best = (response[row, column], row, column, (v, u))
    return best


def annulus(
    image: npt.NDArray[np.float64], y: int, x: int, inner: float, outer: float
) -> npt.NDArray[np.float64]:
    """Pixels at a distance of `inner` up to, not including, `outer` from (y, x)."""
    box = len(image)
    reach = int(np.ceil(outer))
    return np.array(
        [
            image[(y + v) % box, (x + u) % box]
            for v in range(-reach, reach + 1)
            for u in range(-reach, reach + 1)
            if inner <= np.hypot(v, u) < outer
        ]
    )


def vertex(before: float, here: float, after: float) -> float:
    """Where the parabola through three neighbours is highest, within half a pixel."""
    a, b, _ = np.polyfit((-1, 0, 1), (before, here, after), 2)
    return float(np.clip(-b / (2 * a), -0.5, 0.5)) if a < 0 else 0.0


# The mixture of probabilistic PCA: Weiss-Dicker, Eldar, Shkolinsky, Bendory, "Unsupervised particle
# sorting for cryo-EM using probabilistic PCA", equations 3.1 to 3.9, with every L x L matrix written out.


class Mixture(NamedTuple):
    """Parameters of y = C_m x + mu_m + noise."""

    weights: npt.NDArray[np.float64]
    means: npt.NDArray[np.float64]
    loadings: npt.NDArray[np.float64]
    noise_variance: float


class PpcaOptimum(NamedTuple):
    """Where the likelihood of one subspace is highest; `log_likelihood` is the mean over the images."""

    mean: npt.NDArray[np.float64]
    loadings: npt.NDArray[np.float64]
    noise_variance: float
    log_likelihood: float


def subspace_covariance(mixture: Mixture, m: int) -> npt.NDArray[np.float64]:
    """Covariance C C^T + s2 I of the images of one subspace, shape (L, L)."""
    loadings = mixture.loadings[m]
    return loadings @ loadings.T + mixture.noise_variance * np.eye(len(loadings))


def subspace_log_densities(images: npt.ArrayLike, mixture: Mixture) -> npt.NDArray[np.float64]:
    """Log density of every image in every subspace, shape (n, M); the weights are left out."""
    images = np.asarray(images, dtype=np.float64)
    densities = np.empty((len(images), len(mixture.weights)))
    for m, mean in enumerate(mixture.means):
        covariance = subspace_covariance(mixture, m)
        log_determinant = np.linalg.slogdet(2 * np.pi * covariance).logabsdet
        for i, image in enumerate(images):
            distance = (image - mean) @ np.linalg.solve(covariance, image - mean)
            densities[i, m] = -0.5 * (log_determinant + distance)
    return densities


def mixture_log_likelihood(images: npt.ArrayLike, mixture: Mixture) -> npt.NDArray[np.float64]:
    """Log density of every image in the whole mixture, shape (n,)."""
    joint = subspace_log_densities(images, mixture) + np.log(mixture.weights)
    return np.array([np.logaddexp.reduce(one) for one in joint])


def mixture_responsibilities(images: npt.ArrayLike, mixture: Mixture) -> npt.NDArray[np.float64]:
    """Probability h that an image came from a subspace (equation 3.3), shape (n, M)."""
    joint = subspace_log_densities(images, mixture) + np.log(mixture.weights)
    return np.exp(joint - mixture_log_likelihood(images, mixture)[:, np.newaxis])


def expected_coefficients(
    image: npt.NDArray[np.floating], mixture: Mixture, m: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return E[x | y, m] and E[x x^T | y, m] (equations 3.4 and 3.5)."""
    loadings = mixture.loadings[m]
    projection = loadings.T @ np.linalg.inv(subspace_covariance(mixture, m))
    first = projection @ (image - mixture.means[m])
    return first, np.eye(len(first)) - projection @ loadings + np.outer(first, first)


def mixture_em_iteration(images: npt.ArrayLike, mixture: Mixture) -> Mixture:
    """Improve the parameters once (equations 3.6 to 3.8).

    Equations 3.6 and 3.7 need each other's result. They are the normal equations of one regression
    of y on (x, 1), whose coefficients are (C, mu), and are solved as such. The 1/N of equation 3.7
    holds for one subspace only; of more it is one over the sum of the responsibilities. Equation 3.8
    lacks the 1/N.
    """
    images = np.asarray(images, dtype=np.float64)
    n, n_values = images.shape
    n_subspaces, _, n_components = mixture.loadings.shape
    h = mixture_responsibilities(images, mixture)
    means, loadings = np.empty_like(mixture.means), np.empty_like(mixture.loadings)
    residual = 0.0
    for m in range(n_subspaces):
        moments = [expected_coefficients(image, mixture, m) for image in images]
        right = np.zeros((n_values, n_components + 1))
        left = np.zeros((n_components + 1, n_components + 1))
        for i, (first, second) in enumerate(moments):
            right += h[i, m] * np.outer(images[i], [*first, 1])
            column = first[:, np.newaxis]
            left += h[i, m] * np.block([[second, column], [column.T, 1]])
        solution = np.linalg.solve(left, right.T).T
        loadings[m], means[m] = solution[:, :-1], solution[:, -1]
        for i, (first, second) in enumerate(moments):
            offset = images[i] - means[m]
            residual += h[i, m] * (
                offset @ offset
                + np.trace(loadings[m].T @ loadings[m] @ second)
                - 2 * offset @ loadings[m] @ first
            )
    return Mixture(h.mean(axis=0), means, loadings, residual / (n * n_values))


def sorting_factor(images: npt.ArrayLike, loadings: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Residual over projected energy, summed over the subspaces (equation 3.9), shape (n,).

    Equation 3.9 projects with C C^T, which is a projection only if the columns are orthonormal:
    a basis of the same subspace is used. As in the authors' code the mean stays in the image.
    """
    factors = []
    for image in np.asarray(images, dtype=np.float64):
        total = 0.0
        for one in np.asarray(loadings, dtype=np.float64):
            basis, _ = np.linalg.qr(one)
            projected = basis @ (basis.T @ image)
            energy = projected @ projected
            total += ((image - projected) @ (image - projected)) / energy if energy > 0 else np.inf
        factors.append(total)
    return np.array(factors)


def posterior_mean(images: npt.ArrayLike, mixture: Mixture) -> npt.NDArray[np.float64]:
    """What the images are without noise, shape (n, L): C_m E[x] + mu_m, each by its probability."""
    images = np.asarray(images, dtype=np.float64)
    clean = np.zeros(images.shape)
    for i, h in enumerate(mixture_responsibilities(images, mixture)):
        for m, probability in enumerate(h):
            first, _ = expected_coefficients(images[i], mixture, m)
            clean[i] += probability * (mixture.loadings[m] @ first + mixture.means[m])
    return clean


def ppca_optimum(images: npt.ArrayLike, n_components: int) -> PpcaOptimum:
    """Maximum likelihood of one subspace in closed form.

    Tipping and Bishop, "Probabilistic principal component analysis", J. R. Stat. Soc. B 61 (1999),
    equations 7 and 8: principal axes of the sample covariance, and the mean of what they leave.
    """
    images = np.asarray(images, dtype=np.float64)
    mean = images.mean(axis=0)
    covariance = (images - mean).T @ (images - mean) / len(images)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    noise_variance = eigenvalues[n_components:].mean()
    loadings = vectors[:, :n_components] * np.sqrt(eigenvalues[:n_components] - noise_variance)
    fitted = loadings @ loadings.T + noise_variance * np.eye(len(mean))
    log_determinant = np.linalg.slogdet(2 * np.pi * fitted).logabsdet
    log_likelihood = -0.5 * (log_determinant + np.trace(np.linalg.solve(fitted, covariance)))
    return PpcaOptimum(mean, loadings, noise_variance, log_likelihood)


# Verdicts: votes weighed against each other, shares of junk, intervals and cuts.


def logistic_slopes(
    values: npt.ArrayLike,
    target: npt.ArrayLike,
    amount: npt.ArrayLike,
    weights: npt.ArrayLike,
    offset: float,
    ridge: float,
) -> tuple[npt.NDArray[np.float64], float]:
    """Slopes of the loss of weighted rows, for the weights of standardised columns and the offset.

    The loss is minus the log-likelihood, with half of `ridge` times the squared weights. At the best
    weights that are not negative (Karush, Kuhn and Tucker), the slope is zero for a weight above
    zero, and not negative for a weight of zero.
    """
    values, target, amount = (np.asarray(array, dtype=np.float64) for array in (values, target, amount))
    spread = values.std(axis=0)
    at = np.asarray(weights, dtype=np.float64) * spread
    middle = float(offset) + float(values.mean(axis=0) @ np.asarray(weights, dtype=np.float64))
    of_weights, of_offset = ridge * at, 0.0
    for row, label, much in zip((values - values.mean(axis=0)) / spread, target, amount, strict=True):
        wrong = 1 / (1 + np.exp(-(middle + row @ at))) - label
        of_weights = of_weights + much * wrong * row
        of_offset += much * wrong
    return of_weights, of_offset


def likeliest_share(odds: npt.ArrayLike) -> float:
    """Share of junk that makes log-likelihood ratios of junk to particles most likely.

    Saerens, Latinne and Decaestecker, Neural Computation 14 (2002): what their iteration climbs to,
    the root of the derivative of sum(log(share * ratio + 1 - share)), which falls with the share.
    """
    ratio = np.exp(np.asarray(odds, dtype=np.float64)) - 1

    def slope(share: float) -> float:
        return float(np.sum(ratio / (1 + share * ratio)))

    low, high = 0.0, 1.0
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return 0.5 * (low + high)


def wilson_interval(hits: int, number: int, deviations: float) -> tuple[float, float]:
    """Shares whose normal approximation has the observed one at so many standard deviations.

    The two roots x of (x - hits / number)^2 = deviations^2 x (1 - x) / number.
    """
    seen, square = hits / number, deviations**2 / number
    low, high = np.sort(np.roots([1 + square, -2 * seen - square, seen**2]).real)
    return float(low), float(high)


def best_images(score: npt.ArrayLike, number: int) -> npt.NDArray[np.bool_]:
    """Mark so many images of lowest score; of equals the first; infinite ones never."""
    score = np.asarray(score, dtype=np.float64)
    ranking = sorted(range(len(score)), key=lambda i: (score[i], i))
    return np.array([i in ranking[:number] and score[i] < np.inf for i in range(len(score))])


def fewest_that_hold(score: npt.ArrayLike, junk_probability: npt.ArrayLike, share: float) -> int:
    """Count the best images that it takes to hold this share of all expected particles."""
    score, expected = np.asarray(score, dtype=np.float64), 1 - np.asarray(junk_probability, dtype=np.float64)
    wanted, held, number = share * expected.sum() * (1 - 1e-9), 0.0, 0
    for i in sorted(range(len(score)), key=lambda i: (score[i], i)):
        if held >= wanted:
            break
        held += expected[i]
        number += 1
    return number


def concentrated(values: npt.ArrayLike, share: float, steps: int) -> npt.NDArray[np.float64]:
    """Mean of the rows that lie closest together, by concentration steps.

    Rousseeuw and Van Driessen, Technometrics 41 (1999): mean and covariance of the chosen rows, then
    the nearest rows by Mahalanobis distance are chosen; the first choice is all of them.
    """
    values = np.asarray(values, dtype=np.float64)
    chosen = list(range(len(values)))
    for _ in range(steps):
        mean = values[chosen].mean(axis=0)
        inverse = np.linalg.inv(np.cov(values[chosen].T))
        distances = [float((row - mean) @ inverse @ (row - mean)) for row in values]
        nearest = sorted(range(len(values)), key=lambda i: distances[i])
        chosen = nearest[: round(share * len(values))]
    return values[chosen].mean(axis=0)


# The diameter that is reported.


def ring_means(images: npt.ArrayLike, n_rings: int) -> npt.NDArray[np.float64]:
    """Mean of every image over rings one pixel wide about pixel d // 2."""
    images = np.asarray(images, dtype=np.float64)
    d = images.shape[-1]
    means = np.empty((len(images), n_rings))
    for i, image in enumerate(images):
        for ring in range(n_rings):
            values = [
                image[y, x]
                for y in range(d)
                for x in range(d)
                if round(np.hypot(y - d // 2, x - d // 2)) == ring
            ]
            means[i, ring] = np.mean(values)
    return means


def shell_rings(radius: float, width: float, box: int, n_rings: int) -> npt.NDArray[np.float64]:
    """Ring means of the projection of Gaussians with mass 1 that lie evenly on a sphere."""
    n_points = 3000
    turn = np.arange(n_points) * np.pi * (3 - np.sqrt(5))
    height = 1 - (2 * np.arange(n_points) + 1) / n_points
    image = np.zeros((box, box))
    line = np.arange(box) - box // 2
    for angle, z in zip(turn, height, strict=True):
        x, y = radius * np.sqrt(1 - z**2) * np.array([np.cos(angle), np.sin(angle)])
        across = np.exp(-((line - x) ** 2) / (2 * width**2))
        down = np.exp(-((line - y) ** 2) / (2 * width**2))
        image += np.outer(down, across) / (2 * np.pi * width**2 * n_points)
    return ring_means(image[None], n_rings)[0]


def mass_diameter(volume: npt.NDArray[np.float32], part: float) -> float:
    """Diameter of the sphere about the centre of mass that holds a part of the mass above 5 % of the peak."""
    density = np.where(volume > 0.05 * volume.max(), volume, 0).astype(np.float64)
    points = np.argwhere(density)
    mass = density[density > 0]
    distance = np.linalg.norm(points - mass @ points / mass.sum(), axis=1)
    order = np.argsort(distance)
    return 2 * float(distance[order][np.searchsorted(np.cumsum(mass[order]), part * mass.sum())])


# All kinds of junk of the hard recipe but picked noise, from which a few hundred images teach little.
SEVEN = ("noise", "partial", "multiple", "off-centre", "ice", "carbon", "texture")


# Classes: images on rings of the Fourier plane, likelihoods of poses, and the sums they give.


def on_rings(image, n_rings, directions):
    """Transform of an image at 1, 2, ... cycles a box in some directions, as a sum over all pixels.

    Times the root of the ring. Directions are in radians, from the columns' axis towards the rows'.
    """
    image = np.asarray(image, dtype=np.float64)
    box = len(image)
    offset = np.arange(box) - box // 2
    samples = np.empty((n_rings, len(directions)), dtype=complex)
    for r in range(1, n_rings + 1):
        for j, direction in enumerate(directions):
            along_rows = np.exp(-2j * np.pi * r * np.sin(direction) * offset / box)
            along_columns = np.exp(-2j * np.pi * r * np.cos(direction) * offset / box)
            samples[r - 1, j] = np.sqrt(r) * (along_rows @ image @ along_columns)
    return samples


def expansion_on_rings(coefficients, directions):
    """Samples of a real image from its expansion in the angle, coefficients (M, R), from index 0 up.

    A function of index m on the plane has the same index on the rings, times (-i)^m.
    """
    n_indices, n_rings = np.shape(coefficients)
    samples = np.zeros((n_rings, len(directions)), dtype=complex)
    for m in range(n_indices):
        for r in range(n_rings):
            term = (-1j) ** m * coefficients[m][r] * np.exp(1j * m * directions)
            # Opposite samples of a real image are complex conjugate, which gives the index -m.
            opposite = (-1j) ** m * coefficients[m][r] * np.exp(1j * m * (directions + np.pi))
            samples[r] += term if m == 0 else term + opposite.conj()
    return samples


def expanded_in_angle(samples, directions, n_indices):
    """Coefficients (M, R) of samples on whole rings: what `expansion_on_rings` makes samples of."""
    return np.array([1j**m * (samples * np.exp(-1j * m * directions)).mean(axis=1) for m in range(n_indices)])


def contrast_on_rings(n_rings, box, pixel_size, defocus, voltage, aberration, amplitude):
    """Magnitude of the contrast transfer function on each ring: angstroms, kilovolts, millimetres."""
    volts = 1e3 * voltage
    wavelength = 12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts))
    frequency = np.arange(1, n_rings + 1) / (box * pixel_size)
    phase = np.pi * wavelength * defocus * frequency**2
    phase -= np.pi / 2 * aberration * 1e7 * wavelength**3 * frequency**4
    return np.abs(np.sin(phase + np.arcsin(amplitude)))


def brought_back(samples, directions, shift, box):
    """Samples of an image whose particle lies at this row and column from the middle, moved to the middle."""
    moved = np.empty(samples.shape, dtype=complex)
    for r in range(1, len(samples) + 1):
        cycles = (np.cos(directions) * shift[1] + np.sin(directions) * shift[0]) * r / box
        moved[r - 1] = samples[r - 1] * np.exp(2j * np.pi * cycles)
    return moved


def pose_log_likelihood(samples, average, angle, shift, directions, box, contrast, noise):
    """Logarithm of how likely one class, angle and shift made an image, but for a constant.

    Parameters
    ----------
    samples : ndarray of complex, shape (R, A)
        Of the image, times the root of each ring.
    average : ndarray of complex, shape (M, R)
        Of the class, expanded in the angle, with the same factor.
    angle : float
        In radians: the image shows its class turned by so much.
    shift : (float, float)
    directions : ndarray, shape (A,)
        Evenly round the whole circle.
    box : int
    contrast, noise : ndarray, shape (R,)
        What the class is multiplied with, and the power of the samples' noise.
    """
    moved = brought_back(samples, directions, shift, box)
    expected = contrast[:, None] * expansion_on_rings(average, directions - angle)
    total = 0.0
    for r in range(1, len(samples) + 1):
        away = np.mean(np.abs(moved[r - 1] - expected[r - 1]) ** 2)
        # The samples on a ring are as many as it is long.
        total -= 0.5 * 2 * np.pi * r * away / noise[r - 1]
    return total


class PoseSums(NamedTuple):
    """What an image adds to the next averages, K classes, and its posterior."""

    posterior: npt.NDArray[np.float64]
    products: npt.NDArray[np.complex128]
    weights: npt.NDArray[np.float64]
    residue: npt.NDArray[np.float64]
    square_shift: float


def pose_sums(samples, averages, shares, angles, shifts, deviation, directions, box, contrast, noise):
    """Weigh all poses of an image by their probability, one after another.

    Parameters
    ----------
    samples, directions, box, contrast, noise
        As for `pose_log_likelihood`.
    averages : ndarray of complex, shape (M, R, K)
    shares : ndarray, shape (K,)
    angles : ndarray, shape (P,)
        Of whole steps of the directions.
    shifts : ndarray, shape (S, 2)
    deviation : float

    Returns
    -------
    sums : PoseSums
        The posterior has shape (K, S, P).
    """
    n_indices, n_rings, n_classes = averages.shape
    step = 2 * np.pi / len(directions)
    log_posterior = np.empty((n_classes, len(shifts), len(angles)))
    drawn = [expansion_on_rings(averages[:, :, k], directions) for k in range(n_classes)]
    away = np.empty((*log_posterior.shape, n_rings))
    for s, shift in enumerate(shifts):
        moved = brought_back(samples, directions, shift, box)
        for p, angle in enumerate(angles):
            for k in range(n_classes):
                # Turned by whole steps, samples change places.
                turned = np.roll(drawn[k], round(angle / step), axis=1)
                away[k, s, p] = np.mean(np.abs(moved - contrast[:, None] * turned) ** 2, axis=1)
                certainty = 2 * np.pi * np.arange(1, n_rings + 1) / noise
                log_posterior[k, s, p] = np.log(shares[k]) - 0.5 * (certainty * away[k, s, p]).sum()
                log_posterior[k, s, p] -= (shift @ shift) / (2 * deviation**2)
    posterior = np.exp(log_posterior - log_posterior.max())
    posterior /= posterior.sum()
    products = np.zeros(averages.shape, dtype=complex)
    square_shift = 0.0
    for s, shift in enumerate(shifts):
        moved = contrast[:, None] * brought_back(samples, directions, shift, box)
        for p, angle in enumerate(angles):
            straight = np.roll(moved, -round(angle / step), axis=1)
            expanded = expanded_in_angle(straight, directions, n_indices)
            for k in range(n_classes):
                products[:, :, k] += posterior[k, s, p] * expanded
                square_shift += posterior[k, s, p] * (shift @ shift)
    of_class = posterior.sum(axis=(1, 2))
    weights = np.outer(contrast**2, of_class)
    residue = np.einsum("ksp,kspr->r", posterior, away)
    return PoseSums(posterior, products, weights, residue, square_shift)


def pose_correlation(samples, average, angle, shift, directions, box, contrast, noise):
    """Correlation of an image with its class, seen as the image is, over rings weighted by their noise."""
    moved = brought_back(samples, directions, shift, box)
    expected = contrast[:, None] * expansion_on_rings(average, directions - angle)
    weight = (2 * np.pi * np.arange(1, len(samples) + 1) / noise)[:, None]
    product = (weight * (moved * expected.conj()).real).sum()
    square = (weight * np.abs(moved) ** 2).sum() * (weight * np.abs(expected) ** 2).sum()
    return product / np.sqrt(square)


def rings_about(image, row, column, n_rings):
    """Mean and variance of an image on the rings of radius 0, 1, ... about one place.

    A pixel lies on the ring that its distance rounds to; what lies beyond the edges is 0.
    """
    members = [[] for _ in range(n_rings)]
    for down in range(-n_rings, n_rings + 1):
        for right in range(-n_rings, n_rings + 1):
            ring = round(np.hypot(down, right))
            if ring >= n_rings:
                continue
            y, x = row + down, column + right
            inside = 0 <= y < image.shape[0] and 0 <= x < image.shape[1]
            members[ring].append(float(image[y, x]) if inside else 0.0)
    return np.array([np.mean(m) for m in members]), np.array([np.var(m) for m in members])


def adjusted_rand_index(one, other):
    """Agreement of two divisions, pair by pair: how many are together in both, against what chance gives."""
    pairs = list(itertools.combinations(range(len(one)), 2))
    first = sum(one[i] == one[j] for i, j in pairs)
    second = sum(other[i] == other[j] for i, j in pairs)
    both = sum(one[i] == one[j] and other[i] == other[j] for i, j in pairs)
    expected = first * second / len(pairs)
    return (both - expected) / ((first + second) / 2 - expected)


def compared_place(image, row, column, averages, share, radius, shift, usual_shift, n_angles):
    """Compare one place with averages at all angles and shifts, one after the other.

    The averages are given as squares of 2 radius + 1 pixels. Returns the logarithm of how much likelier the
    place shows one of them than noise, where its middle is, and the variance left without the likeliest.
    """
    line = np.arange(-radius, radius + 1)
    inside = np.hypot(line[:, None], line) <= radius + 0.1
    padded = np.pad(np.asarray(image, float), radius + shift)
    logarithms, moves, rests, priors = [], [], [], 0.0
    for down in range(-shift, shift + 1):
        for right in range(-shift, shift + 1):
            if np.hypot(down, right) > shift + 0.1:
                continue
            prior = -(down**2 + right**2) / (2 * (usual_shift * shift) ** 2)
            priors += np.exp(prior)
            top, left = row + down + shift, column + right + shift
            patch = padded[top : top + 2 * radius + 1, left : left + 2 * radius + 1]
            for average, part in zip(averages, share, strict=True):
                for k in range(n_angles):
                    angle = 2 * np.pi * k / n_angles
                    y = np.cos(angle) * line[:, None] - np.sin(angle) * line + radius
                    x = np.sin(angle) * line[:, None] + np.cos(angle) * line + radius
                    square = np.pad(np.where(inside, average, 0.0).astype(float), 2)
                    turned = scipy.ndimage.map_coordinates(square, [y + 2, x + 2], order=1)
                    value = (patch * turned - turned**2 / 2)[inside].sum() + np.log(part / n_angles)
                    logarithms.append(value + prior)
                    moves.append((down, right))
                    rests.append(np.square(patch - turned)[inside].mean())
    logarithms = np.array(logarithms)
    likely = np.exp(logarithms - logarithms.max())
    evidence = np.log(likely.sum()) + logarithms.max() - np.log(priors)
    return evidence, likely @ np.array(moves) / likely.sum(), rests[int(logarithms.argmax())]
