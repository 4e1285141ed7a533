"""A form of data that somebody else's file registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.config.plugins import load_plugins
from fer_hpc.data.preprocess import preprocess
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.data.sources import SOURCES, source_spec
from tests.conftest import Fer
from tests.helpers import processes

PLUGIN = """\
import json

import numpy as np

from fer_hpc.data.annotations import Face, Rows
from fer_hpc.data.sources import register_source


@register_source("json_list", help="faces.json: a list of {file, class, split}", needs_input=True)
class JsonList:
    classes = ("smile", "frown", "plain")

    def __init__(self, config):
        self.root = config.input

    def rows(self):
        faces = json.loads((self.root / "faces.json").read_text())
        return Rows(
            source_id=[face["file"] for face in faces],
            label=np.array([self.classes.index(face["class"]) for face in faces]),
            split=[face["split"] for face in faces],
        )

    def face(self, locator):  # the source_id
        return Face(encoded=(self.root / locator).read_bytes())
"""


ENCODED = "Face(encoded=(self.root / locator).read_bytes())"  # what its faces are


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """24 pictures, a list of them, and the plugin that reads it."""
    root = tmp_path / "faces"
    root.mkdir()
    entries = []
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 256, (32, 32), np.uint8)
        cv2.imwrite(str(root / f"{i}.png"), noise)
        split = "test" if i % 6 == 0 else "val" if i % 6 == 1 else "train"
        entries.append(
            {"file": f"{i}.png", "class": ("smile", "frown", "plain")[i % 3], "split": split}
        )
    (root / "faces.json").write_text(json.dumps(entries))
    (tmp_path / "mine.py").write_text(PLUGIN)
    return root


@pytest.fixture(autouse=True)
def no_names_left() -> Iterator[None]:
    known = dict(SOURCES)
    yield
    SOURCES.clear()
    SOURCES.update(known)


def forked(*args: object) -> subprocess.CompletedProcess[str]:
    """`preprocess ARGS` with a worker that need not import everything again.

    In a process of its own: after a fork of this one OpenCV may wait for threads that it had.
    """
    here = {**os.environ, processes.FOLDER: str(Path.cwd()), processes.FORK: "1"}
    return processes.run("preprocess", *args, "--workers", 1, env=here, timeout=100)


def test_own_source_goes_through_the_workers_into_the_manifest(fer: Fer, faces: Path) -> None:
    plugin, out = faces.parent / "mine.py", faces.parent / "shards"
    command = ("--source", "json_list", "--input", faces, "--plugin", plugin, "--size", 32)
    done = fer("preprocess", *command, "--out", out)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(out)
    assert manifest.classes == ("smile", "frown", "plain")
    assert [manifest.n(s) for s in ("train", "val", "test")] == [16, 4, 4]
    stored = manifest.content["source"]["plugin"]
    assert stored["path"] == str(plugin)
    assert len(stored["sha256"]) == 64
    split = open_split(manifest, "val")
    for row, source_id in enumerate(split.columns["source_id"]):
        picture = cv2.imread(str(faces / source_id.decode()), cv2.IMREAD_GRAYSCALE)
        assert (split.images[0][row][..., 0] == picture).all()
    plugin.write_text(PLUGIN + "# another reader may cut other faces\n")
    again = fer("preprocess", *command, "--out", out)
    assert again.returncode == 2
    assert "or of other options" in again.stderr


def test_a_mistake_in_face_is_one_message_with_its_line(fer: Fer, faces: Path) -> None:
    plugin = faces.parent / "mine.py"
    plugin.write_text(PLUGIN.replace("read_bytes()", "read_byte()"))
    command = ("--source", "json_list", "--input", faces, "--plugin", plugin)
    done = fer("preprocess", *command, "--workers", 1, "--out", faces.parent / "shards")
    assert done.returncode == 2
    assert "mine.py: line 25: face('" in done.stderr
    assert "AttributeError" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        ("None", "gives None; wanted a Face"),
        ("Face(pixels=np.full((40, 40), 300))", "of type int64; wanted uint8, or floats in [0, 1]"),
        ("Face(pixels=np.zeros((0, 0), np.uint8))", "most often: 'empty picture'"),
    ],
)
def test_a_face_that_cannot_be_used_is_one_message(gives: str, words: str, faces: Path) -> None:
    plugin = faces.parent / "mine.py"
    plugin.write_text(PLUGIN.replace(ENCODED, gives))
    command = ("--source", "json_list", "--input", faces, "--plugin", plugin)
    done = forked(*command, "--out", faces.parent / "shards")
    assert done.returncode == 2
    assert words in done.stderr
    assert f"{plugin}: line 24: face('" in done.stderr or "--max-rejects" in done.stderr


def test_pixels_as_floats_are_stored_as_they_look(faces: Path) -> None:
    out, plugin = faces.parent / "shards", faces.parent / "mine.py"
    floats = "Face(pixels=np.linspace(0, 1, 1024).reshape(32, 32, 1), valence=-2, arousal=0.5)"
    plugin.write_text(PLUGIN.replace(ENCODED, floats))
    command = ("--source", "json_list", "--input", faces, "--plugin", plugin, "--size", 32)
    assert forked(*command, "--out", out).returncode == 0
    split = open_split(read_manifest(out), "val")
    assert (split.images[0] == np.linspace(0, 255, 1024).round().reshape(32, 32, 1)).all()
    assert np.isnan(split.columns["valence"]).all(), "AffectNet's mark of none"
    assert (split.columns["arousal"] == 0.5).all()


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("self.file = open(__file__)", "open files and the like in face()"),
        ("self.call = lambda: 1", "at the top level of the file"),
        ("class Inner: pass\n        self.inner = Inner()", "at the top level of the file"),
    ],
)
def test_a_source_that_cannot_be_sent_is_told_why(init: str, words: str, faces: Path) -> None:
    plugin = faces.parent / "mine.py"
    plugin.write_text(PLUGIN.replace("self.root = config.input", init))
    load_plugins([plugin])
    with pytest.raises(UserError) as error:
        preprocess(PreprocessConfig("json_list", faces.parent / "shards", input=faces))
    assert words in str(error.value)
    assert str(plugin) in str(error.value)


def test_a_copy_that_a_worker_cannot_use_is_no_lack_of_memory(fer: Fer, faces: Path) -> None:
    plugin = faces.parent / "mine.py"
    plugin.write_text(
        PLUGIN + "\n    def __setstate__(self, state):\n        raise KeyError('it')\n"
    )
    command = ("--source", "json_list", "--input", faces, "--plugin", plugin)
    done = fer("preprocess", *command, "--out", faces.parent / "shards")
    assert done.returncode == 2
    assert "mine.py: line 28: " in done.stderr
    assert "KeyError: 'it'" in done.stderr
    assert "memory" not in done.stderr


def test_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="did you mean 'folder'"):
        source_spec("folders")


def test_a_pipeline_hands_its_own_source_to_preprocess(faces: Path) -> None:
    job = Path(__file__).parents[1] / "jobs" / "pipeline.py"
    source = ("--source", "json_list", "--input", faces, "--plugin", faces.parent / "mine.py")
    classes = ("--classes", "one,two,three")
    call = ("cnn_baseline", *source, *classes, "--out", faces.parent / "study", "--dry-run")
    done = subprocess.run(
        [sys.executable, job, *map(str, call)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "preprocess --source" in line)
    assert f"--plugin {faces.parent / 'mine.py'}" in line
    assert "--classes one,two,three" in line
