"""Settings for all tests."""

import contextlib
import os
import shutil

import pytest
from hypothesis import settings

# The gate must say the same of the same commit; everybody else's runs look for new examples.
settings.register_profile("gate", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("gate")


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out the report of every sort: it takes longer than the sort of a small set."""
    monkeypatch.setattr("fastsort.report.drawing.draw_results", lambda *_, **__: None)
    monkeypatch.setattr("fastsort.report.painter.painting_beside", contextlib.nullcontext)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium."""
    from test_page import Browser

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium to open the page with")
    found = Browser(program, tmp_path_factory.mktemp("browser"))
    yield found
    found.close()
