"""Other people's files that register networks: how they are found, and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from fer_hpc.config import UserError
from fer_hpc.config.plugins import load_plugin, load_plugins
from fer_hpc.models.registry import MODELS, build_network, check_network, model_spec
from tests.helpers.plugins import LAYERS, NETWORK, write

pytestmark = pytest.mark.usefixtures("no_names_left")
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
