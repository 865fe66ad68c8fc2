"""Copies: lines that name one image again, and images with the same pixels as an earlier one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._types import Bools, Contents, Indices
from fastsort.particles.source import Particles


class Copies(NamedTuple):
    """Which of n images are distinct.

    Attributes
    ----------
    distinct : ndarray of intp, shape (m,)
        The first of all images that are the same, ascending.
    of : ndarray of intp, shape (n,)
        Place in `distinct` of the image that each is the same as.
    """

    distinct: Indices
    of: Indices

    @property
    def copy(self) -> Bools:
        """Which images are the same as an earlier one, shape (n,)."""
        copy = np.ones(len(self.of), bool)
        copy[self.distinct] = False
        return copy

    def followed_by(self, more: Copies) -> Copies:
        """Return the copies among all images, where `more` are those among the distinct ones."""
        if len(more.distinct) == len(self.distinct):
            return self
        if len(self.distinct) == len(self.of):
            return more
        return Copies(self.distinct[more.distinct], more.of[self.of])


def copies_by_name(particles: Particles) -> Copies:
    """Find images that are the same pixels of the same file; nothing is read."""
    return copies_of(particles.store.first_named())


def copies_by_content(content: Contents, judged: Bools) -> Copies:
    """Find images with the same pixels.

    Parameters
    ----------
    content : ndarray of uint64, shape (n,)
        From `content_of`.
    judged : ndarray of bool, shape (n,)
        All others count as distinct: nothing is learned from them, and many may be zero.
    """
    order = np.argsort(content, kind="stable")
    order = order[judged[order]]
    # Images with the same pixels stand side by side now, the first of them in front.
    ordered = content[order]
    front = np.arange(len(order))
    front[1:][ordered[1:] == ordered[:-1]] = 0
    first = np.arange(len(content))
    first[order] = order[np.maximum.accumulate(front)]
    return copies_of(first)


def copies_of(first: Indices) -> Copies:
    """Return which images are distinct, where `first` is the first that is the same as each, shape (n,)."""
    own = first == np.arange(len(first))
    distinct = np.flatnonzero(own)
    # Where all are distinct, as in most sets, one array says both.
    return Copies(distinct, distinct if len(distinct) == len(own) else (np.cumsum(own) - 1)[first])


def doubts_of_copies(particles: Particles, copy: Bools) -> tuple[str, ...]:
    """Say in a line how many images have the pixels of another; lines that name an image again are known.

    Parameters
    ----------
    particles : Particles
    copy : ndarray of bool, shape (n,)
        Images that are the same as an earlier one, by name or by content.

    Returns
    -------
    doubts : tuple of str
        One line, or none where no more images are copies than the names say.
    """
    if not copy.any():
        return ()
    distinct = len(copies_by_name(particles).distinct)
    more = int(copy.sum()) - (len(particles) - distinct)
    if more <= 0:
        return ()
    return (f"{more:,} of {distinct:,} images have the pixels of another image, whose verdict they share.",)
