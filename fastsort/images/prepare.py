"""Working images: cropped, phase-flipped, normalised, and kept in a file.

A journal beside the file lists the batches that are in it, so that a run that was killed continues after
the last of them.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedReader
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_choice, check_positive, check_radius
from fastsort._crop import apply_crop
from fastsort._disk import on_disk
from fastsort._jit import kernel
from fastsort._progress import Progress
from fastsort._reasons import VALID
from fastsort._types import Array, Contents, FilePath, Images, Singles
from fastsort.images.batches import default_batch_size, map_batches
from fastsort.images.content import content_of
from fastsort.images.ctf import phase_flip as flip_phases
from fastsort.images.normalize import PixelStatistics, inspect_and_level, normalize_background, subtract_ramps
from fastsort.images.work import fingerprint, source_identity
from fastsort.particles.mrc import MrcHeader
from fastsort.particles.source import Particles
from fastsort.particles.store import StackImages
from fastsort.particles.table import CtfParameters

PHASE_FLIPS = ("auto", "yes", "no")
WORKING = np.dtype(np.float16)
# Of a CTF that is 1 everywhere, whose phase is a quarter turn; all else is 0.
_NOTHING_TO_FLIP = {"voltage": 300.0, "amplitude_contrast": 1.0}
# An entry of the journal: number of images, sum of their bytes, what is known of them, checksum of all that.
_ENTRY = struct.Struct("<IQ")
_CHECKSUM = struct.Struct("<I")
_COLUMNS: tuple[np.dtype[Any], ...] = (np.dtype("i1"), np.dtype("<f4"), np.dtype("<f4"), np.dtype("<u8"))


class WorkingImages(NamedTuple):
    """Working images, and what is known of the original pixels.

    Attributes
    ----------
    particles : Particles
        The working images in half precision, zero where an image is unfit. They live as long as the file.
    pixels : PixelStatistics
        One entry for each original image.
    content : ndarray of uint64, shape (n,)
        From `content_of`: equal for images with the same pixels.
    """

    particles: Particles
    pixels: PixelStatistics
    content: Contents


def prepare_images(
    particles: Particles,
    operator: Singles,
    path: FilePath,
    *,
    radius: float | None = None,
    ctf: CtfParameters | None = None,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> WorkingImages:
    """Read every image once and write the working image that the methods use.

    Parameters
    ----------
    particles : Particles
    operator : ndarray of float32, shape (size, box)
        From `crop_operator`.
    path : path
        File to be written, 2 bytes a working pixel. Its journal, ``path.done``, has 17 bytes an image.
        If an earlier call with the same arguments has left both, whole or in part, the images in the
        file are not read again; the result has the bits of an undisturbed call.
    radius : float, optional
        Radius of the particle in working pixels; the background lies outside it. By default half the box.
    ctf : CtfParameters, optional
        One entry an image: phases are flipped with it. By default no phases are flipped.
    n_jobs : int, optional
        Number of workers, as in joblib. Results do not depend on it.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)``.

    Returns
    -------
    working : WorkingImages

    Raises
    ------
    InputError
        If an image can no longer be read.
    OSError
        If the file cannot be written.
    """
    n, size = len(particles), len(operator)
    pixel_size = particles.pixel_size * particles.box / size
    file_path = os.fspath(path)
    journal = file_path + ".done"
    batch_size = default_batch_size(particles.box)
    title = fingerprint("images", source_identity(particles), operator, radius, ctf, batch_size).encode()
    needed = n * (size * size * WORKING.itemsize + sum(kind.itemsize for kind in _COLUMNS))
    with on_disk(file_path, needed):
        batches = list(_resume(file_path, journal, title, n, size))
    done = sum(len(codes) for codes, *_ in batches)
    if done and progress:
        progress(done, n)
    rest = map_batches(
        _prepare,
        particles.part(done, n),
        operator,
        pixel_size,
        radius,
        file_path,
        done,
        each=(ctf and ctf.of(slice(done, None)),),
        batch_size=batch_size,
        n_jobs=n_jobs,
        progress=progress and (lambda more, _: progress(done + more, n)),
    )
    with on_disk(file_path, needed), open(journal, "ab", buffering=0) as file:
        for columns, total in rest:
            # Images are written before their entry, so that no entry promises images that are not there.
            file.write(_entry(columns, total))
            batches.append(columns)
    *statistics, content = (np.concatenate(column) for column in zip(*batches, strict=True))
    working = _kept(file_path, n, size, pixel_size)
    return WorkingImages(working, PixelStatistics(*statistics), content)


def keep_images(path: FilePath, blocks: Iterable[Images], n: int, size: int, pixel_size: float) -> Particles:
    """Keep images that were computed, as working images are kept.

    Parameters
    ----------
    path : path
        File to be written, 2 bytes a pixel.
    blocks : iterable of ndarray of float32, shape (m, size, size)
        Never held together.
    n, size : int
        How many images the blocks hold in total, and their side in pixels.
    pixel_size : float
        In angstroms.

    Returns
    -------
    particles : Particles
        The images in half precision. They live as long as the file.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with on_disk(path, n * size * size * WORKING.itemsize), open(path, "wb") as file:
        for block in blocks:
            file.write(_in_half_precision(block).data)
    return _kept(os.fspath(path), n, size, pixel_size)


def _kept(path: str, n: int, size: int, pixel_size: float) -> Particles:
    # The file is read and not mapped, because mapped pages count as memory.
    header = MrcHeader(path, n, size, size, WORKING, 0, pixel_size)
    sections = np.arange(n, dtype=np.int32)
    stack = StackImages([header], np.zeros_like(sections), sections)
    return Particles(stack, size, pixel_size, path)


def _in_half_precision(images: Images) -> npt.NDArray[np.float16]:
    half = np.empty(images.shape, dtype=np.uint16)
    _round_to_half(images.reshape(-1).view(np.int32), half.reshape(-1))
    return half.view(WORKING)


def _prepare(
    images: Images,
    start: int,
    ctf: CtfParameters | None,
    operator: Singles,
    pixel_size: float,
    radius: float | None,
    path: str,
    done: int,
) -> tuple[tuple[Array, ...], int]:
    """Make the working images of a batch and write them to their place; unfit images become zero."""
    content = content_of(images)
    # Ramps go before the crop and the flip: both take images for periodic, and the edge of a ramp would ring.
    pixels = inspect_and_level(images)
    cropped = apply_crop(images, operator)
    if ctf is not None:
        cropped = flip_phases(cropped, ctf, pixel_size)
    normalize_background(cropped, 0.5 * len(operator) if radius is None else radius)
    working = _in_half_precision(cropped)
    # Write only: opened for reading too, a network disk would write back whole pages over others' images.
    with os.fdopen(os.open(path, os.O_WRONLY), "wb") as file:
        file.seek((done + start) * working[0].nbytes)
        file.write(working.data)
    return (*pixels, content), _sum_of_bytes(working)


def _sum_of_bytes(working: npt.NDArray[np.float16]) -> int:
    """Sum the bytes of images, eight at a time: much faster than a checksum, and lost pages still show."""
    numbers = np.frombuffer(working, np.uint64, working.nbytes // 8)
    return int(numbers.sum(dtype=np.uint64))


def _entry(columns: tuple[Array, ...], total: int) -> bytes:
    known = (column.astype(kind).tobytes() for column, kind in zip(columns, _COLUMNS, strict=True))
    entry = b"".join([_ENTRY.pack(len(columns[0]), total), *known])
    return entry + _CHECKSUM.pack(zlib.crc32(entry))


def _read_entry(file: BufferedReader) -> tuple[tuple[Array, ...], int] | None:
    """Read the next entry of a journal; None at its end, or where a killed run left half an entry."""
    entry = file.read(_ENTRY.size)
    if len(entry) < _ENTRY.size:
        return None
    count, total = _ENTRY.unpack(entry)
    width = sum(kind.itemsize for kind in _COLUMNS)
    entry += file.read(count * width)
    if len(entry) < _ENTRY.size + count * width or file.read(_CHECKSUM.size) != _CHECKSUM.pack(
        zlib.crc32(entry)
    ):
        return None
    columns, offset = [], _ENTRY.size
    for kind in _COLUMNS:
        columns.append(np.frombuffer(entry, kind, count, offset).copy())
        offset += count * kind.itemsize
    return tuple(columns), total


def _resume(path: str, journal: str, title: bytes, n: int, size: int) -> Iterator[tuple[Array, ...]]:
    """Yield what is known of the batches in the file, then make both files ready for the next batch."""
    length = n * size * size * WORKING.itemsize
    end = 0
    try:
        with open(journal, "rb") as entries, open(path, "rb") as images:
            if entries.read(len(title)) == title and os.fstat(images.fileno()).st_size == length:
                end = entries.tell()
                while entry := _read_entry(entries):
                    columns, total = entry
                    working = np.fromfile(images, WORKING, len(columns[0]) * size * size)
                    # After a power failure the disk may have the entry and not the images.
                    if _sum_of_bytes(working) != total:
                        break
                    yield columns
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
    """Return the radius of a particle in working pixels; its diameter is in angstroms."""
    if diameter is None:
        return None
    diameter = check_positive("diameter", diameter, "angstrom")
    if not np.isfinite(particles.pixel_size):
        raise InputError(
            f"the pixel size is unknown, so the diameter of {diameter:g} angstrom has no length in pixels: "
            "give the pixel size too."
        )
    return check_radius(diameter / particles.pixel_size / 2, particles.box) * size / particles.box


def ctf_to_flip(particles: Particles, phase_flip: str) -> CtfParameters | None:
    """Return the CTF to flip phases with, or None if phases are not to be flipped.

    Parameters
    ----------
    particles : Particles
    phase_flip : {"auto", "yes", "no"}
        "auto" flips if the source gives a CTF and does not say that the phases are flipped already. Where it
        says so of some images, these get a CTF that is 1 everywhere.

    Raises
    ------
    InputError
        If `phase_flip` is "yes" and the source gives no CTF.
    """
    check_choice("phase_flip", phase_flip, PHASE_FLIPS)
    if phase_flip == "yes" and particles.ctf is None:
        raise InputError(
            "phases cannot be flipped, because the source does not give defocus, voltage, spherical "
            "aberration and amplitude contrast: use phase_flip='auto' or 'no'."
        )
    done, ctf = particles.corrected, particles.ctf
    if phase_flip == "no" or ctf is None:
        return None
    if phase_flip == "yes" or done is None or not done.any():
        return ctf
    if done.all():
        return None
    return CtfParameters(
        **{
            name: np.where(done, _NOTHING_TO_FLIP.get(name, 0.0), values)
            for name, values in ctf._asdict().items()
        }
    )


def sample_batches(
    particles: Particles, operator: Singles, number: int, batch_size: int, seed: int
) -> Iterator[Images]:
    """Read images to learn from, chosen at random, and crop them.

    Parameters
    ----------
    particles : Particles
    operator : ndarray of float32, shape (size, box)
        From `crop_operator`.
    number : int
        Number of images to be read, at most all.
    batch_size : int
        Number of images read at a time.
    seed : int

    Yields
    ------
    images : ndarray of float32, shape (k, size, size)
        The images of a batch that are not unfit, without ramps, in ascending order; possibly none.
    """
    chosen = np.arange(len(particles))
    if len(chosen) > number:
        chosen = np.sort(np.random.default_rng(seed).choice(len(particles), number, replace=False))
    for start in range(0, len(chosen), batch_size):
        part = particles.read(chosen[start : start + batch_size])
        fit = inspect_and_level(part).codes == VALID
        yield apply_crop(part[fit], operator)


def crop_and_normalize(images: Images, operator: Singles) -> Images:
    """Take ramps out of images in place, crop them, and normalise all outside the largest disk in the box."""
    subtract_ramps(images)
    images = apply_crop(images, operator)
    normalize_background(images, 0.5 * len(operator))
    return images


@kernel
def _round_to_half(singles, halves):
    # The bits of numbers in single and in half precision, both (n,). NumPy needs ten times as long.
    for i in range(len(singles)):
        size = np.int32(singles[i] & np.int32(0x7FFFFFFF))
        sign = np.int32(np.int32(singles[i] >> np.int32(16)) & np.int32(0x8000))
        # Beyond 60,000 an image would become infinite; none that can be judged goes so far.
        kept = np.int32(min(size, np.int32(0x476A6000)))
        # Half of the last bit that stays is added, a tie goes to the even number, and the exponent is moved.
        even = np.int32(np.int32(kept >> np.int32(13)) & np.int32(1))
        moved = np.int32(kept - np.int32(0x38000000) + np.int32(0x0FFF) + even)
        value = np.int32(moved >> np.int32(13))
        # Below the smallest normal number steps are equal: adding 1 / 2 in single precision rounds to them.
        lifted = np.float32(np.int32(kept).view(np.float32) + np.float32(0.5))
        if kept < np.int32(0x38800000):
            value = np.int32(np.float32(lifted).view(np.int32) - np.int32(0x3F000000))
        if size > np.int32(0x7F800000):
            value = np.int32(0x7E00)
        halves[i] = np.uint16(sign | value)
