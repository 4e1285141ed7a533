"""Lets another process break a cluster of the tests: a socket, and a program that speaks to it.

`fer-hpc drill --cluster slurm --breaker PROGRAM` calls `PROGRAM lose n2` and its like.
"""

from __future__ import annotations

import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.gridengine import Cell
from tests.helpers.slurm import Cluster

PROGRAM = """\
#!{python} -S
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect({path!r})
    s.sendall(" ".join(sys.argv[1:]).encode() + b"\\n")
    answer = s.makefile().readline().strip()
sys.exit(0 if answer == "done" else answer or "no answer")
"""


def actions_of(broken: Cluster | Cell) -> dict[str, Callable[..., object]]:
    """What the program can do, by its first argument."""
    if isinstance(broken, Cluster):
        return {
            "lose": broken.kill_node,
            "restore": broken.start_node,
            "cut": broken.cut,
            "join": broken.join,
            "stop-daemon": broken.kill_slurmd,
            "start-daemon": broken.start_slurmd,
            "stop-controller": broken.kill_controller,
            "start-controller": broken.start_controller,
        }
    return {
        "lose": broken.kill_host,
        "restore": broken.start_host,
        "cut": broken.cut,
        "join": broken.join,
        "stop-daemon": broken.kill_execd,
        "start-daemon": broken.start_execd,
        "stop-controller": broken.stop_qmaster,
        "start-controller": broken.start_qmaster,
    }


@contextmanager
def breaker(broken: Cluster | Cell) -> Iterator[Path]:
    """The program that breaks a cluster, as long as the block lasts."""
    actions = actions_of(broken)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            verb, *names = self.rfile.readline().decode().split()
            try:
                if isinstance(broken, Cluster):
                    broken.resume()
                actions[verb](*names)
                self.wfile.write(b"done\n")
            except Exception as error:
                self.wfile.write(f"{verb}: {error!r}\n".replace("\n", " ").encode() + b"\n")

    path, program = broken.base / "breaker.socket", broken.base / "break"
    program.write_text(PROGRAM.format(python=sys.executable, path=str(path)))
    program.chmod(0o755)
    with socketserver.UnixStreamServer(str(path), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield program
        finally:
            server.shutdown()
