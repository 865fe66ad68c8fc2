"""Projections of a density, computed as slices of its Fourier transform."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft

from fastsort._checks import InputError, check_count, check_positive
from fastsort._jit import inlined, kernel
from fastsort._types import Array, Floats, Images, Singles

_TAPS = 4
_OVERSAMPLING = 2.0
# Beatty, Nishimura, Pauly, IEEE Trans. Med. Imaging 24 (2005), equation 5.
_SHAPE = math.pi * math.sqrt((_TAPS / _OVERSAMPLING * (_OVERSAMPLING - 0.5)) ** 2 - 0.8)
_TABLE_ROWS = 1024
_SLICES_AT_ONCE = 256
_PLANES = 8


class Projector(NamedTuple):
    """The Fourier transform of a density, ready to be sliced in any orientation.

    Attributes
    ----------
    transform : ndarray of complex64, shape (m, m, m)
        Oversampled Fourier transform with frequency zero in the middle, cropped to
        the frequencies that the images can show.
    window : ndarray of float32, shape (1025, 9)
        Weights of the interpolation between grid points, for each position between two of them: four, with
        a zero before and after each.
    step : float
        Grid points of `transform` in one frequency step of the image.
    box : int
        Side of the images in pixels.
    scale : float
        Voxels a pixel.
    """

    transform: Array
    window: Singles
    step: float
    box: int
    scale: float


def project_volume(
    volume: npt.ArrayLike, rotations: npt.ArrayLike, box: int | None = None, *, scale: float = 1.0
) -> Images:
    """Project a density along z after rotating it.

    Parameters
    ----------
    volume : ndarray, shape (d, d, d)
        Density as [z, y, x]; the centre of rotation is the voxel d // 2.
    rotations : ndarray of float64, shape (n, 3, 3) or (3, 3)
        Matrices R that act on (x, y, z): the density at r moves to R r.
    box : int, optional
        Side of the images in pixels; d by default. The particle's centre
        falls on pixel box // 2.
    scale : float
        Voxels a pixel: 2 makes pixels of twice the voxel size. Frequencies
        that one of the grids cannot hold are left out.

    Returns
    -------
    images : ndarray of float32, shape (n, box, box)
        Sums of voxels along the line of sight, as [y, x].

    Raises
    ------
    InputError
        If the volume is not a cube of finite numbers, or a matrix is not orthogonal.

    Notes
    -----
    By the projection-slice theorem the transform of an image is a plane of the
    transform of the volume. The plane is interpolated in a twofold oversampled
    transform by a Kaiser-Bessel window of four taps; the volume is divided by the
    transform of the window beforehand.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsort as fs
    >>> volume = np.zeros((24, 24, 24))
    >>> volume[8:16, 10:14, 9:17] = 1
    >>> images = fs.project_volume(volume, np.eye(3))
    >>> images.shape
    (1, 24, 24)

    A projection keeps the mass of the volume:

    >>> round(float(images.sum() / volume.sum()), 2)
    1.0
    """
    volume = check_volume(volume)
    rotations = check_rotations(rotations)
    box = len(volume) if box is None else check_count("box", box, 2)
    scale = check_positive("scale", scale, "voxels a pixel")
    # The canvas holds the whole volume, so that nothing wraps round into a smaller box.
    projector = prepare_volume(volume, max(box, math.ceil(len(volume) / scale)), scale)
    images = np.empty((len(rotations), box, box), dtype=np.float32)
    for start in range(0, len(rotations), _SLICES_AT_ONCE):
        part = slice(start, start + _SLICES_AT_ONCE)
        images[part] = images_at(project_spectra(projector, rotations[part]), box)
    return images


def prepare_volume(volume: Singles, box: int, scale: float, centre: npt.ArrayLike | None = None) -> Projector:
    """Transform a density for `project_spectra`.

    Parameters
    ----------
    volume : ndarray of float32, shape (d, d, d)
    box : int
        Side of the images in pixels.
    scale : float
        Voxels a pixel.
    centre : array-like of float, shape (3,), optional
        Centre of rotation as (z, y, x) in voxels, fractions allowed; d // 2 by default.

    Returns
    -------
    projector : Projector
    """
    size = len(volume)
    padded = scipy.fft.next_fast_len(int(_OVERSAMPLING * size))
    origin = np.full(3, size // 2, dtype=np.float64) if centre is None else np.asarray(centre, np.float64)
    reach = math.ceil(padded * min(0.5, 0.5 / scale)) + _TAPS
    frequencies = np.arange(-reach, reach + 1)
    transform: Array = volume
    for axis in range(3):
        position = (np.arange(size) - origin[axis]) / padded
        along = [1, 1, 1]
        along[axis] = -1
        transform = transform / _window_transform(position).astype(np.float32).reshape(along)
        transform = scipy.fft.fft(transform, padded, axis=axis, workers=1).take(
            frequencies % padded, axis=axis
        )
        phase = np.exp(2j * np.pi * frequencies * origin[axis] / padded).astype(np.complex64)
        transform *= phase.reshape(along)
    return Projector(transform, _window_table(), padded / (box * scale), box, scale)


def project_spectra(projector: Projector, rotations: Floats) -> Array:
    """Compute the transforms of projections whose centre is the pixel (0, 0).

    Parameters
    ----------
    projector : Projector
    rotations : ndarray of float64, shape (n, 3, 3)

    Returns
    -------
    spectra : ndarray of complex64, shape (n, box, box // 2 + 1)
    """
    box = projector.box
    spectra = np.zeros((len(rotations), box, box // 2 + 1), dtype=np.complex64)
    # The Nyquist frequency is left out, because its sign is ambiguous on an even grid.
    limit = min(0.5 * box, 0.5 * box * projector.scale) - 1e-6
    parts = projector.transform.view(np.float32)
    _slice(parts, projector.window, rotations, projector.step, limit, spectra)
    spectra *= np.float32(1 / projector.scale**2)
    return spectra


@kernel
def _slice(parts, window, rotations, step, limit, spectra):
    box = spectra.shape[1]
    middle = parts.shape[0] // 2
    # A few planes of the volume stay in the cache while all images take from them what they need.
    for plane in range(0, parts.shape[0], _PLANES):
        for i in range(spectra.shape[0]):
            turn = rotations[i]
            slope = step * turn[0, 2]
            if abs(slope) < 1e-9:
                slope = 1e-9
            for row in range(box):
                y = float(row if 2 * row < box else row - box)
                start = middle + step * turn[1, 2] * y
                enters = (plane - start) / slope
                leaves = (plane + _PLANES - start) / slope
                first = max(int(min(enters, leaves)), 0)
                last = min(int(max(enters, leaves)) + 2, spectra.shape[2])
                for column in range(first, last):
                    x = float(column)
                    z = start + slope * x
                    if plane <= z < plane + _PLANES and x * x + y * y <= limit * limit:
                        spectra[i, row, column] = _interpolate(
                            parts,
                            window,
                            z,
                            middle + step * (turn[0, 1] * x + turn[1, 1] * y),
                            middle + step * (turn[0, 0] * x + turn[1, 0] * y),
                        )


@inlined
def _interpolate(parts, window, z, y, x):
    """Interpolate a grid of complex numbers, given as one of their real and imaginary parts in turn."""
    first_z, row_z, part_z = _window_position(z)
    first_y, row_y, part_y = _window_position(y)
    first_x, row_x, part_x = _window_position(x)
    real = np.float32(0)
    imaginary = np.float32(0)
    # The outer loop runs over neighbours in memory, so that it becomes one vector. An index that could be
    # negative would keep it from that.
    for i in range(2 * _TAPS):
        along_x = np.uintp(2 * first_x + i)
        total = np.float32(0)
        for k in range(_TAPS):
            plane = np.float32(0)
            for j in range(_TAPS):
                plane += _weight(window, row_y, part_y, 2 * j + 1) * parts[first_z + k, first_y + j, along_x]
            total += _weight(window, row_z, part_z, 2 * k + 1) * plane
        # The zeros of the window leave the real parts out of the one sum, and the others out of the other.
        real += _weight(window, row_x, part_x, i + 1) * total
        imaginary += _weight(window, row_x, part_x, i) * total
    return np.complex64(complex(real, imaginary))


@inlined
def _weight(window, row, part, i):
    return window[row, i] + part * (window[row + 1, i] - window[row, i])


@inlined
def _window_position(position):
    base = math.floor(position)
    offset = (position - base) * _TABLE_ROWS
    row = int(offset)
    return base - _TAPS // 2 + 1, row, np.float32(offset - row)


def images_at(spectra: Array, box: int, shifts: Floats | None = None) -> Images:
    """Transform spectra about pixel (0, 0) into images about pixel box // 2, shifted.

    Parameters
    ----------
    spectra : ndarray of complex64, shape (n, canvas, canvas // 2 + 1)
        Overwritten.
    box : int
        Side of the images in pixels, at most that of the canvas, of which the middle is taken.
    shifts : ndarray of float64, shape (n, 2), optional
        New places of the centres, as (y, x) in pixels from box // 2.

    Returns
    -------
    images : ndarray of float32, shape (n, box, box)
    """
    canvas = spectra.shape[1]
    start = canvas // 2 - box // 2
    centres = np.full((len(spectra), 2), canvas // 2, dtype=np.float64)
    if shifts is not None:
        centres += shifts
    down = np.exp(-2j * np.pi * scipy.fft.fftfreq(canvas) * centres[:, :1])
    across = np.exp(-2j * np.pi * scipy.fft.rfftfreq(canvas) * centres[:, 1:])
    spectra *= down.astype(np.complex64)[:, :, None]
    # Only the rows in the middle are transformed along the other axis.
    rows = scipy.fft.ifft(spectra, axis=1, workers=1, overwrite_x=True)[:, start : start + box]
    rows *= across.astype(np.complex64)[:, None, :]
    images = scipy.fft.irfft(rows, canvas, axis=2, workers=1)
    return np.ascontiguousarray(images[:, :, start : start + box])


def random_rotation(rng: np.random.Generator) -> Floats:
    """Draw one rotation matrix, uniform over all rotations (a random unit quaternion)."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def check_volume(volume: npt.ArrayLike) -> Singles:
    """Return a density as float32 (d, d, d); refuse one that cannot be projected."""
    array = np.asarray(volume)
    if array.ndim != 3 or len(set(array.shape)) != 1 or len(array) < 2:
        raise InputError(f"volume must be a cube (d, d, d); got shape {array.shape}: pad it to a cube.")
    if array.dtype.kind not in "fiu":
        raise InputError(f"volume must be real numbers; got {array.dtype}: convert it to float32.")
    array = np.array(array, dtype=np.float32, order="C")
    if not np.isfinite(array).all():
        n_wrong = int((~np.isfinite(array)).sum())
        raise InputError(f"volume must be finite; got NaN or infinity in {n_wrong:,} voxels: set them to 0.")
    return array


def check_rotations(rotations: npt.ArrayLike) -> Floats:
    """Return rotation matrices as float64 (n, 3, 3)."""
    array = np.array(rotations, dtype=np.float64, order="C")
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[1:] != (3, 3):
        raise InputError(f"rotations must have shape (n, 3, 3); got {array.shape}: give 3 x 3 matrices.")
    right = np.isclose(array @ array.transpose(0, 2, 1), np.eye(3), atol=1e-4).all(axis=(1, 2))
    if not right.all():
        raise InputError(
            f"rotations must be orthogonal matrices; matrix {int(right.argmin())} is not: give rotations "
            "without scale or shear."
        )
    return array


def _window_table() -> Singles:
    offsets = np.arange(_TABLE_ROWS + 1)[:, None] / _TABLE_ROWS
    distance = offsets - (np.arange(_TAPS) - _TAPS // 2 + 1)
    inside = np.clip(1 - (2 * distance / _TAPS) ** 2, 0, None)
    table = np.zeros((_TABLE_ROWS + 1, 2 * _TAPS + 1), dtype=np.float32)
    table[:, 1::2] = np.i0(_SHAPE * np.sqrt(inside)) * (np.abs(distance) <= _TAPS / 2)
    return table


def _window_transform(position: Floats) -> Floats:
    root = np.sqrt(np.maximum(_SHAPE**2 - (np.pi * _TAPS * position) ** 2, 1e-12))
    return _TAPS * np.sinh(root) / root
