"""Ends a process whose run has lost a rank, also where its main thread waits without an end.

gloo notices a closed connection. NCCL waits inside the driver, for a rank of the same host for
ever, and nothing notices a rank that is stopped but not dead. So every rank counts up a number in
the store where the ranks met, from a thread of its own, and looks at the numbers of the others.
"""

from __future__ import annotations

import datetime
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fer_hpc.config import EXIT_RUN_AGAIN
from fer_hpc.parallel.world import World, store_holder

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

BEAT_S = 3.0
SILENT_S = 60.0  # without a new number: the rank is gone
RECORD_S = 4.0  # for recording why: storage may hang
LAST_RANK_S = 5.0  # for the other ranks to end, before rank 0 takes the store away
ENDED = b"ended"


class Heartbeat:
    """Ends the process with EXIT_RUN_AGAIN when another rank is silent for `silent_s` seconds.

    Then stderr names that rank, and `on_lost(why)` is called. The store counts as its holder: a
    store that does not answer is rank 0 (or torchrun) being silent. Time is this process's own and
    counts only while it runs itself, so neither clocks of hosts nor a pause of it matter. All ranks
    must exist before the `with`; a rank that leaves it without an exception is never missed.
    """

    def __init__(
        self,
        store: Store,
        world: World,
        on_lost: Callable[[str], object],
        beat_s: float = BEAT_S,
        silent_s: float = SILENT_S,
    ) -> None:
        from torch.distributed.distributed_c10d import PrefixStore

        self.world, self.on_lost, self.beat_s, self.silent_s = world, on_lost, beat_s, silent_s
        connection = store.clone()  # a request of one thread blocks those of all others on it
        connection.set_timeout(datetime.timedelta(seconds=silent_s))
        self._store = PrefixStore("heartbeat", connection)
        self._keys = [str(rank) for rank in range(world.size)]
        self._store.set(self._keys[world.rank], "0")
        # The ranks' last numbers, and behind them how often the store has answered.
        self._seen: list[bytes] = [b"0"] * (world.size + 1)
        self._ended, self._in_order = threading.Event(), False
        # Two threads: a store whose host is stopped blocks the one that asks it.
        self._threads = [
            threading.Thread(target=work, name=f"heartbeat-{work.__name__}", daemon=True)
            for work in (self._exchange, self._watch)
        ]

    def __enter__(self) -> Heartbeat:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._in_order = error is None
        self._ended.set()
        for thread in self._threads:
            thread.join(LAST_RANK_S)

    def _exchange(self) -> None:
        """Count up this rank's number and read the others', until the end."""
        count = 0
        own = self._keys[self.world.rank]
        try:
            while not self._ended.is_set():
                count += 1
                self._store.set(own, str(count))
                self._seen = [*self._store.multi_get(self._keys), str(count).encode()]
                self._ended.wait(self.beat_s)
            if self._in_order:
                self._store.set(own, ENDED.decode())
                self._see_off()
        except RuntimeError:  # no connection, or no answer in time: _watch sees no new numbers
            return

    def _see_off(self) -> None:
        """Keep rank 0, whose end takes the store away, until the others have ended."""
        deadline = time.monotonic() + LAST_RANK_S
        while self.world.rank == 0 and time.monotonic() < deadline:
            if all(value == ENDED for value in self._store.multi_get(self._keys)):
                return
            time.sleep(0.02)

    def _watch(self) -> None:
        """End the process once a rank, or the store, has been silent for too long."""
        before, numbers = time.monotonic(), self._seen
        silent = [0.0] * len(numbers)  # seconds
        while not self._ended.wait(self.beat_s):
            now, latest = time.monotonic(), self._seen
            passed = min(now - before, 2 * self.beat_s)  # more: this process itself was stopped
            silent = [
                0.0 if new != old or new == ENDED else seconds + passed
                for new, old, seconds in zip(latest, numbers, silent, strict=True)
            ]
            before, numbers = now, latest
            if numbers[0] == ENDED:
                return  # the run is over, and the store may be gone
            if lost := self._lost(silent):
                self._end(*lost)

    def _lost(self, silent: list[float]) -> tuple[str, float] | None:
        """(who is gone, seconds of silence), given the silence of each rank and of the store."""
        *ranks, store = silent
        # Nothing is heard of a rank while the store does not answer: then it must have been silent
        # before. One beat may come late on either side.
        gone = [
            rank
            for rank, seconds in enumerate(ranks)
            if seconds >= self.silent_s and seconds - store > 4 * self.beat_s
        ]
        if gone:
            who = " and ".join(f"rank {rank}" for rank in gone)
            return who, max(ranks[rank] for rank in gone)
        return (store_holder(), store) if store >= self.silent_s else None

    def _end(self, who: str, seconds: float) -> None:
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
        why = f"rank {self.world.rank} lost {who}, silent since {since} ({seconds:.0f} s)"
        print(
            f"fer-hpc: {why}; the same command continues from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        record = threading.Thread(target=self.on_lost, args=(why,), daemon=True)
        record.start()
        record.join(RECORD_S)
        os._exit(EXIT_RUN_AGAIN)
