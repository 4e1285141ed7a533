"""A drill whose work runs as jobs of a Slurm or a Grid Engine."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

from fer_hpc.cluster.scheduler import scheduler
from fer_hpc.config import UserError
from fer_hpc.config.commands import DrillConfig
from fer_hpc.config.jobs import JobConfig
from fer_hpc.drill.case import Failed
from fer_hpc.drill.foreign import Foreign, GridEngineOwner, SlurmOwner
from fer_hpc.drill.job_case import JobCase
from fer_hpc.drill.job_faults import kinds_of
from fer_hpc.drill.site import Site
from fer_hpc.drill.subjects import Subject

JOB_MIN = 30  # time limit of the drill's jobs
FOREIGN_MIN = 600
# In place of the interpreter: every command of a job sets its trap first.
INTERPRETER = """\
#!/bin/sh
exec {python} -c 'from fer_hpc.drill.remote import main; main()' "$@"
"""


class JobSite(Site):
    """Jobs of a cluster, beside two that are not the drill's."""

    def __init__(self, out: Path, say: Callable[[str], None], config: DrillConfig) -> None:
        super().__init__(out, say)
        self.kinds = kinds_of(config.cluster, config.breaker is not None)
        self.by = scheduler(config.cluster)
        self.by.check_installed()
        self.owner = SlurmOwner() if config.cluster == "slurm" else GridEngineOwner()
        self.breaker = config.breaker and config.breaker.absolute()
        assert config.cluster != "here"
        self.job = JobConfig(
            cluster=config.cluster,
            gpus_per_node=0,
            time_min=JOB_MIN,
            partition=config.partition,
            account=config.account,
            sbatch=config.sbatch,
            qsub=config.qsub,
        )
        kept = replace(self.job, time_min=FOREIGN_MIN)
        self.foreign = Foreign(out / "jobs", self.by, self.owner, kept)
        self.exported = self._exported()

    def _exported(self) -> dict[str, str]:
        """Variables that every job of the drill has."""
        interpreter = self.out / "jobs" / "python"
        interpreter.parent.mkdir(parents=True, exist_ok=True)
        interpreter.write_text(INTERPRETER.format(python=sys.executable))
        interpreter.chmod(0o755)
        package = str(Path(__file__).parents[2])
        path = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        return {
            "FER_PYTHON": str(interpreter),
            "FER_RUNS": str(self.out / "jobs" / "runs"),
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Self:
        for name in [n for n in os.environ if n.startswith(("FER_JOB", "RANK", "WORLD_"))]:
            del os.environ[name]
        self.foreign.start()
        self.say(f"foreign jobs: {' and '.join(self.foreign.jobs)}, on {self.foreign.node}")
        return self

    def __exit__(self, *_: object) -> None:
        self.foreign.end()

    def reference(self, subject: Subject) -> Path:
        return super().reference(subject) / "work"

    def make_reference(self, subject: Subject) -> None:
        """Run a subject's jobs undisturbed, with the shards that it needs."""
        self.make_shards(subject)
        began = time.monotonic()
        folder = self.reference(subject).parent
        case = self.make_case(subject, folder, random.Random(0))
        try:
            case.finish()
        except Failed as failure:
            raise UserError(f"{subject.name} failed without any fault: {failure}") from None
        finally:
            case.end()
        self.note_reference(subject, began)

    def make_case(self, subject: Subject, folder: Path, drawn: random.Random) -> JobCase:
        total = self.total.get(subject.name, 0)
        return JobCase(
            subject,
            folder,
            self.data(subject),
            self.reference(subject),
            total,
            drawn,
            by=self.by,
            owner=self.owner,
            job=self.job,
            foreign=self.foreign,
            exported=self.exported,
            breaker=self.breaker,
            undisturbed_s=self.took_s.get(subject.name, 0.0),
        )
