"""Decoys: junk and particles made from the set's own images, and the errors of a verdict they show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.fft

from fastsort._types import Array, Bools, Floats, Images, Indices
from fastsort.decide.calibrate import GOOD, TOLD_APART
from fastsort.decide.combine import confident
from fastsort.decide.side_by_side import side_by_side
from fastsort.decide.votes import LearnedMethods, ask_methods
from fastsort.images.normalize import normalize_background
from fastsort.images.picks import picked_noise, plain_noise
from fastsort.invariants.transform import move_images
from fastsort.particles.source import Particles

# How many decoys of each kind the weights of the votes are learned from, and how many test the verdict.
N_TO_LEARN, N_TO_TEST = 200, 150
# How many of each kind there are that teach the reasons only.
N_OF_REASONS = 100
JUNK = ("off-centre", "partial", "multiple", "scrambled", "noise", "picked noise", "background")
# Distances from the centre, in parts of the box.
OFF_CENTRE, PARTIAL, MULTIPLE = (0.20, 0.33), (0.40, 0.55), (0.18, 0.30)
# Contamination: least and largest width of its structure in parts of the box, its strength in deviations of
# the background, and up to which deviation of a random field a patch with a sharp rim begins.
STRUCTURE, STRENGTH, RIM = (1 / 24, 1 / 3), (1.5, 5.0), 0.7
# How far the copy of a particle is moved, in pixels, and how much noise is added to it, in parts of the
# noise that it has.
MOVED, NOISIER = 1.0, 0.3
# With fewer images than this, or with two estimates of the share of junk that differ by more than this,
# the errors are not known.
MIN_IMAGES, DISAGREE = 200, 0.25
# No model of the scores is exact: in sets whose labels are known, shares are off by this much, and by so
# many times the expected balanced error besides. Where scores of particles and junk overlap, their shape
# says less.
OFF, OVERLAP = 0.06, 0.6
Z95 = 1.96


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
        For each kind of junk, the share of its decoys that are rejected; for "particle", the share of its
        decoys that are kept.
    n_decoys : dict of str to int
        How many decoys of each kind there were.
    known : bool
        Whether the figures can be trusted.
    remark : str
        Why they cannot be trusted; empty if they can.
    """

    true_positive_rate: Estimate
    true_negative_rate: Estimate
    precision: Estimate
    junk_share: Estimate
    by_kind: dict[str, Estimate]
    n_decoys: dict[str, int]
    known: bool
    remark: str


class DecoyVotes(NamedTuple):
    """Votes on decoys.

    Attributes
    ----------
    to_learn : dict of str to ndarray of float64, shape (m,)
        Of each method, on junk: the weights of the votes are learned from these.
    to_test : dict of str to dict of str to ndarray of float64
        On each kind of other decoys, of each method: the verdict is tested with these.
    measured : dict of str to ndarray of float64, shape (m, p)
        On each kind of decoys, the `clues` of their results: the reasons are learned from these.
    """

    to_learn: dict[str, Floats]
    to_test: dict[str, dict[str, Floats]]
    measured: dict[str, Floats]


def votes_on_decoys(
    working: Particles,
    votes: Mapping[str, Floats],
    learned: LearnedMethods,
    *,
    n_jobs: int | None = None,
    seed: int = 0,
) -> DecoyVotes:
    """Make decoys and ask the methods for their votes on them.

    Parameters
    ----------
    working : Particles
        Working images.
    votes : mapping of str to ndarray of float64, shape (n,)
        Of the methods, on these images.
    learned : LearnedMethods
        What the methods have learned from these images.
    n_jobs : int, optional
    seed : int

    Returns
    -------
    votes : DecoyVotes
        Empty where fewer than 4 images can be judged. No image is the source of both a decoy to learn from
        and a decoy to test with, unless only one image looks like a particle.
    """
    learn_seed, test_seed, order_seed, reason_seed = np.random.SeedSequence(seed).spawn(4)
    judged = np.flatnonzero(np.isfinite(next(iter(votes.values()))))
    if len(judged) < 4:
        return DecoyVotes({name: np.empty(0) for name in votes}, {}, {})
    rng = np.random.default_rng(order_seed)
    particles, any_images = rng.permutation(confident(votes)), rng.permutation(judged)

    def sources(part: int, number: int) -> tuple[Images, Images]:
        # Images of particles, and any images.
        chosen = (np.sort(indices[part::2][:number]) for indices in (particles, any_images))
        images, others = (working.read(indices) for indices in chosen)
        return images, others

    to_learn, to_test = sources(0, N_TO_LEARN), sources(min(1, len(particles) - 1), N_TO_TEST)
    learn, test, reason = map(np.random.default_rng, (learn_seed, test_seed, reason_seed))
    junk, tested, more = side_by_side(
        [
            partial(make_decoys, *to_learn, learn, N_TO_LEARN),
            partial(make_decoys, *to_test, test, N_TO_TEST, good=True),
            partial(make_decoys_of_reasons, *to_learn, reason, N_OF_REASONS),
        ],
        n_jobs,
    )
    kinds, made = zip(*(item for part in (junk, more, tested) for item in part.items()), strict=True)
    # All at once: what is done once a call takes as long as what is done for hundreds of images.
    results = ask_methods(np.concatenate(made), list(votes), learned=learned, suspect=False, n_jobs=n_jobs)
    ends = np.cumsum([len(part) for part in made])[:-1]
    by_kind = {name: np.split(vote, ends) for name, vote in results.votes.items()}
    measured: dict[str, list[Floats]] = {}
    clues = results.clues()
    if clues is not None:
        for kind, found in zip(kinds, np.split(clues, ends), strict=True):
            measured.setdefault(kind, []).append(found)
    first = len(junk) + len(more)
    return DecoyVotes(
        {name: np.concatenate(by_kind[name][: len(junk)]) for name in votes},
        {kind: {name: by_kind[name][first + k] for name in votes} for k, kind in enumerate(tested)},
        {kind: np.concatenate(parts) for kind, parts in measured.items()},
    )


def make_decoys(
    images: Images, others: Images, rng: np.random.Generator, number: int, *, good: bool = False
) -> dict[str, Images]:
    """Make images of which it is known what they show, from images of the set.

    Parameters
    ----------
    images : ndarray of float32, shape (m, d, d)
        Those that surely show particles.
    others : ndarray of float32, shape (k, d, d)
        Any images of the set.
    rng : Generator
    number : int
        How many decoys of each kind.
    good : bool
        Whether to make particles too, as copies of others.

    Returns
    -------
    decoys : dict of str to ndarray of float32, shape (number, d, d)
        "off-centre"; "partial": moved over the edge; "multiple": two particles added; "scrambled": the
        spectrum of a particle with random phases; "noise": Gaussian, with the mean spectrum of the
        background; "picked noise": as `picked_noise` makes it; "background": an image of which the middle
        shows what lies half a box away; and "particle": turned, moved a little, with more noise. Their
        background has mean 0 and deviation 1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(20, 20, snr=0.2, box=32, seed=1)
    >>> decoys = fs.make_decoys(images[truth.label], images, np.random.default_rng(0), 5, good=True)
    >>> list(decoys)
    ['off-centre', 'partial', 'multiple', 'scrambled', 'noise', 'picked noise', 'background', 'particle']
    >>> decoys["noise"].shape
    (5, 32, 32)
    """
    box = images.shape[1]

    def some(source: Images) -> Images:
        return source[rng.integers(0, len(source), number)]

    def moved(source: Images, reach: tuple[float, float]) -> Images:
        return _rolled(source, *_steps(rng, number, reach, box))

    rows, columns = _steps(rng, number, MULTIPLE, box)
    background = np.roll(some(others), (box // 2, box // 2), (1, 2))
    spectrum = np.sqrt(np.mean(np.abs(_spectra(background)) ** 2, axis=0)) / box

    def noise() -> Images:
        return _back(_white(rng, number, box) * spectrum, box)

    def scrambled() -> Images:
        white = _white(rng, number, box)
        return _back(white * (np.abs(_spectra(some(images))) / np.maximum(np.abs(white), 1e-12)), box)

    decoys = {
        "off-centre": moved(some(images), OFF_CENTRE),
        "partial": moved(some(images), PARTIAL),
        "multiple": _rolled(some(images), rows, columns) + _rolled(some(images), -rows, -columns),
        "scrambled": scrambled(),
        "noise": noise(),
        "picked noise": picked_noise(images, number, 0.5 * box, int(rng.integers(2**31))),
        "background": background,
    }
    if good:
        decoys[GOOD] = _copies(some(images), rng) + np.float32(NOISIER) * noise()
    for kind, made in decoys.items():
        decoys[kind] = np.ascontiguousarray(made, dtype=np.float32)
        normalize_background(decoys[kind], 0.5 * box)
    return decoys


def make_decoys_of_reasons(
    images: Images, others: Images, rng: np.random.Generator, number: int
) -> dict[str, Images]:
    """Make images that teach what plain noise and contamination look like; they weigh no votes.

    Parameters
    ----------
    images, others, rng, number
        As for `make_decoys`.

    Returns
    -------
    decoys : dict of str to ndarray of float32, shape (number, d, d)
        "plain noise": as `plain_noise` makes it; "contamination": something smooth, or patches of one height
        with a sharp rim, of any size and strength, on plain noise and on any images of the set.
    """
    box = images.shape[1]
    noise = plain_noise(images, number, 0.5 * box, int(rng.integers(2**31)))
    half = number // 2
    ground = np.concatenate([noise[:half], others[rng.integers(0, len(others), number - half)]])
    contamination = ground + _structures(rng, number, box)
    normalize_background(contamination, 0.5 * box)
    return {"plain noise": noise, "contamination": contamination}


def _structures(rng: np.random.Generator, number: int, box: int) -> Images:
    """Draw random fields of one width each; every other one is cut at a level, so that patches remain."""
    # Twice the box, so that nothing continues on the other side.
    canvas = 2 * box
    square = scipy.fft.fftfreq(canvas)[:, None] ** 2 + scipy.fft.rfftfreq(canvas) ** 2
    widths, strengths = (_log_uniform(rng, number, limits)[:, None, None] for limits in (STRUCTURE, STRENGTH))
    widths *= box
    blur = np.exp(-2 * (np.pi * widths) ** 2 * square).astype(np.float32)
    fields = _back(_white(rng, number, canvas) * blur, canvas)
    structures = fields[:, :box, :box] / fields.std(axis=(1, 2), keepdims=True)
    # The field changes by about one deviation a width, so that the rim is about a pixel wide.
    cut = structures[1::2]
    level, sign = rng.uniform(-RIM, RIM, (len(cut), 1, 1)), rng.choice((-1, 1), (len(cut), 1, 1))
    structures[1::2] = sign * np.clip((cut - level) * widths[1::2] + 0.5, 0, 1)
    return (strengths * structures).astype(np.float32)


def _white(rng: np.random.Generator, number: int, box: int) -> Array:
    """Draw the transforms of images of white noise."""
    return _spectra(rng.standard_normal((number, box, box), dtype=np.float32))


def _spectra(images: Images) -> Array:
    spectra: Array = scipy.fft.rfft2(images, workers=1)
    return spectra


def _back(spectra: Array, box: int) -> Images:
    images: Images = scipy.fft.irfft2(spectra, s=(box, box), workers=1)
    return images


def _log_uniform(rng: np.random.Generator, number: int, limits: tuple[float, float]) -> Floats:
    low, high = limits
    return low * (high / low) ** rng.random(number)


def _steps(
    rng: np.random.Generator, number: int, reach: tuple[float, float], box: int
) -> tuple[Indices, Indices]:
    """Draw steps in whole pixels: any direction, and a length between two parts of the box."""
    angle, length = rng.uniform(0, 2 * np.pi, number), rng.uniform(*reach, number) * box
    return np.rint(length * np.sin(angle)).astype(np.intp), np.rint(length * np.cos(angle)).astype(np.intp)


def _rolled(images: Images, rows: Indices, columns: Indices) -> Images:
    line = np.arange(images.shape[1])
    y, x = ((line - steps[:, None]) % len(line) for steps in (rows, columns))
    return images[np.arange(len(images))[:, None, None], y[:, :, None], x[:, None, :]]


def _copies(images: Images, rng: np.random.Generator) -> Images:
    """Move each image by up to a pixel, and turn it by a random angle about its centre."""
    n = len(images)
    moves = rng.uniform(-MOVED, MOVED, (n, 2))
    return move_images(images, rng.uniform(0, 360, n), moves, np.zeros(n, dtype=bool))


def estimate_errors(
    keep: Bools,
    junk_probability: Floats,
    rejected: Mapping[str, Bools],
    shares: tuple[float, float],
    *,
    other: Floats | None = None,
    apart: float = 1.0,
    hump: float = 0.0,
) -> EstimatedErrors:
    """Say how well a set was sorted, from its own probabilities and from decoys.

    Parameters
    ----------
    keep : ndarray of bool, shape (n,)
    junk_probability : ndarray of float64, shape (n,)
        1 for images that cannot be judged.
    rejected : mapping of str to ndarray of bool
        For each kind of decoys, whether each would be rejected. Nothing was learned from these decoys.
    shares : tuple of float
        Share of junk, estimated in two ways, as `Combination.shares`.
    other : ndarray of float64, shape (n,), optional
        Junk probabilities by the second of the two ways (`probability_by_odds`).
    apart : float
        How well decoys that are particles are told from decoys that are junk (`told_apart`).
    hump : float
        Share of the images that may be junk or weaker particles (`second_hump`).

    Returns
    -------
    errors : EstimatedErrors

    Notes
    -----
    Sums of calibrated probabilities are the expected numbers of particles and of junk, kept and rejected.
    Their intervals cover the scatter of so many images, half of the way to the result of the other estimate,
    and, for what the model of the scores does not know, 0.06 and 0.6 of the expected balanced error. The
    decoys show how each kind of junk fares, with Wilson's intervals. The particles among the decoys are
    copies of the clearest ones, so their share is an upper limit.

    Examples
    --------
    400 images, a quarter of them junk, where the probabilities leave little doubt:

    >>> import numpy as np
    >>> import fastsort as fs
    >>> junk_probability = np.repeat([0.02, 0.98], [300, 100])
    >>> decoys = {"noise": np.ones(150, dtype=bool), "particle": np.arange(150) < 3}
    >>> errors = fs.estimate_errors(junk_probability < 0.5, junk_probability, decoys, (0.26, 0.27))
    >>> errors.known
    True
    >>> round(errors.true_positive_rate.value, 3), round(errors.by_kind["particle"].value, 3)
    (0.993, 0.98)
    """
    judged = np.isfinite(junk_probability)
    p, kept = junk_probability[judged], keep[judged]
    by_kind = {kind: _wilson(int(hit.sum()), len(hit)) for kind, hit in rejected.items() if len(hit)}
    if GOOD in by_kind:
        value, low, high = by_kind[GOOD]
        by_kind[GOOD] = Estimate(1 - value, 1 - high, 1 - low)
    counts = {kind: len(hit) for kind, hit in rejected.items()}
    rates = _rates(p, kept)
    other_rates = rates if other is None else _rates(other[judged], kept)
    doubtful = not math.isfinite(sum(shares))
    # Of the best verdict, whatever is kept.
    missed = [1 - part / whole for part, whole in _rates(p, p <= 0.5)[:2] if whole >= 1]
    off = OFF + OVERLAP * sum(missed) / max(len(missed), 1)
    kept_particles, rejected_junk, precision, share = (
        _interval(*pair, off, doubtful) for pair in zip(rates, other_rates, strict=True)
    )
    # Images that could be judged if there were not too few of them have no probability.
    number = int((~judged).sum()) if (p == 1).all() and not judged.all() else len(p)
    remark = _remark(number, float((1 - p).sum()), shares, apart, hump, by_kind)
    return EstimatedErrors(
        kept_particles, rejected_junk, precision, share, by_kind, counts, not remark, remark
    )


def _rates(p: Floats, kept: Bools) -> tuple[tuple[float, float], ...]:
    """Expected parts and wholes: particles kept, junk rejected, particles among the kept, junk of all."""
    good = 1 - p
    return (
        (float(good[kept].sum()), float(good.sum())),
        (float(p[~kept].sum()), float(p.sum())),
        (float(good[kept].sum()), float(kept.sum())),
        (float(p.sum()), float(len(p))),
    )


def _interval(share: tuple[float, float], other: tuple[float, float], off: float, doubtful: bool) -> Estimate:
    """Return a share with an interval that covers the scatter, the other estimate, and errors of the model.

    Either share is a part and a whole, both as expected numbers of images.
    """
    if doubtful or share[1] < 1:
        return Estimate(math.nan, math.nan, math.nan)
    value = min(share[0] / share[1], 1.0)
    ends = [value, 0.5 * (value + min(other[0] / other[1], 1.0)) if other[1] >= 1 else value]
    wide = math.hypot(off, Z95 * math.sqrt(max(value * (1 - value), 1 / share[1]) / share[1]))
    return Estimate(value, max(min(ends) - wide, 0.0), min(max(ends) + wide, 1.0))


def _wilson(hits: int, number: int) -> Estimate:
    """Wilson's score interval (J. Am. Stat. Assoc. 22, 1927)."""
    value, square = hits / number, Z95**2 / number
    middle = (value + square / 2) / (1 + square)
    wide = Z95 * math.sqrt(value * (1 - value) / number + square / (4 * number)) / (1 + square)
    return Estimate(value, max(middle - wide, 0.0), min(middle + wide, 1.0))


def _remark(
    n: int,
    particles: float,
    shares: tuple[float, float],
    apart: float,
    hump: float,
    by_kind: Mapping[str, Estimate],
) -> str:
    """Say why the figures are not to be trusted; empty if they are."""
    if n < MIN_IMAGES:
        return f"{n} images are too few to say; it takes {MIN_IMAGES}"
    if apart < TOLD_APART:
        return (
            "the best images look hardly more like one another than like junk: either there are next to no "
            "particles, or they are too faint to be told"
        )
    if particles < 0.05 * n:
        return "hardly any image looks like a particle of its own kind: there is nothing to compare with"
    if not math.isfinite(sum(shares)) or abs(shares[0] - shares[1]) > DISAGREE:
        return (
            f"particles and junk are not told apart well enough: the junk is {100 * shares[0]:.0f} % by the "
            f"shape of the scores and {100 * shares[1]:.0f} % by the scores taken for odds"
        )
    if hump:
        return (
            f"{100 * hump:.0f} % of the images score between the best ones and junk: their scores do not "
            "tell whether they are weaker particles or junk of a kind of its own"
        )
    if GOOD in by_kind and by_kind[GOOD].value < 0.5:
        return f"only {100 * by_kind[GOOD].value:.0f} % of the decoys that are particles are kept"
    caught = [by_kind[kind].value for kind in JUNK if kind in by_kind]
    if caught and float(np.mean(caught)) < 0.5:
        return f"only {100 * float(np.mean(caught)):.0f} % of the decoys that are junk are rejected"
    return ""
