"""The fields of run folders' files that the report reads, for `check_shape`."""

from __future__ import annotations

from fer_hpc.evaluation.shapes import PAIR

CONFIG = {
    "id": str,
    "science": {
        "seed": int,
        "epochs": int,
        "batch_size": int,
        "lr": (float, None),
        "precision": str,
        "threads": int,
    },
    "data": {"path": str, "fingerprint": str, "image_shape": [int, int, int]},
}
CLASSIFIER_CONFIG = {"science": {"model": str, "lr": float}}
STATUS = {"state": str, "why": str}
ROW = {"epoch": int}
CLASSIFIER_ROW = {
    "epoch": int,
    "lr": float,
    "best": bool,
    "train_accuracy": float,
    "train_loss": float,
    "val_accuracy": float,
    "val_loss": float,
}
TIMING = {"train_s": float, "val_s": float}
MEAN = {"mean": float, "interval_95": PAIR}
DISTANCE = {"value": float, "bootstrap_95": PAIR, "real_halves": float}
CLASS_OF_GAN = {"n": int, "accuracy": float, "accuracy_95": PAIR, "accuracy_of_real_faces": float}
# How well persons are recognised among others' pictures; None where there is no such picture.
WHO = ({"n": int, "nearer": MEAN, "rank_1": MEAN, "rank_1_by_chance": float}, None)
IDENTITY_JUDGE = {  # older results have none
    "left_out": (str, None),  # why the rest is missing
    "judge": ({"model": str, "seed": int, "persons": int, "sha256": str}, None),
    "people_of_its_training": (int, None),
    "n": (int, None),
    "people": (int, None),
    "neutral_pictures": (int, None),
    "neutral_people": (int, None),
    "quality": WHO,
    "among_neutral": ({str: WHO}, None),
    "among_others": ({str: WHO}, None),
    "to_donor": (MEAN, None),
}
GAN_SCORES = {
    "split": str,
    "n": int,
    "judge": {"model": str, "seed": int, "val_accuracy": float, "sha256": str},
    "expression": {
        "informative": bool,
        "accuracy": float,
        "accuracy_95": PAIR,
        "accuracy_of_real_faces": float,
        "classes": {str: CLASS_OF_GAN},
    },
    "identity": {"to_neutral": MEAN, "to_expressive": MEAN, "to_a_stranger": MEAN},
    "identity_judge": (IDENTITY_JUDGE, None),
    "distance": {"frechet": DISTANCE, "kernel": DISTANCE},
    "diversity": {"of_outputs": MEAN, "of_real_faces": MEAN},
}
CONFIGURATION = {
    "settings": ({}, None),  # the swept fields; older sweeps have batch_size and lr only
    "batch_size": int,
    "lr": float,
    "values": {str: float},
    "mean": (float, None),
    "interval_95": (PAIR, None),
    "states": [str, ...],
    "differ": ([str, ...], None),  # older versions have none
}
SWEEP = {
    "preset": str,
    "model": (str, None),
    "differ": ([str, ...], None),
    "metric": str,
    "epochs": (int, [int, ...]),
    "data": str,
    "fingerprint": str,
    "trials": int,
    "finished": int,
    "seeds": [int, ...],
    "ranked": [CONFIGURATION | {"mean": float}, ...],
    "not_ranked": [CONFIGURATION, ...],
    "failed": [{"trial": str, "why": str}, ...],
    "best_two": ({"mean": float, "interval_95": (PAIR, None), "verdict": str}, None),
}
