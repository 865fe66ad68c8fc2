"""What is computed in parts, and what batches return, is the same as all at once."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from fastsort._parts import AT_ONCE, in_parts, parts
from fastsort.images.joined import join_batches


@pytest.mark.parametrize("n", [0, 1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 2 * AT_ONCE + 5])
def test_parts_are_a_whole(n):
    numbers = np.arange(n)
    assert np.array_equal(np.concatenate([numbers[:0], *(numbers[part] for part in parts(n))]), numbers)
    assert all(0 < part.stop - part.start <= AT_ONCE for part in parts(n))
    values = np.random.default_rng(n).normal(size=n)
    np.testing.assert_array_equal(in_parts(np.exp, values), np.exp(values))


def test_batches_are_joined_while_they_come():
    rng = np.random.default_rng(0)
    sizes = (3, 1, 0, 5)
    batches = [
        (rng.normal(size=k), rng.normal(size=(k, 2)).astype(np.float32), np.arange(k, dtype=np.int8))
        for k in sizes
    ]
    joined = join_batches(iter(batches), sum(sizes))
    for array, column in zip(joined, zip(*batches, strict=True), strict=True):
        expected = np.concatenate(column)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def test_few_batches_are_kept_while_they_come():
    came, most = [], 0

    def batches():
        nonlocal most
        for start in range(50):
            array = np.full(10, start)
            came.append(weakref.ref(array))
            most = max(most, sum(one() is not None for one in came))
            yield (array,)

    (joined,) = join_batches(batches(), 500)
    np.testing.assert_array_equal(joined, np.repeat(np.arange(50), 10))
    assert most <= 4
