"""Jobs: what is submitted, what becomes of it, and how it is ended. The only user of submitit; loads no torch.

Slurm starts everything through slurm/launch.sh, for `sbatch slurm/train_cnn.sh` and `python jobs/train.py` alike: it
starts the ranks, passes on signals, and is the one that requeues. `begin` and `end` are its questions.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_hpc import rundir
from fer_hpc.commands import EvaluateConfig, JobConfig, LogsConfig, PipelineConfig, PreprocessConfig, ReportConfig, SweepConfig
from fer_hpc.config import (
    EXIT_FINDINGS,
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    EXIT_USER_ERROR,
    GanConfig,
    TrainConfig,
    UserError,
    changed_from,
    check_divides,
    continued,
    said,
)

LAUNCH = Path(__file__).parents[1] / "slurm" / "launch.sh"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
Config = TrainConfig | GanConfig | EvaluateConfig | PreprocessConfig | ReportConfig | SweepConfig


def home(config: Config) -> Path:
    """The folder that a command's results, logs and job records go to."""
    return config.out if isinstance(config, PreprocessConfig | ReportConfig | SweepConfig) else config.run


# ---- around one job, asked by launch.sh ------------------------------------------------------------------------------


def check(config: Config, ranks: int) -> None:
    """A UserError for what can be known to fail before any rank starts."""
    if isinstance(config, PreprocessConfig):
        if config.input is not None and not config.input.exists():
            raise UserError(f"--input {config.input} is not there on {socket.gethostname()}")
        return
    if isinstance(config, EvaluateConfig):
        rundir.config(config.run)
    if not isinstance(config, TrainConfig | GanConfig):
        return
    manifest = rundir.read_json(config.data / "manifest.json")
    if manifest is None:
        what = "holds no shards (no manifest.json)" if config.data.is_dir() else "is not there"
        raise UserError(f"--data {config.data} {what} on {socket.gethostname()}; preprocess first, or give FER_DATA or --data")
    check_divides(config.batch_size, ranks, config.accumulate if isinstance(config, TrainConfig) else 1)
    stored = rundir.read_json(config.run / "config.json")
    if stored:
        continued(config, stored["science"])


def begin(config: Config, ranks: int, command: list[str]) -> Path:
    """Check the job that has just started, and record it with its results; gives the folder for the ranks' logs."""
    check(config, ranks)
    logs = home(config) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    if "SLURM_JOB_ID" in os.environ:
        record(home(config), _this_job(), command, [os.environ["SLURM_JOB_ID"]])
    return logs.absolute()


def should_requeue(config: Config, code: int) -> tuple[bool, str]:
    """Whether a job whose processes ended with `code` is to run again, and why.

    Of a training its run folder is believed: a step of Slurm was seen to end with code 0 after one of its nodes had died.
    """
    if isinstance(config, SweepConfig):
        began = max((entry["time"] for entry in records(config.out)), default=0.0)
        starts = config.out.glob("trials/*/attempts/*/environment.json")
        again = code not in (EXIT_FINISHED, EXIT_USER_ERROR, EXIT_FINDINGS)  # Ray has many ways to end with its processes
        again &= code == EXIT_RUN_AGAIN or any(path.stat().st_mtime > began for path in starts)
        return again, f"sweep ended with code {code}" + ("; it goes on from there" if again else "")
    if not isinstance(config, TrainConfig | GanConfig):
        again = code in (EXIT_RUN_AGAIN, 128 + signal.SIGTERM, 128 + signal.SIGUSR1, 128 + signal.SIGUSR2)
        return again, "done" if code == 0 else f"ended with code {code}" + ("; it goes on from there" if again else "")
    status = rundir.status(config.run)
    state, why = status["state"], status["why"] or f"ended with code {code}"
    if state in ("finished", "failed", "superseded") or code in (2, 4):
        return False, f"{config.run}: {state}" + (f", {why}" if state != "finished" else "")
    if rundir.starts_without_gain(config.run) >= rundir.MAX_STARTS:
        return False, rundir.no_gain(config.run)
    return True, f"{config.run}: {why}; the same command goes on from there"


def record(folder: Path, job: str, command: list[str], logs: list[str]) -> None:
    """Note in a results folder that `job` works on it; `logs` are patterns of its log files."""
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    entry = {"job": job, "command": command, "logs": logs, "time": round(time.time(), 1)}
    rundir.write_json(folder / "jobs" / f"{job}.json", entry)


def records(folder: Path) -> list[dict[str, Any]]:
    """The jobs noted in a folder, oldest first."""
    found = [rundir.read_json(p) for p in (folder / "jobs").glob("[0-9]*.json")]
    return sorted((entry for entry in found if entry), key=lambda entry: entry["time"])


def _this_job() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


# ---- submitting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """What submitit stores and calls on every rank: one fer_hpc command."""

    args: tuple[str, ...]

    def __call__(self) -> None:
        # submitit's handlers requeue and exit from within the signal. Ours note it, in train(); before that, it ends us.
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        local = os.environ.get("SUBMITIT_EXECUTOR") == "local"
        if local:
            _as_torchrun_would()
        from fer_hpc.cli import main

        code = main(list(self.args))
        if local and code == EXIT_RUN_AGAIN:
            from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

            sys.exit(LOCAL_REQUEUE_RETURN_CODE)
        if code != EXIT_FINISHED:
            sys.exit(code)


def _as_torchrun_would() -> None:
    """Tell the ranks of a local job about each other."""
    from submitit import JobEnvironment

    job = JobEnvironment()
    size, port = job.num_tasks, 20_000 + 7 * int(job.job_id) % 12_000
    known = {
        "RANK": job.global_rank,
        "LOCAL_RANK": job.local_rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in known.items()}, MASTER_ADDR="127.0.0.1")


def parameters(job: JobConfig, name: str, after: Sequence[str], gpus: int, whatever: bool = False) -> dict[str, Any]:
    """submitit's words for the resources of a job that starts when the jobs `after` have succeeded, or, `whatever` became of
    them, ended."""
    more: dict[str, Any] = {"signal": f"B:USR1@{job.signal_lead_s}", "requeue": True}
    if after:
        more |= {"dependency": ("afterany:" if whatever else "afterok:") + ":".join(after), "kill-on-invalid-dep": "yes"}
    if gpus:
        more |= {"gres": f"gpu:{gpus}", "cpus-per-gpu": job.cpus}
    wanted: dict[str, Any] = {
        "job_name": name, "time": job.time_min, "nodes": job.nodes if gpus else 1, "partition": job.partition,
        "account": job.account, "qos": job.qos, "mem": job.mem or None, "cpus_per_task": None if gpus else job.cpus,
        "setup": [f"export FER_PYTHON={shlex.quote(sys.executable)}"], "use_srun": False, "stderr_to_stdout": True,
        "additional_parameters": more,
    }  # fmt: skip
    return {key: value for key, value in wanted.items() if value is not None}


def submit(
    job: JobConfig,
    folder: Path,
    commands: list[list[str]],
    config: Config | None,
    after: Sequence[str] = (),
    gpus: int = 0,
    launched: list[str] | None = None,
    whatever: bool = False,
) -> list[str]:
    """Submit one job, or an array of several `commands`, whose results go to `folder`; gives their ids.

    Each command is [verb, arguments...]. `config` is what the first of them means, checked now; None where its input is
    only made by the jobs `after`. `launched` is what slurm/launch.sh is told instead of the first command. Returns at once,
    but for `--cluster debug`, which runs here and now.
    """
    from submitit import DebugExecutor, LocalExecutor
    from submitit.core.utils import FailedJobError

    ranks = job.nodes * max(gpus, 1)
    if config is not None:
        check(config, ranks)
    calls = [Command(tuple(args)) for args in commands]
    name = f"fer-{commands[0][0]}"
    logs = folder / "jobs"
    if job.cluster == "debug":
        executor = DebugExecutor(logs)
        for call in calls:
            executor.submit(call).result()
        return []
    if job.cluster == "local":
        local = LocalExecutor(logs)
        local.update_parameters(timeout_min=job.time_min, tasks_per_node=max(gpus, 1), gpus_per_node=gpus or None)
        made = [local.submit(call) for call in calls]
        for each, args in zip(made, commands, strict=True):
            record(folder, each.job_id, args, [f"{each.job_id}_*_log.*"])
        for each in made if list(after) == ["wait"] else []:
            each.wait()
        return [each.job_id for each in made]
    slurm = _slurm_executor(logs, launched or commands[0])
    try:
        slurm.update_parameters(**parameters(job, name, after, gpus, whatever), array_parallelism=len(calls))
        if len(calls) == 1:
            made = [slurm.submit(calls[0])]
        else:
            with slurm.batch():
                made = [slurm.submit(call) for call in calls]
    except (FailedJobError, subprocess.CalledProcessError) as error:
        raise UserError(_why_not(job, str(error), gpus)) from None
    for each, args in zip(made, commands, strict=True):
        record(folder, each.job_id, args, [f"{each.job_id}_0_log.out"])
    return [each.job_id for each in made]


def _slurm_executor(folder: Path, command: list[str]) -> Any:
    from submitit import SlurmExecutor

    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("no sbatch on the PATH here: submit on a login node of the cluster, or use --cluster local")
    return SlurmExecutor(folder, python=_launched(command))


def _launched(command: list[str]) -> str:
    """The batch script's command: launch.sh, told what it starts and, behind --, how submitit wants it started."""
    if not LAUNCH.exists():
        raise UserError(f"{LAUNCH} is missing; jobs are submitted from a checkout (pip install -e .)")
    # exec: the batch shell, which gets the warning signal, becomes launch.sh, which traps it
    return f"exec {shlex.join([str(LAUNCH), *command])} -- {shlex.quote(sys.executable)}"


def _why_not(job: JobConfig, error: str, gpus: int) -> str:
    """sbatch's refusal in a line, with what there is instead."""
    said = next((line for line in error.splitlines() if "error:" in line), error.strip().splitlines()[-1])
    said = said.partition("error:")[2].strip() or said
    listed = subprocess.run(["sinfo", "-h", "-o", "%R: %D nodes, %c cores, %G"], capture_output=True, text=True, check=False)
    there = "; ".join(sorted(set(listed.stdout.split("\n")) - {""})) or "unknown"
    if listed.returncode:
        raise UserError(f"no Slurm answers here ({said}): submit on a login node of the cluster, or use --cluster local")
    wanted = f"--nodes {job.nodes} --gpus-per-node {gpus} --cpus {job.cpus}" + (
        f" --partition {job.partition}" if job.partition else ""
    )
    return f"sbatch refused {wanted}: {said} (partitions here: {there})"


def dry_run(job: JobConfig, folder: Path, commands: list[list[str]], after: Sequence[str] = (), gpus: int = 0) -> str:
    """The text that would be given to sbatch, without submitting; works without Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    logs = folder / "jobs"
    line = f"{_launched(commands[0])} -u -m submitit.core._submit {shlex.quote(str(logs))}"
    array: dict[str, Any] = {"map_count": len(commands), "array_parallelism": len(commands)} if len(commands) > 1 else {}
    return str(_make_sbatch_string(line, logs, **parameters(job, f"fer-{commands[0][0]}", after, gpus), **array))


def layout(job: JobConfig, config: Config | None, gpus: int) -> str:
    """A line on how many processes there will be and what each gets; a UserError where that cannot work."""
    nodes = job.nodes if gpus else 1
    ranks = nodes * max(gpus, 1)
    words = f"{nodes} node(s) x {max(gpus, 1)} task(s) = {ranks} ranks, {job.cpus} core(s) each, {gpus} GPU(s) a node"
    if isinstance(config, TrainConfig | GanConfig):
        check_divides(config.batch_size, ranks, config.accumulate if isinstance(config, TrainConfig) else 1)
        words += f"; batch {config.batch_size} = {ranks} x {config.batch_size // ranks}"
    return f"{words}; {job.time_min} min, signal {job.signal_lead_s} s before"


def pipeline(
    job: JobConfig, study: PipelineConfig, preset: str, train_args: list[str], configure: Callable[[str, list[str]], Config]
) -> Iterator[str]:
    """Submit the stages of a study, each waiting for the one before; gives a line on each."""
    out, shards = study.out.absolute(), study.out.absolute() / "shards"
    size, channels = (224, 3) if preset == "resnet_improved" else (48, 1)
    make = ["--source", study.source, "--out", str(shards), "--size", str(study.size or size),
            "--channels", str(study.channels or channels), "--tasks", str(study.tasks)]  # fmt: skip
    make += ["--input", str(study.input.absolute())] if study.input else ["--count", str(study.count)]
    runs = [out / "runs" / f"{preset}-seed{seed}" for seed in study.seeds]
    trains = [["train", preset, "--data", str(shards), "--run", str(run), "--seed", str(seed), *train_args]
              for run, seed in zip(runs, study.seeds, strict=True)]  # fmt: skip

    def stage(folder: Path, commands: list[list[str]], after: list[str], gpus: int = 0, known: bool = False) -> list[str]:
        config = configure(commands[0][0], commands[0][1:])
        lines.append(f"{folder}: {layout(job, config, gpus)}")
        if job.dry_run:
            lines.append(dry_run(job, folder, commands, after, gpus))
            return [f"JOB-OF-{commands[0][0].upper()}-{folder.name}"]
        ids = submit(job, folder, commands, config if known else None, after, gpus)
        lines.append(f"  job {', '.join(ids)}" + (f", after {', '.join(after)}" if after and after != ["wait"] else ""))
        return ids if job.cluster == "slurm" else []

    lines: list[str] = []
    wait = [] if job.cluster == "slurm" else ["wait"]  # elsewhere each stage is waited for
    made = stage(shards, [["preprocess", *make, "--task", str(i)] for i in range(study.tasks)], wait, known=True)
    made = list(dict.fromkeys(each.partition("_")[0] for each in made))  # all tasks of the array
    scored: list[str] = []
    for run, command in zip(runs, trains, strict=True):
        trained = stage(run, [command], made or wait, job.gpus_per_node)
        scored += stage(run, [["evaluate", str(run), "--split", study.eval_split]], trained or wait, min(job.gpus_per_node, 1))
    report = ["report", str(out / "runs"), "--out", str(out / "report")]
    stage(out / "report", [report], scored or wait)
    yield from lines
    yield f"page: {out / 'report' / 'index.html'}    fer-hpc status {out}    fer-hpc cancel {out}"


def sweep(job: JobConfig, config: SweepConfig, preset: str, base: TrainConfig, args: list[str]) -> Iterator[str]:
    """Submit a sweep's unfinished trials as one array, and a job after it that writes the tables; gives a line on each."""
    from fer_hpc.sweep import grid, prepare, state_of

    if config.scheduler != "fifo":
        raise UserError(f"--scheduler {config.scheduler} decides while trials run, which an array cannot; use fer_hpc.tune")
    trials = grid(config, base)
    for trial in trials:
        layout(job, trial.config, job.gpus_per_node)
    todo = [trial for trial in trials if state_of(config.out, trial.name)[0] != "finished"]
    own = {"batch_size", "lr", "seed", "run", "data"}
    flags = [said_flag for name, value in changed_from(preset, base).items() if name not in own
             for said_flag in said(name, value).split(" ", 1)]  # fmt: skip
    commands = [
        ["train", preset, "--data", str(t.config.data), "--run", str(t.config.run), "--batch-size", str(t.config.batch_size),
         "--lr", str(t.config.lr), "--seed", str(t.config.seed), *flags]
        for t in todo
    ]  # fmt: skip
    out = config.out.absolute()
    yield f"{out}: {len(trials)} trials, {len(trials) - len(todo)} finished; {layout(job, trials[0].config, job.gpus_per_node)}"
    tables = ["tune", *args, "--collect"]
    if job.dry_run:
        if commands:
            yield dry_run(job, out, commands, gpus=job.gpus_per_node)
        return
    prepare(config, preset, trials)
    made: list[str] = []
    if commands:
        listed = out / "jobs" / f"array-{time.time_ns()}.json"
        listed.parent.mkdir(exist_ok=True)
        rundir.write_json(listed, [t.name for t in todo])
        launched = ["trial", str(out), str(listed)]
        made = submit(
            job, out, commands, todo[0].config, ["wait"] if job.cluster == "local" else (), job.gpus_per_node, launched
        )
        yield f"  job {', '.join(made)}"
    array = list(dict.fromkeys(each.partition("_")[0] for each in made)) if job.cluster == "slurm" else []
    ids = submit(job, out, [tables], None, array or (["wait"] if job.cluster == "local" else ()), 0, whatever=True)
    yield f"  job {', '.join(ids)}, the tables" + (f", after {', '.join(array)}" if array else "")
    yield f"fer-hpc status {out}    fer-hpc cancel {out}    results {out / 'summary.json'}"


# ---- what became of it -----------------------------------------------------------------------------------------------


def job_states(jobs: list[str]) -> dict[str, tuple[str, str]]:
    """(state, reason) of Slurm's jobs: one call of squeue for what lives, one of sacct for the rest; {} without Slurm."""
    found: dict[str, tuple[str, str]] = {}
    for line in _lines("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r", *(["-j", ",".join(jobs)] if jobs else [])):
        name, state, reason = line.split("|", 2)
        found[name] = state, "" if reason == "None" else reason
    rest = [job for job in jobs if job not in found]
    if rest:
        for line in _lines("sacct", "-X", "-n", "-P", "-D", "-o", "JobID,State,ExitCode", "-j", ",".join(rest)):
            name, state, code = line.split("|", 2)
            found[name] = state.split()[0], "" if code == "0:0" else f"exit code {code.partition(':')[0]}"
    return found


def _lines(*command: str) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if "|" in line]


def status(paths: tuple[Path, ...]) -> list[dict[str, Any]]:
    """A row for every run and every other folder with jobs below `paths`, and one for each waiting job of no folder yet."""
    folders = _folders(paths)
    noted = {folder: [entry["job"] for entry in records(folder)] for folder in folders}
    states = job_states([job for jobs in noted.values() for job in jobs if not job.startswith("local")])
    rows = []
    for folder in folders:
        row: dict[str, Any] = {"folder": str(folder), "state": "waiting", "epoch": "", "val_accuracy": None, "why": ""}
        stored = rundir.read_json(folder / "config.json")
        if stored:
            state, history = rundir.status(folder), rundir.rows(folder)
            row |= {"state": state["state"], "why": state["why"]}
            row["epoch"] = f"{history[-1]['epoch'] if history else 0} of {stored['science']['epochs']}"
            row["val_accuracy"] = max((r["val_accuracy"] for r in history if "val_accuracy" in r), default=None)
        row["jobs"] = [{"job": job, "state": states.get(job, ("", ""))[0], "reason": states.get(job, ("", ""))[1]}
                       for job in noted[folder]]  # fmt: skip
        if not stored and row["jobs"]:
            last = row["jobs"][-1]
            there = (folder / "manifest.json").exists()
            row["state"] = "finished" if there else last["state"].lower() or "unknown"
            row["why"] = last["reason"]
        rows.append(row)
    known = {job for jobs in noted.values() for job in jobs}
    for line in _lines("squeue", "-h", "-r", "--me", "-t", "PENDING", "-o", "%i|%j|%r"):
        job, name, reason = line.split("|", 2)
        if name.startswith("fer-") and job not in known:
            rows.append({"folder": name, "state": "waiting", "epoch": "", "val_accuracy": None, "why": reason,
                         "jobs": [{"job": job, "state": "PENDING", "reason": reason}]})  # fmt: skip
    return rows


def _folders(paths: tuple[Path, ...]) -> list[Path]:
    """Run folders and other folders with job records, among `paths` and below."""
    found: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give run folders or folders of them, or set FER_RUNS")
        for pattern in ("config.json", "*/config.json", "*/*/config.json"):
            found |= {p.parent for p in path.glob(pattern)}
        for pattern in ("jobs", "*/jobs", "*/*/jobs"):
            found |= {p.parent for p in path.glob(pattern) if any(p.glob("[0-9]*.json"))}
    return sorted(found)


def in_words(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no run and no job"
    width = max(len(row["folder"]) for row in rows)
    lines = []
    for row in rows:
        best = "" if row["val_accuracy"] is None else f"best val {row['val_accuracy']:.4f}"
        last = row["jobs"][-1] if row["jobs"] else None
        job = f"job {last['job']} {last['state'].lower()}".rstrip() if last else ""
        lines.append(f"{row['folder']:<{width}}  {row['state']:<11} {row['epoch']:>10}  {best:<15}  {job:<22} {row['why']}")
    return "\n".join(line.rstrip() for line in lines)


def follow_logs(config: LogsConfig) -> Iterator[str]:
    """The last lines of every rank's log of a folder's newest job; with --follow, what they get from then on."""
    if not config.run.is_dir():
        raise UserError(f"{config.run}: no such folder; give a run folder")
    found = records(config.run)
    if not found:
        raise UserError(f"{config.run}: no job has worked on it (it was started by hand)")
    newest = found[-1]
    places: dict[Path, int] = {}
    while True:
        for path in sorted({*(p for job in newest["logs"] for p in (config.run / "logs").glob(f"{job}-*.log")),
                            *(p for pattern in newest["logs"] for p in (config.run / "jobs").glob(pattern))}):  # fmt: skip
            with path.open(errors="replace") as f:
                if path not in places:
                    lines = f.read().splitlines()[-config.lines :]
                else:
                    f.seek(places[path])
                    lines = f.read().splitlines()
                places[path] = f.tell()
            yield from (f"{path.name}: {line}" for line in lines)
        if not config.follow:
            if not places:
                yield f"job {newest['job']} has written no log yet"
            return
        time.sleep(1.0)


def cancel(paths: tuple[Path, ...]) -> list[str]:
    """End every living job noted in the folders; gives a line for each."""
    jobs = [entry["job"] for folder in _folders(paths) for entry in records(folder)]
    states = job_states([job for job in jobs if job.replace("_", "").isdigit()])
    alive = [job for job in dict.fromkeys(jobs) if job in states and states[job][0] not in ENDED]
    if alive:
        done = subprocess.run(["scancel", *alive], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"scancel: {done.stderr.strip()}")
    return [f"cancelled job {job} ({states[job][0].lower()})" for job in alive] or ["no living job there"]


def to_json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=1)
