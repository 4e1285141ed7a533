"""A step is a function of tensors on the device: what a GPU needs, shown without one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fer_hpc.config import GanConfig, TrainConfig
from fer_hpc.data.shards import read_manifest
from fer_hpc.data.step_inputs import BLOCK_STEPS, Block, blocks_ahead
from fer_hpc.data.store import ImageStore, _joined
from fer_hpc.gan.loop import pair_block, pair_loader
from fer_hpc.gan.networks import make_networks
from fer_hpc.gan.step import SUMS as GAN_SUMS
from fer_hpc.gan.step import step as gan_step
from fer_hpc.models.gpu_convolutions import use_quick_convolutions
from fer_hpc.models.registry import is_built_in
from fer_hpc.parallel.world import World
from fer_hpc.run.state import TrainState
from fer_hpc.training import learner as learner_module
from fer_hpc.training.batches import step_block, train_loader
from fer_hpc.training.casts import CastWeights, casts_together
from fer_hpc.training.losses import LossNormalizer
from fer_hpc.training.optim import set_mode
from fer_hpc.training.setup import make_learner
from fer_hpc.training.step import step
from fer_hpc.training.sums import SUMS

CPU = torch.device("cpu")
EVERYTHING: dict[str, Any] = {
    "flip": True, "rotate": 10.0, "shift": 0.1, "scale": 0.1, "erase": 0.5, "brightness": 0.2,
    "contrast": 0.2, "gamma": 0.3, "mixup": 0.4, "label_smoothing": 0.1, "class_weights": 5.0,
    "clip": 1.0, "ema": 0.99, "accumulate": 2, "schedule": "cosine", "warmup_epochs": 0.5,
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "flip": {"flip": True},
    "everything": EVERYTHING,
    "valence and arousal": {"va_weight": 0.5, "mixup": 0.2, "erase": 0.5},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.01, "schedule": "cosine"},
}
# Operations whose result the host must know, or that make a tensor of the host's data.
FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh")


class DeviceOnly(TorchDispatchMode):
    """Raises where a step would make the host wait, or bring data from it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in FORBIDDEN:
            raise AssertionError(f"{name} in a step")
        if name == "index" and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        ):
            raise AssertionError("an index that is a mask")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[ImageStore], None]:
    """Lets a store take the path of a GPU: one tensor of all pixels, no numpy."""

    def change(images: ImageStore) -> None:
        images.parts = [_joined(images.parts, CPU)]
        images.on_cpu = False

    return change


def config_of(shards: Path, **fields: Any) -> TrainConfig:
    usual = {"model": "resnet_baseline", "batch_size": 12, "precision": "fp32", "epochs": 3}
    return TrainConfig(data=shards, run=Path("unused"), **{**usual, **fields})


def steps_of(config: TrainConfig, change: Callable[[ImageStore], None] | None) -> dict[str, Any]:
    """The state after 3 steps, the last of which notes the gradient's norm."""
    manifest = read_manifest(config.data)
    learner = make_learner(config, manifest, CPU, World())
    loader = train_loader(config, manifest, CPU)
    state = TrainState.fresh(learner.parts(), SUMS, CPU)
    set_mode(learner.net, False)
    block = step_block(config, loader, 0, 3)
    if change:
        change(loader.images)
    for k in range(3):
        inputs = block.inputs(k)
        torch.manual_seed(k)
        if change and k:  # in the first step the optimiser makes its state
            with DeviceOnly():
                step(learner, state, loader.make(inputs), inputs, False, k == 2)
                state.chain.add(inputs, state.sums)
        else:
            step(learner, state, loader.make(inputs), inputs, k == 0, k == 2)
            state.chain.add(inputs, state.sums)
    found = copy.deepcopy(state.state_dict(World()))
    return found | {"norm": learner.grad_norm.clone(), "bad": state.bad_step.clone()}


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_needs_nothing_of_the_host_and_gives_the_same_bytes(
    recipe: str, shards: Path, as_on_gpu: Callable[[ImageStore], None]
) -> None:
    config = config_of(shards, **RECIPES[recipe])
    usual, alone = steps_of(config, None), steps_of(config, as_on_gpu)
    pairs = list(zip(tensors(usual), tensors(alone), strict=True))
    assert len(pairs) > 50
    assert all(torch.equal(a, b) for a, b in pairs)


def test_class_weights_are_not_rounded_to_the_networks_precision(shards: Path) -> None:
    config = config_of(shards, precision="bf16", class_weights=5.0, mixup=0.4)
    manifest = read_manifest(shards)
    learner, loader = (
        make_learner(config, manifest, CPU, World()),
        train_loader(config, manifest, CPU),
    )
    set_mode(learner.net, False)
    batch, norm = loader.batch(0), LossNormalizer(7.0)
    with torch.no_grad():
        total = learner.forward(batch, norm)[0]
        with torch.autocast("cpu", torch.bfloat16):
            outputs = learner.model(batch.images).float()
        assert torch.equal(total, learner.objective(outputs, batch, norm)[0])


CASTS = {
    "plain": ("cnn_baseline", "bf16", {}),
    "smoothed": ("cnn_improved", "bf16", {"label_smoothing": 0.1, "ema": 0.99}),
    "everything": ("resnet_baseline", "bf16", EVERYTHING),
    "fp16": ("resnet_baseline", "fp16", {}),
}


@pytest.mark.parametrize("recipe", CASTS)
def test_weights_that_are_cast_together_are_autocasts(
    recipe: str,
    shards: Path,
    as_on_gpu: Callable[[ImageStore], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, precision, fields = CASTS[recipe]
    config = config_of(shards, **{**fields, "model": model, "precision": precision})
    usual = steps_of(config, None)
    asked = []
    monkeypatch.setattr(learner_module, "casts_together", lambda *about: not asked.append(about))
    together = steps_of(config, as_on_gpu)
    assert asked
    pairs = list(zip(tensors(usual), tensors(together), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)


def test_only_weights_that_autocast_would_cast_are_cast() -> None:
    class Reading(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * self.weight.norm()

    frozen = nn.Linear(4, 4).requires_grad_(False)
    conv = use_quick_convolutions(nn.Conv2d(1, 4, 1))
    network = nn.Sequential(nn.BatchNorm2d(1), conv, nn.Linear(4, 4), frozen, Reading(4, 4))
    copies = CastWeights(network, torch.bfloat16)()
    assert [*copies] == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert {copy.dtype for copy in copies.values()} == {torch.bfloat16}
    copies["2.bias"].sum().backward()  # the others have no gradient
    assert torch.equal(network[2].bias.grad, torch.ones(4))
    assert network[1].weight.grad is None


def test_casts_are_for_one_process_on_a_gpu_with_a_built_in_network() -> None:
    gpu = torch.device("cuda")
    assert casts_together("bf16", gpu, 1)
    assert not casts_together("bf16", CPU, 1)
    assert not casts_together("bf16", gpu, 2)
    assert not casts_together("fp32", gpu, 1)
    assert is_built_in("resnet_baseline")
    assert not is_built_in("timm:resnet18")


class Counting(TorchDispatchMode):
    """Counts the operations that compute, each of which is a kernel on a GPU."""

    FREE = (
        *("view", "_unsafe_view", "slice", "select", "permute", "t", "transpose", "detach"),
        *("expand", "unsqueeze", "squeeze", "alias", "unbind", "empty", "empty_like"),
        *("as_strided", "_record_function_enter_new", "_record_function_exit"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += func.overloadpacket.__name__ not in self.FREE
        return func(*args, **(kwargs or {}))


def test_a_step_launches_fewer_kernels_than_the_plainest_loop(
    shards: Path,
    as_on_gpu: Callable[[ImageStore], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each costs 3 us of a graph's step, which may be 1,500 us long.

    What the suite adds to a step (sums, chain, checks) is less than it saves in casts and counters.
    """
    monkeypatch.setattr(learner_module, "casts_together", lambda *_: True)
    config = config_of(shards, precision="bf16")
    manifest = read_manifest(shards)
    learner = make_learner(config, manifest, CPU, World())
    loader = train_loader(config, manifest, CPU)
    as_on_gpu(loader.images)
    state = TrainState.fresh(learner.parts(), SUMS, CPU)
    set_mode(learner.net, False)
    block = step_block(config, loader, 0, 2)
    for k in range(2):
        inputs = block.inputs(k)
        with Counting() as ours:
            step(learner, state, loader.make(inputs), inputs, k == 0)
            state.chain.add(inputs, state.sums)
    batch = loader.make(inputs)
    learner.optimizer.zero_grad()
    with Counting() as bare:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = learner.model(batch.images)
        nn.functional.cross_entropy(outputs.float(), batch.labels).backward()
        learner.optimizer.step()
    assert ours.count < bare.count - 40, (ours.count, bare.count)


def test_a_mode_that_forbids_waiting_sees_it() -> None:
    with DeviceOnly(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(3).sum().item()
    mask = torch.ones(3) > 0
    with DeviceOnly(), pytest.raises(AssertionError, match="mask"):
        torch.ones(3)[mask]
    with DeviceOnly(), pytest.raises(AssertionError, match="lift_fresh"):
        torch.tensor([1.0])


@pytest.mark.parametrize("mode", ["improved", "paper"])
def test_a_step_of_the_gan_needs_nothing_of_the_host(
    mode: Any, shards: Path, as_on_gpu: Callable[[ImageStore], None]
) -> None:
    config = GanConfig(shards, Path("unused"), mode=mode, precision="fp32", batch_size=6)
    manifest = read_manifest(shards)
    found = []
    for alone in (False, True):
        networks = make_networks(config, manifest, CPU)
        networks.train()
        loader = pair_loader(config, manifest, "train", CPU)
        state = TrainState.fresh(networks.parts(), len(GAN_SUMS), CPU)
        block = pair_block(config, loader, 12, 0, 4)
        if alone:
            as_on_gpu(loader.images)
        for k in range(4):
            inputs = block.inputs(k)
            torch.manual_seed(k)
            adversarial = mode == "paper" or k > 1  # two steps of each kind
            variant = adversarial, k > 1
            if alone and k in (1, 3):
                with DeviceOnly():
                    gan_step(networks, state, loader.make(inputs), inputs, World(), *variant)
            else:
                gan_step(networks, state, loader.make(inputs), inputs, World(), *variant)
        found.append(copy.deepcopy(state.state_dict(World())))
    assert all(torch.equal(a, b) for a, b in zip(*map(tensors, found), strict=True))


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_read_parts_of_one_block(size: int, shards: Path) -> None:
    config = config_of(shards, **{**EVERYTHING, "accumulate": 1})
    manifest = read_manifest(shards)
    whole = step_block(config, train_loader(config, manifest, CPU), 600, 5).arrays
    parts = [
        step_block(config, train_loader(config, manifest, CPU, World(rank, size)), 600, 5).arrays
        for rank in range(size)
    ]
    for name in ("rows", "theta", "gamma", "slope", "offset", "box", "kept"):
        assert (whole[name] == np.concatenate([part[name] for part in parts], 1)).all(), name
    step_of, place = np.arange(5)[:, None], whole["partner"]
    for name in ("rows", "theta", "box"):
        others = np.concatenate([part[f"other_{name}"] for part in parts], 1)
        assert (whole[name][step_of, place] == others).all(), name
    for name in ("weight_sum", "affect_count", "images_seen", "lr"):
        assert all((whole[name] == part[name]).all() for part in parts), name


def test_a_block_gives_its_arrays_back() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "flip": rng.random((3, 5)) < 0.5,
        "rows": rng.integers(0, 99, (3, 5)),
        "box": rng.integers(0, 9, (3, 5, 4)).astype(np.int32),
        "kept": rng.random((3, 5), np.float32),
        "lr": rng.random(3),
    }
    block = Block(arrays)
    for k in range(3):
        copied = block.views(block.packed[k].clone())
        for name, tensor in block.inputs(k).items():
            assert torch.equal(tensor, torch.from_numpy(np.asarray(arrays[name][k])))
            assert torch.equal(tensor, copied[name])


def test_blocks_follow_each_other_to_the_end() -> None:
    asked = []

    def make(images_seen: int, steps: int) -> Block:
        asked.append((images_seen, steps))
        return Block({"images_seen": images_seen + 10 * np.arange(steps)})

    total = 10 * (2 * BLOCK_STEPS + 3)
    with blocks_ahead(make, CPU, 0, 10, total) as blocks:
        for images_seen in range(0, total, 10):
            block, k = blocks.at(images_seen)
            assert int(block.inputs(k)["images_seen"]) == images_seen
    first = 10 * BLOCK_STEPS
    assert asked[:3] == [(0, BLOCK_STEPS), (first, BLOCK_STEPS), (2 * first, 3)]
