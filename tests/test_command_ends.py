"""How a command ends: a call of exit, SIGTERM, too many open files."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path

import pytest

from fer_hpc.cli.main import main, run_command
from tests.helpers.plugins import write


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
