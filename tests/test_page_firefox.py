"""The page in Firefox: clicked, drawn on, loaded again, saved; counted there and on the disk."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time

import numpy as np
import pytest
from test_page import make_errors, make_result, make_views

from fastsort.decide.votes import LearnedVerdict
from fastsort.particles.open import open_particles
from fastsort.report.choices import apply_choices, read_choices
from fastsort.report.page import write_page
from fastsort.simulate import simulate_particles

PREFERENCES = """user_pref("marionette.port", {port});
user_pref("browser.download.dir", "{downloads}");
user_pref("browser.download.folderList", 2);
user_pref("browser.helperApps.neverAsk.saveToDisk", "application/json,text/plain");
user_pref("browser.download.alwaysOpenPanel", false);
"""


class Firefox:
    """A headless Firefox, spoken to through a socket: the length of a message, a colon, and JSON."""

    def __init__(self, program, folder):
        with socket.socket() as door:
            door.bind(("127.0.0.1", 0))
            port = door.getsockname()[1]
        self.downloads, profile = folder / "downloads", folder / "profile"
        self.downloads.mkdir()
        profile.mkdir()
        told = PREFERENCES.format(port=port, downloads=self.downloads)
        (profile / "user.js").write_text(told)
        command = [program, "--headless", "--marionette", "--no-remote", "--profile", str(profile)]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([*command, "about:blank"], stdout=quiet, stderr=quiet)
        self.buffer, self.number = b"", 0
        end = time.monotonic() + 120
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
                break
            except OSError:
                assert time.monotonic() < end and self.process.poll() is None, "Firefox does not answer"
                time.sleep(0.2)
        self._next()
        self.call("WebDriver:NewSession", capabilities={})
        self.call("WebDriver:SetWindowRect", width=1400, height=1000)

    def call(self, name, **parameters):
        self.number += 1
        message = json.dumps([0, self.number, name, parameters]).encode()
        self.socket.sendall(b"%d:%s" % (len(message), message))
        _, _, error, result = self._next()
        assert error is None, error
        return result

    def _next(self):
        while b":" not in self.buffer:
            self._more()
        length, _, self.buffer = self.buffer.partition(b":")
        while len(self.buffer) < int(length):
            self._more()
        message, self.buffer = self.buffer[: int(length)], self.buffer[int(length) :]
        return json.loads(message)

    def _more(self):
        part = self.socket.recv(1 << 16)
        assert part, "Firefox has gone"
        self.buffer += part

    def run(self, code):
        return self.call("WebDriver:ExecuteScript", script=f"return {code}", args=[])["value"]

    def open(self, path):
        self.call("WebDriver:Navigate", url=path.as_uri())
        self.wait("document.body.dataset.ready === 'yes'")

    def wait(self, code):
        end = time.monotonic() + 100
        while not self.run(code):
            assert time.monotonic() < end, f"never came true: {code}"
            time.sleep(0.05)

    def text(self, name):
        self.settle()
        return self.run(f"document.getElementById('{name}').textContent")

    def click(self, selector):
        self.call("WebDriver:ExecuteScript", script=f'document.querySelector("{selector}").click()', args=[])
        self.settle()

    def settle(self):
        script = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        self.call("WebDriver:ExecuteAsyncScript", script=script, args=[])

    def draw(self, corners):
        """Draw around points on the map, corners in parts of its side."""
        self.call(
            "WebDriver:ExecuteScript",
            script="document.getElementById('map').scrollIntoView({block: 'center'})",
            args=[],
        )
        box = self.run("(({left, top, width}) => [left, top, width])(map.getBoundingClientRect())")
        places = [(int(box[0] + x * box[2]), int(box[1] + y * box[2])) for x, y in corners]
        moves = [{"type": "pointerMove", "duration": 40, "x": x, "y": y} for x, y in places]
        actions = [
            moves[0],
            {"type": "pointerDown", "button": 0},
            *moves[1:],
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}
        self.call("WebDriver:PerformActions", actions=[mouse])
        self.settle()

    def type(self, selector, keys):
        found = self.call("WebDriver:FindElement", using="css selector", value=selector)["value"]
        self.call("WebDriver:ElementSendKeys", id=next(iter(found.values())), text=keys)
        self.settle()

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def firefox(tmp_path):
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        pytest.skip("no Firefox to open the page with")
    found = Firefox(program, tmp_path)
    yield found
    found.close()


def test_choices_are_the_same_in_firefox_and_on_the_disk(firefox, tmp_path):
    images, _ = simulate_particles(360, 240, snr=0.1, box=32, junk="noise", seed=1)
    result = make_result(600, errors=make_errors(), views=make_views(600))
    flags = {name: result.reason == name for name in ("duplicate", "outside", "rare_view")}
    result = result._replace(measurements=flags, learned=LearnedVerdict(None, {}, {}, (np.nan, np.nan)))
    path = tmp_path / "report.html"
    write_page(path, open_particles(images), result)
    firefox.open(path)
    assert firefox.text("now") == f"{result.keep.sum()} kept"
    firefox.click(".class-buttons button[aria-label^=reject]")
    firefox.draw([(0.3, 0.3), (0.5, 0.3), (0.7, 0.3), (0.7, 0.5), (0.7, 0.7), (0.5, 0.7), (0.3, 0.7)])
    before = firefox.text("now")
    firefox.click("#keep-region")
    after = firefox.text("now")
    assert after != before
    firefox.click("#undo")
    assert firefox.text("now") == before
    firefox.click("#redo")
    firefox.type("#scroll", "\ue014\ue014r")
    counted, said = firefox.text("now"), firefox.text("changed")
    firefox.call("WebDriver:Refresh")
    firefox.wait("document.body.dataset.ready === 'yes'")
    assert (firefox.text("now"), firefox.text("changed")) == (counted, said)
    firefox.click("#save")
    saved, end = firefox.downloads / "choices.json", time.monotonic() + 60
    while not (saved.exists() and saved.stat().st_size):
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.1)
    applied = apply_choices(saved, result, read_choices(saved))
    assert f"{applied.keep.sum()} kept" == counted
    assert f"{np.count_nonzero(applied.measurements['by_hand'])} images chosen" in said
