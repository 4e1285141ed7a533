"""Nearly equal pictures in two splits."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fer_hpc.data.near import hashes, near_pairs
from fer_hpc.data.shards import Split

N = 40


def faces(seed: int, side: int, channels: int) -> np.ndarray:
    rough = np.random.default_rng(seed).integers(0, 256, (N, 7, 7, channels), np.uint8)
    size = (side, side)
    smooth = [cv2.resize(x, size, interpolation=cv2.INTER_CUBIC) for x in rough]
    return np.stack(smooth).reshape(N, side, side, channels)


def split_of(images: np.ndarray) -> Split:
    parts = [images[:15], images[15:]]  # two shards
    return Split("x", parts, np.array([0, 15, len(images)]), {})


def found(one: np.ndarray, other: np.ndarray) -> set[tuple[int, int]]:
    a, b = split_of(one), split_of(other)
    mine = hashes(a)[0]
    return {pair for turned in hashes(b) for pair in near_pairs(a, b, mine, turned)}


def changed(how: str, images: np.ndarray) -> np.ndarray:
    if how == "brightness":
        return (images * 0.7 + 30).astype(np.uint8)
    if how == "mirrored":
        return images[:, :, ::-1]
    if how == "noise":
        noise = np.random.default_rng(9).normal(0, 12, images.shape)
        return (images + noise).clip(0, 255).astype(np.uint8)
    back, out = images.shape[1:3], []
    for image in images:
        if how == "size":
            image = cv2.resize(cv2.resize(image, (20, 20)), back)
        else:
            image = cv2.imdecode(cv2.imencode(".jpg", image, [1, 30])[1], -1)
        out.append(image.reshape(images.shape[1:]))
    return np.stack(out)


@pytest.mark.parametrize("how", ["brightness", "mirrored", "noise", "size", "compression"])
@pytest.mark.parametrize(("side", "channels"), [(32, 1), (96, 3)])
def test_a_changed_copy_is_found_and_nothing_else(how: str, side: int, channels: int) -> None:
    images = faces(0, side, channels)
    others = faces(1, side, channels)
    others[[3, 20, 39]] = changed(how, images[[5, 16, 30]])
    assert found(images, others) == {(5, 3), (16, 20), (30, 39)}


def test_blank_pictures_are_no_copies_of_each_other() -> None:
    images, others = faces(0, 32, 1), faces(1, 32, 1)
    images[:10], others[:10] = 7, 9
    assert not found(images, others)
