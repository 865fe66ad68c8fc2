"""Short `repr` for results: one line for each field, and of an array only its type and shape.

A result with a method ``_headline`` says first what came out.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

_WIDTH = 100
Kind = TypeVar("Kind", bound=type)


def brief(kind: Kind) -> Kind:
    """Give a NamedTuple of arrays a short `repr`."""
    kind.__repr__ = _describe  # type: ignore[assignment]
    return kind


def _describe(result: Any) -> str:
    lines = [f"  {name}={_in_words(value)}" for name, value in zip(result._fields, result, strict=True)]
    lines = [line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..." for line in lines]
    name = type(result).__name__
    if hasattr(result, "_headline"):
        return "\n".join([f"{name}: {result._headline()}", *lines])
    return "\n".join([f"{name}(", *lines, ")"])


def _in_words(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{'str' if value.dtype.kind == 'U' else value.dtype} {value.shape}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_in_words(item)}' for key, item in value.items())}}}"
    if isinstance(value, tuple):
        return f"{type(value).__name__} of {len(value)}"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
