"""Types of arrays and paths, each with one meaning in the whole package."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FilePath: TypeAlias = str | os.PathLike[str]

Array: TypeAlias = npt.NDArray[Any]
"""Numbers of any kind."""
Images: TypeAlias = npt.NDArray[np.float32]
"""Pixels of images, shape (n, d, d)."""
Singles: TypeAlias = npt.NDArray[np.float32]
"""Real numbers in single precision: coefficients, features, operators."""
Floats: TypeAlias = npt.NDArray[np.float64]
"""Real numbers in double precision: scores, sums, whatever is not large."""
Indices: TypeAlias = npt.NDArray[np.intp]
"""Places in an array."""
Numbers: TypeAlias = npt.NDArray[np.int32]
"""Whole numbers of which there are many: which stack, which section, which pixel."""
Codes: TypeAlias = npt.NDArray[np.int8]
"""Reasons as kernels write them."""
Contents: TypeAlias = npt.NDArray[np.uint64]
"""What images are told by: 64 bits of each, made of its pixels."""
Bools: TypeAlias = npt.NDArray[np.bool_]
Words: TypeAlias = npt.NDArray[np.str_]
