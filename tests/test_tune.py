"""Sweeps on a real Ray: the same numbers as outside it, and nothing that a kill can take away."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from fer_hpc.cli.parse import configure
from fer_hpc.config import UserError
from fer_hpc.files import read_json
from fer_hpc.run.attempts import claim_attempt
from fer_hpc.run.folder import attempt_numbers, read_rows, read_status
from fer_hpc.sweep.grid import grid
from fer_hpc.sweep.halving import SuccessiveHalving
from fer_hpc.sweep.ray_stop import SweepStop
from tests.conftest import Fer
from tests.helpers import processes
from tests.helpers.browser import page_text, tensorboard
from tests.helpers.ray_sweeps import MARK, SHORT, done, marked, sweep
from tests.helpers.runs import assert_same_outcome


def trial(out: Path, start: str) -> Path:
    (found,) = (out / "trials").glob(f"{start}-*")
    return found


def until(what: object, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def of_ray() -> list[str]:
    """Command lines of living processes that our sweeps' own Rays have started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if MARK.encode() in (folder / "environ").read_bytes():
                line = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                found += [line] if "ray" in line else []
    return found


def tokens_of_ray() -> set[int]:
    """Lengths of the tokens in the environments of our sweeps' own Rays; 0 where there is none."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes()
            if MARK.encode() in environment and b"raylet" in (folder / "cmdline").read_bytes():
                token = re.search(rb"RAY_AUTH_TOKEN=(\w*)", environment)
                found.add(len(token[1]) if token and b"RAY_AUTH_MODE=token" in environment else 0)
    return found


PLUGIN = """
from torch import nn
from fer_hpc import register_model

@register_model("mine", sides=(16, 64), face=(32, 1))
def build(outputs, channels, side):
    inputs = channels * (side // 4) ** 2
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(inputs, outputs))
"""
GRID = "--grid model=cnn_baseline,mine --grid flip=false --plugin mine.py".split()


def named(model: str, seed: int, lr: str = "0.01") -> str:
    return f"b36-lr{lr}-model={model}-flip=false-seed{seed}"


@dataclasses.dataclass
class Killed:
    """A sweep that has lost a worker and got a signal: what it printed then, and in the end."""

    out: Path
    first: subprocess.CompletedProcess[str]
    last: subprocess.CompletedProcess[str]
    tokens: set[int]


@pytest.fixture(scope="module")
def killed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Two networks, one of them a plugin's with a relative path; two seeds, and a learning rate
    that breaks."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "mine.py").write_text(PLUGIN)
    out = folder / "out"
    call = sweep(shards, out, "--lrs", 0.01, 1e38, "--seeds", 0, 1, *GRID)
    running = processes.Started(*call, env=marked(folder), daemon=False)
    first = named("cnn_baseline", 0)
    until(lambda: list(out.glob(f"trials/{first}-*/attempts/0001/0*.pt")))
    victim = trial(out, first)
    os.kill(json.loads((victim / "attempts/0001/owner.json").read_text())["pid"], signal.SIGKILL)
    until(lambda: (victim / "attempts/0002/environment.json").exists())
    tokens = tokens_of_ray()
    running.send_signal(signal.SIGUSR2)  # Grid Engine's warning; handled as SIGTERM and Ctrl-C are
    text = "".join(running.communicate(timeout=400))
    until(lambda: not of_ray())  # its last processes end by themselves
    stopped = subprocess.CompletedProcess(call, running.wait(), text)
    return Killed(out, stopped, done(call, cwd=folder), tokens)


@pytest.fixture
def swept(killed: Killed) -> Path:
    return killed.out


def test_a_broken_trial_stops_nothing_and_is_in_the_table(swept: Path) -> None:
    table = pd.read_csv(swept / "results.csv").set_index(["lr", "model", "seed"]).sort_index()
    assert list(table["state"]) == ["finished"] * 4 + ["failed"] * 4
    why = table.loc[(1e38, "cnn_baseline", 0), "why"]
    assert why.startswith("UserError: loss is not a finite number")
    summary = json.loads((swept / "summary.json").read_text())
    assert {s["lr"] for s in summary["ranked"]} == {0.01}
    for setting in summary["ranked"]:
        for seed, value in setting["values"].items():
            run = trial(swept, named(setting["settings"]["model"], seed))
            assert value == max(row["val_accuracy"] for row in read_rows(run))


def test_the_winner_comes_out_the_same_outside_ray(fer: Fer, swept: Path, tmp_path: Path) -> None:
    again = fer(
        "train", "--from-sweep", swept, "--run", tmp_path / "run", "--seed", 1, "--no-tensorboard"
    )
    assert again.returncode == 0, again.stderr
    best = json.loads((swept / "best.json").read_text())
    assert best["lr"] == 0.01
    assert_same_outcome(tmp_path / "run", trial(swept, named(best["science"]["model"], 1)))


def test_the_report_shows_a_sweep_as_one(fer: Fer, swept: Path, tmp_path: Path) -> None:
    done = fer("report", swept, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    page, summary = (
        (tmp_path / "index.html").read_text(),
        json.loads((swept / "summary.json").read_text()),
    )
    for setting in summary["ranked"]:
        assert f"{setting['mean']:.4f}" in page
    assert "loss is not a finite number" in page
    assert page.count("<h2 ") == 2, "the sweep and its data, no trial by itself"


@pytest.mark.long
def test_more_seeds_run_only_what_is_new_also_in_another_place(
    shards: Path, swept: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(swept, tmp_path / "moved")
    call = sweep(shards, moved, "--lrs", 0.01, "--seeds", 0, 1, 2, *GRID)
    old, new = (trial(moved, named("mine", seed)) for seed in (0, 1)), named("mine", 2)
    before = {run: (attempt_numbers(run), (run / "final.pt").stat().st_mtime_ns) for run in old}
    ended = done(call, cwd=swept.parent)
    assert ended.returncode == 0, ended.stderr
    assert "6 trials in" in ended.stdout
    assert "4 finished before" in ended.stdout
    for run, (attempts, changed) in before.items():
        assert attempt_numbers(run) == attempts
        assert (run / "final.pt").stat().st_mtime_ns == changed
    assert read_status(trial(moved, new))["state"] == "finished"
    again = done(call, cwd=swept.parent)
    assert again.returncode == 0
    assert "finished, nothing to do" in again.stdout


def hparams(run: Path) -> set[str]:
    """The columns of TensorBoard's HParams table in which a run has a value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(run / "tb")).Reload()
    start = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    return set(HParamsPluginData.FromString(start).session_start_info.hparams)


def test_a_killed_worker_goes_on_and_so_does_a_killed_sweep(
    fer: Fer, killed: Killed, tmp_path: Path
) -> None:
    victim = trial(killed.out, named("cnn_baseline", 0))
    assert read_json(victim / "attempts/0002/environment.json")["parent"]["images_seen"] > 0
    assert killed.tokens == {64}, "Ray listens on all networks: its users need a token"
    text = killed.first.stdout
    assert killed.first.returncode == 75, text
    assert "the same command continues from there" in text
    assert f"{victim.name}: its process died; started again" in text
    assert f"{victim.name}: interrupted (stopped by SIGTERM), epoch" in text, "it has saved"
    assert "Traceback" not in text, "Ray's own, which tells a user nothing"
    ended = killed.last
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert f"failed: {named('cnn_baseline', 0, '1e+38')}" in ended.stdout
    assert "loss is not a finite number" in ended.stdout
    assert "model" in ended.stdout
    recipe = ("--from-sweep", killed.out, "--model", "cnn_baseline", "--lr", 0.01, "--seed", 0)
    again = fer("train", *recipe, "--run", tmp_path / "run", "--no-tensorboard")
    assert again.returncode == 0, again.stderr
    assert_same_outcome(victim, tmp_path / "run")


def test_a_network_of_a_plugin_is_swept_shown_and_trained(
    fer: Fer, swept: Path, tmp_path: Path
) -> None:
    """Ray's workers, the report and --from-sweep find the plugin."""
    mine = trial(swept, named("mine", 0))
    stored = json.loads((mine / "config.json").read_text())
    assert stored["science"]["model"] == "mine"
    assert stored["science"]["plugin_hash"]
    assert {"batch_size", "lr", "seed", "model", "flip"} <= hparams(mine), "also at its default"
    best = json.loads((swept / "best.json").read_text())
    best["science"]["model"] = "mine"  # as if it had won
    (tmp_path / "best.json").write_text(json.dumps(best))
    run = ("--run", tmp_path / "run", "--seed", 0, "--no-tensorboard")
    again = fer("train", "--from-sweep", tmp_path, *run)
    assert again.returncode == 0, again.stderr
    assert_same_outcome(tmp_path / "run", mine)


def test_tensorboard_has_one_line_per_trial(fer: Fer, swept: Path, tmp_path: Path) -> None:
    """Seen in a browser; a run that was continued has one line as well."""
    out = shutil.copytree(swept, tmp_path / "out")
    mine = trial(out, named("mine", 0))
    changes = ("--model", "mine", "--lr", 0.01, "--seed", 0, "--epochs", 4)
    more = fer("train", "--from-sweep", out, "--run", mine, *changes)
    assert f"attempt {attempt_numbers(mine)[-1]}" in more.stderr
    assert len(attempt_numbers(mine)) > len(attempt_numbers(trial(swept, named("mine", 0))))
    with tensorboard(out) as address:
        text = page_text(f"{address}/#hparams", "session groups: 8", tmp_path / "hparams.png")
    assert "Number of matching session groups: 8" in text
    for name in (path.name for path in (out / "trials").iterdir()):
        assert text.count(f"trials/{name}/tb") == 1


def test_a_mistake_is_one_message_before_ray_starts(shards: Path, tmp_path: Path) -> None:
    call = ("tune", *SHORT, "--data", shards, "--out", tmp_path / "out")
    ended = processes.run(*call, "--batch-sizes", 500)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "--batch-size 500 is larger than the training split; use at most 168" in ended.stderr
    ended = processes.run(*call, "--device", "cuda")
    assert ended.returncode == 2
    assert "--device cuda: this machine has no GPU; use --device cpu" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_an_exception_of_a_network_is_told_as_it_is(shards: Path, tmp_path: Path) -> None:
    """It is no death of a process; and Ray's own message about it is not shown."""
    text = (
        PLUGIN.replace("nn.Sequential(", "Bad(")
        + """
class Bad(nn.Sequential):
    def forward(self, x):
        if self.training and len(x) > 3:  # it is tried with fewer before
            raise ValueError("bad thing")
        return super().forward(x)
"""
    )
    (tmp_path / "mine.py").write_text(text)
    flags = "--lrs 0.01 --seeds 0 --model mine --plugin mine.py --retries 1".split()
    ended = done(sweep(shards, tmp_path / "out", *flags), cwd=tmp_path)
    assert ended.returncode == 3, ended.stderr
    first, *_, last = ended.stdout.splitlines()[1:]
    for line in (first, last):  # and no retry: it would end in the same way
        assert f"{tmp_path}/mine.py, line 13: ValueError: bad thing; " in line
    assert "died" not in ended.stdout
    assert "ERROR" not in ended.stdout + ended.stderr


def test_a_sweep_in_use_is_one_message(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fer_hpc.sweep import ray_tune

    monkeypatch.setattr(ray_tune, "END_OF_KILLED_S", 0)
    call = [str(a) for a in sweep(shards, tmp_path, "--lrs", 0.01, "--seeds", 0)][1:]
    config, preset, base = configure("tune", call)
    trials = grid(config, base)
    claim_attempt(trials[0].config.run)
    with pytest.raises(UserError, match=f"in use: trial .* by process {os.getpid()} on"):
        ray_tune.tune(config, preset, base)

    # the trial was claimed after this sweep had looked
    queue = ray_tune._TrialQueue(SuccessiveHalving(config, trials), {}, tmp_path, SweepStop())
    assert queue.suggest("id")["trial"] == trials[0].name
    queue.on_trial_complete("id", {"failure": "in use by process 1"})
    assert queue.was_held and queue.stopped
    assert not (tmp_path / "failures.json").exists(), "the other process may finish it"
