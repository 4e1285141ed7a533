"""Ray over the nodes of a Slurm step that has one task on each; loads no ray.

The first task starts Ray's head and goes on as the sweep, the others start a worker node and wait. Their connection to the
first, the lifeline, ends with it, however it ends; then they stop their part of Ray, so nothing outlives the job. Ports and
folders are the job's own: jobs share nodes. The token in RAY_AUTH_TOKEN (from slurm/launch.sh) keeps others out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fer_hpc.config import EXIT_CRASHED, EXIT_FINISHED, UserError
from fer_hpc.parallel.world import StepNode

START_S = 120.0  # within which all nodes must be there

# Workers train one trial after another, each in a new thread: the C library would give these threads one of up to 8 heaps a
# core, and every heap keeps what its largest trial needed (seen: 3 GB after 27 trials, 1.1 GB with one heap). A trial that
# needs too much is left to the kernel, which kills workers first: where Ray's own monitor kills one, Tune ends the sweep.
# A busy node may need longer than the 20 questions, 2 s apart, after which Ray gives up its start.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_NUM_REDIS_GET_RETRIES": str(round(START_S / 2)),
}


@contextlib.contextmanager
def head(node: StepNode) -> Iterator[str]:
    """Ray's head, with all other nodes' connections; gives its address."""
    with (
        _ray(node, "--head", f"--port={node.port}", "--include-dashboard=false") as ray,
        contextlib.ExitStack() as closing,
    ):
        _connected(_own_address(node), node.port, ray).close()  # the others come when it is up
        lifeline = closing.enter_context(socket.create_server(("", node.port + 1)))
        lifeline.settimeout(START_S)
        held = []
        try:
            for _ in range(node.count - 1):
                held.append(lifeline.accept()[0])
        except TimeoutError:
            raise UserError(
                f"only {len(held) + 1} of the job's {node.count} nodes came to Ray within {START_S:.0f} s; see the others' logs"
            ) from None
        yield f"{_own_address(node)}:{node.port}"
        for connection in held:
            connection.close()


def serve(node: StepNode) -> int:
    """A worker node of Ray until the first node's process ends; gives the exit code."""
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the first node decides when it is over
    lifeline = _connected(node.head, node.port + 1)
    with lifeline, _ray(node, f"--address={socket.gethostbyname(node.head)}:{node.port}") as ray:
        lifeline.settimeout(1.0)
        while ray.poll() is None:
            with contextlib.suppress(TimeoutError):
                try:
                    if not lifeline.recv(1):
                        return EXIT_FINISHED
                except ConnectionError:
                    return EXIT_FINISHED
        print(
            f"Ray ended by itself on {socket.gethostname()} with code {ray.returncode}",
            file=sys.stderr,
        )
        return EXIT_CRASHED


def _connected(host: str, port: int, ray: subprocess.Popen[bytes] | None = None) -> socket.socket:
    """A connection, as soon as there is somebody to answer; a UserError after START_S, or where `ray` has ended."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return socket.create_connection((host, port), timeout=5)
        except OSError as error:
            if time.monotonic() > deadline or (ray and ray.poll() is not None):
                raise UserError(
                    f"Ray's head on {host}, port {port}, did not come up: {error}"
                ) from None
            time.sleep(0.2)


@contextlib.contextmanager
def _ray(node: StepNode, *which: str) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start` as a child that ignores Slurm's warnings, which reach every process of a step, and passes that on."""
    folder = tempfile.mkdtemp(
        prefix=f"fer-ray-{node.index}-", dir="/tmp"
    )  # sockets below it need a short path
    call = [
        sys.executable,
        "-c",
        "from ray.scripts.scripts import main; main()",
        "start",
        *which,
        "--block",
        f"--node-ip-address={_own_address(node)}",
        f"--temp-dir={folder}",
        "--object-store-memory=80000000",
        f"--num-cpus={len(os.sched_getaffinity(0))}",
        f"--num-gpus={node.gpus}",
        "--disable-usage-stats",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    warnings = (signal.SIGUSR1, signal.SIGUSR2)
    handlers = [
        signal.signal(number, signal.SIG_IGN) for number in warnings
    ]  # what is ignored stays so in a child
    with Path(folder, "ray-start.log").open("wb") as log:
        process = subprocess.Popen(
            call, stdout=log, stderr=log, env=ENVIRONMENT | os.environ, start_new_session=True
        )
    for number, handler in zip(warnings, handlers, strict=True):
        signal.signal(number, handler)
    try:
        yield process
    finally:
        if process.poll():
            print(
                Path(folder, "ray-start.log").read_text(errors="replace")[-2000:], file=sys.stderr
            )
        process.terminate()  # ends its children in order
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _own_address(node: StepNode) -> str:
    """This node's address as the others reach it; Debian maps a host's own name to 127.0.1.1."""
    if node.index:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((node.head, node.port))  # sends nothing, but chooses the interface
            return str(s.getsockname()[0])
    found = socket.gethostbyname(socket.gethostname())
    if found.startswith("127.") and node.count > 1:
        found = subprocess.run(
            ["hostname", "-I"], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    return found
