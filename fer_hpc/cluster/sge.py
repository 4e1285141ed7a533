"""Grid Engine (qsub): its programs, options and states.

It starts a job again where that ends with code 99, does not count the starts, and grants a number
of GPUs without choosing them; slurm/launch.sh does that.
"""

from __future__ import annotations

import functools
import html
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fer_hpc.cluster.programs import size_in_bytes
from fer_hpc.cluster.scheduler import Allocation, ArrayTask, JobState, Request, Usage
from fer_hpc.cluster.sge_output import (
    accounting,
    end_state,
    job_elements,
    listed_states,
    number_in,
    parse_xml,
    task_start,
)
from fer_hpc.config import UserError
from fer_hpc.parallel.process import output_of

GPU_NAMES = ("gpus", "gpu", "ngpus")  # what sites call the resource
HARD_AFTER_SOFT_S = 180  # Grid Engine waits 90 s between the warning and the end


class GridEngine:
    """See `Scheduler`. A task of an array is JOB.TASK."""

    name = "sge"

    # ---- in a job --------------------------------------------------------------------------------

    def allocation(self, facts: str) -> Allocation:
        """From `qstat -j ID -xml`, and `qstat -xml` behind it: only this one names a deletion."""
        env = os.environ
        number, task = env["JOB_ID"], env.get("SGE_TASK_ID", "undefined")
        details, end, listed = facts.partition("</detailed_job_info>")
        element = job_elements(details + end).get(number)
        if element is None:
            raise UserError(f"Grid Engine does not show job {number}")
        array = None
        if task.isdecimal():
            first, last, step = (
                int(env[f"SGE_TASK_{name}"]) for name in ("FIRST", "LAST", "STEPSIZE")
            )
            place = (int(task) - first) // step
            array = ArrayTask(number, int(task), (last - first) // step + 1, place)
        asked = {
            request.findtext("CE_name", ""): float(request.findtext("CE_doubleval", "0"))
            for request in element.iterfind("JB_hard_resource_list/qstat_l_requests")
        }
        start = task_start(element, task)
        limit = min(asked.get("s_rt", math.inf), asked.get("h_rt", math.inf))
        gpus = next((int(asked[name]) for name in GPU_NAMES if name in asked), 0)
        name = f"{number}.{task}" if array else number
        return Allocation(
            scheduler=self.name,
            cluster=self.cluster(),
            id=name,
            name=name,
            job_name=element.findtext("JB_job_name", ""),
            restarts=1 if env.get("RESTARTED") == "1" else 0,
            submitted=float(element.findtext("JB_submission_time", "0")),
            running=listed_states(listed.strip()).get(name, JobState("")).state != "ENDING",
            end=(start or time.time()) + limit,
            batch=env.get("REQUEST") not in ("QLOGIN", "QRSH", "QRLOGIN"),
            nodes=((socket.gethostname(), gpus),),
            array=array,
        )

    def environment(self, allocation: Allocation) -> list[str]:
        return []

    def requeue_command(self, allocation: Allocation) -> list[str]:
        return []

    # ---- submitting ------------------------------------------------------------------------------

    def check_installed(self) -> None:
        if shutil.which("qsub") is None:
            raise UserError(
                "no qsub on the PATH here: submit on a login node of the cluster, "
                "or use --cluster slurm or --cluster local"
            )

    def cluster(self) -> str:
        """Cell and host of the master: what tells two clusters apart."""
        root, cell = os.environ.get("SGE_ROOT", ""), os.environ.get("SGE_CELL", "default")
        master = Path(root, cell, "common", "act_qmaster")
        return f"{cell}@{master.read_text().strip()}" if root and master.exists() else ""

    def submit(self, request: Request) -> list[str]:
        self.check_installed()
        folder = request.folder.absolute() / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / f"submitted-{time.time_ns()}.sh"
        script.write_text(self.script(request))
        call = ["qsub", "-terse", *_options(request), str(script)]
        # Logs are NAME.oJOB in the job's folder, because -o takes no path with a comma or a colon.
        done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=folder)
        number = done.stdout.strip().partition(".")[0]
        if done.returncode or not number.isdecimal():
            lines = [line for line in done.stderr.splitlines() if line and line != "Exiting."]
            script.unlink()
            raise UserError(
                f"qsub refused {shlex.join(_options(request))}: {' '.join(lines) or 'no answer'}"
            )
        count = len(request.commands)
        return [number] if count == 1 else [f"{number}.{task + 1}" for task in range(count)]

    def script(self, request: Request) -> str:
        launch = shlex.join([str(request.launch), *request.launch_args])
        after = request.after if request.dependency_type == "afterok" else ()
        options = "".join(f"# {line}\n" for line in _shown(_options(request)))
        return (
            "#!/usr/bin/env bash\n"
            f"# submitted with these options of qsub:\n{options}\n"
            "trap 'fer_signal=$((${fer_signal:-0} + 1))' USR1 USR2 TERM  # kept for launch.sh\n"
            f"cd -- {shlex.quote(str(Path.cwd()))} || exit 2\n"
            f"export FER_SUBMIT_PYTHON={shlex.quote(sys.executable)}\n"
            f"export FER_AFTER={shlex.quote(' '.join(after))}\n"
            f"fer_kept={shlex.quote(str(request.code))}\n"
            f". {launch}\n"
        )

    def dependency(self, jobs: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(job.partition(".")[0] for job in jobs))

    # ---- jobs that were submitted ----------------------------------------------------------------

    def states(self, jobs: Sequence[str]) -> dict[str, JobState]:
        """One call of qstat for the living jobs, and one of qacct for each of the others.

        The number of an array stands for all of its tasks: alive while one is, then failed if one
        has. No state is known while the master is away.
        """
        printed = output_of("qstat", "-u", "*", "-xml") if jobs else ""
        if parse_xml(printed) is None:
            if jobs and shutil.which("qstat"):
                print("fer-hpc: qstat does not answer: no job's state is known", file=sys.stderr)
            return {}
        listed, ended = listed_states(printed), dict[str, dict[str, list[dict[str, str]]]]()
        living: dict[str, list[JobState]] = {}  # by JOB.TASK, and all tasks by JOB
        for name, state in listed.items():
            for key in {name, name.partition(".")[0]}:
                living.setdefault(key, []).append(state)
        states: dict[str, JobState] = {}
        message_of = functools.cache(_message_of)  # an array has one
        for job in jobs:
            number, _, task = job.partition(".")
            parts = list(living.get(job, ()))
            if not parts:
                if number not in ended:
                    ended[number] = accounting(number)
                tasks = [task] if task else list(ended[number])
                parts += [end_state(ended[number][t][-1]) for t in tasks if t in ended[number]]
            if parts:
                parts.sort(key=lambda part: (not part.alive, part.state == "COMPLETED"))
                states[job] = parts[0]
                if parts[0].state == "ERROR" and (message := message_of(number)):
                    states[job] = replace(parts[0], reason=message)
        return states

    def waiting(self) -> list[tuple[str, JobState]]:
        listed = listed_states(output_of("qstat", "-s", "p", "-xml"))
        return list(listed.items())

    def usage(self, jobs: Sequence[str]) -> Usage | None:
        elapsed = cpu = cores = gpu_s = memory = 0.0
        wanted = set(jobs)
        for number in dict.fromkeys(job.partition(".")[0] for job in jobs):
            for task, blocks in accounting(number).items():
                if not {f"{number}.{task}", number} & wanted:
                    continue
                for block in blocks:
                    seconds, slots = (
                        number_in(block, "ru_wallclock"),
                        number_in(block, "slots") or 1,
                    )
                    elapsed, cores = elapsed + seconds, cores + seconds * slots
                    cpu += number_in(block, "cpu")
                    # maxvmem counts reserved addresses; ru_maxrss is in KB, printed as if bytes.
                    memory = max(memory, size_in_bytes(block.get("ru_maxrss", "")) * 1024 / 1e9)
                    asked = re.search(r"\bn?gpus?=(\d+)", block.get("category", ""))
                    gpu_s += seconds * (int(asked[1]) if asked else 0)
        if not elapsed:
            return None
        return Usage(elapsed, gpu_s / 3600, cpu / cores if cores else None, memory or None)

    def cancel(self, jobs: Sequence[str]) -> None:
        done = subprocess.run(["qdel", *jobs], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"qdel: {(done.stderr or done.stdout).strip()}")


# ---- what qsub is given --------------------------------------------------------------------------


def _options(request: Request) -> list[str]:
    """qsub's options; the user's own come last."""
    job, gpus = request.job, request.gpus
    if job.nodes > 1:
        raise UserError(
            f"--nodes {job.nodes} with --cluster sge: a job has the GPUs of one host; "
            "use --gpus-per-node"
        )
    for name, value in (("mem", job.mem), ("qos", job.qos), ("sbatch", job.sbatch)):
        if value:
            raise UserError(
                f"--{name} with --cluster sge: give the site's own option, as --qsub l=h_vmem=8G "
                "(for each core)"
            )
    slots = max(gpus, 1) * job.cpus
    options = [
        "-N",
        request.name,
        "-S",
        "/bin/bash",
        "-cwd",
        "-j",
        "y",
        "-r",
        "y",
        "-notify",
        "-w",
        "e",
    ]
    # s_rt warns. A job that ends after h_rt is not run again, whatever its exit code.
    limit_s = job.time_min * 60
    options += ["-l", f"h_rt={limit_s},s_rt={limit_s - warning_lead_s(job.time_min)}"]
    if gpus:
        options += ["-l", f"{job.sge_gpus}={gpus}"]
    if slots > 1:
        options += ["-pe", job.sge_pe, str(slots)]
    for flag, value in (("-q", job.partition), ("-P", job.account)):
        options += [flag, value] if value else []
    if request.after or request.also_after:
        options += ["-hold_jid", ",".join((*request.after, *request.also_after))]
    if len(request.commands) > 1:
        options += ["-t", f"1-{len(request.commands)}"]
    for option in job.qsub:
        name, _, value = option.partition("=")
        options += [f"-{name.lstrip('-')}", *([value] if value else [])]
    return options


def warning_lead_s(time_min: int) -> int:
    """Seconds before a limit at which Grid Engine sends USR1."""
    return min(HARD_AFTER_SOFT_S, time_min * 30)


def _shown(options: list[str]) -> Iterable[str]:
    line = ""
    for option in options:
        if option.startswith("-") and line:
            yield line
            line = ""
        line += f" {shlex.quote(option)}" if line else option
    yield line


def _message_of(number: str) -> str:
    """Grid Engine's message where a job could not be started; "" where there is none."""
    message = re.search(
        r"<QIM_message>(.*?)</QIM_message>", output_of("qstat", "-j", number, "-xml")
    )
    return f"{html.unescape(message[1])} (qmod -cj {number}, or qdel)" if message else ""
