"""Grid Engine (qsub): its programs, options and states.

It starts a job again where that ends with code 99, does not count the starts, and grants a number
of GPUs without choosing them; slurm/launch.sh does that.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

from fer_hpc.cluster.programs import output_of, size_in_bytes
from fer_hpc.cluster.scheduler import Allocation, ArrayTask, JobState, Request, Usage
from fer_hpc.config import UserError

GPU_NAMES = ("gpus", "gpu", "ngpus")  # what sites call the resource
PARALLEL_ENVIRONMENT = "omp"  # several cores of one host
HARD_AFTER_SOFT_S = 180  # Grid Engine waits 90 s between the warning and the end
KILLED = {"25": "started again", "30": "application error", "37": "time or memory limit"}


class GridEngine:
    """See `Scheduler`. A task of an array is JOB.TASK."""

    name = "sge"

    # ---- in a job --------------------------------------------------------------------------------

    def allocation(self, facts: str) -> Allocation:
        """From `qstat -j ID -xml`."""
        env = os.environ
        number, task = env["JOB_ID"], env.get("SGE_TASK_ID", "undefined")
        element = _job_elements(facts).get(number)
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
        start = _task_start(element, task)
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
            running=not _is_being_deleted(element, task),
            end=(start or time.time()) + limit,
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
        """One call of qstat for the living jobs, and one of qacct for each of the others."""
        listed = _listed(output_of("qstat", "-u", "*", "-xml")) if jobs else {}
        states = {job: listed[job] for job in jobs if job in listed}
        numbers = dict.fromkeys(job.partition(".")[0] for job in jobs if job not in states)
        ended = {number: _accounted(number) for number in numbers}
        for job in jobs:
            number, _, task = job.partition(".")
            if job not in states and (task or "undefined") in ended[number]:
                states[job] = _end_state(ended[number][task or "undefined"][-1])
        return states

    def waiting(self) -> list[tuple[str, JobState]]:
        listed = _listed(output_of("qstat", "-s", "p", "-xml"))
        return list(listed.items())

    def usage(self, jobs: Sequence[str]) -> Usage | None:
        elapsed = cpu = cores = gpu_s = memory = 0.0
        for number in dict.fromkeys(job.partition(".")[0] for job in jobs):
            for task, blocks in _accounted(number).items():
                if f"{number}.{task}" not in jobs and number not in jobs:
                    continue
                for block in blocks:
                    seconds, slots = _float(block, "ru_wallclock"), _float(block, "slots") or 1
                    elapsed, cores = elapsed + seconds, cores + seconds * slots
                    cpu += _float(block, "cpu")
                    memory = max(memory, size_in_bytes(block.get("maxvmem", "")) / 1e9)
                    asked = re.search(r"\bgpus?=(\d+)", block.get("category", ""))
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
    limit_s, soft_s = job.time_min * 60, max(1, job.time_min * 60 - HARD_AFTER_SOFT_S)
    options += ["-l", f"h_rt={limit_s},s_rt={soft_s}"]
    if gpus:
        options += ["-l", f"{job.sge_gpus}={gpus}"]
    if slots > 1:
        options += ["-pe", job.sge_pe, str(slots)]
    if job.mem:
        options += ["-l", f"mem_per_core={job.mem}"]
    for flag, value in (("-q", job.partition), ("-P", job.account)):
        options += [flag, value] if value else []
    if request.after:
        options += ["-hold_jid", ",".join(request.after)]
    if len(request.commands) > 1:
        options += ["-t", f"1-{len(request.commands)}"]
    for given in job.qsub:
        name, _, value = given.partition("=")
        options += [f"-{name.lstrip('-')}", *([value] if value else [])]
    return options


def _shown(options: list[str]) -> Iterable[str]:
    line = ""
    for option in options:
        if option.startswith("-") and line:
            yield line
            line = ""
        line += f" {shlex.quote(option)}" if line else option
    yield line


# ---- what Grid Engine prints ---------------------------------------------------------------------


def _parsed(xml: str) -> ET.Element | None:
    try:
        return ET.fromstring(xml)
    except ET.ParseError:
        return None


def _job_elements(xml: str) -> dict[str, ET.Element]:
    """The jobs of `qstat -j ... -xml` by their number."""
    root = _parsed(xml)
    found = root.iterfind(".//djob_info/element") if root is not None else ()
    return {element.findtext("JB_job_number", ""): element for element in found}


def _tasks(element: ET.Element) -> Iterable[ET.Element]:
    return element.iterfind("JB_ja_tasks/ulong_sublist")


def _task_start(element: ET.Element, task: str) -> float:
    """When a task has started, seconds since 1970; 0 where that is not shown."""
    for each in _tasks(element):
        if task == "undefined" or each.findtext("JAT_task_number") == task:
            return float(each.findtext("JAT_start_time", "0"))
    return 0.0


def _is_being_deleted(element: ET.Element, task: str) -> bool:
    """Whether qdel was called for a task: a bit of its state."""
    deleted = 0x40
    return any(
        int(each.findtext("JAT_state", "0")) & deleted
        for each in _tasks(element)
        if task == "undefined" or each.findtext("JAT_task_number") == task
    )


STATES = {"r": "RUNNING", "t": "RUNNING", "q": "PENDING", "E": "ERROR", "d": "ENDING"}


def _listed(xml: str) -> dict[str, JobState]:
    """The living jobs of `qstat -xml`, a task of an array each by itself."""
    root, found = _parsed(xml), {}
    for each in root.iter("job_list") if root is not None else ():
        number, letters = each.findtext("JB_job_number", ""), each.findtext("state", "")
        order = "dE" if letters[:1] == "d" or "E" in letters else "rtq"
        word = next((STATES[c] for c in order if c in letters), "SUSPENDED")
        text = each.findtext("JB_submission_time") or ""
        state = JobState(
            word,
            "" if word == "RUNNING" else letters,
            word != "ERROR",
            _seconds(text),
            each.findtext("JB_name", ""),
        )
        tasks = each.findtext("tasks")
        for name in [number] if tasks is None else _task_names(number, tasks):
            found[name] = state
    return found


def _task_names(number: str, tasks: str) -> list[str]:
    """JOB.TASK of 1-5:2,8."""
    names = []
    for part in tasks.split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        names += [
            f"{number}.{i}" for i in range(int(first), int(last or first) + 1, int(step or 1))
        ]
    return names


def _accounted(number: str) -> dict[str, list[dict[str, str]]]:
    """The records of qacct for a job, by task ("undefined" outside an array), oldest first."""
    found: dict[str, list[dict[str, str]]] = {}
    for block in output_of("qacct", "-j", number).split("=" * 62)[1:]:
        pairs = (line.split(None, 1) for line in block.splitlines() if line.strip())
        values = {pair[0]: pair[1].strip() if len(pair) > 1 else "" for pair in pairs}
        found.setdefault(values.get("taskid", "undefined"), []).append(values)
    return found


def _end_state(block: dict[str, str]) -> JobState:
    failed, code = block.get("failed", "0").split()[0], block.get("exit_status", "0").split()[0]
    submitted = _seconds(block.get("qsub_time", ""))
    name = block.get("jobname", "")
    if failed == "0" and code == "0":
        return JobState("COMPLETED", "", False, submitted, name)
    reason = f"exit code {code}" if failed == "0" else KILLED.get(failed, block.get("failed", ""))
    return JobState("FAILED", reason, False, submitted, name)


def _seconds(text: str) -> float:
    """Seconds since 1970 of a local time; 0 where it names none."""
    for form in ("%Y-%m-%dT%H:%M:%S", "%a %b %d %H:%M:%S %Y", "%m/%d/%Y %H:%M:%S"):
        try:
            return time.mktime(time.strptime(text.partition(".")[0], form))
        except ValueError:
            continue
    return 0.0


def _float(block: dict[str, str], key: str) -> float:
    found = re.match(r"[\d.]+", block.get(key, ""))
    return float(found[0]) if found else 0.0
