"""The folder of a drill: shards, undisturbed runs, and a folder for each fault."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from fer_hpc.config import UserError
from fer_hpc.drill.case import Case, Failed
from fer_hpc.drill.faults import KINDS
from fer_hpc.drill.places import Kind
from fer_hpc.drill.starts import Start, rank_variables
from fer_hpc.drill.subjects import NETWORK, SUBJECTS, Subject, commands, runs_of, shards_command
from fer_hpc.drill.tmpfs import release
from fer_hpc.run.folder import list_checkpoints


class Site:
    """Processes of this machine. A site is a context: what it needs ends with it."""

    kinds: tuple[Kind, ...] = KINDS

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        self.out, self.say = out, say
        self.total: dict[str, int] = {}
        self.took_s: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing outlives the faults."""

    def kind_and_subject(self, number: int) -> tuple[Kind, str]:
        """Fault `number`, from 1 on: kinds take turns, and each its subjects."""
        turn, index = divmod(number - 1, len(self.kinds))
        kind = self.kinds[index]
        return kind, kind.subjects[turn % len(kind.subjects)]

    def data(self, subject: Subject) -> Path:
        return self.out / "data" / (subject.needs or "none")

    def reference(self, subject: Subject) -> Path:
        return self.out / "reference" / subject.name.replace(" ", "-")

    def make_reference(self, subject: Subject) -> None:
        """Run a subject's commands undisturbed, with the shards that it needs."""
        self.make_shards(subject)
        data, folder = self.data(subject), self.reference(subject)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if subject.name == "evaluate":
            classifier = SUBJECTS["classifier"]
            if not self.reference(classifier).exists():
                self.make_reference(classifier)
            shutil.copytree(self.reference(classifier), folder)
        began = time.monotonic()
        self._run(commands(subject, folder, data), folder, subject.ranks)
        self.note_reference(subject, began)

    def make_shards(self, subject: Subject) -> None:
        data = self.data(subject)
        if subject.needs and not (data / "manifest.json").exists():
            data.parent.mkdir(parents=True, exist_ok=True)
            self._run([shards_command(subject.needs, data)], data)
            shutil.copy(NETWORK, data)

    def note_reference(self, subject: Subject, began: float) -> None:
        """Note how long an undisturbed run is."""
        if subject.batch:
            run = runs_of(subject, self.reference(subject))[0]
            self.total[subject.name] = list_checkpoints(run)[0][1]
        self.took_s[subject.name] = time.monotonic() - began
        self.say(f"undisturbed: {subject.name}, {self.took_s[subject.name]:.1f} s")

    def _run(self, arguments: list[list[str]], folder: Path, ranks: int = 1) -> None:
        output = self.out / "reference" / "output"
        output.parent.mkdir(parents=True, exist_ok=True)
        for args in arguments:
            starts = [
                Start(args, folder, output.with_suffix(f".{rank}.txt"), variables=variables)
                for rank, variables in enumerate(rank_variables(ranks))
            ]
            try:
                ended = all([start.wait() for start in starts])
            finally:
                for start in starts:
                    start.end()
            if not ended or any(start.code for start in starts):
                last = (starts[0].text().splitlines() or ["no output"])[-1]
                raise UserError(f"{' '.join(args[:2])} failed without any fault: {last}")

    def make_case(self, subject: Subject, folder: Path, drawn: random.Random) -> Case:
        total = self.total.get(subject.name, 0)
        return Case(subject, folder, self.data(subject), self.reference(subject), total, drawn)

    def strike(self, number: int, seed: int) -> dict[str, Any]:
        """One fault, by its number; its folder is kept where it was not survived."""
        kind, name = self.kind_and_subject(number)
        subject = SUBJECTS[name]
        folder = self.out / "cases" / f"{number:04d}"
        release(folder / "work")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        case = self.make_case(subject, folder, random.Random(f"{seed} {number}"))
        why, began = "", time.monotonic()
        try:
            kind.act(case)
            case.finish()
            case.check()
        except Failed as failure:
            why = str(failure)
        finally:
            case.end()
        if not why:
            shutil.rmtree(folder)
        outcome = "NOT SURVIVED: " + why if why else "survived" if case.struck else "not reached"
        self.say(f"{number:4d}  {kind.name}, {name}: {case.detail}: {outcome}")
        return {
            "number": number,
            "fault": kind.name,
            "subject": name,
            "detail": case.detail,
            "struck": case.struck,
            "survived": not why,
            "why": why,
            "refused": case.refused,
            "lost": case.lost,
            "starts": case.count_starts(),
            "images_again": case.cost.images if case.struck else None,
            "seconds": case.cost.seconds if case.struck else None,
            "took_s": round(time.monotonic() - began, 2),
        }
