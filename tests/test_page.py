"""The page: what it says before it is touched, that it stays small and harmless, and its threshold."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import math
import os
import pathlib
import re
import select
import shutil
import subprocess
import time
import urllib.parse
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.ndimage import zoom

from fastsort._reasons import REASONS, reason_codes
from fastsort.decide.by_hand import FIXED
from fastsort.decide.decoys import Estimate, EstimatedErrors
from fastsort.decide.micrographs import MicrographTable
from fastsort.decide.rescue import Views
from fastsort.decide.result import SortResult
from fastsort.decide.votes import LearnedVerdict
from fastsort.images.ctf import phase_flip
from fastsort.particles.open import open_particles
from fastsort.particles.source import Particles
from fastsort.particles.store import ImageStore
from fastsort.particles.table import CtfParameters
from fastsort.report import plots
from fastsort.report.choices import apply_choices, read_choices
from fastsort.report.denoised_tiles import denoised_tiles, learn_tiles
from fastsort.report.lists import read_list
from fastsort.report.page import page_files, write_page
from fastsort.report.page_data import shown_order
from fastsort.report.page_tiles import sheet_png, side_of
from fastsort.report.plots import draw_report
from fastsort.report.png import png_of
from fastsort.report.tiles import average_tiles, read_tiles
from fastsort.simulate import simulate_particles, write_project

EVIL = "</script /><b class=evil>&\"'<img src=x onerror=boom()><!--<script "


def make_result(n, seed=0, **changes):
    """A verdict with every reason in it; kept where the probability is below a half, and not for ever out."""
    rng = np.random.default_rng(seed)
    junk = rng.random(n) < 0.4
    p = np.where(junk, rng.beta(4, 1, n), rng.beta(1, 6, n))
    suspicion = np.array(REASONS)[rng.integers(1, 6, n)]
    keep = p < 0.5
    reason = np.where(keep, "valid", suspicion)
    for place, code in enumerate(FIXED):
        reason[place::97] = REASONS[code]
        keep[place::97] = False
    p[np.isin(reason, ("flat", "bad_pixels"))] = 1
    rescued = (reason == "multiple") & (rng.random(n) < 0.5)
    reason = np.where(rescued, "rare_view", reason)
    fields = {
        "keep": keep,
        "score": np.where(np.isin(reason, ("flat", "bad_pixels")), np.inf, 10 * p - 5),
        "reason_code": reason_codes(reason),
        "suspicion_code": reason_codes(np.where(keep, suspicion, reason)),
        "rescued": rescued,
        "junk_probability": p,
        "votes": {"radial": 10 * p - 5},
        "offset": rng.normal(0, 4, (n, 2)).astype(np.float32),
        "measurements": {},
        "threshold": 0.0,
        "diameter": 60.0,
        "diameter_px": 20.0,
        "diameter_estimated": True,
        "contrast": "bright",
        "phase_flipped": False,
        "subspaces": None,
        "errors": None,
        "views": None,
        "parameters": {"method": None, "seed": np.int64(0), "diameter": math.nan},
        "seconds": {"total": 2.5},
        "doubts": (),
    }
    return SortResult(**{**dict.fromkeys(SortResult._fields), **fields, **changes})


def make_errors(**changes):
    some = Estimate(0.9, 0.85, 0.95)
    kinds = {"noise": Estimate(0.8, 0.7, 0.875), "particle": Estimate(0.97, 0.9, 0.99)}
    errors = EstimatedErrors(some, some, some, some, kinds, {"noise": 150, "particle": 149}, True, "")
    return errors._replace(**changes)


def make_views(n, seed=0):
    rng = np.random.default_rng(seed)
    coordinates = rng.normal(size=(n, 2)).astype(np.float32)
    coordinates[::5] = np.nan
    return Views(
        coordinates,
        rng.integers(0, 4, n),
        rng.normal(size=(4, 24, 24)).astype(np.float32),
        np.array([40, 30, 20, 10]),
        np.array([5.0, 6.0, np.inf, 7.0]),
        np.array([False, False, False, True]),
        3.0,
    )


def make_micrographs(m, names=None):
    rng = np.random.default_rng(3)
    defocus = rng.uniform(5e3, 3e4, m)
    defocus[::7] = np.nan
    return MicrographTable(
        names or [f"mic{i:05d}.mrc" for i in range(m)],
        rng.integers(5, 40, m),
        rng.integers(0, 5, m),
        rng.random(m),
        rng.normal(size=m),
        defocus,
        rng.random(m) < 0.01,
        {"defocus": -0.31},
    )


class Recorded(ImageStore):
    """Noise, the hardest images to compress, and what was read of it."""

    def __init__(self, n, box):
        self.n, self.box, self.reads = n, box, []

    def __len__(self):
        return self.n

    def name(self, index):
        return f"{index + 1:06d}@stack.mrcs"

    def read(self, indices):
        self.reads.append(np.array(indices))
        rng = np.random.default_rng(len(self.reads))
        return rng.normal(size=(len(indices), self.box, self.box)).astype(np.float32)


def page_of(tmp_path, result, micrographs=None, *, box=24, path=None, particles=None, **more):
    """Write a page; return its text and the data in it, with its columns unpacked."""
    particles = particles or Particles(Recorded(len(result.keep), box), box, 3.0, path)
    target = tmp_path / "report.html"
    write_page(target, particles, result, micrographs, **more)
    text = target.read_bytes().decode("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    columns = data["columns"]
    if columns is None:
        told = (more["beside"] / "columns.js").read_text("utf-8")
        columns = json.loads(told.removeprefix("window.fastsortColumns = ").removesuffix(";\n"))
    types = {"state": "u1", "why": "u1", "p": "<f8", "score": "<f8", "map_x": "<f4", "map_y": "<f4"}
    data["columns"] = {
        name: np.frombuffer(base64.b64decode(packed), types.get(name, "<i4"))
        if isinstance(packed, str)
        else packed
        for name, packed in columns.items()
    }
    return text, data


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("shape", [(13, 29), (13, 29, 3)])
def test_png_is_what_was_put_in(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    decoded = imread(io.BytesIO(png_of(pixels)), format="png")
    np.testing.assert_array_equal(np.rint(255 * decoded), pixels)


def test_sheet_holds_tile_after_tile():
    tiles = np.random.default_rng(0).integers(0, 256, (43, 8, 8), dtype=np.uint8)
    sheet = np.rint(255 * imread(io.BytesIO(sheet_png(tiles)), format="png"))
    assert sheet.shape == (48, 64)
    for number in (0, 7, 8, 42):
        row, column = 8 * (number // 8), 8 * (number % 8)
        np.testing.assert_array_equal(sheet[row : row + 8, column : column + 8], tiles[number])
    assert imread(io.BytesIO(sheet_png(tiles[:0])), format="png").shape == (1, 1)


def test_tiles_stay_readable_when_images_are_not():
    images = np.random.default_rng(0).normal(size=(5, 32, 32)).astype(np.float32)
    images[1] = 7
    images[2, 3, 3] = np.nan
    images[3, 4, :9] = np.inf
    images[4] *= 1e37
    particles = open_particles(images)
    tiles = read_tiles(particles, make_result(5), np.arange(5))
    assert np.ptp(tiles[1]) == 0
    assert all(np.ptp(tiles[i]) > 200 for i in (0, 2, 3, 4))


def test_tiles_show_phases_as_they_were_sorted():
    rng = np.random.default_rng(1)
    images = rng.normal(size=(6, 48, 48)).astype(np.float32)
    columns = (15000 + 1000 * np.arange(6), 15000 + 1000 * np.arange(6), 0, 0, 300, 2.7, 0.1)
    ctf = CtfParameters(*(np.broadcast_to(np.asarray(c, np.float64), 6).copy() for c in columns))
    store = open_particles(images).store
    particles = Particles(store, 48, 3.0, ctf=ctf)
    flipped = Particles(open_particles(phase_flip(images, ctf, 3.0)).store, 48, 3.0)
    chosen = np.array([1, 4])
    shown = read_tiles(particles, make_result(6, phase_flipped=True), chosen)
    np.testing.assert_allclose(
        shown.astype(float), read_tiles(flipped, make_result(6), chosen).astype(float), atol=4
    )
    assert (shown != read_tiles(particles, make_result(6), chosen)).mean() > 0.5


def test_denoised_tiles_show_what_their_own_image_holds():
    images, truth = simulate_particles(300, 100, snr=0.1, box=32, noise="white", junk="noise", seed=4)
    images[3, 5, 5] = np.nan
    denoiser = learn_tiles(open_particles(images), make_result(400))
    tiles = denoised_tiles(denoiser, np.arange(400)).astype(np.float64)
    assert tiles.shape == (400, 32, 32) and np.ptp(tiles[3]) == 0
    # Noise does not turn into the particle that all others show.
    contrast = tiles[:, 8:24, 8:24].mean(axis=(1, 2)) - np.median(tiles, axis=(1, 2))
    good = truth.label & (np.arange(400) != 3)
    assert np.median(contrast[~truth.label]) < 0.2 * np.median(contrast[good])
    assert denoised_tiles(denoiser, np.arange(0)).shape == (0, 32, 32)
    assert (denoised_tiles(denoiser, np.arange(40)) == denoised_tiles(denoiser, np.arange(40))).all()


def test_picture_and_page_show_the_same_pixels(tmp_path):
    images, truth = simulate_particles(40, 40, snr=0.5, box=48, ctf=True, seed=2)
    particles = open_particles(write_project(tmp_path / "project", images, truth))
    images[7, 20, 21] = np.nan
    particles = replace(particles, store=open_particles(images).store)
    result = make_result(80, phase_flipped=True)._replace(diameter_px=np.nan)
    draw_report(tmp_path / "report.png", particles, result)
    drawn = np.rint(255 * imread(tmp_path / "report.png"))
    _, data = page_of(tmp_path, result, particles=particles)
    sheets = [
        np.rint(255 * imread(io.BytesIO(base64.b64decode(sheet.partition(",")[2])), format="png"))
        for sheet in data["sheets"]["tiles"]
    ]
    rows = list(plots._choices(result).values())
    assert [len(row) for row in rows] == [24] * 3 and 7 in np.concatenate(rows)
    for top, row in zip((537, 874, 1211), rows, strict=True):
        for number, index in enumerate(row.tolist()):
            sheet, place = divmod(int(data["columns"]["place"][index]), 64)
            tile = sheets[sheet].reshape(-1, 48, 8, 48)[place // 8, :, place % 8]
            assert np.ptp(tile) > 200
            left, upper = 32 + 128 * (number % 12), top + 141 * (number // 12)
            shown = drawn[upper : upper + 120, left : left + 120]
            assert np.ptp(shown, axis=2).max() == 0
            larger = zoom(tile, 120 / 48, order=1, mode="nearest", grid_mode=True)
            np.testing.assert_allclose(shown[..., 0], larger, atol=1)


@pytest.mark.parametrize("kind", ["cut", "ties", "unanimous", "all", "none", "unknown"])
def test_page_starts_with_the_verdict(tmp_path, kind):
    result = make_result(700)
    free = ~np.isin(result.reason_code, FIXED)
    p, keep = result.junk_probability, result.keep
    if kind == "ties":
        p = np.round(p, 1)
        keep = free & (p < 0.5) & (np.arange(700) % 3 > 0)
    elif kind == "unanimous":
        keep = free & (np.random.default_rng(5).random(700) < 0.5)
    elif kind in ("all", "none"):
        keep = np.full(700, kind == "all")
    elif kind == "unknown":
        p = np.full(700, np.nan)
    reason = reason_codes(np.where(keep, "valid", np.where(result.reason == "valid", "noise", result.reason)))
    result = result._replace(
        keep=keep,
        junk_probability=p,
        reason_code=reason,
        suspicion_code=np.where(keep, result.suspicion_code, reason),
        rescued=result.rescued & ~keep,
    )
    text, data = page_of(tmp_path, result)
    columns = data["columns"]
    np.testing.assert_array_equal(columns["state"] & 1, keep)
    np.testing.assert_array_equal(columns["p"], p)
    np.testing.assert_array_equal(columns["why"][~keep], reason[~keep])
    assert f"<dt>kept</dt><dd>{keep.sum():,} <" in text
    # What a threshold can move stands first, the best before all others.
    order = shown_order(result)
    np.testing.assert_array_equal(columns["place"][order], np.arange(700))
    free = ~(~keep & np.isin(reason, FIXED) | ~np.isfinite(result.score))
    assert free[order[: free.sum()]].all()
    if kind != "unknown":
        assert (np.diff(p[order[: free.sum()]]) >= 0).all()


def test_names_do_no_harm(tmp_path):
    result = make_result(300, errors=make_errors(remark=EVIL), parameters={"work": EVIL, EVIL: 1})
    table = make_micrographs(3, [EVIL, "a\nb\udc80.mrc", "x" * 5000])
    table = table._replace(drop=np.array([True, False, True]), trends={EVIL: 0.4})
    store = Recorded(300, 24)
    store.name = lambda index: f"{index}@{EVIL}"
    particles = Particles(store, 24, 3.0, f"/data/{EVIL.replace('/', '')}")
    text, data = page_of(tmp_path, result, table, particles=particles)
    elements = Elements(text).found
    assert not [attrs for tag, attrs in elements if attrs.get("class") == "evil" or "onerror" in attrs]
    assert [tag for tag, _ in elements].count("script") == 2
    assert data["columns"]["stacks"] == [EVIL] and data["columns"]["number"][5] == 5
    assert "x" * 121 not in text


def test_nothing_is_fetched(tmp_path):
    result = make_result(300, errors=make_errors(), views=make_views(300))
    text, _ = page_of(tmp_path, result, make_micrographs(5))
    for _, attrs in Elements(text).found:
        assert attrs.get("src", "data:").startswith("data:")
        assert attrs.get("href", "#").startswith("#")
    assert not re.search(r"url\((?!#|\"\$)|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", text)


def test_same_input_same_bytes(tmp_path):
    result = make_result(300, errors=make_errors(), views=make_views(300))
    store = open_particles(np.random.default_rng(0).normal(size=(300, 24, 24)).astype(np.float32))
    pages = [
        page_of(tmp_path, result, make_micrographs(9), particles=store, n_jobs=n)[0] for n in (1, 2, None)
    ]
    assert pages[0] == pages[1] == pages[2]


def test_all_images_of_a_large_set_lie_beside_the_page(tmp_path):
    n, beside = 6_000, tmp_path / "report_images"
    beside.mkdir()
    store, result = Recorded(n, 32), make_result(n, views=make_views(n))
    text, data = page_of(
        tmp_path, result, particles=Particles(store, 32, 3.0), beside=beside, address=beside.name
    )
    assert len(text) < 150_000
    assert sorted(page_files(n, 32)) == sorted(file.name for file in beside.iterdir())
    np.testing.assert_array_equal(np.concatenate(store.reads), np.arange(n))
    assert [name.partition("/")[0] for name in data["sheets"]["tiles"]] == ["report_images"] * 94
    sides = [imread(beside.parent / name).shape for name in data["sheets"]["tiles"]]
    assert sides == [(256, 256)] * 93 + [(32 * 6, 256)]
    assert page_files(2_500, 32) == [] and len(page_files(n, 32, denoised=True)) == 189


def test_a_million_images_have_no_tiles_but_a_verdict(tmp_path):
    n = 1_000_001
    store, result = Recorded(n, 64), make_result(n)
    _, data = page_of(tmp_path, result, particles=Particles(store, 64, 3.0), beside=tmp_path, address="x")
    assert store.reads == [] and data["sheets"] == {} and data["tile"] == side_of(n, 64) == 0
    assert (data["columns"]["state"] & 1).sum() == result.keep.sum() and "names" not in data["columns"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["01@a.mrc", "17@b.mrc", "02@a.mrc"], (["a.mrc", "b.mrc"], [0, 1, 0], [1, 17, 2], 2)),
        (["x", "1@y", "2@z"], ["x", "1@y", "2@z"]),
        (["1@", "@y", "２@z"], ["1@", "@y", "２@z"]),
    ],
)
def test_names_are_told_as_they_are(tmp_path, names, expected):
    store = Recorded(3, 16)
    store.name = lambda index: names[index]
    columns = page_of(tmp_path, make_result(3), particles=Particles(store, 16, 3.0))[1]["columns"]
    if isinstance(expected, list):
        assert columns["names"] == expected
    else:
        found = columns["stacks"], columns["stack"].tolist(), columns["number"].tolist(), columns["width"]
        assert found == expected


def test_errors_are_said_or_said_to_be_unknown(tmp_path):
    text, data = page_of(tmp_path, make_result(200, errors=make_errors()))
    assert "85.0 – 95.0 %" in text and "80.0 %" in text and "87.5 %" in text and ">149<" in text
    assert "not known" not in text and data["doubt"] == ""
    unknown = make_errors(known=False, remark="too few images", precision=Estimate(*[math.nan] * 3))
    text, data = page_of(tmp_path, make_result(200, errors=unknown))
    assert "The errors are not known.</strong> Too few images." in text and ">unknown<" in text
    assert data["doubt"] == "too few images"
    assert "not estimated" in page_of(tmp_path, make_result(200))[0]


def test_table_of_micrographs_is_cut_short_but_not_the_advice(tmp_path):
    table = make_micrographs(2500)
    text, _ = page_of(tmp_path, make_result(200), table)
    rows = re.findall(r'<th scope="row">(mic\d+\.mrc)</th>', text)
    assert len(rows) == 2000
    assert "2,000 of 2,500 micrographs" in text
    advised = {name for name, drop in zip(table.name, table.drop, strict=True) if drop}
    assert set(rows[: len(advised)]) == advised == set(re.findall(r"<li>(mic\d+\.mrc)</li>", text))
    rest = [table.junk_share[table.name.index(name)] for name in rows[len(advised) :]]
    assert rest == sorted(rest, reverse=True)
    assert "leave out" not in page_of(tmp_path, make_result(200), table._replace(drop=table.drop & False))[0]
    assert "does not say from which micrographs" in page_of(tmp_path, make_result(200))[0]


@pytest.mark.parametrize("n", [1, 2, 30])
def test_sets_too_small_for_probabilities(tmp_path, n):
    nothing = np.full((n, 2), np.nan, np.float32)
    result = make_result(
        n, junk_probability=np.full(n, np.nan), offset=nothing, diameter=math.nan, diameter_px=math.nan
    )
    text, data = page_of(tmp_path, result, box=17)
    assert (data["columns"]["state"] & 4).all() and np.isnan(data["columns"]["p"]).all()
    assert data["radius"] is None
    assert "diameter unknown" in text


def test_a_few_points_far_out_do_not_shrink_the_map(tmp_path):
    views = make_views(1000)
    views.coordinates[:] = np.random.default_rng(2).random((1000, 2))
    views.coordinates[[1, 2]] = 1e6
    _, data = page_of(tmp_path, make_result(1000, views=views))
    assert data["views"]["far"] == 2
    assert data["views"]["side"] < 2
    of_class = dict(zip(data["views"]["classes"], data["views"]["resolution"], strict=True))
    assert of_class == {0: 15.0, 1: 18.0, 2: None, 3: 21.0}


def test_pictures_without_contrast_are_grey():
    pictures = np.zeros((2, 80, 80), np.float32)
    pictures[1, 40:, :] = 1
    tiles = average_tiles(pictures)
    assert tiles.shape == (2, 64, 64) and np.ptp(tiles[0]) == 0 and np.ptp(tiles[1]) > 200


class Browser:
    """A headless Chromium, spoken to through a pipe: JSON that ends with a zero byte."""

    def __init__(self, program, folder):
        # The browser wants its ends as file descriptors 3 and 4: out of their way first.
        pipes = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (*os.pipe(), *os.pipe())]
        read_by_it, self.to_it, self.from_it, written_by_it = pipes
        quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
        more = "--disable-background-networking --disable-component-update --remote-debugging-pipe"

        def connect():
            os.dup2(read_by_it, 3)
            os.dup2(written_by_it, 4)

        self.process = subprocess.Popen(
            [program, *quiet.split(), *more.split(), f"--user-data-dir={folder / 'profile'}"],
            preexec_fn=connect,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_by_it)
        os.close(written_by_it)
        self.buffer, self.number, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.downloads = folder / "downloads"
        self.call(
            "Emulation.setDeviceMetricsOverride", width=1400, height=900, deviceScaleFactor=1, mobile=False
        )

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_it, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self):
        while b"\0" not in self.buffer:
            assert select.select([self.from_it], [], [], 30)[0], "the browser says nothing"
            part = os.read(self.from_it, 1 << 16)
            assert part, "the browser has gone"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def run(self, code):
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, code):
        end = time.monotonic() + 200
        while not self.holds(code):
            assert time.monotonic() < end, f"never came true: {code}"
            time.sleep(0.02)

    def holds(self, code):
        try:
            return self.run(code)
        except AssertionError as error:
            # A page that is just being left cannot be asked.
            if "navigated or closed" not in str(error):
                raise
            return False

    def open(self, path):
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.body && document.body.dataset.ready === 'yes'")
        self.settle()

    def text(self, name):
        return self.run(f"document.getElementById('{name}').textContent")

    def click(self, name):
        self.run(f"document.getElementById('{name}').click()")
        self.settle()

    def settle(self):
        """Let what a key has set going be drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def press(self, key, times=1, text="", modifiers=0):
        codes = {
            "k": 75,
            "r": 82,
            "u": 85,
            "Tab": 9,
            "Enter": 13,
            "Escape": 27,
            " ": 32,
            "ArrowLeft": 37,
            "ArrowRight": 39,
            "Home": 36,
            "End": 35,
        }
        for _ in range(times):
            how = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], "modifiers": modifiers}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **how)
            self.call("Input.dispatchKeyEvent", type="keyUp", **how)
        self.settle()

    def save(self, button="save-list", name="kept_images.txt"):
        """Press a button for saving and return the file's path."""
        shutil.rmtree(self.downloads, ignore_errors=True)
        self.downloads.mkdir()
        where = {"behavior": "allow", "downloadPath": str(self.downloads)}
        self.call("Browser.setDownloadBehavior", **where)
        self.run(f"document.getElementById('{button}').closest('details')?.setAttribute('open', '')")
        self.run(f"document.getElementById('{button}').focus()")
        self.press("Enter", text="\r")
        path = self.downloads / name
        end = time.monotonic() + 200
        while not path.exists():
            assert time.monotonic() < end, "nothing was saved"
            time.sleep(0.02)
        return path

    def complaints(self):
        """Exceptions, messages on the console and requests that leave the page."""
        bad = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        outside = [url for url in urls if not url.startswith(("file:", "data:", "blob:"))]
        return [event for event in self.events if event.get("method") in bad] + outside

    def close(self):
        self.session = None
        self.call("Browser.close")
        os.close(self.to_it)
        os.close(self.from_it)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page with everything on it, and the verdict that it shows."""
    images, _ = simulate_particles(600, 400, snr=0.05, box=32, junk="noise", seed=1)
    result = make_result(1000, errors=make_errors(), views=make_views(1000))
    flags = {name: result.reason == name for name in ("duplicate", "outside", "rare_view")}
    learned = LearnedVerdict(None, {}, {}, (math.nan, math.nan))
    result = result._replace(measurements=flags, learned=learned)
    path = tmp_path_factory.mktemp("page") / "report.html"
    table = make_micrographs(40, [EVIL, *(f"mic{i:03d}.mrc" for i in range(39))])
    particles = replace(open_particles(images), names=[f"{number}@{EVIL}" for number in range(1000)])
    write_page(path, particles, result, table)
    return path, result


@pytest.fixture
def opened(browser, written):
    path, result = written
    browser.open(path)
    browser.run("localStorage.clear()")
    browser.open(path)
    yield browser, result
    assert browser.complaints() == []


def shown_counts(browser):
    """What the page says: kept images, and images by reason now."""
    rows = browser.run(
        "Array.from(document.querySelectorAll('#reasons tbody tr'), row =>"
        " Array.from(row.cells, cell => cell.textContent.replace(/,/g, '')))"
    )
    return int(
        browser.run("document.querySelector('#live strong').textContent").split()[0].replace(",", "")
    ), {row[0]: int(row[2]) for row in rows}


def expected_counts(result, cut=None):
    """The same, counted here."""
    keep, reason = result.keep, np.where(result.keep, "kept", result.reason)
    if cut is not None:
        keep = (result.junk_probability <= cut) & ~np.isin(result.reason_code, FIXED)
        reason = np.where(keep, "kept", np.where(result.keep, result.suspicion, result.reason))
    reason = np.where(reason == "rare_view", "rescued: rare view", reason)
    names, counts = np.unique(reason, return_counts=True)
    return int(keep.sum()), dict(zip(names.tolist(), counts.tolist(), strict=True)), keep


def test_page_opens_with_the_verdict(opened):
    browser, result = opened
    kept, counts, _ = expected_counts(result)
    assert shown_counts(browser) == (kept, counts)
    assert browser.run("document.querySelectorAll('.evil, [onerror]').length") == 0
    p = result.junk_probability
    precision = (1 - p)[result.keep].sum() / kept
    found = (1 - p)[result.keep].sum() / (1 - p)[result.reason != "outside"].sum()
    said = browser.run("Array.from(document.querySelectorAll('#estimates b'), e => e.textContent)")
    assert said == [f"{100 * precision:.1f} %", f"{100 * found:.1f} %"]


@pytest.mark.parametrize("n", [8, 1000, 2000, 3999])
def test_shares_read_the_same_before_and_after_the_script(opened, n):
    browser, _ = opened
    shares = browser.run(f"Array.from({{ length: {n + 1} }}, (_, k) => percent(k / {n}))")
    assert shares == [f"{100 * k / n:.1f} %" for k in range(n + 1)]


def test_slider_moves_the_threshold_by_keys_and_reset_brings_it_back(opened):
    browser, result = opened
    browser.run("document.getElementById('slider').focus()")
    browser.press("ArrowLeft", 60)
    cut = float(browser.run("document.getElementById('number').value"))
    assert cut == pytest.approx(float(browser.run("document.getElementById('slider').value")))
    kept, counts, _ = expected_counts(result, cut)
    assert 0 < kept < result.keep.sum()
    assert shown_counts(browser) == (kept, {name: counts.get(name, 0) for name in shown_counts(browser)[1]})
    browser.press("Home")
    assert shown_counts(browser)[0] == expected_counts(result, 0)[0]
    browser.press("End")
    assert shown_counts(browser)[0] == expected_counts(result, 1)[0] < len(result.keep)
    browser.run("document.getElementById('reset').focus()")
    browser.press("Enter", text="\r")
    assert shown_counts(browser) == expected_counts(result)[:2]


def set_threshold(browser, way, value):
    browser.run(
        f"$('way').value = '{way}'; $('way').dispatchEvent(new Event('change'));"
        f"$('number').value = {value}; $('number').dispatchEvent(new Event('input'))"
    )
    browser.settle()


@pytest.mark.parametrize(("way", "value"), [("probability", 0.3), ("best", 123), ("share", 60)])
def test_thresholds_of_all_kinds_are_the_same_on_the_disk(opened, way, value):
    browser, result = opened
    set_threshold(browser, way, value)
    kept, counts = shown_counts(browser)
    path = browser.save("save", "choices.json")
    applied = apply_choices(path, result, read_choices(path))
    assert applied.keep.sum() == kept == {"best": 123}.get(way, kept)
    good = (1 - result.junk_probability) * ~np.isin(result.reason_code, FIXED)
    if way == "share":
        assert 0.6 <= good[applied.keep].sum() / good.sum() < 0.61
    assert {name: n for name, n in counts.items() if n} == expected_counts(applied)[1]


def test_choices_by_hand_are_undone_remembered_saved_and_applied(opened):
    browser, result = opened
    browser.run("document.getElementById('scroll').focus()")
    browser.press("ArrowRight", 3)
    browser.press("r")
    first = int(browser.run("shown[current]"))
    assert shown_counts(browser)[0] == result.keep.sum() - 1
    browser.press("ArrowRight", 4, modifiers=8)
    browser.press("r")
    assert shown_counts(browser)[0] == result.keep.sum() - 5
    browser.click("undo")
    assert shown_counts(browser)[0] == result.keep.sum() - 1
    browser.click("redo")
    browser.press("End")
    browser.run("document.getElementById('scroll').focus()")
    # A class, the images of a rare view, and a region of the map.
    browser.run("document.querySelector('.class-buttons button[aria-label^=reject]').click()")
    browser.run("document.querySelector('.class-buttons button[aria-label^=accept]').click()")
    browser.run("lasso = [[100, 100], [360, 100], [360, 360], [100, 360]]; closeLasso(false)")
    inside = browser.run("Array.from(inRegion())")
    browser.click("keep-region")
    usable = ~np.isin(result.reason, ["flat", "bad_pixels"])
    assert 20 < len(inside) < 900
    kept, counts = shown_counts(browser)
    changed = browser.text("changed")
    path = path_of(browser)
    browser.run("location.reload()")
    browser.open(path)
    assert shown_counts(browser) == (kept, counts) and browser.text("changed") == changed
    path = browser.save("save", "choices.json")
    choices = read_choices(path)
    applied = apply_choices(path, result, choices)
    assert (applied.keep.sum() == kept and not applied.keep[first]) or first in inside
    assert applied.keep[np.intersect1d(inside, np.flatnonzero(usable))].all()
    by_hand = applied.measurements["by_hand"]
    assert (by_hand != 0).sum() == len(choices.keep) + len(choices.reject)
    np.testing.assert_array_equal(applied.score, result.score)
    np.testing.assert_array_equal(read_list(browser.save(), 1000), applied.keep)
    browser.click("forget")
    assert shown_counts(browser)[0] == result.keep.sum()


def path_of(browser):
    return pathlib.Path(urllib.parse.unquote(browser.run("location.pathname")))


def test_what_no_program_can_use_is_not_kept(opened):
    browser, result = opened
    unusable = int(np.isin(result.reason, ["flat", "bad_pixels"]).sum())
    browser.click("keep-shown")
    assert shown_counts(browser)[0] == len(result.keep) - unusable
    assert f"{unusable} images cannot be kept" in browser.text("said")


def test_choices_of_another_page_are_refused(opened):
    browser, _ = opened
    said = browser.run("try { takeChoices({...choices(), mark: 'another'}); '' } catch (e) { e.message }")
    assert "another run" in said


def test_images_are_filtered_and_sorted(opened):
    browser, result = opened
    browser.run("$('of-verdict').value = 'rejected'; $('of-verdict').dispatchEvent(new Event('input'))")
    rejected = ~result.keep & ~result.rescued
    assert sorted(browser.run("Array.from(shown)")) == np.flatnonzero(rejected).tolist()
    browser.run("$('low').value = 0.5; $('low').dispatchEvent(new Event('input'))")
    browser.run("$('sort').value = 1; $('down').checked = true; refresh()")
    shown = browser.run("Array.from(shown)")
    p = result.junk_probability
    assert set(shown) == set(np.flatnonzero(rejected & (p >= 0.5)).tolist())
    assert (np.diff(p[shown]) <= 0).all()
    browser.run("$('low').value = ''; $('of-verdict').value = ''; showOnly({ label: 2 })")
    assert sorted(browser.run("Array.from(shown)")) == np.flatnonzero(result.views.label == 2).tolist()
    browser.click("all-images")
    assert browser.run("shown.length") == 1000
    reason = REASONS.index("partial")
    browser.run(f"$('of-reason').value = '{reason}'; refresh()")
    shown = browser.run("Array.from(shown)")
    assert sorted(shown) == np.flatnonzero(result.reason == "partial").tolist()


def test_only_what_is_seen_is_drawn(opened):
    browser, _ = opened
    assert 0 < browser.run("document.querySelectorAll('.tile').length") < 400
    browser.run("$('scroll').scrollTop = 1e6")
    browser.settle()
    assert browser.run("document.querySelector('#tile-999').id") == "tile-999"


def test_denoised_images_are_shown_on_a_switch(browser, tmp_path):
    images, _ = simulate_particles(60, 40, snr=0.3, box=32, junk="noise", seed=1)
    particles, result = open_particles(images), make_result(100)
    write_page(tmp_path / "report.html", particles, result, denoiser=learn_tiles(particles, result))
    browser.open(tmp_path / "report.html")
    pixels = "document.querySelector('.picture').style.backgroundImage"
    plain = browser.run(pixels)
    browser.run("document.getElementById('without-noise').click()")
    assert browser.run(pixels) != plain
    assert not browser.run("document.getElementById('denoised-note').hidden")
    browser.run("document.getElementById('without-noise').click()")
    assert browser.run(pixels) == plain
    write_page(tmp_path / "plain.html", particles, result)
    browser.open(tmp_path / "plain.html")
    assert browser.run("document.getElementById('to-denoised').hidden")
    assert browser.complaints() == []


def test_saved_list_is_what_the_page_counts(opened):
    browser, result = opened
    path = browser.save()
    np.testing.assert_array_equal(read_list(path, 1000), result.keep)
    lines = path.read_text().splitlines()
    assert lines[0] == f"# fastsort kept images: {result.keep.sum()} of 1000, counted from 0"
    assert lines[2] == "# chosen by: the run's verdict"
    set_threshold(browser, "probability", 0.4)
    path = browser.save()
    assert path.read_text().splitlines()[2] == "# chosen by: junk probability at most 0.4"
    np.testing.assert_array_equal(read_list(path, 1000), expected_counts(result, 0.4)[2])


def test_keyboard_reaches_everything_and_shows_where_it_is(opened):
    browser, _ = opened
    wanted = browser.run(
        "Array.from(document.querySelectorAll('a, button, input:not([name=axis]), #micrographs button'))"
        ".filter(e => !e.closest('[hidden]') && !e.disabled)"
        ".filter(e => !e.matches('details:not([open]) > :not(summary) *'))"
        ".map((e, i) => { e.dataset.order = i; return i; })"
    )
    reached, unseen = set(), []
    for _ in range(len(wanted) + 20):
        browser.press("Tab")
        at = browser.run(
            "(e => [e.dataset.order, e.name, getComputedStyle(e).outlineStyle, e.outerHTML.slice(0, 80)])"
            "(document.activeElement)"
        )
        reached.add(at[1] if at[1] == "axis" else at[0])
        if at[2] == "none" and at[3][:5] != "<body":
            unseen.append(at[3])
    assert {str(number) for number in wanted} | {"axis"} <= reached
    assert unseen == []


def test_count_axis_can_be_linear(opened):
    browser, result = opened
    labels = "Array.from(document.querySelectorAll('#histogram text'), t => t.textContent)"
    assert {"1", "10", "images (logarithmic)", "junk probability"} <= set(browser.run(labels))
    browser.run("document.querySelector('[name=axis]:checked').focus()")
    browser.press("ArrowRight")
    linear = browser.run(labels)
    assert "images" in linear and "images (logarithmic)" not in linear
    areas = browser.run(
        "Array.from(document.querySelectorAll('#histogram svg > rect'), r => +r.getAttribute('height'))"
    )
    highest = np.histogram(result.junk_probability, 50, (0, 1))[0].max()
    # The highest bar fills the axis but for a little; the others are in proportion.
    assert sum(areas[:-3]) == pytest.approx(max(areas) * len(result.keep) / highest, rel=0.35)


def test_a_class_shows_its_points(opened):
    browser, result = opened
    picture = "document.getElementById('map').toDataURL()"
    before = browser.run(picture)
    third = "document.querySelectorAll('.class')[2]"
    label = int(browser.run(f"{third}.dataset.label"))
    browser.run(f"{third}.click()")
    browser.settle()
    assert browser.run(picture) != before
    assert browser.run(f"{third}.getAttribute('aria-pressed')") == "true"
    members = result.views.label == label
    said = browser.run(f"{third}.textContent")
    assert f"{(members & result.keep).sum()} of {members.sum()} kept" in said
    browser.click("all-classes")
    assert browser.run(picture) == before
    # Those most kept stand first; every point is drawn.
    shares = [result.keep[result.views.label == k].mean() for k in range(4)]
    labels = browser.run("Array.from(document.querySelectorAll('.class'), b => +b.dataset.label)")
    assert labels == sorted(range(4), key=lambda k: -shares[k])
    assert browser.run("mapped.length") == np.isfinite(result.views.coordinates[:, 0]).sum()
    for color in ("class", "2"):
        browser.run(f"$('color').value = '{color}'; drawMap()")
        assert browser.run(picture) != before


def test_micrographs_are_sorted_by_key(opened):
    browser, _ = opened
    column = "Array.from(document.querySelectorAll('#micrographs tbody tr'), row => row.cells[%d].dataset.v)"
    for place in (1, 5):
        browser.run(f"document.querySelectorAll('#micrographs th button')[{place}].focus()")
        for way, name in ((1, "ascending"), (-1, "descending")):
            browser.press("Enter", text="\r")
            values = browser.run(column % place)
            known = [float(value) for value in values if value]
            assert known == sorted(known, reverse=way < 0) and len(values) == 40
            # Unknown ones stand last either way.
            assert all(value == "" for value in values[len(known) :])
            assert browser.run(f"document.querySelectorAll('#micrographs th')[{place}].ariaSort") == name


def test_a_page_without_probabilities_still_shows_and_saves(browser, tmp_path):
    result = make_result(30, junk_probability=np.full(30, np.nan))
    write_page(tmp_path / "few.html", Particles(Recorded(30, 24), 24, math.nan), result)
    browser.open(tmp_path / "few.html")
    assert browser.run("document.getElementById('slider').disabled")
    assert shown_counts(browser) == expected_counts(result)[:2]
    np.testing.assert_array_equal(read_list(browser.save(), 30), result.keep)
    assert browser.complaints() == []


def test_a_page_without_its_folder_says_so(browser, tmp_path):
    beside = tmp_path / "many_images"
    beside.mkdir()
    result = make_result(3_000)
    write_page(
        tmp_path / "many.html",
        Particles(Recorded(3_000, 24), 24, 3.0),
        result,
        beside=beside,
        address="many_images",
    )
    browser.open(tmp_path / "many.html")
    assert shown_counts(browser)[0] == result.keep.sum()
    assert browser.complaints() == []
    shutil.rmtree(beside)
    browser.call("Page.navigate", url=(tmp_path / "many.html").as_uri())
    browser.wait("document.getElementById('missing') && !document.getElementById('missing').hidden")
