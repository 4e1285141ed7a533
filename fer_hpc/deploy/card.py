"""The model card: what a run folder knows about a classifier, for someone who gets its files.

Mitchell et al. 2019, Model cards for model reporting. No torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fer_hpc import __version__
from fer_hpc.config import UserError
from fer_hpc.config.errors import counted
from fer_hpc.data.manifest import Manifest, find_manifest
from fer_hpc.deploy.model import About
from fer_hpc.evaluation.calibration import TEMPERATURES
from fer_hpc.evaluation.openings import count_openings
from fer_hpc.evaluation.results import empty_classes
from fer_hpc.files import DAMAGE, read_json
from fer_hpc.run.folder import data_folder, read_rows, read_run_config

GROUPS = "age", "gender", "ethnicity"  # that a reader asks for
LIMITS = """\
- **An expression is not an emotion.** The classes describe what a face looks like to the people who
  labelled the training pictures. They do not tell what a person feels, thinks or intends (Barrett
  et al. 2019).
- Not for decisions about people: hiring, policing, grading, medicine, border control. In the EU,
  inferring emotions at work and in education is prohibited (AI Act, article 5).
- Scores hold for pictures like those of the test split. Other cameras, poses, ages or cultures give
  other, most often worse, scores.
- Labels of expressions are noisy: people themselves agree on them only in part.
"""

Rows = list[list[str]]


def model_card(run: Path, about: About, is_final: bool, facts: dict[str, Any]) -> str:
    """The card as Markdown; `facts` are those of the export, see `export`.

    Results that are missing or damaged are named as not measured.
    """
    stored = read_run_config(run)
    manifest = _manifest_of(run, stored)
    scores = [s for path in sorted(run.glob("eval-*.json")) if (s := _scores_of(path, about))]
    parts = [
        _head(about, is_final, facts),
        _use(about),
        _data(stored, about, manifest),
        _training(run, stored, about),
        _performance(scores, run),
        _calibration(scores, about),
        _groups(scores),
        _robustness(run, about),
        "## Limits\n\n" + LIMITS,
        f"Written by fer_hpc {__version__} from the run folder `{about.run}`.",
    ]
    return "\n".join(parts) + "\n"


def _head(about: About, is_final: bool, facts: dict[str, Any]) -> str:
    height, width, channels = about.image_shape
    state = "" if is_final else " The run was not finished: these are the best weights so far."
    rows = [
        ["network", f"`{about.network}`, {facts['parameters']:,} parameters"],
        ["input", f"faces of {height}x{width} pixels, {'gray' if channels == 1 else 'RGB'}"],
        ["output", "probabilities of " + ", ".join(about.classes)],
        ["weights", f"epoch {about.epoch}, SHA-256 `{about.weights}`"],
        ["ONNX against torch", f"probabilities differ by at most {facts['difference']:.1e}"],
    ]
    if facts["precision"] not in ("fp32", "fp64"):
        precision = f"fp32; {facts['precision']} differs by up to {facts['rounding']:.1e}"
        rows.append(["precision of the ONNX file", precision])
    front = "---\nlibrary_name: fer_hpc\npipeline_tag: image-classification\ntags:\n"
    front += "- facial-expression-recognition\n- onnx\n---\n"
    intro = "A classifier of facial expressions: from a picture of one face to class probabilities."
    return f"{front}\n# {about.run}\n\n{intro}{state}\n\n{_table(['', ''], rows)}"


def _use(about: About) -> str:
    """How faces must be cut, and code that runs."""
    size, kind = about.image_shape[0], about.input
    recipe = [[key, str(value)] for key, value in about.faces.items()]
    shape = f"[N, {', '.join(map(str, about.image_shape))}]"
    scale = "0 to 255" if kind == "uint8" else "0 to 1"
    return (
        "## Use\n\n"
        "```\nfer-hpc predict model.onnx PHOTOS --out predictions    # finds the faces; no torch\n"
        "```\n\nor with onnxruntime alone:\n\n"
        "```python\nimport onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        f"# faces: {kind} {shape}, {scale}, channels last; any N\n"
        'probabilities = session.run(["probabilities"], {"faces": faces})[0]  # [N, '
        f"{len(about.classes)}]\n```\n\n"
        f"Normalisation and calibration are in the file. Faces must be cut as those of the "
        f"training, and resized to {size}x{size}:\n\n{_table(['faces', ''], recipe)}"
    )


def _data(stored: dict[str, Any], about: About, manifest: Manifest | None) -> str:
    text = f"## Training data\n\nData set `{stored['data']['fingerprint']}`"
    if manifest is None:
        return f"{text}. Its folder is not here any more, so its counts are not known.\n"
    content = manifest.content
    kind = content["source"]["kind"]
    splits = [name for name in ("train", "val", "test") if manifest.n(name)]
    rows = [
        [c, *(f"{content['splits'][s]['class_counts'].get(c, 0):,}" for s in splits)]
        for c in about.classes
    ]
    rows.append(["**all**", *(f"**{manifest.n(s):,}**" for s in splits)])
    notes = "".join(f"- {note}\n" for note in content["notes"])
    drawn = " They are drawn, not photographs of people." if kind == "synthetic" else ""
    rule = f"Split: {content['split_rule']}.{drawn}"
    source = f", source `{kind}`. {rule}\n\n"
    text += source + _table(["faces", *splits], rows) + (f"\n{notes}" if notes else "")
    counts = content["splits"].get("train", {}).get("class_counts", {})
    absent = [name for name in about.classes if not counts.get(name)]
    if absent:
        text += f"\n**No training face of {', '.join(absent)}**: the network has not learnt it.\n"
    return text


def _training(run: Path, stored: dict[str, Any], about: About) -> str:
    science = stored["science"]
    names = "epochs batch_size optimizer lr schedule weight_decay label_smoothing class_weights "
    names += "flip rotate shift scale erase mixup ema loss precision seed pretrained"
    rows = [[f"`{n}`", str(science[n])] for n in names.split() if science.get(n) not in (None, "")]
    seen = 0
    with contextlib.suppress(*DAMAGE):
        seen = max((int(row["images_seen"]) for row in read_rows(run)), default=0)
    text = f"Epoch {about.epoch} was chosen on val"
    text += f"; {seen:,} images were seen in all.\n\n" if seen else ".\n\n"
    return "## Training\n\n" + text + _table(["setting", "value"], rows)


def _performance(scores: list[dict[str, Any]], run: Path) -> str:
    text = "## Scores\n\n"
    if not scores:
        return text + "Not measured. `fer-hpc evaluate RUN --split test` does.\n"
    keys = ("accuracy", "balanced_accuracy", "macro_f1")
    rows = [
        [
            s["name"],
            f"{s['n']:,}",
            *(_interval(s, key) for key in keys),
            f"{s['majority_rate']:.3f}",
        ]
        for s in scores
    ]
    head = ["faces of", "n", "accuracy", "balanced accuracy", "macro-F1", "majority class"]
    text += "Brackets are 95 % intervals over the choice of the faces, not of the seed. "
    text += "Val chose the epoch, so its scores are a little high.\n\n" + _table(head, rows)
    for each in scores:
        if each["accuracy_95"][0] <= each["majority_rate"]:
            text += f"\n**On {each['name']} it is not shown to be better than to name the most "
            text += "frequent class every time.**\n"
        if without := empty_classes(each["classes"]):
            text += f"\nOn {each['name']} {without}.\n"
    tested = {s["data"] for s in scores if s["name"].startswith("test") and "data" in s}
    if tested:
        opened = sum(count_openings(run, data) for data in tested)
        text += f"\nThe test split was opened {opened:,} time{'s' * (opened != 1)} for this run.\n"
    else:
        text += "\nAccuracy on the test split: not measured.\n"
    last = next((s for s in scores if s["name"] == "test"), scores[-1])
    recalls = [
        [
            name,
            f"{class_scores['n']:,}",
            *(_share(class_scores[key]) for key in ("recall", "precision")),
        ]
        for name, class_scores in last["classes"].items()
    ]
    head = [f"class, on {last['name']}", "n", "recall", "precision"]
    return text + "\n" + _table(head, recalls)


def _calibration(scores: list[dict[str, Any]], about: About) -> str:
    text = "## Calibration\n\n"
    if about.temperature is None:
        text += "Not calibrated: probabilities are those of the softmax, most often too sure.\n"
    else:
        text += f"Probabilities are softmax(logits / {about.temperature:.3f}); the temperature was "
        text += "fitted on val and is in the ONNX file.\n"
        if about.temperature > 0.99 * TEMPERATURES[1]:
            text += "It is the largest that is tried: the logits hardly say which class it is.\n"
    rows = []
    for each in scores:
        calibration = each.get("calibration")
        for when in ("before", "after"):
            part = calibration.get(when) if isinstance(calibration, dict) else None
            if isinstance(part, dict) and "ece" in part:
                ece = _interval(part, "ece")
                rows.append([each["name"], when, ece, f"{part['nll']:.3f}", f"{part['brier']:.3f}"])
    if not rows:
        return text + "Calibration error: not measured.\n"
    head = ["faces of", "temperature", "expected calibration error", "cross-entropy", "Brier"]
    return text + "\n" + _table(head, rows)


def _groups(scores: list[dict[str, Any]]) -> str:
    """Scores by group, and the groups that nobody has measured."""
    text, measured = "## Groups of people\n\n", set()
    for each in scores:
        groups = each.get("groups")
        for column, table in groups.items() if isinstance(groups, dict) else ():
            with contextlib.suppress(*DAMAGE):
                text += _group_table(column, table, each["name"])
                measured.add(column.lower())
    absent = [name for name in GROUPS if not any(name in column for column in measured)]
    if absent:
        text += f"Not measured by {', '.join(absent)}: differences between groups are unknown. "
        text += "`preprocess --columns` adds such columns, `evaluate --by` scores them.\n"
    return text


def _group_table(column: str, table: dict[str, Any], name: str) -> str:
    rows = [[str(g["name"]), f"{g['n']:,}", _interval(g, "accuracy")] for g in table["groups"]]
    text = f"By {column}, on {name}:\n\n" + _table(["group", "n", "accuracy"], rows)
    gap = (table.get("gap") or {}).get("accuracy")
    if gap:
        low, high = gap["gap_95"]
        text += f"\nLargest gap, {gap['best']} minus {gap['worst']}: {gap['gap']:.3f} "
        text += f"[{low:.3f}, {high:.3f}]: {gap['verdict']}.\n"
    return text + "\n"


def _robustness(run: Path, about: About) -> str:
    text = "## Robustness\n\n"
    cards = []
    for path in sorted(run.glob("robust-*.json")):
        record = read_json(path)
        if isinstance(record, dict) and record.get("weights") == about.weights:
            with contextlib.suppress(*DAMAGE):
                cards.append(_robustness_table(path, record))
    if not cards:
        return text + "Not measured. `fer-hpc evaluate RUN --split test --robust` does.\n"
    return text + "\n".join(cards)


def _robustness_table(path: Path, record: dict[str, Any]) -> str:
    rows = [
        [kind["title"], f"{kind['mean']:.3f}", f"{kind['levels'][-1]['accuracy']:.3f}"]
        for kind in record["disturbances"].values()
    ]
    clean = record["clean"]["accuracy"]
    head = ["disturbance", "mean accuracy of the strengths", "at the strongest"]
    name = path.stem.removeprefix("robust-")
    intro = (
        f"On {counted(record['n'], 'face')} of {name}; "
        f"accuracy without disturbance {clean:.3f}.\n\n"
    )
    return intro + _table(head, rows)


# ---- reading and writing ----------------------------------------------------------------------


def _manifest_of(run: Path, stored: dict[str, Any]) -> Manifest | None:
    """The manifest of the run's data, where it is still there."""
    try:
        manifest = find_manifest(data_folder(run))
    except (UserError, OSError):
        return None
    is_same = manifest and manifest.fingerprint == stored["data"]["fingerprint"]
    return manifest if is_same else None


def _scores_of(path: Path, about: About) -> dict[str, Any] | None:
    """Scores of these very weights, with the `name` of their split."""
    record = read_json(path)
    if not isinstance(record, dict) or record.get("weights") != about.weights:
        return None
    scores = {**record, "name": path.stem.removeprefix("eval-")}
    try:
        _performance([scores], path.parent)
        _calibration([scores], about)
    except DAMAGE:
        return None
    return scores


def _interval(scores: dict[str, Any], key: str) -> str:
    if not scores.get(f"{key}_95"):
        return _share(scores[key])
    low, high = scores[f"{key}_95"]
    return f"{scores[key]:.3f} [{low:.3f}, {high:.3f}]"


def _share(value: float | None) -> str:
    return "no face" if value is None else f"{value:.3f}"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |\n" for line in lines)
