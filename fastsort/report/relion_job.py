"""What makes a run a job of RELION's pipeline: the files that its External job type asks for.

RELION starts the command in the project folder, and learns only from files in
the job folder that the job has ended, how, and what it made. These files are
the same in 3.1, 4 and 5; only the names for kinds of output differ.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from fastsort._checks import InputError, check_choice, check_output_folder
from fastsort.particles.star import read_star, subset_bytes
from fastsort.report.folder import PARTS

OUTPUT_NODES = "RELION_OUTPUT_NODES.star"
SUCCESS = "RELION_JOB_EXIT_SUCCESS"
FAILURE = "RELION_JOB_EXIT_FAILURE"
ABORTED = "RELION_JOB_EXIT_ABORTED"
ABORT_NOW = "RELION_JOB_ABORT_NOW"


class _Kind(NamedTuple):
    """What RELION 3.1, 4 and 5 call one kind of output."""

    number: int
    label_4: str
    label_5: str


_KINDS = {
    "micrographs": _Kind(1, "MicrographsData.star.relion", "MicrographGroupMetadata.star.relion"),
    "coordinates": _Kind(2, "MicrographsCoords.star.relion", "MicrographCoordsGroup.star.relion"),
    "particles": _Kind(3, "ParticlesData.star.relion", "ParticleGroupMetadata.star.relion"),
}
_VERSION = re.compile(rb"^# version (\d{5})\b", re.MULTILINE)
_FIRST_OF_5 = 50000
_HEAD = 4096


class JobOutput(NamedTuple):
    """A file that other jobs of the pipeline may take as input.

    Attributes
    ----------
    name : str
        Its path from the job folder, such as ``sorted/kept.star``.
    kind : str
        "particles", "coordinates" or "micrographs".
    """

    name: str
    kind: str = "particles"


@contextmanager
def relion_job(folder: str | os.PathLike[str]) -> Iterator[list[JobOutput]]:
    """Tell RELION how the work in this block ended, and what it made.

    Marks of an earlier run are removed first. At the end stands one mark:
    success, after the list of outputs was written; aborted, after a
    KeyboardInterrupt; failure, after any other exception. Exceptions go on.

    Parameters
    ----------
    folder : path
        The job folder as RELION gives it, such as ``External/job012/``,
        relative to the project folder; made if it does not exist. Of an
        absolute path the last two parts name the job.

    Yields
    ------
    outputs : list of JobOutput
        Empty; to be filled with what other jobs may use.

    Raises
    ------
    InputError
        If the folder cannot be written, or its path has blanks.
    ValueError
        If an output is of an unknown kind or does not exist: RELION's
        pipeline would stop at it.
    """
    name = _job_name(folder)
    job = check_output_folder(folder, overwrite=True)
    job.mkdir(parents=True, exist_ok=True)
    for mark in (SUCCESS, FAILURE, ABORTED, OUTPUT_NODES):
        (job / mark).unlink(missing_ok=True)
    outputs: list[JobOutput] = []
    try:
        yield outputs
        _write_outputs(job, name, outputs)
    except BaseException as error:
        # The reason of the failure matters more than a mark that cannot be set on a full disk.
        with suppress(OSError):
            _end(job, ABORTED if isinstance(error, KeyboardInterrupt) else FAILURE)
        raise
    _end(job, SUCCESS)


def list_outputs(
    folder: str | os.PathLike[str], results: str, coordinates: str | os.PathLike[str] | None = None
) -> list[JobOutput]:
    """Return those results that other jobs of the pipeline can take as input.

    Parameters
    ----------
    folder : path
        The job folder, as for `relion_job`.
    results : str
        The folder of results inside it, such as ``sorted``.
    coordinates : path, optional
        The table of RELION 4 or 5 that lists coordinate files, if picks were sorted. For each part of them
        a table like it is written into the job folder, which lists that part's files. Of anything else
        nothing is written.

    Returns
    -------
    outputs : list of JobOutput

    Raises
    ------
    InputError
        If the table of coordinate files cannot be read.
    """
    job = Path(folder)
    tables = [f"{results}/{part}.star" for part in PARTS]
    outputs = [JobOutput(table) for table in tables if (job / table).is_file()]
    if coordinates is None or Path(coordinates).suffix != ".star" or not Path(coordinates).is_file():
        return outputs
    star, label = read_star(coordinates), "_rlnMicrographCoordinates"
    block = star.block("coordinate_files")
    if block is None or label not in block.labels:
        return outputs
    for part in PARTS:
        inside = [f"{results}/{part}/{Path(old).name}" for old in block.column(label)]
        rows = [row for row, path in enumerate(inside) if (job / path).is_file()]
        if rows:
            columns = {label: [f"{_job_name(folder)}/{path}" for path in inside]}
            table = f"{part}_picks.star"
            (job / table).write_bytes(b"".join(subset_bytes(star, rows, columns, block)))
            outputs.append(JobOutput(table, "coordinates"))
    return outputs


def stop_when_aborted(
    folder: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
) -> Callable[[int, int], None]:
    """Make a progress callback that stops the run when RELION's user aborts the job.

    Parameters
    ----------
    folder : path
        The job folder.
    progress : callable, optional
        Called each time as well, as ``progress(images_done, images_in_all)``.

    Returns
    -------
    progress : callable
        Raises KeyboardInterrupt once the job folder holds ``RELION_JOB_ABORT_NOW``.
    """
    # Absolute, because a working folder may change while a callback lives.
    mark = Path(folder).absolute() / ABORT_NOW

    def watch(done: int, total: int) -> None:
        if mark.exists():
            raise KeyboardInterrupt("aborted from RELION")
        if progress:
            progress(done, total)

    return watch


def _job_name(folder: str | os.PathLike[str]) -> str:
    path = Path(os.path.normpath(folder))
    name = (Path(*path.parts[-2:]) if path.is_absolute() else path).as_posix()
    if name.split() != [name]:
        raise InputError(f"job folder {name!r} has blanks in its path, which RELION cannot read: rename it.")
    return name


def _write_outputs(job: Path, name: str, outputs: list[JobOutput]) -> None:
    newest = _relion_version(job) >= _FIRST_OF_5
    rows = []
    for output in outputs:
        kind = _KINDS[check_choice("kind", output.kind, list(_KINDS))]
        if not (job / output.name).is_file():
            raise ValueError(f"output {output.name} of job {name} does not exist.")
        label = kind.label_5 if newest else kind.label_4
        rows.append(f"{name}/{output.name} {kind.number} {label}\n")
    # 3.1 reads the number, 4 and 5 the label, and each passes over the other column.
    labels = "_rlnPipeLineNodeName #1\n_rlnPipeLineNodeType #2\n_rlnPipeLineNodeTypeLabel #3\n"
    partial = job / f"{OUTPUT_NODES}.partial"
    partial.write_text(f"\n# version 30001\n\ndata_output_nodes\n\nloop_\n{labels}{''.join(rows)}\n")
    partial.replace(job / OUTPUT_NODES)


def _relion_version(job: Path) -> int:
    """Return the version that the RELION which made this job writes in its tables."""
    for path in (job / "job.star", job.absolute().parent.parent / "default_pipeline.star"):
        with suppress(OSError), open(path, "rb") as file:
            if found := _VERSION.search(file.read(_HEAD)):
                return int(found[1])
    return _FIRST_OF_5


def _end(job: Path, mark: str) -> None:
    # RELION leaves its order to stop where it is; there it would stop the next run of this job.
    (job / ABORT_NOW).unlink(missing_ok=True)
    (job / mark).touch()
