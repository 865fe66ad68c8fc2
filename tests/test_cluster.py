"""Workers of Dask: the same bits as one process, whoever is killed, blind or of another version."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pytest

import fastsort as fs
from fastsort import cli
from fastsort._checks import InputError
from fastsort.images import batches, cluster
from fastsort.images.batches import map_batches
from fastsort.images.cluster import use_cluster
from fastsort.images.normalize import inspect_pixels

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

ROOT = Path(fs.__file__).parents[1]
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def scheduler():
    # Or else a worker is not started again if it is away 15 s after it was killed, for another reason.
    patient = {"distributed.deploy.lost-worker-timeout": "1h"}
    with (
        dask.config.set(patient),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as local,
    ):
        yield local.scheduler_address


@pytest.fixture
def workers(scheduler):
    """A client of two workers, of which joblib has been told."""
    with distributed.Client(scheduler) as client, joblib.parallel_config(backend="dask"):
        client.wait_for_workers(2)
        yield client


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    images, truth = fs.simulate_particles(300, 300, snr=0.1, box=64, ctf=True, seed=0)
    return fs.write_project(tmp_path_factory.mktemp("project") / "set", images, truth)


@pytest.fixture(scope="module")
def small_batches():
    """So small that each stage of a sort of 600 images has some for every worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BATCH_BYTES", 1 << 20)
        for room in ("radial", "subspaces", "invariants"):
            patch.setattr(f"fastsort.{room}.filter.BATCH", 64)
        yield


@pytest.fixture(scope="module")
def expected(star, small_batches):
    return fs.sort_particles(star, n_jobs=1)


@pytest.fixture(scope="module")
def expected_classes(star):
    return fs.classify_particles(star, n_classes=3, working_size=32, embedding="pca", n_jobs=1)


@pytest.fixture
def many():
    return fs.open_particles(np.arange(60 * 256, dtype=np.float32).reshape(60, 16, 16))


def assert_same_bits(one, other, name="result"):
    assert type(one) is type(other), name
    if isinstance(one, dict):
        assert list(one) == list(other), name
        for key in one:
            if key != "seconds":
                assert_same_bits(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), name
        for key, a, b in zip(getattr(one, "_fields", range(len(one))), one, other, strict=True):
            if key != "seconds":
                assert_same_bits(a, b, f"{name}.{key}")
    elif isinstance(one, np.ndarray) and one.dtype.kind in "biuf":
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes(), name
    elif hasattr(one, "__dataclass_fields__"):
        assert_same_bits(vars(one), vars(other), name)
    else:
        np.testing.assert_equal(one, other, name)


def pids(client):
    return set(client.run(os.getpid).values())


def process_and_start(images, start, nap=0.0, log=None):
    time.sleep(nap)
    if log is not None:
        with open(log, "a") as file:
            file.write(f"{start}\n")
    return os.getpid(), start


def fail_there(images, start, home, error):
    if os.getpid() != home:
        raise error
    return start


def end_there(images, start, home):
    if os.getpid() != home:
        os._exit(1)
    return start


def weigh(images, start, heavy):
    return start, float(heavy.array.sum())


class Heavy:
    """Writes down when it is unpacked."""

    def __init__(self, log):
        self.log, self.array = str(log), np.ones(1 << 18)

    def __setstate__(self, state):
        vars(self).update(state)
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}\n")


# The whole sort.


def test_a_sort_has_the_bits_of_one_process_and_small_tasks(star, expected, workers, monkeypatch):
    sent, functions = [], []
    run = batches.map_on_cluster

    def weighed(client, function, arguments, tasks, n_tasks):
        functions.append(function.__module__)
        tasks = list(tasks)
        sent.extend(map(len, tasks))
        return run(client, function, arguments, tasks, n_tasks)

    monkeypatch.setattr(batches, "map_on_cluster", weighed)
    assert_same_bits(fs.sort_particles(star), expected)
    stages = {"images.prepare", "radial.filter", "subspaces.filter", "invariants.filter"}
    assert {f"fastsort.{stage}" for stage in stages} <= set(functions)
    # A batch is 64 images of 64 x 64 px: 1 MiB of pixels.
    assert sum(sent) < 600 * 400
    assert max(sent) < 16 << 10


def test_classes_have_the_same_bits(expected_classes, workers, star):
    found = fs.classify_particles(star, n_classes=3, working_size=32, embedding="pca")
    assert_same_bits(found, expected_classes)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        found = fs.classify_particles(star, n_classes=3, working_size=32, embedding="pca")
    assert_same_bits(found, expected_classes)


def test_a_sort_survives_its_workers(star, expected, workers):
    alive, killed = pids(workers), []

    def progress(done, n):
        # In the middle of reading, and then of the methods.
        if done / n > (0.2, 0.6, np.inf)[len(killed)]:
            killed.append(sorted(alive - set(killed))[0])
            os.kill(killed[-1], signal.SIGKILL)

    assert_same_bits(fs.sort_particles(star, progress=progress), expected)
    assert set(killed) == alive
    workers.wait_for_workers(2)
    assert not pids(workers) & alive


@contextlib.contextmanager
def running(command):
    """A process that finds this package and these tests, and whose output is lost."""
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(120)


def worker_command(scheduler):
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler]
    return [*command, "--nthreads", "1", "--no-nanny", "--no-dashboard"]


def blind_worker(scheduler, folder):
    """A worker that finds a folder empty."""
    separate = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c"]
    hide = f"mount -t tmpfs none {folder}"
    if not shutil.which("unshare") or subprocess.run([*separate, hide], capture_output=True).returncode:
        pytest.skip("no folder can be hidden from a process here")
    return running([*separate, f"{hide} && exec {' '.join(worker_command(scheduler))}"])


def test_a_worker_that_cannot_see_the_files_is_named(scheduler, star, small_batches, tmp_path):
    folder = star.parent
    with blind_worker(scheduler, folder), distributed.Client(scheduler) as client:
        client.wait_for_workers(3)
        blind = {worker for worker, seen in client.run(os.path.exists, star).items() if not seen}.pop()
        host = socket.gethostname()
        where = f"Dask worker {blind} on {host}"
        with pytest.raises(InputError, match=f"{where} cannot use {star}: images and work folder must be"):
            with use_cluster(scheduler, [star]):
                pass
        with pytest.raises(InputError, match=f"{where} cannot use work folder {folder}"):
            with use_cluster(scheduler, work=folder / "work"):
                pass
        # One that joins later is not asked before it has something to do.
        with (
            use_cluster(scheduler),
            pytest.raises(InputError, match=f"^{where}: .*mrcs does not exist") as caught,
        ):
            list(map_batches(process_and_start, fs.open_particles(star), 0.05))
        assert "\n" not in str(caught.value)
        # Files that it can see, and a work folder that it cannot.
        stack = tmp_path / "all.mrcs"
        particles = fs.open_particles(star)
        fs.particles.mrc.write_stack(stack, [particles.read(0, 600)], 2.0, 600, 64)
        with (
            use_cluster(scheduler, [stack]),
            pytest.raises(InputError, match=f"^{where}: .*No such file") as caught,
        ):
            fs.sort_particles(stack, diameter=80.0, work=folder / "work")
        assert "work folder must be on a disk that all workers see" in str(caught.value)
    shutil.rmtree(folder / "work")
    with distributed.Client(scheduler) as client:
        while len(client.ncores()) > 2:
            time.sleep(0.05)


# What is sent, and when.


def test_batches_go_to_all_workers_in_order(many, workers):
    found = list(map_batches(process_and_start, many, 0.02, batch_size=1))
    assert [start for _, start in found] == list(range(60))
    assert {process for process, _ in found} == pids(workers) | {os.getpid()}


def test_one_job_and_pixels_in_memory_stay_at_home(many, workers):
    assert {home for home, _ in map_batches(process_and_start, many, batch_size=5, n_jobs=1)} == {os.getpid()}
    large = fs.open_particles(np.zeros((400, 64, 64), dtype=np.float32))
    assert {home for home, _ in map_batches(process_and_start, large, batch_size=100)} == {os.getpid()}


def test_arguments_go_to_each_worker_once_and_survive_it(many, workers, tmp_path):
    log = tmp_path / "unpacked"
    heavy = Heavy(log)
    assert list(map_batches(weigh, many, heavy, batch_size=1)) == [(i, 2.0**18) for i in range(60)]
    unpacked = log.read_text().split()
    # Dask may take a copy from a worker that has nothing to do for a moment.
    assert len(unpacked) <= 6
    assert set(map(int, unpacked)) <= pids(workers)
    found = []
    for result in map_batches(process_and_start, many, 0.05, batch_size=1):
        found.append(result)
        if len(found) == 10:
            # Both, so that nobody is left who has the arguments.
            for process in pids(workers):
                os.kill(process, signal.SIGKILL)
    assert [start for _, start in found] == list(range(60))
    workers.wait_for_workers(2)


def test_workers_do_not_run_far_ahead(many, workers, tmp_path, monkeypatch):
    log, sent, pack = tmp_path / "done", [], batches.pack_task
    monkeypatch.setattr(batches, "pack_task", lambda *task: sent.append(task[1]) or pack(*task))
    results = map_batches(process_and_start, many, 0.0, str(log), batch_size=1)
    # The first one is done at home; with the second one the workers get as many as they may have in hand.
    next(results), next(results)
    room = cluster.AHEAD * sum(workers.ncores().values())
    # Batch 1 is packed once more, to see how large a task is.
    assert sent == [1, *range(1, 1 + room)]
    while len(log.read_text().split()) < 1 + room:
        time.sleep(0.05)
    # All that is in hand is done by now, and nobody has taken it: so nothing more is sent.
    assert sorted(map(int, log.read_text().split())) == list(range(1 + room))
    assert len(sent) == 1 + room
    results.close()


def test_blas_has_one_thread_in_workers(many, workers):
    infos = list(map_batches(blas_threads, many, batch_size=10))
    assert all(threads == 1 for info in infos for threads in info)


def blas_threads(images, start):
    from threadpoolctl import threadpool_info

    return [module["num_threads"] for module in threadpool_info() if module["user_api"] == "blas"]


# What goes wrong.


@pytest.mark.parametrize("error", [InputError("too many notes"), OSError(5, "Input/output error", "/x")])
def test_errors_name_the_worker(many, workers, error):
    with pytest.raises(InputError, match=r"^Dask worker tcp://127.0.0.1:\d+ on \S+: .*(notes|error: '/x')"):
        list(map_batches(fail_there, many, os.getpid(), error, batch_size=10))


def test_other_errors_come_through(many, workers):
    with pytest.raises(ZeroDivisionError, match="by hand"):
        list(map_batches(fail_there, many, os.getpid(), ZeroDivisionError("by hand"), batch_size=10))


def test_another_version_is_refused_before_and_in_the_middle(scheduler, many, workers, monkeypatch):
    monkeypatch.setattr(cluster, "__version__", "0.0.7")
    message = r"Dask worker tcp://127.0.0.1:\d+ on \S+ has fastsort .*, and here is 0.0.7"
    with pytest.raises(InputError, match=message):
        with use_cluster(scheduler):
            pass
    with pytest.raises(InputError, match=r"has fastsort 0.0.7, and here is"):
        list(map_batches(process_and_start, many, batch_size=10))


def test_a_batch_that_ends_workers_is_given_up(many):
    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            scheduler_kwargs={"allowed_failures": 0},
        ) as local,
        use_cluster(local.scheduler_address),
        pytest.raises(InputError, match="has ended several Dask workers, the last of them tcp://"),
    ):
        list(map_batches(end_there, many, os.getpid(), batch_size=10))


def test_no_scheduler(monkeypatch):
    monkeypatch.setattr(cluster, "SCHEDULER_WAIT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        for address in ("tcp://127.0.0.1:1", "nonsense", "", silent):
            with pytest.raises(
                InputError, match=f"no Dask scheduler answers at {address}.*start one"
            ) as caught:
                with use_cluster(address):
                    pass
            assert "\n" not in str(caught.value)


def test_no_workers(star, tmp_path, capsys):
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as local:
        with pytest.raises(InputError, match=r"no worker for 0\.3 s: start some with  dask worker tcp:"):
            with use_cluster(local.scheduler_address, wait=0.3):
                pass
        # The command says so at once, and gives up when it was told to.
        command = ["sort", str(star), "-o", str(tmp_path / "out"), "--cluster", local.scheduler_address]
        assert cli.main([*command, "--cluster-wait", "0.2"]) == 1
        waiting, given_up = capsys.readouterr().err.splitlines()
        assert waiting.startswith("fastsort: the Dask scheduler at ")
        assert "has no worker yet; waiting up to 0.2 s" in waiting and "no worker for 0.2 s" in given_up


def hang(images, start, last):
    """Never end after the last batch that is to end."""
    while start > last:
        time.sleep(0.05)
    return start


def test_all_workers_gone(many, monkeypatch):
    monkeypatch.setattr(cluster, "LOOK_INTERVAL", 0.1)
    monkeypatch.setattr(cluster, "NEW_WORKER_WAIT", 0.5)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0") as local,
        running(worker_command(local.scheduler_address)) as worker,
        use_cluster(local.scheduler_address) as n_threads,
    ):
        assert n_threads == 1
        results = map_batches(hang, many, 1, batch_size=1)
        next(results), next(results)
        worker.kill()
        with pytest.raises(InputError, match="all workers of the Dask cluster have gone"):
            list(results)


def test_without_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match="pip install"):
        with use_cluster("tcp://127.0.0.1:8786"):
            pass


SCHEDULER = """
import sys
sys.modules["fastsort"] = None
from distributed.cli.dask_scheduler import main
main(["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", sys.argv[1]])
"""


def test_a_scheduler_without_fastsort_that_is_lost(many, tmp_path):
    file = tmp_path / "scheduler.json"
    with running([sys.executable, "-c", SCHEDULER, str(file)]) as scheduler:
        # It is not written at once.
        while not (file.exists() and file.read_text().rstrip().endswith("}")):
            assert scheduler.poll() is None
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        with running(worker_command(address)) as worker, use_cluster(address):
            found = list(map_batches(process_and_statistics, many, batch_size=5))
            assert {process for process, _ in found} == {os.getpid(), worker.pid}
            assert sum(len(statistics.codes) for _, statistics in found) == 60
            results = map_batches(process_and_start, many, 0.05, batch_size=1)
            next(results), next(results)
            scheduler.kill()
            with pytest.raises(InputError, match="connection to the Dask scheduler was lost"):
                list(results)


def process_and_statistics(images, start):
    return os.getpid(), inspect_pixels(images)


QUIET = """
import numpy as np, fastsort as fs
from fastsort.images.batches import map_batches
from fastsort.images.cluster import use_cluster
from test_cluster import process_and_start
particles = fs.open_particles(np.zeros((60, 16, 16), np.float32))
with use_cluster({address!r}, [{path!r}], work={path!r} + "/work"):
    assert len(list(map_batches(process_and_start, particles, batch_size=5))) == 12
"""


def test_dask_prints_nothing(scheduler, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", QUIET.format(address=scheduler, path=str(tmp_path))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_the_command_on_a_cluster(scheduler, star, expected, tmp_path, capsys, monkeypatch):
    from fastsort.cli import main

    monkeypatch.setattr(cluster, "SCHEDULER_WAIT", 1.0)
    arguments = ["sort", str(star), "-o", str(tmp_path / "out"), "--cluster", scheduler]
    assert main([*arguments, "--quiet"]) == 0
    with np.load(tmp_path / "out" / "results.npz") as saved:
        assert any(np.array_equal(saved[name], expected.score) for name in saved)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert main(["sort", str(star), "-o", str(tmp_path / "no"), "--cluster", "tcp://127.0.0.1:1"]) == 1
    error = capsys.readouterr().err
    assert "tcp://127.0.0.1:1" in error and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
