"""A form of data that somebody else's file registers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data.annotations import Face, Rows
from fer_hpc.data.plan import make_plan
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.data.sources import SourceSpec, open_source, register_source, source_spec
from tests.conftest import Fer

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
    ],
)
def test_rows_of_an_own_source_are_checked(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(tmp_path, rows_of(**changes))


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


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(UserError, match="'folder' is built in"):
        register_source("folder")(Own)
    with pytest.raises(UserError, match="stands above 3"):
        register_source("three")(3)  # type: ignore[arg-type]
