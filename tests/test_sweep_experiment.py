"""A sweep is one experiment: what may differ when it goes on, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fer_hpc.cli.parse import configure
from fer_hpc.config import UserError
from fer_hpc.config.commands import SweepConfig
from fer_hpc.files import write_json
from fer_hpc.models.registry import MODELS
from fer_hpc.run.attempts import claim_attempt
from fer_hpc.sweep import grid as sweep
from fer_hpc.sweep.tables import best_of, collect
from tests.conftest import Fer
from tests.helpers.sweeps import begun, prepared, rewrite, trained, trials_of

NETWORK = """
from torch import nn
from fer_hpc import register_model

@register_model("of_the_sweep", sides=(16, 64), face=(32, 1))
def build(outputs, channels, side):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, outputs))
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    """A file that registers a network."""
    path, known = tmp_path / "net.py", dict(MODELS)
    path.write_text(NETWORK)
    yield path
    MODELS.clear()
    MODELS.update(known)


def test_a_sweep_whose_plugin_was_edited_is_refused(
    shards: Path, tmp_path: Path, plugin: Path
) -> None:
    """sweep.json has no hash of it, as in 0.1.0: the trials' own config.json have."""
    flags = ["--model", "of_the_sweep", "--plugin", str(plugin), "--batch-sizes", "64"]
    _, trials = prepared(shards, tmp_path / "out", *flags, "--lrs", "0.1", "--seeds", "0", "1")
    begun(trials[0])
    more = trials_of(shards, tmp_path / "out", *flags, "--lrs", "0.1", "0.2", "--seeds", "0", "1")
    sweep.check_sweep(*more)
    plugin.write_text(f"{NETWORK}# edited\n")
    with pytest.raises(UserError, match=r"started with other code .*net\.py.* another sweep"):
        sweep.check_sweep(*more)
    with pytest.raises(UserError, match=r"the other trials of this sweep were .*net\.py"):
        begun(trials[1])  # edited while the sweep runs
    plugin.unlink()
    sweep.check_sweep(*more)  # a finished sweep does not need it


def test_a_sweep_from_before_presets_set_a_field_goes_on_without_it(
    shards: Path, tmp_path: Path
) -> None:
    _, _, base = configure("tune", ["resnet_baseline", "--data", str(shards), "--out", "unused"])
    assert base.bn_images
    config = SweepConfig(shards, tmp_path, batch_sizes=(64,), lrs=(0.1,), seeds=(0,))
    old = sweep.grid(config, dataclasses.replace(base, bn_images=0))
    sweep.prepare(config, "resnet_baseline", old)
    stored = json.loads((tmp_path / "sweep.json").read_text())
    del stored["science"]["bn_images"]
    write_json(tmp_path / "sweep.json", stored)
    config = dataclasses.replace(config, seeds=(0, 1))
    trials = sweep.grid(config, base)
    sweep.check_sweep(config, trials)
    assert trials[0].name == old[0].name
    assert [trial.config.bn_images for trial in trials] == [0, 0]


def test_a_sweep_whose_initial_weights_were_replaced_is_refused(
    shards: Path, tmp_path: Path, finished_run: Path
) -> None:
    weights = shutil.copytree(finished_run, tmp_path / "weights")
    flags = ["--init-from", str(weights), "--batch-sizes", "64", "--lrs", "0.1"]
    config, trials = prepared(shards, tmp_path / "out", *flags, "--seeds", "0", "1")
    begun(trials[0])
    sweep.check_sweep(config, trials)
    (best,) = weights.glob("attempts/*/best.pt")
    shutil.copy(best.with_name("final.pt"), best)
    with pytest.raises(UserError, match=r"other weights than .*/weights"):
        sweep.check_sweep(config, trials)
    with pytest.raises(UserError, match=r"--init-from .*/weights have"):
        begun(trials[1])


def test_new_trials_take_what_the_first_one_resolved(shards: Path, tmp_path: Path) -> None:
    """Precision auto is another on other hardware; data may be made again before a task starts."""
    flags = ["--batch-sizes", "64", "--lrs", "0.1", "--seeds", "0", "1"]
    _, trials = prepared(shards, tmp_path, *flags, "--grid", "precision=auto,fp64")
    first, new, other, _ = trials
    begun(other)
    begun(first)
    rewrite(first, precision="fp16")
    begun(new)
    stored = json.loads((new.config.run / "config.json").read_text())
    assert stored["science"]["precision"] == "fp16"
    shutil.rmtree(new.config.run)
    rewrite(first, fingerprint="0" * 16)
    with pytest.raises(UserError, match="other trials of this sweep were trained on other data"):
        begun(new)


def test_the_winner_of_a_sweep_is_trained_with_its_plugin(
    fer: Fer, shards: Path, tmp_path: Path, plugin: Path
) -> None:
    flags = ["--model", "of_the_sweep", "--plugin", str(plugin), "--batch-sizes", "64"]
    _, trials = prepared(shards, tmp_path / "out", *flags, "--lrs", "0.1", "--seeds", "0")
    begun(trials[0])
    trained(trials[0], 0.5)
    assert collect(tmp_path / "out").startswith("of_the_sweep (other settings: cnn_baseline), 100")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["preset"], summary["model"]) == ("cnn_baseline", "of_the_sweep")
    plugin.write_text(f"{NETWORK}# edited\n")
    recipe = ("--from-sweep", tmp_path / "out", "--run", tmp_path / "run", "--epochs", 1)
    for older in (False, True):
        if older:  # best.json of 0.1.0
            best = json.loads((tmp_path / "out" / "best.json").read_text())
            best["science"]["plugin_hash"] = ""
            write_json(tmp_path / "out" / "best.json", best)
        done = fer("train", *recipe)
        assert done.returncode == 2
        assert f"{plugin} has changed" in done.stderr
    done = fer("train", *recipe, "--model", "cnn_baseline", "--no-tensorboard")
    assert done.returncode == 0, done.stderr


def test_trials_in_use_are_named_with_their_holder(shards: Path, tmp_path: Path) -> None:
    flags = ["--batch-sizes", "64", "--lrs", "0.1", "--seeds", "0", "1"]
    _, trials = prepared(shards, tmp_path, *flags)
    names = [trial.name for trial in trials]
    attempt = claim_attempt(trials[1].config.run)
    with pytest.raises(UserError, match=f"in use: trial {names[1]} by process {os.getpid()} on"):
        sweep.check_free(tmp_path, names)
    sweep.check_free(tmp_path, names[:1])  # another job may train other trials
    with ThreadPoolExecutor(1) as threads:  # a killed sweep's process ends a moment later
        waits = threads.submit(sweep.check_free, tmp_path, names, 60)
        attempt.end("interrupted")
        waits.result()


def test_a_sweep_of_an_older_version_goes_on(shards: Path, tmp_path: Path) -> None:
    """Its sweep.json knows neither the newer fields nor the runtime flags."""
    config, trials = trials_of(shards, tmp_path, "--epochs", "3")
    sweep.prepare(config, "cnn_baseline", trials)
    stored = json.loads((tmp_path / "sweep.json").read_text())
    del stored["runtime"]
    for field in ("loss", "pretrained", "plugin_hash"):
        del stored["science"][field]
    write_json(tmp_path / "sweep.json", stored)
    sweep.check_sweep(config, trials)
    for trial in trials:
        trained(trial, 0.1, 0.2, 0.2 + trial.config.lr)
    collect(tmp_path)
    assert best_of(tmp_path)["lr"] == 0.01
    with pytest.raises(UserError, match=r"--loss cross_entropy \(now --loss mine\)"):
        sweep.check_sweep(*trials_of(shards, tmp_path, "--epochs", "3", "--loss", "mine"))
    for swept, value in zip(stored["trials"].values(), (True, "x", False), strict=False):
        swept["flip"] = value
    write_json(tmp_path / "sweep.json", stored)
    with pytest.raises(UserError, match=r"sweep\.json is damaged: --flip 'x'"):
        collect(tmp_path)
