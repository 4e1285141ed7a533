"""The device and the precision that a process computes with."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fer_hpc.config import UserError

LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `--device` names; auto is CUDA where there is any.

    On CUDA it becomes the process's current device. A process that sees one GPU takes that:
    `srun --gpus-per-task=1` hides the others, whatever the local rank.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no CUDA device here; use --device cpu, "
            "or ask the scheduler for a GPU"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    index = 0 if visible == 1 else local_rank
    if index >= visible:
        raise UserError(
            f"local rank {local_rank}, but this node shows {visible} GPUs; start one task per GPU"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def load_early(device: torch.device) -> None:
    """Load beside other work what the first step on a GPU would wait for.

    The libraries of convolutions and matrix products load when they are first used.
    """
    if device.type != "cuda":
        return

    def use_libraries() -> None:
        with contextlib.suppress(RuntimeError), torch.no_grad():
            square = torch.zeros(1, 8, 8, 8, dtype=torch.bfloat16, device=device)
            torch.nn.functional.conv2d(square, square)
            torch.mm(square[0, 0], square[0, 0])

    # read when the library of matrix products starts; without determinism it changes nothing
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threading.Thread(target=use_libraries, daemon=True).start()


def card_of(device: torch.device) -> tuple[str, str]:
    """(host, identity of the GPU there), the same for processes that share one; "" on a CPU."""
    if device.type != "cuda":
        return socket.gethostname(), ""
    card = torch.cuda.get_device_properties(device)
    # Without a UUID: the place on the host's bus.
    place = [getattr(card, f"pci_{part}_id", 0) for part in ("domain", "bus", "device")]
    return socket.gethostname(), str(getattr(card, "uuid", "") or place)


def refuse_shared_cards(cards: list[tuple[str, str]]) -> None:
    """UserError where two ranks have the same GPU; `cards` are the ranks' `card_of`, in order.

    NCCL refuses that too, but at the first exchange and in words of its own.
    """
    for host, card in dict.fromkeys(cards):
        ranks = [str(rank) for rank, each in enumerate(cards) if each == (host, card)]
        if card and len(ranks) > 1:
            raise UserError(
                f"ranks {' and '.join(ranks)} have the same GPU {card} of {host}; "
                "start one task per GPU, or give --backend gloo to share one on purpose"
            )


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for `bf16` and `fp16`, nothing for `fp32` and `fp64`."""
    return (
        # a GPU repeats its casts in a CUDA graph; on a CPU a weight is cast once
        torch.autocast(device.type, LOW_PRECISION[precision], cache_enabled=device.type == "cpu")
        if precision in LOW_PRECISION
        else contextlib.nullcontext()
    )


def configure_torch(
    threads: int,
    deterministic: bool,
    device: torch.device,
    precision: str = "fp32",
    compiles: bool = False,
) -> None:
    """Set what torch keeps per process: CPU threads, determinism, fp32 without or with TF32."""
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    if compiles:  # else not, as it imports the compiler: 3 s
        torch.use_deterministic_algorithms(deterministic)  # also those that the compiler chooses
        torch.compiler.reset()  # it gives up after some networks of one process
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not deterministic  # every batch has the same shape


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """In the block, torch rounds as in a deterministic training in `precision`.

    Without it fp32 convolutions are TF32 on a GPU. The settings before are put back: they may be
    those of a user's process.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    matmul = torch.get_float32_matmul_precision()
    before = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    try:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = precision == "tf32", False, True
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
        torch.set_float32_matmul_precision(matmul)


@contextlib.contextmanager
def inference(precision: str, device: torch.device) -> Iterator[None]:
    """For a network's outputs outside training: without gradients, rounded as in its training."""
    with torch.inference_mode(), arithmetic(precision, device), autocast(precision, device):
        yield


def one_hot(labels: torch.Tensor, classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Labels [b] as rows [b, classes] with a single 1; torch's own looks at the values first."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(dtype)


def supports_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16, rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
        return " avx512_bf16" in flags or " amx_bf16" in flags
    return False
