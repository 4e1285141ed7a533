"""Score a run on a split: python -m fer_hpc.evaluate RUN --split test."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

from fer_hpc.config import UserError
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.loader import EVAL_CHUNK, eval_chunks
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.data.store import ImageStore, affect_of
from fer_hpc.evaluation import metrics
from fer_hpc.files import read_json, sha256, write_bytes, write_json
from fer_hpc.models.registry import build_network
from fer_hpc.parallel.collectives import gather_round_robin, process_group
from fer_hpc.parallel.device import autocast, pick_device
from fer_hpc.parallel.world import World
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import (
    data_folder,
    list_checkpoints,
    outcome_file,
    read_run_config,
    read_status,
)

ALONE = World()


def predict(
    model: nn.Module, images: ImageStore, precision: str, world: World = ALONE, tta: str = "none"
) -> NDArray[np.float32]:
    """Outputs [n, classes (+ 2)] of every image of a split exactly once, in row order, on every rank; with `tta` the mean
    over its views.

    Ranks take chunks of a fixed size in turn, so the arithmetic, and with it every bit, is the same for any number of
    ranks (with the same threads each).
    """
    model.eval()
    n = len(images.split)
    chunks = -(-n // EVAL_CHUNK)

    def outputs_of(pixels: torch.Tensor) -> torch.Tensor:
        seen = [
            model(view).float().cpu()
            for view in views(pixels.double() if precision == "fp64" else pixels, tta)
        ]
        return seen[0] if len(seen) == 1 else torch.stack(seen).mean(0)

    with torch.inference_mode(), autocast(precision, images.device):
        width = outputs_of(images.gather(np.zeros(1, np.int64)).images).shape[1]
        mine = torch.zeros(
            -(-chunks // world.size), EVAL_CHUNK, width
        )  # chunks of a rank; the last may be padding
        counted = torch.zeros(len(mine), EVAL_CHUNK, 1)
        for k, (batch, real) in enumerate(eval_chunks(images, world.rank, world.size)):
            mine[k] = outputs_of(batch.images)
            counted[k, :real] += 1
    everything = gather_round_robin(torch.cat([mine, counted], 2), world).flatten(0, 1)
    assert everything[:n, -1].eq(1).all() and everything[:, -1].sum() == n, (
        "not every image was scored exactly once"
    )
    return everything[:n, :-1].contiguous().numpy()


CROP = 11 / 12  # of the side, in ten_crop: 44 of 48 pixels


def views(images: torch.Tensor, tta: str) -> Iterator[torch.Tensor]:
    """The pictures [B, C, H, W] to average over: as they are; also mirrored; four corners and the centre, also mirrored.

    Crops are enlarged to the full size: some networks take only that.
    """
    if tta != "ten_crop":
        yield images
        if tta == "flip":
            yield images.flip(3)
        return
    size = images.shape[2]
    side = round(CROP * size)
    far, middle = size - side, (size - side) // 2
    for top, left in ((0, 0), (0, far), (far, 0), (far, far), (middle, middle)):
        crop = images[:, :, top : top + side, left : left + side]
        whole = interpolate(crop, size=(size, size), mode="bilinear", align_corners=False)
        whole = whole.contiguous(memory_format=torch.channels_last)
        yield whole
        yield whole.flip(3)


def evaluate(config: EvaluateConfig, world: World = ALONE) -> dict[str, Any]:
    """Score the run's best weights; rank 0 writes eval-NAME.json, predictions-NAME.npz and confusion-NAME.png into the run,
    where NAME is the split and what else is unusual (see `result_name`).

    Another data set goes by class names: classes that one side lacks are masked before the softmax, faces of classes that
    the run does not know are dropped and counted.
    """
    stored = read_run_config(config.run)
    weights = _weights(config.run)
    manifest = read_manifest(config.data or data_folder(config.run))
    trained_on, shape = tuple(stored["data"]["classes"]), list(stored["data"]["image_shape"])
    if list(manifest.image_shape) != shape:
        raise UserError(
            f"--data {manifest.folder} holds {list(manifest.image_shape)} faces, {config.run} was trained on {shape}; "
            f"preprocess with --size {shape[0]} --channels {shape[2]}"
        )
    classes = tuple(c for c in trained_on if c in manifest.classes)
    if len(classes) < 2:
        raise UserError(
            f"--data {manifest.folder} has the classes {', '.join(manifest.classes)}, {config.run} knows "
            f"{', '.join(trained_on)}; fewer than two are the same"
        )
    split = open_split(manifest, config.split)
    saved = checkpoint.load(weights)
    best = (
        saved.get("best") or saved
    )  # an unfinished run's checkpoint holds the best weights within
    if "model" not in best or "epoch" not in best:
        raise UserError(f"{config.run} has not finished an epoch yet; there is nothing to score")
    science = stored["science"]
    torch.set_num_threads(science["threads"])
    device = pick_device(config.device, world.local_rank)
    model = build_network(science, len(trained_on), manifest.image_shape)
    model.load_state_dict(best["model"])
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.to(torch.float64 if science["precision"] == "fp64" else torch.float32)
    with process_group(world):
        outputs = predict(model, ImageStore(split, device), science["precision"], world, config.tta)
    logits, affect = split_outputs(outputs, len(trained_on))
    names = np.array([classes.index(c) if c in classes else -1 for c in manifest.classes])
    labels = names[split.columns["labels"]]
    known = labels >= 0
    if not known.any():
        raise UserError(
            f"--data {manifest.folder}: its {config.split} split has no face of {', '.join(classes)}"
        )
    logits, labels = logits[known][:, [trained_on.index(c) for c in classes]], labels[known]
    result = {
        "split": config.split,
        "data": manifest.fingerprint,
        "weights": sha256(weights),
        "tta": config.tta,
        "epoch": best["epoch"],
        "finished": weights.name == "best.pt",
        "masked": sorted({*trained_on, *manifest.classes} - set(classes)),
        "dropped": int((~known).sum()),
        **metrics.summary(logits, labels, classes),
    }
    if affect is not None:
        result |= metrics.valence_arousal(affect, affect_of(split))
    if world.rank:
        return result

    from fer_hpc.evaluation import plots  # matplotlib, which training does not need

    name = result_name(config, stored["data"]["fingerprint"])
    columns = {key: split.columns[key][known] for key in ("source_id", "group", "image_hash")}
    write_bytes(
        config.run / f"predictions-{name}.npz",
        _npz(logits=logits, labels=labels, classes=np.array(classes), **columns),
    )
    title = f"{config.run.name}, {name}: {result['accuracy']:.1%} of {len(labels):,}"
    plots.confusion(
        np.array(result["confusion"]), classes, title, config.run / f"confusion-{name}.png"
    )
    write_json(config.run / f"eval-{name}.json", result)
    return result


def _weights(run: Path) -> Path:
    """The file with the run's best weights: best.pt, or the newest good checkpoint of a run that is not finished."""
    if read_status(run)["state"] == "finished" and (best := outcome_file(run, "best.pt")):
        return best
    for _, _, path in list_checkpoints(run):
        with contextlib.suppress(checkpoint.DamagedCheckpoint):
            checkpoint.load(path)
            return path
    if read_status(run)["state"] == "running":
        raise UserError(
            f"{run} is running and has saved nothing yet; its first checkpoint comes within a minute or so"
        )
    raise UserError(f"{run} holds no weights yet; train it first")


def _npz(**arrays: NDArray[Any]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def split_outputs(
    outputs: NDArray[Any], classes: int
) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    """A network's outputs [n, classes (+ 2)] as logits [n, classes] and, with such a head, valence and arousal [n, 2]."""
    affect = (
        np.tanh(outputs[:, classes:].astype(np.float64)) if outputs.shape[1] > classes else None
    )
    return outputs[:, :classes], affect


def result_name(config: EvaluateConfig, trained_on: str) -> str:
    """What the files of a scoring are called after: the split, the views averaged, and a data set that is not the run's
    own (`trained_on`: the fingerprint of that)."""
    name = config.split if config.tta == "none" else f"{config.split}-{config.tta}"
    if (
        config.data is None
        or (read_json(config.data / "manifest.json") or {}).get("fingerprint") == trained_on
    ):
        return name
    return f"{name}-on-{re.sub(r'[^A-Za-z0-9_-]+', '_', config.data.absolute().name)}"
