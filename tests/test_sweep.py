"""A sweep's folder without Ray: identity, order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer_hpc.cli.parse import configure
from fer_hpc.cluster.pipeline import _train_args
from fer_hpc.config import UserError
from fer_hpc.sweep import grid as sweep
from fer_hpc.sweep.halving import SuccessiveHalving
from tests.helpers.sweeps import prepared, trained, trials_of


def test_a_trial_is_its_science_fields(shards: Path, tmp_path: Path) -> None:
    names = [trial.name for trial in trials_of(shards, tmp_path, "--epochs", "3")[1]]
    assert len(set(names)) == 27
    assert names[:2] == [n for n in names if n.startswith("b64-lr0.001-")][:2], (
        "the seeds of a configuration are neighbours"
    )
    assert [
        t.name
        for t in trials_of(shards, tmp_path / "elsewhere", "--epochs", "3", "--device", "cpu")[1]
    ] == names
    assert not set(names) & {t.name for t in trials_of(shards, tmp_path, "--epochs", "4")[1]}
    assert not set(names) & {
        t.name for t in trials_of(shards, tmp_path, "--epochs", "3", "--threads", "2")[1]
    }
    more = [
        t.name
        for t in trials_of(shards, tmp_path, "--epochs", "3", "--seeds", "0", "1", "2", "3")[1]
    ]
    assert set(names) < set(more)


def test_another_sweep_in_the_folder_is_refused_by_name(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(shards, out, "--epochs", "3")
    with pytest.raises(UserError, match=r"--epochs 3 \(now --epochs 4\)"):
        sweep.check_sweep(*trials_of(shards, out, "--epochs", "4"))
    sweep.check_sweep(*trials_of(shards, out, "--epochs", "3", "--lrs", "0.5"))
    (tmp_path / "full" / "thesis").mkdir(parents=True)
    with pytest.raises(UserError, match="holds other files"):
        sweep.check_sweep(*trials_of(shards, tmp_path / "full"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "0.1"], "give --lrs with one or more values"),
        (["--run", "x"], "--run belongs to train"),
        (["--gpus-per-worker", "0.5", "--workers-per-trial", "2"], "cannot share a GPU"),
        (["--gpus-per-worker", "2"], "wanted 0"),
        (["--threads", "0"], "say how many"),
        (["--best-on", "train_loss"], "ranked on val"),
        (
            ["--batch-sizes", "64", "33", "--workers-per-trial", "2"],
            "--batch-size 33 does not divide by world size 2",
        ),
        (["--data", "nowhere"], "holds no shards"),
    ],
)
def test_a_trial_that_cannot_run_is_refused_at_once(
    shards: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trials_of(shards, tmp_path / "out", *flags)


def test_the_grid_runs_in_order_and_finished_trials_do_not(shards: Path, tmp_path: Path) -> None:
    config, trials = trials_of(
        shards, tmp_path, "--epochs", "3", "--batch-sizes", "64", "--seeds", "0", "1"
    )
    trained(trials[0], 0.1, 0.2, 0.3)
    trained(trials[1], 0.1, 0.2, 0.3, state="interrupted")  # killed before it wrote its weights
    trained(trials[2], 0.1, state="interrupted")
    plan = SuccessiveHalving(config, trials)
    order = []
    while found := plan.next():
        order.append(found[0])
        assert found[1] == 3
    assert order == trials[1:]
    assert not plan.over
    for trial in order:
        plan.ended(trial, failed=False)
    assert plan.over


def test_an_arrays_trial_has_the_sweeps_own_flags(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    flags = ["--init-from", "w.pt", "--device", "cpu", "--no-tensorboard", "--grid", "flip=true"]
    config, trials = trials_of(shards, out, *flags)
    sweep.prepare(config, "cnn_baseline", trials)
    arguments = _train_args("cnn_baseline", trials[7].config)
    assert configure("train", ["cnn_baseline", *arguments]) == trials[7].config
    assert trials[7].config.init_from == tmp_path / "w.pt"
    with pytest.raises(UserError, match=r"--init-from .*w.pt \(now --init-from .*v.pt"):
        sweep.check_sweep(*trials_of(shards, out, *flags, "--init-from", "v.pt"))
