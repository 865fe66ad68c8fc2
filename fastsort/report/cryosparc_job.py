"""A run as an External job of cryoSPARC: what it sorts, its log, and its outputs.

cryosparc-tools speaks with the server; it is an optional package, and imported when a server is asked for.
"""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastsort._checks import InputError
from fastsort._disk import is_full
from fastsort._progress import Progress
from fastsort._version import __version__
from fastsort.images.work import hold_lock
from fastsort.particles.cs_file import Rows, read_cs
from fastsort.report.folder import PAGE, PARTS, PICTURE

INPUT, TABLE, RESULTS, WORK = "particles", "particles.cs", "sorted", ".sorted.work"
_PLAN, _LOCK = "fastsort.json", ".fastsort.lock"
# Seconds between looks at the job, and until the next one when the server did not answer.
_EVERY, _LATER = 5.0, 60.0
# How long an answer may take that is a dataset, and one that is needed at once; all is asked three times.
_PATIENCE, _AT_ONCE = 300, 10
# How many of a long list are named.
_N_NAMED = 10
_EXTERNAL = "snowflake"
_WORKING = ("running", "waiting")
_ENDED = ("completed", "failed", "killed")
_NOT_DONE = ("building", "queued", "launched", "started")
_IMAGES = ("blob/path", "blob/idx")
_PICKS = (
    "location/micrograph_path",
    "location/micrograph_shape",
    "location/center_x_frac",
    "location/center_y_frac",
)
_TITLES = {
    "kept": "Particles kept",
    "rejected": "Particles rejected",
    "rescued": "Rare views, rejected",
}


class NoAnswer(InputError):
    """The server does not answer."""


class Source(NamedTuple):
    """An output that is sorted.

    Attributes
    ----------
    project, job, output : str
        Such as ``P3``, ``J24`` and ``particles``.
    slots : dict of str to str
        Kind of each of its results, such as ``blob``, by name.
    """

    project: str
    job: str
    output: str
    slots: dict[str, str]

    def __str__(self) -> str:
        return f"output {self.output} of {self.job}"


class Live(NamedTuple):
    """How far a run of cryoSPARC Live is.

    Attributes
    ----------
    workspace : str
        In which it is.
    particles, accepted : int
        Particles that were extracted, and micrographs that were accepted, so far.
    """

    workspace: str
    particles: int
    accepted: int


class Plan(NamedTuple):
    """What a job was begun with, kept in its folder.

    Attributes
    ----------
    home : str
        The job in whose folder the results lie: another one where cryoSPARC would not let a job run again.
    source : list of str
        Job and output.
    changed : list of str
        Results that sorting changes besides the first, such as ``alignments2D``.
    options : dict
        Options of the command, as they were given.
    update : bool
        Whether the folder holds a copy of earlier results, from which the sort goes on.
    done : bool
        Whether all is sorted, and only not saved yet.
    """

    home: str
    source: list[str]
    changed: list[str]
    options: dict[str, Any]
    update: bool = False
    done: bool = False


def connect(
    url: str | None = None,
    host: str | None = None,
    port: int | None = None,
    email: str | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    remark: Callable[[str], None] = print,
) -> Server:
    """Log in to a cryoSPARC server.

    Parameters
    ----------
    url : str, optional
        Of the web interface; else `host` and `port`, else what the environment says.
    host, port, email : optional
    environment : mapping, optional
        With the variables that cryosparc-tools documents; by default that of the process. A password or a
        licence is taken from nowhere else. Without one, the login counts that
        ``python -m cryosparc.tools login`` has saved.
    remark : callable
        Called with a line where versions differ a little.

    Returns
    -------
    server : Server

    Raises
    ------
    InputError
        If cryosparc-tools is missing, there is no login, or the server refuses it or has another version.
    NoAnswer
        If there is no server.
    """
    try:
        from cryosparc import __version__ as version
        from cryosparc.tools import CryoSPARC
    except ImportError:
        raise InputError(
            "cryosparc-tools is needed to speak with cryoSPARC: pip install 'fastsort[cryosparc]'"
        ) from None
    known = os.environ if environment is None else environment
    if not (url or host or port):
        url, host = known.get("CRYOSPARC_BASE_URL"), known.get("CRYOSPARC_MASTER_HOSTNAME")
        given = known.get("CRYOSPARC_BASE_PORT")
        if given and not given.isdigit():
            raise InputError(f"CRYOSPARC_BASE_PORT must be a number; it is {given!r}.")
        port = int(given) if given else None
    if url and (host or port):
        raise InputError(
            f"give either an address or host and port of cryoSPARC; got {url} and {host or port}."
        )
    if not (url or host or port):
        raise InputError("where cryoSPARC is was not given: give --url, or set CRYOSPARC_BASE_URL.")
    address = url.rstrip("/") if url else f"http://{host or 'localhost'}:{port or 39000}"
    with _asking(address):
        try:
            tools = CryoSPARC(
                address,
                host=None,
                base_port=None,
                email=email or known.get("CRYOSPARC_EMAIL"),
                password=known.get("CRYOSPARC_PASSWORD"),
                license=known.get("CRYOSPARC_LICENSE_ID"),
                timeout=_PATIENCE,
            )
        except ValueError as error:
            if error.__cause__ is not None or hasattr(error, "code"):
                raise
            raise InputError(
                f"no login for cryoSPARC at {address}: log in once with 'python -m cryosparc.tools login', "
                "or set CRYOSPARC_EMAIL and CRYOSPARC_PASSWORD."
            ) from None
        theirs = tools.api.config.get_version()
    _compare_versions(address, str(theirs), version, remark)
    return Server(tools, address)


def _compare_versions(address: str, theirs: str, ours: str, remark: Callable[[str], None]) -> None:
    found = re.match(r"v?(\d+)\.(\d+)", theirs)
    if found is None or found.groups() == tuple(ours.split(".")[:2]):
        return
    fitting = f"pip install 'cryosparc-tools~={found[1]}.{found[2]}.0'"
    line = f"cryoSPARC at {address} has version {theirs}, and cryosparc-tools {ours} may not fit: {fitting}"
    if found[1] != ours.split(".")[0]:
        raise InputError(line)
    remark(line)


@contextmanager
def _asking(address: str) -> Iterator[None]:
    """Say in one line what the server did not do."""
    try:
        with warnings.catch_warnings():
            # Of each attempt, and of versions, of which we speak ourselves.
            warnings.simplefilter("ignore")
            yield
    except (InputError, OSError):
        raise
    except Exception as error:
        raise _told(address, error) from None


def _told(address: str, error: BaseException) -> InputError:
    cause: BaseException | None = error
    while cause is not None:
        code = getattr(cause, "code", None)
        if type(cause).__name__ == "APIError" and code in (401, 403):
            return InputError(
                f"cryoSPARC at {address} refuses this login: log in again, or check the password."
            )
        if type(cause).__name__ == "APIError" and isinstance(code, int):
            why = _detail(getattr(cause, "data", None)) or f"code {code}"
            kind = NoAnswer if code in (502, 503, 504) else InputError
            return kind(f"cryoSPARC at {address} refuses: {why}")
        if type(cause).__module__.partition(".")[0] in ("httpx", "httpcore"):
            if type(cause).__name__ == "HTTPStatusError":
                break
            return NoAnswer(f"cryoSPARC at {address} does not answer ({cause or type(cause).__name__})")
        cause = cause.__cause__
    last = f"{type(error.__cause__ or error).__name__}: {error.__cause__ or error}"
    return InputError(
        f"cryoSPARC at {address} does not speak as this cryosparc-tools expects "
        f"({' '.join(last.split())[:120]}): check the address, and install the cryosparc-tools of its "
        "version."
    )


def _detail(data: Any) -> str:
    """Return what a server says of an error as one line."""
    told = data.get("detail", data) if isinstance(data, dict) else data
    if isinstance(told, list) and told and isinstance(told[0], dict):
        told = told[0].get("msg", told[0])
    return " ".join(str(told).split())[:300] if told else ""


def _is_unknown(error: BaseException) -> bool:
    return type(error).__name__ == "APIError" and getattr(error, "code", None) in (400, 404, 422)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_N_NAMED]) + (", ..." if len(names) > _N_NAMED else "") if names else "none"


class Server:
    """A cryoSPARC server that has let us in.

    Attributes
    ----------
    address : str
    """

    def __init__(self, tools: Any, address: str) -> None:
        self._tools = tools
        self.address = address

    def close(self) -> None:
        """Close the connection."""
        self._tools.api._client.close()

    def find_source(self, project: str, job: str, output: str) -> Source:
        """Find an output of particles.

        Raises
        ------
        InputError
            If there is none; the message names what there is.
        """
        self.check_project(project)
        found = self._find_job(project, job)
        outputs = found.outputs
        if output not in outputs:
            raise InputError(f"job {job} has no output {output!r}; it has {_listed(outputs)}.")
        if found.status in _NOT_DONE:
            raise InputError(f"job {job} is {found.status} and has no particles yet: wait until it is done.")
        if outputs[output].type != "particle":
            others = _listed(name for name, other in outputs.items() if other.type == "particle")
            raise InputError(
                f"output {output!r} of job {job} is of type {outputs[output].type}, and particles are "
                f"sorted; outputs of particles: {others}."
            )
        return Source(project, job, output, {result.name: result.dtype for result in outputs[output].results})

    def check_project(self, project: str) -> None:
        """Refuse a project that is not there."""
        with _asking(self.address):
            try:
                self._tools.find_project(project)
            except ValueError as error:
                if not _is_unknown(error):
                    raise
                there = _listed(other.uid for other in self._tools.find_projects())
                raise InputError(f"there is no project {project}; there are {there}.") from None

    def check_workspace(self, project: str, workspace: str) -> None:
        """Refuse a workspace that is not there."""
        with _asking(self.address):
            try:
                self._tools.find_workspace(project, workspace)
            except ValueError as error:
                if not _is_unknown(error):
                    raise
                there = _listed(other.uid for other in self._tools.find_workspaces(project))
                raise InputError(f"project {project} has no workspace {workspace}; it has {there}.") from None

    def find_live(self, project: str, live: str) -> Live:
        """Return how far a run of cryoSPARC Live is."""
        self.check_project(project)
        with _asking(self.address):
            try:
                found = self._tools.api.sessions.find_one(project, live)
            except ValueError as error:
                if not _is_unknown(error):
                    raise
                raise InputError(f"project {project} has no {live} of Live: give one such as S1.") from None
            stats = found.stats
        return Live(str(found.uid), stats.total_extracted_particles, stats.total_accepted)

    def export_live(self, project: str, live: str, output: str) -> tuple[str, str]:
        """Let Live export its particles, wait for that, and return the job and its output of particles."""
        with _asking(self.address):
            job = str(self._tools.api.sessions.create_and_enqueue_export_particles(project, live).uid)
        while (found := self._find_job(project, job)).status not in _ENDED:
            time.sleep(_EVERY)
        if found.status != "completed":
            raise InputError(
                f"{job}, which exports the particles of {live}, was {found.status}: see its log."
            )
        names = [name for name, other in found.outputs.items() if other.type == "particle"]
        if output not in names and len(names) != 1:
            raise InputError(f"{job} has outputs of particles {_listed(names)}: choose one with --output.")
        return job, output if output in names else names[0]

    def _find_job(self, project: str, job: str) -> Any:
        with _asking(self.address):
            try:
                return self._tools.find_job(project, job)
            except ValueError as error:
                if not _is_unknown(error):
                    raise
                there = [other.uid for other in self._tools.find_jobs(project)]
                raise InputError(f"project {project} has no job {job}; it has {_listed(there)}.") from None

    def load(self, source: Source) -> Rows:
        """Load all fields of an output, those that were passed through too, as a structured array."""
        with _asking(self.address):
            dataset = self._tools.find_job(source.project, source.job).load_output(source.output, slots="all")
            records = dataset.to_records(fixed=True)
        return np.asarray(records).view(np.dtype(records.dtype.descr))

    def project_folder(self, project: str, here: str | None = None) -> Path:
        """Return the folder of a project as this machine sees it.

        Parameters
        ----------
        project : str
        here : str, optional
            Where it is on this machine, if not where cryoSPARC has it.
        """
        with _asking(self.address):
            folder = Path(here or str(self._tools.api.projects.get_directory(project)))
        if not folder.is_dir():
            raise InputError(
                f"this machine has no folder {folder}, in which project {project} lies: run fastsort on a "
                "machine that sees it, or say with --project-dir where it is here."
            )
        return folder

    def create(self, workspace: str, source: Source, slots: Iterable[str], folder: Path) -> ExternalJob:
        """Make an External job that is connected to an output.

        Parameters
        ----------
        workspace : str
        source : Source
        slots : iterable of str
            Results that are saved; all others of `source` are passed through.
        folder : path
            Of the project.

        Returns
        -------
        job : ExternalJob
            With outputs for what is kept and rejected.
        """
        with _asking(self.address):
            made = self._tools.create_external_job(
                source.project,
                workspace,
                title=f"fastsort: {source.job} {source.output}",
                desc=f"fastsort {__version__}",
            )
        job = ExternalJob(self.address, made, folder)
        kinds = [{"name": slot, "dtype": source.slots.get(slot, slot)} for slot in slots]
        with job.failing(), _asking(self.address):
            made.connect(
                INPUT, source.job, source.output, slots=[{**kind, "required": True} for kind in kinds]
            )
            for part in ("kept", "rejected"):
                job.add_output(part, kinds)
        return job

    def find_external(self, project: str, uid: str, folder: Path) -> ExternalJob:
        """Find a job that this program has made."""
        self.check_project(project)
        found = self._find_job(project, uid)
        if found.type != _EXTERNAL:
            raise InputError(f"job {uid} is no External job: give --continue the one that fastsort made.")
        if found.status == "completed":
            raise InputError(f"job {uid} is completed: nothing is left to do.")
        with _asking(self.address):
            return ExternalJob(self.address, self._tools.find_external_job(project, uid), folder)


class ExternalJob:
    """An External job for which this process works.

    Attributes
    ----------
    uid, project : str
    folder : Path
    """

    def __init__(self, address: str, job: Any, project_folder: Path) -> None:
        self._address, self._job, self._project_folder = address, job, project_folder
        self.uid, self.project = str(job.uid), str(job.project_uid)
        self.folder = project_folder / str(job.model.job_dir)
        # How it ended without us, such as "killed".
        self._ended = ""

    @property
    def _again(self) -> str:
        """How to go on when it was stopped."""
        if not (self.folder / _PLAN).is_file():
            return "start a new job"
        return f"'fastsort cryosparc --project {self.project} --continue {self.uid}' goes on"

    @property
    def workspace(self) -> str:
        """A workspace that it is in."""
        return str(self._job.model.workspace_uids[0])

    def make_folder(self) -> None:
        """Refuse a folder in which nothing can be written."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make {self.folder} ({error.strerror}): ask who runs cryoSPARC."
            ) from None
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise InputError(
                f"no permission to write in {self.folder}, the folder of {self.uid}: run fastsort as the "
                "user that runs cryoSPARC, or in its group."
            )

    def write_plan(self, plan: Plan) -> None:
        """Note in the folder what the job was begun with."""
        partial = self.folder / f"{_PLAN}.partial"
        partial.write_text(json.dumps(plan._asdict(), indent=1) + "\n", "utf-8")
        partial.replace(self.folder / _PLAN)

    def read_plan(self) -> Plan:
        """Return what the job was begun with."""
        try:
            return Plan(**json.loads((self.folder / _PLAN).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            raise InputError(
                f"{self.folder} has no {_PLAN} that can be read: {self.uid} did not begin to sort; "
                "start a new job."
            ) from None

    def start(self) -> str:
        """Say that the work begins; return why not, where cryoSPARC does not let this job run again."""
        try:
            with _asking(self._address):
                self._job.start("running")
        except NoAnswer:
            raise
        except InputError as error:
            return str(error)
        return ""

    def say(self, line: str) -> None:
        """Write a line to the job's log."""
        with _asking(self._address):
            self._job.log(line)

    def check(self) -> None:
        """Stop where somebody has killed or cleared the job.

        Raises
        ------
        KeyboardInterrupt
        NoAnswer
        """
        with _asking(self._address):
            status = self._job.refresh().status
        if status not in _WORKING:
            self._ended = str(status)
            raise KeyboardInterrupt(f"{self.uid} was {status} in cryoSPARC")

    def watch(self, progress: Progress | None, remark: Callable[[str], None]) -> Progress:
        """Return a callback that also writes progress to the job's log, and stops when the job was killed.

        A server that does not answer stops nothing: all that is needed to sort is on the disk.
        """
        due = 0.0

        def watched(done: int, total: int) -> None:
            nonlocal due
            if progress is not None:
                progress(done, total)
            now = time.monotonic()
            if now < due:
                return
            due = now + _EVERY
            share = 100 * done // max(total, 1)
            try:
                with self._at_once():
                    self.check()
                    with _asking(self._address):
                        self._job.log(f"sorting {share} %, {done:,} of {total:,} images", name="progress")
            except NoAnswer as error:
                remark(f"{error}; the sorting goes on, and is saved when it answers again")
                due = now + _LATER

        return watched

    def add_output(self, part: str, kinds: Iterable[Mapping[str, str]]) -> None:
        """Add an output for a part, if there is none; all that is not saved is passed through."""
        with _asking(self._address):
            if part not in self._job.outputs:
                self._job.add_output(
                    type="particle", name=part, slots=list(kinds), passthrough=INPUT, title=_TITLES[part]
                )

    def check_fields(self, source: Source, names: Collection[str]) -> None:
        """Refuse an output that lacks fields which cryoSPARC asks of ours."""
        with _asking(self._address):
            fields = self._job.cs.api.jobs.get_output_fields(self.project, self.uid, "kept", {})
        check_has(source, names, [str(field[0]) for field in fields])

    def save(self, results: Path, slots: Iterable[str], kinds: Mapping[str, str]) -> list[str]:
        """Save the parts of a finished run as outputs.

        Parameters
        ----------
        results : path
            The folder of the run.
        slots : iterable of str
            Results that are saved.
        kinds : mapping of str to str
            The kind of each, where it has another name.

        Returns
        -------
        saved : list of str
            Names of the outputs.
        """
        from cryosparc.dataset import Dataset

        slots = list(slots)
        self.check()
        saved = [part for part in PARTS if part_table(results, part).is_file()]
        with _asking(self._address):
            for part in saved:
                self.add_output(part, [{"name": slot, "dtype": kinds.get(slot, slot)} for slot in slots])
                self._job.save_output(part, Dataset.load(part_table(results, part), prefixes=slots))
        return saved

    def show(self, results: Path) -> None:
        """Put the picture of a finished run into the log, with the page to be downloaded."""
        if not (results / PICTURE).is_file():
            return
        page = {"raw_data_file": results / PAGE, "raw_data_format": "html"}
        more = page if (results / PAGE).is_file() else {}
        with _asking(self._address):
            self._job.log_plot(results / PICTURE, "fastsort report", formats=["png"], **more)

    def complete(self) -> None:
        """Say that the job is done."""
        with _asking(self._address):
            self._job.stop()
        self._ended = "completed"

    def compare(self, results: Path, parts: Iterable[str]) -> list[str]:
        """Load the outputs as another job would, and say what differs from the files."""
        told = []
        for part in parts:
            rows = read_cs(part_table(results, part))
            with _asking(self._address):
                loaded = self._job.load_output(part, slots="all")
            expected = {name for name in rows.dtype.names or () if not name.startswith("fastsort/")}
            if sorted(loaded["uid"].tolist()) != sorted(rows["uid"].tolist()):
                told.append(
                    f"output {part} has {len(loaded):,} particles in cryoSPARC, and {len(rows):,} were saved"
                )
            elif missing := expected - set(loaded.fields()):
                told.append(f"output {part} lacks {_listed(sorted(missing))} in cryoSPARC")
        return told

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Tell cryoSPARC in one sentence how this block failed, and how to go on."""
        try:
            yield
        except KeyboardInterrupt:
            if self._ended == "completed":
                raise
            why = f"{self.uid} was {self._ended} in cryoSPARC" if self._ended else "interrupted"
            line = f"{why}: {self._again}"
            self._fail(line)
            raise KeyboardInterrupt(line) from None
        except NoAnswer as error:
            raise NoAnswer(f"{error}; what was done stays in {self.folder}: {self._again}") from None
        except OSError as error:
            if not is_full(error):
                self._fail(f"{error.strerror}{f': {error.filename}' if error.filename else ''}")
                raise
            line = f"{os.strerror(error.errno or 0)}; when there is room, {self._again}"
            self._fail(line)
            raise OSError(error.errno, line) from None
        except BaseException as error:
            self._fail(" ".join(str(error).split()) or type(error).__name__)
            raise

    def _fail(self, line: str) -> None:
        # Where it has ended already, it ends as whoever ended it wants.
        if not self._ended:
            with suppress(InputError), self._at_once(), _asking(self._address):
                self._job.stop(error=line)

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Wait for answers for a few seconds and no longer: somebody, or the sort, is waiting too."""
        client = self._job.cs.api._client
        before, client.timeout = client.timeout, _AT_ONCE
        try:
            yield
        finally:
            client.timeout = before


def hold_home(home: Path) -> AbstractContextManager[None]:
    """Refuse to work in a folder in which another run works, before that one is told anything."""
    return hold_lock(home / _LOCK, f"another run works in {home}: wait until it is done, or stop it.")


def part_table(results: Path, part: str) -> Path:
    """Return where a part of a run is: a .cs file, or one in a folder where picks were sorted."""
    picks = results / part / TABLE
    return picks if picks.is_file() else results / f"{part}.cs"


def holds_picks(source: Source, names: Collection[str]) -> bool:
    """Whether an output names picks and no images; refuse one that lacks what is needed.

    Parameters
    ----------
    source : Source
        For messages.
    names : collection of str
        Its fields.
    """
    if any(name in names for name in _IMAGES):
        check_has(source, names, ("uid", *_IMAGES))
        return False
    if not any(name in names for name in _PICKS):
        raise InputError(
            f"{source} has neither {' and '.join(_IMAGES)}, which name images, nor location/*, which are "
            "picks: give particles of an extraction or of a picker."
        )
    check_has(source, names, ("uid", *_PICKS))
    return True


def check_has(source: Source, names: Collection[str], needed: Iterable[str]) -> None:
    """Refuse an output that lacks fields, and name them."""
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(
            f"{source} lacks {', '.join(missing)}: sort that of a job which has all of these, such as the "
            "extraction itself."
        )
