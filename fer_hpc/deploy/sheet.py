"""The contact sheet: every photo with its faces numbered, and what the network says about them."""

from __future__ import annotations

import functools
import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fer_hpc.deploy.pipeline import THUMBNAIL, PhotoFace, SeenPhoto

COLUMNS, ROWS = 3, 6
PER_PAGE = COLUMNS * ROWS
FACE = 44  # pixels: side of a face as the network sees it
LIST = 220  # pixels: width of the list of faces beside a photo
GAP, HEAD, CAPTION = 14, 44, 24  # pixels
LISTED = 5  # faces of a photo that the list has room for
QUALITY = 88  # of the JPEG
INK, PALE, LINE = (24, 24, 24), (112, 112, 112), (255, 176, 0)
CELL = THUMBNAIL[0] + LIST + 2 * GAP, THUMBNAIL[1] + CAPTION + GAP  # width, height

Pixels = NDArray[np.uint8]


@functools.cache  # loading it takes longer than drawing a word with it
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def page(photos: list[SeenPhoto], classes: list[str], title: str) -> bytes:
    """One page of at most PER_PAGE photos as a JPEG's bytes."""
    columns = min(COLUMNS, len(photos))
    rows = -(-len(photos) // COLUMNS)
    width = max(columns * CELL[0] + GAP, 2 * CELL[0])
    sheet = Image.new("RGB", (width, HEAD + rows * CELL[1] + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 12), _fitted(draw, title, 18, width - 2 * GAP), INK, font(18))
    for k, photo in enumerate(photos):
        left, top = GAP + k % COLUMNS * CELL[0], HEAD + k // COLUMNS * CELL[1]
        _draw_photo(sheet, draw, photo, classes, left, top)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _draw_photo(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    photo: SeenPhoto,
    classes: list[str],
    left: int,
    top: int,
) -> None:
    """A photo, its name below it, its faces beside it."""
    if photo.failed:
        draw.rectangle((left, top, left + THUMBNAIL[0], top + THUMBNAIL[1]), (236, 236, 236))
    else:
        sheet.paste(Image.fromarray(marked(photo)), (left, top))
    name = _fitted(draw, photo.task.path.name, 13, THUMBNAIL[0])
    height = THUMBNAIL[1] if photo.failed else photo.thumbnail.shape[0]
    draw.text((left, top + height + 4), name, PALE, font(13))
    x = left + THUMBNAIL[0] + GAP
    if photo.problem:
        for i, line in enumerate(_wrapped(draw, photo.problem, 13, LIST - GAP)[:3]):
            draw.text((x, top + 17 * i), line, (176, 0, 32), font(13))
    listed = photo.faces[:LISTED]
    for i, face in enumerate(listed):
        _draw_face(sheet, draw, i + 1, face, classes, x, top + i * (FACE + 4))
    if len(photo.faces) > len(listed):
        more = f"and {len(photo.faces) - len(listed)} more, in predictions.csv"
        draw.text((x, top + THUMBNAIL[1] + 4), more, PALE, font(12))


def _draw_face(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    number: int,
    face: PhotoFace,
    classes: list[str],
    x: int,
    y: int,
) -> None:
    """A face as the network sees it, and its two likeliest classes."""
    pixels = face.pixels[..., 0] if face.pixels.shape[2] == 1 else face.pixels
    small = cv2.resize(pixels, (FACE, FACE), interpolation=cv2.INTER_AREA)
    sheet.paste(Image.fromarray(small), (x, y))
    best = np.argsort(-face.probabilities)[:2]
    for k, (place, size, ink) in enumerate(((3, 15, INK), (24, 13, PALE))):
        if k < len(best):
            text = f"{classes[best[k]]} {face.probabilities[best[k]]:.0%}"
            text = f"{number}  {text}" if k == 0 else text
            room = LIST - FACE - GAP
            draw.text((x + FACE + 8, y + place), _fitted(draw, text, size, room), ink, font(size))


def marked(photo: SeenPhoto) -> Pixels:
    """The thumbnail with a numbered box around what was cut for each face."""
    picture = np.ascontiguousarray(photo.thumbnail)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    if [face.cut for face in photo.faces] == [(0, 0, photo.width, photo.height)]:
        return picture  # the whole picture is the face
    for number, face in enumerate(photo.faces, 1):
        left, top, right, bottom = (round(edge * photo.scale) for edge in face.cut)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=INK)
        draw.rectangle((left, top, right, bottom), outline=LINE)
        where = (left, top - 15 if top >= 15 else top)
        box = draw.textbbox(where, str(number), font(13))
        draw.rectangle((left, where[1], box[2] + 3, where[1] + 15), LINE)
        draw.text((left + 2, where[1]), str(number), INK, font(13))
    return np.asarray(image)


def _fitted(draw: ImageDraw.ImageDraw, text: str, size: int, room: int) -> str:
    """`text`, cut with an ellipsis in its middle where it is wider than `room` pixels."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    keep = len(text)
    shown = text
    while draw.textlength(shown, font(size)) > room and keep > 4:
        keep -= 1
        shown = text[: keep - keep // 2] + "..." + text[len(text) - keep // 2 :]
    return shown


def _wrapped(draw: ImageDraw.ImageDraw, text: str, size: int, room: int) -> list[str]:
    """`text` in lines of at most `room` pixels, as far as its words allow."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font(size)) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
