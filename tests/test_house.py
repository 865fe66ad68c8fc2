"""The house: which way imports point, what importing costs, and where kernels may be compiled."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastsort

PACKAGE = Path(fastsort.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
METHODS = {"radial", "subspaces", "invariants"}
# Modules on the ground, which import nothing that stands above them.
GROUND = {
    "_brief",
    "_bulk",
    "_checks",
    "_crop",
    "_threshold",
    "_jit",
    "_process",
    "_progress",
    "_reasons",
    "_saved",
    "_types",
    "_version",
}
# What each room may import besides itself and the ground.
MAY_IMPORT = {
    "": {
        "particles",
        "images",
        "radial",
        "subspaces",
        "invariants",
        "decide",
        "simulate",
        "classify",
        "sort",
        "update",
    },
    **{name: set() for name in GROUND},
    "particles": set(),
    "images": {"particles"},
    "radial": {"particles", "images"},
    "subspaces": {"particles", "images"},
    "invariants": {"particles", "images"},
    "decide": {"particles", "images", *METHODS},
    "simulate": {"particles", "images"},
    "classify": {"particles", "images", "invariants"},
    "sort": {"particles", "images", "decide", *METHODS},
    "update": {"particles", "images", "decide", "sort"},
    "report": {"particles", "images", "decide", "classify", "sort", *METHODS},
    "cli": {
        "particles",
        "images",
        "decide",
        "classify",
        "sort",
        "update",
        "report",
        "simulate",
        *METHODS,
    },
    "__main__": {"cli"},
}


def room_of(name):
    """Folder or module right under the package; empty for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_name(path):
    parts = ["fastsort", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path):
    """Names of the package's modules that a file imports anywhere, inside functions too."""
    public = set(fastsort.__all__) | {"__version__"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "fastsort")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module == "fastsort":
                names = {alias.name for alias in node.names}
                yield from (f"fastsort.{name}" for name in names - public)
                yield "fastsort"
            elif node.module and node.module.startswith("fastsort."):
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path):
    room = room_of(module_name(path))
    assert room in MAY_IMPORT, f"{room} has no place in the house"
    for imported in imported_modules(path):
        target = room_of(imported)
        assert target in {room} | GROUND | MAY_IMPORT[room], f"{module_name(path)} imports {imported}"


def test_rooms_allowed_point_one_way():
    order = ["particles", "images", "radial", "subspaces", "invariants", "classify", "decide", "sort"]
    order += ["update", "report", "cli"]
    for i, room in enumerate(order):
        assert MAY_IMPORT[room] - {"simulate"} <= set(order[:i])
        if room in METHODS:
            assert not MAY_IMPORT[room] & METHODS


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_kernels_are_compiled_in_one_place_and_serial(path):
    for node in ast.walk(ast.parse(path.read_text())):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        assert name not in ("prange", "guvectorize")
        # Of BLAS there, and not of numba.
        assert name != "set_num_threads" or path.name == "_process.py"
        if isinstance(node, ast.keyword) and node.arg == "parallel":
            assert not (isinstance(node.value, ast.Constant) and node.value.value is True)
        if path.name != "_jit.py":
            assert name not in ("njit", "jit", "vectorize", "cfunc")
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "numba" for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "numba"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_kernels_compare_with_infinity(path):
    """Compiled with reassociation, isfinite and isnan of a sum say what they like."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and "kernel" in map(ast.unparse, node.decorator_list):
            names = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            assert not names & {"isfinite", "isnan", "isinf"}, f"{node.name} in {path}"


def python(code, **environment):
    """Run code in a fresh interpreter and return what it prints."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_brings_nothing_heavy():
    code = (
        "import sys, fastsort;"
        "print(*{'numba', 'scipy', 'pandas', 'matplotlib', 'sklearn', 'joblib', 'starfile', 'mrcfile'}"
        " & set(sys.modules))"
    )
    assert python(code) == ""


def test_import_is_quick():
    def least_time(code):
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            python(code)
            times.append(time.perf_counter() - begin)
        return min(times)

    assert least_time("import fastsort") - least_time("pass") < 0.2


@pytest.mark.parametrize("name", fastsort.__all__)
def test_public_names_are_there_and_explained(name):
    thing = getattr(fastsort, name)
    assert thing.__name__ == name
    assert len(thing.__doc__.strip()) > 20
    assert name in dir(fastsort)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'sort_particle'"):
        fastsort.sort_particle  # noqa: B018


INSPECT = """
import numpy as np
from fastsort.images.normalize import _inspect, inspect_pixels
images = np.random.default_rng(0).normal(size=(60, 16, 16)).astype(np.float32)
images[3] = 1
print(int(inspect_pixels(images).codes.sum()), type(_inspect._cache).__name__)
"""


def test_kernels_run_without_a_cache():
    with_cache, without = python(INSPECT).split(), python(INSPECT, FASTSORT_NUMBA_CACHE="0").split()
    assert without[0] == with_cache[0]
    assert with_cache[1] == "FunctionCache"
    assert without[1] == "NullCache"


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write anywhere")
def test_kernels_run_where_no_cache_can_be_written(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    expected = python(INSPECT, FASTSORT_NUMBA_CACHE="0").split()[0]
    assert python(INSPECT, NUMBA_CACHE_DIR=str(closed / "cache")).split()[0] == expected
