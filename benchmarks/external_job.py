"""Does an External job of cryoSPARC come to its end, whatever stops it, and is nothing lost?

python benchmarks/external_job.py [--images 10000] [--box 32] [--work FOLDER]

Each run is a process of its own, and talks to the small server of the tests in cryoSPARC's place. One comes
to its end undisturbed. Another is stopped by SIGINT, gone on with, killed from the page, gone on with, left
by its server before it saves, and gone on with. Then both have saved the same particles.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIMULATED = 2000
NEW = ("--project", "P3", "--workspace", "W1", "--job", "J24")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--box", type=int, default=32)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    from tables import print_machine, print_table

    print_machine()
    folder = Path(tempfile.mkdtemp(prefix="fastsort-cryosparc-", dir=options.work))
    try:
        table = list(rows(folder, options.images, options.box))
    finally:
        shutil.rmtree(folder)
    title = f"fastsort cryosparc, {options.images:,} particles of {options.box} px"
    print_table(title, ("run", "seconds", "exit code", "job", "what it said last"), table)


def rows(folder, n, box):
    """Yield a line for each run; fail where anything was lost."""
    sys.path.insert(0, str(ROOT / "tests"))
    from standin_cryosparc import StandIn

    particles = make_job(folder, n, box)
    server = StandIn(folder).start()
    server.add_output("J24", "particles", particles)
    yield ("undisturbed", *run(server, "J31", *NEW))
    processes = []

    def when(name, at_least, action):
        """Do something once, when the log of the job has come so far."""

        def look(called):
            share = [event.text.split()[1] for event in server.log if event.text.startswith("sorting ")]
            if called == name and share and int(share[-1]) >= at_least:
                server.before = None
                action()

        server.before, server.log = look, []

    when("jobs.update_event_log", 0, lambda: processes[-1].send_signal(signal.SIGINT))
    yield ("stopped by SIGINT", *run(server, "J32", *NEW, processes=processes))
    again = ("--project", "P3", "--continue", "J32")

    def kill():
        server.jobs["J32"].status = "killed"

    when("jobs.update_event_log", 60, kill)
    yield ("gone on with, killed from the page", *run(server, "J32", *again))
    when("jobs.save_output", 0, server.stop)
    yield ("gone on with, server gone at the end", *run(server, "J32", *again))
    anew = StandIn(folder, server.http.server_port).start()
    anew.jobs, anew.data = server.jobs, server.data
    yield ("gone on with, server back", *run(anew, "J32", *again))
    seen = []
    for part in ("kept", "rejected"):
        one, other = (anew.jobs_load_output("P3", uid, part, b"", ["all"]) for uid in ("J31", "J32"))
        assert one == other, f"{part} differ"
        assert {*one.fields()} == {*particles.dtype.names}
        seen += one["uid"].tolist()
    rescued = [anew.data[uid, "rescued"] for uid in ("J31", "J32") if (uid, "rescued") in anew.data]
    seen += rescued[0]["uid"].tolist() if rescued else []
    assert sorted(seen) == sorted(particles["uid"].tolist()), "particles are missing"
    anew.stop()


def run(server, uid, *arguments, processes=None):
    """Run the command; return seconds, exit code, how the job stands, and what was said last."""
    from standin_cryosparc import EMAIL, PASSWORD

    login = {"CRYOSPARC_BASE_URL": server.url, "CRYOSPARC_EMAIL": EMAIL, "CRYOSPARC_PASSWORD": PASSWORD}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "fastsort", "cryosparc", *arguments, "--quiet"],
        env={**os.environ, **login, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    if processes is not None:
        processes.append(process)
    lines = process.communicate()[1].splitlines()
    seconds = f"{time.perf_counter() - begin:.1f}"
    said = (lines or ["nothing"])[-1].replace(str(server.folder), "PROJECT").replace(server.url, "URL")
    return seconds, process.returncode, server.jobs[uid].status, said.removeprefix("fastsort: ")


def make_job(folder, n, box):
    """Write simulated images over and over, each time turned; return what cryoSPARC says of them."""
    import numpy as np

    import fastsort as fs
    from fastsort.particles.mrc import write_stack

    some = min(n, SIMULATED)
    images, truth = fs.simulate_particles(some - some // 3, some // 3, snr=0.1, box=box, junk="all", seed=0)
    blocks = (np.rot90(images, turn, (1, 2))[: n - turn * some] for turn in range(-(-n // some)))
    (folder / "J24").mkdir()
    write_stack(folder / "J24" / "particles.mrc", blocks, truth.pixel_size, n, box)
    columns = {
        "uid": np.random.default_rng(0).permutation(8 * n)[:n].astype(np.uint64),
        "blob/path": np.full(n, b"J24/particles.mrc"),
        "blob/idx": np.arange(n, dtype=np.uint32),
        "blob/shape": np.full((n, 2), box, np.uint32),
        "blob/psize_A": np.full(n, truth.pixel_size, np.float32),
        "blob/sign": np.ones(n, np.float32),
        "location/micrograph_path": np.array([b"J2/m%d.mrc" % (row // 300) for row in range(n)]),
        "location/micrograph_shape": np.full((n, 2), 4096, np.uint32),
        "location/center_x_frac": np.random.default_rng(1).random(n).astype(np.float32),
        "location/center_y_frac": np.random.default_rng(2).random(n).astype(np.float32),
    }
    table = np.zeros(n, [(name, values.dtype, values.shape[1:]) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    return table


if __name__ == "__main__":
    main()
