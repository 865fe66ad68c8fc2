"""Verdicts that a person changed: what is kept or rejected by hand overrules every score."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError
from fastsort._reasons import BAD_PIXELS, DUPLICATE, FLAT, OUTSIDE, REASONS, VALID
from fastsort._types import Array, Bools, Indices
from fastsort.decide.result import BY_HAND, SortResult
from fastsort.decide.verdict import passed_by, with_verdict

# Reasons for which an image stays rejected, whatever the threshold on the junk probability.
FIXED = (BAD_PIXELS, FLAT, DUPLICATE, OUTSIDE)
WITHOUT_PIXELS = (BAD_PIXELS, FLAT)


def choose_by_hand(result: SortResult, keep: npt.ArrayLike, reject: npt.ArrayLike) -> SortResult:
    """Keep and reject images by hand; nothing else changes.

    Parameters
    ----------
    result : SortResult
        Of n images.
    keep, reject : array_like of int
        Indices of images to keep and to reject, counted from 0.

    Returns
    -------
    result : SortResult
        With another `keep`, `reason` and `rescued`; scores and probabilities stay.
        ``measurements["by_hand"]`` says which images were kept (1) and rejected (-1) by hand. The reason of
        those rejected by hand is their suspicion. `errors` are no longer known where a verdict was changed.

    Raises
    ------
    InputError
        If an image is not among the n, is both kept and rejected, or is to be kept although its pixels
        cannot be judged.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, _ = fs.simulate_particles(60, 60, snr=0.5, box=24, junk="noise", seed=1)
    >>> result = fs.sort_particles(images, method="radial")
    >>> other = fs.decide.choose_by_hand(result, keep=[100], reject=[0, 1])
    >>> other.keep[[0, 1, 100]].tolist(), other.measurements["by_hand"].sum().item()
    ([False, False, True], -1)
    """
    n = len(result.keep)
    kept, rejected = _indices("keep", keep, n), _indices("reject", reject, n)
    both = np.intersect1d(kept, rejected)
    if len(both):
        raise InputError(f"image {both[0]} is both kept and rejected by hand: decide for one.")
    unusable = kept[np.isin(result.reason_code[kept], WITHOUT_PIXELS)]
    if len(unusable):
        raise InputError(
            f"image {unusable[0]} cannot be kept by hand, since no program can use it: it is "
            f"{REASONS[result.reason_code[unusable[0]]]!r}."
        )
    by_hand = np.zeros(n, np.int8)
    by_hand[kept], by_hand[rejected] = 1, -1
    chosen: Bools = np.where(by_hand == 0, result.keep, by_hand > 0)
    reason_code = np.where(by_hand < 0, result.suspicion_code, result.reason_code)
    reason_code[by_hand > 0] = VALID
    errors = result.errors
    changed = int((chosen != result.keep).sum())
    if errors is not None and changed:
        told = (
            f"{changed:,} verdicts were changed by hand" if changed > 1 else "a verdict was changed by hand"
        )
        errors = errors._replace(known=False, remark=f"{errors.remark}; {told}" if errors.remark else told)
    return result._replace(
        keep=chosen,
        reason_code=reason_code,
        rescued=result.rescued & (by_hand == 0),
        errors=errors,
        measurements={**result.measurements, BY_HAND: by_hand},
    )


def without_choices(result: SortResult) -> SortResult:
    """Return a result with the verdicts that its threshold gives, whatever a person chose."""
    measurements = {name: values for name, values in result.measurements.items() if name != BY_HAND}
    plain = result._replace(measurements=measurements)
    return with_verdict(plain, passed_by(plain, plain.threshold), plain.threshold)


def keep_best(result: SortResult, number: int) -> SortResult:
    """Keep so many of the images that can be judged: those with the lowest junk probabilities.

    Parameters
    ----------
    result : SortResult
    number : int
        Images to keep. Of images with the same probability those with the lower score are better, and then
        those that come first.

    Returns
    -------
    result : SortResult
        With another `keep`, `reason`, `rescued`, `threshold` and `errors`.

    Raises
    ------
    InputError
        If there are not so many images that can be judged.

    Examples
    --------
    >>> import fastsort as fs
    >>> images, _ = fs.simulate_particles(60, 60, snr=0.5, box=24, junk="noise", seed=1)
    >>> result = fs.sort_particles(images, method="radial")
    >>> int(fs.decide.keep_best(result, 40).keep.sum())
    40
    """
    order = best_first(result)
    if not 0 <= number <= len(order):
        raise InputError(f"{number:,} images cannot be kept: {len(order):,} can be judged.")
    passed = np.zeros(len(result.keep), bool)
    passed[order[:number]] = True
    return with_verdict(result, passed, float(np.max(result.score[passed], initial=-np.inf)))


def best_first(result: SortResult) -> Indices:
    """Return the images that a threshold can move, best first: by probability, score and place.

    Parameters
    ----------
    result : SortResult

    Returns
    -------
    order : ndarray of intp
    """
    judged = np.flatnonzero(~stays_rejected(result))
    return judged[np.lexsort((result.score[judged], result.junk_probability[judged]))]


def stays_rejected(result: SortResult) -> Bools:
    """Tell which images stay rejected at any threshold.

    Parameters
    ----------
    result : SortResult

    Returns
    -------
    fixed : ndarray of bool, shape (n,)
        Images that cannot be judged, duplicates, and images that reach over the edge of their micrograph.
    """
    return ~result.keep & (np.isin(result.reason_code, FIXED) | ~np.isfinite(result.score))


def mark_of(result: SortResult) -> str:
    """Return a short mark of a result, which tells whether choices were made on it.

    Parameters
    ----------
    result : SortResult

    Returns
    -------
    mark : str
        16 letters; another one for any other scores or verdicts.
    """
    return mark_of_columns(result.score, result.junk_probability, result.keep)


def mark_of_columns(*columns: Array) -> str:
    """Return a short mark of some columns, as `mark_of` does of a result."""
    digest = hashlib.sha256()
    for values in columns:
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def _indices(name: str, values: npt.ArrayLike, n: int) -> Indices:
    found = np.asarray(values)
    if found.size == 0:
        return np.empty(0, np.intp)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise InputError(
            f"{name} must be a list of indices of images; got {found.dtype} of shape {found.shape}."
        )
    outside = found[(found < 0) | (found >= n)]
    if len(outside):
        raise InputError(f"{name} names image {outside[0]}, but there are {n:,} images, counted from 0.")
    return np.unique(found).astype(np.intp)
