"""Pictures that are nearly the same: another size, compression, brightness, or mirrored.

A perceptual hash (signs of the lowest 8 x 8 cosine coefficients against their median, as pHash)
finds candidates, the correlation of the pixels confirms them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.data.shards import Split

SIDE = 48  # pixels at which pictures are compared; smaller ones as they are
MAX_DISTANCE = 10  # bits of 64
MIN_CORRELATION = 0.9
BLOCK, PAIRS_AT_ONCE = 4096, 1 << 15
COMPARED = 1 << 22  # hash pairs at a time, which fit in the cache


def gray(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images [n, H, W, C] as luma of at most SIDE pixels a side, [n, s, s]."""
    luma = images[..., 0]
    if images.shape[3] == 3:
        luma = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])
    if luma.shape[1] > SIDE:
        size = (SIDE, SIDE)
        luma = np.stack([cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in luma])
    return luma.astype(np.float32)


def hashes(split: Split) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The hash of every image of a split, and that of its mirror image, [n] each."""
    parts = [
        _hash_block(gray(part[i : i + BLOCK]))
        for part in split.images
        for i in range(0, len(part), BLOCK)
    ]
    plain, mirrored = zip(*parts, strict=True)
    return np.concatenate(plain), np.concatenate(mirrored)


def _hash_block(luma: NDArray[np.float32]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    side = luma.shape[1]
    place, wave = np.arange(side), np.arange(1, 9)
    cosines = np.cos(np.pi * (2 * place + 1) * wave[:, None] / (2 * side)).astype(np.float32)
    rows = np.matmul(luma, cosines.T)  # [n, s, 8]
    low = np.matmul(cosines, rows)  # [n, 8, 8]
    signs = np.where(wave % 2, -1, 1).astype(np.float32)  # of a mirrored picture, odd waves turn
    return _bits(low), _bits(low * signs)


def _bits(low: NDArray[np.float32]) -> NDArray[np.uint64]:
    flat = low.reshape(len(low), 64)
    bits = flat > np.median(flat, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def near_pairs(
    one: Split, other: Split, one_hashes: NDArray[np.uint64], other_hashes: NDArray[np.uint64]
) -> Iterator[tuple[int, int]]:
    """(row of `one`, row of `other`) of all nearly equal pictures; equal ones are among them.

    `other_hashes` may be those of the mirror images.
    """
    step = max(1, COMPARED // max(1, len(one_hashes)))

    def candidates(first: int) -> NDArray[np.int64]:
        distance = np.bitwise_count(other_hashes[first : first + step, None] ^ one_hashes[None])
        theirs, mine = np.nonzero(distance <= MAX_DISTANCE)
        return np.stack([mine, theirs + first], 1)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for row_pairs in pool.map(candidates, range(0, len(other_hashes), step)):
            for i in range(0, len(row_pairs), PAIRS_AT_ONCE):
                pairs = row_pairs[i : i + PAIRS_AT_ONCE]
                for k in np.flatnonzero(_is_same(one, other, pairs)).tolist():
                    yield int(pairs[k, 0]), int(pairs[k, 1])


def _is_same(one: Split, other: Split, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the pixels of each pair, or of one and the other's mirror image, correlate."""
    mine, theirs = _centred(one, pairs[:, 0]), _centred(other, pairs[:, 1])
    flat = (len(pairs), -1)
    straight = (mine * theirs).reshape(flat).sum(1)
    mirrored = (mine * theirs[:, :, ::-1]).reshape(flat).sum(1)
    return np.asarray(np.maximum(straight, mirrored) > MIN_CORRELATION)


def _centred(split: Split, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Images of rows [k, s, s] with mean 0 and length 1; blank ones are 0."""
    shard = np.searchsorted(split.starts, rows, side="right") - 1
    places = zip(shard.tolist(), (rows - split.starts[shard]).tolist(), strict=True)
    luma = gray(np.stack([split.images[s][i] for s, i in places]))
    luma -= luma.mean((1, 2), keepdims=True)
    length = np.sqrt(np.square(luma).sum((1, 2), keepdims=True))
    return np.asarray(luma / np.maximum(length, 1e-3))
