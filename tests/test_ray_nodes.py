"""The nodes of a job that Ray runs on, and what a killed sweep's Ray leaves."""

from __future__ import annotations

import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fer_hpc.parallel.world import StepNode
from fer_hpc.sweep import ray_nodes


def test_a_strangers_connection_is_no_node_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of this job")
    own = ray_nodes._job_code()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another job")
    other = ray_nodes._job_code()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of this job")
    for sent, expected in ((own, True), (other, False), (own[:8], False), (b"", False)):
        here, there = socket.socketpair()
        with here, there:
            there.sendall(sent)
            there.shutdown(socket.SHUT_WR)
            assert ray_nodes._is_from_job(here) == expected


def test_nodes_of_a_job_without_work_are_let_go() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1] - 1
    node = StepNode(0, 2, "localhost", port, gpus=0)
    with ThreadPoolExecutor(1) as threads:
        released = threads.submit(ray_nodes.release, node)
        with ray_nodes._connect("localhost", port + 1) as lifeline:
            assert not released.done()
            lifeline.sendall(ray_nodes._job_code())
            assert lifeline.recv(1) == b""
        released.result()


def test_the_folder_of_a_killed_sweeps_ray_is_removed_by_the_next_one() -> None:
    with ray_nodes.temporary_folder("test-") as living:
        killed = Path(tempfile.mkdtemp(prefix="fer-ray-test-", dir="/tmp"))
        (killed / "lock").touch()
        beginning = Path(tempfile.mkdtemp(prefix="fer-ray-test-", dir="/tmp"))  # not locked yet
        with ray_nodes.temporary_folder("test-") as folder:
            assert folder.is_dir()
            assert living.is_dir()
            assert beginning.is_dir()
            assert not killed.exists()
        beginning.rmdir()
    assert not living.exists()
    assert not folder.exists()
