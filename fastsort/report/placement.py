"""Where rectangles go that shall lie near points of a map and hide little of it."""

from __future__ import annotations

import numpy as np

from fastsort._types import Floats, Indices

_ROUNDS = 20


def place_tiles(anchors: Floats, tile: tuple[int, int], ink: Floats) -> Indices:
    """Find places for rectangles near some points, so that none overlap and little is hidden.

    Parameters
    ----------
    anchors : ndarray of float64, shape (C, 2)
        Column and row of the points, in steps of the grid.
    tile : (int, int)
        Width and height of a rectangle, in steps.
    ink : ndarray of float64, shape (columns, rows)
        How bad it is to cover each step of the grid: the distance, in tile widths, that is as bad. The
        grid must hold C rectangles in rows and columns.

    Returns
    -------
    corners : ndarray of intp, shape (C, 2)
        First column and row that each rectangle covers.

    Notes
    -----
    The rectangles start from places in rows and columns, in the assignment with the lowest total cost.
    Then each in turn moves to the best free place, and the places are assigned again, so that leader
    lines do not cross, until nothing moves. The total cost never grows.
    """
    from scipy.optimize import linear_sum_assignment

    (width, height), (columns, rows) = tile, ink.shape
    x = np.arange(columns - width + 1) + width / 2
    y = np.arange(rows - height + 1) + height / 2
    away = np.hypot(x[:, None] - anchors[:, 0, None, None], y - anchors[:, 1, None, None])
    cost = away / max(tile) + _window_means(ink, tile)

    def assigned(spots: Indices) -> Indices:
        return spots[linear_sum_assignment(cost[:, spots[:, 0], spots[:, 1]])[1]]

    grid = np.meshgrid(np.arange(0, len(x), width), np.arange(0, len(y), height), indexing="ij")
    corners = assigned(np.stack(grid, axis=-1).reshape(-1, 2))
    for _ in range(_ROUNDS):
        before = corners.copy()
        for k in range(len(corners)):
            others = np.delete(corners, k, axis=0)
            corners[k] = _best_free(cost[k], others, tile)
        corners = assigned(corners)
        if np.array_equal(before, corners):
            break
    return corners


def _best_free(cost: Floats, others: Indices, tile: tuple[int, int]) -> tuple[int, int]:
    cost = cost.copy()
    for column, row in others.tolist():
        left, low = max(column - tile[0] + 1, 0), max(row - tile[1] + 1, 0)
        cost[left : column + tile[0], low : row + tile[1]] = np.inf
    column, row = np.unravel_index(np.argmin(cost), cost.shape)
    return int(column), int(row)


def _window_means(values: Floats, window: tuple[int, int]) -> Floats:
    """Return the mean over the window that begins at each place where it fits."""
    width, height = window
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    sums: Floats = total[width:, height:] - total[:-width, height:] - total[width:, :-height]
    return (sums + total[:-width, :-height]) / (width * height)
