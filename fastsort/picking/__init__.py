"""Where particles are in micrographs: learned from the micrographs themselves, without labels or training."""

from __future__ import annotations
