"""Mistakes in the arguments of a command: one line, exit code 2, and what is meant."""

from __future__ import annotations

import errno

import pytest

from fer_hpc.cli import flags
from fer_hpc.cli.main import main, system_error
from fer_hpc.cli.parse import configure
from fer_hpc.config import EXIT_USER_ERROR, UserError
from fer_hpc.config.errors import apart

TRAIN = ["--data", "d", "--run", "r"]


def output(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Exit code, and what was printed, of `fer-hpc ARGS` in this process."""
    code = main(list(args))
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["train", "cnn_improved", "--learning-rate", "0.1"], "--lr?"),
        (["train", "cnn_improved", "--lr-rate=0.1"], "--lr?"),
        (["train", "vgg", "--epoch", "3"], "--epochs?"),
        (["train", "vgg", "--batch", "3"], "--batch-size?"),
        (["train", "vgg", "--label-smoothin", "3"], "--label-smoothing?"),
        (["train", "vgg", "--no-flp"], "--no-flip"),
        (["tune", "--learning-rate", "0.1"], "--lrs?"),
        (["tune", "--lr", "0.1"], "--lrs"),
        (["tune", "--gpus", "1"], "--gpus-per-worker"),
        (["train_gan", "--learning-rate", "0.1"], "--lr?"),
        (["preprocess", "--num-workers", "2"], "--workers?"),
        (["doctor", "--jsn"], "--json?"),
        (["sheet", "vgg", "--dat", "d"], "--data?"),
        (["synthetic", "--output", "o"], "--out?"),
        (["evaluate", "--dataset", "o"], "--data?"),
        (["transfer", "--output", "o"], "--out"),
        (["generate", "--dataset", "o"], "--data?"),
        (["report", "--output", "o"], "--out?"),
        (["status", "--jason"], "--json?"),
        (["logs", "--folow"], "--follow?"),
        (["cancel", "--frce"], "unknown flag --frce"),
        (["trian"], "'train'"),
        (["train", "cnn_improve"], "'cnn_improved'"),
        (["tune", "cnn_improve"], "'cnn_improved'"),
        (["train", "vgg", "fer2013"], "vgg already"),
        (["train"], "which preset"),
        (["train", "vgg", "--data", "d"], "--run"),
        (["evaluate"], "RUN"),
        (["evaluate", "a", "b"], "'b'"),
        (["transfer", "a.png", "b.png"], "--run, --out"),
        (["preprocess", "--source", "fer213", "--input", "x", "--out", "o"], "'fer2013'"),
        (["train", "vgg", "--optimizer", "adam"], "adamw"),
        (["train", "vgg", "--lr", "x", "--data", "d", "--run", "r"], "--lr"),
        (["train", "vgg", "--lr", "-1", "--data", "d", "--run", "r"], "at least 0"),
        (["train", "vgg", "--data", "d", "--run", "a\nb"], "control character"),
    ],
)
def test_a_mistake_is_one_message_that_names_what_is_meant(
    capsys: pytest.CaptureFixture[str], args: list[str], word: str
) -> None:
    code, text = output(capsys, *args)
    assert code == EXIT_USER_ERROR
    assert word in text
    assert text.startswith("fer-hpc")
    assert text.count("\n") == 1, "no traceback, no box"


ON_OFF = "takes no value; --flip alone is yes, --no-flip is no"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["evaluate", "r", "--split", "tets"],
            "--split tets: wanted one of train, val, test; did you mean test?",
        ),
        (["evaluate", "r", "--split=x y"], "--split 'x y': wanted one of train, val, test"),
        (
            ["evaluate", "r", "--split", "validation"],
            "--split validation: wanted one of train, val, test; did you mean val?",
        ),
        (["preprocess", "--channels", "2"], "--channels 2: wanted one of 1, 3"),
        (["train", "vgg", "--epochs", "many"], "--epochs many: wanted a whole number"),
        (["train", "vgg", "--epochs=1.5"], "--epochs 1.5: wanted a whole number"),
        (["tune", "--lrs", "0.1,a"], "--lrs a: wanted a number"),
        (["doctor", "x", "--suspects"], "--suspects: its value is missing; wanted a path"),
        (
            ["evaluate", "r", "--split", "--robust"],
            "--split: its value is missing; wanted one of train, val, test",
        ),
        (["train", "--lr", "-x"], "unknown flag -x (fer-hpc train --help lists all)"),
        (["tune", "--grid"], "--grid: its value is missing; wanted a text"),
        (["tune", "--lrs", "vgg"], "--lrs: wanted one value or more"),
        (["train", "vgg", "--flip=3"], f"--flip 3: {ON_OFF}"),
        (["train", "vgg", "--no-flip", "true"], f"--no-flip true: {ON_OFF}"),
        (
            ["train", "vgg", "--data=d", "--run=r", f"--epochs={10**25}"],
            f"--epochs {10**25}: wanted 1 to 9223372036854775807",
        ),
        (
            ["train", "vgg", "--data=d", "--run=r", f"--seed={10**25}"],
            f"--seed {10**25}: wanted 0 to 9223372036854775807",
        ),
        (["doctor"], "missing: FOLDER (folder of shards); see fer-hpc doctor --help"),
        (
            ["evaluate", "--splt", "val"],
            "unknown flag --splt; did you mean --split? (fer-hpc evaluate --help lists all)",
        ),
        (["train", "vgg", "--help=1"], "--help=1: --help takes no value"),
        (["verify", "a", "b", "c"], "unexpected argument 'c'; wanted only A, B"),
        (["synthetic", "a"], "unexpected argument 'a'; wanted flags only"),
    ],
)
def test_what_is_wrong_with_an_argument_is_one_line(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert output(capsys, *args) == (2, f"fer-hpc {args[0]}: error: {message}\n")


def test_what_only_the_parser_refuses_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "check_values_follow", lambda *_: None)
    with pytest.raises(UserError) as error:
        configure("doctor", ["x", "--suspects"])
    assert "'--suspects'" in str(error.value)
    assert not set("─│╭╮╰╯\n") & set(str(error.value))


def test_a_long_name_of_a_file_is_cut() -> None:
    text = system_error(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000))
    assert text.startswith("File name too long: xxx") and text.endswith("xxx (5,000 characters)")
    assert len(text) < 500


def test_a_negative_number_is_a_value() -> None:
    for args in (["--lr", "-1"], ["--lr=-1"], ["--lr", "-1e-3"]):
        with pytest.raises(UserError, match="wanted at least 0"):
            configure("train", ["vgg", *TRAIN, *args])


@pytest.mark.parametrize(
    ("value", "text"), [(0.96, "0.96"), (0.99996, "0.99996"), (0.1234, "0.12"), (1.004, "1.004")]
)
def test_a_number_is_not_rounded_to_the_bound_that_it_misses(value: float, text: str) -> None:
    assert apart(value, 1.0) == text
