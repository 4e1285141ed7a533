"""On a real Slurm without a clone: an installed package and the folder of fer-hpc init."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fer_hpc.run.folder import read_environment, read_status
from tests.helpers.slurm import Cluster
from tests.helpers.wheel import environment

QUICK = ("--epochs", 1, "--threads", 1, "--batch-size", 36, "--no-tensorboard")


def test_a_wheel_is_enough_to_train_on_slurm(
    cluster: Cluster, installed: Path, shards: Path, tmp_path: Path
) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    cluster_env = {"PATH": cluster.env["PATH"], "SLURM_CONF": cluster.env["SLURM_CONF"]}

    def call(*command: object) -> str:
        done = subprocess.run(
            [*map(str, command)],
            cwd=elsewhere,
            env={**environment(), **cluster_env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(installed / "fer-hpc", "init", site)
    flags = ("cnn_baseline", "--data", shards, *QUICK, "--run")
    by_script, by_job = tmp_path / "by script", tmp_path / "by job"
    script = site / "slurm" / "train_cnn.sh"
    first = call("sbatch", "--parsable", script, *flags, by_script).strip()
    job = site / "jobs" / "train.py"
    printed = call(installed / "python", job, *flags, by_job, "--cluster", "slurm")
    second = printed.split("job ", 1)[1].split()[0]
    for name, run in ((first, by_script), (second, by_job)):
        logs = [*elsewhere.glob("*.log"), *run.glob("jobs/*_log.out"), *run.glob("logs/*")]
        state = cluster.wait(name)
        assert state == "COMPLETED", "\n".join(p.read_text() for p in logs)
        assert read_status(run)["state"] == "finished"
        environment_of_run = read_environment(run)
        assert environment_of_run["job"]["id"] == name
        assert "commit" not in environment_of_run["code"], "not the code of the checkout"
