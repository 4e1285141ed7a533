"""The command behind a batch script: the site's defaults, then the user's flags, which win."""

from __future__ import annotations

import os
from pathlib import Path

from fer_hpc.cluster.scheduler import Allocation, ArrayTask
from fer_hpc.config import UserError
from fer_hpc.files import read_json

FACES = "48x48x1"  # sub-folder of FER_DATA, unless FER_FACES names another


def script_command(verb: str, args: list[str], allocation: Allocation | None) -> list[str]:
    """[verb, arguments...] of a script that was called with `args`.

    In an array, preprocessing is shared by its tasks, and each task of a training is a seed.
    """
    array = allocation.array if allocation else None
    if verb == "preprocess":
        return [verb, *_preprocess(args, array)]
    if verb == "evaluate":
        run = str(_runs() / args[0])
        rest = args[1:]
        if rest and not rest[0].startswith("-"):  # evaluate.sh runs/mine
            run, rest = rest[0], rest[1:]
        return [verb, run, *rest]
    if verb not in ("train", "train_gan", "tune"):
        return [verb, *args]
    name, options = ("gan", args) if verb == "train_gan" else (args[0], args[1:])
    # train_cnn.sh cnn_baseline
    if verb != "train_gan" and options and not options[0].startswith("-"):
        name, options = options[0], options[1:]
    command = [verb] if verb == "train_gan" else [verb, name]
    command += ["--data", str(_data())]
    if scratch := os.environ.get("FER_SCRATCH"):
        command += ["--stage", scratch]
    if verb == "tune":
        return [*command, "--out", str(_runs() / f"sweep-{name}"), *options]
    if array:
        command += ["--seed", str(array.index)]
        name += f"-seed{array.index}"
    return [*command, "--run", str(_runs() / name), *options]


def _runs() -> Path:
    return Path(os.environ.get("FER_RUNS", "runs"))


def _data() -> Path:
    """The shards; of a folder of products, the one that the network takes."""
    data = Path(os.environ.get("FER_DATA", "shards"))
    product = data / os.environ.get("FER_FACES", FACES)
    return product if product.is_dir() else data


def _preprocess(args: list[str], array: ArrayTask | None) -> list[str]:
    env = os.environ
    command = ["--out", env.get("FER_DATA", "shards"), *args]
    if not any(arg == "--source" or arg.startswith("--source=") for arg in args):
        options = ["--source", env["FER_SOURCE"], "--input", env["FER_INPUT"]]
        command = [*options, *command]
    if array:
        out = Path(command[len(command) - 1 - command[::-1].index("--out") + 1])
        place = array.position if array.position is not None else _claimed_place(out, array)
        command += ["--task", str(place), "--tasks", str(array.count)]
    return command


def _claimed_place(out: Path, array: ArrayTask) -> int:
    """This task's place among those of its array, taken once: for indices without a fixed step."""
    folder = out / "jobs" / f"array-{array.array}"
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(array.count):
        path = folder / f"place-{place}"
        try:
            with path.open("x") as f:
                f.write(str(array.index))
            return place
        except FileExistsError:
            if path.read_text() == str(array.index):  # this task's earlier start
                return place
    raise UserError(
        f"{folder}: all {array.count} places of the array are taken; submit the array again"
    )


def command_of_array(listed: Path, allocation: Allocation | None) -> list[str]:
    """The command of this task of an array; `listed` is a JSON file with those of all tasks."""
    commands = read_json(listed)
    place = allocation.array.position if allocation and allocation.array else None
    if not isinstance(commands, list) or place is None or place >= len(commands):
        raise UserError(
            f"{listed} is missing or damaged, or this is no task of an array; submit it again"
        )
    return list(map(str, commands[place]))
