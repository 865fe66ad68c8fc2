"""Denoising by total variation: images with sharp edges and little else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsort._checks import check_count, check_images, check_positive
from fastsort._jit import inlined, kernel
from fastsort._types import Images
from fastsort.denoising.patches import check_deviation

# An image is done when its duality gap is below this part of its objective.
GAP = 1e-3


def total_variation(
    images: npt.ArrayLike, weight: float = 1.0, deviation: float = 1.0, *, n_iterations: int = 200
) -> Images:
    """Denoise images by the model of Rudin, Osher and Fatemi.

    Parameters
    ----------
    images : array_like, shape (n, d, d)
        Intensities in any unit; never modified.
    weight : float
        Strength: how much the total variation counts, in standard deviations of the noise.
    deviation : float
        Standard deviation of the noise, in the unit of the images. 0 returns the images.
    n_iterations : int
        Most iterations. An image stops earlier when its duality gap is below 1e-3 of its objective.

    Returns
    -------
    denoised : ndarray of float32, shape (n, d, d)

    Raises
    ------
    InputError
        If the images are not square, or a parameter is out of range.

    Notes
    -----
    The result u minimises sum (u - f)^2 / 2 + w sum |grad u| [1]_, where f is the image and
    w = `weight` * `deviation`. The gradient is of forward differences and 0 beyond the last row and column.
    ``skimage.restoration.denoise_tv_chambolle(f, weight=w)`` has the same objective. The dual problem [2]_
    is solved by accelerated projected gradients [3]_.

    References
    ----------
    .. [1] Rudin, Osher, Fatemi. Nonlinear total variation based noise removal algorithms. Physica D 60
       (1992), 259-268.
    .. [2] Chambolle. An algorithm for total variation minimization and applications. J. Math. Imaging Vis.
       20 (2004), 89-97.
    .. [3] Beck, Teboulle. Fast gradient-based algorithms for constrained total variation image denoising
       and deblurring problems. IEEE Trans. Image Process. 18 (2009), 2419-2434.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsort.denoising.total_variation import total_variation
    >>> clean = np.zeros((1, 32, 32), np.float32)
    >>> clean[:, 8:24, 8:24] = 3
    >>> noisy = clean + np.random.default_rng(0).normal(size=clean.shape)
    >>> bool(((total_variation(noisy) - clean) ** 2).mean() < 0.25)
    True
    """
    images = check_images(images)
    deviation = check_deviation(deviation)
    weight = check_positive("weight", weight) * deviation
    n_iterations = check_count("n_iterations", n_iterations)
    if weight == 0 or not len(images):
        return images
    denoised = np.empty_like(images)
    dual = np.empty((2, 2, *images.shape[1:]), np.float32)
    ahead = np.empty((2, *images.shape[1:]), np.float32)
    _total_variation(images, np.float32(weight), n_iterations, GAP, dual, ahead, denoised)
    return denoised


@kernel
def _total_variation(images, weight, n_iterations, least_gap, dual, ahead, denoised):
    # images: (n, d, d); dual: (2, 2, d, d) is overwritten: the field of this iteration and of the one
    # before, each down and right; ahead: (2, d, d) is overwritten: the extrapolated field.
    # Writes denoised: (n, d, d).
    n, d, _ = images.shape
    for i in range(n):
        smooth = denoised[i]
        # The mean goes aside, so that an offset costs no digits.
        total = 0.0
        for y in range(d):
            for x in range(d):
                total += images[i, y, x]
        mean = np.float32(total / (d * d))
        dual[:] = 0
        ahead[:] = 0
        momentum, now = 1.0, 0
        for iteration in range(n_iterations + 1):
            if iteration % 10 == 0 or iteration == n_iterations:
                _primal(images[i], mean, weight, dual[now], smooth)
                gap, objective = _gap(images[i], mean, weight, dual[now], smooth)
                if iteration == n_iterations or not gap > least_gap * objective:
                    break
            _primal(images[i], mean, weight, ahead, smooth)
            following = (1.0 + np.sqrt(1.0 + 4.0 * momentum * momentum)) / 2.0
            step = np.float32(0.125 / weight)
            push = np.float32((momentum - 1.0) / following)
            _climb(smooth, step, push, dual[now], ahead, dual[1 - now])
            momentum, now = following, 1 - now
        for y in range(d):
            for x in range(d):
                smooth[y, x] += mean


@inlined
def _primal(image, mean, weight, field, smooth):
    # image: (d, d); field: (2, d, d). Writes smooth: (d, d), the image plus the divergence of the field.
    d = len(image)
    for y in range(d):
        pixels, down, right, out = image[y], field[0, y], field[1, y], smooth[y]
        for x in range(d):
            out[x] = (pixels[x] - mean) + weight * (down[x] + right[x])
        before, left, beside = field[0, max(y - 1, 0)], right[: d - 1], out[1:]
        if y > 0:
            for x in range(d):
                out[x] -= weight * before[x]
        for x in range(d - 1):
            beside[x] -= weight * left[x]


@inlined
def _gap(image, mean, weight, field, smooth):
    """Return how far at most the objective lies above its minimum, and the objective."""
    # As the field is feasible, the gap is weight * (TV(u) - <field, grad u>).
    d = len(image)
    gap, objective = 0.0, 0.0
    for y in range(d):
        under = smooth[min(y + 1, d - 1)]
        for x in range(d):
            below = under[x] - smooth[y, x]
            beside = smooth[y, min(x + 1, d - 1)] - smooth[y, x]
            length = np.sqrt(below * below + beside * beside)
            change = smooth[y, x] - (image[y, x] - mean)
            gap += weight * (length - field[0, y, x] * below - field[1, y, x] * beside)
            objective += weight * length + np.float32(0.5) * change * change
    return gap, objective


@inlined
def _climb(smooth, step, push, before, ahead, field):
    # smooth: (d, d); before: (2, d, d), the field of the last iteration. Writes field: (2, d, d), and into
    # ahead: (2, d, d), where the next gradient is taken. The field never reaches across the edges.
    d = len(smooth)
    one = np.float32(1)
    for y in range(d):
        here, under, beside = smooth[y, : d - 1], smooth[min(y + 1, d - 1)], smooth[y, 1:]
        down, right = field[0, y], field[1, y]
        down_ahead, right_ahead = ahead[0, y], ahead[1, y]
        for x in range(d - 1):
            down[x] = down_ahead[x] + step * (under[x] - here[x])
            right[x] = right_ahead[x] + step * (beside[x] - here[x])
        down[d - 1] = down_ahead[d - 1] + step * (under[d - 1] - smooth[y, d - 1])
        for x in range(d):
            shrink = one / max(one, np.sqrt(down[x] * down[x] + right[x] * right[x]))
            down[x] *= shrink
            right[x] *= shrink
        down_before, right_before = before[0, y], before[1, y]
        for x in range(d):
            down_ahead[x] = down[x] + push * (down[x] - down_before[x])
        for x in range(d):
            right_ahead[x] = right[x] + push * (right[x] - right_before[x])
