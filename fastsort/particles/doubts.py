"""Doubts about an input: what looks wrong in it but can be sorted, a line each, with what to do.

What would certainly give a wrong result is an `InputError` instead, where it is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np

from fastsort._types import Array, Bools, Floats
from fastsort.particles.files import shown
from fastsort.particles.kinds import LIKE, MORE_LIKE, is_cubic, likeness
from fastsort.particles.mrc import MrcHeader
from fastsort.particles.table import CtfParameters, ImageTable

# Calibration changes a pixel size by a few percent; binning, or another stack, by much more.
_SAME_PIXEL_SIZE = 0.05
# What many programs write into headers when they know no pixel size.
_NO_PIXEL_SIZE = 1.0
_PIXEL_SIZES = (0.1, 50.0)
# Of usual data, in the units of `CtfParameters`.
_DEFOCUS_IN_MICROMETRES, _DEFOCUS_IN_NANOMETRES, _LARGEST_DEFOCUS = 100.0, 2000.0, 150_000.0
_VOLTAGES = (60.0, 400.0)
_ABERRATIONS = (1e-3, 10.0)
_LARGEST_CONTRAST = 0.5
_LARGEST_PHASE_SHIFT = 360.0
_UNLESS = "or sort with --phase-flip no"
_CLASSES = re.compile(r"(?:^|[^a-z])(?:classes|class_?averages|templates)(?![a-z])", re.IGNORECASE)
_MOST_VOLUMES = 3


def stack_doubts(headers: Sequence[MrcHeader]) -> list[str]:
    """Return doubts about stacks: one line for each kind, however many stacks it is about."""
    names: dict[str, list[str]] = {}
    for header in headers:
        for doubt in header.doubts:
            names.setdefault(doubt, []).append(os.path.basename(header.path))
        if _CLASSES.search(os.path.basename(header.path)):
            doubt = "holds class averages or templates by its name: give the particles instead"
            names.setdefault(doubt, []).append(os.path.basename(header.path))
    for header in [header for header in headers if is_cubic(header)][:_MOST_VOLUMES]:
        if _may_be_volume(header):
            doubt = "may be a volume, whose sections are no images: if it is, give a stack of particles"
            names.setdefault(doubt, []).append(os.path.basename(header.path))
    return [
        f"{shown(stacks[0])}{f' (and {len(stacks) - 1} more)' if len(stacks) > 1 else ''} {doubt}."
        for doubt, stacks in names.items()
    ]


def _may_be_volume(header: MrcHeader) -> bool:
    if not is_cubic(header):
        return False
    near, far = (1.0, 0.0) if header.says_volume else likeness(header)
    return near > LIKE and near - far > MORE_LIKE


def table_doubts(
    table: ImageTable,
    headers: Sequence[MrcHeader | None],
    stack_of: Array,
    n_repeated: int,
    sizes: Floats | None,
    ctf: CtfParameters | None,
) -> tuple[str, ...]:
    """Return doubts about a table and the stacks that it names.

    Parameters
    ----------
    table : ImageTable
    headers : sequence of MrcHeader or None
        Of the stacks; None for one that is missing.
    stack_of : ndarray of int, shape (n,)
        Which of them each image is in.
    n_repeated : int
        How many images are named by an earlier line, too.
    sizes : ndarray of float64, shape (n,), or None
        The pixel size of each image in angstroms, as the table has it; None where that does not count.
    ctf : CtfParameters or None
        Of each image, as the table has it.

    Returns
    -------
    doubts : tuple of str
    """
    doubts = stack_doubts([header for header in headers if header])
    doubts += [*pixel_size_doubts(sizes, headers, stack_of), *ctf_doubts(ctf)]
    if n_repeated:
        lines = "row" if table.takes == "fields" else "line"
        names = "s name" if n_repeated > 1 else " names"
        doubts.append(
            f"{n_repeated:,} {lines}{names} an image again (symmetry expansion?): {lines}s of one image "
            "share its verdict."
        )
    return tuple(doubts)


def pixel_size_doubts(
    sizes: Floats | None, headers: Sequence[MrcHeader | None], stack_of: Array
) -> list[str]:
    """Return doubts about the pixel sizes of a table, in angstroms, beside those of the headers."""
    if sizes is None or len(sizes) == 0:
        return []
    of_stacks = np.array([header.pixel_size if header else np.nan for header in headers])
    of_stacks[of_stacks == _NO_PIXEL_SIZE] = np.nan
    of_headers = of_stacks[stack_of]
    doubts = []
    wrong = np.flatnonzero(np.abs(of_headers / sizes - 1) > _SAME_PIXEL_SIZE)
    if len(wrong):
        row = int(wrong[0])
        header = headers[stack_of[row]]
        assert header is not None
        doubts.append(
            f"the table says {sizes[row]:.4g} A/px, and the header of {shown(os.path.basename(header.path))} "
            f"{of_headers[row]:.4g} A/px{_of(len(wrong), len(sizes))}: if the table is wrong, so are "
            "all lengths in angstroms. Correct it, or give --pixel-size."
        )
    odd = (sizes < _PIXEL_SIZES[0]) | (sizes > _PIXEL_SIZES[1])
    return doubts + _odd_values("the pixel size", "A", sizes, odd, "correct it, or give --pixel-size")


def ctf_doubts(ctf: CtfParameters | None) -> list[str]:
    """Return doubts about what phases are flipped with: values of other units, or of nowhere."""
    if ctf is None or len(ctf.defocus_u) == 0:
        return []
    defocus = (ctf.defocus_u + ctf.defocus_v) / 2
    size = np.abs(defocus)
    none = (ctf.defocus_u == 0) & (ctf.defocus_v == 0)
    tiny = ~none & (size < _DEFOCUS_IN_MICROMETRES)
    small = ~none & ~tiny & (size < _DEFOCUS_IN_NANOMETRES)
    usual = bool((small | none | tiny).mean() < 0.5)
    voltage, aberration, contrast = ctf.voltage, ctf.spherical_aberration, ctf.amplitude_contrast
    low, high = _ABERRATIONS
    return [
        *_odd_values("the defocus", "A", defocus, none, f"estimate the CTF of their micrographs, {_UNLESS}"),
        *_odd_values(
            "the defocus", "A", defocus, tiny, f"if that is in micrometres, multiply it by 10000, {_UNLESS}"
        ),
        # A few such images are possible; a whole set is not.
        *_odd_values(
            "the defocus",
            "A",
            defocus,
            small & (not usual),
            f"if that is in nanometres, multiply it by 10, {_UNLESS}",
        ),
        *_odd_values(
            "the defocus", "A", defocus, size > _LARGEST_DEFOCUS, f"check it, and its unit, {_UNLESS}"
        ),
        *_odd_values(
            "the defocus",
            "A",
            defocus,
            ~tiny & (defocus < 0),
            f"underfocus is positive, so change its sign if it is underfocus, {_UNLESS}",
        ),
        *_odd_values(
            "the voltage",
            "kV",
            voltage,
            (voltage < _VOLTAGES[0]) | (voltage > _VOLTAGES[1]),
            f"give it in kilovolts, such as 300, {_UNLESS}",
        ),
        *_odd_values(
            "the spherical aberration",
            "mm",
            aberration,
            (aberration < 0) | ((aberration > 0) & (aberration < low)) | (aberration > high),
            f"give it in millimetres, such as 2.7, {_UNLESS}",
        ),
        *_odd_values(
            "the amplitude contrast",
            "",
            contrast,
            (contrast < 0) | (contrast > _LARGEST_CONTRAST),
            f"give it as a fraction, such as 0.1, {_UNLESS}",
        ),
        *_odd_values(
            "the phase shift",
            "degrees",
            ctf.phase_shift,
            np.abs(ctf.phase_shift) > _LARGEST_PHASE_SHIFT,
            f"check it, {_UNLESS}",
        ),
    ]


def _odd_values(name: str, unit: str, values: Floats, odd: Bools, advice: str) -> list[str]:
    n_odd = int(odd.sum())
    if not n_odd:
        return []
    low, high = float(values[odd].min()), float(values[odd].max())
    span = f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
    quantity = f"{span} {unit}".rstrip()
    return [f"{name} is {quantity}{_of(n_odd, len(values))}: {advice}."]


def _of(number: int, n_images: int) -> str:
    return "" if number == n_images else f" for {number:,} of {n_images:,} images"
