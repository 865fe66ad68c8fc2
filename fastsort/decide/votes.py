"""What each method says of the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._brief import brief
from fastsort.decide.combine import OFFSET
from fastsort.invariants.filter import InvariantResult, LearnedInvariants, invariant_filter
from fastsort.particles.source import Particles
from fastsort.radial.filter import LearnedRadial, RadialResult, radial_filter
from fastsort.subspaces.filter import EXCESS, LearnedShapes, SubspaceResult, subspace_filter

METHODS = ("radial", "subspaces", "invariants")
# What the methods cost, in parts of each other.
SHARES = {"radial": 0.25, "subspaces": 0.5, "invariants": 0.25}

Array = npt.NDArray[np.float64]


class Learned(NamedTuple):
    """What each method has learned; None for one that was not asked, or could not learn.

    Attributes
    ----------
    radial : LearnedRadial or None
    subspaces : LearnedShapes or None
    invariants : LearnedInvariants or None
    """

    radial: LearnedRadial | None
    subspaces: LearnedShapes | None
    invariants: LearnedInvariants | None


@brief
class Judge(NamedTuple):
    """What a verdict rests on: enough to judge more images, or the same ones at another cut.

    Attributes
    ----------
    learned : Learned
    weights : dict of str to float
        Of the votes in the score, and "offset", which is added.
    decoys : dict of str to ndarray of float64
        Scores of images of which it is known what they are, by kind; none with one method.
    shares : tuple of float
        Share of junk, counted in two ways, as `Combination.shares`; NaN with one method.
    """

    learned: Learned
    weights: dict[str, float]
    decoys: dict[str, Array]
    shares: tuple[float, float]

    def score(self, votes: Mapping[str, Array]) -> Array:
        """Weigh the votes on some images; infinite where one of them is."""
        rows = np.column_stack([votes[name] for name in votes])
        judged = np.isfinite(rows).all(axis=1)
        score = np.full(len(rows), np.inf)
        score[judged] = rows[judged] @ [self.weights[name] for name in votes] + self.weights[OFFSET]
        return score


class Asked(NamedTuple):
    """Results of the methods; None for one that was not asked.

    Attributes
    ----------
    radial : RadialResult or None
    subspaces : SubspaceResult or None
    invariants : InvariantResult or None
    """

    radial: RadialResult | None
    subspaces: SubspaceResult | None
    invariants: InvariantResult | None

    @property
    def votes(self) -> dict[str, Array]:
        """Score of each method that was asked."""
        return {name: result.score for name, result in zip(METHODS, self, strict=True) if result is not None}

    @property
    def learned(self) -> Learned:
        """What the methods have learned."""
        return Learned(
            None if self.radial is None else self.radial.learned,
            None if self.subspaces is None else self.subspaces.learned,
            None if self.invariants is None else self.invariants.learned,
        )

    @property
    def against(self) -> npt.NDArray[np.int8]:
        """How many of the methods reject each image by themselves."""
        rejected = [~result.keep for result in self if result is not None]
        return np.sum(rejected, axis=0, dtype=np.int8)


def ask_methods(
    images: npt.NDArray[np.float32] | Particles,
    methods: Sequence[str],
    *,
    radius: float | None = None,
    n_peaks: int | None = None,
    contrast: str = "auto",
    n_subspaces: int | None = None,
    n_components: int | None = None,
    preset: str = "default",
    learned: Learned | None = None,
    stage: Callable[[str, Callable[[], Any]], Any] | None = None,
    work: str | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Asked:
    """Ask methods for their verdict on the same images.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d), or Particles
    methods : sequence of str
        Some of "radial", "subspaces" and "invariants".
    radius, n_peaks, contrast
        As for `radial_filter`.
    n_subspaces, n_components
        As for `subspace_filter`, whose subspaces are described only if no other method is asked.
    preset : {"default", "published"}
    learned : Learned, optional
        From an earlier call: methods that have learned do not learn again.
    stage : callable, optional
        Called as ``stage(name, compute)``; gives what an earlier run has computed, or calls ``compute``.
    work : path, optional
        As for `subspace_filter`.
    n_jobs, seed
        As for all of them.
    progress : callable, optional
        Called with the part of the work that is done, from 0 to 1.

    Returns
    -------
    asked : Asked
    """
    known = learned or Learned(None, None, None)
    whole, before = sum(SHARES[name] for name in methods), 0.0

    def report(name: str) -> Callable[[int, int], None] | None:
        start = before
        return progress and (lambda done, total: progress((start + SHARES[name] * done / total) / whole))

    def radial() -> RadialResult:
        return radial_filter(
            images,
            radius,
            n_peaks,
            preset=preset,
            contrast=contrast,
            learned=known.radial,
            n_jobs=n_jobs,
            seed=seed,
            progress=report("radial"),
        )

    def subspaces() -> SubspaceResult:
        return subspace_filter(
            images,
            n_subspaces,
            n_components,
            preset=preset,
            describe=len(methods) == 1,
            learned=known.subspaces,
            work=work,
            n_jobs=n_jobs,
            seed=seed,
            progress=report("subspaces"),
        )

    def invariants() -> InvariantResult:
        return invariant_filter(
            images, learned=known.invariants, n_jobs=n_jobs, seed=seed, progress=report("invariants")
        )

    found: dict[str, Any] = dict.fromkeys(METHODS)
    for name, ask in (("radial", radial), ("subspaces", subspaces), ("invariants", invariants)):
        if name in methods:
            found[name] = stage(name, ask) if stage else ask()
            before += SHARES[name]
    return Asked(**found)


def explain(asked: Asked) -> npt.NDArray[np.str_]:
    """Say why each image would be rejected, should it be.

    The radial filter looks for peaks all over the image: it says best what lies off the centre. What is
    noise to it may still be something else to the subspaces, which know the shape of the particle; and
    what has more power in a band of frequencies than any particle is contamination, unless it is a single
    peak off the centre: a particle there lies partly where the background was measured.
    """
    suspicions = [result.suspicion for result in asked if result is not None]
    found = suspicions[0]
    for other in suspicions[1:]:
        found = np.where(found == "noise", other, found)
    if asked.subspaces is not None:
        strong = (asked.subspaces.excess > EXCESS) & (found != "off-centre")
        found = np.where(strong, "contamination", found)
    return found
