"""`fastsort cryosparc` with a small server in place of cryoSPARC: saved, stopped, gone on with, refused."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastsort import cli
from fastsort._checks import InputError
from fastsort.cli import cryosparc as command
from fastsort.cli.sort import check_sort
from fastsort.images.work import WorkFolder
from fastsort.particles.cs_file import read_cs, write_cs
from fastsort.particles.mrc import write_stack
from fastsort.report import cryosparc_job as job_module
from fastsort.report.cryosparc_job import connect
from fastsort.report.subsets import subsets, write_subset
from fastsort.simulate import simulate_particles

# Of cryosparc-tools, which leaves connections open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
auth = pytest.importorskip("cryosparc.auth", reason="cryosparc-tools is not installed")
standin_cryosparc = pytest.importorskip("standin_cryosparc")
EMAIL, PASSWORD = standin_cryosparc.EMAIL, standin_cryosparc.PASSWORD

N, BOX, SIDE = 100, 32, 400
NEW = ("cryosparc", "--project", "P3", "--workspace", "W1", "--job", "J24", "--jobs", "1")
GO_ON = ("cryosparc", "--project", "P3", "--continue")


def structured(columns):
    n = len(columns["uid"])
    rows = np.zeros(n, [(name, values.dtype, values.shape[1:]) for name, values in columns.items()])
    for name, values in columns.items():
        rows[name] = values
    return rows


@pytest.fixture(scope="module")
def made():
    """Images, and what a job of cryoSPARC says of them, the fields of earlier jobs included."""
    images, truth = simulate_particles(60, N - 60, box=BOX, snr=0.5, junk="all", ctf=True, seed=1)
    ctf, rng = truth.ctf, np.random.default_rng(3)
    numbers = {
        "ctf/accel_kv": ctf.voltage,
        "ctf/cs_mm": ctf.spherical_aberration,
        "ctf/amp_contrast": ctf.amplitude_contrast,
        "ctf/df1_A": ctf.defocus_u,
        "ctf/df2_A": ctf.defocus_v,
        "ctf/df_angle_rad": np.radians(ctf.defocus_angle),
        "ctf/phase_shift_rad": np.radians(ctf.phase_shift),
        "location/center_x_frac": rng.uniform(0.2, 0.8, N),
        "location/center_y_frac": rng.uniform(0.2, 0.8, N),
    }
    rows = structured(
        {
            "uid": rng.permutation(1 << 20)[:N].astype(np.uint64) + np.uint64(2**63),
            "blob/path": np.full(N, b">J24/extract/a.mrc"),
            "blob/idx": np.arange(N, dtype=np.uint32),
            "blob/shape": np.full((N, 2), BOX, np.uint32),
            "blob/psize_A": np.full(N, 3, np.float32),
            "blob/sign": np.ones(N, np.float32),
            "location/micrograph_path": np.array([b"J2/m%d.mrc" % (k % 3) for k in range(N)]),
            "location/micrograph_shape": np.full((N, 2), SIDE, np.uint32),
            **{name: values.astype(np.float32) for name, values in numbers.items()},
        }
    )
    return images, rows


@pytest.fixture
def standin(made, tmp_path, monkeypatch):
    """A server with the particles of J24, and nobody's login but ours."""
    images, rows = made
    (tmp_path / "J24" / "extract").mkdir(parents=True)
    write_stack(tmp_path / "J24" / "extract" / "a.mrc", [images], 3.0, N, BOX)
    server = standin_cryosparc.StandIn(tmp_path).start()
    server.add_output("J24", "particles", rows)
    for name in [name for name in os.environ if name.startswith("CRYOSPARC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CRYOSPARC_BASE_URL", server.url)
    monkeypatch.setenv("CRYOSPARC_EMAIL", EMAIL)
    monkeypatch.setenv("CRYOSPARC_PASSWORD", PASSWORD)
    monkeypatch.setattr(auth, "get_default_auth_config_path", lambda: tmp_path / "auth.json")
    yield server
    server.stop()
    # While what they leave open is passed over.
    gc.collect()


def draw(folder, *_, **__):
    (folder / "report.png").write_bytes(b"picture")
    (folder / "report.html").write_bytes(b"page")


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command in this process; return its code, and the last line on the error stream."""
    monkeypatch.setattr("fastsort.report.drawing.draw_results", draw)

    def called(*arguments):
        try:
            code = cli.main(list(arguments))
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        assert PASSWORD not in said.out + said.err
        return code, (said.err.splitlines() or [""])[-1]

    return called


def sort_nothing(options):
    """In place of the sort: every third particle is rejected, without a look at it."""
    folder = Path(options.output)
    folder.mkdir(exist_ok=True)
    particles = check_sort(options)
    keep = np.arange(len(particles)) % 3 > 0
    for name, rows in subsets(keep, ~keep & (np.arange(len(keep)) % 2 > 0)).items():
        write_subset(folder, name, particles.table, rows)
    draw(folder)
    reasons = {"valid": int(keep.sum())}
    counted = {"images": len(keep), "kept": int(keep.sum()), "rejected": int((~keep).sum()), "rescued": 0}
    return {**counted, "reasons": reasons, "errors": None, "micrographs": None, "doubts": []}, []


def texts(standin):
    return [event.text for event in standin.log]


def outputs(standin, uid):
    """The outputs of a job as the next job gets them."""
    return {
        name: standin.jobs_load_output("P3", uid, name, b"", ["all"]).to_records(fixed=True)
        for name in standin.jobs[uid].spec.outputs.root
    }


@pytest.mark.slow
def test_stopped_three_times_and_nothing_is_lost(standin, made, call, monkeypatch):
    """Ctrl-C, then a kill from cryoSPARC's page, then a server that goes away when results are saved."""
    rows, folder, done, stage = made[1], standin.folder / "J31", [], WorkFolder.stage

    def noted(work, name, compute):
        return stage(work, name, lambda: (compute(), done.append(name))[0])

    monkeypatch.setattr(WorkFolder, "stage", noted)
    monkeypatch.setattr(job_module, "_EVERY", 0.0)
    # While another thread compiles, an answer can be late.
    monkeypatch.setattr(job_module, "_LATER", 0.0)
    standin.before = lambda name: name == "jobs.update_event_log" and os.kill(os.getpid(), signal.SIGINT)
    on = "'fastsort cryosparc --project P3 --continue J31' goes on"
    assert call(*NEW, "--diameter", "64") == (130, f"fastsort: error: interrupted: {on}")
    assert standin.jobs["J31"].status == "failed" and texts(standin)[-1] == f"interrupted: {on}"
    measured = {item.name for item in (folder / ".sorted.work").iterdir()}
    assert "images.work" in measured and not (folder / "sorted").exists()

    def kill(name):
        if name == "jobs.update_event_log" and int(texts(standin)[-1].split()[1]) >= 75:
            standin.jobs["J31"].status = "killed"

    standin.before, standin.log = kill, []
    assert call(*GO_ON, "J31") == (130, f"fastsort: error: J31 was killed in cryoSPARC: {on}")
    assert standin.jobs["J31"].status == "killed" and ("J31", "kept") not in standin.data
    assert measured < {item.name for item in (folder / ".sorted.work").iterdir()}

    def leave(name):
        if name == "jobs.save_output":
            standin.stop()

    standin.before, standin.log = leave, []
    port = standin.http.server_port
    code, line = call(*GO_ON, "J31", "--jobs", "2")
    assert code == 1 and line.startswith(f"fastsort: error: cryoSPARC at {standin.url} does not answer (")
    assert line.endswith(f"; what was done stays in {folder}: {on}")
    # No stage of the work was done twice.
    assert done == ["learned", "radial", "subspaces", "invariants"]
    assert not (folder / ".sorted.work").exists()

    again = standin_cryosparc.StandIn(standin.folder, port).start()
    again.jobs, again.data = standin.jobs, standin.data
    monkeypatch.setattr(command, "sort_once", None)
    try:
        code, line = call(*GO_ON, "J31", "--quiet")
        assert code == 0 and line == f"fastsort: sorted already: the results in {folder / 'sorted'} are saved"
    finally:
        again.stop()
    assert again.jobs["J31"].status == "completed"
    parts = outputs(again, "J31")
    assert set(parts) == {"kept", "rejected"}
    for name, part in parts.items():
        # All fields, and every value, of the same particle, whoever had saved it.
        known = rows[[np.flatnonzero(rows["uid"] == uid)[0] for uid in part["uid"].tolist()]]
        assert {*part.dtype.names} == {*rows.dtype.names}
        assert all((part[field] == known[field]).all() for field in rows.dtype.names)
        written = read_cs(folder / "sorted" / f"{name}.cs")
        assert written["uid"].tolist() == part["uid"].tolist()
        assert {"fastsort/score", "fastsort/junk_probability"} < {*written.dtype.names}
    assert sorted([*parts["kept"]["uid"], *parts["rejected"]["uid"]]) == sorted(rows["uid"])
    assert again.assets == {"fastsort report.png": b"picture", "report.html": b"page"}
    assert texts(again)[-1].startswith(f"{N} images: {len(parts['kept'])} kept")
    saved = json.loads((folder / "sorted" / "summary.json").read_text())
    assert saved["diameter"] == 64 and not saved["diameter_estimated"]


def test_a_job_that_may_not_run_again_has_a_successor(standin, call, monkeypatch):
    """The second job saves what the first one has sorted, rare views too."""
    monkeypatch.setattr(command, "sort_once", sort_nothing)
    asked = []

    def refuse(name):
        asked.append(name)
        if asked.count("jobs.save_output") == 1 and name == "jobs.save_output":
            standin.jobs["J31"].status = "killed"

    standin.before, standin.once_over = refuse, "no"
    code, line = call(*NEW)
    assert code == 1 and line == f"fastsort: error: cryoSPARC at {standin.url} refuses: Job J31 is killed"
    # As a run leaves it, of which this is none.
    (standin.folder / "J31" / "sorted" / "results.npz").touch()
    summary = {"images": 3, "kept": 2, "rejected": 1, "rescued": 0, "reasons": {}}
    rest = {"errors": None, "micrographs": None, "doubts": []}
    finished = SimpleNamespace(summary={**summary, **rest})
    monkeypatch.setattr("fastsort.report.finished.open_finished", lambda *_, **__: finished)
    code, line = call(*GO_ON, "J31")
    assert code == 0 and standin.jobs["J32"].status == "completed"
    assert {name: len(part) for name, part in outputs(standin, "J32").items()} == {
        "kept": 66,
        "rejected": 17,
        "rescued": 17,
    }
    code, line = call(*GO_ON, "J32")
    assert line == "fastsort: error: job J32 is completed: nothing is left to do."


def test_picks_are_sorted_from_their_micrographs(standin, made, call, monkeypatch):
    rows = made[1]
    names = [name for name in rows.dtype.names if not name.startswith("blob/")]
    picks = structured({name: rows[name] for name in names})
    standin.add_output("J25", "picks", picks)
    monkeypatch.setattr(command, "sort_once", sort_nothing)
    words = ["J25" if word == "J24" else word for word in [*NEW, "--output", "picks"]]
    line = "output picks of J25 are picks: give --box, the size of the boxes to extract in pixels."
    assert call(*words) == (1, f"fastsort: error: {line}")
    code, line = call(*words, "--box", "32")
    assert code == 1 and "3 of 3 micrographs are not there, first " in line and "J31" not in standin.jobs
    (standin.folder / "J2").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).normal(size=(1, SIDE, SIDE)).astype(np.float32)
        write_stack(standin.folder / "J2" / f"m{number}.mrc", [pixels], 3.0, 1, SIDE)
    assert call(*words, "--box", "32", "--recentre")[0] == 0
    parts = outputs(standin, "J31")
    assert sum(map(len, parts.values())) == N
    for part in parts.values():
        known = rows[[np.flatnonzero(rows["uid"] == uid)[0] for uid in part["uid"].tolist()]]
        assert {*part.dtype.names} == {*names}
        assert all((part[name] == known[name]).all() for name in names)


def test_particles_of_live_are_sorted_as_they_come(standin, made, call, monkeypatch):
    rows, asked = made[1], []

    def sort_and_note(options):
        held = sorted(path.name for path in Path(options.output).glob("*"))
        asked.append((options.update, len(read_cs(options.input)), held))
        return sort_nothing(options)

    def next_look(seconds):
        assert seconds == 7.5
        waits.append(len(standin.extracted))
        if waits == [0, 60]:
            standin.extracted = rows
        elif len(waits) == 4:
            raise KeyboardInterrupt
        elif waits == [0]:
            standin.extracted = rows[:60]

    waits = []
    live = ("cryosparc", "--project", "P3", "--live", "S1", "--jobs", "1")
    monkeypatch.setattr(command, "sort_once", sort_and_note)
    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=next_look, strftime=command.time.strftime))
    assert call(*live) == (1, "fastsort: error: S1 has extracted no particles yet: wait, or give --every.")
    assert call(*live, "--every", "7.5") == (0, "fastsort: stopped; 2 rounds were saved")
    # Where Live has nothing new, nothing is exported.
    assert waits == [0, 60, N, N]
    names = ["kept.cs", "rejected.cs", "report.html", "report.png", "rescued.cs"]
    assert asked == [(False, 60, []), (True, N, names)]
    assert [standin.jobs[uid].status for uid in ("J32", "J34")] == ["completed"] * 2
    first, second = (sum(map(len, outputs(standin, uid).values())) for uid in ("J32", "J34"))
    assert (first, second) == (60, N)
    (connection,) = standin.jobs["J34"].spec.inputs.root["particles"].connections
    assert (connection.job_uid, connection.output) == ("J33", "exported")
    assert call(*live[:4], "S2")[1].endswith("project P3 has no S2 of Live: give one such as S1.")
    assert call(*live, "--job", "J24")[1].endswith(
        "--job does nothing with --live, which has jobs of its own: leave it out."
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--project": "P4"}, "there is no project P4; there are P3."),
        ({"--workspace": "W7"}, "project P3 has no workspace W7; it has W1."),
        ({"--job": "J99"}, "project P3 has no job J99; it has J24, J26, J27."),
        ({"--output": "particle"}, "job J24 has no output 'particle'; it has particles, volume."),
        (
            {"--output": "volume"},
            "output 'volume' of job J24 is of type volume, and particles are sorted; outputs",
        ),
        ({"--job": "J26"}, "job J26 is queued and has no particles yet: wait until it is done."),
        (
            {"--job": "J27"},
            "lacks location/micrograph_shape, location/center_y_frac: sort that of a job which has",
        ),
        ({"--box": "32"}, "--box does nothing with particles that were extracted: leave it out."),
        ({"--duplicate-distance": "9", "--pixel-size": "-1"}, "pixel_size must be positive; got -1 A."),
        ({"--project-dir": "/nowhere"}, "this machine has no folder /nowhere, in which project P3 lies: run"),
        ({"--continue": "J24"}, "--workspace and --job do nothing with --continue, which goes on as the job"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_leaves_no_job(standin, made, call, changed, said):
    rows = made[1]
    lacking = [
        name
        for name in rows.dtype.names
        if name not in ("location/micrograph_shape", "location/center_y_frac")
    ]
    picks = structured({name: rows[name] for name in lacking if not name.startswith("blob/")})
    standin.add_output("J24", "volume", rows, type="volume")
    standin.add_output("J26", "particles", rows)
    standin.jobs["J26"].status = "queued"
    standin.add_output("J27", "particles", picks)
    given = {**dict(zip(NEW[1::2], NEW[2::2], strict=True)), **changed}
    code, line = call("cryosparc", *(word for pair in given.items() for word in pair))
    assert code == 1 and said in line
    assert "jobs.create" not in standin.called


def test_what_cryosparc_asks_of_an_output_is_checked_before_the_sort(standin, made, call, monkeypatch):
    rows = made[1]
    standin.add_output(
        "J28", "particles", structured({n: rows[n] for n in rows.dtype.names if n != "blob/sign"})
    )
    monkeypatch.setattr(command, "sort_once", None)
    code, line = call(*("J28" if word == "J24" else word for word in NEW))
    assert code == 1 and "output particles of J28 lacks blob/sign: sort that of a job which has" in line
    assert standin.jobs["J31"].status == "failed" and texts(standin) == [
        line.removeprefix("fastsort: error: ")
    ]
    code, line = call(*GO_ON, "J31")
    assert code == 1 and "J31 did not begin to sort; start a new job" in line
    code, line = call(*GO_ON, "J24")
    assert line == "fastsort: error: job J24 is no External job: give --continue the one that fastsort made."


def test_another_run_of_the_same_job_is_left_alone(standin, call, monkeypatch):
    told = []

    def sort_and_try(options):
        told.append(call(*GO_ON, "J31"))
        return sort_nothing(options)

    monkeypatch.setattr(command, "sort_once", sort_and_try)
    assert call(*NEW)[0] == 0
    ((code, line),) = told
    assert code == 1 and line.endswith("J31: wait until it is done, or stop it.")
    assert standin.jobs["J31"].status == "completed"


def test_a_server_that_goes_away_does_not_stop_the_sort(standin):
    server = connect(standin.url)
    source = server.find_source("P3", "J24", "particles")
    job = server.create("W1", source, ["blob"], standin.folder)
    assert job.start() == ""
    said, seen = [], []
    watched = job.watch(lambda done, total: seen.append(done), said.append)
    watched(10, N)
    assert texts(standin) == ["sorting 10 %, 10 of 100 images"]
    standin.stop()
    # The server is not asked more often than every few seconds.
    for done in (20, 30):
        watched(done, N)
    assert seen == [10, 20, 30] and said == []
    late = job.watch(None, said.append)
    late(40, N)
    late(50, N)
    assert len(said) == 1 and said[0].startswith(f"cryoSPARC at {standin.url} does not answer (")
    assert said[0].endswith("; the sorting goes on, and is saved when it answers again")


def refused(**given):
    with pytest.raises(InputError) as caught:
        connect(**given)
    text = str(caught.value)
    assert "\n" not in text and PASSWORD not in text
    return text


def test_logins(standin, tmp_path):
    here = {"url": standin.url}
    known = {"CRYOSPARC_EMAIL": EMAIL, "CRYOSPARC_PASSWORD": "guess"}
    assert refused(**here, environment=known).endswith(
        "refuses this login: log in again, or check the password."
    )
    none = refused(**here, environment={})
    assert none.startswith(f"no login for cryoSPARC at {standin.url}: log in once with")
    assert "license" not in none
    assert refused(**here, environment={"CRYOSPARC_LICENSE_ID": "x"}).endswith("or check the password.")
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    gone = refused(host="127.0.0.1", port=port, environment=known)
    assert gone.startswith(f"cryoSPARC at http://127.0.0.1:{port} does not answer (")
    assert refused(environment={}).endswith("give --url, or set CRYOSPARC_BASE_URL.")
    assert "either an address or host" in refused(url="http://a", port=3)
    assert "must be a number" in refused(environment={"CRYOSPARC_BASE_PORT": "x"})
    saved = auth.InstanceAuthSessions({})
    late = datetime.now(timezone.utc) + timedelta(days=1)
    token = auth.Token(access_token=standin_cryosparc.TOKEN, token_type="bearer")
    saved.insert(standin.url, EMAIL, token, late)
    saved.save(tmp_path / "auth.json")
    assert connect(**here, environment={}).find_source("P3", "J24", "particles").slots["blob"] == "blob"


def test_versions_that_do_not_fit(standin, monkeypatch):
    said = []
    standin.version = "v5.9.0"
    connect(standin.url, remark=said.append)
    assert said[0].startswith(f"cryoSPARC at {standin.url} has version v5.9.0, and cryosparc-tools ")
    assert said[0].endswith("may not fit: pip install 'cryosparc-tools~=5.9.0'")
    standin.version = "v4.7.1"
    assert refused(url=standin.url).endswith("pip install 'cryosparc-tools~=4.7.0'")
    monkeypatch.setattr("standin_cryosparc.CALLS", [])
    assert "does not speak as this cryosparc-tools expects (" in refused(url=standin.url)
    monkeypatch.setattr("standin_cryosparc.ROOT", "/elsewhere")
    assert "does not speak as this cryosparc-tools expects (" in refused(url=standin.url)


def test_without_the_package_it_is_named(standin, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryosparc.tools", None)
    line = "cryosparc-tools is needed to speak with cryoSPARC: pip install 'fastsort[cryosparc]'"
    assert call(*NEW) == (1, f"fastsort: error: {line}")


def test_what_does_not_arrive_is_told(standin, call, monkeypatch):
    """A server that passes nothing through: the run is saved, and says what the files have besides."""
    monkeypatch.setattr(command, "sort_once", sort_nothing)

    def forget(name):
        if name == "jobs.mark_completed":
            for output in standin.jobs["J31"].spec.outputs.root.values():
                output.passthrough = None

    standin.before = forget
    code, line = call(*NEW)
    assert code == 0 and line.startswith("fastsort: output rescued lacks ctf/accel_kv, ctf/amp_contrast, ")


def test_a_picture_that_is_refused_fails_nothing(standin, call, monkeypatch):
    monkeypatch.setattr(command, "sort_once", sort_nothing)

    def refuse(*_, **__):
        raise standin_cryosparc.Refused(413, "too large")

    monkeypatch.setattr(standin, "assets_upload", refuse)
    said, rest = [], standin.jobs_load_output
    monkeypatch.setattr("fastsort.cli.talk.Talk.remark", lambda _, line: said.append(line))

    def load(project_uid, job_uid, *others, **more):
        if job_uid == "J31":
            raise standin_cryosparc.Refused(500, "no such file")
        return rest(project_uid, job_uid, *others, **more)

    monkeypatch.setattr(standin, "jobs_load_output", load)
    assert call(*NEW)[0] == 0 and standin.jobs["J31"].status == "completed"
    refuses = f"cryoSPARC at {standin.url} refuses: "
    assert said[1:] == [
        f"no picture in the log of J31: {refuses}too large",
        f"the outputs are saved, and could not be compared with the files: {refuses}no such file",
    ]


def test_tools_read_what_we_write_and_write_what_we_read(made, tmp_path):
    from cryosparc.dataset import CSDAT_FORMAT, Dataset

    rows = made[1]
    chosen = np.arange(0, N, 3)
    write_cs(tmp_path / "kept.cs", rows, chosen, {"fastsort/score": np.linspace(0, 1, N, dtype=np.float32)})
    kept = Dataset.load(tmp_path / "kept.cs")
    assert kept.drop_fields(["fastsort/score"]) == Dataset(rows[chosen])
    for some in (rows, rows[:1], rows[:0]):
        dataset = Dataset(some)
        dataset.add_fields(["motion/idx", "é/text"], ["u4", "O"])
        dataset["é/text"] = [["", "α", "long " * k][k % 3] for k in range(len(some))]
        for name, content in (
            ("file.cs", None),
            ("stream.cs", b"".join(dataset.stream())),
        ):
            if content is None:
                dataset.save(tmp_path / name, format=CSDAT_FORMAT)
            else:
                (tmp_path / name).write_bytes(content)
            expected, read = dataset.to_records(fixed=True), read_cs(tmp_path / name)
            assert read.dtype.descr == expected.dtype.descr and read.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["lz4", "plain"])
def test_damaged_compressed_files_are_refused_or_sound(made, tmp_path, kind):
    from cryosparc.dataset import CSDAT_FORMAT, Dataset

    path = tmp_path / "whole.cs"
    dataset = Dataset(np.concatenate([made[1]] * 3))
    if kind == "lz4":
        dataset.save(path, format=CSDAT_FORMAT)
    else:
        path.write_bytes(b"".join(dataset.stream()))
    whole, rng, n_refused = path.read_bytes(), np.random.default_rng(5), 0
    for trial in range(150):
        damaged = bytearray(whole[: rng.integers(6, len(whole))] if trial % 3 == 0 else whole)
        for place in rng.integers(6, len(damaged), 1 + trial % 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert len(read_cs(path)) == 3 * N
        except InputError as error:
            n_refused += 1
            assert "\n" not in str(error)
    assert n_refused > 60


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path):
    header = {"length": 1 << 40, "dtype": [["uid", "<u8"], ["a", "<f4"]], "compression": "lz4"}
    text = json.dumps({**header, "compressed_fields": ["uid", "a"]}).encode()
    path = tmp_path / "a.cs"
    path.write_bytes(
        b"\x95CSDAT" + len(text).to_bytes(4, "little") + text + (3).to_bytes(4, "little") + b"abc"
    )
    with pytest.raises(InputError, match="uid is too short for 1099511627776 rows"):
        read_cs(path)
