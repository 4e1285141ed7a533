"""Ranks' own networks on one machine, with links of a wanted bandwidth and latency. Needs root.

Each rank gets a network namespace. `Tbf` connects them by veth pairs on a bridge, throttled in the
kernel by tc's token bucket filter. `DelayLine` connects them by tun devices, whose packets this
process delays and throttles: tc's netem, which the kernel may lack, would do the same.
Both count what each rank sends. Root's own network is not changed but for one bridge.
"""

from __future__ import annotations

import abc
import contextlib
import fcntl
import heapq
import os
import select
import shutil
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Protocol

BURST = 70_000  # bytes that tbf lets through at once: the largest packet
QUEUE_S = 4.0  # how long a packet may wait in tbf
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
MTU = 65_000  # of a tun device: few large packets
TCP = {
    "net.ipv4.tcp_congestion_control": "reno",
    "net.ipv4.tcp_slow_start_after_idle": "0",  # or each step would begin slowly
}


class Links(Protocol):
    """Networks of ranks; rank r has the address `address(r)` at the interface `interface(r)`."""

    def command(self, rank: int) -> list[str]:
        """What a command of that rank begins with."""
        ...

    def interface(self, rank: int) -> str: ...

    def set(self, bits_per_s: float, delay_s: float = 0.0) -> None:
        """The rate of each rank's link, in each direction (0: not throttled), and one-way delay."""
        ...

    def sent(self) -> list[int]:
        """Bytes that each rank has sent, with the headers of IP and TCP."""
        ...

    def close(self) -> None: ...


def address(rank: int) -> str:
    return f"10.203.7.{rank + 1}"


def missing(delay: bool = False) -> str:
    """Why links cannot be made here; "" where they can."""
    if os.geteuid():
        return "not root"
    if not shutil.which("ip") or not shutil.which("tc"):
        return "no ip and tc (package iproute2)"
    if delay and not Path("/dev/net/tun").exists():
        return "no /dev/net/tun"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "no network namespaces here" if probe.returncode else ""


def _run(*args: object) -> str:
    done = subprocess.run(list(map(str, args)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, args))}: {done.stderr.strip()}")
    return done.stdout


class _Spaces(abc.ABC):
    """A network namespace for each rank."""

    def __init__(self, ranks: int) -> None:
        self.tag = f"{os.getpid() % 0xFFFF:04x}"
        self.names = [f"fersc{self.tag}{rank}" for rank in range(ranks)]
        self.stack = contextlib.ExitStack()
        try:
            for rank, name in enumerate(self.names):
                _run("ip", "netns", "add", name)
                self.stack.callback(_run, "ip", "netns", "del", name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
                for key, value in TCP.items():
                    _run("ip", "netns", "exec", name, "sysctl", "-qw", f"{key}={value}")
                self.connect(rank, name)
                device = self.interface(rank)
                _run("ip", "-n", name, "address", "add", f"{address(rank)}/24", "dev", device)
                _run("ip", "-n", name, "link", "set", device, "up")
        except BaseException:
            self.close()
            raise

    @abc.abstractmethod
    def connect(self, rank: int, name: str) -> None:
        """Give the namespace a device that leads to the others."""

    @abc.abstractmethod
    def interface(self, rank: int) -> str:
        """The name of that device."""

    def command(self, rank: int) -> list[str]:
        return ["ip", "netns", "exec", self.names[rank]]

    def close(self) -> None:
        self.stack.close()


class Tbf(_Spaces):
    """veth pairs on a bridge, throttled by the kernel; no latency of its own."""

    def connect(self, rank: int, name: str) -> None:
        bridge, outside = f"fb{self.tag}", f"fv{self.tag}n{rank}"
        if rank == 0:
            _run("ip", "link", "add", bridge, "type", "bridge")
            self.stack.callback(_run, "ip", "link", "del", bridge)
            _run("ip", "link", "set", bridge, "up")
        peer = ("type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "add", outside, *peer)
        _run("ip", "link", "set", outside, "master", bridge, "up")

    def interface(self, rank: int) -> str:
        return "eth0"

    def set(self, bits_per_s: float, delay_s: float = 0.0) -> None:
        if delay_s:
            raise ValueError("tbf cannot delay")
        for name in self.names:
            with contextlib.suppress(OSError):  # there is none yet
                _run("tc", "-n", name, "qdisc", "del", "dev", "eth0", "root")
            if bits_per_s:
                rate = ("rate", f"{bits_per_s:.0f}", "burst", BURST, "latency", f"{QUEUE_S}s")
                _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", *rate)

    def sent(self) -> list[int]:
        shown = (_run("ip", "-n", n, "-s", "link", "show", "eth0").split("TX:") for n in self.names)
        return [int(text[1].splitlines()[1].split()[0]) for text in shown]


class DelayLine(_Spaces):
    """tun devices; a thread carries their packets, each at its time."""

    def __init__(self, ranks: int) -> None:
        self._files: list[int] = []
        self._sent = [0] * ranks
        self._rate, self._delay_s, self._closed = 0.0, 0.0, False
        super().__init__(ranks)
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def connect(self, rank: int, name: str) -> None:
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self._files.append(file)
        self.stack.callback(os.close, file)
        device = self.interface(rank)
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
        _run("ip", "link", "set", device, "mtu", MTU, "netns", name)

    def interface(self, rank: int) -> str:
        return f"ft{self.tag}n{rank}"

    def set(self, bits_per_s: float, delay_s: float = 0.0) -> None:
        self._rate, self._delay_s = bits_per_s / 8, delay_s

    def sent(self) -> list[int]:
        return list(self._sent)

    def close(self) -> None:
        self._closed = True
        if getattr(self, "_thread", None):
            self._thread.join()
        super().close()

    def _carry(self) -> None:
        with contextlib.suppress(OSError):  # before the ranks, which use all cores
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        waiting: list[tuple[float, int, int, bytes]] = []  # (when, order, to, packet)
        free = [0.0] * len(self._files)  # when each rank's link is free again
        order = 0
        while not self._closed:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, to, packet = heapq.heappop(waiting)
                with contextlib.suppress(OSError):  # as a full queue: TCP sends it again
                    os.write(self._files[to], packet)
            pause = min(0.1, max(0.0, waiting[0][0] - now)) if waiting else 0.1
            for file in select.select(self._files, [], [], pause)[0]:
                rank, packet = self._files.index(file), os.read(file, 1 << 16)
                to = packet[19] - 1  # the last byte of IPv4's destination
                if packet[0] >> 4 != 4 or not 0 <= to < len(free):
                    continue
                self._sent[rank] += len(packet)
                now = time.monotonic()
                busy_s = len(packet) / self._rate if self._rate else 0.0
                free[rank] = max(now, free[rank]) + busy_s
                order += 1
                heapq.heappush(waiting, (free[rank] + self._delay_s, order, to, packet))
