"""A Keras model file as initial weights. The layout written here is that of Keras 2 and 3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from fer_hpc.config import CLASSES, UserError
from fer_hpc.models.registry import MODELS
from fer_hpc.run import checkpoint
from fer_hpc.training.weights import init_from

Layer = tuple[str, str, list[str], nn.Module | None]  # name, class, inputs, our layer


def build(name: str) -> nn.Sequential:
    model = MODELS[name].build(8, 1, 48)
    assert isinstance(model, nn.Sequential)
    return model


def resnet_layers(model: nn.Sequential) -> list[Layer]:
    """The small ResNet as a Keras graph, shortcuts before the second convolutions of blocks."""
    layers: list[Layer] = [
        ("input", "InputLayer", [], None),
        ("stem", "Conv2D", ["input"], model[0]),
    ]
    layers += [
        ("stem_bn", "BatchNormalization", ["stem"], model[1]),
        ("stem_relu", "ReLU", ["stem_bn"], None),
    ]
    x = "stem_relu"
    for i, block in enumerate(m for m in model if hasattr(m, "shortcut")):
        own, short = f"b{i}", x
        layers.append((f"{own}_conv1", "Conv2D", [x], block.conv1))
        if len(block.shortcut):
            layers.append((f"{own}_short", "Conv2D", [x], block.shortcut[0]))
            layers.append(
                (f"{own}_short_bn", "BatchNormalization", [f"{own}_short"], block.shortcut[1])
            )
            short = f"{own}_short_bn"
        layers += [
            (f"{own}_bn1", "BatchNormalization", [f"{own}_conv1"], block.bn1),
            (f"{own}_relu", "ReLU", [f"{own}_bn1"], None),
            (f"{own}_conv2", "Conv2D", [f"{own}_relu"], block.conv2),
            (f"{own}_bn2", "BatchNormalization", [f"{own}_conv2"], block.bn2),
            (f"{own}_add", "Add", [f"{own}_bn2", short], None),
        ]
        x = f"{own}_add"
    return [
        *layers,
        ("pool", "GlobalAveragePooling2D", [x], None),
        ("dense", "Dense", ["pool"], model[-1]),
    ]


def cnn_layers(model: nn.Sequential) -> list[Layer]:
    kinds = {
        nn.Conv2d: "Conv2D",
        nn.Linear: "Dense",
        nn.BatchNorm2d: "BatchNormalization",
        nn.BatchNorm1d: "BatchNormalization",
    }
    own = [m for m in model if type(m) in kinds]
    return [
        (f"layer{i}", kinds[type(m)], [f"layer{i - 1}"] if i else [], m) for i, m in enumerate(own)
    ]


def arrays_of(module: nn.Module, before: nn.Module | None) -> dict[str, np.ndarray]:
    values = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
    if isinstance(module, nn.Conv2d):
        return {"kernel": values["weight"].transpose(2, 3, 1, 0), "bias": values["bias"]}
    if isinstance(module, nn.Linear):
        kernel = values["weight"].T
        if isinstance(
            before, nn.BatchNorm2d
        ):  # after a flatten: rows come as (row, column, channel)
            channels, side = before.num_features, round((len(kernel) / before.num_features) ** 0.5)
            kernel = (
                kernel.reshape(channels, side, side, -1)
                .transpose(1, 2, 0, 3)
                .reshape(len(kernel), -1)
            )
        return {"kernel": kernel, "bias": values["bias"]}
    names = {
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }
    return {theirs: values[ours] for theirs, ours in names.items()}


def inbound(names: list[str], version: int) -> Any:
    if version == 2:
        return [[[name, 0, 0, {}] for name in names]]
    tensors = [
        {"class_name": "__keras_tensor__", "config": {"shape": [None], "keras_history": [n, 0, 0]}}
        for n in names
    ]
    return [{"args": [tensors], "kwargs": {}}]


def write_keras(path: Path, layers: list[Layer], sequential: bool, version: int) -> None:
    listed = [
        {"class_name": kind, "config": {"name": name}, "inbound_nodes": inbound(inputs, version)}
        for name, kind, inputs, _ in layers
    ]
    with h5py.File(path, "w") as f:
        kind = "Sequential" if sequential else "Functional"
        f.attrs["model_config"] = json.dumps({"class_name": kind, "config": {"layers": listed}})
        before: nn.Module | None = None
        for name, _, _, module in layers:
            group = f.create_group(f"model_weights/{name}")
            for key, value in arrays_of(module, before).items() if module else ():
                group[f"{name}/{key}:0" if version == 2 else f"model/{name}/{key}"] = value
            before = module or (None if name == "pool" else before)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["resnet_baseline", "cnn_baseline"])
def test_a_keras_file_gives_the_same_network(name: str, version: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = build(name)
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor))
    layers = resnet_layers(theirs) if name.startswith("resnet") else cnn_layers(theirs)
    write_keras(tmp_path / "model.h5", layers, name.startswith("cnn"), version)
    torch.manual_seed(1)
    ours = build(name)
    init_from(ours, tmp_path / "model.h5", CLASSES)
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def test_a_keras_file_of_another_network_is_refused(tmp_path: Path) -> None:
    write_keras(tmp_path / "model.h5", cnn_layers(build("cnn_baseline")), True, 2)
    with pytest.raises(UserError, match="another network"):
        init_from(build("resnet_baseline"), tmp_path / "model.h5", CLASSES)
    (tmp_path / "text.h5").write_text("not HDF5")
    with h5py.File(tmp_path / "list.h5", "w") as f:
        f.attrs["model_config"] = "[1]"
        f.create_group("model_weights")
    for name in ("text.h5", "list.h5"):
        with pytest.raises(UserError, match="not a Keras model file"):
            init_from(build("resnet_baseline"), tmp_path / name, CLASSES)


def test_a_last_layer_of_other_classes_is_not_taken_though_its_shape_fits(tmp_path: Path) -> None:
    theirs, classes = (
        MODELS["resnet_baseline"].build(7, 1, 48),
        [name for name in CLASSES if name != "Neutral"],
    )
    checkpoint.save(
        tmp_path / "best.pt", {"model": theirs.state_dict(), "data": {"classes": classes}}
    )
    for same, wanted in (
        (classes, True),
        ([name for name in CLASSES if name != "Contempt"], False),
    ):
        ours = MODELS["resnet_baseline"].build(7, 1, 48)
        note = init_from(ours, tmp_path / "best.pt", same)
        taken = {
            name: torch.equal(tensor, theirs.state_dict()[name])
            for name, tensor in ours.state_dict().items()
        }
        *body, weight, _ = taken.values()
        assert all(body)
        assert weight is wanted
        assert ("the last layer is new" in note) is not wanted


def test_stride_two_looks_where_keras_looks() -> None:
    """Keras pads an even picture at right and bottom only: the first output sees rows 0 to 2."""
    block = next(
        m
        for m in build("resnet_baseline").modules()
        if hasattr(m, "pad") and m.conv1.stride == (2, 2)
    )
    x = torch.zeros(1, 16, 48, 48, requires_grad=True)
    block.conv1(block.pad(x))[0, :, 0, 0].sum().backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 1)) > 0
    assert seen[:3, :3].all()
    assert seen.sum() == 9
