"""How well images with known labels were sorted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._types import Array, Bools


class Accuracy(NamedTuple):
    """Rates between 0 and 1; NaN where there are no such images."""

    true_positive_rate: float
    """Good images kept, over all good images."""
    true_negative_rate: float
    """Junk rejected, over all junk."""
    area_under_curve: float
    """Chance that junk has the higher score; ties count half."""


def measure_accuracy(label: Bools, keep: Bools, score: Array) -> Accuracy:
    """Compare verdicts with labels.

    Parameters
    ----------
    label : ndarray of bool, shape (n,)
        True for a good image.
    keep : ndarray of bool, shape (n,)
    score : ndarray of float, shape (n,)
        Larger for junk. An image without a score, NaN, counts as surely junk.

    Returns
    -------
    accuracy : Accuracy
    """
    from scipy.stats import rankdata

    good, junk = int(label.sum()), int((~label).sum())
    ranks = rankdata(np.where(np.isnan(score), np.inf, score))
    pairs = ranks[~label].sum() - junk * (junk + 1) / 2
    return Accuracy(
        float(keep[label].mean()) if good else np.nan,
        float((~keep[~label]).mean()) if junk else np.nan,
        float(pairs / (good * junk)) if good and junk else np.nan,
    )
