"""What the rows and faces of a source that somebody else's file registers may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.config.plugins import Origin
from fer_hpc.data.annotations import Face, Rows
from fer_hpc.data.faces import Reject
from fer_hpc.data.plan import make_plan
from fer_hpc.data.plugin_source import Mistake, check_face
from fer_hpc.data.sources import SourceSpec, open_source, register_source


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
