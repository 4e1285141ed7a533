"""Disturbances of faces, angles from landmarks, class maps and label noise: known values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fer_hpc.data.synthetic.facemodel import REST, project
from fer_hpc.evaluation.disturbances import DISTURBANCES, Face, face_at, mean_landmarks
from fer_hpc.evaluation.gradcam import class_maps
from fer_hpc.evaluation.label_noise import candidates
from fer_hpc.evaluation.pose import yaw_and_pitch


def smooth_face(size: int = 48, channels: int = 1) -> np.ndarray:
    """A picture with light and dark parts, of no extreme values."""
    y, x = np.mgrid[0:size, 0:size] / size
    values = 128 + 60 * np.sin(7 * x) * np.cos(5 * y)
    return np.repeat(values[..., None], channels, 2).astype(np.uint8)


@pytest.mark.parametrize("name", DISTURBANCES)
@pytest.mark.parametrize(("size", "channels"), [(48, 1), (112, 3)])
def test_a_stronger_disturbance_changes_more_and_always_in_the_same_way(
    name: str, size: int, channels: int
) -> None:
    kind = DISTURBANCES[name]
    pixels = smooth_face(size, channels)
    changes = []
    for strength in kind.strengths:
        once, again = (kind.apply(face_at(pixels, None, 7, 3), strength) for _ in range(2))
        assert (once.shape, once.dtype) == (pixels.shape, np.uint8)
        assert (once == again).all()
        changes.append(np.abs(once.astype(float) - pixels).mean())
    assert changes[0] > 0
    assert changes == sorted(changes)
    assert changes[-1] > 1.5 * changes[0]
    assert (pixels == smooth_face(size, channels)).all(), "the face itself is left as it is"


def test_faces_are_disturbed_in_both_directions() -> None:
    kind = DISTURBANCES["brightness"]
    means = [kind.apply(face_at(smooth_face(), None, k, 3), 0.3).mean() for k in range(20)]
    assert min(means) < smooth_face().mean() - 20 < smooth_face().mean() + 20 < max(means)


def painted(name: str, strength: float, landmarks: np.ndarray) -> np.ndarray:
    """Which pixels of a picture of 96 pixels a mask or glasses cover, [96, 96]."""
    pixels = np.full((96, 96, 3), 140, np.uint8)
    face = Face(pixels, landmarks, np.array([0.1, 0.1, 0.1, 0.1]), 0)
    return (DISTURBANCES[name].apply(face, strength) != 140).any(2)


def at(cover: np.ndarray, point: np.ndarray) -> bool:
    x, y = np.rint(point).astype(int)
    return bool(cover[y, x])


def test_a_mask_covers_mouth_and_nose_and_glasses_cover_the_eyes() -> None:
    for shift in (0, 9):  # they follow the landmarks
        p = mean_landmarks(96, 96) * 0.8 + shift
        mouth, nose, chin = p[48:68].mean(0), p[33], p[8] - (0, 3)
        eyes = p[36:42].mean(0), p[42:48].mean(0)
        full, mild = painted("mask", 1.0, p), painted("mask", 0.3, p)
        assert all(at(full, point) for point in (mouth, nose, chin))
        assert at(mild, chin)
        assert not at(mild, nose)
        assert not any(at(full, eye) for eye in eyes)
        dark = painted("glasses", 1.0, p)
        assert all(at(dark, eye) for eye in eyes)
        assert not any(at(dark, point) for point in (mouth, chin))


def test_landmarks_that_are_absent_become_those_of_a_mean_face() -> None:
    unknown = np.full((68, 2), np.nan, np.float32)
    pixels = smooth_face(64)
    assert (face_at(pixels, unknown, 0).landmarks == mean_landmarks(64, 64)).all()
    points = mean_landmarks(64, 64)
    low, high = points.min(0), points.max(0)
    # as preprocess cuts: 15 % of the landmarks' box on each side
    assert low == pytest.approx(0.15 / 1.3 * 64 * np.ones(2))
    assert high == pytest.approx((1 - 0.15 / 1.3) * 64 * np.ones(2))


def test_yaw_and_pitch_of_known_heads_are_found_also_where_the_aspect_is_lost() -> None:
    angles = [(-35, 0), (-10, 12), (0, 0), (20, -8), (38, 15)]
    faces = []
    for yaw, pitch in angles:
        for roll, stretch in ((0, 1.0), (10, 1.0), (0, 1.25)):
            points = project(REST, *np.radians((yaw, pitch, roll)), 100)[:68]
            faces.append(points * (stretch, 1) + 50)
    found = yaw_and_pitch(np.array(faces, np.float32)).reshape(len(angles), 3, 2)
    for (yaw, pitch), of_face in zip(angles, found, strict=True):
        assert of_face[:, 0] == pytest.approx([yaw] * 3, abs=6)
        assert of_face[:, 1] == pytest.approx([pitch] * 3, abs=6)
    assert np.isnan(yaw_and_pitch(np.full((1, 68, 2), np.nan, np.float32))).all()


# ---- class maps ------------------------------------------------------------------------------


class Flattening(nn.Module):
    """A convolution and a dense layer that reads class k at place k alone; brightness counts."""

    def __init__(self, places: list[tuple[int, int]], size: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.dense = nn.Linear(2 * size * size, len(places), bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()[0, 0, 1, 1] = 1.0  # channel 0 is the picture
            self.conv.weight[1, 0, 1, 1] = 1.0
            self.dense.weight.zero_()
            for k, (y, x) in enumerate(places):
                self.dense.weight[k].view(2, size, size)[0, y - 1 : y + 2, x - 1 : x + 2] = 1.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.dense(torch.relu(self.conv(images)).flatten(1))


def test_a_class_map_points_to_the_planted_cue_of_its_class() -> None:
    """The whole picture is bright; only the cue's place counts for a class."""
    cues = [(3, 12), (12, 4)]
    images = torch.ones(2, 1, 16, 16)
    found = class_maps(Flattening(cues), images, torch.tensor([0, 1]))
    assert found is not None
    for heat, (y, x) in zip(found, cues, strict=True):
        peak = np.unravel_index(heat.argmax(), heat.shape)
        assert np.abs(np.subtract(peak, (y, x))).max() <= 1
        assert heat.max() == 1.0
        outside = heat.copy()
        outside[y - 2 : y + 3, x - 2 : x + 3] = 0
        assert outside.max() < 0.1, "what a class does not depend on stays dark"


def test_with_average_pooling_the_map_is_that_of_grad_cam() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 4, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(4, 3))
    image = torch.rand(1, 1, 12, 12)
    with torch.no_grad():
        activation = conv(image).relu()
        heat = (model[-1].weight[2][:, None, None] * activation[0]).sum(0).relu()
    found = class_maps(model, image, torch.tensor([2]))
    assert found is not None
    assert found[0] == pytest.approx((heat / heat.max()).numpy(), abs=1e-5)
    assert (
        class_maps(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), image, torch.tensor([0])) is None
    )


# ---- label noise -----------------------------------------------------------------------------


def test_swapped_labels_are_the_first_candidates() -> None:
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(4), 50)
    p = np.full((200, 4), 0.05)
    p[np.arange(200), true] = 0.85
    p = p * rng.uniform(0.8, 1.2, p.shape)
    p /= p.sum(1, keepdims=True)
    labels = true.copy()
    swapped = rng.choice(200, 12, replace=False)
    labels[swapped] = (true[swapped] + 1) % 4
    found = candidates(p, labels)
    assert set(found.rows) == set(swapped)
    assert (found.suggested == true[found.rows]).all()
    assert (np.diff(found.margin) >= 0).all()


def test_a_candidate_reaches_the_threshold_of_the_other_class() -> None:
    """Thresholds, by hand: class 0 (.9 + .6 + .3) / 3 = .6, class 1 (.7 + .5) / 2 = .6."""
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.3, 0.7], [0.5, 0.5]])
    labels = np.array([0, 0, 0, 1, 1])
    found = candidates(p, labels)
    assert found.rows.tolist() == [2]
    assert found.suggested.tolist() == [1]
    assert found.margin == pytest.approx([-0.4])
    p[2] = [0.42, 0.58]  # the thresholds become .64 and .6; .58 reaches neither
    assert not len(candidates(p, labels).rows)


def test_a_face_that_is_predicted_as_labelled_is_no_candidate() -> None:
    """Thresholds .725 and .4: the second face reaches that of class 1 alone, but is taken for 0."""
    p = np.array([[0.9, 0.1], [0.55, 0.45], [0.6, 0.4], [0.6, 0.4]])
    assert not len(candidates(p, np.array([0, 0, 1, 1])).rows)
