"""The parts of a study on this machine: what is ready starts where there is room.

Every part is a local job, a process that lives on when this one is killed. The next driver finds
it by its record. What is finished stands in the result files alone, so nothing is lost with the
driver.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from fer_hpc.cluster.local import Local, environment_of, is_alive
from fer_hpc.cluster.records import record_job
from fer_hpc.cluster.submit import make_request
from fer_hpc.config import (
    EXIT_FINDINGS,
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    EXIT_USER_ERROR,
    UserError,
)
from fer_hpc.config.jobs import JobConfig
from fer_hpc.files import read_json, read_record, remove_leftovers, write_json
from fer_hpc.parallel.process import hangup_signals
from fer_hpc.run.folder import list_checkpoints
from fer_hpc.run.lease import process_state
from fer_hpc.study.graph import Part
from fer_hpc.study.machine import Room
from fer_hpc.study.plan import Plan
from fer_hpc.study.state import (
    OVER,
    PartState,
    changed_file,
    error_line,
    jobs_of,
    read_part,
    record_part,
    states_of_parts,
    trials_of,
)

POLL_S = 0.5
LOOK_S = 10.0  # between looks at the files while nothing has ended
STOP_GRACE_S = 300.0  # for trainings that are stopped, which save first
MAX_STARTS = 3  # of a part in a row without a gain
# Small trainings come first: they show early whether the data and the machine are in order.
FAILED = {"failed": [{"trial": str, "why": str}, ...]}  # of a grid's summary.json
ORDER = ("shards", "doctor", "train", "grid", "gan", "val", "test", "report")


@dataclass
class Running:
    """A process that works on one part, or scores several runs."""

    parts: list[Part]
    job: str
    process: subprocess.Popen[bytes] | None  # None: started by an earlier driver
    log: Path
    began: float = field(default_factory=time.monotonic)


@contextlib.contextmanager
def only_driver(out: Path) -> Iterator[None]:
    """Hold OUT/parts/driver.lock; a UserError where another driver works on the study."""
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "driver.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{out}: {file.read().strip() or 'another process'} works on this study already; "
                f"fer-hpc status {out} shows it"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for each in (out, folder):
            remove_leftovers(each)
        starts = read_json(folder / "driver.json")
        starts = starts if isinstance(starts, list) else []
        write_json(folder / "driver.json", [*starts, round(time.time(), 1)])
        yield


class Driver:
    """Runs the parts of a study on this machine until none can run any more."""

    def __init__(self, plan: Plan, parts: list[Part], job: JobConfig, room: Room) -> None:
        self.plan, self.parts, self.job, self.room = plan, parts, job, room
        self.running: list[Running] = []
        self.finished: set[str] = set()
        self.fruitless: dict[str, tuple[int, int]] = {}  # part -> (starts, gain before them)
        self.began_any = False
        self.stop_signal = 0

    def run(self) -> int:
        """Gives the exit code: 0, 3 where parts have failed, 75 where a signal stopped it."""
        numbers = (signal.SIGTERM, signal.SIGINT, *hangup_signals())
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            return self._run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        # `fer-hpc cancel OUT` ends this process as well, which would start the others again.
        job = f"local-{os.getpid()}_{process_state(os.getpid())[1]}"
        more = {"scheduler": "local", "cluster": Local().cluster(), "name": "fer-study"}
        record_job(self.plan.out, job, ["study", str(self.plan.out)], [], **more)
        for part in self.parts:  # the same command tries again what has failed
            stored = read_part(self.plan, part)
            if stored and stored["failed"]:
                record_part(self.plan, part)
        self._adopt()
        looked = -LOOK_S
        while not self.stop_signal:
            ended = self._reap()
            if ended or time.monotonic() - looked > LOOK_S:
                states = self.states()
                self._start_what_fits(states)
                looked = time.monotonic()
                if not self.running:
                    return self._end(self.states())
            time.sleep(POLL_S)
        return self._stop()

    def states(self) -> dict[str, PartState]:
        """The state of each part, with the parts that run here."""
        states = states_of_parts(self.plan, self.parts, {}, self.finished)
        for task in self.running:
            states |= {part.name: PartState("running") for part in task.parts}
        self.finished |= {
            name for name, s in states.items() if s.state == "finished" and name != "report"
        }
        if self.began_any and "report" in states and states["report"].state == "finished":
            states["report"] = PartState("waiting")  # something has happened since
        return states

    # ---- starting --------------------------------------------------------------------------------

    def _adopt(self) -> None:
        by_name = {part.name: part for part in self.parts}
        parts_by_job: dict[str, list[Part]] = {}
        for name, job in jobs_of(self.plan, self.parts).items():
            if job.alive and job.scheduler == "local" and name in by_name:
                parts_by_job.setdefault(job.job, []).append(by_name[name])
            elif job.alive and name in by_name:
                raise UserError(
                    f"{name} is job {job.job} of {job.scheduler}: wait for it "
                    f"(fer-hpc status {self.plan.out}), or end it (fer-hpc cancel {self.plan.out})"
                )
        for job_name, parts in parts_by_job.items():
            folder = parts[0].folder if len(parts) == 1 else self.plan.out
            log = folder / "jobs" / f"{job_name}_0_log.out"
            self.running.append(Running(parts, job_name, None, log))
            self.room.occupy(parts[0], environment_of(job_name).get("CUDA_VISIBLE_DEVICES", ""))
            _say(f"runs still   {_names(parts)}")

    def _ready(self, states: dict[str, PartState]) -> list[Part]:
        def is_ready(part: Part) -> bool:
            needs = all(states[name].state == "finished" for name in part.needs)
            return (
                states[part.name].state == "waiting"
                and needs
                and all(states[name].state in OVER for name in part.after)
            )

        ready = [part for part in self.parts if is_ready(part)]
        return sorted(ready, key=lambda p: (ORDER.index(p.kind), p.alone))

    def _start_what_fits(self, states: dict[str, PartState]) -> None:
        ready = self._ready(states)
        while ready:
            part = ready.pop(0)
            seeds = [p for p in self.parts if p.kind == part.kind == "train"]
            seeds = [p for p in seeds if p.model == part.model]
            if why := next(filter(None, map(changed_file, seeds)), ""):  # edited meanwhile
                record_part(self.plan, part, failed=why)
                _say(f"failed       {part.name}: {why}")
                return self._start_what_fits(self.states())
            variables = self.room.place(part)
            if variables is None:
                continue
            together = [part]
            if part.kind in ("val", "test") and not part.is_gan:
                # torch takes seconds to load: one process scores all that are ready
                together += [p for p in ready if _is_scored_alike(p, part)]
                ready = [p for p in ready if p not in together]
            self._start(together, variables)

    def _start(self, parts: list[Part], variables: dict[str, str]) -> None:
        first = parts[0]
        several = len(parts) > 1
        folder = self.plan.out if several else first.folder
        command = first.command
        if several:
            command = ["several", *(shlex.join(part.command) for part in parts)]
        folder.mkdir(parents=True, exist_ok=True)
        for part in parts:
            record_part(self.plan, part, started=True)
        began = round(time.time(), 1)
        local = Local()
        process, name = local.start(make_request(self.job, folder, [command]), command, variables)
        log = f"{name}_0_log.out"
        record_job(
            folder,
            name,
            command,
            [log],
            scheduler="local",
            cluster=local.cluster(),
            name=f"fer-{command[0]}",
            submitted=began,
            parts=[part.name for part in parts],
        )
        self.running.append(Running(parts, name, process, folder / "jobs" / log))
        self.began_any = self.began_any or first.kind != "report"
        _say(f"start        {_names(parts)}")

    # ---- ending ----------------------------------------------------------------------------------

    def _reap(self) -> bool:
        """Whether a process has ended; records why a part has failed."""
        ended = [task for task in self.running if _has_ended(task)]
        for task in ended:
            self.running.remove(task)
            self.room.leave(task.parts[0].name)
            if task.parts[0].kind == "report":
                self.began_any = False
            states = states_of_parts(self.plan, self.parts, {}, self.finished)
            for part in task.parts:
                self._note_end(task, part, states[part.name])
        return bool(ended)

    def _note_end(self, task: Running, part: Part, state: PartState) -> None:
        if state.state == "finished":
            self.fruitless.pop(part.name, None)
            _say(f"finished     {part.name}  ({time.monotonic() - task.began:.0f} s)")
            return
        code = task.process.returncode if task.process else None
        if code is None:  # of an earlier driver: how it ended is not known
            _say(f"ended        {part.name}; it is started again")
            return
        count, gain = self.fruitless.get(part.name, (0, -1))
        reached = _gain(part)
        count = count + 1 if reached <= gain else 1
        self.fruitless[part.name] = (count, reached)
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        final = code in (EXIT_USER_ERROR, EXIT_FINISHED, EXIT_FINDINGS)
        if not final and count < MAX_STARTS:
            _say(f"interrupted  {part.name}: {how}; it goes on from what is saved")
            return
        why = _reason(part, task.log) or how
        if not final:
            why = f"{how}, {count} starts without a gain: {why}"
        record_part(self.plan, part, failed=why)
        _say(f"failed       {part.name}: {why}  (log: {task.log})")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop_signal = number

    def _stop(self) -> int:
        """Stop what runs here; trainings save first."""
        alive = [task for task in self.running if not _has_ended(task)]
        for task in alive:
            Local().cancel([task.job])
        _say(f"stopped by {signal.Signals(self.stop_signal).name}; {len(alive)} parts save and end")
        end = time.monotonic() + STOP_GRACE_S
        while time.monotonic() < end and not all(map(_has_ended, alive)):
            time.sleep(POLL_S)
        print(f"fer-hpc study {self.plan.out} goes on from here")
        return EXIT_RUN_AGAIN

    def _end(self, states: dict[str, PartState]) -> int:
        failed = [f"{n}: {s.why}" for n, s in states.items() if s.state == "failed"]
        blocked = [n for n, s in states.items() if s.state == "blocked"]
        for name, state in states.items():
            if state.state == "left out":
                print(f"left out: {name}: {state.why}")
        for line in failed:
            print(f"failed: {line}")
        if blocked:
            print(f"not run, because they need those: {', '.join(blocked)}")
        done = sum(s.state == "finished" for s in states.values())
        print(f"{self.plan.out}: {done} of {len(states)} parts finished")
        print(f"page: {self.plan.out / 'report' / 'index.html'}    fer-hpc status {self.plan.out}")
        return EXIT_FINDINGS if failed or blocked else EXIT_FINISHED


def _has_ended(task: Running) -> bool:
    if task.process:
        return task.process.poll() is not None
    return not is_alive(task.job)


def _is_scored_alike(part: Part, other: Part) -> bool:
    return (part.kind, part.alone, part.is_gan) == (other.kind, other.alone, False)


def _gain(part: Part) -> int:
    """How far a part has come, in a number that grows."""
    folders = [part.folder]
    if part.kind == "grid":
        folders = [path.parent for path in part.folder.glob("trials/*/config.json")]
    if part.kind in ("train", "gan", "grid"):
        return sum(max((i for _, i, _ in list_checkpoints(f)), default=0) for f in folders)
    return sum(1 for _ in part.folder.glob("**/*.h5")) if part.kind == "shards" else 0


def _reason(part: Part, log: Path) -> str:
    """Why a part has failed, from its results or the end of its log."""
    if part.kind == "grid":
        summary = read_record(part.folder / "summary.json", FAILED)
        if summary and summary["failed"]:
            failed = summary["failed"]
            first = f"{failed[0]['trial']}: {failed[0]['why']}"
            return f"{len(failed)} of {trials_of(part)} trials failed, the first {first}"
    try:
        lines = log.read_text(errors="replace").splitlines()[-200:]
    except OSError:
        return ""
    if part.kind in ("val", "test"):
        lines = [line for line in lines if str(part.folder) in line] or lines
    return error_line(lines)


def _names(parts: list[Part]) -> str:
    if len(parts) == 1:
        return parts[0].name
    rest = ", ".join(part.name.partition("/")[2] for part in parts[1:])
    return f"{parts[0].name}, {rest}"


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
