"""What the subspace filter has learned, as images to look at."""

from __future__ import annotations

import numpy as np

from fastsort._crop import crop_operator
from fastsort._types import Images, Singles
from fastsort.images.prepare import crop_and_normalize
from fastsort.subspaces.evidence import coefficients_of
from fastsort.subspaces.filter import SubspaceResult
from fastsort.subspaces.scores import denoise


def eigenimages(result: SubspaceResult, n_images: int) -> Singles:
    """Mean and principal axes of each subspace as images.

    Parameters
    ----------
    result : SubspaceResult
    n_images : int
        How many of each subspace at most.

    Returns
    -------
    images : ndarray of float32, shape (M, k, d, d)
        The mean first, then the axes with the largest variance. Of a pair of axes that differ by
        nothing but a rotation, only the cosine.
    """
    model, basis = result.model, result.basis
    pictures = []
    for mean, loading in zip(model.means, model.loadings, strict=True):
        order = np.argsort(-np.square(loading).sum(axis=0), kind="stable")
        # The sine of a pair consists of functions of negative angular index.
        positive = np.square(loading[basis.angular >= 0]).sum(axis=0)
        sine = (positive == 0) & (np.square(loading).sum(axis=0) > 0)
        cosines = [k for k in order if not sine[k]]
        rows = np.column_stack([mean, loading[:, cosines[: n_images - 1]]]).T
        pictures.append(np.tensordot(rows.astype(np.float32), basis.functions, 1))
    fewest = min(len(part) for part in pictures)
    return np.stack([part[:fewest] for part in pictures])


def denoised_images(images: Images, result: SubspaceResult) -> tuple[Images, Images]:
    """Images as the filter sees them, and without what the learned subspaces take for noise.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        Of the set that was sorted.
    result : SubspaceResult

    Returns
    -------
    seen, denoised : ndarray of float32, shape (n, g, g)
        Cropped to the grid of the basis, with background mean 0 and deviation 1; and their posterior
        mean in the subspaces.
    """
    basis = result.basis
    seen = crop_and_normalize(images, crop_operator(images.shape[1], basis.box))
    clean = denoise(coefficients_of(seen, basis).astype(np.float32), result.model, n_jobs=1)
    return seen, np.tensordot(clean, basis.functions, 1)
