"""The only road from disk to kernels: read a batch, run a function on it, keep the order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

import numpy.typing as npt

from fastsort._checks import check_count
from fastsort._process import one_blas_thread, without_warnings
from fastsort.images.cluster import active_client, carries_pixels, map_on_cluster, pack_task
from fastsort.particles.source import Particles

BATCH_BYTES = 8 << 20
MAX_BATCH = 2048
# How many batches are announced before they are read.
ANNOUNCED = 2


class Source(Protocol):
    """Anything of a known length that is read in ranges: images, or rows of measurements."""

    def __len__(self) -> int:
        """Return how many there are."""

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return a range."""

    def part(self, start: int, stop: int) -> Source:
        """Return a source of a range alone, which takes little to send to another process."""


def map_batches(
    function: Callable[..., Any],
    particles: Source,
    *arguments: Any,
    each: Sequence[Any] = (),
    batch_size: int | None = None,
    n_jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Any]:
    """Call a function on consecutive batches of images and yield what it returns, in order.

    Parameters
    ----------
    function : callable
        Called as ``function(images, start, *each, *arguments)`` with float32 images (n, d, d) that it
        may change, and the position of the first one. Module-level, if processes or a cluster run it.
    particles : Particles or another Source
        Tasks carry a part of this that can be read, never pixels: each worker reads its own images. A
        source that is no `Particles` needs a `batch_size`, and gives `function` what it reads.
    *arguments
        Passed on to every call.
    each : sequence of arrays or of CtfParameters
        With one entry an image: a call gets the entries of its images. None stays None.
    batch_size : int, optional
        Images a batch; by default as many as make 8 MiB. It never depends on `n_jobs`, so that
        sums over batches have the same bits for any number of workers.
    n_jobs : int, optional
        Workers, as joblib counts them. None honours an outer ``joblib.parallel_config``, which also
        chooses the backend; the default backend is threads.
    progress : callable, optional
        Called as ``progress(images_done, images_in_all)`` after each batch.

    Yields
    ------
    result
        What `function` returned for a batch.

    Notes
    -----
    BLAS is held to one thread until the generator ends: more would multiply with the workers and,
    since their number changes the order of sums, the bits of the result.
    """
    import joblib

    n = len(particles)
    if batch_size is None:
        batch_size = default_batch_size(cast("Particles", particles).box)
    check_count("batch_size", batch_size)
    ranges = [(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]

    def task(start: int, stop: int) -> tuple[Source, int, tuple[Any, ...]]:
        return particles.part(start, stop), start, tuple(_some(values, slice(start, stop)) for values in each)

    def call(start: int, stop: int) -> tuple[Any, ...]:
        return function, *task(start, stop), arguments, os.getpid()

    def calls_to_come() -> Iterator[tuple[Any, ...]]:
        """The calls that are left, the images of each announced while those before it are computed."""
        ahead: deque[tuple[Any, ...]] = deque()
        for part in rest:
            ahead.append(call(*part))
            if isinstance(ahead[-1][1], Particles):
                ahead[-1][1].store.announce()
            if len(ahead) > ANNOUNCED:
                yield ahead.popleft()
        yield from ahead

    def pack(start: int, stop: int) -> bytes:
        return pack_task(*task(start, stop))

    with one_blas_thread():
        # Alone, so that the kernels are compiled once and not by every worker.
        for start, stop in ranges[:1]:
            yield _run(*call(start, stop))
            if progress:
                progress(stop, n)
        rest = ranges[1:]
        client = None if n_jobs == 1 else active_client()
        few = len(rest) <= 1 or (client is None and joblib.effective_n_jobs(n_jobs) == 1)
        results: Iterable[Any]
        if few:
            # Setting up workers takes longer than a small batch, and one batch has nobody to share with.
            results = (_run(*one) for one in calls_to_come())
        elif client is None or carries_pixels(pack(*rest[0]), batch_size):
            # On a cluster, images in memory stay at home.
            how = (
                {"n_jobs": -1, "backend": "threading"} if client else {"n_jobs": n_jobs, "prefer": "threads"}
            )
            results = joblib.Parallel(**how, return_as="generator")(
                joblib.delayed(_run)(*one) for one in calls_to_come()
            )
        else:
            results = map_on_cluster(client, function, arguments, (pack(*part) for part in rest), len(rest))
        try:
            for (_, stop), result in zip(rest, results, strict=True):
                yield result
                if progress:
                    progress(stop, n)
        finally:
            # joblib would warn of tasks that a caller who goes before the end has no more use for.
            with without_warnings():
                cast("Any", results).close()


def default_batch_size(box: int) -> int:
    """Return the number of images of `box` pixels that make a batch."""
    return min(MAX_BATCH, max(1, BATCH_BYTES // (4 * box * box)))


def _some(values: Any, part: slice) -> Any:
    if values is None:
        return None
    return values.of(part) if hasattr(values, "of") else values[part]


def _run(
    function: Callable[..., Any],
    part: Source,
    start: int,
    own: tuple[Any, ...],
    arguments: tuple[Any, ...],
    caller: int,
) -> Any:
    if os.getpid() == caller:
        return function(part.read(0, len(part)), start, *own, *arguments)
    # The caller's limit does not reach another process.
    with one_blas_thread():
        return function(part.read(0, len(part)), start, *own, *arguments)
