"""A form of data that somebody else's file registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.config.plugins import Origin, load_plugins
from fer_hpc.data.annotations import Face, Rows
from fer_hpc.data.faces import Reject
from fer_hpc.data.plan import make_plan
from fer_hpc.data.plugin_source import Mistake, check_face
from fer_hpc.data.preprocess import preprocess
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.data.sources import SOURCES, SourceSpec, open_source, register_source, source_spec
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


class Own:
    """A source whose rows a test chooses."""

    classes = ("a", "b", "c")
    listed: Rows

    def __init__(self, config: PreprocessConfig) -> None:
        self.closed = False

    def rows(self) -> Rows:
        return self.listed

    def face(self, locator: str) -> Face:
        raise AssertionError("these tests read no picture")

    def close(self) -> None:
        self.closed = True


def plan_of(tmp_path: Path, rows: Rows, **options: object):  # type: ignore[no-untyped-def]
    source = Own(PreprocessConfig("own", tmp_path))
    source.listed = rows
    config = PreprocessConfig("own", tmp_path, **options)  # type: ignore[arg-type]
    return make_plan(config, SourceSpec("own", Own), source)


def rows_of(**changes: object) -> Rows:
    n = 30
    values = {"source_id": [str(i) for i in range(n)], "label": np.arange(n) % 3, "split": [""] * n}
    return Rows(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.arange(30) % 4}, "whole numbers from 0 to 2"),
        ({"label": np.zeros(30)}, "whole numbers from 0 to 2"),
        ({"label": np.zeros(29, int)}, "29 entries of label for 30"),
        ({"split": ["holdout"] * 30}, "split 'holdout'"),
        ({"source_id": ["x"] * 30}, "occurs twice"),
        ({"columns": {"group": np.zeros(3, int)}}, r"3 entries of columns\['group'\]"),
        ({"columns": {"group": np.arange(30) - 9}}, "group: -9 is no person"),
        ({"columns": {"group": np.arange(30) / 2}}, "group: 0.5 is no person"),
        ({"columns": {"group": np.zeros((30, 2))}}, "wanted a number or a text for each face"),
        ({"columns": {"day": np.zeros(30, "M8[D]")}}, "type datetime64"),
        ({"columns": {"a/b": np.zeros(30)}}, "column 'a/b'"),
        ({"columns": {"synthetic": np.arange(30)}}, "synthetic: wanted 0 or 1"),
        ({"columns": {"targets": np.ones((30, 2)) / 2}}, r"targets float64 \[30, 2\]; .* 3\]"),
        ({"columns": {"targets": np.ones((30, 3))}}, "in row 0; wanted shares"),
        ({"columns": {"targets": np.full((30, 3), np.nan)}}, "in row 0; wanted shares"),
        ({"columns": {"targets": [[2, -1, 0]] * 30}}, "in row 0; wanted shares"),
        ({"label": np.zeros((30, 3), int)}, "whole numbers from 0 to 2"),
        ({"label": None}, "None as label"),
        ({"split": "t" * 30}, "type str as split"),
        ({"source_id": None}, "None as source_id"),
        ({"rejects": ["7.png"]}, "the reject 7.png; wanted pairs"),
        ({"notes": "a note"}, "type str as notes"),
        ({"locators": [lambda: 0] * 30}, "locators that cannot be sent"),
        ({"picture": np.zeros(30)}, "picture of type float64"),
    ],
)
def test_rows_of_an_own_source_are_checked(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(tmp_path, rows_of(**changes))


def test_no_rows_and_letters_as_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\(\) gives None; wanted Rows"):
        plan_of(tmp_path, None)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="str as classes"):
        patch.setattr(Own, "classes", "abc")
        plan_of(tmp_path, rows_of())


def test_the_fingerprint_knows_each_face_of_long_arrays(tmp_path: Path) -> None:
    """numpy's text of an array of over 1,000 leaves out what is in its middle."""
    n = 1500
    ids = np.array([f"{i:04d}" for i in range(n)])
    values: Any = {"source_id": ids, "label": np.arange(n) % 3, "split": [""] * n}
    one = plan_of(tmp_path, Rows(**values))
    ids[700] = "other"
    assert one.hash != plan_of(tmp_path, Rows(**values)).hash


def test_distributions_keep_the_order_of_their_classes(tmp_path: Path) -> None:
    shares = np.eye(3)[np.arange(30) % 3]
    plan = plan_of(tmp_path, rows_of(columns={"targets": shares}), classes="smile,frown,plain")
    assert plan.rows.columns["targets"].dtype == np.float32
    table = tmp_path / "classes.csv"
    table.write_text("c,Neutral\na,Anger\nb,Anger\n")
    with pytest.raises(UserError, match="merge, drop or reorder"):
        plan_of(tmp_path, rows_of(columns={"targets": shares}), classes=str(table))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pixels": np.zeros((3, 40, 40), np.uint8)}, r"shape \[3, 40, 40\]"),
        ({"pixels": np.full((40, 40), 2.0)}, r"floats outside \[0, 1\]"),
        ({"pixels": [[1, 2]]}, "type list as pixels"),
        ({"encoded": "7.png"}, "type str as encoded"),
        ({"landmarks": np.zeros((5, 2))}, r"landmarks float64 \[5, 2\]"),
        ({"box": (1, 2, 3)}, "wanted 4 numbers"),
        ({"valence": 9.0}, "valence 9; wanted -1 to 1"),
        ({"arousal": None}, "None as arousal"),
    ],
)
def test_a_face_of_an_own_source_is_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        check_face(Face(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"pixels": np.zeros((0, 9), np.uint8)}, "empty picture"),
        ({"landmarks": np.full((68, 2), np.nan)}, "landmarks are not finite"),
        ({"box": (0, 0, float("inf"), 9)}, "box is not finite"),
        ({"box": (0.1, 0.1, 0.9, 0.9)}, "box is in shares"),
    ],
)
def test_annotations_that_cannot_be_used_reject_the_face(
    values: dict[str, object], reason: str
) -> None:
    with pytest.raises(Reject, match=reason):
        check_face(Face(**values))  # type: ignore[arg-type]


def test_an_own_source_may_leave_fingerprint_and_locators_out(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, rows_of())
    assert list(plan.rows.locators) == plan.rows.source_id
    other = plan_of(tmp_path, rows_of(label=np.arange(30)[::-1] % 3))
    assert plan.hash != other.hash


def test_people_may_have_names(tmp_path: Path) -> None:
    people = np.array([f"S{i % 7:03d}" for i in range(30)], dtype=object)
    plan = plan_of(tmp_path, rows_of(columns={"group": people}))
    assert plan.rows.columns["group"].tolist() == [i % 7 for i in range(30)]
    assert "by person" in plan.split_rule
    people[3] = ""
    plan = plan_of(tmp_path, rows_of(columns={"group": people}))
    assert plan.rows.columns["group"][3] == -1
    assert "by person" in plan.split_rule
    assert "1 face without a group: each counts as a person" in plan.notes
    people[3:5] = None, float("nan")  # as pandas has them
    plan = plan_of(tmp_path, rows_of(columns={"group": people}))
    assert plan.rows.columns["group"][3:5].tolist() == [-1, -1]


def test_the_classes_flag_renames_the_classes_of_an_own_source(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, rows_of(), classes="smile,frown,plain")
    assert plan.classes == ("smile", "frown", "plain")
    assert plan.rows.class_map.class_of == {"a": "smile", "b": "frown", "c": "plain"}
    with pytest.raises(UserError, match=r"2 names; --source own has 3 classes: a, b, c"):
        plan_of(tmp_path, rows_of(), classes="smile,frown")
    table = tmp_path / "classes.csv"
    table.write_text("c,Neutral\na,Anger\nb,Anger\n")
    plan = plan_of(tmp_path, rows_of(), classes=str(table))
    assert plan.classes == ("Neutral", "Anger")
    assert plan.rows.label[:3].tolist() == [1, 1, 0]


def test_a_source_is_closed_and_may_be_a_context_manager(tmp_path: Path) -> None:
    config = PreprocessConfig("own", tmp_path)
    with open_source(SourceSpec("own", Own), config) as source:
        pass
    assert source.closed  # type: ignore[attr-defined]
    with (
        pytest.raises(UserError, match=r"has no methods rows\(\)"),
        open_source(SourceSpec("own", lambda config: 3), config),
    ):
        pass


@pytest.mark.parametrize("method", ["__enter__", "close"])
def test_a_mistake_in_opening_or_closing_is_one_message(method: str, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise KeyError("it")

    names = ["__enter__", "__exit__"] if method == "__enter__" else ["rows", "face", "close"]
    kind = type("Kind", (), dict.fromkeys(names, fail))
    spec = SourceSpec("own", lambda _: kind(), origin=Origin("mine.py", ""))
    with (
        pytest.raises(UserError, match=r"mine\.py: KeyError: 'it'"),
        open_source(spec, PreprocessConfig("own", tmp_path)),
    ):
        pass


@pytest.mark.parametrize("header", ["age,", "a/b", "targets"])
def test_columns_that_shards_cannot_hold_are_refused(header: str, tmp_path: Path) -> None:
    (tmp_path / "columns.csv").write_text(f"source_id,{header}\n7,1,2\n")
    with pytest.raises(UserError, match=r"^column "):
        plan_of(tmp_path, rows_of(), columns=tmp_path / "columns.csv")


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(UserError, match="'folder' is built in"):
        register_source("folder")(Own)
    with pytest.raises(UserError, match="stands above 3"):
        register_source("three")(3)  # type: ignore[arg-type]
