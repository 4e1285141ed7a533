"""Small pictures and tables for the readers of data."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fer_hpc.data.classes import read_stated

AFFECTNET = read_stated("affectnet")


def photo(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((120, 100, 3), value, np.uint8))
    return path


def table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path
