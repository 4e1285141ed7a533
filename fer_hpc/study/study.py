"""`fer-hpc study`: the plan of a new study, or of the one in OUT; then its parts."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_hpc.config import EXIT_FINISHED, UserError, format_flag
from fer_hpc.config.errors import counted
from fer_hpc.config.jobs import JobConfig
from fer_hpc.config.prepare import PreprocessConfig
from fer_hpc.config.study import StudyConfig
from fer_hpc.study.driver import Driver, only_driver
from fer_hpc.study.estimate import check_space, costs_of, format_plan, hours_left
from fer_hpc.study.graph import parts_of
from fer_hpc.study.jobs import Configure, submit_study
from fer_hpc.study.machine import this_machine
from fer_hpc.study.plan import NAME, TOP, Plan, is_study, new_plan, read_plan, write_plan
from fer_hpc.study.recipes import absolute_if_file
from fer_hpc.study.state import check_edits, jobs_of, states_of_parts
from fer_hpc.study.status import format_study

MAY_BE_THERE = {"jobs", "logs", "nohup.out"}  # in a new OUT


def study(
    config: StudyConfig, flags: Mapping[str, Any], job: JobConfig, configure: Configure
) -> int:
    """Run a study, or submit its jobs; gives the exit code. `flags`: those of this call."""
    is_new = not is_study(config.out)
    plan = _new(config, job) if is_new else _stored(config, flags)
    parts = parts_of(plan)
    check_edits(plan, parts)
    room = this_machine() if job.cluster in ("local", "debug") else None
    costs = costs_of(plan, parts, room, job)
    if is_new:
        write_plan(plan)
    if job.dry_run:
        states = states_of_parts(plan, parts, jobs_of(plan, parts))
        print(format_plan(plan, parts, costs, states, room, job))
        print(f"the plan: {plan.out / NAME}, which you may edit; nothing was started")
        return EXIT_FINISHED
    if warning := check_space(plan, parts, costs):
        print(warning, file=sys.stderr)
    if room is None:
        with only_driver(plan.out):
            for line in submit_study(plan, parts, job, config.tasks, configure):
                print(line, flush=True)
        return EXIT_FINISHED
    with only_driver(plan.out), room.open():
        print(
            f"{plan.out}: {counted(len(parts), 'part')}, {counted(room.cores, 'core')}, "
            f"{counted(len(room.gpus), 'GPU')}"
        )
        return Driver(plan, parts, job, room).run()


def _new(config: StudyConfig, job: JobConfig) -> Plan:
    if config.out.is_dir():
        other = [
            p.name
            for p in config.out.iterdir()
            if p.name not in MAY_BE_THERE and p.suffix != ".log" and not p.name.startswith(".")
        ]
        if other:
            raise UserError(
                f"{config.out} holds other files ({', '.join(sorted(other)[:3])}) and no {NAME}; "
                "give a new folder"
            )
    if not config.source:
        raise UserError(
            f"{config.out} holds no study yet: the first call needs --source (and --input)"
        )
    if config.input is not None and not config.input.exists():
        raise UserError(f"--input {config.input} does not exist")
    if config.source == "auto":  # the sizes of the faces depend on it
        from fer_hpc.data.sources import resolve_source

        settings, why = resolve_source(
            PreprocessConfig(source="auto", input=config.input, out=config.out)
        )
        print(f"source: {settings.source} ({why})")
        config = dataclasses.replace(config, source=settings.source)
    return new_plan(config, job)


def _stored(config: StudyConfig, flags: Mapping[str, Any]) -> Plan:
    """The plan in OUT; a UserError where the flags of this call are those of another study."""
    plan = read_plan(config.out)
    for field, value in flags.items():
        if field not in TOP or value is None:
            continue
        value = str(Path(value).absolute()) if field == "input" else value
        stored = plan.tables[field]
        if field == "classes":
            value = absolute_if_file(value)
        is_auto = (field, value) in (
            ("source", "auto"),
            ("count", 0),
        )  # filled in by the first call
        if value != stored and not is_auto:
            raise UserError(
                f"{config.out} holds a study with {format_flag(field, stored)} (now "
                f"{format_flag(field, value)}): give another OUT, or leave the flag out"
            )
    return plan


# ---- status --------------------------------------------------------------------------------------


def status(out: Path, as_json: bool = False) -> str:
    """The graph of a study with its progress, for people or programs."""
    plan = read_plan(out)
    parts = parts_of(plan)
    jobs = jobs_of(plan, parts)
    states = states_of_parts(plan, parts, jobs)
    if as_json:
        return json.dumps(
            [
                {
                    "part": part.name,
                    "state": states[part.name].state,
                    "why": states[part.name].why,
                    "share": round(states[part.name].share, 4),
                    "job": states[part.name].job,
                    "folder": str(part.folder),
                    "needs": list(part.needs),
                }
                for part in parts
            ],
            indent=1,
        )
    try:
        as_jobs = any(job.alive and job.scheduler != "local" for job in jobs.values())
        room = None if as_jobs else this_machine()
        left = hours_left(parts, states, costs_of(plan, parts, room, JobConfig()), room)
    except (OSError, ValueError) as error:  # the input may not be there any more
        print(f"warning: no estimate of the time left: {error}", file=sys.stderr)
        left = None
    return format_study(plan, parts, states, left)
