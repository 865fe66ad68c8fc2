"""Denoising by a generator that was trained against a critic, on images whose clean versions are known."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from fastsort._brief import brief
from fastsort._checks import (
    InputError,
    check_count,
    check_images,
    check_not_empty,
    check_positive,
)
from fastsort._progress import Progress
from fastsort._saved import load, save
from fastsort._types import Array, FilePath, Floats, Images, Singles
from fastsort.images.ctf import contrast_transfer, phase_flip
from fastsort.invariants.references import soft_disk
from fastsort.invariants.transform import move_images
from fastsort.particles.table import CtfParameters
from fastsort.simulate.projections import check_volume, images_at, prepare_volume, project_spectra

MIN_BOX, MAX_BOX, BOX_STEP = 16, 256, 8
# Planes of the generator at 1/2, 1/4 and 1/8 of the box, and of the critic at 1/4, 1/8 and 1/16.
WIDTHS = (32, 64, 128)
CRITIC_WIDTHS = (32, 64, 128)
# Pairs of convolutions at 1/8 of the box, where each sees most of the particle.
N_BLOCKS = 3
RATE, CRITIC_RATE, WARM_UP = 2e-3, 5e-4, 50
# Gulrajani et al., section 4.
PENALTY = 10.0
# Clean images count as at least this strong: mean square of a pixel, where the noise has 1.
LEAST_POWER = 1e-4
# The strength of the signal is guessed from means of 8 x 8 pixels, whose noise has 1/64.
COARSE, LEAST_STRENGTH = 8, 0.05
PIXELS_AT_ONCE = 2**14
N_SCALED = 256
_KIND = "fastsort-gan"

Weights: TypeAlias = dict[str, Singles]
Pairs: TypeAlias = Callable[[np.random.Generator, int], tuple[Images, Images]]


@brief
class GanWeights(NamedTuple):
    """A trained generator, and how its training went.

    Attributes
    ----------
    weights : dict of str to ndarray of float32
        Kernels and offsets of the generator's convolutions. The critic is not kept.
    box : int
        Side in pixels of the images that it denoises.
    n_steps : int
        Steps of the training.
    seconds : float
        Time that the training took.
    losses : ndarray of float32, shape (n_steps, 3)
        For each step and its batch: the relative error of the generator, what the critic says of clean
        images above what it says of denoised ones, and the gradient penalty.
    """

    weights: Weights
    box: int
    n_steps: int
    seconds: float
    losses: Singles


def train_gan(
    pairs: Pairs,
    box: int,
    *,
    n_steps: int = 1000,
    batch: int = 16,
    weight: float = 1000.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> GanWeights:
    """Train a generator that makes clean images of noisy ones, against a critic that tells them apart.

    Parameters
    ----------
    pairs : callable
        Called as ``pairs(rng, n)``: returns noisy and clean images, both float32 (n, box, box). The noise is
        white, of mean 0 and deviation 1. `projection_pairs` and `average_pairs` make such a callable.
    box : int
        Side of the images in pixels: a multiple of 8 from 16 to 256.
    n_steps : int
        Steps; the rate of learning falls to 0 over them.
    batch : int
        Pairs a step.
    weight : float
        How much the relative error counts against the word of the critic. With less, denoised images look
        more like clean ones, and are farther from their own.
    seed : int
        The same seed gives the same weights on the same machine.
    progress : callable, optional
        Called as ``progress(done, total)`` after every step.

    Returns
    -------
    weights : GanWeights

    Raises
    ------
    InputError
        If JAX is not installed, a parameter is out of range, `pairs` returns anything else than finite
        images of this box, or the training diverges.

    Notes
    -----
    The generator G is an auto-encoder: convolutions at 1/2, 1/4 and 1/8 of the box and back, with the planes
    of the same size added on the way back [1]_. Where the size changes, the kernel is as large as the
    stride, so that kernels do not overlap and leave no chequerboard. The critic D is trained by the
    Wasserstein distance with gradient penalty [2]_. With y noisy, x clean, z between x and G(y), and all
    images divided by the root mean square of x before the critic sees them, a step lowers

        mean of -D(G(y)) + `weight` |G(y) - x|^2 / |x|^2   over the generator, then
        mean of D(G(y)) - D(x) + 10 (|grad D(z)| - 1)^2    over the critic.

    The critic gets one step for one of the generator, not five, because the error leads. The penalty, which
    costs most, is taken over a quarter of the batch.

    What the generator knows is the molecule of its training. Trained on another molecule, it may be worse
    than a filter that knows none.

    References
    ----------
    .. [1] Ronneberger, Fischer, Brox. U-Net: convolutional networks for biomedical image segmentation.
       MICCAI 2015.
    .. [2] Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville. Improved training of Wasserstein GANs. NeurIPS
       2017, equation 3.
    """
    box = _check_gan_box(box)
    n_steps, batch = check_count("n_steps", n_steps), check_count("batch", batch)
    weight = check_positive("weight", weight)
    jax, _ = _jax()
    begin = time.perf_counter()
    starts, data = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    generator = jax.device_put(_first_weights(_generator_shapes(), starts))
    critic = jax.device_put(_first_weights(_critic_shapes(), starts))
    step, first_state = _training(n_steps, weight)
    state = first_state(generator, critic)
    losses = []
    for done in range(n_steps):
        noisy, clean = _checked_pairs(pairs, data, batch, box)
        between = data.random((-(-batch // 4), 1, 1), dtype=np.float32)
        generator, critic, state, loss = step(generator, critic, state, noisy, clean, between)
        losses.append(loss)
        # JAX computes while the next pairs are made, but no further ahead, as pairs would heap up.
        if done:
            losses[done - 1] = np.asarray(losses[done - 1])
        if progress is not None:
            progress(done + 1, n_steps)
    course = np.array(losses, dtype=np.float32)
    if not np.isfinite(course).all():
        first = int(np.flatnonzero(~np.isfinite(course).all(axis=1))[0])
        raise InputError(
            f"the training diverged at step {first + 1} of {n_steps}: check that the noise of the pairs has "
            "deviation 1."
        )
    trained = {name: np.array(array) for name, array in generator.items()}
    return GanWeights(trained, box, n_steps, time.perf_counter() - begin, course)


def gan(images: npt.ArrayLike, weights: GanWeights) -> Images:
    """Denoise images by a trained generator.

    Parameters
    ----------
    images : array_like, shape (n, d, d)
        With white noise of mean 0 and deviation 1; never modified. Particles have the contrast and the size
        that they had in the training.
    weights : GanWeights
        From `train_gan` or `load_gan`, for this box.

    Returns
    -------
    denoised : ndarray of float32, shape (n, d, d)
        NaN where an image has a NaN or an infinity.

    Raises
    ------
    InputError
        If JAX is not installed, the images are not square, or `weights` are for another box.

    Notes
    -----
    Every image is denoised in eight positions, turned by quarters and mirrored, and the results are turned
    back and averaged: the mean of eight estimates is at most as wrong as they are on average.
    """
    images = check_images(images)
    if len(images) and images.shape[1] != weights.box:
        raise InputError(
            f"these weights are for images of {weights.box} px; got {images.shape[1]} px: crop the images, "
            "or train for their box."
        )
    jax, _ = _jax()
    generator = jax.device_put(weights.weights)
    denoised = np.empty_like(images)
    at_once = max(1, PIXELS_AT_ONCE // max(1, weights.box**2))
    for start in range(0, len(images), at_once):
        part = images[start : start + at_once]
        usable = np.isfinite(part).all(axis=(1, 2))
        # The last batch is filled up, because every size would be compiled anew.
        full = np.zeros((at_once, *part.shape[1:]), np.float32)
        full[: len(part)][usable] = part[usable]
        result = np.array(_denoiser()(generator, full)[: len(part)])
        result[~usable] = np.nan
        denoised[start : start + at_once] = result
    return denoised


def projection_pairs(
    volume: npt.ArrayLike,
    box: int,
    *,
    scale: float = 1.0,
    snr: tuple[float, float] = (0.01, 0.8),
    shift: float = 0.02,
    ctf: CtfParameters | None = None,
    pixel_size: float = 1.0,
) -> Pairs:
    """Make pairs of noisy and clean projections of a volume, seen from anywhere.

    Parameters
    ----------
    volume : ndarray, shape (d, d, d)
        Density as [z, y, x], in any unit, with the contrast of the images; the particle lies about the
        voxel d // 2.
    box : int
        Side of the images in pixels: a multiple of 8 from 16 to 256.
    scale : float
        Voxels a pixel.
    snr : (float, float)
        Lowest and highest signal-to-noise ratio; its logarithm is uniform between them. It is the variance of
        the clean images, over all pixels of many, over that of the noise.
    shift : float
        Standard deviation of the particle's place on each axis, in parts of the box.
    ctf : CtfParameters, optional
        Each noisy image is seen through one of these, drawn at random, and its phases are flipped, as by
        `phase_flip`. The clean image is not seen through it.
    pixel_size : float
        Angstroms a pixel of the images; used with `ctf` alone.

    Returns
    -------
    pairs : callable
        Called as ``pairs(rng, n)``: returns noisy and clean, float32 (n, box, box), noise of deviation 1.

    Raises
    ------
    InputError
        If the volume is flat or not a cube of finite numbers, or a parameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsort.denoising.gan import projection_pairs
    >>> volume = np.zeros((24, 24, 24))
    >>> volume[8:16, 10:14, 9:17] = 1
    >>> noisy, clean = projection_pairs(volume, 24, snr=(0.1, 0.1))(np.random.default_rng(0), 200)
    >>> noisy.shape, round(float(clean.var()), 1), round(float((noisy - clean).var()), 1)
    ((200, 24, 24), 0.1, 1.0)
    """
    volume, box = check_volume(volume), _check_gan_box(box)
    scale = check_positive("scale", scale, "voxels a pixel")
    pixel_size = check_positive("pixel_size", pixel_size, "A/px")
    limits, spread = _check_snr(snr), _check_shift(shift) * box
    if ctf is not None:
        check_not_empty(len(ctf.defocus_u), "ctf")
    projector = prepare_volume(volume, max(box, math.ceil(len(volume) / scale)), scale)

    def spectra_of(rng: np.random.Generator, n: int) -> Array:
        return project_spectra(projector, Rotation.random(n, random_state=rng).as_matrix())

    deviation = _deviation(images_at(spectra_of(np.random.default_rng(0), N_SCALED), box), "the volume")

    def pairs(rng: np.random.Generator, n: int) -> tuple[Images, Images]:
        spectra = spectra_of(rng, n)
        spectra *= (_strengths(rng, n, limits) / deviation)[:, None, None]
        shifts = rng.normal(0, spread, (n, 2))
        clean = images_at(spectra.copy(), box, shifts)
        noise = rng.standard_normal((n, box, box), np.float32)
        if ctf is None:
            return clean + noise, clean
        drawn = ctf.of(rng.integers(len(ctf.defocus_u), size=n))
        spectra *= contrast_transfer(drawn, projector.box, pixel_size)
        return phase_flip(images_at(spectra, box, shifts) + noise, drawn, pixel_size), clean

    return pairs


def average_pairs(
    averages: npt.ArrayLike, *, snr: tuple[float, float] = (0.01, 0.8), shift: float = 0.02
) -> Pairs:
    """Make pairs of noisy and clean images from class averages, turned, mirrored and moved.

    Parameters
    ----------
    averages : array_like, shape (m, d, d)
        Intensities in any unit with a background of 0; all that lies outside the disk of the box is left
        out. d is a multiple of 8 from 16 to 256. What the averages blur, the denoised images blur.
    snr, shift
        As for `projection_pairs`.

    Returns
    -------
    pairs : callable
        Called as ``pairs(rng, n)``: returns noisy and clean, float32 (n, d, d), noise of deviation 1.

    Raises
    ------
    InputError
        If the averages are not finite squares, all are flat, or a parameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsort.denoising.gan import average_pairs
    >>> averages = np.zeros((2, 32, 32))
    >>> averages[0, 12:20, 8:24] = averages[1, 12:20, 12:20] = 1
    >>> noisy, clean = average_pairs(averages)(np.random.default_rng(0), 5)
    >>> noisy.shape
    (5, 32, 32)
    """
    averages = check_images(averages)
    check_not_empty(len(averages), "averages")
    box = _check_gan_box(averages.shape[1])
    if not np.isfinite(averages).all():
        raise InputError(
            "averages must be finite; got NaN or infinity: leave out the classes without images."
        )
    limits, spread = _check_snr(snr), _check_shift(shift) * box
    averages *= soft_disk(box)
    deviation = _deviation(averages, "averages")

    def pairs(rng: np.random.Generator, n: int) -> tuple[Images, Images]:
        chosen = averages[rng.integers(len(averages), size=n)]
        angles, shifts = rng.uniform(0, 360, n), rng.normal(0, spread, (n, 2))
        clean = move_images(chosen, angles, shifts, rng.random(n) < 0.5)
        clean *= (_strengths(rng, n, limits) / deviation)[:, None, None]
        return clean + rng.standard_normal(clean.shape, np.float32), clean

    return pairs


def save_gan(weights: GanWeights, path: FilePath) -> None:
    """Write a trained generator to an .npz file, whole or not at all.

    Parameters
    ----------
    weights : GanWeights
    path : path
        Replaced if it is there. Until then the file grows beside it, as ``path.partial``.

    Raises
    ------
    OSError
        When the disk refuses; no file is left behind.
    """
    save(path, {"kind": _KIND, **weights._asdict()})


def load_gan(path: FilePath) -> GanWeights:
    """Read what `save_gan` has written.

    Parameters
    ----------
    path : path

    Returns
    -------
    weights : GanWeights
        Equal to those saved, bit for bit.

    Raises
    ------
    InputError
        If the file cannot be read, is damaged or holds something else.
    """
    value = load(path)
    if not isinstance(value, dict) or value.get("kind") != _KIND:
        raise InputError(f"{path} holds no trained generator: give a file that save_gan has written.")
    weights = value.get("weights")
    expected = {name: (shape, np.dtype(np.float32)) for name, shape in _generator_shapes().items()}
    found = {
        name: (array.shape, array.dtype)
        for name, array in (weights.items() if isinstance(weights, dict) else ())
        if isinstance(array, np.ndarray)
    }
    if found != expected or not set(GanWeights._fields) <= set(value):
        raise InputError(f"{path} holds a generator of another build: train it again with this version.")
    return GanWeights(**{name: value[name] for name in GanWeights._fields})


# The networks: dicts of arrays, and functions of them.


def _conv(jax: Any, weights: Any, name: str, planes: Any, stride: int = 1, *, padding: str = "SAME") -> Any:
    """Convolve planes (n, y, x, c) with the kernel of this name, and add its offsets."""
    axes = ("NHWC", "HWIO", "NHWC")
    kernel = weights[f"{name}.kernel"]
    convolved = jax.lax.conv_general_dilated(
        planes, kernel, (stride, stride), padding, dimension_numbers=axes
    )
    return convolved + weights[f"{name}.offset"]


def _folded(planes: Any, block: int) -> Any:
    """Turn blocks of pixels into planes: (n, y, x, c) to (n, y / block, x / block, c * block^2)."""
    n, y, x, c = planes.shape
    blocks = planes.reshape(n, y // block, block, x // block, block, c)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, y // block, x // block, c * block * block)


def _unfolded(planes: Any, block: int) -> Any:
    """Undo `_folded`."""
    n, y, x, c = planes.shape
    blocks = planes.reshape(n, y, x, block, block, c // (block * block))
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, y * block, x * block, c // (block * block))


def _generate(jax: Any, weights: Any, images: Any) -> Any:
    """Denoise images (n, d, d)."""
    bent = jax.nn.leaky_relu
    strength = _signal_strength(jax.numpy, images)
    pixels = _folded(images[..., None], 2)
    known = jax.numpy.broadcast_to(jax.numpy.log(strength)[..., None], (*pixels.shape[:3], 1))
    half = bent(_conv(jax, weights, "in", jax.numpy.concatenate([pixels, known], axis=-1)))
    quarter = bent(_conv(jax, weights, "down1", _folded(half, 2)))
    quarter = bent(_conv(jax, weights, "quarter1", quarter))
    eighth = bent(_conv(jax, weights, "down2", _folded(quarter, 2)))
    for i in range(N_BLOCKS):
        inside = bent(_conv(jax, weights, f"block{i}a", eighth))
        eighth = eighth + _conv(jax, weights, f"block{i}b", inside)
    quarter = bent(quarter + _unfolded(_conv(jax, weights, "up2", eighth), 2))
    quarter = bent(_conv(jax, weights, "quarter2", quarter))
    half = bent(half + _unfolded(_conv(jax, weights, "up1", quarter), 2))
    half = bent(_conv(jax, weights, "half", half))
    return strength * _unfolded(_conv(jax, weights, "out", half), 2)[..., 0]


def _signal_strength(numpy: Any, images: Any) -> Any:
    """Guess the root mean square of the clean images from coarse pixels: (n, 1, 1)."""
    n, d, _ = images.shape
    coarse = images.reshape(n, d // COARSE, COARSE, d // COARSE, COARSE).mean(axis=(2, 4))
    power = (coarse**2).mean(axis=(1, 2)) - 1 / COARSE**2
    return numpy.sqrt(numpy.maximum(power, LEAST_STRENGTH**2))[:, None, None]


def _criticize(jax: Any, weights: Any, images: Any) -> Any:
    """Say how clean images (n, d, d) look: (n,)."""
    bent = jax.nn.leaky_relu
    planes = bent(_conv(jax, weights, "in", _folded(images[..., None], 4)))
    planes = bent(_conv(jax, weights, "down1", planes, 2))
    planes = bent(_conv(jax, weights, "down2", planes, 2))
    return _conv(jax, weights, "out", planes).mean(axis=(1, 2, 3))


def _generator_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the generator's arrays."""
    half, quarter, eighth = WIDTHS
    kernels = {
        "in": (3, 3, 5, half),
        "down1": (1, 1, 4 * half, quarter),
        "quarter1": (3, 3, quarter, quarter),
        "down2": (1, 1, 4 * quarter, eighth),
        **{f"block{i}{part}": (3, 3, eighth, eighth) for i in range(N_BLOCKS) for part in "ab"},
        "up2": (1, 1, eighth, 4 * quarter),
        "quarter2": (3, 3, quarter, quarter),
        "up1": (1, 1, quarter, 4 * half),
        "half": (3, 3, half, half),
        "out": (1, 1, half, 4),
    }
    return _with_offsets(kernels)


def _critic_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the critic's arrays."""
    first, second, third = CRITIC_WIDTHS
    kernels = {
        "in": (3, 3, 16, first),
        "down1": (4, 4, first, second),
        "down2": (4, 4, second, third),
        "out": (1, 1, third, 1),
    }
    return _with_offsets(kernels)


def _with_offsets(kernels: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in kernels.items():
        shapes |= {f"{name}.kernel": shape, f"{name}.offset": shape[-1:]}
    return shapes


def _first_weights(shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> Weights:
    """Draw kernels that keep the variance of planes (He et al., ICCV 2015); ends of blocks begin small."""
    weights: Weights = {}
    for name, shape in shapes.items():
        if name.endswith(".offset"):
            weights[name] = np.zeros(shape, np.float32)
            continue
        deviation = math.sqrt(2 / math.prod(shape[:-1]))
        if name == "out.kernel" or name.endswith("b.kernel"):
            deviation *= 0.1
        weights[name] = (deviation * rng.standard_normal(shape)).astype(np.float32)
    return weights


@lru_cache(maxsize=1)
def _training(n_steps: int, weight: float) -> tuple[Any, Any]:
    """Return one compiled step of the training, and what makes the first state of its optimizers."""
    jax, optax = _jax()
    numpy = jax.numpy
    warm_up = min(WARM_UP, n_steps // 4)

    def rising_and_falling(rate: float) -> Any:
        return optax.warmup_cosine_decay_schedule(0.1 * rate, rate, warm_up, n_steps)

    tutor = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rising_and_falling(RATE)))
    judge = optax.adam(rising_and_falling(CRITIC_RATE), b1=0.0, b2=0.9)

    def critic_loss(critic: Any, clean: Any, denoised: Any, between: Any) -> Any:
        some = slice(len(between))
        mixed = between * clean[some] + (1 - between) * denoised[some]
        slope = jax.grad(lambda images: _criticize(jax, critic, images).sum())(mixed)
        steepness = numpy.sqrt((slope**2).sum(axis=(1, 2)) + 1e-12)
        penalty = ((steepness - 1) ** 2).mean()
        # Both kinds go through the critic as one batch: large products are faster.
        said = _criticize(jax, critic, numpy.concatenate([clean, denoised]))
        lead = said[: len(clean)].mean() - said[len(clean) :].mean()
        return PENALTY * penalty - lead, (lead, penalty)

    def generator_loss(generator: Any, critic: Any, noisy: Any, clean: Any) -> Any:
        power = numpy.maximum((clean**2).mean(axis=(1, 2), keepdims=True), LEAST_POWER)
        denoised = _generate(jax, generator, noisy)
        error = ((denoised - clean) ** 2 / power).mean()
        seen = denoised / numpy.sqrt(power)
        praise = _criticize(jax, critic, seen).mean()
        return error - praise / weight, (error, seen, clean / numpy.sqrt(power))

    def step(generator: Any, critic: Any, state: Any, noisy: Any, clean: Any, between: Any) -> Any:
        tutor_state, judge_state = state
        slope, (error, seen, ideal) = jax.grad(generator_loss, has_aux=True)(generator, critic, noisy, clean)
        change, tutor_state = tutor.update(slope, tutor_state)
        generator = optax.apply_updates(generator, change)
        # The critic learns from the images that the generator has just made, which saves making them again.
        slope, (lead, penalty) = jax.grad(critic_loss, has_aux=True)(critic, ideal, seen, between)
        change, judge_state = judge.update(slope, judge_state)
        critic = optax.apply_updates(critic, change)
        return generator, critic, (tutor_state, judge_state), numpy.stack([error, lead, penalty])

    return jax.jit(step), lambda generator, critic: (tutor.init(generator), judge.init(critic))


@lru_cache(maxsize=1)
def _denoiser() -> Any:
    """Return the compiled generator, averaged over eight positions."""
    jax, _ = _jax()
    numpy = jax.numpy
    positions = [(turns, mirrored) for turns in range(4) for mirrored in (False, True)]

    def denoise(generator: Any, images: Any) -> Any:
        # One batch of all positions is compiled eight times as fast as eight batches.
        placed = numpy.concatenate([_placed(numpy, images, *position) for position in positions])
        results = _generate(jax, generator, placed).reshape(len(positions), *images.shape)
        return (
            sum(
                _put_back(numpy, result, *position)
                for result, position in zip(results, positions, strict=True)
            )
            / 8
        )

    return jax.jit(denoise)


def _placed(numpy: Any, images: Any, turns: int, mirrored: bool) -> Any:
    """Mirror images, then turn them by quarters about pixel d // 2; they count as periodic."""
    if mirrored:
        images = numpy.roll(images[:, :, ::-1], 1, axis=2)
    for _ in range(turns):
        images = numpy.roll(images.swapaxes(1, 2)[:, :, ::-1], 1, axis=2)
    return images


def _put_back(numpy: Any, images: Any, turns: int, mirrored: bool) -> Any:
    """Undo `_placed`."""
    return _placed(numpy, _placed(numpy, images, (4 - turns) % 4, False), 0, mirrored)


# What users give.


def _jax() -> tuple[Any, Any]:
    """Return the modules jax and optax."""
    try:
        return import_module("jax"), import_module("optax")
    except ImportError:
        raise InputError(
            "a generator needs JAX and optax, which are not installed: pip install 'fastsort[gan]'."
        ) from None


def _check_gan_box(box: int) -> int:
    box = check_count("box", box)
    if not MIN_BOX <= box <= MAX_BOX or box % BOX_STEP:
        raise InputError(
            f"box must be a multiple of {BOX_STEP} from {MIN_BOX} to {MAX_BOX} px; got {box} px: "
            "crop the images."
        )
    return box


def _check_snr(snr: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = snr
    except (TypeError, ValueError):
        raise InputError(f"snr must be two numbers, the lowest and the highest; got {snr!r}.") from None
    low, high = check_positive("snr", low), check_positive("snr", high)
    if low > high:
        raise InputError(
            f"snr must be the lowest and the highest; got {low:g} and {high:g}: turn them round."
        )
    return low, high


def _check_shift(shift: float) -> float:
    return 0.0 if shift == 0 else check_positive("shift", shift, "of the box")


def _deviation(clean: Images, name: str) -> float:
    """Return the standard deviation over all pixels of all images."""
    deviation = float(clean.std(dtype=np.float64))
    if not deviation > 0:
        raise InputError(f"{name} must show a particle; got the same value everywhere: give another.")
    return deviation


def _strengths(rng: np.random.Generator, n: int, limits: tuple[float, float]) -> Singles:
    """Draw standard deviations of clean images, for noise of deviation 1."""
    low, high = limits
    logarithm: Floats = rng.uniform(math.log(low), math.log(high), n)
    return np.exp(logarithm / 2).astype(np.float32)


def _checked_pairs(pairs: Pairs, rng: np.random.Generator, n: int, box: int) -> tuple[Images, Images]:
    """Draw pairs; refuse what is not two finite stacks of this box."""
    noisy, clean = (np.asarray(images, np.float32) for images in pairs(rng, n))
    for name, images in (("noisy", noisy), ("clean", clean)):
        if images.shape != (n, box, box):
            raise InputError(
                f"pairs must return {name} images of shape {(n, box, box)}; got {images.shape}: "
                "make them for the box that is trained."
            )
        if not np.isfinite(images).all():
            raise InputError(f"pairs must return finite images; got NaN or infinity among the {name} ones.")
    return noisy, clean
