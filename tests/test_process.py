"""What a training leaves in its process: a sweep's worker trains one network after the other."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fer_hpc.config import preset
from fer_hpc.parallel import graph
from fer_hpc.parallel.device import configure_torch
from fer_hpc.parallel.world import World
from fer_hpc.run.saver import to_host
from fer_hpc.training import loop
from fer_hpc.training.learner import Learner

CPU = torch.device("cpu")


def test_a_training_leaves_nothing_in_memory(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: list[weakref.ref[Learner]] = []
    make = loop.make_learner

    def noted(*args: Any) -> Learner:
        learner = make(*args)
        networks.append(weakref.ref(learner))
        return learner

    monkeypatch.setattr(loop, "make_learner", noted)
    for run in ("first", "second"):
        fields = {"data": shards, "run": tmp_path / run, "epochs": 1, "tensorboard": False}
        loop.train(preset("resnet_baseline", **fields), World())
    assert [network() for network in networks] == [None, None], "without a collection"
    assert gc.get_freeze_count() == 0


def test_a_checkpoint_is_brought_to_the_host_where_that_may_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mode in which torch forbids it is one of the process, also of the thread that saves."""
    mode = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    seen: list[str] = []
    ready: Any = SimpleNamespace(device=CPU, wait=lambda: seen.append(mode[-1]))
    saver = threading.Thread(target=to_host, args=({"weight": torch.ones(2)}, ready))
    with graph._without_waiting():
        saver.start()
        saver.join(0.2)
        assert mode[-1] == "error"
        assert not seen
    saver.join(60)
    assert seen == ["default"]


def test_a_part_of_a_study_knows_how_many_share_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert World.detect().processes_per_gpu == 1
    monkeypatch.setenv("FER_PROCESSES_PER_GPU", "4")
    assert World.detect().processes_per_gpu == 4


@pytest.fixture
def as_before() -> Any:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("as_before")
def test_what_is_compiled_is_deterministic_from_the_first_time() -> None:
    """The compiler has a switch of its own, which it follows only after its first function."""
    from torch._inductor import config

    configure_torch(1, True, CPU, compiles=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert getattr(config, "deterministic", True), "torch 2.8 has no such switch"
    configure_torch(1, False, CPU, compiles=True)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.usefixtures("as_before")
def test_many_trainings_of_a_process_are_compiled() -> None:
    """torch compiles one function so many times, and then calls it directly."""
    compiled: list[int] = []

    def count(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        compiled.append(len(inputs))
        return module.forward

    def double(values: torch.Tensor) -> torch.Tensor:
        return values * 2

    for size in range(2, 14):  # a size each, as of a sweep's batches
        configure_torch(1, False, CPU, compiles=True)
        torch.compile(double, backend=count, dynamic=False)(torch.ones(size))
    assert len(compiled) == 12
