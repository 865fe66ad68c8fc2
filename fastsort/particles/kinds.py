"""What is no set of particle images: told by what it is, before it is read as one."""

from __future__ import annotations

import numpy as np

from fastsort._checks import MAX_BOX, MIN_BOX, InputError
from fastsort.particles.mrc import MrcHeader, read_sections

# How much a section of a volume is like the next, and more than like distant ones.
LIKE, MORE_LIKE = 0.5, 0.2
_MOST_SECTIONS = 8


def check_no_micrograph(header: MrcHeader) -> None:
    """Refuse images that are much too large for one particle."""
    if max(header.ny, header.nx) > MAX_BOX:
        raise InputError(
            f"images of {header.path} have {header.nx} x {header.ny} px, and at most {MAX_BOX} can be "
            "sorted: if it is a micrograph, give it with --micrographs and its picks with --coordinates; if "
            "it is a movie, give its sum so; if it holds particles, extract them in a smaller box."
        )


def check_no_volume(header: MrcHeader) -> None:
    """Refuse a file whose header calls it a volume and whose sections follow one from another."""
    if not header.says_volume:
        return
    near, far = likeness(header)
    if near > LIKE and (is_cubic(header) or near - far > MORE_LIKE):
        raise InputError(
            f"{header.path} is a volume, not a stack of images: its header says so (space group 1 and mz = "
            "nz), and each section is like the next. Give a stack of particles. If it is one, set the space "
            "group in its header to 0."
        )


def is_cubic(header: MrcHeader) -> bool:
    """Return whether there are as many sections as a section has rows and columns."""
    return header.n_images == header.nx == header.ny


def likeness(header: MrcHeader) -> tuple[float, float]:
    """Return the median correlation of neighbouring sections, and of distant ones; 0 for a few sections."""
    n = header.n_images
    number = min(_MOST_SECTIONS, n // 4)
    if number < 4 or not MIN_BOX <= header.nx <= MAX_BOX or header.nx != header.ny:
        return 0.0, 0.0
    firsts = n // 4 + np.arange(number) * (n // 2) // number
    sections = np.unique([firsts, firsts + 1]).astype(np.intp)
    images = np.empty((len(sections), header.ny, header.nx), np.float32)
    read_sections(header, sections, images)
    flat = np.nan_to_num(images.reshape(len(sections), -1).astype(np.float64))
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    alike, rows = flat @ flat.T, np.searchsorted(sections, firsts)
    near, far = alike[rows, rows + 1], alike[rows, np.roll(rows, number // 2)]
    return float(np.median(near)), float(np.median(far))
