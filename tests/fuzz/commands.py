"""Fuzz targets: what people type, plugins, and what schedulers answer."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from fer_hpc.cli.flags import HelpShown, Part
from fer_hpc.cli.main import main
from fer_hpc.cli.parse import configure_job, configure_pipeline, parts_of
from fer_hpc.cli.table import VERBS
from fer_hpc.cluster.scheduler import scheduler
from fer_hpc.cluster.sge_output import job_elements, task_start
from fer_hpc.config import PRESETS, TrainConfig, UserError, flag_name
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.config.jobs import JobConfig, PipelineConfig
from fer_hpc.config.plugins import load_plugin
from fer_hpc.data.classes import read_stated
from fer_hpc.data.plan import make_plan
from fer_hpc.data.sources import SOURCES, open_source
from fer_hpc.models.registry import MODELS, check_network
from fer_hpc.sweep.fields import parse_grid
from fer_hpc.training.losses import LOSSES
from tests.fuzz.guard import Fuzz, target
from tests.fuzz.inputs import CELLS, cell, mutated

# ---- flags ---------------------------------------------------------------------------------------

NUMBERS = ["1e14", "-5", "1e-400", "inf", "1_000", "0x10", "٣", "1e5", "--", "-", "", "=", "1,2,,3"]
values = st.one_of(st.sampled_from([*NUMBERS, *CELLS, *PRESETS]), cell)
NEEDED = {
    "synthetic": ["--out", "o"],
    "preprocess": ["--source", "synthetic", "--out", "o"],
    "doctor": ["d"],
    "train": ["cnn_baseline", "--data", "d", "--run", "r"],
    "sheet": ["cnn_baseline", "--data", "d", "--run", "r"],
    "evaluate": ["r"],
    "compare": ["a", "b"],
    "predict": ["r", "p"],
    "export": ["r", "--out", "o"],
    "tune": ["--data", "d", "--out", "o"],
    "train_gan": ["--data", "d", "--run", "r"],
    "transfer": ["a", "b", "--run", "r", "--out", "o.png"],
    "generate": ["--data", "d", "--run", "r", "--out", "o"],
    "report": ["r"],
    "study": ["o"],
    "drill": ["o"],
    "verify": ["a", "b"],
    "init": ["o"],
    "status": [],
    "logs": ["r"],
    "cancel": ["r"],
}


def arguments(parts: list[Part], good: list[str]) -> st.SearchStrategy[list[str]]:
    """A good command line with odd flags and values among its arguments."""
    names = [flag_name(f.name) for part in parts for _, f in part.fields()]
    flags = st.sampled_from([*names, "--no-flip", "--help", "--x", "--lr", "-h", "--Data"])
    joined = st.builds(lambda flag, value: [f"{flag}={value}"], flags, values)
    apart = st.builds(lambda flag, value: [flag, value], flags, values)
    odd = st.one_of(joined, apart, apart, flags.map(lambda f: [f]), values.map(lambda v: [v]))

    def placed(at: int, found: list[list[str]], keep: bool) -> list[str]:
        more = [arg for args in found for arg in args]
        return [*good[:at], *more, *(good[at:] if keep else [])]

    at = st.integers(0, len(good))
    return st.builds(placed, at, st.lists(odd, min_size=1, max_size=3), st.booleans())


@target
def flags_of_verbs(box: Path) -> Fuzz:
    """The whole command line; what a verb does is left out."""
    assert set(NEEDED) == set(VERBS)

    def of(verb: str) -> st.SearchStrategy[list[str]]:
        lines = arguments(parts_of(verb), NEEDED[verb])
        return lines.map(lambda args: [verb, *args])

    idle = {
        name: dataclasses.replace(verb, run=mock.Mock(return_value=0))
        for name, verb in VERBS.items()
    }

    def parse(args: list[str]) -> None:
        with (
            mock.patch.dict(VERBS, idle),
            mock.patch("fer_hpc.cli.main.run_ranks", return_value=0),
        ):
            code = main(args)
        assert code in (0, 2), code

    first = ["train", *NEEDED["train"]]
    return Fuzz(first, st.one_of(*(of(verb) for verb in VERBS)), parse)


@target
def flags_of_jobs(box: Path) -> Fuzz:
    def of(verb: str) -> st.SearchStrategy[tuple[str, list[str]]]:
        parts = [*parts_of(verb, as_job=True), Part(JobConfig)]
        return arguments(parts, NEEDED[verb]).map(lambda args: (verb, args))

    def parse(given: tuple[str, list[str]]) -> None:
        verb, args = given
        with contextlib.suppress(HelpShown):
            if verb == "pipeline":
                configure_pipeline(args)
                return
            found = configure_job(verb, args, (JobConfig,), "jobs/x.py")[0]
            configure_job(verb, found.arguments(JobConfig))  # what the job itself is given

    jobs = ["train", "train_gan", "evaluate", "preprocess", "report", "tune"]
    good = ["cnn_baseline", "--source", "synthetic", "--out", "o"]
    parts = [Part(PipelineConfig), Part(JobConfig)]
    line = arguments(parts, good).map(lambda args: ("pipeline", args))
    return Fuzz(("pipeline", good), st.one_of(line, *map(of, jobs)), parse)


@target
def grid_flag(box: Path) -> Fuzz:
    fields = st.sampled_from([f.name for f in dataclasses.fields(TrainConfig)] + ["--lr"])
    name = st.one_of(fields, fields, cell)
    entry = st.builds(lambda n, v: f"{n}={v}", name, st.lists(values, max_size=3).map(",".join))

    def parse(entries: list[str]) -> None:
        for field, found in parse_grid(tuple(entries)).items():
            assert found, field

    return Fuzz(
        ["flip=true,false"], st.lists(st.one_of(entry, cell), max_size=4), parse, ("--grid",)
    )


@target
def classes_flag(box: Path) -> Fuzz:
    text = st.one_of(st.lists(cell, max_size=4).map(",".join), cell)

    def parse(given: str) -> None:
        config = PreprocessConfig(source="folder", input=box, out=box / "out", classes=given)
        read_stated(config.classes)

    return Fuzz("smile,frown", text, parse, ("--classes",))


# ---- plugins -------------------------------------------------------------------------------------

PLUGIN = """
import torch
from fer_hpc import register_loss, register_model, register_source
from fer_hpc.data.annotations import Face, Rows
import numpy as np

@register_model({model}, sides={sides}, face={face}, mean={mean})
def build(outputs, channels, side):
    return {network}

@register_loss({loss})
def loss(outputs, batch, norm):
    return outputs.sum()

@register_source({source}, help={help})
class Mine:
    def __init__(self, config):
        self.classes = {classes}
    def rows(self):
        return Rows({ids}, np.array({labels}), {splits})
    def face(self, locator):
        return Face(pixels=np.zeros((9, 9), np.uint8))
"""
USUAL = {
    "model": "'mine'",
    "sides": "(8, 64)",
    "face": "(32, 1)",
    "mean": "None",
    "network": "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, outputs))",
    "loss": "'mine'",
    "source": "'mine'",
    "help": "'a line'",
    "classes": "('a', 'b')",
    "ids": "['1', '2']",
    "labels": "[0, 1]",
    "splits": "['', '']",
}
LITERALS = ["None", "''", "0", "-1", "1.5", "True", "()", "(1,)", "(0, 0)", "('a', 'b')", "[]"]
LITERALS += ["'../x'", "'a\\nb'", "'x' * 5000", "float('nan')", "{}", "print", "1 / 0", "10**400"]
LITERALS += ["(10**9, 10**9)", "(True, True)", "'cnn_baseline'", "['1', '1']", "[9, 9]", "b'x'"]
LITERALS += ["torch.nn.Identity()", "exit()", "(0.5, 0.5, 0.5)", "['a', None]", "[[0], [1]]"]


def declared(**changes: str) -> bytes:
    return PLUGIN.format(**{**USUAL, **changes}).encode()


@target
def plugin_file(box: Path) -> Fuzz:
    path = box / "p.py"
    registries: tuple[dict[str, Any], ...] = (MODELS, LOSSES, SOURCES)
    built_in = [set(registry) for registry in registries]

    def forget() -> None:
        for registry, names in zip(registries, built_in, strict=True):
            for name in set(registry) - names:
                del registry[name]

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        try:
            load_plugin(path)
            for model in set(MODELS) - built_in[0]:
                check_network({"model": model}, 2, (32, 32, 1))
            for source in set(SOURCES) - built_in[2]:
                config = PreprocessConfig(source=source, out=box / "out", split="test")
                with open_source(SOURCES[source], config) as opened:
                    make_plan(config, SOURCES[source], opened)
        finally:
            forget()

    keys = st.sampled_from(list(USUAL))
    changed = st.dictionaries(keys, st.sampled_from(LITERALS), min_size=1, max_size=2)
    inputs = st.one_of(changed.map(lambda c: declared(**c)), mutated(declared()))
    return Fuzz(declared(), inputs, parse, ("p.py", "mine", "--source"))


# ---- schedulers ----------------------------------------------------------------------------------

SQUEUE = "12_3|RUNNING|None|2026-01-02T03:04:05|fer-x\n13|PENDING|Priority|N/A|fer-y"
SACCT = "12|COMPLETED|0:0|2026-01-02T03:04:05|fer-x\n13|CANCELLED by 1|0:15|Unknown|fer-y"
USAGE = "12|3600|2|01:00:00|1.5G|cpu=2,gres/gpu=1\n12.0|3600|2|1-00:00:00|2048K|"
SHOWN = """JobId=12 JobName=fer-x
   ArrayJobId=12 ArrayTaskId=3 JobState=RUNNING Restarts=0 BatchFlag=1
   SubmitTime=2026-01-02T03:04:05 EndTime=2026-01-02T04:04:05 NodeList=n[1-2] NumTasks=2
   Nodes=n[1-2] CPU_IDs=0-1 Mem=200 GRES=gpu:h100:2(IDX:0-1)
   TresPerNode=gres:gpu:2
"""
QSTAT = """<?xml version='1.0'?><job_info><queue_info><job_list state="running">
<JB_job_number>12</JB_job_number><JB_name>fer-x</JB_name><state>r</state><tasks>1-5:2,8</tasks>
<JB_submission_time>2026-01-02T03:04:05</JB_submission_time></job_list></queue_info>
<djob_info><element><JB_job_number>12</JB_job_number><JB_ja_tasks><ulong_sublist>
<JAT_task_number>1</JAT_task_number><JAT_start_time>5</JAT_start_time></ulong_sublist>
</JB_ja_tasks></element></djob_info></job_info>"""
QACCT = f"""{"=" * 62}
jobnumber 12\ntaskid undefined\nfailed 37 : qmaster\nexit_status 137 (Killed)
qsub_time 01/02/2026 03:04:05.1\njobname fer-x\ncpu 3.5\nwallclock 4\nmaxvmem 1.5G\nslots 2
"""


def answers(*good: str) -> st.SearchStrategy[str]:
    """A program's output: other bytes, or nothing like it."""
    changed = [mutated(text.encode()).map(lambda b: b.decode("utf-8", "replace")) for text in good]
    return st.one_of(*changed, cell)


@target
def slurm_answers(box: Path) -> Fuzz:
    by = scheduler("slurm")

    def parse(text: str) -> None:
        environment = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_TASK_COUNT": "4"}
        with mock.patch("fer_hpc.cluster.slurm.output_of", return_value=text):
            by.states(["12_3", "13"])
            by.waiting()
            by.usage(["12"])
            by.cluster()
        with mock.patch.dict(os.environ, environment):
            try:
                by.allocation(text)
            except UserError as error:
                assert "Slurm" in str(error)

    return Fuzz(SHOWN, answers(SQUEUE, SACCT, USAGE, SHOWN), parse)


@target
def grid_engine_answers(box: Path) -> Fuzz:
    by = scheduler("sge")

    def parse(text: str) -> None:
        with (
            mock.patch("fer_hpc.cluster.sge.output_of", return_value=text),
            mock.patch("fer_hpc.cluster.sge_output.output_of", return_value=text),
        ):
            by.states(["12", "12.1"])
            by.waiting()
            by.usage(["12"])
        for element in job_elements(text).values():
            task_start(element, "1")

    return Fuzz(QSTAT, answers(QSTAT, QACCT), parse)
