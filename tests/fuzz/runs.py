"""Fuzz targets: the files of run folders, as every command reads them."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from hypothesis import strategies as st

from fer_hpc import api
from fer_hpc.cli import scoring
from fer_hpc.cli.verbs import is_finished
from fer_hpc.cluster import status
from fer_hpc.cluster.records import read_records, record_job
from fer_hpc.config import UserError
from fer_hpc.config.commands import EvaluateConfig, PreprocessConfig, ReportConfig, VerifyConfig
from fer_hpc.data.preprocess import preprocess
from fer_hpc.deploy.card import model_card
from fer_hpc.deploy.model import About
from fer_hpc.deploy.torch_model import describe
from fer_hpc.drill.verify import verify
from fer_hpc.evaluation.calibration import stored_temperature
from fer_hpc.evaluation.load import load_network
from fer_hpc.evaluation.openings import record_opening
from fer_hpc.evaluation.predictions import read_predictions
from fer_hpc.report.report import report
from fer_hpc.run.folder import attempt_path, damage_of, list_checkpoints
from fer_hpc.run.lease import holder_of
from tests.fuzz.guard import Fuzz, target
from tests.fuzz.inputs import json_file, jsonl_file, mutated

CPU = torch.device("cpu")
FIGURES = {  # of a page, which take long to draw
    "draw_figures": lambda *_: {},
    "gan_figures": lambda *_: {},
    "overlaid_curves": lambda *_: [],
    "heat_map": lambda *_: [],
}
SETTINGS = {"batch_size": 16, "threads": 1, "tensorboard": False, "epochs": 2}


_kept: list[tempfile.TemporaryDirectory[str]] = []  # deleted at the end of the process


@functools.cache
def finished() -> Path:
    """A folder with shards/ and run/: a small run that was trained and scored, made once."""
    _kept.append(tempfile.TemporaryDirectory(prefix="fuzz-"))
    folder = Path(_kept[0].name)
    preprocess(
        PreprocessConfig(source="synthetic", count=60, size=32, out=folder / "shards", workers=1)
    )
    api.train("resnet_baseline", data=folder / "shards", run=folder / "run", **SETTINGS)
    api.evaluate(folder / "run", "val", robust=True, robust_faces=8, gallery=True)
    record_opening(folder / "run", ["scores"], "0" * 16, "0" * 12, "0" * 64)
    job = ["train", "resnet_baseline"]
    record_job(folder / "run", "local-1_2", job, ["x.out"], scheduler="local", starts=[{}])
    return folder


@dataclasses.dataclass
class Commands:
    """What reads a run folder: each command's reading, without what it computes or draws."""

    box: Path

    @property
    def run(self) -> Path:
        return self.box / "run"

    def status(self) -> None:
        row = status._row_of_folder(self.run, read_records(self.run), {})
        status.to_json([row])
        status.format_status([row | {"usage": ""}])

    def report(self) -> None:
        with mock.patch.multiple("fer_hpc.report.report", **FIGURES):
            report(ReportConfig(runs=(self.run,), out=self.box / "page"))

    def train(self) -> None:
        is_finished(
            api.preset("resnet_baseline", data=self.box / "shards", run=self.run, **SETTINGS)
        )
        damage_of(self.run)
        list_checkpoints(self.run)
        holder_of(self.run, attempt_path(self.run, 1), read_only=True)

    def evaluate(self) -> None:
        """The scores that are stored already; they are not computed again here."""
        config = EvaluateConfig(run=self.run, robust=True, robust_faces=8, gallery=True)
        again = mock.Mock(side_effect=UserError(f"{self.run} is scored again"))
        with (
            mock.patch("fer_hpc.evaluation.score.evaluate", again),
            mock.patch("fer_hpc.evaluation.score.add_extras", again),
            mock.patch("fer_hpc.evaluation.plots.reliability", nothing),
        ):
            scoring.evaluate(config)

    def predict(self) -> None:
        describe(self.run, load_network(self.run, CPU))

    def calibrated(self) -> None:
        stored_temperature(self.run, "0" * 64)

    def export(self) -> None:
        facts = {"difference": 0.0, "precision": "fp32", "rounding": 0.0, "parameters": 1}
        model_card(self.run, about_good(), True, facts)

    def verify(self) -> None:
        verify(VerifyConfig(a=self.run, b=self.box / "good"))


@functools.cache
def about_good() -> About:
    run = finished() / "run"
    return describe(run, load_network(run, CPU))[0]


def nothing(*_: Any, **__: Any) -> list[Any]:
    return []


def of_run(
    box: Path, file: str, inputs: Callable[[bytes], st.SearchStrategy[bytes]], *names: str
) -> Fuzz:
    """A run of which the content of one file varies, and the commands that read it."""
    shutil.copytree(finished() / "run", box / "run")
    (box / "shards").symlink_to(finished() / "shards")
    (box / "good").symlink_to(finished() / "run")
    path = box / "run" / file
    good = path.read_bytes()
    kept = {p: p.read_bytes() for p in path.parent.glob("*.json") if p != path}

    def place(data: bytes) -> None:
        for other, content in kept.items():
            other.write_bytes(content)
        path.write_bytes(data)

    commands = Commands(box)

    def call(name: str, _: bytes) -> None:
        getattr(commands, name)()

    calls = [functools.partial(call, name) for name in names]
    return Fuzz(good, inputs(good), [place, *calls], (str(box / "run"), path.name))


def as_json(good: bytes) -> st.SearchStrategy[bytes]:
    return json_file(json.loads(good))


def as_jsonl(good: bytes) -> st.SearchStrategy[bytes]:
    return jsonl_file([json.loads(row) for row in good.splitlines()])


@target
def config_json(box: Path) -> Fuzz:
    names = ("status", "train", "evaluate", "predict", "export", "verify")
    return of_run(box, "config.json", as_json, *names)


@target
def status_json(box: Path) -> Fuzz:
    names = ("status", "train", "evaluate", "verify")
    return of_run(box, "attempts/0001/status.json", as_json, *names)


@target
def owner_json(box: Path) -> Fuzz:
    fuzz = of_run(box, "attempts/0001/owner.json", as_json, "status", "train")
    (box / "run/attempts/0001/status.json").unlink()  # so that its owner counts
    return fuzz


@target
def environment_json(box: Path) -> Fuzz:
    names = ("status", "train", "evaluate", "export", "verify")
    return of_run(box, "attempts/0001/environment.json", as_json, *names)


@target
def metrics_jsonl(box: Path) -> Fuzz:
    names = ("status", "train", "export", "verify")
    return of_run(box, "attempts/0001/metrics.jsonl", as_jsonl, *names)


@target
def timing_jsonl(box: Path) -> Fuzz:
    return of_run(box, "attempts/0001/timing.jsonl", as_jsonl, "train")


@target
def scores_json(box: Path) -> Fuzz:
    return of_run(box, "eval-val.json", as_json, "evaluate", "export")


@target
def calibration_json(box: Path) -> Fuzz:
    return of_run(box, "calibration.json", as_json, "evaluate", "calibrated")


@target
def robustness_json(box: Path) -> Fuzz:
    return of_run(box, "robust-val.json", as_json, "evaluate", "export")


@target
def gallery_json(box: Path) -> Fuzz:
    return of_run(box, "gallery-val.json", as_json, "evaluate")


@target
def test_openings(box: Path) -> Fuzz:
    fuzz = of_run(box, "test-openings.jsonl", as_jsonl)

    def again(_: bytes) -> None:
        record_opening(box / "run", ["scores"], "0" * 16, "0" * 12, "0" * 64)

    return dataclasses.replace(fuzz, parse=[*fuzz.parse, again])


@target
def job_record(box: Path) -> Fuzz:
    return of_run(box, "jobs/local-1_2.json", as_json, "status")


@target
def page_of_a_run(box: Path) -> Fuzz:
    """The whole page, of a run of which any file may be damaged."""
    files = "config.json eval-val.json robust-val.json gallery-val.json test-openings.jsonl "
    files += "attempts/0001/status.json attempts/0001/environment.json "
    files += "attempts/0001/metrics.jsonl attempts/0001/timing.jsonl"
    run = shutil.copytree(finished() / "run", box / "run")
    good = {name: (run / name).read_bytes() for name in files.split()}

    def one(name: str) -> st.SearchStrategy[tuple[str, bytes]]:
        make = as_jsonl if name.endswith(".jsonl") else as_json
        return st.tuples(st.just(name), make(good[name]))

    def parse(given: tuple[str, bytes]) -> None:
        for name, content in good.items():
            (run / name).write_bytes(content)
        (run / given[0]).write_bytes(given[1])
        Commands(box).report()

    first = ("config.json", good["config.json"])
    return Fuzz(first, st.one_of(*map(one, good)), parse, (str(run),))


@target
def predictions_npz(box: Path) -> Fuzz:
    arrays = dict(np.load(finished() / "run/predictions-val.npz"))
    odd = [np.zeros(0), np.array(3), np.zeros((2, 2)), np.array(["x"]), np.array([np.nan])]
    odd += [np.zeros((0, 8)), np.array([1 << 62]), np.array([-1, -2]), np.array([2**0.5j])]

    def changed(name: str, value: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, **{**arrays, name: value})
        return buffer.getvalue()

    replaced = st.builds(changed, st.sampled_from(list(arrays)), st.sampled_from(odd))
    fuzz = of_run(box, "predictions-val.npz", lambda good: st.one_of(mutated(good), replaced))

    def read(_: bytes) -> None:
        read_predictions(box / "run", "val")

    return dataclasses.replace(fuzz, parse=[*fuzz.parse, read])
