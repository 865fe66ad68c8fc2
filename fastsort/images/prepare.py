"""Images brought to the working size: cropped, phase-flipped, normalised, and kept in a file.

A journal beside the file says which batches stand in it, so that a run that was killed goes on after
the last of them.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_choice, check_positive, check_radius
from fastsort._crop import apply_crop
from fastsort._reasons import VALID
from fastsort.images.batches import default_batch_size, map_batches
from fastsort.images.ctf import phase_flip as flip_phases
from fastsort.images.normalize import PixelStatistics, inspect_pixels, normalize_background
from fastsort.images.work import fingerprint, source_identity
from fastsort.particles.mrc import MrcHeader
from fastsort.particles.source import CtfParameters, Particles, StackImages

PHASE_FLIPS = ("auto", "yes", "no")
WORKING = np.dtype(np.float16)
# An entry of the journal: how many images, the sum of their bytes, their statistics, a checksum of all that.
_ENTRY = struct.Struct("<IQ")
_CHECKSUM = struct.Struct("<I")
_STATISTICS = (("codes", np.dtype("i1")), ("mean", np.dtype("<f4")), ("std", np.dtype("<f4")))


class Prepared(NamedTuple):
    """Working images, and what was seen of the original pixels.

    Attributes
    ----------
    particles : Particles
        Working images in half precision; zero where an image is unfit. They live as long as the file.
    pixels : PixelStatistics
        Of the original images, one entry an image.
    """

    particles: Particles
    pixels: PixelStatistics


def prepare_images(
    particles: Particles,
    operator: npt.NDArray[np.float32],
    path: str | os.PathLike[str],
    *,
    radius: float | None = None,
    ctf: CtfParameters | None = None,
    n_jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Read every image once and write what the methods work on.

    Parameters
    ----------
    particles : Particles
    operator : ndarray of float32, shape (size, box)
        From `crop_operator`.
    path : path
        File to be written: 2 bytes a working pixel. With its journal, ``path.done``, of 9 bytes an
        image, it may be what an earlier call with the same arguments has left, whole or in part: images
        that stand in it are not read again, and the bits are those of an undisturbed call.
    radius : float, optional
        Of the particle, in working pixels: outside it is background. By default half the box.
    ctf : CtfParameters, optional
        To flip phases with, one entry an image.
    n_jobs : int, optional
        Workers, as joblib counts them. Results do not depend on it.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    prepared : Prepared
    """
    n, size = len(particles), len(operator)
    pixel_size = particles.pixel_size * particles.box / size
    place = os.fspath(path)
    journal = place + ".done"
    batch_size = default_batch_size(particles.box)
    title = fingerprint("images", source_identity(particles), operator, radius, ctf, batch_size).encode()
    batches = list(_resume(place, journal, title, n, size))
    done = sum(len(batch.codes) for batch in batches)
    if done and progress:
        progress(done, n)
    rest = map_batches(
        _prepare,
        particles.part(done, n),
        operator,
        pixel_size,
        radius,
        place,
        done,
        each=(ctf and ctf.of(slice(done, None)),),
        batch_size=batch_size,
        n_jobs=n_jobs,
        progress=progress and (lambda more, _: progress(done + more, n)),
    )
    with open(journal, "ab", buffering=0) as file:
        for pixels, total in rest:
            # The images stand in their file by now: an entry never promises more than there is.
            file.write(_entry(pixels, total))
            batches.append(pixels)
    pixels = PixelStatistics(*(np.concatenate(column) for column in zip(*batches, strict=True)))
    # Read, not mapped, since mapped pages count as memory.
    header = MrcHeader(place, n, size, size, WORKING, 0, pixel_size)
    sections = np.arange(n, dtype=np.int32)
    stack = StackImages([header], np.zeros_like(sections), sections)
    return Prepared(Particles(stack, size, pixel_size, place), pixels)


def _prepare(
    images: npt.NDArray[np.float32],
    start: int,
    ctf: CtfParameters | None,
    operator: npt.NDArray[np.float32],
    pixel_size: float,
    radius: float | None,
    path: str,
    done: int,
) -> tuple[PixelStatistics, int]:
    """Bring a batch to the working size and write it to its place; images that are unfit become zero."""
    pixels = inspect_pixels(images)
    cropped = apply_crop(images, operator)
    if ctf is not None:
        cropped = flip_phases(cropped, ctf, pixel_size)
    normalize_background(cropped, 0.5 * len(operator) if radius is None else radius)
    # Beyond this, half precision is infinite; nothing that has to be judged is.
    working = np.clip(cropped, -6e4, 6e4, out=cropped).astype(WORKING)
    # Not for reading: a client of a network disk would write back whole pages, with what others wrote.
    with os.fdopen(os.open(path, os.O_WRONLY), "wb") as file:
        file.seek((done + start) * working[0].nbytes)
        file.write(working.data)
    return pixels, _total(working)


def _total(working: npt.NDArray[np.float16]) -> int:
    """Sum up the bytes of images, eight at a time: many times as fast as a checksum, and zeros show."""
    numbers = np.frombuffer(working, np.uint64, working.nbytes // 8)
    return int(numbers.sum(dtype=np.uint64))


def _entry(pixels: PixelStatistics, total: int) -> bytes:
    columns = (getattr(pixels, name).astype(kind).tobytes() for name, kind in _STATISTICS)
    entry = b"".join([_ENTRY.pack(len(pixels.codes), total), *columns])
    return entry + _CHECKSUM.pack(zlib.crc32(entry))


def _read_entry(file: BufferedReader) -> tuple[PixelStatistics, int] | None:
    """Read the next entry of a journal; None where it ends, or was torn."""
    entry = file.read(_ENTRY.size)
    if len(entry) < _ENTRY.size:
        return None
    count, total = _ENTRY.unpack(entry)
    width = sum(kind.itemsize for _, kind in _STATISTICS)
    entry += file.read(count * width)
    if len(entry) < _ENTRY.size + count * width or file.read(_CHECKSUM.size) != _CHECKSUM.pack(
        zlib.crc32(entry)
    ):
        return None
    columns, place = [], _ENTRY.size
    for _, kind in _STATISTICS:
        columns.append(np.frombuffer(entry, kind, count, place).copy())
        place += count * kind.itemsize
    return PixelStatistics(*columns), total


def _resume(path: str, journal: str, title: bytes, n: int, size: int) -> Iterator[PixelStatistics]:
    """Yield the statistics of the batches that stand in the file, and make both files ready for the next."""
    length = n * size * size * WORKING.itemsize
    end = 0
    try:
        with open(journal, "rb") as entries, open(path, "rb") as images:
            if entries.read(len(title)) == title and os.fstat(images.fileno()).st_size == length:
                end = entries.tell()
                while entry := _read_entry(entries):
                    pixels, total = entry
                    working = np.fromfile(images, WORKING, len(pixels.codes) * size * size)
                    # A computer that has lost its power may have kept the entry and lost the images.
                    if _total(working) != total:
                        break
                    yield pixels
                    end = entries.tell()
    except FileNotFoundError:
        pass
    if end:
        os.truncate(journal, end)
        return
    with open(journal, "wb"), open(path, "wb") as images:
        images.truncate(length)
    with open(journal, "wb") as entries:
        entries.write(title)


def working_radius(particles: Particles, diameter: float | None, size: int) -> float | None:
    """Return the radius in working pixels of a particle whose diameter is given in angstroms."""
    if diameter is None:
        return None
    diameter = check_positive("diameter", diameter, "angstrom")
    if not np.isfinite(particles.pixel_size):
        raise InputError(
            "the pixel size is unknown, so a diameter in angstroms means nothing: give the pixel size too."
        )
    return check_radius(diameter / particles.pixel_size / 2, particles.box) * size / particles.box


def ctf_to_flip(particles: Particles, phase_flip: str) -> CtfParameters | None:
    """Return the CTF with which phases must be flipped, or None where they must not.

    Parameters
    ----------
    particles : Particles
    phase_flip : {"auto", "yes", "no"}
        "auto" flips where the source knows the defocus and does not say that it was done.
    """
    check_choice("phase_flip", phase_flip, PHASE_FLIPS)
    if phase_flip == "yes" and particles.ctf is None:
        raise InputError(
            "phases cannot be flipped: the source gives no defocus, voltage, spherical aberration and "
            "amplitude contrast."
        )
    if phase_flip == "no" or (phase_flip == "auto" and is_corrected(particles)):
        return None
    return particles.ctf


def is_corrected(particles: Particles) -> bool:
    """Whether the STAR file says that something has dealt with the phases already."""
    return particles.table.correction != ""


def sample_batches(
    particles: Particles, operator: npt.NDArray[np.float32], number: int, batch_size: int, seed: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Read images to learn from, and crop them.

    Parameters
    ----------
    particles : Particles
    operator : ndarray of float32, shape (size, box)
        From `crop_operator`.
    number : int
        How many are read at most, chosen at random.
    batch_size : int
        How many are read at a time.
    seed : int

    Yields
    ------
    images : ndarray of float32, shape (k, size, size)
        Those of a batch that are fit, in ascending order; possibly none.
    """
    chosen = np.arange(len(particles))
    if len(chosen) > number:
        chosen = np.sort(np.random.default_rng(seed).choice(len(particles), number, replace=False))
    for start in range(0, len(chosen), batch_size):
        part = particles.read(chosen[start : start + batch_size])
        yield apply_crop(part[inspect_pixels(part).codes == VALID], operator)


def crop_and_normalize(
    images: npt.NDArray[np.float32], operator: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Crop images, and give what lies outside the disk that fits their box mean 0 and deviation 1."""
    images = apply_crop(images, operator)
    normalize_background(images, 0.5 * len(operator))
    return images
