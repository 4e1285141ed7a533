"""In which order a split's rows are trained on, and the random numbers of each position.

Both are pure functions of (seed, position). They come from Philox counters (Salmon et al., 2011),
whose raw stream numpy keeps stable between versions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fer_hpc.data.augment import DRAWS

# Independent random streams of one seed; NEUTRALS is the GAN's order of neutral faces.
_ROWS, _AUGMENT, _SHARDS, _CLASSES, NEUTRALS = 1, 2, 3, 4, 5


class Order:
    """The endless order of a split's rows: one permutation an epoch, concatenated.

    `starts` [shards + 1] holds the first row of each shard and the number of rows. `window` 0
    permutes all rows. `window` k shuffles the shards and permutes within k of them at a time, so
    that a set larger than memory is read k shards at a time. With `balanced` labels [n], every
    class gets the same share of an epoch: an epoch still has n positions, rows of small classes
    repeat in it, and of a large class each epoch has another random part.
    Two orders of one seed differ where their `stream` differs.
    """

    def __init__(
        self,
        starts: NDArray[np.int64],
        seed: int,
        window: int = 0,
        balanced: NDArray[np.int64] | None = None,
        stream: int = _ROWS,
    ) -> None:
        self.starts, self.n = starts, int(starts[-1])
        self.seed, self.window, self.balanced, self.stream = seed, window, balanced, stream
        self._epochs: dict[int, NDArray[np.int64]] = {}  # the current one and its neighbours

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The rows of epoch number `epoch`, [n]."""
        if epoch not in self._epochs:
            rows = np.argsort(self._random(self.stream, epoch, self.n), kind="stable")
            if self.window:
                rows = self._by_window(rows, epoch)
            if self.balanced is not None:
                rows = self._class_balanced(rows, self.balanced, epoch)
            self._epochs = {e: r for e, r in self._epochs.items() if abs(e - epoch) == 1}
            self._epochs[epoch] = rows
        return self._epochs[epoch]

    def rows(self, start: int, count: int) -> NDArray[np.int64]:
        """Rows at positions [start, start + count)."""
        parts = []
        while count:
            epoch, first = divmod(start, self.n)
            part = self.epoch(epoch)[first : first + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _random(self, stream: int, epoch: int, count: int) -> NDArray[np.uint64]:
        return np.random.Philox(key=[self.seed, stream << 48 | epoch]).random_raw(count)

    def _by_window(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """The permutation `rows`, sorted by the window of shards that each row lies in."""
        shuffled = np.argsort(self._random(_SHARDS, epoch, len(self.starts) - 1), kind="stable")
        place = np.argsort(shuffled, kind="stable")  # of each shard in this epoch
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        return rows[np.argsort(place[shard] // self.window, kind="stable")]

    def _class_balanced(
        self, rows: NDArray[np.int64], labels: NDArray[np.int64], epoch: int
    ) -> NDArray[np.int64]:
        """As many positions for each class; the rows of a class keep their order in `rows`."""
        present = np.unique(labels)
        slots = np.argsort(self._random(_CLASSES, epoch, self.n), kind="stable")
        class_per_slot = present[slots % len(present)]
        balanced = np.empty(self.n, np.int64)
        for label in present:
            of_class = rows[labels[rows] == label]
            positions = np.flatnonzero(class_per_slot == label)
            balanced[positions] = of_class[np.arange(len(positions)) % len(of_class)]
        return balanced


def draws(seed: int, start: int, count: int) -> NDArray[np.float64]:
    """Uniform random numbers [count, DRAWS] in [0, 1) of positions start, start + 1, ..."""
    counter = start * (DRAWS // 4)  # a counter step gives 4 words
    philox = np.random.Philox(key=[seed, _AUGMENT << 48], counter=counter)
    words = philox.random_raw(count * DRAWS).reshape(count, DRAWS)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
