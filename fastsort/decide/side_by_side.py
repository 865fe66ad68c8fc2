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
    results = []
    with ThreadPoolExecutor(max(1, min(n_workers, len(tasks)) - 1)) as pool:
        # The caller is a worker too, and does the first task: this one may tell of its own progress.
        later = [pool.submit(_alone, task) for task in tasks[1:]] if n_workers > 1 else []
        try:
            for number, task in enumerate(tasks):
                results.append(later[number - 1].result() if number and later else _alone(task))
                if progress:
                    progress(len(results), len(tasks))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return results


def _alone(task: Callable[[], Any]) -> Any:
    # OpenMP keeps a number of BLAS threads for each thread.
    with one_blas_thread():
        return task()
