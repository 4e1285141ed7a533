"""Fuzz targets: checkpoints, files of weights, and exported networks."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from fer_hpc.deploy.model import METADATA, open_model
from fer_hpc.drill.verify import flat_parts
from fer_hpc.files import write_json
from fer_hpc.parallel.world import World
from fer_hpc.run import checkpoint
from fer_hpc.run.attempts import claim_attempt
from fer_hpc.run.restore import restore
from fer_hpc.run.state import TrainState
from fer_hpc.training.weights import init_from
from tests.fuzz.guard import Fuzz, target
from tests.fuzz.inputs import json_text, mutated

SCIENCE = {"seed": 0, "lr": 0.1, "epochs": 3}
CONTEXT = {"science": SCIENCE, "data": {"fingerprint": "ab"}}


def fresh_state() -> TrainState:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    parts = {"model": model, "optimizer": optimizer}
    return TrainState.fresh(parts, 2, torch.device("cpu"))


def signed(body: bytes) -> bytes:
    """A checkpoint's file with a right checksum, whatever stands in it."""
    digest = hashlib.sha256(body + b"\0\0").hexdigest().encode()
    return body + len(digest).to_bytes(2, "little") + digest


def a_run(box: Path) -> Path:
    """A run of whose two checkpoints the newer one is still to be written."""
    run = box / "run"
    attempt = claim_attempt(run)
    write_json(
        run / "config.json", {"science": SCIENCE, "data": {"path": "d", "fingerprint": "ab"}}
    )
    attempt.begin({}, None)
    state = fresh_state()
    state.images_seen = 10
    checkpoint.save(attempt.path / "000000000010.pt", state.state_dict(World()) | CONTEXT)
    attempt.end("interrupted")
    return attempt.path / "000000000020.pt"


def saved_state(**changes: Any) -> dict[str, Any]:
    state = fresh_state()
    state.parts["model"](torch.ones(1, 3)).sum().backward()  # type: ignore[operator]
    state.parts["optimizer"].step()  # type: ignore[attr-defined]
    state.images_seen = 20
    return state.state_dict(World()) | CONTEXT | changes


def to_bytes(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@target
def checkpoint_bytes(box: Path) -> Fuzz:
    """Bytes with a right checksum: a start falls back to the checkpoint before, and says so."""
    path = a_run(box)
    checkpoint.save(path, saved_state())
    good = path.read_bytes()

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        found = restore(fresh_state(), box / "run", World())
        assert found is not None

    body = good[: -64 - 2]
    inputs = st.one_of(mutated(good), mutated(body).map(signed), st.binary(max_size=40).map(signed))
    return Fuzz(good, inputs, parse, (path.name,))


ODD = [None, 1, -1, "x", [], {}, 1e300, float("nan"), True, [[[]]], "../victim", 1 << 62, b""]
ODD += [torch.zeros(0), torch.zeros(9, 9), torch.tensor(float("nan")), torch.zeros(2, 3).int()]


def changed_tree(value: Any, path: list[int], new: Any) -> Any:
    """A value nested in dicts and lists, with another in place of the part that `path` leads to."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = changed_tree(value[key], path[1:], new)
    return copy


@target
def checkpoint_content(box: Path) -> Fuzz:
    path = a_run(box)
    good = saved_state()

    def parse(given: tuple[list[int], Any]) -> None:
        where, new = given
        content = changed_tree(good, where, new) if where else good
        if not isinstance(content, dict):
            content = {"model": content}
        checkpoint.save(path, content)
        assert restore(fresh_state(), box / "run", World()) is not None
        list(flat_parts(checkpoint.load(path)).items())

    where = st.lists(st.integers(0, 20), min_size=1, max_size=4)
    return Fuzz(([], None), st.tuples(where, st.sampled_from(ODD)), parse, (path.name,))


# ---- initial weights -----------------------------------------------------------------------------


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))


def of_weights(box: Path, name: str, good: bytes, inputs: st.SearchStrategy[bytes]) -> Fuzz:
    path, model = box / name, network()

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        init_from(model, path, ["a", "b"])

    return Fuzz(good, inputs, parse, (name,))


@target
def state_dict_file(box: Path) -> Fuzz:
    content = {"state_dict": dict(network().state_dict())}
    good = to_bytes(content)
    odd = st.builds(
        lambda where, new: to_bytes(changed_tree(content, where, new)),
        st.lists(st.integers(0, 9), max_size=2),
        st.sampled_from(ODD),
    )
    return of_weights(box, "w.pth", good, st.one_of(mutated(good), odd))


@target
def weights_of_a_run(box: Path) -> Fuzz:
    path = box / "s.pt"
    content = {"model": dict(network().state_dict()), "data": {"classes": ["a", "b"]}}

    def saved(value: Any) -> bytes:
        checkpoint.save(path, value if isinstance(value, dict) else {"model": value})
        return path.read_bytes()

    good = saved(content)
    odd = st.builds(
        lambda where, new: saved(changed_tree(content, where, new)),
        st.lists(st.integers(0, 9), max_size=3),
        st.sampled_from(ODD),
    )
    return of_weights(box, "w.pt", good, st.one_of(mutated(good[:-66]).map(signed), odd))


@target
def safetensors_file(box: Path) -> Fuzz:
    from safetensors.torch import save

    good = save(dict(network().state_dict()), {METADATA: "{}"})
    size = int.from_bytes(good[:8], "little")

    def with_head(text: str) -> bytes:
        head = text.encode("utf-8", "surrogatepass")
        return len(head).to_bytes(8, "little") + head + good[8 + size :]

    heads = json_text(json.loads(good[8 : 8 + size])).map(with_head)
    return of_weights(box, "w.safetensors", good, st.one_of(mutated(good), heads))


ARCHITECTURE = {
    "class_name": "Functional",
    "config": {
        "layers": [
            {"config": {"name": "input"}, "inbound_nodes": []},
            {"config": {"name": "conv"}, "inbound_nodes": [[["input", 0, 0, {}]]]},
            {"config": {"name": "norm"}, "inbound_nodes": [[["conv", 0, 0, {}]]]},
            {"config": {"name": "dense"}, "inbound_nodes": [[["norm", 0, 0, {}]]]},
        ]
    },
}
KERAS = {
    "conv": {"kernel:0": (3, 3, 1, 2), "bias:0": (2,)},
    "norm": dict.fromkeys(("gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"), (2,)),
    "dense": {"kernel:0": (72, 2), "bias:0": (2,)},
}


def keras_file(architecture: str) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as f:
        f.attrs["model_config"] = architecture.encode("utf-8", "replace")[:60_000]
        for layer, arrays in KERAS.items():
            for name, shape in arrays.items():
                f[f"model_weights/{layer}/{layer}/{name}"] = np.zeros(shape, np.float32)
    return buffer.getvalue()


@target
def keras_model_file(box: Path) -> Fuzz:
    good = keras_file(json.dumps(ARCHITECTURE))
    inputs = st.one_of(mutated(good), json_text(ARCHITECTURE).map(keras_file))
    return of_weights(box, "w.h5", good, inputs)


# ---- exported networks ---------------------------------------------------------------------------

ABOUT = {
    "run": "r",
    "network": "n",
    "classes": ["a", "b"],
    "image_shape": [8, 8, 1],
    "faces": {},
    "weights": "0" * 64,
    "epoch": 1,
    "temperature": 1.5,
    "input": "uint8",
}


def onnx_file(about: str) -> bytes:
    import onnx
    from onnx import TensorProto as Kind
    from onnx import helper as make

    def value(name: str, kind: int, *shape: Any) -> Any:
        return make.make_tensor_value_info(name, kind, shape)

    nodes = [
        make.make_node("Cast", ["faces"], ["f"], to=Kind.FLOAT),
        make.make_node("Flatten", ["f"], ["v"]),
        make.make_node("MatMul", ["v", "w"], ["logits"]),
        make.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = make.make_graph(
        nodes,
        "g",
        [value("faces", Kind.UINT8, "n", 8, 8, 1)],
        [value("logits", Kind.FLOAT, "n", 2), value("probabilities", Kind.FLOAT, "n", 2)],
        [make.make_tensor("w", Kind.FLOAT, (64, 2), [0.01] * 128)],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, about
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def of_onnx(box: Path, good: bytes, inputs: st.SearchStrategy[bytes]) -> Fuzz:
    path = box / "model.onnx"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        model = open_model(path, "cpu")
        height, width, channels = model.about.image_shape
        if height * width * channels < 1 << 20:
            model(np.zeros((2, height, width, channels), np.uint8))

    return Fuzz(good, inputs, parse, (path.name,))


@target
def onnx_bytes(box: Path) -> Fuzz:
    good = onnx_file(json.dumps(ABOUT))
    return of_onnx(box, good, mutated(good))


@target
def onnx_metadata(box: Path) -> Fuzz:
    changed = json_text(ABOUT).map(lambda text: text.encode("utf-8", "replace").decode())
    return of_onnx(box, onnx_file(json.dumps(ABOUT)), changed.map(onnx_file))
