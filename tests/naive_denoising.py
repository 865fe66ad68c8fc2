"""The denoising methods again, slowly and obviously, in float64; imports nothing from fastsort."""

from __future__ import annotations

import itertools

import numpy as np


def rof_objective(result, image, weight):
    """Sum of squared changes / 2 plus weight times the total variation, of one image."""
    result, image = np.asarray(result, float), np.asarray(image, float)
    down, right = np.zeros_like(result), np.zeros_like(result)
    down[:-1] = np.diff(result, axis=0)
    right[:, :-1] = np.diff(result, axis=1)
    return ((result - image) ** 2).sum() / 2 + weight * np.hypot(down, right).sum()


def chambolle(image, weight, n_iterations=2000):
    """Chambolle's fixed point of 2004, of one image."""
    image = np.asarray(image, float)
    field = np.zeros((2, *image.shape))
    for _ in range(n_iterations):
        divergence = field.sum(axis=0)
        divergence[1:] -= field[0, :-1]
        divergence[:, 1:] -= field[1, :, :-1]
        value = divergence + image / weight
        gradient = np.zeros_like(field)
        gradient[0, :-1] = np.diff(value, axis=0)
        gradient[1, :, :-1] = np.diff(value, axis=1)
        field = (field + gradient / 8) / (1 + np.hypot(*gradient) / 8)
    divergence = field.sum(axis=0)
    divergence[1:] -= field[0, :-1]
    divergence[:, 1:] -= field[1, :, :-1]
    return image + weight * divergence


def nonlocal_means(image, strength, deviation, patch, distance):
    """Non-local means of one image, pixel by pixel, by the formula."""
    image = np.asarray(image, float)
    d, margin = len(image), patch // 2
    padded = np.pad(image, margin, mode="reflect")

    def about(y, x):
        return padded[y : y + patch, x : x + patch]

    result = np.zeros_like(image)
    for y, x in itertools.product(range(d), repeat=2):
        weights, total = 0.0, 0.0
        for v in range(max(y - distance, 0), min(y + distance + 1, d)):
            for u in range(max(x - distance, 0), min(x + distance + 1, d)):
                difference = ((about(y, x) - about(v, u)) ** 2).mean()
                excess = max(difference - 2 * deviation**2, 0)
                weight = np.exp(-excess / (strength * deviation) ** 2)
                weights += weight
                total += weight * image[v, u]
        result[y, x] = total / weights
    return result


def all_patches(image, p):
    """Every p x p patch of an image, row by row, and where each begins."""
    places = list(itertools.product(range(len(image) - p + 1), repeat=2))
    return np.array([image[y : y + p, x : x + p].ravel() for y, x in places]), places


def averaged(patches, places, p, d):
    """Overlapping patches put back and averaged."""
    total, count = np.zeros((d, d)), np.zeros((d, d))
    for one, (y, x) in zip(patches, places, strict=True):
        total[y : y + p, x : x + p] += one.reshape(p, p)
        count[y : y + p, x : x + p] += 1
    return total / count


def pursuit(patch, atoms, allowed, most):
    """Orthogonal matching pursuit of one patch: coefficients of the atoms."""
    chosen, coefficients = [], np.zeros(len(atoms))
    left = patch.copy()
    while (left**2).mean() > allowed**2 and len(chosen) < most:
        chosen.append(int(np.argmax(np.abs(atoms @ left))))
        solution = np.linalg.lstsq(atoms[chosen].T, patch, rcond=None)[0]
        left = patch - atoms[chosen].T @ solution
    coefficients[chosen] = solution if chosen else []
    return coefficients


def ksvd_round(patches, atoms, coefficients):
    """One round of atom updates by exact SVDs; coefficients: (n, k). Every atom must be used."""
    atoms, coefficients = atoms.copy(), coefficients.copy()
    for k in range(len(atoms)):
        users = np.flatnonzero(coefficients[:, k])
        others = coefficients[users].copy()
        others[:, k] = 0
        left = patches[users] - others @ atoms
        u, s, vt = np.linalg.svd(left, full_matrices=False)
        sign = np.sign(vt[0] @ atoms[k])
        atoms[k], coefficients[users, k] = sign * vt[0], sign * s[0] * u[:, 0]
    return atoms, coefficients


def hard(values, threshold):
    return np.where(np.abs(values) < threshold, 0.0, values)


def cosine_matrix(n):
    """Orthonormal discrete cosine transform, type II."""
    k, j = np.mgrid[:n, :n]
    matrix = np.sqrt(2 / n) * np.cos(np.pi * k * (j + 0.5) / n)
    matrix[0] /= np.sqrt(2)
    return matrix


def wavelet_matrix(n):
    """All levels of the periodic wavelet bior1.5 on n samples, rows of unit norm, sample by sample."""
    low = np.array([3, -3, -22, 22, 128, 128, 22, -22, -3, 3]) / 256

    def transformed(x):
        if len(x) == 1:
            return x
        m = len(x)
        smooth = np.array([sum(low[t] * x[(2 * k + t - 4) % m] for t in range(10)) for k in range(m // 2)])
        detail = np.array([x[2 * k] - x[2 * k + 1] for k in range(m // 2)])
        return np.concatenate([transformed(smooth), detail])

    matrix = np.array([transformed(column) for column in np.eye(n)]).T
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def hadamard_matrix(n):
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(n)


def bm3d_stage(image, guide, wiener, step, size=16, reach=19, b=8, threshold=2.8, beta=2.0):
    """One stage of BM3D on one image whose noise has deviation 1."""
    d = len(image)
    side = d - b + 1
    forward = cosine_matrix(b) if wiener else wavelet_matrix(b)
    backward = np.linalg.inv(forward)
    along = hadamard_matrix(size)
    window = np.outer(np.kaiser(b, beta), np.kaiser(b, beta))
    total, weights = np.zeros((d, d)), np.zeros((d, d))
    corners = sorted({*range(0, side, step), side - 1})

    def cut(pixels, places):
        return np.array([pixels[y : y + b, x : x + b] for y, x in places])

    def spectrum(pixels, places):
        planes = forward @ cut(pixels, places) @ forward.T
        return np.tensordot(along, planes, axes=(1, 0))

    for y, x in itertools.product(corners, repeat=2):
        places = [
            (v, u)
            for v in range(max(y - reach, 0), min(y + reach + 1, side))
            for u in range(max(x - reach, 0), min(x + reach + 1, side))
        ]
        reference = cut(guide, [(y, x)])[0]
        distance = ((cut(guide, places) - reference) ** 2).sum(axis=(1, 2))
        distance[places.index((y, x))] = -1
        places = [places[k] for k in np.argsort(distance, kind="stable")[:size]]
        group = spectrum(image, places)
        if wiener:
            power = spectrum(guide, places) ** 2
            share = power / (power + 1)
            group, kept = group * share, (share**2).sum()
        else:
            group = np.where(np.abs(group) > threshold, group, 0)
            kept = np.count_nonzero(group)
        blocks = backward @ np.tensordot(along, group, axes=(1, 0)) @ backward.T
        for block, (v, u) in zip(blocks, places, strict=True):
            total[v : v + b, u : u + b] += window * block / max(kept, 1)
            weights[v : v + b, u : u + b] += window / max(kept, 1)
    return total / weights


def bm3d(image, deviation, n_passes=1):
    image = np.asarray(image, float)
    mean = image.mean()
    # The mean of d x d pixels of noise has a deviation d times smaller than the noise.
    offset = mean if abs(mean) >= 3 * deviation / len(image) else 0.0
    scaled = (image - offset) / deviation
    result = bm3d_stage(scaled, scaled, False, 3)
    for _ in range(n_passes):
        result = bm3d_stage(scaled, result, True, 2)
    return result * deviation + offset
