"""Sizes that all parts of the picture share."""

from __future__ import annotations

WIDTH = 1600
COLUMNS = 12
# Images of each kind; images beside their denoised copies.
N_TILES, N_PAIRS = 24, COLUMNS // 2
# In units of the rows of images; 12 columns of them are 96 % of the width.
TILE = 96
GAP = 6
LABEL = 16
PIXELS_PER_UNIT = 0.96 * WIDTH / (COLUMNS * (TILE + GAP))
