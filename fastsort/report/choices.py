"""Choices made on the page: which images a person kept and rejected, read and applied to the run."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from fastsort._checks import InputError, check_readable
from fastsort._types import Bools, FilePath, Indices
from fastsort.decide.by_hand import choose_by_hand, keep_best, mark_of, mark_of_columns
from fastsort.decide.corrections import Learned, learn_from_choices
from fastsort.decide.result import SortResult
from fastsort.decide.verdict import cut_again
from fastsort.pick import PickResult, judge_picks

KIND, VERSION = "fastsort choices", 1
_FIRST = 64


class Choices(NamedTuple):
    """What a person chose on the page of a run.

    Attributes
    ----------
    images : int
        Of the run.
    mark : str
        Of the run's result, as `mark_of` tells.
    probability : float or None
        The threshold, if it was moved: on the junk probability of images, on the probability of picks.
    best : int or None
        How many of the best images are kept, if that was chosen instead.
    keep, reject : ndarray of intp
        Images that were kept and rejected by hand, ascending.
    """

    images: int
    mark: str
    probability: float | None
    best: int | None
    keep: Indices
    reject: Indices


def holds_choices(path: FilePath) -> bool:
    """Tell whether a file is one of choices, and no list of indices.

    Parameters
    ----------
    path : path

    Returns
    -------
    holds : bool

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    with check_readable(path) as file:
        return file.read(_FIRST).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def read_choices(path: FilePath) -> Choices:
    """Read the choices that the page saved.

    Parameters
    ----------
    path : path
        A JSON file.

    Returns
    -------
    choices : Choices

    Raises
    ------
    InputError
        If it is damaged, or none of fastsort's.

    Notes
    -----
    ``keep`` and ``reject`` are lists of pairs: the first and the last of images in a row, counted from 0.
    """
    with check_readable(path) as file:
        try:
            told = json.load(file)
        except (ValueError, RecursionError):
            raise InputError(f"{path} is no list and no JSON: save the choices on the page again.") from None
    if not isinstance(told, dict) or told.get("kind") != KIND:
        raise InputError(f"{path} holds no choices made on a page of fastsort.")
    if told.get("version") != VERSION:
        raise InputError(f"{path} has version {told.get('version')!r}; this is for version {VERSION}.")
    threshold = told.get("threshold") or {}
    is_table = isinstance(threshold, dict)
    probability, best = (threshold.get(name) if is_table else None for name in ("probability", "best"))
    known = (
        is_table
        and _is_count(told.get("images"))
        and isinstance(told.get("mark"), str)
        and (probability is None or isinstance(probability, (int, float)))
        and (best is None or _is_count(best))
    )
    if not known:
        raise InputError(f"{path} is damaged: save the choices on the page again.")
    keep, reject = (_spread(path, told.get(name), told["images"]) for name in ("keep", "reject"))
    return Choices(told["images"], told["mark"], probability, best, keep, reject)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _spread(path: FilePath, runs: Any, n: int) -> Indices:
    """Return all indices in runs of neighbours."""
    if not (isinstance(runs, list) and all(_is_run(run, n) for run in runs)):
        raise InputError(f"{path} is damaged: save the choices on the page again.")
    parts = [np.arange(first, last + 1, dtype=np.intp) for first, last in runs]
    return np.concatenate([np.empty(0, np.intp), *parts])


def _is_run(run: Any, n: int) -> bool:
    is_pair = isinstance(run, list) and len(run) == 2 and all(map(_is_count, run))
    return is_pair and run[0] <= run[1] < n


def apply_choices(path: FilePath, result: SortResult, choices: Choices) -> SortResult:
    """Judge a run as a person chose on its page.

    Parameters
    ----------
    path : path
        Of the choices, for messages.
    result : SortResult
        The run's.
    choices : Choices

    Returns
    -------
    result : SortResult

    Raises
    ------
    InputError
        If the choices were made on another run, or cannot be made on this.
    """
    check_same(path, choices, len(result.keep), mark_of(result))
    if choices.probability is not None:
        result = cut_again(result, probability=choices.probability)
    elif choices.best is not None:
        result = keep_best(result, choices.best)
    return choose_by_hand(result, choices.keep, choices.reject)


def learn_choices(path: FilePath, result: SortResult, choices: Choices) -> tuple[SortResult, Learned]:
    """Judge a run as a person chose on its page, and by what that teaches, if it teaches anything.

    Parameters
    ----------
    path, result, choices
        As for `apply_choices`.

    Returns
    -------
    result : SortResult
    told : Learned
        What was learned, to be told.

    Raises
    ------
    InputError
        As for `apply_choices` and `learn_from_choices`.
    """
    chosen = apply_choices(path, result, choices)
    told = learn_from_choices(result, choices.keep, choices.reject)
    return (told.result if told.learned else chosen), told


def apply_to_picks(path: FilePath, result: PickResult, choices: Choices) -> PickResult:
    """Judge picks as a person chose on their page.

    Parameters
    ----------
    path : path
        Of the choices, for messages.
    result : PickResult
        The run's.
    choices : Choices
        They take the place of earlier ones, which the page shows too.

    Returns
    -------
    result : PickResult

    Raises
    ------
    InputError
        If the choices were made on another run, or no page of picks has made them.
    """
    check_same(path, choices, len(result.keep), mark_of_picks(result))
    if choices.best is not None:
        raise InputError(f"{path} was changed after it was saved: save the choices on the page again.")
    by_hand = np.zeros(len(result.keep), np.int8)
    by_hand[choices.keep] = 1
    by_hand[choices.reject] = -1
    return judge_picks(result, choices.probability, by_hand)


def mark_of_picks(result: PickResult) -> str:
    """Return a short mark of picks, as `mark_of` does of images."""
    return mark_of_columns(result.x, result.y, result.probability, result.keep)


def mark_of_map(label: Indices, keep: Bools) -> str:
    """Return a short mark of a map, as `mark_of` does of images.

    Parameters
    ----------
    label : ndarray of int, shape (n,)
        Classes, from 1; 0 for none.
    keep : ndarray of bool, shape (n,)

    Returns
    -------
    mark : str
    """
    return mark_of_columns(label.astype("<i8"), np.asarray(keep, bool))


def check_same(path: FilePath, choices: Choices, n: int, mark: str) -> None:
    """Refuse choices that were made on another run.

    Parameters
    ----------
    path : path
        Of the choices, for messages.
    choices : Choices
    n : int
        Number of images, or of places, of the run.
    mark : str
        Of its result.

    Raises
    ------
    InputError
        Also if an image is both kept and rejected.
    """
    if choices.images != n:
        raise InputError(
            f"{path} was saved on a page of {choices.images:,} images or places, and the run has {n:,}: give "
            "the folder of that page."
        )
    if choices.mark != mark:
        raise InputError(
            f"{path} was saved on the page of another run: its scores or verdicts are not those of this one."
        )
    both = np.intersect1d(choices.keep, choices.reject)
    if len(both):
        raise InputError(
            f"{path} was changed after it was saved: {both[0]} is both kept and rejected: save the choices "
            "on the page again."
        )
