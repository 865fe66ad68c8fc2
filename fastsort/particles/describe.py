"""What a file of particles holds, said without sorting it and without needing all of its stacks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

from fastsort._checks import MAX_BOX, InputError
from fastsort._types import Array, FilePath, Floats, Images, Numbers
from fastsort.particles.doubts import stack_doubts, table_doubts
from fastsort.particles.files import NotFoundError, locate_files, near_match
from fastsort.particles.mrc import MrcHeader, read_header
from fastsort.particles.open import open_particles, open_table, whole_stack
from fastsort.particles.places import micrograph_places
from fastsort.particles.store import StackImages
from fastsort.particles.table import ImageTable, NumberedImages, OpticsGroup, Table

_Answer = TypeVar("_Answer")

N_SAMPLED = 500
# How many of a long list of missing stacks are named.
N_NAMED = 10
# So that a look takes seconds, however large the images are.
_BYTES_SAMPLED = 1 << 28
_IMAGES_AT_ONCE = 50
# Of the number of images with a bright middle, from one half, in standard deviations.
_SURE = 3.0
_NORMALIZED = 0.15


class Look(NamedTuple):
    """What a sample of the images shows.

    Attributes
    ----------
    n_images : int
        How many were looked at.
    contrast : str
        "bright", "dark" or "unclear": of the particles.
    background_mean, background_std : float
        Median over the images, of the pixels outside the circle that fits the box; NaN where no image
        could be looked at.
    normalized : bool
        Whether these are 0 and 1.
    n_bad : int
        Images with pixels that are NaN or infinite.
    n_flat : int
        Images whose pixels are all the same.
    """

    n_images: int
    contrast: str
    background_mean: float
    background_std: float
    normalized: bool
    n_bad: int
    n_flat: int


class Description(NamedTuple):
    """What a file of particles holds.

    Attributes
    ----------
    path : str
    kind : str
        Such as "RELION 3.1 or later".
    n_images : int
    n_repeated : int
        Lines of a STAR file, or rows of a .cs file, that name an image which an earlier one names too.
    boxes : dict of tuple of int to int
        How many images there are of each width and height in pixels; those of missing stacks are in none.
    pixel_size : float
        In angstroms; NaN where it is unknown or not one.
    optics : list of OpticsGroup
        Empty for a stack.
    defocus : tuple of float
        Lowest and highest, in angstroms; NaN where no image has one.
    has_ctf : bool
        Whether all is known that phases are flipped with.
    corrected : dict of str to int
        How many images the file says are "phase-flipped" or "CTF-premultiplied", where there are any.
    n_micrographs : int or None
        None where the file does not say.
    n_stacks : int
        How many are named, missing ones too.
    stack_bytes : int
        Of those that are there.
    pixels : dict of str to int
        How many stacks hold each kind of number, such as "float32, little-endian".
    missing : dict of str to int
        How many images are in each stack that was not found, by its name in the file.
    doubts : tuple of str
        What looks wrong and does not keep the file from being sorted; a line each, with what to do.
    near_matches : dict of str to str
        What may be meant by the first missing stacks, and what to do then.
    problems : list of str
        Why the file cannot be sorted as it is, besides missing stacks; a sentence each.
    look : Look
    """

    path: str
    kind: str
    n_images: int
    n_repeated: int
    boxes: dict[tuple[int, int], int]
    pixel_size: float
    optics: list[OpticsGroup]
    defocus: tuple[float, float]
    has_ctf: bool
    corrected: dict[str, int]
    n_micrographs: int | None
    n_stacks: int
    stack_bytes: int
    pixels: dict[str, int]
    missing: dict[str, int]
    doubts: tuple[str, ...]
    near_matches: dict[str, str]
    problems: list[str]
    look: Look

    @property
    def usable(self) -> bool:
        """Whether the file can be sorted as it is."""
        return not (self.missing or self.problems)


def describe(
    path: FilePath,
    *,
    pixel_size: float | None = None,
    data_dir: FilePath | None = None,
    passthrough: FilePath | None = None,
) -> Description:
    """Say what a file of particles holds, and what keeps it from being sorted.

    Parameters
    ----------
    path : path
        A RELION .star file, a cryoSPARC .cs file or an MRC stack.
    pixel_size : float, optional
        In angstroms, instead of what the file says.
    data_dir : path, optional
        Folder in which to look first for the stacks that a STAR or .cs file names.
    passthrough : path, optional
        As for `open_particles`.

    Returns
    -------
    description : Description
        Of all lines of the table and all headers; of the pixels of up to 500 images, evenly spaced.

    Raises
    ------
    InputError
        When the file cannot be read, or is neither a particle table nor a stack.
    """
    path = os.fspath(path)
    problems: list[str] = []
    try:
        particles = open_particles(path, pixel_size=pixel_size, data_dir=data_dir, passthrough=passthrough)
        micrograph_places(particles)
        table = particles.table
    except InputError as error:
        table = _table_of(path, passthrough, error)
        # Missing stacks are listed by themselves.
        if not isinstance(error, NotFoundError):
            problems.append(str(error))
    if isinstance(table, ImageTable):
        return _describe_table(table, _find_images(table, data_dir, problems), pixel_size)
    return _describe_stack(path, _whole_stack(path, problems), pixel_size)


def _table_of(path: str, passthrough: FilePath | None, error: InputError) -> Table:
    """Open the table of a set that cannot be sorted; what cannot be read at all is the error."""
    try:
        return open_table(path, passthrough)
    except InputError:
        pass
    try:
        return NumberedImages(path, read_header(path).n_images)
    except InputError:
        raise error from None


class _Located(NamedTuple):
    """Where the images are, as far as that can be said."""

    headers: list[MrcHeader | None]
    stack_of: Numbers
    section_of: Array
    missing: dict[str, int]
    problems: list[str]
    near_matches: dict[str, str]
    sign_of: Array | None = None


def _whole_stack(path: str, problems: list[str]) -> _Located:
    images = whole_stack(read_header(path))
    return _Located([*images.stacks], images.stack_of, images.section_of, {}, problems, {})


def _find_images(table: ImageTable, data_dir: FilePath | None, problems: list[str]) -> _Located:
    """Find the stacks that are there, and name those that are not or cannot be read."""
    named = table.named_images()
    counts = np.bincount(named.stack_of, minlength=len(named.stacks)).tolist()
    headers: list[MrcHeader | None] = []
    missing: dict[str, int] = {}
    unreadable: list[str] = []
    paths = locate_files(named.stacks, table.path, data_dir)
    for stack, count, path in zip(named.stacks, counts, paths, strict=True):
        header = None
        if path is None:
            missing[stack] = count
        else:
            try:
                header = read_header(path)
            except InputError as error:
                unreadable.append(str(error))
        headers.append(header)
    others = [problem for problem in problems if problem not in unreadable]
    near = {name: near_match(name, table.path, data_dir) for name in [*missing][:N_NAMED]}
    return _Located(
        headers, named.stack_of, named.section_of, missing, [*unreadable, *others], near, named.sign_of
    )


def _describe_stack(path: str, located: _Located, pixel_size: float | None) -> Description:
    (header,) = located.headers
    assert header is not None
    return Description(
        path=path,
        kind=NumberedImages.kind,
        n_images=header.n_images,
        n_repeated=0,
        boxes=_count_boxes(located),
        pixel_size=pixel_size or header.pixel_size,
        optics=[],
        defocus=(math.nan, math.nan),
        has_ctf=False,
        corrected={},
        n_micrographs=None,
        n_stacks=1,
        stack_bytes=os.path.getsize(header.path),
        pixels=_count_pixels(located),
        missing={},
        near_matches={},
        doubts=() if located.problems else tuple(stack_doubts([header])),
        problems=located.problems,
        look=_look_at(located),
    )


def _describe_table(table: ImageTable, located: _Located, pixel_size: float | None) -> Description:
    acquisition, micrographs = table.acquisition(), table.micrographs()
    n_repeated = _count_repeated(located)
    present = [header for header in located.headers if header]
    return Description(
        path=table.path,
        kind=table.kind,
        n_images=len(table),
        n_repeated=n_repeated,
        boxes=_count_boxes(located),
        pixel_size=pixel_size or _pixel_size(table, acquisition.optics, present),
        optics=acquisition.optics,
        defocus=acquisition.defocus,
        has_ctf=acquisition.has_ctf,
        corrected={word: int(images.sum()) for word, images in (_known(table.corrections) or {}).items()},
        n_micrographs=None if micrographs is None else len(set(micrographs)),
        n_stacks=len(located.headers),
        stack_bytes=sum(os.path.getsize(header.path) for header in present),
        pixels=_count_pixels(located),
        missing=located.missing,
        near_matches=located.near_matches,
        doubts=table_doubts(
            table,
            located.headers,
            located.stack_of,
            n_repeated,
            _known(table.pixel_sizes) if pixel_size is None else None,
            _known(table.ctf),
        ),
        problems=located.problems,
        look=_look_at(located),
    )


def _pixel_size(table: ImageTable, optics: list[OpticsGroup], headers: list[MrcHeader]) -> float:
    """Return the pixel size of all images, NaN where it is unknown or not one."""
    sizes = {group.pixel_size for group in optics if group.n_images and group.pixel_size > 0}
    if not sizes:
        try:
            is_said = table.pixel_sizes() is not None
        except InputError:
            is_said = True
        sizes = set() if is_said else {header.pixel_size for header in headers}
    return sizes.pop() if len(sizes) == 1 else math.nan


def _known(ask: Callable[[], _Answer]) -> _Answer | None:
    """Return what a table says; None where that cannot be read, which is a problem that is told already."""
    try:
        return ask()
    except InputError:
        return None


def _count_repeated(located: _Located) -> int:
    # A file may be named in several ways.
    number_of: dict[str, int] = {}
    files = [
        number_of.setdefault(os.path.realpath(header.path) if header else f"missing {number}", len(number_of))
        for number, header in enumerate(located.headers)
    ]
    file_of = np.array(files, np.int64)[located.stack_of]
    places = file_of << 32 | (located.section_of & 0xFFFFFFFF)
    return len(places) - len(np.unique(places))


def _count_boxes(located: _Located) -> dict[tuple[int, int], int]:
    boxes: dict[tuple[int, int], int] = {}
    counts = np.bincount(located.stack_of, minlength=len(located.headers)).tolist()
    for header, count in zip(located.headers, counts, strict=True):
        if header:
            box = header.nx, header.ny
            boxes[box] = boxes.get(box, 0) + count
    return boxes


def _count_pixels(located: _Located) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for header in located.headers:
        if header:
            dtype = header.dtype
            swapped = dtype != dtype.newbyteorder("<")
            order = f", {'big' if swapped else 'little'}-endian" if dtype.itemsize > 1 else ""
            kinds[f"{dtype.name}{order}"] = kinds.get(f"{dtype.name}{order}", 0) + 1
    return kinds


# What the pixels show.


def _look_at(located: _Located) -> Look:
    """Look at some images of the most frequent box, as evenly spaced as they can be."""
    # What is larger cannot be sorted, and a movie's frames would fill the memory.
    boxes = {box: count for box, count in _count_boxes(located).items() if box[0] == box[1] <= MAX_BOX}
    box = max(boxes, key=lambda size: boxes[size], default=(0, 0))
    n_sections = np.array(
        [header.n_images if header and (header.nx, header.ny) == box else 0 for header in located.headers],
        np.int64,
    )
    there = (located.section_of >= 0) & (located.section_of < n_sections[located.stack_of])
    rows = np.flatnonzero(there)
    n_sampled = min(len(rows), N_SAMPLED, max(_IMAGES_AT_ONCE, _BYTES_SAMPLED // (4 * box[0] ** 2 or 1)))
    if n_sampled == 0:
        return Look(0, "unclear", math.nan, math.nan, False, 0, 0)
    rows = rows[np.arange(n_sampled) * len(rows) // n_sampled]
    # A store takes its box from its first stack, so the others may not be in it.
    numbers, stack_of = np.unique(located.stack_of[rows], return_inverse=True)
    stacks = [header for header in (located.headers[number] for number in numbers) if header]
    sign_of = None if located.sign_of is None else located.sign_of[rows]
    store = StackImages(stacks, stack_of.astype(np.int32), located.section_of[rows].astype(np.int32), sign_of)
    measured = []
    try:
        for start in range(0, n_sampled, _IMAGES_AT_ONCE):
            chosen = np.arange(start, min(start + _IMAGES_AT_ONCE, n_sampled))
            measured.append(_measure(store.read(chosen)))
    except InputError as error:
        located.problems.append(str(error))
    if not measured:
        return Look(0, "unclear", math.nan, math.nan, False, 0, 0)
    finite, flat, mean, std, step = np.concatenate(measured, axis=1)
    good = (finite == 1) & (flat == 0)
    bright, n_good = int((step[good] > 0).sum()), int(good.sum())
    surplus = (2 * bright - n_good) / math.sqrt(n_good or 1)
    contrast = "unclear" if abs(surplus) < _SURE else "bright" if surplus > 0 else "dark"
    middle, spread = (float(np.median(values[good])) if n_good else math.nan for values in (mean, std))
    normalized = n_good > 0 and abs(middle) < _NORMALIZED and abs(spread - 1) < _NORMALIZED
    n_flat = int(((finite == 1) & (flat == 1)).sum())
    return Look(len(finite), contrast, middle, spread, normalized, int((finite == 0).sum()), n_flat)


def _measure(images: Images) -> Floats:
    """Return of each image: finite, flat, background mean and deviation, and middle above background."""
    box = images.shape[1]
    offset = np.arange(box) - box // 2
    square = np.add.outer(offset**2, offset**2)
    finite = np.isfinite(images).all(axis=(1, 2))
    images[~finite] = 0
    flat = images.max(axis=(1, 2)) == images.min(axis=(1, 2))
    background = images[:, square > (box / 2) ** 2].astype(np.float64)
    mean, std = background.mean(axis=1), background.std(axis=1)
    middle = images[:, square <= (box / 4) ** 2].mean(axis=1, dtype=np.float64)
    return np.stack([finite, flat, mean, std, middle - mean])
