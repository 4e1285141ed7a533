"""The result of a GAN's evaluation as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fer_hpc.config.errors import counted

# Rows of what an identity judge says: key in the result, and what it is.
AMONG_NEUTRAL = (
    ("outputs", "outputs"),
    ("real_faces", "real expressive faces"),
    ("strangers", "the expression's person"),
    ("unchanged", "unchanged neutral faces"),
)
AMONG_OTHERS = (("outputs", "outputs"), ("unchanged", "unchanged neutral faces"))
QUALITY = "all real faces: the judge itself"
MIN_NEARER = 0.75  # of real faces; a judge below tells people hardly apart


def format_gan_scores(run: Path, result: dict[str, Any]) -> str:
    """The result of `evaluate_gan` as text, one line a number."""
    expression, identity, distance = (result[k] for k in ("expression", "identity", "distance"))
    spread, judge = result["diversity"], result["judge"]

    lines = [
        f"{run} on {result['split']}, {counted(result['n'], 'pair')} of "
        f"{counted(result['neutral_faces'], 'neutral face')}; judge: {judge['model']} "
        f"(val accuracy {judge['val_accuracy']:.4f})",
        "  the judge finds the wanted expression (share of pairs, 95 % interval)"
        + ("" if expression["informative"] else "; uninformative in paper mode"),
    ]
    for key, title in (("accuracy", "  all pairs"), ("balanced_accuracy", "  mean over classes")):
        real, neutral = (expression[f"{key}_of_{which}_faces"] for which in ("real", "neutral"))
        note = f"in real faces {real:.4f}, in the neutral faces {neutral:.4f}"
        lines.append(_line(title, expression[key], expression[f"{key}_95"], ".4f", note))
    for name, entry in expression["classes"].items():
        note = f"in real faces {entry['accuracy_of_real_faces']:.4f}, {entry['n']:,} pairs"
        lines.append(_line(f"    {name}", entry["accuracy"], entry["accuracy_95"], ".4f", note))
    lines.append("  cosine of the judge's features, output and")
    for key, title in (
        ("to_neutral", "  the neutral face"),
        ("to_expressive", "  the expressive face"),
        ("to_a_stranger", "  a third person's face"),
    ):
        lines.append(_mean_line(title, identity[key]))
    lines += _identity_lines(result["identity_judge"])
    lines.append("  distance to real expressive faces")
    for key in ("frechet", "kernel"):
        entry = distance[key]
        note = (
            f"of neutral faces {entry['of_neutral_faces']:.4g}, "
            f"of other real faces {entry['real_halves']:.4g}"
        )
        lines.append(_line(f"  {key}", entry["value"], entry["bootstrap_95"], ".4g", note))
    real_spread = spread["of_real_faces"]["mean"]
    lines += [
        _mean_line("diversity", spread["of_outputs"], f"of real faces {real_spread:.4f}"),
        _mean_line("change by the expression", spread["change_by_expression"]),
    ]
    if spread["of_outputs"]["mean"] < 0.05 * real_spread:
        lines.append(
            "  warning: the outputs hardly differ from each other; "
            "this GAN needs more training, or has collapsed"
        )
    return "\n".join(lines)


def _line(title: str, value: float, interval: list[float], digits: str, note: str = "") -> str:
    low, high = interval
    text = f"  {title:<28} {value:{digits}}  [{low:{digits}}, {high:{digits}}]"
    return f"{text}   {note}".rstrip()


def _mean_line(title: str, entry: dict[str, Any], note: str = "") -> str:
    return _line(title, entry["mean"], entry["interval_95"], ".4f", note)


def _identity_lines(scores: dict[str, Any]) -> list[str]:
    """What the identity judge says, and how far it can be trusted."""
    if "left_out" in scores:
        return [f"  identity judge: not measured: {scores['left_out']}"]
    seen = scores["people_of_its_training"]
    known = "" if seen is None else f", {seen or 'none'} of them in this split"
    neutral = f"{scores['neutral_pictures']:,} neutral faces of {scores['neutral_people']:,} people"
    lines = [
        f"  identity judge, trained on {scores['judge']['persons']:,} people{known}; "
        f"{scores['n']:,} pairs of {scores['people']:,} people",
        f"    {'':<34} {'nearer to an own picture':<27} nearest picture",
        f"    among {neutral:<28} {'than to a stranger' + chr(39) + 's':<27} is an own one",
    ]
    among, others = scores["among_neutral"], scores["among_others"]
    lines += [_who(title, among[key]) for key, title in AMONG_NEUTRAL]
    lines.append(f"    among all {scores['pictures']:,} real faces but the neutral face itself")
    lines += [_who(title, others[key]) for key, title in AMONG_OTHERS]
    lines.append(_who(QUALITY, scores["quality"]))
    title = "    nearer to the neutral face than to the face that gave the expression"
    lines.append(f"{title} {_interval(scores['to_donor'])}")
    quality = scores["quality"]
    if quality is None or quality["nearer"]["interval_95"][0] < MIN_NEARER:
        lines.append("    warning: this judge hardly tells real faces apart; do not rely on it")
    return lines


def _who(title: str, entry: dict[str, Any] | None) -> str:
    if entry is None:
        return f"      {title:<32} not measured: no own picture to compare with"
    chance = f"by chance {entry['rank_1_by_chance']:.4f}"
    return (
        f"      {title:<32} {_interval(entry['nearer']):<27} {_interval(entry['rank_1'])} {chance}"
    )


def _interval(entry: dict[str, Any]) -> str:
    low, high = entry["interval_95"]
    return f"{entry['mean']:.4f} [{low:.4f}, {high:.4f}]"
