"""What the verbs that use a trained classifier do. Heavy modules are imported where needed."""

from __future__ import annotations

from typing import Any

from fer_hpc.config import EXIT_FINDINGS, EXIT_FINISHED, UserError
from fer_hpc.config.deploy import ExportConfig, PredictConfig
from fer_hpc.run.folder import read_run_config


def predict(config: PredictConfig) -> int:
    _check_classifier(config)
    from fer_hpc.deploy.predict import predict

    seen = predict(config)
    if config.out is None:
        for photo in seen.photos:
            print("\n".join(_lines(photo)))
    print("\n".join([*seen.counts.describe(), *seen.written]))
    if seen.counts.without and config.crop == "auto" and not config.boxes:
        print("for pictures that are faces already: --crop none takes each as one")
    return EXIT_FINDINGS if seen.counts.failed or not seen.counts.faces else EXIT_FINISHED


def _lines(photo: dict[str, Any]) -> list[str]:
    """A photo's faces, a line each."""
    lines = []
    for face in photo["faces"]:
        left, top, right, bottom = (round(edge) for edge in face["cut"].values())
        ranked = sorted(face["probabilities"].items(), key=lambda item: -item[1])[:2]
        guesses = ", ".join(f"{name} {share:.0%}" for name, share in ranked)
        where = f"{left},{top} to {right},{bottom}"
        lines.append(f"{photo['photo']}: face at {where}: {guesses}")
    return lines


def export(config: ExportConfig) -> int:
    _check_classifier(config)
    from fer_hpc.deploy.export import export

    print("\n".join(export(config)))
    return EXIT_FINISHED


def _check_classifier(config: PredictConfig | ExportConfig) -> None:
    """The errors that need neither torch nor onnxruntime."""
    if config.run.is_file() or config.run.suffix.lower() == ".onnx":
        return
    kind = read_run_config(config.run).get("kind", "classifier")
    if kind != "classifier":
        raise UserError(f"{config.run} holds a {kind}; wanted the run of a classifier")
