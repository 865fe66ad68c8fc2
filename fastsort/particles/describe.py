"""What a file of particles holds, said without sorting it and without needing all of its stacks."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsort._checks import MAX_BOX, InputError
from fastsort.particles.cs import CsDataset, _locate_images
from fastsort.particles.mrc import MrcHeader, read_header
from fastsort.particles.places import micrograph_places
from fastsort.particles.relion import locate_stacks
from fastsort.particles.source import Images, Particles, StackImages, open_particles
from fastsort.particles.star import StarBlock, StarFile, read_star

N_SAMPLED = 500
# So that a look takes seconds, however large the images are.
_BYTES_SAMPLED = 1 << 28
_IMAGES_AT_ONCE = 50
# Of the number of images with a bright middle, from one half, in standard deviations.
_SURE = 3.0
_NORMALIZED = 0.15

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int32]


class OpticsGroup(NamedTuple):
    """One row of an optics table, or what a table without one says of all of its images.

    Attributes
    ----------
    name : str
        Empty where the file has no optics table.
    n_images : int
    pixel_size : float
        In angstroms; this and all that follows is NaN where it is not said, or differs among the images.
    box : float
        Side of an image in pixels.
    voltage : float
        In kilovolts.
    spherical_aberration : float
        In millimetres.
    amplitude_contrast : float
        Fraction.
    """

    name: str
    n_images: int
    pixel_size: float
    box: float
    voltage: float
    spherical_aberration: float
    amplitude_contrast: float


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
    corrected : str
        "phase-flipped" or "CTF-premultiplied" where the file says that of all images, otherwise empty.
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
    corrected: str
    n_micrographs: int | None
    n_stacks: int
    stack_bytes: int
    pixels: dict[str, int]
    missing: dict[str, int]
    problems: list[str]
    look: Look

    @property
    def usable(self) -> bool:
        """Whether the file can be sorted as it is."""
        return not (self.missing or self.problems)


def describe(
    path: str | os.PathLike[str],
    *,
    pixel_size: float | None = None,
    data_dir: str | os.PathLike[str] | None = None,
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
    is_star = Path(path).suffix.lower() == ".star"
    try:
        particles = open_particles(path, pixel_size=pixel_size, data_dir=data_dir)
        micrograph_places(particles)
    except InputError as error:
        if is_star:
            star = read_star(path)
            found = _find_images(star, data_dir)
            # Only the first of several faults stops a run, and missing stacks are listed by themselves.
            if not found.missing and str(error) not in found.problems:
                found.problems.append(str(error))
            return _describe_table(star, found, pixel_size)
        try:
            found = _whole_stack(read_header(path))
        except InputError:
            raise error from None
        found.problems.append(str(error))
        return _describe_stack(path, found, pixel_size)
    store = particles.store
    if isinstance(particles.table, CsDataset):
        return _describe_dataset(particles, particles.table, data_dir)
    if particles.star is None:
        assert isinstance(store, StackImages)
        return _describe_stack(path, _whole_stack(store.stacks[0]), pixel_size)
    if isinstance(store, StackImages):
        found = _Found([*store.stacks], store.stack_of, store.section_of, {}, [])
    else:
        found = _find_images(particles.star, data_dir)
    return _describe_table(particles.star, found, pixel_size)


class _Found(NamedTuple):
    """Where the images are, as far as that can be said."""

    headers: list[MrcHeader | None]
    stack_of: Indices
    section_of: Indices
    missing: dict[str, int]
    problems: list[str]
    sign_of: npt.NDArray[np.int8] | None = None


def _whole_stack(header: MrcHeader) -> _Found:
    sections = np.arange(header.n_images, dtype=np.int32)
    return _Found([header], np.zeros_like(sections), sections, {}, [])


def _find_images(star: StarFile, data_dir: str | os.PathLike[str] | None) -> _Found:
    """Find the stacks that are there, and name those that are not or cannot be read."""
    names = star.particles_block.column("_rlnImageName")
    number_of: dict[str, int] = {}
    stack_of = np.empty(len(names), np.int32)
    section_of = np.full(len(names), -1, np.int32)
    for row, name in enumerate(names):
        number, at, stack = name.partition("@")
        stack_of[row] = number_of.setdefault(stack if at else name, len(number_of))
        if at and number.isdecimal() and len(number) < 10:
            section_of[row] = int(number) - 1
    counts = np.bincount(stack_of, minlength=len(number_of)).tolist()
    headers: list[MrcHeader | None] = []
    missing: dict[str, int] = {}
    problems: list[str] = []
    places = locate_stacks(number_of, star.path, data_dir)
    for stack, count, place in zip(number_of, counts, places, strict=True):
        header = None
        if place is None:
            missing[stack] = count
        else:
            try:
                header = read_header(place)
            except InputError as error:
                problems.append(str(error))
        headers.append(header)
    return _Found(headers, stack_of, section_of, missing, problems)


def _describe_stack(path: str, found: _Found, pixel_size: float | None) -> Description:
    (header,) = found.headers
    assert header is not None
    return Description(
        path=path,
        kind="MRC stack",
        n_images=header.n_images,
        n_repeated=0,
        boxes=_count_boxes(found),
        pixel_size=pixel_size or header.pixel_size,
        optics=[],
        defocus=(math.nan, math.nan),
        has_ctf=False,
        corrected="",
        n_micrographs=None,
        n_stacks=1,
        stack_bytes=os.path.getsize(header.path),
        pixels=_count_pixels(found),
        missing=found.missing,
        problems=found.problems,
        look=_look_at(found),
    )


def _describe_dataset(
    particles: Particles, dataset: CsDataset, data_dir: str | os.PathLike[str] | None
) -> Description:
    # The set itself may be brought to one box: this is of the images as they are.
    images = _locate_images(dataset, data_dir)[1]
    found = _Found([*images.stacks], images.stack_of, images.section_of, {}, [], images.sign_of)
    n_images, boxes, ctf = len(particles), _count_boxes(found), particles.ctf
    pixel_size = _common(particles.own_pixel_size)
    box = float(max(boxes)[0]) if len(boxes) == 1 else math.nan
    microscope = (math.nan,) * 3
    defocus = (math.nan, math.nan)
    if ctf is not None:
        microscope = (
            _common(ctf.voltage),
            _common(ctf.spherical_aberration),
            _common(ctf.amplitude_contrast),
        )
        defocus = float(ctf.defocus_u.min()), float(ctf.defocus_u.max())
    return Description(
        path=particles.path or dataset.path,
        kind="cryoSPARC dataset",
        n_images=n_images,
        n_repeated=int(images.repeated().sum()),
        boxes=boxes,
        pixel_size=pixel_size,
        optics=[OpticsGroup("", n_images, pixel_size, box, *microscope)],
        defocus=defocus,
        has_ctf=ctf is not None,
        corrected="",
        n_micrographs=None if particles.micrographs is None else len(set(particles.micrographs)),
        n_stacks=len(images.stacks),
        stack_bytes=sum(os.path.getsize(stack.path) for stack in images.stacks),
        pixels=_count_pixels(found),
        missing=found.missing,
        problems=found.problems,
        look=_look_at(found),
    )


def _describe_table(star: StarFile, found: _Found, pixel_size: float | None) -> Description:
    rows = star.particles_block
    optics = _optics_groups(star)
    used = [group for group in optics if group.n_images]
    sizes = {group.pixel_size for group in used if group.pixel_size > 0}
    present = [header for header in found.headers if header]
    if not sizes:
        sizes = {header.pixel_size for header in present}
    defocus = _numbers(rows, "_rlnDefocusU")
    defocus = defocus[np.isfinite(defocus)]
    names = "_rlnMicrographName"
    return Description(
        path=star.path,
        kind="RELION 3.1 or later" if _optics_block(star) else "RELION 3.0 or earlier",
        n_images=rows.n_rows,
        n_repeated=rows.n_rows - len(set(rows.column("_rlnImageName"))),
        boxes=_count_boxes(found),
        pixel_size=pixel_size or (sizes.pop() if len(sizes) == 1 else math.nan),
        optics=optics,
        defocus=(float(defocus.min()), float(defocus.max())) if len(defocus) else (math.nan, math.nan),
        has_ctf=0 < rows.n_rows == len(defocus) and _knows_microscope(star),
        corrected=_correction(star),
        n_micrographs=len(set(rows.column(names))) if names in rows.labels else None,
        n_stacks=len(found.headers),
        stack_bytes=sum(os.path.getsize(header.path) for header in present),
        pixels=_count_pixels(found),
        missing=found.missing,
        problems=found.problems,
        look=_look_at(found),
    )


def _count_boxes(found: _Found) -> dict[tuple[int, int], int]:
    boxes: dict[tuple[int, int], int] = {}
    counts = np.bincount(found.stack_of, minlength=len(found.headers)).tolist()
    for header, count in zip(found.headers, counts, strict=True):
        if header:
            box = header.nx, header.ny
            boxes[box] = boxes.get(box, 0) + count
    return boxes


def _count_pixels(found: _Found) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for header in found.headers:
        if header:
            dtype = header.dtype
            swapped = dtype != dtype.newbyteorder("<")
            order = f", {'big' if swapped else 'little'}-endian" if dtype.itemsize > 1 else ""
            kinds[f"{dtype.name}{order}"] = kinds.get(f"{dtype.name}{order}", 0) + 1
    return kinds


def _optics_block(star: StarFile) -> StarBlock | None:
    block = star.block("optics")
    return block if block is not None and block.n_rows else None


def _optics_groups(star: StarFile) -> list[OpticsGroup]:
    rows, block = star.particles_block, _optics_block(star)
    if block is None:
        return [_optics_group("", rows.n_rows, rows, slice(None))]
    numbers, group_of = _numbers(block, "_rlnOpticsGroup"), _numbers(rows, "_rlnOpticsGroup")
    if "_rlnOpticsGroup" not in rows.labels and block.n_rows == 1:
        group_of = np.broadcast_to(numbers, rows.n_rows)
    label = "_rlnOpticsGroupName"
    names = block.column(label) if label in block.labels else [f"{number:g}" for number in numbers]
    return [
        _optics_group(name, int((group_of == number).sum()), block, slice(row, row + 1))
        for row, (name, number) in enumerate(zip(names, numbers.tolist(), strict=True))
    ]


def _optics_group(name: str, n_images: int, block: StarBlock, rows: slice) -> OpticsGroup:
    pixel_size = _common(_pixel_sizes(block)[rows])
    labels = ("ImageSize", "Voltage", "SphericalAberration", "AmplitudeContrast")
    return OpticsGroup(
        name, n_images, pixel_size, *(_common(_numbers(block, f"_rln{label}")[rows]) for label in labels)
    )


def _pixel_sizes(block: StarBlock) -> Floats:
    for label in ("_rlnImagePixelSize", "_rlnPixelSize"):
        if label in block.labels:
            return _numbers(block, label)
    with np.errstate(all="ignore"):
        # Detector pixels are in micrometres.
        return 1e4 * _numbers(block, "_rlnDetectorPixelSize") / _numbers(block, "_rlnMagnification")


def _common(values: Floats) -> float:
    """Return the value that all have, NaN if they differ."""
    with np.errstate(all="ignore"):
        same = len(values) > 0 and values.max() <= values.min() + 1e-4 * abs(values.min())
    return float(values[0]) if same else math.nan


def _numbers(block: StarBlock, label: str) -> Floats:
    """Return a column with NaN for whatever is no number; all NaN where there is no such column."""
    if label not in block.labels:
        return np.full(block.n_rows, np.nan)
    try:
        return block.floats(label)
    except InputError:
        return np.array([_number(word) for word in block.column(label)])


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _knows_microscope(star: StarFile) -> bool:
    blocks = [block for block in (_optics_block(star), star.particles_block) if block]
    return all(
        any(np.isfinite(_numbers(block, f"_rln{label}")).all() for block in blocks)
        for label in ("Voltage", "SphericalAberration", "AmplitudeContrast")
    )


def _correction(star: StarFile) -> str:
    labels = {
        "_rlnCtfDataArePhaseFlipped": "phase-flipped",
        "_rlnCtfDataAreCtfPremultiplied": "CTF-premultiplied",
    }
    for label, word in labels.items():
        for block in star.blocks:
            if label in block.labels and block.n_rows and (_numbers(block, label) == 1).all():
                return word
    return ""


# What the pixels show.


def _look_at(found: _Found) -> Look:
    """Look at some images of the most frequent box, as evenly spaced as they can be."""
    # What is larger cannot be sorted, and a movie's frames would fill the memory.
    boxes = {box: count for box, count in _count_boxes(found).items() if box[0] == box[1] <= MAX_BOX}
    box = max(boxes, key=lambda size: boxes[size], default=(0, 0))
    n_sections = np.array(
        [header.n_images if header and (header.nx, header.ny) == box else 0 for header in found.headers],
        np.int64,
    )
    there = (found.section_of >= 0) & (found.section_of < n_sections[found.stack_of])
    rows = np.flatnonzero(there)
    n_sampled = min(len(rows), N_SAMPLED, max(_IMAGES_AT_ONCE, _BYTES_SAMPLED // (4 * box[0] ** 2 or 1)))
    if n_sampled == 0:
        return Look(0, "unclear", math.nan, math.nan, False, 0, 0)
    rows = rows[np.arange(n_sampled) * len(rows) // n_sampled]
    # A store takes its box from its first stack, so the others may not be in it.
    numbers, stack_of = np.unique(found.stack_of[rows], return_inverse=True)
    stacks = [header for header in (found.headers[number] for number in numbers) if header]
    sign_of = None if found.sign_of is None else found.sign_of[rows]
    store = StackImages(stacks, stack_of.astype(np.int32), found.section_of[rows].astype(np.int32), sign_of)
    measured = []
    try:
        for start in range(0, n_sampled, _IMAGES_AT_ONCE):
            chosen = np.arange(start, min(start + _IMAGES_AT_ONCE, n_sampled))
            measured.append(_measure(store.read(chosen)))
    except InputError as error:
        found.problems.append(str(error))
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
