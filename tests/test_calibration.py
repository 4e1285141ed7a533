"""Calibration, top-2, kappa, seven classes, groups: figures with known values."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from fer_hpc.config import CLASSES, UserError
from fer_hpc.evaluation import calibration, groups, metrics

K = 4


def of_confidences(confidence: list[float], correct: list[bool]) -> calibration.Bins:
    """Bins of faces with these confidences, of two classes."""
    c = np.array(confidence)
    labels = np.where(correct, 0, 1)
    return calibration.Bins.of(np.stack([c, 1 - c], 1), labels, bins=2)


def drawn(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose true probabilities are softmax(logits / temperature), and labels drawn so."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2.5, (n, K))
    p = np.exp(metrics.log_softmax(logits / temperature))
    return logits, (rng.random((n, 1)) > p.cumsum(1)).sum(1)


def test_the_error_is_that_of_a_calculation_by_hand() -> None:
    bins = of_confidences([0.9, 0.6, 0.7, 0.8], [True, False, True, True])
    # least confident first: (.6 wrong, .7 right) and (.8 right, .9 right)
    assert float(bins.error()) == pytest.approx((abs(1.3 - 1) + abs(1.7 - 2)) / 4)
    table = calibration.reliability(bins)
    assert [b["n"] for b in table] == [2, 2]
    assert [b["confidence"] for b in table] == pytest.approx([0.65, 0.85])
    assert [b["accuracy"] for b in table] == [0.5, 1.0]


def test_bins_hold_equally_many_faces_and_none_is_empty() -> None:
    for n in (1, 7, 15, 100, 1009):
        logits, labels = drawn(n, 1.0)
        bins = calibration.scores(logits, labels)["bins"]
        sizes = [b["n"] for b in bins]
        assert len(sizes) == min(15, n)
        assert sum(sizes) == n
        assert max(sizes) - min(sizes) <= 1


def test_a_calibrated_classifier_is_called_calibrated() -> None:
    found = calibration.scores(*drawn(4000, 1.0))
    assert found["ece"] == pytest.approx(found["ece_of_calibrated"], abs=0.008)
    assert found["ece_95"][0] < 0.005
    assert found["ece_95"][0] <= found["ece"] <= 0.03


def test_the_interval_holds_a_known_error() -> None:
    """Confidence is .1 above the accuracy everywhere, so the true error is .1."""
    rng, held = np.random.default_rng(3), 0
    for _ in range(60):
        confidence = rng.uniform(0.55, 0.95, 800)
        correct = rng.random(800) < confidence - 0.1
        p = np.stack([confidence, 1 - confidence], 1)
        bins = calibration.Bins.of(p, np.where(correct, 0, 1))
        low, high = calibration.ece_interval(bins, 150)
        held += low <= 0.1 <= high
        few = calibration.Bins.of(p[:40], np.where(correct, 0, 1)[:40])
        low, high = calibration.ece_interval(few, 150)
        assert low <= few.error() <= high
    assert held >= 51  # 57 expected


def test_the_temperature_of_a_known_distribution_is_found() -> None:
    for true in (0.5, 1.0, 2.5):
        logits, labels = drawn(20_000, true)
        assert calibration.fit_temperature(logits, labels) == pytest.approx(true, rel=0.05)
    logits, labels = drawn(20_000, 2.5)
    found = calibration.calibration(logits, labels, None, 2.5, "")
    assert found["after"]["ece"] < 0.02 < 0.1 < found["before"]["ece"]
    for key in ("nll", "brier"):
        assert found["after"][key] < found["before"][key]


def test_cross_entropy_and_brier_agree_with_scikit_learn() -> None:
    logits, labels = drawn(300, 1.5)
    found = calibration.scores(logits, labels)
    p = np.exp(metrics.log_softmax(logits))
    assert found["nll"] == pytest.approx(sk.log_loss(labels, p))
    one_by_one = [sk.brier_score_loss(labels == k, p[:, k]) for k in range(K)]
    assert found["brier"] == pytest.approx(sum(one_by_one))
    targets = np.full((300, K), 1 / K)
    assert calibration.scores(logits, labels, targets)["nll"] > found["nll"]


def test_top_2_and_kappa_agree_with_scikit_learn() -> None:
    logits, labels = drawn(500, 2.0)
    found = metrics.summary(logits, labels, tuple("abcd"))
    assert found["top_2"] == pytest.approx(sk.top_k_accuracy_score(labels, logits, k=2))
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(labels, logits.argmax(1)))
    for key in ("top_2", "kappa"):
        low, high = found[f"{key}_95"]
        assert low < found[key] < high
    one_class = metrics.summary(np.eye(4)[[0, 0]], np.array([0, 0]), tuple("abcd"))
    assert (one_class["kappa"], one_class["kappa_95"]) == (None, None)


def test_without_contempt_its_logit_is_masked_and_its_faces_are_dropped() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 8, 400)
    logits = rng.normal(0, 1, (400, 8))
    logits[:, 7] = 9  # everything is taken for Contempt
    found = metrics.without_class(logits, labels, CLASSES, "Contempt")
    assert found is not None
    kept = labels != 7
    assert (found["n"], found["dropped"]) == (kept.sum(), (~kept).sum())
    assert list(found["classes"]) == list(CLASSES[:7])
    assert found["accuracy"] == (logits[kept, :7].argmax(1) == labels[kept]).mean()
    assert found["loss"] == pytest.approx(
        sk.log_loss(labels[kept], np.exp(metrics.log_softmax(logits[kept, :7])))
    )
    assert metrics.without_class(logits[:3], np.full(3, 7), CLASSES, "Contempt") is None
    sure = metrics.without_class(np.eye(8), np.arange(8), CLASSES, "Sadness")
    assert sure is not None
    assert (sure["n"], sure["accuracy"]) == (7, 1.0), "classes behind the one left out move up"


# ---- groups ---------------------------------------------------------------------------------


def table_of(names: list[str], right: list[float], n: int, min_n: int = 30) -> dict:
    """A table of groups of n faces of two classes each, of which a share is right."""
    labels = np.tile(np.arange(n) % 2, len(names))
    wrong = np.concatenate([np.arange(n) >= round(share * n) for share in right])
    of_face = np.repeat(np.arange(len(names)), n)
    predicted = np.where(wrong, 1 - labels, labels)
    grouping = groups.Grouping(names, of_face)
    return groups.group_table(grouping, predicted, labels, ("a", "b"), min_n)


def test_a_gap_between_groups_is_found_and_a_small_one_is_not() -> None:
    clear = table_of(["old", "young", "middle"], [0.6, 0.9, 0.85], 400)["gap"]["accuracy"]
    assert (clear["best"], clear["worst"], clear["verdict"]) == ("young", "old", "a gap")
    assert clear["gap"] == pytest.approx(0.3)
    assert clear["gap_95"][0] < 0.3 < clear["gap_95"][1]
    small = table_of(["a", "b"], [0.80, 0.82], 100)["gap"]
    assert small["accuracy"]["verdict"] == "not distinguishable from none"
    assert small["balanced_accuracy"]["gap"] == pytest.approx(0.02, abs=0.001)


def test_chance_makes_no_gap_among_many_groups() -> None:
    """Ten groups of one accuracy: the largest of 45 differences must seldom be called a gap."""
    rng, called = np.random.default_rng(0), 0
    for _ in range(50):
        labels = np.zeros(1000, int)
        predicted = (rng.random(1000) < 0.3).astype(int)
        grouping = groups.Grouping([str(k) for k in range(10)], np.arange(1000) % 10)
        gap = groups.group_table(grouping, predicted, labels, ("a", "b"), 30)["gap"]["accuracy"]
        called += gap["verdict"] == "a gap"
    assert called <= 5


def test_groups_below_the_minimum_are_listed_but_make_no_gap() -> None:
    table = table_of(["a", "b"], [0.5, 1.0], 20)
    assert [row["enough"] for row in table["groups"]] == [False, False]
    assert table["gap"] == {"accuracy": None, "balanced_accuracy": None}
    assert table["groups"][1]["recall"] == {"a": 1.0, "b": 1.0}


def test_columns_become_groups() -> None:
    ages = groups.group("age", np.array([3, 14, 25, 25, 33, 47, 58, 61, 72, 79, 88, 15, 26, -1]))
    assert ages is not None
    assert ages.names[:3] == ["below 10", "10 to 20", "20 to 30"]
    assert [ages.names[k] if k >= 0 else "" for k in ages.of_face[[0, 1, 13]]] == [
        "below 10",
        "10 to 20",
        "",
    ]
    few = groups.group("camera", np.array([2, 1, 2, -1]))
    assert few is not None
    assert (few.names, few.of_face.tolist()) == (["1", "2"], [1, 0, 1, -1])
    text = groups.group("gender", np.array([b"f", b"m", b"", b" f"]))
    assert text is not None
    assert (text.names, text.of_face.tolist()) == (["f", "m"], [0, 1, -1, 0])
    assert groups.group("photo", np.array([f"{k}".encode() for k in range(100)])) is None
    assert groups.group("shape", np.zeros((3, 2))) is None
    with pytest.raises(UserError, match="column in --by"):
        groups.group_tables({}, np.ones(1, bool), ["ege"], *[np.zeros(1, int)] * 2, ("a",), 1)
