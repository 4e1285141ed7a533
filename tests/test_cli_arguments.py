"""What the arguments of a command mean: presets, repeated flags, lists, old names."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer_hpc.cli.parse import configure, configure_job
from fer_hpc.config import UserError
from fer_hpc.config.jobs import JobConfig

TRAIN = ["--data", "d", "--run", "r"]


@pytest.mark.parametrize(
    "args",
    [
        ["vgg", *TRAIN, "--flip"],
        [*TRAIN, "vgg", "--flip"],
        [*TRAIN, "--flip", "vgg"],
        ["--data=d", "--no-tensorboard", "--tensorboard", "vgg", "--run=r", "--flip"],
    ],
)
def test_the_preset_may_stand_anywhere(args: list[str]) -> None:
    config = configure("train", args)
    assert (config.model, config.batch_size, config.flip) == ("vgg", 64, True)


def test_a_value_is_not_taken_for_the_preset() -> None:
    config = configure(
        "train", ["--data", "fer2013", "--model", "cnn_improved", "vgg", "--run", "vgg"]
    )
    assert (config.data, config.run) == (Path("fer2013"), Path("vgg"))
    assert (config.model, config.lr) == ("cnn_improved", 0.01)
    alone = configure("train", ["--model", "cnn_improved", *TRAIN])
    assert (alone.model, alone.lr) == ("cnn_improved", 0.001)  # the fields' own defaults


def test_the_last_of_repeated_flags_wins_behind_the_preset() -> None:
    assert configure("train", ["vgg", *TRAIN, "--lr", "1", "--lr", "2"]).lr == 2
    with pytest.raises(UserError, match="--lr is given before and after vgg"):
        configure("train", ["--lr", "1", "vgg", *TRAIN, "--lr", "2"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--lrs=0.1,0.2", "--seeds", "0,1", "2", "cnn_baseline"],
        ["--lrs", "0.1", "0.2", "cnn_baseline", "--seeds", "0,1,2"],
    ],
)
def test_several_values_may_stand_behind_spaces_or_commas(flags: list[str]) -> None:
    sweep, preset, base = configure("tune", ["--data", "d", "--out", "o", "--epochs", "3", *flags])
    assert (sweep.lrs, sweep.seeds) == ((0.1, 0.2), (0, 1, 2))
    assert (preset, base.model, base.epochs) == ("cnn_baseline", "cnn_baseline", 3)


def test_grid_and_plugin_may_be_repeated() -> None:
    flags = ["--grid", "a=1,2", "--grid", "b=x,y", "c=3", "vgg", "--plugin", "p.py", "q.py"]
    sweep, _, base = configure("tune", ["--data", "d", "--out", "o", *flags])
    assert sweep.grid == ("a=1,2", "b=x,y", "c=3")
    assert base.plugin == (Path("p.py"), Path("q.py"))


def test_old_flags_and_values_are_accepted() -> None:
    flags = ["--asha-keep", "4", "--asha-first=2"]
    sweep, _, _ = configure("tune", ["--data", "d", "--out", "o", *flags])
    assert (sweep.asha_reduction_factor, sweep.asha_first_rung) == (4, 2)
    for mode in (["--mode", "mended"], ["--mode=mended"]):
        assert configure("train_gan", [*TRAIN, *mode]).mode == "improved"


def test_a_jobs_command_is_what_was_given_without_the_resources() -> None:
    args = ["--nodes", "2", "--lr", "1e-3", "vgg", *TRAIN, "--no-tensorboard", "--mem=4G"]
    given, config = configure_job("train", args, (JobConfig,))
    again = given.arguments(JobConfig)
    assert again[0] == "vgg"
    assert "--nodes" not in again
    assert "--mem" not in again
    assert configure("train", again) == config
    assert given.build(JobConfig).nodes == 2


def test_arguments_of_positional_and_repeated_fields_come_back() -> None:
    args = ["a", "b c", "--out", "o"]
    given, config = configure_job("report", args)
    assert configure("report", given.arguments()) == config
    args = ["vgg", "--data", "d", "--out", "o", "--seeds", "1,2", "--grid", "a=1", "--grid", "b=2"]
    given, config = configure_job("tune", args)
    assert configure("tune", given.arguments()) == config
