"""Examples in the docstrings of public functions do what they say."""

from __future__ import annotations

import doctest
import inspect

import pytest

import fastsort as fs


def examples_of(name):
    thing = getattr(fs, name)
    namespace = vars(inspect.getmodule(thing))
    return doctest.DocTestFinder(recurse=False).find(thing, name, globs=dict(namespace))


@pytest.mark.parametrize(
    "name",
    [
        "combine_votes",
        "cut_again",
        "estimate_errors",
        "make_decoys",
        "sort_particles",
        "update_particles",
    ],
)
def test_examples(name):
    (example,) = examples_of(name)
    assert example.examples
    said = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert result.failed == 0, "".join(said)
