"""Which GPU a rank takes, and ranks that would share one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fer_hpc.config import UserError
from fer_hpc.parallel import device
from fer_hpc.parallel.collectives import process_group
from fer_hpc.parallel.device import arithmetic, card_of, pick_device, refuse_shared_cards
from fer_hpc.parallel.world import World
from tests.helpers import processes
from tests.helpers.runs import SECONDS


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The GPUs that this process sees; the test fills the list."""
    seen: list[SimpleNamespace] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(seen))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: seen[d.index])
    return seen


def test_a_rank_takes_the_gpu_of_its_local_rank(gpus: list[SimpleNamespace]) -> None:
    gpus += [SimpleNamespace(uuid="a"), SimpleNamespace(uuid="b")]
    assert pick_device("auto", 1) == torch.device("cuda", 1)
    assert card_of(torch.device("cuda", 1)) == (socket.gethostname(), "b")
    with pytest.raises(UserError, match="local rank 2, but this node shows 2 GPUs"):
        pick_device("auto", 2)


def test_a_rank_that_sees_one_gpu_takes_that(gpus: list[SimpleNamespace]) -> None:
    """As with `srun --gpus-per-task=1`, where the local rank is 0, 1, 2, ..."""
    gpus.append(SimpleNamespace(uuid="a"))
    assert [pick_device("cuda", rank).index for rank in (0, 1, 5)] == [0, 0, 0]


def test_a_gpu_without_a_uuid_is_known_by_its_place(gpus: list[SimpleNamespace]) -> None:
    place = {"pci_domain_id": 0, "pci_device_id": 0}
    gpus += [SimpleNamespace(pci_bus_id=bus, **place) for bus in (1, 2)]
    first, second = (card_of(torch.device("cuda", index)) for index in (0, 1))
    assert first[1]
    assert first != second


def test_ranks_with_the_same_gpu_are_refused() -> None:
    refuse_shared_cards([("n1", "a"), ("n1", "b"), ("n2", "c"), ("n2", "d")])
    refuse_shared_cards([("n1", ""), ("n1", "")])  # ranks on the CPU
    refuse_shared_cards([("n1", "[0, 1, 0]"), ("n2", "[0, 1, 0]")])  # places on two hosts
    with pytest.raises(UserError) as refusal:
        refuse_shared_cards([("n1", "a"), ("n2", "c"), ("n2", "c"), ("n2", "d")])
    assert str(refusal.value) == (
        "ranks 1 and 2 have the same GPU c of n2; "
        "start one task per GPU, or give --backend gloo to share one on purpose"
    )


def _connect(rank: int, port: int, folder: Path, backend: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device.card_of = lambda _: ("n1", "a")
    try:
        with process_group(World(rank, 2), torch.device("cpu"), backend):
            pass
        (folder / str(rank)).write_text("connected")
    except UserError as error:
        (folder / str(rank)).write_text(str(error))


@pytest.mark.parametrize(
    ("backend", "outcome"), [("auto", "ranks 0 and 1 have the same GPU a of n1"), ("gloo", "conn")]
)
def test_all_ranks_compare_their_gpus_when_they_connect(
    tmp_path: Path, backend: str, outcome: str
) -> None:
    port = processes.free_port()
    ranks = [
        processes.FORKS.Process(target=_connect, args=(rank, port, tmp_path, backend))
        for rank in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(SECONDS)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    for name in "01":
        assert (tmp_path / name).read_text().startswith(outcome)


def test_a_network_rounds_as_in_its_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 convolutions are TF32 on a GPU by default; a user's settings are put back."""
    cudnn, gpu = torch.backends.cudnn, torch.device("cuda")
    for setting in ("allow_tf32", "benchmark"):  # the first is torch's default
        monkeypatch.setattr(cudnn, setting, True)
    for precision, tf32 in (("fp32", False), ("bf16", False), ("tf32", True)):
        with arithmetic(precision, gpu):
            assert cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is tf32
            assert cudnn.deterministic
            assert not cudnn.benchmark
        assert cudnn.allow_tf32
        assert cudnn.benchmark
        assert not cudnn.deterministic
        assert torch.get_float32_matmul_precision() == "highest"
