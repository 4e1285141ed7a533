"""The parts of a study as jobs of a scheduler: all are submitted at once, and wait for each other.

What starts when, and again after a loss, is the scheduler's work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from fer_hpc.cluster.launch import check_job
from fer_hpc.cluster.scheduler import scheduler
from fer_hpc.cluster.submit import layout, submit
from fer_hpc.config.errors import counted
from fer_hpc.config.jobs import JobConfig
from fer_hpc.study.graph import Part
from fer_hpc.study.plan import Plan
from fer_hpc.study.state import jobs_of, record_part, states_of_parts

Configure = Callable[[str, list[str]], Any]  # cli.parse.configure, which is above this package


def submit_study(
    plan: Plan, parts: list[Part], job: JobConfig, tasks: int, configure: Configure
) -> Iterator[str]:
    """Submit what is not finished and has no living job; gives the lines to print."""
    by = scheduler(job.cluster)
    by.check_installed()
    before = jobs_of(plan, parts)
    states = states_of_parts(plan, parts, before)
    todo = []
    for part in parts:
        if states[part.name].state == "left out":
            yield f"left out: {part.name}: {states[part.name].why}"
        elif states[part.name].state != "finished":
            todo.append(part)
    new = [p for p in todo if not (before.get(p.name) and before[p.name].alive)]
    for part in new:  # a mistake costs no job
        check_part(part, job, configure)
    to_wait_for: dict[str, list[str]] = {}
    for part in todo:
        known = before.get(part.name)
        if part not in new and known:
            to_wait_for[part.name] = by.dependency([known.job])
            yield f"{part.name}: job {known.job} {known.state.lower()}"
            continue
        resources, gpus = resources_of(part, job)
        needs = _jobs(part.needs, to_wait_for)
        after = [i for i in _jobs(part.after, to_wait_for) if i not in needs]
        record_part(plan, part, started=True)
        commands = commands_of(part, tasks)
        ids = submit(
            resources, part.folder, commands, None, needs, gpus, also_after=after, parts=[part.name]
        )
        to_wait_for[part.name] = by.dependency(ids)
        shown = ids[0] if len(ids) == 1 else f"{ids[0]} ... {ids[-1]}"
        yield f"{part.name}: job {shown}" + (f", after {', '.join(needs)}" if needs else "")
    kept = len(parts) - len(todo)
    yield f"{counted(len(new), 'part')} submitted, {kept} finished or left out before"
    yield f"fer-hpc status {plan.out}    fer-hpc cancel {plan.out}"


def _jobs(names: tuple[str, ...], to_wait_for: dict[str, list[str]]) -> list[str]:
    return list(dict.fromkeys(i for name in names for i in to_wait_for.get(name, [])))


def commands_of(part: Part, tasks: int) -> list[list[str]]:
    """The commands of a part's job, or of the tasks of its array: faces are shared by several."""
    if part.kind != "shards" or tasks == 1:
        return [part.command]
    return [[*part.command, "--tasks", str(tasks), "--task", str(i)] for i in range(tasks)]


def resources_of(part: Part, job: JobConfig) -> tuple[JobConfig, int]:
    """What a part's job asks for, and its GPUs a node.

    Only what has a machine for itself takes several GPUs or nodes: a small batch is not faster on
    them.
    """
    if part.kind in ("shards", "doctor", "report"):
        return dataclasses.replace(job, nodes=1), 0
    large = part.alone and part.kind in ("train", "grid", "gan")
    gpus = job.gpus_per_node if large else min(job.gpus_per_node, 1)
    return (job if large else dataclasses.replace(job, nodes=1)), gpus


def check_part(part: Part, job: JobConfig, configure: Configure) -> None:
    """A UserError where a part is certain to be refused when its job starts."""
    resources, gpus = resources_of(part, job)
    if part.kind == "grid" or "--from-sweep" in part.command:
        layout(resources, None, gpus)  # its configuration needs the shards, or the grid
        return
    config = configure(part.command[0], part.command[1:])
    layout(resources, config, gpus)
    if part.kind == "shards":
        check_job(config, 1)
