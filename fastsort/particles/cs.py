"""cryoSPARC datasets in and out: NumPy files with one row a particle.

A job often writes two: one with what it found, and a passthrough file with
what it took over from the jobs before it. Both name each particle by its uid.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastsort._checks import InputError, check_every
from fastsort._types import Array, Bools, FilePath, Floats, Indices, Numbers
from fastsort.particles.cs_file import Rows, read_cs, write_cs
from fastsort.particles.files import find_files
from fastsort.particles.mrc import read_header
from fastsort.particles.store import StackImages
from fastsort.particles.table import (
    Acquisition,
    Added,
    Coordinates,
    CtfParameters,
    ImageTable,
    NamedImages,
    OpticsGroup,
    common_value,
)

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CTF = ("ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad", "ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
_MICROGRAPH = "location/micrograph_path"
_NEEDED = ("blob/path", "blob/idx", *_CTF, _MICROGRAPH)
_SHIFT = "alignments2D/shift"
_CENTRE = ("location/center_x_frac", "location/center_y_frac")
_JOB = re.compile(r"(?<![A-Za-z])J\d+(?=_)")


@dataclass(frozen=True, eq=False)
class CsDataset(ImageTable):
    """The rows of a cryoSPARC dataset, and where more is known of the same particles.

    Attributes
    ----------
    path : str
    rows : structured ndarray, shape (n,)
        As they stand in the file.
    passthrough : CsDataset or None
        More fields of the same particles, in any order, and perhaps of others.
    passthrough_row : ndarray of intp, shape (n,), or None
        The row of the passthrough that has the uid of each row.
    """

    path: str
    rows: Rows = field(repr=False)
    passthrough: CsDataset | None = field(default=None, repr=False)
    passthrough_row: Indices | None = field(default=None, repr=False)
    kind = "cryoSPARC dataset"
    takes = "fields"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def files(self) -> list[str]:
        """The dataset and its passthrough file."""
        return [self.path, *([] if self.passthrough is None else self.passthrough.files)]

    def field(self, name: str) -> Array | None:
        """Return one entry a particle, in the order of `rows`; None where no file has the field."""
        if name in _names(self):
            return self.rows[name]
        more = None if self.passthrough is None else self.passthrough.field(name)
        return None if more is None else more[self.passthrough_row]

    @property
    def names(self) -> Sequence[str]:
        """Names such as ``000017@J19/extract/a.mrc``."""
        named = self.named_images()
        return _ImageNames(named.stacks, named.stack_of, named.section_of)

    def micrographs(self) -> list[str] | None:
        """Return the micrograph of each particle."""
        if self.field(_MICROGRAPH) is None:
            return None
        names, name_of = dataset_texts(self, _MICROGRAPH)
        if names == [""]:
            return None
        return [names[number] for number in name_of.tolist()]

    def ctf(self) -> CtfParameters | None:
        """Return the CTF of each particle; None if a part of it is missing or it was never estimated."""
        return dataset_ctf(self)

    def pixel_sizes(self) -> Floats | None:
        """Return the pixel size of each image in angstroms."""
        sizes = dataset_numbers(self, "blob/psize_A")
        if sizes is not None:
            _check_every("blob/psize_A", sizes, self.path, positive=True)
        return sizes

    def named_images(self) -> NamedImages:
        """Return the stack and the section of each particle; pixels are multiplied with ``blob/sign``."""
        return self._named_images

    @cached_property
    def _named_images(self) -> NamedImages:
        sections = _sections(self)
        stacks, stack_of = dataset_texts(self, "blob/path")
        if "" in stacks:
            raise InputError(f"blob/path of {self.path} is empty for some particles: extract them again.")
        return NamedImages(stacks, stack_of, sections.astype(np.int64), _signs(self))

    def images(self, data_dir: FilePath | None) -> StackImages:
        """Find the stacks, and check that they hold what the dataset says."""
        stacks, stack_of, section_of, sign_of = self.named_images()
        headers = [read_header(path) for path in find_files(stacks, self.path, data_dir)]
        counts = np.array([header.n_images for header in headers])[stack_of]
        wrong = np.flatnonzero((section_of < 0) | (section_of >= counts))
        if len(wrong):
            row = int(wrong[0])
            raise InputError(
                f"row {row} of {self.path} (counted from 0) names image {section_of[row]} of "
                f"{headers[stack_of[row]].path}, which holds images 0 to {counts[row] - 1}: "
                "extract the particles again."
            )
        images = StackImages(headers, stack_of, section_of.astype(np.int32), sign_of)
        _check_shapes(self, images)
        return images

    def coordinates(self) -> Coordinates:
        """Return where the particles lie in their micrographs."""
        n = len(self)
        x, y, sizes = (
            dataset_numbers(self, f"location/{name}")
            for name in ("center_x_frac", "center_y_frac", "micrograph_psize_A")
        )
        shape = self.field("location/micrograph_shape")
        if x is None or y is None or shape is None or shape.shape != (n, 2) or shape.dtype.kind not in "iuf":
            x = y = None
        else:
            with np.errstate(all="ignore"):
                x, y = x * shape[:, 1], y * shape[:, 0]
        pixel_size = np.full(n, np.nan) if sizes is None else sizes
        pixel_size = np.where(np.isfinite(pixel_size) & (pixel_size > 0), pixel_size, np.nan)
        ctf = self.ctf()
        return Coordinates(x, y, pixel_size, None if ctf is None else (ctf.defocus_u + ctf.defocus_v) / 2)

    def acquisition(self) -> Acquisition:
        """Return what the dataset says of how its images were taken."""
        voltage, aberration, contrast = (self._common(f"ctf/{name}") for name in _MICROSCOPE)
        optics = OpticsGroup(
            "", len(self), self._common("blob/psize_A"), self._box(), voltage, aberration, contrast
        )
        try:
            ctf = self.ctf()
        except InputError:
            ctf = None
        if ctf is None:
            return Acquisition([optics], (math.nan, math.nan), False)
        return Acquisition([optics], (float(ctf.defocus_u.min()), float(ctf.defocus_u.max())), True)

    def _common(self, name: str) -> float:
        """Return the number that a field has for all particles, NaN if there is none."""
        values = self.field(name)
        is_number = values is not None and values.ndim == 1 and values.dtype.kind in "iuf"
        return common_value(values.astype(np.float64)) if values is not None and is_number else math.nan

    def _box(self) -> float:
        shapes = self.field("blob/shape")
        known = shapes is not None and shapes.shape[1:] == (2,) and shapes.dtype.kind in "iu"
        return common_value(shapes.astype(np.float64).ravel()) if shapes is not None and known else math.nan

    @property
    def has_segments(self) -> bool:
        """Whether the images follow filaments."""
        return self.field("filament/filament_uid") is not None

    def identifiers(self) -> dict[str, Array]:
        """Return the uid of each particle."""
        return {"uid": self.rows["uid"]} if "uid" in _names(self) else {}

    def naming(self, stack: str) -> Added:
        """Return the fields by which all rows name the images of one stack, whose sign is theirs."""
        fields = {
            "blob/path": np.full(len(self), os.fsencode(stack)),
            "blob/idx": np.arange(len(self), dtype=np.uint32),
        }
        sign = self.field("blob/sign")
        if sign is not None:
            fields["blob/sign"] = np.ones_like(sign)
        return Added(fields=fields)

    def recentred(self, offset: Floats, new: Bools, pixel_size: float) -> dict[str, Array]:
        """Return ``alignments2D/shift``, or ``location/center_*_frac`` where there were no 2D alignments.

        Notes
        -----
        A shift has x first and is in pixels of ``alignments2D/psize_A``. It is what centres the image, and so
        has the sign of RELION's origins: the particle lies at the middle minus the shift. A place in the
        micrograph is where the particle is, and so has the other sign.
        """
        sizes = self.pixel_sizes()
        sizes = np.full(len(self), pixel_size) if sizes is None else sizes
        _check_every("the pixel size", np.where(new, sizes, 1), self.path, positive=True)
        with np.errstate(all="ignore"):
            moved = offset[:, ::-1] * sizes[:, None]
        if recentred_slot(self) == "location":
            return moved_places(self, moved, new)
        shift, scale = self.field(_SHIFT), dataset_numbers(self, "alignments2D/psize_A")
        assert shift is not None and scale is not None
        _check_every("alignments2D/psize_A", scale, self.path, positive=True)
        # Minus zero would be a value of its own.
        return {_SHIFT: np.where(new[:, None], 0.0 - moved / scale[:, None], shift).astype(shift.dtype)}

    def part_name(self, name: str) -> str:
        """Return the name of the .cs file."""
        return f"{name}.cs"

    def write_part(self, folder: Path, name: str, rows: Indices, added: Added) -> None:
        """Write a .cs file with some of the rows, and one with those of the passthrough file."""
        through = {} if self.passthrough is None else self._passed_through(added.fields)
        own = {label: values for label, values in added.fields.items() if label not in through}
        write_cs(folder / f"{name}.cs", self.rows, rows, own)
        if self.passthrough is not None:
            others = np.sort(self.passthrough_row[rows]) if self.passthrough_row is not None else rows
            write_cs(folder / f"{name}_passthrough.cs", self.passthrough.rows, others, through)

    def _passed_through(self, fields: Mapping[str, Array]) -> dict[str, Array]:
        """Return new values of fields that stand in the passthrough file alone, for all of its rows."""
        assert self.passthrough is not None
        through = {}
        for name in fields.keys() & {*_names(self.passthrough)} - {*_names(self)}:
            through[name] = self.passthrough.rows[name].copy()
            through[name][self.passthrough_row] = fields[name]
        return through


_MICROSCOPE = ("accel_kv", "cs_mm", "amp_contrast")


def _names(dataset: CsDataset) -> tuple[str, ...]:
    return dataset.rows.dtype.names or ()


def read_cs_table(path: str, passthrough: FilePath | None = None) -> CsDataset:
    """Read a cryoSPARC dataset, and the passthrough file that belongs to it.

    Parameters
    ----------
    path : str
        A .cs file of extracted or imported particles.
    passthrough : path, optional
        A second .cs file with more fields of the same particles. By default, where something is missing in
        the first, the passthrough file of the same job is looked for beside it.

    Returns
    -------
    dataset : CsDataset

    Raises
    ------
    InputError
        When a file cannot be read, or the two do not belong together.

    Notes
    -----
    Where there are several passthrough files with all of the particles, the one counts that has most of what
    is missing, and of equal ones the first by name. A job that never estimated the CTF leaves all defoci
    zero: there is no CTF then.
    """
    dataset = CsDataset(path, read_cs(path))
    _check_uids(dataset)
    if passthrough is not None:
        return _join(dataset, CsDataset(os.fspath(passthrough), read_cs(passthrough)))
    return dataset if set(_NEEDED) <= set(_names(dataset)) else _join_own_passthrough(dataset)


def recentred_slot(dataset: CsDataset) -> str:
    """Return where a dataset says how particles are centred: "alignments2D" or "location".

    Raises
    ------
    InputError
        When it says so nowhere; the message names what is missing.
    """
    shift = dataset.field(_SHIFT)
    if shift is not None and shift.shape == (len(dataset), 2) and shift.dtype.kind == "f":
        size = dataset_numbers(dataset, "alignments2D/psize_A")
        # Zero where nothing was aligned yet.
        if size is not None and (size > 0).all():
            return "alignments2D"
    needed = (*_CENTRE, "location/micrograph_shape", "location/micrograph_psize_A")
    missing = [name for name in needed if dataset.field(name) is None]
    if missing:
        raise InputError(
            f"{dataset.path} has neither 2D alignments nor {', '.join(missing)}, so that it cannot say where "
            "particles lie: give the passthrough file that does, or leave --recentre out."
        )
    return "location"


def moved_places(dataset: CsDataset, moved: Floats, new: Bools) -> dict[str, Array]:
    """Return the places of particles in their micrographs, moved by so many angstroms, x first."""
    size = dataset_numbers(dataset, "location/micrograph_psize_A")
    assert size is not None
    _check_every("location/micrograph_psize_A", np.where(new, size, 1), dataset.path, positive=True)
    with np.errstate(all="ignore"):
        return moved_fractions(dataset, moved / size[:, None], new)


def moved_fractions(dataset: CsDataset, moved: Floats, new: Bools) -> dict[str, Array]:
    """Return the places of particles in their micrographs, moved by so many of its pixels, x first."""
    shape = dataset.field("location/micrograph_shape")
    if shape is None or shape.shape != (len(dataset), 2) or not (shape > 0).all():
        raise InputError(f"location/micrograph_shape of {dataset.path} must be two sides for each particle.")
    fields = {}
    for axis, name in enumerate(_CENTRE):
        old = dataset.field(name)
        assert old is not None
        with np.errstate(all="ignore"):
            place = old + moved[:, axis] / shape[:, 1 - axis]
        fields[name] = np.where(new, place, old).astype(old.dtype)
    return fields


def _join(dataset: CsDataset, passthrough: CsDataset) -> CsDataset:
    """Find each particle of a dataset in another."""
    row_of = _matching_rows(dataset, passthrough)
    missing = np.flatnonzero(row_of < 0)
    if len(missing):
        raise InputError(
            f"{len(missing)} of the {len(dataset)} particles of {dataset.path} are not in {passthrough.path} "
            f"(the first has uid {_uids(dataset)[missing[0]]}): give the passthrough file of the same job."
        )
    return replace(dataset, passthrough=passthrough, passthrough_row=row_of)


def _matching_rows(dataset: CsDataset, other: CsDataset) -> Indices:
    """Return the row of the other dataset with the uid of each particle, -1 where there is none."""
    uids, others = _uids(dataset), _uids(other)
    _check_no_uid_twice(uids, dataset.path)
    order = _check_no_uid_twice(others, other.path)
    in_order = others[order]
    if len(others) == 0:
        return np.full(len(uids), -1, np.intp)
    found = np.minimum(np.searchsorted(in_order, uids), len(others) - 1)
    return np.where(in_order[found] == uids, order[found], -1)


def _check_uids(dataset: CsDataset) -> None:
    """Refuse a dataset that has one uid twice."""
    # The copies that symmetry expansion makes may share that of their particle.
    if "uid" in _names(dataset) and "sym_expand/idx" not in _names(dataset):
        uids = dataset.rows["uid"]
        if uids.ndim == 1:
            _check_no_uid_twice(uids, dataset.path)


def _check_no_uid_twice(uids: Array, path: str) -> Indices:
    """Refuse numbers that do not tell particles apart; return the rows in the order of their numbers."""
    order = np.argsort(uids, kind="stable")
    twice = np.flatnonzero(uids[order[1:]] == uids[order[:-1]])
    if len(twice):
        first, second = order[twice[0] : twice[0] + 2].tolist()
        raise InputError(
            f"{path} has uid {uids[first]} twice, in rows {first} and {second} (counted from 0), so that it "
            "does not tell the particles apart: remove one, or export the file again."
        )
    return order


def _uids(dataset: CsDataset) -> Array:
    uids = dataset.rows["uid"] if "uid" in _names(dataset) else None
    if uids is None or uids.ndim != 1 or uids.dtype.kind not in "iu":
        raise InputError(
            f"{dataset.path} has no field uid with a whole number for each particle, so that its rows "
            "cannot be matched with those of another file: export it again."
        )
    return uids.astype(np.uint64)


def _join_own_passthrough(dataset: CsDataset) -> CsDataset:
    """Look beside a dataset for the passthrough file that its job wrote, or this program with a subset."""
    if "uid" not in _names(dataset):
        return dataset
    own = Path(dataset.path)
    job = _JOB.findall(own.name)
    best, most = dataset, 0
    for beside in sorted(own.parent.glob("*passthrough*.cs")):
        theirs = _JOB.findall(beside.name)
        if beside.name == own.name or (job and theirs and job != theirs):
            continue
        other = CsDataset(str(beside), read_cs(beside))
        gained = set(_NEEDED) & (set(_names(other)) - set(_names(dataset)))
        if len(gained) > most and (_matching_rows(dataset, other) >= 0).all():
            best, most = _join(dataset, other), len(gained)
    return best


def _sections(dataset: CsDataset) -> Array:
    """Return where in its stack each image is; refuse what is no set of images, and say what it is."""
    has_path, sections = dataset.field("blob/path") is not None, dataset.field("blob/idx")
    if has_path and sections is not None:
        if sections.ndim != 1 or sections.dtype.kind not in "iu":
            raise InputError(f"blob/idx of {dataset.path} must be a whole number; {_what(sections)}.")
        return sections
    path, names = dataset.path, _names(dataset)
    if any(name in names for name in ("movie_blob/path", "micrograph_blob/path")):
        raise InputError(
            f"{path} holds exposures, not particles: give the particles of an extraction job, "
            "or micrographs together with their picks."
        )
    if has_path or "map/path" in names or "mask/path" in names:
        raise InputError(
            f"{path} has no blob/idx: it holds exposures, templates or volumes, not particles. "
            "Give the .cs file of particles."
        )
    if dataset.passthrough is not None:
        raise InputError(
            f"neither {path} nor {dataset.passthrough.path} has blob/path, which names the images: "
            "give the particles of the job that extracted or imported them as the passthrough file."
        )
    if "passthrough" in os.path.basename(path):
        raise InputError(
            f"{path} is a passthrough file without blob/path, so it names no images: give the job's own "
            "particles, such as cryosparc_P12_J24_particles.cs, and this file with --passthrough."
        )
    raise InputError(
        f"{path} has no blob/path, so it names no images, and no passthrough file beside it does: "
        "give the one that does with --passthrough, or extract the particles first."
    )


def dataset_texts(dataset: CsDataset, name: str) -> tuple[list[str], Numbers]:
    """Return the different paths of a field, and which of them each particle has."""
    values = dataset.field(name)
    if values is None:
        raise InputError(f"{dataset.path} has no field {name}: export it again.")
    if values.ndim != 1 or values.dtype.kind not in "SU":
        raise InputError(f"{name} of {dataset.path} must be a path for each particle; {_what(values)}.")
    packed = np.ascontiguousarray(values)
    # The particles of one stack usually follow one another, so few need looking at.
    firsts = np.concatenate([[0], np.flatnonzero(packed[1:] != packed[:-1]) + 1])[: len(packed)]
    stored: dict[Any, int] = {}
    texts: dict[str, int] = {}
    try:
        stored_of = np.array(
            [stored.setdefault(value, len(stored)) for value in packed[firsts].tolist()], np.intp
        )
        text_of = np.array([texts.setdefault(_plain(value), len(texts)) for value in stored], np.int32)
    except ValueError:
        raise InputError(
            f"{name} of {dataset.path} holds characters that no path has: copy or export the file again."
        ) from None
    return list(texts), np.repeat(text_of[stored_of], np.diff(firsts, append=len(packed)))


def _plain(stored: Any) -> str:
    """Return a path without the mark that cryoSPARC sets before those of its own project."""
    text = stored.decode("utf-8", "surrogateescape") if isinstance(stored, bytes) else stored
    text = text.rstrip("\0").lstrip(">")
    if _UNPRINTABLE.search(text):
        raise ValueError(text)
    return text


def _what(values: Array) -> str:
    shape = f" of shape {values.shape[1:]}" if values.ndim > 1 else ""
    return f"it is {values.dtype}{shape}"


def _check_shapes(dataset: CsDataset, images: StackImages) -> None:
    shapes = dataset.field("blob/shape")
    if shapes is None:
        return
    if shapes.shape[1:] != (2,) or shapes.dtype.kind not in "iu":
        raise InputError(f"blob/shape of {dataset.path} must be two whole numbers; {_what(shapes)}.")
    sides = np.array([(stack.ny, stack.nx) for stack in images.stacks])
    wrong = np.flatnonzero((shapes != sides[images.stack_of]).any(axis=1))
    if len(wrong):
        row = int(wrong[0])
        stack, (height, width) = images.stacks[images.stack_of[row]], shapes[row].tolist()
        raise InputError(
            f"row {row} of {dataset.path} (counted from 0) has an image of {width} x {height} px, but those "
            f"of {stack.path} have {stack.nx} x {stack.ny} px: that is another stack of the same name; "
            "give the folder of the right one with --data-dir."
        )


def _signs(dataset: CsDataset) -> Array | None:
    signs = dataset_numbers(dataset, "blob/sign")
    if signs is None or (signs == 1).all():
        return None
    wrong = np.flatnonzero(np.abs(signs) != 1)
    if len(wrong):
        raise InputError(
            f"blob/sign must be 1 or -1; it is {signs[wrong[0]]:g} in row {wrong[0]} of {dataset.path} "
            "(counted from 0): correct it or remove the particle."
        )
    return signs.astype(np.int8)


def dataset_numbers(dataset: CsDataset, name: str) -> Floats | None:
    """Return a field of one number a particle; None where no file has it."""
    values = dataset.field(name)
    if values is None:
        return None
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise InputError(f"{name} of {dataset.path} must be a number for each particle; {_what(values)}.")
    with np.errstate(invalid="ignore", over="ignore"):
        return values.astype(np.float64)


def _check_every(name: str, values: Floats, path: str, positive: bool = False) -> None:
    def place(row: int) -> str:
        return f"in row {row} of {path} (counted from 0): correct it or remove the particle."

    check_every(name, values, place, positive)


def dataset_ctf(dataset: CsDataset) -> CtfParameters | None:
    """Return the CTF of each particle; None if a part of it is missing or it was never estimated."""
    given = {name: dataset_numbers(dataset, name) for name in _CTF}
    known = {name: values for name, values in given.items() if values is not None}
    if len(known) < len(given):
        return None
    unknown = (known["ctf/df1_A"] == 0) & (known["ctf/df2_A"] == 0)
    if unknown.all():
        return None
    shift = dataset_numbers(dataset, "ctf/phase_shift_rad")
    known["ctf/phase_shift_rad"] = np.zeros(len(dataset)) if shift is None else shift
    for name, values in known.items():
        _check_every(name, values, dataset.path, positive=name == "ctf/accel_kv")
    if unknown.any():
        raise InputError(
            f"ctf/df1_A and ctf/df2_A are both 0 in row {np.flatnonzero(unknown)[0]} of {dataset.path} "
            "(counted from 0): estimate the CTF of its micrograph or remove the particle."
        )
    return CtfParameters(
        known["ctf/df1_A"],
        known["ctf/df2_A"],
        np.degrees(known["ctf/df_angle_rad"]),
        np.degrees(known["ctf/phase_shift_rad"]),
        known["ctf/accel_kv"],
        known["ctf/cs_mm"],
        known["ctf/amp_contrast"],
    )


class _ImageNames(Sequence[str]):
    """Names such as 000017@J19/extract/a.mrc, made when asked for: a million take much memory."""

    def __init__(self, stacks: list[str], stack_of: Numbers, section_of: Numbers) -> None:
        self._stacks, self._stack_of, self._section_of = stacks, stack_of, section_of

    def __len__(self) -> int:
        return len(self._stack_of)

    def __getitem__(self, index: Any) -> Any:
        numbers, sections = self._stack_of[index], self._section_of[index]
        if np.ndim(numbers) == 0:
            return f"{sections + 1:06d}@{self._stacks[numbers]}"
        places = zip(numbers.tolist(), sections.tolist(), strict=True)
        return [f"{section + 1:06d}@{self._stacks[number]}" for number, section in places]
