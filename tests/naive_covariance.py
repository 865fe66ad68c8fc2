"""The covariance filter again, slowly and obviously: one dense linear system for each angular index."""

import numpy as np

from fastsort.subspaces.pswf import angular_blocks, pswf_basis


def shrink(value, ratio):
    """Variance of the signal for one eigenvalue of a sample covariance whose noise is 1 (Frobenius norm)."""
    if value <= (1 + ratio**0.5) ** 2:
        return 0.0
    spike = (value + 1 - ratio + ((value + 1 - ratio) ** 2 - 4 * value) ** 0.5) / 2
    return (spike - 1) * (1 - ratio / (spike - 1) ** 2) / (1 + ratio / (spike - 1))


def temper(covariance, information, n):
    """Multiply entries between directions that the images say little of with the gain of a Wiener filter."""
    values, axes = np.linalg.eigh(information)
    entries = axes.T @ covariance @ axes
    gain = np.ones_like(entries)
    for _ in range(3):
        above = below = 0.0
        for i, mu in enumerate(values):
            for j, nu in enumerate(values):
                above += gain[i, j] * n * mu * nu * entries[i, j] ** 2
                below += gain[i, j] * n * mu * nu
        size = above / below if below > 0 else 0.0
        for i, mu in enumerate(values):
            for j, nu in enumerate(values):
                gain[i, j] = n * mu * nu * size / (1 + n * mu * nu * size)
    return axes @ (gain * entries) @ axes.T


def covariance_filter(images, transfers, noise, working_box, bandlimit):
    """Denoise images whose box is the working box; transfers (n, d, d // 2 + 1), noise the same plane.

    Returns images (n, d, d).
    """
    basis = pswf_basis(working_box, bandlimit)
    size = working_box
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    passed = (frequency <= bandlimit + 1e-9) / noise
    functions = basis.functions.astype(np.float64)
    matched = np.fft.irfft2(np.fft.rfft2(images) * transfers * passed, (size, size))
    rows = matched.reshape(len(images), -1) @ functions.reshape(len(functions), -1).T
    kinds, which = np.unique(transfers, axis=0, return_inverse=True)
    which = which.ravel()
    share = np.bincount(which) / len(which)
    estimate = np.zeros_like(rows)
    for m, places in enumerate(angular_blocks(basis)):
        some = functions[places[0]]
        operators = []
        for kind in kinds:
            seen = np.fft.irfft2(np.fft.rfft2(some) * kind**2 * passed, (size, size))
            operators.append(np.tensordot(some, seen, ([1, 2], [1, 2])))
        average = sum(part * one for part, one in zip(share, operators, strict=True))
        mean = np.zeros(len(some))
        if m == 0:
            mean = np.linalg.lstsq(average, rows[:, places[0]].mean(axis=0), rcond=1e-6)[0]
        scatter = np.zeros((len(some), len(some)))
        for place in places:
            for i, row in enumerate(rows[:, place]):
                rest = row - operators[which[i]] @ mean
                scatter += np.outer(rest, rest) / (len(rows) * len(places))
        values, vectors = np.linalg.eigh(average)
        kept = values > 1e-6 * values[-1]
        root = vectors[:, kept] * values[kept] ** 0.5
        inverse = vectors[:, kept] / values[kept] ** 0.5
        found, axes = np.linalg.eigh(inverse.T @ scatter @ inverse)
        ratio = len(found) / (len(rows) * len(places))
        sizes = np.array([shrink(value, ratio) for value in found])
        signal = root @ (axes * sizes) @ axes.T @ root.T
        # sum of share G C G = signal, written as one system for all entries of C.
        system = sum(part * np.kron(one, one) for part, one in zip(share, operators, strict=True))
        covariance = np.linalg.lstsq(system, signal.ravel(), rcond=1e-10)[0].reshape(signal.shape)
        covariance = temper((covariance + covariance.T) / 2, average, len(rows) * len(places))
        values, vectors = np.linalg.eigh(covariance)
        covariance = (vectors * np.maximum(values, 0)) @ vectors.T
        for place in places:
            for i, row in enumerate(rows[:, place]):
                own = operators[which[i]]
                rest = np.linalg.solve(np.eye(len(own)) + covariance @ own, covariance @ (row - own @ mean))
                estimate[i, place] = mean + rest
    return (estimate @ functions.reshape(len(functions), -1)).reshape(images.shape)
