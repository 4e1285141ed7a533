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

from fer_hpc import checkpoint, metrics, rundir
from fer_hpc.config import EvaluateConfig, UserError
from fer_hpc.data.loader import EVAL_CHUNK, Images, eval_chunks
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.distributed import World, gather_in_turn, process_group
from fer_hpc.models import MODELS

ALONE = World()
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
    """Mixed precision for `bf16` and `fp16`, nothing for `fp32` and `fp64`."""
    return torch.autocast(device.type, _DTYPES[precision]) if precision in _DTYPES else contextlib.nullcontext()


def network(science: dict[str, Any], classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network of a configuration's science fields, with two more outputs where it has a valence/arousal head."""
    height, _, channels = image_shape
    return MODELS[science["model"]](classes + (2 if science.get("va_weight") else 0), channels, height)


def predict(model: nn.Module, images: Images, precision: str, world: World = ALONE) -> NDArray[np.float32]:
    """Logits [n, classes] of every image of a split exactly once, in row order, on every rank.

    Ranks take chunks of a fixed size in turn, so the arithmetic, and with it every bit, is the same for any number of
    ranks (with the same threads each).
    """
    model.eval()
    n = len(images.split)
    chunks = -(-n // EVAL_CHUNK)
    logits: torch.Tensor | None = None  # [chunks of a rank, EVAL_CHUNK, classes]
    counted = torch.zeros(-(-chunks // world.size), EVAL_CHUNK, 1)
    with torch.inference_mode(), autocast(precision, images.device):
        for k, (batch, real) in enumerate(eval_chunks(images, world.rank, world.size)):
            answer = model(batch.images.double() if precision == "fp64" else batch.images).float().cpu()
            if logits is None:
                logits = torch.zeros(len(counted), *answer.shape)
            logits[k] = answer
            counted[k, :real] += 1
    if logits is None:  # more ranks than chunks
        logits = torch.zeros(len(counted), EVAL_CHUNK, model(images.gather(np.zeros(1, np.int64)).images).shape[1])
    everything = gather_in_turn(torch.cat([logits, counted], 2), world).flatten(0, 1)
    assert everything[:n, -1].eq(1).all() and everything[:, -1].sum() == n, "not every image was scored exactly once"
    return everything[:n, :-1].contiguous().numpy()


def evaluate(config: EvaluateConfig, world: World = ALONE) -> dict[str, Any]:
    """Score the run's best weights; rank 0 writes eval-SPLIT.json, predictions-SPLIT.npz and confusion-SPLIT.png into the
    run."""
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
    device = pick_device(config.device, world.local_rank)
    model = network(science, len(manifest.classes), manifest.image_shape)
    model.load_state_dict(best["model"])
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with process_group(world):
        logits = predict(model, Images(split, device), science["precision"], world)
    labels = split.columns["labels"]
    result = {
        **about,
        "epoch": best["epoch"],
        "finished": weights.name == "best.pt",
        **metrics.summary(logits, labels, manifest.classes),
    }

    if world.rank:
        return result
    columns = {name: split.columns[name] for name in ("labels", "source_id", "group", "image_hash")}
    rundir.write_bytes(
        config.run / f"predictions-{config.split}.npz", _npz(logits=logits, classes=np.array(manifest.classes), **columns)
    )
    from fer_hpc import plots  # matplotlib, which training does not need

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
