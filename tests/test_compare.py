"""Comparing two runs, and two sets of seeds: known values and mistakes."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from fer_hpc.cli.main import main
from fer_hpc.config import UserError
from fer_hpc.config.commands import CompareConfig
from fer_hpc.evaluation import predictions
from fer_hpc.evaluation.compare import compare, format_comparison, holm, mcnemar
from fer_hpc.evaluation.seeds import welch
from fer_hpc.files import to_jsonl

CLASSES = ("a", "b", "c")


def scored_run(
    run: Path,
    share_right: float,
    n: int = 600,
    seed: int = 0,
    persons: bool = False,
    **changes: object,
) -> Path:
    """A folder with predictions of n faces, of which a share is right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    right = rng.random(n) < share_right
    logits = np.eye(3)[np.where(right, labels, (labels + 1) % 3)]
    arrays = {
        "logits": logits.astype(np.float32),
        "labels": labels,
        "classes": np.array(CLASSES),
        "source_id": np.array([f"s{i}".encode() for i in range(n)]),
        "group": np.arange(n) // 6 if persons else np.full(n, -1),
        "image_hash": np.array([f"h{i}".encode() for i in range(n)]),
        **changes,
    }
    run.mkdir()
    config = {"science": {}, "data": {"path": "d", "fingerprint": "f"}}
    (run / "config.json").write_text(json.dumps(config))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    (run / "predictions-val.npz").write_bytes(buffer.getvalue())
    return run


def test_mcnemar_is_the_exact_binomial_test() -> None:
    for b, c in ((0, 0), (5, 5), (1, 9), (3, 17), (60, 90)):
        n, k = b + c, min(b, c)
        tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
        assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))
    # Agresti (1990), 86 and 150 discordant: 3.7e-5
    assert mcnemar(86, 150) == pytest.approx(3.716e-5, rel=1e-3)


def test_holm_adjusts_as_in_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


def test_welch_agrees_with_a_calculation_by_hand() -> None:
    a, b = [0.61, 0.63, 0.60, 0.64], [0.58, 0.57, 0.61]
    found = welch(a, b)
    va, vb = np.var(a, ddof=1) / 4, np.var(b, ddof=1) / 3
    df = (va + vb) ** 2 / (va**2 / 3 + vb**2 / 2)
    from scipy.stats import t

    half = t.ppf(0.975, df) * np.sqrt(va + vb)
    difference = np.mean(a) - np.mean(b)
    assert found["difference_95"] == pytest.approx([difference - half, difference + half])
    assert found["p"] == pytest.approx(2 * t.sf(difference / np.sqrt(va + vb), df))


def test_a_clear_difference_is_named_and_a_small_one_is_not(tmp_path: Path) -> None:
    good, bad = scored_run(tmp_path / "good", 0.9), scored_run(tmp_path / "bad", 0.6, seed=1)
    like = scored_run(tmp_path / "like", 0.9, seed=2)
    found = compare(CompareConfig(runs=(good, bad, like)))
    by_names = {(Path(p["a"]).name, Path(p["b"]).name): p for p in found["pairs"]}
    clear = by_names["good", "bad"]
    assert clear["verdict"] == f"{good} is better"
    assert clear["accuracy"]["difference_95"][0] > 0.2
    assert by_names["good", "like"]["verdict"] == "not distinguishable"
    assert by_names["bad", "like"]["verdict"] == f"{like} is better"
    text = format_comparison(found)
    assert ", by accuracy: not distinguishable" in text
    assert "can show a difference" in text
    assert "the same class" not in text


def test_the_bootstrap_has_the_spread_of_theory(tmp_path: Path) -> None:
    runs = tuple(scored_run(tmp_path / n, 0.8, seed=k) for k, n in enumerate("ab"))
    pair = compare(CompareConfig(runs=runs))["pairs"][0]
    discordant = (pair["mcnemar"]["only_a"] + pair["mcnemar"]["only_b"]) / 600
    delta = pair["accuracy"]["difference"]
    spread = math.sqrt((discordant - delta**2) / 600)
    low, high = pair["accuracy"]["difference_95"]
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.08)
    assert pair["smallest_difference"] == pytest.approx(2.80 * spread, rel=0.06)


def test_photographs_of_one_person_count_less(tmp_path: Path) -> None:
    """All six photographs of a person are right or wrong together: the interval is wider."""
    right = {
        n: np.repeat(np.random.default_rng(k).random(100) < 0.8, 6) for k, n in enumerate("ab")
    }
    labels = np.arange(600) % 3
    widths = []
    for persons in (False, True):
        runs = tuple(
            scored_run(
                tmp_path / f"{n}{persons}",
                0,
                persons=persons,
                logits=np.eye(3, dtype=np.float32)[np.where(r, labels, (labels + 1) % 3)],
            )
            for n, r in right.items()
        )
        pair = compare(CompareConfig(runs=runs))["pairs"][0]
        low, high = pair["accuracy"]["difference_95"]
        widths.append(high - low)
        assert pair["resampled"] == ("100 persons" if persons else "600 faces")
    assert widths[1] / widths[0] == pytest.approx(math.sqrt(6), rel=0.15)


def test_faces_in_another_order_and_of_another_size_are_matched(tmp_path: Path) -> None:
    a = scored_run(tmp_path / "a", 0.7)
    with np.load(a / "predictions-val.npz") as saved:
        arrays = {key: saved[key] for key in saved.files}
    order = np.random.default_rng(0).permutation(600)
    turned = {k: v if k == "classes" else v[order] for k, v in arrays.items()}
    turned["image_hash"] = np.array([f"other{i}".encode() for i in range(600)])
    swap = [2, 0, 1]  # the classes, too, stand in another order
    turned["classes"] = arrays["classes"][swap]
    turned["logits"] = turned["logits"][:, swap]
    turned["labels"] = np.argsort(swap)[turned["labels"]]
    b = scored_run(tmp_path / "b", 0, **turned)
    found = compare(CompareConfig(runs=(a, b)))
    pair = found["pairs"][0]
    assert "both give every face the same class" in format_comparison(found)
    assert (pair["mcnemar"]["only_a"], pair["mcnemar"]["only_b"]) == (0, 0)
    assert pair["mcnemar"]["p"] == 1.0
    assert pair["smallest_difference"] > 0


def test_two_sets_of_seeds_are_compared_with_seeds_as_samples(tmp_path: Path) -> None:
    a = tuple(scored_run(tmp_path / f"a{k}", 0.8, seed=k) for k in range(3))
    b = tuple(scored_run(tmp_path / f"b{k}", 0.6, seed=9 + k) for k in range(3))
    sets = compare(CompareConfig(runs=a, versus=b))["versus"]
    assert sets["verdict"] == "the first set is better"
    assert sets["accuracy"]["difference"] == pytest.approx(0.2, abs=0.05)
    few = compare(CompareConfig(runs=a[:2], versus=b))
    assert "3 seeds of each" in few["versus"]["verdict"]
    assert "not distinguishable" in format_comparison(few)


def test_one_network_does_not_count_as_two_seeds(tmp_path: Path) -> None:
    a = tuple(scored_run(tmp_path / f"a{k}", 0.8, seed=k) for k in range(3))
    b = tuple(scored_run(tmp_path / f"b{k}", 0.6, seed=k // 2) for k in range(3))
    with pytest.raises(UserError, match=r"b0 and .*b1 of the second set give equal outputs"):
        compare(CompareConfig(runs=a, versus=b))


def test_what_differs_beside_the_seed_is_noted(tmp_path: Path) -> None:
    a = tuple(scored_run(tmp_path / f"a{k}", 0.8, seed=k) for k in range(3))
    b = tuple(scored_run(tmp_path / f"b{k}", 0.6, seed=9 + k) for k in range(3))
    for k, run in enumerate(a):
        config = {"science": {"seed": k}, "data": {"path": "d", "fingerprint": "f"}}
        (run / "config.json").write_text(json.dumps(config))
    for k, run in enumerate(b):
        science = {"seed": 0, "lr": 0.1 * (k > 1), "flip": True}
        config = {"science": science, "data": {"path": "d", "fingerprint": f"f{k}"}}
        (run / "config.json").write_text(json.dumps(config))
    comparison = compare(CompareConfig(runs=a, versus=b))
    assert comparison["versus"]["notes"] == [
        "the runs of the second set differ in data, lr",
        "seed 0 is 3 runs of the second set",
    ]
    assert "note: the runs of the second set differ in data, lr" in format_comparison(comparison)


def test_a_runs_own_data_is_found_where_another_run_names_it(tmp_path: Path) -> None:
    a, b = scored_run(tmp_path / "a", 0.7), scored_run(tmp_path / "b", 0.6, n=300)
    with pytest.raises(UserError) as error:
        compare(CompareConfig(runs=(a, b)))
    hint = f"fer-hpc evaluate {b} --split val --data d, then fer-hpc compare with --name val-on-d"
    assert hint in str(error.value)
    other = scored_run(tmp_path / "c", 0.6)
    (other / "predictions-val.npz").rename(b / "predictions-val-on-d.npz")
    comparison = compare(CompareConfig(runs=(a, b), name="val-on-d"))
    assert [row["predictions"] for row in comparison["runs"]] == ["val", "val-on-d"]
    assert f"{a} (val): accuracy" in format_comparison(comparison)


def test_the_data_of_the_name_is_what_both_are_scored_on(tmp_path: Path) -> None:
    a, b = scored_run(tmp_path / "a", 0.7, n=300), scored_run(tmp_path / "b", 0.6)
    (a / "predictions-val.npz").rename(a / "predictions-val-on-fixed.npz")
    with pytest.raises(UserError) as error:
        compare(CompareConfig(runs=(a, b), name="val-on-fixed"))
    hint = f"score {b} on it: fer-hpc evaluate {b} --split val --data DIR (its folder fixed)"
    assert hint in str(error.value)


def test_predictions_of_an_epoch_that_is_no_longer_the_best_are_refused(tmp_path: Path) -> None:
    a, b = scored_run(tmp_path / "a", 0.7), scored_run(tmp_path / "b", 0.6)
    attempt = b / "attempts" / "0001"
    attempt.mkdir(parents=True)
    (attempt / "environment.json").write_text(json.dumps({"parent": None}))
    (attempt / "status.json").write_text(json.dumps({"state": "finished", "why": ""}))
    rows = [{"epoch": k, "images_seen": 10 * k, "best": True} for k in (1, 2)]
    (attempt / "metrics.jsonl").write_bytes(to_jsonl(rows))
    scores = b / "eval-val.json"
    scores.write_text(json.dumps({"epoch": 1, "finished": True}))
    with pytest.raises(UserError) as error:
        compare(CompareConfig(runs=(a, b)))
    again = f"fer-hpc evaluate {b} --split val scores it again"
    assert f"{scores} is of epoch 1, and the best is 2 now; {again}" in str(error.value)
    scores.write_text(json.dumps({"epoch": 2, "finished": True}))
    assert compare(CompareConfig(runs=(a, b)))


def test_a_run_and_a_link_to_it_are_one(tmp_path: Path) -> None:
    run, link = scored_run(tmp_path / "a", 0.7), tmp_path / "link"
    link.symlink_to(run)
    with pytest.raises(UserError, match="a run is named twice"):
        compare(CompareConfig(runs=(run, link)))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("test", "--split test writes"),
        ("val-ten_crop", "--split val --tta ten_crop writes"),
        ("test-flip-on-six", "--split test --tta flip --data DIR (its folder six) writes"),
    ],
)
def test_absent_predictions_name_the_command_that_writes_them(
    tmp_path: Path, name: str, command: str
) -> None:
    a, b = scored_run(tmp_path / "a", 0.7), scored_run(tmp_path / "b", 0.7)
    with pytest.raises(UserError) as error:
        compare(CompareConfig(runs=(a, b), name=name))
    assert f"fer-hpc evaluate {a} {command} them" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": np.array(["a", "b", "x"])}, "other classes (c, x only in one"),
        ({"labels": (np.arange(600) + 1) % 3}, "other labels for 600 of 600"),
        (
            {
                k: np.array([f"q{i}".encode() for i in range(600)])
                for k in ("source_id", "image_hash")
            },
            "different faces (600 and 600, 0 of the same source id)",
        ),
        ({"labels": np.full(600, 7)}, "damaged (its arrays do not fit"),
        ({"logits": np.full((600, 3), np.nan, np.float32)}, "damaged"),
    ],
)
def test_runs_that_cannot_be_compared_are_one_message(
    tmp_path: Path, changes: dict, message: str
) -> None:
    a, b = scored_run(tmp_path / "a", 0.7), scored_run(tmp_path / "b", 0.7, **changes)
    with pytest.raises(UserError) as error:
        compare(CompareConfig(runs=(a, b)))
    assert message in str(error.value)


def test_absent_damaged_and_pickled_predictions_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = scored_run(tmp_path / "a", 0.7), scored_run(tmp_path / "b", 0.7)
    assert main(["compare", str(a), str(b), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"][0]["verdict"] == "not distinguishable"
    file = b / "predictions-val.npz"
    for content, words in (
        (file.read_bytes()[:900], "is damaged"),
        (b"", "is damaged"),
        (None, "fer-hpc evaluate"),
    ):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(UserError, match=words):
            compare(CompareConfig(runs=(a, b)))
    np.savez(
        file,
        **{k: np.array([{}], dtype=object) for k in predictions.ARRAYS},
    )
    with pytest.raises(UserError, match="is damaged"):
        compare(CompareConfig(runs=(a, b)))
    with pytest.raises(UserError, match="twice"):
        compare(CompareConfig(runs=(a, a)))
    with pytest.raises(UserError, match="not a run folder"):
        compare(CompareConfig(runs=(a, tmp_path / "nowhere")))
    with pytest.raises(UserError, match="two run folders"):
        CompareConfig(runs=(a,))
