"""Micrographs: which are better left out as a whole, and what the junk goes along with."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, stdtr

from fastsort._checks import InputError
from fastsort._types import Array, Bools, Floats, Indices
from fastsort.particles.places import Places

PRIOR_IMAGES = 20
MOSTLY_JUNK = 0.5
DEVIATIONS = 3
_CONFIDENCE = 0.95
_SIGNIFICANCE = 0.001
# With fewer pairs chance explains too much: three ranks agree in one case of six.
_ENOUGH_PAIRS = 10
# Median absolute deviation of a normal distribution, in standard deviations.
_NORMAL_MAD = 0.6744897501960817


class MicrographTable(NamedTuple):
    """What each micrograph holds.

    Attributes
    ----------
    name : list of str
        One entry a micrograph, here and below.
    n_images, n_kept : ndarray of intp, shape (m,)
    junk_share : ndarray of float64, shape (m,)
        Mean junk probability of its images; one without a probability counts
        as 1 if rejected and as 0 if kept.
    mean_score : ndarray of float64, shape (m,)
        Of the finite scores; NaN where there is none.
    defocus : ndarray of float64, shape (m,)
        Mean in angstroms; NaN where it is unknown.
    drop : ndarray of bool, shape (m,)
        Whether the micrograph is better left out.
    trends : dict of str to float
        Rank correlations of junk with "defocus" from micrograph to micrograph
        and, from image to image, with "edge_distance" (to the nearest edge of the
        micrograph), "x" and "y" of the coordinates: those that chance does not
        explain.
    """

    name: list[str]
    n_images: Indices
    n_kept: Indices
    junk_share: Floats
    mean_score: Floats
    defocus: Floats
    drop: Bools
    trends: dict[str, float]


def summarize_micrographs(
    places: Places, keep: npt.ArrayLike, score: npt.ArrayLike, junk_probability: npt.ArrayLike
) -> MicrographTable:
    """Summarise a verdict micrograph by micrograph, and tell which are better left out.

    Parameters
    ----------
    places : Places
        As from `micrograph_places`.
    keep : array of bool, shape (n,)
    score : array of float, shape (n,)
        Larger for junk.
    junk_probability : array of float, shape (n,)
        NaN where unknown.

    Returns
    -------
    table : MicrographTable

    Raises
    ------
    InputError
        If there is not one entry for each image.

    Notes
    -----
    A micrograph of few images may have a large share of junk by chance. Each
    share is therefore taken as a Beta distribution, whose prior is worth 20
    images with the junk share of the whole set: the empirical Bayes estimate of
    [1]_, with the prior's weight fixed so that neither a few bad micrographs
    weaken it nor many alike make it overrule a micrograph's own images. A
    micrograph is better left out when, with 95 % confidence, its share is above
    1/2 and above the median of all micrographs' by 3 standard deviations, which
    are taken from the median absolute deviation [2]_. In a set with a tenth of
    junk it takes 28 images, all of them junk.

    A trend is Spearman's rank correlation of 10 pairs or more with p below
    0.001, by Student's distribution. The edges are where the outermost
    particles of the set were picked.

    References
    ----------
    .. [1] Casella. An introduction to empirical Bayes data analysis. The
       American Statistician 39 (1985), 83-87.
    .. [2] Leys, Ley, Klein, Bernard, Licata. Detecting outliers: do not use
       standard deviation around the mean, use absolute deviation around the
       median. Journal of Experimental Social Psychology 49 (2013), 764-766.
    """
    n = len(places.micrograph)
    kept = np.asarray(keep, bool)
    scores, probability = np.asarray(score, np.float64), np.asarray(junk_probability, np.float64)
    for name, values in (("keep", kept), ("score", scores), ("junk_probability", probability)):
        if values.shape != (n,):
            raise InputError(f"{name} must have shape ({n},), one for each image; got {values.shape}.")
    junk = np.where(np.isfinite(probability), probability, ~kept)
    n_images = _sums(places, np.ones(n)).astype(np.intp)
    share = _means(places, junk)
    nothing = np.full(n, np.nan)
    defocus = _means(places, nothing if places.defocus is None else places.defocus)
    return MicrographTable(
        places.names,
        n_images,
        _sums(places, kept).astype(np.intp),
        share,
        _means(places, scores),
        defocus,
        _better_left_out(share, n_images),
        _trends(places, junk, share, defocus),
    )


def _sums(places: Places, values: Array) -> Floats:
    sums = np.zeros(len(places.names))
    np.add.at(sums, places.micrograph, values)
    return sums


def _means(places: Places, values: Floats) -> Floats:
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return _sums(places, np.where(finite, values, 0)) / _sums(places, finite)


def _better_left_out(share: Floats, n_images: Indices) -> Bools:
    if len(share) == 0:
        return np.zeros(0, bool)
    junk = share * n_images
    # Half an image of each kind keeps the prior proper where all images are of one kind.
    prior = PRIOR_IMAGES * (junk.sum() + 0.5) / (n_images.sum() + 1)
    a, b = prior + junk, PRIOR_IMAGES - prior + n_images - junk
    median = np.median(share)
    deviation = np.median(np.abs(share - median)) / _NORMAL_MAD
    threshold = max(MOSTLY_JUNK, median + DEVIATIONS * deviation)
    return betaincinv(a, b, 1 - _CONFIDENCE) > threshold


def _trends(places: Places, junk: Floats, share: Floats, defocus: Floats) -> dict[str, float]:
    pairs = {"defocus": (share, defocus)}
    x, y = places.x, places.y
    if x is not None and y is not None:
        inside = np.isfinite(x) & np.isfinite(y)
        x, y, junk = x[inside], y[inside], junk[inside]
        if len(junk):
            edges = [x - x.min(), x.max() - x, y - y.min(), y.max() - y]
            pairs |= {"edge_distance": (junk, np.min(edges, axis=0)), "x": (junk, x), "y": (junk, y)}
    trends = {name: _rank_correlation(*pair) for name, pair in pairs.items()}
    return {name: correlation for name, (correlation, p) in trends.items() if p < _SIGNIFICANCE}


def _rank_correlation(a: Floats, b: Floats) -> tuple[float, float]:
    """Return Spearman's correlation and its p-value, 1 where there is none."""
    both = np.isfinite(a) & np.isfinite(b)
    a, b = _ranks(a[both]), _ranks(b[both])
    if len(a) < _ENOUGH_PAIRS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, 1.0
    a, b = a - a.mean(), b - b.mean()
    correlation = float(a @ b / np.sqrt((a @ a) * (b @ b)))
    freedom = len(a) - 2
    rest = max(1 - correlation**2, np.finfo(float).eps)
    return correlation, float(2 * stdtr(freedom, -abs(correlation) * np.sqrt(freedom / rest)))


def _ranks(values: Floats) -> Floats:
    """Return ranks, of equal values their mean."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]
