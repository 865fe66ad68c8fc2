"""What each method says of the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastsort._brief import brief
from fastsort._parts import parts
from fastsort._process import return_memory
from fastsort._progress import Progress, part_of
from fastsort._reasons import CONTAMINATION, NOISE, OFF_CENTRE, UNLIKE
from fastsort._types import Codes, FilePath, Floats, Images
from fastsort.decide.combine import weighted
from fastsort.decide.reasons import LearnedReasons, likeliest_reasons
from fastsort.decide.side_by_side import side_by_side
from fastsort.invariants.filter import (
    InvariantResult,
    LearnedClasses,
    invariant_filter,
    learn_invariant_filter,
)
from fastsort.particles.source import Particles, as_particles
from fastsort.picking.learn import LearnedPicks
from fastsort.radial.filter import RadialResult, learn_radial_filter, learned_radius, radial_filter
from fastsort.radial.learn import LearnedRadial
from fastsort.subspaces.filter import (
    EXCESS,
    SubspaceResult,
    learn_subspace_filter,
    score_images,
    subspace_filter,
)
from fastsort.subspaces.learn import LearnedShapes

METHODS = ("radial", "subspaces", "invariants")
# Time that the methods take compared with each other, and the part of the whole in which all three learn.
TIMES = {"radial": 1.0, "subspaces": 1.3, "invariants": 1.3}
LEARNING = 0.2


class LearnedMethods(NamedTuple):
    """What each method has learned; None for one that was not asked, or could not learn.

    Attributes
    ----------
    radial : LearnedRadial or None
    subspaces : LearnedShapes or None
    invariants : LearnedClasses or None
    """

    radial: LearnedRadial | None
    subspaces: LearnedShapes | None
    invariants: LearnedClasses | None


@brief
class LearnedVerdict(NamedTuple):
    """What a verdict rests on: enough to judge more images, or the same ones with another threshold.

    Attributes
    ----------
    methods : LearnedMethods
    weights : dict of str to float
        Of the votes in the score, and "offset", which is added.
    decoys : dict of str to ndarray of float64
        Scores of the decoys that test the verdict, by kind; none with one method.
    shares : tuple of float
        Share of junk, estimated in two ways, as `Combination.shares`; NaN with one method.
    reasons : LearnedReasons or None
        What tells the reasons apart; None with one method, and in results of version 0.1.0.
    picks : LearnedPicks or None
        What a picker learned from the micrographs, which tells what is contaminated; None where particles
        were not extracted from micrographs.
    """

    methods: LearnedMethods
    weights: dict[str, float]
    decoys: dict[str, Floats]
    shares: tuple[float, float]
    reasons: LearnedReasons | None = None
    picks: LearnedPicks | None = None

    @property
    def learned(self) -> LearnedMethods:
        """The name of `methods` in version 0.1.0."""
        return self.methods

    def score(self, votes: Mapping[str, Floats]) -> Floats:
        """Weigh the votes on some images; infinite where one of them is."""
        return weighted(votes, self.weights)


class MethodResults(NamedTuple):
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
    def votes(self) -> dict[str, Floats]:
        """Score of each method that was asked."""
        return {name: result.score for name, result in zip(METHODS, self, strict=True) if result is not None}

    @property
    def learned(self) -> LearnedMethods:
        """What the methods have learned."""
        return LearnedMethods(
            None if self.radial is None else self.radial.learned,
            None if self.subspaces is None else self.subspaces.learned,
            None if self.invariants is None else self.invariants.learned,
        )

    def to_decide_together(self) -> MethodResults:
        """Return what counts where all methods decide: without what each of them says of probabilities."""
        nothing = np.empty(0)
        return MethodResults(
            self.radial and self.radial._replace(junk_probability=nothing),
            self.subspaces
            and self.subspaces._replace(junk_probability=nothing, factor=nothing, log_likelihood=nothing),
            self.invariants and self.invariants._replace(junk_probability=nothing),
        )

    @property
    def against(self) -> Codes:
        """How many of the methods reject each image by themselves."""
        rejected = [~result.keep for result in self if result is not None]
        return np.sum(rejected, axis=0, dtype=np.int8)

    def clues(self, rows: slice = slice(None)) -> Floats | None:
        """What tells the reasons apart, shape (n, 10); None where a method was not asked that measures it."""
        radial, subspaces = self.radial, self.subspaces
        if radial is None or subspaces is None:
            return None
        # Ratios of likelihoods grow with the square of what an image shows.
        scores = radial.score[rows], subspaces.score[rows], subspaces.excess[rows]
        ratios = np.column_stack([*scores, subspaces.beside[rows]])
        nearest, strongest = radial.nearest[rows], radial.strongest[rows]
        return np.column_stack(
            [
                radial.peak[rows],
                radial.second_peak[rows],
                np.hypot(*nearest.T),
                np.hypot(*strongest.T),
                np.abs(strongest).max(axis=1),
                np.sign(ratios) * np.sqrt(np.abs(ratios)),
            ]
        ).astype(np.float64)

    @property
    def contrast(self) -> str:
        """Of the particle: "bright", "dark", or "unknown" where no method that was asked finds it."""
        results = (self.radial, self.subspaces)
        return next((result.contrast for result in results if result is not None), "unknown")


def ask_methods(
    images: Images | Particles,
    methods: Sequence[str],
    *,
    radius: float | None = None,
    n_peaks: int | None = None,
    contrast: str = "auto",
    n_subspaces: int | None = None,
    n_components: int | None = None,
    preset: str = "default",
    learned: LearnedMethods | None = None,
    suspect: bool = True,
    stage: Callable[[str, Callable[[], Any]], Any] | None = None,
    work: FilePath | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MethodResults:
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
    learned : LearnedMethods, optional
        From an earlier call: methods that have learned do not learn again.
    suspect : bool
        Whether all methods say why each image would be rejected. Where decoys teach the reasons, the
        subspaces are not asked.
    stage : callable, optional
        Called as ``stage(name, compute)``; returns what an earlier run has computed, or calls ``compute``.
    work : path, optional
        As for `subspace_filter`.
    n_jobs, seed
        As for all of them.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    results : MethodResults
    """
    n, begin = len(images), 0.0
    stage = stage or (lambda name, compute: compute())
    if learned is None and len(methods) == len(METHODS):
        begin = LEARNING
        learn = partial(_learn, as_particles(images), radius, contrast, n_jobs, seed)
        learned = stage("learned", partial(learn, part_of(progress, 0.0, begin, n)))
        return_memory()
    before = learned or LearnedMethods(None, None, None)
    ask: dict[str, Callable[..., Any]] = {
        "radial": partial(
            radial_filter, images, radius, n_peaks, preset=preset, contrast=contrast, learned=before.radial
        ),
        "subspaces": partial(
            subspace_filter,
            images,
            n_subspaces,
            n_components,
            preset=preset,
            describe=len(methods) == 1,
            learned=before.subspaces,
            work=work,
        ),
        "invariants": partial(invariant_filter, images, radius=radius, learned=before.invariants),
    }
    if before.subspaces is not None and not suspect:
        ask["subspaces"] = partial(_without_reasons, as_particles(images), before.subspaces)
    results: dict[str, Any] = dict.fromkeys(METHODS)
    unit = (1 - begin) / sum(TIMES[name] for name in methods)
    for name in METHODS:
        if name in methods:
            end = begin + unit * TIMES[name]
            part = part_of(progress, begin, end, n)
            compute = partial(ask[name], n_jobs=n_jobs, seed=seed, progress=part)
            known = getattr(before, name)
            if known is None:
                results[name] = stage(name, compute)
            else:
                # What is known already need not be saved with each result.
                results[name] = stage(name, partial(_without_learned, compute))._replace(learned=known)
            begin = end
    return MethodResults(**results)


def _without_reasons(
    particles: Particles, learned: LearnedShapes, n_jobs: int | None, seed: int, progress: Progress | None
) -> SubspaceResult:
    return score_images(particles, learned, n_jobs, progress, suspect=False)


def _without_learned(compute: Callable[[], Any]) -> Any:
    return compute()._replace(learned=None)


def _learn(
    particles: Particles,
    radius: float | None,
    contrast: str,
    n_jobs: int | None,
    seed: int,
    progress: Progress | None,
) -> LearnedMethods:
    """Let all methods learn; where there are several workers, the subspaces do so beside the others.

    To learn is mostly a chain of small steps, which leaves other workers idle.
    """

    def radial_and_classes() -> tuple[LearnedRadial | None, LearnedClasses | None]:
        radial = learn_radial_filter(particles, radius, contrast, seed)
        # The radial filter finds how large the particle is, unless that is known.
        found = learned_radius(radial, particles.box) if radius is None and radial is not None else radius
        return radial, learn_invariant_filter(particles, found, n_jobs, seed, progress)

    shapes = partial(learn_subspace_filter, particles, False, (None, None), n_jobs, seed)
    (radial, classes), subspaces = side_by_side([radial_and_classes, shapes], n_jobs)
    return LearnedMethods(radial, subspaces, classes)


def explain(results: MethodResults, learned: LearnedReasons | None = None) -> Codes:
    """Say why each image would be rejected, should it be, in codes of reasons.

    Parameters
    ----------
    results : MethodResults
    learned : LearnedReasons, optional
        What decoys taught; without it, the methods say what they suspect.

    Notes
    -----
    The radial filter looks for peaks all over the image, so it knows best what lies off the centre. Where it
    finds nothing or cannot tell, the other methods are asked, which know the shape of the particle. An image
    with more power in a band of frequencies than any particle has is contamination, unless it shows a single
    peak off the centre: such a particle lies partly where the background was measured.
    """
    if learned is not None and results.radial is not None and results.subspaces is not None:
        reasons = np.empty(len(results.radial.score), np.int8)
        for rows in parts(len(reasons)):
            clues = results.clues(rows)
            assert clues is not None
            reasons[rows] = likeliest_reasons(clues, learned)
        return reasons
    suspicion, *others = (result.suspicion_code for result in results if result is not None)
    for other in others:
        vague = (suspicion == NOISE) | (suspicion == UNLIKE)
        suspicion = np.where(vague & (other != UNLIKE), other, suspicion)
    if results.subspaces is not None:
        strong = (results.subspaces.excess > EXCESS) & (suspicion != OFF_CENTRE)
        suspicion = np.where(strong, np.int8(CONTAMINATION), suspicion)
    return suspicion
