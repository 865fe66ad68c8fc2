"""What the radial filter learns from a sample of the images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsort._types import Floats, Images, Singles
from fastsort.images.normalize import normalize_background
from fastsort.images.picks import N_LEARNED_FROM, picked_noise
from fastsort.images.prepare import sample_batches
from fastsort.particles.source import Particles
from fastsort.radial.discriminant import Discriminant, discriminant_score, fit_discriminant
from fastsort.radial.evidence import radial_features
from fastsort.radial.template import RadialTemplate, learn_template, ordinary, ring_power

# Small enough for all maps of a batch to stay in the processor's cache.
BATCH = 256
N_SAMPLE = 2048
# A peak away from the centre counts as a second particle if it is higher than nine tenths of those
# beside good particles, within these parts of a typical height.
SECOND_PARTICLE = (0.25, 0.9)


class LearnedRadial(NamedTuple):
    """What was learned of particles: all that is needed to score an image; lengths in cropped pixels.

    Attributes
    ----------
    template : RadialTemplate
    radius : float
        Of the particle.
    discriminant : Discriminant
    displaced_scores : ndarray of float64, shape (m,)
        What displaced places of the images scored that were learned from.
    typical_height : float
        Of the peak near the centre.
    second_height : float
        A peak away from the centre that is higher than this counts as a second particle.
    """

    template: RadialTemplate
    radius: float
    discriminant: Discriminant
    displaced_scores: Floats
    typical_height: float
    second_height: float


def read_sample(particles: Particles, operator: Singles, radius: float | None, seed: int) -> Images | None:
    """Return cropped and normalised images to learn from, or None where no image is fit."""
    images = np.concatenate(list(sample_batches(particles, operator, N_SAMPLE, BATCH, seed)))
    if len(images) == 0:
        return None
    normalize_background(images, background_radius(radius, len(operator)))
    return images


def background_radius(radius: float | None, box: int) -> float:
    """Return the radius outside of which a cropped image counts as background."""
    return 0.5 * box if radius is None else min(max(radius, 0.25 * box), 0.5 * box)


def learn_radial(images: Images, radius: float | None, contrast: str) -> LearnedRadial:
    """Learn the template, then what tells the centres of good picks from displaced places and picked noise.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        As `read_sample` returns them.
    radius : float or None
        Of the particle, in cropped pixels; None finds it.
    contrast : {"auto", "bright", "dark"}

    Returns
    -------
    learned : LearnedRadial
    """
    picks = picked_noise(images, N_LEARNED_FROM, background_radius(radius, images.shape[1]))
    template, radius = learn_template(images, radius, contrast)
    half = images.shape[1] // 2
    places = ((half, 0), (0, half), (half, half), (0, 0))
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    measured = [radial_features(part, template, radius, places)[:2] for part in parts]
    features = np.concatenate([part for part, _ in measured], axis=1)
    other_peaks = np.concatenate([peaks.other for _, peaks in measured])
    displaced, centred = features[:3], features[3]
    picked = radial_features(picks, template, radius)[0][0]
    discriminant = fit_discriminant(centred, displaced, picked, ordinary(ring_power(images)))
    scores = discriminant_score(displaced.reshape(-1, displaced.shape[-1]), discriminant)
    best = np.argsort(discriminant_score(centred, discriminant), kind="stable")[: max(1, len(images) // 4)]
    height = float(np.median(centred[best, 0]))
    low, high = SECOND_PARTICLE
    second = float(np.clip(np.quantile(other_peaks[best], 0.9), low * height, high * height))
    return LearnedRadial(template, radius, discriminant, scores, height, second)
