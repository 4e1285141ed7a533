"""Tiny studies: the plan, its parts by name, an edit, a call of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fer_hpc.cli.main import main
from fer_hpc.config.jobs import JobConfig
from fer_hpc.config.study import StudyConfig
from fer_hpc.study.graph import Part, parts_of
from fer_hpc.study.plan import NAME, Plan, new_plan, read_plan, write_plan
from fer_hpc.study.state import PartState, states_of_parts

LOCAL = JobConfig(cluster="local")


def tiny(out: Path, **fields: Any) -> Plan:
    """The plan of a tiny study, written to OUT/study.toml."""
    plan = new_plan(StudyConfig(out=out, source="synthetic", scale="tiny", **fields), LOCAL)
    write_plan(plan)
    return plan


def by_name(plan: Plan) -> dict[str, Part]:
    return {part.name: part for part in parts_of(plan)}


def states(plan: Plan) -> dict[str, PartState]:
    return states_of_parts(plan, parts_of(plan), {})


def edit(plan: Plan, old: str, new: str) -> Plan:
    """The plan after a person's edit of study.toml."""
    path = plan.out / NAME
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return read_plan(plan.out)


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    """Exit code and output of `fer-hpc study ARGS` in this process."""
    code = main(["study", *map(str, args)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err
