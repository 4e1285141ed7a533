"""The report of thousands of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fer_hpc.report import figures
from fer_hpc.report.tables import DataSet, ResultTable, Row


def test_a_table_of_2000_runs_is_built_in_seconds(tmp_path: Path) -> None:
    """Every row looked at all rows: a page of 2,000 runs took minutes."""
    scores = {"accuracy": 0.5, "classes": {"a": {"n": 1, "recall": 1.0}}, "data": "ab"}
    looked: list[int] = []

    class Counted(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            looked.append(1)
            return super().__getitem__(name)

    run: Any = None
    rows = [Row(run, Counted(scores), DataSet("ab", "d")) for _ in range(200)]
    table = ResultTable("val", DataSet("ab", "d"), [(None, rows)])
    for _ in table.rows:
        assert table.classes == ["a"]
    assert len(looked) == 200
    assert table.rows is table.rows


def test_the_runs_that_are_best_on_val_have_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Named:
        def __init__(self, k: int) -> None:
            self.label, self.path, self.scores = f"run {k}", tmp_path, {}
            self.val_accuracy = (k * 7 % 100) / 100 if k else None

    monkeypatch.setattr(figures, "_draw", lambda run, _: [run.label])
    drawn = figures.draw_figures([Named(k) for k in range(100)], tmp_path)  # type: ignore[arg-type]
    assert len(drawn) == figures.MAX_DRAWN_RUNS
    assert {k * 7 % 100 for k in range(100) if f"run {k}" in drawn} == set(
        range(100 - figures.MAX_DRAWN_RUNS, 100)
    )
