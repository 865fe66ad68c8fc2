"""A second process, which compiles the kernels of a sort beginning with those that are needed last.

Compiling holds the interpreter's lock, so that threads gain nothing.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# Images that are sorted only to have their kernels compiled, and their side in pixels.
_IMAGES, _BOX = 200, 36


@contextmanager
def compiling_beside() -> Iterator[None]:
    """Start the process as soon as a kernel is not in the cache, and end it with the context."""
    import joblib

    from fastsort._jit import at_first_compiling

    with ExitStack() as ending:

        def start(kept: bool) -> None:
            if kept and joblib.cpu_count() > 1:
                command, nowhere = [sys.executable, "-m", __name__], subprocess.DEVNULL
                process = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)
                ending.callback(_end, process)

        with at_first_compiling(start):
            yield


def _end(process: subprocess.Popen[bytes]) -> None:
    # What it has compiled is in the cache, whole files only.
    process.kill()
    process.wait()


def _compile() -> None:
    # What the compiler makes stays until the end.
    gc.disable()
    import numpy as np

    from fastsort.decide.rescue import find_views
    from fastsort.invariants.align import match_to_references
    from fastsort.invariants.filter import invariant_filter
    from fastsort.particles.source import as_particles
    from fastsort.subspaces.filter import subspace_filter

    offset = np.arange(_BOX) - _BOX // 2
    disk = np.add.outer(offset**2, offset**2) < (_BOX / 4) ** 2
    images = np.random.default_rng(0).normal(size=(_IMAGES, _BOX, _BOX)).astype(np.float32)
    images[: _IMAGES // 2] += disk
    is_particle = np.arange(_IMAGES) < _IMAGES // 2
    find_views(as_particles(images), np.where(is_particle, 0.0, 1.0), is_particle, _BOX / 4, n_jobs=1)
    match_to_references(images[:10], images[:2], n_jobs=1)
    invariant_filter(images, n_jobs=1)
    subspace_filter(images, n_jobs=1)


if __name__ == "__main__":
    _compile()
