"""Pictures as PNG."""

from __future__ import annotations

import struct
import zlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Greys: TypeAlias = npt.NDArray[np.uint8]
"""Values from 0, black, to 255, white."""

# Higher levels take up to ten times as long, and make files that are a tenth smaller.
_LEVEL = 2


def png_of(pixels: Greys) -> bytes:
    """Encode a picture.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width) or (height, width, 3)
        Grey values, or red, green and blue.

    Returns
    -------
    png : bytes
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    # Filter 2 of the format: each value minus the one above it, which compresses better.
    lines = np.empty((height, 1 + rows.shape[1]), dtype=np.uint8)
    lines[:, 0] = 2
    lines[:, 1:] = np.diff(rows, axis=0, prepend=np.uint8(0))
    header = struct.pack(">2I5B", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(lines.tobytes(), _LEVEL), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
