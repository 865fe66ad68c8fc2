"""What commands say: progress without a terminal, logs, JSON, limits, and exit codes."""

from __future__ import annotations

import errno
import io
import json
import re
import resource
import signal
import sys
import time

import numpy as np
import pytest

import fastsort as fs
from fastsort import cli
from fastsort._disk import on_disk
from fastsort.cli.limits import how_passed, read_limit
from fastsort.particles.mrc import write_stack
from fastsort.report import progress as progress_module
from fastsort.report.progress import progress_bar
from fastsort.simulate import simulate_micrographs, simulate_particles, write_micrographs, write_project

# The first runs of a gate compile, and say so.
LINE = re.compile(
    r"\d\d:\d\d:\d\d ((sorting|mapping|picking|denoising) \d+ %, [\d,]+ of [\d,]+ \w+|compiling.*)"
)
RADIAL = ("--method", "radial")


def call(*arguments):
    """Run the command in this process, which saves the imports."""
    try:
        return cli.main(list(map(str, arguments)))
    except SystemExit as stop:
        return stop.code


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    images, truth = simulate_particles(60, 60, snr=0.5, box=32, junk="all", n_micrographs=3, seed=1)
    return write_project(tmp_path_factory.mktemp("project") / "p", images, truth)


# Progress.


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("where", ["file", "terminal", "quiet"])
def test_plain_lines_come_a_few_times_a_minute(monkeypatch, where):
    """On a terminal a bar takes their place, but the log gets them in any case."""
    now = 1000.0
    stream = Terminal() if where == "terminal" else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    logged = []
    with progress_bar("sorting", where == "quiet", log=logged.append) as progress:
        for second in range(121):
            now = 1000.0 + second
            progress(100 * second, 12000)
        progress(12000, 12000)
    lines = [line.split(" ", 1)[1] for line in logged]
    assert lines[0] == "sorting 0 %, 0 of 12,000 images" and lines[1].startswith("sorting 16 %, 2,000 of")
    assert lines[-1] == "sorting 100 %, 12,000 of 12,000 images" and len(lines) == 7
    assert all(LINE.fullmatch(line) for line in logged)
    said = stream.getvalue()
    if where == "file":
        assert said.splitlines() == logged
    else:
        assert LINE.search(said) is None and ("sorting" in said) == (where == "terminal")


def test_plain_lines_count_what_there_is_to_count(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("picking", unit="micrographs") as progress:
        progress(3, 4)
    assert stream.getvalue()[9:] == "picking 75 %, 3 of 4 micrographs\n"
    with progress_bar("picking", quiet=True) as progress:
        assert progress is None


# Logs.


def test_log_gets_progress_summary_and_errors_of_one_run_after_another(
    project, tmp_path, capsys, no_pictures
):
    log, out = tmp_path / "run.log", tmp_path / "out"
    arguments = ("sort", project, "-o", out, *RADIAL, "--log", log)
    assert call(*arguments, "--quiet") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    first = log.read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:]{8} fastsort sort .*p/particles.star -o .*", first[0])
    assert any(LINE.fullmatch(line) for line in first)
    assert any(line.startswith("120 images: ") for line in first)
    assert first[-1].endswith(f"results in {out}")

    assert call(*arguments) == 1
    assert "--overwrite" in capsys.readouterr().err
    both = log.read_text().splitlines()
    assert both[: len(first)] == first and len(both) == len(first) + 2
    assert re.match(r"\d\d:\d\d:\d\d error: output folder .* is not empty", both[-1])

    assert call(*arguments, "--overwrite", "--fail-if", "junk>0.01") == 3
    captured = capsys.readouterr()
    third = log.read_text().splitlines()[len(both) :]
    # What is said elsewhere stands in the log too.
    assert {*captured.out.splitlines(), *captured.err.splitlines()} <= {*third}
    assert sum(LINE.fullmatch(line) is not None for line in captured.err.splitlines()) >= 1
    assert third[-1].startswith("fastsort: limit junk>0.01 passed")


def test_log_tells_of_interruptions_and_defects(project, tmp_path, monkeypatch, capsys):
    log = tmp_path / "run.log"
    arguments = ("sort", project, "-o", tmp_path / "out", *RADIAL, "--log", log)

    def end_with(error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr("fastsort.sort.ask_methods", fail)

    end_with(KeyboardInterrupt())
    assert call(*arguments) == 130
    assert log.read_text().endswith(
        f"error: interrupted: the same command goes on from {tmp_path}/.out.work\n"
    )
    end_with(ZeroDivisionError("two\nlines"))
    with pytest.raises(ZeroDivisionError):
        call(*arguments)
    assert log.read_text().splitlines()[-1].endswith(r"error: ZeroDivisionError('two\nlines')")


@pytest.mark.parametrize(
    ("place", "words"),
    [("out/run.log", "would lie in the folder"), ("nowhere/run.log", "No such file"), (".", "directory")],
)
def test_log_that_cannot_be_is_refused_before_any_work(project, tmp_path, capsys, place, words):
    assert call("sort", project, "-o", tmp_path / "out", "--log", tmp_path / place) == 1
    said = capsys.readouterr().err
    assert said.startswith("fastsort: error: ") and said.count("\n") == 1 and words in said
    assert names_in(tmp_path) == []


def test_full_disk_under_the_log_ends_no_run(project, tmp_path, monkeypatch, no_pictures):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastsort.cli.talk._opened", lambda *_: Full())
    assert call("sort", project, "-o", tmp_path / "out", *RADIAL, "--log", tmp_path / "l", "--quiet") == 0
    assert "kept.star" in names_in(tmp_path / "out")


# JSON.


def printed_summary(capsys, out):
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed == json.loads((out / "summary.json").read_text())
    assert all(LINE.fullmatch(line) for line in captured.err.splitlines())
    return printed


def test_json_of_a_sort_is_its_summary_and_nothing_else(project, tmp_path, capsys, no_pictures):
    out, log = tmp_path / "out", tmp_path / "log"
    assert call("sort", project, "-o", out, *RADIAL, "--json", "--log", log) == 0
    assert printed_summary(capsys, out)["images"] == 120
    assert "120 images: " in log.read_text()
    assert call("sort", project, "-o", out, *RADIAL, "--json", "--quiet", "--overwrite") == 0
    assert printed_summary(capsys, out)["images"] == 120


@pytest.mark.slow
def test_json_and_log_of_the_other_long_commands(project, tmp_path, capsys):
    log = tmp_path / "log"
    options = ("--json", "--log", log)
    assert call("map", project, "-o", tmp_path / "map", "--classes", 2, "--embedding", "pca", *options) == 0
    assert printed_summary(capsys, tmp_path / "map")["classes"] == 2
    choice = ("map", tmp_path / "map", "--keep-classes", "1", "-o", tmp_path / "one", *options)
    assert call(*choice) == 0
    assert "kept" in printed_summary(capsys, tmp_path / "one")
    arguments = ("--method", "wiener", *options)
    assert call("denoise", project, "-o", tmp_path / "denoised", *arguments) == 0
    assert printed_summary(capsys, tmp_path / "denoised")["method"] == "wiener"
    made = simulate_micrographs(2, (260, 260), diameter=160, pixel_size=4, snr=0.3, seed=1)
    write_micrographs(tmp_path / "mics", made)
    pattern = tmp_path / "mics" / "Micrographs" / "*.mrc"
    assert call("pick", pattern, "-o", tmp_path / "picked", "--diameter", 160, *options) == 0
    assert printed_summary(capsys, tmp_path / "picked")["micrographs"] == 2
    text = log.read_text()
    for word in ("mapping", "denoising", "picking"):
        assert re.search(rf"^[\d:]{{8}} {word} \d+ %, ", text, re.MULTILINE), word
    assert len(re.findall(r"results in ", text)) == 4


# Limits.


@pytest.mark.parametrize("text", ["junk>0.25", "junk > .25", " junk>0.25 "])
def test_limits_that_can_be_read(text):
    assert read_limit(text).share == 0.25


@pytest.mark.parametrize(
    "text", ["junk", "junk>1.5", "junk>1", "junk<0.5", "junk>", "kept>0.5", "", "junk>nan"]
)
def test_wrong_limits_are_wrong_usage(text, tmp_path, capsys):
    assert call("sort", "a.star", "-o", tmp_path / "out", "--fail-if", text) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "junk>SHARE" in said[1] and repr(text) in said[1]
    assert ("in quotes" in said[1]) == (text == "junk")


def test_limits_compare_with_the_share_and_with_what_is_known():
    summary = {"images": 200, "rejected": 100, "errors": {"known": True, "remark": ""}}
    assert how_passed(read_limit("junk>0.5"), summary) is None
    assert "100 of 200 images are rejected, a share of 0.500" in how_passed(read_limit("junk>0.49"), summary)
    assert how_passed(read_limit("unknown"), summary) is None
    unknown = {**summary, "errors": {"known": False, "remark": "Too few."}}
    assert how_passed(read_limit("unknown"), unknown).endswith("errors cannot be estimated: Too few")
    assert "one method" in how_passed(read_limit("unknown"), {**summary, "errors": None})


def test_passed_limits_are_code_3_and_the_results_are_there(project, tmp_path, capsys, no_pictures):
    out = tmp_path / "out"
    arguments = ("sort", project, "-o", out, *RADIAL, "--discard", 30, "--quiet", "--overwrite")
    assert call(*arguments, "--fail-if", "junk>0.25") == 0
    assert capsys.readouterr().err == ""
    limits = ("--fail-if", "junk>0.2", "--fail-if", "unknown", "--fail-if", "junk>0.3")
    assert call(*arguments, *limits) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0] == "fastsort: limit junk>0.2 passed: 30 of 120 images are rejected, a share of 0.250"
    assert said[1].startswith("fastsort: limit unknown passed: ")
    assert json.loads((out / "summary.json").read_text())["rejected"] == 30


# Times.


def test_printed_time_is_that_of_the_whole_command(project, tmp_path, monkeypatch, capsys, no_pictures):
    from fastsort.cli import sort

    original = sort.open_input

    def slow(options):
        time.sleep(1.5)
        return original(options)

    monkeypatch.setattr(sort, "open_input", slow)
    begin = time.perf_counter()
    assert call("sort", project, "-o", tmp_path / "out", *RADIAL) == 0
    whole = time.perf_counter() - begin
    printed = float(re.search(r"^([\d.]+) s, ", capsys.readouterr().out, re.MULTILINE)[1])
    total = json.loads((tmp_path / "out" / "summary.json").read_text())["seconds"]["total"]
    assert total + 1.4 < printed <= whole + 0.1


# Usage.


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (
            ["sort", "a.star", "-o", "out", "--diametr", "128"],
            "no option --diametr: did you mean --diameter?",
        ),
        (["sort", "a.star", "--ouput=out"], "no option --ouput: did you mean --output?"),
        (["sort", "a.star", "-output", "out"], "no option -output: did you mean --output?"),
        (["map", "a.star", "-o", "out", "--clases", "3"], "did you mean --classes?"),
        (["sort", "a.star", "-o", "out", "--zzzz"], "no option --zzzz\n"),
        (["sort", "a.star", "b.star", "-o", "out"], "too many names: b.star: give one set of particles"),
        (["srot", "a.star"], "no command srot: did you mean sort?"),
        (
            ["sort", "a.mrc", "b.mrc", "c.mrc", "d.mrc", "e.mrc", "-o", "out"],
            "b.mrc, c.mrc, d.mrc and 1 more",
        ),
        (["denoise", "a.map", "b.map", "-o", "out"], "'mics/*.mrc' in quotes"),
        (
            ["sort", "a.star", "-o", "out", "--jobs", "0"],
            "must be a whole number, or -1 for all cores; got '0'",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_says_what_was_meant(arguments, advice, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    said = capsys.readouterr().err
    assert advice in said and said.count("\n") == 2 and names_in(tmp_path) == []


def test_values_that_look_like_options_are_values(tmp_path, capsys):
    assert call("sort", "a.star", "-o", tmp_path / "out", "--jobs", "-1", "--discard", "-3") == 1
    assert "a.star does not exist" in capsys.readouterr().err


# The first run of an update.


def test_update_of_nothing_is_the_first_run(project, tmp_path, capsys, no_pictures, monkeypatch):
    out = tmp_path / "out"
    # Without methods that need more images.
    from fastsort import sort

    original, seen = sort.sort_particles, []

    def alone(particles, **parameters):
        seen.append(parameters)
        return original(particles, **{**parameters, "method": "radial"})

    monkeypatch.setattr(sort, "sort_particles", alone)
    assert call("sort", project, "-o", out, "--update", "--judge-again", "--discard", 7) == 0
    captured = capsys.readouterr()
    assert "120 images: 113 kept" in captured.out and "new image" not in captured.out
    assert seen[0]["discard"] == 7 and seen[0]["seed"] == 0 and len(seen) == 1
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("held", ["notes.txt", "summary.json"])
def test_update_refuses_a_folder_of_other_things(project, tmp_path, capsys, held):
    (tmp_path / held).write_text("{}")
    assert call("sort", project, "-o", tmp_path, "--update") == 1
    said = capsys.readouterr().err
    assert "holds no finished run" in said and said.count("\n") == 1
    assert names_in(tmp_path) == [held]


def test_update_with_one_method_is_refused_before_it_is_too_late(project, tmp_path, capsys):
    assert call("sort", project, "-o", tmp_path / "out", "--update", *RADIAL) == 1
    assert "leave out --method" in capsys.readouterr().err and names_in(tmp_path) == []


@pytest.mark.slow
def test_too_few_images_to_learn_from_are_sorted_again_with_those_that_came(tmp_path, capsys, no_pictures):
    images, truth = simulate_particles(60, 60, snr=0.5, box=32, junk="all", seed=3)
    star = write_project(tmp_path / "p", images, truth)
    whole = star.read_text()
    lines = whole.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if "@" in line)
    star.write_text("".join(lines[: first + 10]))
    arguments = ("sort", star, "-o", tmp_path / "out", "--update")
    assert call(*arguments) == 0
    assert "10 images: " in capsys.readouterr().out
    star.write_text(whole)
    assert call(*arguments) == 0
    assert "120 images: " in capsys.readouterr().out
    star.write_text("".join(lines[: first + 100]))
    assert call(*arguments) == 0
    said = capsys.readouterr().out
    assert "0 new images; 20 images removed from the input since the earlier run; models kept" in said


# Full disks.


@pytest.fixture
def small_files():
    """No file may grow beyond a size, as on a disk that is nearly full; call with the size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_says_where_and_how_much_is_needed_and_the_run_goes_on(
    project, tmp_path, capsys, no_pictures, small_files
):
    arguments = ("sort", project, "-o", tmp_path / "out", *RADIAL, "--jobs", 1)
    small_files(100_000)
    assert call(*arguments, "--quiet") == 1
    small_files(resource.RLIM_INFINITY)
    said = capsys.readouterr().err
    work = tmp_path / ".out.work"
    # 120 working images of 32 px in half precision.
    place = rf"File too large \(0\.2 MB needed, [\d,.]+ MB free\): {work}/images.work"
    hint = f"when there is room, the same command goes on from {work}"
    assert re.fullmatch(f"fastsort: error: {place}; {hint}\n", said)
    assert names_in(tmp_path) == [".out.work"]
    assert call(*arguments) == 0 and names_in(tmp_path) == ["out"]


def test_stack_that_has_no_room_is_named(tmp_path, small_files):
    small_files(100_000)
    with pytest.raises(OSError, match=r"1\.0 MB needed") as found:
        write_stack(tmp_path / "kept.mrcs", [np.zeros((250, 32, 32), np.float32)], 1.0, 250, 32)
    assert found.value.filename == str(tmp_path / "kept.mrcs") and names_in(tmp_path) == []


def test_errors_that_say_where_they_were_stay_as_they_are(tmp_path):
    for error in (OSError(errno.ENOSPC, "full", "elsewhere"), OSError(errno.EIO, "broken"), ValueError("no")):
        with pytest.raises(type(error)) as found, on_disk(tmp_path / "a", 100):
            raise error
        assert found.value is error


# What is wrong in Python.


@pytest.mark.parametrize("n_jobs", ["two", 0, 1.5])
def test_numbers_of_workers_that_are_none(n_jobs):
    images = np.zeros((3, 32, 32), np.float32)
    for function in (fs.sort_particles, fs.classify_particles, fs.pick_particles, fs.radial_filter):
        with pytest.raises(fs.InputError, match=rf"n_jobs must be a whole number.*got {n_jobs!r}\.$"):
            function(images, n_jobs=n_jobs)


def test_earlier_results_that_are_none():
    images = np.zeros((3, 32, 32), np.float32)
    with pytest.raises(fs.InputError, match=r"earlier must be a result of sort_particles.*got 5: "):
        fs.sort_particles(images, earlier=5)
    with pytest.raises(fs.InputError, match=r"earlier must be a result of sort_particles.*got 'sorted': "):
        fs.update_particles(images, "sorted", [])
    with pytest.raises(fs.InputError, match=r"earlier must be a result of pick_particles"):
        fs.pick_particles("a.mrc", earlier={})
