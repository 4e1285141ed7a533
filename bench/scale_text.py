"""The figures of bench/scale.py as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WORTH = 0.95  # efficiency below which the table shows what would help


def grid(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def rate_text(mbit: float) -> str:
    return f"{mbit:,.0f} Mb/s" if mbit else "not throttled"


def bytes_text(rows: Sequence[dict[str, Any]]) -> str:
    shown = [
        [
            f"`{r['preset']}`",
            r["ranks"],
            f"{r['gradient_bytes']:,}",
            f"{r['theory']:,.0f}",
            f"{r['measured']:,.0f}",
            f"{r['measured'] / r['theory']:.4f}" if r["theory"] else "–",
        ]
        for r in rows
    ]
    head = ["preset", "ranks", "bytes of gradients", "ring, a rank", "measured, a rank", "ratio"]
    where = rows[0]["over"] if rows else ""
    return f"## Bytes a step\n\nSent by each rank, over {where}.\n\n" + grid(head, shown)


def checks_text(results: dict[str, Any]) -> str:
    rows = results["checks"]
    shown = [
        [
            f"`{r['preset']}`" + (", computing" if r["computes"] else ""),
            r["ranks"],
            rate_text(r["mbit_per_s"]),
            f"{r['delay_ms']:.0f}",
            f"{r['compute_ms']:.0f}",
            f"{r['exchange_ms']:.0f}",
            f"{r['predicted_ms']:.0f}",
            f"{r['measured_ms']:.0f}",
            f"{100 * r['error']:+.0f} %",
        ]
        for r in rows
    ]
    head = (
        "preset,ranks,link,delay one way ms,compute ms,exchange ms,predicted ms,measured ms,error"
    )
    errors = [abs(r["error"]) for r in rows]
    good = sum(error <= 0.15 for error in errors)
    note = f"{good} of {len(rows)} within 15 %, the largest error {100 * max(errors):.0f} %. "
    note += "A delay is one way.\n\n"
    machines = "; ".join(
        f"{m['ranks']} ranks, {m['links']}: {m['mbit_per_s']:,.0f} Mb/s, {m['call_ms']:.2f} ms"
        for m in results["machine"]
    )
    own = f"Without throttle (large all-reduce, empty all-reduce): {machines}.\n\n"
    return "## Step times on throttled links\n\n" + note + own + grid(head.split(","), shown)


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    parts = ["## Predicted for NVIDIA H200\n"]
    about = [
        [
            f"`{r['preset']}`",
            r["batch"],
            f"{r['gradient_mb']:.1f}",
            ", ".join(f"{size:.1f}" for size in r["buckets_mb"]),
            f"{r['gpu_ms']:.2f}",
            f"{r['host_ms']:.2f}",
            f"{r['images_from_which_the_gpu_decides']:,.0f}",
        ]
        for r in rows
    ]
    head = "preset,batch,gradients MB,buckets MB,GPU ms,host ms,images a GPU where both are equal"
    parts.append(grid(head.split(","), about))
    for title in ("without graph", "with graph"):
        gpus = [1, 2, 4, 8, 16, 32, 64]
        shown = [
            [
                f"`{r['preset']}`, {r['batch']}",
                *(
                    f"{r['same_batch'][title].get(n, 0):,.0f}"
                    if n in r["same_batch"][title]
                    else "–"
                    for n in gpus
                ),
                r["same_batch_reaches"][title],
            ]
            for r in rows
        ]
        what = (
            "as it is"
            if title == "without graph"
            else "if several ranks had a graph (not in fer_hpc)"
        )
        parts.append(f"The preset's own batch over all GPUs, images/s, 400 Gb/s, {what}.\n")
        parts.append(grid(["preset, batch", *map(str, gpus), "good up to"], shown))
    for net in rows[0]["large_batch_efficiency"]:
        shown = [
            [
                f"`{r['preset']}`, {r['large_batch']}",
                *(f"{e:.2f}" for e in r["large_batch_efficiency"][net].values()),
                r["large_batch_reaches"][net],
            ]
            for r in rows
        ]
        gpus = list(map(str, rows[0]["large_batch_efficiency"][net]))
        parts.append(f"Images a GPU held fixed, efficiency, {net} from each node of 8.\n")
        parts.append(grid(["preset, images a GPU", *gpus, "good up to"], shown))
    nets = list(rows[0]["large_batch_efficiency"])
    shown = []
    for r in rows:
        for net in nets:
            values = [change[f"{net}, 64 GPUs"] for change in r["changes"]]
            if values[0] < WORTH:
                shown.append([f"`{r['preset']}`", net, *(f"{v:.2f}" for v in values)])
    known = [c["change"] + ("" if c["in the code"] else " *") for c in rows[0]["changes"]]
    parts.append(
        f"What a change would give: efficiency at 64 GPUs where it is below {WORTH}. "
        "* is not in fer_hpc.\n"
    )
    parts.append(grid(["preset", "network", *known], shown))
    parts += [f"`{r['preset']}`: {r['note']}.\n" for r in rows if r["note"]]
    return "\n".join(parts)


def markdown(results: dict[str, Any]) -> str:
    """All parts that were run."""
    parts = []
    if measured := results.get("measured"):
        parts += [bytes_text(measured["bytes"])] if measured["bytes"] else []
        parts += [checks_text(measured)] if measured["checks"] else []
        parts += [f"Left out: {line}\n" for line in measured["left_out"]]
    if table := results.get("table"):
        parts.append(table_text(table))
    return "\n".join(parts)
