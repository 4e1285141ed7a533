from __future__ import annotations

import cv2
import numpy as np
import pytest

from fer_hpc.data import faces
from fer_hpc.data.faces import Reject


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x, 6 * y, 255 - 4 * x], 2).astype(np.uint8)  # RGB


def encoded(image: np.ndarray, kind: str = ".png") -> bytes:
    return bytes(cv2.imencode(kind, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1])


def test_colours_come_back_in_rgb_order() -> None:
    assert (faces.decode(encoded(picture()), 3) == picture()).all()


def test_gray_is_luma() -> None:
    luma = picture() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(faces.decode(encoded(picture()), 1) - luma).max() <= 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is text", "not an image"),
        (encoded(picture(300, 300), ".jpg")[:2000], "truncated"),
        (encoded(picture(300, 300))[:1000], "not an image|truncated"),
    ],
)
def test_what_is_no_whole_picture_is_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(Reject, match=reason):
        faces.decode(data, 1)


def test_landmark_box_is_tight_plus_15_percent_and_clipped() -> None:
    points = np.full((68, 2), 30, np.float32)
    points[0], points[1] = (20, 10), (40, 30)
    assert faces.landmark_box(points, 100, 100) == (17, 7, 43, 33)
    assert faces.landmark_box(points, 42, 32) == (17, 7, 42, 32)


def test_cut_carries_points_into_the_crop() -> None:
    image = np.zeros((80, 80), np.uint8)
    image[30:34, 50:54] = 255  # a dot around (51.5, 31.5)
    face, to_crop, empty = faces.cut(image, (40, 20, 70, 60), 24)
    x, y = np.array([51.5, 31.5]) * to_crop[:2] + to_crop[2:]
    rows, columns = np.nonzero(face[..., 0] > 0)
    weights = face[rows, columns, 0].astype(float)
    assert (np.average(columns, weights=weights), np.average(rows, weights=weights)) == pytest.approx((x, y), abs=0.05)
    assert face.shape == (24, 24, 1)
    assert not empty


def test_an_empty_box_falls_back_to_the_whole_image() -> None:
    face, _, empty = faces.cut(picture(48, 48), (10, 10, 10, 30), 48)
    assert empty
    assert (face == picture(48, 48)).all()


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((96, 96), np.uint8)
    stripes[:, ::2] = 255
    face, _, _ = faces.cut(stripes, None, 48)
    assert (np.abs(face.astype(int) - 127) <= 1).all()
