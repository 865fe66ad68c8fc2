"""A simulated stack on disk, laid out like a RELION project."""

from __future__ import annotations

import csv
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fastsort._checks import InputError, check_output_folder
from fastsort._types import FilePath, Images, Indices
from fastsort.particles.table import CtfParameters
from fastsort.simulate.plan import Truth

STAR_NAME = "particles.star"
TRUTH_NAME = "truth.csv"
_MICROGRAPH_SIDE = 4096


def write_project(
    folder: FilePath,
    images: Images | Iterable[Images],
    truth: Truth,
    *,
    overwrite: bool = False,
) -> Path:
    """Write images and what is known of them as a RELION 3.1 project.

    Parameters
    ----------
    folder : path
        Folder of the project. It gets ``particles.star``, one stack a micrograph
        in ``Extract/``, and ``truth.csv`` (name, label, kind, shift_y and
        shift_x in pixels, angle in degrees).
    images : ndarray of float32, shape (n, d, d), or iterable of ndarray (m, d, d)
        All images at once, or blocks of any size in order. Of blocks, only the
        images of one micrograph and one block are in memory at a time.
    truth : Truth
        From `simulate_particles`; micrographs in ascending order.
    overwrite : bool
        Whether to replace an earlier project in `folder`.

    Returns
    -------
    star : Path
        The STAR file written.

    Raises
    ------
    InputError
        If `folder` holds anything already, or images and truth do not match.
    OSError
        If the disk refuses. After any error, `folder` holds what it held before.

    Examples
    --------
    >>> import tempfile
    >>> import fastsort as fs
    >>> images, truth = fs.simulate_particles(6, 6, box=32, n_micrographs=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     star = fs.write_project(f"{folder}/simulated", images, truth)
    ...     particles = fs.open_particles(star)
    >>> star.name, len(particles), particles.box
    ('particles.star', 12, 32)
    """
    if (np.diff(truth.micrograph) < 0).any():
        first = int(np.flatnonzero(np.diff(truth.micrograph) < 0)[0])
        raise InputError(
            f"truth.micrograph must never fall; it does from image {first} to image {first + 1}: sort images "
            "and truth by micrograph."
        )
    with new_folder(folder, TRUTH_NAME, overwrite) as partial:
        (partial / "Extract").mkdir()
        blocks = [images] if isinstance(images, np.ndarray) else images
        names, box = _write_stacks(partial, blocks, truth)
        _write_star(partial / STAR_NAME, names, truth, box)
        _write_truth(partial / TRUTH_NAME, names, truth)
    return Path(folder) / STAR_NAME


@contextmanager
def new_folder(folder: FilePath, sign: str, overwrite: bool) -> Iterator[Path]:
    """Give a hidden folder to fill, which gets its final name once it is complete.

    Parameters
    ----------
    folder : path
    sign : str
        The file by which a folder is known that the same function wrote.
    overwrite : bool
        Whether to replace such a folder.

    Yields
    ------
    partial : Path
        Removed after an error; then `folder` holds what it held before.

    Raises
    ------
    InputError
        If `folder` holds anything that may not be replaced.
    """
    target = check_output_folder(folder, overwrite).resolve()
    if target.is_dir() and any(target.iterdir()) and not (target / sign).is_file():
        # To replace is to delete, and only a folder that the same function wrote may be deleted.
        raise InputError(f"{folder} is not a simulated project (no {sign}): give another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        partial.mkdir()
        yield partial
        _replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_stacks(folder: Path, blocks: Iterable[Images], truth: Truth) -> tuple[list[str], int]:
    import mrcfile

    names: list[str] = []
    box = 0
    numbers, counts = np.unique(truth.micrograph, return_counts=True)
    stacks = _regroup(blocks, counts)
    for micrograph, stack in zip(numbers, stacks, strict=True):
        path = f"Extract/micrograph_{micrograph:04d}.mrcs"
        with mrcfile.new(folder / path) as file:
            file.set_data(np.ascontiguousarray(stack, dtype=np.float32))
            file.set_image_stack()
            file.voxel_size = truth.pixel_size
        names += [f"{i:06d}@{path}" for i in range(1, len(stack) + 1)]
        box = stack.shape[1]
    return names, box


def _regroup(blocks: Iterable[Images], counts: Indices) -> Iterator[Images]:
    held: list[Images] = []
    source = iter(blocks)
    for count in counts:
        while sum(map(len, held)) < count:
            block = next(source, None)
            if block is None:
                raise InputError(
                    f"there are fewer images than the {counts.sum()} entries of truth: give one for each."
                )
            held.append(block)
        ready = np.concatenate(held) if len(held) > 1 else held[0]
        yield ready[:count]
        held = [ready[count:]]
    if sum(map(len, held)) or next(source, None) is not None:
        raise InputError(
            f"there are more images than the {counts.sum()} entries of truth: give one for each."
        )


def _write_star(path: Path, names: list[str], truth: Truth, box: int) -> None:
    ctf = truth.ctf
    sides = {
        "rlnImagePixelSize": [truth.pixel_size],
        "rlnImageSize": [box],
        "rlnImageDimensionality": [2],
    }
    # RELION wants coordinates; these are random and say nothing of the label.
    places = np.random.default_rng(len(names)).uniform(box, _MICROGRAPH_SIDE - box, (2, len(names)))
    columns: dict[str, object] = {
        "rlnImageName": names,
        "rlnMicrographName": [f"Micrographs/micrograph_{m:04d}.mrc" for m in truth.micrograph],
        "rlnCoordinateX": places[0].round(),
        "rlnCoordinateY": places[1].round(),
        "rlnOpticsGroup": np.ones(len(names), dtype=int),
    }
    if ctf is not None:
        columns["rlnDefocusU"] = ctf.defocus_u
        columns["rlnDefocusV"] = ctf.defocus_v
        columns["rlnDefocusAngle"] = ctf.defocus_angle
        columns["rlnPhaseShift"] = ctf.phase_shift
    write_tables(path, ctf, sides, "particles", columns)


def write_tables(
    path: Path, ctf: CtfParameters | None, sides: dict[str, object], name: str, columns: dict[str, object]
) -> None:
    """Write a STAR file as RELION 3.1 does: one optics group, and one table.

    Parameters
    ----------
    path : Path
    ctf : CtfParameters or None
        The first entry goes into the optics group.
    sides : dict of str to sequence
        What else does: the size of pixels and images.
    name : str
        Of the table.
    columns : dict of str to sequence
    """
    import pandas as pd
    import starfile

    microscope = {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnVoltage": [300.0 if ctf is None else ctf.voltage[0]],
        "rlnSphericalAberration": [2.7 if ctf is None else ctf.spherical_aberration[0]],
        "rlnAmplitudeContrast": [0.1 if ctf is None else ctf.amplitude_contrast[0]],
    }
    starfile.write({"optics": pd.DataFrame({**microscope, **sides}), name: pd.DataFrame(columns)}, path)
    # starfile does not write the line that tells RELION the version of the format.
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("\ndata_", "\n# version 30001\n\ndata_"), encoding="utf-8")


def _write_truth(path: Path, names: list[str], truth: Truth) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "label", "kind", "shift_y", "shift_x", "angle"])
        for name, label, kind, (y, x), angle in zip(
            names, truth.label, truth.kind, truth.shift, truth.angle, strict=True
        ):
            writer.writerow([name, int(label), kind, f"{y:.4f}", f"{x:.4f}", f"{angle:.4f}"])


def _replace(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = partial.with_name(partial.name + ".old")
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
