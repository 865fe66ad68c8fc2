"""How does the page hold with many images?

python benchmarks/page.py [--images N]

Writes the page of a set of noise, the hardest images to compress, with a made-up verdict, and opens it in
Chromium, which must be installed. Memory is that of the largest process that draws a page.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

N_FRAMES = 150
# Scrolls by so many pixels a frame, and gives frames a second and the longest frame in ms.
SCROLL = """new Promise(done => {
  const box = $("scroll"), start = performance.now();
  let frames = 0, longest = 0, last = start;
  box.scrollIntoView();
  box.scrollTop = 0;
  const step = () => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    box.scrollTop += %d;
    if (++frames < %d) requestAnimationFrame(step);
    else done([1000 * frames / (now - start), longest]);
  };
  requestAnimationFrame(step);
})"""
# Milliseconds that something takes, all parts of the page drawn again.
TIMED = "(() => { const start = performance.now(); %s; return performance.now() - start; })()"
DRAWN = "const found = tally(); drawn.forEach(draw => draw(found))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("no Chromium to open the page with")
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tables import print_machine, print_table
    from test_page import Browser

    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        begin = time.perf_counter()
        size = write(page, options.images)
        rows = [
            ("page written, one worker", f"{time.perf_counter() - begin:.0f} s"),
            ("page and the files beside it", f"{size / 1e6:.1f} MB"),
        ]
        profile = Path(folder) / "browser"
        profile.mkdir()
        browser = Browser(program, profile)
        try:
            rows += list(looked_at(browser, page, profile))
        finally:
            browser.close()
    print_table(f"The page of {options.images:,} images, in Chromium", ("what", "measured"), rows)


def write(page: Path, n: int) -> int:
    from test_page import Recorded, make_micrographs, make_result, make_views

    from fastsort.particles.source import Particles
    from fastsort.report.page import write_page

    measured = {f"measurement {k}": np.random.default_rng(k).normal(size=n) for k in range(8)}
    result = make_result(n, views=make_views(n), measurements=measured)
    beside = page.with_name("report_images")
    beside.mkdir()
    write_page(
        page,
        Particles(Recorded(n, 48), 48, 3.0),
        result,
        make_micrographs(500),
        beside=beside,
        address=beside.name,
        n_jobs=1,
    )
    return sum(file.stat().st_size for file in (page, *beside.iterdir()))


def looked_at(browser, page: Path, profile: Path):
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=1400, height=900, deviceScaleFactor=1, mobile=False
    )
    begin = time.perf_counter()
    browser.open(page)
    ready = time.perf_counter() - begin
    paint = browser.run("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    yield "first paint", f"{paint:.0f} ms"
    yield "ready to be worked in", f"{ready:.1f} s"
    for words, pixels in (("slow", 60), ("fast", 2000)):
        frames, longest = browser.run(SCROLL % (pixels, N_FRAMES))
        yield f"scrolling, {words}: frames a second (longest frame)", f"{frames:.0f} ({longest:.0f} ms)"
    sorting = browser.run(TIMED % "$('sort').value = 9; refresh()")
    yield "sorting by another column", f"{sorting:.0f} ms"
    yield "a step of the threshold, all drawn again", f"{browser.run(TIMED % f'moveTo(0.3); {DRAWN}'):.0f} ms"
    yield "the map drawn again", f"{browser.run(TIMED % 'drawMap()'):.0f} ms"
    browser.run("scrollTo(0, 0)")
    time.sleep(5)
    yield "memory of the page", f"{memory_of(profile):.0f} MB"


def memory_of(profile: Path) -> float:
    told = subprocess.run(["ps", "-eo", "rss,args"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in told.splitlines() if "type=renderer" in line and str(profile) in line]
    return max(int(line.split()[0]) for line in lines) / 1024


if __name__ == "__main__":
    sys.exit(main())
