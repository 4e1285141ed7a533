"""Slurm: its programs, options and states. The only user of submitit.

submitit writes and submits the batch script; the job is slurm/launch.sh, which starts the ranks,
forwards signals and requeues it. The function that submitit stores beside it is not called.
"""

from __future__ import annotations

import functools
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from fer_hpc.cluster.programs import number_of, size_in_bytes
from fer_hpc.cluster.scheduler import Allocation, ArrayTask, JobState, Request, Usage
from fer_hpc.config import UserError, unknown_name_error
from fer_hpc.parallel.job import expand_hosts
from fer_hpc.parallel.process import output_of

ENDED = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL",
    "DEADLINE", "REVOKED",
}  # fmt: skip
OWN_OPTIONS = {"array", "dependency", "output", "error", "requeue", "signal", "wrap", "export"}


class Slurm:
    """See `Scheduler`."""

    name = "slurm"

    # ---- in a job --------------------------------------------------------------------------------

    def allocation(self, facts: str) -> Allocation:
        """From `scontrol show job -d ID`, which shows every task of an array."""
        own = os.environ["SLURM_JOB_ID"]
        for record in re.split(r"\n(?=JobId=)", facts.strip()):
            fields = dict(re.findall(r"(?:^|\s)([A-Za-z/:]+)=(\S*)", record))
            if fields.get("JobId") == own:
                return self._allocation(own, fields, record)
        raise UserError(f"Slurm does not show job {own}: {facts.strip()[:200] or 'no answer'}")

    def _allocation(self, own: str, fields: dict[str, str], record: str) -> Allocation:
        array = None
        try:
            if "ArrayJobId" in fields:
                array = _array_task(fields["ArrayJobId"], fields["ArrayTaskId"])
            return Allocation(
                scheduler=self.name,
                cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
                id=own,
                name=f"{array.array}_{array.index}" if array else own,
                job_name=fields.get("JobName", ""),
                restarts=int(fields.get("Restarts", 0)),
                submitted=_seconds(fields.get("SubmitTime", "")),
                running=fields.get("JobState") == "RUNNING",
                end=_seconds(fields.get("EndTime", "")) or math.inf,
                batch=fields.get("BatchFlag", "1") != "0",
                nodes=_nodes(record, fields.get("NodeList", "")),
                asked_gpus=max(_gpu_counts(fields.get("TresPerNode", "")), default=0),
                tasks=int(fields.get("NumTasks", 1)),
                array=array,
            )
        except (ValueError, LookupError, OverflowError) as error:
            raise UserError(
                f"Slurm's answer about job {own} cannot be read ({error}): {record.strip()[:200]}"
            ) from None

    def environment(self, allocation: Allocation) -> list[str]:
        """srun would refuse cores for each GPU without GPUs, and does not read the job's cores for
        each task by itself."""
        names = ("SLURM_CPUS_PER_GPU", "SLURM_MEM_PER_GPU", "SLURM_GPUS")
        lines = [] if any(n for _, n in allocation.nodes) else [f"unset {name}" for name in names]
        cores = os.environ.get("SLURM_CPUS_PER_TASK", "")
        return [*lines, f"export SRUN_CPUS_PER_TASK={cores}"] if cores.isdecimal() else lines

    def requeue_command(self, allocation: Allocation) -> list[str]:
        return ["scontrol", "requeue", allocation.name]

    # ---- submitting ------------------------------------------------------------------------------

    def check_installed(self) -> None:
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UserError(
                "no sbatch on the PATH here: submit on a login node of the cluster, "
                "or use --cluster sge or --cluster local"
            )

    def cluster(self) -> str:
        config = output_of("scontrol", "show", "config")
        match = re.search(r"^ClusterName\s*=\s*(\S+)", config, re.MULTILINE)
        return match[1] if match else ""

    def submit(self, request: Request) -> list[str]:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError

        self.check_installed()
        _check_options(request.job.sbatch)
        logs = request.folder / "jobs"
        executor = SlurmExecutor(logs, python=_batch_command(request))
        try:
            executor.update_parameters(
                **_parameters(request), array_parallelism=len(request.commands)
            )
            if len(request.commands) == 1:
                return [str(executor.submit(print, request.name).job_id)]
            with executor.batch():
                jobs = [executor.submit(print, request.name) for _ in request.commands]
            return [str(job.job_id) for job in jobs]
        except (FailedJobError, subprocess.CalledProcessError) as error:
            raise _refusal_error(request, str(error)) from None

    def script(self, request: Request) -> str:
        from submitit.slurm.slurm import _make_sbatch_string

        logs = request.folder / "jobs"
        program = f"-u -m submitit.core._submit {shlex.quote(str(logs))}"
        parameters = _parameters(request)
        if (count := len(request.commands)) > 1:
            parameters |= {"map_count": count, "array_parallelism": count}
        line = f"{_batch_command(request)} {program}"
        return str(_make_sbatch_string(line, logs, **parameters))

    def dependency(self, jobs: Sequence[str]) -> list[str]:
        """The array numbers of array tasks: 12 for 12_0, 12_1, ...; it means all tasks."""
        return list(dict.fromkeys(job.partition("_")[0] for job in jobs))

    # ---- jobs that were submitted ----------------------------------------------------------------

    def states(self, jobs: Sequence[str]) -> dict[str, JobState]:
        """One call of squeue for the living jobs and one of sacct for the others.

        They are asked for whole arrays: the kernel refuses an argument of 10,000 tasks.
        """
        states: dict[str, JobState] = {}
        if not jobs:
            return states
        fields = ("-o", "%i|%T|%r|%V|%j", "-j", ",".join(self.dependency(jobs)))
        for cells in _lines(output_of("squeue", "-h", "-r", "-t", "all", *fields), 5):
            job, state = _queued(cells)
            states[job] = state
        others = [job for job in jobs if job not in states]
        if others:
            arrays = ",".join(self.dependency(others))
            fields = ("-o", "JobID,State,ExitCode,Submit,JobName", "-j", arrays)
            for cells in _lines(output_of("sacct", "-X", "-n", "-P", *fields), 5):
                job, state_name, code, submitted, job_name = cells
                word = (state_name.split() or [""])[0]
                reason, alive = _exit_in_words(code), word not in ENDED
                job_state = JobState(word, reason, alive, _seconds(submitted), job_name)
                states.setdefault(job, job_state)  # squeue knows better
        return states

    def waiting(self) -> list[tuple[str, JobState]]:
        fields = ("-o", "%i|%T|%r|%V|%j")
        lines = output_of("squeue", "-h", "-r", "--me", "-t", "PENDING", *fields)
        return [_queued(cells) for cells in _lines(lines, 5)]

    def usage(self, jobs: Sequence[str]) -> Usage | None:
        """From sacct, over all starts (-D)."""
        fields = "JobIDRaw,ElapsedRaw,AllocCPUS,TotalCPU,MaxRSS,AllocTRES"
        output = output_of("sacct", "-n", "-P", "-D", "-o", fields, "-j", ",".join(jobs))
        elapsed = cores = cpu = gpu_s = memory = 0.0
        for job, elapsed_s, alloc_cpus, total_cpu, max_rss, tres in _lines(output, 6):
            memory = max(memory, size_in_bytes(max_rss) / 1e9)
            if "." in job:
                continue
            gpus = re.search(r"gres/gpu=(\d+)", tres)
            elapsed += number_of(elapsed_s)
            cores += number_of(elapsed_s) * number_of(alloc_cpus)
            cpu += _duration(total_cpu)
            gpu_s += number_of(elapsed_s) * (number_of(gpus[1]) if gpus else 0)
        if not elapsed:
            return None
        return Usage(elapsed, gpu_s / 3600, cpu / cores if cores else None, memory or None)

    def cancel(self, jobs: Sequence[str]) -> None:
        done = subprocess.run(["scancel", *jobs], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"scancel: {done.stderr.strip()}")


# ---- what Slurm prints ---------------------------------------------------------------------------


def _nodes(record: str, node_list: str) -> tuple[tuple[str, int], ...]:
    """(host, GPUs) of each node, from the lines `Nodes=n[1-2] CPU_IDs=0 Mem=200 GRES=gpu:2(...)`.

    Several kinds of GPUs on a node add up.
    """
    gpus = dict.fromkeys(expand_hosts(node_list), 0)
    for names, gres in re.findall(r"^\s*Nodes=(\S+) CPU_IDs=\S* Mem=\S* GRES=(\S*)", record, re.M):
        count = sum(_gpu_counts(gres))
        gpus |= dict.fromkeys(expand_hosts(names), count)
    return tuple(gpus.items())


def _gpu_counts(gres: str) -> list[int]:
    """The numbers in gpu:h100:2,gpu:1."""
    return [int(count) for count in re.findall(r"gpu(?::[^:(,]+)?:(\d+)", gres)]


def _node_count(request: Request) -> int | str:
    """--nodes of a job; with --elastic from one up to the wanted number, whichever are there."""
    nodes = request.job.nodes if request.gpus else 1
    elastic = all("--elastic" in command for command in request.commands)
    return f"1-{nodes}" if elastic and nodes > 1 else nodes


def _array_task(array: str, index: str) -> ArrayTask:
    """With the numbers that Slurm sets for every task of an array."""
    first, last, count, step = (
        # Without them, after the start: only the names of job and task are of use then.
        int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", 1))
        for name in ("MIN", "MAX", "COUNT", "STEP")
    )
    regular = last - first == step * (count - 1)
    position = (int(index) - first) // step if regular else None
    return ArrayTask(array, int(index), count, position)


def _queued(cells: list[str]) -> tuple[str, JobState]:
    job, state, reason, submitted, name = cells
    why = "" if reason == "None" else reason
    return job, JobState(state, why, state not in ENDED, _seconds(submitted), name)


def _exit_in_words(code: str) -> str:
    """sacct's CODE:SIGNAL."""
    number, _, signal_number = code.partition(":")
    if signal_number not in ("", "0"):
        return f"ended by signal {signal_number}"
    return "" if number == "0" else f"exit code {number}"


def _seconds(text: str) -> float:
    """Seconds since 1970 of Slurm's local time; 0 where it names none."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return 0.0


def _duration(text: str) -> float:
    """Seconds of [D-][HH:]MM:SS[.mmm]."""
    days, _, clock = text.rpartition("-")
    parts = [number_of(part) for part in clock.split(":")[:3]]
    return number_of(days) * 86_400 + functools.reduce(lambda total, part: total * 60 + part, parts)


def _lines(output: str, count: int) -> list[list[str]]:
    """The lines of `count` cells; what else a program prints is left out."""
    rows = [line.split("|", count - 1) for line in output.splitlines()]
    return [cells for cells in rows if len(cells) == count]


# ---- what sbatch is given ------------------------------------------------------------------------


def _log_pattern(request: Request) -> str:
    """The job's log; Slurm replaces nothing in the folder's name."""
    folder = request.folder.absolute() / "jobs"
    if match := re.search("%[jtAa]", str(folder)):
        raise UserError(
            f"{request.folder}: {match[0]} in the name of a folder means a job's number to "
            "submitit; choose another name"
        )
    job = "%A_%a" if len(request.commands) > 1 else "%j"
    return f"{str(folder).replace('%', '%%')}/{job}_0_log.out"


def _batch_command(request: Request) -> str:
    """The batch script's command: launch.sh and its arguments; submitit adds what is not run."""
    launch = shlex.join([str(request.launch), *request.launch_args])
    return f". {launch} --"


def _parameters(request: Request) -> dict[str, Any]:
    """submitit's parameters. The user's own sbatch options come last and win."""
    job, gpus = request.job, request.gpus
    more: dict[str, Any] = {"signal": f"B:USR1@{job.signal_lead_s}", "requeue": True}
    more["output"] = _log_pattern(request)
    conditions = ((request.dependency_type, request.after), ("afterany", request.also_after))
    waits = ",".join(f"{kind}:{':'.join(jobs)}" for kind, jobs in conditions if jobs)
    if waits:
        more["dependency"] = waits
        more["kill-on-invalid-dep"] = "yes"
    options = dict(option.partition("=")[::2] for option in job.sbatch)
    if gpus and not any("gpus" in name or name == "gres" for name in options):
        more["gres"] = f"gpu:{gpus}"
    if gpus:
        more["cpus-per-gpu"] = job.cpus
    parameters: dict[str, Any] = {
        "job_name": request.name,
        "time": job.time_min,
        "nodes": _node_count(request),
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "mem": job.mem or None,
        "cpus_per_task": None if gpus else job.cpus,
        "setup": [
            "trap 'fer_signal=$((${fer_signal:-0} + 1))' USR1 USR2 TERM  # kept for launch.sh",
            f"export FER_SUBMIT_PYTHON={shlex.quote(sys.executable)}",
            f"fer_kept={shlex.quote(str(request.code))}",
        ],
        "use_srun": False,
        "stderr_to_stdout": True,
        "additional_parameters": more | {k: v if v else True for k, v in options.items()},
    }
    return {key: value for key, value in parameters.items() if value is not None}


def _check_options(options: tuple[str, ...]) -> None:
    """A UserError for an option that sbatch does not have, or that this program sets."""
    known = set(re.findall(r"--([a-z][a-z-]+)", output_of("sbatch", "--help")))
    for option in options:
        name = option.partition("=")[0]
        if name in OWN_OPTIONS:
            raise UserError(f"--sbatch {option}: fer_hpc sets --{name} by itself; leave it out")
        if known and name not in known:
            raise unknown_name_error("sbatch option", name, sorted(known))


def _refusal_error(request: Request, error: str) -> UserError:
    """The error for sbatch's refusal `error`: its reason, and which partitions there are."""
    lines = error.strip().splitlines()
    reason = next((line for line in lines if "error:" in line), lines[-1])
    reason = reason.partition("error:")[2].strip() or reason
    job = request.job
    command = ["sinfo", "-h", "-o", "%R: %D nodes, %c cores, %G"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        return UserError(
            f"no Slurm answers here ({reason}): submit on a login node of the cluster, "
            "or use --cluster local"
        )
    partitions = "; ".join(sorted(set(listed.stdout.split("\n")) - {""})) or "unknown"
    wanted = f"--nodes {job.nodes} --gpus-per-node {request.gpus} --cpus {job.cpus}"
    if job.partition:
        wanted += f" --partition {job.partition}"
    return UserError(f"sbatch refused {wanted}: {reason} (partitions here: {partitions})")
