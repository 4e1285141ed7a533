"""How a stop of a sweep reaches its trials, with a dictionary in place of Ray's store.

`test_tune.py` stops a sweep of a real Ray.
"""

from __future__ import annotations

import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fer_hpc.run.signals import stop_signals
from fer_hpc.sweep import ray_stop
from fer_hpc.sweep.ray_stop import SweepStop, stopped_with_sweep

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[bytes, bytes]]:
    from ray.experimental import internal_kv

    store: dict[bytes, bytes] = {}
    monkeypatch.setattr(internal_kv, "_internal_kv_put", store.__setitem__)
    monkeypatch.setattr(internal_kv, "_internal_kv_exists", store.__contains__)
    monkeypatch.setattr(internal_kv, "_internal_kv_del", store.pop)
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, which may run these tests, ignores it
    yield store
    for number, handler in before.items():
        signal.signal(number, handler)


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_stops_the_trainings_of_other_threads(
    number: int, stored: dict[bytes, bytes]
) -> None:
    received: list[list[int]] = []
    is_over = threading.Event()

    def train(key: bytes) -> None:
        with stopped_with_sweep(key), stop_signals() as signals:
            received.append(signals)
            is_over.wait(60)

    stop, other = SweepStop(), SweepStop()
    threads = [threading.Thread(target=train, args=(each.key,)) for each in (stop, other)]
    for thread in threads:
        thread.start()
        until(lambda: len(received) == 1 + threads.index(thread))  # noqa: B023 (called at once)
    with stop.handled():
        stop.take_signals(lambda *_: pytest.fail("Tune shall wait for the trials"))
        signal.raise_signal(number)
        assert stop.is_asked
        until(lambda: received[0])
        signal.raise_signal(signal.SIGTERM)  # a scheduler may repeat itself
    assert received == [[signal.SIGTERM], []], "the other sweep goes on"
    assert stored == {}
    is_over.set()
    for thread in threads:
        thread.join()


def test_trials_that_do_not_save_in_time_are_ended(
    stored: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_stop, "GRACE_S", 0.1)
    ended: list[int] = []
    stop = SweepStop()
    with stop.handled():
        stop.take_signals(lambda number, _: ended.append(number))
        signal.raise_signal(signal.SIGTERM)
        until(lambda: ended)
    assert ended == [signal.SIGINT]


def test_a_sweep_whose_ray_is_gone_ends(
    stored: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.experimental import internal_kv

    def unreachable(key: bytes, value: bytes) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(internal_kv, "_internal_kv_put", unreachable)
    test_trials_that_do_not_save_in_time_are_ended(stored, monkeypatch)


def test_a_second_ctrl_c_ends_them_at_once(stored: dict[bytes, bytes]) -> None:
    ended: list[int] = []
    stop = SweepStop()
    with stop.handled():
        stop.take_signals(lambda number, _: ended.append(number))
        signal.raise_signal(signal.SIGINT)
        assert not ended
        signal.raise_signal(signal.SIGINT)
        assert ended


def test_without_a_signal_nothing_is_asked(stored: dict[bytes, bytes]) -> None:
    stop = SweepStop()
    with stop.handled():
        stop.take_signals(lambda *_: None)
    assert stored == {}
    assert pickle.dumps(stop), "as Tune does with what it is given"
