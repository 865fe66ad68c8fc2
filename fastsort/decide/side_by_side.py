"""Independent pieces of work, done at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastsort._process import one_blas_thread
from fastsort._progress import Progress


def side_by_side(
    tasks: Sequence[Callable[[], Any]], n_jobs: int | None, progress: Progress | None = None
) -> list[Any]:
    """Call functions, each in a thread of its own if there are workers enough, and return their results.

    Parameters
    ----------
    tasks : sequence of callable
        They should keep to one worker each: many short steps on a few hundred images gain nothing from being
        divided among threads, which wait for each other at each step.
    n_jobs : int or None
        Workers, as joblib counts them. Results do not depend on it.
    progress : callable, optional
        Called as ``progress(tasks_done, tasks)``, in the thread of the caller.

    Returns
    -------
    results : list
        In the order of the tasks.
    """
    import joblib

    n_workers = joblib.effective_n_jobs(n_jobs)
    pool = ThreadPoolExecutor(min(n_workers, len(tasks)))
    results = []
    try:
        for result in pool.map(_alone, tasks) if n_workers > 1 else map(_alone, tasks):
            results.append(result)
            if progress:
                progress(len(results), len(tasks))
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _alone(task: Callable[[], Any]) -> Any:
    # OpenMP keeps a number of BLAS threads for each thread.
    with one_blas_thread():
        return task()
