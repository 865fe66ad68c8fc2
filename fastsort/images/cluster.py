"""Several machines: Dask workers open the files themselves and send back their results."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fastsort._checks import InputError, check_positive
from fastsort._types import FilePath
from fastsort._version import __version__

# How many tasks each thread of a worker has in hand or waiting, and how many seconds one should take.
AHEAD, TASK_SECONDS = 3, 0.25
# A task of more bytes than the first number and the second one for each image carries pixels.
LARGEST_TASK = 4 << 10, 1 << 10
# Seconds to wait for a scheduler, for the first worker, and for a new worker when all have gone.
SCHEDULER_WAIT, FIRST_WORKER_WAIT, NEW_WORKER_WAIT = 10.0, 60.0, 300.0
# Seconds between two looks for a new worker.
LOOK_INTERVAL = 5.0
SAME_DISK = "images and work folder must be on a disk that all workers see under the same path"
RESUMES = "a run with a work folder continues where it stopped"
# How much freed memory a worker keeps for later, and the largest piece that it keeps, in bytes.
_KEPT_FREE, _LARGEST_KEPT = 64 << 20, 32 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class _WorkerState(NamedTuple):
    """What a worker reports of itself.

    Attributes
    ----------
    host : str
    version : str
        Of fastsort there.
    missing : str or None
        The first file or folder that the worker cannot use.
    """

    host: str
    version: str
    missing: str | None


@contextmanager
def use_cluster(
    address: str,
    paths: Iterable[FilePath] = (),
    *,
    work: FilePath | None = None,
    wait: float = FIRST_WORKER_WAIT,
    say: Callable[[str], None] | None = None,
) -> Iterator[int]:
    """Let the workers of a Dask scheduler process the batches of all that runs inside the context.

    Parameters
    ----------
    address : str
        Address of the scheduler, such as ``"tcp://node17:8786"``.
    paths : iterable of paths
        Files and folders that every worker must be able to read; each is checked before the context begins.
    work : path, optional
        Work folder, which need not exist yet. All workers must see it under this path and be able to write
        there.
    wait : float
        Seconds to wait for the first worker.
    say : callable, optional
        Called with a line at once if there is no worker yet.

    Yields
    ------
    n_threads : int
        Number of threads of all workers so far. Workers may join and leave at any time.

    Raises
    ------
    InputError
        If Dask is not installed, no scheduler answers, it has no worker, or a worker has another version
        of fastsort or cannot use one of the paths.

    Examples
    --------
    Start ``dask scheduler`` on one machine and ``dask worker tcp://node17:8786`` on others that see the
    same disk. Then sort on all of them:

    >>> import fastsort as fs
    >>> with fs.use_cluster("tcp://node17:8786", ["particles.star"], work="work"):  # doctest: +SKIP
    ...     result = fs.sort_particles("particles.star", work="work")
    """
    import joblib

    wait = check_positive("wait", wait, "s")
    with _connected(address) as client:
        _wait_for_workers(client, address, wait, say)
        with _mark(work) as mark:
            _check_workers(client, [os.path.abspath(path) for path in paths], mark)
        with joblib.parallel_config(backend="dask", client=client):
            yield sum(client.ncores().values())


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect to a scheduler with a client that prints nothing about its connection."""
    try:
        import distributed
    except ImportError:
        raise InputError(
            'a cluster needs dask.distributed: install it with  pip install "fastsort[cluster]".'
        ) from None
    # The handlers by which Dask writes to stderr; a caller may have others, and they go on.
    handlers = list(logging.getLogger("distributed").handlers)
    for handler in handlers:
        handler.addFilter(_drop_record)
    try:
        _check_scheduler(address)
        client = distributed.Client(address, timeout=SCHEDULER_WAIT, set_as_default=False)
        with client:
            yield client
    finally:
        for handler in handlers:
            handler.removeFilter(_drop_record)


def _check_scheduler(address: str) -> None:
    """Refuse an address where no scheduler answers; a client would try again without end."""
    from distributed import Security
    from distributed.comm import connect

    async def connect_once() -> None:
        security = Security().get_connection_args("client")
        # A second limit, because `timeout` does not count once a silent server has accepted the connection.
        comm = await asyncio.wait_for(
            connect(address, timeout=SCHEDULER_WAIT, **security), SCHEDULER_WAIT + 1
        )
        await comm.close()

    try:
        # In a thread of its own, because the caller's may run an event loop already.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, connect_once()).result()
    except Exception as error:
        # Any error, because any program may answer at this address.
        raise InputError(
            f"no Dask scheduler answers at {address} ({_in_one_line(error)}): start one with  dask "
            "scheduler  and give the address that it prints, such as tcp://node17:8786."
        ) from None


def _drop_record(record: logging.LogRecord) -> bool:
    return False


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _wait_for_workers(client: Any, address: str, seconds: float, say: Callable[[str], None] | None) -> None:
    end = time.monotonic() + seconds
    while not client.ncores():
        if say is not None:
            say(
                f"the Dask scheduler at {address} has no worker yet; waiting up to {seconds:g} s for one. "
                f"Start some with  dask worker {address}"
            )
            say = None
        if time.monotonic() > end:
            raise InputError(
                f"the Dask scheduler at {address} has had no worker for {seconds:g} s: start some with  "
                f"dask worker {address}  on machines that see the same files."
            )
        time.sleep(0.1)


@contextmanager
def _mark(work: FilePath | None) -> Iterator[str | None]:
    """Make a file where workers will write: one that does not see it has another folder of the same name."""
    if work is None:
        yield None
        return
    folder = Path(os.path.abspath(work))
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        mark = tempfile.NamedTemporaryFile(dir=folder, prefix="fastsort-")
    except OSError as error:
        raise InputError(f"cannot write in {folder} ({error.strerror}): give another work folder.") from None
    with mark:
        yield mark.name


def _check_workers(client: Any, paths: list[str], mark: str | None) -> None:
    for worker, state in client.run(_worker_state, paths, mark, on_error="return").items():
        if not isinstance(state, _WorkerState):
            raise InputError(
                f"Dask worker {worker} cannot run fastsort ({_in_one_line(state)}): install version "
                f"{__version__} there."
            )
        where = _where(worker, state.host)
        _check_version(where, state.version)
        if state.missing is not None:
            raise InputError(f"{where} cannot use {state.missing}: {SAME_DISK}.")


def _worker_state(paths: Sequence[str], mark: str | None) -> _WorkerState:
    """Return what a worker can use; a worker runs this."""
    missing = next((path for path in paths if not os.access(path, os.R_OK)), None)
    if missing is None and mark is not None:
        folder = os.path.dirname(mark)
        if not (os.path.exists(mark) and os.access(folder, os.W_OK | os.X_OK)):
            missing = f"work folder {folder}"
    return _WorkerState(socket.gethostname(), __version__, missing)


def _where(worker: str, host: str) -> str:
    return f"Dask worker {worker} on {host}"


def _check_version(where: str, version: str) -> None:
    if version != __version__:
        raise InputError(
            f"{where} has fastsort {version}, and here is {__version__}: install the same version on both."
        )


def active_client() -> Any:
    """Return the Dask client that joblib is set to use, or None."""
    from joblib.parallel import get_active_backend

    backend, _ = get_active_backend()
    # Compared by name, because joblib's own module would import Dask.
    return backend.client if type(backend).__name__ == "DaskDistributedBackend" else None


def map_on_cluster(
    client: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    tasks: Iterable[bytes],
    n_tasks: int,
) -> Iterator[Any]:
    """Run tasks on the workers and yield their results, in order.

    Parameters
    ----------
    client : distributed.Client
    function : callable
        As for `map_batches`.
    arguments : tuple
        The same for all tasks: each worker gets them once.
    tasks : iterable of bytes
        From `pack_task`, taken when workers need them. Short tasks are sent several at a time.
    n_tasks : int
        Number of tasks.

    Yields
    ------
    result
        What `function` returned for a batch.

    Raises
    ------
    InputError
        If a worker raises one or cannot read or write a file (the message names the worker), if one batch
        ends several workers, or if no worker or no scheduler is left.

    Notes
    -----
    joblib's own Dask backend is not used: it piles up results that the caller has not taken yet, sends
    small arguments with every task, loses large ones with the worker that holds them, and waits for ever
    for a task that no worker can run.
    """
    from dask.utils import apply
    from distributed.protocol.pickle import dumps, loads

    # The call is the result of a task, so that Dask makes it again if its worker is lost. It is packed,
    # because the scheduler unpacks what it passes on and may have no fastsort.
    call = client.submit(loads, dumps(_Call(__version__, dumps((function, arguments)))), pure=False)
    rest, left, at_a_time = iter(tasks), n_tasks, 1
    waiting: deque[Any] = deque()
    while left or waiting:
        with _errors_in_words():
            room = AHEAD * max(1, sum(client.ncores().values()))
            while left and len(waiting) < room:
                # Fewer at a time towards the end, so that no worker is idle.
                some = list(itertools.islice(rest, max(1, min(at_a_time, left // room))))
                left -= len(some)
                waiting.append(client.submit(apply, call, [some], pure=False))
            finished = _take_finished(client, waiting)
        for seconds, results in finished:
            at_a_time = max(1, min(2 * at_a_time, int(TASK_SECONDS * len(results) / seconds)))
            yield from results


def pack_task(part: Any, start: int, own: tuple[Any, ...]) -> bytes:
    """Return a task as it is sent: a source, the position of its first image, what belongs to its images."""
    from distributed.protocol.pickle import dumps

    packed: bytes = dumps((part, start, own))
    return packed


def carries_pixels(task: bytes, n_images: int) -> bool:
    """Return whether a task holds images in memory, which take too long to send."""
    whole, each = LARGEST_TASK
    return len(task) > whole + each * n_images


class _Call:
    """The function that all tasks call, with the arguments that all share; each worker unpacks it once."""

    def __init__(self, version: str, packed: bytes) -> None:
        self.version = version
        self.packed = packed

    def __getstate__(self) -> dict[str, Any]:
        return {"version": self.version, "packed": self.packed}

    def __call__(self, tasks: list[bytes]) -> tuple[float, list[Any]]:
        """Return how many seconds some tasks took, and their results; a worker runs this."""
        from distributed import get_worker
        from distributed.protocol.pickle import loads
        from threadpoolctl import threadpool_limits

        where = _where(get_worker().address, socket.gethostname())
        _check_version(where, self.version)
        # The limit stays, which is also Dask's default: one thread of a worker would lift that of another.
        threadpool_limits(limits=1, user_api="blas")
        begin, results = time.perf_counter(), []
        try:
            function, arguments = self._unpacked
            for task in tasks:
                part, start, own = loads(task)
                results.append(function(part.read(0, len(part)), start, *own, *arguments))
        except InputError as error:
            raise InputError(f"{where}: {_in_one_line(error)}") from None
        except OSError as error:
            raise InputError(f"{where}: {_in_one_line(error)}: {SAME_DISK}.") from None
        return time.perf_counter() - begin, results

    @cached_property
    def _unpacked(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        from distributed.protocol.pickle import loads

        _keep_freed_memory()
        call: tuple[Callable[..., Any], tuple[Any, ...]] = loads(self.packed)
        return call


def _keep_freed_memory() -> None:
    """Let the C library reuse freed memory, which Dask's settings for its workers prevent.

    With these settings every array of a batch is new memory, which the system has to clear first: that
    takes as long as the work itself.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        with suppress(AttributeError, OSError):
            import ctypes

            library = ctypes.CDLL(None)
            library.mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)
            library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """Say in words what went wrong between the caller, the scheduler and the workers."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    try:
        yield
    except KilledWorker as error:
        last = getattr(error.last_worker, "address", "unknown")
        raise InputError(
            f"one batch of images has ended several Dask workers, the last of them {last}: give the workers "
            "more memory, or look for the cause in their logs."
        ) from None
    except (CancelledError, CommClosedError):
        raise InputError(
            "the connection to the Dask scheduler was lost: look for the cause in its log, and run again; "
            f"{RESUMES}."
        ) from None
    except ImportError as error:
        raise InputError(
            f"a Dask worker cannot run fastsort ({_in_one_line(error)}): install version {__version__} on "
            "all workers."
        ) from None


def _take_finished(client: Any, waiting: deque[Any]) -> list[tuple[float, list[Any]]]:
    """Wait for the first task, and take its results and those of all finished tasks right after it."""
    _wait_for(client, waiting[0])
    done = [waiting.popleft()]
    while waiting and waiting[0].status == "finished":
        done.append(waiting.popleft())
    results: list[tuple[float, list[Any]]] = client.gather(done)
    return results


def _wait_for(client: Any, future: Any) -> None:
    """Wait until a task is done; give up if there has been no worker for a while."""
    from distributed import TimeoutError

    without_worker = 0.0
    while without_worker < NEW_WORKER_WAIT:
        try:
            future.exception(timeout=LOOK_INTERVAL)
            return
        except TimeoutError:
            without_worker = 0.0 if client.ncores() else without_worker + LOOK_INTERVAL
    raise InputError(
        f"all workers of the Dask cluster have gone, and no new one has joined for {NEW_WORKER_WAIT:g} s: "
        f"start some, and run again; {RESUMES}."
    )
