"""Pieces of work at the same time: results in order, in threads only where there are workers."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from fastsort.decide.side_by_side import side_by_side


@pytest.mark.parametrize("n_jobs", [1, 2, 8])
def test_results_and_progress_come_in_order(n_jobs):
    seen, caller = [], threading.get_ident()

    def progress(done, tasks):
        seen.append((done, tasks))
        assert threading.get_ident() == caller

    results = side_by_side([partial(pow, 2, k) for k in range(5)], n_jobs, progress)
    assert results == [1, 2, 4, 8, 16]
    assert seen == [(done, 5) for done in range(1, 6)]


def test_two_run_at_the_same_time_and_one_worker_is_the_caller():
    both = threading.Barrier(2, timeout=30)
    side_by_side([both.wait, both.wait], 2)
    assert side_by_side([threading.get_ident] * 2, 1) == [threading.get_ident()] * 2


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_error_reaches_the_caller(n_jobs):
    with pytest.raises(ZeroDivisionError):
        side_by_side([partial(pow, 2, 2), partial(divmod, 1, 0)], n_jobs)
