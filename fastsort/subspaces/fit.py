"""Learning the union of subspaces: where to start, how many, what to leave out, when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.cluster.vq

from fastsort._checks import InputError, check_choice, check_count
from fastsort._process import one_blas_thread
from fastsort._threshold import balanced_threshold, valley
from fastsort.subspaces.mixture import (
    FLOOR,
    FitTrace,
    Parameters,
    SubspaceModel,
    Symmetry,
    maximize,
    orthogonal,
    posterior,
    stack,
)
from fastsort.subspaces.pswf import PswfBasis, angular_blocks
from fastsort.subspaces.rows import Rows, check_rows, open_rows
from fastsort.subspaces.scores import SubspaceScores, evaluate, robust, usual_strength, with_strength

PRESETS = ("default", "published")
N_TOTAL = 60
# Images that the start, and the number of subspaces and components, are found on.
N_SAMPLE = 4096
MAX_COMPONENTS = 60
MAX_SUBSPACES = 4
# A further subspace has to raise the held-out log-likelihood by this many of its standard errors.
WORTH = 3.0
# The share of the images that stand for particles while the robust fit learns.
CORE = 0.5
# Images whose energy lies this many robust deviations off do not teach.
GROSS = 3.0
# The fewest images from which what is usual can be told.
MIN_TAUGHT = 50
N_CONCENTRATIONS = 3
# Starts of the clustering, and iterations by which numbers of subspaces are compared.
N_STARTS = 3
N_TRIED = 15
# Rounds of subspace iteration for the first axes: where K is given, EM does the rest; where it is not,
# the variances of the last axes decide.
N_POWERS, N_POWERS_COUNTED = 1, 4


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
    """Learn the union of subspaces that particles lie on, and which images do not lie on it.

    Parameters
    ----------
    coefficients : ndarray, shape (n, L)
        Real, as from `pswf_coefficients`; in memory or a memory map larger than it. Rows with a NaN
        or an infinity are never used.
    n_subspaces : int, optional
        M. By default found from the data; 2 in the published preset.
    n_components : int, optional
        K of each subspace. By default found from the data; 60 / M in the published preset.
    preset : {"default", "published"}
        The published one discards 5 % of the images with the largest sorting factor every 6
        iterations, at most 30, and stops when the log-likelihood changes by less than a thousandth.
    discard : float, optional
        Share of the images in use that is dropped every so often, from 0 (none) to below 1. By
        default the shape of the score's distribution says which images to drop.
    every : int, optional
        Iterations between two cuts; 6 by default.
    max_iterations : int, optional
        100 by default.
    tolerance : float, optional
        Stop when the log-likelihood changes by less than this part of itself; 1e-5 by default.
    robust : bool, optional
        Whether images that are stronger than most, or lie off the subspaces, are kept from teaching.
        True by default, False in the published preset. False is plain maximum likelihood.
    steerable : bool, optional
        Whether to learn what the images teach in all orientations, mirrored ones included. True by
        default where the basis is known.
    basis : PswfBasis, optional
        Of the coefficients; steerable subspaces need it.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it. Processes and clusters carry an
        array with every task, but open a memory map themselves.
    seed : int

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
    any L x L matrix [2]_. It starts from the principal axes of at most 4096 images, each brought to
    unit length so that none pulls harder than another, and from clusters among their projections;
    the published preset from random axes.

    With nothing set, one subspace is learned first, three times anew from the half of the images with
    the best `subspace_scores` and no unusual energy or residual (concentration steps, as for the
    minimum covariance determinant). Of this half, K is the number of axes above the Marchenko-Pastur edge,
    and M the largest number up to 4 for which every step raised the held-out log-likelihood clearly:
    contamination, being left out, gets no subspace of its own. Then all images teach that are likelier
    particles than noise, by their score and the share of junk that fits all scores. In the end these
    are kept, up to a valley in the distribution of the score if there is one.

    References
    ----------
    .. [1] Weiss-Dicker, Eldar, Shkolnisky, Bendory, "Unsupervised particle sorting for cryo-EM using
       probabilistic PCA" (2023), algorithm 1.
    .. [2] Tipping, Bishop, "Mixtures of probabilistic principal component analysers", Neural
       Computation 11 (1999).
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
    if finite.sum() < 2:
        raise InputError(
            f"subspaces need two images or more; got {finite.sum()} without NaN among {len(finite)}."
        )
    if width < 2:
        raise InputError("coefficients must have two columns or more; got 1: no subspace is smaller.")
    if n_subspaces is not None and n_subspaces > finite.sum():
        raise InputError(
            f"n_subspaces must be at most the {finite.sum()} images that teach; got {n_subspaces}."
        )
    learner = _Learner(rows, finite, options, n_jobs)
    with one_blas_thread():
        usable = _ordinary(energy, finite) if options.robust else finite
        if preset == "published" and basis is None:
            start, symmetry = _random_start(width, n_subspaces, n_components, seed), None
            return _learn_and_drop(learner, finite, start, symmetry)
        if options.robust and options.discard is None and finite.sum() >= MIN_TAUGHT:
            # One subspace finds out who is of one kind; only these say how many there should be, since
            # contamination would take a subspace of its own.
            usable = _concentrate(learner, usable, *_start(rows, usable, 1, n_components, basis, seed))
            start, symmetry = _start(rows, usable, n_subspaces, n_components, basis, seed)
            return _learn_and_cut(learner, usable, start, symmetry)
        start, symmetry = _start(rows, usable, n_subspaces, n_components, basis, seed)
        return _learn_and_drop(learner, usable, start, symmetry)


def check_counts(n_subspaces: int | None, n_components: int | None, width: int) -> None:
    """Refuse numbers of subspaces and components that no rows of `width` coefficients could have."""
    if n_subspaces is not None:
        check_count("n_subspaces", n_subspaces)
    if n_components is not None and check_count("n_components", n_components) >= width:
        raise InputError(
            f"n_components must be less than the {width} coefficients of an image; got {n_components}."
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
    """Iterations over the same images, and what became of them."""

    rows: Rows
    finite: npt.NDArray[np.bool_]
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
        use: npt.NDArray[np.bool_],
        parameters: Parameters,
        symmetry: Symmetry | None,
        at_most: int | None = None,
    ) -> Parameters:
        """Iterate until nothing changes any more."""
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

    def model(self, use: npt.NDArray[np.bool_], parameters: Parameters) -> SubspaceModel:
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
        """Scores of all images, and the model with the strength of those that taught it."""
        plain = evaluate(self.rows, model, self.n_jobs)
        strength = usual_strength(plain, model.keep)
        return with_strength(plain, strength), model._replace(strength=strength)


def _concentrate(
    learner: _Learner, use: npt.NDArray[np.bool_], parameters: Parameters, symmetry: Symmetry | None
) -> npt.NDArray[np.bool_]:
    """Choose the half of the images with the best scores again and again."""
    options = learner.options
    at_most = max(1, min(options.every, options.max_iterations // (2 * N_CONCENTRATIONS)))
    for _ in range(N_CONCENTRATIONS):
        parameters = learner.iterate(use, parameters, symmetry, at_most)
        scores, _ = learner.scores(learner.model(use, parameters))
        far = _far(scores.energy, use) | _far(scores.residual, use)
        order = np.lexsort((scores.score, far, ~learner.finite))
        use = np.zeros(len(use), dtype=bool)
        use[order[: max(2, round(CORE * learner.finite.sum()))]] = True
    return use


def _learn_and_cut(
    learner: _Learner, use: npt.NDArray[np.bool_], parameters: Parameters, symmetry: Symmetry | None
) -> SubspaceModel:
    """Learn from a part of the images, then from all that would be kept, and cut."""
    finite = learner.finite
    parameters = learner.iterate(use, parameters, symmetry, learner.options.every)
    score = learner.scores(learner.model(use, parameters))[0].score
    kept = finite & (score <= balanced_threshold(score[finite]))
    if kept.sum() >= 2:
        use = kept
    parameters = learner.iterate(use, parameters, symmetry)
    scores, model = learner.scores(learner.model(use, parameters))
    score = scores.score
    # Not before: images that teach lie apart from the others, for this reason alone.
    keep = finite & (score <= min(balanced_threshold(score[finite]), valley(score[finite])))
    return model._replace(keep=keep if keep.sum() >= 2 else finite)


def _learn_and_drop(
    learner: _Learner, use: npt.NDArray[np.bool_], parameters: Parameters, symmetry: Symmetry | None
) -> SubspaceModel:
    """Learn, and drop the share with the largest sorting factor every so often."""
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


def _far(energy: npt.NDArray[np.float64], some: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell which energies lie far from those of some images."""
    middle, spread = robust(energy[some])
    far: npt.NDArray[np.bool_] = np.abs(np.log(energy + 1e-300) - middle) > GROSS * spread
    return far


def _ordinary(energy: npt.NDArray[np.float64], finite: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Images whose energy is not far from that of most."""
    usable: npt.NDArray[np.bool_] = finite & ~_far(energy, finite)
    return usable if 2 * usable.sum() >= finite.sum() else finite


def _start(
    rows: Rows,
    usable: npt.NDArray[np.bool_],
    n_subspaces: int | None,
    n_components: int | None,
    basis: PswfBasis | None,
    seed: int,
) -> tuple[Parameters, Symmetry | None]:
    """Find M and K where they are not given, and a model to start from."""
    rng = np.random.default_rng(seed)
    sample, unit = _sample(rows, usable, seed)
    asked = n_components or _most(sample)
    if basis is None:
        rounds = N_POWERS if n_components else N_POWERS_COUNTED
        axes, symmetry = _principal_axes(unit, asked, rounds, rng), None
    else:
        axes, symmetry = _steerable_axes(unit, asked, basis)
    positions = sample @ axes
    variances = np.square(unit @ axes).mean(axis=0, dtype=np.float64)
    if n_components is None:
        edge = _edge(unit, variances)
        if symmetry is not None:
            # A cosine and its sine stay together.
            variances = np.minimum(variances, variances[symmetry.latent_partner])
        above = np.flatnonzero(variances > edge)
        if len(above) == 0:
            above = np.arange(1) if symmetry is None else np.unique([0, symmetry.latent_partner[0]])
        kept = above.astype(np.intp)
        axes, positions = axes[:, kept], positions[:, kept]
        symmetry = symmetry and _reduced(symmetry, kept)
    if n_subspaces is not None:
        return _clustered(sample, axes, positions, n_subspaces, symmetry, rng), symmetry
    return _best_number(sample, axes, positions, symmetry, rng), symmetry


def _sample(
    rows: Rows, usable: npt.NDArray[np.bool_], seed: int
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Some of the images, and the same brought to one length."""
    indices = np.flatnonzero(usable)
    if len(indices) > N_SAMPLE:
        indices = np.sort(np.random.default_rng(seed).choice(indices, N_SAMPLE, replace=False))
    sample = rows.take(indices)
    lengths = np.sqrt(np.einsum("ij,ij->i", sample, sample))
    factors = math.sqrt(np.mean(lengths**2)) / np.where(lengths > 0, lengths, 1)
    return sample, sample * factors[:, None].astype(sample.dtype)


def _most(sample: npt.NDArray[np.floating]) -> int:
    """How many axes are looked at."""
    return min(MAX_COMPONENTS, max(1, min(sample.shape[1] - 1, len(sample) // 4)))


def _random_start(width: int, n_subspaces: int | None, n_components: int | None, seed: int) -> Parameters:
    """Subspaces that point anywhere, about the mean of the images."""
    assert n_subspaces is not None and n_components is not None
    rng = np.random.default_rng(seed)
    loadings = rng.standard_normal((n_subspaces, width, n_components)) / math.sqrt(n_components)
    weights = np.full(n_subspaces, 1 / n_subspaces)
    return orthogonal(Parameters(weights, np.zeros((n_subspaces, width)), loadings, 1.0))


def _edge(sample: npt.NDArray[np.floating], variances: npt.NDArray[np.floating]) -> float:
    """Variance beyond which an axis is more than noise (Marchenko and Pastur)."""
    n, width = sample.shape
    total = float(np.square(sample).sum(axis=1).mean())
    falling = np.sort(variances)[::-1]
    n_above = 0
    while True:
        noise = (total - float(falling[:n_above].sum())) / (width - n_above)
        edge = noise * (1 + math.sqrt(width / n)) ** 2
        found = int((falling > edge).sum())
        if found <= n_above or found == width:
            return edge
        n_above = found


def _principal_axes(
    sample: npt.NDArray[np.floating], n_components: int, rounds: int, rng: np.random.Generator
) -> npt.NDArray[np.floating]:
    """Leading right singular vectors (L, K) by subspace iteration from a random one (Halko et al. 2011)."""
    n_drawn = min(n_components + 10, *sample.shape)
    found = sample.T @ rng.standard_normal((len(sample), n_drawn)).astype(sample.dtype)
    for _ in range(rounds):
        found = sample.T @ (sample @ np.linalg.qr(found)[0])
    basis = np.linalg.qr(found)[0]
    positions = sample @ basis
    _, turn = np.linalg.eigh(positions.T @ positions)
    axes = basis @ turn[:, ::-1]
    if axes.shape[1] < n_components:
        # Fewer images than components: the others may point anywhere.
        more = rng.standard_normal((sample.shape[1], n_components - axes.shape[1])).astype(axes.dtype)
        axes = np.linalg.qr(np.column_stack([axes, more]))[0]
    return axes[:, :n_components]


def _steerable_axes(
    sample: npt.NDArray[np.floating], n_components: int, basis: PswfBasis
) -> tuple[npt.NDArray[np.floating], Symmetry]:
    """Leading axes of a sample in all orientations, cosine and sine of each together."""
    blocks = angular_blocks(basis)
    partner = np.empty(len(basis.angular), dtype=np.intp)
    candidates = []
    for m, members in enumerate(blocks):
        # Index 0 has no sines: the cosines are their own partners.
        partner[members] = members[::-1]
        both = np.concatenate([sample[:, members[0]], sample[:, members[-1]]])
        values, vectors = np.linalg.eigh(both.T @ both / len(both))
        candidates += [(-value, m, vector) for value, vector in zip(values, vectors.T, strict=True)]
    columns: list[npt.NDArray[np.float64]] = []
    latent_angular: list[int] = []
    latent_partner: list[int] = []
    for _, m, vector in sorted(candidates, key=lambda one: one[:2]):
        here = len(columns)
        if here + 1 + (m > 0) > n_components:
            continue
        for sign, places in zip((1, -1), blocks[m], strict=False):
            column = np.zeros(sample.shape[1])
            column[places] = vector
            columns.append(column)
            latent_angular.append(sign * m)
        latent_partner += [here] if m == 0 else [here + 1, here]
    if not columns:
        raise InputError(
            f"n_components must be 2 or more where the strongest axis turns; got {n_components}."
        )
    symmetry = Symmetry(basis.angular, partner, np.array(latent_angular), np.array(latent_partner))
    return np.column_stack(columns), symmetry


def _reduced(symmetry: Symmetry, kept: npt.NDArray[np.intp]) -> Symmetry:
    """Leave some latent axes alone; partners are kept together."""
    return symmetry._replace(
        latent_angular=symmetry.latent_angular[kept],
        latent_partner=np.searchsorted(kept, symmetry.latent_partner[kept]),
    )


def _clustered(
    sample: npt.NDArray[np.floating],
    axes: npt.NDArray[np.floating],
    positions: npt.NDArray[np.floating],
    n_subspaces: int,
    symmetry: Symmetry | None,
    rng: np.random.Generator,
) -> Parameters:
    """One subspace for each cluster of the positions, on common axes."""
    if symmetry is not None:
        # Lengths of pairs are what does not turn.
        features = np.hypot(positions, positions[:, symmetry.latent_partner])
    else:
        features = positions
    labels = _k_means(features, n_subspaces, rng)
    total, along = np.square(sample).sum(axis=1).mean(), np.square(positions).sum(axis=1).mean()
    noise = max(float(total - along) / (sample.shape[1] - positions.shape[1]), FLOOR)
    weights = np.bincount(labels, minlength=n_subspaces) / len(labels)
    still = np.ones(sample.shape[1], dtype=bool) if symmetry is None else symmetry.angular == 0
    means, loadings = [], []
    for m in range(n_subspaces):
        members = labels == m
        mean = np.where(still, sample[members].mean(axis=0), 0)
        spread = np.square(positions[members] - mean @ axes).mean(axis=0)
        if symmetry is not None:
            spread = 0.5 * (spread + spread[symmetry.latent_partner])
        means.append(mean)
        loadings.append(axes * np.sqrt(np.maximum(spread - noise, 0.01 * noise)))
    return orthogonal(Parameters(weights, np.array(means), np.array(loadings), noise), symmetry)


def _k_means(
    points: npt.NDArray[np.float64], n_clusters: int, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Labels of points (n, p); no cluster is empty."""
    if n_clusters == 1 or len(np.unique(points, axis=0)) < n_clusters:
        return np.arange(len(points)) % n_clusters
    best: tuple[float, npt.NDArray[np.intp]] | None = None
    for _ in range(N_STARTS):
        centres, labels = scipy.cluster.vq.kmeans2(
            points, n_clusters, iter=20, minit="++", missing="warn", seed=rng
        )
        cost = float(np.square(points - centres[labels]).sum())
        if best is None or cost < best[0]:
            best = cost, labels.astype(np.intp)
    assert best is not None
    labels = best[1]
    for empty in np.setdiff1d(np.arange(n_clusters), labels):
        largest = np.flatnonzero(labels == np.bincount(labels).argmax())
        labels[largest[: max(1, len(largest) // 2)]] = empty
    return labels


def _best_number(
    sample: npt.NDArray[np.floating],
    axes: npt.NDArray[np.floating],
    positions: npt.NDArray[np.floating],
    symmetry: Symmetry | None,
    rng: np.random.Generator,
) -> Parameters:
    """The start with as many subspaces as raise the log-likelihood of images that did not teach."""
    best = _clustered(sample, axes, positions, 1, symmetry, rng)
    if len(sample) < 4 * MIN_TAUGHT:
        return best
    even = np.arange(len(sample)) % 2 == 0
    rows, everything = Rows(sample[even]), np.ones(int(even.sum()), dtype=bool)
    held = None
    for n_subspaces in range(1, MAX_SUBSPACES + 1):
        model = _clustered(sample[even], axes, positions[even], n_subspaces, symmetry, rng)
        for _ in range(N_TRIED):
            model, _ = maximize(rows, everything, model, 1, symmetry)
        density = posterior(sample[~even], stack(model, np.float64)).log_density
        if held is not None:
            gain = density - held
            if gain.mean() <= WORTH * gain.std() / math.sqrt(len(gain)):
                break
            best = _clustered(sample, axes, positions, n_subspaces, symmetry, rng)
        held = density
    return best
