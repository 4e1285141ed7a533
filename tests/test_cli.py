"""What every command promises: help and mistakes answer at once, and imports point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fer_hpc
from fer_hpc.arguments import parse
from fer_hpc.cli import VERBS
from fer_hpc.commands import SweepConfig

PACKAGE = Path(fer_hpc.__file__).parent
HEAVY = ("ray", "torch", "h5py", "cv2", "matplotlib", "sklearn", "pandas", "numpy")


def modules_after(code: str) -> set[str]:
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split("MODULES")[1].split())


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS), ["train", "nonsense"]])
def test_help_and_mistakes_load_nothing_heavy(arguments: list[str]) -> None:
    assert not modules_after(f"from fer_hpc.cli import main; main({arguments!r})") & set(HEAVY)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import fer_hpc") & set(HEAVY)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("status", "logs", "cancel")])
def test_module_and_console_script_are_the_same_command(verb: str) -> None:
    module = "data.synthetic" if verb == "synthetic" else verb
    outputs = [
        subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
        for command in ([sys.executable, "-m", f"fer_hpc.{module}"], [sys.executable, "-m", "fer_hpc.cli", verb])
    ]
    assert outputs[0] == outputs[1]
    assert "--" in outputs[0]


def test_preset_decides_the_defaults_that_help_shows() -> None:
    helps = [
        subprocess.run(
            [sys.executable, "-m", "fer_hpc.train", name, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for name in ("cnn_baseline", "cnn_improved")
    ]
    assert "(default: 64)" in helps[0]
    assert "(default: 256)" in helps[1]


def test_several_values_may_stand_behind_commas() -> None:
    flags = ["--data", "d", "--out", "o", "--lrs=0.1,0.2", "--seeds", "0,1", "2"]
    found = parse(SweepConfig, "tune", flags)
    assert (found.lrs, found.seeds) == ((0.1, 0.2), (0, 1, 2))


# Imports point one way: a module may import from its own layer or an earlier one.
LAYERS = [
    {"config"}, {"commands"}, {"rundir", "metrics", "plots", "watchdog", "arguments", "malloc"}, {"distributed"},
    {"data", "models", "checkpoint", "runlog", "ray_nodes", "sweep"}, {"objective", "recipe", "weights", "session"}, {"settle"},
    {"preprocess", "doctor", "evaluate", "report", "cluster"},
    {"train", "train_gan"}, {"sheet", "tune", "transfer"}, {"evaluate_gan", "generate"}, {"cli"},
]  # fmt: skip
NO_TORCH = ("config", "commands", "rundir", "metrics", "plots", "distributed", "report", "preprocess", "cluster", "watchdog",
            "cli", "arguments", "sweep", "ray_nodes", "malloc")  # fmt: skip


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at import time) of everything a file imports."""
    found = []
    tree = ast.parse(path.read_text())
    guarded = {id(n) for top in tree.body if isinstance(top, ast.If | ast.FunctionDef | ast.ClassDef) for n in ast.walk(top)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "fer_hpc" else [node.module]
            found += [(name, id(node) not in guarded) for name in names]
        elif isinstance(node, ast.Import):
            found += [(a.name, id(node) not in guarded) for a in node.names]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return
    mine = next(i for i, layer in enumerate(LAYERS) if part in layer)
    for name, at_import in imports_of(path):
        if name.startswith("fer_hpc.") and at_import:
            other = name.split(".")[1]
            if other not in ("__version__",):
                theirs = next(i for i, layer in enumerate(LAYERS) if other in layer)
                assert theirs <= mine, f"{path.name} imports {name}"
        if at_import and part in NO_TORCH:
            assert name.split(".")[0] != "torch", path
    users = {"h5py": "shards", "matplotlib": "plots", "tyro": "arguments"}
    for library, module in users.items():
        if any(name.split(".")[0] == library for name, _ in imports_of(path)):
            assert path.stem == module, f"{library} belongs into {module}.py"
