"""Presets: named recipes for training."""

from __future__ import annotations

import dataclasses
from typing import Any

from fer_hpc.config.errors import unknown_name_error
from fer_hpc.config.train import TrainConfig

# The smallest and the largest face that a built-in network takes, pixels. Dense layers over what
# is left of the face grow with its area: networks that have them take up to 128.
SIDES = {
    "cnn_baseline": (32, 128),
    "cnn_improved": (32, 128),
    "resnet_baseline": (32, 1024),
    "resnet_improved": (64, 1024),
    "resnet_small": (32, 1024),
    "vgg": (32, 128),
}

# Fields that a preset does not name keep their defaults. Source: the tables of the report, except
# fer2013, which is our own recipe. docs/benchmarks.md has the measured accuracies.
_BASELINE = dict(
    batch_size=64,
    lr=0.001,
    epochs=100,
    plateau_on="train_loss",
    plateau_factor=0.5,
    plateau_patience=10,
    bn_images=1024,  # their batch norm's momentum, Keras' .01, lags for hundreds of steps
)

PRESETS: dict[str, dict[str, Any]] = {
    "cnn_baseline": dict(_BASELINE, model="cnn_baseline"),
    "cnn_improved": dict(_BASELINE, model="cnn_improved", batch_size=256, lr=0.01),
    "resnet_baseline": dict(_BASELINE, model="resnet_baseline"),
    "resnet_improved": dict(
        model="resnet_improved",
        optimizer="adamw",
        weight_decay=1e-5,
        batch_size=64,
        lr=1e-3,
        epochs=50,
        label_smoothing=0.1,
        flip=True,
        plateau_on="val_loss",
        plateau_factor=0.5,
        plateau_patience=5,
        lr_min=1e-6,
        best_on="val_loss",
        early_stop=7,
    ),
    "vgg": dict(
        model="vgg",
        batch_size=64,
        lr=0.01,
        epochs=100,
        weight_decay=1e-4,
        plateau_on="val_accuracy",
        plateau_factor=0.75,
        plateau_patience=5,
    ),
    "fer2013": dict(
        model="resnet_small",
        batch_size=128,
        lr=0.1,
        epochs=25,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_epochs=2.0,
        lr_min=0.0,
        label_smoothing=0.1,
        ema=0.998,
        flip=True,
        rotate=10.0,
        shift=0.1,
        scale=0.15,
    ),
}


def preset(name: str, **fields: Any) -> TrainConfig:
    """The configuration of preset `name` with `fields` (data and run at least) set on top."""
    if name not in PRESETS:
        raise unknown_name_error("preset", name, list(PRESETS))
    return TrainConfig(**{**PRESETS[name], **fields})


def changed_fields(name: str, config: TrainConfig) -> dict[str, Any]:
    """The fields of `config` that differ from preset `name`."""
    usual = preset(name, data=config.data, run=config.run)
    return {
        f.name: value
        for f in dataclasses.fields(config)
        if (value := getattr(config, f.name)) != getattr(usual, f.name)
    }


def preset_changes(name: str) -> dict[str, Any]:
    """The fields that preset `name` sets to something else than their defaults, model first."""
    recipe, defaults = PRESETS[name], {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    changes = {key: value for key, value in recipe.items() if value != defaults[key]}
    return {"model": recipe["model"], **changes}
