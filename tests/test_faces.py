from __future__ import annotations

import hashlib
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from fer_hpc.data import faces
from fer_hpc.data.faces import Reject


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x, 6 * y, 255 - 4 * x], 2).astype(np.uint8)  # RGB


def encoded(image: np.ndarray, kind: str = ".png") -> bytes:
    return bytes(cv2.imencode(kind, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1])


def tiff(dtype: type) -> bytes:
    return bytes(cv2.imencode(".tiff", picture()[..., 0].astype(dtype))[1])


def test_colours_come_back_in_rgb_order() -> None:
    assert (faces.decode(encoded(picture()), 3) == picture()).all()


def test_gray_is_luma() -> None:
    luma = picture() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(faces.decode(encoded(picture()), 1) - luma).max() <= 1


def with_long_chunk(png: bytes) -> bytes:
    """Its second chunk says that it has 2 GB, for which the decoder would take the memory."""
    second = 8 + 12 + 13
    return png[:second] + struct.pack(">I", 2_000_000_000) + png[second + 4 :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is text", "not an image"),
        (b"II*\0 and this is text", "not an image"),
        (tiff(np.float32), "32-bit float pixels, wanted 8 or 16 bits"),
        (tiff(np.int32), "32-bit integer pixels, wanted 8 or 16 bits"),
        (encoded(picture(300, 300), ".jpg")[:2000], "truncated"),
        (encoded(picture(300, 300))[:1000], "truncated PNG"),
        (with_long_chunk(encoded(picture())), "truncated PNG"),
    ],
)
def test_what_is_no_whole_picture_is_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(Reject, match=reason):
        faces.decode(data, 1)


def test_bytes_after_the_end_of_a_picture_do_not_make_it_truncated() -> None:
    jpeg = encoded(picture(300, 300), ".jpg")
    for data in (jpeg, encoded(picture())):
        for trailer in (b"\0" * 64, b"\xff\xda more \xff\xda" * 20):
            assert (faces.decode(data + trailer, 3) == faces.decode(data, 3)).all()


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture() -> None:
    jpeg = encoded(picture(300, 300), ".jpg")
    thumbnail = encoded(picture(16, 16), ".jpg")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = jpeg[:2] + segment + jpeg[2:]
    assert faces.decode(whole, 1).shape == (300, 300)
    with pytest.raises(Reject, match="truncated JPEG"):
        faces.decode(whole[:-2000], 1)


def test_landmark_box_is_tight_plus_15_percent_and_clipped() -> None:
    points = np.full((68, 2), 30, np.float32)
    points[0], points[1] = (20, 10), (40, 30)
    assert faces.landmark_box(points) == pytest.approx((17, 7, 43, 33))
    ramp = np.arange(42, dtype=np.uint8)[None].repeat(32, 0)
    face, to_crop, _ = faces.crop_and_resize(ramp, faces.landmark_box(points), 25)
    assert (face[0, :, 0] == np.arange(17, 42)).all()  # 25 pixels wide after clipping to the image
    assert to_crop[0] == 1


def test_cut_carries_points_into_the_crop() -> None:
    image = np.zeros((80, 80), np.uint8)
    image[30:34, 50:54] = 255  # a dot around (51.5, 31.5)
    face, to_crop, empty = faces.crop_and_resize(image, (40, 20, 70, 60), 24)
    x, y = np.array([51.5, 31.5]) * to_crop[:2] + to_crop[2:]
    rows, columns = np.nonzero(face[..., 0] > 0)
    weights = face[rows, columns, 0].astype(float)
    assert (
        np.average(columns, weights=weights),
        np.average(rows, weights=weights),
    ) == pytest.approx((x, y), abs=0.05)
    assert face.shape == (24, 24, 1)
    assert not empty


def test_an_empty_box_falls_back_to_the_whole_image() -> None:
    face, _, empty = faces.crop_and_resize(picture(48, 48), (10, 10, 10, 30), 48)
    assert empty
    assert (face == picture(48, 48)).all()


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((96, 96), np.uint8)
    stripes[:, ::2] = 255
    face, _, _ = faces.crop_and_resize(stripes, None, 48)
    assert (np.abs(face.astype(int) - 127) <= 1).all()


@pytest.mark.parametrize(
    ("box", "factor"),
    [(None, 1), ((0, 0, 95, 400), 1), ((0, 0, 96, 400), 2), ((10, 10, 402, 394), 8)],
)
def test_the_decoder_shrinks_only_as_far_as_the_face_allows(
    box: faces.Box | None, factor: int
) -> None:
    assert faces.decode_scale(box, 48) == factor


def test_a_reduced_decode_gives_the_same_face_within_a_gray_level_or_so() -> None:
    smooth = (
        cv2.GaussianBlur(
            np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8), (0, 0), 6
        )
        * 3
    )
    data, box = encoded(smooth, ".jpg"), (40.0, 24.0, 360.0, 376.0)
    full, to_full, _ = faces.crop_and_resize(faces.decode(data, 1), box, 48)
    for factor in (2, 4):
        small, to_small, _ = faces.crop_and_resize(faces.decode(data, 1, factor), box, 48, factor)
        assert np.abs(full.astype(int) - small).mean() < 1.5
        assert to_small == pytest.approx(to_full, abs=0.2)


def pil(mode: str, **save: object) -> bytes:
    image = Image.fromarray(picture()).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, **save)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_unusual_encodings_come_out_as_the_same_picture(channels: int) -> None:
    wanted = faces.decode(encoded(picture()), channels).astype(int)
    sixteen = bytes(
        cv2.imencode(".png", cv2.cvtColor(picture(), cv2.COLOR_RGB2BGR).astype(np.uint16) * 257)[1]
    )
    for data, tolerance in (
        (pil("P", format="PNG"), 24),  # a palette of 256 colours
        (pil("RGBA", format="PNG"), 1),
        (sixteen, 1),
        (pil("CMYK", format="JPEG", quality=98), 16),
    ):
        got = faces.decode(data, channels)
        assert got.dtype == np.uint8
        assert np.abs(got.astype(int) - wanted).mean() <= tolerance


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees to show
    data = pil("RGB", format="JPEG", quality=98, exif=exif)
    assert faces.decode(data, 3).shape == (60, 40, 3)
    assert faces.decode(data, 1, 2).shape == (30, 20)


def test_a_header_of_50000_by_50000_is_refused_without_decoding() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(Reject, match=r"too large|not decodable|not an image"):
        faces.decode(bomb, 1)


GOLDEN = ((48, 1, "35b163127fe1"), (224, 3, "d6df9dd53881"))


def test_golden_faces() -> None:
    """The bytes that one drawn photo becomes: 48x48x1 and 224x224x3.

    A change here means that shards of an older version differ: raise the shard format, or find out
    why.
    """
    y, x = np.mgrid[:300, :320]
    photo = np.stack([(x * 3 + y) % 256, (x + y * 2) % 256, (x * y) // 400 % 256], 2).astype(
        np.uint8
    )
    for size, channels, digest in GOLDEN:
        box = (60.5, 40.25, 250.0, 260.75)
        reduced = faces.decode_scale(box, size)
        face, _, _ = faces.crop_and_resize(
            faces.decode(encoded(photo), channels, reduced), box, size, reduced
        )
        assert face.shape == (size, size, channels)
        assert hashlib.sha256(face.tobytes()).hexdigest()[:12] == digest


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_colours_come_in_the_order_rgb(suffix: str, layers: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, layers), np.uint8)
    if layers == 4 and suffix in (".jpg", ".bmp"):
        image = image[..., :3].copy()
    data = cv2.imencode(suffix, image)[1]
    wanted = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.array_equal(faces.decode(data.tobytes(), 3), wanted)


@pytest.mark.parametrize(
    ("side", "size", "method"),
    [
        (60, 48, cv2.INTER_AREA),
        (150, 96, cv2.INTER_LINEAR),
        (250, 96, cv2.INTER_AREA),
        (40, 48, cv2.INTER_LINEAR),
    ],
)
def test_the_resampler_is_the_one_in_the_recipe(side: int, size: int, method: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    wanted = cv2.resize(image, (size, size), interpolation=method)
    assert np.array_equal(faces.crop_and_resize(image, None, size)[0], wanted)
