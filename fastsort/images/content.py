"""What an image is told by, whatever it is called: 64 bits made of its pixels."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from fastsort._checks import InputError
from fastsort._jit import kernel
from fastsort._types import Contents, Images
from fastsort.images.batches import map_batches
from fastsort.particles.source import Particles

# Any odd number with its bits well mixed makes a good factor; this one is the golden ratio of 64 bits.
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def content_of(images: Images) -> Contents:
    """Return a number for each image that no other image has, but by a chance of 1 in 2^64.

    Parameters
    ----------
    images : ndarray of float32, shape (n, d, d)
        As they are read, before anything is changed.

    Returns
    -------
    content : ndarray of uint64, shape (n,)
    """
    content = np.empty(len(images), np.uint64)
    if len(images):
        _content(images.reshape(len(images), -1).view(np.uint32), FACTOR, content)
    return content


def read_content(particles: Particles, n_jobs: int | None = None) -> Contents:
    """Read images and return their content, shape (n,)."""
    return np.concatenate(list(map_batches(_content_batch, particles, n_jobs=n_jobs)))


def stamps_of(particles: Particles) -> Contents:
    """Return for each image a number made of the size and time of its file, or 0 where there is no file.

    Parameters
    ----------
    particles : Particles

    Returns
    -------
    stamps : ndarray of uint64, shape (n,)
        Equal as long as a file was not written anew, wherever it was moved.

    Raises
    ------
    InputError
        If a file cannot be found.
    """
    files = particles.store.files()
    if not files:
        return np.zeros(len(particles), np.uint64)
    stamps = np.array([_stamp(path) for path in files], np.uint64)
    return stamps[particles.store.file_of()]


def _stamp(path: str) -> int:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check that the file is there.") from None
    text = f"{status.st_size} {status.st_mtime_ns}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _content_batch(images: Images, start: int) -> Contents:
    return content_of(images)


@kernel
def _content(words, factor, content):
    # words: (n, d * d). Four chains that do not wait for each other.
    size = words.shape[1]
    whole = size - size % 8
    for i in range(words.shape[0]):
        a = np.uint64(1)
        b = np.uint64(2)
        c = np.uint64(3)
        d = np.uint64(4)
        for j in range(0, whole, 8):
            a = _mixed(a, words[i, j], words[i, j + 1], factor)
            b = _mixed(b, words[i, j + 2], words[i, j + 3], factor)
            c = _mixed(c, words[i, j + 4], words[i, j + 5], factor)
            d = _mixed(d, words[i, j + 6], words[i, j + 7], factor)
        for j in range(whole, size):
            a = _mixed(a, words[i, j], np.uint32(0), factor)
        for other in (b, c, d):
            a = _mixed(a, np.uint32(other), np.uint32(other >> np.uint64(32)), factor)
        content[i] = a


@kernel
def _mixed(chain, low, high, factor):
    # A product never brings a high bit down, such as the sign of a pixel: the shifts do.
    pair = np.uint64(low) | np.uint64(high) << np.uint64(32)
    pair = (pair ^ pair >> np.uint64(32)) * factor
    chain = (chain ^ pair) * factor
    return chain ^ chain >> np.uint64(29)
