"""The only road from disk to kernels: read a batch, run a function on it, keep the order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast
from weakref import WeakSet

from fastsort._checks import check_count, check_workers
from fastsort._process import one_blas_thread, without_warnings
from fastsort._progress import Progress
from fastsort.images.cluster import active_client, carries_pixels, map_on_cluster, pack_task
from fastsort.particles.source import Particles

BATCH_BYTES = 8 << 20
MAX_BATCH = 2048
# How many batches are announced before they are read.
ANNOUNCED = 2


class Source(Protocol):
    """Anything of a known length that is read in ranges: images, rows of measurements, micrographs."""

    def __len__(self) -> int:
        """Return the number of images or rows."""

    def read(self, start: int, stop: int) -> Any:
        """Return a range."""

    def part(self, start: int, stop: int) -> Source:
        """Return a source of a range alone, small enough to be sent to another process."""


# Functions that this process has called: their kernels are compiled.
_HAVE_RUN: WeakSet[Callable[..., Any]] = WeakSet()


def map_batches(
    function: Callable[..., Any],
    source: Source,
    *arguments: Any,
    each: Sequence[Any] = (),
    batch_size: int | None = None,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Any]:
    """Call a function on consecutive batches of images and yield what it returns, in order.

    Parameters
    ----------
    function : callable
        Called as ``function(images, start, *each, *arguments)``: `images`, float32 (n, d, d), may be
        changed; `start` is the position of the first one. Processes and clusters need a function of a module.
    source : Particles or another Source
        Each worker reads its own images: tasks carry a part of the source, never pixels. A source that is
        not `Particles` needs a `batch_size`, and `function` gets what the source reads.
    *arguments
        Passed on to every call.
    each : sequence of arrays or of CtfParameters
        With one entry an image: a call gets the entries of its images. None stays None.
    batch_size : int, optional
        Images a batch; by default as many as make 8 MiB. It never depends on `n_jobs`, so that
        sums over batches have the same bits for any number of workers.
    n_jobs : int, optional
        Number of workers, as in joblib. None honours an outer ``joblib.parallel_config``, which also
        chooses the backend; the default backend is threads.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)`` after each batch.

    Yields
    ------
    result
        What `function` returned for a batch.

    Raises
    ------
    InputError
        If `batch_size` is below 1, an image cannot be read, or the workers of a cluster fail.

    Notes
    -----
    BLAS is held to one thread until the generator ends: more would multiply with the workers and,
    since their number changes the order of sums, the bits of the result.
    """
    check_workers(n_jobs)
    n = len(source)
    if batch_size is None:
        batch_size = default_batch_size(cast("Particles", source).box)
    batches = _Batches(source, each, check_count("batch_size", batch_size))
    with one_blas_thread():
        # The first batch ever runs alone, so that the kernels are compiled once and not by every worker.
        # Before a cluster gets its tasks, it shows what would go wrong there.
        alone = function not in _HAVE_RUN or active_client() is not None
        first = int(alone and len(batches) > 0)
        if first:
            yield _run(function, arguments, os.getpid(), batches.task(0))
            _HAVE_RUN.add(function)
            if progress:
                progress(batches.end(0), n)
        rest = range(first, len(batches))
        results = _run_rest(function, arguments, batches, rest, n_jobs)
        try:
            for number, result in zip(rest, results, strict=True):
                yield result
                if progress:
                    progress(batches.end(number), n)
        finally:
            # joblib would warn about unused results if the caller stops before the end.
            with without_warnings():
                cast("Any", results).close()


def default_batch_size(box: int) -> int:
    """Return the number of images of `box` pixels that make a batch."""
    return min(MAX_BATCH, max(1, BATCH_BYTES // (4 * box * box)))


class _Task(NamedTuple):
    """One batch, as workers get it.

    Attributes
    ----------
    part : Source
        Reads the images of the batch.
    start : int
        Position of the first of them in the whole source.
    own : tuple
        The entries of `each` that belong to them.
    """

    part: Source
    start: int
    own: tuple[Any, ...]


@dataclass(frozen=True)
class _Batches:
    """A source divided into batches; each becomes a task when it is asked for."""

    source: Source
    each: Sequence[Any]
    size: int

    def __len__(self) -> int:
        return -(-len(self.source) // self.size)

    def end(self, number: int) -> int:
        """Return the position after the last image of a batch."""
        return min((number + 1) * self.size, len(self.source))

    def task(self, number: int) -> _Task:
        start, stop = number * self.size, self.end(number)
        own = tuple(_some(values, slice(start, stop)) for values in self.each)
        return _Task(self.source.part(start, stop), start, own)


def _some(values: Any, part: slice) -> Any:
    if values is None:
        return None
    return values.of(part) if hasattr(values, "of") else values[part]


def _run(function: Callable[..., Any], arguments: tuple[Any, ...], home: int, task: _Task) -> Any:
    """Read a batch and call the function on it; `home` is the process that holds BLAS to one thread."""
    with nullcontext() if os.getpid() == home else one_blas_thread():
        return function(task.part.read(0, len(task.part)), task.start, *task.own, *arguments)


def _run_rest(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    batches: _Batches,
    rest: range,
    n_jobs: int | None,
) -> Iterator[Any]:
    """Choose who runs the batches after the first: the caller, local workers or a cluster."""
    import joblib
    from joblib.parallel import ThreadingBackend, get_active_backend

    home, tasks = os.getpid(), map(batches.task, rest)
    client = None if n_jobs == 1 else active_client()
    if len(rest) <= 1 or (client is None and joblib.effective_n_jobs(n_jobs) == 1):
        # Setting up workers takes longer than a small batch, and one batch has nobody to share with.
        return (_run(function, arguments, home, task) for task in _announced(tasks))
    if client is not None:
        if not carries_pixels(pack_task(*batches.task(rest[0])), batches.size):
            packed = (pack_task(*task) for task in tasks)
            return map_on_cluster(client, function, arguments, packed, len(rest))
        # Images in memory are not sent to the cluster: threads of this process take them.
        return _in_threads(function, arguments, home, _announced(tasks), joblib.cpu_count())
    if isinstance(get_active_backend(prefer="threads")[0], ThreadingBackend):
        return _in_threads(function, arguments, home, _announced(tasks), joblib.effective_n_jobs(n_jobs))
    results: Iterator[Any] = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(
        joblib.delayed(_run)(function, arguments, home, task) for task in _announced(tasks)
    )
    return results


def _in_threads(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    home: int,
    tasks: Iterator[_Task],
    n_workers: int,
) -> Iterator[Any]:
    """Run tasks in threads of this process, at most two for each worker ahead of what was yielded.

    joblib would look for results every 10 ms, in which a worker gets a small batch done.
    """
    ahead: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(n_workers)
    try:
        for task in tasks:
            ahead.append(pool.submit(_run, function, arguments, home, task))
            if len(ahead) > 2 * n_workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _announced(tasks: Iterable[_Task]) -> Iterator[_Task]:
    """Yield tasks, the images of each announced to the system while those before it are computed."""
    ahead: deque[_Task] = deque()
    for task in tasks:
        ahead.append(task)
        if isinstance(task.part, Particles):
            task.part.store.announce()
        if len(ahead) > ANNOUNCED:
            yield ahead.popleft()
    yield from ahead
