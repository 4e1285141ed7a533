"""What every command promises: help and mistakes answer at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fer_hpc.cli.main import VERBS
from fer_hpc.cli.parse import parse
from fer_hpc.config.commands import SweepConfig

HEAVY = ("ray", "torch", "h5py", "cv2", "matplotlib", "sklearn", "pandas", "numpy")


def modules_after(code: str) -> set[str]:
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('MODULES', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split("MODULES")[1].split())


@pytest.mark.parametrize(
    "arguments", [["--help"], *([verb, "--help"] for verb in VERBS), ["train", "nonsense"]]
)
def test_help_and_mistakes_load_nothing_heavy(arguments: list[str]) -> None:
    assert not modules_after(f"from fer_hpc.cli.main import main; main({arguments!r})") & set(HEAVY)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import fer_hpc") & set(HEAVY)


@pytest.mark.parametrize(
    "verb", [verb for verb in VERBS if verb not in ("status", "logs", "cancel")]
)
def test_module_and_console_script_are_the_same_command(verb: str) -> None:
    module = "data.synthetic" if verb == "synthetic" else verb
    outputs = [
        subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
        for command in (
            [sys.executable, "-m", f"fer_hpc.{module}"],
            [sys.executable, "-m", "fer_hpc.cli", verb],
        )
    ]
    assert outputs[0] == outputs[1]
    assert "--" in outputs[0]


def test_preset_decides_the_defaults_that_help_shows() -> None:
    helps = [
        subprocess.run(
            [sys.executable, "-m", "fer_hpc.train", name, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in ("cnn_baseline", "cnn_improved")
    ]
    assert "(default: 64)" in helps[0]
    assert "(default: 256)" in helps[1]


def test_several_values_may_stand_behind_commas() -> None:
    flags = ["--data", "d", "--out", "o", "--lrs=0.1,0.2", "--seeds", "0,1", "2"]
    found = parse(SweepConfig, "tune", flags)
    assert (found.lrs, found.seeds) == ((0.1, 0.2), (0, 1, 2))
