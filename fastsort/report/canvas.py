"""Figures as wide as the report, on which everything is placed in pixels from the upper left corner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastsort._types import FilePath
from fastsort.report.layout import WIDTH
from fastsort.report.png import Greys, png_of

MARGIN, HEADING = 32, 92


def new_figure(height: int) -> Any:
    """Return an empty figure of so many pixels' height."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def figure_png(figure: Any) -> bytes:
    """Draw a figure and encode it as PNG."""
    figure.canvas.draw()
    return png_of(drawn_pixels(figure))


def drawn_pixels(figure: Any) -> Greys:
    """Return what was drawn, for changing it: a view of shape (height, width, 3)."""
    # All of it is opaque.
    pixels: Greys = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    return pixels


def save_figure(figure: Any, path: FilePath) -> None:
    """Draw a figure and write it as PNG."""
    Path(path).write_bytes(figure_png(figure))


def add_panel(figure: Any, place: tuple[int, int, int, int]) -> Any:
    """Add axes; `place` is left, top, width and height."""
    left, top, width, height = place
    whole = figure.get_figheight() * 100
    return figure.add_axes(
        (left / WIDTH, 1 - (top + height) / whole, width / WIDTH, height / whole), facecolor="none"
    )


def write(figure: Any, x: float, y: float, text: str, **look: Any) -> None:
    """Write text; `x` and `y` are its place."""
    figure.text(x / WIDTH, 1 - y / (figure.get_figheight() * 100), text, parse_math=False, **look)


def write_heading(figure: Any, title: str, details: str) -> None:
    """Write a title, and a line of details below it."""
    write(figure, MARGIN, 44, title, fontsize=19, fontweight="bold")
    write(figure, MARGIN, 74, details, fontsize=12, color="0.3")
