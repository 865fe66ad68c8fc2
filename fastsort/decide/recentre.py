"""Off-centre particles: what they would score if they lay in the middle."""

from __future__ import annotations

import numpy as np

from fastsort._types import Array, Floats, Indices
from fastsort.decide.votes import METHODS, LearnedVerdict, ask_methods
from fastsort.particles.source import Particles

BATCH = 2048


def centred_scores(
    working: Particles,
    candidates: Indices,
    offset: Array,
    radius: float,
    learned: LearnedVerdict,
    n_jobs: int | None = None,
) -> Floats:
    """Move particles to the middle and ask the methods again.

    Parameters
    ----------
    working : Particles
    candidates : ndarray of intp, shape (m,)
        Images to look at.
    offset : ndarray of float, shape (m, 2)
        Where their particles lie: row and column from the centre, in working pixels.
    radius : float
        Of the particle, in working pixels.
    learned : LearnedVerdict
        From the set that the images belong to.
    n_jobs : int, optional

    Returns
    -------
    score : ndarray of float64, shape (m,)
        Infinite where the particle reaches over the edge of the box.
    """
    score = np.full(len(candidates), np.inf)
    inside = np.flatnonzero(np.abs(offset).max(axis=1, initial=0) + radius <= working.box / 2)
    for start in range(0, len(inside), BATCH):
        some = inside[start : start + BATCH]
        images = working.read(candidates[some])
        for image, (y, x) in zip(images, np.rint(offset[some]).astype(int), strict=True):
            image[:] = np.roll(image, (-y, -x), (0, 1))
        votes = ask_methods(images, METHODS, learned=learned.methods, n_jobs=n_jobs).votes
        score[some] = learned.score(votes)
    return score
