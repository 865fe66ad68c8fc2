"""MRC stacks: what the header says, ranges of images in, a new stack out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import suppress
from io import BufferedReader, BufferedWriter
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from mrcfile.dtypes import HEADER_DTYPE

from fastsort._checks import InputError, check_count, check_not_empty, check_readable
from fastsort._disk import on_disk

_DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_REFUSED = {
    3: "complex numbers: these are Fourier transforms, not images",
    4: "complex numbers: these are Fourier transforms, not images",
    101: "4-bit numbers: convert the stack to mode 2, for example with newstack or relion_image_handler",
}
_MAX_SIDE = 65535
_TIFF = (
    "a TIFF or EER file, as movies are: give micrographs or particles, converted to MRC where they are none"
)
_OTHERS = {
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _TIFF),
    b"\x89HDF": "an HDF file: convert it to MRC, for example with e2proc2d.py",
}
_IMOD_STAMP = 1146047817
# Space groups of crystals, of which a single map has the first.
_SPACE_GROUPS = 230
# Extended headers are records of whole words.
_WORD = 4
_BYTES_LOOKED_AT = 1 << 20
_HALF_OF_BYTES = 127
# Of all steps from one pixel to the next, and of the jumps that the other way to read them has.
_FEWEST_JUMPS, _CLEARLY_FEWER = 1e-4, 0.5
# Linux cuts a longer announcement short.
_ANNOUNCED_BYTES = 128 << 10
_CONVERSION_BYTES = 1 << 21
_SIGN_AND_VALUE = np.int32(-0x70000001)
_HALF_RANGE = 65536


class MrcHeader(NamedTuple):
    """Where the images of an MRC file stand, and how they are written.

    Attributes
    ----------
    path : str
    n_images, ny, nx : int
    dtype : numpy dtype
        Of a stored pixel.
    offset : int
        Of the first image, in bytes.
    pixel_size : float
        In angstroms; NaN where the header has none.
    says_volume : bool
        Whether the header calls the file a map: sections of one volume, not images. Many programs that
        write stacks of images leave that as it is by default.
    doubts : tuple of str
        What is odd about the file and can be read all the same: predicates whose subject is the file.
    """

    path: str
    n_images: int
    ny: int
    nx: int
    dtype: np.dtype[Any]
    offset: int
    pixel_size: float
    says_volume: bool = False
    doubts: tuple[str, ...] = ()

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.ny * self.nx * self.dtype.itemsize


def read_header(path: str | os.PathLike[str]) -> MrcHeader:
    """Read what is needed to find the images of an MRC file.

    Only the fields that matter are looked at: the others are often wrong in
    files of other programs.

    Parameters
    ----------
    path : path
        A file of mode 0, 1, 2, 6 or 12, of any byte order.

    Returns
    -------
    header : MrcHeader
        Sizes in pixels, offset of the first image in bytes, pixel size in
        angstroms; NaN when the header has none.

    Raises
    ------
    InputError
        When the file cannot be read, is no MRC file, holds no real images, or has not the size that its
        header promises.

    Notes
    -----
    Bytes after the last image may also stand before the first, as an extended header that is not declared,
    and then every image is shifted. They are left out if that cannot be: extended headers are multiples of
    four bytes, and not the zeros that a disk or a program appends.
    """
    with check_readable(path) as file:
        try:
            return _read_header(file, path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}.") from None


def _read_header(file: BufferedReader, path: str | os.PathLike[str]) -> MrcHeader:
    raw = file.read(HEADER_DTYPE.itemsize)
    size = os.fstat(file.fileno()).st_size
    if len(raw) < HEADER_DTYPE.itemsize:
        raise InputError(f"{path} is not an MRC file: it has {size} bytes, and a header alone takes 1024.")
    order, fields = _sensible_fields(raw, path)
    header = MrcHeader(
        # Not normalised: what stands before .. may be a link to somewhere else.
        path=str(Path(path).absolute()),
        n_images=int(fields["nz"]),
        ny=int(fields["ny"]),
        nx=int(fields["nx"]),
        dtype=_pixel_dtype(order, fields, path),
        offset=HEADER_DTYPE.itemsize + int(fields["nsymbt"]),
        pixel_size=_pixel_size(fields),
        says_volume=bool(1 <= fields["ispg"] <= _SPACE_GROUPS and fields["mz"] == fields["nz"] > 1),
    )
    check_not_empty(header.n_images, str(path))
    promised = header.offset + header.n_images * header.image_bytes
    if size < promised:
        present = max(0, size - header.offset) // header.image_bytes
        raise InputError(
            f"{path} ends early: its header promises {promised} bytes ({header.n_images} images), "
            f"but the file has {size} bytes ({present} whole images): copy or write it again."
        )
    doubts = []
    if size > promised:
        doubts.append(_doubt_rest(file, header, promised, size - promised, path))
    if header.dtype == np.int8 and not _is_stamped(order, fields):
        dtype, doubt = _sign_of_bytes(file, header)
        header = header._replace(dtype=dtype)
        doubts += doubt
    return header._replace(doubts=tuple(doubts))


def _doubt_rest(
    file: BufferedReader, header: MrcHeader, stop: int, rest: int, path: str | os.PathLike[str]
) -> str:
    """Return what is odd about bytes after the last image; refuse them if they may stand before the first."""
    if rest < header.image_bytes:
        file.seek(stop)
        after = file.read(rest)
        file.seek(header.offset)
        before = file.read(rest)
        if rest % _WORD or (not any(after) and any(before)):
            return f"has {rest} bytes after its last image, which are left out: check that it is whole"
    more, extended = "", header.offset - HEADER_DTYPE.itemsize
    if rest % header.image_bytes == 0:
        more = f"{rest // header.image_bytes} more images, or "
    raise InputError(
        f"{path} has {rest} bytes more than its header promises ({header.n_images} images, and {extended} "
        f"bytes of extended header): {more}an extended header that is not declared, which would shift every "
        "image. Correct nz or nsymbt in the header, or write the file again."
    )


def _sign_of_bytes(file: BufferedReader, header: MrcHeader) -> tuple[np.dtype[Any], list[str]]:
    """Tell from the first images whether bytes have a sign, and say what is odd about that.

    The standard gives them one, and many programs write them without. Read the wrong way, neighbouring
    pixels on two sides of the middle of the range jump to its two ends. Where no pixels lie on both sides
    the two ways differ by a constant, which does not matter.
    """
    n_read = max(1, min(header.n_images, _BYTES_LOOKED_AT // header.image_bytes))
    file.seek(header.offset)
    pixels = np.frombuffer(file.read(n_read * header.image_bytes), np.uint8).reshape(-1, header.nx)
    signed, unsigned = (
        float((np.abs(np.diff(pixels.view(dtype).astype(np.int16), axis=1)) > _HALF_OF_BYTES).mean())
        if header.nx > 1
        else 0.0
        for dtype in (np.int8, np.uint8)
    )
    if max(signed, unsigned) < _FEWEST_JUMPS or signed < _CLEARLY_FEWER * unsigned:
        return np.dtype(np.int8), []
    if unsigned < _CLEARLY_FEWER * signed:
        dtype, read, because = np.uint8, "0 to 255", "since neighbouring pixels then differ less"
    else:
        dtype, read, because = np.int8, "-128 to 127", "as the MRC standard has it, and may be 0 to 255"
    doubt = f"holds bytes, which are read as {read}, {because}: convert it to mode 2 to be sure"
    return np.dtype(dtype), [doubt]


def _is_stamped(order: str, fields: Any) -> bool:
    """Whether IMOD says if bytes have a sign."""
    return bool(_imod(order, fields)[0] == _IMOD_STAMP)


def _imod(order: str, fields: Any) -> tuple[int, int]:
    stamp, flags = np.frombuffer(fields["extra2"].tobytes(), order + "i4", count=2, offset=40).tolist()
    return stamp, flags


def _sensible_fields(raw: bytes, path: str | os.PathLike[str]) -> tuple[str, Any]:
    # The sides tell the byte order more surely than the machine stamp, which some programs leave empty:
    # what is 1 to 65535 in one order is never so in the other.
    for order in "<>":
        fields = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        sides = fields["nx"], fields["ny"]
        if all(1 <= side <= _MAX_SIDE for side in sides) and fields["nz"] >= 0 and fields["nsymbt"] >= 0:
            return order, fields
    for magic, what in _OTHERS.items():
        if raw.startswith(magic):
            raise InputError(f"{path} is not an MRC file but {what}.")
    raise InputError(f"{path} is not an MRC file: its first 1024 bytes hold no sensible image sizes.")


def _pixel_dtype(order: str, fields: Any, path: str | os.PathLike[str]) -> np.dtype[Any]:
    mode = int(fields["mode"])
    if mode not in _DTYPES:
        reason = _REFUSED.get(mode, "which is no mode of real images; 0, 1, 2, 6 and 12 can be read")
        raise InputError(f"{path} has MRC mode {mode}, {reason}.")
    if mode == 0:
        stamp, flags = _imod(order, fields)
        return np.dtype(np.uint8 if stamp == _IMOD_STAMP and not flags & 1 else np.int8)
    return np.dtype(order + _DTYPES[mode])


def _pixel_size(fields: Any) -> float:
    width, samples = float(fields["cella"]["x"]), int(fields["mx"])
    return width / samples if samples > 0 and width > 0 and math.isfinite(width) else math.nan


def read_sections(header: MrcHeader, sections: npt.NDArray[np.intp], out: npt.NDArray[np.float32]) -> None:
    """Read images of one stack, each run of neighbours at one go.

    Parameters
    ----------
    header : MrcHeader
        As returned by `read_header`.
    sections : ndarray of intp, shape (n,)
        Which images, counted from 0; ascending, none twice.
    out : ndarray of float32, shape (n, ny, nx)
        C-ordered; filled.

    Raises
    ------
    InputError
        When the file cannot be read or has become shorter.
    """
    ends = (np.flatnonzero(sections[1:] - sections[:-1] != 1) + 1).tolist()
    with check_readable(header.path) as file:
        for start, end in pairwise([0, *ends, len(sections)] if len(sections) else []):
            file.seek(header.offset + int(sections[start]) * header.image_bytes)
            _read_run(file, header, out[start:end])


def announce_sections(header: MrcHeader, sections: npt.NDArray[np.intp]) -> None:
    """Tell the system that images of one stack will be read soon, unless it will see that by itself.

    Parameters
    ----------
    header : MrcHeader
    sections : ndarray of intp, shape (n,)
        Which images, counted from 0; ascending, none twice.

    Notes
    -----
    Systems read ahead what follows, so a single run of neighbours gains nothing. Of several, each is fetched
    from the disk while the batch before is computed.
    """
    ends = (np.flatnonzero(sections[1:] - sections[:-1] != 1) + 1).tolist()
    if not ends or not hasattr(os, "posix_fadvise"):
        return
    try:
        file = os.open(header.path, os.O_RDONLY)
    except OSError:
        return  # whoever reads it will say so
    try:
        for start, end in pairwise([0, *ends, len(sections)]):
            place = header.offset + int(sections[start]) * header.image_bytes
            for piece in range(place, place + (end - start) * header.image_bytes, _ANNOUNCED_BYTES):
                os.posix_fadvise(file, piece, _ANNOUNCED_BYTES, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(file)


def _read_run(file: BufferedReader, header: MrcHeader, out: npt.NDArray[np.float32]) -> None:
    if header.dtype == np.float32:
        _fill(file, header, out)
        return
    step = max(1, _CONVERSION_BYTES // header.image_bytes)
    for start in range(0, len(out), step):
        piece = out[start : start + step]
        stored = np.empty(piece.shape, header.dtype)
        _fill(file, header, stored)
        if header.dtype.itemsize == 2 and header.dtype.kind == "f":
            widen(stored, piece)
        else:
            piece[...] = stored


def widen(halves: npt.NDArray[np.float16], out: npt.NDArray[np.float32]) -> None:
    """Convert half precision; NumPy does it number by number, and takes five times as long."""
    bits = out.view(np.int32)
    bits[...] = halves.view(halves.dtype.str.replace("f", "i"))
    # Exponent and mantissa move to their places in a single; the shift spreads the sign over three bits more.
    bits <<= 13
    bits &= _SIGN_AND_VALUE
    # The zero of the exponent is 15 in a half, 127 in a single; multiplying serves subnormal numbers, too.
    out *= np.float32(2.0 ** (127 - 15))
    if out.max() >= _HALF_RANGE or out.min() <= -_HALF_RANGE:
        out[...] = halves  # infinities and what is not a number


def _fill(file: BufferedReader, header: MrcHeader, array: npt.NDArray[Any]) -> None:
    try:
        n_read = file.readinto(array.data)
    except OSError as error:
        raise InputError(f"cannot read {header.path}: {error.strerror}.") from None
    if n_read != array.nbytes:
        raise InputError(f"{header.path} has become shorter while it was read: copy or write it again.")


def write_stack(
    path: str | os.PathLike[str],
    blocks: Iterable[npt.NDArray[np.float32]],
    pixel_size: float,
    n_images: int,
    box: int,
    *,
    half: bool = False,
) -> None:
    """Write an MRC stack of images, block after block.

    The stack appears under its name only when it is complete: until then it
    grows in a file beside it, which any error removes.

    Parameters
    ----------
    path : path
        The stack to write or to replace.
    blocks : iterable of ndarray of float32, shape (m, box, box)
        Never held together.
    pixel_size : float
        In angstroms; NaN writes none.
    n_images : int
        How many images the blocks hold in total.
    box : int
        Side of an image in pixels.
    half : bool
        Whether pixels are written as float16 (mode 12) instead of float32. What lies beyond its range is
        written as its largest number.

    Raises
    ------
    InputError
        When there is nothing to write.
    ValueError
        When the blocks do not have the promised shape or number.
    OSError
        When the disk refuses; no file is left behind.
    """
    check_count("n_images", n_images)
    partial = f"{os.fspath(path)}.{os.getpid()}.partial"
    try:
        needed = HEADER_DTYPE.itemsize + n_images * box * box * (2 if half else 4)
        with on_disk(path, needed), open(partial, "wb") as file:
            file.write(bytes(HEADER_DTYPE.itemsize))
            statistics = _write_blocks(file, blocks, n_images, box, half)
            file.seek(0)
            file.write(_stack_header(statistics, pixel_size, n_images, box, half))
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def _write_blocks(
    file: BufferedWriter, blocks: Iterable[npt.NDArray[np.float32]], n_images: int, box: int, half: bool
) -> tuple[float, float, float, float]:
    count, n_finite, lowest, highest, total, squares = 0, 0, math.inf, -math.inf, 0.0, 0.0
    for block in blocks:
        if block.ndim != 3 or block.shape[1:] != (box, box):
            raise ValueError(f"blocks must have shape (m, {box}, {box}); got {block.shape}.")
        if len(block) == 0:
            continue
        pixels = np.ascontiguousarray(block, "<f4")
        if half:
            largest = np.finfo(np.float16).max
            clipped = np.clip(pixels, -largest, largest)
            pixels = np.where(np.isinf(pixels), pixels, clipped).astype("<f2")
        file.write(pixels.data)
        count += len(pixels)
        pixels = pixels.astype(np.float32, copy=False)
        if not np.isfinite(pixels).all():
            pixels = pixels[np.isfinite(pixels)]
            if pixels.size == 0:
                continue
        n_finite += pixels.size
        lowest, highest = min(lowest, float(pixels.min())), max(highest, float(pixels.max()))
        total += float(pixels.sum(dtype=np.float64))
        squares += float(np.square(pixels, dtype=np.float64).sum())
    if count != n_images:
        raise ValueError(f"the blocks hold {count} images; {n_images} were promised.")
    if not n_finite:
        return 0.0, 0.0, 0.0, 0.0
    mean = total / n_finite
    return lowest, highest, mean, math.sqrt(max(0.0, squares / n_finite - mean * mean))


def _stack_header(
    statistics: tuple[float, float, float, float], pixel_size: float, n_images: int, box: int, half: bool
) -> bytes:
    side = box * pixel_size if math.isfinite(pixel_size) else 0.0
    header = np.zeros((), HEADER_DTYPE)
    header["nx"] = header["ny"] = header["mx"] = header["my"] = box
    header["nz"], header["mz"] = n_images, 1
    header["mode"] = 12 if half else 2
    header["cella"] = side, side, side / box
    header["cellb"] = 90, 90, 90
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = statistics
    header["nversion"] = 20141
    header["map"], header["machst"] = b"MAP ", (0x44, 0x44, 0, 0)
    header["nlabl"] = 1
    header["label"][0] = b"fastsort"
    return header.tobytes()
