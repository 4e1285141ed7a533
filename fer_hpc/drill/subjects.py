"""What is drilled: commands that are small but real, and what they must leave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_hpc.files import read_json
from fer_hpc.run.folder import list_checkpoints, read_rows

SPEED = "--threads 1 --device cpu --no-tensorboard --checkpoint-every-s 0.02".split()
TRAINING = "cnn_baseline --model drill --optimizer adamw --flip --epochs 3"
BATCH = 8
FACES = {"classifier": 96, "gan": 48}  # drawn, of 32 pixels
NETWORK = Path(__file__).with_name("network.py")  # copied beside the shards: a plugin of users
LEFTOVERS = (".*.tmp", ".claim-*", ".clock-*")  # what an interrupted write leaves


@dataclass(frozen=True)
class Subject:
    """A kind of work; `batch` is its images a step, 0 where it has no steps.

    trials: it trains several runs; ray: in processes that Ray starts
    """

    name: str
    needs: str  # of which shards, or ""
    batch: int = 0
    ranks: int = 1
    trials: bool = False
    ray: bool = False

    @property
    def one_run(self) -> bool:
        """Whether its folder is the folder of one run."""
        return bool(self.batch) and not self.trials


SUBJECTS = {
    s.name: s
    for s in (
        Subject("classifier", "classifier", batch=BATCH),
        Subject("two ranks", "classifier", batch=BATCH, ranks=2),
        Subject("GAN", "gan", batch=BATCH),
        Subject("preprocess", ""),
        Subject("evaluate", "classifier"),
        Subject("sweep", "classifier", batch=BATCH, trials=True),
        Subject("Ray sweep", "classifier", batch=BATCH, trials=True, ray=True),
    )
}
TRIALS = (1, 2)  # seeds of the sweep
# Files at whose events a trap may strike, as regular expressions below a subject's folder.
TRAINING_EVENTS = {
    "claim": r"attempts/\d+",
    "configuration": r"config\.json",
    "start": r"attempts/\d+/environment\.json",
    "status": r"attempts/\d+/status\.json",
    "metrics of an attempt": r"attempts/\d+/metrics\.jsonl",
    "checkpoint": r"attempts/\d+/0\d+\.pt",
    "unfinished checkpoint": r"attempts/\d+/\.0\d+\.pt\..*",
    "weights": r"attempts/\d+/final\.pt",
    "publish": r"(final|best)\.pt",
    "metrics": r"metrics\.jsonl",
}
EVENTS = {
    "preprocess": {"manifest": r"manifest\.json", "shard": r".*\.h5"},
    "evaluate": {"predictions": r"predictions-val\.npz", "scores": r"eval-val\.json"},
    "sweep": {name: rf"trials/seed\d/{p}" for name, p in TRAINING_EVENTS.items()},
}


def shards_command(name: str, out: Path) -> list[str]:
    """The arguments that draw faces and write shards."""
    return preprocess_command(out, FACES[name])


def preprocess_command(out: Path, count: int) -> list[str]:
    flags = f"preprocess --source synthetic --size 32 --workers 1 --count {count}"
    return [*flags.split(), "--out", str(out)]


def train_command(data: Path, run: Path, seed: int = 1) -> list[str]:
    flags = f"train {TRAINING} --batch-size {BATCH} --seed {seed}".split()
    paths = ["--data", str(data), "--run", str(run)]
    return [*flags, "--plugin", str(data / NETWORK.name), *paths, *SPEED]


def tune_command(data: Path, out: Path) -> list[str]:
    flags = f"tune {TRAINING} --batch-sizes {BATCH} --lrs 0.001 --seeds".split()
    paths = ["--data", str(data), "--out", str(out)]
    return [*flags, *map(str, TRIALS), "--plugin", str(data / NETWORK.name), *paths, *SPEED]


def commands(subject: Subject, folder: Path, data: Path) -> list[list[str]]:
    """The commands of a subject in `folder`, in order; given again, they continue."""
    if subject.name == "GAN":
        flags = ["train_gan", "--epochs", "2", "--batch-size", str(BATCH), *SPEED]
        return [[*flags, "--data", str(data), "--run", str(folder)]]
    if subject.name == "preprocess":
        return [preprocess_command(folder, 48)]
    if subject.name == "evaluate":
        flags = ["--split", "val", "--device", "cpu"]
        return [["evaluate", str(folder), *flags]]
    if subject.ray:
        return [tune_command(data, folder)]
    if subject.trials:
        return [train_command(data, folder / "trials" / f"seed{n}", n) for n in TRIALS]
    return [train_command(data, folder)]


def runs_of(subject: Subject, folder: Path) -> list[Path]:
    """The run folders of a subject that trains; of a sweep of Ray those that are there."""
    if subject.ray:
        return sorted(path.parent for path in folder.glob("trials/*/config.json"))
    if subject.trials:
        return [folder / "trials" / f"seed{n}" for n in TRIALS]
    return [folder] if subject.batch else []


def results(subject: Subject, folder: Path) -> list[Path]:
    """The files that must have the bytes of those of an undisturbed run."""
    if subject.name == "preprocess":
        return [*sorted(folder.glob("*.h5")), folder / "manifest.json"]
    if subject.name == "evaluate":
        return [folder / "eval-val.json", folder / "predictions-val.npz"]
    paths = []
    for run in runs_of(subject, folder):
        paths += [run / "metrics.jsonl", run / "final.pt"]
        paths += [run / "best.pt"] if subject.name != "GAN" else []
    return paths


def differences(subject: Subject, folder: Path, reference: Path) -> list[str]:
    """What differs from an undisturbed run, a line each."""
    wanted = [path.relative_to(reference) for path in results(subject, reference)]
    lines = []
    for name in wanted:
        path = folder / name
        if not path.exists():
            lines.append(f"{name} is missing")
        elif not _same(path, reference / name):
            lines.append(f"{name} differs")
    for other in runs_of(subject, reference):
        run = folder / other.relative_to(reference)
        last, others = (next(iter(list_checkpoints(each)), None) for each in (run, other))
        if not last or not others or last[1] != others[1]:
            lines.append(f"the last checkpoint is {last and last[2].name}")
        elif last[2].read_bytes() != others[2].read_bytes():
            lines.append(f"the last checkpoint differs: {last[2].name}")
        lines += _gaps(run, other)
    if subject.ray and _ranking(folder) != _ranking(reference):
        lines.append("the ranking in summary.json differs")
    lines += [f"more files: {path.name}" for path in _unexpected(subject, folder, reference)]
    return lines


def _same(path: Path, other: Path) -> bool:
    """Equal bytes; of scores equal values, as they name the run's folder."""
    if path.name.startswith("eval-"):
        scores, others = (_scores(each) for each in (path, other))
        return scores == others
    return path.read_bytes() == other.read_bytes()


def _scores(path: Path) -> dict[str, Any]:
    return {k: v for k, v in (read_json(path) or {}).items() if k not in ("run", "time")}


def _ranking(sweep: Path) -> Any:
    return (read_json(sweep / "summary.json") or {}).get("ranked")


def _gaps(run: Path, other: Path) -> list[str]:
    epochs, wanted = ([row.get("epoch") for row in read_rows(each)] for each in (run, other))
    return [] if epochs == wanted else [f"epochs {epochs} in metrics.jsonl, wanted {wanted}"]


def _unexpected(subject: Subject, folder: Path, reference: Path) -> list[Path]:
    """Shards that an undisturbed run does not have."""
    if subject.name != "preprocess":
        return []
    names = {path.name for path in reference.glob("*.h5")}
    return [path for path in folder.glob("*.h5") if path.name not in names]


def leftovers(folder: Path) -> list[Path]:
    """Temporary files below a folder."""
    return [path for pattern in LEFTOVERS for path in folder.rglob(pattern)]
