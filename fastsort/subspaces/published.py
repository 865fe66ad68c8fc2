"""The published subspace filter: coefficients of all images in a file, and the published learning on them."""

from __future__ import annotations

import os
import tempfile
from typing import NamedTuple

import numpy as np

from fastsort._progress import Progress
from fastsort._reasons import VALID
from fastsort._types import Codes, FilePath, Floats, Images, Singles
from fastsort.images.batches import map_batches
from fastsort.images.normalize import inspect_pixels
from fastsort.images.prepare import crop_and_normalize
from fastsort.particles.source import Particles
from fastsort.subspaces.evidence import coefficients_of
from fastsort.subspaces.fit import fit_subspaces
from fastsort.subspaces.learn import BATCH
from fastsort.subspaces.mixture import SubspaceModel
from fastsort.subspaces.pswf import PswfBasis
from fastsort.subspaces.rows import Rows
from fastsort.subspaces.scores import evaluate


class PublishedScores(NamedTuple):
    """What the published algorithm finds for n images.

    Attributes
    ----------
    codes : ndarray of int8, shape (n,)
        Which images cannot be judged.
    factor, log_likelihood : ndarray of float64, shape (n,)
        As in `SubspaceResult`.
    model : SubspaceModel or None
        None where fewer than two images are fit.
    """

    codes: Codes
    factor: Floats
    log_likelihood: Floats
    model: SubspaceModel | None


def published_scores(
    particles: Particles,
    operator: Singles,
    basis: PswfBasis,
    numbers: tuple[int | None, int | None],
    work: FilePath | None,
    n_jobs: int | None,
    seed: int,
    progress: Progress | None,
) -> PublishedScores:
    """Learn from all images, whose coefficients are written to a file for that.

    Parameters
    ----------
    particles : Particles
    operator : ndarray of float32, shape (size, box)
        From `crop_operator`.
    basis : PswfBasis
        Of the cropped images.
    numbers : tuple
        Of subspaces and components, for `fit_subspaces`.
    work, n_jobs, seed, progress
        As for `subspace_filter`.

    Returns
    -------
    scores : PublishedScores
    """
    n = len(particles)
    with tempfile.TemporaryDirectory(prefix="fastsort-", dir=work) as folder:
        path = os.path.join(folder, "coefficients")
        batches = map_batches(
            _batch, particles, operator, basis, batch_size=BATCH, n_jobs=n_jobs, progress=progress
        )
        parts = []
        with open(path, "wb") as file:
            for part, coefficients in batches:
                parts.append(part)
                file.write(coefficients.data)
        codes = np.concatenate(parts)
        if (codes == VALID).sum() < 2:
            return PublishedScores(codes, np.full(n, np.inf), np.full(n, -np.inf), None)
        stored: Singles = np.memmap(path, np.float32, "r", shape=(n, len(basis.functions)))
        model = fit_subspaces(stored, *numbers, preset="published", n_jobs=n_jobs, seed=seed)
        scores = evaluate(Rows(stored), model, n_jobs)
    return PublishedScores(codes, scores.factor, scores.log_likelihood, model)


def _batch(images: Images, start: int, operator: Singles, basis: PswfBasis) -> tuple[Codes, Singles]:
    codes = inspect_pixels(images).codes
    coefficients = np.ascontiguousarray(
        coefficients_of(crop_and_normalize(images, operator), basis), dtype=np.float32
    )
    coefficients[codes != VALID] = np.nan
    return codes, coefficients
