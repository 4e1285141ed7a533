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
from fer_hpc.data.checksums import verify_in_background
from fer_hpc.data.loader import eval_rows
from fer_hpc.data.shards import Manifest, Split, open_split, read_manifest
from fer_hpc.data.step_inputs import Block, Inputs
from fer_hpc.data.store import ImageStore, affect_of
from fer_hpc.data.stream import PixelStream
from fer_hpc.evaluation import metrics
from fer_hpc.evaluation.load import load_network
from fer_hpc.evaluation.results import result_files, result_name
from fer_hpc.files import sha256, write_bytes, write_json
from fer_hpc.parallel.collectives import gather_round_robin, process_group
from fer_hpc.parallel.device import autocast, pick_device
from fer_hpc.parallel.graph import StepRunner
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import data_folder, read_run_config

ONE_PROCESS = World()
CROP_SHARE = 11 / 12  # of the side, in ten_crop: 44 of 48 pixels


# ---- outputs of a split ---------------------------------------------------------------------


class Scorer:
    """Outputs of a network on a split; the mean over the views of --tta.

    Ranks take chunks of a fixed size in turn. So the arithmetic, and with it every bit, is the
    same for any number of ranks that use the same number of threads. With `graph`, a GPU repeats
    the chunks as a CUDA graph; keep the scorer then.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ImageStore,
        precision: str,
        world: World = ONE_PROCESS,
        tta: str = "none",
        graph: bool = False,
    ) -> None:
        self.model, self.images, self.world = model, images, world
        self._precision, self._tta = precision, tta
        self.rows = eval_rows(len(images.split), world.rank, world.size)
        self._block = Block({"rows": self.rows}).to(images.device)
        self._pixels = PixelStream(images)
        self._runner = StepRunner(self._score, None, images.device, graph)

    def _score(self, given: Inputs, _: object) -> torch.Tensor:
        """The mean output [B, classes (+ 2)] over the views of one chunk."""
        images = self.images.gather(given).images
        with autocast(self._precision, images.device):
            images = images.double() if self._precision == "fp64" else images
            outputs = [self.model(view).float() for view in views(images, self._tta)]
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)

    @torch.no_grad()  # not inference_mode: another thread fills tensors that are made here
    def outputs(self) -> NDArray[np.float32]:
        """Outputs [n, classes (+ 2)] of the split in row order, on every rank."""
        self.model.eval()
        found = torch.empty(0)
        for k in range(len(self._block)):
            given = self._pixels.at(self._block, k)
            chunk = self._runner.run(self._block, k, streamed=given)
            if not k:
                found = chunk.new_empty(len(self._block), *chunk.shape)
            found[k] = chunk
        gathered = gather_round_robin(found.cpu(), self.world).flatten(0, 1)
        return gathered[: len(self.images.split)].contiguous().numpy()


def predict(
    model: nn.Module,
    images: ImageStore,
    precision: str,
    world: World = ONE_PROCESS,
    tta: str = "none",
) -> NDArray[np.float32]:
    """Outputs [n, classes (+ 2)] of a split in row order, once; see `Scorer`."""
    return Scorer(model, images, precision, world, tta).outputs()


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
    verified = (
        verify_in_background(manifest, (config.split,), config.run) if not world.rank else None
    )
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
        **metrics.summary(logits, faces.labels, classes, faces.targets),
    }
    if affect is not None:
        result |= metrics.valence_arousal(affect, affect_of(split))
    if verified:
        verified.result()  # raises where a shard has changed
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
    targets: NDArray[np.float64] | None  # [n, common classes], where labels are distributions


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
    targets = None
    if split.targets is not None:  # the rest of a distribution goes to the common classes
        common = [manifest.classes.index(c) for c in classes]
        targets = split.targets[rows][:, common].astype(np.float64)
        targets /= targets.sum(1, keepdims=True)
    return _Faces(rows, labels[rows], columns, targets)


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
