"""Errors of a verdict, estimated without labels: known junk and known particles, made from the images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform

from fastsort.decide.combine import confident
from fastsort.decide.votes import Learned, ask_methods
from fastsort.images.normalize import normalize_background
from fastsort.particles.source import Particles

# How many decoys of each kind teach the weights of the votes, and how many others test the verdict.
N_TEACH, N_TEST = 200, 150
JUNK = ("off-centre", "partial", "multiple", "scrambled", "noise", "surroundings")
GOOD = "particle"
# Distances from the centre, in parts of the box.
OFF_CENTRE, PARTIAL, MULTIPLE = (0.20, 0.33), (0.40, 0.55), (0.18, 0.30)
# How far a copy of a particle is moved in pixels, and how much noise is added to it, in parts of what
# it has.
MOVED, NOISIER = 1.0, 0.3
# With fewer images than this, or with two counts of the junk further apart, nothing is known.
MIN_IMAGES, DISAGREE = 200, 0.25
Z95 = 1.96

Images = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A share from 0 to 1 with its interval of 95 % confidence; NaN where it is not known."""

    value: float
    low: float
    high: float


class EstimatedErrors(NamedTuple):
    """How well a data set was sorted, as far as that can be said without labels.

    Attributes
    ----------
    true_positive_rate : Estimate
        Share of the particles that are kept.
    true_negative_rate : Estimate
        Share of the junk that is rejected.
    precision : Estimate
        Share of the kept images that are particles.
    junk_share : Estimate
        Of all images.
    by_kind : dict of str to Estimate
        Share of the decoys of each kind of junk that are rejected; "particle": share of the known
        particles that are kept.
    n_decoys : dict of str to int
        How many decoys of each kind there were.
    known : bool
        Whether the figures can be trusted.
    remark : str
        Why they cannot be, or what to keep in mind; empty if there is nothing to say.
    """

    true_positive_rate: Estimate
    true_negative_rate: Estimate
    precision: Estimate
    junk_share: Estimate
    by_kind: dict[str, Estimate]
    n_decoys: dict[str, int]
    known: bool
    remark: str


class KnownImages(NamedTuple):
    """Votes on decoys.

    Attributes
    ----------
    teach : dict of str to ndarray of float64, shape (m,)
        Of each method, on junk from which the weights of the votes are learned.
    test : dict of str to dict of str to ndarray of float64
        On each kind of other decoys, of each method: on these the verdict is tested.
    """

    teach: dict[str, Array]
    test: dict[str, dict[str, Array]]


def known_images(
    working: Particles,
    votes: Mapping[str, Array],
    learned: Learned,
    *,
    n_jobs: int | None = None,
    seed: int = 0,
) -> KnownImages:
    """Make decoys and ask the methods for their votes on them.

    Parameters
    ----------
    working : Particles
        Working images.
    votes : mapping of str to ndarray of float64, shape (n,)
        Of the methods, on these.
    learned : Learned
        What the methods have learned from these.
    n_jobs : int, optional
    seed : int

    Returns
    -------
    known : KnownImages
        Empty arrays where no image can be judged. Particles from which decoys that teach are made are not
        those from which decoys that test are made.
    """
    teach_seed, test_seed, order_seed = np.random.SeedSequence(seed).spawn(3)
    judged = np.flatnonzero(np.isfinite(next(iter(votes.values()))))
    if len(judged) < 4:
        return KnownImages({name: np.empty(0) for name in votes}, {})
    rng = np.random.default_rng(order_seed)
    sure, others = rng.permutation(confident(votes)), rng.permutation(judged)

    def ask(
        part: int, number: int, source: np.random.SeedSequence, good: bool
    ) -> dict[str, dict[str, Array]]:
        images, rest = (working.read(np.sort(chosen[part::2][:number])) for chosen in (sure, others))
        made = make_decoys(images, rest, np.random.default_rng(source), number, good=good)
        asked = ask_methods(np.concatenate(list(made.values())), list(votes), learned=learned, n_jobs=n_jobs)
        parts = {name: np.split(vote, len(made)) for name, vote in asked.votes.items()}
        return {kind: {name: parts[name][k] for name in votes} for k, kind in enumerate(made)}

    taught = ask(0, N_TEACH, teach_seed, False)
    return KnownImages(
        {name: np.concatenate([kind[name] for kind in taught.values()]) for name in votes},
        ask(min(1, len(sure) - 1), N_TEST, test_seed, True),
    )


def make_decoys(
    images: Images, others: Images, rng: np.random.Generator, number: int, *, good: bool = False
) -> dict[str, Images]:
    """Make images of which it is known what they are.

    Parameters
    ----------
    images : ndarray of float32, shape (m, d, d)
        Particles beyond doubt.
    others : ndarray of float32, shape (k, d, d)
        Any images of the set.
    rng : Generator
    number : int
        Of each kind.
    good : bool
        Whether to make copies of particles, too.

    Returns
    -------
    decoys : dict of str to ndarray of float32, shape (number, d, d)
        "off-centre", "partial" (pushed over the edge), "multiple" (two added), "scrambled" (the phases
        of another image's noise under the particle's own spectrum), "noise" (Gaussian, with the mean
        spectrum of the surroundings), "surroundings" (what lies half a box away), and "particle"
        (turned, moved a little, with more noise). Background mean 0, deviation 1.
    """
    box = images.shape[1]

    def some(source: Images) -> Images:
        return source[rng.integers(0, len(source), number)]

    def pushed(source: Images, reach: tuple[float, float]) -> Images:
        return _rolled(source, *_steps(rng, number, reach, box))

    rows, columns = _steps(rng, number, MULTIPLE, box)
    surroundings = np.roll(some(others), (box // 2, box // 2), (1, 2))
    spectrum = np.sqrt(np.mean(np.abs(np.fft.rfft2(surroundings)) ** 2, axis=0)) / box
    white = rng.standard_normal((2, number, box, box))
    particles = some(images)
    amplitudes = np.abs(np.fft.rfft2(particles))
    phases = np.fft.rfft2(white[0])
    found = {
        "off-centre": pushed(some(images), OFF_CENTRE),
        "partial": pushed(some(images), PARTIAL),
        "multiple": _rolled(some(images), rows, columns) + _rolled(some(images), -rows, -columns),
        "scrambled": np.fft.irfft2(amplitudes * phases / np.maximum(np.abs(phases), 1e-12), (box, box)),
        "noise": np.fft.irfft2(np.fft.rfft2(white[1]) * spectrum, (box, box)),
        "surroundings": surroundings,
    }
    if good:
        found[GOOD] = _copies(some(images), rng) + NOISIER * np.fft.irfft2(
            np.fft.rfft2(rng.standard_normal((number, box, box))) * spectrum, (box, box)
        )
    for kind, decoys in found.items():
        found[kind] = np.ascontiguousarray(decoys, dtype=np.float32)
        normalize_background(found[kind], 0.5 * box)
    return found


def _steps(
    rng: np.random.Generator, number: int, reach: tuple[float, float], box: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Steps in whole pixels, in any direction and within a reach in parts of the box."""
    angle, length = rng.uniform(0, 2 * np.pi, number), rng.uniform(*reach, number) * box
    return np.rint(length * np.sin(angle)).astype(np.intp), np.rint(length * np.cos(angle)).astype(np.intp)


def _rolled(images: Images, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Images:
    return np.stack(
        [np.roll(image, (y, x), (0, 1)) for image, y, x in zip(images, rows, columns, strict=True)]
    )


def _copies(images: Images, rng: np.random.Generator) -> Images:
    """Turn each image by any angle about its centre, and move it by up to a pixel."""
    box = images.shape[1]
    centre = np.full(2, box // 2)
    copies = np.empty_like(images)
    for i, image in enumerate(images):
        angle = rng.uniform(0, 2 * np.pi)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        offset = centre - turn @ (centre + rng.uniform(-MOVED, MOVED, 2))
        copies[i] = affine_transform(image, turn, offset, order=3, mode="grid-wrap")
    return copies


def estimate_errors(
    keep: npt.NDArray[np.bool_],
    junk_probability: Array,
    rejected: Mapping[str, npt.NDArray[np.bool_]],
    shares: tuple[float, float],
    *,
    other: Array | None = None,
) -> EstimatedErrors:
    """Say how well a set was sorted, from its own probabilities and from decoys.

    Parameters
    ----------
    keep : ndarray of bool, shape (n,)
    junk_probability : ndarray of float64, shape (n,)
        1 for images that cannot be judged.
    rejected : mapping of str to ndarray of bool
        For each kind of decoys, whether each would be rejected. None of them was learned from.
    shares : tuple of float
        Share of junk, counted in two ways, as `Combination.shares`.
    other : ndarray of float64, shape (n,), optional
        Junk probabilities as the other count has them (`probability_by_odds`).

    Returns
    -------
    errors : EstimatedErrors

    Notes
    -----
    Sums of calibrated probabilities are expected numbers of particles and of junk, kept and rejected.
    Their intervals hold the scatter of so many images, and what the other count of the junk says. Decoys
    say how each kind of junk fares, with Wilson's intervals. The particles among the decoys are copies of
    the clearest ones: their share is an upper limit.
    """
    judged = np.isfinite(junk_probability)
    p, kept = junk_probability[judged], keep[judged]
    by_kind = {kind: _wilson(int(hit.sum()), len(hit)) for kind, hit in rejected.items() if len(hit)}
    if GOOD in by_kind:
        value, low, high = by_kind[GOOD]
        by_kind[GOOD] = Estimate(1 - value, 1 - high, 1 - low)
    counts = {kind: len(hit) for kind, hit in rejected.items()}
    junk, particles = float(p.sum()), float((1 - p).sum())
    rates = _rates(p, kept)
    others = rates if other is None else _rates(other[judged], kept)
    doubtful = not math.isfinite(sum(shares))
    spread = (_interval(*pair, doubtful) for pair in zip(rates, others, strict=True))
    # Images that could be judged, were there not too few of them, have no probability.
    number = int((~judged).sum()) if (p == 1).all() and not judged.all() else len(p)
    remark = _remark(number, junk, particles, shares, by_kind)
    kept_particles, rejected_junk, precision, share = spread
    return EstimatedErrors(
        kept_particles, rejected_junk, precision, share, by_kind, counts, not remark, remark
    )


def _rates(p: Array, kept: npt.NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Expected parts and wholes: particles kept, junk rejected, particles among the kept, junk of all."""
    good = 1 - p
    return (
        (float(good[kept].sum()), float(good.sum())),
        (float(p[~kept].sum()), float(p.sum())),
        (float(good[kept].sum()), float(kept.sum())),
        (float(p.sum()), float(len(p))),
    )


def _interval(share: tuple[float, float], other: tuple[float, float], doubtful: bool) -> Estimate:
    """A share of an expected number, with an interval that holds the scatter and the other count."""
    if doubtful or share[1] < 1:
        return Estimate(math.nan, math.nan, math.nan)
    value = min(share[0] / share[1], 1.0)
    ends = [value, min(other[0] / other[1], 1.0) if other[1] >= 1 else value]
    wide = Z95 * math.sqrt(max(value * (1 - value), 1 / share[1]) / share[1])
    return Estimate(value, max(min(ends) - wide, 0.0), min(max(ends) + wide, 1.0))


def _wilson(hits: int, number: int) -> Estimate:
    """Wilson's score interval (J. Am. Stat. Assoc. 22, 1927)."""
    value, square = hits / number, Z95**2 / number
    middle = (value + square / 2) / (1 + square)
    wide = Z95 * math.sqrt(value * (1 - value) / number + square / (4 * number)) / (1 + square)
    return Estimate(value, max(middle - wide, 0.0), min(middle + wide, 1.0))


def _remark(
    n: int, junk: float, particles: float, shares: tuple[float, float], by_kind: Mapping[str, Estimate]
) -> str:
    """Why the figures are not to be trusted; empty if they are."""
    if n < MIN_IMAGES:
        return f"{n} images are too few to say; it takes {MIN_IMAGES}"
    if particles < 0.05 * n:
        return "hardly any image looks like a particle of its own kind: there is nothing to compare with"
    if not math.isfinite(sum(shares)) or abs(shares[0] - shares[1]) > DISAGREE:
        return (
            f"particles and junk are not told apart well enough: the junk is {100 * shares[0]:.0f} % by the "
            f"shape of the scores and {100 * shares[1]:.0f} % by the made junk"
        )
    if GOOD in by_kind and by_kind[GOOD].value < 0.5:
        return f"only {100 * by_kind[GOOD].value:.0f} % of the particles that were copied to try are kept"
    caught = [by_kind[kind].value for kind in JUNK if kind in by_kind]
    if caught and float(np.mean(caught)) < 0.5:
        return f"only {100 * float(np.mean(caught)):.0f} % of the junk that was made to try is recognised"
    return ""
