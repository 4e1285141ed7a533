"""Expressions of the faces in photos: python -m fer_hpc.predict RUN PHOTOS --out DIR."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fer_hpc import __version__
from fer_hpc.config.deploy import PredictConfig
from fer_hpc.config.errors import counted, one_line
from fer_hpc.data.pictures import printable, signature, signed
from fer_hpc.deploy.inputs import Task, list_tasks
from fer_hpc.deploy.model import About, FaceModel, open_model
from fer_hpc.deploy.pipeline import PhotoFace, SeenPhoto, how_to_cut, see
from fer_hpc.deploy.sheet import PER_PAGE, page
from fer_hpc.files import check_output, write_bytes, write_text
from fer_hpc.parallel.process import process_count

FILES = {  # and what each has in it
    "predictions.csv": "photo,face,problem,class,probability",
    "predictions.json": '\n "fer_hpc": ',
}
SHOWN = 20  # problems that are printed
BOX = ("left", "top", "right", "bottom")


def photo_as_json(photo: SeenPhoto, classes: list[str]) -> dict[str, Any]:
    """A photo as an entry of predictions.json."""
    return {
        "photo": printable(str(photo.task.path)),
        "width": photo.width,
        "height": photo.height,
        "problem": photo.problem,
        "failed": photo.failed,
        "faces": [_face_as_json(face, classes) for face in photo.faces],
    }


def _face_as_json(face: PhotoFace, classes: list[str]) -> dict[str, Any]:
    shares = dict(zip(classes, (round(p, 6) for p in face.probabilities.tolist()), strict=True))
    best = int(face.probabilities.argmax())
    entry: dict[str, Any] = {
        "class": classes[best],
        "probability": shares[classes[best]],
        "probabilities": shares,
        "box": dict(zip(BOX, (round(edge, 1) for edge in face.found.box), strict=True)),
        "cut": dict(zip(BOX, (round(edge, 1) for edge in face.cut), strict=True)),
        "finder_score": round(face.found.score, 4),
    }
    if face.affect is not None:
        entry |= dict(zip(("valence", "arousal"), map(float, face.affect), strict=True))
    if face.found.landmarks is not None:
        entry["landmarks"] = face.found.landmarks.round(1).tolist()
    return entry


def table(photos: Iterable[dict[str, Any]], classes: list[str]) -> str:
    """predictions.csv: a row a face, and a row for each photo without one."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        ["photo", "face", "problem", "class", "probability", *BOX, "finder_score", *classes]
    )
    for photo in photos:
        for number, face in enumerate(photo["faces"], 1):
            edges = [face["box"][edge] for edge in BOX]
            shares = list(face["probabilities"].values())
            best = [face["class"], face["probability"]]
            rows.writerow(
                [photo["photo"], number, "", *best, *edges, face["finder_score"], *shares]
            )
        if photo["problem"]:
            rows.writerow([photo["photo"], "", photo["problem"]] + [""] * (7 + len(classes)))
    return text.getvalue()


def as_json(head: dict[str, Any], photos: Iterable[dict[str, Any]]) -> str:
    """predictions.json: `head` and "photos", a line a photo (landmarks are hundreds of numbers)."""
    lines = ",\n".join(json.dumps(photo) for photo in photos)
    return json.dumps(head, indent=1).removesuffix("\n}") + f',\n "photos": [\n{lines}\n ]\n}}\n'


@dataclass
class Counts:
    """How many photos and faces there were."""

    photos: int = 0
    faces: int = 0
    with_faces: int = 0
    without: int = 0  # readable, but no face in it
    failed: int = 0  # not readable
    problems: list[str] = field(default_factory=list)  # the first ones

    def add(self, photo: SeenPhoto) -> None:
        self.photos += 1
        self.faces += len(photo.faces)
        self.with_faces += bool(photo.faces)
        self.failed += photo.failed
        self.without += not photo.failed and not photo.faces
        if photo.problem and len(self.problems) < SHOWN:
            self.problems.append(one_line(f"{printable(str(photo.task.path))}: {photo.problem}"))

    def describe(self) -> list[str]:
        """As lines of text."""
        first = (
            f"{counted(self.photos, 'photo')}: {counted(self.faces, 'face')} in "
            f"{self.with_faces:,}; {self.without:,} without a face, {self.failed:,} that could not "
            "be read"
        )
        rest = self.without + self.failed - len(self.problems)
        more = [f"  ... and {rest:,} more, in the column problem"] if rest > 0 else []
        return [first, *(f"  {line}" for line in self.problems), *more]


def _sheets(folder: Path) -> list[Path]:
    """The pages of a contact sheet that are there."""
    return [p for p in folder.glob("sheet-*.jpg") if p.stem.removeprefix("sheet-").isdecimal()]


def _check_outputs(folder: Path, photos: list[Task], boxes: Path | None) -> None:
    """UserError where the files of --out would replace photos, the table, or other files."""
    inputs = [task.path for task in photos] + ([boxes] if boxes else [])
    for name, marker in FILES.items():
        check_output(folder / name, marker, inputs=inputs)
    for path in _sheets(folder):
        check_output(path, signature("predict"), inputs=inputs)


class Sheets:
    """Draws pages of the contact sheet in a thread, while the next photos are looked at."""

    def __init__(self, folder: Path | None, about: About, most: int) -> None:
        self._folder, self._about, self._most = folder, about, most
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            for old in _sheets(folder):
                old.unlink()
        self._waiting: list[SeenPhoto] = []
        self._pages: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(1, "sheets")
        self.left_out = 0  # photos that are on no page

    def add(self, photo: SeenPhoto) -> None:
        if len(self._pages) == self._most:
            self.left_out += 1
            return
        self._waiting.append(photo)
        if len(self._waiting) == PER_PAGE:
            self._draw()

    def _draw(self) -> None:
        assert self._folder
        number, photos = len(self._pages) + 1, self._waiting
        path = self._folder / f"sheet-{number}.jpg"
        how = "calibrated" if self._about.temperature else "not calibrated"
        title = f"{self._about.run}, {self._about.network}; probabilities {how}; page {number}"

        def draw() -> None:
            write_bytes(path, signed(page(photos, self._about.classes, title), "predict"))

        self._pages.append(self._pool.submit(draw))
        self._waiting = []

    def __enter__(self) -> Sheets:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._waiting and kind is None:
            self._draw()
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def written(self) -> list[str]:
        """The names of the pages; raises what went wrong while they were drawn."""
        for each in self._pages:
            each.result()
        return [f"sheet-{k + 1}.jpg" for k in range(len(self._pages))]


@dataclass(frozen=True)
class Predictions:
    """What a command found."""

    photos: list[dict[str, Any]]  # as in predictions.json
    counts: Counts
    written: list[str]  # as lines of text


def predict(config: PredictConfig, model: FaceModel | None = None) -> Predictions:
    """Look at the photos of a command, and write the files of --out, if given.

    `model` replaces that of `config.run`.
    Photos that cannot be read, or have no face, are entries with a problem. UserError where there
    is no photo at all, or the run cannot be used.
    """
    tasks = list_tasks(config)
    if config.out:
        _check_outputs(config.out, tasks.photos, config.boxes)
    model = model or open_model(config.run, config.device, config.plugin)
    about, how = model.about, how_to_cut(config, model.about)
    workers = process_count("--workers", config.workers)
    seen = see(tasks.photos, model, how, workers, config.batch_size)
    counts, entries, names = Counts(), [], []
    folder = config.out
    with Sheets(folder, about, config.sheets if folder else 0) as sheets:
        for photo in seen:
            counts.add(photo)
            entries.append(photo_as_json(photo, about.classes))
            sheets.add(photo)
    written = [
        f"not looked at: {kind.n:,} {what}, for example {kind.example}"
        for what, kind in tasks.ignored.worst()
    ]
    if folder:
        write_text(folder / "predictions.csv", table(entries, about.classes))
        model_of = {"fer_hpc": __version__, "model": asdict(about)}
        found_by = "given boxes" if config.boxes else "none" if how.whole else how.finder
        head = {**model_of, "finder": found_by}
        write_text(folder / "predictions.json", as_json(head, entries))
        names = sheets.written()
        if sheets.left_out and config.sheets:
            written.append(f"{sheets.left_out:,} photos are on no page (--sheets {config.sheets})")
        written.append(f"written: {folder}/{', '.join([*FILES, *names])}")
    return Predictions(entries, counts, written)
