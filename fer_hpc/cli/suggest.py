"""Flags that do not exist: which one is meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from fer_hpc.config import UserError

# What other programs call a flag -> what it may be called here, without the dashes.
SYNONYMS = {
    "learning-rate": ("lr", "lrs"),
    "lr-rate": ("lr", "lrs"),
    "learning-rates": ("lrs", "lr"),
    "min-lr": ("lr-min",),
    "wd": ("weight-decay",),
    "batch": ("batch-size", "batch-sizes"),
    "bs": ("batch-size", "batch-sizes"),
    "epoch": ("epochs",),
    "num-epochs": ("epochs",),
    "max-epochs": ("epochs",),
    "patience": ("early-stop", "plateau-patience"),
    "warmup": ("warmup-epochs",),
    "lr-scheduler": ("schedule",),
    "lr-schedule": ("schedule",),
    "scheduler": ("schedule",),
    "network": ("model",),
    "arch": ("model",),
    "preset": ("model",),
    "pretrained-weights": ("init-from",),
    "weights": ("init-from",),
    "checkpoint": ("init-from",),
    "amp": ("precision",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "clip-grad": ("clip",),
    "grad-clip": ("clip",),
    "grad-accum": ("accumulate",),
    "random-seed": ("seed", "seeds"),
    "dataset": ("data", "input"),
    "data-dir": ("data", "input"),
    "data-path": ("data", "input"),
    "in": ("input", "data"),
    "output": ("out", "run"),
    "output-dir": ("out", "run"),
    "out-dir": ("out", "run"),
    "run-dir": ("run",),
    "log-dir": ("run",),
    "logdir": ("run",),
    "resume": ("run",),
    "image-size": ("size",),
    "img-size": ("size",),
    "n": ("count",),
    "num": ("count",),
    "j": ("workers",),
    "num-workers": ("workers", "workers-per-trial", "threads"),
    "jobs": ("workers", "at-once"),
    "num-threads": ("threads",),
    "workers": ("workers-per-trial", "threads"),
    "gpu": ("device", "gpus-per-node", "gpus-per-worker"),
    "gpus": ("gpus-per-node", "gpus-per-worker", "device"),
    "ngpus": ("gpus-per-node", "gpus-per-worker"),
    "gres": ("gpus-per-node",),
    "time": ("time-min",),
    "time-limit": ("time-min",),
    "timeout": ("time-min",),
    "walltime": ("time-min",),
    "memory": ("mem",),
    "cpus-per-task": ("cpus",),
    "cores": ("cpus", "threads"),
    "queue": ("partition",),
    "executor": ("cluster",),
    "dry": ("dry-run",),
    "number-of-nodes": ("nodes",),
    "fold": ("split", "eval-split"),
    "augment": ("flip",),
    "horizontal-flip": ("flip",),
    "rotation": ("rotate",),
    "smoothing": ("label-smoothing",),
}


def check_flags(args: list[str], known: set[str], notes: Mapping[str, str], help: str) -> None:
    """A UserError for the first flag in `args` that is not `known`; it names the one meant.

    notes: what to do instead of a flag that belongs to a related command; help: the command that
    lists all flags
    """
    for arg in args:
        if arg == "--":
            return  # no flags follow
        flag = arg.partition("=")[0].replace("_", "-")
        if not is_flag(arg) or flag in known or arg in ("--help", "-h"):
            continue
        if flag in ("--help", "-h"):
            raise UserError(f"{arg}: {flag} takes no value")
        if flag in notes:
            raise UserError(f"{flag} {notes[flag]}")
        meant = " or ".join(near_flags(f"--{flag.lstrip('-')}", known))
        hint = f"; did you mean {meant}?" if meant else ""
        raise UserError(f"unknown flag {flag}{hint} ({help} lists all)")


def is_flag(text: str) -> bool:
    """Whether an argument is a flag by its look; a negative number is none."""
    try:
        float(text)
    except ValueError:
        return text.startswith("--") or (text.startswith("-") and text[1:2].isalpha())
    return False


def near_flags(flag: str, known: set[str]) -> list[str]:
    """The known flags that may be meant: synonyms, else parts of a name, else similar names."""
    name = flag.removeprefix("--")
    same = sorted(each for each in known if each.startswith("--no-") == flag.startswith("--no-"))
    candidates = (
        [f"--{synonym}" for synonym in SYNONYMS.get(name, ()) if f"--{synonym}" in known],
        [each for each in same if name in each.split("-") or each.startswith(flag)],
        difflib.get_close_matches(flag, same, n=2) if len(name) > 1 else [],
    )
    return next((flags[:3] for flags in candidates if flags), [])
