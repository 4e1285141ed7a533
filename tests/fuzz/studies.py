"""Fuzz targets: study.toml, and what a study finds in its own folder."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from hypothesis import strategies as st

from fer_hpc.config.commands import ReportConfig
from fer_hpc.config.jobs import JobConfig
from fer_hpc.config.study import StudyConfig
from fer_hpc.data.manifest import find_manifest
from fer_hpc.report.report import report
from fer_hpc.study.driver import only_driver
from fer_hpc.study.estimate import costs_of, hours_left
from fer_hpc.study.graph import parts_of
from fer_hpc.study.machine import Room
from fer_hpc.study.plan import NAME, new_plan, read_plan, write_plan
from fer_hpc.study.state import check_edits, record_part, states_of_parts
from fer_hpc.study.status import format_study
from fer_hpc.sweep.tables import collect
from tests.fuzz.guard import Fuzz, target
from tests.fuzz.inputs import RAW, json_file, mutated, table
from tests.fuzz.runs import FIGURES, finished, nothing
from tests.fuzz.sweeps import a_sweep

TOML = ["1979-05-27", "{}", "{a = 1}", "[[1]]", "['x']", "[0, 0]", "[true]", "'''a\nb'''", "0x1F"]
TOML += ["inf", "-1", "[]", '""', "true", '"1x1x1"', '"../x"', "[0.5]", "[1e999]", "3.0"]


def a_study(box: Path) -> Path:
    """A tiny study with shards, a trained and scored run, and a grid."""
    out = box / "study"
    config = StudyConfig(out=out, source="synthetic", scale="tiny")
    plan = new_plan(config, JobConfig(cluster="local"))
    models = set(plan.tables["models"]) - {"resnet_baseline", "cnn_improved"}  # two are enough
    plan.tables["leave_out"] = [f"models.{name}" for name in sorted(models)]
    write_plan(plan)
    (out / "shards").mkdir()
    (out / "shards/32x32x1").symlink_to(finished() / "shards")
    shutil.copytree(finished() / "run", out / "runs/resnet_baseline-seed0")
    _, sweep = a_sweep(box)
    collect(sweep)
    sweep.rename(out / "grid")
    findings = {"fingerprint": "0" * 16, "damage": [], "findings": {}}
    (out / "doctor/32x32x1").mkdir(parents=True)
    (out / "doctor/32x32x1/findings.json").write_text(json.dumps(findings))
    for part in parts_of(plan):
        record_part(plan, part, started=True)
    with only_driver(out):
        pass
    return out


# Every part asks for its shards, which no input here changes: read once.
@mock.patch("fer_hpc.study.state.find_manifest", functools.cache(find_manifest))
def look(out: Path) -> None:
    """The state of every part, as status and a further start find it."""
    plan = read_plan(out)
    parts = parts_of(plan)
    check_edits(plan, parts)
    states = states_of_parts(plan, parts, {})
    room = Room(cores=2)
    left = None
    if not plan.tables["input"]:
        left = hours_left(parts, states, costs_of(plan, parts, room, JobConfig()), room)
    format_study(plan, parts, states, left)
    with only_driver(out):
        pass


def page(out: Path) -> None:
    with (
        mock.patch.multiple("fer_hpc.report.report", **FIGURES),
        mock.patch("fer_hpc.report.study.study_figures", nothing),
    ):
        report(ReportConfig(runs=(out,), out=out.parent / "page"))


def of_study(
    box: Path,
    file: str,
    inputs: Callable[[bytes], st.SearchStrategy[bytes]],
    *calls: Callable[[Path], None],
) -> Fuzz:
    out = a_study(box)
    path = out / file
    good = path.read_bytes()

    def place(data: bytes) -> None:
        path.write_bytes(data)

    def call(command: Callable[[Path], None], _: bytes) -> None:
        command(out)

    bound = [functools.partial(call, each) for each in calls]
    return Fuzz(good, inputs(good), [place, *bound], (str(out), NAME))


def toml_file(good: bytes) -> st.SearchStrategy[bytes]:
    """A value, a key or the head of a table replaced; lines lost or twice; other bytes."""
    written = good.decode().splitlines()
    places = [i for i, text in enumerate(written) if text.strip() and not text.startswith("#")]

    def changed(at: int, kind: str, value: str) -> str:
        key, equals, _ = written[at].partition(" = ")
        new = {
            "value": f"{key} = {value}" if equals else f"[{value}]",
            "key": f"{value} = 1",
            "lost": "",
            "twice": f"{written[at]}\n{written[at]}",
        }[kind]
        return "\n".join([*written[:at], new, *written[at + 1 :]])

    values = st.sampled_from(TOML + [raw for raw in RAW if len(raw) < 4000])
    kinds = st.sampled_from(["value", "value", "value", "key", "lost", "twice"])
    edited = st.builds(changed, st.sampled_from(places), kinds, values)
    encoded = edited.map(lambda text: text.encode("utf-8", "surrogatepass"))
    return st.one_of(encoded, encoded, mutated(good), st.binary(max_size=20))


def as_json(good: bytes) -> st.SearchStrategy[bytes]:
    return json_file(json.loads(good))


@target
def study_toml(box: Path) -> Fuzz:
    return of_study(box, NAME, toml_file, look)


@target
def study_part(box: Path) -> Fuzz:
    return of_study(box, "parts/train.resnet_baseline-seed0.json", as_json, look)


@target
def study_driver(box: Path) -> Fuzz:
    return of_study(box, "parts/driver.json", as_json, look, page)


@target
def study_findings(box: Path) -> Fuzz:
    return of_study(box, "doctor/32x32x1/findings.json", as_json, look)


@target
def study_grid(box: Path) -> Fuzz:
    return of_study(box, "grid/summary.json", as_json, look)


@target
def study_metrics(box: Path) -> Fuzz:
    from tests.fuzz.runs import as_jsonl

    return of_study(box, "runs/resnet_baseline-seed0/attempts/0001/metrics.jsonl", as_jsonl, look)


@target
def results_csv(box: Path) -> Fuzz:
    """The table of a sweep, of which a study's page adds up the seconds."""

    def rows(good: bytes) -> st.SearchStrategy[bytes]:
        head, *others = good.decode().splitlines()
        return table(head, others)

    return of_study(box, "grid/results.csv", rows, page)
