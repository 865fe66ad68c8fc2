"""A run as a job of RELION's pipeline: its marks, its outputs, and RELION itself reading them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastsort._checks import InputError
from fastsort.particles.star import read_star
from fastsort.report.relion_job import JobOutput, list_outputs, relion_job, stop_when_aborted

NODES = "RELION_OUTPUT_NODES.star"
ABORT = "RELION_JOB_ABORT_NOW"
ENDS = {
    f"RELION_JOB_EXIT_{end}": status for end, status in [("SUCCESS", "2"), ("FAILURE", "3"), ("ABORTED", "4")]
}
needs_relion = pytest.mark.skipif(shutil.which("relion_pipeliner") is None, reason="RELION is not installed")


def marks(job):
    """Return what RELION looks for in a job folder, and what is left half written."""
    return sorted(path.name for path in job.iterdir() if path.name.startswith("RELION"))


def make_output(job, *names):
    for name in names:
        (job / name).parent.mkdir(parents=True, exist_ok=True)
        (job / name).write_text("data_particles\n")


def nodes(job):
    """Return the rows of the table of outputs as RELION's columns name them."""
    table = read_star(job / NODES).block("output_nodes")
    columns = ("_rlnPipeLineNodeName", "_rlnPipeLineNodeType", "_rlnPipeLineNodeTypeLabel")
    assert tuple(table.labels) == columns
    return list(zip(*map(table.column, columns), strict=True))


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job folder, as seen from its project."""
    monkeypatch.chdir(tmp_path)
    folder = Path("External/job012")
    folder.mkdir(parents=True)
    return folder


def test_a_good_end_is_told_with_all_outputs(job):
    with relion_job("External/job012/") as outputs:
        make_output(job, "sorted/kept.star", "sorted/rejected.star")
        outputs += [JobOutput("sorted/kept.star"), JobOutput("sorted/rejected.star")]
        assert marks(job) == []
    assert marks(job) == ["RELION_JOB_EXIT_SUCCESS", NODES]
    label = "ParticleGroupMetadata.star.relion"
    assert nodes(job) == [
        ("External/job012/sorted/kept.star", "3", label),
        ("External/job012/sorted/rejected.star", "3", label),
    ]


@pytest.mark.parametrize(
    ("job_star", "pipeline", "particles", "coordinates"),
    [
        (50001, None, "ParticleGroupMetadata.star.relion", "MicrographCoordsGroup.star.relion"),
        (30001, None, "ParticlesData.star.relion", "MicrographsCoords.star.relion"),
        (None, 30001, "ParticlesData.star.relion", "MicrographsCoords.star.relion"),
        (50001, 30001, "ParticleGroupMetadata.star.relion", "MicrographCoordsGroup.star.relion"),
    ],
)
def test_kinds_are_named_as_the_relion_that_made_the_job_names_them(
    job, job_star, pipeline, particles, coordinates
):
    for path, version in [(job / "job.star", job_star), (Path("default_pipeline.star"), pipeline)]:
        if version:
            path.write_text(f"\n# version {version}\n\ndata_job\n\n_rlnJobIsContinue 0\n")
    with relion_job(job) as outputs:
        make_output(job, "a.star", "b.star")
        outputs += [JobOutput("a.star", "particles"), JobOutput("b.star", "coordinates")]
    assert [row[1:] for row in nodes(job)] == [("3", particles), ("2", coordinates)]


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (InputError("no such file"), "FAILURE"),
        (MemoryError(), "FAILURE"),
        (SystemExit(2), "FAILURE"),
        (KeyboardInterrupt(), "ABORTED"),
    ],
)
def test_a_bad_end_is_told_and_the_reason_goes_on(job, error, end):
    make_output(job, "kept.star")
    with pytest.raises(type(error)) as caught, relion_job(job) as outputs:
        outputs.append(JobOutput("kept.star"))
        raise error
    assert caught.value is error
    assert marks(job) == [f"RELION_JOB_EXIT_{end}"]


@pytest.mark.parametrize("end", ENDS)
def test_marks_of_an_earlier_run_are_gone_while_this_one_works(job, end):
    for name in (end, NODES):
        (job / name).touch()
    with relion_job(job):
        assert marks(job) == []


@pytest.mark.parametrize("output", [JobOutput("sorted/kept.star"), JobOutput("job.star", "movies")])
def test_an_output_at_which_relion_would_stop_is_no_success(job, output):
    (job / "job.star").touch()
    with pytest.raises(ValueError, match=r"does not exist|must be one of"), relion_job(job) as outputs:
        outputs.append(output)
    assert marks(job) == ["RELION_JOB_EXIT_FAILURE"]


def test_success_is_told_only_after_the_outputs(job):
    (job / f"{NODES}.partial").mkdir()
    with pytest.raises(IsADirectoryError), relion_job(job):
        pass
    assert "RELION_JOB_EXIT_FAILURE" in marks(job) and "RELION_JOB_EXIT_SUCCESS" not in marks(job)


def test_an_order_to_stop_stops_the_run_once(job):
    seen = []
    watch = stop_when_aborted(job, lambda done, total: seen.append((done, total)))
    with pytest.raises(KeyboardInterrupt, match="RELION"), relion_job(job):
        watch(1, 3)
        (job / ABORT).touch()
        watch(2, 3)
    assert seen == [(1, 3)]
    assert marks(job) == ["RELION_JOB_EXIT_ABORTED"]
    with relion_job(job):
        watch(3, 3)
    assert seen == [(1, 3), (3, 3)]


def test_an_order_given_while_the_job_waited_in_a_queue_counts(job):
    (job / ABORT).touch()
    with pytest.raises(KeyboardInterrupt), relion_job(job):
        stop_when_aborted(job)(0, 1)
    assert marks(job) == ["RELION_JOB_EXIT_ABORTED"]


def test_an_absolute_folder_is_named_from_its_project(job):
    with relion_job(job.absolute()) as outputs:
        make_output(job, "kept.star")
        outputs.append(JobOutput("kept.star"))
    assert nodes(job)[0][0] == "External/job012/kept.star"


def test_folders_that_relion_cannot_name_or_we_cannot_write_are_refused(job):
    with pytest.raises(InputError, match="blanks"), relion_job("External/my job/"):
        pytest.fail("the work has begun")
    Path("External/job013").touch()
    with pytest.raises(InputError, match="not a folder"), relion_job("External/job013/"):
        pytest.fail("the work has begun")


def test_tables_of_particles_are_outputs_and_nothing_else(job):
    make_output(job, "sorted/kept.star", "sorted/rejected.star", "sorted/classes.star", "sorted/summary.json")
    assert list_outputs(job, "sorted") == [JobOutput("sorted/kept.star"), JobOutput("sorted/rejected.star")]


def test_sorted_picks_are_listed_as_relion_listed_them(job):
    listed = """
# version 50001

data_coordinate_files

loop_
_rlnMicrographName #1
_rlnMicrographCoordinates #2
MotionCorr/job002/m1.mrc AutoPick/job005/Movies/m1_autopick.star
MotionCorr/job002/m2.mrc   AutoPick/job005/Movies/m2_autopick.star
"""
    Path("autopick.star").write_text(listed)
    make_output(job, "sorted/kept/m1_autopick.star", "sorted/kept/m2_autopick.star")
    make_output(job, "sorted/rejected/m2_autopick.star")
    outputs = list_outputs("External/job012/", "sorted", "autopick.star")
    assert outputs == [JobOutput(f"{part}_picks.star", "coordinates") for part in ("kept", "rejected")]
    old, new = "AutoPick/job005/Movies/", "External/job012/sorted/kept/"
    assert (job / "kept_picks.star").read_text() == listed.replace(old, new)
    line = "MotionCorr/job002/m1.mrc AutoPick/job005/Movies/m1_autopick.star\n"
    rejected = listed.replace(line, "").replace(old, "External/job012/sorted/rejected/")
    assert (job / "rejected_picks.star").read_text() == rejected


def test_without_a_list_of_coordinate_files_there_is_none_to_write(job):
    make_output(job, "sorted/kept/m1.box")
    Path("picks.star").write_text("data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n1 2\n")
    Path("m1.box").write_text("1 2 3 3\n")
    for coordinates in ("picks.star", "m1.box", "*.star"):
        assert list_outputs(job, "sorted", coordinates) == []


STUB = """#!{python}
import sys, time
sys.path.insert(0, {package!r})
from pathlib import Path
from fastsort.report.relion_job import JobOutput, relion_job, stop_when_aborted

arguments = sys.argv[1:]
print(*arguments)
folder = arguments[arguments.index("--o") + 1]
with relion_job(folder) as outputs:
    if Path("fail").exists():
        raise ValueError("as asked")
    watch = stop_when_aborted(folder)
    deadline = time.monotonic() + 300
    while Path("wait").exists() and time.monotonic() < deadline:
        watch(0, 1)
        time.sleep(0.05)
    sorted_ = Path(folder, "sorted")
    sorted_.mkdir(exist_ok=True)
    source = Path(arguments[arguments.index("--in_parts") + 1])
    for name in ("kept.star", "rejected.star"):
        (sorted_ / name).write_bytes(source.read_bytes())
        outputs.append(JobOutput(f"sorted/{{name}}"))
"""

PIPELINE = """
# version 30001

data_pipeline_general

_rlnPipeLineJobCounter                       2

# version 30001

data_pipeline_processes

loop_
_rlnPipeLineProcessName #1
_rlnPipeLineProcessAlias #2
_rlnPipeLineProcessType #3
_rlnPipeLineProcessStatus #4
Extract/job001/       None            5            2

# version 30001

data_pipeline_nodes

loop_
_rlnPipeLineNodeName #1
_rlnPipeLineNodeType #2
Extract/job001/particles.star            3

# version 30001

data_pipeline_output_edges

loop_
_rlnPipeLineEdgeProcess #1
_rlnPipeLineEdgeToNode #2
Extract/job001/ Extract/job001/particles.star
"""


def start(*arguments):
    return subprocess.Popen(
        ["relion_pipeliner", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def pipeliner(*arguments):
    process = start(*arguments)
    errors = finish(process)
    assert process.returncode == 0, errors


def finish(process):
    try:
        return process.communicate(timeout=600)[1]
    finally:
        process.kill()


def run(job):
    return ("--RunJobs", f"{job}/", "--schedule", "test", "--sec_wait_after", "1")


def add_job(executable, particles):
    options = {
        "External executable:": executable,
        "Input particles: ": particles,
        "Param1 - label:": "diameter",
        "Param1 - value:": "180",
    }
    pipeliner("--addJob", "External", "--addJobOptions", ";".join(f"{k} == {v}" for k, v in options.items()))


def rows(block):
    table = read_star("default_pipeline.star").block(f"pipeline_{block}")
    return list(zip(*map(table.column, table.labels), strict=True))


def status(job):
    return next(row[3] for row in rows("processes") if row[0] == f"{job}/")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A RELION project with extracted particles, and a command for its External jobs."""
    monkeypatch.chdir(tmp_path)
    Path("Extract/job001").mkdir(parents=True)
    Path("Extract/job001/particles.star").write_text("data_particles\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n")
    Path("default_pipeline.star").write_text(PIPELINE)
    stub = Path("sorter")
    stub.write_text(STUB.format(python=sys.executable, package=str(Path(__file__).parents[1])))
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    return tmp_path


@needs_relion
def test_the_pipeline_takes_in_the_outputs_and_feeds_them_to_the_next_job(project):
    job, kept = "External/job002", "External/job002/sorted/kept.star"
    add_job(f"{project}/sorter", "Extract/job001/particles.star")
    pipeliner(*run(job))
    assert status(job) == "2"
    assert (kept, "3") in rows("nodes") and (kept.replace("kept", "rejected"), "3") in rows("nodes")
    assert (f"{job}/", kept) in rows("output_edges")
    assert ("Extract/job001/particles.star", f"{job}/") in rows("input_edges")
    told = Path(job, "run.out").read_text().split()
    assert told == f"--o {job}/ --in_parts Extract/job001/particles.star --diameter 180 --j 1".split()
    add_job(f"{project}/sorter", kept)
    pipeliner(*run("External/job003"))
    assert status("External/job003") == "2"
    assert (kept, "External/job003/") in rows("input_edges")


@needs_relion
def test_the_pipeline_sees_a_failure_and_runs_the_same_job_again(project):
    job = "External/job002"
    add_job(f"{project}/sorter", "Extract/job001/particles.star")
    Path("fail").touch()
    pipeliner(*run(job))
    assert status(job) == "3"
    assert "as asked" in Path(job, "run.err").read_text()
    Path("fail").unlink()
    pipeliner(*run(job))
    assert status(job) == "2"
    pipeliner(*run(job))
    assert status(job) == "2"
    assert sorted(os.listdir(f"{job}/sorted")) == ["kept.star", "rejected.star"]


@needs_relion
def test_the_pipeline_stops_a_job_that_its_user_aborts(project):
    job = Path("External/job002")
    add_job(f"{project}/sorter", "Extract/job001/particles.star")
    Path("wait").touch()
    process = start(*run(job))
    deadline = time.monotonic() + 300
    while not (job / "run.out").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    (job / ABORT).touch()
    finish(process)
    assert status(job) == "4"
    assert not (job / ABORT).exists()


@needs_relion
def test_the_pipeline_adds_an_argument_when_the_command_holds_its_name(project):
    Path("sorter").rename("relion_sorter")
    add_job(f"{project}/relion_sorter", "Extract/job001/particles.star")
    pipeliner(*run("External/job002"))
    told = Path("External/job002/run.out").read_text().split()
    assert told[-2:] == ["--pipeline_control", "External/job002/"]
    assert status("External/job002") == "2"


# The example of a scheme.

SCHEME = Path(__file__).parents[1] / "benchmarks" / "relion" / "Schemes" / "fastsort"


def test_the_scheme_is_whole():
    star = read_star(str(SCHEME / "scheme.star"))

    def column(block, label):
        return star.block(f"scheme_{block}").column(f"_rlnScheme{label}")

    kinds = {"floats": "Float", "bools": "Boolean", "strings": "String"}
    variables = {name for block, kind in kinds.items() for name in column(block, f"{kind}VariableName")}
    nodes = {*column("operators", "OperatorName"), *column("jobs", "JobName")}
    for label in ("Output", "Input1", "Input2"):
        assert {*column("operators", f"Operator{label}")} <= {*variables, "undefined"}
    assert {*column("edges", "EdgeInputNodeName"), *column("edges", "EdgeOutputNodeName")} == nodes
    assert {*column("edges", "EdgeOutputNodeNameIfTrue")} <= {*nodes, "undefined"}
    assert {*column("edges", "EdgeBooleanVariable")} <= {*column("bools", "BooleanVariableName"), "undefined"}
    (job,) = column("jobs", "JobName")
    options = read_star(str(SCHEME / job / "job.star")).block("joboptions_values")
    values = dict(zip(*map(options.column, options.labels), strict=True))
    assert values["in_part"] == "$$extracted" and "extracted" in variables
    assert values["fn_exe"] == "fastsort sort --relion-job --update"


@needs_relion
def test_the_job_of_the_scheme_runs_and_goes_on(project):
    text = (SCHEME / "sort" / "job.star").read_text()
    text = text.replace("$$extracted", "Extract/job001/particles.star")
    Path("job.star").write_text(text.replace('"fastsort sort', f'"{project}/sorter sort'))
    pipeliner("--addJobFromStar", "job.star")
    job = "External/job002"
    for _ in range(2):
        pipeliner(*run(job))
        assert status(job) == "2"
    told = Path(job, "run.out").read_text().splitlines()[-1].split()
    expected = f"sort --relion-job --update --o {job}/ --in_parts Extract/job001/particles.star --j 4"
    assert told == expected.split()
