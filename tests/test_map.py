"""The map: components, classes and places, from features and from images."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import fastsort as fs
from fastsort.invariants import map as map_module
from fastsort.invariants.map import map_features, map_particles

needs_umap = pytest.mark.skipif(
    importlib.util.find_spec("umap") is None, reason="umap-learn is not installed"
)


def clusters(seed=0, n=600, n_clusters=3, width=30, distance=8.0):
    """Unit noise about a few centres, and which centre."""
    rng = np.random.default_rng(seed)
    centres = distance * rng.normal(size=(n_clusters, width)) / np.sqrt(width) * 3
    truth = rng.integers(n_clusters, size=n)
    return (centres[truth] + rng.normal(size=(n, width))).astype(np.float32), truth


def purity(label, truth):
    """Share of the images whose class is mostly of their kind."""
    return sum(np.bincount(truth[label == c]).max() for c in np.unique(label)) / len(truth)


def test_number_of_classes_is_found():
    features, truth = clusters()
    found = map_features(features, embedding="pca")
    assert found.n_classes == 3
    assert purity(found.label, truth) > 0.99
    assert np.argmin(found.criterion) == 2
    assert (np.diff(np.bincount(found.label)) <= 0).all()
    assert found.probability.min() > 0.3
    assert map_features(features[truth == 0], embedding="pca").n_classes == 1


def test_components_keep_95_percent_of_the_variance():
    features, _ = clusters(1)
    values = np.linalg.eigvalsh(np.cov(features.T.astype(np.float64)))[::-1]
    expected = np.searchsorted(np.cumsum(values) / values.sum(), 0.95) + 1
    found = map_features(features, 2, embedding="pca")
    assert found.n_components == expected
    assert found.embedding == "pca"
    # The first two components, up to the sign.
    centred = features - features.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.coordinates), np.abs(centred @ axes[:2].T), atol=2e-2)


def test_streams_agree_with_the_whole(monkeypatch, tmp_path):
    features, truth = clusters(2, n=900)
    whole = map_features(features, 3, embedding="pca")
    np.save(tmp_path / "features.npy", features)
    mapped = map_features(np.load(tmp_path / "features.npy", mmap_mode="r"), 3, embedding="pca")
    for one, other in zip(mapped, whole, strict=True):
        np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(map_module, "N_FITTED", 200)
    monkeypatch.setattr(map_module, "CHUNK", 70)
    part = map_features(features, 3, embedding="pca")
    np.testing.assert_allclose(np.abs(part.coordinates), np.abs(whole.coordinates), atol=1e-2)
    assert purity(part.label, truth) > 0.99


@needs_umap
def test_umap_keeps_clusters_together_and_repeats():
    features, truth = clusters(3, n=300)
    found = map_features(features, 3, embedding="umap", seed=4)
    assert found.embedding == "umap"
    centres = np.array([found.coordinates[truth == c].mean(axis=0) for c in range(3)])
    nearest = np.square(found.coordinates[:, None] - centres).sum(axis=2).argmin(axis=1)
    assert (nearest == truth).mean() > 0.98
    np.testing.assert_array_equal(
        map_features(features, 3, embedding="umap", seed=4).coordinates, found.coordinates
    )


def test_unfit_rows_have_no_place():
    features, _ = clusters(5, n=100)
    features[3], features[50] = np.nan, np.inf
    features[70, 2] = np.nan
    found = map_features(features, 2, embedding="pca")
    unfit = np.isin(np.arange(100), [3, 50, 70])
    np.testing.assert_array_equal(found.label == -1, unfit)
    np.testing.assert_array_equal(np.isnan(found.coordinates).all(axis=1), unfit)
    np.testing.assert_array_equal(found.probability == 0, unfit)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_small_and_equal_sets(n):
    features, _ = clusters(6, n=n)
    for rows in (features, np.repeat(features[:1], n, axis=0), features[:, :1]):
        found = map_features(rows)
        assert found.n_classes == 1
        assert (found.label == 0).all()
        assert np.isfinite(found.coordinates).all()


@pytest.mark.parametrize(
    ("features", "request_", "message"),
    [
        (np.zeros((5, 3)), {"n_classes": 6}, "6 classes need as many images; got 5"),
        (np.zeros((5, 3)), {"n_classes": 0}, "n_classes"),
        (np.zeros((5, 3)), {"embedding": "tsne"}, "embedding"),
        (np.zeros((5, 3)), {"seed": -1}, "seed"),
        (np.full((5, 3), np.nan), {}, "none without NaN among 5"),
        (np.zeros((0, 3)), {}, "no rows"),
        (np.zeros(5), {}, "real"),
        (np.zeros((5, 3), dtype=complex), {}, "real"),
    ],
)
def test_impossible_requests(features, request_, message):
    with pytest.raises(fs.InputError, match=message):
        map_features(features, **request_)


def test_two_molecules_fall_apart_without_being_told():
    stacks = [
        fs.simulate_particles(
            300, 0, snr=1 / 3, snr_definition="power", box=48, volume=name, junk="ppca", seed=seed
        )[0]
        for seed, name in enumerate(("shell", "elongated"))
    ]
    images = np.concatenate(stacks)
    truth = np.repeat([0, 1], 300)
    found = map_particles(images, 2, embedding="pca", n_jobs=2)
    assert purity(found.label, truth) > 0.98
    shuffled = np.random.default_rng(7).permutation(600)
    again = map_particles(images[shuffled], 2, embedding="pca")
    assert purity(again.label, truth[shuffled]) > 0.98
