"""`fer-hpc verify`: equal runs, the first difference, and what is named as its cause."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fer_hpc.cli.main import main
from fer_hpc.config import UserError
from fer_hpc.config.commands import VerifyConfig
from fer_hpc.drill.verify import format_verdict, verify
from fer_hpc.files import read_json, to_jsonl, write_json
from fer_hpc.run import checkpoint

SCIENCE = {"seed": 0, "lr": 0.1, "epochs": 2, "threads": 1, "schedule": "plateau"}
SURROUNDINGS = {
    "parent": None,
    "device": "cpu",
    "world_size": 1,
    "packages": {"torch": "2.8.0", "numpy": "2.0"},
}


def make_run(
    path: Path,
    values: tuple[float, float] = (1.0, 2.0),
    science: dict[str, Any] | None = None,
    data: str = "ab",
    **surroundings: Any,
) -> Path:
    """A finished run of two epochs whose weights and losses are `values`."""
    attempt = path / "attempts" / "0001"
    attempt.mkdir(parents=True)
    stored = {"science": SCIENCE | (science or {}), "data": {"path": "d", "fingerprint": data}}
    write_json(path / "config.json", stored)
    write_json(attempt / "environment.json", SURROUNDINGS | surroundings)
    write_json(attempt / "status.json", {"state": "finished", "why": ""})
    rows = [
        {"epoch": k, "images_seen": 10 * k, "train_loss": v, "val_loss": v}
        for k, v in enumerate(values, 1)
    ]
    (attempt / "metrics.jsonl").write_bytes(to_jsonl(rows))
    for images, value in zip((10, 20), values, strict=True):
        weights = {"first": torch.ones(3), "second": torch.tensor([1.0, value])}
        content = {"model": weights, "images_seen": images, "science": stored["science"]}
        checkpoint.save(attempt / f"{images:012d}.pt", content)
    checkpoint.save(attempt / "final.pt", {"model": weights})
    return path


def test_equal_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", device="other")
    assert main(["verify", str(a), str(b)]) == 0
    line = capsys.readouterr().out
    assert "are equal: metrics of 2 epochs, the checkpoint at 10 images" in line
    assert "final.pt" in line
    assert main(["verify", str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["equal"] is True


def test_the_first_difference_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", (1.0, 2.5), {"lr": 0.2})
    assert main(["verify", str(a), str(b)]) == 3
    text = capsys.readouterr().out
    assert "epoch 2, which ends at 20 images: train_loss 2.0 against 2.5" in text
    assert "model/second: 1 of 2 values, largest difference 0.5, of the checkpoint at 20" in text
    assert "likely cause     another flag: --lr 0.1 against --lr 0.2" in text


def chain_row(images: int, stops: list[list[Any]], weights: str = "w") -> dict[str, Any]:
    row = {"images_seen": images, "since": 0, "order": stops[-1][1], "sums": stops[-1][2]}
    return row | {"weights": weights, "stops": stops}


@pytest.mark.parametrize(
    "second, words",
    [
        ([[15, "o3", "s3"], [20, "o4", "s4"]], ""),
        ([[15, "x", "y"], [20, "x", "y"]], "the samples or their order between 10 and 15 images"),
        ([[15, "o3", "s3"], [20, "o4", "y"]], "losses, of equal samples, between 15 and 20 images"),
        ("weights", "weights at 20 images seen, after equal losses"),
    ],
)
def test_the_first_steps_that_differ_are_named(tmp_path: Path, second: Any, words: str) -> None:
    first = chain_row(10, [[5, "o1", "s1"], [10, "o2", "s2"]])
    stops = [[15, "o3", "s3"], [20, "o4", "s4"]]
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    rows = {a: chain_row(20, stops), b: chain_row(20, second)} if second != "weights" else {
        a: chain_row(20, stops), b: chain_row(20, stops, "other")}  # fmt: skip
    for run, row in rows.items():
        (run / "attempts" / "0001" / "chain.jsonl").write_bytes(to_jsonl([first, row]))
    verdict = verify(VerifyConfig(a=a, b=b))
    assert verdict.equal is not bool(words)
    assert verdict.first_steps.startswith(words)
    assert bool(verdict.first_steps) is bool(words)
    if not words:
        assert "samples and losses of 20 images in their order" in verdict.compared


def test_weights_may_differ_where_metrics_do_not(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (a / "attempts" / "0001" / "metrics.jsonl").unlink()
    path = b / "attempts" / "0001" / "000000000010.pt"
    saved = checkpoint.load(path)
    saved["model"]["first"][2] = -0.0
    checkpoint.save(path, saved)
    verdict = verify(VerifyConfig(a=a, b=b))
    assert verdict.equal is False
    assert verdict.first_tensor.startswith("model/first: 1 of 3 values, largest difference 1,")
    assert "nothing that is recorded differs" in format_verdict(verdict)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": "cd"}, "other data: fingerprint ab against cd"),
        ({"science": {"threads": 2}}, "another flag: --threads 1 against --threads 2"),
        ({"world_size": 2}, "another number of ranks: 1 against 2"),
        ({"device": "NVIDIA H200"}, "another device: cpu against NVIDIA H200"),
        (
            {"packages": {"torch": "2.9.0", "numpy": "2.0"}},
            "another package versions: torch 2.8.0, numpy 2.0 against torch 2.9.0, numpy 2.0",
        ),
    ],
)
@pytest.mark.parametrize("has_chain", [False, True])
def test_the_likely_cause(
    tmp_path: Path, changes: dict[str, Any], words: str, has_chain: bool
) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", (1.5, 2.5), **changes)
    for run, sums in ((a, "s1"), (b, "s2")) if has_chain else ():  # from the first step on
        row = chain_row(10, [[5, "o1", sums], [10, "o2", sums]])
        (run / "attempts" / "0001" / "chain.jsonl").write_bytes(to_jsonl([row]))
    verdict = verify(VerifyConfig(a=a, b=b))
    assert verdict.causes == [words]
    assert verdict.first_epoch.startswith("epoch 1")


def test_what_a_later_start_had_is_no_cause_of_an_earlier_difference(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", (1.5, 2.5))
    later = b / "attempts" / "0002"
    later.mkdir()
    parent = {"parent": {"attempt": 1, "images_seen": 20}, "device": "other"}
    write_json(later / "environment.json", SURROUNDINGS | parent)
    assert verify(VerifyConfig(a=a, b=b)).causes == []


def test_a_run_that_was_trained_further_has_no_cause_to_look_for(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", science={"epochs": 3}, world_size=2)
    row = {"epoch": 3, "images_seen": 30, "train_loss": 1.0, "val_loss": 1.0}
    with (b / "attempts" / "0001" / "metrics.jsonl").open("ab") as file:
        file.write(to_jsonl([row]))
    verdict = verify(VerifyConfig(a=a, b=b))
    assert verdict.first_epoch == "2 epochs against 3"
    assert verdict.causes == ["one was trained further; what both have is equal"]


def test_runs_that_have_nothing_in_common(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    shutil.rmtree(b / "attempts")
    assert main(["verify", str(a), str(b)]) == 3
    assert "no epoch and no checkpoint that both have" in capsys.readouterr().out
    assert main(["verify", str(a), str(tmp_path / "c")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_kinds_and_folders_must_make_sense(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    write_json(b / "config.json", {**read_json(b / "config.json"), "kind": "GAN"})
    with pytest.raises(UserError, match="holds a classifier and"):
        verify(VerifyConfig(a=a, b=b))
    with pytest.raises(UserError, match="the same folder"):
        verify(VerifyConfig(a=a, b=a))
