"""Which process this is among those of a run, and where they meet.

The only file of the package that reads RANK, WORLD_SIZE and their like.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from fer_hpc.config import UserError
from fer_hpc.parallel.job import (
    FIRST_PORT,
    PORT_COUNT,
    Job,
    current_job,
    current_step,
    expand_hosts,
    job_port,
    number_in_environment,
)

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class World:
    """The processes of one run; `rank` 0 writes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among this node's processes: which of its GPUs
    local_size: int = 1  # processes on this node
    job: Job | None = None
    processes_per_gpu: int = 1  # trainings that share this GPU: a set is kept on it if all fit

    @staticmethod
    def detect() -> World:
        """The place of this process, from its environment.

        torchrun's variables come first. A scheduler's count only inside a step of several tasks: a
        batch shell is not a rank. Without either it is the only process.
        """
        job = current_job()
        if has_ranks():
            rank, size = number_in_environment("RANK"), number_in_environment("WORLD_SIZE")
            if rank >= size:
                raise UserError(
                    f"RANK is {rank} and WORLD_SIZE {size}: ranks count from 0; use torchrun"
                )
            local_size = number_in_environment("LOCAL_WORLD_SIZE", "1")
            return World(rank, size, number_in_environment("LOCAL_RANK", "0"), local_size, job)
        step = current_step()
        if step and step.size > 1:
            return World(step.rank, step.size, step.local_rank, step.local_size, job)
        sharing = number_in_environment("FER_PROCESSES_PER_GPU", "1")  # set by a study
        return World(job=job, processes_per_gpu=max(1, sharing))


@dataclass(frozen=True)
class StepNode:
    """This node's place in a step that has one task on each node."""

    index: int
    count: int
    head: str  # name of the first node
    port: int  # the first of two ports that belong to the job on that node
    gpus: int


def current_step_node() -> StepNode | None:
    """This process's node among those of its step; None outside one, as in a batch shell."""
    step = current_step()
    if not step:
        return None
    set_rendezvous()
    env = os.environ
    port = number_in_environment("MASTER_PORT")
    return StepNode(step.rank, step.size, env["MASTER_ADDR"], port, step.gpus)


def has_ranks() -> bool:
    """Whether torchrun, or somebody in its place, has numbered this process."""
    return "WORLD_SIZE" in os.environ or "RANK" in os.environ


def free_port() -> int:
    """A port of this process number that nobody listens on now."""
    for offset in range(PORT_COUNT):
        port = job_port(os.getpid(), offset)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((LOOPBACK, port))
            probe.listen()
            try:
                socket.create_connection((LOOPBACK, port), timeout=5).close()
            except OSError as error:
                raise UserError(
                    f"the processes of one machine meet at {LOOPBACK}, which does not answer "
                    f"({error.strerror or error}): ip link set lo up"
                ) from None
            return port
    raise UserError(f"no free port from {FIRST_PORT} to {FIRST_PORT + PORT_COUNT} on this machine")


def set_rendezvous() -> None:
    """Set MASTER_ADDR and MASTER_PORT where they are missing in a step, and the interface.

    The address is the step's first node, the port comes from the job and the step. FER_INTERFACE
    names the network interface of gloo and NCCL; without it one is chosen where the own name means
    a loopback address, which other nodes cannot reach. gloo on one machine uses loopback.
    """
    env, step = os.environ, current_step()
    interface = env.get("FER_INTERFACE", "")
    if step:
        hosts = expand_hosts(step.nodes)
        env.setdefault("MASTER_ADDR", hosts[0])
        env.setdefault("MASTER_PORT", str(step.port))
        if len(hosts) > 1 and not interface and _own_address().startswith("127."):
            own = socket.gethostname().partition(".")[0]
            interface = _interface_to(next((h for h in hosts if h.partition(".")[0] != own), own))
    if not interface and env.get("MASTER_ADDR") == LOOPBACK and Path("/sys/class/net/lo").exists():
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
    if interface:
        env.setdefault("GLOO_SOCKET_IFNAME", interface)
        env.setdefault("NCCL_SOCKET_IFNAME", interface)


def _own_address() -> str:
    """The address that this machine's name means; "" where it means none."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


def _interface_to(host: str) -> str:
    """The network interface that leads to another host; "" where there is none."""
    try:
        target = int.from_bytes(socket.inet_aton(socket.gethostbyname(host)), "little")
        routes = [row.split() for row in Path("/proc/net/route").read_text().splitlines()[1:]]
    except OSError:
        return ""
    fitting = [r for r in routes if target & int(r[7], 16) == int(r[1], 16)]
    return max(fitting, key=lambda r: int(r[7], 16).bit_count())[0] if fitting else ""


def rendezvous_in_words() -> str:
    """This host and where it looks for the first rank, for messages."""
    host, port = os.environ.get("MASTER_ADDR", "?"), os.environ.get("MASTER_PORT", "?")
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        address = f"unknown: {error.strerror}"
    return f"{socket.gethostname()} looks for rank 0 at {host}:{port} ({address})"


def store_holder() -> str:
    """Who holds the store where the ranks meet, in words: its end is theirs."""
    # torchrun's agent has a store already, which its ranks use.
    return "torchrun" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
