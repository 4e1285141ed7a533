"""Networks and losses of plugins in use: trained, scored, moved, changed, and failing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from fer_hpc.config import UserError, preset
from fer_hpc.config.plugins import load_plugin
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.run.folder import read_status
from fer_hpc.training.loss_check import check_loss
from tests.conftest import Fer
from tests.helpers.plugins import LAYERS, NETWORK, write
from tests.helpers.processes import HOLD, Started
from tests.helpers.runs import until_training

pytestmark = pytest.mark.usefixtures("no_names_left")
LOSS = """

from fer_hpc import register_loss

@register_loss("focal")
def focal(outputs, batch, norm):
    loss = nn.functional.cross_entropy(outputs, batch.labels, reduction="none")
    return ((1 - (-loss).exp()) ** 2 * loss).sum() / norm.weight_sum
"""
FLAGS = ("--batch-size", 30, "--threads", 1, "--no-tensorboard", "--device", "cpu")


def stored(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "config.json").read_text())
    return content


def test_from_training_to_the_report_with_a_network_and_a_loss_of_ones_own(
    fer: Fer, shards: Path, tmp_path: Path
) -> None:
    """Killed, and continued without --plugin, it ends as the undisturbed run."""
    plugin = write(tmp_path / "mine.py", NETWORK.format(name="mine") + LOSS)
    own = ("--model", "mine", "--loss", "focal", "--epochs", 30, "--data", shards, *FLAGS)
    done = fer("train", *own, "--plugin", plugin, "--run", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert len(stored(tmp_path / "whole")["science"]["plugin_hash"]) == 64

    run = tmp_path / "killed"
    again = (*own, "--run", run, "--checkpoint-every-s", 0.02)
    process = Started("train", *again, "--plugin", plugin, env={**os.environ, HOLD: "3000 3030"})
    until_training(run, 1, 300, process)
    process.kill()
    process.wait()
    assert read_status(run)["state"] == "interrupted"
    done = fer("train", *again)
    assert done.returncode == 0, done.stderr
    assert "from image" in done.stderr
    for name in ("final.pt", "best.pt", "metrics.jsonl"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    assert fer("evaluate", run, "--split", "test").returncode == 0
    assert fer("report", run, "--out", tmp_path / "report").returncode == 0
    assert "mine" in (tmp_path / "report" / "index.html").read_text()


def test_a_plugin_that_moved_or_changed_is_named(fer: Fer, shards: Path, tmp_path: Path) -> None:
    plugin, run = write(tmp_path / "mine.py", NETWORK.format(name="mine")), tmp_path / "run"
    command = ("--model", "mine", "--data", shards, "--run", run, *FLAGS)
    assert fer("train", *command, "--plugin", plugin, "--epochs", 1).returncode == 0
    plugin.rename(tmp_path / "moved.py")
    for verb, args in (("evaluate", (run,)), ("train", (*command, "--epochs", 2))):
        done = fer(verb, *args)
        assert done.returncode == 2
        assert str(plugin) in done.stderr
        assert "--plugin" in done.stderr
        assert "Traceback" not in done.stderr
    done = fer("evaluate", run, "--plugin", tmp_path / "moved.py")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    done = fer("train", *command, "--epochs", 2, "--plugin", tmp_path / "moved.py")
    assert done.returncode == 0, done.stderr

    changed = write(tmp_path / "changed.py", NETWORK.format(name="mine") + "# another\n")
    done = fer("evaluate", run, "--split", "test", "--plugin", changed)
    assert done.returncode == 0, done.stderr
    assert "warning" in done.stderr
    assert "other code" in done.stderr
    for epochs in (2, 3):
        done = fer("train", *command, "--epochs", epochs, "--plugin", changed)
        assert done.returncode == 2
        assert "another experiment" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--plugin", "nowhere.py"), ("nowhere.py", "no such file")),
        (("--plugin", "broken.py"), ("broken.py", "line 2", "ZeroDivisionError")),
        (("--plugin", "mine.py", "--model", "mime"), ("mime", "did you mean 'mine'")),
        (("--plugin", "mine.py", "--model", "mine", "--loss", "focal"), ("focal",)),
        (("--plugin", "mine.py", "--model", "mine", "--pretrained"), ("no published weights",)),
    ],
)
def test_mistakes_with_plugins_are_one_message_and_leave_no_run(
    flags: tuple[str, ...],
    words: tuple[str, ...],
    fer: Fer,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.py", NETWORK.format(name="mine"))
    write(tmp_path / "broken.py", "\n1 / 0\n")
    done = fer("train", "cnn_baseline", "--data", shards, "--run", "run", *FLAGS, *flags)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        ("loss / norm.weight_sum", "line 13: in training it gives a tensor of shape (30,) for 30"),
        ("loss.sum().item()", "line 13: in training it gives a float"),
        ("loss.sum().detach()", "line 13: in training it gives a value without a gradient"),
        ("batch.nothing", "line 16: AttributeError: 'Batch' object has no attribute 'nothing'"),
        ("(batch.images.mean((1, 2, 3)) * loss).sum()", "fails in validation, without mixup and"),
        ("loss.mean() * batch.weights.sum()", "line 16: AttributeError: 'NoneType'"),
    ],
)
def test_a_mistake_in_a_loss_is_one_message_and_leaves_no_run(
    gives: str, words: str, fer: Fer, shards: Path, tmp_path: Path
) -> None:
    loss = LOSS.replace("((1 - (-loss).exp()) ** 2 * loss).sum() / norm.weight_sum", gives)
    plugin = write(tmp_path / "mine.py", NETWORK.format(name="mine") + loss)
    own = ("--model", "mine", "--loss", "focal", "--data", shards, *FLAGS, "--plugin", plugin)
    done = fer("train", *own, "--run", tmp_path / "run")
    assert done.returncode == 2
    assert words in done.stderr and f"{plugin}, line" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_loss_is_tried_with_the_fields_that_mixup_gives(tmp_path: Path, shards: Path) -> None:
    """In validation there are none; a good loss leaves the random state as it was."""
    loss = LOSS.replace(".sum() /", ".sum() * (batch.weights or norm.affect_count) /")
    mixed = LOSS.replace("batch.labels", "batch.labels if batch.weights is None else mixed(batch)")
    mixed += "def mixed(batch): return batch.other_labels + (batch.weights > 2)\n"
    manifest, run = read_manifest(shards), tmp_path / "run"
    config = preset("cnn_baseline", data=shards, run=run, loss="focal", mixup=0.2)
    load_plugin(write(tmp_path / "mine.py", NETWORK.format(name="mine") + loss))
    with pytest.raises(UserError, match=r"in training: .*line 16: RuntimeError"):
        check_loss(config, manifest, 4)
    load_plugin(write(tmp_path / "mine.py", NETWORK.format(name="mine") + mixed))
    state = torch.get_rng_state()
    check_loss(config, manifest, 4)
    assert torch.equal(torch.get_rng_state(), state)


LATE = """

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > 16:
            raise ValueError("too many calls")
        return x
"""


def test_a_mistake_in_the_midst_of_a_training_is_one_message(
    fer: Fer, shards: Path, tmp_path: Path
) -> None:
    """The run has failed; its author finds the traceback; the same command goes on."""
    text = NETWORK.format(name="mine").replace(LAYERS, f"{LAYERS}, Late()") + LATE
    plugin, run = write(tmp_path / "mine.py", text), tmp_path / "run"
    own = ("--model", "mine", "--data", shards, "--plugin", plugin, "--run", run, *FLAGS)
    own = (*own, "--epochs", 3, "--checkpoint-every-s", 0.001)
    done = fer("train", *own)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert f"{plugin}, line 19: ValueError: too many calls" in line
    assert "another experiment" in line
    assert "Traceback" not in done.stderr
    assert read_status(run)["state"] == "failed"
    assert "too many calls" in read_status(run)["why"]
    assert "in forward" in (run / "attempts/0001/traceback.txt").read_text()
    done = fer("train", *own)  # it counts anew
    assert done.returncode == 0, done.stderr
    assert "from image" in done.stderr


def test_a_network_that_fails_after_its_training_is_one_message(
    fer: Fer, shards: Path, tmp_path: Path
) -> None:
    text = NETWORK.format(name="mine")
    plugin, run = write(tmp_path / "mine.py", text), tmp_path / "run"
    own = ("--model", "mine", "--data", shards, "--plugin", plugin, "--run", run, *FLAGS)
    assert fer("train", *own, "--epochs", 1).returncode == 0
    face = tmp_path / "face.png"
    cv2.imwrite(str(face), open_split(read_manifest(shards), "test").images[0][0])
    for number, (gives, words) in enumerate(
        [
            ("x + float('nan')", "no finite numbers"),
            ("x.squeeze() if len(x) == 1 else x", "it gives (8,) for 1 face"),
            ("x if len(x) == 2 else undefined", "line 11: NameError"),
        ]
    ):
        late = f"class Late(nn.Module):\n    def forward(self, x):\n        return {gives}\n"
        changed = text.replace(LAYERS, f"{LAYERS}, Late()") + late
        path = write(tmp_path / f"changed{number}.py", changed)
        commands = [
            ("predict", run, face, "--crop", "none"),
            ("export", run, "--out", tmp_path / "out"),
            ("evaluate", run, "--split", "val"),
        ]
        for command in commands[: 2 if "for 1 face" in words else 3]:
            done = fer(*command, "--plugin", path)
            assert done.returncode == 2, (command, words)
            assert words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (run / "eval-val.json").exists()
