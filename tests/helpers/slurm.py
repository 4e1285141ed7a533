"""A real Slurm on this machine: controller, accounting and nodes that can be killed or cut off.

Every node is a network, host name and process namespace of its own behind a bridge, with fake GPUs.
All files are under one folder, nothing under /etc is changed, and `stop` leaves nothing. Needs root
and the Debian packages slurmctld, slurmd, slurm-client, slurmdbd, munge, mariadb-server-core,
mariadb-client-core, iproute2.

    python -m tests.helpers.slurm        # starts one and prints how to use it, until Ctrl-C
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.slurm_client import Client
from tests.helpers.slurm_site import DBD_CONF, NODE_SCRIPT, SLURM_CONF
from tests.helpers.waiting import until

PROGRAMS = (
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "sbatch",
    "munged",
    "mariadbd",
    "mariadb-install-db",
    "mariadb",
    "ip",
    "nsenter",
)
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def lacking(programs: Sequence[str] = PROGRAMS) -> str:
    """Why a cluster of these programs cannot be started here; "" where it can."""
    if os.geteuid() != 0:
        return "not root"
    missing = [name for name in programs if shutil.which(name, path=PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "network namespaces are not allowed here"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("", 0))
        return [s.getsockname()[1] for s in sockets]


class Cluster(Client):
    """Nodes n1, n2, ... of 4 CPUs and 4 fake GPUs; partitions main and (preemptible) scavenge."""

    def __init__(self, nodes: int = 3) -> None:
        # a socket's path must be short
        self.base = Path(tempfile.mkdtemp(prefix="fer-slurm-", dir="/tmp"))
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self._tag = f"{os.getpid() % 0xFFFF:x}"
        self._net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.base / "slurm.conf")}
        for name in [
            n for n in self.env if n.startswith(("SLURM_", "SBATCH_")) and n != "SLURM_CONF"
        ]:
            del self.env[name]

    # ---- starting and stopping -------------------------------------------------------------------

    def start(self) -> None:
        """Bring everything up; about 3 s."""
        try:
            self._write_files()
            self._bridge()
            self._start_munge()
            self._start_accounting()
            self.start_controller()
            for node in self.nodes:
                self.start_node(node)
            until(lambda: self.idle() == len(self.nodes), 40, "all nodes idle")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process, network and file of the cluster."""
        for node in self.nodes:
            self.kill_node(node)
        for process in reversed(self._daemons.values()):
            process.terminate()
        for process in self._daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
        for name in [*(f"fv{self._tag}{n}" for n in self.nodes), f"fb{self._tag}"]:
            subprocess.run(
                ["ip", "link", "del", name], capture_output=True, env=self.env, check=False
            )
        for node in self.nodes:
            subprocess.run(
                ["ip", "netns", "del", f"fer{self._tag}{node}"],
                capture_output=True,
                env=self.env,
                check=False,
            )
        shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _write_files(self) -> None:
        base, host, address = self.base, socket.gethostname(), f"{self._net}.1"
        for folder in ("state", "dev", "sql", "log", *(f"spool/{node}" for node in self.nodes)):
            (base / folder).mkdir(parents=True)
        for i in range(4):
            os.mknod(base / f"dev/fakegpu{i}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        self._ctld_port, slurmd_port, self._dbd_port, self._sql_port = free_ports(4)
        nodes = "\n".join(f"NodeName={n} NodeAddr={self.address(n)} Gres=gpu:4" for n in self.nodes)
        values = {
            "base": base,
            "host": host,
            "address": address,
            "nodes": nodes,
            "ctld_port": self._ctld_port,
            "slurmd_port": slurmd_port,
            "dbd_port": self._dbd_port,
            "sql_port": self._sql_port,
        }
        (base / "slurm.conf").write_text(SLURM_CONF.format(**values))
        (base / "slurmdbd.conf").write_text(DBD_CONF.format(**values))
        (base / "slurmdbd.conf").chmod(0o600)
        (base / "gres.conf").write_text(f"Name=gpu File={base}/dev/fakegpu[0-3]\n")
        (base / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        hosts = [
            f"127.0.0.1 localhost\n{address} {host}\n",
            *(f"{self.address(n)} {n}\n" for n in self.nodes),
        ]
        (base / "hosts").write_text("".join(hosts))
        (base / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        (base / "resolv.conf").write_text("")
        (base / "munge.key").write_bytes(os.urandom(128))
        (base / "munge.key").chmod(0o400)

    def _run(self, *args: object, **more: object) -> None:
        subprocess.run(
            [*map(str, args)], check=True, env=self.env, stdout=subprocess.DEVNULL, **more
        )  # type: ignore[call-overload]

    def _daemon(self, name: str, args: Sequence[object]) -> None:
        with (self.base / "log" / f"{name}.log").open("ab") as log:
            command = [*map(str, args)]
            self._daemons[name] = subprocess.Popen(
                command, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def _bridge(self) -> None:
        bridge = f"fb{self._tag}"
        self._run("ip", "link", "add", bridge, "type", "bridge")
        self._run("ip", "addr", "add", f"{self._net}.1/24", "dev", bridge)
        self._run("ip", "link", "set", bridge, "up")
        for node in self.nodes:
            space, outside = f"fer{self._tag}{node}", f"fv{self._tag}{node}"
            self._run("ip", "netns", "add", space)
            self._run(
                "ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space
            )
            self._run("ip", "link", "set", outside, "master", bridge, "up")
            for args in (
                ["addr", "add", f"{self.address(node)}/24", "dev", "eth0"],
                ["link", "set", "eth0", "up"],
                ["link", "set", "lo", "up"],
            ):
                self._run("ip", "-n", space, *args)

    def _start_munge(self) -> None:
        b = self.base
        b.chmod(0o755)
        options = {
            "key-file": "munge.key",
            "socket": "munge.socket",
            "pid-file": "munge.pid",
            "log-file": "munge.log",
            "seed-file": "munge.seed",
        }
        files = [f"--{name}={b / file}" for name, file in options.items()]
        self._daemon("munged", ["munged", "--foreground", "--force", *files])
        until((b / "munge.socket").exists, 10, "munged")

    def _start_accounting(self) -> None:
        b, port = self.base, self._sql_port
        self._run(
            "mariadb-install-db",
            "--no-defaults",
            "--user=root",
            f"--datadir={b}/sql",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )
        self._daemon(
            "mariadbd",
            [
                "mariadbd",
                "--no-defaults",
                "--user=root",
                f"--datadir={b}/sql",
                f"--socket={b}/sql.socket",
                f"--port={port}",
                "--bind-address=127.0.0.1",
                f"--pid-file={b}/sql.pid",
                "--innodb-flush-method=nosync",
                "--innodb-flush-log-at-trx-commit=0",
                "--performance-schema=off",
                "--skip-name-resolve",
            ],
        )
        client = ["mariadb", "--no-defaults", f"--socket={b}/sql.socket", "-u", "root", "-e"]

        def answers() -> bool:
            call = [*client, "select 1"]
            done = subprocess.run(call, env=self.env, capture_output=True, check=False)
            return done.returncode == 0

        until(answers, 20, "mariadbd")
        grant = "create user slurm@'127.0.0.1'; grant all on slurm_acct_db.* to slurm@'127.0.0.1'"
        self._run(*client, grant)
        self._daemon("slurmdbd", ["slurmdbd", "-D"])
        until(lambda: _listens(f"{self._net}.1", self._dbd_port), 20, "slurmdbd")
        self._run("sacctmgr", "-i", "add", "cluster", "fer")

    # ---- nodes -----------------------------------------------------------------------------------

    def address(self, node: str) -> str:
        return f"{self._net}.{10 + int(node[1:])}"

    def start_node(self, node: str) -> None:
        script = NODE_SCRIPT.format(node=node, base=self.base)
        self._daemon(
            node,
            [
                "nsenter",
                f"--net=/run/netns/fer{self._tag}{node}",
                "unshare",
                "--uts",
                "--pid",
                "--ipc",
                "--mount",
                "--fork",
                "--mount-proc",
                "--kill-child=KILL",
                "bash",
                "-c",
                script,
            ],
        )

    def start_controller(self) -> None:
        self._daemon("slurmctld", ["slurmctld", "-D"])

    def kill_controller(self) -> None:
        """No answer to any of Slurm's programs; the jobs go on."""
        process = self._daemons.pop("slurmctld")
        process.kill()
        process.wait()

    def kill_node(self, node: str) -> None:
        """As if its power had failed: every process of the node is gone."""
        process = self._daemons.pop(node, None)
        if process:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def kill_slurmd(self, node: str) -> None:
        """Only the daemon; its jobs run on."""
        self._inside(node, "pkill", "-KILL", "-x", "slurmd")

    def start_slurmd(self, node: str) -> None:
        """The daemon of a node that is up."""
        self._inside(node, "setsid", "--fork", "slurmd", "-D", "-N", node)

    def _inside(self, node: str, *args: str) -> None:
        """Run a program in the node's namespaces."""
        pid = self._daemons[node].pid  # nsenter has become unshare, whose child is in all of them
        child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        spaces = ["--net", "--uts", "--pid", "--ipc", "--mount"]
        self._run("nsenter", "-t", child, *spaces, "--wdns=/", *args, stderr=subprocess.DEVNULL)

    def cut(self, node: str) -> None:
        """Unplug its network; its processes run on."""
        self._run("ip", "link", "set", f"fv{self._tag}{node}", "down")

    def join(self, node: str) -> None:
        self._run("ip", "link", "set", f"fv{self._tag}{node}", "up")


def fer(cluster: Cluster, *args: object, code: int = 0, **env: str) -> str:
    """What `python ARGS` prints beside the cluster; it must end with exit code `code`."""
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        env={**cluster.env, **env},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def _listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def main() -> None:
    from tests.helpers.breaker import breaker

    began = time.monotonic()
    with Cluster() as cluster, breaker(cluster) as program:
        seconds = time.monotonic() - began
        print(f"up in {seconds:.1f} s; export SLURM_CONF={cluster.env['SLURM_CONF']}")
        print(f"fer-hpc drill OUT --cluster slurm --breaker {program}", flush=True)
        # not before: daemons inherit it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
