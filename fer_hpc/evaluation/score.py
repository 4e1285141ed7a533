"""Score a run on a split: python -m fer_hpc.evaluate RUN --split test."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

from fer_hpc.config import UserError
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.loader import EVAL_CHUNK, eval_chunks
from fer_hpc.data.shards import Manifest, Split, open_split, read_manifest
from fer_hpc.data.store import ImageStore, affect_of
from fer_hpc.evaluation import metrics
from fer_hpc.evaluation.load import load_network
from fer_hpc.evaluation.results import result_files, result_name
from fer_hpc.files import sha256, write_bytes, write_json
from fer_hpc.parallel.collectives import gather_round_robin, process_group
from fer_hpc.parallel.device import autocast, pick_device
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import data_folder, read_run_config

ONE_PROCESS = World()
CROP_SHARE = 11 / 12  # of the side, in ten_crop: 44 of 48 pixels


# ---- outputs of a split ---------------------------------------------------------------------


def predict(
    model: nn.Module,
    images: ImageStore,
    precision: str,
    world: World = ONE_PROCESS,
    tta: str = "none",
) -> NDArray[np.float32]:
    """Outputs [n, classes (+ 2)] of a split in row order, on every rank; the mean over the views.

    Ranks take chunks of a fixed size in turn. So the arithmetic, and with it every bit, is the
    same for any number of ranks that use the same number of threads.
    """
    model.eval()
    n = len(images.split)
    chunks_per_rank = -(-n // (EVAL_CHUNK * world.size))
    with torch.inference_mode(), autocast(precision, images.device):
        one = images.gather(np.zeros(1, np.int64)).images
        width = _mean_outputs(model, one, precision, tta).shape[1]
        outputs = torch.zeros(chunks_per_rank, EVAL_CHUNK, width)
        counts = torch.zeros(chunks_per_rank, EVAL_CHUNK, 1)  # 0 where a row is padding
        for k, (batch, rows) in enumerate(eval_chunks(images, world.rank, world.size)):
            outputs[k] = _mean_outputs(model, batch.images, precision, tta)
            counts[k, :rows] += 1
    gathered = gather_round_robin(torch.cat([outputs, counts], 2), world).flatten(0, 1)
    if not gathered[:n, -1].eq(1).all() or gathered[:, -1].sum() != n:
        raise AssertionError("not every image was scored exactly once")
    return gathered[:n, :-1].contiguous().numpy()


def _mean_outputs(model: nn.Module, images: torch.Tensor, precision: str, tta: str) -> torch.Tensor:
    """The mean output [B, classes (+ 2)] over the views of images [B, C, H, W], on the CPU."""
    images = images.double() if precision == "fp64" else images
    outputs = [model(view).float().cpu() for view in views(images, tta)]
    return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)


def views(images: torch.Tensor, tta: str) -> Iterator[torch.Tensor]:
    """The views of images [B, C, H, W] whose outputs --tta averages.

    none: the images. flip: also mirrored. ten_crop: four corners and the centre, each also
    mirrored; crops are enlarged to the full size, because some networks take only that.
    """
    if tta != "ten_crop":
        yield images
        if tta == "flip":
            yield images.flip(3)
        return
    size = images.shape[2]
    side = round(CROP_SHARE * size)
    far, middle = size - side, (size - side) // 2
    for top, left in ((0, 0), (0, far), (far, 0), (far, far), (middle, middle)):
        crop = images[:, :, top : top + side, left : left + side]
        whole = interpolate(crop, size=(size, size), mode="bilinear", align_corners=False)
        whole = whole.contiguous(memory_format=torch.channels_last)
        yield whole
        yield whole.flip(3)


def split_outputs(
    outputs: NDArray[Any], classes: int
) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    """Outputs [n, classes (+ 2)] as logits [n, classes] and valence and arousal [n, 2], if any."""
    if outputs.shape[1] == classes:
        return outputs, None
    return outputs[:, :classes], np.tanh(outputs[:, classes:].astype(np.float64))


# ---- scores of a run ------------------------------------------------------------------------


def evaluate(config: EvaluateConfig, world: World = ONE_PROCESS) -> dict[str, Any]:
    """Score the run's best weights on a split; gives the content of eval-NAME.json.

    Rank 0 writes it with predictions-NAME.npz and confusion-NAME.png into the run folder; for NAME
    see `result_name`. Another data set is compared by class names: classes that one side lacks are
    masked before the softmax, faces of classes that the run does not know are dropped and counted.
    """
    stored = read_run_config(config.run)
    manifest = read_manifest(config.data or data_folder(config.run))
    trained_on = tuple(stored["data"]["classes"])
    classes = _common_classes(config, manifest, stored["data"])
    split = open_split(manifest, config.split)
    device = pick_device(config.device, world.local_rank)
    network = load_network(config.run, device, config.plugin)
    precision = network.science["precision"]
    torch.set_num_threads(network.science["threads"])
    with process_group(world):
        images = ImageStore(split, device)
        outputs = predict(network.model, images, precision, world, config.tta)
    logits, affect = split_outputs(outputs, len(trained_on))
    faces = _keep_common(config, split, manifest, classes)
    logits = logits[faces.rows][:, [trained_on.index(c) for c in classes]]
    result = {
        "split": config.split,
        "data": manifest.fingerprint,
        "weights": sha256(network.weights),
        "tta": config.tta,
        "epoch": network.best["epoch"],
        "finished": network.is_final,
        "masked": sorted({*trained_on, *manifest.classes} - set(classes)),
        "dropped": len(split) - len(faces.labels),
        **metrics.summary(logits, faces.labels, classes),
    }
    if affect is not None:
        result |= metrics.valence_arousal(affect, affect_of(split))
    if world.rank == 0:
        name = result_name(config, stored["data"]["fingerprint"])
        _write(config, name, result, logits, faces, classes)
    return result


def _common_classes(
    config: EvaluateConfig, manifest: Manifest, trained_on: dict[str, Any]
) -> tuple[str, ...]:
    """The run's classes that the data has; a UserError where the data does not fit the run."""
    shape, known = list(trained_on["image_shape"]), trained_on["classes"]
    if list(manifest.image_shape) != shape:
        raise UserError(
            f"--data {manifest.folder} holds {list(manifest.image_shape)} faces, {config.run} was "
            f"trained on {shape}; preprocess with --size {shape[0]} --channels {shape[2]}"
        )
    classes = tuple(c for c in known if c in manifest.classes)
    if len(classes) < 2:
        raise UserError(
            f"--data {manifest.folder} has the classes {', '.join(manifest.classes)}, "
            f"{config.run} knows {', '.join(known)}; fewer than two are the same"
        )
    return classes


@dataclass(frozen=True)
class _Faces:
    """The faces of a split that count."""

    rows: NDArray[np.bool_]  # [all rows of the split]
    labels: NDArray[np.int64]  # [n] index into the common classes
    columns: dict[str, NDArray[Any]]  # what identifies each of the n


def _keep_common(
    config: EvaluateConfig, split: Split, manifest: Manifest, classes: tuple[str, ...]
) -> _Faces:
    """The faces of `classes`; a UserError where there are none."""
    index = np.array([classes.index(c) if c in classes else -1 for c in manifest.classes])
    labels = index[split.columns["labels"]]
    rows = labels >= 0
    if not rows.any():
        raise UserError(
            f"--data {manifest.folder}: its {config.split} split has no face of "
            f"{', '.join(classes)}"
        )
    columns = {key: split.columns[key][rows] for key in ("source_id", "group", "image_hash")}
    return _Faces(rows, labels[rows], columns)


def _write(
    config: EvaluateConfig,
    name: str,
    result: dict[str, Any],
    logits: NDArray[Any],
    faces: _Faces,
    classes: tuple[str, ...],
) -> None:
    """Write predictions, confusion matrix and, when these are there, the scores."""
    from fer_hpc.evaluation import plots  # matplotlib, which training does not need

    files = result_files(config.run, name)
    arrays = {"logits": logits, "labels": faces.labels, "classes": np.array(classes)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays, **faces.columns)
    write_bytes(files["predictions"], buffer.getvalue())
    title = f"{config.run.name}, {name}: {result['accuracy']:.1%} of {len(faces.labels):,}"
    plots.confusion(np.array(result["confusion"]), classes, title, files["confusion"])
    write_json(files["scores"], result)
