"""What the radial and the subspace room have in common: no paths, readable types, kernels on their own."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import typing
from pathlib import Path

import pytest

import fastsort as fs

PACKAGE = Path(fs.__file__).parent
FILES = sorted(path for room in ("radial", "subspaces") for path in (PACKAGE / room).glob("[!_]*.py"))


@pytest.mark.parametrize("method", [fs.radial_filter, fs.subspace_filter, fs.pswf_coefficients])
@pytest.mark.parametrize("path", ["x.star", Path("x.mrcs")])
def test_methods_open_no_paths(method, path):
    message = rf"must be an ndarray or Particles; got {type(path).__name__}: open it with open_particles"
    with pytest.raises(fs.InputError, match=message):
        method(path)


def public_things(path):
    """Functions and classes that a file defines and that other files may use."""
    name = ".".join(["fastsort", *path.relative_to(PACKAGE).with_suffix("").parts])
    module = importlib.import_module(name)
    for word, thing in vars(module).items():
        is_own = getattr(thing, "__module__", "") == name and not word.startswith("_")
        if is_own and (inspect.isclass(thing) or inspect.isfunction(thing)):
            yield thing


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_annotations_can_be_read(path):
    things = list(public_things(path))
    assert things
    for thing in things:
        hints = typing.get_type_hints(thing)
        if inspect.isfunction(thing):
            assert set(hints) == {*inspect.signature(thing).parameters, "return"}, thing
        elif hasattr(thing, "_fields"):
            assert set(hints) == set(thing._fields), thing


def defined_names(tree):
    """Names of the functions and constants of a file."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            targets = [part for target in node.targets for part in ast.walk(target)]
            yield from (part.id for part in targets if isinstance(part, ast.Name))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_kernels_use_nothing_of_other_files(path):
    """Numba keeps compiled code in a file, and does not notice when another module changes."""
    tree = ast.parse(path.read_text())
    known = {*defined_names(tree), *dir(builtins), "np", "math"}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and "kernel" in map(ast.unparse, node.decorator_list):
            names = [part for statement in node.body for part in ast.walk(statement)]
            names = [part for part in names if isinstance(part, ast.Name)]
            own = {argument.arg for argument in node.args.args}
            own |= {part.id for part in names if isinstance(part.ctx, ast.Store)}
            assert {part.id for part in names} <= own | known, node.name
