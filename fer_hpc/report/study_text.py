"""A study's tables 2 and 3 as Markdown, for papers and READMEs."""

from __future__ import annotations

from fer_hpc.report.study import StudySection
from fer_hpc.report.study_models import Model

HEAD = ("model", "seeds", "val, %", "test, %", "balanced, test, %", "loss, val", "loss, test")


def to_markdown(section: StudySection) -> str:
    """The text of study.md, which lies beside the page."""
    tables = section.plan.tables
    faces = ", ".join(f"{name} {n:,}" for name, n in section.faces.items() if n)
    lines = [
        f"{tables['source']}, split {tables['split']}: {faces} faces; scale {tables['scale']}. "
        "Mean over seeds and Student's 95 % interval; (theirs) of AffectNet. Loss: plain "
        "cross-entropy; o: with label smoothing.",
        "",
        _row(HEAD),
        _row(["---"] * len(HEAD)),
        *(_row(_scores(model)) for model in section.models),
        "",
        _row(["accuracy by class, %", *section.classes]),
        _row(["---"] * (1 + len(section.classes))),
        *(_row(_recalls(model, section)) for model in section.models if model.scores),
    ]
    return "\n".join(lines) + "\n"


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _scores(model: Model) -> list[str]:
    cells = [f"{model.title}, {model.epochs}", str(len(model.runs))]
    their = model.theirs
    columns = (
        ("val", "accuracy", their and 100 * their.val_accuracy),
        ("test", "accuracy", their and 100 * their.test_accuracy),
        ("test", "balanced_accuracy", their and 100 * their.balanced),
        ("val", "loss", their and their.val_loss),
        ("test", "loss", their and their.test_loss),
    )
    for split, metric, value in columns:
        is_share = metric != "loss"
        score = model.scores.get(split, {}).get(metric)
        text = "-"
        if score:
            text = f"{score.mean_text(is_share)} {score.interval_text(is_share)}".strip()
            if model.smoothing and not is_share:
                text += f", o {model.scores[split]['objective'].mean_text(False)}"
        mark = "o " if model.smoothing and not is_share else ""
        spec = ".1f" if is_share else ".2f"
        cells.append(text + (f" ({mark}{value:{spec}})" if value is not None else ""))
    return cells


def _recalls(model: Model, section: StudySection) -> list[str]:
    cells = [f"{model.title}, {model.split}"]
    theirs = model.theirs.recalls if model.theirs else ()
    for i, name in enumerate(section.classes):
        ours = model.recalls[model.split].get(name)
        text = "-" if ours is None else f"{100 * ours:.0f}"
        cells.append(text + (f" ({100 * theirs[i]:.0f})" if theirs else ""))
    return cells
