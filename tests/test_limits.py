"""What ends a process from outside Python still leaves a message."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fer_hpc.cli.main import run_command
from fer_hpc.parallel.world import free_port
from tests.conftest import TRAIN_SPEED, command

CUT = """
import os, sys
from pathlib import Path
from fer_hpc.cli.main import run_command
from fer_hpc.data.shards import open_split, read_manifest

def read_pixels():
    split = open_split(read_manifest(Path(sys.argv[1])), "train")
    os.truncate(Path(sys.argv[1]) / "train-00000.h5", 4096)
    return int(split.images[0].sum())

run_command("train", read_pixels)
"""


def test_a_shard_that_is_cut_while_it_is_mapped_says_where(shards: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shards, tmp_path / "data")
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(data)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -7
    assert "Bus error" in done.stderr
    assert "in read_pixels" in done.stderr


def test_too_few_addresses_name_the_limit(shards: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))

    arguments = ("cnn_baseline", "--data", shards, "--run", tmp_path / "run", *TRAIN_SPEED)
    done = subprocess.run(
        command("train", *arguments), capture_output=True, text=True, preexec_fn=limit, check=False
    )
    assert done.returncode == 2
    assert "ulimit -v allows 1.5 GB of addresses" in done.stderr
    assert "Traceback" not in done.stderr


ROOT = Path(__file__).parent.parent


def fer_process(*args: object, **more: Any) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "fer_hpc", *map(str, args)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **more.pop("env", {})}
    return subprocess.run(
        call, capture_output=True, text=True, check=False, timeout=120, env=variables, **more
    )


def test_names_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = fer_process("doctor", tmp_path / "Gesichter-für-später", env=ascii_only)
    assert done.returncode == 2
    assert "Gesichter-für-später" in done.stderr
    assert "not UTF-8" not in done.stderr


def test_a_working_directory_that_is_gone_is_one_message(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    code = f"import os; os.rmdir({str(folder)!r}); "
    code += "import sys; from fer_hpc.cli.main import main; sys.exit(main(['status', '/tmp']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "fer-hpc status: error: the working directory was deleted: cd to another one\n",
    )


def test_help_fits_a_narrow_terminal() -> None:
    assert fer_process("sheet", "--help", env={"COLUMNS": "5"}).returncode == 0


def test_tune_without_docstrings_is_one_message(shards: Path, tmp_path: Path) -> None:
    args = ("tune", "resnet_baseline", "--data", shards, "--out", tmp_path / "out")
    done = fer_process(*args, env={"PYTHONOPTIMIZE": "2"})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "-OO" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_waits_for_others_can_be_stopped(
    number: int, shards: Path, tmp_path: Path
) -> None:
    port = free_port()
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & ignores it
        "from fer_hpc.parallel import collectives\n"
        "collectives.SLOW_MEETING_S = 0.1\n"
        "from fer_hpc.cli.main import main\n"
        "sys.argv = ['fer-hpc', *sys.argv[1:]]\n"
        "sys.exit(main())\n"
    )
    args = ("train", "resnet_baseline", "--data", shards, "--run", tmp_path / "run")
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": ROOT}
    variables = {name: str(value) for name, value in (ranks | meeting).items()}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, **variables},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    assert "rank 0 of 2 waits for the others: " in process.stderr.readline()
    process.send_signal(number)
    assert process.wait(60) == 75
    assert "stopped; the same command continues" in process.stderr.read()
    process.stderr.close()
    assert not (tmp_path / "run").exists()


def test_a_thread_that_cannot_start_names_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    def start_thread() -> int:
        raise RuntimeError("can't start new thread")

    assert run_command("predict", start_thread) == 2
    assert "ulimit -u" in capsys.readouterr().err
