from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from fer_hpc.config import UserError
from fer_hpc.evaluation import intervals, metrics

CLASSES = ("a", "b", "c", "d")


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.choice(4, 300, p=[0.6, 0.25, 0.1, 0.05])
    logits = rng.normal(0, 1, (300, 4))
    logits[np.arange(300), labels] += 1.2
    return logits, labels


def test_summary_agrees_with_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = scored
    found, predicted = metrics.summary(logits, labels, CLASSES), logits.argmax(1)
    assert found["n"] == 300
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["balanced_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(labels, predicted)
    )
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert found["loss"] == pytest.approx(sk.log_loss(labels, np.exp(metrics.log_softmax(logits))))
    assert found["confusion"] == sk.confusion_matrix(labels, predicted).tolist()
    assert [c["recall"] for c in found["classes"].values()] == pytest.approx(
        sk.recall_score(labels, predicted, average=None)
    )
    assert [c["precision"] for c in found["classes"].values()] == pytest.approx(
        sk.precision_score(labels, predicted, average=None)
    )
    assert found["majority_rate"] == pytest.approx(np.bincount(labels).max() / 300)


def test_intervals_hold_the_value_and_shrink_with_n(scored: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = scored
    small = metrics.summary(logits, labels, CLASSES)
    large = metrics.summary(np.tile(logits, (16, 1)), np.tile(labels, 16), CLASSES)
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        low, high = small[f"{name}_95"]
        assert low < small[name] < high
        width = large[f"{name}_95"][1] - large[f"{name}_95"][0]
        assert width == pytest.approx((high - low) / 4, rel=0.2)


def test_wilson_interval_of_fer2013_size() -> None:
    """The 95 % interval of one result near 73 % on 3,589 faces is +-1.45 points."""
    low, high = intervals.wilson(round(0.73 * 3589), 3589)
    assert (high - low) / 2 == pytest.approx(0.0145, abs=0.0001)


def test_a_class_without_faces_is_left_out_of_averages() -> None:
    logits = np.eye(4)[[0, 1, 1, 0]] * 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics.summary(logits, np.array([0, 1, 1, 1]), CLASSES)
    assert found["balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["classes"]["d"] == {"n": 0, "recall": None, "precision": 0.0, "f1": None}


def test_every_metric_of_an_epoch_has_a_direction() -> None:
    better = {name: metrics.higher_is_better(name) for name in ("val_accuracy", "train_loss")}
    assert better == {"val_accuracy": True, "train_loss": False}
    assert metrics.higher_is_better("macro_f1")
    assert not metrics.higher_is_better("val_arousal_rmse")
    with pytest.raises(UserError, match="accuracy"):
        metrics.higher_is_better("val_acuracy")


def test_an_interval_over_seeds_stays_within_what_is_possible() -> None:
    assert metrics.seeds_interval("val_accuracy", [0.2, 0.15]) is None
    assert "too few" in metrics.format_interval(None, 2)
    low, high = metrics.seeds_interval("val_accuracy", [0.9, 1.0, 0.95]) or (-1, 2)
    assert 0 < low < 0.95 < high == 1.0
    low, high = metrics.seeds_interval("val_loss", [0.1, 0.9, 0.3]) or (-1, -1)
    assert low == 0.0 < 1 < high
