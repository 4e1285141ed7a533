"""Which part of a photo a transfer takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fer_hpc.config import UserError
from fer_hpc.data.faces import Found
from fer_hpc.data.photos import Photo
from fer_hpc.gan.transfer import read_photo


def test_transfer_does_not_take_a_small_part_of_a_picture_in_silence(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cheek, for one, that the finder takes for a face."""

    def found(*box: float) -> None:
        face = Found(box, 1.0)  # type: ignore[arg-type]
        monkeypatch.setattr("fer_hpc.gan.transfer.Photo.find", lambda photo: found_in(photo, face))

    def found_in(photo: Photo, face: Found) -> list[Found]:
        photo.pixels(3)
        return [face]

    found(20, 30, 67, 77)
    with pytest.raises(UserError, match=r"left 13, top 23, width 61, height 61.*at least 48 pix"):
        read_photo(photos[0], whole=False)
    found(20, 30, 70, 80)
    assert read_photo(photos[0], whole=False).box == pytest.approx((12.5, 22.5, 77.5, 87.5))
    shown = capsys.readouterr().err
    assert re.search(r"warning: .*width 66, height 66 \(\d% of the picture\)", shown)
    found(20, 30, 220, 230)
    assert read_photo(photos[0], whole=False).box is not None
    assert read_photo(photos[0], whole=True).box is None
    assert capsys.readouterr().err == ""
