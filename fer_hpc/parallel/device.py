"""The device and the precision that a process computes with."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from fer_hpc.config import UserError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `--device` names; auto is CUDA where there is any.

    On CUDA it becomes the process's current device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no CUDA device here; use --device cpu, "
            "or ask the scheduler for a GPU"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank}, but this node shows {torch.cuda.device_count()} GPUs; "
            "start one task per GPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for `bf16` and `fp16`, nothing for `fp32` and `fp64`."""
    return (
        # a GPU repeats its casts in a CUDA graph; on a CPU a weight is cast once
        torch.autocast(device.type, _DTYPES[precision], cache_enabled=device.type == "cpu")
        if precision in _DTYPES
        else contextlib.nullcontext()
    )


def configure_torch(threads: int, deterministic: bool, device: torch.device) -> None:
    """Set what torch keeps per process: CPU threads, determinism, and exact fp32 (no TF32)."""
    torch.set_num_threads(threads)
    if deterministic:  # read when CUDA's libraries start
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not deterministic  # every batch has the same shape


def supports_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16, rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
        return " avx512_bf16" in flags or " amx_bf16" in flags
    return False
