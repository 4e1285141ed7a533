"""How training scales over ranks: bytes and times measured on this machine, and a model from it.

    python bench/scale.py --out scale.json          (as root, under 5 minutes on 2 cores)
    python bench/scale.py --out scale.json --only table

Writes FILE, and FILE.md with the same as tables. Three parts:
bytes   what each rank sends in a training step with 1, 2 and 4 ranks, beside a ring's 2 (n-1)/n
checks  step times on throttled links, beside the model's prediction (scaling_model.py)
table   1 to 64 H200 and every preset, from the model (scaling_table.py); needs no root
Ranks are in network namespaces. For the bytes they run fer_hpc's own step; for the checks most of
them have a preset's gradients and sleep where they would compute (scale_rank.py). Without root, ip
and tc the bytes are those of the loopback device (with anything else that uses it), and checks are
left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import links
import scale_text
import scaling_model as model
import scaling_table
from links import DelayLine, Links, Tbf

from fer_hpc.parallel.world import LOOPBACK, free_port

BENCH = Path(__file__).parent
IMAGES = 4  # a rank and step, where ranks compute
GBIT = 1e9
# (preset, seconds that a step sleeps instead of computing, bits/s, one-way delay in s)
# ranks -> on links that the kernel throttles; 0 seconds: a training that computes
RATES = {
    2: [
        ("cnn_baseline", 0.06, 2 * GBIT, 0.0),
        ("cnn_baseline", 0.06, GBIT, 0.0),
        ("cnn_baseline", 0.06, 0.3 * GBIT, 0.0),
        ("resnet_baseline", 0.02, 0.1 * GBIT, 0.0),
        ("fer2013", 0.2, GBIT, 0.0),
        ("fer2013", 0.2, 0.3 * GBIT, 0.0),
        ("resnet_improved", 1.0, GBIT, 0.0),
        ("resnet_baseline", 0.0, 0.05 * GBIT, 0.0),
    ],
    4: [
        ("cnn_baseline", 0.06, 0.5 * GBIT, 0.0),
        ("fer2013", 0.3, GBIT, 0.0),
        ("fer2013", 0.3, 0.3 * GBIT, 0.0),
        ("resnet_baseline", 0.02, 0.05 * GBIT, 0.0),
    ],
}
DELAYS = {
    2: [
        ("resnet_baseline", 0.02, 0.1 * GBIT, 0.002),
        ("resnet_baseline", 0.02, 0.1 * GBIT, 0.01),
        ("resnet_baseline", 0.02, 0.0, 0.02),
        ("cnn_baseline", 0.06, 0.3 * GBIT, 0.005),
        ("fer2013", 0.2, 0.3 * GBIT, 0.01),
    ],
    4: [
        ("resnet_baseline", 0.02, 0.1 * GBIT, 0.01),
        ("cnn_baseline", 0.06, 0.2 * GBIT, 0.005),
    ],
}
TRIPS = 2  # gloo: the receiver tells that it is ready, then the sender sends
LARGE = 16 << 20  # bytes of the all-reduce that shows what the machine itself can do
AIM = 0.15


class Ranks:
    """`count` processes that train together, over `net` or the loopback device."""

    def __init__(self, count: int, net: Links | None, data: Path) -> None:
        self.count, self.net = count, net
        head, port = (links.address(0), 29_500) if net else (LOOPBACK, free_port())
        self.processes: list[subprocess.Popen[str]] = []
        for rank in range(count):
            env = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            env |= {"MASTER_ADDR": head, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            env |= {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # addresses have no names here
            if net:
                env["FER_INTERFACE"] = net.interface(rank)
            command = [sys.executable, str(BENCH / "scale_rank.py"), data, rank, count]
            self.processes.append(
                subprocess.Popen(
                    [*(net.command(rank) if net else []), *map(str, command)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "PYTHONPATH": str(BENCH.parent)}
                    | {key: str(value) for key, value in env.items()},
                )
            )

    def ask(self, what: str, **more: Any) -> list[dict[str, Any]]:
        """Every rank's answer."""
        for process in self.processes:
            _pipe(process.stdin).write(json.dumps({"what": what, **more}) + "\n")
            _pipe(process.stdin).flush()
        lines = [_pipe(process.stdout).readline() for process in self.processes]
        if not all(lines):
            raise SystemExit("bench/scale.py: a rank died; its message is above")
        return [json.loads(line) for line in lines]

    def load(self, name: str, seconds: float = 0.0) -> None:
        """A step that sleeps so long where it would compute, or (0) a training's own step."""
        if seconds:
            self.ask("sleep", name=name, seconds=seconds)
        else:
            self.ask("train", name=name, images=IMAGES)

    def times(self, what: str, **more: Any) -> float:
        """The median over the calls of the slowest rank's seconds."""
        by_rank = [answer["s"] for answer in self.ask(what, **more)]
        return statistics.median(map(max, zip(*by_rank, strict=True)))

    def sent(self) -> list[int]:
        """Bytes that each rank has sent so far."""
        if self.net:
            return self.net.sent()
        counters = Path("/proc/net/dev").read_text().split("lo:")[1].split()
        return [int(counters[8]) // self.count] * self.count

    def close(self) -> None:
        for process in self.processes:
            _pipe(process.stdin).close()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe
    return pipe


def bytes_of(ranks: Ranks, name: str, steps: int = 6) -> dict[str, Any]:
    """What a rank sends in a step, measured and by theory."""
    ranks.load(name)
    ranks.ask("steps", count=1)
    before = ranks.sent()
    ranks.ask("steps", count=steps)
    after = ranks.sent()
    sent = [(b - a) / steps for a, b in zip(before, after, strict=True)]
    gradients = ranks.ask("local", count=1)[0]["gradients"]
    theory = model.ring_bytes(sum(size for _, size in gradients), ranks.count)
    return {
        "preset": name,
        "ranks": ranks.count,
        "gradient_bytes": sum(size for _, size in gradients),
        "theory": theory,
        "measured": statistics.mean(sent),
        "least": min(sent),
        "most": max(sent),
        "over": "network namespaces" if ranks.net else "loopback",
    }


def machine_link(ranks: Ranks) -> model.Link:
    """What links that are not throttled give: the machine's own limit."""
    assert ranks.net
    ranks.net.set(0)
    ranks.load("resnet_baseline", 0.02)  # as in the checks, before other programs
    call_s = ranks.times("allreduce", size=4, count=40)
    large_s = ranks.times("allreduce", size=LARGE, count=6)
    rate = model.ring_bytes(LARGE, ranks.count) / max(1e-9, large_s - call_s)
    return model.Link(rate, 0.0, call_s, TRIPS)


def check(
    ranks: Ranks, own: model.Link, name: str, slept_s: float, rate: float, delay_s: float
) -> dict[str, Any]:
    """A step's time on throttled links, predicted and measured."""
    assert ranks.net
    ranks.net.set(0)
    ranks.load(name, slept_s)
    local: list[dict[str, Any]] = []
    measured: list[float] = []
    for _ in range(2):  # the machine may be shared: what is compared is measured in turns
        ranks.net.set(0)
        local.append(ranks.ask("local", count=4)[0])
        ranks.net.set(rate, delay_s)
        ranks.ask("steps", count=1)
        measured += ranks.ask("steps", count=4)[0]["s"]
    parts = [part for answer in local for part in answer["parts"]]
    compute = model.Compute(*(statistics.median(column) for column in zip(*parts, strict=True)))
    gradients = sorted(map(tuple, local[-1]["gradients"]))
    buckets = model.make_buckets(gradients)
    link = model.Link(min(rate / 8 or own.bytes_per_s, own.bytes_per_s), delay_s, own.call_s, TRIPS)
    exchange = partial(model.ring_s, ranks=ranks.count, link=link)
    predicted, median_s = model.step_s(compute, buckets, exchange), statistics.median(measured)
    return {
        "preset": name,
        "ranks": ranks.count,
        "computes": not slept_s,
        "mbit_per_s": rate / 1e6,
        "delay_ms": 1e3 * delay_s,
        "links": type(ranks.net).__name__,
        "compute_ms": 1e3 * compute.total_s,
        "exchange_ms": 1e3 * sum(exchange(b.size) for b in buckets),
        "predicted_ms": 1e3 * predicted,
        "measured_ms": 1e3 * median_s,
        "error": predicted / median_s - 1,
        "buckets": [b.size for b in buckets],
        "ddp_buckets": ranks.ask("buckets")[0]["sizes"],
    }


def measure(data: Path, quick: bool) -> dict[str, Any]:
    """Bytes and checks; what cannot be done here is said in `left_out`."""
    results: dict[str, Any] = {"bytes": [], "checks": [], "machine": [], "left_out": []}
    why = links.missing()
    if why:
        results["left_out"].append(f"step times on throttled links: {why}")
        results["left_out"].append("bytes are those of the loopback device, with all that uses it")
    slow = "" if why else links.missing(delay=True)
    if slow:
        results["left_out"].append(f"links with latency: {slow}")
    plan: list[tuple[int, Any, list[tuple[str, float, float, float]]]]
    plan = [(1, Tbf, []), *((n, Tbf, RATES[n]) for n in RATES)]
    plan += [] if why or slow else [(n, DelayLine, DELAYS[n]) for n in DELAYS]
    for count, kind, conditions in plan:
        with contextlib.ExitStack() as stack:
            net = None if why else stack.enter_context(contextlib.closing(kind(count)))
            ranks = stack.enter_context(contextlib.closing(Ranks(count, net, data)))
            if kind is Tbf:
                names = ["cnn_baseline", "resnet_baseline"]
                results["bytes"] += [say(bytes_of(ranks, name)) for name in names]
            if net and conditions:
                own = machine_link(ranks)
                about = {"ranks": count, "links": kind.__name__, "call_ms": 1e3 * own.call_s}
                results["machine"].append(say(about | {"mbit_per_s": own.bytes_per_s * 8 / 1e6}))
                tried = conditions[:1] if quick else conditions
                results["checks"] += [say(check(ranks, own, *c)) for c in tried]
    return results


def say(row: dict[str, Any]) -> dict[str, Any]:
    """Show progress; gives the row back."""
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
    print(json.dumps(shown), file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON; tables go to FILE.md")
    parser.add_argument("--only", choices=("measure", "table"), help="one part alone")
    parser.add_argument("--quick", action="store_true", help="fewer conditions")
    args = parser.parse_args()
    import torch
    from train_step import make_shards

    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # and clean up
    cores = len(os.sched_getaffinity(0))
    results: dict[str, Any] = {
        "machine": {"cores": cores, "cpu": platform.processor() or platform.machine()},
        "torch": torch.__version__,
    }
    if args.only != "table":
        with tempfile.TemporaryDirectory() as folder:
            data = make_shards(Path(folder) / "data", 2048, 48, 1)
            results["measured"] = measure(data, args.quick)
    if args.only != "measure":
        results["table"] = scaling_table.table()
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    text = scale_text.markdown(results)
    args.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
