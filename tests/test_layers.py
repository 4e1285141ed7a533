"""The structure: imports point down, a heavy library has one user, files are short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fer_hpc

PACKAGE = Path(fer_hpc.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = Path(__file__).parent

# A package imports from itself and from those before it, at import time and later.
LAYERS = (
    "config",
    "files",
    "parallel",
    "run",
    "data",
    "models",
    "evaluation",
    "deploy",
    "training",
    "gan",
    "sweep",
    "cluster",
    "study",
    "report",
    "drill",
    "cli",
    "api",
)
USERS = {
    "h5py": {"data/shards.py", "training/keras.py"},
    "matplotlib": {"evaluation/plots.py", "evaluation/plots_many.py"},
    "tyro": {"cli/flags.py"},
    "submitit": {"cluster/slurm.py"},
}
NO_TORCH = {"config", "files", "report", "cluster", "study", "cli"}
MAX_LINES, MAX_FUNCTION, MAX_WIDTH, MAX_SKIPS = 350, 80, 100, 10
LOOPS = {("training/loop.py", "train"), ("gan/loop.py", "train_gan")}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at import time) of everything a file imports."""
    found = []
    tree = ast.parse(path.read_text())
    bodies = ast.If | ast.FunctionDef | ast.ClassDef
    later = {id(n) for top in tree.body if isinstance(top, bodies) for n in ast.walk(top)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "fer_hpc":
                names = [f"fer_hpc.{a.name}" for a in node.names]
            found += [(name, id(node) not in later) for name in names]
        elif isinstance(node, ast.Import):
            found += [(a.name, id(node) not in later) for a in node.names]
    return found


def is_entry(path: Path) -> bool:
    """A command's module, `python -m fer_hpc.VERB`: three lines that call the command line."""
    return path.name == "__main__.py" or (
        path.parent == PACKAGE and path.name not in ("files.py", "api.py")
    )


@pytest.mark.parametrize("path", [p for p in FILES if not is_entry(p)], ids=relative)
def test_imports_point_down(path: Path) -> None:
    mine = LAYERS.index(relative(path).split("/")[0].removesuffix(".py"))
    for name, at_import in imports_of(path):
        if name.startswith("fer_hpc.") and name != "fer_hpc.__version__":
            assert name.split(".")[1] in LAYERS[: mine + 1], f"{relative(path)} imports {name}"
        if at_import and LAYERS[mine] in NO_TORCH:
            assert name.split(".")[0] != "torch", f"{relative(path)} loads torch"


@pytest.mark.parametrize("path", [p for p in FILES if is_entry(p)], ids=relative)
def test_entry_modules_only_call_the_command_line(path: Path) -> None:
    if path.name == "__init__.py":
        return
    tree = ast.parse(path.read_text())
    assert [name for name, _ in imports_of(path)] == ["fer_hpc.cli.main"]
    assert len(tree.body) == 3, "a docstring, an import, a guarded call"


def test_nothing_imports_an_entry_module() -> None:
    entries = {
        f"fer_hpc.{relative(p).removesuffix('.py').replace('/', '.')}" for p in FILES if is_entry(p)
    }
    for path in FILES:
        assert not {name for name, _ in imports_of(path)} & entries, relative(path)


@pytest.mark.parametrize("library", USERS)
def test_a_heavy_library_has_one_place(library: str) -> None:
    users = {
        relative(p) for p in FILES if any(n.split(".")[0] == library for n, _ in imports_of(p))
    }
    assert users == USERS[library]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_functions_and_lines_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES
    assert max(map(len, text.splitlines()), default=0) <= MAX_WIDTH
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and (relative(path), node.name) not in LOOPS:
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix()
)
def test_files_of_tests_stay_short(path: Path) -> None:
    assert path.read_text().count("\n") <= MAX_LINES, "split it by topic, helpers to tests/helpers"


def test_little_is_formatted_by_hand() -> None:
    assert sum(path.read_text().count("fmt: skip") for path in FILES) < MAX_SKIPS
