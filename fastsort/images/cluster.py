"""More machines than one: workers of Dask open the files themselves, and the caller gets what they found."""

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
from fastsort._version import __version__

# Tasks that each thread of a worker has in hand or in store, and the seconds that one should take.
AHEAD, TASK_SECONDS = 3, 0.25
# In bytes, besides the same for each of its images: a task that is larger carries pixels.
LARGEST_TASK = 4 << 10, 1 << 10
# Seconds to wait for a scheduler, for a first worker, and for another one when all have gone; and how often
# to look for one.
CONNECT, FIRST, ANOTHER, LOOK = 10.0, 60.0, 300.0, 5.0
SAME_DISK = "images and work folder must be on a disk that all workers see under the same path"
GOES_ON = "with a work folder of its own, a run goes on where it was"
# What a worker keeps of memory that was freed, and the largest piece of which it does, in bytes.
_KEPT_FREE, _LARGEST_KEPT = 64 << 20, 32 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class _View(NamedTuple):
    """What a worker says of itself."""

    host: str
    version: str
    missing: str | None


@contextmanager
def use_cluster(
    address: str,
    paths: Iterable[str | os.PathLike[str]] = (),
    *,
    work: str | os.PathLike[str] | None = None,
    wait: float = FIRST,
) -> Iterator[int]:
    """Let the workers of a Dask scheduler do all that is done batch by batch.

    Parameters
    ----------
    address : str
        Of the scheduler, such as ``"tcp://node17:8786"``.
    paths : iterable of paths
        Files and folders that the workers must be able to read.
    work : path, optional
        Folder that is, or will be made, where the workers write: it must be the same one for all.
    wait : float
        Seconds to wait for the first worker.

    Yields
    ------
    n_threads : int
        Of all workers that are there now. More may join, and any may go.

    Raises
    ------
    InputError
        If Dask is not installed, no scheduler answers, it has no worker, or a worker has another version
        of fastsort or cannot see one of the paths.
    """
    import joblib

    wait = check_positive("wait", wait, "s")
    with _connected(address) as client:
        _wait_for_workers(client, address, wait)
        with _mark(work) as mark:
            _check_workers(client, [os.path.abspath(path) for path in paths], mark)
        with joblib.parallel_config(backend="dask", client=client):
            yield sum(client.ncores().values())


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """A client that keeps what it has to say of its connection to itself."""
    try:
        import distributed
    except ImportError:
        raise InputError(
            'a cluster needs dask.distributed: install it with  pip install "fastsort[cluster]".'
        ) from None
    # Dask's own, by which all its parts write to stderr; not those by which a caller may want to read.
    handlers = list(logging.getLogger("distributed").handlers)
    for handler in handlers:
        handler.addFilter(_is_silent)
    try:
        _knock(address)
        client = distributed.Client(address, timeout=CONNECT, set_as_default=False)
        with client:
            yield client
    finally:
        for handler in handlers:
            handler.removeFilter(_is_silent)


def _knock(address: str) -> None:
    """Refuse an address at which no scheduler answers, since a client would go on trying to the end."""
    from distributed import Security
    from distributed.comm import connect

    async def knock() -> None:
        security = Security().get_connection_args("client")
        # Once more with a limit: whoever opens the door and then says nothing has no other.
        comm = await asyncio.wait_for(connect(address, timeout=CONNECT, **security), CONNECT + 1)
        await comm.close()

    try:
        # In a thread, since the caller's may have a loop of its own.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, knock()).result()
    except Exception as error:
        # Of any kind, since anything may be what speaks there.
        raise InputError(
            f"no Dask scheduler answers at {address} ({_in_one_line(error)}): start one with  dask "
            "scheduler  and give the address that it prints, such as tcp://node17:8786."
        ) from None


def _is_silent(record: logging.LogRecord) -> bool:
    return False


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _wait_for_workers(client: Any, address: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not client.ncores():
        if time.monotonic() > end:
            raise InputError(
                f"the Dask scheduler at {address} has had no worker for {seconds:g} s: start some with  "
                f"dask worker {address}  on machines that see the same files."
            )
        time.sleep(0.1)


@contextmanager
def _mark(work: str | os.PathLike[str] | None) -> Iterator[str | None]:
    """A file beside which workers are to write: a folder of the same name may be another one elsewhere."""
    if work is None:
        yield None
        return
    folder = Path(os.path.abspath(work))
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        mark = tempfile.NamedTemporaryFile(dir=folder, prefix="fastsort-")
    except OSError as error:
        raise InputError(f"cannot write in {folder}: {error.strerror}: give another work folder.") from None
    with mark:
        yield mark.name


def _check_workers(client: Any, paths: list[str], mark: str | None) -> None:
    for worker, view in client.run(_look_around, paths, mark, on_error="return").items():
        if not isinstance(view, _View):
            raise InputError(
                f"Dask worker {worker} cannot run fastsort ({_in_one_line(view)}): install version "
                f"{__version__} there."
            )
        where = _where(worker, view.host)
        _check_version(where, view.version)
        if view.missing is not None:
            raise InputError(f"{where} cannot use {view.missing}: {SAME_DISK}.")


def _look_around(paths: Sequence[str], mark: str | None) -> _View:
    """Run by a worker."""
    missing = next((path for path in paths if not os.access(path, os.R_OK)), None)
    if missing is None and mark is not None:
        folder = os.path.dirname(mark)
        if not (os.path.exists(mark) and os.access(folder, os.W_OK | os.X_OK)):
            missing = f"work folder {folder}"
    return _View(socket.gethostname(), __version__, missing)


def _where(worker: str, host: str) -> str:
    return f"Dask worker {worker} on {host}"


def _check_version(where: str, version: str) -> None:
    if version != __version__:
        raise InputError(f"{where} has fastsort {version}, and here is {__version__}: install one version.")


def active_client() -> Any:
    """Return the client of Dask that joblib has been told to use, or None."""
    from joblib.parallel import get_active_backend

    backend, _ = get_active_backend()
    # By name, since joblib's own module would import Dask.
    return backend.client if type(backend).__name__ == "DaskDistributedBackend" else None


def map_on_cluster(
    client: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    tasks: Iterable[bytes],
    n_tasks: int,
) -> Iterator[Any]:
    """Run tasks on the workers and yield what they return, in order.

    Parameters
    ----------
    client : distributed.Client
    function : callable
        As for `map_batches`.
    arguments : tuple
        The same for all tasks: they go to each worker once.
    tasks : iterable of bytes
        From `pack_task`, taken as workers need them. Those that take little time go several together.
    n_tasks : int
        How many there are.

    Yields
    ------
    result

    Raises
    ------
    InputError
        If a worker meets one or cannot read or write a file, with the name of the worker; if a batch ends
        several workers; if no worker is left, or the scheduler.

    Notes
    -----
    Not through joblib's own way to a cluster, which piles up results that nobody has taken yet, sends
    small arguments with every task, loses large ones with the worker that holds them, and waits for ever
    for a task that no worker can run.
    """
    from dask.utils import apply
    from distributed.protocol.pickle import dumps, loads

    # A task itself, so that a copy that goes with its worker is made again. All that is ours is packed, since
    # the scheduler unpacks what it passes on, and may have no fastsort.
    kept = client.submit(loads, dumps(_Call(__version__, dumps((function, arguments)))), pure=False)
    rest, left, together = iter(tasks), n_tasks, 1
    waiting: deque[Any] = deque()
    while left or waiting:
        with _explained():
            room = AHEAD * max(1, sum(client.ncores().values()))
            # The last ones apart, so that all workers have something to do to the end.
            while left and len(waiting) < room:
                some = list(itertools.islice(rest, max(1, min(together, left // room))))
                left -= len(some)
                waiting.append(client.submit(apply, kept, [some], pure=False))
            results = _take(client, waiting)
        for seconds, found in results:
            together = max(1, min(2 * together, int(TASK_SECONDS * len(found) / seconds)))
            yield from found


def pack_task(part: Any, start: int, own: tuple[Any, ...]) -> bytes:
    """Return a task as it is sent: a source, the position of its first image, and what belongs to them."""
    from distributed.protocol.pickle import dumps

    packed: bytes = dumps((part, start, own))
    return packed


def carries_pixels(task: bytes, n_images: int) -> bool:
    """Whether images in memory would be sent with a task: these are better left where they are."""
    whole, each = LARGEST_TASK
    return len(task) > whole + each * n_images


class _Call:
    """What all tasks call, with the arguments that are the same for all: unpacked once by each worker."""

    def __init__(self, version: str, packed: bytes) -> None:
        self.version = version
        self.packed = packed

    def __getstate__(self) -> dict[str, Any]:
        return {"version": self.version, "packed": self.packed}

    def __call__(self, tasks: list[bytes]) -> tuple[float, list[Any]]:
        """Run by a worker; returns how many seconds it took, and the results."""
        from distributed import get_worker
        from distributed.protocol.pickle import loads
        from threadpoolctl import threadpool_limits

        where = _where(get_worker().address, socket.gethostname())
        _check_version(where, self.version)
        # Not taken back: threads of one worker would take back one another's. It is Dask's own default.
        threadpool_limits(limits=1, user_api="blas")
        begin, found = time.perf_counter(), []
        try:
            function, arguments = self._unpacked
            for task in tasks:
                part, start, own = loads(task)
                found.append(function(part.read(0, len(part)), start, *own, *arguments))
        except InputError as error:
            raise InputError(f"{where}: {_in_one_line(error)}") from None
        except OSError as error:
            raise InputError(f"{where}: {_in_one_line(error)}: {SAME_DISK}.") from None
        return time.perf_counter() - begin, found

    @cached_property
    def _unpacked(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        from distributed.protocol.pickle import loads

        _keep_freed_memory()
        call: tuple[Callable[..., Any], tuple[Any, ...]] = loads(self.packed)
        return call


def _keep_freed_memory() -> None:
    """Let the C library use again what it has, as it does unless Dask forbids it.

    With the threshold that Dask gives its workers, each array of a batch is new memory, which the system
    has to clear first: that takes as long as the work itself.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        with suppress(AttributeError, OSError):
            import ctypes

            library = ctypes.CDLL(None)
            library.mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)
            library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)


@contextmanager
def _explained() -> Iterator[None]:
    """What goes wrong between the caller, the scheduler and the workers, in words."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    try:
        yield
    except KilledWorker as error:
        last = getattr(error.last_worker, "address", "unknown")
        raise InputError(
            f"one batch of images has ended several Dask workers, the last of them {last}: they may have "
            "too little memory; see what they and the queue have written."
        ) from None
    except (CancelledError, CommClosedError):
        raise InputError(
            "the connection to the Dask scheduler was lost: see what it has written, and sort once more; "
            f"{GOES_ON}."
        ) from None
    except ImportError as error:
        raise InputError(
            f"a Dask worker cannot run fastsort ({_in_one_line(error)}): install version {__version__} on "
            "all of them."
        ) from None


def _take(client: Any, waiting: deque[Any]) -> list[tuple[float, list[Any]]]:
    """Wait for the first task, and take what it and those that are done after it have found."""
    _wait(client, waiting[0])
    done = [waiting.popleft()]
    while waiting and waiting[0].status == "finished":
        done.append(waiting.popleft())
    results: list[tuple[float, list[Any]]] = client.gather(done)
    return results


def _wait(client: Any, future: Any) -> None:
    """Wait until a task is done, as long as there is a worker to do it."""
    from distributed import TimeoutError

    alone = 0.0
    while alone < ANOTHER:
        try:
            future.exception(timeout=LOOK)
            return
        except TimeoutError:
            alone = 0.0 if client.ncores() else alone + LOOK
    raise InputError(
        f"all workers of the Dask cluster have gone, and none has come for {ANOTHER:g} s: start some, and "
        f"sort once more; {GOES_ON}."
    )
