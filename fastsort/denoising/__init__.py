"""Denoising of particle images whose noise is white."""

from __future__ import annotations
