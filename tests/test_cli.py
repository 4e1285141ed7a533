"""What every command promises: help and mistakes answer at once, and say what to type."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fer_hpc.cli import jobs
from fer_hpc.cli.main import VERBS, job, main, run_command
from fer_hpc.cli.parse import configure
from fer_hpc.config import EXIT_CRASHED, EXIT_USER_ERROR, PRESETS, TrainConfig, UserError
from fer_hpc.config.commands import SOURCE_HELP
from fer_hpc.data import sources
from fer_hpc.run.signals import stop_signals

ROOT = Path(__file__).parents[1]
HEAVY = ("ray", "torch", "h5py", "cv2", "matplotlib", "sklearn", "pandas", "numpy")
NO_SOURCE = ["preprocess", "--source", "none", "--out", "o"]


def modules_after(code: str) -> set[str]:
    program = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\n"
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split("MODULES")[1].split())


# One interpreter that has loaded what every command loads, and a fork of it for each call.
FORKED = """
import json, os, runpy, sys, tempfile
import fer_hpc.cli.main, fer_hpc.cli.parse, tyro
def printed(module, *args):
    with tempfile.TemporaryFile() as out:
        if not os.fork():
            os.dup2(out.fileno(), 1)
            sys.argv = [module, *args]
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit:
                print("MODULES", *sys.modules, flush=True)
            finally:
                os._exit(0)
        os.wait()
        out.seek(0)
        return out.read().decode()
print(json.dumps([printed(*call) for call in json.loads(sys.argv[1])]))
"""
LIGHT = [
    ["--help"],
    *([verb, "--help"] for verb in VERBS),
    ["train", "nonsense"],
    ["train", "--x"],
    NO_SOURCE,
]
MODULES = {
    verb: "fer_hpc.data.synthetic" if verb == "synthetic" else f"fer_hpc.{verb}"
    for verb in VERBS
    if verb not in ("init", "status", "logs", "cancel")
}
Printed = dict[tuple[str, ...], tuple[str, set[str]]]


@pytest.fixture(scope="module")
def printed() -> Printed:
    """What `python -m MODULE ARGUMENTS` prints, and the modules that it has loaded at its end."""
    calls = [("fer_hpc", *arguments) for arguments in LIGHT]
    calls += [(module, "--help") for module in MODULES.values()]
    done = subprocess.run(
        [sys.executable, "-c", FORKED, json.dumps(calls)],
        capture_output=True,
        text=True,
        check=True,
    )
    parts = [text.split("MODULES") for text in json.loads(done.stdout)]
    return {
        call: (text, set(loaded.split())) for call, (text, loaded) in zip(calls, parts, strict=True)
    }


def output(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Exit code, and what was printed, of `fer-hpc ARGS` in this process."""
    try:
        code = main(list(args))
    except SystemExit as ended:
        code = int(ended.code or 0)
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.mark.parametrize("arguments", LIGHT)
def test_help_and_mistakes_load_nothing_heavy(printed: Printed, arguments: list[str]) -> None:
    assert not printed["fer_hpc", *arguments][1] & set(HEAVY)


@pytest.mark.parametrize("script", ["train", "pipeline", "sweep"])
def test_help_of_jobs_loads_nothing_heavy(script: str) -> None:
    code = f"from fer_hpc.cli.main import job; job({script!r}, {script!r}, ['--help'])"
    assert not modules_after(code) & set(HEAVY)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import fer_hpc") & set(HEAVY)


@pytest.mark.parametrize("verb", MODULES)
def test_module_and_console_script_are_the_same_command(printed: Printed, verb: str) -> None:
    text = printed[MODULES[verb], "--help"][0]
    assert text == printed["fer_hpc", verb, "--help"][0]
    assert "--" in text


# ---- help ----------------------------------------------------------------------------------------


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = output(capsys, "--help")
    assert code == 0
    assert all(verb in text for verb in VERBS)


def test_preset_decides_the_defaults_that_help_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert "(default: 64)" in output(capsys, "train", "cnn_baseline", "--help")[1]
    assert "(default: 256)" in output(capsys, "train", "cnn_improved", "--help")[1]


def test_help_of_train_shows_what_each_preset_changes(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(output(capsys, "train", "--help")[1].replace("│", " ").split())
    assert all(preset in text for preset in PRESETS)
    assert "--optimizer adamw --weight-decay 1e-05" in text
    assert "optimiser options" in text
    assert "augmentation options" in text


def test_help_of_sheet_describes_the_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "sheet", "--help")[1]
    assert "sheet.png" in text
    assert "Train a" not in text


def test_help_of_transfer_and_preprocess(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "transfer", "--help")[1]
    assert "must be given" not in text
    assert text.count("(required)") == 4
    assert "affectnet_csv" in output(capsys, "preprocess", "--help")[1]


def test_help_of_a_job_shows_resources_and_the_flags_of_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert job("train", "train", ["--help"]) == 0
    text = capsys.readouterr().out
    assert "--gpus-per-node" in text
    assert "--plateau-factor" in text


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "verb", "args", "word"),
    [
        ("train", "train", ["vgg", "--time", "60"], "--time-min?"),
        ("train", "train", ["vgg", "--gpus", "2"], "--gpus-per-node"),
        ("gan", "train_gan", ["--time", "60"], "--time-min?"),
        ("evaluate", "evaluate", ["r", "--walltime", "60"], "--time-min?"),
        ("preprocess", "preprocess", ["--memory", "4G"], "--mem?"),
        ("sweep", "sweep", ["--learning-rate", "1"], "--lrs?"),
        ("pipeline", "pipeline", ["vgg", "--learning-rate", "1"], "--lr?"),
        ("pipeline", "pipeline", ["vgg", "--seed", "1"], "--seeds"),
        ("pipeline", "pipeline", ["--source", "x", "--out", "o"], "which preset"),
        ("pipeline", "pipeline", ["vgg", "--source", "fer213", "--out", "o"], "'fer2013'"),
    ],
)
def test_a_mistake_in_a_job_is_one_message(
    capsys: pytest.CaptureFixture[str], script: str, verb: str, args: list[str], word: str
) -> None:
    assert job(script, verb, args) == EXIT_USER_ERROR
    text = capsys.readouterr().err
    assert word in text
    assert f"jobs/{script}.py" in text


def test_a_full_disk_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> int:
        raise OSError(28, "No space left on device")

    def named() -> int:
        raise OSError(13, "Permission denied", "some/file")

    def hdf5() -> int:
        raise OSError("Can't write data (errno = 28, error message = 'No space left on device')")

    def network() -> int:
        raise ConnectionResetError(104, "Connection reset by peer")

    assert run_command("preprocess", full) == EXIT_USER_ERROR
    assert "full" in capsys.readouterr().err
    assert run_command("preprocess", named) == EXIT_USER_ERROR
    assert "Permission denied: some/file" in capsys.readouterr().err
    assert run_command("preprocess", hdf5) == EXIT_USER_ERROR
    assert "full" in capsys.readouterr().err
    assert run_command("tune", network) == EXIT_CRASHED  # a scheduler starts it again
    assert "Connection reset" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["status", "--help"])
def test_a_reader_that_closes_early_is_no_error(tmp_path: Path, verb: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    args = [sys.executable, "-m", "fer_hpc", verb, *([str(tmp_path)] * (verb == "status"))]
    done = subprocess.run(args, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode != 0


def test_what_trains_goes_on_where_its_output_was_closed() -> None:
    """Its exit code stands, also where the last line is the first that nobody reads."""
    code = (
        "import os, sys\n"
        "from fer_hpc.cli.main import TRAINING, run_command\n"
        "from fer_hpc.run.output import is_output_gone\n"
        "def talk():\n"
        "    for _ in range(1000):\n"
        "        print('said')\n"
        "        print('said', file=sys.stderr)\n"
        "    return 75\n"
        "codes = {run_command(name, talk) for name in TRAINING}\n"
        "sys.exit(75 if codes == {75} and is_output_gone() else 1)\n"
    )
    for closed in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        done = subprocess.run(
            [sys.executable, "-c", code], **(streams | {closed: writer}), text=True, check=False
        )
        os.close(writer)
        assert done.returncode == 75
        assert (done.stdout or "") + (done.stderr or "") == 4000 * "said\n"


def test_a_terminal_that_hangs_up_stops_a_training_but_not_under_nohup() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, wanted in ((signal.SIG_DFL, [signal.SIGHUP]), (signal.SIG_IGN, [])):
            signal.signal(signal.SIGHUP, handler)
            with stop_signals() as received:
                signal.raise_signal(signal.SIGHUP)
            assert received == wanted
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_help_names_the_sources_that_there_are() -> None:
    named = SOURCE_HELP.partition(":")[2].partition("...")[0].replace(" ", "").strip(",").split(",")
    assert set(named) - {"auto"} <= set(sources.SOURCES)
    assert len(named) > 3


def test_a_source_without_its_input_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="needs --input"):
        configure("preprocess", ["--source", "fer2013", "--out", "o"])


def test_internal_verbs_are_those_that_launch_asks() -> None:
    launch = (ROOT / "slurm" / "launch.sh").read_text()
    assert "fer_decide begin" in launch
    assert "fer_decide end" in launch
    assert callable(jobs.begin)
    assert callable(jobs.end)


def test_a_checkout_that_is_not_installed_runs(tmp_path: Path) -> None:
    (tmp_path / "fer_hpc").symlink_to(ROOT / "fer_hpc")
    done = subprocess.run(
        [sys.executable, "-m", "fer_hpc", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("fer-hpc ")


def test_python_callers_may_pass_strings() -> None:
    config = TrainConfig(data="d", run="r", plugin=["p.py"])  # type: ignore[arg-type]
    assert (config.data, config.plugin) == (Path("d"), (Path("p.py"),))
