from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

from fer_hpc.config import (
    PRESETS,
    GanConfig,
    TrainConfig,
    UserError,
    commands,
    fields_of,
    flag_arguments,
    merge_for_resume,
    preset,
    science_hash,
)
from fer_hpc.files import write_json
from fer_hpc.run.folder import read_run_config

HERE: dict[str, Any] = {"data": Path("data"), "run": Path("run")}


def test_every_field_is_science_or_runtime() -> None:
    assert {f.metadata["kind"] for f in dataclasses.fields(TrainConfig)} == {"science", "runtime"}


def test_hash_ignores_where_and_how_a_run_happens() -> None:
    one = preset("cnn_improved", **HERE)
    other = preset(
        "cnn_improved",
        data=Path("moved"),
        run=Path("elsewhere"),
        device="cpu",
        checkpoint_every_s=5.0,
    )
    assert science_hash(one, "f") == science_hash(other, "f")


def test_hash_follows_science_and_data() -> None:
    config = preset("cnn_improved", **HERE)
    others = [
        dataclasses.replace(config, seed=1),
        dataclasses.replace(config, lr=0.02),
        preset("cnn_baseline", **HERE),
    ]
    assert (
        len(
            {
                science_hash(config, "f"),
                science_hash(config, "g"),
                *(science_hash(c, "f") for c in others),
            }
        )
        == 5
    )


def test_hashes_of_older_runs_stay(tmp_path: Path) -> None:
    """Pinned: a change here orphans every run folder and sweep that exists."""
    assert {name: science_hash(preset(name, **HERE, bn_images=0), "f") for name in PRESETS} == {
        "cnn_baseline": "cb2f521ef486",
        "cnn_improved": "ea4b3d7a0f10",
        "resnet_baseline": "9f34527f6075",
        "resnet_improved": "22db17449668",
        "vgg": "3a93d18bdcfd",
        "fer2013": "3a865a5fe9fb",
    }
    assert science_hash(GanConfig(**HERE), "f") == "f83a05f70a17"
    assert science_hash(GanConfig(mode="paper", **HERE), "f") == "23a1023c2e45"


def test_a_gan_of_the_old_mode_name_continues(tmp_path: Path) -> None:
    config = GanConfig(**HERE)
    stored = {**fields_of(config, "science"), "mode": "mended"}
    assert merge_for_resume(config, stored) == config
    with pytest.raises(UserError, match="--mode improved"):
        merge_for_resume(GanConfig(mode="paper", **HERE), stored)
    write_json(
        tmp_path / "config.json", {"science": stored, "data": {"path": "d", "fingerprint": "1"}}
    )
    assert read_run_config(tmp_path)["science"]["mode"] == "improved"
    assert GanConfig(mode="mended", **HERE).mode == "improved"  # type: ignore[arg-type]


def test_continuing_takes_what_auto_became() -> None:
    stored = fields_of(preset("cnn_improved", precision="bf16", threads=3, **HERE), "science")
    config = merge_for_resume(preset("cnn_improved", **HERE), stored)
    assert (config.precision, config.threads) == ("bf16", 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.02), ("seed", 1), ("flip", True), ("epochs", 50), ("precision", "fp32")],
)
def test_a_differing_science_field_is_refused_by_name(field: str, value: object) -> None:
    stored = fields_of(preset("cnn_improved", precision="bf16", **HERE), "science")
    with pytest.raises(UserError, match="--" + field):
        merge_for_resume(preset("cnn_improved", **{**HERE, field: value}), stored)


@pytest.mark.parametrize(
    "value",
    ["2", None, 0, 10**400, float("nan"), [2]],
    ids=["text", "null", "zero", "huge", "nan", "list"],
)
def test_a_stored_value_of_another_type_is_a_damaged_file(value: object) -> None:
    stored = fields_of(preset("cnn_improved", **HERE), "science") | {"epochs": value}
    with pytest.raises(UserError, match=r"config\.json is damaged: --epochs"):
        merge_for_resume(preset("cnn_improved", **HERE), stored)


def test_more_epochs_are_welcome() -> None:
    stored = fields_of(preset("cnn_improved", **HERE), "science")
    assert merge_for_resume(preset("cnn_improved", epochs=200, **HERE), stored).epochs == 200


def test_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'cnn_improved'"):
        preset("cnn_improve", **HERE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", float("nan")),
        ("momentum", 1.5),
        ("seed", -1),
        ("threads", 5000),
        ("lr", "0.1"),
        ("epochs", 1.5),
        ("optimizer", "adam"),
        ("flip", "yes"),
        ("plugin", "one.py"),
        ("data", None),
    ],
)
def test_impossible_values_name_their_flag(field: str, value: object) -> None:
    with pytest.raises(UserError, match="--" + field.replace("_", "-")):
        preset("cnn_improved", **{**HERE, field: value})


CONFIGS = [TrainConfig, GanConfig, *(v for v in vars(commands).values() if is_dataclass(v))]


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda c: c.__name__)
def test_every_field_has_one_line_of_help_and_a_default_in_its_range(config_class: Any) -> None:
    for field in dataclasses.fields(config_class):
        text = field.metadata["help"]
        assert 2 < len(text) <= 100
        assert "\n" not in text
        assert text[-1] != "."
        default, low = field.default, field.metadata.get("low")
        if low is not None and isinstance(default, int | float):
            assert low <= default <= field.metadata.get("high", default)


def test_numbers_and_paths_of_python_callers_become_those_of_the_command_line() -> None:
    config = preset("cnn_improved", data="data", run="run", lr=1, plugin=["p.py"])
    assert (config.data, config.run, config.plugin) == (Path("data"), Path("run"), (Path("p.py"),))
    assert isinstance(config.lr, float)


def test_a_value_as_arguments_is_what_one_types() -> None:
    assert flag_arguments("lr_min", 1e-5) == ["--lr-min", "1e-05"]
    assert flag_arguments("flip", False) == ["--no-flip"]
    assert flag_arguments("plugin", (Path("a"), Path("b"))) == ["--plugin", "a", "b"]
    assert flag_arguments("run", Path("-x")) == ["--run=-x"]
    assert flag_arguments("stage", None) == []


def test_the_page_of_flags_is_up_to_date() -> None:
    script = Path(__file__).parents[1] / "docs" / "make_flags.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_presets_hold_the_reports_recipes() -> None:
    improved, baseline = preset("cnn_improved", **HERE), preset("cnn_baseline", **HERE)
    assert (improved.batch_size, improved.lr, improved.epochs) == (256, 0.01, 100)
    assert (baseline.batch_size, baseline.lr, baseline.epochs) == (64, 0.001, 100)
    for config in (improved, baseline):
        assert (config.momentum, config.plateau_on, config.plateau_factor) == (
            0.9,
            "train_loss",
            0.5,
        )
        assert (config.plateau_patience, config.lr_min) == (10, 1e-5)
    resnet, vgg = preset("resnet_improved", **HERE), preset("vgg", **HERE)
    assert (resnet.optimizer, resnet.weight_decay, resnet.batch_size, resnet.lr) == (
        "adamw",
        1e-5,
        64,
        1e-3,
    )
    assert (resnet.epochs, resnet.label_smoothing, resnet.flip, resnet.early_stop) == (
        50,
        0.1,
        True,
        7,
    )
    assert (resnet.plateau_on, resnet.plateau_patience, resnet.lr_min, resnet.best_on) == (
        "val_loss",
        5,
        1e-6,
        "val_loss",
    )
    assert (vgg.batch_size, vgg.lr, vgg.weight_decay, vgg.plateau_on) == (
        64,
        0.01,
        1e-4,
        "val_accuracy",
    )
    assert (vgg.plateau_factor, vgg.plateau_patience) == (0.75, 5)
    assert set(PRESETS) == {
        "cnn_baseline",
        "cnn_improved",
        "resnet_baseline",
        "resnet_improved",
        "vgg",
        "fer2013",
    }


def test_a_cosine_run_cannot_grow() -> None:
    stored = fields_of(preset("fer2013", **HERE), "science")
    with pytest.raises(UserError, match="--epochs"):
        merge_for_resume(preset("fer2013", epochs=200, **HERE), stored)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"balanced": True, "class_weights": 5.0}, "give one of them"),
        ({"balanced": True, "shard_window": 4}, "--shard-window"),
        ({"warmup_epochs": 1.0}, "--schedule cosine"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        preset("cnn_improved", **HERE, **fields)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_is_not_finite_is_refused_by_its_flag(value: float) -> None:
    with pytest.raises(UserError, match=r"--lr .*finite"):
        preset("cnn_improved", data="d", run="r", lr=value)
