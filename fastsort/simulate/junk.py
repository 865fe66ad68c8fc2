"""Junk that pickers take for particles: ice, carbon film, textures, photographs, broken pixels."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import scipy.fft

from fastsort._types import Floats, Images, Singles
from fastsort.images.picks import blob_response

# A picker looks for the best place in a field that is so many boxes wide.
PICKED_FIELD = 3


def ice(rng: np.random.Generator, box: int) -> Singles:
    """Draw a bright or dark blob with a sharp rim, 2 to 8 high, like a piece of crystalline ice.

    Its mean radius is 0.10 to 0.35 of the box. The outline is wavy; the centre
    lies at most 0.25 of the box from the middle along each axis.
    """
    radius = rng.uniform(0.10, 0.35) * box
    height = rng.uniform(2, 8) * rng.choice((-1, 1))
    inside = wavy_depth(rng, box, radius, rng.uniform(-0.25, 0.25, 2) * box)
    return (height * np.clip(inside + 0.5, 0, 1)).astype(np.float32)


def wavy_depth(rng: np.random.Generator, box: int, radius: float, middle: npt.ArrayLike = (0, 0)) -> Floats:
    """Return how deep pixels lie inside a wavy outline about `middle`, (y, x) from that of the box."""
    y, x = (line - shift for line, shift in zip(_grid(box), np.asarray(middle), strict=True))
    distance, direction = np.hypot(y, x), np.arctan2(y, x)
    waves = np.arange(2, 5)
    outline = np.cos(waves[:, None, None] * direction + rng.uniform(0, 2 * np.pi, (3, 1, 1)))
    depth: Floats = radius * (1 + np.tensordot(rng.uniform(0, 0.10, 3), outline, 1)) - distance
    return depth


def carbon(rng: np.random.Generator, box: int) -> Singles:
    """Draw the straight edge of a textured carbon film, 1 to 4 high.

    The edge passes the middle at a distance of at most 0.3 of the box. The film is
    brighter than the hole by its height; the standard deviation of its texture is half of that.
    """
    height = rng.uniform(1, 4)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = _grid(box)
    inside = y * math.sin(angle) + x * math.cos(angle) - rng.uniform(-0.3, 0.3) * box
    film = 1 + 0.5 * cloud(rng, box, (1 / 48, 1 / 16))
    return (height * film * np.clip(inside + 0.5, 0, 1)).astype(np.float32)


def texture(rng: np.random.Generator, box: int) -> Singles:
    """Draw smooth noise of several scales, with a standard deviation of 0.7 to 1.5."""
    return (rng.uniform(0.7, 1.5) * cloud(rng, box, (1 / 32, 1 / 16, 1 / 8, 1 / 4))).astype(np.float32)


def beneath_picks(rng: np.random.Generator, size: int, box: int) -> Singles | float:
    """Draw what lies beneath the noise in which a picker takes maxima: nothing, carbon or small ice.

    Half of the fields are bare. A quarter has the texture of carbon film, with a standard deviation of 0.3
    to 1, and a quarter is strewn with pieces of ice.
    """
    ground = rng.choice(("bare", "bare", "carbon", "ice"))
    if ground == "carbon":
        return (rng.uniform(0.3, 1.0) * cloud(rng, size, (box / size / 48, box / size / 16))).astype(
            np.float32
        )
    if ground == "ice":
        field = np.zeros((size, size), dtype=np.float32)
        y, x = _grid(size)
        for _ in range(rng.integers(2, 6)):
            middle, radius = rng.uniform(-0.5, 0.5, 2) * size, rng.uniform(0.05, 0.20) * box
            distance = np.hypot(y - middle[0], x - middle[1])
            field += rng.uniform(0.5, 2) * np.clip(radius - distance + 0.5, 0, 1).astype(np.float32)
        return field
    return 0.0


def best_pick(field: Images, radius: float, box: int) -> Images:
    """Cut out the box about the place where a blob picker responds most.

    Parameters
    ----------
    field : ndarray of float32, shape (size, size)
    radius : float
        Of the particle that is looked for, in pixels.
    box : int

    Returns
    -------
    image : ndarray of float32, shape (box, box)

    Notes
    -----
    The picker is a difference of two Gaussians that responds most to bright disks of the particle's size.
    """
    response = blob_response(field[None], radius)[0]
    half, room = box // 2, len(field) - box
    inner = response[half : half + room + 1, half : half + room + 1]
    top, left = np.unravel_index(np.argmax(inner), inner.shape)
    return field[top : top + box, left : left + box]


def hot_pixels(rng: np.random.Generator, box: int) -> Singles:
    """Draw 3 to 12 single pixels, 10 to 100 high."""
    image = np.zeros(box * box, dtype=np.float32)
    where = rng.choice(box * box, rng.integers(3, 13), replace=False)
    image[where] = np.exp(rng.uniform(math.log(10), math.log(100), len(where)))
    return image.reshape(box, box)


def photograph(rng: np.random.Generator, size: int = 512) -> Singles:
    """Draw a synthetic scene with the statistics of a photograph, mean 0 and standard deviation 1.

    Notes
    -----
    Opaque disks, whose radii follow r^-3, cover one another. Such "dead leaves"
    have the edges and the 1/f amplitude of natural images (Lee, Mumford, Huang,
    Int. J. Comput. Vis. 41, 2001). The scene replaces the photograph of the PPCA
    paper, which cannot be distributed.
    """
    low, high = size / 128, size / 6
    n = 6000
    radius = 1 / np.sqrt(rng.uniform(high**-2, low**-2, n))
    middle = rng.uniform(-0.1 * size, 1.1 * size, (n, 2))
    grey = rng.random(n)
    scene = np.full((size, size), 0.5, dtype=np.float32)
    for r, (y, x), value in zip(radius, middle, grey, strict=True):
        top, left = max(math.ceil(y - r), 0), max(math.ceil(x - r), 0)
        part = scene[top : max(math.floor(y + r) + 1, 0), left : max(math.floor(x + r) + 1, 0)]
        rows, columns = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
        part[(rows - y) ** 2 + (columns - x) ** 2 <= r * r] = value
    scene -= scene.mean()
    return scene / scene.std()


def photograph_crop(rng: np.random.Generator, scene: Singles, box: int) -> Singles:
    """Take a random square of `box` pixels out of a scene."""
    top, left = rng.integers(0, len(scene) - box + 1, 2)
    return scene[top : top + box, left : left + box].copy()


def _grid(box: int) -> tuple[Floats, Floats]:
    line = np.arange(box, dtype=np.float64) - box // 2
    return line[:, None], line


def cloud(rng: np.random.Generator, box: int, scales: tuple[float, ...]) -> Floats:
    """Draw noise of some scales, mean 0 and deviation 1.

    Each scale is white noise, blurred by a Gaussian of that part of the box; all have the same weight.
    """
    canvas = 2 * box
    down, across = scipy.fft.fftfreq(canvas)[:, None] ** 2, scipy.fft.rfftfreq(canvas) ** 2
    total = np.zeros((box, box))
    for scale in scales:
        sharpness = -2 * (np.pi * scale * box) ** 2
        # In single precision the transforms take half the time.
        white = scipy.fft.rfft2(rng.standard_normal((canvas, canvas)).astype(np.float32), workers=1)
        white *= (np.exp(sharpness * down) * np.exp(sharpness * across)).astype(np.float32)
        layer = scipy.fft.irfft2(white, s=(canvas, canvas), workers=1, overwrite_x=True)[:box, :box]
        total += layer / layer.std()
    return (total - total.mean()) / total.std()
