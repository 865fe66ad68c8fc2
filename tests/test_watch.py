"""`fastsort watch`: rounds whenever the input has changed, and what is told after each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastsort import cli
from fastsort.cli import watch
from fastsort.report.finished import read_earlier
from fastsort.simulate import simulate_particles, write_project

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A project, and its table with the first 60 images, with 160 and with all 200."""
    images, truth = simulate_particles(100, 100, snr=0.5, box=32, junk="all", seed=5)
    star = write_project(tmp_path_factory.mktemp("watch") / "p", images, truth)
    lines = star.read_text().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if "@" in line)
    return star, ["".join(lines[: first + n]) for n in (160, 180, 200)]


@pytest.fixture
def days(monkeypatch):
    """What happens while the command sleeps: the first thing in the first sleep, and Ctrl-C in the end."""
    monkeypatch.setattr(watch, "_SETTLED", 0.0)
    things, slept = [], []

    def sleep(seconds):
        slept.append(seconds)
        if not things:
            raise KeyboardInterrupt
        things.pop(0)()

    monkeypatch.setattr(watch, "sleep", sleep)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield things, slept
    for number, handler in handlers.items():
        signal.signal(number, handler)


def call(*arguments):
    return cli.main(["watch", *map(str, arguments)])


def metrics_in(path):
    return {
        name: float(value)
        for name, value in re.findall(r"^fastsort_(\w+)\{.*\} (\S+)$", path.read_text(), re.MULTILINE)
    }


@pytest.mark.slow
def test_rounds_follow_the_input(tables, days, tmp_path, capsys, no_pictures):
    star, texts = tables
    things, slept = days
    star.write_text(texts[0])
    out, metrics, notes = tmp_path / "out", tmp_path / "fastsort.prom", tmp_path / "notes"
    seen = []

    def look():
        seen.append((metrics_in(metrics), json.loads((out / "summary.json").read_text())))

    def grow(text):
        def change():
            look()
            star.write_text(text)

        return change

    def damage():
        look()
        star.write_text("nothing")

    things += [look, grow(texts[1]), damage, look, grow(texts[2]), look]
    command = (
        f'echo "$FASTSORT_KEPT $FASTSORT_REJECTED $FASTSORT_OUTPUT $FASTSORT_SUMMARY" >> {notes}; exit 3'
    )
    arguments = (star, "-o", out, "--every", 7, "--metrics", metrics, "--on-done", command, "--quiet")
    assert call(*arguments, "--fail-if", "junk>0.01") == 0
    assert set(slept) == {7.0}
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("the command of --on-done ended with code 3") == 3
    # The same error is told once, however often it is tried again.
    assert said.err.count("not sorted, will be tried again: ") == 1
    assert said.err.splitlines()[-1] == f"fastsort: stopped; the results of the last of 3 rounds are in {out}"
    numbers, summaries = zip(*seen, strict=True)
    assert [summary["images"] for summary in summaries] == [160, 160, 180, 180, 180, 200]
    assert [number["rounds_total"] for number in numbers] == [1, 1, 2, 2, 2, 3]
    assert [number["failures_total"] for number in numbers][-1] >= 1
    assert numbers[2]["new_images"] == numbers[-1]["new_images"] == 20
    assert numbers[0]["limits_passed"] == 1 and numbers[0]["round_timestamp_seconds"] <= time.time()
    for number, summary in seen:
        assert all(number[name] == summary[name] for name in ("images", "kept", "rejected", "rescued"))
    lines = notes.read_text().splitlines()
    assert len(lines) == 3
    assert lines[0] == f"{summaries[0]['kept']} {summaries[0]['rejected']} {out} {out}/summary.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fastsort.prom", "notes", "out"]
    # The verdicts are those of updates.
    result, names = read_earlier(out)
    assert len(names) == 200 and result.parameters["update"]["removed_images"] == 0


def test_waits_for_the_input_and_stops_without_results(days, tmp_path, capsys):
    things, slept = days
    things += [lambda: None, lambda: None]
    assert call(tmp_path / "later.star", "-o", tmp_path / "out") == 0
    assert capsys.readouterr().err == "fastsort: stopped before the first round was done\n"
    assert slept == [60.0] * 3 and list(tmp_path.iterdir()) == []


def test_a_table_that_is_being_written_waits(tmp_path, monkeypatch):
    path = tmp_path / "a.star"
    path.write_text("one")
    options = type("Options", (), {"input": str(path), "micrographs": None, "coordinates": None})
    monkeypatch.setattr(watch, "sleep", lambda _: path.write_text("one and two"))
    assert watch._settled(options, 60.0) is None
    monkeypatch.setattr(watch, "sleep", lambda _: None)
    assert watch._settled(options, 60.0)[0][:2] == (str(path), 11)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--diameter", "-5"], "diameter must be positive"),
        (["--every", "0"], "--every must be positive"),
        (["--metrics", "nowhere/m.prom"], "cannot write the metrics"),
        (["--metrics", "out/m.prom"], "would lie in the folder"),
    ],
)
def test_mistakes_end_the_first_round(tables, days, tmp_path, monkeypatch, capsys, arguments, words):
    star, texts = tables
    star.write_text(texts[0])
    monkeypatch.chdir(tmp_path)
    assert call(star, "-o", "out", *arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("fastsort: error: ") and words in said and said.count("\n") == 1


@pytest.mark.slow
def test_signals_end_it_with_code_0(tables, tmp_path):
    star, texts = tables
    star.write_text(texts[2])
    os.utime(star, (1e9, 1e9))
    command = [
        sys.executable,
        "-m",
        "fastsort",
        "watch",
        str(star),
        "-o",
        str(tmp_path / "out"),
        "--every",
        "1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, "--json"], env=environment, stdout=-1, stderr=-1, text=True) as process:
        deadline = time.monotonic() + 300
        while not (tmp_path / "out" / "summary.json").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1.0)
        # As from `timeout`, which sends its signal to the command and to the group that this is in.
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["images"] == 200 and "stopped" in err
    assert len(read_earlier(tmp_path / "out")[1]) == 200
