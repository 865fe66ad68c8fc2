"""Documents: every block of commands or Python in them runs, and what they name exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy.ndimage import zoom

import fastsort as fs
from fastsort.particles.mrc import write_stack

PACKAGE = Path(fs.__file__).parent
ROOT = PACKAGE.parent
GUIDES = sorted((PACKAGE / "guides").glob("*.md"))
FOR_USERS = [ROOT / "README.md", *GUIDES]
FOR_DEVELOPERS = [PACKAGE / "README.md", ROOT / "tests" / "README.md", ROOT / ".github" / "CONTRIBUTING.md"]
RUN = [*FOR_USERS, *FOR_DEVELOPERS]
ALL = [*RUN, ROOT / ".github" / "CHANGELOG.md", *sorted((ROOT / "benchmarks").glob("*.md"))]
# Of these two lines of the README the gate runs the second, and so the installation of both. What the first
# starts when it has installed the package is run here.
SET_UP = re.compile(r"python3 -m venv \.venv && \.venv/bin/pip install -q -e '\.\[\w+\]' && \.venv/bin/(.*)")
COMMANDS = (
    *("pick", "sort", "watch", "cryosparc", "apply", "report"),
    *("info", "map", "denoise", "simulate", "demo", "guide"),
)
# How a line begins that somebody might want to run.
COMMAND = r"^\s*(?:\$ |>>> |(?:fastsort|pip|pytest|dask) \w|python3? [-\w]|import \w|from \w+ import)"
# Programs that run until they are stopped.
ENDLESS = re.compile(r"dask (scheduler|worker)\b")
BOX, N_FIRST, N_ALL, N_STACK = 64, 360, 480, 200
PIXEL_SIZE = 3.0
# Micrographs of so many pixels, with so many particles in rows and columns, and picks of other places.
SIDE, N_SIDE, N_OTHER = 1400, 5, 8
# Tests in the copy of the checkout in which developers' commands run: quick ones.
SOME_TESTS = ("conftest.py", "test_recentre.py", "test_duplicates.py")

# In place of SLURM: a cluster whose jobs are processes of this machine, each of them one worker.
DASK_JOBQUEUE = """
import atexit, subprocess, sys
from distributed import LocalCluster

class SLURMCluster:
    def __init__(self, *, cores, processes, memory, walltime, queue, job_script_prologue):
        self.local = LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=":0")
        self.scheduler_address = self.local.scheduler_address
        self.command = [sys.executable, "-m", "dask", "worker", self.scheduler_address, "--nthreads", "1"]

    def job_script(self):
        return " ".join(self.command)

    def scale(self, jobs):
        for _ in range(jobs // 2):
            atexit.register(subprocess.Popen(self.command, stderr=subprocess.DEVNULL).kill)
"""


class Block(NamedTuple):
    """One fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def place(self):
        return f"{name_of(self.document)}, line {self.line}"


def name_of(document):
    return document.relative_to(ROOT).as_posix()


def blocks_of(document):
    fences = re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", document.read_text(), re.MULTILINE)
    before = document.read_text()
    return [Block(document, before.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in fences]


def prose_of(document):
    """A document without its blocks."""
    return re.sub(r"^```.*\n(?:.*\n)*?```$", "", document.read_text(), flags=re.MULTILINE)


# The inputs, under the names that the documents use.


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents") / "inputs"
    made = {"box": BOX, "pixel_size": PIXEL_SIZE, "fill": 2 / 3, "snr": 0.2, "junk": "all", "ctf": True}
    images, truth = fs.simulate_particles(2 * N_ALL // 3, N_ALL // 3, **made, seed=1)
    star = fs.write_project(folder, images, truth)
    # Another name than the stacks have that the documents simulate: those of the working folder come first.
    (folder / "Extract").rename(folder / "Stacks")
    lines = star.read_text().replace("Extract/", "Stacks/").splitlines(keepends=True)
    (folder / "later.star").write_text("".join(lines))
    rows = [number for number, line in enumerate(lines) if "@" in line]
    assert len(rows) == N_ALL
    (folder / "particles.star").write_text("".join(lines[: rows[N_FIRST]]))
    write_stack(folder / "particles.mrcs", [images[:N_STACK]], PIXEL_SIZE, N_STACK, BOX)
    (folder / "J24" / "extract").mkdir(parents=True)
    write_stack(folder / "J24" / "extract" / "a.mrc", [images[:N_STACK]], PIXEL_SIZE, N_STACK, BOX)
    write_cryosparc_job(folder / "J24", truth)
    write_micrographs(folder)
    (folder / "kept_images.txt").write_text("".join(f"{i}\n" for i in range(0, 90, 3)))
    (folder / "dask_jobqueue.py").write_text(DASK_JOBQUEUE)
    return folder


def write_cryosparc_job(folder, truth):
    """Write the particles of a job, and the passthrough file with what else is known of them."""
    uid = np.arange(N_STACK, dtype=np.uint64) + 7
    particles = {
        "blob/path": np.full(N_STACK, b"J24/extract/a.mrc"),
        "blob/idx": np.arange(N_STACK, dtype=np.uint32),
        "blob/shape": np.full((N_STACK, 2), BOX, np.uint32),
        "blob/psize_A": np.full(N_STACK, PIXEL_SIZE, np.float32),
        "blob/sign": np.ones(N_STACK, np.float32),
    }
    ctf = {
        "ctf/accel_kv": truth.ctf.voltage,
        "ctf/cs_mm": truth.ctf.spherical_aberration,
        "ctf/amp_contrast": truth.ctf.amplitude_contrast,
        "ctf/df1_A": truth.ctf.defocus_u,
        "ctf/df2_A": truth.ctf.defocus_v,
        "ctf/df_angle_rad": np.radians(truth.ctf.defocus_angle),
        "ctf/phase_shift_rad": np.radians(truth.ctf.phase_shift),
    }
    more = {name: values[:N_STACK].astype(np.float32) for name, values in ctf.items()}
    more["location/micrograph_path"] = np.array([b"m%d.mrc" % m for m in truth.micrograph[:N_STACK]])
    more["location/micrograph_shape"] = np.full((N_STACK, 2), 4096, np.uint32)
    more["location/micrograph_psize_A"] = np.full(N_STACK, PIXEL_SIZE, np.float32)
    more["location/center_x_frac"] = more["location/center_y_frac"] = np.linspace(0.1, 0.9, N_STACK)
    for name, columns in (("particles", particles), ("passthrough_particles", more)):
        columns = {"uid": uid, **columns}
        rows = np.zeros(N_STACK, [(label, v.dtype, v.shape[1:]) for label, v in columns.items()])
        for label, values in columns.items():
            rows[label] = values
        with open(folder / f"cryosparc_P12_J24_{name}.cs", "wb") as file:
            np.save(file, rows)


def write_micrographs(folder):
    """Write three micrographs with dark particles, picks in them, and RELION's list of the micrographs."""
    clean, _ = fs.simulate_particles(N_SIDE**2, 0, box=BOX, snr=np.inf, seed=2)
    step = SIDE // N_SIDE
    large = zoom(clean, (1, step / BOX, step / BOX), order=1)
    large /= large.std()
    rng = np.random.default_rng(3)
    (folder / "mics").mkdir()
    (folder / "picks").mkdir()
    rows = []
    for number in range(3):
        pixels = rng.normal(size=(SIDE, SIDE))
        picks = []
        for place, particle in enumerate(large):
            y, x = (step * k for k in divmod(place, N_SIDE))
            pixels[y : y + step, x : x + step] -= particle
            picks.append((x + step // 2, y + step // 2))
        picks += [tuple(place) for place in rng.integers(0, SIDE, (N_OTHER, 2))]
        write_stack(folder / "mics" / f"m{number}.mrc", [pixels[None].astype(np.float32)], 1.0, 1, SIDE)
        table = "".join(f"{x} {y}\n" for x, y in picks)
        star = f"data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n{table}"
        (folder / "picks" / f"m{number}.star").write_text(star)
        rows.append(f"mics/m{number}.mrc 1 {10000 + 1000 * number} {10500 + 1000 * number} 20\n")
    optics = "_rlnOpticsGroup\n_rlnMicrographPixelSize\n_rlnVoltage\n_rlnSphericalAberration\n"
    optics += "_rlnAmplitudeContrast\n1 1.0 300 2.7 0.1\n"
    labels = "_rlnMicrographName\n_rlnOpticsGroup\n_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n"
    text = f"data_optics\n\nloop_\n{optics}\ndata_micrographs\n\nloop_\n{labels}{''.join(rows)}"
    (folder / "micrographs_ctf.star").write_text(text)


@pytest.fixture
def scratch(inputs, tmp_path):
    """A folder with the inputs, of a name that no result has."""
    return Path(shutil.copytree(inputs, tmp_path / "scratch"))


@pytest.fixture
def checkout(tmp_path):
    """A checkout with some of the tests, in which the commands for developers run."""
    folder = tmp_path / "checkout"
    (folder / "tests").mkdir(parents=True)
    (folder / "fastsort").symlink_to(PACKAGE)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in SOME_TESTS:
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    return folder


# What the documents name is run as it stands.


def save_choices(folder, command):
    """Save some choices, as the page does to which a command applies them."""
    # The folder stands after the choices, or is the one that learns from them.
    name = (re.search(r"choices\.json (\w+)/", command) or re.search(r"-o (\w+)/", command))[1]
    page = (folder / name / "report.html").read_text()
    images, mark = (re.search(rf'"{key}":"?(\w+)', page)[1] for key in ("n", "mark"))
    told = {"kind": "fastsort choices", "version": 1, "images": int(images), "mark": mark}
    rest = {"threshold": {"best": 40} if name == "sorted" else None, "keep": [[3, 5]], "reject": [[8, 8]]}
    (folder / "kept_places.txt").write_text("0\n2\n")
    (folder / "choices.json").write_text(json.dumps({**told, **rest}))


class Runner:
    """Runs the blocks of a document in one folder, one after another."""

    def __init__(self, folder):
        self.folder = folder
        self.servers = []
        programs = folder.with_name("bin")
        programs.mkdir()
        (programs / "fastsort").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fastsort "$@"\n')
        (programs / "fastsort").chmod(0o755)
        path = [programs, Path(sys.executable).parent, os.environ["PATH"]]
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join(map(str, path)),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "MPLBACKEND": "Agg",
        }
        self.environment.pop("PYTEST_ADDOPTS", None)
        self.ports = {port: free_port() for port in ("8000", "8786", "39000")}

    def here(self, text):
        """The same text with free addresses of this machine, and no more workers than it has cores."""
        text = text.replace("node17", "127.0.0.1").replace("--nworkers 16", "--nworkers 2")
        text = text.replace(
            "dask scheduler ", "dask scheduler --host 127.0.0.1 --port 8786 --dashboard-address :0 "
        )
        # A command that goes on until somebody stops it.
        text = re.sub(
            "^fastsort watch", "timeout --preserve-status -s INT 20 fastsort watch", text, flags=re.MULTILINE
        )
        for port, free in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(free), text)
        return text

    def run(self, block):
        if block.language == "bash":
            if "choices.json" in block.text:
                save_choices(self.folder, block.text)
            if "fastsort cryosparc" in block.text:
                self.start_cryosparc()
            for line in self.here(block.text).splitlines():
                if ENDLESS.match(line):
                    self.start(["bash", "-c", f"exec {line}"], "8786")
            rest = [line for line in self.here(block.text).splitlines() if not ENDLESS.match(line)]
            self.finish(block, ["bash", "-euo", "pipefail", "-c", "\n".join(rest)])
        elif block.language == "python":
            script = self.folder / f"block_{block.line}.py"
            script.write_text(self.here(block.text))
            if "serve_forever" in block.text:
                self.start([sys.executable, str(script)], "8000")
            else:
                self.finish(block, [sys.executable, str(script)])

    def start_cryosparc(self):
        """Start a small server in place of cryoSPARC, and log in there."""
        port, program = self.ports["39000"], ROOT / "tests" / "standin_cryosparc.py"
        login = {
            "BASE_URL": f"http://127.0.0.1:{port}",
            "EMAIL": "ali@example.com",
            "PASSWORD": "open sesame",
        }
        self.environment |= {f"CRYOSPARC_{name}": value for name, value in login.items()}
        self.start([sys.executable, str(program), str(self.folder), str(port)], "39000")

    def finish(self, block, command):
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{block.place} fails:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert "Traceback" not in done.stderr, f"{block.place}:\n{done.stderr[-4000:]}"
        # What is asked over the network says so in its answer.
        assert '"error"' not in done.stdout, f"{block.place}:\n{done.stdout[-2000:]}"

    def start(self, command, port):
        """Start a program that does not end by itself, and wait until its port answers."""
        self.servers.append(
            subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.servers[-1].poll() is None, f"{command} ended"
            with socket.socket() as door:
                if door.connect_ex(("127.0.0.1", self.ports[port])) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError(f"{command} does not answer")

    def stop(self):
        for server in self.servers[::-1]:
            server.terminate()
        for server in self.servers:
            server.wait(30)


def free_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


@pytest.fixture
def run_document():
    runners = []

    def run(document, folder):
        runners.append(Runner(folder))
        for block in blocks_of(document):
            set_up = SET_UP.match(block.text)
            if set_up is None:
                runners[-1].run(block)
            elif not set_up[1].startswith("pytest"):
                runners[-1].run(block._replace(text=set_up[1]))

    yield run
    for runner in runners:
        runner.stop()


def marked(documents):
    marks = {True: [pytest.mark.slow, pytest.mark.cluster], False: [pytest.mark.slow]}
    return [
        pytest.param(document, marks=marks[document.stem == "clusters"], id=name_of(document))
        for document in documents
    ]


@pytest.mark.slow
@pytest.mark.parametrize("document", marked(FOR_USERS))
def test_users_can_run_every_block(document, scratch, run_document):
    needs = {"clusters": "distributed", "cryosparc": "cryosparc"}
    if document.stem in needs:
        pytest.importorskip(needs[document.stem])
    run_document(document, scratch)
    for folder, files in results_named_by(document):
        missing = [name for name in files if not (scratch / folder / name).exists()]
        assert missing == [], f"{name_of(document)} promises them in {folder}/"


@pytest.mark.parametrize("document", marked(FOR_DEVELOPERS))
def test_developers_can_run_every_block(document, checkout, run_document):
    run_document(document, checkout)


def results_named_by(document):
    """Folders that a document has a table of, and the files that it names in them."""
    for table in re.finditer(
        r"^\| file in `(.+?)/` \|.*\n\|[-|]+\n((?:\|.*\n)+)", document.read_text(), re.MULTILINE
    ):
        names = [name for row in table[2].splitlines() for name in re.findall("`(.+?)`", row.split("|")[1])]
        # There are no rare views in a set this small.
        yield table[1], [name for name in names if not name.startswith("rescued")]


# What the documents are like.


@pytest.mark.parametrize("document", RUN, ids=name_of)
def test_every_block_says_what_it_is(document):
    text = document.read_text()
    assert len(re.findall("^```", text, re.MULTILINE)) == 2 * len(blocks_of(document))
    for block in blocks_of(document):
        assert block.language in ("bash", "python", "text"), block.place
        if block.language == "text":
            commands = re.findall(COMMAND, block.text, re.MULTILINE)
            assert commands == [], f"{block.place} is text, but has commands"
    # A block by indentation would not be run.
    assert re.findall(r"\n\n( {4,}|\t)\S.*", prose_of(document)) == []


def test_set_up_of_the_readme_is_that_of_the_gate():
    lines = [block.text.strip() for block in blocks_of(ROOT / "README.md") if SET_UP.match(block.text)]
    assert [SET_UP.match(line)[1] for line in lines] == ["fastsort demo", "pytest -q"]
    gate = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"s/(\^.*?\$)/", gate)[1].replace(r"\(", "(").replace(r"\)", ")")
    assert re.search(pattern, (ROOT / "README.md").read_text(), re.MULTILINE)[1] == lines[1]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("document", ALL, ids=name_of)
def test_documents_speak_of_the_product_alone(document):
    text = document.read_text()
    assert re.findall(r"(?<![\w.])/(?:work|tmp|root|home)\b\S*", text) == []
    words = r"\b(?:issues?|tickets?|sessions?|(?:task|helper|milestone) \d+)\b"
    assert re.findall(words, text, re.IGNORECASE) == []


@pytest.mark.parametrize("document", GUIDES, ids=name_of)
def test_a_guide_says_first_what_it_is_for(document):
    title, purpose, command = document.read_text().split("\n\n")[:3]
    assert title.startswith("# ")
    assert purpose.endswith(".") and len(re.findall(r"\.(?=\s|$)", purpose)) == 1
    assert command.startswith("```")
    assert f"](fastsort/guides/{document.name})" in (ROOT / "README.md").read_text()


def anchors_of(document):
    for heading in re.findall("^#+ (.*)$", prose_of(document), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", ALL, ids=name_of)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(document)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = document.parent / path if path else document
        assert there.is_file(), f"{name_of(document)} leads to {target}"
        # Of two headings with the same words the second gets a number.
        assert (
            not anchor or re.sub(r"-\d$", "", anchor) in anchors_of(there) or anchor in anchors_of(there)
        ), target


@pytest.fixture(scope="module")
def options():
    """All options of all commands."""
    texts = [
        subprocess.run(
            [sys.executable, "-m", "fastsort", *command, "--help"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for command in ((), *((name,) for name in COMMANDS))
    ]
    return set(re.findall(r"(?<!\S)--[a-z][a-z-]*", " ".join(texts).replace(",", " ").replace("[", " ")))


@pytest.mark.parametrize("document", FOR_USERS, ids=name_of)
def test_options_exist(document, options):
    named = set(re.findall(r"(?<=`)(--[a-z][a-z-]*)", prose_of(document)))
    assert named - options == set()


@pytest.mark.parametrize("document", [*RUN, ROOT / ".github" / "CHANGELOG.md"], ids=name_of)
def test_names_of_the_library_exist(document):
    for dotted in set(re.findall(r"\bfs((?:\.[a-z_A-Z]\w*)+)", document.read_text())):
        thing = fs
        for name in dotted[1:].split("."):
            assert hasattr(thing, name), f"{name_of(document)} names fs{dotted}"
            thing = getattr(thing, name)


def test_the_tree_names_every_file():
    tree = next(block for block in blocks_of(PACKAGE / "README.md") if block.language == "text")
    named, folders = set(), []
    for line in tree.text.splitlines()[1:]:
        indent, name, meaning = re.match(r"( +)(\S+) +(\S.*)?", line).groups()
        assert meaning, f"{tree.place}: nothing is said of {name}"
        folders = folders[: len(indent) // 2 - 1]
        if name.endswith("/"):
            folders.append(name)
        else:
            named.add("".join(folders) + name)
    there = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith(".pyc")
    }
    # The line of a room speaks for its __init__.py.
    there = {name for name in there if name == "__init__.py" or not name.endswith("/__init__.py")}
    assert sorted(there - named) == [], "these files want a line in fastsort/README.md"
    assert sorted(named - there) == [], "these lines of fastsort/README.md have no file"


def test_recipes_need_what_the_package_needs():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 does not read TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    recipes = ROOT / ".github" / "recipes"
    run = re.search(r"\n  run:\n(.*?)\n  run_constrained:", (recipes / "meta.yaml").read_text(), re.DOTALL)[1]
    needed = set(re.findall(r"- (\S+) (>=\S+)", run)) - {("python", project["requires-python"])}
    report = {("matplotlib-base", ">=3.8"), ("tqdm", ">=4.65")}
    assert needed - report == {tuple(re.split("(?=>=)", line)) for line in project["dependencies"]}
    assert {name.split("-")[0] + version for name, version in report} == {
        *project["optional-dependencies"]["report"]
    }
    extras = re.search(r"fastsort\[(\S+)\]", (recipes / "fastsort.def").read_text())[1].split(",")
    assert {*extras} <= {*project["optional-dependencies"]}
