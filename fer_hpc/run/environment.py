"""What else decides the numbers: code, packages, host, devices, job."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import platform
import resource
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fer_hpc.parallel.world import World
from fer_hpc.run.version import code_version

# Dense bf16 (else fp16) peak in FLOP/s, from data sheets; the first name found in the device's.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "V100": 125e12,
    "RTX 4090": 165e12,
    "T4": 65e12,
}


def training_flops(model: nn.Module, image: torch.Tensor) -> float:
    """Floating-point operations of training on one image [1, C, H, W].

    The forward pass, and twice that for the backward pass.
    """
    from torch.utils import flop_counter

    # Newer torch wraps this method to keep its compiler out, which imports the compiler: 3 s.
    mode: Any = getattr(flop_counter, "_FlopCounterMode", flop_counter.FlopCounterMode)
    mode.__torch_dispatch__ = inspect.unwrap(mode.__torch_dispatch__)
    model.eval()
    with flop_counter.FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(image)
    return 3.0 * counter.get_total_flops()


def resource_use(device: torch.device, flops_per_s: float | None = None) -> dict[str, float]:
    """Peak memory in GB; of a known rate also TFLOP/s and its share of the GPU's peak (MFU)."""
    on_gpu = device.type == "cuda"
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    use = {"memory_gb": torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else peak_kb / 1e6}
    if flops_per_s is not None:
        use["tflop_per_s"] = flops_per_s / 1e12
        name = torch.cuda.get_device_name(device) if on_gpu else ""
        if peak := next((peak for key, peak in PEAK_FLOPS.items() if key in name), None):
            use["mfu"] = flops_per_s / peak
    return use


def rank_location(world: World, device: torch.device) -> dict[str, Any]:
    """Where a rank works: host, its number there, device, and the GPUs that the process may see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {
        "host": socket.gethostname(),
        "local_rank": world.local_rank,
        "device": str(device),
        "gpus_visible": visible,
    }


def describe_environment(world: World, device: torch.device) -> dict[str, Any]:
    """What else decides the numbers: code, packages, host, devices, job."""
    packages = ("torch", "torchvision", "numpy", "h5py")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "host": socket.gethostname(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "world_size": world.size,
        "job": {"id": world.job.id, "restarts": world.job.restarts} if world.job else None,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "code": code_version(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
