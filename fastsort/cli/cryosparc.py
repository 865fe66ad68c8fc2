"""``fastsort cryosparc``: particles of a cryoSPARC job, sorted as an External job of its project."""

from __future__ import annotations

import argparse
import io
import shutil
import time
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsort._checks import InputError, check_positive
from fastsort.cli.limits import read_limit
from fastsort.cli.options import (
    DENOISED_HELP,
    DONE,
    DONE_BUT,
    SEED_HELP,
    Commands,
    add_cluster,
    add_command,
    add_strictness,
    n_workers,
    refuse_given,
)
from fastsort.cli.printing import print_verdicts
from fastsort.cli.sort import check_sort, sort_once
from fastsort.cli.talk import add_talk

if TYPE_CHECKING:
    from fastsort.particles.cs_file import Rows
    from fastsort.report.cryosparc_job import ExternalJob, Plan, Server, Source

# What a job does not remember: where it runs, and what is said of it.
_OF_THIS_CALL = {
    *("project", "workspace", "job", "output", "live", "every", "continued", "project_dir"),
    *("url", "host", "port", "email", "jobs", "cluster", "cluster_wait", "log", "json", "quiet", "fail_if"),
}
# What `sort` has besides, and is the same for every job.
_FIXED: dict[str, Any] = {
    **dict.fromkeys(
        ("method", "n_subspaces", "n_components", "n_peaks", "passthrough", "work", "learn_from"), None
    ),
    **dict.fromkeys(("update", "judge_again", "relion_job", "write_stack", "keep_work", "overwrite"), False),
    "preset": "default",
}


def add_cryosparc(commands: Commands) -> None:
    """Add the command."""
    text = "Sort the particles of a cryoSPARC job, as an External job of its project."
    example = "fastsort cryosparc --project P3 --workspace W1 --job J24"
    needs = "--project P --workspace W --job J "
    parser = add_command(commands, "cryosparc", run_cryosparc, needs, text, example)
    add = parser.add_argument_group("job").add_argument
    add("--project", required=True, metavar="P", help="project, such as P3")
    add("--workspace", metavar="W", help="workspace for the External job, such as W1")
    add("--job", metavar="J", help="job whose particles are sorted, such as J24")
    add("--output", default="particles", metavar="NAME", help="output of that job (default particles)")
    add("--live", metavar="S", help="run of Live whose particles are exported and sorted, such as S1")
    add("--every", type=float, metavar="S", help="with --live: again whenever it has more, looking every S s")
    going_on = "External job that was stopped, to go on with"
    add("--continue", dest="continued", metavar="J", help=going_on)
    here = "the project's folder, if it has another path here"
    add("--project-dir", metavar="DIR", help=here)
    server = parser.add_argument_group(
        "server", "the password comes from CRYOSPARC_PASSWORD or a saved login"
    )
    add = server.add_argument
    add("--url", metavar="URL", help="address (default $CRYOSPARC_BASE_URL)")
    add("--host", metavar="NAME", help="or host (default $CRYOSPARC_MASTER_HOSTNAME)")
    add("--port", type=int, metavar="N", help="and base port (default $CRYOSPARC_BASE_PORT)")
    add("--email", metavar="EMAIL", help="of the user (default $CRYOSPARC_EMAIL)")
    verdict = parser.add_argument_group("verdict")
    add_strictness(verdict)
    add = verdict.add_argument
    contrast = "particles are bright, dark or auto (default: found)"
    add("--contrast", choices=("auto", "bright", "dark"), default="auto", metavar="HOW", help=contrast)
    add("--keep-off-centre", action="store_true", help="keep off-centre particles; use with --recentre")
    closer = "closer picks are one particle (default 20; 0: off)"
    add("--duplicate-distance", type=float, metavar="A", help=closer)
    add("--recentre", action="store_true", help="save where each particle lies")
    limits = "code 3 if this: 'junk>SHARE', or unknown errors"
    add("--fail-if", type=read_limit, action="append", default=[], metavar="LIMIT", help=limits)
    add = parser.add_argument_group("images").add_argument
    add(
        "--diameter",
        type=float,
        metavar="A",
        help="diameter of the particle in angstroms (default: estimated)",
    )
    flip = "flip phases for the CTF: yes, no or auto"
    add("--phase-flip", choices=("auto", "yes", "no"), default="auto", metavar="WHEN", help=flip)
    add("--pixel-size", type=float, metavar="A", help="in angstroms (default: as the job has it)")
    add("--working-size", type=int, metavar="PX", help="crop images to this size (default 36)")
    add("--box", type=int, metavar="PX", help="picks: size of the boxes to extract")
    add("--bright", action="store_true", help="picks: particles are bright in the micrographs")
    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--denoised", action="store_true", help=DENOISED_HELP)
    add("--jobs", type=n_workers, default=-1, metavar="N", help="number of workers (default -1: all cores)")
    add_cluster(run)
    add("--seed", type=int, default=0, metavar="N", help=SEED_HELP)
    add_talk(parser, "show no progress and no summary")


def run_cryosparc(options: argparse.Namespace) -> int:
    """Run the command."""
    from fastsort.report.cryosparc_job import connect

    _check_given(options)
    server = connect(options.url, options.host, options.port, options.email, remark=options.talk.remark)
    with closing(server):
        if options.live is not None:
            return _follow(options, server)
        return _begin(options, server) if options.continued is None else _go_on(options, server)


def _check_given(options: argparse.Namespace) -> None:
    if options.continued is not None:
        idle = {*options.defaults} - _OF_THIS_CALL | {"workspace", "job", "output", "live", "every"}
        refuse_given(options, idle, "with --continue, which goes on as the job began")
    elif options.live is not None:
        refuse_given(options, ["job"], "with --live, which has jobs of its own")
        if options.every is not None:
            check_positive("--every", options.every, "s")
    else:
        refuse_given(options, ["every"], "without --live")
        for name in ("workspace", "job"):
            if getattr(options, name) is None:
                raise InputError(
                    f"--{name} is missing: give --workspace and --job, or --live, or --continue."
                )


def _follow(options: argparse.Namespace, server: Server) -> int:
    """Sort what Live has extracted, once or whenever it has more; each round goes on from the one before."""
    talk, live = options.talk, options.live
    sorted_as, earlier, last_error, rounds, code = None, None, "", 0, DONE
    options.workspace = options.workspace or server.find_live(options.project, live).workspace
    wanted = options.output
    while True:
        try:
            now = server.find_live(options.project, live)
            if now.particles and now != sorted_as:
                options.job, options.output = server.export_live(options.project, live, wanted)
                talk.restart()
                code = _begin(options, server, earlier)
                sorted_as, earlier, last_error, rounds = now, options.results, "", rounds + 1
        except (InputError, OSError) as error:
            if options.every is None or rounds == 0:
                # Somebody who has just given the command is there to correct it.
                raise
            if str(error) != last_error:
                talk.remark(f"{time.strftime('%H:%M:%S')} not sorted, will be tried again: {error}")
            last_error = str(error)
        if options.every is None:
            if not rounds:
                raise InputError(f"{live} has extracted no particles yet: wait, or give --every.")
            return code
        try:
            time.sleep(options.every)
        except KeyboardInterrupt:
            talk.remark(f"stopped; {rounds} rounds were saved")
            return code


def _begin(options: argparse.Namespace, server: Server, earlier: Path | None = None) -> int:
    """Make a new job and sort, from earlier results if there are any."""
    from tempfile import TemporaryDirectory

    from fastsort.particles.cs_file import write_cs
    from fastsort.report.cryosparc_job import RESULTS, TABLE, Plan, hold_home, holds_picks

    source = server.find_source(options.project, options.job, options.output)
    server.check_workspace(options.project, options.workspace)
    folder = server.project_folder(options.project, options.project_dir)
    rows = server.load(source)
    picks = holds_picks(source, rows.dtype.names or ())
    if picks and options.box is None:
        raise InputError(f"{source} are picks: give --box, the size of the boxes to extract in pixels.")
    if not picks:
        refuse_given(options, ["box", "bright"], "with particles that were extracted")
    # All that can be wrong is found before there is a job that would fail.
    with TemporaryDirectory(prefix="fastsort-") as name:
        table = Path(name) / TABLE
        write_cs(table, rows, range(len(rows)), {})
        particles = check_sort(_sorting(options, table, folder, picks))
        changed = _changed(particles.table) if options.recentre else []
    given = {name: getattr(options, name) for name in options.given - _OF_THIS_CALL}
    slots = _slots(picks, changed)
    job = server.create(options.workspace, source, slots, folder)
    with job.failing():
        job.check_fields(source, rows.dtype.names or ())
        job.make_folder()
        with hold_home(job.folder):
            write_cs(job.folder / TABLE, rows, range(len(rows)), {})
            if earlier is not None:
                copied = job.folder / f"{RESULTS}.copy"
                shutil.copytree(earlier, copied)
                copied.rename(job.folder / RESULTS)
            plan = Plan(job.uid, [source.job, source.output], changed, given, earlier is not None)
            job.write_plan(plan)
            options.talk.remark(f"{source} of {source.project} is sorted as {job.uid}, in {job.folder}")
            if refused := job.start():
                raise InputError(refused)
            return _work(options, job, plan, source, folder)


def _go_on(options: argparse.Namespace, server: Server) -> int:
    """Go on with a job that was stopped, or with a new one where cryoSPARC does not let it run again."""
    from fastsort.report.cryosparc_job import hold_home

    folder = server.project_folder(options.project, options.project_dir)
    job = server.find_external(options.project, options.continued, folder)
    plan = job.read_plan()
    source = server.find_source(options.project, *plan.source)
    for name, value in plan.options.items():
        setattr(options, name, value)
    options.given = options.given | plan.options.keys()
    with hold_home(folder / plan.home):
        if refused := job.start():
            job = _in_its_place(options, server, job, plan, source, folder, refused)
        with job.failing():
            return _work(options, job, plan, source, folder)


def _in_its_place(
    options: argparse.Namespace,
    server: Server,
    job: ExternalJob,
    plan: Plan,
    source: Source,
    folder: Path,
    why: str,
) -> ExternalJob:
    """Return a new job that goes on with what another one has done."""
    new = server.create(job.workspace, source, _slots(options.box is not None, plan.changed), folder)
    with new.failing():
        new.make_folder()
        new.write_plan(plan)
        options.talk.remark(f"{job.uid} cannot run again ({why}): its work goes on as {new.uid}")
        if refused := new.start():
            raise InputError(refused)
    return new


def _work(options: argparse.Namespace, job: ExternalJob, plan: Plan, source: Source, project: Path) -> int:
    """Sort, if that is not done yet, and save."""
    from fastsort.report.cryosparc_job import RESULTS, TABLE, WORK
    from fastsort.report.finished import open_finished

    home = project / plan.home
    results, picks = home / RESULTS, options.box is not None
    passed: Sequence[str] = []
    if plan.done or (not plan.update and (results / "results.npz").is_file()):
        summary = open_finished(results, data_dir=None if picks else project).summary
        options.talk.remark(f"sorted already: the results in {results} are saved")
        options.talk.summary(results, lambda: print_verdicts(summary))
    else:
        sorting = _sorting(options, home / TABLE, project, picks)
        sorting.output, sorting.work = str(results), str(home / WORK)
        sorting.watch = lambda progress: job.watch(progress, options.talk.remark)
        job.say(f"fastsort sorts into {results}")
        sorting.update = plan.update
        summary, passed = sort_once(sorting)
        job.write_plan(plan._replace(done=True))
    options.results = results
    slots = _slots(picks, plan.changed)
    saved = job.save(results, slots, source.slots)
    try:
        job.show(results)
    except InputError as error:
        # The outputs matter more; without a server the job does not end well either.
        options.talk.remark(f"no picture in the log of {job.uid}: {error}")
    heard = io.StringIO()
    with redirect_stdout(heard):
        print_verdicts(summary)
    job.say(f"{heard.getvalue()}results in {results}")
    job.complete()
    try:
        differ = job.compare(results, saved)
    except InputError as error:
        differ = [f"the outputs are saved, and could not be compared with the files: {error}"]
    for line in differ:
        options.talk.remark(line)
    if not options.quiet and not options.json:
        print(f"saved in cryoSPARC: {', '.join(saved)} of {job.uid}")
    return DONE_BUT if passed else DONE


def _slots(picks: bool, changed: Sequence[str]) -> list[str]:
    """Return the results that are saved; all others are passed through."""
    return list(dict.fromkeys(["location" if picks else "blob", *changed]))


def _changed(table: Any) -> list[str]:
    """Return the result that says where particles lie."""
    from fastsort.particles.cs import CsDataset, recentred_slot

    return [recentred_slot(table)] if isinstance(table, CsDataset) else ["location"]


def _sorting(options: argparse.Namespace, table: Path, project: Path, picks: bool) -> argparse.Namespace:
    """Return the options as `sort` has them."""
    fixed = {**_FIXED, "data_dir": None, "score_field": not picks, "output": "", "input": None}
    own = argparse.Namespace(**{**vars(options), **fixed, "micrographs": None, "coordinates": None})
    if picks:
        from fastsort.particles.cs_file import read_cs

        own.micrographs, own.coordinates = _micrographs(read_cs(table), project), str(table)
        own.given = own.given | {"micrographs", "coordinates", "box"}
    else:
        own.input, own.data_dir = str(table), str(project)
        own.given = own.given - {"box"}
    return own


def _micrographs(rows: Rows, project: Path) -> list[str]:
    """Return the micrographs that picks name, each once."""
    names = {
        bytes(name).rstrip(b"\0").lstrip(b">") for name in set(rows["location/micrograph_path"].tolist())
    }
    paths = [project / name.decode("utf-8", "surrogateescape") for name in sorted(names)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} micrographs are not there, first {missing[0]}: restore them, or "
            "sort extracted particles."
        )
    return [str(path) for path in paths]
