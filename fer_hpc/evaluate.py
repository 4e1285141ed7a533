"""Score a run on a split: python -m fer_hpc.evaluate RUN --split test."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # the arguments are checked before torch is loaded
    from fer_hpc.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fer_hpc import checkpoint, metrics, plots, rundir
from fer_hpc.config import EvaluateConfig, UserError
from fer_hpc.data.loader import Images, eval_chunks
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.models import MODELS

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `--device` names; auto is CUDA where there is any."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu, or ask the scheduler for a GPU")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank}, but this node shows {torch.cuda.device_count()} GPUs; start one task per GPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for `bf16` and `fp16`, nothing for `fp32`."""
    return torch.autocast(device.type, _DTYPES[precision]) if precision != "fp32" else contextlib.nullcontext()


def predict(model: nn.Module, images: Images, precision: str) -> NDArray[np.float32]:
    """Logits [n, classes] of every image of a split exactly once, in row order, in chunks of fixed size."""
    model.eval()
    parts, counted = [], 0
    with torch.inference_mode(), autocast(precision, images.device):
        for batch, n in eval_chunks(images):
            parts.append(model(batch.images)[:n].float().cpu())
            counted += n
    assert counted == len(images.split), f"scored {counted} of {len(images.split)} images"
    return torch.cat(parts).numpy()


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score the run's best weights; writes eval-SPLIT.json, predictions-SPLIT.npz and confusion-SPLIT.png into the run."""
    stored = rundir.config(config.run)
    weights = _weights(config.run)
    manifest = read_manifest(config.data or rundir.data_path(config.run))
    trained_on = (list(stored["data"]["classes"]), list(stored["data"]["image_shape"]))
    if (list(manifest.classes), list(manifest.image_shape)) != trained_on:
        raise UserError(
            f"--data {manifest.folder} holds {list(manifest.image_shape)} faces of {', '.join(manifest.classes)}; "
            f"{config.run} was trained on {trained_on[1]} faces of {', '.join(trained_on[0])}"
        )
    split = open_split(manifest, config.split)
    about = {"split": config.split, "data": manifest.fingerprint, "weights": rundir.sha256(weights)}
    saved = checkpoint.load(weights)
    best = saved.get("best") or saved  # an unfinished run's checkpoint holds the best weights within
    if "model" not in best or "epoch" not in best:
        raise UserError(f"{config.run} has not finished an epoch yet; there is nothing to score")
    science = stored["science"]
    torch.set_num_threads(science["threads"])
    device = pick_device(config.device)
    height, _, channels = manifest.image_shape
    model = MODELS[science["model"]](len(manifest.classes), channels, height)
    model.load_state_dict(best["model"])
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    logits = predict(model, Images(split, device), science["precision"])
    labels = split.columns["labels"]
    result = {
        **about,
        "epoch": best["epoch"],
        "finished": weights.name == "best.pt",
        **metrics.summary(logits, labels, manifest.classes),
    }

    columns = {name: split.columns[name] for name in ("labels", "source_id", "group", "image_hash")}
    rundir.write_bytes(
        config.run / f"predictions-{config.split}.npz", _npz(logits=logits, classes=np.array(manifest.classes), **columns)
    )
    title = f"{config.run.name}, {config.split}: {result['accuracy']:.1%} of {len(labels):,}"
    plots.confusion(np.array(result["confusion"]), manifest.classes, title, config.run / f"confusion-{config.split}.png")
    rundir.write_json(config.run / f"eval-{config.split}.json", result)
    return result


def _weights(run: Path) -> Path:
    """The file with the run's best weights: best.pt, or the newest good checkpoint of a run that is not finished."""
    if rundir.status(run)["state"] == "finished" and (best := rundir.outcome(run, "best.pt")):
        return best
    for _, _, path in rundir.checkpoints(run):
        with contextlib.suppress(checkpoint.DamagedCheckpoint):
            checkpoint.load(path)
            return path
    raise UserError(f"{run} holds no weights yet; train it first")


def _npz(**arrays: NDArray[Any]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
