"""Learning the union of subspaces: which images to learn from, which to discard, when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_choice, check_count
from fastsort._process import one_blas_thread
from fastsort._threshold import balanced_threshold, valley
from fastsort._types import Bools, Floats
from fastsort.subspaces.mixture import (
    FitTrace,
    Parameters,
    SubspaceModel,
    Symmetry,
    maximize,
)
from fastsort.subspaces.pswf import PswfBasis
from fastsort.subspaces.rows import Rows, check_rows, open_rows
from fastsort.subspaces.scores import (
    SubspaceScores,
    evaluate,
    log_median_and_spread,
    usual_strength,
    with_strength,
)
from fastsort.subspaces.start import MIN_LEARNED, random_model, start_model

PRESETS = ("default", "published")
# M * K of the published preset.
N_TOTAL = 60
# The share of the images that count as particles while the robust fit learns.
CORE = 0.5
# Images whose energy lies this many robust deviations from the median are not learned from.
GROSS = 3.0
N_CONCENTRATIONS = 3


def fit_subspaces(
    coefficients: npt.ArrayLike,
    n_subspaces: int | None = None,
    n_components: int | None = None,
    *,
    preset: str = "default",
    discard: float | None = None,
    every: int | None = None,
    max_iterations: int | None = None,
    tolerance: float | None = None,
    robust: bool | None = None,
    steerable: bool | None = None,
    basis: PswfBasis | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
) -> SubspaceModel:
    """Learn the union of subspaces that particles lie in, and which images do not lie in it.

    Parameters
    ----------
    coefficients : ndarray, shape (n, L)
        Real, as from `pswf_coefficients`; in memory or a memory map. Rows with a NaN or an infinity
        are never used.
    n_subspaces : int, optional
        M. By default found from the data; 2 in the published preset.
    n_components : int, optional
        K of each subspace. By default found from the data; 60 / M in the published preset.
    preset : {"default", "published"}
        The published one discards the 5 % of the images with the largest sorting factor every 6
        iterations. It takes at most 30 iterations, and stops when the log-likelihood changes by less
        than a thousandth.
    discard : float, optional
        Share of the images that is discarded every so many iterations, from 0 (none) to below 1. By
        default the shape of the score's distribution says which images to discard, at the end.
    every : int, optional
        After how many iterations images are discarded; 6 by default.
    max_iterations : int, optional
        100 by default.
    tolerance : float, optional
        Stop when the log-likelihood changes by less than this part of itself; 1e-5 by default.
    robust : bool, optional
        Whether to leave out images that are stronger than most or lie off the subspaces while learning.
        True by default, False in the published preset. False is plain maximum likelihood.
    steerable : bool, optional
        Whether every image counts in all orientations, mirrored ones included. True by default if a
        basis is given.
    basis : PswfBasis, optional
        Of the coefficients; steerable subspaces need it.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it. Processes and clusters get the rows
        of an array with every task, but read a memory map themselves.
    seed : int
        Random seed.

    Returns
    -------
    model : SubspaceModel

    Raises
    ------
    InputError
        If the coefficients are not real (n, L), too few of them are finite, or a parameter is out of
        range.

    Notes
    -----
    Expectation maximisation for a mixture of probabilistic PCA [1]_ with one noise variance, without
    any L x L matrix [2]_. It starts from the principal axes of at most 4096 images, all scaled to one
    length so that strong images do not count more, and from clusters among their projections. The
    published preset starts from random axes.

    By default, one subspace is learned first. Three times, it is learned again from the half of the
    images with the best `subspace_scores` and no unusual energy or residual (concentration steps, as for
    the minimum covariance determinant). From this half, K is the number of axes above the
    Marchenko-Pastur edge, and M the largest number up to 4 for which every further subspace raised the
    held-out log-likelihood clearly. Contamination is left out, so it gets no subspace of its own. Then
    the model is learned from all images that are likelier particles than noise, by their score and the
    share of junk that fits all scores. These are kept in the end, up to a valley in the distribution of
    the score if there is one.

    References
    ----------
    .. [1] Weiss-Dicker, Eldar, Shkolnisky, Bendory, "Unsupervised particle sorting for cryo-EM using
       probabilistic PCA" (2023), algorithm 1.
    .. [2] Tipping, Bishop, "Mixtures of probabilistic principal component analysers", Neural
       Computation 11 (1999).

    Examples
    --------
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(300, 100, snr=0.3, box=24, junk="noise")
    >>> coefficients = fs.pswf_coefficients(images, 0.3)
    >>> model = fs.fit_subspaces(coefficients, n_subspaces=1, basis=fs.pswf_basis(24, 0.3))
    >>> model.means.shape == (1, coefficients.shape[1])
    True
    >>> bool(model.keep[truth.label].mean() > model.keep[~truth.label].mean())
    True
    """
    array = check_rows(coefficients)
    width = array.shape[1]
    options = _options(preset, discard, every, max_iterations, tolerance, robust)
    seed = check_count("seed", seed, 0)
    check_counts(n_subspaces, n_components, width)
    if preset == "published":
        n_subspaces = 2 if n_subspaces is None else n_subspaces
        if n_components is None:
            n_components = max(1, min(N_TOTAL // n_subspaces, width - 1))
    if steerable and basis is None:
        raise InputError("steerable subspaces need to know how the coefficients turn: give basis=.")
    if basis is not None and len(basis.angular) != width:
        raise InputError(f"the basis has {len(basis.angular)} functions; the coefficients are (n, {width}).")
    if steerable is False:
        basis = None
    if len(array) == 0:
        raise InputError("coefficients hold no rows: nothing to learn from.")
    rows, energy = open_rows(array, n_jobs)
    finite = np.isfinite(energy)
    _check_enough(finite, width, n_subspaces)
    learner = _Learner(rows, finite, options, n_jobs)
    with one_blas_thread():
        if preset == "published" and basis is None:
            assert n_subspaces is not None and n_components is not None  # since it is published
            start = random_model(width, n_subspaces, n_components, seed)
            return _learn_and_discard(learner, finite, start, None)
        usable = _ordinary(energy, finite) if options.robust else finite
        if options.robust and options.discard is None and finite.sum() >= MIN_LEARNED:
            # One subspace tells which images are of one kind. The number of subspaces is found from
            # these alone, since contamination would take a subspace of its own.
            one = start_model(rows, usable, 1, n_components, basis, seed)
            usable = _concentrate(learner, usable, *one)
            start, symmetry = start_model(rows, usable, n_subspaces, n_components, basis, seed)
            return _learn_and_choose(learner, usable, start, symmetry)
        start, symmetry = start_model(rows, usable, n_subspaces, n_components, basis, seed)
        return _learn_and_discard(learner, usable, start, symmetry)


def check_counts(n_subspaces: int | None, n_components: int | None, width: int) -> None:
    """Refuse numbers of subspaces and components that no rows of `width` coefficients could have."""
    if n_subspaces is not None:
        check_count("n_subspaces", n_subspaces)
    if n_components is not None and check_count("n_components", n_components) >= width:
        raise InputError(
            f"n_components must be less than the {width} coefficients of an image; got {n_components}."
        )


def _check_enough(finite: Bools, width: int, n_subspaces: int | None) -> None:
    """Refuse rows that are too few or too short to learn anything from."""
    if finite.sum() < 2:
        raise InputError(
            f"subspaces need two images or more; got {finite.sum()} without NaN among {len(finite)}."
        )
    if width < 2:
        raise InputError("coefficients must have two columns or more; got 1: no subspace is smaller.")
    if n_subspaces is not None and n_subspaces > finite.sum():
        raise InputError(
            f"n_subspaces must be at most the number of images without NaN, {finite.sum()}; "
            f"got {n_subspaces}."
        )


class _Options(NamedTuple):
    discard: float | None
    every: int
    max_iterations: int
    tolerance: float
    robust: bool


def _options(
    preset: str,
    discard: float | None,
    every: int | None,
    max_iterations: int | None,
    tolerance: float | None,
    robust: bool | None,
) -> _Options:
    check_choice("preset", preset, PRESETS)
    published = preset == "published"
    if discard is None and published:
        discard = 0.05
    if discard is not None and not 0 <= discard < 1:
        raise InputError(f"discard must be a share from 0 to below 1; got {discard!r}.")
    every = check_count("every", 6 if every is None else every)
    max_iterations = (30 if published else 100) if max_iterations is None else max_iterations
    tolerance = (1e-3 if published else 1e-5) if tolerance is None else tolerance
    if not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance must be 0 or more; got {tolerance!r}.")
    robust = not published if robust is None else bool(robust)
    return _Options(discard, every, check_count("max_iterations", max_iterations), tolerance, robust)


@dataclass
class _Learner:
    """Iterations over the same images, and their trace."""

    rows: Rows
    finite: Bools
    options: _Options
    n_jobs: int | None
    log_likelihood: list[float] = field(default_factory=list)
    noise_variance: list[float] = field(default_factory=list)
    n_images: list[int] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Iterations that may still be taken."""
        return self.options.max_iterations - len(self.n_images)

    def iterate(
        self,
        use: Bools,
        parameters: Parameters,
        symmetry: Symmetry | None,
        at_most: int | None = None,
    ) -> Parameters:
        """Iterate until the log-likelihood stops changing."""
        previous = math.inf
        for _ in range(self.left if at_most is None else min(at_most, self.left)):
            following, value = maximize(self.rows, use, parameters, self.n_jobs, symmetry)
            self.log_likelihood.append(value)
            self.noise_variance.append(parameters.noise_variance * self.rows.scale**2)
            self.n_images.append(int(use.sum()))
            parameters = following
            if abs(value - previous) <= self.options.tolerance * abs(value):
                break
            previous = value
        return parameters

    def model(self, use: Bools, parameters: Parameters) -> SubspaceModel:
        """Bring parameters back to the data's units."""
        trace = FitTrace(
            np.array(self.log_likelihood),
            np.array(self.noise_variance),
            np.array(self.n_images, dtype=np.intp),
        )
        return SubspaceModel(
            parameters.weights,
            parameters.means * self.rows.scale + self.rows.origin,
            parameters.loadings * self.rows.scale,
            parameters.noise_variance * self.rows.scale**2,
            use,
            trace,
        )

    def scores(self, model: SubspaceModel) -> tuple[SubspaceScores, SubspaceModel]:
        """Scores of all images, and the model with the strength of those that it was learned from."""
        plain = evaluate(self.rows, model, self.n_jobs)
        strength = usual_strength(plain, model.keep)
        return with_strength(plain, strength), model._replace(strength=strength)


def _concentrate(learner: _Learner, use: Bools, parameters: Parameters, symmetry: Symmetry | None) -> Bools:
    """Learn, and choose the half of the images with the best scores; several times."""
    options = learner.options
    at_most = max(1, min(options.every, options.max_iterations // (2 * N_CONCENTRATIONS)))
    for _ in range(N_CONCENTRATIONS):
        parameters = learner.iterate(use, parameters, symmetry, at_most)
        scores, _ = learner.scores(learner.model(use, parameters))
        far = _is_far(scores.energy, use) | _is_far(scores.residual, use)
        order = np.lexsort((scores.score, far, ~learner.finite))
        use = np.zeros(len(use), dtype=bool)
        use[order[: max(2, round(CORE * learner.finite.sum()))]] = True
    return use


def _learn_and_choose(
    learner: _Learner, use: Bools, parameters: Parameters, symmetry: Symmetry | None
) -> SubspaceModel:
    """Learn from a part of the images, then from all that would be kept; then choose those that are."""
    finite = learner.finite
    parameters = learner.iterate(use, parameters, symmetry, learner.options.every)
    score = learner.scores(learner.model(use, parameters))[0].score
    kept = finite & (score <= balanced_threshold(score[finite]))
    if kept.sum() >= 2:
        use = kept
    parameters = learner.iterate(use, parameters, symmetry)
    scores, model = learner.scores(learner.model(use, parameters))
    score = scores.score
    # Not before: the images that a model is learned from get better scores for this reason alone.
    keep = finite & (score <= min(balanced_threshold(score[finite]), valley(score[finite])))
    return model._replace(keep=keep if keep.sum() >= 2 else finite)


def _learn_and_discard(
    learner: _Learner, use: Bools, parameters: Parameters, symmetry: Symmetry | None
) -> SubspaceModel:
    """Learn, and discard a share of the images, those with the largest sorting factor, every so often."""
    options = learner.options
    every = options.every if options.discard else None
    while True:
        before = learner.left
        parameters = learner.iterate(use, parameters, symmetry, every)
        settled = every is None or before - learner.left < every
        if settled or learner.left == 0:
            break
        factor = evaluate(learner.rows, learner.model(use, parameters), learner.n_jobs).factor
        used = np.flatnonzero(use)
        assert options.discard is not None
        worst = used[np.argsort(-factor[used], kind="stable")[: round(options.discard * len(used))]]
        if len(used) - len(worst) >= 2:
            use = use.copy()
            use[worst] = False
    model = learner.model(use, parameters)
    return model if options.discard else model._replace(keep=learner.finite)


def _is_far(energy: Floats, some: Bools) -> Bools:
    """Return which energies lie far from those of some images."""
    middle, spread = log_median_and_spread(energy[some])
    far: Bools = np.abs(np.log(energy + 1e-300) - middle) > GROSS * spread
    return far


def _ordinary(energy: Floats, finite: Bools) -> Bools:
    """Images whose energy is not far from that of most."""
    usable: Bools = finite & ~_is_far(energy, finite)
    return usable if 2 * usable.sum() >= finite.sum() else finite
