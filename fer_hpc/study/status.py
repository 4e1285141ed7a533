"""A study as text: what has failed and why, then the graph with its progress."""

from __future__ import annotations

from collections import Counter

from fer_hpc.config.errors import counted
from fer_hpc.run.folder import best_row, read_rows
from fer_hpc.study.estimate import group_of_name, grouped
from fer_hpc.study.graph import Part
from fer_hpc.study.plan import Plan
from fer_hpc.study.state import PartState

BAR = 12  # characters


def format_study(
    plan: Plan, parts: list[Part], states: dict[str, PartState], hours_left: float | None
) -> str:
    """The lines of `fer-hpc status OUT`."""
    counts = Counter(states[part.name].state for part in parts)
    words = ", ".join(f"{counts[s]} {s}" for s in (*_ORDER,) if counts[s])
    lines = [f"study {plan.out}: {counted(len(parts), 'part')}: {words}"]
    for part in parts:
        if states[part.name].state == "failed":
            lines.append(f"failed: {part.name}: {states[part.name].why}")
    by_why: dict[str, list[str]] = {}
    for part in parts:
        if states[part.name].state == "left out":
            by_why.setdefault(states[part.name].why, []).append(part.name)
    lines += [f"left out: {', '.join(names)}: {why}" for why, names in by_why.items()]
    if plan.left_out:
        lines.append(f"left out by study.toml: {', '.join(sorted(plan.left_out))}")
    if counts["waiting"] + counts["running"] and hours_left:
        lines.append(f"time left: about {_duration(hours_left)}, if it runs on")
    groups = grouped(parts)
    width = max(map(len, groups))
    for name, members in groups.items():
        share = sum(states[p.name].share for p in members) / len(members)
        bar = "#" * round(BAR * share)
        needs = sorted({group_of_name(n) for part in members for n in part.needs})
        details = [_detail(part, states[part.name]) for part in members]
        same = {detail.rpartition(": ")[2] for detail in details}
        text = same.pop() if len(same) == 1 else ", ".join(details)
        follows = f"  <- {', '.join(needs)}" if needs else ""
        lines.append(f"{name:<{width}} [{bar:<{BAR}}] {text}{follows}")
    if counts["finished"] == len(parts) - counts["left out"]:
        lines.append(f"page: {plan.out / 'report' / 'index.html'}")
    return "\n".join(lines)


_ORDER = ("finished", "running", "waiting", "failed", "blocked", "left out")


def _detail(part: Part, state: PartState) -> str:
    """One part in a line of its group: seed, state, how far."""
    seed = part.name.rpartition("-seed")[2] if "-seed" in part.name else ""
    text = f"{seed}: {state.state}" if seed else state.state
    if state.state in ("running", "waiting") and state.note:
        text += f" ({state.note})"
    if state.state == "blocked":
        text += f" ({state.why})"
    if state.state == "finished" and part.kind == "train":
        best = (best_row(read_rows(part.folder)) or {}).get("val_accuracy")
        text = f"{seed}: val {best:.3f}" if isinstance(best, float) else text
    return text


def _duration(hours: float) -> str:
    minutes = max(1, round(60 * hours))
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
