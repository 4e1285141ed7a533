"""Runs that end by themselves: before their job ends, when they hang, when a restart is useless."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from fer_hpc.run.folder import read_status
from fer_hpc.run.saver import MARGIN_S
from tests.helpers.processes import HOLD, Started, finish, start_ranks
from tests.helpers.processes import run as run_command
from tests.helpers.runs import SECONDS, assert_same_outcome, until_training

COMMON = "--checkpoint-every-s 0.3 --no-tensorboard --threads 1".split()
ENDLESS = ("cnn_baseline", "--batch-size", "36", "--epochs", "500")


def test_a_hanging_rank_is_named_with_the_stacks_of_the_others(
    shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ranks = start_ranks(
        2, "train", *ENDLESS, "--data", shards, "--run", run, *COMMON, "--hang-floor-s", 4
    )
    until_training(run, 1, 72, ranks[0])
    ranks[1].send_signal(signal.SIGSTOP)
    output = ranks[0].communicate(timeout=400)[1]
    ranks[1].kill()
    ranks[1].communicate()
    assert ranks[0].returncode == 75
    assert re.search(
        r"rank 0 hangs in (step|saving|validation) since \d+ s "
        r"\((usually \S+ s|never seen before)\) at [\d,]+ images",
        output,
    ), output  # where rank 0 was when rank 1 stopped
    assert re.search(r"(step|session|saver|collectives)\.py", output), "the stack shows where"
    status = read_status(run)
    assert status["state"] == "interrupted"
    assert "rank 0 hangs in " in status["why"]


def test_code_that_holds_the_interpreter_is_ended_too(tmp_path: Path) -> None:
    """C code hangs and lets no thread run: the timer in C ends the process."""
    script = (
        "import time, re, fer_hpc.run.watchdog as w\n"
        "w.CHECK_S, w.HARD_KILL_AFTER_S = 0.1, 1.0\n"
        "with w.Watchdog(5, 1, 0, print) as watch:\n"
        "    for i in range(5): watch.step(i); time.sleep(0.1)\n"
        "    re.match('(a+)+$', 'a' * 60 + 'b')\n"  # backtracks for years
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "re/__init__.py" in done.stderr


def test_it_stops_before_its_job_ends_and_goes_on_bit_identical(
    shards: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ("--batch-size", "36", "--epochs", "4", "--data", str(shards), *COMMON)
    began = time.monotonic()
    assert finish(start_ranks(1, "train", "cnn_baseline", *flags, "--run", whole)) == [0]
    took = time.monotonic() - began
    call = ("train", "cnn_baseline", *flags, "--run", parts)

    def job(restart: int, left_s: float) -> dict[str, str]:
        end = time.time() + MARGIN_S + left_s
        job = {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": str(restart)}
        return {**os.environ, **job, "SLURM_JOB_END_TIME": f"{end:.0f}"}

    first = Started(*call, env={**job(0, 1.5), HOLD: "180 216"})  # it waits until its end is near
    time.sleep(2.5)  # the time of the end is in whole seconds
    with contextlib.suppress(ProcessLookupError):  # a slow start has not come as far as 216 images
        first.send_signal(signal.SIGCONT)
    ended = [(first.wait(SECONDS), first.communicate()[0])]
    while ended[-1][0] and len(ended) < 10:  # later ones suffice also where others run beside
        again = run_command(*call, env=job(len(ended), took * len(ended)))
        ended.append((again.returncode, again.stdout))
    *stopped, (code, _) = ended
    assert code == 0
    assert stopped, "the end was never near"
    assert {code for code, _ in stopped} == {75}
    assert all("stopped before its job's end" in text for _, text in stopped)
    assert_same_outcome(parts, whole)
