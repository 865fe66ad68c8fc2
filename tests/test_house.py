"""The house: which way imports point, what importing costs, and where kernels may be compiled."""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import fastsort
from fastsort._jit import own_temporary_folder, told_of_compiling
from fastsort.images.normalize import inspect_pixels

PACKAGE = Path(fastsort.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
METHODS = {"radial", "subspaces", "invariants"}
# Modules on the ground, which import nothing that stands above them.
GROUND = {
    "_brief",
    "_bulk",
    "_checks",
    "_crop",
    "_disk",
    "_threshold",
    "_jit",
    "_lazy",
    "_parts",
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
        "denoising",
        "simulate",
        "classify",
        "denoise",
        "pick",
        "report",
        "sort",
        "update",
    },
    **{name: set() for name in GROUND},
    "particles": set(),
    "images": {"particles"},
    "radial": {"particles", "images"},
    "subspaces": {"particles", "images"},
    "invariants": {"particles", "images"},
    "decide": {"particles", "images", "picking", *METHODS},
    "picking": {"particles", "images"},
    "denoising": {"particles", "images", "subspaces", "invariants", "simulate"},
    "simulate": {"particles", "images"},
    "classify": {"particles", "images", "invariants", "denoise"},
    "sort": {"particles", "images", "decide", *METHODS},
    "update": {"particles", "images", "decide", "sort"},
    "pick": {"particles", "images", "picking"},
    "denoise": {"particles", "images", "denoising"},
    "report": {
        "particles",
        "images",
        "picking",
        "denoising",
        "decide",
        "classify",
        "denoise",
        "pick",
        "sort",
        *METHODS,
    },
    "cli": {
        "particles",
        "images",
        "decide",
        "classify",
        "denoise",
        "pick",
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


NAMES = {module_name(path) for path in MODULES}


def imported_modules(source):
    """Names of the package's modules that a source imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "fastsort")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full: from fastsort.room.file import name"
            if (node.module or "").split(".")[0] == "fastsort":
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                yield from inside & NAMES or {node.module}


def wrong_imports(name, source):
    """What is wrong with the imports of a module, in sentences."""
    room = room_of(name)
    for imported in imported_modules(source):
        if imported == "fastsort":
            yield f"{name} imports the package root, which stands above all: name the module that defines it"
        elif room_of(imported) not in {room} | GROUND | MAY_IMPORT[room]:
            yield f"{name} imports {imported}, which does not stand below it: move what both need down"


def circle(imports):
    """Return modules that import each other in a circle, or nothing."""
    done = set()

    def walk(name, way):
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        found = next(filter(None, (walk(other, [*way, name]) for other in sorted(imports.get(name, ())))), [])
        done.add(name)
        return found

    return next(filter(None, (walk(name, []) for name in sorted(imports))), [])


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path):
    name = module_name(path)
    assert room_of(name) in MAY_IMPORT, f"{room_of(name)} has no place in the house: give it one here"
    if name != "fastsort":
        assert not list(wrong_imports(name, path.read_text()))


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("fastsort.particles.mrc", "from fastsort import sort_particles", "imports the package root"),
        ("fastsort.report.page", "import fastsort", "imports the package root"),
        (
            "fastsort.images.crop",
            "def f():\n    from fastsort.sort import sort_particles",
            "fastsort.sort, which",
        ),
        ("fastsort.radial.filter", "from fastsort.subspaces import fit", "fastsort.subspaces.fit, which"),
        ("fastsort._checks", "from fastsort.particles.mrc import read_header", "does not stand below"),
    ],
)
def test_wrong_imports_are_seen(name, line, message):
    assert any(message in wrong for wrong in wrong_imports(name, line))


@pytest.mark.parametrize("room", sorted({room_of(name) for name in NAMES} - {""}))
def test_no_circle_within_a_room(room):
    imports = {
        module_name(path): {name for name in imported_modules(path.read_text()) if room_of(name) == room}
        for path in MODULES
        if room_of(module_name(path)) == room and path.name != "__init__.py"
    }
    assert not circle(imports), "these import each other: move what they share into a file of its own"


def test_circles_are_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"a"}}) == ["a", "a"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": {"beyond"}})


def test_rooms_allowed_point_one_way():
    order = ["particles", "images", "radial", "subspaces", "invariants", "picking", "denoising"]
    order += ["decide", "sort", "pick", "denoise", "classify", "update", "report", "cli"]
    for i, room in enumerate(order):
        assert MAY_IMPORT[room] - {"simulate"} <= set(order[:i])
        if room in METHODS:
            assert not MAY_IMPORT[room] & METHODS


def test_what_is_imported_is_declared():
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    declared = {re.match(r"[A-Za-z_-]+", line)[0] for line in re.findall(r'"([A-Za-z][^"]*>=[^"]*)"', text)}
    names = {"sklearn": "scikit-learn", "umap": "umap-learn", "cryosparc": "cryosparc-tools"}
    imported = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    foreign = imported - sys.stdlib_module_names - {"fastsort"}
    assert {names.get(name, name) for name in foreign} <= declared, "add the package to pyproject.toml"


def frozen_names(source):
    """What kernels read that their compiled code would keep when it changes: (kernel, name) pairs.

    The cache of compiled code looks at the kernel's own file alone. So a kernel may read constants and call
    kernels of this file, NumPy and math; all else is an argument.
    """
    tree = ast.parse(source)
    compiled = [node for node in tree.body if isinstance(node, ast.FunctionDef) and is_kernel(node)]
    constants = {
        target.id
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and is_constant(node.value, imports_of(tree))
        for left in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for target in ast.walk(left)
        if isinstance(target, ast.Name)
    }
    allowed = constants | {node.name for node in compiled} | {"np", "math"} | set(dir(builtins))
    for node in compiled:
        own = {arg.arg for arg in node.args.args}
        read = set()
        for statement in node.body:
            for part in ast.walk(statement):
                if isinstance(part, ast.Name):
                    (read if isinstance(part.ctx, ast.Load) else own).add(part.id)
        yield from ((node.name, name) for name in sorted(read - own - allowed))


def is_constant(value, imported):
    """Whether a value is made of literals, built-in functions and names of its own file."""
    parts = list(ast.walk(value))
    called = {ast.unparse(part.func) for part in parts if isinstance(part, ast.Call)}
    names = {part.id for part in parts if isinstance(part, ast.Name)}
    no_attributes = not any(isinstance(part, ast.Attribute) for part in parts)
    return no_attributes and called <= set(dir(builtins)) and not names & imported


def is_kernel(node):
    return {"kernel", "inlined"} & set(map(ast.unparse, node.decorator_list))


def imports_of(tree):
    nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)))
    return {(alias.asname or alias.name).split(".")[0] for node in nodes for alias in node.names}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_kernels_freeze_nothing_of_other_files(path):
    frozen = list(frozen_names(path.read_text()))
    assert not frozen, "pass these as arguments: compiled code in the cache would keep their old values"


def test_frozen_names_are_seen():
    source = """
import numpy as np
from fastsort._reasons import FLAT
from fastsort.images.disk import helper
OWN, ALSO = 3, (1, 2)
TAKEN = FLAT
MADE = helper()
@kernel
def called(x): return x + OWN
@kernel
def _bad(images, out):
    for i in range(len(images)):
        out[i] = called(ALSO[0]) + np.sqrt(FLAT) + helper(i) + TAKEN + MADE
def free(): return FLAT
"""
    assert list(frozen_names(source)) == [("_bad", name) for name in ("FLAT", "MADE", "TAKEN", "helper")]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_kernels_are_compiled_in_one_place_and_serial(path):
    for node in ast.walk(ast.parse(path.read_text())):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        assert name not in ("prange", "guvectorize")
        # Of BLAS there, and not of numba.
        assert name != "set_num_threads" or path.name == "_process.py"
        if isinstance(node, ast.keyword) and node.arg == "parallel":
            assert not (isinstance(node.value, ast.Constant) and node.value.value is True)
        # Networks are compiled by their own library.
        of_jax = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jax"
        if path.name != "_jit.py" and not of_jax:
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


def test_import_loads_little():
    """What takes time at import is what is loaded: NumPy, and a few small files of our own."""
    loaded = python(
        "import sys; before = set(sys.modules); import fastsort; print(*set(sys.modules) - before)"
    )
    own = {name for name in loaded.split() if name.split(".")[0] == "fastsort"}
    assert own <= {"fastsort", "fastsort._checks", "fastsort._lazy", "fastsort._types", "fastsort._version"}
    assert len(loaded.split()) < 250


def public_things():
    """Everything that a user may name: (name, thing), the rooms' names with their room."""
    for name in fastsort.__all__:
        thing = getattr(fastsort, name)
        if isinstance(thing, ModuleType):
            yield from ((f"{name}.{inside}", getattr(thing, inside)) for inside in thing.__all__)
        else:
            yield name, thing


PUBLIC = dict(public_things())
# The first name of each: an example need not run twice.
EXAMPLES = {thing: name for name, thing in reversed(PUBLIC.items())}.values()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_explained_with_types_that_can_be_read(name):
    thing = PUBLIC[name]
    assert thing.__name__ == name.split(".")[-1]
    assert len(thing.__doc__.strip()) > 20
    assert not re.search(r"\S ---|--- \S", thing.__doc__), "a heading has run into its paragraph"
    hints = typing.get_type_hints(thing)
    if not isinstance(thing, type):
        assert hints.keys() >= {"return", *inspect.signature(thing).parameters}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_public_names_have_examples_that_run(name):
    thing = PUBLIC[name]
    if isinstance(thing, type):
        pytest.skip("results and errors are shown by the functions that give them")
    examples = doctest.DocTestFinder(recurse=False).find(thing, name, globs={})
    assert any(test.examples for test in examples), f"{name} has no example: add one to its docstring"
    for test in examples:
        said = []
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
        assert not result.failed, "".join(said)


def test_names_are_listed_before_anything_is_loaded():
    listed = set(python("import fastsort; print(*dir(fastsort))").split())
    assert listed >= {*fastsort.__all__, *fastsort._FORMER}
    for room in fastsort._ROOMS:
        inside = set(python(f"import fastsort.{room} as room; print(*dir(room))").split())
        assert inside >= set(getattr(fastsort, room).__all__)


def test_few_names_stand_at_the_top():
    assert len(set(fastsort.__all__) - set(fastsort._ROOMS)) <= 19


@pytest.mark.parametrize("name", fastsort._FORMER)
def test_names_of_earlier_versions_still_work(name):
    room = fastsort._FORMER[name].split(".")[1]
    assert getattr(fastsort, name) is getattr(getattr(fastsort, room), name)
    assert name not in fastsort.__all__


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


@pytest.mark.slow
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


KERNEL = """
from fastsort._jit import kernel

@kernel
def added(x):
    return x + {number}
"""


def test_kernels_are_kept_in_a_temporary_folder_of_our_own(tmp_path, monkeypatch):
    source, temporary = tmp_path / "source", tmp_path / "temporary"
    source.mkdir()
    temporary.mkdir(mode=0o700)
    # Where no folder can be made, not even by the administrator.
    (source / "__pycache__").write_text("")
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, f"{os.devnull}/no")
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("sys.dont_write_bytecode", True)

    def cache_of(number):
        own_temporary_folder.cache_clear()
        (source / f"kernel{number}.py").write_text(KERNEL.format(number=number))
        spec = importlib.util.spec_from_file_location(
            f"fastsort.kernel{number}", source / f"kernel{number}.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        said = []
        with told_of_compiling(said.append):
            assert module.added(1) == 1 + number and module.added(1.5) == 1.5 + number
        assert len(said) == 1
        return type(module.added._cache).__name__, said[0]

    folder = temporary / f"fastsort-cache-{os.getuid()}"
    kind, said = cache_of(1)
    assert kind == "FunctionCache" and said.startswith("compiling (the first time")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert any(path.name.startswith("kernel1.added") for path in folder.rglob("*.nbi"))
    # Somebody else may have written there, or may put another folder in its place.
    folder.chmod(0o770)
    kind, said = cache_of(2)
    assert kind == "NullCache" and "no folder can be written" in said
    folder.chmod(0o700)
    temporary.chmod(0o777)
    assert cache_of(3)[0] == "NullCache"
    temporary.chmod(0o1777)
    assert cache_of(4)[0] == "FunctionCache"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert cache_of(5)[0] == "NullCache"
    own_temporary_folder.cache_clear()


def test_nothing_is_said_of_kernels_that_are_in_the_cache():
    images = np.ones((2, 16, 16), np.float32)
    inspect_pixels(images)
    said = []
    with told_of_compiling(said.append):
        inspect_pixels(images)
    assert said == []
