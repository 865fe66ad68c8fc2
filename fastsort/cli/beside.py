"""A second process, which compiles what a sort needs after it has judged the first images.

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
    import numpy as np

    from fastsort._jit import at_first_compiling
    from fastsort.images.content import content_of

    with ExitStack() as ending:

        def start(kept: bool) -> None:
            if kept and joblib.cpu_count() > 1:
                command, nowhere = [sys.executable, "-m", __name__], subprocess.DEVNULL
                process = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)
                ending.callback(_end, process)

        with at_first_compiling(start):
            # Every sort needs this kernel. Where it is missing, so are others, and the process starts now.
            content_of(np.zeros((1, 1, 1), np.float32))
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
    from fastsort.invariants.features import invariant_features
    from fastsort.invariants.fit_classes import fit_classes
    from fastsort.invariants.references import References
    from fastsort.invariants.rings import Polar
    from fastsort.invariants.search import search_poses
    from fastsort.invariants.transform import shift_images
    from fastsort.particles.source import as_particles
    from fastsort.radial.published import cluster_peaks

    offset = np.arange(_BOX) - _BOX // 2
    radius = _BOX / 4
    disk = np.add.outer(offset**2, offset**2) < radius**2
    images = np.random.default_rng(0).normal(size=(_IMAGES, _BOX, _BOX)).astype(np.float32)
    images[: _IMAGES // 2] += disk
    is_particle = np.arange(_IMAGES) < _IMAGES // 2
    # Two processes that come to the same kernel both compile it, then the next, and all that follow. So most
    # of what a sort needs after the classes comes in another order: what is slow or needed last comes first.
    fit_classes(as_particles(images), 2, radius, effort=0, n_jobs=1)
    one = np.zeros(1)
    table, coarse, normal = (np.zeros((1,) * axes, np.float32) for axes in (5, 4, 4))
    nothing = Polar(coarse, one > 0, _BOX)
    # There is nothing to find, but the kernel that refines what is found gets compiled.
    search_poses(nothing, References(table, coarse, one, one, normal.astype(np.float64), 1), None, 1.0)
    cluster_peaks(images, radius, 1)
    invariant_features(images, n_jobs=1)
    shift_images(images, np.zeros((_IMAGES, 2)))
    match_to_references(images[:10], images[:2], n_jobs=1)
    find_views(as_particles(images), np.where(is_particle, 0.0, 1.0), is_particle, radius, n_jobs=1)


if __name__ == "__main__":
    _compile()
