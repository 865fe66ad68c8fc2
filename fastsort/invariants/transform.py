"""Images moved: the shift as a phase in the Fourier plane, the turn by cubic B-splines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft

from fastsort._jit import kernel
from fastsort._types import Array, Bools, Images
from fastsort.invariants.rings import CHUNK


def move_images(images: Images, angle: Array, shift: Array, mirrored: Bools) -> Images:
    """Shift, mirror and turn images.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        They count as periodic.
    angle : ndarray of float, shape (n,)
    shift : ndarray of float, shape (n, 2)
    mirrored : ndarray of bool, shape (n,)
        As of an `Alignment`.

    Returns
    -------
    moved : ndarray of float32, shape (n, d, d)
        NaN where the angle or a pixel of the image is no finite number.
    """
    n, box = images.shape[:2]
    moved = np.empty((n, box, box), dtype=np.float32)
    wave = 2 * np.pi * scipy.fft.fftfreq(box)
    # What turns pixels into the coefficients of a cubic B-spline.
    spline = (3 / (2 + np.cos(wave))).astype(np.float32)
    for start in range(0, n, CHUNK):
        some = slice(start, min(start + CHUNK, n))
        spectra = scipy.fft.rfft2(images[some], workers=1)
        along_rows, along_columns = (spline * _phases(shift[some, axis], box) for axis in (0, 1))
        with np.errstate(invalid="ignore", over="ignore"):
            spectra *= along_rows[:, :, None]
            spectra *= along_columns[:, None, : box // 2 + 1]
        coefficients = scipy.fft.irfft2(spectra, s=(box, box), workers=1, overwrite_x=True)
        radians = np.radians(angle[some].astype(np.float64))
        _rotate(coefficients, np.cos(radians), np.sin(radians), mirrored[some], moved[some])
    return moved


def shift_images(images: Images, shift: Array) -> Images:
    """Shift images (n, d, d) by minus `shift` (n, 2), neither mirrored nor turned."""
    n = len(images)
    return move_images(images, np.zeros(n), shift, np.zeros(n, dtype=np.bool_))


def _phases(shift: Array, box: int) -> npt.NDArray[np.complex64]:
    """Factors (n, d) of the frequencies of one axis that undo a shift along it."""
    phase = 2 * np.pi * np.outer(shift.astype(np.float64), scipy.fft.fftfreq(box))
    turn = np.exp(1j * phase)
    if box % 2 == 0:
        # Nyquist stands for both signs.
        turn[:, box // 2] = turn[:, box // 2].real
    return turn.astype(np.complex64)


@kernel
def _rotate(coefficients, cosine, sine, mirrored, out):
    # out (n, d, d): the splines at the turned pixels, columns reversed before where mirrored says so.
    d = out.shape[1]
    centre = d // 2
    # A pixel of the corner comes from half a diagonal away at most.
    margin = int(np.ceil(0.2072 * d)) + 4
    width = d + 2 * margin
    wide = np.empty((width, width), dtype=np.float32)
    for i in range(out.shape[0]):
        # A NaN is below nothing.
        if not (abs(cosine[i]) < np.inf and abs(coefficients[i, 0, 0]) < np.inf):
            out[i] = np.nan
            continue
        for y in range(width):
            row = coefficients[i, (y - margin) % d]
            for x in range(margin):
                wide[y, x] = row[(x - margin) % d]
                wide[y, margin + d + x] = row[x % d]
            for x in range(d):
                wide[y, margin + x] = row[x]
        side = np.float32(-1.0 if mirrored[i] else 1.0)
        for y in range(d):
            across = np.float32(y - centre)
            for x in range(d):
                along = np.float32(x - centre)
                column = side * (np.float32(cosine[i]) * along + np.float32(sine[i]) * across)
                row_at = np.float32(cosine[i]) * across - np.float32(sine[i]) * along
                from_y = int(np.floor(row_at))
                from_x = int(np.floor(column))
                py = row_at - np.float32(from_y)
                px = column - np.float32(from_x)
                wy0, wy1, wy2, wy3 = _spline(py)
                wx0, wx1, wx2, wx3 = _spline(px)
                top = from_y + centre + margin - 1
                left = from_x + centre + margin - 1
                a = wide[top, left : left + 4]
                b = wide[top + 1, left : left + 4]
                c = wide[top + 2, left : left + 4]
                e = wide[top + 3, left : left + 4]
                out[i, y, x] = (
                    wx0 * (wy0 * a[0] + wy1 * b[0] + wy2 * c[0] + wy3 * e[0])
                    + wx1 * (wy0 * a[1] + wy1 * b[1] + wy2 * c[1] + wy3 * e[1])
                    + wx2 * (wy0 * a[2] + wy1 * b[2] + wy2 * c[2] + wy3 * e[2])
                    + wx3 * (wy0 * a[3] + wy1 * b[3] + wy2 * c[3] + wy3 * e[3])
                )


@kernel
def _spline(part):
    rest = np.float32(1) - part
    sixth = np.float32(1 / 6)
    square = part * part
    return (
        rest * rest * rest * sixth,
        (np.float32(4) - np.float32(6) * square + np.float32(3) * square * part) * sixth,
        (np.float32(4) - np.float32(6) * rest * rest + np.float32(3) * rest * rest * rest) * sixth,
        square * part * sixth,
    )
