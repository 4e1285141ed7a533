"""The parts of a study: plain commands of the suite, and which of them each one needs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fer_hpc.config import TrainConfig, flag_arguments
from fer_hpc.parallel.gpus import LARGE_SIDE
from fer_hpc.study.plan import Plan, fields_of_table, shape_of
from fer_hpc.study.recipes import Table

Kind = Literal["shards", "doctor", "train", "grid", "gan", "val", "test", "report"]
LARGE_SIDE_OF_GAN = 64  # pixels from which it has the machine, or a GPU, for itself


@dataclass(frozen=True)
class Part:
    """One command of a study.

    needs: parts whose results it reads; after: parts that must have ended before, with any result
    """

    name: str  # train/vgg-seed0
    kind: Kind
    command: list[str]  # [verb, arguments...], with absolute paths
    folder: Path  # of its results and job records
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    product: str = ""  # the faces that it reads or makes: 48x48x1
    threads: int = 1
    alone: bool = False  # takes all cores of a machine, or a whole GPU
    epochs: int = 0
    preset: str = ""
    settings: Table = field(default_factory=dict)  # what of study.toml decides it, by its key

    @property
    def hash(self) -> str:
        """Identity of the settings, 12 hexadecimal digits."""
        text = json.dumps(self.settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def model(self) -> str:
        """The name that a run has in the study, without its seed."""
        return self.folder.name.rpartition("-seed")[0]

    @property
    def is_gan(self) -> bool:
        return self.folder.parent.name == "gan"


def parts_of(plan: Plan) -> list[Part]:
    """All parts of a study, each after those that it needs."""
    parts = [_shards(plan, product) for product in plan.products]
    if plan.has("doctor"):
        parts += [_doctor(plan, product) for product in plan.products]
    trainings = _trainings(plan)
    if plan.has("grid"):
        trainings.append(_grid(plan))
        if plan.has("winner"):
            trainings += _winners(plan)
    if plan.has("gan"):
        trainings += _gans(plan)
    parts += trainings
    runs = [part for part in trainings if part.kind != "grid"]
    if plan.has("val"):
        parts += [_scores(plan, run, "val", ()) for run in runs]
    if plan.has("test"):
        # Once, when all that is chosen on val has been chosen.
        names = tuple(p.name for p in parts if p.kind in ("train", "grid", "gan", "val"))
        parts += [_scores(plan, run, "test", names) for run in runs]
    out = plan.out / "report"
    everything = tuple(part.name for part in parts)
    report = ["report", str(plan.out), "--out", str(out)]
    parts.append(Part("report", "report", report, out, after=everything))
    return parts


def _shards(plan: Plan, product: str) -> Part:
    tables, (side, channels) = plan.tables, shape_of(product)
    folder = plan.out / "shards" / product
    command = ["preprocess", "--source", tables["source"], "--out", str(folder)]
    command += ["--size", str(side), "--channels", str(channels)]
    command += flag_arguments("split", tables["split"])
    command += flag_arguments("classes", tables["classes"] or None)
    command += flag_arguments("input", tables["input"] or None)
    command += flag_arguments("count", tables["count"] or None)
    settings = {key: tables[key] for key in ("source", "split", "classes", "count")}
    return Part(
        f"shards/{product}",
        "shards",
        command,
        folder,
        product=product,
        alone=True,
        settings=settings,
    )


def _doctor(plan: Plan, product: str) -> Part:
    folder = plan.out / "doctor" / product
    command = ["doctor", str(plan.out / "shards" / product), "--out", str(folder / "findings.json")]
    return Part(
        f"doctor/{product}", "doctor", command, folder, (f"shards/{product}",), product=product
    )


def _arguments(fields: Table) -> list[str]:
    return [arg for name, value in fields.items() for arg in flag_arguments(name, value)]


def is_large(product: str, limit: int = LARGE_SIDE) -> bool:
    """Whether a training of these faces keeps a machine or a GPU busy alone."""
    return shape_of(product)[0] >= limit


def _trainings(plan: Plan) -> list[Part]:
    parts = []
    for name, table in plan.models.items():
        product, preset = table["data"], plan.model_preset(name)
        settings = {f"models.{name}.{k}": v for k, v in table.items() if k != "seeds"}
        command = ["train", preset, "--data", str(plan.out / "shards" / product)]
        fields, needs = fields_of_table("models", table), f"shards/{product}"
        for seed in table["seeds"]:
            folder = plan.out / "runs" / f"{name}-seed{seed}"
            part = _run(command, folder, seed, product, needs, fields, LARGE_SIDE)
            parts.append(replace(part, preset=preset, settings=settings))
    return parts


def _run(
    command: list[str],
    folder: Path,
    seed: int,
    product: str,
    needs: str,
    fields: Table,
    large: int,
) -> Part:
    """A training in `folder`; with faces of `large` pixels it has a machine or GPU for itself."""
    kind: Kind = "gan" if command[0] == "train_gan" else "train"
    threads = fields.get("threads", 0)
    return Part(
        f"{kind}/{folder.name}",
        kind,
        [*command, "--run", str(folder), "--seed", str(seed), *_arguments(fields)],
        folder,
        (needs,),
        product=product,
        threads=threads,
        alone=is_large(product, large) or not threads,
        epochs=fields.get("epochs", 0),
    )


def _grid(plan: Plan) -> Part:
    table = plan.tables["grid"]
    product, fields = table["data"], fields_of_table("grid", table)
    folder, preset = plan.out / "grid", table.get("preset", "cnn_improved")
    command = ["tune", preset, "--data", str(plan.out / "shards" / product), "--out", str(folder)]
    lists = {key: table[key] for key in ("batch_sizes", "lrs", "seeds")}
    command += _arguments(lists | {"threads": 1} | fields)
    return Part(
        "grid/grid",
        "grid",
        command,
        folder,
        (f"shards/{product}",),
        product=product,
        threads=fields.get("threads", 1),
        alone=True,
        epochs=fields.get("epochs", 0),
        preset=preset,
        settings={f"grid.{k}": v for k, v in table.items()},
    )


def _winners(plan: Plan) -> list[Part]:
    table, product = plan.tables["grid"], plan.tables["grid"]["data"]
    kinds = {f.name: f.metadata["kind"] for f in dataclasses.fields(TrainConfig)}
    runtime = {k: v for k, v in table.items() if kinds.get(k) == "runtime" and k != "data"}
    command = ["train", "--from-sweep", str(plan.out / "grid")]
    preset, epochs = table.get("preset", "cnn_improved"), table.get("epochs", 0)
    parts = []
    for seed in plan.tables["winner"]["seeds"]:
        folder = plan.out / "runs" / f"winner-seed{seed}"
        part = _run(command, folder, seed, product, "grid/grid", runtime, LARGE_SIDE)
        part = replace(part, threads=part.threads or 1, alone=is_large(product))
        parts.append(replace(part, preset=preset, epochs=epochs))
    return parts


def _gans(plan: Plan) -> list[Part]:
    table, product = plan.tables["gan"], plan.tables["gan"]["data"]
    settings = {f"gan.{k}": v for k, v in table.items() if k != "seeds"}
    command = ["train_gan", "--data", str(plan.out / "shards" / product)]
    fields, needs = fields_of_table("gan", table), f"shards/{product}"
    parts = []
    for seed in table["seeds"]:
        folder = plan.out / "gan" / f"gan-seed{seed}"
        part = _run(command, folder, seed, product, needs, fields, LARGE_SIDE_OF_GAN)
        parts.append(replace(part, settings=settings))
    return parts


def _scores(plan: Plan, run: Part, split: Literal["val", "test"], after: tuple[str, ...]) -> Part:
    command = ["evaluate", str(run.folder), "--split", split]
    settings: dict[str, Any] = {}
    needs = [run.name]
    own = plan.tables["evaluate"]
    if run.kind != "gan" and split == "test":
        command += [f"--{key}" for key in ("robust", "gallery") if own.get(key)]
    if run.kind == "gan":
        settings = {f"evaluate.{k}": value for k, value in own.items() if k.startswith("gan_")}
        command += ["--pairs", str(own.get("gan_pairs", 2000))]
        if judge := own.get("gan_judge"):
            command += ["--judge", str(plan.out / "runs" / judge)]
            needs.append(f"train/{judge}")
    return Part(
        f"{split}/{run.folder.name}",
        split,
        command,
        run.folder,
        tuple(needs),
        after,
        product=run.product,
        threads=run.threads,
        alone=run.alone,
        preset=run.preset,
        settings=settings,
    )
