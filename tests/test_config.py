from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fer_hpc.config import (
    PRESETS,
    TrainConfig,
    UserError,
    fields_of,
    merge_for_resume,
    preset,
    science_hash,
)

HERE = {"data": Path("data"), "run": Path("run")}


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


def test_hash_survives_a_new_field_at_its_default() -> None:
    """Pinned: a change here orphans every run folder and sweep that exists."""
    assert science_hash(preset("cnn_improved", **HERE), "f") == "ea4b3d7a0f10"


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


def test_more_epochs_are_welcome() -> None:
    stored = fields_of(preset("cnn_improved", **HERE), "science")
    assert merge_for_resume(preset("cnn_improved", epochs=200, **HERE), stored).epochs == 200


def test_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'cnn_improved'"):
        preset("cnn_improve", **HERE)


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", 0), ("batch_size", 0), ("lr", float("nan")), ("momentum", 1.5)]
)
def test_impossible_values_name_their_flag(field: str, value: object) -> None:
    with pytest.raises(UserError, match="--" + field.replace("_", "-")):
        preset("cnn_improved", **{**HERE, field: value})


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
