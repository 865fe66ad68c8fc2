"""What happens to every image: crop, phase flip, batches, workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsort._lazy import lazy_names

if TYPE_CHECKING:
    from fastsort.images.cluster import use_cluster
    from fastsort.images.crop import fourier_crop
    from fastsort.images.ctf import contrast_transfer, phase_flip
    from fastsort.images.maxima import blob_maxima
    from fastsort.images.picks import picked_noise

__all__ = [
    "blob_maxima",
    "contrast_transfer",
    "fourier_crop",
    "phase_flip",
    "picked_noise",
    "use_cluster",
]

__getattr__, __dir__ = lazy_names(
    "fastsort.images",
    {
        "fourier_crop": "fastsort.images.crop",
        "phase_flip": "fastsort.images.ctf",
        "contrast_transfer": "fastsort.images.ctf",
        "blob_maxima": "fastsort.images.maxima",
        "picked_noise": "fastsort.images.picks",
        "use_cluster": "fastsort.images.cluster",
    },
)
