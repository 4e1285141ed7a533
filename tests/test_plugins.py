"""Other people's files that register networks, losses and sources."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from fer_hpc.cli.main import main, run_command
from fer_hpc.config import UserError, preset
from fer_hpc.config.plugins import load_plugin, load_plugins
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.models.registry import MODELS, build_network, check_network, model_spec
from fer_hpc.run.folder import read_status
from fer_hpc.training.loss_check import check_loss
from fer_hpc.training.losses import LOSSES
from tests.conftest import Fer
from tests.helpers.processes import HOLD, Started
from tests.helpers.runs import until_training

NETWORK = """
from torch import nn
from fer_hpc import register_model

@register_model({name!r}, sides=(16, 64), face=(32, 1))
def build(outputs, channels, side):
    inputs = channels * (side // 4) ** 2
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(inputs, outputs))
"""
LAYERS = "nn.AvgPool2d(4), nn.Flatten(), nn.Linear(inputs, outputs)"
MODULES = """

import torch

class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


class OnlyEval(nn.Module):
    def forward(self, x):
        if self.training:
            raise ValueError("not here")
        return x


class NoCopy(nn.Identity):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1)) * 2


class OnlyTwo(nn.Module):
    def forward(self, x):
        return x if len(x) == 2 else x[:1]
"""


@pytest.fixture(autouse=True)
def no_names_left() -> Iterator[None]:
    known = dict(MODELS), dict(LOSSES)
    yield
    for names, before in zip((MODELS, LOSSES), known, strict=True):
        names.clear()  # type: ignore[attr-defined]
        names.update(before)  # type: ignore[attr-defined]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_plugin_registers_a_network_once(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", NETWORK.format(name="mine"))
    origin = load_plugin(path)
    assert model_spec("mine").origin == origin == load_plugin(path)
    assert model_spec("mine").sides == (16, 64)


def test_plugins_come_from_the_variable_and_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.py", NETWORK.format(name=name))
    monkeypatch.setenv(
        "FER_PLUGINS", os.pathsep.join([str(tmp_path / "a.py"), str(tmp_path / "b.py")])
    )
    monkeypatch.chdir(tmp_path)
    assert [Path(o.path).name for o in load_plugins([Path("c.py")])] == ["a.py", "b.py", "c.py"]
    assert {"a", "b", "c"} <= set(MODELS)


def test_an_installed_package_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "lab_networks.py", NETWORK.format(name="lab"))
    info = tmp_path / "lab_networks-1.0.dist-info"
    info.mkdir()
    write(info / "METADATA", "Metadata-Version: 2.1\nName: lab-networks\nVersion: 1.0\n")
    write(info / "entry_points.txt", "[fer_hpc.plugins]\nlab = lab_networks\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins()
    assert model_spec("lab").origin is not None
    write(tmp_path / "lab_networks.py", "1 / 0")
    del sys.modules["lab_networks"]
    with pytest.raises(UserError, match=r"lab-networks .*ZeroDivisionError"):
        load_plugins()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n\n1 / 0\n", ("line 3", "ZeroDivisionError")),
        ("def broken(:\n", ("line 1", "SyntaxError")),
        ("import not_installed_anywhere\n", ("line 1", "not_installed_anywhere")),
        ("raise SystemExit(0)\n", ("line 1", "SystemExit")),
        (NETWORK.format(name="vgg"), ("'vgg'", "built in", "another name")),
        ("from fer_hpc import register_model\n\nregister_model('x')(3)\n", ("line 3", "function")),
        (NETWORK.replace("(16, 64)", "64").format(name="x"), ("line 5", "sides=64", "two whole")),
    ],
)
def test_a_mistake_in_a_plugin_is_one_message(
    text: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    path = write(tmp_path / "mine.py", text)
    for _ in range(2):  # the second time as well: nothing half loaded stays
        with pytest.raises(UserError) as error:
            load_plugin(path)
        assert all(word in str(error.value) for word in (str(path), *words)), error.value
    assert MODELS["vgg"].origin is None


def test_two_plugins_with_one_name_are_refused(tmp_path: Path) -> None:
    load_plugin(write(tmp_path / "first.py", NETWORK.format(name="mine")))
    second = write(tmp_path / "second.py", NETWORK.format(name="mine") + "# another\n")
    with pytest.raises(UserError) as error:
        load_plugin(second)
    assert "first.py" in str(error.value)
    assert "second.py" in str(error.value)
    load_plugin(write(tmp_path / "copy.py", NETWORK.format(name="mine")))  # the same bytes


def test_a_plugin_that_was_edited_is_loaded_again(tmp_path: Path) -> None:
    """A notebook's session, or a Ray worker that trains several trials."""
    path = write(tmp_path / "mine.py", NETWORK.format(name="mine"))
    first = load_plugin(path)
    write(path, NETWORK.format(name="mine").replace("(16, 64)", "(16, 128)"))
    second = load_plugin(path)
    assert first.sha256 != second.sha256
    assert model_spec("mine").sides == (16, 128)
    path.unlink()
    assert load_plugin(path) == second


def test_a_cell_may_be_run_again() -> None:
    text = NETWORK.format(name="cell")
    for side in (64, 96):
        exec(compile(text.replace("64", str(side)), "<cell>", "exec"), {})
        assert model_spec("cell").sides == (16, side)


def test_a_plugin_that_is_no_python_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_plugin(tmp_path / "nowhere.py")
    with pytest.raises(UserError, match=r"\.py"):
        load_plugin(write(tmp_path / "mine.txt", ""))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("outputs)", "outputs + 1)"), ("(2, 9)", "(2, 8)")),
        (("inputs = ", "inputs = 2 * "), ("32x32x1", "RuntimeError")),
        (("return nn", "return undefined"), ("line 8", "NameError", "mine.py")),
    ],
)
def test_a_network_that_does_not_fit_is_found_before_a_run_starts(
    change: tuple[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    text = NETWORK.format(name="mine")
    load_plugin(write(tmp_path / "good.py", text))
    check_network({"model": "mine"}, 8, (32, 32, 1))
    load_plugin(write(tmp_path / "mine.py", text.replace("'mine'", "'other'").replace(*change)))
    with pytest.raises(UserError) as error:
        check_network({"model": "other"}, 8, (32, 32, 1))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("nn.AdaptiveAvgPool2d((outputs, 1)), nn.Flatten()", "line 5: the network has no param"),
        (f"{LAYERS}).requires_grad_(False", "line 5: all parameters are frozen"),
        (f"{LAYERS}, Detached()", "line 5: its outputs have no gradient"),
        (f"{LAYERS}, OnlyEval()", "fails in training mode: MINE, line 21: ValueError: not here"),
        (f"{LAYERS}, NoCopy()", "cannot be copied, which --ema needs: MINE, line 5: RuntimeError"),
        (f"{LAYERS}, OnlyTwo()", "line 5: it gives (1, 8) for 3 faces: wanted a tensor"),
    ],
)
def test_a_network_that_cannot_be_trained_is_found_before_a_run_starts(
    layers: str, words: str, tmp_path: Path
) -> None:
    text = NETWORK.format(name="mine").replace(LAYERS, layers) + MODULES
    path = write(tmp_path / "mine.py", text)
    load_plugin(path)
    state = torch.get_rng_state()
    with pytest.raises(UserError) as error:
        check_network({"model": "mine", "ema": 0.9}, 8, (32, 32, 1))
    assert words.replace("MINE", str(path)) in str(error.value)
    assert str(path) in str(error.value)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_lazy_network_gets_its_shapes_and_the_seed_decides_its_weights(tmp_path: Path) -> None:
    lazy = "nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(outputs)"
    load_plugin(write(tmp_path / "mine.py", NETWORK.format(name="mine").replace(LAYERS, lazy)))
    check_network({"model": "mine"}, 8, (32, 32, 1))
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        network = build_network({"model": "mine"}, 8, (32, 32, 1))
        assert network.training
        weights.append(network.state_dict())
    assert weights[0]["3.weight"].shape == (8, 4 * 30 * 30)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


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


@pytest.mark.parametrize(
    ("name", "call"), [("a", "exit()"), ("b", "raise SystemExit"), ("c", "import sys; sys.exit(0)")]
)
def test_a_plugin_that_calls_exit_is_no_success(
    name: str, call: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        tmp_path / "leaves.py",
        "from fer_hpc import register_source\n"
        "class Leaves:\n"
        "    classes = ('a', 'b')\n"
        "    def rows(self):\n"
        f"        {call}\n"
        "    def face(self, locator): ...\n"
        "    def close(self): ...\n"
        f"register_source('leaves-{name}')(lambda config: Leaves())\n",
    )
    where = ["--input", tmp_path, "--out", tmp_path / "out", "--plugin", tmp_path / "leaves.py"]
    assert main(["preprocess", "--source", f"leaves-{name}", *map(str, where)]) == 2
    assert "leaves.py: line 5: SystemExit" in capsys.readouterr().err


def test_an_exit_in_the_midst_of_a_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("train", lambda: sys.exit(0)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fer-hpc train: error:") and line.endswith("it calls exit()")
    assert __file__ in line
    assert run_command("tune", lambda: sys.exit(signal.SIGTERM)) == 75, "as Ray ends at SIGTERM"
    assert "the same command continues" in capsys.readouterr().err


def test_sigterm_is_as_ctrl_c_where_nothing_else_handles_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command("evaluate", lambda: signal.raise_signal(signal.SIGTERM) or 0) == 75
    assert "the same command continues" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_too_many_open_files_name_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    assert run_command("preprocess", fail) == 2
    assert "too many open files: ulimit -n allows" in capsys.readouterr().err
