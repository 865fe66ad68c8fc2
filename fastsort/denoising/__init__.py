"""Denoising: what one image, or all images of a set, say of the image without noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsort._lazy import lazy_names

if TYPE_CHECKING:
    from fastsort.denoising.covariance import covariance_filter, learn_covariance
    from fastsort.denoising.neighbours import learn_neighbours, neighbour_filter
    from fastsort.denoising.risk import predict_error
    from fastsort.denoising.spectra import learn_spectra

__all__ = [
    "covariance_filter",
    "learn_covariance",
    "learn_neighbours",
    "learn_spectra",
    "neighbour_filter",
    "predict_error",
]

__getattr__, __dir__ = lazy_names(
    "fastsort.denoising",
    {
        "covariance_filter": "fastsort.denoising.covariance",
        "learn_covariance": "fastsort.denoising.covariance",
        "learn_neighbours": "fastsort.denoising.neighbours",
        "learn_spectra": "fastsort.denoising.spectra",
        "neighbour_filter": "fastsort.denoising.neighbours",
        "predict_error": "fastsort.denoising.risk",
    },
)
