"""A run, a split, and the faces of it that both know: what every kind of scoring starts from."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.shards import Manifest, Split, open_split
from fer_hpc.evaluation.load import StoredNetwork, load_network
from fer_hpc.evaluation.openings import note_opening
from fer_hpc.evaluation.results import result_name, scored_data
from fer_hpc.files import remove_leftovers, sha256
from fer_hpc.parallel.device import pick_device
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import read_run_config


@dataclass(frozen=True)
class OpenedRun:
    """A run's network and the split that it is scored on."""

    config: EvaluateConfig
    stored: dict[str, Any]  # config.json
    manifest: Manifest
    split: Split
    classes: tuple[str, ...]  # those that run and data have in common
    faces: Faces
    network: StoredNetwork
    device: torch.device

    @property
    def name(self) -> str:
        """NAME of the result files."""
        return result_name(self.config, self.stored["data"]["fingerprint"])

    @property
    def is_own_data(self) -> bool:
        """Whether this is the data that the run was trained on."""
        return bool(self.manifest.fingerprint == self.stored["data"]["fingerprint"])

    @functools.cached_property
    def weights(self) -> str:
        """SHA-256 of the file of the weights."""
        return sha256(self.network.weights)

    @property
    def masked(self) -> list[str]:
        """Classes that only one side has."""
        known = {*self.stored["data"]["classes"], *self.manifest.classes}
        return sorted(known - set(self.classes))

    def logits(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Logits [n, common classes] of the faces that count, of those [rows, classes] of all."""
        return self.select(outputs[self.faces.rows])

    def select(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """The columns of the common classes, of outputs [n, classes (+ 2)]."""
        trained_on = self.stored["data"]["classes"]
        return outputs[:, [trained_on.index(c) for c in self.classes]]

    def record(self, what: Sequence[str]) -> None:
        """Record and print that a test split is opened; nothing for other splits."""
        about = self.manifest.fingerprint, self.stored, self.weights
        note_opening(self.config.run, self.config.split, what, *about)


def open_run(config: EvaluateConfig, world: World) -> OpenedRun:
    """Open a run and a split; a UserError where they do not fit."""
    stored = read_run_config(config.run)
    if not world.rank:
        if not os.access(config.run, os.W_OK):
            raise UserError(
                f"{config.run}: scores are kept in the run folder, and you may only read this one; "
                "copy it to a folder of yours"
            )
        remove_leftovers(config.run)  # of an evaluation that was killed
    manifest = scored_data(config, stored["data"]["fingerprint"])
    classes = _common_classes(config, manifest, stored["data"])
    split = open_split(manifest, config.split)
    device = pick_device(config.device, world.local_rank)
    network = load_network(config.run, device, config.plugin)
    torch.set_num_threads(network.science["threads"])
    faces = _keep_common(config, split, manifest, classes)
    return OpenedRun(config, stored, manifest, split, classes, faces, network, device)


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
class Faces:
    """The faces of a split that count."""

    rows: NDArray[np.bool_]  # [all rows of the split]
    labels: NDArray[np.int64]  # [n] index into the common classes
    columns: dict[str, NDArray[Any]]  # what identifies each of the n
    targets: NDArray[np.float64] | None  # [n, common classes], where labels are distributions


def _keep_common(
    config: EvaluateConfig, split: Split, manifest: Manifest, classes: tuple[str, ...]
) -> Faces:
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
    return Faces(rows, labels[rows], columns, targets)
