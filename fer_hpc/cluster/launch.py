"""The decisions of slurm/launch.sh: what a job runs, may it start, and is it started again.

launch.sh asks the host's scheduler, because a container may lack its programs, and gives the answer
to `begin` and `end`. Both print shell assignments; what people read goes to stderr.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fer_hpc.cluster.code import code_root, keep_code, pointer, write_pointer
from fer_hpc.cluster.defaults import command_of_array, script_command
from fer_hpc.cluster.records import JobCommand, results_dir
from fer_hpc.cluster.scheduler import Allocation, Scheduler, scheduler
from fer_hpc.cluster.starts import (
    check_predecessors,
    exit_in_words,
    gained,
    give_up_message,
    last_lines,
    may_start_again,
    record_end,
    record_refusal,
    record_start,
    starts_of,
    without_gain,
)
from fer_hpc.cluster.summary import summary
from fer_hpc.config import (
    EXIT_CRASHED,
    EXIT_FINDINGS,
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    EXIT_TAKEN_OVER,
    EXIT_USER_ERROR,
    GanConfig,
    TrainConfig,
    UserError,
    check_divides,
    merge_for_resume,
    ranks_that_fit,
)
from fer_hpc.config.commands import EvaluateConfig, PreprocessConfig, SweepConfig
from fer_hpc.files import read_stored
from fer_hpc.parallel.job import INHERITED, current_step, job_port, scheduler_of_process
from fer_hpc.parallel.local import LOCAL_VERBS
from fer_hpc.run.folder import find_run_config, read_run_config, read_status

Configure = Callable[[str, list[str]], Any]  # cli.parse.configure, which is above this package
# A command other than a training is started again only with one of these exit codes.
INTERRUPTED_CODES = (
    EXIT_RUN_AGAIN,
    128 + signal.SIGTERM,
    128 + signal.SIGUSR1,
    128 + signal.SIGUSR2,
)


def check_job(config: JobCommand, ranks: int) -> None:
    """Raise a UserError for a command that is certain to fail, before its processes start."""
    if isinstance(config, PreprocessConfig):
        if config.input is not None and not config.input.exists():
            raise UserError(f"--input {config.input} does not exist on {socket.gethostname()}")
        return
    if isinstance(config, EvaluateConfig):
        read_run_config(config.run)
    if not isinstance(config, TrainConfig | GanConfig):
        return
    if read_stored(config.data / "manifest.json") is None:
        problem = "holds no shards (no manifest.json)" if config.data.is_dir() else "does not exist"
        raise UserError(
            f"--data {config.data} {problem} on {socket.gethostname()}; "
            "preprocess first, or give FER_DATA or --data"
        )
    accumulate = config.accumulate if isinstance(config, TrainConfig) else 1
    check_divides(config.batch_size, ranks, accumulate)
    stored = find_run_config(config.run)
    if stored:
        merge_for_resume(config, stored["science"])


# ---- the start -----------------------------------------------------------------------------------


def begin(args: list[str], facts: str, configure: Configure) -> str:
    """What launch.sh does with `args`: [--job] VERB ARGUMENTS, or --job --array FILE.

    Without --job the arguments are those behind a script's name, and the site's defaults come
    first. `facts` is what the scheduler says about the job; "" outside a job. Gives shell text.
    """
    kind = scheduler_of_process()
    allocation = scheduler(kind).allocation(facts) if kind else None
    if args[0] != "--job":
        command = script_command(args[0], args[1:], allocation)
    elif args[1] == "--array":
        command = command_of_array(Path(args[2]), allocation)
    else:
        command = args[1:]
    step = current_step()
    if step and step.size > 1:
        raise UserError(
            f"this script runs as {step.size} tasks of srun, and starts the processes by itself: "
            "submit it with sbatch, or run it with bash inside salloc"
        )
    if allocation is None:
        return f"fer_task=({shlex.join(command)}) fer_start=exec\n"
    inside = kind != "slurm" or step is not None  # the processes are started on this host alone
    nodes = allocation.nodes if not inside else allocation.nodes[:1]
    per_node, hosts = _ranks_of_node(command[0], allocation, nodes), max(len(nodes), 1)
    config = _checked(command, configure)
    if isinstance(config, TrainConfig | GanConfig) and config.elastic:
        nodes = _nodes_that_fit(config, nodes, per_node)
        hosts = max(len(nodes), 1)
    allocation = _with_counted_restarts(config, allocation)
    try:
        check_predecessors(scheduler(kind))
        check_job(config, per_node * hosts)
    except UserError as error:
        record_refusal(config, allocation, command, str(error))
        raise
    answer = [f"unset {name}" for name in sorted(os.environ) if name.startswith(INHERITED)]
    answer += scheduler(kind).environment(allocation)
    answer += _exports(allocation)
    if inside and per_node > 1 and command[0] in LOCAL_VERBS:
        command = [*command, "--procs", str(per_node)]
    logs = _record(config, allocation, command, answer)
    again = f"start {allocation.restarts + 1}" + ("" if allocation.batch else ", interactive")
    print(f"job {allocation.name}, {again}: fer_hpc {shlex.join(command)}", file=sys.stderr)
    hosts_text = ",".join(host for host, _ in nodes) or socket.gethostname()
    print(f"on {hosts_text}, {per_node} task(s) a node; logs: {logs}", file=sys.stderr)
    answer += [
        f"fer_task=({shlex.join(command)})",
        f"fer_start={'here' if inside else 'srun'}",
        f"fer_nodes={hosts} fer_ranks={per_node} fer_job={shlex.quote(allocation.id)}",
        f"fer_logs={shlex.quote(str(logs))}",
        f"fer_srun_logs={shlex.quote(str(logs).replace('%', '%%'))}",
        f"fer_gpus={nodes[0][1] if nodes and kind == 'sge' else 0}",
        f"fer_again={'yes' if allocation.batch and step is None else 'no'}",
    ]
    return "\n".join(answer) + "\n"


def _ranks_of_node(verb: str, allocation: Allocation, nodes: tuple[tuple[str, int], ...]) -> int:
    """Processes on each node: one for each GPU, without GPUs one for each task asked for."""
    gpus = [count for _, count in nodes] or [0]
    if len(set(gpus)) > 1:
        shown = ", ".join(f"{host} has {count}" for host, count in nodes)
        raise UserError(
            f"the GPUs are spread unevenly ({shown}), and every node needs the same number: ask "
            f"for them by node, as --nodes={len(nodes)} --gpus-per-node={max(gpus)}"
        )
    if allocation.asked_gpus > gpus[0]:
        raise UserError(
            f"{allocation.asked_gpus} GPUs a node were asked for and {gpus[0]} granted: Slurm "
            f"takes the script's own --gres=gpu:{gpus[0]} where --gpus-per-node is given; submit "
            f"with --gres=gpu:{allocation.asked_gpus}"
        )
    if verb not in LOCAL_VERBS:
        return 1
    if gpus[0]:
        processes = gpus[0] * len(nodes)
        if allocation.scheduler == "slurm" and allocation.tasks not in (1, len(nodes), processes):
            print(
                f"fer-hpc: {allocation.tasks} tasks were asked for; one process for each GPU is "
                f"started: {processes}",
                file=sys.stderr,
            )
        return gpus[0]
    if allocation.tasks % max(len(nodes), 1):
        raise UserError(
            f"{allocation.tasks} tasks on {len(nodes)} nodes: every node needs the same number; "
            f"use --ntasks-per-node={-(-allocation.tasks // len(nodes))}"
        )
    return allocation.tasks // max(len(nodes), 1)


def _nodes_that_fit(
    config: TrainConfig | GanConfig, nodes: tuple[tuple[str, int], ...], per_node: int
) -> tuple[tuple[str, int], ...]:
    """As many of the job's nodes as the batch divides among, all where it divides among none."""
    accumulate = config.accumulate if isinstance(config, TrainConfig) else 1
    ranks = ranks_that_fit(config.batch_size, accumulate, per_node * len(nodes), per_node)
    used = nodes[: ranks // per_node] or nodes
    if len(used) < len(nodes):
        print(
            f"fer-hpc: {len(used)} of {len(nodes)} nodes are used: --batch-size "
            f"{config.batch_size} does not divide among all",
            file=sys.stderr,
        )
    return used


def _checked(command: list[str], configure: Configure) -> JobCommand:
    """The configuration of a command; that of a sweep with all of its trials checked."""
    config = configure(command[0], command[1:])
    if command[0] != "tune":
        return config
    from fer_hpc.sweep.grid import check_sweep, grid

    check_sweep(config[0], grid(config[0], config[2]))
    return config[0]


def _with_counted_restarts(config: JobCommand, allocation: Allocation) -> Allocation:
    """With the number of starts in the job's record, where the scheduler keeps none."""
    if allocation.scheduler != "sge" or not allocation.restarts:
        return allocation
    before = starts_of(results_dir(config) / "jobs" / f"{allocation.name}.json")
    return dataclasses.replace(allocation, restarts=max(1, len(before)))


def _exports(allocation: Allocation) -> list[str]:
    """The job as its processes see it (parallel/job.py), and where the ranks meet."""
    number = allocation.id.partition(".")[0]
    values = {
        "FER_JOB_NUMBER": f"{allocation.scheduler} {number}",
        "FER_JOB_ID": allocation.id,
        "FER_JOB_NAME": allocation.name,
        "FER_JOB_RESTARTS": str(allocation.restarts),
        "FER_JOB_END": str(allocation.end),
    }
    if len(allocation.nodes) > 1:
        values |= {"MASTER_ADDR": allocation.nodes[0][0], "MASTER_PORT": str(_port(int(number)))}
    return [f"export {name}={shlex.quote(value)}" for name, value in values.items()]


def _port(job: int) -> int:
    """The first port of the job that nobody uses on this host, which is the ranks' first."""
    for offset in range(0, 7, 2):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", job_port(job, offset)))
            return job_port(job, offset)
    return job_port(job)


def _record(
    config: JobCommand, allocation: Allocation, command: list[str], answer: list[str]
) -> Path:
    """Record this start and keep its code; gives the folder of the ranks' logs.

    Adds to the shell text the place of the code that all starts of this job use.
    """
    folder = results_dir(config).absolute()
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    copy = ""
    if os.environ.get("FER_KEEP_CODE", "1") != "0":
        root = code_root(folder)
        kept = keep_code(root)
        copy = str(kept)
        place = pointer(root, allocation.scheduler, allocation.id)
        write_pointer(place, kept)
        path = os.pathsep.join([copy, *filter(None, [os.environ.get("PYTHONPATH", "")])])
        answer += [f"export PYTHONPATH={shlex.quote(path)} PYTHONSAFEPATH=1"]
        answer += [f"fer_pointer={shlex.quote(str(place))}"]
    record_start(config, allocation, command, [f"{allocation.id}-*.log"], copy)
    return logs


# ---- the end -------------------------------------------------------------------------------------


def end(code: int, may_start: bool, args: list[str], facts: str, configure: Configure) -> str:
    """What follows after the ranks have ended with `code`; `args` is the command that has run.

    `may_start`: a script, which the scheduler can start again.
    Gives shell text: the command that starts the job again, or none, and the exit code.
    """
    config = configure(args[0], _without_procs(args[1:]))
    config = config[0] if args[0] == "tune" else config
    folder, job = results_dir(config), os.environ["FER_JOB_NAME"]
    again, why = should_requeue(config, code)
    again = again and may_start
    lines = [] if code in (EXIT_FINISHED, EXIT_RUN_AGAIN) else last_lines(folder / "logs", job)
    ended = {"time": round(time.time(), 1), "code": code, "how": exit_in_words(code)}
    starts = record_end(config, job, {**ended, "lines": lines})
    reached = gained(config)
    if again and not may_start_again(starts, reached):
        again, why = False, give_up_message(folder, without_gain(starts, reached))
    by = scheduler(scheduler_of_process())
    allocation = _allocation_now(by, facts)
    if again and not _is_ours(allocation):
        again, why = False, "the job is being ended, or belongs to another start: not started again"
    print(f"fer-hpc: {why}", file=sys.stderr)
    print(summary(config, starts, allocation), file=sys.stderr)
    finished = not isinstance(config, TrainConfig | GanConfig) or _is_finished(config.run)
    exit_code = EXIT_CRASHED if code == EXIT_FINISHED and not finished else code
    requeue = by.requeue_command(allocation) if again and allocation else []
    if again and allocation and allocation.scheduler == "sge":
        exit_code = 99  # Grid Engine's code for: run this job again
    return f"fer_requeue=({shlex.join(requeue)}) fer_exit={exit_code}\n"


def _without_procs(args: list[str]) -> list[str]:
    """The arguments without the --procs N that `begin` has added."""
    return args[:-2] if args[-2:-1] == ["--procs"] else args


def _allocation_now(by: Scheduler, facts: str) -> Allocation | None:
    try:
        return by.allocation(facts)
    except UserError as error:
        print(f"fer-hpc: {error}", file=sys.stderr)
        return None


def _is_ours(allocation: Allocation | None) -> bool:
    """Whether the job still runs, and this start is its newest."""
    if allocation is None or not allocation.running or not allocation.batch:
        return False
    restarts = int(os.environ["FER_JOB_RESTARTS"])
    return allocation.scheduler == "sge" or allocation.restarts == restarts


def _is_finished(run: Path) -> bool:
    return bool(read_status(run)["state"] == "finished")


def should_requeue(config: JobCommand, code: int) -> tuple[bool, str]:
    """Whether a job whose processes ended with exit code `code` is to run again, and why.

    For a training its run folder decides, not the code: srun was seen to end with code 0 after one
    of its nodes had died. How often is not decided here.
    """
    if isinstance(config, TrainConfig | GanConfig):
        status = read_status(config.run)
        state, why = status["state"], status["why"] or exit_in_words(code)
        over = state in ("finished", "failed", "superseded")
        if over or code in (EXIT_USER_ERROR, EXIT_TAKEN_OVER):
            return False, f"{config.run}: {state}" + (f", {why}" if state != "finished" else "")
        return True, f"{config.run}: {why}; the same command continues from there"
    if isinstance(config, SweepConfig):
        # Ray ends in many ways, with many exit codes; starts without a gain are counted.
        again = code not in (EXIT_FINISHED, EXIT_USER_ERROR, EXIT_FINDINGS)
        reason = f"sweep: {exit_in_words(code)}"
    else:
        again = code in INTERRUPTED_CODES
        reason = "done" if code == EXIT_FINISHED else exit_in_words(code)
    return again, f"{reason}; it continues from there" if again else reason
