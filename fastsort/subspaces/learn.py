"""What the subspace filter learns from a sample of the images: the shapes of particles and background."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._bulk import excess_distance, fit_bulk, likely_shares
from fastsort._threshold import MIN_JUDGED, balanced_threshold
from fastsort._types import Bools, Floats, Images, Indices, Singles
from fastsort.images.normalize import normalize_background
from fastsort.images.picks import N_LEARNED_FROM, picked_noise
from fastsort.images.prepare import sample_batches
from fastsort.particles.source import Particles
from fastsort.subspaces.evidence import (
    Comparison,
    coefficients_of,
    compare,
    frequency_bands,
    highest_beside,
    log_powers,
    ratios_beside,
    spectral_slope,
)
from fastsort.subspaces.fit import fit_subspaces
from fastsort.subspaces.mixture import FitTrace, SubspaceModel
from fastsort.subspaces.pswf import Blocks, PswfBasis, angular_blocks
from fastsort.subspaces.scores import StandardizedModel, standardized_model
from fastsort.subspaces.shapes import Shape, fit_shape, log_likelihood, ratio_to_all, regularize

BATCH = 512
N_SAMPLE = 4096
# Fewer images do not say how much of them is picked noise, and learning against it would do harm.
FEWEST_WITH_PICKS = 500
# The share of the images that count as particles while learning, small enough for sets that are
# mostly junk; and the share in the first round, which chooses among nearly all images.
PROMISING = 0.3
PROMISING_AT_FIRST = 0.5
N_CONCENTRATIONS = 5
N_REFINEMENTS = 2
# An image is not learned from if its distance from the bulk exceeds the expectation by this much: for
# particles, and for the background.
OUTLYING = 1.0
EXCLUDED = 3.0
SLACK = 0.5
# Log-likelihood ratios scatter by more than this in any set that is not one image many times.
LEAST_SPREAD = 0.1
# The logarithm of the power scatters by more than this, if only by noise.
LEAST_WIDTH = 0.02


class LearnedShapes(NamedTuple):
    """What was learned of particles and background: all that is needed to score an image.

    Attributes
    ----------
    basis : PswfBasis
        Of the cropped images.
    blocks, bands : tuple of ndarray
        Its functions, by angle and by frequency.
    particle, background : Shape
        Of centred particles and of displaced places.
    usual, spread : ndarray of float64, shape (b,)
        Logarithm of the power of particles in each band, and how much it scatters.
    steep : float
        Slope of the spectrum of particles.
    beside : ndarray of float64, shape (2, 2)
        What particles show beside the centre, and how much that scatters: the highest ratio in any
        direction, and the highest that two opposite directions both reach.
    subspaces : SubspaceModel
        As `SubspaceResult.model`.
    described : StandardizedModel or None
        The subspaces as `factor` and `log_likelihood` need them.
    picked : Shape or None
        Of noise as a picker finds it; None where fewer than 500 images were learned from, and in results of
        version 0.1.0.
    picked_share : float
        Of all that is no particle.
    """

    basis: PswfBasis
    blocks: Blocks
    bands: tuple[Indices, ...]
    particle: Shape
    background: Shape
    usual: Floats
    spread: Floats
    steep: float
    beside: Floats
    subspaces: SubspaceModel
    described: StandardizedModel | None
    picked: Shape | None = None
    picked_share: float = 0.0

    @property
    def others(self) -> list[Shape]:
        """What images without a particle in the middle look like."""
        return [self.background] if self.picked is None else [self.background, self.picked]

    @property
    def shares(self) -> Floats:
        """How frequent these are, compared with each other."""
        return np.array([1.0] if self.picked is None else [1 - self.picked_share, self.picked_share])


def read_sample(particles: Particles, operator: Singles, seed: int) -> Images:
    """Return cropped and normalised images to learn from."""
    images = np.concatenate(list(sample_batches(particles, operator, N_SAMPLE, BATCH, seed)))
    normalize_background(images, 0.5 * len(operator))
    return images


def learn_shapes(
    images: Images,
    basis: PswfBasis,
    describe: bool,
    numbers: tuple[int | None, int | None],
    n_jobs: int | None,
    seed: int,
) -> LearnedShapes:
    """Learn the shapes of particles and background, and what else particles have in common.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        Two or more, as `read_sample` returns them.
    basis : PswfBasis
        Of this box.
    describe : bool
        Whether `fit_subspaces` is to describe the particles.
    numbers : tuple
        Of subspaces and components, for `fit_subspaces`.
    n_jobs, seed
        As for `fit_subspaces`.

    Returns
    -------
    learned : LearnedShapes
    """
    blocks, bands = angular_blocks(basis), frequency_bands(basis)
    centred = coefficients_of(images, basis)
    powers = log_powers(centred, bands)
    outlying = excess_distance(powers, fit_bulk(powers))
    background = _learn_background(images, basis, outlying < EXCLUDED, blocks, bands)
    picked = None
    if len(images) >= FEWEST_WITH_PICKS:
        picks = picked_noise(images, N_LEARNED_FROM, 0.5 * images.shape[1])
        picked = fit_shape(coefficients_of(picks, basis), np.ones(len(picks), dtype=bool), blocks)
    others = [background] if picked is None else [background, picked]
    particle, use, picked_share = _learn_particle(centred, powers, outlying, others, blocks)
    usual, spread, steep = _usual_power(powers[use])
    beside = _usual_beside(images[use], compare(particle, background, basis, blocks))
    subspaces, described = no_subspaces(basis), None
    if describe:
        rows = centred[use].astype(np.float32)
        subspaces = _describe(rows, basis, numbers, n_jobs, seed)
        described = standardized_model(subspaces, np.float32)
    return LearnedShapes(
        basis,
        blocks,
        bands,
        particle,
        background,
        usual,
        spread,
        steep,
        beside,
        subspaces,
        described,
        picked,
        picked_share,
    )


def no_subspaces(basis: PswfBasis) -> SubspaceModel:
    """Return a model without dimensions and iterations, for where nothing is described."""
    length, nothing = len(basis.angular), np.empty(0)
    trace = FitTrace(nothing, nothing, nothing.astype(np.intp))
    nobody = np.empty(0, dtype=bool)
    return SubspaceModel(np.ones(1), np.zeros((1, length)), np.zeros((1, length, 1)), 1.0, nobody, trace)


def _learn_background(
    images: Images, basis: PswfBasis, ordinary: Bools, blocks: Blocks, bands: tuple[Indices, ...]
) -> Shape:
    """Shape of the displaced places of ordinary images, as far as they are ordinary places, too."""
    half = images.shape[1] // 2
    places = ((-half, 0), (0, -half), (-half, -half))
    displaced = coefficients_of(images, basis, places)
    powers = log_powers(displaced, bands)
    use = excess_distance(powers, fit_bulk(powers)) < EXCLUDED
    use &= np.repeat(ordinary, len(places))
    return fit_shape(displaced, use if use.any() else ~use, blocks)


def _learn_particle(
    centred: Floats, powers: Floats, outlying: Floats, others: list[Shape], blocks: Blocks
) -> tuple[Shape, Bools, float]:
    """Shape of the particles, the images that it was learned from, and the share of picked noise."""
    far = np.array([log_likelihood(centred, other, blocks) for other in others])
    use, ratio, excess = _choose_promising(centred, powers, outlying, others[0], far, blocks)
    for _ in range(N_REFINEMENTS):
        kept = (-ratio <= balanced_threshold(-ratio)) & (excess < OUTLYING)
        use = kept if kept.sum() >= min(len(centred), MIN_JUDGED) else use
        particle, ratio, picked_share = _compare(centred, use, others[0], far, blocks)
    return particle, use, picked_share


def _choose_promising(
    centred: Floats, powers: Floats, outlying: Floats, background: Shape, far: Floats, blocks: Blocks
) -> tuple[Bools, Floats, Floats]:
    """Choose the images that look most like particles and least like contamination, several times.

    Returns
    -------
    use : ndarray of bool, shape (n,)
        The images chosen last.
    ratio : ndarray of float64, shape (n,)
        Log-likelihood ratio of these to all that is no particle, for all images.
    excess : ndarray of float64, shape (n,)
        How far images lie outside the bulk of these.
    """
    n = len(centred)
    # Most images, whatever they show, are the first choice.
    use = outlying < OUTLYING
    use = use if 2 * use.sum() >= n else np.ones_like(use)
    for step in range(N_CONCENTRATIONS + 1):
        _, ratio, _ = _compare(centred, use, background, far, blocks)
        chosen = np.flatnonzero(use)
        if step == 0:
            best = np.argsort(-ratio[chosen], kind="stable")
            chosen = chosen[best[: max(2, round(PROMISING_AT_FIRST * n))]]
        measured = np.column_stack([ratio, powers])
        excess = np.maximum(excess_distance(measured, fit_bulk(measured[chosen])) - SLACK, 0)
        if step < N_CONCENTRATIONS:
            usual, spread = _median_and_spread(ratio[chosen])
            # A ratio above the usual one is no better: contamination can look too much like a particle.
            doubt = np.maximum((usual - ratio) / spread, 0) + excess
            use = np.zeros(n, dtype=bool)
            use[np.argsort(doubt, kind="stable")[: max(2, round(PROMISING * n))]] = True
    return use, ratio, excess


def _compare(
    coefficients: Floats, use: Bools, background: Shape, far: Floats, blocks: Blocks
) -> tuple[Shape, Floats, float]:
    """Shape of the images in use, its log-likelihood ratio to the others, and how many of these are picked.

    The others, under which images have the log-likelihoods `far` (k, n), are the background and, in large
    sets, picked noise. These are as frequent as makes all images likeliest: a set in which no noise was
    picked must not be judged as if it were.
    """
    particle = regularize(fit_shape(coefficients, use, blocks), background, int(use.sum()), blocks)
    ratios = log_likelihood(coefficients, particle, blocks) - far
    shares = likely_shares(np.vstack([np.zeros(ratios.shape[1]), -ratios]))[1:]
    shares /= shares.sum()
    return particle, ratio_to_all(ratios, shares), float(sum(shares[1:]))


def _describe(
    rows: Singles, basis: PswfBasis, numbers: tuple[int | None, int | None], n_jobs: int | None, seed: int
) -> SubspaceModel:
    return fit_subspaces(
        rows,
        *numbers,
        discard=0,
        robust=False,
        basis=basis,
        max_iterations=30,
        n_jobs=n_jobs,
        seed=seed,
    )


def _usual_power(powers: Floats) -> tuple[Floats, Floats, float]:
    """Logarithm of the usual power in each band, how much it scatters, and the slope of the spectrum."""
    bulk = fit_bulk(powers)
    spread = np.maximum(np.sqrt(np.diag(np.linalg.inv(bulk.precision))), LEAST_WIDTH)
    return bulk.mean, spread, float(np.median(spectral_slope(powers)))


def _usual_beside(images: Images, comparison: Comparison) -> Floats:
    """What particles show beside the centre, and how much that scatters."""
    ratios = ratios_beside(images, comparison)
    return np.array([_median_and_spread(values) for values in highest_beside(ratios)])


def _median_and_spread(values: Floats) -> tuple[float, float]:
    """Median, and the standard deviation, estimated from the median absolute deviation."""
    median = float(np.median(values))
    return median, max(1.4826 * float(np.median(np.abs(values - median))), LEAST_SPREAD)
