"""Other people's files that register networks, losses and sources."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fer_hpc.cli.main import main, run_command
from fer_hpc.config import UserError
from fer_hpc.config.plugins import load_plugin, load_plugins
from fer_hpc.models.registry import MODELS, check_network, model_spec
from fer_hpc.run.folder import read_status
from tests.conftest import Fer
from tests.helpers.processes import Started

NETWORK = """
from torch import nn
from fer_hpc import register_model

@register_model({name!r}, sides=(16, 64), face=(32, 1))
def build(outputs, channels, side):
    inputs = channels * (side // 4) ** 2
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(inputs, outputs))
"""


@pytest.fixture(autouse=True)
def no_names_left() -> Iterator[None]:
    known = dict(MODELS)
    yield
    MODELS.clear()
    MODELS.update(known)


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
    process = Started("train", *again, "--plugin", plugin)
    deadline = time.monotonic() + 120
    while not [p for p in run.glob("attempts/0001/0*.pt") if int(p.stem) > 300]:
        assert time.monotonic() < deadline
        time.sleep(0.005)
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
