"""How large the particle is, by the mean image of what is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special

from fastsort._checks import InputError
from fastsort._crop import apply_crop, crop_operator
from fastsort._process import one_blas_thread
from fastsort._reasons import OFF_CENTRE
from fastsort._types import Bools, Codes, Floats, Images, Indices
from fastsort.images.ctf import phase_terms
from fastsort.particles.source import Particles

# Larger images tell no more of a radial mean.
GRID = 36
# The fewest and the most images that are averaged, and the share of them that must be particles: what
# else is kept lies all over the box and makes the particle too large.
FEWEST, MOST = 50, 2048
BATCH = 256
LEAST_PURE = 0.7
# The part of the mass that the sphere holds.
MASS = 0.95
# How far from the centre the mean is looked at, and the largest shell, in parts of the box; the distance
# between shells, and their width.
REACH = 0.61
LARGEST = 0.45
STEP = 1 / 72
# Frequencies that radial transforms are computed at, in cycles a pixel.
N_FREQUENCIES = 160
FREQUENCIES = (np.arange(N_FREQUENCIES) + 0.5) / N_FREQUENCIES * 0.5
# Filters that may have taken low frequencies away, in cycles a box, and how much of them; where the
# defocus is unknown: first zeros of the contrast transfer function that may be the right ones, and how
# defocus scatters.
HIGH_PASS = (0.7, 1.1, 1.6, 2.3, 3.2)
HIGH_PASS_WITH_CTF = (0.7, 1.4)
TAKEN = 0.9
FIRST_ZEROS = np.geomspace(2.9, 25, 16)
DEFOCUS = np.array([0.8, 0.9, 1.0, 1.1, 1.2])
AMPLITUDE = math.asin(0.1) / math.pi
# What chi squared must fall by to make a filter or an unknown defocus credible, and to make a particle
# larger; and the chi squared of a good fit: if no fit is good, both must be more.
WORTH_EFFECT = 30.0
WORTH_LARGER = 20.0
GOOD_FIT = 10.0
# Faint outer parts are not worth that much by themselves: mass is looked for a little beyond.
BEYOND = 1.1
# An answer needs a mean image that is not flat, and a model that explains most of it; and all models that
# are credible must say nearly the same.
LEAST_SIGNAL = 100.0
LEAST_EXPLAINED = 0.7
MOST_SCATTER = 0.25


class Candidate(NamedTuple):
    """What may have happened to the frequencies of the images.

    Attributes
    ----------
    transfer : ndarray of float64, shape (k,)
        Factor of each frequency.
    n_effects : int
        How many things are supposed that nobody has told.
    """

    transfer: Floats
    n_effects: int


class Profile(NamedTuple):
    """Mean of images by distance from the centre.

    Attributes
    ----------
    mean : ndarray of float64, shape (r,)
    covariance : ndarray of float64, shape (r, r)
        Of the mean.
    """

    mean: Floats
    covariance: Floats


def estimate_diameter(
    particles: Particles,
    working: Particles,
    keep: Bools,
    junk_probability: Floats,
    suspicion: Codes,
    *,
    contrast: str,
    phase_flipped: bool,
) -> float:
    """Estimate the diameter of the particle.

    Parameters
    ----------
    particles : Particles
        The images that were sorted.
    working : Particles
        Their working images.
    keep, junk_probability, suspicion
        The verdict, as in `SortResult`, but suspicions as codes.
    contrast : {"bright", "dark", "unknown"}
    phase_flipped : bool
        Whether the phases of the working images were flipped.

    Returns
    -------
    diameter : float
        Of the sphere about the centre of mass that holds 95 % of the mass, in pixels of `particles`. NaN
        where that cannot be known: fewer than 50 images are kept or less than 70 % of them are particles,
        no particle explains their mean, or several do that differ much.

    Notes
    -----
    The mean of particles in all orientations is the projection of a density that depends on nothing but the
    distance from the centre. Here this is a sum of shells, none of which is negative. Their projections are
    seen through the mean contrast transfer function of the images, upon a constant background that is not
    known. Non-negative least squares fit them to the radial mean of the images, weighed by the inverse
    covariance of that mean. Shells reach a tenth beyond the smallest particle whose fit is nearly as good as
    with shells in the whole box.

    So neither the fringes of the contrast transfer function nor the dark halo that normalisation and
    high-pass filters leave are taken for mass. Such a filter is supposed where the fit is much better with
    it. Where the defocus is not known, contrast transfer functions compete in the same way.
    """
    used = np.flatnonzero(keep & (suspicion != OFF_CENTRE))
    # Fewer than 50 images have no probabilities at all.
    if len(used) < FEWEST or not 1 - junk_probability[used].mean() >= LEAST_PURE:
        return math.nan
    used = used[:: -(-len(used) // MOST)]
    box = min(working.box, GRID)
    operator = crop_operator(working.box, box)
    signs = {"bright": (1,), "dark": (-1,)}.get(contrast, (1, -1))
    with one_blas_thread():
        batches = (used[start : start + BATCH] for start in range(0, len(used), BATCH))
        rings = [ring_means(apply_crop(working.read(batch), operator)) for batch in batches]
        candidates = [
            Candidate(sign * candidate.transfer, candidate.n_effects)
            for sign in signs
            for candidate in _candidates(particles, used, box, phase_flipped)
        ]
        return 2 * fit_radius(mean_profile(np.concatenate(rings)), candidates, box) * particles.box / box


def ring_means(images: Images) -> Floats:
    """Average images (n, d, d) over rings about pixel d // 2, one pixel wide: (n, r)."""
    n, box = images.shape[:2]
    ring = np.rint(_distances(box)).astype(np.intp).ravel()
    n_rings = round(REACH * box)
    inside = np.flatnonzero(ring < n_rings)
    average = np.zeros((ring.size, n_rings))
    average[inside, ring[inside]] = 1 / np.bincount(ring)[ring[inside]]
    return images.reshape(n, -1).astype(np.float64) @ average


def mean_profile(rings: Floats) -> Profile:
    """Average the ring means (n, r) of images."""
    return Profile(rings.mean(axis=0), np.cov(rings.T) / len(rings))


def fit_radius(profile: Profile, candidates: list[Candidate], box: int) -> float:
    """Fit shells to a mean profile.

    Parameters
    ----------
    profile : Profile
        Of images of `box` pixels.
    candidates : list of Candidate
        With transfer functions at FREQUENCIES.
    box : int

    Returns
    -------
    radius : float
        Of the sphere that holds 95 % of the mass, in pixels; NaN where that cannot be known.
    """
    n_rings = len(profile.mean)
    level = np.trace(profile.covariance) / n_rings
    # One image many times scatters by rounding only, and says nothing of other views.
    if not 1e-9 * np.ptp(profile.mean) ** 2 < level < np.inf:
        return math.nan
    # Models are never exact: no combination of rings counts as known much better than the others.
    root = np.linalg.cholesky(profile.covariance + 1e-3 * level * np.eye(n_rings))
    whiten = _without_constant(scipy.linalg.solve_triangular(root, np.eye(n_rings), lower=True))
    target = whiten @ profile.mean
    radii: Floats = np.arange(1.0, int(LARGEST / STEP) + 1) * (STEP * box)
    projections = _shells(radii, box)
    waves = whiten @ _ring_waves(box, n_rings)
    shells = [waves @ (candidate.transfer[:, None] * projections) for candidate in candidates]
    chi = np.array([_fit(columns, target)[1] for columns in shells])
    signal = float(target @ target)
    best = float(chi.min())
    if signal < LEAST_SIGNAL or best > (1 - LEAST_EXPLAINED) * signal:
        return math.nan
    scale = max(1.0, best / GOOD_FIT)
    cost = chi / scale + WORTH_EFFECT * np.array([candidate.n_effects for candidate in candidates])
    weight = np.exp(0.5 * (cost.min() - cost))
    credible = np.flatnonzero(weight > 0.01)
    weight = weight[credible] / weight[credible].sum()
    answers = np.array(
        [_mass_radius(shells[i], target, radii, chi[i] + WORTH_LARGER * scale) for i in credible]
    )
    radius = float(weight @ answers)
    scatter = math.sqrt(weight @ (answers - radius) ** 2)
    return radius if scatter <= MOST_SCATTER * radius else math.nan


def _candidates(particles: Particles, used: Indices, box: int, phase_flipped: bool) -> Iterator[Candidate]:
    """Yield what may have happened to the frequencies of images that are cropped to `box` pixels."""
    cycles = FREQUENCIES * box
    known = _known_transfer(particles, used, box, phase_flipped)
    plain = np.ones(N_FREQUENCIES) if known is None else known
    yield Candidate(plain, 0)
    for edge in HIGH_PASS:
        yield Candidate(plain * _high_pass(cycles, edge), 1)
    if known is not None:
        return
    for zero in FIRST_ZEROS:
        phase = DEFOCUS[:, None] * (1 - AMPLITUDE) * (cycles / zero) ** 2 + AMPLITUDE
        transfer = np.sin(np.pi * phase).mean(axis=0)
        yield Candidate(transfer, 1)
        for edge in HIGH_PASS_WITH_CTF:
            yield Candidate(transfer * _high_pass(cycles, edge), 2)


def _known_transfer(particles: Particles, used: Indices, box: int, phase_flipped: bool) -> Floats | None:
    """Mean contrast transfer function of the images in use; None where the source does not tell it."""
    if particles.ctf is None or not np.isfinite(particles.pixel_size):
        return None
    try:
        terms = phase_terms(particles.ctf.of(used), particles.pixel_size * particles.box / box)
    except InputError:
        # Only who flips phases needs these numbers to be right.
        return None
    square = FREQUENCIES**2
    # Astigmatism is nothing to a radial mean.
    defocus = 0.5 * (terms[:, :1] + terms[:, 1:2])
    transfer = np.sin(np.pi * (defocus * square - terms[:, 3:4] * square**2 + terms[:, 4:]))
    if phase_flipped:
        transfer = np.abs(transfer)
    elif particles.corrected is not None:
        done = particles.corrected[used]
        never = np.zeros(len(particles), dtype=bool)
        twice = particles.table.corrections().get("CTF-premultiplied", never)[used]
        transfer[done] = np.where(twice[done, None], transfer[done] ** 2, np.abs(transfer[done]))
    return transfer.mean(axis=0)


def _high_pass(cycles: Floats, edge: float) -> Floats:
    return 1 - TAKEN * np.exp(-0.5 * (cycles / edge) ** 2)


def _distances(box: int) -> Floats:
    offset = np.arange(box) - box // 2
    return np.hypot.outer(offset, offset)


def _without_constant(whiten: Floats) -> Floats:
    """Make a whitening matrix blind to a constant background."""
    constant = whiten.sum(axis=1)
    constant /= np.linalg.norm(constant)
    return whiten - np.outer(constant, constant @ whiten)


def _shells(radii: Floats, box: int) -> Floats:
    """Transforms (k, m) of the projections of shells of mass 1."""
    frequency = FREQUENCIES[:, None]
    return np.sinc(2 * frequency * radii) * np.exp(-2 * (np.pi * frequency * STEP * box) ** 2)


def _ring_waves(box: int, n_rings: int) -> Floats:
    """Matrix (r, k) from a radial transform to the means over rings of its image."""
    distance, count = np.unique(_distances(box).round(6), return_counts=True)
    ring = np.rint(distance).astype(np.intp)
    waves = scipy.special.j0(2 * np.pi * np.outer(distance, FREQUENCIES))
    waves *= 2 * np.pi * FREQUENCIES * (0.5 / N_FREQUENCIES)
    total = np.zeros((ring.max() + 1, N_FREQUENCIES))
    np.add.at(total, ring, count[:, None] * waves)
    return (total / np.bincount(ring, count)[:, None])[:n_rings]


def _fit(columns: Floats, target: Floats) -> tuple[Floats, float]:
    """Masses of the shells that fit best, and chi squared."""
    try:
        masses, rest = scipy.optimize.nnls(columns, target, maxiter=100 * columns.shape[1])
    except RuntimeError:
        # It did not converge. No sorting is worth less for that.
        return np.zeros(columns.shape[1]), math.inf
    return masses, rest**2


def _mass_radius(columns: Floats, target: Floats, radii: Floats, limit: float) -> float:
    """Radius that holds the mass where few shells keep chi squared within a limit."""
    low, high = 1, len(radii)
    while low < high:
        middle = (low + high) // 2
        if _fit(columns[:, :middle], target)[1] <= limit:
            high = middle
        else:
            low = middle + 1
    number = min(round(BEYOND * high), len(radii))
    mass = np.cumsum(_fit(columns[:, :number], target)[0])
    return float(np.interp(MASS * mass[-1], mass, radii[:number]))
