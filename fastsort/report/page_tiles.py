"""The tiles of the page: small copies of all images, on sheets in the order in which they are shown."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np

from fastsort._types import Images, Indices
from fastsort.decide.result import SortResult
from fastsort.images.batches import map_batches
from fastsort.particles.source import Particles
from fastsort.particles.table import CtfParameters
from fastsort.report.denoised_tiles import TileDenoiser, denoised_tiles
from fastsort.report.png import Greys, png_of
from fastsort.report.tiles import blur_of, ctf_as_sorted, flipped_tiles

# Tiles on a sheet, in rows and columns. A browser loads only the sheets that it shows.
ROWS = 8
PER_SHEET = ROWS**2
# Sides of tiles, in pixels, and up to how many images they are used.
SIDES = ((1_000, 64), (20_000, 48), (100_000, 32), (1_000_000, 24))
_DENOISED_AT_ONCE = 4096


def side_of(n: int, box: int) -> int:
    """Return the side of the tiles of a set in pixels; 0 where there are too many images to show."""
    return next((min(side, box) for most, side in SIDES if n <= most), 0)


def tile_sheets(
    particles: Particles, result: SortResult, order: Indices, *, n_jobs: int | None = None
) -> Iterator[bytes]:
    """Read all images and put their tiles on sheets.

    Parameters
    ----------
    particles : Particles
        Read once, in the order of the files.
    result : SortResult
        Says whether phases are flipped, and how large the particle is.
    order : ndarray of intp, shape (n,)
        Of the tiles on the sheets.
    n_jobs : int, optional
        Workers, as joblib counts them.

    Yields
    ------
    png : bytes
        64 tiles in 8 rows, fewer rows on the last sheet.
    """
    n, size = len(particles), side_of(len(particles), particles.box)
    blocks = map_batches(
        _batch,
        particles,
        size,
        blur_of(result, particles.box, size),
        particles.pixel_size,
        each=(ctf_as_sorted(particles, result),),
        n_jobs=n_jobs,
    )
    yield from _sheets(blocks, n, size, order)


def denoised_sheets(denoiser: TileDenoiser, order: Indices) -> Iterator[bytes]:
    """Put denoised tiles of all images on sheets, as `tile_sheets` does.

    Parameters
    ----------
    denoiser : TileDenoiser
    order : ndarray of intp, shape (n,)

    Yields
    ------
    png : bytes
    """
    n, size = len(order), side_of(len(order), denoiser.particles.box)
    starts = range(0, n, _DENOISED_AT_ONCE)
    blocks = (
        denoised_tiles(denoiser, np.arange(start, min(start + _DENOISED_AT_ONCE, n)), size)
        for start in starts
    )
    yield from _sheets(blocks, n, size, order)


def _batch(
    images: Images, start: int, ctf: CtfParameters | None, size: int, blur: float, pixel_size: float
) -> Greys:
    return flipped_tiles(images, ctf, pixel_size, size, blur)


def _sheets(blocks: Iterator[Greys], n: int, size: int, order: Indices) -> Iterator[bytes]:
    """Put tiles that come in the order of the files on sheets in another order."""
    # On the disk: a thousand tiles are half a megabyte, and there may be a million.
    with tempfile.TemporaryFile() as file:
        for block in blocks:
            file.write(block.tobytes())
        file.flush()
        if n == 0:
            return
        tiles = np.memmap(file, np.uint8, "r", shape=(n, size, size))
        for start in range(0, n, PER_SHEET):
            yield sheet_png(tiles[order[start : start + PER_SHEET]])


def sheet_png(tiles: Greys, columns: int = ROWS) -> bytes:
    """Put tiles side by side into one picture.

    Parameters
    ----------
    tiles : ndarray of uint8, shape (k, s, s)
    columns : int
        Tiles in each row.

    Returns
    -------
    png : bytes
        A single black pixel where there is no tile.
    """
    if len(tiles) == 0:
        return png_of(np.zeros((1, 1), dtype=np.uint8))
    size = tiles.shape[1]
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * columns, size, size), dtype=np.uint8)
    sheet[: len(tiles)] = tiles
    return png_of(sheet.reshape(rows, columns, size, size).swapaxes(1, 2).reshape(rows * size, -1))
