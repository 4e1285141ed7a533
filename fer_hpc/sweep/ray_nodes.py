"""Ray on the nodes of a Slurm step that has one task on each node. Does not import ray.

The first task starts Ray's head and runs the sweep. Each other task starts a worker node and holds
a connection to the first task, the lifeline. It closes when the first task ends, for any reason;
then the worker node stops, so that no process outlives the job. Ports and folders belong to the
job, because jobs share nodes. RAY_AUTH_TOKEN (from slurm/launch.sh) keeps other users out.

`ray symmetric-run` (Ray 2.60) would do the same in one command, but it is not safe on shared nodes:
it ends with `ray stop`, which stops the Ray of every other job of the same user on the node, and it
refuses to start if one runs. SIGTERM ends it alone and leaves Ray and the sweep running. It exits
with 0 where its head could not start, and takes no flag for the head only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
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

from fer_hpc.config import EXIT_CRASHED, EXIT_FINISHED, TrainConfig, UserError
from fer_hpc.config.commands import SweepConfig
from fer_hpc.data.shards import read_manifest
from fer_hpc.parallel.gpus import LARGE_SIDE, gpus_here, may_have_gpus, small_trainings_on
from fer_hpc.parallel.mps import multi_process_service
from fer_hpc.parallel.world import StepNode, current_step_node
from fer_hpc.sweep.grid import grid, trial_states

START_S = 120.0  # within which all nodes must have joined
OBJECT_STORE_BYTES = 80 * 2**20  # nearly the least that Ray takes: no data goes through its store

# MALLOC_ARENA_MAX: a worker trains each trial in a new thread, and the C library would give these
# threads one of up to 8 heaps a core, each of which keeps the memory of its largest trial (3 GB
# after 27 trials, 1.1 GB with one heap).
# RAY_memory_monitor_refresh_ms: where Ray's own monitor kills a worker, Tune ends the sweep. The
# kernel also kills workers first when memory runs out, and then the trial is retried.
# RAY_NUM_REDIS_GET_RETRIES: 2 s apart; a busy node may need more than the usual 20 to start.
# RAY_worker_niceness: 15 by default, with which trials nearly stand still beside other processes.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_NUM_REDIS_GET_RETRIES": str(round(START_S / 2)),
    "RAY_worker_niceness": "0",
}


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder for sockets, whose paths must be short, and logs; it ends with the block.

    A killed sweep leaves its folder: the next one on the host removes those of this user that no
    living process has locked.
    """
    base = Path("/tmp")
    for lock in base.glob("fer-ray-*/lock"):
        with contextlib.suppress(OSError), lock.open() as file:
            if lock.parent.lstat().st_uid == os.getuid() and not lock.parent.is_symlink():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"fer-ray-{prefix}", dir=base))
    try:
        with (folder / "new").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (folder / "new").rename(folder / "lock")  # never seen unlocked while we live
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def shared_gpus(sweep: SweepConfig, base: TrainConfig) -> Iterator[float | None]:
    """Where trials share GPUs: CUDA's MPS for the Ray processes that this block starts.

    Gives the GPUs per process. Without --gpus-per-worker small faces share a GPU where MPS runs,
    else it is None: one where there are GPUs. `base` holds the fields that all trials share.
    """
    share = sweep.gpus_per_worker
    if share is None and base.device == "cpu":
        share = 0.0
    usual = share is None
    if share is None and sweep.mps != "off":
        share = _usual_share(sweep, base)
    has_gpus = may_have_gpus() or bool(os.environ.get("RAY_ADDRESS"))
    if sweep.mps == "on" and (not has_gpus or not share or share == 1):
        why = "each trial has a whole one" if has_gpus else "this machine has none"
        why = "--device cpu" if base.device == "cpu" else why
        raise UserError(f"--mps on: no trials share a GPU here ({why}); use --mps auto")
    if not has_gpus or not share or share == 1 or sweep.mps == "off":
        yield share
        return
    if os.environ.get("RAY_ADDRESS"):
        where = "the nodes of the Ray at RAY_ADDRESS, which this command did not start"
        print(f"trials that share a GPU take turns unless CUDA's MPS runs on {where}", flush=True)
        yield share
        return
    required = sweep.mps == "on"
    with temporary_folder("mps-") as folder, multi_process_service(folder, required) as variables:
        before = {name: os.environ.get(name) for name in variables}
        os.environ |= variables
        try:
            yield None if usual and not variables else share
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                os.environ |= {} if value is None else {name: value}


def _usual_share(sweep: SweepConfig, base: TrainConfig) -> float | None:
    """The GPUs per process of trials on small faces, None for one.

    Ray fills one GPU before the next. So no more trials share one than all GPUs get.
    """
    if sweep.workers_per_trial > 1 or os.environ.get("RAY_ADDRESS"):
        return None
    gpus = gpus_here()
    if not gpus or read_manifest(sweep.data).image_shape[0] >= LARGE_SIDE:
        return None
    names = [trial.name for trial in grid(sweep, base)]
    unfinished = sum(state != "finished" for state, _ in trial_states(sweep.out, names))
    node = current_step_node()
    at_once = min(unfinished, sweep.at_once or unfinished) // (node.count if node else 1)
    at_once = min(at_once, len(os.sched_getaffinity(0)) // max(base.threads, 1))
    sharing = min(at_once // len(gpus), small_trainings_on(min(gpus.values())))
    return 1 / sharing if sharing > 1 else None


@contextlib.contextmanager
def head(node: StepNode) -> Iterator[str]:
    """Ray's head and the lifelines of all other nodes; gives the head's address."""
    start = ("--head", f"--port={node.port}", "--include-dashboard=false")
    with _ray_start(node, *start) as ray:
        _connect(_own_address(node), node.port, ray).close()  # waits until the head answers
        with _lifelines(node):
            yield f"{_own_address(node)}:{node.port}"


def release(node: StepNode) -> None:
    """In the place of `head`, where nothing is to do: the other nodes end, and do not wait."""
    with contextlib.suppress(UserError), _lifelines(node):  # one that is not there need not end
        pass


@contextlib.contextmanager
def _lifelines(node: StepNode) -> Iterator[None]:
    """Connections of all other nodes, which end when the block does."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", node.port + 1)))
        server.settimeout(START_S)
        count = 0
        try:
            while count < node.count - 1:
                connection = stack.enter_context(server.accept()[0])
                count += _is_from_job(connection)
        except TimeoutError:
            raise UserError(
                f"only {count + 1} of the job's {node.count} nodes joined Ray within "
                f"{START_S:.0f} s; see the logs of the others"
            ) from None
        yield


def serve(node: StepNode) -> int:
    """A worker node of Ray until the first task ends; gives the exit code."""
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the first task decides when the sweep ends
    lifeline = _connect(node.head, node.port + 1)
    lifeline.sendall(_job_code())
    head_address = f"{socket.gethostbyname(node.head)}:{node.port}"
    with lifeline, _ray_start(node, f"--address={head_address}") as ray:
        lifeline.settimeout(1.0)
        while ray.poll() is None:
            with contextlib.suppress(TimeoutError):
                try:
                    if not lifeline.recv(1):
                        return EXIT_FINISHED
                except ConnectionError:
                    return EXIT_FINISHED
        print(
            f"Ray ended without a request on {socket.gethostname()}, code {ray.returncode}",
            file=sys.stderr,
        )
        return EXIT_CRASHED


def _job_code() -> bytes:
    """32 bytes that the tasks of the job have in common, and nobody else where it has a token."""
    return hashlib.sha256(os.environ.get("RAY_AUTH_TOKEN", "").encode()).digest()


def _is_from_job(connection: socket.socket) -> bool:
    """Whether the other side sends the job's code; any program can connect to the port."""
    connection.settimeout(5.0)
    try:
        received = connection.recv(32, socket.MSG_WAITALL)
    except OSError:
        return False
    return hmac.compare_digest(received, _job_code())


def _connect(host: str, port: int, ray: subprocess.Popen[bytes] | None = None) -> socket.socket:
    """A connection, as soon as the port is open; a UserError after START_S or once `ray` ended."""
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
def _ray_start(node: StepNode, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start` as a child process that is stopped at the end.

    Slurm's warning signals reach every process of a step; Ray's processes ignore them.
    """
    with temporary_folder(f"{node.index}-") as folder, _ray_in(folder, node, *flags) as process:
        yield process


@contextlib.contextmanager
def _ray_in(folder: Path, node: StepNode, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    call = [
        sys.executable,
        "-c",
        "from ray.scripts.scripts import main; main()",
        "start",
        *flags,
        "--block",
        f"--node-ip-address={_own_address(node)}",
        f"--temp-dir={folder}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--num-cpus={len(os.sched_getaffinity(0))}",
        f"--num-gpus={node.gpus}",
        "--disable-usage-stats",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    ignored = (signal.SIGUSR1, signal.SIGUSR2)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in ignored]  # a child inherits it
    log_path = folder / "ray-start.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            call, stdout=log, stderr=log, env=ENVIRONMENT | os.environ, start_new_session=True
        )
    for number, handler in zip(ignored, handlers, strict=True):
        signal.signal(number, handler)
    try:
        yield process
    finally:
        if process.poll():
            print(log_path.read_text(errors="replace")[-2000:], file=sys.stderr)
        process.terminate()  # stops its children in order
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _own_address(node: StepNode) -> str:
    """This node's address for the others; Debian maps a host's own name to 127.0.1.1."""
    if node.index:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((node.head, node.port))  # sends nothing, but selects the interface
            return str(s.getsockname()[0])
    address = socket.gethostbyname(socket.gethostname())
    if address.startswith("127.") and node.count > 1:
        listing = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True)
        address = listing.stdout.split()[0]
    return address
