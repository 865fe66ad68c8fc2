"""cryoSPARC datasets in and out: NumPy files with one row a particle.

A job often writes two: one with what it found, and a passthrough file with
what it took over from the jobs before it. Both name each particle by its uid.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BufferedReader
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsort._checks import InputError, check_every, check_not_empty, check_readable
from fastsort.particles.grid import bring_to_one_grid
from fastsort.particles.mrc import read_header
from fastsort.particles.relion import find_stacks
from fastsort.particles.source import CtfParameters, Indices, Particles, StackImages

_MAGIC = b"\x93NUMPY"
_COMPRESSED_MAGIC = b"\x94CSDAT"
_MAX_HEADER = 1 << 18
_MAX_NESTING = 16
# All that NumPy writes into a header, Python 2 included. What Python's parser warns of is not among it.
_TOKEN = re.compile(r"""[ \n,:(){}\[\]]|-?\d{1,19}L?(?!\w)|True|False|'[^'\\\n\r\0]*'|"[^"\\\n\r\0]*\"""")
_NUMBERS_OR_TEXT = re.compile(r"[<>|=]?(?:[biufc]\d{1,2}|\?|[SUV]\d{1,9})")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CTF = ("ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad", "ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
_NEEDED = ("blob/path", "blob/idx", *_CTF, "location/micrograph_path")
_JOB = re.compile(r"(?<![A-Za-z])J\d+(?=_)")

Rows = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CsDataset:
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

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def files(self) -> list[str]:
        """Return the paths of the files that it was read from."""
        return [self.path, *([] if self.passthrough is None else self.passthrough.files)]

    def field(self, name: str) -> npt.NDArray[Any] | None:
        """Return one entry a particle, in the order of `rows`; None where no file has the field."""
        if name in _names(self):
            return self.rows[name]
        more = None if self.passthrough is None else self.passthrough.field(name)
        return None if more is None else more[self.passthrough_row]


def _names(dataset: CsDataset) -> tuple[str, ...]:
    return dataset.rows.dtype.names or ()


def read_cs(path: str | os.PathLike[str]) -> Rows:
    """Read a cryoSPARC dataset.

    Nothing in the file is trusted: no object is unpickled, and no memory is taken
    for rows that the file does not hold.

    Parameters
    ----------
    path : path
        A structured array as NumPy writes it, of any version of its format.

    Returns
    -------
    rows : structured ndarray, shape (n,)
        Owned; every field as it stands.

    Raises
    ------
    InputError
        When the file cannot be read, is no dataset, holds Python objects, or has
        not the size that its header promises.
    """
    with check_readable(path) as file:
        size = os.fstat(file.fileno()).st_size
        dtype, n_rows = _read_layout(file, path, size)
        promised = file.tell() + n_rows * dtype.itemsize
        if size != promised:
            wrong = "ends early" if size < promised else "goes on after its last row"
            raise InputError(
                f"{path} {wrong}: its header promises {promised} bytes ({n_rows} rows of {dtype.itemsize}), "
                f"but the file has {size}: copy or export it again."
            )
        rows = np.fromfile(file, dtype, n_rows) if n_rows else np.zeros(0, dtype)
    if len(rows) != n_rows:
        raise InputError(f"{path} has become shorter while it was read: copy or export it again.")
    return rows


def _read_layout(file: BufferedReader, path: str | os.PathLike[str], size: int) -> tuple[np.dtype[Any], int]:
    """Return what a row looks like and how many there are; the file stands at the first row then."""
    start = file.read(len(_MAGIC) + 2)
    if start.startswith(_COMPRESSED_MAGIC):
        raise InputError(
            f"{path} is compressed (CSDAT), which only cryoSPARC reads: load it with cryosparc-tools, "
            "and save it with format=NUMPY_FORMAT."
        )
    if not start.startswith(_MAGIC) or len(start) < len(_MAGIC) + 2:
        raise InputError(
            f"{path} is not a cryoSPARC dataset ({size} bytes, which do not begin as those of a NumPy file): "
            "give the .cs file of a particle job."
        )
    version = start[-2]
    if version not in (1, 2, 3):
        raise InputError(f"{path} has version {version} of NumPy's format; 1, 2 and 3 can be read.")
    length = int.from_bytes(file.read(2 if version == 1 else 4), "little")
    if length > min(_MAX_HEADER, size - file.tell()):
        raise InputError(
            f"{path} is damaged: its header promises to be {length} bytes long, "
            f"and the file has {size} bytes (a header has at most {_MAX_HEADER}): copy or export it again."
        )
    header = file.read(length)
    try:
        layout = _parse(header.decode("utf-8" if version == 3 else "latin-1"))
        descr, shape = layout["descr"], layout["shape"]
        objects = _check_types(descr)
        dtype = np.dtype(np.void) if objects else np.lib.format.descr_to_dtype(descr)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError):
        raise InputError(
            f"{path} is damaged: the header that describes its rows makes no sense: copy or export it again."
        ) from None
    if objects:
        raise InputError(
            f"{path} holds pickled Python objects, which could run any program when they are read: "
            "save it with fields of numbers and text alone."
        )
    if not dtype.names:
        raise InputError(
            f"{path} is a plain array of {dtype}, not a table with named fields: "
            "give the .cs file of a particle job."
        )
    whole = isinstance(shape, tuple) and all(type(count) is int and count >= 0 for count in shape)
    if not whole or len(shape) != 1 or dtype.itemsize == 0:
        raise InputError(
            f"{path} is not a list of particles: its header promises an array of shape "
            f"{repr(shape)[:80]} with {dtype.itemsize} bytes a row: copy or export it again."
        )
    return dtype, shape[0]


def _parse(text: str) -> Any:
    tokens = _TOKEN.findall(text)
    if sum(map(len, tokens)) != len(text):
        raise ValueError("a header holds names, numbers and brackets alone")
    nesting = accumulate((token in "([{") - (token in ")]}") for token in tokens)
    if max(nesting, default=0) > _MAX_NESTING:
        raise ValueError("no header is nested like this")
    # Python 2 wrote 2019L.
    return ast.literal_eval(
        "".join(token[:-1] if re.fullmatch(r"-?\d+L", token) else token for token in tokens)
    )


def _check_types(descr: Any) -> bool:
    """Refuse types that are not numbers or text; return whether there are Python objects."""
    if isinstance(descr, str):
        if descr.lstrip("<>|=").startswith("O"):
            return True
        if not _NUMBERS_OR_TEXT.fullmatch(descr):
            raise ValueError(descr)
        return False
    if not isinstance(descr, list):
        raise TypeError(descr)
    objects = False
    for names, kind, *shape in descr:
        # NumPy would write them as escapes, which are not read.
        if not "".join(names).isprintable():
            raise ValueError(names)
        if any(
            not isinstance(sides, tuple) or any(type(side) is not int for side in sides) for sides in shape
        ):
            raise TypeError(shape)
        objects |= _check_types(kind)
    return objects


def open_cs(
    path: str,
    pixel_size: float | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    passthrough: str | os.PathLike[str] | None = None,
) -> Particles:
    """Open the particles of a cryoSPARC dataset.

    Parameters
    ----------
    path : str
        A .cs file of extracted or imported particles.
    pixel_size : float, optional
        In angstroms, instead of what the file says.
    data_dir : path, optional
        Folder in which to look first for the stacks, such as that of the project.
    passthrough : path, optional
        A second .cs file with more fields of the same particles. By default, where
        something is missing in the first, the passthrough file of the same job is
        looked for beside it.

    Returns
    -------
    particles : Particles
        In the order of the file; pixels are multiplied with ``blob/sign``.

    Raises
    ------
    InputError
        When the dataset cannot be understood, a stack is missing or damaged, or the
        files contradict one another.

    Notes
    -----
    Where there are several passthrough files with all of the particles, that counts
    which has most of what is missing, and of equal ones the first by name. A job
    that never estimated the CTF leaves all defoci zero: there is no CTF then.
    """
    dataset = open_dataset(path, passthrough)
    check_not_empty(len(dataset), path)
    stacks, images = _locate_images(dataset, data_dir)
    pixel_sizes = (
        dataset_numbers(dataset, "blob/psize_A") if pixel_size is None else np.full(len(dataset), pixel_size)
    )
    if pixel_sizes is not None:
        _check_every("blob/psize_A", pixel_sizes, path, positive=True)
    grid = bring_to_one_grid(images, pixel_sizes, path)
    return Particles(
        grid.store,
        grid.box,
        grid.pixel_size,
        path,
        ctf=dataset_ctf(dataset),
        names=_ImageNames(stacks, images.stack_of, images.section_of),
        micrographs=_micrographs(dataset),
        table=dataset,
        rescaled=grid.rescaled,
    )


def open_dataset(path: str, passthrough: str | os.PathLike[str] | None = None) -> CsDataset:
    """Read a dataset and the passthrough file that belongs to it, as `open_cs` does."""
    dataset = CsDataset(path, read_cs(path))
    if passthrough is not None:
        return _join(dataset, CsDataset(os.fspath(passthrough), read_cs(passthrough)))
    return dataset if set(_NEEDED) <= set(_names(dataset)) else _join_own_passthrough(dataset)


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
    order = np.argsort(others, kind="stable")
    in_order = others[order]
    for values, path in ((np.sort(uids), dataset.path), (in_order, other.path)):
        repeated = values[1:][values[1:] == values[:-1]]
        if len(repeated):
            raise InputError(
                f"{path} has uid {repeated[0]} in more than one row, so that its rows cannot be matched "
                "with those of another file: remove the duplicates."
            )
    if len(others) == 0:
        return np.full(len(uids), -1, np.intp)
    found = np.minimum(np.searchsorted(in_order, uids), len(others) - 1)
    return np.where(in_order[found] == uids, order[found], -1)


def _uids(dataset: CsDataset) -> npt.NDArray[np.uint64]:
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


def _sections(dataset: CsDataset) -> npt.NDArray[Any]:
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


def dataset_texts(dataset: CsDataset, name: str) -> tuple[list[str], npt.NDArray[np.int32]]:
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


def _what(values: npt.NDArray[Any]) -> str:
    shape = f" of shape {values.shape[1:]}" if values.ndim > 1 else ""
    return f"it is {values.dtype}{shape}"


def _locate_images(
    dataset: CsDataset, data_dir: str | os.PathLike[str] | None
) -> tuple[list[str], StackImages]:
    """Find the stacks, whose names are returned too, and check that they hold what the dataset says."""
    sections = _sections(dataset)
    stacks, stack_of = dataset_texts(dataset, "blob/path")
    if "" in stacks:
        raise InputError(f"blob/path of {dataset.path} is empty for some particles: extract them again.")
    section_of = sections.astype(np.int64)
    headers = [read_header(found) for found in find_stacks(stacks, dataset.path, data_dir)]
    counts = np.array([header.n_images for header in headers])[stack_of]
    wrong = np.flatnonzero((section_of < 0) | (section_of >= counts))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"row {row} of {dataset.path} (counted from 0) names image {sections[row]} of "
            f"{headers[stack_of[row]].path}, which holds images 0 to {counts[row] - 1}: "
            "extract the particles again."
        )
    images = StackImages(headers, stack_of, section_of.astype(np.int32), _signs(dataset))
    _check_shapes(dataset, images)
    return stacks, images


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


def _signs(dataset: CsDataset) -> npt.NDArray[np.int8] | None:
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


def _micrographs(dataset: CsDataset) -> list[str] | None:
    if dataset.field("location/micrograph_path") is None:
        return None
    names, name_of = dataset_texts(dataset, "location/micrograph_path")
    if names == [""]:
        return None
    return [names[number] for number in name_of.tolist()]


class _ImageNames(Sequence[str]):
    """Names such as 000017@J19/extract/a.mrc, made when asked for: a million take much memory."""

    def __init__(
        self, stacks: list[str], stack_of: npt.NDArray[np.int32], section_of: npt.NDArray[np.int32]
    ) -> None:
        self._stacks, self._stack_of, self._section_of = stacks, stack_of, section_of

    def __len__(self) -> int:
        return len(self._stack_of)

    def __getitem__(self, index: Any) -> Any:
        numbers, sections = self._stack_of[index], self._section_of[index]
        if np.ndim(numbers) == 0:
            return f"{sections + 1:06d}@{self._stacks[numbers]}"
        places = zip(numbers.tolist(), sections.tolist(), strict=True)
        return [f"{section + 1:06d}@{self._stacks[number]}" for number, section in places]


def subset_cs(dataset: CsDataset, rows: npt.ArrayLike, fields: Mapping[str, npt.NDArray[Any]]) -> Rows:
    """Return some rows of a dataset, with further fields.

    Parameters
    ----------
    dataset : CsDataset
    rows : array of int, shape (m,)
        Which, counted from 0; they are kept in the order of the file.
    fields : mapping of str to ndarray, shape (n, ...)
        One entry for each particle of the whole dataset. Truth is written as 0 and 1,
        text as UTF-8 bytes and half precision as single, which are the types that
        cryoSPARC knows.

    Returns
    -------
    some : structured ndarray, shape (m,)
        The fields of the file as they stand, then the further ones. A field that the
        file has already keeps its type if that can hold the new values, and its place.

    Raises
    ------
    ValueError
        When a field does not have one entry for each particle.
    IndexError
        When there is no such row.
    """
    kept = np.sort(np.asarray(rows, dtype=np.intp))
    added = {name: _storable(np.asarray(values)) for name, values in fields.items()}
    for name, values in added.items():
        if values.ndim == 0 or len(values) != len(dataset):
            raise ValueError(f"{name} must have {len(dataset)} entries; got shape {values.shape}.")
    stored = dataset.rows.dtype
    new = {name: values for name, values in added.items() if not _can_hold(stored, name, values)}
    entries: list[Any] = [
        (entry[0], new[name].dtype.str, new[name].shape[1:])
        if (name := entry[0][-1] if isinstance(entry[0], tuple) else entry[0]) in new
        else entry
        for entry in stored.descr
    ]
    entries += [
        (name, values.dtype.str, values.shape[1:])
        for name, values in new.items()
        if name not in _names(dataset)
    ]
    some = np.zeros(len(kept), np.lib.format.descr_to_dtype(entries))
    for name in some.dtype.names or ():
        some[name] = added[name][kept] if name in added else dataset.rows[name][kept]
    return some


def _storable(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype.kind == "U":
        return np.char.encode(values, "utf-8", "surrogateescape")
    kinds = {"?": np.uint8, "e": np.float32}
    return values.astype(kinds.get(values.dtype.char, values.dtype))


def _can_hold(stored: np.dtype[Any], name: str, values: npt.NDArray[Any]) -> bool:
    """Whether a field is there and can take these values; rounding of real numbers is no loss."""
    if name not in (stored.names or ()):
        return False
    base, shape = stored[name].base, stored[name].shape
    both_real = base.kind == values.dtype.kind == "f"
    return shape == values.shape[1:] and (both_real or np.can_cast(values.dtype, base, "safe"))


def passthrough_rows(dataset: CsDataset, rows: npt.ArrayLike) -> Indices:
    """Return which rows of the passthrough belong to some rows of a dataset.

    Parameters
    ----------
    dataset : CsDataset
        One that has a passthrough.
    rows : array of int, shape (m,)
        Which, counted from 0.

    Returns
    -------
    others : ndarray of intp, shape (m,)
        Rows of ``dataset.passthrough``, in its own order.

    Raises
    ------
    ValueError
        When the dataset has no passthrough.
    """
    if dataset.passthrough_row is None:
        raise ValueError(f"{dataset.path} has no passthrough.")
    return np.sort(dataset.passthrough_row[np.asarray(rows, dtype=np.intp)])


def write_cs(
    path: str | os.PathLike[str],
    dataset: CsDataset,
    rows: npt.ArrayLike,
    fields: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Write some rows of a dataset, with further fields, as a .cs file.

    The passthrough is a file of its own: write ``dataset.passthrough`` with the
    rows that `passthrough_rows` returns.

    Parameters
    ----------
    path : path
        The file to write or to replace; it appears under its name when it is complete.
    dataset, rows, fields
        As `subset_cs` takes them.

    Raises
    ------
    OSError
        When the disk refuses; no file is left behind.
    """
    some = subset_cs(dataset, rows, fields)
    partial = f"{os.fspath(path)}.{os.getpid()}.partial"
    try:
        with open(partial, "wb") as file:
            np.lib.format.write_array(file, some, _format_version(some.dtype), allow_pickle=False)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def _format_version(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the oldest version of NumPy's format that can describe the rows: asked for, it does not warn."""
    described = repr(dtype.descr)
    if not described.isascii():
        return (3, 0)
    # A little is left for the other parts of the header.
    return (1, 0) if len(described) < (1 << 16) - 1024 else (2, 0)
