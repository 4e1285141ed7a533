"""A real Grid Engine cell on this machine: a master and hosts that can be killed.

Every host is a network, host name and process namespace of its own. All files are under one folder,
nothing under /etc is changed, and `stop` leaves nothing. Commands go through `bin/` of that folder,
which enters the master's namespaces, so code under test just needs `env`. Needs root and the Debian
packages gridengine-master, gridengine-exec, gridengine-client, iproute2, util-linux.

The site is like a university's: parallel environment omp, complex gpus (per job), 4 of them a host,
chosen by a prolog that writes a variable into the job's environment, as Grid Engine does not.

    python -m tests.helpers.gridengine        # starts one and prints how to use it, until Ctrl-C
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.helpers import gridengine_site as site
from tests.helpers.slurm import PATH
from tests.helpers.waiting import until

PROGRAMS = ("sge_qmaster", "sge_execd", "qsub", "qconf", "ip", "nsenter")
SHARE = Path("/usr/share/gridengine")
CLIENTS = "qsub qstat qacct qdel qmod qalter qhold qrls qconf qhost qresub qselect".split()


class Cell:
    """Hosts n1, n2, ... of 8 slots and 4 fake GPUs in all.q.

    `gpu_variable` is what the site's prolog sets: CUDA_VISIBLE_DEVICES, SGE_GPU, ... Jobs are those
    of `user`, who needs to be able to write where they run. Only for root, signals reach nothing
    but the process group of the job's shell; others' reach all processes, the group's up to twice.
    The warnings USR1 and USR2 come `notify_s` seconds, below 60, before what they warn of.
    """

    def __init__(
        self,
        hosts: int = 1,
        gpu_variable: str = "CUDA_VISIBLE_DEVICES",
        user: str = "root",
        notify_s: int = 5,
    ) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="fer-sge-", dir="/tmp"))
        self.hosts = [f"n{i + 1}" for i in range(hosts)]
        self.gpu_variable, self.user, self.notify_s = gpu_variable, user, notify_s
        self._holders: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        foreign = ("SGE_", "JOB_", "QUEUE", "PE_", "SLURM_", "SBATCH_")
        self.env = {n: v for n, v in os.environ.items() if not n.startswith(foreign)}
        self.env.update(SGE_ROOT=str(self.base / "sge"), PATH=f"{self.base}/bin:{PATH}")

    # ---- starting and stopping -------------------------------------------------------------------

    def start(self) -> None:
        """Bring everything up; about 3 s."""
        try:
            self._write_files()
            self._hold("master")
            self._inside("master", "ip", "link", "add", "br0", "type", "bridge")
            self._inside("master", "ip", "addr", "add", "10.9.0.1/24", "dev", "br0")
            self._inside("master", "ip", "link", "set", "br0", "up")
            self._write_clients()
            self._write_spool()
            self.start_qmaster()
            self._configure()
            for host in self.hosts:
                self.start_host(host)
            until(lambda: self.ready() == len(self.hosts), 40, "all hosts ready")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process and file of the cell."""
        for host in [*self.hosts, "master"]:
            self.kill_host(host)
        shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self) -> Cell:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _write_files(self) -> None:
        base, files = self.base, self.base / "site"
        base.chmod(0o755)
        for folder in ("bin", "log", "spool/qmaster", "sge/default/common", "site"):
            (base / folder).mkdir(parents=True)
        for name in ("bin", "lib", "util", "utilbin"):
            (base / "sge" / name).symlink_to(f"/var/lib/gridengine/{name}")
        addresses = [("10.9.0.1", "master"), *((self.address(n), n) for n in self.hosts)]
        hosts = "".join(f"{address} {name}\n" for address, name in addresses)
        (base / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        (base / "nsswitch.conf").write_text(
            "passwd: files\ngroup: files\nhosts: files\nservices: files\n"
        )
        (base / "resolv.conf").write_text("")
        common = base / "sge/default/common"
        self._derive(SHARE / "default-bootstrap", common / "bootstrap", site.BOOTSTRAP)
        (common / "act_qmaster").write_text("master\n")
        for name, text in (("prolog", site.PROLOG), ("epilog", site.EPILOG)):
            (files / name).write_text(text.format(base=base, variable=self.gpu_variable))
            (files / name).chmod(0o755)

    def address(self, host: str) -> str:
        return f"10.9.0.{10 + int(host[1:])}"

    def _hold(self, host: str) -> None:
        """Make the namespaces of a host; they exist until `kill_host`."""
        script = site.HOST_SCRIPT.format(host=host, base=self.base, user=self.user)
        spaces = ["--net", "--uts", "--pid", "--ipc", "--mount", "--fork", "--mount-proc"]
        command = ["unshare", *spaces, "--kill-child=KILL", "bash", "-c", script]
        env = {**self.env, "PYTHON": sys.base_prefix}
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        up = self.base / f"{host}.up"
        self._holders[host] = process, 0
        until(up.exists, 10, f"namespaces of {host}")
        up.unlink()
        child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        self._holders[host] = process, int(child)

    def _enter(self, host: str, *args: object) -> list[str]:
        pid = str(self._holders[host][1])
        spaces = ["--net", "--uts", "--pid", "--ipc", "--mount"]
        return ["nsenter", "-t", pid, *spaces, "--wdns=/", *map(str, args)]

    def _inside(self, host: str, *args: object) -> str:
        return self._must(*self._enter(host, *args))

    def _write_clients(self) -> None:
        values = {"base": self.base, "lib": site.LIB, "pid": self._holders["master"][1]}
        values["become"] = ""
        if self.user != "root":
            entry = pwd.getpwnam(self.user)
            ids = f"--reuid {entry.pw_uid} --regid {entry.pw_gid} --clear-groups"
            values["become"] = f"setpriv {ids} env USER={self.user} LOGNAME={self.user}"
        for name in CLIENTS:
            script = self.base / "bin" / name
            script.write_text(site.CLIENT_SCRIPT.format(name=name, **values))
            script.chmod(0o755)

    def _write_spool(self) -> None:
        files, parts = self.base / "site", SHARE / "util/resources"
        shutil.copytree(parts / "centry", files / "complexes")
        self._derive(parts / "centry/slots", files / "complexes/gpus", site.GPUS)
        self._derive(parts / "centry/slots", files / "complexes/gpu_c", site.GPU_C)
        (files / "pes").mkdir()
        self._derive(parts / "pe/smp", files / "pes/omp", site.OMP)
        self._derive(SHARE / "default-configuration", files / "global", site.GLOBAL)
        where = site.BOOTSTRAP["spooling_params"].format(base=self.base)
        self._inside("master", site.LIB / "spoolinit", "classic", "libspoolc", where, "init")
        for args in (
            ("configuration", files / "global"),
            ("complexes", files / "complexes"),
            ("usersets", parts / "usersets"),
            ("pes", parts / "pe"),
            ("pes", files / "pes"),
            ("managers", "root"),
        ):
            self._inside("master", site.LIB / "spooldefaults", *args)

    def _derive(self, source: Path, target: Path, values: dict[str, str]) -> None:
        filled = {name: value.format(base=self.base) for name, value in values.items()}
        target.write_text(_changed(source.read_text(), filled))

    def _configure(self) -> None:
        scheduler = self.base / "site/scheduler"
        scheduler.write_text(_changed(self.ask("qconf", "-ssconf"), site.SCHEDULER))
        self._qconf("-Msconf", scheduler)
        self._qconf("-as", "master")
        (self.base / "site/project").write_text(site.PROJECT)
        self._qconf("-Aprj", self.base / "site/project")
        # an editor that changes nothing: all values of a new queue are the defaults
        self._qconf("-aq", "all.q")
        for name, value in {**site.QUEUE, "notify": f"00:00:{self.notify_s:02}"}.items():
            self._qconf("-rattr", "queue", name, value, "all.q")
        for host in self.hosts:
            self._qconf("-ah", host)
            self._qconf("-as", host)
            self._qconf("-aattr", "queue", "hostlist", host, "all.q")

    def _qconf(self, *args: object) -> str:
        return self._inside("master", site.LIB / "qconf", *args)

    def _must(self, *args: object) -> str:
        done = self._call(*args)
        if done.returncode:
            raise RuntimeError(f"{args}: {done.stdout}{done.stderr}")
        return done.stdout

    def _call(self, *args: object, **more: Any) -> subprocess.CompletedProcess[str]:
        more = {"env": {**self.env, "EDITOR": "true"}, "check": False, **more}
        return subprocess.run([*map(str, args)], capture_output=True, text=True, **more)

    # ---- daemons ---------------------------------------------------------------------------------

    def _daemon(self, host: str, program: str) -> None:
        # little, as at boot: jobs inherit it
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SGE_ND": "1"}
        env["SGE_ROOT"] = self.env["SGE_ROOT"]
        with (self.base / "log" / f"{host}.log").open("ab") as log:
            command = self._enter(host, site.LIB / program)
            self._daemons[host] = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start_qmaster(self) -> None:
        self._daemon("master", "sge_qmaster")
        until(lambda: self._call("qconf", "-sh").returncode == 0, 30, "the master")

    def stop_qmaster(self) -> None:
        """As after a crash: qsub and qstat get no answer, jobs run on."""
        self._kill_daemon("master", self.base / "spool/qmaster/qmaster.pid")

    def start_execd(self, host: str = "n1") -> None:
        self._daemon(host, "sge_execd")

    def kill_execd(self, host: str = "n1") -> None:
        """Only the daemon; its jobs run on."""
        self._kill_daemon(host, self.base / f"spool/execd/{host}/execd.pid")

    def _kill_daemon(self, host: str, pid_file: Path) -> None:
        self._inside(host, "kill", "-KILL", pid_file.read_text().strip())
        self._daemons.pop(host).wait()

    def start_host(self, host: str) -> None:
        self._hold(host)
        pid = self._holders[host][1]
        # not in the master's process namespace, which does not have the host's number
        net = ["nsenter", "-t", self._holders["master"][1], "--net"]
        veth = ["type", "veth", "peer", "name", "eth0", "netns", pid]
        self._must(*net, "ip", "link", "add", f"v{host}", *veth)
        self._inside("master", "ip", "link", "set", f"v{host}", "master", "br0", "up")
        self._inside(host, "ip", "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        self._inside(host, "ip", "link", "set", "eth0", "up")
        self.start_execd(host)
        until(lambda: self._call("qconf", "-se", host).returncode == 0, 20, f"host {host}")
        self._qconf("-rattr", "exechost", "complex_values", "gpus=4,gpu_c=8.0", host)

    def kill_host(self, host: str = "n1") -> None:
        """As if its power had failed: every process of the host is gone."""
        if host in self._holders:
            process, _ = self._holders.pop(host)
            process.send_signal(signal.SIGKILL)
            process.wait()
        if host in self._daemons:
            self._daemons.pop(host).wait()
        shutil.rmtree(self.base / f"gpus-{host}", ignore_errors=True)

    def cut(self, host: str) -> None:
        """Unplug its network; its processes run on."""
        self._link(host, "down")

    def join(self, host: str) -> None:
        self._link(host, "up")

    def _link(self, host: str, state: str) -> None:
        self._inside("master", "ip", "link", "set", f"v{host}", state)

    def ready(self) -> int:
        """Number of hosts that take jobs."""
        listed = ElementTree.fromstring(self.ask("qstat", "-f", "-xml") or "<none/>")
        queues = [q for q in listed.iter("Queue-List") if q.findtext("arch", "NA") != "NA"]
        return sum(not (q.findtext("state") or "") for q in queues)

    # ---- jobs ------------------------------------------------------------------------------------

    def ask(self, *args: object) -> str:
        """What a Grid Engine command prints; "" where it fails."""
        done = self._call(*args)
        return done.stdout if done.returncode == 0 else ""

    def qsub(self, *args: object, cwd: Path, **env: object) -> str:
        """Submit; gives the job's number."""
        variables = {name: str(value) for name, value in env.items()}
        done = self._call("qsub", "-terse", *args, cwd=cwd, env={**self.env, **variables})
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().partition(".")[0]

    def state(self, job: str) -> str:
        """qw, hqw, r, Eqw, ... of its tasks, each once, sorted; "" when the job has left."""
        listed = ElementTree.fromstring(self._must("qstat", "-u", "*", "-xml"))
        tasks = [t for t in listed.iter("job_list") if t.findtext("JB_job_number") == job]
        return ",".join(sorted({t.findtext("state") or "" for t in tasks}))

    def account(self, job: str) -> list[dict[str, str]]:
        """The records of qacct, oldest first: one for each end of a task, reruns too."""
        rows: list[dict[str, str]] = []
        for line in self.ask("qacct", "-j", job).splitlines():
            name, _, value = line.partition(" ")
            if name.startswith("===="):
                rows.append({})
            elif rows and value:
                rows[-1][name] = value.strip()
        return rows

    def wait(self, job: str, *states: str, seconds: float = 60) -> str:
        """Wait until the job is in one of `states` (default: it has left)."""

        def reached() -> bool:
            now = self.state(job)
            return now in states if states else not now

        wanted = " or ".join(states) or "ended"
        until(reached, seconds, lambda: f"job {job} is {self.state(job)!r}, wanted {wanted}")
        return self.state(job)

    def cancel(self, job: str) -> None:
        self._call("qdel", job)


def _changed(text: str, values: dict[str, str]) -> str:
    """A configuration of lines "name value", with other values."""
    for name, value in values.items():
        text, found = re.subn(rf"(?m)^({name}\s+)(?:.*\\\n)*.*$", rf"\g<1>{value}", text)
        assert found == 1, name
    return text


def main() -> None:
    from tests.helpers.breaker import breaker

    began = time.monotonic()
    with Cell(hosts=2) as cell, breaker(cell) as program:
        seconds = time.monotonic() - began
        print(f"up in {seconds:.1f} s; export PATH={cell.base}/bin:$PATH SGE_ROOT={cell.base}/sge")
        print(f"fer-hpc drill OUT --cluster sge --breaker {program}", flush=True)
        # not before: daemons inherit it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
