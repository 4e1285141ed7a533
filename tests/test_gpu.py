"""On a real GPU (make test-gpu): the promises that the CPU cannot show."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from fer_hpc.config import GanConfig, TrainConfig, UserError, preset
from fer_hpc.data.store import ImageStore
from fer_hpc.gan.loop import train_gan
from fer_hpc.parallel.mps import multi_process_service
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import read_status
from fer_hpc.training.loop import train
from tests.helpers import processes
from tests.helpers.processes import call
from tests.helpers.runs import assert_same_outcome, until_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
USUAL: dict[str, Any] = {
    "batch_size": 30,
    "epochs": 4,
    "tensorboard": False,
    "device": "cuda",
    "checkpoint_every_s": 0.2,
}
EVERYTHING = {
    "flip": True, "rotate": 10.0, "shift": 0.1, "scale": 0.1, "erase": 0.5, "brightness": 0.2,
    "contrast": 0.2, "gamma": 0.3, "mixup": 0.4, "label_smoothing": 0.1, "class_weights": 5.0,
    "clip": 1.0, "ema": 0.99, "accumulate": 2, "schedule": "cosine", "warmup_epochs": 0.5,
}  # fmt: skip
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn_improved": ("cnn_improved", {"flip": True}),
    "everything": ("fer2013", EVERYTHING),
    "adamw": ("resnet_baseline", {"optimizer": "adamw", "weight_decay": 0.01}),
    "fp16": ("cnn_baseline", {"precision": "fp16"}),
    "fp32": ("resnet_baseline", {"precision": "fp32", "va_weight": 0.5}),
}


def config_of(name: str, shards: Path, run: Path, **fields: Any) -> TrainConfig:
    return preset(name, **{**USUAL, "data": shards, "run": run, **fields})


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_graph_gives_the_bytes_of_direct_calls(
    recipe: str, gpu_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, fields = RECIPES[recipe]
    for graph in ("on", "off"):
        train(config_of(name, gpu_shards, tmp_path / graph, graph=graph, **fields), World())
    assert_same_outcome(tmp_path / "on", tmp_path / "off")
    assert "--graph off" not in capfd.readouterr().err


@pytest.mark.parametrize("recipe", ["cnn_improved", "everything", "fp16"])
def test_weights_that_are_cast_together_give_autocasts_bytes(
    recipe: str, gpu_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, fields = RECIPES[recipe]
    train(config_of(name, gpu_shards, tmp_path / "together", **fields), World())
    monkeypatch.setattr("fer_hpc.training.learner.casts_together", lambda *_: False)
    train(config_of(name, gpu_shards, tmp_path / "autocast", **fields), World())
    assert_same_outcome(tmp_path / "together", tmp_path / "autocast")


@pytest.mark.parametrize("recipe", ["cnn_improved", "everything"])
def test_killed_and_run_again_it_ends_with_the_same_bytes(
    recipe: str, gpu_shards: Path, tmp_path: Path
) -> None:
    name, more = RECIPES[recipe]
    fields = {**USUAL, **more, "data": gpu_shards, "epochs": 60}
    done = processes.run(*call("train", name, run=tmp_path / "undisturbed", **fields))
    assert done.returncode == 0, done.stderr
    process = processes.Started(*call("train", name, run=tmp_path / "killed", **fields))
    until_training(tmp_path / "killed", 1, images_seen=300)
    process.kill()
    process.wait(60)
    assert read_status(tmp_path / "killed")["state"] == "interrupted"
    again = processes.run(*call("train", name, run=tmp_path / "killed", **fields))
    assert again.returncode == 0, again.stderr
    assert_same_outcome(tmp_path / "killed", tmp_path / "undisturbed")


def test_trainings_that_share_the_gpu_end_with_the_same_bytes_though_one_is_killed(
    gpu_shards: Path, tmp_path: Path
) -> None:
    fields = {**USUAL, "data": gpu_shards, "epochs": 60, "flip": True}

    def start(name: str, service: dict[str, str]) -> processes.Started:
        run = call("train", "fer2013", run=tmp_path / name, **fields)
        return processes.Started(*run, env=os.environ | service)

    alone = start("alone", {})
    assert alone.wait(400) == 0
    names = ("first", "second", "third")
    with (
        tempfile.TemporaryDirectory(prefix="fer-mps-", dir="/tmp") as folder,
        multi_process_service(Path(folder)) as service,
    ):
        if not service:
            pytest.skip("CUDA's MPS does not start here")
        together = [start(name, service) for name in names]
        until_training(tmp_path / "first", 1, images_seen=300)
        together[0].kill()
        assert [process.wait(400) for process in together[1:]] == [0, 0]
        assert start("first", service).wait(400) == 0
    for name in names:
        assert_same_outcome(tmp_path / name, tmp_path / "alone")


def test_pixels_that_do_not_fit_are_streamed_with_the_same_bytes(
    gpu_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"flip": True, "mixup": 0.2, "schedule": "cosine"}
    train(config_of("cnn_improved", gpu_shards, tmp_path / "resident", **fields), World())
    monkeypatch.setattr("fer_hpc.data.store.RESIDENT_SHARE", 0.0)
    streamed = []
    original = ImageStore.read_pixels
    monkeypatch.setattr(
        ImageStore, "read_pixels", lambda *args: (streamed.append(1), original(*args))[1]
    )
    train(config_of("cnn_improved", gpu_shards, tmp_path / "streamed", **fields), World())
    assert len(streamed) > 20
    assert_same_outcome(tmp_path / "streamed", tmp_path / "resident")


def test_steps_do_not_make_the_host_wait(
    gpu_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replays in a mode in which waiting is an error; epochs are longer than that."""
    from fer_hpc.parallel.graph import StepRunner

    original, replays = StepRunner.run, []

    def watched(self: StepRunner, *args: Any, **more: Any) -> Any:
        if not self._captured or self._changed is None or not (args[4:] and args[4]):
            return original(self, *args, **more)
        replays.append(1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(self, *args, **more)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(StepRunner, "run", watched)
    config = config_of(
        "cnn_improved", gpu_shards, tmp_path / "run", epochs=8, checkpoint_every_s=9e9
    )
    train(config, World())
    assert len(replays) >= 50


@pytest.mark.parametrize(
    ("name", "wait"), [("reads", "float(x.sum())"), ("waits", "torch.cuda.synchronize()")]
)
def test_a_network_that_waits_is_trained_without_a_graph(
    name: str, wait: str, gpu_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Found before the capture, or within it; the random numbers of dropout go on after it."""
    plugin = tmp_path / "waits.py"
    plugin.write_text(
        "import torch\n"
        "from torch import nn\n"
        "from fer_hpc import register_model\n"
        "class Waits(nn.Module):\n"
        "    def __init__(self, classes, channels, size):\n"
        "        super().__init__()\n"
        "        self.net = nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes))\n"
        "        self.drop = nn.Dropout(0.2)\n"
        "    def forward(self, x):\n"
        f"        {wait}\n"
        "        return self.net(self.drop(x))\n"
        f"@register_model('{name}')\n"
        "def waits(classes, channels=1, size=48):\n"
        "    return Waits(classes, channels, size)\n"
    )
    fields = {"model": name, "plugin": (plugin,)}
    train(config_of("cnn_baseline", gpu_shards, tmp_path / "run", **fields), World())
    assert "--graph off: the step cannot be captured" in capfd.readouterr().err
    on = config_of("cnn_baseline", gpu_shards, tmp_path / "on", graph="on", **fields)
    with pytest.raises(UserError, match="--graph on"):
        train(on, World())


def test_compiled_steps_repeat_their_bytes(gpu_shards: Path, tmp_path: Path) -> None:
    fields = {**USUAL, "data": gpu_shards, "compile": True}
    for run in ("first", "second"):
        done = processes.run(*call("train", "cnn_baseline", run=tmp_path / run, **fields))
        assert done.returncode == 0, done.stderr
    assert_same_outcome(tmp_path / "first", tmp_path / "second")


def test_a_gpu_run_is_recorded_with_its_card(gpu_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config_of("resnet_baseline", gpu_shards, run, precision="fp32"), World())
    environment = json.loads((run / "attempts" / "0001" / "environment.json").read_text())
    assert environment["device"] == torch.cuda.get_device_name(0)
    config = json.loads((run / "config.json").read_text())
    assert config["science"]["deterministic"] is True


@pytest.mark.parametrize("mode", ["improved", "paper"])
def test_the_gan_ends_with_the_same_bytes_with_and_without_a_graph(
    mode: Any, gpu_shards: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {**USUAL, "batch_size": 16, "epochs": 2, "data": gpu_shards}
    for graph in ("on", "off"):
        train_gan(GanConfig(run=tmp_path / graph, mode=mode, graph=graph, **fields), World())
    assert_same_outcome(tmp_path / "on", tmp_path / "off")
