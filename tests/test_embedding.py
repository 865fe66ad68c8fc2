"""The library inside other people's programs: typed, silent, without traces, in any thread or process."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import hashlib
import importlib.util
import inspect
import io
import json
import locale
import logging
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import typing
import urllib.error
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mrcfile
import numba
import numpy as np
import pytest
from threadpoolctl import threadpool_info

import fastsort as fs
from fastsort.particles.table import CtfParameters

HERE = Path(__file__).parent
# Each pixel of the small images becomes so many in a row: large enough for several batches, and quickly made.
ENLARGED = 7
METHODS_OF_STARTING = [
    method for method in ("fork", "spawn", "forkserver") if method in multiprocessing.get_all_start_methods()
]


# What the scripts in fresh interpreters share with the tests.


def digest(result):
    """Return one word for all bits of a verdict."""
    parts = [result.keep, result.score, result.reason, result.junk_probability, result.offset]
    parts += [*result.votes.values(), *result.measurements.values()]
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def sort_file(path, n_jobs=None, order=1):
    """Sort the images of a .npy file, in their order or in the opposite one (-1)."""
    return digest(fs.sort_particles(np.load(path)[::order], n_jobs=n_jobs))


def blas_threads():
    """Return the number of threads of each BLAS library, by its file."""
    return {
        library["filepath"]: library["num_threads"]
        for library in threadpool_info()
        if library["user_api"] == "blas"
    }


def state():
    """Return all that belongs to the process, and that a library has to leave as it was."""
    loggers = {"": logging.getLogger()}
    loggers |= {
        name: logger
        for name, logger in logging.Logger.manager.loggerDict.items()
        if name.split(".")[0] == "fastsort" and isinstance(logger, logging.Logger)
    }
    return {
        "handlers": {name: list(logger.handlers) for name, logger in loggers.items() if logger.handlers},
        "root level": loggers[""].level,
        "logging disabled": logging.root.manager.disable,
        "warning filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "environment": dict(os.environ),
        "numpy errors": (np.geterr(), np.geterrcall()),
        "numpy random": pickle.dumps(np.random.get_state()),  # noqa: NPY002
        "numpy printing": repr(np.get_printoptions()),
        "random": random.getstate(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "wakeup": signal.getitimer(signal.ITIMER_REAL),
        "folder": os.getcwd(),
        "kernel threads": numba.get_num_threads(),
        "path": list(sys.path),
        "hooks": (sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook, *sys.meta_path),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "tracing": (sys.gettrace(), sys.getprofile(), sys.getrecursionlimit(), sys.getswitchinterval()),
        "locale": locale.setlocale(locale.LC_ALL),
        "threads": set(threading.enumerate()),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "garbage": (gc.isenabled(), gc.get_threshold()),
    }


def fresh(code, *flags, temporary=None, folder=None, **environment):
    """Run code in a fresh interpreter; return what it wrote to stdout and to stderr."""
    paths = [str(HERE), str(Path(fs.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    done = subprocess.run(
        [sys.executable, *flags, *(["-c", code] if code else [])],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def wait_until(met, seconds=60):
    """Wait for what other threads have still to do."""
    end = time.monotonic() + seconds
    while not met() and time.monotonic() < end:
        time.sleep(0.02)
    return met()


@pytest.fixture(scope="module")
def stack():
    return fs.simulate_particles(70, 70, box=32, snr=0.3, ctf=True, junk="all", n_micrographs=4, seed=1)


@pytest.fixture(scope="module")
def project(stack, tmp_path_factory):
    return fs.write_project(tmp_path_factory.mktemp("embedding") / "project", *stack)


@pytest.fixture(scope="module")
def large(stack):
    return stack[0].repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)


@pytest.fixture(scope="module")
def large_file(large, tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "large.npy"
    np.save(path, large)
    return str(path)


@pytest.fixture(scope="module")
def alone(large_file):
    """What a program that does nothing else gets, of both orders."""
    return {order: sort_file(large_file, 1, order) for order in (1, -1)}


@pytest.fixture(scope="module")
def result(project):
    return fs.sort_particles(project)


# Types


def public_things():
    """What stands at the top, and what stands in the rooms, by the names under which users find it."""
    for name in fs.__all__:
        thing = getattr(fs, name)
        if inspect.ismodule(thing):
            yield from ((f"{name}.{inside}", getattr(thing, inside)) for inside in thing.__all__)
        else:
            yield name, thing


def public_functions():
    for name, thing in public_things():
        if not inspect.isclass(thing):
            yield name, thing
            continue
        for method, value in vars(thing).items():
            value = value.fget if isinstance(value, property) else value
            if not method.startswith("_") and inspect.isfunction(value):
                # Of several signatures, those that a caller sees.
                overloads = getattr(typing, "get_overloads", lambda function: [])(value)
                yield from ((f"{name}.{method}", function) for function in overloads or [value])


@pytest.mark.parametrize(("name", "function"), list(public_functions()))
def test_public_signatures_have_types(name, function):
    if name == "Particles.read" and sys.version_info < (3, 11):
        pytest.skip("before Python 3.11 the signatures that a caller sees are not kept")
    hints = typing.get_type_hints(
        function, localns={"Particles": fs.Particles, "CtfParameters": CtfParameters}
    )
    assert "return" in hints
    assert hints["return"] is not typing.Any
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self" or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        assert parameter.name in hints, f"{parameter.name} has no type"
        assert hints[parameter.name] is not typing.Any, f"{parameter.name} may be anything"


CONSUMER = '''
"""Uses every public name, as a program that is checked strictly would."""

from pathlib import Path
from typing import assert_type

import numpy as np
import numpy.typing as npt

import fastsort as fs

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.intp]
Words = npt.NDArray[np.str_]


def show(done: int, total: int) -> None:
    print(f"{done} of {total}")


def read(path: str) -> Floats:
    particles: fs.Particles = fs.open_particles(path, pixel_size=1.5, data_dir=Path("data"))
    assert_type(len(particles), int)
    assert_type(particles.box, int)
    assert_type(particles.pixel_size, float)
    assert_type(particles.path, str | None)
    assert_type(particles.files, list[str])
    assert_type(particles.part(0, 10), fs.Particles)
    assert_type(particles.read([1, 2, 3]), Floats)
    if particles.ctf is not None:
        assert_type(particles.ctf.defocus_u, Doubles)
        assert_type(fs.images.contrast_transfer(particles.ctf, 32, 1.0), Floats)
        assert_type(fs.phase_flip(particles.read(0, 10), particles.ctf, 1.0), Floats)
    assert_type(fs.images.picked_noise(particles.read(0, 10), 5, 16.0), Floats)
    assert_type(fs.images.blob_maxima(particles.read(0, 1)[0], 8.0, 16.0).height, Doubles)
    return particles.read(0, 100)


def sort(path: Path, images: Floats) -> list[str]:
    try:
        result = fs.sort_particles(path, diameter=150.0, n_jobs=2, progress=show)
    except fs.InputError as error:
        return [str(error)]
    assert_type(result.keep, Bools)
    assert_type(result.score, Doubles)
    assert_type(result.reason, Words)
    assert_type(result.junk_probability, Doubles)
    assert_type(result.votes["radial"], Doubles)
    assert_type(result.diameter, float)
    if result.errors is not None:
        assert_type(result.errors.true_positive_rate.value, float)
    stricter = fs.cut_again(result, keep_at_least=0.9)
    by_hand = fs.decide.choose_by_hand(fs.decide.keep_best(result, 40), keep=[1], reject=[2, 3])
    assert_type(by_hand.keep, Bools)
    assert_type(fs.decide.learn_from_choices(result, keep=[1, 2], reject=[3, 4]).after, float)
    later = fs.sort_particles(images, earlier=result)
    updated = fs.update_particles(path, result, ["000001@a.mrcs"])
    for verdict in (stricter, later, updated):
        assert_type(verdict.keep, Bools)
    with fs.use_cluster("tcp://node17:8786", [path], work="scratch") as n_threads:
        assert_type(n_threads, int)
    picked = fs.pick_particles("mics/*.mrc", diameter=180.0, progress=show)
    assert_type(picked.x, Doubles)
    assert_type(picked.keep, Bools)
    assert_type(picked.diameter, float)
    mapped = fs.classify_particles(path, n_classes=10, progress=show)
    assert_type(mapped.keep, Bools)
    assert_type(mapped.pixel_size, float)
    assert_type(result, fs.SortResult)
    assert_type(fs.load_result("sorted"), fs.decide.SortResult)
    votes = fs.decide.combine_votes(result.votes, result.learned.decoys)
    assert_type(votes.score, Doubles)
    errors = fs.decide.estimate_errors(result.keep, votes.junk_probability, {"cut": ~result.keep}, (0.5, 0.5))
    assert_type(errors.known, bool)
    return [str(reason) for reason in result.reason]


def filters(images: Floats, particles: fs.Particles) -> None:
    small = fs.fourier_crop(images, 24)
    assert_type(small, Floats)
    assert_type(fs.radial_filter(particles, radius=9, n_jobs=2).centre, Floats)
    assert_type(fs.radial_filter(small, progress=show).keep, Bools)
    assert_type(fs.subspace_filter(small).score, Doubles)
    assert_type(fs.invariant_filter(small).reason, Words)
    decoys = fs.decide.make_decoys(small, small, np.random.default_rng(0), 10)
    assert_type(decoys, dict[str, Floats])


def subspaces(images: Floats) -> None:
    basis = fs.subspaces.pswf_basis(32)
    coefficients = fs.subspaces.pswf_coefficients(images)
    assert_type(coefficients, Floats)
    assert_type(fs.subspaces.pswf_images(coefficients, 32), Floats)
    pca = fs.subspaces.steerable_pca(coefficients, basis)
    assert_type(pca.rank, int)
    assert_type(fs.subspaces.relative_energy(coefficients, pca), Doubles)
    model = fs.subspaces.fit_subspaces(coefficients, 2, 10)
    assert_type(fs.subspaces.subspace_scores(coefficients, model).score, Doubles)
    assert_type(fs.subspaces.sorting_factor(coefficients, model), Doubles)
    assert_type(fs.subspaces.denoise(coefficients, model), Floats)


def denoise(images: Floats) -> None:
    assert_type(fs.denoise_images(images, method="covariance", n_jobs=2), Floats)
    spectra = fs.denoising.learn_spectra(images)
    assert_type(spectra.noise, Doubles)
    covariance = fs.denoising.learn_covariance(images, spectra=spectra)
    assert_type(fs.denoising.covariance_filter(images, covariance), Floats)
    views = fs.denoising.learn_neighbours(images, covariance=covariance)
    assert_type(fs.denoising.neighbour_filter(images, views), Floats)
    assert_type(fs.denoising.predict_error(fs.denoising.neighbour_filter, images).error, float)


def classes(images: Floats) -> None:
    assert_type(fs.invariants.zernike_basis(32).box, int)
    assert_type(fs.invariants.zernike_moments(images).order, Numbers)
    features = fs.invariants.invariant_features(images, max_order=10)
    assert_type(features, Floats)
    places = fs.invariants.map_features(features, 3)
    assert_type(places.label, Numbers)
    assert_type(fs.invariants.map_particles(images).coordinates, Floats)
    averages = fs.invariants.class_averages(images, places.label)
    assert_type(averages.averages, Floats)
    assert_type(fs.invariants.fourier_ring_correlation(averages.averages[0], averages.averages[1]), Doubles)
    assert_type(fs.invariants.rank_classes(averages, places.label, places.coordinates).score, Doubles)
    assert_type(fs.invariants.group_classes(features, places.label, 2), Numbers)
    classes = fs.invariants.classify_images(images, 3)
    assert_type(classes.label, Numbers)
    assert_type(classes.probability, Floats)
    assert_type(classes.ranking.offset, Doubles)
    alignment = fs.invariants.align_images(images, averages.averages[0])
    assert_type(alignment.angle, Floats)
    assert_type(fs.invariants.apply_alignment(images, alignment), Floats)
    assert_type(fs.invariants.match_to_references(images, averages.averages).reference, Numbers)


def simulate() -> Path:
    images, truth = fs.simulate_particles(10, 10, junk=["noise", "ice"])
    assert_type(images, Floats)
    assert_type(truth.label, Bools)
    assert_type(fs.simulate.project_volume(np.zeros((32, 32, 32)), np.eye(3)[None]), Floats)
    simulation = fs.simulate.plan_particles(3, 2, box=32)
    for block in fs.simulate.particle_blocks(simulation):
        assert_type(block, Floats)
    micrographs = fs.simulate.simulate_micrographs(2, (256, 320), diameter=80)
    assert_type(next(micrographs).image, Floats)
    assert_type(fs.simulate.write_micrographs("simulated", micrographs), Path)
    return fs.write_project("project", images, truth)
'''


@pytest.mark.slow
def test_a_strictly_checked_program_passes(tmp_path):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed: pip install 'fastsort[test]'")
    # What the rooms share with the top is used there.
    used = {name.rpartition(".")[2] for name, _ in public_things() if f"fs.{name}" in CONSUMER}
    assert [name for name, _ in public_things() if name.rpartition(".")[2] not in used] == []
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(CONSUMER)
    wrong.write_text('import fastsort as fs\n\nfs.sort_particles(12).keep.nonsense\nfs.cut_again("a")\n')
    check = ["-m", "mypy", "--strict", "--python-version", "3.11", "--cache-dir", str(tmp_path / "cache")]
    assert fresh("", *check, str(right), folder=tmp_path)[0].startswith("Success")
    # If the types were not found, anything would pass. The working folder is another one, for there mypy asks
    # for no py.typed.
    with pytest.raises(AssertionError) as failure:
        fresh("", *check, str(wrong), folder=tmp_path)
    said = str(failure.value)
    assert 'wrong.py:3: error: Argument 1 to "sort_particles"' in said
    assert 'wrong.py:3: error: "ndarray' in said
    assert 'wrong.py:4: error: Argument 1 to "cut_again"' in said


# Silence and no traces

NOTHING_CHANGES = """
import importlib, json, sys
# What these do to the process at import is theirs.
names = ["numba", "joblib", "mrcfile", "starfile", "threadpoolctl", "sklearn.mixture", "sklearn.cluster"]
names += [f"scipy.{name}" for name in "fft linalg ndimage optimize special spatial stats".split()]
for name in names:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
import numpy as np, random
np.random.seed(12); np.random.random(5); random.seed(13)
np.seterr(over="ignore", divide="ignore")
from test_embedding import blas_threads, state
import fastsort as fs
path, folder = sys.argv[1:] if len(sys.argv) > 2 else json.loads(PATHS)
blas, before = blas_threads(), state()
def unchanged(what):
    after = state()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, (what, {name: (before[name], after[name]) for name in changed})
    now = blas_threads()
    assert {name: now[name] for name in blas} == blas, (what, now)
images, truth = fs.simulate_particles(70, 70, box=32, snr=0.3, junk="all", seed=1)
unchanged("simulate")
fs.write_project(folder + "/project", images, truth)
unchanged("write")
particles = fs.open_particles(path)
unchanged("open")
for done in (fs.radial_filter, fs.subspace_filter, fs.invariant_filter):
    done(images)
    unchanged(done)
fs.sort_particles(particles, n_jobs=2)
unchanged("sort")
try:
    import sklearn
except ImportError:
    pass
else:
    fs.classify_particles(particles, n_classes=3, embedding="pca", n_jobs=2)
    unchanged("classify")
try:
    fs.sort_particles(particles, diameter=-1)
except fs.InputError:
    unchanged("refuse")
"""


@pytest.mark.slow
def test_no_output_and_no_traces(project, tmp_path):
    code = NOTHING_CHANGES.replace("PATHS", repr(json.dumps([str(project), str(tmp_path)])))
    assert fresh(code) == ("", "")


@pytest.mark.slow
def test_no_output_in_this_process(project, stack, capfd):
    before = state()
    fs.sort_particles(fs.open_particles(project))
    fs.radial_filter(stack[0])
    with pytest.raises(fs.InputError):
        fs.sort_particles("nowhere.star")
    after = state()
    assert {name for name in before if before[name] != after[name]} == set()
    assert capfd.readouterr() == ("", "")


WHOLE_WAY = """
import gc, json, os, sys
import numpy as np, fastsort as fs
import matplotlib
from fastsort.report.drawing import draw_results
from fastsort.report.results import write_results
path, folder = json.loads(PATHS)
settings = dict(dict.items(matplotlib.rcParams))
particles = fs.open_particles(path)
result = fs.sort_particles(particles, n_jobs=2)
write_results(folder, particles, result)
draw_results(folder, particles, result)
fs.sort_particles(fs.open_particles(folder + "/kept.star", data_dir=os.path.dirname(path)), earlier=result)
assert dict(dict.items(matplotlib.rcParams)) == settings
assert "matplotlib.pyplot" not in sys.modules
del particles, result
gc.collect()
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_whole_way_when_warnings_are_errors(project, tmp_path):
    pytest.importorskip("matplotlib")
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    out.mkdir()
    temporary.mkdir()
    code = WHOLE_WAY.replace("PATHS", repr(json.dumps([str(project), str(out)])))
    flags = ("-X", "dev", "-W", "error")
    assert fresh(code, *flags, temporary=temporary) == ("", "")
    assert {"kept.star", "scores.csv", "report.html", "report.png"} <= {item.name for item in out.iterdir()}
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_the_command_when_warnings_are_errors(project, tmp_path):
    command = ("-X", "dev", "-W", "error", "-m", "fastsort", "sort", str(project), "-o", str(tmp_path / "o"))
    output, errors = fresh("", *command)
    assert "kept" in output
    assert "Warning" not in errors
    assert "Exception ignored" not in errors


# Inside other pools

OUTER_POOL = """
import json, joblib, os
from test_embedding import sort_file
path, backend = json.loads(ARGUMENTS)
found = {}
for n_jobs in (None, 2):
    tasks = (joblib.delayed(sort_file)(path, n_jobs, order) for order in (1, -1))
    found[str(n_jobs)] = joblib.Parallel(n_jobs=2, backend=backend, timeout=500)(tasks)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_inside_an_outer_joblib_pool(backend, large_file, alone):
    code = OUTER_POOL.replace("ARGUMENTS", repr(json.dumps([large_file, backend])))
    # From the environment, which the workers have too.
    output, errors = fresh(code, PYTHONWARNINGS="error")
    assert json.loads(output) == {"None": [alone[1], alone[-1]], "2": [alone[1], alone[-1]]}
    assert errors == ""


STARTED = """
import json, multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from test_embedding import blas_threads, sort_file
path, methods = json.loads(ARGUMENTS)
found = [sort_file(path, 2)]
for method in methods:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        found.append(pool.submit(sort_file, path, 2, -1).result(timeout=500))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_after_fork_and_in_fresh_processes(large_file, alone):
    code = STARTED.replace("ARGUMENTS", repr(json.dumps([large_file, METHODS_OF_STARTING])))
    output, _ = fresh(code, "-W", "ignore::DeprecationWarning")
    assert json.loads(output) == [alone[1]] + [alone[-1]] * len(METHODS_OF_STARTING)


FORKED_WITHIN = """
import json, os, signal, sys
import numpy as np, fastsort as fs
from test_embedding import blas_threads, digest, sort_file
path = json.loads(ARGUMENTS)
fs.sort_particles(np.load(path))
before, children = blas_threads(), []
def progress(done, total):
    if not children and done:
        child = os.fork()
        if child == 0:
            # A child that hangs shall not hang the test.
            signal.alarm(500)
            try:
                found = [sort_file(path, 2), blas_threads() == before]
                os.write(1, (json.dumps(found) + "\\n").encode())
            finally:
                os._exit(0)
        children.append(child)
found = digest(fs.sort_particles(np.load(path), n_jobs=2, progress=progress))
os.waitpid(children[0], 0)
print(json.dumps([found, blas_threads() == before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_in_the_middle_of_a_run(large_file, alone):
    code = FORKED_WITHIN.replace("ARGUMENTS", repr(json.dumps(large_file)))
    output, _ = fresh(code, "-W", "ignore::DeprecationWarning")
    assert [json.loads(line) for line in output.splitlines()] == [[alone[1], True]] * 2


# In threads


@pytest.mark.slow
def test_two_threads_at_once(large_file, alone):
    before = blas_threads()
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(sort_file, large_file, n_jobs, order) for n_jobs in (2, 1) for order in (1, -1)]
        assert [task.result() for task in tasks] == [alone[1], alone[-1]] * 2
    assert blas_threads() == before


@pytest.mark.slow
def test_in_an_event_loop(large_file, alone):
    async def serve():
        beats = 0
        sorting = asyncio.ensure_future(asyncio.to_thread(sort_file, large_file, 2))
        while not sorting.done():
            await asyncio.sleep(0.01)
            beats += 1
        return await sorting, beats

    found, beats = asyncio.run(serve())
    assert found == alone[1]
    # The loop goes on meanwhile.
    assert beats > 10


@pytest.mark.slow
def test_blas_has_its_threads_back_after_overlapping_runs(stack):
    """The second run begins within the first one and ends after it."""
    before = blas_threads()
    if set(before.values()) == {1}:
        pytest.skip("BLAS has one thread anyway")
    images = stack[0][:100]
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    after_first = []

    def first():
        def progress(done, total):
            first_in.set()
            assert second_in.wait(500)

        fs.sort_particles(images, progress=progress)
        after_first.append(blas_threads())
        first_out.set()

    def second():
        def progress(done, total):
            second_in.set()
            assert first_out.wait(500)

        assert first_in.wait(500)
        fs.sort_particles(images, progress=progress)

    with ThreadPoolExecutor(2) as pool:
        for task in [pool.submit(first), pool.submit(second)]:
            task.result()
    # Not before the other one has ended, whose bits it would change.
    assert set(after_first[0].values()) == {1}
    assert blas_threads() == before


def test_warning_filters_are_back_after_overlapping_runs():
    from fastsort._process import without_warnings

    before, entered = list(warnings.filters), threading.Event()

    def silence(seconds):
        with without_warnings():
            warnings.warn("nobody sees this", stacklevel=1)
            entered.set()
            time.sleep(seconds)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(silence, 0.2)
        entered.wait(60)
        pool.submit(silence, 0.4).result()
        first.result()
    assert warnings.filters == before


class Cancelled(Exception):
    """Raised by whoever does not want to wait."""


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.15, 0.4, 0.7, 0.9])
@pytest.mark.parametrize("error", [Cancelled, KeyboardInterrupt])
def test_a_progress_that_raises_cancels_cleanly(share, error, large, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads, blas, calls = set(threading.enumerate()), blas_threads(), []

    def progress(done, total):
        calls.append(done / total)
        if done / total >= share:
            raise error

    with warnings.catch_warnings(record=True) as warned, contextlib.suppress(error):
        warnings.simplefilter("always")
        fs.sort_particles(large, n_jobs=2, progress=progress)
        pytest.fail("it went on to the end")
    gc.collect()
    assert [str(warning.message) for warning in warned] == []
    assert max(calls) == calls[-1]
    assert list(tmp_path.iterdir()) == []
    assert wait_until(lambda: set(threading.enumerate()) <= threads)
    assert blas_threads() == blas


INTERRUPTED = """
import gc, json, os, signal, threading, tempfile
import numpy as np, fastsort as fs
from test_embedding import blas_threads, digest, wait_until
# Whoever started the tests in the background may have had them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
path = json.loads(ARGUMENTS)
images = np.load(path)
fs.sort_particles(images)
before = blas_threads()
for share in (0.1, 0.3, 0.8):
    def progress(done, total):
        if done / total >= share:
            # Here and now: one to the whole process may reach another thread first.
            signal.raise_signal(signal.SIGINT)
    try:
        fs.sort_particles(images, n_jobs=2, progress=progress)
        raise SystemExit("it went on to the end")
    except KeyboardInterrupt:
        pass
    gc.collect()
    assert os.listdir(tempfile.gettempdir()) == [], os.listdir(tempfile.gettempdir())
    assert blas_threads() == before
    assert wait_until(lambda: threading.active_count() == 1), threading.enumerate()
print(digest(fs.sort_particles(images, n_jobs=2)))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_ctrl_c(large_file, alone, tmp_path):
    code = INTERRUPTED.replace("ARGUMENTS", repr(json.dumps(large_file)))
    assert fresh(code, "-W", "error", temporary=tmp_path) == (alone[1] + "\n", "")


class Sorter(BaseHTTPRequestHandler):
    """A web service: a stack comes in, what is to be kept goes out."""

    def do_POST(self):
        """Sort a stack."""
        with tempfile.NamedTemporaryFile(suffix=".mrcs") as file:
            file.write(self.rfile.read(int(self.headers["Content-Length"])))
            file.flush()
            try:
                result = fs.sort_particles(file.name, n_jobs=1)
                status, answer = 200, {"keep": np.flatnonzero(result.keep).tolist()}
            except fs.InputError as error:
                status, answer = 400, {"error": str(error)}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Write nothing."""


@pytest.mark.slow
def test_in_a_web_service(stack, tmp_path):
    path = tmp_path / "stack.mrcs"
    with mrcfile.new(path) as file:
        file.set_data(stack[0])
        file.set_image_stack()
    kept = np.flatnonzero(fs.sort_particles(path).keep).tolist()
    assert len(kept) > 50
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sorter)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()

    def post(data):
        request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}", data)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=500) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    try:
        with ThreadPoolExecutor(3) as pool:
            stack_bytes = path.read_bytes()
            answers = list(pool.map(post, [stack_bytes, stack_bytes[:5000], stack_bytes]))
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    assert answers[0] == answers[2] == (200, {"keep": kept})
    status, refused = answers[1]
    assert status == 400
    assert refused["error"].endswith(".")


# Results travel, and show themselves


def same(one, other):
    """Whether two nested results have the same types and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


@pytest.mark.slow
@pytest.mark.parametrize("travel", [lambda it: pickle.loads(pickle.dumps(it)), copy.deepcopy, copy.copy])
def test_results_and_particles_travel(travel, result, project, stack):
    images, truth = stack
    for found in (result, truth, fs.radial_filter(images), fs.subspace_filter(images)):
        assert same(travel(found), found)
    again = fs.sort_particles(project, earlier=result).score
    assert same(fs.sort_particles(project, earlier=travel(result)).score, again)
    for particles in (fs.open_particles(project), fs.open_particles(images, pixel_size=2.0)):
        other = travel(particles)
        assert isinstance(other, fs.Particles)
        assert (len(other), other.box, other.pixel_size) == (140, 32, particles.pixel_size)
        assert list(other.names) == list(particles.names)
        assert same(other.ctf, particles.ctf)
        assert np.array_equal(other.read([7, 3, 120]), particles.read([7, 3, 120]))


def test_results_and_particles_are_short_to_look_at(result, project, stack):
    images, truth = stack
    found = [result, truth, fs.radial_filter(images), fs.subspace_filter(images), fs.invariant_filter(images)]
    found += [result.judge, result.views, fs.open_particles(project).ctf, fs.pswf_basis(32)]
    for thing in found:
        text = repr(thing)
        lines = text.splitlines()
        assert len(lines) <= 30
        assert max(map(len, lines)) <= 100
        for name in type(thing)._fields:
            assert f"  {name}=" in text
    assert "keep=bool (140,)" in repr(result)
    assert "reason_code=int8 (140,)" in repr(result)
    assert len(repr(fs.open_particles(project))) < 400
    assert len(repr(fs.open_particles(images))) < 100


NOTEBOOK = """
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import fastsort as fs

images, truth = fs.simulate_particles(120, 120, box=32, snr=0.3, junk="all")
with tqdm(total=len(images), file=FILE) as bar:
    result = fs.sort_particles(images, progress=lambda done, total: bar.update(done - bar.n))
assert bar.n == len(images)
fig, (left, right) = plt.subplots(1, 2)
left.hist(result.junk_probability, bins=50)
worst = images[np.argsort(-result.score)[:24]]
right.imshow(np.block([list(row) for row in worst.reshape(4, 6, *worst.shape[1:])]), cmap="gray")
fig.savefig(OUT, format="png")
"""


@pytest.mark.slow
def test_in_a_notebook():
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    matplotlib.use("agg")
    bar, picture = io.StringIO(), io.BytesIO()
    notebook = types.ModuleType("notebook")
    exec(NOTEBOOK, notebook.__dict__ | {"FILE": bar, "OUT": picture})
    assert picture.getvalue().startswith(b"\x89PNG")
    assert "100%" in bar.getvalue()
