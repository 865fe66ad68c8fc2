"""Classes sorted into kinds of particle."""

from __future__ import annotations

import itertools

import numpy as np

from fastsort._checks import check_count
from fastsort._types import Array, Bools, Indices


def group_classes(features: Array, labels: Array, n_groups: int, chosen: Bools | None = None) -> Indices:
    """Sort classes into kinds of particle by the mean features of their members.

    Parameters
    ----------
    features : ndarray of float, shape (n, p)
    labels : ndarray of int, shape (n,)
        Class of each image; -1 for none.
    n_groups : int
        How many kinds; fewer if there are fewer classes.
    chosen : ndarray of bool, shape (C,), optional
        Classes that take part; by default all.

    Returns
    -------
    group : ndarray of intp, shape (C,)
        Kind of each class: 0 is the one with the most images, -1 is for classes that are empty or take
        no part.

    Raises
    ------
    InputError
        If `n_groups` is no whole number of 1 or more.

    Notes
    -----
    Ward's method: at first every class is a group; in each step, the two groups are joined whose union adds
    least to the sum of squares within groups. It works on the means of classes, because the features of
    one image are mostly noise.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> features = np.array([[0.0], [0.2], [5.0], [5.0], [5.3]])
    >>> fs.invariants.group_classes(features, np.array([0, 1, 2, 2, 3]), 2).tolist()
    [1, 1, 0, 0]
    """
    n_groups = check_count("n_groups", n_groups)
    count = int(labels.max(initial=-1)) + 1 if chosen is None else len(chosen)
    size = np.bincount(labels[labels >= 0], minlength=count)
    parts = [k for k in range(count) if size[k] > 0 and (chosen is None or chosen[k])]
    groups = [[k] for k in parts]
    centres = [features[labels == k].mean(axis=0, dtype=np.float64) for k in parts]
    weights = [float(size[k]) for k in parts]
    while len(groups) > n_groups:
        # How much each union would add to the sum of squares.
        costs = {
            (i, j): weights[i]
            * weights[j]
            / (weights[i] + weights[j])
            * ((centres[i] - centres[j]) ** 2).sum()
            for i, j in itertools.combinations(range(len(groups)), 2)
        }
        i, j = min(costs, key=costs.__getitem__)
        total = weights[i] + weights[j]
        centres[i] = (weights[i] * centres[i] + weights[j] * centres[j]) / total
        weights[i] = total
        groups[i] += groups[j]
        for column in (groups, centres, weights):
            del column[j]
    group = np.full(count, -1, dtype=np.intp)
    for number, i in enumerate(sorted(range(len(groups)), key=lambda i: -weights[i])):
        group[groups[i]] = number
    return group
