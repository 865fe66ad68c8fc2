"""How far averages can be trusted, ring by ring: the correlation of halves, and the filter it gives."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft

from fastsort._checks import InputError
from fastsort._types import Array, Floats, Images, Singles
from fastsort.invariants.references import SEARCH_RINGS

# Where the correlation of two halves falls below this, the average counts as resolved.
RESOLVED = 0.5
# References are filtered out from the first ring on where it is below this.
TRUSTED = 0.143


def fourier_ring_correlation(one: npt.ArrayLike, other: npt.ArrayLike) -> Floats:
    """Correlate two images, or stacks of images, on rings of the Fourier plane.

    Parameters
    ----------
    one, other : array of float, shape (d, d) or (n, d, d)

    Returns
    -------
    correlation : ndarray of float64, shape (d // 2 + 1,) or (n, d // 2 + 1)
        At 0, 1, ... cycles a box, each ring one cycle wide; 0 where an image has no power.

    Raises
    ------
    InputError
        If the images are not square or not of one shape.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> signal, noise, other_noise = np.random.default_rng(0).normal(size=(3, 64, 64))
    >>> correlation = fs.invariants.fourier_ring_correlation(signal + noise, signal + other_noise)
    >>> correlation.shape
    (33,)
    >>> bool(0.4 < correlation.mean() < 0.6)
    True
    """
    first, second = (np.asarray(image, dtype=np.float64) for image in (one, other))
    if first.ndim not in (2, 3) or first.shape[-1] != first.shape[-2] or first.shape != second.shape:
        raise InputError(
            "images to correlate must be square and of one shape, (d, d) or (n, d, d); "
            f"got {first.shape} and {second.shape}."
        )
    box = first.shape[-1]
    rows = scipy.fft.fftfreq(box, 1 / box)[:, None]
    columns = np.arange(box // 2 + 1)
    ring = np.rint(np.hypot(rows, columns)).astype(np.intp)
    # The half plane stands for all of it: only columns 0 and Nyquist are their own partners.
    weight = np.where((columns == 0) | (2 * columns == box), 1.0, 2.0) * (ring <= box // 2)
    sums = np.empty((3, first.size // box**2, box // 2 + 1))
    for i, (a, b) in enumerate(zip(first.reshape(-1, box, box), second.reshape(-1, box, box), strict=True)):
        left, right = scipy.fft.rfft2(a, workers=1), scipy.fft.rfft2(b, workers=1)
        products = (left * right.conj()).real, np.abs(left) ** 2, np.abs(right) ** 2
        for j, product in enumerate(products):
            flat = np.bincount(ring.ravel(), (weight * product).ravel(), minlength=box + 1)
            sums[j, i] = flat[: box // 2 + 1]
    power = np.sqrt(sums[1]) * np.sqrt(sums[2])
    correlation = np.divide(sums[0], power, out=np.zeros_like(power), where=power > 0)
    return np.clip(correlation, -1, 1).reshape(*first.shape[:-2], -1)


def filter_averages(averages: npt.ArrayLike, frc: npt.ArrayLike) -> Images:
    """Weight every ring of averages by how far it can be trusted.

    Parameters
    ----------
    averages : ndarray, shape (C, d, d)
    frc : ndarray, shape (C, d // 2 + 1)
        Fourier ring correlation of the two halves of each class.

    Returns
    -------
    filtered : ndarray of float32, shape (C, d, d)

    Notes
    -----
    If the halves correlate by r, signal makes up 2 r / (1 + r) of the power of the whole average: the
    weight of the Wiener filter [1]_. All rings from the first one below 0.143 on are set to zero, except
    frequency 0.

    References
    ----------
    .. [1] Rosenthal, Henderson, "Optimal determination of particle orientation, absolute hand, and
       contrast loss in single-particle electron cryomicroscopy", J. Mol. Biol. 333 (2003).
    """
    trusted = np.maximum(trusted_rings(np.asarray(frc, dtype=np.float64)), 0)
    weight = 2 * trusted / (1 + trusted)
    weight[:, 0] = 1
    return weigh_rings(np.asarray(averages, dtype=np.float32), weight)


def weigh_rings(images: Images, weight: Floats) -> Images:
    """Multiply images (C, d, d) by curves (C, d // 2 + 1) in the Fourier plane; its corners become zero."""
    box = images.shape[-1]
    radius = np.hypot(scipy.fft.fftfreq(box, 1 / box)[:, None], np.arange(box // 2 + 1))
    rings = np.arange(box // 2 + 1)
    filtered = np.empty_like(images)
    for image, curve, out in zip(images, weight, filtered, strict=True):
        plane = np.interp(radius, rings, curve, right=0)
        out[:] = scipy.fft.irfft2(scipy.fft.rfft2(image, workers=1) * plane, s=(box, box), workers=1)
    return filtered


def trusted_rings(frc: Floats) -> Floats:
    """Correlations (C, rings), set to 0 from the first ring on that cannot be trusted; ring 0 always can."""
    below = frc < TRUSTED
    below[:, 0] = False
    return np.where(np.cumsum(below, axis=1) > 0, 0.0, frc)


def usable_rings(frc: Floats) -> Floats:
    """Correlations as `trusted_rings`, but above 0 on a few low rings: something must be left."""
    trusted = trusted_rings(frc)
    low = trusted[:, : SEARCH_RINGS // 2 + 1]
    np.maximum(low, TRUSTED, out=low)
    return trusted


def resolved_rings(frc: Array) -> Floats:
    """Return where curves (C, rings) fall below 0.5, in cycles a box; 0 if they never exceed it.

    A curve that never falls below 0.5 is resolved up to its last ring.
    """
    rings = np.empty(len(frc))
    for i, curve in enumerate(frc):
        below = np.flatnonzero(curve[1:] < RESOLVED) + 1
        last = int(below[0]) if len(below) else len(curve)
        if last == len(curve):
            rings[i] = last - 1
        elif last == 1:
            rings[i] = 0
        else:
            high, low = float(curve[last - 1]), float(curve[last])
            rings[i] = last - 1 + (high - RESOLVED) / (high - low)
    return rings


def resolution_of(frc: Array, box: int, pixel_size: float) -> Singles:
    """Return the period (C,) at which curves (C, rings) fall below 0.5: angstroms, or pixels if unknown.

    Infinite for a curve that never exceeds 0.5.
    """
    scale = pixel_size if np.isfinite(pixel_size) else 1.0
    with np.errstate(divide="ignore"):
        return (scale * box / resolved_rings(frc)).astype(np.float32)
