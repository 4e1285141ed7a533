"""What a job has done, in a few lines for its log: gained, rate, cost, where, and what to type."""

from __future__ import annotations

import time
from typing import Any

from fer_hpc.cluster.records import JobCommand, results_dir
from fer_hpc.cluster.scheduler import Allocation, Usage
from fer_hpc.cluster.starts import gained
from fer_hpc.config import GanConfig, TrainConfig
from fer_hpc.config.commands import (
    DoctorConfig,
    EvaluateConfig,
    PreprocessConfig,
    SweepConfig,
)
from fer_hpc.run.folder import read_rows, read_status


def summary(config: JobCommand, starts: list[dict[str, Any]], allocation: Allocation | None) -> str:
    """The lines at the end of a job's log; `starts` are its own, this one last."""
    lines, folder = [], results_dir(config)
    reached, before = gained(config), starts[-1]["before"] if starts else 0
    if isinstance(config, TrainConfig | GanConfig):
        state = read_status(config.run)["state"]
        unit = "images" if isinstance(config, TrainConfig) else "pairs"
        text = f"{state}: {reached:,} {unit}, {max(0, reached - before):,} of them in this start"
        timing = read_rows(config.run, "timing.jsonl")
        if timing:
            rate, memory = timing[-1].get("images_per_s"), timing[-1].get("memory_gb")
            text += f"; {rate:,.0f} {unit}/s" if rate else ""
            text += f"; peak memory {memory:.1f} GB" if isinstance(memory, float) else ""
        lines.append(text)
    seconds = sum(_seconds(start) for start in starts)
    gpus = sum(count for _, count in allocation.nodes) if allocation else 0
    cost = f", {seconds * gpus / 3600:.2f} GPU hours" if gpus else ""
    lines.append(f"{len(starts) or 1} start(s), {_clock(seconds)} in all{cost}")
    lines.append(f"results: {folder}    next: {next_command(config)}")
    return "\n".join(f"  {line}" for line in lines)


def next_command(config: JobCommand) -> str:
    """What to type after this command has finished."""
    if isinstance(config, TrainConfig | GanConfig):
        if read_status(config.run)["state"] != "finished":
            return f"fer-hpc status {config.run}"
        return f"fer-hpc evaluate {config.run}"
    if isinstance(config, SweepConfig):
        return f"fer-hpc report {config.out}"
    if isinstance(config, PreprocessConfig):
        return f"fer-hpc doctor {config.out}"
    if isinstance(config, EvaluateConfig):
        return f"fer-hpc report {config.run}"
    folder = results_dir(config) if isinstance(config, DoctorConfig) else config.out
    return f"fer-hpc status {folder}"


def usage_line(usage: Usage | None) -> str:
    """The accounting of a run's jobs, as `fer-hpc status RUN` shows it; "" without accounting."""
    if usage is None:
        return ""
    parts = [f"{_clock(usage.elapsed_s)} on the cluster"]
    if usage.gpu_hours:
        parts.append(f"{usage.gpu_hours:.2f} GPU hours")
    if usage.cpu_efficiency is not None:
        parts.append(f"cores busy {usage.cpu_efficiency:.0%}")
    if usage.memory_gb:
        parts.append(f"largest process {usage.memory_gb:.1f} GB")
    return ", ".join(parts)


def _seconds(start: dict[str, Any]) -> float:
    ended = start.get("end", {}).get("time", time.time())
    return max(0.0, float(ended) - float(start["time"]))


def _clock(seconds: float) -> str:
    hours, minutes = divmod(round(seconds) // 60, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {round(seconds) % 60:02} s"
